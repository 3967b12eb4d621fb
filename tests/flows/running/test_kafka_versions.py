"""Versions of a model that learns from Kafka: real brokers, real processes, an operator."""

import json
import os
import random
import shutil
import signal
import threading
import time
from contextlib import suppress

import pytest
from confluent_kafka import TopicPartition
from kafka_fold import fold, published
from project import MODEL, PATIENCE, Project, events, interleaved, poisoned, stop, wait_for

VERSIONS = "[versions]\npoll_seconds = 0.05\ndrift_margin = 50\n"


def of_river(topics):
    """Let a project learn with River."""
    text = topics.project.config.read_text().replace('"logistic"', '"models:make"')
    topics.project.config.write_text(text)
    (topics.project.folder / "models.py").write_text(MODEL)


def committed(topics, n):
    topics.until_published(n)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "partitions"),
    [
        ("river", 1),
        ("river", 3),
        ("compiled", 1),
        ("compiled", 3),
    ],
)
def test_poison_is_unlearned(topics, kind, partitions):
    """After `restore --before-drift --rewind --skip-source` it is as if the poison had not been."""
    one = topics("one", partitions=partitions, config=f"---{VERSIONS}")
    calm = topics("calm", partitions=partitions)
    for each in (one, calm) if kind == "river" else ():
        of_river(each)
    n = 3_000 * partitions
    # Their time is part of what is learned: without one it is that of their message.
    good = [{**event, "ts": float(i)} for i, event in enumerate(events(3 * n))]

    def produce(where, lines):
        """Send each event to the partition of its number, the same ones whatever is between."""
        parts = [(None, json.dumps(e).encode(), int(e["id"][1:]) % partitions) for e in lines]
        where.kafka.produce(where.source, parts)

    process = one.project.running("--processes", "2")
    produce(one, good[:n])
    committed(one, n)
    assert one.project.operate("snapshots", "create")["made"] == [1]
    produce(one, interleaved(poisoned(n), good[n : 2 * n]))
    committed(one, 3 * n)
    one.project.logged("event=drift")
    done = one.project.operate(
        "restore", "--before-drift", "--rewind", "--skip-source", "mallory", "--yes"
    )
    assert (done["kind"], done["version"]) == ("rewind", 1)
    assert [shard["state"] for shard in done["shards"]] == ["done"] * partitions
    produce(one, good[2 * n :])
    committed(one, 4 * n)
    assert stop(process)[0] == 0
    summary = one.project.run()
    produce(calm, good)
    assert summary["digest"] == calm.project.run()["digest"]
    one.published_once(good + poisoned(n))
    assert summary["digest"] == fold(one.kafka, one.project.config).digest


@pytest.mark.slow
def test_a_restore_while_two_shards_of_three_run(topics):
    """It takes effect there, that is said, and at the third at its next start."""
    one = topics("one", config=f"---{VERSIONS}")
    one.produce(events(3_000))
    one.project.run()
    others = one.project.running("--host", "1/3"), one.project.running("--host", "2/3")
    done = one.project.operate("restore", "1", "--yes")
    assert [s["state"] for s in done["shards"]] == ["done", "done", "pending"]
    said = one.project.call("restore", "1", "--yes", "--config", "config.toml").stdout
    assert "not running: shards 002; there it will take effect at the next start" in said
    for process in others:
        stop(process)
    summary = one.project.run()
    commands = one.project.operate("history")
    for shard in ("000", "001", "002"):
        kinds = [d["command"]["kind"] for d in commands if d["shard"] == shard]
        assert kinds.count("restore") == 2
    expected = fold(one.kafka, one.project.config)
    assert (summary["digest"], published(one)) == (expected.digest, expected[2:])


