"""Produces events at a rate; with a topic of predictions, measures how long they take to be seen.

For `kafka.py`: an engine runs meanwhile. Each event's `ts` is the moment just before it is
produced, so the engine's side can tell when it was learned (see `TIMED` there), and makes the file
`ready` when it has learned the first one. Prints a JSON object.
"""

import argparse
import json
import random
import time
from pathlib import Path

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from streams import hyperplane, percentiles

WARM = 2.0  # seconds that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("rate", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("ready", type=Path)
    parser.add_argument("--predictions", help="their topic")
    options = parser.parse_args()
    server = {"bootstrap.servers": options.bootstrap}
    fetch = {"fetch.wait.max.ms": 10, "isolation.level": "read_committed"}
    reader = None
    if options.predictions:
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
        if reader is not None:
            sent[name] = now
        value = json.dumps({"id": name, "x": x, "y": y, "ts": now}).encode()
        producer.produce(options.topic, value)
        number += 1

    def see() -> None:
        if reader is None:
            return
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
    while sent or not options.ready.exists():
        assert time.perf_counter() < patience, "the engine has learned nothing"
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
    producer.flush(60)
    out = {"events": number, "seconds": time.perf_counter() - begun}
    if reader is not None:
        out |= {"visible": percentiles(taken)}
        reader.close()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
