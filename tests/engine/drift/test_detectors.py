"""Detectors against River's, to the last bit, and whatever the cuts."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift

from midstream.engine.drift import detectors
from midstream.engine.drift.detectors import ADWIN, PageHinkley
from midstream.engine.state import encoding

N = 200_000
MAKERS = {
    "adwin": ADWIN,
    "adwin-eager": partial(
        ADWIN, delta=0.3, clock=4, max_buckets=1, min_window_length=1, grace_period=0
    ),
    "page_hinkley": PageHinkley,
    "page_hinkley-eager": partial(
        PageHinkley, min_instances=5, delta=0.0, threshold=2.0, alpha=0.99
    ),
}
ALL = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def stream(name, n=N, seed=0):
    """Losses of a kind, (n,), that drift now and then."""
    rng = np.random.default_rng(seed)
    mean = np.repeat(rng.uniform(0.02, 0.6, n // 2_500 + 1), 2_500)[:n]
    if name == "0/1":
        return (rng.random(n) < mean) * 1.0
    real = np.abs(rng.normal(10 * mean, 1.0))
    if name == "real":
        return real
    if name == "signed":
        return real - 3.0
    if name == "late":  # zeros to the middle
        return np.concatenate([np.zeros(n // 2), real[n // 2 :]])
    if name == "large":  # squares fit
        return real * 1e120
    if name == "huge":  # squares do not
        return np.exp(rng.uniform(-700, 700, n))
    assert name == "infinite"
    real[rng.integers(n // 2, n, 20)] = math.inf
    return real


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("0/1", {}),
        ("0/1", {"delta": 0.3, "clock": 1, "max_buckets": 3}),
        ("real", {"delta": 1e-9, "clock": 100, "max_buckets": 40, "min_window_length": 100}),
        ("signed", {"delta": 1.0, "clock": 7, "max_buckets": 2, "min_window_length": 1}),
        ("late", {"grace_period": 0, "clock": 2}),
        ("large", {"delta": 0.05, "grace_period": 1_000}),
        ("huge", {}),
        ("infinite", {}),
    ],
)
def test_adwin_is_rivers(name, options):
    """After every value, width, total, variance and detections are River's, bit for bit."""
    values = stream(name)
    ours, rivers = ADWIN(**options), drift.ADWIN(**options)
    seen, expected = [], []
    found, detections = [], []
    for i in range(N):
        for _, before, after in ours.update(values[i : i + 1]):
            found.append((i, before, after))
        seen.append((ours.width, ours.total, ours.variance))
    for i, value in enumerate(values.tolist()):
        before = rivers.estimation
        rivers.update(value)
        if rivers.drift_detected:
            detections.append((i, before, rivers.estimation))
        expected.append((rivers.width, rivers.total, rivers.variance))
    np.testing.assert_array_equal(seen, expected)
    assert found == detections
    assert (len(found) > 10) == (name != "huge"), f"{len(found)} detections"
    assert ADWIN(**options).update(values) == detections


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("0/1", {}),
        ("0/1", {"mode": "up", "threshold": 10.0}),
        ("real", {"mode": "down", "alpha": 0.99}),
        ("signed", {"min_instances": 1, "delta": 0.5, "threshold": 20.0}),
        ("late", {"delta": 0.0, "alpha": 1.0}),
        ("huge", {}),
        ("infinite", {"min_instances": 500}),
    ],
)
def test_page_hinkley_is_rivers(name, options):
    """After every value, mean, sums, extremes and detections are River's, bit for bit."""
    values = stream(name)
    ours, rivers = PageHinkley(**options), drift.PageHinkley(**options)
    seen, expected = [], []
    found, detections = [], []
    for i in range(N):
        for _, before, after in ours.update(values[i : i + 1]):
            found.append((i, before, after))
        seen.append(ours._sums.item())
    for i, value in enumerate(values.tolist()):
        before = rivers._x_mean.get()
        rivers.update(value)
        if rivers.drift_detected:
            detections.append((i, before, rivers._x_mean.get()))
        expected.append((
            rivers._x_mean.n, rivers._x_mean.get(), rivers._sum_increase, rivers._sum_decrease,
            rivers._min_increase, rivers._max_decrease, rivers.drift_detected,
        ))  # fmt: skip
    np.testing.assert_array_equal(seen, expected)
    assert found == detections
    assert len(found) > 2, f"{len(found)} detections"
    assert PageHinkley(**options).update(values) == detections


