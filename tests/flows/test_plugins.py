"""What other packages bring by entry points: named in a config, run, killed, resumed, amended."""

import json
import random

import pytest
from project import Project, events, poisoned
from toys import installed

from midstream import Trainer, check_learner
from midstream.engine.basics import plugins
from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load
from midstream.flows.running.definition import make_trainer

CONFIG = """
[model]
learner = "majority"
task = "binary"
options = { memory = 50 }
[input]
path = "events.jsonl"
[metrics]
names = ["accuracy", "positives"]
[drift]
detectors = ["adwin", "streak"]
options_of = { streak = { length = 4 } }
[parts.sources]
most = 1500
[state]
snapshot_events = 1000
commit_seconds = 0.02
"""


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    """A folder where the package is installed, for this process and for those it starts."""
    folder = installed(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    return folder


def project(folder, config=CONFIG, n=6_000):
    made = Project(folder)
    made.config.write_text(config)
    made.write([*events(n // 2), *poisoned(n - n // 2)])
    return made


def test_one_of_each_kind_is_run_killed_and_resumed(tmp_path):
    """Learner, detector, metric and part from outside: exact after kills, as ours are."""
    calm, killed = project(tmp_path / "calm"), project(tmp_path / "killed")
    expected = calm.run()
    assert expected["metrics"]["positives"] == pytest.approx(0.5, abs=0.05)
    assert expected["metrics"]["sources.mallory"] == 3_000.0
    assert {"streak", "sources"} <= {alarm["detector"] for alarm in calm.output("alarms")}
    whole = (calm.folder / "out" / "predictions.jsonl").stat().st_size
    killed.kill_along(3, whole, random.Random(2))
    got = killed.run()
    assert (got["digest"], got["metrics"]) == (expected["digest"], expected["metrics"])
    assert killed.output("alarms") == calm.output("alarms")


def test_what_a_package_brings_is_added_to_and_taken_from_a_saved_model(tmp_path):
    """A part, a metric, a detector: each begins or ends by an amendment."""
    plain = CONFIG.replace(', "positives"', "").replace(', "streak"', "")
    plain = plain.replace("options_of = { streak = { length = 4 } }\n", "")
    plain = plain.replace("[parts.sources]\nmost = 1500\n", "")
    one = project(tmp_path / "one", plain, n=2_000)
    one.run()
    one.config.write_text(CONFIG)
    told = one.call("check", "config.toml")
    assert told.returncode == 0, told.stdout
    for words in (
        "positives     -      on   begins now",
        "streak        -      on",
        "parts.sources",
    ):
        assert " ".join(words.split()) in " ".join(told.stdout.split())
    metrics = one.run()["metrics"]
    assert "positives" in metrics
    one.config.write_text(plain)
    assert "positives" not in one.run()["metrics"]


def test_each_has_its_line_in_the_command_line(tmp_path):
    """A command is called; learners are listed; what is wrong is told in one line."""
    one = project(tmp_path / "one")
    assert one.call("hello", "--to", "world").stdout == "hello world\n"
    assert "hello" in one.call("--help").stdout
    assert "majority: task any; Predicts the label" in one.call("learners").stdout


def test_a_kind_of_command_is_given_and_carried_out(tmp_path):
    """It has a line in the command line and in the history; what it did is there afterwards."""
    one = project(tmp_path / "one", n=600)
    one.run()
    assert "Begin the counts of the sources anew." in one.call("recount", "--help").stdout
    given = one.call("recount", "--yes", "--reason", "a new year", "--config", "config.toml")
    assert "the counts of all sources are 0 again" in given.stdout
    with (one.folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events(100, seed=3))
    counts = {k: v for k, v in one.run()["metrics"].items() if k.startswith("sources.")}
    assert counts == {"sources.nobody": 100.0}
    said = one.call("history", "--config", "config.toml").stdout
    assert "recount" in said
    assert "a new year" in said


def test_a_command_that_cannot_have_an_effect_is_refused(tmp_path):
    """By its own `plan`; the history says why."""
    config = CONFIG.replace("[parts.sources]\nmost = 1500\n", "")
    one = project(tmp_path / "one", config, n=200)
    one.run()
    given = one.call("recount", "--yes", "--config", "config.toml")
    assert given.returncode == 0, given.stderr
    one.run()
    assert (
        "the model has no part `sources`" in one.call("history", "--config", "config.toml").stdout
    )


def test_what_is_no_command_is_named(site, tmp_path):
    """In one line, with what it would have to be."""
    info = site / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[midstream.commands]\nodd = toys:NAMES\n")
    one = project(tmp_path / "one", n=10)
    said = one.call("odd").stderr
    assert "'odd' of midstream.commands is neither a click.Command nor a subclass" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory = 50", "memori = 50", "model.options.memori"),
        ('"positives"', '"positive"', "metrics.names[1]"),
        ('"streak"]', '"streaks"]', "drift.detectors[1]"),
        ("{ length = 4 }", "{ lenght = 4 }", "streak has no option 'lenght'"),
        ("[parts.sources]", "[parts.source]", "parts.source"),
        ("[parts.sources]\nmost", "[parts.broken]\nmost", "the part 'broken' cannot be made"),
    ],
)
def test_what_is_wrong_is_named(old, new, said, tmp_path):
    """The key, or the option, and for a part that cannot be made what it raised."""
    one = project(tmp_path / "one", CONFIG.replace(old, new))
    with pytest.raises((ConfigError, plugins.PluginError), match=said.replace("[", r"\[")):
        make_trainer(load(one.config))


def test_a_learner_from_outside_keeps_the_contract():
    """`check_learner` passes, and a saved trainer is read back."""
    import toys

    made = [(e["x"], e["y"]) for e in events(300)]
    assert list(check_learner(toys.Majority, made))
    trainer = Trainer(toys.Majority(memory=7), parts=[toys.Sources()])
    for x, y in made:
        trainer.step_one(x, y)
    assert Trainer.from_state(trainer.state()).digest() == trainer.digest()


@pytest.mark.parametrize(
    ("group", "options", "said"),
    [
        ("midstream.parts", "parts", r"part 'sources'.*midstream\.parts"),
        ("midstream.metrics", "metrics", r"metric 'positives'.*midstream\.metrics"),
        ("midstream.detectors", "drift", r"detector 'streak'.*midstream\.detectors"),
    ],
)
def test_what_a_missing_package_brought_is_kept_until_it_is_dropped(
    group, options, said, monkeypatch
):
    """The state is read and refuses to go on; an amendment without it goes on with the rest."""
    import toys

    given = {
        "parts": [toys.Sources()],
        "metrics": ["positives", "accuracy"],
        "drift": ["streak", "adwin"],
    }
    trainer = Trainer(toys.Majority(), **{options: given[options]})
    trainer.step_one({"a": 1.0}, True)
    state = trainer.state()
    real = plugins.names
    monkeypatch.setattr(plugins, "names", lambda each: real(each) if each != group else [])
    restored = Trainer.from_state(state)
    assert restored.state() == state
    with pytest.raises(plugins.PluginError, match=said):
        restored.step_one({"a": 1.0}, True)
    rest = {"parts": [], "metrics": ["accuracy"], "drift": ["adwin"]}
    blank = Trainer(toys.Majority(), **{options: rest[options]})
    assert [change.before for change in blank.changes(trainer.definition())] == ["on"]
    bare = Trainer.from_state(state).amended(blank.blank_parts(trainer.definition()))
    assert bare.definition() == blank.definition()
    assert bare.seen == 1
    bare.step_one({"a": 1.0}, True)


def test_two_packages_with_one_name_are_refused(site, tmp_path):
    """Which of them would be taken would be chance."""
    info = site / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[midstream.parts]\nsources = others:Sources\n")
    with pytest.raises(
        plugins.PluginError, match=r"'sources' of midstream\.parts is declared twice"
    ):
        plugins.names("midstream.parts")
