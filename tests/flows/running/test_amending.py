"""A config that defines the model otherwise than the saved state: what check says and run does."""

import random
import shutil
from contextlib import closing

import pytest
from project import Project, events

from midstream.engine.learners.learner import LearnerError
from midstream.engine.shard import amending, shard
from midstream.engine.shard.resuming import ResumeError
from midstream.engine.state import encoding
from midstream.engine.state.snapshot import pack, unpack
from midstream.engine.training.trainer import Trainer
from midstream.flows.claims.locks import StateLocks
from midstream.flows.loading import load
from midstream.flows.offline.inspect import inspect
from midstream.flows.running import online
from midstream.flows.running.errors import RunError

FIRST, ALL = 3_000, 6_000
CONFIG = """
[metrics]
names = ["accuracy", "f1"]
window = 300
[drift]
detectors = ["adwin"]
[replay]
capacity = 40
[state]
snapshot_events = 1000
commit_seconds = 0.02
"""
OWN = """
from river import base, linear_model, preprocessing, tree

BY = 1.0

class Mean(base.Transformer):
    def __init__(self):
        self.n = 0
        self.total = 0.0

    def learn_one(self, x):
        self.n += 1
        self.total += x["f0"] * BY

    def transform_one(self, x):
        return {**x, "mean": self.total / self.n if self.n else 0.0}

def make():
    return Mean() | preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""
LOGISTIC = 'learner = "logistic"'
SCHEMA = "[features]\n" + "".join(f'f{i} = "number"\n' for i in range(4))


def edit(what, old, new):
    """Return a change of a project's config or module."""

    def change(project):
        path = project.config if what == "config" else project.folder / "models.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


ROWS = {
    "metric added": ("accepted", edit("config", '"f1"]', '"f1", "log_loss"]'), "metrics.log_loss"),
    "metric removed": ("accepted", edit("config", ', "f1"', ""), "metrics.f1"),
    "window shorter": ("accepted", edit("config", "window = 300", "window = 50"), "metrics.window"),
    "window longer": ("accepted", edit("config", "window = 300", "window = 900"), "metrics.window"),
    "fading": ("accepted", edit("config", "window", "fading = 0.9\nwindow"), "metrics.fading"),
    "detector added": (
        "accepted",
        edit("config", '["adwin"]', '["adwin", "page_hinkley"]'),
        "drift.page_hinkley",
    ),
    "detector removed": ("accepted", edit("config", '["adwin"]', "[]"), "drift.adwin"),
    "detector's option": (
        "accepted",
        edit("config", "[replay]", "[drift.adwin]\ndelta = 0.01\n[replay]"),
        "drift.adwin.delta",
    ),
    "replay smaller": ("accepted", edit("config", "= 40", "= 7"), "replay.capacity"),
    "replay larger": ("accepted", edit("config", "= 40", "= 90"), "replay.capacity"),
    "transformer's code mended": (
        "asked",
        edit("models", 'x["f0"]', 'x["f0"] * 2'),
        "learner.Mean",
    ),
    "constant of the code mended": (
        "asked",
        edit("models", "BY = 1.0", "BY = 2.0"),
        "learner.Mean",
    ),
    "learner's option changed": (
        "asked",
        edit("models", "LogisticRegression()", "LogisticRegression(l2=0.01)"),
        "learner.LogisticRegression.l2",
    ),
    "step added": (
        "asked",
        edit("models", "| linear", "| preprocessing.AdaptiveStandardScaler() | linear"),
        "learner.AdaptiveStandardScaler",
    ),
    "another learner": (
        "refused",
        edit(
            "models",
            "    return Mean",
            "    return tree.HoeffdingTreeClassifier()\n    return Mean",
        ),
        "learner.class",
    ),
}
QUICK = {"window longer", "detector added", "replay smaller", "constant of the code mended",
         "learner's option changed", "another learner"}  # fmt: skip
SOME = [pytest.param(row, marks=[] if row in QUICK else [pytest.mark.slow]) for row in ROWS]


def project(folder, n=FIRST, config=CONFIG, model=OWN):
    made = Project(folder, model=model, config=config)
    made.write(events(ALL)[:n])
    return made


