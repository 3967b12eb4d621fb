"""The compiled linear learners: against River, against a plain reference, and by the contract."""

import math
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import datasets, linear_model, optim, preprocessing

from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.events.columns import Categories
from midstream.engine.events.event import Event
from midstream.engine.learners.checks import check_learner
from midstream.engine.learners.learner import LearnerError, load_learner
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.learners.slots import Slots
from midstream.engine.state import encoding
from midstream.engine.training.trainer import Trainer


def synthetic(n, *, missing=0.0, seed=1, d=10, regression=False):
    """Return n events over features of scales from 1e-3 to 1e3."""
    rng = np.random.default_rng(seed)
    scales, shifts = 10.0 ** rng.integers(-3, 4, d), rng.normal(size=d) * 5
    w = rng.normal(size=d)
    z = rng.normal(size=(n, d))
    y = z @ w + rng.normal(size=n)
    rows = (z * scales + shifts).tolist()
    gone = (rng.random((n, d)) < missing).tolist()
    return [
        ({f"f{j}": v for j, v in enumerate(row) if not gone[i][j]}, s if regression else s > 0)
        for i, (row, s) in enumerate(zip(rows, y.tolist(), strict=True))
    ]


def batch(events):
    """Return (x, y) pairs as a batch."""
    return EventBatch.from_events([Event(x=x, y=y) for x, y in events])


def rivers(model, events):
    """Return what a River model predicts, test then train."""
    out = []
    for x, y in events:
        if isinstance(y, bool):
            out.append(model.predict_proba_one(x)[True])
        else:
            out.append(model.predict_one(x))
        model.learn_one(x, y)
    return np.array(out, float)


def ours(learner, events):
    """Return what a learner predicts, in batches of 997."""
    out = []
    for i in range(0, len(events), 997):
        predictions = learner.predict_learn(batch(events[i : i + 997]))
        table = predictions.table
        out += predictions.values if table is None else table.values[:, 1].tolist()
    return np.array(out, float)


def real(data):
    """Return a River data set, with its labels as booleans."""
    return [(x, bool(y)) for x, y in data]


STREAMS = {
    "phishing": lambda: real(datasets.Phishing()),
    "bananas": lambda: real(datasets.Bananas()),
    "synthetic": lambda: synthetic(100_000),
    "missing": lambda: synthetic(20_000, missing=0.1),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_logistic_regression_with_scaling_is_rivers(stream, l2):
    """Predictions, weights, mean and variance equal River's to 1e-12."""
    events = STREAMS[stream]()
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.02), l2=l2)
    learner = LinearLearner("binary", rate=0.02, l2=l2)
    assert np.abs(rivers(model, events) - ours(learner, events)).max() <= 1e-12
    last = model["LogisticRegression"]
    for name, weight in last.weights.items():
        assert learner._weights[0, learner._slots.names[name]] == pytest.approx(weight, rel=1e-9)
    assert learner._totals["intercept"][0] == pytest.approx(last.intercept, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        ({"optimizer": "sgd", "l1": 1e-3}, optim.SGD(0.05)),
        ({"optimizer": "adagrad"}, optim.AdaGrad(0.05)),
        ({"optimizer": "adagrad", "l2": 1e-3}, optim.AdaGrad(0.05)),
        ({"optimizer": "adam"}, optim.Adam(0.05)),
    ],
    ids=str,
)
@pytest.mark.parametrize("regression", [False, True])
def test_other_optimizers_and_penalties_are_rivers(options, optimizer, regression):
    """AdaGrad, Adam, the cumulative L1 penalty: River's to 1e-9, where all features are there."""
    events = synthetic(5_000, regression=regression)
    kind = linear_model.LinearRegression if regression else linear_model.LogisticRegression
    penalties = {k: v for k, v in options.items() if k in ("l1", "l2")}
    model = preprocessing.StandardScaler() | kind(optimizer.clone(), **penalties)
    learner = LinearLearner("regression" if regression else "binary", rate=0.05, **options)
    assert np.abs(rivers(model, events) - ours(learner, events)).max() <= 1e-9


