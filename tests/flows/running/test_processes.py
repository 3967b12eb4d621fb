"""`midstream run --processes`: shares of the shards, and a supervisor that replaces who is gone."""

import json
import os
import re
import signal

import pytest
from project import Project, events, stop, wait_for

from midstream.flows.running.shares import Place
from midstream.flows.running.supervisor import Deaths, Marks

CONFIG = """
[input]
path = "events-*.jsonl"
shards = "partition"
[state]
commit_seconds = 0.05
snapshot_events = 5000
stall_seconds = %s
[features]
""" + "".join(f'f{i} = "number"\n' for i in range(5))


class Shards(Project):
    """A project of three files, each a shard of its own."""

    def __init__(self, folder, n=3_000, *, learner="logistic", stall=60):
        super().__init__(folder, config=CONFIG % stall)
        self.config.write_text(self.config.read_text().replace("models:make", learner))
        for i in range(3):
            self.write(self.lines(i, n), f"events-{i}.jsonl")

    @staticmethod
    def lines(i, n, first=0):
        made = events(first + n, seed=i)[first:]
        return [{**event, "id": f"{i}-{event['id']}"} for event in made]

    def append(self, i, n, first):
        with (self.folder / f"events-{i}.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines(i, n, first))

    def start_two(self, **popen):
        """Start two processes that log to a file; return the supervisor."""
        with (self.folder / "log").open("ab") as log:
            return self.start(
                "run", "config.toml", "--processes", "2", "--json", stderr=log, **popen
            )

    def logged(self, event):
        """Return the lines of the log that tell of an event."""
        lines = (self.folder / "log").read_text().splitlines()
        return [line for line in lines if f"event={event} " in line + " "]

    def pids(self):
        """Return the processes that were started, in order."""
        found = [re.search(r"process=(\d+) pid=(\d+)", x) for x in self.logged("process_started")]
        return [(int(match[1]), int(match[2])) for match in found]

    def published(self):
        return [
            json.loads(line)["id"]
            for i in range(3)
            if (path := self.folder / "out" / f"predictions-00{i}.jsonl").exists()
            for line in path.read_text().splitlines()
        ]

    def until_published(self, n):
        wait_for(lambda: len(self.published()) >= n, what=f"{n} predictions")


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_models(tmp_path):
    """More of them than there are shards have nothing to do, and say so."""
    alone = Shards(tmp_path / "alone").run()
    for n in ("2", "4"):
        project = Shards(tmp_path / n)
        shared = project.run("--processes", n)
        assert shared["digest"] == alone["digest"]
        assert shared["metrics"] == alone["metrics"]
        assert shared["learned"] == shared["events"] == shared["seen"] == 9_000
        assert len(set(project.published())) == 9_000
        again = project.call("run", "config.toml", "--until-eof", "--processes", n)
        assert again.returncode == 0
        assert ("event=no_shards" in again.stderr) == (n == "4")


def test_files_are_shards_of_one_host(tmp_path):
    """They get their numbers in a state folder, and another host would number them otherwise."""
    done = Shards(tmp_path / "one", 10).call("run", "config.toml", "--host", "1/2")
    assert done.returncode == 2
    assert "--host is for topics" in done.stderr


@pytest.mark.slow
def test_rescaled_mid_stream(tmp_path):
    """1, 2, 3 and 1 processes, one after the other: each state goes on where it was."""
    project = Shards(tmp_path / "project", 1_000)
    for step, n in enumerate(("1", "2", "3", "1")):
        got = project.run("--processes", n)
        assert got["seen"] == 3_000 * (step + 1)
        if step < 3:
            for i in range(3):
                project.append(i, 1_000, 1_000 * (step + 1))
    assert got["digest"] == Shards(tmp_path / "calm", 4_000).run()["digest"]
    assert len(project.published()) == len(set(project.published())) == 12_000


def test_a_process_that_dies_is_replaced(tmp_path):
    """The others go on; nothing is lost or published twice."""
    project = Shards(tmp_path / "project")
    supervisor = project.start_two()
    project.until_published(9_000)
    (_, first), (number, second) = project.pids()
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: len(project.pids()) == 3, what="a replacement")
    assert project.pids()[2][0] == number
    for i in range(3):
        project.append(i, 1_000, 3_000)
    project.until_published(12_000)
    os.kill(first, 0)
    code, out, _ = stop(supervisor)
    assert code == 0
    summary = json.loads(out)
    assert summary["seen"] == 12_000
    assert len(project.published()) == len(set(project.published())) == 12_000
    assert summary["digest"] == Shards(tmp_path / "calm", 4_000).run()["digest"]
    assert "signal SIGKILL" in project.logged("process_died")[0]


