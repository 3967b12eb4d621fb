"""Damaged state: whatever a kernel indexes is refused when it is loaded, or works."""

import copy
import math
import os
import random

import numpy as np
import pytest

from midstream.engine.basics.plugins import PluginError
from midstream.engine.drift.detectors import ADWIN, PageHinkley
from midstream.engine.drift.monitor import DriftMonitor
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import LearnerError
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.learners.softmax import SoftmaxLearner
from midstream.engine.state import encoding
from midstream.engine.training.replay import Reservoir

ROUNDS = int(os.environ.get("MIDSTREAM_FUZZ_STATES", "400"))
ODD = [
    None, True, False, -1, 0, 1, 2, 7, 8, 2**31, 2**53, 2**63 - 1, -(2**63), 10**30, 0.5, -0.5,
    1e308, math.nan, math.inf, -math.inf, "", "x", b"", [], {}, (), [1], {"x": 1},
    np.zeros(0), np.zeros((2, 2)), np.zeros(3, np.int64), np.full(3, np.nan),
]  # fmt: skip


def events(seed, n=40):
    """Return events of numbers and words, some missing, some unlabelled."""
    rng = random.Random(seed)
    return [
        Event(
            x={f"f{j}": rng.gauss(0, 1) for j in range(rng.randrange(11)) if rng.random() < 0.8}
            | ({"word": f"w{rng.randrange(12)}"} if rng.random() < 0.7 else {}),
            y=rng.choice([None, *range(20)]),
            id=str(i),
            weight=rng.choice([0.0, 1.0, 1.0, 2.5]),
        )
        for i in range(n)
    ]


def batch(seed, kind):
    """Return events with labels as a learner of this kind has them."""
    given = events(seed)
    for event in given:
        if event.y is not None:
            event.y = event.y > 9 if kind == "binary" else f"class {event.y}"
    return EventBatch.from_events(given)


def places(value, way=()):
    """Return where in a state something may be damaged: each value, and what holds it."""
    found = [way]
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*way, key))
    elif isinstance(value, list | tuple):
        for i in range(min(len(value), 4)):
            found += places(value[i], (*way, i))
    return found


def damaged(value, rng):
    """Return something else than a value of a state: often a little, seldom anything."""
    if isinstance(value, np.ndarray) and rng.random() < 0.8:
        other = value.copy()
        match rng.randrange(6):
            case 0:
                return other.reshape(-1)
            case 1:
                return np.concatenate([other, other[:1]])
            case 2:
                return other[:-1]
            case 3:
                kind = rng.choice([np.int32, np.float32, np.int64, np.float64, bool])
                return np.nan_to_num(other).astype(kind)
            case _ if other.size:
                odd = [x for x in ODD if isinstance(x, int | float) and abs(x) < 2**63]
                other.flat[rng.randrange(other.size)] = (
                    rng.choice(odd) if other.dtype == np.float64 else rng.choice([-1, 0, 5, 2**40])
                )
                return other
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return rng.choice([value[:i], value[i:], value + value[i : i + 1], value[::-1]])
    if isinstance(value, dict) and value and rng.random() < 0.7:
        name = rng.choice(list(value))
        left = {key: item for key, item in value.items() if key != name}
        return rng.choice([left, left | {"odd": value[name]}])
    if type(value) in (int, float) and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, -value, value * 2, float(value)])
    return copy.deepcopy(rng.choice(ODD))


def mutated(state, rng):
    """Return a state with one to three of its parts damaged."""
    state = copy.deepcopy(state)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        way = rng.choice(places(state))
        state = changed(state, way, rng)
    return state


def changed(value, way, rng):
    if not way:
        return damaged(value, rng)
    if isinstance(value, tuple):
        return tuple(changed(list(value), way, rng))
    value[way[0]] = changed(value[way[0]], way[1:], rng)
    return value


def linear(**options):
    return lambda: LinearLearner("binary", bits=4, **options), "binary"


def softmax(**options):
    return lambda: SoftmaxLearner(bits=4, **options), "classes"


