"""The compiled softmax regression: against River, against a plain reference, by the contract."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import datasets, linear_model, optim, preprocessing

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.columns import Categories
from midstream.engine.events.event import Event
from midstream.engine.learners.catalogue import make_named
from midstream.engine.learners.checks import check_learner
from midstream.engine.learners.learner import LearnerError, load_learner
from midstream.engine.learners.softmax import SoftmaxLearner
from midstream.engine.metrics.prequential import Prequential
from midstream.engine.state import encoding


def synthetic(n, *, missing=0.0, seed=1, d=10, classes=5):
    """Return n events of some classes over features of scales from 1e-3 to 1e3."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d))
    y = (z @ rng.normal(size=(d, classes)) + rng.normal(size=(n, classes))).argmax(axis=1)
    rows = (z * 10.0 ** rng.integers(-3, 4, d) + rng.normal(size=d) * 5).tolist()
    gone = (rng.random((n, d)) < missing).tolist()
    return [
        ({f"f{j}": v for j, v in enumerate(row) if not gone[i][j]}, f"class {y[i]}")
        for i, row in enumerate(rows)
    ]


def batch(events):
    """Return (x, y) pairs as a batch."""
    return EventBatch.from_events([Event(x=x, y=y) for x, y in events])


def rivers(model, events):
    """Return the probabilities of a River model, test then train."""
    out = []
    for x, y in events:
        out.append(dict(model.predict_proba_one(x)))
        model.learn_one(x, y)
    return out


def ours(learner, events):
    """Return the probabilities of a learner, in batches of 997."""
    out = []
    for i in range(0, len(events), 997):
        out += learner.predict_learn(batch(events[i : i + 997])).probas
    return out


def difference(expected, got):
    """Return the largest difference of two lists of probabilities, of the same classes."""
    assert [list(p) for p in expected] == [list(p) for p in got]
    return max(abs(p[label] - q[label]) for p, q in zip(expected, got, strict=True) for label in p)


STREAMS = {
    "segments": lambda: list(datasets.ImageSegments()),
    "synthetic": lambda: synthetic(100_000, missing=0.05),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_softmax_regression_with_scaling_is_rivers(stream, l2):
    """Probabilities, the order of the classes and weights equal River's to 1e-12."""
    events = STREAMS[stream]()
    model = preprocessing.StandardScaler() | linear_model.SoftmaxRegression(optim.SGD(0.02), l2=l2)
    learner = SoftmaxLearner(rate=0.02, l2=l2)
    assert difference(rivers(model, events), ours(learner, events)) <= 1e-12
    for c, (label, weights) in enumerate(model["SoftmaxRegression"].weights.items()):
        assert learner._classes[c] == label
        for name, weight in weights.items():
            own = learner._weights[0, learner._slots.names[name], c]
            assert own == pytest.approx(weight, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [({"optimizer": "adagrad"}, optim.AdaGrad(0.05)), ({"optimizer": "adam"}, optim.Adam(0.05))],
    ids=["adagrad", "adam"],
)
def test_other_optimizers_are_rivers(options, optimizer):
    """To 1e-9, classes that come late included: each has an optimizer of its own."""
    events = synthetic(3_000)
    late = [(x, y) for x, y in events[:500] if y != "class 3"] + events[500:]
    model = preprocessing.StandardScaler() | linear_model.SoftmaxRegression(optimizer)
    learner = SoftmaxLearner(rate=0.05, **options)
    assert difference(rivers(model, late), ours(learner, late)) <= 1e-9


class Reference:
    """Softmax regression in plain Python: FTRL-Proximal, or Adam of Kingma and Ba (2015).

    FTRL is that of McMahan et al. (2013), algorithm 1, for each class; Adam skips features that
    are not there.
    """

    def __init__(self, step):
        self.step = step
        self.classes = []
        self.cells = {}  # (feature, class) -> a list of the step's, the weight first
        self.steps = {}

    def scores(self, x):
        out = [
            sum(self.cells.get((i, c), [0.0])[0] * v for i, v in x.items()) for c in self.classes
        ]
        exps = [math.exp(s - max(out)) for s in out]
        return {c: e / sum(exps) for c, e in zip(self.classes, exps, strict=True)}

    def learn(self, x, y):
        p = self.scores(x)
        if y not in self.classes:
            self.classes.append(y)
        for c in self.classes:
            self.steps[c] = self.steps.get(c, 0) + 1
            slope = min(max(p.get(c, 0.0), 1e-15), 1 - 1e-15) - (c == y)
            for i, v in x.items():
                cell = self.cells.setdefault((i, c), [0.0, 0.0, 0.0])
                self.step(cell, slope * v, self.steps[c])


def ftrl(cell, g, _, *, alpha=0.1, beta=1.0, l1=1.0, l2=0.5):
    """One step of FTRL-Proximal."""
    w, z, n = cell
    z += g - (math.sqrt(n + g * g) - math.sqrt(n)) / alpha * w
    n += g * g
    w = 0.0
    if abs(z) > l1:
        w = -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / alpha + l2)
    cell[:] = w, z, n


