"""The results as one HTML file that needs no network, with charts drawn by hand.

Each chart is drawn twice, wide and narrow, and the page shows the one that fits: text in a chart
that shrinks with the screen could not be read on a phone.
"""

import math
from collections.abc import Mapping
from html import escape
from typing import NamedTuple

from figures import Bar, Bars, Grid, Line, Measured, Result, Row, number

ABOUT = {
    "speed": (
        "From a file to learned, with everything that `midstream run` does on the way, beside "
        "River's bare loop and Vowpal Wabbit on the same events."
    ),
    "scaling": "Two processes beside one, and what an event and a feature cost as there are more.",
    "overhead": "`midstream run` with River's learners beside a bare loop of River.",
    "kafka": (
        "From a Kafka topic to learned, and every prediction back to Kafka in transactions, beside "
        "bare loops that consume, decode and produce; how long an event takes to be learned."
    ),
    "memory": "Resident memory at the end of a long run beside that at 500,000 events.",
    "versions": (
        "What versions cost a stream, how long one takes by the size of the state, and how soon "
        "`midstream restore` takes effect while events come from Kafka."
    ),
    "feedback": (
        "A run whose labels come later, joined by id, beside one whose events come with them; and "
        "what events that wait for their label take."
    ),
    "gateway": (
        "Feedback that `midstream gateway` answers with 202, from 200 senders at once, beside a "
        "bare handler that writes to the same Kafka and checks nothing."
    ),
    "delays": (
        "Methods against the bias of labels that come late, on generated streams of conversions "
        "that come hours later, beside labels that come at once."
    ),
}


def render(results: Mapping[str, Result]) -> str:
    """Return the page. It refers to nothing outside itself."""
    sections = "".join(_section(name, result) for name, result in results.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>Midstream benchmarks</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>Midstream benchmarks</h1>{_LEAD}</header>\n{sections}</main>\n</body>\n"
        "</html>\n"
    )


def _section(name: str, result: Result) -> str:
    charts = "".join(
        f"<figure>{_draw(chart, _WIDE)}{_draw(chart, _NARROW)}</figure>" for chart in result.charts
    )
    missing = "".join(
        f'<p class="missed"><b>Left out:</b> {_text(text)}</p>' for text in result.missing
    )
    grids = "".join(map(_grid, result.grids))
    facts = "".join(f"<p>{escape(f.name)}: <b>{escape(f.text)}</b></p>" for f in result.facts)
    profile = ""
    if result.profile:
        lines = escape("\n".join(result.profile))
        profile = (
            "<details><summary>Profile of our side (profiling itself slows it)</summary>"
            f"<pre>{lines}</pre></details>"
        )
    machine = ", ".join(f"{k} {v}" for k, v in result.machine.items())
    kind = "make bench-full" if result.full else "make bench"
    return (
        f'<section id="{name}"><h2>{name.capitalize()}</h2><p>{_text(ABOUT[name])}</p>{missing}'
        f"{charts}{_rows(result.rows)}{_sides(result.sides)}{grids}{facts}{profile}"
        f'<p class="where"><code>{kind}</code>, {result.repeats} '
        f"repeat{'s' if result.repeats > 1 else ''}, {result.seconds:.0f} s; {escape(machine)}</p>"
        "</section>\n"
    )


