"""Crash schedules on a simulated Kafka: whatever fails, nothing is lost and nothing done twice."""

import os

import pytest
from kafka_bugs import BUGS, BUGS_AT_FIRST
from kafka_lives import lived
from simulation import make_trainer

SEEDS = int(os.environ.get("MIDSTREAM_KAFKA_SEEDS", "5000"))
SEEDS_AT_FIRST = SEEDS_JOINED = 2 * SEEDS // 5
BLOCKS = 20


@pytest.mark.parametrize(
    "block", [pytest.param(i, marks=pytest.mark.slow if i % 4 else ()) for i in range(BLOCKS)]
)
def test_any_schedule_on_kafka_leaves_state_and_outputs_exact(block):
    """The state is the fold of the journal, and each output is there once, in order."""
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        try:
            lived(seed)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")


@pytest.mark.parametrize(
    "block", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(BLOCKS)]
)
def test_an_outage_within_the_first_transaction_is_waited_for(block):
    """It is not taken for another run, nor another run for it: only then does one end."""
    for seed in range(block * SEEDS_AT_FIRST // BLOCKS, (block + 1) * SEEDS_AT_FIRST // BLOCKS):
        try:
            lived(seed, outage_at_first=0.5)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")


@pytest.mark.parametrize(
    "block", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(BLOCKS)]
)
def test_labels_in_a_topic_of_their_own_are_joined_exactly(block):
    """Two topics are applied again in the order of the journal, whatever fails."""
    for seed in range(block * SEEDS_JOINED // BLOCKS, (block + 1) * SEEDS_JOINED // BLOCKS):
        try:
            lived(seed, joins=True)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")


@pytest.mark.parametrize("bug", BUGS_AT_FIRST, ids=lambda bug: bug.__name__)
def test_the_seeds_find_a_bug_of_first_transactions(bug, monkeypatch):
    """With a bug put in on purpose, one of the first 300 seeds fails."""
    bug(monkeypatch)
    for seed in range(300):
        try:
            lived(seed, outage_at_first=0.5)
        except (AssertionError, RuntimeError, ValueError):
            return
    pytest.fail(f"300 seeds did not find: {bug.__doc__}")


def test_a_life_of_one_partition_ends_as_one_in_which_nothing_happened():
    """With the state of a trainer that was given all events at once, where nobody commanded."""
    lives = [life for life in map(lived, range(0, 120, 4)) if not life.office.orders]
    assert len(lives) == 20
    for life in lives:
        trainer, (events,) = make_trainer(), life.events["in"]
        trainer.step(events.take([i for i, x in enumerate(events.dicts()) if not x.get("bad")]))
        assert trainer.digest() == life.digests["000"]


def test_a_seed_gives_the_same_life_again():
    """A failing seed can be lived through again: it decides everything, threads and all."""
    for seed in (1, 2, 3):
        one, two = lived(seed), lived(seed)
        assert one.results == two.results
        for place, log in one.cluster.logs.items():
            other = two.cluster.logs[place]
            assert [e and e[:2] for e in log.entries] == [e and e[:2] for e in other.entries]


def test_the_seeds_have_all_of_it():
    """Processes die, are frozen, thaw, are shut out, stop, are commanded; messages fail."""
    lives = [lived(seed) for seed in range(100)]
    results = {result for life in lives for result in life.results}
    assert {"crash crashed", "freeze shut out", "disk failed", "stop ended", " ended"} <= results
    happened = {kind for life in lives for kind in life.cluster.happened}
    assert happened == {
        "outage", "reply lost", "message lost", "queue full", "transaction timed out",
        "shut out", "request of a dead one",
    }  # fmt: skip
    kinds = {order.kind for life in lives for order in life.office.orders}
    assert kinds == {"snapshot", "restore", "rewind", "promote"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_the_seeds_find_a_known_bug(bug, monkeypatch):
    """With a bug put in on purpose, one of the first 300 seeds fails."""
    bug(monkeypatch)
    for seed in range(300):
        try:
            lived(seed)
        except (AssertionError, RuntimeError, ValueError):  # not a mistake in the bug itself
            return
    pytest.fail(f"300 seeds did not find: {bug.__doc__}")
