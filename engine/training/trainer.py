"""The Trainer: everything that affects the next result of one model, in one place."""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from midstream.engine.basics.plugins import PluginError
from midstream.engine.basics.storage import LocalStorage, replace
from midstream.engine.drift.monitor import DriftMonitor
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import (
    NON_FINITE,
    Alarm,
    Event,
    Features,
    FloatArray,
    IntArray,
    Label,
    Prediction,
    Rejected,
    Task,
    floats,
)
from midstream.engine.events.predictions import Predictions
from midstream.engine.events.rules import (
    LABEL_KINDS,
    LabelKind,
    kind_of,
    kinds_of,
    label_fault,
    sound,
    spelled,
)
from midstream.engine.joining.joiner import Joiner
from midstream.engine.joining.policy import Policy
from midstream.engine.learners.learner import Learner, LearnerError, as_learner, load_learner
from midstream.engine.metrics.prequential import Prequential
from midstream.engine.state import encoding
from midstream.engine.state.changes import Change, MisfitError, differences, is_same
from midstream.engine.state.snapshot import Snapshot, pack, unpack
from midstream.engine.training.joined import finished, learned, published
from midstream.engine.training.parts import PREFIX, Part, load_part
from midstream.engine.training.replay import Reservoir
from midstream.engine.training.step import Step

__all__ = ["Trainer"]

_PARTS = {"learner": "learner", "metrics": "prequential", "drift": "drift", "replay": "replay"}
"""The parts that every trainer has: name in a state -> name of the attribute."""
_JOIN = {"feedback": "joiner", "by_prediction": "by_prediction"}
"""Likewise, of a trainer whose labels come later."""
_PROVED = 5  # events of the replay buffer whose predictions are saved with a snapshot
_QUIET = 1_000  # events with finite predictions before another non-finite one raises an alarm


