"""Decodes JSON Lines to batches.

Blocks are decoded whole, in one fast call. If anything is wrong, the block is decoded line by line.
So a block never accepts what a line alone would not. Two checks ensure it:

- There are as many values as lines, and no value follows another on the same line. Then each line
  has exactly one value.
- As many keys were decoded as the text has. Then no key is repeated. Each key has its own colon,
  and other colons only add to the count, so equal counts prove it. If text contains colons too,
  those after a quote are counted; if these do not decide, the keys themselves.
"""

import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from midstream.connectors.decode.diagnosis import MAX_DEPTH, diagnose, key_count, too_deep
from midstream.connectors.decode.fields import (
    Columns,
    Fault,
    Faults,
    FieldMap,
    Kind,
    assemble,
    oversize,
    reject,
)
from midstream.connectors.decode.notation import Notation
from midstream.connectors.decode.values import (
    TOO_LONG_FIELD,
    Int64,
    forced_column,
    label_column,
    role_columns,
    time_column,
)
from midstream.connectors.input import Block, Decoded
from midstream.engine.events.event import IntArray, Rejected, Task
from midstream.engine.events.rules import fits, type_name

__all__ = ["JsonDecoder", "Scalar", "Weight", "decode_whole", "without_nan"]

Scalar: TypeAlias = bool | Int64 | float | str | None
Weight: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
_OPTIONAL = ("y", "id", "ts", "key", "weight", "source", "group")
_NEWLINE = ord("\n")
_NAN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|(?<![^\s:,\[])NaN(?![^\s,\]}])')
_TWO_ON_A_LINE = re.compile(rb"\}[ \t\r]*+\{")
# UnicodeDecodeError and an integer of 5,000 digits are ValueErrors, not msgspec's errors.
_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
_Raw = TypeVar("_Raw")
_Raw_co = TypeVar("_Raw_co", covariant=True)


class _WireEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An event in Midstream's own form; UNSET for absent fields, so that keys can be counted."""

    x: dict[str, Scalar]
    y: Scalar | UnsetType = UNSET
    id: str | UnsetType | None = UNSET
    ts: float | UnsetType | None = UNSET
    key: str | UnsetType | None = UNSET
    weight: Weight | UnsetType | None = UNSET
    source: str | UnsetType | None = UNSET
    group: dict[str, str] | UnsetType | None = UNSET


class _BareEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An event with features, label and id only, and no null among the features."""

    x: dict[str, bool | Int64 | float | str]
    y: Scalar | UnsetType = UNSET
    id: str | UnsetType | None = UNSET


class BlockForm(Protocol[_Raw_co]):
    """Decodes a block to rows, and rows to columns."""

    def rows(self, data: bytes) -> tuple[Any, bool]:
        """Decode a block: return its rows, and whether their features may contain a null.

        Raises one of `_ERRORS` if anything in it is wrong.
        """

    def split(self, rows: Any) -> tuple[_Raw_co | None, int]:
        """Return the rows as raw columns, and their number of keys, on all levels together.

        The columns are None if the block has to be decoded line by line.
        """


class _Form(BlockForm[_Raw], Protocol[_Raw]):
    """A `BlockForm` that decodes single lines too: Midstream's own form, or flat objects."""

    def row(self, line: bytes) -> Any:
        """Decode one line: return a row, or the fault for which it is rejected."""

    def columns(self, raw: _Raw, faults: Faults, *, nulls: bool) -> Columns:
        """Return final columns. `nulls`: they may contain a null."""


def decode_whole(form: BlockForm[_Raw], data: bytes) -> tuple[_Raw | None, int, bool]:
    """Decode a block whole: return raw columns, their length, and whether nulls may occur.

    The columns are None if the block has to be decoded line by line. Otherwise each line provably
    has exactly one value, without a repeated key.
    """
    line_by_line = None, 0, True
    try:
        rows, nulls = form.rows(data)
    except _ERRORS:
        return line_by_line
    letters = np.frombuffer(data, dtype=np.uint8)
    newlines = np.count_nonzero(letters == _NEWLINE)
    if len(rows) != newlines + (not data.endswith(b"\n")):
        return line_by_line
    # Cheap: every newline follows a `}`, and nothing else that could separate two values does.
    behind = letters[1:][letters[:-1] == ord("}")]
    if (
        np.count_nonzero(behind == _NEWLINE) != newlines
        or np.count_nonzero((behind <= ord(" ")) | (behind == ord("{"))) != newlines
    ) and _TWO_ON_A_LINE.search(data):
        return line_by_line
    raw, keys = form.split(rows)
    if raw is not None and np.count_nonzero(letters == ord(":")) != keys:
        colons = np.flatnonzero(letters == ord(":"))
        before = letters[colons - 1]
        quoted = np.count_nonzero(before == ord('"'))
        if (quoted != keys or before.min() <= ord(" ")) and key_count(data) != keys:
            return line_by_line
    return raw, len(rows), nulls