def adam(cell, g, t, *, alpha=0.1):
    """One step of Adam, with the default constants."""
    w, m, v = cell
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    rate = alpha * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    cell[:] = w - rate * m / (math.sqrt(v) + 1e-8), m, v


@pytest.mark.parametrize(
    ("step", "options"),
    [(ftrl, {"optimizer": "ftrl", "l1": 1.0, "l2": 0.5}), (adam, {"optimizer": "adam"})],
    ids=["ftrl", "adam"],
)
def test_optimizers_are_those_of_the_papers(step, options):
    """Sparse input included; L1 makes weights exactly zero."""
    rng = random.Random(4)
    events = []
    for _ in range(2_000):
        x = {f"n{i}": rng.gauss(0, 1) for i in rng.sample(range(20), 6)}
        noisy = [x.get(f"n{c}", 0) + rng.gauss(0, 0.3) for c in range(4)]
        events.append((x, noisy.index(max(noisy))))
    reference, expected = Reference(step), []
    for x, y in events:
        expected.append(reference.scores(x))
        reference.learn(x, y)
    learner = SoftmaxLearner(rate=0.1, scale=False, **options)
    assert difference(expected, ours(learner, events)) <= 1e-9
    told = learner.explain()
    for c in range(4):
        assert max(told[c].weights, key=told[c].weights.get) == f"n{c}"
    if step is ftrl:
        assert any(w == 0.0 for w in told[0].weights.values())


def test_explain_speaks_of_the_features_as_they_came():
    """Scores by its weights and intercepts are those of the standardized features."""
    events = synthetic(2_000)
    learner = SoftmaxLearner()
    learner.learn(batch(events))
    told = learner.explain()
    x = events[7][0]
    scores = {
        label: e.intercept + sum(w * x[name] for name, w in e.weights.items())
        for label, e in told.items()
    }
    (proba,) = learner.predict(batch([(x, None)])).probas
    total = sum(math.exp(s) for s in scores.values())
    for label, s in scores.items():
        assert math.exp(s) / total == pytest.approx(proba[label], rel=1e-9)


def things(n, seed=6):
    """Return events of two numbers and two categories, with labels of all types."""
    rng = random.Random(seed)
    labels = ["a", 2, False]
    events = []
    for _ in range(n):
        x = {"a": rng.gauss(0, 1), "c": rng.choice("rgb"), "on": rng.random() < 0.5,
             "city": f"city{rng.randrange(500)}"}  # fmt: skip
        events.append((x, labels["rgb".index(x["c"])] if rng.random() < 0.9 else "a"))
    return events