LEARNERS = {
    "linear": linear(), "linear ftrl": linear(optimizer="ftrl", l1=0.1),
    "linear adam": linear(optimizer="adam"), "linear unscaled": linear(scale=False, l1=0.1),
    "softmax": softmax(), "softmax ftrl": softmax(optimizer="ftrl", l1=0.1),
    "softmax adagrad": softmax(optimizer="adagrad"),
}  # fmt: skip


def use_learner(learner, kind):
    """Predict and learn; a learner may diverge, which it says."""
    try:
        for seed in (100, 101):
            learner.predict(batch(seed, kind))
            learner.predict_learn(batch(seed, kind))
    except LearnerError:
        return
    learner.explain()
    state = learner.state()
    assert type(learner).from_state(state, task=learner.task).state() == state


def survives(load, use, state, seed):
    """Damage a state and load it; say whether it was taken."""
    rng = random.Random(seed)
    data = encoding.encode(mutated(state, rng))
    try:
        loaded = load(data)
    except ValueError:
        return False
    try:
        use(loaded)
    except PluginError:  # a name that a package might declare
        return False
    return True


def fuzz(load, use, states):
    """Try many damages; whatever is neither refused by ValueError nor works raises."""
    taken = 0
    for seed in range(ROUNDS):
        try:
            taken += survives(load, use, states[seed % len(states)], seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert taken < ROUNDS / 2, f"{taken} of {ROUNDS} damages were taken"


@pytest.mark.parametrize("name", LEARNERS)
def test_a_damaged_learner_is_refused_or_works(name):
    """None that is loaded leads a kernel beyond its arrays, or goes on for ever."""
    make, kind = LEARNERS[name]
    learner = make()
    states = [encoding.decode(learner.state())]
    for seed in range(3):
        learner.predict_learn(batch(seed, kind))
        states.append(encoding.decode(learner.state()))
    fuzz(
        lambda data: type(learner).from_state(data, task=learner.task),
        lambda loaded: use_learner(loaded, kind),
        states,
    )


@pytest.mark.parametrize("kind", [ADWIN, PageHinkley])
def test_a_damaged_detector_is_refused_or_works(kind):
    """Likewise."""
    rng = np.random.default_rng(1)
    states = []
    for n in (0, 1, 100, 5_000):
        detector = kind()
        detector.update(rng.random(n))
        states.append(detector.state())

    def use(detector):
        detector.update(np.concatenate([rng.random(3_000), rng.random(3_000) + 3]))
        kind.from_state(encoding.decode(encoding.encode(detector.state())))

    fuzz(lambda data: kind.from_state(encoding.decode(data)), use, states)


def test_a_damaged_drift_monitor_is_refused_or_works():
    """Also what holds the detectors."""
    monitor = DriftMonitor(["adwin", "page_hinkley"])
    monitor.update(np.random.default_rng(1).random(500), 0)
    state = encoding.decode(monitor.state())
    fuzz(DriftMonitor.from_state, lambda loaded: loaded.update(np.ones(500), 500), [state])


def test_a_damaged_reservoir_is_refused_or_works():
    """With bytes that bind and without, of either schema."""
    states = []
    for max_bytes in (10**6, 6_000):
        reservoir = Reservoir(10, max_bytes=max_bytes, seed=3)
        for seed in range(4):
            reservoir.add(batch(seed, "classes"))
            states.append(reservoir.state())
    event = ({"a": 1.0}, 1, "1", None, None, 1.0, None, None)
    states.append({
        "schema": 1, "capacity": 10, "max_bytes": 10**6, "seed": 3, "seen": 20, "bytes": 328,
        "limit": 10, "dropped": 0, "sampled": 0, "events": [event],
    })  # fmt: skip

    def use(reservoir):
        reservoir.add(batch(9, "classes"))
        reservoir.sample(5)
        assert len(reservoir) <= reservoir.capacity
        assert reservoir.bytes <= reservoir.max_bytes
        Reservoir.from_state(encoding.decode(encoding.encode(reservoir.state())))

    fuzz(lambda data: Reservoir.from_state(encoding.decode(data)), use, states)
