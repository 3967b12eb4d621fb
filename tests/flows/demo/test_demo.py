"""The demo: it learns, tells what it does, survives a kill, and gives the same figures again."""

import io
import json
import re

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console
from river import metrics
from river.evaluate import progressive_val_score

from midstream.flows.cli import cli
from midstream.flows.demo import demo, showcase
from midstream.flows.demo.demo import run_demo
from midstream.flows.demo.showcase import Race, bundled_streams
from midstream.flows.running.errors import RunError


def small_streams(*, crash=False, late=False):
    """Return short streams of each task, the first with two switches."""
    loans, bananas, images, _, approval = bundled_streams(quick=True)
    change = msgspec.structs.replace
    return [
        change(
            loans,
            contenders=(showcase.TREE, showcase.ADAPTIVE_TREE),
            crash=showcase.ADAPTIVE_TREE if crash else None,
        ),
        change(
            bananas,
            lengths=(120,) if not late else (400,),
            contenders=(showcase.NEIGHBOURS,),
            late=showcase.NEIGHBOURS if late else None,
        ),
        change(images, lengths=(120,), contenders=(showcase.SOFTMAX,)),
        change(approval, lengths=(150,), contenders=(showcase.FAST_LINEAR,)),
    ]


class Terminal(io.StringIO):
    """A terminal that remembers what was written."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the result of a demo without a terminal, what it wrote, and its report."""
    path = tmp_path_factory.mktemp("demo") / "report.html"
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False)
    result = run_demo(path, streams=small_streams(crash=True), console=console)
    return result, out.getvalue(), path.read_text(encoding="utf-8")


def test_every_learner_has_a_row_and_is_in_the_report(done):
    """Rows and report name each learner on each stream, with all events learned."""
    result, _, html = done
    expected = [(s.title, c.name, s.events) for s in small_streams() for c in s.contenders]
    assert [(row.stream, row.learner, row.events) for row in result.rows] == expected
    for _, learner, _ in expected:
        assert f">{learner}</th>" in html
        assert f">{learner} <tspan" in html


def test_alarms_come_soon_after_the_true_switches(done):
    """ADWIN notices both switches for both trees within 300 events, and nothing else."""
    rows = done[0].rows[:2]
    switches = small_streams()[0].switches
    for row in rows:
        delays = [a - s for a, s in zip(row.alarms, switches, strict=True)]
        assert all(0 < delay <= 300 for delay in delays), f"{row.learner}: {row.alarms}"


def test_the_adaptive_tree_recovers_where_it_is_above_no_change(done):
    """A learner that adapts is better than the baseline, on a stream that switches twice."""
    adaptive = done[0].rows[1]
    assert adaptive.value > adaptive.no_change + 0.1


def test_a_killed_run_is_resumed_exactly(done):
    """After SIGKILL the state is that of the learner in this process, and no prediction is lost."""
    crash = done[0].crash
    assert crash.exact, crash
    assert crash.killed
    assert 0 < crash.killed_at < crash.events
    assert crash.predictions == crash.events
    assert crash.digest == done[0].rows[1].digest


def test_without_a_terminal_there_are_plain_lines(done):
    """Each learner has one line as it finishes and one in the closing table; no escape codes."""
    result, out, _ = done
    assert "\x1b" not in out
    for row in result.rows:
        finished = [line for line in out.splitlines() if line.startswith(f"  {row.learner}: ")]
        assert len(finished) == sum(r.learner == row.learner for r in result.rows)
        assert re.search(rf"^  {row.learner} .*{len(row.alarms)} ", out, re.MULTILINE)
    assert result.report in out
    assert "SIGKILL" in out


def test_on_a_terminal_there_is_a_live_view(tmp_path):
    """The view shows a learner while it runs, and is followed by the closing table."""
    terminal = Terminal()
    console = Console(file=terminal, width=100, height=40, _environ={"TERM": "xterm"})
    run_demo(tmp_path / "report.html", streams=small_streams()[:1], console=console)
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "accuracy so far" in text
    assert "█" in text
    assert text.rindex("no-change") > text.rindex("accuracy so far")


def test_a_terminal_without_unicode_gets_plain_lines(tmp_path):
    """Blocks are not sent to where they cannot be shown."""
    terminal = Terminal()
    terminal.encoding = "ascii"
    console = Console(file=terminal, width=80, _environ={"TERM": "xterm"})
    run_demo(tmp_path / "report.html", streams=small_streams()[1:2], console=console)
    assert terminal.getvalue().isascii()


def test_a_long_stream_tells_its_progress(monkeypatch, tmp_path):
    """Without a terminal, a long stream has a line at each quarter."""
    monkeypatch.setattr(demo, "_LONG", 100)
    out = io.StringIO()
    run_demo(
        tmp_path / "report.html",
        streams=[msgspec.structs.replace(small_streams()[1], lengths=(400,))],
        console=Console(file=out, width=80),
    )
    assert re.findall(r"^  (\d+) %", out.getvalue(), re.MULTILINE) == ["25", "50", "75"]


def test_figures_are_the_same_each_time(tmp_path):
    """Two races of the same streams differ in nothing but times."""

    def figures():
        for stream in small_streams():
            race = Race(stream, tmp_path)
            race.run(lambda _: None)
            course = race.course()
            for line in course.lines:
                line.row.seconds = line.row.events_per_second = 0.0
            yield course

    assert list(figures()) == list(figures())


