"""Finds where CSV records end."""

import re
from functools import cache
from typing import NamedTuple

import numpy as np

__all__ = [
    "DELIMITERS",
    "NEWLINE",
    "QUOTED",
    "SEPARATOR",
    "CsvOptions",
    "Framing",
    "framing",
    "plain_end",
    "record_end",
]

_QUOTE, NEWLINE, _RETURN = b'"\n\r'
DELIMITERS = ",;\t"
SEPARATOR = re.compile(r'"?sep=(.)"?')  # a first line that Excel writes and reads
QUOTED = re.compile(rf'(?<![^{DELIMITERS}])"[^"]*+(?:""[^"]*+)*+"')


class CsvOptions(NamedTuple):
    """What a decoder needs to know about a CSV file: its columns and their delimiter."""

    header: list[str]
    delimiter: str = ","


class Framing(NamedTuple):
    """Where CSV records end, as patterns to match at the start of a record.

    A quote opens a quoted field only at the start of a field (RFC 4180, section 2). Elsewhere it is
    an ordinary character, also between a closing quote and the next delimiter of a line. A record
    continues past the end of a line where a quoted field does, but only if each of its quoted
    fields ends where a field has to end, and it has as many fields as there are columns. Otherwise
    the quote was stray, and its line is a (bad) record of its own.
    """

    whole: re.Pattern[bytes]
    """All consecutive valid records, each with its newline."""
    record: re.Pattern[bytes]
    """One valid record without its newline; it may be cut short, but not inside quotes."""
    open: re.Pattern[bytes]
    """The beginning of a record that continues past the end of a line and may be completed."""
    split: re.Pattern[bytes]
    """One valid record with its newline, or everything left."""


@cache
def framing(delimiters: str, width: int = 0) -> Framing:
    """Return the patterns of where records end.

    Parameters
    ----------
    delimiters
        Characters of which each ends a field.
    width
        Number of fields in a record of several lines; 0: any.
    """
    # All possessive: a record can be read in one way only, so nothing backtracks.
    inner = re.escape(delimiters.encode())
    separator = b"[" + inner + b"]"
    plain = b"[^\\n" + inner + b"]*+"
    field = rb'(?:"[^"\n]*+(?:""[^"\n]*+)*+"|(?!"))' + plain
    line = field + b"(?:" + separator + field + b")*+"
    begun = rb'"[^"]*+(?:""[^"]*+)*+'
    ended = begun + rb'"(?:\r(?=\n|\Z))?(?=[\n' + inner + rb"]|\Z)"
    strict = b"(?:" + ended + rb'|(?!")' + plain + b")"
    more = b"*+" if width < 1 else b"{%d}" % (width - 1)
    lines = strict + b"(?:" + separator + strict + b")" + more
    before = b"*+" if width < 1 else b"{0,%d}+" % (width - 1)
    last = b"(?:" + begun + rb'(?:"\r?)?|(?!")' + plain + rb")\Z"
    record = b"(?:" + line + rb"(?=\n|\Z)|" + lines + rb"(?=\n|\Z))"
    return Framing(
        re.compile(b"(?:" + record + rb"\n)*+"),
        re.compile(record),
        re.compile(b"(?:" + strict + separator + b")" + before + last),
        re.compile(rb"(?!\Z)(?:" + record + rb"(?:\n|\Z)|.+\Z)", re.DOTALL),
    )


def record_end(pattern: re.Pattern[bytes], data: bytes) -> int:
    """Return the end of the match at the start of `data`, 0 if there is none."""
    match = pattern.match(data)
    return match.end() if match else 0


def plain_end(data: bytes, delimiter: str, width: int) -> int:
    """Return the end of the last valid record in `data`, if all quotes are regular; else -1.

    They are if every other quote opens a field or doubles the one before, each of the others ends
    the field or is doubled, and records of several lines have `width` fields.
    """
    array = np.frombuffer(data, np.uint8)
    quotes, newlines = np.flatnonzero(array == _QUOTE), np.flatnonzero(array == NEWLINE)
    outside = np.flatnonzero(np.searchsorted(quotes, newlines) % 2 == 0)
    if not len(outside):
        return -1
    ends = newlines[outside]
    end = int(ends[-1]) + 1
    quotes = quotes[: np.searchsorted(quotes, end)]
    opening, closing = quotes[::2], quotes[1::2]
    before, after = array[opening - 1], array[closing + 1]
    if len(opening) and opening[0] == 0:
        before[0] = NEWLINE
    ends_field = np.zeros(256, np.bool_)
    ends_field[[ord(delimiter), NEWLINE, _QUOTE]] = True
    returns = after == _RETURN
    if returns.any():
        after = np.where(returns & (array[np.minimum(closing + 2, end - 1)] == NEWLINE), 10, after)
    if not (ends_field[before].all() and ends_field[after].all()):
        return -1
    several = np.flatnonzero(np.diff(outside, prepend=-1) > 1)
    if len(several):
        separators = np.flatnonzero(array[:end] == ord(delimiter))
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
        begins = np.where(several > 0, ends[several - 1], -1)
        counts = np.searchsorted(separators, ends[several]) - np.searchsorted(separators, begins)
        if (counts != width - 1).any():
            return -1
    return end
