"""Leave out the events that a learner raises on, without a trace in the learner's state.

A learner that raises may be half updated. `Careful` keeps an earlier state of the learner and the
events learned since. After an error it rebuilds the learner from that state and learns those events
again. The state is the one that a snapshot holds, so the learner is the one that a resume restores.
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
from midstream.engine.events.predictions import Predictions
from midstream.engine.joining.joiner import Learn
from midstream.engine.learners.learner import Learner, LearnerError, load_learner
from midstream.engine.training.joined import finished, learned
from midstream.engine.training.step import Step
from midstream.engine.training.trainer import Trainer

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
"""Number of recent events over which the share of failures is taken."""
MIN_EVENTS = 100
"""Fewest events on which a running learner is judged."""

_KEEP_EVENTS = 10_000  # most events learned again after an error
_CHEAP = 20.0  # learning time between two states, in times of the cost of a state
_SMALL = 8  # events of the piece after an error; each later piece is twice as long
_LOOKED_AT = 200  # events before a failing one that it is compared with
_SUSPECTS, _FINE = 16, 10_000  # most (feature, type) pairs that are remembered
_TRIED, _ENOUGH = 50, 10  # events around a failing one, tried to see if it alone fails
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
    """On how many recent events a learner failed: it raised, or predicted no finite number."""

    raised: int
    non_finite: int
    events: int

    @property
    def share(self) -> float:
        """Share of events that failed; 0 if there are no events."""
        return (self.raised + self.non_finite) / max(self.events, 1)


class Recent(msgspec.Struct, omit_defaults=True):
    """The recent events on which a learner failed: a part of the state of a shard.

    For one limit, the result does not depend on how the stream was cut into batches.

    Attributes
    ----------
    events
        Number of events counted.
    judged
        Position of the first event to judge: after the last verdict.
    well
        Position before which failures are forgiven.
    raised, non_finite
        Positions, among the last `RECENT_EVENTS`, of events on which the learner raised, and of
        events with a non-finite prediction.
    """

    events: int = 0
    judged: int = 0
    well: int = 0
    raised: list[int] = []
    non_finite: list[int] = []

    def count(
        self, events: int, raised: Sequence[int], non_finite: Sequence[int], limit: float
    ) -> Verdict | None:
        """Count events and the rows that failed; return a verdict if too many failed.

        Parameters
        ----------
        limit
            The share of failures that must not be exceeded; 1: never exceeded.
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

    def start_over(self) -> None:
        """Judge only from here on: the model is another one."""
        self.judged = self.well = self.events
        self.raised, self.non_finite = [], []

    def forgive(self) -> None:
        """Forgive all failures so far."""
        self.well = self.events

    def now(self, verdict: Verdict, limit: float) -> Verdict:
        """Return the present verdict if it exceeds the limit, else `verdict`."""
        return self.last if self.last.share > limit else verdict

    @property
    def last(self) -> Verdict:
        """The verdict over the recent events, without those before `well`."""
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
    """The result of a batch.

    Attributes
    ----------
    step, batch
        The step over the events that were learned, and these events.
    rows
        Their rows in the given batch.
    raised
        The errors of the learner, by row of the given batch.
    refused
        The events that were not admitted.
    """

    step: Step
    batch: EventBatch
    rows: IntArray
    raised: dict[int, LearnerError]
    refused: list[Rejected]


