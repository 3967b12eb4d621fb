"""River models for tests of whatever must hold for any learner: all seeded, all deterministic.

Not here: AMRules and KNN with an unseeded SWINN, whose runs do not repeat.
"""

import itertools
from collections.abc import Callable
from typing import Any

import river
from river import (
    base,
    compose,
    datasets,
    drift,
    dummy,
    ensemble,
    facto,
    feature_extraction,
    feature_selection,
    forest,
    imblearn,
    linear_model,
    metrics,
    model_selection,
    multiclass,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    stats,
    tree,
)

from midstream.engine.events.event import Features, Label, Task

__all__ = ["HASH_SEEDED", "ZOO", "events"]

# What these learn depends on PYTHONHASHSEED: they walk through sets of labels or of features.
HASH_SEEDED = {"AMFClassifier", "OneVsOne"}
if river.__version__ < "0.24":
    HASH_SEEDED.add("KNNRegressor")


def _scaled(model: base.Estimator) -> compose.Pipeline:
    return preprocessing.StandardScaler() | model


def _softmax() -> base.Classifier:
    return linear_model.SoftmaxRegression()


def _logistic(lr: float = 0.05) -> base.Classifier:
    return linear_model.LogisticRegression(optim.SGD(lr))


def _tree() -> base.Classifier:
    return tree.HoeffdingTreeClassifier(grace_period=40, delta=0.01)


