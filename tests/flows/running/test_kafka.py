"""Kafka in and out, on a real broker: nothing is lost, and nothing learned or published twice."""

import json
import os
import random
import shutil
import subprocess
import time

import pytest
from confluent_kafka import TopicPartition
from project import PATIENCE, Project, events, stop, wait_for


def test_topics_in_and_out(topics):
    """Every event is learned once and has a prediction; what is no event is rejected, named."""
    one = topics("one")
    lines = events(3_000)
    one.produce([*lines, b'{"x"', None, b" ", b'{"x":{"f0":1,\n"f1":2},"y":true,"id":"pretty"}'])
    summary = one.project.run()
    assert summary["learned"] == 3_001
    assert summary["rejected"] == 3
    assert sorted(summary["digest"]) == ["000", "001", "002"]
    one.published_once([*lines, {"id": "pretty"}])
    rejected = {tuple(r["origin"]): r["reason"] for r in one.out("rejected")}
    assert set(rejected) == {(one.source, 0, 1000), (one.source, 1, 1000), (one.source, 2, 1000)}
    assert "tombstone" in rejected[one.source, 1, 1000]
    first = next(p for p in one.out("predictions") if p["id"] == "e0")
    assert first["origin"] == [one.source, 0, 0]
    assert first["ts"] is not None, "the message's time"
    again = one.project.run()
    assert (again["learned"], again["digest"]) == (0, summary["digest"])


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["partition", "1"])
def test_a_lost_state_folder_is_rebuilt_from_the_journal(topics, shards):
    """With the same digest, and nothing is published again."""
    quoted = shards if shards == "1" else f'"{shards}"'
    one = topics("one", config=f"shards = {quoted}")
    lines = events(9_000)
    one.produce(lines[:5_000])
    one.project.run()
    one.produce(lines[5_000:])
    expected = one.project.run()
    shutil.rmtree(one.project.folder / "state")
    rebuilt = one.project.run()
    assert rebuilt["digest"] == expected["digest"]
    assert rebuilt["metrics"] == expected["metrics"]
    assert rebuilt["learned"] == 0
    one.published_once(lines)


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["partition", "1"])
def test_killed_at_random_moments(topics, shards):
    """State is the fold of the journal; every prediction is published once."""
    quoted = shards if shards == "1" else f'"{shards}"'
    one = topics("one", config=f"shards = {quoted}")
    lines = events(60_000)
    one.produce(lines)
    rng = random.Random(os.environ.get("MIDSTREAM_KILL_SEED", "5") + shards)
    one.killed(int(os.environ.get("MIDSTREAM_KILLS", "6")), rng, "--json")
    got = one.project.run()
    one.published_once(lines)
    assert got["seen"] == len(lines)
    shutil.rmtree(one.project.folder / "state")
    folded = one.project.run()
    assert (folded["digest"], folded["metrics"]) == (got["digest"], got["metrics"])
    if shards == "partition":  # then the journal had no choice
        calm = topics("calm", source=one.source)
        assert calm.project.run()["digest"] == got["digest"]


def test_a_newer_run_on_the_same_outputs_shuts_out_the_older(topics, tmp_path):
    """The older one stops by itself, and says so."""
    one = topics("one", partitions=1)
    one.produce(events(100), partitions=1)
    older = one.project.start("run", "config.toml")
    for line in older.stderr:
        if "caught_up" in line:
            break
    shutil.copytree(one.project.folder, tmp_path / "twin", ignore=shutil.ignore_patterns("state"))
    twin = Project(tmp_path / "twin")
    twin.config.write_text(one.project.config.read_text())
    newer = twin.start("run", "config.toml")
    for line in newer.stderr:
        if "caught_up" in line:
            break
    more = [{**event, "id": f"m{event['id']}"} for event in events(50)]
    one.produce(more, partitions=1)
    _, err = older.communicate(timeout=PATIENCE)
    assert older.returncode == 1
    assert "another run has taken over" in err
    one.until_published(150)
    assert stop(newer)[0] == 0
    one.published_once([*events(100), *more])