OPTIONS = [
    {},
    {"l2": 1e-3, "scale": False},
    {"l1": 1e-3},
    {"optimizer": "adagrad"},
    {"optimizer": "adam"},
    {"optimizer": "ftrl", "rate": 0.1, "l1": 0.1, "l2": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_contract_of_learners_is_kept(options):
    """`learners.checks`: cuts, prediction, state, memory, aliasing; categories too."""
    passed = list(check_learner(lambda: SoftmaxLearner(bits=8, **options), things(1_500)))
    assert len(passed) == 6


def test_labels_keep_their_types_and_categories_are_learned():
    """Text, number and boolean stay what they are; the metrics take what is predicted."""
    learner = SoftmaxLearner(rate=0.1)
    events = things(3_000)
    learner.learn(batch(events[:2_000]))
    rest = batch(events[2_000:])
    predictions = learner.predict_learn(rest)
    assert predictions.table.classes == tuple(learner._classes)
    assert {type(label) for label in predictions.table.classes} == {str, int, bool}
    assert {type(value) for value in predictions.values} == {str, int, bool}
    metrics = Prequential("multiclass")
    metrics.update(rest.labels, predictions.values, predictions.table)
    assert metrics.report()["accuracy"] > 0.85
    told = learner.explain({"c": "rgb"})
    assert told[2].weights["c=g"] > 0.5
    assert told[2].weights["c=r"] < 0
    assert told[2].weights.keys() == {"a", "on", "c=r", "c=g", "c=b"}


def test_before_the_first_label_nothing_is_predicted():
    """And an event of weight 0 makes no class known."""
    learner = SoftmaxLearner()
    none = learner.predict_learn(batch([({"a": 1.0}, None), ({"a": 2.0}, None)]))
    assert (none.values, none.probas) == ([None, None], [{}, {}])
    before = learner.state()
    learner.predict_learn(EventBatch([{"a": 1.0}], ["x"], weights=[0.0]))
    assert learner.state() == before
    some = learner.predict_learn(batch([({"a": 1.0}, "x"), ({"a": 2.0}, "y"), ({"a": 2.0}, None)]))
    assert [list(p) for p in some.probas] == [[], ["x"], ["x", "y"]]
    assert some.values[:2] == [None, "x"]


def test_a_sample_weight_scales_the_gradient():
    """Unscaled, with SGD: twice the weight is twice the rate."""
    events = synthetic(500)
    one, two = SoftmaxLearner(rate=1e-4, scale=False), SoftmaxLearner(rate=2e-4, scale=False)
    heavy = EventBatch([x for x, _ in events], [y for _, y in events], weights=[2.0] * 500)
    assert one.predict_learn(heavy).probas == two.predict_learn(batch(events)).probas


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_columns_are_as_dicts(options):
    """However features come, and however they are cut into batches, every bit is the same."""
    events = synthetic(800, missing=0.1)
    rng = random.Random(3)
    cities = [rng.choice(["Bern", "Rom", "Ulm", None]) for _ in events]
    pairs = zip(events, cities, strict=True)
    xs = [x if city is None else x | {"city": city} for (x, _), city in pairs]
    ys = [y if rng.random() < 0.9 else None for _, y in events]
    weights = [rng.choice([0.0, 0.5, 1.0]) for _ in events]
    names = [f"f{j}" for j in range(10)]
    array = np.array([[x.get(name, math.nan) for name in names] for x, _ in events])
    words = ["Ulm", "Bern", "Rom"]
    codes = np.array([-1 if city is None else words.index(city) for city in cities])
    whole = EventBatch(xs, ys, weights=weights)
    columns = EventBatch(
        None, ys, weights=weights, array=array, names=names,
        texts={"city": Categories(codes, words)},
    )  # fmt: skip
    learners = [SoftmaxLearner(bits=8, **options) for _ in range(3)]
    for learner in learners:  # the same order of names
        learner.predict_learn(batch([(dict.fromkeys(names, 1.0), None)]))
    expected = learners[0].predict_learn(whole)
    for learner, stream, size in ((learners[1], whole, 1), (learners[2], columns, 70)):
        probas, values = [], []
        for i in range(0, len(events), size):
            part = learner.predict_learn(stream[i : i + size])
            probas += part.probas
            values += part.values
        assert probas == expected.probas
        assert values == expected.values
        assert learner.state() == learners[0].state()


@settings(max_examples=50)
@given(st.data())
def test_no_cut_changes_anything(data):
    """Any way of cutting a stream in which features and classes come and go: the same state."""
    value = st.one_of(st.floats(-100, 100), st.booleans(), st.sampled_from("abc"))
    row = st.dictionaries(st.sampled_from("uvwxyz"), value, max_size=6)
    label = st.none() | st.sampled_from(["p", "q", 3, True, 4.5])
    events = data.draw(st.lists(st.tuples(row, label), max_size=30))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)))))
    whole, cut = SoftmaxLearner(bits=6), SoftmaxLearner(bits=6)
    expected = whole.predict_learn(batch(events))
    values, probas = [], []
    for i, j in zip([0, *cuts], [*cuts, len(events)], strict=True):
        part = cut.predict_learn(batch(events[i:j]))
        values += part.values
        probas += part.probas
        cut = load_learner("softmax", cut.state(), task="multiclass")
    assert values == expected.values
    assert probas == expected.probas
    assert cut.state() == whole.state()


