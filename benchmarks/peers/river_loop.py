"""River's bare loop on decoded events. Usage: river_loop.py FILE EVENTS [MODEL]

Blocks of lines are decoded while the clock of the loop stands still, on a clock of their own, so
that memory is the learner's. Nothing is done with the predictions.
"""

import itertools
import json
import sys
import time
from pathlib import Path

import msgspec
from river import forest, linear_model, preprocessing, tree

PIPELINE = "preprocessing.StandardScaler() | linear_model.LogisticRegression()"


class Event(msgspec.Struct):
    id: str
    x: dict[str, float]
    y: bool


def main() -> None:
    text = sys.argv[3] if len(sys.argv) > 3 else PIPELINE
    modules = {
        m.__name__.rpartition(".")[2]: m for m in (forest, linear_model, preprocessing, tree)
    }
    model = eval(text, modules)  # noqa: S307 the benchmark's own text
    decode = msgspec.json.Decoder(Event).decode_lines
    seconds = decoding = 0.0
    n = 0
    with Path(sys.argv[1]).open("rb") as file:
        while n < int(sys.argv[2]) and (lines := b"".join(itertools.islice(file, 10_000))):
            begun = time.perf_counter()
            events = decode(lines)
            decoded = time.perf_counter()
            for e in events:
                model.predict_proba_one(e.x)
                model.learn_one(e.x, e.y)
            seconds += time.perf_counter() - decoded
            decoding += decoded - begun
            n += len(events)
    print(json.dumps({"events": n, "seconds": seconds, "decoding": decoding}))


if __name__ == "__main__":
    main()