def test_topics_are_made_and_checked(topics):
    """`check` says what is missing and what is read; `init-topics` makes what is not there."""
    one = topics("one", made=False)
    one.produce(events(10))
    checked = one.project.call("check", "config.toml")
    assert checked.returncode != 0
    assert "init-topics" in checked.stdout
    done = one.project.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    assert "init-topics" in done.stderr.splitlines()[-1]
    made = json.loads(one.project.call("init-topics", "config.toml", "--json").stdout)
    assert made == {one.source: "was there"} | dict.fromkeys(one.names.values(), "created")
    again = json.loads(one.project.call("init-topics", "config.toml", "--json").stdout)
    assert set(again.values()) == {"was there"}
    checked = one.project.call("check", "config.toml")
    assert checked.returncode == 0, checked.stdout
    assert "3 partitions" in checked.stdout
    assert one.project.run()["learned"] == 10
    evaluated = json.loads(one.project.call("evaluate", "config.toml", "--json").stdout)
    assert evaluated["learned"] == 10


def test_no_broker_is_a_clear_error(topics):
    """Within the time that the config gives, and the exit code is not 0."""
    one = topics("one")
    text = one.project.config.read_text()
    text = text.replace(one.kafka.bootstrap, "127.0.0.1:1").replace("= 20", "= 1")
    one.project.config.write_text(text)
    done = one.project.call("run", "config.toml", "--until-eof")
    assert done.returncode != 0
    assert "no answer within 1 s" in done.stderr.splitlines()[-1]


def test_a_topic_that_is_not_there_is_named(topics):
    """Also one of the outputs."""
    one = topics("one", source="nowhere")
    done = one.project.call("run", "config.toml", "--until-eof")
    assert done.returncode != 0
    assert "nowhere" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("on_lost", ["stop", pytest.param("skip", marks=pytest.mark.slow)])
def test_messages_that_were_deleted_before_they_were_read(topics, on_lost):
    """An error that names them, or, if the config says so, a warning that does."""
    one = topics("one", partitions=1, config=f'on_lost = "{on_lost}"')
    lines = events(300)
    one.produce(lines[:100], partitions=1)
    one.project.run()
    one.produce(lines[100:], partitions=1)
    admin, upto = one.kafka.admin(), TopicPartition(one.source, 0, 150)
    admin.delete_records([upto])[upto].result(30)
    done = one.project.call("run", "config.toml", "--until-eof", "--json")
    if on_lost == "stop":
        assert done.returncode == 1
        assert "offsets 100 to 149 were deleted" in done.stderr.splitlines()[-1]
        return
    assert done.returncode == 0
    assert "event=input_lost" in done.stderr
    assert json.loads(done.stdout)["learned"] == 150
    shutil.rmtree(one.project.folder / "state")
    done = one.project.call("run", "config.toml", "--until-eof", "--json")
    assert done.returncode == 1, "it cannot be rebuilt without them"


def test_start_latest_is_kept_over_a_crash_before_the_first_event(topics):
    """Where reading began is in the journal."""
    one = topics("one", partitions=1, config='start = "latest"')
    one.produce(events(100), partitions=1)
    process = one.project.start("run", "config.toml")
    for line in process.stderr:
        if "caught_up" in line:
            break
    process.kill()
    process.communicate()
    shutil.rmtree(one.project.folder / "state", ignore_errors=True)
    more = [{**event, "id": f"m{event['id']}"} for event in events(50)]
    one.produce(more, partitions=1)
    assert one.project.run()["learned"] == 50
    one.published_once(more)


def test_start_at_a_time(topics):
    """The first message that is not older."""
    one = topics("one", partitions=1)
    one.produce(events(100), partitions=1)
    time.sleep(0.1)
    moment = time.time()
    time.sleep(0.1)
    one.produce([{**event, "id": f"m{event['id']}"} for event in events(50)], partitions=1)
    text = one.project.config.read_text().replace("wait_seconds", f"start = {moment}\nwait_seconds")
    one.project.config.write_text(text)
    assert one.project.run()["learned"] == 50


def test_an_aborted_transaction_in_the_input_is_not_read(topics):
    """Nor does it stop the reading."""
    one = topics("one", partitions=1)
    values = [(None, json.dumps(event).encode(), 0) for event in events(30)]
    one.kafka.produce(one.source, values[:10], transactional_id="a")
    one.kafka.produce(one.source, values[10:20], transactional_id="a", abort=True)
    one.kafka.produce(one.source, values[20:], transactional_id="a")
    assert one.project.run()["learned"] == 20


