"""A topic is told from one that was made anew under its name, and from nothing else."""

import itertools
import random

import pytest
from kafka_simulation import AdminClient, Cluster, timed_out

from midstream.connectors.input import InputError, NoAnswerError
from midstream.connectors.kafka import consumer as kafka
from midstream.connectors.kafka.consumer import Consumer, Identity
from midstream.connectors.kafka.input import TopicInput
from midstream.engine.shard.journal import Cursor


@pytest.fixture
def cluster():
    """Brokers that have a topic of one partition, with ten messages."""
    with Cluster(random.Random(1), {"in": 1}).installed() as cluster:
        cluster.calm = cluster.eager = True
        for _ in range(10):
            cluster.logs["in", 0].append(b"{}", cluster.now, None, None)
        yield cluster


def silent(seconds):
    """Answer nothing."""
    raise NoAnswerError("silence")


def reading(*answers, log=lambda *_, **__: None):
    """Return a consumer that is told one id after the other, and has read something."""
    told = itertools.chain(answers, itertools.repeat(answers[-1]))

    def identity(seconds):
        answer = next(told)
        if isinstance(answer, Exception):
            raise answer
        return answer

    consumer = Consumer({}, "in", "group", identity=identity, log=log)
    consumer.identify(1.0, known=False)
    consumer.assign(0, 0)
    assert consumer.take(0, 1_000)
    return consumer


def test_what_was_read_is_confirmed_once(cluster):
    """Until more is read, nothing is asked; another id is told again and again."""
    consumer = reading(7, 7, 8)
    consumer.confirm(1.0)
    consumer.confirm(1.0)
    with pytest.raises(InputError, match="made anew"):
        consumer.confirm(1.0, idle=True)
    with pytest.raises(InputError, match="made anew"):
        consumer.confirm(1.0)


def test_a_broker_that_does_not_know_the_topic_yet_is_asked_again(cluster, monkeypatch):
    """Twice in a row, and it is gone."""
    monkeypatch.setattr(kafka, "_MOMENT", 0.0)
    gone = kafka._GoneError("in: is gone")
    consumer = reading(7, gone, 7, gone, gone)
    consumer.confirm(1.0)
    with pytest.raises(InputError, match="is gone"):
        consumer.confirm(1.0, idle=True)


def test_a_look_needs_two_misses(cluster, monkeypatch):
    """As `confirm`; a topic that is found in between begins the count anew."""
    monkeypatch.setattr(kafka, "_MOMENT", 0.0)
    gone = kafka._GoneError("in: is gone")
    consumer = reading(7, gone, gone, 7, gone, gone, gone, gone)
    assert consumer.look(1.0) is None
    assert consumer.look(1.0) == [0]
    assert consumer.look(1.0) is None
    with pytest.raises(InputError, match="is gone"):
        consumer.look(1.0)


def test_no_answer_leaves_it_to_be_confirmed(cluster):
    """What could not be asked is asked at the next commit."""
    consumer = reading(7, NoAnswerError("silence"), 8)
    with pytest.raises(NoAnswerError):
        consumer.confirm(1.0)
    with pytest.raises(InputError, match="made anew"):
        consumer.confirm(1.0)


def test_a_broker_that_gives_no_id_any_more_is_no_other_topic(cluster):
    """As while brokers are replaced one by one by older ones."""
    reading(7, 0).confirm(1.0)


def test_brokers_without_a_controller_give_no_id(cluster):
    """A topic that never had one is read without, and that is told; else it is waited for."""
    told = []
    cluster.controller = -1
    consumer = reading(NoAnswerError("no controller"), log=lambda event, **_: told.append(event))
    assert consumer.mark == 0
    consumer.confirm(1.0)
    assert told == ["topic_without_id"]
    for known, controller, down in [(True, -1, 0), (False, 1, 0), (False, -1, 1e9)]:
        cluster.controller = controller
        consumer = Consumer({}, "in", "group", identity=silent)
        cluster.go_down(down)
        with pytest.raises(NoAnswerError):
            consumer.identify(1.0, known=known)


def test_another_controller_is_tried(cluster, monkeypatch):
    """A client goes on asking the one that it knew first, though it is dead."""
    made = []

    class Client(AdminClient):
        def __init__(self, config):
            super().__init__(cluster, config)
            made.append(self)

        def describe_topics(self, wanted, request_timeout):
            if self is made[0]:
                raise timed_out()
            return super().describe_topics(wanted, request_timeout)

    monkeypatch.setattr(kafka, "AdminClient", Client)
    identity = Identity({}, "in")
    assert identity(3.0) == identity(3.0) != 0
    assert len(made) == 2


def test_one_may_wait_for_years(cluster):
    """A client takes an hour at most."""
    assert Identity({}, "in")(1e9) != 0


def test_what_has_no_mark_gets_one_when_reading_begins(cluster):
    """State of before there were marks is told from another topic from its first start on."""
    consumer = Consumer({}, "in", "group", identity=Identity({}, "in"))
    topic = TopicInput(consumer, [0], seconds=1.0)
    topic.seek({"in-0": Cursor(4, 4, 99, 0)})
    (begun,) = topic.begin()
    assert begun.span.head == consumer.mark != 0
    assert (begun.span.start, begun.span.stop, begun.span.crc) == (4, 4, 99)
    assert topic.begin() == []
    cluster.make_anew("in", [b"{}"] * 20)
    consumer = Consumer({}, "in", "group", identity=Identity({}, "in"))
    with pytest.raises(InputError, match="in-0: the topic was made anew"):
        TopicInput(consumer, [0], seconds=1.0).seek({"in-0": Cursor(4, 4, 99, begun.span.head)})
