"""Surveys the first records of a file, and guesses the meaning of their fields."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import msgspec

from midstream.connectors.decode.decoder import make_decoder, make_table_decoder
from midstream.connectors.decode.fields import Faults, FieldMap, Kind
from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.decode.notation import Notation
from midstream.connectors.decode.values import typed_cells
from midstream.connectors.files.discovery import FilePartition, discover
from midstream.connectors.input import Block, Decoded, InputError
from midstream.engine.events.event import Task
from midstream.engine.events.rules import BadValueError, fits, seconds_of

__all__ = ["Survey", "survey"]

_RECORDS = 100_000
_BYTES = 16 * 2**20
_CLASSES = 20  # a number with more values is a quantity
_ENTITIES = 50  # more identifiers are no feature: branches may be one, customers not

_LABELS = (  # the first pattern that a field matches decides
    "label|target|y|class|outcome",
    "(.*_)?(label|target|class|outcome)",
    "(.*_)?(fraud|churn|spam|phishing|default|conversion|click|failure|anomaly|attack)",
    "(.*_)?(churned|defaulted|converted|clicked|purchased|survived|failed|readmitted)",
)
_TRUTH = "(is|has|was|will)_.*"
_ID = "(.*_)?(id|uuid|guid)|index|unnamed_0|"
_TIME = "(.*_)?(time|timestamp|ts|datetime|date|at)"
_MISSING = ("NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "-", "--", "?")
"""Common signs for a missing value."""
_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+")
_POINT = re.compile(r"[+-]?[0-9]*\.[0-9]+")
_AS_TEXT = re.compile(r"0[0-9]+|\+[0-9]{6,}")  # leading zeros, telephone numbers


class Survey(msgspec.Struct, kw_only=True):
    """What a file seems to contain.

    Attributes
    ----------
    what
        The kind of records: "CSV", "flat JSON", "Arrow", "Parquet", "events".
    records
        Number of records surveyed.
    fields
        Meaning of the fields of flat records; None: events in Midstream's own form.
    label, label_is_guess
        The label, and whether it was guessed by more than its name.
    numbers, texts
        Features that are numbers or booleans, and those that are text; some may be both.
    left_out
        Fields that the model should not see, and why.
    missing
        Signs that mean a missing value in any field.
    decimal
        The decimal sign.
    notes
        Other remarks, a sentence each.
    """

    path: Path
    what: str
    records: int = 0
    task: Task = "binary"
    fields: FieldMap | None = None
    label: str = "y"
    label_is_guess: bool = False
    numbers: list[str] = []
    texts: list[str] = []
    left_out: dict[str, str] = {}
    missing: list[str] = []
    decimal: Literal[".", ","] = "."
    notes: list[str] = []


class _Column:
    """The values of one field, without missing ones."""

    def __init__(self, name: str, values: Sequence[Any], *, forced: Kind | None = None) -> None:
        self.name = name
        self.values = values
        self.forced = forced
        """The type that the config has to set."""
        self.types = set(map(type, values))
        self.is_nested = bool(self.types & {list, dict})
        self.distinct = 0 if self.is_nested else len(set(values))
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        self._words = re.sub(r"[^a-z0-9]+", "_", words).strip("_")

    def is_called(self, pattern: str) -> bool:
        return re.fullmatch(pattern, self._words) is not None

    @property
    def is_id(self) -> bool:
        return self.is_called(_ID) and self.types <= {str, int}

    @property
    def is_free_text(self) -> bool:
        """Whether most values are distinct, so that their number is unbounded."""
        many = len(self.values) >= 20 and 2 * self.distinct > len(self.values)
        return self.types == {str} and many

    @property
    def is_binary(self) -> bool:
        return self.types <= {bool, int, float} and set(self.values) <= {0, 1}

    @property
    def is_iso(self) -> bool:
        return self.types == {str} and all(map(_is_iso, self.values))

    def is_epoch(self, per_second: int = 1) -> bool:
        """Whether it is a time since 1970, between the years 1973 and 5138."""
        if not self.types or not self.types <= {int, float}:
            return False
        return all(1e8 * per_second <= value < 1e11 * per_second for value in self.values)

    @property
    def is_digits_of_date(self) -> bool:
        """Whether it is a date written as a number, like 20261129."""
        if self.is_nested or not self.values:
            return False
        if not all(str(value).isdigit() for value in set(self.values)):
            return False
        try:
            return all(seconds_of(value, "date") is not None for value in set(self.values))
        except BadValueError:
            return False

    @property
    def is_time(self) -> bool:
        """Whether it has a name and the values of a time."""
        if not self.is_called(_TIME):
            return False
        epochs = any(self.is_epoch(per_second) for per_second in (1, 10**3, 10**6, 10**9))
        return self.is_iso or epochs or self.is_digits_of_date

    @property
    def task(self) -> Task:
        """The task, if this is the label."""
        if self.is_binary:
            return "binary"
        few = self.distinct <= min(_CLASSES, len(self.values) / 5)
        if self.types <= {int, float} and not (few and self.types == {int}):
            return "regression"
        return "multiclass"


def survey(path: Path) -> Survey:
    """Survey the first records of a file.

    Raises
    ------
    InputError
        If it cannot be read, or contains nothing to learn from.
    """
    name = str(path)
    if path.is_dir():
        raise InputError(f"{name}: is a folder; give one of its files")
    kind = discover(name, Path())[0][2]
    if kind == "arrow" or kind == "parquet":  # noqa: PLR1714 tells the types
        return _survey_table(path, name, kind)
    partition = FilePartition(path, name, format=kind)
    try:
        blocks = _blocks(partition)
    finally:
        partition.close()
    if csv_options := partition.csv_options:
        found = Survey(path=path, what="CSV")
        columns = _csv_columns(found, name, csv_options, blocks)
        _judge_fields(found, columns)
    else:
        rows = _json_rows(name, blocks)
        if 2 * sum(isinstance(row.get("x"), dict) for row in rows) > len(rows):
            found = Survey(path=path, what="events")
            _judge_events(found, rows)
        else:
            found = Survey(path=path, what="flat JSON")
            _judge_fields(found, _columns(rows, found))
    _check_features(found, name)
    decoder = make_decoder(found.task, found.fields, csv_options)
    return _tried(found, name, [decoder.decode(block) for block in blocks])


def _survey_table(path: Path, name: str, kind: Literal["arrow", "parquet"]) -> Survey:
    """Survey the first rows of an Arrow or Parquet file."""
    make_table_decoder("binary", None)  # raises if pyarrow is missing
    from midstream.connectors.decode.arrow_decoder import is_readable
    from midstream.connectors.files.arrow_files import TablePartition

    table = TablePartition(
        path, name, format=kind, decoder=make_table_decoder("binary", None)
    ).sample(_RECORDS)
    if not table.num_rows:
        raise InputError(f"{name}: has columns but no rows")
    what = "Parquet" if kind == "parquet" else "Arrow"
    if "x" in table.column_names and table.schema.field("x").type.num_fields:
        found = Survey(path=path, what=f"events in {what}")
        _judge_events(found, _plain_rows(table.to_pylist()))
    else:
        found = Survey(path=path, what=what)
        for field in table.schema:
            if not is_readable(field):
                found.left_out[field.name] = f"is of type {field.type}, which is not read"
        read = [c for c in table.column_names if c not in found.left_out]
        _judge_fields(found, _columns(_plain_rows(table.select(read).to_pylist()), found))
    _check_features(found, name)
    decoder = make_table_decoder(found.task, found.fields)
    partition = TablePartition(path, name, format=kind, decoder=decoder)
    decoded: list[Decoded] = []
    try:
        while sum(len(d.batch) + len(d.rejected) for d in decoded) < table.num_rows:
            block = partition.read(final=True)
            assert block is not None
            decoded.append(block.form.decode(block))
    finally:
        partition.close()
    return _tried(found, name, decoded, "row")


def _plain_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows as in JSON: times as text, None for NaN."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        if isinstance(value, date):  # a datetime is one, too
            return value.isoformat()
        return None if isinstance(value, float) and not isfinite(value) else value

    return [plain(row) for row in rows]


def _check_features(found: Survey, name: str) -> None:
    if not found.numbers and not found.texts:
        left_out = "".join(f"; {field!r} {why}" for field, why in found.left_out.items())
        raise InputError(f"{name}: found no feature to predict {found.label!r} from{left_out}")


def _tried(found: Survey, name: str, decoded: list[Decoded], unit: str = "line") -> Survey:
    """Record the results of decoding the first records."""
    rejected = [r for d in decoded for r in d.rejected]
    accepted = sum(len(d.batch) for d in decoded)
    found.records = accepted + len(rejected)
    if rejected:
        first = rejected[0]
        where = [unit, str(first.origin[2]), first.path]
        why = f"{' '.join(filter(None, where))}: {first.reason}"
        if not accepted:
            raise InputError(f"{name}: none of its records could be learned; {why}")
        many = f"{len(rejected):,} of {found.records:,} records would be rejected"
        found.notes.append(f"{many}; {why}")
    return found


def _blocks(partition: FilePartition) -> list[Block]:
    """Return the first records, whole."""
    blocks: list[Block] = []
    lines = size = 0
    while lines < _RECORDS and size < _BYTES:
        try:
            block = partition.read(2**16, final=True)
        except InputError:
            if not blocks:
                raise
            break  # a damaged archive: what precedes the damage suffices
        if block is None:
            break
        try:
            # An oversize block has only the beginning of a record, cut anywhere.
            binary = "\0" in block.data.decode(errors="ignore" if block.oversize else "strict")
        except UnicodeDecodeError as e:
            line = block.first + block.data.count(b"\n", 0, e.start)
            raise InputError(f"{partition.name}: not UTF-8 text in line {line}") from None
        if binary:
            raise InputError(f"{partition.name}: is binary; JSON Lines or CSV is needed")
        blocks.append(block)
        lines += block.lines
        size += len(block.data)
    if not any(block.data.strip() for block in blocks):
        what = "has a header but no records" if partition.header else "is empty"
        raise InputError(f"{partition.name}: {what}")
    return blocks


def _csv_columns(
    found: Survey, name: str, options: CsvOptions, blocks: list[Block]
) -> list[_Column]:
    header = options.header
    text = "".join(block.data.decode() for block in blocks if not block.oversize)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=options.delimiter))
    except csv.Error as e:
        raise InputError(f"{name}: cannot be read as CSV: {e}") from None
    whole = [row for row in rows if len(row) == len(header)]
    cells_of = {
        column: [cell for row in whole if (cell := row[i].strip())]
        for i, column in enumerate(header)
    }
    distinct = {column: set(cells) for column, cells in cells_of.items()}
    if options.delimiter != "," and _has_commas(distinct.values()):
        found.decimal = ","
        found.notes.append("numbers have a decimal comma")
    notation = Notation(FieldMap(decimal=found.decimal))

    def is_number(cells: set[str]) -> bool:
        faults: Faults = {}
        values = typed_cells(list(cells), None, "", faults, notation)
        return not faults and not any(isinstance(value, str) for value in values)

    _find_missing(found, distinct, is_number)
    columns = []
    for column, given in cells_of.items():
        cells = [cell for cell in given if cell not in found.missing]
        faults: Faults = {}
        values = typed_cells(cells, None, column, faults, notation)
        too_large = any("64 bits" in reason for reason, _ in faults.values())
        zeros = next(filter(_AS_TEXT.fullmatch, cells), None)
        if too_large or zeros is not None:
            if zeros is not None:
                found.notes.append(f"{column!r} is read as text, as in {zeros!r}")
            columns.append(_Column(column, cells, forced="string"))
        else:
            columns.append(_Column(column, [v for v in values if v is not None]))
    return columns


def _has_commas(columns: Iterable[set[str]]) -> bool:
    """Whether a decimal comma is used: some all-number column has commas, and none has points."""
    commas = False
    for cells in columns:
        commas = commas or (
            any(map(_COMMA.fullmatch, cells))
            and all(cell.isdigit() or _COMMA.fullmatch(cell) for cell in cells - {*_MISSING})
        )
        if any(map(_POINT.fullmatch, cells)):
            return False
    return commas


def _find_missing(
    found: Survey, columns: Mapping[str, set[Any]], is_number: Callable[[set[Any]], bool]
) -> None:
    """Choose the signs for missing: those among numbers, and those that no text column has."""
    among_numbers: set[str] = set()
    texts: dict[str, str] = {}
    for name, values in columns.items():
        signs, others = values & {*_MISSING}, values - {*_MISSING}
        if not signs or not others:
            continue
        if is_number(others):
            among_numbers |= signs
            shown = ", ".join(map(repr, sorted(signs)))
            found.notes.append(f"{name!r} has {shown} among its numbers: taken as missing")
        else:
            texts |= dict.fromkeys(signs, name)
    typed = found.what in ("Arrow", "Parquet")  # in a column of numbers all are numbers
    found.missing = [
        sign for sign in _MISSING if sign in among_numbers or not (typed or sign in texts)
    ]
    for sign, name in texts.items():
        what = "missing there, too" if sign in among_numbers else "a value there, not missing"
        found.notes.append(f"{name!r} has {sign!r} among its texts: {what}")


def _json_rows(name: str, blocks: list[Block]) -> list[dict[str, Any]]:
    rows = []
    for line in (line for block in blocks for line in block.data.splitlines()):
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    if not rows:
        raise InputError(f"{name}: no line is a JSON object; JSON Lines has one object a line")
    return rows


def _columns(rows: Sequence[Mapping[str, Any]], found: Survey | None = None) -> list[_Column]:
    names = dict.fromkeys(key for row in rows for key in row)
    if found is not None:
        scalars = {
            name: {v for row in rows if isinstance(v := row.get(name), str | int | float)}
            for name in names
        }
        _find_missing(found, scalars, lambda values: all(type(v) in (int, float) for v in values))
    missing = () if found is None else found.missing
    columns = []
    for name in names:
        values = [v for row in rows if (v := row.get(name)) is not None and v not in missing]
        if any(type(v) is int and not fits(v) for v in values):
            columns.append(_Column(name, list(map(str, values)), forced="string"))
        else:
            columns.append(_Column(name, values))
    return columns


def _judge_events(found: Survey, rows: list[dict[str, Any]]) -> None:
    """Survey events in Midstream's own form."""
    features = [row["x"] for row in rows if isinstance(row.get("x"), dict)]
    (label,) = _columns([{"y": row.get("y")} for row in rows])
    _judge_features(found, _columns(features))
    _judge_label(found, label)


