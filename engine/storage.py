"""Files in one folder, as the few operations that durability is made of.

The journal, the snapshots and the outputs are written through a `Storage`, so that tests can put
one underneath that fails before, within and after every single operation.
"""

import os
from pathlib import Path
from typing import Protocol

__all__ = ["LocalStorage", "Storage", "replace"]


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
        while view:
            view = view[os.write(self._descriptor(name), view) :]

    def truncate(self, name: str, length: int) -> None:
        """Cut a file to `length` bytes."""
        os.ftruncate(self._descriptor(name), length)

    def sync(self, name: str) -> None:
        """Make the content of a file durable."""
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

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._open[name] = os.open(self.folder / name, flags, 0o644)
        return self._open[name]

    def _forget(self, name: str) -> None:
        descriptor = self._open.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