_BINARY: dict[str, Callable[[], Any]] = {
    "LogisticRegression": lambda: _scaled(_logistic()),
    "LogisticRegressionAdamL1": lambda: _scaled(linear_model.LogisticRegression(l1=0.01)),
    "LogisticRegressionFTRL": lambda: _scaled(
        linear_model.LogisticRegression(optim.FTRLProximal())
    ),
    "LogisticRegressionNormal": lambda: _scaled(
        linear_model.LogisticRegression(
            optim.Adam(), initializer=optim.initializers.Normal(sigma=0.1, seed=4)
        )
    ),
    "Perceptron": lambda: _scaled(linear_model.Perceptron()),
    "PAClassifier": lambda: _scaled(linear_model.PAClassifier(C=0.01)),
    "ALMA": lambda: _scaled(linear_model.ALMAClassifier()),
    "GaussianNB": naive_bayes.GaussianNB,
    "BernoulliNB": lambda: preprocessing.Binarizer() | naive_bayes.BernoulliNB(),
    "OneHot": lambda: preprocessing.OneHotEncoder() | _logistic(),
    "FeatureHasher": lambda: (
        preprocessing.FeatureHasher(n_features=32, seed=1) | naive_bayes.GaussianNB()
    ),
    "Agg": lambda: (
        (
            compose.SelectType(float)
            + feature_extraction.Agg("age_of_domain", "ip_in_url", stats.Mean())
        )
        | _logistic()
    ),
    "AdaptiveScaler": lambda: preprocessing.AdaptiveStandardScaler() | _logistic(),
    "MaxAbsScaler": lambda: preprocessing.MaxAbsScaler() | _logistic(),
    "SelectKBest": lambda: (
        feature_selection.SelectKBest(stats.PearsonCorr(), k=4)
        | preprocessing.MinMaxScaler()
        | _logistic()
    ),
    "Union": lambda: (
        (preprocessing.StandardScaler() + feature_extraction.PolynomialExtender())
        | compose.Discard("is_popular")
        | _logistic()
    ),
    "FM": lambda: facto.FMClassifier(n_factors=3, seed=1),
    "HoeffdingTree": _tree,
    "HoeffdingAdaptiveTree": lambda: tree.HoeffdingAdaptiveTreeClassifier(
        grace_period=40, delta=0.01, seed=1
    ),
    "EFDT": lambda: tree.ExtremelyFastDecisionTreeClassifier(
        grace_period=60, min_samples_reevaluate=60, max_depth=3, delta=0.01
    ),
    "SGT": lambda: tree.SGTClassifier(
        grace_period=100, feature_quantizer=tree.splitter.StaticQuantizer(n_bins=8)
    ),
    "ARF": lambda: forest.ARFClassifier(n_models=3, seed=1, grace_period=40),
    "SRP": lambda: ensemble.SRPClassifier(_tree(), n_models=3, seed=1),
    "AdaBoost": lambda: ensemble.AdaBoostClassifier(_tree(), n_models=3, seed=1),
    "ADWINBagging": lambda: ensemble.ADWINBaggingClassifier(_logistic(), n_models=3, seed=1),
    "LeveragingBagging": lambda: ensemble.LeveragingBaggingClassifier(
        _logistic(), n_models=3, seed=1
    ),
    "Stacking": lambda: ensemble.StackingClassifier(
        [_logistic(), naive_bayes.GaussianNB()], _logistic(0.01)
    ),
    "Voting": lambda: ensemble.VotingClassifier(
        [_logistic(), naive_bayes.GaussianNB(), linear_model.ALMAClassifier()]
    ),
    "UnderSampler": lambda: imblearn.RandomUnderSampler(
        _logistic(), desired_dist={True: 0.5, False: 0.5}, seed=1
    ),
    "HardSampling": lambda: imblearn.HardSamplingClassifier(_logistic(), size=20, p=0.3, seed=1),
    "DriftRetraining": lambda: drift.DriftRetrainingClassifier(
        _logistic(), drift.binary.DDM(warm_start=20)
    ),
    "KNN": lambda: neighbors.KNNClassifier(
        engine=neighbors.SWINN(graph_k=5, maxlen=150, warm_up=50, seed=1)
    ),
}
_MULTICLASS: dict[str, Callable[[], Any]] = {
    "Softmax": lambda: _scaled(_softmax()),
    "GaussianNBMulticlass": naive_bayes.GaussianNB,
    "OneVsRest": lambda: _scaled(multiclass.OneVsRestClassifier(_logistic())),
    "OneVsOne": lambda: _scaled(multiclass.OneVsOneClassifier(_logistic())),
    "OutputCode": lambda: _scaled(
        multiclass.OutputCodeClassifier(_logistic(), 6, coding_method="exact", seed=1)
    ),
    "HoeffdingTreeMulticlass": _tree,
    "ARFMulticlass": lambda: forest.ARFClassifier(n_models=3, seed=1, grace_period=40),
    "AMFClassifier": lambda: forest.AMFClassifier(n_estimators=2, seed=1),
    "LazyKNN": lambda: neighbors.KNNClassifier(engine=neighbors.LazySearch(window_size=100)),
    "NoChange": dummy.NoChangeClassifier,
}
_REGRESSION: dict[str, Callable[[], Any]] = {
    "LinearRegression": lambda: _scaled(linear_model.LinearRegression(intercept_lr=0.1)),
    "LinearRMSProp": lambda: _scaled(
        linear_model.LinearRegression(optim.RMSProp(), loss=optim.losses.Huber())
    ),
    "BayesianLinearRegression": lambda: _scaled(linear_model.BayesianLinearRegression()),
    "PARegressor": lambda: _scaled(linear_model.PARegressor()),
    "TargetScaler": lambda: _scaled(
        preprocessing.TargetStandardScaler(linear_model.LinearRegression())
    ),
    "RandomFeatures": lambda: _scaled(
        feature_extraction.RBFSampler(n_components=10, seed=1) | linear_model.LinearRegression()
    ),
    "HoeffdingTreeRegressor": lambda: tree.HoeffdingTreeRegressor(grace_period=40),
    "HoeffdingAdaptiveTreeRegressor": lambda: tree.HoeffdingAdaptiveTreeRegressor(
        grace_period=40, seed=1
    ),
    "ARFRegressor": lambda: forest.ARFRegressor(n_models=3, seed=1, grace_period=40),
    "AMFRegressor": lambda: forest.AMFRegressor(n_estimators=2, seed=1),
    "OXT": lambda: forest.OXTRegressor(n_models=2, seed=1, grace_period=40),
    "SRPRegressor": lambda: ensemble.SRPRegressor(
        tree.HoeffdingTreeRegressor(grace_period=40), n_models=2, seed=1
    ),
    "EWA": lambda: _scaled(
        ensemble.EWARegressor(
            [linear_model.LinearRegression(optim.SGD(lr)) for lr in (0.001, 0.01)],
            learning_rate=0.005,
        )
    ),
    "Bagging": lambda: _scaled(
        ensemble.BaggingRegressor(linear_model.LinearRegression(), n_models=3, seed=1)
    ),
    "SuccessiveHalving": lambda: _scaled(
        model_selection.SuccessiveHalvingRegressor(
            [linear_model.LinearRegression(optim.SGD(lr)) for lr in (0.0001, 0.001, 0.01, 0.1)],
            metric=metrics.MAE(),
            budget=400,
        )
    ),
    "KNNRegressor": lambda: _scaled(
        neighbors.KNNRegressor(engine=neighbors.SWINN(maxlen=150, warm_up=50, seed=1))
    ),
    "TargetAgg": lambda: (
        feature_extraction.TargetAgg(["you_gov"], stats.EWMean(0.1))
        | linear_model.LinearRegression()
    ),
}
_TASKS: dict[Task, tuple[dict[str, Callable[[], Any]], Any]] = {
    "binary": (_BINARY, datasets.Phishing()),
    "multiclass": (_MULTICLASS, datasets.ImageSegments()),
    "regression": (_REGRESSION, datasets.TrumpApproval()),
}

ZOO: dict[str, tuple[Task, Callable[[], Any]]] = {
    name: (task, make) for task, (models, _) in _TASKS.items() for name, make in models.items()
}


def events(task: Task, n: int) -> list[tuple[Features, Label]]:
    """Return the first `n` events of a stream for the task, from the start again at its end."""
    stream = itertools.islice(itertools.cycle(_TASKS[task][1]), n)
    return [(dict(x), y) for x, y in stream]
