"""Memory: resident memory of `midstream run` at 5 million events beside that at 500,000."""

import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

from streams import command, environment, hyperplane, write

CONFIG = """
[model]
learner = "models:make"
task = "binary"
[input]
path = "events.jsonl"
[state]
commit_seconds = 0.1
"""

MODEL = """
from river import linear_model, preprocessing
def make():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def bench(*, full: bool) -> dict[str, object]:
    """Measure, print, and return the figures. The stream is one block of events, repeated."""
    total, early = (20_000_000 if full else 5_000_000), 500_000
    block = 100_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "midstream.toml").write_text(CONFIG)
        (folder / "models.py").write_text(MODEL)
        lines = write(folder / "block", hyperplane(block)).read_bytes()
        with (folder / "events.jsonl").open("wb") as file:
            for _ in range(total // block):
                file.write(lines)
        (folder / "block").unlink()
        process = subprocess.Popen(
            command("run", "midstream.toml", "--until-eof", "--json"),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        size = (folder / "events.jsonl").stat().st_size
        samples: list[tuple[int, float]] = []  # events (by predictions written), MiB
        out = folder / "out" / "predictions.jsonl"
        per_event = None
        while process.poll() is None:
            time.sleep(0.25)
            try:
                written = out.stat().st_size
                if per_event is None and written > 10_000_000:
                    head = out.open("rb").read(10_000_000)
                    per_event = len(head) / head.count(b"\n")
                if per_event:
                    samples.append((int(written / per_event), _resident(process.pid)))
            except FileNotFoundError:
                continue
        summary = json.loads(process.communicate()[0])
        assert process.returncode == 0
        assert summary["learned"] == total
    at_early = next(mib for n, mib in samples if n >= early)
    # The last sample may be of a process that has just gone.
    at_end = next(mib for _, mib in reversed(samples) if not math.isnan(mib))
    row = {
        "events": total,
        "input_bytes": size,
        "events_per_second": round(summary["events_per_second"]),
        "resident_mib_at_500000": round(at_early, 1),
        "resident_mib_at_end": round(at_end, 1),
        "ratio": round(at_end / at_early, 3),
        "goal": 1.1,
    }
    print(
        f"{total:,} events at {row['events_per_second']:,}/s: resident {at_early:.0f} MiB at "
        f"{early:,}, {at_end:.0f} MiB at the end, ratio {row['ratio']:.3f} (goal: within 1.1)"
    )
    return row
