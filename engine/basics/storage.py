"""Files in one folder, through the few operations that durability needs.

The journal, the snapshots and the outputs are written through a `Storage`, so that tests can
replace it by one that fails before, within and after every operation.
"""

import fcntl
import itertools
import os
import queue
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

__all__ = [
    "BackgroundStorage",
    "LocalStorage",
    "Storage",
    "beyond_standard",
    "raise_limit",
    "replace",
]

_MOST_WAITING = 16  # most appends that wait
_FEWEST_OPEN = 8  # files that storages may keep open in any case


def raise_limit() -> int:
    """Raise this process's limit of descriptors to its maximum; return the limit.

    Many systems start a process with 1,024, and grant far more on request.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 2**16)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # the limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def beyond_standard(descriptor: int) -> int:
    """Return a descriptor of the same file other than 0, 1 and 2, to which libraries print.

    In a process that has closed those, files get these numbers.
    """
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


class _Descriptors:
    """The files that all storages of the process keep open, the most recently used last.

    They take at most a quarter of the process's descriptors: the least recently used file is
    closed, and reopened when it is needed. A file in use is never closed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[int, Path], tuple[int, int]] = OrderedDict()
        """Descriptor and number of users, by storage and file."""

    @contextmanager
    def use(self, storage: int, path: Path) -> Iterator[int]:
        """Yield a descriptor to append to a file, which is created if missing."""
        key = storage, path
        with self._lock:
            descriptor, users = self._open.pop(key, (-1, 0))
            if descriptor < 0:
                self._make_room()
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                descriptor = beyond_standard(os.open(path, flags, 0o644))
            self._open[key] = descriptor, users + 1
        try:
            yield descriptor
        finally:
            with self._lock:
                _, users = self._open[key]
                self._open[key] = descriptor, users - 1

    def forget(self, storage: int, path: Path) -> None:
        """Close a file, if it is open."""
        with self._lock:
            descriptor, _ = self._open.pop((storage, path), (-1, 0))
            if descriptor >= 0:
                os.close(descriptor)

    def _make_room(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 2**16 if soft == resource.RLIM_INFINITY else max(soft // 4, _FEWEST_OPEN)
        while len(self._open) >= most:
            idle = next((key for key, (_, users) in self._open.items() if not users), None)
            if idle is None:
                return
            os.close(self._open.pop(idle)[0])


_descriptors = _Descriptors()
_numbers = itertools.count()


class Storage(Protocol):
    """A flat folder of files. Nothing is durable before `sync` (data) or `sync_folder` (names)."""

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""

    def length(self, name: str) -> int | None:
        """Return the length in bytes; None if there is no such file."""

    def read(self, name: str) -> bytes:
        """Return the whole content of a file."""

    def append(self, name: str, data: bytes) -> None:
        """Append `data` to a file, which is created if missing."""

    def truncate(self, name: str, length: int) -> None:
        """Cut a file to `length` bytes."""

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""

    def sync_folder(self) -> None:
        """Make creations, renames and removals durable."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file atomically, replacing one with the new name."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""

    def reopen(self, name: str) -> None:
        """Direct later writes to the file that has this name now, or to a new one."""


def replace(storage: Storage, name: str, data: bytes) -> None:
    """Replace the content of file `name` by `data`; a crash leaves the old or new one complete."""
    draft = f".{name}.draft"
    storage.remove(draft)  # a crash may have left one
    storage.append(draft, data)
    storage.sync(draft)
    storage.rename(draft, name)
    storage.sync_folder()


class LocalStorage:
    """A `Storage` in a local folder, which is created if missing.

    Raises
    ------
    OSError
        From any operation, as raised by the operating system (disk full, no permission, …).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._used: set[str] = set()
        self._number = next(_numbers)

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        return sorted(p.name for p in self.folder.iterdir() if p.is_file())

    def length(self, name: str) -> int | None:
        """Return the length in bytes; None if there is no such file."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """Return the whole content of a file."""
        return (self.folder / name).read_bytes()

    def append(self, name: str, data: bytes) -> None:
        """Append `data` to a file, which is created if missing."""
        view = memoryview(data)
        with self._using(name) as descriptor:
            while view:
                view = view[os.write(descriptor, view) :]

    def truncate(self, name: str, length: int) -> None:
        """Cut a file to `length` bytes."""
        with self._using(name) as descriptor:
            os.ftruncate(descriptor, length)

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""
        with self._using(name) as descriptor:
            os.fsync(descriptor)

    def sync_folder(self) -> None:
        """Make creations, renames and removals durable."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Rename a file atomically, replacing one with the new name."""
        self._forget(old)
        self._forget(new)
        (self.folder / old).replace(self.folder / new)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        self._forget(name)
        (self.folder / name).unlink(missing_ok=True)

    def reopen(self, name: str) -> None:
        """Direct later writes to the file that has this name now, or to a new one."""
        self._forget(name)
        self.folder.mkdir(parents=True, exist_ok=True)  # it may have been removed with its files

    def close(self) -> None:
        """Close all open files."""
        for name in list(self._used):
            self._forget(name)

    @contextmanager
    def _using(self, name: str) -> Iterator[int]:
        """Yield the descriptor of a file, and name the file in errors."""
        path = self.folder / name
        self._used.add(name)
        try:
            with _descriptors.use(self._number, path) as descriptor:
                yield descriptor
        except OSError as error:
            error.filename = str(path)
            raise

    def _forget(self, name: str) -> None:
        self._used.discard(name)
        _descriptors.forget(self._number, self.folder / name)


class BackgroundStorage(LocalStorage):
    """A `LocalStorage` that appends in a thread of its own.

    All other operations wait for pending appends, so they see and make durable nothing less. After
    an append fails nothing more is appended: the next operation raises its error.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_MOST_WAITING)
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None

    def append(self, name: str, data: bytes) -> None:
        """Queue `data` to be appended to a file, which is created if missing."""
        if self._failure is not None:
            raise self._failure
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="outputs", daemon=True)
            self._thread.start()
        self._waiting.put((name, data))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                if self._failure is None:
                    super().append(*item)
            except OSError as error:
                self._failure = error
            finally:
                self._waiting.task_done()

    def _settle(self) -> None:
        self._waiting.join()
        if self._failure is not None:
            raise self._failure

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        self._settle()
        return super().names()

    def length(self, name: str) -> int | None:
        """Return the length in bytes; None if there is no such file."""
        self._settle()
        return super().length(name)

    def read(self, name: str) -> bytes:
        """Return the whole content of a file."""
        self._settle()
        return super().read(name)

    def truncate(self, name: str, length: int) -> None:
        """Cut a file to `length` bytes."""
        self._settle()
        super().truncate(name, length)

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""
        self._settle()
        super().sync(name)

    def sync_folder(self) -> None:
        """Make creations, renames and removals durable."""
        self._settle()
        super().sync_folder()

    def rename(self, old: str, new: str) -> None:
        """Rename a file atomically, replacing one with the new name."""
        self._settle()
        super().rename(old, new)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        self._settle()
        super().remove(name)

    def reopen(self, name: str) -> None:
        """Direct later writes to the file that has this name now, or to a new one."""
        self._settle()
        super().reopen(name)

    def close(self) -> None:
        """Close all open files, once everything is appended."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None
        super().close()
