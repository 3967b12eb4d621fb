"""River's linear models, predict and learn in one loop: the same arithmetic in fewer calls.

River asks a linear model for a prediction and then to learn, and computes the same dot product for
both, through a dozen small methods. Here both are one loop over River's own weights, in the order
of River's own operations, so every weight is the one that River would have, bit for bit
(`tests/engine/test_fused.py`). Whatever is not exactly what these loops were written for goes
through River's methods.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import river
from river import linear_model, optim
from river.utils.math import clamp
from river.utils.vectordict import VectorDict

from midstream.engine.events import Features, Label

__all__ = ["Fused", "fuse"]

Fused: TypeAlias = Callable[[Sequence[Features], Sequence[Label | None], list[float]], None]
"""Predicts events and learns those with a label, in order, and appends to the list what it
predicted for each that is done: the probability of True, or the number."""

_WRITTEN_FOR = ("0.26",)


def fuse(model: Any) -> Fused | None:
    """Return the loop for a model; None if there is none for just this kind."""
    if ".".join(river.__version__.split(".")[:2]) not in _WRITTEN_FOR:
        return None
    losses = {
        linear_model.LogisticRegression: (optim.losses.Log, _logistic),
        linear_model.LinearRegression: (optim.losses.Squared, _linear),
    }
    loss, loop = losses.get(type(model), (None, None))
    if (
        loop is None
        or type(model.loss) is not loss
        or type(model.optimizer) is not optim.SGD
        or type(model.optimizer.lr) is not optim.schedulers.Constant
        or type(model.intercept_lr) is not optim.schedulers.Constant
        or type(model.initializer) is not optim.initializers.Zeros
        or model.l1 != 0
    ):
        return None
    return loop(model)


def _logistic(model: Any) -> Fused:
    weights, optimizer, initializer = model._weights, model.optimizer, model.initializer
    dot, exp, from_scaled = weights.dot, math.exp, VectorDict.from_scaled
    weight_pos, weight_neg = model.loss.weight_pos, model.loss.weight_neg
    clip, l2 = model.clip_gradient, model.l2

    def run(
        dicts: Sequence[Features], labels: Sequence[Label | None], predicted: list[float]
    ) -> None:
        rate, intercept_rate = optimizer.lr.learning_rate, model.intercept_lr.learning_rate
        for x, y in zip(dicts, labels, strict=True):
            raw = dot(x) + model.intercept
            proba = 0 if raw < -30 else 1 if raw > 30 else 1 / (1 + exp(-raw))
            if y is None:
                predicted.append(proba)
                continue
            if y == 0:
                sign, weight = -1, weight_neg
            else:
                sign, weight = int(y), weight_pos
            z = raw * sign
            if z > 18.0:
                slope = weight * exp(-z) * -sign
            elif z < -18.0:
                slope = weight * -sign
            else:
                slope = weight * -sign / (exp(z) + 1.0)
            slope = float(slope if -clip <= slope <= clip else clamp(slope, -clip, clip))
            view = VectorDict(weights, initializer, x)
            gradient = from_scaled(x, slope)
            if l2:
                gradient.iadd_scaled(view, l2)
            model.intercept -= intercept_rate * slope
            view.isub_scaled(gradient, rate)
            optimizer.n_iterations += 1
            predicted.append(proba)

    return run


def _linear(model: Any) -> Fused:
    weights, optimizer, initializer = model._weights, model.optimizer, model.initializer
    dot, from_scaled = weights.dot, VectorDict.from_scaled
    clip, l2 = model.clip_gradient, model.l2

    def run(
        dicts: Sequence[Features], labels: Sequence[Label | None], predicted: list[float]
    ) -> None:
        rate, intercept_rate = optimizer.lr.learning_rate, model.intercept_lr.learning_rate
        for x, y in zip(dicts, labels, strict=True):
            raw = dot(x) + model.intercept
            if y is None:
                predicted.append(raw)
                continue
            slope = 2 * (raw - y)
            slope = float(slope if -clip <= slope <= clip else clamp(slope, -clip, clip))
            view = VectorDict(weights, initializer, x)
            gradient = from_scaled(x, slope)
            if l2:
                gradient.iadd_scaled(view, l2)
            model.intercept -= intercept_rate * slope
            view.isub_scaled(gradient, rate)
            optimizer.n_iterations += 1
            predicted.append(raw)

    return run
