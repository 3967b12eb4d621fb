"""Lives of a shard with its registrar and registry, as an operator commands it and all of it dies.

One seed decides the input, its alarms, what the operator gives and takes back, and where the
process dies: before or after a commit of the registry or the journal, or a file of a version. The
registrar's thread is no thread here: its turns come at moments that the seed decides, too.
"""

import os
import random
from contextlib import contextmanager, suppress
from itertools import count
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa
from project import Project
from simulation import Crash, make_trainer

from midstream.engine.basics.storage import LocalStorage
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Alarm
from midstream.engine.registry import database
from midstream.engine.registry.artifacts import Artifacts
from midstream.engine.registry.database import Database
from midstream.engine.registry.registry import CommandError, Registry
from midstream.engine.registry.schema import COMMANDS
from midstream.engine.registry.versions import UnknownVersionError
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import JUST_MADE, Order
from midstream.engine.shard.journal import Command, Exclude, FileJournal, Range
from midstream.engine.shard.outbox import Outbox
from midstream.engine.shard.shard import Shard
from midstream.engine.state.snapshot import SnapshotFolder
from midstream.engine.training.trainer import Trainer
from midstream.flows import logs
from midstream.flows.claims.registry import open_registry
from midstream.flows.loading import load
from midstream.flows.running import registrar

SEEDS = int(os.environ.get("MIDSTREAM_REGISTRAR_SEEDS", "6"))
MORE = int(os.environ.get("MIDSTREAM_MORE_REGISTRAR_SEEDS", "100"))
EVENTS, EVERY, BATCH = 120, 15, 4
ALARMS = (31, 32, 70, 111)  # events; of the first two, which are one drift, there is one version
CONFIG = f"""[input]
path = "events.jsonl"
[versions]
every_events = {EVERY}
every_seconds = 0
on_shutdown = false
drift_margin = 3
keep = 1000
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No time is waited for disks, nor for the thread, which is none."""
    logs.configure()
    for name in ("sync", "sync_folder"):
        monkeypatch.setattr(LocalStorage, name, lambda *_: None)
    monkeypatch.setattr(registrar, "_HOLD", 1e9)
    monkeypatch.setattr(registrar, "_DRIFTED_SOON", 0.0)

    def open_sqlite(connection, _):
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr(database, "_open_sqlite", open_sqlite)


class Turned(registrar.Registrar):
    """A registrar whose thread is turned by hand."""

    def __init__(self, settings, shards):
        super().__init__(settings, shards, ["000"])
        self._thread = SimpleNamespace(is_alive=lambda: True)

    def turn(self):
        self._deliver_at = self._cleared_at = 0.0
        self._turn()


