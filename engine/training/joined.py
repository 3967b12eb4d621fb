"""A trainer's step where labels come later: see `midstream.engine.joining`."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.events.event import FloatArray, Label, Task
from midstream.engine.events.predictions import Predictions
from midstream.engine.joining.delay import calibrated
from midstream.engine.joining.joiner import Joiner, Learn, Op, Predict
from midstream.engine.joining.waiting import joined_batch, labelled
from midstream.engine.learners.learner import Learner, LearnerError
from midstream.engine.metrics.prequential import Prequential
from midstream.engine.training.step import Step

__all__ = ["Joins", "Part", "finished", "learned", "published"]


class Joins(Protocol):
    """What a trainer with a join offers here."""

    task: Task
    learner: Learner
    joiner: Joiner | None
    by_prediction: Prequential | None

    def check_predictions(self, batch: EventBatch, predictions: Predictions) -> None:
        """Raise LearnerError if predictions cannot be scored later."""

    def observe(self, batch: EventBatch, predictions: Predictions) -> Step:
        """Score a batch that the learner has predicted and learned."""

    def observe_labels(
        self, batch: EventBatch, predictions: Predictions, learned: EventBatch
    ) -> Step:
        """Score events whose labels came after their predictions."""


class Part(NamedTuple):
    """What the learner did for a part of a batch.

    Attributes
    ----------
    op
        What it was asked to do.
    batch
        The events that it predicted, or whose labels came, each with its label.
    predictions
        Their predictions, made now or when they came.
    learned
        The events that it learned.
    """

    op: Op
    batch: EventBatch
    predictions: Predictions
    learned: EventBatch


def learned(trainer: Joins, batch: EventBatch, *, undoable: bool = False) -> list[Part]:
    """Let the learner do what a batch of events or feedback requires; score nothing yet.

    Raises
    ------
    LearnerError
        If it raises. The learner must not be used any more; the joiner can be undone.
    """
    joiner, parts = _joiner(trainer), list[Part]()
    process = joiner.process(batch, undoable=undoable)
    op = next(process, None)
    while op is not None:
        if isinstance(op, Predict):
            part = _predicted(trainer, batch, op)
            given: Predictions | None = _kept(trainer, part.predictions)
        else:
            part = _labelled(trainer, op)
            given = None
        parts.append(part)
        try:
            op = process.send(given)
        except StopIteration:
            op = None
    return parts


def _joiner(trainer: Joins) -> Joiner:
    assert trainer.joiner is not None
    return trainer.joiner


def _predicted(trainer: Joins, batch: EventBatch, op: Predict) -> Part:
    whole = op.stop - op.start == len(batch)
    part = batch if whole else batch[op.start : op.stop]
    try:
        predictions = trainer.learner.predict_learn(part)
        trainer.check_predictions(part, predictions)
        predictions = published(trainer, predictions)
    except LearnerError as error:
        raise LearnerError(op.start + error.row, error.cause, error.hint) from error
    return Part(op, part, predictions, part)


def published(trainer: Joins, predictions: Predictions) -> Predictions:
    """Return the learner's predictions as the policy has them published."""
    joiner = trainer.joiner
    if joiner is None or joiner.policy.method != "fnc":
        return predictions
    return calibrated(predictions, getattr(trainer.learner, "threshold", 0.5))


def _labelled(trainer: Joins, op: Learn) -> Part:
    """Learn events whose labels came later."""
    waiting, task = _joiner(trainer).waiting, trainer.task
    n = len(op.numbers)
    weights = op.weights or [1.0] * n
    to_learn = [i for i in range(n) if weights[i] > 0.0] if op.weights is not None else None
    scored = [i for i in range(n) if op.scored[i]] if op.scored is not None else None

    def events(chosen: list[int] | None) -> EventBatch:
        """Return the chosen events with their labels; None: all."""
        rows = range(n) if chosen is None else chosen
        if not rows:
            return EventBatch([], [])
        found = waiting.events(op.numbers if chosen is None else [op.numbers[i] for i in rows])
        return labelled(found, [op.labels[i] for i in rows], [weights[i] for i in rows], task)

    part = events(to_learn)
    batch = part if scored is None and to_learn is None else events(scored)
    if len(part):
        try:
            trainer.learner.learn(part)
        except LearnerError as error:
            at = error.row if to_learn is None else to_learn[error.row]
            raise LearnerError(op.rows[at], error.cause, error.hint) from error
    numbers = op.numbers if scored is None else [op.numbers[i] for i in scored]
    predictions = waiting.predictions(numbers) if numbers else Predictions([])
    return Part(op, batch, predictions, part)


def _kept(trainer: Joins, predictions: Predictions) -> Predictions:
    """Return predictions to be scored later: those that are not finite count as none."""
    rows = predictions.not_finite(trainer.task)
    if not len(rows):
        return predictions
    odd = set(rows.tolist())
    values = [None if i in odd else value for i, value in enumerate(predictions.values)]
    probas = predictions.probas
    if probas is None:
        return Predictions(values)
    return Predictions(values, [{} if i in odd else row for i, row in enumerate(probas)])


def finished(trainer: Joins, batch: EventBatch, parts: list[Part]) -> Step:
    """Score what the learner did, and complete the step."""
    joiner = _joiner(trainer)
    predicted, losses = list[Predictions](), list[FloatArray]()
    odd, rows = list[int](), list[int]()
    total = Step(Predictions([]), np.zeros(0), [])
    for part in parts:
        if isinstance(part.op, Predict):
            step = trainer.observe(part.batch, part.predictions)
            odd += [len(rows) + row for row in step.odd]
            rows += range(part.op.start, part.op.stop)
            predicted.append(step.predictions)
            losses.append(step.losses)
        else:
            step = trainer.observe_labels(part.batch, part.predictions, part.learned)
            total.joined += step.joined
        total.alarms += step.alarms
        total.non_finite += step.non_finite
        total.too_large += step.too_large
    total.odd = odd
    if predicted:
        total.predictions = Predictions.joined(predicted)
        total.losses = np.concatenate(losses)
    if len(rows) < len(batch) or batch.is_feedback:
        total.events = batch.take([] if batch.is_feedback else rows)
        total.events.is_feedback = False
    offsets = batch.offsets
    total.rejected = [(int(offsets[row]), rejected) for row, rejected in joiner.rejected]
    if joiner.review:
        total.review = (
            joined_batch([events for events, _ in joiner.review]),
            Predictions.joined([predictions for _, predictions in joiner.review]),
        )
    assert trainer.by_prediction is not None
    for labels, predictions in joiner.finish():
        _score(trainer.by_prediction, labels, predictions, trainer.task)
    return total


def _score(metrics: Prequential, labels: list[Label], predictions: Predictions, task: Task) -> None:
    """Score in the order of prediction."""
    values: Any = predictions.array
    given: Any = labels
    if values is not None and (task == "binary" or set(map(type, labels)) == {float}):
        given = Targets(np.array(labels, np.float64), task == "binary")
    else:
        values = predictions.values
    metrics.update(given, values, predictions.scores)
