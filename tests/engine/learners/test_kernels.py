"""The compiled loops within their arrays: sizes around whole vectors, growth, and what is refused.

`make test-bounds` runs these where numba checks every index, too.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from river import linear_model, optim, preprocessing

from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.events.event import Event
from midstream.engine.learners import kernels, softmax
from midstream.engine.learners.kernels import (
    LANES,
    TOTALS,
    grown,
    in_lanes,
    linear_kernel,
    options_record,
    softmax_kernel,
)
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.learners.softmax import SoftmaxLearner

# From none to three vectors and one more, and beyond a hundred.
SIZES = [*range(3 * LANES + 2), 101, 103, 104, 105, 112, 113]


def batch(xs, ys):
    return EventBatch.from_events([Event(x=x, y=y) for x, y in zip(xs, ys, strict=True)])


def events(n, d, classes, *, words=0, seed=0):
    """Return features and labels: numbers with gaps, a word out of `words`, each class in turn."""
    rng = np.random.default_rng(seed)
    xs = [
        {f"f{j}": v for j, v in enumerate(row) if rng.random() > 0.1}
        | ({"word": f"w{i % words}"} if words else {})
        for i, row in enumerate(rng.normal(size=(n, d)).tolist())
    ]
    return xs, [f"class {i % classes}" for i in range(n)]


def one_by_one(learner, xs, ys):
    """Return the probabilities of a learner that gets a batch for each event."""
    return [learner.predict_learn(batch([x], [y])).probas[0] for x, y in zip(xs, ys, strict=True)]


def test_room_is_given_in_whole_vectors():
    """Along either axis, whatever is asked for; what was there stays, and nothing else is new."""
    for axis in (0, 1):
        array = np.zeros((0, 3) if axis == 0 else (3, 0))
        for size in sorted(SIZES):
            before, array = array, grown(array, size, axis)
            assert array.shape[axis] >= size
            assert array.shape[axis] % LANES == 0
            kept = array[: before.shape[0], : before.shape[1]]
            assert (kept == before).all()
            assert array.sum() == before.sum()
            array += 1.0
    assert grown(np.ones((3, 20)), 21).shape == (3, 24)
    assert grown(np.ones((3, 24)), 25).shape == (3, 48)


@pytest.mark.parametrize("d", SIZES)
def test_any_number_of_features_is_learned(d):
    """As columns and one by one as dicts it comes to the same bits."""
    rng = np.random.default_rng(d)
    values = rng.normal(size=(40, d))
    values[rng.random(values.shape) < 0.1] = np.nan
    y = rng.random(40) < 0.5
    names = [f"f{j}" for j in range(d)]
    columns, dicts = LinearLearner(), LinearLearner()
    given = EventBatch(None, Targets(y.astype(float), True), array=values, names=names)
    table = columns.predict_learn(given).table
    for i, row in enumerate(values.tolist()):
        x = {name: v for name, v in zip(names, row, strict=True) if v == v}  # noqa: PLR0124
        found = dicts.predict_learn(batch([x], [bool(y[i])]))
        assert (found.table.values[0] == table.values[i]).all()
    assert columns.explain().weights == pytest.approx(dicts.explain().weights, rel=1e-15)


@pytest.mark.parametrize("classes", [size for size in SIZES if size])
@pytest.mark.parametrize("cut", ["first", "growing"])
def test_any_number_of_classes_is_learned_as_rivers(classes, cut):
    """In the first batch, or a few more with each: probabilities are River's to 1e-12."""
    xs, ys = events(classes * 3, 3, classes, seed=classes)
    model = preprocessing.StandardScaler() | linear_model.SoftmaxRegression(optim.SGD(0.01))
    learner = SoftmaxLearner()
    step = len(xs) if cut == "first" else 5
    for start in range(0, len(xs), step):
        part = slice(start, start + step)
        probas = learner.predict_learn(batch(xs[part], ys[part])).probas
        for x, y, found in zip(xs[part], ys[part], probas, strict=True):
            expected = model.predict_proba_one(x)
            model.learn_one(x, y)
            assert list(found) == list(expected)
            assert all(abs(found[c] - p) < 1e-12 for c, p in expected.items())


