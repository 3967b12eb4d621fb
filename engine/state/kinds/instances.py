"""Instances of classes, without calling the class."""

import inspect
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.kinds.kind import Kind, Names, slots_of

__all__ = ["instance"]


class Plain(Kind):
    """An instance of a class of Python: its ``__dict__``, in its order, and its slots."""

    def __init__(self, name: str, cls: Any) -> None:
        super().__init__(name)
        self._cls = cls
        self._slots = slots_of(cls)
        self._has_dict = cls.__dictoffset__ != 0
        self._described = frozenset(  # names that setattr would send through a property or a slot
            key for key in dir(cls) if inspect.isdatadescriptor(inspect.getattr_static(cls, key))
        )
        self._setstate: Callable[..., None] | None = getattr(cls, "__setstate__", None)
        self.late = self._setstate is not None

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        state = value.__dict__ if self._has_dict else {}
        if self._slots:
            state = dict(state)
            for key, slot in self._slots.items():
                try:
                    state[key] = slot.__get__(value)
                except AttributeError:  # never set
                    continue
        return tuple(state), [*state.values()]

    def new(self) -> Any:
        return object.__new__(self._cls)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        state = zip(names, row, strict=True)
        if self._setstate is not None:
            self._setstate(value, dict(state))
        elif self._slots:
            self._apply(value, dict(state))
        elif self._described.isdisjoint(names):
            # One by one: CPython then keeps the attributes in the object, which is faster than
            # the separate dict that `__dict__` would make.
            for key, item in state:
                object.__setattr__(value, key, item)
        else:
            value.__dict__.update(state)

    def _apply(self, value: Any, state: dict[str, Any]) -> None:
        """Set attributes, bypassing properties."""
        for key, item in state.items():
            if key in self._slots:
                self._slots[key].__set__(value, item)
            else:
                value.__dict__[key] = item


class Distribution(Plain):
    """A distribution of River; without a seed it is saved without its generator.

    Only ``sample`` uses the generator, and the operating system seeded it: it is not state.
    """

    _generator = random.Random()

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        names, values = super().write(value)
        if "_rng" in names and getattr(value, "seed", None) is None:
            at = names.index("_rng")
            del values[at]
            names = names[:at] + names[at + 1 :]
        return names, values

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        super().fill(value, names, row)
        if "_rng" not in names:
            object.__setattr__(value, "_rng", self._generator)


class Stateful(Plain):
    """An instance whose class defines its state: ``__getstate__``."""

    def __init__(self, name: str, cls: Any) -> None:
        super().__init__(name, cls)
        self.late = True

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        return (), [value.__getstate__()]

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        state = row[-1]
        if self._setstate is not None:
            self._setstate(value, state)
            return
        for part in state if isinstance(state, tuple) else (state,):
            self._apply(value, part or {})

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        del names, values, position
        return ".__getstate__()"


class Reduced(Stateful):
    """An instance whose class defines how to make it: ``__reduce__``, with its own arguments."""

    stage = 2
    made_of = 1

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        cls, arguments, *state = value.__reduce_ex__(2)
        if cls is not self._cls or len(state) > 1 or not isinstance(arguments, tuple):
            raise EncodingError(f"{self.name}.__reduce__ must give (its class, arguments[, state])")
        return (), [arguments, *(state or [None])]

    def make(self, row: list[Any]) -> Any:
        (arguments,) = row
        return self._cls(*arguments)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        if row[-1] is not None:
            super().fill(value, names, row)

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        del names, values
        return f".__reduce__()[{position + 1}]"


class Struct(Kind):
    """A msgspec Struct: its fields."""

    def __init__(self, name: str, cls: Any) -> None:
        super().__init__(name)
        if hasattr(cls, "__post_init__"):
            raise EncodingError(f"{name} cannot be saved: a Struct with a __post_init__")
        self._cls = cls
        self._fields: Names = cls.__struct_fields__
        self.recurses = True

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        return self._fields, [getattr(value, field) for field in self._fields]

    def new(self) -> Any:
        return self._cls(**dict.fromkeys(self._fields))

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        for key, item in zip(names, row, strict=True):
            msgspec.structs.force_setattr(value, key, item)


def instance(name: str, cls: Any) -> Kind:
    """Return the kind of the instances of a class.

    Raises
    ------
    EncodingError
        If they cannot be saved: they hold more than attributes, or have a ``__del__``.
    """
    if hasattr(cls, "__del__"):
        raise EncodingError(f"{name} cannot be saved: a __del__ would act on what a file says")
    if issubclass(cls, msgspec.Struct):
        return Struct(name, cls)
    if (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
        return Reduced(name, cls)
    try:
        object.__new__(cls)
    except TypeError as error:
        raise EncodingError(f"{name} cannot be saved: {error}") from None
    if cls.__getstate__ is not object.__getstate__:
        return Stateful(name, cls)
    if any((b.__module__, b.__qualname__) == _DISTRIBUTION for b in cls.__mro__):
        return Distribution(name, cls)
    return Plain(name, cls)


_DISTRIBUTION = ("river.proba.base", "Distribution")
