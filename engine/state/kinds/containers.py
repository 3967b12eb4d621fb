"""Lists, deques, dicts and sets, their subclasses, partials, and iterators of lists."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.kinds.kind import ATOMS, Kind, Names, slots_of
from midstream.engine.state.kinds.sets import fill

__all__ = ["CONTAINERS", "container", "unordered"]

_STR_ONLY = {str}


class Container(Kind):
    """A list, deque, dict or set, or a subclass.

    A row ends with the extras: a deque's ``maxlen`` or a defaultdict's ``default_factory``, and the
    attributes, if the class has any.
    """

    def __init__(self, name: str, cls: type, base: Any) -> None:
        super().__init__(name)
        if cls is not base and slots_of(cls):
            raise EncodingError(f"{name} cannot be saved: a {base.__name__} with slots")
        self._cls = cls
        self._base = base
        own = {collections.deque: "maxlen", collections.defaultdict: "default_factory"}
        self._own = own.get(base)
        self._has_dict = cls.__dictoffset__ != 0
        self._extras = (self._own is not None) + self._has_dict
        self.recurses = cls in own

    def new(self) -> Any:
        return self._base.__new__(self._cls)

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        items = len(values) - self._extras
        if position < items:
            return self._item(names, values[:items], position)
        return f".{self._own}" if self._own is not None and position == items else ""

    def _item(self, names: Names, values: Sequence[Any], position: int) -> str:
        del names, values
        return f"[{position}]"

    def _with_extras(self, value: Any, row: list[Any]) -> list[Any]:
        if self._own is not None:
            row.append(getattr(value, self._own))
        if self._has_dict:
            row.append(value.__dict__ or None)
        return row

    def _take_extras(self, value: Any, row: list[Any]) -> Any:
        """Remove the extras from the row, set the attributes, and return the other extra."""
        if self._has_dict:
            attributes = row.pop()
            if attributes is not None:
                value.__dict__ = attributes
        return row.pop() if self._own is not None else None


class Ordered(Container):
    """A list or a deque."""

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        row = [*self._base.__iter__(value)]
        return (), self._with_extras(value, row) if self._extras else row

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        own = self._take_extras(value, row) if self._extras else None
        if self._base is list:
            list.extend(value, row)
        else:
            collections.deque.__init__(value, row, own)


class Mapping(Container):
    """A dict. String keys are the row's names, which similar dicts share."""

    hashes = True

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        keys = tuple(self._base.keys(value))
        if not keys or set(map(type, keys)) != _STR_ONLY:
            return self.spread(value)
        row = [*self._base.values(value)]
        return keys, self._with_extras(value, row) if self._extras else row

    def spread(self, value: Any) -> tuple[Names, list[Any]]:
        row = [*self._base.keys(value), *self._base.values(value)]
        return (), self._with_extras(value, row)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        own = self._take_extras(value, row) if self._extras else None
        keys: Sequence[Any] = names
        if not names:
            half = len(row) // 2
            keys, row = row[:half], row[half:]
        pairs = zip(keys, row, strict=True)
        if self._base is collections.OrderedDict:
            for key, item in pairs:  # an OrderedDict keeps its order apart from the dict
                collections.OrderedDict.__setitem__(value, key, item)
        else:
            dict.update(value, pairs)
        if own is not None:
            if not callable(own):
                raise EncodingError("a default_factory that cannot be called")
            value.default_factory = own

    def keys(self, names: Names, length: int) -> range:
        return range(0 if names else (length - self._extras) // 2)

    def _item(self, names: Names, values: Sequence[Any], position: int) -> str:
        if names:
            return f"[{names[position]!r}]"
        half = len(values) // 2
        key = values[position % half]
        known = f"{key!r:.60}" if type(key) in ATOMS else f"<{type(key).__name__}>"
        return f"[{known}]" if position >= half else f"[key {known}]"


class Unordered(Container):
    """A set, its elements in canonical order."""

    hashes = True

    def __init__(self, name: str, cls: type, order: Callable[[Any], list[Any]]) -> None:
        super().__init__(name, cls, set)
        self._order = order

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        return (), self._with_extras(value, self._order(value))

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        self._take_extras(value, row)
        fill(value, row)

    def keys(self, names: Names, length: int) -> range:
        del names
        return range(length - self._extras)


class Partial(Kind):
    """A ``functools.partial``."""

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        if isinstance(value.func, functools.partial):
            raise EncodingError("a partial of a partial cannot be saved")
        return (), [value.func, value.args, value.keywords, value.__dict__ or None]

    def new(self) -> Any:
        return functools.partial(int)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        if isinstance(row[0], functools.partial):  # Python frees such chains by recursion in C
            raise EncodingError("a partial of a partial")
        value.__setstate__(tuple(row))

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        del names, values
        return (".func", ".args", ".keywords", "")[position]


class ListIterator(Kind):
    """A list iterator: the list, and the position in it."""

    stage = 2
    made_of = 1
    late = True

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        _, (items,), *position = value.__reduce__()
        return (), [items, *position] if position else [None, None]

    def make(self, row: list[Any]) -> Any:
        (items,) = row
        if items is None:  # an exhausted iterator has released its list
            value: Any = iter([])
            return next(value, value)
        return list.__iter__(items)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        if row[1] is not None:
            value.__setstate__(row[1])


_BASES: tuple[tuple[Any, Callable[[str, type, Any], Kind]], ...] = (
    (collections.OrderedDict, Mapping),
    (collections.defaultdict, Mapping),
    (dict, Mapping),
    (collections.deque, Ordered),
    (list, Ordered),
)


def container(name: str, cls: type) -> Kind | None:
    """Return the kind of a subclass of list, deque or dict; None for other classes."""
    for base, kind in _BASES:
        if issubclass(cls, base):
            return kind(name, cls, base)
    return None


def unordered(name: str, cls: type, order: Callable[[Any], list[Any]]) -> Kind:
    """Return the kind of a set; `order` orders its elements."""
    return Unordered(name, cls, order)


CONTAINERS: dict[type, Kind] = {
    **{base: kind(base.__name__, base, base) for base, kind in _BASES},
    collections.Counter: Mapping("Counter", collections.Counter, dict),
    functools.partial: Partial("partial"),
    type(iter([])): ListIterator("list_iterator"),
}
