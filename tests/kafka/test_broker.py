"""The Kafka that the tests run on does what they rely on."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kafka_jars
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from kafka_broker import SASL_PASSWORD, SASL_USER
from kafka_client import Kafka
from kafka_jars import BrokerError
from project import PATIENCE, wait_for

SUPPORT = Path(__file__).parents[1] / "support"


def numbered(start: int, stop: int, partitions: int = 1):
    return [(None, str(i), i % partitions) for i in range(start, stop)]


def values(messages) -> list[int]:
    return [int(message.value) for message in messages]


def test_messages_come_back_as_they_went(kafka, topic):
    """Key, value, headers and partition are kept; an empty value is not a missing one."""
    name = kafka.create_topic(topic(), partitions=2)
    sent = [("k", b"\x00\xff", 1, [("trace", b"7")]), (None, b"", 0), ("gone", None, 0)]
    assert kafka.produce(name, sent) == 3
    read = kafka.read_all(name)
    assert [(m.key, m.value, m.partition, m.headers) for m in read] == [
        (None, b"", 0, []),
        (b"gone", None, 0, []),
        (b"k", b"\x00\xff", 1, [("trace", b"7")]),
    ]
    assert [m.offset for m in read] == [0, 1, 0]


def test_an_aborted_transaction_is_seen_only_uncommitted(kafka, topic):
    """Read committed, a topic holds what was committed, all of it at once after the commit."""
    name = kafka.create_topic(topic(), partitions=3)
    kafka.produce(name, numbered(0, 30, 3), transactional_id=name)
    kafka.produce(name, numbered(30, 60, 3), transactional_id=name, abort=True)
    kafka.produce(name, numbered(60, 90, 3), transactional_id=name)
    assert sorted(values(kafka.read_all(name))) == [*range(30), *range(60, 90)]
    assert sorted(values(kafka.read_all(name, read_committed=False))) == [*range(90)]


def test_topics_come_and_go(kafka, topic):
    """A topic exists from its creation to its deletion, with its number of partitions."""
    name = kafka.create_topic(topic("comes-and-goes"), partitions=5)
    assert len(kafka.ends(name)) == 5
    kafka.delete_topic(name)
    assert name not in kafka.topics()


def test_a_topics_config_holds(kafka_own, topic):
    """The broker refuses a message over the size its topic allows."""
    name = kafka_own.create_topic(topic(), config={"max.message.bytes": 2000})
    with pytest.raises(KafkaException) as refused:
        kafka_own.produce(name, [(None, os.urandom(3000), 0)])
    assert refused.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


def test_a_killed_node_keeps_what_it_acknowledged(kafka_own, topic):
    """After SIGKILL and restart: committed and aborted as before, the open transaction aborted."""
    name = kafka_own.create_topic(topic(), partitions=3)
    kafka_own.produce(name, numbered(0, 3000, 3), transactional_id=f"{name}-a")
    kafka_own.produce(name, numbered(3000, 6000, 3), transactional_id=f"{name}-a", abort=True)
    open_one = Producer(
        kafka_own.settings(transactional_id=f"{name}-b", transaction_timeout_ms=2000)
    )
    open_one.init_transactions(30)
    open_one.begin_transaction()
    open_one.produce(name, "9999", partition=0)
    assert open_one.flush(30) == 0
    before = kafka_own.pid()
    kafka_own.kill()
    kafka_own.restart()
    assert kafka_own.pid() != before
    kafka_own.produce(name, numbered(6000, 6003, 3))
    committed = kafka_own.read_all(name, settle=20.0)
    assert sorted(values(committed)) == [*range(3000), *range(6000, 6003)]


def test_a_frozen_node_answers_once_thawed(kafka_own, topic):
    """While frozen it acknowledges nothing; thawed, it goes on as if nothing had been."""
    name = kafka_own.create_topic(topic())
    kafka_own.freeze()
    with pytest.raises((KafkaException, TimeoutError)):
        Kafka(kafka_own.bootstrap, timeout=1.5).produce(name, numbered(0, 1))
    kafka_own.thaw()
    kafka_own.produce(name, numbered(1, 2))
    assert values(kafka_own.read_all(name))[-1] == 1


@pytest.mark.slow
def test_three_nodes_lose_nothing_to_the_kill_of_one(kafka3, topic):
    """What is acknowledged by all while the leader is killed is there, once and in order."""
    name = kafka3.create_topic(topic(), partitions=3)
    killed = kafka3.leader(name)
    with ThreadPoolExecutor(1) as beside:

        def made():
            for i in range(60_000):
                if i == 20_000:
                    kafka3.kill(killed)
                yield None, str(i), i % 3

        assert beside.submit(kafka3.produce, name, made()).result(PATIENCE) == 60_000
    assert kafka3.leader(name) not in {killed, -1}
    by_partition = {p: [*range(p, 60_000, 3)] for p in range(3)}
    read = kafka3.read_all(name)
    assert {p: values(m for m in read if m.partition == p) for p in range(3)} == by_partition
    kafka3.restart(killed)
    kafka3.kill(kafka3.leader(name))
    assert len(kafka3.read_all(name)) == 60_000


def test_only_the_right_password_is_let_in(new_kafka, tmp_path):
    """The listener with SASL/PLAIN answers its user, and refuses a wrong password."""
    with new_kafka(folder=tmp_path / "kafka", secure=True) as cluster:
        given = {
            "bootstrap.servers": cluster.sasl_bootstrap,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": SASL_USER,
            "log_level": 0,
        }
        right = AdminClient({**given, "sasl.password": SASL_PASSWORD})
        assert 1 in right.list_topics(timeout=30).brokers
        errors = []
        wrong = AdminClient({**given, "sasl.password": "x", "error_cb": errors.append})
        with pytest.raises(KafkaException):
            wrong.list_topics(timeout=0.5)
        wait_for(lambda: wrong.poll(0.1) or errors, what="an error")
        assert {error.code() for error in errors} <= {
            KafkaError._AUTHENTICATION, KafkaError._ALL_BROKERS_DOWN
        }  # fmt: skip
    assert (tmp_path / "kafka" / "node-1" / "meta.properties").exists()  # a folder given is kept


def test_a_node_that_cannot_start_says_why(new_kafka):
    """The error holds the end of the node's log."""
    with pytest.raises(BrokerError, match=r"num\.io\.threads"):
        new_kafka(properties={"num.io.threads": "many"}).__enter__()


