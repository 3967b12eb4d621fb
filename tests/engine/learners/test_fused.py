"""Fused loops against River's own methods: the same state and predictions, bit for bit."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, optim, tree

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners import fused
from midstream.engine.learners.learner import LearnerError, RiverLearner

MODELS = {
    "logistic": linear_model.LogisticRegression,
    "linear": linear_model.LinearRegression,
}
OPTIONS = [
    {},
    {"l2": 0.01},
    {"clip_gradient": 0.05},
    {"optimizer": optim.SGD(0.5), "intercept_lr": 0.1, "intercept_init": -2.0},
    {"optimizer": optim.SGD(30)},
]

number = st.one_of(
    st.floats(-1e3, 1e3, allow_nan=False), st.integers(-5, 5), st.booleans(), st.just(0.0)
)
features = st.dictionaries(st.sampled_from([f"f{i}" for i in range(12)]), number, max_size=12)


def exact(numbers):
    """Return floats so that only equal bits are equal."""
    return [float(number).hex() for number in numbers]


def both(kind, options):
    """Return a fused learner and one that goes through River's methods."""
    quick, plain = RiverLearner(MODELS[kind](**options)), RiverLearner(MODELS[kind](**options))
    assert quick._fused_loop is not None or quick._fused_step is not None
    plain._fused_loop = plain._fused_step = None
    return quick, plain


def assert_same(quick, plain, batch):
    """Learn a batch in both; compare what they predicted and what they are, bit for bit."""
    a, b = quick.predict_learn(batch), plain.predict_learn(batch)
    assert list(map(repr, a.values)) == list(map(repr, b.values))
    for p, q in zip(a.probas or [], b.probas or [], strict=True):
        assert list(p) == list(q)
        assert exact(p.values()) == exact(q.values())
    assert quick.state() == plain.state()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=60)
@given(st.data())
def test_fused_is_river_bit_for_bit(kind, options, data):
    """Features that come and go, in any order, labels that are missing: all as River has it."""
    label = st.booleans() if kind == "logistic" else st.floats(-1e3, 1e3)
    events = data.draw(st.lists(st.tuples(features, st.none() | label), max_size=40))
    quick, plain = both(kind, options)
    cut = data.draw(st.integers(0, len(events)))
    for part in (events[:cut], events[cut:]):
        assert_same(quick, plain, EventBatch.from_events([Event(x=x, y=y) for x, y in part]))


@pytest.mark.parametrize("kind", MODELS)
def test_a_long_sparse_stream(kind):
    """20,000 events of 3 to 30 of 200 features, extremes among them."""
    rng = random.Random(7)
    quick, plain = both(kind, {})
    for _ in range(20):
        events = []
        for _ in range(1_000):
            names = rng.sample(range(200), rng.randint(3, 30))
            scale = 10 ** rng.uniform(-3, 2 if kind == "logistic" else 0)
            y = rng.random() < 0.5 if kind == "logistic" else rng.gauss(0, 1)
            events.append(Event(x={f"n{i}": rng.gauss(0, scale) for i in names}, y=y))
        assert_same(quick, plain, EventBatch.from_events(events))


@pytest.mark.parametrize(
    "model",
    [
        linear_model.LogisticRegression(l1=0.1),
        linear_model.LogisticRegression(optim.Adam()),
        linear_model.LogisticRegression(optim.SGD(optim.schedulers.InverseScaling(0.1))),
        linear_model.LogisticRegression(intercept_lr=optim.schedulers.InverseScaling(0.1)),
        linear_model.LogisticRegression(loss=optim.losses.Hinge()),
        linear_model.LogisticRegression(initializer=optim.initializers.Normal(seed=1)),
        linear_model.LinearRegression(loss=optim.losses.Huber()),
        type("Mine", (linear_model.LogisticRegression,), {})(),
        linear_model.Perceptron(),
    ],
    ids=repr,
)
def test_what_the_loops_were_not_written_for_is_left_to_river(model):
    """Another optimizer, loss, schedule, initializer, penalty or class: River's methods."""
    assert fused.fused_loop(model) is None


