"""Reads Kafka topics with confluent-kafka.

One `Consumer` serves all shards of a process; each shard reads its partitions through it
(`TopicInput`). It commits offsets only as a report: reading resumes where the journal says.
"""

import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import confluent_kafka as ck
import numpy as np
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from midstream.connectors.input import InputError, NoAnswerError
from midstream.connectors.kafka.messages import Messages

__all__ = [
    "RESERVED",
    "Consumer",
    "Heard",
    "Identity",
    "no_topic",
    "partition_name",
    "said",
    "topics_of",
]

_MESSAGES = 200  # per call: few, so that they are still in the CPU cache when they are read
_MOMENT = 1.0  # seconds until a broker that has just started knows its topics
ASIDE = 5.0  # seconds to wait for an answer while others wait
_MOST_QUEUED = 32 * 2**20  # bytes of one partition in the queue above which it is paused
_OURS: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
}
_DEFAULTS: dict[str, Any] = {
    "fetch.wait.max.ms": 10,
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 16 * 1024,
    "check.crcs": True,
}
_LONGEST = 3600.0  # upper limit in seconds for a request of an admin client
_NO_IDS = KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION
RESERVED = {
    "auto.offset.reset": "input.start says where to begin",
    "enable.partition.eof": "it is needed as it is",
    "isolation.level": "only what is committed is read",
    "transactional.id": "it is the name of the config with the shard",
    "error_cb": "it is no text",
    **dict.fromkeys(
        ("enable.auto.commit", "enable.auto.offset.store", "enable.idempotence", "acks"),
        "the journal decides what was learned",
    ),
}
"""Settings of librdkafka that users may not set, and why."""
_GONE = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
)


class _GoneError(InputError):
    """A topic that the broker does not know, perhaps only because it has just started."""


def partition_name(topic: str, index: int) -> str:
    """Return the name of a partition in the journal."""
    return f"{topic}-{index}"


def said(error: object) -> str:
    """Return the client's text of an error, in one line."""
    if isinstance(error, KafkaException):
        error = error.args[0]
    text = error.str() if isinstance(error, KafkaError) else str(error)
    return " ".join(text.split())


def no_topic(topic: str) -> str:
    """Return the message for a topic that does not exist."""
    return f"{topic}: no such topic; `midstream init-topics` creates it"


