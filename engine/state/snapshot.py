"""Snapshots: named parts of state in one checksummed file, and the few that a shard keeps.

Layout of a file: the magic line, the length of the header, its SHA-256, the header (JSON), then the
parts in sequence. The header gives the length and SHA-256 of every part, so damage is found and
named before anything is decoded.
"""

import hashlib
import re
import struct
from typing import Any

import msgspec

from midstream.engine.basics.storage import Storage, replace

__all__ = ["SCHEMA", "Snapshot", "SnapshotError", "SnapshotFolder", "pack", "unpack"]

MAGIC = b"midstream snapshot\n"
SCHEMA = 1
_FRAME = struct.Struct(">Q32s")  # length of the header, its SHA-256


class SnapshotError(ValueError):
    """A snapshot cannot be used; the message names it and the reason."""


class Snapshot(msgspec.Struct):
    """State as named parts, with a header of plain JSON values that describes it."""

    header: dict[str, Any]
    parts: dict[str, bytes]


class _Part(msgspec.Struct):
    name: str
    length: int
    sha256: str


class _Header(msgspec.Struct):
    schema: int
    header: dict[str, Any]
    parts: list[_Part]


def pack(snapshot: Snapshot) -> bytes:
    """Return the bytes of a snapshot's file."""
    parts = [
        _Part(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in snapshot.parts.items()
    ]
    header = msgspec.json.encode(_Header(SCHEMA, snapshot.header, parts))
    frame = _FRAME.pack(len(header), hashlib.sha256(header).digest())
    return b"".join([MAGIC, frame, header, *snapshot.parts.values()])


def unpack(data: bytes, name: str) -> Snapshot:
    """Read the bytes of a snapshot's file; `name` is its name in messages.

    Raises
    ------
    SnapshotError
        If it is cut, damaged, too long, of another schema, or no snapshot at all.
    """
    start = len(MAGIC) + _FRAME.size
    if data[: len(MAGIC)] != MAGIC:
        raise SnapshotError(f"{name}: not a Midstream snapshot")
    if len(data) < start:
        raise SnapshotError(f"{name}: cut off after {len(data)} bytes, within the frame")
    length, checksum = _FRAME.unpack(data[len(MAGIC) : start])
    if length > len(data) - start:
        raise SnapshotError(f"{name}: cut off after {len(data)} bytes, within the header")
    raw = data[start : start + length]
    if hashlib.sha256(raw).digest() != checksum:
        raise SnapshotError(f"{name}: the header is damaged (its checksum differs)")
    schema = msgspec.json.decode(raw).get("schema")
    if schema != SCHEMA:
        raise SnapshotError(f"{name}: has schema {schema}, this version reads {SCHEMA}")
    header = msgspec.json.decode(raw, type=_Header)
    parts: dict[str, bytes] = {}
    at = start + length
    for part in header.parts:
        piece = data[at : at + part.length]
        at += part.length
        if len(piece) != part.length:
            raise SnapshotError(f"{name}: cut off within the part {part.name!r}")
        if hashlib.sha256(piece).hexdigest() != part.sha256:
            raise SnapshotError(f"{name}: the part {part.name!r} is damaged (its checksum differs)")
        parts[part.name] = piece
    if at != len(data):
        raise SnapshotError(f"{name}: {len(data) - at} bytes too long")
    return Snapshot(header.header, parts)


class SnapshotFolder:
    """The snapshots of one shard, by the journal position (`seq`) whose state they hold.

    Parameters
    ----------
    storage
        Where the snapshots are; other files there are ignored.
    keep
        How many are kept; older ones are removed.
    tidy
        Whether drafts of a process that died are removed; otherwise nothing is changed.
    """

    _NAME = re.compile(r"snapshot-(\d{16})\.midstream\Z")
    _DRAFT = re.compile(r"\.snapshot-\d{16}\.midstream\.draft\Z")

    def __init__(self, storage: Storage, keep: int = 3, *, tidy: bool = True) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, found {keep}")
        self._storage = storage
        self.keep = keep
        for name in storage.names():
            if tidy and self._DRAFT.match(name):  # of a process that died while it wrote
                storage.remove(name)

    def positions(self) -> list[int]:
        """Return the journal positions that have snapshots, oldest first."""
        matches = map(self._NAME.match, self._storage.names())
        return [int(m.group(1)) for m in matches if m]

    def write(self, seq: int, snapshot: Snapshot) -> int:
        """Write a snapshot atomically; return the oldest position that is kept."""
        replace(self._storage, self._name(seq), pack(snapshot))
        positions = self.positions()
        for old in positions[: -self.keep]:
            self._storage.remove(self._name(old))
        return positions[-self.keep :][0]

    def read(self, seq: int) -> Snapshot:
        """Read the snapshot at a journal position.

        Raises
        ------
        SnapshotError
            If the snapshot is damaged.
        """
        name = self._name(seq)
        return unpack(self._storage.read(name), name)

    @staticmethod
    def _name(seq: int) -> str:
        return f"snapshot-{seq:016d}.midstream"
