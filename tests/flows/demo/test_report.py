"""The demo's report: it needs nothing but itself, escapes what it is given, and shows it all."""

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.flows.demo import report as report_module
from midstream.flows.demo.report import Crash, Report, number, render
from midstream.flows.demo.showcase import Course, Line, Row

HOSTILE = """</title></script><script>alert("1")</script><img src='http://x.example'>&amp;"""


def make_row(learner="Tree", *, value=0.9, alarms=(), metric="accuracy", stream="Stream"):
    return Row(
        stream=stream,
        learner=learner,
        task="binary",
        events=1_000,
        metric=metric,
        value=value,
        window=100,
        window_value=value,
        no_change=0.5,
        alarms=list(alarms),
        seconds=0.5,
        events_per_second=2_000.0,
        digest="ab" * 32,
    )


def make_course(lines=None, *, title="Stream", metric="accuracy", switches=(), no_change=None):
    positions = list(range(50, 1_001, 50))
    if lines is None:
        row = make_row(metric=metric)
        lines = [Line(row, 0, [0.8 + i / 200 for i in range(20)])]
    return Course(
        title=title,
        about="About it.",
        task="binary",
        metric=metric,
        events=1_000,
        window=100,
        switches=list(switches),
        positions=positions,
        no_change=[0.5] * 20 if no_change is None else no_change,
        lines=lines,
    )


def make_crash(**changes):
    crash = Crash(
        stream="Stream",
        learner="Adaptive tree",
        events=1_000,
        killed=True,
        killed_at=512,
        resumed_from=490,
        predictions=1_000,
        missing=0,
        repeated=0,
        digest="ab" * 32,
        expected_digest="ab" * 32,
        seconds=1.0,
    )
    return msgspec.structs.replace(crash, **changes)


def make_html(*courses, crash=None, versions=None):
    return render(Report(courses, crash, 12.0, 42, versions or {"midstream": "1"}, "Linux, 2 CPUs"))


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails where tags do not match."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def charts(html):
    """Return the SVG charts, parsed as XML, which is stricter than a browser."""
    found = re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL)
    return [ET.fromstring(svg) for svg in found]  # noqa: S314 we made it


def test_hostile_names_are_text_and_nothing_else():
    """Whatever a title, a learner or a version is called, it adds no tag and no attribute."""
    row = make_row(HOSTILE, stream=HOSTILE, alarms=[520])
    course = make_course([Line(row, 0, [0.9] * 20)], title=HOSTILE, switches=[500])
    crash = make_crash(stream=HOSTILE, learner=HOSTILE, digest=HOSTILE)
    html = make_html(course, crash=crash, versions={HOSTILE: HOSTILE})
    plain = make_row("Tree", alarms=[520])
    harmless = make_html(
        make_course([Line(plain, 0, [0.9] * 20)], switches=[500]), crash=make_crash()
    )
    assert Page(html).tags == Page(harmless).tags
    assert HOSTILE in "".join(Page(html).text)
    assert len(charts(html)) == 2


def test_nothing_outside_the_file_is_referred_to():
    """The report has no address in it but those of its own sections, so that it opens offline."""
    html = make_html(make_course(switches=[500]), crash=make_crash())
    page = Page(html)
    links = [value for name, value in page.attributes if name in {"href", "src", "xlink:href"}]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", html)
    ids = {value for name, value in page.attributes if name == "id"}
    assert {link.removeprefix("#") for link in links} <= ids
    assert "default-src 'none'" in html


def test_a_chart_shows_every_line_switch_and_alarm():
    """Lines, the baseline, switches by name, and alarms with their delay are all in the chart."""
    lines = [
        Line(make_row("Tree", alarms=[530, 900]), 2, [0.9] * 20),
        Line(make_row("Forest"), 4, [0.8] * 20),
    ]
    html = make_html(make_course(lines, switches=[500]))
    for chart in charts(html):
        ns = chart.tag.removesuffix("svg")
        text = " ".join(chart.itertext())
        assert len(chart.findall(f".//{ns}polyline")) == 3
        assert "switch 1" in text
        assert "Tree: drift alarm after event 530, 30 after the switch" in text
        assert sum(g.get("class") == "alarm-mark" for g in chart.iter(f"{ns}g")) == 2
    assert "530<span" in html
    assert "(+30)" in html


def test_charts_are_described_in_words():
    """Each chart has a title and a description that give what it shows to those who cannot see."""
    html = make_html(make_course(switches=[500]))
    for chart in charts(html):
        assert chart.get("role") == "img"
        named = {e.get("id"): "".join(e.itertext()) for e in chart.iter() if e.get("id")}
        title, description = (named[id_] for id_ in chart.get("aria-labelledby").split())
        assert title == "Stream: accuracy over the stream"
        assert "switches after event 500" in description
        assert "Tree ends at 89.5%" in description


def test_ids_are_unique():
    """No two elements share an id, so that each chart is named by its own title."""
    page = Page(make_html(make_course(), make_course(title="Another")))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_lines_differ_in_more_than_colour():
    """Each look has a mark of its own, in the chart and beside the name in the table."""
    lines = [Line(make_row(f"L{i}"), i, [0.5 + i / 20] * 20) for i in range(6)]
    html = make_html(make_course(lines))
    marks = set(re.findall(r'class="mark m\d" transform="[^"]+" d="([^"]+)"', html))
    assert len(marks) == 6


