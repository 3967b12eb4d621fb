"""Faults and bad input, on a real broker: what is wrong is said; nothing is lost or repeated."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pyarrow as pa
import pytest
from confluent_kafka import TopicPartition
from kafka_broker import SASL_PASSWORD, SASL_USER
from kafka_topics import Topics
from project import PATIENCE, Project, events, wait_for

AWAY = float(os.environ.get("MIDSTREAM_AWAY_SECONDS", "8"))


class Running:
    """`midstream run` as a process, with its log in a file."""

    def __init__(self, project, *arguments, **popen):
        self.log = project.folder / f"{time.monotonic_ns()}.log"
        with self.log.open("w") as file:
            self.process = project.start(
                "run", "config.toml", *arguments, stdout=subprocess.DEVNULL, stderr=file, **popen
            )

    def says(self, word, times=1):
        """Wait until the log has a word."""

        def said():
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            return self.log.read_text().count(word) >= times

        wait_for(said, what=f"{word!r} in the log")

    def stop(self):
        """Stop it, and check that all is well."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()

    def failed(self):
        """Wait for its end, by an error; return the last line of the log, which says why."""
        assert self.process.wait(PATIENCE) == 1, self.log.read_text()
        log = self.log.read_text()
        assert "Traceback" not in log
        assert "internal error" not in log
        return log.splitlines()[-1]


@pytest.fixture
def start():
    """Starts runs, and kills those that are left at the end."""
    runs = []

    def begin(project, *arguments, **popen):
        runs.append(Running(project, *arguments, **popen))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()


def change(project, old, new):
    """Put something else into a config."""
    text = project.config.read_text()
    assert old in text
    project.config.write_text(text.replace(old, new))


def twin_of(one, folder):
    """Return a project with the same config, and a state folder of its own."""
    twin = Project(folder)
    twin.config.write_text(one.project.config.read_text())
    return twin


def named(lines, prefix):
    """Return events with other ids."""
    return [{**event, "id": f"{prefix}{event['id']}"} for event in lines]


def published(one, number):
    one.until_published(number)


def delete_up_to(one, offset, partition=0):
    """Delete the messages of the input before an offset, as retention does."""
    admin, upto = one.kafka.admin(), TopicPartition(one.source, partition, offset)
    admin.delete_records([upto])[upto].result(30)


# The brokers.


@pytest.fixture(scope="module")
def secured(new_kafka):
    with new_kafka(secure=True) as cluster:
        yield cluster


@pytest.fixture
def locked(secured, topic, tmp_path, monkeypatch):
    """A project that needs a password, which the environment has."""
    one = Topics(secured, topic, tmp_path / "one", partitions=1)
    change(
        one.project,
        f'"bootstrap.servers" = "{secured.bootstrap}"',
        f"""
"bootstrap.servers" = "{secured.sasl_bootstrap}"
"security.protocol" = "SASL_PLAINTEXT"
"sasl.mechanism" = "PLAIN"
"sasl.username" = "{SASL_USER}"
"sasl.password" = "${{THE_PASSWORD}}"
""",
    )
    monkeypatch.setenv("THE_PASSWORD", SASL_PASSWORD)
    return one


def test_a_password_by_the_environment(locked):
    """A cluster that asks for one is used as any other."""
    locked.produce(events(100), partitions=1)
    assert locked.project.run()["learned"] == 100
    locked.published_once(events(100))
    assert locked.project.call("check", "config.toml").returncode == 0


@pytest.mark.parametrize(
    "command", ["run", "check", pytest.param("init-topics", marks=pytest.mark.slow)]
)
def test_a_wrong_password(locked, command, monkeypatch):
    """Said as such in one line, within the time that the config gives; it is never shown."""
    monkeypatch.setenv("THE_PASSWORD", "not-the-password")
    change(locked.project, "wait_seconds = 20", "wait_seconds = 6")
    done = locked.project.call(command, "config.toml")
    assert done.returncode == 1
    output = done.stdout + done.stderr
    line = done.stdout if command == "check" else done.stderr.splitlines()[-1]
    assert "Authentication failed" in line
    assert "6 s" in line
    assert "not-the-password" not in output
    assert "Traceback" not in output


def _protected(cluster, topic, folder, settings):
    """Return a project on a listener of a cluster, with some settings of librdkafka."""
    one = Topics(cluster, topic, folder, partitions=1)
    lines = "".join(f'"{key}" = "{value}"\n' for key, value in settings.items())
    change(one.project, f'"bootstrap.servers" = "{cluster.bootstrap}"\n', lines)
    return one


