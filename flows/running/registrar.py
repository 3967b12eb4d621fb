"""Connects the shards of a process to the registry, in a thread that no stream waits for.

The thread brings commands to the shards, takes their results to the registry, and requests new
versions. While the registry cannot be reached, the streams continue; results wait in the shards'
journals, snapshots and outboxes.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from midstream.engine.basics.clocks import SLACK, Ages, WallClock
from midstream.engine.basics.storage import LocalStorage
from midstream.engine.events.event import Alarm
from midstream.engine.registry.artifacts import ArtifactError, Manifest, StoreError
from midstream.engine.registry.database import OtherStateError, RegistryError
from midstream.engine.registry.registry import Drifted, Registry, ShardRow
from midstream.engine.registry.versions import UnknownVersionError
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import Done, Order
from midstream.engine.shard.header import VersionHeader
from midstream.engine.shard.journal import Command
from midstream.engine.shard.outbox import Outbox
from midstream.engine.state.snapshot import Snapshot, SnapshotError
from midstream.flows.claims.liveness import BEAT, Pulses
from midstream.flows.claims.registry import open_registry, take_over
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.logs import log

if TYPE_CHECKING:
    from midstream.engine.shard.header import Raised
    from midstream.engine.shard.shard import Shard

__all__ = ["BEAT", "Ready", "Registrar"]

_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts to reach a registry
_UNREPORTED = -1.0
_LAST = 2.5  # seconds that the end of a run waits for the request of its last version
_FIRST = 5.0  # seconds that a run waits at its start for earlier commands
_TWIN = 2  # beats after ours that prove an earlier process alive
_STARTING = 15.0  # seconds for which other processes may be starting
_DRIFTED = 60.0  # seconds between versions for drift; less, once there came
_DRIFTED_MARGINS = 10  # this many times the events of `versions.drift_margin`, or
_DRIFTED_SOON = 0.5  # that number of events itself within this many seconds
_HOLD = 5.0  # upper limit in seconds for which input waits for a due version


class Ready(NamedTuple):
    """A command for a shard, with the state that it restores, if any."""

    order: Order
    snapshot: Snapshot | None


class _Desk:
    """What the thread and one shard exchange."""

    def __init__(self, shard: "Shard", settings: Settings) -> None:
        self.name = shard.name
        self.epoch = shard.epoch
        self.begun = shard.begun
        self.version, self.known = shard.version, shard.trainer.seen
        self.ready: deque[Ready] = deque()
        self.behind = False  # whether there are commands not in `ready` yet
        self.handed = shard.last_command  # the last command that is, or was, ready
        self.to_report: list[Done] = []
        self.reported: dict[int, float | None] = {}  # by record, when it took effect, as reported
        self.confirmed: set[int] = set()
        self.seen, self.stepped = shard.applied, shard.stepped
        self.paused = shard.paused
        self.busy = False  # whether it replays: commands wait
        self.sources: set[str] = set()  # of its events so far
        self.alarms: list[Raised] = []  # to report, and
        self.alarms_reported: set[Raised] = set()
        self.keep_from = 0.0
        self.unsent: list[int] = []  # records of the parts in the outbox
        self.highest = max(shard.parent, shard.version)
        self.outbox = Outbox(LocalStorage(settings.state_path / "shards" / shard.name))
        for version in self.outbox.versions():
            with suppress(SnapshotError):  # reported when it is to be delivered
                self.unsent.append(VersionHeader.of(self.outbox.read(version).header).seq)


class Registrar:
    """Reports the shards of a process to the registry, and brings them commands.

    The thread of the shards calls its methods. They return at once, except `start`, `close` and, if
    it is to wait, `may_end`.

    Parameters
    ----------
    settings
        The config's settings of versions.
    shards
        The shards of this process.
    names
        The names of all shards of the model.
    session
        Shared by processes that were started together; "": this process is alone.
    adopted_by
        Who lets this state take over a registry model of another state; "": nobody.

    Attributes
    ----------
    refusal
        Why this run may not continue: the registry's model belongs to another state.
    """

    def __init__(
        self,
        settings: Settings,
        shards: Sequence["Shard"],
        names: Collection[str],
        *,
        session: str = "",
        adopted_by: str = "",
    ) -> None:
        self._settings = settings.versions
        self._all_settings = settings
        self._adopted_by = adopted_by
        self.refusal = ""
        self._run = f"{session}-{os.urandom(8).hex()}"
        self._registry: Registry | None = None
        self._newest = 0  # of the requested versions, as far as known
        self._begun = time.monotonic()
        self._clock = WallClock()
        self._ages: Ages | None = None  # once the versions are known
        self._pulses: Pulses | None = None
        self._ahead = 0  # the last version reported as from the future
        self._session = session
        self._beaten_at = 0.0
        self._found: dict[str, list[ShardRow]] = {}  # beats of processes that had a shard before us
        self._cleared_at = 0.0
        self._wanted: dict[str, None] = {}  # reasons for input to wait for the thread, in order
        self._held_until = 0.0  # by the monotonic clock
        self._stepped = 0  # events, in all our shards
        self._reported_applied = 0  # events last reported to the registry, in all our shards
        self._due_at = float("inf")  # number of events at which a version is due
        self._deliver_at = 0.0
        self._deliver_pause = _SHORTEST_PAUSE
        self._since: dict[str, int] = {}  # as returned by `Registry.join`
        self._logged_waiting = 0  # the last waiting command that was logged
        self._failing = False
        self._pause = _SHORTEST_PAUSE
        self._wake = threading.Event()
        self._looked = threading.Event()
        self._closing = False
        self._may_end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="registrar", daemon=True)
        self.adopt(shards, names)

    def adopt(self, shards: Sequence["Shard"], names: Collection[str]) -> None:
        """Serve these shards from now on: the previous ones, reopened."""
        self._names = sorted({*names, *(shard.name for shard in shards)})
        self._highest = max((shard.last_command for shard in shards), default=0)
        self._ending = 0  # as in `ShardRow`
        self._asked = False  # for the last version
        self._may_end.clear()
        self._desks = {shard.name: _Desk(shard, self._all_settings) for shard in shards}
        self._stepped = sum(desk.stepped for desk in self._desks.values())
        for shard in shards:
            self.visit(shard)

    def start(self, stopping: Callable[[], bool], patience: float = _FIRST) -> None:
        """Start; wait some seconds for commands that were given before the run."""
        self._thread.start()
        until = time.monotonic() + patience
        while not self._looked.wait(0.05) and not stopping():
            if time.monotonic() > until:
                log.warning("registry_slow", note="commands are looked for as it goes on")
                return

    # --- called by the shards

    def visit(self, shard: "Shard") -> None:
        """Exchange news with a shard."""
        desk = self._desks[shard.name]
        self._count(desk, shard)
        desk.paused = shard.paused
        desk.version, desk.known = shard.version, shard.trainer.seen
        self._look_for_alarms(desk, shard)
        if self.left <= 0:
            self._due_at = float("inf")
            self._want("schedule")
        if len(shard.data.sources) != len(desk.sources):
            desk.sources = desk.sources.union(shard.data.sources)
        was, desk.busy = desk.busy, shard.replaying
        if was and desk.behind and not desk.busy:  # commands precede new input, as they were given
            self._want("commands")
        shard.keep_from = min([desk.keep_from, *desk.unsent])
        if desk.confirmed:
            known, desk.confirmed = desk.confirmed, set()
            shard.confirm(known)
        if not shard.done or desk.to_report:
            return
        news = [d for d in shard.done if desk.reported.get(d.seq, _UNREPORTED) != d.done_at]
        if news:
            desk.reported = {done.seq: done.done_at for done in shard.done}
            desk.to_report = [msgspec.structs.replace(done) for done in news]
            self._wake.set()

    def _look_for_alarms(self, desk: _Desk, shard: "Shard") -> None:
        """Take note of alarms; after drift, input waits for the version to be made."""
        if desk.alarms_reported:
            shard.confirm_alarms(desk.alarms_reported)
            desk.alarms_reported = set()
        if shard.alarms == desk.alarms:
            return
        news = [alarm for alarm in shard.alarms if alarm not in desk.alarms]
        desk.alarms = list(shard.alarms)
        if self._settings.on_drift and any(alarm.kind == "drift" for alarm in news):
            self._want("drift")
        elif news:
            self._wake.set()

    def learned(self, shard: "Shard") -> None:
        """Take note that a shard has applied new input."""
        self._count(self._desks[shard.name], shard)

    def is_due(self, alarms: Sequence[Alarm]) -> bool:
        """Whether a version is due after the input that a shard just applied, with its alarms.

        The input has to be committed before `visit` requests the version. Otherwise a crash could
        leave a version of input that was never applied.
        """
        drift = self._settings.on_drift and any(alarm.kind == "drift" for alarm in alarms)
        return drift or self.left <= 0

    @property
    def left(self) -> float:
        """Number of events until a version is due, or until that has to be checked."""
        return self._due_at - self._stepped

    def waits(self) -> bool:
        """Whether new input has to wait, so that a version is made of the current state.

        Call it before `take`. While the registry cannot be reached, input does not wait.
        """
        return bool(self._wanted) and time.monotonic() < self._held_until

    def _count(self, desk: _Desk, shard: "Shard") -> None:
        self._stepped += shard.stepped - desk.stepped
        desk.stepped, desk.seen = shard.stepped, shard.applied

    def _want(self, reason: str) -> None:
        if not self._wanted:
            can = self._thread.is_alive() or self._thread.ident is None  # not started yet
            can = can and not self._failing and not self._closing
            self._held_until = time.monotonic() + (_HOLD if can else 0.0)
        self._wanted[reason] = None
        self._wake.set()

    def take(self, shard: str, *, only: str | None = None) -> Ready | None:
        """Return the next command for a shard, if there is one (of the kind `only`)."""
        ready = self._desks[shard].ready
        if not ready or (only is not None and ready[0].order.kind != only):
            return None
        return ready.popleft()

    def put_back(self, shard: str, ready: Ready) -> None:
        """Return a command to the queue: it could not be carried out or refused yet."""
        self._desks[shard].ready.appendleft(ready)

    def made(self, shard: str, seq: int) -> None:
        """Take note that part of a version, of record `seq`, is in a shard's outbox."""
        self._desks[shard].unsent.append(seq)
        self._wake.set()

    def may_end(self, *, changed: bool, wait: bool) -> bool:
        """Whether the run may end, when all its shards are at their end.

        If a last version is wanted, all running shards of the model have to be at their end too,
        and it has to be requested: `take` then returns the command.

        Parameters
        ----------
        changed
            Whether anything was learned that no version contains.
        wait
            Wait briefly for the registry, but not for other processes: the run is asked to stop.
        """
        waiting = any(desk.behind or desk.ready for desk in self._desks.values()) or self.waits()
        if not wait and waiting:
            self._wake.set()
            return False
        if not self._settings.on_shutdown or not self._thread.is_alive():
            return True
        if not self._ending:
            self._ending = 2 if changed else 1
            self._wake.set()
        if wait and not self._may_end.wait(_LAST):
            log.warning("version_not_made", reason="the registry or other shards did not answer")
            return True
        return self._may_end.is_set()

    def close(self, patience: float = _LAST) -> None:
        """Deliver the rest to the registry, if that takes less than `patience` seconds, and end."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience)
        if self._thread.is_alive():
            log.warning("registry_not_updated", note="it is updated at the next start")
            # The thread ends with the process.

    # --- the thread

    def _work(self) -> None:
        while True:
            closing = self._closing
            try:
                self._turn()
                if closing and self._registry is not None:
                    self._beat(self._registry, now=True)
                    self._registry.leave(self._run)
            except OtherStateError as error:  # permanent
                self.refusal = str(error)
                self._troubled(self.refusal)
                break
            except (RegistryError, StoreError, OSError) as error:
                self._troubled(str(error))
            except Exception as error:  # noqa: BLE001 the stream goes on, and this is tried again
                self._troubled(f"internal error: {type(error).__name__}: {error}")
            else:
                self._well()
            if closing:
                break
            self._wake.wait(self._pause if self._failing else self._settings.poll_seconds)
            self._wake.clear()
        if self._registry is not None:
            self._registry.close()

    def _troubled(self, reason: str) -> None:
        if self.refusal and self._closing:  # otherwise the run ends with it
            log.error("registry_of_another_state", reason=reason)
        elif not (self._failing or self.refusal):
            log.warning(
                "registry_unavailable", reason=reason, note="learning goes on; it is tried again"
            )
        if self._registry is not None:  # it may be another one when it is back
            self._registry.close()
            self._registry = None
        self._failing = True
        self._wanted.clear()
        for desk in self._desks.values():
            desk.behind = False  # a shard at its end does not wait for it
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._ending:
            self._may_end.set()
        self._looked.set()
        time.sleep(0.05)  # limits the rate of retries after wake-ups

    def _well(self) -> None:
        if self._failing:
            log.info("registry_available")
        self._failing = False
        self._pause = _SHORTEST_PAUSE

    def _turn(self) -> None:
        self._watch_clock()
        registry = self._registry or self._open()
        wanted = list(self._wanted)
        self._bring(registry)
        self._looked.set()
        self._beat(registry, now="schedule" in wanted or "drift" in wanted)
        self._report(registry)
        self._schedule(registry)
        if any(desk.behind for desk in self._desks.values()):
            wanted = []  # other commands precede the awaited ones
        for reason in wanted:  # whose commands are ready now
            self._wanted.pop(reason, None)
        if self._closing or time.monotonic() >= self._deliver_at:
            try:
                self._deliver(registry)
            except StoreError as error:  # commands do not wait for it
                self._deliver_at = time.monotonic() + self._deliver_pause
                log.warning(
                    "artifacts_unavailable", reason=str(error), again_in=self._deliver_pause
                )
                self._deliver_pause = min(2 * self._deliver_pause, _LONGEST_PAUSE)
            else:
                self._deliver_pause = _SHORTEST_PAUSE

    def _open(self) -> Registry:
        self._take_over()
        registry = open_registry(self._all_settings, create=True)
        desks = self._desks
        highest = max((desk.highest for desk in desks.values()), default=0)
        with suppress(StoreError):  # do not overwrite files of a lost registry
            highest = max(highest, *registry.artifacts.versions(), 0)
        try:
            registry.artifacts.claim(registry.identity)
        except StoreError:
            pass  # it is checked again before any write
        except OtherStateError:
            registry.close()
            raise
        epochs = {name: desks[name].epoch if name in desks else None for name in self._names}
        self._adopt(registry)
        self._since = registry.join(epochs, self._highest, highest)
        new = not registry.deployments()
        for desk in desks.values():  # a lost registry does not know it any more
            reported = [desk.begun]
            if new and desk.version:
                why = "the registry was made anew"
                live = Command(0, "restore", desk.version, at=time.time(), reason=why)
                reported.append(Done(live, desk.begun.seq + 1, seen=desk.known, done_at=live.at))
            registry.report(desk.name, desk.epoch, reported)
        self._newest = registry.newest()[-1]
        if self._ages is None:
            self._ages = Ages(self._newest)
        self._ages.came(self._newest)
        self._pulses = Pulses(registry, again=-1.0)
        self._registry = registry
        return registry

    def _take_over(self) -> None:
        """Take over the registry's model, once, if wanted."""
        if not self._adopted_by:
            return
        take_over(self._all_settings, self._highest, self._adopted_by)
        self._adopted_by = ""

    def _adopt(self, registry: Registry) -> None:
        """Adopt versions whose files exist after the registry was lost.

        From a store that others may use, adopt only those with the same beginning as our shards.
        """
        place = Path(self._all_settings.artifacts)
        alone = place.is_relative_to(self._all_settings.state_path)
        epochs = {(desk.name, desk.epoch) for desk in self._desks.values()}

        def ours(manifest: Manifest) -> bool:
            return alone or any((p.shard, p.saved.epoch) in epochs for p in manifest.shards)

        try:
            adopted, left = registry.adopt(ours)
        except StoreError as error:
            log.warning("artifacts_unavailable", reason=str(error))
            return
        if adopted:
            log.info(
                "versions_adopted",
                versions=f"{adopted[0]} to {adopted[-1]}",
                count=len(adopted),
                note="the registry did not know them; each is kept while it is tagged adopted-N",
            )
        for version, reason in left.items():
            log.warning("version_not_adopted", version=version, reason=reason)

    def _bring(self, registry: Registry) -> None:
        """Bring new commands to the shards."""
        desks = list(self._desks.values())
        for desk in desks:  # earlier commands were handled before this shard began
            desk.handed = max(desk.handed, self._since.get(desk.name, 0))
        orders = registry.commands(min((desk.handed for desk in desks), default=0))
        # A new command for the end covers our end too: others wait for us before they request it.
        news = [order for order in orders if order.id > max(desk.handed for desk in desks)]
        self._asked |= bool(self._ending) and any(o.reason == "shutdown" for o in news)
        made = (order.version for order in orders if command_kind(order.kind).makes_version)
        self._newest = max(self._newest, *made, 0)
        if self._ages is not None:
            self._ages.came(self._newest)
        for desk in desks:
            behind = False  # set at the end: a shard at its end must not miss any
            for order in orders:
                if order.id <= desk.handed:
                    continue
                # A waiting command can be withdrawn; and one state in memory is enough.
                if desk.busy or any(ready.snapshot is not None for ready in desk.ready):
                    behind = True
                    break
                if command_kind(order.kind).for_shards:
                    try:
                        ready = self._prepared(registry, desk.name, order)
                        if registry.take(order.id):
                            desk.ready.append(ready)
                    except StoreError as error:  # later commands wait for it, in this shard
                        if self._logged_waiting != order.id:
                            self._logged_waiting = order.id
                            log.warning("command_waits", id=order.id, reason=str(error))
                        break
                desk.handed = order.id
            desk.behind = behind

    def _prepared(self, registry: Registry, shard: str, order: Order) -> Ready:
        if not command_kind(order.kind).replaces:
            return Ready(order, None)
        try:
            return Ready(order, registry.read(order.version, shard))
        except (UnknownVersionError, ArtifactError) as error:
            return Ready(msgspec.structs.replace(order, problem=str(error)), None)

    def _report(self, registry: Registry) -> None:
        """Report what the shards did, and where they saw drift."""
        for desk in self._desks.values():
            if desk.to_report:
                news = desk.to_report
                registry.report(desk.name, desk.epoch, news)
                desk.confirmed |= {done.seq for done in news if done.done_at is not None}
                desk.to_report = []
            if desk.alarms and not desk.alarms_reported:
                alarms = desk.alarms
                reported = [
                    Drifted(desk.name, desk.epoch, *alarm[:3], alarm.at, *alarm[3:5])
                    for alarm in alarms
                ]
                if registry.alarm(reported, self._due_for_drift):
                    self._bring(registry)
                desk.alarms_reported = set(alarms)

    def _due_for_drift(self, at: float, then: int, seen: int, _: str, version: int) -> bool:
        """Whether a version is due for drift, given when the last one was requested."""
        if not self._settings.on_drift:
            return False
        waited = self._age(version, at)
        if not version or waited >= _DRIFTED or seen < then:
            return True
        margins = 1 if waited >= _DRIFTED_SOON else _DRIFTED_MARGINS
        return seen - then >= margins * max(self._settings.drift_margin, 1)

    def _deliver(self, registry: Registry) -> None:
        """Take the parts of versions from the outboxes; complete versions that have all parts."""
        came = False
        sent: dict[str, list[int]] = {}
        desks = list(self._desks.values())  # `adopt` may replace them meanwhile
        for desk in desks:
            sent[desk.name] = list(desk.unsent)
            for version in desk.outbox.versions():
                try:
                    snapshot = desk.outbox.read(version)
                except SnapshotError as error:
                    log.error("version_lost", shard=desk.name, version=version, reason=str(error))
                else:
                    registry.put(desk.name, version, snapshot)
                    came = True
                desk.outbox.remove(version)
        if not came and time.monotonic() - self._cleared_at < 10 * BEAT:
            return
        self._cleared_at = time.monotonic()
        for version in registry.complete():
            try:
                row = registry.version(version)
            except UnknownVersionError:  # another process has pruned it already
                continue
            log.info(
                "version",
                version=version,
                reason=row.reason,
                bytes=row.bytes,
                shards=len(row.shards),
            )
        if self._settings.prune:
            kept = self._settings
            now = self._clock.now()
            gone = registry.retention.prune(kept.keep, kept.keep_days, now, hours=kept.keep_hours)
            recent = registry.retention.recent(gone, now)
            for version in gone:
                note = {}
                if version in recent:
                    note = {"note": "of the last 24 hours", "instead": recent[version] or "none"}
                log.info("version_pruned", version=version, **note)
        days, now = self._settings.rewind_days, self._clock.now()
        for desk in desks:
            desk.keep_from = registry.retention.keep_from(desk.name, desk.epoch, days, now)
            for seq in sent.get(desk.name, ()):  # in place: more may come meanwhile
                desk.unsent.remove(seq)

    def _beat(self, registry: Registry, *, now: bool = False) -> None:
        soon = now or self._settings.every_events or self._ending
        if time.monotonic() - self._beaten_at < BEAT and not soon:
            return
        self._beaten_at = time.monotonic()
        host, at = socket.gethostname(), registry.clock()
        desks = list(self._desks.values())
        seen = [desk.seen for desk in desks]  # the shards advance meanwhile
        alone = not kind_of(self._all_settings.input).across_hosts
        ours = {desk.name for desk in desks}
        before = [row for row in registry.shards() if row.shard in ours] if alone else []
        registry.beat(
            [
                ShardRow(
                    desk.name,
                    host,
                    os.getpid(),
                    at,
                    applied,
                    desk.paused,
                    self._run,
                    self._ending,
                    msgspec.json.encode(sorted(desk.sources)).decode(),
                )
                for desk, applied in zip(desks, seen, strict=True)
            ]
        )
        self._reported_applied = sum(seen)
        self._look_for_twins(registry, before)

    def _look_for_twins(self, registry: Registry, before: Sequence[ShardRow]) -> None:
        """Raise OtherStateError if the process that had a shard before us still works on it.

        No other process can hold our state folder. If hosts share the input, the newer run fences
        off the older. So a copy of the folder is in use under the same name.
        """
        for row in before:
            found = self._found.setdefault(row.shard, [row])
            first, last = found[0], found[-1]
            if row.run in ("", self._run) or row.beat_at in (0.0, last.beat_at):
                continue
            if row.run == first.run:
                found.append(row)
            if len(found) > _TWIN:
                raise OtherStateError(
                    f"{registry.database.place}: process {row.pid} on {row.host} is at work on "
                    f"shard {row.shard} of model {self._all_settings.name!r}, with the identity of "
                    "the state here: one is a copy of the other; give the config of the copy a "
                    "`name` of its own"
                )

    def _schedule(self, registry: Registry) -> None:
        """Request a version if one is due."""
        every, often = self._settings.every_seconds, self._settings.every_events

        def due(at: float, then: int, seen: int, _: str, version: int) -> bool:
            new = _since(then, seen)
            waited = self._age(version, at)
            return new > 0 and bool((every and waited >= every) or (often and new >= often))

        if (every or often) and due(*registry.newest()):
            registry.request_version("schedule", due)
            self._bring(registry)
        if often:
            _, then, seen, *_ = registry.newest()
            # Other shards may learn as much meanwhile; then check again.
            share = len(self._desks) / len(self._names)
            self._due_at = self._reported_applied + max((often - _since(then, seen)) * share, 1.0)
        if self._ending and not self._may_end.is_set():
            self._end(registry)

    def _age(self, version: int, at: float) -> float:
        """Return the age in seconds of a version requested at `at`, by its own record.

        One from the future, made by a clock that was ahead, has the maximum age and is logged.
        """
        if self._ages is None:  # no version is requested before the registry is open
            return 0.0
        if (ahead := self._ages.ahead(version, at)) and self._ahead < version:
            self._ahead = version
            log.warning(
                "clock",
                version=version,
                ahead_seconds=round(ahead),
                note="it was made by a clock that was ahead, or ours is behind; versions go on",
            )
        return self._ages.of(version, at)

    def _watch_clock(self) -> None:
        """Log if the clock was set during the run."""
        if by := self._clock.look():
            note = "it gives no durations"
            if by > SLACK and self._settings.prune:
                note += "; for a day, no version is taken to be older for that"
            log.warning("clock", set_by_seconds=round(by, 3), note=note)

    def _end(self, registry: Registry) -> None:
        """Request the last version, once all running shards are at their end."""
        if not self._asked:
            rows = registry.shards()
            if any(self._may_come(row) for row in rows):
                return
            if any(row.ending == 2 and self._is_here(row) for row in rows):
                known = self._newest
                registry.request_version("shutdown", lambda *last: last[-1] <= known)
                self._bring(registry)
        self._may_end.set()

    def _is_here(self, row: ShardRow) -> bool:
        """Whether a shard is running, or was in a process started together with this one."""
        together = bool(self._session) and row.run.startswith(f"{self._session}-")
        running = self._pulses is not None and self._pulses.running(row)
        return row.run == self._run or running or together

    def _may_come(self, row: ShardRow) -> bool:
        """Whether a shard has not reached the end of its run, or may be starting."""
        if self._is_here(row):
            return not row.ending
        return bool(self._session) and time.monotonic() - self._begun < _STARTING


def _since(then: int, seen: int) -> int:
    """Return the number of events since `then`; all of them if the model was started over."""
    return seen - then if seen >= then else seen