def copied(base, folder):
    """Return a project with the same state in another place."""
    shutil.copytree(base.folder, folder)
    made = Project.__new__(Project)
    made.folder, made.config = folder, folder / "config.toml"
    return made


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A project whose first half was learned."""
    made = project(tmp_path_factory.mktemp("begun") / "p")
    made.run()
    made.write(events(ALL))
    return made


@pytest.mark.parametrize("row", SOME)
def test_what_check_says_is_what_run_does_and_a_kill_repeats_nothing(row, begun, tmp_path):
    """Of each change: the exit codes, the words, and the state after kills in the amended run."""
    level, change, name = ROWS[row]
    calm, killed = copied(begun, tmp_path / "calm"), copied(begun, tmp_path / "killed")
    for each in (calm, killed):
        change(each)
    told = calm.call("check", "config.toml")
    plain = calm.call("run", "config.toml", "--until-eof") if level != "accepted" else None
    part, _, what = name.partition(".")
    assert told.returncode == (level != "accepted")
    row_of_table = next(
        line for line in told.stdout.splitlines() if line.split()[:2] == [part, what]
    ) if what else told.stdout  # fmt: skip
    assert row_of_table
    if plain is not None:
        assert plain.returncode == 1
        assert f"{part}." in plain.stderr.splitlines()[-1]
        assert len(plain.stderr.splitlines()[-1]) < 500
    asked = ["--amend"] * (level == "asked")
    told = calm.call("check", "config.toml", *asked)
    if level == "refused":
        assert calm.call("run", "config.toml", "--until-eof", "--amend").returncode == 1
        assert told.returncode == 1
        return
    assert told.returncode == 0, told.stdout
    expected = calm.run(*asked)
    assert expected["resumed_at"] == FIRST
    assert "amend" in calm.call("history", "--config", "config.toml").stdout
    whole = (calm.folder / "out" / "predictions.jsonl").stat().st_size
    begun_at = (killed.folder / "out" / "predictions.jsonl").stat().st_size
    killed.kill_along(2, whole - begun_at, random.Random(row), arguments=asked, since=begun_at)
    got = killed.run(*asked)
    assert (got["digest"], got["metrics"]) == (expected["digest"], expected["metrics"])
    outputs = [each.folder / "out" / "predictions.jsonl" for each in (calm, killed)]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def kind_of(row):
    """Return the kind of command of a row of the history."""
    command = row["command"]
    return command["kind"] if isinstance(command, dict) else "alarm"


def amended_window(project, window=50):
    project.config.write_text(
        project.config.read_text().replace("window = 300", f"window = {window}")
    )


def test_another_run_that_holds_the_state_is_not_amended_under_it(begun, tmp_path):
    """--amend waits for no one and changes nothing: it says who holds the state."""
    one = copied(begun, tmp_path / "one")
    edit("models", "LogisticRegression()", "LogisticRegression(l2=0.01)")(one)
    with closing(StateLocks(one.folder / "state")) as locks:
        locks.enter()
        locks.take("000")
        said = one.call("run", "config.toml", "--until-eof", "--amend").stderr
    assert "another run holds this state" in said
    assert one.run("--amend")["resumed_at"] == FIRST


def test_shards_that_were_not_amended_yet_are_by_the_next_run(tmp_path):
    """A run that ends after one of three shards was amended: the others follow, none twice."""
    one = Project(tmp_path / "p", config=CONFIG + '[input]\npath = "in"\nshards = "partition"\n')
    (one.folder / "in").mkdir()
    for name in "abc":
        one.write(events(900, seed=ord(name)), f"in/{name}.jsonl")
    first = one.run()
    amended_window(one)
    place = one.folder / "state" / "shards" / "001"
    aside = tmp_path / "aside"
    shutil.copytree(place, aside)
    damaged = max(place.glob("journal-*"))
    data = damaged.read_bytes()
    damaged.write_bytes(data[:10] + b"x" + data[11:])
    assert one.call("run", "config.toml", "--until-eof").returncode == 1
    shutil.rmtree(place)
    shutil.copytree(aside, place)
    said = one.call("check", "config.toml").stdout
    assert "saved state of shard 000: `run` goes on from it" in said
    assert "saved state of shard 001, 002: `run` takes it" in said
    again = one.run()
    assert again["learned"] == 0
    assert first["digest"].keys() == again["digest"].keys()
    history = one.operate("history")
    amended = sorted(row["shard"] for row in history if kind_of(row) == "amend")
    assert amended == ["000", "001", "002"]


def test_a_version_from_before_is_amended_and_rewound_across(begun, tmp_path):
    """Restored it is as the config has it; rewound, the amendment is where it was."""
    one, calm = copied(begun, tmp_path / "one"), copied(begun, tmp_path / "calm")
    amended_window(one)
    amended_window(calm)
    one.run()
    expected = calm.run()
    one.operate("restore", "1", "--yes")
    restored = one.run()
    assert restored["learned"] == 0
    assert restored["seen"] == FIRST
    one.operate("restore", "1", "--rewind", "--yes")
    rewound = one.run()
    assert rewound["digest"] == expected["digest"]
    kinds = [kind_of(row) for row in one.operate("history")]
    assert kinds.count("amend") == 1


def libraries(**versions):
    return lambda: (
        {"python": "3.11.7", "river": "0.26.1", "numpy": "2.4.6", "numba": "0.66.0"} | versions
    )


@pytest.mark.parametrize(
    ("library", "other"),
    [("python", "3.12.1"), ("river", "0.25.0"), ("numpy", "1.26.4"), ("numba", "0.61.0")],
)
def test_other_versions_are_taken_where_predictions_come_out_equal(
    library, other, tmp_path, monkeypatch
):
    """The same under another version: a warning, and it goes on; the journal tells of it."""
    one = project(tmp_path / "p")
    monkeypatch.setattr(amending, "libraries", libraries())
    monkeypatch.setattr(shard, "libraries", libraries())
    first = online.run(load(one.config), until_eof=True)
    monkeypatch.setattr(amending, "libraries", libraries(**{library: other}))
    monkeypatch.setattr(shard, "libraries", libraries(**{library: other}))
    report = inspect(load(one.config), 100)
    found = next(f for f in report.findings if f.what.startswith("saved state"))
    assert found.ok
    assert f"libraries  {library}" in found.table[1]
    assert "come out equal" in found.table[1]
    again = online.run(load(one.config), until_eof=True)
    assert (again.digest, again.learned) == (first.digest, 0)
    assert "amend" in map(kind_of, one.operate("history"))


def test_other_versions_are_refused_where_predictions_differ(tmp_path, monkeypatch):
    """The first event that is predicted otherwise is shown with both predictions."""
    one = project(tmp_path / "p")
    online.run(load(one.config), until_eof=True)
    monkeypatch.setattr(amending, "libraries", libraries(numpy="1.0"))
    real = Trainer.proof
    monkeypatch.setattr(
        Trainer, "proof", lambda self: [line.replace("=0.", "=0.0") for line in real(self)]
    )
    with pytest.raises(ResumeError, match=r"numpy: .* -> 1\.0 \(other predictions: e\d+: .* is "):
        online.run(load(one.config), until_eof=True)
    edit("models", "BY = 1.0", "BY = 2.0")(one)
    with pytest.raises(ResumeError, match=r"the code changed, too .*learner\.Mean.*: put it back"):
        online.run(load(one.config), until_eof=True)


def test_a_state_of_a_newer_schema_is_refused_by_name(begun, tmp_path):
    """Of the trainer, or with a part that this version does not know."""
    for name, old, new in (
        ("schema", "schema 2, this version reads 1", {"schema": 2}),
        ("part", "part 'quality' that this version does not know", {}),
    ):
        one = copied(begun, tmp_path / name)
        for path in (one.folder / "state" / "shards" / "000").glob("snapshot-*"):
            snapshot = unpack(path.read_bytes(), path.name)
            about = encoding.decode(snapshot.parts["trainer"])
            snapshot.parts["trainer"] = encoding.encode(about | new)
            if not new:
                snapshot.parts["quality"] = b""
            path.write_bytes(pack(snapshot))
        told = one.call("check", "config.toml")
        assert told.returncode == 1
        assert old in told.stdout
        done = one.call("run", "config.toml", "--until-eof")
        assert old in done.stderr


def test_a_feature_that_comes_into_the_schema_is_learned_from_then_on(tmp_path):
    """The weights so far stay; the new feature has one from its first event on."""
    schema = "[features]\n" + "".join(f'f{i} = "number"\n' for i in range(5))
    one = Project(tmp_path, config="")
    one.config.write_text(
        '[model]\nlearner = "logistic"\ntask = "binary"\n[input]\npath = "events.jsonl"\n' + schema
    )
    lines = events(2_000)
    one.write(lines[:1_000])
    one.run()
    one.config.write_text(one.config.read_text() + 'extra = "number"\n')
    assert one.call("check", "config.toml").returncode == 0
    one.write([*lines[:1_000], *({**e, "x": {**e["x"], "extra": 1.5}} for e in lines[1_000:])])
    done = one.run()
    assert (done["resumed_at"], done["learned"], done["rejected"]) == (1_000, 1_000, 0)


@pytest.mark.slow
def test_amendments_on_topics_are_folded_from_the_journal(topics):
    """With the state folder lost, the journal alone gives the same state, amended where it was."""
    one = topics("one", config='[metrics]\nnames = ["accuracy"]\n[replay]\ncapacity = 30\n')
    lines = events(3_000)
    one.produce(lines[:1_500])
    one.project.run()
    text = one.project.config.read_text()
    one.project.config.write_text(text.replace('["accuracy"]', '["accuracy", "f1"]\nwindow = 70'))
    one.produce(lines[1_500:])
    expected = one.project.run()
    shutil.rmtree(one.project.folder / "state")
    rebuilt = one.project.run()
    assert (rebuilt["digest"], rebuilt["metrics"]) == (expected["digest"], expected["metrics"])
    assert rebuilt["learned"] == 0
    one.published_once(lines)


def test_a_state_whose_code_is_gone_is_named_as_that_of_another_learner(begun, tmp_path):
    """Classes of the old module cannot be read any more: what differs is said, not that."""
    one = copied(begun, tmp_path / "one")
    text = one.config.read_text()
    one.config.write_text(text.replace('learner = "models:make"', 'learner = "logistic"'))
    told = one.call("check", "config.toml")
    assert told.returncode == 1
    assert "learner  kind  river  linear  another kind of learner" in told.stdout
    refused = one.call("run", "config.toml", "--until-eof", "--amend")
    assert refused.returncode == 1
    assert "learner.kind: river -> linear (another kind of learner)" in refused.stderr


def killed_before_a_snapshot(folder, config):
    """Return a project with a state that is in the journal only."""
    one = Project(folder)
    one.config.write_text(config)
    one.write([{**e, "x": {**e["x"], "c": "abc"[i % 3]}} for i, e in enumerate(events(500))])
    process = one.running()
    one.until_recorded()
    process.kill()
    process.wait()
    assert not list((folder / "state" / "shards" / "000").glob("snapshot-*"))
    return one


def test_what_does_not_fit_after_the_replay_is_refused_before_it_is_journaled(tmp_path):
    """Before the replay it would have fitted; the old config goes on, with all that was learned."""
    config = (
        '[model]\nlearner = "logistic"\ntask = "binary"\noptions = { bits = 18 }\n'
        '[input]\npath = "events.jsonl"\n'
    )
    one = killed_before_a_snapshot(tmp_path / "p", config)
    one.config.write_text(config.replace("18", "10"))
    told = one.call("check", "config.toml")
    assert told.returncode == 1
    assert "`run` refuses it, `run --amend` takes it: learner.bits: 18 -> 10" in told.stdout
    assert "if that fits after" in one.call("check", "config.toml", "--amend").stdout
    for _ in range(2):
        done = one.call("run", "config.toml", "--until-eof", "--amend")
        assert done.returncode == 1
        said = done.stderr.splitlines()[-1]
        assert "after a part of the input was read again" in said
        assert "bits does not fit" in said
    one.config.write_text(config)
    assert one.run()["seen"] == 500


def test_check_says_that_input_to_be_read_again_is_read_otherwise(tmp_path):
    """A run refuses that: its events would be others than those learned."""
    config = '[model]\nlearner = "logistic"\ntask = "binary"\n[input]\npath = "events.jsonl"\n'
    one = killed_before_a_snapshot(tmp_path / "p", config)
    schema = "".join(f'f{i} = "number"\n' for i in range(5)) + 'c = "category"\n'
    one.config.write_text(config + f"[features]\n{schema}")
    told = one.call("check", "config.toml")
    assert told.returncode == 1
    assert "FAIL saved state of shard 000: `run` refuses it: the config reads" in told.stdout
    assert "the config reads" in one.call("run", "config.toml", "--until-eof").stderr


def test_nothing_is_rewound_over_a_change_of_code(begun, tmp_path):
    """Unless it came right after the version: the old code learned nothing then."""
    one = copied(begun, tmp_path / "one")
    one.write(events(ALL + 1_000)[:ALL])
    one.run()  # by the code of version 1
    edit("models", 'x["f0"]', 'x["f0"] * 2')(one)
    one.write(events(ALL + 1_000))
    expected = one.run("--amend")
    for version, refused in (("1", True), ("2", False)):
        one.operate("restore", version, "--rewind", "--yes")
        again = one.run()
        assert (again["digest"], again["metrics"]) == (expected["digest"], expected["metrics"])
        said = f"after version {version} was learned by other code"
        assert (said in str(one.operate("history"))) == refused


def test_a_model_that_predicts_no_more_under_other_versions_is_refused(tmp_path, monkeypatch):
    """As where an attribute has another name in another version of River."""
    one = project(tmp_path / "p")
    online.run(load(one.config), until_eof=True)
    monkeypatch.setattr(amending, "libraries", libraries(numpy="1.0"))

    def gone(self):
        raise LearnerError(0, AttributeError("no attribute 'gone'"))

    monkeypatch.setattr(Trainer, "proof", gone)
    with pytest.raises(ResumeError, match=r"numpy: .*does not predict any more: .*'gone'"):
        online.run(load(one.config), until_eof=True)


def test_mended_code_that_does_not_run_on_what_was_learned_is_refused(begun, tmp_path):
    """The amended model is tried on events of the replay buffer before it is journaled."""
    one = copied(begun, tmp_path / "one")
    edit("models", "self.total / self.n if", "self.sums[0] / self.n if")(one)
    for command in (("check", "config.toml"), ("run", "config.toml", "--until-eof")):
        done = one.call(*command, "--amend")
        assert done.returncode == 1
        assert "raises on an event of the replay buffer" in done.stdout + done.stderr
        assert "'Mean' object has no attribute 'sums'" in done.stdout + done.stderr
    edit("models", "self.sums[0] / self.n if", "self.total / self.n if")(one)
    assert one.run()["learned"] == ALL - FIRST


def test_other_versions_are_journaled_once_also_after_a_kill(begun, tmp_path, monkeypatch):
    """A run that was killed between the journal's record and the snapshot took them already."""
    one = copied(begun, tmp_path / "one")
    real = amending.libraries()
    for module in (shard, amending):
        monkeypatch.setattr(module, "libraries", lambda: {**real, "numpy": "9.9"})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard.Shard, "_write_snapshot", killed)
        with pytest.raises((KeyboardInterrupt, RunError)):
            online.run(load(one.config), until_eof=True)
    report = inspect(load(one.config), 100)
    assert "`run` goes on from it" in [finding.detail for finding in report.findings]
    online.run(load(one.config), until_eof=True)
    amended = [row for row in one.operate("history") if row["command"]["kind"] == "amend"]
    assert len(amended) == 1


def test_check_finds_a_damaged_journal(begun, tmp_path):
    """It says what `run` will say."""
    one = copied(begun, tmp_path / "one")
    journal = max((one.folder / "state" / "shards" / "000").glob("journal-*"))
    data = bytearray(journal.read_bytes())
    data[10] ^= 1
    journal.write_bytes(data)
    said = f"{journal.name} is damaged at byte 0: a whole record (1) follows"
    found = one.call("check", "config.toml")
    assert found.returncode == 1
    assert said in found.stdout
    assert said in one.call("run", "config.toml", "--until-eof").stderr


def test_a_step_whose_class_is_gone_is_named_with_the_way_out(begun, tmp_path):
    """The class must stay in its module until an amendment has dropped the step."""
    one = copied(begun, tmp_path / "one")
    edit("models", "class Mean", "class Average")(one)
    edit("models", "Mean() |", "Average() |")(one)
    for command in (("check", "config.toml"), ("run", "config.toml", "--until-eof")):
        done = one.call(*command)
        assert done.returncode == 1
        assert "the module models has it no more: keep it there" in done.stdout + done.stderr