def without_nan(data: bytes) -> bytes:
    """Replace each NaN in JSON Lines with null: JSON lacks NaN, but some programs write it.

    Text in strings stays. In otherwise valid lines the strings are found correctly; other lines are
    rejected in any case.
    """
    if b"NaN" not in data:
        return data
    return _NAN.sub(lambda match: b"null" if match[0] == b"NaN" else match[0], data)


class JsonDecoder:
    """Decodes blocks of JSON Lines.

    An event depends on its line alone, never on the block around it. Blank lines are no events. A
    line that is not exactly an event is rejected, with the reason and the place.

    Parameters
    ----------
    task
        The task, which labels have to fit.
    fields
        Meaning of the fields of a flat object. None: events in Midstream's own form.
    notation
        How values are written; None: as `fields` says.
    """

    def __init__(
        self, task: Task, fields: FieldMap | None = None, notation: Notation | None = None
    ) -> None:
        notation = notation or Notation(fields)
        self._paths = None if fields is None else fields.paths
        self._form: _Form[Any] = (
            _OwnForm(task, notation) if fields is None else _FlatForm(task, fields, notation)
        )

    def decode(self, block: Block) -> Decoded:
        """Return the events of a block and what was rejected."""
        if block.oversize:
            return oversize(block)
        data, first = block.data, block.first
        rejected: list[Rejected] = []
        raw, n, nulls = decode_whole(self._form, data)
        if raw is None and (plain := without_nan(data)) is not data:
            raw, n, nulls = decode_whole(self._form, plain)
        if raw is not None:
            numbers = np.arange(first, first + n, dtype=np.int64)
        else:
            rows, numbers = self._one_by_one(block, rejected)
            raw, _ = self._form.split(rows)
        faults: Faults = {}
        columns = self._form.columns(raw, faults, nulls=nulls)
        return assemble(
            block,
            columns,
            numbers,
            faults=faults,
            rejected=rejected,
            records=lambda: dict(enumerate(data.split(b"\n"), first)),
            paths=self._paths,
        )

    def _one_by_one(self, block: Block, rejected: list[Rejected]) -> tuple[list[Any], IntArray]:
        rows, numbers = [], []
        for number, line in enumerate(block.data.split(b"\n"), block.first):
            if not line or line.isspace():
                continue
            row = self._form.row(line)
            if isinstance(row, tuple) and (plain := without_nan(line)) is not line:
                accepted = self._form.row(plain)
                row = row if isinstance(accepted, tuple) else accepted
            if isinstance(row, tuple):
                rejected.append(reject(block.partition, number, row[0], row[1], line))
            else:
                rows.append(row)
                numbers.append(number)
        return rows, np.array(numbers, dtype=np.int64)


class _OwnForm:
    """``{"id", "x", "y", "ts", "key", "weight", "source", "group"}``; only x is required."""

    def __init__(self, task: Task, notation: Notation) -> None:
        self._task = task
        self._notation = notation
        decoder = msgspec.json.Decoder(_WireEvent)
        self._lines = decoder.decode_lines
        self._decode = decoder.decode
        # Most streams have only these fields and no nulls: decoding verifies it at no cost.
        self._bare_lines = msgspec.json.Decoder(_BareEvent).decode_lines
        self._bare = True

    def rows(self, data: bytes) -> tuple[Sequence[_WireEvent | _BareEvent], bool]:
        if self._bare:
            try:
                return self._bare_lines(data), False
            except _ERRORS:
                rows = self._lines(data)  # raises again if a line is bad
                self._bare = False
                return rows, True
        return self._lines(data), b"null" in data

    def split(
        self, rows: Sequence[_WireEvent | _BareEvent]
    ) -> tuple[dict[str, list[Any] | None], int]:
        n = len(rows)
        x = [e.x for e in rows]
        keys = n + sum(map(len, x))
        raw: dict[str, list[Any] | None] = dict.fromkeys(_WireEvent.__struct_fields__)
        raw["x"] = x
        present = ("y", "id") if n and isinstance(rows[0], _BareEvent) else _OPTIONAL
        for name in present:
            column = list(map(attrgetter(name), rows))
            absent = column.count(UNSET)
            keys += n - absent
            if 0 < absent < n:
                raw[name] = [None if value is UNSET else value for value in column]
            elif not absent:
                raw[name] = column
        keys += sum(map(len, filter(None, raw["group"] or ())))
        return raw, keys

    def row(self, line: bytes) -> _WireEvent | Fault:
        try:
            event = self._decode(line)
        except _ERRORS as error:
            return diagnose(line, error, own=True)
        optional = (event.y, event.id, event.ts, event.key, event.weight, event.source, event.group)
        keys = len(event.x) + 8 - optional.count(UNSET) + (len(event.group) if event.group else 0)
        return event if _has_keys(line, keys) else diagnose(line, None, own=True)

    def columns(self, raw: dict[str, list[Any] | None], faults: Faults, *, nulls: bool) -> Columns:
        x, y, weights, times = raw["x"], raw["y"], raw["weight"], raw["ts"]
        assert x is not None
        if nulls:
            x = [_without_nulls(features) for features in x]
        if weights is not None and None in weights:
            weights = [1.0 if weight is None else weight for weight in weights]
        return Columns(
            x=x,
            labels=[None] * len(x)
            if y is None
            else label_column(y, self._task, "$.y", faults, own=True),
            ids=raw["id"],
            times=None if times is None else time_column(times, "$.ts", faults, self._notation),
            weights=weights,
            keys=raw["key"],
            sources=raw["source"],
            groups=raw["group"],
        )


