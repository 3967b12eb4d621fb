"""What each command is: what it does to a shard, how others treat it, and its words.

A kind of command is a class, and a line in the table of `midstream.engine.shard.catalogue`. The
commands that replace the model by a version are in `midstream.engine.shard.replacing`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from midstream.engine.shard.commands import Order, RefusedError
from midstream.engine.shard.journal import Command, Cursor, Journal, JournalError, Skip

if TYPE_CHECKING:
    from midstream.engine.shard.header import VersionHeader
    from midstream.engine.training.trainer import Trainer

__all__ = [
    "Adopt",
    "Amend",
    "CommandKind",
    "Loaded",
    "MakeVersion",
    "Pause",
    "Resume",
    "Standing",
    "Start",
    "Tag",
    "Target",
    "Unknown",
]


class Loaded(NamedTuple):
    """The state that a command puts in the place of a shard's.

    `header` and `parts` are those of the version; an amendment has none.
    """

    trainer: "Trainer"
    header: "VersionHeader | None" = None
    parts: Mapping[str, bytes] = {}


class Standing(NamedTuple):
    """Where a shard stands: what the effect of a command may depend on.

    Attributes
    ----------
    epoch, definition, decoding
        As in the shard's `midstream.engine.shard.header.About`.
    journal
        Its journal, all of it applied.
    cursors
        By partition, the position before which all input has been applied.
    skips
        What was left out of the input behind the state.
    files
        The partitions that are files.
    refused
        The id of the last command, if it was refused.
    oldest
        Returns, by partition, the oldest position of the input that can still be read.
    version
        The header of the version that the command names, if it replaces the model.
    """

    epoch: str
    definition: Mapping[str, Any]
    decoding: Mapping[str, Any]
    journal: Journal
    cursors: Mapping[str, Cursor]
    skips: Sequence[Skip]
    files: Collection[str]
    refused: int
    oldest: Callable[[], Mapping[str, int]]
    version: "VersionHeader | None" = None


class Target(Protocol):
    """What a command may do to a shard.

    Attributes
    ----------
    paused
        Whether the shard reads no input. It is saved.
    trainer
        Its trainer, whose state is saved.
    """

    paused: bool
    trainer: "Trainer"

    def make_version(self, command: Command, seq: int) -> None:
        """Keep the state as this shard's part of a version; `seq` is the record of the command."""

    def replace(self, command: Command, seq: int, loaded: Loaded, *, keeps_left_out: bool) -> None:
        """Replace the state by that of a version.

        `keeps_left_out`: input that was left out before stays so, for a later rewind.
        """

    def redefine(self, command: Command, trainer: "Trainer") -> None:
        """Replace the state by the amended one."""

    def load_again(self, command: Command, seq: int) -> Loaded:
        """Load the state of a version again, as the command in the journal's record `seq` did."""

    def amend_again(self, command: Command) -> Loaded:
        """Amend the state as the command in the journal did."""


class CommandKind:
    """A kind of command. What a class does not define is as for a command without any effect.

    A package of one's own can bring one, as an entry point of ``midstream.commands``.

    What `perform` does depends on the journaled command and on the shard's state alone: on no
    clock, no file, nothing random. So it has the same effect when the journal is applied again.

    Attributes
    ----------
    name
        What orders and journals call it.
    given
        Whether an order can have this kind; else only Midstream itself records it.
    for_shards
        Whether shards carry it out; else it concerns the registry alone.
    awaited
        Whether it waits until all shards have answered; else it records what was done.
    numbered
        Whether it has an `id`, and counts as a shard's last command.
    makes_version
        Whether it makes a version of the state.
    replaces
        Whether it replaces the state by that of a version.
    begins
        Whether the state began with it.
    learns_all_again
        Whether all input since that version is learned again, as a new generation of the journal;
        some of it may be left out. A version of the result is then made, too.
    pauses
        Whether `perform` pauses the shard, or lets it go on; None: neither.
    in_command_line
        Whether the command line has it, with the docstring of the class as its help: as `midstream
        NAME VERSION` if it replaces the model, else as `midstream NAME --reason TEXT`.
    """

    name: ClassVar[str] = ""
    given: ClassVar[bool] = True
    for_shards: ClassVar[bool] = True
    awaited: ClassVar[bool] = True
    numbered: ClassVar[bool] = True
    makes_version: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    begins: ClassVar[bool] = False
    learns_all_again: ClassVar[bool] = False
    pauses: ClassVar[bool | None] = None
    in_command_line: ClassVar[bool] = False

    def plan(self, command: Command, order: Order, standing: Standing) -> Command:  # noqa: ARG002
        """Return the command with all that its effect depends on.

        Raises
        ------
        RefusedError
            If the shard must refuse it.
        """
        return command

    def prepare_again(self, shard: Target, command: Command, seq: int) -> Loaded | None:  # noqa: ARG002
        """Return the state that a command of the journal's record `seq` needs, if any."""
        return None

    def perform(self, shard: Target, command: Command, seq: int, loaded: Loaded | None) -> None:
        """Do to a shard what the command says that the journal has in record `seq`.

        It must not fail: `plan` refuses what cannot be done.
        """

    def words(self, order: Order, unit: str) -> list[str]:  # noqa: ARG002
        """Return what the command will do, for the operator to confirm; nothing: he is not asked.

        `unit` is what positions of the input count: "line", "offset", "row".
        """
        return []

    def in_history(self, command: Command) -> str:
        """Return what is live since such a command, if the command put a version live."""
        by = f", {command.by}" if command.by else ""
        return f"version {command.version} ({self.name}, {command.reason}{by})"


