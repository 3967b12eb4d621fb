"""The dataflow: source, decode, learn, output; one row of rooms, a shard never leaves its worker.

Bytewax schedules, distributes and connects; durability is ours (`midstream.engine.shard`). An
exception raised inside a step would reach the operator as a panic of the runtime, so the steps
keep it (`Run.failure`), let what is in flight pass unused, and `run` raises it at the end.
"""

import ctypes
import fcntl
import gc
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import bytewax.operators as op
import msgspec
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.run import cli_main

from midstream.connectors.codec import (
    Decoded,
    Decoder,
    encode_alarms,
    encode_predictions,
    encode_rejected,
    make_decoder,
    make_table_decoder,
)
from midstream.connectors.files import InputError, NoFilesError, discover
from midstream.connectors.inputs import FileInput, Work, normal_path
from midstream.connectors.messages import MessageBlock, MessageDecoder
from midstream.connectors.records import TableBlock
from midstream.engine.events import EventBatch, Origin, Rejected
from midstream.engine.journal import FileJournal, UnavailableError
from midstream.engine.learner import LearnerError
from midstream.engine.replay import Reservoir
from midstream.engine.shard import EventError, Outcome, Shard
from midstream.engine.snapshot import SnapshotFolder
from midstream.engine.storage import BackgroundStorage, LocalStorage, replace
from midstream.engine.trainer import Trainer
from midstream.flows.logs import log
from midstream.flows.settings import ConfigError, Settings, make_model, model_modules
from midstream.flows.topics import (
    Consumer,
    KafkaJournal,
    NoAnswerError,
    TopicInput,
    index_of,
    open_consumer,
    open_journal,
    open_topic,
    topic_shards,
)

if TYPE_CHECKING:
    from midstream.connectors.arrow_codec import TableDecoder

__all__ = [
    "Reader",
    "RunError",
    "Summary",
    "evaluate",
    "make_trainer",
    "open_reader",
    "preflight",
    "run",
]

_BLOCK_BYTES = 128 * 1024  # what is made of a block still fits into a core's cache
_COLUMN_BLOCK_BYTES = 384 * 1024  # ... of columns, which take less room than objects
_BLOCK_SECONDS = 0.2  # a batch that takes much longer would delay commits, signals and reports
_KEEP_EVENTS = 10_000  # what is learned again for an event that the learner raises on
_KINDS = ("predictions", "rejected", "alarms")  # of output
_PARTS = "partitions.json"
_MOST_SHARDS = 1_000
_IDLE = timedelta(milliseconds=50)
_RESCAN_SECONDS = 5.0
_REPORT_SECONDS = 10.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds, before the brokers are asked again
_UNAVAILABLE = (UnavailableError, NoAnswerError)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class RunError(RuntimeError):
    """A run that cannot begin or go on; one line for the operator."""


class Summary(msgspec.Struct):
    """What a run did. Counts are of this run; metrics are over all that the model has seen.

    `seconds` is from the first read to the last commit and snapshot, start-up not included.
    `seen` is how many events the model has seen in all, `resumed_at` how many before this run.
    """

    events: int = 0
    learned: int = 0
    rejected: int = 0
    predictions: int = 0
    alarms: int = 0
    seconds: float = 0.0
    events_per_second: float = 0.0
    metrics: dict[str, float] = {}
    digest: dict[str, str] = {}
    seen: int = 0
    resumed_at: int = 0


class _Item(NamedTuple):
    """What flows from the source: work, or a tick (no work), or the end."""

    work: Work | None = None
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
            modules=model_modules(settings),
        )
        # As a snapshot would give it back: a set that was built otherwise is walked otherwise.
        return Trainer.from_state(new.state(), model_modules(settings))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{settings.file}: model.learner: {error}") from error