def lagging(one):
    """By partition, what is learned of it as the group was told, and where it ends."""
    told = one.kafka.committed(one.project.config.stem, one.source)
    ends = one.kafka.ends(one.source)
    return {index: (told.get(index), end) for index, end in ends.items() if told.get(index) != end}


def transaction(one, lines, partition, *, abort=False):
    values = [(None, json.dumps(event).encode(), partition) for event in lines]
    one.kafka.produce(one.source, values, transactional_id="producer", abort=abort)


def test_nothing_lags_where_all_is_read(topics):
    """Also past the ends of transactions, committed or aborted, and where there is nothing else."""
    one = topics("one", partitions=4)
    lines = events(40)
    transaction(one, lines[:5], 0, abort=True)
    transaction(one, lines[:10], 0)
    transaction(one, lines[10:20], 1)
    transaction(one, lines[20:25], 1, abort=True)
    transaction(one, lines[20:25], 2, abort=True)
    assert one.project.run()["learned"] == 20
    assert lagging(one) == {}
    transaction(one, lines[25:30], 3, abort=True)
    transaction(one, lines[30:40], 0)
    one.produce(lines[20:21], partitions=1)
    assert one.project.run()["learned"] == 11
    assert lagging(one) == {}
    one.published_once([*lines[:21], *lines[30:]])


@pytest.mark.parametrize("shards", ['"partition"', "1"])
def test_what_is_followed_does_not_lag(topics, shards):
    """It is told as it comes, also where what comes is nothing but an aborted transaction."""
    one = topics("one", partitions=2, config=f"shards = {shards}")
    run = one.project.running()
    lines = events(60)
    try:
        for i in range(3):
            part = lines[20 * i : 20 * i + 20]
            transaction(one, part, 0)
            wait_for(lambda n=i: len(one.out("predictions")) == 20 * n + 20)
            wait_for(lambda: lagging(one) == {})
            transaction(one, part, i % 2, abort=True)
            wait_for(lambda: lagging(one) == {})
    finally:
        stop(run)
    assert lagging(one) == {}
    one.published_once(lines)


@pytest.mark.slow
def test_nothing_lags_behind_what_compaction_left(topics, kafka, topic):
    """Of keys that come again only the newest is there; the group is told the end all the same."""
    often = {"cleanup.policy": "compact", "segment.ms": 100, "min.cleanable.dirty.ratio": 0.001}
    source = kafka.create_topic(topic("in"), config={**often, "max.compaction.lag.ms": 100})
    one = topics("one", partitions=1, source=source)
    lines = events(300)
    for i in range(0, 300, 50):
        values = [(b"%d" % (n % 7), json.dumps(lines[n]).encode(), 0) for n in range(i, i + 50)]
        kafka.produce(source, values, transactional_id="producer", abort=i == 250)
        time.sleep(0.2)
    wait_for(lambda: len(kafka.read_all(source)) < 100)
    learned = one.project.run()["learned"]
    assert 7 <= learned < 100
    assert lagging(one) == {}


@pytest.mark.slow
def test_the_broker_killed_mid_stream(kafka_own, topics):
    """The run goes on by itself, and all is learned and published once."""
    one = topics("one")
    lines = events(30_000)
    one.produce(lines[:10_000])
    process = one.project.start("run", "config.toml", stderr=subprocess.DEVNULL)
    one.until_published(1_000)
    kafka_own.kill()
    time.sleep(3)
    kafka_own.restart()
    one.produce(lines[10_000:])
    one.until_published(30_000)
    assert stop(process)[0] == 0
    one.published_once(lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('"bootstrap.servers"', '"auto.offset.reset" = "earliest"\n"bootstrap.servers"'),
            "input.start",
        ),
        (('"bootstrap.servers"', '"client.id"'), "bootstrap.servers"),
        (("alarms =", "alarms = true\n#"), "output.alarms"),
        (("commit_seconds = 0.05", "commit_seconds = 6"), "state.commit_seconds"),
    ],
)
def test_configs_that_cannot_be(topics, change, message):
    """Refused before anything is connected to, naming the key."""
    one = topics("one", source="in", made=False)
    one.project.config.write_text(one.project.config.read_text().replace(*change))
    done = one.project.call("run", "config.toml")
    assert done.returncode == 2
    assert message in done.stderr


