"""Versions: what one costs a stream, by the size of the state; how soon a restore takes effect.

All is measured on whole processes of `midstream run`, with the registry and the artifacts where
they are by default, in the state folder.
"""

import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from figures import Bar, Bars, Fact, Grid, Mark, Result, compare, measured
from kafka import find_kafka, topic_project
from sides import Sample, Side, alternate, environment, midstream, project
from streams import Event, hyperplane, hyperplane_with_words, names, words, write

HERE = Path(__file__).parent

EVERY = 10  # seconds from version to version
LEAST = 0.95  # of the throughput without versions
RATE = 5_000  # events/s, where a restore is measured
RESTORE_GOAL = 2.0  # seconds from the command to its effect

WITH, IDLE, WITHOUT = "a version every 10 s", "versions enabled, none due", "versions.enabled false"
# Versions that nobody asked for would be measured with the others.
QUIET = "[versions]\nevery_seconds = 0\non_drift = false\non_shutdown = false\n"
SIDES = {
    WITHOUT: "[versions]\nenabled = false\n",
    WITH: QUIET.replace("every_seconds = 0", f"every_seconds = {EVERY}"),
    IDLE: QUIET,
}
WORDS, BLOCK, COPIES = 16_000, 200_000, 5  # of each category; events; of them in a file
COLUMNS = dict.fromkeys(names(8), "number") | {"category_0": "category", "category_1": "category"}
LOGISTIC = {"optimizer": "ftrl", "rate": 0.1}

# What the engine makes, with a clock on what its stream waits for.
TIMED = """
import atexit, json, time
from pathlib import Path
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.shard.shard import Shard
from river import forest

waits = {"cut": [], "snapshot": [], "restore": []}
cut, carry_out = Shard.make_version, Shard.carry_out

def timed(function, kind, *arguments, **options):
    begun = time.perf_counter()
    made = function(*arguments, **options)
    waits[kind].append(time.perf_counter() - begun)
    return made

def tell():
    if any(waits.values()):  # a command that only looks has none
        Path(__file__).with_name("waits.json").write_text(json.dumps(waits))

Shard.make_version = lambda *a: timed(cut, "cut", *a)
Shard.carry_out = lambda shard, order, **o: timed(carry_out, order.kind, shard, order, **o)
atexit.register(tell)

def make():
    return """


class State(NamedTuple):
    """A learner, and so many events that its state is about so many MB."""

    name: str
    megabytes: int
    learner: str
    events: int
    made: Iterator[Event]


