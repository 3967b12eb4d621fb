"""Crash schedules through Bytewax, on a simulated Kafka: exact, as on the shard alone."""

import json
import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import msgspec
import pytest
from kafka_bugs import (
    journal_read_before_fencing,
    no_mark_is_kept,
    nobody_confirms,
    nobody_is_fenced,
    one_who_is_shut_out_comes_back,
)
from kafka_lives import Life
from kafka_simulation import Process
from simulation import Crash

from midstream.connectors.input import InputError, NoAnswerError
from midstream.connectors.kafka import input as kafka_input
from midstream.engine.shard.journal import JournalError, UnavailableError
from midstream.engine.shard.outcome import EventError
from midstream.engine.shard.shard import Shard
from midstream.flows.loading import load
from midstream.flows.running import failures as failed
from midstream.flows.running import online, shard_process, shards
from midstream.flows.running.counters import Summary
from midstream.flows.running.definition import make_trainer
from midstream.flows.running.errors import RunError

SEEDS = int(os.environ.get("MIDSTREAM_KAFKA_FLOW_SEEDS", "300"))
BLOCKS = 8
CONFIG = """
[model]
learner = "simulation:ChainLearner"
task = "regression"
on_error = "reject"
error_limit = 1.0
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
        if self._fate == "anew":
            self._life.make_anew()


class FlowLife(Life):
    """A life whose processes are runs of the dataflow."""

    fuses = (15, 60)  # calls at most until a process meets its fate
    parts = (20_000,)  # in small ones, opening takes more calls than come between two troubles

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
        return make_trainer(self._settings)

    def _run(self):
        self.cluster.trouble_in = self.rng.choice([-1, self.rng.randint(1, 30)])
        with pytest.MonkeyPatch.context() as patch:
            clock = SimpleNamespace(
                monotonic=lambda: self.cluster.now,
                perf_counter=lambda: self.cluster.now,
                sleep=self._sleep,
            )
            patch.setattr(online, "time", clock)
            for module in (shard_process, shards, failed, kafka_input):
                patch.setattr(module, "time", clock)
            # A few ms of work need no tidying up, which would take most of the time.
            nothing = SimpleNamespace(**dict.fromkeys(("collect", "freeze", "unfreeze"), int))
            patch.setattr(online, "gc", nothing)
            patch.setattr(online, "IDLE", timedelta(milliseconds=1))
            opened = Shard.open
            patch.setattr(Shard, "open", lambda *a, **k: opened(*a, clock=clock.monotonic, **k))
            self._lives()

    def _lives(self):
        self.others()
        self.cluster.heal()
        self.inputs[0].finish(self.cluster.now)
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
            self, fate, self.rng.randint(1, self.rng.choice(self.fuses))
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
        except RunError as error:
            if "stopped while it waited" not in str(error):
                raise
            self.results.append(f"{fate} stopped")


OTHER = [
    b'{"id": "other", "x": {"v": 1}, "y": 1}',
    b'{"id": "other", "x": {"v": 1, "bad": true}, "y": 1}',
]


class LifeOfATopic(FlowLife):
    """A life in which the input is deleted, and made anew, with more in it than there was.

    Attributes
    ----------
    said
        What runs that ended by an error said.
    """

    fuses = (30, 90)  # the topic is to change while it is read, too, not only while a run opens

    def __init__(self, seed, folder):
        super().__init__(seed, folder, partitions=2, single=bool(seed % 2))
        self.said = []
        self.first = {}
        self.begun = False  # whether the journal knew anything of the first topic

    def make_anew(self):
        self.begun = any(b'"range"' in value for value in self._values("journal"))
        self.first = {part: self.cluster.logs["in", part].end for part in range(2)}
        self.cluster.make_anew("in", self.rng.choices(OTHER, k=100))

    def _lives(self):
        folder = self._folders.pop()
        for _ in range(20):
            self.inputs[0].feed(self.cluster.now)
        self.one(folder, "")
        fates = self.rng.choices(["crash", "stop"], k=self.rng.randint(0, 2))
        for fate in [*fates, *self.rng.choice([["anew"], []]), ""]:
            if fate == "":
                self.cluster.heal()
                if not self.first:
                    self.make_anew()
            try:
                self.one(folder, fate)
            except InputError as error:
                self.said.append(str(error))

    def _values(self, topic):
        logs = self.cluster.logs.items()
        return [value for (name, _), log in logs if name == topic for value in log.read()]

    def check(self):
        """Nothing of the other topic was learned or predicted, and the last run said why."""
        if not self.begun:
            return []
        values = self._values("predictions")
        assert not any(b'"other"' in value for value in values), "it was taken for the first"
        for value in self._values("rejected"):
            _, part, offset = json.loads(value)["origin"]
            assert offset < self.first[part], "an event of the other was rejected"
        assert self.said, "the last run ended well"
        assert "made anew" in self.said[-1] or "another topic" in self.said[-1]
        return values


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


def test_a_topic_made_anew_at_any_moment(tmp_path):
    """It is told from the first, whatever else goes wrong."""
    predicted = 0
    for seed in range(100):
        life = LifeOfATopic(seed, tmp_path)
        try:
            life.run()
            predicted += len(life.check())
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")
    assert predicted > 500


@pytest.mark.parametrize("bug", [nobody_confirms, no_mark_is_kept])
def test_a_topic_made_anew_goes_unnoticed_by_a_known_bug(bug, monkeypatch, tmp_path):
    """With a bug put in on purpose, one of the first 100 seeds fails."""
    bug(monkeypatch)
    for seed in range(100):
        life = LifeOfATopic(seed, tmp_path)
        try:
            life.run()
            life.check()
        except (AssertionError, EventError):  # the same offset is an odd event in both
            return
    pytest.fail(f"100 seeds did not find: {bug.__doc__}")


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
SILENCE = NoAnswerError("no answer")


@pytest.mark.parametrize(
    ("failures", "counts"),
    [
        ([ODD, OUTAGE], OUTAGE),
        ([OUTAGE, SHUT_OUT, ODD], SHUT_OUT),
        ([SILENCE, SHUT_OUT], SHUT_OUT),
        ([SHUT_OUT, OUTAGE], SHUT_OUT),
    ],
)
def test_the_gravest_failure_of_several_shards_counts(failures, counts, tmp_path):
    """An outage or an odd event of one does not hide that another was shut out."""
    (tmp_path / "c.toml").write_text(CONFIG % 1)
    shared = shards.Shared(load(tmp_path / "c.toml"), Summary(), until_eof=True)
    run = shard_process.ShardProcess(shared, None)
    for failure in failures:
        with run.guard():
            raise failure
    assert run.failure is counts


def test_an_outage_is_waited_for_once(tmp_path):
    """What one shard has waited for in vain, the others do not wait for."""
    (tmp_path / "c.toml").write_text(CONFIG % 1)
    run = shards.Shared(load(tmp_path / "c.toml"), Summary(), until_eof=True)
    run.check_outage()
    run.failure = ODD
    run.check_outage()
    run.failure = SILENCE
    with pytest.raises(NoAnswerError):
        run.check_outage()