class Trainer:
    """Predicts, scores, then learns, event by event, and monitors the result.

    The result never depends on how the stream was cut into batches.

    Parameters
    ----------
    model
        A River classifier, regressor or pipeline, or any `Learner`.
    task
        "binary", "multiclass" or "regression". Default: the model's own task.
    metrics
        Names of prequential metrics; default: all that fit the task.
    window, fading
        Events in the sliding window and fading factor of the metrics.
    drift
        Names of drift detectors over the loss, or a mapping from name to options.
    direction
        "up": alarms only where the loss rises; "both": wherever it changes.
    replay
        Capacity of the reservoir of past events, or a `Reservoir`.
    labels
        Kind of the labels of a multiclass task: "text", "integer" or "bool". None: the kind of the
        first label admitted. Labels of another kind are rejected: 1 and "1" would be two classes
        with the same name.
    modules
        Modules besides River whose classes and functions the model's state may hold.
    parts
        User-defined parts, see `Part`: they see every batch and are saved with the state.
    feedback
        What is done with labels that come after their event was predicted. Events without a label
        then wait for theirs. None: such events are predicted only.

    Raises
    ------
    TypeError, ValueError
        If the model does not fit the task, has an unset seed, or an argument is out of range.
    """

    SCHEMA = 1

    def __init__(
        self,
        model: Any,
        *,
        task: Task | None = None,
        metrics: Sequence[str] | None = None,
        window: int = 1_000,
        fading: float = 0.999,
        drift: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("adwin",),
        direction: Literal["up", "both"] = "up",
        replay: int | Reservoir = 1_000,
        labels: LabelKind | None = None,
        modules: Collection[str] = (),
        parts: Sequence[Part] = (),
        feedback: Policy | None = None,
    ) -> None:
        self.learner: Learner = as_learner(model, task, modules)
        self.task: Task = self.learner.task
        if labels is not None and (self.task != "multiclass" or labels not in LABEL_KINDS):
            kinds = ", ".join(map(repr, LABEL_KINDS))
            raise ValueError(
                f"labels is for task multiclass, one of {kinds}; found {labels!r} for task "
                f"{self.task}"
            )
        self._labels: LabelKind | None = labels
        self._label_kind: LabelKind | None = labels
        self._first_label: Label | None = None  # that was learned
        self.prequential = Prequential(self.task, metrics, window=window, fading=fading)
        self.drift = DriftMonitor(drift, direction=direction)
        self.replay = replay if isinstance(replay, Reservoir) else Reservoir(replay)
        self.seen = 0
        self.learned = 0
        self.extra: dict[str, Part] = {part.name: part for part in parts}
        if len(self.extra) < len(parts):
            raise ValueError("two of the parts have one name")
        self._non_finite_at = -1  # number of events up to the last non-finite prediction
        self.joiner: Joiner | None = None
        self.by_prediction: Prequential | None = None
        if feedback is not None:
            feedback.check(self.task, takes_weights=self.learner.takes_weights)
            self.joiner = Joiner(feedback)
            self.by_prediction = Prequential(self.task, metrics, window=window, fading=fading)

    @property
    def metrics(self) -> dict[str, float]:
        """The prequential metrics so far, by name, and the reports of further parts.

        With a join, events are scored in the order of their labels. Metrics with the prefix
        ``by_prediction.`` score them in the order of prediction, up to the oldest event that waits.
        ``feedback.`` stands before the counts of the join.
        """
        report = self.prequential.report()
        if self.joiner is not None and self.by_prediction is not None:
            ordered = self.by_prediction.report()
            report |= {f"by_prediction.{name}": value for name, value in ordered.items()}
            report |= {f"feedback.{name}": v for name, v in self.joiner.report().items()}
        for name, part in self.extra.items():
            report |= {f"{name}.{key}": value for key, value in part.report().items()}
        return report

    @property
    def label_kind(self) -> LabelKind | None:
        """Kind of the labels of a multiclass task; None while it is not settled."""
        return self._label_kind

    def admit(self, batch: EventBatch) -> tuple[EventBatch, list[Rejected]]:
        """Reject the events of a batch that the learner cannot learn; return the others and these.

        The first label admitted settles the kind of all labels, even if the learner then raises on
        its event.
        """
        faults: dict[int, tuple[str, str]] = {}
        if not batch.sound:
            batch, faults = sound(batch, self.task)
        if batch.weights is not None and not self.learner.takes_weights:
            reason = "weight is given, but this learner takes no sample weights"
            for i in np.flatnonzero(floats(batch.weights) != 1.0).tolist():
                fault = f"{reason} (found {batch.weight(i)})", batch.field("weight")
                faults.setdefault(i, fault)
        self._note_odd_labels(batch, faults)  # last: what is rejected settles nothing
        if not faults:
            return batch, []
        origins = batch.origins
        rejected = [
            Rejected(origins[i], reason, batch.path(i, path), "")
            for i, (reason, path) in sorted(faults.items())
        ]
        return batch.take([i for i in range(len(batch)) if i not in faults]), rejected

    def _note_odd_labels(self, batch: EventBatch, faults: dict[int, tuple[str, str]]) -> None:
        """Add a fault for each label whose kind differs from the first or the configured one."""
        if self.task != "multiclass":
            return
        kind, labels = self._label_kind, batch.labels
        if kind is not None and kinds_of(labels) <= {kind}:
            return
        first = self._first_label
        for i, label in enumerate(labels):
            if label is None or i in faults:
                continue
            first = label if first is None else first
            if kind is None:
                kind = self._label_kind = kind_of(label)
            elif kind_of(label) != kind:
                reason = label_fault(label, kind, first if self._labels is None else None)
                faults[i] = reason, batch.field("label")

    def _sound(self, batch: EventBatch, *, labels: bool = True) -> EventBatch:
        """Return a batch checked as by `admit`. `labels`: check the labels, too.

        Raises
        ------
        ValueError
            If an event breaks a rule.
        """
        faults: dict[int, tuple[str, str]] = {}
        if not batch.sound:
            batch, faults = sound(batch, self.task if labels else None)
        if labels:
            self._note_odd_labels(batch, faults)
        if faults:
            row = min(faults)
            reason, path = faults[row]
            raise ValueError(": ".join(filter(None, (batch.path(row, path), reason))))
        return batch

    def step(self, batch: EventBatch, predictions: Predictions | None = None) -> Step:
        """Predict, score and learn each event of a batch, in order.

        Parameters
        ----------
        predictions
            The learner's predictions for this batch, if it has already learned it.

        Raises
        ------
        LearnerError
            If the learner raises, or a prediction cannot be scored. Only the learner has changed
            then, and must not be used any more.
        ValueError
            If a value breaks a rule for which `admit` rejects the event; nothing is learned then.
        """
        batch = self._sound(batch)
        if self.joiner is not None:
            return finished(self, batch, learned(self, batch))
        if predictions is None:
            predictions = self.learner.predict_learn(batch)
        if len(batch) and (flaw := _flaw(predictions, len(batch))):
            raise LearnerError(0, TypeError(flaw))
        return self.observe(batch, predictions)

    def check_predictions(self, batch: EventBatch, predictions: Predictions) -> None:
        """Raise LearnerError if predictions cannot be scored later."""
        if flaw := _flaw(predictions, len(batch)):
            raise LearnerError(0, TypeError(flaw))
        if predictions.array is not None and predictions.table is not None:
            return  # numbers
        try:
            Prequential(self.task, window=1).update(
                [None] * len(batch), predictions.values, predictions.scores
            )
        except (AttributeError, OverflowError, TypeError, ValueError) as cause:
            raise LearnerError(self._odd_row(batch, predictions), cause) from cause

    def observe(self, batch: EventBatch, predictions: Predictions) -> Step:
        """Score a batch that the learner has predicted and learned, and monitor the losses.

        Raises
        ------
        LearnerError
            As for `step`.
        """
        before, large = self.prequential.non_finite, self.prequential.too_large
        try:
            losses = self._scored(batch, predictions)
        except PluginError:  # no fault of the event
            raise
        except (AttributeError, OverflowError, TypeError, ValueError) as cause:
            raise LearnerError(self._odd_row(batch, predictions), cause) from cause
        count, odd = self.prequential.non_finite - before, list[int]()
        if count:
            rows = predictions.not_finite(self.task)
            alarms = self._non_finite(batch, rows, before)
            watched = self._watched(batch, rows, losses)
            alarms += self.drift.update(watched, self.seen, batch.time)
            alarms.sort(key=lambda alarm: alarm.position)  # stable: non-finite alarms come first
            predictions = self._labelled(predictions, rows)
            odd = rows.tolist()
        else:
            alarms = self.drift.update(losses, self.seen, batch.time)
        self.replay.add(batch)
        step = Step(predictions, losses, alarms, count, self.prequential.too_large - large, odd)
        if self.extra:
            for part in self.extra.values():
                step.alarms += part.observe(batch, step, self.seen)
            step.alarms.sort(key=lambda alarm: alarm.position)
        self.seen += len(batch)
        self.learned += batch.labelled
        if self.task == "multiclass" and self._first_label is None:
            self._first_label = next((y for y in batch.labels if y is not None), None)
        return step

    def observe_labels(
        self, batch: EventBatch, predictions: Predictions, learned: EventBatch
    ) -> Step:
        """Score events whose labels came after their predictions, and monitor the losses.

        Parameters
        ----------
        learned
            The events that the learner learned: without some, and with others again.
        """
        large = self.prequential.too_large
        losses = self._scored(batch, predictions)
        alarms = self.drift.update(losses, self.seen, batch.time)
        for alarm in alarms:
            alarm.position = self.seen
        self.replay.add(learned)
        count = self.prequential.too_large - large
        step = Step(predictions, losses, alarms, too_large=count, joined=len(learned))
        if self.extra and len(batch):
            for part in self.extra.values():
                step.alarms += part.observe(batch, step, self.seen)
        self.learned += len(learned)
        if self.task == "multiclass" and self._first_label is None:
            self._first_label = next((y for y in batch.labels if y is not None), None)
        return step

    def _scored(self, batch: EventBatch, predictions: Predictions) -> FloatArray:
        """Return the losses of predictions, scored against the labels of a batch."""
        labels: Any = batch.targets
        values: Any = predictions.array
        if labels is None or values is None:
            labels = batch.labels
            if values is None or values.dtype.kind == "b" or self.task == "regression":
                values = predictions.values  # a list, which Predictions can also be made of
        return self.prequential.update(labels, values, predictions.scores)

    def _sample(self) -> list[Event]:
        """Return a few events of the replay buffer, spread over it."""
        events = self.replay.events
        return events[:: max(len(events) // _PROVED, 1)][:_PROVED]

    def _non_finite(self, batch: EventBatch, rows: IntArray, before: int) -> list[Alarm]:
        """Return an alarm for the first non-finite prediction of each run of them."""
        alarms = []
        for count, row in enumerate(rows.tolist(), before + 1):
            position, last = self.seen + row + 1, self._non_finite_at
            self._non_finite_at = position
            if last < 0 or position - last > _QUIET:
                alarms.append(
                    Alarm(
                        kind=NON_FINITE,
                        detector=NON_FINITE,
                        feature=None,
                        value=float(count),
                        threshold=0.0,
                        position=position,
                        ts=batch.time(row),
                    )
                )
        return alarms

    def _watched(self, batch: EventBatch, rows: IntArray, losses: FloatArray) -> FloatArray:
        """Return the losses for the detectors: a non-finite prediction counts as the worst loss."""
        watched = losses.copy()
        labels = batch.labels
        labelled = [row for row in rows.tolist() if labels[row] is not None]
        watched[labelled] = math.inf if self.task == "regression" else 1.0
        return watched

    def _labelled(self, predictions: Predictions, rows: IntArray) -> Predictions:
        """Remove the labels that were chosen by non-finite probabilities."""
        if self.task == "regression" or not len(rows):
            return predictions
        return predictions.without(rows)

    def _odd_row(self, batch: EventBatch, predictions: Predictions) -> int:
        """Find the prediction that cannot be scored; 0 if none is found."""
        for row in range(len(batch)):
            part = slice(row, row + 1)
            probas = None if predictions.probas is None else predictions.probas[part]
            values = predictions.values if predictions.array is None else predictions.array
            try:
                Prequential(self.task).update(batch.labels[part], values[part], probas)
            except (AttributeError, OverflowError, TypeError, ValueError):
                return row
        return 0

    def step_one(self, x: Features, y: Label | None = None, **fields: Any) -> Prediction:
        """Predict, score and learn one event; without `y`, predict only.

        Parameters
        ----------
        x
            Features by name. The dict is copied.
        y
            The label.
        fields
            Further fields of `Event`: id, ts, weight, source, group, key.

        Raises
        ------
        ValueError
            If a value breaks a rule for which `admit` rejects its event: an infinite number, from
            which no learner would recover, or a label of another kind than the first.
        """
        batch = EventBatch.from_events([Event(x=dict(x), y=y, **fields)])
        batch.offsets += self.seen
        batch, rejected = self.admit(batch)
        if rejected:
            found = rejected[0]
            raise ValueError(": ".join(filter(None, (found.path, found.reason))))
        predictions = self.step(batch).predictions
        if not len(predictions):  # a label for an event that waited
            predictions = self.predict(batch)
        return self._first(batch, predictions)

    def feedback_one(self, event_id: str, y: Label, **fields: Any) -> Step:
        """Learn the label of an event that was predicted before, by its id.

        Parameters
        ----------
        fields
            Further fields: ts, weight, source.

        Raises
        ------
        ValueError
            If the trainer was made without `feedback`, or the label breaks a rule.
        """
        if self.joiner is None:
            raise ValueError("the trainer was made without feedback")
        event = Event(x={"id": event_id}, y=y, id=event_id, **fields)
        batch = EventBatch.from_events([event], partition="feedback")
        batch.is_feedback = True
        batch, rejected = self.admit(batch)
        if rejected:
            raise ValueError(": ".join(filter(None, (rejected[0].path, rejected[0].reason))))
        return self.step(batch)

    def predict_one(self, x: Features) -> Prediction:
        """Predict one event from its features; learn nothing.

        Raises
        ------
        ValueError
            If a value breaks a rule.
        """
        batch = self._sound(EventBatch.from_events([Event(x=dict(x))]), labels=False)
        return self._first(batch, self.predict(batch))

    def _first(self, batch: EventBatch, predictions: Predictions) -> Prediction:
        return Prediction(
            id=batch.ids[0],
            model=type(self.learner).__name__,
            version=0,
            role="champion",
            y_pred=predictions.values[0],
            y_proba=None if predictions.probas is None else dict(predictions.probas[0]),
            ts=batch.time(0),
            origin=batch.origins[0],
        )

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict only.

        Raises
        ------
        ValueError
            If a value breaks a rule; labels are not checked.
        """
        predictions = published(self, self.learner.predict(self._sound(batch, labels=False)))
        return self._labelled(predictions, predictions.not_finite(self.task))

    def definition(self) -> dict[str, Any]:
        """Return what defines the trainer, without what it has learned: plain JSON values."""
        return {
            **({"labels": self._labels} if self._labels is not None else {}),
            "learner": self.learner.definition(),
            "metrics": self.prequential.definition(),
            "drift": self.drift.definition(),
            "replay": self.replay.definition(),
            **({"feedback": self.joiner.definition()} if self.joiner is not None else {}),
            **({"parts": _definitions(self.extra)} if self.extra else {}),
        }

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved definition, part by part.

        Parameters
        ----------
        old
            The result of `definition` when the state was saved.
        """
        found = differences(
            "labels", {"kind": old.get("labels")}, {"kind": self._labels}, effect="from now on"
        )
        for name, attribute in _PARTS.items():
            part, was = getattr(self, attribute), old.get(name)
            if was is None:
                found.append(Change(name, "state", "-", "on", effect="begins now"))
            elif not is_same(was, part.definition()):
                found += _changes(name, part, was)
        found += self._changes_of_join(old.get("feedback"))
        before = old.get("parts", {})
        for name in dict.fromkeys([*before, *self.extra]):
            if name not in before:
                found.append(Change(f"parts.{name}", "state", "-", "on", effect="begins now"))
            elif name not in self.extra:
                found.append(Change(f"parts.{name}", "state", "on", "-", effect="is dropped"))
            elif before[name] != self.extra[name].definition():
                found += self.extra[name].changes(before[name])
        return found

    def _changes_of_join(self, old: Mapping[str, Any] | None) -> list[Change]:
        if self.joiner is None:
            effect = "what waits for its label is dropped"
            return [Change("feedback", "join", "on", "-", "asked", effect)] if old else []
        if old is None:
            return [Change("feedback", "join", "-", "on", effect="begins now")]
        return self.joiner.changes(old)

    def blank_parts(self, old: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the parts of the state whose definition differs from a saved one: see `amended`.

        For a trainer that has seen nothing, they are all that an amendment needs besides the state
        to be amended.
        """
        state, new = self.state(), self.definition()
        names = [name for name in _PARTS if not is_same(old.get(name), new[name])]
        before, after = old.get("parts", {}), new.get("parts", {})
        names += [PREFIX + name for name in after if before.get(name) != after[name]]
        if self.joiner is not None:
            joined = old.get("feedback")
            names += ["feedback"] if joined != new["feedback"] else []
            names += ["by_prediction"] if joined is None or "metrics" in names else []
        parts = {name: state[name] for name in names}
        gone = [PREFIX + name for name in before if name not in after]
        gone += [*_JOIN] if self.joiner is None and "feedback" in old else []
        if gone or old.get("labels") != self._labels or "learner" in parts:
            about = encoding.decode(state["trainer"])
            parts["trainer"] = encoding.encode(about | {"gone": gone} if gone else about)
        return parts

    def amended(self, parts: Mapping[str, bytes], modules: Collection[str] = ()) -> "Trainer":
        """Return a trainer that is defined by `parts` and continues from what this one learned.

        Parameters
        ----------
        parts
            The result of `blank_parts` of a new trainer.

        Raises
        ------
        MisfitError
            If what was learned does not fit; the message names the attribute.
        ValueError
            If the parts are damaged, or are for another task.
        """
        own = self.state()
        about = encoding.decode(parts["trainer"]) if "trainer" in parts else {}
        for name in about.pop("gone", ()):
            own.pop(name, None)
            own.pop(PREFIX + name, None)  # as earlier versions name it
        given = {**own, **parts}
        given["trainer"] = encoding.encode(about) if about else own["trainer"]
        new = Trainer.from_state(given, modules)
        if new.task != self.task:
            raise ValueError(f"a model of task {self.task} cannot become one of task {new.task}")
        for name, attribute in _PARTS.items():
            if name in parts:
                part, old = getattr(new, attribute), getattr(self, attribute)
                setattr(new, attribute, _amended(part, old))
        for name, attribute in _JOIN.items():
            part, old = getattr(new, attribute), getattr(self, attribute)
            if name in parts and old is not None:
                setattr(new, attribute, part.amended(old))
        for name, extra in new.extra.items():
            if PREFIX + name in parts and name in self.extra:
                new.extra[name] = extra.amended(self.extra[name])
        new.seen, new.learned = self.seen, self.learned
        new._non_finite_at = self._non_finite_at
        new._first_label = self._first_label
        new._label_kind = self._label_kind if self._label_kind is not None else new._labels
        if new._labels is not None and new._label_kind != new._labels:
            raise MisfitError(
                "labels", f"those that were learned are {new._label_kind}, not {new._labels}"
            )
        return Trainer.from_state(new.state(), modules)  # as a snapshot would restore it

    def proof(self) -> list[str]:
        """Return the exact predictions for a few events of the replay buffer, as text.

        Under other versions of Python or of a library, the state is resumed only if they are equal.
        """
        chosen = self._sample()
        if not chosen:
            return []
        batch = EventBatch.from_events([Event(x=dict(e.x), id=e.id, ts=e.ts) for e in chosen])
        found = self.predict(batch)
        probas = found.probas or [{}] * len(chosen)
        return [
            f"{id_}: {_exactly(value)} {_exactly(proba)}"
            for id_, value, proba in zip(batch.ids, found.values, probas, strict=True)
        ]

    def tried(self) -> None:
        """Predict and learn a few events of the replay buffer, to see whether the learner can.

        The trainer must not be used any more.

        Raises
        ------
        LearnerError
            If the learner raises.
        """
        if chosen := self._sample():
            self.learner.predict_learn(EventBatch.from_events(chosen))

    def state(self) -> dict[str, bytes]:
        """Return everything that the next result depends on, as named parts, copied."""
        about: dict[str, Any] = {
            "schema": self.SCHEMA,
            "task": self.task,
            "kind": self.learner.kind,
            "seen": self.seen,
            "learned": self.learned,
            "non_finite_at": self._non_finite_at,
        }
        if self.task == "multiclass":
            about["labels"] = [self._labels, self._label_kind, self._first_label]
        return {
            "trainer": encoding.encode(about),
            "learner": self.learner.state(),
            "metrics": encoding.encode(self.prequential.state()),
            "drift": self.drift.state(),
            "replay": encoding.encode(self.replay.state()),
            **self._state_of_join(),
            **{PREFIX + name: part.state() for name, part in self.extra.items()},
        }

    def _state_of_join(self) -> dict[str, bytes]:
        if self.joiner is None or self.by_prediction is None:
            return {}
        ordered = encoding.encode(self.by_prediction.state())
        return {"feedback": self.joiner.state(), "by_prediction": ordered}

    def continued(self, state: Mapping[str, bytes], modules: Collection[str] = ()) -> "Trainer":
        """Return the trainer built from `state`, which was taken from this one just now.

        The join, which may be large, is not built anew.
        """
        rest = {name: data for name, data in state.items() if name not in _JOIN}
        new = Trainer.from_state(rest, modules)
        new.joiner, new.by_prediction = self.joiner, self.by_prediction
        return new

    @classmethod
    def from_state(cls, state: Mapping[str, bytes], modules: Collection[str] = ()) -> "Trainer":
        """Build the trainer that `state` was taken from.

        Parameters
        ----------
        modules
            Modules besides River whose classes and functions may be loaded.

        Raises
        ------
        ValueError
            If the state is of another schema, is damaged, or holds a type that may not be loaded.
        """
        lacking = [name for name in ("trainer", *_PARTS) if name not in state]
        if lacking:
            raise ValueError(f"damaged trainer state: it lacks its part {lacking[0]!r}")
        about = encoding.decode(state["trainer"])
        if about["schema"] != cls.SCHEMA:
            raise ValueError(
                f"trainer state has schema {about['schema']}, this version reads {cls.SCHEMA}"
            )
        for name in state:
            if name not in ("trainer", *_PARTS, *_JOIN) and not name.startswith(PREFIX):
                raise ValueError(
                    f"the state has a part {name!r:.100} that this version does not know: a newer "
                    "one wrote it"
                )
        new = cls.__new__(cls)
        new.task = about["task"]
        new.seen = about["seen"]
        new.learned = about["learned"]
        new._non_finite_at = about.get("non_finite_at", -1)  # older states lack it
        counts = (new.seen, new.learned, new._non_finite_at)
        if not all(type(count) is int and count >= -1 for count in counts):
            raise ValueError(f"damaged trainer state: its counts are {counts}")
        new.learner = load_learner(about["kind"], state["learner"], task=new.task, modules=modules)
        metrics = encoding.decode(state["metrics"])
        new._labels, new._label_kind, new._first_label = about.get("labels") or _settled(metrics)
        new.prequential = Prequential.from_state(metrics)
        if new.prequential.task != new.task:
            raise ValueError(f"task {new.task}, with metrics of task {new.prequential.task}")
        new.drift = DriftMonitor.from_state(state["drift"])
        new.replay = Reservoir.from_state(encoding.decode(state["replay"]))
        new.joiner = new.by_prediction = None
        if any(name in state for name in _JOIN):
            if lacking := [name for name in _JOIN if name not in state]:
                raise ValueError(f"damaged trainer state: it lacks its part {lacking[0]!r}")
            new.joiner = Joiner.from_state(state["feedback"])
            new.by_prediction = Prequential.from_state(encoding.decode(state["by_prediction"]))
        new.extra = {
            name.removeprefix(PREFIX): load_part(name.removeprefix(PREFIX), state[name])
            for name in state
            if name.startswith(PREFIX)
        }
        return new

    def digest(self) -> str:
        """SHA-256 (hex) of the state: equal only if every value is equal, bit for bit."""
        return digest(self.state())

    def save(self, path: str | Path) -> None:
        """Write the state to a file; after a crash the file is the old or the new one, complete."""
        path = Path(path)
        storage = LocalStorage(path.parent)
        header = {"definition": self.definition(), "digest": self.digest()}
        replace(storage, path.name, pack(Snapshot(header, self.state())))
        storage.close()

    @classmethod
    def load(cls, path: str | Path, modules: Collection[str] = ()) -> "Trainer":
        """Read a trainer that `save` wrote. Nothing in the file is executed.

        Raises
        ------
        SnapshotError, EncodingError
            If the file is damaged, or holds a type that may not be loaded.
        """
        path = Path(path)
        return cls.from_state(unpack(path.read_bytes(), path.name).parts, modules)


def _changes(name: str, part: Any, old: Mapping[str, Any]) -> list[Change]:
    """Return the differences of a part; all of them if the part has no method `changes`."""
    new = part.definition()
    if hasattr(part, "changes"):
        found: list[Change] = part.changes(old)
        return found
    if old.get("kind") != new.get("kind"):
        return differences(name, {"kind": old.get("kind")}, {"kind": new.get("kind")},
                           level="refused", effect="another kind of learner")  # fmt: skip
    return differences(name, old, new, level="refused", effect=f"{new['kind']} has no `amended`")


def _amended(part: Any, old: Any) -> Any:
    if type(part) is not type(old):
        raise MisfitError("learner", f"it is a {type(old).__name__}")
    if hasattr(part, "amended"):
        return part.amended(old)
    raise MisfitError("learner", f"{type(part).__name__} has no method `amended`")


def _definitions(parts: Mapping[str, Part]) -> dict[str, Any]:
    return {name: part.definition() for name, part in parts.items()}


def _exactly(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_exactly(p)}" for key, p in value.items())
    return repr(value.item() if isinstance(value, np.generic) else value)


def _settled(metrics: Mapping[str, Any]) -> tuple[None, LabelKind | None, Label | None]:
    """Infer the settled kind of label from the classes of a state that does not hold it."""
    classes: list[Label] = metrics.get("classes", []) if metrics.get("task") == "multiclass" else []
    kinds = set(map(kind_of, classes))
    return (None, kinds.pop(), classes[0]) if len(kinds) == 1 else (None, None, None)


def _flaw(found: Any, n: int) -> str | None:
    """Return what is wrong with the form of a learner's predictions for n events, or None."""
    if not isinstance(found, Predictions):
        return f"it returned {type(found).__name__} where Predictions are needed"
    if found.array is not None and found.array.ndim != 1:
        return f"it predicted an array of shape {found.array.shape}, needed: ({n},)"
    if found.table is None:
        return None
    classes, values = found.table
    if values.shape != (n, len(classes)):
        return f"its probabilities are {values.shape}, needed: {(n, len(classes))}"
    names = classes if len(set(map(type, classes))) <= 1 else map(spelled, classes)
    if len(set(names)) < len(classes):
        return f"its probabilities have a class twice: {classes!r:.200}"
    return None


def digest(state: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) over the named parts of a state."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(f"{name} {len(state[name])}\n".encode())
        total.update(state[name])
    return total.hexdigest()
