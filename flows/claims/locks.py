"""Locks on a state folder: two runs of one shard would write into each other's journal."""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.basics.storage import beyond_standard

__all__ = ["HeldError", "StateLocks"]

_AGAIN = 0.1  # seconds between attempts to get a lock
_HOLDER = 32  # bytes of a lock file that identify its holder
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process
_BY_RANGE: int | None = getattr(fcntl, "F_OFD_SETLK", None)
"""Locks a range of a file. On systems without this call, each shard has a lock file."""


class HeldError(ExpectedError, RuntimeError):
    """Another process holds the lock; the message says which."""


class StateLocks:
    """The locks of one process on a state folder; the operating system releases them at its end.

    Several processes may use a folder, each with its own shards.

    Parameters
    ----------
    folder
        The state folder; created if missing.
    patience
        Seconds to wait for another process to release a shard.
    """

    def __init__(self, folder: Path, *, patience: float = 0.0) -> None:
        self._folder = folder
        self._patience = patience
        self._held: dict[Path, int] = {}
        self._shards: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def enter(self) -> None:
        """Lock the folder for shared use.

        Raises
        ------
        HeldError
            If another process holds all of it.
        """
        self._lock(self._folder / "lock", fcntl.LOCK_SH)

    def clear(self) -> None:
        """Lock the whole folder, until `enter`.

        Raises
        ------
        HeldError
            If any process uses it.
        """
        self._lock(self._folder / "lock", fcntl.LOCK_EX)

    def take(self, shard: str) -> None:
        """Lock a shard until the end; doing so again is no error.

        Raises
        ------
        HeldError
            If another process holds it and does not release it in time.
        """
        if shard in self._shards:
            return
        until = time.monotonic() + self._patience
        while True:
            try:
                self._take(shard)
            except HeldError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_AGAIN)
            else:
                self._shards.add(shard)
                return

    def _take(self, shard: str) -> None:
        folder = self._folder / "shards"
        path = folder / shard / "lock" if _BY_RANGE is None else folder / "locks"
        path.parent.mkdir(parents=True, exist_ok=True)
        if _BY_RANGE is None:
            self._lock(path, fcntl.LOCK_EX)
            return
        if path not in self._held:  # one descriptor for all shards, which may be many
            self._held[path] = _opened(path)
        descriptor, start = self._held[path], int(shard) * _HOLDER
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, _HOLDER, 0)
        try:
            fcntl.fcntl(descriptor, _BY_RANGE, wanted)
        except (BlockingIOError, PermissionError):
            raise _held(folder / shard, descriptor, start) from None
        os.pwrite(descriptor, f"{os.getpid()}\n".ljust(_HOLDER).encode(), start)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the exclusive lock on what all processes share."""
        descriptor = _opened(self._folder / "alone.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Release all locks."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
        self._shards.clear()

    def _lock(self, path: Path, kind: int) -> None:
        descriptor = self._held.get(path, -1)
        if descriptor < 0:
            descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            held = _held(path.parent, descriptor, 0)
            if path not in self._held:
                os.close(descriptor)
            raise held from None
        self._held[path] = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _held(place: Path, descriptor: int, at: int) -> HeldError:
    holder = os.pread(descriptor, _HOLDER, at).decode(errors="replace").strip("\0\n ") or "unknown"
    return HeldError(f"{place}: another run holds this state (process {holder})")


def _opened(path: Path) -> int:
    return beyond_standard(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
