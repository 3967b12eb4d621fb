"""Prequential metrics against River's, against plain references, and whatever the cuts."""

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import datasets, dummy, evaluate, linear_model, metrics, naive_bayes, preprocessing

from midstream.engine.events.batch import Targets
from midstream.engine.events.event import LARGEST
from midstream.engine.events.predictions import Table
from midstream.engine.metrics.prequential import METRICS, Prequential
from midstream.engine.state import encoding

TASKS = list(METRICS)
NAN, INF = math.nan, math.inf


class CrossEntropy(metrics.CrossEntropy):
    """River's, but a label that is not among the probabilities has probability 0."""

    def update(self, y_true, y_pred, w=1.0):
        super().update(y_true, {**y_pred, y_true: y_pred.get(y_true, 0.0)}, w)


RIVER: dict[str, dict[str, Any]] = {
    "binary": {
        "accuracy": metrics.Accuracy,
        "balanced_accuracy": metrics.BalancedAccuracy,
        "log_loss": metrics.LogLoss,
        "f1": metrics.F1,
        "macro_f1": metrics.MacroF1,
        "kappa": metrics.CohenKappa,
    },
    "multiclass": {
        "accuracy": metrics.Accuracy,
        "balanced_accuracy": metrics.BalancedAccuracy,
        "log_loss": CrossEntropy,
        "macro_f1": metrics.MacroF1,
        "kappa": metrics.CohenKappa,
    },
    "regression": {"mae": metrics.MAE, "rmse": metrics.RMSE, "r2": metrics.R2},
}
BIT_FOR_BIT = {"accuracy", "log_loss", "mae"}
COLOURS = ["red", "green", 3, True, "blue", 2.5]


