"""Any way of cutting a stream gives the same predictions and the same digest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import HASH_SEEDED, ZOO, events

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.training.trainer import Trainer

N = 240
# Its probabilities come in the order of a set of labels, and so do the sums over them.
ORDERED_BY_A_SET = {"LazyKNN"}


def _batch(data, start, stop):
    return EventBatch.from_events(
        [Event(x=dict(x), y=y) for x, y in data[start:stop]], offsets=np.arange(start, stop)
    )


def learn(name, sizes):
    """Learn N events in batches of the given sizes, over and over; return values and digest."""
    task, make = ZOO[name]
    data = list(events(task, N))
    # River's trees take their greatest depth from the recursion limit, which Hypothesis changes.
    with mock.patch("sys.getrecursionlimit", return_value=1000):
        trainer = Trainer(make(), task=task, replay=50, window=100)
        values, start, i = [], 0, 0
        while start < N:
            stop = min(N, start + sizes[i % len(sizes)])
            batch = _batch(data, start, stop)
            values += [repr(v) for v in trainer.step(batch).predictions.values]
            start, i = stop, i + 1
        return values, trainer.digest()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_any_cut_gives_the_same_predictions_and_digest(name):
    """However the stream is cut into batches, predictions and digest are the same."""
    expected = learn(name, [N])

    @settings(
        max_examples=4,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    def check(sizes):
        values, digest = learn(name, sizes)
        assert values == expected[0]
        assert digest == expected[1]

    check()


def test_a_fresh_process_with_another_hash_seed_gives_the_same_digests():
    """Neither the process nor its hash seed shows in predictions and digests."""
    names = sorted(set(ZOO) - HASH_SEEDED - ORDERED_BY_A_SET)
    assert len(names) >= 30
    here = Path(__file__)
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); import test_cuts as t;"
        "print(json.dumps({n: t.learn(n, [37, 1, 90]) for n in json.loads(sys.argv[2])}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code,
         json.dumps([str(here.parent), str(here.parents[2] / "support")]), json.dumps(names)],
        env=dict(os.environ, PYTHONHASHSEED="4321"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    other = json.loads(done.stdout)
    here_too = {name: list(learn(name, [N])) for name in names}
    differ = [name for name in names if other[name] != here_too[name]]
    assert not differ, differ
