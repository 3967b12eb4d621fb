"""Access for a user who may only read: file permissions, and SQLite without writing beside it.

SQLite in WAL mode keeps two files beside a database. They exist while a process has it open, and
after one that had it open was killed; then reading needs only read access to them, too. Otherwise
SQLite would create them. In that case the database is read into memory, under SQLite's lock for
readers. Nothing is written, and the content is that of this moment.
"""

import errno
import fcntl
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["database_unwritable", "error_text", "open_for_reading", "readable", "unwritable"]

_SECONDS = 5.0  # to wait for a process that opens or closes a database
_AGAIN = 0.05
_SHARED = 0x40000002, 510  # offset and length of SQLite's lock bytes for readers
_VERSIONS = 18, 20  # where the header says which formats are needed to write and read it
_HEADER = 100  # bytes


def unwritable(path: Path) -> str:
    """Return why a file or folder cannot be written to, naming it; empty if it can.

    For a missing path, the nearest existing folder decides.
    """
    while not _is_there(path):
        path = path.parent
    return _no_right(path) or ("" if path.is_dir() else _no_right(path.parent))


def readable(path: Path) -> None:
    """Raise PermissionError if a file cannot be read, or a folder not listed.

    A missing path is no error.
    """
    for _ in range(3):  # it may come and go meanwhile
        if not _is_there(path):
            return
        wanted = os.R_OK | (os.X_OK if path.is_dir() else 0)
        if os.access(path, wanted, effective_ids=_effective()):
            return
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def error_text(error: OSError) -> str:
    """Describe what the system refused, and for which file."""
    if not error.filename or not isinstance(error.filename, str | bytes | os.PathLike):
        return str(error)
    path = Path(os.fsdecode(error.filename))
    reason = error.strerror or str(error)
    if error.errno == errno.EEXIST:
        reason = "a folder is needed there, and there is a file of that name"
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}: {reason}"
    try:
        readable(path)
        why = unwritable(path)
    except PermissionError:
        return f"{path}: cannot be read: {reason}"
    return why or f"{path}: {reason}"


def database_unwritable(file: Path) -> str:
    """Return why a SQLite database cannot be written to; empty if it can, or does not exist."""
    if not _is_there(file):
        return ""
    beside = _beside(file)
    if all(map(_is_there, beside)):  # no need to create them
        return next(filter(None, map(_no_right, (file, *beside))), "")
    return unwritable(file)


def open_for_reading(file: Path) -> sqlite3.Connection:
    """Connect to a SQLite database, live or as of this moment; nothing is written.

    Raises
    ------
    PermissionError
        If there is no permission to read it.
    OSError, sqlite3.Error
        If it cannot be read.
    """
    until = time.monotonic() + _SECONDS
    while True:
        wal, memory = _beside(file)
        for path in (file, wal, memory):
            readable(path)
        try:
            if memory.exists():
                return _shared(file)
            if (image := _image(file, wal, memory)) is not None:
                return image
            problem = sqlite3.OperationalError("database is locked")
        except sqlite3.OperationalError as error:
            problem = error
        if time.monotonic() > until:
            raise problem
        time.sleep(_AGAIN)  # another process was just opening or closing it


def _shared(file: Path) -> sqlite3.Connection:
    """Connect to a database that other processes may have open."""
    where = f"{file.absolute().as_uri()}?mode=ro&readonly_shm=1"
    connection = sqlite3.connect(where, _SECONDS, uri=True, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _image(file: Path, wal: Path, memory: Path) -> sqlite3.Connection | None:
    """Copy a database that no process has open into memory; None: try again.

    Under the lock, a file that SQLite makes beside it stays there. So no such file can have been
    made, written back to the database, and removed unnoticed.
    """
    rollback = file.with_name(f"{file.name}-journal")
    with file.open("rb") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_SH | fcntl.LOCK_NB, _SHARED[1], _SHARED[0])
        except (BlockingIOError, PermissionError):
            return None
        log = wal.read_bytes() if _length(wal) else b""
        data = opened.read()
        if _is_there(memory) or _length(wal) != len(log) or _length(rollback):
            return None
    if log:
        data = _with_log(data, log)
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    if len(data) >= _HEADER:
        first, last = _VERSIONS
        connection.deserialize(data[:first] + b"\1\1" + data[last:])
    return connection


def _with_log(data: bytes, log: bytes) -> bytes:
    """Return a database with its log applied; SQLite does that, in a temporary folder."""
    with TemporaryDirectory(prefix="midstream-") as folder:
        copy = Path(folder) / "copy.db"
        copy.write_bytes(data)
        copy.with_name(f"{copy.name}-wal").write_bytes(log)
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        return copy.read_bytes()


def _beside(file: Path) -> tuple[Path, Path]:
    """Return the files that SQLite keeps beside a database: log and shared memory."""
    return file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _no_right(path: Path) -> str:
    wanted = os.W_OK | (os.X_OK if path.is_dir() else 0)
    if os.access(path, wanted, effective_ids=_effective()):
        return ""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path}: no right to write (read-only file system)"
    return f"{path}: no right to write"


def _effective() -> bool:
    return os.access in os.supports_effective_ids
