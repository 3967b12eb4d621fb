"""The contract of a learner, as checks that anyone can run.

>>> from river import linear_model, preprocessing
>>> from midstream.engine.learners.checks import check_learner
>>> def make():
...     return preprocessing.StandardScaler() | linear_model.LinearRegression()
>>> events = [({"a": float(i % 7), "b": float(i % 3)}, float(i % 5)) for i in range(600)]
>>> for passed in check_learner(make, events, task="regression"):
...     print(passed.name)
result_is_independent_of_the_cuts
prediction_comes_before_learning
predicting_changes_nothing
state_round_trip_goes_on_identically
memory_is_bounded
input_is_not_aliased
"""

import copy
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event, Features, Label, Task
from midstream.engine.events.predictions import Predictions
from midstream.engine.learners.learner import Learner, LearnerError, as_learner, load_learner
from midstream.engine.state import encoding

__all__ = ["CHECKS", "CheckError", "Passed", "Subject", "check_learner", "difference"]

_NEXT = 1_000  # predictions compared after a round trip


class CheckError(AssertionError):
    """A learner breaks its contract; the message names the check and gives the numbers."""


class Passed(msgspec.Struct):
    """A check that passed, and what it measured."""

    name: str
    detail: str


class Subject(msgspec.Struct):
    """The subject of the checks: how to make the learner, and events to feed it."""

    make: Callable[[], Learner]
    events: list[Event]
    modules: tuple[str, ...] = ()

    def batch(self, start: int = 0, stop: int | None = None) -> EventBatch:
        """Return events as a batch of copied objects."""
        return EventBatch.from_events(copy.deepcopy(self.events[start:stop]))

    def learned(self, stop: int) -> Learner:
        """Return a learner that has learned the events up to `stop`."""
        learner = self.make()
        learner.predict_learn(self.batch(0, stop))
        return learner


def result_is_independent_of_the_cuts(subject: Subject) -> str:
    """Predictions and state are the same however the stream is cut into batches."""
    whole = subject.make()
    expected = whole.predict_learn(subject.batch())
    rng = random.Random(1)
    for longest in (1, 7, 100):
        learner = subject.make()
        values: list[Label | None] = []
        probas: list[dict[Label, float]] | None = None if expected.probas is None else []
        start = 0
        while start < len(subject.events):
            stop = start + rng.randint(1, longest)
            part = learner.predict_learn(subject.batch(start, stop))
            values += part.values
            if probas is not None and part.probas is not None:
                probas += part.probas
            start = stop
        got = Predictions(values, probas)
        _same_predictions(expected, got, f"in batches of up to {longest} instead of one")
        if learner.state() != whole.state():
            raise CheckError(f"the state differs in batches of up to {longest} instead of one")
    return f"{len(subject.events)} events in batches of 1, up to 7, up to 100, and all"


def prediction_comes_before_learning(subject: Subject) -> str:
    """`predict_learn` predicts what `predict` would have, before the event is learned."""
    half = len(subject.events) // 2
    learner = subject.learned(half)
    stop = min(half + 100, len(subject.events))
    for i in range(half, stop):
        before = learner.predict(subject.batch(i, i + 1))
        both = learner.predict_learn(subject.batch(i, i + 1))
        _same_predictions(before, both, f"by predict and by predict_learn at event {i}")
    return f"{stop - half} events"


def predicting_changes_nothing(subject: Subject) -> str:
    """Predicting any number of events leaves later predictions unchanged."""
    half = len(subject.events) // 2
    quiet, asked = subject.learned(half), subject.learned(half)
    asked.predict(subject.batch())
    asked.predict(subject.batch(0, half))
    expected = quiet.predict_learn(subject.batch(half))
    got = asked.predict_learn(subject.batch(half))
    _same_predictions(expected, got, "after predicting in between")
    return f"{len(subject.events) + half} predictions in between"


