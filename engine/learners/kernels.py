"""The compiled loops of the linear learners: test, then train, event by event.

An event is a row of numbers in columns, followed by a row of slots and values. A number has the
slot of its name, 0 or more; a category has the slot it is hashed to, as ``-1 - slot``. NaN is a
missing value. A number in a column and one with a slot give the same bits: both go through the same
operations in the same order.

Numbers in columns are processed in a scratch block. It has a row for each quantity of a feature,
padded to whole vectors, and is processed in loops without branches, which the compiler vectorizes.
No loop sums along a vector: sums are in the order of the features. There is no fastmath, which
would let the compiler reorder operations.

Compiled code does not check its indices. So `grown` makes every array with room for whole vectors,
a learner's state is checked when it is loaded, and each kernel checks the sizes and slots that it
relies on when it is called: `_check_rows`, about 1 ns a value.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.extending import register_jitable

from midstream.engine.events.event import FloatArray, IntArray

__all__ = [
    "LANES",
    "OPTIMIZERS",
    "TOTALS",
    "checked_class_weights",
    "checked_options",
    "class_name",
    "diverged",
    "grown",
    "in_lanes",
    "linear_kernel",
    "options_record",
    "possible",
    "softmax_kernel",
    "weighted",
]

OPTIMIZERS = ("sgd", "adagrad", "adam", "ftrl")
_SGD, _ADAGRAD, _ADAM, _FTRL = range(4)

TOTALS = np.dtype([("intercept", "f8"), ("steps", "i8"), ("penalty", "f8")])
_NUMBERS: dict[str, tuple[float, float]] = {
    "rate": (1e-12, 1e6),
    "intercept_rate": (0.0, 1e6),
    "l1": (0.0, 1e6),
    "l2": (0.0, 1e6),
    "clip": (1e-12, 1e300),
    "beta": (0.0, 1e6),
    "beta_1": (0.0, 1.0 - 1e-9),
    "beta_2": (0.0, 1.0 - 1e-9),
    "eps": (1e-300, 1.0),
}
_WHOLE: dict[str, tuple[int, int]] = {
    "bits": (1, 24),
    "features": (1, 10_000_000),
    "classes": (2, 1_000_000),
}
_DECIDING = {"threshold": (0.0, 1.0)}  # applies to predictions; no kernel reads it
_FACTOR = 1e-6, 1e6
_OPTIONS = np.dtype([(name, "f8") for name in _NUMBERS])
LANES = 8  # float64 values in the widest vector

Kernel: TypeAlias = Callable[..., int]


@register_jitable  # type: ignore[untyped-decorator]  # numba publishes no types
def in_lanes(size: int) -> int:
    """Round `size` up to whole vectors of numbers."""
    return (size + LANES - 1) // LANES * LANES


def grown(array: npt.NDArray[Any], size: int, axis: int = 1) -> npt.NDArray[Any]:
    """Return `array` with room for `size` along an axis, in whole vectors.

    If it must grow, the axis at least doubles, so that copies are rare.
    """
    room = array.shape[axis]
    if room >= in_lanes(size):
        return array
    shape = list(array.shape)
    shape[axis] = in_lanes(size if in_lanes(room) >= size else max(size, 2 * room))
    larger = np.zeros(shape, array.dtype)
    larger[tuple(slice(length) for length in array.shape)] = array
    return larger


def diverged() -> FloatingPointError:
    """Return the error for an event with valid labels and values at which a kernel stops."""
    return FloatingPointError(
        "a weight or a variance would become infinite or nan; smaller features, a lower rate "
        "or clip help"
    )


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a learner, with floats where fractions are allowed.

    Raises
    ------
    ValueError
        If one is out of range.
    """
    optimizer, l1 = options["optimizer"], options["l1"]
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    if l1 and optimizer not in ("sgd", "ftrl"):
        raise ValueError(f"l1 is for sgd and ftrl, not for {optimizer}")
    ranges = _NUMBERS | _WHOLE | _DECIDING
    checked: dict[str, Any] = {}
    for name, value in options.items():
        checked[name] = value
        if name in ("optimizer", "class_weights"):  # the learner checks class_weights
            continue
        if name == "scale":
            if not isinstance(value, bool):
                raise ValueError(f"scale must be true or false, got {value!r}")
            continue
        low, high = ranges[name]
        _check_number(name, value, low, high)
        if name not in _WHOLE:
            checked[name] = float(value)
        elif not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    return checked


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low!r} to {high!r}, got {value!r}")


