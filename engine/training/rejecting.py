"""Events that a learner raises on are left out, and leave no trace in what it learns.

A learner that raises may be half updated. `Careful` keeps a state of it, and the events that it has
learned since: after an error the learner is built from that state and learns those again. A state
is what a snapshot holds, so the learner is then the one that a resume would give.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Features, IntArray, Rejected
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.learner import Learner, LearnerError, load_learner
from midstream.engine.training.trainer import Step, Trainer

__all__ = [
    "MIN_EVENTS",
    "RECENT_EVENTS",
    "Careful",
    "ForgetfulError",
    "Recent",
    "Tried",
    "Verdict",
    "others",
    "rows_of",
]

RECENT_EVENTS = 1_000
"""Events over which the share of those that the learner fails on is taken."""
MIN_EVENTS = 100
"""The fewest of them by which a learner is judged while it runs."""

_KEEP_EVENTS = 10_000  # most that are learned again for one that the learner raises on
_CHEAP = 20.0  # what is learned between two states takes so many times as long as a state
_SMALL = 8  # events of the piece after an error; each piece after it is twice as long
_LOOKED_AT = 200  # events before one that raises with which it is compared
_SUSPECTS, _FINE = 16, 10_000  # kinds of values that are remembered
_TRIED, _ENOUGH = 50, 10  # events around one that raises, by which one sees whether it is odd
_MISSING: Any = object()


class ForgetfulError(LearnerError):
    """A learner raised on an event that it had learned before from the same state."""

    def __init__(self, batch: EventBatch, error: LearnerError) -> None:
        super().__init__(error.row, error.cause, error.hint)
        self.args = (
            f"the learner raised on {batch.place}:{batch.origins[error.row][2]}, which it had "
            f"learned before from the same state ({error}): it does not do the same twice",
        )


class Verdict(NamedTuple):
    """Of how many recent events a learner failed: raised, or predicted no finite number."""

    raised: int
    non_finite: int
    events: int

    @property
    def share(self) -> float:
        """The share of events that it failed on; 0 where there are none."""
        return (self.raised + self.non_finite) / max(self.events, 1)


class Recent(msgspec.Struct, omit_defaults=True):
    """On which of the recent events a learner failed: a part of the state of a shard.

    The same however the stream was cut, as long as the limit is the same.

    Attributes
    ----------
    events
        How many were counted.
    judged
        The position from which on they are judged: after the last verdict.
    well
        The position before which all is forgiven.
    raised, non_finite
        The positions, among the last `RECENT_EVENTS`, of events on which the learner raised, and
        for which it predicted what is no finite number.
    """

    events: int = 0
    judged: int = 0
    well: int = 0
    raised: list[int] = []
    non_finite: list[int] = []

    def count(
        self, events: int, raised: Sequence[int], non_finite: Sequence[int], limit: float
    ) -> Verdict | None:
        """Count events, of which some rows were failed on; return the verdict if it is too many.

        Parameters
        ----------
        limit
            The share that is too much once it is exceeded; 1: nothing is.
        """
        at = self.events
        self.events += events
        if not (self.raised or self.non_finite or raised or non_finite):
            return None
        verdict = None
        failed = [(at + row, self.raised) for row in raised]
        failed += [(at + row, self.non_finite) for row in non_finite]
        coming = deque(sorted(failed, key=itemgetter(0)))
        while True:
            # The share exceeds the limit at an event that was failed on, or at the first judged.
            due = self.judged + MIN_EVENTS - 1
            if coming and not at <= due < coming[0][0]:
                at, found = coming.popleft()
                found.append(at)
            elif at <= due < self.events:
                at = due
            else:
                break
            at += 1
            self._forget(at)
            share = self._since(self.judged, at)
            if share.events >= MIN_EVENTS and share.share > limit:
                verdict, self.judged = share, at
        self._forget(self.events)
        return verdict

    def begin_anew(self) -> None:
        """Judge from here on: it is another model."""
        self.judged = self.well = self.events
        self.raised, self.non_finite = [], []

    def forgive(self) -> None:
        """Take what has been for well."""
        self.well = self.events

    def now(self, verdict: Verdict, limit: float) -> Verdict:
        """Return how it is now, after a verdict, or the verdict if it has become better."""
        return self.last if self.last.share > limit else verdict

    @property
    def last(self) -> Verdict:
        """Of the recent events, those before `well` left out."""
        return self._since(self.well, self.events)

    def _since(self, position: int, stop: int) -> Verdict:
        first = max(position, stop - RECENT_EVENTS)
        raised, non_finite = (
            len(found) - bisect_left(found, first) for found in (self.raised, self.non_finite)
        )
        return Verdict(raised, non_finite, stop - first)

    def _forget(self, stop: int) -> None:
        for found in (self.raised, self.non_finite):
            if found and found[0] < stop - RECENT_EVENTS:
                del found[: bisect_left(found, stop - RECENT_EVENTS)]


class Tried(NamedTuple):
    """What a batch gave.

    Attributes
    ----------
    step, batch
        Of the events that were learned.
    rows
        Theirs in the batch that was given.
    raised
        By row in that, what the learner raised.
    refused
        What was not admitted.
    """

    step: Step
    batch: EventBatch
    rows: IntArray
    raised: dict[int, LearnerError]
    refused: list[Rejected]


class Careful:
    """Steps trainers over batches, and leaves out the events that the learner raises on.

    Parameters
    ----------
    modules
        Modules besides River whose classes and functions a learner's state may hold.
    timer
        Tells seconds, by which states are kept no more often than pays; no result depends on it.
    """

    def __init__(
        self, modules: Collection[str] = (), *, timer: Callable[[], float] = time.perf_counter
    ) -> None:
        self._modules = modules
        self._timer = timer
        self._state: bytes | None = None
        self._since: list[EventBatch] = []  # learned after it
        self._events = 0  # of these
        self._worked = 0.0  # seconds that they took
        self._cost = 0.0  # seconds that a state takes, to be made and read
        self._suspects: dict[tuple[str, Any], list[int]] = {}  # raised, and did not
        self._fine: set[tuple[str, Any]] = set()

    def keep(self, state: bytes) -> None:
        """Take the state that the learner of the next step has now."""
        self._state, self._since, self._events, self._worked = state, [], 0, 0.0

    def forget(self) -> None:
        """Drop what is kept: the learner has gone on without us."""
        self._state, self._since, self._events, self._worked = None, [], 0, 0.0

    def step(self, trainer: Trainer, given: EventBatch) -> Tried:
        """Admit, predict, score and learn a batch, but for the events that the learner raises on.

        Raises
        ------
        ForgetfulError
            If the learner raises on what it has learned before.
        """
        batch, refused = trainer.admit(given)
        if (
            self._state is None
            or self._events + len(batch) > _KEEP_EVENTS
            or self._worked > _CHEAP * self._cost
        ):
            self._keep(trainer)
            self._back(trainer)
        assert self._state is not None
        before = self._state, list(self._since)
        raised: dict[int, LearnerError] = {}
        rows, rest = np.arange(len(batch)), batch
        while True:
            predictions, more = self._learn(trainer, rest)
            raised |= {int(rows[row]): error for row, error in more.items()}
            rows, rest = _without(batch, raised) if more else (rows, rest)
            try:
                step = trainer.step(rest, predictions)
                break
            except LearnerError as error:  # a prediction cannot be scored: nothing was
                odd = int(rows[error.row])
                # What came after it was learned from another state.
                raised = {row: found for row, found in raised.items() if row < odd}
                raised[odd] = error
                rows, rest = _without(batch, raised)
                self._state, self._since = before[0], list(before[1])
                self._back(trainer)
        at = rows_of(batch, given)
        found = {int(at[row]): raised[row] for row in sorted(raised)}
        return Tried(step, rest, at[rows], found, refused)

    def _learn(
        self, trainer: Trainer, batch: EventBatch
    ) -> tuple[Predictions, dict[int, LearnerError]]:
        """Predict and learn a batch; return what the learner raised, by row, beside the rest."""
        found: list[Predictions] = []
        raised: dict[int, LearnerError] = {}
        odd, at, size = self._odd_rows(trainer.learner, batch, 0), 0, len(batch)
        while at < len(batch) or not found:
            alone = bool(odd) and odd[0] == at
            stop = at + 1 if alone else min(odd[0] if odd else len(batch), at + size)
            if alone:
                odd.popleft()
                if self._worked >= self._cost / 2:  # it is read again in any case
                    self._keep(trainer)
            part = batch if stop - at == len(batch) else batch[at:stop]
            try:
                found.append(self._learned(trainer, part))
            except LearnerError as error:
                bad = at + error.row
                raised[bad] = error
                self._back(trainer)
                if bad > at:
                    found.append(self._again(trainer, batch[at:bad]))
                if self._worked > self._cost:  # lest it be learned again for the next one, too
                    self._keep(trainer)
                    self._back(trainer)
                if self._suspect(trainer.learner, batch, bad, raised):
                    odd = self._odd_rows(trainer.learner, batch, bad + 1)
                at, size = bad + 1, size if alone else _SMALL
            else:
                if alone:
                    self._acquit(batch.dicts()[at])
                at, size = stop, size if alone else 2 * size
        return _joined(found), raised

    def _learned(self, trainer: Trainer, part: EventBatch) -> Predictions:
        begun = self._timer()
        predictions = trainer.learner.predict_learn(part)
        self._worked += self._timer() - begun
        self._since.append(part)
        self._events += len(part)
        return predictions

    def _again(self, trainer: Trainer, part: EventBatch) -> Predictions:
        try:
            return self._learned(trainer, part)
        except LearnerError as error:
            raise ForgetfulError(part, error) from error

    def _keep(self, trainer: Trainer) -> None:
        begun = self._timer()
        self.keep(trainer.learner.state())
        cost = 2 * (self._timer() - begun)
        self._cost = min(cost, 1.1 * self._cost) if self._cost else cost  # one may be disturbed

    def _back(self, trainer: Trainer) -> None:
        """Put the learner back to where it was after what is kept."""
        assert self._state is not None, "an error before anything was kept"
        learner, since = trainer.learner, self._since
        trainer.learner = load_learner(
            learner.kind, self._state, task=learner.task, modules=self._modules
        )
        self.keep(self._state)
        for part in since:
            self._again(trainer, part)

    # --- which events look like those that the learner raised on

    def _odd_rows(self, learner: Learner, batch: EventBatch, start: int) -> deque[int]:
        """Return the rows, from one on, with a value of a kind that the learner raised on."""
        if not self._suspects or _in_columns(learner, batch):
            return deque()
        dicts = batch.dicts()[start:]
        rows: set[int] = set()
        for name, kind in self._suspects:
            found = (i for i, x in enumerate(dicts, start) if type(x.get(name, _MISSING)) is kind)
            rows.update(found)
        return deque(sorted(rows))

    def _suspect(
        self, learner: Learner, batch: EventBatch, bad: int, raised: Collection[int]
    ) -> bool:
        """Remember what is unlike other events in one that was raised on; say if it is new."""
        if _in_columns(learner, batch):
            return False
        dicts = batch.dicts()
        x = dicts[bad]
        known = [pair for pair in self._suspects if _kind(x, pair[0]) is pair[1]]
        for pair in known:
            self._suspects[pair][0] += 1
        if known or len(self._suspects) >= _SUSPECTS:
            return False
        good = [dicts[i] for i in range(max(0, bad - _LOOKED_AT), bad) if i not in raised]
        if len(self._fine) > _FINE:
            self._fine.clear()
        self._fine.update((name, type(value)) for other in good for name, value in other.items())
        new: list[tuple[str, Any]] = list(x.items())
        new = [(k, type(v)) for k, v in new if (k, type(v)) not in self._fine]
        if good:
            always = set(good[0]).intersection(*good)
            new += [(name, type(_MISSING)) for name in sorted(always - set(x))]
        if not good and len(new) >= len(x):  # all of it looks new to us
            return False
        for pair in new[: _SUSPECTS - len(self._suspects)]:
            self._suspects[pair] = [1, 0]
        return bool(new)

    def _acquit(self, x: Features) -> None:
        """Take note that an event was learned although it looked odd."""
        for pair, (hits, misses) in list(self._suspects.items()):
            if _kind(x, pair[0]) is not pair[1]:
                continue
            self._suspects[pair][1] += 1
            if misses >= 2 * hits:
                del self._suspects[pair]
                self._fine.add(pair)


def _kind(x: Features, name: str) -> type:
    return type(x.get(name, _MISSING))


def rows_of(part: EventBatch, batch: EventBatch) -> IntArray:
    """Return the rows of a batch at which the events of a part of it are."""
    if len(part) == len(batch):
        return np.arange(len(batch))
    rows: IntArray = np.searchsorted(batch.numbers, part.numbers)
    return rows


def _without(batch: EventBatch, rows: Collection[int]) -> tuple[IntArray, EventBatch]:
    """Return which rows are left, and a batch of them."""
    left = np.delete(np.arange(len(batch)), list(rows))
    return left, batch.take(left.tolist())


def _in_columns(learner: Learner, batch: EventBatch) -> bool:
    return learner.needs == "columns" and batch.columns is not None


def _joined(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions for the pieces of a batch as those for all of it."""
    if len(parts) == 1:
        return parts[0]
    arrays: list[Any] = [part.array for part in parts]
    values: Any
    if any(array is None for array in arrays) or len({array.dtype for array in arrays}) > 1:
        values = [value for part in parts for value in part.values]
    else:
        values = np.concatenate(arrays)
    tables = [part.table for part in parts]
    first = tables[0]
    if first is not None and all(t is not None and t.classes == first.classes for t in tables):
        return Predictions(
            values, Table(first.classes, np.concatenate([t.values for t in tables if t]))
        )
    if all(part.probas is None for part in parts):
        return Predictions(values)
    return Predictions(values, [row for part in parts for row in (part.probas or [{}] * len(part))])


def others(learner: Learner, batch: EventBatch, row: int, learned: int) -> Verdict:
    """Try events around one that a learner raised on; the learner is not to be used afterwards.

    Parameters
    ----------
    learned
        How many events it has learned before.
    """
    raised = 0
    after = batch[row + 1 : row + 1 + _TRIED]
    for i in range(len(after)):
        try:
            learner.predict_learn(after[i : i + 1])
        except LearnerError:
            raised += 1
    before = min(learned, _TRIED) if len(after) < _ENOUGH else 0
    return Verdict(raised, 0, len(after) + before)
