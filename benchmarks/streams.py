"""Streams to measure on, seeded, in the engine's own event form; and how `midstream` is run."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def hyperplane(n: int, features: int = 10, seed: int = 1):
    """Yield n events of a noisy linear concept over numeric features."""
    rng = random.Random(seed)
    weights = [rng.uniform(-1, 1) for _ in range(features)]
    names = [f"feature_{i}" for i in range(features)]
    for _ in range(n):
        values = [round(rng.gauss(0, 1), 6) for _ in names]
        score = sum(w * v for w, v in zip(weights, values, strict=True)) + rng.gauss(0, 0.5)
        yield dict(zip(names, values, strict=True)), score > 0


def write(path: Path, events) -> Path:
    """Write events as JSON Lines; return the path."""
    with path.open("w") as file:
        for i, (x, y) in enumerate(events):
            file.write(json.dumps({"id": f"e{i}", "x": x, "y": y}) + "\n")
    return path


def command(*arguments: str, python: Sequence[str] = ()) -> list[str]:
    """Return the command line of `midstream`."""
    return [sys.executable, *python, "-m", "midstream.flows.cli", *arguments]


def environment() -> dict[str, str]:
    """Return the environment to run `midstream` in: the hash seed that it would restart for."""
    return dict(os.environ, PYTHONHASHSEED="0")


def midstream(folder: Path, *, python: Sequence[str] = ()) -> dict[str, Any]:
    """Run a folder's midstream.toml to the end of its input, anew; return the summary."""
    run = command("run", "midstream.toml", "--until-eof", "--fresh", "--json", python=python)
    done = subprocess.run(run, cwd=folder, capture_output=True, env=environment(), check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode().strip().splitlines()[-1])
    for archived in (folder / "state").glob("archived-*"):
        shutil.rmtree(archived)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary
