"""Whole runs over streams, as files of every format: the same events, the same digest."""

import os
import sys
import warnings

import pytest
from stream_oracle import BY_SETS, WrongError
from stream_runs import FORMATS, check_run, typed
from streams import make_stream

QUICK = 4
SLOW = 100
SEEDS = int(os.environ.get("MIDSTREAM_STREAM_RUNS", SLOW))


def run_in_all_formats(seed, folder):
    """Run a stream in every format; each is as the engine by itself, and so as all others."""
    stream = typed(make_stream(seed))
    by_hash_seed = stream.case.name in BY_SETS and sys.flags.hash_randomization
    if not stream.events or by_hash_seed:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # River's own, where numbers are huge
        warnings.filterwarnings("error", module=r"midstream\.")
        for form in FORMATS:
            try:
                check_run(stream, folder / form, form)
            except Exception as error:
                raise WrongError(
                    f"seed {seed}: {stream.case.name}, {stream.settings}: {error}"
                ) from error


@pytest.mark.parametrize("seed", range(QUICK))
def test_a_run_is_the_engine_by_itself_in_every_format(seed, tmp_path):
    """Each event is predicted or rejected, once; metrics and digest are those of the engine."""
    run_in_all_formats(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, SEEDS, 10))
def test_more_runs_are_the_engine_by_itself_in_every_format(first, tmp_path):
    """As the test above, for more seeds."""
    for seed in range(first, min(first + 10, SEEDS)):
        run_in_all_formats(seed, tmp_path / str(seed))
