"""The input of one shard: its files, in one order, with a cursor in each.

Guarantee: what `read` gives, `replay` of the same ranges gives again, byte for byte, or an error
says which file was changed in between. Positions are bytes, and rows in Arrow and Parquet files.
"""

import gzip
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from midstream.connectors.files import (
    Block,
    CsvOptions,
    FilePartition,
    Format,
    InputError,
    NoFilesError,
    Position,
    StdinPartition,
    discover,
)
from midstream.connectors.records import TableBlock, TextFormat
from midstream.engine.journal import Range
from midstream.engine.shard import Cursor

if TYPE_CHECKING:
    from midstream.connectors.arrow_codec import TableDecoder
    from midstream.connectors.arrow_files import TablePartition
    from midstream.connectors.messages import MessageBlock

__all__ = ["FileInput", "Work", "normal_path"]

_MAX_OPEN = 32
_NOTHING = 2**62  # the oldest position of what is not there
_HEAD = 512  # bytes at the beginning of a file by which it is known again


def normal_path(path: str, root: Path) -> str:
    """Return a path or pattern in one spelling, relative to `root` where it is inside."""
    if path == "-":
        return path
    normal = os.path.normpath(root / path)
    inside = os.path.relpath(normal, root)
    return normal if inside.startswith("..") else inside


class Work(NamedTuple):
    """A block of input with its place in the journal; `final` ends a replayed range."""

    block: "Block | TableBlock | MessageBlock"
    span: Range
    final: bool = True