def state_round_trip_goes_on_identically(subject: Subject) -> str:
    """A learner built from the state predicts and learns as the original does, bit for bit."""
    cut = max(len(subject.events) - _NEXT, len(subject.events) // 2)
    original = subject.learned(cut)
    state = original.state()
    if original.state() != state:
        raise CheckError("taking the state twice gives different bytes")
    restored = load_learner(original.kind, state, task=original.task, modules=subject.modules)
    if restored.state() != state:
        raise CheckError("the restored learner's state differs from the one it was built from")
    expected = original.predict_learn(subject.batch(cut))
    try:
        got = restored.predict_learn(subject.batch(cut))
    except LearnerError as error:
        raise CheckError(
            f"the restored learner raises at event {cut + error.row}, and the original does not: "
            f"{error}"
        ) from error
    _same_predictions(expected, got, "by the original and by the restored learner")
    if original.state() != restored.state():
        raise CheckError(f"the states differ {len(subject.events) - cut} events after the restore")
    if original.definition() != restored.definition():
        raise CheckError("the restored learner's definition differs")
    return f"{len(state)} bytes, next {len(subject.events) - cut} predictions equal"


def memory_is_bounded(subject: Subject) -> str:
    """The state grows by less than the size of the events."""
    n = len(subject.events)
    early = len(subject.learned(n // 2).state())
    late = len(subject.learned(n).state())
    events = encoding.encode([(e.x, e.y) for e in subject.events[n // 2 :]])
    grown, limit = late - early, max(len(events), 256 * 1024)
    if grown > limit:
        raise CheckError(f"grew {grown} B over {n - n // 2} events; limit {limit} B")
    return f"grew {grown} B over {n - n // 2} events; limit {limit} B"


def input_is_not_aliased(subject: Subject) -> str:
    """Changing an event after it was learned does not change the learner."""
    half = len(subject.events) // 2
    expected = subject.learned(half).predict_learn(subject.batch(half))
    learner = subject.make()
    batch = subject.batch(0, half)
    learner.predict_learn(batch)
    for x in batch.dicts():
        for name, value in x.items():
            x[name] = "spoiled" if isinstance(value, str) else 1e9
    got = learner.predict_learn(subject.batch(half))
    _same_predictions(expected, got, "after the input was changed by its owner")
    return f"{half} events spoiled after they were learned"


CHECKS: tuple[Callable[[Subject], str], ...] = (
    result_is_independent_of_the_cuts,
    prediction_comes_before_learning,
    predicting_changes_nothing,
    state_round_trip_goes_on_identically,
    memory_is_bounded,
    input_is_not_aliased,
)


def check_learner(
    make: Callable[[], Any],
    events: Sequence[tuple[Features, Label]],
    *,
    task: Task | None = None,
    modules: Collection[str] = (),
) -> Iterator[Passed]:
    """Run every check on learners made by `make`, and yield each that passes.

    Parameters
    ----------
    make
        Makes a new River estimator or `Learner`, always the same one.
    events
        (features, label) in stream order: at least some hundreds, better 2,000.
    modules
        Modules besides River whose classes and functions the learner's state may hold.

    Raises
    ------
    CheckError
        At the first check that fails.
    """
    subject = Subject(
        lambda: as_learner(make(), task, modules),
        [Event(x=dict(x), y=y) for x, y in events],
        tuple(modules),
    )
    for check in CHECKS:
        try:
            detail = check(subject)
        except (CheckError, encoding.EncodingError) as error:
            raise CheckError(f"{check.__name__}: {error}") from None
        yield Passed(check.__name__, detail)


def difference(expected: Predictions, got: Predictions) -> int | None:
    """Return the first event whose predictions differ, bit for bit; None if none does."""
    for i, (a, b) in enumerate(zip(expected.values, got.values, strict=True)):
        if not _same(a, b):
            return i
    if expected.probas is None or got.probas is None:
        return None
    for i, (p, q) in enumerate(zip(expected.probas, got.probas, strict=True)):
        if list(p) != list(q) or not all(_same(p[label], q[label]) for label in p):
            return i
    return None


def _same_predictions(expected: Predictions, got: Predictions, when: str) -> None:
    row = difference(expected, got)
    if row is None:
        return
    a, b = expected.values[row], got.values[row]
    if not _same(a, b) or expected.probas is None or got.probas is None:
        raise CheckError(f"prediction {row} is {a!r} and {b!r} {when}")
    raise CheckError(f"probabilities {row} are {expected.probas[row]} and {got.probas[row]} {when}")


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal; NaN equals NaN."""
    return bool(a == b or (a != a and b != b))  # noqa: PLR0124