class Reader:
    """The input of a shard, decoded: iterate over (work, decoded) until nothing more is there.

    Parameters
    ----------
    part
        Only the partition (file) of this name; None: all of them.
    consumer
        From which a topic is read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        until_eof: bool,
        part: str | None = None,
        consumer: "Consumer | None" = None,
    ) -> None:
        self._settings = settings
        self.block_bytes = _COLUMN_BLOCK_BYTES if settings.features else _BLOCK_BYTES
        self._decoders: dict[str, Decoder] = {}  # one each: a CSV file has a header of its own
        self.input: FileInput | TopicInput
        if consumer is not None:
            self.input = open_topic(settings, consumer, part, until_eof=until_eof)
            return
        self.input = FileInput(
            settings.input.path or "",
            settings.root,
            part=part,
            format_=settings.input.format,
            order=settings.input.order,
            until_eof=until_eof,
            max_record_bytes=settings.input.max_record_bytes,
            tables=lambda: self._tables,
        )

    @cached_property
    def _tables(self) -> "TableDecoder":
        settings = self._settings
        return make_table_decoder(settings.model.task, settings.input.fields, settings.features)

    @cached_property
    def _messages(self) -> MessageDecoder:
        settings = self._settings
        return MessageDecoder(
            settings.model.task,
            settings.input.fields,
            settings.features,
            settings.input.max_record_bytes,
        )

    def decode(self, work: Work) -> Decoded:
        """Decode a block into a batch and what of it is rejected."""
        if isinstance(work.block, TableBlock):
            return work.block.form.decode(work.block)
        name = work.block.partition
        if isinstance(work.block, MessageBlock):
            return self._messages.decode(work.block)
        if name not in self._decoders:
            self._decoders[name] = make_decoder(
                self._settings.model.task,
                self._settings.input.fields,
                self.input.csv_options(name),
                self._settings.features,
            )
        return self._decoders[name].decode(work.block)

    def __iter__(self) -> Iterator[tuple[Work, Decoded]]:
        while True:
            work = self.input.read(self.block_bytes)
            if work is not None:
                yield work, self.decode(work)
            elif self.input.ended:
                return
            else:
                time.sleep(_IDLE.total_seconds())


@contextmanager
def open_reader(settings: Settings) -> Iterator[Reader]:
    """Read the whole input from its beginning to its present end, apart from any run.

    Raises
    ------
    InputError
        If it is not there.
    """
    consumer = None if settings.input.topic is None else open_consumer(settings)
    reader = Reader(settings, until_eof=True, consumer=consumer)
    try:
        if consumer is not None:
            reader.input.seek({})
        yield reader
    finally:
        reader.input.close()
        if consumer is not None:
            consumer.close()


def preflight(settings: Settings, *, until_eof: bool = True) -> None:
    """Raise what can be known to be wrong before anything is opened for writing.

    Parameters
    ----------
    until_eof
        As of `run`: an empty folder that is followed is no error.

    Raises
    ------
    ConfigError, InputError
        If the learner cannot be made or not be saved, or the input is not there.
    """
    trainer = make_trainer(settings)
    begun = time.perf_counter()
    nothing = [None] if settings.model.task == "multiclass" else [0.0, 1.0]
    trainer.prequential.update(nothing, nothing, None)
    trainer.drift.update(np.zeros(2), 0)
    if (seconds := time.perf_counter() - begun) > 1.0:
        log.info("compiled", seconds=round(seconds, 1), note="once on a machine")
    if settings.input.topic is None and settings.input_path != "-":
        try:
            discover(settings.input.path or "", settings.root)
        except NoFilesError:
            if until_eof or not settings.one_shard:  # shards are of the files at the start
                raise


def _file_name(kind: str, suffix: str) -> str:
    """Return the name of the file that a kind of output is written to."""
    return f"{kind}{suffix}.jsonl"


class _Room:
    """One shard in the run: its input, decoders, trainer, journal, snapshots and outputs."""

    def __init__(self, run: "_Run", name: str, part: str | None) -> None:
        settings = run.settings
        self.run = run
        self.name = name
        self.reader = Reader(settings, until_eof=run.until_eof, part=part, consumer=run.consumer)
        self.input = self.reader.input
        self.block_bytes = 1024  # how much is read at once; adapts to the learner's speed
        self.suffix = "" if run.single else f"-{name}"
        folder = settings.state_path / "shards" / name
        self._folder = LocalStorage(folder)
        self._outputs: LocalStorage | None = None
        self.journal: FileJournal | KafkaJournal
        if settings.journal_topic is not None:
            self.journal = open_journal(settings, name)
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
            source=settings.input.topic or normal_path(settings.input.path or "", settings.root),
            modules=model_modules(settings),
            snapshot_events=settings.state.snapshot_events,
            snapshot_seconds=settings.state.snapshot_seconds,
            commit_seconds=settings.state.commit_seconds,
        )
        for note in self.shard.notes:
            log.warning("snapshot_unusable", shard=name, reason=note)
        for output in self.journal.lost_outputs:
            log.warning("output_gone", shard=name, output=output, action="a new one is begun")
        self.input.seek(
            self.shard.cursors if settings.input.topic is None else self.shard.positions
        )
        self._counts = Summary()  # of what is not committed yet
        self._settled = self.journal.end
        self._to_begin = False
        if not self.input.names and not run.until_eof:
            log.info("waiting", shard=name, input=settings.input_path, note="no files there yet")
        self._range = self.shard.next_range()
        if self._range is None:
            self._begin()
        if self._range is not None:
            log.info("replay_begins", shard=name, snapshot_at=self.shard.trainer.seen)
        self._rescanned_at = time.monotonic()
        self._waiting: set[str] = set()

    def _begin(self) -> None:
        """Journal where reading begins, where that is not at the start."""
        source = self.run.settings.input
        if source.topic is None and not (source.start == "latest" and self.shard.untouched):
            return
        for work in self.input.begin():
            if work.span.stop > work.span.start:
                log.warning(
                    "input_lost", shard=self.name, partition=work.span.partition,
                    start=work.span.start, stop=work.span.stop, action="it is skipped",
                )  # fmt: skip
            nothing = EventBatch([], [], partition=work.span.partition, index=-1)
            self.shard.publish(self.shard.step(work.span, nothing, []), {})
        self.shard.commit()

    def output_names(self) -> list[str]:
        """Names of the output files that this shard writes."""
        output = self.run.settings.output
        return [_file_name(kind, self.suffix) for kind in _KINDS if getattr(output, kind)]

    def _by_file(self, data: Mapping[str, bytes]) -> dict[str, bytes]:
        if isinstance(self.journal, FileJournal):
            return {_file_name(kind, self.suffix): lines for kind, lines in data.items()}
        return dict(data)

    def next(self) -> Work | None:
        """Return the next block to apply: of the journal first, then what is new."""
        if self._range is not None:
            work = self.input.replay(self._range, self.block_bytes)
            if work is not None and work.final:
                self._range = self.shard.next_range()
                if self._range is None:
                    log.info("replay_ends", shard=self.name)
                    self._to_begin = True
            return work
        if self._to_begin and not self.shard.replaying:
            self._to_begin = False
            self._begin()
        found = self.input.read(self.block_bytes)
        for name in sorted(self.input.waiting - self._waiting):
            log.info("input_unfinished", shard=self.name, input=name, note="it is tried again")
        self._waiting = set(self.input.waiting)
        if found is None and not self.run.until_eof:
            now = time.monotonic()
            if now - self._rescanned_at >= _RESCAN_SECONDS:
                self._rescanned_at = now
                for name in self.input.rescan():
                    log.info("input_found", shard=self.name, input=name)
                self.run.notice_new_shards()
        return found

    @property
    def ended(self) -> bool:
        """Whether all input has been read and no more will come."""
        return self._range is None and self.input.ended

    def learn(self, work: Work, decoded: Decoded) -> Outcome:
        """Apply a block; adapt how much is read at once to how long it took."""
        begun = time.perf_counter()
        outcome = self.shard.step(work.span, decoded.batch, decoded.rejected, final=work.final)
        taken = time.perf_counter() - begun
        size = work.block.size
        if size:
            fitting = size * _BLOCK_SECONDS / max(taken, 1e-6)
            most = self.reader.block_bytes
            self.block_bytes = int(min(max(fitting, 1024), 2 * self.block_bytes, most))
        return outcome

    def publish(self, outcome: Outcome) -> None:
        """Encode what a batch put out, and hand it to the shard to be committed."""
        if not outcome.live:
            return
        settings, count = self.run.settings, self._counts
        data = {}
        if settings.output.predictions:
            data["predictions"] = encode_predictions(
                outcome.batch,
                outcome.predictions,
                task=settings.model.task,
                model=settings.name,
                version=0,
                role="champion",
            )
            count.predictions += len(outcome.batch)
        if settings.output.rejected:
            data["rejected"] = encode_rejected(outcome.rejected)
        if settings.output.alarms:
            data["alarms"] = encode_alarms(outcome.alarms)
        self.shard.publish(outcome, self._by_file(data))
        count.events += len(outcome.batch)
        count.learned += outcome.batch.labelled
        count.rejected += len(outcome.rejected)
        count.alarms += len(outcome.alarms)
        for alarm in outcome.alarms:
            log.warning(
                "drift", shard=self.name, detector=alarm.detector, position=alarm.position,
                value=round(alarm.value, 6),
            )  # fmt: skip
        if outcome.snapshot is not None:
            log.info("snapshot", shard=self.name, seen=outcome.snapshot.header["seen"])

    def settle(self) -> None:
        """After a commit: count what is in it, and tell the brokers how far the input was learned.

        The latter is for tools that show lag; nothing of ours reads it.
        """
        if self.journal.end == self._settled:
            return
        self._settled = self.journal.end
        counts, self._counts = self._counts, Summary()
        for name in ("events", "learned", "rejected", "predictions", "alarms"):
            total = getattr(self.run.summary, name) + getattr(counts, name)
            setattr(self.run.summary, name, total)
        if self.run.consumer is not None:
            ends = {name: cursor.offset for name, cursor in self.shard.cursors.items()}
            self.run.consumer.commit({index_of(name): end for name, end in ends.items()})

    def exclude(self, error: EventError) -> None:
        """Send the event that the learner raised on to `rejected`, and skip it from now on."""
        reason = f"the learner raised {error.reason}"
        rejected = Rejected(error.origin, reason, "", error.features)
        wanted = self.run.settings.output.rejected
        data = {"rejected": encode_rejected([rejected])} if wanted else {}
        self.shard.exclude(error, self._by_file(data))
        self.run.summary.rejected += 1

    def close(self) -> None:
        """Close files; what is not committed is left to the next resume."""
        self.input.close()
        if isinstance(self.journal, KafkaJournal):
            self.journal.close()
        self._folder.close()
        if self._outputs is not None:
            self._outputs.close()


class _Run:
    """What the steps of one execution of the dataflow share."""

    def __init__(self, settings: Settings, summary: Summary, *, until_eof: bool) -> None:
        self.settings = settings
        self.summary = summary
        self.until_eof = until_eof
        self.stopping = False
        self.failure: BaseException | None = None
        self.input_failure: InputError | None = None
        self.rooms: dict[str, _Room] = {}
        self.single = settings.one_shard
        self.consumer: Consumer | None = None
        self.caught_up = False
        self._idle: set[str] = set()
        self._known: set[str] = set()
        self._reported = (time.monotonic(), 0)

    def open(self) -> None:
        """Open every shard: resume its state, find its input."""
        if self.settings.input.topic is not None:
            self.consumer = open_consumer(self.settings)
        if self.single:
            self.rooms["000"] = _Room(self, "000", None)
            return
        if self.consumer is not None:
            for name, part in topic_shards(self.settings, self.consumer).items():
                self.rooms[name] = _Room(self, name, part)
            return
        for i, part in enumerate(self._parts()):
            name = f"{i:03d}"
            self.rooms[name] = _Room(self, name, part)

    def _parts(self) -> list[str]:
        """Return the files that are shards, each with the number that it was once given."""
        folder = LocalStorage(self.settings.state_path / "shards")
        known: list[str] = []
        if folder.length(_PARTS) is not None:
            known = msgspec.json.decode(folder.read(_PARTS), type=list[str])
        found = Reader(self.settings, until_eof=True).input.names
        parts = known + [name for name in found if name not in known]
        if len(parts) > _MOST_SHARDS:
            raise RunError(
                f"{len(parts)} files would be shards of their own; at most {_MOST_SHARDS} can be"
            )
        if parts != known:
            replace(folder, _PARTS, msgspec.json.encode(parts))
        folder.close()
        self._known = set(parts)
        return parts

    def notice_new_shards(self) -> None:
        """Tell of files that would be shards of their own, once each."""
        if self.single or self.consumer is not None:
            return
        try:
            found = discover(self.settings.input.path or "", self.settings.root)
        except InputError:
            return  # all are gone, and more may come
        for name, _, _ in found:
            if name not in self._known:
                self._known.add(name)
                log.warning("input_new", input=name, action="it is taken up by a restart")

    def close(self) -> None:
        """Close every shard's files."""
        for room in self.rooms.values():
            room.close()
        if self.consumer is not None:
            self.consumer.close()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep an exception, so that it does not become a panic of the runtime."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 raised again at the end of the run
            if self.failure is None:
                self.failure = error

    def next_items(self, room: _Room) -> list[tuple[str, _Item]]:
        """Return what the source of a shard emits now."""
        items = []
        with self.guard():
            try:
                work = room.next()
            except InputError as error:  # what was read before is sound: end with a snapshot
                self.input_failure = self.input_failure or error
                self.stopping = True
                return [(room.name, _Item(end=True))]
            if work is not None:
                items = [(room.name, _Item(work))]
            elif room.ended:
                items = [(room.name, _Item(end=True))]
            else:
                items = [(room.name, _Item())]
        return items

    def decode(
        self, items: Iterable[tuple[str, _Item]]
    ) -> list[tuple[str, tuple[_Item, Decoded | None]]]:
        """Decode blocks into batches; the rest passes."""
        out: list[tuple[str, tuple[_Item, Decoded | None]]] = []
        for name, item in items:
            with self.guard():
                if self.failure is None:
                    work = item.work
                    decoded = self.rooms[name].reader.decode(work) if work else None
                    out.append((name, (item, decoded)))
        return out

    def learn(
        self, items: Iterable[tuple[str, tuple[_Item, Decoded | None]]]
    ) -> list[tuple[str, tuple[_Item, Outcome | None]]]:
        """Apply batches to their shards; the rest passes."""
        out: list[tuple[str, tuple[_Item, Outcome | None]]] = []
        for name, (item, decoded) in items:
            with self.guard():
                if self.failure is None:
                    outcome = None
                    if item.work is not None and decoded is not None:
                        outcome = self.rooms[name].learn(item.work, decoded)
                    out.append((name, (item, outcome)))
        return out

    def output(self, items: Iterable[tuple[_Item, Outcome | None]], room: _Room) -> None:
        """Commit what came out of a shard."""
        for item, outcome in items:
            with self.guard():
                if outcome is not None:
                    room.publish(outcome)
                elif item.end:
                    room.shard.close()
                else:
                    room.shard.tick()
                    self.notice_caught_up(room)
                room.settle()
        self.report()

    def notice_caught_up(self, room: _Room) -> None:
        """Tell once that every shard has read what there is; `room` has now."""
        if self.caught_up or not room.input.names:
            return
        self._idle.add(room.name)
        if len(self._idle) == len(self.rooms):
            self.caught_up = True
            for other in self.rooms.values():
                other.shard.commit()
                other.settle()
            log.info("caught_up", events=self.summary.events)

    def report(self) -> None:
        """Log progress from time to time."""
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