def class_name(label: Any) -> str:
    """Return the name of a class as output has it in probabilities: "true" for True."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def checked_class_weights(given: Any, known: Mapping[str, str] | None = None) -> dict[str, float]:
    """Return factors by class name, in the order of the names.

    Parameters
    ----------
    given
        A mapping from a class, or its name, to its factor.
    known
        What a class may be called, and its name; default: anything, which is its own name.

    Raises
    ------
    ValueError
        If it is not a mapping, a class is unknown or given twice, or a factor is out of range.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"class_weights must be a table from class to factor, got {given!r:.100}")
    checked: dict[str, float] = {}
    for label, factor in given.items():
        name = class_name(label)
        if known is not None and name not in known:
            allowed = ", ".join(dict.fromkeys(known.values()))
            raise ValueError(f"class_weights must be of the classes {allowed}, got {name!r:.100}")
        _check_number(f"class_weights.{name}", factor, *_FACTOR)
        name = name if known is None else known[name]
        if name in checked:
            raise ValueError(f"class_weights has {name!r:.100} twice")
        checked[name] = float(factor)
    return dict(sorted(checked.items()))


def weighted(sample_weights: FloatArray, factors: FloatArray) -> FloatArray:
    """Multiply (n,) sample weights (empty: all 1) by factors; a positive weight stays positive."""
    if not len(sample_weights):
        return factors
    least = np.where(sample_weights > 0.0, math.ulp(0.0), 0.0)
    return np.maximum(sample_weights * factors, least)


def options_record(options: Mapping[str, Any]) -> npt.NDArray[np.void]:
    """Return the options that kernels read, as an array of one record."""
    record = np.zeros(1, _OPTIONS)
    for name in _NUMBERS:
        record[name] = options.get(name, 0.0)
    return record


