"""The rules for values: one each for features, labels, weights and times.

Decoders of every format apply these rules, and so does the `Trainer` to values given in Python. So
the same value gives the same event, or is rejected for the same reason.

None, NaN and the equivalents of pandas mean that a value is missing.
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Feature, FloatArray, Label, Task

__all__ = [
    "BINARY",
    "LABEL_KINDS",
    "NOT_FINITE",
    "TIME_UNITS",
    "TOO_LONG",
    "UNITS",
    "BadValueError",
    "LabelKind",
    "TimeUnit",
    "converted",
    "feature_of",
    "fits",
    "kind_of",
    "kinds_of",
    "label_fault",
    "label_of",
    "seconds_of",
    "shown",
    "sound",
    "spelled",
    "type_name",
    "unit_of",
    "weight_of",
]

LabelKind: TypeAlias = Literal["text", "integer", "bool"]
"""The kinds of multiclass labels: all labels of a stream are of one kind."""
LABEL_KINDS: tuple[LabelKind, ...] = ("text", "integer", "bool")
TimeUnit: TypeAlias = Literal["auto", "s", "ms", "us", "ns", "date"]
"""The unit of a numeric time; "date": digits of a date, as 20261129 or 20261129030000."""
TIME_UNITS: tuple[TimeUnit, ...] = ("auto", "s", "ms", "us", "ns", "date")

NOT_FINITE = "number is too large or not finite"
TOO_LONG = "integer does not fit in 64 bits"
BINARY: dict[Any, bool | None] = {False: False, True: True, None: None}
"""Equality finds 0, 1, 0.0 and 1.0 as well."""
UNITS: dict[str, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Number of each unit in a second."""

_TYPES = {
    bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object",
}  # fmt: skip
_WORDS: dict[Task, str] = {
    "binary": "true/false or 0/1",
    "multiclass": "a string (not empty), an integer or true/false",
    "regression": "a finite number",
}
_KINDS: dict[type, LabelKind] = {str: "text", int: "integer", bool: "bool"}
_NAMES: dict[LabelKind, str] = {"text": "text", "integer": "an integer", "bool": "true/false"}
_PANDAS = ("NAType", "NaTType")
_DATES = (8, 12, 14)  # number of digits: a date; with hours and minutes; with seconds
_YEARS = range(1900, 2101)


class BadValueError(ValueError):
    """A value breaks a rule; the message is the reason for rejecting its event."""


def type_name(value: object) -> str:
    """Return the JSON name of a value's type, or else its Python name."""
    return "null" if value is None else _TYPES.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """Return a value for a message: short, and as written."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else spelled(value)
    if isinstance(value, list | dict):
        return f"an {type_name(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}…"


def spelled(value: Feature) -> str:
    """Return a scalar as written in JSON, but a string without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def fits(value: int) -> bool:
    """Whether an integer fits in 64 bits."""
    return -(2**63) <= value < 2**63


