"""The prequential metrics of `midstream evaluate` are River's own, on the data River ships."""

import json
from importlib import import_module

import pytest
from river import datasets, evaluate, metrics

from midstream.flows.loading import load
from midstream.flows.offline import evaluation

MODULES = ("ensemble", "forest", "linear_model", "multiclass", "naive_bayes", "neighbors",
           "preprocessing", "tree")  # fmt: skip
NAMESPACE = {name: import_module(f"river.{name}") for name in MODULES}
IMPORTS = f"from river import {', '.join(MODULES)}\n"

CLASSIFIERS = {
    "logistic": "preprocessing.StandardScaler() | linear_model.LogisticRegression()",
    "softmax": "preprocessing.StandardScaler() | linear_model.SoftmaxRegression()",
    "one_vs_rest": "preprocessing.StandardScaler()"
    " | multiclass.OneVsRestClassifier(linear_model.LogisticRegression())",
    "perceptron": "preprocessing.StandardScaler() | linear_model.Perceptron()",
    "passive_aggressive": "preprocessing.StandardScaler() | linear_model.PAClassifier()",
    "gaussian_nb": "naive_bayes.GaussianNB()",
    "knn": "preprocessing.StandardScaler()"
    " | neighbors.KNNClassifier(engine=neighbors.LazySearch(window_size=50))",
    "hoeffding_tree": "tree.HoeffdingTreeClassifier(grace_period=50)",
    "hoeffding_adaptive_tree": "tree.HoeffdingAdaptiveTreeClassifier(grace_period=50, seed=1)",
    "extremely_fast_tree": "tree.ExtremelyFastDecisionTreeClassifier(grace_period=50)",
    "arf": "forest.ARFClassifier(n_models=3, seed=1)",
    "bagging": "ensemble.BaggingClassifier(naive_bayes.GaussianNB(), n_models=3, seed=1)",
    "adaboost": "ensemble.AdaBoostClassifier(tree.HoeffdingTreeClassifier(), n_models=3, seed=1)",
}
BINARY_ONLY = {"logistic", "perceptron", "passive_aggressive"}
REGRESSORS = {
    "linear": "preprocessing.StandardScaler() | linear_model.LinearRegression(intercept_lr=0.1)",
    "pa_regressor": "preprocessing.StandardScaler() | linear_model.PARegressor()",
    "bayesian": "preprocessing.StandardScaler() | linear_model.BayesianLinearRegression()",
    "knn_regressor": "preprocessing.StandardScaler()"
    " | neighbors.KNNRegressor(engine=neighbors.LazySearch(window_size=50))",
    "hoeffding_tree_regressor": "tree.HoeffdingTreeRegressor(grace_period=50)",
    "arf_regressor": "forest.ARFRegressor(n_models=3, seed=1)",
}
DATA = {
    "Phishing": ("binary", datasets.Phishing, 1250),
    "Bananas": ("binary", datasets.Bananas, 2500),
    "ImageSegments": ("multiclass", datasets.ImageSegments, 1500),
    "TrumpApproval": ("regression", datasets.TrumpApproval, 1001),
}
RIVER = {
    "accuracy": metrics.Accuracy,
    "balanced_accuracy": metrics.BalancedAccuracy,
    "macro_f1": metrics.MacroF1,
    "kappa": metrics.CohenKappa,
    "mae": metrics.MAE,
    "rmse": metrics.RMSE,
    "r2": metrics.R2,
}


class CrossEntropy(metrics.CrossEntropy):
    """River's, but a label that is not among the probabilities has probability 0."""

    def update(self, y_true, y_pred, w=1.0):
        super().update(y_true, {**y_pred, y_true: y_pred.get(y_true, 0.0)}, w)


CASES = [
    (data, name, text)
    for data, (task, _, _) in DATA.items()
    for name, text in (REGRESSORS if task == "regression" else CLASSIFIERS).items()
    if task != "multiclass" or name not in BINARY_ONLY
]


@pytest.mark.parametrize(("data", "name", "text"), CASES, ids=[f"{d}-{n}" for d, n, _ in CASES])
def test_metrics_equal_rivers_progressive_validation(data, name, text, tmp_path):
    """Each metric that River has exactly is River's to 1e-12, model by model."""
    task, make, n = DATA[data]
    with (tmp_path / "events.jsonl").open("w") as file:
        for x, y in make().take(n):
            file.write(json.dumps({"x": x, "y": y}) + "\n")
    (tmp_path / "models.py").write_text(f"{IMPORTS}\ndef make():\n    return {text}\n")
    (tmp_path / "config.toml").write_text(
        f'[model]\nlearner = "models:make"\ntask = "{task}"\n[input]\npath = "events.jsonl"\n'
    )
    summary, _ = evaluation.evaluate(load(tmp_path / "config.toml"))
    assert summary.learned == n
    assert summary.rejected == summary.non_finite == summary.too_large == 0

    names = [m for m in RIVER if m in summary.metrics]
    assert len(names) >= 3
    both = metrics.base.Metrics([RIVER[m]() for m in names])
    evaluate.progressive_val_score(make().take(n), eval(text, NAMESPACE), both)  # noqa: S307 our own text
    for metric, theirs in zip(names, both, strict=True):
        assert summary.metrics[metric] == pytest.approx(theirs.get(), rel=0, abs=1e-12), metric
    if "log_loss" in summary.metrics and name not in {"perceptron", "passive_aggressive"}:
        loss = metrics.LogLoss() if task == "binary" else CrossEntropy()
        evaluate.progressive_val_score(make().take(n), eval(text, NAMESPACE), loss)  # noqa: S307
        assert summary.metrics["log_loss"] == pytest.approx(loss.get(), rel=0, abs=1e-12)
