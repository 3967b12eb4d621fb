"""The journal: what a shard applied, in one order, committed atomically with its outputs.

State is the fold of the journal over the initial state. A record is one commit: the entries
applied since the last one, and the lengths of the output files after them. Outputs are written and
made durable first, then the record. Recovery cuts the outputs to the lengths of the last complete
record. So a record and its outputs are either both there or both absent.
"""

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import msgspec
import zstandard

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.basics.storage import Storage
from midstream.engine.state.changes import Change, in_words

__all__ = [
    "MOST_RECORDS",
    "Command",
    "Cursor",
    "Entry",
    "Exclude",
    "FileJournal",
    "Journal",
    "JournalError",
    "Range",
    "Record",
    "Skip",
    "UnavailableError",
    "gather",
    "identities",
    "is_whole",
    "packed",
    "unpacked",
    "whole_records",
]


_LEVEL = 9  # compression level
MOST_RECORDS = 20_000
"""Most records in memory at once."""
_AMEND, _ABANDON = "amend", "abandon"  # kinds that only a shard itself journals
SEGMENT = re.compile(r"journal-(\d{16})\.log\Z")
"""Pattern of the names of a journal's files."""


class JournalError(ExpectedError, RuntimeError):
    """A journal cannot be used as it is; the message says where and why."""


