"""What a stream has to give: a plain loop of River's, and the engine against itself.

`check` runs all of it for one stream and raises `WrongError` with what was expected and found.
"""

import contextlib
import copy
import itertools
import json
import math
import random
import re
import sys
import time
import warnings
from typing import Any

import msgspec
import naive_metrics
import numpy as np
from odd_streams import MODULES, Case, Stream, raw
from river import base
from zoo import HASH_SEEDED

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import LearnerError
from midstream.engine.training.rejecting import Careful
from midstream.engine.training.replay import Reservoir
from midstream.engine.training.trainer import Trainer

__all__ = [
    "BY_SETS",
    "Run",
    "WrongError",
    "check",
    "digest_of",
    "engine_run",
    "not_finite",
    "river_run",
    "shrunk",
    "told",
]

_MOST_RAISED = 12  # events that a learner raises on, before the rest of the stream is left out
_LARGEST = 1e140  # numbers beyond it cannot be scored: their squares cannot be added up
_NUMBER_LIMIT = 1e9  # beyond it, built-in learners and River part: one stops, one goes on with NaN


BY_SETS = HASH_SEEDED | {"LazyKNN", "NoChange", "OneHot"}
"""Models that walk through sets, in an order that the hash seed determines (the command fixes it),
and copies of which, or what is loaded where there is none, may add up in another order."""
_BY_ASKING = {"KNN": 50, "KNNRegressor": 50}
"""Models that draw random numbers when they are asked: from this event on, what River's loop gives
depends on how often it asks (`SWINN`, after its warm-up)."""


class WrongError(AssertionError):
    """A stream gives something else than it has to."""


class Run(msgspec.Struct):
    """What a stream gave: by event (None for what was not learned), and at the end."""

    rows: list[tuple[Any, Any, float] | None]
    refused: list[int]
    raised: list[int]
    metrics: dict[str, float]
    digest: str
    non_finite: int | None = None
    alarms: list[Any] = []


# --- River by itself


def _probabilities(model: Any, x: dict[str, Any]) -> dict[Any, float] | None:
    try:
        return dict(model.predict_proba_one(x))
    except NotImplementedError:
        return None


def _river_row(model: Any, event: Event, classifier: bool) -> tuple[Any, Any]:
    x = dict(event.x)
    if event.y is None:
        model = copy.deepcopy(model)  # predicting changes nothing
    proba = _probabilities(model, x) if classifier else None
    return model.predict_one(dict(event.x)), proba


def _refused(case: Case, events: list[Event], weighs: bool) -> list[int]:
    """Return the events that are not for this learner, by weight or by the kind of label."""
    refused, first = [], None
    for i, event in enumerate(events):
        if not weighs and event.weight != 1.0:
            refused.append(i)
        elif case.task == "multiclass" and event.y is not None:
            first = type(event.y) if first is None else first
            if type(event.y) is not first:
                refused.append(i)
    return refused


def river_run(case: Case, events: list[Event], weighs: bool) -> Run:
    """Predict, then learn, with River's own methods; what raises leaves no trace."""
    refused, raised = _refused(case, events, weighs), list[int]()
    while True:
        assert case.river is not None
        model = case.river()
        classifier = isinstance(getattr(model, "_last_step", model), base.Classifier)
        rows: list[tuple[Any, Any, float] | None] = []
        for i, event in enumerate(events):
            if i in refused or i in raised:
                rows.append(None)
                continue
            try:
                value, proba = _river_row(model, event, classifier)
                if event.y is not None and event.weight == 1.0:
                    model.learn_one(dict(event.x), event.y)
                elif event.y is not None and event.weight > 0.0:
                    model.learn_one(dict(event.x), event.y, w=event.weight)
            except Exception:
                raised.append(i)
                break
            rows.append((value, proba, math.nan))
        if len(raised) > _MOST_RAISED:  # the rest is left out
            return Run(rows, [i for i in refused if i < raised[-1]], raised, {}, "")
        if len(rows) == len(events):
            return Run(rows, refused, raised, {}, "")


# --- the engine


def batch_of(events: list[Event], offsets: list[int]) -> EventBatch:
    """Return events as a batch with objects of its own."""
    own = [msgspec.structs.replace(e, x=dict(e.x)) for e in events]
    return EventBatch.from_events(own, offsets=np.array(offsets, np.int64))