def test_more_classes_than_a_vector_has_lanes():
    """As River, with 40 classes, sparse features and the default number of them unbounded."""
    rng = random.Random(9)
    events = []
    for _ in range(2_000):
        y = rng.randrange(40)
        events.append(({f"n{y}": 1.0, f"n{rng.randrange(60)}": rng.random()}, y))
    model = linear_model.SoftmaxRegression(optim.SGD(0.1))
    learner = SoftmaxLearner(rate=0.1, scale=False)
    assert difference(rivers(model, events), ours(learner, events)) <= 1e-12
    again = load_learner("softmax", learner.state(), task="multiclass")
    assert ours(again, events) == ours(learner, events)
    assert again.state() == learner.state()


def test_a_million_categories_take_bounded_memory():
    """The table has no more slots than there are; a slot takes memory when it is first used."""
    learner = SoftmaxLearner(bits=10)
    labels = ["a", "b", "c"] * 33_334
    for part in range(10):
        words = [f"user-{part}-{i}" for i in range(100_000)]
        texts = {"id": Categories(np.arange(100_000), words)}
        learner.learn(
            EventBatch(None, labels[:100_000], array=np.empty((100_000, 0)), names=[], texts=texts)
        )
    assert learner._table.shape == (3, 1024, 8)
    assert len(learner.state()) < 150_000
    few = SoftmaxLearner(bits=24)
    few.learn(batch([({"c": "x"}, "a"), ({"c": "y"}, "b")]))
    assert few._table.size <= 3 * 8 * 8


