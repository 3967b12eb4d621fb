"""Runs whose learner raises, or predicts nothing that is finite: rejected, or stopped and told."""

import json
import random
import re

import pytest
from project import Project, events

from midstream.engine.shard.outcome import EventError
from midstream.flows.loading import load
from midstream.flows.offline import evaluation
from midstream.flows.running import online
from midstream.flows.running.errors import FailingError

FRAGILE = """
from river import linear_model, preprocessing

class Scaler(preprocessing.StandardScaler):
    def learn_one(self, x):
        super().learn_one(x)            # half updated when it raises
        if x["f0"] == 13.0:
            raise ValueError("unlucky number")

def make():
    return Scaler() | linear_model.LogisticRegression()
"""
NAN = """
from river import base

class Diverges(base.Regressor):
    def __init__(self):
        self.n = 0
    def learn_one(self, x, y):
        self.n += 1
    def predict_one(self, x):
        return float("nan") if self.n >= 2_000 else 1.0

def make():
    return Diverges()
"""
REJECT = 'on_error = "reject"\n[input]\npath = "events.jsonl"\n'


def project(folder, share, n=400, config=REJECT, model=FRAGILE):
    """Return a project with so many events, of which a share is of those that are raised on."""
    made = Project(folder, model=model, config=config)
    rng = random.Random(3)
    lines = events(n)
    for event in lines:
        if rng.random() < share:
            event["x"]["f0"] = 13.0
        elif rng.random() < share:
            event["x"]["f1"] = "n/a"
    made.write(lines)
    return made, lines


def odd(event):
    return event["x"]["f0"] == 13.0 or event["x"]["f1"] == "n/a"


def run(made):
    return online.run(load(made.config), until_eof=True)


def change(made, old, new):
    text = made.config.read_text()
    assert old in text
    made.config.write_text(text.replace(old, new))


