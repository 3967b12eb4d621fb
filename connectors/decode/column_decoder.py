"""Decodes JSON Lines to columns by a schema of the features, without a dict per event.

A compiled scanner reads a block of plain lines. Otherwise a typed decoder made for the schema
decodes the block whole. If anything in it is wrong, or only unusual, `JsonDecoder` decodes the
events one by one, and each is checked against the schema. So a block never accepts what a line
alone would not, and all three ways give the same events.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from midstream.connectors.decode.fields import (
    Columns,
    Faults,
    FeatureKind,
    FieldMap,
    Schema,
    oversize,
    set_aside,
)
from midstream.connectors.decode.json_decoder import (
    JsonDecoder,
    Scalar,
    Weight,
    decode_whole,
    without_nan,
)
from midstream.connectors.decode.notation import Notation
from midstream.connectors.decode.scanner import Field, Interner, Kind, Scan, Scanner
from midstream.connectors.decode.values import Int64, label_column, role_columns, time_column
from midstream.connectors.input import Block, Decoded
from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.events.columns import Texts
from midstream.engine.events.event import Features, FloatArray, Label, Task, floats
from midstream.engine.events.rules import type_name

__all__ = ["ColumnDecoder"]

_NUMBER: TypeAlias = Int64 | float | bool | None
_CATEGORY: TypeAlias = str | Int64 | bool | None
_ODD_NAME = re.compile(r'["\\\x00-\x1f]')  # not allowed in the name of a msgspec.Struct's field
_ROLES = ("y", "id", "ts", "key", "weight", "source")  # of our own form, apart from groups
_LABELS: dict[Task, Kind] = {"binary": "binary", "regression": "real", "multiclass": "text"}
_MOST_PASSED = 64  # blocks for which the scanner is skipped after it has failed


class ColumnDecoder:
    """Decodes blocks of JSON Lines into batches of columns.

    Parameters
    ----------
    task
        The task, which labels have to fit.
    fields
        Meaning of the fields of a flat object. None: events in Midstream's own form.
    schema
        All features that an event may have. An event with another feature or type is rejected.
    notation
        How values are written; None: as `fields` says.
    """

    def __init__(
        self,
        task: Task,
        fields: FieldMap | None,
        schema: Schema,
        notation: Notation | None = None,
    ) -> None:
        notation = notation or Notation(fields)
        self._task = task
        self._fields = fields
        self._schema = dict(schema)
        self._numbers = [name for name, kind in schema.items() if kind == "number"]
        self._categories = [name for name, kind in schema.items() if kind == "category"]
        self._events = JsonDecoder(task, fields, notation)
        self._paths = None if fields is None else fields.paths
        odd = any(map(_ODD_NAME.search, schema))
        self._form = (
            None
            if odd or notation.has_missing
            else _TypedForm(task, fields, self._schema, notation)
        )
        self._plain = None if odd else _plain_form(task, fields, self._schema, notation)
        self._passed = self._to_pass = 0

    def decode(self, block: Block) -> Decoded:
        """Return the events of a block and what was rejected."""
        if block.oversize:
            return oversize(block)
        columns = self._scanned(block)
        if columns is None and (data := without_nan(block.data)) is not block.data:
            columns = self._scanned(replace(block, data=data))
        if columns is None and self._form is not None:
            columns, _, _ = decode_whole(self._form, block.data)
            if columns is not None:
                columns["labels"] = _targets(self._task, columns["labels"])
        if columns is None:
            return self._one_by_one(block)
        offsets = block.first + np.arange(len(columns["array"]), dtype=np.int64)
        return Decoded(
            EventBatch(
                offsets=offsets,
                partition=block.partition,
                index=-1,
                sound=True,
                paths=self._paths,
                **columns,
            ),
            [],
        )

    def _scanned(self, block: Block) -> dict[str, Any] | None:
        """Return the columns of a block of plain lines; None if it is not, or unlikely to be."""
        if self._plain is None:
            return None
        if self._passed < self._to_pass:
            self._passed += 1
            return None
        columns = self._plain.columns(block)
        self._passed = 0
        self._to_pass = 0 if columns is not None else min(2 * self._to_pass + 1, _MOST_PASSED)
        return columns

    def _one_by_one(self, block: Block) -> Decoded:
        """Decode a block as `JsonDecoder` does, and check each event against the schema."""
        events, rejected = self._events.decode(block)
        faults = {
            i: fault for i, x in enumerate(events.dicts()) if (fault := self._fault(x)) is not None
        }
        if faults:
            lines = dict(enumerate(block.data.split(b"\n"), block.first))
            events = events.take(set_aside(block, events.offsets, faults, rejected, lines))
        dicts = events.dicts()
        rows = [[x.get(name, np.nan) for name in self._numbers] for x in dicts]
        batch = EventBatch(
            None,
            _targets(self._task, events.labels),
            offsets=events.offsets,
            partition=events.partition,
            index=events.index,
            ids=events.given_ids,
            times=events.times,
            weights=events.weights,
            sources=events.sources,
            groups=events.groups,
            keys=events.keys,
            array=np.array(rows, np.float64).reshape(len(rows), len(self._numbers)),
            names=self._numbers,
            texts={name: _texts([x.get(name) for x in dicts]) for name in self._categories},
            sound=True,
            paths=self._paths,
        )
        return Decoded(batch, rejected)

    def _fault(self, x: Features) -> tuple[str, str] | None:
        """Return (reason, path) of the first feature that breaks the schema."""
        for name, value in x.items():
            kind = self._schema.get(name)
            path = f"$.x.{name[:100]}" if self._fields is None else name[:100]
            if kind is None:
                return f"feature {name[:100]!r} is not in [features]", path
            if isinstance(value, str if kind == "number" else float):
                return f"[features] says {kind}, got {type_name(value)}", path
        return None


def _plain_form(
    task: Task, fields: FieldMap | None, schema: Schema, notation: Notation
) -> "_PlainForm | None":
    """Return the form of plain blocks; None if there is none, as for groups."""
    if fields is None:
        return _PlainForm(task, schema, dict(zip(_ROLES, _ROLES, strict=True)), notation)
    named = {
        "y": fields.label,
        "id": fields.id,
        "ts": fields.time,
        "key": fields.key,
        "weight": fields.weight,
        "source": fields.source,
    }
    roles = {role: name for role, name in named.items() if name is not None}
    names = [*roles.values(), *fields.exclude]
    if fields.group or fields.types or len(set(names)) < len(names):
        return None
    if any(map(_ODD_NAME.search, names)):
        return None
    return _PlainForm(task, schema, roles, notation, fields.exclude, flat=True)


class _PlainForm:
    """Plain lines: a scanner for blocks of them, and the conversion to columns.

    Parameters
    ----------
    roles
        Names of the fields with a role (y, id, ts, key, weight, source).
    notation
        How values are written.
    unread
        Fields to skip.
    flat
        Features are fields beside the others, not in an object `x`.
    """

    def __init__(
        self,
        task: Task,
        schema: Schema,
        roles: dict[str, str],
        notation: Notation,
        unread: Sequence[str] = (),
        *,
        flat: bool = False,
    ) -> None:
        self._task = task
        self._notation = notation
        self._numbers = [name for name, kind in schema.items() if kind == "number"]
        words = [name for name, kind in schema.items() if kind == "category"]
        features = {name: Field("number", i) for i, name in enumerate(self._numbers)}
        features |= {name: Field("word", i) for i, name in enumerate(words)}
        self._words = {name: (i, Interner()) for i, name in enumerate(words)}
        kinds: dict[str, Kind] = {"y": _LABELS[task], "ts": "real", "weight": "real"}
        self._reals: dict[str, int] = {}
        self._texts: dict[str, int] = {}
        fields: dict[str, Field] = {}
        for role, name in roles.items():
            kind = kinds.get(role, "name" if flat and role == "id" else "text")
            if kind in ("text", "name"):
                column = self._texts[role] = len(words) + len(self._texts)
            else:
                column = self._reals[role] = len(self._reals)
            fields[name] = Field(kind, column)
        fields |= {name: Field("skip") for name in unread}
        self._classes = Interner()
        self._scanner = (
            Scanner(fields | features)
            if flat
            else Scanner({"x": Field("object"), **fields}, features, wanted="x")
        )

    def columns(self, block: Block) -> dict[str, Any] | None:
        """Return the columns of a batch; None if the block is not plain."""
        data = block.data
        scan = self._scanner.scan(data, block.lines)
        if scan is None:
            return None
        n, notation = len(scan.numbers), self._notation
        times = self._real(scan, "ts")
        if times is not None:
            times = notation.plain_seconds(times)
            if times is None:
                return None
        weights = self._real(scan, "weight")
        if weights is not None:
            if (weights < 0.0).any():
                return None
            weights = np.nan_to_num(weights, nan=1.0)
        labels: Any
        if "y" in self._texts:
            start, stop = scan.text(self._texts["y"])
            labels = list(notation.given_words(self._classes.intern(data, start, stop)))
        else:
            values = self._real(scan, "y")
            labels = Targets(
                np.full(n, np.nan) if values is None else values, self._task == "binary"
            )
        columns = {
            "x": None,
            "labels": labels,
            "ids": self._text(data, scan, "id"),
            "times": times,
            "weights": weights,
            "sources": self._text(data, scan, "source"),
            "keys": self._text(data, scan, "key"),
            "array": notation.given_numbers(scan.numbers),
            "names": self._numbers,
            "texts": {
                name: notation.given_words(interner.intern(data, *scan.text(column)))
                for name, (column, interner) in self._words.items()
            },
        }
        return None if notation.has_missing and self._lacks_any(columns) else columns

    def _lacks_any(self, columns: dict[str, Any]) -> bool:
        """Whether an event lacks features, or a role other than the label has a missing value."""
        empty = np.isnan(columns["array"]).all(axis=1)
        for column in columns["texts"].values():
            empty &= column.codes < 0
        if empty.any():
            return True
        return any(
            self._notation.is_missing(text)
            for role in ("ids", "sources", "keys")
            for text in columns[role] or ()
        )

    def _real(self, scan: Scan, role: str) -> FloatArray | None:
        """Return a column of numbers; None if all are missing."""
        column = self._reals.get(role)
        if column is None:
            return None
        values = self._notation.given_numbers(np.ascontiguousarray(scan.reals[:, column]))
        return None if np.isnan(values).all() else values

    def _text(self, data: bytes, scan: Scan, role: str) -> Texts | None:
        column = self._texts.get(role)
        if column is None:
            return None
        starts, stops = scan.text(column)
        return None if (starts < 0).all() else Texts(data, starts, stops, plain=True)


def _targets(task: Task, labels: list[Label | None]) -> list[Label | None] | Targets:
    """Return labels as an array; those of a multiclass task, which have any type, as a list."""
    if task == "multiclass":
        return labels
    return Targets(
        floats([np.nan if label is None else label for label in labels]), task == "binary"
    )


class _TypedForm:
    """The `BlockForm` of typed rows, and the conversion to columns."""

    def __init__(
        self,
        task: Task,
        fields: FieldMap | None,
        schema: dict[str, FeatureKind],
        notation: Notation,
    ) -> None:
        self._task = task
        self._notation = notation
        self._fields = fields
        self._numbers = [name for name, kind in schema.items() if kind == "number"]
        # Attributes have numbers for names: names of features need not be identifiers.
        attributes = {name: f"f{i}" for i, name in enumerate(schema)}
        features: list[tuple[str, Any, Any]] = [
            (attributes[name], _NUMBER, np.nan)
            if kind == "number"
            else (attributes[name], _CATEGORY | UnsetType, UNSET)
            for name, kind in schema.items()
        ]
        renamed = {attribute: name for name, attribute in attributes.items()}
        prefix = "x." if fields is None else ""
        numbers = [prefix + attributes[name] for name in self._numbers]
        self._row: Callable[[Any], Sequence[Any]] | None = (
            None
            if not numbers
            else attrgetter(*numbers)
            if len(numbers) > 1
            else _single(attrgetter(*numbers))
        )
        self._texts = {
            name: attrgetter(prefix + attributes[name])
            for name, kind in schema.items()
            if kind == "category"
        }
        options: dict[str, Any] = {"gc": False, "forbid_unknown_fields": True}
        self._unread: list[Callable[[Any], Any]] = []
        row: list[tuple[str, Any, Any]]
        self._decoders: list[tuple[Any, dict[str, Callable[[Any], Any]]]] = []
        if fields is None:
            x = msgspec.defstruct("X", features, rename=renamed, **options)
            kinds: dict[str, Any] = {"y": Scalar, "ts": float | None, "weight": Weight | None}
            for own in (("y", "id"), ("y", "id", "ts"), _ROLES):  # the usual ones first
                row = [(role, kinds.get(role, str | None) | UnsetType, UNSET) for role in own]
                cls = msgspec.defstruct("Row", [("x", x), *row], **options)
                self._add(cls, {role: role for role in own})
            return
        roles = {f"r{i}": name for i, name in enumerate(fields.roles)}
        unread = {f"e{i}": name for i, name in enumerate(fields.exclude)}
        self._unread = [attrgetter(attribute) for attribute in unread]
        row = [(attribute, Scalar | UnsetType, UNSET) for attribute in roles]
        row += [(attribute, Any, UNSET) for attribute in unread]
        renamed |= roles | unread
        cls = msgspec.defstruct("Row", features + row, rename=renamed, **options)
        self._add(cls, {name: attribute for attribute, name in roles.items()})

    def _add(self, cls: type[msgspec.Struct], roles: dict[str, str]) -> None:
        getters: dict[str, Callable[[Any], Any]] = {
            role: attrgetter(attribute) for role, attribute in roles.items()
        }
        self._decoders.append((msgspec.json.Decoder(cls).decode_lines, getters))

    def rows(self, data: bytes) -> tuple[Any, bool]:
        """Decode a block. A decoder that lacked a role is not tried again."""
        while True:
            try:
                decoded = self._decoders[0][0](data)
                break
            except msgspec.ValidationError:
                if not self._knows_more(data):
                    raise
        nulls = b"null" in data
        return _Rows(decoded, self._decoders[0][1], nulls), nulls

    def _knows_more(self, data: bytes) -> bool:
        """Switch to a later decoder that accepts the block; return whether there is one."""
        for i, (decode, _) in enumerate(self._decoders[1:], 1):
            with suppress(msgspec.ValidationError):
                decode(data)
                del self._decoders[:i]
                return True
        return False

    def split(self, rows: "_Rows") -> tuple[dict[str, Any] | None, int]:
        """Return the columns of a batch, or None if anything is unusual, and the number of keys."""
        n, own = len(rows), self._fields is None
        keys = n if own else 0  # of the x objects
        array, nulls = self._array(rows, n)
        keys += array.size - int(np.isnan(array).sum()) + nulls
        empty = np.isnan(array).all(axis=1)
        texts = {}
        for name, get in self._texts.items():
            column = list(map(get, rows.rows))
            keys += n - column.count(UNSET)
            texts[name] = _texts(column)
            empty &= np.array([text is None for text in texts[name]], bool)
        raw = {name: list(map(get, rows.rows)) for name, get in rows.roles.items()}
        for column in raw.values():
            keys += n - column.count(UNSET)
        for unread in self._unread:
            values = list(map(unread, rows.rows))
            if any(isinstance(value, list | dict) for value in values):
                return None, -1  # its inner keys are unknown
            keys += n - values.count(UNSET)
        if empty.any():
            return None, keys
        faults: Faults = {}
        columns = self._own(raw, n, faults) if own else self._flat(raw, n, faults)
        if faults:
            return None, keys
        return {
            "x": None,
            "labels": columns.labels,
            "ids": columns.ids,
            "times": columns.times,
            "weights": columns.weights,
            "sources": columns.sources,
            "groups": columns.groups,
            "keys": columns.keys,
            "array": array,
            "names": self._numbers,
            "texts": texts,
        }, keys

    def _array(self, rows: "_Rows", n: int) -> tuple[FloatArray, int]:
        """Return the numbers as (n, d) float64, nan where missing, and the number of nulls."""
        d = len(self._numbers)
        if self._row is None:
            return np.zeros((n, 0)), 0
        values: Iterable[Any] = chain.from_iterable(map(self._row, rows.rows))
        nulls = 0
        if rows.nulls:
            values = list(values)
            nulls = values.count(None)  # NumPy converts them to nan
        return np.fromiter(values, np.float64, n * d).reshape(n, d), nulls

    def _own(self, raw: dict[str, list[Any]], n: int, faults: Faults) -> Columns:
        given = {name: _given(column) for name, column in raw.items()}
        y, weights = given.get("y"), given.get("weight")
        if weights is not None:
            weights = [1.0 if weight is None else weight for weight in weights]
        labels: list[Label | None] = [None] * n
        if y is not None:
            labels = label_column(y, self._task, "$.y", faults, own=True)
        return Columns(
            x=[],
            labels=labels,
            ids=given.get("id"),
            times=None
            if (times := given.get("ts")) is None
            else time_column(times, "$.ts", faults, self._notation),
            weights=weights,
            keys=given.get("key"),
            sources=given.get("source"),
        )

    def _flat(self, raw: dict[str, list[Any]], n: int, faults: Faults) -> Columns:
        assert self._fields is not None
        return role_columns(self._fields, self._task, raw, n, faults, self._notation)


class _Rows:
    """Decoded rows, getters of their roles, and whether they may contain a null."""

    __slots__ = ("nulls", "roles", "rows")

    def __init__(
        self, rows: Sequence[Any], roles: dict[str, Callable[[Any], Any]], nulls: bool
    ) -> None:
        self.rows = rows
        self.roles = roles
        self.nulls = nulls

    def __len__(self) -> int:
        return len(self.rows)


def _single(get: Callable[[Any], Any]) -> Callable[[Any], Sequence[Any]]:
    return lambda row: (get(row),)


def _given(column: list[Any]) -> list[Any] | None:
    """Return a column with None for absent values; None if all are absent."""
    absent = column.count(UNSET)
    if absent == len(column):
        return None
    return [None if value is UNSET else value for value in column] if absent else column


def _texts(column: Sequence[Any]) -> list[str | None]:
    """Return categories as text, as in JSON; None where missing."""
    if set(map(type, column)) <= {str}:
        return list(column)
    return [
        None
        if value is None or value is UNSET
        else value
        if isinstance(value, str)
        else str(value).lower()
        for value in column
    ]
