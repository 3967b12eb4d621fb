"""What is taken from a topic: whole messages, in order, however they came from the client."""

import random
from types import SimpleNamespace

import confluent_kafka as ck
import numpy as np
import pytest
from confluent_kafka import KafkaError

from midstream.connectors.kafka import consumer as kafka
from midstream.connectors.kafka.messages import ARROW, MessageBlock, MessageDecoder

EOF = KafkaError._PARTITION_EOF


class Message:
    """As confluent_kafka.Message; with an error code in place of a value: an error."""

    def __init__(self, index, offset, value, milliseconds=5):
        self._index, self._offset, self._value = index, offset, value
        self._milliseconds = milliseconds

    def partition(self):
        return self._index

    def offset(self):
        return self._offset

    def value(self):
        return self._value

    def error(self):
        return KafkaError(self._value) if isinstance(self._value, int) else None

    def timestamp(self):
        return ck.TIMESTAMP_CREATE_TIME, self._milliseconds


@pytest.fixture
def consumer(monkeypatch):
    """Makes a consumer that is given these lists of messages, one a call."""

    def make(*lists, partitions=1):
        waiting = list(lists)
        client = SimpleNamespace(
            consume=lambda *_: waiting.pop(0) if waiting else [],
            incremental_assign=lambda _: None,
            pause=lambda _: None,
            resume=lambda _: None,
        )
        names = {**vars(ck), "Consumer": lambda _: client}
        monkeypatch.setattr(kafka, "ck", SimpleNamespace(**names))
        made = kafka.Consumer({}, "t", "group")
        for index in range(partitions):
            made.assign(index, 0)
        return made

    return make


def take_all(consumer, index, max_bytes):
    blocks = []
    while (block := consumer.take(index, max_bytes)) is not None:
        blocks.append(block)
    return blocks


@pytest.mark.parametrize("seed", range(20))
def test_all_that_came_is_taken_once_in_order(consumer, seed):
    """Of each partition, with gaps, tombstones and Arrow among the JSON, which goes alone."""
    rng = random.Random(seed)
    partitions = rng.randint(1, 3)
    ends = [0] * partitions
    sent = [[] for _ in range(partitions)]
    lists = []
    for _ in range(rng.randint(1, 8)):
        some = []
        for _ in range(rng.randint(1, 40)):
            index = rng.randrange(partitions)
            ends[index] += 1 + (rng.random() < 0.1)
            kind = rng.random()
            value = b'{"a":"%b"}' % (b"b" * rng.randint(0, 300))
            if kind < 0.05:
                value = None
            elif kind < 0.1:
                value = ARROW + b"\n" + rng.randbytes(rng.randint(0, 500))
            elif kind < 0.15:
                value = b"\xff no JSON"
            elif kind < 0.2:
                value = EOF
            if value != EOF:
                sent[index].append((ends[index], value, len(some)))
            some.append(Message(index, ends[index], value, len(some)))
        lists.append(some)
    made = consumer(*lists, partitions=partitions)
    for index in rng.sample(range(partitions), partitions):
        blocks = []
        while sum(map(len, blocks)) < len(sent[index]):
            block = made.take(index, rng.randint(1, 3_000))
            if block is not None:
                blocks.append(block)
        got = [
            row for b in blocks for row in zip(b.offsets.tolist(), b.values, b.times, strict=True)
        ]
        assert got == sent[index]
        for block in blocks:
            tables = [v for v in block.values if v is not None and v.startswith(ARROW)]
            assert not tables or len(block) == 1
            assert block.data == b"".join((value or b"") + b"\n" for value in block.values)
        assert made._bytes[index] == 0


@pytest.mark.parametrize("until", [0, 1, 57, 200, 399, 400])
def test_none_is_taken_from_an_offset_on(consumer, until):
    """Also where that is within what came at once, or was left out by a compaction."""
    messages = [Message(0, offset, b"{}") for offset in range(400) if offset != 57]
    made = consumer(messages[:150], messages[150:])
    taken = []
    while (block := made.take(0, 500, until)) is not None:
        taken += block.offsets.tolist()
    assert taken == [offset for offset in range(until) if offset != 57]
    rest = [offset for block in take_all(made, 0, 500) for offset in block.offsets.tolist()]
    assert rest == [offset for offset in range(until, 400) if offset != 57]


def test_blocks_are_about_as_long_as_asked_for(consumer):
    """One message at least, and not all that there is."""
    messages = [Message(0, offset, b"a" * 136) for offset in range(1_000)]  # 200 with the rest
    made = consumer(*(messages[i : i + 200] for i in range(0, 1_000, 200)))
    assert len(made.take(0, 1)) == 1
    sizes = [len(block) for block in take_all(made, 0, 10_000)]
    assert sum(sizes) == 999
    assert max(sizes) <= 51


def test_the_end_is_known_when_all_is_taken_and_not_before(consumer):
    """What came after the end was told means that it is not the end any more."""
    made = consumer(
        [Message(0, 0, b"{}"), Message(0, 1, EOF), Message(0, 1, b"{}")], [Message(0, 2, EOF)]
    )
    assert len(made.take(0, 1)) == 1
    assert not made.ended(0)
    assert len(made.take(0, 1)) == 1
    assert not made.ended(0)
    assert made.take(0, 1) is None
    assert made.ended(0)


def test_messages_that_are_none_are_rejected_among_the_others(consumer):
    """Each is named by its offset; the others are decoded, with the time of their message."""
    values = [b'{"x":{"a":1},\n"y":true}', None, b"", b" \n", b"{", b'{"x":{"a":2}}', b"b" * 2_000]
    made = consumer([Message(0, 10 + 2 * i, v, 1_000 * i - 1) for i, v in enumerate(values)])
    block = made.take(0, 10_000)
    decoded = MessageDecoder("binary", None, {"a": "number"}, 1_000).decode(
        MessageBlock("t", 0, block, 0, 30)
    )
    assert decoded.batch.offsets.tolist() == [10, 20]
    assert decoded.batch.times == [None, 4.999]
    assert decoded.batch.labels == [True, None]
    reasons = {r.origin[2]: r.reason for r in decoded.rejected}
    assert list(reasons) == [12, 14, 16, 18, 22]
    assert "tombstone" in reasons[12]
    assert reasons[14] == reasons[16] == "empty message"
    assert "2,000 bytes" in reasons[22]


def test_a_block_of_nothing_sound(consumer):
    """Is a batch of no events, all of it rejected."""
    made = consumer([Message(0, 0, None), Message(0, 1, None)])
    block = made.take(0, 1_000)
    decoded = MessageDecoder("binary", None, None, 100).decode(MessageBlock("t", 0, block, 0, 2))
    assert len(decoded.batch) == 0
    assert [r.origin for r in decoded.rejected] == [("t", 0, 0), ("t", 0, 1)]
    assert np.array_equal(block.offsets, [0, 1])


def test_why_a_topic_cannot_be_told_from_another_is_said():
    """Nobody listens, or a password is wrong: not that a controller was waited for."""
    identity = kafka.Identity({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, "in")
    with pytest.raises(kafka.NoAnswerError, match=r"in: .*Connection refused"):
        identity(1.5)
