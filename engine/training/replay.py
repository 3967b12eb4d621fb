"""Replay buffers: what of the past is kept, as a uniform sample of it."""

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
_DRAWS, _SECOND, _OLD = 0x5A17, 0xD409, 0x01D5  # streams of draws besides that of the priorities
_RESERVE = 16  # a part of the bytes, for the last event that comes in
_FIELDS = ("x", "y", "id", "ts", "key", "weight", "source", "group")


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _mixed(seed: np.uint64, counter: np.uint64) -> np.uint64:
    """Draw number `counter` of a counter-based generator, uniform over 64 bits.

    SplitMix64 [1]_ of a counter: any draw can be made without those before it, so the state of the
    generator is its counter. No two counters have the same draw.

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
    """Draw a priority for each of `rows.size` events from `first` on; return how many are hits.

    Those are up to the limit. Their places among the events are left in `rows`, and their
    priorities beside. The limit only ever falls, so what misses it now cannot hit it later in the
    batch.
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
    """Bytes that an event is counted with: the same on every machine, near what CPython takes."""
    text = sum(len(v) for v in x.values() if isinstance(v, str))
    return 256 + 72 * len(x) + text


class _Entry:
    """An event that came in, with its number and its size.

    `event` is None where it had to go for the bytes: it is still counted as if it were there.
    """

    __slots__ = ("event", "number", "size")

    def __init__(self, number: int, size: int, event: Event | None) -> None:
        self.number = number
        self.size = size
        self.event = event


class Reservoir:
    """A uniform sample without replacement of all events learned so far.

    Each event draws a priority, and those with the lowest are kept (bottom-k sampling [1]_): which
    are, does not depend on what is in them. Bounded in events and in bytes.

    An event that alone is larger than `max_bytes` is never kept, and takes no other's place: the
    sample is of the others. Where `capacity` events are larger than `max_bytes`, the sample is cut:
    in the order of priorities, up to the event at which 15/16 of the bytes are passed, itself
    included. So what is kept depends on the sizes of the events before an event, and not on its
    own; the sample grows again as the stream goes on, a large event leaves it as any other does.

    Parameters
    ----------
    capacity
        Most events kept; 0 keeps none.
    max_bytes
        Most bytes kept, by an estimate that is the same on every machine.
    seed
        Seed of the generator; the same stream and seed give the same sample, however the stream
        was cut into batches.

    Notes
    -----
    Where the bytes suffice, every event is kept with the same probability, exactly. Where they do
    not, so it is, within 1%, but for events of more than 1/16 of `max_bytes`. Where such a one is
    the last that comes in, others go for it, by priority, and what has a higher one than those is
    not kept from then on. Measured over 4,000 seeds, what is kept of large events, in parts of
    what is kept of small ones (`tests/engine/training/test_replay.py`):

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
        self._limit = _MOST  # highest priority that comes in: falls
        self._kept = _MOST  # ... and that is then kept
        self._entries: list[tuple[int, _Entry]] = []  # a heap, by what is below the priority
        self._total = 0  # bytes of the entries, those that had to go included
        self._events: list[Event] | None = None  # what is kept, in order: a cache, no state
        self._sampled = 0

    def __len__(self) -> int:
        return len(self._listed())

    @property
    def events(self) -> list[Event]:
        """The events kept, in the order of the stream; `Event.id` tells which they are."""
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
        """Take an event in, and let go of what is too much then."""
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
        """Whether the entry with the highest priority has to go for the bytes.

        Its own size does not count, as a large one would go more often than a small one. But all
        the others are counted with it where it comes before them; to be as often in its own way, it
        is counted where a second draw comes before it.
        """
        if not self._entries:
            return False
        below, last = self._entries[0]
        counted = int(_mixed(_seeded(self.seed ^ _SECOND), np.uint64(last.number))) < -below
        return self._total - (0 if counted else last.size) > self._bound

    def _make_room(self) -> None:
        """Let go of events by priority until the bytes fit; the highest one, for which, stays."""
        held = [(below, entry) for below, entry in sorted(self._entries) if entry.event is not None]
        for below, entry in held[1:]:
            self._kept = -below - 1
            self._let_go(entry)
            if self.bytes <= self.max_bytes:
                return

    def _gone(self, below: int, entry: _Entry) -> None:
        """Note that the entry with the highest priority has gone."""
        self._limit = -below - 1
        self._total -= entry.size
        self._let_go(entry)

    def _let_go(self, entry: _Entry) -> None:
        if entry.event is not None:
            entry.event = None
            self.bytes -= entry.size
            self._events = None

    def sample(self, n: int) -> list[Event]:
        """Draw `n` events with replacement; the next call draws others. Empty if none is kept."""
        events = self._listed()
        if not events:
            return []
        # Another stream of draws than that of `add`: it must not disturb which events are kept.
        seed, first = _seeded(self.seed ^ _DRAWS), self._sampled
        self._sampled += n
        return [events[_below(seed, np.uint64(i), len(events))] for i in range(first, first + n)]

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return what differs from a saved definition, and what becomes of the sample."""
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
        """Return a reservoir as this one is defined, with what it can hold of what `old` holds.

        What it lets go of is what it would have let go of for the next event, so that the sample
        stays a uniform one. A larger one admits events as the old one did, and grows from there.
        """
        new = Reservoir.from_state(old.state())
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
        """What it is, without what it holds."""
        return {"capacity": self.capacity, "max_bytes": self.max_bytes, "seed": self.seed}

    def state(self) -> dict[str, Any]:
        """Everything that the next result depends on, copied out: in falling order of priority."""
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

        A state of schema 1 is taken up: its events were as good as drawn from all that were seen.

        Raises
        ------
        ValueError
            If the state has another schema than these, or its parts do not fit together.
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
    """Return the event that `_plain` was given.

    Raises
    ------
    TypeError, ValueError
        If that is none.
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
    """Return the state of this schema for one of the first: its events with priorities drawn anew.

    They were kept as a uniform sample, so the lowest of as many priorities as events were seen are
    as good as theirs: uniform up to the share that was kept.
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