def stream(task, n, seed, holes=True):
    """(label, value, proba) of n events: skewed, autocorrelated, with late classes and gaps."""
    rng = random.Random(seed)
    label: Any = None
    events = []
    for i in range(n):
        proba: Any = None
        if task == "regression":
            label = rng.gauss(50, 10)
            value: Any = label + rng.gauss(0, 3)
        elif task == "binary":
            label = label if i and rng.random() < 0.5 else rng.random() < 0.3
            p = round(min(max(rng.gauss(0.7 if label else 0.4, 0.3), 0), 1), 2)
            proba = rng.choice([{False: 1 - p, True: p}, {True: p}, {0: 1 - p, 1: p}])
            value = p > 0.5
        else:
            known = COLOURS[: 2 + i * len(COLOURS) // n]
            label = label if i and rng.random() < 0.5 else rng.choice(known)
            weights = {c: rng.random() + (c == label) for c in known if rng.random() < 0.9}
            proba = {c: w / sum(weights.values()) for c, w in weights.items()}
            value = max(proba, key=proba.get) if proba else None
        y, v, p = label, value, proba
        if holes and rng.random() < 0.1:
            y = None
        if holes and rng.random() < 0.1:
            v = None
        if holes and rng.random() < 0.1:
            p = rng.choice([{}, None])
        events.append((y, v, p))
    return events


def feed(prequential, events, cuts=()):
    """Score events in batches that end at `cuts`; all losses in one array."""
    losses = [np.empty(0)]
    for start, end in itertools.pairwise([0, *sorted(cuts), len(events)]):
        columns = [[event[j] for event in events[start:end]] for j in range(3)]
        losses.append(prequential.update(*columns))
    return np.concatenate(losses)


def scored(events):
    return [(y, v) for y, v, _ in events if y is not None and v is not None]


def with_probas(events):
    return [(y, p) for y, _, p in events if y is not None and p]


def river_values(task, events, fading=1.0, window=None):
    """River's metrics over the scored events: the last `window`, each weighted by its age."""
    values = {}
    for name, make in RIVER[task].items():
        pairs = with_probas(events) if name == "log_loss" else scored(events)
        pairs = pairs[-window:] if window else pairs
        metric = make()
        for age, (y, guess) in zip(range(len(pairs) - 1, -1, -1), pairs, strict=True):
            metric.update(y, guess, fading**age)
        values[name] = metric.get()
    return values


def kappa_temporal(events, fading=1.0, window=None):
    """Kappa-Temporal in plain loops."""
    rows, last = [], None
    for y, v, _ in events:
        if y is not None and v is not None:
            rows.append((y == v, None if last is None else y == last))
        last = last if y is None else y
    rows = rows[-window:] if window else rows
    weights = [fading**age for age in range(len(rows) - 1, -1, -1)]

    def mean(column):
        known = [(w, row[column]) for w, row in zip(weights, rows, strict=True)]
        known = [(w, hit) for w, hit in known if hit is not None]
        return sum(w for w, hit in known if hit) / sum(w for w, _ in known)

    return (mean(0) - mean(1)) / (1 - mean(1))


def exact(value):
    """State as something that `==` compares bit for bit, nan included."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: exact(v) for key, v in value.items()}
    if isinstance(value, list):
        return [exact(v) for v in value]
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("task", TASKS)
def test_cumulative_values_are_rivers(task):
    """At every tenth event, gaps included, cumulative values are River's; means bit for bit."""
    events = stream(task, 400, seed=1)
    prequential = Prequential(task)
    for start in range(0, 400, 10):
        feed(prequential, events[start : start + 10])
        report = prequential.report()
        for name, value in river_values(task, events[: start + 10]).items():
            tolerance = 0 if name in BIT_FOR_BIT else 1e-12
            assert report[name] == pytest.approx(value, rel=0, abs=tolerance), name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fading", [0.99, 0.9, 0.5, 1.0])
def test_faded_values_are_rivers_with_weights_by_age(task, fading):
    """Faded values are River's where each event weighs fading ** age, across rescalings too."""
    events = stream(task, 900, seed=2)
    if fading == 0.5:
        events = events[-25:]  # before a class can have gone
    prequential = Prequential(task, fading=fading)
    feed(prequential, events)
    report = prequential.report()
    for name, value in river_values(task, events, fading).items():
        assert report[f"{name}.fading"] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("window", [1, 7, 100, 1000])
def test_windowed_values_are_rivers_over_the_last_events(task, window):
    """Windowed values are River's over the last `window` scored events alone."""
    events = stream(task, 600, seed=3)
    prequential = Prequential(task, window=window)
    feed(prequential, events, cuts=range(50, 600, 50))
    report = prequential.report()
    for name, value in river_values(task, events, window=window).items():
        assert report[f"{name}.window"] == pytest.approx(value, rel=1e-12, abs=1e-12), name


@pytest.mark.parametrize(
    ("dataset", "model", "task"),
    [
        (
            datasets.Phishing(),
            preprocessing.StandardScaler() | linear_model.LogisticRegression(),
            "binary",
        ),
        (datasets.ImageSegments(), naive_bayes.GaussianNB(), "multiclass"),
        (
            datasets.TrumpApproval(),
            preprocessing.StandardScaler() | linear_model.LinearRegression(),
            "regression",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_those_of_progressive_val_score(dataset, model, task):
    """On River's data sets and learners the values are those of its progressive_val_score."""
    data = list(dataset.take(400))
    learner = model.clone()
    events = []
    for x, y in data:
        proba = None if task == "regression" else learner.predict_proba_one(x)
        events.append((y, learner.predict_one(x), proba))
        learner.learn_one(x, y)
    prequential = Prequential(task)
    feed(prequential, events, cuts=range(64, 400, 64))
    report = prequential.report()
    for name, make in RIVER[task].items():
        expected = evaluate.progressive_val_score(iter(data), model.clone(), make()).get()
        tolerance = 0 if name in BIT_FOR_BIT else 1e-12
        assert report[name] == pytest.approx(expected, rel=0, abs=tolerance), name


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 120),
    memory=st.fixed_dictionaries(
        {
            "window": st.sampled_from([1, 5, 50, 500]),
            "fading": st.sampled_from([0.01, 0.5, 0.999, 1.0]),
        }
    ),
    cuts=st.lists(st.floats(0, 1), max_size=12),
)
def test_cuts_change_nothing(task, seed, n, memory, cuts):
    """However a stream is cut, losses, reports and state are the same bit for bit."""
    events = stream(task, n, seed)
    whole, cut = Prequential(task, **memory), Prequential(task, **memory)
    losses = feed(whole, events)
    assert exact(feed(cut, events, [int(c * n) for c in cuts])) == exact(losses)
    assert exact(cut.state()) == exact(whole.state())
    assert exact(cut.report()) == exact(whole.report())
    assert exact(cut.no_change) == exact(whole.no_change)


@pytest.mark.parametrize("task", TASKS)
def test_a_restored_one_continues_as_the_original(task):
    """Saved in the middle and restored, it reports and saves what the original does."""
    events = stream(task, 300, seed=5)
    original = Prequential(task, list(METRICS[task][:3]), window=50, fading=0.5)
    feed(original, events[:120])
    restored = Prequential.from_state(original.state())
    assert exact(restored.state()) == exact(original.state())
    assert restored.definition() == original.definition()
    for prequential in (original, restored):
        feed(prequential, events[120:])
    assert exact(restored.state()) == exact(original.state())
    assert exact(restored.report()) == exact(original.report())


@pytest.mark.parametrize("task", TASKS)
def test_state_is_copied_out_and_in(task):
    """Neither the one that gave a state nor the one built from it shares memory with it."""
    events = stream(task, 100, seed=6)
    original = Prequential(task, window=20)
    feed(original, events)
    state = original.state()
    before = exact(state)
    restored = Prequential.from_state(state)
    feed(original, events)
    feed(restored, events)
    assert exact(state) == before


@pytest.mark.parametrize("window", [5, 40, 300])
def test_roc_auc_counts_pairs(window):
    """ROC AUC is the share of (True, False) pairs in the window in the right order, ties half."""
    events = stream("binary", 200, seed=7)
    prequential = Prequential("binary", ["roc_auc"], window=window)
    feed(prequential, events)
    recent = [(y, p.get(True, 0.0)) for y, p in with_probas(events)[-window:]]
    high = [p for y, p in recent if y]
    low = [p for y, p in recent if not y]
    won = sum((a > b) + (a == b) / 2 for a in high for b in low)
    assert prequential.report() == {"roc_auc.window": won / (len(high) * len(low))}


def test_roc_auc_of_one_class_is_undefined():
    """With labels of one class only in the window, ROC AUC is nan."""
    prequential = Prequential("binary", window=2)
    prequential.update([True, False], [True, True], [{True: 0.9}, {True: 0.8}])
    assert prequential.report()["roc_auc.window"] == 1.0
    prequential.update([False], [True], [{True: 0.7}])
    assert math.isnan(prequential.report()["roc_auc.window"])


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("window", [80, 1000])
def test_kappa_temporal_compares_with_no_change(task, window):
    """Kappa-Temporal equals a plain reference over the stream, the window and by age."""
    events = stream(task, 500, seed=8, holes=window == 80)
    prequential = Prequential(task, window=window, fading=0.98)
    feed(prequential, events)
    report = prequential.report()
    assert report["kappa_temporal"] == pytest.approx(kappa_temporal(events), abs=1e-12)
    faded = kappa_temporal(events, fading=0.98)
    assert report["kappa_temporal.fading"] == pytest.approx(faded, abs=1e-9)
    windowed = kappa_temporal(events, window=window)
    assert report["kappa_temporal.window"] == pytest.approx(windowed, abs=1e-12)


def test_kappa_temporal_is_undefined_where_labels_never_change():
    """Where no-change makes no error there is nothing to compare with: nan."""
    prequential = Prequential("binary")
    prequential.update([True] * 5, [True] * 5)
    report = prequential.report()
    assert math.isnan(report["kappa_temporal"])
    assert math.isnan(report["kappa_temporal.fading"])
    assert (report["kappa"], report["accuracy"]) == (0.0, 1.0)


def test_no_change_is_rivers_no_change_classifier():
    """With every event scored, no_change is the accuracy of River's NoChangeClassifier."""
    events = stream("multiclass", 300, seed=9, holes=False)
    prequential = Prequential("multiclass")
    prequential.update([events[0][0]], ["red"])
    assert math.isnan(prequential.no_change)
    prequential = Prequential("multiclass")
    prequential.update([y for y, _, _ in events], ["red"] * 300)
    data = (({}, y) for y, _, _ in events)
    expected = evaluate.progressive_val_score(data, dummy.NoChangeClassifier(), metrics.Accuracy())
    assert prequential.no_change == expected.get()


def test_no_change_of_numbers_is_its_mean_absolute_error():
    """For regression no_change is the MAE of predicting the last label, scored or not."""
    prequential = Prequential("regression")
    prequential.update([1.0, None, 4.0, 2.0], [1.0, 9.0, None, 3.0])
    assert prequential.no_change == 2.0
    prequential.update([6], [6])
    assert prequential.no_change == 3.0


@pytest.mark.parametrize("task", TASKS)
def test_an_event_without_label_or_prediction_is_not_scored(task):
    """Such events have nan as loss and change no value; the others have their error as loss."""
    a, b = (1.0, 3.0) if task == "regression" else (True, False)
    prequential = Prequential(task)
    losses = prequential.update([a, None, b, a, None], [b, a, None, a, None])
    wrong = 2.0 if task == "regression" else 1.0
    np.testing.assert_array_equal(losses, [wrong, np.nan, np.nan, 0.0, np.nan])
    assert losses.dtype == np.float64
    assert prequential.scored == 2
    assert prequential.report()["mae" if task == "regression" else "accuracy"] == wrong / 2


def test_log_loss_has_a_count_of_its_own():
    """Log loss takes every labelled event with probabilities, predicted label or not."""
    prequential = Prequential("binary", ["log_loss", "accuracy"])
    prequential.update([True, True, None], [None, True, True], [{True: 0.5}, {}, {True: 0.1}])
    report = prequential.report()
    assert report["log_loss"] == report["log_loss.window"] == -math.log(0.5)
    assert report["accuracy"] == 1.0
    assert prequential.scored == 1


@pytest.mark.parametrize(
    ("task", "label", "proba"),
    [
        ("binary", True, {False: 1.0}),
        ("binary", False, {True: 1.0}),
        ("binary", True, {True: 1.5}),
        ("multiclass", "a", {"a": 0}),
        ("multiclass", "a", {"a": 1}),
        ("multiclass", "a", {"b": 1.0}),
    ],
)
def test_odd_probabilities_cost_what_they_cost_in_river(task, label, proba):
    """Certainty and classes that are absent are clamped as River does."""
    metric = RIVER[task]["log_loss"]()
    metric.update(label, proba)
    prequential = Prequential(task)
    prequential.update([label], [label], [proba])
    report = prequential.report()
    expected = pytest.approx(metric.get(), rel=0, abs=0)
    assert [report[f"log_loss{view}"] for view in ("", ".fading", ".window")] == [expected] * 3


@pytest.mark.parametrize("form", ["dicts", "table"])
@pytest.mark.parametrize("classes", [("a", "b"), ("a",), ("b", "c", "a")])
def test_a_label_that_the_learner_did_not_know_costs_the_clamp(form, classes):
    """A label with no probability, where there are others, costs -log(1e-15); none at all, nothing.

    An event without any probability is not scored, in either form.
    """
    rows = [{c: 1.0 / len(classes) for c in classes}] * 2
    table = Table(classes, np.full((2, len(classes)), 1.0 / len(classes)))
    prequential = Prequential("multiclass")
    prequential.update(["new", "a"], ["a", "a"], rows if form == "dicts" else table)
    clamp = -math.log(1e-15)
    expected = (clamp + math.log(len(classes))) / 2
    assert clamp == pytest.approx(34.54, abs=0.01)
    assert prequential.report()["log_loss"] == pytest.approx(expected, abs=1e-12)
    none = [{}, None] if form == "dicts" else Table((), np.empty((2, 0)))
    prequential.update(["a", "newer"], [None, None], none)
    assert prequential.report()["log_loss"] == pytest.approx(expected, abs=1e-12)


ODD = {
    "regression": [(1.0, NAN, None), (1.0, INF, None), (2.0, -INF, None), (2.0, 1e141, None)],
    "binary": [
        (True, True, {True: NAN}),
        (False, True, {False: NAN, True: 0.5}),
        (True, False, {False: -INF, True: INF}),
        (True, NAN, {True: 0.5}),
        (False, INF, None),
    ],
    "multiclass": [
        ("red", "red", {"red": NAN}),
        ("red", "blue", {"red": 0.5, "blue": NAN}),
        ("green", "never seen", {"green": INF}),
        ("green", NAN, {"green": 0.5}),
    ],
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_that_are_not_finite_are_counted_and_left_out(task, labelled):
    """With such among them the values are those of the others, faded and windowed ones too."""
    events = stream(task, 300, seed=11, holes=False)
    odd = [(y if labelled else None, v, p) for y, v, p in ODD[task]]
    mixed, known = Prequential(task, window=50), Prequential(task, window=50)
    losses, unscored = [], 0
    for i, event in enumerate(events):
        losses += feed(mixed, [odd[i % len(odd)]] * (i % 7 == 0) + [event]).tolist()
        unscored += math.isnan(feed(known, [event])[0])
    count = len(range(0, 300, 7))
    assert mixed.non_finite == count
    assert known.non_finite == 0
    assert len(losses) == 300 + count
    assert sum(map(math.isnan, losses)) == count + unscored
    report, expected = mixed.report(), known.report()
    if labelled and task != "regression":  # the label before an event is another one then
        report = {k: v for k, v in report.items() if "temporal" not in k}
        expected = {k: v for k, v in expected.items() if "temporal" not in k}
    assert report == expected
    assert all(map(math.isfinite, report.values()))


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(0, 120), max_size=12),
    odd=st.lists(st.tuples(st.integers(0, 119), st.integers(0, 4)), max_size=9),
)
def test_cuts_change_nothing_where_predictions_are_odd(task, seed, cuts, odd):
    """With predictions that are not finite anywhere, losses and state do not depend on the cuts."""
    events = stream(task, 120, seed)
    for i, which in odd:
        events[i] = ODD[task][which % len(ODD[task])]
    whole, cut = Prequential(task, window=9), Prequential(task, window=9)
    losses = feed(whole, events)
    assert exact(feed(cut, events, cuts)) == exact(losses)
    assert exact(cut.state()) == exact(whole.state())
    assert whole.non_finite == len({i for i, _ in odd})
    assert exact(Prequential.from_state(whole.state()).state()) == exact(whole.state())


@pytest.mark.parametrize("array", [True, False])
def test_a_label_too_large_to_square_is_left_out(array):
    """Labels of 1e160 are counted; every value stays that of the others, no-change's too."""
    labels = [1.0, 1e160, 2.0, -1e160, 4.0]
    guesses = [1.5, 1.0, 2.5, 1.0, 5.0]
    prequential, others = Prequential("regression"), Prequential("regression")
    if array:
        losses = prequential.update(Targets(np.array(labels), False), np.array(guesses))
    else:
        losses = prequential.update(labels, guesses)
    np.testing.assert_array_equal(losses, [0.5, NAN, 0.5, NAN, 1.0])
    others.update(labels[::2], guesses[::2])
    assert prequential.report() == others.report()
    assert prequential.no_change == others.no_change
    assert (prequential.too_large, prequential.non_finite) == (2, 0)
    assert Prequential.from_state(prequential.state()).too_large == 2


def test_the_largest_numbers_that_are_scored_keep_every_sum_finite():
    """Errors of twice the most that is scored, event after event, overflow nothing."""
    prequential = Prequential("regression", window=10)
    n = 2_000
    labels = Targets(np.resize([LARGEST, -LARGEST], n), False)
    prequential.update(labels, -labels.values)
    assert prequential.scored == n
    assert all(map(math.isfinite, prequential.report().values()))
    totals = prequential.state()["totals"]
    assert all(map(math.isfinite, totals.values()))
    assert max(map(abs, totals.values())) * 2**52 < np.finfo(np.float64).max
    Prequential.from_state(prequential.state())


@pytest.mark.parametrize(
    ("task", "labels", "values", "message"),
    [
        (
            "binary",
            [0, 1, NAN],
            [2, 1, 0],
            "predicted label is True, False, 1 or 0, got 2 at row 0",
        ),
        ("binary", [0, 1, NAN], [1, 0, -1], "got -1 at row 2"),
        ("binary", [0, 1, NAN], [1, 0.5, 0], "got 0.5 at row 1"),
        ("binary", [0, 1, NAN], [1, 0, 10**9], r"got 1e\+09 at row 2"),
        ("binary", [0, 2, NAN], [1, 0, 1], "a binary label is True, False, 1 or 0, got 2 at row 1"),
        ("binary", [0, -1, NAN], [1, 0, 1], "got -1 at row 1"),
        ("binary", [0, 1e300, NAN], [1, 0, 1], r"got 1e\+300 at row 1"),
        ("binary", [0, 1, NAN], ["a", "b", "c"], "not a column of numbers each"),
        ("binary", [0, 1, NAN], [[1], [0], [1]], "not a column of numbers each"),
        ("regression", [0, 1, NAN], [[1], [0], [1]], "not a column of numbers each"),
        ("regression", [0, INF, NAN], [1, 0, 1], "a label must be finite, got inf at row 1"),
    ],
)
def test_a_column_that_cannot_be_counted_is_refused(task, labels, values, message):
    """Arrays with what is neither class nor number raise ValueError; nothing has been scored."""
    prequential = Prequential(task)
    feed(prequential, stream(task, 20, seed=12))
    before = exact(prequential.state())
    targets = Targets(np.array(labels, np.float64), task == "binary")
    with pytest.raises(ValueError, match=message):
        prequential.update(targets, np.array(values))
    assert exact(prequential.state()) == before


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint64, np.int64, np.float32, np.float64])
def test_any_array_of_zeros_and_ones_is_one_of_labels(dtype):
    """Predicted labels count alike as bools, whole numbers and floats."""
    labels = Targets(np.array([0.0, 1.0, NAN, 1.0]), True)
    prequential = Prequential("binary")
    losses = prequential.update(labels, np.array([0, 0, 1, 1], dtype))
    np.testing.assert_array_equal(losses, [0.0, 1.0, NAN, 0.0])


