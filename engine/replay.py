"""Replay buffers: what of the past is kept, as a uniform sample of it."""

from typing import Any

import numpy as np
from numba import njit

from midstream.engine.events import Event, EventBatch, IntArray

__all__ = ["Reservoir"]

_U11, _U27, _U30, _U31 = map(np.uint64, (11, 27, 30, 31))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _below(seed: np.uint64, counter: np.uint64, bound: int) -> int:
    """Draw number `counter` of a counter-based generator, uniform in [0, bound).

    SplitMix64 [1]_ of a counter: any draw can be made without those before it, so the state of the
    generator is its counter.

    .. [1] Steele, Lea, Flood (2014). Fast splittable pseudorandom number generators. OOPSLA.
    """
    u = seed + counter * _GOLDEN
    u = (u ^ (u >> _U30)) * _MIX1
    u = (u ^ (u >> _U27)) * _MIX2
    u ^= u >> _U31
    return np.int64(float(u >> _U11) * 2.0**-53 * bound)  # type: ignore[return-value]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _hits(seed: np.uint64, first: int, limit: int, rows: IntArray, slots: IntArray) -> int:
    """Draw a slot for each of `rows.size` events after `first`; return how many are hit.

    Their places among the events are left in `rows`, and their slots in `slots`. The limit only
    ever shrinks, so what misses it now cannot hit it later in the batch.
    """
    hits = 0
    for i in range(rows.size):
        seen = first + i + 1
        slot = _below(seed, np.uint64(first + i), seen)
        if slot < limit or seen <= limit:
            rows[hits] = i
            slots[hits] = slot
            hits += 1
    return hits


def _seeded(seed: int) -> np.uint64:
    return np.uint64(seed & (2**64 - 1))


def _labelled_rows(batch: EventBatch) -> IntArray:
    if batch.targets is not None:
        return np.flatnonzero(~np.isnan(batch.targets.values))
    return np.array([i for i, y in enumerate(batch.labels) if y is not None], np.int64)


def _size(x: dict[str, Any]) -> int:
    """Bytes that an event is counted with: the same on every machine, near what CPython takes."""
    text = sum(len(v) for v in x.values() if isinstance(v, str))
    return 256 + 72 * len(x) + text


class Reservoir:
    """A uniform sample without replacement of all events learned so far (algorithm R [1]_).

    Bounded in events and in bytes. Where events are so large that `capacity` of them would pass
    `max_bytes`, the sample shrinks for good by dropping events at random, and so stays uniform.
    An event that alone is larger than `max_bytes` is never kept.

    Parameters
    ----------
    capacity
        Most events kept; 0 keeps none.
    max_bytes
        Most bytes kept, by an estimate that is the same on every machine.
    seed
        Seed of the generator; the same stream and seed give the same sample, however the stream
        was cut into batches.

    References
    ----------
    .. [1] Vitter, J. S. (1985). Random sampling with a reservoir. ACM TOMS 11(1), algorithm R.
    """

    SCHEMA = 1

    def __init__(
        self, capacity: int = 1_000, *, max_bytes: int = 16 * 2**20, seed: int = 0
    ) -> None:
        if capacity < 0 or max_bytes < 0:
            raise ValueError(f"capacity {capacity} and max_bytes {max_bytes} must not be negative")
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.seed = seed
        self.seen = 0
        self.bytes = 0
        self._limit = capacity  # events that may be kept now: shrinks where bytes run out
        self._events: list[Event] = []
        self._dropped = 0
        self._sampled = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def events(self) -> list[Event]:
        """The events kept; `Event.id` tells which they are."""
        return list(self._events)

    def add(self, batch: EventBatch) -> None:
        """Offer the labelled events of a batch, in order."""
        labelled = batch.labelled
        first = self.seen
        self.seen += labelled
        if not labelled or not self._limit:
            return
        rows, slots = np.empty(labelled, np.int64), np.empty(labelled, np.int64)
        hits = _hits(_seeded(self.seed), first, self._limit, rows, slots)
        if not hits:
            return
        rows = rows[:hits]
        if labelled < len(batch):
            rows = _labelled_rows(batch)[rows]
        for row, slot in zip(rows.tolist(), slots[:hits].tolist(), strict=True):
            event = batch.event(row)
            if _size(event.x) > self.max_bytes:
                continue
            if len(self._events) < self._limit:
                self._events.append(event)
            elif slot < self._limit:
                self.bytes -= _size(self._events[slot].x)
                self._events[slot] = event
            else:
                continue
            self.bytes += _size(event.x)
            self._shrink()

    def sample(self, n: int) -> list[Event]:
        """Draw `n` events with replacement; the next call draws others. Empty if none is kept."""
        if not self._events:
            return []
        # Another stream of draws than that of `add`: it must not disturb which events are kept.
        seed, first = _seeded(self.seed ^ 0x5A17), self._sampled
        self._sampled += n
        return [
            self._events[_below(seed, np.uint64(i), len(self._events))]
            for i in range(first, first + n)
        ]

    def definition(self) -> dict[str, Any]:
        """What it is, without what it holds."""
        return {"capacity": self.capacity, "max_bytes": self.max_bytes, "seed": self.seed}

    def state(self) -> dict[str, Any]:
        """Everything that the next result depends on, copied out."""
        return {
            "schema": self.SCHEMA,
            "capacity": self.capacity,
            "max_bytes": self.max_bytes,
            "seed": self.seed,
            "seen": self.seen,
            "bytes": self.bytes,
            "limit": self._limit,
            "dropped": self._dropped,
            "sampled": self._sampled,
            "events": [
                (dict(e.x), e.y, e.id, e.ts, e.key, e.weight, e.source, e.group and dict(e.group))
                for e in self._events
            ],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Reservoir":
        """Build the reservoir that `state` was taken from.

        Raises
        ------
        ValueError
            If the state has another schema than this version's.
        """
        if state["schema"] != cls.SCHEMA:
            raise ValueError(
                f"reservoir state has schema {state['schema']}, this version reads {cls.SCHEMA}"
            )
        new = cls(state["capacity"], max_bytes=state["max_bytes"], seed=state["seed"])
        new.seen = state["seen"]
        new.bytes = state["bytes"]
        new._limit = state["limit"]
        new._dropped = state["dropped"]
        new._sampled = state["sampled"]
        fields = ("x", "y", "id", "ts", "key", "weight", "source", "group")
        new._events = [Event(**dict(zip(fields, e, strict=True))) for e in state["events"]]
        return new

    def _shrink(self) -> None:
        """Drop events at random until the bytes fit; the sample stays uniform, only smaller."""
        while self.bytes > self.max_bytes and self._events:
            seed = _seeded(self.seed ^ 0xD409)
            slot = int(_below(seed, np.uint64(self._dropped), len(self._events)))
            self._dropped += 1
            self.bytes -= _size(self._events[slot].x)
            self._events[slot] = self._events[-1]
            self._events.pop()
            self._limit = len(self._events)
