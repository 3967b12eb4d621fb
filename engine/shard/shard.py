"""A shard: the unit of order, ownership and recovery. Trainer, journal and snapshots together.

State is the fold of the journal. Resuming takes the newest snapshot at or below the journal's end,
applies the rest of the journal with outputs suppressed, and goes live.
"""

import math
import time
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import numpy as np

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Alarm, Origin, Rejected, row_path
from midstream.engine.events.predictions import Predictions
from midstream.engine.learners.learner import LearnerError, definition_changes
from midstream.engine.shard.amending import (
    Blanks,
    assess,
    changes_of,
    compared,
    foreseen,
    libraries,
)
from midstream.engine.shard.commands import (
    REPLACING,
    Coming,
    Done,
    Order,
    Piece,
    RefusedError,
    bounded,
    epoch_of,
    events_of,
    in_force,
    pieces,
    reads_again,
)
from midstream.engine.shard.dataset import DataSet, from_plain, plain
from midstream.engine.shard.journal import (
    Command,
    Cursor,
    Entry,
    Exclude,
    Journal,
    Range,
    Record,
    Skip,
    packed,
    unpacked,
)
from midstream.engine.shard.outbox import Outbox
from midstream.engine.state.changes import Change, MisfitError, in_words, is_same, of_code
from midstream.engine.state.snapshot import Snapshot, SnapshotFolder
from midstream.engine.training.rejecting import Careful, Recent, Tried, Verdict, others, rows_of
from midstream.engine.training.trainer import Trainer, digest

__all__ = [
    "EventError",
    "Outcome",
    "Raised",
    "ResumeError",
    "Shard",
    "begun",
    "defined",
    "read_otherwise",
    "unfit",
]

_MOST_BLANK = 128 * 1024  # most compressed bytes of a new model at the start of a journal
_MOST_ALARMS = 1_000  # most unconfirmed alarms that are kept
_NOTHING = 2**62  # the oldest position of a partition that is gone
_MOST = 0.5  # leaving events out does not help a learner that raises on a larger share
_EXCLUDED = 1_000  # most events that the learner raised on in one commit
_ANOTHER = (
    "put the old definition back, begin anew with --fresh, or, where the journal is another "
    "config's, give this one a `name` of its own"
)
_SHORT = 200  # most characters of a learner's error in the journal
_REASON = 1_000  # most characters of a learner's error, which may hold the whole event


class ResumeError(ExpectedError, RuntimeError):
    """The saved state cannot be resumed; the message says why and what can be done.

    `changes` are the differences between the saved definition and the one in force, if they are
    the reason.
    """

    def __init__(self, message: str, changes: Sequence[Change] = ()) -> None:
        super().__init__(message)
        self.changes = list(changes)


class EventError(ExpectedError, RuntimeError):
    """The learner raised on one event, whose origin this names.

    `place` is the journal's name of its partition. `row` is its place in a message that holds many
    events, else -1. `where` combines them. `reason` is the learner's error on one line that can be
    written as UTF-8, shortened if very long, whatever the cause contains. `others` counts the
    failures among the events around it that were tried.
    """

    def __init__(
        self,
        origin: Origin,
        place: str,
        features: str,
        cause: Exception,
        row: int = -1,
        hint: str = "",
        others: Verdict | None = None,
    ) -> None:
        self.where = f"{place}:{origin[2]}" + (f":{row}" if row >= 0 else "")
        what = f"{type(cause).__name__}: {cause}" + (f"; {hint}" if hint else "")
        what = " ".join(what.splitlines())
        self.reason = what[:_REASON].encode(errors="backslashreplace").decode()
        super().__init__(f"the learner raised on {self.where}: {self.reason}{_advice(others)}")
        self.origin = origin
        self.row = row
        self.place = place
        self.features = features
        self.cause = cause

    @classmethod
    def of(
        cls, batch: EventBatch, row: int, error: LearnerError, others: Verdict | None = None
    ) -> "EventError":
        """Make the error for the event at a row of a batch."""
        features = msgspec.json.encode(batch.event(row).x).decode()[:1024]
        return cls(
            batch.origins[row],
            batch.place,
            features,
            error.cause,
            batch.row(row),
            error.hint,
            others,
        )

    @property
    def rejected(self) -> Rejected:
        """The event as it is written to `rejected`."""
        path = row_path(self.row) if self.row >= 0 else ""
        return Rejected(self.origin, f"the learner raised {self.reason}", path, self.features)


def _advice(others: Verdict | None) -> str:
    """Return advice to add to an error's reason, if the event is an unusual one."""
    if others is None or not others.events:
        return ""
    if others.share > _MOST:
        return f"; so it did on {others.raised:,} of {others.events:,} events tried after it"
    return '; model.on_error = "reject" goes on without such events'


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


class Outcome(msgspec.Struct):
    """The result of applying one batch, on its way to the outputs.

    `live` is False while the journal is replayed: nothing must be written then, and `rejected` was
    written already. `snapshot` holds the state after this batch if a snapshot is due.
    `non_finite` and `too_large` are those of `Step`.
    """

    span: Range
    batch: EventBatch
    predictions: Predictions
    rejected: list[Rejected]
    alarms: list[Alarm]
    live: bool
    snapshot: Snapshot | None = None
    non_finite: int = 0
    too_large: int = 0
    raised: list[EventError] = []
    """Errors of the events in `rejected` that the learner raised on."""
    odd: list[int] = []
    """The rows of `batch` with a non-finite prediction."""
    found: Verdict = Verdict(0, 0, 0)
    """Failures of the learner on the events it got; events left out count as failures."""
    verdict: Verdict | None = None
    """The verdict over recent events, if the learner failed on more than `error_limit` allows."""


def _no_versions(version: int) -> Snapshot:
    raise RefusedError(f"version {version} cannot be read: there is no registry")


