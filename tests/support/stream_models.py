"""Learners of users, for streams: they decide by themselves, abstain, raise at times, give NaN."""

import math
from collections.abc import Collection
from typing import Any, ClassVar, Literal

import numpy as np
from river import base, linear_model, naive_bayes

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Task
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.learner import LEARNERS
from midstream.engine.state import encoding

__all__ = [
    "MULTICLASS_STYLES",
    "STYLES",
    "ArrayLearner",
    "Decider",
    "Moody",
    "MoodyRegressor",
    "Weighted",
    "chosen",
    "configured",
]

STYLES = ("threshold", "abstain", "none", "missing", "numpy", "raises")
MULTICLASS_STYLES = ("abstain", "none", "missing", "last", "numpy", "raises")


def _odd(x: dict[str, Any], share: float) -> bool:
    """Tell, by the event alone, whether it is one of a share of events."""
    total = 0.0
    for name in sorted(x):
        value = x[name]
        if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e9:
            total += value
    return math.modf(abs(total) * 7919.0)[0] < share


class Decider(base.Classifier):
    """A classifier whose label is not the most probable one."""

    def __init__(self, style: str = "threshold") -> None:
        self.style = style
        self.model = naive_bayes.GaussianNB()

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: dict[str, Any], y: Any) -> None:
        """Learn."""
        self.model.learn_one(_numbers(x), y)
        if self.style == "raises" and _odd(x, 0.08):
            raise KeyError("too late")

    def predict_proba_one(self, x: dict[str, Any]) -> dict[Any, Any]:
        """Return the probabilities, perhaps without one class, or as NumPy's numbers."""
        proba = self.model.predict_proba_one(_numbers(x))
        if self.style == "missing" and len(proba) > 1:
            proba.pop(next(iter(proba)))
        if self.style == "numpy":
            return {label: np.float64(p) for label, p in proba.items()}
        return proba

    def predict_one(self, x: dict[str, Any]) -> Any:
        """Decide."""
        proba = self.predict_proba_one(x)
        if not proba:
            return None
        best = max(proba, key=proba.__getitem__)
        if self.style == "threshold":
            return proba.get(True, 0.0) > 0.1
        if self.style == "abstain" and proba[best] < 0.7:
            return "?" if isinstance(best, str) else None
        if self.style == "none":
            return None if _odd(x, 0.5) else best
        if self.style == "last":
            return list(proba)[-1]
        if self.style == "numpy":
            return np.bool_(best) if isinstance(best, bool) else best
        return best


class Moody(base.Classifier):
    """A logistic regression that raises on some events, half updated, or gives NaN for some."""

    def __init__(self, raises: float = 0.0, nans: float = 0.0) -> None:
        self.raises = raises
        self.nans = nans
        self.model = linear_model.LogisticRegression()
        self.learned = 0

    def learn_one(self, x: dict[str, Any], y: Any, w: float = 1.0) -> None:
        """Learn, or raise in the middle of it."""
        self.learned += 1
        if _odd(x, self.raises):
            raise ArithmeticError("not in the mood")
        self.model.learn_one(_numbers(x), y, w=w)

    def predict_proba_one(self, x: dict[str, Any]) -> dict[Any, Any]:
        """Return the probabilities, at times NaN."""
        if _odd(x, self.nans):
            return {False: math.nan, True: math.nan}
        return self.model.predict_proba_one(_numbers(x))


class MoodyRegressor(base.Regressor):
    """A linear regression that raises on some events, or predicts NaN or infinity for some."""

    def __init__(self, raises: float = 0.0, nans: float = 0.0, value: float = math.nan) -> None:
        self.raises = raises
        self.nans = nans
        self.value = value
        self.model = linear_model.LinearRegression()
        self.learned = 0

    def learn_one(self, x: dict[str, Any], y: Any, w: float = 1.0) -> None:
        """Learn, or raise in the middle of it."""
        self.learned += 1
        if _odd(x, self.raises):
            raise ArithmeticError("not in the mood")
        self.model.learn_one(_numbers(x), y, w=w)

    def predict_one(self, x: dict[str, Any]) -> Any:
        """Predict, at times what is no number."""
        return self.value if _odd(x, self.nans) else self.model.predict_one(_numbers(x))