@ALL
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(cuts=st.lists(st.integers(0, 3_000), max_size=8), seed=st.integers(0, 9))
def test_any_cut_and_any_restart_give_the_same_detections_and_state(make, cuts, seed):
    """Detections and the bytes of the state do not depend on cuts, nor on being restored there."""
    values = stream("real", 3_000, seed) + np.arange(3_000) // 700 * 2.0
    values[::7] = math.nan
    whole = make()
    expected = whole.update(values)
    parts = make()
    found, start = [], 0
    for end in [*sorted(cuts), len(values)]:
        found += [(start + row, *means) for row, *means in parts.update(values[start:end])]
        state = encoding.encode(parts.state())
        parts = type(parts).from_state(encoding.decode(state))
        assert encoding.encode(parts.state()) == state
        start = end
    assert found == expected
    assert len(found) > 0
    assert encoding.encode(parts.state()) == encoding.encode(whole.state())


@ALL
def test_nan_is_skipped(make):
    """With nan between its values a stream gives the same detections, means and state."""
    values = stream("0/1", 20_000)
    gaps = np.full(40_000, math.nan)
    gaps[1::2] = values
    plain, gappy = make(), make()
    expected = [(2 * row + 1, *means) for row, *means in plain.update(values)]
    assert gappy.update(gaps) == expected
    assert len(expected) > 0
    assert encoding.encode(gappy.state()) == encoding.encode(plain.state())


@ALL
def test_a_state_is_copied_out(make):
    """What a detector sees later does not change a state taken before, or its other copies."""
    values = stream("real", 4_000)
    original = make()
    original.update(values[:1_000])
    state = original.state()
    before = encoding.encode(state)
    copy = type(original).from_state(state)
    original.update(values[1_000:])
    assert encoding.encode(state) == before
    assert encoding.encode(copy.state()) == before


@pytest.mark.parametrize("max_buckets", [1, 2, 3, 5, 30])
def test_adwin_holds_the_last_values(max_buckets):
    """Its total is exactly that of the last `width` values, with `max_buckets` 1 too."""
    values = stream("0/1", 40_000)
    detector = ADWIN(delta=0.1, clock=5, max_buckets=max_buckets, min_window_length=1)
    found = 0
    for start in range(0, len(values), 37):
        end = min(start + 37, len(values))
        found += len(detector.update(values[start:end]))
        assert detector.total == values[end - detector.width : end].sum()
        assert detector.estimate == detector.total / detector.width
    assert found > 5, f"{found} detections"


def test_adwin_memory_is_bounded():
    """Its state grows with the logarithm of the window: under 2 kB after 4 million values."""
    detector = ADWIN()
    for _ in range(20):
        detector.update(np.zeros(N))
    size = len(encoding.encode(detector.state()))
    assert detector.width == 20 * N
    assert size < 2_000, f"{size} B"


def test_adwin_without_values_estimates_zero():
    """Before its first value the window is empty, and its mean 0, as in River."""
    detector = ADWIN()
    assert detector.update(np.empty(0)) == []
    assert (detector.width, detector.total, detector.variance, detector.estimate) == (0, 0, 0, 0)