TREES = [
    {},
    {"grace_period": 20},
    {"grace_period": 30, "max_depth": 3},
    {"grace_period": 20, "leaf_prediction": "mc"},
    {"grace_period": 20, "leaf_prediction": "nb", "nb_threshold": 10},
    {"grace_period": 20, "split_criterion": "gini", "binary_split": True},
    {"grace_period": 20, "memory_estimate_period": 100, "max_size": 0.02},
    {"grace_period": 20, "memory_estimate_period": 100, "max_size": 0.02,
     "stop_mem_management": True},
    {"grace_period": 20, "remove_poor_attrs": True, "merit_preprune": False},
    {"grace_period": 20, "splitter": tree.splitter.HistogramSplitter()},
]  # fmt: skip


@pytest.mark.parametrize("options", TREES, ids=str)
@pytest.mark.parametrize("labels", [(False, True), ("a", "b", "c")])
def test_a_tree_is_rivers_bit_for_bit(options, labels):
    """Trees that split and are pruned; categories, features and labels that come and go."""
    rng = random.Random(3)
    task = "binary" if len(labels) == 2 else "multiclass"
    model = tree.HoeffdingTreeClassifier(**options)
    quick, plain = RiverLearner(model, task), RiverLearner(model.clone(), task)
    assert quick._fused_step is not None
    plain._fused_step = None
    for part in range(8):
        events = []
        for _event in range(400):
            x = {f"f{j}": rng.gauss(0, 1) for j in range(6)} | {"n": rng.randint(0, 3)}
            score = x["f0"] + (x["f1"] > 0) * x["f2"] * (1 if part < 5 else -1)
            if part > 1:
                x |= {"c": rng.choice("pqrs"[: part + 1])}
                score += x["c"] == "q"
            if rng.random() < 0.1:
                del x[f"f{rng.randrange(6)}"]
            y = labels[min(int(abs(score)), len(labels) - 1)]
            events.append(Event(x=x, y=None if rng.random() < 0.05 else y))
            if rng.random() < 0.01:
                events[-1].weight = rng.choice([0.0, 2.0])
        assert_same(quick, plain, EventBatch.from_events(events))
        weightless = [Event(x=e.x, y=e.y) for e in events]
        assert_same(quick, plain, EventBatch.from_events(weightless))


@pytest.mark.parametrize(
    "model",
    [
        tree.ExtremelyFastDecisionTreeClassifier(),
        tree.HoeffdingAdaptiveTreeClassifier(seed=1),
        tree.HoeffdingTreeRegressor(),
        linear_model.LogisticRegression(),
    ],
    ids=repr,
)
def test_no_step_for_another_model(model):
    """One class, and none of those derived from it, which do otherwise."""
    assert fused.fused_step(model) is None


def test_another_river_is_left_to_its_own_methods(monkeypatch):
    """The loops know one series of River versions."""
    monkeypatch.setattr(fused.river, "__version__", "0.27.0")
    assert fused.fused_loop(linear_model.LogisticRegression()) is None
    assert fused.fused_step(tree.HoeffdingTreeClassifier()) is None


@pytest.mark.parametrize("labelled", [True, False])
def test_the_row_that_it_raises_on_is_named(labelled):
    """A feature that is no number stops the learner at that event, label or not."""
    xs = [{"a": 1.0}, {"a": 2.0}, {"a": "three"}, {"a": 4.0}]
    events = [Event(x=x, y=True if labelled else None) for x in xs]
    learner, plain = both("logistic", {})
    learner.predict_learn(EventBatch.from_events(events[:1]))
    plain.predict_learn(EventBatch.from_events(events[:1]))
    rows = []
    for one in (learner, plain):
        with pytest.raises(LearnerError) as raised:
            one.predict_learn(EventBatch.from_events(events[1:]))
        rows.append((raised.value.row, type(raised.value.cause)))
    assert rows[0] == rows[1] == (1, TypeError)


def test_weights_go_through_river():
    """Sample weights are not for the loops; both ways may alternate."""
    rng = random.Random(1)
    quick, plain = both("logistic", {})
    for i in range(6):
        weights = [rng.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(50)]
        batch = EventBatch(
            [{"a": rng.gauss(0, 1), "b": rng.gauss(0, 1)} for _ in range(50)],
            [rng.random() < 0.5 for _ in range(50)],
            weights=weights if i % 2 else None,
        )
        assert_same(quick, plain, batch)
    assert not math.isnan(quick.model.intercept)
