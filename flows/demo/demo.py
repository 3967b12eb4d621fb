"""The demo: several learners on several streams, live; a kill and a resume; a report."""

import contextlib
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import river
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import midstream
from midstream.flows.demo.report import Crash, Late, Report, number, render
from midstream.flows.demo.showcase import (
    LATE_ROWS,
    SEED,
    Course,
    Lane,
    Race,
    Row,
    Stream,
    bundled_streams,
    write_late,
)
from midstream.flows.loading import load
from midstream.flows.offline import evaluation
from midstream.flows.running.counters import Summary
from midstream.flows.running.errors import RunError

__all__ = ["DemoResult", "run_demo"]

_REFRESH_SECONDS = 0.15
_SPARKS = "▁▂▃▄▅▆▇█"
_LONG = 10_000  # events from which plain lines show progress
_COLOURS = ("blue", "magenta", "yellow", "cyan", "green", "white")  # by look; red is for alarms
_KILL_TIMEOUT = 120.0  # seconds, for each half of a run, which takes a few


class DemoResult(msgspec.Struct):
    """Results of the demo.

    A row for each learner on each stream, the kill, the late labels, and the report's path.
    """

    rows: list[Row]
    crash: Crash | None
    late: Late | None
    report: str
    seconds: float


def run_demo(
    report: Path,
    *,
    quick: bool = False,
    live: bool = True,
    streams: Sequence[Stream] | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Learn from several streams, with late labels too, kill and resume a run, write a report.

    Parameters
    ----------
    report
        Path of the report: one HTML file, without network access.
    quick
        Use fewer events.
    live
        Show progress on standard output: as a live view on a terminal, else as plain lines.
    streams
        Streams instead of `bundled_streams`.
    console
        Console instead of standard output.

    Raises
    ------
    OSError
        If the report cannot be written; this is checked first.
    RunError
        If a run fails, or the resumed run differs from an uninterrupted one. In the latter case the
        report has been written and says so.
    """
    begun = time.perf_counter()
    _check_writable(report)
    view = _view(console, live=live)
    courses: list[Course] = []
    crash = late = None
    doomed: tuple[Race, Lane] | None = None
    with tempfile.TemporaryDirectory(prefix="midstream-demo-") as folder, view:
        for stream in bundled_streams(quick=quick) if streams is None else streams:
            view.prepare(stream)
            race = Race(stream, Path(folder))
            race.run(view.look)
            courses.append(race.course())
            view.end(courses[-1])
            if stream.crash is not None:
                doomed = race, next(x for x in race.lanes if x.contender == stream.crash)
            if stream.late is not None:
                lane = next(x for x in race.lanes if x.contender == stream.late)
                late = _with_late_labels(race, lane, view.tell)
        if doomed is not None:
            crash = _kill_and_resume(*doomed, view.tell)
    seconds = time.perf_counter() - begun
    report.write_text(
        render(Report(courses, crash, seconds, SEED, _versions(), _machine(), late)),
        encoding="utf-8",
    )
    result = DemoResult(
        [line.row for course in courses for line in course.lines],
        crash,
        late,
        str(report),
        seconds,
    )
    view.close(result)
    if crash is not None and not crash.exact:
        raise RunError(f"the resumed run is not exact: {crash}")
    return result


def _check_writable(report: Path) -> None:
    """Raise now an error that writing the report would raise in half a minute."""
    report.parent.mkdir(parents=True, exist_ok=True)
    existed = report.exists()
    with report.open("ab"):
        pass
    if not existed:
        report.unlink()


def _versions() -> dict[str, str]:
    return {
        "midstream": midstream.__version__,
        "river": river.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


# The late labels.


def _with_late_labels(race: Race, lane: Lane, tell: Callable[[str], None]) -> Late:
    """Let a learner of a race learn from labels that come later, and compare."""
    begun = time.perf_counter()
    stream, config = race.stream, race.configs[lane.contender.factory]
    tell(f"{lane.contender.name}, with labels {LATE_ROWS} events later, through [feedback]")
    settings = load(write_late(config, config.parent / f"{stream.name}.jsonl"))
    found = evaluation.evaluate(settings)[0].metrics
    row, name = race.row(lane), stream.metric
    late = Late(
        stream=stream.title,
        learner=lane.contender.name,
        events=stream.events,
        rows=LATE_ROWS,
        joined=int(found["feedback.joined"]),
        metric=name,
        window=stream.window,
        at_once=row.value,
        at_once_window=row.window_value,
        by_label=found[name],
        by_label_window=found[f"{name}.window"],
        by_prediction=found[f"by_prediction.{name}"],
        by_prediction_window=found[f"by_prediction.{name}.window"],
        seconds=time.perf_counter() - begun,
    )
    tell("  " + late.verdict)
    return late


# The kill.


def _kill_and_resume(race: Race, lane: Lane, tell: Callable[[str], None]) -> Crash:
    """Run the dataflow over a race's events, kill it halfway, run it again, and compare.

    Raises
    ------
    RunError
        If one of the runs fails by itself.
    """
    begun = time.perf_counter()
    config = race.configs[lane.contender.factory]
    predictions = config.parent / f"out-{config.stem}" / "predictions.jsonl"
    command = [sys.executable, "-m", "midstream", "run", str(config)]
    command += ["--until-eof", "--json"]
    # As in this process: some learners depend on the order of sets.
    environ = {**os.environ, "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}
    half, n = race.stream.events // 2, race.stream.events
    tell(f"Exactly once: midstream run {config.name}, to be killed halfway")
    with _started(command, environ, config.with_suffix(".log")) as process:
        killed_at = _wait_for_lines(predictions, half, process)
        process.kill()
    killed = process.returncode < 0
    tell(f"  SIGKILL with {killed_at:,} of {n:,} predictions written; and once more")
    with _started(command, environ, config.with_suffix(".log")) as process:
        try:
            output, _ = process.communicate(timeout=_KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise RunError(f"midstream run took more than {_KILL_TIMEOUT:.0f} seconds") from None
    if process.returncode:
        raise RunError(_last_line(config.with_suffix(".log")))
    summary = msgspec.json.decode(output, type=Summary)
    ids = [p["id"] for p in map(msgspec.json.decode, predictions.read_bytes().splitlines())]
    crash = Crash(
        stream=race.stream.title,
        learner=lane.contender.name,
        events=n,
        killed=killed,
        killed_at=killed_at,
        resumed_from=n - summary.events,
        predictions=len(ids),
        missing=n - len(set(ids)),
        repeated=len(ids) - len(set(ids)),
        digest=next(iter(summary.digest.values())),
        expected_digest=lane.trainer.digest(),
        seconds=time.perf_counter() - begun,
    )
    tell("  " + crash.verdict)
    return crash


@contextlib.contextmanager
def _started(
    command: list[str], environ: dict[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a command, and make sure that it has ended when the block ends."""
    with log.open("ab") as errors:
        process = subprocess.Popen(  # noqa: S603 our own command, without a shell
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _wait_for_lines(path: Path, wanted: int, process: "subprocess.Popen[bytes]") -> int:
    """Wait until a file has `wanted` lines or the process has ended; return the line count."""
    deadline = time.monotonic() + _KILL_TIMEOUT
    lines = offset = 0
    while lines < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                new = file.read()
            offset += len(new)
            lines += new.count(b"\n")
    return lines


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "midstream run failed"


# The display.


def _view(console: Console | None, *, live: bool) -> "_Silent":
    if not live:
        return _Silent()
    console = console or Console(highlight=False)
    plain = console.is_dumb_terminal or console.options.ascii_only
    if console.file.isatty() and not plain:
        return _Screen(console)
    return _Lines(console)


class _Silent:
    """Shows nothing."""

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *error: object) -> None:
        """Close the display."""

    def prepare(self, stream: Stream) -> None:
        """Begin a stream: its events are being made."""

    def look(self, race: Race) -> None:
        """Show a race after a learner's step."""

    def end(self, course: Course) -> None:
        """End a stream."""

    def tell(self, text: str) -> None:
        """Show a line."""

    def close(self, result: DemoResult) -> None:
        """Show the results."""


class _Lines(_Silent):
    """Plain lines, for output that is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._quarter = 0

    def prepare(self, stream: Stream) -> None:
        self._quarter = 0
        self.tell(f"{stream.title}: {stream.events:,} events, {len(stream.contenders)} learners")

    def look(self, race: Race) -> None:
        n = race.stream.events
        seen = race.lanes[-1].seen
        if n >= _LONG and self._quarter < seen * 4 // n < 4:
            self._quarter = seen * 4 // n
            self.tell(f"  {self._quarter * 25} %, {seen:,} events")

    def end(self, course: Course) -> None:
        for line in course.lines:
            row = line.row
            self.tell(
                f"  {row.learner}: {row.metric} {number(row.value, row.metric)}, no-change "
                f"{number(row.no_change, row.metric)}, alarms {len(row.alarms)}, "
                f"{row.events_per_second:,.0f} events/s{_non_finite(row)}"
            )

    def tell(self, text: str) -> None:
        self._print(text)

    def close(self, result: DemoResult) -> None:
        self.console.print(_closing_table(result.rows))
        if result.late is not None:
            self._print(f"{result.late.learner}: {result.late.verdict}")
        if result.crash is not None:
            crash = result.crash
            self._print(f"{crash.learner}, killed at {crash.killed_at:,}: {crash.verdict}")
        self._print(f"{result.seconds:.0f} s in all. Report: {result.report}")

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


class _Screen(_Lines):
    """A live view on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._past: list[RenderableType] = []
        self._now: RenderableType = Text("")
        self._due = 0.0

    def __enter__(self) -> "_Screen":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def prepare(self, stream: Stream) -> None:
        self._now = Text(f"{stream.title}: preparing {stream.events:,} events", "dim")
        self._show()

    def look(self, race: Race) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._now = _race_view(race, self.console.width)
            self._show()
            # Showing takes a few ms; if it were slow, it would still take at most a tenth of the
            # time.
            self._due = time.monotonic() + max(_REFRESH_SECONDS, 10 * (time.monotonic() - now))

    def end(self, course: Course) -> None:
        rows = [line.row for line in course.lines]
        best = (min if course.metric == "mae" else max)(rows, key=lambda row: row.value)
        alarms = sum(len(row.alarms) for row in rows)
        self._past.append(
            Text.assemble(
                ("✓ ", "green"),
                (course.title, "bold"),
                "  best ",
                (number(best.value, course.metric), "bold"),
                f" ({best.learner}), no-change {number(best.no_change, course.metric)}, "
                f"alarms {alarms}",
            )
        )
        self._now = Text("")
        self._show()

    def tell(self, text: str) -> None:
        self._past.append(Text(text))
        self._show()

    def _show(self) -> None:
        self._live.update(Group(*self._past, self._now), refresh=True)


def _race_view(race: Race, width: int) -> RenderableType:
    """Return the state of a race: progress, and a line for each learner."""
    stream = race.stream
    seen = sum(lane.seen for lane in race.lanes)
    rate = seen / max(sum(lane.seconds for lane in race.lanes), 1e-9)
    cells = 32 if width >= 100 else 16
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(stream.title, "bold"),
        ProgressBar(total=stream.events * len(race.lanes), completed=seen, width=cells),
        f"{race.lanes[0].seen:,} of {stream.events:,}",
        f"{rate:,.0f} events/s",
    )
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("")
    table.add_column(f"{stream.metric} so far", width=cells)
    for title in (f"last {stream.window}", "alarms", "events/s"):
        table.add_column(title, justify="right")
    values = [_cells(race, lane, cells) for lane in race.lanes]
    # The first cell is before convergence, and may be off the scale.
    settled = [v for row in values for v in (row[1:] or row) if math.isfinite(v)]
    low, high = (min(settled), max(settled)) if settled else (0.0, 1.0)
    for lane, row in zip(race.lanes, values, strict=True):
        now = race.quality(lane.losses[max(0, lane.seen - stream.window) : lane.seen])
        colour = _COLOURS[lane.contender.look]
        alarmed = {(position - 1) * cells // stream.events for position in lane.alarms}
        table.add_row(
            Text(lane.contender.name, colour),
            _spark(row, (low, high), colour, alarmed),
            number(now, stream.metric),
            str(len(lane.alarms)) if lane.alarms else "-",
            f"{lane.events_per_second:,.0f}",
        )
    return Group(Text(""), head, table)


def _non_finite(row: Row) -> str:
    return f" ({row.non_finite:,} predictions not finite)" if row.non_finite else ""


def _cells(race: Race, lane: Lane, n: int) -> list[float]:
    """Return the metric in each n-th part of the stream that has begun."""
    edges = [race.stream.events * i // n for i in range(n + 1)]
    return [
        race.quality(lane.losses[a : min(b, lane.seen)])
        for a, b in pairwise(edges)
        if a < lane.seen
    ]


def _spark(
    values: Sequence[float], limits: tuple[float, float], colour: str, alarmed: Collection[int]
) -> Text:
    """Return values as a row of blocks, red where drift was detected."""
    low, high = limits
    text = Text()
    for i, value in enumerate(values):
        share = (value - low) / (high - low) if math.isfinite(value) and high > low else 0.0
        level = round(min(max(share, 0.0), 1.0) * (len(_SPARKS) - 1))
        text.append(_SPARKS[level], "red" if i in alarmed else colour)
    return text


def _closing_table(rows: Sequence[Row]) -> RenderableType:
    """Return all rows, grouped by stream."""
    parts: list[RenderableType] = []
    for stream in dict.fromkeys(row.stream for row in rows):
        mine = [row for row in rows if row.stream == stream]
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        table.add_column(f"  {mine[0].metric}", width=25)
        for title, width in (("all", 7), (f"last {mine[0].window}", 8), ("no-change", 9)):
            table.add_column(title, justify="right", width=width)
        for title, width in (("alarms", 6), ("events/s", 8)):
            table.add_column(title, justify="right", width=width)
        for row in mine:
            ahead = row.value < row.no_change if row.metric == "mae" else row.value > row.no_change
            table.add_row(
                f"  {row.learner}{_non_finite(row)}",
                Text(number(row.value, row.metric), "green" if ahead else "red"),
                number(row.window_value, row.metric),
                number(row.no_change, row.metric),
                str(len(row.alarms)),
                f"{row.events_per_second:,.0f}",
            )
        parts += [Text(f"\n{stream}, {mine[0].events:,} events", "bold"), table]
    return Group(*parts, Text(""))