def _trainer(stream: Stream) -> Trainer:
    settings = dict(stream.settings)
    replay = Reservoir(settings.pop("replay"), max_bytes=settings.pop("max_bytes"))
    return Trainer(
        stream.case.make(), task=stream.case.task, modules=MODULES, replay=replay, **settings
    )


def _check_replay(trainer: Trainer, learned: list[int], events: list[Event], exact: bool) -> None:
    """Check that the reservoir holds events that were learned, as many as it may."""
    replay = trainer.replay
    kept = [int(re.sub(r".*\D", "", str(e.id))) for e in replay.events]
    if len(set(kept)) != len(kept) or not set(kept) <= set(learned):
        raise WrongError(f"the reservoir holds {kept}, of {learned}")
    if replay.bytes > replay.max_bytes or len(kept) > replay.capacity:
        raise WrongError(f"the reservoir holds {len(kept)} events of {replay.bytes} bytes")
    if exact and len(kept) != min(replay.capacity, len(learned)):
        raise WrongError(f"the reservoir holds {len(kept)} of {len(learned)} events, and has room")
    for i, event in zip(kept, replay.events, strict=True):
        if (event.x, event.y) != (events[i].x, events[i].y):
            raise WrongError(f"the reservoir holds {event}, learned was {events[i]}")


def engine_run(
    stream: Stream,
    rng: random.Random | None = None,
    raised: list[int] | None = None,
    asks: float = 0.0,
    most: int = _MOST_RAISED,
) -> Run:
    """Run the engine over a stream; in pieces, and saved and loaded in between, if `rng`.

    What the learner raises on is left out, and the run started over without it. `raised`: known
    already, and nothing else may raise. `asks`: how often predictions are asked for in between.
    `most`: where it has raised on more, the rest of the stream is left out.
    """
    out = list(raised or [])
    while True:
        try:
            return _pass(stream, rng, out, asks)
        except LearnerError as error:
            if raised is not None:
                raise WrongError(f"it raises on other events in pieces: {error}") from error
            at = error.__dict__["at"]
            if at in out:
                raise WrongError(f"event {at} is left out, and raised again") from error
            out.append(at)
        if len(out) > most:
            part = Stream(stream.seed, stream.case, stream.events[: out[-1]], stream.settings)
            run = _pass(part, rng, out, asks)
            run.raised = out
            return run


def _pieces(n: int, rng: random.Random | None) -> list[tuple[int, int]]:
    if rng is None:
        return [(0, n)]
    longest = rng.choice([1, 3, 20, 60])
    pieces, start = [], 0
    while start < n:
        stop = min(n, start + rng.randint(0, longest))
        pieces.append((start, stop))
        start = stop
    return pieces


def _pass(stream: Stream, rng: random.Random | None, out: list[int], asks: float) -> Run:
    trainer = _trainer(stream)
    n = len(stream.events)
    rows: list[tuple[Any, Any, float] | None] = [None] * n
    refused: list[int] = []
    non_finite: int | None = 0
    alarms: list[Any] = []
    for start, stop in _pieces(n, rng):
        batch = batch_of(stream.events[start:stop], [*range(start, stop)])
        if rng is not None and rng.random() < 0.15:
            trainer = Trainer.from_state(trainer.state(), MODULES)
        if rng is not None and rng.random() < asks:
            ahead = [i for i in range(start, min(n, stop + 5)) if i not in out]
            _ask(trainer, batch_of([stream.events[i] for i in ahead], ahead))
        batch, rejected = trainer.admit(batch)
        refused += [r.origin[2] for r in rejected]
        if out:  # what the learner raised on was admitted, and may have settled the kind of labels
            batch = batch.take([j for j, i in enumerate(batch.offsets.tolist()) if i not in out])
        asked = None
        if rng is not None and len(batch) and rng.random() < 2 * asks:
            asked = _ask(trainer, batch[:1])
        try:
            step = trainer.step(batch)
        except LearnerError as error:
            error.at = int(batch.offsets[error.row])  # type: ignore[attr-defined]
            raise
        count = getattr(step, "non_finite", None)
        non_finite = None if count is None or non_finite is None else non_finite + count
        alarms += step.alarms
        values, probas = step.predictions.values, step.predictions.probas
        for j, i in enumerate(batch.offsets.tolist()):
            rows[i] = (values[j], None if probas is None else probas[j], float(step.losses[j]))
        if asked is not None:
            _same_answer(asked, rows[int(batch.offsets[0])], int(batch.offsets[0]))
    learned = [i for i in range(n) if rows[i] is not None and stream.events[i].y is not None]
    _check_replay(trainer, learned, stream.events, stream.settings["max_bytes"] > 2**20)
    return Run(rows, sorted(refused), out, trainer.metrics, trainer.digest(), non_finite, alarms)


