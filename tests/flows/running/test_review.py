"""Events that expire without a label go to an output of their own, where the policy reviews."""

import json
import re

import pytest
from project import Project

from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load
from midstream.flows.running import online, shard_process

FEEDBACK = '[feedback]\npath = "labels.jsonl"\norder = "exact"\nwindow_seconds = 50\n'


def project(folder, policy='on_expiry = "review"\n', more=""):
    """Return a project whose events come each second; every third gets a label, 10 s later."""
    made = Project(folder, config=FEEDBACK + policy + more)
    made.write({"id": f"e{i}", "x": {"a": i % 7}, "ts": 1000 + i} for i in range(300))
    made.write(
        ({"id": f"e{i}", "y": i % 7 > 3, "ts": 1010 + i} for i in range(0, 300, 3)), "labels.jsonl"
    )
    return made


def test_expired_events_are_written_with_their_features_and_prediction(tmp_path):
    """Each line has the event and what was predicted for it; none had a label, none is twice."""
    made = project(tmp_path)
    summary = made.run()
    lines = made.output("review")
    expired = int(summary["metrics"]["feedback.expired"])
    assert len(lines) == expired > 150
    assert [line["id"] for line in lines] == [f"e{i}" for i in range(300) if i % 3][:expired]
    predicted = {line["id"]: line for line in made.output("predictions")}
    for line in lines:
        number = int(line["id"][1:])
        assert list(line) == ["id", "x", "y_pred", "y_proba", "ts"]
        assert (line["x"], line["ts"]) == ({"a": number % 7}, 1000 + number)
        assert line["y_pred"] == predicted[line["id"]]["y_pred"]
        assert line["y_proba"] == predicted[line["id"]]["y_proba"]


