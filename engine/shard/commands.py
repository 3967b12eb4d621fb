"""Commands that change a running model, and replay of the journal from an earlier state.

A shard carries out a command between two batches and journals it. The journal is decisive: no crash
makes a command run twice, or not at all.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from midstream.engine.shard.journal import (
    MOST_RECORDS,
    Command,
    Cursor,
    Entry,
    Journal,
    Range,
    Record,
    Skip,
    is_whole,
)

__all__ = [
    "REPLACING",
    "Coming",
    "Done",
    "Kind",
    "Order",
    "Piece",
    "RefusedError",
    "bounded",
    "epoch_of",
    "events_of",
    "in_force",
    "pieces",
    "reads_again",
]

Kind: TypeAlias = Literal[
    "snapshot", "restore", "rewind", "promote", "rollback", "pause", "resume", "tag", "adopt"
]

REPLACING = ("restore", "rewind", "promote", "rollback")
"""Kinds of commands that replace the model's state by that of a version."""

_EVERYWHERE: Mapping[str, Cursor] = {}
_BEGINNING = Cursor()
_NONE: Mapping[int, str] = {}
_PARTS = 50  # of the events relearned within a bound: the granularity of cuts


class RefusedError(RuntimeError):
    """A command cannot be carried out; nothing was changed. The message says why."""


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command as given, before a shard carries it out.

    Attributes
    ----------
    id, kind, version, reason
        As in `midstream.engine.shard.journal.Command`.
    sources, ranges
        What "rewind" leaves out: events of these sources, and [partition, first, last] positions.
    catch_up
        Most events that "promote" and "rollback" apply again.
    before
        The version made of the state before this command, to which "rollback" returns.
    cut
        The kind of version that "snapshot" makes: "online", or "restored".
    problem
        Why the command must be refused; empty: the shard decides.
    by
        Who gave the command; empty: Midstream itself.
    origin
        The identity of another state that the version may belong to, besides the model's own.
    """

    id: int
    kind: Kind
    version: int = 0
    reason: str = ""
    sources: tuple[str, ...] = ()
    ranges: tuple[tuple[str, int, int], ...] = ()
    catch_up: int = 1_000_000
    before: int = 0
    cut: str = "online"
    problem: str = ""
    by: str = ""
    origin: str = ""


class Done(msgspec.Struct, omit_defaults=True):
    """A command that a shard carried out, or its start: an entry of the deployment history.

    Attributes
    ----------
    command
        The journal's entry; where the shard began, one of kind "start" with `id` 0.
    seq, generation
        The journal's record that holds the entry.
    position
        By partition, the position before which all input had been applied.
    lines
        By file, the same as a number for people: of the next line or row.
    seen
        Events that the model had seen, after the command.
    done_at
        When it took effect, in seconds since 1970; None while input is applied again.
    """

    command: Command
    seq: int
    generation: int = 0
    position: dict[str, int] = {}
    lines: dict[str, int] = {}
    seen: int = 0
    done_at: float | None = None


class Piece(NamedTuple):
    """An entry of the journal to apply again, and what to leave out of it.

    Left out are events of `sources`, and [partition, first, last] positions.
    """

    seq: int
    entry: Entry
    sources: frozenset[str] = frozenset()
    ranges: frozenset[tuple[str, int, int]] = frozenset()


class Coming:
    """The rest of a journal to apply, in order, read into memory in parts.

    Parameters
    ----------
    seq
        The record it starts with; -1: it is empty.
    abandoned
        By command id, why the command was abandoned later: it is treated as refused.
    records
        The result of `recover` of the journal.
    """

    def __init__(
        self,
        journal: Journal,
        seq: int = -1,
        abandoned: Mapping[int, str] = _NONE,
        records: Sequence[Record] = (),
    ) -> None:
        self._journal = journal
        self._abandoned = abandoned
        self._end = journal.end  # records committed from now on are already applied
        self._next = seq if seq >= 0 else self._end  # the record after those in memory
        self._pieces: deque[Piece] = deque()
        if seq >= 0 and records and records[0].seq <= seq and is_whole(records):
            self._pieces.extend(self._of(record for record in records if record.seq >= seq))
            self._next = self._end
        self._fill()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def first(self) -> Piece:
        """Return the first piece."""
        return self._pieces[0]

    def pop(self) -> Piece:
        """Remove and return the first piece."""
        piece = self._pieces.popleft()
        self._fill()
        return piece

    def push(self, found: Sequence[Piece]) -> None:
        """Put pieces in front."""
        self._pieces.extendleft(reversed(found))

    def all(self) -> Iterator[Piece]:
        """Return all pieces."""
        yield from self._pieces
        yield from self._read(self._next)

    def after(self, seq: int) -> Iterator[Piece]:
        """Return the pieces of the records after `seq`."""
        yield from (piece for piece in self._pieces if piece.seq > seq)
        yield from self._read(max(self._next, seq + 1))

    def _fill(self) -> None:
        while not self._pieces and self._next < self._end:
            stop = min(self._next + MOST_RECORDS, self._end)
            self._pieces.extend(self._read(self._next, stop))
            self._next = stop

    def _read(self, seq: int, stop: int | None = None) -> Iterator[Piece]:
        stop = self._end if stop is None else stop
        if seq < stop:
            yield from self._of(takewhile(lambda r: r.seq < stop, self._journal.records(seq)))

    def _of(self, records: Iterable[Record]) -> Iterator[Piece]:
        for record in records:
            for entry in record.entries:
                if not isinstance(entry, Command):
                    yield Piece(record.seq, entry)
                elif entry.kind != "abandon":
                    refused = self._abandoned.get(entry.id, entry.refused)
                    yield Piece(record.seq, msgspec.structs.replace(entry, refused=refused))


def pieces(
    records: Iterable[Record],
    skips: Sequence[Skip] = (),
    *,
    start: Mapping[str, Cursor] = _EVERYWHERE,
    most_events: float = float("inf"),
) -> list[Piece]:
    """Return the input and amendments of the journal to apply to an earlier state.

    Other commands are not carried out again.

    Parameters
    ----------
    records
        Records from the earlier state on.
    skips
        What is left out.
    start
        By partition, the position from which input is applied again; by default all is.
    most_events
        Adjacent ranges are joined while the result holds no more events.
    """
    found: list[Piece] = []
    for record in records:
        these = [skip for skip in skips if skip.since <= record.seq < skip.until]
        sources = frozenset(name for skip in these for name in skip.sources)
        ranges = frozenset(stretch for skip in these for stretch in skip.ranges)
        for entry in record.entries:
            if isinstance(entry, Command):
                if entry.kind == "amend":
                    found.append(Piece(record.seq, entry, sources, ranges))
            elif not isinstance(entry, Range):
                continue
            elif entry.start >= start.get(entry.partition, _BEGINNING).offset:
                _append(found, Piece(record.seq, entry, sources, ranges), most_events)
    return found


def reads_again(entry: Entry) -> bool:
    """Whether input is read again for this entry of the journal, when it is applied."""
    return isinstance(entry, Range) or (
        isinstance(entry, Command) and entry.since >= 0 and not entry.refused
    )


def in_force(entries: Iterable[Entry], definition: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the definition in force after these entries of the journal."""
    for entry in entries:
        if isinstance(entry, Command) and entry.amends:
            definition = entry.definition
    return definition


def epoch_of(header: Mapping[str, Any]) -> str:
    """Return the epoch of a state, from its snapshot's header: which beginning it derives from.

    Input before another beginning is in another journal, or must not be applied any more.
    """
    fresh, begun = str(header.get("fresh", "")), header.get("begun")
    return f"{fresh}@{begun[0]:.6f}" if begun else fresh


def events_of(span: Range) -> int:
    """Return the number of events in a range; for an old journal, an upper bound."""
    return span.events if span.events >= 0 else span.stop - span.start


def _append(found: list[Piece], piece: Piece, most_events: float) -> None:
    last, entry = found[-1].entry if found else None, piece.entry
    if (
        isinstance(last, Range)
        and isinstance(entry, Range)
        and last.partition == entry.partition
        and last.stop == entry.start
        and last.start < last.stop
        and last.whole
        and entry.start < entry.stop
        and events_of(last) + events_of(entry) <= most_events
        and found[-1][2:] == piece[2:]
    ):
        both = events_of(last) + events_of(entry)
        joined = msgspec.structs.replace(entry, start=last.start, events=both)
        found[-1] = piece._replace(entry=joined)
    else:
        found.append(piece)


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
