"""Versions of a running model, by the command line, as an operator uses it; input is files."""

import json
import shutil
import signal
import sqlite3
import time
from itertools import pairwise

import pytest
from project import Project, events, interleaved, poisoned, stop, wait_for

FEATURES = "".join(f'f{i} = "number"\n' for i in range(5))
COMPILED = ("logistic", f"[features]\n{FEATURES}")
RIVER = ("models:make", "")


class Operated(Project):
    """A project with quick polls, and the commands of an operator."""

    def __init__(self, folder, *, kind=RIVER, versions="", source="", **options):
        learner, features = kind
        text = f'[input]\npath = "events.jsonl"\n{source}[versions]\npoll_seconds = 0.05\n'
        super().__init__(folder, config=f"{text}{versions}\n{features}", **options)
        self.config.write_text(self.config.read_text().replace("models:make", learner))

    def append(self, lines, name="events.jsonl"):
        with (self.folder / name).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def count(self):
        path = self.folder / "out" / "predictions.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    "kind",
    [pytest.param(RIVER, marks=pytest.mark.slow), COMPILED],
    ids=["river", "compiled"],
)
def test_poison_is_unlearned(tmp_path, kind):
    """After `restore --before-drift --rewind --skip-source` it is as if the poison had not been."""
    one = Operated(tmp_path / "one", kind=kind, versions="drift_margin = 50")
    good = events(9_000)
    one.write(good[:4_000])
    process = one.running()
    made = one.operate("snapshots", "create")
    assert made["made"] == [1]
    one.append(interleaved(poisoned(4_000), good[4_000:8_000]))
    wait_for(lambda: one.count() == 12_000, what="the poison")
    done = one.operate("restore", "--before-drift", "--rewind", "--skip-source", "mallory", "--yes")
    assert (done["kind"], done["version"]) == ("rewind", 1)
    assert [shard["state"] for shard in done["shards"]] == ["done"]
    one.append(good[8_000:])
    wait_for(lambda: one.count() == 13_000, what="the rest")
    stop(process)
    calm = Operated(tmp_path / "calm", kind=kind)
    calm.write(good)
    assert one.run()["digest"] == calm.run()["digest"]
    ids = [p["id"] for p in one.output("predictions")]
    assert len(ids) == len(set(ids)) == 13_000, "what was published is not published again"
    shown = one.operate("snapshots", "show", str(done["made"][-1]))
    assert shown["kind"] == "restored"
    assert shown["data"]["total"]["left_out"] == 4_000
    assert "mallory" not in shown["data"]["total"]["sources"]


def test_a_restored_model_goes_on_from_the_same_input_position(tmp_path):
    """Without --rewind the state goes back; what came since then is not in it."""
    one = Operated(tmp_path)
    lines = events(3_000)
    one.write(lines[:1_000])
    process = one.running()
    one.operate("snapshots", "create")
    one.append(lines[1_000:2_000])
    wait_for(lambda: one.count() == 2_000)
    done = one.operate("restore", "1", "--yes")
    (shard,) = done["shards"]
    assert (shard["state"], shard["seen"]) == ("done", 1_000)
    one.append(lines[2_000:])
    wait_for(lambda: one.count() == 3_000)
    stop(process)
    summary = one.run()
    assert summary["seen"] == 2_000
    other = Operated(tmp_path / "other")
    other.write(lines[:1_000] + lines[2_000:])
    assert other.run()["digest"] == summary["digest"]
    predictions = one.output("predictions")
    assert [p["version"] for p in predictions] == [0] * 2_000 + [1] * 1_000
    manifest = one.operate("snapshots", "show", "3")
    assert manifest["parent"] == 1
    (stretches,) = manifest["data"]["total"]["stretches"].values()
    assert len(stretches) == 2, "what was left behind is not in it"


