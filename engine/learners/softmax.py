"""Softmax regression whose test-then-train loop over a batch is one compiled kernel.

River's arithmetic, operation by operation, after running standardization: a weight for each feature
and class, no intercept, classes added as they appear. Optimizers, penalties, categories and the
statistics of features are those of `midstream.engine.learners.linear`.
"""

import math
from array import array
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import FloatArray, IntArray, Label, Task
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.amending import definition_differences, taken_options
from midstream.engine.learners.kernels import (
    LANES,
    OPTIMIZERS,
    checked_class_weights,
    checked_options,
    class_name,
    diverged,
    grown,
    options_record,
    possible,
    softmax_kernel,
    weighted,
)
from midstream.engine.learners.learner import LearnerError
from midstream.engine.learners.linear import Explanation, explained
from midstream.engine.learners.slots import Rows, Slots, odd_row, sample_weights, sound
from midstream.engine.state import encoding
from midstream.engine.state.changes import Change

__all__ = ["SoftmaxLearner"]

_SCHEMA = 1
_LABELS = {bool, int, float, str}
_NO_CODES: IntArray = np.zeros(0, np.int64)


class _Outcome(NamedTuple):
    """The kernel's result for n events.

    (n, classes) `probas`; (n,) `best`, codes of classes, -1 for none; (n,) `seen`, the number of
    classes known.
    """

    probas: FloatArray
    best: IntArray
    seen: IntArray


