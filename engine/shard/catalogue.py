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

__all__ = ["BUILTIN", "command_kind", "names", "outside_kind"]

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
    """Return a kind of command; an `Unknown` one, which says why, if there is none to be used."""
    if name in BUILTIN:
        return BUILTIN[name]
    try:
        return outside_kind(name) or Unknown(name)
    except plugins.PluginError as error:
        return Unknown(name, str(error))


def outside_kind(name: str) -> CommandKind | None:
    """Return a kind of command that a package declares; None if it declares none of this name.

    Raises
    ------
    PluginError
        If it cannot be used.
    """
    if name not in plugins.names("midstream.commands"):
        return None
    found = plugins.load("midstream.commands", name)
    if not (isinstance(found, type) and issubclass(found, CommandKind)):
        return None  # a command of the command line only
    if found.name != name:
        raise plugins.PluginError(
            f"{name!r} of midstream.commands has another `name`, {found.name!r}; make them equal"
        )
    for what in _OURS:
        if getattr(found, what) != getattr(CommandKind, what):
            raise plugins.PluginError(
                f"{name!r} of midstream.commands sets `{what}`, which is for Midstream's own kinds"
            )
    return found()


def names(chosen: Callable[[CommandKind], bool]) -> list[str]:
    """Return the names of the chosen kinds of Midstream's own, in order."""
    return [name for name, kind in BUILTIN.items() if chosen(kind)]