@pytest.mark.slow
def test_rollback_undoes_restore_promote_and_rewind(tmp_path):
    """After it the state is as if the command had not been, and a second one undoes the first."""
    one = Operated(tmp_path)
    lines = events(4_000)
    one.write(lines[:1_000])
    process = one.running()
    one.operate("snapshots", "create")
    at = 1_000
    for command in (
        ["restore", "1"],
        ["promote", "1"],
        ["restore", "1", "--rewind", "--skip-range", "events.jsonl:1001-1500"],
    ):
        one.append(lines[at : at + 500])
        wait_for(lambda at=at: one.count() == at + 500)
        one.operate(*command, "--yes")
        one.append(lines[at + 500 : at + 1_000])
        at += 1_000
        wait_for(lambda at=at: one.count() == at)
        one.operate("rollback", "--yes")
    stop(process)
    calm = Operated(tmp_path / "calm")
    calm.write(lines)
    assert one.run()["digest"] == calm.run()["digest"]


@pytest.mark.slow
def test_a_promoted_version_catches_up_within_its_bound(tmp_path):
    """What it could not relearn is told, by partition and position."""
    one = Operated(tmp_path, versions="catch_up_events = 1_500")
    lines = events(4_000)
    one.write(lines[:1_000])
    process = one.running()
    one.operate("snapshots", "create")
    for at in range(1_000, 4_000, 500):
        one.append(lines[at : at + 500])
        one.until_recorded()
    (shard,) = one.operate("promote", "1", "--yes")["shards"]
    ((name, start, stop_, left),) = shard["left"]
    assert name == "events.jsonl"
    assert 1_500 <= left < 2_100
    assert shard["seen"] == 1_000 + 3_000 - left
    assert 0 < start < stop_ < (tmp_path / "events.jsonl").stat().st_size
    stop(process)
    other = Operated(tmp_path / "other")
    other.write(lines[:1_000] + lines[1_000 + left :])
    assert other.run()["digest"] == one.run()["digest"]


@pytest.mark.slow
def test_a_paused_model_learns_nothing_until_it_is_resumed(tmp_path):
    """Also after a restart; nothing that came meanwhile is lost."""
    one = Operated(tmp_path)
    lines = events(2_000)
    one.write(lines[:1_000])
    process = one.running()
    one.operate("pause", "--yes")
    one.append(lines[1_000:])
    time.sleep(0.3)
    assert one.count() == 1_000
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = one.running()
    time.sleep(0.3)
    assert one.count() == 1_000
    one.operate("resume")
    wait_for(lambda: one.count() == 2_000)
    stop(process)
    calm = Operated(tmp_path / "calm")
    calm.write(lines)
    assert one.run()["digest"] == calm.run()["digest"]


def test_commands_wait_for_a_processor(tmp_path):
    """Where none runs, that is said, and they take effect at the next start, each once."""
    one = Operated(tmp_path)
    one.write(events(500))
    one.run()
    one.append(events(1_000)[500:])
    one.run()
    for _ in range(2):  # twice in a row is no harm
        (shard,) = one.operate("restore", "1", "--yes")["shards"]
        assert shard["state"] == "pending"
    said = one.call("restore", "1", "--yes", "--config", "config.toml").stdout
    assert "no processor runs; it will take effect at the next start" in said
    summary = one.run()
    assert summary["seen"] == 500
    restored = [d for d in one.operate("history") if d["command"]["kind"] == "restore"]
    assert [d["command"]["id"] for d in restored] == sorted({d["command"]["id"] for d in restored})
    assert len(restored) == 3
    assert one.run()["seen"] == 500, "once applied, they are not applied again"


@pytest.mark.slow
def test_a_model_begun_anew_does_not_obey_what_was_meant_for_the_old_one(tmp_path):
    """`run --fresh` drops commands that nobody has carried out, and says so."""
    one = Operated(tmp_path)
    one.write(events(500))
    one.run()
    one.operate("restore", "1", "--yes")
    done = one.call("run", "config.toml", "--until-eof", "--fresh", "--json")
    assert "commands_dropped" in done.stderr
    assert json.loads(done.stdout)["seen"] == 500
    refusal = one.refused("restore", "1", "--rewind", "--yes")
    assert "is from before the model was started over" in refusal
    assert one.operate("restore", "1", "--yes")["kind"] == "restore"


