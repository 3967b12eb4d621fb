"""The journal on a simulated Kafka: what a run is told when it cannot go on."""

import random
import time

import pytest
from kafka_simulation import Cluster

from midstream.connectors.kafka import NoAnswerError
from midstream.connectors.kafka_journal import KafkaJournal
from midstream.engine.journal import JournalError, UnavailableError


@pytest.fixture
def cluster():
    with Cluster(random.Random(1), {"journal": 1, "out": 1}).installed() as cluster:
        yield cluster


def journal():
    return KafkaJournal({}, "writer", "journal", 0, outputs={"out": "out"}, seconds=5.0)


def commit(journal):
    journal.commit([])


def write(journal):
    for _ in range(100):
        journal.write("out", b"a\nb\n")


def write_much(journal):
    journal.write("out", b"line\n" * 1000)


@pytest.mark.parametrize("then", [commit, write, write_much])
@pytest.mark.parametrize("before", [0, 1])
def test_a_writer_that_was_shut_out_says_so(cluster, before, then):
    """Whatever it does next, in a transaction or out of one: it must not take it for an outage."""
    older = journal()
    older.recover()
    older.commit([])
    for _ in range(before):
        older.write("out", b"line\n")
    newer = journal()
    assert len(newer.recover()) == 1
    with pytest.raises(JournalError, match="another run has taken over") as caught:
        then(older)
    assert not isinstance(caught.value, UnavailableError)
    with pytest.raises(JournalError, match="another run has taken over"):
        older.commit([])
    newer.commit([])
    assert len(cluster.logs["journal", 0].decided) == 3, "one is the newer's signature"
    assert cluster.logs["out", 0].decided == []


def test_a_writer_that_kafka_has_shut_out_says_so(kafka_own, topic):
    """The same on a real broker, of which it hears some time after it wrote."""
    names = {name: kafka_own.create_topic(topic(name)) for name in ("journal", "out")}
    older, newer = (
        KafkaJournal(
            kafka_own.settings(),
            names["journal"],
            names["journal"],
            0,
            outputs={"out": names["out"]},
        )
        for _ in range(2)
    )
    older.recover()
    older.write("out", b"line\n")
    older.commit([])
    newer.recover()

    def go_on():
        for _ in range(500):
            older.write("out", b"line\n")
            time.sleep(0.02)

    with pytest.raises(JournalError, match="another run has taken over"):
        go_on()
    newer.commit([])
    assert len(kafka_own.read_all(names["journal"])) == 3
    assert len(kafka_own.read_all(names["out"])) == 1


def test_a_writer_that_was_silent_too_long_may_come_back(cluster):
    """Its transaction is given up, in the same way as if another had taken over, but none has."""
    one = journal()
    one.recover()
    one.commit([])
    one.write("out", b"line\n")
    one._producer.send()
    cluster.now += 60.0
    with pytest.raises(UnavailableError, match="gave up a transaction"):
        one.commit([])
    again = journal()
    assert len(again.recover()) == 1
    again.commit([])


@pytest.mark.parametrize("calls", range(4))
def test_brokers_that_go_away_while_the_journal_is_read(cluster, calls, monkeypatch):
    """The run can wait for them: it is told that they are not available, not that all is lost."""
    older = journal()
    older.recover()
    for _ in range(3):
        older.commit([])
    tick = cluster.tick
    left = iter(range(calls))

    def go_away():
        tick()
        if next(left, None) is None:
            cluster.go_down(60.0)

    monkeypatch.setattr(cluster, "tick", go_away)
    with pytest.raises((UnavailableError, NoAnswerError)):
        journal().recover()


def test_a_journal_in_an_outage_stays_so_until_it_is_recovered(cluster):
    """What is written to it next fails as the first did, by which a run knows that it may wait."""
    one = journal()
    one.recover()
    cluster.go_down(60.0)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="could not commit"):
            one.commit([])
    cluster.heal()
    with pytest.raises(UnavailableError, match="could not commit"):
        one.write("out", b"line\n")
    one.recover()
    one.commit([])