def test_linear_regression_without_scaling_is_rivers():
    """Raw features, squared loss, clipped gradients."""
    rng = random.Random(2)
    events = [
        ({"a": (a := rng.gauss(0, 1)), "b": (b := rng.gauss(0, 1))}, 3 * a - b + 1)
        for _ in range(5_000)
    ]
    model = linear_model.LinearRegression(optim.SGD(0.01), clip_gradient=2.0)
    learner = LinearLearner("regression", scale=False, clip=2.0)
    assert np.abs(rivers(model, events) - ours(learner, events)).max() <= 1e-12
    told = learner.explain()
    assert told.weights["a"] == pytest.approx(3, abs=0.05)
    assert told.intercept == pytest.approx(1, abs=0.05)


def ftrl(events, *, alpha, beta, l1, l2, intercept_rate=0.01):
    """FTRL-Proximal as McMahan et al. (2013) write it, algorithm 1, in plain Python."""
    z, n, intercept, out = {}, {}, 0.0, []
    for x, y in events:
        w = {}
        for i in x:
            if abs(z.get(i, 0.0)) <= l1:
                w[i] = 0.0
            else:
                sign = math.copysign(1.0, z[i])
                w[i] = -(z[i] - sign * l1) / ((beta + math.sqrt(n[i])) / alpha + l2)
        p = 1 / (1 + math.exp(-(sum(w[i] * v for i, v in x.items()) + intercept)))
        out.append(p)
        for i, v in x.items():
            g = (p - y) * v
            sigma = (math.sqrt(n.get(i, 0.0) + g * g) - math.sqrt(n.get(i, 0.0))) / alpha
            z[i] = z.get(i, 0.0) + g - sigma * w[i]
            n[i] = n.get(i, 0.0) + g * g
        intercept -= intercept_rate * (p - y)
    return np.array(out)


def test_ftrl_is_that_of_the_paper():
    """Against a plain reference, sparse input included; L1 makes weights exactly zero."""
    rng = random.Random(4)
    events = []
    for _ in range(5_000):
        x = {f"n{i}": rng.gauss(0, 1) for i in rng.sample(range(40), 6)}
        events.append((x, x.get("n1", 0) - x.get("n2", 0) + rng.gauss(0, 0.5) > 0))
    settings = {"alpha": 0.1, "beta": 1.0, "l1": 8.0, "l2": 0.5}
    learner = LinearLearner(optimizer="ftrl", rate=0.1, beta=1.0, l1=8.0, l2=0.5, scale=False)
    assert np.abs(ftrl(events, **settings) - ours(learner, events)).max() <= 1e-12
    weights = learner.explain().weights
    assert weights["n1"] > 0.5
    assert weights["n2"] < -0.5
    assert sum(w == 0.0 for w in weights.values()) >= 15


def test_sample_weights_are_rivers():
    """A weight scales the gradient; an event of weight 0 teaches nothing, the scaler included."""
    rng = random.Random(5)
    events = synthetic(2_000)
    weights = [rng.choice([0.5, 1.0, 2.0]) for _ in events]
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    expected = []
    for (x, y), w in zip(events, weights, strict=True):
        expected.append(model.predict_proba_one(x)[True])
        model.learn_one(x, y, w=w)
    learner = LinearLearner()
    b = batch(events)
    b.weights = weights
    assert np.abs(learner.predict_learn(b).table.values[:, 1] - expected).max() <= 1e-12
    before = learner.state()
    b.weights = [0.0] * len(events)
    learner.predict_learn(b)
    assert learner.state() == before


def colours(n, seed=6):
    """Return events of two numbers and two categories."""
    rng = random.Random(seed)
    events = []
    for _ in range(n):
        x = {"a": rng.gauss(0, 1), "c": rng.choice("rgb"), "on": rng.random() < 0.5,
             "city": f"city{rng.randrange(500)}"}  # fmt: skip
        events.append((x, (x["a"] > 0) != (x["c"] == "r")))
    return events


