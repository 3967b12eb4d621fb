"""Joins labels that come later to the events that were predicted."""

import math
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import FloatArray, IntArray, Label, Origin, Rejected
from midstream.engine.events.predictions import Predictions
from midstream.engine.joining.clock import Clocks
from midstream.engine.joining.delay import (
    DELAYED,
    IMMEDIATE,
    NEGATIVE,
    ElapsedTime,
    fake_negative_weights,
    proba_true,
)
from midstream.engine.joining.policy import Policy
from midstream.engine.joining.waiting import BoolArray, Waiting, sizes
from midstream.engine.state import encoding
from midstream.engine.state.changes import Change, differences

__all__ = ["Fate", "JoinCounts", "Joiner", "Learn", "Op", "Predict"]

K = TypeVar("K")
V = TypeVar("V")

_DELAYS = 80  # buckets of the histogram of delays, two for each power of two from 1 ms on
_SHORTEST = 1e-3
_BEFORE, _NEVER = -(2**62), 2**62  # ticks before and after all others
_OF_METHODS = {"provisional", "revised", "outcomes", "outcomes_lost"}
_PARTS = 64  # of `window_events`: how exactly it is kept


class JoinCounts(msgspec.Struct):
    """What became of events and of feedback.

    Attributes
    ----------
    predicted
        Events that were predicted: joined + labelled + expired + evicted + repeated + waiting.
    labelled
        Events that came with their label.
    joined
        Events whose label came later, and was taken.
    expired, evicted
        Events whose time ended without a label, and those that had to go because too many waited.
    repeated
        Events with the id of one that waited or was done: predicted, but not joined.
    early
        Labels that came before their event, and were joined.
    dangling, late
        Labels without an event, and labels for an event that had expired.
    duplicates, corrections, refunds
        Labels for an event that had one: the same, another, and false after true.
    sampled_out
        Labels that were not learned because of `negative_share`.
    unusable
        Records of feedback without a label.
    provisional, revised
        Events learned as negative before their end, by a method against late labels; and those of
        them whose positive came later.
    outcomes, outcomes_lost
        Ended events that auxiliary models learned, and those that they could not learn.
    """

    predicted: int = 0
    labelled: int = 0
    joined: int = 0
    expired: int = 0
    evicted: int = 0
    repeated: int = 0
    early: int = 0
    dangling: int = 0
    late: int = 0
    duplicates: int = 0
    corrections: int = 0
    refunds: int = 0
    sampled_out: int = 0
    unusable: int = 0
    provisional: int = 0
    revised: int = 0
    outcomes: int = 0
    outcomes_lost: int = 0

    def plain(self) -> dict[str, int]:
        """Return the counts by name; those of a method against late labels only if not 0."""
        counts: dict[str, int] = msgspec.to_builtins(self)
        return {name: n for name, n in counts.items() if n or name not in _OF_METHODS}


class Predict(NamedTuple):
    """Predict the rows [start, stop) of the batch, and learn those with a label."""

    start: int
    stop: int


class Fate(NamedTuple):
    """An event that is learned or scored after it was predicted.

    Attributes
    ----------
    number
        The number of the event.
    label
        The label.
    weight
        Its weight; 0: it is scored, but not learned.
    scored
        Whether the prediction is scored.
    row
        The row of the batch that decided it.
    """

    number: int
    label: Label
    weight: float
    scored: bool
    row: int


class Learn(NamedTuple):
    """Learn events whose labels came later, in order.

    Attributes
    ----------
    numbers, labels
        The events, and their labels.
    weights
        Their weights, 0 for an event that is scored only; None: all 1.
    scored
        Whether each prediction is scored; None: all are.
    rows
        By event, the row of the batch that decided it.
    """

    numbers: list[int]
    labels: list[Label]
    rows: list[int]
    weights: list[float] | None = None
    scored: list[bool] | None = None

    @classmethod
    def of(cls, fates: Sequence[Fate]) -> "Learn":
        """Make it from single events."""
        numbers, labels, weights, scored, rows = map(list, zip(*fates, strict=True))
        return cls(
            numbers,
            labels,
            rows,
            None if set(weights) == {1.0} else weights,
            None if all(scored) else scored,
        )


Op: TypeAlias = Predict | Learn


class _Held(NamedTuple):
    """A label that waits for its event, or for the end of its event's time."""

    label: Label
    weight: float
    time: float | None
    source: str | None
    origin: Origin
    due: int = 0  # the tick at which it ends, if it waits for its event


def _held(plain: Sequence[Any]) -> _Held:
    label, weight, time, source, origin, due = plain
    return _Held(label, weight, time, source, tuple(origin), due)


