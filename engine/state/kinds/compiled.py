"""Instances of River's compiled classes: an exact list, each with its own way.

Most are made with fixed arguments, which their state replaces: so no file decides how much memory a
compiled constructor allocates.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.kinds.kind import Kind, Names

__all__ = ["compiled"]


class Compiled(Kind):
    """An instance that returns its state and accepts it again."""

    late = True

    def __init__(self, name: str, cls: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__(name)
        self._cls = cls
        self._arguments = arguments
        (self._model,) = self.write(self.new())[1]

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        reduced = value.__reduce_ex__(2)
        # Cython puts the state of a class without objects among the arguments.
        return (), [reduced[2] if len(reduced) > 2 else reduced[1][2]]

    def new(self) -> Any:
        return self._cls(*self._arguments)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        (state,) = row
        # Compiled code may read a tuple without checking its length, and free a chain of its
        # own objects by recursion in C.
        if type(state) is not type(self._model) or (
            isinstance(state, tuple)
            and (len(state) != len(self._model) or self._cls in map(type, state))
        ):
            raise EncodingError(f"not a state of {self.name}")
        value.__setstate__(state)

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        del names, values, position
        return ".__reduce__()[2]"


class Vector(Kind):
    """The VectorDict of River 0.25 and later: a factory, a mask, keys and floats."""

    stage = 2
    made_of = 2
    hashes = True

    def __init__(self, name: str, cls: Any) -> None:
        super().__init__(name)
        self._cls = cls

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        data, factory, mask, _ = value.__reduce__()[1]
        if mask is not None:
            mask = frozenset(sorted(mask, key=repr))  # its order is never used
        return (), [factory, mask, *data, *data.values()]

    def make(self, row: list[Any]) -> Any:
        factory, mask = row
        if factory is not None and not callable(factory):
            raise EncodingError("a default_factory that cannot be called")
        return self._cls(None, factory, mask if mask is None else set(mask), True)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        half = len(row) // 2 + 1
        for key, item in zip(row[2:half], row[half:], strict=True):
            value[key] = item

    def keys(self, names: Names, length: int) -> range:
        del names
        return range(2, length // 2 + 1)

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        del names, values
        return (".default_factory", ".mask")[position] if position < 2 else f"[{position - 2}]"


class RollingArea(Kind):
    """A rolling area under a curve before River 0.25, whose state lacks its arguments."""

    stage = 2
    made_of = 2
    late = True

    def __init__(self, name: str, cls: Any) -> None:
        super().__init__(name)
        self._cls = cls

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        _, arguments, state = value.__reduce_ex__(2)[:3]
        return (), [*arguments[1:], *state]

    def make(self, row: list[Any]) -> Any:
        return self._cls(*row)

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        del names
        value.__setstate__(tuple(row[2:]))


class Bucket(Kind):
    """A bucket of River 0.24's ADWIN: its size, totals and variances."""

    stage = 1

    def __init__(self, name: str, cls: Any) -> None:
        super().__init__(name)
        self._build = vars(sys.modules[cls.__module__])["_rebuild_bucket"]

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        size, _, totals, variances = value.__reduce__()[1]
        return (), [size, *totals, *variances]

    def make(self, row: list[Any]) -> Any:
        size, *items = row
        half = len(items) // 2
        # Its class checks nothing of this.
        if type(size) is not int or not half <= size <= 1_000 or 2 * half != len(items):
            raise EncodingError("not a state of a bucket")
        return self._build(size, half, items[:half], items[half:])


def _with(*arguments: Any) -> Callable[[str, Any], Kind]:
    return lambda name, cls: Compiled(name, cls, arguments)


def _cython_bucket(name: str, cls: Any) -> Kind:
    return Compiled(name, cls, (1,)) if hasattr(cls, "__setstate__") else Bucket(name, cls)


_STATS = {
    "RsEWMean": _with(0.5),
    "RsEWVar": _with(0.5),
    "RsIQR": _with(0.25, 0.75),
    "RsKurtosis": _with(False),
    "RsPeakToPeak": _with(),
    "RsQuantile": _with(None),
    "RsRollingIQR": _with(0.25, 0.75, 1),
    "RsRollingPRAUC": _with(0, 1),
    "RsRollingQuantile": _with(0.5, 1),
    "RsRollingROCAUC": _with(0, 1),
    "RsSkew": _with(False),
}
_AREA = "river.metrics.efficient_rolling"
_KINDS: dict[str, Callable[[str, Any], Kind]] = {
    # River 0.25 and later
    **{f"river._river_rust.stats:{name}": kind for name, kind in _STATS.items()},
    "river._river_rust.drift:AdaptiveWindowing": _with(0.002, 32, 5, 5, 10),
    "river._river_rust.vectordict:VectorDict": Vector,
    # River 0.23 and 0.24
    **{f"river.stats._rust_stats:{name}": kind for name, kind in _STATS.items()},
    "river.drift.adwin_c:AdaptiveWindowing": _with(),
    "river.drift.adwin_c:Bucket": _cython_bucket,
    "river.utils.vectordict:VectorDict": _with(),
    f"{_AREA}rocauc.efficient_rollingrocauc:EfficientRollingROCAUC": RollingArea,
    f"{_AREA}prauc.efficient_rollingprauc:EfficientRollingPRAUC": RollingArea,
}


def compiled(name: str, cls: Any) -> Kind | None:
    """Return the kind of a compiled class of River; None for other classes."""
    return _KINDS[name](name, cls) if name in _KINDS else None
