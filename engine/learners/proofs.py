"""Facts about a River model, established once, when its learner is made.

How a model is called, and with which arguments, depends on what it does, and not on the names or
parameters of its methods: a method may take a weight and drop it, and a classifier may decide by
something else than its largest probability.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from river import base, compose, utils

from midstream.engine.events.event import Features, Label, Task
from midstream.engine.learners.anatomy import last_step, path_of, raised_by, within
from midstream.engine.state import encoding

__all__ = ["decides_by_probability", "keeps_time", "refusal", "takes_weights"]

# Descriptions of models that are neither classifiers nor regressors, by a base class.
_OTHERS = {
    "AnomalyDetector": "it scores anomalies; put it in a pipeline as the detector of an "
    "anomaly.ThresholdFilter or QuantileFilter, before a classifier or regressor",
    "SupervisedAnomalyDetector": "it scores anomalies; put it in a pipeline as the detector of an "
    "anomaly.ThresholdFilter or QuantileFilter, before a classifier or regressor",
    "AnomalyFilter": "it is a filter; put it before a classifier or regressor",
    "Clusterer": "it finds clusters, and there is no label to predict",
    "Forecaster": "it forecasts a series, and events are predicted one by one; use a regressor on "
    "features of the past (feature_extraction.TargetAgg)",
    "MultiLabelClassifier": "it predicts several labels, and an event has one; make a model for "
    "each of them",
    "MultiTargetRegressor": "it predicts several targets, and an event has one; make a model for "
    "each of them",
    "Ranker": "it learns pairs of a user and an item; use a factorization machine (river.facto) "
    "with both as features",
    "BaseNN": "it searches neighbours; give it to neighbors.KNNClassifier or KNNRegressor as its "
    "engine",
    "BaseTransformer": "it transforms features; put a classifier or regressor behind it",
}
# Models that can learn here, but cannot be resumed, or cannot be scored.
_REFUSED = {
    "river.feature_extraction.kernel_approx.RandomTreesEmbedding": (
        "keeps what it has learned by the id() of objects, which are others after a restart; use "
        "feature_extraction.RBFSampler, or a forest (river.forest)"
    ),
    "river.feature_extraction.random_trees.RandomTreesEmbedding": (
        "keeps what it has learned by the id() of objects, which are others after a restart; use "
        "feature_extraction.RBFSampler, or a forest (river.forest)"
    ),
    "river.rules.amrules.AMRules": (
        "names its rules by where they are in memory, which is elsewhere after a restart; use "
        "tree.HoeffdingTreeRegressor"
    ),
}


def refusal(model: Any) -> str | None:
    """Return why a model cannot be a learner, and an alternative; None if it can be one."""
    for part in within(model):
        name = path_of(type(part))
        if name in _REFUSED:
            return f"{type(part).__name__} {_REFUSED[name]}"
        if any(path_of(cls) == _ACTIVE for cls in type(part).__mro__):
            return (
                f"{type(part).__name__} asks for the labels that it wants, and here all that come "
                "are learned; use the classifier in it"
            )
    if keeps_time(model):
        for part in within(model):
            if path_of(type(part)).startswith(_AGGREGATES) and not _rolls_by_time(part.how):
                return (
                    f"River hands the time of an event to every aggregate of a model, and that of "
                    f"{type(part).__name__}(how={type(part.how).__name__}) takes none; give it a "
                    "utils.TimeRolling, too, or leave the windows of time out"
                )
            if _loses_time(part):
                return (
                    f"{type(part).__name__} does not hand the time of an event on to the window of "
                    "time in it; put the step that has the window before it, in a pipeline"
                )
    last = last_step(model)
    ancestors = {cls.__name__ for cls in type(last).__mro__ if cls.__module__.startswith("river.")}
    for ancestor, reason in _OTHERS.items():
        if ancestor in ancestors and not (
            ancestor == "BaseTransformer" and isinstance(last, base.Classifier | base.Regressor)
        ):
            return f"{type(last).__name__} is neither a classifier nor a regressor: {reason}"
    if not isinstance(last, base.Classifier | base.Regressor):
        return f"{type(last).__name__} is neither a classifier nor a regressor"
    return None


_ACTIVE = "river.active.base.ActiveLearningClassifier"
_AGGREGATES = "river.feature_extraction.agg."


def decides_by_probability(model: Any) -> bool:
    """Whether a classifier always predicts the label with the largest probability.

    It does if `predict_one` is River's own. That asks `predict_proba_one` once and takes the first
    of the largest, or None if there is none.
    """
    while isinstance(model, compose.Pipeline):
        if "predict_one" in vars(model) or any(
            getattr(type(model), name) is not getattr(compose.Pipeline, name)
            for name in ("predict_one", "predict_proba_one", "_transform_one")
        ):
            return False
        model = model._last_step
    own = "predict_one" in getattr(model, "__dict__", {})
    return not own and type(model).predict_one is base.Classifier.predict_one


def keeps_time(model: Any) -> bool:
    """Whether a step needs the time of an event: it has a time window, or takes `t`.

    River's own steps take `t` for time windows only; others get it if they name it.
    """
    for part in within(model):
        if _rolls_by_time(part):
            return True
        foreign = isinstance(part, base.Estimator) and not path_of(type(part)).startswith("river.")
        if foreign and "t" in _learning(part):
            return True
    return False


def _learning(part: base.Estimator) -> Mapping[str, inspect.Parameter]:
    """Return the parameters with which an estimator learns; none if it does not learn."""
    learn_one = getattr(type(part), "learn_one", None)
    return {} if learn_one is None else _parameters(learn_one)


@functools.lru_cache(1_000)
def _parameters(of: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(of).parameters


def _loses_time(part: Any) -> bool:
    """Whether an object in `part` needs the time, but `part` does not take it."""
    unions = (compose.TransformerUnion, compose.TransformerProduct)  # pipelines handle them
    if not isinstance(part, base.Estimator) or isinstance(part, unions):
        return False
    parameters = _learning(part)
    if "t" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return False
    inner = [item for item in within(part) if item is not part and isinstance(item, base.Estimator)]
    return any(map(keeps_time, inner))


def _rolls_by_time(value: Any) -> bool:
    return isinstance(value, utils.TimeRolling)


def takes_weights(model: Any, task: Task, definition: Any) -> bool:
    """Whether the sample weight changes what a model learns, tested on two new models.

    Parameters
    ----------
    definition
        Identifies models that may differ in this.

    Notes
    -----
    A model that raises on the made-up features takes weights if its `learn_one` names the weight
    `w`; accepting any argument (``**kwargs``) does not count.
    """
    last = last_step(model)
    parameters = inspect.signature(last.learn_one).parameters
    named = "w" in parameters
    if not named and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        return False
    key = json.dumps([task, path_of(type(last)), definition], sort_keys=True, default=repr)
    if key not in _PROVEN:
        if len(_PROVEN) > _MOST:
            _PROVEN.clear()
        light, heavy = _state_after(last, task, 1.0), _state_after(last, task, 3.0)
        _PROVEN[key] = named if light is None or heavy is None else light != heavy
    return _PROVEN[key]


_PROVEN: dict[str, bool] = {}
_MOST = 1_000
_EVENTS = 24


def _state_after(model: Any, task: Task, weight: float) -> bytes | None:
    """Return the state of a new model of this kind after some events; None if it raises."""
    try:
        new = model.clone()
        for x, y in _events(task):
            new.learn_one(x, y, w=weight)
        return encoding.encode(new, modules=(*_modules(new),))
    except BaseException as error:  # noqa: BLE001  # any error on made-up events
        raised_by(error)
        return None


def _modules(model: Any) -> set[str]:
    return {type(part).__module__ for part in within(model)}


@functools.cache
def _made_up(task: Task) -> tuple[tuple[Features, Label], ...]:
    made: list[tuple[Features, Label]] = []
    for i in range(_EVENTS):
        x: Features = {name: (i * k % 11 + 1) / 12 for name, k in (("a", 3), ("b", 5), ("c", 7))}
        y: Label = i % 3 == 0
        made.append((x, float(i % 5) if task == "regression" else y))
    return tuple(made)


def _events(task: Task) -> list[tuple[Features, Label]]:
    return [(dict(x), y) for x, y in _made_up(task)]