def test_another_name_is_shut_out_of_the_same_journal(topics, tmp_path):
    """Whoever takes over a journal shuts out who wrote it before, whatever its config is called."""
    one = topics("one", partitions=1)
    one.produce(events(100), partitions=1)
    older = one.project.start("run", "config.toml")
    for line in older.stderr:
        if "caught_up" in line:
            break
    other = Project(tmp_path / "other")
    other.config.write_text('name = "other"\n' + one.project.config.read_text())
    assert other.run()["learned"] == 0
    one.produce([{**event, "id": f"m{event['id']}"} for event in events(50)], partitions=1)
    _, err = older.communicate(timeout=PATIENCE)
    assert older.returncode == 1
    assert "another run has taken over" in err


def test_what_is_a_shard_cannot_change(topics):
    """A model of one partition is none of all."""
    one = topics("one")
    one.produce(events(300))
    one.project.run()
    text = one.project.config.read_text()
    one.project.config.write_text(text.replace("[input]", "[input]\nshards = 1"))
    done = one.project.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    assert "input.shards: one for each partition -> one for all" in done.stderr
    assert len(one.out("predictions")) == 300


@pytest.mark.slow
def test_nor_can_it_the_other_way(topics):
    """Before anything is put out, by any of the processes."""
    one = topics("one", config="shards = 1")
    one.produce(events(300))
    one.project.run()
    text = one.project.config.read_text()
    one.project.config.write_text(text.replace("shards = 1", ""))
    done = one.project.call("run", "config.toml", "--until-eof", "--processes", "2")
    assert done.returncode == 1
    assert "the state of one model for all partitions" in done.stderr
    assert len(one.out("predictions")) == 300


@pytest.mark.slow
def test_a_journal_of_another_input_is_left_alone(topics, kafka, topic):
    """Also by --fresh: it is somebody else's."""
    one = topics("one")
    one.produce(events(300))
    one.project.run()
    other = kafka.create_topic(topic("other"), partitions=3)
    text = one.project.config.read_text()
    one.project.config.write_text(text.replace(one.source, other))
    for more in ([], ["--fresh"]):
        done = one.project.call("run", "config.toml", "--until-eof", *more)
        assert done.returncode == 1
        assert ("of another input" if more else "`name` of its own") in done.stderr
    one.project.config.write_text(text)
    assert one.project.run()["seen"] == 300


@pytest.mark.parametrize("shards", [pytest.param('"partition"', marks=pytest.mark.slow), "1"])
def test_a_new_partition_is_read_from_its_beginning(topics, shards):
    """Wherever the others began: all that is in it came since."""
    one = topics("one", partitions=2, config=f'start = "latest"\nshards = {shards}')
    one.produce(events(100), partitions=2)
    assert one.project.run()["learned"] == 0
    one.kafka.add_partitions(one.source, 3)
    one.project.call("init-topics", "config.toml")
    one.produce(events(30), partitions=3)
    assert one.project.run()["learned"] == 30


@pytest.mark.parametrize(("key", "value"), [("group.idd", "x"), ("security.protocol", "foo")])
def test_what_librdkafka_does_not_take_is_a_config_error(topics, key, value):
    """Named, before anything is begun."""
    one = topics("one", source="in", made=False)
    text = one.project.config.read_text()
    one.project.config.write_text(text.replace("[kafka]", f'[kafka]\n"{key}" = "{value}"'))
    done = one.project.call("run", "config.toml")
    assert done.returncode == 2
    assert key in done.stderr


def test_predictions_keep_the_order_of_their_partition(topics):
    """All of one input partition are in one partition of the output."""
    one = topics("one")
    one.produce(events(3_000))
    one.project.run()
    places = {}
    for message in one.kafka.read_all(one.names["predictions"]):
        _, index, offset = json.loads(message.value)["origin"]
        places.setdefault(index, []).append((message.partition, offset))
    for found in places.values():
        assert len({partition for partition, _ in found}) == 1
        assert found == sorted(found)