class Shard:
    """Trainer, journal and snapshots of one shard. Use `Shard.open`.

    `step` applies a batch and returns an `Outcome`. `publish` takes the outcomes in the same order,
    with their output, and commits from time to time. Two places of a dataflow may call them, but
    only one thread. `carry_out` carries out a command, once all outcomes are published.

    Attributes
    ----------
    version
        The version last loaded; 0: none.
    parent
        The newest version that the state derives from, or was saved as.
    paused
        Whether a command has paused the input.
    generation
        How often the input was applied again with something left out ("rewind").
    last_command
        The id of the last command that was carried out or refused.
    data
        What the model was learned from.
    applied, stepped
        Events of the input ever applied, according to the journal; `stepped` includes uncommitted
        ones. Input that is applied again does not count.
    done
        The commands carried out that are not confirmed (`confirm`) to be known elsewhere.
    alarms
        The last 1,000 alarms not confirmed (`confirm_alarms`) to be known elsewhere.
    keep_from
        Records from this one on are kept, for a later "rewind".
    recent
        The recent events on which the learner failed.
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
        fetch: Callable[[int], Snapshot] = _no_versions,
        outbox: Outbox | None = None,
        keep_from: float = math.inf,
        check_input: Callable[[], None] = lambda: None,
        reject: Callable[[list[Rejected]], Mapping[str, bytes]] | None = None,
        careful: bool = False,
        error_limit: float = 1.0,
        timer: Callable[[], float] = time.perf_counter,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.trainer = trainer
        self.cursors: dict[str, Cursor] = {}
        self.version = 0
        self.parent = 0
        self.paused = False
        self.generation = 0
        self.last_command = 0
        self._refused = 0  # the id of the last command, if it was refused
        self.data = DataSet()
        self.done: list[Done] = []
        self.applied = self.stepped = trainer.seen
        self.alarms: list[Raised] = []
        self.keep_from = keep_from
        self.notes: list[str] = []
        """What `open` found that an operator should know, one sentence each."""
        self._journal = journal
        self._snapshots = snapshots
        self._about = about
        self._modules = modules
        self._snapshot_events = snapshot_events
        self._snapshot_seconds = snapshot_seconds
        self._commit_seconds = commit_seconds
        self._fetch = fetch
        self._outbox = outbox
        self._check_input = check_input
        self._reject = reject
        self._careful = Careful(modules, timer=timer)
        self._is_careful = careful  # leave out at once an event that the learner raises on
        self._error_limit = error_limit
        self.recent = Recent()
        self._clock = clock
        self._wall = wall
        self._parent_data = DataSet()
        self._skips: list[Skip] = []  # what was left out of the input behind the state
        self._excluded: set[tuple[str, int, int]] = set()  # partition, line, row
        self._replay = Coming(journal)
        self._handed: deque[Piece] = deque()  # given by next_step, and not fully applied yet
        self._relearning: list[Done] = []  # commands that take effect once all is applied again
        self._pending: list[Entry] = []
        self._leaving_out: list[Exclude] = []  # for the next commit, before what is pending
        self._committed_at = clock()
        self._snapshot_at = clock()
        self._snapshot_seen = trainer.seen
        self._snapshot_end = -1
        self.amended: list[Change] = []
        """Amendments since the caller last reported them and cleared this."""
        self._opened_at = trainer.seen
        self._blank: Callable[[], Trainer] = lambda: trainer
        self._source, self._shards = "", ""
        self._amendment: Command | None = None  # due at the end of the journal

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
        identity: str = "",
        amend: bool = False,
        **policy: Any,
    ) -> "Shard":
        """Resume from the saved state, or begin anew if there is none.

        Parameters
        ----------
        make
            Makes a new trainer.
        decoding
            Determines how bytes become events; it must not change while input must be read again.
        source
            Name of the input: partitions of another input are not those that were learned.
        shards
            What makes up a shard: under another setting, this shard would hold something else.
        modules
            Modules besides River whose classes and functions a snapshot may hold.
        fresh
            Token: begin anew, whatever the journal holds, unless it was begun under this token.
        identity
            Identity of the state; "": it has none. Saved in the journal and in snapshots. State of
            another identity is neither resumed nor restored.
        amend
            Accept also changes of the definition that alter how the model learns.
        policy
            snapshot_events, snapshot_seconds, commit_seconds; clock and wall, which return seconds;
            fetch, which returns this shard's part of a version; outbox, which stores it; keep_from;
            check_input, called before input is committed, which raises if the input is unsound;
            reject, which encodes the output for events left out because the learner raises on them
            (given only if they are to be left out); careful, whether there are known to be such
            events; error_limit, as for `Recent.count`; timer, as for `Careful`.

        Raises
        ------
        ResumeError
            If the definition has changed since the state was saved, or state is missing.
        JournalError
            If the journal is damaged.
        """
        positions = snapshots.positions()
        records = journal.recover(positions[0] if positions else 0)
        blank = Blanks(make)
        definition = defined(blank(), source, shards)
        about: dict[str, Any] = {"definition": definition, "decoding": dict(decoding or {})}
        if positions and positions[-1] > journal.end:
            raise ResumeError(
                f"shard {name}: there is a snapshot of record {positions[-1]}, but the journal "
                f"ends before record {journal.end}: its end was lost; put the journal back, or "
                "begin anew with --fresh"
            )
        records = _newest(records)
        if records and fresh:
            _same_input(records[0].about, source)
            _same_identity(name, records[0].about or {}, identity)
        if identity:
            about["identity"] = identity
        if not records or (fresh and _token(records[0], snapshots) != fresh):
            about |= {"fresh": fresh, "begun": [policy.get("wall", time.time)(), journal.end]}
            journal.generation = 0
            journal.commit([], about=about | _blank_kept(blank()))
            new = Trainer.from_state(blank().state(), modules)
            shard = cls(name, new, journal, snapshots, about, modules=modules, **policy)
            shard._is_of(blank, source, shards)
            shard.done = [shard.begun]
            return shard

        notes = []
        saved, seq = records[0].about, records[0].seq
        trainer: Trainer | None = None
        header: dict[str, Any] = {}
        for position in reversed(positions):
            if (position <= seq and saved is not None) or position < seq:
                continue
            try:
                snapshot = snapshots.read(position)
            except ValueError as error:  # damaged
                notes.append(f"{error}; an older one is used")
                continue
            try:
                trainer = Trainer.from_state(snapshot.parts, modules)
            except ValueError as error:  # damaged, of another schema, or of another model
                was = snapshot.header["definition"]
                _check_accepted(name, compared(blank(), was, source, shards), amend=True)
                notes.append(f"{error}; an older one is used")
                continue
            header, seq, saved = snapshot.header, position, snapshot.header
            break
        else:
            if saved is None and seq > 0:  # no snapshot can be read: try the journal's beginning
                records = _newest(journal.recover())
                saved, seq = records[0].about, records[0].seq
            if saved is None:
                raise ResumeError(
                    f"shard {name}: no snapshot can be used, and the journal begins at record "
                    f"{journal.first}, not at 0" + "".join(f"; {note}" for note in notes)
                )
            trainer = begun(name, saved, blank(), definition, modules)
        # A command that was abandoned later counts as refused.
        reasons = {e.id: e.refused for e in _commands(records) if e.kind == "abandon"}
        replay = Coming(journal, seq, reasons, records)
        assert saved is not None
        if known := _same_identity(name, saved, identity):
            about["identity"] = known
        changed = definition_changes(saved["decoding"], about["decoding"])
        if changed and replay:
            raise ResumeError(read_otherwise(changed))
        about |= {"fresh": saved.get("fresh", ""), "begun": saved.get("begun", [0.0, 0])}
        assert trainer is not None
        to_apply, last = _to_come(replay, saved["definition"])
        amendment = _amendment(
            name, header, trainer, blank, last, definition,
            source=source, shards=shards, modules=modules, amend=amend,
            journaled=changes_of(piece.entry for piece in replay.all()),
            replays=any(reads_again(piece.entry) for piece in replay.all()),
            at=policy.get("wall", time.time)(),
        )  # fmt: skip
        about["definition"] = saved["definition"]
        shard = cls(name, trainer, journal, snapshots, about, modules=modules, **policy)
        shard._is_of(blank, source, shards)
        shard.notes = notes
        shard._stand_at(header)
        shard._replay = replay
        shard.applied += to_apply
        shard.stepped = shard.applied
        taken_up = bool(identity) and not saved.get("identity")  # a snapshot must hold it
        shard._snapshot_end = seq if not (changed or taken_up) else -1
        shard._amendment = amendment
        if amendment is not None and not replay:
            shard._amend()
        elif changed:  # so that the next resume compares with the decoding now in force
            shard._write_snapshot(shard._snapshot(trainer.state()))
        return shard

    def _is_of(self, blank: Callable[[], Trainer], source: str, shards: str) -> None:
        """Store what the config defines."""
        self._blank, self._source, self._shards = blank, source, shards

    def _amend(self) -> None:
        """Journal the new definition of the state, and continue under it."""
        assert self._amendment is not None
        command, self._amendment = self._amendment, None
        try:
            trainer = self.trainer.amended(unpacked(command.parts), self._modules)
        except ValueError as error:  # `open` tried it, but before the input that was replayed
            raise ResumeError(
                f"shard {self.name}: after a part of the input was read again after a crash, the "
                f"new definition does not fit: {error}; put the old definition back, or begin "
                "anew with --fresh",
                command.changes,
            ) from None
        self._check_input()
        self._journal.commit([command])
        self._perform(command, self._journal.end - 1, None, trainer)
        self.amended += command.changes
        self._write_snapshot(self._snapshot(self._state()))

    def _stand_at(self, header: Mapping[str, Any]) -> None:
        """Take over the header of a snapshot of this shard: all but the trainer's state."""
        self.cursors = _cursors(header)
        self._excluded = _excluded(header)
        self.version = header.get("version", 0)
        self.parent = header.get("parent", 0)
        self.paused = header.get("paused", False)
        self.generation = header.get("generation", 0)
        self._skips = _skips(header)
        self.last_command = header.get("last_command", 0)
        self._refused = header.get("refused", 0)
        self.data = _data(header, "data")
        self.applied = header.get("applied", header.get("seen", 0))
        self._parent_data = _data(header, "parent_data")
        self.alarms = msgspec.convert(header.get("alarms", []), list[Raised])
        self.done = msgspec.convert(header.get("done", []), list[Done]) or [self.begun]
        self.recent = msgspec.convert(header.get("recent", {}), Recent)
        self._is_careful |= bool(self.recent.raised)

    @property
    def begun(self) -> Done:
        """The beginning of the state, as if it had been a command."""
        at, seq = self._about["begun"]
        return Done(Command(0, "start", at=at), seq, done_at=at)

    @property
    def epoch(self) -> str:
        """The beginning that the state derives from; versions of another have another journal."""
        return epoch_of(self._about)

    @property
    def definition(self) -> dict[str, Any]:
        """The definition of the state."""
        definition: dict[str, Any] = self._about["definition"]
        return definition

    @property
    def identity(self) -> str:
        """The identity of the state; "": it has none."""
        return str(self._about.get("identity", ""))

    @property
    def untouched(self) -> bool:
        """Whether no input was ever applied."""
        return not self.cursors and not self._replay

    @property
    def positions(self) -> dict[str, Cursor]:
        """By partition, the position to read from: before the input still to be replayed."""
        positions = dict(self.cursors)
        for entry in (piece.entry for piece in self._replay.all()):
            if isinstance(entry, Range):
                known = positions.get(entry.partition, Cursor(entry.start))
                if not known.head:
                    known = msgspec.structs.replace(known, head=entry.head)
                positions[entry.partition] = known
        return positions

    @property
    def known(self) -> dict[str, Cursor]:
        """By partition, the position read up to: after the input still to be replayed."""
        known = dict(self.cursors)
        for entry in (piece.entry for piece in self._replay.all()):
            if isinstance(entry, Range):
                known[entry.partition] = entry.at_stop()
        return known

    @property
    def replaying(self) -> bool:
        """Whether some of the journal is still to be applied."""
        return bool(self._replay) or bool(self._handed)

    @property
    def relearning(self) -> bool:
        """Whether input is applied again to the state of a version."""
        return bool(self._relearning)

    @property
    def changed(self) -> bool:
        """Whether anything was applied since the last version that the state derives from."""
        return self.data != self._parent_data

    def next_step(self) -> Range | Command | None:
        """Return what to apply next: input to be read again, or a command.

        None at the end of the journal. After a command, call `carry_out_again` with it before the
        next call.
        """
        while self._replay:
            piece = self._replay.pop()
            entry = piece.entry
            if not isinstance(entry, Exclude):
                self._handed.append(piece)
                return entry
            self._excluded.add((entry.partition, entry.line, entry.row))
            self._is_careful = True
            if not self.replaying:
                self._replayed()
        return None

    def step(
        self, span: Range, batch: EventBatch, rejected: list[Rejected], *, final: bool = True
    ) -> Outcome:
        """Apply one batch: the events of `span`, and those of its records that were rejected.

        Parameters
        ----------
        final
            While replaying: whether `span` ends a range that `next_step` gave.

        Raises
        ------
        EventError
            If the learner raises. Open the shard anew then; `careful` leaves such events out.
        ValueError
            If `span` does not start at the partition's position.
        """
        cursor = self.cursors.get(span.partition)
        if cursor is not None and span.start != cursor.offset:
            raise ValueError(
                f"{span.partition}: got input from {span.start} on, expected {cursor.offset}"
            )
        live, given = not self.replaying, batch
        batch, known = self._without_excluded(batch)
        if not live:
            batch = self._without_skipped(batch, self._handed[0])
        if len(batch) < len(given) and self.trainer.label_kind is None:
            # The excluded event had been admitted, and had settled the kind of labels.
            self.trainer.admit(given if live else self._not_skipped(given, self._handed[0]))
        tried, raised = self._learned(batch, live=live)
        result, batch = tried.step, tried.batch
        if result.alarms and not self._relearning:
            now, command = self._wall(), self.last_command
            self.alarms += [
                Raised(command, a.position, a.detector, a.feature or "", a.kind, now)
                for a in result.alarms
            ]
            del self.alarms[:-_MOST_ALARMS]
        outcome = Outcome(
            span,
            batch,
            result.predictions,
            rejected,
            result.alarms,
            live,
            non_finite=result.non_finite,
            too_large=result.too_large,
        )
        outcome.raised, outcome.odd = raised, result.odd
        if raised or tried.refused:  # in input order, however it was cut
            outcome.rejected = sorted(
                [*rejected, *tried.refused, *(error.rejected for error in raised)],
                key=lambda each: each.origin[2],
            )
        if not self._relearning:  # else they were counted the first time
            self._count(outcome, given, known, tried)
        self.cursors[span.partition] = span.at_stop()
        self.data.add(span.partition, span.start, span.stop, batch, _lines(cursor, span, batch))
        self.stepped += len(batch) if live else 0
        if raised and not live:
            self._leave_out(raised)
        if not live and final:
            self._handed.popleft()
            self._replayed()
        if live and self._snapshot_due():
            outcome.snapshot = self._snapshot(self._state())
        return outcome

    def _learned(self, batch: EventBatch, *, live: bool) -> tuple[Tried, list[EventError]]:
        """Learn a batch; return the result, and the errors of events that the learner raised on."""
        if not (self._is_careful and self._reject is not None and (live or self._relearning)):
            self._careful.forget()
            admitted, refused = self.trainer.admit(batch)
            try:
                step = self.trainer.step(admitted)
            except LearnerError as error:
                around = None
                if self._reject is None:
                    learned = self.trainer.seen - self._opened_at
                    around = others(self.trainer.learner, admitted, error.row, learned)
                raise EventError.of(admitted, error.row, error, around) from error
            return Tried(step, admitted, rows_of(admitted, batch), {}, refused), []
        tried = self._careful.step(self.trainer, batch)
        errors = [EventError.of(batch, row, error) for row, error in tried.raised.items()]
        if errors and not live and not self.may_abandon:
            raise errors[0]  # it was learned before
        return tried, errors

    def _count(
        self, outcome: Outcome, given: EventBatch, left_out: list[int], tried: Tried
    ) -> None:
        """Count the failures of the learner among the given events.

        `left_out` are the rows on which it was known to raise; `tried` is of the others.
        """
        raised, odd = left_out, list[int]()
        if tried.raised or (left_out and tried.step.odd):
            rest = np.delete(np.arange(len(given)), left_out)
            raised = sorted([*left_out, *rest[list(tried.raised)].tolist()])
            odd = rest[tried.rows[tried.step.odd]].tolist()
        elif tried.step.odd:
            odd = tried.rows[tried.step.odd].tolist()
        outcome.found = Verdict(len(raised), len(odd), len(outcome.batch) + len(raised))
        outcome.verdict = self.recent.count(len(given), raised, odd, self._error_limit)

    def _leave_out(self, raised: list[EventError]) -> None:
        """Journal at once the events that the learner raised on while relearning for a command."""
        assert not self._pending, "input is learned again before what is new was committed"
        self._check_input()
        assert self._reject is not None
        for name, data in self._reject([error.rejected for error in raised]).items():
            self._journal.write(name, data)
        self._journal.commit(_exclusions(raised))

    def _replayed(self) -> None:
        """Mark commands that have taken effect; save the state when the replay is complete."""
        pieces_left = bool(self._handed or self._replay)
        following = math.inf
        if pieces_left:
            following = (self._handed[0] if self._handed else self._replay.first()).seq
        relearned = [done for done in self._relearning if done.seq < following]
        for done in relearned:
            done.seen, done.done_at = self.trainer.seen, self._wall()
            self._relearning.remove(done)
        if relearned and not pieces_left:  # durable before it is reported
            self._write_snapshot(self._snapshot(self._state()))
        elif not pieces_left and self._amendment is None:
            self.snapshot_soon()  # avoids replaying the same input again and again
        if not pieces_left and self._amendment is not None:
            self._amend()

    def snapshot_soon(self) -> None:
        """Take a snapshot after the next batch: earlier input may become unavailable."""
        self._snapshot_seen = -self._snapshot_events

    def publish(self, outcome: Outcome, outputs: Mapping[str, bytes]) -> None:
        """Take the output of a batch; commit if that or a snapshot is due."""
        if not outcome.live:
            return
        for name, data in outputs.items():
            self._journal.write(name, data)
        self._leaving_out += _exclusions(outcome.raised)
        self._append(msgspec.structs.replace(outcome.span, events=len(outcome.batch)))
        if outcome.snapshot is not None:
            self.commit()
            self._write_snapshot(outcome.snapshot)
        elif len(self._leaving_out) >= _EXCLUDED:
            self.commit()
        else:
            self.tick()

    def tick(self) -> None:
        """Commit if a commit is due."""
        if self._clock() - self._committed_at >= self._commit_seconds:
            self.commit()

    def commit(self) -> None:
        """Commit what was published, if anything."""
        if self._pending:
            self._check_input()
            self._journal.commit([*self._leaving_out, *self._pending])
            self.applied += _events_in(self._pending)
            self._pending, self._leaving_out = [], []
        self._committed_at = self._clock()

    # --- commands

    def carry_out(
        self,
        order: Order,
        *,
        oldest: Callable[[], Mapping[str, int]] = lambda: defaultdict(int),
        prepared: Snapshot | None = None,
    ) -> Done | None:
        """Carry out or refuse a command, and journal that: exactly once, whatever happens.

        All that was stepped must be published before. Afterwards the shard may be `replaying`: then
        read the input again from `positions` on.

        Parameters
        ----------
        oldest
            Returns, by partition, the oldest position of the input that can still be read; a very
            high one for a partition that was read once and is gone.
        prepared
            This shard's part of the version, if it was already fetched.

        Returns
        -------
        Done
            What was done; None if the command had been carried out before.
        """
        if order.id <= self.last_command:
            return None
        self.commit()
        command = Command(
            order.id,
            order.kind,
            version=order.version,
            at=self._wall(),
            reason=order.reason,
            cut=order.cut,
            by=order.by,
        )
        snapshot, trainer = prepared, None
        try:
            if order.problem:
                raise RefusedError(order.problem)
            if order.cut == "restored" and self._refused == order.id - 1:
                raise RefusedError("it was to be made after a command that was refused")
            if order.kind in REPLACING:
                snapshot = snapshot or self._fetch(order.version)
                command = self._known(command, order, snapshot.header)
                trainer = self._loaded(order.version, snapshot)
                command = self._planned(command, order, snapshot.header, oldest)
                command, trainer = self._fitted(command, trainer, snapshot.header)
        except RefusedError as error:
            command = msgspec.structs.replace(command, refused=str(error))
        if command.kind == "rewind" and not command.refused:
            self._journal.generation = self.generation + 1
        if command.since >= 0 and self._snapshot_end != self._journal.end:
            # The shard resumes from here if the input turns out to be another one (`abandon`).
            self._write_snapshot(self._snapshot(self._state()), trim=False)
        self._journal.commit([command])
        done = self._perform(command, self._journal.end - 1, snapshot, trainer)
        if snapshot is not None and not (command.refused or self.replaying):
            parts = self._state() if command.amends else snapshot.parts  # not changed since
            self._write_snapshot(self._snapshot(parts))
        if done.done_at is not None:
            done.done_at = self._wall()
        return done

    def carry_out_again(self, command: Command) -> None:
        """Repeat the effect of a command in the journal, as `next_step` gave it."""
        piece = self._handed.popleft()
        assert piece.entry is command
        snapshot, trainer = None, None
        if command.kind == "amend":
            trainer = self.trainer.amended(unpacked(command.parts), self._modules)
        elif command.kind in REPLACING and not command.refused:
            try:
                snapshot = self._fetch(command.version)
                trainer = self._loaded(command.version, snapshot)
                if command.amends:
                    trainer = trainer.amended(unpacked(command.parts), self._modules)
            except (RefusedError, MisfitError) as error:
                raise ResumeError(
                    f"shard {self.name}: record {piece.seq} of the journal put version "
                    f"{command.version} in the place of the model: {error}"
                ) from None
            if snapshot.header["digest"] != command.digest:
                raise ResumeError(
                    f"shard {self.name}: record {piece.seq} of the journal put version "
                    f"{command.version} in the place of the model, which is another one now"
                )
        self._perform(command, piece.seq, snapshot, trainer)
        self._replayed()

    @property
    def may_abandon(self) -> bool:
        """Whether a command has input applied again, and no new input was applied since."""
        if not self._relearning:
            return False
        seq = self._relearning[-1].seq
        later = self._replay.after(seq)
        return not any(
            isinstance(piece.entry, Range) for piece in (*self._handed, *later) if piece.seq > seq
        )

    def abandon(self, reason: str) -> None:
        """Journal that input cannot be applied again as a command requires.

        Open the shard anew afterwards: the command then counts as refused.
        """
        command = self._relearning[-1].command
        self._journal.generation = self.generation - (command.kind == "rewind")
        self._journal.commit([Command(command.id, "abandon", at=self._wall(), refused=reason)])

    def confirm(self, seqs: Collection[int]) -> None:
        """Note that the commands at these records, once in effect, are known elsewhere."""
        self.done = [d for d in self.done if d.seq not in seqs or d.done_at is None]

    def confirm_alarms(self, alarms: Collection[Raised]) -> None:
        """Note that alarms are known elsewhere."""
        self.alarms = [alarm for alarm in self.alarms if alarm not in alarms]

    def _known(self, command: Command, order: Order, header: Mapping[str, Any]) -> Command:
        """Refuse a version of another state unless the order names that state; note it if so."""
        other = header.get("identity", "")
        if not other or not self.identity or other == self.identity:
            return command
        if other != order.origin:
            raise RefusedError(
                f"version {order.version} is of another state (identity {other[:12]}; the one "
                f"here: {self.identity[:12]}); `midstream restore {order.version} --from "
                f"{other[:12]}` puts it in the place of the model all the same"
            )
        return msgspec.structs.replace(command, origin=other)

    def _loaded(self, version: int, snapshot: Snapshot) -> Trainer:
        if digest(snapshot.parts) != snapshot.header["digest"]:
            raise RefusedError(f"version {version} cannot be loaded: its digest differs")
        try:
            return Trainer.from_state(snapshot.parts, self._modules)
        except ValueError as error:
            raise RefusedError(f"version {version} cannot be loaded: {error}") from None

    def _fitted(
        self, command: Command, trainer: Trainer, header: Mapping[str, Any]
    ) -> tuple[Command, Trainer]:
        """Amend a version's state that has another definition, unless the journal amends it."""
        version, old = command.version, header["definition"]
        changes = foreseen(
            header, trainer, self._blank(), old,
            source=self._source, shards=self._shards, modules=self._modules,
        )  # fmt: skip
        refused = [change for change in changes if change.level == "refused"]
        if refused:
            raise RefusedError(f"version {version} is of another model: {in_words(refused)}")
        if is_same(old, self.definition):
            return command, trainer
        if command.since == header["seq"]:  # see `_replace`
            again = (piece.entry for piece in pieces(self._journal.records(command.since)))
            if is_same(in_force(again, old), self.definition):
                return command, trainer  # the journal amends it again
        parts = self._blank().blank_parts(old)
        command = msgspec.structs.replace(
            command, definition=self.definition, parts=packed(parts), changes=changes
        )
        return command, trainer.amended(parts, self._modules)

    def _planned(
        self,
        command: Command,
        order: Order,
        header: Mapping[str, Any],
        oldest: Callable[[], Mapping[str, int]],
    ) -> Command:
        """Add what the command's effect depends on; raise RefusedError if it can have none."""
        version, seq = order.version, header["seq"]
        command = msgspec.structs.replace(command, digest=header["digest"])
        if order.kind == "restore":
            return command
        ours = epoch_of(header) == self.epoch and seq <= self._journal.end
        changed = definition_changes(header["decoding"], self._about["decoding"])
        if changed and (ours or order.kind == "rewind"):
            raise RefusedError(
                f"the config reads the input otherwise than it did when version {version} was made "
                f"({'; '.join(changed)}), so that it would not learn the same again; it can be "
                "restored without --rewind"
            )
        skips = _skips(header)
        if order.kind != "rewind":
            if not ours:
                return command
            if order.kind == "promote":  # unlearned input stays unlearned; a rollback undoes that
                skips += [skip for skip in self._skips if skip not in skips]
            since = max(seq, self._journal.first)
            records, now = self._journal.records(since), self.cursors
            cursors = _cursors(header)
            if seq < since:  # the journal may lack some partitions that came later
                cursors = dict.fromkeys(now, Cursor()) | cursors
            start, left, lines = bounded(records, order.catch_up, oldest(), cursors, now)
            files = self.data.lines
            return msgspec.structs.replace(
                command,
                since=since,
                start=start,
                left=left,
                skips=skips,
                lines=[
                    span if files.get(p) else None
                    for (p, *_), span in zip(left, lines, strict=True)
                ],
            )
        if not ours:
            raise RefusedError(
                f"version {version} was made before the model was begun anew, and the journal from "
                "then on is not there; without --rewind it can be restored"
            )
        if seq < self._journal.first:
            raise RefusedError(
                f"version {version} is of record {seq}, and the journal begins at record "
                f"{self._journal.first}: what came between cannot be learned again; "
                "without --rewind it can be restored"
            )
        found = pieces(self._journal.records(seq))
        there = oldest()
        learned = False
        for entry in (piece.entry for piece in found):
            if learned and isinstance(entry, Command) and (changes := of_code(entry.changes)):
                raise RefusedError(
                    f"what came after version {version} was learned by other code, and would not "
                    f"be learned the same again ({in_words(changes)}); without --rewind it can be "
                    "restored"
                )
            if not isinstance(entry, Range) or entry.start == entry.stop:
                continue
            learned = True
            low = there[entry.partition]
            if entry.start < low:
                gone = f"{entry.start} to {min(entry.stop, low) - 1}" if low < _NOTHING else "all"
                raise RefusedError(
                    f"{entry.partition}: what came after version {version} cannot be read again: "
                    f"{gone} of it is not there any more; without --rewind it can be restored"
                )
        sources, ranges = list(order.sources), list(order.ranges)
        skips += [skip for skip in self._skips if skip not in skips]
        if sources or ranges:
            skips.append(Skip(seq, self._journal.end, sources, ranges))
        return msgspec.structs.replace(
            command,
            since=seq,
            start=_cursors(header),
            sources=sources,
            ranges=ranges,
            skips=skips,
        )

    def _perform(
        self,
        command: Command,
        seq: int,
        snapshot: Snapshot | None,
        trainer: Trainer | None,
    ) -> Done:
        self.generation += command.kind == "rewind" and not command.refused
        position = {partition: cursor.offset for partition, cursor in self.cursors.items()}
        done = Done(
            command.told(), seq, self.generation, position, self._lines(), done_at=command.at
        )
        if command.kind == "amend":
            assert trainer is not None
            self.trainer = trainer
            self._careful.forget()
            self._about = {**self._about, "definition": command.definition}
            if not self._relearning:  # else it was reported the first time
                self.done.append(done)
            done.seen = self.trainer.seen
            return done
        self.last_command = command.id
        self._refused = command.id if command.refused else 0
        self.done.append(done)
        if not command.refused:
            if command.kind == "snapshot":
                self._cut(command, seq + 1)
            elif command.kind in ("pause", "resume"):
                self.paused = command.kind == "pause"
            elif snapshot is not None and trainer is not None:
                self._replace(command, seq, snapshot.header, trainer)
                if self.replaying and command.since >= 0:
                    done.done_at = None
                    self._relearning.append(done)
        done.seen = self.trainer.seen
        return done

    def _cut(self, command: Command, seq: int) -> None:
        """Write the state to the outbox, as this shard's part of a version."""
        parts = self._state()
        header = self._header(parts) | {
            "seq": seq,
            "made": command.version,
            "kind": command.cut,
            "reason": command.reason,
            "created": command.at,
            "metrics": self.trainer.metrics,
        }
        if self._outbox is not None:
            self._outbox.write(command.version, Snapshot(header, parts))
        self.parent, self._parent_data = command.version, self.data.copy()

    def _replace(
        self, command: Command, seq: int, header: Mapping[str, Any], trainer: Trainer
    ) -> None:
        """Replace the state by that of a version."""
        self.trainer = trainer
        definition = command.definition if command.amends else header["definition"]
        self._about = {**self._about, "definition": definition}
        self._careful.forget()
        self.recent.begin_anew()
        self.version = self.parent = command.version
        self.data = _data(header, "data")
        self._parent_data = self.data.copy()
        if command.since < 0:
            skips = _skips(header) if epoch_of(header) == self.epoch else []
            if command.kind != "rollback":  # unlearned input stays so, for a later rewind
                skips += [skip for skip in self._skips if skip not in skips]
            self._skips = skips
            return
        self._skips = list(command.skips)
        self._excluded = self._to_come() | _excluded(header)

        def before() -> Iterator[Record]:
            for record in self._journal.records(command.since):
                excluded = [entry for entry in record.entries if isinstance(entry, Exclude)]
                if record.seq < seq:
                    yield record
                elif record.seq > seq and len(excluded) < len(record.entries):
                    break
                # Also just after the command: events that the learner raised on while relearning.
                self._excluded |= {(e.partition, e.line, e.row) for e in excluded}

        found = pieces(before(), command.skips, start=command.start)
        if command.amends or command.since != header["seq"]:  # some amendments may be missing
            found = [piece for piece in found if not isinstance(piece.entry, Command)]
        self._is_careful |= bool(self._excluded)
        self.cursors = dict(command.start)
        self._replay.push(found)

    def _without_skipped(self, batch: EventBatch, piece: Piece) -> EventBatch:
        """Leave out the events that a "rewind" skips, and count them."""
        kept = self._not_skipped(batch, piece)
        self.data.left_out += len(batch) - len(kept)
        return kept

    def _not_skipped(self, batch: EventBatch, piece: Piece) -> EventBatch:
        """Return a batch without the events that a "rewind" skips."""
        sources = piece.sources
        stretches = [(first, last) for p, first, last in piece.ranges if p == batch.place]
        if not (stretches or (sources and batch.sources is not None)) or not len(batch):
            return batch
        keep = np.ones(len(batch), np.bool_)
        for first, last in stretches:
            keep &= (batch.offsets < first) | (batch.offsets > last)
        if sources and batch.sources is not None:
            keep &= [source not in sources for source in batch.sources]
        if keep.all():
            return batch
        return batch.take(np.flatnonzero(keep).tolist())

    def close(self) -> None:
        """Commit, and write a snapshot if the newest one does not hold this state."""
        self.commit()
        if not self.replaying and self._snapshot_end != self._journal.end:
            self._write_snapshot(self._snapshot(self.trainer.state()))

    def _append(self, span: Range) -> None:
        """Add a range to the pending ones, joined with the last if they are adjacent."""
        last = self._pending[-1] if self._pending else None
        if isinstance(last, Range) and last.partition == span.partition and last.stop == span.start:
            events = last.events + span.events
            self._pending[-1] = msgspec.structs.replace(span, start=last.start, events=events)
        else:
            self._pending.append(span)

    def _without_excluded(self, batch: EventBatch) -> tuple[EventBatch, list[int]]:
        """Return a batch without the excluded events, and the rows of those."""
        if not self._excluded:
            return batch, []
        place = batch.place
        places = [(place, line, batch.row(i)) for i, line in enumerate(batch.offsets.tolist())]
        out = [i for i, each in enumerate(places) if each in self._excluded]
        if not out:
            return batch, []
        self._excluded.difference_update([places[i] for i in out])
        keep = np.delete(np.arange(len(batch)), out)
        return batch.take(keep.tolist()), out

    def _snapshot_due(self) -> bool:
        return (
            self.trainer.seen - self._snapshot_seen >= self._snapshot_events
            or self._clock() - self._snapshot_at >= self._snapshot_seconds
        )

    def _to_come(self) -> set[tuple[str, int, int]]:
        """Return the exclusions that concern input still to come."""
        lines = {partition: cursor.line for partition, cursor in self.cursors.items()}
        return {e for e in self._excluded if e[1] >= lines.get(e[0], 0)}

    def _lines(self) -> dict[str, int]:
        """Return, by file, the line or row that comes next."""
        return {p: c.line for p, c in self.cursors.items() if self.data.lines.get(p)}

    def _plain_cursors(self) -> dict[str, list[int]]:
        return {p: list(msgspec.structs.astuple(c)) for p, c in self.cursors.items()}

    def _state(self) -> dict[str, bytes]:
        """Return the trainer's state, and continue with the trainer restored from it.

        This proves each state readable and makes a resumed run go on exactly as this one. Also,
        CPython is faster with objects whose `__dict__` was never accessed.
        """
        parts = self.trainer.state()
        self.trainer = Trainer.from_state(parts, self._modules)
        if self._is_careful:
            self._careful.keep(parts["learner"])
        return parts

    def _header(self, parts: dict[str, bytes]) -> dict[str, Any]:
        return {
            **self._about,
            "shard": self.name,
            "cursors": self._plain_cursors(),
            "excluded": [e if e[2] >= 0 else e[:2] for e in sorted(self._to_come())],
            "digest": digest(parts),
            "seen": self.trainer.seen,
            "learned": self.trainer.learned,
            "libraries": libraries(),
            "proof": self._proof(),
            "created": self._wall(),
            "version": self.version,
            "parent": self.parent,
            "generation": self.generation,
            "skips": msgspec.to_builtins(self._skips),
            "data": plain(self.data),
            "parent_data": plain(self._parent_data),
        }

    def _proof(self) -> list[str]:
        try:
            return self.trainer.proof()
        except (LearnerError, ValueError):  # on an event it has learned; reported elsewhere
            return []

    def _snapshot(self, parts: dict[str, bytes]) -> Snapshot:
        header = self._header(parts) | {
            "applied": self.stepped,
            "alarms": msgspec.to_builtins(self.alarms),
            "paused": self.paused,
            "last_command": self.last_command,
            "refused": self._refused,
            "done": msgspec.to_builtins(self.done),
            "recent": msgspec.to_builtins(self.recent),
        }
        self._snapshot_at = self._clock()
        self._snapshot_seen = self.trainer.seen
        return Snapshot(header, parts)

    def _write_snapshot(self, snapshot: Snapshot, *, trim: bool = True) -> None:
        """Write a snapshot of the state at the journal's end, which must be committed."""
        snapshot.header["seq"] = self._journal.end
        oldest = self._snapshots.write(self._journal.end, snapshot)
        self._snapshot_end = self._journal.end
        if trim and self.keep_from > 0:
            self._journal.trim(int(min(oldest, self.keep_from)))


