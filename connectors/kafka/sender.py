"""Sends messages to a topic, and counts acknowledgements: for what feeds an engine.

An engine writes its outputs through `midstream.connectors.kafka.journal`, in transactions.
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
    # As Java's default: a key maps to the same partition for all producers.
    "partitioner": "murmur2_random",
}


class Sender:
    """Produces messages to one topic and counts their results.

    Guarantee: a message counted as acknowledged is in the topic once, on all in-sync replicas.
    Messages of one key keep their order.

    Parameters
    ----------
    settings
        Settings of librdkafka.
    topic
        Name of the topic.
    seconds
        How long to wait for an answer from the brokers at the start.

    Raises
    ------
    InputError
        If no broker answers, or the topic does not exist.
    """

    def __init__(self, settings: Mapping[str, Any], topic: str, *, seconds: float) -> None:
        self.topic = topic
        self.acknowledged = 0
        self.failed = 0
        self.reason = ""
        """Why the first failed message failed."""
        self._producer = ck.Producer({**_DEFAULTS, **settings, **_OURS})
        self._on_delivery = self._delivered  # bound once: it is passed with every message
        if topic not in topics_of(self._producer, seconds):
            raise InputError(no_topic(topic))

    def send(self, value: bytes, key: bytes | None, stop: Callable[[], bool]) -> bool:
        """Queue a message; wait while the queue is full. Return whether it was queued.

        It was not if `stop` returned True meanwhile.

        Raises
        ------
        InputError
            If it can never be sent, such as one that is too long.
        """
        while True:
            try:
                self._producer.produce(self.topic, value, key, on_delivery=self._on_delivery)
                return True
            except BufferError:
                self._producer.poll(0.1)
                if stop():
                    return False
            except KafkaException as error:
                raise InputError(said(error)) from None

    def poll(self, seconds: float) -> None:
        """Handle delivery reports; wait for them up to `seconds`."""
        self._producer.poll(seconds)

    def flush(self) -> None:
        """Wait until every message is acknowledged or has failed."""
        while self._producer.flush(0.1):
            pass

    def _delivered(self, error: Any, _: Any) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed += 1
            self.reason = self.reason or said(error)
