"""Decodes Arrow record batches to batches of events: columns stay columns.

The schema of a file fixes what its columns mean (`TableForm`). A schema that does not fit is
refused as a whole, in a message that names the column. A faulty value rejects its row only.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from midstream.connectors.decode.fields import Faults, FeatureKind, FieldMap, Kind, Schema, reject
from midstream.connectors.decode.fingerprint import HEAD_ROWS, Fingerprints, is_same
from midstream.connectors.decode.notation import Notation
from midstream.connectors.decode.values import (
    TOO_LONG_FIELD,
    forced_column,
    group_column,
    label_column,
    text_column,
    time_column,
)
from midstream.connectors.input import Decoded, InputError, TableBlock
from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.events.columns import Categories, TextColumn, Texts
from midstream.engine.events.event import Features, FloatArray, IntArray, Label, Rejected, Task
from midstream.engine.events.rules import NOT_FINITE, TOO_LONG, BadValueError, label_of, weight_of

__all__ = ["TableDecoder", "TableForm", "is_readable", "join", "one_line"]

_Kind: TypeAlias = Literal["int", "float", "bool", "string", "time", "null"]

_SCALAR = ("int", "float", "bool", "string")
_LABELS: dict[Task, tuple[_Kind, ...]] = {
    "binary": ("int", "float", "bool"),
    "multiclass": ("int", "float", "bool", "string"),  # a float without a fraction is an integer
    "regression": ("int", "float"),
}
_FEATURES: dict[FeatureKind, tuple[_Kind, ...]] = {
    "number": ("int", "float", "bool"),
    "category": ("int", "bool", "string"),
}
_OWN_TEXT = ("string",)
_WORDS = {
    "int": "integers", "float": "floats", "bool": "bools", "string": "strings", "time": "timestamps"
}  # fmt: skip
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # columns that pandas adds are no data
_INT64_MAX = 2**63 - 1
_MOST_FORMS = 64
_MOST_WORDS = 2**17
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, slots=True)
class _Column:
    """A column to read: its position, its name in rejections, and the kind of its values."""

    name: str
    child: str | None
    path: str
    kind: _Kind
    unsigned: bool = False  # 64 bits, so a value may be too large


class TableDecoder:
    """Decodes rows of Arrow and Parquet files and Arrow messages, of any schemas.

    Parameters
    ----------
    task
        The task, which labels have to fit.
    fields
        Meaning of the columns. None: events in Midstream's own form, where column x is a struct.
    features
        Kind of each feature; batches then hold columns. None or empty: every column without another
        meaning is a feature, and batches hold a dict per event.
    notation
        How values are written; None: as `fields` says.
    """

    def __init__(
        self,
        task: Task,
        fields: FieldMap | None = None,
        features: Schema | None = None,
        notation: Notation | None = None,
    ) -> None:
        self.notation = notation or Notation(fields)
        self.paths = None if fields is None else fields.paths
        self.task = task
        self.fields = fields
        self.features = dict(features or {})
        self.vocabularies = {
            name: _Vocabulary() for name, kind in self.features.items() if kind == "category"
        }
        self._forms: dict[bytes, TableForm] = {}

    def form(self, schema: Any) -> "TableForm":
        """Return the meaning of the columns of a `pyarrow.Schema`.

        Raises
        ------
        InputError
            If a required column is missing, or a column has a type that is not allowed.
        """
        key = schema.serialize().to_pybytes()  # a schema with metadata cannot be hashed
        if key not in self._forms:
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            self._forms[key] = TableForm(schema, self)
        return self._forms[key]

    def decode_message(
        self, data: bytes, *, partition: str = "memory", index: int = 0, offset: int = 0
    ) -> Decoded:
        """Decode one message: an Arrow IPC stream, schema and record batches.

        Parameters
        ----------
        partition, index
            Origin of the message.
        offset
            Offset of the message, which all its rows share.

        Returns
        -------
        Decoded
            If the message is damaged or its schema does not fit: no events, and one rejection.
        """
        try:
            if not data.endswith(_END_OF_STREAM):
                raise InputError("no Arrow message: it does not end with Arrow's mark of its end")
            with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
                form = self.form(reader.schema)
                batches = list(reader)
            for batch in batches:
                batch.validate(full=True)
            chosen = form.select(join(batches or [_no_rows(reader.schema)]))
        except InputError as error:
            reason = str(error)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = f"no Arrow message: {one_line(error)}"
        else:
            rows = np.arange(chosen.num_rows, dtype=np.int64)
            return form.events(chosen, np.full_like(rows, offset), partition, index, rows)
        nothing = EventBatch(
            [], [], offsets=np.zeros(0, np.int64), partition=partition, index=index
        )
        return Decoded(nothing, [Rejected((partition, index, offset), reason, "", "")])


def join(batches: list[Any]) -> Any:
    """Join record batches of one schema into one. At least one is required."""
    table = pa.Table.from_batches(batches).combine_chunks()
    joined = table.to_batches()
    if len(joined) > 1:
        raise ValueError(f"{table.nbytes:,} bytes do not fit into one record batch")
    return joined[0] if joined else _no_rows(table.schema)


def _no_rows(schema: Any) -> Any:
    return pa.RecordBatch.from_pylist([], schema)


def one_line(error: BaseException) -> str:
    """Return the text of a library's error, in one line."""
    text = str(error).partition(". Detail:")[0]
    return " ".join(text.split())[:200] or type(error).__name__


