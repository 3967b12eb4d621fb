"""The backlog of a shard: what of its journal is still to be applied."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

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

__all__ = ["Backlog", "Piece", "events_of", "in_force", "pieces", "reads_again"]

_EVERYWHERE: Mapping[str, Cursor] = {}
_BEGINNING = Cursor()
_NONE: Mapping[int, str] = {}


class Piece(NamedTuple):
    """An entry of the journal to apply again, and what to leave out of it.

    Left out are events of `sources`, and [partition, first, last] positions.
    """

    seq: int
    entry: Entry
    sources: frozenset[str] = frozenset()
    ranges: frozenset[tuple[str, int, int]] = frozenset()


class Backlog:
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
                elif not entry.abandons:
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
                if entry.is_amendment:
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
