"""The demo's streams with known switches, its learners with fixed seeds, and their results.

Every learner of a stream reads the same events, decoded from the same JSON Lines file by a run's
decoder, and is built from a config that `midstream run` accepts too.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from river import (
    base,
    datasets,
    forest,
    linear_model,
    naive_bayes,
    neighbors,
    preprocessing,
    tree,
)
from river.datasets import synth

from midstream.engine.events.event import NON_FINITE, FloatArray, IntArray, Label, Task
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.reading import open_reader
from midstream.flows.loading import load
from midstream.flows.running.definition import make_trainer
from midstream.flows.running.errors import RunError

__all__ = [
    "LATE_ROWS",
    "SEED",
    "Contender",
    "Course",
    "Line",
    "Race",
    "Row",
    "Stream",
    "bundled_streams",
    "write_config",
    "write_events",
    "write_late",
]

SEED = 42
LATE_ROWS = 100
"""How many events later a late label comes."""
_STEP = 100  # events between updates of a race
_POINTS = 300  # of a line in a chart


# The learners. A config names them as `midstream.flows.demo.showcase:adaptive_tree`.


def logistic_regression() -> base.Classifier:
    """Return a logistic regression on standardised features."""
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def softmax_regression() -> base.Classifier:
    """Return a softmax regression on standardised features."""
    return preprocessing.StandardScaler() | linear_model.SoftmaxRegression()


def gaussian_naive_bayes() -> base.Classifier:
    """Return a Gaussian naive Bayes classifier."""
    return naive_bayes.GaussianNB()


def hoeffding_tree() -> base.Classifier:
    """Return a Hoeffding tree, which grows and never forgets."""
    return tree.HoeffdingTreeClassifier()


def adaptive_tree() -> base.Classifier:
    """Return a Hoeffding tree that replaces branches which have become worse."""
    return tree.HoeffdingAdaptiveTreeClassifier(seed=SEED)


def adaptive_forest() -> base.Classifier:
    """Return an adaptive random forest of five trees."""
    return forest.ARFClassifier(n_models=5, seed=SEED)


def nearest_neighbours() -> base.Classifier:
    """Return nearest neighbours among the last 200 events, on standardised features."""
    engine = neighbors.LazySearch(window_size=200)
    return preprocessing.StandardScaler() | neighbors.KNNClassifier(engine=engine)


def linear_regression() -> base.Regressor:
    """Return a linear regression on standardised features."""
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


def fast_linear_regression() -> base.Regressor:
    """Return a linear regression whose intercept adapts fast to the level of the labels."""
    return preprocessing.StandardScaler() | linear_model.LinearRegression(intercept_lr=0.5)


def adaptive_regression_tree() -> base.Regressor:
    """Return a regression tree that replaces branches which have become worse."""
    learner = tree.HoeffdingAdaptiveTreeRegressor(grace_period=50, seed=SEED)
    return preprocessing.StandardScaler() | learner


def adaptive_regression_forest() -> base.Regressor:
    """Return an adaptive random forest of five regression trees."""
    return preprocessing.StandardScaler() | forest.ARFRegressor(n_models=5, seed=SEED)


class Contender(msgspec.Struct, frozen=True):
    """A learner in a stream: its name, its factory in this module, and its look in charts."""

    name: str
    factory: str
    look: int


LOGISTIC = Contender("Logistic regression", "logistic_regression", 0)
SOFTMAX = Contender("Softmax regression", "softmax_regression", 0)
BAYES = Contender("Naive Bayes", "gaussian_naive_bayes", 1)
TREE = Contender("Hoeffding tree", "hoeffding_tree", 2)
ADAPTIVE_TREE = Contender("Adaptive tree", "adaptive_tree", 3)
FOREST = Contender("Adaptive forest", "adaptive_forest", 4)
NEIGHBOURS = Contender("Nearest neighbours", "nearest_neighbours", 5)
LINEAR = Contender("Linear regression", "linear_regression", 0)
FAST_LINEAR = Contender("Linear, fast intercept", "fast_linear_regression", 1)
TREE_REGRESSOR = Contender("Adaptive tree", "adaptive_regression_tree", 3)
FOREST_REGRESSOR = Contender("Adaptive forest", "adaptive_regression_forest", 4)


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of labelled events, and its learners.

    Attributes
    ----------
    name
        For file names and ids: letters, digits and hyphens.
    parts
        One function per concept; called with a number, it yields that many events.
    lengths
        Number of events from each part. A switch is where one part ends.
    window
        Events in the windowed metric.
    crash
        The contender whose run is killed and resumed; None: none on this stream.
    late
        The contender that also learns with labels that come `LATE_ROWS` events later; None: none.
    """

    name: str
    title: str
    about: str
    task: Task
    parts: tuple[Callable[[int], Iterable[tuple[dict[Any, Any], Any]]], ...]
    lengths: tuple[int, ...]
    window: int
    contenders: tuple[Contender, ...]
    crash: Contender | None = None
    late: Contender | None = None

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(self.lengths)

    @property
    def switches(self) -> list[int]:
        """Number of events before each switch."""
        return list(accumulate(self.lengths))[:-1]

    @property
    def metric(self) -> str:
        """The metric of quality."""
        return "mae" if self.task == "regression" else "accuracy"


