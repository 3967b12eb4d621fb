"""The demo's report: one HTML file that needs no network, with hand-drawn charts.

Each chart is drawn twice, wide and narrow, and the page shows the one that fits: text in a chart
that shrinks with the screen could not be read on a phone.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import msgspec

from midstream.flows.demo.showcase import Course, Line, Row

__all__ = ["Crash", "Late", "Report", "number", "render"]


class Crash(msgspec.Struct):
    """A run that was killed and resumed, compared with an uninterrupted one.

    Attributes
    ----------
    killed
        Whether the kill came before the end.
    killed_at
        Number of predictions written by then.
    resumed_from
        Number of events already learned, as the resumed run found.
    predictions, missing, repeated
        Lines in the prediction file at the end; numbers of events that lack one or have two.
    digest, expected_digest
        Digests of the resumed state, and of the state of an uninterrupted run.
    """

    stream: str
    learner: str
    events: int
    killed: bool
    killed_at: int
    resumed_from: int
    predictions: int
    missing: int
    repeated: int
    digest: str
    expected_digest: str
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether the resumed run equals an uninterrupted one."""
        return not self.missing and not self.repeated and self.digest == self.expected_digest

    @property
    def verdict(self) -> str:
        """The result, in a sentence."""
        if self.digest != self.expected_digest:
            state = f"state {self.digest[:12]} differs from {self.expected_digest[:12]}"
        else:
            state = f"state {self.digest[:12]} is that of an uninterrupted run"
        if self.missing or self.repeated:
            return f"{state}; {self.missing} predictions missing, {self.repeated} there twice"
        return f"{state}; {self.predictions:,} predictions, each once"


class Late(msgspec.Struct):
    """A learner whose labels came later, beside the same with labels at once.

    Attributes
    ----------
    rows
        How many events later a label came.
    joined
        The labels that were joined to their event.
    metric
        As in `Row`; the three values and those over the last `window` events are of this metric.
    at_once
        With each label at once.
    by_label, by_prediction
        With late labels, scored in the order of the labels and in that of the events.
    """

    stream: str
    learner: str
    events: int
    rows: int
    joined: int
    metric: str
    window: int
    at_once: float
    at_once_window: float
    by_label: float
    by_label_window: float
    by_prediction: float
    by_prediction_window: float
    seconds: float

    @property
    def verdict(self) -> str:
        """The result, in a sentence."""
        return (
            f"{self.metric} {number(self.by_label, self.metric)} with labels {self.rows:,} events "
            f"later, {number(self.at_once, self.metric)} with labels at once; {self.joined:,} of "
            f"{self.events:,} labels joined"
        )


class Report(NamedTuple):
    """The contents of a report."""

    courses: Sequence[Course]
    crash: Crash | None
    seconds: float
    seed: int
    versions: dict[str, str]
    machine: str
    late: Late | None = None


def number(value: float, metric: str) -> str:
    """Format a metric's value for people: 91.3%, or an error with three decimals."""
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.3f}" if metric == "mae" else f"{100 * value:.1f}%"


def render(report: Report) -> str:
    """Return the report as HTML, without external references."""
    sections = "".join(_section(i, course) for i, course in enumerate(report.courses))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Let the browser, too, make sure that nothing is fetched.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>Midstream demo</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"{_header(report)}{_overview(report.courses)}{_READING}{sections}"
        f"{_late_section(report.late)}{_crash_section(report.crash)}{_NEXT}{_footer(report)}"
        f"</main>\n<script>{_JS}</script>\n</body>\n</html>\n"
    )


# Words and tables.


def _header(report: Report) -> str:
    events = sum(course.events for course in report.courses)
    predictions = sum(line.row.events for course in report.courses for line in course.lines)
    return (
        "<header><h1>Midstream demo</h1>"
        f'<p class="lead">{events:,} events in {len(report.courses)} streams. Each learner '
        "predicts an event, is scored, and only then learns from it: "
        f"{predictions:,} times in all, in {report.seconds:.0f} seconds.</p></header>\n"
    )


