"""Shards at work: each has a room, with its input, trainer, journal, snapshots and outputs.

An exception raised inside a step of the dataflow would reach the operator as a panic of the
runtime, so what runs in steps is guarded: the first one is kept (`Run.failure`), what is in flight
passes unused, and `midstream.flows.running.online.run` raises it at the end.
"""

import math
import operator
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import msgspec

from midstream.connectors.encode.choice import Choice
from midstream.connectors.encode.outputs import encode_alarms, encode_predictions, encode_rejected
from midstream.connectors.input import Decoded, InputError, Work
from midstream.connectors.kafka.consumer import NoAnswerError
from midstream.connectors.kafka.journal import KafkaJournal, Signature
from midstream.engine.basics.storage import BackgroundStorage, LocalStorage, raise_limit
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import NON_FINITE, Rejected
from midstream.engine.registry.artifacts import ArtifactError
from midstream.engine.registry.versions import UnknownVersionError
from midstream.engine.shard.commands import RefusedError
from midstream.engine.shard.journal import Command, FileJournal, Range, UnavailableError
from midstream.engine.shard.outbox import Outbox
from midstream.engine.shard.shard import EventError, Outcome, ResumeError, Shard
from midstream.engine.state.changes import Change
from midstream.engine.state.snapshot import Snapshot, SnapshotFolder
from midstream.engine.training.rejecting import Verdict
from midstream.engine.training.replay import Reservoir
from midstream.engine.training.trainer import Trainer
from midstream.flows.claims.identity import settle
from midstream.flows.claims.locks import StateLocks
from midstream.flows.claims.registry import open_registry
from midstream.flows.config.factory import make_model, model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.kind import Source
from midstream.flows.inputs.reading import Reader
from midstream.flows.inputs.topics import open_journal
from midstream.flows.logs import log
from midstream.flows.running.errors import AbandonedError, FailingError, RunError
from midstream.flows.running.numbers import ShardNumbers
from midstream.flows.running.registrar import Ready, Registrar

__all__ = [
    "KINDS",
    "REPLACES",
    "SESSION",
    "WHOLE",
    "AbandonedError",
    "FailingError",
    "Item",
    "Place",
    "RejectedLog",
    "Room",
    "Run",
    "RunError",
    "Share",
    "Summary",
    "Tally",
    "failures",
    "file_name",
    "judge_input",
    "make_trainer",
    "said_of_state",
]

T = TypeVar("T")

KINDS = ("predictions", "rejected", "alarms")
"""Of output."""
_BLOCK_SECONDS = 0.2  # a batch that takes much longer would delay commits, signals and reports
_DESCRIPTORS = 64  # that a process has open besides its input
_JUDGED = 20  # events of a run that are enough to tell of its input
_NEAR = 20  # events before a version is due, which are read at once
_NEARER = 0.75  # of those that are left until then, where they are more
_FEW = 4  # shards that are opened one after the other
_OPENERS = 16
_RESCAN_SECONDS = 5.0
_CONFIRM_SECONDS = 10.0  # to wait for an answer that a commit waits for
_REPORT_SECONDS = 10.0
_TOLD = 20  # events that the learner raised on, of each of which the log tells within that
_SHOWN = 200  # characters of what it raised


class Summary(msgspec.Struct):
    """What a run did. Counts are of this run; metrics are over all that the model has seen.

    `seconds` is from the first read to the last commit and snapshot, start-up not included.
    `seen` is how many events the model has seen in all, `resumed_at` how many before this run.
    `non_finite` predictions were not finite numbers, and `too_large` labels are beyond ±1e140:
    both are left out of the metrics.
    """

    events: int = 0
    learned: int = 0
    rejected: int = 0
    predictions: int = 0
    alarms: int = 0
    non_finite: int = 0
    too_large: int = 0
    seconds: float = 0.0
    events_per_second: float = 0.0
    metrics: dict[str, float] = {}
    digest: dict[str, str] = {}
    seen: int = 0
    resumed_at: int = 0

    def count(self, other: "Summary") -> None:
        """Add what else was done."""
        self.events += other.events
        self.learned += other.learned
        self.rejected += other.rejected
        self.predictions += other.predictions
        self.alarms += other.alarms
        self.non_finite += other.non_finite
        self.too_large += other.too_large


class Share(NamedTuple):
    """Which shards are those of one process: every `of`-th, from number `first` on."""

    first: int = 0
    of: int = 1

    def has(self, shard: str) -> bool:
        """Whether a shard, by its name, is of this share."""
        return int(shard) % self.of == self.first


