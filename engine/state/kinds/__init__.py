"""The kinds of objects in a saved state.

While a state is read, the file can cause only this code to run: ``__setstate__`` of classes that
have one; ``__hash__`` and ``__eq__`` of keys; and the constructors of classes that define a
``__reduce__``, of Structs and of River's compiled classes. `midstream.engine.state.allowed` must
allow all these classes.
"""

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from midstream.engine.state.allowed import Allowed
from midstream.engine.state.kinds.arrays import ARRAYS
from midstream.engine.state.kinds.compiled import compiled
from midstream.engine.state.kinds.constants import (
    CONSTANTS,
    INTEGER,
    SCALAR,
    TEXT,
    constant,
    frozen,
    method,
    reference,
)
from midstream.engine.state.kinds.containers import CONTAINERS, container, unordered
from midstream.engine.state.kinds.instances import instance
from midstream.engine.state.kinds.kind import Kind

__all__ = ["Kinds"]

_REFERRED = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    type(np.log),
    type(np.mean),
)
# Kinds of River's classes, found once: they never change.
_RIVER: dict[str, Kind] = {}


class Kinds(dict[type, Kind]):
    """The kind of the objects of each class, made on first use: ``kinds[type(value)]``.

    Parameters
    ----------
    allowed
        The names that may occur.
    order
        Returns the elements of a set in an order that depends on them alone.

    Raises
    ------
    EncodingError
        For a class whose objects cannot be saved.
    """

    def __init__(self, allowed: Allowed, order: Callable[[Any], list[Any]]) -> None:
        self._allowed = allowed
        self._order = order
        self._reference = reference(allowed)
        known: dict[type, Kind] = {
            **CONSTANTS,
            **ARRAYS,
            **CONTAINERS,
            set: unordered("set", set, order),
            frozenset: frozen(order),
            types.MethodType: method(allowed),
            **dict.fromkeys(_REFERRED, self._reference),
        }
        super().__init__(known)
        self._named = {kind.name: kind for kind in (*self.values(), SCALAR, INTEGER, TEXT)}

    def __missing__(self, cls: type) -> Kind:
        if issubclass(cls, type) or cls.__name__ == "cython_function_or_method":
            kind = self._reference
        elif issubclass(cls, np.generic):
            kind = SCALAR
        else:
            kind = self._found(self._allowed.name(cls), cls)
        self[cls] = kind
        return kind

    def named(self, name: str) -> Kind:
        """Return the kind that a file calls `name`."""
        if name not in self._named:
            self._named[name] = self._found(name, self._allowed.find(name))
        return self._named[name]

    def _found(self, name: str, cls: type) -> Kind:
        if issubclass(cls, set):
            return unordered(name, cls, self._order)
        kind = _RIVER.get(name)
        if kind is None:
            kind = (
                compiled(name, cls)
                or constant(name, cls)
                or container(name, cls)
                or instance(name, cls)
            )
            if name.startswith("river."):
                _RIVER[name] = kind
        return kind