def _ask(trainer: Trainer, batch: EventBatch) -> Any:
    try:
        predictions = trainer.predict(batch)
    except Exception:  # it may raise on what is never learned
        return None
    probas = predictions.probas
    if not len(batch):
        return None
    return predictions.values[0], None if probas is None else dict(probas[0])


def _same_answer(asked: Any, row: Any, i: int) -> None:
    if not (_same(asked[0], row[0]) and _same_proba(asked[1], row[1], exact=True)):
        raise WrongError(f"event {i}: predict gives {asked}, predict_learn {row[:2]}")


# --- comparing


def _gone(value: Any) -> bool:
    """Whether there is no number or label to be scored."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _broken(proba: Any) -> bool:
    return bool(proba) and not all(math.isfinite(p) for p in proba.values())


def _same(a: Any, b: Any, exact: bool = True) -> bool:
    if _gone(a) or _gone(b):
        return _gone(a) and _gone(b)
    if isinstance(a, np.generic):
        a = a.item()
    if exact or isinstance(a, str | bool) or isinstance(b, str | bool):
        return bool(a == b)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _same_proba(a: Any, b: Any, exact: bool) -> bool:
    if not a or not b:
        return not a and not b
    return set(a) == set(b) and all(_same(a[k], b[k], exact) for k in a)


def _against_river(stream: Stream, run: Run, river: Run) -> None:
    exact = stream.case.exact and stream.case.name not in BY_SETS
    if run.raised != river.raised or run.refused != river.refused:
        raise WrongError(
            f"raised on {run.raised}, River's loop on {river.raised}; "
            f"refused {run.refused}, expected {river.refused}"
        )
    for i, (ours, theirs) in enumerate(zip(run.rows, river.rows, strict=False)):
        if i >= _BY_ASKING.get(stream.case.name, i + 1):
            break
        if (ours is None) != (theirs is None):
            raise WrongError(f"event {i}: {ours}, River's loop {theirs}")
        if ours is None or theirs is None:
            continue
        value, proba = theirs[:2]
        if _broken(proba):
            value = None
        if not _broken(proba) and not _same_proba(ours[1], proba, exact):
            raise WrongError(f"event {i}: probabilities {ours[1]}, River's {proba}")
        near = not exact and proba and max(proba.values()) - sorted(proba.values())[-2:][0] < 1e-9
        if not near and not _same(ours[0], value, exact):
            raise WrongError(f"event {i}: predicted {ours[0]!r}, River's {value!r}")


def not_finite(task: str, row: tuple[Any, Any, float]) -> bool:
    """Whether a learner has predicted what is no number: nothing that can be scored."""
    value, proba = row[:2]
    return _broken(proba) or (
        task == "regression" and value is not None and not abs(value) <= _LARGEST
    )


def _by_definition(stream: Stream, run: Run) -> None:
    """Compare metrics, losses and counts with those from the list of predictions."""
    rows, wrong = [], 0
    for i, (event, row) in enumerate(zip(stream.events, run.rows, strict=False)):
        if row is None:
            continue
        value, proba, loss = row
        broken = _broken(proba)
        no_number = not broken and not_finite(stream.case.task, row)
        wrong += broken or no_number
        if broken and value is not None:
            raise WrongError(f"event {i}: predicted {value!r} beside probabilities {proba}")
        whole = not proba or broken or math.isclose(sum(proba.values()), 1, abs_tol=1e-6)
        if not whole and "missing" not in stream.case.name:
            raise WrongError(f"event {i}: probabilities sum to {sum(proba.values())}: {proba}")
        if event.y is None:
            continue
        if stream.case.task == "regression" and abs(event.y) > _LARGEST:
            continue
        rows.append((event.y, None if no_number else value, proba))
        if broken or no_number:
            continue
        expected = math.nan
        if value is not None and stream.case.task == "regression":
            expected = abs(event.y - value)
        elif value is not None:
            expected = float(event.y != value)
        if not _same(loss, expected, False):
            raise WrongError(f"event {i}: loss {loss}, expected {expected} ({event.y} and {value})")
    if run.non_finite is not None and run.non_finite != wrong:
        raise WrongError(f"{run.non_finite} predictions are not finite, expected {wrong}")
    settings = stream.settings
    expected = naive_metrics.report(stream.case.task, rows, settings["window"], settings["fading"])
    for name, value in expected.items():
        if not naive_metrics.same_metric(name, run.metrics[name], value):
            raise WrongError(f"{name} is {run.metrics[name]!r}, by definition {value!r}")


def _tame(events: list[Event]) -> bool:
    """Whether built-in learners are to equal River's: numbers only, and none that are huge."""
    return all(
        not isinstance(v, str) and (v == 0 or 1e-9 < abs(v) < _NUMBER_LIMIT)
        for e in events
        for v in (*e.x.values(), 1 if e.y is None or isinstance(e.y, str) else e.y)
    )