class TableForm:
    """The meaning of the columns of one schema. Made by `TableDecoder.form`.

    Attributes
    ----------
    reads
        Names of the columns that are read.
    row_bytes
        Approximate size of a row in bytes.
    fingerprints
        Fingerprints of selected rows.
    """

    def __init__(self, schema: Any, decoder: TableDecoder) -> None:
        self._schema = schema
        self._decoder = decoder
        self._task = decoder.task
        self._notation = decoder.notation
        self._columns: list[_Column] = []
        self._roles: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._features: dict[str, int] = {}
        self._types: Mapping[str, Kind] = {}
        names = [name for name in schema.names if not _PANDAS_INDEX.fullmatch(name)]
        _no_doubles(names)
        if decoder.fields is None:
            self._own(names)
        else:
            self._flat(names, decoder.fields)
        if not self._features:
            raise InputError("no column is a feature")
        kinds = decoder.features
        self._numbers = [(n, self._features.get(n)) for n, k in kinds.items() if k == "number"]
        self._texts = [(n, self._features.get(n)) for n, k in kinds.items() if k == "category"]
        self.reads = list(dict.fromkeys(column.name for column in self._columns))
        self.fingerprints = Fingerprints(HEAD_ROWS)
        self.row_bytes = sum(map(_bytes_of, map(self._type, self._columns)))

    def select(self, batch: Any) -> Any:
        """Return the columns to read of a `pyarrow.RecordBatch` of this schema."""
        arrays, inner = [], {}
        for place in self._columns:
            name, child = place.name, place.child
            column = batch.column(batch.schema.get_field_index(name))
            if child is not None:
                if name not in inner:  # flattened: null where the struct is null
                    fields = [column.type.field(i).name for i in range(column.type.num_fields)]
                    inner[name] = dict(zip(fields, column.flatten(), strict=True))
                column = inner[name][child]
            arrays.append(_plain(column))
        return pa.RecordBatch.from_arrays(arrays, [column.path for column in self._columns])

    def decode(self, block: TableBlock) -> Decoded:
        """Return the events of a block and what was rejected."""
        offsets = np.arange(block.first, block.first + block.lines, dtype=np.int64)
        return self.events(block.table, offsets, block.partition, -1)

    def events(
        self,
        table: Any,
        offsets: IntArray,
        partition: str,
        index: int,
        rows: IntArray | None = None,
    ) -> Decoded:
        """Return the events of selected rows and what was rejected.

        Parameters
        ----------
        offsets, partition, index, rows
            As in `EventBatch`.
        """
        faults: Faults = {}
        columns: dict[str, Any] = {}
        if self._decoder.features:
            columns["x"] = None
            columns["array"] = self._array(table, faults)
            columns["names"] = [name for name, _ in self._numbers]
            columns["texts"] = {
                name: [None] * table.num_rows if i is None else self._words(name, table.column(i))
                for name, i in self._texts
            }
            self._without_features(columns, faults)
        else:
            columns["x"] = self._dicts(table, faults)
        batch = EventBatch(
            labels=self._labels(table, faults),
            ids=self._ids(table),
            times=self._times(table, faults),
            weights=self._weights(table, faults),
            keys=self._role_texts(table, "key", faults),
            sources=self._role_texts(table, "source", faults),
            groups=self._role_groups(table, faults),
            offsets=offsets,
            rows=rows,
            partition=partition,
            index=index,
            sound=True,
            paths=self._decoder.paths,
            **columns,
        )
        rejected: list[Rejected] = []
        if faults:
            for row, (reason, path) in sorted(faults.items()):
                raw = msgspec.json.encode(table.slice(row, 1).to_pylist()[0], enc_hook=str)
                one = reject(partition, int(offsets[row]), reason, batch.path(row, path), raw)
                one.origin = (partition, max(index, 0), one.origin[2])
                rejected.append(one)
            batch = batch.take([i for i in range(len(batch)) if i not in faults])
        return Decoded(batch, rejected)

    # The meaning of the columns.

    def _flat(self, names: list[str], fields: FieldMap) -> None:
        wanted = [*fields.roles, *(fields.features or ()), *fields.exclude, *fields.types]
        known = {*names, fields.label}
        if absent := [name for name in dict.fromkeys(wanted) if name not in known]:
            raise InputError(
                f"no column {', '.join(map(repr, absent))}, which [input.fields] names; "
                f"it has {', '.join(map(repr, names))}"
            )
        self._types = fields.types
        labels = _SCALAR if fields.label in fields.types else _LABELS[self._task]
        for role, name, allowed in (
            ("label", fields.label, labels),
            ("id", fields.id, ("int", "string")),
            ("time", fields.time, ("int", "float", "string", "time")),
            ("weight", fields.weight, ("int", "float")),
            ("key", fields.key, _SCALAR),
            ("source", fields.source, _SCALAR),
        ):
            if name is not None and name in names:
                what = f"label of task {self._task}" if role == "label" else f"{role}"
                self._roles[role] = self._add(name, None, name, allowed, f"the {what}")
        for name in fields.group:
            self._groups[name] = self._add(name, None, name, _SCALAR, "a group")
        taken = {*fields.roles, *fields.exclude}
        features = [name for name in names if name not in taken]
        if fields.features is not None:
            features = [name for name in features if name in set(fields.features)]
        for name in features:
            self._add_feature(name, name, None)

    def _own(self, names: list[str]) -> None:
        known = {
            "y": ("label", _LABELS[self._task], f"the label of task {self._task}"),
            "id": ("id", _OWN_TEXT, "the id"),
            "ts": ("time", ("int", "float", "time"), "the time"),
            "key": ("key", _OWN_TEXT, "the key"),
            "weight": ("weight", ("int", "float"), "the weight"),
            "source": ("source", _OWN_TEXT, "the source"),
        }
        shown = ", ".join(map(repr, names)) or "none"
        if "x" not in names:
            raise InputError(
                f"no column 'x', a struct of the features; its columns are {shown}. For columns "
                'with other meanings add [input.fields], with at least: label = "..."'
            )
        if odd := [name for name in names if name not in known and name not in ("x", "group")]:
            raise InputError(
                f"column {odd[0]!r} is none of our own form, which has x, y, id, ts, key, weight, "
                "source and group; for other columns add [input.fields]"
            )
        for name, (role, allowed, what) in known.items():
            if name in names:
                self._roles[role] = self._add(name, None, f"$.{name}", allowed, what)
        for child in self._children("x", "the features"):
            self._add_feature("x", f"$.x.{child}", child)
        if "group" in names:
            for child in self._children("group", "the groups"):
                path = f"$.group.{child}"
                self._groups[child] = self._add("group", child, path, _OWN_TEXT, "a group")

    def _children(self, name: str, what: str) -> list[str]:
        kind = self._schema.field(name).type
        if not pa.types.is_struct(kind):
            raise InputError(f"column {name!r}, {what}, is {kind}; needed: a struct")
        children = [kind.field(i).name for i in range(kind.num_fields)]
        _no_doubles(children, f" of {name!r}")
        return children

    def _add_feature(self, name: str, path: str, child: str | None) -> None:
        feature = name if child is None else child
        allowed: Sequence[str] = _SCALAR
        what = "a feature"
        if features := self._decoder.features:
            if feature not in features:
                kind = self._type(_Column(name, child, path, "null"))
                hint = "; leave it out with exclude" if child is None else ""
                raise InputError(
                    f"column {path!r} ({kind}) is not in [features], which has "
                    f"{', '.join(map(repr, features))}{hint}"
                )
            kind = features[feature]
            allowed, what = _FEATURES[kind], f"a {kind} in [features]"
        self._features[feature] = self._add(name, child, path, allowed, what)

    def _add(
        self, name: str, child: str | None, path: str, allowed: Sequence[str], what: str
    ) -> int:
        """Add a column to those read, if its type is allowed; return its index."""
        arrow = self._type(_Column(name, child, path, "null"))
        kind = _kind_of(arrow)
        if kind is None or (kind not in allowed and kind != "null"):
            words = [_WORDS[k] for k in allowed]
            some = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
            tip = "cast it"
            if what == "a feature" and child is None:
                tip += ", or leave it out with exclude in [input.fields]"
            raise InputError(f"column {path!r}, {what}, is {arrow}; needed: {some}; {tip}")
        unsigned = arrow == pa.uint64()
        self._columns.append(_Column(name, child, path, kind, unsigned))
        return len(self._columns) - 1

    def _type(self, column: _Column) -> Any:
        kind = self._schema.field(column.name).type
        return kind if column.child is None else kind.field(column.child).type

    # The values.

    def _array(self, table: Any, faults: Faults) -> FloatArray:
        """Return the numbers as (n, d) float64, nan where missing."""
        n = table.num_rows
        columns = []
        for _, i in self._numbers:
            if i is None:
                columns.append(np.full(n, np.nan))
                continue
            column = table.column(i)
            if self._columns[i].unsigned:
                self._too_large(column, self._columns[i].path, faults)
            columns.append(self._notation.given_numbers(_floats(column)))
        return np.stack(columns, axis=1) if columns else np.zeros((n, 0))

    def _without_features(self, columns: dict[str, Any], faults: Faults) -> None:
        """Add faults for rows with a number that is not finite, and for rows without features."""
        array, texts = columns["array"], columns["texts"]
        finite = np.isfinite(array)
        if array.shape[1] and finite.all():
            return
        for row, j in np.argwhere(np.isinf(array)).tolist():
            i = self._numbers[j][1]
            assert i is not None
            faults.setdefault(row, (NOT_FINITE, self._columns[i].path))
        empty = ~finite.any(axis=1)
        for column in texts.values():
            if isinstance(column, Categories):
                empty &= column.codes < 0
        for row in np.flatnonzero(empty).tolist():
            faults.setdefault(row, ("no features", ""))

    def _too_large(self, column: Any, path: str, faults: Faults) -> None:
        values = column.fill_null(0).to_numpy()
        for row in np.flatnonzero(values > _INT64_MAX).tolist():
            faults.setdefault(row, (TOO_LONG if path.startswith("$") else TOO_LONG_FIELD, path))

    def _dicts(self, table: Any, faults: Faults) -> list[Features]:
        """Return the features of each row as a dict, without missing ones."""
        names = list(self._features)
        columns = []
        for name, i in self._features.items():
            place = self._columns[i]
            kind = self._types.get(name)
            values = self._values(table.column(i), place, faults, text=kind == "string")
            columns.append(
                values
                if kind is None
                else forced_column(values, kind, place.path, faults, self._notation)
            )
        if not any(None in column for column in columns):
            return [dict(zip(names, row)) for row in zip(*columns)]  # noqa: B905 100 ns a row
        rows = [
            {k: v for k, v in zip(names, row, strict=True) if v is not None}
            for row in zip(*columns, strict=True)
        ]
        for i, row in enumerate(rows):
            if not row:
                faults.setdefault(i, ("no features", ""))
        return rows

    def _values(
        self, column: Any, place: _Column, faults: Faults, *, text: bool = False
    ) -> list[Any]:
        """Return a column as Python values, None where missing."""
        return self._notation.given(self._all_values(column, place, faults, text=text))

    def _all_values(
        self, column: Any, place: _Column, faults: Faults, *, text: bool = False
    ) -> list[Any]:
        if place.kind == "float":
            floats = _floats(column)
            values = floats.tolist()
            for row in np.flatnonzero(~np.isfinite(floats)).tolist():
                if np.isinf(floats[row]):
                    faults.setdefault(row, (NOT_FINITE, place.path))
                values[row] = None
            return values  # type: ignore[no-any-return]
        if place.unsigned and not text:
            self._too_large(column, place.path, faults)
        if place.kind == "int" and not column.null_count:
            return column.to_numpy().tolist()  # type: ignore[no-any-return]
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.to_pylist()  # type: ignore[no-any-return]

    def _labels(self, table: Any, faults: Faults) -> list[Label | None] | Targets:
        """Return labels; in a batch of columns, numeric ones as an array."""
        n = table.num_rows
        i = self._roles.get("label")
        columns, task = bool(self._decoder.features), self._task
        if i is None:
            empty = columns and task != "multiclass"
            return Targets(np.full(n, np.nan), task == "binary") if empty else [None] * n
        place, column = self._columns[i], table.column(i)
        fields = self._decoder.fields
        forced = None if fields is None or fields.label is None else self._types.get(fields.label)
        if columns and task != "multiclass" and forced is None:
            floats = self._notation.given_numbers(_floats(column))
            if place.unsigned:
                self._too_large(column, place.path, faults)
            if task == "binary":
                odd = (floats != 0.0) & (floats != 1.0) & ~np.isnan(floats)
            else:
                odd = np.isinf(floats)
            for row in np.flatnonzero(odd).tolist():
                try:
                    label_of(task, column[row].as_py())
                except BadValueError as error:
                    faults.setdefault(row, (str(error), place.path))
            return Targets(floats, task == "binary")
        values = self._values(column, place, faults)
        if forced is not None:
            values = forced_column(values, forced, place.path, faults, self._notation)
        return label_column(values, task, place.path, faults, own=fields is None)

    def _ids(self, table: Any) -> list[str | None] | TextColumn | None:
        i = self._roles.get("id")
        if i is None or table.column(i).null_count == table.num_rows:
            return None
        column = table.column(i)
        if self._notation.has_missing:
            values = self._values(column, self._columns[i], {})
            return [None if value is None else str(value) or None for value in values]
        return _texts(column) if self._columns[i].kind == "string" else _Spelled(column)

    def _times(self, table: Any, faults: Faults) -> FloatArray | list[float | None] | None:
        i = self._roles.get("time")
        if i is None or table.column(i).null_count == table.num_rows:
            return None
        place, column = self._columns[i], table.column(i)
        if place.kind == "time":
            return _seconds(column)
        if place.kind != "string":
            seconds = self._notation.plain_seconds(self._notation.given_numbers(_floats(column)))
            if seconds is not None:
                return seconds
        values = self._values(column, place, faults)
        times: list[float | None] | None = time_column(values, place.path, faults, self._notation)
        return times

    def _weights(self, table: Any, faults: Faults) -> FloatArray | None:
        i = self._roles.get("weight")
        if i is None or table.column(i).null_count == table.num_rows:
            return None
        column = table.column(i)
        weights = self._notation.given_numbers(_floats(column))
        weights = np.where(np.isnan(weights), 1.0, weights)
        for row in np.flatnonzero(~((weights >= 0) & (weights < np.inf))).tolist():
            try:
                weight_of(column[row].as_py())
            except BadValueError as error:
                faults.setdefault(row, (str(error), self._columns[i].path))
        return weights

    def _words(self, name: str, column: Any) -> Categories | list[str | None]:
        words = self._decoder.vocabularies[name].encode(column)
        return self._notation.given_words(words) if isinstance(words, Categories) else words

    def _role_texts(
        self, table: Any, role: str, faults: Faults
    ) -> list[str | None] | TextColumn | None:
        i = self._roles.get(role)
        if i is None or table.column(i).null_count == table.num_rows:
            return None
        place, column = self._columns[i], table.column(i)
        if place.kind == "string" and not self._notation.has_missing:
            return _texts(column)
        values = self._values(column, place, faults)
        texts: list[str | None] | None = text_column(values, place.path, faults)
        return texts

    def _role_groups(self, table: Any, faults: Faults) -> list[dict[str, str] | None] | None:
        columns: dict[str, list[str | None] | None] = {}
        for name, i in self._groups.items():
            place = self._columns[i]
            values = self._values(table.column(i), place, faults)
            columns[name] = text_column(values, place.path, faults)
        return group_column(columns)


