"""Who may write to a state folder: two runs on one shard would write into each other's journal."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["HeldError", "StateLocks"]

_AGAIN = 0.1  # seconds until a lock that another has is tried once more


class HeldError(RuntimeError):
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
        path = self._folder / "shards" / shard / "lock"
        if path in self._held:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + self._patience
        while True:
            try:
                self._lock(path, fcntl.LOCK_EX)
            except HeldError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_AGAIN)
            else:
                return

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is in here, for what all of them share."""
        descriptor = os.open(
            self._folder / "alone.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
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

    def _lock(self, path: Path, kind: int) -> None:
        descriptor = self._held.get(path, -1)
        if descriptor < 0:
            descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            if path not in self._held:
                os.close(descriptor)
            raise HeldError(
                f"{path.parent}: another run holds this state (process {holder})"
            ) from None
        self._held[path] = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
