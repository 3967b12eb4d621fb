"""Commands that replace the model by a version: what input is learned again, or why that fails.

See `midstream.engine.shard.kinds` for what a kind of command defines.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import msgspec

from midstream.engine.shard.backlog import events_of, pieces
from midstream.engine.shard.commands import Order, RefusedError
from midstream.engine.shard.header import VersionHeader
from midstream.engine.shard.journal import Command, Cursor, Range, Record, Skip
from midstream.engine.shard.kinds import CommandKind, Loaded, Standing, Target
from midstream.engine.state.changes import definition_changes, in_words, of_code

__all__ = ["NOTHING", "Promote", "Replacing", "Restore", "Rewind", "Rollback", "bounded"]

NOTHING = 2**62
"""The oldest position of a partition that is gone."""
_PARTS = 50  # of the events relearned within a bound: the granularity of cuts


class Replacing(CommandKind):
    """A command that replaces the model by a version.

    `keeps_left_out`: what was left out of the input behind the state before stays left out, for a
    later rewind.
    """

    replaces = True
    keeps_left_out: ClassVar[bool] = True

    def plan(self, command: Command, order: Order, standing: Standing) -> Command:
        """Return the command with the version's digest, and the input that is learned again."""
        version = standing.version
        assert version is not None
        command = msgspec.structs.replace(command, digest=version.digest)
        return self.relearning(command, order, standing, version)

    def relearning(
        self, command: Command, order: Order, standing: Standing, version: VersionHeader
    ) -> Command:
        """Return the command with the input that is learned again.

        Raises
        ------
        RefusedError
            If it cannot be learned again.
        """
        raise NotImplementedError

    def prepare_again(self, shard: Target, command: Command, seq: int) -> Loaded | None:
        """Load the version again."""
        return None if command.refused else shard.load_again(command, seq)

    def perform(self, shard: Target, command: Command, seq: int, loaded: Loaded | None) -> None:
        """Replace the state."""
        assert loaded is not None
        shard.replace(command, seq, loaded, keeps_left_out=self.keeps_left_out)

    def words(self, order: Order, unit: str) -> list[str]:
        """Return what the command will do."""
        return [
            self.effect(order, unit),
            "the state before is kept as a version; `midstream rollback` goes back to it",
        ]

    def effect(self, order: Order, unit: str) -> str:
        """Return what happens with the input that came since the version."""
        raise NotImplementedError

    def skips(self, standing: Standing, version: VersionHeader) -> list[Skip]:
        """Return what is left out of the input behind the new state."""
        found = list(version.skips)
        if self.keeps_left_out:
            found += [skip for skip in standing.skips if skip not in found]
        return found


class Restore(Replacing):
    """Replace the state of the model by that of a version; the input position stays."""

    name = "restore"

    def relearning(self, command: Command, *_: object) -> Command:
        """Return the command: nothing is learned again."""
        return command

    def effect(self, *_: object) -> str:
        """Return what happens with the input that came since the version."""
        return "the input position stays: the model does not know what came since then"


class Rewind(Replacing):
    """Replace the state by that of a version, and learn again all that came since.

    Events of some sources, or at some positions, may be left out.
    """

    name = "rewind"
    learns_all_again = True

    def relearning(
        self, command: Command, order: Order, standing: Standing, version: VersionHeader
    ) -> Command:
        """Return the command with all input since the version."""
        _check_decoding(order.version, version, standing)
        if not _is_ours(version, standing):
            raise RefusedError(
                f"version {order.version} was made before the model was started over, and the "
                "journal from then on is not there; without --rewind it can be restored"
            )
        journal, seq = standing.journal, version.seq
        if seq < journal.first:
            raise RefusedError(
                f"version {order.version} is of record {seq}, and the journal begins at record "
                f"{journal.first}: what came between cannot be learned again; "
                "without --rewind it can be restored"
            )
        _check_input(order.version, journal.records(seq), standing.oldest())
        sources, ranges = list(order.sources), list(order.ranges)
        skips = self.skips(standing, version)
        if sources or ranges:
            skips.append(Skip(seq, journal.end, sources, ranges))
        return msgspec.structs.replace(
            command,
            since=seq,
            start=version.cursors,
            sources=sources,
            ranges=ranges,
            skips=skips,
        )

    def effect(self, order: Order, unit: str) -> str:
        """Return what happens with the input that came since the version."""
        left = [f"source {source}" for source in order.sources]
        left += [f"{name}, {unit}s {first} to {last}" for name, first, last in order.ranges]
        return (
            "all input since then is learned again"
            + (f", without {', '.join(left)}" if left else "")
            + "; new input waits meanwhile, and what was published stays as it is; what earlier "
            "rewinds left out stays out"
        )


class Promote(Replacing):
    """Replace the model by VERSION, once it has caught up.

    The version first learns what came since, up to versions.catch_up_events. The command says
    what it leaves out.
    """

    name = "promote"
    in_command_line = True

    def relearning(
        self, command: Command, order: Order, standing: Standing, version: VersionHeader
    ) -> Command:
        """Return the command with the newest input since the version."""
        if not _is_ours(version, standing):
            return command
        _check_decoding(order.version, version, standing)
        journal, now = standing.journal, standing.cursors
        since = max(version.seq, journal.first)
        cursors: Mapping[str, Cursor] = version.cursors
        if version.seq < since:  # the journal may lack some partitions that came later
            cursors = dict.fromkeys(now, Cursor()) | version.cursors
        start, left, lines = bounded(
            journal.records(since), order.catch_up, standing.oldest(), cursors, now
        )
        return msgspec.structs.replace(
            command,
            since=since,
            start=start,
            left=left,
            skips=self.skips(standing, version),
            lines=[
                span if p in standing.files else None
                for (p, *_), span in zip(left, lines, strict=True)
            ],
        )

    def effect(self, order: Order, _: str) -> str:
        """Return what happens with the input that came since the version."""
        return (
            f"the newest {order.catch_up:,} events since then are learned again first; new input "
            "waits meanwhile"
        )