@pytest.mark.slow
def test_a_rewind_into_what_retention_has_deleted_is_refused(topics):
    """By the command, and by the shard if it is too late for the command; nothing is changed."""
    one = topics("one", partitions=1, config=f"---{VERSIONS}")
    one.produce(events(1_000), partitions=1)
    one.project.run()
    one.produce(events(2_000)[1_000:], partitions=1)
    digest = one.project.run()["digest"]
    one.project.operate("restore", "1", "--rewind", "--yes")  # nobody runs yet
    admin = one.kafka.admin()
    for future in admin.delete_records([TopicPartition(one.source, 0, 1_500)]).values():
        future.result(20)
    refusal = one.project.refused("restore", "1", "--rewind", "--yes")
    assert "the input begins at 1500 now, and 1000 is needed" in refusal
    assert one.project.run()["digest"] == digest
    refused, after = [
        d["command"]["refused"] for d in one.project.operate("history") if "refused" in d["command"]
    ]
    assert "1000 to 1499 of it is not there any more" in refused
    assert "after a command that was refused" in after, "no version says that it was done"
    (shard,) = one.project.operate("promote", "1", "--yes")["shards"]
    assert shard["state"] == "pending"
    assert one.project.run()["seen"] < 2_000
    promoted = [d for d in one.project.operate("history") if d["command"]["kind"] == "promote"]
    assert promoted[-1]["command"]["left"], "what could not be relearned is reported"


@pytest.mark.slow
def test_a_restore_while_events_come_loses_none(topics):
    """At some thousand a second: it takes effect between two batches, each is predicted once."""
    one = topics("one", config=f"---{VERSIONS}")
    lines = events(30_000)
    one.produce(lines[:3_000])
    process = one.project.running("--processes", "2")
    one.project.operate("snapshots", "create")  # which does not wait for who is not there yet
    wait_for(lambda: one.project.operate("snapshots", "list"), what="version 1")

    def feed():
        for at in range(3_000, 30_000, 500):
            one.produce(lines[at : at + 500])
            time.sleep(0.1)

    feeder = threading.Thread(target=feed)
    feeder.start()
    for command in (["restore", "1"], ["promote", "1"], ["restore", "1", "--rewind"], ["rollback"]):
        done = one.project.operate(*command, "--yes")
        assert [s["state"] for s in done["shards"]] == ["done"] * 3, done
    feeder.join()
    committed(one, 30_000)
    assert stop(process)[0] == 0
    summary = one.project.run()
    one.published_once(lines)
    expected = fold(one.kafka, one.project.config)
    assert (summary["digest"], published(one)) == (expected.digest, expected[2:])


@pytest.mark.slow
def test_a_lost_state_folder_is_rebuilt_with_its_versions(topics):
    """From the journal: the versions that its commands name are made again as they were."""
    one = topics("one", config=f"---{VERSIONS}")
    lines = events(6_000)
    one.produce(lines[:3_000])
    one.project.run()
    one.produce(lines[3_000:])
    process = one.project.running()
    one.project.operate(
        "restore", "1", "--rewind", "--skip-range", f"{one.source}:0:10-50", "--yes"
    )
    one.project.operate("promote", "1", "--yes")
    assert stop(process)[0] == 0
    before = one.project.run()
    versions = one.project.operate("snapshots", "list")
    shutil.rmtree(one.project.folder / "state")
    assert one.project.run()["digest"] == before["digest"]
    again = one.project.operate("snapshots", "list")
    assert [(v["version"], v["metrics"]) for v in again] == [
        (v["version"], v["metrics"]) for v in versions
    ]
    kinds = [d["command"]["kind"] for d in one.project.operate("history") if d["shard"] == "000"]
    assert {"start", "snapshot", "rewind", "promote"} <= set(kinds)


