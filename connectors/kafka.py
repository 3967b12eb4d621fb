"""Kafka topics as a source, on confluent-kafka: blocks of messages, not yet decoded.

One consumer serves all shards of a process (`Consumer`); each shard reads its partitions through it
(`TopicInput`). Nothing here commits anything on its own: the journal decides where reading goes on.
"""

import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Literal

import confluent_kafka as ck
import numpy as np
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from midstream.connectors.bytestream import InputError
from midstream.connectors.inputs import Work
from midstream.connectors.messages import MessageBlock, Messages
from midstream.engine.journal import Range
from midstream.engine.shard import Cursor

__all__ = [
    "RESERVED",
    "Consumer",
    "Heard",
    "Identity",
    "NoAnswerError",
    "TopicInput",
    "no_topic",
    "partition_name",
    "said",
    "topics_of",
]

_MESSAGES = 200  # asked of the client at once: so few stay in the cache until they are read
_MOMENT = 1.0  # seconds, after which a broker that has just started knows its topics
_ASIDE = 5.0  # seconds to wait for an answer where others wait meanwhile
_MOST_QUEUED = 32 * 2**20  # bytes of one partition that wait here before it is paused
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
_LONGEST = 3600.0  # seconds that an admin client may be told to wait
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
"""Settings of librdkafka that are not the user's, and why."""
_GONE = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
)


class NoAnswerError(InputError):
    """No broker has answered in time; later one may."""


class _GoneError(InputError):
    """A broker does not know the topic, or not yet: one that has just started may say so."""


def partition_name(topic: str, index: int) -> str:
    """Return what the journal calls a partition."""
    return f"{topic}-{index}"


def said(error: object) -> str:
    """Return what the client says of an error, in one line."""
    if isinstance(error, KafkaException):
        error = error.args[0]
    text = error.str() if isinstance(error, KafkaError) else str(error)
    return " ".join(text.split())


def no_topic(topic: str) -> str:
    """Return what is said of a topic that is not there."""
    return f"{topic}: no such topic; `midstream init-topics` creates it"


class Heard:
    """What a client last said of its connections: its `error_cb`, asked where no answer came.

    The answer itself only ever says that there was none; here is whether a password was wrong, or
    nobody listens.
    """

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, error: KafkaError) -> None:
        """Take what the client says."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last = said(error)

    def why(self, error: KafkaException) -> str:
        """Return why there was no answer, in one line."""
        return self._last or said(error)


def topics_of(
    client: Any, seconds: float, *names: str, heard: Heard | None = None
) -> dict[str, Any]:
    """Return what the brokers say of a topic, or of all.

    Parameters
    ----------
    heard
        Of this client, which must not have anything assigned.

    Raises
    ------
    NoAnswerError
        If none answers within `seconds`.
    """
    try:
        return dict(client.list_topics(*names, timeout=seconds).topics)
    except KafkaException as error:
        why = said(error)
        if heard is not None:
            client.poll(0)  # so that it says what it has to say
            why = heard.why(error)
        raise NoAnswerError(f"Kafka: no answer within {seconds:g} s: {why}") from None


class Identity:
    """Tells a topic from one that was made anew under its name, by the id that brokers give it.

    A consumer does not: where the new one is long enough, it reads on in it. Calling this takes 1
    to 4 ms.

    Parameters
    ----------
    settings
        Of librdkafka.
    topic
        Its name.
    """

    def __init__(self, settings: Mapping[str, Any], topic: str) -> None:
        self._heard = Heard()
        self._settings: dict[str, Any] = {**settings, "error_cb": self._heard}
        self._topic = topic
        self._admin = AdminClient(self._settings)
        self._given = False  # whether they ever gave one
        self._none = False

    def __call__(self, seconds: float) -> int:
        """Return a number of 32 bits made of the topic's id; 0 where the brokers give none.

        Raises
        ------
        NoAnswerError
            If no broker answers within `seconds`.
        InputError
            If there is no such topic.
        """
        if self._none:
            return 0
        seconds = min(seconds, _LONGEST)
        try:
            bits = self._ask(seconds / 3)
        except NoAnswerError:  # a client asks the controller that it knew first, which may be dead
            self._admin = AdminClient(self._settings)
            bits = self._ask(seconds * 2 / 3)
        if not any(bits):  # brokers before Kafka 2.8
            self._none = not self._given
            return 0
        self._given = True
        return zlib.crc32(bits) or 1

    def whole(self, seconds: float) -> bytes:
        """Return the topic's id, and that of the cluster with its name where brokers give none.

        Raises
        ------
        NoAnswerError, InputError
            As of a call.
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
        """Return the bytes of the id; none, or zeros, where there is none."""
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
            raise NoAnswerError(f"{self._topic}: {said(error)}") from None
        halves = found.get_most_significant_bits(), found.get_least_significant_bits()
        return b"".join(half.to_bytes(8, "big", signed=True) for half in halves)


