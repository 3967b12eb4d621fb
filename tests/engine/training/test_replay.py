"""The reservoir: uniform, bounded, independent of the cuts, and its state explicit."""

import math
import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.state import encoding
from midstream.engine.training.replay import Reservoir, _size


def batch(start, stop, labelled=True):
    return EventBatch(
        [{"v": i, "s": "text"} for i in range(start, stop)],
        [i if labelled else None for i in range(start, stop)],
    )


def kept(reservoir):
    return [e.x["v"] for e in reservoir.events]


def test_it_keeps_everything_until_it_is_full_and_then_a_uniform_sample():
    """Each event of the stream is kept with the same probability (chi-squared, 99.99 %)."""
    counts = [0] * 200
    for seed in range(600):
        reservoir = Reservoir(20, seed=seed)
        reservoir.add(batch(0, 20))
        assert kept(reservoir) == list(range(20))
        reservoir.add(batch(20, 200))
        for v in kept(reservoir):
            counts[v] += 1
    expected = 600 * 20 / 200
    chi = sum((c - expected) ** 2 / expected for c in counts)
    limit = 199 + 3.72 * math.sqrt(2 * 199)
    assert chi < limit, f"chi-squared {chi:.1f} of 199 degrees; limit {limit:.1f}"


MASK = 2**64 - 1


def draw(seed, t):
    """Draw t of the counter-based generator, as its paper has it."""
    z = (seed + t * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_it_keeps_those_with_the_lowest_priorities():
    """However the stream is cut: the sample follows from the seed and the number of an event."""
    lowest = sorted(range(5_000), key=lambda t: draw(7, t))[:50]
    reservoir = Reservoir(50, seed=7)
    for start in range(0, 5_000, 333):
        reservoir.add(batch(start, min(5_000, start + 333)))
    assert kept(reservoir) == sorted(lowest)


def shares(sizes, capacity, max_bytes, seeds):
    """Return the share of seeds with which each event is kept, of events of these sizes."""
    xs = [{"a": "x" * (size - 328)} if size > 328 else {"a": 1.0} for size in sizes]
    events = EventBatch.from_events([Event(x=x, y=True, id=str(i)) for i, x in enumerate(xs)])
    counts = np.zeros(len(sizes))
    for seed in range(seeds):
        reservoir = Reservoir(capacity, max_bytes=max_bytes, seed=seed)
        reservoir.add(events)
        assert reservoir.bytes == sum(_size(e.x) for e in reservoir.events) <= max_bytes
        for event in reservoir.events:
            counts[int(event.id)] += 1
    return counts / seeds


def is_uniform(found, seeds):
    """Whether shares differ by chance only: chi-squared, 99.99 %; as if events came alone."""
    expected = found.mean()
    chi = ((found - expected) ** 2).sum() * seeds / (expected * (1 - expected))
    limit = len(found) - 1 + 3.72 * math.sqrt(2 * (len(found) - 1))
    assert chi < limit, f"chi-squared {chi:.1f} of {len(found) - 1} degrees; limit {limit:.1f}"


@pytest.mark.parametrize("where", ["first", "between", "last"])
def test_events_too_large_to_be_kept_take_no_others_place(where):
    """The sample is one of the others: of 35, each is kept with 10/35."""
    small, large = [328] * 35, [100_000] * 5
    at = {"first": 0, "between": 17, "last": 35}[where]
    found = shares(small[:at] + large + small[at:], 10, 50_000, 2_000)
    assert (found[at : at + 5] == 0).all()
    found = np.delete(found, slice(at, at + 5))
    assert found.sum() == pytest.approx(10)
    is_uniform(found, 2_000)


@pytest.mark.parametrize("size", [328, 500, 656])
def test_where_bytes_bind_events_of_any_size_up_to_a_sixteenth_are_kept_alike(size):
    """Large and small ones, early and late ones."""
    sizes = [328, 328, size] * 40
    found = shares(sizes, 100, 656 * 16, 1_500)
    assert found.mean() < 0.3
    is_uniform(found, 1_500)


def test_one_large_event_is_kept_as_the_others_are():
    """Of 0.88 of the bytes: to 4 standard errors, and its coming does not shrink the sample."""
    found = shares([328] * 50 + [3_328] + [328] * 9, 10, 3_780, 4_000)
    others = np.delete(found, 50)
    error = math.sqrt(others.mean() * (1 - others.mean()) / 4_000)
    assert abs(found[50] - others.mean()) < 4 * error
    is_uniform(others, 4_000)


def test_a_large_event_leaves_the_sample_as_others_do_and_it_grows_again():
    """After many more events than are kept it is full, whatever a large one did at first."""
    full, many = 0, EventBatch([{"v": v} for v in range(50_000)], [1] * 50_000)
    for seed in range(50):
        reservoir = Reservoir(10, max_bytes=3_780, seed=seed)
        reservoir.add(EventBatch([{"a": "x" * 3_000}], [1]))
        reservoir.add(EventBatch([{"v": v} for v in range(9)], [1] * 9))
        assert reservoir.bytes <= 3_780
        reservoir.add(many)
        full += len(reservoir) == 10
    assert full >= 48, f"{full} of 50 are full"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "capacity", "max_bytes", "low", "high"),
    [
        (([328] * 19 + [984]) * 10, 20, 328 * 20, 0.93, 1.05),
        (([328] * 9 + [1_640]) * 20, 10, 3_780, 0.78, 0.98),
        ([3_328] + [328] * 59, 10, 3_780, 1.2, 1.8),
        ([3_328] + [328] * 599, 10, 3_780, 0.7, 1.4),
    ],
)
def test_the_bias_of_large_events_is_as_the_docstring_says(sizes, capacity, max_bytes, low, high):
    """Kept of those of more than a sixteenth of the bytes, in parts of what is kept of others."""
    found, large = shares(sizes, capacity, max_bytes, 4_000), np.array(sizes) > 328
    ratio = found[large].mean() / found[~large].mean()
    assert low < ratio < high, f"{ratio:.2f}"


