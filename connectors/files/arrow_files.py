"""Reads Arrow IPC and Parquet files: blocks of rows.

Files are mapped into memory, so a record batch of any size costs only the rows that are read; a
compressed one is decompressed whole. Of a Parquet row group, one page per column is decoded at a
time.
"""

import mmap
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from midstream.connectors.decode.arrow_decoder import TableDecoder, TableForm, join, one_line
from midstream.connectors.decode.fingerprint import HEAD_ROWS
from midstream.connectors.files.discovery import open_regular
from midstream.connectors.input import Cursor, InputError, TableBlock

__all__ = ["TablePartition"]

_MOST_ROWS = 16_384
_TEXT_PER_TABLE = 8  # rows decode faster than text, so a block may have more bytes
_WORTH_JOINING = 4  # record batches smaller than a block by this factor are joined by copying
_KEPT_MAPPED = 64 * 2**20
_NO_FOOTER = (
    "{} has no footer: it was cut, or is still being written; write it under another name, and "
    "rename it when it is whole"
)


class _Form(Protocol):
    """Selects what is read of each record batch."""

    reads: list[str]

    def select(self, batch: Any) -> Any:
        """Return the selected part of a batch."""


class _Table(Protocol):
    """One file in one of the formats."""

    schema: Any

    def batches(self, form: _Form, row: int) -> Iterator[Any]:
        """Yield record batches of the selected columns, from row `row` on, counted from 0."""

    def rows(self) -> int:
        """Return the number of rows."""


