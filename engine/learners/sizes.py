"""Measure River's trees as a function of their state alone.

Hoeffding trees measure themselves from time to time, and deactivate leaves beyond a size limit.
River sums `sys.getsizeof` over all objects, each once. That depends on which objects happen to be
shared and on how a dict has grown, so a tree that was saved and loaded gets another size, and then
learns differently. A learner measures trees by nominal sizes of their content, near CPython's: a
resumed tree goes on as the uninterrupted one. Trees used elsewhere are measured by River.
"""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from river.tree import hoeffding_tree

__all__ = ["measured_by_state", "nominal_size"]

_by_state: ContextVar[bool] = ContextVar("by_state", default=False)
_measured_by_river = hoeffding_tree.calculate_object_size


@contextmanager
def measured_by_state() -> Iterator[None]:
    """Measure trees by their state within this block."""
    token = _by_state.set(True)
    try:
        yield
    finally:
        _by_state.reset(token)


def nominal_size(value: Any) -> int:
    """Return the nominal size in bytes of a value and all that it holds.

    Objects, dicts, lists and sets count once, however often they are referred to. Numbers, strings
    and tuples count each time, since their identity is not part of any state. Random generators,
    classes and functions count nothing.
    """
    total = 0
    seen: set[int] = set()
    waiting = deque([value])
    while waiting:
        item = waiting.popleft()
        match item:
            case None | bool() | type() | FunctionType() | MethodType() | ModuleType():
                continue
            case float() | int():
                total += 28
            case str() | bytes():
                total += 49 + len(item)
            case tuple():
                total += 40 + 8 * len(item)
                waiting.extend(item)
            case random.Random() | np.random.Generator() | np.random.RandomState():
                continue
            case _:
                if id(item) in seen:
                    continue
                seen.add(id(item))
                total += 56
                if isinstance(item, Mapping):
                    total += 40 * len(item)
                    waiting.extend(item.keys())
                    waiting.extend(item.values())
                elif isinstance(item, list | set | frozenset | deque):
                    total += 8 * len(item)
                    waiting.extend(item)
                elif isinstance(item, np.ndarray):
                    total += item.nbytes
                elif hasattr(item, "__dict__"):
                    attributes = vars(item)
                    total += 40 * len(attributes)
                    waiting.extend(attributes.values())
    return total


def _calculate_object_size(obj: Any, unit: str = "byte") -> Any:
    if _by_state.get():
        return nominal_size(obj)
    return _measured_by_river(obj, unit)


hoeffding_tree.calculate_object_size = _calculate_object_size
