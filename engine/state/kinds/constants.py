"""Values: tuples, bytes, numbers, dates, members of enums, names of functions, methods."""

import datetime as dt
import enum
import operator
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from midstream.engine.state.allowed import Allowed, EncodingError
from midstream.engine.state.kinds.arrays import dtype_name, dtype_named
from midstream.engine.state.kinds.kind import Blob, Kind, Names

__all__ = ["CONSTANTS", "INTEGER", "SCALAR", "TEXT", "constant", "frozen", "method", "reference"]


class Constant(Kind):
    """Values that a function makes from others."""

    constant = True

    def __init__(
        self,
        name: str,
        parts: Callable[[Any], list[Any]],
        made: Callable[..., Any],
        *,
        blob: bool = False,
    ) -> None:
        super().__init__(name)
        self._parts = parts
        self._made = made
        self.blob = blob

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        return (), self._parts(value)

    def make(self, row: list[Any]) -> Any:
        return self._made(*row)


class Tuple(Kind):
    """A tuple, or a named one."""

    constant = True
    holds_nodes = True

    def __init__(self, name: str, cls: type) -> None:
        super().__init__(name)
        self._cls: Any = cls

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        if self._cls is not tuple and getattr(value, "__dict__", None):
            raise EncodingError(f"a {self.name} with attributes cannot be saved")
        return (), [*tuple.__iter__(value)]

    def make(self, row: list[Any]) -> Any:
        return tuple.__new__(self._cls, row)


class Frozen(Kind):
    """A frozenset, its elements in canonical order."""

    constant = True
    hashes = True

    def __init__(self, order: Callable[[Any], list[Any]]) -> None:
        super().__init__("frozenset")
        self._order = order

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        return (), self._order(value)

    def make(self, row: list[Any]) -> Any:
        return frozenset(row)

    def keys(self, names: Names, length: int) -> range:
        del names
        return range(length)


class Method(Kind):
    """A method bound to an object or a class."""

    constant = True
    holds_nodes = True

    def __init__(self, allowed: Allowed) -> None:
        super().__init__("method")
        self._allowed = allowed

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        if self._allowed.method(value.__self__, value.__name__) != value:
            raise EncodingError(f"{value.__qualname__} is not a method of its object's class")
        return (), [value.__self__, value.__name__]

    def make(self, row: list[Any]) -> Any:
        owner, name = row
        return self._allowed.method(owner, name)

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        del names, values, position
        return ".__self__"


def frozen(order: Callable[[Any], list[Any]]) -> Kind:
    """Return the kind of frozensets; `order` orders the elements."""
    return Frozen(order)


def method(allowed: Allowed) -> Kind:
    """Return the kind of bound methods."""
    return Method(allowed)


def reference(allowed: Allowed) -> Kind:
    """Return the kind of classes and functions as values: by name, never called."""
    return Constant(
        "reference",
        lambda value: [allowed.name(value, reference=True)],
        lambda name: allowed.find(name, reference=True),
    )


def constant(name: str, cls: Any) -> Kind | None:
    """Return the kind of an enum's members or of named tuples; None for other classes."""
    if issubclass(cls, enum.Enum):
        return Constant(name, lambda v: [v.name], lambda member: cls.__members__[member])
    if issubclass(cls, tuple):
        return Tuple(name, cls)
    return None


def _scalar(data: bytes, name: str) -> Any:
    (scalar,) = np.frombuffer(data, dtype_named(name))
    return scalar


def _scalar_parts(value: Any) -> list[Any]:
    name = dtype_name(value.dtype)
    return [np.asarray(value).astype(name).tobytes(), name]


def _zone(delta: dt.timedelta, name: str) -> dt.timezone:
    unnamed = dt.timezone(delta)
    return unnamed if unnamed.tzname(None) == name else dt.timezone(delta, name)


def _datetime(*parts: Any) -> dt.datetime:
    *numbers, fold = parts
    return dt.datetime(*numbers, fold=fold)


def _datetime_parts(v: dt.datetime) -> list[Any]:
    time = [v.hour, v.minute, v.second, v.microsecond, v.tzinfo, v.fold]
    return [v.year, v.month, v.day, *time]


def _getter(*names: Any) -> Any:
    if not names or set(map(type, names)) != {str}:
        raise EncodingError("an itemgetter can be saved where it takes features by their names")
    return operator.itemgetter(*names)


def _getter_parts(value: Any) -> list[Any]:
    names = value.__reduce__()[1]
    _getter(*names)
    return [*names]


# Integers beyond 64 bits and strings with lone surrogates: MessagePack cannot hold them.
INTEGER = Constant(
    "integer",
    lambda v: [v.to_bytes(v.bit_length() // 8 + 1, "little", signed=True)],
    lambda data: int.from_bytes(data, "little", signed=True),
    blob=True,
)
TEXT = Constant(
    "text",
    lambda v: [v.encode("utf-8", "surrogatepass")],
    lambda data: data.decode("utf-8", "surrogatepass"),
    blob=True,
)
SCALAR = Constant("scalar", _scalar_parts, _scalar, blob=True)

CONSTANTS: dict[type, Kind] = {
    tuple: Tuple("tuple", tuple),
    bytes: Constant("bytes", lambda v: [v], bytes, blob=True),
    Blob: Constant("blob", lambda v: [v.take()], Blob, blob=True),
    complex: Constant("complex", lambda v: [v.real, v.imag], complex),
    range: Constant("range", lambda v: [v.start, v.stop, v.step], range),
    slice: Constant("slice", lambda v: [v.start, v.stop, v.step], slice),
    dt.date: Constant("date", lambda v: [v.year, v.month, v.day], dt.date),
    dt.datetime: Constant("datetime", _datetime_parts, _datetime),
    dt.timedelta: Constant(
        "timedelta", lambda v: [v.days, v.seconds, v.microseconds], dt.timedelta
    ),
    dt.timezone: Constant("timezone", lambda v: [v.utcoffset(None), v.tzname(None)], _zone),
    operator.itemgetter: Constant("itemgetter", _getter_parts, _getter),
    statistics.NormalDist: Constant(
        "NormalDist", lambda v: [v.mean, v.stdev], statistics.NormalDist
    ),
}