def possible(optimizer: str, weights: FloatArray, scaler: FloatArray) -> bool:
    """Whether the optimizer and the scaler can have produced these rows of finite numbers.

    Rows of `weights`: weight, and two of the optimizer's. Rows of `scaler`: mean, variance, count.
    """
    squares = {"adagrad": [1], "adam": [2], "ftrl": [2]}.get(optimizer, [])
    return not ((weights[squares] < 0.0).any() or (scaler[1:] < 0.0).any())


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _sigmoid(s: float) -> float:
    if s < -30.0:
        return 0.0
    if s > 30.0:
        return 1.0
    return 1.0 / (1.0 + math.exp(-s))


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
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


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _rate(optimizer: int, o: Any, steps: float) -> float:
    """Return the learning rate of the step after `steps`."""
    if optimizer != _ADAM:
        return o.rate  # type: ignore[no-any-return]
    # A power below 2**-54 does not change 1 when subtracted, and is slow to compute.
    first = o.beta_1 ** (steps + 1.0) if steps * (1.0 - o.beta_1) < 40.0 else 0.0
    second = o.beta_2 ** (steps + 1.0) if steps * (1.0 - o.beta_2) < 40.0 else 0.0
    rate = o.rate * math.sqrt(1.0 - second)
    return rate / (1.0 - first)  # type: ignore[no-any-return]


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _stepped(
    optimizer: int, penalized: bool, o: Any, rate: float, penalty: float, g: float,
    w: float, a: float, b: float,
) -> tuple[float, float, float]:  # fmt: skip
    """Return a weight and two values of the optimizer after a step along the gradient `g`."""
    if optimizer == _FTRL:
        total = b + g * g
        sigma = (math.sqrt(total) - math.sqrt(b)) / rate
        a += g - sigma * w
        shrunk = a - o.l1 if a > 0.0 else a + o.l1
        moved = -shrunk / ((o.beta + math.sqrt(total)) / rate + o.l2)
        return 0.0 if abs(a) <= o.l1 else moved, a, total
    g += w * o.l2
    if optimizer == _SGD:
        w -= rate * g
    elif optimizer == _ADAGRAD:
        a += g * g
        w -= rate / math.sqrt(a + o.eps) * g
    else:
        a = o.beta_1 * a + (1.0 - o.beta_1) * g
        b = o.beta_2 * b + (1.0 - o.beta_2) * g * g
        w -= rate * a / (math.sqrt(b) + o.eps)
    if penalized:  # cumulative penalty, with SGD only
        low, high = w - (penalty + a), w + (penalty - a)
        before = w
        if w > 0.0:
            w = low if low > 0.0 else 0.0
        elif w < 0.0:
            w = high if high < 0.0 else 0.0
        a += w - before
    return w, a, b


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _scaled(v: float, mean: float, variance: float, root: float, n: float) -> Any:
    """Standardize a value without and with itself; return both, and the new statistics."""
    n += 1.0
    gap = v - mean
    before = gap / root if root != 0.0 else 0.0
    mean += gap / n
    variance += (gap * (v - mean) - variance) / n
    root = math.sqrt(variance)
    after = (v - mean) / root if root != 0.0 else 0.0
    return before, after, mean, variance, root, n


# Rows of the scratch block: those of weights and scaler, and those used for one event only.
_W, _A, _B, _MEAN, _VARIANCE, _COUNT, _ROOT, _VALUE, _BEFORE, _AFTER = range(10)