class Life:
    """A shard's life, and what its operator wants of it."""

    def __init__(self, seed, folder, patch):
        self.rng = random.Random(seed)
        self.fuse = -1
        self.settings = load(Project(folder, config=CONFIG).config)
        self.folder = LocalStorage(self.settings.state_path / "shards" / "000")
        self.operator = open_registry(self.settings, create=True)
        self.registrar = None
        self.left = 12  # commands
        self._patch(patch)

    def _patch(self, patch):
        operate = self.operate
        writing = Database.writing

        @contextmanager
        def breaking(database):
            if database is self.operator.database:
                with writing(database) as connection:
                    yield connection
                return
            operate(lambda: None)
            with writing(database) as connection:
                yield connection
            operate(lambda: None)

        step = Trainer.step

        def alarmed(trainer, batch):
            result = step(trainer, batch)
            return msgspec.structs.replace(
                result,
                alarms=[
                    Alarm("drift", "adwin", None, 1.0, 0.5, i)
                    for i in batch.offsets.tolist()
                    if i in ALARMS
                ],
            )

        patch.setattr(Trainer, "step", alarmed)
        patch.setattr(Database, "writing", breaking)
        for owner, name in ((FileJournal, "commit"), (Outbox, "write"), (Artifacts, "_write"),
                            (Outbox, "remove"), (Artifacts, "remove")):  # fmt: skip
            real = getattr(owner, name)
            patch.setattr(owner, name, lambda *a, real=real, **k: operate(lambda: real(*a, **k)))

    def operate(self, what):
        """Do something, unless the process dies before or after it."""
        self.fuse -= 1
        if self.fuse == 0 and self.rng.random() < 0.5:
            raise Crash
        done = what()
        if self.fuse == 0:
            raise Crash
        return done

    def open(self):
        shard = Shard.open(
            "000",
            make_trainer,
            FileJournal(self.folder),
            SnapshotFolder(self.folder, keep=2),
            snapshot_events=self.rng.choice([7, 1000]),
            snapshot_seconds=1e9,
            commit_seconds=self.rng.choice([0.0, 1e9]),
            fetch=lambda version: (
                Outbox(self.folder).read(version)
                if version in Outbox(self.folder).versions()
                else self.operator.read(version, "000")
            ),
            outbox=Outbox(self.folder),
            keep_from=0,
        )
        if self.registrar is not None and self.registrar._registry is not None:
            self.registrar._registry.close()
        self.registrar = Turned(self.settings, [shard])
        self.registrar.turn()  # as the start of a run waits for it
        self.replay(shard)
        return shard

    def step(self, shard, start, stop, **options):
        rows = range(start, stop)
        batch = EventBatch([{"v": 7 * i % 97} for i in rows], [i % 5 for i in rows],
                           offsets=np.arange(start, stop), partition="p", index=-1)  # fmt: skip
        outcome = shard.step(Range("p", start, stop, stop, 0), batch, [], **options)
        if outcome.alarms and self.fuse > 0 and self.rng.random() < 0.4:
            self.fuse = self.rng.randint(1, 8)  # then it matters most
        if outcome.live:
            self.registrar.learned(shard)
        shard.publish(outcome, {})
        if outcome.live and self.registrar.is_due(outcome.alarms):
            shard.commit()
        self.registrar.visit(shard)

    def replay(self, shard):
        while (span := shard.next_step()) is not None:
            if isinstance(span, Command):
                shard.carry_out_again(span)
            else:
                self.step(shard, span.start, span.stop)
            self.registrar.visit(shard)
            if self.rng.random() < 0.3:
                self.registrar.turn()
            self.command()

    def command(self):
        """Give a command, or take one back, or neither."""
        if self.left and self.rng.random() < 0.1:
            self.left -= 1
            versions = [row.version for row in self.operator.versions()] or [0]
            version = self.rng.choice(versions)
            replacing = ["restore", "rewind", "promote"] if version else []
            kinds = ["snapshot", "pause", "resume", *replacing]
            kind = self.rng.choice(kinds)
            orders = [Order(0, kind, reason="manual", by="ann")]
            if command_kind(kind).replaces:
                order = Order(0, kind, version, "manual", before=JUST_MADE, by="ann")
                orders = [Order(0, "snapshot", reason="before", by="ann"), order]
                if kind == "rewind":
                    after = Order(0, "snapshot", reason="after", cut="restored", by="ann")
                    orders.append(after)
            with suppress(UnknownVersionError):  # it is being made
                self.operator.order(*orders)
        if self.rng.random() < 0.15:
            waiting = [each for each in self.operator.waiting() if each.by]
            if waiting:
                with suppress(CommandError):  # it was taken up
                    self.operator.cancel(self.rng.choice(waiting).id, "taken back")

    def live(self):
        """Open the shard, and go on to the end of the input and of the commands."""
        shard = self.open()
        for turn in count():
            assert turn < 2_000, f"it does not end: {self.operator.waiting()}"
            at = shard.cursors["p"].offset if "p" in shard.cursors else 0
            self.command()
            waits = self.registrar.waits()
            ready = self.registrar.take("000")
            if ready is not None:
                done = shard.carry_out(ready.order, prepared=ready.snapshot)
                if (
                    done is not None
                    and done.command.kind == "snapshot"
                    and not done.command.refused
                ):
                    self.registrar.made("000", done.seq + 1)
                self.registrar.visit(shard)
                self.replay(shard)
            elif not waits and not shard.paused and at < EVENTS:
                self.step(shard, at, min(EVENTS, at + self.rng.randint(1, BATCH)))
            elif not waits and not self.operator.waiting() and not self.registrar._wanted:
                if not shard.paused:
                    break
                self.operator.order(Order(0, "resume", by="ann"))
            self.registrar.visit(shard)
            if waits or self.rng.random() < 0.4:
                self.registrar.turn()
        shard.close()
        self.registrar.turn()
        return shard

    def run(self, crashes):
        for _ in range(crashes):
            self.fuse = self.rng.randint(1, 250)
            with suppress(Crash):
                self.live()
        self.fuse = -1
        return self.live()


def entries(shard):
    return [e for record in shard._journal.records(0) for e in record.entries]


def check(seed, folder, patch):
    """Live through a seed's crashes, and look at what has to hold afterwards."""
    life = Life(seed, folder, patch)
    shard = life.run(seed % 4)
    journal = entries(shard)
    done = [e.id for e in journal if isinstance(e, Command)]
    dropped = {row.id for row in _rows(life.operator) if row.dropped}
    given = {row.id for row in _rows(life.operator)}
    assert len(done) == len(set(done)), "a command was carried out twice"
    assert not set(done) & dropped, "a command was carried out, and taken back"
    assert set(done) == given - dropped, "a command is lost"
    unmade = any(row.dropped and row.kind == "snapshot" for row in _rows(life.operator))
    _check_positions(journal, EVENTS if unmade else EVERY + BATCH)
    versions = life.operator.versions()
    prints = [
        (part.header["digest"], part.header["cursors"], part.header["skips"])
        for row in versions
        for part in row.manifest.shards
    ]
    equal = [a.version for a, one, other in zip(versions, prints, prints[1:], strict=False)
             if one == other]  # fmt: skip
    assert not equal, f"versions that are equal to the next: {equal}"
    for row in versions:
        assert life.operator.problems(row.version) == []
    states = {row.state for row in life.operator.versions(every=True)}
    assert states <= {"complete", "removed", "removing"}, states
    life.operator.close()
    life.registrar._registry.close()
    return {
        "same": len(life.operator.same()), "dropped": len(dropped),
        "drift": sum(row.reason == "drift" for row in versions),
    }  # fmt: skip