@pytest.mark.slow
def test_a_process_that_is_frozen_is_replaced(tmp_path):
    """It is killed first: it still holds its shards."""
    project = Shards(tmp_path / "project", stall=2)
    supervisor = project.start_two()
    project.until_published(9_000)
    os.kill(project.pids()[1][1], signal.SIGSTOP)
    wait_for(lambda: len(project.pids()) == 3, what="a replacement")
    for i in range(3):
        project.append(i, 1_000, 3_000)
    project.until_published(12_000)
    assert stop(supervisor)[0] == 0
    assert len(project.published()) == len(set(project.published())) == 12_000
    assert project.logged("process_stalled")


def test_a_supervisor_that_is_killed_leaves_nobody_behind(tmp_path):
    """Its processes stop by themselves, and those of the next one wait for them."""
    project = Shards(tmp_path / "project")
    supervisor = project.start_two()
    project.until_published(9_000)
    supervisor.kill()
    supervisor.communicate()
    for i in range(3):
        project.append(i, 1_000, 3_000)
    assert project.run("--processes", "2")["seen"] == 12_000
    assert len(project.logged("supervisor_gone")) == 2
    assert len(project.published()) == len(set(project.published())) == 12_000


def test_what_one_process_fails_of_ends_all(tmp_path):
    """Another would meet it again: one line says what it was, and the exit code is 1."""
    project = Shards(tmp_path / "project", learner="models:make")
    (project.folder / "models.py").write_text(
        "from river import base\n"
        "class Picky(base.Classifier):\n"
        "    def predict_proba_one(self, x):\n        return {False: 1.0}\n"
        "    def learn_one(self, x, y):\n"
        "        if x['f0'] == 77: raise ValueError('not this one')\n"
        "def make():\n    return Picky()\n"
    )
    project.config.write_text(project.config.read_text().partition("[features]")[0])
    with (project.folder / "events-1.jsonl").open("a") as file:
        file.write('{"id": "bad", "x": {"f0": 77}, "y": true}\n')
    done = project.call("run", "config.toml", "--processes", "2", "--json")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("midstream: process 1: the learner raised on events-1.jsonl:3001")
    assert "Traceback" not in done.stderr
    assert "error" in json.loads(done.stdout)


@pytest.mark.slow
def test_a_process_that_ends_unasked_is_replaced(tmp_path):
    """Whoever told it to stop, its shards are to go on."""
    project = Shards(tmp_path / "project")
    supervisor = project.start_two()
    project.until_published(9_000)
    os.kill(project.pids()[1][1], signal.SIGTERM)
    wait_for(lambda: len(project.pids()) == 3, what="a replacement")
    for i in range(3):
        project.append(i, 1_000, 3_000)
    project.until_published(12_000)
    assert stop(supervisor)[0] == 0
    assert len(project.published()) == len(set(project.published())) == 12_000


def test_what_a_learner_prints_is_no_result(tmp_path):
    """Nor does it end the run that it leaves in the middle of things: it is replaced."""
    project = Shards(tmp_path / "project", 300, learner="models:make")
    (project.folder / "models.py").write_text(
        "import os, pathlib\nfrom river import base\n"
        "once = pathlib.Path(__file__).parent / 'once'\n"
        "class Odd(base.Classifier):\n"
        "    def predict_proba_one(self, x):\n        return {False: 1.0}\n"
        "    def learn_one(self, x, y):\n"
        "        os.write(1, b'no newline')\n"
        "        if not once.exists():\n            once.touch()\n            os._exit(0)\n"
        "def make():\n    return Odd()\n"
    )
    project.config.write_text(project.config.read_text().partition("[features]")[0])
    assert project.run("--processes", "2")["seen"] == 900
    assert len(set(project.published())) == len(project.published()) == 900


@pytest.mark.slow
def test_one_run_at_a_time(tmp_path):
    """Whoever comes second is told who holds the state; --fresh, too."""
    project = Shards(tmp_path / "project")
    supervisor = project.start_two()
    project.until_published(9_000)
    for arguments in ([], ["--fresh"]):
        second = project.call("run", "config.toml", *arguments)
        assert second.returncode == 1
        assert "another run holds this state" in second.stderr.splitlines()[-1]
    assert stop(supervisor)[0] == 0