def test_predicting_adds_nothing():
    """Names and categories never learned are missing values to `predict`, and stay unknown."""
    learner = SoftmaxLearner()
    events = [({"a": 1.0, "c": "blue"}, "x"), ({"a": -1.0}, "y")]
    learner.predict_learn(batch(events))
    before = learner.state()
    known = learner.predict(batch([({"a": 2.0}, None)])).probas
    more = learner.predict(batch([({"a": 2.0, "new": 5.0, "c": "red"}, "z")])).probas
    assert known == more
    assert learner.state() == before


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_overflows_is_found_at_the_same_event_in_columns(options):
    """As in dicts with a missing value, which go another way; and one by one."""
    rng = random.Random(8)
    xs = [{"a": rng.gauss(0, 1) * 10.0**i, "b": rng.gauss(0, 1)} for i in range(309)]
    ys = [rng.choice("xyz") for _ in xs]
    columns = EventBatch(None, ys, array=np.array([list(x.values()) for x in xs]), names=["a", "b"])
    del xs[308]["b"]
    dicts, rows = EventBatch(xs, ys), []
    one_by_one = [dicts[i : i + 1] for i in range(309)]
    for way in ([dicts], [columns], [columns[:50], columns[50:]], one_by_one):
        learner, done = SoftmaxLearner(**options), 0
        try:
            for part in way:
                learner.predict_learn(part)
                done += len(part)
        except LearnerError as error:
            done += error.row
        rows.append(done)
    assert 50 < rows[0] < 309
    assert rows == rows[:1] * 4


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ({"a": 10**400}, "p", "too large"),
        ({"a": [1]}, "p", "must be real number"),
        ({"c": "s", "b": 1j}, "p", "must be real number"),
        ({"a": 1.0}, math.nan, "a label must not be nan"),
        ({"a": 1.0}, [1], "unhashable"),
        ({"a": 1.0}, b"p", "a label is a text, a number or a boolean, got b'p'"),
        ({"a": 1.0}, "r", "class 'r' is one too many: the option classes allows 2"),
        ({"n": 1.0}, "p", "'n' is one name too many"),
    ],
)
def test_what_cannot_be_learned_is_refused_at_its_event(x, y, message):
    """As the error that a shard knows, with the row."""
    learner = SoftmaxLearner(classes=2, features=2)
    xs = [{"a": 1.0}, {"b": 1.0}, {"a": 2.0}, x, {"later": []}]
    with pytest.raises(LearnerError, match=message) as raised:
        learner.predict_learn(EventBatch(xs, ["p", "q", None, y, "s"]))
    assert raised.value.row == 3


