"""Overhead: `midstream run` from a JSON Lines file over a bare River loop on decoded events.

Our side decodes, predicts, scores by every metric, learns, watches for drift, samples into the
reservoir, writes every prediction, journals and snapshots. River's side predicts and learns.
Each repeat runs both sides one after the other, in fresh processes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from streams import hyperplane, write

MODELS = {
    "LogisticRegression": ("linear_model.LogisticRegression()", 2_000_000, 0.6),
    "HoeffdingTree": ("tree.HoeffdingTreeClassifier()", 400_000, 0.85),
    "ARF(10)": ("forest.ARFClassifier(n_models=10, seed=1)", 15_000, 0.97),
}

BARE = """
import json, sys, time
from river import forest, linear_model, tree
import msgspec
class E(msgspec.Struct): id: str; x: dict[str, float]; y: bool
events = msgspec.json.Decoder(E).decode_lines(open(sys.argv[1], 'rb').read())
model = {model}
begun = time.perf_counter()
for e in events:
    model.predict_proba_one(e.x)
    model.learn_one(e.x, e.y)
print(json.dumps(dict(seconds=time.perf_counter() - begun, events=len(events))))
"""

CONFIG = """
[model]
learner = "models:make"
task = "binary"
[input]
path = "events.jsonl"
"""


def _bare(folder: Path, model: str) -> float:
    command = [sys.executable, "-c", BARE.replace("{model}", model), "events.jsonl"]
    out = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)
    return out["events"] / out["seconds"]


def _ours(folder: Path, profile: Path | None = None) -> dict[str, object]:
    run = ["-m", "midstream.flows.cli", "run", "midstream.toml", "--until-eof", "--fresh", "--json"]
    command = [sys.executable, *(["-m", "cProfile", "-o", str(profile)] if profile else []), *run]
    env = dict(os.environ, PYTHONHASHSEED="0")
    done = subprocess.run(command, cwd=folder, capture_output=True, check=True, env=env)
    return json.loads(done.stdout)


def bench(*, full: bool) -> dict[str, object]:
    """Measure, print, and return the figures."""
    results = {}
    for name, (model, n, goal) in MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write(folder / "events.jsonl", hyperplane(n))
            (folder / "midstream.toml").write_text(CONFIG)
            (folder / "models.py").write_text(
                f"from river import forest, linear_model, tree\ndef make():\n    return {model}\n"
            )
            _ours(folder)  # compiles the kernels, once for a machine
            pairs = []
            for _ in range(7 if full else 3):
                bare, ours = _bare(folder, model), _ours(folder)
                assert ours["learned"] == n
                pairs.append((bare, ours["events_per_second"]))
            ratios = sorted(b / a for a, b in pairs)
            row = {
                "events": n,
                "river_events_per_second": round(statistics.median(a for a, _ in pairs)),
                "midstream_events_per_second": round(statistics.median(b for _, b in pairs)),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_lowest": round(ratios[0], 3),
                "ratio_highest": round(ratios[-1], 3),
                "goal": goal,
            }
            results[name] = row
            print(
                f"{name:20} River {row['river_events_per_second']:>9,}/s  "
                f"Midstream {row['midstream_events_per_second']:>9,}/s  "
                f"ratio {row['ratio']:.3f} ({row['ratio_lowest']:.3f} to "
                f"{row['ratio_highest']:.3f})  goal {goal}"
            )
            if name == "LogisticRegression":
                results["profile"] = _profile(folder)
    return results


def _profile(folder: Path) -> list[str]:
    """Where the rest goes: seconds by function, from a profiled run."""
    import io
    import pstats

    path = folder / "profile"
    _ours(folder, profile=path)
    text = io.StringIO()
    pstats.Stats(str(path), stream=text).strip_dirs().sort_stats("tottime").print_stats(14)
    lines = [line for line in text.getvalue().splitlines() if line.strip()][4:]
    print("  profile of our side (profiling itself slows it), by own time:")
    for line in lines:
        print("   ", line)
    return lines
