"""How far raw topics are read, and from where."""

import asyncio

import pytest
from confluent_kafka import TopicPartition

from midstream.flows.gateway.reader import Reader


class Message:
    def __init__(self, offset, topic="t", partition=0):
        self._place = topic, partition, offset

    def topic(self):
        return self._place[0]

    def partition(self):
        return self._place[1]

    def offset(self):
        return self._place[2]

    def value(self):
        return b"v"

    def key(self):
        return None

    def timestamp(self):
        return 1, 1_500


class Client:
    """Commits to a list; a partition has the offsets from 40 to 90."""

    def __init__(self):
        self.commits = []

    def commit(self, offsets, asynchronous):
        self.commits.append({(o.topic, o.partition): o.offset for o in offsets})

    def get_watermark_offsets(self, place, seconds):
        return 40, 90

    def incremental_unassign(self, places):
        pass


def reader(latest=False):
    made = Reader({}, "g", {}, latest=latest)
    made._client = Client()
    return made


def test_an_offset_is_committed_once_all_before_it_are_done():
    """Messages are done in any order; gaps between offsets do not matter."""
    one = reader()
    raws = [one._raw(Message(offset)) for offset in (3, 4, 9, 10)]
    assert raws[0].origin == ("t", 0, 3)
    assert raws[0].timestamp == 1.5

    async def work():
        raws[2].done()
        raws[1].done()
        await one._commit()
        assert one._client.commits == []
        raws[0].done()
        await one._commit()
        await one._commit()
        assert one._client.commits == [{("t", 0): 10}]
        raws[3].done()
        await one._commit()
        assert one._client.commits[1:] == [{("t", 0): 11}]

    asyncio.run(work())


def test_what_is_done_of_a_partition_that_is_gone_is_not_committed():
    """Its topic may have been made anew meanwhile, with other messages at these offsets."""
    one = reader()
    old = one._raw(Message(7))
    one._forget({("t", 0)})
    one._raw(Message(0))
    old.done()
    asyncio.run(one._commit())
    assert one._client.commits == []


@pytest.mark.parametrize(
    ("committed", "latest", "begin"),
    [
        (-1001, False, 40), (-1001, True, 90), (40, True, 40), (55, True, 55), (90, False, 90),
        (39, False, 40), (91, False, 40),
    ],
)  # fmt: skip
def test_where_a_partition_is_begun(committed, latest, begin, caplog):
    """Where the group has come; from the first message where that is lost or was never there."""
    place = reader(latest)._begin(TopicPartition("t", 0, committed))
    assert place.offset == begin