class _Source(FixedPartitionedSource[tuple[str, _Item], None]):
    """A Bytewax partition for each shard. It is never resumed by Bytewax: the journal is."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def list_parts(self) -> list[str]:
        return list(self._run.rooms)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_SourcePart":  # noqa: ARG002
        return _SourcePart(self._run, self._run.rooms[for_part])


class _SourcePart(StatefulSourcePartition[tuple[str, _Item], None]):
    def __init__(self, run: _Run, room: _Room) -> None:
        self._run = run
        self._room = room
        self._ended = False
        self._awake: datetime | None = None

    def next_batch(self) -> list[tuple[str, _Item]]:
        if self._ended or self._run.failure is not None:
            raise StopIteration
        if self._run.stopping:
            self._ended = True
            return [(self._room.name, _Item(end=True))]
        items = self._run.next_items(self._room)
        idle = not items or items[0][1].work is None
        self._ended = bool(items) and items[0][1].end
        self._awake = datetime.now(UTC) + _IDLE if idle and not self._ended else None
        return items

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> None:
        return None


class _Sink(FixedPartitionedSink[tuple[_Item, Outcome | None], None]):
    """The outputs: the same parts as the source, so that a shard stays on its worker."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def list_parts(self) -> list[str]:
        return list(self._run.rooms)

    def part_fn(self, item_key: str) -> int:
        return list(self._run.rooms).index(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_SinkPart":  # noqa: ARG002
        return _SinkPart(self._run, self._run.rooms[for_part])


class _SinkPart(StatefulSinkPartition[tuple[_Item, Outcome | None], None]):
    def __init__(self, run: _Run, room: _Room) -> None:
        self._run = run
        self._room = room

    def write_batch(self, values: list[tuple[_Item, Outcome | None]]) -> None:
        self._run.output(values, self._room)

    def snapshot(self) -> None:
        return None


def _dataflow(run: _Run) -> Dataflow:
    flow = Dataflow("midstream")
    items = op.input("source", flow, _Source(run))
    decoded = op.flat_map_batch("decode", items, run.decode)
    learned = op.flat_map_batch("learn", decoded, run.learn)
    op.output("output", learned, _Sink(run))
    return flow


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for a stop: drain, snapshot, exit 0."""

    def handle(number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop()

    old = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the state folder: two runs on one would write into each other's journal."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise RunError(f"{folder}: another run holds this state (process {holder})") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _keep_memory() -> None:
    """Let the C library keep memory that blocks are made of, where it is glibc.

    It would give each piece back to the kernel, and get it anew with a fault for every page: a
    third of the time of a fast run.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_M_MMAP_THRESHOLD, 4 * 2**20), (_M_TRIM_THRESHOLD, 32 * 2**20)):
            mallopt(parameter, value)