def _scram(cluster):
    return {
        "bootstrap.servers": cluster.scram_bootstrap,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": SASL_USER,
        "sasl.password": SASL_PASSWORD,
        "ssl.ca.location": cluster.certificates.authority,
    }


def _tls(cluster):
    return {
        "bootstrap.servers": cluster.tls_bootstrap,
        "security.protocol": "SSL",
        "ssl.ca.location": cluster.certificates.authority,
        "ssl.certificate.location": cluster.certificates.client,
        "ssl.key.location": cluster.certificates.client,
    }


@pytest.mark.parametrize(
    "settings", [_tls, pytest.param(_scram, marks=pytest.mark.slow)], ids=["tls", "scram"]
)
def test_a_cluster_with_certificates(secured, topic, tmp_path, settings):
    """Brokers are reached over TLS, with a client's certificate or with SCRAM."""
    one = _protected(secured, topic, tmp_path / "one", settings(secured))
    one.produce(events(100), partitions=1)
    assert one.project.run()["learned"] == 100
    one.published_once(events(100))
    assert one.project.call("check", "config.toml").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "changed", "said"),
    [
        (_tls, {"ssl.ca.location": "other_authority"}, "certificate verify failed"),
        (_tls, {"ssl.certificate.location": None, "ssl.key.location": None}, "no answer within"),
        (_scram, {"ssl.ca.location": "other_authority"}, "certificate verify failed"),
        (_scram, {"sasl.password": "wrong-password"}, "uthentication"),
    ],
)
def test_a_certificate_or_password_that_is_refused(
    secured, topic, tmp_path, settings, changed, said
):
    """`check` and `run` say why, in one line."""
    given = settings(secured)
    for key, value in changed.items():
        if value is None:
            del given[key]
        else:
            given[key] = getattr(secured.certificates, value, value)
    one = _protected(secured, topic, tmp_path / "one", given)
    change(one.project, "wait_seconds = 20", "wait_seconds = 6")
    both = {command: one.project.start(command, "config.toml") for command in ("check", "run")}
    for command, process in both.items():  # at once: each waits as long as the config has it
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert said in (out if command == "check" else err.splitlines()[-1])
        assert "internal error" not in out + err


@pytest.mark.slow
def test_the_broker_is_waited_for_at_the_start(kafka_own, topics, start):
    """With wait_seconds = 0 for as long as it takes."""
    one = topics("one", partitions=1)
    change(one.project, "wait_seconds = 20", "wait_seconds = 0")
    lines = events(200)
    one.produce(lines, partitions=1)
    kafka_own.kill()
    run = start(one.project)
    run.says("kafka_unavailable")
    kafka_own.restart()
    published(one, 200)
    run.stop()
    one.published_once(lines)


@pytest.mark.slow
def test_one_of_three_brokers_killed(kafka3, topic, tmp_path, start):
    """The others take over: nothing is lost and nothing comes twice."""
    one = Topics(kafka3, topic, tmp_path / "one")
    lines = events(20_000)
    one.produce(lines[:10_000])
    run = start(one.project)
    published(one, 1_000)
    kafka3.kill(kafka3.leader(one.names["journal"]))
    one.produce(lines[10_000:])
    published(one, 20_000)
    run.stop()
    one.published_once(lines)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_a_broker_away_for_longer_than_anything_waits(kafka_own, topics, start, how):
    """The run goes on by itself when it is back.

    It is away for longer than a transaction may take, than a request is waited for, and than the
    config has a start wait for brokers.
    """
    one = topics("one")
    change(one.project, "wait_seconds = 20", "wait_seconds = 5")
    settings = '[kafka]\n"transaction.timeout.ms" = 4000\n"socket.timeout.ms" = 4000'
    change(one.project, "[kafka]", settings)
    lines = events(40_000)
    one.produce(lines[:20_000])
    run = start(one.project)
    published(one, 1_000)
    if how == "frozen":
        kafka_own.freeze()
    else:
        kafka_own.kill()
    time.sleep(AWAY)
    if how == "frozen":
        kafka_own.thaw()
    else:
        kafka_own.restart()
    one.produce(lines[20_000:])
    published(one, 40_000)
    run.stop()
    one.published_once(lines)


