"""What feedback is: the rules for an item, and the message that a valid one becomes."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from midstream.engine.events.event import Label, Task
from midstream.engine.events.rules import (
    TOO_LONG,
    BadValueError,
    TimeUnit,
    fits,
    label_of,
    seconds_of,
    shown,
    type_name,
)
from midstream.flows.config.tables import nearest

__all__ = [
    "KEY_BYTES",
    "LONGEST",
    "LONGEST_KEY",
    "LONGEST_SOURCE",
    "Fault",
    "Item",
    "Rules",
    "digest",
]

LONGEST = 1_000
"""Most characters of an id, a label or a key."""
LONGEST_KEY = 255
"""Most characters of an idempotency key."""
LONGEST_SOURCE = 200
"""Most characters of a source."""
KEY_BYTES = 16
"""Length of what an idempotency key is remembered as."""
_CONTENT_BYTES = 8
_FIELDS = ("id", "y", "ts", "source", "idempotency_key")


class Fault(NamedTuple):
    """Why an item is no feedback, and which field is to blame ("" for the whole)."""

    reason: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """Valid feedback.

    Attributes
    ----------
    id
        The id of the event.
    value
        The message's value: JSON with `id`, `y`, `ts` and `source`.
    key
        The message's key.
    idempotency
        What tells a repeated send: 16 bytes.
    content
        A digest of what was sent: 8 bytes. The same key with another content is a mistake.
    """

    id: str
    value: bytes
    key: bytes
    idempotency: bytes
    content: bytes


def digest(*parts: Any) -> bytes:
    """Return 16 bytes that stand for plain values."""
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=KEY_BYTES).digest()


class _Message(msgspec.Struct):
    id: str
    y: Label
    ts: float
    source: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one gateway.

    Attributes
    ----------
    task
        The model's task, which tells what a label is.
    future_seconds
        How far ahead of the clock a time may be.
    key
        The field with the message's key; None: the id is the key.
    """

    task: Task
    future_seconds: float
    key: str | None = None

    def fields(self) -> tuple[str, ...]:
        """Return the names of an item's fields."""
        return _FIELDS if self.key is None else (*_FIELDS, self.key)

    def apply(
        self,
        raw: Any,
        *,
        scope: str,
        source: str,
        idempotency_key: str | None = None,
        now: float | None = None,
        unit: TimeUnit = "s",
        paths: Mapping[str, str] | None = None,
    ) -> Item | Fault:
        """Return the feedback that an object holds, or what is wrong with it.

        Parameters
        ----------
        scope
            Whose idempotency keys these are: equal keys of two scopes are two keys.
        source
            The source of an item that tells none.
        idempotency_key
            The key of an item that has none.
        now
            The time of an item that has none. Default: the clock's.
        unit
            The unit of a time that is a number.
        paths
            What the fields are called where the item comes from.
        """
        if not isinstance(raw, dict):
            return Fault(f"an item must be a JSON object, found {_a(raw)}")
        for name in raw:
            if name not in self.fields():
                near = nearest(name, self.fields()) or "."
                known = ", ".join(self.fields())
                return Fault(f"unknown field{near} Known fields: {known}", _short(name))
        field = ""
        try:
            field = "id"
            found_id = _text(raw.get("id"), "id", LONGEST)
            field = "y"
            label = self._label(raw.get("y"))
            field = "source"
            if raw.get("source") is not None:
                source = _plain_text(raw["source"], "source", LONGEST_SOURCE)
            field = "ts"
            ts, given = self._time(raw.get("ts"), unit, now)
            field = "idempotency_key"
            if raw.get("idempotency_key") is not None:
                idempotency_key = _text(raw["idempotency_key"], field, LONGEST_KEY)
            key = found_id
            if self.key is not None:
                field = self.key
                key = _text(raw.get(field), "key", LONGEST)
        except BadValueError as error:
            return Fault(str(error), (paths or {}).get(field, field))
        whole = digest(found_id, label, source, ts if given else None, key)
        return Item(
            id=found_id,
            value=msgspec.json.encode(_Message(found_id, label, ts, source)),
            key=key.encode(),
            idempotency=whole if idempotency_key is None else digest("key", scope, idempotency_key),
            content=whole[:_CONTENT_BYTES],
        )

    def _label(self, value: Any) -> Label:
        if isinstance(value, str) and len(value) > LONGEST:
            raise BadValueError(f"label is longer than {LONGEST} characters")
        label = label_of(self.task, value)
        if label is None:
            raise BadValueError("label is missing")
        return label

    def _time(self, value: Any, unit: TimeUnit, now: float | None) -> tuple[float, bool]:
        """Return the time of an item, and whether it given one."""
        clock = time.time()
        if value is None:
            return (clock if now is None else now), False
        if isinstance(value, str) and len(value) > LONGEST:
            raise BadValueError("time must be seconds or ISO 8601, found a long string")
        seconds = seconds_of(value, unit, dates=unit != "s")
        if seconds is None:
            raise BadValueError(f"time must be seconds or ISO 8601, found {shown(value)}")
        if seconds < 0:
            raise BadValueError(f"time is before 1970, found {shown(value)}")
        if seconds > clock + self.future_seconds:
            hint = "; is it in seconds?" if unit == "s" and seconds > 1e11 else ""
            raise BadValueError(
                f"time is {seconds - clock:.0f} s ahead of the gateway's clock; allowed: "
                f"{self.future_seconds:g} s{hint}"
            )
        return seconds, True


def _text(value: Any, what: str, longest: int) -> str:
    """Return text or an integer as text that is not empty."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 7.0 is an integer in JSON, too
    if isinstance(value, int) and not isinstance(value, bool):
        if not fits(value):
            raise BadValueError(f"{what}: {TOO_LONG}")
        return str(value)
    return _plain_text(value, what, longest, "a string, not empty, or an integer")


def _plain_text(value: Any, what: str, longest: int, allowed: str = "a string, not empty") -> str:
    if value is None:
        raise BadValueError(f"{what} is missing")
    if not isinstance(value, str) or not value:
        raise BadValueError(f"{what} must be {allowed}, found {shown(value)}")
    if len(value) > longest:
        raise BadValueError(f"{what} is longer than {longest} characters")
    return value


def _a(value: Any) -> str:
    name = type_name(value)
    return name if value is None else f"{'an' if name in ('array', 'object') else 'a'} {name}"


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:50]}…"
