"""Asking a model about an event that has no label changes nothing of what it says later."""

import copy
import logging
import random

import numpy as np
import pytest
from river import (
    base,
    compose,
    ensemble,
    facto,
    feature_extraction,
    forest,
    linear_model,
    preprocessing,
    stats,
)

from midstream import Trainer
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import LearnerError, RiverLearner, load_learner

MODULES = [__name__]


class Draws(base.Transformer):
    """Draws a number for each feature that is new to it, when it predicts."""

    def __init__(self, seed=1):
        self.seed = seed
        self.rng = random.Random(seed)
        self.numbers = {}

    def transform_one(self, x):
        if "raise" in x:
            self.rng.random()
            raise ValueError("raise")
        for name in x:
            if name not in self.numbers:
                self.numbers[name] = self.rng.random()
        return {name: value * self.numbers[name] for name, value in x.items()}


class Counts(base.Classifier):
    """Predicts how often it was asked."""

    def __init__(self):
        self.asked = 0

    def learn_one(self, x, y):
        self.asked += bool(x) and bool(y) * 0

    def predict_proba_one(self, x):
        self.asked += 1
        p = (self.asked % 10) / 10 if x else 0.0
        return {True: p, False: 1 - p}


class Quiet(base.Transformer):
    """A step of a user's that changes nothing when it predicts."""

    def __init__(self):
        self.seen = 0

    def learn_one(self, x):
        self.seen += len(x)

    def transform_one(self, x):
        return x


class Held(base.Transformer):
    """Holds what cannot be saved."""

    def __init__(self):
        self.double = lambda value: 2 * value
        self.asked = 0

    def transform_one(self, x):
        self.asked += 1
        return {name: self.double(value) + self.asked for name, value in x.items()}


def _logistic():
    return linear_model.LogisticRegression()


MODELS = {
    "draws": lambda: Draws() | _logistic(),
    "counts": lambda: preprocessing.StandardScaler() | Counts(),
    "held": lambda: Held() | _logistic(),
    "in a union": lambda: (Draws() + preprocessing.StandardScaler()) | _logistic(),
    "in an ensemble": lambda: ensemble.BaggingClassifier(Draws() | _logistic(), 3, seed=1),
    "River's, in an ensemble": lambda: ensemble.BaggingClassifier(
        feature_extraction.RBFSampler(n_components=3, seed=1) | _logistic(), 3, seed=1
    ),
    "River's and own": lambda: (
        feature_extraction.RBFSampler(n_components=3, seed=1)
        | compose.FuncTransformer(as_text)
        | Draws()
        | _logistic()
    ),
    "FM": lambda: facto.FMClassifier(n_factors=2, seed=1),
    "FFM": lambda: facto.FFMClassifier(n_factors=2, seed=1),
    "inclusion": lambda: preprocessing.GaussianRandomProjector(3, seed=1) | _logistic(),
    "quiet": lambda: Quiet() | forest.ARFClassifier(n_models=2, seed=1),
    "patches": lambda: ensemble.SRPClassifier(_logistic(), n_models=3, subspace_size=0.6, seed=1),
    "patches in an ensemble": lambda: ensemble.BaggingClassifier(
        ensemble.SRPClassifier(_logistic(), n_models=2, subspace_size=0.6, seed=1), 2, seed=1
    ),
}


def as_text(x):
    """Return the features by names that are text."""
    return {str(name): value for name, value in x.items()}


def stream(n, *, seed):
    """Return events with features that come and go."""
    rng = random.Random(seed)
    names = [f"f{i}" for i in range(12)]
    events = []
    for _ in range(n):
        x = {name: rng.random() for name in rng.sample(names, 4)}
        events.append(Event(x=x, y=rng.random() < 0.5))
    return events


def batch(events):
    """Return a batch with objects of its own."""
    return EventBatch.from_events(copy.deepcopy(events))


def strangers(n, *, seed):
    """Return events without a label, with features of their own."""
    rng = random.Random(seed)
    return [Event(x={f"n{rng.randrange(40)}": 1.0, "f1": rng.random()}) for _ in range(n)]


def row(predictions, i):
    """Return one of many predictions."""
    return predictions.take(np.array([i]))


def said(predictions):
    """Return predictions to compare."""
    return repr((predictions.values, predictions.probas))


