"""River's models as learners: their own decision, and the time that they are handed."""

import copy
import datetime as dt
import math
import random

import numpy as np
import pytest
import river
from deciders import NEEDS_TIME, Threshold
from river import (
    base,
    compose,
    evaluate,
    feature_extraction,
    linear_model,
    metrics,
    multiclass,
    naive_bayes,
    preprocessing,
    stats,
    utils,
)
from zoo import ZOO, events

from midstream import Trainer
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import (
    LearnerError,
    RiverLearner,
    load_learner,
)
from midstream.engine.state.changes import definition_changes
from midstream.engine.state.snapshot import unpack
from midstream.engine.training.rejecting import Careful

MODULES = [__name__, Threshold.__module__]
SLOW = ("SRP", "ARF", "Leveraging", "ADWINBoost", "AMF")
NAN_FIRST = ("SelectKBest",)  # its first prediction is no number, and has no label here


class Abstains(Threshold):
    """Says nothing (`nothing`), where it is not sure."""

    nothing = None

    def predict_one(self, x):
        proba = self.predict_proba_one(x)
        sure = proba and max(proba.values()) > 0.7
        return max(proba, key=proba.get) if sure else self.nothing


class SaysUnknown(Abstains):
    """Says a label of its own where it is not sure."""

    nothing = "?"


class Restless(base.Classifier):
    """Decides by a drawn number, and draws again when it is asked for probabilities."""

    def __init__(self, seed=1):
        self.seed = seed
        self.rng = random.Random(seed)

    def learn_one(self, x, y):
        pass

    def predict_one(self, x):
        return self.rng.random() < 0.5 if x else None

    def predict_proba_one(self, x):
        p = self.rng.random() if x else 0.0
        return {True: p, False: 1 - p}


class NotHere(Threshold):
    """Delegates probabilities to a model that has none."""

    def predict_one(self, x):
        return self.model.predict_one(x)


class Plain(linear_model.LogisticRegression):
    """A subclass that only decides otherwise: the smallest probability."""

    def predict_one(self, x):
        return not super().predict_one(x)


OWN = {
    "threshold": lambda: (
        preprocessing.StandardScaler() | Threshold(linear_model.LogisticRegression())
    ),
    "threshold of trees": lambda: Threshold(ZOO["HoeffdingTree"][1](), least=0.8),
    "abstains": lambda: (
        preprocessing.StandardScaler() | Abstains(linear_model.LogisticRegression())
    ),
    "says unknown": lambda: SaysUnknown(naive_bayes.GaussianNB()),
    "restless": Restless,
    "subclass": Plain,
    "no probabilities": lambda: NotHere(
        multiclass.OneVsOneClassifier(linear_model.LogisticRegression())
    ),
}


def rivers(make, data, metric):
    """Return what River's evaluation says, and every label that the model itself predicts."""
    score = evaluate.progressive_val_score(copy.deepcopy(data), make(), metric).get()
    model, said = make(), []
    for x, y in copy.deepcopy(data):
        said.append(model.predict_one(x))
        model.learn_one(x, y)
    return score, said


def ours(make, task, data, **options):
    """Return the trainer after the events, and every label that it published."""
    trainer = Trainer(make(), task=task, modules=MODULES, drift=(), **options)
    said = [trainer.step_one(x, y).y_pred for x, y in copy.deepcopy(data)]
    return trainer, said


CLASSIFIERS = sorted(
    name
    for name, (task, _) in ZOO.items()
    if task != "regression" and not name.startswith(SLOW + NAN_FIRST)
)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_says_what_river_says(name):
    """The labels published, and the accuracy, are those of `progressive_val_score`."""
    task, make = ZOO[name]
    data = events(task, 250)
    score, expected = rivers(make, data, metrics.Accuracy())
    trainer, said = ours(make, task, data, metrics=["accuracy"])
    assert said == expected
    assert trainer.metrics["accuracy"] == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("name", OWN)