class SoftmaxLearner:
    """Softmax regression (multinomial logistic regression), in a compiled loop.

    Numbers and booleans are features by name, strings are hashed categories, as for
    `LinearLearner`. A class is known once an event of it was learned. Labels are compared as keys
    of a dict: 1, 1.0 and True are one class, named by the first to appear; a `Trainer` admits
    labels of one kind only.

    Parameters
    ----------
    task
        "multiclass".
    optimizer
        "sgd", "adagrad", "adam" or "ftrl"; each class counts its own steps.
    rate
        Learning rate; for FTRL its alpha.
    l1, l2
        Penalties; `l1` with SGD (cumulative) and FTRL only.
    scale
        Standardize numbers by their running mean and variance, as River's StandardScaler does.
    bits
        Categories are hashed into 2**bits slots, which are allocated on first use.
    features
        Most names of numeric features; another name is refused, to bound memory.
    classes
        Most classes; another class is refused, likewise.
    clip
        Largest absolute gradient of the loss by a score.
    beta, beta_1, beta_2, eps
        `beta` of FTRL; `beta_1` and `beta_2` of Adam; `eps` of AdaGrad and Adam.
    class_weights
        Factors on the sample weights, from 1e-6 to 1e6, by class or its name; the default of a
        class is 1.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    kind: ClassVar[str] = "softmax"
    needs: Literal["dicts", "columns"] = "columns"
    takes_weights = True

    def __init__(
        self,
        task: Task = "multiclass",
        *,
        optimizer: Literal["sgd", "adagrad", "adam", "ftrl"] = "sgd",
        rate: float = 0.01,
        l1: float = 0.0,
        l2: float = 0.0,
        scale: bool = True,
        bits: int = 18,
        features: int = 100_000,
        classes: int = 1_000,
        clip: float = 1e12,
        beta: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        eps: float = 1e-8,
        class_weights: Mapping[Any, float] | None = None,
    ) -> None:
        if task != "multiclass":
            raise ValueError(f"task must be multiclass, found {task!r}")
        self.task: Task = task
        # Only if given: without them, state and definition equal those of earlier versions.
        asked = {"class_weights": checked_class_weights(class_weights)} if class_weights else {}
        self._options = checked_options(
            {
                "optimizer": optimizer,
                "rate": rate,
                "l1": l1,
                "l2": l2,
                "scale": scale,
                "bits": bits,
                "features": features,
                "classes": classes,
                "clip": clip,
                "beta": beta,
                "beta_1": beta_1,
                "beta_2": beta_2,
                "eps": eps,
                **asked,
            }
        )
        self._record = options_record(self._options)
        self._slots = Slots(bits, features)
        self._codes: dict[Label | None, int] = {None: -1}
        self._classes: list[Label] = []
        self._factors: list[float] = []  # factors of the classes on sample weights
        self._count = np.zeros(1, np.int64)  # number of classes that the kernel has learned
        # All have room to grow: (3, names, classes), as in a linear learner; (3, names);
        # (3, places of categories, classes); and steps and penalty by class.
        self._weights = np.zeros((3, 0, LANES))
        self._scaler = np.zeros((3, 0))
        self._table = np.zeros((3, 0, LANES))
        self._totals = np.zeros((2, LANES))
        self._place = np.zeros(0, np.int32)  # a category's slot -> its place, -1: none
        self._used = np.zeros(0, np.int64)  # its place -> its slot, with room to grow
        self._places = 0

    def predict_learn(self, batch: EventBatch) -> Predictions:
        """Predict each event, then learn it if it has a label, in order.

        Raises
        ------
        LearnerError
            At an event that would make a weight infinite, or that has a name or class too many.
        """
        return self._predictions(self._pass(batch, learn=True))

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict without learning."""
        return self._predictions(self._pass(batch, learn=False))

    def learn(self, batch: EventBatch) -> None:
        """Learn without predicting."""
        self._pass(batch, learn=True)

    def _predictions(self, outcome: _Outcome) -> Predictions:
        probas, best, seen = outcome
        named: dict[int, Label | None] = dict(enumerate(self._classes))
        named[-1] = None
        values = list(map(named.__getitem__, best.tolist()))
        if len(seen) and seen[0] == seen[-1] == probas.shape[1] > 0:
            return Predictions(values, Table(tuple(self._classes), probas))
        rows = zip(probas.tolist(), seen.tolist(), strict=True)
        return Predictions(
            values, [dict(zip(self._classes[:k], row[:k], strict=True)) for row, k in rows]
        )

    def _pass(self, batch: EventBatch, *, learn: bool) -> _Outcome:
        try:
            weights = sample_weights(batch)
            labels = self._labels(batch.labels, weights) if learn else _NO_CODES
            rows = self._slots.rows(batch, grow=learn)
        except (TypeError, ValueError, OverflowError, LearnerError) as cause:
            row = cause.row if isinstance(cause, LearnerError) else odd_row(batch, _plain_label)
            if row:  # the kernel may stop at an event before it
                self._pass(batch[:row], learn=learn)
            if isinstance(cause, LearnerError):
                raise
            raise LearnerError(row, cause) from cause
        if learn and "class_weights" in self._options:
            weights = weighted(weights, np.array([*self._factors, 1.0])[labels])  # -1: no label
        rows = self._placed(rows, grow=learn)
        self._fit()
        n, options = len(batch), self._options
        optimizer = OPTIMIZERS.index(options["optimizer"])
        run = softmax_kernel(optimizer, options["scale"], options["l1"] != 0.0 and optimizer == 0)
        outcome = _Outcome(
            np.empty((n, len(self._classes))), np.empty(n, np.int64), np.empty(n, np.int64)
        )
        done = run(
            *rows, labels, weights, self._record, self._weights, self._scaler, self._table,
            self._totals, self._count, *outcome,
        )  # fmt: skip
        if done < n:
            raise LearnerError(done, diverged())
        return outcome

    def _fit(self) -> None:
        """Make room for every name, category and class."""
        names, classes = len(self._slots.names), len(self._classes)
        self._weights = grown(grown(self._weights, names), classes, axis=2)
        self._scaler = grown(self._scaler, names)
        self._table = grown(grown(self._table, self._places), classes, axis=2)
        self._totals = grown(self._totals, classes)

    def _labels(self, labels: Sequence[Label | None], weights: FloatArray) -> IntArray:
        """Return labels as class codes, new ones included; -1 for none."""
        try:
            return np.array(array("q", map(self._codes.__getitem__, labels)), np.int64)
        except (KeyError, TypeError):
            pass
        codes = np.full(len(labels), -1, np.int64)
        for row, label in enumerate(labels):
            try:
                if label is None or (len(weights) and weights[row] == 0.0):
                    continue  # nothing is learned, so no class is added
                if label not in self._codes:
                    self._add_class(_plain_label(label))
            except (TypeError, ValueError) as cause:
                raise LearnerError(row, cause) from cause
            codes[row] = self._codes[label]
        return codes

    def _add_class(self, label: Label) -> None:
        most = self._options["classes"]
        if len(self._classes) >= most:
            raise ValueError(
                f"class {str(label)[:100]!r} is one too many: the option classes allows {most}; "
                "is the label a number?"
            )
        self._codes[label] = len(self._classes)
        self._classes.append(label)
        self._factors.append(self._options.get("class_weights", {}).get(class_name(label), 1.0))

    def _placed(self, rows: Rows, *, grow: bool) -> Rows:
        """Return rows with the places of categories instead of their slots."""
        if not len(rows.slots) or not self._slots.hashed:
            return rows
        given = np.flatnonzero((rows.slots < 0) & ~np.isnan(rows.values))
        slots = -1 - rows.slots[given]
        if not len(self._place):
            self._place = np.full(2**self._slots.bits, -1, np.int32)
        fresh = np.unique(slots[self._place[slots] < 0])
        if grow and len(fresh):
            self._take(fresh)
        places = self._place[slots].astype(np.int64)
        rows.slots[given] = -1 - np.maximum(places, 0)
        rows.values[given[places < 0]] = np.nan  # never learned: a missing value
        return rows

    def _take(self, slots: IntArray) -> None:
        """Assign places to slots."""
        stop = self._places + len(slots)
        self._used = grown(self._used, stop, 0)
        self._used[self._places : stop] = slots
        self._place[slots] = np.arange(self._places, stop)
        self._places = stop

    def explain(
        self, categories: Mapping[str, Collection[str]] | None = None
    ) -> dict[Label, Explanation]:
        """Return the model of each class in the features' own names and units.

        The class with the highest score is predicted. Parameters as for `LinearLearner`.
        """
        d = len(self._slots.names)
        explanations = {}
        for c, label in enumerate(self._classes):
            scaler = self._scaler[:, :d] if self._options["scale"] else None
            explanations[label] = explained(self._slots.names, self._weights[0, :d, c], scaler, 0.0)
            for name, values in (categories or {}).items():
                for value in values:
                    slot, sign = self._slots.category(name, value)
                    place = self._place[-1 - slot] if len(self._place) else -1
                    weight = float(self._table[0, place, c]) if place >= 0 else 0.0
                    explanations[label].weights[f"{name}={value}"] = weight * sign
        return explanations

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved definition, and their effect on what was learned."""
        return definition_differences(old, self.definition())

    def amended(self, old: "SoftmaxLearner") -> "SoftmaxLearner":
        """Return this learner, continued from what `old` has learned.

        Raises
        ------
        MisfitError
            If part of that does not fit; the message names the option.
        """
        state = taken_options(encoding.decode(old.state()), old._options, self._options)
        return SoftmaxLearner._restored(state, self.task)

    def state(self) -> bytes:
        """Return everything that its next result depends on; equal learners give equal bytes."""
        d, k = len(self._slots.names), len(self._classes)
        order = np.argsort(self._used[: self._places])
        order = order[self._table[:, order, :k].any(axis=(0, 2))]
        return encoding.encode(
            {
                "schema": _SCHEMA,
                "options": self._options,
                "names": list(self._slots.names),
                "classes": list(self._classes),
                "weights": self._weights[:, :d, :k].copy(),
                "scaler": self._scaler[:, :d].copy(),
                "hashed": self._slots.hashed,
                "used": self._used[order],
                "table": self._table[:, order, :k].copy(),
                "totals": self._totals[:, :k].copy(),
            }
        )

    @classmethod
    def from_state(
        cls, data: bytes, *, task: Task, modules: Collection[str] = ()
    ) -> "SoftmaxLearner":
        """Build the learner that `data` was taken from.

        Raises
        ------
        ValueError
            If the data is damaged or of another schema.
        """
        state = encoding.decode(data, modules=modules)
        try:
            if state["schema"] != _SCHEMA:
                raise ValueError(f"learner state has schema {state['schema']}, expected {_SCHEMA}")
            return cls._restored(state, task)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"damaged learner state: {type(error).__name__}: {error}") from error

    @classmethod
    def _restored(cls, state: Mapping[str, Any], task: Task) -> "SoftmaxLearner":
        new = cls(task, **state["options"])
        names, classes, used = state["names"], state["classes"], state["used"]
        d, k = len(names), len(classes)
        arrays = {
            "weights": (3, d, k),
            "scaler": (3, d),
            "table": (3, len(used), k),
            "totals": (2, k),
        }
        if not (
            new._slots.takes(names, used)
            and type(state["hashed"]) is bool
            and (state["hashed"] or not len(used))
            and type(classes) is list
            and k <= new._options["classes"]
            and len(set(classes)) == k
            and all(type(label) in _LABELS and label == label for label in classes)  # noqa: PLR0124
            and all(sound(state[name], shape) for name, shape in arrays.items())
            and possible(new._options["optimizer"], state["weights"], state["scaler"])
            and possible(new._options["optimizer"], state["table"], state["scaler"])
            and not (state["totals"] < 0.0).any()
        ):
            raise ValueError("damaged learner state: its parts do not fit together")
        new._slots.names = {name: i for i, name in enumerate(names)}
        new._slots.hashed = state["hashed"]
        for label in classes:
            new._add_class(label)
        new._count[0] = k
        if state["hashed"]:
            new._place = np.full(2**new._slots.bits, -1, np.int32)
            new._take(used)
        new._weights, new._scaler = state["weights"].copy(), state["scaler"].copy()
        new._table, new._totals = state["table"].copy(), state["totals"].copy()
        new._fit()
        return new

    def definition(self) -> dict[str, Any]:
        """Return what defines it, without what it has learned: plain JSON values."""
        return {"kind": self.kind, "task": self.task, **self._options}


def _plain_label(label: Any) -> Label:
    """Return a label as a plain Python value.

    Raises
    ------
    ValueError
        If it is not a label.
    """
    if isinstance(label, np.generic):
        label = label.item()
    if label is not None and type(label) not in _LABELS:
        raise ValueError(f"a label is a text, a number or a boolean, got {label!r:.100}")
    if isinstance(label, float) and math.isnan(label):
        raise ValueError("a label must not be nan")
    return label  # type: ignore[no-any-return]