@pytest.mark.parametrize("make", [LinearLearner, SoftmaxLearner], ids=["linear", "softmax"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 17, 25, 104, 105])
def test_growth_at_each_place_changes_nothing(make, size):
    """Names, categories and classes that come later, after a resume too: as one by one."""
    learner, single = make(), make()
    for step in (0, 1, LANES, LANES + 1):
        xs, ys = events(30, size + step, size + step + 1, words=size + step, seed=step)
        ys = ys if make is SoftmaxLearner else [y == "class 0" for y in ys]
        found = learner.predict_learn(batch(xs, ys)).probas
        assert [dict(p) for p in found] == [dict(p) for p in one_by_one(single, xs, ys)]
        assert learner.state() == single.state()
        learner = make.from_state(learner.state(), task=learner.task)


@pytest.mark.parametrize("optimizer", kernels.OPTIMIZERS)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 23, 24, 25, 101])
def test_a_batch_of_any_size_is_learned(n, optimizer):
    """An empty one, and with categories and without: by every optimizer of both learners."""
    for words in (0, 9):
        xs, ys = events(n, 9, 9, words=words)
        for make in (LinearLearner, SoftmaxLearner):
            labels = ys if make is SoftmaxLearner else [y == "class 0" for y in ys]
            learner, single = make(optimizer=optimizer), make(optimizer=optimizer)
            found = learner.predict_learn(batch(xs, labels)).probas
            assert [dict(p) for p in found] == [dict(p) for p in one_by_one(single, xs, labels)]


def arguments(kernel, n=3, d=2, classes=2):
    """Return what a kernel takes, by name: all that it relies on is as it should be."""
    given = {
        "numbers": np.ones((n, d)),
        "at": np.arange(d),
        "starts": np.arange(0, 2 * n + 1, 2),
        "slots": np.array([0, -1] * n),
        "values": np.ones(2 * n),
        "labels": np.zeros(n) if kernel == "linear" else np.arange(n) % (classes + 1),
        "sample_weights": np.ones(n),
        "options": options_record({"rate": 0.1, "clip": 1.0}),
    }
    if kernel == "linear":
        return given | {
            "weights": np.zeros((3, d)), "scaler": np.zeros((3, d)), "table": np.zeros((3, 1)),
            "totals": np.zeros(1, TOTALS), "predicted": np.zeros((n, 2)),
        }  # fmt: skip
    return given | {
        "weights": np.zeros((3, d, LANES)), "scaler": np.zeros((3, d)),
        "table": np.zeros((3, 1, LANES)), "classes": np.zeros((2, LANES)), "count": np.array([0]),
        "probas": np.zeros((n, classes + 1)), "best": np.zeros(n, int), "seen": np.zeros(n, int),
    }  # fmt: skip


def run(kernel, given):
    loop = (
        linear_kernel(True, 0, True, False)
        if kernel == "linear"
        else softmax_kernel(0, True, False)
    )
    return loop(*given.values())


ROWS = [
    ("at", np.array([0, 2])), ("at", np.array([0, -1])), ("at", np.arange(3)),
    ("starts", np.arange(3)), ("starts", np.arange(1, 8, 2)), ("starts", np.array([0, 4, 2, 6])),
    ("starts", np.array([-2, 2, 4, 6])), ("slots", np.array([0, -1] * 2)),
    ("slots", np.array([0, -1, 0, -2, 0, 0])), ("slots", np.array([0, -1, 2, 0, 0, 0])),
    ("slots", np.array([10**12] * 6)), ("slots", np.array([-(2**63)] * 6)),
    ("values", np.ones(5)), ("labels", np.zeros(2)), ("labels", np.zeros(4)),
    ("sample_weights", np.ones(1)), ("scaler", np.zeros((3, 1))), ("scaler", np.zeros((2, 2))),
]  # fmt: skip
LINEAR = [
    *ROWS,
    ("weights", np.zeros((3, 1))), ("weights", np.zeros((1, 2))), ("table", np.zeros((3, 0))),
    ("table", np.zeros((1, 1))), ("predicted", np.zeros((2, 2))), ("predicted", np.zeros((3, 1))),
    ("totals", np.zeros(0, TOTALS)), ("options", options_record({})[:0]),
]  # fmt: skip
SOFTMAX = [
    *((name, value.astype(int) if name == "labels" else value) for name, value in ROWS),
    ("weights", np.zeros((3, 1, 8))), ("weights", np.zeros((3, 2, 3))),
    ("weights", np.zeros((1, 2, 8))), ("table", np.zeros((3, 1, 3))),
    ("table", np.zeros((3, 0, 8))), ("classes", np.zeros((2, 3))), ("classes", np.zeros((1, 8))),
    ("labels", np.array([0, 2, 0])), ("labels", np.array([1, 0, 0])),
    ("labels", np.array([0, 1, 10**15])), ("count", np.array([-1])), ("count", np.array([9])),
    ("count", np.zeros(0, int)), ("probas", np.zeros((2, 3))), ("probas", np.zeros((3, 2))),
    ("best", np.zeros(2, int)), ("seen", np.zeros(2, int)), ("options", options_record({})[:0]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "name", "value"),
    [("linear", *case) for case in LINEAR] + [("softmax", *case) for case in SOFTMAX],
)
def test_what_a_kernel_relies_on_is_checked_at_its_entry(kernel, name, value):
    """Sizes, slots and codes that would lead beyond an array are a ValueError: nothing is done."""
    given = arguments(kernel)
    assert run(kernel, {key: value.copy() for key, value in given.items()}) == 3
    before = {key: value.copy() for key, value in given.items()}
    with pytest.raises(ValueError, match=r"must|beyond|fit|end"):
        run(kernel, given | {name: value})
    assert all((given[key] == before[key]).all() for key in given)