def _archive(settings: Settings) -> None:
    """Move old state, and the outputs that belong to it, out of the way."""
    shards = settings.state_path / "shards"
    outputs = _outputs_present(settings)
    if not shards.exists() and not outputs:
        return
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    archive = settings.state_path / f"archived-{stamp}"
    archive.mkdir(parents=True)
    for path in outputs:  # they may be on another file system
        shutil.move(path, archive / path.name)
    if shards.exists():
        shards.rename(archive / "shards")
    log.info("archived", folder=str(archive))


def _outputs_present(settings: Settings) -> list[Path]:
    folder = settings.output_path
    if not folder.is_dir():
        return []
    return sorted(p for kind in _KINDS for p in folder.glob(_file_name(kind, "*")))


def run(settings: Settings, *, until_eof: bool = False, fresh: bool = False) -> Summary:
    """Run the dataflow until a signal, or until the end of the input.

    Parameters
    ----------
    until_eof
        The end of the files is the end of the run; otherwise they are followed as they grow.
    fresh
        Archive the old state and its outputs, and begin anew.

    Raises
    ------
    RunError, ConfigError, InputError, JournalError, ResumeError, EventError, OSError
        If the run cannot begin or go on; what was committed stays.
    """
    _keep_memory()
    summary = Summary()
    stop = {"asked": False}
    excluded: set[Origin] = set()
    caught_up = until_eof
    outage = _Outage()
    with _locked(settings.state_path):
        if fresh:
            _archive(settings)
        while True:
            current = _Run(settings, summary, until_eof=until_eof)

            def ask(current: _Run = current) -> None:
                stop["asked"] = True
                current.stopping = True

            with _signals(ask):
                try:
                    current.stopping = stop["asked"]
                    current.caught_up = caught_up
                    try:
                        current.open()
                    except _UNAVAILABLE as error:
                        if not outage.begun and settings.input.wait_seconds:
                            raise
                        outage.wait(error, stop)
                        continue
                    outage.over()
                    seen = sum(room.shard.trainer.seen for room in current.rooms.values())
                    log.info(
                        "running", name=settings.name, shards=len(current.rooms), snapshot_at=seen
                    )
                    gc.collect()
                    gc.freeze()  # models and modules are long-lived: not worth looking at again
                    begun = time.perf_counter()
                    cli_main(_dataflow(current))  # type: ignore[no-untyped-call]
                    summary.seconds += time.perf_counter() - begun
                    failure = current.failure
                    if (
                        isinstance(failure, EventError)
                        and settings.model.on_error == "reject"
                        and failure.origin not in excluded
                    ):
                        excluded.add(failure.origin)
                        caught_up = current.caught_up
                        for room in current.rooms.values():
                            room.shard.commit()
                            room.settle()
                        # The learner may be half updated: resume without that event.
                        _log_rejected(failure)
                        _room_of(current, failure).exclude(failure)
                        continue
                    if isinstance(failure, _UNAVAILABLE):  # resume from what was committed
                        caught_up = current.caught_up
                        outage.wait(failure, stop)
                        continue
                    if isinstance(failure, SystemExit | KeyboardInterrupt):
                        raise RunError(f"the learner ended the run: {failure!r}") from failure
                    if failure is not None:
                        raise failure
                    if current.input_failure is not None:
                        raise current.input_failure
                    break
                finally:
                    current.close()
                    gc.unfreeze()
    summary.events_per_second = summary.events / max(summary.seconds, 1e-9)
    for name, room in current.rooms.items():
        prefix = "" if current.single else f"{name}."
        summary.metrics |= {prefix + k: v for k, v in room.shard.trainer.metrics.items()}
        summary.digest[name] = room.shard.trainer.digest()
        summary.seen += room.shard.trainer.seen
    summary.resumed_at = summary.seen - summary.events
    return summary


