"""Linear learners whose test-then-train loop over a batch is one compiled kernel.

Exact per sample, in stream order: event i is predicted from the events before it. The arithmetic of
scaling, losses, SGD, AdaGrad and L2 is River's, operation by operation, up to the last bits of a
square root; FTRL-Proximal follows the paper. Features may come and go; a missing one costs nothing.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import FloatArray, Label, Task, floats
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.amending import definition_differences, taken_options
from midstream.engine.learners.kernels import (
    OPTIMIZERS,
    TOTALS,
    checked_class_weights,
    checked_options,
    diverged,
    grown,
    linear_kernel,
    options_record,
    possible,
    weighted,
)
from midstream.engine.learners.learner import LearnerError
from midstream.engine.learners.slots import NO_FLOATS, Slots, odd_row, plain, sample_weights, sound
from midstream.engine.state import encoding
from midstream.engine.state.changes import Change

__all__ = ["OPTIMIZERS", "Explanation", "LinearLearner", "explained"]

_SCHEMA = 1
_CLASSES = {"false": "false", "true": "true", "0": "false", "1": "true"}


class Explanation(NamedTuple):
    """A linear model in the features' own units: score = intercept + sum(weight * x)."""

    intercept: float
    weights: dict[str, float]


def explained(
    names: Iterable[str], weights: FloatArray, scaler: FloatArray | None, intercept: float
) -> Explanation:
    """Return weights in the features' own units; `scaler` has rows: mean, variance, count."""
    if scaler is not None:
        mean, variance, _ = scaler
        moved = np.divide(
            weights, np.sqrt(variance), out=np.zeros(len(weights)), where=variance != 0
        )
        intercept -= float((moved * mean).sum())
        weights = moved
    return Explanation(intercept, dict(zip(names, weights.tolist(), strict=True)))


