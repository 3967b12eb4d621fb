"""`input.ahead`: the next block is read and decoded while one is learned; nothing else changes."""

import json
import signal
import time

import pytest
from project import Project, events, stop, wait_for

CONFIG = """
[input]
path = "%s"
ahead = %s
shards = %s
order = "name"
[state]
commit_seconds = 0.01
snapshot_events = 2000
"""


def project(folder, ahead, *, path="events-*.jsonl", shards="1"):
    made = Project(folder, config=CONFIG % (path, ahead, shards))
    for i in range(2):
        lines = [{**event, "id": f"{i}-{event['id']}"} for event in events(6_000, seed=i)]
        lines[77] = "{no event"
        made.write(lines, f"events-{i}.jsonl")
    return made


@pytest.mark.parametrize("shards", ["1", '"partition"'])
def test_the_result_is_the_same(tmp_path, shards):
    """Models, metrics and outputs, bit for bit."""
    one = project(tmp_path / "one", "true", shards=shards)
    other = project(tmp_path / "other", "false", shards=shards)
    got, expected = one.run(), other.run()
    for key in ("digest", "metrics", "learned", "rejected", "predictions"):
        assert got[key] == expected[key]
    for path in sorted((other.folder / "out").glob("predictions*.jsonl")):
        assert (one.folder / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_read_ahead_is_read_again(tmp_path, number):
    """However the run ended: it was not learned."""
    one = project(tmp_path / "one", "true")
    for _ in range(3):
        process = one.start("run", "config.toml")
        for line in process.stderr:
            if "event=running" in line:
                break
        time.sleep(0.05)
        stop(process, number)
    got = one.run()
    assert got["seen"] == 11_998
    ids = [line["id"] for line in one.output("predictions")]
    assert len(ids) == len(set(ids)) == 11_998
    assert got["digest"] == project(tmp_path / "calm", "true").run()["digest"]


def test_files_are_followed_as_they_grow(tmp_path):
    """As without it."""
    one = project(tmp_path / "one", "true")
    process = one.start("run", "config.toml")
    wait_for(lambda: len(one.output("predictions")) == 11_998)
    with (one.folder / "events-0.jsonl").open("a") as file:
        file.writelines(
            json.dumps({**event, "id": f"m{event['id']}"}) + "\n" for event in events(9)
        )
    wait_for(lambda: len(one.output("predictions")) == 12_007)
    assert stop(process)[0] == 0


def test_standard_input_is_refused(tmp_path):
    """It could not be read again."""
    one = project(tmp_path / "one", "true", path="-")
    done = one.call("run", "config.toml", "--until-eof", stdin="")
    assert done.returncode == 2
    assert "input.ahead: found true with standard input" in done.stderr
