"""Change detectors: fed one value after the other, they report where the mean has changed.

Equal to River's bit for bit, but compiled, and fed whole batches. Values pass through a kernel one
after the other, so detections and state do not depend on how the stream was cut into batches.
"""

import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit

from midstream.engine.events.event import FloatArray, IntArray

__all__ = ["ADWIN", "Detection", "Detector", "PageHinkley"]

_SCHEMA = 1
_ROWS = 64  # row r holds buckets of 2**r values: more than any stream has
_EXACT = 2**53  # up to here widths, which are floats, count exactly
_MOST_BUCKETS = 10_000

_WINDOW = np.dtype([
    ("rows", "i8"),  # number in use, at least 1
    ("width", "f8"),
    ("total", "f8"),
    ("variance", "f8"),  # sum of squared deviations from the mean
    ("tick", "i8"),  # values since the last check for a cut
    ("detected", "?"),  # at the last value: the next one starts anew
])  # fmt: skip
_SUMS = np.dtype([
    ("n", "i8"),
    ("mean", "f8"),
    ("sum_increase", "f8"),
    ("sum_decrease", "f8"),
    ("min_increase", "f8"),
    ("max_decrease", "f8"),
    ("detected", "?"),  # as above
])  # fmt: skip


class Detection(NamedTuple):
    """A change at a row of a batch, with the detector's mean before and after that value.

    If the detector forgets what came before the change, it has done so in the second.
    """

    row: int
    before: float
    after: float


