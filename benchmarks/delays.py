"""Delays: methods against the bias of labels that come late, beside labels that come at once.

A generated stream, as in the papers on delayed conversions: the probability of a conversion and its
mean delay (exponential) depend on the features. A conversion counts within a day of its event. In
the stream with drift the concept turns once around in ten days; in that with few positives, one
event in forty is positive, elsewhere one in five. Each method publishes a prediction per event; it
is scored against the final label. `python benchmarks/run.py delays`; 5 to 8 minutes on 2 cores.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from figures import Fact, Grid, Result

from midstream import Trainer
from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.joining.delay import fake_negative_weights, proba_true
from midstream.engine.joining.joiner import Joiner
from midstream.engine.joining.policy import Policy
from midstream.engine.learners.linear import LinearLearner

HOUR, DAY = 3_600.0, 86_400.0
DAYS = 10
FEATURES = 6
SLICE = HOUR / 4  # events of so much time are predicted, then its labels are applied
LEAST = 1e-6  # probabilities are at least this in the log loss
SEEDS = 10
FROM = 2  # days that are not scored: most methods learn nothing before the first day ends

_ENDS: dict[str, Any] = {"on_expiry": "label", "default": False}
_METHODS: dict[str, Any] = {**_ENDS, "window": DAY}
METHODS: dict[str, Policy | None] = {
    "oracle: labels at once": None,
    "naive: no label in 1 h is a no": Policy(window=HOUR, **_ENDS),
    "window of 6 h": Policy(window=6 * HOUR, **_ENDS),
    "window of 24 h": Policy(window=DAY, **_ENDS),
    "corrections, 1 h, weight 1": Policy(window=HOUR, corrections="learn", remember=DAY, **_ENDS),
    "corrections, 1 h, weight 2": Policy(
        window=HOUR, corrections="learn", correction_weight=2.0, remember=DAY, **_ENDS
    ),
    "fnw": Policy(method="fnw", **_METHODS),
    "fnc": Policy(method="fnc", **_METHODS),
    "es-dfm, 1 h": Policy(method="es-dfm", wait=HOUR, **_METHODS),
    "es-dfm, 6 h": Policy(method="es-dfm", wait=6 * HOUR, **_METHODS),
}
STREAMS = {"steady": (False, -1.8), "drift": (True, -1.8), "few positives": (False, -4.5)}
"""Whether there is drift, and the score of an event whose features are 0."""
PRESENT = "fnw"  # is also run with the prediction of the present


class Stream(NamedTuple):
    """Events in order of time, with their final labels.

    Attributes
    ----------
    x
        (n, FEATURES) features.
    times
        (n,) seconds.
    labels
        (n,) whether there is a conversion within a day.
    delays
        (n,) seconds from the event to its conversion; inf without one.
    """

    x: np.ndarray
    times: np.ndarray
    labels: np.ndarray
    delays: np.ndarray


def stream(seed: int, n: int, *, drift: bool, base: float) -> Stream:
    """Return a stream with a mean delay of hours; `base` is the score of features that are 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, FEATURES))
    times = np.sort(rng.uniform(0.0, DAYS * DAY, n))
    first, second = rng.standard_normal((2, FEATURES))
    first /= np.linalg.norm(first)
    second -= first * (first @ second)
    second /= np.linalg.norm(second)
    angle = 2 * math.pi * times / times[-1] if drift else np.zeros(n)
    score = 1.5 * (np.cos(angle) * (x @ first) + np.sin(angle) * (x @ second)) + base
    converts = rng.random(n) < 1.0 / (1.0 + np.exp(-score))
    of_delay = rng.standard_normal(FEATURES)
    of_delay *= 0.7 / np.linalg.norm(of_delay)
    delays = rng.exponential(1.0, n) * 4 * HOUR * np.exp(x @ of_delay)
    labels = converts & (delays <= DAY)
    return Stream(x, times, labels, np.where(labels, delays, np.inf))


class Present(Joiner):
    """Weights FNW by the prediction of the present, not by that of the publication."""

    learner: LinearLearner

    def _weights(self, numbers: list[int], *, label: bool) -> list[float]:
        p = proba_true(self.learner.predict(self.waiting.events(numbers)))
        found: list[float] = fake_negative_weights(p, label=label).tolist()
        return found