def _bundled(data: Iterable[tuple[dict[Any, Any], Any]]) -> Callable[[int], Iterable[Any]]:
    return lambda n: islice(data, n)


def _loans(function: int, seed: int) -> Callable[[int], Iterable[Any]]:
    generator = synth.Agrawal(classification_function=function, seed=seed, perturbation=0.05)
    return lambda n: islice(generator, n)


def bundled_streams(*, quick: bool = False) -> list[Stream]:
    """Return the demo's streams: one that drifts, and four data sets from River.

    Parameters
    ----------
    quick
        Use fewer events of each.
    """
    concept, most = (1_500, 500) if quick else (8_000, 10_000)
    return [
        Stream(
            name="loans",
            title="Loan applications, with drift",
            about=(
                "A made stream, so that the truth is known: Agrawal's generator of loan "
                "applications, with one rule for which are granted, then another, then the "
                "first again. Alarms are raised only where the loss has risen: a learner to which "
                "the new rule comes easier stays silent, and rightly so."
            ),
            task="binary",
            parts=(_loans(0, SEED), _loans(6, SEED + 1), _loans(0, SEED + 2)),
            lengths=(concept, concept, concept),
            window=500,
            contenders=(LOGISTIC, BAYES, TREE, ADAPTIVE_TREE, FOREST),
            crash=ADAPTIVE_TREE,
        ),
        Stream(
            name="bananas",
            title="Bananas",
            about=(
                "Two numbers a fruit, two classes that curl around each other: no straight "
                "line divides them."
            ),
            task="binary",
            parts=(_bundled(datasets.Bananas()),),
            lengths=(min(5_300, most),),
            window=400,
            contenders=(LOGISTIC, TREE, NEIGHBOURS, FOREST),
        ),
        Stream(
            name="images",
            title="Image segments",
            about="Patches of outdoor photographs, 18 numbers each: brick, sky, grass, four more.",
            task="multiclass",
            parts=(_bundled(datasets.ImageSegments()),),
            lengths=(min(2_310, most),),
            window=300,
            contenders=(SOFTMAX, ADAPTIVE_TREE, NEIGHBOURS, FOREST),
        ),
        Stream(
            name="phishing",
            title="Phishing",
            about="Web pages, nine properties each: is this one after your password?",
            task="binary",
            parts=(_bundled(datasets.Phishing()),),
            lengths=(min(1_250, most),),
            window=200,
            contenders=(LOGISTIC, BAYES, TREE, FOREST),
            late=LOGISTIC,
        ),
        Stream(
            name="approval",
            title="Trump approval",
            about=(
                "From five polls a day, the approval rating that FiveThirtyEight published. It "
                "moves slowly, so the last value is hard to beat. The fast intercept is a learning "
                "rate of 0.5 for the level alone, chosen by trying it on this very stream."
            ),
            task="regression",
            parts=(_bundled(datasets.TrumpApproval()),),
            lengths=(min(1_001, most),),
            window=100,
            contenders=(LINEAR, FAST_LINEAR, TREE_REGRESSOR, FOREST_REGRESSOR),
        ),
    ]


