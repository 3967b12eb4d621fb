"""Reads raw topics.

Faust could, too, but messages were lost when it started again after a kill (faust-streaming 0.15.3:
3,261 of 20,000 in a run of the kill test). By its code, what it has fetched while its table is read
is dropped, counts as a gap between offsets, and is committed.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from midstream.connectors.input import InputError
from midstream.connectors.kafka.consumer import Heard, said, topics_of
from midstream.flows.logs import log

__all__ = ["Raw", "Reader"]

_LOGGER = logging.getLogger("librdkafka")
Place: TypeAlias = tuple[str, int]
_OURS: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
}
_MESSAGES = 500  # at once
_READ_SECONDS = 0.1
_COMMIT_SECONDS = 1.0
_LOOK_SECONDS = 10.0  # until new partitions, and topics that were made anew, are noticed
_ANSWER_SECONDS = 20.0
_QUIET_SECONDS = 60.0


class Raw:
    """One message of a raw topic; `done` lets its offset be committed.

    Parameters
    ----------
    message
        The client's message.
    done
        Is called when it is settled what became of it.
    """

    def __init__(self, message: Any, done: Callable[[], None]) -> None:
        self.value: bytes | None = message.value()
        self.key: bytes | None = message.key()
        self.timestamp = max(message.timestamp()[1], 0) / 1_000
        self.origin: tuple[str, int, int] = (
            message.topic(), message.partition(), message.offset(),
        )  # fmt: skip
        self.done = done


class Reader:
    """Reads topics for one gateway, and commits how far it has come to a consumer group.

    Guarantee: every committed message is passed on at least once, those of a partition in order;
    an offset is committed once all messages before it are done.

    Parameters
    ----------
    settings
        Settings of librdkafka.
    group
        The consumer group.
    takes
        What takes the messages of each topic.
    latest
        Whether to begin at the end of partitions that the group has not read.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        group: str,
        takes: Mapping[str, Callable[[Raw], Awaitable[None]]],
        *,
        latest: bool,
    ) -> None:
        self._settings = {**settings, **_OURS, "group.id": group}
        self._takes = takes
        self._latest = latest
        self._heard = Heard()
        self._client: Any = None
        self._thread = ThreadPoolExecutor(1, "gateway-reader")
        self._read: set[Place] = set()
        # What was passed on, by offset: whether it is done.
        self._open: dict[Place, OrderedDict[int, bool]] = {}
        self._ends: dict[Place, int] = {}
        self._committed: dict[Place, int] = {}
        self._told: dict[str, float] = {}

    async def run(self) -> None:
        """Pass messages on, until cancelled."""
        committed, looked = time.monotonic(), float("-inf")
        while self._takes:
            now = time.monotonic()
            if now - looked >= _LOOK_SECONDS:
                await self._in_thread(self._look)
                looked = time.monotonic()
            if now - committed >= _COMMIT_SECONDS:
                await self._commit()
                committed = now
            for message in await self._in_thread(self._some):
                if (error := message.error()) is not None:
                    self._trouble(message.topic() or "brokers", said(error))
                    place = (message.topic(), message.partition())
                    if error.code() == KafkaError._AUTO_OFFSET_RESET and place in self._read:
                        await self._commit()  # the next look finds out where to go on
                        await self._in_thread(partial(self._forget, {place}))
                    continue
                await self._takes[message.topic()](self._raw(message))
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Commit what is done, and give the client and its thread back."""
        await self._commit()
        if self._client is not None:
            await self._in_thread(self._client.close)
        self._thread.shutdown(wait=False)

    def _raw(self, message: Any) -> Raw:
        place = (message.topic(), message.partition())
        offset = message.offset()
        passed = self._open.setdefault(place, OrderedDict())
        passed[offset] = False

        def done() -> None:
            if self._open.get(place) is not passed:
                return  # of a topic that is gone
            passed[offset] = True
            while passed and next(iter(passed.items()))[1]:
                self._ends[place] = passed.popitem(last=False)[0] + 1

        return Raw(message, done)

    async def _commit(self) -> None:
        new = {p: end for p, end in self._ends.items() if self._committed.get(p) != end}
        if not new or self._client is None:
            return
        offsets = [TopicPartition(*place, end) for place, end in new.items()]
        try:
            await self._in_thread(lambda: self._client.commit(offsets=offsets, asynchronous=False))
        except KafkaException as error:
            self._trouble("offsets", said(error))
        else:
            self._committed |= new

    def _some(self) -> list[Any]:
        if not self._read:
            time.sleep(_READ_SECONDS)
            return []
        return list(self._client.consume(_MESSAGES, _READ_SECONDS))

    def _look(self) -> None:
        """Begin to read partitions that are new, and forget those that are gone."""
        try:
            if self._client is None:
                self._client = ck.Consumer(
                    {**self._settings, "error_cb": self._heard}, logger=_LOGGER
                )
            there = topics_of(self._client, _ANSWER_SECONDS)
            now = {(t, p) for t in self._takes if t in there for p in there[t].partitions}
            for topic in self._takes:
                if topic not in there:
                    self._trouble(topic, "there is no such topic")
            self._forget(self._read - now)
            new = sorted(now - self._read)
            if new:
                begin = [self._begin(place) for place in self._group(new)]
                self._client.incremental_assign(begin)
                self._read.update(new)
        except KafkaException as error:
            self._trouble("raw topics", said(error))
        except InputError as error:
            self._trouble("raw topics", str(error))

    def _forget(self, places: set[Place]) -> None:
        """Read partitions no more; what was passed on and is done later is not committed."""
        if places:
            self._client.incremental_unassign([TopicPartition(*place) for place in places])
        for place in places:
            self._read.discard(place)
            self._open.pop(place, None)
            self._ends.pop(place, None)
            self._committed.pop(place, None)

    def _group(self, places: list[Place]) -> list[TopicPartition]:
        """Return partitions with the offsets that the group has committed."""
        asked = [TopicPartition(*place) for place in places]
        return list(self._client.committed(asked, timeout=_ANSWER_SECONDS))

    def _begin(self, place: TopicPartition) -> TopicPartition:
        """Return where to begin in a partition."""
        low, high = self._client.get_watermark_offsets(place, _ANSWER_SECONDS)
        offset = place.offset
        if offset < 0:
            offset = high if self._latest else low
        elif not low <= offset <= high:  # deleted by the brokers, or a topic that was made anew
            log.warning(
                "raw_lost", topic=place.topic, partition=place.partition, wanted=offset, first=low
            )
            offset = low
        return TopicPartition(place.topic, place.partition, offset)

    def _trouble(self, what: str, reason: str) -> None:
        """Log what a client retries, now and then."""
        now = time.monotonic()
        if now - self._told.get(what, float("-inf")) >= _QUIET_SECONDS:
            self._told[what] = now
            log.warning("raw_unavailable", what=what, reason=reason)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
