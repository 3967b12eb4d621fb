"""Predict and learn in one pass for some of River's models: the same arithmetic in fewer calls.

River asks a model for a prediction and then to learn, and computes much twice: the dot product of a
linear model, the path down a tree, the votes in its leaf. Here each is computed once, on River's
objects and in the order of River's operations. So every weight and every leaf equals River's, bit
for bit (`tests/engine/learners/test_fused.py`; trees measure their size by their content, see
`learners.sizes`). Any model of another class or version goes through River's methods.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import river
from river import linear_model, optim, tree
from river.tree.nodes.branch import NumericBinaryBranch
from river.tree.nodes.htc_nodes import LeafNaiveBayesAdaptive
from river.tree.nodes.leaf import HTLeaf
from river.tree.utils import do_naive_bayes_prediction
from river.utils.math import clamp
from river.utils.vectordict import VectorDict

from midstream.engine.events.event import Features, Label

__all__ = ["Loop", "Step", "fused_loop", "fused_step"]

Loop: TypeAlias = Callable[[Sequence[Features], Sequence[Label | None], list[float]], None]
"""Predicts events in order, learns those with a label, and appends the prediction of each finished
event to the list: the probability of True, or the number."""

Step: TypeAlias = Callable[[Features, Label], dict[Label, float]]
"""Predicts one event, learns it, and returns the probabilities that it predicted."""

_WRITTEN_FOR = ("0.26",)


def _is_known() -> bool:
    return ".".join(river.__version__.split(".")[:2]) in _WRITTEN_FOR


def fused_step(model: Any) -> Step | None:
    """Return the step for a model; None if there is none for its exact class."""
    return _tree(model) if type(model) is tree.HoeffdingTreeClassifier and _is_known() else None


def fused_loop(model: Any) -> Loop | None:
    """Return the loop for a model; None if there is none for its exact class."""
    losses = {
        linear_model.LogisticRegression: optim.losses.Log,
        linear_model.LinearRegression: optim.losses.Squared,
    }
    if (
        type(model) not in losses
        or not _is_known()
        or type(model.loss) is not losses[type(model)]
        or type(model.optimizer) is not optim.SGD
        or type(model.optimizer.lr) is not optim.schedulers.Constant
        or type(model.intercept_lr) is not optim.schedulers.Constant
        or type(model.initializer) is not optim.initializers.Zeros
        or model.l1 != 0
    ):
        return None
    return _linear(model)


def _linear(model: Any) -> Loop:
    weights, optimizer, initializer = model._weights, model.optimizer, model.initializer
    dot, exp, from_scaled = weights.dot, math.exp, VectorDict.from_scaled
    logistic = type(model) is linear_model.LogisticRegression
    weight_pos, weight_neg = (
        (model.loss.weight_pos, model.loss.weight_neg) if logistic else (1.0, 1.0)
    )
    clip, l2 = model.clip_gradient, model.l2

    def run(
        dicts: Sequence[Features], labels: Sequence[Label | None], predicted: list[float]
    ) -> None:
        rate, intercept_rate = optimizer.lr.learning_rate, model.intercept_lr.learning_rate
        for x, y in zip(dicts, labels, strict=True):
            guess = raw = dot(x) + model.intercept
            if logistic:
                guess = 0 if raw < -30 else 1 if raw > 30 else 1 / (1 + exp(-raw))
            if y is None:
                predicted.append(guess)
                continue
            if logistic:
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
            else:
                slope = 2 * (raw - y)
            slope = float(slope if -clip <= slope <= clip else clamp(slope, -clip, clip))
            view = VectorDict(weights, initializer, x)
            gradient = from_scaled(x, slope)
            if l2:
                gradient.iadd_scaled(view, l2)
            model.intercept -= intercept_rate * slope
            view.isub_scaled(gradient, rate)
            optimizer.n_iterations += 1
            predicted.append(guess)

    return run


def _tree(model: Any) -> Step:
    def step(x: Features, y: Label) -> dict[Label, float]:
        parent, branch, leaf = None, None, model._root
        while type(leaf) is NumericBinaryBranch and leaf.feature in x:
            parent, branch = leaf, 0 if x[leaf.feature] <= leaf.threshold else 1
            leaf = parent.children[branch]
        if type(leaf) is not LeafNaiveBayesAdaptive or leaf.splitters is None:
            proba: dict[Label, float] = model.predict_proba_one(x)
            model.learn_one(x, y)
            return proba

        proba = dict.fromkeys(sorted(model.classes), 0.0)
        stats = leaf.stats
        total = sum(stats.values())
        scale = 1 / total if total else 1.0
        majority = {label: weight * scale for label, weight in stats.items()}
        bayes = do_naive_bayes_prediction(x, stats, leaf.splitters)
        by_bayes = leaf._nb_correct_weight >= leaf._mc_correct_weight
        proba.update(bayes if by_bayes else majority)

        model.classes.add(y)
        model._train_weight_seen_by_model += 1.0
        if not stats or max(majority, key=majority.__getitem__) == y:
            leaf._mc_correct_weight += 1.0
        if bayes and max(bayes, key=bayes.__getitem__) == y:
            leaf._nb_correct_weight += 1.0
        HTLeaf.learn_one(leaf, x, y, w=1.0, tree=model)
        if model._growth_allowed:
            if leaf.depth >= model.max_depth:
                leaf.deactivate()
                model._n_active_leaves -= 1
                model._n_inactive_leaves += 1
            else:
                seen = leaf.total_weight
                if seen - leaf.last_split_attempt_at >= model.grace_period:
                    model._attempt_to_split(leaf, parent, branch)
                    leaf.last_split_attempt_at = seen
        if model._train_weight_seen_by_model % model.memory_estimate_period == 0:
            model._estimate_model_size()
        return proba

    return step
