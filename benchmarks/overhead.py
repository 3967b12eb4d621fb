"""Overhead: `midstream run` from a JSON Lines file over a bare River loop on decoded events.

Our side decodes, predicts, scores by every metric, learns, watches for drift, samples into the
reservoir, writes every prediction, journals and snapshots. River's side predicts and learns.
Each repeat runs both sides one after the other, in fresh processes. A neighbour on the machine
only ever slows a side down, so what is compared is the fastest of each.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from streams import hyperplane, midstream, write

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
lines = open(sys.argv[1], 'rb').read()
begun = time.perf_counter()
events = msgspec.json.Decoder(E).decode_lines(lines)
decoding = time.perf_counter() - begun
model = {model}
begun = time.perf_counter()
for e in events:
    model.predict_proba_one(e.x)
    model.learn_one(e.x, e.y)
seconds = time.perf_counter() - begun
print(json.dumps(dict(seconds=seconds, decoding=decoding, events=len(events))))
"""

CONFIG = """
[model]
learner = "models:make"
task = "binary"
[input]
path = "events.jsonl"
"""


def _bare(folder: Path, model: str) -> tuple[float, float]:
    """Return events/s of the bare loop, and of it with the decoding counted."""
    command = [sys.executable, "-c", BARE.replace("{model}", model), "events.jsonl"]
    out = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)
    return out["events"] / out["seconds"], out["events"] / (out["seconds"] + out["decoding"])


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
            if not results:
                midstream(folder)  # compiles the kernels, once on a machine
            pairs = []
            for _ in range(9 if full else 4):
                bare, ours = _bare(folder, model), midstream(folder)
                assert ours["learned"] == n
                pairs.append((*bare, ours["events_per_second"]))
            bare, decoded, ours = (max(column) for column in zip(*pairs, strict=True))
            ratios = sorted(b / a for a, _, b in pairs)
            row = {
                "events": n,
                "river_events_per_second": round(bare),
                "river_with_decoding_events_per_second": round(decoded),
                "midstream_events_per_second": round(ours),
                "ratio": round(ours / bare, 3),
                "ratio_with_decoding_on_both_sides": round(ours / decoded, 3),
                "ratio_lowest_of_a_repeat": round(ratios[0], 3),
                "ratio_highest_of_a_repeat": round(ratios[-1], 3),
                "goal": goal,
            }
            results[name] = row
            print(
                f"{name:20} River {bare:>9,.0f}/s (decoding too: {decoded:,.0f}/s)  "
                f"Midstream {ours:>9,.0f}/s  ratio {row['ratio']:.3f} "
                f"({row['ratio_with_decoding_on_both_sides']:.3f}; repeats {ratios[0]:.3f} to "
                f"{ratios[-1]:.3f})  goal {goal}",
                flush=True,
            )
            if name == "LogisticRegression":
                results["profile"] = _profile(folder)
    return results


def _profile(folder: Path) -> list[str]:
    """Where the rest goes: seconds by function, from a profiled run."""
    import io
    import pstats

    path = folder / "profile"
    midstream(folder, python=["-m", "cProfile", "-o", str(path)])
    text = io.StringIO()
    pstats.Stats(str(path), stream=text).strip_dirs().sort_stats("tottime").print_stats(14)
    lines = [line for line in text.getvalue().splitlines() if line.strip()][4:]
    print("  profile of our side (profiling itself slows it), by own time:")
    for line in lines:
        print("   ", line)
    return lines