def test_there_are_no_targets_of_many_classes():
    """Numbers are no codes of classes: `Targets` for multiclass are refused."""
    for binary in (True, False):
        with pytest.raises(TypeError, match="these are no targets of task multiclass"):
            Prequential("multiclass").update(Targets(np.array([9.0]), binary), np.array([9]))


def test_a_table_of_another_shape_is_refused():
    """Probabilities need a row for each event and a column for each class."""
    table = Table(("a", "b"), np.array([[0.5], [0.5]]))
    with pytest.raises(ValueError, match=r"2 classes have probas of \(2, 1\)"):
        Prequential("multiclass").update(["a", "b"], ["a", "b"], table)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 101])
def test_sizes_around_the_places_where_arrays_grow(task, window, n):
    """With any number of events, classes and places in the window, all is counted and goes on."""
    labels: list[Any] = [True, False] * n if task == "binary" else [float(i) for i in range(2 * n)]
    if task == "multiclass":
        labels = [f"c{i % max(n, 1)}" for i in range(2 * n)]
    prequential = Prequential(task, window=window)
    probas = None if task == "regression" else [{y: 1.0} for y in labels]
    prequential.update(labels, labels, probas)
    assert prequential.scored == len(labels)
    restored = Prequential.from_state(prequential.state())
    for each in (prequential, restored):
        each.update(labels[:3], labels[:3])
    assert exact(restored.state()) == exact(prequential.state())
    assert len(prequential.state().get("classes", [])) == {"binary": 2, "multiclass": n}.get(
        task, 0
    )


