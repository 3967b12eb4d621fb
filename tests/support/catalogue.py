"""Every public estimator of River, built as River's own tests build it, in a model that learns.

What River builds with arguments of its own choice only in its documentation is built here. Seeds
are set where River's tests leave them out, for without them no run can be repeated; that they are
asked for is tested elsewhere.
"""

import datetime as dt
import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from river import (
    base,
    compose,
    feature_extraction,
    linear_model,
    metrics,
    naive_bayes,
    optim,
    preprocessing,
    stats,
    utils,
)

from midstream.engine.events.event import Event, Features, Label, Task

__all__ = ["Entry", "catalogue", "stream"]


class Entry(NamedTuple):
    """A model with one of River's estimators in it, and the task that it is for."""

    name: str
    cls: type
    task: Task
    make: Callable[[], Any]


def double(x: Features) -> Features:
    """Return twice the numbers of `x`, as a step of a pipeline."""
    return {name: 2 * value for name, value in x.items() if isinstance(value, float)}


def take_text(x: Features) -> str:
    """Return the text, for a step that takes no features but text."""
    return str(x["text"])


def halve(y: float) -> float:
    """Return half of a target."""
    return y / 2


def twice(y: float) -> float:
    """Return what `halve` was given."""
    return y * 2


def _logistic() -> base.Classifier:
    return linear_model.LogisticRegression()


def _linear() -> base.Regressor:
    return linear_model.LinearRegression()


_BALANCE = {"desired_dist": {True: 0.5, False: 0.5}, "seed": 1}
# Arguments of those that River's generic tests leave out, or build without a seed.
_ARGUMENTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "FuncTransformer": lambda: [{"func": double}],
    "Grouper": lambda: [
        {
            "transformer": compose.Select("a", "b") | preprocessing.StandardScaler(),
            "by": "shop",
        }
    ],
    "Prefixer": lambda: [{"prefix": "p_"}],
    "Suffixer": lambda: [{"suffix": "_s"}],
    "Renamer": lambda: [{"mapping": {"a": "z"}}],
    "TargetTransformRegressor": lambda: [
        {"regressor": _linear(), "func": halve, "inverse_func": twice}
    ],
    "TargetMinMaxScaler": lambda: [{"regressor": _linear()}],
    "TargetStandardScaler": lambda: [{"regressor": _linear()}],
    "Agg": lambda: [
        {"on": "a", "by": "shop", "how": stats.Mean()},
        {"on": "a", "by": ["shop", "colour"], "how": utils.Rolling(stats.Var, window_size=9)},
        {"on": "a", "by": "shop", "how": _week()},
        {"on": "a", "by": None, "how": stats.Max()},
    ],
    "TargetAgg": lambda: [
        {"by": "shop", "how": stats.BayesianMean(prior=3, prior_weight=1)},
        {"by": "shop", "how": _week()},
    ],
    "BagOfWords": lambda: [{}, {"on": "text"}, {"on": "text", "ngram_range": (1, 2)}],
    "TFIDF": lambda: [{}, {"on": "text"}, {"on": "text", "stop_words": {"bad"}}],
    "PoissonInclusion": lambda: [{"p": 0.3, "seed": 1}],
    "RandomOverSampler": lambda: [{"classifier": _logistic(), **_BALANCE}],
    "RandomUnderSampler": lambda: [{"classifier": _logistic(), **_BALANCE}],
    "RandomSampler": lambda: [{"classifier": _logistic(), **_BALANCE}],
    "SuccessiveHalvingClassifier": lambda: [
        {
            "models": [
                linear_model.LogisticRegression(optim.SGD(rate)) for rate in (0.001, 0.01, 0.1)
            ],
            "metric": metrics.Accuracy(),
            "budget": 300,
        }
    ],
    "PreviousImputer": lambda: [{}],
    "StatImputer": lambda: [
        {},
        {"imputers": ("a", stats.Mean())},
        {"imputers": ("a", stats.Shift(1))},
    ],
    "OneHotEncoder": lambda: [{}, {"drop_zeros": True}, {"drop_first": True}],
    "Select": lambda: [{"keys": ("a", "b")}],
    "Discard": lambda: [{"keys": ("c",)}],
    "SelectType": lambda: [{"types": (float,)}],
    "TransformerUnion": lambda: [
        {"transformers": (preprocessing.StandardScaler(), feature_extraction.PolynomialExtender())}
    ],
    "TransformerProduct": lambda: [
        {"transformers": (compose.Select("a", "b"), compose.Select("c", "d"))}
    ],
    "Pipeline": lambda: [
        {"steps": (compose.SelectType(float), preprocessing.StandardScaler(), _logistic())}
    ],
}
_POSITIONAL = {
    "Select": "keys",
    "Discard": "keys",
    "SelectType": "types",
    "TransformerUnion": "transformers",
    "TransformerProduct": "transformers",
    "Pipeline": "steps",
}