@pytest.mark.slow
def test_a_model_begun_anew_obeys_no_command_of_before(tmp_path):
    """Neither after --fresh nor where the state was lost and the registry was not."""
    one = Operated(tmp_path, versions='registry = "kept.db"\nartifacts = "kept"')
    one.write(events(500))
    one.run()
    one.operate("restore", "1", "--yes")
    one.operate("pause", "--yes")
    one.run()
    fresh = one.run("--fresh")
    assert fresh["seen"] == 500
    one.operate("restore", "1", "--yes")
    one.run()
    shutil.rmtree(tmp_path / "state")
    shutil.rmtree(tmp_path / "out")
    assert one.run("--adopt")["digest"] == fresh["digest"]
    kinds = [d["command"]["kind"] for d in one.operate("history")]
    assert kinds.count("restore") == 2
    assert kinds.count("pause") == 1
    assert kinds.count("start") == 3


@pytest.mark.slow
def test_a_rewind_into_a_file_that_was_changed_is_refused(tmp_path):
    """It is as if it had not been given, also after a restart, and the history says why."""
    one = Operated(tmp_path)
    lines = events(2_000)
    one.write(lines[:1_000])
    one.run()
    one.append(lines[1_000:])
    digest = one.run()["digest"]
    lines[1_500]["id"] = "x1500"
    one.write(lines)
    process = one.running()
    done = one.operate("restore", "1", "--rewind", "--yes", code=1)
    assert done["shards"][0]["state"] == "refused"
    assert "the file was changed" in done["shards"][0]["reason"]
    stop(process)
    summary = one.run()
    assert (summary["digest"], summary["seen"]) == (digest, 2_000)
    kinds = [row["kind"] for row in one.operate("snapshots", "list")]
    assert "restored" not in kinds, "nothing was"
    refused = [d["command"]["kind"] for d in one.operate("history") if d["command"].get("refused")]
    assert refused == ["rewind", "snapshot"]


@pytest.mark.slow
def test_a_rewind_that_is_rolled_back_leaves_nothing_out(tmp_path):
    """A second one, with the right source, leaves out that one alone."""
    one = Operated(tmp_path)
    good, a, b = events(1_000), events(500, seed=2), events(500, seed=3)
    one.write(good)
    one.run()
    one.append([{**e, "id": f"a{e['id']}", "source": "a"} for e in a])
    one.append([{**e, "id": f"b{e['id']}", "source": "b"} for e in b])
    process = one.running()
    one.operate("restore", "1", "--rewind", "--skip-source", "a", "--yes")
    one.operate("rollback", "--yes")
    one.operate("restore", "1", "--rewind", "--skip-source", "b", "--yes")
    stop(process)
    digest = one.run()["digest"]
    calm = Operated(tmp_path / "calm")
    calm.write(good)
    calm.append([{**e, "id": f"a{e['id']}", "source": "a"} for e in a])
    assert calm.run()["digest"] == digest


@pytest.mark.slow
def test_what_was_unlearned_stays_so_over_a_restore(tmp_path):
    """A version that has learned it can be put back, and a rewind leaves it out again."""
    one = Operated(tmp_path, versions="on_drift = false")
    good, a = events(1_000), events(500, seed=2)
    one.write(good[:500])
    one.run()
    one.append([{**e, "id": f"a{e['id']}", "source": "a"} for e in a])
    one.append(good[500:])
    one.run()
    process = one.running()
    one.operate("restore", "1", "--rewind", "--skip-source", "a", "--yes")
    one.operate("restore", "2", "--yes")
    said = one.call(
        "restore", "2", "--rewind", "--skip-source", "a", "--yes", "--config", "config.toml"
    ).stdout
    assert "version 2 itself has learned 500 events of source a" in said
    one.operate("restore", "1", "--rewind", "--yes")
    stop(process)
    digest = one.run()["digest"]
    calm = Operated(tmp_path / "calm")
    calm.write(good)
    assert calm.run()["digest"] == digest


def test_what_is_live_predicts(tmp_path):
    """After a restore, the newest version is what was put away."""
    one = Operated(tmp_path)
    one.write(events(500))
    one.run()
    one.append([{**e, "id": f"n{e['id']}", "y": not e["y"]} for e in events(500)])
    one.run()
    one.operate("restore", "1", "--yes")
    one.run()
    assert one.operate("snapshots", "list")[-1]["reason"] == "shutdown", "to which it is equal"
    stdin = "".join(json.dumps({"id": e["id"], "x": e["x"]}) + "\n" for e in events(50))
    done = one.call("predict", "--config", "config.toml", stdin=stdin)
    assert {json.loads(line)["version"] for line in done.stdout.splitlines()} == {1}


