"""What the commands of an operator find in a registry, without any process."""

import json

import msgspec
import pytest
from click import testing
from click.testing import CliRunner
from kept import BEGUN, Kept
from project import Project, events

from midstream import open_registry
from midstream.engine.registry import artifacts
from midstream.engine.registry.artifacts import Artifacts, StoreError
from midstream.flows.cli import cli
from midstream.flows.offline.inspect import inspect
from midstream.flows.operating import operations
from midstream.flows.operating.operations import moment

OWN = """
from river import linear_model

class Picky(linear_model.LogisticRegression):
    def predict_proba_one(self, x):
        print("printed by the model")
        print("asked")
        if x["f0"] > 9:
            raise TypeError("too much")
        return super().predict_proba_one(x)

print("imported")

def make():
    return Picky()
"""


@pytest.mark.parametrize(
    "command",
    [
        ("restore", "1"),
        ("promote", "1"),
        ("rollback",),
        ("pause",),
        ("resume",),
        ("snapshots", "create"),
    ],
    ids=" ".join,
)
def test_no_command_is_given_where_versions_are_switched_off(kept, command):
    """It would never be carried out; what was kept can still be looked at."""
    one = kept(versions="enabled = false")
    given = len(one.registry.commands())
    done = one.call(*command)
    assert done.exit_code == 1
    assert "versions are switched off (versions.enabled = false)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(one.registry.commands()) == given
    assert one.call("snapshots", "list").exit_code == 0


@pytest.mark.parametrize(
    "text", ["inf", "-inf", "nan", "1e20", "-1e20", "-1", "1969-12-31", "253402300800", "today"]
)
def test_a_time_is_from_1970_to_9999(kept, text):
    """Any other is wrong usage, told in one line."""
    with pytest.raises(ValueError, match=r"."):
        moment(text)
    one = kept()
    for command in (["history", f"--at={text}"], ["restore", f"--before={text}", "--yes"]):
        done = one.call(*command)
        assert done.exit_code == 2, done.output
        assert f"found {text!r}; allowed: ISO 8601" in done.stderr


def test_times_are_read():
    """As ISO 8601, UTC where it has no zone, and as seconds."""
    assert moment("1970-01-02") == moment("86400") == 86_400.0
    assert moment("1970-01-01T01:00+01:00") == moment("0") == 0.0
    assert operations.utc(moment("9999-12-31T23:59:59")) == "9999-12-31 23:59:59 UTC"


@pytest.mark.parametrize("amount", ["nan", "inf", "-1", "-0.5", "much"])
def test_amounts_are_numbers_that_are_not_negative(kept, amount):
    """Any other is wrong usage, told in one line."""
    one = kept()
    for command in (["resume", f"--timeout={amount}"],
                    ["snapshots", "prune", "--dry-run", f"--keep-days={amount}"]):  # fmt: skip
        done = one.call(*command)
        assert done.exit_code == 2, done.output
        assert f"found {amount!r}; allowed: a number from 0 on" in done.stderr
    assert one.registry.commands() == []


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_the_question_does_not_come_before_the_result(kept, monkeypatch, answer, code):
    """It goes to standard error, so that standard output is one object."""
    one = kept()
    one.began()
    one.version()
    monkeypatch.setattr(testing._NamedTextIOWrapper, "isatty", lambda _: True)
    done = one.call("restore", "1", "--json", stdin=answer)
    assert done.exit_code == code, done.output
    assert "go on? [y/N]:" in done.stderr
    assert ("error" in json.loads(done.stdout)) == bool(code)
    assert (done.stderr.splitlines()[-1] == "midstream: nothing was done") == bool(code)


def test_a_config_that_is_not_there_is_wrong_usage(tmp_path):
    """Told once, also as JSON."""
    done = CliRunner().invoke(cli, ["history", "--json", "--config", str(tmp_path / "none.toml")])
    assert done.exit_code == 2
    assert "there is no such file" in json.loads(done.stdout)["error"]
    assert len(done.stderr.splitlines()) == 1


def test_a_diff_has_the_shards_of_either_version(kept):
    """What only one of them has is undefined in the other."""
    one = kept()
    one.version()
    one.registry.join(["001"], 0, 0)
    one.version(shards=("000", "001"))
    assert json.loads(one.call("snapshots", "diff", "1", "2", "--json").stdout)["metrics"] == {
        "000": {"accuracy": [0.5, 0.5], "roc_auc": [None, None]},
        "001": {"accuracy": [None, 0.5], "roc_auc": [None, None]},
    }
    for versions in (["1", "2"], ["2", "1"]):
        table = one.call("snapshots", "diff", *versions).stdout
        assert "001" in table
        assert "undefined" in table