def _lines(cursor: Cursor | None, span: Range, batch: EventBatch) -> tuple[int, int] | None:
    """Return the lines of a file in a range, as [first, stop); None for a topic."""
    if batch.index >= 0:
        return None
    begun = cursor.line if cursor is not None else 1 if span.start < span.stop else span.line
    return begun, span.line


def _events_in(entries: Iterable[Entry]) -> int:
    return sum(events_of(entry) for entry in entries if isinstance(entry, Range))


def _commands(records: list[Record]) -> Iterator[Command]:
    return (e for record in records for e in record.entries if isinstance(e, Command))


def _exclusions(raised: list[EventError]) -> list[Exclude]:
    short = _SHORT if len(raised) < _EXCLUDED else _SHORT // 10  # bounds the size of a record
    return [Exclude(e.place, e.origin[2], e.reason[:short], e.row) for e in raised]


def _cursors(header: Mapping[str, Any]) -> dict[str, Cursor]:
    return {p: Cursor(*c) for p, c in header.get("cursors", {}).items()}


def _excluded(header: Mapping[str, Any]) -> set[tuple[str, int, int]]:
    return {(p, line, *(row or [-1])) for p, line, *row in header.get("excluded", [])}


def _skips(header: Mapping[str, Any]) -> list[Skip]:
    return msgspec.convert(header.get("skips", []), list[Skip])