class Careful:
    """Steps trainers over batches and leaves out the events that the learner raises on.

    Parameters
    ----------
    modules
        Modules besides River whose classes and functions a learner's state may hold.
    timer
        Returns seconds; decides when taking a state pays. No result depends on it.
    """

    def __init__(
        self, modules: Collection[str] = (), *, timer: Callable[[], float] = time.perf_counter
    ) -> None:
        self._modules = modules
        self._timer = timer
        self._state: bytes | None = None
        self._since: list[EventBatch] = []  # batches learned after `_state`, with predictions
        self._events = 0  # number of events in `_since`
        self._worked = 0.0  # seconds it took to learn them
        self._cost = 0.0  # seconds to make and read a state
        self._suspects: dict[tuple[str, Any], list[int]] = {}  # counts: raised, did not raise
        self._fine: set[tuple[str, Any]] = set()

    def keep(self, state: bytes) -> None:
        """Keep the state that the learner of the next step has now."""
        self._state, self._since, self._events, self._worked = state, [], 0, 0.0

    def forget(self) -> None:
        """Drop what is kept, because the learner was changed elsewhere."""
        self._state, self._since, self._events, self._worked = None, [], 0, 0.0

    def step(self, trainer: Trainer, given: EventBatch) -> Tried:
        """Admit, predict, score and learn a batch, except the events that the learner raises on.

        Raises
        ------
        ForgetfulError
            If the learner raises on events that it learned before.
        """
        batch, refused = trainer.admit(given)
        if (
            self._state is None
            or self._events + len(batch) > _KEEP_EVENTS
            or self._worked > _CHEAP * self._cost
        ):
            self._keep(trainer)
            self._back(trainer)
        if trainer.joiner is not None:
            return self._joined(trainer, given, batch, refused)
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
            except LearnerError as error:  # unscorable: only the learner changed
                odd = int(rows[error.row])
                # The events after it were learned from another state.
                raised = {row: found for row, found in raised.items() if row < odd}
                raised[odd] = error
                rows, rest = _without(batch, raised)
                self._state, self._since = before[0], list(before[1])
                self._back(trainer)
        at = rows_of(batch, given)
        found = {int(at[row]): raised[row] for row in sorted(raised)}
        return Tried(step, rest, at[rows], found, refused)

    def _joined(
        self, trainer: Trainer, given: EventBatch, batch: EventBatch, refused: list[Rejected]
    ) -> Tried:
        """Step a trainer whose labels come later: after an error, without the row at fault."""
        raised: dict[int, LearnerError] = {}
        rows, rest = np.arange(len(batch)), batch
        while True:
            try:
                parts = learned(trainer, rest, undoable=True)
                break
            except LearnerError as error:
                assert trainer.joiner is not None
                trainer.joiner.undo()
                raised[int(rows[error.row])] = error
                rows, rest = _without(batch, raised)
                self._back(trainer)
        step = finished(trainer, rest, parts)
        for part in parts:
            kept = part.learned
            if isinstance(part.op, Learn):  # its events were predicted when they came
                kept = kept[:]
                kept.is_feedback = True
            self._since.append(kept)
        self._events += sum(len(part.learned) for part in parts)
        self._worked = self._cost * _CHEAP * self._events / _KEEP_EVENTS
        at = rows_of(batch, given)
        found = {int(at[row]): raised[row] for row in sorted(raised)}
        if step.events is not None:
            rows = rows[rows_of(step.events, rest)] if len(step.events) else rows[:0]
        return Tried(step, rest if step.events is None else step.events, at[rows], found, refused)

    def _learn(
        self, trainer: Trainer, batch: EventBatch
    ) -> tuple[Predictions, dict[int, LearnerError]]:
        """Predict and learn a batch; return the predictions, and the errors by row."""
        found: list[Predictions] = []
        raised: dict[int, LearnerError] = {}
        odd, at, size = self._odd_rows(trainer.learner, batch, 0), 0, len(batch)
        while at < len(batch) or not found:
            alone = bool(odd) and odd[0] == at
            stop = at + 1 if alone else min(odd[0] if odd else len(batch), at + size)
            if alone:
                odd.popleft()
                if self._worked >= self._cost / 2:  # the state would be read again anyway
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
                if self._worked > self._cost:  # avoid learning this again at the next error
                    self._keep(trainer)
                    self._back(trainer)
                if self._suspect(trainer.learner, batch, bad, raised):
                    odd = self._odd_rows(trainer.learner, batch, bad + 1)
                at, size = bad + 1, size if alone else _SMALL
            else:
                if alone:
                    self._acquit(batch.dicts()[at])
                at, size = stop, size if alone else 2 * size
        return Predictions.joined(found), raised

    def _learned(self, trainer: Trainer, part: EventBatch) -> Predictions:
        begun = self._timer()
        if part.is_feedback:  # its events were predicted when they came
            predictions = Predictions([])
            trainer.learner.learn(part)
        else:
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
        self._cost = min(cost, 1.1 * self._cost) if self._cost else cost  # damps one slow timing

    def _back(self, trainer: Trainer) -> None:
        """Restore the learner from the kept state, and learn the events since again."""
        assert self._state is not None, "an error before anything was kept"
        learner, since = trainer.learner, self._since
        trainer.learner = load_learner(
            learner.kind, self._state, task=learner.task, modules=self._modules
        )
        self.keep(self._state)
        for part in since:
            self._again(trainer, part)

    # --- which events resemble those that the learner raised on

    def _odd_rows(self, learner: Learner, batch: EventBatch, start: int) -> deque[int]:
        """Return the rows, from `start` on, with a (feature, type) pair that is suspect."""
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
        """Remember what is unusual in an event that raised; return whether that is new."""
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
        if not good and len(new) >= len(x):  # nothing to compare with: all of it looks new
            return False
        for pair in new[: _SUSPECTS - len(self._suspects)]:
            self._suspects[pair] = [1, 0]
        return bool(new)

    def _acquit(self, x: Features) -> None:
        """Note that an event with a suspect value was learned."""
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
    """Return the rows of `batch` that hold the events of `part`."""
    if len(part) == len(batch):
        return np.arange(len(batch))
    rows: IntArray = np.searchsorted(batch.numbers, part.numbers)
    return rows


def _without(batch: EventBatch, rows: Collection[int]) -> tuple[IntArray, EventBatch]:
    """Return the remaining rows, and a batch of them."""
    left = np.delete(np.arange(len(batch)), list(rows))
    return left, batch.take(left.tolist())


def _in_columns(learner: Learner, batch: EventBatch) -> bool:
    return learner.needs == "columns" and batch.columns is not None


def others(learner: Learner, batch: EventBatch, row: int, learned: int) -> Verdict:
    """Try events around one that a learner raised on; do not use the learner afterwards.

    Parameters
    ----------
    learned
        Number of events that it learned before.
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
