"""All kinds of commands, by name: Midstream's, and those of other packages."""

from collections.abc import Callable, Mapping

from midstream.engine.basics import plugins
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
_OURS = (
    "given", "for_shards", "awaited", "numbered", "makes_version", "replaces", "begins",
    "learns_all_again",
)  # fmt: skip


def command_kind(name: str) -> CommandKind:
    """Return a kind of command; an `Unknown` one if nobody knows it.

    Raises
    ------
    PluginError
        If a package declares it, and it cannot be used.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    if name in plugins.names("midstream.commands"):
        found = plugins.load("midstream.commands", name)
        if isinstance(found, type) and issubclass(found, CommandKind):
            return _checked(name, found())
    return Unknown(name)


def _checked(name: str, kind: CommandKind) -> CommandKind:
    """Return a kind of another package, if Midstream can treat it as it has to be treated."""
    if kind.name != name:
        raise plugins.PluginError(
            f"{name!r} of midstream.commands has another `name`, {kind.name!r}; make them equal"
        )
    for what in _OURS:
        if getattr(kind, what) != getattr(CommandKind, what):
            raise plugins.PluginError(
                f"{name!r} of midstream.commands sets `{what}`, which is for Midstream's own kinds"
            )
    return kind


def names(chosen: Callable[[CommandKind], bool]) -> list[str]:
    """Return the names of the chosen kinds of Midstream's own, in order."""
    return [name for name, kind in BUILTIN.items() if chosen(kind)]