def _data(header: Mapping[str, Any], key: str) -> DataSet:
    return from_plain(header[key]) if key in header else DataSet()


def defined(trainer: Trainer, source: str = "", shards: str = "") -> dict[str, Any]:
    """Return the definition of a shard's state; `source` and `shards` as for `Shard.open`."""
    definition = {**trainer.definition(), **({"input": source} if source else {})}
    return definition | ({"shards": shards} if shards else {})


def unfit(old: Mapping[str, Any], blank: Trainer, source: str = "", shards: str = "") -> str:
    """Return why a state with definition `old` does not fit a model like `blank`; empty if it does.

    `source` and `shards` as for `Shard.open`.
    """
    return in_words(assess(compared(blank, old, source, shards), amend=True))


def _blank_kept(blank: Trainer) -> dict[str, Any]:
    """Return a new trainer's state as the first record holds it; empty if it is large."""
    parts = packed(blank.state())
    if sum(map(len, parts.values())) > _MOST_BLANK:
        return {}
    return {"blank": {name: b64encode(data).decode() for name, data in parts.items()}}


def read_otherwise(changed: Iterable[str]) -> str:
    """Return why input cannot be read again, from what is decoded otherwise now."""
    return (
        "the config reads the input otherwise than when it was learned, and a part of it has to be "
        f"read again after a crash ({'; '.join(changed)}); run once with the old config until it "
        "stops by itself, or begin anew with --fresh"
    )


