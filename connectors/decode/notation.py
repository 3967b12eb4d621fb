"""How the values of an input are written: missing values, decimal signs and times."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from midstream.connectors.decode.fields import FieldMap
from midstream.engine.events.columns import Categories
from midstream.engine.events.event import FloatArray, IntArray
from midstream.engine.events.rules import UNITS, LabelKind, seconds_of, unit_of

__all__ = ["Notation"]

_SPACE = " \t\r\n"
_NO_CODES: IntArray = np.zeros(0, np.int64)
_DATES = (  # numbers that may be dates: plain, with hours and minutes, with seconds
    (19_000_101, 21_001_231),
    (190_001_010_000, 210_012_312_359),
    (19_000_101_000_000, 21_001_231_235_959),
)
_MOST_SECONDS = 1e11
_MOST_LISTS = 64


class Notation:
    """How values are written, by ``[input.fields]``; the same in every format.

    Parameters
    ----------
    fields
        The config's fields; None: events in Midstream's own form, where only times are ambiguous.
    labels
        Kind of the labels of a multiclass task. "text": a cell of CSV is text, whatever it looks
        like.

    Attributes
    ----------
    texts, numbers
        Strings and numbers that mean a missing value.
    decimal
        The decimal sign of CSV and of text that is a number.
    units
        The units detected for numeric times by their size. For display only.
    """

    def __init__(self, fields: FieldMap | None = None, labels: LabelKind | None = None) -> None:
        missing = () if fields is None else fields.missing
        self.texts = frozenset(str(token) for token in missing)
        self.numbers = frozenset(n for n in map(_number, missing) if n is not None)
        self.decimal = "." if fields is None else fields.decimal
        self.text_labels = labels == "text"
        self.units: set[str] = set()
        self._unit = "auto" if fields is None else fields.time_unit
        self._dates = fields is not None
        self._codes: dict[int, tuple[list[str], int, IntArray]] = {}

    @property
    def has_missing(self) -> bool:
        """Whether anything but null, NaN and an empty cell means missing."""
        return bool(self.texts)

    def is_missing(self, value: Any) -> bool:
        """Whether a string or a number means a missing value."""
        kind = type(value)
        if kind is str:
            return value in self.texts or value.strip(_SPACE) in self.texts
        return (kind is int or kind is float) and value in self.numbers

    def given(self, values: Sequence[Any]) -> list[Any]:
        """Return a column with None for missing values."""
        if not self.texts:
            return values if isinstance(values, list) else list(values)
        return [None if self.is_missing(value) else value for value in values]

    def given_features(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return features without missing values."""
        if not self.numbers and str not in set(map(type, row.values())):
            return row
        return {name: value for name, value in row.items() if not self.is_missing(value)}

    def given_numbers(self, values: FloatArray) -> FloatArray:
        """Return numbers with NaN for missing values."""
        if not self.numbers:
            return values
        return np.where(np.isin(values, list(self.numbers)), np.nan, values)

    def given_words(self, column: Categories) -> Categories:
        """Return a column of strings without missing values."""
        if not self.texts:
            return column
        words = column.words
        known, done, codes = self._codes.get(id(words), (words, 0, _NO_CODES))
        if known is not words:
            done, codes = 0, _NO_CODES
        if done < len(words):
            fresh = [i for i in range(done, len(words)) if self.is_missing(words[i])]
            codes = np.append(codes, np.array(fresh, np.int64))
            if len(self._codes) >= _MOST_LISTS:
                self._codes.clear()
            self._codes[id(words)] = words, len(words), codes
        if not len(codes):
            return column
        return Categories(np.where(np.isin(column.codes, codes), -1, column.codes), words)

    def seconds(self, value: Any) -> float | None:
        """Return a time in seconds; None if missing.

        Raises
        ------
        BadValueError
            If it is no time, or ambiguous.
        """
        seconds = seconds_of(value, self._unit, dates=self._dates)
        if self._unit == "auto" and type(value) in (int, float, str) and seconds is not None:
            self._note(value)
        return seconds

    def _note(self, value: float | str) -> None:
        try:
            number = abs(float(value))
        except ValueError:  # a date
            return
        if number >= _MOST_SECONDS:
            self.units.add(unit_of(number))

    def plain_seconds(self, values: FloatArray) -> FloatArray | None:
        """Return times in seconds, NaN where missing; None if one needs a closer look."""
        if not len(values):
            return values
        low, high = values.min(), values.max()
        if np.isnan(low):  # some or all are missing
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
            if np.isnan(low):
                return values
        if not (-np.inf < low and high < np.inf) or self._unit == "date":
            return None
        if self._unit != "auto":
            return values if self._unit == "s" else values / UNITS[self._unit]
        if self._dates and any(low <= last and first <= high for first, last in _DATES):
            return None
        if low > -_MOST_SECONDS and high < _MOST_SECONDS:
            return values
        if low < _MOST_SECONDS or high >= _MOST_SECONDS * UNITS["ns"] or not _same(low, high):
            return None
        unit = unit_of(high)
        self.units.add(unit)
        return values / UNITS[unit]


def _same(low: float, high: float) -> bool:
    return unit_of(low) == unit_of(high)


def _number(token: str | float) -> float | None:
    """Return the number that a token is, or looks like."""
    if isinstance(token, str):
        try:
            number = float(token) if token.isascii() and "_" not in token else None
        except ValueError:
            return None
        return number if number is not None and abs(number) < np.inf else None
    return float(token)