class Consumer:
    """One client of the brokers, from which the partitions of a topic are taken each by itself.

    Parameters
    ----------
    settings
        Of librdkafka: `bootstrap.servers` and what else the config says.
    topic
        What is read.
    group
        The consumer group to which positions are told, for tools that show lag.
    identity
        Of the topic; None: whether it is made anew is not looked at.
    log
        Takes what an operator should know: a word for the event, and fields.

    Attributes
    ----------
    mark
        What `identity` gave when it was first asked, by `identify`; 0: nothing.
    untold
        How often the group could not be told of positions.
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
        self.untold = 0
        self._identity = identity
        self._unconfirmed = False  # whether messages came since the topic was seen to be the same
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
        self._ends: dict[int, int] = {}  # of those read to their end: the offset after all of it
        self._out_of_range: dict[int, str] = {}
        self._down = False
        self._missed = 0  # how often the topic was not found

    def _trouble(self, error: KafkaError) -> None:
        """Tell of trouble that the client goes on trying to get over by itself, once."""
        self._heard(error)
        if not self._down:
            self._down = True
            self._log("kafka_trouble", reason=said(error))

    def partitions(self, seconds: float) -> list[int]:
        """Return the numbers of the topic's partitions.

        Raises
        ------
        InputError
            If no broker answers within `seconds`, or there is no such topic, or no right to it.
        """
        heard = None if self._queues else self._heard
        found = topics_of(self._client, seconds, self.topic, heard=heard)[self.topic]
        if found.error is not None and found.error.code() in _GONE:
            raise InputError(no_topic(self.topic))
        if found.error is not None:
            raise InputError(f"{self.topic}: {said(found.error)}")
        return sorted(found.partitions)

    def look(self, seconds: float) -> list[int] | None:
        """Return the numbers of the topic's partitions now; None if nobody says so in time.

        Raises
        ------
        InputError
            If the topic is gone, or was made anew: a fetch says so late, or never.
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
        """Take the topic for the one that is to be read: from now on `confirm` looks for it.

        Parameters
        ----------
        known
            It was read before, and had an id. Else, brokers that have no controller to ask are
            taken to give none.

        Raises
        ------
        InputError
            If no broker answers within `seconds`, or there is no such topic.
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
        """Whether the brokers have one, as far as is known."""
        try:
            number: int = self._client.list_topics(self.topic, timeout=seconds).controller_id
        except KafkaException:
            return True
        return number >= 0

    def confirm(self, seconds: float, *, idle: bool = False) -> None:
        """Make sure that all that was taken came from one topic: it is still there.

        Parameters
        ----------
        idle
            Ask even if nothing has come since it was last asked.

        Raises
        ------
        NoAnswerError
            If no broker answers within `seconds`.
        InputError
            If the topic is gone, or was made anew.
        """
        if self._identity is None or not self.mark or not (self._unconfirmed or idle):
            return
        self._unconfirmed = False  # before it is asked: the thread that reads may set it meanwhile
        try:
            try:
                mark = self._identity(seconds)
            except _GoneError:
                time.sleep(_MOMENT)
                mark = self._identity(seconds)
            if mark and mark != self.mark:
                raise InputError(
                    f"{self.topic}: was made anew while it was read; what was taken since the last "
                    "commit is dropped. Begin anew with --fresh"
                )
        except BaseException:
            self._unconfirmed = True
            raise

    def tell(self, event: str, **fields: Any) -> None:
        """Tell the operator."""
        self._log(event, **fields)

    def bounds(self, index: int, seconds: float) -> tuple[int, int]:
        """Return the oldest offset that is there, and the one after the newest."""
        where = TopicPartition(self.topic, index)
        try:
            low, high = self._client.get_watermark_offsets(where, timeout=seconds)
        except KafkaException as error:
            raise NoAnswerError(f"{partition_name(self.topic, index)}: {said(error)}") from None
        return low, high

    def at_time(self, index: int, moment: float, seconds: float) -> int:
        """Return the offset of the first message that is not older than `moment`, or the end."""
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
        """Whether all that there was has been taken; more may have come since."""
        return index in self._ends and not self._queues[index]

    def end(self, index: int) -> int:
        """Return the offset after all that there was, if that was taken; else -1.

        Of what a transaction leaves behind, or compaction has removed, there is nothing to take.
        """
        end = self._ends.get(index, -1)
        return -1 if self._queues[index] else end

    def out_of_range(self, index: int) -> str | None:
        """Return why what comes after all that was taken is not there; None if it may be."""
        return None if self._queues[index] else self._out_of_range.get(index)

    def take(self, index: int, max_bytes: int, until: int | None = None) -> Messages | None:
        """Return the next messages of a partition, None if there are none now; never blocks.

        Parameters
        ----------
        max_bytes
            Length to aim at.
        until
            Take none from this offset on.

        Returns
        -------
        Messages
            Such that hold JSON, or a single one that holds Arrow.
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
                max_bytes = 0  # enough
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
        """Whether the next message of a partition is known, and not before `offset`."""
        queue = self._queues[index]
        return bool(queue) and int(queue[0].offsets[0]) >= offset

    def _poll(self, wanted: int) -> bool:
        """Take what has come; return whether some of it is of the partition `wanted`."""
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
        """Tell the group how far the partitions were learned: for lag tools, nothing else."""
        told = [TopicPartition(self.topic, index, offset) for index, offset in positions.items()]
        if told:
            try:
                self._client.commit(offsets=told, asynchronous=True)
            except KafkaException as error:
                self._committed(error.args[0], told)

    def _committed(self, error: KafkaError | None, _: Sequence[TopicPartition]) -> None:
        """Take what became of positions that were told."""
        if error is not None:
            self.untold += 1
            self._log("lag_not_told", reason=said(error))

    def close(self) -> None:
        """Leave the brokers."""
        self._client.close()
        self._identity = None  # whose client goes with it


