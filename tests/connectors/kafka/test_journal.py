"""The journal on a simulated Kafka: what a run is told when it cannot go on."""

import random
import time

import kafka_simulation
import numpy as np
import pytest
from kafka_simulation import Cluster
from project import wait_for
from simulation import make_trainer

from midstream.connectors.input import NoAnswerError
from midstream.connectors.kafka import journal as kafka_journal
from midstream.connectors.kafka.journal import KafkaJournal
from midstream.engine.basics.storage import LocalStorage
from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.journal import JournalError, Range, UnavailableError
from midstream.engine.shard.shard import Shard
from midstream.engine.state.snapshot import SnapshotFolder


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
    journal.commit([])


def write_much(journal):
    journal.write("out", b"line\n" * 1000)
    journal.commit([])


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
            older.commit([])
            time.sleep(0.02)

    with pytest.raises(JournalError, match="another run has taken over"):
        go_on()
    newer.commit([])
    assert len(kafka_own.read_all(names["journal"])) == 3
    assert len(kafka_own.read_all(names["out"])) == 1


@pytest.mark.parametrize("before", [0, 1])
def test_a_writer_that_was_silent_too_long_may_come_back(cluster, before):
    """Its transaction is given up, in the same way as if another had taken over, but none has."""
    one = journal()
    one.recover()
    for _ in range(before):
        one.commit([])
    one.write("out", b"line\n")
    one._flush()
    one._producer.send()
    cluster.now += 60.0
    with pytest.raises(UnavailableError, match="gave up a transaction"):
        one.commit([])
    again = journal()
    assert len(again.recover()) == before
    again.commit([])


def test_whoever_signs_before_the_first_commit_has_taken_over(cluster):
    """Also where it signed while the journal was still read, or where the look at it failed."""
    signatures = {}

    def mine():
        return KafkaJournal({}, "writer", "journal", 0, seconds=5.0, signatures=signatures)

    one = mine()
    one.recover()
    other = journal()
    other.recover()
    other.commit([])
    cluster.go_down(20.0)
    with pytest.raises(UnavailableError):
        one.commit([])
    cluster.now += 20.0
    with pytest.raises(JournalError, match="another run has taken over"):
        mine().recover()
    other.commit([])


@pytest.mark.slow
def test_a_first_transaction_that_kafka_gives_up_is_none_of_another_run(kafka_own, topic):
    """A broker that was frozen for longer than a transaction may take: the run may come back."""
    names = {name: kafka_own.create_topic(topic(name)) for name in ("journal", "out")}
    signatures = {}

    def journal():
        return KafkaJournal(
            kafka_own.settings(**{"transaction.timeout.ms": 1000}),
            names["journal"],
            names["journal"],
            0,
            outputs={"out": names["out"]},
            signatures=signatures,
        )

    one = journal()
    one.recover()
    one.write("out", b"lost\n")
    one._flush()
    one._producer.flush()
    kafka_own.freeze()
    time.sleep(2.0)
    kafka_own.thaw()
    out = names["out"]  # a broker that has given up a transaction says so in its topics
    wait_for(lambda: kafka_own.ends(out)[0] == kafka_own.ends(out, read_committed=True)[0] > 1)
    with pytest.raises(UnavailableError, match="gave up a transaction"):
        one.commit([])
    again = journal()
    again.recover()
    again.write("out", b"line\n")
    again.commit([])
    assert [message.value for message in kafka_own.read_all(names["out"])] == [b"line"]


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


def test_of_a_long_journal_only_the_end_is_read(cluster, monkeypatch):
    """From the record before the one that is asked for, wherever transactions were given up."""
    monkeypatch.setattr(kafka_journal, "_FEW", 4)
    one = journal()
    one.recover()
    for i in range(200):
        one.commit([])
        if i % 7 == 0:
            one.write("out", b"line\n")
            one.close()
            one = journal()
            one.recover()
    end = one.end
    one.close()
    for since in (0, 1, 2, 50, 131, end - 1, end):
        consumed = []
        monkeypatch.setattr(
            kafka_simulation.Consumer, "consume", counting(kafka_simulation.Consumer, consumed)
        )
        again = journal()
        assert [r.seq for r in again.recover(since)] == list(range(max(since - 1, 0), end))
        assert again.end == end + 1, "its signature"
        monkeypatch.undo()
        monkeypatch.setattr(kafka_journal, "_FEW", 4)
        if since == end:
            assert sum(consumed) < 40, f"{sum(consumed)} messages were read"
        end += 1


def counting(consumer, consumed):
    """Return `consume`, which notes how many messages it gave."""
    plain = consumer.consume

    def consume(self, most, timeout):
        found = plain(self, most, timeout)
        consumed.append(len(found))
        return found

    return consume


def test_a_search_in_a_journal_on_a_real_broker(kafka, topic, monkeypatch):
    """Control records and transactions that were given up are between the records."""
    monkeypatch.setattr(kafka_journal, "_FEW", 4)
    names = {name: kafka.create_topic(topic(name)) for name in ("journal", "out")}

    def new():
        return KafkaJournal(
            kafka.settings(), names["journal"], names["journal"], 0, outputs={"out": names["out"]}
        )

    one = new()
    one.recover()
    for _ in range(20):
        one.commit([])
    one.write("out", b"line\n")
    one.close()
    again = new()
    assert [record.seq for record in again.recover(15)] == [14, 15, 16, 17, 18, 19]
    again.commit([])
    assert [record.seq for record in new().recover(22)] == [21]


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


def test_where_no_snapshot_can_be_read_the_whole_journal_is(cluster, monkeypatch, tmp_path):
    """Also the part of it that a snapshot makes needless."""
    monkeypatch.setattr(kafka_journal, "_FEW", 4)

    def shard():
        return Shard.open(
            "000", make_trainer, journal(), SnapshotFolder(LocalStorage(tmp_path), keep=2),
            snapshot_events=3, commit_seconds=0.0,
        )  # fmt: skip

    one = shard()
    for i in range(30):
        batch = EventBatch([{"v": i}], [i], offsets=np.array([i]), partition="in", index=0)
        one.publish(one.step(Range("in-0", i, i + 1, i + 1, 0), batch, []), {})
    one.close()
    assert shard().trainer.seen == 30
    for path in tmp_path.glob("snapshot*"):
        path.write_bytes(path.read_bytes()[:-9])
    again = shard()
    assert len(again.notes) == 2
    assert again.trainer.seen == 0
    spans = list(iter(again.next_step, None))
    assert (spans[0].start, spans[-1].stop) == (0, 30)
