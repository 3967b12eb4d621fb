"""The rules for labels, ids, times, weights and text, applied a column at a time.

Each rule converts a column of raw values to final values, and adds a fault for every value that
breaks it. Faults of an event depend on that event alone.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET

from midstream.connectors.decode.fields import Columns, Faults, FieldMap, Kind
from midstream.connectors.decode.notation import Notation
from midstream.engine.events.event import Feature, Label, Task, floats
from midstream.engine.events.rules import (
    BINARY,
    NOT_FINITE,
    TOO_LONG,
    BadValueError,
    converted,
    fits,
    label_of,
    shown,
    spelled,
    type_name,
    weight_of,
)

__all__ = [
    "TOO_LONG_FIELD",
    "Int64",
    "all_or_none",
    "forced",
    "forced_column",
    "group_column",
    "label_cells",
    "label_column",
    "role_columns",
    "text_column",
    "time_column",
    "typed_cells",
]

Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

TOO_LONG_FIELD = f"{TOO_LONG}; perhaps its type is string"

_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0+)?")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:(?:,[0-9]{3})+(?:\.[0-9]+)?|(?:\.[0-9]{3})+,[0-9]+)")
_NAN = re.compile(r"[+-]?nan", re.IGNORECASE)
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_SPACE = " \t\r\n"
_PLAIN = Notation()
_numbers = msgspec.json.Decoder(list[Int64 | float | None])


def all_or_none(values: list[Any]) -> list[Any] | None:
    """Return the column, or None if all its values are None."""
    return None if values and values.count(None) == len(values) else values


def label_column(
    values: list[Any], task: Task, path: str, faults: Faults, *, own: bool = False
) -> list[Label | None]:
    """Return labels of the task's type; None for an event without one.

    `own`: the events have Midstream's own form, where an empty string does not mean "no label".
    """
    kinds = set(map(type, values)) - {type(None)}
    if task == "binary" and kinds <= {bool, int, float}:
        try:
            return [BINARY[value] for value in values]
        except KeyError:
            pass
    elif task == "multiclass" and kinds <= {str, int, bool}:
        if "" not in values:
            return values
    elif task == "regression" and kinds <= {int, float}:
        return values
    return converted(values, partial(_label, task, own), path, faults)


def _label(task: Task, own: bool, value: Any) -> Label | None:
    if value is UNSET or (value == "" and not own):
        return None
    return label_of(task, value)


def time_column(
    values: list[Any], path: str, faults: Faults, notation: Notation
) -> list[float | None] | None:
    """Return times in seconds, None where missing; None if all are missing."""
    kinds = set(map(type, values))
    if kinds <= {float}:
        array = floats(values)
        seconds = notation.plain_seconds(array)
        if seconds is not None:
            return values if seconds is array else seconds.tolist()
    elif kinds <= {str, type(None)} and (numbers := _numbers_of(values)) is not None:
        array = np.array(numbers, np.float64) + 0.0  # nan where missing; -0 becomes 0
        seconds = notation.plain_seconds(array)
        if seconds is not None:
            given: list[float | None] = seconds.tolist()
            if None in numbers:
                given = [
                    None if number is None else value
                    for number, value in zip(numbers, given, strict=True)
                ]
            return all_or_none(given)
    return all_or_none(converted(values, partial(_seconds, notation), path, faults))


def _numbers_of(cells: Sequence[str | None]) -> list[int | float | None] | None:
    """Return the cells as numbers, None for an empty cell; None if any is no number.

    They are parsed as one JSON array: each cell gives at least one value or an error, so as many
    values as cells means one value per cell.
    """
    empty = None in cells or "" in cells
    joined = ",".join([cell or "" for cell in cells] if empty else cells)  # type: ignore[arg-type]
    if "null" in joined:
        return None
    if empty:
        joined = ",".join([cell or "null" for cell in cells])
    try:
        values = _numbers.decode(f"[{joined}]")
    except (msgspec.MsgspecError, ValueError):
        return None
    return values if len(values) == len(cells) else None


def _seconds(notation: Notation, value: Any) -> float | None:
    return None if value is UNSET else notation.seconds(value)


def _weight_column(values: list[Any], path: str, faults: Faults) -> list[float]:
    """Return sample weights, 1 where missing."""
    return converted(values, _weight, path, faults)


def _weight(value: Any) -> float:
    return 1.0 if value is UNSET else weight_of(value)


def _id_column(values: list[Any], path: str, faults: Faults) -> list[str | None] | None:
    """Return ids as strings, None where missing; None if all are missing."""
    if set(map(type, values)) <= {str} and "" not in values:
        return values
    return all_or_none(converted(values, _id, path, faults))


def _id(value: Any) -> str | None:
    if type(value) is int:
        return str(value)
    if value is None or value is UNSET or type(value) is str:
        return value or None
    raise BadValueError(f"id must be a string or an integer, found {shown(value)}")


def text_column(values: list[Any], path: str, faults: Faults) -> list[str | None] | None:
    """Return strings, as in JSON, None where missing; None if all are missing."""
    if set(map(type, values)) <= {str} and "" not in values:
        return values
    return all_or_none(converted(values, _text, path, faults))


def _text(value: Any) -> str | None:
    if value is None or value is UNSET or type(value) is str:
        return value or None
    if isinstance(value, list | dict):
        raise BadValueError(f"expected string, got {type_name(value)}")
    return spelled(value)


def group_column(
    columns: dict[str, list[str | None] | None],
) -> list[dict[str, str] | None] | None:
    """Return a dict of groups per event, from one column per group."""
    given = {name: column for name, column in columns.items() if column is not None}
    if not given:
        return None
    rows = zip(*given.values(), strict=True)
    return [
        {k: v for k, v in zip(given, row, strict=True) if v is not None} or None for row in rows
    ]


def role_columns(
    fields: FieldMap,
    task: Task,
    raw: dict[str, list[Any]],
    n: int,
    faults: Faults,
    notation: Notation,
) -> Columns:
    """Return the columns of `n` flat records, without features, from raw columns."""
    if notation.has_missing:
        raw = {name: notation.given(values) for name, values in raw.items()}

    def column(rule: Callable[[list[Any], str, Faults], Any], name: str | None) -> Any:
        return None if name is None else rule(raw[name], name, faults)

    return Columns(
        x=[],
        labels=[None] * n
        if fields.label is None
        else label_column(raw[fields.label], task, fields.label, faults),
        ids=column(_id_column, fields.id),
        times=column(partial(time_column, notation=notation), fields.time),
        weights=column(_weight_column, fields.weight),
        keys=column(text_column, fields.key),
        sources=column(text_column, fields.source),
        groups=group_column({name: column(text_column, name) for name in fields.group}),
    )


def typed_cells(
    cells: Sequence[str],
    kind: Kind | None,
    path: str,
    faults: Faults,
    notation: Notation = _PLAIN,
) -> list[Feature | None]:
    """Return the values that cells stand for; None for an empty cell, which is missing.

    An integer in plain notation becomes an int, any other decimal number a float, true and false in
    any case a bool, and the rest a string; nan is missing. A `kind` forces one of these.
    """
    if notation.texts and not notation.texts.isdisjoint(cells):
        cells = ["" if cell in notation.texts else cell for cell in cells]
    if kind in (None, "number"):
        values: list[Any] | None = None
        if notation.decimal == ".":
            values = _numbers_of(cells)
        elif not any("." in cell for cell in cells):  # the rules below handle a point
            values = _numbers_of([cell.replace(",", ".") for cell in cells])
        if values is not None:
            return notation.given(values) if notation.numbers else values
    return _distinct(cells, partial(_of_text, kind=kind, notation=notation), path, faults)


def _distinct(
    cells: Sequence[str], rule: Callable[[str], Any], path: str, faults: Faults
) -> list[Any]:
    """Apply a rule to each distinct cell; None for one that breaks it."""
    known: dict[str, Any] = {}
    faulty: dict[str, str] = {}
    for cell in set(cells):
        try:
            known[cell] = rule(cell)
        except BadValueError as error:
            known[cell] = None
            faulty[cell] = str(error)
    if faulty:
        for i, cell in enumerate(cells):
            if cell in faulty:
                faults.setdefault(i, (faulty[cell], path))
    return [known[cell] for cell in cells]


def label_cells(
    cells: Sequence[str],
    task: Task,
    kind: Kind | None,
    path: str,
    faults: Faults,
    notation: Notation,
) -> list[Label | None]:
    """Return the labels that cells stand for; None where missing.

    In a multiclass task, an integer in plain notation becomes an int, also with only zeros after
    the point. True and false in any case become a bool; the rest, like 007 and 1e3, is text. If
    labels are configured as text, all of them are.
    """
    if task == "multiclass":
        if kind is None and notation.text_labels:
            kind = "string"
        if kind is None:
            return _distinct(cells, partial(_class_of_text, notation=notation), path, faults)
    return typed_cells(cells, kind, path, faults, notation)


def _class_of_text(text: str, notation: Notation) -> Label | None:
    stripped = text.strip(_SPACE)
    if not stripped or _NAN.fullmatch(stripped) or notation.is_missing(stripped):
        return None
    if _WHOLE.fullmatch(stripped):
        whole = stripped.partition(".")[0]
        if len(whole) > 20 or not fits(number := int(whole)):
            raise BadValueError(TOO_LONG_FIELD)
        return None if notation.is_missing(number) else number
    if (lower := stripped.lower()) in ("true", "false"):
        return lower == "true"
    return text


def _of_text(text: str, kind: Kind | None, notation: Notation) -> Feature | None:
    stripped = text.strip(_SPACE)
    if not stripped or stripped in notation.texts:
        return None
    if kind == "string":
        return text
    if _NAN.fullmatch(stripped):
        return None
    if kind in (None, "number"):
        number = _number_of_text(stripped, notation)
        if number is not None:
            return None if number in notation.numbers else number
    if kind != "number":
        lower = stripped.lower()
        if lower in ("true", "false") or (kind == "bool" and lower in ("1", "0")):
            return lower in ("true", "1")
    if kind is None:
        return text
    wanted = "a number" if kind == "number" else "true/false or 0/1"
    raise BadValueError(f"expected {wanted}, found {shown(text)}")


def _number_of_text(text: str, notation: Notation) -> int | float | None:
    """Return text as a number; None if it is none."""
    if _INT.fullmatch(text):
        if len(text) > 20 or not fits(number := int(text)):
            raise BadValueError(TOO_LONG_FIELD)
        return number
    comma = notation.decimal == ","
    if _FLOAT.fullmatch(text):
        if comma and "." in text:
            raise BadValueError(f'number with a decimal point, where decimal is ",": {shown(text)}')
    elif comma and _COMMA.fullmatch(text):
        text = text.replace(",", ".")
    elif _COMMA.fullmatch(text) or _GROUPED.fullmatch(text):
        what = "grouped digits" if comma or text.count(",") > 1 or "." in text else "a comma"
        hint = "" if comma else 'decimal = "," reads a decimal comma, '
        raise BadValueError(
            f"number with {what}: {shown(text)}; in [input.fields] {hint}"
            'types = { … = "string" } keeps it as text'
        )
    elif _INFINITE.fullmatch(text):
        raise BadValueError(NOT_FINITE)
    else:
        return None
    if not isfinite(decimal := float(text)):
        raise BadValueError(NOT_FINITE)
    return decimal


def forced(value: Any, kind: Kind, notation: Notation = _PLAIN) -> Any:
    """Return a value of a JSON document as the given type; None if it is empty."""
    if value is None or value is UNSET:
        return value
    if notation.texts and notation.is_missing(value):
        return None
    if type(value) is str:
        return _of_text(value, kind, notation)
    if kind == "string" and not isinstance(value, list | dict):
        return spelled(value)
    if kind == "number" and type(value) in (int, float):
        return value
    if kind == "bool" and type(value) in (bool, int, float) and value in BINARY:
        return bool(value)
    wanted = "true/false or 0/1" if kind == "bool" else f"a {kind}"
    raise BadValueError(f"expected {wanted}, found {shown(value)}")


def forced_column(
    values: list[Any], kind: Kind, path: str, faults: Faults, notation: Notation = _PLAIN
) -> list[Any]:
    """Return values of JSON documents as the given type."""
    if kind == "number" and not notation.texts:
        kinds = set(map(type, values))
        if kinds <= _NUMBERS:
            return values
    return converted(values, partial(forced, kind=kind, notation=notation), path, faults)


_NUMBERS = {int, float, type(None), type(UNSET)}