class _Outage:
    """Waits while the brokers cannot be reached."""

    def __init__(self) -> None:
        self.begun = False
        self._pause = _SHORTEST_PAUSE

    def wait(self, reason: Exception, stop: Mapping[str, bool]) -> None:
        """Wait a while, the longer the more often in vain.

        Raises
        ------
        RunError
            If the run is asked to stop meanwhile.
        """
        self.begun = True
        log.warning("kafka_unavailable", reason=str(reason), again_in=self._pause)
        until = time.monotonic() + self._pause
        while time.monotonic() < until and not stop["asked"]:
            time.sleep(_IDLE.total_seconds())
        if stop["asked"]:
            raise RunError(f"stopped while it waited: {reason}")
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def over(self) -> None:
        """Tell that all is well again."""
        if self.begun:
            log.info("kafka_available")
        self.begun = False
        self._pause = _SHORTEST_PAUSE


def _log_rejected(error: EventError) -> None:
    log.warning("event_rejected", origin=f"{error.place}:{error.origin[2]}", reason=error.reason)


def _room_of(current: _Run, error: EventError) -> _Room:
    return next(room for room in current.rooms.values() if error.place in room.input.names)


class _Careful:
    """Steps a trainer over batches; an event that the learner raises on leaves no trace.

    The trainer may be half updated then. It is made anew from a state that is kept, and the events
    since are learned again, so at most `_KEEP_EVENTS` for each event that is left out.
    """

    def __init__(self, trainer: Trainer, settings: Settings) -> None:
        self.trainer = trainer
        self._modules = model_modules(settings)
        self._rejecting = settings.model.on_error == "reject"
        self._keep()

    def step(self, batch: EventBatch) -> tuple[int, int]:
        """Predict, score and learn; return how many alarms there were, and events left out.

        Raises
        ------
        EventError
            If the learner raises, and such events are not to be rejected.
        """
        alarms = left_out = 0
        while True:
            try:
                alarms += self._step(batch)
            except LearnerError as error:
                origin = batch.origins[error.row]
                event_error = EventError(origin, batch.place, "", error.cause)
                if not self._rejecting:
                    raise event_error from error
                row = error.row
            else:
                return alarms, left_out
            _log_rejected(event_error)
            left_out += 1
            self.trainer = Trainer.from_state(self._state, self._modules)
            for past in self._since:
                self.trainer.step(past)
            alarms += self._step(batch[:row])
            self._keep()
            batch = batch[row + 1 :]

    def _step(self, batch: EventBatch) -> int:
        alarms = len(self.trainer.step(batch).alarms)
        if self._rejecting:
            self._since.append(batch)
            if sum(map(len, self._since)) >= _KEEP_EVENTS:
                self._keep()
        return alarms

    def _keep(self) -> None:
        self._state = self.trainer.state() if self._rejecting else {}
        self._since: list[EventBatch] = []


