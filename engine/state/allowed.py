"""The names that a saved state may hold: an exact list outside River, and rules inside it.

A state file names classes (of its objects) and functions (as values). It can only name them:
nothing is called while it is read. But what it names is used later, so the list is short. An
allow-list by prefix would be none at all: ``river.datasets.base:os.system`` is a shell.
"""

import builtins
import collections
import copy
import datetime as dt
import functools
import importlib
import math
import numbers
import operator
import random
import statistics
import sys
import types
from collections.abc import Collection
from typing import Any

import numpy as np

from midstream.engine.basics.errors import ExpectedError

__all__ = ["Allowed", "EncodingError", "stable_name"]


class EncodingError(ExpectedError, ValueError):
    """A value cannot be encoded or decoded; the message says which and where, on one line."""

    prefix = "the state cannot be saved or loaded: "


_MOVED = {
    "events": {
        "events.event": "Alarm Event Prediction Rejected",
        "events.batch": "EventBatch Targets",
        "events.columns": "Categories FeatureColumns TextColumn Texts",
        "events.predictions": "Predictions Table",
    },
    "compiled": {"learners.linear": "LinearLearner"},
    "dataset": {"shard.dataset": "DataSet"},
    "detectors": {"drift.detectors": "ADWIN Detection PageHinkley"},
    "drift": {"drift.monitor": "DriftMonitor"},
    "learner": {"learners.learner": "RiverLearner"},
    "prequential": {"metrics.prequential": "Prequential"},
    "replay": {"training.replay": "Reservoir"},
    "slots": {"learners.slots": "Rows Slots"},
    "softmax": {"learners.softmax": "SoftmaxLearner"},
    "trainer": {"training.trainer": "Step Trainer"},
}
"""Module of version 0.1 -> where its classes are now."""

_PRESENT = {
    f"midstream.engine.{old}:{name}": f"midstream.engine.{new}:{name}"
    for old, homes in _MOVED.items()
    for new, names in homes.items()
    for name in names.split()
}
_STABLE = {present: stable for stable, present in _PRESENT.items()}


def stable_name(name: str) -> str:
    """Return the name that states have for a class of ours ("module:name"), wherever it is now.

    So a state saved before the class moved can be read, and keeps its digest.
    """
    return _STABLE.get(name, name)


def _outside() -> dict[str, object]:
    """Return what may be named outside River: pure functions and the builders of values."""
    listed: dict[Any, str] = {
        builtins: "abs bool bytes complex dict float frozenset int len list max min round set str "
        "sum tuple",
        collections: "Counter OrderedDict defaultdict deque",
        copy: "copy deepcopy",
        dt: "date datetime timedelta timezone",
        functools: "partial",
        math: "ceil cos erf exp expm1 fabs floor hypot isnan log log10 log1p log2 pow sin sqrt tan "
        "tanh",
        np: "abs array cos exp expm1 float32 float64 int64 log log10 log1p log2 maximum mean "
        "minimum ndarray ones sign sin sqrt tanh zeros",
        numbers: "Integral Number Real",
        operator: "add mul sub truediv",
        random: "Random",
        statistics: "NormalDist fmean mean median",
    }
    found = {
        f"{module.__name__}:{name}": getattr(module, name)
        for module, names in listed.items()
        for name in names.split()
    }
    for name in ("lower", "strip", "title", "upper"):
        found[f"builtins:str.{name}"] = getattr(str, name)
    return found


_OUTSIDE = _outside()
_NAME_OUTSIDE = {id(value): name for name, value in _OUTSIDE.items()}

# Modules that read files, use the network or run whole experiments; no model holds one.
_DENIED = {"api", "bandit", "checks", "compat", "datasets", "evaluate", "stream"}
# Exceptions, by exact name: the policies with which model selection chooses models.
_POLICIES = {
    "river.bandit.bayes_ucb:BayesUCB",
    "river.bandit.epsilon_greedy:EpsilonGreedy",
    "river.bandit.exp3:Exp3",
    "river.bandit.random:RandomPolicy",
    "river.bandit.thompson:ThompsonSampling",
    "river.bandit.ucb:UCB",
}
# Methods of their own that these policies hold.
_POLICY_METHODS = {"river.bandit.thompson:ThompsonSampling._clone_reward_obj_with_seed"}
# The type of Cython functions: each module of River before 0.25 has its own.
_CYTHON = "cython_function_or_method"
# Methods of Python's generator that models hold.
_DRAWS = {"expovariate", "gauss", "normalvariate", "uniform"}


def _in_river(module: str) -> bool:
    root, *parts = module.split(".")
    return (
        root == "river"
        and bool(parts)
        and parts[0] not in _DENIED
        and not any(part in ("conftest", "datasets") or part.startswith("test") for part in parts)
    )