def test_classes_are_coded_as_they_come():
    """Classes get codes by first appearance, a label before its prediction; 1 is True."""
    prequential = Prequential("multiclass")
    prequential.update(["b", None, True], ["c", "d", 1])
    state = prequential.state()
    assert state["classes"] == ["b", "c", "d", True]
    np.testing.assert_array_equal(state["counts"], [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]])


def test_memory_grows_with_the_classes_not_their_square():
    """Ten thousand classes take three counts each, and are scored right."""
    labels = [f"c{i}" for i in range(10_000)]
    prequential = Prequential("multiclass", window=10)
    prequential.update(labels, labels[:5_000] + labels[:5_000])
    assert prequential.state()["counts"].shape == (3, 10_000)
    report = prequential.report()
    assert report["accuracy"] == report["balanced_accuracy"] == 0.5
    assert report["macro_f1"] == pytest.approx(1 / 3, abs=1e-12)
    assert report["accuracy.window"] == 0.0


def test_a_class_leaves_the_faded_view():
    """A class that has not come for long enough no longer counts among the faded classes."""
    prequential = Prequential("multiclass", fading=0.9)
    prequential.update(["a", "b"], ["b", "b"])
    prequential.update(["b"] * 150, ["b"] * 150)
    assert prequential.report()["balanced_accuracy.fading"] == 0.5
    prequential.update(["b"] * 60, ["b"] * 60)
    report = prequential.report()
    assert report["balanced_accuracy.fading"] == 1.0
    assert report["macro_f1.fading"] == pytest.approx(1.0, abs=1e-9)
    assert report["balanced_accuracy"] == 0.5