class _Vocabulary:
    """The words of a category, each with a code, shared by all blocks.

    Beyond a limit of words it starts anew, which bounds memory.
    """

    def __init__(self) -> None:
        self._words: list[str] = []
        self._codes: dict[str, int] = {}
        self._last: tuple[Any, IntArray] | None = None  # a dictionary, and the codes of its words

    def encode(self, column: Any) -> Categories | list[str | None]:
        """Return a column of strings, integers or bools as codes."""
        kind = column.type
        if pa.types.is_null(kind):
            return Categories(np.full(len(column), -1), self._words)
        if not pa.types.is_dictionary(kind):
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            column = (column if text else column.cast(pa.string())).dictionary_encode()
        known = self._known(column.dictionary)
        codes = column.indices
        if codes.null_count:
            codes = codes.cast(pa.int64()).fill_null(-1)
        return Categories(known[codes.to_numpy()], self._words)

    def _known(self, dictionary: Any) -> IntArray:
        """Return the codes of a dictionary's words, followed by -1 for null."""
        if self._last is not None and is_same(self._last[0], dictionary):
            return self._last[1]
        if len(self._words) > _MOST_WORDS:
            self._words, self._codes = [], {}
        codes, words = self._codes, self._words
        known = []
        for word in dictionary.to_pylist():
            code = -1 if word is None else codes.setdefault(word, len(words))
            if code == len(words):
                words.append(word)
            known.append(code)
        self._last = dictionary, np.array([*known, -1], np.int64)
        return self._last[1]