class LinearLearner:
    """Linear or logistic regression, learned by stochastic gradients, in a compiled loop.

    Numbers and booleans are features by name. Strings are categories, hashed with their feature's
    name, and with a sign, into a table of 2**bits weights [1]_: memory is bounded for any number
    of categories.

    Parameters
    ----------
    task
        "binary" (logistic loss) or "regression" (squared loss).
    optimizer
        "sgd", "adagrad" [2]_, "adam" [3]_ or "ftrl" (FTRL-Proximal, per coordinate [4]_).
    rate
        Learning rate; for FTRL its alpha.
    intercept_rate
        Learning rate of the intercept, to which neither penalty nor optimizer applies.
    l1, l2
        Penalties; `l1` with SGD (cumulative [5]_) and FTRL only.
    scale
        Standardize numbers by their running mean and variance, as River's StandardScaler does.
    bits
        The table of categories has 2**bits weights.
    features
        Most names of numeric features; another name is refused, to bound memory.
    clip
        Largest absolute gradient of the loss.
    beta, beta_1, beta_2, eps
        `beta` of FTRL; `beta_1` and `beta_2` of Adam; `eps` of AdaGrad and Adam.
    threshold
        Binary only: True is predicted if its probability is above this, from 0 to 1.
    class_weights
        Binary only: factors on the sample weights, from 1e-6 to 1e6, by class: True and False, or
        their names "true" and "false"; the default of a class is 1. The probabilities are then
        those of a stream with such class weights.

    Raises
    ------
    ValueError
        If an option is out of range.

    References
    ----------
    .. [1] Weinberger et al. (2009). Feature hashing for large scale multitask learning. ICML.
    .. [2] Duchi, Hazan, Singer (2011). Adaptive subgradient methods. JMLR 12.
    .. [3] Kingma, Ba (2015). Adam: a method for stochastic optimization. ICLR.
    .. [4] McMahan et al. (2013). Ad click prediction: a view from the trenches. KDD.
    .. [5] Tsuruoka, Tsujii, Ananiadou (2009). Stochastic gradient descent training for
       L1-regularized log-linear models with cumulative penalty. ACL.
    """

    kind: ClassVar[str] = "linear"
    needs: Literal["dicts", "columns"] = "columns"
    takes_weights = True

    def __init__(
        self,
        task: Task = "binary",
        *,
        optimizer: Literal["sgd", "adagrad", "adam", "ftrl"] = "sgd",
        rate: float = 0.01,
        intercept_rate: float = 0.01,
        l1: float = 0.0,
        l2: float = 0.0,
        scale: bool = True,
        bits: int = 18,
        features: int = 100_000,
        clip: float = 1e12,
        beta: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        eps: float = 1e-8,
        threshold: float = 0.5,
        class_weights: Mapping[Any, float] | None = None,
    ) -> None:
        if task not in ("binary", "regression"):
            softmax = "; for multiclass there is softmax" if task == "multiclass" else ""
            raise ValueError(f"task must be binary or regression, found {task!r}{softmax}")
        self.task: Task = task
        # Only if given: without them, state and definition equal those of earlier versions.
        asked: dict[str, Any] = {}
        if threshold != 0.5:
            asked["threshold"] = threshold
        if class_weights:
            asked["class_weights"] = checked_class_weights(class_weights, _CLASSES)
        if asked and task != "binary":
            raise ValueError(f"{next(iter(asked))} is for task binary, not for {task}")
        self._options = checked_options(
            {
                "optimizer": optimizer,
                "rate": rate,
                "intercept_rate": intercept_rate,
                "l1": l1,
                "l2": l2,
                "scale": scale,
                "bits": bits,
                "features": features,
                "clip": clip,
                "beta": beta,
                "beta_1": beta_1,
                "beta_2": beta_2,
                "eps": eps,
                **asked,
            }
        )
        self._threshold: float = self._options.get("threshold", 0.5)
        self._record = options_record(self._options)
        self._slots = Slots(bits, features)
        # Rows: weight, and two of the optimizer's; mean, variance, count. Both have room to grow.
        self._weights = np.zeros((3, 0))
        self._scaler = np.zeros((3, 0))
        self._table = np.zeros((3, 0))  # as weights, for categories; empty before the first
        self._totals = np.zeros(1, TOTALS)

    @property
    def threshold(self) -> float:
        """True is predicted if its probability is above this."""
        return self._threshold

    def predict_learn(self, batch: EventBatch) -> Predictions:
        """Predict each event, then learn it if it has a label, in order.

        Raises
        ------
        LearnerError
            At an event that would make a weight infinite, or that has a name too many.
        """
        return self._predictions(self._pass(batch, learn=True))

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict without learning."""
        return self._predictions(self._pass(batch, learn=False))

    def learn(self, batch: EventBatch) -> None:
        """Learn without predicting."""
        self._pass(batch, learn=True)

    def _predictions(self, predicted: FloatArray) -> Predictions:
        if self.task == "regression":
            return Predictions(predicted.reshape(-1))
        return Predictions(predicted[:, 1] > self._threshold, Table((False, True), predicted))

    def _pass(self, batch: EventBatch, *, learn: bool) -> FloatArray:
        """Return (n, 2) probabilities, or (n, 1) numbers."""
        try:
            labels = self._targets(batch) if learn else NO_FLOATS
            weights = sample_weights(batch)
            rows = self._slots.rows(batch, grow=learn)
        except (TypeError, ValueError, OverflowError, LearnerError) as cause:
            row = cause.row if isinstance(cause, LearnerError) else odd_row(batch, _number)
            if row:  # the kernel may stop at an event before it
                self._pass(batch[:row], learn=learn)
            if isinstance(cause, LearnerError):
                raise
            raise LearnerError(row, cause) from cause
        if learn and (factors := self._options.get("class_weights")):
            true, false = factors.get("true", 1.0), factors.get("false", 1.0)
            weights = weighted(weights, np.where(labels == 1.0, true, false))
        self._weights = grown(self._weights, len(self._slots.names))
        self._scaler = grown(self._scaler, len(self._slots.names))
        if self._slots.hashed:
            self._table = grown(self._table, 2**self._slots.bits)
        options, logistic = self._options, self.task == "binary"
        optimizer = OPTIMIZERS.index(options["optimizer"])
        run = linear_kernel(
            logistic, optimizer, options["scale"], options["l1"] != 0.0 and optimizer == 0
        )
        predicted = np.empty((len(batch), 2 if logistic else 1))
        done = run(
            *rows, labels, weights, self._record, self._weights, self._scaler, self._table,
            self._totals, predicted,
        )  # fmt: skip
        if done < len(batch):
            raise LearnerError(done, self._reason(batch, labels, done))
        return predicted

    def _reason(self, batch: EventBatch, labels: FloatArray, row: int) -> Exception:
        """Return why the kernel stopped at an event."""
        if self.task == "binary" and labels[row] not in (0.0, 1.0):
            label = batch.labels[row]
            return ValueError(f"a binary label is True, False, 1 or 0, got {label!r}")
        return diverged()

    def _targets(self, batch: EventBatch) -> FloatArray:
        """Return labels as numbers, NaN for none."""
        if batch.targets is not None:
            return plain(batch.targets.values)
        labels = batch.labels
        return floats([math.nan if y is None else y for y in labels] if None in labels else labels)

    def explain(self, categories: Mapping[str, Collection[str]] | None = None) -> Explanation:
        """Return the model in the features' own names and units.

        Parameters
        ----------
        categories
            Values of categorical features to give weights for, as ``name=value``; the table does
            not hold their names.
        """
        d = len(self._slots.names)
        explanation = explained(
            self._slots.names,
            self._weights[0, :d],
            self._scaler[:, :d] if self._options["scale"] else None,
            float(self._totals["intercept"][0]),
        )
        for name, values in (categories or {}).items():
            for value in values:
                slot, sign = self._slots.category(name, value)
                weight = float(self._table[0, -1 - slot]) if self._slots.hashed else 0.0
                explanation.weights[f"{name}={value}"] = weight * sign
        return explanation

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved definition, and their effect on what was learned."""
        return definition_differences(old, self.definition())

    def amended(self, old: "LinearLearner") -> "LinearLearner":
        """Return this learner, continued from what `old` has learned.

        Raises
        ------
        MisfitError
            If part of that does not fit; the message names the option.
        """
        state = taken_options(encoding.decode(old.state()), old._options, self._options)
        return LinearLearner._restored(state, self.task)

    def state(self) -> bytes:
        """Return everything that its next result depends on; equal learners give equal bytes."""
        d = len(self._slots.names)
        used = np.flatnonzero(self._table.any(axis=0))
        totals = self._totals[0]
        return encoding.encode(
            {
                "schema": _SCHEMA,
                "options": self._options,
                "names": list(self._slots.names),
                "weights": self._weights[:, :d].copy(),
                "scaler": self._scaler[:, :d].copy(),
                "hashed": 2**self._slots.bits if self._table.shape[1] else 0,
                "used": used,
                "table": self._table[:, used].copy(),
                "intercept": float(totals["intercept"]),
                "steps": int(totals["steps"]),
                "penalty": float(totals["penalty"]),
            }
        )

    @classmethod
    def from_state(
        cls, data: bytes, *, task: Task, modules: Collection[str] = ()
    ) -> "LinearLearner":
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
    def _restored(cls, state: Mapping[str, Any], task: Task) -> "LinearLearner":
        new = cls(task, **state["options"])
        names, hashed, used = state["names"], state["hashed"], state["used"]
        shapes = {"weights": (3, len(names)), "scaler": (3, len(names)), "table": (3, len(used))}
        if not (
            new._slots.takes(names, used)
            and (type(hashed), type(state["steps"])) == (int, int)
            and 0 <= state["steps"] < 2**53
            and hashed in (0, 2**new._slots.bits)
            and (hashed or not len(used))
            and all(type(state[key]) is float for key in ("intercept", "penalty"))
            and all(math.isfinite(state[key]) for key in ("intercept", "penalty"))
            and all(sound(state[key], shape) for key, shape in shapes.items())
            and possible(new._options["optimizer"], state["weights"], state["scaler"])
            and possible(new._options["optimizer"], state["table"], state["scaler"])
        ):
            raise ValueError("damaged learner state: its parts do not fit together")
        new._slots.names = {name: i for i, name in enumerate(names)}
        new._slots.hashed = hashed > 0
        new._table = np.zeros((3, hashed))
        new._table[:, used] = state["table"]
        new._weights = state["weights"].copy()
        new._scaler = state["scaler"].copy()
        for name in ("intercept", "steps", "penalty"):
            new._totals[name] = state[name]
        return new

    def definition(self) -> dict[str, Any]:
        """Return what defines it, without what it has learned: plain JSON values."""
        return {"kind": self.kind, "task": self.task, **self._options}


def _number(label: Label | None) -> None:
    if label is not None:
        floats([label])
