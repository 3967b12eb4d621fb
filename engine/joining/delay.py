"""Methods against the bias of labels that come late: weights, calibration, auxiliary models.

The stream of a binary task shows most events as negatives before their positive comes. FNW and FNC
[1]_ learn each event as negative first, and a positive again as positive; ES-DFM [2]_ does so with
the events that have no positive after an elapsed time.

References
----------
.. [1] Ktena et al. (2019). Addressing delayed feedback for continuous training with neural networks
   in CTR prediction. RecSys.
.. [2] Yang et al. (2021). Capturing delayed feedback in conversion rate prediction via elapsed-time
   sampling. AAAI.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import FloatArray
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.joining.waiting import labelled
from midstream.engine.learners.learner import LearnerError
from midstream.engine.learners.linear import LinearLearner

__all__ = [
    "DELAYED",
    "IMMEDIATE",
    "NEGATIVE",
    "ElapsedTime",
    "calibrated",
    "fake_negative_weights",
    "proba_true",
]

IMMEDIATE, DELAYED, NEGATIVE = 0, 1, 2
"""Outcomes: a positive within the elapsed time, a positive after it, no positive."""
_OPTIONS: Mapping[str, Any] = {"rate": 0.02, "intercept_rate": 0.05}


def proba_true(predictions: Predictions) -> FloatArray:
    """Return (n,) probabilities of True; 0 where there is none, or none that is a number."""
    table = predictions.table
    if table is not None:
        found = table.values[:, table.classes.index(True)] if True in table.classes else None
    else:
        rows = predictions.probas
        found = None if rows is None else np.array([row.get(True, 0.0) for row in rows], np.float64)
    if found is None:
        return np.zeros(len(predictions))
    return np.where(np.isfinite(found), found, 0.0)


def fake_negative_weights(p: FloatArray, *, label: bool) -> FloatArray:
    """Return the weights of FNW: 1 + p of a positive, (1 - p)(1 + p) of a fake negative [1]_."""
    return 1.0 + p if label else (1.0 - p) * (1.0 + p)


def calibrated(predictions: Predictions, threshold: float) -> Predictions:
    """Return the predictions of FNC: p = b / (1 - b), at most 1, where the model predicted b [1]_.

    Parameters
    ----------
    threshold
        True is predicted where p is above it.
    """
    table = predictions.table
    if table is not None and set(table.classes) == {False, True}:
        at = table.classes.index(True)
        p = _odds(table.values[:, at])
        values = np.empty_like(table.values)
        values[:, at], values[:, 1 - at] = p, 1.0 - p
        return Predictions(p > threshold, Table(table.classes, values))
    rows = predictions.probas
    if rows is None:
        return predictions
    odds = _odds(np.array([row.get(True, np.nan) for row in rows], np.float64)).tolist()
    known = [True in row for row in rows]
    return Predictions(
        [
            p > threshold if has and value is not None else value
            for p, has, value in zip(odds, known, predictions.values, strict=True)
        ],
        [
            {**row, False: 1.0 - p, True: p} if has else row
            for p, has, row in zip(odds, known, rows, strict=True)
        ],
    )


def _odds(b: FloatArray) -> FloatArray:
    """Return b / (1 - b), at most 1; NaN stays NaN."""
    low = np.minimum(b, 0.5)
    return np.asarray(low / (1.0 - low), np.float64)


class ElapsedTime:
    """The auxiliary models of ES-DFM, and the weights that they give [2]_.

    With p_dp, the probability that a positive comes after the elapsed time, and p_rn, that of a
    real negative where none came within it, a positive has the weight 1 + p_dp and a negative
    (1 + p_dp) p_rn. Both are logistic regressions of the same features as the model's.

    Attributes
    ----------
    outcomes, negatives
        How many outcomes were learned, and how many of them without a positive within the elapsed
        time. Before the first, p_dp is 0 and p_rn is 1.
    """

    def __init__(self) -> None:
        self.delayed = LinearLearner("binary", **_OPTIONS)
        self.real = LinearLearner("binary", **_OPTIONS)
        self.outcomes = 0
        self.negatives = 0

    def weights(self, batch: EventBatch, *, label: bool) -> FloatArray:
        """Return the (n,) weights of events with a label, by what was learned so far."""
        delayed = np.zeros(len(batch))
        if self.outcomes:
            delayed = proba_true(self.delayed.predict(batch))
        if label or not self.negatives:
            return 1.0 + delayed
        return (1.0 + delayed) * proba_true(self.real.predict(batch))

    def learn(self, batch: EventBatch, outcomes: list[int]) -> int:
        """Learn what became of events, in order; return how many could not be learned.

        A model begins anew after an event that would make one of its weights infinite.
        """
        delayed = [outcome == DELAYED for outcome in outcomes]
        self.delayed, failed = _taught(self.delayed, batch, delayed)
        rows = [row for row, outcome in enumerate(outcomes) if outcome != IMMEDIATE]
        if rows:
            negatives = batch if len(rows) == len(batch) else batch.take(rows)
            real = [outcomes[row] == NEGATIVE for row in rows]
            self.real, more = _taught(self.real, negatives, real)
            failed += more
        self.outcomes += len(outcomes)
        self.negatives += len(rows)
        return failed

    def state(self) -> list[Any]:
        """Return everything that later weights depend on, as plain values."""
        return [self.delayed.state(), self.real.state(), self.outcomes, self.negatives]

    @classmethod
    def from_state(cls, state: list[Any]) -> "ElapsedTime":
        """Build the models that `state` was taken from.

        Raises
        ------
        ValueError
            If the state is damaged.
        """
        new = cls()
        delayed, real, new.outcomes, new.negatives = state
        new.delayed = LinearLearner.from_state(delayed, task="binary")
        new.real = LinearLearner.from_state(real, task="binary")
        return new


def _taught(
    model: LinearLearner, batch: EventBatch, labels: list[bool]
) -> tuple[LinearLearner, int]:
    """Teach a model; return it, or the one in its place, and how many events were left out."""
    at = failed = 0
    given = labelled(batch, labels, [1.0] * len(batch), "binary")
    while at < len(given):
        try:
            model.learn(given[at:] if at else given)
            break
        except LearnerError as error:
            at += error.row + 1
            failed += 1
            if isinstance(error.cause, ArithmeticError):  # its state is not to be used any more
                model = LinearLearner("binary", **_OPTIONS)
    return model, failed
