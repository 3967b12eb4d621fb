"""The reservoir: uniform, bounded, independent of the cuts, and its state explicit."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from midstream.engine import encoding
from midstream.engine.events import EventBatch
from midstream.engine.replay import Reservoir


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


def test_it_follows_algorithm_r_one_event_at_a_time():
    """Batches give what Vitter's algorithm gives event by event with the same draws."""
    mask = 2**64 - 1

    def draw(seed, t, bound):
        z = (seed + t * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        return int((z >> 11) * 2.0**-53 * bound)

    plain = []
    for i in range(5000):
        if len(plain) < 50:
            plain.append(i)
        elif (j := draw(7, i, i + 1)) < 50:
            plain[j] = i
    reservoir = Reservoir(50, seed=7)
    for start in range(0, 5000, 333):
        reservoir.add(batch(start, min(5000, start + 333)))
    assert kept(reservoir) == plain


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
    restored = Reservoir.from_state(encoding.decode(encoding.encode(original.state())))
    for reservoir in (original, restored):
        reservoir.add(batch(500, 900))
    assert kept(original) == kept(restored)
    assert [e.x for e in original.sample(50)] == [e.x for e in restored.sample(50)]
    assert encoding.encode(original.state()) == encoding.encode(restored.state())


def test_an_unknown_schema_is_refused_with_both_versions():
    """State of a later version is not guessed at."""
    state = Reservoir(3).state() | {"schema": 99}
    with pytest.raises(ValueError, match=r"99.*1"):
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
        assert self.whole.bytes <= 6_000

    @invariant()
    def cuts_do_not_show(self):
        a, b = self.whole.state(), self.single.state()
        # Ids of events without one come from their place in the batch, which differs here.
        for state in (a, b):
            state["events"] = [e[0] for e in state["events"]]
        assert a == b


TestReservoirMachine = ReservoirMachine.TestCase
TestReservoirMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