def write_events(stream: Stream, path: Path) -> None:
    """Write the events of a stream as JSON Lines in Midstream's own form."""
    taken = [part(n) for part, n in zip(stream.parts, stream.lengths, strict=True)]
    events = [
        {"id": f"{stream.name}-{i:06d}", "x": {str(k): v for k, v in x.items()}, "y": y}
        for i, (x, y) in enumerate(chain(*taken))
    ]
    # Converts NumPy scalars to Python ones.
    path.write_bytes(msgspec.json.Encoder(enc_hook=lambda value: value.item()).encode_lines(events))


def write_config(stream: Stream, contender: Contender, events: Path) -> Path:
    """Write the config of a learner beside its events; return its path."""
    path = events.parent / f"{stream.name}-{contender.factory}.toml"
    path.write_text(
        f"""\
[model]
learner = "{__name__}:{contender.factory}"
task = "{stream.task}"

[input]
path = "{events.name}"

[output]
path = "out-{path.stem}"

[state]
path = "state-{path.stem}"
snapshot_events = {max(stream.events // 8, 1)}

[metrics]
window = {stream.window}
""",
        encoding="utf-8",
    )
    return path


def write_late(config: Path, events: Path) -> Path:
    """Write a stream with its labels in a file of their own, and a config; return its path.

    Each label comes `LATE_ROWS` events later than its event.

    Parameters
    ----------
    config, events
        What `write_config` and `write_events` wrote.
    """
    labelled = [msgspec.json.decode(line) for line in events.read_bytes().splitlines()]
    encoder = msgspec.json.Encoder()
    plain, labels = events.with_suffix(".plain.jsonl"), events.with_suffix(".labels.jsonl")
    plain.write_bytes(
        encoder.encode_lines({"id": e["id"], "x": e["x"], "ts": i} for i, e in enumerate(labelled))
    )
    labels.write_bytes(
        encoder.encode_lines(
            {"id": e["id"], "y": e["y"], "ts": i + LATE_ROWS} for i, e in enumerate(labelled)
        )
    )
    text = config.read_text(encoding="utf-8").replace(events.name, plain.name)
    path = config.with_name(f"{config.stem}-late.toml")
    path.write_text(
        f"""\
{text}
[feedback]
path = "{labels.name}"
order = "exact"
window_seconds = {10 * LATE_ROWS}
""",
        encoding="utf-8",
    )
    return path


class Row(msgspec.Struct):
    """The results of a learner on a stream.

    Attributes
    ----------
    metric
        "accuracy" (a share) or "mae" (in units of the label).
    value, window_value, no_change
        The metric over all events, over the last `window` ones, and for always predicting the last
        label.
    alarms
        Numbers of events after which drift was detected.
    seconds
        Time spent in predicting, scoring and learning.
    digest
        SHA-256 of the learner's complete state at the end.
    non_finite
        Number of predictions that were not finite, which the metric excludes.
    """

    stream: str
    learner: str
    task: str
    events: int
    metric: str
    value: float
    window: int
    window_value: float
    no_change: float
    alarms: list[int]
    seconds: float
    events_per_second: float
    digest: str
    non_finite: int = 0


class Line(msgspec.Struct):
    """The line of a learner in a chart: (p,) windowed values at the positions of its course."""

    row: Row
    look: int
    values: list[float]


class Course(msgspec.Struct):
    """The results of a stream: everything that its chart shows.

    Attributes
    ----------
    positions
        (p,) numbers of events at which the windowed values hold.
    no_change
        (p,) windowed values of always predicting the last label.
    """

    title: str
    about: str
    task: str
    metric: str
    events: int
    window: int
    switches: list[int]
    positions: list[int]
    no_change: list[float]
    lines: list[Line]


class Lane:
    """A learner in its race: its trainer, and its (n,) losses so far, nan where not scored."""

    def __init__(self, contender: Contender, settings: Settings, events: int) -> None:
        self.contender = contender
        self.trainer = make_trainer(settings)
        self.losses = np.full(events, np.nan)
        self.alarms: list[int] = []
        self.seconds = 0.0

    @property
    def seen(self) -> int:
        """Number of events that it has seen."""
        return self.trainer.seen

    @property
    def events_per_second(self) -> float:
        """Its speed so far, in predicting, scoring and learning alone."""
        return self.seen / max(self.seconds, 1e-9)