def begun(
    name: str,
    about: Mapping[str, Any],
    blank: Trainer,
    definition: Mapping[str, Any],
    modules: Collection[str],
) -> Trainer:
    """Return the trainer that a journal without a snapshot begins with."""
    if is_same(about["definition"], definition):
        return Trainer.from_state(blank.state(), modules)
    if "blank" not in about:
        changes = blank.changes(about["definition"])
        raise ResumeError(
            f"shard {name}: no snapshot can be used, and the journal does not hold the model that "
            f"it begins with, which was defined otherwise ({in_words(changes)}); put the old "
            "definition back, or restore a version",
            changes,
        )
    parts = {key: b64decode(data) for key, data in about["blank"].items()}
    return Trainer.from_state(unpacked(parts), modules)


def _to_come(replay: Coming, before: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """Return how many events are still to be applied, and the definition in force after them."""
    events, definition = 0, before
    for entry in (piece.entry for piece in replay.all()):
        events += events_of(entry) if isinstance(entry, Range) else 0
        definition = in_force((entry,), definition)
    return events, definition


def _check_accepted(name: str, changes: Sequence[Change], *, amend: bool) -> None:
    """Raise ResumeError if a run does not accept all changes; `amend` as for `Shard.open`."""
    left = assess(changes, amend=amend)
    if left:
        refused = any(change.level == "refused" for change in left)
        advice = _ANOTHER if refused else "`run --amend` takes it, and keeps what was learned"
        raise ResumeError(
            f"shard {name}: the state was saved by a model that is defined otherwise: "
            f"{in_words(left)}; {advice}",
            changes,
        )


def _amendment(
    name: str,
    header: Mapping[str, Any],
    trainer: Trainer,
    blank: Callable[[], Trainer],
    old: Mapping[str, Any],
    definition: dict[str, Any],
    *,
    source: str,
    shards: str,
    modules: Collection[str],
    amend: bool,
    journaled: Sequence[Change],
    replays: bool,
    at: float,
) -> Command | None:
    """Return the amendment to journal if the config's definition differs; else None.

    Raises
    ------
    ResumeError
        If the state cannot be continued, or only with `amend`.
    """
    differ = not is_same(old, definition)
    changes = foreseen(
        header, trainer, blank(), old if differ else None,
        source=source, shards=shards, modules=modules, journaled=journaled,
    )  # fmt: skip
    if not differ and not changes:
        return None
    _check_accepted(name, changes, amend=amend)
    if replays and of_code(changes):
        raise ResumeError(
            f"shard {name}: {in_words(changes)}; a part of the input has to be read again after a "
            "crash, by the code that it was learned with; run once with the old code until it "
            "stops by itself",
            changes,
        )
    return Command.amendment(definition, blank().blank_parts(old) if differ else {}, changes, at)


def _newest(records: list[Record]) -> list[Record]:
    """Return the records of the newest state, from the last beginning on."""
    return records[max((i for i, record in enumerate(records) if record.about), default=0) :]


def _token(begun: Record, snapshots: SnapshotFolder) -> str:
    """Return the token under which the state was begun, from a record or else a snapshot."""
    if begun.about is not None:
        return str(begun.about.get("fresh", ""))
    for position in reversed(snapshots.positions()):
        with suppress(ValueError):  # damaged: an older one holds the same token
            return str(snapshots.read(position).header.get("fresh", ""))
    return ""


def _same_input(about: Mapping[str, Any] | None, source: str) -> None:
    """Raise ResumeError if a journal is of another input, so probably another config's."""
    other = (about or {}).get("definition", {}).get("input", source)
    if other != source:
        raise ResumeError(
            f"the journal is that of another input, {other!r}, not of {source!r}; give this config "
            "a `name` (or `output.journal`) of its own"
        )


def _same_identity(shard: str, about: Mapping[str, Any], identity: str) -> str:
    """Return the identity of a saved state; raise ResumeError if another one is expected."""
    saved = str(about.get("identity", ""))
    if saved and identity and saved != identity:
        raise ResumeError(
            f"shard {shard}: its journal is that of the state {saved}, and this is the state "
            f"{identity}, as the file `identity` in the state folder says; put the right journal "
            f"back, or, if it is the right one, write {saved} to that file"
        )
    return saved or identity
