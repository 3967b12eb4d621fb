"""Processes and brokers killed at random moments: state and outputs are what the journal says."""

import json
import os
import random
import re
import shutil
import signal
import time
from datetime import UTC, datetime

import pytest
from kafka_fold import fold, published
from project import Project, events, stop, wait_for

KILLS = int(os.environ.get("MIDSTREAM_KILLS", "15"))
EVENTS = int(os.environ.get("MIDSTREAM_KILL_EVENTS", "80000"))
SEED = os.environ.get("MIDSTREAM_KILL_SEED", "1")


def stream(n):
    """Return lines whose concept turns over in the middle; one in a thousand is no event."""
    lines = events(n)
    for i, event in enumerate(lines):
        if i > n // 2:
            event["y"] = not event["y"]
    return [b'{"id": "cut' if i % 1_000 == 999 else line for i, line in enumerate(lines)]


class Victim:
    """A run under a supervisor, whose processes one can kill."""

    def __init__(self, project, *arguments):
        self._log = project.folder / "log"
        self._log.touch()
        self._begun = self._log.stat().st_size
        with self._log.open("ab") as log:
            self.supervisor = project.start("run", "config.toml", *arguments, stderr=log)

    def count(self, event):
        """Return how often an event was logged since the start of this run."""
        return self._log.read_text()[self._begun :].count(f"event={event} ")

    def started(self):
        """Return the newest process of each number, and when it was started."""
        pattern = r"time=(\S+) level=info event=process_started process=(\d+) pid=(\d+)"
        found = re.findall(pattern, self._log.read_text())
        return {number: (int(pid), datetime.fromisoformat(at)) for at, number, pid in found}

    def pids(self):
        """Return the newest process of each number."""
        return {number: str(pid) for number, (pid, _) in self.started().items()}

    def kill(self, rng, age=0.0):
        """Kill a process that was started so many seconds ago; return whether there was one."""
        try:
            pid, started = rng.choice(list(self.started().values()))
            if (datetime.now(UTC) - started).total_seconds() < age:
                return False
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, IndexError):
            return False
        return True


def progress(one, admin):
    """Return how far the outputs are, as offsets; what no transaction has committed counts, too."""
    return sum(one.kafka.ends(one.names["predictions"], admin=admin).values())


def killed(topics, kafka_own, *, processes, shards, kills, n, brokers):
    """Kill processes, and every so often the broker, while events come; check all that is left."""
    one = topics("one", config=f"shards = {shards}")
    text = one.project.config.read_text()  # several snapshots, of as few events as there are
    one.project.config.write_text(text.replace("snapshot_events = 20000", "snapshot_events = 4000"))
    lines = stream(n)
    rng = random.Random(f"{SEED}-{processes}-{shards}")
    victim = Victim(one.project, "--processes", str(processes))
    portion, admin = n // (kills + 1), kafka_own.admin()
    for i in range(kills):
        one.produce(lines[i * portion : (i + 1) * portion])
        if i % 3:  # in the midst of what came; the others while they start, or have just begun
            until = progress(one, admin) + rng.random() * portion / 2
            wait_for(lambda end=until: progress(one, admin) > end, what=f"kill {i}", pause=0.01)
        if brokers and i % brokers == brokers - 1:
            kafka_own.kill()
            time.sleep(rng.uniform(0.0, 2.0))
            kafka_own.restart()
        else:
            age = rng.uniform(0.0, 1.0)  # some before they have opened all, some while they learn
            wait_for(lambda age=age: victim.kill(rng, age), what="a process to kill", pause=0.005)
        assert victim.supervisor.poll() is None, "the supervisor gave up"
    one.produce(lines[kills * portion :])
    code, _, _ = stop(victim.supervisor)
    log = victim._log.read_text()[-2000:]  # brokers may take long to come back
    assert code == 0 or (code == 1 and "stopped while it waited" in log), log
    summary = one.project.run("--processes", str(processes))
    expected = fold(one.kafka, one.project.config)
    assert summary["digest"] == expected.digest
    predictions, rejected, alarms = published(one)
    assert predictions == expected.predictions
    assert rejected == expected.rejected
    assert alarms == expected.alarms
    good = [line["id"] for line in lines if isinstance(line, dict)]
    assert sorted(json.loads(line)["id"] for line in predictions) == sorted(good)
    assert len(rejected) == len(lines) - len(good)
    assert summary["seen"] == expected.learned == len(good)
    assert alarms, "the concept turned over, and nobody said so"
    if shards != 1:  # then the journal had no choice
        calm = topics("calm", source=one.source)
        assert calm.project.run()["digest"] == summary["digest"]
        values, refused, told = published(calm)
        assert (values, refused, told) == (predictions, rejected, alarms)


