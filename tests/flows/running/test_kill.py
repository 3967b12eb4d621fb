"""SIGKILL at random moments: the state and the predictions are those of an uninterrupted run."""

import os
import random

import pytest
from project import Project, events

KILLS = 20
CONFIG = """
[state]
snapshot_events = 8000
commit_seconds = 0.02
"""


@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.slow), "gzip"])
def test_killed_at_random_moments_nothing_is_lost_and_nothing_learned_twice(kind, tmp_path):
    """After 20 kills digest and prediction file equal those of a run that was left alone."""
    lines = events(60_000)
    calm = Project(tmp_path / "calm", config=CONFIG)
    name = calm.write(lines).name
    killed_config = CONFIG
    if kind == "gzip":
        import gzip

        data = (tmp_path / "calm" / name).read_bytes()
        killed_config = '[input]\npath = "events.jsonl.gz"\n' + CONFIG
        killed = Project(tmp_path / "killed", config=killed_config)
        (killed.folder / "events.jsonl.gz").write_bytes(gzip.compress(data, 1))
    else:
        killed = Project(tmp_path / "killed", config=killed_config)
        killed.write(lines)
    expected = calm.run()

    rng = random.Random(os.environ.get("MIDSTREAM_KILL_SEED", "11") + kind)
    whole = (calm.folder / "out" / "predictions.jsonl").stat().st_size
    killed.kill_along(KILLS if kind == "plain" else 6, whole, rng)

    got = killed.run()
    assert got["digest"] == expected["digest"]
    assert got["metrics"] == expected["metrics"]
    assert got["learned"] < expected["learned"], "the last run did not resume"
    predictions = (killed.folder / "out" / "predictions.jsonl").read_bytes()
    reference = (calm.folder / "out" / "predictions.jsonl").read_bytes()
    if kind == "gzip":
        reference = reference.replace(b'"events.jsonl"', b'"events.jsonl.gz"')
    assert predictions == reference
    ids = [p["id"] for p in killed.output("predictions")]
    assert ids == [e["id"] for e in lines]