class UnavailableError(JournalError):
    """A journal cannot be written to at present; uncommitted entries are lost."""


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A position in a partition: where reading continues, and what identifies the input before it.

    The fields are those of a `Range` at its `stop`. Journals and snapshots hold it as the list of
    its fields; earlier versions wrote shorter lists.

    Attributes
    ----------
    offset
        The next byte of an uncompressed file, row of a table, or offset of a topic.
    line
        The number of the next line or row, from 1.
    crc, head, tail, inode
        Fingerprints of the partition up to here; 0 where unknown.
    """

    offset: int = 0
    line: int = 1
    crc: int = 0
    head: int = 0
    tail: int = 0
    inode: int = 0


class Range(msgspec.Struct, frozen=True, omit_defaults=True, tag="range", tag_field="entry"):
    """Input that was applied: all of a partition from `start` up to `stop`.

    For files, `start` and `stop` are byte positions, and `line` is the line number at `stop`.
    `crc` is the CRC-32 of the partition from its beginning to `stop`; it reveals a change of the
    input when it is read again. 0: there is none. `head` is the CRC-32 of the first bytes; it
    reveals another file under the same name. For a topic it is made of the id that the brokers
    give it. For Arrow and Parquet, positions are rows, and a fingerprint of their values replaces
    the CRC-32. `whole` is False if the range ends in a record that only the end of the file ended:
    what follows is another record. `events` is the number of its events; -1: not counted. `tail`
    is the CRC-32 of the last bytes before `stop`; it reveals an older copy of a file that has
    grown again. 0: there is none. `inode` is the file's number in the file system.
    """

    partition: str
    start: int
    stop: int
    line: int = 0
    crc: int = 0
    head: int = 0
    whole: bool = True
    events: int = -1
    tail: int = 0
    inode: int = 0

    def at_stop(self) -> Cursor:
        """Return the position where reading continues after this range."""
        return Cursor(self.stop, self.line, self.crc, self.head, self.tail, self.inode)


class Exclude(msgspec.Struct, frozen=True, omit_defaults=True, tag="exclude", tag_field="entry"):
    """From here on, the event at `line` of a partition is skipped: the learner raised on it.

    `row` is its place in a message that holds many events; else -1.
    """

    partition: str
    line: int
    reason: str
    row: int = -1


class Skip(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """What is left out of the input in the records [`since`, `until`).

    Left out are events of `sources`, and [partition, first, last] positions.
    """

    since: int
    until: int
    sources: list[str] = []
    ranges: list[tuple[str, int, int]] = []


class Command(msgspec.Struct, frozen=True, omit_defaults=True, tag="command", tag_field="entry"):
    """A command that was carried out here, or refused.

    It holds all that its effect depends on, except the state of the version it names; it holds
    the `digest` of that.

    Attributes
    ----------
    id
        Its id in the registry; commands are carried out in the order of their ids.
    kind
        "snapshot", "restore", "rewind", "promote", "rollback", "pause", "resume"; "adopt": the
        model in the registry, formerly another state's, became this one's; "amend": the config
        defines the model differently from here on (its `id` is 0); "abandon": the input of the
        command with this `id` could not be applied again, and the command counts as refused.
    version
        The version made of the state, or the one that replaces it.
    at
        When it was carried out, in seconds since 1970.
    refused
        Why it was not carried out; empty if it was.
    reason
        Why it was given.
    digest
        Digest of the version's state.
    since
        The record from which the input is applied again; -1: none is.
    start
        By partition, the position from which input is applied again.
    sources, ranges
        What is then left out: events of these sources, and [partition, first, last] positions.
    skips
        All that is left out of the input applied again, by this and by earlier commands.
    cut
        The kind of version that "snapshot" makes.
    left
        [partition, start, stop, events] not applied again, for lack of time or input.
    lines
        The first and last line (or row) of each of `left`; None for a topic.
    by
        Who gave the command; empty: Midstream itself.
    origin
        The identity of the state that the version belongs to, if it is another state.
    definition
        The definition in force from here on. Set by "amend", and by a command that replaces the
        state by a version with another definition.
    parts
        Likewise: the parts of a new state that the amendment brings, compressed (`packed`).
    changes
        Likewise: the differences from the definition before.
    """

    id: int
    kind: str
    version: int = 0
    at: float = 0.0
    refused: str = ""
    reason: str = ""
    digest: str = ""
    since: int = -1
    start: dict[str, Cursor] = {}
    sources: list[str] = []
    ranges: list[tuple[str, int, int]] = []
    skips: list[Skip] = []
    cut: str = "online"
    left: list[tuple[str, int, int, int]] = []
    lines: list[tuple[int, int] | None] = []
    by: str = ""
    origin: str = ""
    definition: dict[str, Any] = {}
    parts: dict[str, bytes] = {}
    changes: list[Change] = []

    @classmethod
    def amendment(
        cls,
        definition: dict[str, Any],
        parts: Mapping[str, bytes],
        changes: list[Change],
        at: float,
    ) -> "Command":
        """Return the entry of an amendment: from here on the state has another definition."""
        reason = in_words(changes)
        return cls(0, _AMEND, at=at, reason=reason, definition=definition,
                   parts=packed(parts), changes=changes)  # fmt: skip

    @classmethod
    def abandonment(cls, command: int, at: float, why: str) -> "Command":
        """Return the entry that makes an earlier command count as refused."""
        return cls(command, _ABANDON, at=at, refused=why)

    @property
    def is_amendment(self) -> bool:
        """Whether the config defines the model otherwise from here on, and nothing else happens."""
        return self.kind == _AMEND

    @property
    def abandons(self) -> bool:
        """Whether the command with this `id` counts as refused from here on."""
        return self.kind == _ABANDON

    @property
    def amends(self) -> bool:
        """Whether the command changes the definition of the state."""
        return bool(self.definition) and not self.refused

    def brief(self) -> "Command":
        """Return the command as reported: without the definition and the parts of a state."""
        return msgspec.structs.replace(self, parts={}, definition={}) if self.definition else self


def packed(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Compress the parts of a state."""
    return {name: zstandard.compress(data, _LEVEL) for name, data in parts.items()}