def test_a_learner_that_raises_on_all_it_gets_stops_the_run(tmp_path):
    """Exit code 1 and one line, until all is rejected, each event once; and then, too."""
    made, lines = project(tmp_path, 1.0)
    failed = made.call("run", "config.toml", "--until-eof", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"] == failed.stderr.splitlines()[-1][11:]
    assert re.search(
        r"the learner raised on 1\d\d of the last 1\d\d events \(model.error_limit = 0.5\); first: "
        r"events.jsonl:1: ValueError: unlucky number; last: events.jsonl:1\d\d: ValueError: "
        r"unlucky number; nothing more is learned until the learner or the input is mended, or the "
        r"limit is raised",
        failed.stderr.splitlines()[-1],
    )
    found = [len(made.output("rejected"))]
    while len(found) < 2 or found[-1] > found[-2]:
        with pytest.raises(FailingError):
            run(made)
        found.append(len(made.output("rejected")))
    assert 3 <= len(found) < 7, "it goes on"
    rejected = [r["origin"][2] for r in made.output("rejected")]
    assert rejected == list(range(1, len(lines) + 1))
    with pytest.raises(FailingError, match=r"of the last 400 events .*; before this run; nothing"):
        run(made)
    change(made, '"reject"', '"reject"\nerror_limit = 1')
    assert run(made).events == 0


@pytest.mark.parametrize("processes", [(), ("--processes", "1")])
def test_input_that_is_mostly_rejected_is_no_good_run(tmp_path, processes):
    """What is sound in it is learned; the exit code is 1 all the same, also of `evaluate`."""
    made = Project(tmp_path)
    sound = "".join(json.dumps(event) + "\n" for event in events(40))
    (tmp_path / "events.jsonl").write_text(sound + "{\n" * 41)
    said = r"41 of 81 events of this run were rejected \(model.error_limit = 0.5\); "
    for command in (("run", "--until-eof", *processes), ("evaluate",)):
        failed = made.call(*command, "config.toml", "--json")
        assert failed.returncode == 1
        assert re.match(said, json.loads(failed.stdout)["error"])
        assert re.search(said, failed.stderr.splitlines()[-1])
    assert len(made.output("predictions")) == 40
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write("{\n" * 3)  # few, beside what was learned
    assert made.run()["rejected"] == 3
    (tmp_path / "events.jsonl").write_text(sound + "{\n" * 40)
    assert made.call("evaluate", "config.toml").returncode == 0
    (tmp_path / "events.jsonl").write_text("{\n")
    assert made.call("evaluate", "config.toml").returncode == 1


def test_a_run_goes_on_once_the_input_is_well(tmp_path):
    """What was failed on before is not held against what comes."""
    made, lines = project(tmp_path, 1.0, n=20)
    with pytest.raises(FailingError, match="raised on 20 of the last 20 events"):
        run(made)
    with pytest.raises(FailingError):
        run(made)
    made.write([*lines, *events(30)])
    assert run(made).learned == 30
    assert run(made).events == 0
    made.write([*lines, *events(30), *lines[:2]])
    with pytest.raises(FailingError, match="raised on 2 of the last 2 events"):
        run(made)
    assert len(made.output("rejected")) == 22


@pytest.mark.parametrize("share", [0.01, 0.4])
def test_what_is_rejected_leaves_no_trace(share, tmp_path):
    """State and predictions are those of a stream without it; `evaluate` finds the same."""
    made, lines = project(tmp_path / "a", share / 2, n=3_000)
    summary = run(made)
    bad = [i for i, event in enumerate(lines) if odd(event)]
    assert len(bad) > 10
    assert [r["origin"][2] - 1 for r in made.output("rejected")] == bad
    clean, _ = project(tmp_path / "b", 0.0)
    clean.write([event for event in lines if not odd(event)])
    calm = run(clean)
    assert (summary.digest, summary.metrics) == (calm.digest, calm.metrics)
    found, trainer = evaluation.evaluate(load(made.config))
    assert found.digest == calm.digest
    assert (found.rejected, trainer.learned) == (len(bad), summary.learned)


def test_each_rejected_event_is_journaled_with_the_range_it_is_in(tmp_path):
    """Of one commit, in one record; a journal of them is read again as it was meant."""
    made, lines = project(tmp_path, 0.05, n=600)
    change(made, "[input]", "[state]\nsnapshot_seconds = 1e9\n[input]")
    run(made)
    folder = made.folder / "state" / "shards" / "000"
    (journal,) = folder.glob("journal-*")
    records = [json.loads(line[9:]) for line in journal.read_bytes().splitlines()]
    kinds = ["".join(e["entry"][0] for e in r["entries"]) for r in records]
    assert sum(kind.count("e") for kind in kinds) == sum(map(odd, lines))
    assert all(re.fullmatch(r"(e+r+|r*|c)", kind) for kind in kinds), kinds
    for snapshot in folder.glob("snapshot-*"):
        snapshot.unlink()
    with_snapshot = evaluation.evaluate(load(made.config))[0].digest
    assert run(made).digest == with_snapshot


def test_a_learner_that_predicts_what_is_not_finite_stops_the_run(tmp_path):
    """Whatever on_error says, and `evaluate` too."""
    made = Project(tmp_path, model=NAN, task="regression")
    made.write([{**event, "y": 1.0} for event in events(6_000)])
    line = (
        r"predicted nan or infinity for [\d,]+ of the last 1,000 events .*: events.jsonl:\d+: nan"
    )
    with pytest.raises(FailingError, match=line):
        run(made)
    with pytest.raises(FailingError, match=line):
        evaluation.evaluate(load(made.config))


@pytest.mark.parametrize("evaluates", [False, True])
def test_few_events_that_are_all_raised_on_are_no_good_run(evaluates, tmp_path):
    """Also where they are too few to be judged meanwhile."""
    made, _ = project(tmp_path, 1.0, n=3)
    with pytest.raises(FailingError, match="raised on 3 of the last 3 events"):
        evaluation.evaluate(load(made.config)) if evaluates else run(made)


def test_advice_is_given_for_an_odd_event_only(tmp_path):
    """Not where the learner raises on all that comes."""
    stop = '[input]\npath = "events.jsonl"\n'
    made, lines = project(tmp_path / "a", 1.0, config=stop)
    found = r"ValueError: unlucky number; so it did on 50 of 50 events tried after it$"
    with pytest.raises(EventError, match=found):
        evaluation.evaluate(load(made.config))
    with pytest.raises(EventError, match=r"; so it did on \d+ of \d+ events tried after it$"):
        run(made)
    made.write(lines[:1])
    with pytest.raises(EventError, match=r"ValueError: unlucky number$"):
        run(made)
    made, lines = project(tmp_path / "b", 0.0, config=stop)
    for place in (0, 300):
        lines[place]["x"]["f0"] = 13.0
    made.write(lines)
    advice = 'model.on_error = "reject" goes on without such events$'
    with pytest.raises(EventError, match=f"events.jsonl:1: .*; {advice}"):
        evaluation.evaluate(load(made.config))
    made.write([*lines[1:], *lines[1:300]])
    with pytest.raises(EventError, match=f"events.jsonl:300: .*; {advice}"):
        run(made)


@pytest.mark.slow
def test_killed_while_events_are_rejected_nothing_is_lost_and_nothing_rejected_twice(tmp_path):
    """After 15 kills all is equal to what a run gives that was left alone."""
    config = 'on_error = "reject"\n[input]\npath = "events.jsonl"\n[state]\n'
    config += "snapshot_events = 5000\ncommit_seconds = 0.02\n"
    calm, lines = project(tmp_path / "calm", 0.01, n=60_000, config=config)
    killed, _ = project(tmp_path / "killed", 0.01, n=60_000, config=config)
    expected = run(calm)
    whole = (calm.folder / "out" / "rejected.jsonl").stat().st_size
    killed.kill_along(15, whole, random.Random(5), "rejected")
    got = run(killed)
    assert got.digest == expected.digest
    assert got.metrics == expected.metrics
    assert got.learned < expected.learned, "the last run did not resume"
    for kind in ("predictions", "rejected"):
        name = f"{kind}.jsonl"
        assert (killed.folder / "out" / name).read_bytes() == (
            calm.folder / "out" / name
        ).read_bytes()
    assert [r["origin"][2] - 1 for r in killed.output("rejected")] == [
        i for i, event in enumerate(lines) if odd(event)
    ]


def test_a_supervisor_stops_all_where_one_fails_on_too_much(tmp_path):
    """It would be started again for ever otherwise."""
    config = 'on_error = "reject"\n[input]\npath = "in"\nshards = "partition"\n'
    made = Project(tmp_path, model=FRAGILE, config=config)
    (tmp_path / "in").mkdir()
    lines = events(200)
    made.write(lines, "in/a.jsonl")
    for event in lines:
        event["x"]["f0"] = 13.0
    made.write(lines, "in/b.jsonl")
    failed = made.call("run", "config.toml", "--processes", "2")
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert "midstream: process 1: shard 001: the learner raised on 1" in last
    assert failed.stderr.count("event=process_started") == 2
