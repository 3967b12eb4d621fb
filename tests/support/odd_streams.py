"""Streams of odd values, classes, weights and gaps, and a learner for each: all by a seed.

A stream is made of what connectors let through: finite numbers, texts, truth values. What they
and `Trainer.step_one` have to make of NaN, null and infinities is in `raw`.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from river import linear_model, optim, preprocessing
from stream_models import (
    MULTICLASS_STYLES,
    STYLES,
    ArrayLearner,
    Decider,
    Moody,
    MoodyRegressor,
    Weighted,
)
from zoo import ZOO

from midstream.engine.events.event import Event, Features, Label, Task
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.learners.softmax import SoftmaxLearner

__all__ = ["MODULES", "Case", "Stream", "make_stream", "raw"]

MODULES = ("stream_models",)
NAMES = ("age_of_domain", "ip_in_url", "is_popular", "you_gov", "f4", "f5", "größe", "f.7", "f 8",
         "f9", "f10", "f11")  # fmt: skip
_MOST_CLASSES = {"OneVsOne": 6, "OutputCode": 6, "OneVsRest": 12, "Softmax": 40, "LazyKNN": 40}
_ODD_NUMBERS = (
    0.0, -0.0, 1e300, -1e300, 1e160, 5e-324, 2.3e-308, 1e-160, 2**53 + 1, 2**63 - 1, -(2**60) - 1,
    1e308, 1, True, False,
)  # fmt: skip
_TEXTS = ("", " ", "a", "B", "ü", "日本", "x" * 40, "1", "nan", "NA", "true", "\u0000", "\ud7ff")
_WEIGHTS = (0.0, 1.0, 1.0, 1.0, 0.5, 2.0, 3, 1e-12, 1e6, 5e-324)


class Case(msgspec.Struct):
    """A learner to make; `river` makes the model that says what is right, where there is one.

    `exact`: to the last bit. `classes`: the most classes that are put to it.
    """

    name: str
    task: Task
    make: Callable[[], Any]
    river: Callable[[], Any] | None = None
    exact: bool = True
    classes: int = 130


class Stream(msgspec.Struct):
    """A seeded stream; `settings` are those of a `Trainer` and of its reservoir."""

    seed: int
    case: Case
    events: list[Event]
    settings: dict[str, Any]


def _numeric(rng: random.Random, kind: str, scale: float, shift: float, at: float) -> Any:
    if kind == "constant":
        return shift
    if kind == "int":
        return rng.randint(-3, 3)
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "text":
        return rng.choice("abcde") + "é"
    if kind == "drift":
        return rng.gauss(shift * (1 if at < 0.5 else -2), scale)
    return rng.gauss(shift, scale)


def _features(rng: random.Random, n: int) -> list[Features]:
    """Return n dicts of features: some appear late, some vanish, some are odd."""
    texts = rng.random() < 0.25
    kinds = ["float", "float", "float", "int", "bool", "constant", "drift"]
    columns = []
    for name in NAMES[: rng.choice([1, 2, 4, 7, 8, 9, 12])]:
        kind = "text" if texts and rng.random() < 0.4 else rng.choice(kinds)
        scale, shift = 10.0 ** rng.randint(-3, 3), rng.choice([0.0, 0.0, 1.0, -50.0])
        first = rng.choice([0.0, 0.0, 0.0, rng.random()])
        last = rng.choice([1.0, 1.0, 1.0, rng.random()])
        gaps = rng.choice([0.0, 0.0, 0.1, 0.7])
        columns.append((name, kind, scale, shift, first, last, gaps))
    odd = rng.choice([0.0, 0.0, 0.0, 0.01, 0.1])
    words = rng.choice([0.0, 0.0, 0.0, 0.02])
    rows: list[Features] = []
    for i in range(n):
        at = i / n
        x: Features = {}
        for name, kind, scale, shift, first, last, gaps in columns:
            value = _numeric(rng, kind, scale, shift, at)
            if not first <= at <= last or rng.random() < gaps:
                continue
            if rng.random() < odd:
                value = rng.choice(_ODD_NUMBERS)
            elif rng.random() < words:
                value = rng.choice(_TEXTS)
            x[name] = value
        if not x:
            x[columns[0][0]] = _numeric(rng, columns[0][1], 1.0, 0.0, at)
        if rng.random() < 0.1:
            x = dict(sorted(x.items(), key=lambda _: rng.random()))
        rows.append(x)
    return rows


def _score(x: Features) -> float:
    return sum(
        math.tanh(v) * (1 + len(k) % 3)
        for k, v in x.items()
        if isinstance(v, int | float) and abs(v) < 1e9
    )


def _labels(rng: random.Random, case: Case, xs: list[Features]) -> list[Label | None]:
    noise = rng.choice([0.1, 1.0, 3.0])
    scores = [_score(x) + rng.gauss(0, noise) for x in xs]
    labels: list[Label | None]
    if case.task == "binary":
        limit = rng.choice([0.0, 0.0, 2.0, 1e9])
        labels = [score > limit for score in scores]
        if rng.random() < 0.1:
            labels = [int(y) for y in labels if y is not None]
    elif case.task == "regression":
        scale, shift = rng.choice([1.0, 1.0, 1e-3, 1e3]), rng.choice([0.0, 0.0, 10.0])
        labels = [score * scale + shift for score in scores]
        if rng.random() < 0.1:
            labels = [round(y) for y in labels if y is not None]
        if rng.random() < 0.05:
            labels = [7.5] * len(xs)
        if rng.random() < 0.05:
            labels[rng.randrange(len(xs))] = rng.choice([1e160, -1e300, 1e100])
    else:
        labels = _classes(rng, case, scores)
    gaps = rng.choice([0.0, 0.0, 0.1, 0.5, 0.98])
    late = rng.choice([0, 0, 0, 10])  # nothing has a label at first
    return [None if i < late or rng.random() < gaps else y for i, y in enumerate(labels)]


def _classes(rng: random.Random, case: Case, scores: list[float]) -> list[Label | None]:
    """Return labels of 1 to 130 classes, some of which come late, most of them rare."""
    k = min(case.classes, rng.choice([1, 2, 3, 7, 8, 9, 15, 16, 17, 20, 24, 33, 130]))
    kind = rng.choice(["text", "text", "text", "int", "bool", "spelled", "mixed"])
    if kind == "bool":
        k = min(k, 2)
    skew = rng.choice([1.0, 3.0])
    labels: list[Label | None] = []
    for i, score in enumerate(scores):
        there = max(1, min(k, int(k * (2.0 * i + 1) / len(scores)) + 1))
        u = rng.random() if rng.random() < 0.5 else 0.5 + math.atan(score) / math.pi
        c = min(there - 1, int(there * u**skew))
        named: dict[str, Label] = {
            "text": f"k{c}", "int": c - 1, "bool": c == 1, "spelled": str(c),
            "mixed": rng.choice([str(c), c, c == 1, f"k{c}", str(c), str(c)]),
        }  # fmt: skip
        labels.append(named[kind])
    return labels


def _linear(rng: random.Random, task: Task) -> Case:
    """A built-in learner with options, and the model of River that it equals, if there is one."""
    optimizer = rng.choice(["sgd", "sgd", "adagrad", "adam", "ftrl"])
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "rate": rng.choice([0.01, 0.05, 0.5, 1e-4]),
        "scale": rng.random() < 0.7,
        "bits": rng.choice([1, 3, 10, 18]),
        "clip": rng.choice([1e12, 1.0, 0.01]),
        "l2": rng.choice([0.0, 0.0, 1e-3]),
    }
    if optimizer in ("sgd", "ftrl"):
        options["l1"] = rng.choice([0.0, 0.0, 1e-3, 0.3])
    if task != "multiclass":
        options["intercept_rate"] = rng.choice([0.01, 0.0, 0.3])
    if task == "binary" and rng.random() < 0.3:
        options["threshold"] = rng.choice([0.1, 0.5, 0.9])
    if task != "regression" and rng.random() < 0.3:
        names = ["false", "true"] if task == "binary" else ["k0", "k1", "0", "true"]
        options["class_weights"] = {name: rng.choice([0.01, 0.5, 10.0]) for name in names}
    if optimizer == "adam":
        options["beta_1"] = rng.choice([0.9, 0.5])
    if task == "multiclass":
        return Case(
            f"softmax {options}",
            task,
            lambda: SoftmaxLearner(**options),
            _softmax(options),
            exact=False,
        )
    return Case(
        f"{task} linear {options}",
        task,
        lambda: LinearLearner(task, **options),
        _regression(task, options),
        exact=False,
    )


def _regression(task: Task, options: dict[str, Any]) -> Callable[[], Any] | None:
    if options["optimizer"] not in ("sgd", "adagrad") or options.get("l1"):
        return None
    kind = (
        linear_model.LinearRegression if task == "regression" else linear_model.LogisticRegression
    )
    rule = optim.SGD if options["optimizer"] == "sgd" else optim.AdaGrad

    def make() -> Any:
        model = kind(
            rule(options["rate"]), l2=options["l2"], intercept_lr=options["intercept_rate"],
            clip_gradient=options["clip"],
        )  # fmt: skip
        pipeline = preprocessing.StandardScaler() | model if options["scale"] else model
        if task == "regression":
            return pipeline
        weights = options.get("class_weights", {})
        factors = {y: weights[str(y).lower()] for y in (False, True) if weights}
        return Weighted(pipeline, options.get("threshold", 0.5), factors)

    return make


def _softmax(options: dict[str, Any]) -> Callable[[], Any] | None:
    plain = options["optimizer"] == "sgd" and not options.get("l1") and options["clip"] == 1e12
    if not plain or "class_weights" in options:
        return None

    def make() -> Any:
        model = linear_model.SoftmaxRegression(optim.SGD(options["rate"]), l2=options["l2"])
        return preprocessing.StandardScaler() | model if options["scale"] else model

    return make


def _user(rng: random.Random, task: Task) -> Case:
    if task == "multiclass":
        style = rng.choice(MULTICLASS_STYLES)
        return _same(f"Decider({style})", task, lambda: Decider(style))
    raises, nans = rng.choice([(0.05, 0.0), (0.0, 0.1), (0.03, 0.03), (0.0, 1.0)])
    what = rng.random()
    if what < 0.25:
        every, decide = rng.choice([0, 0, 7]), rng.choice([0.5, 0.1])
        return Case("ArrayLearner", task, lambda: ArrayLearner(task, every, decide))
    if task == "regression":
        value = rng.choice([math.nan, math.inf, -math.inf])
        name = f"MoodyRegressor({raises}, {nans}, {value})"
        return _same(name, task, lambda: MoodyRegressor(raises, nans, value))
    if what < 0.6:
        style = rng.choice(STYLES)
        return _same(f"Decider({style})", task, lambda: Decider(style))
    return _same(f"Moody({raises}, {nans})", task, lambda: Moody(raises, nans))


def _same(name: str, task: Task, make: Callable[[], Any]) -> Case:
    return Case(name, task, make, make)


def _case(rng: random.Random) -> Case:
    what = rng.random()
    if what < 0.5:
        name = rng.choice(list(ZOO))
        task, make = ZOO[name]
        return Case(name, task, make, make, classes=_MOST_CLASSES.get(name, 130))
    task = rng.choice(("binary", "multiclass", "regression"))
    return _linear(rng, task) if what < 0.75 else _user(rng, task)


def make_stream(seed: int) -> Stream:
    """Return the stream of a seed."""
    rng = random.Random(f"stream {seed}")
    case = _case(rng)
    n = rng.choice([0, 1, 2, 7, 30, 60, 60, 100, 150])
    xs = _features(rng, n)
    labels = _labels(rng, case, xs) if n else []
    if (
        case.name == "OneHot"
    ):  # which keeps sets of its values: see `midstream.engine.state.kinds.sets`
        xs = [
            {k: round(v) if type(v) is float and abs(v) < 1e9 else v for k, v in x.items()}
            for x in xs
        ]
    weighted = rng.random() < 0.3
    events = [
        Event(
            x=x,
            y=y,
            weight=float(rng.choice(_WEIGHTS)) if weighted else 1.0,
            ts=float(i) if rng.random() < 0.9 else None,
        )
        for i, (x, y) in enumerate(zip(xs, labels, strict=True))
    ]
    settings = {
        "window": rng.choice([1, 5, 20, 1000]),
        "fading": rng.choice([0.999, 0.9, 0.5, 1.0, 0.001]),
        "drift": rng.choice([("adwin",), ("adwin", "page_hinkley"), ()]),
        "replay": rng.choice([0, 1, 10, 1000]),
        "max_bytes": rng.choice([2**24, 2**24, 2**24, 5_000, 700, 0]),
    }
    return Stream(seed, case, events, settings)


def raw(rng: random.Random, x: Features) -> dict[str, Any]:
    """Return features as Python may have them: numbers of NumPy's, missing ones as NaN or None."""
    given: dict[str, Any] = {
        k: np.float64(v) if type(v) is float and rng.random() < 0.2 else v for k, v in x.items()
    }
    for name in ("gone", "f.7", "f11"):
        if name not in given and rng.random() < 0.3:
            given[name] = rng.choice([None, math.nan, np.nan, np.float32("nan")])
    return given
