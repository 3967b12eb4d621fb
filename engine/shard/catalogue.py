"""All kinds of commands, by name."""

from collections.abc import Callable, Mapping

from midstream.engine.shard.kinds import (
    Adopt,
    Amend,
    CommandKind,
    MakeVersion,
    Pause,
    Resume,
    Start,
    Tag,
    Unknown,
)
from midstream.engine.shard.replacing import Promote, Restore, Rewind, Rollback

__all__ = ["BUILTIN", "command_kind", "names"]

BUILTIN: Mapping[str, CommandKind] = {
    kind.name: kind()
    for kind in (
        MakeVersion, Restore, Rewind, Promote, Rollback, Pause, Resume, Tag, Adopt, Amend, Start,
    )
}  # fmt: skip
"""The kinds of commands that Midstream has."""


def command_kind(name: str) -> CommandKind:
    """Return a kind of command; an `Unknown` one if nobody knows it."""
    return BUILTIN.get(name) or Unknown(name)


def names(chosen: Callable[[CommandKind], bool]) -> list[str]:
    """Return the names of the chosen kinds, in order."""
    return [name for name, kind in BUILTIN.items() if chosen(kind)]
