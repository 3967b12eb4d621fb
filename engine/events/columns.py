"""Columns of text, and of features."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np

from midstream.engine.events.event import FloatArray, IntArray

__all__ = ["Categories", "FeatureColumns", "TextColumn", "Texts"]


class TextColumn(Sequence[str | None]):
    """A column of n strings, None for none; a string is made on access."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # as a list

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def take(self, rows: IntArray) -> "TextColumn":
        """Return the strings at `rows`, in that order."""
        raise NotImplementedError

    def text(self, i: int) -> str | None:
        """Return string `i`."""
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> str | None: ...
    @overload
    def __getitem__(self, i: slice) -> "TextColumn": ...
    def __getitem__(self, i: int | slice) -> "str | TextColumn | None":
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        return self.text(range(len(self))[i])

    def __iter__(self) -> Iterator[str | None]:
        return map(self.text, range(len(self)))


class Texts(TextColumn):
    """Strings in one block of UTF-8: string i is ``data[starts[i]:stops[i]]``.

    None if ``starts[i]`` is negative. `plain`: JSON needs no escapes for them.
    """

    __slots__ = ("_data", "_plain", "_starts", "_stops")

    def __init__(
        self, data: bytes | memoryview, starts: IntArray, stops: IntArray, *, plain: bool = False
    ) -> None:
        self._data = data
        self._starts = starts
        self._stops = stops
        self._plain = plain

    @property
    def pieces(self) -> tuple[bytes | memoryview, IntArray, IntArray] | None:
        """The strings' JSON bytes, and where each begins and ends.

        None if JSON needs escapes, or an event has no string.
        """
        if not self._plain or (self._starts < 0).any():
            return None
        return self.spans

    @property
    def spans(self) -> tuple[bytes | memoryview, IntArray, IntArray]:
        """The strings' bytes, and where each begins and ends; a missing one begins below 0."""
        return self._data, self._starts, self._stops

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, rows: IntArray) -> "Texts":  # noqa: D102
        return Texts(self._data, self._starts[rows], self._stops[rows], plain=self._plain)

    def text(self, i: int) -> str | None:  # noqa: D102
        start = int(self._starts[i])
        return None if start < 0 else str(self._data[start : int(self._stops[i])], "utf-8")


class Categories(TextColumn):
    """Strings by code: string i is ``words[codes[i]]``, None if the code is negative.

    `words` may grow, but its items never change, so a result for a word can be cached.
    """

    __slots__ = ("codes", "words")

    def __init__(self, codes: IntArray, words: list[str]) -> None:
        self.codes = codes
        self.words = words

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: IntArray) -> "Categories":  # noqa: D102
        return Categories(self.codes[rows], self.words)

    def text(self, i: int) -> str | None:  # noqa: D102
        code = int(self.codes[i])
        return None if code < 0 else self.words[code]


class FeatureColumns(NamedTuple):
    """Features as columns: names of the numbers, their (n, d) float64 values, strings by name."""

    names: tuple[str, ...]
    array: FloatArray
    texts: "dict[str, list[str | None] | TextColumn]"
