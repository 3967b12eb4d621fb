"""Which shards are whose, and what of the input a process is at."""

from typing import NamedTuple

import msgspec

from midstream.connectors.input import Work

__all__ = ["REPLACES", "SESSION", "WHOLE", "Place", "Share"]


class Share(NamedTuple):
    """Which shards are those of one process: every `of`-th, from number `first` on."""

    first: int = 0
    of: int = 1

    def has(self, shard: str) -> bool:
        """Whether a shard, by its name, is of this share."""
        return int(shard) % self.of == self.first


SESSION = "MIDSTREAM_SESSION"
"""In the environment of processes under a supervisor: what those of one have in common."""
REPLACES = "MIDSTREAM_REPLACES"
"""Likewise: 1 in one that takes the place of another."""
WHOLE = Share()
"""All of them."""


class Place(msgspec.Struct, frozen=True):
    """What of the input a process is at: by `unit`, "line", "row" or "offset", first and last."""

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
        """Return what is in both; None if nothing is."""
        if (self.shard, self.partition, self.unit) != (other.shard, other.partition, other.unit):
            return None
        first, last = max(self.first, other.first), min(self.last, other.last)
        return msgspec.structs.replace(self, first=first, last=last) if first <= last else None

    def __str__(self) -> str:
        only = self.first == self.last
        which = f"{self.first:,}" if only else f"{self.first:,} to {self.last:,}"
        return f"shard {self.shard}, {self.partition}, {self.unit}{'s' * (not only)} {which}"