@pytest.mark.parametrize(
    "change",
    [
        {"names": [f"n{i}" for i in range(1_000_000)]},
        {"names": 5},
        {"names": ["a", "a"]},
        {"names": ["a", 1]},
        {"options": {"bits": 20, "classes": 1}},
        {"options": {"rate": "fast"}},
        {"options": {"classes": 2}},
        {"classes": ["x", "x", "y"]},
        {"classes": [1, True, "x"]},
        {"classes": ["x", "y"]},
        {"classes": ["x", "y", math.nan]},  # not equal to itself
        {"classes": ["x", "y", None]},
        {"classes": ["x", "y", ("z",)]},
        {"classes": ("x", "y", "z")},
        {"scaler": np.zeros((3, 0))},
        {"weights": np.zeros((3, 1, 3), np.float32)},
        {"weights": np.full((3, 1, 3), math.inf)},
        {"weights": np.full((3, 1, 3), math.nan)},
        {"weights": np.zeros((3, 1, 4))},
        {"hashed": 1},
        {"hashed": False},
        {"used": np.array([10**6])},
        {"used": np.array([-1])},
        {"used": np.array([0.0])},
        {"table": np.zeros((3, 7, 3))},
        {"totals": np.zeros((2, 2))},
        {"totals": [[1.0] * 3] * 2},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_a_crafted_state_is_refused(change):
    """The kernels do not check what they index, so the state is checked."""
    learner = SoftmaxLearner(bits=8)
    learner.learn(batch([({"a": 1.0, "c": "red"}, y) for y in "xyz"]))
    state = encoding.decode(learner.state())
    state |= (
        change if "options" not in change else {"options": state["options"] | change["options"]}
    )
    with pytest.raises(ValueError, match=r"learner state|rate must|classes must"):
        load_learner("softmax", encoding.encode(state), task="multiclass")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "binary"}, "task must be multiclass, found 'binary'"),
        ({"optimizer": "sdg"}, "optimizer must be one of sgd, adagrad, adam, ftrl, got 'sdg'"),
        ({"rate": 0}, "rate must be from 1e-12 to 1000000.0, got 0"),
        ({"classes": 1}, "classes must be from 2 to 1000000, got 1"),
        ({"classes": 2.5}, "classes must be a whole number, got 2.5"),
        ({"bits": 40}, "bits must be from 1 to 24, got 40"),
        ({"scale": "yes"}, "scale must be true or false, got 'yes'"),
        ({"optimizer": "adam", "l1": 0.1}, "l1 is for sgd and ftrl, not for adam"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(options, message):
    """What was found, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        SoftmaxLearner(**options)


def test_a_state_of_another_schema_is_refused(monkeypatch):
    """Instead of being read as what it is not."""
    state = SoftmaxLearner().state()
    monkeypatch.setattr("midstream.engine.learners.softmax._SCHEMA", 2)
    with pytest.raises(ValueError, match="learner state has schema 1, expected 2"):
        load_learner("softmax", state, task="multiclass")


def test_it_is_built_in_by_name():
    """With its options; the one for two classes says whom to ask."""
    assert make_named("softmax", "multiclass", {"rate": 0.1}).definition()["rate"] == 0.1
    with pytest.raises(ValueError, match="found 'multiclass'; for multiclass there is softmax"):
        type(make_named("logistic", "binary", {}))("multiclass")


def test_a_name_too_many_after_an_event_of_weight_zero_is_named():
    """Also where a later event would have brought the class of the one that is not learned."""
    learner = SoftmaxLearner(features=1)
    given = [
        Event(x={"a": 1.0}, y="one"), Event(x={"a": 2.0}, y="two", weight=0.0),
        Event(x={"b": 1.0}, y="three"), Event(x={"a": 1.0}, y="two"),
    ]  # fmt: skip
    with pytest.raises(LearnerError, match="feature 'b' is one name too many") as caught:
        learner.predict_learn(EventBatch.from_events(given))
    assert caught.value.row == 2


def test_class_weights_are_rivers_sample_weights():
    """Probabilities equal River's, with its loss times a factor by class, to 1e-12."""
    events = synthetic(2_000)
    factors = {"class 0": 4.0, "class 3": 0.25}

    class Weighted(optim.losses.CrossEntropy):
        def gradient(self, y_true, y_pred):
            factor = factors.get(y_true, 1.0)
            return {c: factor * g for c, g in super().gradient(y_true, y_pred).items()}

    learner = SoftmaxLearner(class_weights=factors)
    regression = linear_model.SoftmaxRegression(optim.SGD(0.01), loss=Weighted())
    model = preprocessing.StandardScaler() | regression
    assert difference(rivers(model, events), ours(learner, events)) <= 1e-12
    again = load_learner("softmax", learner.state(), task="multiclass")
    assert difference(ours(again, events), ours(learner, events)) == 0.0
    assert learner.definition()["class_weights"] == factors


def test_class_weights_of_numbers_are_by_their_names():
    """As probabilities have them on the wire: 1 is "1", True is "true"."""
    stream = [({"a": 1.0, "b": float(i % 3)}, i % 2) for i in range(50)]
    named = ours(SoftmaxLearner(class_weights={"1": 3.0}), stream)
    assert difference(named, ours(SoftmaxLearner(class_weights={1: 3.0}), stream)) == 0.0
    plain = SoftmaxLearner()
    assert difference(ours(plain, stream), named) > 0.01
    truths = [(x, bool(y)) for x, y in stream]
    of_truths = SoftmaxLearner(class_weights={"true": 3.0})
    assert [list(p.values()) for p in ours(of_truths, truths)] == [
        list(p.values()) for p in ours(SoftmaxLearner(class_weights={True: 3.0}), truths)
    ]
    assert "class_weights" not in plain.definition()


def test_the_least_weight_times_the_least_factor_is_learned():
    """A product too small for a number is not the weight 0, with which nothing becomes known."""
    learner = SoftmaxLearner(class_weights={"rare": 1e-6})
    event = Event(x={"a": 1.0}, y="rare", weight=5e-324)
    learner.learn(EventBatch.from_events([event]))
    assert learner.predict(EventBatch.from_events([event])).values == ["rare"]