class Heard:
    """The last connection error of a client, as its `error_cb`.

    A request that times out gives no cause. The connection error does: a wrong password, or no
    listener.
    """

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, error: KafkaError) -> None:
        """Keep an error of the client."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last = said(error)

    def why(self, error: KafkaException) -> str:
        """Return why a request was not answered, in one line."""
        return self._last or said(error)


def topics_of(
    client: Any, seconds: float, *names: str, heard: Heard | None = None
) -> dict[str, Any]:
    """Return the brokers' metadata of one topic, or of all.

    Parameters
    ----------
    heard
        Errors of this client, which must not have anything assigned.

    Raises
    ------
    NoAnswerError
        If no broker answers within `seconds`.
    """
    try:
        return dict(client.list_topics(*names, timeout=seconds).topics)
    except KafkaException as error:
        why = said(error)
        if heard is not None:
            client.poll(0)  # calls `error_cb`
            why = heard.why(error)
        raise NoAnswerError(f"Kafka: no answer within {seconds:g} s: {why}") from None


class Identity:
    """Distinguishes a topic from one recreated under its name, by the id that brokers assign.

    A consumer does not distinguish them: it reads on in a new topic that is long enough. A call
    takes 1 to 4 ms.

    Parameters
    ----------
    settings
        Settings of librdkafka.
    topic
        Name of the topic.
    """

    def __init__(self, settings: Mapping[str, Any], topic: str) -> None:
        self._heard = Heard()
        self._settings: dict[str, Any] = {**settings, "error_cb": self._heard}
        self._topic = topic
        self._admin = AdminClient(self._settings)
        self._given = False  # whether the brokers ever gave an id
        self._none = False

    def __call__(self, seconds: float) -> int:
        """Return a 32-bit number made from the topic's id; 0 if the brokers give none.

        Raises
        ------
        NoAnswerError
            If no broker answers within `seconds`.
        InputError
            If the topic does not exist.
        """
        if self._none:
            return 0
        seconds = min(seconds, _LONGEST)
        try:
            bits = self._ask(seconds / 3)
        except NoAnswerError:  # the client asks the first controller it knew, which may be down
            self._admin = AdminClient(self._settings)
            bits = self._ask(seconds * 2 / 3)
        if not any(bits):  # brokers before Kafka 2.8
            self._none = not self._given
            return 0
        self._given = True
        return zlib.crc32(bits) or 1

    def whole(self, seconds: float) -> bytes:
        """Return the topic's id; if brokers give none, the cluster's id and the topic's name.

        Raises
        ------
        NoAnswerError, InputError
            As for a call.
        """
        there = topics_of(self._admin, seconds, self._topic, heard=self._heard)
        if self._topic not in there or there[self._topic].error is not None:
            raise InputError(no_topic(self._topic))
        bits = self._ask(min(seconds, _LONGEST))
        if any(bits):
            return bits
        try:
            cluster = self._admin.list_topics(self._topic, timeout=seconds).cluster_id
        except KafkaException as error:
            raise NoAnswerError(f"{self._topic}: {said(error)}") from None
        return f"{cluster}/{self._topic}".encode()

    def _ask(self, seconds: float) -> bytes:
        """Return the bytes of the id; empty, or zeros, if there is none."""
        topics = TopicCollection([self._topic])
        try:
            asked = self._admin.describe_topics(topics, request_timeout=seconds)
            found = asked[self._topic].result().topic_id
        except KafkaException as error:
            code = error.args[0].code()
            if code in _NO_IDS:
                return b""
            if code in _GONE:
                raise _GoneError(f"{self._topic}: is gone: {said(error)}") from None
            self._admin.poll(0)  # calls `error_cb`
            raise NoAnswerError(f"{self._topic}: {self._heard.why(error)}") from None
        halves = found.get_most_significant_bits(), found.get_least_significant_bits()
        return b"".join(half.to_bytes(8, "big", signed=True) for half in halves)


class Consumer:
    """One client of the brokers. It reads each partition of a topic separately.

    Parameters
    ----------
    settings
        Settings of librdkafka: `bootstrap.servers` and the rest of the config's.
    topic
        Name of the topic to read.
    group
        The consumer group that positions are committed to, for tools that show lag.
    identity
        Identity of the topic; None: a recreated topic is not detected.
    log
        Logs for the operator: the name of an event, and fields.

    Attributes
    ----------
    mark
        What `identity` returned when `identify` first called it; 0: nothing.
    failed_commits
        Number of failed commits of positions to the group.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        topic: str,
        group: str,
        *,
        identity: Callable[[float], int] | None = None,
        log: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.topic = topic
        self.mark = 0
        self.failed_commits = 0
        self._identity = identity
        self._unconfirmed = False  # whether messages came since the topic's identity was checked
        self._log = log
        self._heard = Heard()
        self._client = ck.Consumer(
            {
                "group.id": group,
                **_DEFAULTS,
                **settings,
                **_OURS,
                "error_cb": self._trouble,
                "on_commit": self._committed,
            }
        )
        self._queues: dict[int, deque[Messages]] = {}
        self._bytes: dict[int, int] = {}
        self._paused: set[int] = set()
        self._ends: dict[int, int] = {}  # of partitions read to their end: the offset after it
        self._out_of_range: dict[int, str] = {}
        self._down = False
        self._missed = 0  # how often in a row the topic was not found

    def _trouble(self, error: KafkaError) -> None:
        """Log once an error that the client retries."""
        self._heard(error)
        if not self._down:
            self._down = True
            self._log("kafka_trouble", reason=said(error))

    def partitions(self, seconds: float) -> list[int]:
        """Return the numbers of the topic's partitions.

        Raises
        ------
        InputError
            If no broker answers within `seconds`, the topic does not exist, or access is denied.
        """
        heard = None if self._queues else self._heard
        found = topics_of(self._client, seconds, self.topic, heard=heard)[self.topic]
        if found.error is not None and found.error.code() in _GONE:
            raise InputError(no_topic(self.topic))
        if found.error is not None:
            raise InputError(f"{self.topic}: {said(found.error)}")
        return sorted(found.partitions)

    def look(self, seconds: float) -> list[int] | None:
        """Return the numbers of the topic's partitions now; None if no broker answers in time.

        Raises
        ------
        InputError
            If the topic was deleted or recreated: a fetch reports that late, or never.
        """
        try:
            found = topics_of(self._client, seconds, self.topic)[self.topic]
            if found.error is None:
                with suppress(NoAnswerError):
                    self.confirm(seconds, idle=True)
            elif found.error.code() in _GONE:
                raise _GoneError(f"{self.topic}: is gone: {said(found.error)}")
        except NoAnswerError:
            return None
        except _GoneError:
            self._missed += 1
            if self._missed > 1:
                raise
            return None
        self._missed = 0
        return None if found.error is not None else sorted(found.partitions)

    def identify(self, seconds: float, *, known: bool) -> None:
        """Take the topic as the one to read: from now on `confirm` checks for it.

        Parameters
        ----------
        known
            Whether it was read before and had an id. If not, brokers without a controller count as
            giving none.

        Raises
        ------
        InputError
            If no broker answers within `seconds`, or the topic does not exist.
        """
        if self._identity is None or self.mark:
            return
        try:
            self.mark = self._identity(seconds)
        except NoAnswerError as error:
            if known or self._has_controller(seconds):
                raise
            self._log("topic_without_id", topic=self.topic, reason=str(error))
            self._identity = None

    def _has_controller(self, seconds: float) -> bool:
        """Whether the brokers have a controller, as far as is known."""
        try:
            number: int = self._client.list_topics(self.topic, timeout=seconds).controller_id
        except KafkaException:
            return True
        return number >= 0

    def confirm(self, seconds: float, *, idle: bool = False) -> None:
        """Check that all messages taken came from one topic, which still exists.

        Parameters
        ----------
        idle
            Check even if no message has come since the last check.

        Raises
        ------
        NoAnswerError
            If no broker answers within `seconds`.
        InputError
            If the topic was deleted or recreated.
        """
        if self._identity is None or not self.mark or not (self._unconfirmed or idle):
            return
        self._unconfirmed = False  # before the request: the reading thread may set it meanwhile
        try:
            try:
                mark = self._identity(seconds)
            except _GoneError:
                time.sleep(_MOMENT)
                mark = self._identity(seconds)
            if mark and mark != self.mark:
                raise InputError(
                    f"{self.topic}: was made anew while it was read; what was taken since the last "
                    "commit is dropped. Start over with --fresh"
                )
        except BaseException:
            self._unconfirmed = True
            raise

    def notify(self, event: str, **fields: Any) -> None:
        """Log an event for the operator."""
        self._log(event, **fields)

    def bounds(self, index: int, seconds: float) -> tuple[int, int]:
        """Return the oldest available offset, and the one after the newest."""
        where = TopicPartition(self.topic, index)
        try:
            low, high = self._client.get_watermark_offsets(where, timeout=seconds)
        except KafkaException as error:
            raise NoAnswerError(f"{partition_name(self.topic, index)}: {said(error)}") from None
        return low, high

    def at_time(self, index: int, moment: float, seconds: float) -> int:
        """Return the offset of the first message not older than `moment`, or the end."""
        where = TopicPartition(self.topic, index, int(moment * 1000))
        try:
            (found,) = self._client.offsets_for_times([where], timeout=seconds)
        except KafkaException as error:
            raise NoAnswerError(f"{partition_name(self.topic, index)}: {said(error)}") from None
        offset: int = found.offset
        return offset if offset >= 0 else self.bounds(index, seconds)[1]

    def assign(self, index: int, offset: int) -> None:
        """Read a partition from an offset on."""
        if index in self._queues:
            self._client.incremental_unassign([TopicPartition(self.topic, index)])
        self._paused.discard(index)
        self._out_of_range.pop(index, None)
        self._queues[index] = deque()
        self._bytes[index] = 0
        self._ends.pop(index, None)
        self._client.incremental_assign([TopicPartition(self.topic, index, offset)])

    def ended(self, index: int) -> bool:
        """Whether all known messages were taken; more may have come since."""
        return index in self._ends and not self._queues[index]

    def end(self, index: int) -> int:
        """Return the end offset of a partition if everything before it was taken; else -1.

        Transaction markers and compacted messages count as taken.
        """
        end = self._ends.get(index, -1)
        return -1 if self._queues[index] else end

    def out_of_range(self, index: int) -> str | None:
        """Return why the messages after those taken are missing; None if they may exist."""
        return None if self._queues[index] else self._out_of_range.get(index)

    def take(self, index: int, max_bytes: int, until: int | None = None) -> Messages | None:
        """Return the next messages of a partition, or None if none are available; never blocks.

        Parameters
        ----------
        max_bytes
            Length to aim at.
        until
            Take no messages from this offset on.

        Returns
        -------
        Messages
            Messages that hold JSON, or a single one that holds Arrow.
        """
        queue = self._queues[index]
        taken: list[Messages] = []
        size = 0
        while size < max_bytes and (queue or self._poll(index)):
            part = queue[0]
            n = len(part)
            if part.size > (room := max_bytes - size):
                n = max(room * n // part.size, 1)
            if until is not None:
                n = min(n, int(np.searchsorted(part.offsets, until)))
            if n == 0 or (taken and part.is_table):
                break
            if n < len(part):
                part, queue[0] = part.split(n)
                max_bytes = 0  # full
            else:
                queue.popleft()
            taken.append(part)
            size += part.size
            if part.is_table:
                break
        self._bytes[index] -= size
        if index in self._paused and self._bytes[index] < _MOST_QUEUED // 2:
            self._paused.remove(index)
            self._client.resume([TopicPartition(self.topic, index)])
        return Messages.join(taken) if taken else None

    def waits_from(self, index: int, offset: int) -> bool:
        """Whether the next message of a partition is known and is at or after `offset`."""
        queue = self._queues[index]
        return bool(queue) and int(queue[0].offsets[0]) >= offset

    def _poll(self, wanted: int) -> bool:
        """Receive messages; return whether any belongs to the partition `wanted`."""
        messages: list[Any] = self._client.consume(_MESSAGES, 0)
        if not messages:
            return False
        self._unconfirmed = True
        errors = [message.error() for message in messages]
        one = len(self._queues) == 1 and not any(errors)
        runs = [((wanted, True), messages)] if one else groupby(messages, _kind)
        for (index, sound), run in runs:
            if not sound:
                for message in run:
                    self._failed(index, message)
                continue
            parts = Messages.parts(list(run))
            self._down = False
            self._ends.pop(index, None)
            self._queues[index].extend(parts)
            self._bytes[index] += sum(part.size for part in parts)
        for index, size in self._bytes.items():
            if size > _MOST_QUEUED and index not in self._paused:
                self._paused.add(index)
                self._client.pause([TopicPartition(self.topic, index)])
        return bool(self._queues[wanted])

    def _failed(self, index: int, message: Any) -> None:
        error: KafkaError = message.error()
        code = error.code()
        name = partition_name(self.topic, index)
        if code == KafkaError._PARTITION_EOF:
            self._ends[index] = message.offset()
        elif code == KafkaError._AUTO_OFFSET_RESET:
            self._out_of_range[index] = said(error)
        elif code in _GONE:
            raise InputError(f"{name}: is gone: {said(error)}")
        elif error.fatal() or not error.retriable():
            raise InputError(f"{name}: cannot be read: {said(error)}")
        else:
            self._trouble(error)

    def commit(self, positions: Mapping[int, int]) -> None:
        """Commit to the group how far the partitions were learned: for lag tools only."""
        positions_now = [
            TopicPartition(self.topic, index, offset) for index, offset in positions.items()
        ]
        if positions_now:
            try:
                self._client.commit(offsets=positions_now, asynchronous=True)
            except KafkaException as error:
                self._committed(error.args[0], positions_now)

    def _committed(self, error: KafkaError | None, _: Sequence[TopicPartition]) -> None:
        """Handle the result of a commit to the group."""
        if error is not None:
            self.failed_commits += 1
            self._log("lag_not_reported", reason=said(error))

    def close(self) -> None:
        """Close the client."""
        self._client.close()
        self._identity = None  # releases its client


def _kind(message: Any) -> tuple[int, bool]:
    """Return a message's partition, and whether it is a message rather than an error."""
    return message.partition(), message.error() is None
