"""Finds files, folders and standard input, and opens those of text.

`arrow_files` opens Arrow and Parquet files.
"""

import fnmatch
import glob
import os
import re
import stat
from pathlib import Path, PurePath

from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.files.bytestream import ByteStream
from midstream.connectors.files.partition import Partition
from midstream.connectors.input import Block, Cursor, Format, InputError, TextFormat

__all__ = [
    "Block",
    "CsvOptions",
    "Cursor",
    "FilePartition",
    "Format",
    "InputError",
    "NoFilesError",
    "StdinPartition",
    "UnreadableError",
    "discover",
    "is_one_file",
    "may_be",
    "natural",
    "open_regular",
    "place",
]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".arrow": "arrow", ".arrows": "arrow", ".feather": "arrow", ".ipc": "arrow",
    ".parquet": "parquet",
}  # fmt: skip
_MAGIC: dict[bytes, Format] = {
    b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"FEA1": "arrow",
    b"PAR1": "parquet", b"PARE": "parquet",
}  # fmt: skip


class NoFilesError(InputError):
    """A folder, or a pattern in one, without any file yet."""


class UnreadableError(InputError):
    """A file or folder that cannot be read for lack of permission."""


class FilePartition(Partition):
    """One file, plain or gzip, JSON Lines or CSV, followed while it grows or read to its end.

    Parallel by partition. After a resume nothing is repeated: positions are bytes of the
    uncompressed file, and the same range is always cut into the same records.

    Parameters
    ----------
    path
        The file. Its content tells whether it is compressed.
    name
        Name in blocks and errors.
    format
        "jsonl", "csv", or "auto". The first record of a CSV file is its header, which is read even
        if `position` is later: see `header` and `delimiter`. If the header has not been written
        yet, it is waited for; until then `header` is empty.
    position
        Where to resume. An archive is decompressed from its start up to here.
    max_record_bytes
        A longer record becomes a block marked `oversize`, in bounded memory.

    Raises
    ------
    InputError
        If the file does not exist, cannot be opened for lack of permission, or is shorter than
        `position`, or its CSV header cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        *,
        format: TextFormat,  # noqa: A002 the word in the config
        position: Cursor = Cursor(),  # noqa: B008 immutable
        max_record_bytes: int = 1024 * 1024,
    ) -> None:
        path = Path(path)
        stream = ByteStream(open_regular(path, name), name, path=path)
        super().__init__(
            stream,
            name,
            format=format,
            position=position,
            max_record_bytes=max_record_bytes,
        )
        try:
            self._begin()
        except InputError:
            self.close()
            raise


class StdinPartition(Partition):
    """Standard input, or another file descriptor that can be read only once, forward.

    One partition. What was read cannot be read again (`replayable` is False): after a crash, input
    that was read but not committed is lost. Nothing is repeated.

    Parameters
    ----------
    fd
        The file descriptor: a pipe, a terminal, a socket or a regular file.
    name
        Name in blocks and errors.
    format
        "jsonl", "csv", or "auto".
    position
        First byte and line number, so that origins stay unique over several runs.
    max_record_bytes
        A longer record becomes a block marked `oversize`, in bounded memory.
    """

    replayable = False

    def __init__(
        self,
        fd: int = 0,
        name: str = "-",
        *,
        format: TextFormat = "auto",  # noqa: A002 the word in the config
        position: Cursor = Cursor(),  # noqa: B008 immutable
        max_record_bytes: int = 1024 * 1024,
    ) -> None:
        try:
            stream = ByteStream(fd, name, path=None, offset=position.offset)
        except OSError as error:
            raise InputError(f"{name}: standard input cannot be read: {error.strerror}") from None
        super().__init__(
            stream,
            name,
            format=format,
            position=position,
            max_record_bytes=max_record_bytes,
        )


def open_regular(path: Path, name: str) -> int:
    """Open a regular file for reading, without blocking."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file: {path}") from None
    except PermissionError as error:
        raise UnreadableError(f"{name}: cannot be read: {error.strerror} ({path})") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be opened: {error.strerror}: {path}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise InputError(f"{name}: {path} is {what}; pipes are read from standard input, '-'")
    return fd


