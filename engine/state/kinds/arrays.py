"""NumPy arrays, bytearrays, and generators of random numbers."""

import math
import random
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.kinds.kind import Blob, Kind, Names

__all__ = ["ARRAYS", "dtype_name", "dtype_named"]

# Values without references or code: no objects, no records, no empty items.
_DTYPE = re.compile(
    r"[<|](b1|[iu][1248]|f[248]|c(8|16)|[SU][1-9]\d{0,8}|[mM]8(\[\d{0,9}[a-zA-Z]{1,2}\])?)"
)


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, as little-endian."""
    name: str = dtype.newbyteorder("<").str
    dtype_named(name)
    return name


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the dtype of that name.

    Raises
    ------
    EncodingError
        If its items are not plain values of a known size.
    """
    if not _DTYPE.fullmatch(name):
        raise EncodingError(f"an array of dtype {name[:40]} cannot be saved")
    return np.dtype(name)


class Array(Kind):
    """A NumPy array; its C or Fortran order is kept. Views become copies."""

    stage = 1

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        name = dtype_name(value.dtype)
        # The order of BLAS's sums depends on this order.
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        data = value.astype(name, copy=False).tobytes(order)
        return (), [Blob(data), name, order, *value.shape]

    def make(self, row: list[Any]) -> Any:
        blob, name, order, *shape = row
        data = blob.take()
        dtype = dtype_named(name)
        if (
            not all(type(n) is int and n >= 0 for n in shape)
            or math.prod(shape) * dtype.itemsize != len(data)
        ):  # fmt: skip
            raise EncodingError("an array's shape does not match its data")
        return np.ndarray(shape, dtype, data, order=order).copy(order)


class ByteArray(Kind):
    """A bytearray."""

    stage = 1

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        return (), [Blob(bytes(value))]

    def make(self, row: list[Any]) -> Any:
        (blob,) = row
        return bytearray(blob.take())


class PythonRandom(Kind):
    """Python's generator."""

    stage = 1

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        version, words, gauss = value.getstate()
        return (), [*words, version, gauss]

    def make(self, row: list[Any]) -> Any:
        *words, version, gauss = row
        if gauss is not None and type(gauss) is not float:
            raise EncodingError("not a state of random.Random")
        generator = random.Random(0)
        generator.setstate((version, tuple(words), gauss))
        return generator


# Integers of a bit generator's state: (group, name, count, largest value). A count of 2 with the
# largest value _UINT128 is one number, as its high and low half.
Fields: TypeAlias = Sequence[tuple[str | None, str, int, int]]
_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1
_UINT128 = 2**128 - 1
_BUFFERED: Fields = ((None, "has_uint32", 1, 1), (None, "uinteger", 1, _UINT32))
_PCG: Fields = (("state", "state", 2, _UINT128), ("state", "inc", 2, _UINT128), *_BUFFERED)
_PHILOX: Fields = (
    ("state", "counter", 4, _UINT64),
    ("state", "key", 2, _UINT64),
    (None, "buffer", 4, _UINT64),
    (None, "buffer_pos", 1, 4),
    *_BUFFERED,
)
_BIT_GENERATORS: list[tuple[Any, Fields]] = [
    (np.random.MT19937, (("state", "key", 624, _UINT32), ("state", "pos", 1, 624))),
    (np.random.PCG64, _PCG),
    (np.random.PCG64DXSM, _PCG),
    (np.random.Philox, _PHILOX),
    (np.random.SFC64, (("state", "state", 4, _UINT64), *_BUFFERED)),
]


class BitGenerator(Kind):
    """A bit generator of NumPy: the integers of its state, without its seed sequence."""

    stage = 1

    def __init__(self, cls: Any, fields: Fields) -> None:
        super().__init__(cls.__name__)
        self._cls = cls
        self._fields = fields

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        state = value.state
        row: list[int] = []
        for group, name, count, largest in self._fields:
            item = (state[group] if group else state)[name]
            if largest == _UINT128:
                row += divmod(item, 2**64)
            else:
                row += item.tolist() if count > 1 else [int(item)]
        return (), row

    def make(self, row: list[Any]) -> Any:
        state: dict[str, Any] = {"bit_generator": self._cls.__name__, "state": {}}
        rest = iter(row)
        for group, name, count, largest in self._fields:
            items = [next(rest, None) for _ in range(count)]
            # NumPy would read beyond its memory from a position that is too large.
            limit = min(largest, _UINT64)
            if not all(type(item) is int and 0 <= item <= limit for item in items):
                raise EncodingError(f"not a state of {self.name}")
            item: Any = items[0]
            if largest == _UINT128:
                item = item * 2**64 + items[1]
            elif count > 1:
                item = np.array(items, np.uint32 if largest == _UINT32 else np.uint64)
            (state[group] if group else state)[name] = item
        generator = self._cls(0)
        generator.state = state
        return generator


class OlderGenerator(Kind):
    """NumPy's RandomState: a bit generator, and half a pair of normal numbers."""

    stage = 2

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        state = value.get_state(legacy=False)
        bits = value._bit_generator
        return (), [bits, int(state["has_gauss"]), float(state["gauss"])]

    def make(self, row: list[Any]) -> Any:
        bits, has_gauss, gauss = row
        generator = np.random.RandomState(_bits(bits))
        generator.set_state({**bits.state, "has_gauss": has_gauss, "gauss": gauss})
        return generator


class Generator(Kind):
    """NumPy's generator."""

    stage = 2

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        return (), [value.bit_generator]

    def make(self, row: list[Any]) -> Any:
        (bits,) = row
        return np.random.Generator(_bits(bits))


def _bits(value: Any) -> Any:
    if not isinstance(value, np.random.BitGenerator):
        raise EncodingError("a generator without a bit generator")
    return value


ARRAYS: dict[type, Kind] = {
    np.ndarray: Array("ndarray"),
    bytearray: ByteArray("bytearray"),
    random.Random: PythonRandom("Random"),
    np.random.RandomState: OlderGenerator("RandomState"),
    np.random.Generator: Generator("Generator"),
    **{cls: BitGenerator(cls, fields) for cls, fields in _BIT_GENERATORS},
}
