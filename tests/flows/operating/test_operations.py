"""What the commands of an operator find in a registry, told without any process."""

import json

import msgspec
import pytest
from click import testing
from click.testing import CliRunner
from project import MODEL, Project, events
from registry_lives import snapshot

from midstream import open_registry
from midstream.engine.registry import artifacts
from midstream.engine.registry.artifacts import Artifacts, StoreError
from midstream.engine.registry.registry import Drifted, ShardRow
from midstream.engine.shard.amending import defined
from midstream.engine.shard.commands import JUST_MADE, Done, Order
from midstream.engine.shard.journal import Command
from midstream.engine.state.snapshot import Snapshot
from midstream.engine.training.trainer import Trainer
from midstream.flows import logs
from midstream.flows.cli import cli
from midstream.flows.commands import cli_versions, version_views
from midstream.flows.inputs.reading import oldest_positions
from midstream.flows.loading import load
from midstream.flows.offline.inspect import inspect
from midstream.flows.operating import operations
from midstream.flows.operating.operations import OperationError, in_order, live_at, moment
from midstream.flows.running.definition import make_trainer, state_identity

BEGUN = 1_000.0
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


class Kept:
    """A project with a registry that is told what shards would tell."""

    def __init__(self, folder, path="events.jsonl", *, model=MODEL, versions=""):
        text = f'[input]\npath = "{path}"\n[versions]\n{versions}'
        self.project = Project(folder, model=model, config=text)
        self.folder = folder
        self.settings = load(self.project.config)
        self.registry = open_registry(self.settings, create=True)
        self.registry.join(["000"], 0, 0)
        self.parts = None

    def trained(self, n=200) -> Trainer:
        from midstream.flows.inputs.reading import open_reader

        self.project.write(events(n), "learned.jsonl")
        given = msgspec.structs.replace(self.settings.input, path="learned.jsonl")
        settings = msgspec.structs.replace(self.settings, input=given)
        trainer = make_trainer(self.settings)
        with open_reader(settings) as reader:
            for _, decoded in reader:
                trainer.step(decoded.batch)
        (self.folder / "learned.jsonl").unlink()
        return trainer

    def version(self, cursors=None, *, at=BEGUN, seen=0, fresh="", shards=("000",), **header):
        """Make a version; return its number."""
        self.parts = self.parts or self.trained().state()
        definition = defined(make_trainer(self.settings), **state_identity(self.settings))
        (order,) = self.registry.order(Order(0, "snapshot", reason="manual"), at=at)
        for shard in shards:
            made = snapshot(
                order.version,
                shard,
                created=at,
                seen=seen,
                learned=seen,
                fresh=fresh,
                definition=definition,
                cursors={name: [stop, 1, 0, 0] for name, stop in (cursors or {}).items()},
                **header,
            )
            part = Snapshot(made.header, self.parts)
            self.registry.put(shard, order.version, part)
        assert self.registry.complete() == [order.version]
        return order.version

    def began(self, at=BEGUN, *, shard="000", epoch="", seq=0):
        self.registry.tell(shard, epoch, [Done(Command(0, "start", at=at), seq, done_at=at)])

    def did(self, id_, kind, *, at, seq, shard="000", epoch="", position=None, **fields):
        done_at = fields.pop("done_at", at)
        command = Command(id_, kind, at=at, **fields)
        done = Done(command, seq, position=position or {}, done_at=done_at)
        self.registry.tell(shard, epoch, [done])

    def rewind(self, version, **options):
        return operations.plan_replacing(self.registry, self.settings, "rewind", version, **options)

    def call(self, *arguments, stdin=None):
        config = str(self.project.config)
        return CliRunner().invoke(cli, [*arguments, "--config", config], input=stdin)


