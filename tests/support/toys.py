"""A package that brings one of each kind that Midstream takes from outside, by its entry points."""

from pathlib import Path

import click
import numpy as np

from midstream import Alarm, CommandKind, Learner, Metric, Part, RefusedError
from midstream.engine.drift.detectors import Detection
from midstream.engine.events.predictions import Predictions
from midstream.engine.state import encoding

NAMES = {
    "midstream.learners": "majority = toys:Majority",
    "midstream.detectors": "streak = toys:Streak",
    "midstream.metrics": "positives = toys:Positives",
    "midstream.parts": "sources = toys:Sources\nbroken = toys:Broken",
    "midstream.commands": "hello = toys:hello\nrecount = toys:Recount",
}


def installed(site: Path) -> Path:
    """Put this module and its entry points into a folder, as a package would be installed there."""
    info = site / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    points = "\n".join(f"[{group}]\n{names}" for group, names in NAMES.items())
    (info / "entry_points.txt").write_text(points + "\n")
    (site / "toys.py").write_bytes(Path(__file__).read_bytes())
    return site


class Majority:
    """Predicts the label that it has seen most often, of the last `memory` ones."""

    kind = "majority"
    needs = "dicts"
    takes_weights = False

    def __init__(self, task="binary", *, memory=100):
        self.task = task
        self.memory = memory
        self.labels = []

    def predict_learn(self, batch):
        values = []
        for label in batch.labels:
            values.append(self._most())
            if label is not None:
                self.labels = [*self.labels, label][-self.memory :]
        return Predictions(values)

    def predict(self, batch):
        return Predictions([self._most()] * len(batch))

    def learn(self, batch):
        self.predict_learn(batch)

    def _most(self):
        return max(sorted(set(self.labels)), key=self.labels.count) if self.labels else None

    def state(self):
        return encoding.encode({"memory": self.memory, "labels": self.labels})

    @classmethod
    def from_state(cls, data, *, task, modules=()):  # noqa: ARG003
        state = encoding.decode(data)
        new = cls(task, memory=state["memory"])
        new.labels = state["labels"]
        return new

    def definition(self):
        return {"kind": self.kind, "task": self.task, "memory": self.memory}


assert isinstance(Majority(), Learner)


class Streak:
    """Says that something has changed after `length` losses in a row above 0.5."""

    threshold = "length"

    def __init__(self, *, length=5):
        self.length = length
        self.row = 0

    def update(self, values):
        found = []
        for i, loss in enumerate(values.tolist()):
            if np.isnan(loss):
                continue
            self.row = self.row + 1 if loss > 0.5 else 0
            if self.row == self.length:
                found.append(Detection(i, 0.0, 1.0))
        return found

    def definition(self):
        return {"length": self.length}

    def state(self):
        return dict(vars(self))

    @classmethod
    def from_state(cls, state):
        new = cls()
        vars(new).update(state)
        return new


class Positives(Metric):
    """The share of labels that are true."""

    tasks = ("binary",)

    def __init__(self):
        self.n = self.true = 0

    def update(self, labels, values, probas):
        known = [label for label in labels if label is not None]
        self.n += len(known)
        self.true += sum(known)

    def report(self):
        return {"": self.true / self.n if self.n else float("nan")}


class Sources(Part):
    """Counts events by source, and says when one has sent `most` of them."""

    name = "sources"

    def __init__(self, most=1_000):
        super().__init__(most=most)
        self.counts = {}

    def observe(self, batch, step, position):
        alarms = []
        for i, source in enumerate(batch.sources or [None] * len(batch)):
            name = source or "nobody"
            self.counts[name] = self.counts.get(name, 0) + 1
            if self.counts[name] == self.options["most"]:
                alarms.append(
                    Alarm(kind="sources", detector="sources", feature=name, value=1.0,
                          threshold=1.0, position=position + i + 1, ts=None)
                )  # fmt: skip
        return alarms

    def report(self):
        return {name: float(count) for name, count in sorted(self.counts.items())}


class Broken(Part):
    """One that cannot be made."""

    name = "broken"

    def __init__(self, **options):
        raise RuntimeError(f"no luck with {options}")


class Recount(CommandKind):
    """Begin the counts of the sources anew.

    The part `sources` then counts from 0.
    """

    name = "recount"
    in_command_line = True

    def plan(self, command, order, standing):
        if "sources" not in standing.definition.get("parts", {}):
            raise RefusedError("the model has no part `sources`")
        return command

    def perform(self, shard, command, seq, loaded):
        shard.trainer.extra["sources"].counts = {}

    def words(self, order, unit):
        return ["the counts of all sources are 0 again"]


@click.command()
@click.option("--to", default="you")
def hello(to):
    """Greet somebody."""
    click.echo(f"hello {to}")