def test_categories_are_signed_indicators():
    """As River on one indicator per category, with the sign of its hash, where none collide."""
    events = colours(3_000)
    learner = LinearLearner(bits=24, scale=False, rate=0.1)
    model = linear_model.LogisticRegression(optim.SGD(0.1))
    plain = []
    for x, y in events:
        row = {}
        for name, value in x.items():
            if isinstance(value, str):
                row[f"{name}={value}"] = learner._slots.category(name, value)[1]
            else:
                row[name] = value
        plain.append((row, y))
    slots = {
        learner._slots.category(n, v)[0] for x, _ in events for n, v in x.items() if type(v) is str
    }
    assert len(slots) == 503
    assert np.abs(rivers(model, plain) - ours(learner, events)).max() <= 1e-12
    told = learner.explain({"c": "rgb"}).weights
    for value in "rgb":
        sign = learner._slots.category("c", value)[1]
        assert told[f"c={value}"] == pytest.approx(model.weights[f"c={value}"] * sign, rel=1e-9)


def test_a_million_categories_take_bounded_memory():
    """The state has no more than the table has."""
    learner = LinearLearner(bits=10)
    for part in range(10):
        xs = [{"id": f"user-{part}-{i}"} for i in range(20_000)]
        learner.predict_learn(EventBatch(xs, [i % 2 == 0 for i in range(20_000)]))
    assert learner._table.shape == (3, 1024)
    assert len(learner.state()) < 60_000


