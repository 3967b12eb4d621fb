"""Files in one folder, as the few operations that durability is made of.

The journal, the snapshots and the outputs are written through a `Storage`, so that tests can put
one underneath that fails before, within and after every single operation.
"""

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

__all__ = ["BackgroundStorage", "LocalStorage", "Storage", "replace"]

_MOST_WAITING = 16  # appends


class Storage(Protocol):
    """A flat folder of files. Nothing is durable before `sync` (data) or `sync_folder` (names)."""

    def names(self) -> list[str]:
        """Names of the files, sorted."""

    def length(self, name: str) -> int | None:
        """Length in bytes; None if there is no such file."""

    def read(self, name: str) -> bytes:
        """Whole content of a file."""

    def append(self, name: str, data: bytes) -> None:
        """Write `data` at the end of a file, which is created if need be."""

    def truncate(self, name: str, length: int) -> None:
        """Cut a file to `length` bytes."""

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""

    def sync_folder(self) -> None:
        """Make creations, renames and removals durable."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what had it, in one piece."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""


def replace(storage: Storage, name: str, data: bytes) -> None:
    """Give the file `name` the content `data`, so that a crash leaves the old or the new, whole."""
    draft = f".{name}.draft"
    storage.remove(draft)  # one may be left from a crash
    storage.append(draft, data)
    storage.sync(draft)
    storage.rename(draft, name)
    storage.sync_folder()


class LocalStorage:
    """A `Storage` in a local folder, which is made if need be.

    Raises
    ------
    OSError
        From any operation, as the operating system gives it (disk full, no rights, …).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._open: dict[str, int] = {}

    def names(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(p.name for p in self.folder.iterdir() if p.is_file())

    def length(self, name: str) -> int | None:
        """Length in bytes; None if there is no such file."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """Whole content of a file."""
        return (self.folder / name).read_bytes()

    def append(self, name: str, data: bytes) -> None:
        """Write `data` at the end of a file, which is created if need be."""
        view = memoryview(data)
        with self._naming(name):
            while view:
                view = view[os.write(self._descriptor(name), view) :]

    def truncate(self, name: str, length: int) -> None:
        """Cut a file to `length` bytes."""
        with self._naming(name):
            os.ftruncate(self._descriptor(name), length)

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""
        with self._naming(name):
            os.fsync(self._descriptor(name))

    def sync_folder(self) -> None:
        """Make creations, renames and removals durable."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what had it, in one piece."""
        self._forget(old)
        self._forget(new)
        (self.folder / old).replace(self.folder / new)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        self._forget(name)
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close what is open."""
        for name in list(self._open):
            self._forget(name)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Have an error name the file, which those on an open one do not."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.folder / name)
            raise

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._open[name] = os.open(self.folder / name, flags, 0o644)
        return self._open[name]

    def _forget(self, name: str) -> None:
        descriptor = self._open.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)


class BackgroundStorage(LocalStorage):
    """A `LocalStorage` that appends in a thread of its own, while its owner goes on.

    All else waits until what was given is appended, so nothing less is seen or made durable. An
    append that fails is the last: its error is raised by whatever comes next.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_MOST_WAITING)
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None

    def append(self, name: str, data: bytes) -> None:
        """Have `data` written at the end of a file, which is created if need be."""
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
        """Names of the files, sorted."""
        self._settle()
        return super().names()

    def length(self, name: str) -> int | None:
        """Length in bytes; None if there is no such file."""
        self._settle()
        return super().length(name)

    def read(self, name: str) -> bytes:
        """Whole content of a file."""
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
        """Give a file another name, replacing what had it, in one piece."""
        self._settle()
        super().rename(old, new)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        self._settle()
        super().remove(name)

    def close(self) -> None:
        """Close what is open, once all is appended."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None
        super().close()
