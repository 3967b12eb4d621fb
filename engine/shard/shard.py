"""A shard: the unit of order, ownership and recovery. Trainer, journal and snapshots together.

State is the fold of the journal. Resuming takes the newest snapshot at or below the journal's end,
applies the rest of the journal with outputs suppressed, and goes live.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, TypeVar

import msgspec
import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Rejected
from midstream.engine.learners.learner import LearnerError
from midstream.engine.shard.amending import Blanks, Intended, foreseen, libraries
from midstream.engine.shard.backlog import Backlog, Piece, events_of, in_force, pieces
from midstream.engine.shard.catalogue import BUILTIN, command_kind
from midstream.engine.shard.commands import Done, Order, RefusedError
from midstream.engine.shard.dataset import DataSet, plain
from midstream.engine.shard.header import (
    About,
    Excluded,
    Header,
    Raised,
    SnapshotHeader,
    VersionHeader,
)
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
from midstream.engine.shard.kinds import Loaded, Standing
from midstream.engine.shard.outbox import Outbox
from midstream.engine.shard.outcome import EventError, Outcome
from midstream.engine.shard.resuming import ResumeError, resume
from midstream.engine.state.changes import Change, MisfitError, in_words, is_same
from midstream.engine.state.snapshot import Snapshot, SnapshotError, SnapshotFolder
from midstream.engine.training.rejecting import Careful, Recent, Tried, Verdict, others, rows_of
from midstream.engine.training.trainer import Trainer, digest

__all__ = ["Shard"]

H = TypeVar("H", bound=Header)

_MOST_ALARMS = 1_000  # most unconfirmed alarms that are kept
_EXCLUDED = 1_000  # most events that the learner raised on in one commit
_SHORT = 200  # most characters of a learner's error in the journal


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
        about: About,
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
        self._excluded: set[Excluded] = set()
        self._backlog = Backlog(journal)
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
        self._intended = Intended(lambda: trainer, modules=modules)
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
        """Resume from the saved state, or start over if there is none.

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
            Token: start over, whatever the journal holds, unless it was begun under this token.
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
        state = resume(
            name,
            Intended(Blanks(make), source, shards, modules),
            journal,
            snapshots,
            decoding=dict(decoding or {}),
            fresh=fresh,
            identity=identity,
            amend=amend,
            at=policy.get("wall", time.time)(),
        )
        shard = cls(name, state.trainer, journal, snapshots, state.about, modules=modules, **policy)
        shard._intended = state.intended
        if state.saved is None:
            shard.done = [state.about.beginning]
            return shard
        shard.notes = list(state.notes)
        shard._stand_at(state.saved)
        shard._backlog = state.backlog
        shard.applied += state.to_apply
        shard.stepped = shard.applied
        shard._snapshot_end = state.seq if state.is_saved else -1
        shard._amendment = state.amendment
        if state.amendment is not None and not state.backlog:
            shard._amend()
        elif state.redecodes:  # so that the next resume compares with the decoding now in force
            shard._write_snapshot(shard._snapshot(state.trainer.state()))
        return shard

    def _amend(self) -> None:
        """Journal the new definition of the state, and continue under it."""
        assert self._amendment is not None
        command, self._amendment = self._amendment, None
        try:
            loaded = self.amend_again(command)
        except ValueError as error:  # `open` tried it, but before the input that was replayed
            raise ResumeError(
                f"shard {self.name}: after a part of the input was read again after a crash, the "
                f"new definition does not fit: {error}; put the old definition back, or begin "
                "anew with --fresh",
                command.changes,
            ) from None
        self._check_input()
        self._journal.commit([command])
        self._perform(command, self._journal.end - 1, loaded)
        self.amended += command.changes
        self._write_snapshot(self._snapshot(self._state()))

    def _stand_at(self, header: SnapshotHeader) -> None:
        """Take over the header of a snapshot of this shard: all but the trainer's state."""
        self.cursors = dict(header.cursors)
        self._excluded = set(header.excluded)
        self.version = header.version
        self.parent = header.parent
        self.paused = header.paused
        self.generation = header.generation
        self._skips = list(header.skips)
        self.last_command = header.last_command
        self._refused = header.refused
        self.data = header.learned_from
        self.applied = header.seen if header.applied is None else header.applied
        self._parent_data = header.parent_learned_from
        self.alarms = list(header.alarms)
        self.done = list(header.done) or [self.begun]
        self.recent = msgspec.convert(header.recent, Recent)
        self._is_careful |= bool(self.recent.raised)

    @property
    def begun(self) -> Done:
        """The beginning of the state, as if it had been a command."""
        return self._about.beginning

    @property
    def epoch(self) -> str:
        """The beginning that the state derives from; versions of another have another journal."""
        return self._about.epoch

    @property
    def definition(self) -> dict[str, Any]:
        """The definition of the state."""
        return self._about.definition

    @property
    def identity(self) -> str:
        """The identity of the state; "": it has none."""
        return self._about.identity

    @property
    def untouched(self) -> bool:
        """Whether no input was ever applied."""
        return not self.cursors and not self._backlog

    @property
    def positions(self) -> dict[str, Cursor]:
        """By partition, the position to read from: before the input still to be replayed."""
        positions = dict(self.cursors)
        for entry in (piece.entry for piece in self._backlog.all()):
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
        for entry in (piece.entry for piece in self._backlog.all()):
            if isinstance(entry, Range):
                known[entry.partition] = entry.at_stop()
        return known

    @property
    def replaying(self) -> bool:
        """Whether some of the journal is still to be applied."""
        return bool(self._backlog) or bool(self._handed)

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
        while self._backlog:
            piece = self._backlog.pop()
            entry = piece.entry
            if not isinstance(entry, Exclude):
                self._handed.append(piece)
                return entry
            self._excluded.add(Excluded(entry.partition, entry.line, entry.row))
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
        applied = batch
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
        outcome.joined, outcome.review = result.joined, result.review
        outcome.not_joined = len(result.rejected)
        if raised or tried.refused or result.rejected:  # in input order, however it was cut
            found = [*rejected, *tried.refused, *(error.rejected for error in raised)]
            placed = [(each.origin[2], each) for each in found] + result.rejected
            outcome.rejected = [each for _, each in sorted(placed, key=itemgetter(0))]
        if not self._relearning:  # else they were counted the first time
            self._count(outcome, given, known, tried)
        self.cursors[span.partition] = span.at_stop()
        self.data.add(span.partition, span.start, span.stop, batch, _lines(cursor, span, batch))
        if given.is_feedback:
            left_out = {*tried.raised, *_rows_at(applied, tried.refused)}
            kept = [i for i in range(len(applied)) if i not in left_out]
            self.data.add_feedback(applied.take(kept) if left_out else applied)
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
                if self._reject is None and not batch.is_feedback:
                    learned = self.trainer.seen - self._opened_at
                    around = others(self.trainer.learner, admitted, error.row, learned)
                raise EventError.of(admitted, error.row, error, around) from error
            predicted = admitted if step.events is None else step.events
            return Tried(step, predicted, rows_of(predicted, batch), {}, refused), []
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
        tried_on = len(given) if given.is_feedback else len(outcome.batch) + len(raised)
        outcome.found = Verdict(len(raised), len(odd), tried_on)
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
        pieces_left = bool(self._handed or self._backlog)
        following = math.inf
        if pieces_left:
            following = (self._handed[0] if self._handed else self._backlog.first()).seq
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
        kind = command_kind(order.kind)
        command = Command(
            order.id,
            order.kind,
            version=order.version,
            at=self._wall(),
            reason=order.reason,
            cut=order.cut,
            by=order.by,
        )
        loaded: Loaded | None = None
        try:
            if order.problem:
                raise RefusedError(order.problem)
            if kind.replaces:
                snapshot = prepared or self._fetch(order.version)
                header = _version_header(order.version, snapshot)
                command = self._known(command, order, header)
                loaded = self._loaded(order.version, snapshot, header)
            command = kind.plan(command, order, self._standing(oldest, loaded))
            if loaded is not None:
                command, loaded = self._fitted(command, loaded)
        except RefusedError as error:
            command, loaded = msgspec.structs.replace(command, refused=str(error)), None
        if kind.learns_all_again and not command.refused:
            self._journal.generation = self.generation + 1
        if command.since >= 0 and self._snapshot_end != self._journal.end:
            # The shard resumes from here if the input turns out to be another one (`abandon`).
            self._write_snapshot(self._snapshot(self._state()), trim=False)
        self._journal.commit([command])
        done = self._perform(command, self._journal.end - 1, loaded)
        if loaded is not None and not self.replaying:
            changed = command.amends or self.trainer.joiner is not None
            parts = self._state() if changed else dict(loaded.parts)  # not changed since
            self._write_snapshot(self._snapshot(parts))
        if done.done_at is not None:
            done.done_at = self._wall()
        return done

    def carry_out_again(self, command: Command) -> None:
        """Repeat the effect of a command in the journal, as `next_step` gave it."""
        piece = self._handed.popleft()
        assert piece.entry is command
        loaded = command_kind(command.kind).prepare_again(self, command, piece.seq)
        self._perform(command, piece.seq, loaded)
        self._replayed()

    def load_again(self, command: Command, seq: int) -> Loaded:
        """Load the state of a version again, as the command in the journal's record `seq` did."""
        try:
            snapshot = self._fetch(command.version)
            header = _version_header(command.version, snapshot)
            loaded = self._loaded(command.version, snapshot, header)
            if command.amends:
                loaded = loaded._replace(trainer=self._amended(loaded.trainer, command))
        except (RefusedError, MisfitError) as error:
            raise ResumeError(
                f"shard {self.name}: record {seq} of the journal put version "
                f"{command.version} in the place of the model: {error}"
            ) from None
        if header.digest != command.digest:
            raise ResumeError(
                f"shard {self.name}: record {seq} of the journal put version "
                f"{command.version} in the place of the model, which is another one now"
            )
        return loaded

    def amend_again(self, command: Command) -> Loaded:
        """Amend the state as the command in the journal did."""
        return Loaded(self._amended(self.trainer, command))

    def _amended(self, trainer: Trainer, command: Command) -> Trainer:
        return trainer.amended(unpacked(command.parts), self._modules)

    @property
    def may_abandon(self) -> bool:
        """Whether a command has input applied again, and no new input was applied since."""
        if not self._relearning:
            return False
        seq = self._relearning[-1].seq
        later = self._backlog.after(seq)
        return not any(
            isinstance(piece.entry, Range) for piece in (*self._handed, *later) if piece.seq > seq
        )

    def abandon(self, reason: str) -> None:
        """Journal that input cannot be applied again as a command requires.

        Open the shard anew afterwards: the command then counts as refused.
        """
        command = self._relearning[-1].command
        self._journal.generation = self.generation - command_kind(command.kind).learns_all_again
        self._journal.commit([Command.abandonment(command.id, self._wall(), reason)])

    def confirm(self, seqs: Collection[int]) -> None:
        """Note that the commands at these records, once in effect, are known elsewhere."""
        self.done = [d for d in self.done if d.seq not in seqs or d.done_at is None]

    def confirm_alarms(self, alarms: Collection[Raised]) -> None:
        """Note that alarms are known elsewhere."""
        self.alarms = [alarm for alarm in self.alarms if alarm not in alarms]

    def _known(self, command: Command, order: Order, header: VersionHeader) -> Command:
        """Refuse a version of another state unless the order names that state; note it if so."""
        other = header.identity
        if not other or not self.identity or other == self.identity:
            return command
        if other != order.origin:
            raise RefusedError(
                f"version {order.version} is of another state (identity {other[:12]}; the one "
                f"here: {self.identity[:12]}); `midstream restore {order.version} --from "
                f"{other[:12]}` puts it in the place of the model all the same"
            )
        return msgspec.structs.replace(command, origin=other)

    def _loaded(self, version: int, snapshot: Snapshot, header: VersionHeader) -> Loaded:
        if digest(snapshot.parts) != header.digest:
            raise RefusedError(f"version {version} cannot be loaded: its digest differs")
        try:
            trainer = Trainer.from_state(snapshot.parts, self._modules)
        except ValueError as error:
            raise RefusedError(f"version {version} cannot be loaded: {error}") from None
        return Loaded(trainer, header, snapshot.parts)

    def _standing(self, oldest: Callable[[], Mapping[str, int]], loaded: Loaded | None) -> Standing:
        return Standing(
            epoch=self.epoch,
            definition=self.definition,
            decoding=self._about.decoding,
            journal=self._journal,
            cursors=self.cursors,
            skips=self._skips,
            files=[partition for partition, lines in self.data.lines.items() if lines],
            refused=self._refused,
            oldest=oldest,
            version=None if loaded is None else loaded.header,
        )

    def _fitted(self, command: Command, loaded: Loaded) -> tuple[Command, Loaded]:
        """Amend a version's state that has another definition, unless the journal amends it."""
        header, intended = loaded.header, self._intended
        assert header is not None
        old = header.definition
        changes = foreseen(header, loaded.trainer, intended, old)
        refused = [change for change in changes if change.level == "refused"]
        if refused:
            raise RefusedError(
                f"version {command.version} is of another model: {in_words(refused)}"
            )
        if is_same(old, self.definition):
            return command, loaded
        if command.since == header.seq:  # see `replace`
            again = (piece.entry for piece in pieces(self._journal.records(command.since)))
            if is_same(in_force(again, old), self.definition):
                return command, loaded  # the journal amends it again
        parts = intended.blank().blank_parts(old)
        command = msgspec.structs.replace(
            command, definition=self.definition, parts=packed(parts), changes=changes
        )
        trainer = loaded.trainer.amended(parts, self._modules)
        return command, loaded._replace(trainer=trainer)

    def _perform(self, command: Command, seq: int, loaded: Loaded | None) -> Done:
        kind = command_kind(command.kind)
        self.generation += kind.learns_all_again and not command.refused
        position = {partition: cursor.offset for partition, cursor in self.cursors.items()}
        done = Done(
            command.brief(), seq, self.generation, position, self._lines(), done_at=command.at
        )
        if kind.numbered:
            self.last_command = command.id
            self._refused = command.id if command.refused else 0
        if kind.numbered or not self._relearning:  # else it was reported the first time
            self.done.append(done)
        if not command.refused:
            kind.perform(self, command, seq, loaded)
            if kind.name not in BUILTIN:  # it may have altered the learner
                self._careful.forget()
            if kind.replaces and self.replaying and command.since >= 0:
                done.done_at = None
                self._relearning.append(done)
        done.seen = self.trainer.seen
        return done

    # --- what commands do

    def make_version(self, command: Command, seq: int) -> None:
        """Write the state to the outbox, as this shard's part of a version."""
        parts = self._state()
        header = self._header(
            parts,
            VersionHeader,
            seq=seq + 1,
            made=command.version,
            kind=command.cut,
            reason=command.reason,
            created=command.at,
            metrics=self.trainer.metrics,
        )
        if self._outbox is not None:
            self._outbox.write(command.version, Snapshot(header.plain(), parts))
        self.parent, self._parent_data = command.version, self.data.copy()

    def redefine(self, command: Command, trainer: Trainer) -> None:
        """Replace the state by the amended one."""
        self.trainer = trainer
        self._careful.forget()
        self._about = msgspec.structs.replace(self._about, definition=command.definition)

    def replace(self, command: Command, seq: int, loaded: Loaded, *, keeps_left_out: bool) -> None:
        """Replace the state by that of a version.

        `keeps_left_out`: input that was left out before stays so, for a later rewind.
        """
        header = loaded.header
        assert header is not None
        waiting, self.trainer = self.trainer.joiner, loaded.trainer
        if command.since < 0 and self.trainer.joiner is not None and waiting is not None:
            self.trainer.joiner = waiting  # it belongs to the input, whose position stays
        definition = command.definition if command.amends else header.definition
        self._about = msgspec.structs.replace(self._about, definition=definition)
        self._careful.forget()
        self.recent.start_over()
        self.version = self.parent = command.version
        self.data = header.learned_from
        self._parent_data = self.data.copy()
        if command.since < 0:
            skips = list(header.skips) if header.epoch == self.epoch else []
            if keeps_left_out:
                skips += [skip for skip in self._skips if skip not in skips]
            self._skips = skips
            return
        self._skips = list(command.skips)
        self._excluded = self._to_come() | set(header.excluded)

        def before() -> Iterator[Record]:
            for record in self._journal.records(command.since):
                excluded = [entry for entry in record.entries if isinstance(entry, Exclude)]
                if record.seq < seq:
                    yield record
                elif record.seq > seq and len(excluded) < len(record.entries):
                    break
                # Also just after the command: events that the learner raised on while relearning.
                self._excluded |= {Excluded(e.partition, e.line, e.row) for e in excluded}

        found = pieces(before(), command.skips, start=command.start)
        if command.amends or command.since != header.seq:  # some amendments may be missing
            found = [piece for piece in found if not isinstance(piece.entry, Command)]
        self._is_careful |= bool(self._excluded)
        self.cursors = dict(command.start)
        self._backlog.push(found)

    # --- input

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

    def _to_come(self) -> set[Excluded]:
        """Return the exclusions that concern input still to come."""
        lines = {partition: cursor.line for partition, cursor in self.cursors.items()}
        return {e for e in self._excluded if e[1] >= lines.get(e[0], 0)}

    def _lines(self) -> dict[str, int]:
        """Return, by file, the line or row that comes next."""
        return {p: c.line for p, c in self.cursors.items() if self.data.lines.get(p)}

    def _state(self) -> dict[str, bytes]:
        """Return the trainer's state, and continue with the trainer restored from it.

        This proves each state readable and makes a resumed run go on exactly as this one. Also,
        CPython is faster with objects whose `__dict__` was never accessed.
        """
        parts = self.trainer.state()
        self.trainer = self.trainer.continued(parts, self._modules)
        if self._is_careful:
            self._careful.keep(parts["learner"])
        return parts

    def _header(self, parts: dict[str, bytes], of: type[H], **more: Any) -> H:
        known: dict[str, Any] = {
            "shard": self.name,
            "cursors": dict(self.cursors),
            "excluded": sorted(self._to_come()),
            "digest": digest(parts),
            "seen": self.trainer.seen,
            "learned": self.trainer.learned,
            "libraries": libraries(),
            "proof": self._proof(),
            "created": self._wall(),
            "version": self.version,
            "parent": self.parent,
            "generation": self.generation,
            "skips": list(self._skips),
            "data": plain(self.data),
            "parent_data": plain(self._parent_data),
        }
        return of(**(msgspec.structs.asdict(self._about) | known | more))

    def _proof(self) -> list[str]:
        try:
            return self.trainer.proof()
        except (LearnerError, ValueError):  # on an event it has learned; reported elsewhere
            return []

    def _snapshot(self, parts: dict[str, bytes]) -> Snapshot:
        header = self._header(
            parts,
            SnapshotHeader,
            applied=self.stepped,
            alarms=self.alarms,
            paused=self.paused,
            last_command=self.last_command,
            refused=self._refused,
            done=self.done,
            recent=msgspec.to_builtins(self.recent),
        )
        self._snapshot_at = self._clock()
        self._snapshot_seen = self.trainer.seen
        return Snapshot(header.plain(), parts)

    def _write_snapshot(self, snapshot: Snapshot, *, trim: bool = True) -> None:
        """Write a snapshot of the state at the journal's end, which must be committed."""
        snapshot.header["seq"] = self._journal.end
        oldest = self._snapshots.write(self._journal.end, snapshot)
        self._snapshot_end = self._journal.end
        if trim and self.keep_from > 0:
            self._journal.trim(int(min(oldest, self.keep_from)))


def _rows_at(batch: EventBatch, rejected: list[Rejected]) -> Iterator[int]:
    """Yield the rows of a batch that were rejected."""
    offsets = {each.origin[2] for each in rejected}
    return (row for row, offset in enumerate(batch.offsets.tolist()) if offset in offsets)


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


def _version_header(version: int, snapshot: Snapshot) -> VersionHeader:
    try:
        return VersionHeader.of(snapshot.header)
    except SnapshotError as error:
        raise RefusedError(f"version {version} cannot be loaded: {error}") from None
