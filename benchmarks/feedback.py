"""Feedback: a run that joins late labels beside one whose events come with them.

Both sides read JSON, predict, score, learn and write every prediction. Where labels come later,
there are two files, and each event waits until its label comes, so many events later. Then a
trainer alone: events that all wait, the memory and the bytes of the state that they take, and the
time to save and to load them.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from figures import Fact, Result, compare, measured
from sides import Side, alternate, environment, midstream, project
from streams import hyperplane, write

WAITING = Path(__file__).parent / "feedback_waiting.py"


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001 no other side
    """Measure; return the figures."""
    events = 2_000_000 if full else 400_000
    result = Result(repeats=5 if full else 3)
    with tempfile.TemporaryDirectory() as temporary:
        at_once, later = (Path(temporary) / name for name in ("at_once", "later"))
        for folder in (at_once, later):
            folder.mkdir()
            project(folder, features=10)
        _write(at_once, later, events, delay=events // 8)
        midstream(at_once)  # compiles the kernels, once on a machine
        samples = alternate(
            {"at once": partial(midstream, at_once), "later": partial(midstream, later)},
            result.repeats,
        )
    rates = {name: [sample.rate for sample in each] for name, each in samples.items()}
    result.rows.append(
        compare(
            f"Built-in logistic from JSON, labels {events // 8:,} events later",
            ("joined", rates["later"]),
            ("labels at once", rates["at once"]),
            goal=0.5,
        )
    )
    for name, each in samples.items():
        result.sides.append(measured(f"labels {name}", each, ours=True))
    waiting = 10_000_000 if full else 1_000_000
    found = Side([sys.executable, WAITING, waiting], Path.cwd(), environment()).done().out
    for key, unit in (
        ("predicted", "events/s"), ("joined", "events/s"), ("memory", "bytes an event"),
        ("state", "bytes an event"), ("save", "s"), ("save again", "s"), ("load", "s"),
    ):  # fmt: skip
        result.facts.append(Fact(f"{waiting:,} events wait: {key}", found[key], unit))
    return result


def _write(at_once: Path, later: Path, events: int, delay: int) -> None:
    """Write a stream with its labels, and again as two files, with times."""
    write(at_once / "events.jsonl", hyperplane(events))
    text = (later / "midstream.toml").read_text()
    (later / "midstream.toml").write_text(text + '[feedback]\npath = "labels.jsonl"\n')
    events_file, labels_file = later / "events.jsonl", later / "labels.jsonl"
    with events_file.open("w") as unlabelled, labels_file.open("w") as out:
        for i, (x, y) in enumerate(hyperplane(events)):
            pairs = ",".join(f'"{name}":{value!r}' for name, value in x.items())
            unlabelled.write(f'{{"id":"e{i}","x":{{{pairs}}},"ts":{1e9 + i / 1_000!r}}}\n')
            due = 1e9 + (i + delay) / 1_000
            out.write(f'{{"id":"e{i}","y":{str(bool(y)).lower()},"ts":{due!r}}}\n')