KINDS = [
    {},
    {"l2": 1e-3},
    {"l1": 1e-3},
    {"scale": False, "rate": 1e-4, "clip": 1.0},
    {"optimizer": "adagrad"},
    {"optimizer": "adam", "l2": 1e-3},
    {"optimizer": "ftrl", "rate": 0.1, "l1": 1.0, "l2": 1e-3},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_columns_are_as_dicts(options, task):
    """However features come, and however they are cut into batches, every bit is the same."""
    events = synthetic(1_500, missing=0.1, regression=task == "regression")
    rng = random.Random(3)
    cities = [rng.choice(["Bern", "Rom", "Ulm", None]) for _ in events]
    xs = [
        x if city is None else x | {"city": city}
        for (x, _), city in zip(events, cities, strict=True)
    ]
    ys = [y if rng.random() < 0.9 else None for _, y in events]
    weights = [rng.choice([0.0, 0.5, 1.0]) for _ in events]
    names = [f"f{j}" for j in range(10)]
    array = np.array([[x.get(name, math.nan) for name in names] for x, _ in events])
    words = ["Ulm", "Bern"]
    codes = np.array([-1 if c is None else ["Ulm", "Bern", "Rom"].index(c) for c in cities])
    whole = EventBatch(xs, ys, weights=weights)
    targets = Targets(np.array([math.nan if y is None else float(y) for y in ys]), task == "binary")
    columns = EventBatch(
        None, targets, weights=np.array(weights), array=np.asfortranarray(array), names=names,
        texts={"city": cities},
    )  # fmt: skip
    learners = [LinearLearner(task, bits=8, **options) for _ in range(4)]
    one, by_one, many, coded = learners
    for learner in learners:  # the same order of names
        learner.predict_learn(batch([(dict.fromkeys(names, 1.0), None)]))
    expected = one.predict_learn(whole)
    got = []
    for i in range(len(events)):
        got += by_one.predict_learn(whole[i : i + 1]).values
    assert got == expected.values
    got = []
    for i in range(0, len(events), 70):
        got += many.predict_learn(columns[i : i + 70]).values
    assert got == expected.values
    coded.predict_learn(
        EventBatch(
            None, targets, weights=weights, array=array, names=names,
            texts={"city": Categories(codes, [*words, "Rom"])},
        )
    )  # fmt: skip
    for learner in (by_one, many, coded):
        assert learner.state() == one.state()


def test_words_that_come_later_are_known_when_they_come():
    """A list of words gets longer, and what was made of the words before is kept."""
    words = ["a", "b"]
    learner, plain = LinearLearner(bits=8), LinearLearner(bits=8)
    for code in (0, 1, 2, -1, 3):
        if code >= len(words):
            words.append("cd"[code - 2])
        texts = {"t": Categories(np.array([code]), words)}
        learner.predict_learn(
            EventBatch(None, [True], array=np.ones((1, 1)), names=["n"], texts=texts)
        )
        x = {"n": 1.0} if code < 0 else {"n": 1.0, "t": words[code]}
        plain.predict_learn(EventBatch([x], [True]))
    assert learner.state() == plain.state()


@pytest.mark.parametrize("features", [1, 8, 9, 30])
def test_words_are_hashed_once_whatever_the_number_of_features(features, monkeypatch):
    """With many categorical features too, a batch of known words hashes none of them again."""
    hashed = []
    original = Slots._hash

    def counted(self, name, value):
        hashed.append(name)
        return original(self, name, value)

    monkeypatch.setattr(Slots, "_hash", counted)
    learner = LinearLearner(bits=8)
    lists = {f"t{j}": [str(i) for i in range(100)] for j in range(features)}
    for _ in range(20):
        texts = {name: Categories(np.arange(5), words) for name, words in lists.items()}
        learner.learn(EventBatch(None, [True] * 5, array=np.ones((5, 1)), names=["n"], texts=texts))
    assert len(hashed) == 100 * features
    for _ in range(50):  # lists that start over are forgotten in time
        texts = {name: Categories(np.arange(5), list(words)) for name, words in lists.items()}
        learner.learn(EventBatch(None, [True] * 5, array=np.ones((5, 1)), names=["n"], texts=texts))
    assert len(learner._slots._words) <= 3 * max(features, 4)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_smallest_tables_are_restored(bits):
    """A state taken after the first category gives the same learner again."""
    learner = LinearLearner(bits=bits)
    learner.learn(EventBatch([{"city": f"c{i}"} for i in range(20)], [True, False] * 10))
    state = learner.state()
    assert LinearLearner.from_state(state, task="binary").state() == state


def test_columns_of_one_name_are_as_dicts():
    """Of two columns with the same name the last counts, as in a dict; frozen arrays will do."""
    array = np.array([[1.0, 2.0], [3.0, -4.0]])
    array.flags.writeable = False
    one, two = LinearLearner(), LinearLearner()
    one.predict_learn(EventBatch(None, [True, False], array=array, names=["a", "a"]))
    two.predict_learn(EventBatch([{"a": 2.0}, {"a": -4.0}], [True, False]))
    assert one.state() == two.state()
    one.predict_learn(EventBatch(None, [True, False], array=array[:, 1:], names=["a"]))
    two.predict_learn(EventBatch([{"a": 2.0}, {"a": -4.0}], [True, False]))
    assert one.state() == two.state()


def test_columns_never_learned_are_missing_values_to_predict():
    """As in dicts; nothing is added."""
    learner = LinearLearner(scale=False)
    learner.predict_learn(batch([({"a": 1.0}, True), ({"b": -1.0}, False)]))
    before = learner.state()
    array = np.array([[9.0, 2.0, math.inf, 1.0]])
    p = learner.predict(
        EventBatch(None, [None], array=array, names=["x", "b", "y", "a"], texts={"c": ["red"]})
    )
    q = learner.predict(batch([({"b": 2.0, "a": 1.0}, None)]))
    assert p.table.values.tolist() == q.table.values.tolist()
    assert learner.state() == before


def test_ever_new_names_are_not_quadratic():
    """Weights are copied when their number has doubled, not with every name."""
    learner, kept = LinearLearner(), []
    for i in range(3_000):
        learner.predict_learn(EventBatch([{f"n{i}": 1.0}], [True]))
        if not kept or kept[-1] is not learner._weights:
            kept.append(learner._weights)
    assert len(kept) <= 10, f"copied {len(kept)} times for 3000 names"
    assert encoding.decode(learner.state())["weights"].shape == (3, 3_000)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "ftrl"])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_the_contract_of_learners_is_kept(optimizer, task):
    """`learners.checks`: cuts, prediction, state, memory, aliasing; categories too."""
    events = colours(1_500)
    if task == "regression":
        events = [(x, x["a"] * 2 + (x["c"] == "r")) for x, _ in events]
    passed = list(check_learner(lambda: LinearLearner(task, optimizer=optimizer, bits=8), events))
    assert len(passed) == 6


