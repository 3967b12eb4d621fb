"""The Kafka objects of a config: its consumer, the input of a shard, its journal and outputs."""

import re
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.input import InputError
from midstream.connectors.kafka.consumer import (
    Consumer,
    Heard,
    Identity,
    partition_name,
    said,
    topics_of,
)
from midstream.connectors.kafka.input import TopicInput
from midstream.connectors.kafka.journal import KafkaJournal, Signature
from midstream.connectors.kafka.sender import Sender
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.logs import log

__all__ = [
    "check_kafka",
    "create_topics",
    "gateway_topics",
    "index_of",
    "journal_id",
    "kafka_options",
    "missing_topics",
    "open_consumer",
    "open_journal",
    "open_sender",
    "open_topic",
    "partitions_of",
]


_FOLDERS = ("ssl.ca.location",)
_FILES = (
    *_FOLDERS,
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
    "https.ca.location",
)
_CREATING = re.compile(r"^Failed to create (consumer|producer|admin client): ")
_PATIENCE = 30.0  # seconds for one answer, if the wait is not limited


def check_kafka(settings: Settings) -> None:
    """Raise ConfigError if librdkafka rejects a setting in [kafka], or a file is not readable.

    It asks no broker.
    """
    options = kafka_options(settings)
    for key in _FILES:
        if options.get(key, "probe") != "probe":
            _check_file(settings, key, Path(options[key]))
    try:
        confluent_kafka.Consumer({"group.id": settings.name, **options}).close()
        confluent_kafka.Producer({"transactional.id": settings.name, **options})
    except (KafkaException, TypeError, ValueError) as error:
        text = _CREATING.sub("", said(error))
        raise ConfigError(f"{settings.file}: kafka: {text}") from None


def _check_file(settings: Settings, key: str, path: Path) -> None:
    """Raise ConfigError unless a file can be read: librdkafka would name only the setting."""
    try:
        if path.is_dir() and key in _FOLDERS:
            list(path.iterdir())
        else:
            path.open("rb").close()
    except OSError as error:
        text = f'kafka."{key}": {path}: cannot be read: {error.strerror}'
        raise ConfigError(f"{settings.file}: {text}") from None


def open_consumer(settings: Settings) -> Consumer:
    """Return the consumer that the shards of a process share."""
    topic = settings.input.topic
    assert topic is not None
    group = str(settings.kafka.get("group.id", settings.name))
    options = kafka_options(settings)
    return Consumer(options, topic, group, identity=Identity(options, topic), log=log.warning)


def journal_id(settings: Settings) -> bytes:
    """Return an id of the journal's topic, which changes if the topic is recreated.

    Raises
    ------
    NoAnswerError, InputError
        If no broker answers, or the topic does not exist.
    """
    topic = settings.journal_topic
    assert topic is not None
    return Identity(kafka_options(settings), topic).whole(_seconds(settings))


def _seconds(settings: Settings) -> float:
    """Return how long to wait for one answer of the brokers."""
    return settings.input.wait_seconds or _PATIENCE


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Return librdkafka's settings for a client without a consumer group."""
    options = {key: value for key, value in settings.kafka.items() if key != "group.id"}
    for key in options.keys() & set(_FILES):
        if options[key] != "probe":  # not a file
            options[key] = str(settings.root / str(options[key]))
    return {"log_level": 2, **options}  # connection errors go to our own log


def partitions_of(settings: Settings, consumer: Consumer) -> list[str]:
    """Return the names of a topic's partitions, in the order of their numbers."""
    found = consumer.partitions(_seconds(settings))
    return [partition_name(consumer.topic, index) for index in found]


def open_topic(
    settings: Settings,
    consumer: Consumer,
    part: str | None,
    *,
    until_eof: bool,
    added: bool = False,
    decoding: Decoding | None = None,
) -> TopicInput:
    """Return the input of a shard: one partition of the topic, or all of them.

    Parameters
    ----------
    added
        Whether the partition was created after the topic was first read.
    """
    parts = [index_of(part)] if part else consumer.partitions(_seconds(settings))
    return TopicInput(
        consumer,
        parts,
        start=settings.input.start,
        until_eof=until_eof,
        on_lost=settings.input.on_lost,
        seconds=_seconds(settings),
        added=parts if added else (),
        decoding=decoding,
    )


def index_of(name: str) -> int:
    """Return the number of a partition, given its name in the journal."""
    return int(name.rpartition("-")[2])