class Race:
    """All learners of a stream, run side by side.

    Parameters
    ----------
    folder
        Folder for the events and the configs.
    """

    def __init__(self, stream: Stream, folder: Path) -> None:
        self.stream = stream
        path = folder / f"{stream.name}.jsonl"
        write_events(stream, path)
        self.configs = {c.factory: write_config(stream, c, path) for c in stream.contenders}
        settings = [load(config) for config in self.configs.values()]
        self._settings = settings[0]
        self.lanes = [
            Lane(c, s, stream.events) for c, s in zip(stream.contenders, settings, strict=True)
        ]
        self.labels: list[Label | None] = []
        # The first call of a compiled kernel takes seconds; no learner's speed includes it.
        rehearsal = Lane(stream.contenders[0], settings[0], 0)
        for batch in self._batches():
            rehearsal.trainer.step(batch[:10])
            break

    def _batches(self) -> Iterator[Any]:
        with open_reader(self._settings) as reader:
            for _, decoded in reader:
                if decoded.rejected:
                    raise RunError(f"{self.stream.name}: {decoded.rejected[0]}")
                for start in range(0, len(decoded.batch), _STEP):
                    yield decoded.batch[start : start + _STEP]

    def run(self, look: Callable[["Race"], None]) -> None:
        """Run every learner through the stream; `look` is called after each learner's step."""
        for batch in self._batches():
            self.labels += batch.labels
            for lane in self.lanes:
                at = lane.seen
                begun = time.perf_counter()
                step = lane.trainer.step(batch)
                lane.seconds += time.perf_counter() - begun
                lane.losses[at : at + len(batch)] = step.losses
                lane.alarms += [a.position for a in step.alarms if a.kind != NON_FINITE]
                look(self)

    def quality(self, losses: FloatArray) -> float:
        """Return the metric of the losses: accuracy, or the mean absolute error."""
        scored = losses[~np.isnan(losses)]
        if not scored.size:
            return float("nan")
        loss = float(scored.mean())
        return loss if self.stream.metric == "mae" else 1.0 - loss

    def course(self) -> Course:
        """Return the results of the stream."""
        stream, n = self.stream, self.stream.events
        first = min(max(stream.window // 4, 1), n)
        positions = np.unique(np.linspace(first, n, min(_POINTS, n)).round().astype(np.int64))
        return Course(
            title=stream.title,
            about=stream.about,
            task=stream.task,
            metric=stream.metric,
            events=n,
            window=stream.window,
            switches=stream.switches,
            positions=positions.tolist(),
            no_change=self._trailing(self._no_change(), positions),
            lines=[
                Line(self.row(lane), lane.contender.look, self._trailing(lane.losses, positions))
                for lane in self.lanes
            ],
        )

    def row(self, lane: Lane) -> Row:
        """Return the results of a learner."""
        metrics = lane.trainer.metrics
        name = self.stream.metric
        return Row(
            stream=self.stream.title,
            learner=lane.contender.name,
            task=self.stream.task,
            events=lane.seen,
            metric=name,
            value=metrics[name],
            window=self.stream.window,
            window_value=metrics[f"{name}.window"],
            no_change=lane.trainer.prequential.no_change,
            alarms=list(lane.alarms),
            seconds=lane.seconds,
            events_per_second=lane.events_per_second,
            digest=lane.trainer.digest(),
            non_finite=lane.trainer.prequential.non_finite,
        )

    def _no_change(self) -> FloatArray:
        """Return the (n,) losses of always predicting the last label; nan for the first."""
        y = self.labels
        pairs = list(pairwise(y))
        if self.stream.task == "regression":
            losses = [abs(b - a) for a, b in pairs]  # type: ignore[operator]  # they are numbers
        else:
            losses = [float(a != b) for a, b in pairs]
        return np.array([np.nan, *losses])

    def _trailing(self, losses: FloatArray, positions: IntArray) -> list[float]:
        """Return the metric over the window that ends at each position."""
        scored = ~np.isnan(losses)
        sums = np.concatenate([[0.0], np.cumsum(losses[scored])])
        stops = np.cumsum(scored)[positions - 1]
        starts = np.maximum(stops - self.stream.window, 0)
        means = (sums[stops] - sums[starts]) / np.maximum(stops - starts, 1)
        values = means if self.stream.metric == "mae" else 1.0 - means
        return [float(v) for v in values]
