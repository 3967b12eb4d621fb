"""The dataflow: source, decode, learn, output. A shard never leaves its worker.

Bytewax schedules, distributes and connects; `midstream.engine.shard.shard` provides durability.
"""

import ctypes
import gc
import math
import os
import secrets
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import get_ident
from types import FrameType

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.run import cli_main

from midstream.connectors.input import NoAnswerError
from midstream.connectors.kafka.journal import Signature
from midstream.engine.basics.storage import raise_limit
from midstream.engine.registry.database import OtherStateError, RegistryError
from midstream.engine.shard.journal import UnavailableError
from midstream.engine.shard.outcome import EventError, Outcome
from midstream.flows.claims.identity import settle
from midstream.flows.claims.locks import StateLocks
from midstream.flows.claims.registry import has_registry, open_registry, take_over
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.feedback import feedback_settings
from midstream.flows.inputs.reading import IDLE
from midstream.flows.inputs.topics import check_kafka
from midstream.flows.logs import log
from midstream.flows.process import stop_signals
from midstream.flows.running.counters import Summary, feedback_counts
from midstream.flows.running.definition import make_trainer
from midstream.flows.running.errors import AbandonedError, RunError
from midstream.flows.running.failures import Tally
from midstream.flows.running.outputs import KINDS, file_name
from midstream.flows.running.pacing import ALWAYS, Pace
from midstream.flows.running.registrar import Registrar
from midstream.flows.running.shard_process import ShardProcess
from midstream.flows.running.shards import Item, RunningShard, Shared
from midstream.flows.running.shares import REPLACES, WHOLE, Place, Share

__all__ = ["RunError", "Summary", "archive", "preflight", "prepare", "run", "signals"]

_BRIEF = 0.001  # seconds between polls of an input that had records
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts to reach the brokers
_NO_HURRY = 60.0  # seconds to upload a large version to the registry, unless asked to stop
_UNAVAILABLE = (UnavailableError, NoAnswerError)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def preflight(settings: Settings, *, until_eof: bool = True) -> None:
    """Raise for errors that can be found before anything is opened for writing.

    Parameters
    ----------
    until_eof
        As in `run`: an empty folder that is followed is no error.

    Raises
    ------
    ConfigError, InputError
        If the learner cannot be made or saved, or the input is missing.
    """
    kind_of(settings.input).preflight(settings, until_eof=until_eof)
    if (labels := feedback_settings(settings)) is not None:
        kind_of(labels.input).preflight(labels, until_eof=until_eof)
    if settings.output.topics:
        check_kafka(settings)
    trainer = make_trainer(settings)
    begun = time.perf_counter()
    nothing = [None] if settings.model.task == "multiclass" else [0.0, 1.0]
    trainer.prequential.update(nothing, nothing, None)
    trainer.drift.update(np.zeros(2), 0)
    if (seconds := time.perf_counter() - begun) > 3.0:
        log.info("compiled", seconds=round(seconds, 1), note="once on a machine")


class _Source(FixedPartitionedSource[tuple[str, Item], None]):
    """A Bytewax partition for each shard. Bytewax never resumes it; the journal does."""

    def __init__(self, process: ShardProcess) -> None:
        self._process = process
        self._paces: defaultdict[int, Pace] = defaultdict(  # by thread
            lambda: Pace(_BRIEF, IDLE.total_seconds())
        )

    def list_parts(self) -> list[str]:
        return list(self._process.shards)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_SourcePart":  # noqa: ARG002
        return _SourcePart(self._process, self._process.shards[for_part], self._paces[get_ident()])


class _SourcePart(StatefulSourcePartition[tuple[str, Item], None]):
    def __init__(self, process: ShardProcess, running: RunningShard, pace: Pace) -> None:
        self._process = process
        self._running = running
        self._pace = pace
        self._ended = False
        pace.join(running.name)

    def next_batch(self) -> list[tuple[str, Item]]:
        process, name = self._process, self._running.name
        if not (
            self._ended or process.failure is not None or process.stopping
        ) and self._pace.rests(name):
            return []
        if self._ended or process.failure is not None:
            self._pace.leave(name)
            raise StopIteration
        if process.stopping:
            self._ended = True
            return process.last_items(self._running)
        items = process.next_items(self._running)
        idle = not items or (items[0][1].work is None and items[0][1].command is None)
        self._ended = bool(items) and items[-1][1].end
        self._pace.asked(name, idle=idle and not self._ended)
        return items

    def next_awake(self) -> datetime:
        return ALWAYS

    def snapshot(self) -> None:
        return None


