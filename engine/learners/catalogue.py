"""The catalogue of learners: those that a config can name, and what loads each kind.

Other packages add learners by entry points of the group ``midstream.learners``: a name, and a class
that fulfils `Learner`. Its constructor takes the task and options with defaults, its `kind` is that
name, and it has `from_state`.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from midstream.engine.basics import plugins
from midstream.engine.events.event import Task

__all__ = [
    "BUILTIN",
    "Builtin",
    "class_of",
    "class_of_kind",
    "is_named",
    "make_named",
    "named_learners",
    "options_of",
]


class Builtin(NamedTuple):
    """A built-in learner: its task, a description, and the import path to make it.

    `kind` is the kind of its state; `without` names options that the task does not have.
    """

    task: Task
    summary: str
    kind: str
    module: str
    cls: str
    without: tuple[str, ...] = ()


BUILTIN: dict[str, Builtin] = {
    "logistic": Builtin(
        "binary",
        "logistic regression in a compiled loop: scaling, hashed categories, SGD and others",
        "linear",
        "midstream.engine.learners.linear",
        "LinearLearner",
    ),
    "linear": Builtin(
        "regression",
        "linear regression in a compiled loop: scaling, hashed categories, SGD and others",
        "linear",
        "midstream.engine.learners.linear",
        "LinearLearner",
        without=("threshold", "class_weights"),
    ),
    "softmax": Builtin(
        "multiclass",
        "softmax regression in a compiled loop: scaling, hashed categories, SGD and others",
        "softmax",
        "midstream.engine.learners.softmax",
        "SoftmaxLearner",
    ),
}


def named_learners() -> list[str]:
    """Return the names that a config may give instead of a factory."""
    added = (name for name in plugins.names("midstream.learners") if name not in BUILTIN)
    return [*BUILTIN, *added]


def is_named(learner: str) -> bool:
    """Return whether a config's `model.learner` is such a name, and not a factory."""
    return learner in BUILTIN or (":" not in learner and learner in named_learners())


def class_of(name: str) -> Any:
    """Return the class of a named learner.

    Raises
    ------
    PluginError
        If another package declares it and it cannot be imported, or its `kind` differs.
    """
    if name in BUILTIN:
        return getattr(importlib.import_module(BUILTIN[name].module), BUILTIN[name].cls)
    found = plugins.load("midstream.learners", name)
    if getattr(found, "kind", None) != name:
        raise plugins.PluginError(f"learner {name!r}: its class has to have kind = {name!r}")
    return found


def class_of_kind(kind: str) -> Any:
    """Return the class that loads states of a kind; None if there is none."""
    for name, builtin in BUILTIN.items():
        if builtin.kind == kind:
            return class_of(name)
    return class_of(kind) if kind in named_learners() else None


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a named learner, with their defaults."""
    without = BUILTIN[name].without if name in BUILTIN else ()
    parameters = inspect.signature(class_of(name)).parameters.values()
    return {
        p.name: {} if p.default is None else p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in without
    }


def make_named(name: str, task: Task, options: Mapping[str, Any]) -> Any:
    """Make a named learner for a task.

    Raises
    ------
    ValueError
        If an option is out of range; the message begins with its name.
    """
    return class_of(name)(BUILTIN[name].task if name in BUILTIN else task, **options)