@pytest.mark.parametrize("values", [[0, 1, 1], np.array([0, 9, 1, 9, 1])[::2]])
def test_any_sequence_of_numbers_is_taken(values):
    """Integers, lists and strided arrays count as the floats that they are."""
    detectors = ADWIN(), PageHinkley()
    for detector in detectors:
        assert detector.update(values) == []
        assert detector.estimate == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ADWIN, {"delta": -0.1}, "delta must be from 0 to 1, found -0.1"),
        (ADWIN, {"delta": math.nan}, "delta must be from 0 to 1, found nan"),
        (ADWIN, {"clock": 0}, "clock must be from 1 to 2147483647, found 0"),
        (ADWIN, {"max_buckets": 10_001}, "max_buckets must be from 1 to 10000, found 10001"),
        (ADWIN, {"min_window_length": 0}, "min_window_length must be from 1"),
        (ADWIN, {"grace_period": -1}, "grace_period must be from 0"),
        (PageHinkley, {"min_instances": 0}, "min_instances must be from 1"),
        (PageHinkley, {"delta": -1.0}, "delta must be from 0 to inf, found -1.0"),
        (PageHinkley, {"threshold": math.nan}, "threshold must be from 0 to inf, found nan"),
        (PageHinkley, {"alpha": 1.5}, "alpha must be from 0 to 1, found 1.5"),
        (PageHinkley, {"mode": "left"}, "mode must be 'both', 'up' or 'down', found 'left'"),
    ],
)
def test_an_option_out_of_range_is_refused(make, options, message):
    """The message names the option, what is allowed and what was found."""
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_whole_number_is_asked_for():
    """A fraction where values are counted is refused, not rounded."""
    with pytest.raises(TypeError, match="integer"):
        ADWIN(clock=2.5)


@pytest.mark.parametrize("make", [ADWIN, PageHinkley])
def test_another_schema_is_refused(make):
    """The message names both schemas."""
    message = f"{make.__name__} state has schema 2, this version reads 1"
    with pytest.raises(ValueError, match=message):
        make.from_state({**make().state(), "schema": 2})


@pytest.mark.parametrize(
    "damage",
    [
        {"counts": np.zeros(0, np.int64)},
        {"counts": np.array([6])},
        {"counts": np.array([-1, 2])},
        {"counts": np.array([1, 0])},
        {"counts": np.array([0] * 60 + [1])},
        {"counts": np.array([0] * 70 + [1])},
        {"totals": np.zeros(2)},
        {"variances": np.zeros(0)},
        {"tick": -1},
        {"tick": 32},
    ],
    ids=str,
)
def test_an_impossible_window_is_refused(damage):
    """A state that would make the kernel write beyond its arrays is an error."""
    detector = ADWIN()
    detector.update(np.zeros(1))
    with pytest.raises(ValueError, match="ADWIN state is damaged"):
        ADWIN.from_state({**detector.state(), **damage})


ROOM = {
    "values": np.zeros(3), "delta": 0.002, "clock": 1, "max_buckets": 2, "least": 1, "grace": 0,
    "window": np.zeros(1, detectors._WINDOW), "counts": np.zeros(64, np.int64),
    "totals": np.zeros((64, 3)), "variances": np.zeros((64, 3)), "rows": np.zeros(3, np.int64),
    "estimates": np.zeros((3, 2)),
}  # fmt: skip
ROOM["window"]["rows"] = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("counts", np.zeros(63, np.int64)), ("counts", np.full(64, 3)), ("counts", np.full(64, 1)),
        ("counts", np.array([-1] + [0] * 63)), ("totals", np.zeros((64, 2))),
        ("totals", np.zeros((63, 3))), ("variances", np.zeros((64, 2))), ("max_buckets", 3),
        ("rows", np.zeros(2, np.int64)), ("estimates", np.zeros((2, 2))),
        ("estimates", np.zeros((3, 1))), ("window", np.zeros(1, detectors._WINDOW)),
        ("window", np.zeros(0, detectors._WINDOW)),
    ],
)  # fmt: skip
def test_what_a_window_has_no_room_for_is_refused_at_the_entry(name, value):
    """Nothing is read or written beyond an array."""
    with pytest.raises(ValueError, match=r"window|room"):
        detectors._adwin(*(ROOM | {name: value}).values())


@pytest.mark.parametrize("n", [*range(26), 101, 104, 105])
@pytest.mark.parametrize("max_buckets", [1, 7, 8, 9, 101])
def test_a_batch_of_any_size_is_taken(n, max_buckets):
    """With any number of buckets: as one value at a time, up to a row that is full."""
    values = np.random.default_rng(n).random(n) + (np.arange(n) > n // 2) * 5
    for make in (lambda: ADWIN(max_buckets=max_buckets, clock=1), lambda: PageHinkley(2)):
        whole, single = make(), make()
        found = whole.update(values)
        one_by_one = [
            (i, d.before, d.after) for i in range(n) for d in single.update(values[i : i + 1])
        ]
        assert found == one_by_one
        assert encoding.encode(whole.state()) == encoding.encode(single.state())