def test_curves_end_in_the_windowed_metric_of_the_trainer(tmp_path):
    """What the chart shows is what the engine measures, at the end and for the baseline."""
    for stream in small_streams():
        race = Race(stream, tmp_path)
        race.run(lambda _: None)
        course = race.course()
        assert course.positions[-1] == stream.events
        for line in course.lines:
            assert line.values[-1] == pytest.approx(line.row.window_value)
        tally = race.quality(race._no_change())
        assert course.lines[0].row.no_change == pytest.approx(tally, abs=2 / stream.events)


def test_late_labels_are_joined_and_scored_beside_those_at_once(tmp_path):
    """Each label is joined, the score is River's with that delay, and lines and report tell it."""
    stream, out = small_streams(late=True)[1], io.StringIO()
    path = tmp_path / "report.html"
    console = Console(file=out, width=100, highlight=False)
    result = run_demo(path, streams=[stream], console=console)
    late, row = result.late, result.rows[0]
    assert (late.events, late.joined, late.rows) == (400, 400, 100)
    assert (late.at_once, late.at_once_window) == (row.value, row.window_value)
    accuracy = metrics.Accuracy()
    data = [({str(k): v for k, v in x.items()}, y) for x, y in stream.parts[0](400)]
    progressive_val_score(data, showcase.nearest_neighbours(), accuracy, delay=100)
    assert late.by_label == pytest.approx(accuracy.get(), rel=0, abs=1e-12)
    assert late.by_prediction == pytest.approx(late.by_label, rel=0, abs=1e-12)
    assert late.by_label != late.at_once
    assert out.getvalue().count(late.verdict) == 2
    html = path.read_text(encoding="utf-8")
    assert "<h2>Labels that come later</h2>" in html
    assert f"<td>{100 * late.by_label:.1f}%</td>" in html


def test_a_silent_demo_prints_nothing(tmp_path, capsys):
    """With live=False standard output is the caller's."""
    run_demo(tmp_path / "report.html", live=False, streams=small_streams()[1:2])
    assert capsys.readouterr().out == ""


def test_the_command_prints_one_json_object(monkeypatch, tmp_path):
    """`midstream demo --json` gives rows, crash and the report's path, and nothing else."""
    monkeypatch.setattr(demo, "bundled_streams", lambda **_: small_streams()[1:2])
    path = tmp_path / "new" / "report.html"
    result = CliRunner().invoke(cli, ["demo", "--quick", "--json", "--report", str(path)])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [row["learner"] for row in printed["rows"]] == ["Nearest neighbours"]
    assert printed["crash"] is None
    assert printed["late"] is None
    assert printed["report"] == str(path)
    assert path.exists()


def test_a_report_that_cannot_be_written_fails_before_the_work(tmp_path):
    """The path is tried first, not after half a minute."""

    def never(_):
        raise AssertionError("the stream was begun")

    streams = [msgspec.structs.replace(small_streams()[1], parts=(never,))]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_demo(tmp_path / "file" / "report.html", live=False, streams=streams)


def test_a_demo_that_breaks_leaves_the_last_report(tmp_path):
    """A report of before stays until there is a new one; where none was, none is left."""

    def broken(_):
        raise RunError("broken")

    streams = [msgspec.structs.replace(small_streams()[1], parts=(broken,))]
    old, new = tmp_path / "old.html", tmp_path / "new.html"
    old.write_text("as it was")
    for path in (old, new):
        with pytest.raises(RunError, match="broken"):
            run_demo(path, live=False, streams=streams)
    assert old.read_text() == "as it was"
    assert not new.exists()


def test_a_resume_that_is_not_exact_fails_and_is_reported(monkeypatch, tmp_path):
    """If the resumed state differs, the report says so and the command does not succeed."""
    crash = demo.Crash(
        "Bananas", "Nearest neighbours", 120, True, 60, 50, 120, 0, 0, "a" * 64, "b" * 64, 1.0
    )
    monkeypatch.setattr(demo, "_kill_and_resume", lambda *_: crash)
    stream = msgspec.structs.replace(small_streams()[1], crash=showcase.NEIGHBOURS)
    path = tmp_path / "report.html"
    with pytest.raises(RunError, match="not exact"):
        run_demo(path, live=False, streams=[stream])
    assert "DIFFERENT" in path.read_text(encoding="utf-8")


def test_a_run_that_fails_by_itself_is_told_in_its_own_words(tmp_path):
    """What `midstream run` says on standard error is what the demo fails with."""
    stream = small_streams()[1]
    race = Race(stream, tmp_path)
    race.configs[showcase.NEIGHBOURS.factory].write_text("[model]\n")
    with pytest.raises(RunError, match=r"model\.learner: missing"):
        demo._kill_and_resume(race, race.lanes[0], lambda _: None)


@pytest.mark.parametrize("quick", [True, False])
def test_the_bundled_streams_hold_together(quick):
    """Names and looks are unique within a stream, and a kill is asked for exactly once."""
    streams = bundled_streams(quick=quick)
    assert len({s.name for s in streams}) == len(streams) == 5
    assert sum(s.crash is not None for s in streams) == 1
    assert sum(s.late is not None for s in streams) == 1
    for stream in streams:
        looks = [c.look for c in stream.contenders]
        assert len(set(looks)) == len(looks)
        assert all(callable(getattr(showcase, c.factory)) for c in stream.contenders)
        assert stream.crash is None or stream.crash in stream.contenders
        assert stream.late is None or stream.late in stream.contenders
        assert stream.window < stream.events
