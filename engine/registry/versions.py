"""Versions of a model: stored by shard, completed, listed, checked and loaded.

Files are written before the row that names them, so that a version is complete or absent.
"""

import hashlib
import platform
import time
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import sqlalchemy as sa

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.registry.artifacts import ArtifactError, Artifacts, Manifest, ShardPart
from midstream.engine.registry.database import Database
from midstream.engine.registry.retention import Retention
from midstream.engine.registry.schema import (
    CANCELLED,
    MODELS,
    PARTS,
    PARTS_OF_VERSIONS,
    SAME,
    SHARDS,
    TAGS,
    VERSIONS,
    aliases,
    greatest,
)
from midstream.engine.shard.dataset import joined, plain, since
from midstream.engine.shard.header import VersionHeader
from midstream.engine.state.snapshot import Snapshot

if TYPE_CHECKING:
    from midstream.engine.training.trainer import Trainer

__all__ = ["UnknownVersionError", "VersionRow", "Versions"]

_LIBRARIES = ("river", "numpy", "numba", "torch")

State = Literal["open", "complete", "removing", "removed"]


class UnknownVersionError(ExpectedError, ValueError):
    """The version does not exist, is incomplete, or was removed."""


class VersionRow(msgspec.Struct):
    """A version in the registry. `manifest` is None until it is complete.

    With `kind` "same" it was not made, since it would have equalled `parent`.
    """

    version: int
    state: State
    kind: str
    reason: str
    created: float
    shards: list[str]
    parent: int
    bytes: int
    tags: list[str] = []
    manifest: Manifest | None = None