def _text(text: str) -> str:
    """Return prose, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def _rows(rows: list[Row]) -> str:
    if not rows:
        return ""
    verdicts = {None: "", True: "reached", False: '<b class="missed">not reached</b>'}
    body = [
        f'<tr><th scope="row">{escape(r.title)}</th>'
        f"<td>{number(r.ours)} {escape(r.unit)}</td>"
        f'<td>{number(r.other)} <span class="soft">{escape(r.other_name)}</span></td>'
        f'<td><b>{r.ratio:.2f}</b></td><td class="soft">{r.lowest:.2f} to {r.highest:.2f}</td>'
        f"<td>{r.goal_text}</td><td>{verdicts[r.reached]}</td></tr>"
        for r in rows
    ]
    return _table(["", "Ours", "Other side", "Ratio", "Repeats", "Goal", ""], body)


def _sides(sides: list[Measured]) -> str:
    if not sides:
        return ""
    body = [
        f'<tr><th scope="row">{escape(s.name)}</th><td>{s.events:,}</td><td>{s.rate:,.0f}</td>'
        f"<td>{s.peak_mib:,.0f} MiB</td><td>{s.cores:.1f}</td>"
        f"<td>{'' if s.log_loss is None else f'{s.log_loss:.4f}'}</td></tr>"
        for s in sides
    ]
    return _table(["Side", "Events", "Events/s", "Peak memory", "Cores", "Log loss"], body)


def _grid(grid: Grid) -> str:
    body = []
    for first, *rest in grid.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    heads = [name[:1].upper() + name[1:] for name in grid.columns]
    return f"<p>{escape(grid.title)}</p>{_table(heads, body)}"


def _table(heads: list[str], body: list[str]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>\n"
    )


# Charts.


class _Format(NamedTuple):
    """Sizes of a chart, in pixels at full width."""

    name: str
    width: int
    side: int  # left of a plot of lines
    ticks: int


_WIDE = _Format("wide", 900, 56, 6)
_NARROW = _Format("narrow", 380, 44, 4)
_ROW, _BAR, _HEAD, _AXIS, _PLOT = 46, 16, 34, 40, 220


def _draw(chart: Bars | Line, form: _Format) -> str:
    inner, height, about = _bars(chart, form) if isinstance(chart, Bars) else _line(chart, form)
    return (
        f'<svg class="chart {form.name}" viewBox="0 0 {form.width} {height}" role="img">'
        f"<title>{escape(chart.title)}. {escape(about)}</title>"
        f'<text class="head" x="0" y="14">{escape(chart.title)}</text>{inner}</svg>'
    )


def _bars(chart: Bars, form: _Format) -> tuple[str, int, str]:
    """Return bars under their names, the height, and the chart in words."""
    top = max(
        [bar.value for bar in chart.bars] + [m.value for bar in chart.bars for m in bar.marks]
    )
    ticks = _ticks(top, form.ticks)
    right = form.width - 12
    scale = right / ticks[-1]
    bottom = _HEAD + len(chart.bars) * _ROW
    out = []
    for tick in ticks:
        x = tick * scale
        place = "" if tick == 0 else " end" if tick == ticks[-1] else " mid"
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_HEAD}" y2="{bottom}"/>')
        out.append(f'<text class="tick{place}" x="{x:.1f}" y="{bottom + 18}">{_short(tick)}</text>')
    for i, bar in enumerate(chart.bars):
        out.append(_bar(bar, chart.unit, scale, _HEAD + i * _ROW))
    words = "; ".join(f"{bar.name}: {bar.value:,.0f} {chart.unit}" for bar in chart.bars)
    return "".join(out), bottom + _AXIS - 14, words


def _bar(bar: Bar, unit: str, scale: float, y: float) -> str:
    """Return a bar with its name above it, and a line where each goal is."""
    at = y + 20
    kind = "ours" if bar.ours else "other"
    out = [
        f'<text class="name" x="0" y="{y + 15}">{escape(bar.name)} '
        f'<tspan class="value">{bar.value:,.0f}</tspan></text>',
        f'<rect class="{kind}" x="0" y="{at}" width="{max(bar.value * scale, 1):.1f}" '
        f'height="{_BAR}" rx="2"><title>{escape(bar.name)}: {bar.value:,.0f} {escape(unit)}'
        "</title></rect>",
    ]
    for mark in bar.marks:
        x = mark.value * scale
        met = "met" if bar.value >= mark.value else "unmet"
        out.append(
            f'<g class="goal {met}"><title>goal: {escape(mark.text)}, {mark.value:,.0f}</title>'
            f'<line class="halo" x1="{x:.1f}" x2="{x:.1f}" y1="{at - 3}" y2="{at + _BAR + 3}"/>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{at - 3}" y2="{at + _BAR + 3}"/></g>'
        )
    return "".join(out)


def _line(chart: Line, form: _Format) -> tuple[str, int, str]:
    """Return a line over a logarithmic axis, the height, and the chart in words."""
    ticks = _ticks(max(chart.limit, *(value for _, value in chart.points)), 5)
    left, right, bottom = form.side, form.width - 60, _HEAD + _PLOT
    first, last = math.log(chart.points[0][0]), math.log(chart.points[-1][0])

    def place(x: float, value: float) -> tuple[float, float]:
        share = (math.log(x) - first) / ((last - first) or 1)
        return left + 20 + share * (right - left - 20), bottom - max(value, 0) / ticks[-1] * _PLOT

    out = []
    for tick in ticks:
        _, y = place(chart.points[0][0], tick)
        out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick end" x="{left - 8}" y="{y + 4:.1f}">{tick:g}</text>')
    _, y = place(chart.points[0][0], chart.limit)
    out.append(
        f'<line class="limit" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{left + 4}" y="{y - 6:.1f}">goal: at most '
        f"{escape(chart.limit_text)}</text>"
    )
    places = [place(*point) for point in chart.points]
    out.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    for (n, value), (x, y) in zip(chart.points, places, strict=True):
        out.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{n:,.0f} {escape(chart.x_name)}: '
            f"{number(value)} {escape(chart.unit)}</title></circle>"
            f'<text class="value mid" x="{x:.1f}" y="{y + 20:.1f}">{number(value)}</text>'
            f'<text class="tick mid" x="{x:.1f}" y="{bottom + 18}">{n:,.0f}</text>'
        )
    out.append(
        f'<text class="tick end" x="{right}" y="{bottom + 36}">{escape(chart.x_name)}</text>'
        f'<text class="tick end" x="{form.width - 12}" y="14">{escape(chart.unit)}</text>'
    )
    words = "; ".join(
        f"{n:,.0f} {chart.x_name}: {number(value)} {chart.unit}" for n, value in chart.points
    )
    return "".join(out), bottom + _AXIS, words


def _ticks(top: float, about: int) -> list[float]:
    """Return round numbers from 0 to one that is not below `top`, in steps of 1, 2 or 5."""
    power = 10.0 ** math.floor(math.log10(top / about))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * about >= top * (1 - 1e-9))
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


_LEAD = """\
<p class="lead">Both sides of every comparison are measured in one run, each in a process of its
own, in turns.</p>
<p>A neighbour on the machine only ever slows a side down, so what is compared is the fastest of
each; “repeats” gives the lowest and the highest ratio of a single repeat. Where less is better, the
goal says “at most”. In bars, ours are coloured, and a line marks each goal: solid where it is
reached, dashed where it is not; names of goals and exact values show under the pointer.</p>"""

_CSS = """
:root{--bg:#fdfdfc;--ink:#1d1f23;--soft:#5d626b;--rule:#d9dbdf;--grid:#ecedef;--warn:#b3261e;
--ours:#1763b6;--other:#a9aeb8}
@media (prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e4e6e9;--soft:#9ba1ab;--rule:#3a3e45;
--grid:#24272c;--warn:#ff8a80;--ours:#6cb2ff;--other:#5c626d}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:948px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:1.9rem;line-height:1.2;margin:0;letter-spacing:-.015em}
h2{font-size:1.25rem;line-height:1.3;margin:0 0 .4rem;letter-spacing:-.01em}
section{margin-top:3.5rem}
p{margin:.5rem 0;max-width:44rem}
.lead{font-size:1.1rem;color:var(--soft);margin:.6rem 0 1rem}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{overflow-x:auto;padding:14px 16px;border:1px solid var(--rule);border-radius:6px}
summary{cursor:pointer;margin-top:1rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 0 6px 16px;border-bottom:1px solid var(--grid);font-weight:400;
vertical-align:top}
th:first-child{text-align:left;padding-left:0}
thead th{color:var(--soft);font-size:.8rem;border-bottom-color:var(--rule)}
b{font-weight:650}
.soft{color:var(--soft)}
.missed{color:var(--warn)}
.where{color:var(--soft);font-size:.85rem}
figure{margin:1.4rem 0 2rem}
.chart{display:block;width:100%;height:auto;overflow:visible;
font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
.chart.narrow{display:none}
.chart text{fill:var(--ink)}
.chart .tick{fill:var(--soft)}
.chart .head,.value{font-weight:650}
.end{text-anchor:end}.mid{text-anchor:middle}
.grid{stroke:var(--grid)}
.ours{fill:var(--ours)}.other{fill:var(--other)}
.goal line{stroke:var(--ink);stroke-width:2}
.goal .halo{stroke:var(--bg);stroke-width:5}
.goal.unmet line:not(.halo){stroke-dasharray:3 3}
.limit{stroke:var(--soft);stroke-dasharray:5 4}
polyline{fill:none;stroke:var(--ours);stroke-width:1.8}
circle{fill:var(--ours);stroke:var(--bg);stroke-width:1.5}
@media (max-width:719px){
main{padding:28px 16px 48px}
.chart.wide{display:none}
.chart.narrow{display:block;max-width:560px}
th,td{padding-left:12px}
table{font-size:.82rem;min-width:36rem}
}
@media print{section{break-inside:avoid}}
"""
