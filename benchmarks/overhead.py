"""Overhead: `midstream run` with River's learners over a bare River loop on decoded events.

Our side decodes, predicts, scores by every metric, learns, watches for drift, samples into the
reservoir, writes every prediction, journals and snapshots. River's side predicts and learns; with
decoding counted on both sides, it also decodes.

And what rejecting costs: `midstream run` on a stream of which the learner raises on one event in a
hundred, over the same without these.
"""

import io
import pstats
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

from figures import Result, Row, compare
from sides import PEERS, Sample, Side, alternate, midstream, project
from streams import hyperplane, long_stream, with_text, write


class Model(NamedTuple):
    """A model, on how many events, and the goals of the ratio."""

    text: str
    events: int
    goal: float
    decoding_goal: float | None


MODELS = {
    "LogisticRegression": Model("linear_model.LogisticRegression()", 1_000_000, 0.6, 0.9),
    "HoeffdingTree": Model("tree.HoeffdingTreeClassifier()", 200_000, 0.85, None),
    "ARF(10)": Model("forest.ARFClassifier(n_models=10, seed=1)", 15_000, 0.97, None),
}


SCALED = "preprocessing.StandardScaler() | linear_model.LogisticRegression()"


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001 River is in our environment
    """Measure; return the figures."""
    result = Result(repeats=9 if full else 3)
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if model.events > 1_000_000:
                long_stream(folder, model.events)
            else:  # a tree should not see an event twice
                write(folder / "events.jsonl", hyperplane(model.events))
            project(folder, model.text)
            if not result.rows:
                midstream(folder)  # compiles the kernels, once on a machine
            samples = alternate(
                {"bare": partial(_bare, folder, model), "ours": partial(midstream, folder)},
                result.repeats,
            )
            if not result.rows:
                result.profile = _profile(folder)
        ours = ("Midstream", [s.rate for s in samples["ours"]])
        bare = ("bare River", [s.rate for s in samples["bare"]])
        both = ("River and decoding", [_with_decoding(s) for s in samples["bare"]])
        result.rows += [
            compare(name, ours, bare, goal=model.goal),
            compare(f"{name}, decoding on both sides", ours, both, goal=model.decoding_goal),
        ]
    result.rows.append(_rejecting(result.repeats))
    return result


def _rejecting(repeats: int) -> Row:
    """Compare runs with and without events that the learner raises on."""
    sides, events = {}, 100_000
    with tempfile.TemporaryDirectory() as temporary:
        for name, every in (("odd", 100), ("sound", 0)):
            folder = Path(temporary) / name
            folder.mkdir()
            write(folder / "events.jsonl", with_text(hyperplane(events), every))
            project(folder, SCALED, on_error="reject")
            sides[name] = partial(midstream, folder)
        samples = alternate(sides, repeats)
    return compare(
        "StandardScaler | LogisticRegression, 1% raised on and rejected",
        ("1% raised on", [s.rate for s in samples["odd"]]),
        ("none", [s.rate for s in samples["sound"]]),
        goal=0.5,
    )


def _bare(folder: Path, model: Model) -> Sample:
    script = [sys.executable, PEERS / "river_loop.py", "events.jsonl", model.events, model.text]
    return Side(script, folder).done()


def _with_decoding(sample: Sample) -> float:
    out = sample.out
    return float(out["events"] / (out["seconds"] + out["decoding"]))


def _profile(folder: Path) -> list[str]:
    """Return where the rest goes: seconds by function, from a profiled run."""
    path = folder / "profile"
    midstream(folder, python=["-m", "cProfile", "-o", str(path)])
    text = io.StringIO()
    pstats.Stats(str(path), stream=text).strip_dirs().sort_stats("tottime").print_stats(14)
    return [line for line in text.getvalue().splitlines() if line.strip()][4:]
