"""`midstream feedback show`: what became of one event, from what lies in files."""

import json

import pytest
from click.testing import CliRunner
from project import Project

from midstream.flows.cli import cli
from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load
from midstream.flows.offline.tracing import trace

FEEDBACK = """[feedback]
path = "labels.jsonl"
order = "exact"
window_seconds = 50
early_seconds = 20
on_expiry = "review"
"""


def event(i, **more):
    return {"id": f"e{i}", "x": {"a": i % 7}, "ts": 1000 + i, **more}


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Return a project whose events met every fate: e1 labelled, e2 late, e3 expired, ..."""
    made = Project(tmp_path_factory.mktemp("lived"), config=FEEDBACK)
    made.write([*map(event, range(200)), event(200, y=True), event(201)])
    made.write(
        [
            {"id": "e1", "y": True, "ts": 1005, "source": "shop"},
            {"id": "nobody", "y": True, "ts": 1020},
            {"id": "e77", "y": "perhaps", "ts": 1080},
            {"id": "e2", "y": True, "ts": 1100},
            {"id": "e1", "y": True, "ts": 1101},
            {"id": "e400", "y": True, "ts": 1199},
        ],
        "labels.jsonl",
    )
    made.run()
    return made


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("e1", "labelled"), ("e2", "late"), ("e3", "expired"), ("e199", "waiting"),
        ("e200", "labelled"), ("e400", "early"), ("nobody", "dangling"), ("e999", "never seen"),
        ("e", "never seen"), ("1", "never seen"), ('e1"', "never seen"), ("", "never seen"),
    ],
)  # fmt: skip
def test_each_fate_is_told(name, status, lived):
    """An id that is a part of another, or has a quote in it, is not taken for it."""
    assert trace(load(lived.config), name).status == status


def test_what_is_known_of_an_event_and_from_where(lived):
    """Prediction with its version and place, labels with their sources, and what was looked at."""
    found = trace(load(lived.config), "e1")
    [prediction] = found.predictions
    assert (prediction["version"], prediction["ts"]) == (0, 1001.0)
    assert prediction["origin"][2] == 2
    assert [(e["y"], e["source"], e["applied"]) for e in found.labels] == [
        (True, "shop", True), (True, None, True),
    ]  # fmt: skip
    [held] = found.state
    assert held.fate == {"status": "labelled", "label": True}
    assert (held.shard, held.seen) == ("000", 202)
    assert found.sources == [
        "predictions: predictions.jsonl", "review: review.jsonl", "rejected: rejected.jsonl",
        "feedback: labels.jsonl",
    ]  # fmt: skip
    late = trace(load(lived.config), "e2")
    assert [line["reason"] for line in late.rejected] == [
        "its event had expired: see feedback.window_seconds"
    ]
    assert [line["id"] for line in late.review] == ["e2"]


def test_feedback_that_was_not_accepted_is_told(lived):
    """A label of another type stands among what was rejected for its event."""
    found = trace(load(lived.config), "e77")
    [line] = found.rejected
    assert "label" in line["reason"]
    assert found.status == "expired"


def test_the_command_prints_lines_and_changes_nothing(lived):
    """Exit code 0 with what is known, 1 for an id never seen; no file is touched or made."""

    def files():
        found = (path for path in lived.folder.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}

    before = files()
    config = ["--config", str(lived.config)]
    done = CliRunner().invoke(cli, ["feedback", "show", "e1", *config])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "e1: labelled, its label came"
    assert lines[1].startswith("  predicted ")
    assert lines[1].endswith("version 0, event time 1970-01-01 00:16:41 UTC, events.jsonl:2")
    assert "from shop, labels.jsonl:1, applied by the snapshot" in lines[2]
    assert lines[4].startswith("  state     labelled, label true, learned by 2")
    assert lines[5].startswith("looked at   shard 000: the snapshot of 2")
    none = CliRunner().invoke(cli, ["feedback", "show", "e999", *config])
    assert none.exit_code == 1
    assert none.stdout.startswith("e999: never seen")
    told = CliRunner().invoke(cli, ["feedback", "show", "e3", *config, "--json"])
    assert json.loads(told.stdout)["status"] == "expired"
    assert files() == before


def test_beside_a_run_the_state_is_that_of_the_snapshot(tmp_path):
    """What came after the snapshot is known from the outputs and the feedback alone."""
    made = Project(tmp_path, config=FEEDBACK)
    made.write(map(event, range(100)))
    made.write([{"id": "e95", "y": True, "ts": 1096}], "labels.jsonl")
    made.run()
    process = made.running(until="event=running")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(json.dumps(event(100)) + "\n")
    with (tmp_path / "labels.jsonl").open("a") as file:
        file.write(json.dumps({"id": "e100", "y": True, "ts": 1101}) + "\n")
        file.write(json.dumps({"id": "e101", "y": True, "ts": 1102}) + "\n")
    made.until_recorded()
    settings = load(made.config)
    found = trace(settings, "e100")
    assert (found.status, len(found.predictions)) == ("predicted", 1)
    assert [label["applied"] for label in found.labels] == [False]
    assert trace(settings, "e101").status == "label not read"
    assert trace(settings, "e95").status == "labelled"
    process.kill()
    process.wait()


def test_an_event_that_is_forgotten_is_told_as_done(tmp_path):
    """Its prediction is there, and the state remembers its id no more."""
    made = Project(tmp_path, config=FEEDBACK + "remember_seconds = 10\n")
    made.write(map(event, range(300)))
    made.write([{"id": f"e{i}", "y": True, "ts": 1001 + i} for i in range(300)], "labels.jsonl")
    made.run()
    assert trace(load(made.config), "e5").status == "done"
    assert trace(load(made.config), "e299").status == "labelled"


def test_what_a_method_learned_of_a_waiting_event_is_told(tmp_path):
    """It is a negative until its positive comes; the run counts such events."""
    method = FEEDBACK.replace("window_seconds = 50", "window_seconds = 150").replace(
        'on_expiry = "review"',
        'on_expiry = "label"\ndefault_label = false\nmethod = "es-dfm"\nwait_seconds = 20',
    )
    made = Project(tmp_path, config=method)
    made.write(map(event, range(300)))
    labels = [{"id": f"e{i}", "y": True, "ts": 1000 + i + 90} for i in range(0, 210, 7)]
    made.write(labels, "labels.jsonl")
    counts = made.run()["metrics"]
    assert counts["feedback.revised"] == counts["feedback.joined"] == 30
    assert counts["feedback.provisional"] > 200
    assert counts["feedback.outcomes"] > 100
    said = (
        CliRunner().invoke(cli, ["feedback", "show", "e211", "--config", str(made.config)]).stdout
    )
    assert "waiting, learned as false until its label comes" in said


def test_before_a_run_nothing_is_known(tmp_path):
    """Without state and outputs the answer says that there are none, and makes no folder."""
    made = Project(tmp_path, config=FEEDBACK)
    made.write([])
    found = trace(load(made.config), "e1")
    assert found.status == "never seen"
    assert found.sources[0].startswith("no snapshot in ")
    assert found.sources[1] == "predictions: no file yet"
    assert found.sources[-1].startswith("feedback: ")
    assert "labels.jsonl" in found.sources[-1]
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "out").exists()


def test_topics_are_not_read_and_it_is_said(tmp_path):
    """Each topic is named as one that was not read."""
    topics = '[output]\npredictions = "p"\nrejected = "r"\nalarms = false\n'
    kafka = '[kafka]\n"bootstrap.servers" = "127.0.0.1:1"\n'
    source = '[input]\ntopic = "e"\n[feedback]\ntopic = "l"\n'
    made = Project(tmp_path, config=source + topics + kafka)
    found = trace(load(made.config), "e1")
    assert found.sources[1:] == [
        "predictions: topic p was not read", "review: not written",
        "rejected: topic r was not read", "feedback: topic l was not read",
    ]  # fmt: skip


def test_a_config_without_feedback_is_refused(tmp_path):
    """The line names the section that is missing."""
    made = Project(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.toml: feedback: missing"):
        trace(load(made.config), "e1")
