"""The other side of `kafka.py`: a bare loop that only consumes and decodes a topic, to its end.

Prints one JSON object. With an output topic, each event gives a JSON message there, too. The loop
is what one would write without Midstream: nothing is learned, nothing kept for after a crash.
"""

import argparse
import json
import time

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition
from streams import names

ASKED = 2_000  # messages at once: as the engine
FETCH = {  # as the engine, too
    "fetch.wait.max.ms": 10,
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 16 * 1024,
    "check.crcs": True,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "enable.auto.commit": False,
}

X = msgspec.defstruct("X", [(name, float) for name in names(10)], gc=False)


class Event(msgspec.Struct, gc=False):
    """What a message holds."""

    id: str
    x: X  # type: ignore[valid-type]
    y: bool


class Prediction(msgspec.Struct, gc=False):
    """What a message of the output holds: as many fields as the engine's have."""

    id: str
    model: str
    version: int
    role: str
    y_pred: bool
    y_proba: dict[str, float]
    ts: float
    origin: tuple[str, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("--to", help="topic of an output")
    options = parser.parse_args()
    server = {"bootstrap.servers": options.bootstrap}
    consumer = Consumer({**server, **FETCH, "group.id": "bare"})
    consumer.assign([TopicPartition(options.topic, 0, OFFSET_BEGINNING)])
    producer = None
    if options.to:
        settings = {"enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4"}
        producer = Producer({**server, **settings})
        producer.list_topics(options.to, 10)
    time.sleep(0.2)  # what is fetched before an engine's clock begins is fetched here, too
    decode = msgspec.json.Decoder(Event).decode
    encode = msgspec.json.Encoder().encode
    begun = time.perf_counter()
    events, ended = 0, False
    while not ended:
        for message in consumer.consume(ASKED, 0.01):
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended = True
                continue
            event = decode(message.value())
            events += 1
            if producer is None:
                continue
            origin = (options.topic, 0, message.offset())
            ts = message.timestamp()[1] / 1000
            proba = {"false": 0.25, "true": 0.75}
            value = encode(Prediction(event.id, "m", 0, "champion", event.y, proba, ts, origin))
            while True:
                try:
                    producer.produce(options.to, value)
                    break
                except BufferError:
                    producer.poll(0.1)
        if producer is not None:
            producer.poll(0)
    if producer is not None:
        assert producer.flush(60) == 0, "not all was delivered"
    print(json.dumps({"events": events, "seconds": time.perf_counter() - begun}))
    consumer.close()


if __name__ == "__main__":
    main()
