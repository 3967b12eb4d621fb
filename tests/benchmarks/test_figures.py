"""The benchmarks' arithmetic and what is drawn from it; nothing is measured here."""

from pathlib import Path

import msgspec
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="the sdist has no benchmarks")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_fastest_of_each_side_are_compared_and_the_spread_is_of_single_repeats():
    """A repeat that a neighbour slowed down shows in the spread, not in the ratio."""
    from figures import compare

    row = compare("", ("ours", [90.0, 100.0]), ("other", [10.0, 5.0]), goal=10)
    assert (row.ratio, row.lowest, row.highest) == (10, 9, 20)
    assert row.reached


def test_costs_are_compared_by_the_least():
    """Where less is better, the best is the least, and the goal an upper bound."""
    from figures import compare

    row = compare("", ("ours", [12.0, 15.0]), ("other", [10.0, 11.0]), goal=1.1, at_most=True)
    assert row.ratio == 1.2
    assert not row.reached


def test_a_cost_that_noise_made_negative_reaches_no_goal():
    """A difference of two times may come out below zero; that is no success."""
    from figures import compare

    row = compare("", ("ours", [5.0]), ("other", [-1.0]), goal=1.1, at_most=True)
    assert not row.reached


def test_the_page_refers_to_nothing_outside_and_survives_the_results_file():
    """What is drawn from results.json is what is drawn from the results themselves."""
    from figures import Bar, Bars, Fact, Grid, Line, Mark, Result, compare, markdown
    from page import render

    result = Result(
        rows=[compare("<row>", ("ours", [2.0]), ("other", [1.0]), goal=3)],
        charts=[
            Bars("Speed", "events/s", [Bar("ours", 2e6, ours=True, marks=[Mark(3e6, "goal")])]),
            Line("Cost", "events", "ns", [(10.0, 1.0), (100.0, 1.05)], 1.1, "1.1 x 10"),
        ],
        grids=[Grid("By <size>", ["state", "seconds"], [["1 MB", "0.010"]])],
        facts=[Fact("a count", 2, ""), Fact("a time", 2, "s")],
        missing=["the peers"],
    )
    html = render({"speed": result})
    again = msgspec.json.decode(msgspec.json.encode({"speed": result}), type=dict[str, Result])
    assert render(again) == html
    assert "http" not in html.replace("http-equiv", "")
    assert "&lt;row&gt;" in html
    assert "By &lt;size&gt;" in html
    assert "<td>0.010</td>" in html
    assert "not reached" in html
    assert "Left out" in html
    text = markdown({"speed": result})
    assert "**Left out:** the peers" in text
    assert "**not reached**" in text
    assert "| state | seconds |\n| --- | --- |\n| 1 MB | 0.010 |" in text
    assert "a count: 2; a time: 2.00 s." in text


@pytest.mark.parametrize("form", ["jsonl", "vwjson", "vw"])
def test_every_form_of_a_stream_holds_the_same_numbers(form, tmp_path):
    """Peers read the events that we read."""
    from streams import hyperplane, write

    events = list(hyperplane(20))
    lines = write(tmp_path / f"events.{form}", events).read_text().splitlines()
    assert len(lines) == 20
    for line, (x, _) in zip(lines, events, strict=True):
        pairs = line.replace('": ', ":").replace('"', "").replace("{", " ").replace("}", " ")
        assert all(f"{name}:{value}" in pairs for name, value in x.items())


@pytest.mark.parametrize("name", ["words", "hyperplane_with_words"])
def test_streams_with_categories_are_the_same_each_time(name):
    """What is grown from them has the same size in every run."""
    import streams

    options = {"words": (20,), "hyperplane_with_words": (20, 8, 2, 100)}[name]
    made = list(getattr(streams, name)(*options))
    assert made == list(getattr(streams, name)(*options))
    assert len(made) == 20
    assert all(isinstance(x["category_1"], str) for x, _ in made)


def test_every_benchmark_is_said_what_it_is():
    """The page and the README have a text for each that the runner knows."""
    from page import ABOUT
    from run import NAMES

    assert set(ABOUT) == set(NAMES)
    text = (BENCHMARKS / "README.md").read_text()
    assert all(f"| `{name}` |" in text for name in NAMES)
