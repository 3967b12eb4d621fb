"""Evaluation with labels that come later, as River's `progressive_val_score(..., delay=...)`."""

import heapq
import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
import numpy as np

from midstream.connectors.input import InputError
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Rejected
from midstream.engine.events.predictions import Predictions
from midstream.engine.events.rules import BadValueError, TimeUnit, seconds_of
from midstream.engine.learners.learner import LearnerError, load_learner
from midstream.engine.metrics.prequential import Prequential
from midstream.engine.shard.outcome import EventError
from midstream.engine.training.rejecting import others, rows_of
from midstream.engine.training.step import Step
from midstream.engine.training.trainer import Trainer
from midstream.flows.config.factory import model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError

__all__ = ["Answered", "Delay", "DelayedTrainer", "prepared"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LAST = 1_000  # labels learned in one piece after the last event
_KEEP_EVENTS = 10_000  # most events learned again after an error


class Delay(NamedTuple):
    """How much later than its event a label comes.

    Attributes
    ----------
    rows
        After so many later events; 0: by time.
    seconds
        After so many seconds of event time.
    field
        The field that holds the time of the label; "": none.
    """

    rows: int = 0
    seconds: float = 0.0
    field: str = ""

    @classmethod
    def parse(cls, text: str) -> "Delay":
        """Read ``100`` (rows), ``3600s``, ``90m``, ``2h``, ``1d`` or ``field:NAME``.

        Raises
        ------
        ConfigError
            If it is none of these.
        """
        if text.startswith("field:") and len(text) > len("field:"):
            return cls(field=text.removeprefix("field:"))
        if re.fullmatch(r"[0-9]{1,12}", text) and int(text) > 0:
            return cls(rows=int(text))
        found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([smhd])", text)
        if found and float(found[1]) > 0:
            return cls(seconds=float(found[1]) * _SECONDS[found[2]])
        raise ConfigError(
            f"--delay: found {text!r:.100}; allowed: a number of rows, as in 100; a time, as in "
            "3600s, 90m, 2h or 1d; or field:NAME, the field with the time of the label"
        )


def prepared(settings: Settings, delay: Delay) -> Settings:
    """Return settings without [feedback], which read the field with the time of the label.

    Raises
    ------
    ConfigError
        If the field has another use.
    """
    settings = msgspec.structs.replace(settings, feedback=None)
    name, fields = delay.field, settings.input.fields
    if not name:
        return settings
    if fields is not None:
        if name in fields.roles:
            raise ConfigError(
                f"--delay: the field {name!r} has another use in [input.fields]; allowed: a field "
                "of its own"
            )
        features = fields.features
        fields = msgspec.structs.replace(
            fields,
            exclude=[other for other in fields.exclude if other != name],
            features=None if features is None else list(dict.fromkeys([*features, name])),
        )
    schema = {name: "number", **settings.features} if settings.features else {}
    source = msgspec.structs.replace(settings.input, fields=fields)
    return msgspec.structs.replace(settings, input=source, features=schema)


@dataclass(eq=False, slots=True)
class _Block:
    """A batch of events, and what became of them.

    `open` counts the labels that are to come; `failed` has the rows on which the learner raised,
    `odd` those with a prediction that is not finite.
    """

    batch: EventBatch
    open: int
    parts: list[Predictions] = field(default_factory=list)
    predictions: Predictions = field(default_factory=lambda: Predictions([]))
    failed: set[int] = field(default_factory=set)
    odd: set[int] = field(default_factory=set)


class Answered(NamedTuple):
    """The result of a batch.

    Attributes
    ----------
    batch
        The events that were predicted, without their labels.
    step
        What was scored and learned meanwhile.
    errors
        The errors of the learner, on these events or on earlier ones whose labels came now.
    raised, odd
        The rows of the given batch at which the learner raised, and with a prediction that is not
        finite.
    refused
        The events that were not admitted.
    """

    batch: EventBatch
    step: Step
    errors: list[EventError]
    raised: list[int]
    odd: list[int]
    refused: list[Rejected]


class DelayedTrainer:
    """Predicts events as they come, and has a trainer learn each when its label has come.

    Before an event is predicted, all labels are learned whose time has come by then, in the order
    of their times. The rest follows at the end. The trainer scores in the order of the labels.

    Parameters
    ----------
    trainer
        Without a join.
    delay
        How much later labels come.

    Attributes
    ----------
    by_prediction
        The same metrics in the order of the events.
    """

    def __init__(self, trainer: Trainer, settings: Settings, delay: Delay) -> None:
        self.trainer = trainer
        metrics = settings.metrics
        self.by_prediction = Prequential(
            trainer.task, metrics.names, window=metrics.window, fading=metrics.fading
        )
        self._delay = delay
        fields = settings.input.fields
        self._unit: TimeUnit = "auto" if fields is None else fields.time_unit
        self._dates = fields is not None
        self._rejects = settings.model.on_error == "reject"
        self._modules = model_modules(settings)
        self._pending: list[tuple[float, int, _Block, int]] = []  # a heap of labels, by time
        self._blocks: deque[_Block] = deque()  # not all of whose labels are settled
        self._answers: list[tuple[_Block, list[int]]] = []  # learned, not scored yet
        self._errors: list[EventError] = []
        self._raised: list[int] = []
        self._at = 0  # the row of the given batch
        self._asked = 0
        self._state = b""  # of the learner, with what it learned since
        self._since: list[EventBatch] = []

    def step(self, given: EventBatch) -> Answered:
        """Predict a batch, and learn the labels that come meanwhile.

        Raises
        ------
        EventError
            If the learner raises, and such events are not to be rejected.
        InputError
            If an event lacks its time, or has a label with a time that is none.
        """
        batch, refused = self.trainer.admit(given)
        at = rows_of(batch, given).tolist()
        batch, asked, due = self._timed(batch)
        if self._rejects and (not self._state or sum(map(len, self._since)) > _KEEP_EVENTS):
            self._keep()
        labelled = (~batch.without_label()).tolist()
        block = _Block(batch, sum(labelled))
        start = 0
        for row, time in enumerate(asked):
            self._at = at[row]
            if self._pending and self._pending[0][0] <= time:
                self._predict(block, start, row)
                start = row
                self._learn(self._due(time))
            if labelled[row]:
                heapq.heappush(self._pending, (due[row], self._asked, block, row))
            self._asked += 1
        self._predict(block, start, len(batch))
        step = self._score(block)
        odd = [at[row] for row in sorted(block.odd)]
        return self._answered(step.events or EventBatch([], []), step, odd, refused)

    def close(self) -> Answered:
        """Learn the labels that are left, in the order of their times.

        Raises
        ------
        EventError
            As for `step`.
        """
        while self._pending:
            left = range(min(len(self._pending), _LAST))
            self._learn([heapq.heappop(self._pending)[2:] for _ in left])
        nothing = EventBatch([], [])
        return self._answered(nothing, self._score(None), [], [])

    def _answered(
        self, batch: EventBatch, step: Step, odd: list[int], refused: list[Rejected]
    ) -> Answered:
        found = Answered(batch, step, self._errors, sorted(set(self._raised)), odd, refused)
        self._errors, self._raised = [], []
        return found

    # --- time

    def _timed(self, batch: EventBatch) -> tuple[EventBatch, list[float], list[float]]:
        """Return the events without the time of the label, their times and those of the labels."""
        delay, n = self._delay, len(batch)
        if delay.rows:
            first = self._asked
            return (
                batch,
                [float(i) for i in range(first, first + n)],
                [float(i + delay.rows) for i in range(first, first + n)],
            )
        asked = batch.times or [None] * n
        if None in asked:
            row = asked.index(None)
            raise InputError(
                f"{_where(batch, row)}: the event has no time, which --delay by time needs; "
                "input.fields.time names its field"
            )
        times: list[float] = asked  # type: ignore[assignment]
        if not delay.field:
            return batch, times, [time + delay.seconds for time in times]
        batch, values = _without(batch, delay.field)
        due = []
        for row, value in enumerate(values):
            try:
                time = seconds_of(value, self._unit, dates=self._dates)
            except BadValueError as error:
                raise InputError(f"{_where(batch, row)}: {delay.field}: {error}") from None
            due.append(math.inf if time is None else time)  # it comes at the end
        return batch, times, due

    def _due(self, time: float) -> list[tuple[_Block, int]]:
        due = []
        while self._pending and self._pending[0][0] <= time:
            due.append(heapq.heappop(self._pending)[2:])
        return due

    # --- the learner

    def _predict(self, block: _Block, start: int, stop: int) -> None:
        until = stop
        while start < stop:
            part = block.batch if until - start == len(block.batch) else block.batch[start:until]
            try:
                found = self.trainer.learner.predict(part)
                self.trainer.check_predictions(part, found)
            except LearnerError as error:
                at = start + error.row
                self._reject(block, at, error)
                block.failed.add(at)
                if at == start:
                    block.parts.append(Predictions([None]))
                    start += 1
                until = at if at > start else stop
                continue
            block.parts.append(found)
            start, until = until, stop
            while start in block.failed:
                block.parts.append(Predictions([None]))
                start += 1

    def _learn(self, answers: Sequence[tuple[_Block, int]]) -> None:
        for _, same in groupby(answers, key=lambda answer: id(answer[0])):
            pairs = list(same)
            block, rows = pairs[0][0], [row for _, row in pairs]
            block.open -= len(rows)
            rows = [row for row in rows if row not in block.failed]
            while rows:
                part = block.batch.take(rows)
                try:
                    self.trainer.learner.learn(part)
                except LearnerError as error:
                    self._reject(block, rows[error.row], error)
                    block.failed.add(rows[error.row])
                    self._back(part[: error.row])
                    done, rows = rows[: error.row], rows[error.row + 1 :]
                else:
                    if self._rejects:
                        self._since.append(part)
                    done, rows = rows, []
                if done:
                    self._answers.append((block, done))

    def _reject(self, block: _Block, row: int, error: LearnerError) -> None:
        if not self._rejects:
            around = others(self.trainer.learner, block.batch, row, self.trainer.learned)
            raise EventError.of(block.batch, row, error, around) from error
        self._errors.append(EventError.of(block.batch, row, error))
        self._raised.append(self._at)

    def _keep(self) -> None:
        self._state, self._since = self.trainer.learner.state(), []

    def _back(self, part: EventBatch) -> None:
        """Restore the learner, which may be half updated, and have it learn what it had."""
        learner = self.trainer.learner
        self.trainer.learner = load_learner(
            learner.kind, self._state, task=learner.task, modules=self._modules
        )
        for each in [*self._since, *([part] if len(part) else [])]:
            self.trainer.learner.learn(each)
        self._keep()

    # --- the scores

    def _score(self, block: _Block | None) -> Step:
        """Score the labels that came, and return what was done."""
        total = Step(Predictions([]), np.zeros(0), [])
        if block is not None and len(block.batch):
            block.predictions = Predictions.joined(block.parts)
            block.parts = []
            kept = [row for row in range(len(block.batch)) if row not in block.failed]
            part, found = block.batch, block.predictions
            if len(kept) < len(part):
                part, found = part.take(kept), found.take(np.array(kept, np.int64))
            part = part.with_labels([None] * len(part))
            total = self.trainer.observe(part, found)
            total.events = part
            block.odd = {kept[row] for row in total.odd}
            self._blocks.append(block)
        answers, self._answers = self._answers, []
        for _, same in groupby(answers, key=lambda answer: id(answer[0])):
            pieces = list(same)
            of, rows = pieces[0][0], [row for _, piece in pieces for row in piece]
            scored = [row for row in rows if row not in of.odd]
            step = self.trainer.observe_labels(
                of.batch.take(scored),
                of.predictions.take(np.array(scored, np.int64)),
                of.batch.take(rows),
            )
            total.joined += step.joined
            total.alarms += step.alarms
            total.too_large += step.too_large
        while self._blocks and not self._blocks[0].open:
            self._settle(self._blocks.popleft())
        return total

    def _settle(self, block: _Block) -> None:
        """Score a block, all of whose labels have come, in the order of its events."""
        left = block.failed | block.odd
        rows = [row for row in range(len(block.batch)) if row not in left]
        found = block.predictions.take(np.array(rows, np.int64))
        labels: list[Any] = [block.batch.labels[row] for row in rows]
        self.by_prediction.update(labels, found.values, found.scores)


def _where(batch: EventBatch, row: int) -> str:
    return f"{batch.place}:{batch.offsets[row]}"


def _without(batch: EventBatch, name: str) -> tuple[EventBatch, list[Any]]:
    """Return a batch without a feature, and that feature's values; None where there is none."""
    labels: Any = batch.targets or batch.labels
    columns = batch.columns
    if columns is None:
        dicts = batch.dicts()
        left = [{k: v for k, v in x.items() if k != name} for x in dicts]
        return batch.made_sound(labels=labels, x=left), [x.get(name) for x in dicts]
    texts = dict(columns.texts)
    values: list[Any] = list(texts.pop(name, [None] * len(batch)))
    array, names = columns.array, list(columns.names)
    if name in names:
        at = names.index(name)
        values = array[:, at].tolist()
        array, names = np.delete(array, at, axis=1), names[:at] + names[at + 1 :]
    new = batch.made_sound(labels=labels, x=None, array=array, names=names, texts=texts)
    return new, values