class _Table(dict[K, V], Generic[K, V]):
    """A dict whose changes through `put` and `take` can be undone."""

    def __init__(self, log: list[Callable[[], Any]], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._log = log
        self.logs = False

    def put(self, key: K, value: V) -> None:
        """Set a value."""
        if self.logs:
            if key in self:
                self._log.append(lambda old=self[key]: self.__setitem__(key, old))  # type: ignore[misc]
            else:
                self._log.append(lambda: self.pop(key))
        self[key] = value

    def put_all(self, keys: Sequence[K], values: Sequence[V]) -> None:
        """Set values of new keys."""
        self.update(zip(keys, values, strict=True))
        if self.logs:
            self._log.append(lambda: [self.pop(key) for key in keys])

    def take_all(self, keys: Sequence[K]) -> list[V]:
        """Remove values and return them."""
        values = [self.pop(key) for key in keys]
        if self.logs:
            self._log.append(lambda: self.update(zip(keys, values, strict=True)))
        return values

    def take(self, key: K) -> V:
        """Remove a value and return it."""
        value = self.pop(key)
        if self.logs:
            self._log.append(lambda: self.__setitem__(key, value))
        return value


class _Given(NamedTuple):
    """A batch of events, with what is computed once of it.

    `done` are the rows with a label, None if there is none; `nows` is the time of the join by row.
    """

    batch: EventBatch
    ids: list[str]
    bytes_of: IntArray
    done: BoolArray | None
    nows: list[float]


class _Buckets(_Table[int, list[K]]):
    """Lists by tick; additions and removals can be undone.

    `first`: a tick before which there is nothing.
    """

    def __init__(self, log: list[Callable[[], Any]]) -> None:
        super().__init__(log)
        self.first = _NEVER

    def add(self, tick: int, value: K) -> None:
        """Add a value to the list of a tick."""
        found = self.get(tick)
        if found is None:
            self.put(tick, [value])
        else:
            found.append(value)
            if self.logs:
                self._log.append(found.pop)
        self.first = min(tick, self.first)

    def add_all(self, ticks: IntArray, values: Sequence[K]) -> None:
        """Add values to the lists of their ticks; nothing at `_NEVER`."""
        cuts = [0, *(np.flatnonzero(np.diff(ticks)) + 1).tolist(), len(ticks)]
        for start, stop in pairwise(cuts):
            tick = int(ticks[start]) if start < stop else _NEVER
            if tick == _NEVER:
                continue
            found = self.get(tick)
            if found is None:
                self.put(tick, list(values[start:stop]))
            else:
                length = len(found)
                found.extend(values[start:stop])
                if self.logs:
                    self._log.append(partial(found.__delitem__, slice(length, None)))
            self.first = min(tick, self.first)

    def due(self, tick: int) -> list[tuple[int, K]]:
        """Remove what is due up to a tick, and return it with its tick, in order."""
        ticks = sorted(at for at in self if at <= tick)
        found = [(at, value) for at in ticks for value in self.take(at)]
        self.first = min(self, default=_NEVER)
        return found

    def pop_first(self) -> tuple[int, K]:
        """Remove the first value of the first tick; return both."""
        at = min(self)
        values = self.take(at)
        if len(values) > 1:
            self.put(at, values[1:])
        self.first = min(self, default=_NEVER)
        return at, values[0]

    def all(self) -> Iterator[K]:
        """Yield all values, tick by tick."""
        for at in sorted(self):
            yield from self[at]

    def scale(self, ratio: float) -> None:
        """Take ticks of another length."""
        old = {at: self[at] for at in sorted(self)}
        self.clear()
        for at, values in old.items():
            for value in values:
                self.add(math.ceil(at * ratio) if at != _BEFORE else at, value)

    def plain(self) -> list[list[Any]]:
        """Return everything as plain values."""
        return [[at, self[at]] for at in sorted(self)]

    def load(self, plain: Sequence[Sequence[Any]]) -> None:
        """Take over what `plain` returned."""
        self.update({at: list(values) for at, values in plain})
        self.first = min(self, default=_NEVER)


class Joiner:
    """The events that wait for their label, and the labels that wait for their event.

    The result depends on the order of the records only, and not on how they were cut into batches.
    For each batch, run `process`, then `finish`; after an error, `undo`, if it was begun with
    `undoable`.

    Parameters
    ----------
    policy
        What is done with late, missing, repeated and corrected labels.

    Attributes
    ----------
    counts
        What became of events and feedback so far.
    rejected
        Feedback that was not joined, since `process` was last called, with the row of the batch
        that decided it.
    review
        Events that expired and are to be reviewed, with their predictions. Likewise.
    """

    SCHEMA = 1

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.counts = JoinCounts()
        self.waiting = Waiting()
        self.delays = [0] * _DELAYS
        self.bytes = 0  # of the events that wait
        self.rejected: list[tuple[int, Rejected]] = []
        self.review: list[tuple[EventBatch, Predictions]] = []
        self._clocks = Clocks(policy.idle)
        self._of_events = Clocks(policy.idle)  # ends labels that wait for their event
        self._tick = _BEFORE  # all that is due up to it was done
        self._event_tick = _BEFORE  # likewise, by the clock of the events
        self._now = -math.inf  # after the row that is processed
        self._row = 0  # that is processed
        self._log: list[Callable[[], Any]] = []
        self._released: list[int] = []  # numbers of events whose features are not needed any more
        self._open: _Table[str, int] = _Table(self._log)
        self._closed: _Table[str, Label | None] = _Table(self._log)  # None: without a label
        self._kept: _Table[str, int] = _Table(self._log)  # closed events that may be corrected
        self._early: _Table[str, _Held] = _Table(self._log)
        self._held: _Table[int, _Held] = _Table(self._log)
        self._due = _Buckets[int](self._log)  # the events that end at a tick
        self._early_due = _Buckets[str](self._log)  # the labels that end at a tick
        self._forget_due = _Buckets[str](self._log)  # the ids that are forgotten at a tick
        # Of a method against late labels: see `delay`.
        self._provisional: _Table[int, bool] = _Table(self._log)  # that wait, learned as negative
        self._wait_due = _Buckets[int](self._log)  # the events to be learned as negative at a tick
        self._outcomes: _Table[int, int] = _Table(self._log)  # of events that had a label
        self._outcome_due = _Buckets[int](self._log)  # the events whose outcome counts at a tick
        self._models = ElapsedTime() if policy.method == "es-dfm" else None
        self._models_before: list[Any] | None = None  # the batch, if they changed in it
        self._backup: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._open)

    @property
    def now(self) -> float:
        """The event time of the join; -inf before the first record with a time."""
        return self._clocks.now

    def fate(self, event_id: str) -> dict[str, Any] | None:
        """Return what is known of an event, as plain values; None if nothing is.

        "learned" is the label that was learned of an event that still waits.
        """
        if event_id in self._open:
            number = self._open[event_id]
            batch, predicted = self.waiting.events([number]), self.waiting.predictions([number])
            held = self._held.get(number)
            learned = {"learned": False} if number in self._provisional else {}
            return {
                "status": "waiting",
                "time": batch.time(0),
                "y_pred": predicted.values[0],
                "label": None if held is None else held.label,
                **learned,
            }
        if event_id in self._closed:
            label = self._closed[event_id]
            return {"status": "expired" if label is None else "labelled", "label": label}
        if event_id in self._early:
            held = self._early[event_id]
            return {"status": "label waits for its event", "label": held.label, "time": held.time}
        return None

    # --- a batch

    def process(
        self, batch: EventBatch, *, undoable: bool = False
    ) -> Generator[Op, Predictions | None, None]:
        """Take a batch of events or of feedback; yield what the learner has to do, in order.

        The caller sends the predictions for a `Predict` into the generator.
        """
        self.rejected, self.review = [], []
        self._log.clear()
        for table in self._tables():
            table.logs = undoable
        self._backup = self._models_before = None
        if undoable:
            self._backup = (
                msgspec.structs.replace(self.counts), list(self.delays), self.bytes, self._tick,
                self._event_tick, self._clocks.copy(), self._of_events.copy(), self.waiting.next,
            )  # fmt: skip
        self.waiting.log = self._log if undoable else None
        times, n = batch.seconds, len(batch)
        nows = self._clocks.advance(batch.place, times, n)
        if batch.is_feedback:
            yield from self._feedback(batch, self._ticks(nows).tolist(), nows.tolist())
        else:
            of_events = self._ticks(self._of_events.advance(batch.place, times, n)).tolist()
            yield from self._events(batch, self._ticks(nows).tolist(), of_events, nows.tolist())

    def _ticks(self, times: FloatArray, unknown: int = _BEFORE) -> IntArray:
        """Return the tick of each time; `unknown` for one that is not finite."""
        ticks = np.full(len(times), unknown, np.int64)
        known = np.isfinite(times)
        ticks[known] = np.floor(times[known] / self.policy.tick).astype(np.int64)
        return ticks

    def _after(self, time: float) -> int:
        """Return the tick after a time."""
        return math.floor(time / self.policy.tick) + 1

    def finish(self) -> Iterator[tuple[list[Label], Predictions]]:
        """Complete the batch; yield labels and predictions in the order of prediction."""
        released, self._released = self._released, []
        self._log.clear()
        self.waiting.log = None
        if released:
            self.waiting.release(released)
        yield from self.waiting.settled()

    def undo(self) -> None:
        """Go back to the state before the batch."""
        assert self._backup is not None, "the batch was not begun with undoable"
        while self._log:
            self._log.pop()()
        for buckets in self._buckets():
            buckets.first = min(buckets, default=_NEVER)
        self.counts, self.delays, self.bytes, self._tick, *rest = self._backup
        self._event_tick, self._clocks, self._of_events, after = rest
        self.waiting.log = None
        self.waiting.cut(after)
        self._released, self.rejected, self.review = [], [], []

    def _tables(self) -> Iterator["_Table[Any, Any]"]:
        yield from (self._open, self._closed, self._kept, self._early, self._held)
        yield from (self._provisional, self._outcomes)
        yield from self._buckets()

    def _buckets(self) -> "Iterator[_Buckets[Any]]":
        yield from (self._due, self._early_due, self._forget_due)
        yield from (self._wait_due, self._outcome_due)

    @property
    def _first_due(self) -> int:
        """A tick before which nothing ends by the clock of the join."""
        waits = min(self._wait_due.first, self._outcome_due.first)
        return min(self._due.first, self._forget_due.first, waits)

    def _count(self, name: str, n: int = 1) -> None:
        setattr(self.counts, name, getattr(self.counts, name) + n)

    # --- events

    def _events(
        self, batch: EventBatch, ticks: list[int], of_events: list[int], nows: list[float]
    ) -> Generator[Op, Predictions | None, None]:
        ids, done, bytes_of = batch.ids, ~batch.without_label(), sizes(batch)
        given = _Given(batch, ids, bytes_of, done if done.any() else None, nows)
        tables = (self._open, self._closed, self._early)
        plain = len(set(ids)) == len(ids) and all(t.keys().isdisjoint(ids) for t in tables)
        every = self.policy.window_events // _PARTS + 1 if self.policy.window_events else 0
        soonest = self._soonest(batch.seconds, nows)
        if plain and not every and self._nothing_ends(ticks, of_events, soonest):
            yield from self._predict(given, 0, len(batch), plain=True)
            return
        before = [] if plain else [0, *accumulate(bytes_of.tolist())]
        run: set[str] = set()  # ids of the rows from `start` on, if some may come twice
        start = 0
        for row, tick in enumerate(ticks):
            number = self.waiting.next + row - start
            self._row = row
            event_tick = of_events[row]
            if event_tick > self._event_tick:
                if self._early_due.first <= event_tick:
                    self._now = nows[row]
                    for at, event_id in self._early_due.due(event_tick):
                        self._dangling(at, event_id)
                self._event_tick = event_tick
            if tick > self._tick or (every and number % every == 0):
                if tick > self._tick and min(soonest[start:row], default=tick + 1) <= tick:
                    yield from self._predict(given, start, row, plain=plain)
                    start = row
                    run.clear()
                if self._is_due(tick, number if every else -1):
                    yield from self._predict(given, start, row, plain=plain)
                    start, self._now = row, nows[row]
                    run.clear()
                    if fates := self._pass(tick, number if every else -1, row):
                        yield Learn.of(fates)
                self._tick = max(tick, self._tick)
            if plain:
                continue
            event_id = ids[row]
            if event_id in run or self._crowded(row - start, before[row] - before[start]):
                yield from self._predict(given, start, row, plain=plain)
                start = row
                run.clear()
            if done[row] and (event_id in self._open or event_id in self._closed):
                yield from self._predict(given, start, row, plain=plain)
                start, self._now = row + 1, nows[row]
                run.clear()
                held = self._given(batch, row)
                assert held is not None
                if fates := self._label(event_id, held, row):
                    yield Learn.of(fates)
            elif event_id in self._early:
                yield from self._predict(given, start, row + 1)
                start = row + 1
                run.clear()
                held = self._early.take(event_id)
                self._count("early", not done[row])
                if fates := self._label(event_id, held, row):
                    yield Learn.of(fates)
            else:
                run.add(event_id)
        yield from self._predict(given, start, len(batch), plain=plain)

    def _soonest(self, times: FloatArray | None, nows: list[float]) -> list[int]:
        """Return, by row, a tick before which nothing that the row brings can end."""
        now, policy = np.array(nows), self.policy
        base = now if times is None else np.fmin(np.where(np.isnan(times), now, times), now)
        soonest: list[int] = (self._ticks(base + policy.least, _BEFORE - 1) + 1).tolist()
        return soonest

    def _nothing_ends(self, ticks: list[int], of_events: list[int], soonest: list[int]) -> bool:
        """Whether a batch of events ends nothing that waits; if so, let its time pass."""
        if not ticks:
            return True
        tick, event_tick = max(self._tick, ticks[-1]), max(self._event_tick, of_events[-1])
        if (
            self._first_due <= tick
            or self._early_due.first <= event_tick
            or (tick > self._tick and min(soonest) <= tick)
        ):
            return False
        self._tick, self._event_tick = tick, event_tick
        return True

    def _predict(
        self, given: _Given, start: int, stop: int, *, plain: bool = False
    ) -> Generator[Op, Predictions | None, None]:
        """Have rows predicted, and let those without a label wait.

        `plain`: no id among all rows is known, or comes twice.
        """
        if start == stop:
            return
        predictions = yield Predict(start, stop)
        assert predictions is not None
        batch = given.batch
        part = batch if stop - start == len(batch) else batch[start:stop]
        bytes_of, ids = given.bytes_of[start:stop], given.ids[start:stop]
        done = None if given.done is None else given.done[start:stop]
        labels = part.labels if done is not None and done.any() else None
        first = self.waiting.next
        self._count("predicted", stop - start)
        self.waiting.add(part, ids, predictions, bytes_of, done=done, labels=labels)
        policy = self.policy
        dues = self._dues(part, given.nows[start:stop], policy.window)
        waits = None
        if policy.method != "wait":
            waits = self._dues(part, given.nows[start:stop], policy.wait)
        total = int(bytes_of.sum())
        if plain and labels is None and not self._crowded(len(ids), total):
            self._open.put_all(ids, range(first, first + len(ids)))
            self._due.add_all(dues, range(first, first + len(ids)))
            if waits is not None:
                self._wait_due.add_all(waits, range(first, first + len(ids)))
            self.bytes += total
            self._now = given.nows[stop - 1]
            return
        for i, (event_id, due) in enumerate(zip(ids, dues.tolist(), strict=True)):
            self._now = given.nows[start + i]
            if done is not None and done[i]:
                assert labels is not None
                self._count("labelled")
                self._end(event_id, labels[i], -1)
                continue
            if event_id in self._open or event_id in self._closed:
                self._count("repeated")
                self.waiting.drop(first + i)
                continue
            self._open.put(event_id, first + i)
            self.bytes += int(bytes_of[i])
            if due < _NEVER:
                self._due.add(due, first + i)
                if waits is not None:
                    self._wait_due.add(int(waits[i]), first + i)
            if len(self._open) > policy.max_events or self.bytes > policy.max_bytes:
                self._make_room()

    def _dues(self, part: EventBatch, nows: Sequence[float], seconds: float) -> IntArray:
        """Return, by event, the tick after its time plus `seconds`; `_NEVER` without any time."""
        times, now = part.seconds, np.array(nows)
        base = now if times is None else np.where(np.isnan(times), now, times)
        return self._ticks(base + seconds + self.policy.lateness, _NEVER - 1) + 1

    def _crowded(self, events: int, bytes_: int) -> bool:
        """Whether so many more events might make others go."""
        most = self.policy.max_events
        return (
            max(len(self._open), len(self._closed)) + events > most
            or self.bytes + bytes_ > self.policy.max_bytes
        )

    def _make_room(self) -> None:
        """Drop the oldest events while too many wait."""
        policy = self.policy
        while len(self._open) > policy.max_events or (
            self.bytes > policy.max_bytes and len(self._open) > 1
        ):
            number = self.waiting.oldest()
            self._count("evicted")
            self._end(self._leave(number, None), None, -1)

    # --- feedback

    def _feedback(
        self, batch: EventBatch, ticks: list[int], nows: list[float]
    ) -> Generator[Op, Predictions | None, None]:
        ids, start, soonest = batch.ids, 0, self._soonest(None, nows)
        if self._models is not None:  # the outcome of an event may end at the next tick
            soonest = [tick + 1 for tick in ticks]
        least = _NEVER  # a tick before which nothing ends that rows from `start` on bring
        for row, tick in enumerate(ticks):
            if tick > self._tick:
                if least <= tick:
                    yield from self._take_labels(batch, ids, ticks, nows, start, row)
                    start, least = row, _NEVER
                if self._is_due(tick, -1):
                    yield from self._take_labels(batch, ids, ticks, nows, start, row)
                    start, least = row, _NEVER
                    self._row, self._now = row, nows[row]
                    if fates := self._pass(tick, -1, row):
                        yield Learn.of(fates)
                    self._tick = tick
            least = min(least, soonest[row])
        yield from self._take_labels(batch, ids, ticks, nows, start, len(batch))

    def _take_labels(
        self, batch: EventBatch, ids: list[str], ticks: list[int], nows: list[float], start: int,
        stop: int,
    ) -> Generator[Op, Predictions | None, None]:  # fmt: skip
        """Take the labels of rows; have learned what is to be learned now."""
        if start == stop:
            return
        part = batch if stop - start == len(batch) else batch[start:stop]
        if whole := self._joined_at_once(part, ids[start:stop], nows[start:stop], start):
            self._tick = max(self._tick, ticks[stop - 1])
            yield whole
            return
        fates: list[Fate] = []
        for row in range(start, stop):
            self._row, self._now = row, nows[row]
            self._tick = max(ticks[row], self._tick)
            held = self._given(batch, row)
            if held is None:
                self._count("unusable")
                self._reject(ids[row], batch.origins[row], None, "feedback without a label")
            else:
                fates += self._label(ids[row], held, row)
        if fates:
            yield Learn.of(fates)

    def _joined_at_once(
        self, part: EventBatch, ids: list[str], nows: list[float], first: int
    ) -> Learn | None:
        """Join labels of which each is the first one of an event that waits; else return None.

        `first` is the row of the first of them.
        """
        policy, n = self.policy, len(part)
        if (
            policy.repeats != "first"
            or policy.method != "wait"
            or policy.negative_share < 1.0
            or part.labelled < n
            or len(self._closed) + n > policy.max_events
            or len(found := set(ids)) < n
            or not self._open.keys() >= found
        ):
            return None
        numbers = self._open.take_all(ids)
        index, labels = np.array(numbers, np.int64), part.labels
        self.bytes -= int(self.waiting.sizes(index).sum())
        times = part.seconds
        if times is not None:
            delays = times - self.waiting.times(index)
            self._note_delays(delays[~np.isnan(delays)])
        self.waiting.close(index, labels)
        self._closed.put_all(ids, labels)
        if policy.keeps_learned:
            self._kept.put_all(ids, numbers)
        else:
            self._released += numbers
        forgotten = self._ticks(np.array(nows) + policy.remember, _BEFORE - 1) + 1
        self._forget_due.add_all(forgotten, ids)
        self._count("joined", n)
        self._now = nows[-1]
        weights = None if part.weights is None else [float(w) for w in part.weights]
        known: Any = labels
        return Learn(numbers, known, list(range(first, first + n)), weights)

    def _given(self, batch: EventBatch, row: int) -> _Held | None:
        """Return the label at a row; None if there is none."""
        label = batch.label(row)
        if label is None:
            return None
        source = None if batch.sources is None else batch.sources[row]
        origin = (batch.partition, max(batch.index, 0), int(batch.offsets[row]))
        return _Held(label, batch.weight(row), batch.time(row), source, origin)

    def _label(self, event_id: str, held: _Held, row: int) -> list[Fate]:
        """Take a label for an event; return what is to be learned now."""
        if event_id in self._open:
            number = self._open[event_id]
            if self.policy.repeats == "first":
                return self._joined(number, held, row)
            known = self._held.get(number)
            self._held.put(number, held if known is None else self._combined(known, held))
            return []
        if event_id in self._closed:
            return self._again(event_id, held, row)
        known = self._early.get(event_id)
        if known is None:
            policy, due = self.policy, self._event_tick + 1
            time = self._now if held.time is None else held.time
            if time > -math.inf:
                due = max(self._after(time + policy.early + policy.lateness), due)
            self._early_due.add(due, event_id)
            self._early.put(event_id, held._replace(due=due))
            while len(self._early) > policy.max_events:
                self._dangling(*self._early_due.pop_first())
        elif self.policy.repeats == "first":
            self._count("duplicates" if known.label == held.label else "corrections")
        else:
            self._early.put(event_id, self._combined(known, held)._replace(due=known.due))
        return []

    def _combined(self, known: _Held, held: _Held) -> _Held:
        """Return two labels of one event as one."""
        if self.policy.repeats == "sum":
            return held._replace(label=known.label + held.label)  # type: ignore[operator]
        self._count("duplicates" if known.label == held.label else "corrections")
        return held

    def _joined(self, number: int, held: _Held, row: int) -> list[Fate]:
        """Close an event with its label."""
        keeps = self.policy.keeps_learned
        if held.time is not None:
            asked = self.waiting.times(np.array([number]))
            self._note_delays(held.time - asked[~np.isnan(asked)])
        provisional = number in self._provisional
        kept = self._noted(number, held.label, provisional=provisional)
        event_id = self._leave(number, held.label, keep=keeps or kept)
        self._end(event_id, held.label, number if keeps else -1)
        self._count("joined")
        if provisional or self.policy.method != "wait":
            return self._revealed(number, held, row, provisional=provisional)
        weight = self._sampled(event_id, held.label, held.weight)
        return [Fate(number, held.label, weight, True, row)]

    def _again(self, event_id: str, held: _Held, row: int) -> list[Fate]:
        """Take another label of an event that is done."""
        known = self._closed[event_id]
        if known is None:
            self._count("late")
            self._reject(event_id, held.origin, held.label,
                         "its event had expired: see feedback.window_seconds")  # fmt: skip
            return []
        if known == held.label:
            self._count("duplicates")
            return []
        self._count("corrections")
        self._count("refunds", known is True and held.label is False)
        if event_id not in self._kept:
            return []
        self._closed.put(event_id, held.label)
        weight = self.policy.correction_weight * held.weight
        return [Fate(self._kept[event_id], held.label, weight, False, row)]

    def _sampled(self, event_id: str, label: Label, weight: float) -> float:
        """Return the weight that an event is learned with; 0: it is left out."""
        share = self.policy.negative_share
        if share == 1.0 or label is not False:
            return weight
        if zlib.crc32(event_id.encode()) < share * 2**32:
            return weight / share
        self._count("sampled_out")
        return 0.0

    def _leave(self, number: int, label: Label | None, *, keep: bool = False) -> str:
        """Let an event wait no longer; return its id."""
        event_id = self.waiting.event_id(number)
        self._open.take(event_id)
        if number in self._provisional:
            self._provisional.take(number)
        index = np.array([number])
        self.bytes -= int(self.waiting.sizes(index)[0])
        self.waiting.close(index, [label])
        if not keep:
            self._released.append(number)
        return event_id

    def _end(self, event_id: str, label: Label | None, number: int) -> None:
        """Remember the id of an event that is done, for a while."""
        self._closed.put(event_id, label)
        if number >= 0:
            self._kept.put(event_id, number)
        now, policy = self._now, self.policy
        due = self._after(now + policy.remember) if now > -math.inf else _BEFORE
        self._forget_due.add(due, event_id)
        while len(self._closed) > policy.max_events:
            self._forget(self._forget_due.pop_first()[1])

    def _forget(self, event_id: str) -> None:
        if event_id in self._closed:
            self._closed.take(event_id)
            if event_id in self._kept:
                number = self._kept.take(event_id)
                if number not in self._outcomes:
                    self._released.append(number)

    # --- methods against late labels: see `delay`

    def _revealed(self, number: int, held: _Held, row: int, *, provisional: bool) -> list[Fate]:
        """Return what is to be learned of an event whose label came."""
        label = held.label is True
        fates = []
        if not label:
            weight = 0.0 if provisional else held.weight * self._weights([number], label=False)[0]
            return [Fate(number, held.label, weight, True, row)]
        if provisional:
            self._count("revised")
        elif self.policy.method in ("fnw", "fnc"):
            fates.append(Fate(number, False, self._weights([number], label=False)[0], False, row))
        weight = held.weight * self._weights([number], label=True)[0]
        return [*fates, Fate(number, held.label, weight, True, row)]

    def _weights(self, numbers: list[int], *, label: bool) -> list[float]:
        """Return the weights that a method gives to events with a label."""
        if self.policy.method == "fnw":
            p = proba_true(self.waiting.predictions(numbers))
            found = fake_negative_weights(p, label=label)
        elif self._models is not None:
            found = self._models.weights(self.waiting.events(numbers), label=label)
        else:
            return [1.0] * len(numbers)
        weights: list[float] = found.tolist()
        return weights

    def _noted(self, number: int, label: Label | None, *, provisional: bool) -> bool:
        """Note a label for the auxiliary models, which learn it at the event's end."""
        if self._models is None:
            return False
        policy, time = self.policy, float(self.waiting.times(np.array([number]))[0])
        base = self._now if math.isnan(time) else time
        if base == -math.inf or len(self._outcomes) >= policy.max_events:
            self._count("outcomes_lost")
            return False
        due = self._after(base + policy.window + policy.lateness)
        self._outcome_due.add(max(due, self._tick + 1), number)
        positive = DELAYED if provisional else IMMEDIATE
        self._outcomes.put(number, positive if label is True else NEGATIVE)
        return True

    def _tell_models(self, ended: list[tuple[int, int]]) -> None:
        """Let the auxiliary models learn the outcomes of events, in order."""
        models = self._models
        if models is None or not ended:
            return
        if self._backup is not None and self._models_before is None:
            state = self._models_before = models.state()

            def back() -> None:
                self._models = ElapsedTime.from_state(state)

            self._log.append(back)
        numbers, outcomes = map(list, zip(*ended, strict=True))
        lost = models.learn(self.waiting.events(numbers), outcomes)
        self._count("outcomes", len(ended))
        self._count("outcomes_lost", lost)

    def _outcomes_until(self, tick: int) -> list[tuple[int, int]]:
        """Take the events with a label whose time ends by a tick, with their outcomes."""
        found = []
        for _, number in self._outcome_due.due(tick):
            found.append((number, self._outcomes.take(number)))
            if self._kept.get(self.waiting.event_id(number)) != number:
                self._released.append(number)
        return found

    def _waited(self, tick: int, row: int) -> list[Fate]:
        """Learn as negatives the events that have waited for a positive long enough."""
        numbers = [n for _, n in self._wait_due.due(tick) if self.waiting.is_open(n)]
        if not numbers:
            return []
        self._provisional.put_all(numbers, [True] * len(numbers))
        self._count("provisional", len(numbers))
        weights = self._weights(numbers, label=False)
        pairs = zip(numbers, weights, strict=True)
        return [Fate(number, False, weight, False, row) for number, weight in pairs]

    def _note_delays(self, seconds: FloatArray) -> None:
        """Count delays by their size."""
        places = 2 * np.log2(np.maximum(seconds, _SHORTEST) / _SHORTEST)
        places = np.minimum(places.astype(np.int64), _DELAYS - 1)
        for place, count in zip(*np.unique(places, return_counts=True), strict=True):
            self.delays[int(place)] += int(count)

    def _reject(self, event_id: str, origin: Origin, label: Label | None, reason: str) -> None:
        raw = msgspec.json.encode({"id": event_id, "y": label}).decode()[:1_024]
        self.rejected.append((self._row, Rejected(origin, reason, "", raw)))

    # --- time

    def _is_due(self, tick: int, number: int) -> bool:
        """Whether anything ends by a tick, or by a number of events."""
        if tick > self._tick and self._first_due <= tick:
            return True
        return number >= 0 and self.waiting.oldest() < number - self.policy.window_events

    def _pass(self, tick: int, number: int, row: int) -> list[Fate]:
        """End what is due; return what is to be learned."""
        fates: list[Fate] = []
        if tick > self._tick:
            fates += self._waited(tick, row)
            outcomes = []
            for _, ended in self._due.due(tick):
                if self.waiting.is_open(ended):
                    fates += self._expired(ended, row)
                    if ended not in self._outcomes:
                        outcomes.append((ended, NEGATIVE))
            self._tell_models(outcomes + self._outcomes_until(tick))
            for _, event_id in self._forget_due.due(tick):
                self._forget(event_id)
        if number >= 0:
            while (oldest := self.waiting.oldest()) < number - self.policy.window_events:
                fates += self._expired(oldest, row)
        return fates

    def _dangling(self, due: int, event_id: str) -> None:
        """End a label that waits for its event since it was put there to end at `due`."""
        held = self._early.get(event_id)
        if held is None or held.due != due:
            return
        self._early.take(event_id)
        self._count("dangling")
        self._reject(event_id, held.origin, held.label,
                     "no event with this id came: see feedback.early_seconds")  # fmt: skip

    def _expired(self, number: int, row: int) -> list[Fate]:
        """End an event that got no label in its time, or several."""
        if number in self._held:
            return self._joined(number, self._held.take(number), row)
        self._count("expired")
        policy = self.policy
        if policy.on_expiry == "label":
            assert policy.default is not None
            keeps = policy.keeps_learned
            learned = number in self._provisional
            weight = policy.default_weight
            if policy.method != "wait" and not learned:
                weight = self._weights([number], label=False)[0]
            event_id = self._leave(number, policy.default, keep=keeps)
            self._end(event_id, policy.default, number if keeps else -1)
            weight = 0.0 if learned else self._sampled(event_id, policy.default, weight)
            return [Fate(number, policy.default, weight, True, row)]
        if policy.on_expiry == "review":
            found = self.waiting.events([number]), self.waiting.predictions([number])
            self.review.append(found)
        self._end(self._leave(number, None), None, -1)
        return []

    def report(self) -> dict[str, float]:
        """Return what became of events and feedback so far, and quantiles of the delay."""
        counts = self.counts
        ended = counts.joined + counts.expired + counts.evicted
        return {
            "waiting": float(len(self)),
            "labels_waiting": float(len(self._early) + len(self._held)),
            **{name: float(value) for name, value in counts.plain().items()},
            "coverage": counts.joined / ended if ended else math.nan,
            **{f"delay.p{q}": self._delay(q / 100) for q in (50, 90, 99)},
        }

    def _delay(self, share: float) -> float:
        """Return a quantile of the delay in seconds: the upper end of its bucket, within 41%."""
        total = sum(self.delays)
        if not total:
            return math.nan
        passed = 0
        for place, count in enumerate(self.delays):
            passed += count
            if passed >= share * total:
                return _SHORTEST * 2 ** ((place + 1) / 2)
        return math.nan

    # --- state

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved policy."""
        return differences("feedback", old, self.definition(), effect="from now on")

    def amended(self, old: "Joiner") -> "Joiner":
        """Return `old` under this policy. What waits keeps the end that it was given."""
        new = Joiner.from_state(old.state())
        new.policy = self.policy
        new._clocks.idle = new._of_events.idle = self.policy.idle
        ratio = old.policy.tick / self.policy.tick
        if ratio != 1.0:
            for table in new._buckets():
                table.scale(ratio)
            new._tick, new._event_tick = (
                tick if tick == _BEFORE else math.floor(tick * ratio)
                for tick in (new._tick, new._event_tick)
            )
        if self.policy.method == "wait":
            new._wait_due.clear()
            new._wait_due.first = _NEVER
        if self._models is None:
            kept = set(new._kept.values())
            new.waiting.release([n for n in new._outcomes if n not in kept])
            new._outcomes.clear()
            new._outcome_due.clear()
            new._outcome_due.first = _NEVER
            new._models = None
        elif new._models is None:
            new._models = self._models
        return new

    def definition(self) -> dict[str, Any]:
        """Return the policy: plain JSON values."""
        return self.policy.definition()

    def state(self) -> bytes:
        """Return everything that later results depend on."""
        ids = [each for each in dict.fromkeys(self._forget_due.all()) if each in self._closed]
        kept = [[row, self._kept[each]] for row, each in enumerate(ids) if each in self._kept]
        closed = [ids, [self._closed[each] for each in ids], kept]
        early = [[event_id, *self._early[event_id]] for event_id in sorted(self._early)]
        held = [[number, *self._held[number]] for number in sorted(self._held)]
        return encoding.encode(
            {
                "schema": self.SCHEMA,
                "policy": self.definition(),
                "counts": self.counts.plain(),
                "clocks": self._clocks.state(),
                "of_events": self._of_events.state(),
                "ticks": [self._tick, self._event_tick],
                "delays": list(self.delays),
                "waiting": self.waiting.state(),
                "closed": msgspec.msgpack.encode(closed),
                "early": msgspec.msgpack.encode(early),
                "held": msgspec.msgpack.encode(held),
                "due": msgspec.msgpack.encode(self._due.plain()),
                "early_due": msgspec.msgpack.encode(self._early_due.plain()),
                "forget_due": msgspec.msgpack.encode(self._forget_due.plain()),
                **self._state_of_method(),
            }
        )

    def _state_of_method(self) -> dict[str, Any]:
        """Return what a method against late labels needs; nothing for "wait"."""
        if self.policy.method == "wait" and not self._provisional:
            return {}
        method = {
            "provisional": sorted(self._provisional),
            "wait_due": self._wait_due.plain(),
            "outcomes": sorted(self._outcomes.items()),
            "outcome_due": self._outcome_due.plain(),
            "models": None if self._models is None else self._models.state(),
        }
        return {"method": msgspec.msgpack.encode(method)}

    @classmethod
    def from_state(cls, data: bytes) -> "Joiner":
        """Build the joiner that `data` was taken from.

        Raises
        ------
        ValueError
            If the state is of another schema, or is damaged.
        """
        state = encoding.decode(data)
        if not isinstance(state, dict) or state.get("schema") != cls.SCHEMA:
            found = state.get("schema") if isinstance(state, dict) else state
            raise ValueError(
                f"state of the join has schema {found!r:.100}, this version reads {cls.SCHEMA}"
            )
        try:
            new = cls(msgspec.convert(state["policy"], Policy))
            new.counts = msgspec.convert(state["counts"], JoinCounts)
            new._clocks = Clocks.from_state(state["clocks"], new.policy.idle)
            new._of_events = Clocks.from_state(state["of_events"], new.policy.idle)
            new._tick, new._event_tick = state["ticks"]
            new.delays = list(state["delays"])
            new.waiting = Waiting.from_state(state["waiting"])
            unpack = msgspec.msgpack.decode
            ids, labels, kept = unpack(state["closed"])
            new._closed.update(zip(ids, labels, strict=True))
            new._kept.update((ids[row], number) for row, number in kept)
            for event_id, *rest in unpack(state["early"]):
                new._early[event_id] = _held(rest)
            for number, *rest in unpack(state["held"]):
                new._held[number] = _held(rest)
            for name in ("due", "early_due", "forget_due"):
                getattr(new, f"_{name}").load(unpack(state[name]))
            if "method" in state:
                method = unpack(state["method"])
                new._provisional.update(dict.fromkeys(method["provisional"], True))
                new._wait_due.load(method["wait_due"])
                new._outcomes.update(method["outcomes"])
                new._outcome_due.load(method["outcome_due"])
                if method["models"] is not None:
                    new._models = ElapsedTime.from_state(method["models"])
            for numbers, waiting, bytes_of in new.waiting.opened():
                new._open.update(zip(waiting, numbers, strict=True))
                new.bytes += bytes_of
        except (AttributeError, IndexError, KeyError, TypeError, msgspec.MsgspecError) as error:
            raise ValueError(
                f"damaged state of the join: {type(error).__name__}: {error}"
            ) from error
        return new