@pytest.mark.parametrize("task", TASKS)
def test_before_any_event_all_is_undefined(task):
    """With nothing scored every value is nan, and an empty batch changes nothing."""
    prequential = Prequential(task)
    assert prequential.update([], [], []).shape == (0,)
    report = prequential.report()
    views = [f"{m}{v}" for m in METRICS[task] for v in ("", ".fading", ".window")]
    views = [v for v in views if v not in ("roc_auc", "roc_auc.fading")]
    assert list(report) == views
    assert all(math.isnan(value) for value in report.values())
    assert math.isnan(prequential.no_change)
    assert prequential.scored == 0


def test_equal_labels_have_no_r2():
    """Where labels do not vary, r2 is 0 in every view, as in River."""
    prequential = Prequential("regression", window=3)
    prequential.update([0.1] * 7, [0.2] * 7)
    assert [v for k, v in prequential.report().items() if k.startswith("r2")] == [0.0] * 3


def test_only_the_metrics_asked_for_are_reported():
    """The report holds the chosen metrics in their order, each once, and text lists them."""
    prequential = Prequential("binary", ["roc_auc", "accuracy", "roc_auc"])
    prequential.update([True, False], [True, True], [{True: 0.9}, {True: 0.9}])
    assert prequential.report() == {
        "roc_auc.window": 0.5,
        "accuracy": 0.5,
        "accuracy.fading": pytest.approx(0.999 / 1.999),
        "accuracy.window": 0.5,
    }
    lines = str(prequential).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["all", "fading", "window"],
        ["roc_auc", "0.500000"],
        ["accuracy", "0.500000", "0.499750", "0.500000"],
    ]
    assert lines[2].endswith("0.500000")
    assert lines[0] == "binary, 2 events scored, no-change 0.000000"
    prequential.update([True], [True], [{True: NAN}])
    assert str(prequential).splitlines()[0].endswith("as predictions are not finite: 1")