@settings(max_examples=50)
@given(st.data())
def test_no_cut_changes_anything(data):
    """Any way of cutting a stream in which features come and go gives the same state."""
    value = st.one_of(st.floats(-100, 100), st.booleans(), st.sampled_from("abc"))
    row = st.dictionaries(st.sampled_from("uvwxyz"), value, max_size=6)
    events = data.draw(st.lists(st.tuples(row, st.none() | st.booleans()), max_size=30))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)))))
    whole, cut = LinearLearner(bits=6), LinearLearner(bits=6)
    expected = whole.predict_learn(batch(events)).values
    got = []
    for i, j in zip([0, *cuts], [*cuts, len(events)], strict=True):
        got += cut.predict_learn(batch(events[i:j])).values
    assert got == expected
    assert cut.state() == whole.state()
    again = load_learner("linear", cut.state(), task="binary")
    assert again.state() == whole.state()


def test_predicting_adds_nothing():
    """Names and categories never learned are missing values to `predict`, and stay unknown."""
    learner = LinearLearner()
    learner.predict_learn(batch([({"a": 1.0}, True), ({"a": -1.0}, False)]))
    before = learner.state()
    known = learner.predict(batch([({"a": 2.0}, None)])).table.values
    more = learner.predict(batch([({"a": 2.0, "new": 5.0, "c": "red"}, None)])).table.values
    assert known.tolist() == more.tolist()
    assert learner.state() == before


def test_a_weight_that_would_be_infinite_stops_the_learner_at_its_event():
    """A rate too high diverges: the event is named, and no such weight was kept."""
    rng = random.Random(8)
    events = [
        ({"a": rng.gauss(0, 1) * 1e3, "b": rng.gauss(0, 1)}, rng.gauss(0, 1)) for _ in range(5_000)
    ]
    learner = LinearLearner("regression", rate=50.0, clip=1e300, scale=False)
    with pytest.raises(
        LearnerError, match="a weight or a variance would become infinite"
    ) as raised:
        learner.predict_learn(batch(events))
    assert 0 < raised.value.row < 5_000
    assert np.isfinite(learner._weights).all()
    again = LinearLearner("regression", rate=50.0, clip=1e300, scale=False)
    again.predict_learn(batch(events[: raised.value.row]))  # all before it is fine


@pytest.mark.parametrize(
    "options", [{}, {"scale": False, "optimizer": "adagrad"}, {"scale": False, "optimizer": "adam"}]
)
def test_a_value_that_overflows_is_refused_at_its_event(options):
    """Not at the innocent ones after it: nothing infinite is kept."""
    events = [({"a": 1.0}, 1.0), ({"a": 2.0}, 0.0), ({"a": 1e200}, 1.0), ({"a": 1.0}, 0.0)]
    learner = LinearLearner("regression", **options)
    with pytest.raises(LearnerError, match="infinite or nan") as raised:
        learner.predict_learn(batch(events))
    assert raised.value.row == 2


@pytest.mark.parametrize("as_columns", [False, True])
def test_the_first_event_to_stop_at_is_the_one_named(as_columns):
    """Whatever is wrong with the later ones, and wherever the stream is cut."""
    xs = [{"a": 1.0}, {"a": 2.0}, {"a": 1e200}, {"a": 1.0}, {"a": 1.0}]
    ys = [1.0, 0.0, 1.0, 0.0, "1"]
    array = np.array([[x["a"]] for x in xs])
    whole = EventBatch(None, ys, array=array, names=["a"]) if as_columns else EventBatch(xs, ys)
    for cut in range(3):
        learner = LinearLearner("regression", features=1)
        learner.predict_learn(whole[:cut])
        with pytest.raises(LearnerError, match="infinite or nan") as raised:
            learner.predict_learn(whole[cut:])
        assert cut + raised.value.row == 2


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_what_overflows_is_found_at_the_same_event_in_columns(options, task):
    """As in dicts with a missing value, which go another way; and one by one."""
    rng = random.Random(8)
    xs = [{"a": rng.gauss(0, 1) * 10.0**i, "b": rng.gauss(0, 1)} for i in range(309)]
    ys = [rng.random() < 0.5 for _ in xs]
    columns = EventBatch(None, ys, array=np.array([list(x.values()) for x in xs]), names=["a", "b"])
    del xs[308]["b"]
    dicts, rows = EventBatch(xs, ys), []
    one_by_one = [dicts[i : i + 1] for i in range(309)]
    for way in ([dicts], [columns], [columns[:50], columns[50:]], one_by_one):
        learner, done = LinearLearner(task, **options), 0
        try:
            for part in way:
                learner.predict_learn(part)
                done += len(part)
        except LearnerError as error:
            done += error.row
        rows.append(done)
    assert rows[0] > 50
    assert rows == rows[:1] * 4


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ({"a": 10**400}, True, "too large"),
        ({"a": [1]}, True, "must be real number"),
        ({"a": b"1"}, True, "must be real number"),
        ({"c": "s", "b": 1j}, True, "must be real number"),
        ({"a": 1.0}, "1", "must be real number"),
        ({"a": 1.0}, 2, "a binary label is True, False, 1 or 0, got 2"),
    ],
)
def test_what_is_no_number_is_refused_at_its_event(x, y, message):
    """As the error that a shard knows, with the row."""
    learner = LinearLearner()
    with pytest.raises(LearnerError, match=message) as raised:
        learner.predict_learn(EventBatch([{"a": 1.0}, x], [False, y]))
    assert raised.value.row == 1


