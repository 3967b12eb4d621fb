"""What is proven about a model when its learner is made."""

import datetime as dt

import pytest
from deciders import NEEDS_TIME, Threshold
from river import (
    base,
    cluster,
    compose,
    drift,
    ensemble,
    feature_extraction,
    forest,
    imblearn,
    linear_model,
    naive_bayes,
    preprocessing,
    rules,
    stats,
    tree,
    utils,
)

from midstream.engine.learners.learner import RiverLearner
from midstream.engine.learners.proofs import decides_by_probability, keeps_time


class OtherPipeline(compose.Pipeline):
    """A pipeline that decides by itself."""

    def predict_one(self, x, **params):
        return not super().predict_one(x, **params)


class Silent(linear_model.LogisticRegression):
    """Takes whatever it is given, and drops it."""

    def learn_one(self, x, y, **kwargs):  # that is the point
        super().learn_one(x, y)


class Deaf(linear_model.LogisticRegression):
    """Names the weight, and drops it."""

    def learn_one(self, x, y, w=1.0):  # that is the point
        super().learn_one(x, y)


class ByShop(base.Classifier):
    """Takes a weight, and only events with a shop."""

    def __init__(self):
        self.totals = {}

    def learn_one(self, x, y, w=1.0):
        self.totals[x["shop"], y] = self.totals.get((x["shop"], y), 0.0) + w

    def predict_proba_one(self, x):
        return {True: float(bool(x))}


DECIDE = {
    "LogisticRegression": (linear_model.LogisticRegression, True),
    "pipeline": (lambda: preprocessing.StandardScaler() | naive_bayes.GaussianNB(), True),
    "forest": (lambda: forest.ARFClassifier(n_models=2, seed=1), True),
    "threshold": (lambda: Threshold(linear_model.LogisticRegression()), False),
    "threshold in a pipeline": (
        lambda: preprocessing.StandardScaler() | Threshold(linear_model.LogisticRegression()),
        False,
    ),
    "pipeline in a pipeline": (
        lambda: compose.Pipeline(
            preprocessing.StandardScaler(),
            compose.Pipeline(preprocessing.MinMaxScaler(), Threshold(naive_bayes.GaussianNB())),
        ),
        False,
    ),
    "another pipeline": (lambda: OtherPipeline(linear_model.LogisticRegression()), False),
}


@pytest.mark.parametrize("name", DECIDE)
def test_only_rivers_own_decision_is_the_largest_probability(name):
    """Whoever overrides `predict_one`, wherever it stands, is to be asked for the decision."""
    make, by_probability = DECIDE[name]
    assert decides_by_probability(make()) is by_probability


def test_a_decision_put_on_an_instance_counts():
    """A method that is set on one object is that object's decision."""
    model = linear_model.LogisticRegression()
    model.predict_one = lambda x: True
    assert not decides_by_probability(model)


WEIGHTS = {
    "LogisticRegression": (linear_model.LogisticRegression, True),
    "HoeffdingTree": (tree.HoeffdingTreeClassifier, True),
    "ARF, which drops it": (lambda: forest.ARFClassifier(n_models=2, seed=1), False),
    "a wrapper that hands it on": (
        lambda: imblearn.RandomUnderSampler(
            linear_model.LogisticRegression(), desired_dist={True: 0.5, False: 0.5}, seed=1
        ),
        True,
    ),
    "a wrapper of what takes none": (
        lambda: drift.DriftRetrainingClassifier(
            naive_bayes.GaussianNB(), drift.binary.DDM(warm_start=20)
        ),
        False,
    ),
    "dropped as a keyword": (Silent, False),
    "dropped by name": (Deaf, False),
    "of features that it does not know here": (ByShop, True),
    "GaussianNB": (naive_bayes.GaussianNB, False),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_learner_takes_weights_if_it_learns_otherwise_from_them(name):
    """Not if its method takes them and drops them."""
    make, takes = WEIGHTS[name]
    assert RiverLearner(make(), "binary").takes_weights is takes
    assert RiverLearner(preprocessing.StandardScaler() | make(), "binary").takes_weights is takes


class Hourly(base.Transformer):
    """A step of a user's that asks for the time."""

    def learn_one(self, x, t=None):
        self.last = t if x else None

    def transform_one(self, x):
        return x


@NEEDS_TIME
def test_who_is_handed_the_time():
    """Windows of time, wherever they are, and steps of a user's that name `t`; nobody else."""
    week = utils.TimeRolling(stats.Mean, period=dt.timedelta(days=7))
    count = utils.Rolling(stats.Mean, window_size=7)
    last = linear_model.LinearRegression
    assert keeps_time(feature_extraction.TargetAgg(by="shop", how=week) | last())
    assert keeps_time((feature_extraction.Agg(on="a", by=None, how=week) + Hourly()) | last())
    assert keeps_time(Hourly() | last())
    assert not keeps_time(feature_extraction.TargetAgg(by="shop", how=count) | last())


@NEEDS_TIME
def test_windows_of_time_beside_other_aggregates_are_refused():
    """River would hand the time to both, and raise at the first event."""
    week = utils.TimeRolling(stats.Mean, period=dt.timedelta(days=7))
    both = feature_extraction.Agg(on="a", by=None, how=week) + feature_extraction.Agg(
        on="b", by=None, how=stats.Mean()
    )
    with pytest.raises(TypeError, match=r"Agg\(how=Mean\) takes none; give it a utils.TimeRolling"):
        RiverLearner(both | linear_model.LinearRegression())


@NEEDS_TIME
def test_who_loses_the_time_is_refused():
    """A wrapper that takes no time cannot hand it on; one that takes anything can."""
    week = utils.TimeRolling(stats.Mean, period=dt.timedelta(days=7))
    inner = feature_extraction.TargetAgg(by="shop", how=week) | linear_model.LinearRegression()
    with pytest.raises(TypeError, match="TargetStandardScaler does not hand the time of an event"):
        RiverLearner(preprocessing.TargetStandardScaler(inner))
    RiverLearner(ensemble.BaggingRegressor(inner, n_models=2, seed=1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (cluster.KMeans(seed=1), "KMeans is neither a classifier nor a regressor: it finds clus"),
        (preprocessing.StandardScaler(), "put a classifier or regressor behind it"),
        (rules.AMRules(), "AMRules names its rules by where they are in memory"),
    ],
    ids=["clusters", "transformer", "rules"],
)
def test_what_cannot_learn_is_refused_with_what_to_use_instead(model, reason):
    """The message names the class, why, and a way out."""
    with pytest.raises(TypeError, match=reason):
        RiverLearner(model)