def check(stream: Stream) -> str:
    """Check all that holds for a stream; return its digest.

    Raises
    ------
    WrongError
        At the first thing that does not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # River's own, where numbers are huge
        warnings.filterwarnings("error", module=r"midstream\.")
        run = engine_run(stream)
        _by_definition(stream, run)
        weighs = Trainer(stream.case.make(), task=stream.case.task, modules=MODULES)
        river = stream.case.river is not None
        if "softmax" in stream.case.name:  # River's takes no weights
            river = river and all(event.weight == 1.0 for event in stream.events)
        if river and (stream.case.exact or (_tame(stream.events) and not run.raised)):
            theirs = river_run(stream.case, stream.events, weighs.learner.takes_weights)
            _against_river(stream, run, theirs)
        short = stream
        if len(run.rows) < len(stream.events):
            short = Stream(
                stream.seed, stream.case, stream.events[: len(run.rows)], stream.settings
            )
        exact = stream.case.name not in BY_SETS or not sys.flags.hash_randomization
        if stream.seed % 4 == 0 and exact:
            _one_by_one(short, run)
        if exact and (run.raised or stream.seed % 4 == 1) and len(run.rows) == len(stream.events):
            _carefully(stream, run)
        # Where labels tie, the order of a set chooses, which a hash seed other than 0 changes.
        for asks in (0.0, 0.15) if exact else ():
            rng = random.Random(f"pieces {stream.seed} {asks}")
            other = engine_run(short, rng, run.raised, asks)
            _equal(run, other, "in pieces, asked in between" if asks else "in pieces", exact)
    return run.digest


def _one_by_one(stream: Stream, run: Run) -> None:
    """Compare with `step_one`, given values as Python may have them, and what has to be refused."""
    rng = random.Random(f"one by one {stream.seed}")
    trainer = _trainer(stream)
    for i, event in enumerate(stream.events):
        if i in run.raised:
            trainer.admit(batch_of([event], [i]))
            continue
        x = raw(rng, event.x)
        fields = {"weight": event.weight, "ts": event.ts}
        if rng.random() < 0.1:
            _must_refuse(trainer, x | {"bad": rng.choice([math.inf, -math.inf])}, event.y, fields)
        if i in run.refused:
            _must_refuse(trainer, x, event.y, fields)
            continue
        if rng.random() < 0.1:
            with contextlib.suppress(LearnerError):
                trainer.predict_one(raw(rng, event.x))
        label = math.nan if event.y is None and rng.random() < 0.5 else event.y
        found, row = trainer.step_one(x, label, **fields), run.rows[i]
        if row is None or repr((found.y_pred, found.y_proba)) != repr(row[:2]):
            raise WrongError(f"event {i}: step_one gives {found}, in a batch {row}")
    if repr(trainer.metrics) != repr(run.metrics):
        raise WrongError(f"metrics {run.metrics}, by step_one {trainer.metrics}")


def _carefully(stream: Stream, run: Run) -> None:
    """Compare with the engine's own way to leave out what the learner raises on."""
    rng = random.Random(f"carefully {stream.seed}")
    clock = itertools.accumulate(rng.choice([0.0, 1e-4, 1.0]) for _ in itertools.count())
    careful = Careful(MODULES, timer=lambda: next(clock))
    trainer = _trainer(stream)
    rows: list[Any] = [None] * len(stream.events)
    raised, refused, non_finite = list[int](), list[int](), 0
    alarms: list[Any] = []
    for start, stop in _pieces(len(stream.events), rng):
        if rng.random() < 0.1:
            trainer = Trainer.from_state(trainer.state(), MODULES)
            careful.forget()
        given = batch_of(stream.events[start:stop], [*range(start, stop)])
        tried = careful.step(trainer, given)
        raised += [start + row for row in tried.raised]
        refused += [r.origin[2] for r in tried.refused]
        alarms += tried.step.alarms
        predictions = tried.step.predictions
        non_finite += tried.step.non_finite
        for j, row in enumerate(tried.rows.tolist()):
            probas = None if predictions.probas is None else predictions.probas[j]
            rows[start + row] = (predictions.values[j], probas, float(tried.step.losses[j]))
    other = Run(
        rows, sorted(refused), raised, trainer.metrics, trainer.digest(), non_finite, alarms
    )
    if (sorted(raised), non_finite) != (sorted(run.raised), run.non_finite):
        raise WrongError(
            f"carefully: raised {raised}, {non_finite} not finite; {run.raised}, {run.non_finite}"
        )
    _equal(run, other, "carefully", exact=True)


