"""Restores a version several times while events come from Kafka at a rate; for `versions.py`.

Runs `midstream run` in the folder, produces to its input, and calls `midstream restore 1` from
outside, at moments that have nothing to do with when the run looks for commands. In the end it
checks that each event was predicted once. Prints one JSON object.
"""

import argparse
import json
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition
from sides import command, environment
from streams import hyperplane

SETTLE = 2.0  # seconds of events before the first command, and after the last
PATIENCE = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("rate", type=int)
    parser.add_argument("calls", type=int)
    options = parser.parse_args()
    folder = options.folder
    server = {"bootstrap.servers": options.bootstrap}
    predictions = Predictions(server, f"{folder.name}.predictions")
    pace = Pace(Producer({**server, "enable.idempotence": True}), options.topic, options.rate)
    log = (folder / "run.log").open("w")
    run = command("run", "midstream.toml", "--json")
    engine = subprocess.Popen(run, cwd=folder, env=environment(), stdout=log, stderr=log)
    begun = time.perf_counter()
    out = {"effect": [], "call": []}
    try:
        pace.one()
        while not predictions.seen:
            late = engine.poll() is not None or time.perf_counter() - begun > PATIENCE
            assert not late, f"nothing was predicted: {(folder / 'run.log').read_text()[-2_000:]}"
            pace.flush()
            predictions.look(0.1)
        pace.start()
        pace.keep(SETTLE, predictions)
        call(folder, pace, predictions, "snapshots", "create")
        rng = random.Random(1)
        for _ in range(options.calls):
            pace.keep(rng.uniform(0.3, 1.3), predictions)
            taken, told = call(folder, pace, predictions, "restore", "1", "--yes")
            (shard,) = told["shards"]
            assert shard["state"] == "done", shard
            out["call"].append(taken)
            out["effect"].append(shard["seconds"])
        pace.keep(SETTLE, predictions)
        pace.flush()
        while len(predictions.seen) < pace.number:
            assert time.perf_counter() - begun < PATIENCE, "events were lost"
            predictions.look()
    finally:
        engine.send_signal(signal.SIGTERM)
        code = engine.wait()
        log.close()
    assert code == 0, (folder / "run.log").read_text()[-2_000:]
    predictions.to_the_end()
    wanted = {f"e{i}" for i in range(pace.number)}
    assert predictions.seen.keys() == wanted, "events were lost"
    assert set(predictions.seen.values()) == {1}, "events were predicted twice"
    out |= {"events": pace.number, "late": pace.late, "seconds": time.perf_counter() - begun}
    print(json.dumps(out))


class Pace:
    """Produces events at a rate."""

    def __init__(self, producer: Producer, topic: str, rate: int) -> None:
        self.number = 0
        self.late = 0.0  # seconds, at most
        self._producer, self._topic, self._rate = producer, topic, rate
        self._events = list(hyperplane(10_000))
        self._begun = (0.0, 0)

    def one(self) -> None:
        """Produce an event."""
        x, y = self._events[self.number % len(self._events)]
        value = json.dumps({"id": f"e{self.number}", "x": x, "y": y}).encode()
        self._producer.produce(self._topic, value)
        self.number += 1

    def start(self) -> None:
        """Let the clock of the rate begin."""
        self._begun = time.perf_counter(), self.number

    def due(self) -> None:
        """Produce what is due by now."""
        at, first = self._begun
        wanted = first + int((time.perf_counter() - at) * self._rate)
        self.late = max(self.late, (wanted - self.number) / self._rate)
        while self.number < wanted:
            self.one()
        self._producer.poll(0.0005)

    def keep(self, seconds: float, predictions: "Predictions") -> None:
        """Go on for so long."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self.due()
            predictions.look()

    def flush(self) -> None:
        """Wait until all is delivered."""
        assert self._producer.flush(60) == 0, "not all was delivered"


class Predictions:
    """How often the prediction of each event was seen, of those that are committed."""

    def __init__(self, server: dict[str, str], topic: str) -> None:
        self.seen: Counter[str] = Counter()
        self._consumer = Consumer(
            {
                **server,
                "group.id": "seen",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )
        self._consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])

    def look(self, seconds: float = 0.0) -> bool:
        """Count what has come; return whether that is all there is."""
        ended = False
        for message in self._consumer.consume(1_000, seconds):
            if message.error() is None:
                self.seen[json.loads(message.value())["id"]] += 1
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                ended = True
        return ended

    def to_the_end(self) -> None:
        """Count all that there is, from the beginning."""
        position = self._consumer.assignment()[0]
        self.seen.clear()
        self._consumer.seek(TopicPartition(position.topic, 0, OFFSET_BEGINNING))
        while not self.look(0.5):
            pass
        self._consumer.close()


def call(folder: Path, pace: Pace, predictions: Predictions, *arguments: str) -> tuple[float, dict]:
    """Call `midstream` while events come; return the seconds that it took, and what it told."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command(*arguments, "--json"),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None:
        pace.due()
        predictions.look()
    taken = time.perf_counter() - begun
    told, complaint = process.communicate()
    assert process.returncode == 0, complaint or told
    return taken, json.loads(told)


if __name__ == "__main__":
    main()
