"""The shards of one process, during one execution of the dataflow.

An exception in a step of the dataflow would reach the operator as a panic of the runtime. So steps
are guarded: `ShardProcess.failure` keeps the gravest exception, items in flight pass unused, and
`midstream.flows.running.online.run` raises it at the end.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from midstream.connectors.input import Decoded, InputError, NoAnswerError
from midstream.engine.basics.storage import raise_limit
from midstream.engine.shard.outcome import Outcome
from midstream.engine.shard.resuming import ResumeError
from midstream.flows.claims.identity import settle
from midstream.flows.claims.locks import StateLocks
from midstream.flows.inputs.feedback import connect
from midstream.flows.logs import log
from midstream.flows.running.counters import feedback_counts
from midstream.flows.running.definition import change_fields
from midstream.flows.running.errors import FailingError, RunError
from midstream.flows.running.failures import gravity
from midstream.flows.running.numbers import ShardNumbers
from midstream.flows.running.registrar import Registrar
from midstream.flows.running.shards import Item, RunningShard, Shared
from midstream.flows.running.shares import SESSION, WHOLE, Place, Share

__all__ = ["ShardProcess"]

_DESCRIPTORS = 64  # that a process has open besides its input
_FEW = 4  # shards up to which they are opened one after the other
_OPENERS = 16
_RESCAN_SECONDS = 5.0
_REPORT_SECONDS = 10.0
_TOLD = ("waiting", "joined", "expired", "late", "dangling", "coverage")  # of feedback, on the way


class ShardProcess:
    """The shards of one process, and what the steps of the dataflow do with them.

    Parameters
    ----------
    shared
        What the shards share; `ShardProcess` sets what is opened here.
    locks
        The locks on the state folder.
    share
        The shards of this process.
    registrars
        The registrar of the process, once it exists, for all executions of the dataflow.
    adopted_by
        Who lets this state take over a registry model of another state; "": nobody.
    beat
        Called at every turn, as a sign of progress.
    at
        Called with the place of the next block to decode and learn, and with None afterwards.
    """

    def __init__(
        self,
        shared: Shared,
        locks: StateLocks,
        *,
        share: Share = WHOLE,
        registrars: list[Registrar] | None = None,
        adopted_by: str = "",
        beat: Callable[[], None] = lambda: None,
        at: Callable[[Place | None], None] = lambda _: None,
    ) -> None:
        self.shared = shared
        self.single = shared.settings.one_shard
        self.stopping = False
        self.caught_up = False
        self.failing: FailingError | None = None
        self.input_failure: InputError | None = None
        self.shards: dict[str, RunningShard] = {}
        if shared.settings.input.ahead:
            shared.ahead = ThreadPoolExecutor(1, "ahead")
        self._settings = shared.settings
        self._locks = locks
        self._share = share
        self._registrars = [] if registrars is None else registrars
        self._adopted_by = adopted_by
        self._beat = beat
        self._at = at
        self._ended: set[str] = set()
        self._waited = False  # at the end, for the registry
        self._idle: set[str] = set()
        self._known: set[str] = set()
        self._looked_at = time.monotonic()
        self._reported = (time.monotonic(), 0)

    @property
    def failure(self) -> BaseException | None:
        """The gravest exception so far; after it nothing more is learned."""
        return self.shared.failure

    def open(self) -> None:
        """Open every shard: resume its state, find its input."""
        self.shared.identity = settle(self._settings, self._locks)
        source = connect(self._settings, until_eof=self.shared.until_eof)
        self.shared.source = source
        numbers = ShardNumbers(self._settings.state_path, self._locks)
        parts: list[str | None] = [None]
        begun = 1  # number of shards when the state was begun
        if not self.single:
            found = source.partitions()
            parts = [*(found if source.numbered else numbers.remembered(found, source.is_new))]
            begun = numbers.at_first(len(parts)) if source.numbered else len(parts)
        shards = {f"{i:03d}": part for i, part in enumerate(parts)}
        mine = {name: part for name, part in shards.items() if self._share.has(name)}
        if source.descriptors:
            self._check_descriptors(len(mine))

        def open_shard(name: str) -> None:
            self._locks.take(name)
            added = int(name) >= begun
            try:
                self.shards[name] = RunningShard(self.shared, name, mine[name], added=added)
            except ResumeError as error:
                for change in error.changes:
                    log.warning("state_differs", shard=name, **change_fields(change))
                raise

        if len(mine) > _FEW and self._settings.journal_topic is not None:
            log.info("opening", shards=len(mine))
            with ThreadPoolExecutor(_OPENERS) as pool:  # each waits for the brokers
                list(pool.map(open_shard, mine))
            self.shards = dict(sorted(self.shards.items()))
        else:
            for name in mine:
                open_shard(name)
        if self._settings.versions.enabled and self.shards:
            self._call_registrar(shards)
        read = (running.input.names for running in self.shards.values())
        self._known = {part for part in shards.values() if part}.union(*read)

    def _check_descriptors(self, shards: int) -> None:
        """Raise RunError if this process may not open as many files as it reads at once."""
        most, needed = raise_limit(), (shards + _DESCRIPTORS) * 4 // 3  # a quarter: storages
        if most < needed:
            raise RunError(
                f"{shards} shards read as many files at once, for which this process needs about "
                f"{needed} descriptors, and it may have {most}: raise the limit (ulimit -n "
                f"{needed}), or give some of the shards to more processes (--processes)"
            )

    def _call_registrar(self, names: Collection[str]) -> None:
        """Let the registrar serve the current shards."""
        shards = [running.shard for running in self.shards.values()]
        if not self._registrars:
            session = os.environ.get(SESSION, "")
            self._registrars.append(
                Registrar(
                    self._settings, shards, names, session=session, adopted_by=self._adopted_by
                )
            )
            # If the run ends by itself, a late command would never be carried out.
            self._registrars[0].start(lambda: self.stopping, 60.0 if self.shared.until_eof else 5.0)
        else:
            self._registrars[0].adopt(shards, names)
        self.shared.registrar = self._registrars[0]
        self._check_registrar()
        for running in self.shards.values():
            if running.shard.paused:
                log.warning("paused", shard=running.name, note="`midstream resume` has it go on")

    def _check_registrar(self) -> None:
        """Raise RunError if the registry's model belongs to another state."""
        if self.shared.registrar is not None and self.shared.registrar.refusal:
            raise RunError(self.shared.registrar.refusal)

    def _look(self) -> None:
        """From time to time, log new partitions, once each.

        Raises
        ------
        InputError
            If the input is missing, or has been replaced.
        """
        now = time.monotonic()
        source = self.shared.source
        if source is None or now - self._looked_at < _RESCAN_SECONDS:
            return
        self._looked_at = now
        for name in source.look(self._known):
            if self._share.first == 0:
                self._known.add(name)
                log.warning("input_new", input=name, action="it is taken up by a restart")

    def close(self) -> None:
        """Close every shard's files."""
        self.shared.rejected_log.close()
        for running in self.shards.values():
            running.close()
        if self.shared.ahead is not None:
            self.shared.ahead.shutdown()
        if self.shared.source is not None:
            self.shared.source.close()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep an exception, so that it does not become a panic of the runtime."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 raised again at the end of the run
            if gravity(error) > gravity(self.failure):
                self.shared.failure = error

    def next_items(self, running: RunningShard) -> list[tuple[str, Item]]:
        """Return what the source of a shard emits now."""
        items = []
        with self.guard():
            try:
                self._check_registrar()
                self._look()
                found = running.next()
            except NoAnswerError:
                raise  # it is waited for
            except InputError as error:  # what was read before may be valid: commit, and end
                self.input_failure = self.input_failure or error
                self.stopping = True
                return self.last_items(running)
            if found.work is not None or found.command is not None:
                items = [(running.name, found)]
            elif running.ended and self._all_ended(running):
                items = self.last_items(running)
            else:
                items = [(running.name, Item())]
        return items

    def _all_ended(self, running: RunningShard) -> bool:
        """Whether this and all other shards have reached their end, and the run may end."""
        self._ended.add(running.name)
        return len(self._ended) == len(self.shards) and self._may_end(wait=False)

    def _may_end(self, *, wait: bool) -> bool:
        if self.shared.registrar is None or self.failure is not None:
            return True
        self._check_registrar()
        changed = any(running.shard.changed for running in self.shards.values())
        return self.shared.registrar.may_end(changed=changed, wait=wait)

    def last_items(self, running: RunningShard) -> list[tuple[str, Item]]:
        """Return what the source of a shard emits at the end of the run."""
        items = [Item(end=True)]
        with self.guard():
            if self.stopping and not self._waited:
                self._waited = True
                self._may_end(wait=True)
            items = running.last_items()
        return [(running.name, item) for item in items]

    def decode(
        self, items: Iterable[tuple[str, Item]]
    ) -> list[tuple[str, tuple[Item, Decoded | None]]]:
        """Decode blocks to batches; pass everything else."""
        out: list[tuple[str, tuple[Item, Decoded | None]]] = []
        for name, item in items:
            with self.guard():
                if self.failure is None:
                    decoded = item.decoded
                    if item.work is not None:
                        self._at(Place.of(name, item.work))
                        if decoded is None:
                            decoded = self.shards[name].reader.decode(item.work)
                    out.append((name, (item, decoded)))
        return out

    def learn(
        self, items: Iterable[tuple[str, tuple[Item, Decoded | None]]]
    ) -> list[tuple[str, tuple[Item, Outcome | None]]]:
        """Apply batches to their shards; pass everything else."""
        out: list[tuple[str, tuple[Item, Outcome | None]]] = []
        for name, (item, decoded) in items:
            with self.guard():
                if self.failure is None:
                    outcome = None
                    if item.work is not None and decoded is not None:
                        self._at(Place.of(name, item.work))
                        outcome = self.shards[name].learn(item.work, decoded)
                        self._at(None)
                    out.append((name, (item, outcome)))
        return out

    def output(self, items: Iterable[tuple[Item, Outcome | None]], running: RunningShard) -> None:
        """Commit the outcome of a shard."""
        for item, outcome in items:
            with self.guard():
                if outcome is not None:
                    running.publish(outcome)
                elif item.command is not None:
                    running.obey(item.command)
                elif item.end:
                    if self.shared.until_eof and not self.stopping and self.failure is None:
                        self.failing = self.failing or running.judge()
                    running.shard.close()
                else:
                    running.shard.tick()
                    self.notice_caught_up(running)
                running.settle()
        self.report()

    def notice_caught_up(self, running: RunningShard) -> None:
        """Log once that every shard has read what exists; `running` just has."""
        if self.caught_up or not running.input.names or running.held:
            return
        self._idle.add(running.name)
        if len(self._idle) == len(self.shards):
            self.caught_up = True
            for other in self.shards.values():
                other.shard.commit()
                other.settle()
            log.info("caught_up", events=self.shared.summary.events)

    def report(self) -> None:
        """Signal progress; log it from time to time."""
        self._beat()
        then, events = self._reported
        now = time.monotonic()
        if now - then < _REPORT_SECONDS:
            return
        count = self.shared.summary.events
        self._reported = (now, count)
        fields: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        for running in self.shards.values():
            found = running.shard.trainer.metrics
            for name, value in list(found.items())[:1]:
                fields[f"{name}{running.suffix}"] = round(value, 4)
            metrics |= {f"{running.name}.{name}": value for name, value in found.items()}
        counts = feedback_counts(metrics)
        fields |= {name: counts[name] for name in _TOLD if name in counts}
        rate = round((count - events) / (now - then))
        log.info("progress", events=count, events_per_second=rate, **fields)
