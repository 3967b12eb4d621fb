"""Describe River models as plain JSON: what defines them, without what they have learned."""

import functools
import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from types import CodeType, MethodType
from typing import Any

import numpy as np
from river import base

from midstream.engine.learners.anatomy import arguments
from midstream.engine.learners.sources import source_digest
from midstream.engine.state.changes import FORMERLY, FURTHER

__all__ = ["described"]

_ROLLED = "obj"  # attribute of River's windows: the statistic that they are of


def described(value: Any) -> Any:
    """Describe a model's parameters as plain JSON values.

    A class or function of the user's is described by its name and by digests of its code. What
    earlier versions did not describe stands under `FURTHER` and `FORMERLY`: see
    `midstream.engine.state.changes.aligned`.
    """
    if isinstance(value, base.Base):
        code = _class_code(type(value))
        given = arguments(value)
        further = _further(value, given) if code else {}
        return {
            "class": f"{type(value).__module__}.{type(value).__qualname__}",
            **({"code": code} if code else {}),
            **{name: described(p) for name, p in given.items()},
            **({FURTHER: further} if further else {}),
        }
    if isinstance(value, float):  # also NumPy's; JSON has neither infinities nor NaN
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, Mapping):
        return {str(k): described(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [described(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(described(v)) for v in value)
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    if getattr(value, "__code__", None) is not None:
        digest = hashlib.sha256(_code_text(value.__code__).encode()).hexdigest()[:12]
        text = f"{value.__module__}.{value.__qualname__} (code {digest})"
    further = _of_object(value)
    return {FORMERLY: text, **further} if further else text


def _further(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the source of a user's object, and arguments that it keeps under other names."""
    source = source_digest(type(value))
    found: dict[str, Any] = {"source": source} if source else {}
    for name in inspect.signature(type(value)).parameters:
        if name not in given and hasattr(value, f"_{name}"):
            found[name] = described(getattr(value, f"_{name}"))
    return found


def _of_object(value: Any) -> dict[str, Any]:
    """Describe an object that is no estimator; empty if its text says everything."""
    of: Any = type(value)
    if isinstance(value, functools.partial):
        parts = {"function": value.func, "arguments": value.args, "keywords": value.keywords}
        return {name: described(part) for name, part in parts.items()}
    if isinstance(value, MethodType):
        return {"of": described(value.__self__)}
    if isinstance(value, np.ndarray):
        return {"bytes": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:12]}
    if getattr(value, "__code__", None) is not None or isinstance(value, type):
        source = None if value.__module__.startswith("river.") else source_digest(value)
        return {"source": source} if source else {}
    own = _class_code(of)
    if not own and not of.__module__.startswith("river."):
        return {}
    try:
        names = {**inspect.signature(of).parameters, _ROLLED: None}
    except ValueError:  # a class of compiled code
        return {}
    held = {n: described(getattr(value, n)) for n in names if hasattr(value, n)}
    return {**held, **(_further(value, held) if own else {})}


def _class_code(cls: type) -> str | None:
    """Return a digest of the code of a class and its bases outside River; None without any."""
    own = [c for c in cls.__mro__ if c is not object and not c.__module__.startswith("river.")]
    texts = [
        f"{c.__qualname__}.{name} {_code_text(function.__code__)}"
        for c in own
        for name, value in sorted(vars(c).items())
        if (function := getattr(value, "__func__", value)) and hasattr(function, "__code__")
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] if texts else None


def _code_text(code: CodeType) -> str:
    """Return the code of a function as text, including nested functions."""
    constants = [_code_text(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    constants = [re.sub(r" at 0x[0-9a-f]+", "", constant) for constant in constants]
    return repr((code.co_code, code.co_names, constants))
