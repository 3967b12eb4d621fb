"""Replay buffers: a uniform sample of past events."""

import heapq
from collections.abc import Mapping
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event, IntArray
from midstream.engine.state.changes import Change, differences

__all__ = ["Reservoir"]

_U11, _U27, _U30, _U31 = map(np.uint64, (11, 27, 30, 31))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_MOST = 2**64 - 1
_DRAWS, _SECOND, _OLD = 0x5A17, 0xD409, 0x01D5  # further streams of draws, besides priorities
_RESERVE = 16  # 1/16 of the bytes is reserved for the last event that comes in
_FIELDS = ("x", "y", "id", "ts", "key", "weight", "source", "group")


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _mixed(seed: np.uint64, counter: np.uint64) -> np.uint64:
    """Draw number `counter` of a counter-based generator, uniform over 64 bits.

    SplitMix64 [1]_ of a counter: any draw can be made without the ones before it, so the counter is
    the generator's whole state. No two counters have the same draw.

    .. [1] Steele, Lea, Flood (2014). Fast splittable pseudorandom number generators. OOPSLA.
    """
    u = seed + counter * _GOLDEN
    u = (u ^ (u >> _U30)) * _MIX1
    u = (u ^ (u >> _U27)) * _MIX2
    u ^= u >> _U31
    return u


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _below(seed: np.uint64, counter: np.uint64, bound: int) -> int:
    """Draw number `counter`, uniform in [0, bound)."""
    return np.int64(float(_mixed(seed, counter) >> _U11) * 2.0**-53 * bound)  # type: ignore[return-value]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _hits(
    seed: np.uint64,
    first: int,
    limit: np.uint64,
    rows: IntArray,
    priorities: npt.NDArray[np.uint64],
) -> int:
    """Draw a priority for each of `rows.size` events from `first` on; return the number of hits.

    A hit is a priority up to the limit. The rows of the hits are written to `rows`, their
    priorities to `priorities`. The limit only falls, so an event that misses now cannot be a hit
    later in the batch.
    """
    if priorities.size != rows.size:
        raise ValueError("there must be room for a priority of every event")
    hits = 0
    for i in range(rows.size):
        u = _mixed(seed, np.uint64(first + i))
        if u <= limit:
            rows[hits] = i
            priorities[hits] = u
            hits += 1
    return hits


def _seeded(seed: int) -> np.uint64:
    return np.uint64(seed & _MOST)


def _labelled_rows(batch: EventBatch) -> IntArray:
    if batch.targets is not None:
        return np.flatnonzero(~np.isnan(batch.targets.values))
    return np.array([i for i, y in enumerate(batch.labels) if y is not None], np.int64)


def _size(x: dict[str, Any]) -> int:
    """Estimate an event's size in bytes: near CPython's, and the same on every machine."""
    text = sum(len(v) for v in x.values() if isinstance(v, str))
    return 256 + 72 * len(x) + text


class _Entry:
    """An event that came in, with its number and size.

    `event` is None if it was dropped to save bytes: its size is still counted.
    """

    __slots__ = ("event", "number", "size")

    def __init__(self, number: int, size: int, event: Event | None) -> None:
        self.number = number
        self.size = size
        self.event = event


