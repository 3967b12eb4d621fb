"""Speed: a file to learned by `midstream run`, beside River and Vowpal Wabbit on the same events.

Ours is the whole command: decoding, logistic regression with scaling, every metric, ADWIN,
reservoir, journal and snapshots. River's is the bare loop on decoded events. Vowpal Wabbit is
measured line by line from Python, and as its C++ driver on a file.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from figures import Bar, Bars, Fact, Mark, Result, compare, measured
from sides import PEERS, Sample, Side, alternate, midstream, project
from streams import columnar, has_arrow, hyperplane, long_stream, write

JSON, WRITTEN = "Midstream, JSON Lines", "Midstream, JSON Lines, predictions written"
ARROW, PARQUET = "Midstream, Arrow file", "Midstream, Parquet file"
RIVER = "River, bare loop on decoded events"
LEARN, READ = "Vowpal Wabbit, Python, learn", "Vowpal Wabbit, Python, prediction read"
DRIVER, DRIVER_TEXT = "Vowpal Wabbit, C++ driver, JSON", "Vowpal Wabbit, C++ driver, its text"

JSON_TWO, ARROW_TWO = f"{JSON}, ahead", f"{ARROW}, ahead"
ARROW_ONE, DRIVER_ONE = f"{ARROW}, one core", f"{DRIVER}, one core"

COLUMNS_GOAL = 3_000_000  # events/s

# ours, the other side, at least so many times as fast
GOALS = (
    (JSON, RIVER, 10.0),
    (JSON, LEARN, 6.0),
    (JSON, READ, 6.0),
    (JSON, DRIVER, 1.0),
    (JSON, DRIVER_TEXT, None),
    (WRITTEN, JSON, 0.5),
    (ARROW, DRIVER, 6.0),
    # The driver reads in one thread and learns in another; ours does so with `input.ahead`.
    (ARROW_TWO, DRIVER, 6.0),
    (JSON_TWO, DRIVER, None),
    (ARROW_ONE, DRIVER_ONE, 6.0),
    (PARQUET, DRIVER, None),
)


def bench(*, full: bool, peers: Path | None) -> Result:
    """Measure; return the figures."""
    events = 10_000_000 if full else 2_000_000
    slow = 2_000_000 if full else 300_000  # for what takes longer: rates do not depend on it
    repeats = 5 if full else 3
    missing = []
    can_pin = shutil.which("taskset") is not None
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        long_stream(root, events, forms=("jsonl", "vwjson", "vw") if peers else ("jsonl",))
        sides: dict[str, Callable[[], Sample]] = {}
        sides[JSON] = _ours(root, "json", "events.jsonl")
        sides[JSON_TWO] = _ours(root, "json-ahead", "events.jsonl", ahead=True)
        sides[WRITTEN] = _ours(root, "written", "events.jsonl", predictions=True)
        if has_arrow():
            columnar(root, events)
            sides[ARROW] = _ours(root, "arrow", "events.arrow")
            sides[PARQUET] = _ours(root, "parquet", "events.parquet")
            sides[ARROW_TWO] = _ours(root, "arrow-ahead", "events.arrow", ahead=True)
            if can_pin:
                sides[ARROW_ONE] = partial(midstream, root / "arrow", one_core=True)
        else:
            missing.append("Arrow and Parquet: pyarrow is not installed (extra `arrow`)")
        for run in sides.values():  # compiles the kernels, once on a machine
            run()
        if peers:
            for name, script, *arguments in (
                (RIVER, "river_loop.py", "events.jsonl", slow),
                (LEARN, "vw_python.py", "events.vw", slow, "learn"),
                (READ, "vw_python.py", "events.vw", slow, "read"),
                (DRIVER, "vw_driver.py", "events.vwjson", "--json"),
                (DRIVER_TEXT, "vw_driver.py", "events.vw"),
            ):
                sides[name] = partial(_peer, peers, script, arguments, root)
            if can_pin:
                sides[DRIVER_ONE] = partial(
                    _peer, peers, "vw_driver.py", ["events.vwjson", "--json"], root, one_core=True
                )
        else:
            missing.append("River and Vowpal Wabbit: not installed; `make peers` does it")
        samples = alternate(sides, repeats)
        result = Result(missing=missing, repeats=repeats)
        result.sides = [
            measured(name, taken, ours=name.startswith("Midstream"))
            for name, taken in samples.items()
        ]
        result.facts = _starts(root, repeats)
    rates = {name: [s.rate for s in taken] for name, taken in samples.items()}
    for ours, other, goal in GOALS:
        if ours in rates and other in rates:
            result.rows.append(
                compare(_short(ours), ("ours", rates[ours]), (other, rates[other]), goal=goal)
            )
    if ARROW in rates:  # or Parquet: one of the two is to reach it
        wanted = ("the goal", [float(COLUMNS_GOAL)] * repeats)
        result.rows.append(compare(_short(ARROW), ("ours", rates[ARROW]), wanted, goal=1.0))
    result.charts = [_bars({name: max(taken) for name, taken in rates.items()})]
    return result


def _short(name: str) -> str:
    return name.removeprefix("Midstream, ")


def _ours(
    root: Path, name: str, path: str, *, predictions: bool = False, ahead: bool = False
) -> Callable[[], Sample]:
    """Make a project; return what runs it."""
    folder = root / name
    folder.mkdir()
    project(folder, path=f"../{path}", features=10, predictions=predictions, ahead=ahead)
    return partial(midstream, folder)


def _peer(
    python: Path, script: str, arguments: list[object], folder: Path, *, one_core: bool = False
) -> Sample:
    return Side([python, PEERS / script, *arguments], folder, one_core=one_core).done()


def _starts(root: Path, repeats: int) -> list[Fact]:
    """Measure a run of one event, kernels not compiled yet, and then compiled."""
    folder = root / "start"
    folder.mkdir()
    write(folder / "events.jsonl", hyperplane(1))
    project(folder, features=10)
    first, warm = [], []
    for i in range(min(repeats, 3)):
        cache = str(root / f"cache-{i}")
        first.append(midstream(folder, NUMBA_CACHE_DIR=cache).wall)
        warm.append(midstream(folder, NUMBA_CACHE_DIR=cache).wall)
    return [
        Fact("First start on a machine, with one event", min(first), "s"),
        Fact("Any later start", min(warm), "s"),
    ]


def _bars(rates: dict[str, float]) -> Bars:
    """Return the chart: every side, and on ours where its goals are."""
    bars = []
    for name, rate in rates.items():
        marks = [
            Mark(goal * rates[other], f"{goal:g} x {other}")
            for ours, other, goal in GOALS
            if ours == name and other in rates and goal is not None
        ]
        if name == ARROW:
            marks.append(Mark(float(COLUMNS_GOAL), "3 million"))
        bars.append(Bar(name, rate, name.startswith("Midstream"), marks))
    return Bars("Events a second, file to learned", "events/s", bars)
