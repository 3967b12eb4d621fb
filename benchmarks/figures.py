"""What a benchmark found: comparisons, sides, facts and charts, as values, text and Markdown."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from sides import Sample


class Row(msgspec.Struct):
    """Two sides of one run.

    Attributes
    ----------
    ours, other
        The best of each side's repeats: a neighbour on the machine only ever slows a side down.
    ratio
        Of the two.
    lowest, highest
        Ratio of a single repeat.
    goal
        What the ratio has to reach, or stay within; None if the row is for information.
    """

    title: str
    unit: str
    ours_name: str
    ours: float
    other_name: str
    other: float
    ratio: float
    lowest: float
    highest: float
    goal: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; a ratio of 0 or less is noise, and reaches none."""
        if self.goal is None:
            return None
        if self.ratio <= 0:
            return False
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    @property
    def goal_text(self) -> str:
        """The goal in words."""
        if self.goal is None:
            return "none"
        return f"{'at most' if self.at_most else 'at least'} {self.goal:g}"

    def text(self) -> str:
        """Return the row for people."""
        verdict = {None: "", True: ", reached", False: ", NOT REACHED"}[self.reached]
        return (
            f"{self.title}: {self.ours_name} {number(self.ours)}, {self.other_name} "
            f"{number(self.other)} {self.unit}; ratio {self.ratio:.2f} "
            f"({self.lowest:.2f} to {self.highest:.2f}); goal: {self.goal_text}{verdict}"
        )


class Measured(msgspec.Struct):
    """A side by itself.

    Attributes
    ----------
    cores
        Seconds of all threads over seconds by the clock, from the start of the process to its end.
    log_loss
        Of predictions made before learning; None if unknown.
    """

    name: str
    events: int
    rate: float
    peak_mib: float
    cores: float
    log_loss: float | None
    ours: bool


class Fact(msgspec.Struct):
    """A figure that has no other side."""

    name: str
    value: float
    unit: str

    @property
    def text(self) -> str:
        """The figure with its unit; a count has none, and is a whole number."""
        return f"{number(self.value)} {self.unit}" if self.unit else f"{self.value:,.0f}"


class Mark(msgspec.Struct):
    """A goal on a bar."""

    value: float
    text: str


class Bar(msgspec.Struct):
    """A side's bar; goals are marked on ours."""

    name: str
    value: float
    ours: bool
    marks: list[Mark] = []


class Bars(msgspec.Struct, tag="bars"):
    """Sides beside each other."""

    title: str
    unit: str
    bars: list[Bar]


class Line(msgspec.Struct, tag="line"):
    """A cost that should not rise: points are (x, value), x on a logarithmic axis."""

    title: str
    x_name: str
    unit: str
    points: list[tuple[float, float]]
    limit: float
    limit_text: str


class Grid(msgspec.Struct):
    """A table of figures that have no other side; a row begins with what it is of."""

    title: str
    columns: list[str]
    rows: list[list[str]] = []


class Result(msgspec.Struct):
    """All that a benchmark found, on which machine. `missing` says what could not be measured."""

    rows: list[Row] = []
    sides: list[Measured] = []
    grids: list[Grid] = []
    facts: list[Fact] = []
    charts: list[Bars | Line] = []
    missing: list[str] = []
    profile: list[str] = []
    machine: dict[str, str] = {}
    full: bool = False
    repeats: int = 0
    seconds: float = 0.0


def compare(
    title: str,
    ours: tuple[str, Sequence[float]],
    other: tuple[str, Sequence[float]],
    *,
    unit: str = "events/s",
    goal: float | None = None,
    at_most: bool = False,
    best: tuple[float, float] | None = None,
) -> Row:
    """Return the row for two sides' repeats, taken in turns; less is better for `at_most`.

    `best` is given where the best of a side is not simply the best of its repeats.
    """
    choose: Callable[[Sequence[float]], float] = min if at_most else max
    a, b = best or (choose(ours[1]), choose(other[1]))
    ratios = [x / y for x, y in zip(ours[1], other[1], strict=True)]
    return Row(
        title, unit, ours[0], a, other[0], b, a / b, min(ratios), max(ratios), goal, at_most
    )  # fmt: skip


def measured(name: str, samples: Sequence[Sample], *, ours: bool) -> Measured:
    """Return a side's figures: its fastest repeat, and the most memory of any."""
    fastest = max(samples, key=lambda s: s.rate)
    return Measured(
        name=name,
        events=int(fastest.out["events"]),
        rate=fastest.rate,
        peak_mib=max(s.peak_mib for s in samples),
        cores=fastest.cpu / fastest.wall,
        log_loss=fastest.log_loss,
        ours=ours,
    )


def number(value: float) -> str:
    """Return a figure with three digits or more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show(result: Result) -> None:
    """Print what a benchmark found."""
    for side in result.sides:
        loss = "" if side.log_loss is None else f", log loss {side.log_loss:.4f}"
        print(
            f"  {side.name:46} {side.rate:>11,.0f} events/s, {side.peak_mib:,.0f} MiB, "
            f"{side.cores:.1f} cores ({side.events:,} events{loss})"
        )
    for row in result.rows:
        print(f"  {row.text()}")
    for grid in result.grids:
        print(f"  {grid.title}:")
        for row in grid.rows:
            told = (f"{name} {cell}" for name, cell in zip(grid.columns[1:], row[1:], strict=True))
            print(f"    {row[0]}: {', '.join(told)}")
    for fact in result.facts:
        print(f"  {fact.name}: {fact.text}")
    if result.profile:
        print("  profile of our side (profiling itself slows it), by own time:")
        for line in result.profile:
            print("   ", line)


def markdown(results: Mapping[str, Result]) -> str:
    """Return the figures as tables for the README."""
    out = []
    for name, result in results.items():
        kind = "`make bench-full`" if result.full else "`make bench`"
        machine = ", ".join(f"{k} {v}" for k, v in result.machine.items())
        out += [f"### {name}", "", f"{kind}, {result.repeats} repeats; {machine}.", ""]
        out += [f"**Left out:** {text}" for text in result.missing]
        if result.missing:
            out.append("")
        if result.rows:
            out += [
                "| | ours | other side | ratio | repeats | goal |",
                "| --- | --- | --- | --- | --- | --- |",
            ]
        for row in result.rows:
            missed = " **not reached**" if row.reached is False else ""
            out.append(
                f"| {row.title} | {row.ours_name}: {number(row.ours)} {row.unit} "
                f"| {row.other_name}: {number(row.other)} | {row.ratio:.2f} "
                f"| {row.lowest:.2f} to {row.highest:.2f} | {row.goal_text}{missed} |"
            )
        if result.sides:
            out += ["", "| side | events | events/s | peak memory | cores | log loss |"]
            out.append("| --- | --- | --- | --- | --- | --- |")
        for side in result.sides:
            loss = "" if side.log_loss is None else f"{side.log_loss:.4f}"
            out.append(
                f"| {side.name} | {side.events:,} | {side.rate:,.0f} "
                f"| {side.peak_mib:,.0f} MiB | {side.cores:.1f} | {loss} |"
            )
        for grid in result.grids:
            out += ["", f"{grid.title}:", ""]
            lines = [grid.columns, ["---"] * len(grid.columns), *grid.rows]
            out += [f"| {' | '.join(line)} |" for line in lines]
        if result.facts:
            facts = "; ".join(f"{f.name}: {f.text}" for f in result.facts)
            out += ["", f"{facts}."]
        out.append("")
    return "\n".join(out)