class Reservoir:
    """A uniform sample without replacement of all events learned so far.

    Each event draws a priority, and the events with the lowest are kept (bottom-k sampling [1]_):
    the choice does not depend on their content. Bounded in events and in bytes.

    An event that alone exceeds `max_bytes` is never kept and displaces no other: the sample is
    drawn from the others. Where `capacity` events exceed `max_bytes`, the sample is cut: in order
    of priority, it ends with the event that passes 15/16 of the bytes. So whether an event is kept
    depends on the sizes of the events before it in that order, and not on its own. The sample
    grows again as the stream goes on, and a large event leaves it as any other does.

    Parameters
    ----------
    capacity
        Most events kept; 0 keeps none.
    max_bytes
        Most bytes kept, by an estimate that is the same on every machine.
    seed
        Seed of the generator. The same stream and seed give the same sample, however the stream
        is cut into batches.

    Notes
    -----
    Where the bytes suffice, every event is kept with exactly the same probability. Where they do
    not, the probabilities are equal within 1%, except for events larger than 1/16 of `max_bytes`.
    If such an event is the last to come in, others are dropped for it, by priority; from then on
    no event with a higher priority than those is kept. The table gives the rate at which large
    events are kept, relative to small ones, over 4,000 seeds
    (`tests/engine/training/test_replay.py`):

    ======  ==============================================  ============
    events  sizes, in parts of `max_bytes`                  large, kept
    ======  ==============================================  ============
    200     0.05, and each twentieth 0.15                   0.98 +- 0.02
    200     0.09, and each tenth 0.43                       0.87 +- 0.02
    2,000   the same                                        0.87 +- 0.02
    60      0.09, and the 51st 0.88                         1.09 +- 0.04
    60      0.09, and the first 0.88                        1.44 +- 0.05
    600     the same                                        1.06 +- 0.13
    ======  ==============================================  ============

    References
    ----------
    .. [1] Cohen, Kaplan (2007). Summarizing data using bottom-k sketches. PODS.
    """

    SCHEMA = 2

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
        self._limit = _MOST  # highest priority that comes in; only falls
        self._kept = _MOST  # highest priority whose event is also kept
        self._entries: list[tuple[int, _Entry]] = []  # a heap of (-priority, entry)
        self._total = 0  # bytes of all entries, including dropped events
        self._events: list[Event] | None = None  # the events kept, in order: a cache, not state
        self._sampled = 0

    def __len__(self) -> int:
        return len(self._listed())

    @property
    def events(self) -> list[Event]:
        """The events kept, in stream order; `Event.id` identifies them."""
        return list(self._listed())

    def _listed(self) -> list[Event]:
        if self._events is None:
            entries = sorted((entry for _, entry in self._entries), key=attrgetter("number"))
            self._events = [entry.event for entry in entries if entry.event is not None]
        return self._events

    def add(self, batch: EventBatch) -> None:
        """Offer the labelled events of a batch, in order."""
        labelled = batch.labelled
        first = self.seen
        self.seen += labelled
        if not labelled or not self.capacity:
            return
        rows, priorities = np.empty(labelled, np.int64), np.empty(labelled, np.uint64)
        hits = _hits(_seeded(self.seed), first, np.uint64(self._limit), rows, priorities)
        if not hits:
            return
        rows = rows[:hits]
        numbers = (rows + first).tolist()
        if labelled < len(batch):
            rows = _labelled_rows(batch)[rows]
        for row, number, priority in zip(
            rows.tolist(), numbers, priorities[:hits].tolist(), strict=True
        ):
            if priority <= self._limit:
                self._offer(batch.event(row), number, priority)

    def _offer(self, event: Event, number: int, priority: int) -> None:
        """Take an event in, then drop what exceeds the bounds."""
        size = _size(event.x)
        if size > self.max_bytes:
            return
        entry = _Entry(number, size, event)
        if priority > self._kept:
            entry.event = None
        else:
            self.bytes += size
            self._events = None
        self._total += size
        if len(self._entries) < self.capacity:
            heapq.heappush(self._entries, (-priority, entry))
        else:
            self._gone(*heapq.heappushpop(self._entries, (-priority, entry)))
        while self._total > self._bound and self._is_too_much():
            self._gone(*heapq.heappop(self._entries))
        if self.bytes > self.max_bytes:
            self._make_room()

    @property
    def _bound(self) -> int:
        return self.max_bytes - self.max_bytes // _RESERVE

    def _is_too_much(self) -> bool:
        """Return whether the entry with the highest priority must be dropped for its bytes.

        Its own size does not count, since a large event would then be dropped more often than a
        small one. But the sizes of all others count against it, even of those it precedes. To
        compensate, its own size counts if a second draw is below its priority.
        """
        if not self._entries:
            return False
        below, last = self._entries[0]
        counted = int(_mixed(_seeded(self.seed ^ _SECOND), np.uint64(last.number))) < -below
        return self._total - (0 if counted else last.size) > self._bound

    def _make_room(self) -> None:
        """Drop events by priority until the bytes fit, except the one with the highest priority."""
        held = [(below, entry) for below, entry in sorted(self._entries) if entry.event is not None]
        for below, entry in held[1:]:
            self._kept = -below - 1
            self._let_go(entry)
            if self.bytes <= self.max_bytes:
                return

    def _gone(self, below: int, entry: _Entry) -> None:
        """Remove the entry with the highest priority from the counts."""
        self._limit = -below - 1
        self._total -= entry.size
        self._let_go(entry)

    def _let_go(self, entry: _Entry) -> None:
        if entry.event is not None:
            entry.event = None
            self.bytes -= entry.size
            self._events = None

    def sample(self, n: int) -> list[Event]:
        """Draw `n` events with replacement; each call draws anew. Empty if no event is kept."""
        events = self._listed()
        if not events:
            return []
        # A separate stream of draws: sampling must not change which events are kept.
        seed, first = _seeded(self.seed ^ _DRAWS), self._sampled
        self._sampled += n
        return [events[_below(seed, np.uint64(i), len(events))] for i in range(first, first + n)]

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved definition, and their effect on the sample."""
        new, effects = self.definition(), {"seed": "for events from now on"}
        for key in ("capacity", "max_bytes"):
            larger = old.get(key, 0) < new[key]
            effects[key] = "the sample grows" if larger else "the sample is cut, and stays uniform"
        if old.get("capacity") == 0:
            effects["capacity"] = "begins now"
        return [
            change
            for key in dict.fromkeys([*old, *new])
            for change in differences(
                "replay",
                {key: old.get(key)},
                {key: new.get(key)},
                level="accepted" if key in effects else "refused",
                effect=effects.get(key, "unknown here"),
            )
        ]

    def amended(self, old: "Reservoir") -> "Reservoir":
        """Return a reservoir defined as this one, with as much of `old`'s sample as fits.

        It drops what it would have dropped for the next event, so the sample stays uniform. A
        larger reservoir starts with the old limit and grows from there; one that kept nothing
        restarts.
        """
        new = Reservoir.from_state(old.state())
        if not new.capacity:
            new._limit = new._kept = _MOST
        new.capacity, new.max_bytes, new.seed = self.capacity, self.max_bytes, self.seed
        for below, entry in list(new._entries):
            if entry.size > new.max_bytes:
                new._entries.remove((below, entry))
                new._total -= entry.size
                new._let_go(entry)
        heapq.heapify(new._entries)
        while len(new._entries) > new.capacity:
            new._gone(*heapq.heappop(new._entries))
        while new._total > new._bound and new._is_too_much():
            new._gone(*heapq.heappop(new._entries))
        if new.bytes > new.max_bytes:
            new._make_room()
        return new

    def definition(self) -> dict[str, Any]:
        """Return what defines the reservoir, without its events."""
        return {"capacity": self.capacity, "max_bytes": self.max_bytes, "seed": self.seed}

    def state(self) -> dict[str, Any]:
        """Return everything that the next result depends on, copied: by falling priority."""
        entries = sorted(self._entries)
        return {
            "schema": self.SCHEMA,
            "capacity": self.capacity,
            "max_bytes": self.max_bytes,
            "seed": self.seed,
            "seen": self.seen,
            "limit": self._limit,
            "kept": self._kept,
            "sampled": self._sampled,
            "priorities": np.array([-below for below, _ in entries], np.uint64),
            "numbers": np.array([entry.number for _, entry in entries], np.int64),
            "sizes": np.array([entry.size for _, entry in entries], np.int64),
            "events": [_plain(entry.event) for _, entry in entries],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Reservoir":
        """Build the reservoir that `state` was taken from.

        A state of schema 1 is converted: its events were a uniform sample of all seen.

        Raises
        ------
        ValueError
            If the state has any other schema, or its parts do not fit together.
        """
        try:
            schema = state["schema"]
            if schema == 1:
                return cls._restored(_of_schema_1(state))
            if schema != cls.SCHEMA:
                raise ValueError(
                    f"reservoir state has schema {schema}, this version reads {cls.SCHEMA} and 1"
                )
            return cls._restored(state)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"damaged reservoir state: {type(error).__name__}: {error}") from error

    @classmethod
    def _restored(cls, state: Mapping[str, Any]) -> "Reservoir":
        whole = ("capacity", "max_bytes", "seed", "seen", "limit", "kept", "sampled")
        if not all(type(state[name]) is int for name in whole):
            raise ValueError("damaged reservoir state: a count is no whole number")
        new = cls(state["capacity"], max_bytes=state["max_bytes"], seed=state["seed"])
        new.seen, new._sampled = state["seen"], state["sampled"]
        new._limit, new._kept = state["limit"], state["kept"]
        events, columns = state["events"], []
        for name, kind in (("priorities", "u"), ("numbers", "i"), ("sizes", "i")):
            column = state[name]
            if column.dtype.kind != kind or column.shape != (len(events),):
                raise ValueError(f"damaged reservoir state: {name} are not those of its events")
            columns.append(column.tolist())
        for priority, number, size, fields in zip(*columns, events, strict=True):
            event = None if fields is None else _event(fields)
            new._entries.append((-priority, _Entry(number, size, event)))
            new._total += size
            new.bytes += 0 if event is None else size
        entries = new._entries
        if not (
            0 <= new.seen < 2**53
            and 0 <= new._sampled < 2**53
            and -1 <= new._limit <= _MOST
            and -1 <= new._kept <= _MOST
            and new.bytes <= new.max_bytes
            and len(entries) <= new.capacity
            and not (new._total > new._bound and new._is_too_much())
            and all(
                -below <= new._limit
                and 0 <= entry.number < new.seen
                and 0 < entry.size <= new.max_bytes
                and (entry.event is None or entry.size == _size(entry.event.x))
                for below, entry in entries
            )
            and all(a < b for (a, _), (b, _) in pairwise(entries))
        ):
            raise ValueError("damaged reservoir state: its parts do not fit together")
        return new  # in this order they are a heap


def _plain(event: Event | None) -> tuple[Any, ...] | None:
    if event is None:
        return None
    e = event
    return dict(e.x), e.y, e.id, e.ts, e.key, e.weight, e.source, e.group and dict(e.group)


def _event(fields: Any) -> Event:
    """Make an event from the result of `_plain`.

    Raises
    ------
    TypeError, ValueError
        If the fields are not those of an event.
    """
    x, y, id_, ts, key, weight, source, group = fields
    texts = [id_, key, source, *(group or {}), *(group or {}).values()]
    if not (
        type(x) is dict
        and all(type(name) is str for name in x)
        and isinstance(y, str | int | float)
        and all(text is None or type(text) is str for text in texts)
        and (ts is None or isinstance(ts, int | float))
        and (group is None or type(group) is dict)
        and isinstance(weight, int | float)
    ):
        raise ValueError("damaged reservoir state: an event is none")
    return Event(**dict(zip(_FIELDS, fields, strict=True)))


def _of_schema_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state of schema 1: its events get new priorities.

    They are a uniform sample, so new priorities, uniform up to the share that was kept, are as good
    as the original ones.
    """
    events, seen = state["events"], state["seen"]
    if not len(events) <= seen:
        raise ValueError(f"damaged reservoir state: {len(events)} events of {seen}")
    limit = _MOST if len(events) in (0, seen) else _MOST * len(events) // seen
    seed = _seeded(state["seed"] ^ _OLD)
    sizes = [_size(fields[0]) for fields in events]
    draws = [int(_mixed(seed, np.uint64(i))) * limit // _MOST for i in range(len(events))]
    order = sorted(range(len(events)), key=draws.__getitem__, reverse=True)
    names = ("capacity", "max_bytes", "seed", "seen", "sampled")
    new = {name: state[name] for name in names}
    return new | {
        "limit": limit,
        "kept": limit,
        "priorities": np.array([draws[i] for i in order], np.uint64),
        "numbers": np.array(order, np.int64),
        "sizes": np.array([sizes[i] for i in order], np.int64),
        "events": [events[i] for i in order],
    }