SESSION = "MIDSTREAM_SESSION"
"""In the environment of processes under a supervisor: what those of one have in common."""
REPLACES = "MIDSTREAM_REPLACES"
"""Likewise: 1 in one that takes the place of another."""
WHOLE = Share()
"""All of them."""


class Place(msgspec.Struct, frozen=True):
    """What of the input a process is at: by `unit`, "line", "row" or "offset", first and last."""

    shard: str
    partition: str
    unit: str
    first: int
    last: int

    @classmethod
    def of(cls, shard: str, work: Work) -> "Place":
        """Return the place of a block."""
        block = work.block
        return cls(shard, work.span.partition, block.unit, block.first, block.last)

    def common(self, other: "Place") -> "Place | None":
        """Return what is in both; None if nothing is."""
        if (self.shard, self.partition, self.unit) != (other.shard, other.partition, other.unit):
            return None
        first, last = max(self.first, other.first), min(self.last, other.last)
        return msgspec.structs.replace(self, first=first, last=last) if first <= last else None

    def __str__(self) -> str:
        only = self.first == self.last
        which = f"{self.first:,}" if only else f"{self.first:,} to {self.last:,}"
        return f"shard {self.shard}, {self.partition}, {self.unit}{'s' * (not only)} {which}"


class Item(NamedTuple):
    """What flows from the source: work, decoded already or not; a command; or the end.

    With none of these it is a tick.
    """

    work: Work | None = None
    decoded: Decoded | None = None
    command: Ready | Command | None = None
    end: bool = False


def make_trainer(settings: Settings) -> Trainer:
    """Return a new trainer with the learner and all else that the config names.

    Raises
    ------
    ConfigError
        If the learner cannot be made, does not fit the task, or has an unset seed.
    """
    replay = settings.replay
    try:
        new = Trainer(
            make_model(settings),
            task=settings.model.task,
            metrics=settings.metrics.names,
            window=settings.metrics.window,
            fading=settings.metrics.fading,
            drift=settings.drift.options(),
            direction=settings.drift.direction,
            replay=Reservoir(replay.capacity, max_bytes=replay.max_bytes, seed=replay.seed),
            labels=settings.model.labels,
            modules=model_modules(settings),
        )
        # As a snapshot would give it back: a set that was built otherwise is walked otherwise.
        return Trainer.from_state(new.state(), model_modules(settings))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{settings.file}: model.learner: {error}") from error


def judge_input(summary: Summary, settings: Settings) -> None:
    """Raise if more of the input was rejected than `model.error_limit` allows.

    A few events that a model is given beside what it has learned already are not judged.

    Raises
    ------
    FailingError
        At the end of the input; all of it that is sound was learned.
    """
    given, limit = summary.events + summary.rejected, settings.model.error_limit
    if summary.rejected > limit * given and (given >= _JUDGED or not summary.seen):
        raise FailingError(
            f"{summary.rejected:,} of {given:,} events of this run were rejected "
            f"(model.error_limit = {limit:g}); `midstream check` says why, and so does the "
            "output `rejected` of a run"
        )


def told_of(change: Change) -> dict[str, str]:
    """Return what a log says of a change of the state's definition."""
    told = {"part": change.part, "what": change.what, "saved": change.before, "now": change.after}
    return told | ({"effect": change.effect} if change.effect else {})


def said_of_state(settings: Settings) -> dict[str, str]:
    """Return what a config says of state but its trainer: `source`, `shards` of `Shard.open`."""
    return {
        "source": kind_of(settings.input).identity(settings),
        "shards": "one for all" if settings.one_shard else "one for each partition",
    }


def file_name(kind: str, suffix: str) -> str:
    """Return the name of the file that a kind of output is written to."""
    return f"{kind}{suffix}.jsonl"


def log_non_finite(count: int, **where: Any) -> None:
    """Tell of predictions that are not finite numbers."""
    log.warning(
        "predictions_not_finite", count=count, **where,
        note="left out of the metrics; `midstream check` tells what can be done",
    )  # fmt: skip


class RejectedLog:
    """Tells of events that the learner raised on: of each, or where they are many, how many."""

    def __init__(self) -> None:
        self._begun = -math.inf
        self._count = 0

    def add(self, errors: Sequence[EventError]) -> None:
        """Tell of events that were rejected."""
        for error in errors:
            now = time.monotonic()
            if now - self._begun >= _REPORT_SECONDS:
                self.close()
                self._begun, self._count = now, 0
            self._count += 1
            if self._count <= _TOLD:
                log.warning("event_rejected", origin=error.where, reason=error.reason)

    def close(self) -> None:
        """Tell how many there were besides."""
        if self._count > _TOLD:
            log.warning("events_rejected", more=self._count - _TOLD, seconds=_REPORT_SECONDS)
        self._count = 0