def _overview(courses: Sequence[Course]) -> str:
    rows = []
    for i, course in enumerate(courses):
        best = _best(course)
        rows.append(
            f'<tr><th scope="row"><a href="#stream-{i}">{escape(course.title)}</a></th>'
            f"<td>{course.events:,}</td><td>{_METRICS[course.metric]}</td>"
            f"<td>{escape(best.learner)}</td><td><b>{number(best.value, course.metric)}</b>"
            f"{_worse(best)}</td>"
            f"<td>{number(best.no_change, course.metric)}</td>"
            f"<td>{sum(len(line.row.alarms) for line in course.lines)}</td></tr>"
        )
    heads = ["Stream", "Events", "Metric", "Best learner", "Value", "No-change", "Alarms"]
    return _table("overview", heads, rows)


def _section(i: int, course: Course) -> str:
    wide = _Chart(course, f"c{i}w", _WIDE).svg()
    narrow = _Chart(course, f"c{i}n", _NARROW).svg()
    return (
        f'<section id="stream-{i}"><h2>{escape(course.title)}</h2>'
        f"<p>{escape(course.about)}</p><p>{_finding(course)}</p>"
        f"<figure>{_legend(course)}{wide}{narrow}</figure>{_results(course)}</section>\n"
    )


def _legend(course: Course) -> str:
    """Return a legend of the lines, for a chart without room for names."""
    items = [
        f"<li>{_swatch(line.look)}{escape(line.row.learner)} "
        f'<b data-k="{k}">{number(line.values[-1], course.metric)}</b></li>'
        for k, line in enumerate(course.lines)
    ]
    items.append(
        f'<li>{_swatch(None)}no-change <b data-k="{len(course.lines)}">'
        f"{number(course.no_change[-1], course.metric)}</b></li>"
    )
    return f'<ul class="legend" aria-hidden="true">{"".join(items)}</ul>'


def _swatch(look: int | None) -> str:
    if look is None:
        return '<svg class="swatch" viewBox="0 0 26 12"><path class="none" d="M1 6H25"/></svg>'
    mark = _mark(look, 13, 6)
    return (
        f'<svg class="swatch" viewBox="0 0 26 12"><path class="line l{_style(look)}" d="M1 6H25"/>'
        f"{mark}</svg>"
    )


def _results(course: Course) -> str:
    """Return a table of the final numbers of a stream."""
    best = _best(course)
    rows = []
    for line in course.lines:
        row = line.row
        value = number(row.value, course.metric)
        if row is best:
            value = f"<b>{value}</b>"
        rows.append(
            f'<tr><th scope="row">{_swatch(line.look)}{escape(row.learner)}</th><td>{value}'
            f"{_worse(row)}{_non_finite(row)}</td>"
            f"<td>{number(row.window_value, course.metric)}</td>"
            f"<td>{_alarms(course, row)}</td><td>{row.events_per_second:,.0f}</td></tr>"
        )
    rows.append(
        f'<tr><th scope="row">{_swatch(None)}No-change</th>'
        f"<td>{number(best.no_change, course.metric)}</td>"
        f"<td>{number(course.no_change[-1], course.metric)}</td><td></td><td></td></tr>"
    )
    metric = _METRICS[course.metric]
    heads = [
        "Learner", f"{metric}, all events", f"last {course.window:,}", "Drift alarms", "Events/s",
    ]  # fmt: skip
    return _table("results", heads, rows)