def unpacked(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Decompress the result of `packed`.

    Raises
    ------
    JournalError
        If the parts are damaged.
    """
    try:
        return {name: zstandard.decompress(data) for name, data in parts.items()}
    except zstandard.ZstdError as error:
        raise JournalError(f"an amendment in the journal is damaged: {error}") from error


Entry: TypeAlias = Range | Exclude | Command


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One commit. `lengths` are the lengths of the output files in the folder `place`.

    `about` describes the state. `writer` identifies a writer that takes over a journal which
    several may write to; it is set in the writer's first record. `generation` counts how often the
    input was applied again from an earlier state, with something left out, before this record.
    """

    seq: int
    entries: list[Entry]
    lengths: dict[str, int] = {}
    place: str = ""
    generation: int = 0
    about: dict[str, Any] | None = None
    writer: str = ""


def gather(known: list[Record], found: Sequence[Record]) -> None:
    """Add the records that follow those `known`.

    Beyond `MOST_RECORDS`, only the first is kept, and those that hold more than how far the input
    was applied.
    """
    if not known or (found and is_whole(known) and known[-1].seq + 1 == found[0].seq):
        if len(known) + len(found) <= MOST_RECORDS:
            known += found
            return
        all_of_it = [*known, *found]
        known[:] = all_of_it[:1]
        found = all_of_it[1:]
    known += [
        record
        for record in found
        if record.about is not None
        or record.writer
        or any(isinstance(entry, Command) for entry in record.entries)
    ]


def is_whole(records: Sequence[Record]) -> bool:
    """Whether no record between the first and the last is missing."""
    return not records or records[-1].seq - records[0].seq + 1 == len(records)


class Journal(Protocol):
    """The interface of a journal: `FileJournal` uses files, Kafka's commits a transaction."""

    first: int
    """`seq` of the oldest record still available."""
    end: int
    """`seq` of the next record."""
    generation: int
    """The generation that new records are marked with."""

    def recover(self, since: int = 0) -> list[Record]:
        """Fence off earlier writers, drop uncommitted output, and return the records in order.

        Records before the last one before number `since` may be left out. If there are very many,
        only the last, and those that `gather` keeps, are returned.
        """

    def write(self, output: str, data: bytes) -> None:
        """Append to an output, as part of the next commit."""

    def commit(self, entries: Sequence[Entry], about: Mapping[str, Any] | None = None) -> int:
        """Commit entries, and output written since the last commit, atomically; return `end`."""

    def records(self, since: int) -> Iterator[Record]:
        """Return the committed records from `since` on, in order.

        Raises
        ------
        JournalError
            If they are damaged or no longer available.
        """

    def trim(self, seq: int) -> None:
        """Remove records before `seq`, as far as that is cheap."""


class FileJournal:
    """A journal in a folder of its own; its outputs are files in another folder.

    Guarantee: after a crash at any moment, a record and its outputs are either both there or both
    absent, provided that `sync` of the storage keeps its promise.

    Parameters
    ----------
    storage
        Where the journal's segments are; other files there are ignored.
    outputs
        Where the outputs are; None: there are none.
    names
        Names of the outputs, to find content of theirs that was never committed.
    place
        Name of the outputs' folder; in a folder of another name no output is cut.
    segment_bytes
        Size at which a new segment is begun. Trimming removes whole segments.
    """

    _NAME = SEGMENT

    def __init__(
        self,
        storage: Storage,
        outputs: Storage | None = None,
        *,
        names: Sequence[str] = (),
        place: str = "",
        segment_bytes: int = 4 * 2**20,
    ) -> None:
        self._storage = storage
        self._outputs = outputs
        self._names = names
        self._place = place
        self._segment_bytes = segment_bytes
        self._segment: str | None = None
        self._segment_length = 0
        self._unnamed = False  # whether the segment's name may not be durable yet
        self._dirty: set[str] = set()  # outputs written to since the last commit
        self._named: set[str] = set()  # outputs whose names are durable
        self._failed: str | None = "it was not recovered"
        self.first = 0
        self.end = 0
        self.generation = 0
        self.lengths: dict[str, int] = {}
        self.lost_outputs: dict[str, int] = {}
        """Outputs whose committed content is gone -> bytes they hold now, behind which new output
        is appended. The caller clears this after reporting it.
        """

    def recover(self, since: int = 0) -> list[Record]:
        """Read the journal, cut what a crash left half written, and return the records in order.

        In a long journal, segments that end before the record before `since` are not read. If there
        are very many records, only the last, and those that `gather` keeps, are returned.

        Raises
        ------
        JournalError
            If the journal is damaged before its end, an output is shorter than was committed, or
            there are outputs but no journal.
        """
        segments = self._segments()
        self.first = self._start(segments[0]) if segments else 0
        records: list[Record] = []
        last: list[Record] = []
        for name in segments[self._place_of(since - 1, segments) :]:
            data = self._storage.read(name)
            found = last[-1:]
            whole = self._parse(name, data, found)
            gather(records, found[len(last[-1:]) :])
            last = found
            if whole < len(data):
                if name != segments[-1]:
                    raise JournalError(f"{name} is damaged at byte {whole}; later segments exist")
                self._storage.truncate(name, whole)
            self._segment, self._segment_length = name, whole
        if last and last[-1] is not records[-1]:
            records.append(last[-1])
        if self._segment is not None:
            # The crash may have come after the last record was written, but before it, or its
            # segment's name, was durable: it must be before anything builds on it.
            self._storage.sync(self._segment)
            self._storage.sync_folder()
        self.first = self.first if records else 0
        self.end = records[-1].seq + 1 if records else 0
        self.generation = records[-1].generation if records else 0
        self.lengths = {}
        if records and (records[-1].place == self._place or not records[-1].lengths):
            self.lengths = dict(records[-1].lengths)
        if not records and self._outputs is not None:
            for name in self._names:
                if self._outputs.length(name):
                    raise JournalError(
                        f"{self._shown(name)} exists, but there is no saved state that it belongs "
                        "to; move it away, or use --fresh, which archives it"
                    )
        self._named = set()  # an output may have been made just before the crash
        self._cut_outputs()
        self._failed = None
        return records

    def _parse(self, name: str, data: bytes, records: list[Record]) -> int:
        """Append the complete records of a segment; return the number of bytes they take."""
        whole = 0
        damaged: int | None = None
        for line in data.splitlines(keepends=True):
            record = _decode(line)
            if record is None:
                if damaged is None:
                    damaged = whole
                continue
            if damaged is not None:
                raise JournalError(
                    f"{name} is damaged at byte {damaged}: a whole record ({record.seq}) follows"
                )
            if records and record.seq != records[-1].seq + 1:
                raise JournalError(
                    f"{name}: record {record.seq} follows record {records[-1].seq}; some are gone"
                )
            records.append(record)
            whole += len(line)
        return whole

    def _cut_outputs(self) -> None:
        self.lost_outputs = {}
        if self._outputs is None:
            return
        for name, committed in self.lengths.items():
            length = self._outputs.length(name)
            if length is None:
                if committed:
                    self.lost_outputs[name] = 0
                self.lengths[name] = 0
            elif length < committed:
                raise JournalError(
                    f"{self._shown(name)} has {length} bytes, but {committed} were committed to "
                    "it: it was cut by somebody else; put it back, or move it away to begin a new "
                    "one"
                )
            elif length > committed:
                self._outputs.truncate(name, committed)
                self._outputs.sync(name)
        for name in self._names:  # an output never committed to is not cut
            self.lengths.setdefault(name, self._outputs.length(name) or 0)

    def _shown(self, output: str) -> str:
        return os.path.join(self._place, output)  # noqa: PTH118 as the config has it

    def write(self, output: str, data: bytes) -> None:
        """Append to an output, as part of the next commit."""
        if not data:
            return
        assert self._outputs is not None, "a journal without outputs"
        self._guard()
        self._dirty.add(output)
        self._outputs.append(output, data)
        self.lengths[output] = self.lengths.get(output, 0) + len(data)
        self._failed = None

    def commit(self, entries: Sequence[Entry], about: Mapping[str, Any] | None = None) -> int:
        """Commit entries, and output written since the last commit, atomically; return `end`."""
        self._guard()
        if self._outputs is not None and self._dirty:
            for name in sorted(self._dirty):
                self._outputs.sync(name)
                self._look_after(name)
            if not self._dirty <= self._named:
                self._outputs.sync_folder()
                self._named |= self._dirty
            self._dirty = set()
        if self._segment is None or self._segment_length >= self._segment_bytes:
            self._segment, self._segment_length = f"journal-{self.end:016d}.log", 0
            self._unnamed = True
        record = Record(
            self.end,
            list(entries),
            dict(self.lengths),
            self._place,
            self.generation,
            dict(about) if about else None,
        )
        line = _encode(record)
        self._storage.append(self._segment, line)
        self._storage.sync(self._segment)
        if self._unnamed:
            self._storage.sync_folder()
            self._unnamed = False
        self._segment_length += len(line)
        self.end += 1
        self._failed = None
        return self.end

    def _look_after(self, name: str) -> None:
        """Check whether somebody moved, removed or cut an output that is being written to.

        What was written since the last commit is lost with the rest of it.
        """
        assert self._outputs is not None
        length = self._outputs.length(name)
        if length is None or length < self.lengths[name]:
            self.lost_outputs[name] = self.lengths[name] = length or 0
            self._named.discard(name)
            self._outputs.reopen(name)

    def records(self, since: int) -> Iterator[Record]:
        """Return the committed records from `since` on, in order.

        Raises
        ------
        JournalError
            If they are damaged or no longer available.
        """
        if since < self.first:
            raise JournalError(f"the journal begins at record {self.first}; {since} is gone")
        segments = self._segments()
        last: list[Record] = []
        for name in segments[self._place_of(since, segments) :]:
            found = last[-1:]
            data = self._storage.read(name)
            whole = self._parse(name, data, found)
            if whole < len(data):
                raise JournalError(f"{name} is damaged at byte {whole}")
            yield from (record for record in found[len(last[-1:]) :] if record.seq >= since)
            last = found

    def trim(self, seq: int) -> None:
        """Remove the segments that hold only records before `seq`."""
        segments = self._segments()
        for name, following in pairwise(segments):
            if self._start(following) > seq:
                break
            self._storage.remove(name)
            self.first = self._start(following)

    def _guard(self) -> None:
        """Refuse to go on after a failed write: only recovery finds out what is on the disk."""
        if self._failed:
            raise JournalError(f"the journal cannot be written to: {self._failed}")
        self._failed = "an earlier write failed"

    def _segments(self) -> list[str]:
        return [name for name in self._storage.names() if self._NAME.match(name)]

    def _place_of(self, seq: int, segments: list[str]) -> int:
        """Return the index of the segment that holds record `seq`; the first, if none does."""
        return max((i for i, name in enumerate(segments) if self._start(name) <= seq), default=0)

    def _start(self, name: str) -> int:
        match = self._NAME.match(name)
        assert match is not None
        return int(match.group(1))


def _encode(record: Record) -> bytes:
    body = msgspec.json.encode(record)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def whole_records(storage: Storage, since: int | None = None) -> Iterator[Record]:
    """Yield the complete records of the journal in a folder, in order; nothing is changed.

    Parameters
    ----------
    since
        Position of the snapshot that a run would resume from, which checks the journal from its
        segment on; None: nothing is checked.

    Raises
    ------
    JournalError
        If it would find damage before the journal's end.
    """
    starts = {n: int(found[1]) for n in storage.names() if (found := SEGMENT.match(n))}
    before = [start for start in starts.values() if since is not None and start < max(since, 1)]
    damaged = ""
    for name in sorted(starts):
        is_checked = since is not None and starts[name] >= max(before, default=0)
        at = 0
        for line in storage.read(name).splitlines(keepends=True):
            record = _decode(line)
            if record is None:
                damaged = damaged or f"{name} is damaged at byte {at}" * is_checked
            elif damaged:
                raise JournalError(f"{damaged}: a whole record ({record.seq}) follows")
            else:
                yield record
            at += len(line)


def identities(storage: Storage) -> Iterator[str]:
    """Yield the identities of states in the journal in a folder; nothing is changed."""
    for record in whole_records(storage):
        if record.about and record.about.get("identity"):
            yield str(record.about["identity"])


def _decode(line: bytes) -> Record | None:
    """Return the record on a line; None if the line is incomplete."""
    body = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(body):
        return None
    try:
        return msgspec.json.decode(body, type=Record)
    except msgspec.MsgspecError as error:
        raise JournalError(
            f"a record has a form that this version does not know: {error}"
        ) from None
