"""The input of one shard: its files in order, with a cursor in each.

Guarantee: `replay` of a range returns the bytes that `read` returned, or raises an error that names
the changed file. Positions are bytes; in Arrow and Parquet files, rows.
"""

import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from midstream.connectors.decode.decoder import Decoder, Decoding
from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.files.bytestream import ByteStream
from midstream.connectors.files.discovery import (
    FilePartition,
    StdinPartition,
    may_be,
    open_regular,
)
from midstream.connectors.files.rotation import first_name
from midstream.connectors.files.whereabouts import (
    GONE,
    File,
    Files,
    MovedError,
    Prints,
    difference,
    is_deleted,
)
from midstream.connectors.input import (
    NOT_THERE,
    Block,
    Cursor,
    Decoded,
    Format,
    Input,
    InputError,
    Range,
    TableBlock,
    TextFormat,
    Work,
)

if TYPE_CHECKING:
    from midstream.connectors.decode.arrow_decoder import TableDecoder
    from midstream.connectors.files.arrow_files import TablePartition

__all__ = ["FileInput", "normal_path"]

_MAX_OPEN = 32
_TRIES = 3  # to open a file during its rotation


def normal_path(path: str, root: Path) -> str:
    """Normalise a path or pattern; make it relative to `root` if it is inside."""
    if path == "-":
        return path
    normal = os.path.normpath(root / path)
    inside = os.path.relpath(normal, root)
    return normal if inside.startswith("..") else inside


