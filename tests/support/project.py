"""A small project on disk: config, model, events; and the command line run on it as a process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from fork_server import ForkedPopen, forks

PATIENCE = 300.0
"""Seconds for whatever has to happen; it matters only where that does not happen at all."""

MODEL = """
from river import linear_model, preprocessing

def make():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""


def events(n: int, seed: int = 1, features: int = 5):
    """Return n events of a noisy linear concept, in the wire form."""
    rng = random.Random(seed)
    weights = [rng.uniform(-1, 1) for _ in range(features)]
    made = []
    for i in range(n):
        values = [round(rng.gauss(0, 1), 4) for _ in range(features)]
        score = sum(w * v for w, v in zip(weights, values, strict=True)) + rng.gauss(0, 0.3)
        made.append(
            {"id": f"e{i}", "x": {f"f{j}": v for j, v in enumerate(values)}, "y": score > 0}
        )
    return made


def poisoned(n: int, seed: int = 2):
    """Return events of a source that turns every label over."""
    lines = events(n, seed=seed)
    return [{**e, "id": f"p{i}", "y": not e["y"], "source": "mallory"} for i, e in enumerate(lines)]


def interleaved(*streams, seed: int = 0):
    """Return the events of all streams, each in its order."""
    rng = random.Random(seed)
    left = [list(stream)[::-1] for stream in streams]
    made = []
    while any(left):
        made.append(rng.choice([stream for stream in left if stream]).pop())
    return made


class Project:
    """A folder with a config; `run` starts `midstream run` in it as a process of its own.

    What a test leaves running is killed after it (`end_all`).
    """

    _running: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, folder: Path, *, model: str = MODEL, config: str = "", task: str = "binary"):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "models.py").write_text(model)
        self.config = folder / "config.toml"
        extra = config if "[input]" in config else '[input]\npath = "events.jsonl"\n' + config
        self.config.write_text(f'[model]\nlearner = "models:make"\ntask = "{task}"\n{extra}')

    def write(self, lines, name: str = "events.jsonl") -> Path:
        path = self.folder / name
        with path.open("w") as file:
            for line in lines:
                file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
        return path

    def start(self, *arguments: str, **popen) -> subprocess.Popen:
        env = dict(os.environ, PYTHONHASHSEED="0")
        popen = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **popen}
        if popen.keys() <= {"stdin", "stdout", "stderr", "text"} and forks(env):
            process = ForkedPopen(arguments, cwd=self.folder, env=env, **popen)
        else:
            command = [sys.executable, "-m", "midstream", *arguments]
            process = subprocess.Popen(command, cwd=self.folder, env=env, **popen)
        self._running.append(process)
        return process

    @classmethod
    def end_all(cls):
        """Kill what still runs."""
        for process in cls._running:
            if process.poll() is None:
                process.kill()
                process.communicate()
        cls._running.clear()

    def call(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess:
        process = self.start(*arguments, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL)
        out, err = process.communicate(stdin, timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *arguments: str, stdin: str | None = None) -> dict:
        """Run to the end of the input; return the closing summary."""
        done = self.call("run", "config.toml", "--until-eof", "--json", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def operate(self, *arguments: str, code: int = 0) -> dict:
        """Run a command on the config; return what it prints as JSON."""
        done = self.call(*arguments, "--config", "config.toml", "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str, code: int = 1) -> str:
        """Run a command that cannot be carried out; return what it says, which is one line."""
        done = self.call(*arguments, "--config", "config.toml")
        assert done.returncode == code, (done.stdout, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("midstream: ")]
        assert len(lines) == 1, done.stderr
        assert "internal error" not in lines[0]
        return lines[0].removeprefix("midstream: ")

    def running(self, *arguments: str, until: str = "event=caught_up") -> subprocess.Popen:
        """Start a run that logs to a file, and wait until it has logged something."""
        log = self.folder / "log"
        log.touch()
        begun = log.stat().st_size
        with log.open("a") as file:
            process = self.start("run", "config.toml", *arguments, stdout=file, stderr=file)
        self.logged(until, begun)
        return process

    def logged(self, what: str, since: int = 0) -> None:
        """Wait until something is in the log of a run, from a byte on."""
        log = self.folder / "log"
        wait_for(lambda: what.encode() in log.read_bytes()[since:], what=what)

    def until_recorded(self, name: str = "events.jsonl", shard: str = "000") -> None:
        """Wait until the journal has all of a file of the input."""
        end = f'"stop":{(self.folder / name).stat().st_size},'
        journal = self.folder / "state" / "shards" / shard

        def recorded():
            return any(end in path.read_text() for path in journal.glob("journal-*"))

        wait_for(recorded, what=f"a record of {name} in the journal")

    def kill_along(
        self,
        kills: int,
        whole: int,
        rng: random.Random,
        kind: str = "predictions",
        *,
        arguments: Sequence[str] = (),
        since: int = 0,
    ):
        """Kill a run again and again, at moments spread over `whole` bytes of an output.

        They come after the first `since`. The runs follow their input, so that none ends by itself,
        however fast the machine. Every fourth is killed while it starts, replays, or has hardly
        begun; the first is not.
        """
        output = self.folder / "out" / f"{kind}.jsonl"
        for i in range(kills):
            until = since + whole * (i + rng.random()) / (kills + 1)
            with (self.folder / "log").open("w") as log:
                process = self.start("run", "config.toml", *arguments, stdout=log, stderr=log)
            if i % 4 == 3:
                time.sleep(rng.uniform(0.0, 0.4))
            else:
                wait_for(
                    lambda until=until: output.exists() and output.stat().st_size > until,
                    what=f"kill {i}",
                    pause=0.001,
                )
            assert process.poll() is None, (self.folder / "log").read_text()
            process.send_signal(signal.SIGKILL)
            process.wait()

    def output(self, kind: str) -> list[dict]:
        path = self.folder / "out" / f"{kind}.jsonl"
        if not path.exists():
            return []
        whole = path.read_bytes().rpartition(b"\n")[0]  # a run may be writing
        return [json.loads(line) for line in whole.splitlines()]


def wait_for(condition, seconds: float = PATIENCE, what: str = "it", pause: float = 0.02):
    """Wait until a condition holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(pause)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def stop(process: subprocess.Popen, number: int = signal.SIGTERM) -> tuple[int, str, str]:
    """Send a signal and wait for the end."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err