def states() -> list[State]:
    """Return what states are measured. FTRL keeps three numbers for each category it has seen."""
    ftrl = ", ".join(f"{key}={value!r}" for key, value in LOGISTIC.items())
    sizes = {1: (3_000, 18), 10: (38_000, 20), 100: (390_000, 23)}  # MB: events, bits
    found = []
    for size, (n, bits) in sizes.items():
        learner = f'LinearLearner("binary", bits={bits}, {ftrl})'
        found.append(State(f"logistic, {size} MB", size, learner, n, words(n)))
    arf, n = "forest.ARFClassifier(n_models=10, seed=1)", 8_000
    return [*found, State("River's ARF(10), 1 MB", 1, arf, n, hyperplane(n))]


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001 all is in our environment
    """Measure; return the figures."""
    result = Result(repeats=3 if full else 1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        _throughput(root / "throughput", result, seconds=64 if full else 29)
        _states(root, result, repeats=7 if full else 3)
        _restores(root, result, calls=30 if full else 5)
    return result


# Throughput, with and without versions.


def _throughput(folder: Path, result: Result, seconds: float) -> None:
    """Compare runs that are long enough for several versions."""
    folder.mkdir()
    block = write(folder / "block.jsonl", hyperplane_with_words(BLOCK, 8, 2, WORDS))
    with (folder / "copies.jsonl").open("wb") as out:
        out.writelines([block.read_bytes()] * COPIES)
    # The first run compiles, once on a machine; the faster tells how many files it takes.
    rate = max(_learn(folder, WITHOUT, 2).rate for _ in range(2))
    files = dict.fromkeys(SIDES, math.ceil(seconds * rate / (BLOCK * COPIES)))
    if result.repeats == 1:
        files[IDLE] = math.ceil(files[IDLE] / 2)  # nothing happens in it
    sides = {name: partial(_learn, folder, name, files[name]) for name in SIDES}
    samples = alternate(sides, result.repeats)
    result.sides = [measured(name, taken, ours=name != WITHOUT) for name, taken in samples.items()]
    rates = {name: [s.rate for s in taken] for name, taken in samples.items()}
    without = (WITHOUT, rates[WITHOUT])
    result.rows += [
        compare("Throughput with a version every 10 s", (WITH, rates[WITH]), without, goal=LEAST),
        compare("Throughput with versions, none due", (IDLE, rates[IDLE]), without),
        compare(
            "Processor time with a version every 10 s",
            (WITH, [s.cpu for s in samples[WITH]]),
            (WITHOUT, [s.cpu for s in samples[WITHOUT]]),
            unit="s",
            at_most=True,
        ),
    ]
    taken = samples[WITH]
    if any(s.out["versions"] < 2 for s in taken):
        result.missing.append(
            f"several versions in a run: one took only {min(s.out['seconds'] for s in taken):.0f} "
            "s, since the machine was slower when its length was chosen; measure again"
        )
    result.facts += [
        Fact("versions in a run of one every 10 s", min(s.out["versions"] for s in taken), ""),
        Fact("seconds of such a run", min(s.out["seconds"] for s in taken), "s"),
        Fact("state of that learner", taken[0].out["unpacked"] / 1e6, "MB"),
        Fact("its version on disk", taken[0].out["packed"] / 1e6, "MB"),
    ]
    marks = [Mark(LEAST * max(rates[WITHOUT]), f"{LEAST:g} x {WITHOUT}")]
    bars = [
        Bar(name, max(rates[name]), name != WITHOUT, marks if name == WITH else [])
        for name in SIDES
    ]
    result.charts = [Bars("Events a second, with versions and without", "events/s", bars)]


def _learn(folder: Path, name: str, files: int) -> Sample:
    """Run one side from the beginning; see which versions there are afterwards.

    The files of the input are links to one, so that none is read from the disk.
    """
    for old in ("state", "events"):
        shutil.rmtree(folder / old, ignore_errors=True)
    (folder / "events").mkdir()
    for i in range(files):
        os.link(folder / "copies.jsonl", folder / "events" / f"{i}.jsonl")
    project(folder, path="events/*.jsonl", predictions=False)
    config = folder / "midstream.toml"
    options = "".join(f"{key} = {value!r}\n" for key, value in LOGISTIC.items())
    schema = "".join(f'{key} = "{kind}"\n' for key, kind in COLUMNS.items())
    with config.open("a") as file:
        file.write(f"[model.options]\n{options}[features]\n{schema}{SIDES[name]}")
    sample = midstream(folder)
    sample.out.update(_made(folder))
    return sample


def _made(folder: Path) -> dict[str, int]:
    """Return how many versions there are, and the size of the last one's parts."""
    from midstream.flows.claims.registry import open_registry
    from midstream.flows.loading import load

    settings = load(folder / "midstream.toml")
    if not settings.versions.enabled:
        return {}
    registry = open_registry(settings)
    try:
        rows = registry.versions()
    finally:
        registry.close()
    if not rows:
        return {"versions": 0}
    parts = rows[-1].manifest.shards[0].files.values()
    return {
        "versions": len(rows),
        "packed": sum(file.bytes for file in parts),
        "unpacked": sum(file.unpacked for file in parts),
    }


# A version, by the size of the state.


def _states(root: Path, result: Result, repeats: int) -> None:
    """Make versions of states, and restore them."""
    grid = Grid(
        "Versions by the size of the state, in seconds",
        [
            "state",
            "parts",
            "on disk",
            "version: the stream waits",
            "of that, state taken and kept",
            "command to whole",
            "read and loaded",
            "restore: the stream waits",
            "command to done",
        ],
    )
    for i, state in enumerate(states()):
        folder = root / f"state-{i}"
        folder.mkdir()
        write(folder / "events.jsonl", state.made)
        project(folder, "models:make", predictions=False)
        (folder / "models.py").write_text(TIMED + state.learner + "\n")
        with (folder / "midstream.toml").open("a") as file:
            file.write(QUIET)
        script = [sys.executable, HERE / "versions_cost.py", folder, state.events, repeats]
        found = Side(script, HERE, environment()).done().out
        waits = found["waits"]
        taken = [
            waits["snapshot"],
            waits["cut"],
            found["whole"],
            found["loaded"],
            waits["restore"],
            found["told"],
        ]
        sizes = [f"{found[key] / 1e6:.2f} MB" for key in ("unpacked", "packed")]
        grid.rows.append([state.name, *sizes, *(f"{min(each):.3f}" for each in taken)])
        if state.megabytes == 1:  # as the goal has it
            ours = ("the stream waits", waits["snapshot"])
            between = (f"in {EVERY} s", [float(EVERY)] * len(waits["snapshot"]))
            title = f"A version every {EVERY} s, by what the stream waits: {state.name}"
            result.rows.append(
                compare(title, ours, between, unit="s", goal=1 - LEAST, at_most=True)
            )
        shutil.rmtree(folder)
    result.grids.append(grid)


# A restore, live.


def _restores(root: Path, result: Result, calls: int) -> None:
    """Restore, from outside, while events come from Kafka at a rate."""
    cluster_class, why = find_kafka()
    if cluster_class is None:
        result.missing.append(f"restore, live: {why}")
        return
    with cluster_class() as cluster:
        cluster.create_topic("live")
        address = cluster.bootstrap
        folder = topic_project(root / "live", address, "logistic", topic="live", cluster=cluster)
        script = [sys.executable, HERE / "versions_live.py", folder, address, "live", RATE, calls]
        found = Side(script, HERE, environment()).done().out
    effect, whole = found["effect"], found["call"]
    title = f"restore at {RATE:,} events/s, command to effect, the slowest of {calls}"
    goal = ("the goal", [RESTORE_GOAL])
    result.rows.append(
        compare(title, ("ours", [max(effect)]), goal, unit="s", goal=1.0, at_most=True)
    )
    result.facts += [
        Fact("restore, command to effect, half of all", statistics.median(effect), "s"),
        Fact("the whole call of `midstream restore`, half of all", statistics.median(whole), "s"),
        Fact("the slowest", max(whole), "s"),
        Fact("events meanwhile, each predicted once", found["events"], ""),
        Fact("the producer was late by at most", found["late"], "s"),
    ]