def _judge_fields(found: Survey, columns: list[_Column]) -> None:
    """Survey flat records."""
    n = max(len(column.values) for column in columns)
    ids = [c for c in columns if c.is_id and len(c.values) == c.distinct == n]
    identifier = _first(ids, "id|uuid|guid")
    times = [c for c in columns if c.is_time]
    time = _first(times, "time|timestamp|ts|datetime")
    rest = [c for c in columns if c is not identifier and c is not time]
    label = _label(found, rest)
    features = [c for c in rest if c is not label]
    types = _judge_features(found, features)
    _judge_label(found, label)
    if label.forced or (
        found.task == "multiclass" and (float in label.types or len(label.types) > 1)
    ):
        types[label.name] = "string"
        if not label.forced:
            found.notes.append(f"labels {label.name!r} are of several kinds: all are read as text")
    found.fields = FieldMap(
        label=label.name,
        id=None if identifier is None else identifier.name,
        time=None if time is None else time.name,
        exclude=list(found.left_out),
        types=types,
        missing=list(found.missing),
        decimal=found.decimal,
        time_unit="date" if time is not None and time.is_digits_of_date else "auto",
    )


def _first(columns: list[_Column], best: str) -> _Column | None:
    """Return the first column with one of the best names, else the first."""
    named = [c for c in columns if c.is_called(best)]
    return next(iter(named + columns), None)


