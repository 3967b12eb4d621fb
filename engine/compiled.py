"""Linear learners whose test-then-train loop over a batch is one compiled kernel.

Exact per sample, in stream order: event i is predicted by what the events before it taught. The
arithmetic of scaling, losses, SGD, AdaGrad and L2 is River's, operation by operation, up to the
last bits of a square root; FTRL-Proximal is that of the paper. What an event has is a row of slots
and values, so features may come and go, and a missing one costs nothing.
"""

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from midstream.engine import encoding
from midstream.engine.events import (
    EventBatch,
    FeatureColumns,
    FloatArray,
    IntArray,
    Label,
    Predictions,
    Table,
    Task,
    floats,
)
from midstream.engine.learner import LEARNERS, LearnerError

__all__ = ["OPTIMIZERS", "Explanation", "LinearLearner"]

_SCHEMA = 1
OPTIMIZERS = ("sgd", "adagrad", "adam", "ftrl")
_SGD, _ADAGRAD, _ADAM, _FTRL = range(4)

_OPTIONS = np.dtype([
    ("logistic", "?"),
    ("optimizer", "i8"),
    ("scale", "?"),
    ("rate", "f8"),
    ("intercept_rate", "f8"),
    ("l1", "f8"),
    ("l2", "f8"),
    ("clip", "f8"),
    ("beta", "f8"),
    ("beta_1", "f8"),
    ("beta_2", "f8"),
    ("eps", "f8"),
])  # fmt: skip
_TOTALS = np.dtype([("intercept", "f8"), ("steps", "i8"), ("penalty", "f8")])


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _sigmoid(s: float) -> float:
    if s < -30.0:
        return 0.0
    if s > 30.0:
        return 1.0
    return 1.0 / (1.0 + math.exp(-s))


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _standardized(v: float, mean: float, variance: float) -> float:
    return (v - mean) / math.sqrt(variance) if variance != 0.0 else 0.0


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _slope(logistic: bool, s: float, y: float) -> float:
    """Return the gradient of the loss with respect to the score, as River's Log and Squared."""
    if not logistic:
        return 2.0 * (s - y)
    sign = 1.0 if y != 0.0 else -1.0
    z = s * sign
    if z > 18.0:
        return math.exp(-z) * -sign
    if z < -18.0:
        return -sign
    return -sign / (math.exp(z) + 1.0)


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _run(  # kernels take arrays, not objects
    starts: IntArray,
    slots: IntArray,
    values: FloatArray,
    labels: FloatArray,
    sample_weights: FloatArray,
    options: npt.NDArray[np.void],
    hashed: int,
    weights: FloatArray,
    scaler: FloatArray,
    totals: npt.NDArray[np.void],
    predicted: FloatArray,
) -> int:
    """Predict each event, then learn it if it has a label; return how many were done.

    `weights` has rows: weight, and two of the optimizer's; a column per slot, of which the first
    `hashed` are of hashed categories and are not scaled. `scaler` has rows: mean, variance, count;
    a column per other slot. Stops where a weight, or what it depends on, would not be finite.
    """
    o = options[0]
    t = totals[0]
    longest = 0
    for i in range(labels.size):
        longest = max(longest, starts[i + 1] - starts[i])
    z = np.empty(longest)
    for i in range(labels.size):
        first, stop = starts[i], starts[i + 1]
        score = 0.0
        for k in range(first, stop):
            v, j = values[k], slots[k]
            if math.isnan(v):
                continue
            c = j - hashed
            if o.scale and c >= 0:
                v = _standardized(v, scaler[0, c], scaler[1, c])
            score += weights[0, j] * v
        score += t.intercept
        predicted[i] = _sigmoid(score) if o.logistic else score
        if math.isnan(labels[i]) or sample_weights[i] == 0.0:
            continue

        score = 0.0
        for k in range(first, stop):
            v, j = values[k], slots[k]
            if math.isnan(v):
                continue
            c = j - hashed
            if o.scale and c >= 0:
                scaler[2, c] += 1.0
                old = scaler[0, c]
                scaler[0, c] += (v - old) / scaler[2, c]
                scaler[1, c] += ((v - old) * (v - scaler[0, c]) - scaler[1, c]) / scaler[2, c]
                if not math.isfinite(scaler[1, c]):
                    return i
                v = _standardized(v, scaler[0, c], scaler[1, c])
            z[k - first] = v
            score += weights[0, j] * v
        score += t.intercept
        slope = _slope(o.logistic, score, labels[i]) * sample_weights[i]
        if not math.isfinite(slope):
            return i
        slope = max(min(slope, o.clip), -o.clip)
        t.intercept -= o.intercept_rate * slope
        rate = o.rate
        if o.optimizer == _ADAM:
            rate *= math.sqrt(1.0 - o.beta_2 ** (t.steps + 1))
            rate /= 1.0 - o.beta_1 ** (t.steps + 1)
        t.penalty += o.l1 * rate
        for k in range(first, stop):
            v, j = values[k], slots[k]
            if math.isnan(v):
                continue
            w = weights[0, j]
            g = z[k - first] * slope
            if o.optimizer == _FTRL:
                n = weights[2, j]
                weights[2, j] += g * g
                sigma = (math.sqrt(weights[2, j]) - math.sqrt(n)) / rate
                weights[1, j] += g - sigma * w
                u = weights[1, j]
                if abs(u) <= o.l1:
                    w = 0.0
                else:
                    shrunk = u - o.l1 if u > 0.0 else u + o.l1
                    w = -shrunk / ((o.beta + math.sqrt(weights[2, j])) / rate + o.l2)
            else:
                if o.l2 != 0.0:
                    g += w * o.l2
                if o.optimizer == _SGD:
                    w -= rate * g
                elif o.optimizer == _ADAGRAD:
                    weights[1, j] += g * g
                    w -= rate / math.sqrt(weights[1, j] + o.eps) * g
                else:
                    weights[1, j] = o.beta_1 * weights[1, j] + (1.0 - o.beta_1) * g
                    weights[2, j] = o.beta_2 * weights[2, j] + (1.0 - o.beta_2) * g * g
                    w -= rate * weights[1, j] / (math.sqrt(weights[2, j]) + o.eps)
                if o.l1 != 0.0:  # cumulative penalty, with SGD only
                    before = w
                    if w > 0.0:
                        w = max(0.0, w - (t.penalty + weights[1, j]))
                    elif w < 0.0:
                        w = min(0.0, w + (t.penalty - weights[1, j]))
                    weights[1, j] += w - before
            if not math.isfinite(w + weights[1, j] + weights[2, j]):
                return i
            weights[0, j] = w
        t.steps += 1
        if not math.isfinite(t.intercept):
            return i
    return labels.size