def test_a_state_of_the_first_schema_is_taken_up():
    """Its events go on as a uniform sample: each of the old and of the new with the same share."""
    counts = np.zeros(400)
    seeds = 1_500
    for seed in range(seeds):
        chosen = random.Random(seed).sample(range(200), 20)
        old = {
            "schema": 1, "capacity": 20, "max_bytes": 10**6, "seed": seed, "seen": 200,
            "bytes": 20 * (256 + 72), "limit": 20, "dropped": 0, "sampled": 3,
            "events": [({"v": v}, 1, str(v), None, None, 1.0, None, None) for v in chosen],
        }  # fmt: skip
        reservoir = Reservoir.from_state(encoding.decode(encoding.encode(old)))
        assert sorted(kept(reservoir)) == sorted(chosen)
        assert reservoir.bytes == old["bytes"]
        reservoir.add(EventBatch([{"v": v} for v in range(200, 400)], [1] * 200))
        counts[kept(reservoir)] += 1
    early, late = counts[:200].sum() / seeds, counts[200:].sum() / seeds
    assert early == pytest.approx(late, rel=0.1)
    is_uniform(counts[:200] / seeds, seeds)
    is_uniform(counts[200:] / seeds, seeds)


def test_events_without_a_label_are_not_kept():
    """What cannot be learned again is not worth keeping."""
    reservoir = Reservoir(10)
    reservoir.add(batch(0, 5, labelled=False))
    assert len(reservoir) == 0
    assert reservoir.seen == 0


def test_a_restored_reservoir_draws_what_the_original_would_have_drawn():
    """Events, counters and draws are state: nothing else decides the next sample."""
    original = Reservoir(30, seed=3)
    original.add(batch(0, 500))
    original.sample(7)
    assert len(original) == 30
    restored = Reservoir.from_state(encoding.decode(encoding.encode(original.state())))
    for reservoir in (original, restored):
        reservoir.add(batch(500, 900))
    assert kept(original) == kept(restored)
    assert [e.x for e in original.sample(50)] == [e.x for e in restored.sample(50)]
    assert encoding.encode(original.state()) == encoding.encode(restored.state())


def test_an_unknown_schema_is_refused_with_both_versions():
    """State of a later version is not guessed at."""
    state = Reservoir(3).state() | {"schema": 99}
    with pytest.raises(ValueError, match=r"99.*2 and 1"):
        Reservoir.from_state(state)


class ReservoirMachine(RuleBasedStateMachine):
    """Whatever is added in whatever cuts, bounds hold, and one cut equals another."""

    def __init__(self):
        super().__init__()
        self.whole = Reservoir(25, max_bytes=6_000, seed=5)
        self.single = Reservoir(25, max_bytes=6_000, seed=5)
        self.n = 0

    @rule(n=st.integers(0, 40), text=st.integers(0, 900))
    def add(self, n, text):
        x = [{"v": self.n + i, "s": "t" * text} for i in range(n)]
        self.whole.add(EventBatch(x, [1] * n))
        for each in x:
            self.single.add(EventBatch([each], [1]))
        self.n += n

    @invariant()
    def bounds_hold(self):
        assert len(self.whole) <= 25
        assert self.whole.bytes == sum(_size(e.x) for e in self.whole.events) <= 6_000

    @rule()
    def resume(self):
        state = encoding.decode(encoding.encode(self.whole.state()))
        self.whole = Reservoir.from_state(state)
        assert encoding.encode(self.whole.state()) == encoding.encode(state)

    @invariant()
    def cuts_do_not_show(self):
        a, b = self.whole.state(), self.single.state()
        # Ids of events without one come from their place in the batch, which differs here.
        for state in (a, b):
            state["events"] = [fields and fields[0] for fields in state["events"]]
            for name in ("priorities", "numbers", "sizes"):
                state[name] = state[name].tolist()
        assert a == b


TestReservoirMachine = ReservoirMachine.TestCase
TestReservoirMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_a_reservoir_that_kept_nothing_begins_anew_when_it_is_given_room():
    """Cut to nothing it has no limit to go on from: the next events fill it."""
    old = Reservoir(20)
    old.add(batch(0, 500))
    none = Reservoir(0).amended(old)
    none.add(batch(500, 510))
    assert len(none) == 0
    new = Reservoir(20).amended(Reservoir.from_state(none.state()))
    new.add(batch(510, 530))
    assert kept(new) == list(range(510, 530))
    new.add(batch(530, 900))
    assert len(new) == 20