class Weighted(base.Classifier):
    """A classifier with a threshold of its own, that learns some classes by more or less."""

    def __init__(
        self,
        model: base.Classifier,
        threshold: float = 0.5,
        factors: dict[Any, float] | None = None,
    ) -> None:
        self.model = model
        self.threshold = threshold
        self.factors = factors or {}

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: dict[str, Any], y: Any, w: float = 1.0) -> None:
        """Learn."""
        weight = w * self.factors.get(y, 1.0)
        if weight == 1.0:
            self.model.learn_one(x, y)
        else:
            self.model.learn_one(x, y, w=weight or w)  # what has a weight keeps one

    def predict_proba_one(self, x: dict[str, Any]) -> dict[Any, float]:
        """Return the model's own."""
        return self.model.predict_proba_one(x)

    def predict_one(self, x: dict[str, Any]) -> Any:
        """Decide."""
        proba = self.model.predict_proba_one(x)
        if set(proba) == {False, True} and self.threshold != 0.5:
            return proba[True] > self.threshold
        return self.model.predict_one(x)


def _numbers(x: dict[str, Any]) -> dict[str, float]:
    """Keep small numbers only: what is odd is left to others."""
    return {
        name: float(value)
        for name, value in x.items()
        if isinstance(value, int | float) and abs(value) < 1e3
    }


class ArrayLearner:
    """A learner of the protocol that answers with arrays: the mean of the labels so far."""

    kind: ClassVar[str] = "array-of-tests"
    needs: Literal["dicts", "columns"] = "columns"
    takes_weights = True

    def __init__(self, task: Task = "binary", nans: int = 0, decide: float = 0.5) -> None:
        self.task: Task = task
        self.nans = nans
        self.decide = decide
        self.n = 0.0
        self.total = 0.0
        self.asked = 0

    def predict_learn(self, batch: EventBatch) -> Predictions:
        """Predict each event, then learn it if it has a label, in order."""
        return self._pass(batch, learn=True)

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict only."""
        return self._pass(batch, learn=False)

    def learn(self, batch: EventBatch) -> None:
        """Learn only."""
        self._pass(batch, learn=True)

    def _pass(self, batch: EventBatch, *, learn: bool) -> Predictions:
        mean = np.empty(len(batch))
        n, total, asked = self.n, self.total, self.asked
        for i, y in enumerate(batch.labels):
            asked += 1
            mean[i] = total / n if n else 0.0
            if self.nans and asked % self.nans == 0:
                mean[i] = math.nan
            if learn and y is not None:
                n += batch.weight(i)
                total += batch.weight(i) * float(y)
        if learn:
            self.n, self.total, self.asked = n, total, asked
        if self.task == "regression":
            return Predictions(mean)
        return Predictions(
            mean > self.decide, Table((False, True), np.stack((1.0 - mean, mean), axis=1))
        )

    def state(self) -> bytes:
        """Everything that its next result depends on."""
        return encoding.encode([self.task, self.nans, self.decide, self.n, self.total, self.asked])

    @classmethod
    def from_state(
        cls,
        data: bytes,
        *,
        task: Task,
        modules: Collection[str] = (),  # noqa: ARG003
    ) -> "ArrayLearner":
        """Build the learner that `data` was taken from."""
        task, nans, decide, n, total, asked = encoding.decode(data)
        new = cls(task, nans, decide)
        new.n, new.total, new.asked = n, total, asked
        return new

    def definition(self) -> dict[str, Any]:
        """What it is, without what it has learned."""
        return {"kind": self.kind, "task": self.task, "nans": self.nans, "decide": self.decide}


LEARNERS[ArrayLearner.kind] = ArrayLearner.from_state


chosen: list[Any] = []
"""What `configured` makes: set by tests that run configs in this process."""


def configured() -> Any:
    """Make the learner that a test has chosen."""
    return chosen[0]()