class Explanation(NamedTuple):
    """What a linear model says, in the features' own units: score = intercept + sum(weight * x)."""

    intercept: float
    weights: dict[str, float]


class LinearLearner:
    """Linear or logistic regression, learned by stochastic gradients, in a compiled loop.

    Numbers and booleans are features by name. Strings are categories, hashed with the name of
    their feature, and a sign, into a table of 2**bits weights [1]_: any number of them takes
    bounded memory.

    Parameters
    ----------
    task
        "binary" (logistic loss) or "regression" (squared loss).
    optimizer
        "sgd", "adagrad" [2]_, "adam" [3]_ or "ftrl" (FTRL-Proximal, per coordinate [4]_).
    rate
        Learning rate; for FTRL its alpha.
    intercept_rate
        Learning rate of the intercept, which has neither penalty nor optimizer.
    l1, l2
        Penalties; `l1` with SGD (cumulative [5]_) and FTRL only.
    scale
        Standardize numbers by their running mean and variance, as River's StandardScaler.
    bits
        The table of categories has 2**bits weights.
    features
        Most names of numeric features; one more is refused, since memory would not be bounded.
    clip
        Most that the gradient of the loss may be, either sign.
    beta, beta_1, beta_2, eps
        Of FTRL; of Adam; of AdaGrad and Adam.

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
    ) -> None:
        if task not in ("binary", "regression"):
            raise ValueError(f"task must be binary or regression, found {task!r}")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
        if l1 and optimizer not in ("sgd", "ftrl"):
            raise ValueError(f"l1 is for sgd and ftrl, not for {optimizer}")
        numbers: dict[str, tuple[float, float, float]] = {
            "rate": (rate, 1e-12, 1e6),
            "intercept_rate": (intercept_rate, 0.0, 1e6),
            "l1": (l1, 0.0, 1e6),
            "l2": (l2, 0.0, 1e6),
            "clip": (clip, 1e-12, 1e300),
            "beta": (beta, 0.0, 1e6),
            "beta_1": (beta_1, 0.0, 1.0 - 1e-9),
            "beta_2": (beta_2, 0.0, 1.0 - 1e-9),
            "eps": (eps, 1e-300, 1.0),
            "bits": (bits, 1, 24),
            "features": (features, 1, 10_000_000),
        }
        for name, (value, low, high) in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low!r} to {high!r}, got {value!r}")
        if not isinstance(bits, int) or not isinstance(features, int):
            raise ValueError("bits and features must be whole numbers")
        if not isinstance(scale, bool):
            raise ValueError(f"scale must be true or false, got {scale!r}")
        self.task: Task = task
        self._options: dict[str, Any] = {
            "optimizer": optimizer,
            "rate": float(rate),
            "intercept_rate": float(intercept_rate),
            "l1": float(l1),
            "l2": float(l2),
            "scale": scale,
            "bits": bits,
            "features": features,
            "clip": float(clip),
            "beta": float(beta),
            "beta_1": float(beta_1),
            "beta_2": float(beta_2),
            "eps": float(eps),
        }
        record = {name: self._options[name] for name in _OPTIONS.names or () if name != "logistic"}
        record |= {"logistic": task == "binary", "optimizer": OPTIMIZERS.index(optimizer)}
        self._record = np.zeros(1, _OPTIONS)
        for name, value in record.items():
            self._record[name] = value
        self._names: dict[str, int] = {}
        self._hashed = 0  # columns of the table of categories: none before the first category
        self._weights = np.zeros((3, 0))
        self._scaler = np.zeros((3, 0))
        self._totals = np.zeros(1, _TOTALS)
        self._categories: dict[tuple[str, str], tuple[int, float]] = {}  # a cache, no state

    def predict_learn(self, batch: EventBatch) -> Predictions:
        """Predict each event, then learn it if it has a label, in order.

        Raises
        ------
        LearnerError
            At an event that would make a weight infinite, or that has one name too many.
        """
        return self._predictions(self._pass(batch, learn=True))

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict only."""
        return self._predictions(self._pass(batch, learn=False))

    def learn(self, batch: EventBatch) -> None:
        """Learn only."""
        self._pass(batch, learn=True)

    def _predictions(self, predicted: FloatArray) -> Predictions:
        if self.task == "regression":
            return Predictions(predicted.tolist())
        columns = np.stack((1.0 - predicted, predicted), axis=1)
        return Predictions((predicted > 0.5).tolist(), Table((False, True), columns))

    def _pass(self, batch: EventBatch, *, learn: bool) -> FloatArray:
        n = len(batch)
        try:
            labels = self._targets(batch.labels) if learn else np.full(n, np.nan)
            starts, slots, values = self._rows(batch, grow=learn)
            weights = np.ones(n) if batch.weights is None else floats(batch.weights)
        except (TypeError, ValueError, OverflowError) as cause:
            raise LearnerError(self._odd_row(batch), cause) from cause
        predicted = np.empty(n)
        done = _run(
            starts, slots, values, labels, weights, self._record, self._hashed, self._weights,
            self._scaler, self._totals, predicted,
        )  # fmt: skip
        if done < n:
            raise LearnerError(
                done,
                FloatingPointError(
                    "a weight or a variance would become infinite or nan; smaller features, a "
                    "lower rate or clip help"
                ),
            )
        return predicted

    def _targets(self, labels: Sequence[Label | None]) -> FloatArray:
        targets = floats([math.nan if y is None else y for y in labels])
        if self.task == "binary":
            odd = np.flatnonzero(~(np.isnan(targets) | (targets == 0.0) | (targets == 1.0)))
            if len(odd):
                row = int(odd[0])
                raise LearnerError(
                    row, ValueError(f"a binary label is True, False, 1 or 0, got {labels[row]!r}")
                )
        return targets

    def _odd_row(self, batch: EventBatch) -> int:
        """Find the event with a value that is no number and no text."""
        for row, (x, y) in enumerate(zip(batch.dicts(), batch.labels, strict=True)):
            try:
                self._targets([y])
                floats([value for value in x.values() if not isinstance(value, str)])
                floats([batch.weight(row)])
            except (TypeError, ValueError, OverflowError):
                return row
        return 0

    def _rows(self, batch: EventBatch, *, grow: bool) -> tuple[IntArray, IntArray, FloatArray]:
        """Return a batch as sparse rows: (n + 1,) where each begins, then slots and values.

        What has no slot is NaN, a missing value, unless the learner may `grow`.
        """
        starts = np.zeros(len(batch) + 1, np.int64)
        columns = batch.columns
        if columns is not None:
            starts[1:] = len(columns.names) + len(columns.texts)
            np.cumsum(starts, out=starts)
            return starts, *self._column_rows(columns, starts, grow=grow)
        dicts = batch.dicts()
        np.cumsum([len(x) for x in dicts], out=starts[1:])
        keys = [key for x in dicts for key in x]
        given = [value for x in dicts for value in x.values()]
        if any(issubclass(kind, str) for kind in set(map(type, given))):
            return self._mixed_rows(keys, given, starts, grow=grow)
        slots, known = self._slots(keys, starts, grow=grow)
        return starts, slots, np.where(known, floats(given), np.nan)

    def _column_rows(
        self, columns: FeatureColumns, starts: IntArray, *, grow: bool
    ) -> tuple[IntArray, FloatArray]:
        """Return slots and values of a batch of columns, event after event."""
        n, d = columns.array.shape
        if not n:
            return np.zeros(0, np.int64), np.zeros(0)
        if columns.texts and grow:
            self._make_table()
        at, known = self._slots(columns.names, starts, grow=grow)
        slots = np.empty((n, d + len(columns.texts)), np.int64)
        values = np.full(slots.shape, np.nan)
        slots[:, :d] = at
        values[:, :d] = np.where(known, columns.array, np.nan)
        for j, (name, texts) in enumerate(columns.texts.items(), d):
            if self._hashed:
                pairs = [(0, math.nan) if v is None else self._category(name, v) for v in texts]
                slots[:, j], values[:, j] = zip(*pairs, strict=True)
        return slots.reshape(-1), values.reshape(-1)

    def _make_table(self) -> None:
        if not self._hashed:
            self._hashed = 2 ** self._options["bits"]
            self._weights = np.hstack((np.zeros((3, self._hashed)), self._weights))

    def _slots(
        self, keys: Sequence[str], starts: IntArray, *, grow: bool
    ) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Return the slot of each name, and whether it has one."""
        try:
            slots = list(map(self._names.__getitem__, keys))
        except KeyError:
            if grow:
                self._add_names(keys, starts)
            slots = [self._names.get(key, -1) for key in keys]
        at = np.array(slots, np.int64)
        return at + self._hashed, at >= 0

    def _mixed_rows(
        self, keys: list[str], given: Sequence[Any], starts: IntArray, *, grow: bool
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Rows that have categories among their values."""
        is_text = np.array([isinstance(value, str) for value in given])
        if grow:
            self._make_table()
        slots, values = np.empty(len(keys), np.int64), np.full(len(keys), np.nan)
        numbers = np.flatnonzero(~is_text)
        places = np.searchsorted(numbers, starts)  # where each event's numbers begin
        at, known = self._slots([keys[i] for i in numbers.tolist()], places, grow=grow)
        slots[numbers] = at
        values[numbers] = np.where(known, floats([given[i] for i in numbers.tolist()]), np.nan)
        if self._hashed:
            for i in np.flatnonzero(is_text).tolist():
                slots[i], values[i] = self._category(keys[i], given[i])
        return starts, slots, values

    def _category(self, name: str, value: str) -> tuple[int, float]:
        """Return the slot and the sign that a category is hashed to."""
        found = self._categories.get((name, value))
        if found is None:
            if len(self._categories) >= 100_000:
                self._categories.clear()
            mixed = zlib.crc32(f"{len(name)}:{name}={value}".encode(errors="surrogatepass"))
            mixed = mixed * 0x9E3779B97F4A7C15 % 2**64  # so that the high bits depend on all
            slot = mixed >> (64 - self._options["bits"])
            found = slot, 1.0 if mixed & 2**20 else -1.0
            self._categories[name, value] = found
        return found

    def _add_names(self, keys: Sequence[str], starts: IntArray) -> None:
        fresh = [key for key in dict.fromkeys(keys) if key not in self._names]
        if not fresh:
            return
        room = self._options["features"] - len(self._names)
        if len(fresh) > room:
            name = fresh[room]
            row = int(np.searchsorted(starts, keys.index(name), "right")) - 1
            raise LearnerError(
                max(row, 0),
                ValueError(
                    f"feature {name[:100]!r} is one name too many: the option features allows "
                    f"{self._options['features']}; are some of the names values?"
                ),
            )
        for name in fresh:
            self._names[name] = len(self._names)
        more = np.zeros((3, len(fresh)))
        self._weights = np.hstack((self._weights, more))
        self._scaler = np.hstack((self._scaler, more))

    def explain(self, categories: Mapping[str, Collection[str]] | None = None) -> Explanation:
        """Return the model in the features' own names and units.

        Parameters
        ----------
        categories
            Values of categorical features to give weights for, as ``name=value``; the table itself
            does not know their names.
        """
        weights = self._weights[0, self._hashed :]
        intercept = float(self._totals["intercept"][0])
        if self._options["scale"]:
            mean, variance, _ = self._scaler
            moved = np.divide(
                weights, np.sqrt(variance), out=np.zeros(len(weights)), where=variance != 0
            )
            intercept -= float((moved * mean).sum())
            weights = moved
        named = dict(zip(self._names, weights.tolist(), strict=True))
        for name, values in (categories or {}).items():
            for value in values:
                slot, sign = self._category(name, value)
                named[f"{name}={value}"] = (
                    float(self._weights[0, slot]) * sign if self._hashed else 0.0
                )
        return Explanation(intercept, named)

    def state(self) -> bytes:
        """Everything that its next result depends on; equal learners give equal bytes."""
        table = self._weights[:, : self._hashed]
        used = np.flatnonzero(table.any(axis=0))
        totals = self._totals[0]
        return encoding.encode(
            {
                "schema": _SCHEMA,
                "options": self._options,
                "names": list(self._names),
                "weights": self._weights[:, self._hashed :].copy(),
                "scaler": self._scaler.copy(),
                "hashed": self._hashed,
                "used": used,
                "table": table[:, used].copy(),
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
        if state["schema"] != _SCHEMA:
            raise ValueError(f"learner state has schema {state['schema']}, expected {_SCHEMA}")
        try:
            return cls._restored(state, task)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"damaged learner state: {type(error).__name__}: {error}") from error

    @classmethod
    def _restored(cls, state: Mapping[str, Any], task: Task) -> "LinearLearner":
        new = cls(task, **state["options"])
        names, hashed, used = list(state["names"]), state["hashed"], state["used"]
        size = 2 ** new._options["bits"]
        shapes = {"weights": (3, len(names)), "scaler": (3, len(names)), "table": (3, len(used))}
        sound = (
            len(set(names)) == len(names) <= new._options["features"]
            and all(isinstance(name, str) for name in names)
            and (type(hashed), type(state["steps"])) == (int, int)
            and (type(state["intercept"]), type(state["penalty"])) == (float, float)
            and hashed in (0, size)
            and used.dtype == np.int64
            and used.ndim == 1
            and bool(((used >= 0) & (used < hashed)).all())
            and all(
                state[key].shape == shape and state[key].dtype == np.float64
                for key, shape in shapes.items()
            )
        )
        if not sound:  # kernels do not check what they index
            raise ValueError("damaged learner state: its parts do not fit together")
        new._names = {name: i for i, name in enumerate(names)}
        new._hashed = hashed
        table = np.zeros((3, hashed))
        table[:, used] = state["table"]
        new._weights = np.hstack((table, state["weights"]))
        new._scaler = state["scaler"].copy()
        for name in ("intercept", "steps", "penalty"):
            new._totals[name] = state[name]
        return new

    def definition(self) -> dict[str, Any]:
        """What it is, without what it has learned: plain JSON values."""
        return {"kind": self.kind, "task": self.task, **self._options}


LEARNERS[LinearLearner.kind] = LinearLearner.from_state