def _kind(message: Any) -> tuple[int, bool]:
    """Return the partition of a message, and whether it is one, and not an error."""
    return message.partition(), message.error() is None


class TopicInput:
    """The partitions of a topic that one shard reads, with a cursor in each.

    As `FileInput`: what `read` gives, `replay` of the same ranges gives again, or an error says
    what is not there any more.

    Parameters
    ----------
    consumer
        Shared with the other shards.
    parts
        Numbers of the partitions.
    start
        Where to begin where nothing was read before: "earliest", "latest", or seconds since 1970.
    until_eof
        What is there when reading begins is all that is read.
    on_lost
        "stop": messages that were deleted before they were read are an error; "skip": go on with
        the oldest that is there.
    seconds
        How long to wait for an answer of the brokers.
    added
        Partitions that were not there when the topic was first read: they begin at their beginning.
    """

    def __init__(
        self,
        consumer: Consumer,
        parts: Sequence[int],
        *,
        start: Literal["earliest", "latest"] | float = "earliest",
        until_eof: bool = False,
        on_lost: Literal["stop", "skip"] = "stop",
        seconds: float = 30.0,
        added: Collection[int] = (),
    ) -> None:
        self._consumer = consumer
        self._added = added
        self._parts = {partition_name(consumer.topic, index): index for index in parts}
        self._start = start
        self._until_eof = until_eof
        self._on_lost = on_lost
        self._seconds = seconds
        self._cursors: dict[str, Cursor] = {}
        self._stops: dict[str, int] = {}
        self._lows: dict[str, int] = {}  # what is before was deleted
        self._gone: dict[str, int] = {}  # from where on, if that is to be replayed
        self._turn = 0
        self._begun: list[Work] = []
        self.waiting: set[str] = set()
        """Of a topic, none: partitions are there whole."""

    @property
    def names(self) -> list[str]:
        """Names of the partitions, in their order."""
        return list(self._parts)

    def seek(self, cursors: Mapping[str, Cursor]) -> None:
        """Begin to read: at the cursors of a resumed shard, else at the start.

        Raises
        ------
        InputError
            If what is to be read next was never there. If it is not there any more, `read` says so.
        """
        known = any(cursor.head for cursor in cursors.values())
        self._consumer.identify(self._seconds, known=known)
        mark = self._consumer.mark
        for name in cursors:
            if name not in self._parts:
                raise InputError(f"{name}: was learned from, and is no partition of the input now")
        for name, index in self._parts.items():
            cursor = cursors.get(name)
            if cursor is not None and cursor.head and mark and cursor.head != mark:
                raise InputError(
                    f"{name}: the topic was made anew since it was read up to offset "
                    f"{cursor.offset}; begin anew with --fresh"
                )
            low, high = self._consumer.bounds(index, self._seconds)
            if cursor is not None:
                offset = cursor.offset
            elif cursors or index in self._added:
                offset = low  # it is new since reading began, and so is all that is in it
            else:
                offset = self._first(index, low, high)
            if offset > high:
                raise InputError(
                    f"{name}: ends at offset {high}, but was read up to {offset}: another topic of "
                    "the same name? Begin anew with --fresh"
                )
            if cursor is None:
                self._begun.append(self._nothing(name, offset, 0))
            else:
                self._cursors[name] = cursor
            self._lows[name] = low
            self._stops[name] = high
            self._consumer.assign(index, max(offset, low))

    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors, to read again what came after them."""
        for name, cursor in cursors.items():
            index = self._parts[name]
            self._cursors[name] = cursor
            self._lows[name], _ = self._consumer.bounds(index, self._seconds)
            self._consumer.assign(index, max(cursor.offset, self._lows[name]))

    def lows(self) -> dict[str, int]:
        """Return, by partition, the oldest offset that is there.

        Raises
        ------
        NoAnswerError
            If the brokers do not say so.
        """
        bounds = self._consumer.bounds
        return {name: bounds(index, self._seconds)[0] for name, index in self._parts.items()}

    def begin(self) -> list[Work]:
        """Return empty ranges: where partitions begin, and of what topic they are, for the journal.

        They are to be journaled once nothing is to be replayed.
        """
        begun, self._begun = self._begun, []
        for name, cursor in self._cursors.items():
            if cursor.head == 0 and self._consumer.mark:
                begun.append(self._nothing(name, cursor.offset, cursor.crc))
        return begun

    def rescan(self) -> list[str]:
        """Of a topic, nothing: another partition is taken up by a restart."""
        return []

    def csv_options(self, name: str) -> None:
        """Of a topic, none."""

    def close(self) -> None:
        """Leave the consumer to the other shards."""

    def _first(self, index: int, low: int, high: int) -> int:
        if self._start == "earliest":
            return low
        if self._start == "latest":
            return high
        return self._consumer.at_time(index, self._start, self._seconds)

    def read(self, max_bytes: int) -> Work | None:
        """Return the next block, or None if there is nothing (more) now; never blocks.

        Raises
        ------
        InputError
            If messages were deleted before they were read, and are not to be skipped.
        """
        names = list(self._parts)
        for i in range(len(names)):
            name = names[(self._turn + i) % len(names)]
            work = self._read(name, max_bytes, None)
            if work is None and self._cursors[name].offset < self._lows[name]:
                work = self._skip(name)
            if work is not None:
                self._turn = (self._turn + i + 1) % len(names)
                return work
        return None

    def _read(self, name: str, max_bytes: int, until: int | None) -> Work | None:
        if self._cursors[name].offset < self._lows[name]:
            return None
        index = self._parts[name]
        messages = self._consumer.take(index, max_bytes, until)
        if messages is not None:
            return self._work(name, index, messages)
        if (why := self._consumer.out_of_range(index)) is not None:
            self._look_again(name, index, why)
        return None

    def _look_again(self, name: str, index: int, why: str) -> None:
        """Find out what there is, now that the brokers do not have what comes next."""
        try:
            low, high = self._consumer.bounds(index, min(self._seconds, _ASIDE))
        except NoAnswerError:
            return  # it is asked again
        offset = self._cursors[name].offset
        if low <= offset:
            raise InputError(
                f"{name}: begins at offset {low} and ends at {high} now, but was read up to "
                f"{offset}: another topic of the same name, or its end was lost? ({why})"
            )
        self._lows[name] = low
        self._consumer.assign(index, low)

    def _skip(self, name: str) -> Work:
        """Go on after what was deleted before it was read, if that is wanted."""
        start, stop = self._cursors[name].offset, self._lows[name]
        if self._on_lost == "stop":
            raise InputError(
                f"{name}: offsets {start} to {stop - 1} were deleted before they were "
                'read; input.on_lost = "skip" goes on without them'
            )
        self._consumer.tell(
            "input_lost", partition=name, start=start, stop=stop, action="it is skipped"
        )
        return self._nothing(name, stop, self._cursors[name].crc)

    def _work(self, name: str, index: int, messages: Messages) -> Work:
        cursor = self._cursors[name]
        stop = int(messages.offsets[-1]) + 1
        # With the newline after each message, so that it matters where one ends.
        crc = zlib.crc32(messages.data, cursor.crc)
        block = MessageBlock(self._consumer.topic, index, messages, cursor.offset, stop)
        return self._to(block, crc)

    def _nothing(self, name: str, stop: int, crc: int) -> Work:
        """Return an empty block from the cursor (if there is one) to `stop`, and go on there."""
        start = self._cursors[name].offset if name in self._cursors else stop
        nothing = Messages([], np.zeros(0, np.int64), [])
        topic, index = self._consumer.topic, self._parts[name]
        return self._to(MessageBlock(topic, index, nothing, start, stop), crc)

    def _to(self, block: MessageBlock, crc: int) -> Work:
        """Return a block as work, and go on after it."""
        name, stop, mark = block.partition, block.stop, self._consumer.mark
        self._cursors[name] = Cursor(stop, stop, crc, mark)
        return Work(block, Range(name, block.start, stop, stop, crc, mark))

    @property
    def ended(self) -> bool:
        """Whether all that was there when reading began was read, if that is the end."""
        return self._until_eof and all(
            self._cursors[name].offset >= self._stops[name] or self._consumer.ended(index)
            for name, index in self._parts.items()
        )

    def told(self, learned: Mapping[str, int]) -> dict[int, int]:
        """Return, by partition, what to tell of how far it was learned: up to `learned`.

        Where all is learned, that is the end of the partition, past what is no message.
        """
        positions = {}
        for name, offset in learned.items():
            end = self._consumer.end(self._parts[name])
            taken = self._cursors[name].offset
            positions[self._parts[name]] = max(end, offset) if offset == taken else offset
        return positions

    def replay(self, span: Range, max_bytes: int) -> Work | None:
        """Read a range of the journal again, a block a call, until one is `final`.

        None where the brokers have not delivered it yet.

        Raises
        ------
        InputError
            If what was learned is not there any more, or is something else now.
        """
        name = span.partition
        index = self._parts[name]
        cursor = self._cursors[name]
        if span.start == span.stop:
            return self._nothing(name, span.stop, span.crc)
        if cursor.offset < self._lows[name]:  # it may have been gone then, too: the sum tells
            self._gone[name] = cursor.offset
            work = self._nothing(name, min(self._lows[name], span.stop), cursor.crc)
        else:
            found = self._read(name, max_bytes, span.stop)
            if found is None:
                if self._consumer.waits_from(index, span.stop) or self._consumer.ended(index):
                    raise _cannot_replay(name, cursor.offset, span.stop)
                return None
            work = found
        if work.span.stop < span.stop:
            return work._replace(final=False)
        gone = self._gone.pop(name, None)
        if work.span.crc != span.crc and gone is not None:
            raise _cannot_replay(name, gone, self._lows[name])
        if work.span.crc != span.crc:
            raise InputError(
                f"{name}: offsets {span.start} to {span.stop - 1} are not what was learned from "
                "them: some were deleted, compacted, or are of another topic of the same name"
            )
        return work


def _cannot_replay(name: str, start: int, stop: int) -> InputError:
    return InputError(
        f"{name}: offsets {start} to {stop - 1} are not there any more (deleted, or compacted), "
        "and the journal says that they were learned; without them or a newer snapshot the state "
        "cannot be rebuilt: put the state folder back, or begin anew with --fresh"
    )
