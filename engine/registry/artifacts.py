"""The files of versions, in a local folder or any store that fsspec supports.

A version is a folder: `manifest.json`, and for each shard a folder with its parts, each compressed
with zstd. The manifest gives every file's length and SHA-256. It is written last, and may be
signed. Nothing is decoded before its checksums are verified.
"""

import errno
import hashlib
import hmac
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import zstandard
from fsspec.implementations.local import LocalFileSystem

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.basics.masking import hide_credentials, masked
from midstream.engine.basics.names import name_fault
from midstream.engine.basics.read_only import error_text, unwritable
from midstream.engine.basics.storage import LocalStorage
from midstream.engine.registry.database import OtherStateError
from midstream.engine.shard.header import VersionHeader

__all__ = [
    "SCHEMA",
    "ArtifactError",
    "Artifacts",
    "Manifest",
    "PartFile",
    "ShardPart",
    "StoreError",
]

SCHEMA = 1
_MANIFEST = "manifest.json"
_OWNER = "identity"  # name of the file with the identity of the state that owns the versions
_LEVEL = 3
_DRAFT = re.compile(r"\..*\.draft\Z")
_FOLDER = re.compile(r"\d{8,}\Z")
_PART_OF_PATH = re.compile(r"(?!\.)[^/\\\0]+\Z")
_MOST_PACKED = 32_768  # most bytes from one compressed byte: zstd's densest block, 128 KiB in four
_TRIES = 10  # attempts to write into a folder that others remove meanwhile
_SEND_SECONDS, _SLOWEST = 20.0, 100_000  # timeout of a store: seconds, plus a second per so many B
_S3: dict[str, Any] = {
    # Files written by other processes must be visible: no cached listings.
    "use_listings_cache": False,
    # The caller retries a store that does not answer, and reports why.
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 10,
        "retries": {"total_max_attempts": 2},
    },
}


class ArtifactError(ExpectedError, ValueError):
    """An artifact cannot be used; the message names it and the reason."""


class StoreError(ExpectedError, RuntimeError):
    """The store cannot be read or written to at present."""


class PartFile(msgspec.Struct, frozen=True):
    """A file: its name within the version, its length and SHA-256, and its uncompressed length."""

    name: str
    bytes: int
    sha256: str
    unpacked: int


