"""A running shard: its input, trainer, journal, snapshots and outputs."""

import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from typing import Any, NamedTuple, TypeVar

from midstream.connectors.encode.choice import Choice
from midstream.connectors.encode.outputs import (
    encode_alarms,
    encode_predictions,
    encode_rejected,
    encode_review,
)
from midstream.connectors.input import Decoded, InputError, NoAnswerError, Work
from midstream.connectors.kafka.journal import KafkaJournal, Signature
from midstream.engine.basics.storage import BackgroundStorage, LocalStorage
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import NON_FINITE, Rejected
from midstream.engine.registry.artifacts import ArtifactError
from midstream.engine.registry.versions import UnknownVersionError
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import RefusedError
from midstream.engine.shard.header import Header
from midstream.engine.shard.journal import Command, FileJournal, Range, UnavailableError
from midstream.engine.shard.outbox import Outbox
from midstream.engine.shard.outcome import Outcome
from midstream.engine.shard.shard import Shard
from midstream.engine.state.snapshot import Snapshot, SnapshotFolder
from midstream.engine.training.rejecting import Verdict
from midstream.flows.claims.registry import open_registry
from midstream.flows.config.factory import model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.kind import Source
from midstream.flows.inputs.reading import Reader
from midstream.flows.inputs.topics import open_journal
from midstream.flows.logs import log
from midstream.flows.running.counters import Counters, Summary
from midstream.flows.running.definition import change_fields, make_trainer, state_identity
from midstream.flows.running.errors import AbandonedError, FailingError
from midstream.flows.running.failures import RejectedLog, Tally, failures, log_non_finite
from midstream.flows.running.outputs import file_name
from midstream.flows.running.registrar import Ready, Registrar
from midstream.flows.running.shares import Place

__all__ = ["Item", "RunningShard", "Shared"]

T = TypeVar("T")

_BLOCK_SECONDS = 0.2  # a much longer batch would delay commits, signals and reports
_NEAR = 20  # events before a due version that are read at once
_NEARER = 0.75  # of the events before a due version, if there are more
_RESCAN_SECONDS = 5.0
_CONFIRM_SECONDS = 10.0  # to wait for an answer before a commit


class Item(NamedTuple):
    """An item from the source: work, decoded or not; a command; or the end.

    An item without any of these is a tick.
    """

    work: Work | None = None
    decoded: Decoded | None = None
    command: Ready | Command | None = None
    end: bool = False


class Shared:
    """What the shards of a process share, during one execution of the dataflow.

    Attributes
    ----------
    settings
        The config.
    source
        Opens their inputs.
    until_eof
        Whether the run ends at the end of the input.
    identity, fresh, careful, amend
        As in `Shard.open`.
    signatures
        As in `KafkaJournal`, for all executions of the process.
    summary
        Counts of what is committed.
    tallies
        By shard, the learner's failures on committed events, over all executions.
    ahead
        Reads and decodes the next block while one is learned; None: no read-ahead.
    registrar
        The registrar of the process; None: there are no versions.
    fragile
        Where an earlier process died: input up to there is learned in small pieces.
    failure
        The gravest exception so far; after it nothing more is learned.
    """

    def __init__(
        self,
        settings: Settings,
        summary: Summary,
        *,
        until_eof: bool,
        fresh: str = "",
        careful: bool = False,
        amend: bool = False,
        signatures: dict[str, Signature] | None = None,
        tallies: dict[str, Tally] | None = None,
        fragile: Place | None = None,
    ) -> None:
        self.settings = settings
        self.summary = summary
        self.until_eof = until_eof
        self.fresh = fresh
        self.careful = careful
        self.amend = amend
        self.signatures = {} if signatures is None else signatures
        self.tallies = {} if tallies is None else tallies
        self.fragile = fragile
        self.identity = ""
        self.source: Source | None = None
        self.ahead: ThreadPoolExecutor | None = None
        self.registrar: Registrar | None = None
        self.rejected_log = RejectedLog()
        self.failure: BaseException | None = None

    def check_outage(self) -> None:
        """Raise an outage that another shard has found: it is waited for once."""
        if isinstance(self.failure, UnavailableError | NoAnswerError):
            raise self.failure