def _week() -> utils.TimeRolling:
    return utils.TimeRolling(stats.Mean, period=dt.timedelta(days=7))


def _build(cls: type, arguments: dict[str, Any]) -> Any:
    arguments = dict(arguments)
    if cls.__name__ in _POSITIONAL:
        return cls(*arguments.pop(_POSITIONAL[cls.__name__]), **arguments)
    if cls.__name__ == "StatImputer" and "imputers" in arguments:
        return cls(arguments["imputers"])
    _set_seeds(arguments)
    if "seed" in inspect.signature(cls).parameters:
        arguments.setdefault("seed", 1)
        arguments["seed"] = 1 if arguments["seed"] is None else arguments["seed"]
    return cls(**arguments)


def _set_seeds(value: Any) -> None:
    """Set the seeds that are unset within what a model is built of."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, base.Base) and getattr(item, "seed", 1) is None:
                value[name] = item.clone({"seed": 1})
            elif isinstance(item, compose.Pipeline):
                _set_seeds(item.steps)
            else:
                _set_seeds(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _set_seeds(item)


_STEPS = (
    base.Transformer,
    base.SupervisedTransformer,
    getattr(base, "AnomalyFilter", base.Transformer),  # of River 0.24 and later
)


def _as_model(step: Any, cls: type) -> tuple[Task, Any]:
    """Return a task, and the estimator as its model or as a step before one."""
    name = cls.__name__
    supervised = (base.Classifier, base.Regressor)
    if isinstance(step, compose.Pipeline):
        return "binary", step
    if isinstance(step, supervised) or not isinstance(
        step,
        _STEPS,
    ):
        task: Task = "regression" if isinstance(step, base.Regressor) else "binary"
        numbers = compose.SelectType(float)
        return task, numbers | step
    if name in ("BagOfWords", "TFIDF"):
        model = naive_bayes.MultinomialNB() if name == "BagOfWords" else _logistic()
        if step.on is None:
            return "binary", compose.FuncTransformer(take_text) | step | model
        return "binary", step | model
    if name in ("Agg", "TargetAgg"):
        return "regression", step | preprocessing.StandardScaler() | _linear()
    if name == "Grouper":
        return "binary", compose.Select("a", "b", "shop") | step | _logistic()
    if name == "OneHotEncoder":
        return "binary", compose.Select("shop", "colour") | step | _logistic()
    if name in ("FeatureHasher", "OrdinalEncoder", "PreviousImputer"):
        return "binary", compose.Discard("text") | step | compose.SelectType(float, int) | (
            _logistic()
        )
    numbers = compose.SelectType(float)
    if name == "LDA":
        return "binary", feature_extraction.BagOfWords(on="text") | step | _logistic()
    if name == "GapEncoder":
        return "binary", compose.FuncTransformer(take_text) | step | _logistic()
    if isinstance(step, base.SupervisedTransformer):
        return "regression", numbers | step | _linear()
    return "binary", numbers | step | _logistic()


def catalogue() -> Iterator[Entry]:
    """Yield every public estimator of River that is not abstract, in each way it is built."""
    for module in importlib.import_module("river.api").__all__:
        if module == "base":
            continue
        members = inspect.getmembers(importlib.import_module(f"river.{module}"), inspect.isclass)
        for name, cls in members:
            if not issubclass(cls, base.Estimator) or inspect.isabstract(cls):
                continue
            own = _ARGUMENTS.get(name, lambda cls=cls: list(cls._unit_test_params()))
            for number in range(len(own())):

                def make(
                    cls: type = cls,
                    own: Callable[[], list[dict[str, Any]]] = own,
                    number: int = number,
                ) -> Any:
                    return _as_model(_build(cls, own()[number]), cls)[1]

                try:
                    task = _as_model(_build(cls, own()[number]), cls)[0]
                except Exception:
                    task = "binary"
                yield Entry(f"{module}.{name}" + (f"-{number}" if number else ""), cls, task, make)


_WORDS = ["good", "fine", "great", "cheap", "bad", "late", "broken", "slow"]


def stream(task: Task, n: int, *, seed: int = 7) -> list[Event]:
    """Return `n` events with numbers, categories, text and times; some without a label."""
    rng = random.Random(seed)
    events = []
    for i in range(n):
        x: Features = {name: rng.random() for name in "abcd"}
        x["shop"] = rng.choice("PQR")
        x["colour"] = rng.choice(["red", "green", "blue"])
        score = float(x["a"]) + 2 * float(x["b"]) + (x["shop"] == "Q") - 1.8
        words = rng.choices(_WORDS[:4] if score > 0 else _WORDS[4:], k=3)
        x["text"] = " ".join(words + rng.choices(_WORDS, k=2))
        y: Label | None = score > 0 if task == "binary" else 5 + score
        if task == "multiclass":
            y = "low" if score < -0.3 else "mid" if score < 0.3 else "high"
        if i % 9 == 8:
            y = None
        events.append(Event(x=x, y=y, ts=1.7e9 + i * 40_000.0))
    return events
