"""Messages to a topic, each acknowledged or not: for those who feed an engine, not for its outputs.

What an engine puts out goes through `kafka_journal`, in transactions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import confluent_kafka as ck
from confluent_kafka import KafkaException

from midstream.connectors.input import InputError
from midstream.connectors.kafka.consumer import no_topic, said, topics_of

__all__ = ["Sender"]

_OURS: dict[str, Any] = {"enable.idempotence": True, "acks": "all"}
_DEFAULTS: dict[str, Any] = {
    "compression.type": "lz4",
    "message.timeout.ms": 60_000,
    # As Java's: a key is in the same partition, whoever produces.
    "partitioner": "murmur2_random",
}


class Sender:
    """Produces messages to one topic and counts what becomes of them.

    Guarantee: a message that is counted as acknowledged is in the topic once, on all replicas in
    sync, those of one key in their order.

    Parameters
    ----------
    settings
        Of librdkafka.
    topic
        Where messages go.
    seconds
        How long to wait for an answer of the brokers at the start.

    Raises
    ------
    InputError
        If no broker answers, or there is no such topic.
    """

    def __init__(self, settings: Mapping[str, Any], topic: str, *, seconds: float) -> None:
        self.topic = topic
        self.acknowledged = 0
        self.failed = 0
        self.reason = ""
        """Why the first message that failed did."""
        self._producer = ck.Producer({**_DEFAULTS, **settings, **_OURS})
        self._told_of = self._told  # made once: it goes with every message
        if topic not in topics_of(self._producer, seconds):
            raise InputError(no_topic(topic))

    def send(self, value: bytes, key: bytes | None, stop: Callable[[], bool]) -> bool:
        """Produce a message; wait while too many are on their way. Return whether it is, too.

        It is not where `stop` said true meanwhile.

        Raises
        ------
        InputError
            If it can never be sent, as one that is too long.
        """
        while True:
            try:
                self._producer.produce(self.topic, value, key, on_delivery=self._told_of)
                return True
            except BufferError:
                self._producer.poll(0.1)
                if stop():
                    return False
            except KafkaException as error:
                raise InputError(said(error)) from None

    def poll(self, seconds: float) -> None:
        """Take what brokers say; wait for it up to so long."""
        self._producer.poll(seconds)

    def flush(self) -> None:
        """Wait until nothing is on its way any more: each is acknowledged, or has failed."""
        while self._producer.flush(0.1):
            pass

    def _told(self, error: Any, _: Any) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed += 1
            self.reason = self.reason or said(error)