def test_kinds_of_strings_are_all_categories():
    """However they come together in batches."""
    xs, ys = [{"a": np.str_("3")}, {"a": "b"}], [True, False]
    one, two = LinearLearner(), LinearLearner()
    one.predict_learn(EventBatch(xs, ys))
    for x, y in zip(xs, ys, strict=True):
        two.predict_learn(EventBatch([x], [y]))
    assert one.state() == two.state()


@pytest.mark.parametrize(
    "change",
    [
        {"names": [f"n{i}" for i in range(1_000_000)]},
        {"names": 5},
        {"names": ["a", "a"]},
        {"names": ["a", 1]},
        {"options": {"bits": 20}},
        {"options": {"rate": "fast"}},
        {"scaler": np.zeros((3, 0))},
        {"weights": np.zeros((3, 1), np.float32)},
        {"hashed": 10**13},
        {"hashed": 0},
        {"used": np.array([10**6])},
        {"used": np.array([-1])},
        {"table": np.zeros((3, 7))},
        {"steps": "many"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_crafted_state_is_refused(change):
    """The kernels do not check what they index, so the state is checked."""
    learner = LinearLearner(bits=8)
    learner.predict_learn(batch([({"a": 1.0, "c": "red"}, True)]))
    state = encoding.decode(learner.state())
    state |= (
        change if "options" not in change else {"options": state["options"] | change["options"]}
    )
    with pytest.raises(ValueError, match=r"learner state|rate must"):
        load_learner("linear", encoding.encode(state), task="binary")


def test_one_name_too_many_is_named():
    """Names without bound would be memory without bound."""
    learner = LinearLearner(features=3)
    events = [({"a": 1.0, "b": 1.0}, True), ({"c": 1.0}, False), ({"a": 1.0, "user_17": 1.0}, True)]
    with pytest.raises(LearnerError, match="'user_17' is one name too many") as raised:
        learner.predict_learn(batch(events))
    assert raised.value.row == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "multiclass"}, "task must be binary or regression, found 'multiclass'"),
        ({"optimizer": "sdg"}, "optimizer must be one of sgd, adagrad, adam, ftrl, got 'sdg'"),
        ({"rate": 0}, "rate must be from 1e-12 to 1000000.0, got 0"),
        ({"rate": "fast"}, "rate must be a number, got 'fast'"),
        ({"rate": math.nan}, "rate must be from"),
        ({"bits": 40}, "bits must be from 1 to 24, got 40"),
        ({"bits": 8.5}, "bits must be a whole number, got 8.5"),
        ({"scale": "yes"}, "scale must be true or false, got 'yes'"),
        ({"optimizer": "adam", "l1": 0.1}, "l1 is for sgd and ftrl, not for adam"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(options, message):
    """What was found, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        LinearLearner(**options)


def test_a_state_of_another_schema_is_refused(monkeypatch):
    """Instead of being read as what it is not."""
    state = LinearLearner().state()
    monkeypatch.setattr("midstream.engine.learners.linear._SCHEMA", 2)
    with pytest.raises(ValueError, match="learner state has schema 1, expected 2"):
        load_learner("linear", state, task="binary")


def test_class_weights_are_rivers_sample_weights():
    """Probabilities equal River's, learned with such a `w`, to 1e-12; own weights come on top."""
    rng = random.Random(5)
    events = [
        ({"a": rng.gauss(0, 1), "b": rng.gauss(3, 5)}, rng.random() < 0.1, rng.choice([1.0, 2.5]))
        for _ in range(3_000)
    ]
    for own in (False, True):
        learner = LinearLearner(class_weights={True: 7.0, "false": 0.5})
        scaler, model = preprocessing.StandardScaler(), linear_model.LogisticRegression()
        given = [Event(x=x, y=y, weight=w if own else 1.0) for x, y, w in events]
        found = []
        for start in range(0, len(given), 700):
            part = EventBatch.from_events(given[start : start + 700])
            found += learner.predict_learn(part).probas
        for (x, y, w), p in zip(events, found, strict=True):
            assert p[True] == pytest.approx(
                model.predict_proba_one(scaler.transform_one(x))[True], abs=1e-12
            )
            scaler.learn_one(x)
            factor = (7.0 if y else 0.5) * (w if own else 1.0)
            model.learn_one(scaler.transform_one(x), y, w=factor)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_threshold_decides_what_is_predicted(threshold):
    """True above it, in what is predicted and in every metric; the probabilities stay."""
    rng = random.Random(3)
    events = [Event(x={"a": rng.gauss(0, 1)}, y=rng.random() < 0.3) for _ in range(2_000)]
    plain, other = Trainer(LinearLearner()), Trainer(LinearLearner(threshold=threshold))
    expected = plain.step(EventBatch.from_events(events)).predictions.probas
    predicted = other.step(EventBatch.from_events(events)).predictions
    assert [dict(p) for p in predicted.probas] == [dict(p) for p in expected]
    assert predicted.values == [p[True] > threshold for p in expected]
    right = sum(v == e.y for v, e in zip(predicted.values, events, strict=True))
    assert other.metrics["accuracy"] == right / 2_000
    assert other.metrics["log_loss"] == plain.metrics["log_loss"]
    again = Trainer.from_state(other.state())
    assert (
        again.predict(EventBatch.from_events(events)).values
        == other.predict(EventBatch.from_events(events)).values
    )
    assert again.digest() == other.digest()


def test_without_threshold_and_class_weights_nothing_is_other_than_it_was():
    """State and definition do not name them: those of older versions are read as they are."""
    for asked in ({}, {"threshold": 0.5, "class_weights": {}}, {"class_weights": None}):
        learner = LinearLearner(**asked)
        assert learner.state() == LinearLearner().state()
        assert not {"threshold", "class_weights"} & learner.definition().keys()
    told = LinearLearner(threshold=0.3, class_weights={1: 2, False: 3}).definition()
    assert told["threshold"] == 0.3
    assert told["class_weights"] == {"false": 3.0, "true": 2.0}


RANGE = "must be from 1e-06 to 1000000.0"
REFUSED = [
    ({"threshold": 1.5}, "threshold must be from 0.0 to 1.0, got 1.5"),
    ({"threshold": math.nan}, "threshold must be from 0.0 to 1.0, got nan"),
    ({"threshold": "high"}, "threshold must be a number, got 'high'"),
    ({"threshold": True}, "threshold must be a number, got True"),
    ({"class_weights": 3.0}, "class_weights must be a table from class to factor, got 3.0"),
    ({"class_weights": {"yes": 2.0}}, "class_weights must be of the classes false, true, got"),
    ({"class_weights": {"true": 0}}, f"class_weights.true {RANGE}, got 0"),
    ({"class_weights": {"true": "x"}}, "class_weights.true must be a number, got 'x'"),
    ({"class_weights": {True: 2.0, "1": 2.0}}, "class_weights has 'true' twice"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_a_threshold_or_class_weight_out_of_range_is_refused(options, message):
    """What is wrong is named, and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearLearner(**options)


def test_a_regression_has_neither_threshold_nor_class_weights():
    """They are for classes."""
    for options in ({"threshold": 0.4}, {"class_weights": {"true": 2.0}}):
        with pytest.raises(ValueError, match="is for task binary, not for regression"):
            LinearLearner("regression", **options)