def test_a_models_own_decision_is_published_and_scored(name):
    """A threshold, an abstention, a label of its own, a draw: as the model says it, in order."""
    data = events("binary", 400)
    score, expected = rivers(OWN[name], data, metrics.Accuracy())
    f1, _ = rivers(OWN[name], data, metrics.F1())
    kappa, _ = rivers(OWN[name], data, metrics.CohenKappa())
    macro, _ = rivers(OWN[name], data, metrics.MacroF1())
    trainer, said = ours(OWN[name], "binary", data, metrics=["accuracy", "f1", "kappa", "macro_f1"])
    assert said == expected
    assert len(set(expected)) > 1
    trainer = Trainer.from_state(trainer.state(), MODULES)
    assert trainer.metrics["accuracy"] == pytest.approx(score, abs=1e-12)
    assert trainer.metrics["f1"] == pytest.approx(f1, abs=1e-12)
    assert trainer.metrics["kappa"] == pytest.approx(kappa, abs=1e-12)
    assert trainer.metrics["macro_f1"] == pytest.approx(macro, abs=1e-12)


@pytest.mark.parametrize("name", OWN)
def test_decisions_are_the_same_however_the_stream_is_cut_and_resumed(name):
    """In one batch or in many, restored after every event or never, with events only asked."""
    data = [Event(x=x, y=y) for x, y in events("binary", 90)]
    for i in range(5, 90, 7):
        data[i].y = None
    whole = RiverLearner(OWN[name](), "binary", modules=MODULES)
    expected = whole.predict_learn(EventBatch.from_events(copy.deepcopy(data)))
    learner = RiverLearner(OWN[name](), "binary", modules=MODULES)
    values, probas = [], []
    for event in copy.deepcopy(data):
        before = learner.predict(EventBatch.from_events([copy.deepcopy(event)]))
        part = learner.predict_learn(EventBatch.from_events([event]))
        assert (before.values, before.probas) == (part.values, part.probas)
        values += part.values
        probas += part.probas or []
        learner = load_learner("river", learner.state(), task="binary", modules=MODULES)
    assert values == expected.values
    assert probas == (expected.probas or [])
    assert learner.state() == whole.state()
    if name == "no probabilities":
        assert expected.probas is None


def rare(n):
    """Return events of a rare class that is hardly told apart."""
    rng = random.Random(11)
    data = []
    for _ in range(n):
        a, b = rng.gauss(0, 1), rng.gauss(0, 1)
        data.append(({"a": a, "b": b}, a + b + rng.gauss(0, 1) > 2.6))
    return data


def test_a_low_threshold_finds_the_rare_class():
    """Thousands of alarms instead of a handful: what the threshold is for."""
    data = rare(4000)
    score, expected = rivers(OWN["threshold"], data, metrics.Accuracy())
    trainer, said = ours(OWN["threshold"], "binary", data, metrics=["accuracy"])
    assert said == expected
    assert said.count(True) > 2_000
    assert trainer.metrics["accuracy"] == pytest.approx(score, abs=1e-12)


def shops(n):
    """Return events of shops, days apart."""
    rng = random.Random(4)
    at, made = 1_700_000_000, []
    for i in range(n):
        at += rng.randrange(20_000, 90_000)
        shop = rng.choice("ABC")
        x = {"shop": shop, "n": rng.randrange(9)}
        y = {"A": 1, "B": 5, "C": 9}[shop] + i / 100 + rng.gauss(0, 1)
        made.append(Event(x=x, y=y, ts=float(at)))
    return made


def by_week(**how):
    """Return a regression on the mean of a shop's last seven days."""
    how = utils.TimeRolling(stats.Mean, period=dt.timedelta(days=7))
    agg = feature_extraction.TargetAgg(by="shop", how=how)
    last = linear_model.LinearRegression(intercept_lr=0.1)
    return agg | preprocessing.StandardScaler() | last


@NEEDS_TIME
def test_a_window_of_time_is_handed_the_time_of_the_event():
    """In UTC and without a zone, so that the errors are those of River, told the times."""
    data = shops(500)
    model, mae, said = by_week(), metrics.MAE(), []
    for event in copy.deepcopy(data):
        said.append(model.predict_one(event.x))
        mae.update(event.y, said[-1])
        at = dt.datetime.fromtimestamp(event.ts, dt.UTC).replace(tzinfo=None)
        model.learn_one(event.x, event.y, t=at)
    trainer = Trainer(by_week(), metrics=["mae"])
    got = []
    for start in range(0, 500, 60):
        part = EventBatch.from_events(copy.deepcopy(data[start : start + 60]))
        got += trainer.step(part).predictions.values
        trainer = Trainer.from_state(trainer.state())
    assert got == said
    assert trainer.metrics["mae"] == pytest.approx(mae.get(), abs=1e-12)
    assert f"{mae.get():.4f}" == "1.1400"


