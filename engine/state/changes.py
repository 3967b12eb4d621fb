"""Differences between a saved definition and the one in force, and their effect on the state."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = [
    "FORMERLY",
    "FURTHER",
    "Change",
    "Level",
    "MisfitError",
    "aligned",
    "definition_changes",
    "differences",
    "in_words",
    "is_holder",
    "is_same",
    "of_code",
    "shown",
    "table",
]

Level: TypeAlias = Literal["accepted", "asked", "refused"]
"""A run accepts "accepted" changes, `run --amend` also "asked" ones; "refused" ones never."""

FURTHER = "(further)"
"""Key of what else defines an object; it counts only where both definitions have it."""

FORMERLY = "(formerly)"
"""Key of the text that alone described an object in definitions of earlier versions."""

_WIDEST = 40  # most characters of a cell
_ABSENT = "-"
_HOLDERS = ("Pipeline", "TransformerUnion")  # the keys of their definitions are step names
_FEW = 3  # most changes that a sentence names


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One difference between a saved definition and the one in force.

    Attributes
    ----------
    part
        The part of the state: "learner", "metrics", "drift", "replay", ...
    what
        The option, metric, detector or attribute that differs.
    before, after
        The saved value, and the present one; "-" for none.
    level
        When it is accepted.
    effect
        Its effect on the state.
    """

    part: str
    what: str
    before: str
    after: str
    level: Level = "accepted"
    effect: str = ""

    def __str__(self) -> str:
        effect = f" ({self.effect})" if self.effect else ""
        return f"{self.part}.{self.what}: {self.before} -> {self.after}{effect}"


class MisfitError(ValueError):
    """Learned state does not fit a new definition; the message names the attribute.

    Parameters
    ----------
    attribute
        Its path in the learner.
    why
        What does not fit.
    """

    def __init__(self, attribute: str, why: str) -> None:
        super().__init__(f"{attribute} does not fit: {why}")
        self.attribute = attribute
        self.why = why


def shown(value: Any) -> str:
    """Return a plain value as a short text."""
    if value is None:
        return _ABSENT
    if isinstance(value, Mapping) and FORMERLY in value:
        return shown(value[FORMERLY])
    if isinstance(value, Mapping) and "class" in value:
        return str(value["class"]).rpartition(".")[2]
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def is_holder(definition: Any) -> bool:
    """Whether this defines a pipeline or a union, whose keys are the names of its steps."""
    return isinstance(definition, Mapping) and str(definition.get("class", "")).endswith(_HOLDERS)


def aligned(old: Any, new: Any) -> tuple[Any, Any]:
    """Return two definitions without what only one of them says of the same object.

    Definitions of earlier versions say less. The digest of the source decides where both have it:
    that of the code differs between versions of Python.
    """
    formerly = [isinstance(each, Mapping) and FORMERLY in each for each in (old, new)]
    if all(formerly):
        return _without(old, {FORMERLY}), _without(new, {FORMERLY})
    if any(formerly):
        return (old[FORMERLY], new) if formerly[0] else (old, new[FORMERLY])
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return old, new
    both = old.get(FURTHER, {}).keys() & new.get(FURTHER, {}).keys()
    left_out = {FURTHER} | ({"code"} if "source" in both else set())
    further = ({k: v for k, v in d.get(FURTHER, {}).items() if k in both} for d in (old, new))
    return _without(old, left_out) | next(further), _without(new, left_out) | next(further)


def _without(definition: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in definition.items() if key not in keys}


def is_same(old: Any, new: Any) -> bool:
    """Whether two definitions are equal, including the order of the steps of pipelines."""
    old, new = aligned(old, new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if old.keys() != new.keys() or (is_holder(new) and list(old) != list(new)):
            return False
        return all(is_same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(is_same, old, new))
    return bool(old == new)


def differences(
    part: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    level: Level = "accepted",
    effect: str = "",
) -> list[Change]:
    """Return the differences between two tables of options, one change for each key."""
    return [
        Change(part, key, shown(old.get(key)), shown(new.get(key)), level, effect)
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def definition_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two definitions, one line each; empty if equal."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += [f"{key}.{line}" for line in definition_changes(before, after)]
        else:
            lines.append(f"{key}: was {before!r}, is {after!r}")
    return lines


def of_code(changes: Iterable[Change]) -> list[Change]:
    """Return the changes of code: input that is read again would be learned otherwise."""
    return [change for change in changes if change.before.startswith("code ")]


def table(changes: Iterable[Change]) -> list[str]:
    """Return changes as the lines of a table: part, what, saved, config, effect."""
    rows: list[Sequence[str]] = [("part", "what", "saved", "now", "effect")]
    rows += [(c.part, c.what, c.before, c.after, c.effect) for c in changes]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]


def in_words(changes: Iterable[Change]) -> str:
    """Return changes as a short sentence, the gravest first."""
    order = {"refused": 0, "asked": 1, "accepted": 2}
    ranked = sorted(changes, key=lambda change: order[change.level])
    more = f"; and {len(ranked) - _FEW} more" if len(ranked) > _FEW else ""
    return "; ".join(map(str, ranked[:_FEW])) + more
