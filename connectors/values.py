"""What a value may be: the rules for labels, ids, times, weights and text, a column at a time.

Each rule turns a column of raw values into its final values and notes a fault for every value
that breaks it. Faults of an event depend on that event alone.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from math import isfinite
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET

from midstream.connectors.fields import Columns, Faults, FieldMap, Kind
from midstream.engine.events import Feature, Label, Task

__all__ = [
    "BadValueError",
    "Int64",
    "all_or_none",
    "fits",
    "forced",
    "forced_column",
    "group_column",
    "label_column",
    "role_columns",
    "shown",
    "text_column",
    "time_column",
    "type_name",
    "typed_cells",
]

Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_BINARY: dict[Any, bool | None] = {False: False, True: True, None: None}
"""Equality finds 0, 1, 0.0 and 1.0 as well."""
_TYPES = {
    bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object",
}  # fmt: skip
_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)
_SPACE = " \t\r\n"
_numbers = msgspec.json.Decoder(list[Int64 | float | None])


class BadValueError(ValueError):
    """A value that breaks a rule; the message is the reason for rejecting its event."""


def type_name(value: object) -> str:
    """Return the JSON name of a value's type."""
    return "null" if value is None else _TYPES[type(value)]


def shown(value: object) -> str:
    """Return a value for a message: short, and as it was written."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else _spelled(value)
    if isinstance(value, list | dict):
        return f"an {type_name(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}…"


def fits(value: int) -> bool:
    """Whether an integer fits in 64 bits."""
    return -(2**63) <= value < 2**63


def _converted(
    values: Sequence[Any], rule: Callable[[Any], Any], path: str, faults: Faults
) -> list[Any]:
    """Apply a rule to each value; a value that breaks it is noted and becomes None."""
    out = []
    for i, value in enumerate(values):
        try:
            out.append(rule(value))
        except BadValueError as error:
            faults.setdefault(i, (str(error), path))
            out.append(None)
    return out


def all_or_none(values: list[Any]) -> list[Any] | None:
    """Return the column, or None if it is empty: all its values are None."""
    return None if values and values.count(None) == len(values) else values


def label_column(
    values: list[Any], task: Task, path: str, faults: Faults, *, own: bool = False
) -> list[Label | None]:
    """Return labels of the task's type; None for an event without one.

    `own`: the column is of events in our own form, where an empty string is no way to say that
    there is no label.
    """
    kinds = set(map(type, values)) - {type(None)}
    if task == "binary" and kinds <= {bool, int, float}:
        try:
            return [_BINARY[value] for value in values]
        except KeyError:
            pass
    elif task == "multiclass" and kinds <= {str, int, bool}:
        if "" not in values:
            return values
    elif task == "regression" and kinds <= {int, float}:
        return values
    return _converted(values, partial(_label, task, path, own), path, faults)


def _label(task: Task, path: str, own: bool, value: Any) -> Label | None:
    kind = type(value)
    if value is UNSET:
        raise BadValueError(f"label field {path!r} is missing")
    if value is None or (kind is str and not value and not own):
        return None
    if task == "binary":
        if kind in (bool, int, float) and value in _BINARY:
            return bool(value)
        wanted = "true/false or 0/1"
    elif task == "multiclass":
        if kind in (int, bool) or (kind is str and value):
            return value  # type: ignore[no-any-return]
        wanted = "a string (not empty), an integer or true/false"
    else:
        if kind in (int, float):
            return value  # type: ignore[no-any-return]
        wanted = "a finite number"
    raise BadValueError(f"label must be {wanted} for task {task}, found {shown(value)}")


def time_column(values: list[Any], path: str, faults: Faults) -> list[float | None] | None:
    """Return times in seconds; None where there is none, and None for no times at all."""
    if set(map(type, values)) <= {float}:
        return values
    return all_or_none(_converted(values, _seconds, path, faults))


def _seconds(value: Any) -> float | None:
    kind = type(value)
    if kind is str:
        return _seconds_of_text(value)
    if value is None or value is UNSET:
        return None
    if kind is float or kind is int:
        try:
            return float(value)
        except OverflowError:
            raise BadValueError("time is too large a number") from None
    raise BadValueError(f"time must be seconds or ISO 8601, found {shown(value)}")


def _seconds_of_text(text: str) -> float | None:
    text = text.strip(_SPACE)
    if not text:
        return None
    # Nothing is both; the fifth character of most ISO dates tells which to try first.
    for read in (_iso, _decimal) if text[4:5] == "-" else (_decimal, _iso):
        seconds = read(text)
        if seconds is not None:
            return seconds
    raise BadValueError(f"time must be seconds or ISO 8601, found {shown(text)}")


def _decimal(text: str) -> float | None:
    number = float(text) if _FLOAT.fullmatch(text) else None
    return number if number is not None and isfinite(number) else None


def _iso(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _weight_column(values: list[Any], path: str, faults: Faults) -> list[float]:
    """Return sample weights, 1 where there is none."""
    return _converted(values, _weight, path, faults)


def _weight(value: Any) -> float:
    if value is None or value is UNSET:
        return 1.0
    if type(value) in (int, float) and value >= 0:
        try:
            return float(value)
        except OverflowError:
            pass
    raise BadValueError(f"weight must be a finite number of at least 0, found {shown(value)}")


def _id_column(values: list[Any], path: str, faults: Faults) -> list[str | None] | None:
    """Return ids as strings; None where there is none, and None for no ids at all."""
    if set(map(type, values)) <= {str} and "" not in values:
        return values
    return all_or_none(_converted(values, _id, path, faults))


def _id(value: Any) -> str | None:
    if type(value) is int:
        return str(value)
    if value is None or value is UNSET or type(value) is str:
        return value or None
    raise BadValueError(f"id must be a string or an integer, found {shown(value)}")


def text_column(values: list[Any], path: str, faults: Faults) -> list[str | None] | None:
    """Return strings, spelled as in JSON; None where there is none, and None for none at all."""
    if set(map(type, values)) <= {str} and "" not in values:
        return values
    return all_or_none(_converted(values, _text, path, faults))


def _text(value: Any) -> str | None:
    if value is None or value is UNSET or type(value) is str:
        return value or None
    if isinstance(value, list | dict):
        raise BadValueError(f"expected string, got {type_name(value)}")
    return _spelled(value)


def _spelled(value: Feature) -> str:
    """Return a scalar as it is written in JSON, a string as it is."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def group_column(
    columns: dict[str, list[str | None] | None],
) -> list[dict[str, str] | None] | None:
    """Return a dict of groups per event from a column for each group."""
    given = {name: column for name, column in columns.items() if column is not None}
    if not given:
        return None
    rows = zip(*given.values(), strict=True)
    return [
        {k: v for k, v in zip(given, row, strict=True) if v is not None} or None for row in rows
    ]