@pytest.mark.slow
def test_a_frozen_processor_is_not_said_to_be_none(tmp_path):
    """It carries the command out when it goes on."""
    one = Operated(tmp_path)
    one.write(events(500))
    process = one.running()
    one.operate("snapshots", "create")
    process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    said = one.call("restore", "1", "--yes", "--config", "config.toml").stdout
    assert "no processor answers; it will take effect at the next start, or when one that" in said
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: any(d["command"]["kind"] == "restore" for d in one.operate("history")))
    stop(process)


@pytest.mark.slow
def test_history_tells_what_was_live_at_a_time(tmp_path):
    """Per shard, with the reason, and what it was last kept as."""
    one = Operated(tmp_path)
    one.write(events(500))
    before = time.time()
    process = one.running()
    begun = time.time()
    one.operate("snapshots", "create", "--reason", "before the release")
    kept = time.time()
    one.operate("restore", "1", "--yes")
    restored = time.time()
    one.operate("rollback", "--yes")
    stop(process)

    def at(when):
        return one.operate("history", "--at", str(when))["shards"]["000"]

    assert at(before) is None
    assert (at(begun)["version"], at(begun)["kept"]) == (0, None)
    assert (at(kept)["version"], at(kept)["kept"]) == (0, 1)
    assert (at(restored)["version"], at(restored)["kind"]) == (1, "restore")
    assert (at(time.time())["version"], at(time.time())["kind"]) == (1, "rollback")
    table = one.call("history", "--config", "config.toml").stdout
    assert "before the release" in table
    assert "before restore to version 1" in table


@pytest.mark.slow
def test_versions_are_made_when_the_config_says_so(tmp_path):
    """Every so many events, every so many seconds, at drift, at the end, and on request."""
    one = Operated(tmp_path, versions="every_events = 1_000\non_shutdown = false")
    lines = events(2_500)
    one.write(lines[:1_200])
    process = one.running()
    wait_for(lambda: len(one.operate("snapshots", "list")) == 1)
    one.append(lines[1_200:])
    wait_for(lambda: len(one.operate("snapshots", "list")) == 2)
    one.append(poisoned(3_000))
    one.logged("event=drift")
    wait_for(lambda: "drift" in {v["reason"] for v in one.operate("snapshots", "list")})
    stop(process)
    reasons = {v["reason"] for v in one.operate("snapshots", "list")}
    assert reasons == {"schedule", "drift"}
    text = one.config.read_text().replace("every_events = 1_000", "every_seconds = 0.2")
    one.config.write_text(text)
    before = len(one.operate("snapshots", "list"))
    process = one.running()
    one.append(events(50, seed=5))
    wait_for(lambda: len(one.operate("snapshots", "list")) > before)
    stop(process)


def backlog(folder, versions):
    """A project in whose backlog of 9,000 events the concept turns over twice."""
    one = Operated(folder, versions=versions)
    one.write(events(3_000) + poisoned(3_000) + events(3_000, seed=3))
    return one


def test_a_version_for_drift_is_made_at_the_alarm(tmp_path):
    """Also while a backlog is learned: before the next batch, for each drift."""
    one = backlog(tmp_path, "drift_margin = 100\non_shutdown = false")
    one.run()
    alarms = one.output("alarms")
    assert {(alarm["model"], alarm["shard"]) for alarm in alarms} == {("config", "000")}
    made = [v for v in one.operate("snapshots", "list") if v["reason"] == "drift"]
    assert len(made) >= 2
    positions = [alarm["position"] for alarm in alarms]
    for version in made:  # a batch is 256 KiB of such lines, at most
        assert any(p <= version["seen"] <= p + 2_600 for p in positions), version["seen"]
    shown = one.call("history", "--config", "config.toml").stdout
    assert len([line for line in shown.splitlines() if " alarm " in line]) == len(alarms)


def test_versions_are_made_every_so_many_events_of_a_backlog(tmp_path):
    """Of what comes from files as fast as it is learned, each within a few events."""
    one = backlog(tmp_path, "every_events = 1_000\non_drift = false\non_shutdown = false")
    one.run()
    seen = [version["seen"] for version in one.operate("snapshots", "list")]
    gaps = [b - a for a, b in zip([0, *seen], seen, strict=False)]
    assert len(seen) in (8, 9), seen
    assert all(1_000 <= gap <= 1_050 for gap in gaps), gaps


