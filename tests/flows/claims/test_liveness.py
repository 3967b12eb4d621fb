"""Whether a processor is at work: beats that change, and no two hosts' clocks compared."""

import pytest

from midstream.engine.registry.registry import ShardRow
from midstream.flows.claims.liveness import BEAT, SILENT, Pulses

YEAR = 365 * 86_400.0


class Registry:
    """What tells the registry's clock."""

    def __init__(self, now=1_000.0, *, steady=False):
        self.now, self.steady = now, steady

    def clock(self):
        return self.now


class Observer:
    """Looks at one shard's beats by a clock of its own."""

    def __init__(self, registry, **options):
        self.time = 50.0
        self.pulses = Pulses(registry, clock=lambda: self.time, **options)

    def sees(self, beat, run="r"):
        return self.pulses.running(ShardRow("000", "host", 1, beat, 0, paused=False, run=run))


@pytest.mark.parametrize("steady", [False, True])
def test_one_look_is_enough_where_a_beat_has_just_come(steady):
    """One that does not change is dead a while after; one that has ended is at once."""
    registry = Registry(steady=steady)
    observer = Observer(registry)
    assert observer.sees(registry.now - SILENT + 1)
    observer.time += 1.5
    assert not observer.sees(registry.now - SILENT + 1)
    assert Observer(registry).sees(registry.now + 1), "clocks are read one after the other"
    assert not Observer(registry).sees(0.0), "it has ended"


@pytest.mark.parametrize("off", [YEAR, 3_600.0, 10.0, -10.0, -3_600.0, -YEAR])
def test_a_registry_whose_clock_is_set_makes_no_live_processor_dead(off):
    """Nor a dead one live: a second look tells, a moment after one beat was due."""
    registry = Registry()
    dead, live = Observer(registry), Observer(registry)
    beat = registry.now - 1
    registry.now += off
    assert live.sees(beat)
    for _ in range(10):
        live.time, registry.now = live.time + BEAT, registry.now + BEAT
        assert live.sees(registry.now)
    dead.sees(beat)
    dead.time += BEAT + 1.5
    assert not dead.sees(beat)


def test_what_is_old_by_a_clock_that_nobody_sets_is_dead_at_once():
    """Where nobody means to look again, so is what is old by any."""
    assert not Observer(Registry(steady=True)).sees(1_000.0 - SILENT - 1)
    assert not Observer(Registry(), again=-1.0).sees(1_000.0 - SILENT - 1)
    observer = Observer(Registry(steady=True))
    assert observer.sees(9_000.0), "the host was started anew, or it is a beat of before"
    observer.time += BEAT + 1.5
    assert not observer.sees(9_000.0)


def test_another_run_is_a_change():
    """Also if it beats with the same number."""
    registry = Registry()
    observer = Observer(registry)
    assert observer.sees(registry.now)
    observer.time += SILENT + 1
    assert not observer.sees(registry.now)
    assert observer.sees(registry.now, "another")