class TablePartition:
    """One Arrow IPC file (or stream) or Parquet file.

    Parallel by partition. After a resume nothing is repeated: positions are rows, from 0, and the
    same range always holds the same rows. A fingerprint detects a changed file. A file has to be
    complete when it is opened: write it under another name, then rename it. Only an IPC stream may
    grow, by complete record batches.

    Parameters
    ----------
    path
        The file. Its content tells Arrow's file format from its stream format.
    name
        Name in blocks and errors.
    format
        "arrow" or "parquet".
    decoder
        Knows what the columns mean.
    position
        The row to resume at. What precedes it in a stream, or in its row group or compressed record
        batch, is decoded again.

    Raises
    ------
    InputError
        If the file does not exist, cannot be opened for lack of permission, or is damaged; if a
        required column is missing or has a type that is not allowed.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        *,
        format: Literal["arrow", "parquet"],  # noqa: A002 the word in the config
        decoder: TableDecoder,
        position: Cursor = Cursor(),  # noqa: B008 immutable
    ) -> None:
        self.name = name
        self.position = position
        self._format = format
        self._decoder = decoder
        self._fd = open_regular(Path(path), name)
        self._file = os.fstat(self._fd)
        self._map: mmap.mmap | None = None
        self._table: _Table | None = None
        self._form: TableForm | None = None
        self._batches: Iterator[Any] | None = None
        self._batch: Any = None  # the current record batch, read up to row `_at`
        self._at = 0
        self._head: dict[int, int] = {}
        self._recent: deque[tuple[int, Any]] = deque()  # the parts read last, with their first rows
        self._tail = -1, 0  # a position, and the fingerprint of the rows before it
        self._failure: InputError | None = None
        self._mapped = 0  # bytes read since pages were last unmapped

    @property
    def waits(self) -> bool:
        """Whether a followed file was still incomplete when `read` last returned None."""
        return self._table is None

    def close(self) -> None:
        """Close the file. Rows that were read stay in memory while they are used."""
        self._batches = self._batch = self._table = self._map = None
        self._recent.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(
        self, max_bytes: int = 256 * 1024, *, final: bool, until: int | None = None
    ) -> TableBlock | None:
        """Return the next rows; None if none are available now.

        Parameters
        ----------
        max_bytes
            Length to aim at, as if the rows were text.
        final
            The file will not grow: an incomplete file is an error. Otherwise it is waited for.
        until
            Never read past this row: the end of a range that is replayed.

        Raises
        ------
        InputError
            If the file cannot be read any further; everything before the damage was returned.
        """
        if not self._opened(final=final):
            return None
        form, start = self._form, self.position.offset
        assert form is not None
        counted = max(form.row_bytes // _TEXT_PER_TABLE, 1)
        rows = min(max(max_bytes // counted, 1), _MOST_ROWS)
        if until is not None:
            rows = min(rows, until - start)
        self._check_unchanged()
        parts: list[Any] = []
        n = crc = 0
        while n <= rows // _WORTH_JOINING and n < rows:
            if self._batch is None or self._at >= self._batch.num_rows:
                self._batch, self._at = self._next(final=final, more=n > 0), 0
                if self._batch is None:
                    break
            part = self._batch.slice(self._at, rows - n)
            try:  # before joining: this detects misplaced strings
                crc += self._fingerprint(part, start + n)
            except InputError:
                if not parts:
                    raise
                break  # first return what precedes the damage
            self._at += part.num_rows
            n += part.num_rows
            parts.append(part)
            whole = part.num_rows >= HEAD_ROWS
            self._tail = (start + n, form.fingerprints.of_last) if whole else (-1, 0)
        if not parts:
            if until is not None and start < until:
                raise InputError(
                    f"{self.name}: ends at row {start}, but rows up to {until} were learned from "
                    "it; it was cut or replaced"
                )
            return None
        table = parts[0] if len(parts) == 1 else _joined(parts)
        self._keep(start, table)
        self.position = Cursor(start + n, self.position.line + n)
        self._give_back(n * form.row_bytes)
        first = self.position.line - n
        crc %= 2**32
        return TableBlock(self.name, table, form, first, n, start, start + n, crc, n * counted)

    def rows(self, *, final: bool) -> int:
        """Return the number of rows now. Raises InputError as `read` does."""
        if not self._opened(final=final):
            return 0
        assert self._table is not None
        try:
            return self._table.rows()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from None

    def head(self, rows: int) -> int:
        """Return the fingerprint of the first `rows` rows, at most `HEAD_ROWS`."""
        rows = min(rows, HEAD_ROWS)
        if rows not in self._head and self._opened(final=False):
            assert self._table is not None
            assert self._form is not None
            total = at = 0
            try:
                for batch in self._table.batches(self._form, 0):
                    part = batch.slice(0, rows - at)
                    total += self._fingerprint(part, at)
                    at += part.num_rows
                    if at >= rows:
                        break
            except (pa.ArrowException, OSError, ValueError) as error:
                raise self._damaged(error) from None
            self._head[rows] = total % 2**32
        return self._head.get(rows, 0)

    @property
    def inode(self) -> int:
        """The inode number of the file."""
        return self._file.st_ino

    def tail(self) -> int:
        """Return the fingerprint of the rows before the position, at most `HEAD_ROWS`."""
        stop = self.position.offset
        if self._tail[0] == stop:
            return self._tail[1] or 1
        first = max(stop - HEAD_ROWS, 0)
        if stop and not self._recent and self._opened(final=False):
            assert self._table is not None
            assert self._form is not None
            try:
                at = first
                for batch in self._table.batches(self._form, first):
                    self._keep(at, batch.slice(0, stop - at))
                    at += batch.num_rows
                    if at >= stop:
                        break
            except (pa.ArrowException, OSError, ValueError) as error:
                raise self._damaged(error) from None
        total = 0
        for row, part in self._recent:
            skipped = max(first - row, 0)
            total += self._fingerprint(part.slice(skipped), row + skipped)
        return total % 2**32 or 1 if self._recent else 0

    def _keep(self, row: int, table: Any) -> None:
        """Keep the rows that `tail` needs; `row` is the first row of `table`."""
        self._recent.append((row, table))
        stop = row + table.num_rows
        while len(self._recent) > 1 and self._recent[1][0] <= stop - HEAD_ROWS:
            self._recent.popleft()

    def sample(self, rows: int) -> Any:
        """Return the first rows with all columns of any type, as a `pyarrow.Table`."""
        try:
            table = self._whole(final=True)
            assert table is not None
            batches, n = [], 0
            for batch in table.batches(_Everything(table.schema.names), 0):
                batch.validate(full=True)
                batches.append(batch.slice(0, rows - n))
                n += batches[-1].num_rows
                if n >= rows:
                    break
            return pa.Table.from_batches(batches, table.schema)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from None
        finally:
            self.close()

    def _opened(self, *, final: bool) -> bool:
        """Open the table if the file is complete; return whether it is."""
        if self._table is not None:
            return True
        try:
            self._table = self._whole(final=final)
            if self._table is not None:
                self._form = self._decoder.form(self._table.schema)
        except InputError as error:
            self._table = None
            raise InputError(f"{self.name}: {error}") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from None
        return self._table is not None

    def _whole(self, *, final: bool) -> _Table | None:
        what = "Parquet file" if self._format == "parquet" else "Arrow file"
        size = self._file.st_size
        if not size:
            if final:
                raise InputError(f"is empty: no {what}")
            return None
        self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)
        begin, end = self._map[:8], self._map[-6:]
        buffer = pa.py_buffer(self._map)
        if self._format == "parquet":
            magic, whole = begin[:4], end[-4:] == b"PAR1"
            if magic == b"PARE" or end[-4:] == b"PARE":
                raise InputError("is encrypted, which is not read")
            if magic == b"PAR1"[: len(magic)] and not (whole and size > 8):
                if final:
                    raise InputError(_NO_FOOTER.format(f"this {what}"))
                return None
            if magic == b"PAR1":
                return _Parquet(buffer)
        else:
            if begin[:6] == b"ARROW1"[: len(begin)]:
                if not (end == b"ARROW1" and size > 16):
                    if final:
                        raise InputError(_NO_FOOTER.format(f"this {what}"))
                    return None
                return _IpcFile(buffer)
            if begin[:4] == b"\xff\xff\xff\xff"[: len(begin)]:
                try:
                    return _IpcStream(buffer)
                except (pa.ArrowException, OSError):
                    if final:
                        raise
                    return None
            if begin[:4] == b"FEA1":
                raise InputError("is Feather version 1, which is not read; write it as version 2")
        if begin[:2] == b"\x1f\x8b":
            raise InputError(f"is compressed by gzip, which no {what} is; decompress it")
        raise InputError(f"is no {what}")

    def _next(self, *, final: bool, more: bool) -> Any:
        """Return the next record batch that has rows; None at the end.

        `more`: rows before it have not been returned yet, so an error in it can wait.
        """
        assert self._table is not None
        assert self._form is not None
        if self._failure is not None:
            if more:
                return None
            raise self._failure
        try:
            if self._batches is None:
                self._batches = self._table.batches(self._form, self.position.offset)
            return next(self._batches, None)
        except InputError as error:
            if not final:
                return None  # half a record batch: the rest may follow
            self._failure = InputError(f"{self.name}: {error}")
        except (pa.ArrowException, OSError, ValueError) as error:
            self._failure = self._damaged(error)
        if more:
            return None
        raise self._failure

    def _fingerprint(self, table: Any, row: int) -> int:
        assert self._form is not None
        try:
            return self._form.fingerprints.of(table.columns, row)
        except (pa.ArrowException, ValueError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> InputError:
        what = "Parquet" if self._format == "parquet" else "Arrow"
        row = self.position.offset + 1
        where = "" if self._table is None else f" from row {row} on"
        return InputError(f"{self.name}: cannot be read as {what}{where}: {one_line(error)}")

    def _check_unchanged(self) -> None:
        """Raise InputError if the mapped file has changed: reading a truncated page would crash.

        An IPC stream may have grown.
        """
        now = os.fstat(self._fd)
        grown = isinstance(self._table, _IpcStream) and now.st_size >= self._file.st_size
        if not grown and (now.st_size, now.st_mtime_ns) != (
            self._file.st_size,
            self._file.st_mtime_ns,
        ):
            raise InputError(f"{self.name}: was changed while it was read")

    def _give_back(self, read: int) -> None:
        """Unmap the pages read so far, from time to time: the file still has them."""
        self._mapped += read
        if self._mapped > _KEPT_MAPPED and self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._mapped = 0


class _Everything:
    def __init__(self, names: list[str]) -> None:
        self.reads = names

    def select(self, batch: Any) -> Any:
        return batch


class _IpcFile:
    """Arrow IPC, the file format: record batches by number."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.schema = pa.ipc.open_file(buffer).schema

    def batches(self, form: _Form, row: int) -> Iterator[Any]:
        reader = pa.ipc.open_file(self._buffer, options=_options())
        lengths = self._lengths() if row else None
        for i in range(reader.num_record_batches):
            if lengths is not None and row >= (length := next(lengths)):
                row -= length
                continue
            yield from _selected(reader.get_batch(i), form, row)
            row = 0

    def rows(self) -> int:
        return sum(self._lengths())

    def _lengths(self) -> Iterator[int]:
        # One column suffices to know the lengths, and is less to decompress.
        reader = pa.ipc.open_file(self._buffer, options=_options([0] if self.schema.names else []))
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i).num_rows


