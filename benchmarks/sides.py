"""A side of a benchmark is a process of its own: how it is started, measured and repeated."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streams import names

PEERS = Path(__file__).parent / "peers"


class Sample(NamedTuple):
    """One run of a side.

    Attributes
    ----------
    rate
        Events a second, as the side itself counts them: without the start of the process.
    peak_mib
        The most memory that was resident.
    wall
        Seconds from the start of the process to its end.
    cpu
        Seconds of all its threads together.
    out
        What it printed, as an object.
    """

    rate: float
    peak_mib: float
    wall: float
    cpu: float
    out: dict[str, Any]

    @property
    def log_loss(self) -> float | None:
        """The mean log loss of predictions made before learning, where the side says."""
        loss = self.out.get("log_loss", self.out.get("metrics", {}).get("log_loss"))
        return None if loss is None else float(loss)


def command(*arguments: str, python: Sequence[str] = ()) -> list[str]:
    """Return the command line of `midstream`."""
    return [sys.executable, *python, "-m", "midstream", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment to run `midstream` in: the hash seed that it would restart for."""
    return dict(os.environ, PYTHONHASHSEED="0", **more)


def project(
    folder: Path,
    learner: str = "logistic",
    *,
    path: str = "events.jsonl",
    features: int = 0,
    predictions: bool = True,
    commit_seconds: float = 0.5,
    ahead: bool = False,
    on_error: str = "stop",
) -> None:
    """Write a midstream.toml; a learner with a call in it is River's, and models.py returns it."""
    named = learner
    if "(" in learner:
        named = "models:make"
        (folder / "models.py").write_text(
            "from river import forest, linear_model, preprocessing, tree\n"
            f"def make():\n    return {learner}\n"
        )
    schema = "".join(f'{name} = "number"\n' for name in names(features))
    (folder / "midstream.toml").write_text(
        f'[model]\nlearner = "{named}"\ntask = "binary"\non_error = "{on_error}"\n'
        f'[input]\npath = "{path}"\nahead = {str(ahead).lower()}\n'
        f"[output]\npredictions = {str(predictions).lower()}\n"
        f"[state]\ncommit_seconds = {commit_seconds}\n"
        + (f"[features]\n{schema}" if schema else "")
    )


class Side:
    """A process that is measured; it prints one JSON object, the last line of its output.

    With `one_core`, all of its threads share one.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        folder: Path,
        env: Mapping[str, str] | None = None,
        *,
        one_core: bool = False,
    ) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 closed by `done`
        self._err = tempfile.TemporaryFile()  # noqa: SIM115 the same
        self._begun = time.perf_counter()
        command = [str(a) for a in arguments]
        if one_core:
            command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), *command]
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=self._out, stderr=self._err
        )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        # Ended or not, it is left for `done` to wait for: that alone tells its memory.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, flags) is None

    def done(self) -> Sample:
        """Wait for the end; return what was measured.

        Raises
        ------
        RuntimeError
            If it failed, with the last line that it wrote.
        """
        # Of this child alone, where the resource module knows the largest of all children only.
        # It begins with what the parent held, so this process has to stay small.
        _, status, usage = os.wait4(self.process.pid, 0)
        wall = time.perf_counter() - self._begun
        self.process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace").strip())
            file.close()
        if self.process.returncode:
            raise RuntimeError((texts[1] or texts[0] or "no output").splitlines()[-1])
        out = json.loads(texts[0].splitlines()[-1])
        peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        rate = out.get("events_per_second") or out["events"] / out["seconds"]
        return Sample(rate, peak, wall, usage.ru_utime + usage.ru_stime, out)


def midstream(
    folder: Path, *, python: Sequence[str] = (), one_core: bool = False, **env: str
) -> Sample:
    """Run a folder's midstream.toml to the end of its input, anew."""
    run = command("run", "midstream.toml", "--until-eof", "--fresh", "--json", python=python)
    sample = Side(run, folder, environment(**env), one_core=one_core).done()
    forget(folder)
    assert sample.out["learned"] == sample.out["events"], "events were rejected"
    return sample


def forget(folder: Path) -> None:
    """Remove what `--fresh` archived."""
    for archived in (folder / "state").glob("archived-*"):
        shutil.rmtree(archived)


def alternate(sides: Mapping[str, Callable[[], Sample]], repeats: int) -> dict[str, list[Sample]]:
    """Run all sides one after the other, so many times."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            samples[name].append(run())
    return samples