def test_without_a_metric_of_probabilities_they_are_still_looked_through():
    """Without log_loss and roc_auc, an event whose probabilities are nan is counted, not scored."""
    prequential = Prequential("binary", ["accuracy"])
    prequential.update([True, True], [True, False], [{True: 1.0}, {True: NAN}])
    assert prequential.report()["accuracy"] == 1.0
    assert prequential.non_finite == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "ranking"}, "unknown task 'ranking'; one of binary, multiclass, regression"),
        (
            {"task": "regression", "metrics": ["mae", "accuracy"]},
            "no metric 'accuracy' for regression; allowed: mae, rmse, r2",
        ),
        ({"task": "multiclass", "metrics": ["roc_auc"]}, "no metric 'roc_auc' for multiclass"),
        ({"task": "binary", "window": 0}, "window must be at least 1 event, got 0"),
        ({"task": "binary", "fading": 0.0}, "fading must be from 0.001 to 1, got 0.0"),
        ({"task": "binary", "fading": math.nan}, "fading must be from 0.001 to 1, got nan"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    """What is unknown or out of range is named, with what would be right."""
    with pytest.raises(ValueError, match=message):
        Prequential(**arguments)


@pytest.mark.parametrize(
    ("task", "columns", "error", "message"),
    [
        ("binary", ([True], [], None), ValueError, "1 labels, 0 values, no probas"),
        ("binary", ([True], [True], []), ValueError, "1 labels, 1 values, 0 probas"),
        ("binary", ([True, "yes"], [True, True], None), ValueError, "got 'yes'"),
        (
            "binary",
            ([True, NAN], [True, True], None),
            ValueError,
            "a label must be finite, got nan",
        ),
        ("multiclass", (["a", "b"], ["a", []], None), TypeError, "unhashable"),
        (
            "multiclass",
            (["a", NAN], ["a", "a"], None),
            ValueError,
            "a label must be finite, got nan",
        ),
        ("multiclass", (["a", -INF], ["a", "a"], None), ValueError, "must be finite, got -inf"),
        ("regression", ([1.0, NAN], [1.0, 2.0], None), ValueError, "got nan at row 1"),
        ("regression", ([None, INF], [1.0, 2.0], None), ValueError, "got inf at row 1"),
        ("regression", ([1.0, None], [1.0, "2"], None), TypeError, "must be real number"),
    ],
)
def test_a_refused_batch_leaves_everything_as_it_was(task, columns, error, message):
    """A batch that cannot be scored raises, and nothing of it has been scored."""
    prequential = Prequential(task)
    feed(prequential, stream(task, 20, seed=10))
    before = exact(prequential.state())
    with pytest.raises(error, match=message):
        prequential.update(*columns)
    assert exact(prequential.state()) == before


def test_a_state_of_another_schema_is_refused():
    """An unknown schema is refused with both versions in the message."""
    state = Prequential("binary").state() | {"schema": 2}
    with pytest.raises(ValueError, match="has schema 2, this version reads 1"):
        Prequential.from_state(state)


def damaged(task, /, **parts):
    """Return a state with parts put in the place of its own; of totals, values."""
    prequential = Prequential(task, window=8)
    feed(prequential, stream(task, 20, seed=13))
    state = prequential.state()
    for name, part in parts.items():
        state[name] = state[name] | part if isinstance(part, dict) else part
    return state


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("binary", {"classes": [False] * 100 + [True]}),
        ("binary", {"classes": [True, False]}),
        ("binary", {"classes": ["False", "True"]}),
        ("binary", {"classes": [False]}),
        ("binary", {"counts": np.zeros((3, 3), np.int64)}),
        ("binary", {"counts": np.full((3, 2), -1)}),
        ("binary", {"counts": np.zeros((3, 2), np.int64)}),
        ("binary", {"counts": np.zeros((3, 2))}),
        ("binary", {"faded": np.full((3, 2), NAN)}),
        ("binary", {"faded": np.full((3, 2), -1.0)}),
        ("binary", {"faded": np.full((3, 2), 1e300)}),
        ("binary", {"totals": {"weight": INF}}),
        ("binary", {"totals": {"weight": NAN}}),
        ("binary", {"totals": {"weight": -1.0}}),
        ("binary", {"totals": {"weight": 0.0}}),
        ("binary", {"totals": {"scored": -1}}),
        ("binary", {"totals": {"scored": 2**63 - 1}}),
        ("binary", {"totals": {"scored": 2**80}}),
        ("binary", {"totals": {"scored": 1.0}}),
        ("binary", {"totals": {"last": 2}}),
        ("binary", {"totals": {"last": -2}}),
        ("binary", {"totals": {"pairs": 99}}),
        ("binary", {"totals": {"faded_same": 99.0}}),
        ("binary", {"totals": {"faded_pairs": INF}}),
        ("binary", {"totals": {"more": 1}}),
        ("binary", {"ring": np.full((3, 8), 2, np.int32)}),
        ("binary", {"ring": np.full((3, 8), -2, np.int32)}),
        ("binary", {"ring": np.zeros((3, 7), np.int32)}),
        ("binary", {"ring": np.zeros((3, 8), np.int64)}),
        ("binary", {"ring": [[0] * 8] * 3}),
        ("binary", {"proba_ring": np.full((3, 8), NAN)}),
        ("binary", {"proba_ring": np.full((3, 8), 2.0)}),
        ("binary", {"proba_ring": np.zeros((1, 8))}),
        ("binary", {"proba_totals": {"mean": NAN}}),
        ("binary", {"proba_totals": {"mean": 1e9}}),
        ("binary", {"proba_totals": {"faded": INF}}),
        ("binary", {"proba_totals": {"faded_count": -1.0}}),
        ("binary", {"proba_totals": {"scored": -3}}),
        ("binary", {"non_finite": -1}),
        ("binary", {"non_finite": 0.5}),
        ("binary", {"too_large": 2**70}),
        ("binary", {"window": 0}),
        ("binary", {"window": 10**12}),
        ("binary", {"window": 8.0}),
        ("binary", {"fading": NAN}),
        ("binary", {"fading": "1"}),
        ("binary", {"task": "regression"}),
        ("binary", {"task": ["binary"]}),
        ("binary", {"metrics": 3}),
        ("binary", {"totals": None}),
        ("binary", {"classes": None}),
        ("multiclass", {"classes": ["red"] * 6}),
        ("multiclass", {"classes": ["red", NAN]}),
        ("multiclass", {"classes": []}),
        ("multiclass", {"proba_ring": np.zeros((3, 8))}),
        ("regression", {"totals": {"mae": NAN}}),
        ("regression", {"totals": {"mse": INF}}),
        ("regression", {"totals": {"residual": -1.0}}),
        ("regression", {"totals": {"no_change": -1.0}}),
        ("regression", {"totals": {"label_mean": 1e200}}),
        ("regression", {"totals": {"last": NAN}}),
        ("regression", {"totals": {"faded_count": 1e9}}),
        ("regression", {"totals": {"labels": 1}}),
        ("regression", {"totals": {"scored": -1}}),
        ("regression", {"totals": {"faded_label_squares": INF}}),
        ("regression", {"ring": np.full((2, 8), INF)}),
        ("regression", {"ring": np.zeros((3, 8))}),
    ],
    ids=str,
)
def test_a_state_whose_parts_do_not_fit_is_refused(task, parts):
    """What a kernel would index or loop by is looked at before: ValueError, never more."""
    Prequential.from_state(damaged(task))
    with pytest.raises(ValueError, match=r"state|window|fading|metric|task"):
        Prequential.from_state(damaged(task, **parts))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["totals", "ring", "window", "metrics"])
