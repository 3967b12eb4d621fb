"""Writes messages to topics, a group in one transaction, and reads back what was written.

Guarantee: a message whose group was committed is in its topic once, on all in-sync replicas;
readers of committed messages see all of a group or none of it. Who opens a writer of a name ends
the transactions of all earlier ones, and shuts them out.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import confluent_kafka as ck
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from midstream.connectors.kafka.consumer import Heard, said, topics_of
from midstream.engine.basics.errors import ExpectedError
from midstream.flows.gateway.validation import KEY_BYTES

__all__ = [
    "HEADER",
    "DoubtError",
    "Message",
    "RefusedError",
    "SupersededError",
    "UnwrittenError",
    "Writer",
    "Written",
]

HEADER = "midstream-idempotency"
"""The header of a message: idempotency key (16 bytes) and digest of the content (8 bytes)."""
_LOGGER = logging.getLogger("librdkafka")
_OURS: dict[str, Any] = {"enable.idempotence": True, "acks": "all"}
_DEFAULTS: dict[str, Any] = {
    "compression.type": "lz4",
    "linger.ms": 2,
    # As Java's default, and that of `midstream send`: equal keys are in the same partition.
    "partitioner": "murmur2_random",
    # Readers of committed messages wait this long for what a killed gateway left open, unless
    # it is started again sooner.
    "transaction.timeout.ms": 10_000,
}
_TAIL: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "auto.offset.reset": "earliest",
    "fetch.wait.max.ms": 20,
}
_FENCED = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)
_BAD = (
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_MSG,
)
_LARGEST = 1_000_000  # bytes of a message, librdkafka's default
_OVERHEAD = 512  # bytes of a message's headers and framing


class SupersededError(ExpectedError, RuntimeError):
    """Another gateway of this name writes now."""


class UnwrittenError(RuntimeError):
    """Nothing of the group was written; it can be tried again."""


class DoubtError(RuntimeError):
    """Whether the group was written is not known; `open` and `tail` tell."""


class RefusedError(RuntimeError):
    """Nothing of the group was written, since the brokers never take one of its messages.

    Attributes
    ----------
    indices
        Which messages of the group.
    """

    def __init__(self, reason: str, indices: Sequence[int]) -> None:
        super().__init__(reason)
        self.indices = frozenset(indices)


class Message(NamedTuple):
    """A message to write; `mark` is what `HEADER` holds."""

    topic: str
    key: bytes | None
    value: bytes
    mark: bytes
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """Something that a topic holds: its place, and its header."""

    place: str
    offset: int
    mark: bytes


class Writer:
    """A transactional producer of one name. Its methods block; one thread at a time calls them.

    Parameters
    ----------
    settings
        Settings of librdkafka.
    name
        What this gateway is called; others of that name are shut out by `open`.
    topics
        The topics to write.
    """

    def __init__(self, settings: Mapping[str, Any], name: str, topics: Sequence[str]) -> None:
        self._settings = dict(settings)
        self._name = name
        self._topics = list(dict.fromkeys(topics))
        self._producer: Any = None
        self._heard = Heard()
        self._largest = int(self._settings.get("message.max.bytes", _LARGEST)) - _OVERHEAD

    def open(self, seconds: float) -> None:
        """Shut out earlier writers of this name; what they left open is aborted.

        Raises
        ------
        UnwrittenError
            If the brokers do not answer in time.
        """
        self._producer = None
        try:
            producer = ck.Producer(
                {
                    **_DEFAULTS,
                    **self._settings,
                    **_OURS,
                    "transactional.id": self._name,
                    "error_cb": self._heard,
                },
                logger=_LOGGER,
            )
            producer.init_transactions(seconds)
        except KafkaException as error:
            raise UnwrittenError(self._heard.why(error)) from None
        self._producer = producer

    def fault(self, message: Message) -> str:
        """Return why a message can never be written; "" if it can."""
        size = len(message.value) + len(message.key or b"")
        if size <= self._largest:
            return ""
        return f"message of {size} bytes is larger than message.max.bytes allows"

    def write(self, messages: Sequence[Message], seconds: float) -> dict[str, int]:
        """Write a group; return the offset after the last message, by `topic/partition`.

        Raises
        ------
        SupersededError
            If another gateway of this name was opened.
        UnwrittenError, RefusedError
            If nothing was written.
        DoubtError
            If the brokers did not answer.
        """
        producer = self._producer
        if producer is None:
            raise DoubtError("the brokers did not answer")
        ends: dict[str, int] = {}
        bad: list[int] = []
        why = ""

        def delivered(index: int, error: KafkaError | None, message: Any) -> None:
            nonlocal why
            if error is None:
                place = f"{message.topic()}/{message.partition()}"
                ends[place] = max(ends.get(place, 0), message.offset() + 1)
            elif error.code() in _BAD:
                bad.append(index)
                why = said(error)

        try:
            producer.begin_transaction()
            for index, message in enumerate(messages):
                headers = [(HEADER, message.mark)]
                if message.origin:
                    headers.append(("midstream-origin", message.origin.encode()))
                while True:
                    try:
                        producer.produce(
                            message.topic, message.value, message.key, headers=headers,
                            on_delivery=lambda error, sent, i=index: delivered(i, error, sent),
                        )  # fmt: skip
                        break
                    except BufferError:
                        producer.poll(0.05)
            producer.commit_transaction(seconds)
        except KafkaException as error:
            self._failed(error, seconds)
            if bad:
                raise RefusedError(why, bad) from None
            raise UnwrittenError(self._heard.why(error)) from None
        return ends

    def _failed(self, error: KafkaException, seconds: float) -> None:
        """Abort the transaction; raise if that does not settle it."""
        found = error.args[0]
        if found.code() in _FENCED:
            raise SupersededError(f"another gateway of the name {self._name} is running") from None
        if found.fatal() or not found.txn_requires_abort():
            self._producer = None
            raise DoubtError(self._heard.why(error)) from None
        try:
            self._producer.abort_transaction(seconds)
        except KafkaException as again:
            if again.args[0].code() in _FENCED:
                raise SupersededError(
                    f"another gateway of the name {self._name} is running"
                ) from None
            self._producer = None
            raise DoubtError(self._heard.why(again)) from None

    def still_ours(self, seconds: float) -> None:
        """Find out whether another gateway of this name was opened, by a commit of nothing.

        Raises
        ------
        SupersededError
            If so.
        UnwrittenError, DoubtError
            If the brokers do not answer.
        """
        producer = self._producer
        if producer is None:
            raise DoubtError("the brokers did not answer")
        group = f"{self._name}.owner"
        consumer = ck.Consumer({**self._settings, **_TAIL, "group.id": group}, logger=_LOGGER)
        try:
            producer.begin_transaction()
            nothing = [TopicPartition(self._topics[0], 0, 0)]
            metadata = consumer.consumer_group_metadata()
            producer.send_offsets_to_transaction(nothing, metadata, seconds)
            producer.commit_transaction(seconds)
        except KafkaException as error:
            self._failed(error, seconds)
            raise UnwrittenError(self._heard.why(error)) from None
        finally:
            consumer.close()

    def tail(self, known: Mapping[str, int], since: float, seconds: float) -> Iterator[Written]:
        """Yield what is in the topics, from the offsets that are known on, to the ends.

        Parameters
        ----------
        known
            Where to begin, by `topic/partition`.
        since
            The time, in seconds since 1970, from which on to read other partitions.

        Raises
        ------
        UnwrittenError
            If the brokers do not answer.
        """
        client = ck.Consumer(
            {**self._settings, **_TAIL, "group.id": f"{self._name}.tail", "error_cb": self._heard},
            logger=_LOGGER,
        )
        try:
            places = list(self._places(client, known, since, seconds))
            client.assign(places)
            left = {(place.topic, place.partition) for place in places}
            deadline = time.monotonic() + seconds
            while left:
                for message in client.consume(10_000, 0.1):
                    error = message.error()
                    if error is None:
                        deadline = time.monotonic() + seconds
                        offset = message.offset()
                        if offset is not None and (mark := _mark(message)) is not None:
                            place = f"{message.topic()}/{message.partition()}"
                            yield Written(place, offset + 1, mark)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        left.discard((message.topic(), message.partition()))
                    elif not error.retriable():
                        raise UnwrittenError(said(error))
                if left and time.monotonic() > deadline:
                    raise UnwrittenError("a topic cannot be read to its end")
        except KafkaException as error:
            raise UnwrittenError(self._heard.why(error)) from None
        finally:
            with suppress(RuntimeError):
                client.close()

    def _places(
        self, client: Any, known: Mapping[str, int], since: float, seconds: float
    ) -> Iterator[TopicPartition]:
        """Yield where to begin in each partition."""
        there = topics_of(client, seconds, heard=self._heard)
        for topic in self._topics:
            for partition in there[topic].partitions if topic in there else ():
                place = TopicPartition(topic, partition)
                marks = client.get_watermark_offsets(place, seconds)
                if marks is None:
                    raise UnwrittenError("a topic does not tell its offsets")
                low, high = marks
                begin = known.get(f"{topic}/{partition}")
                if begin is None:
                    place.offset = int(since * 1000)
                    [found] = client.offsets_for_times([place], seconds)
                    begin = high if found.offset < 0 else int(found.offset)
                yield TopicPartition(topic, partition, min(max(begin, low), high))


def _mark(message: Any) -> bytes | None:
    """Return the mark of a message; None if no gateway wrote it."""
    for name, value in message.headers() or ():
        if name == HEADER and value is not None and len(value) > KEY_BYTES:
            return bytes(value)
    return None