class ShardPart(msgspec.Struct, frozen=True):
    """A version's content for one shard.

    Attributes
    ----------
    shard
        The shard's name.
    header
        The header as it was written, and may be signed; `saved` reads it.
    files
        By name of the part: learner, metrics, drift (detectors), replay, trainer (counts). The
        state of a random generator is in the part that draws from it.
    """

    shard: str
    header: dict[str, Any]
    files: dict[str, PartFile]

    @property
    def saved(self) -> VersionHeader:
        """What the header says of the state."""
        return VersionHeader.of(self.header)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a version.

    Attributes
    ----------
    parent
        The version that it derives from; 0: none.
    kind
        "online", "consolidated", "restored" or "imported".
    reason
        "schedule", "drift", "shutdown", "manual", or a text.
    created
        Seconds since 1970.
    learner
        The learner's definition, without what it has learned.
    fingerprint
        SHA-256 of the definition.
    libraries
        Versions of Midstream, Python and the libraries that the state depends on.
    data
        What was learned, in total and since the parent: ranges of the input by partition, counts
        by source, a fingerprint of the ids in order.
    metrics
        By shard, the prequential metrics at that point; undefined ones are null.
    shards
        The parts.
    signature
        HMAC-SHA256 of all the rest; empty: not signed.
    """

    schema: int = SCHEMA
    model: str
    version: int
    parent: int
    kind: str
    reason: str
    created: float
    learner: dict[str, Any]
    fingerprint: str
    libraries: dict[str, str]
    data: dict[str, Any]
    metrics: dict[str, dict[str, float | None]]
    shards: list[ShardPart]
    signature: str = ""

    @property
    def identity(self) -> str:
        """Identity of the state it was made from; "": from before states had identities."""
        found = {part.saved.identity for part in self.shards}
        return max(found, default="")

    @property
    def bytes(self) -> int:
        """Total length of all files."""
        return sum(file.bytes for part in self.shards for file in part.files.values())

    def part(self, shard: str) -> ShardPart:
        """Return the part of a shard.

        Raises
        ------
        ArtifactError
            If the version has no part of it.
        """
        for part in self.shards:
            if part.shard == shard:
                return part
        names = ", ".join(part.shard for part in self.shards)
        raise ArtifactError(f"version {self.version} has no shard {shard}; it has: {names}")


class UnreadableError(StoreError):
    """A file cannot be read for lack of permission."""


class Artifacts:
    """The files of the versions of one model.

    Guarantee: a file is either complete or absent, locally also after a loss of power.

    Parameters
    ----------
    place
        A folder, or a URL that fsspec knows (`s3://bucket/prefix`).
    model
        The model's name.
    key
        Key with which manifests are signed, and must be signed.

    Raises
    ------
    StoreError
        If the store is unknown, or its client library is not installed.
    """

    def __init__(self, place: str | Path, model: str, *, key: bytes | None = None) -> None:
        self.place = str(place)
        hide_credentials(self.place)
        if fault := name_fault(model):
            raise StoreError(f"{model[:100]!r} is no model's name: {fault}")
        self.model = model
        self._key = key
        try:
            options = _S3 if self.place.startswith("s3:") else {}
            self._files, root = fsspec.core.url_to_fs(self.place, **options)
            if options:
                self._files.retries = 1
        except Exception as error:  # noqa: BLE001 clients may connect here: any error
            known = isinstance(error, ImportError | ValueError)
            reason = str(error) if known else _reason(error)
            raise StoreError(masked(f"{self.place}: {reason}")) from None
        self._root = f"{root.rstrip('/')}/{model}"
        self._local = isinstance(self._files, LocalFileSystem)

    def folder(self, version: int) -> str:
        """Return the folder of a version's files."""
        return f"{self._root}/{version:08d}"

    # --- writing

    def claim(self, identity: str, *, takes: bool = False) -> None:
        """Claim the place for a state, or check its owner; `takes`: take it from another owner.

        Raises
        ------
        OtherStateError
            If it belongs to another state.
        StoreError
            If the store does not answer.
        """
        if not identity:  # the caller has no state
            return
        path = f"{self._root}/{_OWNER}"
        with self._naming(path):
            owner = self._owner(path)
            if owner == identity:
                return
            if owner and not takes:
                raise self._refused(owner, identity)
            self._claim(path, identity, takes=takes)
            owner = self._owner(path)
            if owner != identity:  # another state claimed it at the same time
                raise self._refused(owner, identity)

    def _owner(self, path: str) -> str:
        self._files.invalidate_cache()
        try:
            return bytes(self._files.cat_file(path)).decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def _claim(self, path: str, identity: str, *, takes: bool) -> None:
        """Write the owner of the place; `takes`: also over another owner."""
        data = f"{identity}\n".encode()
        if takes or not (self._local or self.place.startswith("s3:")):
            self._write(path, data)
        elif self._local:
            draft = f"{path}.{os.urandom(8).hex()}.draft"
            self._write(draft, data)
            with suppress(FileExistsError):  # another process was faster
                os.link(draft, path)
            LocalStorage(Path(path).parent).remove(Path(draft).name)
            LocalStorage(Path(path).parent).sync_folder()
        else:
            with suppress(FileExistsError, OSError):
                self._files.pipe_file(path, data, mode="create")

    def _refused(self, owner: str, identity: str) -> OtherStateError:
        return OtherStateError(
            f"{self._shown(self._root)}: the versions there are of another state (identity "
            f"{owner[:12]}; the one here: {identity[:12]}); give this config a `name` of its own, "
            "or, if that state was moved here or lost, take them over with `midstream run --adopt`"
        )

    def require_writing(self) -> None:
        """Raise StoreError if this user is known to have read access only."""
        if self._local and (why := unwritable(Path(self._root))):
            raise StoreError(why)

    def write_part(
        self, version: int, shard: str, header: Mapping[str, Any], parts: Mapping[str, bytes]
    ) -> ShardPart:
        """Write a shard's part of a version. Writing it again changes nothing.

        If the version is removed meanwhile, some of its files may remain: the caller must check
        whether the version is still wanted.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        files = {}
        for name, data in parts.items():
            packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
            file = PartFile(_name(shard, name), len(packed), _sha256(packed), len(data))
            self._write(f"{self.folder(version)}/{file.name}", packed)
            files[name] = file
        self._sync_folders(version)
        return ShardPart(shard, dict(header), files)

    def write_manifest(self, manifest: Manifest) -> bytes:
        """Sign a manifest if there is a key, write it, and return its bytes.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        # Signed in the form in which it is read: 1 as 1.0 for a metric.
        manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
        signed = msgspec.structs.replace(manifest, signature=self._signature(manifest))
        data = msgspec.json.format(msgspec.json.encode(signed), indent=1) + b"\n"
        self.write_manifest_again(manifest.version, data)
        return data

    def write_manifest_again(self, version: int, data: bytes) -> None:
        """Write the bytes of a manifest, as `write_manifest` returned them.

        Raises
        ------
        StoreError
            If they cannot be written.
        """
        self._write(f"{self.folder(version)}/{_MANIFEST}", data)
        self._sync_folders(version)

    def _signature(self, manifest: Manifest) -> str:
        if self._key is None:
            return ""
        unsigned = msgspec.json.encode(msgspec.structs.replace(manifest, signature=""))
        return hmac.new(self._key, unsigned, hashlib.sha256).hexdigest()

    def _write(self, path: str, data: bytes) -> None:
        with self._naming(path):
            if not self._local:
                # A client that waits for permission to send (Expect: 100-continue) may hang.
                limit = {"timeout": _SEND_SECONDS + len(data) / _SLOWEST}
                self._files.pipe_file(path, data, **limit if self._files.async_impl else {})
                return
            _in_a_folder_that_may_go(partial(_write_locally, Path(path), data))

    def _sync_folders(self, version: int) -> None:
        """Make the names of the folders of a version's files durable."""
        if not self._local:
            return
        with self._naming(self.folder(version)):
            for folder in (self.folder(version), self._root, posixpath.dirname(self._root)):
                _in_a_folder_that_may_go(partial(_sync_folder, Path(folder)))

    def remove(self, version: int) -> None:
        """Remove all files of a version, the manifest first; without files nothing happens.

        Files that others write meanwhile may remain: the writers find that the version is not
        wanted, and remove them.

        Raises
        ------
        StoreError
            If a file cannot be removed.
        """
        with self._naming(self.folder(version)):
            names = self._names(version)
            for name in sorted(names, key=lambda name: name != _MANIFEST):
                with suppress(FileNotFoundError):  # another process may be removing it, too
                    self._files.rm_file(f"{self.folder(version)}/{name}")
            if self._local:
                for folder, _, _ in os.walk(self.folder(version), topdown=False, onerror=_unseen):
                    _remove_empty(Path(folder))

    # --- reading

    def versions(self) -> list[int]:
        """Return the versions that have files, or a folder.

        Raises
        ------
        StoreError
            If the store does not answer.
        """
        with self._naming(self._root):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            except PermissionError as error:
                raise UnreadableError(
                    f"{self._shown(self._root)}: cannot be read: {_reason(error)}"
                ) from None
        names = (posixpath.basename(path.rstrip("/")) for path in found)
        return sorted(int(name) for name in names if _FOLDER.match(name))

    def manifest(self, version: int, sha256: str | None = None) -> Manifest:
        """Read the manifest of a version.

        Parameters
        ----------
        sha256
            Its required SHA-256.

        Raises
        ------
        ArtifactError
            If it is missing, damaged, of a newer schema, or lacks the required signature.
        StoreError
            If the store does not answer.
        """
        what = f"version {version}: {_MANIFEST}"
        data = self._read(version, _MANIFEST)
        if sha256 is not None and _sha256(data) != sha256:
            raise ArtifactError(f"{what} is damaged: it is not what was registered")
        return self.decoded(data, version)

    def has_manifest(self, version: int) -> bool:
        """Return whether a version has a manifest, so is complete.

        Raises
        ------
        StoreError
            If the store does not answer.
        """
        return _MANIFEST in self._names(version)

    def found(self, version: int) -> tuple[Manifest, bytes] | None:
        """Return the manifest of a version that the registry does not know, with its bytes.

        None if there is no manifest: the version is incomplete, or its removal has begun.

        Raises
        ------
        ArtifactError, StoreError
            If it is damaged, of a newer schema, lacks the required signature, or cannot be read.
        """
        if not self.has_manifest(version):
            return None
        data = self._read(version, _MANIFEST)
        return self.decoded(data, version), data

    def decoded(self, data: bytes, version: int) -> Manifest:
        """Decode a manifest; raise ArtifactError if it is of a newer schema, or unsigned."""
        what = f"version {version}: {_MANIFEST}"
        try:
            schema = msgspec.json.decode(data, type=dict[str, Any]).get("schema")
            if schema != SCHEMA:
                raise ArtifactError(
                    f"{what} has schema {schema}, this Midstream reads {SCHEMA}; use a newer one"
                )
            manifest = msgspec.json.decode(data, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ArtifactError(f"{what} is damaged: {error}") from None
        for part in manifest.shards:
            for name, file in part.files.items():
                safe = _PART_OF_PATH.match(part.shard) and _PART_OF_PATH.match(name)
                if not safe or file.name != _name(part.shard, name):
                    raise ArtifactError(f"{what} names a file that is no part of it: {file.name!r}")
        if (manifest.model, manifest.version) != (self.model, version):
            raise ArtifactError(
                f"{what} is that of version {manifest.version} of {manifest.model!r}"
            )
        if self._key is not None and not manifest.signature:
            raise ArtifactError(f"{what} is not signed, and versions.key asks for that")
        if self._key is not None and not hmac.compare_digest(
            manifest.signature.encode(errors="replace"), self._signature(manifest).encode()
        ):
            raise ArtifactError(f"{what} was signed with another key, or changed afterwards")
        return manifest

    def read_part(self, manifest: Manifest, shard: str) -> dict[str, bytes]:
        """Read a shard's part of a version: the bytes of each part, after checking the checksums.

        Raises
        ------
        ArtifactError
            If a file is missing, cut, damaged, or there is no such shard.
        StoreError
            If the store does not answer.
        """
        return self.read_files(manifest.version, manifest.part(shard))

    def read_files(self, version: int, part: ShardPart) -> dict[str, bytes]:
        """Read a shard's files, also before the version is complete; otherwise as `read_part`."""
        return {name: self._unpacked(version, file) for name, file in part.files.items()}

    def _unpacked(self, version: int, file: PartFile) -> bytes:
        what = f"version {version}: {file.name}"
        data = self._read(version, file.name)
        if len(data) != file.bytes:
            raise ArtifactError(
                f"{what} is damaged: it has {len(data):,} bytes, and {file.bytes:,} were written"
            )
        if _sha256(data) != file.sha256:
            raise ArtifactError(f"{what} is damaged: its SHA-256 differs")
        try:
            size = zstandard.frame_content_size(data)
            if size != file.unpacked or not 0 <= size <= _MOST_PACKED * len(data):
                raise ArtifactError(f"{what} is not {file.unpacked:,} bytes that were compressed")
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=file.unpacked)
        except zstandard.ZstdError as error:
            raise ArtifactError(f"{what} is damaged: {error}") from None
        except MemoryError:
            raise ArtifactError(
                f"{what} says that it is {file.unpacked:,} bytes unpacked, for which there is no "
                "memory"
            ) from None

    def problems(self, manifest: Manifest) -> list[str]:
        """Return the faults of a version's files, one sentence each.

        Raises
        ------
        StoreError
            If the store does not answer.
        """
        version = manifest.version
        found = []
        wanted = {_MANIFEST}
        for part in manifest.shards:
            for file in part.files.values():
                wanted.add(file.name)
                try:
                    self._unpacked(version, file)
                except ArtifactError as error:
                    found.append(str(error))
                except UnreadableError as error:
                    found.append(f"version {version}: {error}")
        with self._naming(self.folder(version)):
            surplus = [n for n in self._names(version) if n not in wanted]
        drafts = [name for name in surplus if _DRAFT.match(posixpath.basename(name))]
        return found + [
            f"version {version}: {name} is no part of it" for name in surplus if name not in drafts
        ]

    def _read(self, version: int, name: str) -> bytes:
        path = f"{self.folder(version)}/{name}"
        with self._naming(path):
            try:
                data: bytes = self._files.cat_file(path)
            except PermissionError as error:
                raise UnreadableError(
                    f"{self._shown(path)}: cannot be read: {_reason(error)}"
                ) from None
            except FileNotFoundError:
                if not self._files.exists(self._root):  # unlike a file, the place may return
                    raise StoreError(
                        f"{self._shown(self._root)}: the artifacts of {self.model} are not there"
                    ) from None
                raise ArtifactError(f"version {version}: {name} is missing") from None
        return data

    def _names(self, version: int) -> list[str]:
        folder = self.folder(version)
        self._files.invalidate_cache()
        try:
            found = self._files.find(folder, **({"on_error": _unseen} if self._local else {}))
        except FileNotFoundError:
            return []
        except PermissionError as error:
            raise UnreadableError(
                f"{error.filename or folder}: cannot be read: {_reason(error)}"
            ) from None
        return sorted(posixpath.relpath(path, folder) for path in found)

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Name the file in a one-line error if it cannot be read or written."""
        try:
            yield
        except (ArtifactError, StoreError, OtherStateError):
            raise
        except Exception as error:
            if self._local and not isinstance(error, OSError):
                raise
            if isinstance(error, PermissionError) and self._local and error.filename:
                raise StoreError(error_text(error)) from None
            # Clients of stores raise errors of their own.
            raise StoreError(f"{self._shown(path)}: {masked(_reason(error))}") from None

    def _shown(self, path: str) -> str:
        return path if self._local else masked(str(self._files.unstrip_protocol(path)))


def _write_locally(path: Path, data: bytes) -> None:
    """Write a file so that it is either complete or absent."""
    name = path.name
    draft = f".{name}.{os.urandom(8).hex()}.draft"  # others may be writing the same file
    storage = LocalStorage(path.parent)
    try:
        storage.append(draft, data)
        storage.sync(draft)
        storage.rename(draft, name)
        storage.sync_folder()
    except OSError:
        with suppress(OSError):
            storage.remove(draft)
        raise
    finally:
        storage.close()


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; create it if it is missing."""
    LocalStorage(folder).sync_folder()


def _in_a_folder_that_may_go(work: Callable[[], None]) -> None:
    """Make a folder and write into it; repeat that if another process removes it meanwhile."""
    for _ in range(_TRIES - 1):
        # An error that it exists may concern a folder that is just being removed.
        with suppress(FileNotFoundError, FileExistsError):
            work()
            return
    work()


def _remove_empty(folder: Path) -> None:
    """Remove a folder, unless another process has, or has written something into it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def _unseen(error: OSError) -> None:
    """Raise an error that hides files of a folder; ignore one for a folder that is gone."""
    if isinstance(error, PermissionError):
        raise error


def _name(shard: str, part: str) -> str:
    return f"{shard}/{part}.zst"


def _reason(error: Exception) -> str:
    """Describe an error of a store's client."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    silent = "does not answer" if isinstance(error, TimeoutError) else ""
    return error.strerror or str(error) or silent or type(error).__name__


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