MODES = [(1, '"partition"'), (2, '"partition"'), (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "shards"), MODES)
def test_a_few_kills(topics, kafka_own, processes, shards):
    """Each event is learned once, and each record published once, with the values of the fold."""
    killed(topics, kafka_own, processes=processes, shards=shards, kills=3, n=30_000, brokers=0)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("processes", "shards"), MODES)
def test_many_kills_of_processes_and_broker(topics, kafka_own, processes, shards):
    """The same of more events, with the broker killed too."""
    killed(topics, kafka_own, processes=processes, shards=shards, kills=KILLS, n=EVENTS, brokers=5)


@pytest.mark.slow
def test_rescaled_mid_stream(topics):
    """1, 2, 3 and 1 processes, stopped and started again: the state goes on where it was."""
    one = topics("one")
    lines = stream(40_000)
    for step, n in enumerate((1, 2, 3, 1)):
        victim = Victim(one.project, "--processes", str(n))
        one.produce(lines[step * 10_000 : (step + 1) * 10_000])
        wait_for(lambda victim=victim, n=n: victim.count("running") == n, what="the start")
        time.sleep(0.1)
        assert stop(victim.supervisor)[0] == 0
    summary = one.project.run()
    expected = fold(one.kafka, one.project.config)
    assert (summary["digest"], summary["seen"]) == (expected.digest, 40_000 - 40)
    assert published(one) == expected[2:]
    assert topics("calm", source=one.source).project.run()["digest"] == summary["digest"]


@pytest.mark.slow
def test_a_shard_that_goes_to_another_host_is_rebuilt_there(topics, tmp_path):
    """From the journal, where the state folder is not shared."""
    one = topics("one")
    lines = stream(20_000)
    one.produce(lines[:10_000])
    one.project.run()
    one.produce(lines[10_000:])
    other = Project(tmp_path / "other")
    other.config.write_text(one.project.config.read_text())
    digest = one.project.run("--host", "1/2")["digest"] | other.run("--host", "2/2")["digest"]
    expected = fold(one.kafka, one.project.config)
    assert (digest, published(one)) == (expected.digest, expected[2:])
    assert expected.learned == 20_000 - 20


@pytest.mark.slow
def test_fresh_begins_anew_in_the_same_journal(topics):
    """What was learned before is not in the new state, whoever rebuilds it."""
    one = topics("one")
    one.produce(stream(3_000))
    first = one.project.run()
    again = one.project.run("--fresh")
    assert (again["digest"], again["resumed_at"]) == (first["digest"], 0)
    assert len(one.out("predictions")) == 2 * first["learned"]
    shutil.rmtree(one.project.folder / "state")
    one.produce(stream(3_000))
    assert one.project.run()["seen"] == 2 * first["learned"]
    text = one.project.config.read_text()
    one.project.config.write_text(text + "[model.options]\nrate = 0.5\n")
    assert one.project.call("run", "config.toml", "--until-eof").returncode == 1
    changed = one.project.run("--fresh")
    assert changed["digest"] != again["digest"]
    assert changed["seen"] == 2 * first["learned"]
