"""Crash schedules through Bytewax, on a simulated Kafka: exact, as on the shard alone."""

import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import msgspec
import pytest
from kafka_bugs import (
    journal_read_before_fencing,
    nobody_is_fenced,
    one_who_is_shut_out_comes_back,
)
from kafka_lives import Life
from kafka_simulation import Process
from simulation import Crash

from midstream.engine.journal import JournalError, UnavailableError
from midstream.engine.shard import EventError, Shard
from midstream.flows import online, rooms
from midstream.flows.settings import load

SEEDS = int(os.environ.get("MIDSTREAM_KAFKA_FLOW_SEEDS", "300"))
BLOCKS = 8
CONFIG = """
[model]
learner = "simulation:ChainLearner"
task = "regression"
on_error = "reject"
[input]
shards = %s
topic = "in"
wait_seconds = 0
[output]
predictions = "predictions"
rejected = "rejected"
alarms = false
journal = "journal"
[kafka]
"bootstrap.servers" = "simulated"
[state]
commit_seconds = 0.02
snapshot_events = 10
[versions]
enabled = false  # or a thread with a clock of its own would have a hand in it
"""


class Worker(Process):
    """A process; where it is frozen, what others do meanwhile happens within its call."""

    def __init__(self, life, fate, fuse):
        super().__init__()
        self._life = life
        self._fate = fate
        self._fuse = fuse

    def point(self):
        if self.dead:
            raise Crash
        self._fuse -= 1
        if self._fuse != 0:
            return
        if self._fate == "crash":
            self.dead = True
            raise Crash
        if self._fate == "stop":
            signal.raise_signal(signal.SIGTERM)
        if self._fate == "freeze":
            self._life.others()
            self._life.cluster.process = self


class FlowLife(Life):
    """A life whose processes are runs of the dataflow."""

    def __init__(self, seed, folder, **options):
        super().__init__(seed, **options)
        self.cluster.eager = True  # where nothing comes, Bytewax rests
        self.cluster.trouble_every = 15  # as few calls are made
        config = folder / f"{seed}.toml"
        config.write_text(CONFIG % ("1" if len(self.shards) == 1 else '"partition"'))
        self._settings = load(config)
        self._naps = 0
        self._folders = [str(folder / f"{seed}-{i}") for i in range(30)]

    def _sleep(self, seconds):
        self._naps += 1
        assert self._naps < 2_000_000, "it waits without end"
        self.cluster.sleep(seconds)

    def trainer(self):
        return rooms.make_trainer(self._settings)

    def _run(self):
        self.cluster.trouble_in = self.rng.choice([-1, self.rng.randint(1, 30)])
        with pytest.MonkeyPatch.context() as patch:
            clock = SimpleNamespace(
                monotonic=lambda: self.cluster.now,
                perf_counter=lambda: self.cluster.now,
                sleep=self._sleep,
            )
            patch.setattr(online, "time", clock)
            patch.setattr(rooms, "time", clock)
            # A few ms of work need no tidying up, which would take most of the time.
            nothing = SimpleNamespace(**dict.fromkeys(("collect", "freeze", "unfreeze"), int))
            patch.setattr(online, "gc", nothing)
            patch.setattr(online, "IDLE", timedelta(milliseconds=1))
            opened = Shard.open
            patch.setattr(Shard, "open", lambda *a, **k: opened(*a, clock=clock.monotonic, **k))
            self.others()
            self.cluster.heal()
            self.input.finish(self.cluster.now)
            self.one(self._folders.pop(), "")

    def others(self):
        """Live through the lives that are left, on this machine or another."""
        folder = self._folders.pop()
        while self._fates > 0:
            self._fates -= 1
            self.one(folder, self.rng.choice(["crash", "crash", "freeze", "stop"]))
            if self.rng.random() < 0.2:
                folder = self._folders.pop()

    def one(self, folder, fate):
        """Run a process to its end."""
        state = msgspec.structs.replace(self._settings.state, path=folder)
        settings = msgspec.structs.replace(self._settings, state=state)
        worker = self.cluster.process = Worker(
            self, fate, self.rng.randint(1, self.rng.choice([15, 60]))
        )
        try:
            self.digests = online.run(settings, until_eof=True).digest
            self.results.append(f"{fate} ended")
        except Crash:
            worker.at_work = False
            self.results.append(f"{fate} crashed")
            for producer in worker.producers:
                producer.leave()
        except JournalError as error:
            if "another run has taken over" not in str(error):
                raise
            self.results.append(f"{fate} shut out")
        except rooms.RunError as error:
            if "stopped while it waited" not in str(error):
                raise
            self.results.append(f"{fate} stopped")


def lived(seed, folder):
    partitions, single = [(1, True), (2, True), (2, False)][seed % 3]
    life = FlowLife(seed, folder, partitions=partitions, single=single)
    life.run()
    life.check()
    return life


@pytest.mark.parametrize("block", range(BLOCKS))
def test_any_schedule_through_bytewax_leaves_state_and_outputs_exact(block, tmp_path):
    """The state is the fold of the journal, and each output is there once, in order."""
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        try:
            lived(seed, tmp_path)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")


@pytest.mark.parametrize(
    "bug", [journal_read_before_fencing, nobody_is_fenced, one_who_is_shut_out_comes_back]
)
def test_the_seeds_find_a_known_bug(bug, monkeypatch, tmp_path):
    """With a bug put in on purpose, one of the first 200 seeds fails."""
    bug(monkeypatch)
    for seed in range(200):
        try:
            lived(seed, tmp_path)
        except (AssertionError, RuntimeError, ValueError):  # not a mistake in the bug itself
            return
    pytest.fail(f"200 seeds did not find: {bug.__doc__}")


ODD = EventError(("in", 0, 1), "in-0", "", ValueError("odd"))
OUTAGE, SHUT_OUT = UnavailableError("no answer"), JournalError("another run has taken over")


@pytest.mark.parametrize(
    ("failures", "counts"),
    [([ODD, OUTAGE], OUTAGE), ([OUTAGE, SHUT_OUT, ODD], SHUT_OUT), ([SHUT_OUT, OUTAGE], SHUT_OUT)],
)
def test_the_gravest_failure_of_several_shards_counts(failures, counts, tmp_path):
    """An outage or an odd event of one does not hide that another was shut out."""
    (tmp_path / "c.toml").write_text(CONFIG % 1)
    run = rooms.Run(load(tmp_path / "c.toml"), rooms.Summary(), None, until_eof=True)
    for failure in failures:
        with run.guard():
            raise failure
    assert run.failure is counts