class Rollback(Promote):
    """Undo the last command that replaced the model; input that it left out is learned again."""

    name = "rollback"
    in_command_line = False
    keeps_left_out = False


def _is_ours(version: VersionHeader, standing: Standing) -> bool:
    """Whether the journal goes on from the version."""
    return version.epoch == standing.epoch and version.seq <= standing.journal.end


def _check_decoding(number: int, version: VersionHeader, standing: Standing) -> None:
    """Raise RefusedError if the input would be read otherwise now than it was then."""
    changed = definition_changes(version.decoding, standing.decoding)
    if changed:
        raise RefusedError(
            f"the config reads the input otherwise than it did when version {number} was made "
            f"({'; '.join(changed)}), so that it would not learn the same again; it can be "
            "restored without --rewind"
        )


def _check_input(number: int, records: Iterable[Record], oldest: Mapping[str, int]) -> None:
    """Raise RefusedError if input of these records cannot be learned again as it was.

    `oldest`: as in `bounded`.
    """
    learned = False
    for entry in (piece.entry for piece in pieces(records)):
        if learned and isinstance(entry, Command) and (changes := of_code(entry.changes)):
            raise RefusedError(
                f"what came after version {number} was learned by other code, and would not "
                f"be learned the same again ({in_words(changes)}); without --rewind it can be "
                "restored"
            )
        if not isinstance(entry, Range) or entry.start == entry.stop:
            continue
        learned = True
        low = oldest[entry.partition]
        if entry.start < low:
            gone = f"{entry.start} to {min(entry.stop, low) - 1}" if low < NOTHING else "all"
            raise RefusedError(
                f"{entry.partition}: what came after version {number} cannot be read again: "
                f"{gone} of it is not there any more; without --rewind it can be restored"
            )


def bounded(
    records: Iterable[Record],
    most: int,
    oldest: Mapping[str, int],
    cursors: Mapping[str, Cursor],
    now: Mapping[str, Cursor],
) -> tuple[dict[str, Cursor], list[tuple[str, int, int, int]], list[tuple[int, int] | None]]:
    """Choose what a version relearns of the input after it: the newest `most` events.

    Parameters
    ----------
    records
        Records from the version on.
    oldest
        By partition, the oldest position that can still be read.
    cursors
        By partition, the position of the version.
    now
        By partition, the present position of the input.

    Returns
    -------
    start
        By partition, the position where relearning starts.
    left
        What is not relearned, as [partition, start, stop, events]; adjacent pieces are joined.
    lines
        The first and last line of each of these; None where the journal does not hold them.
    """
    found = pieces(records, most_events=max(most // _PARTS, 1))
    spans = [piece.entry for piece in found if isinstance(piece.entry, Range)]
    last_left: dict[str, int] = {}
    total = 0
    at = {partition: cursor.offset for partition, cursor in cursors.items()}
    gaps: list[tuple[str, int, int, int]] = []  # input that the journal no longer holds
    for span in spans:
        before = at.get(span.partition, span.start)
        if before < span.start:
            gaps.append((span.partition, before, span.start, span.start - before))
        at[span.partition] = span.stop
    for i in range(len(spans) - 1, -1, -1):
        span = spans[i]
        total += events_of(span)
        unreadable = span.start < span.stop and span.start < oldest[span.partition]
        after_gap = any(gap[0] == span.partition and gap[2] == span.start for gap in gaps)
        if total > most or unreadable or after_gap:
            last_left.setdefault(span.partition, i)
    start = dict(cursors)
    for partition, cursor in now.items():
        before = at.get(partition, cursor.offset)
        if before < cursor.offset:
            gaps.append((partition, before, cursor.offset, cursor.offset - before))
        if before < cursor.offset or partition not in at:
            start[partition] = cursor
    left = gaps
    for i, span in enumerate(spans):
        if i > last_left.get(span.partition, -1):
            continue
        start[span.partition] = span.at_stop()
        if span.start == span.stop:
            continue
        same = next((j for j, one in enumerate(left) if _touches(one, span)), None)
        if same is None:
            left.append((span.partition, span.start, span.stop, events_of(span)))
        else:
            partition, first, _, events = left[same]
            left[same] = (partition, first, span.stop, events + events_of(span))
    line_at = {(p, c.offset): c.line for known in (cursors, now) for p, c in known.items()}
    line_at |= {(span.partition, span.stop): span.line for span in spans}
    lines: list[tuple[int, int] | None] = []
    for partition, first, stop, _ in left:
        begun = line_at.get((partition, first), 1 if first == 0 else None)
        end = line_at.get((partition, stop))
        lines.append(None if begun is None or end is None else (begun, end - 1))
    return start, left, lines


def _touches(left: tuple[str, int, int, int], span: Range) -> bool:
    return left[0] == span.partition and left[2] == span.start
