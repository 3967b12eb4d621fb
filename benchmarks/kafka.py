"""Kafka: a topic to learned by `midstream run`, beside bare loops of confluent-kafka and msgspec.

Ours is the whole command: decoding, learning, every metric, ADWIN, reservoir, journal, snapshots.
A bare loop consumes and decodes, and nothing else; with predictions, it also produces as many
messages, without transactions. An Apache Kafka of its own runs on the same machine.
"""

import json
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from figures import Bar, Bars, Fact, Mark, Result, compare, measured
from sides import Side, alternate, command, environment, midstream
from streams import columnar, has_arrow, long_stream, names

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "support"

LOGISTIC, ARROW = "Midstream, logistic, JSON", "Midstream, logistic, Arrow of 1,000 rows"
RIVER, NOTHING = "Midstream, River's LogisticRegression, JSON", "Midstream, no learning, JSON"
WRITTEN = "Midstream, logistic, JSON, predictions to Kafka"
BARE, BARE_WRITTEN = "Bare loop, JSON", "Bare loop, JSON, a message produced for each"

# ours, the other side, at least so many times as fast
GOALS = (
    (LOGISTIC, BARE, 0.75),
    (ARROW, BARE, None),
    (RIVER, BARE, None),
    (NOTHING, BARE, None),
    (WRITTEN, BARE_WRITTEN, 0.7),
)
RATE = 2_000  # events/s, where latency is measured
LATENCY_GOAL = 50.0  # ms, of the 99th percentile

MODELS = """
from river import base, linear_model, preprocessing

class Nothing(base.Classifier):
    def learn_one(self, x, y):
        pass

    def predict_proba_one(self, x):
        return {}

def make():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""
# The built-in learner, with a look at the clock after each batch that it has learned.
TIMED = """
import atexit, json, sys, time
sys.path.insert(0, %r)
from midstream.engine.learners.linear import LinearLearner
from streams import percentiles
from kafka_latency import WARM

plain, taken = LinearLearner.predict_learn, []

def timed(self, batch):
    made = plain(self, batch)
    now = time.time()
    if not taken:
        open("ready", "w").close()
    taken.extend((ts, now - ts) for ts in batch.times or ())
    return made

LinearLearner.predict_learn = timed

def tell():
    begun = taken[1][0]  # the first one only tells that we are there
    counted = [late for ts, late in taken if ts > begun + WARM]
    with open("learned.json", "w") as file:
        json.dump(percentiles(counted), file)

atexit.register(tell)

def make():
    return LinearLearner("binary")