class Tally:
    """On how many events of a run a learner failed, and which were the first and the last."""

    def __init__(self) -> None:
        self.found = Verdict(0, 0, 0)
        self._first = self._last = ""

    def add(self, found: Verdict, failed: Sequence[str]) -> None:
        """Count events, of which some failed: where and how."""
        self.found = Verdict(*map(operator.add, self.found, found))
        if failed:
            self._first, self._last = self._first or failed[0], failed[-1]

    def join(self, other: "Tally") -> None:
        """Add what was counted later."""
        self.add(other.found, [other._first, other._last] if other._first else [])

    def error(self, found: Verdict, limit: float, shard: str = "") -> FailingError:
        """Return the error that says that a learner failed on so many events."""
        did = []
        if found.raised:
            did.append(f"raised on {found.raised:,}")
        if found.non_finite:
            did.append(f"predicted nan or infinity for {found.non_finite:,}")
        which = f"first: {self._first}; last: {self._last}" if self._first else "before this run"
        return FailingError(
            f"{shard}the learner {' and '.join(did)} of the last {found.events:,} events "
            f"(model.error_limit = {limit:g}); {which}; nothing more is learned until the learner "
            "or the input is mended, or the limit is raised"
        )


def _gravity(failure: BaseException | None) -> int:
    """Return what counts among the failures of several shards: the gravest.

    What the learner raises on it raises on again, and an outage is waited for; a run that was shut
    out must not overlook that, or it would take over again.
    """
    if failure is None:
        return 0
    if isinstance(failure, EventError):
        return 1
    return 2 if isinstance(failure, UnavailableError | NoAnswerError) else 3


def failures(batch: EventBatch, errors: Sequence[EventError], odd: Sequence[int]) -> list[str]:
    """Return where and how a learner failed, in the order of the input.

    Parameters
    ----------
    batch
        What it learned.
    errors
        Of events that it raised on.
    odd
        The rows of the batch for which it predicted what is not finite.
    """
    if not (errors or odd):
        return []
    failed = [(e.origin[2], f"{e.where}: {e.reason[:_SHOWN]}") for e in errors]
    for row in odd:
        line, place = int(batch.offsets[row]), batch.row(row)
        where = f"{batch.place}:{line}" + (f":{place}" if place >= 0 else "")
        failed.append((line, f"{where}: nan or infinity"))
    return [text for _, text in sorted(failed, key=operator.itemgetter(0))]


