"""A shard: the unit of order, ownership and recovery. Trainer, journal and snapshots together.

State is the fold of the journal. To resume: take the newest snapshot at or below the journal's
end, apply the rest of the journal with outputs suppressed, go live.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from midstream.engine.events import Alarm, EventBatch, Origin, Predictions, Rejected
from midstream.engine.journal import Entry, Exclude, Journal, Range, Record
from midstream.engine.learner import LearnerError, definition_changes
from midstream.engine.snapshot import Snapshot, SnapshotFolder
from midstream.engine.trainer import Trainer, digest

__all__ = ["Cursor", "EventError", "Outcome", "ResumeError", "Shard"]

_REASON = 1_000  # characters of what a learner says, which may be all of the event and more


class ResumeError(RuntimeError):
    """The saved state cannot be gone on from; the message says why and what can be done."""


class EventError(RuntimeError):
    """The learner raised on one event, whose origin this names.

    `place` is what the journal calls the partition that it is from; `row` is its place in a message
    that holds many, else -1; `where` says all of that. `reason` says what it raised:
    one line that can be written as UTF-8, cut where it is very long, whatever the cause says.
    """

    def __init__(
        self, origin: Origin, place: str, features: str, cause: Exception, row: int = -1
    ) -> None:
        self.where = f"{place}:{origin[2]}" + (f":{row}" if row >= 0 else "")
        what = " ".join(f"{type(cause).__name__}: {cause}".splitlines())
        self.reason = what[:_REASON].encode(errors="backslashreplace").decode()
        super().__init__(
            f'the learner raised on {self.where}: {self.reason}; model.on_error = "reject" '
            "goes on without such events"
        )
        self.origin = origin
        self.row = row
        self.place = place
        self.features = features
        self.cause = cause


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where reading of a partition goes on: as `stop`, `line`, `crc`, `head` of `Range`."""

    offset: int = 0
    line: int = 1
    crc: int = 0
    head: int = 0


class Outcome(msgspec.Struct):
    """What applying one batch gave, on its way to the outputs.

    `live` is False while the journal is replayed: nothing is to be written then. `snapshot` holds
    the state after this batch where one is due.
    """

    span: Range
    batch: EventBatch
    predictions: Predictions
    rejected: list[Rejected]
    alarms: list[Alarm]
    live: bool
    snapshot: Snapshot | None = None


