"""Fills a topic for `kafka.py`: lines of a file as JSON messages, or rows of an Arrow file.

In a process of its own, so that the memory of the one that measures stays small.
"""

import argparse
from pathlib import Path

from confluent_kafka import Producer

ROWS = 1_000  # of an Arrow message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    settings = {"enable.idempotence": True, "linger.ms": 20, "compression.type": "lz4"}
    producer = Producer({"bootstrap.servers": options.bootstrap, **settings})
    for message in arrow(options.file) if options.file.suffix == ".arrow" else lines(options.file):
        while True:
            try:
                producer.produce(options.topic, message)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(120) == 0, "not all was delivered"


def lines(path: Path):
    with path.open("rb") as file:
        for line in file:
            yield line.removesuffix(b"\n")


def arrow(path: Path):
    """Yield messages of `ROWS` events each."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
    for first in range(0, len(table), ROWS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(first, ROWS))
        yield sink.getvalue().to_pybytes()


if __name__ == "__main__":
    main()
