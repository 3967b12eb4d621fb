"""What holds of every process: closed descriptors, signals from the first moment, full outputs."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import PATIENCE, Project, events, stop, wait_for

CONFIG = ("--config", "config.toml")

NOISY = """
import os
from river import linear_model

class Noisy(linear_model.LogisticRegression):
    def learn_one(self, x, y):
        super().learn_one({"f0": x["f0"]}, y)
        self.n = getattr(self, "n", 0) + 1
        if self.n % 70 == 0:
            os.write(1, b"native library: a note\\n")  # as C code does with printf
            os.write(2, b"native library: a note\\n")

    def predict_proba_one(self, x):
        return super().predict_proba_one({"f0": x["f0"]})

def make():
    return Noisy()
"""
MIDSTREAM = [sys.executable, "-m", "midstream"]
CLOSED = [c for n in range(4) for c in itertools.combinations((0, 1, 2), n)]


def shell(project: Project, redirections: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a command with redirections that only a shell can make."""
    command = ["bash", "-c", f'exec "$@" {redirections}', "bash", *MIDSTREAM, *arguments]
    return subprocess.run(
        command, cwd=project.folder, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def closing(descriptors) -> str:
    return " ".join({0: "<&-", 1: ">&-", 2: "2>&-"}[number] for number in descriptors)


@pytest.fixture
def noisy(tmp_path):
    """Return a function that makes a project of two shards whose learner prints as C code does."""

    def make(name: str) -> Project:
        config = '[input]\npath = "in"\nshards = "partition"\n'
        project = Project(tmp_path / name, model=NOISY, config=config)
        (project.folder / "in").mkdir()
        for i in range(2):
            project.write(events(400, seed=i), f"in/{i}.jsonl")
        return project

    return make


def digest(project: Project) -> dict:
    """Return the digests that a run with nothing left to read says: the state is as it was left."""
    done = project.run()
    assert done["events"] == 0
    assert done["seen"] == 800
    return done["digest"]


def holding(project: Project) -> list[str]:
    """Return the files that something was printed into."""
    files = (path for path in project.folder.rglob("*") if path.is_file())
    return [path.name for path in files if b"a note" in path.read_bytes() and path.suffix != ".py"]


@pytest.mark.parametrize(
    ("closed", "processes"),
    [
        pytest.param(
            closed,
            processes,
            marks=() if (len(closed), processes) == (3, 2) else pytest.mark.slow,
            id=f"{'-'.join(map(str, closed)) or 'none'}-{processes}",
        )
        for closed in CLOSED
        for processes in (1, 2)
    ],
)
def test_closed_descriptors(noisy, closed, processes):
    """Nothing that is printed gets into a file of ours; the state is that of any other run."""
    plain, one = noisy("plain"), noisy("one")
    expected = plain.run()["digest"]
    arguments = ["run", "config.toml", "--until-eof", "--json", "--processes", str(processes)]
    done = shell(one, closing(closed), *arguments)
    assert done.returncode == 0, done.stderr
    assert holding(one) == []
    assert digest(one) == expected
    assert len(one.output("predictions-000")) == len(one.output("predictions-001")) == 400
    if 1 not in closed:
        assert json.loads(done.stdout)["digest"] == expected  # nothing else is on it
    if 2 not in closed:
        assert "a note" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("closed", CLOSED, ids=lambda c: "-".join(map(str, c)) or "none")
def test_closed_descriptors_with_kafka(topics, closed, processes):
    """As with files, where librdkafka prints and has descriptors of its own."""
    one = topics("one", partitions=2)
    lines = events(400)
    one.produce(lines, partitions=2)
    expected = one.project.run("--fresh")["digest"]  # the journal stays, and is started over
    arguments = ["run", "config.toml", "--until-eof", "--fresh", "--json"]
    done = shell(one.project, closing(closed), *arguments, "--processes", str(processes))
    assert done.returncode == 0, done.stderr
    again = one.project.run()
    assert again["digest"] == expected
    assert (again["events"], again["seen"]) == (0, 400)


def test_files_of_ours_take_no_standard_descriptor(tmp_path):
    """Also where the library is used by a process that has closed them."""
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from midstream.engine.basics.storage import LocalStorage
from midstream.flows.claims.locks import StateLocks
for number in (0, 1, 2):
    os.close(number)
storage = LocalStorage(Path(sys.argv[1]))
storage.append("journal", b"line\\n")
locks = StateLocks(Path(sys.argv[1]) / "state")
locks.enter()
locks.take("000")
for number in (0, 1, 2):
    try:
        os.write(number, b"native")
    except OSError:
        continue
    os._exit(3)
storage.append("journal", b"line\\n")
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 0
    assert (tmp_path / "journal").read_bytes() == b"line\nline\n"


def test_standard_input_that_is_closed_is_said(tmp_path):
    """No file of ours is read in its place."""
    project = Project(tmp_path, config='[input]\npath = "-"\n')
    done = shell(project, "<&-", "run", "config.toml", "--until-eof")
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr


def _masks(pid: int) -> tuple[bool, bool]:
    """Return whether a process catches SIGTERM, and whether it keeps it waiting."""
    status = dict(
        line.split(":\t")
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    bit = 1 << (signal.SIGTERM - 1)
    return bool(int(status["SigCgt"], 16) & bit), bool(int(status["SigBlk"], 16) & bit)


def test_a_signal_is_heard_from_the_first_moment(tmp_path):
    """From when Python is up until the end, over the start of itself, SIGTERM has a handler."""
    project = Project(tmp_path)
    project.write(events(100))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
    command = [sys.executable, "-m", "midstream", "run", "config.toml"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        heard = unheard = 0
        while "caught_up" not in (tmp_path / "log").read_text():
            caught, blocked = _masks(process.pid)
            heard += caught or blocked
            unheard += bool(heard) and not (caught or blocked)
            time.sleep(0.001)
        code, _, _ = stop(process)
    assert code == 0
    assert heard > 100
    assert unheard == 0


@pytest.mark.unforked
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_stopped_while_it_starts(tmp_path, number):
    """It has done nothing: that is in order."""
    project = Project(tmp_path)
    project.write(events(100))
    process = project.start("run", "config.toml")
    wait_for(lambda: _masks(process.pid)[0], what="the handler")
    code, out, err = stop(process, number)
    assert (code, out) == (0, "")
    assert "Traceback" not in err


@pytest.mark.parametrize("until", ["handler", "caught_up"])
def test_a_process_that_is_number_1(tmp_path, until):
    """As in a container: SIGTERM ends it in order, while it starts and while it runs."""
    project = Project(tmp_path)
    project.write(events(100))
    log = tmp_path / "log"
    command = ["unshare", "--pid", "--fork", "--kill-child", *MIDSTREAM, "run", "config.toml"]
    with log.open("w") as file:
        outer = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        pid = int(wait_for(lambda: children.read_text().split(), what="the process")[0])
        if until == "handler":
            wait_for(
                lambda: "python" in str(Path(f"/proc/{pid}/exe").readlink()) and _masks(pid)[0]
            )
        else:
            wait_for(lambda: "caught_up" in log.read_text(), what="the input")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        assert outer.wait(PATIENCE) == 0, log.read_text()


@pytest.mark.unforked
def test_sighup_drains(tmp_path):
    """As SIGTERM does: a snapshot is written, and the exit code is 0."""
    project = Project(tmp_path)
    project.write(events(100))
    process = project.running()
    code, _, _ = stop(process, signal.SIGHUP)
    assert code == 0
    assert "event=stopping signal=SIGHUP" in (tmp_path / "log").read_text()
    assert project.run()["events"] == 0


@pytest.mark.slow
def test_nohup_is_obeyed(tmp_path):
    """A run that was started to outlive its terminal does."""
    project = Project(tmp_path)
    project.write(events(100))
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["nohup", *MIDSTREAM, "run", "config.toml"], cwd=tmp_path, stdout=file, stderr=file
        )
        wait_for(lambda: "caught_up" in log.read_text())
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        assert stop(process)[0] == 0
    assert "SIGHUP" not in log.read_text()


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("> /dev/full", "midstream: standard output cannot be written to: No space left on device"),
        ("2> /dev/full", ""),
        pytest.param("> /dev/full 2> /dev/full", "", marks=pytest.mark.slow),
        pytest.param("> >(exec true)", "Broken pipe", marks=pytest.mark.slow),
        pytest.param("2> >(exec true)", "", marks=pytest.mark.slow),
    ],
)
def test_an_output_that_takes_nothing(tmp_path, redirection, said):
    """One line where it can be, never a traceback; what was learned is there."""
    project = Project(tmp_path)
    project.write(events(100))
    done = shell(project, redirection, "run", "config.toml", "--until-eof", "--json")
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    if said:
        assert done.returncode == 1
        assert [line for line in done.stderr.splitlines() if said in line] != []
        predicted = shell(project, redirection, "predict", "events.jsonl", *CONFIG)
        assert predicted.returncode == 1
        assert "midstream: standard output cannot be written to: " in predicted.stderr
    else:
        assert done.returncode in (0, 1)
    assert project.run()["seen"] == 100
    assert len(project.output("predictions")) == 100
