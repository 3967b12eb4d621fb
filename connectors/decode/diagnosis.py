"""Finds the exact reason and place for which a line of JSON is rejected."""

import json
import re
from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

from midstream.connectors.decode.fields import Fault
from midstream.engine.events.rules import (
    NOT_FINITE,
    TOO_LONG,
    BadValueError,
    fits,
    shown,
    type_name,
    weight_of,
)

__all__ = ["MAX_DEPTH", "diagnose", "key_count", "too_deep"]

MAX_DEPTH = 32
"""Maximum nesting of a line.

The parsers recurse; how deep they can go depends on the caller's stack. This limit does not.
"""

# A string that never ends, in invalid JSON, matches to the end of the line. Otherwise the search
# would restart at each quote inside it.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)')
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"(?:[ \t\r\n]*+(:))?')
_NAME = 100  # length of a name in a message
_PLAIN_NAME = re.compile(r"[^\W\d]\w*")
_STRINGS = ("id", "key", "source")
_NUMBERS = ("ts", "weight")


class _DuplicateKeyError(Exception):
    """An object with a repeated key."""


def key_count(data: bytes) -> int:
    """Return the number of keys in valid JSON, counting repeated keys each time."""
    return _TOKEN.findall(data).count(b":")


def too_deep(line: bytes) -> bool:
    """Whether a line is nested more than `MAX_DEPTH` levels deep."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in re.findall(rb"[\[\]{}]", _STRING.sub(b"", line)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def diagnose(line: bytes, error: Exception | None, *, own: bool) -> Fault:
    """Return (reason, path) for a rejected line.

    Parameters
    ----------
    line
        One line.
    error
        The decoder's error; None if it accepted the line, which then has a repeated key.
    own
        Whether the line had to be an event in Midstream's own form, or any object.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as bad:
        return f"invalid UTF-8 at byte {bad.start + 1}", ""
    if too_deep(line):
        return f"nested more than {MAX_DEPTH} levels deep", ""
    try:
        doc = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_constant
        )
    except _DuplicateKeyError as bad:
        return f"duplicate key {shown(bad.args[0])}", ""
    except json.JSONDecodeError as bad:
        if bad.msg == "Extra data":
            end = bad.pos
            return f"more than one value on the line: another begins at character {end + 1}", ""
        what = bad.msg[0].lower() + bad.msg[1:].removesuffix(" at")
        return f"invalid JSON: {what} at character {bad.pos + 1}", ""
    try:
        json.dumps(doc, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half a character in a string (a lone surrogate)", ""
    if not isinstance(doc, dict):
        return f"expected object, got {type_name(doc)}", ""
    fault = _fault_of_event(doc) if own else _not_finite(doc.items(), "")
    return fault or (f"invalid JSON: {error}", "")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    doc = dict(pairs)
    if len(doc) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return doc


def _constant(text: str) -> float | None:
    return None if text == "NaN" else float(text)  # NaN is a missing value


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 400 else inf  # int() refuses very long integers


def _fault_of_event(doc: dict[str, Any]) -> Fault | None:
    """Return the fault of an event in Midstream's own form."""
    x = doc.get("x")
    if "x" not in doc:
        return "missing required field 'x'", "$.x"
    if not isinstance(x, dict):
        return f"expected object, got {type_name(x)}", "$.x"
    for name, value in x.items():
        if fault := _fault_of_scalar(value, _path("$.x", name)):
            return fault
    for name, value in doc.items():
        path = _path("$", name)
        fault = None
        if name == "y":
            fault = _fault_of_scalar(value, path)
        elif name in _STRINGS:
            fault = _fault_of_type(value, str, path)
        elif name in _NUMBERS:
            fault = _fault_of_number(value, path, weight=name == "weight")
        elif name == "group":
            fault = _fault_of_group(value, path)
        elif name != "x":
            fault = f"unknown field {shown(name)}", path
        if fault:
            return fault
    return None


def _fault_of_scalar(value: Any, path: str) -> Fault | None:
    if isinstance(value, list | dict):
        return f"expected number, string, bool or null, got {type_name(value)}", path
    if isinstance(value, float) and not isfinite(value):
        return NOT_FINITE, path
    if type(value) is int and not fits(value):
        return TOO_LONG, path
    return None


def _fault_of_type(value: Any, wanted: type, path: str) -> Fault | None:
    if value is None or isinstance(value, wanted):
        return None
    return f"expected {type_name(wanted())}, got {type_name(value)}", path


def _fault_of_number(value: Any, path: str, *, weight: bool) -> Fault | None:
    if value is None:
        return None
    if type(value) not in (int, float):
        return f"expected number, got {type_name(value)}", path
    try:
        finite = isfinite(float(value))
    except OverflowError:
        finite = False
    if not finite:
        return NOT_FINITE, path
    if weight:
        try:
            weight_of(value)
        except BadValueError as error:
            return str(error), path
    return None


def _fault_of_group(value: Any, path: str) -> Fault | None:
    if fault := _fault_of_type(value, dict, path):
        return fault
    for name, group in (value or {}).items():
        if not isinstance(group, str):
            return f"expected string, got {type_name(group)}", _path(path, name)
    return None


def _not_finite(items: Iterable[tuple[Any, Any]], path: str) -> Fault | None:
    """Return where a document has a number that JSON lacks, or that is too large for a float."""
    for name, value in items:
        here = f"{path}.{name}".removeprefix(".")[:_NAME]
        if isinstance(value, float) and not isfinite(value):
            return NOT_FINITE, here
        if isinstance(value, list | dict):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            if fault := _not_finite(inner, here):
                return fault
    return None


def _path(above: str, name: str) -> str:
    name = name[:_NAME]
    if _PLAIN_NAME.fullmatch(name):
        return f"{above}.{name}"
    return f"{above}[{json.dumps(name, ensure_ascii=False)}]"
