"""Seeded streams of odd values, classes, weights and gaps, with any learner.

`MIDSTREAM_STREAM_SEEDS=10000 .venv/bin/pytest -m '' tests/fuzz` runs more of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from odd_streams import make_stream
from stream_oracle import BY_SETS, check, digest_of, told
from zoo import ZOO

QUICK = 200
SLOW = 1_300
SEEDS = int(os.environ.get("MIDSTREAM_STREAM_SEEDS", QUICK + SLOW))
PART = 50


def run_seeds(seeds):
    """Check the streams of seeds; fail with a description of up to three that are wrong."""
    failures = []
    for seed in seeds:
        stream = make_stream(seed)
        try:
            check(stream)
        except Exception as error:
            failures.append(told(stream, error))
            if len(failures) == 3:
                break
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("first", range(0, min(QUICK, SEEDS), PART))
def test_a_stream_gives_what_river_gives_and_what_definitions_say(first):
    """Predictions are River's, metrics those of their definitions, however it is cut or resumed."""
    run_seeds(range(first, min(first + PART, SEEDS)))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, SEEDS, PART))
def test_more_streams_give_what_river_gives_and_what_definitions_say(first):
    """As the test above, for more seeds."""
    run_seeds(range(first, min(first + PART, SEEDS)))


CODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from stream_oracle import digest_of
from odd_streams import make_stream
print(json.dumps({seed: digest_of(make_stream(seed)) for seed in json.loads(sys.argv[2])}))
"""


def in_a_fresh_process(seeds):
    """Return the digests of the streams of seeds, by a process of its own with hash seed 0."""
    tests = str(Path(__file__).parents[1] / "support")
    done = subprocess.run(
        [sys.executable, "-c", CODE, tests, json.dumps(seeds)],
        env=dict(os.environ, PYTHONHASHSEED="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {int(seed): digest for seed, digest in json.loads(done.stdout).items()}


def by_hash_seed(stream):
    """Tell whether the hash seed, which the command fixes, may show.

    River's trees keep sets of features' values and of classes; those of texts differ in order.
    """
    texts = any(isinstance(v, str) for e in stream.events for v in (e.y, *e.x.values()))
    return stream.case.name in BY_SETS or (texts and stream.case.name in ZOO)


def compare_processes(seeds):
    """Compare digests over two fresh processes that take the seeds in other orders, and this one.

    This one has another hash seed, and has done other things before.
    """
    one, two = in_a_fresh_process(seeds), in_a_fresh_process(seeds[::-1])
    assert {s: d for s, d in one.items() if two[s] != d} == {}
    here = {
        seed: digest_of(stream) for seed in seeds if not by_hash_seed(stream := make_stream(seed))
    }
    assert {seed: digest for seed, digest in here.items() if one[seed] != digest} == {}


def test_a_fresh_process_gives_the_same_digests():
    """Neither the process, nor what it did before, nor its hash seed shows in state or metrics."""
    compare_processes([*range(0, 300, 5)])


@pytest.mark.slow
def test_fresh_processes_give_the_same_digests_for_more_seeds():
    """As the test above, for more seeds."""
    compare_processes([*range(300, 1_500, 2)])
