"""What trees take for their size is a function of their state."""

import pytest
from river import forest, tree
from zoo import ZOO, events

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import RiverLearner, load_learner
from midstream.engine.learners.sizes import measured_by_state, nominal_size
from midstream.engine.state import encoding

TREES = {
    "plain": lambda **o: tree.HoeffdingTreeClassifier(grace_period=20, delta=0.05, tau=0.3, **o),
    "adaptive": lambda **o: tree.HoeffdingAdaptiveTreeClassifier(grace_period=20, seed=1, **o),
    "fast": lambda **o: tree.ExtremelyFastDecisionTreeClassifier(grace_period=20, **o),
    "forest": lambda **o: forest.ARFClassifier(n_models=3, grace_period=20, seed=1, **o),
}


def learn(make, *, every=None, n=1_500):
    """Learn n events, saved and loaded again every so many; return predictions and state."""
    learner = RiverLearner(make(), "multiclass")
    data = list(events("multiclass", n))
    predicted = []
    for start in range(0, n, every or n):
        part = [Event(x=dict(x), y=y) for x, y in data[start : start + (every or n)]]
        predicted += learner.predict_learn(EventBatch.from_events(part)).values
        if every:
            learner = load_learner("river", learner.state(), task="multiclass")
    return predicted, learner


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("max_size", [0.02, 0.1, pytest.param(100.0, marks=pytest.mark.slow)])
def test_saving_and_loading_does_not_change_what_a_tree_learns(name, max_size):
    """Where the limit binds and where it does not: the same predictions, the same state."""

    def make():
        return TREES[name](max_size=max_size, memory_estimate_period=100)

    predicted, learner = learn(make)
    again, loaded = learn(make, every=170)
    assert again == predicted
    assert loaded.state() == learner.state()


def test_the_limit_still_binds():
    """A tree of 20 kB deactivates leaves that one of 100 MB keeps."""
    small = learn(lambda: TREES["plain"](max_size=0.02, memory_estimate_period=100))[1].model
    large = learn(lambda: TREES["plain"](max_size=100.0, memory_estimate_period=100))[1].model
    assert small.n_inactive_leaves > 0
    assert large.n_inactive_leaves == 0


@pytest.mark.parametrize("name", [n for n in ZOO if "Tree" in n or "ARF" in n])
def test_a_restored_model_has_the_same_size(name):
    """Down to the last byte, and not far from what River measures."""
    task, make = ZOO[name]
    learner = RiverLearner(make(), task)
    learner.predict_learn(
        EventBatch.from_events([Event(x=dict(x), y=y) for x, y in events(task, 300)])
    )
    restored = encoding.decode(encoding.encode(learner.model))
    size = nominal_size(learner.model)
    assert nominal_size(restored) == size
    assert size > 1_000


def test_trees_outside_a_learner_are_measured_by_river():
    """Only a learner of ours measures otherwise."""
    from river.tree import hoeffding_tree

    value = {"a": [1.0, 2.0]}
    outside = hoeffding_tree.calculate_object_size(value)
    with measured_by_state():
        assert hoeffding_tree.calculate_object_size(value) == nominal_size(value) != outside
    assert hoeffding_tree.calculate_object_size(value) == outside