class _FlatForm:
    """Flat objects of scalars; a `FieldMap` gives the meaning of their fields."""

    def __init__(self, task: Task, fields: FieldMap, notation: Notation) -> None:
        self._task = task
        self._notation = notation
        self._fields = fields
        self._wanted = None if fields.features is None else frozenset(fields.features)
        self._unread = {*fields.exclude, *fields.roles} - {fields.label}
        decoder = msgspec.json.Decoder(dict[str, Scalar])
        self._lines = decoder.decode_lines
        self._decode = decoder.decode
        self._decode_any = msgspec.json.Decoder(dict[str, Any]).decode

    def rows(self, data: bytes) -> tuple[list[dict[str, Any]], bool]:
        return self._lines(data), b"null" in data

    def split(self, rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        return list(rows), sum(map(len, rows))

    def row(self, line: bytes) -> dict[str, Any] | Fault:
        try:
            row: dict[str, Any] = self._decode(line)
        except _ERRORS:
            return self._unusual_row(line)
        return row if _has_keys(line, len(row)) else diagnose(line, None, own=False)

    def _unusual_row(self, line: bytes) -> dict[str, Any] | Fault:
        """Decode a line with values other than scalars, which are allowed in unread fields."""
        if too_deep(line):
            return f"nested more than {MAX_DEPTH} levels deep", ""
        try:
            row = self._decode_any(line)
        except _ERRORS as error:
            return diagnose(line, error, own=False)
        if not _has_keys(line, _keys(row)):
            return diagnose(line, None, own=False)
        for name, value in row.items():
            if name != self._fields.label and (
                name in self._unread if self._wanted is None else name not in self._wanted
            ):
                continue
            if isinstance(value, list | dict):
                return f"expected number, string, bool or null, got {type_name(value)}", name[:100]
            if type(value) is int and not fits(value) and self._fields.types.get(name) != "string":
                return TOO_LONG_FIELD, name[:100]
        return row

    def columns(self, rows: list[dict[str, Any]], faults: Faults, *, nulls: bool) -> Columns:
        fields, wanted = self._fields, self._wanted
        if wanted is None:
            raw = {name: [row.pop(name, UNSET) for row in rows] for name in fields.roles}
            for name in fields.exclude:
                for row in rows:
                    row.pop(name, None)
        else:
            raw = {name: [row.get(name, UNSET) for row in rows] for name in fields.roles}
            rows = [{k: v for k, v in row.items() if k in wanted} for row in rows]
        if nulls:
            rows = [_without_nulls(row) for row in rows]
        if fields.label is not None and fields.label in fields.types:
            kind, name = fields.types[fields.label], fields.label
            raw[name] = forced_column(raw[name], kind, name, faults, self._notation)
        columns = role_columns(fields, self._task, raw, len(rows), faults, self._notation)
        for name, kind in fields.types.items():
            _force(rows, name, kind, faults, self._notation)
        if self._notation.has_missing:
            rows = list(map(self._notation.given_features, rows))
        columns.x = rows
        return columns


def _has_keys(line: bytes, n: int) -> bool:
    """Whether a line of valid JSON has exactly `n` keys; it has at least `n`."""
    return line.count(b":") == n or key_count(line) == n


def _without_nulls(features: dict[str, Any]) -> dict[str, Any]:
    """Remove nulls: a missing feature has no key."""
    if None in features.values():
        return {k: v for k, v in features.items() if v is not None}
    return features


def _keys(value: object) -> int:
    """Return the number of keys in a document, on all levels together."""
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    return sum(map(_keys, value)) if isinstance(value, list) else 0


def _force(
    rows: list[dict[str, Any]], name: str, kind: Kind, faults: Faults, notation: Notation
) -> None:
    """Read a feature as the type that the config sets."""
    values = [row.get(name, UNSET) for row in rows]
    read = forced_column(values, kind, name, faults, notation)
    if read is values:
        return
    for row, before, after in zip(rows, values, read, strict=True):
        if after is None:
            row.pop(name, None)
        elif after is not before:
            row[name] = after
