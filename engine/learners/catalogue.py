"""The learners that a config can name without any code, and their options."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from midstream.engine.events.event import Task

__all__ = ["BUILTIN", "Builtin", "make_builtin", "options_of"]


class Builtin(NamedTuple):
    """A built-in learner: the task it is for, what it is, and how to make it, by import path.

    `without` are options of the class that are not for this task.
    """

    task: Task
    summary: str
    module: str
    cls: str
    without: tuple[str, ...] = ()


BUILTIN: dict[str, Builtin] = {
    "logistic": Builtin(
        "binary",
        "logistic regression in a compiled loop: scaling, hashed categories, SGD and others",
        "midstream.engine.learners.linear",
        "LinearLearner",
    ),
    "linear": Builtin(
        "regression",
        "linear regression in a compiled loop: scaling, hashed categories, SGD and others",
        "midstream.engine.learners.linear",
        "LinearLearner",
        without=("threshold", "class_weights"),
    ),
    "softmax": Builtin(
        "multiclass",
        "softmax regression in a compiled loop: scaling, hashed categories, SGD and others",
        "midstream.engine.learners.softmax",
        "SoftmaxLearner",
    ),
}


def _class_of(name: str) -> Any:
    return getattr(importlib.import_module(BUILTIN[name].module), BUILTIN[name].cls)


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a built-in learner, with their defaults."""
    parameters = inspect.signature(_class_of(name)).parameters.values()
    return {
        p.name: {} if p.default is None else p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in BUILTIN[name].without
    }


def make_builtin(name: str, options: Mapping[str, Any]) -> Any:
    """Return a new learner.

    Raises
    ------
    ValueError
        If an option is out of range; the message begins with its name.
    """
    return _class_of(name)(BUILTIN[name].task, **options)