def _batches(given: Stream, *, at_once: bool) -> Iterator[EventBatch]:
    """Yield batches of events and of feedback, slice by slice of time."""
    names = [f"f{j}" for j in range(FEATURES)]
    ids = [f"e{i}" for i in range(len(given.times))]
    known = given.times + given.delays
    order = np.argsort(known, kind="stable")
    cuts = np.arange(SLICE, DAYS * DAY + 2 * DAY, SLICE)
    events = np.searchsorted(given.times, cuts).tolist()
    labels = np.searchsorted(known[order], cuts).tolist()
    start = done = 0
    for stop, until in zip(events, labels, strict=True):
        own: Any
        if stop > start:
            own = [None] * (stop - start)
            if at_once:
                own = Targets(given.labels[start:stop].astype(float), binary=True)
            yield EventBatch(
                None, own, array=given.x[start:stop], names=names, ids=ids[start:stop],
                times=given.times[start:stop], partition="events",
                offsets=np.arange(start, stop),
            )  # fmt: skip
        if until > done and not at_once:
            rows = order[done:until]
            own = [ids[i] for i in rows.tolist()]
            batch = EventBatch(
                [{"id": each} for each in own], [True] * len(rows), ids=own,
                times=known[rows], partition="labels", offsets=np.arange(done, until),
            )  # fmt: skip
            batch.is_feedback = True
            yield batch
        start, done = stop, until


def published(given: Stream, policy: Policy | None, *, present: bool = False) -> np.ndarray:
    """Return the (n,) probabilities that are published."""
    learner = LinearLearner("binary", rate=0.03, intercept_rate=0.03)
    one = Trainer(learner, feedback=policy, metrics=["log_loss"], drift=(), replay=1)
    if present:
        assert policy is not None
        one.joiner = Present(policy)
        one.joiner.learner = learner
    found = []
    for batch in _batches(given, at_once=policy is None):
        admitted, refused = one.admit(batch)
        assert not refused, refused[0]
        step = one.step(admitted)
        if not batch.is_feedback:
            found.append(proba_true(step.predictions))
    return np.concatenate(found)


def log_loss(labels: np.ndarray, p: np.ndarray) -> float:
    """Return the mean log loss."""
    p = np.clip(p, LEAST, 1.0 - LEAST)
    return float(-np.log(np.where(labels, p, 1.0 - p)).mean())


def auc(labels: np.ndarray, p: np.ndarray) -> float:
    """Return the area under the ROC curve; ties count half."""
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2.0)[place]
    positives = int(labels.sum())
    least = positives * (positives + 1) / 2
    return float((ranks[labels].sum() - least) / (positives * (len(labels) - positives)))


def scores(seed: int, n: int, title: str) -> dict[str, list[tuple[float, float]]]:
    """Return, by method, log loss and AUC of all scored days, then of each."""
    drift, base = STREAMS[title]
    given = stream(seed, n, drift=drift, base=base)
    runs = {name: published(given, policy) for name, policy in METHODS.items()}
    runs[f"{PRESENT}, present prediction"] = published(given, METHODS[PRESENT], present=True)
    days = [slice(*np.searchsorted(given.times, [d * DAY, (d + 1) * DAY])) for d in range(DAYS)]
    parts = [slice(days[FROM].start, n), *days]
    return {
        name: [(log_loss(given.labels[s], p[s]), auc(given.labels[s], p[s])) for s in parts]
        for name, p in runs.items()
    }


def _job(job: tuple[int, int, str]) -> dict[str, list[tuple[float, float]]]:
    return scores(*job)


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001 no other side
    """Measure; return the figures."""
    n = 60_000 if full else 20_000
    result = Result(repeats=SEEDS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with ProcessPoolExecutor(cores) as pool:
        for title in STREAMS:
            jobs = [(seed, n, title) for seed in range(SEEDS)]
            _report(result, title, list(pool.map(_job, jobs)))
    result.facts.append(Fact("events of a stream", n, ""))
    return result


def _report(result: Result, title: str, found: list[dict[str, list[tuple[float, float]]]]) -> None:
    """Add the tables of a stream."""
    overall = Grid(
        f"{title}, days {FROM + 1} to {DAYS}: mean and standard deviation over {SEEDS} seeds",
        ["method", "log loss", "above the oracle", "AUC"],
    )
    shown = [day for day in range(FROM, DAYS) if day % 2]
    by_day = Grid(
        f"{title}, log loss (AUC) by day", ["method", *(f"day {day + 1}" for day in shown)]
    )
    oracle = np.array([one["oracle: labels at once"] for one in found])  # (seeds, parts, 2)
    for name in found[0]:
        own = np.array([one[name] for one in found])
        above = own[:, 0, 0] - oracle[:, 0, 0]
        overall.rows.append([name, _spread(own[:, 0, 0]), _spread(above), _spread(own[:, 0, 1])])
        means = own.mean(axis=0)
        cells = [f"{means[1 + day, 0]:.4f} ({means[1 + day, 1]:.4f})" for day in shown]
        by_day.rows.append([name, *cells])
    result.grids += [overall, by_day]


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
