"""Scaling: two processes beside one; the cost of an event in a longer stream, and of a feature."""

import itertools
import tempfile
from pathlib import Path

from figures import Line, Result, compare
from sides import Side, command, environment, forget, midstream, project
from streams import long_stream

FEATURES = (10, 100, 1_000)
FLAT = 1.1  # a cost this many times the first one still counts as flat


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001
    """Measure; return the figures."""
    result = Result(repeats=5 if full else 3)
    _shards(result, 10_000_000 if full else 2_000_000)
    _events(result, [10**5, 10**6, 4 * 10**6] + ([10**7] if full else []))
    _features(result, 20_000_000 if full else 10_000_000)
    return result


def _shards(result: Result, events: int) -> None:
    """Measure one process on all events, and two at the same moment on half of them each."""
    one, two = [], []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = [root / name for name in ("whole", "left", "right")]
        for folder, n in zip(folders, (events, events // 2, events // 2), strict=True):
            folder.mkdir()
            long_stream(folder, n)
            project(folder, features=10, predictions=False)
        run = command("run", "midstream.toml", "--until-eof", "--fresh", "--json")
        midstream(folders[0])  # compiles the kernels, once on a machine
        for _ in range(result.repeats):
            one.append(midstream(folders[0]).rate)
            both = [Side(run, folder, environment()) for folder in folders[1:]]
            samples = [side.done() for side in both]
            for folder in folders[1:]:
                forget(folder)
            two.append(events / max(s.out["seconds"] for s in samples))
    result.rows.append(
        compare("Two processes, two shards", ("two", two), ("one", one), goal=1.7)
    )  # fmt: skip


def _events(result: Result, sizes: list[int]) -> None:
    """Measure ns per event of a stream from each size to the next.

    The difference of two runs, so that what a start costs does not hide what an event costs.
    """
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {n: Path(temporary) / str(n) for n in sizes}
        for n, folder in folders.items():
            folder.mkdir()
            long_stream(folder, n)
            project(folder, features=10, predictions=False)
        for _ in range(result.repeats):
            for n, folder in folders.items():
                seconds[n].append(n / midstream(folder).rate)
    steps = list(itertools.pairwise(sizes))
    costs = {
        n: [_each(a, b, n - before) for a, b in zip(seconds[before], seconds[n], strict=True)]
        for before, n in steps
    }
    # The fastest run of each size, and not the least difference: that one may owe to a slow start.
    best = {n: _each(min(seconds[before]), min(seconds[n]), n - before) for before, n in steps}
    _flat(result, "Cost of an event", "events", "ns per event", costs, best)


def _each(before: float, after: float, events: int) -> float:
    """Return ns per event between two times in seconds."""
    return 1e9 * (after - before) / events


def _features(result: Result, values: int) -> None:
    """Measure ns per event and feature for streams of as many values, of different widths."""
    costs: dict[int, list[float]] = {n: [] for n in FEATURES}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {n: Path(temporary) / str(n) for n in FEATURES}
        for n, folder in folders.items():
            folder.mkdir()
            long_stream(folder, values // n, n)
            project(folder, features=n, predictions=False)
        for _ in range(result.repeats):
            for n, folder in folders.items():
                costs[n].append(1e9 / midstream(folder).rate / n)
    _flat(
        result,
        "Cost of a feature",
        "features",
        "ns per feature",
        costs,
        {n: min(taken) for n, taken in costs.items()},
    )


def _flat(
    result: Result,
    title: str,
    x_name: str,
    unit: str,
    costs: dict[int, list[float]],
    best: dict[int, float],
) -> None:
    """Compare each size with the first, and draw them."""
    first, *others = costs
    for n in others:
        result.rows.append(
            compare(
                f"{title}, {n:,} {x_name} over {first:,}",
                (f"at {n:,}", costs[n]),
                (f"at {first:,}", costs[first]),
                unit=unit,
                goal=FLAT,
                at_most=True,
                best=(best[n], best[first]),
            )
        )
    points = [(float(n), value) for n, value in best.items()]
    limit = FLAT * points[0][1]
    result.charts.append(Line(title, x_name, unit, points, limit, f"{FLAT} x {first:,}"))