@pytest.mark.slow
def test_fresh_is_for_the_first_start_only(tmp_path):
    """A process that is replaced goes on with what was learned since."""
    project = Shards(tmp_path / "project")
    project.run()
    with (project.folder / "log").open("ab") as log:
        supervisor = project.start(
            "run", "config.toml", "--processes", "2", "--fresh", "--json", stderr=log
        )
    wait_for(lambda: len(project.logged("caught_up")) == 2, what="the end of the files")
    os.kill(project.pids()[1][1], signal.SIGKILL)
    wait_for(lambda: len(project.logged("caught_up")) == 3, what="a replacement")
    code, out, _ = stop(supervisor)
    assert (code, json.loads(out)["seen"]) == (0, 9_000)
    assert len(project.published()) == len(set(project.published())) == 9_000


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "/"])
def test_hosts_that_cannot_be(tmp_path, share):
    """Refused, saying what is allowed."""
    done = Shards(tmp_path / "project", 10).call("run", "config.toml", "--host", share)
    assert done.returncode == 2
    assert "allowed: K/N" in done.stderr


DIES = """
import os, signal, time
from river import linear_model

class Picky(linear_model.LogisticRegression):
    def learn_one(self, x, y, w=1.0):
        if x["f0"] == 13.0:
            %s
        super().learn_one(x, y, w)

def make():
    return Picky()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies", "how", "stall"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV", 60),
        ("os._exit(7)", "exit code 7", 60),
        ("time.sleep(1000)", "no report for 5 s", 5),
    ],
)
def test_a_learner_that_dies_of_an_event_again_and_again_is_named(dies, how, stall, tmp_path):
    """The third death at one place ends all, with the shard, the lines and the signal."""
    project = Shards(tmp_path, learner="models:make", stall=stall)
    (tmp_path / "models.py").write_text(DIES % dies)
    text = project.config.read_text()
    project.config.write_text(text[: text.index("[features]")])
    lines = project.lines(1, 3_000)
    lines[2_000]["x"]["f0"] = 13.0
    project.write(lines, "events-1.jsonl")
    failed = project.call("run", "config.toml", "--processes", "2")
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    found = re.search(
        rf"process 1 died 3 times \({how}\) while it learned shard 001, events-1.jsonl, "
        r"lines ([\d,]+) to ([\d,]+); all are stopped",
        last,
    )
    assert found, last
    first, stop = (int(number.replace(",", "")) for number in found.groups())
    assert first <= 2_001 <= stop
    assert stop - first < 20, "the place is not narrowed down"
    assert failed.stderr.count("event=process_started process=1 ") == 3
    assert failed.stderr.count("event=process_started process=0 ") == 1
    published = project.published()
    assert len(published) == len(set(published)) > 3_000


def test_deaths_at_one_place_are_counted_where_they_have_it_in_common():
    """Others in between, or elsewhere, are no sign of an event that kills."""

    def place(first, last, partition="a"):
        return Place("000", partition, "line", first, last)

    deaths = Deaths()
    assert [deaths.add(p) for p in (place(1, 90), place(40, 60), place(60, 99))] == [0, 0, 1]
    assert deaths.place == place(60, 60)
    assert str(deaths.place) == "shard 000, a, line 60"
    for places in (
        [place(1, 9), place(10, 19), place(20, 29)],
        [place(1, 9), place(1, 9, "b"), place(1, 9), place(1, 9)],
        [place(1, 9), place(1, 9), None, place(1, 9), place(1, 9)],
        [place(1, 9), place(5, 14), place(10, 19)],
        [None, None, None, None],
    ):
        deaths = Deaths()
        assert not any(map(deaths.add, places))


def test_marks_are_read_by_whoever_shares_the_memory():
    """Where a process is, and what the one before it died of; what is too long is not there."""
    with Marks.file() as file:
        ours, theirs = Marks(file.fileno()), Marks(file.fileno())
        assert (ours.at, ours.fragile) == (None, None)
        theirs.at = Place("000", "a", "line", 1, 2)
        ours.fragile = Place("001", "b", "offset", 3, 4)
        assert (ours.at, theirs.fragile) == (theirs.at, ours.fragile)
        assert theirs.fragile == Place("001", "b", "offset", 3, 4)
        theirs.at = Place("000", "a" * 5_000, "line", 1, 2)
        assert ours.at is None