class _Sink(FixedPartitionedSink[tuple[Item, Outcome | None], None]):
    """The outputs, with the parts of the source, so that a shard stays on its worker."""

    def __init__(self, process: ShardProcess) -> None:
        self._process = process

    def list_parts(self) -> list[str]:
        return list(self._process.shards)

    def part_fn(self, item_key: str) -> int:
        return list(self._process.shards).index(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_SinkPart":  # noqa: ARG002
        return _SinkPart(self._process, self._process.shards[for_part])


class _SinkPart(StatefulSinkPartition[tuple[Item, Outcome | None], None]):
    def __init__(self, process: ShardProcess, running: RunningShard) -> None:
        self._process = process
        self._running = running

    def write_batch(self, values: list[tuple[Item, Outcome | None]]) -> None:
        self._process.output(values, self._running)

    def snapshot(self) -> None:
        return None


def _dataflow(process: ShardProcess) -> Dataflow:
    flow = Dataflow("midstream")
    items = op.input("source", flow, _Source(process))
    decoded = op.flat_map_batch("decode", items, process.decode)
    learned = op.flat_map_batch("learn", decoded, process.learn)
    op.output("output", learned, _Sink(process))
    return flow


@contextmanager
def signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGHUP ask for a stop: drain, snapshot, exit 0."""

    def handle(number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop()

    old = {s: signal.signal(s, handle) for s in stop_signals()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _keep_memory() -> None:
    """Let glibc keep the memory of freed blocks.

    Otherwise it returns each piece to the kernel and gets it back with a page fault per page: a
    third of the time of a fast run.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_M_MMAP_THRESHOLD, 4 * 2**20), (_M_TRIM_THRESHOLD, 32 * 2**20)):
            mallopt(parameter, value)


def prepare(settings: Settings, *, joins: bool) -> None:
    """Settle the identity of a state, if no broker has to be asked for it.

    `joins`: as in `settle`. It raises the errors of `settle`.
    """
    if settings.journal_topic is None:
        with closing(StateLocks(settings.state_path)) as locks:
            settle(settings, locks, joins=joins)


def archive(settings: Settings, *, adopted_by: str = "") -> str:
    """Archive old state and its outputs; the identity stays.

    `adopted_by`: as in `run`.

    Returns
    -------
    str
        The `fresh` argument of `run`: a journal that is a topic stays where it is.

    Raises
    ------
    HeldError
        If another process is using the state.
    OtherStateError
        If the registry's model belongs to another state; nothing was archived.
    """
    with closing(StateLocks(settings.state_path)) as locks:
        locks.clear()
        settle(settings, locks)
        if adopted_by and settings.versions.enabled:
            take_over(settings, 0, adopted_by)
        _look(settings)
        _archive(settings)
        _drop_commands(settings)
    return secrets.token_hex(8)


def _look(settings: Settings) -> None:
    """Raise OtherStateError if the registry's model belongs to another state."""
    if settings.versions.enabled:
        try:
            has_registry(settings)
        except OtherStateError:
            raise
        except RegistryError:  # a later use reports what is wrong
            pass


def _drop_commands(settings: Settings) -> None:
    """Drop pending commands: they were for the old state."""
    if not settings.versions.enabled:
        return
    try:
        with closing(open_registry(settings)) as registry:
            dropped = registry.start_over()
    except OtherStateError:
        raise
    except RegistryError:
        return  # there is none, or a later use reports the error
    if dropped:
        log.warning("commands_dropped", commands=dropped, reason="the model is started over")


def _archive(settings: Settings) -> None:
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
    return sorted(p for kind in KINDS for p in folder.glob(file_name(kind, "*")))