@NEEDS_TIME
def test_an_event_without_a_time_is_named():
    """With a label: it cannot be learned, and the message tells which field to name."""
    learner = RiverLearner(by_week())
    data = shops(3)
    data[1].ts = None
    with pytest.raises(LearnerError, match=r"the event has no time, and a step .*\(time = ") as at:
        learner.predict_learn(EventBatch.from_events(copy.deepcopy(data)))
    assert at.value.row == 1
    data[1].y = None
    learner = RiverLearner(by_week())
    assert len(learner.predict_learn(EventBatch.from_events(data))) == 3


@pytest.mark.parametrize(
    "rate", [math.inf, -math.inf, math.nan, np.float64(0.1), np.float64("inf")], ids=repr
)
def test_any_number_that_a_model_is_made_with_is_in_its_definition(rate, tmp_path):
    """What a file says of a model is what the model says when it is made again: it is no other."""

    def make():
        return linear_model.LinearRegression(intercept_init=rate, clip_gradient=math.inf)

    Trainer(make()).save(tmp_path / "model")
    header = unpack((tmp_path / "model").read_bytes(), "model").header
    assert definition_changes(header["definition"], Trainer(make()).definition()) == []


class Panics(base.Regressor):
    """Has River's compiled code panic on values above 1; that is no Exception."""

    def __init__(self):
        self.seen = 0.0

    def learn_one(self, x, y):
        self.seen += y
        if x["v"] > 1:
            quantile = stats.Quantile(0.9)
            quantile.update(1.0)
            quantile.update(math.nan)
            quantile.get()

    def predict_one(self, x):
        return self.seen if x else None


@pytest.mark.skipif(river.__version__ < "0.26", reason="River's quantiles panic since 0.26")
def test_a_panic_of_compiled_code_is_an_error_of_its_event():
    """It is named, and left out like any other; what is no error of the learner passes through."""
    batch = EventBatch([{"v": v} for v in (0.0, 2.0, 0.5, 3.0)], [1.0] * 4)
    with pytest.raises(LearnerError, match="panicked") as caught:
        RiverLearner(Panics(), modules=MODULES).predict_learn(batch)
    assert caught.value.row == 1
    trainer = Trainer(Panics(), modules=MODULES)
    tried = Careful(MODULES).step(trainer, batch)
    assert list(tried.raised) == [1, 3]
    assert tried.step.predictions.values == [0, 1]
    trainer.learner.model.learn_one = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.step(batch)


def interrupt(x, y):
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def _imputed(imputer):
    """Return a function that makes a regression of numbers, some of which are filled in."""
    return lambda: imputer() | preprocessing.StandardScaler() | linear_model.LinearRegression()


IMPUTING = {
    "mean": _imputed(lambda: preprocessing.StatImputer(("b", stats.Mean()))),
    "constant": _imputed(lambda: preprocessing.StatImputer(("b", -1.0))),
    "previous": _imputed(preprocessing.PreviousImputer),
    "in a union": _imputed(
        lambda: (
            compose.Select("a")
            + (compose.Select("b") | preprocessing.StatImputer(("b", stats.Mean())))
        )
    ),
    "of a target that is scaled": lambda: preprocessing.TargetStandardScaler(
        _imputed(preprocessing.PreviousImputer)()
    ),
}


@pytest.mark.parametrize("gap", [None, math.nan])
@pytest.mark.parametrize("make", IMPUTING.values(), ids=IMPUTING)
def test_imputers_fill_in_what_is_missing(make, gap):
    rng = random.Random(1)
    stream = []
    for i in range(200):
        x = {"a": rng.gauss(0, 1), "b": rng.gauss(3, 1) if i == 0 or rng.random() < 0.7 else None}
        stream.append((x, x["a"] + (x["b"] or 0.0)))
    expected = evaluate.progressive_val_score(stream, make(), metrics.MAE()).get()
    trainer = Trainer(make())
    for i, (x, y) in enumerate(stream):
        if i in (1, 100):
            trainer = Trainer.from_state(trainer.state())
        trainer.step_one({name: gap if v is None else v for name, v in x.items()}, y)
    assert trainer.metrics["mae"] == pytest.approx(expected, abs=1e-12)
