"""Remembers which idempotency keys were written, in a table that survives the process.

The table has an entry for each group that was written: its keys, and where the topics ended then.
So a group costs one message of the changelog, and what the changelog lacks after a crash is what
the topics hold from those ends on.
"""

import base64
import time
from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import msgspec

from midstream.flows.gateway.validation import KEY_BYTES

__all__ = ["Memory"]

_MARK_BYTES = KEY_BYTES + 8
_GROUP = 10_000  # keys of an entry at most: 320 kB


class _Entry(msgspec.Struct):
    at: float
    marks: str
    ends: dict[str, int]


class Memory:
    """The idempotency keys that were written of late.

    Parameters
    ----------
    seconds
        For how long a key is remembered.
    most
        The most keys; the oldest are forgotten first.

    Attributes
    ----------
    seconds
        As given.
    ends
        The offset after the last message that is remembered, by `topic/partition`.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self.ends: dict[str, int] = {}
        self.seconds = seconds
        self._most = most
        self._table: MutableMapping[str, Any] = {}
        self._contents: dict[bytes, bytes] = {}
        self._groups: deque[tuple[float, str, list[bytes]]] = deque()
        self._next = 0

    def __len__(self) -> int:
        return len(self._contents)

    def attach(self, table: MutableMapping[str, Any]) -> None:
        """Read what a table remembers, and write to it from now on.

        Entries are numbered. Where one is missing, what follows does not tell any more where the
        topics have to be read from.
        """
        self._table = table
        whole = True
        for name in sorted(table):
            entry = msgspec.convert(table[name], _Entry)
            whole = whole and (not self._groups or int(name) == self._next)
            ends = entry.ends if whole else {}
            self._keep(name, entry.at, base64.b64decode(entry.marks), ends)
            self._next = int(name) + 1
        self.forget()

    def get(self, key: bytes) -> bytes | None:
        """Return the digest of the content that was written with a key; None if none was."""
        return self._contents.get(key)

    def add(self, marks: Iterable[bytes], ends: Mapping[str, int]) -> None:
        """Remember keys (each with the digest of its content), and where the topics end now."""
        new = [mark for mark in marks if mark[:KEY_BYTES] not in self._contents]
        now = time.time()
        for begin in range(0, max(len(new), 1), _GROUP):
            joined = b"".join(new[begin : begin + _GROUP])
            last = begin + _GROUP >= len(new)  # the ends hold once all keys are remembered
            name, self._next = f"{self._next:016d}", self._next + 1
            entry = _Entry(now, base64.b64encode(joined).decode(), dict(ends) if last else {})
            self._keep(name, now, joined, entry.ends)
            self._table[name] = msgspec.to_builtins(entry)
        self.forget()

    def forget(self) -> None:
        """Forget what is too old, or too much."""
        limit = time.time() - self.seconds
        while self._groups:
            at, name, keys = self._groups[0]
            if at >= limit and len(self._contents) <= self._most:
                return
            self._groups.popleft()
            for key in keys:
                self._contents.pop(key, None)
            self._table.pop(name, None)

    def _keep(self, name: str, at: float, joined: bytes, ends: Mapping[str, int]) -> None:
        keys = []
        for begin in range(0, len(joined), _MARK_BYTES):
            key = joined[begin : begin + KEY_BYTES]
            self._contents[key] = joined[begin + KEY_BYTES : begin + _MARK_BYTES]
            keys.append(key)
        self._groups.append((at, name, keys))
        self.ends.update(ends)