def evaluate(
    settings: Settings, *, progress: Callable[[Summary], None] | None = None
) -> tuple[Summary, Trainer]:
    """Run the same Trainer over the input once, without journal, snapshots or outputs.

    Raises
    ------
    ConfigError, InputError, EventError
        As `run` does: EventError only where `model.on_error` is not "reject".
    """
    careful = _Careful(make_trainer(settings), settings)
    summary = Summary()
    begun = time.perf_counter()
    with open_reader(settings) as reader:
        for _, decoded in reader:
            batch, refused = careful.trainer.admit(decoded.batch)
            seen, learned = careful.trainer.seen, careful.trainer.learned
            alarms, left_out = careful.step(batch)
            summary.events += careful.trainer.seen - seen
            summary.learned += careful.trainer.learned - learned
            summary.rejected += len(decoded.rejected) + len(refused) + left_out
            summary.predictions += careful.trainer.seen - seen
            summary.alarms += alarms
            if progress is not None:
                progress(summary)
    trainer = careful.trainer
    summary.seconds = time.perf_counter() - begun
    summary.events_per_second = summary.events / max(summary.seconds, 1e-9)
    summary.metrics = trainer.metrics
    summary.digest = {"000": trainer.digest()}
    summary.seen = trainer.seen
    return summary, trainer