class MakeVersion(CommandKind):
    """Make a version of the model as it is now.

    Where nothing runs, the version is made at the next start.
    """

    name = "snapshot"
    makes_version = True

    def plan(self, command: Command, order: Order, standing: Standing) -> Command:
        """Refuse a version after a command that was refused, if it is to be of its effect."""
        if order.cut == "restored" and standing.refused == order.id - 1:
            raise RefusedError("it was to be made after a command that was refused")
        return command

    def perform(self, shard: Target, command: Command, seq: int, _: Loaded | None) -> None:
        """Keep the state."""
        shard.make_version(command, seq)


class Pause(CommandKind):
    """Stop learning until `midstream resume`.

    A paused model reads no input, also after a restart. It still carries out commands.
    """

    name = "pause"
    pauses = True
    in_command_line = True

    def perform(self, shard: Target, *_: object) -> None:
        """Pause the input."""
        shard.paused = True

    def words(self, *_: object) -> list[str]:
        """Return what the command will do."""
        return ["no input is read until `midstream resume`"]


class Resume(CommandKind):
    """Let a paused model go on where it was.

    Input that came meanwhile is learned, as far as it still exists.
    """

    name = "resume"
    pauses = False
    in_command_line = True

    def perform(self, shard: Target, *_: object) -> None:
        """Read input again."""
        shard.paused = False


class Tag(CommandKind):
    """A version got a name."""

    name = "tag"
    for_shards = False
    awaited = False


class Adopt(CommandKind):
    """The model in the registry, formerly another state's, became this one's."""

    name = "adopt"
    awaited = False


class Amend(CommandKind):
    """The config defines the model otherwise from here on."""

    name = "amend"
    given = False
    numbered = False

    def prepare_again(self, shard: Target, command: Command, _: int) -> Loaded:
        """Amend the state."""
        return shard.amend_again(command)

    def perform(self, shard: Target, command: Command, _: int, loaded: Loaded | None) -> None:
        """Take the amended state."""
        assert loaded is not None
        shard.redefine(command, loaded.trainer)


class Start(CommandKind):
    """The state began; no journal has it as a command."""

    name = "start"
    given = False
    begins = True

    def in_history(self, _: Command) -> str:
        """Return what is live since then."""
        return "version 0: it has learned from its beginning"


class Unknown(CommandKind):
    """A kind that nobody here knows, or that a package brings and cannot be used: `why` says so."""

    given = False

    def __init__(self, name: str, why: str = "") -> None:
        self.unknown = name
        self._why = why or (
            f"neither this version of Midstream nor an installed package knows the command "
            f"{name!r}; install the package, or the version, that it came with"
        )

    def plan(self, *_: object) -> Command:
        """Refuse it."""
        raise RefusedError(self._why)

    def perform(self, *_: object) -> None:
        """Refuse to go on: the state would be another one than the journal's."""
        raise JournalError(f"the journal has a command of the kind {self.unknown!r}: {self._why}")