def run(
    settings: Settings,
    *,
    until_eof: bool = False,
    fresh: str = "",
    amend: bool = False,
    share: Share = WHOLE,
    patience: float = 0.0,
    adopted_by: str = "",
    beat: Callable[[str, Summary], None] = lambda *_: None,
    at: Callable[[Place | None], None] = lambda _: None,
    fragile: Place | None = None,
) -> Summary:
    """Run the dataflow until a signal, or until the end of the input.

    Parameters
    ----------
    until_eof
        Stop at the end of the files; otherwise follow them as they grow.
    fresh
        What `archive` returned: start over, once.
    amend
        Also accept changes of the model's definition that alter how it learns.
    share
        The shards of this process.
    patience
        Seconds to wait for another process to release a shard.
    adopted_by
        Who lets this state take over a registry model of another state; "": nobody.
    beat
        Called often, as a sign of progress, with the current phase ("opening", "running",
        "waiting") and the counts so far.
    at, fragile
        As in `ShardProcess` and `Shared`.

    Raises
    ------
    RunError, HeldError, ConfigError, InputError, JournalError, ResumeError, EventError, OSError
        If the run cannot begin or continue; what was committed stays.
    """
    _keep_memory()
    raise_limit()
    with closing(StateLocks(settings.state_path, patience=patience)) as locks:
        locks.enter()
        attempts = _Attempts(
            settings,
            locks,
            until_eof=until_eof,
            fresh=fresh,
            amend=amend,
            share=share,
            adopted_by=adopted_by,
            beat=beat,
            at=at,
            fragile=fragile,
        )
        try:
            return attempts.go()
        finally:
            attempts.close()