def test_nothing_is_left_when_the_test_process_is_killed(new_kafka):
    """After SIGKILL of the process that started it, even a frozen node is gone, and its folder."""
    code = """
import time
from kafka_broker import Cluster
with Cluster() as cluster:
    cluster.freeze()
    print(cluster.pid(), cluster.folder, flush=True)
    time.sleep(600)
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONPATH=str(SUPPORT)),
    )  # fmt: skip
    with starter:
        pid, folder = starter.stdout.readline().split()
        assert Path("/proc", pid).exists()
        assert Path(folder).is_dir()
        starter.kill()
    wait_for(lambda: not Path("/proc", pid).exists(), what="the end of the node")
    wait_for(lambda: not Path(folder).exists(), what="the removal of its folder")


def test_the_jars_are_fetched_once(tmp_path, monkeypatch):
    """Of several processes that need them at once, one fetches; a failure leaves nothing behind."""
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    monkeypatch.setenv("PATH", f"{maven.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MIDSTREAM_KAFKA_CACHE", str(tmp_path / "cache"))
    maven.write_text("#!/bin/sh\necho no network; exit 1\n")
    maven.chmod(0o755)
    with pytest.raises(BrokerError, match="no network"):
        kafka_jars.jars()
    assert not kafka_jars.cached().exists()
    maven.write_text(
        f"#!/bin/sh\necho fetched >> {tmp_path}/calls\nsleep 0.3\n"
        'for last; do :; done\nmkdir "${last#-DoutputDirectory=}"\n'
    )
    fetch = [sys.executable, "-c", "import kafka_jars; print(kafka_jars.jars())"]
    env = dict(os.environ, PYTHONPATH=str(SUPPORT))
    both = [subprocess.Popen(fetch, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=PATIENCE)[0].strip() for process in both}
    assert told == {str(tmp_path / "cache" / kafka_jars.VERSION)}
    assert (tmp_path / "calls").read_text() == "fetched\n"


@pytest.mark.parametrize(
    ("setting", "passed", "skipped"),
    [
        ({"MIDSTREAM_TEST_BOOTSTRAP": "127.0.0.1:1"}, 0, 1),
        ({"MIDSTREAM_TEST_KAFKA": "none"}, 0, 2),
        ({"MIDSTREAM_TEST_KAFKA": "noida"}, 1, 1),
    ],
    ids=["given", "none", "noida"],
)
def test_the_last_lines_say_what_could_not_run(setting, passed, skipped):
    """Without an Apache Kafka of their own, tests that break it are skipped and named."""
    names = ["an_aborted_transaction_is_seen_only_uncommitted", "a_topics_config_holds"]
    chosen = names[1:] if "MIDSTREAM_TEST_BOOTSTRAP" in setting else names
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MIDSTREAM_TEST", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         *(f"tests/kafka/test_broker.py::test_{name}" for name in chosen)],
        cwd=SUPPORT.parents[1], env={**env, **setting}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{skipped} tests could not run" in done.stdout
    assert ("1 tests ran on noida-db" in done.stdout) == bool(passed)
    assert f"  tests/kafka/test_broker.py::test_{names[1]}\n" in done.stdout