class FileInput(Input):
    """The files that one shard reads. Positions are bytes; in Arrow and Parquet files, rows.

    A file is recognised by its inode number, its first bytes and the bytes before the position, not
    by its name alone. A log that is rotated by rename is read to its end; then the file in its
    place is read under a name of its own (events.log, events.log+1, ...). What was learned is not
    learned again under another name. A file that was truncated in place, or that is an older copy
    which has grown, is an error.

    Parameters
    ----------
    path, root
        A file, folder, glob or "-", relative to `root`.
    part
        Read only the file of this name (if every file is a shard of its own).
    format_
        "jsonl", "csv", "arrow", "parquet", or "auto": by each file's name or content.
    order
        "name": one file after another, in natural order; "fair": one block of each in turn.
    start
        "latest": skip what the files hold when the shard begins.
    until_eof
        The input ends at the end of the files. Otherwise growing files are followed, and a folder
        may be empty at first.
    decoding
        How to decode records to events; None: no decoding.

    Raises
    ------
    InputError
        If the input does not exist, or needs a library that is not installed.
    """

    def __init__(
        self,
        path: str,
        root: Path,
        *,
        part: str | None = None,
        format_: Format = "auto",
        order: Literal["name", "fair"] = "name",
        start: Literal["earliest", "latest"] = "earliest",
        until_eof: bool = False,
        max_record_bytes: int = 2**20,
        decoding: Decoding | None = None,
    ) -> None:
        self._path = normal_path(path, root)
        self._root = root
        self._part = part
        self._format = format_
        self._fair = order == "fair"
        self._until_eof = until_eof
        self._max_record_bytes = max_record_bytes
        self._start = start
        self._decoding = decoding
        self._decoders: dict[str, Decoder] = {}  # by file: each CSV file has its own header
        self._waiting: set[str] = set()
        self._files = Files(
            self._path, root, part, format_, until_eof=until_eof, prints=self._at, shut=self._shut
        )
        self._turn = 0
        self._files.look()
        self._files.new = []
        for file in self._files.files.values():
            if decoding is not None and file.unit == "row":
                self._table_decoder(file)  # load libraries before the first read is waited for
                break

    @property
    def names(self) -> list[str]:
        """Names of the files, in natural order."""
        return list(self._files.files)

    @property
    def waiting(self) -> Set[str]:
        """Names of files that are not complete yet and are tried again."""
        return self._waiting

    def has(self, partition: str) -> bool:
        """Whether the input has, or may have had, a file of this name."""
        first = first_name(partition)[0]
        if self._part is not None:
            return first == self._part
        return partition in self._files.files or may_be(self._path, self._root, first)

    def rescan(self) -> list[str]:
        """Look for new files; return the names not returned before."""
        self._files.look()
        new, self._files.new = self._files.new, []
        return new

    def seek(
        self, cursors: Mapping[str, Cursor], known: Mapping[str, Cursor] | None = None
    ) -> None:
        """Go to the cursors of a resumed shard, also in files that are missing now.

        Parameters
        ----------
        known
            How far each file was read, if some of it is to be replayed. Files are recognised by
            these.
        """
        known = {**cursors, **(known or {})}
        cursors = {name: _from(cursor) for name, cursor in cursors.items()}
        # For a range to be replayed, the cursor at its stop identifies the file better.
        cursors = {n: known[n] if known[n].offset == c.offset else c for n, c in cursors.items()}
        if not known or "-" in self._files.files:
            for name, cursor in cursors.items():
                if name in self._files.files:
                    self._files.files[name].cursor = cursor
            return
        self.close()
        self._files.restore(cursors, known)

    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors, to read again what follows them."""
        for name, cursor in cursors.items():
            if name in self._files.files:
                self._shut(self._files.files[name])
                self._files.files[name].go_to(_from(cursor))

    def oldest(self) -> dict[str, int]:
        """Return, by file, the oldest position that can be read again: 0 if the file exists.

        For a missing or unknown file it is `NOT_THERE`.
        """
        there = (f.name for f in self._files.files.values() if self._files.is_there(f))
        return defaultdict(lambda: NOT_THERE, dict.fromkeys(there, 0))

    def begin(self, *, untouched: bool) -> list[Work]:
        """Go to the end of every existing file, if `start` is "latest".

        Return an empty range for each, to journal where the partition begins. A shard that has
        applied input before resumes where it stopped.
        """
        if self._start == "earliest" or not untouched:
            return []
        begun = []
        for file in self._files.files.values():
            if file.is_stdin:
                continue
            partition = self._opened(file)
            if not isinstance(partition, FilePartition | StdinPartition):
                at = partition.rows(final=False)
                line = at + 1
                self._shut(file)
                file.cursor = Cursor(at, line)
                prints = self._prints(self._open(file, check=False))
                self._shut(file)
            else:
                at, line = 0, 1
                while (block := partition.read(final=False)) is not None:
                    at, line = block.stop, block.first + block.lines
                prints = self._prints(partition)
            if at:
                span = _span(file.name, at, at, line, 0, prints)
                file.cursor = span.at_stop()
                begun.append(Work(_nothing(span), span))
        return begun

    def read(self, max_bytes: int) -> Work | None:
        """Return the next block, or None if none is available now; never blocks."""
        for _ in range(_TRIES):
            try:
                return self._next(max_bytes)
            except MovedError:
                self._files.look()
        return None

    def _next(self, max_bytes: int) -> Work | None:
        """Return the next block. Raises MovedError if another file has taken a file's place."""
        files = list(self._files.files.values())
        turn = self._turn if self._fair else 0
        for i in range(len(files)):
            file = files[(turn + i) % len(files)]
            state = file.state()
            moved = state is not None and file.inode not in (0, state[0])
            if not file.is_stdin:
                if file.exhausted is not None and (self._until_eof or state == file.exhausted):
                    continue
                older = file.older
                if older is not None and older.path is not None and older.exhausted is None:
                    continue  # first read the file that came before
                if file.partition is None and (moved or state is None):
                    if moved:
                        raise MovedError(f"{file.name}: was moved")
                    if file.path is None or not self._until_eof:
                        continue
            elif file.exhausted is not None and state == file.exhausted:
                continue
            work = self._read(file, max_bytes, until=None)
            if work is not None:
                self._turn = (turn + i + 1) % len(files)
                return work
            if moved:  # its old file is read: find that file and identify this one
                raise MovedError(f"{file.name}: was moved")
        return None

    @property
    def ended(self) -> bool:
        """Whether nothing more can come after `read` returned None: never while files are followed.

        Standard input ends when it is closed.
        """
        if not self._files.files:
            return self._until_eof
        return all(
            _at_end(file.partition)
            if file.is_stdin
            else self._until_eof and (file.exhausted is not None or file.path is None)
            for file in self._files.files.values()
        )

    def replay(self, span: Range, max_bytes: int) -> Work:
        """Read a range of the journal again, one block per call, until one is `final`.

        Raises
        ------
        InputError
            If the input is missing, or has changed since it was learned.
        """
        file = self._files.files.get(span.partition)
        if file is None or not (file.is_stdin or self._files.is_there(file)):
            raise InputError(f"{span.partition}: is gone, and has to be read again after a crash")
        if file.is_stdin:
            raise InputError(
                "standard input cannot be read again after a crash; start over with --fresh, or "
                "give the input as a file"
            )
        if span.start == span.stop:
            file.cursor = span.at_stop()
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

    def decode(self, work: Work) -> Decoded:
        """Return the events and the rejected records of a block."""
        block = work.block
        if isinstance(block, TableBlock):
            return block.form.decode(block)
        assert isinstance(block, Block)
        decoder = self._decoders.get(block.partition)
        if decoder is None:
            if self._decoding is None:
                raise ValueError(f"{block.partition}: nothing is given that decodes records")
            decoder = self._decoding.lines(self.csv_options(block.partition))
            self._decoders[block.partition] = decoder
        return decoder.decode(block)

    def csv_options(self, name: str) -> CsvOptions | None:
        """Header and delimiter of a CSV file; None for others."""
        partition = self._opened(self._files.files[name])
        if isinstance(partition, FilePartition | StdinPartition):
            return partition.csv_options
        return None

    def close(self) -> None:
        """Close all files."""
        for file in self._files.files.values():
            self._shut(file)

    def _read(self, file: File, max_bytes: int, until: int | None) -> Work | None:
        partition = self._opened(file)
        state = file.state()
        final = self._until_eof or until is not None or file.ended
        block = partition.read(max_bytes, final=final, until=until)
        text = isinstance(partition, FilePartition | StdinPartition)
        (self._waiting.add if partition.waits else self._waiting.discard)(file.name)
        if block is None:
            if until is None and not file.is_stdin:
                file.exhausted = state or GONE
                # Follow it while open, so that it is read to its end even if it is moved.
                if self._until_eof or not text or is_deleted(partition):
                    self._shut(file)
            return None
        line = block.first + block.lines
        if isinstance(block, TableBlock):
            crc = (file.cursor.crc + block.crc) % 2**32
            whole = True
        else:
            crc = zlib.crc32(block.data, file.cursor.crc)
            if block.oversize:
                crc = zlib.crc32(b"%d" % block.oversize, crc)
            whole = bool(block.oversize) or block.data.endswith(b"\n")
        prints = self._prints(partition)
        span = _span(file.name, block.start, block.stop, line, crc, prints, whole=whole)
        file.cursor = span.at_stop()
        if not whole and until is None and not file.is_stdin:
            # It was read to its end: later additions are for the next run.
            file.exhausted = state or GONE
            self._shut(file)
        return Work(block, span)

    def _opened(self, file: File) -> "FilePartition | StdinPartition | TablePartition":
        for attempt in range(_TRIES):
            if file.partition is not None:
                return file.partition
            if file.path is None:
                break
            if sum(f.partition is not None for f in self._files.files.values()) >= _MAX_OPEN:
                for other in self._files.files.values():
                    self._shut(other)
            try:
                partition = self._open(file)
                if file.is_stdin or file.inode in (0, partition.inode):
                    return partition
                self._shut(file)
            except InputError:
                if attempt or file.is_stdin:
                    raise
            self._files.look()  # it was just rotated, or its inode was reused
        raise MovedError(f"{file.name}: is gone")

    def _open(
        self, file: File, *, check: bool = True
    ) -> "FilePartition | StdinPartition | TablePartition":
        """Open a file at its cursor. Raises InputError if what precedes the cursor has changed."""
        cursor = file.cursor
        assert file.path is not None
        partition = self._partition(file, file.path, Cursor(cursor.offset, cursor.line))
        file.partition = partition
        if check and cursor.offset and not file.is_stdin:
            try:
                reason = difference(self._prints(partition), cursor, file)
            except InputError:
                self._shut(file)
                raise
            moved = partition.inode != file.inode
            if reason and not (moved and file.inode):
                self._shut(file)
                raise InputError(reason)
        return partition

    def _partition(
        self, file: File, path: Path, position: Cursor
    ) -> "FilePartition | StdinPartition | TablePartition":
        if file.format == "arrow" or file.format == "parquet":  # noqa: PLR1714 tells the types
            return self._table_partition(file, path, file.format, position)
        return self._text_partition(file, path, file.format, position)

    def _at(self, file: File, path: Path, cursor: Cursor) -> Prints:
        """Return the prints of the file at a path, as if it had been read up to a cursor."""
        if file.unit == "row":
            there = self._partition(file, path, Cursor(cursor.offset, cursor.line))
            try:
                return self._prints(there)
            finally:
                there.close()
        stream = ByteStream(open_regular(path, file.name), file.name, path=path)
        try:
            stream.peek(1)
            stream.seek(cursor.offset)
            return Prints(stream.head, stream.tail, stream.inode)
        finally:
            stream.close()

    def _prints(self, partition: "FilePartition | StdinPartition | TablePartition") -> "Prints":
        """Return the prints that recognise a file read up to here."""
        if isinstance(partition, FilePartition | StdinPartition):
            return Prints(partition.head, partition.tail, partition.inode)
        return Prints(partition.head(partition.position.offset), partition.tail(), partition.inode)

    def _text_partition(
        self, file: File, path: Path, kind: TextFormat, position: Cursor
    ) -> FilePartition | StdinPartition:
        size = self._max_record_bytes
        if file.is_stdin:
            return StdinPartition(format=kind, position=position, max_record_bytes=size)
        return FilePartition(path, file.name, format=kind, position=position, max_record_bytes=size)

    def _table_partition(
        self, file: File, path: Path, kind: Literal["arrow", "parquet"], position: Cursor
    ) -> "TablePartition":
        if file.is_stdin:
            raise InputError("standard input is read as JSON Lines or CSV; give Arrow as a file")
        decoder = self._table_decoder(file)
        from midstream.connectors.files.arrow_files import TablePartition

        return TablePartition(path, file.name, format=kind, decoder=decoder, position=position)

    def _table_decoder(self, file: File) -> "TableDecoder":
        if self._decoding is None:
            raise ValueError(f"{file.name}: nothing is given that decodes tables")
        try:
            return self._decoding.tables
        except InputError as error:
            raise InputError(f"{file.name}: {error}") from None

    def _shut(self, file: File) -> None:
        if file.partition is not None and not file.is_stdin:
            file.partition.close()
            file.partition = None


def _span(
    name: str, start: int, stop: int, line: int, crc: int, prints: Prints, *, whole: bool = True
) -> Range:
    head, tail, inode = prints
    return Range(name, start, stop, line, crc, head, whole, tail=tail, inode=inode)


def _nothing(span: Range) -> Block:
    return Block(span.partition, b"", first=span.line, lines=0, start=span.start, stop=span.stop)


def _from(cursor: Cursor) -> Cursor:
    """Return where to resume: before a file's first record, at its start with the header."""
    return Cursor() if cursor.line <= 1 else cursor


def _at_end(partition: object) -> bool:
    return isinstance(partition, StdinPartition) and partition.at_end
