"""Produces events at a rate, and measures how long their predictions take to be seen.

For `kafka.py`: an engine runs meanwhile. Each event's `ts` is the moment just before it is
produced, so the engine can tell when it was learned (`TIMED` there). Prints one JSON object.
"""

import argparse
import json
import random
import time

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from streams import hyperplane, percentiles

WARM = 2.0  # seconds that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("predictions")
    parser.add_argument("rate", type=int)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    server = {"bootstrap.servers": options.bootstrap}
    fetch = {"fetch.wait.max.ms": 10, "isolation.level": "read_committed"}
    reader = Consumer({**server, **fetch, "group.id": "seen", "enable.auto.commit": False})
    reader.assign([TopicPartition(options.predictions, 0, OFFSET_END)])
    reader.consume(1, 1.0)
    producer = Producer({**server, "enable.idempotence": True})
    events = list(hyperplane(10_000))
    tag = random.randrange(10**9)
    sent: dict[str, float] = {}
    taken: list[float] = []
    wanted = int(options.rate * (options.seconds + WARM))
    counted = int(options.rate * WARM)
    number = 0

    def produce() -> None:
        nonlocal number
        x, y = events[number % len(events)]
        name, now = f"{tag}-{number}", time.time()
        sent[name] = now
        value = json.dumps({"id": name, "x": x, "y": y, "ts": now}).encode()
        producer.produce(options.topic, value)
        number += 1

    def see() -> None:
        for message in reader.consume(1_000, 0):
            assert message.error() is None, message.error()
            now = time.time()
            name = json.loads(message.value())["id"]
            if name in sent:
                begun = sent.pop(name)
                if int(name.partition("-")[2]) >= counted:
                    taken.append(now - begun)

    produce()
    patience = time.perf_counter() + 60
    while sent:  # until the engine is there
        assert time.perf_counter() < patience, "no prediction was seen"
        producer.poll(0)
        see()
    begun = time.perf_counter()
    while number < wanted or sent:
        assert time.perf_counter() - begun < 10 * (options.seconds + WARM), (
            "predictions are missing"
        )
        due = min(int((time.perf_counter() - begun) * options.rate), wanted)
        while number < due:
            produce()
        producer.poll(0.0005)
        see()
    seconds = time.perf_counter() - begun
    print(json.dumps({"events": number, "seconds": seconds, "visible": percentiles(taken)}))
    reader.close()


if __name__ == "__main__":
    main()