def open_journal(settings: Settings, shard: str, signatures: dict[str, Signature]) -> KafkaJournal:
    """Return the journal of a shard with topics as outputs; `signatures` as in `KafkaJournal`."""
    assert settings.journal_topic is not None
    return KafkaJournal(
        kafka_options(settings),
        f"{settings.journal_topic}-{shard}",  # the same for all writers of this journal
        settings.journal_topic,
        int(shard),
        outputs=settings.output.topics,
        seconds=_seconds(settings),
        signatures=signatures,
    )


def open_sender(settings: Settings, topic: str) -> Sender:
    """Return a sender of messages to a topic.

    Raises
    ------
    ConfigError
        If librdkafka rejects a setting in [kafka].
    InputError
        If no broker answers, or the topic does not exist.
    """
    check_kafka(settings)
    return Sender(kafka_options(settings), topic, seconds=_seconds(settings))


def _admin(settings: Settings) -> tuple[AdminClient, dict[str, Any]]:
    """Return a client, and the existing topics."""
    heard = Heard()
    options: dict[str, Any] = {**kafka_options(settings), "error_cb": heard}
    admin = AdminClient(options)
    return admin, topics_of(admin, _seconds(settings), heard=heard)


def gateway_topics(settings: Settings) -> int:
    """Check that the topics of the gateway exist; return how many replicas its own topic needs.

    Raises
    ------
    InputError
        If no broker answers, or a topic does not exist.
    """
    assert settings.gateway is not None
    _, there = _admin(settings)
    written = settings.gateway.topics_written()
    for key, topic in (settings.gateway.topics_read() | written).items():
        if topic not in there:
            raise InputError(
                f"{topic}: no such topic ({key}); `midstream init-topics {settings.file.name}` "
                "creates it"
            )
    topic = next(iter(written.values()))
    return min(len(found.replicas) for found in there[topic].partitions.values())


def missing_topics(settings: Settings) -> list[str]:
    """Return the topics to write to that do not exist or lack partitions.

    Raises
    ------
    InputError
        If no broker answers.
    """
    _, there = _admin(settings)
    journal = settings.journal_topic
    missing = [topic for topic in settings.output.topics.values() if topic not in there]
    if journal is not None and journal not in there:
        missing.append(journal)
    elif journal is not None and (more := _lacking(settings, there)):
        missing.append(f"{journal} with {more} more partition{'s' * (more > 1)}")
    return missing


def _lacking(settings: Settings, there: dict[str, Any]) -> int:
    """Return how many partitions the existing journal topic lacks."""
    source, journal = settings.input.topic or "", settings.journal_topic or ""
    needed = 1 if settings.one_shard or source not in there else len(there[source].partitions)
    return max(needed - len(there[journal].partitions), 0)


def create_topics(settings: Settings, partitions: int, replicas: int) -> dict[str, str]:
    """Create the missing topics of a config; return what was done for each.

    Those of the gateway are among them, with as many partitions as the input.

    A journal with fewer partitions than the input gets more.

    Parameters
    ----------
    partitions
        Partitions of a missing input topic; feedback, outputs and journal get as many as the input
        has.
    replicas
        Replicas of each partition; -1: the brokers' default.

    Raises
    ------
    ConfigError
        If librdkafka rejects a setting in [kafka].
    InputError
        If no broker answers, or one refuses.
    """
    check_kafka(settings)
    admin, there = _admin(settings)
    source = settings.input.topic
    if source in there:
        partitions = len(there[source].partitions)
    # Midstream trims a journal itself; until then nothing of it may be deleted.
    forever = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
    wanted: dict[str | None, dict[str, str]] = {source: {}}
    if settings.feedback is not None:
        wanted[settings.feedback.topic] = {}
    wanted |= {topic: {} for topic in settings.output.topics.values()}
    wanted[settings.journal_topic] = forever
    if settings.gateway is not None:
        named = settings.gateway.topics_written() | settings.gateway.topics_read()
        wanted |= {topic: {} for topic in named.values() if topic not in wanted}
    done = {topic: "was there" for topic in wanted if topic is not None}
    new = [
        NewTopic(topic, partitions, replicas, config=wanted[topic])
        for topic in done
        if topic not in there
    ]
    for topic, future in (admin.create_topics(new) if new else {}).items():
        done[topic] = "created"
        try:
            future.result(_seconds(settings))
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise InputError(f"{topic}: cannot be created: {said(error)}") from None
    journal = settings.journal_topic
    if journal in there and (more := _lacking(settings, there)):
        total = len(there[journal].partitions) + more
        done[journal] = f"{more} partition{'s' * (more > 1)} added"
        try:
            asked = admin.create_partitions([NewPartitions(journal, total)])
            asked[journal].result(_seconds(settings))
        except KafkaException as error:
            raise InputError(f"{journal}: cannot get more partitions: {said(error)}") from None
    return done
