"""The shards of a process, and its place in the input."""

from typing import NamedTuple

import msgspec

from midstream.connectors.input import Work

__all__ = ["REPLACES", "SESSION", "WHOLE", "Place", "Share"]


class Share(NamedTuple):
    """The shards of one process: every `of`-th, from number `first` on."""

    first: int = 0
    of: int = 1

    def has(self, shard: str) -> bool:
        """Whether a shard, by its name, belongs to this share."""
        return int(shard) % self.of == self.first


SESSION = "MIDSTREAM_SESSION"
"""Environment variable: an id shared by the processes of one supervisor."""
REPLACES = "MIDSTREAM_REPLACES"
"""Environment variable: 1 in a process that replaces another."""
WHOLE = Share()
"""The share of all shards."""


class Place(msgspec.Struct, frozen=True):
    """A place in the input: first and last record by `unit` ("line", "row" or "offset")."""

    shard: str
    partition: str
    unit: str
    first: int
    last: int

    @classmethod
    def of(cls, shard: str, work: Work) -> "Place":
        """Return the place of a block."""
        block = work.block
        return cls(shard, work.span.partition, block.unit, block.first, block.last)

    def common(self, other: "Place") -> "Place | None":
        """Return the overlap of two places; None if there is none."""
        if (self.shard, self.partition, self.unit) != (other.shard, other.partition, other.unit):
            return None
        first, last = max(self.first, other.first), min(self.last, other.last)
        return msgspec.structs.replace(self, first=first, last=last) if first <= last else None

    def __str__(self) -> str:
        only = self.first == self.last
        which = f"{self.first:,}" if only else f"{self.first:,} to {self.last:,}"
        return f"shard {self.shard}, {self.partition}, {self.unit}{'s' * (not only)} {which}"
