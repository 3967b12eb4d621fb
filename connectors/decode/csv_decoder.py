"""Decodes CSV to batches."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from midstream.connectors.decode.fields import Columns, Faults, FieldMap, assemble, oversize, reject
from midstream.connectors.decode.framing import framing
from midstream.connectors.decode.notation import Notation
from midstream.connectors.decode.values import label_cells, role_columns, typed_cells
from midstream.connectors.input import Block, Decoded, InputError
from midstream.engine.events.event import IntArray, Rejected, Task

__all__ = ["CsvDecoder", "Rows", "Splitter"]


class CsvDecoder:
    """Decodes blocks of CSV records.

    An event depends on its record alone, never on the block around it. An empty cell is a missing
    feature. `FieldMap` describes the meaning of columns.

    Parameters
    ----------
    header
        Names of the columns.
    task
        The task, which labels have to fit.
    fields
        Meaning of the columns.
    delimiter
        The separator of cells.
    notation
        How values are written; None: as `fields` says.

    Raises
    ------
    InputError
        If the header lacks a column that `fields` names, other than the label, or if no column is a
        feature.
    """

    def __init__(
        self,
        header: Sequence[str],
        task: Task,
        fields: FieldMap,
        delimiter: str = ",",
        notation: Notation | None = None,
    ) -> None:
        self._task = task
        self._notation = notation or Notation(fields)
        self._fields = fields
        self._delimiter = delimiter
        self._width = len(header)
        self._splitter = Splitter(self._width, delimiter)
        self._place = {name: i for i, name in enumerate(header)}
        wanted = [*fields.roles, *(fields.features or ()), *fields.exclude, *fields.types]
        known = self._place.keys() | {fields.label}
        absent = [name for name in dict.fromkeys(wanted) if name not in known]
        if absent:
            raise InputError(
                f"not in the CSV header: {', '.join(map(repr, absent))}; "
                f"it has {', '.join(map(repr, header))}"
            )
        if fields.features is None:
            taken = {*fields.roles, *fields.exclude}
            self._features = [name for name in header if name not in taken]
        else:
            wanted_features = set(fields.features)
            self._features = [name for name in header if name in wanted_features]
        if not self._features:
            raise InputError("no column of the CSV file is a feature")

    def decode(self, block: Block) -> Decoded:
        """Return the events of a block and what was rejected."""
        if block.oversize:
            return oversize(block)
        rows = self._splitter.split(block)
        faults: Faults = {}
        columns = self._columns(list(zip(*rows.cells, strict=True)), faults)
        return assemble(
            block,
            columns,
            rows.numbers,
            faults=faults,
            rejected=rows.rejected,
            records=lambda: dict(_records(block, self._delimiter, self._width)),
            paths=self._fields.paths,
        )

    def _columns(self, cells: list[tuple[str, ...]], faults: Faults) -> Columns:
        fields, place, notation = self._fields, self._place, self._notation
        n = len(cells[0]) if cells else 0
        cells = cells or [()] * self._width
        raw: dict[str, list[Any]] = {
            name: list(cells[place[name]]) if name in place else [None] * n for name in fields.roles
        }
        if (name := fields.label) is not None and name in place:
            kind = fields.types.get(name)
            raw[name] = label_cells(raw[name], self._task, kind, name, faults, notation)
        if (name := fields.weight) is not None:
            raw[name] = typed_cells(raw[name], "number", name, faults, notation)
        columns = role_columns(fields, self._task, raw, n, faults, notation)
        names, types = self._features, fields.types
        values = [
            typed_cells(cells[place[name]], types.get(name), name, faults, notation)
            for name in names
        ]
        if any(None in column for column in values):
            columns.x = [
                {k: v for k, v in zip(names, row, strict=True) if v is not None}
                for row in zip(*values, strict=True)
            ]
        else:
            columns.x = [dict(zip(names, row)) for row in zip(*values)]  # noqa: B905 100 ns a row
        return columns


class Rows(NamedTuple):
    """The records of a block, split into cells.

    Attributes
    ----------
    cells
        A list of cells for each valid record.
    numbers
        (n,) number of the first line of each.
    rejected
        Records that cannot be split.
    blank
        Number of blank lines, which are no records.
    """

    cells: list[list[str]]
    numbers: IntArray
    rejected: list[Rejected]
    blank: int


class Splitter:
    """Splits blocks of CSV records into cells.

    Parameters
    ----------
    width
        Number of cells in a record.
    delimiter
        The separator of cells.
    """

    def __init__(self, width: int, delimiter: str = ",") -> None:
        self._width = width
        self._delimiter = delimiter

    def split(self, block: Block) -> Rows:
        """Return the records of a block, which must not be oversize."""
        rows = self._plain_rows(block.data)
        if rows is None:
            return self._one_by_one(block)
        numbers = np.arange(block.first, block.first + len(rows), dtype=np.int64)
        return Rows(rows, numbers, [], 0)

    def _plain_rows(self, data: bytes) -> list[list[str]] | None:
        """Split records without quotes; None if any needs a closer look."""
        if b'"' in data or b"\0" in data or self._width == 1:
            return None
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        if "\r" in text:
            lines = [line.removesuffix("\r") for line in lines]
        delimiter = self._delimiter
        rows = [line.split(delimiter) for line in lines]
        return rows if set(map(len, rows)) == {self._width} else None

    def _one_by_one(self, block: Block) -> Rows:
        """Split records one by one; those that cannot be split are rejected."""
        rows, numbers, rejected, blank = [], [], [], 0
        separator = self._delimiter.encode()
        for number, record in _records(block, self._delimiter, self._width):
            if not record or (record.isspace() and separator not in record):
                blank += 1
                continue
            row = self._row(record)
            if isinstance(row, str):
                rejected.append(reject(block.partition, number, row, "", record))
            else:
                rows.append(row)
                numbers.append(number)
        return Rows(rows, np.array(numbers, dtype=np.int64), rejected, blank)

    def _row(self, record: bytes) -> list[str] | str:
        """Return the cells of a record, or the reason for its rejection."""
        try:
            text = record.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            return f"invalid UTF-8 at byte {error.start + 1}"
        if "\0" in text:
            return "NUL byte in the record"
        if '"' not in text:
            row = text.split(self._delimiter)
        else:
            try:
                row = next(csv.reader([text], delimiter=self._delimiter, strict=True))
            except csv.Error as error:
                closed = framing(self._delimiter, self._width).record.fullmatch(record)
                return f"invalid CSV: {error}" if closed else "a quote is never closed"
        if len(row) != self._width:
            return f"expected {self._width} columns, found {len(row)}"
        return row


def _records(block: Block, delimiter: str, width: int) -> Iterator[tuple[int, bytes]]:
    """Yield each record without its newline, with the number of its first line."""
    number = block.first
    for record in framing(delimiter, width).split.findall(block.data):
        yield number, record.removesuffix(b"\n")
        number += record.count(b"\n")
