"""A journal on Kafka: each record is committed in one transaction with the outputs it caused."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import confluent_kafka as ck
import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from midstream.connectors.kafka import Heard, said, topics_of
from midstream.engine.journal import Entry, JournalError, Record, UnavailableError

__all__ = ["KafkaJournal"]

_OURS: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "delivery.report.only.error": True,  # a commit says that all was delivered
}
_DEFAULTS: dict[str, Any] = {
    # A writer that was killed blocks readers until its transaction is given up.
    "transaction.timeout.ms": 10_000,
    "linger.ms": 5,
    "compression.type": "lz4",
}


_DROPPED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # because of something else
_DOUBT = 5.0  # seconds to find out whether another run has taken over
_FENCED = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)


class KafkaJournal:
    """A journal in a partition of a topic, with outputs that are topics too.

    Guarantee: a record and the outputs that it caused are seen together, by those who read what is
    committed, or not at all; and whoever recovers the journal shuts out all who wrote before.

    Parameters
    ----------
    settings
        Of librdkafka.
    writer
        The `transactional.id`: one journal at a time may write under it.
    topic, index
        Where the records are.
    outputs
        The topic of each output.
    seconds
        How long to wait for an answer of the brokers.
    signatures
        By writer, those in its journal that this process knows: kept up by `recover`, for the
        journals that follow in this process. Where another has signed since, it has replaced us,
        and we may not take over again.
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
        signatures: dict[str, set[str]] | None = None,
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._topic = topic
        self._index = index
        self._outputs = dict(outputs or {})
        self._seconds = seconds
        self._heard = Heard()
        self._producer: Any = None
        self._open = False  # a transaction
        self._lost = ""  # why a message was not delivered
        self._failed: JournalError | None = JournalError(f"{topic}: was not recovered")
        self._too_long = False  # ... if it never will be
        self._signatures = {} if signatures is None else signatures
        self._token = secrets.token_hex(8)  # what we sign with
        self._known = False  # whether we have
        self._before: set[str] = set()  # what others had signed with
        self._position = 0  # in the topic, after all that was read of it
        self.first = 0
        self.end = 0
        self.lost_outputs: list[str] = []

    def recover(self) -> list[Record]:
        """Shut out earlier writers, return what they committed, in order, and sign below it.

        Raises
        ------
        JournalError
            If another has taken over from this process, or the journal cannot be used as it is.
        UnavailableError
            If the brokers do not answer.
        """
        self._producer = ck.Producer(
            {
                **_DEFAULTS,
                **self._settings,
                **_OURS,
                "transactional.id": self._writer,
                "on_delivery": self._told,
                "error_cb": self._heard,
            }
        )
        self._check_topics()
        if self._writer in self._signatures and self._replaced(self._read()):
            raise self._taken_over()
        self._ask("shut out earlier writers", self._producer.init_transactions)
        records = self._read()
        for before, after in pairwise(records):
            if after.seq != before.seq + 1:
                raise JournalError(
                    f"{self._topic}: record {after.seq} follows record {before.seq}; some are gone"
                )
        self.first = records[0].seq if records else 0
        self.end = records[-1].seq + 1 if records else 0
        self._open, self._failed, self._lost, self._too_long = False, None, "", False
        self._known = False
        self._before = {record.writer for record in records}
        if records:  # else its first record will
            self.commit([])
        return records

    def _replaced(self, records: Sequence[Record]) -> bool:
        """Whether another has signed since this process did."""
        known = self._signatures.get(self._writer, set())
        return any(record.writer not in known for record in records if record.writer)

    def _taken_over(self) -> JournalError:
        return JournalError(
            f"{self._writer}: another run has taken over these outputs; this one stops"
        )

    def _check_topics(self) -> None:
        """Raise JournalError, naming it, if a topic that is written to is not there."""
        found = topics_of(self._producer, self._seconds, heard=self._heard)
        for topic in (*self._outputs.values(), self._topic):
            if topic not in found:
                raise JournalError(f"{topic}: no such topic; `midstream init-topics` creates it")
        if self._index not in found[self._topic].partitions:
            raise JournalError(
                f"{self._topic}: has {len(found[self._topic].partitions)} partitions; needed: one "
                "for each partition of the input; `midstream init-topics` adds what is missing"
            )

    def _read(self, start: int = 0) -> list[Record]:
        """Return what is committed from an offset on."""
        where = TopicPartition(self._topic, self._index)
        consumer = ck.Consumer(
            {
                **self._settings,
                "group.id": self._writer,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )
        records: list[Record] = []
        try:
            low, high = consumer.get_watermark_offsets(where, timeout=self._seconds)
            position = where.offset = max(low, start)
            consumer.assign([where])
            deadline = time.monotonic() + self._seconds
            while position < high:
                messages: list[Any] = consumer.consume(10_000, 0.05)
                for message in messages:
                    error = message.error()
                    if error is None:
                        record = msgspec.json.decode(message.value(), type=Record)
                        records.append(record)
                        position = message.offset() + 1
                        deadline = time.monotonic() + self._seconds
                    elif error.code() == KafkaError._PARTITION_EOF:
                        position = max(position, message.offset())
                    elif not error.retriable():
                        raise JournalError(f"{self._topic}: cannot be read: {said(error)}")
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{self._topic}: its end could not be read within {self._seconds:g} s"
                    )
            self._position = position
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
        return records

    def write(self, output: str, data: bytes) -> None:
        """Add to an output, a message for each line; part of the next commit."""
        if not data:
            return
        with self._whole():
            topic = self._outputs[output]
            self._begin()
            produce = self._producer.produce
            for line in data.split(b"\n")[:-1]:
                try:
                    produce(topic, line)
                except (BufferError, KafkaException):
                    self._produce(topic, line)
            self._ask("write", self._poll)

    def commit(self, entries: Sequence[Entry], about: Mapping[str, Any] | None = None) -> int:
        """Commit entries and what was written since the last commit, in one piece; return `end`."""
        with self._whole():
            self._begin()
            record = Record(
                self.end,
                list(entries),
                about=dict(about) if about else None,
                writer="" if self._known else self._token,
            )
            self._produce(self._topic, msgspec.json.encode(record), self._index)
            self._ask("commit", self._producer.commit_transaction)
            self._open = False
            if not self._known:
                self._known = True
                self._signatures[self._writer] = {self._token, *self._before}
        self.end += 1
        return self.end

    def trim(self, seq: int) -> None:
        """Records stay as long as the topic keeps them."""

    def close(self) -> None:
        """Leave the brokers; what is not committed is as if it had not been."""
        if self._producer is not None and self._open and self._failed is None:
            with suppress(KafkaException):  # the brokers give it up by themselves
                self._producer.abort_transaction(self._seconds)
        self._producer = None

    def _begin(self) -> None:
        if not self._open:
            self._ask("begin", lambda _: self._producer.begin_transaction())
            self._open = True

    def _poll(self, _: float) -> None:
        """Hear of deliveries; raises once the producer is of no use any more."""
        self._producer.poll(0)

    def _produce(self, topic: str, value: bytes, partition: int = -1) -> None:
        deadline = 0.0
        while True:
            try:
                self._producer.produce(topic, value, partition=partition)
                return
            except BufferError:  # so much is on its way already
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
        """Do what can be tried again, until the brokers have answered."""
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
        """Return why a transaction has to be given up: for `reason`, unless we are shut out."""
        try:
            self._producer.abort_transaction(min(self._seconds, _DOUBT))
        except KafkaException as error:
            if error.args[0].code() in _FENCED:
                return self._shut_out(reason)
        return UnavailableError(reason)

    def _shut_out(self, what: str) -> JournalError:
        """Return why we are shut out: another run signs the journal, or we were silent too long.

        The brokers do not tell these apart: they give up a transaction that takes too long, of a
        process that was frozen, say, in the same way as one of a run that was replaced.
        """
        if not self._known:  # no transaction of ours has lasted
            return self._taken_over()
        until = time.monotonic() + _DOUBT  # it signs a moment after it shuts us out
        while True:
            try:
                records = self._read(self._position)
            except UnavailableError as error:  # `recover` looks again
                return error
            if self._replaced(records):
                return self._taken_over()
            if time.monotonic() > until:
                return UnavailableError(
                    f"{self._writer}: the brokers gave up a transaction that took too long ({what})"
                )
            time.sleep(_DOUBT / 10)

    def _told(self, error: Any, message: Any) -> None:
        if error is None or self._too_long or error.code() in _DROPPED:
            return
        self._too_long = error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        if self._too_long:
            self._lost = _too_long(message.topic(), message.value())
        else:
            self._lost = f"{message.topic()}: was not delivered: {said(error)}"

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """After a failure nobody knows what was committed; only recovery finds out."""
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