@pytest.mark.parametrize("metric", ["accuracy", "mae"])
@pytest.mark.parametrize(
    "values",
    [[math.nan] * 20, [0.0] * 20, [1.0] * 20, [math.nan] * 10 + [0.3] * 10, [1e9] * 19 + [1e-9]],
    ids=["none", "zero", "one", "late", "wild"],
)
def test_odd_values_still_give_a_chart(metric, values):
    """A learner without scores, a perfect one and a wild one are drawn within finite numbers."""
    values = [min(v, 1.0) for v in values] if metric == "accuracy" else values
    row = make_row(value=values[-1], metric=metric)
    html = make_html(make_course([Line(row, 0, values)], metric=metric, no_change=values))
    for chart in charts(html):
        drawn = ET.tostring(chart, encoding="unicode")
        assert "nan" not in drawn
        assert "inf" not in drawn


def test_a_stream_of_one_event_gives_a_chart():
    """The axes of the shortest stream are whole numbers."""
    course = make_course([Line(make_row(), 0, [1.0])], no_change=[math.nan])
    course = msgspec.structs.replace(course, events=1, positions=[1], switches=[])
    assert len(charts(make_html(course))) == 2


def test_a_learner_below_the_baseline_is_called_so():
    """The tables say where a learner is worse than always predicting the last label."""
    bad = make_course([Line(make_row(value=0.4), 0, [0.4] * 20)])
    good = make_course([Line(make_row(value=0.6), 0, [0.6] * 20)])
    assert make_html(bad).count('class="worse"') == 2  # in the overview and in its own table
    assert 'class="worse"' not in make_html(good)
    assert "0 of 1 learners over all events" in make_html(bad)


def test_drift_is_counted_as_it_was():
    """The sentence on drift counts alarms by learner and switch, and the others apart."""
    lines = [
        Line(make_row("A", alarms=[310, 320, 610]), 0, [0.9] * 20),
        Line(make_row("B", alarms=[100]), 1, [0.9] * 20),
    ]
    html = make_html(make_course(lines, switches=[300, 600]))
    assert "in 2 of 4 cases (a learner, a switch), 10 to 10 events after the switch" in html
    assert "others: 2." in html


@pytest.mark.parametrize(
    ("changes", "exact", "words"),
    [
        ({}, True, "1,000 predictions, each once"),
        ({"digest": "cd" * 32}, False, "differs from abababababab"),
        ({"missing": 3}, False, "3 predictions missing"),
        ({"repeated": 2}, False, "2 there twice"),
    ],
)
def test_the_verdict_on_a_crash_is_what_was_found(changes, exact, words):
    """A resumed run is exact only with an equal state and every prediction there once."""
    crash = make_crash(**changes)
    assert crash.exact is exact
    assert words in crash.verdict
    assert ("DIFFERENT" in make_html(make_course(), crash=crash)) is ("digest" in changes)


def test_a_report_of_many_lines_stays_small():
    """Six streams of six learners with 300 points each take less than 600 kB."""
    positions = list(range(10, 3_010, 10))
    values = [0.5 + 0.4 * math.sin(i / 9) for i in range(300)]
    lines = [Line(make_row(f"L{i}"), i, values) for i in range(6)]
    course = msgspec.structs.replace(
        make_course(lines, no_change=values), events=3_000, positions=positions
    )
    size = len(make_html(*[course] * 6).encode())
    assert size < 600_000, f"{size} B"


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.9126, "accuracy", "91.3%"), (0.15121, "mae", "0.151"), (math.nan, "mae", "n/a")],
)
def test_numbers_read_as_people_write_them(value, metric, text):
    """Shares are per cent with one decimal, errors have three, and what is undefined says so."""
    assert number(value, metric) == text


@given(st.floats(0, 0.999))
def test_ticks_of_shares_enclose_the_values(low):
    """The axis begins at or below the least value and ends at 1, in at most eight ticks."""
    ticks = report_module._share_ticks(low, 1.0)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] == pytest.approx(1.0)
    assert 2 <= len(ticks) <= 8


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_of_errors_enclose_the_values(a, b):
    """The axis spans the values, down to a thousandth of the greatest."""
    low, high = sorted([a, b])
    ticks = report_module._log_ticks(low, high)
    assert ticks[0] <= max(low, high / 1_000) * (1 + 1e-6)
    assert ticks[-1] >= high * (1 - 1e-6)
    assert ticks == sorted(set(ticks))
    assert len(ticks) >= 2


@given(st.lists(st.floats(0, 300), min_size=1, max_size=8))
def test_names_beside_lines_never_overlap(wanted):
    """Names keep their distance and their order, and none sinks below the plot."""
    places = report_module._spread(wanted, 17, 0, 300)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    stacked = [places[i] for i in order]
    gaps = [b - a for a, b in pairwise(stacked)]
    assert all(gap >= 17 - 1e-6 for gap in gaps), gaps
    assert stacked[-1] <= 300
