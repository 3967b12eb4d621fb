"""The slots of features: where compiled learners find the weights of an event's features.

A number's slot is the index of its name among those learned. A category's slot is its hash, with a
sign, in a table of 2**bits [1]_. It is written as ``-1 - slot``, which tells the two apart.

References
----------
.. [1] Weinberger et al. (2009). Feature hashing for large scale multitask learning. ICML.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.columns import Categories, FeatureColumns, TextColumn
from midstream.engine.events.event import Features, FloatArray, IntArray, Label, floats
from midstream.engine.learners.kernels import grown
from midstream.engine.learners.learner import LearnerError

__all__ = [
    "NO_FLOATS",
    "Rows",
    "Slots",
    "odd_row",
    "plain",
    "sample_weights",
    "sound",
]

NO_FLOATS: FloatArray = np.zeros(0)
_NO_SLOTS: IntArray = np.zeros(0, np.int64)
_KEPT = 100_000  # most categories whose slots are cached
_LISTS = 2  # lists of words with cached slots per feature: a decoder has one at a time
_FEW_LISTS = 8  # ... if there are few features: each file may have a decoder


class Rows(NamedTuple):
    """The features of n events: numbers in columns, then the other features event by event.

    (n, d) `numbers` with (d,) slots `at`; (n + 1,) `starts`, where each event's `slots` and
    `values` begin. These three are empty if there are only columns. NaN is a missing value.
    """

    numbers: FloatArray
    at: IntArray
    starts: IntArray
    slots: IntArray
    values: FloatArray


def plain(values: FloatArray) -> FloatArray:
    """Return an array in the form kernels are compiled for: float64, contiguous, writable."""
    if values.flags.carray and values.dtype == np.float64:
        return values
    return np.array(values, np.float64, order="C")


def sample_weights(batch: EventBatch) -> FloatArray:
    """Return a batch's sample weights; empty if all are 1."""
    return NO_FLOATS if batch.weights is None else plain(floats(batch.weights))


def sound(array: Any, shape: tuple[int, ...]) -> bool:
    """Whether an array of a saved state holds finite numbers and has this shape."""
    return (
        isinstance(array, np.ndarray)
        and array.dtype == np.float64
        and array.shape == shape
        and bool(np.isfinite(array).all())
    )


def odd_row(batch: EventBatch, check_label: Callable[[Label | None], object]) -> int:
    """Find the event with a value that is neither number nor text, or with an invalid label."""
    for row, (x, y) in enumerate(zip(batch.dicts(), batch.labels, strict=True)):
        try:
            check_label(y)
            floats([value for value in x.values() if not isinstance(value, str)])
            floats([batch.weight(row)])
        except (TypeError, ValueError, OverflowError, LearnerError):
            return row
    return 0