def test_commands_that_wait_are_listed_and_taken_back(kept):
    """With who gave them and why; what was taken up is not, and history mentions what waits."""
    one = kept()
    one.began()
    one.version()
    one.did(1, "snapshot", at=BEGUN, seq=1, version=1)
    assert one.call("commands", "list").stdout == "no commands wait\n"
    assert one.call("pause", "--yes", "--reason", "maintenance").exit_code == 0
    assert one.call("restore", "1", "--yes").exit_code == 0
    listed = json.loads(one.call("commands", "list", "--json").stdout)
    assert [(row["id"], row["kind"], row["state"], row["missing"]) for row in listed[-3:]] == [
        (2, "pause", "waiting", ["000"]),
        (3, "snapshot", "waiting", ["000"]),
        (4, "restore", "waiting", ["000"]),
    ]
    assert (listed[-3]["reason"], listed[-3]["by"]) == ("maintenance", operations.operator())
    for command in (("commands", "list"), ("history",)):
        shown = one.call(*command).stdout
        assert "maintenance" in shown
        assert "a processor of 000" in shown
    assert json.loads(one.call("commands", "cancel", "4", "--json").stdout) == {"cancelled": [3, 4]}
    one.registry.take(2)
    done = one.call("commands", "cancel", "2")
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "command 2 (pause) cannot be taken back: a processor has taken it up" in done.stderr
    one.did(2, "pause", at=BEGUN + 5, seq=2, reason="maintenance", by="ann@host")
    waiting = json.loads(one.call("commands", "list", "--json").stdout)
    assert 2 not in [row["id"] for row in waiting]
    assert "there is no command 77" in one.call("commands", "cancel", "77").stderr


def test_a_pause_is_in_the_history(kept):
    """When, who and why, also of a time; and no longer once it was resumed."""
    one = kept()
    one.began()
    one.did(1, "pause", at=BEGUN + 5, seq=1, reason="maintenance", by="ann@host")
    shown = one.call("history").stdout
    paused = "paused since 1970-01-01 00:16:45 UTC (maintenance, ann@host), until"
    assert f"shard 000: {paused} `midstream resume`" in shown
    assert paused in one.call("history", "--at", str(BEGUN + 6)).stdout
    assert "paused" not in one.call("history", "--at", str(BEGUN + 4)).stdout
    (told,) = json.loads(one.call("history", "--at", str(BEGUN + 6), "--json").stdout)[
        "shards"
    ].values()
    assert (told["paused"], told["pause"]) == (BEGUN + 5, "maintenance, ann@host")
    one.did(2, "resume", at=BEGUN + 9, seq=2)
    assert "paused since" not in one.call("history").stdout
    assert "paused since" in one.call("history", "--at", str(BEGUN + 6)).stdout


def test_a_registry_that_was_lost_is_made_anew_from_its_artifacts(kept):
    """By a command; others say so until then, and commands wait for a run."""
    one = kept()
    one.began()
    one.version()
    one.version()
    one.registry.close()
    for path in (one.folder / "state").glob("registry.db*"):
        path.unlink()
    assert "by `midstream snapshots adopt`" in one.call("snapshots", "list").stderr
    damaged = one.folder / "state/artifacts/config/00000002/000/learner.zst"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = json.loads(one.call("snapshots", "adopt", "--json").stdout)
    assert done["adopted"] == [1]
    assert "learner.zst is damaged" in done["left"]["2"]
    assert one.call("snapshots", "verify", "1").stdout == "version 1: sound\n"
    assert "no run has entered its shards" in one.call("restore", "1", "--yes").stderr
    assert json.loads(one.call("snapshots", "adopt", "--json").stdout)["adopted"] == []


def test_an_event_that_a_model_raises_on_does_not_end_predict(kept):
    """It is told with its reason, and what a model prints is not among the predictions."""
    one = kept(model=OWN)
    one.began()
    one.version()
    lines = [{"id": e["id"], "x": e["x"]} for e in events(20)]
    lines[7]["x"]["f0"] = lines[12]["x"]["f0"] = 10
    file = str(one.project.write(lines, "asked.jsonl"))
    done = one.call("predict", file)
    assert done.exit_code == 1, done.output
    said = [json.loads(line)["id"] for line in done.stdout.splitlines()]
    assert said == [line["id"] for i, line in enumerate(lines) if i not in (7, 12)]
    told = [line for line in done.stderr.splitlines() if "event=rejected" in line]
    assert len(told) == 2
    assert "asked.jsonl:8 " in told[0]
    assert "the learner raised TypeError: too much" in told[0]
    assert "id=e7" in told[0]
    assert "printed by the model" in done.stderr
    del lines[12], lines[7]
    one.project.write(lines, "asked.jsonl")
    done = one.call("predict", file)
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 18)


