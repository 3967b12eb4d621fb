"""Converts records of JSON Lines and CSV to the messages that `midstream send` produces."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from midstream.connectors.decode.csv_decoder import Splitter
from midstream.connectors.decode.fields import Faults, FieldMap, Kind
from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.decode.notation import Notation
from midstream.connectors.decode.values import label_cells, typed_cells
from midstream.connectors.input import Block, InputError
from midstream.engine.events.event import Task
from midstream.engine.events.rules import type_name

__all__ = ["CsvMessages", "JsonMessages", "Message", "Messages"]


class Message(NamedTuple):
    """A message, and the number of its first line."""

    line: int
    value: bytes
    key: bytes | None


class Messages(NamedTuple):
    """The messages of a block, in order.

    `fault` is why there are none from line `line` on; empty: there is no fault. The `blank` lines
    are left out.
    """

    messages: list[Message]
    blank: int
    line: int = 0
    fault: str = ""


class _NoKeyError(ValueError):
    """A record without a key; the message says why."""


class JsonMessages:
    """Makes a message of each line of JSON Lines, byte for byte.

    Parameters
    ----------
    key
        The field whose value is the message's key; dots lead into objects. None: no keys; lines are
        then not parsed.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key

    def convert(self, block: Block) -> Messages:
        """Return the messages of a block."""
        if block.oversize:
            return Messages([], 0, block.first, _too_long(block))
        messages: list[Message] = []
        blank = 0
        lines = block.data.removesuffix(b"\n").split(b"\n")
        for number, ended in enumerate(lines, block.first):
            line = ended.removesuffix(b"\r")
            if not line or line.isspace():
                blank += 1
                continue
            key = None
            if self._key is not None:
                try:
                    key = _key_of(line, self._key)
                except _NoKeyError as error:
                    return Messages(messages, blank, number, str(error))
            messages.append(Message(number, line, key))
        return Messages(messages, blank)


class CsvMessages:
    """Makes a message of each row of CSV: a JSON object by the header.

    From the messages, an engine with the same `fields` learns what it would learn from the file: a
    cell becomes the value that `CsvDecoder` reads in it, an empty cell null.

    Parameters
    ----------
    csv
        Header and delimiter.
    fields
        Meaning of the columns.
    kinds
        Types of columns, besides those in `fields`.
    key
        The column whose cell, unchanged, is the message's key; None: no keys.
    task
        The task, which labels have to fit.
    notation
        How values are written; None: as `fields` says.

    Raises
    ------
    InputError
        If the header lacks a required column.
    """

    def __init__(
        self,
        csv: CsvOptions,
        fields: FieldMap,
        kinds: Mapping[str, Kind] | None = None,
        key: str | None = None,
        *,
        task: Task = "binary",
        notation: Notation | None = None,
    ) -> None:
        self._task = task
        self._label = fields.label
        self._notation = notation or Notation(fields)
        self._header = csv.header
        self._splitter = Splitter(len(csv.header), csv.delimiter)
        self._kinds = {**(kinds or {}), **fields.types}
        # As in `CsvDecoder`: these are text, whatever they look like.
        self._texts = {fields.id, fields.time, fields.key, fields.source, *fields.group}
        self._texts -= {fields.label}
        self._weight = fields.weight
        features = fields.features
        self._unread = set(fields.exclude)
        if features is not None:
            self._unread |= {name for name in csv.header if name not in features}
        self._unread -= set(fields.roles)
        if key is not None and key not in csv.header:
            raise InputError(
                f"no column {key!r} to be the key; there are {', '.join(map(repr, csv.header))}"
            )
        self._key = None if key is None else csv.header.index(key)

    def convert(self, block: Block) -> Messages:
        """Return the messages of a block."""
        if block.oversize:
            return Messages([], 0, block.first, _too_long(block))
        rows = self._splitter.split(block)
        faults: dict[int, str] = {r.origin[2]: r.reason for r in rows.rejected[:1]}
        numbers, cells = rows.numbers.tolist(), list(zip(*rows.cells, strict=True))
        columns = []
        for name, column in zip(self._header, cells, strict=bool(cells)):
            found: Faults = {}
            columns.append(self._values(name, column, found))
            for i, (reason, path) in found.items():
                faults.setdefault(numbers[i], f"{path}: {reason}")
        keys: list[bytes | None] = [None] * len(numbers)
        if self._key is not None and cells:
            keys = [cell.encode() or None for cell in cells[self._key]]
            if None in keys:
                faults.setdefault(numbers[keys.index(None)], f"{self._header[self._key]}: no key")
        stop = min(faults, default=None)
        messages = []
        for number, row, key in zip(numbers, zip(*columns, strict=True), keys, strict=True):
            if stop is not None and number >= stop:
                break
            value = msgspec.json.encode(dict(zip(self._header, row, strict=True)))
            messages.append(Message(number, value, key))
        if stop is None:
            return Messages(messages, rows.blank)
        return Messages(messages, rows.blank, stop, faults[stop])

    def _values(self, name: str, cells: tuple[str, ...], faults: Faults) -> list[Any]:
        """Return a column's values; in an unread column, a cell with a fault stays text."""
        if name in self._texts:
            return [cell or None for cell in cells]
        kind = "number" if name == self._weight else self._kinds.get(name)
        if name == self._label:
            return label_cells(cells, self._task, kind, name, faults, self._notation)
        if name not in self._unread:
            return typed_cells(cells, kind, name, faults, self._notation)
        bad: Faults = {}
        values: list[Any] = typed_cells(cells, kind, name, bad, self._notation)
        return [cells[i] if i in bad else value for i, value in enumerate(values)]


def _too_long(block: Block) -> str:
    return f"{block.oversize:,} bytes long; input.max_record_bytes allows {block.limit:,}"


def _key_of(line: bytes, path: str) -> bytes:
    """Return a field's value as a key: text unchanged, other scalars as in JSON.

    Raises
    ------
    _NoKeyError
        If the line is not JSON, or the field is missing, empty or no scalar.
    """
    try:
        value = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _NoKeyError(f"not JSON: {error}") from None
    value = _found(value, path)
    if isinstance(value, dict | list) or value is None or value == "":
        what = (
            "not there" if value is None else "empty" if value == "" else f"an {type_name(value)}"
        )
        raise _NoKeyError(f"field {path!r}, which is to be the key, is {what}")
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _found(value: object, path: str) -> object:
    """Return the value at a dotted path, or of the field named so; None if there is none."""
    while isinstance(value, dict):
        if path in value:
            return value[path]
        head, dot, path = path.partition(".")
        value = value.get(head) if dot else None
    return None