class Shard:
    """Trainer, journal and snapshots of one shard. Use `Shard.open`.

    `step` applies a batch and returns an `Outcome`; `publish` takes the outcomes in the same
    order, with what they put out, and commits from time to time. They may be called from two
    places of a dataflow, but from one thread.
    """

    def __init__(
        self,
        name: str,
        trainer: Trainer,
        journal: Journal,
        snapshots: SnapshotFolder,
        about: dict[str, Any],
        *,
        modules: Collection[str] = (),
        snapshot_events: int = 1_000_000,
        snapshot_seconds: float = 30.0,
        commit_seconds: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.trainer = trainer
        self.cursors: dict[str, Cursor] = {}
        self.notes: list[str] = []
        """What `open` found and an operator should know, a sentence each."""
        self._journal = journal
        self._snapshots = snapshots
        self._about = about
        self._modules = modules
        self._snapshot_events = snapshot_events
        self._snapshot_seconds = snapshot_seconds
        self._commit_seconds = commit_seconds
        self._clock = clock
        self._excluded: set[tuple[str, int, int]] = set()  # partition, line, row
        self._replay: deque[Entry] = deque()
        self._replay_left = 0  # ranges handed out by next_range and not yet applied whole
        self._pending: list[Entry] = []
        self._committed_at = clock()
        self._snapshot_at = clock()
        self._snapshot_seen = trainer.seen
        self._snapshot_end = -1

    @classmethod
    def open(
        cls,
        name: str,
        make: Callable[[], Trainer],
        journal: Journal,
        snapshots: SnapshotFolder,
        *,
        decoding: Mapping[str, Any] | None = None,
        source: str = "",
        shards: str = "",
        modules: Collection[str] = (),
        fresh: str = "",
        **policy: Any,
    ) -> "Shard":
        """Resume from what is saved, or begin anew where nothing is.

        Parameters
        ----------
        make
            Makes a new trainer.
        decoding
            What determines how bytes become events; it must not change while input is to be
            read again.
        source
            What the input is called: partitions of another one are not those that were learned.
        shards
            What is a shard of it: with others, this one would be of something else.
        modules
            Modules besides River whose classes and functions a snapshot may hold.
        fresh
            Begin anew, whatever the journal holds, unless it was begun anew under this very token.
        policy
            snapshot_events, snapshot_seconds, commit_seconds, clock.

        Raises
        ------
        ResumeError
            If the definition has changed since the state was saved, or state is missing.
        JournalError
            If the journal is damaged.
        """
        positions = snapshots.positions()
        records = journal.recover(positions[0] if positions else 0)
        new = make()
        definition = {**new.definition(), **({"input": source} if source else {})}
        definition |= {"shards": shards} if shards else {}
        about: dict[str, Any] = {"definition": definition, "decoding": dict(decoding or {})}
        if positions and positions[-1] > journal.end:
            raise ResumeError(
                f"shard {name}: there is a snapshot of record {positions[-1]}, but the journal "
                f"ends before record {journal.end}: its end was lost; put the journal back, or "
                "begin anew with --fresh"
            )
        # The state begins at record 0, or where it was last begun anew.
        begun = max((i for i, record in enumerate(records) if record.about), default=0)
        if records and fresh:
            _same_input(records[begun].about, source)
        if not records or (fresh and _token(records[begun], snapshots) != fresh):
            about["fresh"] = fresh
            journal.commit([], about=about)
            return cls(name, new, journal, snapshots, about, modules=modules, **policy)

        records = records[begun:]
        notes = []
        saved, trainer, seq = records[0].about, new, records[0].seq
        header: dict[str, Any] = {}
        for position in reversed(positions):
            if (position <= seq and saved is not None) or position < seq:
                continue
            try:
                snapshot = snapshots.read(position)
                _same_definition(snapshot.header["definition"], about["definition"])
                trainer = Trainer.from_state(snapshot.parts, modules)
            except ValueError as error:  # damaged, or of another schema
                notes.append(f"{error}; an older one is used")
                continue
            header, seq, saved = snapshot.header, position, snapshot.header
            break
        else:
            if saved is None and seq > 0:  # none can be read: from the beginning, if that is there
                records = journal.recover()
                records = records[max((i for i, r in enumerate(records) if r.about), default=0) :]
                saved, seq = records[0].about, records[0].seq
            if saved is None:
                raise ResumeError(
                    f"shard {name}: no snapshot can be used, and the journal begins at record "
                    f"{journal.first}, not at 0" + "".join(f"; {note}" for note in notes)
                )
            _same_definition(saved["definition"], about["definition"])
        entries = [e for record in records if record.seq >= seq for e in record.entries]
        assert saved is not None
        changed = definition_changes(saved["decoding"], about["decoding"])
        if changed and any(isinstance(entry, Range) for entry in entries):
            raise ResumeError(
                "the config reads the input otherwise than when it was learned, and a part of it "
                f"has to be read again after a crash ({'; '.join(changed)}); run once with the old "
                "config until it stops by itself, or begin anew with --fresh"
            )
        about["fresh"] = saved.get("fresh", "")
        shard = cls(name, trainer, journal, snapshots, about, modules=modules, **policy)
        shard.notes = notes
        shard.cursors = {p: Cursor(*c) for p, c in header.get("cursors", {}).items()}
        shard._excluded = {
            (p, line, *(row or [-1])) for p, line, *row in header.get("excluded", [])
        }
        shard._replay = deque(entries)
        shard._snapshot_end = seq if not changed else -1
        if changed:  # so that the next resume compares with what is now in force
            shard._write_snapshot(shard._snapshot(trainer.state()))
        return shard

    @property
    def untouched(self) -> bool:
        """Whether no input was ever applied."""
        return not self.cursors and not self._replay

    @property
    def positions(self) -> dict[str, Cursor]:
        """Where each partition is to be read from: before what is still to be replayed."""
        positions = dict(self.cursors)
        for entry in self._replay:
            if isinstance(entry, Range) and entry.partition not in positions:
                positions[entry.partition] = Cursor(entry.start)
        return positions

    @property
    def replaying(self) -> bool:
        """Whether some of the journal is still to be applied."""
        return bool(self._replay) or self._replay_left > 0

    def next_range(self) -> Range | None:
        """Return the next range of input to read again, or None when the journal is at its end."""
        while self._replay:
            entry = self._replay.popleft()
            if isinstance(entry, Range):
                self._replay_left += 1
                return entry
            self._excluded.add((entry.partition, entry.line, entry.row))
        return None

    def step(
        self, span: Range, batch: EventBatch, rejected: list[Rejected], *, final: bool = True
    ) -> Outcome:
        """Apply one batch: the events of `span`, and what of it was rejected.

        Parameters
        ----------
        final
            While replaying: whether `span` ends a range that `next_range` gave.

        Raises
        ------
        EventError
            If the learner raises. The shard is then to be opened anew, after `exclude` if the
            event is to be skipped.
        ValueError
            If `span` does not begin where the partition was left.
        """
        cursor = self.cursors.get(span.partition)
        if cursor is not None and span.start != cursor.offset:
            raise ValueError(
                f"{span.partition}: got input from {span.start} on, expected {cursor.offset}"
            )
        live = not self.replaying
        if self._excluded:
            batch = self._without_excluded(batch, span)
        batch, refused = self.trainer.admit(batch)
        try:
            result = self.trainer.step(batch)
        except LearnerError as error:
            event = next(iter(batch[error.row : error.row + 1]))
            features = msgspec.json.encode(event.x).decode()[:1024]
            origin = batch.origins[error.row]
            row = batch.row(error.row)
            raise EventError(origin, batch.place, features, error.cause, row) from error
        self.cursors[span.partition] = Cursor(span.stop, span.line, span.crc, span.head)
        if not live and final:
            self._replay_left -= 1
            if not self.replaying:  # lest the same be replayed again and again
                self.snapshot_soon()
        outcome = Outcome(span, batch, result.predictions, rejected + refused, result.alarms, live)
        if live and self._snapshot_due():
            parts = self.trainer.state()
            # Go on with what the snapshot gives back: so each is proven readable, a resumed run
            # goes on exactly as this one, and CPython is faster with objects whose `__dict__`
            # nobody took.
            self.trainer = Trainer.from_state(parts, self._modules)
            outcome.snapshot = self._snapshot(parts)
        return outcome

    def snapshot_soon(self) -> None:
        """Have the next batch followed by a snapshot: what was before may not be there any more."""
        self._snapshot_seen = -self._snapshot_events

    def publish(self, outcome: Outcome, outputs: Mapping[str, bytes]) -> None:
        """Take what a batch put out; commit if it is time to, or a snapshot is due."""
        if not outcome.live:
            return
        for name, data in outputs.items():
            self._journal.write(name, data)
        self._append(outcome.span)
        if outcome.snapshot is not None:
            self.commit()
            self._write_snapshot(outcome.snapshot)
        else:
            self.tick()

    def tick(self) -> None:
        """Commit if it is time to."""
        if self._clock() - self._committed_at >= self._commit_seconds:
            self.commit()

    def commit(self) -> None:
        """Commit what was published, if anything was."""
        if self._pending:
            self._journal.commit(self._pending)
            self._pending = []
        self._committed_at = self._clock()

    def exclude(self, error: EventError, outputs: Mapping[str, bytes]) -> None:
        """Journal that the event the learner raised on is skipped from now on.

        The trainer may be half updated: open the shard anew afterwards.
        """
        self.commit()
        for name, data in outputs.items():
            self._journal.write(name, data)
        self._journal.commit([Exclude(error.place, error.origin[2], error.reason, error.row)])

    def close(self) -> None:
        """Commit, and write a snapshot if the newest one is not of this state."""
        self.commit()
        if not self.replaying and self._snapshot_end != self._journal.end:
            self._write_snapshot(self._snapshot(self.trainer.state()))

    def _append(self, span: Range) -> None:
        """Add a range to what is to be committed, joined with the last where they touch."""
        last = self._pending[-1] if self._pending else None
        if isinstance(last, Range) and last.partition == span.partition and last.stop == span.start:
            self._pending[-1] = msgspec.structs.replace(span, start=last.start)
        else:
            self._pending.append(span)

    def _without_excluded(self, batch: EventBatch, span: Range) -> EventBatch:
        keep = [
            i
            for i, line in enumerate(batch.offsets.tolist())
            if (batch.place, line, batch.row(i)) not in self._excluded
        ]
        self._excluded = {
            (partition, line, row)
            for partition, line, row in self._excluded
            if partition != span.partition or line >= span.line
        }
        return batch if len(keep) == len(batch) else batch.take(keep)

    def _snapshot_due(self) -> bool:
        return (
            self.trainer.seen - self._snapshot_seen >= self._snapshot_events
            or self._clock() - self._snapshot_at >= self._snapshot_seconds
        )

    def _snapshot(self, parts: dict[str, bytes]) -> Snapshot:
        header = {
            **self._about,
            "shard": self.name,
            "cursors": {p: [c.offset, c.line, c.crc, c.head] for p, c in self.cursors.items()},
            "excluded": [e if e[2] >= 0 else e[:2] for e in sorted(self._excluded)],
            "digest": digest(parts),
            "seen": self.trainer.seen,
            "learned": self.trainer.learned,
            "created": time.time(),
        }
        self._snapshot_at = self._clock()
        self._snapshot_seen = self.trainer.seen
        return Snapshot(header, parts)

    def _write_snapshot(self, snapshot: Snapshot) -> None:
        """Write a snapshot of the state at the journal's end, which must be committed."""
        snapshot.header["seq"] = self._journal.end
        oldest = self._snapshots.write(self._journal.end, snapshot)
        self._snapshot_end = self._journal.end
        self._journal.trim(oldest)


def _token(begun: Record, snapshots: SnapshotFolder) -> str:
    """Return under which token the state was begun: as a record says, or else a snapshot."""
    if begun.about is not None:
        return str(begun.about.get("fresh", ""))
    for position in reversed(snapshots.positions()):
        with suppress(ValueError):  # it is damaged: an older one says the same
            return str(snapshots.read(position).header.get("fresh", ""))
    return ""


def _same_input(about: Mapping[str, Any] | None, source: str) -> None:
    """Raise ResumeError if a journal is of another input: somebody else's, by its looks."""
    other = (about or {}).get("definition", {}).get("input", source)
    if other != source:
        raise ResumeError(
            f"the journal is that of another input, {other!r}, not of {source!r}; give this config "
            "a `name` (or `output.journal`) of its own"
        )


def _same_definition(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = definition_changes(old, new)
    if changed:
        raise ResumeError(
            "the state was saved by another learner; what differs: "
            + "; ".join(changed)
            + "; put the old definition back, begin anew with --fresh, or, where the journal is "
            "another config's, give this one a `name` of its own"
        )