@pytest.fixture
def kept(tmp_path):
    """Make such projects; their registries are closed in the end."""
    made = []

    def make(*arguments, **options):
        made.append(Kept(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.registry.close()


@pytest.fixture(autouse=True)
def _logs():
    logs.configure()


# --- what can be learned again


@pytest.mark.parametrize("path", ["in", "in/*.jsonl", "in/a.jsonl"])
def test_files_in_a_folder_are_found_by_their_names(kept, path):
    """A rewind is planned: a folder's files and a pattern's are named without it."""
    one = kept(path)
    (one.folder / "in").mkdir()
    one.project.write(events(3), "in/a.jsonl")
    (name,) = oldest_positions(one.settings)
    one.began()
    version = one.version({name: 10})
    one.did(2, "pause", at=BEGUN + 1, seq=1, position={name: 90})
    assert one.rewind(version).kind == "rewind"
    (one.folder / "in/a.jsonl").unlink()
    with pytest.raises(OperationError, match=r"a\.jsonl: .*is gone.* from line 1 on"):
        one.rewind(version)


def test_only_what_was_read_after_a_version_has_to_be_there(kept):
    """A file that was consumed before may be gone; one that came later may not."""
    one = kept("in")
    (one.folder / "in").mkdir()
    one.project.write(events(3), "in/b.jsonl")
    one.began()
    first = one.version({"a.jsonl": 100, "b.jsonl": 10})
    one.did(2, "pause", at=BEGUN + 1, seq=1, position={"a.jsonl": 100, "b.jsonl": 30})
    assert one.rewind(first).kind == "rewind"
    second = one.version({"a.jsonl": 100, "b.jsonl": 30, "c.jsonl": 20})
    with pytest.raises(OperationError, match=r"c\.jsonl: .*is gone.* from line 1 on"):
        one.rewind(first)
    assert one.rewind(second).kind == "rewind"
    one.project.write(events(3), "in/c.jsonl")
    assert one.rewind(first).kind == "rewind"
    (one.folder / "in/b.jsonl").unlink()
    (one.folder / "in/c.jsonl").unlink()
    with pytest.raises(OperationError, match=r"b\.jsonl: .*is gone \("):
        one.rewind(first)


def test_what_a_former_model_read_is_not_asked_for(kept):
    """After --fresh, only what the new one has read counts."""
    one = kept()
    one.project.write(events(3))
    one.began()
    one.did(1, "pause", at=BEGUN + 1, seq=1, position={"old.jsonl": 500})
    old = one.version({"old.jsonl": 100})
    one.began(BEGUN + 10, epoch="ab")
    new = one.version({"events.jsonl": 0}, fresh="ab")
    assert one.rewind(new).kind == "rewind"
    with pytest.raises(OperationError, match="begun anew"):
        one.rewind(old)


def test_standard_input_cannot_be_learned_again(kept):
    """Unless nothing came since."""
    one = kept("-")
    one.began()
    version = one.version({"-": 10})
    assert one.rewind(version).kind == "rewind"
    one.did(2, "pause", at=BEGUN + 1, seq=1, position={"-": 11})
    with pytest.raises(OperationError, match="standard input cannot be learned again"):
        one.rewind(version)


def test_a_range_of_a_file_that_came_later_can_be_skipped(kept):
    """A file is known by a version, by what shards did, or because it is there."""
    one = kept("in")
    (one.folder / "in").mkdir()
    one.began()
    version = one.version({"a.jsonl": 100})
    with pytest.raises(OperationError, match=r"c\.jsonl was never learned from.* a\.jsonl"):
        one.rewind(version, ranges=[("c.jsonl", 1, 100)])
    one.project.write(events(3), "in/c.jsonl")
    assert one.rewind(version, ranges=[("c.jsonl", 1, 100)]).orders[1].ranges


# --- what was done, and in which order


def test_a_rollback_passes_over_what_was_refused(kept):
    """It goes back to what was live before the last command that some shard did not refuse."""
    one = kept()
    one.project.write(events(3))
    one.registry.join(["000", "001"], 0, 0)
    both = ("000", "001")
    for shard in both:
        one.began(shard=shard)
    one.version(shards=both)
    kept_, done = one.registry.order(
        Order(0, "snapshot"), Order(0, "restore", version=1, before=JUST_MADE)
    )
    part = Snapshot(snapshot(kept_.version).header, one.parts)
    definition = one.registry.versions()[0].manifest.shards[0].header["definition"]
    for shard in both:
        header = {**part.header, "shard": shard, "definition": definition, "seen": 0, "learned": 0}
        one.registry.put(shard, kept_.version, Snapshot(header, one.parts))
    one.registry.complete()
    *_, refused = one.registry.order(
        Order(0, "snapshot"), Order(0, "restore", version=1, before=JUST_MADE)
    )
    for shard in both:
        one.did(done.id, "restore", at=BEGUN, seq=1, shard=shard, version=1)
        one.did(refused.id, "restore", at=BEGUN, seq=2, shard=shard, version=1, refused="damaged")
    assert operations.plan_rollback(one.registry, one.settings).version == kept_.version
    pending = one.registry.order(Order(0, "restore", version=1))[0]
    with pytest.raises(OperationError, match=f"before command {pending.id} was not kept"):
        operations.plan_rollback(one.registry, one.settings)
    one.did(pending.id, "restore", at=BEGUN, seq=3, version=1, refused="damaged")
    one.did(pending.id, "restore", at=BEGUN, seq=3, shard="001", version=1)
    with pytest.raises(OperationError, match="was not kept"):
        operations.plan_rollback(one.registry, one.settings)


def test_what_is_live_follows_from_the_journal_and_not_from_clocks(kept):
    """A clock that jumps back, before a command or before a model is begun anew, changes nothing.

    A command that has not taken effect is not live yet.
    """
    one = kept()
    version = one.version(at=BEGUN)
    one.began(BEGUN)
    one.did(2, "restore", at=BEGUN + 900, seq=1, version=7)
    one.did(3, "snapshot", at=BEGUN + 901, seq=2, version=8)
    one.did(4, "rollback", at=BEGUN + 100, seq=3, version=version)  # an hour back
    one.did(5, "snapshot", at=BEGUN + 101, seq=4, version=9)

    def at(when=float("inf")):
        live = live_at(one.registry.deployments(), when)["000"]
        return live and (live.version, live.kept)

    assert at(BEGUN - 1) is None
    assert at(BEGUN + 50) == (0, None)
    assert at(BEGUN + 100) == (version, None)
    assert at() == at(BEGUN + 5_000) == (version, 9)
    one.did(6, "promote", at=BEGUN + 200, seq=5, version=7, done_at=None)
    assert at() == (version, 9)
    one.did(6, "promote", at=BEGUN + 200, seq=5, version=7, done_at=BEGUN + 300)
    assert at(BEGUN + 250) == (version, 9)
    assert at() == (7, None)
    listed = json.loads(one.call("snapshots", "list", "--json").stdout)
    assert [row["live"] for row in listed] == [False]
    one.began(BEGUN - 500, epoch="ab", seq=0)  # --fresh, the clock still further back
    one.did(7, "pause", at=BEGUN - 400, seq=1, epoch="ab")
    one.began(BEGUN + 20, epoch="cd", seq=0)  # which no command has come to: the clock has to do
    one.did(8, "restore", at=BEGUN - 300, seq=2, epoch="ab", version=version)
    rows = in_order(one.registry.deployments())["000"]
    assert [(row.epoch, row.seq) for row in rows] == [
        *(("", seq) for seq in range(6)),
        *(("ab", seq) for seq in range(3)),
        ("cd", 0),
    ]
    assert at(BEGUN + 10) == (version, None)
    assert operations.epochs(one.registry.deployments()) == {"000": "cd"}


def test_before_drift_follows_from_the_journal_and_not_from_clocks(kept):
    """Alarms of before a version was put live, or of a former model, do not count."""
    one = kept()
    one.began()
    for seen in (100, 200, 300):
        one.version(at=BEGUN + seen, seen=seen)

    def drifted(command, position, at, epoch=""):
        one.registry.alarm([Drifted("000", epoch, command, position, "adwin", at)])

    drifted(3, 290, BEGUN + 5_000)
    row, alarms = operations.before_drift(one.registry, 10)
    assert (row.version, len(alarms)) == (2, 1)
    drifted(3, 320, BEGUN - 3_000)  # the clock is set back, and the drift goes on
    row, alarms = operations.before_drift(one.registry, 10)
    assert (row.version, [a.position for a in alarms]) == (2, [290, 320])
    one.did(4, "restore", at=BEGUN - 2_000, seq=1, version=1)
    with pytest.raises(OperationError, match="no drift was seen since"):
        operations.before_drift(one.registry, 10)
    drifted(4, 160, BEGUN - 1_000)
    assert operations.before_drift(one.registry, 10)[0].version == 1
    one.began(BEGUN - 900, epoch="ab")
    one.did(5, "pause", at=BEGUN - 800, seq=1, epoch="ab")
    with pytest.raises(OperationError, match="no drift was seen;"):
        operations.before_drift(one.registry, 10)


# --- what is asked, and what is said


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


def test_what_some_shards_refused_can_be_undone_on_the_others(kept, monkeypatch):
    """One more line says so; where all refused, there is nothing to undo."""
    one = kept()
    both = ("000", "001")
    one.registry.join(both, 0, 0)
    one.version(shards=both)
    for refusing, said in (((), False), (("001",), True), (both, False)):

        def answered(*_, refusing=refusing, **__):
            return [
                operations.Answer(shard, "refused", "damaged")
                if shard in refusing
                else operations.Answer(shard, "done", at=BEGUN, seconds=0.1)
                for shard in both
            ]

        monkeypatch.setattr(operations, "await_answers", answered)
        monkeypatch.setattr(cli_versions, "_await_version", lambda *_: [])
        done = one.call("restore", "1", "--yes")
        assert done.exit_code == bool(refusing), done.output
        assert ("`midstream rollback` undoes it" in done.stdout) == said


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


def test_a_source_that_was_never_seen_is_asked_about(kept, monkeypatch):
    """Before it is left out; with --yes it is told, also as JSON."""
    one = kept()
    one.project.write(events(3))
    one.began()
    version = one.version()
    one.version()  # from which a source "s" came
    one.registry.beat([ShardRow("000", "", 0, 0.0, 10, paused=False, sources='["t"]')])
    assert one.rewind(version, sources=["s", "t"]).warnings == [
        f"version {version} itself has learned 1 events of source s, and keeps them: an older "
        "version may not have"
    ]
    said = "no event of source x was seen since version 1, so that nothing will be left out for it"
    assert one.rewind(version, sources=["x"]).warnings == [f"{said}; sources that were seen: s, t"]
    given = len(one.registry.commands())
    monkeypatch.setattr(testing._NamedTextIOWrapper, "isatty", lambda _: True)
    done = one.call("restore", "1", "--rewind", "--skip-source", "x", stdin="n\n")
    assert done.exit_code == 1
    assert f"warning: {said}" in done.output
    assert "go on, in spite of that? [y/N]:" in done.stderr
    assert len(one.registry.commands()) == given
    done = one.call("restore", "1", "--rewind", "--skip-source", "x", "--yes", "--json")
    assert said in json.loads(done.stdout)["warnings"][0]


def test_positions_in_files_are_shown_in_lines(kept):
    """Of what a command did, of what it left, and of what a version has learned."""
    one = kept()
    one.began()
    one.version()
    command = Command(1, "promote", 1, at=BEGUN, left=[("a.jsonl", 10, 50, 3), ("t-0", 5, 9, 4)],
                      lines=[(2, 4), None])  # fmt: skip
    done = Done(
        command, 1, position={"a.jsonl": 100, "t-0": 9}, lines={"a.jsonl": 7}, done_at=BEGUN
    )
    one.registry.tell("000", "", [done])
    (told,) = json.loads(one.call("history", "--json").stdout)[1:]
    assert told["position"] == {"a.jsonl": 7, "t-0": 9}
    assert told["command"]["left"] == [["a.jsonl", 2, 4, 3], ["t-0", 5, 8, 4]]
    (row,), (deployed,) = one.registry.shards(), one.registry.deployments([1])
    answer = operations._answer(row, deployed, running=False)
    assert (answer.position, answer.files) == (told["position"], ["a.jsonl"])
    data = {
        "stretches": {"a.jsonl": [[0, 100]], "t-0": [[0, 9]], "old": [[0, 50]]},
        "lines": {"a.jsonl": [[1, 7]], "old": []},
    }
    assert version_views.stretches_of(data) == {
        "a.jsonl": ("lines", [(1, 6)]),
        "t-0": ("offsets", [(0, 8)]),
        "old": ("bytes or offsets", [(0, 49)]),
    }


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
    assert "no run has told it of its shards" in one.call("restore", "1", "--yes").stderr
    assert json.loads(one.call("snapshots", "adopt", "--json").stdout)["adopted"] == []


# --- models of one's own


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


# --- secrets, and what `midstream check` says


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