@pytest.mark.parametrize("when", [0, 1, 30])
@pytest.mark.parametrize("name", MODELS)
def test_later_predictions_are_as_if_nobody_had_asked(name, when):
    """In the stream, also before it; by predict, one by one or many; whatever else is asked."""
    make = MODELS[name]
    events, asked = stream(60, seed=1), strangers(25, seed=2)
    quiet = RiverLearner(make(), "binary", modules=MODULES)
    expected = [quiet.predict_learn(batch([event])) for event in events]
    alone = []
    for one in asked:
        fresh = RiverLearner(make(), "binary", modules=MODULES)
        fresh.predict_learn(batch(events[:when]))
        alone.append(said(fresh.predict(batch([one]))))

    learner = RiverLearner(make(), "binary", modules=MODULES)
    got = []
    for i, event in enumerate(events):
        if i == when:
            together = learner.predict(batch(asked))
            assert [said(row(together, k)) for k in range(len(asked))] == alone
            assert [said(learner.predict(batch([one]))) for one in reversed(asked)] == alone[::-1]
            mixed = learner.predict_learn(batch(asked))
            assert [said(row(mixed, k)) for k in range(len(asked))] == alone
        got.append(learner.predict_learn(batch([event])))
    assert list(map(said, got)) == list(map(said, expected))
    if name != "held":
        assert learner.state() == quiet.state()


@pytest.mark.parametrize("name", ["draws", "counts", "FM", "River's and own"])
def test_it_makes_no_difference_when_that_is_found_out(name):
    """A learner that was read back, and has found out nothing yet, goes on bit for bit."""
    events = stream(120, seed=3)
    for i, event in enumerate(strangers(120, seed=4)):
        if i % 3 == 0:
            events[i] = event
    whole = RiverLearner(MODELS[name](), "binary", modules=MODULES)
    expected = [said(whole.predict_learn(batch([event]))) for event in events]
    learner = RiverLearner(MODELS[name](), "binary", modules=MODULES)
    got = []
    for event in events:
        got.append(said(learner.predict_learn(batch([event]))))
        learner = load_learner("river", learner.state(), task="binary", modules=MODULES)
    assert got == expected
    assert learner.state() == whole.state()


def test_it_is_said_once(caplog):
    """The log names the step, the first time that a prediction was found to change it."""
    caplog.set_level(logging.INFO, logger="midstream")
    for name, step in (("draws", "Draws"), ("FM", "FMClassifier"), ("held", "Held")):
        caplog.clear()
        learner = RiverLearner(MODELS[name](), "binary", modules=MODULES)
        learner.predict_learn(batch(stream(10, seed=1)))
        for _ in range(3):
            learner.predict(batch(strangers(10, seed=2)))
        assert [record.fields["step"] for record in caplog.records] == [step]
    caplog.clear()
    quiet = RiverLearner(MODELS["quiet"](), "binary", modules=MODULES)
    quiet.predict(batch(strangers(10, seed=2)))
    assert not caplog.records


def test_what_raises_is_put_back_too():
    """A model that changes and then raises is left as it was, and the event is named."""
    learner = RiverLearner(MODELS["draws"](), "binary", modules=MODULES)
    learner.predict_learn(batch(stream(10, seed=1)))
    state = learner.state()
    events = strangers(3, seed=2)
    events[1].x["raise"] = 1.0
    for _ in range(2):
        with pytest.raises(LearnerError, match="ValueError: raise") as caught:
            learner.predict(batch(events))
        assert caught.value.row == 1
        assert learner.state() == state


def test_a_trainer_keeps_its_digest_when_it_is_asked():
    """Predict, predict_one and events without a label: the learner's state stays the same."""
    scaled = preprocessing.StandardScaler() | linear_model.LinearRegression()
    agg = feature_extraction.Agg(on="f1", by="shop", how=stats.Mean()) | scaled
    trainer = Trainer(agg, metrics=["mae"])
    for i in range(30):
        trainer.step_one({"f1": float(i % 7), "shop": "AB"[i % 2]}, float(i % 5))
    digest = trainer.digest()
    first = trainer.predict_one({"f1": 1.0, "shop": "new"})
    trainer.predict(EventBatch.from_events([Event(x={"f1": 2.0, "shop": "newer"})]))
    assert trainer.digest() == digest
    learner = trainer.learner.state()
    trainer.step_one({"f1": 1.0, "shop": "newest"})
    assert trainer.learner.state() == learner
    assert trainer.predict_one({"f1": 1.0, "shop": "new"}).y_pred == first.y_pred
