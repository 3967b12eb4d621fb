"""The components of a River model."""

import functools
import inspect
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType
from typing import Any

import numpy as np
from river import base, compose, preprocessing

__all__ = [
    "addressed",
    "arguments",
    "imputed",
    "imputers",
    "last_step",
    "path_of",
    "raised_by",
    "steps",
    "within",
]

_STATELESS = (
    *(bool, int, float, str, bytes, type, np.ufunc),
    *(FunctionType, BuiltinFunctionType, MethodDescriptorType),
)
_IMPUTERS = (preprocessing.StatImputer, preprocessing.PreviousImputer)
_KEEP_NAMES = (*_IMPUTERS, compose.Select, compose.Discard)
_KEEP_MODEL = (compose.TargetTransformRegressor, preprocessing.PredClipper)


def raised_by(error: BaseException) -> Exception:
    """Return an error of the model as an exception; raise it again if it is not the model's.

    A panic of River's compiled code is no `Exception`, by its author's choice.
    """
    if isinstance(error, Exception):
        return error
    if type(error).__name__ == "PanicException":
        return RuntimeError(f"River's compiled code has panicked: {error}").with_traceback(
            error.__traceback__
        )
    raise error


def within(value: Any, _seen: set[int] | None = None) -> Iterator[Any]:
    """Yield the model, its estimators and the other objects in its arguments, recursively.

    Numbers, strings, functions and classes are left out.
    """
    seen = set() if _seen is None else _seen
    if value is None or isinstance(value, _STATELESS):
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        held = [*value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        held = [*value]
    elif isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        held = [value.__self__]
    elif isinstance(value, base.Base):
        yield value
        held = [*arguments(value).values()]
    else:
        yield value
        return
    for item in held:
        yield from within(item, seen)


def arguments(model: base.Base) -> dict[str, Any]:
    """Return the model's present values of its constructor arguments."""
    parts = getattr(model, "steps", None) or getattr(model, "transformers", None)
    if isinstance(parts, Mapping) and not isinstance(parts, defaultdict):  # pipelines and unions
        return dict(parts)
    of: Any = type(model)
    return {n: getattr(model, n) for n in _names(of) if hasattr(model, n)}


@functools.lru_cache(1_000)  # a learner is loaded again after each event that it raises on
def _names(of: type) -> tuple[str, ...]:
    return tuple(inspect.signature(of).parameters)


def steps(model: Any) -> Iterator[Any]:
    """Yield the fixed components of a model: the steps of its pipelines and unions."""
    if type(model) is compose.Pipeline:
        parts = model.steps
    elif type(model) in (compose.TransformerUnion, compose.TransformerProduct):
        parts = model.transformers
    else:
        yield model
        return
    for part in parts.values():
        yield from steps(part)


def last_step(model: Any) -> Any:
    """Return the estimator that predicts: the last step of a pipeline, also a nested one."""
    while isinstance(model, compose.Pipeline):
        model = model._last_step
    return model


def imputers(model: Any) -> Iterator[Any]:
    """Yield the imputers of a model that see the features under their original names.

    In a pipeline only feature selectors, imputers and unions may precede them.
    """
    if type(model) is compose.Pipeline:
        for step in model.steps.values():
            yield from imputers(step)
            if type(step) not in _KEEP_NAMES:
                return
    elif type(model) is compose.TransformerUnion:
        for part in model.transformers.values():
            yield from imputers(part)
    elif type(model) in _IMPUTERS:
        yield model
    elif isinstance(model, base.Wrapper):  # other wrappers make new models from the wrapped one
        for step in imputers(model._wrapped_model):
            if isinstance(model, _KEEP_MODEL) or type(step) is preprocessing.StatImputer:
                yield step


def imputed(step: Any) -> Iterable[str]:
    """Return the features that an imputer can fill in."""
    names: Iterable[str] = step.stats if type(step) is preprocessing.StatImputer else step._latest
    return names


def path_of(cls: type) -> str:
    """Return the full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def addressed(model: Any) -> list[str]:
    """Name the attributes that hold the `id()` of an object in the model, as `Class.name`."""
    places: dict[int, str] = {}  # integers that may be an id, and where they are
    seen: set[int] = set()
    waiting: list[tuple[Any, str]] = [(model, type(model).__name__)]
    while waiting:
        value, place = waiting.pop()
        if type(value) is int:
            places.setdefault(value, place)
            continue
        if value is None or isinstance(value, _STATELESS) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += [(item, place) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple | set | frozenset | deque):
            waiting += [(item, place) for item in value]
        for name, item in getattr(value, "__dict__", {}).items():
            waiting.append((item, f"{type(value).__name__}.{name}"))
    return sorted({place for number, place in places.items() if number in seen})
