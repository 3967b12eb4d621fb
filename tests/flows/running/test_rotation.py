"""Logs that are rotated under a run, and inputs that were put back, by processes."""

import gzip
import os
import random
import shutil
import signal

import pytest
from project import PATIENCE, Project, events, stop, wait_for

CONFIG = '[input]\npath = "{path}"\nformat = "jsonl"\n[state]\ncommit_seconds = 0.05\n'


def append(path, lines):
    with path.open("a") as file:
        for line in lines:
            file.write(
                str(line).replace("'", '"').replace("True", "true").replace("False", "false")
            )
            file.write("\n")


def rotate(folder, rotated, *, pack):
    """As logrotate does, with `compress` and `delaycompress`, or without."""
    for i in range(rotated, 0, -1):
        for end in ("", ".gz"):
            if (folder / f"events.log.{i}{end}").exists():
                (folder / f"events.log.{i}{end}").rename(folder / f"events.log.{i + 1}{end}")
    (folder / "events.log").rename(folder / "events.log.1")
    (folder / "events.log").touch()
    old = folder / "events.log.2"
    if pack and old.exists():
        (folder / "events.log.2.gz").write_bytes(gzip.compress(old.read_bytes()))
        old.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["events.log", "events.log*", "*.log"])
@pytest.mark.parametrize("pack", [False, True])
def test_a_rotated_log_is_learned_once(path, pack, tmp_path):
    """With the digest of one file that has all, over rotations, kills and stops, and a rewind."""
    lines = events(700)
    twin = Project(tmp_path / "twin")
    twin.write(lines)
    expected = twin.run()
    one = Project(tmp_path / "one", config=CONFIG.format(path=path))
    log, rng, run = one.folder / "events.log", random.Random(1), None
    log.touch()
    for i in range(7):
        append(log, lines[100 * i : 100 * i + 50])
        if i == 0 or (run is None and rng.random() < 0.7):
            run = one.running(until="event=caught_up")
        if i == 0:
            one.operate("snapshots", "create")
        if rng.random() < 0.7:
            rotate(one.folder, i, pack=pack)
        append(log, lines[100 * i + 50 : 100 * i + 100])
        if run is not None:
            seen = 100 * i + 100
            wait_for(lambda n=seen: len(one.output("predictions")) == n)
            if rng.random() < 0.5:
                stop(run, rng.choice([signal.SIGTERM, signal.SIGKILL]))
                run = None
    if run is not None:
        stop(run)
    summary = one.run()
    assert [p["id"] for p in one.output("predictions")] == [event["id"] for event in lines]
    assert summary["digest"] == expected["digest"]
    one.operate("restore", "1", "--rewind", "--yes")
    assert one.run()["digest"] == expected["digest"]


def test_a_log_that_is_truncated_in_place_ends_the_run(tmp_path):
    """With its name, why, and what to do; nothing of what came then is learned."""
    one = Project(tmp_path, config=CONFIG.format(path="events.log"))
    log = tmp_path / "events.log"
    append(log, events(50))
    run = one.running()
    shutil.copy(log, tmp_path / "events.log.1")
    os.truncate(log, 0)
    append(log, events(80, seed=2))
    assert run.wait(timeout=PATIENCE) == 1
    assert len(one.output("predictions")) == 50
    again = one.call("run", "config.toml", "--until-eof")
    assert again.returncode == 1
    assert "events.log: " in again.stderr
    assert "copytruncate" in again.stderr
    assert "--fresh" in again.stderr
    assert len(one.output("predictions")) == 50


def test_an_older_copy_that_was_put_back_and_has_grown_ends_the_run(tmp_path):
    """It is longer than what was read, and begins in the same way."""
    one = Project(tmp_path)
    one.write(events(500))
    one.run()
    one.write(events(250) + events(600, seed=3))
    done = one.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    assert "events.jsonl: what comes before byte" in done.stderr
    assert len(one.output("predictions")) == 500


def test_a_log_that_is_a_shard_of_its_own_is_rotated(tmp_path):
    """It goes on in the same shard, and what it was is no shard that is new."""
    text = CONFIG.format(path="logs/*").replace("format", 'shards = "partition"\nformat')
    one = Project(tmp_path, config=text)
    logs = tmp_path / "logs"
    logs.mkdir()
    first, other = events(200), events(60, seed=3)
    append(logs / "events.log", first[:100])
    append(logs / "other.log", other)
    one.run()
    append(logs / "events.log", first[100:150])
    rotate(logs, 0, pack=False)
    append(logs / "events.log", first[150:])
    summary = one.run()
    assert sorted(summary["digest"]) == ["000", "001"]
    assert summary["learned"] == 100
    predicted = [
        p["id"] for kind in ("predictions-000", "predictions-001") for p in one.output(kind)
    ]
    assert predicted == [event["id"] for event in first + other]