class RunningShard:
    """A running shard: its input, trainer, journal, snapshots and outputs.

    Parameters
    ----------
    shared
        What it shares with the other shards of the process.
    name
        Its number; the process holds its lock.
    part
        The partition that it reads; None: all of them.
    added
        Whether the partition was added after the state was begun.
    """

    def __init__(self, shared: Shared, name: str, part: str | None, *, added: bool = False) -> None:
        settings = shared.settings
        self._shared = shared
        self.name = name
        assert shared.source is not None, "nothing is open"
        self.reader = Reader(settings, shared.source, part, added=added)
        self.input = self.reader.input
        self.block_bytes = 1024  # size of a read; adapts to the learner's speed
        self._most_bytes = 2**62  # limit of a read, up to where a version is due
        self.held = False  # whether input waits for a version to be made of what was read
        self.suffix = "" if settings.one_shard else f"-{name}"
        self._choice = Choice(settings.output.share, settings.output.only)
        folder = settings.state_path / "shards" / name
        self._folder = LocalStorage(folder)
        self._outbox = Outbox(self._folder)
        self._outputs: LocalStorage | None = None
        self.journal: FileJournal | KafkaJournal
        if settings.journal_topic is not None:
            self.journal = open_journal(settings, name, shared.signatures)
        else:
            if self.output_names():
                self._outputs = BackgroundStorage(settings.output_path)
            self.journal = FileJournal(
                self._folder,
                self._outputs,
                names=self.output_names(),
                place=os.path.relpath(settings.output_path, settings.root),
            )
        self.shard = Shard.open(
            name,
            lambda: make_trainer(settings),
            self.journal,
            SnapshotFolder(self._folder, settings.state.keep),
            decoding=settings.decoding(),
            **state_identity(settings),
            modules=model_modules(settings),
            fresh=shared.fresh,
            identity=shared.identity,
            snapshot_events=settings.state.snapshot_events,
            snapshot_seconds=settings.state.snapshot_seconds,
            commit_seconds=settings.state.commit_seconds,
            fetch=self._fetch_version,
            outbox=self._outbox if settings.versions.enabled else None,
            keep_from=0 if settings.versions.enabled else math.inf,
            check_input=self._confirm,
            reject=self._encode_rejected if settings.model.on_error == "reject" else None,
            careful=shared.careful,
            amend=shared.amend,
            error_limit=settings.model.error_limit,
        )
        self._log_amendments()
        for note in self.shard.notes:
            log.warning("snapshot_unusable", shard=name, reason=note)
        self._log_lost_outputs()
        self.input.seek(self.shard.positions, self.shard.known)
        self._counts, self._tally = Counters(), Tally()  # of what is not committed yet
        self._settled = self.journal.end
        self._published: dict[str, int] = {}  # by partition, up to where
        self._committed: dict[str, int] = {}
        self._to_begin = False
        if not self.input.names and not shared.until_eof:
            kind = kind_of(settings.input)
            note = f"no {kind.partition}s there yet"
            log.info("waiting", shard=name, input=kind.identity(settings), note=note)
        self._obeying = False  # a command is on its way
        self._next: Range | Command | None = self.shard.next_step()  # from the journal
        if self._next is None:
            self._begin()
        if self._next is not None:
            log.info("replay_begins", shard=name, snapshot_at=self.shard.trainer.seen)
        self._rescanned_at = time.monotonic()
        self._waiting: set[str] = set()
        self._fetched: Future[Item] | None = None  # the next block, if it is read ahead

    def _confirm(self) -> None:
        """Raise InputError if what was read may belong to another input."""
        self._shared.check_outage()
        self.input.confirm(_CONFIRM_SECONDS)

    def _begin(self) -> None:
        """Journal where reading begins, if the input needs it."""
        for work in self.input.begin(untouched=self.shard.untouched):
            nothing = EventBatch([], [], partition=work.span.partition, index=-1)
            self.shard.publish(self.shard.step(work.span, nothing, []), {})
        self.shard.commit()
        self._published = {name: cursor.offset for name, cursor in self.shard.cursors.items()}
        self._committed = dict(self._published)

    def _log_amendments(self) -> None:
        """Log changes of the state's definition that take effect."""
        for change in self.shard.amended:
            log.info("amended", shard=self.name, **change_fields(change))
        self.shard.amended.clear()

    def _log_lost_outputs(self) -> None:
        for output, left in self.journal.lost_outputs.items():
            action = "a new one is begun; what was in it is not written again"
            if left:
                action = (
                    f"what follows is written behind the {left:,} bytes that are in it now; the "
                    "line where it was cut may be broken, and what was cut off is not written again"
                )
            log.warning(
                "output_gone",
                shard=self.name,
                output=str(self._shared.settings.output_path / output),
                note="it was moved, removed or cut by somebody else",
                action=action,
            )
        self.journal.lost_outputs.clear()

    def output_names(self) -> list[str]:
        """Names of the output files that this shard writes."""
        return [file_name(kind, self.suffix) for kind in self._shared.settings.outputs]

    def _by_file(self, data: Mapping[str, bytes]) -> dict[str, bytes]:
        if isinstance(self.journal, FileJournal):
            return {file_name(kind, self.suffix): lines for kind, lines in data.items()}
        return dict(data)

    def _encode_rejected(self, rejected: list[Rejected]) -> dict[str, bytes]:
        wanted = self._shared.settings.output.rejected
        return self._by_file({"rejected": encode_rejected(rejected)} if wanted else {})

    def next(self) -> Item:
        """Return what to apply next: first from the journal, then commands and new input."""
        if self._obeying:  # what comes next depends on it
            return Item()
        if isinstance(self._next, Command):
            self._obeying = True
            return Item(command=self._next)
        if self._next is not None:
            try:
                work = self._reading(self.input.replay, self._next, self.block_bytes)
            except NoAnswerError:
                raise  # it may exist later
            except InputError as error:
                if not self.shard.may_abandon:
                    raise
                self.shard.abandon(f"the input is not what it was: {error}")
                raise AbandonedError(f"shard {self.name}: {error}") from None
            if work is not None and work.final:
                self._go_on()
            return Item(work)
        if self._shared.registrar is not None and not self.shard.replaying:
            waits = self._shared.registrar.waits()  # before it takes the command that it waits for
            command = self._shared.registrar.take(self.name)
            if command is not None:
                self._obeying = True
                return Item(command=command)
            self.held = waits
            if waits:
                return Item()
        if self._to_begin and not self.shard.replaying:
            self._to_begin = False
            self._begin()
        if self.shard.paused:
            return Item()
        if self._shared.ahead is None:
            found = Item(self.input.read(min(self.block_bytes, self._most_bytes)))
        else:
            found = self._fetched.result() if self._fetched else self._reading(self._fetch)
            self._fetched = None if found.work is None else self._shared.ahead.submit(self._fetch)
        for name in sorted(self.input.waiting - self._waiting):
            log.info("input_unfinished", shard=self.name, input=name, note="it is tried again")
        self._waiting = set(self.input.waiting)
        block = None if found.work is None else found.work.block
        if block is not None and not block.size:  # its records were deleted
            self.shard.snapshot_soon()
        if found.work is None and not self._shared.until_eof:
            now = time.monotonic()
            if now - self._rescanned_at >= _RESCAN_SECONDS:
                self._rescanned_at = now
                for name in self.input.rescan():
                    log.info("input_found", shard=self.name, input=name)
        return found

    def _go_on(self) -> None:
        """Determine what to apply next from the journal."""
        self._next = self.shard.next_step()
        if self._next is None:
            log.info("replay_ends", shard=self.name)
            self._log_amendments()
            self._to_begin = True

    def obey(self, command: Ready | Command) -> None:
        """Carry out a command, after everything before it was published; or replay one."""
        self._obeying = False
        if isinstance(command, Command):
            self.shard.carry_out_again(command)
            if self.shard.replaying and command.since >= 0 and not command.refused:
                self._read_again()
            self._go_on()
            return
        registrar = self._shared.registrar
        assert registrar is not None, "a command, and nobody who gave it"
        try:
            done = self.shard.carry_out(
                command.order,
                oldest=lambda: self._reading(self.input.oldest),
                prepared=command.snapshot,
            )
        except NoAnswerError as error:  # nothing was done
            log.warning("command_waits", shard=self.name, reason=str(error))
            registrar.put_back(self.name, command)
            return
        if done is None:
            return
        what = {"shard": self.name, "kind": done.command.kind, "id": done.command.id}
        if done.command.refused:
            log.warning("command_refused", **what, reason=done.command.refused)
        else:
            log.info("command", **what, version=done.command.version, seen=done.seen)
        if command_kind(done.kind).makes_version and not done.command.refused:
            registrar.made(self.name, done.seq + 1)
        registrar.visit(self.shard)
        if self.shard.replaying:
            log.info("relearning", shard=self.name, version=done.command.version)
            self._read_again()
            self._go_on()

    def _read_again(self) -> None:
        """Read again from the position of the shard."""
        if self._fetched is not None:
            wait([self._fetched])
            self._fetched = None
        self._reading(self.input.rewind, self.shard.positions)

    def last_items(self) -> list[Item]:
        """Return the last items of a run: a last version, if one is due, and the end."""
        items = []
        idle = self._next is None and not self._obeying and not self.shard.replaying
        if self._shared.registrar is not None and idle:
            command = self._shared.registrar.take(self.name, only="snapshot")
            if command is not None:
                items.append(Item(command=command))
        return [*items, Item(end=True)]

    def _fetch_version(self, version: int) -> Snapshot:
        """Return this shard's part of a version."""
        with suppress(FileNotFoundError):  # it may be on its way to the registry
            if version in self._outbox.versions():
                return self._outbox.read(version)
        with closing(open_registry(self._shared.settings)) as registry:
            try:
                return registry.read(version, self.name)
            except (ArtifactError, UnknownVersionError) as error:
                raise RefusedError(str(error)) from None

    def _reading(self, read: Callable[..., T], *arguments: Any) -> T:
        """Call a function that reads, in the reading thread if there is one."""
        if self._shared.ahead is None:
            return read(*arguments)
        return self._shared.ahead.submit(read, *arguments).result()

    def _fetch(self) -> Item:
        """Read and decode a block."""
        work = self.input.read(min(self.block_bytes, self._most_bytes))
        return Item(work, None if work is None else self.reader.decode(work))

    @property
    def ended(self) -> bool:
        """Whether all input has been read and no more will come."""
        if self._next is not None or self._obeying:
            return False
        return self._shared.until_eof if self.shard.paused else self.input.ended

    def learn(self, work: Work, decoded: Decoded) -> Outcome:
        """Apply a block; adapt the size of reads to the time it took."""
        begun = time.perf_counter()
        outcome = self.shard.step(work.span, decoded.batch, decoded.rejected, final=work.final)
        taken = time.perf_counter() - begun
        self._shared.rejected_log.add(outcome.raised)
        size = work.block.size
        if size:
            fitting = size * _BLOCK_SECONDS / max(taken, 1e-6)
            most = self.reader.block_bytes
            self.block_bytes = int(min(max(fitting, 1024), 2 * self.block_bytes, most))
        fragile = self._shared.fragile
        if fragile is not None and (fragile.shard, fragile.partition) == (
            self.name,
            work.span.partition,
        ):
            if Place.of(self.name, work).last < fragile.last:
                self.block_bytes = 1024  # to find out what the process dies of
            else:
                self._shared.fragile = None
        registrar = self._shared.registrar
        if outcome.live and registrar is not None:
            registrar.learned(self.shard)
            left, n = registrar.left, len(decoded.batch)
            if 0 < left < math.inf and n:  # up to where a version is due
                # Estimated from the last events; the next may be smaller, so first come close.
                near = left if left <= _NEAR else _NEARER * left
                self._most_bytes = int(size / n * near) + 1
        return outcome

    def publish(self, outcome: Outcome) -> None:
        """Encode a batch's outputs, and pass them to the shard to be committed.

        Raises
        ------
        FailingError
            If the learner failed on too many recent events; these are committed by then.
        """
        registrar = self._shared.registrar
        if registrar is not None and not outcome.live:
            registrar.visit(self.shard)
        if not outcome.live:
            self._counts.rejected += len(outcome.raised)
            return
        self._published[outcome.span.partition] = outcome.span.stop
        settings, count = self._shared.settings, self._counts
        data = {}
        if settings.output.predictions:
            batch, predictions = self._choice.apply(outcome.batch, outcome.predictions)
            data["predictions"] = encode_predictions(
                batch,
                predictions,
                task=settings.model.task,
                model=settings.name,
                version=self.shard.version,
                role="champion",
            )
            count.predictions += len(batch)
        if settings.output.rejected:
            data["rejected"] = encode_rejected(outcome.rejected)
        if settings.output.alarms:
            data["alarms"] = encode_alarms(outcome.alarms, settings.name, self.name)
        if outcome.review is not None and "review" in settings.outputs:
            data["review"] = encode_review(*outcome.review, task=settings.model.task)
        self.shard.publish(outcome, self._by_file(data))
        if registrar is not None and registrar.is_due(outcome.alarms):
            self.shard.commit()
            registrar.visit(self.shard)
        count.count(outcome.batch, outcome, len(outcome.rejected))
        self._tally.add(outcome.found, failures(outcome.batch, outcome.raised, outcome.odd))
        for alarm in outcome.alarms:
            if alarm.kind == NON_FINITE:
                log_non_finite(
                    int(alarm.value), model=settings.name, shard=self.name, position=alarm.position
                )
                continue
            log.warning(
                alarm.kind, model=settings.name, shard=self.name, detector=alarm.detector,
                position=alarm.position, value=round(alarm.value, 6),
            )  # fmt: skip
        if outcome.snapshot is not None:
            log.info("snapshot", shard=self.name, seen=Header.of(outcome.snapshot.header).seen)
        if outcome.verdict is not None:
            self.shard.commit()
            self.settle()
            limit = self._shared.settings.model.error_limit
            raise self._failing(self.shard.recent.now(outcome.verdict, limit))

    def _failing(self, found: Verdict) -> FailingError:
        shard = "" if self._shared.settings.one_shard else f"shard {self.name}: "
        limit = self._shared.settings.model.error_limit
        return self._shared.tallies.get(self.name, Tally()).error(found, limit, shard)

    def judge(self) -> FailingError | None:
        """At the end of the input, return why the run must not count as successful.

        Judge its own events, or if there are none, those before.
        """
        self.shard.commit()
        self.settle()
        mine = self._shared.tallies.get(self.name, Tally()).found
        found = mine if mine.events else self.shard.recent.last
        if found.share > self._shared.settings.model.error_limit:
            return self._failing(found)
        if mine.events:
            self.shard.recent.forgive()
        return None

    def settle(self) -> None:
        """After a commit, add its counts, and report to the input what was learned."""
        if self._shared.registrar is not None:
            self._shared.registrar.visit(self.shard)
        if self.journal.end != self._settled:
            self._settled = self.journal.end
            self._committed = dict(self._published)
            self._log_lost_outputs()
            counts, self._counts = self._counts, Counters()
            self._shared.summary.add(counts)
            tally, self._tally = self._tally, Tally()
            self._shared.tallies.setdefault(self.name, Tally()).join(tally)
        if not self.shard.replaying:
            self.input.settle(self._committed)

    def close(self) -> None:
        """Close files; what is uncommitted or read ahead is left to the next resume."""
        if self._fetched is not None:
            wait([self._fetched])
        if self.input.ended:
            self.reader.warn_without_labels()
        self.input.close()
        if isinstance(self.journal, KafkaJournal):
            self.journal.close()
        self._folder.close()
        if self._outputs is not None:
            self._outputs.close()