class Detector(Protocol):
    """The contract of a detector. Its options are the arguments of its constructor, by name."""

    def __init__(self, **options: Any) -> None: ...

    def update(self, values: FloatArray) -> list[Detection]:
        """Feed (n,) values in order, skipping nan, and return the changes found."""

    def definition(self) -> dict[str, Any]:
        """Return the options: plain JSON values."""

    def state(self) -> dict[str, Any]:
        """Return everything that later detections depend on, copied, for `encoding`."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Detector":
        """Build a detector from `state`; it continues exactly as the original would have."""


# River's operations in River's order; no fastmath, which would let the compiler reorder them.
@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _insert(
    x: float,
    max_buckets: int,
    window: npt.NDArray[np.void],
    counts: IntArray,
    totals: FloatArray,
    variances: FloatArray,
) -> None:
    """Add a bucket of one value; merge the oldest two of a size that has too many."""
    w = window[0]
    totals[0, counts[0]] = x
    variances[0, counts[0]] = 0.0
    counts[0] += 1
    w.width += 1.0
    if w.width > 1.0:
        deviation = x - w.total / (w.width - 1.0)
        w.variance += (w.width - 1.0) * deviation * deviation / w.width
    w.total += x
    row = 0
    size = 1.0
    while counts[row] > max_buckets:
        difference = totals[row, 0] / size - totals[row, 1] / size
        end = counts[row + 1]
        totals[row + 1, end] = totals[row, 0] + totals[row, 1]
        variances[row + 1, end] = (
            variances[row, 0] + variances[row, 1] + size * 0.5 * difference * difference
        )
        counts[row + 1] += 1
        counts[row] -= 2
        for k in range(counts[row]):
            totals[row, k] = totals[row, k + 2]
            variances[row, k] = variances[row, k + 2]
        row += 1
        size *= 2.0
    w.rows = max(w.rows, row + 1)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _has_cut(
    delta: float,
    min_window_length: int,
    window: npt.NDArray[np.void],
    counts: IntArray,
    totals: FloatArray,
) -> bool:
    """Whether the means before and after some bucket boundary differ too much."""
    w = window[0]
    n0, u0 = 0.0, 0.0  # length and total of the older part
    n1, u1 = w.width, w.total  # and of the newer part
    spread = w.variance / w.width
    confidence = math.log(2.0 * math.log(w.width) / delta)
    size = 2.0 ** (w.rows - 1)
    for row in range(w.rows - 1, -1, -1):
        for k in range(counts[row]):
            n0 += size
            n1 -= size
            u0 += totals[row, k]
            u1 -= totals[row, k]
            if n0 < min_window_length or n1 < min_window_length:
                continue
            inverse = 1.0 / (n0 - min_window_length + 1.0) + 1.0 / (n1 - min_window_length + 1.0)
            epsilon = (
                math.sqrt(2.0 * inverse * spread * confidence) + 2.0 / 3.0 * confidence * inverse
            )
            if abs(u0 / n0 - u1 / n1) > epsilon:
                return True
        size *= 0.5
    return False


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _drop_oldest(
    window: npt.NDArray[np.void], counts: IntArray, totals: FloatArray, variances: FloatArray
) -> None:
    """Remove the oldest bucket from the window."""
    w = window[0]
    row = w.rows - 1
    size = 2.0**row
    w.width -= size
    w.total -= totals[row, 0]
    difference = totals[row, 0] / size - w.total / w.width
    w.variance -= variances[row, 0] + size * w.width * difference * difference / (size + w.width)
    counts[row] -= 1
    for k in range(counts[row]):
        totals[row, k] = totals[row, k + 1]
        variances[row, k] = variances[row, k + 1]
    while w.rows > 1 and counts[w.rows - 1] == 0:
        w.rows -= 1


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _adwin(
    values: FloatArray,
    delta: float,
    clock: int,
    max_buckets: int,
    min_window_length: int,
    grace_period: int,
    window: npt.NDArray[np.void],
    counts: IntArray,
    totals: FloatArray,
    variances: FloatArray,
    rows: IntArray,
    estimates: FloatArray,
) -> int:
    """Feed values; fill `rows` and `estimates` from the start, and return how many there are."""
    if rows.size < values.size or estimates.shape[0] < values.size or estimates.shape[1] != 2:
        raise ValueError("there must be room for a detection at every value")
    if counts.size != _ROWS or totals.shape != variances.shape or window.size != 1:
        raise ValueError("a window must have a row for each size of buckets")
    if totals.shape[0] != _ROWS or totals.shape[1] <= max_buckets:
        raise ValueError("a window must have room for one bucket too many of each size")
    w = window[0]
    if not 0 < w.rows < _ROWS or not 0.0 <= w.width < _EXACT:
        raise ValueError("a window's rows or width are impossible")
    for row in range(_ROWS):
        if not 0 <= counts[row] <= (max_buckets if row < w.rows else 0):
            raise ValueError("a window holds more buckets of a size than there may be")
    found = 0
    for i in range(values.size):
        if math.isnan(values[i]):
            continue
        if w.detected:
            counts[: w.rows] = 0
            w.rows = 1
            w.width = 0.0
            w.total = 0.0
            w.variance = 0.0
            w.tick = 0
            w.detected = False
        width, total = w.width, w.total
        _insert(values[i], max_buckets, window, counts, totals, variances)
        w.tick += 1
        if w.tick < clock:
            continue
        w.tick = 0
        if w.width <= grace_period:
            continue
        while _has_cut(delta, min_window_length, window, counts, totals):
            _drop_oldest(window, counts, totals, variances)
            w.detected = True
        if w.detected:
            rows[found] = i
            estimates[found, 0] = total / width
            estimates[found, 1] = w.total / w.width
            found += 1
    return found


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _page_hinkley(
    values: FloatArray,
    min_instances: int,
    delta: float,
    threshold: float,
    alpha: float,
    up: bool,
    down: bool,
    sums: npt.NDArray[np.void],
    rows: IntArray,
    estimates: FloatArray,
) -> int:
    """Feed values; fill `rows` and `estimates` from the start, and return how many there are."""
    if rows.size < values.size or estimates.shape[0] < values.size or estimates.shape[1] != 2:
        raise ValueError("there must be room for a detection at every value")
    if sums.size != 1:
        raise ValueError("the sums must be one record")
    s = sums[0]
    found = 0
    for i in range(values.size):
        x = values[i]
        if math.isnan(x):
            continue
        if s.n == 0 or s.detected:
            s.n = 0
            s.mean = 0.0
            s.sum_increase = 0.0
            s.sum_decrease = 0.0
            s.min_increase = math.inf
            s.max_decrease = -1.0
            s.detected = False
        before = s.mean
        s.n += 1
        s.mean += (1.0 / s.n) * (x - s.mean)
        deviation = x - s.mean
        s.sum_increase = alpha * s.sum_increase + deviation - delta
        s.sum_decrease = alpha * s.sum_decrease + deviation + delta
        s.min_increase = min(s.min_increase, s.sum_increase)
        s.max_decrease = max(s.max_decrease, s.sum_decrease)
        if s.n < min_instances:
            continue
        risen = up and s.sum_increase - s.min_increase > threshold
        fallen = down and s.max_decrease - s.sum_decrease > threshold
        if risen or fallen:
            s.detected = True
            rows[found] = i
            estimates[found, 0] = before
            estimates[found, 1] = s.mean
            found += 1
    return found


class ADWIN:
    """Adaptive windowing: the longest window whose parts have the same mean.

    ADWIN2 [1]_. The window is kept as sums over buckets of 1, 2, 4, … values, so memory is bounded.
    If the means of its older and newer part differ by more than chance, the oldest buckets are
    dropped and a change is detected; the next value starts an empty window.

    Parameters
    ----------
    delta
        About the rate of false alarms at each check, from 0 to 1.
    clock
        Number of values between two checks for a change.
    max_buckets
        Most buckets of a size; more buckets give finer positions to cut the window.
    min_window_length
        Fewest values in either part.
    grace_period
        While the window holds no more values than this, there is no check.

    Raises
    ------
    ValueError
        If an option is out of range.
    TypeError
        If an option is not a number, or not a whole one.

    Notes
    -----
    Equal bit for bit to `river.drift.ADWIN` (0.23 to 0.26). As there, a value that is infinite, or
    whose square is, makes the variance infinite, and no change is detected from then on;
    `DriftMonitor` passes on no such value. With `max_buckets` 1, River's stops with an error, and
    this one goes on.

    References
    ----------
    .. [1] Bifet, Gavaldà (2007). Learning from time-changing data with adaptive windowing. SIAM
       International Conference on Data Mining, 443-448. The variance of merged buckets is that of
       Babcock, Datar, Motwani, O'Callaghan (2003), PODS, 234-243.
    """

    def __init__(
        self,
        delta: float = 0.002,
        clock: int = 32,
        max_buckets: int = 5,
        min_window_length: int = 5,
        grace_period: int = 10,
    ) -> None:
        self.delta = _number("delta", delta, 1.0)
        self.clock = _whole("clock", clock, 1)
        self.max_buckets = _whole("max_buckets", max_buckets, 1, _MOST_BUCKETS)
        self.min_window_length = _whole("min_window_length", min_window_length, 1)
        self.grace_period = _whole("grace_period", grace_period, 0)
        self._window = np.zeros(1, _WINDOW)
        self._window["rows"] = 1
        # One row per bucket size, oldest bucket first; what lies beyond `counts` is garbage.
        self._counts = np.zeros(_ROWS, np.int64)
        self._totals = np.zeros((_ROWS, self.max_buckets + 1))
        self._variances = np.zeros((_ROWS, self.max_buckets + 1))

    @property
    def width(self) -> int:
        """Number of values in the window."""
        return int(self._window["width"][0])

    @property
    def total(self) -> float:
        """Sum of the values in the window."""
        return float(self._window["total"][0])

    @property
    def variance(self) -> float:
        """Sum of squared deviations of the values in the window from their mean, as in River."""
        return float(self._window["variance"][0])

    @property
    def estimate(self) -> float:
        """Mean of the values in the window; 0 if it is empty."""
        return self.total / self.width if self.width else 0.0

    def update(self, values: FloatArray) -> list[Detection]:
        """Feed (n,) values in order, skipping nan, and return the changes found."""
        values = np.ascontiguousarray(values, np.float64)
        rows = np.empty(len(values), np.int64)
        estimates = np.empty((len(values), 2))
        found = _adwin(
            values, self.delta, self.clock, self.max_buckets, self.min_window_length,
            self.grace_period, self._window, self._counts, self._totals, self._variances,
            rows, estimates,
        )  # fmt: skip
        return _detections(found, rows, estimates)

    def definition(self) -> dict[str, Any]:
        """Return the options: plain JSON values."""
        return {
            "delta": self.delta,
            "clock": self.clock,
            "max_buckets": self.max_buckets,
            "min_window_length": self.min_window_length,
            "grace_period": self.grace_period,
        }

    def state(self) -> dict[str, Any]:
        """Return everything that later detections depend on, as values and arrays, copied.

        ``counts`` is (rows,), the number of buckets of 1, 2, 4, … values; ``totals`` and
        ``variances`` are (buckets,), row after row, oldest first.
        """
        w = self._window[0]
        counts = self._counts[: w["rows"]].copy()
        used = self._used(counts)
        return {
            "schema": _SCHEMA,
            **self.definition(),
            "total": float(w["total"]),
            "variance": float(w["variance"]),
            "tick": int(w["tick"]),
            "detected": bool(w["detected"]),
            "counts": counts,
            "totals": self._totals[: len(counts)][used],
            "variances": self._variances[: len(counts)][used],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ADWIN":
        """Build a detector from `state`; it continues exactly as the original would have.

        Raises
        ------
        ValueError
            If the state is of another schema, or is not that of a detector.
        """
        given = _options(cls.__name__, state, cls().definition())
        with _damage(cls.__name__):
            return cls._restored(given, state)

    @classmethod
    def _restored(cls, options: Mapping[str, Any], state: Mapping[str, Any]) -> "ADWIN":
        new = cls(**options)
        counts, buckets = state["counts"], (state["totals"], state["variances"])
        width = sum(n << row for row, n in enumerate(counts.tolist()))
        if not (
            counts.dtype == np.int64
            and counts.ndim == 1
            and 0 < len(counts) < _ROWS
            and 0 <= counts.min() <= counts.max() <= new.max_buckets
            and (counts[-1] > 0 or len(counts) == 1)
            and width < _EXACT
            and all(sums.dtype == np.float64 for sums in buckets)
            and all(sums.shape == (counts.sum(),) for sums in buckets)
            and (type(state["total"]), type(state["variance"])) == (float, float)
            and (type(state["tick"]), type(state["detected"])) == (int, bool)
            and 0 <= state["tick"] < new.clock
        ):
            raise ValueError("ADWIN state is damaged: its window is impossible")
        used = new._used(counts)
        new._counts[: len(counts)] = counts
        new._totals[: len(counts)][used] = state["totals"]
        new._variances[: len(counts)][used] = state["variances"]
        new._window["rows"] = len(counts)
        new._window["width"] = width
        for name in ("total", "variance", "tick", "detected"):
            new._window[name] = state[name]
        return new

    def _used(self, counts: IntArray) -> npt.NDArray[np.bool_]:
        """Return which slots hold buckets, (rows, max_buckets + 1)."""
        mask: npt.NDArray[np.bool_] = np.arange(self.max_buckets + 1) < counts[:, np.newaxis]
        return mask


class PageHinkley:
    """Page-Hinkley test: how far deviations from the running mean have added up.

    A change is detected if the sum of deviations has moved away from its extreme by more than the
    threshold [1]_; with the next value everything starts anew.

    Parameters
    ----------
    min_instances
        Number of values before the first detection, and after each.
    delta
        Tolerated deviation, in units of the values.
    threshold
        Sum of deviations at which a change is detected, in units of the values.
    alpha
        Factor by which the sum fades with each value, from 0 to 1.
    mode
        "up" looks for a rise of the mean, "down" for a fall, "both" for either.

    Raises
    ------
    ValueError
        If an option is out of range.
    TypeError
        If an option is not a number, or not a whole one.

    Notes
    -----
    Equal bit for bit to `river.drift.PageHinkley`. As there, no change is detected after an
    infinite value.

    References
    ----------
    .. [1] Page (1954). Continuous inspection schemes. Biometrika 41, 100-115.
    """

    def __init__(
        self,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 0.9999,
        mode: Literal["both", "up", "down"] = "both",
    ) -> None:
        if mode not in ("both", "up", "down"):
            raise ValueError(f"mode must be 'both', 'up' or 'down', found {mode!r}")
        self.min_instances = _whole("min_instances", min_instances, 1)
        self.delta = _number("delta", delta)
        self.threshold = _number("threshold", threshold)
        self.alpha = _number("alpha", alpha, 1.0)
        self.mode = mode
        self._sums = np.zeros(1, _SUMS)

    @property
    def estimate(self) -> float:
        """Mean of the values since the last detection, including the value that caused it."""
        return float(self._sums["mean"][0])

    def update(self, values: FloatArray) -> list[Detection]:
        """Feed (n,) values in order, skipping nan, and return the changes found."""
        values = np.ascontiguousarray(values, np.float64)
        rows = np.empty(len(values), np.int64)
        estimates = np.empty((len(values), 2))
        found = _page_hinkley(
            values, self.min_instances, self.delta, self.threshold, self.alpha,
            self.mode != "down", self.mode != "up", self._sums, rows, estimates,
        )  # fmt: skip
        return _detections(found, rows, estimates)

    def definition(self) -> dict[str, Any]:
        """Return the options: plain JSON values."""
        return {
            "min_instances": self.min_instances,
            "delta": self.delta,
            "threshold": self.threshold,
            "alpha": self.alpha,
            "mode": self.mode,
        }

    def state(self) -> dict[str, Any]:
        """Return everything that later detections depend on, as plain values."""
        sums = dict(zip(_SUMS.names or (), self._sums[0].item(), strict=True))
        return {"schema": _SCHEMA, **self.definition(), **sums}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "PageHinkley":
        """Build a detector from `state`; it continues exactly as the original would have.

        Raises
        ------
        ValueError
            If the state is of another schema, or is not that of a detector.
        """
        given = _options(cls.__name__, state, cls().definition())
        with _damage(cls.__name__):
            new = cls(**given)
            kinds = {"n": int, "detected": bool}
            for name in _SUMS.names or ():
                if type(state[name]) is not kinds.get(name, float):
                    raise TypeError(f"{name} is {state[name]!r:.100}")
                new._sums[name] = state[name]
            if not 0 <= state["n"] < _EXACT:
                raise ValueError(f"n is {state['n']}")
        return new


def _detections(found: int, rows: IntArray, estimates: FloatArray) -> list[Detection]:
    return [
        Detection(row, before, after)
        for row, (before, after) in zip(
            rows[:found].tolist(), estimates[:found].tolist(), strict=True
        )
    ]


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Report any error in the block as damage of a detector's state."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        if str(error).startswith(f"{name} state"):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} state is damaged: {reason}") from error


def _options(name: str, state: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{name} state is damaged: found a {type(state).__name__}")
    if state.get("schema") != _SCHEMA:
        raise ValueError(
            f"{name} state has schema {state.get('schema')!r}, this version reads {_SCHEMA}"
        )
    with _damage(name):
        return {option: state[option] for option in known}


def _whole(name: str, value: int, least: int, most: int = 2**31 - 1) -> int:
    if not least <= operator.index(value) <= most:
        raise ValueError(f"{name} must be from {least} to {most}, found {value}")
    return operator.index(value)


def _number(name: str, value: float, most: float = math.inf) -> float:
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be from 0 to {most:g}, found {value}")
    return float(value)
