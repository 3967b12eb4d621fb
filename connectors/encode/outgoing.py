"""Records of JSON Lines and CSV as messages: what `midstream send` produces, not yet sent."""

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
    """A message, and the line that it begins in."""

    line: int
    value: bytes
    key: bytes | None


class Messages(NamedTuple):
    """The messages of a block, in order.

    `fault` says why there are none from line `line` on; empty: all are there. `blank` lines are
    left out.
    """

    messages: list[Message]
    blank: int
    line: int = 0
    fault: str = ""


class _NoKeyError(ValueError):
    """A record that has no key; the message says why."""


class JsonMessages:
    """Makes a message of each line of JSON Lines, byte for byte as it is.

    Parameters
    ----------
    key
        The field whose value is the message's key; dots lead into objects. None: no keys, and then
        lines are not even looked at.
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

    An engine with the same `fields` learns from the messages what it would learn from the file: a
    cell becomes the value that `CsvDecoder` reads in it, an empty one null.

    Parameters
    ----------
    csv
        Header and delimiter.
    fields
        Which columns mean what.
    kinds
        Types of columns, besides those in `fields`.
    key
        The column whose cell, as it is, is the message's key; None: no keys.
    task
        What labels have to be.
    notation
        How values are written; None: as `fields` says.

    Raises
    ------
    InputError
        If there is no such column.
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
        # As in `CsvDecoder`: these are text, however they look.
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
        """Return the values of a column; of one that is not read, text where it is nothing else."""
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
    """Return the value of a field as a key: text as it is, else as it is written in JSON.

    Raises
    ------
    _NoKeyError
        If the line is not JSON, or has no such field, or it is empty or no scalar.
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
    """Return what is at a dotted path, or has the path for its name; None if nothing is."""
    while isinstance(value, dict):
        if path in value:
            return value[path]
        head, dot, path = path.partition(".")
        value = value.get(head) if dot else None
    return None
