"""An input from outside: rows of SQLite tables, each of which holds an event as JSON.

It is what a package would bring, and imports nothing of ours but the contract. Tests put it on the
path with an entry point (`installed`).
"""

import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.files.input import FileInput
from midstream.connectors.input import (
    NOT_THERE,
    Block,
    Cursor,
    Decoded,
    Input,
    InputError,
    Range,
    Work,
)
from midstream.connectors.several import SeveralInputs
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.kind import InputKind, Source

BEGIN = Cursor(1, 1)  # positions are row ids


class TableInput(Input):
    """Tables, one after the other. A row that was read must never change or go."""

    def __init__(self, path: Path, tables: list[str], decoding: Decoding, *, until_eof: bool):
        if not path.is_file():
            raise InputError(f"{path.name}: no such database: {path}")
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._cursors = dict.fromkeys(tables, BEGIN)
        self._decoder = decoding.lines()
        self._until_eof = until_eof
        self._exhausted = False

    @property
    def names(self) -> list[str]:
        return list(self._cursors)

    def has(self, partition: str) -> bool:
        return partition in self._cursors

    def seek(self, cursors: Mapping[str, Cursor], known: Mapping[str, Cursor]) -> None:
        del known
        for name in cursors:
            if name not in self._cursors:
                raise InputError(f"{name}: was learned from, and is no table of the input now")
        self._cursors |= cursors

    def read(self, max_bytes: int) -> Work | None:
        for name in self._cursors:
            work = self._read(name, max_bytes, NOT_THERE)
            if work is not None:
                return work
        self._exhausted = True
        return None

    def _read(self, name: str, max_bytes: int, until: int) -> Work | None:
        cursor, data, count = self._cursors[name], b"", 0
        rows = self._database.execute(
            f'SELECT rowid, event FROM "{name}" '  # noqa: S608 the config's, not a stranger's
            "WHERE rowid >= ? AND rowid < ? ORDER BY rowid",
            (cursor.offset, until),
        )
        for row, event in rows:
            if row != cursor.offset + count:
                raise InputError(f"{name}: row {cursor.offset + count} was removed")
            data += event.encode() + b"\n"
            count += 1
            if len(data) >= max_bytes:
                break
        if not count:
            return None
        start, stop, crc = cursor.offset, cursor.offset + count, zlib.crc32(data, cursor.crc)
        span = Range(name, start, stop, line=stop, crc=crc)
        self._cursors[name] = span.at_stop()
        return Work(Block(name, data, start, count, start, stop), span)

    def decode(self, work: Work) -> Decoded:
        return self._decoder.decode(work.block)

    def replay(self, span: Range, max_bytes: int) -> Work:
        work = self._read(span.partition, max_bytes, span.stop)
        if work is None:
            raise InputError(f"{span.partition}: rows up to {span.stop} were learned, and are gone")
        if work.span.stop < span.stop:
            return work._replace(final=False)
        if work.span.crc != span.crc:
            raise InputError(f"{span.partition}: rows up to {span.stop} were changed")
        return work

    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        self._cursors |= cursors

    def oldest(self) -> dict[str, int]:
        return dict.fromkeys(self._cursors, 1)

    @property
    def ended(self) -> bool:
        return self._until_eof and self._exhausted

    def close(self) -> None:
        self._database.close()


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of [input.options]."""

    database: str
    tables: tuple[str, ...] = ("events",)
    password: str = ""


class TableSource(Source):
    """Opens the tables of a config."""

    def __init__(self, path: Path, tables: list[str], *, until_eof: bool):
        self._path = path
        self._tables = tables
        self._until_eof = until_eof

    def partitions(self) -> list[str]:
        return self._tables

    def open(self, part: str | None, decoding: Decoding, *, added: bool = False) -> Input:
        del added
        tables = self._tables if part is None else [part]
        return TableInput(self._path, tables, decoding, until_eof=self._until_eof)


class TableKind(InputKind):
    """Rows of tables."""

    name: ClassVar[str] = "sqlite"
    options: ClassVar[type[msgspec.Struct]] = Options
    partition: ClassVar[str] = "table"
    position: ClassVar[str] = "row"
    range_form: ClassVar[str] = "TABLE:FROM-TO"

    def identity(self, settings: Settings) -> str:
        return f"sqlite:{self.options_of(settings).database}"

    def preflight(self, settings: Settings, *, until_eof: bool) -> None:
        del until_eof
        if not self._path(settings).is_file():
            raise InputError(f"{self._path(settings)}: no such database")

    def connect(self, settings: Settings, *, until_eof: bool) -> Source:
        tables = list(self.options_of(settings).tables)
        return TableSource(self._path(settings), tables, until_eof=until_eof)

    def _path(self, settings: Settings) -> Path:
        return settings.root / self.options_of(settings).database


class BothSource(TableSource):
    """Opens tables, and a folder of files beside the database, for one shard."""

    def open(self, part: str | None, decoding: Decoding, *, added: bool = False) -> Input:
        tables = super().open(part, decoding, added=added)
        files = FileInput("in", self._path.parent, until_eof=self._until_eof, decoding=decoding)
        return SeveralInputs({"tables": tables, "files": files})


class BothKind(TableKind):
    """Rows of tables, and files, in one shard."""

    name: ClassVar[str] = "both"

    def connect(self, settings: Settings, *, until_eof: bool) -> Source:
        tables = list(self.options_of(settings).tables)
        return BothSource(self._path(settings), tables, until_eof=until_eof)


def installed(site: Path, entry_points: str = "") -> Path:
    """Put this module and its entry points into a folder, as a package would be installed there."""
    info = site / "sqlite_input-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sqlite-input\nVersion: 1.0\n")
    points = "sqlite = sqlite_input:TableKind\nboth = sqlite_input:BothKind\n" + entry_points
    (info / "entry_points.txt").write_text(f"[midstream.inputs]\n{points}")
    (site / "sqlite_input.py").write_bytes(Path(__file__).read_bytes())
    return site


def fill(path: Path, **tables: list[str]) -> None:
    """Add events, as lines of JSON, to tables of a database."""
    with sqlite3.connect(path) as database:
        for name, lines in tables.items():
            database.execute(f'CREATE TABLE IF NOT EXISTS "{name}" (event TEXT)')
            rows = [(line,) for line in lines]
            database.executemany(f'INSERT INTO "{name}" VALUES (?)', rows)  # noqa: S608
    database.close()