def _plain(value: Any) -> Any:
    """Return a scalar as a plain Python value; None if missing."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):  # from databases; it can be neither learned nor saved
        value = math.nan if value.is_nan() else float(value)
    if type(value).__name__ in _PANDAS or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def feature_of(value: Any) -> Any:
    """Convert a value to a feature; None if missing.

    A non-scalar is returned unchanged: some learners accept it.

    Raises
    ------
    BadValueError
        If it is an infinite number, or an integer of more than 64 bits.
    """
    kind = type(value)
    if kind is str or kind is bool:
        return value
    if kind is not int and kind is not float:
        value = _plain(value)
        kind = type(value)
    if kind is int and not fits(value):
        raise BadValueError(TOO_LONG)
    if kind is float and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise BadValueError(NOT_FINITE)
    return value


def label_of(task: Task, value: Any) -> Label | None:
    """Convert a value to a label of the task; None if missing.

    For multiclass tasks, a number without a fraction is an integer, however it is written.

    Raises
    ------
    BadValueError
        If it is no label of this task.
    """
    kind = type(value)
    if kind not in _TYPES:
        value = _plain(value)
        kind = type(value)
    if value is None or (kind is float and math.isnan(value)):
        return None
    if kind is float and math.isinf(value):
        raise BadValueError(NOT_FINITE)
    if kind is int and not fits(value):
        raise BadValueError(TOO_LONG)
    if task == "binary":
        if kind in (bool, int, float) and value in BINARY:
            return bool(value)
    elif task == "multiclass":
        if kind in (int, bool) or (kind is str and value):
            return value  # type: ignore[no-any-return]
        if kind is float and value.is_integer() and fits(int(value)):
            return int(value)
    elif kind in (int, float):
        return value  # type: ignore[no-any-return]
    raise BadValueError(f"label must be {_WORDS[task]} for task {task}, found {shown(value)}")


def kind_of(label: Label) -> LabelKind | None:
    """Return the kind of a multiclass label; None for an invalid one."""
    return _KINDS.get(type(label))


def kinds_of(labels: Sequence[Label | None]) -> set[LabelKind | None]:
    """Return the kinds of multiclass labels."""
    return set(map(_KINDS.get, set(map(type, labels)) - {type(None)}))


def label_fault(label: Label, kind: LabelKind, first: Label | None) -> str:
    """Return why a label is rejected that is not of the settled kind.

    Parameters
    ----------
    first
        The label that settled the kind; None: the config did.
    """
    by = "as labels says" if first is None else f"as the first one was ({shown(first)})"
    reason = f"label must be {_NAMES[kind]} {by}, found {shown(label)}"
    if first is not None and "text" in (kind, _KINDS.get(type(label))):
        reason += '; if labels are text, however they look, set labels = "text" in [model]'
    return reason


def weight_of(value: Any) -> float:
    """Convert a value to a sample weight; 1 if missing.

    Raises
    ------
    BadValueError
        If it is not a finite number of at least 0.
    """
    kind = type(value)
    if kind is not int and kind is not float:
        value = _plain(value)
        kind = type(value)
    if value is None:
        return 1.0
    if kind in (int, float):
        try:
            weight = float(value)
        except OverflowError:
            weight = math.inf
        if math.isnan(weight):
            return 1.0
        if math.isinf(weight):
            raise BadValueError(NOT_FINITE)
        if weight >= 0:
            return weight
    raise BadValueError(f"weight must be a finite number of at least 0, found {shown(value)}")


def unit_of(number: float) -> str:
    """Return the unit of a numeric time, from its size: s, ms, us or ns.

    Below 1e11 it is seconds, up to the year 5138. Each further unit starts at a thousand times as
    much, which is in March 1973. So no time in seconds before 5138 is taken for another unit.

    Raises
    ------
    BadValueError
        If it is too large for all units.
    """
    size = abs(number)
    for unit, per_second in UNITS.items():
        if size < 1e11 * per_second:
            return unit
    raise BadValueError("time is too large a number")


def seconds_of(value: Any, unit: TimeUnit = "auto", *, dates: bool = True) -> float | None:
    """Convert a value to a time in seconds since 1970; None if missing.

    Parameters
    ----------
    unit
        The unit of a number.
    dates
        Whether the digits of a number may be a date. In events of our own format they may not.

    Raises
    ------
    BadValueError
        If it is not a time, or is ambiguous.
    """
    kind = type(value)
    if kind is not int and kind is not float:
        value = _plain(value)
        kind = type(value)
    if value is None:
        return None
    if kind is str:
        return _seconds_of_text(value, unit, dates=dates)
    if kind is int or kind is float:
        return _seconds_of_number(value, unit, dates=dates)
    if isinstance(value, date):
        return _timestamp(value)
    raise BadValueError(f"time must be seconds or ISO 8601, found {shown(value)}")


def _seconds_of_number(value: float, unit: TimeUnit, *, dates: bool) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        raise BadValueError(NOT_FINITE) from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise BadValueError(NOT_FINITE)
    if unit == "date" or (unit == "auto" and dates):
        digits = str(int(number)) if number.is_integer() and abs(number) < 1e15 else ""
        moment = _date_of(digits)
        if unit == "date":
            if moment is None:
                raise BadValueError(
                    "time must be the digits of a date (time_unit), as 20261129, "
                    f"found {shown(value)}"
                )
            return moment.timestamp()
        if moment is not None:
            raise BadValueError(
                f"time {digits} may be a date or a number of seconds: say which, with "
                'time_unit = "date" or "s" (or "ms") in [input.fields]'
            )
    return number / UNITS[unit_of(number) if unit == "auto" else unit]


def _seconds_of_text(text: str, unit: TimeUnit, *, dates: bool) -> float | None:
    text = text.strip()
    if not text:
        return None
    # No text is both; the fifth character of most ISO dates shows which to try first.
    if text[4:5] == "-" and (seconds := _iso(text)) is not None:
        return seconds
    try:
        number = float(text) + 0.0 if text.isascii() and "_" not in text else None
    except ValueError:
        number = None
    if number is not None:
        return _seconds_of_number(number, unit, dates=dates)
    if (seconds := _iso(text)) is not None:
        return seconds
    raise BadValueError(f"time must be seconds or ISO 8601, found {shown(text)}")


def _iso(text: str) -> float | None:
    try:
        return _timestamp(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _timestamp(moment: date) -> float:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _date_of(digits: str) -> datetime | None:
    """Return the moment that digits denote, in years 1900 to 2100; None if they denote none."""
    if len(digits) not in _DATES or not digits.isdigit() or int(digits[:4]) not in _YEARS:
        return None
    pairs = [int(digits[i : i + 2]) for i in range(4, len(digits), 2)]
    try:
        return datetime(int(digits[:4]), *pairs, tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError:
        return None


def sound(batch: EventBatch, task: Task | None) -> tuple[EventBatch, dict[int, tuple[str, str]]]:
    """Apply the rules to a batch that no decoder made.

    Parameters
    ----------
    task
        The task of the labels; None: labels are not checked.

    Returns
    -------
    batch
        The same events, without missing values.
    faults
        (reason, path) for each event that breaks a rule, by row.
    """
    faults: dict[int, tuple[str, str]] = {}
    columns: dict[str, Any] = {}
    if batch.columns is None:
        columns["x"] = _features(batch, faults)
    else:
        names, array, texts = batch.columns
        for row, j in np.argwhere(np.isinf(array)).tolist():
            faults.setdefault(row, (NOT_FINITE, f"$.x.{names[j]}"))
        columns |= {"x": None, "array": array, "names": names, "texts": texts}
    if batch.targets is None:
        labels = columns["labels"] = list(batch.labels)
        for row, label in enumerate(labels):
            if label is not None and task is not None:
                try:
                    labels[row] = label_of(task, label)
                except BadValueError as error:
                    faults.setdefault(row, (str(error), batch.field("label")))
    else:
        columns["labels"] = batch.targets
        for row in np.flatnonzero(np.isinf(batch.targets.values)).tolist():
            faults.setdefault(row, (NOT_FINITE, batch.field("label")))
    if batch.weights is not None:
        columns["weights"] = converted(batch.weights, weight_of, batch.field("weight"), faults, 1.0)
    if batch.times is not None:
        columns["times"] = converted(batch.times, _own_seconds, batch.field("time"), faults)
    return batch.made_sound(**columns), faults


def _features(batch: EventBatch, faults: dict[int, tuple[str, str]]) -> list[dict[str, Any]]:
    rows = []
    for row, x in enumerate(batch.dicts()):
        kept = {}
        for name, value in x.items():
            try:
                feature = feature_of(value)
            except BadValueError as error:
                faults.setdefault(row, (str(error), f"$.x.{name}"))
                continue
            if feature is not None:
                kept[name] = feature
        if not kept:
            faults.setdefault(row, ("no features", ""))
        rows.append(kept)
    return rows


def _own_seconds(value: Any) -> float | None:
    return seconds_of(value, dates=False)


def converted(
    values: Sequence[Any] | FloatArray,
    rule: Callable[[Any], Any],
    path: str,
    faults: dict[int, tuple[str, str]],
    missing: Any = None,
) -> list[Any]:
    """Apply a rule to each value; a value that breaks it goes to `faults` and gives `missing`."""
    out = []
    for row, value in enumerate(values):
        try:
            out.append(rule(value))
        except BadValueError as error:
            faults.setdefault(row, (str(error), path))
            out.append(missing)
    return out
