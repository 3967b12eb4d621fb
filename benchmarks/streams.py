"""Streams to measure on, seeded, in the engine's own form and in those of the peers."""

import functools
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

DISTINCT = 200_000  # events of 10 features; longer streams repeat them

Event = tuple[dict[str, float | str], bool]


def names(features: int) -> list[str]:
    """Return the names of the features."""
    return [f"feature_{i}" for i in range(features)]


def hyperplane(n: int, features: int = 10, seed: int = 1) -> Iterator[Event]:
    """Yield n events of a noisy linear concept over numeric features."""
    rng = random.Random(seed)
    weights = [rng.uniform(-1, 1) for _ in range(features)]
    keys = names(features)
    for _ in range(n):
        values = [round(rng.gauss(0, 1), 6) for _ in keys]
        score = sum(w * v for w, v in zip(weights, values, strict=True)) + rng.gauss(0, 0.5)
        yield dict(zip(keys, values, strict=True)), score > 0


def hyperplane_with_words(n: int, features: int, categories: int, distinct: int) -> Iterator[Event]:
    """Yield events of that concept which also have categories, each one of so many words."""
    rng = random.Random(2)
    for x, y in hyperplane(n, features):
        yield (
            {**x, **{f"category_{j}": f"{rng.randrange(distinct):05x}" for j in range(categories)}},
            y,
        )


def with_text(events: Iterable[Event], every: int) -> Iterator[Event]:
    """Yield events, with a text for a number at a random place in one of so many; 0: in none."""
    rng = random.Random(3)
    for x, y in events:
        if every and rng.randrange(every) == 0:
            yield {**x, rng.choice(sorted(x)): "n/a"}, y
        else:
            yield x, y


def words(n: int, categories: int = 10) -> Iterator[Event]:
    """Yield n events of categories alone; hardly any word comes twice."""
    rng = random.Random(1)
    for _ in range(n):
        x = {f"category_{j}": f"{rng.getrandbits(40):010x}" for j in range(categories)}
        yield x, rng.random() < 0.5


def _own(i: int, x: dict[str, float], y: bool) -> str:
    return json.dumps({"id": f"e{i}", "x": x, "y": y}) + "\n"


def _vw_json(_: int, x: dict[str, float], y: bool) -> str:
    return json.dumps({"_label": 1 if y else -1, "x": x}) + "\n"


def _vw_text(_: int, x: dict[str, float], y: bool) -> str:
    return f"{1 if y else -1} |x {' '.join(f'{k}:{v}' for k, v in x.items())}\n"


FORMS = {"jsonl": _own, "vwjson": _vw_json, "vw": _vw_text}  # what a line says, by suffix


def write(path: Path, events: Iterable[Event]) -> Path:
    """Write events, a line each, in the form that the suffix names; return the path."""
    line = FORMS[path.suffix.removeprefix(".")]
    with path.open("w") as file:
        file.writelines(line(i, x, y) for i, (x, y) in enumerate(events))
    return path


def long_stream(
    folder: Path, events: int, features: int = 10, forms: Sequence[str] = ("jsonl",)
) -> None:
    """Write `events` and the suffix for each form: one block of distinct events, repeated."""
    block = min(events, DISTINCT * 10 // features)
    assert events % block == 0, f"{events} events are not whole blocks of {block}"
    for form in forms:
        with (folder / f"events.{form}").open("wb") as out:
            for _ in range(events // block):
                with _block(block, features, form).open("rb") as file:
                    shutil.copyfileobj(file, out, 2**20)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the value that half of all do not exceed, and that 99 of 100 do not."""
    ordered = sorted(values)
    return {f"p{part}": ordered[len(ordered) * part // 100] for part in (50, 99)}


def has_arrow() -> bool:
    """Whether pyarrow is there."""
    return importlib.util.find_spec("pyarrow") is not None


def columnar(folder: Path, events: int, features: int = 10) -> None:
    """Write the same stream as `events.arrow` and `events.parquet`."""
    block = min(events, DISTINCT * 10 // features)
    script = Path(__file__).parent / "to_columns.py"  # a process: pyarrow's memory is not ours
    source = _block(block, features, "jsonl")
    subprocess.run([sys.executable, script, source, folder, str(events // block)], check=True)


_kept: list[object] = []  # the folder of blocks, until the process ends


@functools.cache
def _block(events: int, features: int, form: str) -> Path:
    """Return the file of a block, written once in a process."""
    import tempfile

    if not _kept:
        _kept.append(tempfile.TemporaryDirectory(prefix="midstream-bench-"))
    folder = Path(_kept[0].name)  # type: ignore[attr-defined]
    return write(folder / f"{events}-{features}.{form}", hyperplane(events, features))