class Slots:
    """Assigns slots to features.

    Parameters
    ----------
    bits
        The table of categories has 2**bits slots.
    features
        Most names of numbers; another name is refused, to bound memory.
    """

    def __init__(self, bits: int, features: int) -> None:
        self.bits = bits
        self.features = features
        self.names: dict[str, int] = {}
        self.hashed = False
        """Whether a category has been learned."""
        # Caches, not state.
        self._columns: tuple[tuple[str, ...], IntArray] = ((), _NO_SLOTS)
        self._categories: dict[tuple[str, str], tuple[int, float]] = {}
        self._words: dict[tuple[str, int], tuple[list[str], IntArray, FloatArray, int]] = {}

    def takes(self, names: Any, used: Any) -> bool:
        """Whether a saved state may have these names and used slots."""
        return (
            type(names) is list
            and len(set(names)) == len(names) <= self.features
            and all(isinstance(name, str) for name in names)
            and isinstance(used, np.ndarray)
            and used.dtype == np.int64
            and used.ndim == 1
            and bool(((used >= 0) & (used < 2**self.bits)).all())
            and bool((np.diff(used) > 0).all())
        )

    def rows(self, batch: EventBatch, *, grow: bool) -> Rows:
        """Return the features of a batch.

        A feature without a slot is a missing value, unless names and categories may `grow`.

        Raises
        ------
        LearnerError
            If there is a name too many.
        TypeError, ValueError, OverflowError
            If a value is neither number nor text: `odd_row` finds it.
        """
        columns = batch.columns
        if columns is not None and len(set(columns.names)) == len(columns.names):
            return self._column_rows(columns, grow=grow)
        dicts = batch.dicts()
        names = tuple(dicts[0]) if dicts else ()
        if all(map(names.__eq__, map(tuple, dicts))):
            try:
                given = floats(list(chain.from_iterable(map(dict.values, dicts))))
            except (TypeError, ValueError, OverflowError):
                pass  # there are texts, or values that are neither
            else:
                array = given.reshape(len(dicts), len(names))
                return self._column_rows(FeatureColumns(names, array, {}), grow=grow)
        return self._dict_rows(dicts, grow=grow)

    def _column_rows(self, columns: FeatureColumns, *, grow: bool) -> Rows:
        names, array, texts = columns
        array = plain(array)
        if names == self._columns[0]:
            at = self._columns[1]
        else:
            at = self._at(names, [0], grow=grow)
            known = at >= 0
            if known.all():
                self._columns = names, at
            else:
                at, array = at[known], np.ascontiguousarray(array[:, known])
        if not texts or not (grow or self.hashed):
            return Rows(array, at, _NO_SLOTS, _NO_SLOTS, NO_FLOATS)
        n, m = len(array), len(texts)
        slots, values = np.empty((n, m), np.int64), np.empty((n, m))
        if len(self._words) > max(_LISTS * m, _FEW_LISTS):
            self._words.clear()
        for j, (name, column) in enumerate(texts.items()):
            slots[:, j], values[:, j] = self._column(name, column)
        self.hashed = self.hashed or not bool(np.isnan(values).all())
        starts = np.arange(0, n * m + 1, m)
        return Rows(array, at, starts, slots.reshape(-1), values.reshape(-1))

    def _column(
        self, name: str, column: list[str | None] | TextColumn
    ) -> tuple[IntArray, FloatArray]:
        """Return the slots and signs of a column of strings."""
        if isinstance(column, Categories):
            slots, signs = self._of_words(name, column.words)
            missing = column.codes < 0
            return slots[column.codes], np.where(missing, np.nan, signs[column.codes])
        pairs = [(-1, math.nan) if text is None else self.category(name, text) for text in column]
        return (
            np.array([slot for slot, _ in pairs], np.int64),
            np.array([sign for _, sign in pairs], np.float64),
        )

    def _of_words(self, name: str, words: list[str]) -> tuple[IntArray, FloatArray]:
        """Return slot and sign of each word; the list may have grown since the last call."""
        key = name, id(words)
        known = self._words.get(key)
        if known is None or known[0] is not words:
            known = words, _NO_SLOTS, NO_FLOATS, 0
        _, slots, signs, done = known
        total = len(words)
        if done < total or not total:
            slots, signs = grown(slots, total + 1, 0), grown(signs, total + 1, 0)
            for i in range(done, total):
                slots[i], signs[i] = self._hash(name, words[i])
            self._words[key] = words, slots, signs, total
        return slots, signs

    def _dict_rows(self, dicts: Sequence[Features], *, grow: bool) -> Rows:
        starts = np.zeros(len(dicts) + 1, np.int64)
        np.cumsum([len(x) for x in dicts], out=starts[1:])
        keys = [key for x in dicts for key in x]
        given = [value for x in dicts for value in x.values()]
        if any(issubclass(kind, str) for kind in set(map(type, given))):
            slots, values = self._mixed(keys, given, starts, grow=grow)
        else:
            slots = self._at(keys, starts, grow=grow)
            values = floats(given)
            values[slots < 0] = np.nan
        slots[np.isnan(values)] = -1
        return Rows(np.empty((len(dicts), 0)), _NO_SLOTS, starts, slots, values)

    def _mixed(
        self, keys: list[str], given: Sequence[Any], starts: IntArray, *, grow: bool
    ) -> tuple[IntArray, FloatArray]:
        """Return slots and values of numbers and categories mixed."""
        is_text = np.array([isinstance(value, str) for value in given])
        slots, values = np.full(len(keys), -1, np.int64), np.full(len(keys), np.nan)
        numbers = np.flatnonzero(~is_text)
        places = np.searchsorted(numbers, starts)  # where each event's numbers begin
        at = self._at([keys[i] for i in numbers.tolist()], places, grow=grow)
        found = floats([given[i] for i in numbers.tolist()])
        found[at < 0] = np.nan
        slots[numbers], values[numbers] = at, found
        if grow or self.hashed:
            self.hashed = True
            for i in np.flatnonzero(is_text).tolist():
                slots[i], values[i] = self.category(keys[i], given[i])
        return slots, values

    def _at(self, keys: Sequence[str], starts: Sequence[int] | IntArray, *, grow: bool) -> IntArray:
        """Return the slot of each name, -1 for none."""
        try:
            return np.array(list(map(self.names.__getitem__, keys)), np.int64)
        except KeyError:
            if grow:
                self._add(keys, starts)
            return np.array([self.names.get(key, -1) for key in keys], np.int64)

    def _add(self, keys: Sequence[str], starts: Sequence[int] | IntArray) -> None:
        fresh = [key for key in dict.fromkeys(keys) if key not in self.names]
        room = self.features - len(self.names)
        if len(fresh) > room:
            name = fresh[room]
            row = int(np.searchsorted(starts, keys.index(name), "right")) - 1
            raise LearnerError(
                max(row, 0),
                ValueError(
                    f"feature {name[:100]!r} is one name too many: the option features allows "
                    f"{self.features}; are some of the names values?"
                ),
            )
        for name in fresh:
            self.names[name] = len(self.names)

    def category(self, name: str, value: str) -> tuple[int, float]:
        """Return the slot of a category, as ``-1 - slot``, and its sign."""
        found = self._categories.get((name, value))
        if found is None:
            if len(self._categories) >= _KEPT:
                self._categories.clear()
            found = self._categories[name, value] = self._hash(name, value)
        return found

    def _hash(self, name: str, value: str) -> tuple[int, float]:
        mixed = zlib.crc32(f"{len(name)}:{name}={value}".encode(errors="surrogatepass"))
        mixed = mixed * 0x9E3779B97F4A7C15 % 2**64  # so that the high bits depend on all
        return -1 - (mixed >> (64 - self.bits)), 1.0 if mixed & 2**20 else -1.0