class _IpcStream:
    """Arrow IPC, the stream format: one record batch after another."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.schema = pa.ipc.open_stream(buffer).schema

    def batches(self, form: _Form, row: int) -> Iterator[Any]:
        for batch in self._read(_options()):
            if row >= batch.num_rows:
                row -= batch.num_rows
                continue
            yield from _selected(batch, form, row)
            row = 0

    def rows(self) -> int:
        return sum(batch.num_rows for batch in self._read(_options([0])))

    def _read(self, options: Any) -> Iterator[Any]:
        """Yield complete record batches. Raises InputError if an incomplete one follows."""
        source = pa.BufferReader(self._buffer)
        reader = pa.ipc.open_stream(source, options=options)
        while True:
            try:
                yield reader.read_next_batch()
            except StopIteration:
                return
            except (OSError, pa.ArrowInvalid) as error:
                if source.tell() < source.size():
                    raise
                raise InputError(f"ends within a record batch: {one_line(error)}") from None


class _Parquet:
    """Parquet: row groups, decoded part by part."""

    def __init__(self, buffer: Any) -> None:
        # Without `pre_buffer`, which would copy a whole row group from the mapped file.
        self._file = pq.ParquetFile(
            pa.BufferReader(buffer), pre_buffer=False, page_checksum_verification=True
        )
        self.schema = self._file.schema_arrow

    def batches(self, form: _Form, row: int) -> Iterator[Any]:
        for group in range(self._file.num_row_groups):
            length = self._file.metadata.row_group(group).num_rows
            if row >= length:
                row -= length
                continue
            for batch in self._file.iter_batches(
                _MOST_ROWS, row_groups=[group], columns=form.reads, use_threads=False
            ):
                if row >= batch.num_rows:
                    row -= batch.num_rows
                    continue
                yield from _selected(batch, form, row)
                row = 0

    def rows(self) -> int:
        return int(self._file.metadata.num_rows)


def _options(columns: list[int] | None = None) -> Any:
    """Return IPC options: all columns, without copying, or some, which are copied."""
    return pa.ipc.IpcReadOptions(included_fields=columns or [], use_threads=False)


def _joined(parts: list[Any]) -> Any:
    """Join record batches into one."""
    try:
        return join(parts)
    except pa.ArrowException:  # dictionaries that cannot be unified
        plain = []
        for part in parts:
            columns = [
                c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in part.columns
            ]
            plain.append(pa.RecordBatch.from_arrays(columns, part.schema.names))
        return join(plain)


def _selected(batch: Any, form: _Form, row: int) -> Iterator[Any]:
    """Yield the columns to be read, from `row` on, if there are rows."""
    if batch.num_rows:
        batch.validate()
        yield form.select(batch).slice(row)
