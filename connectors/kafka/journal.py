"""A journal on Kafka: each record is committed in one transaction with its outputs."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import confluent_kafka as ck
import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from midstream.connectors.kafka.consumer import Heard, no_topic, said, topics_of
from midstream.engine.shard.journal import Entry, JournalError, Record, UnavailableError, gather

__all__ = ["KafkaJournal", "Signature"]

_OURS: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "delivery.report.only.error": True,  # a successful commit implies delivery
}
_DEFAULTS: dict[str, Any] = {
    # A killed writer blocks readers until its transaction times out.
    "transaction.timeout.ms": 10_000,
    "linger.ms": 5,
    "compression.type": "lz4",
}


_MOST_WAITING = 2**20  # bytes of outputs waiting for the next commit
_FEW = 2_000  # offsets that are read linearly rather than searched
_DROPPED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # consequences of an earlier error
_SOON = 0.01  # seconds between attempts to read what is not visible yet
_DOUBT = 5.0  # seconds to find out whether another run has taken over
_FENCED = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)


class Signature(NamedTuple):
    """The tokens that a process signs a journal with, committed or not, and an offset.

    Signatures of others before that offset precede ours; one after it has fenced us off.
    """

    position: int
    tokens: frozenset[str]


class KafkaJournal:
    """A journal in a partition of a topic, with outputs that are topics too.

    Guarantee: readers of committed messages see a record together with its outputs, or neither.
    Whoever recovers the journal fences off all earlier writers.

    Parameters
    ----------
    settings
        Settings of librdkafka.
    writer
        The `transactional.id`: one journal at a time may write under it.
    topic, index
        Topic and partition of the records.
    outputs
        The topic of each output. A journal writes all its outputs to one partition each, in order.
    seconds
        How long to wait for an answer from the brokers.
    signatures
        By writer, what this process has signed. Journals keep it up to date for their successors in
        this process. If another process has signed since, it has replaced this one, which may not
        take over again.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        writer: str,
        topic: str,
        index: int,
        *,
        outputs: Mapping[str, str] | None = None,
        seconds: float = 30.0,
        signatures: dict[str, Signature] | None = None,
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._topic = topic
        self._index = index
        self._outputs = dict(outputs or {})
        self._seconds = seconds
        self._heard = Heard()
        self._producer: Any = None
        self._open = False  # a transaction is open
        self._lost = ""  # why a message was not delivered
        self._failed: JournalError | None = JournalError(f"{topic}: was not recovered")
        self._too_long = False  # the reason can never go away
        self._signatures = {} if signatures is None else signatures
        self._waiting: list[tuple[str, bytes]] = []  # by topic, not produced yet
        self._bytes = 0  # size of `_waiting`
        self._places: dict[str, int] = {}  # by topic, the partition that we write to
        self._token = secrets.token_hex(8)  # our signature
        self._known = False  # whether our signature is committed
        self._position = 0  # in the topic, after everything read so far
        self._oldest = 0  # first record in the topic
        self.first = 0
        self.end = 0
        self.generation = 0
        self.lost_outputs: dict[str, int] = {}

    def recover(self, since: int = 0) -> list[Record]:
        """Fence off earlier writers, return the committed records in order, and sign after them.

        Parameters
        ----------
        since
            Earlier records except the last of them are left out, to read little of a long journal.
            Of very many records, only the last and those that `gather` keeps are returned.

        Raises
        ------
        JournalError
            If another process has taken over, or the journal cannot be used as it is.
        UnavailableError
            If the brokers do not answer.
        """
        self._producer = ck.Producer(
            {
                **_DEFAULTS,
                **self._settings,
                **_OURS,
                "transactional.id": self._writer,
                "on_delivery": self._delivered,
                "error_cb": self._heard,
            }
        )
        self._check_topics()
        signed = self._signatures.get(self._writer)
        if signed is not None and self._replaced(self._read(signed.position)):
            raise self._taken_over()
        # Before signing: if an outage interrupts it, this offset shows who signed after us.
        if signed is None:
            signature = Signature(self._last(), frozenset([self._token]))
        else:
            signature = Signature(self._position, signed.tokens | {self._token})
        self._signatures[self._writer] = signature
        self._ask("shut out earlier writers", self._producer.init_transactions)
        records = self._read(since=since)
        self.first = self._oldest if records else 0
        self.end = records[-1].seq + 1 if records else 0
        self.generation = records[-1].generation if records else 0
        self._open, self._failed, self._lost, self._too_long = False, None, "", False
        self._waiting, self._bytes = [], 0
        self._known = False
        if records:  # else the first record signs
            self.commit([])
        return records

    def _replaced(self, records: Sequence[Record]) -> bool:
        """Whether another process has signed one of these."""
        signed = self._signatures.get(self._writer)
        ours = signed.tokens if signed is not None else frozenset()
        return any(record.writer not in ours for record in records if record.writer)

    def _taken_over(self) -> JournalError:
        return JournalError(
            f"{self._writer}: another run has taken over these outputs; this one stops"
        )

    def _check_topics(self) -> None:
        """Raise JournalError, naming the topic, if a topic to write to does not exist."""
        found = topics_of(self._producer, self._seconds, heard=self._heard)
        for topic in (*self._outputs.values(), self._topic):
            if topic not in found:
                raise JournalError(no_topic(topic))
            self._places[topic] = self._index % max(len(found[topic].partitions), 1)
        if self._index not in found[self._topic].partitions:
            raise JournalError(
                f"{self._topic}: has {len(found[self._topic].partitions)} partitions; needed: one "
                "for each partition of the input; `midstream init-topics` adds what is missing"
            )

    def _last(self) -> int:
        """Return the end offset of the topic now, committed or not."""
        with self._reader("read_uncommitted") as consumer:
            where = TopicPartition(self._topic, self._index)
            end: int = consumer.get_watermark_offsets(where, timeout=self._seconds)[1]
            return end

    def _read(self, start: int = 0, since: int = 0) -> list[Record]:
        """Return the committed records from an offset on, and from the record before `since` on.

        Very many are reduced as in `recover`.

        Raises
        ------
        JournalError
            If some records are missing.
        """
        records: list[Record] = []
        last: Record | None = None
        for batch, position in self._batches(start, since - 1, oldest=start == 0 < since):
            found = [record for record in batch if record.seq >= since - 1]
            for before, after in pairwise([*([last] if last else []), *found]):
                if after.seq != before.seq + 1:
                    raise JournalError(
                        f"{self._topic}: record {after.seq} follows record {before.seq}; some are "
                        "gone"
                    )
            gather(records, found)
            last = found[-1] if found else last
            self._position = position
        if last is not None and last is not records[-1]:
            records.append(last)
        if start == since == 0:
            self._oldest = records[0].seq if records else 0
        return records

    def _batches(
        self, start: int, seq: int, *, oldest: bool = False
    ) -> Iterator[tuple[list[Record], int]]:
        """Yield batches of committed records from an offset on, each with its end offset.

        If `seq` is above 0, begin at record `seq` or a few before it. `oldest`: find out the first
        record of the topic.
        """
        with self._reader() as consumer:
            where = TopicPartition(self._topic, self._index)
            low, high = consumer.get_watermark_offsets(where, timeout=self._seconds)
            where.offset = max(low, start)
            if oldest:
                consumer.assign([where])
                found, _ = self._some(consumer, low, high, most=1)
                self._oldest = found[0].seq if found else 0
            if seq >= 0:
                where.offset = self._near(consumer, where.offset, high, seq)
            position = where.offset
            consumer.assign([where])
            yield [], position
            while position < high:
                found, position = self._some(consumer, position, high)
                yield found, position

    def records(self, since: int) -> Iterator[Record]:
        """Yield the committed records from `since` on, in order.

        Raises
        ------
        JournalError
            If a record is missing.
        UnavailableError
            If the brokers do not deliver in time what they reported as committed.
        """
        expected, deadline = since, time.monotonic() + self._seconds
        while expected < self.end:
            for found, _ in self._batches(0, expected):
                for record in found:
                    if not expected <= record.seq < self.end:
                        continue
                    if record.seq > expected:
                        raise JournalError(f"{self._topic}: record {expected} is gone")
                    expected += 1
                    yield record
            if expected == self.end:
                return
            # A transaction becomes visible a moment after its commit.
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{self._topic}: record {expected} cannot be read within {self._seconds:g} s"
                )
            time.sleep(_SOON)

    @contextmanager
    def _reader(self, level: str = "read_committed") -> Iterator[Any]:
        """Give a consumer of committed messages; translate its errors."""
        consumer = ck.Consumer(
            {
                **self._settings,
                "group.id": self._writer,
                "enable.auto.commit": False,
                "isolation.level": level,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )
        try:
            yield consumer
        except KafkaException as error:
            reason = f"{self._topic}: cannot be read: {said(error)}"
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise JournalError(reason) from None
            raise UnavailableError(reason) from None
        except msgspec.MsgspecError as error:
            raise JournalError(
                f"{self._topic}: holds what is no record of this version: {error}"
            ) from None
        finally:
            consumer.close()

    def _near(self, consumer: Any, low: int, high: int, seq: int) -> int:
        """Return an offset at or shortly before record `seq`."""
        while high - low > _FEW:
            middle = (low + high) // 2
            consumer.assign([TopicPartition(self._topic, self._index, middle)])
            found, _ = self._some(consumer, middle, high, most=1)
            if found and found[0].seq <= seq:
                low = middle
            else:
                high = middle
        return low

    def _some(
        self, consumer: Any, start: int, stop: int, most: int = 10_000
    ) -> tuple[list[Record], int]:
        """Return the next records and the offset after them; none only if there are none to `stop`.

        The consumer is at `start`.
        """
        records: list[Record] = []
        position, deadline = start, time.monotonic() + self._seconds
        while not records and position < stop:
            for message in consumer.consume(most, 0.05):
                error = message.error()
                if error is None:
                    records.append(msgspec.json.decode(message.value() or b"", type=Record))
                    position = message.offset() + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    position = max(position, message.offset())
                elif not error.retriable():
                    raise JournalError(f"{self._topic}: cannot be read: {said(error)}")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{self._topic}: its end could not be read within {self._seconds:g} s"
                )
        return records, position

    def write(self, output: str, data: bytes) -> None:
        """Add to an output, one message per line; part of the next commit."""
        if not data:
            return
        with self._whole():
            # Begin the transaction late: brokers abort one that a slow learner keeps open.
            self._waiting.append((self._outputs[output], data))
            self._bytes += len(data)
            if self._bytes > _MOST_WAITING:
                self._flush()

    def commit(self, entries: Sequence[Entry], about: Mapping[str, Any] | None = None) -> int:
        """Commit entries and what was written since the last commit atomically; return `end`."""
        with self._whole():
            self._flush()
            record = Record(
                self.end,
                list(entries),
                generation=self.generation,
                about=dict(about) if about else None,
                writer="" if self._known else self._token,
            )
            self._produce(self._topic, msgspec.json.encode(record), self._index)
            self._ask("commit", self._producer.commit_transaction)
            self._open = False
            if not self._known:  # nobody has fenced us off so far
                self._known = True
                tokens = self._signatures[self._writer].tokens
                self._signatures[self._writer] = Signature(self._position, tokens)
        self.end += 1
        return self.end

    def _flush(self) -> None:
        """Produce the waiting outputs, in a transaction."""
        self._begin()
        produce = self._producer.produce
        for topic, data in self._waiting:
            place = self._places[topic]
            for line in data.split(b"\n")[:-1]:
                try:
                    produce(topic, line, partition=place)
                except (BufferError, KafkaException):
                    self._produce(topic, line, place)
        self._waiting, self._bytes = [], 0
        self._ask("write", self._poll)

    def trim(self, seq: int) -> None:
        """Do nothing: the topic's retention decides how long records stay."""

    def close(self) -> None:
        """Close the client; abort what is not committed."""
        if self._producer is not None and self._open and self._failed is None:
            with suppress(KafkaException):  # the brokers abort it by themselves
                self._producer.abort_transaction(self._seconds)
        self._producer = None

    def _begin(self) -> None:
        if not self._open:
            self._ask("begin", lambda _: self._producer.begin_transaction())
            self._open = True

    def _poll(self, _: float) -> None:
        """Handle delivery reports; raise once the producer is unusable."""
        self._producer.poll(0)

    def _produce(self, topic: str, value: bytes, partition: int) -> None:
        deadline = 0.0
        while True:
            try:
                self._producer.produce(topic, value, partition=partition)
                return
            except BufferError:  # the client's queue is full
                now = time.monotonic()
                deadline = deadline or now + self._seconds
                if now > deadline or self._lost:
                    reason = self._lost or f"no answer within {self._seconds:g} s"
                    raise self._given_up(f"{topic}: cannot be written to: {reason}") from None
                self._ask("write", lambda _: self._producer.poll(0.1))
            except KafkaException as error:
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise JournalError(_too_long(topic, value)) from None
                reason = self._lost or said(error)
                raise self._given_up(f"{topic}: cannot be written to: {reason}") from None

    def _ask(self, what: str, act: Callable[[float], None]) -> None:
        """Repeat a request that can be retried, until the brokers have answered."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                act(max(deadline - time.monotonic(), 0.1))
                return
            except KafkaException as raised:
                error = raised.args[0]
                if error.code() in _FENCED:
                    raise self._shut_out(what) from None
                if self._too_long:
                    raise JournalError(self._lost) from None
                reason = f"Kafka: could not {what}: {self._lost or said(error)}"
                if error.txn_requires_abort() or (
                    error.retriable() and time.monotonic() > deadline
                ):
                    raise self._given_up(reason) from None
                if not error.retriable():
                    raise JournalError(reason) from None

    def _given_up(self, reason: str) -> JournalError:
        """Abort the transaction; return why: `reason`, unless we are fenced off."""
        try:
            self._producer.abort_transaction(min(self._seconds, _DOUBT))
        except KafkaException as error:
            if error.args[0].code() in _FENCED:
                return self._shut_out(reason)
        return UnavailableError(reason)

    def _shut_out(self, what: str) -> JournalError:
        """Return why we are fenced off: another run signs the journal, or we were silent too long.

        The brokers do not distinguish these. They abort a transaction that takes too long (a frozen
        process, say) in the same way as one of a run that was replaced.
        """
        until = time.monotonic() + _DOUBT  # it signs a moment after it fences us off
        self._position = self._signatures[self._writer].position
        while True:
            try:
                records = self._read(self._position)
            except UnavailableError as error:  # `recover` checks again
                return error
            if self._replaced(records):
                return self._taken_over()
            if time.monotonic() > until:
                return UnavailableError(
                    f"{self._writer}: the brokers gave up a transaction that took too long ({what})"
                )
            time.sleep(_DOUBT / 10)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is None or self._too_long or error.code() in _DROPPED:
            return
        self._too_long = error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        if self._too_long:
            self._lost = _too_long(message.topic(), message.value())
        else:
            self._lost = f"{message.topic()}: was not delivered: {said(error)}"

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Require recovery after a failure: only recovery finds out what was committed."""
        if self._failed is not None:
            raise self._failed
        self._failed = JournalError(f"{self._topic}: an earlier write failed")
        try:
            yield
        except JournalError as error:
            self._failed = error
            raise
        self._failed = None


def _too_long(topic: str, value: bytes) -> str:
    return (
        f"{topic}: a message of {len(value):,} bytes is refused as too long; raise the topic's "
        'max.message.bytes and kafka."message.max.bytes" (or lower kafka."batch.size", if the '
        "topic takes fewer bytes at once than are sent together)"
    )