class Versions:
    """The versions of one model. See `Registry` for the parameters.

    Attributes
    ----------
    database
        Holds their rows.
    artifacts
        Holds their files.
    retention
        Decides which versions are kept, and removes the others.
    """

    def __init__(
        self,
        database: str | Path,
        artifacts: str | Path,
        model: str,
        *,
        key: bytes | None = None,
        modules: Collection[str] = (),
        create: bool = False,
        identity: str | None = "",
    ) -> None:
        self.model = model
        self.artifacts = Artifacts(artifacts, model, key=key)
        self.database = Database(database, model, create=create, identity=identity)
        self.retention = Retention(self.database, self.artifacts)
        self._ours = self.database.ours
        self._modules = modules

    @property
    def identity(self) -> str:
        """Identity of the accessing state; "": none."""
        return self.database.identity or ""

    def is_foreign(self, manifest: Manifest) -> bool:
        """Whether a version was made from another state than the model's present owner."""
        ours = self.identity or self.database.owner()
        return bool(manifest.identity) and bool(ours) and manifest.identity != ours

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def _open_version(
        self, connection: sa.Connection, version: int, kind: str, reason: str, at: float
    ) -> None:
        rows = connection.execute(
            sa.select(SHARDS.c.shard, SHARDS.c.seen)
            .where(self._ours(SHARDS))
            .order_by(SHARDS.c.shard)
        ).all()
        row = {
            "version": version,
            "state": "open",
            "kind": kind,
            "reason": reason,
            "created": at,
            "shards": msgspec.json.encode([row.shard for row in rows]).decode(),
            "seen": sum(row.seen for row in rows),
        }
        self.database.add(connection, VERSIONS, row)

    def put(self, shard: str, version: int, snapshot: Snapshot) -> None:
        """Store a shard's part of a version. Storing it again changes nothing.

        Raises
        ------
        RegistryError, StoreError
            If it could not be stored; the caller may try again.
        """
        with self.database.writing() as connection:
            if self._has_part(connection, version, shard):
                return
            header = VersionHeader.of(snapshot.header)
            self._open_version(  # missing in a registry that was lost
                connection, version, header.kind, header.reason, header.created
            )
            if shard not in self._wanted(connection, version):  # newer than the version
                return
        self.artifacts.claim(self.identity)
        part = self.artifacts.write_part(version, shard, snapshot.header, snapshot.parts)
        with self.database.writing() as connection:
            row = {
                "version": version,
                "shard": shard,
                "part": msgspec.json.encode(part).decode(),
            }
            wanted = self._state(connection, version) in ("open", "complete")
            if wanted:
                self.database.add(connection, PARTS, row)
        if not wanted:  # pruned meanwhile
            self.artifacts.remove(version)

    def _wanted(self, connection: sa.Connection, version: int) -> list[str]:
        shards = connection.execute(
            sa.select(VERSIONS.c.shards).where(self._ours(VERSIONS), VERSIONS.c.version == version)
        ).scalar_one()
        return self.database.decoded(shards, list[str])

    def _state(self, connection: sa.Connection, version: int) -> str | None:
        state: str | None = connection.execute(
            sa.select(VERSIONS.c.state).where(self._ours(VERSIONS), VERSIONS.c.version == version)
        ).scalar_one_or_none()
        return state

    def take_in(self, source: "Versions", version: int, reason: str) -> int:
        """Copy a version of another model into this one; return the copy's number.

        Its parts still name the state that they belong to. If the newest version is already a copy
        of it, that number is returned.

        Raises
        ------
        UnknownVersionError, ArtifactError, RegistryError, StoreError
            If there is no such version, it is damaged, or something cannot be read or written.
        """
        manifest, at = source.manifest(version), time.time()
        parts = {p.shard: source.artifacts.read_files(version, p) for p in manifest.shards}
        with self.database.writing() as connection:
            row = sa.select(MODELS.c.next_version).where(self._ours(MODELS))
            number = int(connection.execute(row).scalar_one())
            connection.execute(
                sa.update(MODELS).where(self._ours(MODELS)).values(next_version=number + 1)
            )
            self._open_version(connection, number, "imported", reason, at)
        imported = {"kind": "imported", "reason": reason, "created": at, "parent": 0}
        for part in manifest.shards:
            self.put(part.shard, number, Snapshot(part.header | imported, parts[part.shard]))
        self.complete()
        return self.standing(number)

    def _has_part(self, connection: sa.Connection, version: int, shard: str) -> bool:
        """Whether a part is stored, or no longer wanted."""
        key = (self._ours(PARTS), PARTS.c.version == version, PARTS.c.shard == shard)
        if connection.execute(sa.select(PARTS.c.shard).where(*key)).first() is not None:
            return True
        return self._state(connection, version) not in (None, "open")

    def complete(self) -> list[int]:
        """Complete the versions that have all their parts; return them.

        A version that would equal the newest one before it is not made: its number then stands for
        that one (`standing`).

        Raises
        ------
        RegistryError, StoreError
            If it failed; the caller may try again.
        """
        made = []
        for row in self.database.rows(
            sa.select(VERSIONS)
            .where(self._ours(VERSIONS), VERSIONS.c.state == "open")
            .order_by(VERSIONS.c.version)
        ):
            parts = [
                self.database.decoded(found["part"], ShardPart)
                for found in self.database.rows(
                    sa.select(PARTS.c.part)
                    .where(self._ours(PARTS), PARTS.c.version == row["version"])
                    .order_by(PARTS.c.shard)
                )
            ]
            wanted = self.database.decoded(row["shards"], list[str])
            if not parts or [part.shard for part in parts] != wanted:
                continue
            if self._is_same(row["version"], parts):
                continue
            manifest = self._manifest(row, parts)
            data = self.artifacts.write_manifest(manifest)
            with self.database.writing() as connection:
                done = connection.execute(
                    sa.update(VERSIONS)
                    .where(
                        self._ours(VERSIONS),
                        VERSIONS.c.version == row["version"],
                        VERSIONS.c.state == "open",
                    )
                    .values(
                        state="complete",
                        kind=manifest.kind,
                        created=manifest.created,
                        parent=manifest.parent,
                        bytes=manifest.bytes,
                        sha256=hashlib.sha256(data).hexdigest(),
                        manifest=data.decode(),
                    )
                )
            if done.rowcount:
                made.append(row["version"])
            else:
                self._outrun(row["version"], data)
        return made

    def adopt(
        self, ours: Callable[[Manifest], bool] = lambda _: True
    ) -> tuple[list[int], dict[int, str]]:
        """Register the versions that have files but no rows, because the rows were lost.

        A version is registered as a whole, from its manifest, once that and the checksums of all
        its files are verified. References to it may be lost, too: its tags, and commands that put
        it live. So each version is tagged "adopted-N", which keeps it until the tag is removed.

        Parameters
        ----------
        ours
            Whether a version belongs to this model; others are ignored.

        Returns
        -------
        adopted
            Their numbers.
        left
            By version, why it is ignored; its files are not overwritten.

        Raises
        ------
        OtherStateError
            If the place of the files belongs to another state.
        RegistryError, StoreError
            If it failed; the next call continues.
        """
        self.artifacts.claim(self.identity)
        states = self._states()
        adopted, left = [], {}
        for version in self.artifacts.versions():
            if states.get(version, "open") != "open":
                continue
            try:
                found = self.artifacts.found(version)
                problems = self.artifacts.problems(found[0]) if found else []
            except ArtifactError as error:
                found, problems = None, [str(error)]
            if problems:
                left[version] = problems[0]
            elif found is None and version not in states:
                left[version] = "it has no manifest: it never was whole, or its removal was begun"
            elif found and not ours(found[0]):
                left[version] = "it is of another model, or of before this one was started over"
            elif found and self._adopt(*found):
                adopted.append(version)
        return adopted, left

    def sweep(self) -> list[int]:
        """Remove the files of versions that have no manifest and are in no registry.

        Returns
        -------
        list[int]
            The numbers of these versions.

        Raises
        ------
        OtherStateError
            If the place of the files belongs to another state.
        RegistryError, StoreError
            If something cannot be removed; the next call continues.
        """
        self.artifacts.claim(self.identity)
        swept = []
        with self.database.writing() as connection:  # a row precedes the first file
            for version in self.artifacts.versions():
                unknown = self._state(connection, version) is None
                if unknown and not self.artifacts.has_manifest(version):
                    self.artifacts.remove(version)
                    swept.append(version)
        return swept

    def _states(self) -> dict[int, str]:
        rows = self.database.rows(
            sa.select(VERSIONS.c.version, VERSIONS.c.state).where(self._ours(VERSIONS))
        )
        return {row["version"]: row["state"] for row in rows}

    def _adopt(self, manifest: Manifest, data: bytes) -> bool:
        version, tag = manifest.version, f"adopted-{manifest.version}"
        row = {
            "version": version,
            "state": "complete",
            "kind": manifest.kind,
            "reason": manifest.reason,
            "created": manifest.created,
            "shards": msgspec.json.encode([part.shard for part in manifest.shards]).decode(),
            "parent": manifest.parent,
            "bytes": manifest.bytes,
            "sha256": hashlib.sha256(data).hexdigest(),
            "manifest": data.decode(),
        }
        with self.database.writing() as connection:
            if self._state(connection, version) not in (None, "open"):
                return False  # another process was faster
            mine = (self._ours(VERSIONS), VERSIONS.c.version == version)
            connection.execute(sa.delete(VERSIONS).where(*mine))  # opened for a part put again
            self.database.add(connection, VERSIONS, row)
            for part in manifest.shards:
                plain_part = msgspec.json.encode(part).decode()
                this = {"version": version, "shard": part.shard, "part": plain_part}
                self.database.add(connection, PARTS, this)
            now = {"tag": tag, "version": version, "at": time.time()}
            self.database.add(connection, TAGS, now)
            connection.execute(
                sa.update(MODELS)
                .where(self._ours(MODELS))
                .values(next_version=greatest(MODELS.c.next_version, version + 1))
            )
        return True

    def _is_same(self, version: int, parts: list[ShardPart]) -> bool:
        """Whether a version would equal the newest complete one; if so, it is not made."""
        mine = self._ours(VERSIONS)
        with self.database.writing() as connection:
            newest = connection.execute(
                sa.select(sa.func.max(VERSIONS.c.version)).where(
                    mine, VERSIONS.c.state == "complete", VERSIONS.c.version < version
                )
            ).scalar_one()
            if newest is None:
                return False
            rows = connection.execute(
                sa.select(PARTS.c.part)
                .where(self._ours(PARTS), PARTS.c.version == newest)
                .order_by(PARTS.c.shard)
            )
            others = [self.database.decoded(row.part, ShardPart) for row in rows]
            if [_print(part) for part in parts] != [_print(part) for part in others]:
                return False
            connection.execute(
                sa.update(VERSIONS)
                .where(mine, VERSIONS.c.version == version, VERSIONS.c.state == "open")
                .values(state="removing", kind=SAME, parent=newest)
            )
        self.retention.clear()
        return True

    def standing(self, version: int) -> int:
        """Return the version that a number stands for: an equal older one, or itself."""
        return self.same().get(version, version)

    def same(self) -> dict[int, int]:
        """Return the versions that were not made -> the versions that they would have equalled."""
        with self.database.reading() as connection:
            return aliases(connection, self._ours(VERSIONS))

    def _outrun(self, version: int, data: bytes) -> None:
        """Correct the manifest after another process has completed or pruned the version."""
        mine = (self._ours(VERSIONS), VERSIONS.c.version == version)
        (row,) = self.database.rows(sa.select(VERSIONS).where(*mine))
        if row["state"] != "complete":
            self.artifacts.remove(version)
        elif row["manifest"].encode() != data:  # the other process has other libraries
            self.artifacts.write_manifest_again(version, row["manifest"].encode())
            self._outrun(version, row["manifest"].encode())  # it may be pruned meanwhile

    def _manifest(self, row: Mapping[str, Any], parts: list[ShardPart]) -> Manifest:
        """Return the manifest of a version: it depends on its parts only, not on its maker."""
        headers = [part.saved for part in parts]
        learner = headers[0].definition["learner"]
        totals = [header.learned_from for header in headers]
        news = [
            since(total, header.parent_learned_from)
            for total, header in zip(totals, headers, strict=True)
        ]
        return Manifest(
            model=self.model,
            version=row["version"],
            parent=max(header.parent for header in headers),
            kind=headers[0].kind,
            reason=row["reason"],
            created=max(header.created for header in headers),
            learner=learner,
            fingerprint=hashlib.sha256(msgspec.json.encode(learner)).hexdigest(),
            libraries=_libraries(),
            data={"total": plain(joined(totals)), "since_parent": plain(joined(news))},
            metrics={part.shard: part.saved.metrics for part in parts},
            shards=parts,
        )

    def versions(self, *, every: bool = False) -> list[VersionRow]:
        """Return the complete versions, oldest first; with `every`, also the others."""
        wanted = sa.select(VERSIONS).where(self._ours(VERSIONS))
        if not every:
            wanted = wanted.where(VERSIONS.c.state == "complete")
        tags = self._tags()
        rows, same = self.database.rows(wanted.order_by(VERSIONS.c.version)), self.same()
        return [self._row(row, tags, same) for row in rows]

    def version(self, version: int) -> VersionRow:
        """Return a complete version.

        Raises
        ------
        UnknownVersionError
            If there is none with this number.
        """
        with self.database.reading() as connection:
            row = self._require(connection, version)
        return self._row(row, self._tags(), self.same())

    def _row(
        self, row: Mapping[str, Any], tags: Mapping[int, list[str]], same: Mapping[int, int]
    ) -> VersionRow:
        manifest = None
        if row["state"] == "complete":
            manifest = self.database.decoded(row["manifest"], Manifest)
        return VersionRow(
            version=row["version"],
            state=row["state"],
            kind=row["kind"],
            reason=row["reason"],
            created=row["created"],
            shards=self.database.decoded(row["shards"], list[str]),
            parent=same.get(row["parent"], row["parent"]),
            bytes=row["bytes"],
            tags=tags.get(row["version"], []),
            manifest=manifest,
        )

    def _tags(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        wanted = sa.select(TAGS).where(self._ours(TAGS)).order_by(TAGS.c.tag)
        for row in self.database.rows(wanted):
            found.setdefault(row["version"], []).append(row["tag"])
        return found

    def _require(self, connection: sa.Connection, version: int) -> Mapping[str, Any]:
        row = None
        if 0 < version < 2**31:
            row = connection.execute(
                sa.select(VERSIONS).where(self._ours(VERSIONS), VERSIONS.c.version == version)
            ).one_or_none()
        state = row.state if row is not None else "unknown"
        if row is not None and state == "complete":
            return dict(row._mapping)
        words = {
            "unknown": f"there is no version {version} of {self.model}",
            "open": f"version {version} of {self.model} is not whole yet: shards are missing",
            "removing": f"version {version} of {self.model} was removed by prune",
            "removed": f"version {version} of {self.model} was removed by prune",
        }
        if row is not None and row.kind == SAME:
            words[state] = (
                f"version {version} of {self.model} was not made: it is equal to version "
                f"{row.parent}"
            )
        elif row is not None and row.kind == CANCELLED:
            words[state] = (
                f"version {version} of {self.model} was not made: its command was taken back"
            )
        there = connection.execute(
            sa.select(sa.func.min(VERSIONS.c.version), sa.func.max(VERSIONS.c.version)).where(
                self._ours(VERSIONS), VERSIONS.c.state == "complete"
            )
        ).one()
        rest = f"there are {there[0]} to {there[1]}" if there[0] else "there is none at all yet"
        raise UnknownVersionError(f"{words[state]}; {rest} (`midstream snapshots list` lists them)")

    def manifest(self, version: int) -> Manifest:
        """Read the manifest of a version from its artifacts, and check its checksum.

        Raises
        ------
        UnknownVersionError, ArtifactError, RegistryError, StoreError
            If there is no such version, or it is damaged or cannot be read.
        """
        with self.database.reading() as connection:
            row = self._require(connection, version)
        return self.artifacts.manifest(version, row["sha256"])

    def read(self, version: int, shard: str) -> Snapshot:
        """Return a shard's part of a version, also while other shards' parts are missing.

        Raises
        ------
        UnknownVersionError, ArtifactError, RegistryError, StoreError
            If there is no such version, or it is damaged or cannot be read.
        """
        try:
            part = self.manifest(version).part(shard)
        except UnknownVersionError:
            found = self._open_part(version, shard)
            if found is None:
                raise
            part = found
        return Snapshot(part.header, self.artifacts.read_files(version, part))

    def _open_part(self, version: int, shard: str) -> ShardPart | None:
        """Return the part that a shard has stored of an incomplete version."""
        this = (self._ours(PARTS), PARTS.c.version == version, PARTS.c.shard == shard)
        rows = self.database.rows(PARTS_OF_VERSIONS.where(*this, VERSIONS.c.state == "open"))
        return self.database.decoded(rows[0]["part"], ShardPart) if rows else None

    def load(self, version: int, shard: str | None = None) -> "Trainer":
        """Load a version, to predict or to continue learning. Nothing in it is executed.

        Parameters
        ----------
        shard
            The shard whose model to load; optional if the version has only one.

        Raises
        ------
        UnknownVersionError, ArtifactError, RegistryError, StoreError
            If there is no such version, or it is damaged or cannot be read.
        ValueError
            If it has several shards and none is named, or was written under another River.
        """
        manifest = self.manifest(version)
        if shard is None and len(manifest.shards) > 1:
            names = ", ".join(part.shard for part in manifest.shards)
            raise ValueError(f"version {version} has several shards, {names}: choose one")
        shard = manifest.shards[0].shard if shard is None else shard
        was, now = manifest.learner.get("river"), _river()
        if was is not None and was != now:
            raise ArtifactError(
                f"version {version} was written under River {was}, and River {now} is installed, "
                f"which cannot read its state; pip install 'river=={was}.*' to load it"
            )
        from midstream.engine.training.trainer import Trainer as Loaded  # River is slow to import

        try:
            return Loaded.from_state(self.artifacts.read_part(manifest, shard), self._modules)
        except ArtifactError:
            raise
        except Exception as error:  # noqa: BLE001 checksums match, but it is no state: any error
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise ArtifactError(f"version {version} cannot be loaded: {reason}") from None

    def problems(self, version: int) -> list[str]:
        """Return the faults of a version's artifacts, one sentence each; none if it is sound.

        Raises
        ------
        UnknownVersionError, RegistryError, StoreError
            If there is no such version, or it cannot be read.
        """
        try:
            return self.artifacts.problems(self.manifest(version))
        except ArtifactError as error:
            return [str(error)]


def _print(part: ShardPart) -> dict[str, Any]:
    """Return what parts with equal states and equal continuations have in common."""
    saved = part.saved
    wanted = ("digest", "cursors", "excluded", "skips", "data", "definition", "decoding")
    return {"shard": part.shard, "epoch": saved.epoch} | {n: getattr(saved, n) for n in wanted}


def _libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("midstream", *_LIBRARIES):
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def _river() -> str:
    return ".".join(installed("river").split(".")[:2])
