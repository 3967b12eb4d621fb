"""Cuts a stream of bytes into blocks of whole records, JSON Lines or CSV."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from midstream.connectors.bytestream import ByteStream, InputError

if TYPE_CHECKING:
    from midstream.connectors.arrow_codec import TableForm

__all__ = [
    "Block",
    "CsvOptions",
    "Format",
    "Framing",
    "Partition",
    "Position",
    "TableBlock",
    "TextFormat",
    "framing",
]

TextFormat: TypeAlias = Literal["jsonl", "csv", "auto"]
"""JSON Lines or CSV; "auto": told by the first character, "{" is JSON Lines."""
Format: TypeAlias = Literal["jsonl", "csv", "arrow", "parquet", "auto"]
"""What a file may be; "auto": told by its name, else by its content."""

_BOM = b"\xef\xbb\xbf"
_HEAD = 1024
_SCAN = 1024 * 1024
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_DELIMITERS = ",;\t"
_SEPARATOR = re.compile(r'"?sep=(.)"?')  # a first line that Excel writes and reads
_QUOTED = re.compile(rf'(?<![^{_DELIMITERS}])"[^"]*+(?:""[^"]*+)*+"')


@dataclass(frozen=True, slots=True)
class Block:
    r"""Whole records of one input partition, not yet decoded.

    Attributes
    ----------
    partition
        Name of the file relative to the input's root; "-" is standard input.
    data
        The records, each ended by a newline, except possibly the last of the file.
    first
        Line number of the first line, from 1.
    lines
        How many lines, as an editor counts them, the block spans.
    start, stop
        Its bytes in the uncompressed file.
    oversize
        Above 0: this is one record that is too long, `oversize` bytes without its newline, and
        `data` has only its first 1,024 bytes.
    limit
        Of an oversize record: the length that was allowed.
    """

    partition: str
    data: bytes
    first: int
    lines: int
    start: int
    stop: int
    oversize: int = 0
    limit: int = 0

    @property
    def size(self) -> int:
        """Its length in bytes, as `read` is told how long a block may be."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows of an Arrow or Parquet file, as they lie in memory.

    Attributes
    ----------
    partition
        As of a `Block`.
    table
        A `pyarrow.RecordBatch` of the columns that are read.
    form
        The `TableForm` that says what its columns are.
    first, lines
        Number of the first row, from 1, and how many there are.
    start, stop
        Its rows, numbered from 0: the positions of such a file.
    crc
        Fingerprint of its values.
    size
        What it counts where the length of blocks is given in bytes.
    """

    partition: str
    table: Any
    form: "TableForm"
    first: int
    lines: int
    start: int
    stop: int
    crc: int
    size: int


@dataclass(frozen=True, slots=True)
class Position:
    """The next byte (of the uncompressed file), or row of a table, and the next line to read."""

    byte: int = 0
    line: int = 1


class CsvOptions(NamedTuple):
    """What a decoder has to know of a CSV file: its columns, and what separates them."""

    header: list[str]
    delimiter: str = ","


class Framing(NamedTuple):
    """Where CSV records end, as patterns to match at the start of a record.

    A quote opens a quoted field only where a field starts (RFC 4180, section 2); elsewhere it is
    a character like any other, in a line also between a closing quote and the next delimiter. A
    record goes on over the end of a line where a quoted field does, and only if that field, and
    each other that is quoted, ends where the field has to end, and the record has as many fields
    as there are columns. Else the quote was a stray one, and its line is a (bad) record alone.
    """

    whole: re.Pattern[bytes]
    """As many sound records as there are, each with its newline."""
    record: re.Pattern[bytes]
    """One sound record without its newline; it may be cut short, but not inside of quotes."""
    open: re.Pattern[bytes]
    """The beginning of one that goes on over the end of a line, and of which the rest may come."""
    split: re.Pattern[bytes]
    """One sound record with its newline, or all that is left."""


@cache
def framing(delimiters: str, width: int = 0) -> Framing:
    """Return where records end.

    Parameters
    ----------
    delimiters
        Any one of them ends a field.
    width
        How many fields a record of several lines has; 0: any number.
    """
    # Possessive throughout: there is one way to read a record, and no going back to try another.
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


class Partition:
    """Cuts a stream of bytes into blocks of whole records.

    Where a record ends depends on its bytes alone, never on how reads or blocks were cut. In CSV
    it ends at a newline outside of quotes (see `Framing`); if there is none within
    `max_record_bytes`, or the file, the quote was a stray one: the first line is a (bad) record of
    its own, and reading goes on with the next line. A file that grows is waited for so long.
    """

    replayable = True

    def __init__(
        self,
        stream: ByteStream,
        name: str,
        *,
        format: TextFormat,  # noqa: A002 the word in the config
        position: Position,
        max_record_bytes: int,
    ) -> None:
        if max_record_bytes < 1:
            raise ValueError(f"max_record_bytes must be at least 1, got {max_record_bytes}")
        self.name = name
        self.format = format
        self.header: list[str] = []
        self.delimiter = ","
        self._said = ""  # the delimiter that the first line says
        self._stream = stream
        self._limit = max_record_bytes
        # A file is opened at its start, and its header read, before it goes on at a position;
        # a stream that is only counted (standard input) is at the position from the start.
        self._target = position
        self._line = position.line if stream.offset == position.byte else 1
        self._past_bom = False
        self._begun = False
        self._at_end = False
        self._waits = False
        # An over-long record that is being skipped: its start, its first bytes, its length so far.
        self._long: tuple[int, bytes, int] | None = None

    @property
    def position(self) -> Position:
        """Where the next block starts."""
        if not self._begun:
            return self._target
        return Position(self._stream.offset if self._long is None else self._long[0], self._line)

    @property
    def at_end(self) -> bool:
        """Whether everything was read and nothing can follow.

        After `read` gave None: True for a file if it was `final`, for a pipe if it was closed.
        """
        return self._at_end

    @property
    def head(self) -> int:
        """Fingerprint of the first bytes; 0 where nothing was read, or is known again."""
        return self._stream.head

    @property
    def tail(self) -> int:
        """Fingerprint of the last bytes that were read, likewise."""
        return self._stream.tail

    @property
    def inode(self) -> int:
        """The number that the file system has for the file."""
        return self._stream.inode

    @property
    def deleted(self) -> bool:
        """Whether the file has no name any more."""
        return self._stream.deleted

    @property
    def waits(self) -> bool:
        """Whether, after `read` gave None, a quote is open over the end of a line."""
        return self._waits

    @property
    def csv_options(self) -> CsvOptions | None:
        """What a decoder has to know of a CSV file; None for JSON Lines."""
        return CsvOptions(self.header, self.delimiter) if self.format == "csv" else None

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(
        self, max_bytes: int = 256 * 1024, *, final: bool, until: int | None = None
    ) -> Block | None:
        """Return the next block of whole records; None if none is complete. Never blocks.

        Parameters
        ----------
        max_bytes
            Length to aim at. A longer record comes alone.
        final
            The end of the file ends its last record. Otherwise a line waits for its newline.
        until
            Never read past this byte: the end of a range that is read again, and of a record.

        Raises
        ------
        InputError
            If the file can not be read any further: it was truncated, replaced, or an archive is
            damaged, and everything before the damage has been delivered.
        """
        self._stream.growing = not final
        self._waits = False
        if not self._begin():
            self._nothing(until=until)
            return None
        if self._long is not None:
            return self._skip_long(until=until)
        start = self._stream.offset
        room = self._limit + 1 if until is None else min(self._limit + 1, until - start)
        if room <= 0:
            return None
        data = self._stream.peek(min(max(max_bytes, 1), room))
        if end := self._last_end(data):
            return self._block(data[:end])
        data = self._stream.peek(room)
        if end := self._first_end(data):
            return self._block(data[:end])
        if len(data) > self._limit:
            newline = data.find(b"\n")
            if newline < 0:
                self._long = (start, data[:_HEAD], 0)
                return self._skip_long(until=until)
            return self._block(data[: newline + 1])
        newline = data.find(b"\n") + 1
        if data and (start + len(data) == until or self._stream.ended):
            stray = newline > 0 and _end(self._framing.record, data) < len(data)
            return self._block(data[:newline] if stray else data)
        if newline and self.format == "csv" and not self._framing.open.fullmatch(data):
            return self._block(data[:newline])
        self._waits = newline > 0
        self._nothing(until=until)
        return None

    def _last_end(self, data: bytes) -> int:
        """Return where the last whole record in `data` ends, 0 if there is none."""
        end = data.rfind(b"\n") + 1
        if self.format == "jsonl" or b'"' not in data:
            return end
        plain = _plain_end(data, self.delimiter, len(self.header))
        return plain if plain >= 0 else _end(self._framing.whole, data)

    def _first_end(self, data: bytes) -> int:
        """Return where the first whole record in `data` ends, 0 if there is none."""
        if self.format == "jsonl":
            return data.find(b"\n") + 1
        end = _end(self._framing.record, data)
        return end + 1 if data[end : end + 1] == b"\n" else 0

    @property
    def _framing(self) -> Framing:
        return framing(self.delimiter, len(self.header)) if self.header else framing(_DELIMITERS)

    def _block(self, data: bytes) -> Block:
        start, first = self._stream.offset, self._line
        # Four times as fast as bytes.count, which goes from one newline to the next.
        lines = int(np.count_nonzero(np.frombuffer(data, np.uint8) == _NEWLINE))
        lines += not data.endswith(b"\n")
        self._stream.skip(data)
        self._line += lines
        return Block(self.name, data, first, lines, start, start + len(data))

    def _skip_long(self, *, until: int | None) -> Block | None:
        """Move past a record that is too long, holding no more of it than one step."""
        assert self._long is not None
        start, head, length = self._long
        stream = self._stream
        while True:
            room = _SCAN if until is None else min(_SCAN, until - stream.offset)
            data = stream.peek(room)
            newline = data.find(b"\n")
            step = len(data) if newline < 0 else newline
            stream.skip(data[:step])
            length += step
            self._long = (start, head, length)
            if newline >= 0:
                stream.skip(b"\n")
                break
            if stream.offset == until or (not data and stream.ended):
                break
            if not data:
                self._nothing(until=until)
                return None
        self._long = None
        self._line += 1
        return Block(self.name, head, self._line - 1, 1, start, stream.offset, length, self._limit)

    def _nothing(self, *, until: int | None) -> None:
        """Say why there is no block, where that is an error or the end."""
        self._at_end = self._stream.ended
        self._stream.check()
        if until is not None and self._at_end:
            raise InputError(self._stream.too_short(self._stream.offset, until))

    def _begin(self) -> bool:
        """Get past what precedes the first record; False if that has not all been written yet."""
        if self._begun:
            return True
        stream, target = self._stream, self._target
        if not self._past_head():
            if target.byte > stream.offset:
                stream.check()
                raise InputError(stream.too_short(stream.offset, target.byte))
            return False
        if target.byte > stream.offset:
            stream.seek(target.byte)
            self._line = target.line
        self._begun = True
        return True

    def _past_head(self) -> bool:
        """Get past a byte order mark and a CSV header."""
        stream = self._stream
        if not self._past_bom:
            mark = stream.peek(len(_BOM))
            if len(mark) < len(_BOM) and _BOM.startswith(mark) and not stream.ended:
                return False
            if mark == _BOM:
                stream.skip(mark)
            self._past_bom = True
        if self.format == "auto" and not self._tell_format():
            return False
        return self.format != "csv" or bool(self.header) or self._read_header()

    def _tell_format(self) -> bool:
        data = self._stream.peek(_HEAD)
        first = data.lstrip()[:1]
        if not first and len(data) < _HEAD and not self._stream.ended:
            return False
        self.format = "csv" if first and first != b"{" else "jsonl"
        return True

    def _read_header(self) -> bool:
        """Take the first record that is not blank as the header."""
        stream = self._stream
        while True:
            data = stream.peek(self._limit + 1)
            end = self._first_end(data)
            if not end:
                if len(data) > self._limit:
                    raise InputError(
                        f"{self.name}: no end of the CSV header within {self._limit:,} bytes"
                    )
                if not stream.ended:
                    return False
                end = len(data)
            record = data[:end]
            if record.strip():
                self._parse_header(record)
            self._line += record.count(b"\n")
            stream.skip(record)
            if self.header or not record:
                return True  # a file that ends before its header has no events either

    def _parse_header(self, record: bytes) -> None:
        try:
            text = record.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}: CSV header is not UTF-8: {error}") from None
        if (said := _SEPARATOR.fullmatch(text)) and not self._said:
            if said[1] not in _DELIMITERS:
                raise InputError(
                    f"{self.name}: its first line says that {said[1]!r} separates cells; allowed: "
                    "a comma, a semicolon or a tab"
                )
            self._said = said[1]
            return  # what comes next is the header
        bare = _QUOTED.sub("", text)
        self.delimiter = self._said or max(_DELIMITERS, key=bare.count)
        try:
            names = next(csv.reader([text], delimiter=self.delimiter, strict=True))
        except (csv.Error, StopIteration) as error:
            raise InputError(f"{self.name}: CSV header cannot be read: {error}") from None
        header = [name.strip() for name in names]
        double = sorted({name for name in header if header.count(name) > 1})
        if double:
            columns = ", ".join(map(repr, double))
            raise InputError(f"{self.name}: columns that occur twice in the CSV header: {columns}")
        self.header = header


def _end(pattern: re.Pattern[bytes], data: bytes) -> int:
    """Return where the match at the start of `data` ends, 0 if there is none."""
    match = pattern.match(data)
    return match.end() if match else 0


def _plain_end(data: bytes, delimiter: str, width: int) -> int:
    """Return where the last sound record in `data` ends, if a look at all quotes at once tells.

    So it does where every other quote opens a field, or doubles the one before, and each of the
    others ends the field, or is doubled, and records of several lines have `width` fields. Else -1.
    """
    array = np.frombuffer(data, np.uint8)
    quotes, newlines = np.flatnonzero(array == _QUOTE), np.flatnonzero(array == _NEWLINE)
    outside = np.flatnonzero(np.searchsorted(quotes, newlines) % 2 == 0)
    if not len(outside):
        return -1
    ends = newlines[outside]
    end = int(ends[-1]) + 1
    quotes = quotes[: np.searchsorted(quotes, end)]
    opening, closing = quotes[::2], quotes[1::2]
    before, after = array[opening - 1], array[closing + 1]
    if len(opening) and opening[0] == 0:
        before[0] = _NEWLINE
    ends_field = np.zeros(256, np.bool_)
    ends_field[[ord(delimiter), _NEWLINE, _QUOTE]] = True
    returns = after == _RETURN
    if returns.any():
        after = np.where(returns & (array[np.minimum(closing + 2, end - 1)] == _NEWLINE), 10, after)
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
