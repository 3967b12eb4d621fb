"""Test-then-train metrics: over the whole stream, faded, and over a window.

Each event is predicted before it is learned, and the prediction is scored here. Compiled kernels
accumulate one event after the other, so results and state do not depend on how the stream was cut
into batches, to the last bit.

Classification keeps three counts per class (labels, predictions, hits). Accuracy, balanced
accuracy, macro F1, F1 and kappa follow from them at report time, and memory grows with the number
of classes, not with its square. Windowed values are computed anew from a ring buffer at report
time, so they cannot drift.

Every sum stays finite for any input: a prediction that is not a finite number is counted and left
out, and so is a number whose square could not be summed.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from midstream.engine.events.batch import Targets
from midstream.engine.events.event import LARGEST, TASKS, FloatArray, IntArray, Label, Task, floats
from midstream.engine.events.predictions import Table, odd_probas
from midstream.engine.metrics.metric import Metric, Unread, make_metric, metric_names
from midstream.engine.state.changes import Change, differences

__all__ = ["METRICS", "Prequential"]

METRICS: dict[Task, tuple[str, ...]] = {
    "binary": (
        "accuracy", "balanced_accuracy", "log_loss", "roc_auc", "f1", "macro_f1", "kappa",
        "kappa_temporal",
    ),
    "multiclass": (
        "accuracy", "balanced_accuracy", "log_loss", "macro_f1", "kappa", "kappa_temporal",
    ),
    "regression": ("mae", "rmse", "r2"),
}  # fmt: skip
"""The metrics of each task, in the order in which they are reported."""

_SCHEMA = 1
_VIEWS = ("", ".fading", ".window")
_Proba: TypeAlias = Mapping[Label, float] | None
_Views: TypeAlias = dict[str, dict[str, float]]  # view -> metric -> value

_NO_PROBA = math.nan  # the learner gave no probabilities for this event, or none that are finite
_PROBA_MIN, _PROBA_MAX = 1e-15, 1 - 1e-15  # River's clamp
_FADING_MIN = 0.001  # no smaller, or a weight could overflow between two rescalings
_RESCALE = 2.0**64  # a power of two: rescaling rounds nothing
_MOST = 2**53  # most events: a float counts them exactly
_SLACK = 1.0 + 1e-6  # tolerates rounding errors of sums
_MOST_CLASSES = 2**31 - 1  # codes are kept as 32 bits
_LOSS_MAX = 40.0  # above any logarithmic loss of a clamped probability
_SQUARES_MAX = 1e300  # above any sum of squares of numbers up to `LARGEST`
_LABELS = {bool, int, float, str}
_HOLE = -1  # in a ring of codes: an event that the old ring did not hold
_NO_NUMBER = 1e300  # likewise in a ring of numbers: beyond any number scored
_GONE = 1e-9  # a class whose faded count is below this has left the fading view

_LABEL_TOTALS = np.dtype([
    ("scored", "i8"),
    ("last", "i8"),  # code of the last label; -1: none yet
    ("pairs", "i8"),  # scored events with a label before them, which no-change can predict
    ("same", "i8"),  # ... and whose label equals that one
    ("weight", "f8"),  # what the newest event adds to the faded counts
    ("faded_pairs", "f8"),
    ("faded_same", "f8"),
])  # fmt: skip
_PROBA_TOTALS = np.dtype([
    ("scored", "i8"),
    ("mean", "f8"),
    ("faded", "f8"),
    ("faded_count", "f8"),
])  # fmt: skip
_NUMBER_TOTALS = np.dtype([
    ("scored", "i8"),
    ("labels", "i8"),
    ("last", "f8"),
    ("pairs", "i8"),
    ("no_change", "f8"),  # running mean of the no-change predictor's absolute error
    ("mae", "f8"),
    ("mse", "f8"),
    ("residual", "f8"),  # sum of squared errors
    ("label_mean", "f8"),
    ("label_squares", "f8"),  # sum of squared deviations of the labels from their mean
    ("faded_count", "f8"),
    ("faded_absolute", "f8"),
    ("faded_residual", "f8"),
    ("faded_label_mean", "f8"),
    ("faded_label_squares", "f8"),
])  # fmt: skip


# Means are River's, operation by operation: mean += (1 / n) * (x - mean). No fastmath, which
# would let the compiler reorder them. A kernel checks each index before it counts.
@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _read_codes(column: FloatArray, codes: IntArray) -> tuple[int, int]:
    """Turn 0.0 and 1.0 into codes, and non-finite numbers into -1.

    Return the row of the first other number, or -1, and the number of non-finite ones.
    """
    if codes.size != column.size:
        raise ValueError("a code for each number")
    others = 0
    for i in range(column.size):  # without branches, which would be mispredicted
        x = column[i]
        codes[i] = x == 1.0
        others += (x != 0.0) & (x != 1.0)
    if not others:
        return -1, 0
    odd = 0
    for i in range(column.size):
        if not math.isfinite(column[i]):
            codes[i] = -1
            odd += 1
        elif column[i] != 0.0 and column[i] != 1.0:
            return i, odd
    return -1, odd


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _score_labels(  # kernels take arrays, not objects
    truths: IntArray,
    guesses: IntArray,
    fading: float,
    totals: npt.NDArray[np.void],
    counts: IntArray,
    faded: FloatArray,
    ring: npt.NDArray[np.int32],
    losses: FloatArray,
) -> None:
    t = totals[0]
    n, k = truths.size, counts.shape[1]
    if not (
        guesses.size == losses.size == n
        and counts.shape[0] == faded.shape[0] == ring.shape[0] == 3
        and faded.shape[1] == k
        and ring.shape[1] > 0
        and t.scored >= 0
        and t.weight <= _RESCALE
    ):
        raise ValueError("the arrays of the counts do not fit together")
    for i in range(n):
        if truths[i] >= k or guesses[i] >= k:
            raise ValueError("a class beyond the counts")
    for i in range(n):
        truth, guess = truths[i], guesses[i]
        if truth < 0:
            continue
        if guess >= 0:
            hit = truth == guess
            losses[i] = 0.0 if hit else 1.0
            counts[0, truth] += 1
            counts[1, guess] += 1
            counts[2, truth] += hit
            # Old counts do not shrink: new events weigh more. O(1) for any number of classes.
            t.weight /= fading
            while t.weight > _RESCALE:
                t.weight /= _RESCALE
                faded /= _RESCALE
            faded[0, truth] += t.weight
            faded[1, guess] += t.weight
            faded[2, truth] += t.weight * hit
            slot = t.scored % ring.shape[1]
            ring[0, slot] = truth
            ring[1, slot] = guess
            ring[2, slot] = -1
            t.faded_pairs *= fading
            t.faded_same *= fading
            if t.last >= 0:
                same = truth == t.last
                t.pairs += 1
                t.same += same
                t.faded_pairs += 1.0
                t.faded_same += same
                ring[2, slot] = same
            t.scored += 1
        t.last = truth


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _score_probas(  # kernels take arrays, not objects
    truths: IntArray,
    probas: FloatArray,
    binary: bool,
    fading: float,
    totals: npt.NDArray[np.void],
    ring: FloatArray,
) -> None:
    t = totals[0]
    if not (
        probas.size == truths.size
        and ring.shape[0] == (3 if binary else 1)
        and ring.shape[1] > 0
        and t.scored >= 0
    ):
        raise ValueError("the arrays of the probabilities do not fit together")
    for i in range(truths.size):
        if truths[i] < 0 or math.isnan(probas[i]):
            continue
        p = max(min(probas[i], _PROBA_MAX), _PROBA_MIN)
        if binary and truths[i] == 0:
            p = 1.0 - p
        loss = -math.log(p)
        slot = t.scored % ring.shape[1]
        ring[0, slot] = loss
        if binary:
            ring[1, slot] = probas[i]
            ring[2, slot] = truths[i]
        t.scored += 1
        t.mean += (1.0 / t.scored) * (loss - t.mean)
        t.faded = t.faded * fading + loss
        t.faded_count = t.faded_count * fading + 1.0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _score_numbers(  # kernels take arrays, not objects
    truths: FloatArray,
    guesses: FloatArray,
    given: npt.NDArray[np.int8],
    fading: float,
    totals: npt.NDArray[np.void],
    ring: FloatArray,
    losses: FloatArray,
    left_out: IntArray,
) -> int:
    """Score numbers, unless a label is not finite; return the row of the first such, or -1.

    `given` is the sum of 1 for a label and 2 for a prediction. Non-finite predictions and labels
    that are too large are counted in `left_out`.
    """
    t = totals[0]
    n = truths.size
    if not (
        guesses.size == given.size == losses.size == n
        and ring.shape[0] == 2
        and ring.shape[1] > 0
        and left_out.size == 2
        and t.scored >= 0
    ):
        raise ValueError("the arrays of the numbers do not fit together")
    for i in range(n):
        if given[i] & 1 and not math.isfinite(truths[i]):
            return i
    for i in range(n):
        predicted = (given[i] & 2) != 0
        if predicted and not abs(guesses[i]) <= LARGEST:
            left_out[0] += 1
            predicted = False
        if not given[i] & 1:
            continue
        y = truths[i]
        if abs(y) > LARGEST:
            left_out[1] += 1
            continue
        if predicted:
            error = y - guesses[i]
            losses[i] = abs(error)
            slot = t.scored % ring.shape[1]
            ring[0, slot] = y
            ring[1, slot] = guesses[i]
            t.scored += 1
            w = 1.0 / t.scored
            t.mae += w * (abs(error) - t.mae)
            t.mse += w * (error * error - t.mse)
            t.residual += error * error
            deviation = y - t.label_mean
            t.label_mean += w * deviation
            t.label_squares += deviation * (y - t.label_mean)
            t.faded_count = t.faded_count * fading + 1.0
            t.faded_absolute = t.faded_absolute * fading + abs(error)
            t.faded_residual = t.faded_residual * fading + error * error
            deviation = y - t.faded_label_mean
            t.faded_label_mean += (1.0 / t.faded_count) * deviation
            t.faded_label_squares = t.faded_label_squares * fading + deviation * (
                y - t.faded_label_mean
            )
            if t.labels > 0:
                t.pairs += 1
                t.no_change += (1.0 / t.pairs) * (abs(y - t.last) - t.no_change)
        t.labels += 1
        t.last = y
    return -1


class Prequential:
    """Scores predictions in the order of the stream.

    Parameters
    ----------
    task
        binary, multiclass or regression.
    metrics
        Names of metrics, see Notes. Default: all of the task (`METRICS`).
    window
        Number of scored events in the windowed values; for `log_loss` and `roc_auc`, number of
        events with probabilities.
    fading
        Factor by which an event's weight falls with each later one, in [0.001, 1]; the faded
        values remember about ``1 / (1 - fading)`` events. [1]_

    Raises
    ------
    ValueError
        If the task or a metric is unknown, a metric is of another task, or `window` or `fading`
        is out of range.

    Notes
    -----
    Cumulative values equal River's, including its conventions, except where stated: probabilities
    are clamped to [1e-15, 1 - 1e-15], and a value with a zero denominator is 0. Before the first
    scored event all values are nan.

    An event with a non-finite prediction (`non_finite`) is left out of every metric: River's would
    be nan from then on. So is an event whose label is beyond ±1e140 (`too_large`), since its
    squared error could not be summed; a prediction beyond that counts as infinite. If the label was
    too large, no-change keeps the label before such an event.

    - ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that had labels),
      ``macro_f1`` (mean over the classes that were labels or predictions), ``kappa`` [2]_.
    - ``f1`` (binary): of the positive class, True.
    - ``log_loss``, in nats: River's LogLoss (binary) and CrossEntropy (multiclass). It has its own
      count: every labelled event with probabilities. A label that is not among them has probability
      0 and costs the clamp, 34.54; in River's CrossEntropy it costs nothing. An event without any
      probabilities, as before the first label, is not scored, as in River's progressive_val_score.
    - ``roc_auc`` (binary): exact over the window, ties counted half [3]_; there is no cumulative
      or faded one. nan while the window has one class only.
    - ``kappa_temporal``: the share of the no-change classifier's errors that is avoided [4]_; nan
      if it makes none.
    - ``mae`` and ``rmse`` in units of the label, ``r2``. Faded variance as in [5]_.

    Binary labels are True and False, or 1 and 0. Multiclass labels are compared as keys of a dict:
    1, 1.0 and True are one class, named by the first to appear; a `Trainer` admits labels of one
    kind only. A class leaves the fading view once its count is below 1e-9 of an event.

    References
    ----------
    .. [1] Gama, Sebastião, Rodrigues (2013). On evaluating stream learning algorithms. Machine
       Learning 90, 317-346.
    .. [2] Cohen (1960). A coefficient of agreement for nominal scales. Educational and
       Psychological Measurement 20(1), 37-46.
    .. [3] Fawcett (2006). An introduction to ROC analysis. Pattern Recognition Letters 27, 861-874.
       Section 7.
    .. [4] Žliobaitė, Bifet, Read, Pfahringer, Holmes (2015). Evaluation methods and decision theory
       for classification of streaming data with temporal dependence. Machine Learning 98, 455-482.
    .. [5] West (1979). Updating mean and variance estimates: an improved method. Communications of
       the ACM 22(9), 532-535.
    """

    def __init__(
        self,
        task: Task,
        metrics: Sequence[str] | None = None,
        *,
        window: int = 1000,
        fading: float = 0.999,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; one of {', '.join(TASKS)}")
        if window < 1:
            raise ValueError(f"window must be at least 1 event, got {window}")
        if not _FADING_MIN <= fading <= 1:
            raise ValueError(f"fading must be from {_FADING_MIN} to 1, got {fading}")
        self.task: Task = task
        self.metrics = METRICS[task] if metrics is None else tuple(dict.fromkeys(metrics))
        self._own: dict[str, Metric] = {}
        for name in self.metrics:
            if name not in METRICS[task]:
                self._own[name] = make_metric(name, task)
        self.window = operator.index(window)
        self.fading = float(fading)
        reads = not {"log_loss", "roc_auc"}.isdisjoint(self.metrics)
        self._tally: _Classes | _Numbers = (
            _Numbers(window, self.fading)
            if task == "regression"
            else _Classes(task == "binary", window, self.fading, scores_probas=reads)
        )

    @property
    def _scores_probas(self) -> bool:
        return isinstance(self._tally, _Classes) and self._tally.scores_probas

    @property
    def scored(self) -> int:
        """Number of scored events: those with a label and a predicted value."""
        return int(self._tally.totals["scored"][0])

    @property
    def non_finite(self) -> int:
        """Number of events, labelled or not, whose prediction was not a finite number.

        A number that is nan, infinite or beyond ±1e140, or a probability that is nan or infinite.
        """
        return int(self._tally.left_out[0])

    @property
    def too_large(self) -> int:
        """Number of events whose label was a finite number, but beyond ±1e140."""
        return int(self._tally.left_out[1])

    @property
    def no_change(self) -> float:
        """The score of predicting the last label: accuracy, or mean absolute error.

        Taken over the scored events that had a label before them, so that it is comparable with the
        learner's own; nan before the first of them.
        """
        return self._tally.no_change()

    def update(
        self,
        labels: Sequence[Label | None] | Targets,
        values: Sequence[Label | None] | npt.NDArray[Any],
        probas: Sequence[_Proba] | Table | None = None,
    ) -> FloatArray:
        """Score a batch, in order.

        Parameters
        ----------
        labels
            n labels; None: no label. Or `Targets`, if `values` is an array, too.
        values
            n predicted labels or numbers; None: no prediction. Or an (n,) array without any None.
        probas
            n mappings from label to probability, empty or None where there is none; or a `Table`
            of n rows; or None.

        Returns
        -------
        numpy.ndarray
            (n,) float64, one loss per event: 0 or 1 (wrong) for classification, the absolute error
            for regression; nan for an event that is not scored, because its label or prediction is
            missing, its prediction is not finite, or its label is too large.

        Raises
        ------
        ValueError
            If the columns differ in length, a label is not finite, or a binary label or predicted
            label is none of True, False, 1 and 0. Nothing is scored then.
        TypeError
            If a label cannot be a key of a dict, or for regression is not a number. Likewise.
        """
        n = len(labels.values) if isinstance(labels, Targets) else len(labels)
        rows = probas.values if isinstance(probas, Table) else probas
        if len(values) != n or (rows is not None and len(rows) != n):
            found = "no" if rows is None else len(rows)
            raise ValueError(f"{n} labels, {len(values)} values, {found} probas: not one batch")
        if isinstance(probas, Table) and probas.values.shape != (n, len(probas.classes)):
            raise ValueError(f"{len(probas.classes)} classes have probas of {probas.values.shape}")
        if isinstance(labels, Targets):
            if self.task == "multiclass" or labels.binary != (self.task == "binary"):
                raise TypeError(f"these are no targets of task {self.task}")
            numbers, guesses = labels.values, np.asarray(values)
            if numbers.shape != (n,) or guesses.shape != (n,) or guesses.dtype.kind not in "biuf":
                raise ValueError(
                    f"targets of {numbers.shape} and predictions of {guesses.shape} "
                    f"{guesses.dtype}: not a column of numbers each"
                )
            losses = self._tally.update_arrays(numbers, guesses, probas)
            if self._own:
                known: list[Label | None] = [
                    None if math.isnan(y) else bool(y) if labels.binary else y
                    for y in numbers.tolist()
                ]
                self._update_own(known, guesses.tolist(), probas)
            return losses
        listed: Any = values
        if isinstance(values, np.ndarray):
            if self.task == "binary" and values.dtype.kind in "iuf":
                _codes("predicted label", values)  # raises unless 0 or 1
            listed = values.tolist()
        losses = self._tally.update(labels, listed, probas)
        if self._own:
            self._update_own(labels, listed, probas)
        return losses

    def _update_own(
        self,
        labels: Sequence[Label | None],
        values: Sequence[Label | None],
        probas: Sequence[_Proba] | Table | None,
    ) -> None:
        """Pass a batch to the metrics of other packages."""
        rows: list[_Proba]
        if isinstance(probas, Table):
            rows = [dict(zip(probas.classes, row, strict=True)) for row in probas.values.tolist()]
        else:
            rows = [None] * len(labels) if probas is None else list(probas)
        for metric in self._own.values():
            metric.update(labels, values, rows)

    def report(self) -> dict[str, float]:
        """Return the present values: ``name``, ``name.fading`` and ``name.window`` of each metric.

        ROC AUC has the windowed value only. Undefined values are nan. The cost is proportional to
        the window and the number of classes.
        """
        views = self._tally.views()
        out: dict[str, float] = {}
        for name in self.metrics:
            if name in self._own:
                out |= {f"{name}{key}": value for key, value in self._own[name].report().items()}
            elif name == "roc_auc":
                out["roc_auc.window"] = views[".window"][name]
            else:
                out |= {name + view: float(views[view][name]) for view in _VIEWS}
        return out

    def __str__(self) -> str:
        report = self.report()
        lines = [
            f"{self.task}, {self.scored:,} events scored, no-change {self.no_change:.6f}",
            f"{'':<18}{'all':>12}{'fading':>12}{'window':>12}",
        ]
        for count, what in (
            (self.non_finite, "predictions are not finite"),
            (self.too_large, "labels are too large"),
        ):
            if count:
                lines[0] += f"; left out, as {what}: {count:,}"
        for name in self.metrics:
            values = [report.get(name + view) for view in _VIEWS]
            cells = ["" if value is None else f"{value:.6f}" for value in values]
            lines.append(f"{name:<18}" + "".join(f"{cell:>12}" for cell in cells))
        return "\n".join(lines)

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved definition, and their effect on the counts."""
        new = self.definition()
        if old.get("task") != new["task"]:
            return differences("metrics", {"task": old.get("task")}, {"task": self.task},
                               level="refused", effect="metrics of another task")  # fmt: skip
        was, now = old.get("metrics", []), new["metrics"]
        found = [
            Change("metrics", name, "-", "on", effect=self._effect_of_adding(name, was))
            for name in now
            if name not in was
        ]
        found += [
            Change("metrics", name, "on", "-", effect="no longer reported")
            for name in was
            if name not in now
        ]
        for key, effect in (
            ("window", "longer from now on" if self.window > old.get("window", 0) else "cut"),
            ("fading", "from now on"),
        ):
            found += differences("metrics", _only(old, key), _only(new, key), effect=effect)
        rest = {"task", "metrics", "window", "fading"}
        surplus = {key: value for key, value in old.items() if key not in rest}
        return found + differences("metrics", surplus, {}, level="refused", effect="unknown here")

    def _effect_of_adding(self, name: str, before: Sequence[str]) -> str:
        if name in self._own:
            return "begins now"
        reads = {"log_loss", "roc_auc"}
        return "begins now" if name in reads and reads.isdisjoint(before) else "over all events"

    def amended(self, old: "Prequential") -> "Prequential":
        """Return metrics defined as these, continued from what `old` has counted.

        Raises
        ------
        ValueError
            If `old` is for another task.
        """
        if old.task != self.task:
            raise ValueError(f"metrics of task {old.task} are none of task {self.task}")
        if self._scores_probas and not old._scores_probas:  # what was counted before has a gap
            blank = Prequential(self.task, self.metrics, window=old.window).state()
            probas = {key: blank[key] for key in ("proba_totals", "proba_ring") if key in blank}
        else:
            probas = {}
        state = old.state() | self.definition() | probas
        for ring, totals in (("ring", "totals"), ("proba_ring", "proba_totals")):
            if ring in state:
                scored = state[totals]["scored"]
                state[ring] = _resized(state[ring], scored, self.window)
        if "own" in state:
            state["own"] = {n: own for n, own in state["own"].items() if n in self._own}
        return Prequential.from_state(state)

    def definition(self) -> dict[str, Any]:
        """Return what is measured, without the counts: plain JSON values."""
        return {
            "task": self.task,
            "metrics": list(self.metrics),
            "window": self.window,
            "fading": self.fading,
        }

    def state(self) -> dict[str, Any]:
        """Return everything that affects later results, as plain values and arrays, copied."""
        own = {name: metric.state() for name, metric in self._own.items()}
        return {
            "schema": _SCHEMA,
            **self.definition(),
            **self._tally.state(),
            **({"own": own} if own else {}),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Prequential":
        """Build metrics from `state`; they continue exactly as the original would have.

        Raises
        ------
        ValueError
            If this version does not read the state's schema, or counting cannot have led to its
            parts: kernels index and loop by them.
        """
        if not isinstance(state, Mapping) or state.get("schema") != _SCHEMA:
            found = state.get("schema") if isinstance(state, Mapping) else state
            raise ValueError(
                f"metrics state has schema {found!r:.100}, this version reads {_SCHEMA}"
            )
        try:
            window = state["window"]
            _check(type(window) is int and np.shape(state["ring"])[1:] == (window,), "window")
            _check(type(state["fading"]) is float, "fading")
            _check(type(state["metrics"]) in (list, tuple), "metrics")
            held = state.get("own", {})
            gone = held.keys() - set(metric_names(state["task"]) if held else ())
            there = [name for name in state["metrics"] if name not in gone]
            new = cls(state["task"], there, window=window, fading=state["fading"])
            new._tally.load(state)
            for name in new._own:
                if name in held:
                    new._own[name] = type(new._own[name]).from_state(held[name])
            if gone:
                new.metrics = tuple(state["metrics"])
                unread = {name: Unread(name, {**held[name]}) for name in gone}
                own = {**new._own, **unread}
                new._own = {name: own[name] for name in new.metrics if name in own}
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"damaged metrics state: {type(error).__name__}: {error}") from error
        return new


