"""Cuts a stream of bytes into blocks of whole records, JSON Lines or CSV."""

import csv

import numpy as np

from midstream.connectors.decode.framing import (
    DELIMITERS,
    NEWLINE,
    QUOTED,
    SEPARATOR,
    CsvOptions,
    Framing,
    framing,
    plain_end,
    record_end,
)
from midstream.connectors.files.bytestream import ByteStream
from midstream.connectors.input import Block, Cursor, InputError, TextFormat

__all__ = ["Partition"]

_BOM = b"\xef\xbb\xbf"
_HEAD = 1024
_SCAN = 1024 * 1024


class Partition:
    """Cuts a stream of bytes into blocks of whole records.

    Where a record ends depends on its bytes alone, never on how reads or blocks are cut. In CSV it
    ends at a newline outside quotes (see `Framing`). If there is none within `max_record_bytes`, or
    before the end of the file, the quote was stray: the first line is a (bad) record of its own,
    and reading continues with the next line. A growing file is waited for until then.
    """

    replayable = True

    def __init__(
        self,
        stream: ByteStream,
        name: str,
        *,
        format: TextFormat,  # noqa: A002 the word in the config
        position: Cursor,
        max_record_bytes: int,
    ) -> None:
        if max_record_bytes < 1:
            raise ValueError(f"max_record_bytes must be at least 1, got {max_record_bytes}")
        self.name = name
        self.format = format
        self.header: list[str] = []
        self.delimiter = ","
        self._said = ""  # the delimiter that the first line declares
        self._stream = stream
        self._limit = max_record_bytes
        # A file is opened at its start to read its header, then moves to the position; a stream
        # that only counts (standard input) is at the position from the start.
        self._target = position
        self._line = position.line if stream.offset == position.offset else 1
        self._past_bom = False
        self._begun = False
        self._at_end = False
        self._waits = False
        # An over-long record being skipped: its start, its first bytes, its length so far.
        self._long: tuple[int, bytes, int] | None = None

    @property
    def position(self) -> Cursor:
        """Where the next block starts."""
        if not self._begun:
            return self._target
        return Cursor(self._stream.offset if self._long is None else self._long[0], self._line)

    @property
    def at_end(self) -> bool:
        """Whether everything was read and nothing can follow.

        After `read` returned None: True for a file if it was `final`, for a pipe if it was closed.
        """
        return self._at_end

    @property
    def head(self) -> int:
        """Fingerprint of the first bytes; 0 if nothing was read or it cannot be recognised."""
        return self._stream.head

    @property
    def tail(self) -> int:
        """Fingerprint of the last bytes read; 0 as in `head`."""
        return self._stream.tail

    @property
    def inode(self) -> int:
        """The inode number of the file."""
        return self._stream.inode

    @property
    def deleted(self) -> bool:
        """Whether the file has no name any more."""
        return self._stream.deleted

    @property
    def waits(self) -> bool:
        """Whether a quote was open at the end of a line when `read` last returned None."""
        return self._waits

    @property
    def csv_options(self) -> CsvOptions | None:
        """What a decoder needs to know about a CSV file; None for JSON Lines."""
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
            Length to aim at. A longer record is a block of its own.
        final
            The end of the file ends its last record. Otherwise a line waits for its newline.
        until
            Never read past this byte: the end of a range that is replayed, and of a record.

        Raises
        ------
        InputError
            If the file cannot be read any further: it was truncated or replaced, or its archive is
            damaged. Everything before the damage has been returned.
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
            stray = newline > 0 and record_end(self._framing.record, data) < len(data)
            return self._block(data[:newline] if stray else data)
        if newline and self.format == "csv" and not self._framing.open.fullmatch(data):
            return self._block(data[:newline])
        self._waits = newline > 0
        self._nothing(until=until)
        return None

    def _last_end(self, data: bytes) -> int:
        """Return the end of the last whole record in `data`, 0 if there is none."""
        end = data.rfind(b"\n") + 1
        if self.format == "jsonl" or b'"' not in data:
            return end
        plain = plain_end(data, self.delimiter, len(self.header))
        return plain if plain >= 0 else record_end(self._framing.whole, data)

    def _first_end(self, data: bytes) -> int:
        """Return the end of the first whole record in `data`, 0 if there is none."""
        if self.format == "jsonl":
            return data.find(b"\n") + 1
        end = record_end(self._framing.record, data)
        return end + 1 if data[end : end + 1] == b"\n" else 0

    @property
    def _framing(self) -> Framing:
        return framing(self.delimiter, len(self.header)) if self.header else framing(DELIMITERS)

    def _block(self, data: bytes) -> Block:
        start, first = self._stream.offset, self._line
        # Four times as fast as bytes.count, which stops at every newline.
        lines = int(np.count_nonzero(np.frombuffer(data, np.uint8) == NEWLINE))
        lines += not data.endswith(b"\n")
        self._stream.skip(data)
        self._line += lines
        return Block(self.name, data, first, lines, start, start + len(data))

    def _skip_long(self, *, until: int | None) -> Block | None:
        """Move past a record that is too long, holding one step of it at a time."""
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
        """Raise if the lack of a block is an error; note whether it is the end."""
        self._at_end = self._stream.ended
        self._stream.check()
        if until is not None and self._at_end:
            raise InputError(self._stream.too_short(self._stream.offset, until))

    def _begin(self) -> bool:
        """Move past what precedes the first record; False if some of it is not written yet."""
        if self._begun:
            return True
        stream, target = self._stream, self._target
        if not self._past_head():
            if target.offset > stream.offset:
                stream.check()
                raise InputError(stream.too_short(stream.offset, target.offset))
            return False
        if target.offset > stream.offset:
            stream.seek(target.offset)
            self._line = target.line
        self._begun = True
        return True

    def _past_head(self) -> bool:
        """Move past a byte order mark and a CSV header."""
        stream = self._stream
        if not self._past_bom:
            mark = stream.peek(len(_BOM))
            if len(mark) < len(_BOM) and _BOM.startswith(mark) and not stream.ended:
                return False
            if mark == _BOM:
                stream.skip(mark)
            self._past_bom = True
        if self.format == "auto" and not self._detect_format():
            return False
        return self.format != "csv" or bool(self.header) or self._read_header()

    def _detect_format(self) -> bool:
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
                return True  # a file that ends before its header has no events

    def _parse_header(self, record: bytes) -> None:
        try:
            text = record.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}: CSV header is not UTF-8: {error}") from None
        if (said := SEPARATOR.fullmatch(text)) and not self._said:
            if said[1] not in DELIMITERS:
                raise InputError(
                    f"{self.name}: its first line says that {said[1]!r} separates cells; allowed: "
                    "a comma, a semicolon or a tab"
                )
            self._said = said[1]
            return  # the header comes next
        bare = QUOTED.sub("", text)
        self.delimiter = self._said or max(DELIMITERS, key=bare.count)
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