def _rows(registry: Registry):
    with registry.database.reading() as connection:
        return connection.execute(sa.select(COMMANDS)).all()


def _check_positions(journal, most):
    """A version for drift is at the alarm, one for a number of events where that was reached.

    What was to be made, and was taken back, was counted from for a while: `most` is then more.
    """
    since, drift = 0, None
    for entry in journal:
        assert not isinstance(entry, Exclude)
        if isinstance(entry, Range):
            at = entry.start
            assert drift is None, f"after the alarm {drift} input was learned up to {at}"
            since += entry.stop - entry.start
            assert since <= most, f"{since} events up to {entry.stop} without a version"
            drift = next((i for i in ALARMS if entry.start <= i < entry.stop and i != 32), None)
        elif entry.kind == "snapshot" and not entry.refused:
            since = 0
            drift = None if entry.reason == "drift" else drift


def test_whenever_it_dies_commands_versions_and_their_places_are_right(tmp_path, monkeypatch):
    """Each command is carried out or taken back; no version is equal to the one before it.

    A version for drift is of the batch that raised the alarm, and no more events than were asked
    for go by without one.
    """
    found = {"same": 0, "dropped": 0, "drift": 0}
    for seed in range(SEEDS):
        with monkeypatch.context() as patch:
            try:
                got = check(seed, tmp_path / str(seed), patch)
            except Exception as error:
                pytest.fail(f"seed {seed}: {error!r}")
        found = {key: found[key] + got[key] for key in found}
    assert all(found.values()), found


def test_versions_that_others_prune_as_soon_as_they_are_whole_are_no_trouble(tmp_path, monkeypatch):
    """The registrar, which made them whole, goes on."""
    life, whole = Life(0, tmp_path, monkeypatch), []
    complete = Registry.complete

    def outrun(registry):
        made = complete(registry)
        whole.extend(made)
        life.operator.retention.prune(0, 0.0)
        return made

    monkeypatch.setattr(Registry, "complete", outrun)
    life.run(0)
    assert whole
    life.operator.close()
    life.registrar._registry.close()


def _bug_taken_back_and_carried_out(patch):
    """A command that was taken back while a shard prepared it is carried out all the same."""
    patch.setattr(Registry, "take", lambda *_: True)


def _bug_equal_versions(patch):
    """A version is made whatever the newest is."""
    patch.setattr(Registry, "_is_same", lambda *_: False)


def _bug_input_does_not_wait(patch):
    """Input is learned while a version is asked for."""
    patch.setattr(registrar.Registrar, "waits", lambda _: False)


def _bug_asked_for_what_is_not_committed(patch):
    """A version is asked for of input that a crash may undo."""
    patch.setattr(registrar.Registrar, "is_due", lambda *_: False)


def _bug_alarms_not_kept(patch):
    """An alarm that nobody was told of is forgotten with the process."""
    real = Shard._snapshot

    def snapshot(self, parts):
        made = real(self, parts)
        del made.header["alarms"]
        return made

    patch.setattr(Shard, "_snapshot", snapshot)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        _bug_taken_back_and_carried_out,
        _bug_equal_versions,
        _bug_input_does_not_wait,
        _bug_asked_for_what_is_not_committed,
        _bug_alarms_not_kept,
    ],
)
def test_the_seeds_find_a_known_bug(bug, tmp_path, monkeypatch):
    """With a bug put in on purpose, one of the first 200 seeds fails."""
    for seed in range(200):
        with monkeypatch.context() as patch:
            bug(patch)
            try:
                check(seed, tmp_path / str(seed), patch)
            except Exception:
                return
    pytest.fail(f"200 seeds did not find: {bug.__doc__}")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_more_seeds_leave_all_of_it_right(part, tmp_path, monkeypatch):
    """The same for seeds that `make test` has no time for."""
    for seed in range(10_000 + part * MORE // 5, 10_000 + (part + 1) * MORE // 5):
        with monkeypatch.context() as patch:
            try:
                check(seed, tmp_path / str(seed), patch)
            except Exception as error:
                pytest.fail(f"seed {seed}: {error!r}")