def role_columns(
    fields: FieldMap, task: Task, raw: dict[str, list[Any]], n: int, faults: Faults
) -> Columns:
    """Return the columns of `n` flat records, without features, from those of raw values."""

    def column(rule: Callable[[list[Any], str, Faults], Any], name: str | None) -> Any:
        return None if name is None else rule(raw[name], name, faults)

    return Columns(
        x=[],
        labels=[None] * n
        if fields.label is None
        else label_column(raw[fields.label], task, fields.label, faults),
        ids=column(_id_column, fields.id),
        times=column(time_column, fields.time),
        weights=column(_weight_column, fields.weight),
        keys=column(text_column, fields.key),
        sources=column(text_column, fields.source),
        groups=group_column({name: column(text_column, name) for name in fields.group}),
    )


def typed_cells(
    cells: Sequence[str], kind: Kind | None, path: str, faults: Faults
) -> list[Feature | None]:
    """Return the values that text stands for; None where it is empty, that is, missing.

    An integer in plain notation becomes an int, any other decimal number a float, true and false
    in any case a bool, the rest a string. A `kind` forces one of these.
    """
    if kind in (None, "number"):
        # A column of numbers is read as one JSON array: each cell gives at least one value or an
        # error, so as many values as cells means that each gave one.
        joined = ",".join(cells)
        if "null" not in joined:
            if "" in cells:
                joined = ",".join([cell or "null" for cell in cells])
            try:
                values = _numbers.decode(f"[{joined}]")
            except (msgspec.MsgspecError, ValueError):
                pass
            else:
                if len(values) == len(cells):
                    return values  # type: ignore[return-value]
    known: dict[str, Feature | None] = {}
    faulty: dict[str, str] = {}
    for cell in set(cells):
        try:
            known[cell] = _of_text(cell, kind)
        except BadValueError as error:
            known[cell] = None
            faulty[cell] = str(error)
    if faulty:
        for i, cell in enumerate(cells):
            if cell in faulty:
                faults.setdefault(i, (faulty[cell], path))
    return [known[cell] for cell in cells]


def _of_text(text: str, kind: Kind | None) -> Feature | None:
    stripped = text.strip(_SPACE)
    if not stripped:
        return None
    if kind == "string":
        return text
    if kind in (None, "number"):
        if _INT.fullmatch(stripped):
            if len(stripped) > 20 or not fits(number := int(stripped)):
                raise BadValueError("integer does not fit in 64 bits; perhaps its type is string")
            return number
        if _FLOAT.fullmatch(stripped):
            if not isfinite(decimal := float(stripped)):
                raise BadValueError(f"number is too large: {shown(stripped)}")
            return decimal
        if _NOT_FINITE.fullmatch(stripped):
            raise BadValueError(f"number is not finite: {shown(stripped)}")
    if kind != "number":
        lower = stripped.lower()
        if lower in ("true", "false") or (kind == "bool" and lower in ("1", "0")):
            return lower in ("true", "1")
    if kind is None:
        return text
    wanted = "a number" if kind == "number" else "true/false or 0/1"
    raise BadValueError(f"expected {wanted}, found {shown(text)}")


def forced(value: Any, kind: Kind) -> Any:
    """Return a value of a JSON document as the given type; None where it is empty."""
    if value is None or value is UNSET:
        return value
    if type(value) is str:
        return _of_text(value, kind)
    if kind == "string" and not isinstance(value, list | dict):
        return _spelled(value)
    if kind == "number" and type(value) in (int, float):
        return value
    if kind == "bool" and type(value) in (bool, int, float) and value in _BINARY:
        return bool(value)
    wanted = "true/false or 0/1" if kind == "bool" else f"a {kind}"
    raise BadValueError(f"expected {wanted}, found {shown(value)}")


def forced_column(values: list[Any], kind: Kind, path: str, faults: Faults) -> list[Any]:
    """Return values of JSON documents as the given type."""
    return _converted(values, partial(forced, kind=kind), path, faults)