def _must_refuse(trainer: Trainer, x: dict[str, Any], y: Any, fields: dict[str, Any]) -> None:
    try:
        trainer.step_one(x, y, **fields)
    except ValueError:
        return
    raise WrongError(f"step_one takes {x}, {y!r}, {fields}")


def _equal(run: Run, other: Run, when: str, exact: bool) -> None:
    for i, (a, b) in enumerate(zip(run.rows, other.rows, strict=True)):
        alike = not exact and a is not None and b is not None
        if alike and _same(a[0], b[0], False) and _same_proba(a[1], b[1], False):
            continue
        if repr(a) != repr(b):
            raise WrongError(f"event {i}: {a}, {when} {b}")
    if run.refused != other.refused:
        raise WrongError(f"refused {run.refused}, {when} {other.refused}")
    if not exact:
        return
    if repr(run.alarms) != repr(other.alarms):
        raise WrongError(f"alarms {run.alarms}, {when} {other.alarms}")
    if repr(run.metrics) != repr(other.metrics):
        raise WrongError(f"metrics {run.metrics}, {when} {other.metrics}")
    # Being asked may leave traces that no later prediction shows, as a scaler's name for a feature.
    if run.digest != other.digest and "asked" not in when:
        raise WrongError(f"the state differs {when}")


def digest_of(stream: Stream) -> str:
    """Return the digest of a stream's state, and of what was predicted, by one pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = engine_run(stream)
    return f"{run.digest} {run.raised} {run.refused} {run.metrics}"


# --- making a failure small


def shrunk(stream: Stream, seconds: float = 20.0) -> Stream:
    """Return a smaller stream that is wrong, too."""

    def wrong(part: Stream) -> bool:
        try:
            check(part)
        except Exception:
            return True
        return False

    end = time.monotonic() + seconds
    events = stream.events
    size = max(len(events) // 2, 1)
    while size and time.monotonic() < end:
        start = 0
        while start < len(events) and time.monotonic() < end:
            fewer = events[:start] + events[start + size :]
            if wrong(Stream(stream.seed, stream.case, fewer, stream.settings)):
                events = fewer
            else:
                start += size
        size = size // 2
    for i in range(len(events)):
        for name in list(events[i].x):
            if time.monotonic() > end or len(events[i].x) < 2:
                break
            x = {k: v for k, v in events[i].x.items() if k != name}
            fewer = [*events[:i], msgspec.structs.replace(events[i], x=x), *events[i + 1 :]]
            if wrong(Stream(stream.seed, stream.case, fewer, stream.settings)):
                events = fewer
    return Stream(stream.seed, stream.case, events, stream.settings)


def told(stream: Stream, error: BaseException) -> str:
    """Describe a failure: its seed, and the smallest stream that was found for it."""
    small = shrunk(stream)
    try:
        check(small)
    except Exception as again:
        error = again
    lines = [
        f"seed {stream.seed}: {stream.case.name}, {stream.case.task}, {stream.settings}",
        f"{type(error).__name__}: {error}"[:1_500],
        f"{len(small.events)} of {len(stream.events)} events:",
    ]
    for event in small.events[:8]:
        given = {"x": event.x, "y": event.y, "weight": event.weight}
        lines.append("  " + json.dumps(given, default=repr)[:300])
    return "\n".join(lines)