# Inlined by Numba: the compiler vectorizes this only within the kernel.
@njit(inline="always", error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _standardize(s: FloatArray, scale: bool, learns: bool) -> None:
    """Standardize an event's numbers, 0 if missing; if it `learns`, also with themselves."""
    wide = s.shape[1]
    if not scale:
        for k in range(wide):
            v = s[_VALUE, k]
            s[_BEFORE, k] = v if v == v else 0.0  # noqa: PLR0124 NaN is missing
    elif learns:
        for k in range(wide):
            v, mean, variance = s[_VALUE, k], s[_MEAN, k], s[_VARIANCE, k]
            root, count = s[_ROOT, k], s[_COUNT, k]
            here = v == v  # noqa: PLR0124
            before, after, mean_1, variance_1, root_1, count_1 = _scaled(
                v, mean, variance, root, count
            )
            s[_BEFORE, k] = before if here else 0.0
            s[_AFTER, k] = after if here else 0.0
            s[_MEAN, k] = mean_1 if here else mean
            s[_VARIANCE, k] = variance_1 if here else variance
            s[_ROOT, k] = root_1 if here else root
            s[_COUNT, k] = count_1 if here else count
    else:
        for k in range(wide):
            v, root = s[_VALUE, k], s[_ROOT, k]
            here = v == v and root != 0.0  # noqa: PLR0124
            s[_BEFORE, k] = (v - s[_MEAN, k]) / root if here else 0.0


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _check_rows(
    numbers: FloatArray,
    at: IntArray,
    starts: IntArray,
    slots: IntArray,
    values: FloatArray,
    labels: FloatArray,
    sample_weights: FloatArray,
    weights: FloatArray,
    scaler: FloatArray,
    table: FloatArray,
) -> None:
    """Raise ValueError unless all indices that a batch uses are within their arrays."""
    n, d = numbers.shape
    room, places = min(weights.shape[1], scaler.shape[1]), table.shape[1]
    if weights.shape[0] != 3 or scaler.shape[0] != 3 or table.shape[0] != 3:
        raise ValueError("weights, scaler and table of a kernel must have 3 rows")
    if labels.size not in (0, n) or sample_weights.size not in (0, n):
        raise ValueError("labels and sample weights of a kernel must be none, or one an event")
    if at.size != d:
        raise ValueError("columns of a kernel must have a slot each")
    for k in range(d):
        if not 0 <= at[k] < room:
            raise ValueError("a column's slot is beyond the weights")
    if starts.size == 0:
        return
    if starts.size != n + 1 or slots.size != values.size:
        raise ValueError("starts, slots and values of a kernel do not fit together")
    if starts[0] < 0 or starts[n] > slots.size:
        raise ValueError("an event's slots are beyond the last one")
    for i in range(n):
        if starts[i] > starts[i + 1]:
            raise ValueError("an event's slots end before they begin")
    lowest, highest = np.int64(0), np.int64(-1)
    for k in range(starts[0], starts[n]):
        slot = slots[k]
        here = not math.isnan(values[k])  # the slot of a missing value is not read
        lowest = min(lowest, slot if here else np.int64(0))
        highest = max(highest, slot if here else np.int64(-1))
    if highest >= room or -1 - lowest >= places:
        raise ValueError("a slot is beyond the weights, or beyond the table of categories")


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _check_classes(
    labels: IntArray,
    sample_weights: FloatArray,
    weights: FloatArray,
    table: FloatArray,
    classes: FloatArray,
    count: IntArray,
    n: int,
    probas: FloatArray,
    best: IntArray,
    seen: IntArray,
) -> None:
    """Raise ValueError unless there is room for the known classes and the batch's new ones."""
    if count.size != 1 or classes.shape[0] != 2:
        raise ValueError("count and classes of a kernel must have 1 and 2 rows")
    most = count[0]
    for i in range(labels.size):
        if sample_weights.size and sample_weights[i] == 0.0:
            continue  # the event is not learned
        if labels[i] > most:
            raise ValueError("a label's code is beyond that of the next new class")
        most += labels[i] == most
    room = min(classes.shape[1], weights.shape[2], table.shape[2])
    if count[0] < 0 or in_lanes(most) > room:
        raise ValueError("there must be room for every class, in whole vectors")
    if probas.shape[0] != n or probas.shape[1] < most or best.size != n or seen.size != n:
        raise ValueError("there must be room for one prediction an event")


@cache
def linear_kernel(logistic: bool, optimizer: int, scale: bool, penalized: bool) -> Kernel:
    """Return the loop for one kind of learner; these parameters are compiled in.

    Parameters
    ----------
    logistic
        Logistic loss, not squared loss.
    optimizer
        Index in `OPTIMIZERS`.
    scale
        Standardize numbers.
    penalized
        With the cumulative L1 penalty.
    """

    @njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
    def linear(  # kernels take arrays, not objects
        numbers: FloatArray,
        at: IntArray,
        starts: IntArray,
        slots: IntArray,
        values: FloatArray,
        labels: FloatArray,
        sample_weights: FloatArray,
        options: npt.NDArray[np.void],
        weights: FloatArray,
        scaler: FloatArray,
        table: FloatArray,
        totals: npt.NDArray[np.void],
        predicted: FloatArray,
    ) -> int:
        """Predict each event, then learn it if it has a label; return how many were done.

        `numbers` is (n, d), for the names with slots `at`. `starts` holds where the slots and
        values of each event begin; it may be empty, as may `labels` and `sample_weights`.
        `weights` and `table` have rows: weight, and two of the optimizer's. `scaler` has rows:
        mean, variance, count. Stops at an invalid label, and where a weight, or a value it
        depends on, would not be finite.
        """
        _check_rows(
            numbers, at, starts, slots, values, labels, sample_weights, weights, scaler, table
        )
        n, d = len(numbers), numbers.shape[1]
        if options.size != 1 or totals.size != 1:
            raise ValueError("options and totals of a kernel must be one record each")
        if predicted.shape[0] != n or predicted.shape[1] != (2 if logistic else 1):
            raise ValueError("there must be room for one prediction an event")
        o = options[0]
        t = totals[0]
        wide = in_lanes(d)
        s = np.zeros((10, wide))
        s[_VALUE] = math.nan
        for k in range(d):
            for row in range(3):
                s[_W + row, k] = weights[row, at[k]]
                s[_MEAN + row, k] = scaler[row, at[k]]
            s[_ROOT, k] = math.sqrt(s[_VARIANCE, k])
        longest = 0
        for i in range(starts.size - 1):
            longest = max(longest, starts[i + 1] - starts[i])
        z = np.empty(longest)
        intercept, steps, penalty = t.intercept, float(t.steps), t.penalty
        first, stop = 0, 0
        done = n
        for i in range(n):
            y = labels[i] if labels.size else math.nan
            learns = not math.isnan(y)
            if learns and logistic and y not in (0.0, 1.0):
                done = i
                break
            if sample_weights.size and sample_weights[i] == 0.0:
                learns = False
            for k in range(d):
                s[_VALUE, k] = numbers[i, k]
            _standardize(s, scale, learns)
            score, after = 0.0, 0.0
            if scale and learns:
                for k in range(d):
                    score += s[_W, k] * s[_BEFORE, k]
                    after += s[_W, k] * s[_AFTER, k]
            else:
                for k in range(d):
                    score += s[_W, k] * s[_BEFORE, k]
                after = score
            bad = False
            if starts.size:
                first, stop = starts[i], starts[i + 1]
                for k in range(first, stop):
                    v, j = values[k], slots[k]
                    if math.isnan(v):
                        continue
                    z[k - first] = v
                    if j < 0:
                        score += table[0, -1 - j] * v
                        after += table[0, -1 - j] * v
                    elif not scale:
                        score += weights[0, j] * v
                        after += weights[0, j] * v
                    else:
                        z0, z1, mean, variance, _, times = _scaled(
                            v, scaler[0, j], scaler[1, j], math.sqrt(scaler[1, j]), scaler[2, j]
                        )
                        score += weights[0, j] * z0
                        if learns:
                            scaler[0, j], scaler[1, j], scaler[2, j] = mean, variance, times
                            z[k - first] = z1
                            after += weights[0, j] * z1
                            bad |= not variance < math.inf
            score += intercept
            if logistic:
                p = _sigmoid(score)
                predicted[i, 0] = 1.0 - p
                predicted[i, 1] = p
            else:
                predicted[i, 0] = score
            if not learns:
                continue

            slope = _slope(logistic, after + intercept, y)
            if sample_weights.size:
                slope *= sample_weights[i]
            if bad or not math.isfinite(slope):
                done = i
                break
            slope = max(min(slope, o.clip), -o.clip)
            intercept -= o.intercept_rate * slope
            rate = _rate(optimizer, o, steps)
            penalty += o.l1 * rate
            used = _AFTER if scale else _BEFORE
            for k in range(wide):
                v, w, a, b = s[_VALUE, k], s[_W, k], s[_A, k], s[_B, k]
                w1, a1, b1 = _stepped(
                    optimizer, penalized, o, rate, penalty, s[used, k] * slope, w, a, b
                )
                here = v == v  # noqa: PLR0124
                s[_W, k] = w1 if here else w
                if optimizer != _SGD or penalized:
                    s[_A, k] = a1 if here else a
                if optimizer in (_ADAM, _FTRL):
                    s[_B, k] = b1 if here else b
                bad |= not (abs(s[_W, k] + s[_A, k] + s[_B, k]) < math.inf)
                bad |= not (s[_VARIANCE, k] < math.inf)
            for k in range(first, stop):
                v, j = values[k], slots[k]
                if math.isnan(v):
                    continue
                own = table if j < 0 else weights
                j = -1 - j if j < 0 else j
                w, a, b = _stepped(
                    optimizer, penalized, o, rate, penalty, z[k - first] * slope,
                    own[0, j], own[1, j], own[2, j],
                )  # fmt: skip
                own[0, j], own[1, j], own[2, j] = w, a, b
                bad |= not (abs(w + a + b) < math.inf)
            steps += 1.0
            if bad or not math.isfinite(intercept):
                done = i
                break
        if done == n and labels.size:
            for k in range(d):
                for row in range(3):
                    weights[row, at[k]] = s[_W + row, k]
                    scaler[row, at[k]] = s[_MEAN + row, k]
            t.intercept, t.steps, t.penalty = intercept, int(steps), penalty
        return done

    return linear  # type: ignore[no-any-return]


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _normalize(scores: FloatArray, known: int, probas: FloatArray) -> None:
    """Softmax of the first `known` scores, as River's: sums in the order of the classes."""
    highest = -math.inf
    for c in range(known):
        highest = max(highest, scores[c])
    total = 0.0
    for c in range(known):
        probas[c] = math.exp(scores[c] - highest)
        total += probas[c]
    for c in range(known):
        probas[c] /= total


@cache
def softmax_kernel(optimizer: int, scale: bool, penalized: bool) -> Kernel:
    """Return the loop of softmax regression; parameters as for `linear_kernel`."""

    @njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
    def softmax(  # kernels take arrays, not objects
        numbers: FloatArray,
        at: IntArray,
        starts: IntArray,
        slots: IntArray,
        values: FloatArray,
        labels: IntArray,
        sample_weights: FloatArray,
        options: npt.NDArray[np.void],
        weights: FloatArray,
        scaler: FloatArray,
        table: FloatArray,
        classes: FloatArray,
        count: IntArray,
        probas: FloatArray,
        best: IntArray,
        seen: IntArray,
    ) -> int:
        """Predict each event, then learn it if it has a label; return how many were done.

        As the loop of linear learners, but `labels` are codes: negative for no label, and the
        number of classes so far for a new class. `weights` and `table` are (3, slots, classes),
        with room for whole vectors of classes. `classes` has rows: steps, penalty. `count` is
        the number of classes, updated in place. `best` receives the predicted code, -1 for
        none, and `seen` the number of classes known at each event.
        """
        _check_rows(
            numbers, at, starts, slots, values, labels, sample_weights, weights, scaler, table
        )
        n, d = len(numbers), numbers.shape[1]
        if options.size != 1:
            raise ValueError("options of a kernel must be one record")
        _check_classes(
            labels, sample_weights, weights, table, classes, count, n, probas, best, seen
        )
        o = options[0]
        known, room = count[0], classes.shape[1]
        wide = in_lanes(d)
        s = np.zeros((10, wide))
        s[_VALUE] = math.nan
        if scale:
            for k in range(d):
                for row in range(3):
                    s[_MEAN + row, k] = scaler[row, at[k]]
                s[_ROOT, k] = math.sqrt(s[_VARIANCE, k])
        longest = 0
        for i in range(starts.size - 1):
            longest = max(longest, starts[i + 1] - starts[i])
        z = np.empty(longest)
        score, after = np.zeros(room), np.zeros(room)
        p, slope = np.zeros(room), np.zeros(room)
        rates = np.full(room, o.rate)
        used = _AFTER if scale else _BEFORE
        first, stop = 0, 0
        done = n
        for i in range(n):
            y = labels[i] if labels.size else -1
            learns = y >= 0
            if sample_weights.size and sample_weights[i] == 0.0:
                learns = False
            for k in range(d):
                s[_VALUE, k] = numbers[i, k]
            _standardize(s, scale, learns)
            # Lanes without a class have zero weights and no slope.
            lanes = in_lanes(known)
            both = scale and learns
            for c in range(lanes):
                score[c], after[c] = 0.0, 0.0
            for k in range(d):
                j, z0, z1 = at[k], s[_BEFORE, k], s[_AFTER, k]
                if both:
                    for c in range(lanes):
                        score[c] += weights[0, j, c] * z0
                        after[c] += weights[0, j, c] * z1
                else:
                    for c in range(lanes):
                        score[c] += weights[0, j, c] * z0
            if not both:
                for c in range(lanes):
                    after[c] = score[c]
            bad = False
            if starts.size:
                first, stop = starts[i], starts[i + 1]
                for k in range(first, stop):
                    v, j = values[k], slots[k]
                    if math.isnan(v):
                        continue
                    z0, z1 = v, v
                    if j >= 0 and scale:
                        z0, z1, mean, variance, _, times = _scaled(
                            v, scaler[0, j], scaler[1, j], math.sqrt(scaler[1, j]), scaler[2, j]
                        )
                        if learns:
                            scaler[0, j], scaler[1, j], scaler[2, j] = mean, variance, times
                            bad |= not variance < math.inf
                        else:
                            z1 = z0
                    z[k - first] = z1
                    own = table if j < 0 else weights
                    j = -1 - j if j < 0 else j
                    for c in range(lanes):
                        score[c] += own[0, j, c] * z0
                        after[c] += own[0, j, c] * z1
            seen[i] = known
            best[i] = -1
            if known:
                _normalize(score, known, p)
                best[i] = 0
                for c in range(known):
                    probas[i, c] = p[c]
                    if p[c] > p[best[i]]:
                        best[i] = c
            if not learns:
                continue

            if known and both:
                _normalize(after, known, p)
            if y == known:
                p[y] = 0.0
                known += 1
                lanes = in_lanes(known)
            weight = sample_weights[i] if sample_weights.size else 1.0
            for c in range(known):
                clamped = max(min(p[c], 1.0 - 1e-15), 1e-15)  # as River does
                slope[c] = (clamped - (1.0 if c == y else 0.0)) * weight
                bad |= math.isnan(p[c]) or not math.isfinite(slope[c])
                slope[c] = max(min(slope[c], o.clip), -o.clip)
                rates[c] = _rate(optimizer, o, classes[0, c])
                classes[0, c] += 1.0
                classes[1, c] += o.l1 * rates[c]
            if bad:
                done = i
                break
            for k in range(d):
                if math.isnan(s[_VALUE, k]):
                    continue
                j, z1 = at[k], s[used, k]
                for c in range(lanes):
                    w, a, b = _stepped(
                        optimizer, penalized, o, rates[c], classes[1, c], z1 * slope[c],
                        weights[0, j, c], weights[1, j, c], weights[2, j, c],
                    )  # fmt: skip
                    weights[0, j, c] = w
                    if optimizer != _SGD or penalized:
                        weights[1, j, c] = a
                    if optimizer in (_ADAM, _FTRL):
                        weights[2, j, c] = b
                    bad |= not (abs(w + a + b) < math.inf)
                bad |= not (s[_VARIANCE, k] < math.inf)
            for k in range(first, stop):
                if math.isnan(values[k]):
                    continue
                own = table if slots[k] < 0 else weights
                j = -1 - slots[k] if slots[k] < 0 else slots[k]
                z1 = z[k - first]
                for c in range(lanes):
                    w, a, b = _stepped(
                        optimizer, penalized, o, rates[c], classes[1, c], z1 * slope[c],
                        own[0, j, c], own[1, j, c], own[2, j, c],
                    )  # fmt: skip
                    own[0, j, c], own[1, j, c], own[2, j, c] = w, a, b
                    bad |= not (abs(w + a + b) < math.inf)
            if bad:
                done = i
                break
        if labels.size and scale:
            for k in range(d):
                for row in range(3):
                    scaler[row, at[k]] = s[_MEAN + row, k]
        count[0] = known
        return done

    return softmax  # type: ignore[no-any-return]