def _table(kind: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _alarms(course: Course, row: Row) -> str:
    """Return when drift was detected, and how long after the switch."""
    if not row.alarms:
        return "none"
    texts = []
    for position in row.alarms:
        switch = _last_switch(course, position)
        delay = "" if switch is None else f'<span class="delay"> (+{position - switch:,})</span>'
        texts.append(f'<span class="alarm">{position:,}{delay}</span>')
    return ", ".join(texts)


def _last_switch(course: Course, position: int) -> int | None:
    return max((s for s in course.switches if s < position), default=None)


def _better(value: float, other: float, metric: str) -> bool:
    return value < other if metric == "mae" else value > other


def _worse(row: Row) -> str:
    if _better(row.value, row.no_change, row.metric):
        return ""
    return ' <span class="worse" title="not better than no-change">worse</span>'


def _non_finite(row: Row) -> str:
    if not row.non_finite:
        return ""
    are = "prediction is" if row.non_finite == 1 else "predictions are"
    return f' <span class="worse">{row.non_finite:,} {are} not finite</span>'


def _best(course: Course) -> Row:
    sign = -1.0 if course.metric == "mae" else 1.0
    return max((line.row for line in course.lines), key=lambda row: sign * row.value)


def _finding(course: Course) -> str:
    """Describe what the numbers show; nothing is assumed beforehand."""
    best, metric = _best(course), course.metric
    n = len(course.lines)
    above = sum(_better(line.row.value, line.row.no_change, metric) for line in course.lines)
    late = sum(_better(line.values[-1], course.no_change[-1], metric) for line in course.lines)
    parts = [
        f"Best over the whole stream: <b>{escape(best.learner)}</b> with "
        f"{number(best.value, metric)}, where no-change has {number(best.no_change, metric)}.",
        f"Better than no-change: {above} of {n} learners over all events, {late} of {n} over the "
        f"last {course.window:,}.",
    ]
    return " ".join([*parts, _finding_on_drift(course)])


def _finding_on_drift(course: Course) -> str:
    alarms = [position for line in course.lines for position in line.row.alarms]
    if not course.switches:
        return f"Drift alarms: {len(alarms) or 'none'}."
    delays = []
    edges = [*course.switches, course.events]
    for start, stop in pairwise(edges):
        for line in course.lines:
            caught = [p - start for p in line.row.alarms if start < p <= stop]
            delays += caught[:1]
    pairs = len(course.switches) * len(course.lines)
    text = f"Drift alarms: in {len(delays)} of {pairs} cases (a learner, a switch)"
    if delays:
        text += f", {min(delays):,} to {max(delays):,} events after the switch"
    return f"{text}; others: {len(alarms) - len(delays) or 'none'}."


def _late_section(late: Late | None) -> str:
    if late is None:
        return ""
    values = [
        ("Labels at once", late.at_once, late.at_once_window),
        ("Late, in the order of the labels", late.by_label, late.by_label_window),
        ("Late, in the order of the events", late.by_prediction, late.by_prediction_window),
    ]
    rows = [
        f'<tr><th scope="row">{name}</th><td>{number(value, late.metric)}</td>'
        f"<td>{number(recent, late.metric)}</td></tr>"
        for name, value, recent in values
    ]
    heads = ["", f"{_METRICS[late.metric]}, all events", f"last {late.window:,}"]
    return (
        '<section id="late"><h2>Labels that come later</h2>'
        f"<p>The {escape(late.learner.lower())} once more on “{escape(late.stream)}”, without "
        f"labels in the events: each comes {late.rows:,} events later, from a file of its own "
        "(<code>[feedback]</code>). The event was predicted at once and waited; then its "
        "prediction was scored, and the model learned the features as they were. "
        f"{late.joined:,} of {late.events:,} labels found their event.</p>"
        f"{_table('late', heads, rows)}</section>\n"
    )


def _crash_section(crash: Crash | None) -> str:
    if crash is None:
        return ""
    how = (
        f"killed with SIGKILL when {crash.killed_at:,} predictions had been written, and started "
        f"again. It went on after event {crash.resumed_from:,}, the last one that was committed; "
        "what had been written beyond that was taken back."
        if crash.killed
        else "to be killed halfway, but was over before that, and then started again."
    )
    same = "equal" if crash.digest == crash.expected_digest else "DIFFERENT"
    rows = [
        _fact("Predictions in the file", f"{crash.predictions:,} of {crash.events:,}"),
        _fact("Missing", f"{crash.missing:,}"),
        _fact("There twice", f"{crash.repeated:,}"),
        _fact("State, run without a stop", f"<code>{escape(crash.expected_digest)}</code>"),
        _fact(f"State, resumed: {same}", f"<code>{escape(crash.digest)}</code>"),
    ]
    return (
        '<section id="crash"><h2>Killed, and resumed</h2>'
        f"<p>The {escape(crash.learner.lower())} once more on “{escape(crash.stream)}”, the way it "
        "would run for months: <code>midstream run</code>, with journal, snapshots and a "
        f"prediction file. It was {how} The state is compared by a SHA-256 over every value in "
        "it, bit for bit, with that of the learner in the chart above.</p>"
        f'<div class="scroll"><table class="facts"><tbody>{"".join(rows)}</tbody></table></div>'
        "</section>\n"
    )


def _fact(name: str, value: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>'


def _footer(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"<footer><p>Made by <code>midstream demo</code>: {escape(versions)}; seed {report.seed}; "
        f"{escape(report.machine)}. Run again, it gives the same figures, but for times and "
        "speeds.</p></footer>\n"
    )


# Charts.


class _Format(NamedTuple):
    """Sizes of a chart, in pixels at full width."""

    name: str
    width: int
    height: int  # of the plot alone
    left: int
    right: int
    every: int  # draw one of this many points
    x_ticks: int
    marks: int  # along each line
    named: bool  # whether lines have names at their ends


_WIDE = _Format("wide", 900, 320, 48, 196, 1, 7, 6, named=True)
_NARROW = _Format("narrow", 380, 230, 42, 12, 2, 4, 4, named=False)
_TOP, _AXIS, _LANE = 42, 40, 16


class _Scale(NamedTuple):
    """Maps values in [low, high] to pixels in [start, end]; linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low / 2))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


class _Chart:
    """One course as SVG."""

    def __init__(self, course: Course, id_: str, form: _Format) -> None:
        self.course = course
        self.id = id_
        self.form = form
        self.lanes = [line for line in course.lines if line.row.alarms]
        self.right = form.width - form.right
        self.bottom = _TOP + form.height
        self.floor = self.bottom + (len(self.lanes) * _LANE + 6 if self.lanes else 0)
        self.x = _Scale(0, course.events, form.left, self.right)
        # Errors differ by factors, so their scale is logarithmic.
        log = course.metric == "mae"
        self.y_values = _log_ticks(*_extent(course)) if log else _share_ticks(*_extent(course))
        self.y = _Scale(self.y_values[0], self.y_values[-1], self.bottom, _TOP, log)

    def svg(self) -> str:
        """Return the chart."""
        course, form = self.course, self.form
        clip = f'<clipPath id="{self.id}-clip"><rect x="{form.left}" y="{_TOP - 2}" width="{self.right - form.left}" height="{form.height + 4}"/></clipPath>'  # noqa: E501
        return (
            f'<svg class="chart {form.name}" viewBox="0 0 {form.width} {self.floor + _AXIS}" '
            f'role="img" aria-labelledby="{self.id}-t {self.id}-d" {self._data()}>'
            f'<title id="{self.id}-t">{escape(self._title())}</title>'
            f'<desc id="{self.id}-d">{escape(_description(course))}</desc><defs>{clip}</defs>'
            f"{self._y_axis()}{self._x_axis()}{self._switches()}{self._lines()}{self._names()}"
            f'<line class="cross" y1="{_TOP}" y2="{self.floor}"/><text class="at" y="12"></text>'
            # An empty title keeps the chart's title from popping up under the pointer.
            f'<rect class="glass" x="{form.left}" y="0" width="{self.right - form.left}" '
            f'height="{self.floor}"><title></title></rect>{self._alarms()}</svg>'
        )

    def _title(self) -> str:
        return f"{self.course.title}: {_METRICS[self.course.metric].lower()} over the stream"

    def _data(self) -> str:
        """Return the data that the script needs to read values off the lines."""
        x, y = self.x, self.y
        return (
            f'data-x="{x.high} {x.start} {x.end}" '
            f'data-y="{y.low:g} {y.high:g} {y.start} {y.end}" data-metric="{self.course.metric}"'
        )

    def _y_axis(self) -> str:
        form, course = self.form, self.course
        out = []
        for value in self.y_values:
            at = self.y(value)
            text = f"{value:g}" if course.metric == "mae" else f"{100 * value:.0f}%"
            out.append(f'<line class="grid" x1="{form.left}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>')  # fmt: skip  # noqa: E501
            out.append(f'<text class="tick end" x="{form.left - 8}" y="{at + 4:.1f}">{text}</text>')
        scale = ", logarithmic" if self.y.log else ""
        label = f"{_METRICS[course.metric]}, last {course.window:,} events{scale}"
        out.append(f'<text class="axis" x="0" y="{_TOP - 30}">{label}</text>')
        return "".join(out)

    def _x_axis(self) -> str:
        out = [
            f'<line class="base" x1="{self.form.left}" x2="{self.right}" y1="{self.floor}" '
            f'y2="{self.floor}"/>'
        ]
        for value in _event_ticks(self.course.events, self.form.x_ticks):
            at = self.x(value)
            out.append(f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{self.floor}" y2="{self.floor + 4}"/>')  # fmt: skip  # noqa: E501
            out.append(f'<text class="tick mid" x="{at:.1f}" y="{self.floor + 18}">{value:,}</text>')  # fmt: skip  # noqa: E501
        x, y, style = self.right + 24, self.floor + 18, "axis"
        if not self.form.named:
            x, y, style = self.right, self.floor + 36, "axis end"
        out.append(f'<text class="{style}" x="{x}" y="{y}">events</text>')
        return "".join(out)

    def _switches(self) -> str:
        out = []
        for i, switch in enumerate(self.course.switches):
            at = self.x(switch)
            out.append(
                f'<line class="switch" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" '
                f'y2="{self.floor}"/>'
                f'<text class="switch-name mid" x="{at:.1f}" y="{_TOP - 13}">switch {i + 1}</text>'
            )
        return "".join(out)

    def _lines(self) -> str:
        course = self.course
        out = [f'<polyline class="none" data-k="{len(course.lines)}" points="{self._points(course.no_change)}"/>']  # fmt: skip  # noqa: E501
        for k, line in enumerate(course.lines):
            out.append(
                f'<polyline class="line l{_style(line.look)}" data-k="{k}" '
                f'points="{self._points(line.values)}"/>{self._marks(k, line)}'
            )
        return f'<g clip-path="url(#{self.id}-clip)">{"".join(out)}</g>'

    def _drawn(self) -> list[int]:
        """Return the indices of the points to draw, which include the last."""
        last = len(self.course.positions) - 1
        return sorted({*range(0, last, self.form.every), last})

    def _points(self, values: Sequence[float]) -> str:
        positions = self.course.positions
        return " ".join(
            f"{self.x(positions[i]):.1f},{self.y(values[i]):.1f}"
            for i in self._drawn()
            if math.isfinite(values[i])
        )

    def _marks(self, k: int, line: Line) -> str:
        """Return marks along a line, staggered, so that lines differ in more than colour."""
        n, marks = len(line.values), self.form.marks
        shift = (k + 0.5) / len(self.course.lines)
        at = [min(int((j + shift) * n / marks), n - 1) for j in range(marks)]
        return "".join(
            _mark(line.look, self.x(self.course.positions[i]), self.y(line.values[i]))
            for i in at
            if math.isfinite(line.values[i])
        )

    def _names(self) -> str:
        """Return the names of the lines, as close to their ends as possible."""
        if not self.form.named:
            return ""
        course = self.course
        ends = [
            (line.values[-1], f"t{_style(line.look)}", line.row.learner) for line in course.lines
        ]
        ends.append((course.no_change[-1], "t-none", "no-change"))
        wanted = [self._end(value) for value, _, _ in ends]
        places = _spread(wanted, 17, _TOP, self.bottom)
        out = []
        for k, ((value, style, name), at, y) in enumerate(zip(ends, wanted, places, strict=True)):
            x = self.right
            out.append(
                f'<path class="leader" d="M{x + 2} {at:.1f}L{x + 12} {y:.1f}"/>'
                f'<text class="name {style}" x="{x + 16}" y="{y + 4:.1f}">{escape(name)} '
                f'<tspan class="value" data-k="{k}">{number(value, course.metric)}</tspan></text>'
            )
        return "".join(out)

    def _end(self, value: float) -> float:
        """Return where a line ends, within the plot."""
        return min(max(self.y(value), _TOP), self.bottom) if math.isfinite(value) else self.bottom

    def _alarms(self) -> str:
        """Return a lane for each learner with alarms, below the plot."""
        out = []
        for i, line in enumerate(self.lanes):
            y = self.bottom + 6 + (i + 0.5) * _LANE
            out.append(f'<line class="lane" x1="{self.form.left}" x2="{self.right}" y1="{y}" y2="{y}"/>')  # fmt: skip  # noqa: E501
            for position in line.row.alarms:
                switch = _last_switch(self.course, position)
                after = "" if switch is None else f", {position - switch:,} after the switch"
                text = f"{line.row.learner}: drift alarm after event {position:,}{after}"
                out.append(
                    f'<g class="alarm-mark"><title>{escape(text)}</title>'
                    f"{_mark(line.look, self.x(position), y)}</g>"
                )
            if self.form.named:
                n = len(line.row.alarms)
                text = f"{line.row.learner}: {n} alarm{'s' if n > 1 else ''}"
                out.append(
                    f'<text class="lane-name t{_style(line.look)}" x="{self.right + 16}" '
                    f'y="{y + 4}">{escape(text)}</text>'
                )
        if self.lanes and not self.form.named:
            out.append(
                f'<text class="axis" x="{self.form.left}" y="{self.floor + 36}">'
                "marks above the axis: drift alarms</text>"
            )
        return "".join(out)


def _style(look: int) -> int:
    return look % len(_MARKS)


def _mark(look: int, x: float, y: float) -> str:
    """Return a learner's mark at a position."""
    style = _style(look)
    return (
        f'<path class="mark m{style}" transform="translate({x:.1f} {y:.1f})" d="{_MARKS[style]}"/>'
    )


_MARKS = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z",  # circle
    "M-3.6 -3.6H3.6V3.6H-3.6Z",  # square
    "M0 -4.8L4.6 3.4H-4.6Z",  # triangle
    "M0 -5L5 0L0 5L-5 0Z",  # diamond
    "M0 4.8L4.6 -3.4H-4.6Z",  # triangle, down
    "M-1.6 -4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z",  # cross
)


def _event_ticks(events: int, about: int) -> list[int]:
    """Return about `about` round numbers of events from 0, in steps of 1, 2 or 5."""
    step = max(round(_step(events / max(about - 1, 1))), 1)
    return list(range(0, events + 1, step))


def _step(least: float) -> float:
    """Return the smallest round step that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def _extent(course: Course) -> tuple[float, float]:
    """Return the smallest and the largest value of the lines.

    A learner's first window is before convergence and may be clipped.
    """
    settled = [
        value
        for values in (course.no_change, *(line.values for line in course.lines))
        for position, value in zip(course.positions, values, strict=True)
        if math.isfinite(value) and (position > course.window or position == course.events)
    ]
    return (min(settled), max(settled)) if settled else (0.0, 1.0)


def _share_ticks(low: float, _: float) -> list[float]:
    """Return round shares up to 1; the first is at most `low` and 0.9."""
    least = min(low, 0.9)
    step = _step((1 - least) / 5)
    first = math.floor(least / step + 1e-9)
    return [i * step for i in range(first, round(1 / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten; the first and the last enclose the values."""
    high = high if high > 0 else 1.0
    low = min(max(low, high / 1_000), high / 2)
    start, stop = math.floor(math.log10(low)), math.ceil(math.log10(high))
    round_ones = [m * 10.0**power for power in range(start, stop + 1) for m in (1, 2, 5)]
    first = max(i for i, value in enumerate(round_ones) if value <= low * (1 + 1e-9))
    last = min(i for i, value in enumerate(round_ones) if value >= high * (1 - 1e-9))
    return round_ones[first : last + 1]


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places at least `gap` apart, in the order of those wanted and close to them."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [min(max(wanted[i], low), high) for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > high:
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    out = [0.0] * len(wanted)
    for place, i in zip(places, order, strict=True):
        out[i] = place
    return out


def _description(course: Course) -> str:
    """Describe a chart in words, for those who cannot see it."""
    metric = course.metric
    lines = [
        f"{line.row.learner} ends at {number(line.values[-1], metric)}, with "
        f"{len(line.row.alarms) or 'no'} drift alarms."
        for line in course.lines
    ]
    switches = ", ".join(f"{s:,}" for s in course.switches)
    return " ".join([
        f"A line for each learner over {course.events:,} events.",
        f"The concept switches after event {switches}." if switches else "",
        *lines,
        f"No-change ends at {number(course.no_change[-1], metric)}.",
    ])  # fmt: skip


_METRICS = {"accuracy": "Accuracy", "mae": "Mean absolute error"}

_READING = """\
<section id="reading"><h2>How to read this</h2>
<p>Each event is first <b>predicted</b>, then the prediction is <b>scored</b>, and only then the
event is <b>learned</b>. So no learner is ever asked about what it has already seen, and every
event serves as a test: this is called prequential evaluation, or test-then-train. A curve shows
the score over the most recent events, and how it rises, falls and recovers is how the learner
lives on the stream.</p>
<p>The dashed grey line is <b>no-change</b>: always predict the last label. A learner is of
use only where it does better; where it does not over the whole stream, the tables say “worse”.
Accuracy should be high, a mean absolute error low.</p>
<p>Vertical lines mark where the rule behind a made stream truly <b>switches</b>. Nobody tells the
learners. Each has a row under the chart for its <b>drift alarms</b>: ADWIN, a detector, watches
the losses, and raises one where they have risen. On the lines, marks only tell learners apart.
Real data come without marked switches.</p>
</section>
"""

_NEXT = """\
<section id="next"><h2>Your own stream</h2>
<p>Take a file of labelled events, JSON Lines or CSV:</p>
<pre><code>midstream init --from FILE my-stream   # a config that fits the file, and a starter model
cd my-stream
midstream check midstream.toml         # what is wrong, if anything
midstream run midstream.toml           # learn from it, and go on as it grows</code></pre>
</section>
"""

_CSS = """
:root{--bg:#fdfdfc;--ink:#1d1f23;--soft:#5d626b;--rule:#d9dbdf;--grid:#ecedef;--warn:#b3261e;
--c0:#1763b6;--c1:#8547c2;--c2:#a85a00;--c3:#00756a;--c4:#c2256b;--c5:#5f6b00}
@media (prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e4e6e9;--soft:#9ba1ab;--rule:#3a3e45;
--grid:#24272c;--warn:#ff8a80;--c0:#6cb2ff;--c1:#c69bff;--c2:#f5a54a;--c3:#3fcdb9;--c4:#ff80b5;
--c5:#c9d64f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:948px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:1.9rem;line-height:1.2;margin:0;letter-spacing:-.015em}
h2{font-size:1.25rem;line-height:1.3;margin:0 0 .4rem;letter-spacing:-.01em}
section{margin-top:3.5rem}
p{margin:.5rem 0;max-width:44rem}
.lead{font-size:1.1rem;color:var(--soft);margin:.6rem 0 2rem}
a{color:inherit;text-decoration-color:var(--rule);text-underline-offset:.2em}
a:hover{text-decoration-color:currentColor}
code{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{overflow-x:auto;padding:14px 16px;border:1px solid var(--rule);border-radius:6px;margin:1rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 0 6px 18px;border-bottom:1px solid var(--grid);font-weight:400;
vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{color:var(--soft);font-size:.8rem;border-bottom-color:var(--rule);vertical-align:bottom}
tbody th{white-space:nowrap}
b{font-weight:650}
.overview td:nth-child(3),.overview td:nth-child(4),.overview th:nth-child(3),
.overview th:nth-child(4){text-align:left}
.facts{width:auto}
.facts td{text-align:left}
.facts code{word-break:break-all}
.alarm{white-space:nowrap}
.delay{color:var(--soft)}
.worse{color:var(--warn);font-size:.8em}
figure{margin:1.4rem 0 1rem}
.chart{display:block;width:100%;height:auto;overflow:visible;touch-action:pan-y;
font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
.narrow,.legend{display:none}
.chart text{fill:var(--ink)}
.chart .tick,.chart .axis,.chart .at{fill:var(--soft)}
.end{text-anchor:end}.mid{text-anchor:middle}
.grid{stroke:var(--grid)}
.base{stroke:var(--rule)}
.lane{stroke:var(--grid)}
.switch{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:1.5 3}
.switch-name{font-weight:600}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.none{fill:none;stroke:var(--soft);stroke-width:1.4;stroke-dasharray:5 4}
.leader{fill:none;stroke:var(--rule)}
.chart .t-none{fill:var(--soft)}
.value{font-weight:650}
.lane-name{font-size:11.5px}
.glass{fill:transparent}
.cross{stroke:var(--soft);visibility:hidden}
.mark{stroke:var(--bg);stroke-width:1.2}
.swatch{width:26px;height:12px;margin-right:8px;vertical-align:-1px;overflow:visible}
.l0{stroke:var(--c0)}.l1{stroke:var(--c1)}.l2{stroke:var(--c2)}
.l3{stroke:var(--c3)}.l4{stroke:var(--c4)}.l5{stroke:var(--c5)}
.m0,.chart .t0{fill:var(--c0)}.m1,.chart .t1{fill:var(--c1)}.m2,.chart .t2{fill:var(--c2)}
.m3,.chart .t3{fill:var(--c3)}.m4,.chart .t4{fill:var(--c4)}.m5,.chart .t5{fill:var(--c5)}
footer{margin-top:3.5rem;padding-top:1rem;border-top:1px solid var(--rule);color:var(--soft);
font-size:.85rem}
@media (max-width:719px){
main{padding:28px 16px 48px}
.wide{display:none}
.narrow{display:block;max-width:560px}
.legend{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:2px 16px;
list-style:none;margin:0 0 12px;padding:0;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding-left:12px}
table{font-size:.84rem}
.overview :is(th,td):is(:nth-child(2),:nth-child(3),:nth-child(7)),
.results :is(th,td):nth-child(5),.delay{display:none}
.overview tbody th{white-space:normal}
.swatch{margin-right:6px}
}
@media print{section{break-inside:avoid}}
"""

# Shows the values under the pointer in place of the last ones.
_JS = """
for (const chart of document.querySelectorAll("svg.chart")) {
  const [events, x0, x1] = chart.dataset.x.split(" ").map(Number);
  const [low, high, y0, y1] = chart.dataset.y.split(" ").map(Number);
  const mae = chart.dataset.metric === "mae";
  const lines = [...chart.querySelectorAll("polyline")];
  const places = [...chart.parentNode.querySelectorAll("[data-k]")]
    .filter(e => e.tagName !== "polyline" && (e.closest("svg") || chart) === chart);
  const last = places.map(e => e.textContent);
  const cross = chart.querySelector(".cross"), at = chart.querySelector(".at");
  const show = x => {
    let best = null;
    const values = {};
    for (const line of lines) {
      let near = null;
      for (const p of line.points) if (!near || Math.abs(p.x - x) < Math.abs(near.x - x)) near = p;
      if (!near) continue;
      best = near.x;
      const share = (near.y - y0) / (y1 - y0);
      const v = mae ? low * (high / low) ** share : low + share * (high - low);
      values[line.dataset.k] = mae ? v.toFixed(3) : (100 * v).toFixed(1) + "%";
    }
    if (best === null) return;
    for (const e of places) if (e.dataset.k in values) e.textContent = values[e.dataset.k];
    cross.setAttribute("x1", best); cross.setAttribute("x2", best);
    cross.style.visibility = "visible";
    at.textContent = "event " + Math.round((best - x0) / (x1 - x0) * events).toLocaleString("en");
    at.setAttribute("x", x1); at.setAttribute("text-anchor", "end");
  };
  chart.addEventListener("pointermove", e => {
    const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(chart.getScreenCTM().inverse());
    if (p.x >= x0 && p.x <= x1) show(p.x);
  });
  chart.addEventListener("pointerleave", () => {
    places.forEach((e, i) => { e.textContent = last[i]; });
    cross.style.visibility = "hidden"; at.textContent = "";
  });
}
"""