def test_a_state_that_lacks_a_part_is_refused(task, name):
    """A missing part is told as damage."""
    state = damaged(task)
    del state[name]
    with pytest.raises(ValueError, match=f"damaged metrics state: KeyError: '{name}'"):
        Prequential.from_state(state)


@pytest.mark.parametrize("task", TASKS)
def test_a_state_of_before_such_were_counted_is_read(task):
    """Without the counts of what was left out, these begin at 0."""
    state = damaged(task)
    del state["non_finite"], state["too_large"]
    restored = Prequential.from_state(state)
    assert (restored.non_finite, restored.too_large) == (0, 0)


NUMBERS = [0, -1, 1, 2, 3, 10**6, 2**31, 2**60, 2**63 - 1, 2**64, 0.0, -0.0, 0.5, -1.0, 1e-300,
           1e17, 1e140, 1e300, NAN, INF, -INF, True, None, "x", [], {}]  # fmt: skip


def mutated(value, rng):
    """Return a part of a state with one thing in it changed, as a damaged file might have it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        return value | {name: mutated(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        how = rng.randrange(4)
        changed = [mutated(value[i], rng), *value[:1]] if how == 0 else [mutated(value[i], rng)]
        return value[:i] + ([] if how == 1 else changed) + value[i + 1 :]
    if isinstance(value, np.ndarray) and value.size and rng.random() < 0.9:
        how = rng.randrange(6)
        if how == 0:
            return value[:, : rng.randrange(value.shape[1] + 1)].copy()
        if how == 1:
            return value.astype(rng.choice([np.int32, np.int64, np.float64, np.float32, np.bool_]))
        if how == 2:
            return np.concatenate([value, value], axis=rng.randrange(2))
        changed = value.copy()
        number = rng.choice([n for n in NUMBERS if isinstance(n, int | float)])
        info = np.iinfo(value.dtype) if value.dtype.kind == "i" else None
        if info is not None:
            number = int(np.nan_to_num(number, nan=7, posinf=9, neginf=-9))
            number = min(max(number, int(info.min)), int(info.max))
        changed[tuple(rng.randrange(size) for size in value.shape)] = number
        return changed
    return rng.choice(NUMBERS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(8))
def test_a_mutated_state_is_refused_or_behaves(task, seed):
    """Of 250 damaged states each raises ValueError, or scores, reports and is saved again."""
    rng = random.Random(f"{task} {seed}")
    prequential = Prequential(task, window=rng.choice([1, 8, 50]), fading=rng.choice([0.9, 1.0]))
    feed(prequential, stream(task, rng.randrange(60), seed))
    state, events = prequential.state(), stream(task, 70, seed + 1)
    refused = 0
    for _ in range(250):
        try:
            restored = Prequential.from_state(mutated(state, rng))
        except ValueError:
            refused += 1
            continue
        feed(restored, events if restored.task == task else [])
        restored.report()
        encoding.decode(encoding.encode(restored.state()))
        Prequential.from_state(restored.state())
    assert 100 < refused < 250, f"{refused} of 250 refused"


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_log_loss_that_comes_back_begins_anew(task):
    """Its old counts have a gap: neither the mean nor the window goes on from them."""
    first, between, last = (stream(task, 60, seed) for seed in (1, 2, 3))
    prequential = Prequential(task, ["log_loss"], window=30)
    feed(prequential, first)
    for names, events in ((["accuracy"], between), (["accuracy", "log_loss"], last)):
        prequential = Prequential(task, names, window=50).amended(prequential)
        feed(prequential, events)
    anew = Prequential(task, ["log_loss"], window=50)
    feed(anew, last)
    got = {k: v for k, v in prequential.report().items() if k.startswith("log_loss")}
    assert got == anew.report()
    assert prequential.scored > anew.scored