class _File:
    """One file of the input: where we are in it, and the open partition if it is open."""

    def __init__(self, name: str, path: Path, format_: Format, cursor: Cursor) -> None:
        self.name = name
        self.path = path
        self.format = format_
        self.cursor = cursor
        self.partition: FilePartition | StdinPartition | TablePartition | None = None
        self.exhausted_at = -1  # its size when nothing more was in it
        self.first = b""  # its first bytes

    @property
    def is_stdin(self) -> bool:
        return self.name == "-"

    @property
    def unit(self) -> str:
        """What positions in it are."""
        return "row" if self.format in ("arrow", "parquet") else "byte"

    def size(self) -> int:
        """Its size on disk; of a file that is gone: what it was when it was read to its end."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return self.exhausted_at

    def head(self, offset: int) -> int:
        """CRC-32 of the first bytes, of those before `offset`."""
        if self.is_stdin:
            return 0
        if len(self.first) < min(_HEAD, offset):
            self.first = _first_bytes(self.path)
        return zlib.crc32(self.first[: min(_HEAD, offset)])


class FileInput:
    """The files that one shard reads.

    Parameters
    ----------
    path, root
        A file, folder, glob or "-", relative to `root`.
    part
        Only the file of this name (where every file is a shard of its own).
    format_
        "jsonl", "csv", "arrow", "parquet", or "auto": told by each file's name or content.
    order
        "name": one file after another, in natural order; "fair": a block of each in turn.
    until_eof
        The end of the files is the end of the input; otherwise they are followed as they grow,
        and a folder may be empty at first.
    tables
        Gives what decodes Arrow and Parquet; called where there is such a file.

    Raises
    ------
    InputError
        If there is no input, or it needs a library that is not installed.
    """

    def __init__(
        self,
        path: str,
        root: Path,
        *,
        part: str | None = None,
        format_: Format = "auto",
        order: Literal["name", "fair"] = "name",
        until_eof: bool = False,
        max_record_bytes: int = 2**20,
        tables: "Callable[[], TableDecoder] | None" = None,
    ) -> None:
        self._path = normal_path(path, root)
        self._root = root
        self._part = part
        self._format = format_
        self._fair = order == "fair"
        self._until_eof = until_eof
        self._max_record_bytes = max_record_bytes
        self._tables = tables
        self.waiting: set[str] = set()
        """Names of files that are not whole yet, and are tried again."""
        self._files: dict[str, _File] = {}
        self._cursors: Mapping[str, Cursor] = {}
        self._turn = 0
        self.rescan()
        for file in self._files.values():
            if tables is not None and file.unit == "row":
                self._table_decoder(file)  # libraries are loaded before the first read is awaited
                break

    @property
    def names(self) -> list[str]:
        """Names of the files, in natural order."""
        return list(self._files)

    def rescan(self) -> list[str]:
        """Look for files that are new; return their names."""
        try:
            found = discover(self._path, self._root)
        except InputError as error:
            if not self._files and (self._until_eof or not isinstance(error, NoFilesError)):
                raise
            found = []  # there are none yet, or all are gone, and more may come
        new = []
        files: dict[str, _File] = {}
        for name, path, format_ in found:
            if self._part is not None and name != self._part:
                continue
            chosen = format_ if self._format == "auto" else self._format
            if name not in self._files:
                new.append(name)
                files[name] = _File(name, path, chosen, self._cursors.get(name, Cursor()))
            else:
                files[name] = self._files[name]
        for name, file in self._files.items():
            files.setdefault(name, file)  # gone from the folder, perhaps still to be read again
        self._files = files
        return new

    def seek(self, cursors: Mapping[str, Cursor]) -> None:
        """Go to the cursors of a resumed shard, also in files that are not there now."""
        self._cursors = dict(cursors)
        for name, cursor in cursors.items():
            if name in self._files:
                self._files[name].cursor = cursor

    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors, to read again what came after them."""
        for name, cursor in cursors.items():
            if name in self._files:
                file = self._files[name]
                self._shut(file)
                file.cursor, file.exhausted_at = cursor, -1

    def lows(self) -> dict[str, int]:
        """Return, by file, the oldest position that can be read again: 0 where it is there.

        Of a file that is not, also one that was never seen, a very high one.
        """
        there = (f.name for f in self._files.values() if not f.is_stdin and f.path.exists())
        return defaultdict(lambda: _NOTHING, dict.fromkeys(there, 0))

    def begin(self) -> list[Work]:
        """Go to the end of every file that is there now (start = "latest").

        Returns an empty range for each, by which the journal knows where the partition begins.
        """
        begun = []
        for file in self._files.values():
            if file.is_stdin:
                continue
            partition = self._opened(file)
            if not isinstance(partition, FilePartition | StdinPartition):
                at = partition.rows(final=False)
                file.cursor = Cursor(at, at + 1, 0, partition.head(at))
                self._shut(file)
            else:
                while (block := partition.read(final=False)) is not None:
                    at = block.stop
                    file.cursor = Cursor(at, block.first + block.lines, 0, file.head(at))
            if file.cursor.offset:
                at = file.cursor.offset
                span = Range(file.name, at, at, file.cursor.line, 0, file.cursor.head)
                begun.append(Work(_nothing(span), span))
        return begun

    def read(self, max_bytes: int) -> Work | None:
        """Return the next block, or None if there is nothing (more) now; never blocks."""
        files = list(self._files.values())
        turn = self._turn if self._fair else 0
        for i in range(len(files)):
            file = files[(turn + i) % len(files)]
            if file.exhausted_at >= 0 and (
                (self._until_eof and not file.is_stdin) or file.size() == file.exhausted_at
            ):
                continue
            work = self._read(file, max_bytes, until=None)
            if work is not None:
                self._turn = (turn + i + 1) % len(files)
                return work
        return None

    @property
    def ended(self) -> bool:
        """Whether nothing more can come, after `read` gave None: never so while files are followed.

        Standard input ends where it is closed.
        """
        if not self._files:
            return self._until_eof
        return all(
            _at_end(file.partition) if file.is_stdin else self._until_eof and file.exhausted_at >= 0
            for file in self._files.values()
        )

    def replay(self, span: Range, max_bytes: int) -> Work:
        """Read a range of the journal again, a block a call, until one is `final`.

        Raises
        ------
        InputError
            If the input is gone or was changed since it was learned.
        """
        file = self._files.get(span.partition)
        if file is None:
            raise InputError(f"{span.partition}: is gone, and has to be read again after a crash")
        if file.is_stdin:
            raise InputError(
                "standard input cannot be read again after a crash; begin anew with --fresh, or "
                "give the input as a file"
            )
        if span.start == span.stop:
            file.cursor = Cursor(span.start, span.line, span.crc, span.head)
            return Work(_nothing(span), span)
        work = self._read(file, max_bytes, until=span.stop)
        if work is None:
            raise InputError(
                f"{span.partition}: ends at {file.unit} {file.cursor.offset}, but {file.unit}s up "
                f"to {span.stop} were learned from it; it was cut or replaced"
            )
        if work.span.stop < span.stop:
            return work._replace(final=False)
        if (work.span.line, work.span.crc) != (span.line, span.crc):
            raise InputError(
                f"{span.partition}: {file.unit}s {span.start} to {span.stop} are not what was "
                "learned from it; the file was changed"
            )
        return work

    def csv_options(self, name: str) -> CsvOptions | None:
        """Header and delimiter of a CSV file; None for others."""
        partition = self._opened(self._files[name])
        if isinstance(partition, FilePartition | StdinPartition):
            return partition.csv_options
        return None

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            self._shut(file)

    def _read(self, file: _File, max_bytes: int, until: int | None) -> Work | None:
        partition = self._opened(file)
        size = -1 if file.is_stdin else file.size()
        block = partition.read(max_bytes, final=self._until_eof or until is not None, until=until)
        if not isinstance(partition, FilePartition | StdinPartition):
            (self.waiting.add if partition.waits else self.waiting.discard)(file.name)
        if block is None:
            if until is None and not file.is_stdin:
                file.exhausted_at = size
                self._shut(file)
            return None
        if isinstance(block, TableBlock):
            assert not isinstance(partition, FilePartition | StdinPartition)
            line, head = block.first + block.lines, partition.head(block.stop)
            crc = (file.cursor.crc + block.crc) % 2**32
            file.cursor = Cursor(block.stop, line, crc, head)
            return Work(block, Range(file.name, block.start, block.stop, line, crc, head))
        crc = zlib.crc32(block.data, file.cursor.crc)
        if block.oversize:
            crc = zlib.crc32(b"%d" % block.oversize, crc)
        line = block.first + block.lines
        head = file.head(block.stop)
        file.cursor = Cursor(block.stop, line, crc, head)
        whole = bool(block.oversize) or block.data.endswith(b"\n")
        if not whole and until is None and not file.is_stdin:
            file.exhausted_at = size  # ended by its end: what is added now is for the next run
            self._shut(file)
        span = Range(file.name, block.start, block.stop, line, crc, head, whole)
        return Work(block, span)

    def _opened(self, file: _File) -> "FilePartition | StdinPartition | TablePartition":
        if file.partition is None:
            if sum(f.partition is not None for f in self._files.values()) >= _MAX_OPEN:
                for other in self._files.values():
                    self._shut(other)
            file.first = b""  # look again: it may be another file by now
            position, kind = Position(file.cursor.offset, file.cursor.line), file.format
            if kind == "arrow" or kind == "parquet":  # noqa: PLR1714 tells the types
                table = self._table_partition(file, kind, position)
                file.partition = table
                head = table.head(position.byte) if position.byte else 0
            else:
                head = file.head(position.byte) if position.byte else 0
            if position.byte and head != file.cursor.head:
                self._shut(file)
                raise InputError(
                    f"{file.name}: its beginning is not what was learned from it; another file was "
                    "put in its place: give it another name, or put the old one back"
                )
            if kind != "arrow" and kind != "parquet":  # noqa: PLR1714 likewise
                file.partition = self._text_partition(file, kind, position)
        assert file.partition is not None
        return file.partition

    def _text_partition(
        self, file: _File, kind: TextFormat, position: Position
    ) -> FilePartition | StdinPartition:
        size = self._max_record_bytes
        if file.is_stdin:
            return StdinPartition(format=kind, position=position, max_record_bytes=size)
        return FilePartition(
            file.path, file.name, format=kind, position=position, max_record_bytes=size
        )

    def _table_partition(
        self, file: _File, kind: Literal["arrow", "parquet"], position: Position
    ) -> "TablePartition":
        if file.is_stdin:
            raise InputError("standard input is read as JSON Lines or CSV; give Arrow as a file")
        decoder = self._table_decoder(file)
        from midstream.connectors.arrow_files import TablePartition

        return TablePartition(file.path, file.name, format=kind, decoder=decoder, position=position)

    def _table_decoder(self, file: _File) -> "TableDecoder":
        if self._tables is None:
            raise ValueError(f"{file.name}: nothing is given that decodes tables")
        try:
            return self._tables()
        except InputError as error:
            raise InputError(f"{file.name}: {error}") from None

    def _shut(self, file: _File) -> None:
        if file.partition is not None and not file.is_stdin:
            file.partition.close()
            file.partition = None


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of what a file holds, compressed or not; none if it is gone."""
    try:
        with path.open("rb") as file:
            first = file.read(_HEAD)
        if first[:2] == b"\x1f\x8b":
            with gzip.open(path) as archive:
                return archive.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return b""  # reading it says what is wrong
    return first


def _nothing(span: Range) -> Block:
    return Block(span.partition, b"", first=span.line, lines=0, start=span.start, stop=span.stop)


def _at_end(partition: object) -> bool:
    return isinstance(partition, StdinPartition) and partition.at_end
