"""Who may write to a state folder: two runs on one shard would write into each other's journal."""

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

_AGAIN = 0.1  # seconds until a lock that another has is tried once more
_HOLDER = 32  # bytes of a lock file that say which process has it
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process
_BY_RANGE: int | None = getattr(fcntl, "F_OFD_SETLK", None)
"""Locks a range of a file. Where the system has no such call, each shard has a file to lock."""


class HeldError(ExpectedError, RuntimeError):
    """Another process holds it; the message says which."""


class StateLocks:
    """The locks of one process on a state folder; the operating system ends them with it.

    Several processes may be at work in a folder, each on shards of its own.

    Parameters
    ----------
    folder
        The state folder; it is made if need be.
    patience
        Seconds to wait for another process to let a shard go.
    """

    def __init__(self, folder: Path, *, patience: float = 0.0) -> None:
        self._folder = folder
        self._patience = patience
        self._held: dict[Path, int] = {}
        self._shards: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def enter(self) -> None:
        """Say that somebody is at work in the folder.

        Raises
        ------
        HeldError
            If a process has all of it to itself.
        """
        self._lock(self._folder / "lock", fcntl.LOCK_SH)

    def clear(self) -> None:
        """Have the whole folder to ourselves, until `enter`.

        Raises
        ------
        HeldError
            If anybody is at work in it.
        """
        self._lock(self._folder / "lock", fcntl.LOCK_EX)

    def take(self, shard: str) -> None:
        """Have a shard until the end; again is no error.

        Raises
        ------
        HeldError
            If another process has it, and has not let it go in time.
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
        if path not in self._held:  # one descriptor for all shards: there may be more than it has
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
        """Wait until no other process is in here, for what all of them share."""
        descriptor = _opened(self._folder / "alone.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let all go."""
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
