"""Extensions in other packages, found through the entry points that they declare."""

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias

from midstream.engine.basics.errors import ExpectedError

__all__ = ["Group", "PluginError", "load", "missing", "names"]

Group: TypeAlias = Literal[
    "midstream.commands",
    "midstream.detectors",
    "midstream.learners",
    "midstream.metrics",
    "midstream.parts",
]


class PluginError(ExpectedError, ValueError):
    """An extension cannot be used; the message names its package and the reason."""


def _declared(group: str) -> dict[str, EntryPoint]:
    return _read(group, tuple(sys.path))


@cache
def _read(group: str, _: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Read what is installed where modules are looked for: once, as it takes some milliseconds."""
    found: dict[str, EntryPoint] = {}
    for each in entry_points(group=group):
        other = found.setdefault(each.name, each)
        if other.value != each.value:
            raise PluginError(
                f"{each.name!r} of {group} is declared twice: {other.value} and {each.value}; "
                "uninstall one of the packages"
            )
    return found


def names(group: Group) -> list[str]:
    """Return the names that packages declare, sorted; nothing is imported."""
    return sorted(_declared(group))


def load(group: Group, name: str) -> Any:
    """Load the object that a package declares under a name.

    Raises
    ------
    KeyError
        If no package declares it.
    PluginError
        If it cannot be imported.
    """
    declared = _declared(group)[name]
    try:
        return declared.load()
    except Exception as error:
        package = declared.dist.name if declared.dist is not None else declared.value
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(
            f"{name!r} of {group} cannot be loaded from {package} ({declared.value}): {reason}"
        ) from error


def missing(what: str, name: str, group: Group) -> str:
    """Return the message for an extension that a saved state has and no package declares."""
    return (
        f"the state has a {what} {name!r}, and no package that is installed declares it as an "
        f"entry point of the group {group}; install its package, or remove it from the config"
    )