class _Attempts:
    """Runs the dataflow until it ends well.

    It retries after an outage, and once after the learner raised on an event that is to be
    rejected.
    """

    def __init__(
        self,
        settings: Settings,
        locks: StateLocks,
        *,
        until_eof: bool,
        fresh: str,
        amend: bool,
        share: Share,
        adopted_by: str,
        beat: Callable[[str, Summary], None],
        at: Callable[[Place | None], None],
        fragile: Place | None,
    ) -> None:
        self._settings = settings
        self._locks = locks
        self._until_eof = until_eof
        self._fresh = fresh
        self._amend = amend
        self._signatures: dict[str, Signature] = {}
        self._registrars: list[Registrar] = []
        self._share = share
        self._adopted_by = adopted_by
        self._beat = beat
        self._at = at
        self._fragile = fragile
        self._summary = Summary()
        self._tallies: dict[str, Tally] = {}
        self._careful = False
        self._caught_up = until_eof
        self._stopping = False
        of_kafka = kind_of(settings.input).of_kafka
        self._outage = _Outage(lambda: beat("waiting", self._summary), of_kafka=of_kafka)
        self._begun_at = time.monotonic()
        self._waits = os.environ.get(REPLACES) == "1"  # for the brokers, without limit

    def go(self) -> Summary:
        """Run to the end, or until a signal; return the results."""
        while (ended := self._attempt()) is None:
            pass
        summary = self._summary
        for name, running in ended.shards.items():
            prefix = "" if ended.single else f"{name}."
            summary.metrics |= {prefix + k: v for k, v in running.shard.trainer.metrics.items()}
            summary.digest[name] = running.shard.trainer.digest()
            summary.seen += running.shard.trainer.seen
        summary.close()
        if counts := feedback_counts(summary.metrics):
            log.info("feedback", **counts)
        return summary

    def close(self) -> None:
        """Deliver what is left to the registry."""
        for registrar in self._registrars:
            if self._stopping:
                registrar.close()
            else:
                registrar.close(_NO_HURRY)

    def _attempt(self) -> ShardProcess | None:
        """Run once; return the process if it ended well, or None to retry."""
        shared = Shared(
            self._settings,
            self._summary,
            until_eof=self._until_eof,
            fresh=self._fresh,
            careful=self._careful,
            amend=self._amend,
            signatures=self._signatures,
            tallies=self._tallies,
            fragile=self._fragile,
        )
        current = ShardProcess(
            shared,
            self._locks,
            share=self._share,
            registrars=self._registrars,
            adopted_by=self._adopted_by,
            beat=lambda: self._beat("running", self._summary),
            at=self._at,
        )

        def stop() -> None:
            self._stopping = current.stopping = True

        with signals(stop):
            try:
                current.stopping = self._stopping
                current.caught_up = self._caught_up
                if not self._opened(current):
                    return None
                gc.collect()
                gc.freeze()  # models and modules live long: exclude them from collection
                begun = time.perf_counter()
                if current.shards:
                    cli_main(_dataflow(current))  # type: ignore[no-untyped-call]
                self._summary.seconds += time.perf_counter() - begun
                return current if self._ended_well(current) else None
            finally:
                current.close()
                gc.unfreeze()

    def _opened(self, current: ShardProcess) -> bool:
        """Open all that a run needs; return False if the brokers did not answer."""
        self._beat("opening", self._summary)
        try:
            current.open()
        except _UNAVAILABLE as error:
            limit = self._settings.input.wait_seconds or math.inf
            if not self._waits and time.monotonic() - self._begun_at >= limit:
                raise
            self._wait(error)
            return False
        self._waits = True
        self._outage.over()
        seen = sum(running.shard.trainer.seen for running in current.shards.values())
        log.info("running", name=self._settings.name, shards=len(current.shards), snapshot_at=seen)
        if not current.shards:
            log.warning("no_shards", note="there are more processes than shards; this one ends")
        return True

    def _ended_well(self, current: ShardProcess) -> bool:
        """Raise the run's failure, unless a retry may succeed: then return False."""
        failure = current.failure
        self._caught_up = current.caught_up
        if (
            isinstance(failure, EventError)
            and self._settings.model.on_error == "reject"
            and not self._careful
        ):
            # The learner may be half updated: resume, and reject further such events immediately.
            self._careful = True
            try:
                for running in current.shards.values():
                    running.shard.commit()
                    running.settle()
            except _UNAVAILABLE as error:
                self._wait(error)
            return False
        if isinstance(failure, AbandonedError):
            log.warning("command_abandoned", reason=str(failure))
            return False
        if isinstance(failure, _UNAVAILABLE):  # resume from what was committed
            self._wait(failure)
            return False
        if isinstance(failure, SystemExit | KeyboardInterrupt):
            raise RunError(f"the learner ended the run: {failure!r}") from failure
        if failure is not None:
            raise failure
        if current.input_failure is not None:
            raise current.input_failure
        if current.failing is not None:
            raise current.failing
        return True

    def _wait(self, reason: Exception) -> None:
        self._outage.wait(reason, lambda: self._stopping)


class _Outage:
    """Waits while the brokers, or an input, cannot be reached.

    Parameters
    ----------
    beat
        Called from time to time during a wait.
    of_kafka
        Whether the input is read from the brokers.
    """

    def __init__(self, beat: Callable[[], None], *, of_kafka: bool = True) -> None:
        self.begun = False
        self._beat = beat
        self._of_kafka = of_kafka
        self._of_input = False
        self._pause = _SHORTEST_PAUSE

    def wait(self, reason: Exception, stopping: Callable[[], bool]) -> None:
        """Wait; longer after each failed attempt.

        Raises
        ------
        RunError
            If the run is asked to stop meanwhile.
        """
        self.begun = True
        self._of_input = isinstance(reason, NoAnswerError) and not self._of_kafka
        if self._of_input:
            log.warning("input_unavailable", reason=str(reason), again_in=self._pause)
        else:
            log.warning("kafka_unavailable", reason=str(reason), again_in=self._pause)
        until = time.monotonic() + self._pause
        while time.monotonic() < until and not stopping():
            self._beat()
            time.sleep(IDLE.total_seconds())
        if stopping():
            raise RunError(f"stopped while it waited: {reason}")
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def over(self) -> None:
        """Log that the outage is over."""
        if self.begun:
            if self._of_input:
                log.info("input_available")
            else:
                log.info("kafka_available")
        self.begun = False
        self._pause = _SHORTEST_PAUSE