def _is_class_of(value: object, module: str) -> bool:
    return isinstance(value, type) and value.__module__ == module


def _describe(value: object) -> str:
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", repr(value))
    kind = "class" if isinstance(value, type) else "function"
    return f"{kind} {module}.{name}" if module else f"{kind} {name}"


class Allowed:
    """The names that a state may hold.

    Inside River, in the modules given and in ``midstream.engine``, a name stands only for what that
    module defines under this very name: not for imports, and through dots only for a class's own
    members. In ``midstream.engine`` only public classes are allowed, and only as the classes of
    objects.

    Parameters
    ----------
    modules
        Further modules, by exact name: the user's, which hold the learners' factory.
    """

    def __init__(self, modules: Collection[str] = ()) -> None:
        self.modules = frozenset(modules)

    def name(self, value: Any, *, reference: bool = False) -> str:
        """Return the name of a class of objects, or of a class or function held as a value.

        Raises
        ------
        EncodingError
            If `find` would refuse the name, or find another object.
        """
        if reference and id(value) in _NAME_OUTSIDE:
            return _NAME_OUTSIDE[id(value)]
        module = getattr(value, "__module__", None)
        qualname = getattr(value, "__qualname__", "")
        if "<lambda>" in qualname:
            raise EncodingError(
                "a lambda cannot be saved; name the function in the factory's module"
            )
        if "<locals>" in qualname:
            raise EncodingError(
                f"{_describe(value)} cannot be saved; define it at the top of the factory's module"
            )
        name = f"{module}:{qualname}"
        if module and self._find(name, reference) is value:
            return stable_name(name)
        if str(module).startswith("river.") and not _in_river(str(module)):
            raise EncodingError(
                f"{_describe(value)} cannot be saved: that package is not a model's"
            )
        raise EncodingError(
            f"{_describe(value)} cannot be saved; a state may hold what River and the factory's "
            "module define, under its own name"
        )

    def find(self, name: str, *, reference: bool = False) -> Any:
        """Return the class with this name; as a reference, also a function.

        Raises
        ------
        EncodingError
            If a state may not name it.
        """
        if reference and name in _OUTSIDE:
            return _OUTSIDE[name]
        found = self._find(_PRESENT.get(name, name), reference)
        if found is None:
            module, _, path = _PRESENT.get(name, name).partition(":")
            gone = module in self.modules and not hasattr(sys.modules.get(module), path)
            raise EncodingError(
                f"a state may not name {name[:200]!r}"
                + f"; the module {module} has it no more: keep it there until the model was saved "
                "without it" * gone
            )
        return found

    def method(self, owner: Any, name: str) -> Any:
        """Return the method with this name, bound to `owner`: an object of a state, or a class.

        Raises
        ------
        EncodingError
            If it is no plain method, or not defined in River or in the modules given.
        """
        cls = owner if isinstance(owner, type) else type(owner)
        for base in cls.__mro__:
            if name in vars(base):
                method = vars(base)[name]
                if isinstance(owner, type):
                    method = method.__func__ if isinstance(method, classmethod) else None
                if isinstance(method, types.FunctionType) and (
                    (cls is random.Random and name in _DRAWS)
                    or (self._reach(method.__module__) and not name.startswith("__"))
                    or f"{method.__module__}:{method.__qualname__}" in _POLICY_METHODS
                ):
                    return types.MethodType(method, owner)
                break
        raise EncodingError(f"method {cls.__qualname__}.{name[:80]} cannot be saved")

    def _reach(self, module: str) -> bool:
        return _in_river(module) or module in self.modules

    def _find(self, name: str, reference: bool) -> Any:
        """Return the definition of `name`; None if there is none, or it is not allowed."""
        module, _, qualname = name.partition(":")
        ours = module.startswith("midstream.engine.") and not reference
        if not (ours or self._reach(module) or name in _POLICIES):
            return None
        owner: Any = sys.modules.get(module)
        if owner is None:
            try:
                owner = importlib.import_module(module)
            except (ImportError, ValueError):
                return None
        for i, part in enumerate(qualname.split(".")):
            # From the second part on, only through classes defined here; never by getattr, which
            # would follow bases, descriptors and modules.
            if part.startswith("_" if ours else "__") or (i and not _is_class_of(owner, module)):
                return None
            owner = vars(owner).get(part)
            if isinstance(owner, staticmethod):
                owner = owner.__func__
        function = reference and (
            isinstance(owner, types.FunctionType | types.BuiltinFunctionType)
            or type(owner).__name__ == _CYTHON
        )
        if not (function or isinstance(owner, type)):
            return None
        defined = (owner.__module__, owner.__qualname__) == (module, qualname)
        return owner if defined else None