def _label(found: Survey, columns: list[_Column]) -> _Column:
    """Choose the label: by its name, else the last field that may be one."""
    able = [c for c in columns if c.values and not c.is_nested and not c.is_free_text]
    for pattern in _LABELS:
        if named := [c for c in able if c.is_called(pattern)]:
            found.label_is_guess = len(named) > 1
            return named[-1]
    found.label_is_guess = True
    truths = [c for c in able if c.is_called(_TRUTH) and c.is_binary]
    likely = [c for c in able if not (c.is_id or c.is_iso or c.is_called(_TIME))]
    if not truths and not likely:
        names = ", ".join(repr(c.name) for c in columns)
        raise InputError(f"{found.path}: found nothing to predict among its fields: {names}")
    return (truths or likely)[-1]


def _judge_label(found: Survey, label: _Column) -> None:
    found.label = label.name
    found.task = label.task
    if not label.values:
        found.label_is_guess = True
        found.notes.append(f"no record has a label {label.name!r}, so the task is a guess")
    elif label.distinct == 1 and found.task != "regression":
        found.notes.append(f"the label {label.name!r} has one value only in these records")
    elif found.task == "multiclass" and label.distinct == 2:
        found.notes.append(
            f"the label {label.name!r} has two values, but not true/false or 0/1: two classes"
        )


def _judge_features(found: Survey, columns: list[_Column]) -> dict[str, Kind]:
    """Sort features by type; return those whose type a config has to set."""
    types: dict[str, Kind] = {}
    for c in columns:
        reason = _reason_against(c)
        is_name = c.is_id and c.types == {int}
        # A cell of CSV is typed by its look, and later cells could look different.
        as_text = found.what == "CSV" and str in c.types
        if c.forced or ((is_name or as_text) and not reason):
            types[c.name] = "string"
        if reason:
            found.left_out[c.name] = reason
            continue
        if c.types & {str} or is_name:
            found.texts.append(c.name)
        if c.types - {str} and not is_name and not as_text:
            found.numbers.append(c.name)
            if found.what == "CSV" and c.types <= {int, float}:
                types[c.name] = "number"
    return types


def _reason_against(c: _Column) -> str | None:
    """Return why a field should not be a feature; None if it should."""
    if c.is_nested:
        return "is not a single value"
    if c.is_id and c.distinct > min(_ENTITIES, len(c.values) / 2):
        return "identifies something"
    if c.is_iso or c.is_time:
        return "is a time, always new"
    if c.is_free_text:
        return "is another text nearly every time"
    return None


def _is_iso(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