def test_the_slot_of_a_missing_value_is_not_looked_at():
    """What has no slot is a missing value, of whatever slot."""
    given = arguments("linear")
    given["slots"] = np.array([0, 10**12] * 3)
    given["values"][1::2] = np.nan
    assert run("linear", given) == 3


def test_room_of_just_the_classes_is_refused(monkeypatch):
    """Where arrays have room for the classes, but not for whole vectors, the kernel says so."""
    monkeypatch.setattr(softmax, "grown", exact)
    xs, ys = events(20, 3, 20)
    with pytest.raises(ValueError, match="room for every class, in whole vectors"):
        SoftmaxLearner().predict_learn(batch(xs, ys))


def exact(array, size, axis=1):
    """Stand in for `grown` with the fault that it once had: room of just the size."""
    shape = list(array.shape)
    shape[axis] = max(size, shape[axis])
    larger = np.zeros(shape, array.dtype)
    larger[tuple(slice(length) for length in array.shape)] = array
    return larger


PLANTED = """
import sys
import numpy as np
from numba import njit
from midstream.connectors.decode import scanner
from midstream.connectors.encode import weaving
from midstream.engine.learners import kernels, softmax
from test_kernels import batch, events, exact

fault = sys.argv[1]
if fault == "classes":  # no check at the entry, and room for just the classes
    kernels._check_classes = njit(lambda *_: None)
    softmax.grown = exact
    print(len(softmax.SoftmaxLearner().predict_learn(batch(*events(20, 3, 20)))))
if fault == "columns":  # a slot beyond the weights
    kernels._check_rows = njit(lambda *_: None)
    from test_kernels import arguments, run
    print(run("linear", arguments("linear") | {"at": np.array([0, 5])}))
if fault == "bytes":  # eight bytes at the end of six
    from midstream.connectors.decode.unaligned import eight
    print(njit(lambda text: eight(text, 0))(np.frombuffer(b"x" * 6, np.uint8)))
"""


@pytest.mark.slow
@pytest.mark.bounds
@pytest.mark.parametrize("fault", ["classes", "columns", "bytes"])
def test_a_planted_fault_is_caught_where_bounds_are_checked(fault, tmp_path):
    """Without the checks at the entry, an index beyond an array is an IndexError there."""
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parent),
    }  # fmt: skip
    command = [sys.executable, "-c", PLANTED, fault]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("IndexError: index is out of bounds"), done.stderr


@pytest.mark.skipif(os.environ.get("NUMBA_BOUNDSCHECK") != "1", reason="for make test-bounds")
def test_bounds_are_checked_in_this_process():
    """What `make test-bounds` sets is in force in the very kernels."""
    from numba import njit

    assert all(size == in_lanes(size) for size in range(0, 100, LANES))
    with pytest.raises(IndexError, match="out of bounds"):
        njit(lambda array, at: array[at])(np.zeros(3), 3)