def discover(path: str, root: Path) -> list[tuple[str, Path, Format]]:
    """Return the files that an input's `path` names, in natural order (day2 before day10).

    Parameters
    ----------
    path
        One of: a file; a folder; a pattern with ``*``, ``?``, ``[...]`` or ``**``; "-", standard
        input. Of a folder, all .jsonl, .ndjson, .json, .csv and .tsv files count, also with .gz,
        and all .arrow, .arrows, .feather, .ipc and .parquet files. Hidden files and subfolders do
        not.
    root
        Base of a relative path.

    Returns
    -------
    list of (name, path, format)
        `name` is relative to the folder or to the fixed part of the pattern; a single file has the
        name given. The format follows the file's ending, else its content. It is "auto" for
        standard input and for an empty file.

    Raises
    ------
    NoFilesError
        If the folder exists and nothing in it matches.
    InputError
        If the path does not exist, or permission to read is missing.
    """
    if path == "-":
        return [("-", Path("-"), "auto")]
    full = root / path
    try:
        exists = full.exists()
        if exists and not full.is_dir():
            return [(_printable(path), full, _format_of(full, path))]
        if exists:
            folder, wanted = full, f"file ending in {', '.join(_FORMATS)}"
            found = [PurePath(f.name) for f in full.iterdir() if _by_name(f) and f.is_file()]
            found = [f for f in found if not f.name.startswith(".")]
        elif glob.has_magic(path):
            folder, pattern = _split_pattern(full)
            wanted = "file matching it"
            # Path.glob would also return hidden files.
            names = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207
            found = [PurePath(name) for name in names if (folder / name).is_file()]
            _look_into(folder, pattern)  # glob ignores missing permissions
        else:
            raise InputError(f"{path}: no such file or folder (looked for {full})")
    except PermissionError as error:
        where = error.filename or full
        raise UnreadableError(f"{path}: cannot be read: {error.strerror} ({where})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: {full}") from None
    if not found:
        kind = NoFilesError if folder.is_dir() else InputError
        raise kind(f"{path}: no {wanted} (looked in {folder})")
    found = sorted(set(found), key=natural)
    return [(_printable(str(f)), folder / f, _format_of(folder / f, str(f))) for f in found]


def place(path: str, root: Path, name: str) -> Path:
    """Return the path of the file that an input's `path` would give this name."""
    full = root / path
    if full.is_dir():
        return full / name
    if full.exists() or not glob.has_magic(path):
        return full
    return _split_pattern(full)[0] / name


def may_be(path: str, root: Path, name: str) -> bool:
    """Whether an input's `path` may name a file called `name`, existing or not."""
    full = root / path
    if path == "-" or is_one_file(path, root):
        return name == _printable(path)
    if full.is_dir():
        return "/" not in name and _by_name(PurePath(name)) is not None
    return fnmatch.fnmatch(name, _split_pattern(full)[1])


def is_one_file(path: str, root: Path) -> bool:
    """Whether an input's `path` names a single file, existing or not."""
    full = root / path
    return not full.is_dir() and (full.exists() or not glob.has_magic(path))


def _split_pattern(full: Path) -> tuple[Path, str]:
    """Split a pattern into its fixed part and the rest."""
    parts = full.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed]), str(PurePath(*parts[fixed:]))


def _look_into(folder: Path, pattern: str) -> None:
    """Raise PermissionError if a folder that a pattern searches cannot be read."""
    parts = PurePath(pattern).parts
    for i, part in enumerate(parts):
        begin = "/".join(parts[:i])
        names = glob.glob(begin, root_dir=folder, recursive=True) if begin else [""]  # noqa: PTH207
        for inner in (folder / name for name in names):
            if inner.is_dir():
                os.stat(f"{inner}/.")  # noqa: PTH116 a Path has no such end
                if glob.has_magic(part):
                    next(inner.iterdir(), None)


def natural(path: PurePath) -> list[list[tuple[int, int, str]]]:
    """Return a sort key that compares numbers in names as numbers."""
    return [
        [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in pieces if part]
        for pieces in (re.split(r"([0-9]+)", name) for name in path.parts)
    ]


def _printable(name: str) -> str:
    """Return a file's name as text that can be encoded as UTF-8, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _by_name(path: PurePath) -> Format | None:
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return _FORMATS.get(plain.suffix.lower())


def _format_of(path: Path, name: str) -> Format:
    """Return the format by the file's ending, else by its first characters."""
    if known := _by_name(path):
        return known
    with os.fdopen(open_regular(path, name), "rb") as file:
        first = file.read(8)
    for magic, known in _MAGIC.items():
        if first.startswith(magic):
            return known
    partition = FilePartition(path, name, format="auto")
    partition.close()
    return partition.format