class _Spelled(TextColumn):
    """A column of integers as text."""

    __slots__ = ("_column",)

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def take(self, rows: IntArray) -> "_Spelled":
        return _Spelled(self._column.take(pa.array(rows)))

    def text(self, i: int) -> str | None:
        value = self._column[i].as_py()
        return None if value is None else str(value)


def _no_doubles(names: list[str], where: str = "") -> None:
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f"column {double!r}{where} occurs twice")


def _kind_of(arrow: Any) -> _Kind | None:
    """Return the kind of the values of an Arrow type; None if it is not supported."""
    kinds: list[tuple[_Kind, Sequence[Callable[[Any], bool]]]] = [
        ("int", [pa.types.is_integer]),
        ("float", [pa.types.is_floating]),
        ("bool", [pa.types.is_boolean]),
        ("string", [pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view]),
        ("time", [pa.types.is_timestamp, pa.types.is_date]),
        ("null", [pa.types.is_null]),
    ]
    if pa.types.is_dictionary(arrow):
        arrow = arrow.value_type
    return next((kind for kind, tests in kinds if any(test(arrow) for test in tests)), None)


def is_readable(field: Any) -> bool:
    """Whether a column can be read: its type is supported, and it is no index of pandas."""
    return _kind_of(field.type) is not None and not _PANDAS_INDEX.fullmatch(field.name)