class _Classes:
    """Counts per class, and the losses of probabilities."""

    def __init__(self, binary: bool, window: int, fading: float, *, scores_probas: bool) -> None:
        self.binary = binary
        self.fading = fading
        self.scores_probas = scores_probas
        self.codes: dict[Label | None, int] = {None: -1}
        if binary:
            self.codes |= {False: 0, True: 1}
        self.left_out = np.zeros(2, np.int64)
        self.totals = np.zeros(1, _LABEL_TOTALS)
        self.totals["last"] = -1
        self.totals["weight"] = 1.0
        # Rows: labels, predictions, hits. Columns: classes, with room for more.
        self.counts = np.zeros((3, 2), np.int64)
        self.faded = np.zeros((3, 2))
        # Rows: label, prediction, whether no-change was right (-1: nothing before it).
        self.ring = np.zeros((3, window), np.int32)
        self.proba_totals = np.zeros(1, _PROBA_TOTALS)
        # Rows: loss, probability of True, label; the latter two for the AUC only.
        self.proba_ring = np.zeros((3 if binary else 1, window))

    @property
    def k(self) -> int:
        """Number of classes seen."""
        return len(self.codes) - 1

    def update(
        self,
        labels: Sequence[Label | None],
        values: Sequence[Label | None],
        probas: Sequence[_Proba] | Table | None,
    ) -> FloatArray:
        scores = self._scores(probas, labels)
        odd = odd_probas(probas)
        try:
            truths, guesses = self._encode(labels), self._encode(values)
        except KeyError:
            odd |= {i for i, v in enumerate(values) if isinstance(v, float) and v - v != 0.0}
            values = [None if i in odd else v for i, v in enumerate(values)]
            self._add_classes(labels, values)
            truths, guesses = self._encode(labels), self._encode(values)
        return self._score(truths, guesses, scores, odd)

    def update_arrays(
        self,
        labels: FloatArray,
        values: npt.NDArray[Any],
        probas: Sequence[_Proba] | Table | None,
    ) -> FloatArray:
        scores = self._scores(probas, [None] * len(values) if probas is not None else [])
        odd = odd_probas(probas)
        truths, _ = _codes("label", labels)
        if values.dtype == np.bool_:
            guesses = values.astype(np.int64)
        else:
            guesses, strange = _codes("predicted label", values)
            if strange:
                odd.update(np.flatnonzero(guesses < 0).tolist())
        return self._score(truths, guesses, scores, odd)

    def _score(
        self, truths: IntArray, guesses: IntArray, scores: FloatArray | None, odd: set[int]
    ) -> FloatArray:
        losses = np.full(len(truths), np.nan)
        if odd:
            rows = list(odd)
            guesses[rows] = -1
            if scores is not None:
                scores[rows] = _NO_PROBA
            self.left_out[0] += len(odd)
        _score_labels(
            truths, guesses, self.fading, self.totals, self.counts, self.faded, self.ring, losses
        )
        if scores is not None:
            _score_probas(
                truths, scores, self.binary, self.fading, self.proba_totals, self.proba_ring
            )
        return losses

    def _scores(
        self, probas: Sequence[_Proba] | Table | None, labels: Sequence[Label | None]
    ) -> FloatArray | None:
        """Return (n,) probabilities: of True, or of the label in a multiclass task.

        nan if the learner gave none at all; 0 if it gave some, but none for this class.
        """
        if probas is None or not self.scores_probas:
            return None
        if isinstance(probas, Table) and not probas.classes:
            return np.full(len(labels), _NO_PROBA)
        if isinstance(probas, Table) and self.binary:
            if True not in probas.classes:
                return np.zeros(len(labels))
            return np.array(probas.values[:, probas.classes.index(True)], np.float64)
        if isinstance(probas, Table):
            column = {label: j for j, label in enumerate(probas.classes)}
            at = np.array([column.get(y, -1) for y in labels], np.int64)  # type: ignore[arg-type]
            p = probas.values[np.arange(len(at)), at]
            return np.where(at < 0, 0.0, p)
        if self.binary:
            trues = [row.get(True, 0.0) if row else _NO_PROBA for row in probas]
            return np.array(trues, np.float64)
        pairs = zip(probas, labels, strict=True)
        return np.array(
            [row.get(y, 0.0) if row else _NO_PROBA for row, y in pairs],  # type: ignore[arg-type]  # None is no key
            np.float64,
        )

    def _encode(self, column: Sequence[Label | None]) -> IntArray:
        return np.fromiter(map(self.codes.__getitem__, column), np.int64, len(column))

    def _add_classes(self, labels: Sequence[Label | None], values: Sequence[Label | None]) -> None:
        # Event by event, label before prediction: codes must not depend on the cuts.
        pairs = zip(labels, values, strict=True)
        fresh = dict.fromkeys(c for pair in pairs for c in pair if c not in self.codes)
        for c in fresh:
            if isinstance(c, float) and not math.isfinite(c):
                raise ValueError(f"a label must be finite, got {c}")
        if self.binary and not fresh.keys().isdisjoint(labels):  # a model may predict anything
            wrong = [repr(c) for c in fresh if c in set(labels)]
            raise ValueError(f"a binary label is True, False, 1 or 0, got {', '.join(wrong)}")
        for c in fresh:
            self.codes[c] = self.k
        self._reserve(self.k)

    def _reserve(self, k: int) -> None:
        if k > self.counts.shape[1]:
            more = ((0, 0), (0, max(k, 2 * self.counts.shape[1]) - self.counts.shape[1]))
            self.counts = np.pad(self.counts, more)
            self.faded = np.pad(self.faded, more)

    def no_change(self) -> float:
        return _ratio(self.totals["same"][0], self.totals["pairs"][0])

    def views(self) -> _Views:
        t, p = self.totals[0], self.proba_totals[0]
        everything = self._of_counts(self.counts[:, : self.k], self.no_change())
        everything["log_loss"] = float(p["mean"]) if p["scored"] else math.nan
        faded = self._of_counts(
            self.faded[:, : self.k] / t["weight"], _ratio(t["faded_same"], t["faded_pairs"]), _GONE
        )
        faded["log_loss"] = _ratio(p["faded"], p["faded_count"])
        truths, guesses, same = _without_holes(self.ring[:, : t["scored"]])
        hits = truths[truths == guesses]
        counts = [np.bincount(codes, minlength=self.k) for codes in (truths, guesses, hits)]
        window = self._of_counts(np.stack(counts), _ratio((same == 1).sum(), (same >= 0).sum()))
        recent = _without_holes(self.proba_ring[:, : p["scored"]])
        window["log_loss"] = _ratio(recent[0].sum(), recent.shape[1])
        if self.binary:
            window["roc_auc"] = _roc_auc(recent[1], recent[2] == 1)
        return {"": everything, ".fading": faded, ".window": window}

    def _of_counts(
        self, counts: npt.NDArray[Any], no_change: float, least: float = 0.0
    ) -> dict[str, float]:
        """Return the metrics of (3, k) labels, predictions, hits; up to `least` counts as none."""
        present = (counts[0] > least) | (counts[1] > least)
        if not present.any():
            return dict.fromkeys(METRICS["binary"], math.nan)
        true, pred, hit = counts[:, present]  # (3, k) -> 3 x (classes present,)
        n = true.sum()
        accuracy = hit.sum() / n
        chance = ((true / n) * (pred / n)).sum()
        recall = hit[true > least] / true[true > least]
        f1 = 2 * hit / (true + pred)
        return {
            "accuracy": accuracy,
            "balanced_accuracy": recall.mean(),
            "macro_f1": f1.mean(),
            # True has code 1; a model that abstains may have predicted something else, too.
            "f1": f1[int(present[0])] if self.binary and present[1] else 0.0,
            "kappa": (accuracy - chance) / (1 - chance) if abs(1 - chance) > least else 0.0,
            "kappa_temporal": (
                (accuracy - no_change) / (1 - no_change) if 1 - no_change > least else math.nan
            ),
        }

    def state(self) -> dict[str, Any]:
        return {
            **_left_out(self.left_out),
            "classes": [c for c in self.codes if c is not None],
            "totals": _plain(self.totals),
            "counts": self.counts[:, : self.k].copy(),
            "faded": self.faded[:, : self.k].copy(),
            "ring": self.ring.copy(),
            "proba_totals": _plain(self.proba_totals),
            "proba_ring": self.proba_ring.copy(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        classes, window = state["classes"], self.ring.shape[1]
        _check(
            type(classes) is list
            and all(
                type(c) in _LABELS and (type(c) is not float or math.isfinite(c)) for c in classes
            )
            and len(set(classes)) == len(classes) <= _MOST_CLASSES
            and (not self.binary or list(map(repr, classes[:2])) == ["False", "True"]),
            "classes",
        )
        k = len(classes)
        _load_left_out(self.left_out, state)
        _fill(self.totals, state["totals"])
        t = self.totals[0]
        _check(
            t["scored"] >= 0
            and -1 <= t["last"] < k
            and 0 <= t["same"] <= t["pairs"] <= t["scored"] <= _MOST
            and 1.0 <= t["weight"] <= _RESCALE
            and 0.0 <= t["faded_same"] <= t["faded_pairs"] * _SLACK <= t["pairs"] * _SLACK**2,
            "totals",
        )
        n = int(t["scored"])
        counts, faded = state["counts"], state["faded"]
        _check(
            _fits(counts, np.int64, (3, k))
            and bool(
                (counts >= 0).all() and (counts <= n).all() and (counts[2] <= counts[:2]).all()
            )
            and counts[0].sum() == counts[1].sum() == n,
            "counts",
        )
        _check(
            _fits(faded, np.float64, (3, k))
            and bool((faded >= 0.0).all() and (faded <= n * t["weight"] * _SLACK).all()),
            "faded",
        )
        ring = state["ring"]
        _check(_fits(ring, np.int32, self.ring.shape), "ring")
        used = _without_holes(ring[:, : min(n, window)])
        _check(
            bool((used >= [[0], [0], [-1]]).all() and (used < [[k], [k], [2]]).all()),
            "ring",
        )
        _fill(self.proba_totals, state["proba_totals"])
        p = self.proba_totals[0]
        _check(
            0 <= p["scored"] <= _MOST
            and 0.0 <= p["mean"] <= _LOSS_MAX
            and 0.0 <= p["faded_count"] <= p["scored"] * _SLACK
            and 0.0 <= p["faded"] <= p["faded_count"] * _LOSS_MAX * _SLACK,
            "proba_totals",
        )
        losses = state["proba_ring"]
        _check(_fits(losses, np.float64, self.proba_ring.shape), "proba_ring")
        used = _without_holes(losses[:, : min(int(p["scored"]), window)])
        _check(
            bool((used[0] >= 0.0).all() and (used[0] <= _LOSS_MAX).all())
            and (not self.binary or bool(np.isin(used[2], (0.0, 1.0)).all())),
            "proba_ring",
        )
        self.codes = {None: -1} | {c: code for code, c in enumerate(classes)}
        self._reserve(k)
        self.counts[:, :k] = counts
        self.faded[:, :k] = faded
        self.ring[:] = ring
        self.proba_ring[:] = losses


class _Numbers:
    """Errors of predicted numbers."""

    def __init__(self, window: int, fading: float) -> None:
        self.fading = fading
        self.left_out = np.zeros(2, np.int64)
        self.totals = np.zeros(1, _NUMBER_TOTALS)
        self.ring = np.zeros((2, window))  # rows: label, prediction

    def update(
        self,
        labels: Sequence[Label | None],
        values: Sequence[Label | None],
        probas: Sequence[_Proba] | Table | None,  # noqa: ARG002  # numbers have none
    ) -> FloatArray:
        n = len(labels)
        try:
            truths, guesses = floats(labels), floats(values)
            given = np.full(n, 3, np.int8)
        except TypeError:  # a None, or something that is no number and raises again
            truths = floats([math.nan if y is None else y for y in labels])
            guesses = floats([math.nan if v is None else v for v in values])
            pairs = zip(labels, values, strict=True)
            given = np.array([(y is not None) + 2 * (v is not None) for y, v in pairs], np.int8)
        return self._score(truths, guesses, given)

    def update_arrays(
        self,
        labels: FloatArray,
        values: npt.NDArray[Any],
        probas: Sequence[_Proba] | Table | None,  # noqa: ARG002  # numbers have none
    ) -> FloatArray:
        labels = np.ascontiguousarray(labels, np.float64)
        guesses = np.ascontiguousarray(values, np.float64)
        return self._score(labels, guesses, np.int8(3) - np.isnan(labels).view(np.int8))

    def _score(
        self, truths: FloatArray, guesses: FloatArray, given: npt.NDArray[np.int8]
    ) -> FloatArray:
        losses = np.full(len(truths), np.nan)
        odd = _score_numbers(
            truths, guesses, given, self.fading, self.totals, self.ring, losses, self.left_out
        )
        if odd >= 0:
            raise ValueError(f"a label must be finite, got {truths[odd]} at row {odd}")
        return losses

    def no_change(self) -> float:
        t = self.totals[0]
        return float(t["no_change"]) if t["pairs"] else math.nan

    def views(self) -> _Views:
        t = self.totals[0]
        n = int(t["scored"])
        if n == 0:
            return {v: dict.fromkeys(METRICS["regression"], math.nan) for v in _VIEWS}
        y, guesses = _without_holes(self.ring[:, :n])
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged learner: inf and nan
            errors = y - guesses
            y = y - y[0]  # so that equal labels have a variance of exactly 0
            everything = t["mae"], t["mse"], t["residual"], t["label_squares"]
            faded = (
                t["faded_absolute"] / t["faded_count"],
                t["faded_residual"] / t["faded_count"],
                t["faded_residual"],
                t["faded_label_squares"],
            )
            squared = errors**2
            spread = ((y - y.mean()) ** 2).sum()
            window = np.abs(errors).mean(), squared.mean(), squared.sum(), spread
            return {
                view: {
                    "mae": mae,
                    "rmse": math.sqrt(mse),
                    "r2": 1 - residual / squares if squares else 0.0,
                }
                for view, (mae, mse, residual, squares) in zip(
                    _VIEWS, (everything, faded, window), strict=True
                )
            }

    def state(self) -> dict[str, Any]:
        return {
            **_left_out(self.left_out),
            "totals": _plain(self.totals),
            "ring": self.ring.copy(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        _load_left_out(self.left_out, state)
        _fill(self.totals, state["totals"])
        t, ring = self.totals[0], state["ring"]
        _check(
            0 <= t["pairs"] <= t["scored"] <= t["labels"] <= _MOST
            and all(abs(t[name]) <= LARGEST for name in ("last", "label_mean", "faded_label_mean"))
            and all(0.0 <= t[name] <= 2 * LARGEST for name in ("no_change", "mae"))
            and all(0.0 <= t[name] <= _SQUARES_MAX for name in ("mse", "residual"))
            and 0.0 <= t["faded_count"] <= t["scored"] * _SLACK
            and all(0.0 <= t[name] <= _SQUARES_MAX for name in ("faded_absolute", "faded_residual"))
            and all(
                abs(t[name]) <= _SQUARES_MAX for name in ("label_squares", "faded_label_squares")
            ),
            "totals",
        )
        _check(
            _fits(ring, np.float64, self.ring.shape)
            and bool((np.abs(_without_holes(ring)) <= LARGEST).all()),
            "ring",
        )
        self.ring[:] = ring


def _only(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: options[key]} if key in options else {}


def _resized(ring: npt.NDArray[Any], scored: int, window: int) -> npt.NDArray[Any]:
    """Return a ring for another number of events; the newest of `scored` keep their places.

    In a longer ring, the places of events that the old one no longer held are holes.
    """
    known = min(scored, ring.shape[1], window)
    new = np.zeros((ring.shape[0], window), ring.dtype)
    if scored > known:  # places of the events before those that are known
        new[:] = _HOLE if ring.dtype.kind == "i" else _NO_NUMBER
    places = np.arange(scored - known, scored)
    new[:, places % window] = ring[:, places % ring.shape[1]]
    return new


def _without_holes(ring: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the used part of a ring without holes."""
    first = ring[0]
    full = first != (_HOLE if ring.dtype.kind == "i" else _NO_NUMBER)
    return ring if full.all() else ring[:, full]


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _roc_auc(scores: FloatArray, positive: npt.NDArray[np.bool_]) -> float:
    """Share of correctly ordered (positive, negative) pairs, ties half: an exact integer ratio."""
    high, low = scores[positive], np.sort(scores[~positive])
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return _ratio(below.sum(), 2 * high.size * low.size)


def _codes(what: str, column: npt.NDArray[Any]) -> tuple[IntArray, int]:
    """Return codes, 0 and 1 for False and True, -1 for non-finite; and the number of these.

    Raises
    ------
    ValueError
        If there is another number.
    """
    column = np.ascontiguousarray(column, np.float64)
    codes = np.empty(len(column), np.int64)
    odd, count = _read_codes(column, codes)
    if odd >= 0:
        found = f"{column[odd]:g} at row {odd}"
        raise ValueError(f"a binary {what} is True, False, 1 or 0, got {found}")
    return codes, count


def _left_out(counts: IntArray) -> dict[str, int]:
    return dict(zip(("non_finite", "too_large"), counts.tolist(), strict=True))


def _load_left_out(counts: IntArray, state: Mapping[str, Any]) -> None:
    for i, name in enumerate(_left_out(counts)):
        count = state.get(name, 0)  # older states lack it
        _check(type(count) is int and 0 <= count <= _MOST, name)
        counts[i] = count


def _plain(totals: npt.NDArray[np.void]) -> dict[str, int | float]:
    return dict(zip(totals.dtype.names or (), totals[0].item(), strict=True))


def _fill(totals: npt.NDArray[np.void], plain: Mapping[str, int | float]) -> None:
    types = {name: type(value) for name, value in _plain(totals).items()}
    _check({name: type(value) for name, value in plain.items()} == types, "totals")
    for name, value in plain.items():
        totals[name] = value


def _fits(array: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether a part of a state is an array of finite numbers with this dtype and shape."""
    return (
        isinstance(array, np.ndarray)
        and array.dtype == dtype
        and array.shape == shape
        and bool(np.isfinite(array).all())
    )


def _check(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"damaged metrics state: its parts do not fit together ({what})")