# Topics that change under us.


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("in", marks=pytest.mark.slow),
        "predictions",
        pytest.param("journal", marks=pytest.mark.slow),
    ],
)
def test_a_topic_deleted_under_us(topics, start, kind):
    """It is named, and the run ends."""
    one = topics("one", partitions=1)
    one.produce(events(100), partitions=1)
    run = start(one.project)
    run.says("caught_up")
    name = one.source if kind == "in" else one.names[kind]
    one.kafka.delete_topic(name)
    if kind != "in":
        one.produce(named(events(100), "m"), partitions=1)
    line = run.failed()
    assert name in line


@pytest.mark.parametrize("journal", ["topic", pytest.param("files", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "seen",
    [
        pytest.param("while it reads", marks=pytest.mark.slow),
        "while it is stopped",
        pytest.param("when it is back", marks=pytest.mark.slow),
    ],
)
def test_a_topic_made_anew_under_us(topics, start, seen, journal):
    """What is in it is not taken for what follows what was learned, though it is long enough."""
    one = topics("one", partitions=1)
    if journal == "files":
        text = one.project.config.read_text()
        head, _, rest = text.partition("[output]")
        one.project.config.write_text(head + rest[rest.index("[kafka]") :])
    one.produce(events(100), partitions=1)
    run = start(one.project)
    run.says("caught_up")
    if seen == "while it is stopped":
        run.process.send_signal(signal.SIGSTOP)
    elif seen == "when it is back":
        run.stop()
    one.kafka.delete_topic(one.source)
    one.kafka.create_topic(one.source)
    one.produce(named(events(200), "m"), partitions=1)
    if seen == "while it is stopped":
        run.process.send_signal(signal.SIGCONT)
    elif seen == "when it is back":
        run = start(one.project)
    says = ["was made anew", "is gone", "another topic of the same name"]
    line = run.failed()
    assert one.source in line
    assert any(word in line for word in says), line
    again = one.project.call("run", "config.toml", "--until-eof")
    assert again.returncode == 1, "it stays so"
    assert any(word in again.stderr.splitlines()[-1] for word in says), again.stderr
    if journal == "topic":
        one.published_once(events(100))
    assert one.project.run("--fresh")["seen"] == 200


@pytest.mark.parametrize("on_lost", ["stop", pytest.param("skip", marks=pytest.mark.slow)])
def test_retention_overtakes_a_run(topics, start, on_lost):
    """What was deleted is named; the run stops, or goes on after it, as the config says."""
    one = topics("one", partitions=1, config=f'on_lost = "{on_lost}"')
    lines = events(300)
    one.produce(lines[:100], partitions=1)
    run = start(one.project)
    run.says("caught_up")
    run.process.send_signal(signal.SIGSTOP)
    one.produce(lines[100:], partitions=1)
    delete_up_to(one, 250)
    run.process.send_signal(signal.SIGCONT)
    if on_lost == "stop":
        line = run.failed()
        assert f"{one.source}-0: offsets " in line
        assert "to 249 were deleted" in line
        return
    published(one, 150)
    run.process.kill()
    run.process.wait()
    log = run.log.read_text()
    assert "event=input_lost" in log
    assert "stop=250" in log
    assert one.project.run()["seen"] == 150, "after a crash, too"
    one.published_once([*lines[:100], *lines[250:]])


def test_what_cannot_be_rebuilt_is_named(topics):
    """The state folder is lost, and so is the first part of the input."""
    one = topics("one", partitions=1)
    one.produce(events(300), partitions=1)
    one.project.run()
    shutil.rmtree(one.project.folder / "state")
    delete_up_to(one, 120)
    done = one.project.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert f"{one.source}-0: offsets 0 to 119 " in line


@pytest.mark.slow
def test_new_partitions(topics, start):
    """Told once each; taken up by a restart, once the journal has room for them."""
    one = topics("one", partitions=2)
    lines = events(400)
    one.produce(lines[:200], partitions=2)
    run = start(one.project)
    run.says("caught_up")
    one.kafka.add_partitions(one.source, 3)
    run.says("input_new")
    one.produce(lines[200:], partitions=3)
    published(one, 330)
    run.stop()
    assert run.log.read_text().count("input_new") == 1
    assert f"{one.source}-2" in run.log.read_text()
    done = one.project.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    assert "init-topics" in done.stderr.splitlines()[-1]
    assert one.names["journal"] in done.stderr.splitlines()[-1]
    assert one.project.call("init-topics", "config.toml").returncode == 0
    assert sorted(one.project.run()["digest"]) == ["000", "001", "002"]
    one.published_once(lines)


# Messages.


def garbage(rng):
    """Return messages that are no events."""
    event = json.dumps(events(1)[0]).encode()
    return [
        *(rng.randbytes(rng.randrange(1, 400)) for _ in range(30)),
        event[: len(event) // 2],
        event.replace(b"f0", b"f\xff"),
        event + event,
        b"\x1f\x8b\x08\x00" + rng.randbytes(60),
        b"\xff\xff\xff\xff" + rng.randbytes(60),
        b"\xff\xff\xff\xff",
        b"\0" * 100,
        b"[" * 100_000,
        b'{"x":' * 10_000,
        b"null",
        b"[]",
        b"\n\n",
        b"\xef\xbb\xbf",
    ]


def test_malformed_and_binary_messages(topics):
    """Each is rejected, with where it was; the events around them are learned."""
    one = topics("one", partitions=1)
    rng = random.Random(7)
    bad, good = garbage(rng), events(200)
    mixed = [*bad, *good]
    rng.shuffle(mixed)
    one.produce(mixed, partitions=1)
    summary = one.project.run()
    assert summary["learned"] == len(good)
    one.published_once(good)
    places = [i for i, value in enumerate(mixed) if isinstance(value, bytes)]
    rejected = one.out("rejected")
    assert sorted(r["origin"] for r in rejected) == [[one.source, 0, i] for i in places]
    assert all(r["reason"] for r in rejected)


def test_a_message_longer_than_the_limit(topics):
    """It is rejected with its length and the limit; its neighbours are learned."""
    one = topics("one", partitions=1, config="max_record_bytes = 2048")
    lines = events(10)
    long = {**lines[5], "id": "x" * 3_000}
    one.produce([*lines[:5], long, *lines[6:]], partitions=1)
    assert one.project.run()["learned"] == 9
    (rejected,) = one.out("rejected")
    assert rejected["origin"] == [one.source, 0, 5]
    assert "2,048" in rejected["reason"]


@pytest.mark.parametrize("whose", [pytest.param("client", marks=pytest.mark.slow), "broker"])
def test_a_prediction_longer_than_a_topic_takes(topics, whose):
    """The topic is named, and what has to be raised; then the run goes on where it was."""
    one = topics("one", partitions=1)
    long = {**events(1)[0], "id": random.Random(3).randbytes(5_000).hex()}
    if whose == "client":
        change(one.project, "[kafka]", '[kafka]\n"message.max.bytes" = 6000')
    else:
        one.kafka.configure_topic(one.names["predictions"], {"max.message.bytes": 6000})
    lines = [*events(10), long, *named(events(10), "m")]
    one.produce(lines, partitions=1)
    done = one.project.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert one.names["predictions"] in line
    assert "max.message.bytes" in line
    if whose == "client":
        change(one.project, '"message.max.bytes" = 6000', '"message.max.bytes" = 20000')
    else:
        one.kafka.configure_topic(one.names["predictions"], {"max.message.bytes": 20_000})
    assert one.project.run()["seen"] == 21
    one.published_once(lines)


MODEL_THAT_RAISES = """
from river import linear_model

class Picky(linear_model.LogisticRegression):
    def learn_one(self, x, y, w=1.0):
        if x.get("f0") == 13.0:
            raise ValueError("no " * 1_000_000)
        super().learn_one(x, y, w)

def make():
    return Picky()
"""


def test_what_is_rejected_is_not_longer_than_a_topic_takes(topics):
    """Names, ids and what a learner says are cut where they are very long."""
    one = topics("one", partitions=1)
    (one.project.folder / "models.py").write_text(MODEL_THAT_RAISES)
    change(one.project, '"logistic"', '"models:make"\non_error = "reject"')
    good = events(10)
    bad = [
        {"id": "a", "x": {"f" * 900_000: 1}, "y": True},
        {"id": "b", "x": {"f0": "1" * 900_000}, "y": True},
        {"id": "c", "x": {"f0": 1}, "y": "y" * 900_000},
        {"id": "d", "x": {"f0": 13.0}, "y": True},
    ]
    one.produce([*good, *bad], partitions=1)
    summary = one.project.run()
    assert (summary["learned"], summary["rejected"]) == (10, 4)
    rejected = one.out("rejected")
    assert sorted(r["origin"][2] for r in rejected) == [10, 11, 12, 13]
    assert all(len(json.dumps(r)) < 10_000 for r in rejected)
    one.published_once(good)


def arrow(rows, **columns):
    """Return a message that holds a table."""
    x = [event["x"] for event in rows]
    table = pa.table({"x": x, "y": [event["y"] for event in rows], **columns})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


PICKY = """
from river import linear_model

class Picky(linear_model.LogisticRegression):
    def learn_one(self, x, y, w=1.0):
        if x["f0"] == 13.0:
            raise ValueError("no thirteen")
        super().learn_one(x, y, w)

def make():
    return Picky()
"""


@pytest.mark.slow
def test_rows_of_one_message_are_told_apart(topics):
    """Only the rows that a learner raises on are left out, also when all is learned again."""
    one = topics("one", partitions=1)
    (one.project.folder / "models.py").write_text(PICKY)
    change(one.project, '"logistic"', '"models:make"\non_error = "reject"')
    many = events(30)
    for row in (3, 4, 20):
        many[row]["x"]["f0"] = 13.0
    many[7]["x"]["f0"] = float("inf")
    own = [event["id"] for event in named(events(5), "m")]
    one.produce([events(1)[0], arrow(many), arrow(events(5), id=own)], partitions=1)
    summary = one.project.run()
    assert (summary["learned"], summary["rejected"]) == (1 + 26 + 5, 4)
    left = [row for row in range(30) if row not in (3, 4, 7, 20)]
    made = [f"{one.source}-0-1-{row}" for row in left]
    predictions = {p["id"]: p for p in one.out("predictions")}
    assert sorted(predictions) == sorted(["e0", *made, *own])
    assert [predictions[name]["origin"] for name in made] == [[one.source, 0, 1]] * 26
    assert all(p["ts"] for p in predictions.values()), "the message's time"
    rejected = {r["path"]: r for r in one.out("rejected")}
    assert sorted(rejected) == ["row 20", "row 3", "row 4", "row 7: $.x.f0"]
    assert all(r["origin"] == [one.source, 0, 1] for r in rejected.values())
    assert "no thirteen" in rejected["row 20"]["reason"]
    shutil.rmtree(one.project.folder / "state")
    assert one.project.run()["digest"] == summary["digest"]


# Two runs at once.


@pytest.mark.slow
def test_two_runs_on_one_state_folder(topics, start):
    """The second is refused in one line; the first goes on."""
    one = topics("one", partitions=1)
    lines = events(100)
    one.produce(lines, partitions=1)
    run = start(one.project)
    run.says("caught_up")
    second = one.project.call("run", "config.toml")
    assert second.returncode == 1
    line = second.stderr.splitlines()[-1]
    assert "another run holds this state" in line
    assert str(run.process.pid) in line
    more = named(lines, "m")
    one.produce(more, partitions=1)
    published(one, 200)
    run.stop()
    one.published_once([*lines, *more])


@pytest.mark.parametrize("busy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_frozen_run_is_replaced_and_thawed(topics, start, tmp_path, busy):
    """It is shut out, says so, and ends; all is published once."""
    one = topics("one")
    lines = events(12_000)
    one.produce(lines[:2_000])
    older = start(one.project)
    older.says("caught_up")
    if busy:
        one.produce(lines[2_000:8_000])
    older.process.send_signal(signal.SIGSTOP)
    newer = start(twin_of(one, tmp_path / "twin"))
    newer.says("caught_up")
    older.process.send_signal(signal.SIGCONT)
    one.produce(lines[8_000:] if busy else lines[2_000:])
    assert "another run has taken over" in older.failed()
    published(one, 12_000)
    newer.stop()
    one.published_once(lines)


@pytest.mark.slow
def test_a_run_frozen_for_longer_than_a_transaction_may_take(topics, start):
    """It was not replaced, so it goes on by itself."""
    one = topics("one")
    change(one.project, "[kafka]", '[kafka]\n"transaction.timeout.ms" = 2000')
    change(one.project, "commit_seconds = 0.05", "commit_seconds = 0.5")
    lines = events(45_000)
    run = start(one.project)
    run.says("event=running")
    for i in range(3):  # at least once in the middle of a transaction
        one.produce(lines[i * 15_000 : (i + 1) * 15_000])
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        run.process.send_signal(signal.SIGCONT)
        published(one, (i + 1) * 15_000)
    run.stop()
    one.published_once(lines)
