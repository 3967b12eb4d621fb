"""Memory: resident memory of `midstream run` at its end beside that at 500,000 events."""

import math
import tempfile
import time
from pathlib import Path

from figures import Result, compare
from sides import Side, command, environment, project
from streams import long_stream

EARLY = 500_000
LEARNERS = {
    "River, StandardScaler | LogisticRegression": (
        "preprocessing.StandardScaler() | linear_model.LogisticRegression()",
        0,
    ),
    "Built-in logistic, straight to columns": ("logistic", 10),
}


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001 no other side
    """Measure; return the figures."""
    events = 20_000_000 if full else 3_000_000
    result = Result(repeats=1)
    for name, (learner, features) in LEARNERS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            long_stream(folder, events)
            project(folder, learner, features=features, commit_seconds=0.1)
            early, late = _watch(folder, events)
        result.rows.append(
            compare(
                name,
                (f"at {events:,}", [late]),
                (f"at {EARLY:,}", [early]),
                unit="MiB",
                goal=1.1,
                at_most=True,
            )
        )
    return result


def _resident(pid: int) -> float:
    """Return the resident memory of a process in MiB; nan if it has gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    except FileNotFoundError:
        pass
    return math.nan


def _watch(folder: Path, events: int) -> tuple[float, float]:
    """Run; return resident MiB when the early events had been learned, and near the end."""
    side = Side(command("run", "midstream.toml", "--until-eof", "--json"), folder, environment())
    out = folder / "out" / "predictions.jsonl"
    per_event = early = late = math.nan
    while side.running:
        time.sleep(0.05)
        written = out.stat().st_size if out.exists() else 0
        if math.isnan(per_event) and written > 10_000_000:
            with out.open("rb") as file:
                head = file.read(10_000_000)
            per_event = len(head) / head.count(b"\n")
        resident = _resident(side.process.pid)
        if math.isnan(resident):  # it has just gone
            continue
        if math.isnan(early) and written >= EARLY * per_event:
            early = resident
        late = resident
    assert side.done().out["learned"] == events
    return early, late
