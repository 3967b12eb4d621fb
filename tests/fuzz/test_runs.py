"""Whole runs over streams, as files of every format: the same events, the same digest."""

import os
import sys
import warnings

import pytest
from odd_streams import make_stream
from stream_oracle import BY_SETS, WrongError
from stream_runs import check_limit, check_run, formats, typed

QUICK = 4
SLOW = 100
SEEDS = int(os.environ.get("MIDSTREAM_STREAM_RUNS", SLOW))
LIMITED = int(os.environ.get("MIDSTREAM_LIMITED_RUNS", "150"))
PARTS = 6


def run_in_all_formats(seed, folder):
    """Run a stream in every format; each is as the engine by itself, and so as all others."""
    stream = typed(make_stream(seed))
    by_hash_seed = stream.case.name in BY_SETS and sys.flags.hash_randomization
    if not stream.events or by_hash_seed:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # River's own, where numbers are huge
        warnings.filterwarnings("error", module=r"midstream\.")
        for form in formats(stream):
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


def runs_that_stop(seeds, folder):
    """Run streams with limits to what their learner may fail on; return how many stopped."""
    stopped = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            stream = typed(make_stream(seed))
            for limit in (0.5, 0.04):
                try:
                    stopped += check_limit(stream, folder / f"{seed} {limit}", limit)
                except Exception as error:
                    raise WrongError(f"seed {seed}: {stream.case.name}: {error}") from error
    return stopped


# Of learners that raise, or predict no number, for some events or for all.
FAILING = [s for s in range(150) if make_stream(s).case.name.startswith(("Moody", "Array"))]


def test_a_run_on_most_of_which_its_learner_fails_is_no_good_run(tmp_path):
    """What raises or predicts no number for more than the limit stops; all others end well."""
    assert 0 < runs_that_stop(FAILING[:8], tmp_path) < 16


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_run_ends_well_with_more_than_the_limit_of_failures(part, tmp_path):
    """As the test above, for more seeds and any learner."""
    seeds = [*FAILING, *range(150, 150 + LIMITED)]
    assert runs_that_stop(seeds[part::PARTS], tmp_path) > 1
