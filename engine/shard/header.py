"""The headers of snapshots and of parts of versions, and what the journal says of a beginning.

They are written as plain JSON values (`plain`). What an older Midstream did not write has a
default; what a newer one added is ignored.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import msgspec

from midstream.engine.shard.commands import Done
from midstream.engine.shard.journal import Command, Cursor, Skip
from midstream.engine.state.snapshot import SnapshotError

if TYPE_CHECKING:
    from midstream.engine.shard.dataset import DataSet

__all__ = ["About", "Beginning", "Excluded", "Header", "Plain", "Raised", "SnapshotHeader",
           "VersionHeader"]  # fmt: skip

Plain: TypeAlias = Mapping[str, Any]
"""A header as it is written."""


class Raised(NamedTuple):
    """An alarm that is not confirmed (`Shard.confirm_alarms`) to be known elsewhere.

    `command` is the last one carried out before it; `at` is in seconds since 1970.
    """

    command: int
    position: int
    detector: str
    feature: str
    kind: str
    at: float


class Excluded(NamedTuple):
    """An event that the learner raised on; `row` as in `midstream.engine.shard.journal.Exclude`."""

    partition: str
    line: int
    row: int = -1


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a state is.

    Attributes
    ----------
    definition
        The definition of the state.
    decoding
        Determines how bytes become events.
    identity
        The identity of the state; "": it has none, and none is written.
    fresh
        The token under which the state was begun.
    begun
        When the state was begun, in seconds since 1970, and at which record; None: not known.
    """

    definition: dict[str, Any] = {}
    decoding: dict[str, Any] = {}
    identity: str = ""
    fresh: str = ""
    begun: tuple[float, int] | None = None

    @classmethod
    def of(cls, written: Plain) -> Self:
        """Read the result of `plain`.

        Raises
        ------
        SnapshotError
            If a value has another type.
        """
        try:
            return msgspec.convert(written, cls)
        except msgspec.ValidationError as error:
            raise SnapshotError(f"the header of a state cannot be read: {error}") from None

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        if not self.identity:
            del found["identity"]
        return found

    @property
    def epoch(self) -> str:
        """Which beginning the state derives from.

        Input before another beginning is in another journal, or must not be applied any more.
        """
        return f"{self.fresh}@{self.begun[0]:.6f}" if self.begun else self.fresh

    @property
    def beginning(self) -> Done:
        """The beginning of the state, as if it had been a command."""
        at, seq = self.begun or (0.0, 0)
        return Done(Command(0, "start", at=at), seq, done_at=at)


class Beginning(About, frozen=True, kw_only=True):
    """What the first record of a state says of it.

    `blank` is the new trainer's state, by part, compressed and in base64; empty: it is too large.
    """

    blank: dict[str, str] = {}

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        found = super().plain()
        if not self.blank:
            del found["blank"]
        return found


class Header(About, frozen=True, kw_only=True):
    """The header of a snapshot, or of a shard's part of a version.

    Attributes
    ----------
    cursors
        By partition, the position before which all input had been applied.
    excluded
        The events still to come that the learner is known to raise on.
    digest
        Digest of the trainer's state.
    seen, learned
        The trainer's counts.
    libraries
        The versions of the libraries that the state may depend on.
    proof
        Some predictions of the state.
    created
        When it was made, in seconds since 1970.
    version, parent, generation
        As in `Shard`.
    skips
        What was left out of the input behind the state.
    data, parent_data
        What the state, and its parent, were learned from (`dataset.plain`).
    """

    shard: str = ""
    cursors: dict[str, Cursor] = {}
    excluded: list[Excluded] = []
    digest: str = ""
    seen: int = 0
    learned: int = 0
    libraries: dict[str, str] = {}
    proof: list[str] = []
    created: float = 0.0
    version: int = 0
    parent: int = 0
    generation: int = 0
    skips: list[Skip] = []
    data: dict[str, Any] = {}
    parent_data: dict[str, Any] = {}

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        found = super().plain()
        found["excluded"] = [list(e if e.row >= 0 else e[:2]) for e in self.excluded]
        return found

    @property
    def learned_from(self) -> "DataSet":
        """What the state was learned from."""
        return _data_set(self.data)

    @property
    def parent_learned_from(self) -> "DataSet":
        """What the parent of the state was learned from."""
        return _data_set(self.parent_data)


class SnapshotHeader(Header, frozen=True, kw_only=True):
    """The header of a snapshot of a shard.

    Attributes
    ----------
    applied
        Events of the input ever applied; by default, those that the model has seen.
    alarms, paused, last_command, done
        As in `Shard`.
    refused
        The id of the last command, if it was refused.
    recent
        The recent events on which the learner failed.
    seq
        The record before which it was made.
    """

    applied: int | None = None
    alarms: list[Raised] = []
    paused: bool = False
    last_command: int = 0
    refused: int = 0
    done: list[Done] = []
    recent: dict[str, Any] = {}
    seq: int = 0


class VersionHeader(Header, frozen=True, kw_only=True):
    """The header of a shard's part of a version.

    Attributes
    ----------
    seq
        The record from which input is applied again to the version.
    made
        The version's number when it was made.
    kind, reason
        As in `midstream.engine.registry.artifacts.Manifest`.
    metrics
        The prequential metrics; undefined ones are None.
    """

    seq: int = 0
    made: int = 0
    kind: str = ""
    reason: str = ""
    metrics: dict[str, float | None] = {}


def _data_set(written: Plain) -> "DataSet":
    from midstream.engine.shard.dataset import DataSet, from_plain  # numpy is slow to import

    return from_plain(written) if written else DataSet()
