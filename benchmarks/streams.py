"""Streams to measure on: seeded, written once as JSON Lines in the engine's own event form."""

import json
import random
from pathlib import Path


def hyperplane(n: int, features: int = 10, seed: int = 1):
    """Yield n events of a noisy linear concept over numeric features."""
    rng = random.Random(seed)
    weights = [rng.uniform(-1, 1) for _ in range(features)]
    names = [f"feature_{i}" for i in range(features)]
    for _ in range(n):
        values = [round(rng.gauss(0, 1), 6) for _ in names]
        score = sum(w * v for w, v in zip(weights, values, strict=True)) + rng.gauss(0, 0.5)
        yield dict(zip(names, values, strict=True)), score > 0


def write(path: Path, events) -> Path:
    """Write events as JSON Lines; return the path."""
    with path.open("w") as file:
        for i, (x, y) in enumerate(events):
            file.write(json.dumps({"id": f"e{i}", "x": x, "y": y}) + "\n")
    return path
