"""The simulated Kafka answers as the real one does: both are asked the same."""

import random
import time

import confluent_kafka
import pytest
from confluent_kafka import KafkaException, TopicPartition
from kafka_simulation import Cluster
from project import wait_for

from midstream.connectors.kafka import consumer as connector


class Real:
    """Clients of an Apache Kafka."""

    def __init__(self, kafka, topic):
        self.client = confluent_kafka
        self.topic = kafka.create_topic(topic("a"))
        self.settings = {**kafka.settings(), "log_level": 0}

    def sent(self, producer):
        producer.flush(10)

    def marked(self):
        """Wait for what was ended to be so for readers too, which is a little later."""
        wait_for(lambda: bounds(self, "read_committed") == bounds(self, "read_uncommitted"))


class Simulated:
    """Clients of a simulated one."""

    def __init__(self, cluster):
        self.client = connector.ck
        self.topic = "a"
        self.settings = {}
        self.cluster = cluster
        cluster.rng.random = lambda: 1.0  # nothing is done before it is asked for

    def sent(self, producer):
        producer.send()

    def marked(self):
        for writer in self.cluster.writers.values():
            self.cluster.mark(writer)


def outcome(act, *arguments):
    """Return what a call says: nothing, or the error with what it is."""
    try:
        act(*arguments)
    except KafkaException as raised:
        error = raised.args[0]
        return error.name(), error.fatal(), error.retriable(), error.txn_requires_abort()
    return "done"


def producer(at):
    """Return one that has shut out those before it."""
    new = at.client.Producer(
        {
            **at.settings,
            "enable.idempotence": True,
            "transactional.id": f"{at.topic}-writer",
            "transaction.timeout.ms": 10_000,
        }
    )
    new.init_transactions(30)
    return new


def written(at, values, end):
    """Return a producer that has written a transaction and ended it."""
    one = producer(at)
    transaction(at, one, values)
    ended(at, end(one))
    return one


def ended(at, end):
    end(30)
    at.marked()


def transaction(at, one, values):
    one.begin_transaction()
    for value in values:
        one.produce(at.topic, value, partition=0)
    at.sent(one)


def commits(one):
    return one.commit_transaction


def aborts(one):
    return one.abort_transaction


def consumer(at, isolation):
    return at.client.Consumer(
        {
            **at.settings,
            "group.id": "readers",
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )


def bounds(at, isolation):
    return consumer(at, isolation).get_watermark_offsets(TopicPartition(at.topic, 0), timeout=30)


def read(at, isolation):
    """Return offset and value of each message, and how and where they end."""
    reader = consumer(at, isolation)
    reader.assign([TopicPartition(at.topic, 0, 0)])
    found = []
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        for message in reader.consume(100, 0.1):
            if message.error() is not None:
                reader.close()
                return found, message.error().name(), message.offset()
            found.append((message.offset(), message.value()))
    raise AssertionError("it has no end")


def both(at):
    return [
        (bounds(at, level), read(at, level)) for level in ("read_committed", "read_uncommitted")
    ]


def what_readers_see(at):
    """Markers take up offsets; what is aborted, or not committed yet, is not seen."""
    one = written(at, [b"1", b"2"], commits)
    seen = [both(at)]
    transaction(at, one, [b"3", b"4"])
    seen.append(both(at))
    ended(at, one.abort_transaction)
    transaction(at, one, [b"5"])
    ended(at, one.commit_transaction)
    transaction(at, one, [b"6"])
    seen.append(both(at))
    ended(at, one.commit_transaction)
    one.begin_transaction()
    seen.append(outcome(one.commit_transaction, 30))
    return [*seen, both(at)]


def wrong_order(at):
    """Nothing is written without a transaction, and none is begun within one."""
    one = written(at, [b"1"], commits)
    return [
        outcome(one.produce, at.topic, b"2"),
        outcome(one.commit_transaction, 30),
        outcome(one.begin_transaction),
        outcome(one.begin_transaction),
    ]


def shut_out_when_idle(at):
    """It is told when it writes: by the next poll, and by all that comes then."""
    older = written(at, [b"1"], commits)
    written(at, [b"2"], commits)
    told = [outcome(older.begin_transaction), outcome(older.produce, at.topic, b"3")]
    wait_for(lambda: outcome(older.poll, 0.1) == ("_FENCED", True, False, False))
    return told + rest(at, older)


def shut_out_in_a_transaction(at):
    """What it had written is aborted; its next message is refused."""
    older = written(at, [b"1"], commits)
    transaction(at, older, [b"2"])
    written(at, [b"3"], commits)
    told = [outcome(older.produce, at.topic, b"4")]
    wait_for(lambda: outcome(older.poll, 0.1) == ("_FENCED", True, False, False))
    return told + rest(at, older)


def shut_out_before_its_commit(at):
    """It is told by the commit."""
    older = written(at, [b"1"], commits)
    transaction(at, older, [b"2"])
    written(at, [b"3"], commits)
    return [outcome(older.commit_transaction, 30), *rest(at, older)]


def shut_out_before_its_abort(at):
    """It is told by the abort."""
    older = written(at, [b"1"], commits)
    transaction(at, older, [b"2"])
    written(at, [b"3"], aborts)
    return [outcome(older.abort_transaction, 30), *rest(at, older)]


def rest(at, older):
    return [
        outcome(older.produce, at.topic, b"5"),
        outcome(older.begin_transaction),
        outcome(older.commit_transaction, 30),
        outcome(older.abort_transaction, 30),
        both(at),
    ]


@pytest.mark.parametrize(
    "script",
    [
        what_readers_see,
        wrong_order,
        shut_out_when_idle,
        shut_out_in_a_transaction,
        shut_out_before_its_commit,
        shut_out_before_its_abort,
    ],
)
def test_the_simulation_answers_as_kafka_does(script, kafka_own, topic):
    """Errors and what they are, offsets, bounds, and what readers see."""
    real = script(Real(kafka_own, topic))
    with Cluster(random.Random(1), {"a": 1}).installed() as cluster:
        assert script(Simulated(cluster)) == real


def test_an_outage_is_told_as_kafka_does(kafka_own, topic):
    """Transactional calls are to be tried again; the others do not say so."""

    def during(at, end):
        one = producer(at)
        transaction(at, one, [b"1"])
        where, reader = TopicPartition(at.topic, 0), consumer(at, "read_committed")
        end()
        return [
            outcome(one.commit_transaction, 1),
            outcome(one.commit_transaction, 1),
            outcome(one.abort_transaction, 1),
            outcome(one.produce, at.topic, b"2"),
            outcome(lambda: reader.get_watermark_offsets(where, timeout=1))[1:],
            outcome(lambda: reader.list_topics(timeout=1))[1:],
        ], one

    real, one = during(Real(kafka_own, topic), kafka_own.freeze)
    kafka_own.thaw()
    assert outcome(one.commit_transaction, 30) == "done"
    with Cluster(random.Random(1), {"a": 1}).installed() as cluster:
        simulated, one = during(Simulated(cluster), lambda: cluster.go_down(1e9))
        cluster.heal()
        assert outcome(one.commit_transaction, 30) == "done"
    assert simulated == real
