"""Vowpal Wabbit from Python, a text line at a time. Usage: vw_python.py FILE EVENTS learn|read

`learn` gives it the lines and asks for nothing, though it predicts each before it learns; `read`
takes every prediction. Lines are read while the clock stands still.
"""

import itertools
import json
import sys
import time
from pathlib import Path

from vowpalwabbit import pyvw


def _learn(vw: pyvw.Workspace, lines: list[str]) -> None:
    learn = vw.learn
    for line in lines:
        learn(line)


def _read(vw: pyvw.Workspace, lines: list[str]) -> None:
    parse, learn, finish = vw.parse, vw.learn, vw.finish_example
    predictions = []
    for line in lines:
        example = parse(line)
        learn(example)
        predictions.append(example.get_simplelabel_prediction())
        finish(example)


def main() -> None:
    vw = pyvw.Workspace("--loss_function logistic --quiet")
    feed = {"learn": _learn, "read": _read}[sys.argv[3]]
    seconds = 0.0
    n = 0
    with Path(sys.argv[1]).open() as file:
        while n < int(sys.argv[2]) and (lines := list(itertools.islice(file, 10_000))):
            lines = [line.rstrip("\n") for line in lines]
            begun = time.perf_counter()
            feed(vw, lines)
            seconds += time.perf_counter() - begun
            n += len(lines)
    learned = vw.get_weighted_examples()
    assert learned == n, f"learned {learned} of {n}"
    print(json.dumps({"events": n, "seconds": seconds, "log_loss": vw.get_sum_loss() / n}))


if __name__ == "__main__":
    main()