def test_a_model_of_ones_own_is_loaded_from_beside_its_config(tmp_path):
    """From wherever one is, also after one of another config, whose module has the same name."""
    found = []
    for name in ("one", "two"):
        one = Kept(tmp_path / name, model=OWN.replace("Picky", f"Own_{name}"))
        one.version()
        one.registry.close()
        found.append(open_registry(one.project.config))
    for registry, name in zip(found * 2, ["one", "two"] * 2, strict=True):
        model = registry.load(1).learner.model
        assert type(model).__name__ == f"Own_{name}"
    (tmp_path / "one/models.py").unlink()
    with pytest.raises(artifacts.ArtifactError, match="no module 'models'"):
        found[0].load(1)
    for registry in found:
        registry.close()


@pytest.mark.parametrize(
    ("place", "secrets"),
    [
        ("s3://AKEY:SE/CR+ET@bucket/x", ["AKEY", "SE/CR", "ET@"]),
        ("sftp://u:p%40w@host/x", ["p%40w", "p@w", "u:"]),
        ("nosuch://u:hunter2@host/x", ["hunter2"]),
    ],
)
def test_credentials_of_a_store_are_not_shown(kept, monkeypatch, place, secrets):
    """Neither in a config's repr, nor in an error of ours or of a client's."""

    def raising(url, **_):
        raise RuntimeError(f"cannot log in to {url} as {secrets[-1]} with p@w or hunter2")

    one = kept(versions='artifacts = "memory://u:hunter2@host/x"')
    assert "hunter2" not in repr(one.settings)
    with monkeypatch.context() as patch:
        patch.setattr(artifacts.fsspec.core, "url_to_fs", raising)
        with pytest.raises(StoreError) as error:
            Artifacts(place, "fraud")
        assert "//***@" in str(error.value)
        for secret in secrets[:-1] or secrets:
            assert secret not in str(error.value)
    store = one.registry.artifacts
    with pytest.raises(StoreError) as error:
        store.manifest(1)
    assert "hunter2" not in str(error.value)

    def failing(*_, **__):
        raise RuntimeError("u:hunter2@host: no such host; hunter2 is the password")

    monkeypatch.setattr(store._files, "cat_file", failing)
    with pytest.raises(StoreError) as error:
        store.manifest(1)
    assert "hunter2" not in str(error.value)
    assert "no such host" in str(error.value)


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ('registry = "mysql://u:hunter2@host/x"', "no such kind of database"),
        ('registry = "postgresql://u:hunter2@localhost:x/x"', "the registry's URL cannot be read"),
        ('artifacts = "nosuch://u:hunter2@host/x"', "nosuch://***@host/x"),
        ('registry = "broken.db"', "is damaged, or no registry"),
    ],
)
def test_check_says_what_is_wrong_with_the_registry(tmp_path, versions, words):
    """In one line, without secrets."""
    one = Project(tmp_path, config=f'[input]\npath = "events.jsonl"\n[versions]\n{versions}')
    one.write(events(10))
    (tmp_path / "broken.db").write_text("no database " * 500)
    done = CliRunner().invoke(cli, ["check", str(one.config), "--json"])
    assert done.exit_code == 1, done.output
    (found,) = [f for f in json.loads(done.stdout)["findings"] if not f["ok"]]
    assert found["what"] == "versions"
    assert words in found["detail"]
    assert "\n" not in found["detail"]
    assert "hunter2" not in done.output


def test_check_says_where_the_registry_is(kept, tmp_path):
    """And that the first run makes it, where it is not there; it makes nothing."""

    def found(settings):
        (finding,) = [f for f in inspect(settings, 5).findings if f.what == "versions"]
        assert finding.ok
        return finding.detail

    one = kept()
    one.project.write(events(10))
    assert found(one.settings) == f"{tmp_path}/state/registry.db: 0 versions"
    one.version()
    assert found(one.settings).endswith("registry.db: 1 version")
    other = msgspec.structs.replace(one.settings, name="other")
    assert found(other).endswith("registry.db: no registry yet; the first run makes it")
    off = msgspec.structs.replace(one.settings.versions, enabled=False)
    assert "switched off" in found(msgspec.structs.replace(one.settings, versions=off))
    state = msgspec.structs.replace(one.settings.state, path="elsewhere")
    assert "the first run makes it" in found(msgspec.structs.replace(one.settings, state=state))
    assert not (tmp_path / "elsewhere").exists()
