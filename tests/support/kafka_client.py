"""What a test does with a Kafka cluster at an address: topics, and messages in and out."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

# Brokers are killed in these tests; that clients notice is no news.
QUIET = {"log_level": 2, "reconnect.backoff.max.ms": 500}

NO_LEADER_YET = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
}


class Message(NamedTuple):
    """A message as it was read; the timestamp is in milliseconds."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp: int


class Kafka:
    """A cluster at an address. Every method raises when it is not done within `timeout` seconds."""

    def __init__(self, bootstrap: str, *, timeout: float = 120.0) -> None:
        self.bootstrap = bootstrap
        self.timeout = timeout

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return librdkafka settings to connect with; `a_b=1` stands for `a.b`."""
        named = {name.replace("_", "."): value for name, value in more.items()}
        return {"bootstrap.servers": self.bootstrap, **QUIET, **named}

    def admin(self) -> AdminClient:
        return AdminClient(self.settings())

    def create_topic(
        self, name: str, partitions: int = 1, config: Mapping[str, Any] | None = None
    ) -> str:
        """Create a topic, replicated as the cluster does by default; return its name."""
        admin = self.admin()
        wanted = NewTopic(
            name,
            num_partitions=partitions,
            replication_factor=-1,
            config={key: str(value) for key, value in (config or {}).items()},
        )
        admin.create_topics([wanted])[name].result(self.timeout)
        self._until_led(name, partitions)
        return name

    def _until_led(self, name: str, partitions: int) -> None:
        admin = self.admin()

        def led() -> bool:
            found = admin.list_topics(timeout=self.timeout).topics.get(name)
            return (
                found is not None
                and len(found.partitions) == partitions
                and all(p.leader >= 0 for p in found.partitions.values())
            )

        self._until(led, f"{name} has no leaders")

    def add_partitions(self, name: str, total: int) -> None:
        """Let a topic have more partitions, `total` in all."""
        admin = self.admin()
        admin.create_partitions([NewPartitions(name, total)])[name].result(self.timeout)
        self._until_led(name, total)

    def configure_topic(self, name: str, config: Mapping[str, Any]) -> None:
        """Set some of a topic's settings; the others stay."""
        entries = [
            ConfigEntry(key, str(value), incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        wanted = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        admin = self.admin()
        admin.incremental_alter_configs([wanted])[wanted].result(self.timeout)

    def delete_topic(self, name: str) -> None:
        admin = self.admin()
        admin.delete_topics([name])[name].result(self.timeout)
        self._until(lambda: name not in self.topics(), f"{name} is still there")

    def topics(self) -> list[str]:
        return sorted(self.admin().list_topics(timeout=self.timeout).topics)

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the id of the node that leads a partition; -1 if none does."""
        found = self.admin().list_topics(timeout=self.timeout).topics[topic]
        return found.partitions[partition].leader

    def produce(
        self,
        topic: str,
        messages: Iterable[tuple],
        *,
        transactional_id: str | None = None,
        abort: bool = False,
    ) -> int:
        """Produce `(key, value, partition[, headers])`; return how many were acknowledged by all.

        A partition of None leaves the choice to the key. With a `transactional_id` all are one
        transaction, written out and then committed or aborted.
        """
        settings = self.settings(
            enable_idempotence=True,
            delivery_timeout_ms=int(self.timeout * 1000),
            message_max_bytes=100_000_000,  # the broker decides
        )
        if transactional_id is not None:
            settings["transactional.id"] = transactional_id
            settings["transaction.timeout.ms"] = int(self.timeout * 1000)
        producer = Producer(settings)
        if transactional_id is not None:
            producer.init_transactions(self.timeout)
            producer.begin_transaction()
        errors, acknowledged = [], 0

        def delivered(error, _message) -> None:
            nonlocal acknowledged
            if error is None:
                acknowledged += 1
            else:
                errors.append(error)

        for key, value, partition, *headers in messages:
            place = {} if partition is None else {"partition": partition}
            rest = {"headers": headers[0]} if headers and headers[0] else {}
            while True:
                try:
                    producer.produce(topic, value, key, on_delivery=delivered, **place, **rest)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        left = producer.flush(self.timeout)
        if errors:
            raise KafkaException(errors[0])
        if left:
            raise TimeoutError(f"{left} messages not acknowledged within {self.timeout} s")
        if transactional_id is not None:
            end = producer.abort_transaction if abort else producer.commit_transaction
            end(self.timeout)
        return acknowledged

    def read_all(
        self, topic: str, read_committed: bool = True, *, settle: float = 20.0
    ) -> list[Message]:
        """Read a topic from beginning to end, by partition and offset.

        A commit returns before its markers are written, so with `read_committed` open transactions
        have `settle` seconds to be decided; those that are open still end what is read.
        """
        partitions = self.admin().list_topics(topic, timeout=self.timeout).topics[topic].partitions
        places = [TopicPartition(topic, partition) for partition in sorted(partitions)]
        if read_committed:
            end, pause, admin = time.monotonic() + settle, 0.02, self.admin()
            while time.monotonic() < end and (
                self.ends(topic, admin=admin) != self.ends(topic, True, admin=admin)
            ):
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
        consumer = Consumer(
            self.settings(
                group_id=f"read-all-{secrets.token_hex(4)}",
                enable_auto_commit=False,
                enable_partition_eof=True,
                fetch_wait_max_ms=20,  # the end is seen by a fetch that finds nothing
                isolation_level="read_committed" if read_committed else "read_uncommitted",
                auto_offset_reset="error",
            )
        )
        read: list[Message] = []
        unfinished = {place.partition for place in places}
        deadline = time.monotonic() + self.timeout
        try:
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in unfinished])
            while unfinished:
                for message in consumer.consume(10_000, 0.1):
                    error = message.error()
                    if error is None:
                        read.append(_message(message))
                    elif error.code() == KafkaError._PARTITION_EOF:
                        unfinished.discard(message.partition())
                    elif error.fatal() or not error.retriable():
                        raise KafkaException(error)
                if unfinished and time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{topic}: partitions {sorted(unfinished)} not read within {self.timeout} s"
                    )
        finally:
            consumer.close()
        return sorted(read, key=lambda message: (message.partition, message.offset))

    def ends(
        self, topic: str, read_committed: bool = False, *, admin: AdminClient | None = None
    ) -> dict[int, int]:
        """Return the offset after the last message, by partition.

        Who asks often gives a client: to make one takes longer than the answer.
        """
        admin = admin or self.admin()
        partitions = admin.list_topics(topic, timeout=self.timeout).topics[topic].partitions
        asked = {TopicPartition(topic, p): OffsetSpec.latest() for p in partitions}
        level = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
        found: dict[int, int] = {}

        def answered() -> bool:
            # A leader that is just made, or just dead, has no answer: each try is a short one.
            answers = admin.list_offsets(asked, isolation_level=level, request_timeout=1.0)
            for place, answer in answers.items():
                try:
                    found[place.partition] = answer.result().offset
                except KafkaException as error:
                    found[place.partition] = -1
                    code = error.args[0].code()
                    if not error.args[0].retriable() and code not in NO_LEADER_YET:
                        raise
            return min(found.values()) >= 0

        self._until(answered, f"{topic}: no leader says where it ends")
        return found

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return how far a consumer group has come, by partition, as it was told."""
        admin = self.admin()
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
        found = asked[group].result(self.timeout).topic_partitions
        return {place.partition: place.offset for place in found if place.topic == topic}

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + self.timeout
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} after {self.timeout} s")
            time.sleep(0.02)


def _message(message: Any) -> Message:
    return Message(
        message.topic(),
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        message.headers() or [],
        message.timestamp()[1],
    )