class Room:
    """One shard in the run: its input, decoders, trainer, journal, snapshots and outputs."""

    def __init__(self, run: "Run", name: str, part: str | None) -> None:
        settings = run.settings
        run.locks.take(name)
        self.run = run
        self.name = name
        assert run.source is not None, "nothing is open"
        self.reader = Reader(settings, run.source, part, added=name in run.added)
        self.input = self.reader.input
        self.block_bytes = 1024  # how much is read at once; adapts to the learner's speed
        self._most_bytes = 2**62  # of that, up to where a version is due
        self.held = False  # whether input waits for a version that is to be made of what was read
        self.suffix = "" if run.single else f"-{name}"
        self._choice = Choice(settings.output.share, settings.output.only)
        folder = settings.state_path / "shards" / name
        self._folder = LocalStorage(folder)
        self._outbox = Outbox(self._folder)
        self._outputs: LocalStorage | None = None
        self.journal: FileJournal | KafkaJournal
        if settings.journal_topic is not None:
            self.journal = open_journal(settings, name, run.signatures)
        else:
            if self.output_names():
                self._outputs = BackgroundStorage(settings.output_path)
            self.journal = FileJournal(
                self._folder,
                self._outputs,
                names=self.output_names(),
                place=os.path.relpath(settings.output_path, settings.root),
            )
        said = said_of_state(settings)
        self.shard = Shard.open(
            name,
            lambda: make_trainer(settings),
            self.journal,
            SnapshotFolder(self._folder, settings.state.keep),
            decoding=settings.decoding(),
            source=said["source"],
            shards=said["shards"],
            modules=model_modules(settings),
            fresh=run.fresh,
            amend=run.amend,
            identity=run.identity,
            snapshot_events=settings.state.snapshot_events,
            snapshot_seconds=settings.state.snapshot_seconds,
            commit_seconds=settings.state.commit_seconds,
            fetch=self._fetch_version,
            outbox=self._outbox if settings.versions.enabled else None,
            keep_from=0 if settings.versions.enabled else math.inf,
            check_input=self._confirm,
            reject=self._encode_rejected if settings.model.on_error == "reject" else None,
            careful=run.careful,
            error_limit=settings.model.error_limit,
        )
        self._tell_of_amendments()
        for note in self.shard.notes:
            log.warning("snapshot_unusable", shard=name, reason=note)
        self._tell_of_lost_outputs()
        self.input.seek(self.shard.positions, self.shard.known)
        self._counts, self._tally = Summary(), Tally()  # of what is not committed yet
        self._settled = self.journal.end
        self._published: dict[str, int] = {}  # by partition, up to where
        self._committed: dict[str, int] = {}
        self._to_begin = False
        if not self.input.names and not run.until_eof:
            kind = kind_of(settings.input)
            note = f"no {kind.partition}s there yet"
            log.info("waiting", shard=name, input=kind.identity(settings), note=note)
        self._obeying = False  # a command is on its way
        self._next: Range | Command | None = self.shard.next_step()  # of the journal
        if self._next is None:
            self._begin()
        if self._next is not None:
            log.info("replay_begins", shard=name, snapshot_at=self.shard.trainer.seen)
        self._rescanned_at = time.monotonic()
        self._waiting: set[str] = set()
        self._fetched: Future[Item] | None = None  # the next block, if it is read ahead

    def _confirm(self) -> None:
        """Raise InputError if what was read may not be of the input that it was taken for."""
        self.run.check_outage()
        self.input.confirm(_CONFIRM_SECONDS)

    def _begin(self) -> None:
        """Journal where reading begins, where the input says so."""
        for work in self.input.begin(untouched=self.shard.untouched):
            nothing = EventBatch([], [], partition=work.span.partition, index=-1)
            self.shard.publish(self.shard.step(work.span, nothing, []), {})
        self.shard.commit()
        self._published = {name: cursor.offset for name, cursor in self.shard.cursors.items()}
        self._committed = dict(self._published)

    def _tell_of_amendments(self) -> None:
        """Log what of the state is defined otherwise from now on."""
        for change in self.shard.amended:
            log.info("amended", shard=self.name, **told_of(change))
        self.shard.amended.clear()

    def _tell_of_lost_outputs(self) -> None:
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
                output=str(self.run.settings.output_path / output),
                note="it was moved, removed or cut by somebody else",
                action=action,
            )
        self.journal.lost_outputs.clear()

    def output_names(self) -> list[str]:
        """Names of the output files that this shard writes."""
        output = self.run.settings.output
        return [file_name(kind, self.suffix) for kind in KINDS if getattr(output, kind)]

    def _by_file(self, data: Mapping[str, bytes]) -> dict[str, bytes]:
        if isinstance(self.journal, FileJournal):
            return {file_name(kind, self.suffix): lines for kind, lines in data.items()}
        return dict(data)

    def _encode_rejected(self, rejected: list[Rejected]) -> dict[str, bytes]:
        wanted = self.run.settings.output.rejected
        return self._by_file({"rejected": encode_rejected(rejected)} if wanted else {})

    def next(self) -> Item:
        """Return what is to be applied next: of the journal first, then commands and new input."""
        if self._obeying:  # what comes next depends on it
            return Item()
        if isinstance(self._next, Command):
            self._obeying = True
            return Item(command=self._next)
        if self._next is not None:
            try:
                work = self._reading(self.input.replay, self._next, self.block_bytes)
            except InputError as error:
                if not self.shard.may_abandon:
                    raise
                self.shard.abandon(f"the input is not what it was: {error}")
                raise AbandonedError(f"shard {self.name}: {error}") from None
            if work is not None and work.final:
                self._go_on()
            return Item(work)
        if self.run.registrar is not None and not self.shard.replaying:
            waits = self.run.registrar.waits()  # before the command is there that it waits for
            command = self.run.registrar.take(self.name)
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
        if self.run.ahead is None:
            found = Item(self.input.read(min(self.block_bytes, self._most_bytes)))
        else:
            found = self._fetched.result() if self._fetched else self._reading(self._fetch)
            self._fetched = None if found.work is None else self.run.ahead.submit(self._fetch)
        for name in sorted(self.input.waiting - self._waiting):
            log.info("input_unfinished", shard=self.name, input=name, note="it is tried again")
        self._waiting = set(self.input.waiting)
        block = None if found.work is None else found.work.block
        if block is not None and not block.size:  # what was in it is deleted
            self.shard.snapshot_soon()
        if found.work is None and not self.run.until_eof:
            now = time.monotonic()
            if now - self._rescanned_at >= _RESCAN_SECONDS:
                self._rescanned_at = now
                for name in self.input.rescan():
                    log.info("input_found", shard=self.name, input=name)
        return found

    def _go_on(self) -> None:
        """See what of the journal is to be applied next."""
        self._next = self.shard.next_step()
        if self._next is None:
            log.info("replay_ends", shard=self.name)
            self._tell_of_amendments()
            self._to_begin = True

    def obey(self, command: Ready | Command) -> None:
        """Carry a command out, now that all before it is put out; or one of the journal again."""
        self._obeying = False
        if isinstance(command, Command):
            self.shard.carry_out_again(command)
            if self.shard.replaying and command.since >= 0 and not command.refused:
                self._read_again()
            self._go_on()
            return
        registrar = self.run.registrar
        assert registrar is not None, "a command, and nobody who gave it"
        try:
            done = self.shard.carry_out(
                command.order,
                lows=lambda: self._reading(self.input.oldest),
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
        if done.command.kind == "snapshot" and not done.command.refused:
            registrar.made(self.name, done.seq + 1)
        registrar.visit(self.shard)
        if self.shard.replaying:
            log.info("relearning", shard=self.name, version=done.command.version)
            self._read_again()
            self._go_on()

    def _read_again(self) -> None:
        """Have the input read from where the shard is now."""
        if self._fetched is not None:
            wait([self._fetched])
            self._fetched = None
        self._reading(self.input.rewind, self.shard.positions)

    def last_items(self) -> list[Item]:
        """Return what comes at the end of a run: a last version, if one is due, and the end."""
        items = []
        idle = self._next is None and not self._obeying and not self.shard.replaying
        if self.run.registrar is not None and idle:
            command = self.run.registrar.take(self.name, only="snapshot")
            if command is not None:
                items.append(Item(command=command))
        return [*items, Item(end=True)]

    def _fetch_version(self, version: int) -> Snapshot:
        """Return this shard's part of a version."""
        with suppress(FileNotFoundError):  # it may be taken to the registry just now
            if version in self._outbox.versions():
                return self._outbox.read(version)
        with closing(open_registry(self.run.settings)) as registry:
            try:
                return registry.read(version, self.name)
            except (ArtifactError, UnknownVersionError) as error:
                raise RefusedError(str(error)) from None

    def _reading(self, read: Callable[..., T], *arguments: Any) -> T:
        """Call what reads: in the one thread that does, if there is one."""
        if self.run.ahead is None:
            return read(*arguments)
        return self.run.ahead.submit(read, *arguments).result()

    def _fetch(self) -> Item:
        """Read and decode a block."""
        work = self.input.read(min(self.block_bytes, self._most_bytes))
        return Item(work, None if work is None else self.reader.decode(work))

    @property
    def ended(self) -> bool:
        """Whether all input has been read and no more will come."""
        if self._next is not None or self._obeying:
            return False
        return self.run.until_eof if self.shard.paused else self.input.ended

    def learn(self, work: Work, decoded: Decoded) -> Outcome:
        """Apply a block; adapt how much is read at once to how long it took."""
        begun = time.perf_counter()
        outcome = self.shard.step(work.span, decoded.batch, decoded.rejected, final=work.final)
        taken = time.perf_counter() - begun
        self.run.rejected_log.add(outcome.raised)
        size = work.block.size
        if size:
            fitting = size * _BLOCK_SECONDS / max(taken, 1e-6)
            most = self.reader.block_bytes
            self.block_bytes = int(min(max(fitting, 1024), 2 * self.block_bytes, most))
        fragile = self.run.fragile
        if fragile is not None and (fragile.shard, fragile.partition) == (
            self.name,
            work.span.partition,
        ):
            if Place.of(self.name, work).last < fragile.last:
                self.block_bytes = 1024  # so that it is seen what the process dies of
            else:
                self.run.fragile = None
        registrar = self.run.registrar
        if outcome.live and registrar is not None:
            registrar.learned(self.shard)
            left, n = registrar.left, len(decoded.batch)
            if 0 < left < math.inf and n:  # up to where a version is due
                # By the size of the last events: the next may be smaller, so come near it first.
                near = left if left <= _NEAR else _NEARER * left
                self._most_bytes = int(size / n * near) + 1
        return outcome

    def publish(self, outcome: Outcome) -> None:
        """Encode what a batch put out, and hand it to the shard to be committed.

        Raises
        ------
        FailingError
            If the learner failed on too much of what it got lately; that is committed then.
        """
        registrar = self.run.registrar
        if registrar is not None and not outcome.live:
            registrar.visit(self.shard)
        if not outcome.live:
            self._counts.rejected += len(outcome.raised)
            return
        self._published[outcome.span.partition] = outcome.span.stop
        settings, count = self.run.settings, self._counts
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
        self.shard.publish(outcome, self._by_file(data))
        if registrar is not None and registrar.is_due(outcome.alarms):
            self.shard.commit()
            registrar.visit(self.shard)
        count.events += len(outcome.batch)
        count.learned += outcome.batch.labelled
        count.rejected += len(outcome.rejected)
        count.alarms += len(outcome.alarms)
        count.non_finite += outcome.non_finite
        count.too_large += outcome.too_large
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
            log.info("snapshot", shard=self.name, seen=outcome.snapshot.header["seen"])
        if outcome.verdict is not None:
            self.shard.commit()
            self.settle()
            limit = self.run.settings.model.error_limit
            raise self._failing(self.shard.recent.now(outcome.verdict, limit))

    def _failing(self, found: Verdict) -> FailingError:
        shard = "" if self.run.single else f"shard {self.name}: "
        limit = self.run.settings.model.error_limit
        return self.run.tallies.get(self.name, Tally()).error(found, limit, shard)

    def judge(self) -> FailingError | None:
        """At the end of the input, return why the run must not be taken for a good one.

        By what it did, or where it did nothing, by what was before.
        """
        self.shard.commit()
        self.settle()
        mine = self.run.tallies.get(self.name, Tally()).found
        found = mine if mine.events else self.shard.recent.last
        if found.share > self.run.settings.model.error_limit:
            return self._failing(found)
        if mine.events:
            self.shard.recent.forgive()
        return None

    def settle(self) -> None:
        """After a commit: count what is in it, and tell the input how far it was learned."""
        if self.run.registrar is not None:
            self.run.registrar.visit(self.shard)
        if self.journal.end != self._settled:
            self._settled = self.journal.end
            self._committed = dict(self._published)
            self._tell_of_lost_outputs()
            counts, self._counts = self._counts, Summary()
            self.run.summary.count(counts)
            tally, self._tally = self._tally, Tally()
            self.run.tallies.setdefault(self.name, Tally()).join(tally)
        if not self.shard.replaying:
            self.input.settle(self._committed)

    def close(self) -> None:
        """Close files; what is not committed, or was read ahead, is left to the next resume."""
        if self._fetched is not None:
            wait([self._fetched])
        if self.input.ended:
            self.reader.tell_of_labels()
        self.input.close()
        if isinstance(self.journal, KafkaJournal):
            self.journal.close()
        self._folder.close()
        if self._outputs is not None:
            self._outputs.close()


class Run:
    """What the steps of one execution of the dataflow share.

    Parameters
    ----------
    locks
        On the state folder.
    share
        Which shards are this process's.
    fresh
        As of `Shard.open`.
    signatures
        As of `KafkaJournal`, over all runs of the process.
    registrars
        The registrar of the process, once there is one, over all of its runs.
    tallies
        By shard, on how much of what was committed the learner failed, over all runs of the
        process.
    careful
        As of `Shard.open`.
    adopted_by
        Who has the registry's model become that of this state, if it is another's; "": nobody.
    beat
        Called at every turn, by which one sees from outside that the run gets on.
    at
        Called with what of the input is decoded and learned next, and with None after that.
    fragile
        Where an earlier process died: what comes up to there is learned in small pieces.
    """

    def __init__(
        self,
        settings: Settings,
        summary: Summary,
        locks: StateLocks,
        *,
        until_eof: bool,
        share: Share = WHOLE,
        fresh: str = "",
        signatures: dict[str, Signature] | None = None,
        registrars: list[Registrar] | None = None,
        tallies: dict[str, Tally] | None = None,
        careful: bool = False,
        amend: bool = False,
        adopted_by: str = "",
        beat: Callable[[], None] = lambda: None,
        at: Callable[[Place | None], None] = lambda _: None,
        fragile: Place | None = None,
    ) -> None:
        self.settings = settings
        self.summary = summary
        self.locks = locks
        self.until_eof = until_eof
        self.share = share
        self.fresh = fresh
        self.signatures = {} if signatures is None else signatures
        self.registrars = [] if registrars is None else registrars
        self.tallies = {} if tallies is None else tallies
        self.careful = careful
        self.amend = amend
        self.adopted_by = adopted_by
        self.identity = ""
        self.beat = beat
        self.at = at
        self.fragile = fragile
        self.rejected_log = RejectedLog()
        self.stopping = False
        self.failure: BaseException | None = None
        self.failing: FailingError | None = None
        self.input_failure: InputError | None = None
        self.rooms: dict[str, Room] = {}
        self.ahead: ThreadPoolExecutor | None = None
        """Reads and decodes the next block while one is learned; None: nothing does."""
        if settings.input.ahead:
            self.ahead = ThreadPoolExecutor(1, "ahead")
        self.single = settings.one_shard
        self.registrar: Registrar | None = None
        self._ended: set[str] = set()
        self._waited = False  # at the end, for the registry
        self.source: Source | None = None
        self.added: set[str] = set()  # shards that came after the state was begun
        self.caught_up = False
        self._idle: set[str] = set()
        self._known: set[str] = set()
        self._looked_at = time.monotonic()
        self._reported = (time.monotonic(), 0)

    def open(self) -> None:
        """Open every shard: resume its state, find its input."""
        self.identity = settle(self.settings, self.locks)
        source = kind_of(self.settings.input).connect(self.settings, until_eof=self.until_eof)
        self.source = source
        numbers = ShardNumbers(self.settings.state_path, self.locks)
        parts: list[str | None] = [None]
        begun = 1  # how many shards there were when the state was begun
        if not self.single:
            found = source.partitions()
            parts = [*(found if source.numbered else numbers.remembered(found, source.is_new))]
            begun = numbers.at_first(len(parts)) if source.numbered else len(parts)
        shards = {f"{i:03d}": part for i, part in enumerate(parts)}
        self.added = set(list(shards)[begun:])
        mine = {name: part for name, part in shards.items() if self.share.has(name)}
        if source.descriptors:
            self._check_descriptors(len(mine))
        if len(mine) > _FEW and self.settings.journal_topic is not None:
            log.info("opening", shards=len(mine))
            with ThreadPoolExecutor(_OPENERS) as pool:  # each waits for the brokers
                list(pool.map(self._open_room, mine, mine.values()))
            self.rooms = dict(sorted(self.rooms.items()))
        else:
            for name, part in mine.items():
                self._open_room(name, part)
        if self.settings.versions.enabled and self.rooms:
            self._call_registrar(shards)
        read = (room.input.names for room in self.rooms.values())
        self._known = {part for part in shards.values() if part}.union(*read)

    def _check_descriptors(self, shards: int) -> None:
        """Raise RunError if this process may not have as many files open as it reads at once."""
        most, needed = raise_limit(), (shards + _DESCRIPTORS) * 4 // 3  # a quarter: storages
        if most < needed:
            raise RunError(
                f"{shards} shards read as many files at once, for which this process needs about "
                f"{needed} descriptors, and it may have {most}: raise the limit (ulimit -n "
                f"{needed}), or give some of the shards to more processes (--processes)"
            )

    def _call_registrar(self, names: Collection[str]) -> None:
        """Have the registrar of the process serve the shards as they are now."""
        shards = [room.shard for room in self.rooms.values()]
        if not self.registrars:
            session = os.environ.get(SESSION, "")
            self.registrars.append(
                Registrar(self.settings, shards, names, session=session, adopted_by=self.adopted_by)
            )
            # Where the run ends by itself, a command that comes late would not come at all.
            self.registrars[0].start(lambda: self.stopping, 60.0 if self.until_eof else 5.0)
        else:
            self.registrars[0].adopt(shards, names)
        self.registrar = self.registrars[0]
        self._check_registrar()
        for room in self.rooms.values():
            if room.shard.paused:
                log.warning("paused", shard=room.name, note="`midstream resume` has it go on")

    def _check_registrar(self) -> None:
        """Raise RunError if the model in the registry is that of another state."""
        if self.registrar is not None and self.registrar.refusal:
            raise RunError(self.registrar.refusal)

    def _open_room(self, name: str, part: str | None) -> None:
        try:
            self.rooms[name] = Room(self, name, part)
        except ResumeError as error:
            for change in error.changes:
                log.warning("state_differs", shard=name, **told_of(change))
            raise

    def _look(self) -> None:
        """Now and then, tell of partitions that are new, once each.

        Raises
        ------
        InputError
            If the input is gone, or is another one now.
        """
        now = time.monotonic()
        if self.source is None or now - self._looked_at < _RESCAN_SECONDS:
            return
        self._looked_at = now
        for name in self.source.look(self._known):
            if self.share.first == 0:
                self._known.add(name)
                log.warning("input_new", input=name, action="it is taken up by a restart")

    def check_outage(self) -> None:
        """Raise the outage that another shard has waited for in vain: it is waited for once."""
        if isinstance(self.failure, UnavailableError | NoAnswerError):
            raise self.failure

    def close(self) -> None:
        """Close every shard's files."""
        self.rejected_log.close()
        for room in self.rooms.values():
            room.close()
        if self.ahead is not None:
            self.ahead.shutdown()
        if self.source is not None:
            self.source.close()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep an exception, so that it does not become a panic of the runtime."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 raised again at the end of the run
            if _gravity(error) > _gravity(self.failure):
                self.failure = error

    def next_items(self, room: Room) -> list[tuple[str, Item]]:
        """Return what the source of a shard emits now."""
        items = []
        with self.guard():
            try:
                self._check_registrar()
                self._look()
                found = room.next()
            except InputError as error:  # what was read before may be sound: commit, and end
                self.input_failure = self.input_failure or error
                self.stopping = True
                return self.last_items(room)
            if found.work is not None or found.command is not None:
                items = [(room.name, found)]
            elif room.ended and self._all_ended(room):
                items = self.last_items(room)
            else:
                items = [(room.name, Item())]
        return items

    def _all_ended(self, room: Room) -> bool:
        """Whether every shard has come to its end, as this one has, and the run may end."""
        self._ended.add(room.name)
        return len(self._ended) == len(self.rooms) and self._may_end(wait=False)

    def _may_end(self, *, wait: bool) -> bool:
        if self.registrar is None or self.failure is not None:
            return True
        self._check_registrar()
        changed = any(room.shard.changed for room in self.rooms.values())
        return self.registrar.may_end(changed=changed, wait=wait)

    def last_items(self, room: Room) -> list[tuple[str, Item]]:
        """Return what the source of a shard emits at the end of the run."""
        items = [Item(end=True)]
        with self.guard():
            if self.stopping and not self._waited:
                self._waited = True
                self._may_end(wait=True)
            items = room.last_items()
        return [(room.name, item) for item in items]

    def decode(
        self, items: Iterable[tuple[str, Item]]
    ) -> list[tuple[str, tuple[Item, Decoded | None]]]:
        """Decode blocks into batches; the rest passes."""
        out: list[tuple[str, tuple[Item, Decoded | None]]] = []
        for name, item in items:
            with self.guard():
                if self.failure is None:
                    decoded = item.decoded
                    if item.work is not None:
                        self.at(Place.of(name, item.work))
                        if decoded is None:
                            decoded = self.rooms[name].reader.decode(item.work)
                    out.append((name, (item, decoded)))
        return out

    def learn(
        self, items: Iterable[tuple[str, tuple[Item, Decoded | None]]]
    ) -> list[tuple[str, tuple[Item, Outcome | None]]]:
        """Apply batches to their shards; the rest passes."""
        out: list[tuple[str, tuple[Item, Outcome | None]]] = []
        for name, (item, decoded) in items:
            with self.guard():
                if self.failure is None:
                    outcome = None
                    if item.work is not None and decoded is not None:
                        self.at(Place.of(name, item.work))
                        outcome = self.rooms[name].learn(item.work, decoded)
                        self.at(None)
                    out.append((name, (item, outcome)))
        return out

    def output(self, items: Iterable[tuple[Item, Outcome | None]], room: Room) -> None:
        """Commit what came out of a shard."""
        for item, outcome in items:
            with self.guard():
                if outcome is not None:
                    room.publish(outcome)
                elif item.command is not None:
                    room.obey(item.command)
                elif item.end:
                    if self.until_eof and not self.stopping and self.failure is None:
                        self.failing = self.failing or room.judge()
                    room.shard.close()
                else:
                    room.shard.tick()
                    self.notice_caught_up(room)
                room.settle()
        self.report()

    def notice_caught_up(self, room: Room) -> None:
        """Tell once that every shard has read what there is; `room` has now."""
        if self.caught_up or not room.input.names or room.held:
            return
        self._idle.add(room.name)
        if len(self._idle) == len(self.rooms):
            self.caught_up = True
            for other in self.rooms.values():
                other.shard.commit()
                other.settle()
            log.info("caught_up", events=self.summary.events)

    def report(self) -> None:
        """Tell that the run gets on; log progress from time to time."""
        self.beat()
        then, events = self._reported
        now = time.monotonic()
        if now - then < _REPORT_SECONDS:
            return
        count = self.summary.events
        self._reported = (now, count)
        fields: dict[str, Any] = {}
        for room in self.rooms.values():
            for name, value in list(room.shard.trainer.metrics.items())[:1]:
                fields[f"{name}{room.suffix}"] = round(value, 4)
        rate = round((count - events) / (now - then))
        log.info("progress", events=count, events_per_second=rate, **fields)