"""


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001 all is in our environment
    """Measure; return the figures."""
    cluster_class, why = find_kafka()
    if cluster_class is None:
        return Result(missing=[f"Kafka: {why}"])
    with tempfile.TemporaryDirectory() as temporary, cluster_class() as cluster:
        return _measure(Path(temporary), cluster, full=full)


def find_kafka() -> tuple[Any, str]:
    """Return the class of a real Apache Kafka; None, and why, where there can be none."""
    sys.path.insert(0, str(TESTS))
    try:
        from kafka_broker import Cluster
        from kafka_jars import missing
    except ImportError as error:
        return None, str(error)
    why = missing()
    return (None, why) if why else (Cluster, "")


def _measure(root: Path, cluster, *, full: bool) -> Result:
    events = 4_000_000 if full else 500_000
    result = Result(repeats=5 if full else 2)
    long_stream(root, events)
    address = cluster.bootstrap
    _fill(cluster, "events", root / "events.jsonl")
    loop = [sys.executable, HERE / "kafka_loop.py", address, "events"]
    sides = {
        BARE: lambda: Side(loop, root).done(),
        LOGISTIC: _ours(root, "logistic", address, "logistic"),
        RIVER: _ours(root, "river", address, "models:make", features=0),
        NOTHING: _ours(root, "nothing", address, "models:Nothing", features=0),
    }
    if has_arrow():
        columnar(root, events)
        _fill(cluster, "arrow", root / "events.arrow")
        sides[ARROW] = _ours(root, "arrow", address, "logistic", topic="arrow")
    else:
        result.missing.append("Arrow messages: pyarrow is not installed (extra `arrow`)")
    cluster.create_topic("bare")
    sides[BARE_WRITTEN] = lambda: Side([*loop, "--to", "bare"], root).done()
    sides[WRITTEN] = _ours(root, "written", address, "logistic", cluster=cluster)
    sides[LOGISTIC]()  # compiles the kernels, once on a machine
    samples = alternate(sides, result.repeats)
    result.sides = [
        measured(name, taken, ours=name.startswith("Midstream")) for name, taken in samples.items()
    ]
    rates = {name: [s.rate for s in taken] for name, taken in samples.items()}
    for ours, other, goal in GOALS:
        if ours in rates:
            title = ours.removeprefix("Midstream, ")
            result.rows.append(
                compare(title, ("ours", rates[ours]), (other, rates[other]), goal=goal)
            )
    _latency(root, cluster, result, 20.0 if full else 3.0)
    marks = {
        ours: [Mark(goal * max(rates[other]), f"{goal:g} x {other}")]
        for ours, other, goal in GOALS
        if goal is not None
    }
    bars = [
        Bar(name, max(taken), name.startswith("Midstream"), marks.get(name, []))
        for name, taken in rates.items()
    ]
    result.charts = [Bars("Events a second, from a Kafka topic", "events/s", bars)]
    return result


def _fill(cluster, topic: str, path: Path) -> None:
    cluster.create_topic(topic)
    fill = [sys.executable, HERE / "kafka_fill.py", cluster.bootstrap, topic, path]
    subprocess.run(fill, check=True)


def topic_project(
    folder: Path,
    address: str,
    learner: str,
    *,
    topic: str = "events",
    features: int = 10,
    cluster=None,
    models: str = MODELS,
    commit_seconds: float = 0.5,
) -> Path:
    """Make a project whose input is a topic; with a cluster, its outputs are topics there, too."""
    folder.mkdir()
    outputs = "predictions = false\n"
    if cluster is not None:
        kinds = ("predictions", "rejected", "alarms", "journal")
        made = {kind: cluster.create_topic(f"{folder.name}.{kind}") for kind in kinds}
        outputs = "".join(f'{kind} = "{name}"\n' for kind, name in made.items())
    (folder / "models.py").write_text(models)
    schema = "".join(f'{name} = "number"\n' for name in names(features))
    (folder / "midstream.toml").write_text(
        f'[model]\nlearner = "{learner}"\ntask = "binary"\n'
        f'[input]\ntopic = "{topic}"\n[output]\n{outputs}'
        f'[kafka]\n"bootstrap.servers" = "{address}"\n'
        f"[state]\ncommit_seconds = {commit_seconds}\n"
        + (f"[features]\n{schema}" if schema else "")
    )
    return folder


def _ours(root: Path, name: str, address: str, learner: str, **options):
    return partial(midstream, topic_project(root / name, address, learner, **options))


def _latency(root: Path, cluster, result: Result, seconds: float) -> None:
    """Measure how long events take, at a rate, to be learned, and their predictions to be seen."""
    found: dict[str, list[dict[str, float]]] = {"learned": [], "put out": [], "seen": []}
    address = cluster.bootstrap
    made = {"models": TIMED % str(HERE), "commit_seconds": 0.1}
    for name in ("live", "live-out"):
        cluster.create_topic(name)
        out = cluster if name == "live-out" else None
        topic_project(root / name, address, "models:make", topic=name, cluster=out, **made)
    cluster.create_topic("bare-live")
    consumed = []
    for _ in range(result.repeats):
        script = [sys.executable, HERE / "kafka_latency.py", address, "bare-live", RATE, seconds]
        bare = Side([*script, root, "--predictions=bare-live"], HERE).done()
        consumed.append(bare.out["visible"])
        learned, _ = _lived(root / "live", address, seconds)
        found["learned"].append(learned)
        learned, seen = _lived(root / "live-out", address, seconds, "--predictions")
        found["put out"].append(learned)
        found["seen"].append(seen)
    title = f"produce to learned at {RATE:,} events/s, 99 of 100"
    ours = ("ours", [1_000 * p["p99"] for p in found["learned"]])
    wanted = ("the goal", [LATENCY_GOAL] * result.repeats)
    result.rows.append(compare(title, ours, wanted, unit="ms", goal=1.0, at_most=True))
    found["consumed"] = consumed
    facts = (
        ("produce to seen by a bare consumer, half of all events", "consumed", "p50"),
        ("99 of 100", "consumed", "p99"),
        ("produce to learned, half of all events", "learned", "p50"),
        ("learned, predictions put out every 0.1 s, half of all", "put out", "p50"),
        ("the same, 99 of 100", "put out", "p99"),
        ("prediction seen by a reader of what is committed, half of all", "seen", "p50"),
        ("seen, 99 of 100", "seen", "p99"),
    )
    result.facts = [
        Fact(name, 1_000 * min(p[part] for p in found[which]), "ms") for name, which, part in facts
    ]


def _lived(folder: Path, address: str, seconds: float, *options: str) -> tuple[dict, dict]:
    """Run an engine on a live topic; return what was learned, and seen, how late in seconds."""
    (folder / "ready").unlink(missing_ok=True)
    script = [sys.executable, HERE / "kafka_latency.py", address, folder.name, RATE, seconds]
    script += [folder / "ready", *(f"{option}={folder.name}.predictions" for option in options)]
    run = Side(command("run", "midstream.toml", "--json"), folder, environment())
    try:
        seen = Side(script, HERE).done()
    finally:
        run.process.send_signal(signal.SIGTERM)
        run.done()
    learned = json.loads((folder / "learned.json").read_text())
    return learned, seen.out.get("visible", {})
