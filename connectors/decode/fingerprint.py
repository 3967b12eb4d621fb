"""Fingerprints the values in a table's rows, to detect a changed file.

CRC-32 of the bytes takes three times as long as Arrow input permits: 26 ns for an event of 10
numbers; this takes 3. It also needs bytes, which Parquet lacks for a single row. So each value is
mixed with its row and column (as SplitMix64 mixes its counter), and the results are summed. A sum
does not depend on how the rows are cut into blocks, so it can resume anywhere. As with a CRC of 32
bits, one change in 2**32 goes unnoticed. It does not protect against intentional changes.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit, types

__all__ = ["HEAD_ROWS", "Fingerprints", "is_same"]

HEAD_ROWS = 64
"""Number of rows at a table's beginning, and before a position, by which it is recognised."""

_Words: TypeAlias = npt.NDArray[np.uint64]

_MODULUS = 2**32
# Without `readonly` Arrow's read-only buffers would need another compiled kernel.
_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_OFFSETS = types.Array(types.int64, 1, "C", readonly=True)

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_NULL = np.uint64(0xD1B54A32D192ED03)  # an unlikely value
_S29, _S32 = np.uint64(29), np.uint64(32)


@njit(types.uint64(_WORDS, types.uint64, types.uint64), cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _total(words: _Words, row: np.uint64, column: np.uint64) -> np.uint64:
    total = np.uint64(0)
    counter = row * _STEP + column * _MIX2
    for i in range(words.size):
        z = words[i] ^ counter
        z ^= z >> _S32
        z *= _MIX1
        z ^= z >> _S29
        z *= _MIX2
        total += z >> _S32
        counter += _STEP
    return total


@njit(types.Array(types.uint64, 1, "C")(_OFFSETS, _BYTES), cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _of_texts(offsets: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]) -> _Words:
    """FNV-1a of each text, 64 bits."""
    if offsets.size == 0 or offsets[0] < 0 or offsets[-1] > data.size:
        raise ValueError("a text is not within its data")
    out = np.empty(offsets.size - 1, np.uint64)
    for i in range(out.size):
        if offsets[i] > offsets[i + 1] or offsets[i + 1] > data.size:
            raise ValueError("a text ends before it begins, or after its data")
        h = np.uint64(0xCBF29CE484222325)
        for j in range(offsets[i], offsets[i + 1]):
            h = (h ^ np.uint64(data[j])) * np.uint64(0x100000001B3)
        out[i] = h
    return out


class Fingerprints:
    """Fingerprints of the rows of one table. Sum them modulo 2**32, in any order.

    A dictionary of strings is hashed once while columns share it.

    Parameters
    ----------
    last
        Number of rows at the end of the input of `of` whose fingerprint is kept in `of_last`.
    """

    def __init__(self, last: int = 0) -> None:
        self.of_last = 0
        self._last = last
        self._dictionaries: dict[int, tuple[Any, _Words]] = {}

    def of(self, columns: Sequence[Any], row: int) -> int:
        """Return the fingerprint of rows.

        Parameters
        ----------
        columns
            `pyarrow` arrays of one length: numbers, bools, times, strings, dictionaries of strings.
        row
            Number of the first row.

        Raises
        ------
        pa.ArrowInvalid
            If strings are not UTF-8, or their offsets are invalid.
        """
        total = of_last = 0
        for i, column in enumerate(columns):
            n = len(column)
            if not n:
                continue
            words = self._words(column, i)
            total += int(_total(words, row, i))
            if self._last:
                skipped = max(n - self._last, 0)
                of_last += int(_total(words[skipped:], row + skipped, i))
        self.of_last = of_last % _MODULUS
        return total % _MODULUS

    def _words(self, column: Any, i: int) -> _Words:
        """Return a 64-bit word for each value."""
        if not pa.types.is_dictionary(column.type):
            return _without_nulls(column)
        codes, last = _codes(column), self._dictionaries.get(i)
        if last is None or not is_same(last[0], column.dictionary):
            column.dictionary.validate(full=True)
            # Code -1, a null, indexes the last word.
            last = column.dictionary, np.append(_without_nulls(column.dictionary), _NULL)
            self._dictionaries[i] = last
        if codes.min() < -1 or codes.max() >= len(last[1]) - 1:
            raise pa.ArrowInvalid("a code that is not in its dictionary")
        return last[1][codes]


def is_same(one: Any, other: Any) -> bool:
    """Whether two arrays, the first of which is kept alive, share their memory."""
    if len(one) != len(other) or one.offset != other.offset:
        return False
    places = [[b and (b.address, b.size) for b in array.buffers()] for array in (one, other)]
    return bool(places[0] == places[1])


def _without_nulls(column: Any) -> _Words:
    words = _plain_words(column)
    if column.null_count:  # values under a null are undefined
        words = np.where(column.is_valid().to_numpy(zero_copy_only=False), words, _NULL)
    return words


def _plain_words(column: Any) -> _Words:
    kind, n = column.type, len(column)
    if pa.types.is_null(kind) or not n:
        return np.zeros(n, np.uint64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column.validate(full=True)
        wide = np.int64 if pa.types.is_large_string(kind) else np.int32
        _, places, data = column.buffers()
        offsets = _view(places, wide, column.offset, n + 1).astype(np.int64)
        letters = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        return _of_texts(offsets, letters)  # type: ignore[no-any-return]
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    width = column.type.bit_width // 8
    return _view(column.buffers()[1], f"u{width}", column.offset, n).astype(np.uint64, copy=False)


def _codes(column: Any) -> npt.NDArray[np.int64]:
    codes = column.indices
    if codes.null_count:
        codes = codes.cast(pa.int64()).fill_null(-1)
    return codes.to_numpy().astype(np.int64, copy=False)  # type: ignore[no-any-return]


def _view(buffer: Any, kind: Any, offset: int, n: int) -> npt.NDArray[Any]:
    kind = np.dtype(kind)
    view = np.frombuffer(buffer, kind, n, offset * kind.itemsize)
    return view if view.flags.aligned else view.copy()
