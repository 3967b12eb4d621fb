"""A Kafka topic as a kind of input, set by `input.topic`."""

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.input import Input
from midstream.flows.config.settings import Input as InputSection
from midstream.flows.config.settings import Settings, check_brokers
from midstream.flows.config.tables import ConfigReader
from midstream.flows.inputs.kind import InputKind, Source

if TYPE_CHECKING:
    from midstream.connectors.kafka.consumer import Consumer

__all__ = ["TopicKind", "TopicSource"]

_LOOK_SECONDS = 1.0  # to wait for an answer that is not urgent


class TopicSource(Source):
    """The topic of a config: one client of the brokers, shared by the shards of a process."""

    numbered: ClassVar[bool] = True

    def __init__(self, settings: Settings, consumer: "Consumer", *, until_eof: bool) -> None:
        self._settings = settings
        self._consumer = consumer
        self._until_eof = until_eof

    def partitions(self) -> list[str]:
        """Return the names of the topic's partitions, in the order of their numbers."""
        from midstream.flows.inputs.topics import partitions_of

        return partitions_of(self._settings, self._consumer)

    def open(self, part: str | None, decoding: Decoding, *, added: bool = False) -> Input:
        """Return the input of one shard: one partition, or all of them."""
        from midstream.flows.inputs.topics import open_topic

        return open_topic(
            self._settings,
            self._consumer,
            part,
            until_eof=self._until_eof,
            added=added,
            decoding=decoding,
        )

    def look(self, known: Collection[str]) -> list[str]:
        """Return the new partitions; takes a few ms if the brokers are healthy.

        Raises
        ------
        InputError
            If the topic was deleted or recreated.
        """
        from midstream.connectors.kafka.consumer import partition_name

        found = self._consumer.look(_LOOK_SECONDS) or ()
        names = [partition_name(self._consumer.topic, index) for index in found]
        return [name for name in names if name not in known]

    def close(self) -> None:
        """Close the client."""
        self._consumer.close()


class TopicKind(InputKind):
    """A Kafka topic."""

    name: ClassVar[str] = "topic"
    position: ClassVar[str] = "offset"
    range_form: ClassVar[str] = "TOPIC:PARTITION:FROM-TO"
    across_hosts: ClassVar[bool] = True
    of_kafka: ClassVar[bool] = True
    whole: ClassVar[bool] = False

    def recognises(self, source: InputSection) -> bool:
        """Whether `topic` is set."""
        return source.topic is not None

    def check(self, settings: Settings, reader: ConfigReader) -> None:
        """Raise ConfigError for settings that a topic does not allow."""
        self.check_options(settings, reader)
        if settings.input.topic is None:
            raise reader.error("input.topic", "missing; needed: the name of a topic")
        check_brokers(settings, reader)
        for kind, topic in settings.output.topics.items():
            if topic == settings.input.topic:
                raise reader.error(f"output.{kind}", "is the topic that is read; choose another")

    def identity(self, settings: Settings) -> str:
        """Return the name of the topic."""
        return settings.input.topic or ""

    def preflight(self, settings: Settings, *, until_eof: bool) -> None:
        """Raise ConfigError if librdkafka rejects a setting in [kafka]; asks no broker."""
        from midstream.flows.inputs.topics import check_kafka

        del until_eof
        check_kafka(settings)

    def connect(self, settings: Settings, *, until_eof: bool) -> TopicSource:
        """Return the source with a new client of the brokers."""
        from midstream.flows.inputs.topics import open_consumer

        return TopicSource(settings, open_consumer(settings), until_eof=until_eof)

    def partition_of(self, settings: Settings, text: str) -> str:
        """Return the partition named by TOPIC:PARTITION.

        Raises
        ------
        ValueError
            If it belongs to another topic, or has no number.
        """
        topic = settings.input.topic
        given, colon, index = text.rpartition(":")
        if not colon or not index.isdecimal():
            raise ValueError(f"found {text!r}")
        if given != topic:
            raise ValueError(f"found topic {given!r}; the input is {topic!r}")
        return f"{topic}-{int(index)}"