def _bytes_of(arrow: Any) -> int:
    """Return the approximate size of a value in bytes."""
    if pa.types.is_dictionary(arrow):
        arrow = arrow.index_type
    try:
        return -(-arrow.bit_width // 8)  # type: ignore[no-any-return]
    except ValueError:
        return 24  # a text of 16 bytes, and its offset


def _plain(column: Any) -> Any:
    """Normalise the layout of a column: only strings keep a dictionary."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        if not (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)):
            return _plain(column.dictionary_decode())
        return column
    return column.cast(pa.large_string()) if pa.types.is_string_view(kind) else column


def _floats(column: Any) -> FloatArray:
    """Return numbers as float64, nan for null; float64 is not copied."""
    if column.type != pa.float64():
        column = column.cast(pa.float64(), safe=False)  # rounds integers beyond 2**53, as JSON does
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _seconds(column: Any) -> FloatArray:
    """Return timestamps and dates as seconds since 1970, nan for null; UTC without a zone."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return _floats(column.cast(pa.int64())) / _PER_SECOND[kind.unit]
    if pa.types.is_date32(kind):
        return _floats(column.cast(pa.int32())) * 86_400
    return _floats(column.cast(pa.int64())) / 1_000


def _texts(column: Any) -> TextColumn:
    """Return strings, created on demand; an empty one is missing."""
    if pa.types.is_dictionary(column.type):
        words = column.dictionary.to_pylist()
        known = np.array([*(i if word else -1 for i, word in enumerate(words)), -1], np.int64)
        codes = column.indices.cast(pa.int64()).fill_null(-1)
        return Categories(known[codes.to_numpy()], words)
    wide = np.int64 if pa.types.is_large_string(column.type) else np.int32
    _, places, data = column.buffers()
    offset = column.offset * np.dtype(wide).itemsize
    offsets = np.frombuffer(places, wide, len(column) + 1, offset).astype(np.int64)
    starts, stops = offsets[:-1], offsets[1:]
    none = starts == stops
    if column.null_count:
        none |= ~column.is_valid().to_numpy(zero_copy_only=False)
    starts = np.where(none, -1, starts)
    return Texts(memoryview(b"" if data is None else data), starts, stops)