def test_a_killed_run_writes_each_of_them_once(tmp_path):
    """After kills the file has the same bytes as after one run."""
    whole = project(tmp_path / "whole")
    whole.run()
    killed = project(tmp_path / "killed")
    for name in ("events.jsonl", "labels.jsonl"):  # they come in two parts
        path = killed.folder / name
        lines = path.read_text().splitlines(keepends=True)
        (killed.folder / f"{name}.rest").write_text("".join(lines[len(lines) // 2 :]))
        path.write_text("".join(lines[: len(lines) // 2]))
    process = killed.running()
    process.kill()
    process.wait()
    for name in ("events.jsonl", "labels.jsonl"):
        with (killed.folder / name).open("a") as file:
            file.write((killed.folder / f"{name}.rest").read_text())
    killed.run()
    assert killed.output("review") == whole.output("review")


@pytest.mark.parametrize(
    ("policy", "more"),
    [('on_expiry = "drop"\n', ""), ('on_expiry = "review"\n', "[output]\nreview = false\n")],
)
def test_nothing_is_written_unless_asked_for(policy, more, tmp_path):
    """Another policy, or `output.review = false`, makes no file."""
    made = project(tmp_path, policy, more)
    assert made.run()["metrics"]["feedback.expired"] > 150
    assert not (tmp_path / "out" / "review.jsonl").exists()


def test_fresh_archives_it_with_the_other_outputs(tmp_path):
    """The file of the old state lies in the archive, and the new one restarts."""
    made = project(tmp_path)
    made.run()
    before = (tmp_path / "out" / "review.jsonl").read_bytes()
    made.run("--fresh")
    assert (tmp_path / "out" / "review.jsonl").read_bytes() == before
    [archived] = tmp_path.glob("state/archived-*/review.jsonl")
    assert archived.read_bytes() == before


def test_a_state_of_before_goes_on_with_it(tmp_path):
    """The output begins where the policy is changed to review; what expired before is not in it."""
    made = project(tmp_path, 'on_expiry = "drop"\n')
    assert made.run()["metrics"]["feedback.expired"] > 150
    text = made.config.read_text().replace('"drop"', '"review"')
    made.config.write_text(text)
    with (tmp_path / "events.jsonl").open("a") as file:
        for i in range(300, 500):
            file.write(json.dumps({"id": f"e{i}", "x": {"a": i % 7}, "ts": 1000 + i}) + "\n")
    with (tmp_path / "labels.jsonl").open("a") as file:
        for i in range(300, 500, 3):
            file.write(json.dumps({"id": f"e{i}", "y": i % 7 > 3, "ts": 1010 + i}) + "\n")
    made.run("--amend")
    ids = [int(line["id"][1:]) for line in made.output("review")]
    assert ids == [i for i in range(min(ids), max(ids) + 1) if i % 3]
    assert 240 < min(ids) < 270
    assert 430 < max(ids) < 470


def test_topics_are_checked_with_the_other_outputs(tmp_path):
    """A file beside topics is refused where the policy reviews; a topic needs that policy."""
    topics = 'predictions = "p"\nrejected = false\nalarms = false\n'
    kafka = '[kafka]\n"bootstrap.servers" = "127.0.0.1:1"\n'
    made = project(tmp_path, more=f"[output]\n{topics}{kafka}")
    with pytest.raises(ConfigError, match=r"output\.review: it goes to a file, while predictions"):
        load(made.config)
    made = project(tmp_path, more=f'[output]\nreview = "r"\n{topics}{kafka}')
    settings = load(made.config)
    assert settings.output.topics == {"predictions": "p", "review": "r"}
    assert settings.outputs == ["predictions", "review"]
    made = project(tmp_path, "", more=f"[output]\n{topics}{kafka}")
    assert load(made.config).outputs == ["predictions"]
    made = project(tmp_path, "", more=f'[output]\nreview = "r"\n{topics}{kafka}')
    with pytest.raises(ConfigError, match=r"output\.review: a topic is for feedback\.on_expiry"):
        load(made.config)


def test_the_counts_are_in_the_log_and_the_summary(tmp_path):
    """The closing line of the log and a table of the summary say what became of all events."""
    made = project(tmp_path)
    done = made.call("run", "config.toml", "--until-eof")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "event=feedback" in line]
    told = dict(field.split("=") for field in line.split())
    expired = len(made.output("review"))
    assert (told["joined"], told["expired"], told["late"]) == ("100", str(expired), "0")
    assert int(told["waiting"]) == 300 - 100 - expired
    assert float(told["coverage"]) == round(100 / (100 + expired), 4)
    rows = re.findall(r"^│ (.+?) +│ (.+?) +│$", done.stdout, re.MULTILINE)
    assert {("joined", "100"), ("expired", str(expired))} <= set(rows)
    assert "by_prediction.accuracy" in done.stdout


def test_progress_tells_of_the_join(tmp_path, monkeypatch, caplog):
    """A line of progress has the counts of the join beside those of the run."""
    monkeypatch.setattr(shard_process, "_REPORT_SECONDS", 0.0)
    made = project(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level("INFO", logger="midstream"):
        online.run(load(made.config), until_eof=True)
    told = [r.fields for r in caplog.records if r.getMessage() == "progress"]
    assert told[-1]["joined"] > 0
    assert {"waiting", "expired", "late", "dangling", "coverage"} <= told[-1].keys()


@pytest.mark.parametrize("on_error", ["stop", "reject"])
def test_evaluate_counts_and_scores_as_a_run(on_error, tmp_path):
    """Events, labels learned, rejected feedback, metrics and digest are those of a new run."""
    made = project(tmp_path)
    with (tmp_path / "labels.jsonl").open("a") as file:
        file.write('{"id": "e1", "y": true, "ts": 1310}\n{"id": "e3", "y": "odd", "ts": 1311}\n')
    text = made.config.read_text().replace('"binary"', f'"binary"\non_error = "{on_error}"')
    made.config.write_text(text)
    ran = made.run()
    found = json.loads(made.call("evaluate", "config.toml", "--json").stdout)
    for name in ("events", "learned", "rejected", "predictions", "metrics", "digest"):
        assert found[name] == ran[name], name
    assert (ran["events"], ran["learned"], ran["rejected"]) == (300, 100, 2)


@pytest.mark.slow
def test_topics_are_made_and_expired_events_go_to_theirs_once(topics, kafka, topic):
    """`init-topics` makes those of feedback and review; killed in between, each event is once."""
    labels, review = topic("labels"), topic("review")
    more = f'---\n[feedback]\ntopic = "{labels}"\nwindow_seconds = 50\non_expiry = "review"\n'
    one = topics("one", partitions=2, config=more)
    text = one.project.config.read_text().replace("[output]\n", f'[output]\nreview = "{review}"\n')
    one.project.config.write_text(text)
    checked = one.project.call("check", "config.toml")
    assert f"{review}" in checked.stdout, checked
    made = json.loads(one.project.call("init-topics", "config.toml", "--json").stdout)
    assert (made[labels], made[review]) == ("created", "created")
    events = [
        {"id": f"e{i}", "x": {f"f{j}": i % 7 for j in range(5)}, "ts": 1000 + i} for i in range(600)
    ]

    def produce(first, last):
        part = events[first:last]
        kafka.produce(
            one.source, [(None, json.dumps(e).encode(), int(e["id"][1:]) % 2) for e in part]
        )
        got = [{"id": e["id"], "y": True, "ts": e["ts"] + 10} for e in part if e["ts"] % 3 == 0]
        kafka.produce(labels, [(None, json.dumps(e).encode(), int(e["id"][1:]) % 2) for e in got])

    produce(0, 300)
    process = one.project.running()
    process.kill()
    process.wait()
    produce(300, 600)
    ran = one.project.run()
    ids = [json.loads(message.value)["id"] for message in kafka.read_all(review)]
    expired = sum(v for k, v in ran["metrics"].items() if k.endswith("feedback.expired"))
    assert len(set(ids)) == len(ids) == expired > 300
    unlabelled = {e["id"] for e in events if e["ts"] % 3}
    assert set(ids) <= unlabelled
    told = one.project.call("feedback", "show", ids[0], "--config", "config.toml")
    assert told.stdout.startswith(f"{ids[0]}: expired, ")
    assert f"review: topic {review} was not read" in told.stdout