def test_no_version_is_equal_to_the_one_before_it(tmp_path):
    """After a promote, a rewind and a rollback, whatever the schedule asks for."""
    one = Operated(tmp_path, versions="every_events = 500\nkeep = 100")
    lines = events(4_000)
    one.write(lines[:3_000])
    process = one.running()
    first = one.operate("snapshots", "create")["made"][0]
    assert one.operate("snapshots", "create")["made"] == [first]
    for command in (["promote", "1"], ["restore", "1", "--rewind"], ["rollback"], ["restore", "1"]):
        done = one.operate(*command, "--yes")
        assert done["shards"][0]["state"] == "done"
        time.sleep(0.5)  # in which the schedule was confused, ten times over
    one.append(lines[3_000:])
    wait_for(lambda: one.count() == 4_000)
    stop(process)
    digests = [
        one.operate("snapshots", "show", str(v["version"]))["shards"][0]["header"]["digest"]
        for v in one.operate("snapshots", "list")
    ]
    same = [i for i, pair in enumerate(pairwise(digests)) if len({*pair}) < 2]
    assert not same, f"equal to the one after it: {same}"
    assert (
        "not made, it is equal to version" in one.call("history", "--config", "config.toml").stdout
    )


@pytest.mark.slow
def test_nothing_new_makes_no_version(tmp_path):
    """A run that learned nothing leaves no version at its end."""
    one = Operated(tmp_path)
    one.write(events(100))
    one.run()
    one.run()
    assert [v["version"] for v in one.operate("snapshots", "list")] == [1]


@pytest.mark.slow
def test_shards_make_one_version_together_and_are_restored_together(tmp_path):
    """Of three shards in two processes, each with its part, at its position."""
    one = Operated(tmp_path, source='shards = "partition"\n')
    one.config.write_text(one.config.read_text().replace("events.jsonl", "in"))
    (tmp_path / "in").mkdir()
    lines = events(3_000)
    for i in range(3):
        one.write(lines[i::3], name=f"in/{i}.jsonl")
    summary = one.run("--processes", "2")
    versions = one.operate("snapshots", "list")
    assert [v["shards"] for v in versions] == [["000", "001", "002"]]
    for i in range(3):
        one.append(poisoned(500, seed=i), name=f"in/{i}.jsonl")
    one.run("--processes", "2")
    one.operate("restore", "1", "--yes")
    assert one.run("--processes", "2")["digest"] == summary["digest"]
    shown = one.operate("snapshots", "show", "1")
    assert {p["shard"]: p["header"]["digest"] for p in shown["shards"]} == summary["digest"]
    refusal = one.refused("predict", "--version", "1")
    assert "several shards, 000, 001, 002" in refusal
    one.write(events(100), name="in/3.jsonl")
    one.run()
    refusal = one.refused("restore", "1", "--yes")
    assert "version 1 has 3 shards (000, 001, 002), and the model has 4 shards" in refusal


@pytest.mark.slow
def test_what_cannot_be_restored_is_refused_before_anything_is_done(tmp_path):
    """Each reason is one clear line, and no command is given."""
    one = Operated(tmp_path)
    one.write(events(500))
    assert "there is no registry" in one.refused("restore", "1", "--yes")
    one.run()
    one.append(events(10, seed=3))  # of which a later version tells that it was read
    one.run()
    given = len(one.operate("history"))
    assert "there is no version 9" in one.refused("restore", "9", "--yes")
    assert "no drift was seen" in one.refused("restore", "--before-drift", "--yes")
    assert "no version of before" in one.refused("restore", "--before", "2020-01-01", "--yes")
    assert "nothing to go back to" in one.refused("rollback", "--yes")
    assert "--yes goes on" in one.refused("restore", "1")
    assert "allowed: FILE:FROM-TO" in one.refused(
        "restore", "1", "--rewind", "--skip-range", "x", "--yes"
    )
    assert "was never learned from" in one.refused(
        "restore", "1", "--rewind", "--skip-range", "x.jsonl:1-2", "--yes"
    )
    (tmp_path / "events.jsonl").rename(tmp_path / "gone")
    assert "is gone" in one.refused("restore", "1", "--rewind", "--yes")
    (tmp_path / "gone").rename(tmp_path / "events.jsonl")
    models = (tmp_path / "models.py").read_text()
    (tmp_path / "models.py").write_text(models.replace("LogisticRegression()", "PAClassifier()"))
    assert "is of another model" in one.refused("restore", "1", "--yes")
    (tmp_path / "models.py").write_text(models)
    part = tmp_path / "state/artifacts/config/00000001/000/learner.zst"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + b"x")
    assert "learner.zst is damaged" in one.refused("restore", "1", "--yes")
    done = one.call("snapshots", "verify", "--config", "config.toml")
    assert (done.returncode, "damaged" in done.stdout) == (1, True)
    assert one.operate("snapshots", "verify", "1", code=1)["1"]
    part.write_bytes(data)
    shutil.move(tmp_path / "state/shards/000", tmp_path / "away")
    assert len(one.operate("history")) == given
    shutil.move(tmp_path / "away", tmp_path / "state/shards/000")
    assert one.operate("restore", "1", "--yes")["command"]