@pytest.mark.slow
def test_hosts_share_a_registry_in_postgresql_and_artifacts_in_s3(
    topics, postgres_url, s3_url, tmp_path
):
    """Each host has a state folder of its own; a version is of the shards of both."""
    shared = f'registry = "{postgres_url}"\nartifacts = "{s3_url}"\n'
    one = topics("one", partitions=2, config=f"---{VERSIONS}{shared}")
    one.produce(events(2_000), partitions=2)
    other = Project(tmp_path / "other")
    other.config.write_text(one.project.config.read_text())
    hosts = one.project.running("--host", "1/2"), other.running("--host", "2/2")
    assert one.project.operate("snapshots", "create")["made"] == [1]
    one.produce(events(3_000)[2_000:], partitions=2)
    committed(one, 3_000)
    done = other.operate("restore", "1", "--yes")
    assert [s["state"] for s in done["shards"]] == ["done", "done"]
    for process in hosts:
        assert stop(process)[0] == 0
    assert other.operate("snapshots", "verify")["1"] == []
    digests = one.project.run("--host", "1/2")["digest"] | other.run("--host", "2/2")["digest"]
    assert digests == fold(one.kafka, one.project.config).digest


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("moments", "seed"), [(4, 1), (25, 2), (25, 3)])
def test_processes_and_commands_killed_at_any_moment(topics, moments, seed):
    """The registry stays consistent, and every command that was given is carried out once."""
    one = topics("one", config=f"---{VERSIONS}every_seconds = 2\nkeep = 5\nkeep_days = 0\n")
    lines = events(400 * moments)
    rng = random.Random(seed)
    victim = one.project.running("--processes", "2", until="event=running")
    commands = (
        ["snapshots", "create"],
        ["restore", "NEWEST", "--yes"],
        ["promote", "NEWEST", "--yes"],
        ["restore", "NEWEST", "--rewind", "--yes"],
        ["rollback", "--yes"],
        ["snapshots", "prune", "--yes", "--keep", "2"],
    )
    one.produce(lines[:400])
    one.project.operate("snapshots", "create")
    for moment in range(1, moments):
        one.produce(lines[400 * moment : 400 * (moment + 1)])
        newest = one.project.operate("snapshots", "list")[-1]["version"]
        command = [a.replace("NEWEST", str(newest)) for a in commands[moment % len(commands)]]
        operator = one.project.start(*command, "--config", "config.toml", "--timeout", "20")
        time.sleep(rng.uniform(0.0, 0.7))  # longer than most commands take
        which = rng.choice(["processor", "operator", "both"])
        if which != "operator":
            pids = [line for line in log_of(one).split() if line.startswith("pid=")][-2:]
            kill(rng.choice(pids).removeprefix("pid="))
        if which != "processor":
            operator.kill()
        operator.communicate(timeout=PATIENCE)
        check_registry(one)
    assert victim.poll() is None, "the supervisor gave up"
    committed(one, len(lines))
    assert stop(victim)[0] == 0
    summary = one.project.run()
    one.published_once(lines)
    expected = fold(one.kafka, one.project.config)
    assert (summary["digest"], published(one)) == (expected.digest, expected[2:])
    check_registry(one)
    check_commands(one)
    check_history(one)


def log_of(topics):
    return (topics.project.folder / "log").read_text()


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)


def check_registry(topics):
    """Every version that is listed is whole and sound."""
    found = topics.project.operate("snapshots", "verify")
    assert all(problems == [] for problems in found.values()), found


def check_commands(topics):
    """Each command is once in the history of each shard, in order, as the journal has them."""
    history = topics.project.operate("history")
    for shard in ("000", "001", "002"):
        mine = [d for d in history if d["shard"] == shard]
        ids = [d["command"]["id"] for d in sorted(mine, key=lambda d: d["seq"])]
        assert ids == sorted(set(ids)), "a command was carried out twice, or out of order"
        assert all(d.get("done_at") is not None for d in mine), "one has not taken effect"
    each = {
        frozenset(d["command"]["id"] for d in history if d["shard"] == shard)
        for shard in ("000", "001", "002")
    }
    assert len(each) == 1, "shards carried out different commands"


def check_history(topics):
    """What `history` says is live now is what new predictions are made by."""
    more = [{**event, "id": f"more-{i}"} for i, event in enumerate(events(30, seed=9))]
    topics.produce(more)
    topics.project.run()
    live = topics.project.operate("history", "--at", str(time.time()))["shards"]
    said = {f"{p['origin'][1]:03d}": p["version"] for p in topics.out("predictions")}
    assert {shard: found["version"] for shard, found in live.items()} == said
