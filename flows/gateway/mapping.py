"""Turns messages of raw topics into items, by the mapping of the config."""

from typing import Any

import msgspec

from midstream.engine.events.rules import spelled, type_name
from midstream.flows.config.gateway import RawTopic
from midstream.flows.gateway.validation import LONGEST, Fault, Item, Rules

__all__ = ["Mapping", "key_in", "object_in"]

_ABSENT = object()


class Mapping:
    """The mapping of one raw topic.

    Parameters
    ----------
    name
        The name of its table in the config.
    table
        Its options.
    rules
        The gateway's rules for items.
    """

    def __init__(self, name: str, table: RawTopic, rules: Rules) -> None:
        self._name = name
        self._table = table
        # The key of a raw message has a name of its own, whatever it is called over HTTP.
        key = "key" if table.key is not None else None
        self._rules = Rules(rules.task, rules.future_seconds, key)
        paths = {"id": table.id, "y": table.y, "ts": table.ts, "source": table.source_field}
        paths |= {"idempotency_key": table.idempotency_key, "key": table.key}
        self._paths = {field: path for field, path in paths.items() if path is not None}

    def apply(self, value: bytes | None, timestamp: float) -> Item | Fault:
        """Return the feedback in a message, or what is wrong with it.

        Parameters
        ----------
        value
            The message's value.
        timestamp
            The message's time, in seconds since 1970.
        """
        found = object_in(value)
        if isinstance(found, Fault):
            return found
        item: dict[str, Any] = {}
        for field, path in self._paths.items():
            at = _at(found, path)
            if at is not _ABSENT:
                item[field] = at
        if self._table.values and item.get("y") is not None:
            label = item["y"]
            if not isinstance(label, str | int | float):
                return Fault(f"label must be a scalar, found an {type_name(label)}", self._table.y)
            text = spelled(label)
            if text not in self._table.values:
                known = ", ".join(self._table.values)
                shown = text if len(text) <= LONGEST else f"{text[:50]}…"
                return Fault(f"label {shown!r} is none of: {known}", self._table.y)
            item["y"] = self._table.values[text]
        applied = self._rules.apply(
            item,
            scope=f"topic {self._name}",
            source=self._table.source or self._name,
            now=timestamp,
            unit=self._table.time_unit,
            paths=self._paths,
        )
        if isinstance(applied, Fault) and "[input.fields]" in applied.reason:
            here = f"[gateway.raw.{self._name}]"  # where the same option stands for this topic
            return Fault(applied.reason.replace("[input.fields]", here), applied.path)
        return applied


def object_in(value: bytes | None) -> dict[str, Any] | Fault:
    """Return the JSON object that is a message, or why it is none."""
    if value is None:
        return Fault("a tombstone: the message has no value")
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Fault(f"no JSON: {error}")
    except RecursionError:
        return Fault("JSON is nested too deeply")
    if not isinstance(found, dict):
        return Fault(f"the message must be a JSON object, found {type_name(found)}")
    return found


def key_in(value: bytes | None, path: str) -> bytes | Fault:
    """Return the key that a field of a message is, or what is wrong with it."""
    found = object_in(value)
    if isinstance(found, Fault):
        return found
    key = _at(found, path)
    if key is _ABSENT or key is None:
        return Fault("the key is missing", path)
    if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
        return Fault(f"the key must be a string, not empty, or an integer, found {type_name(key)}",
                     path)  # fmt: skip
    if len(text := str(key)) > LONGEST:
        return Fault(f"the key is longer than {LONGEST} characters", path)
    return text.encode()


def _at(value: Any, path: str) -> Any:
    """Return the value of a field; a whole name with dots goes before nested objects."""
    if isinstance(value, dict) and path in value:
        return value[path]
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value