def test_a_version_that_is_damaged_later_is_refused_by_the_shard(tmp_path):
    """Nothing is half applied: the model stays as it is, and the history says why."""
    one = Operated(tmp_path)
    one.write(events(500))
    digest = one.run()["digest"]
    one.operate("restore", "1", "--yes")
    part = tmp_path / "state/artifacts/config/00000001/000/learner.zst"
    part.write_bytes(b"not what was written")
    summary = one.run()
    assert summary["digest"] == digest
    (refusal,) = [
        d["command"]["refused"] for d in one.operate("history") if d["command"].get("refused")
    ]
    assert "learner.zst is damaged" in refusal


@pytest.mark.slow
def test_learning_goes_on_while_the_registry_cannot_be_used(tmp_path):
    """It is told once, nothing is lost, and versions come when it is there again."""
    one = Operated(tmp_path, versions="on_shutdown = false")
    lines = events(2_000)
    one.write(lines[:1_000])
    process = one.running()
    one.operate("snapshots", "create")
    blocker = sqlite3.connect(tmp_path / "state" / "registry.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    one.append(lines[1_000:])
    wait_for(lambda: one.count() == 2_000)
    one.logged("registry_unavailable")
    assert "is locked by another process" in one.refused("restore", "1", "--yes")
    blocker.execute("ROLLBACK")
    blocker.close()
    one.logged("registry_available")
    assert one.operate("restore", "1", "--yes")["shards"][0]["state"] == "done"
    stop(process)


@pytest.mark.slow
def test_a_registry_that_was_lost_is_begun_anew(tmp_path):
    """Its numbers go on where the journals are, so that no command is taken for an old one."""
    one = Operated(tmp_path)
    one.write(events(500))
    one.run()
    one.operate("restore", "1", "--yes")
    one.run()
    for path in (tmp_path / "state").glob("registry.db*"):
        path.unlink()
    shutil.rmtree(tmp_path / "state" / "artifacts")
    one.append(events(100, seed=4))
    process = one.running()
    made = one.operate("snapshots", "create")
    assert made["made"][0] > 2
    one.operate("restore", str(made["made"][0]), "--yes")
    stop(process)


def test_predict_with_a_version_from_the_shell(tmp_path):
    """Events from standard input give predictions as that version makes them."""
    one = Operated(tmp_path)
    lines = events(600)
    one.write(lines[:500])
    one.run()
    stdin = "".join(json.dumps({"id": e["id"], "x": e["x"]}) + "\n" for e in lines[500:])
    done = one.call("predict", "--version", "1", "--config", "config.toml", stdin=stdin)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [p["id"] for p in said] == [e["id"] for e in lines[500:]]
    assert sum(p["y_pred"] == e["y"] for p, e in zip(said, lines[500:], strict=True)) > 80
    assert {p["version"] for p in said} == {1}
    again = one.call("predict", "--config", "config.toml", stdin=stdin + "{}x\n")
    assert again.returncode == 1
    assert again.stdout == done.stdout
    assert "event=rejected" in again.stderr


@pytest.mark.slow
def test_tagged_versions_outlive_a_prune(tmp_path):
    """And a dry run says what a prune does, before it does it."""
    one = Operated(tmp_path, versions="prune = false")
    for i in range(4):
        one.append(events(100, seed=i))
        one.run()
    one.operate("tag", "1", "release")
    options = ("--keep", "1", "--keep-hours", "0", "--keep-days", "0")
    dry = one.operate("snapshots", "prune", "--dry-run", *options)
    assert dry == {
        "kept": {"1": ["tagged release"], "4": ["one of the last 1"]},
        "goes": [2, 3],
        "of_last_24_hours": [2, 3],
        "removed": [],
    }
    said = one.call("snapshots", "prune", "--dry-run", *options, "--config", "config.toml").stdout
    assert "version 3: goes, though it is of the last 24 hours; the next older one" in said
    assert len(one.operate("snapshots", "list")) == 4
    assert one.operate("snapshots", "prune", "--yes", *options)["removed"] == [2, 3]
    assert [v["version"] for v in one.operate("snapshots", "list")] == [1, 4]
    assert "was removed by prune" in one.refused("restore", "2", "--yes")
    assert sorted(p.name for p in (tmp_path / "state/artifacts/config").iterdir()) == [
        "00000001",
        "00000004",
        "identity",
    ]


@pytest.mark.slow
def test_versions_can_be_signed(tmp_path):
    """With a key, a version that is not signed with it is refused; the key is never shown."""
    one = Operated(tmp_path)
    one.write(events(100))
    one.run()
    one.config.write_text(
        one.config.read_text().replace("[versions]", '[versions]\nkey = "very secret"')
    )
    refusal = one.refused("restore", "1", "--yes")
    assert "not signed" in refusal
    one.append(events(100, seed=3))
    one.run()
    assert one.operate("restore", "2", "--yes")["command"]
    one.config.write_text(one.config.read_text().replace("very secret", "another one"))
    refusal = one.refused("restore", "2", "--yes")
    assert "signed with another key" in refusal
    assert "secret" not in refusal


@pytest.mark.slow
def test_a_diff_says_what_changed(tmp_path):
    """Metrics side by side, and what was learned."""
    one = Operated(tmp_path)
    one.write(events(500))
    one.run()
    one.append(poisoned(200))
    one.run()
    found = one.operate("snapshots", "diff", "1", "2")
    assert found["changes"]["learner"] == []
    assert any("events" in line for line in found["changes"]["data"])
    before, after = found["metrics"]["000"]["accuracy"]
    assert after < before
    table = one.call("snapshots", "diff", "1", "2", "--config", "config.toml").stdout
    assert "accuracy.window" in table


def test_a_run_without_versions_has_no_registry(tmp_path):
    """With versions.enabled = false nothing of it is made, and commands say what is missing."""
    one = Operated(tmp_path, versions="enabled = false")
    one.write(events(100))
    one.run()
    assert not (tmp_path / "state" / "registry.db").exists()
    assert "there is no registry" in one.refused("snapshots", "list")
    assert "versions are switched off" in one.refused("pause", "--yes")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["in", "in/*.jsonl"])
def test_files_of_a_folder_are_rewound(tmp_path, path):
    """Also where one that was consumed before the version is gone, and another came after it."""
    one = Operated(tmp_path)
    one.config.write_text(one.config.read_text().replace("events.jsonl", path))
    (tmp_path / "in").mkdir()
    lines = events(900)
    one.write(lines[:300], name="in/a.jsonl")
    one.write(lines[300:500], name="in/b.jsonl")
    one.run()
    one.append(lines[500:600], name="in/b.jsonl")
    one.write(lines[600:], name="in/c.jsonl")
    one.run()
    (tmp_path / "in/a.jsonl").unlink()
    one.operate("restore", "1", "--rewind", "--skip-range", "c.jsonl:1-100", "--yes")
    digest = one.run()["digest"]
    assert not [d for d in one.operate("history") if d["command"].get("refused")]
    calm = Operated(tmp_path / "calm")
    calm.write(lines[:600] + lines[700:])
    assert calm.run()["digest"] == digest
    (tmp_path / "in/b.jsonl").unlink()
    refusal = one.refused("restore", "1", "--rewind", "--yes")
    assert refusal.startswith("b.jsonl: ")
    assert "it is gone" in refusal
