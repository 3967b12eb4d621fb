"""`midstream run` as a process on real files: resume, follow, refuse, reject, stop."""

import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from project import MODEL, PATIENCE, Project, events, stop, wait_for

from midstream.connectors.files.input import FileInput
from midstream.connectors.input import InputError


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def test_a_second_run_goes_on_where_the_first_ended(project):
    """What was learned is not learned again; new events are, as if there had been one run."""
    lines = events(3000)
    project.write(lines[:2000])
    first = project.run()
    assert (first["learned"], first["predictions"], first["rejected"]) == (2000, 2000, 0)
    project.write(lines)
    second = project.run()
    assert second["learned"] == 1000
    whole = Project(project.folder / "whole")
    whole.write(lines)
    assert whole.run()["digest"] == second["digest"]
    assert [p["id"] for p in project.output("predictions")] == [e["id"] for e in lines]


def test_evaluate_gives_the_digest_and_metrics_of_run_and_writes_nothing(project):
    """`evaluate` is the same Trainer without journal, snapshots and outputs."""
    project.write(events(2000))
    done = project.call("evaluate", "config.toml", "--json")
    evaluated = json.loads(done.stdout)
    assert not (project.folder / "out").exists()
    assert not (project.folder / "state").exists()
    ran = project.run()
    assert ran["digest"] == evaluated["digest"]
    assert ran["metrics"] == evaluated["metrics"]


def test_the_json_summary_is_all_there_is_on_standard_output(project):
    """With --json standard output is one JSON object with the keys of the contract."""
    project.write(events(50))
    done = project.call("run", "config.toml", "--until-eof", "--json")
    assert set(json.loads(done.stdout)) == {
        "events", "learned", "rejected", "not_joined", "predictions", "alarms", "non_finite",
        "too_large", "seconds", "events_per_second", "metrics", "digest", "seen", "resumed_at",
    }  # fmt: skip
    assert "event=running" in done.stderr


def test_what_is_of_this_run_and_what_of_all_runs_is_told_apart(project):
    """Counts are of this run, metrics of all that the model has seen; both summaries say so."""
    project.write(events(1200))
    first = project.run()
    assert (first["events"], first["seen"], first["resumed_at"]) == (1200, 1200, 0)
    project.write(events(1500))
    done = project.call("run", "config.toml", "--until-eof")
    assert done.returncode == 0, done.stderr
    this, ever = done.stdout.split("since the model began (1,500 events)")
    assert "config, this run:" in this
    assert re.search(r"events\W+300\b", this)
    assert "accuracy" in ever
    third = project.run()
    assert (third["events"], third["seen"], third["resumed_at"]) == (0, 1500, 1500)
    evaluated = json.loads(project.call("evaluate", "config.toml", "--json").stdout)
    assert (evaluated["events"], evaluated["seen"], evaluated["resumed_at"]) == (1500, 1500, 0)


def test_a_run_that_was_killed_counts_what_it_had_committed_as_seen_before(tmp_path):
    """What the journal gives back was seen before this run, though no snapshot has it."""
    project = Project(tmp_path, config="[state]\ncommit_seconds = 0.01\n")
    project.write(events(5_000))
    process = project.running()
    project.until_recorded()
    process.kill()
    process.communicate()
    project.write(events(8_000))
    got = project.run()
    assert (got["resumed_at"], got["events"], got["seen"]) == (5_000, 3_000, 8_000)


def test_predictions_have_the_wire_form(project):
    """A prediction carries id, model, version, role, label, probabilities, time and origin."""
    project.write([{**e, "ts": 5.0 + i} for i, e in enumerate(events(3))])
    project.run()
    first = project.output("predictions")[0]
    assert first == {
        "id": "e0", "model": "config", "version": 0, "role": "champion", "y_pred": False,
        "y_proba": {"false": 0.5, "true": 0.5}, "ts": 5.0, "origin": ["events.jsonl", 0, 1],
    }  # fmt: skip


def test_bad_lines_go_to_rejected_and_the_rest_is_learned_as_if_they_were_not_there(project):
    """Bad input never stops the stream and never trains."""
    lines = events(400)
    mixed: list = list(lines)
    bad = ["{", "null", '{"x": {"f0": NaN}, "y": true}', '{"id": "q", "y": true}', "\x00\x01",
           '{"x": {"f0": 1}, "y": "perhaps"}', '{"x": {"f0": 1, "f0": 2}, "y": true}']  # fmt: skip
    for i, line in enumerate(bad):
        mixed.insert(40 * (i + 1), line)
    project.write(mixed)
    got = project.run()
    assert (got["learned"], got["rejected"]) == (400, len(bad))
    assert [r["origin"][2] for r in project.output("rejected")] == [
        40 * (i + 1) + 1 for i in range(len(bad))
    ]
    clean = Project(project.folder / "clean")
    clean.write(lines)
    assert clean.run()["digest"] == got["digest"]


def test_an_event_without_label_is_predicted_and_not_learned(project):
    """A prediction request gets its prediction and leaves the model alone."""
    lines = events(200)
    asked = [*lines[:100], {"id": "ask", "x": lines[5]["x"]}, *lines[100:]]
    project.write(asked)
    got = project.run()
    assert (got["events"], got["learned"], got["predictions"]) == (201, 200, 201)
    assert project.output("predictions")[100]["id"] == "ask"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_snapshots_and_exits_0(project, number):
    """SIGTERM and SIGINT end a following run cleanly; the next one has nothing to replay."""
    project.write(events(500))
    process = project.start("run", "config.toml", "--json")
    wait_for(lambda: len(project.output("predictions")) == 500, what="500 predictions")
    code, out, err = stop(process, number)
    assert code == 0, err
    assert json.loads(out)["learned"] == 500
    assert "Traceback" not in err
    again = project.call("run", "config.toml", "--until-eof", "--json")
    assert json.loads(again.stdout)["events"] == 0
    assert "replay" not in again.stderr


def test_a_growing_file_is_followed_and_its_unfinished_line_waits(project):
    """Events are learned as they are appended; half a line waits for its other half."""
    lines = [json.dumps(e) for e in events(300)]
    path = project.write(lines[:100])
    process = project.start("run", "config.toml", "--json")
    wait_for(lambda: len(project.output("predictions")) == 100, what="the first 100")
    with path.open("a") as file:
        file.write("\n".join(lines[100:200]) + "\n" + lines[200][:30])
        file.flush()
        wait_for(lambda: len(project.output("predictions")) == 200, what="the next 100")
        file.write(lines[200][30:] + "\n")
    wait_for(lambda: len(project.output("predictions")) == 201, what="the finished line")
    code, out, _ = stop(process)
    assert code == 0
    assert (json.loads(out)["learned"], json.loads(out)["rejected"]) == (201, 0)


def test_a_new_file_in_a_followed_folder_is_taken_up(tmp_path):
    """A file that appears while the folder is followed is read too."""
    project = Project(tmp_path, config='[input]\npath = "in"\n')
    (tmp_path / "in").mkdir()
    project.write(events(50), "in/day1.jsonl")
    process = project.start("run", "config.toml", "--json")
    wait_for(lambda: len(project.output("predictions")) == 50, what="the first file")
    project.write(events(70, seed=2), "in/day2.jsonl")
    wait_for(lambda: len(project.output("predictions")) == 120, what="the second file")
    code, out, _ = stop(process)
    assert (code, json.loads(out)["learned"]) == (0, 120)


def test_a_followed_run_says_once_that_it_has_caught_up(tmp_path):
    """The line comes when all that there was is learned, and not again for what comes later."""
    project = Project(tmp_path, model=RAISES, config='on_error = "reject"\n[input]\npath = "in"\n')
    (tmp_path / "in").mkdir()
    lines = events(200)
    for i in (50, 190):
        lines[i]["x"]["f0"] = 13.0
    project.write(lines[:100], "in/day1.jsonl")
    path = project.write(lines[100:150], "in/day2.jsonl")
    process = project.start("run", "config.toml", "--json")
    for line in process.stderr:
        if "event=caught_up" in line:
            break
    assert "events=149" in line
    with path.open("a") as file:
        file.write("".join(json.dumps(e) + "\n" for e in lines[150:]))
    wait_for(lambda: len(project.output("rejected")) == 2, what="the second bad event")
    wait_for(lambda: len(project.output("predictions")) == 198, what="what came later")
    code, out, err = stop(process)
    assert (code, json.loads(out)["learned"]) == (0, 198), err
    assert "event=caught_up" not in err
    assert "caught_up" not in project.call("run", "config.toml", "--until-eof").stderr


def test_an_empty_folder_is_followed(tmp_path):
    """A run waits for the first file, and says so once; only --until-eof needs one at the start."""
    project = Project(tmp_path, config='[input]\npath = "in"\n')
    (tmp_path / "in").mkdir()
    refused = project.call("run", "config.toml", "--until-eof")
    assert (refused.returncode, "in: no file ending in" in refused.stderr) == (2, True)
    process = project.start("run", "config.toml", "--json")
    for line in process.stderr:
        if "event=waiting" in line:
            break
    project.write(events(50), "in/day1.jsonl")
    wait_for(lambda: len(project.output("predictions")) == 50, what="the first file")
    code, out, err = stop(process)
    assert (code, json.loads(out)["learned"]) == (0, 50), err
    assert "event=waiting" not in err


def test_an_empty_folder_whose_files_would_be_shards_is_refused(tmp_path):
    """Files become shards at the start, so there has to be one."""
    project = Project(tmp_path, config='[input]\npath = "in"\nshards = "partition"\n')
    (tmp_path / "in").mkdir()
    refused = project.call("run", "config.toml")
    assert (refused.returncode, "in: no file ending in" in refused.stderr) == (2, True)


def test_files_of_a_folder_are_read_one_after_another_in_natural_order(tmp_path):
    """day2 comes before day10, and gzip and CSV stand beside JSON Lines."""
    project = Project(tmp_path, config='[input]\npath = "in"\n')
    (tmp_path / "in").mkdir()
    project.write(events(20, seed=10), "in/day10.jsonl")
    (tmp_path / "in" / "day2.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(e) + "\n" for e in events(30, seed=2)).encode())
    )
    got = project.run()
    assert got["learned"] == 50
    files = [p["origin"][0] for p in project.output("predictions")]
    assert files == ["day2.jsonl.gz"] * 30 + ["day10.jsonl"] * 20


@pytest.mark.slow
def test_fair_order_takes_a_block_of_each_file_in_turn_and_resumes_exactly(tmp_path):
    """Interleaved files are all learned once, also over a kill; the journal knows the order."""
    config = '[input]\npath = "in"\norder = "fair"\n[state]\ncommit_seconds = 0.01\n'
    project = Project(tmp_path, config=config)
    (tmp_path / "in").mkdir()
    for seed in (1, 2, 3):
        project.write(events(8_000, seed=seed), f"in/{seed}.jsonl")
    project.kill_along(3, 24_000 * 100, random.Random(3))  # a line of the output has 100 bytes
    project.run()
    origins = [tuple(p["origin"]) for p in project.output("predictions")]
    assert len(origins) == len(set(origins)) == 24_000
    files = [o[0] for o in origins]
    assert files != sorted(files)


def test_each_file_can_be_a_shard_with_a_model_of_its_own(tmp_path):
    """With shards = "partition" every file has its own model, outputs and digest."""
    project = Project(tmp_path, config='[input]\npath = "in"\nshards = "partition"\n')
    (tmp_path / "in").mkdir()
    for seed in (1, 2):
        project.write(events(300, seed=seed), f"in/{seed}.jsonl")
    got = project.run()
    assert sorted(got["digest"]) == ["000", "001"]
    alone = Project(tmp_path / "alone")
    alone.write(events(300, seed=2))
    assert alone.run()["digest"]["000"] == got["digest"]["001"]
    assert len(project.output("predictions-000")) == 300


def test_standard_input_is_learned(tmp_path):
    """`-` reads events from standard input until it is closed."""
    project = Project(tmp_path, config='[input]\npath = "-"\n')
    text = "".join(json.dumps(e) + "\n" for e in events(250))
    got = project.run(stdin=text)
    assert got["learned"] == 250


def test_latest_begins_at_the_end_of_what_is_there(tmp_path):
    """With start = "latest" only what comes after the first start is learned, also after a kill."""
    project = Project(tmp_path, config='[input]\npath = "events.jsonl"\nstart = "latest"\n')
    lines = [json.dumps(e) for e in events(300)]
    path = project.write(lines[:200])
    process = project.start("run", "config.toml")
    wait_for(lambda: "range" in _journal(project), what="the start in the journal")
    with path.open("a") as file:
        file.write("\n".join(lines[200:]) + "\n")
    wait_for(lambda: len(project.output("predictions")) == 100, what="the new events")
    process.kill()
    process.communicate()
    project.run()
    assert [p["origin"][2] for p in project.output("predictions")] == list(range(201, 301))


def _journal(project):
    folder = project.folder / "state" / "shards" / "000"
    return "".join(p.read_text() for p in folder.glob("journal-*.log")) if folder.exists() else ""


def test_two_runs_on_one_state_folder_are_one_too_many(project):
    """The second run says that another holds the state, in one line, and leaves it alone."""
    project.write(events(100))
    process = project.start("run", "config.toml")
    wait_for(lambda: len(project.output("predictions")) == 100, what="the first run")
    second = project.call("run", "config.toml", "--until-eof")
    assert second.returncode == 1
    assert "another run holds this state" in second.stderr
    assert str(process.pid) in second.stderr
    assert stop(process)[0] == 0


def test_a_changed_learner_is_refused_with_the_difference_shown(project):
    """Old state is not poured into another learner; --fresh archives it and restarts."""
    project.write(events(100))
    project.run()
    changed = MODEL.replace("LogisticRegression()", "LogisticRegression(l2=0.5)")
    (project.folder / "models.py").write_text(changed)
    refused = project.call("run", "config.toml", "--until-eof")
    assert refused.returncode == 1
    assert "LogisticRegression.l2: 0.0 -> 0.5" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert project.run("--fresh")["learned"] == 100
    (archived,) = (project.folder / "state").glob("archived-*")
    assert (archived / "shards" / "000").is_dir()
    assert (archived / "predictions.jsonl").exists()
    assert len(project.output("predictions")) == 100


def test_an_input_that_was_changed_after_it_was_learned_is_noticed(tmp_path):
    """If what has to be read again is not what was learned, the resume is refused."""
    project = Project(tmp_path, config="[state]\ncommit_seconds = 0.01\n")
    path = project.write(events(2_000))
    process = project.running()
    project.until_recorded()
    process.kill()
    process.communicate()
    text = path.read_text()
    path.write_text(text.replace('"e10"', '"E10"'))
    refused = project.call("run", "config.toml", "--until-eof")
    assert refused.returncode == 1
    assert "the file was changed" in refused.stderr


def test_an_input_that_was_cut_is_noticed(project):
    """A file shorter than what was learned from it stops the run, by name."""
    path = project.write(events(1000))
    project.run()
    path.write_bytes(path.read_bytes()[:500])
    refused = project.call("run", "config.toml", "--until-eof")
    assert refused.returncode == 1
    assert "events.jsonl" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_outputs_without_state_are_not_mixed_with_a_new_run(project):
    """Predictions of a lost state are not silently added to."""
    project.write(events(10))
    project.run()
    subprocess.run(["rm", "-rf", str(project.folder / "state")], check=True)
    refused = project.call("run", "config.toml", "--until-eof")
    assert refused.returncode == 1
    assert "--fresh" in refused.stderr


RAISES = """
from river import base

class Fragile(base.Classifier):
    def __init__(self):
        self.n = 0
        self.total = 0.0
    def learn_one(self, x, y):
        self.n += 1            # half updated when it raises
        if x["f0"] == 13.0:
            raise ValueError("unlucky number")
        self.total += x["f0"]
    def predict_proba_one(self, x):
        p = 1.0 / (1.0 + 2.718281828 ** -max(-20.0, min(20.0, self.total / (self.n + 1))))
        return {False: 1 - p, True: p}

def make():
    return Fragile()
"""


def test_a_learner_that_raises_stops_the_stream_and_names_the_event(tmp_path):
    """By default the run fails with the origin of the event, and what came before is kept."""
    project = Project(tmp_path, model=RAISES)
    lines = events(300)
    lines[150]["x"]["f0"] = 13.0
    project.write(lines)
    failed = project.call("run", "config.toml", "--until-eof")
    assert failed.returncode == 1
    assert "events.jsonl:151" in failed.stderr
    assert "unlucky number" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_learner_that_raises_can_go_on_as_if_the_event_had_never_come(tmp_path):
    """With on_error = "reject" the event is rejected and leaves no trace, kills included."""
    rejecting = Project(
        tmp_path / "a", model=RAISES,
        config='on_error = "reject"\n[input]\npath = "events.jsonl"\n',
    )  # fmt: skip
    lines = events(3000)
    bad = [150, 151, 2000]
    for i in bad:
        lines[i]["x"]["f0"] = 13.0
    rejecting.write(lines)
    got = rejecting.run()
    assert (got["learned"], got["rejected"]) == (2997, 3)
    assert [r["origin"][2] for r in rejecting.output("rejected")] == [i + 1 for i in bad]
    clean = Project(tmp_path / "b", model=RAISES)
    clean.write([e for i, e in enumerate(lines) if i not in bad])
    assert clean.run()["digest"] == got["digest"]
    assert rejecting.run()["events"] == 0


def test_labels_of_another_kind_are_rejected_again_when_the_journal_is_folded(tmp_path):
    """Also where the learner raised on the first label: resumed, evaluated and run are one."""
    model = RAISES.replace("{False: 1 - p, True: p}", '{"no": 1 - p, "yes": p}')
    model = model.replace("    def __init__", "    _multiclass = True\n    def __init__", 1)
    project = Project(
        tmp_path, model=model, task="multiclass",
        config='on_error = "reject"\n[input]\npath = "events.jsonl"\n',
    )  # fmt: skip
    lines = events(40)
    for i, event in enumerate(lines):
        event["y"] = 1 if i in (1, 20) else ("no", "yes")[event["y"]]
    lines[0]["x"]["f0"] = 13.0
    project.write(lines)
    evaluated = json.loads(project.call("evaluate", "config.toml", "--json").stdout)
    ran = project.run()
    assert (ran["learned"], ran["rejected"]) == (37, 3)
    found = project.output("rejected")
    assert sorted(r["origin"][2] for r in found) == [1, 2, 21]
    assert [r["path"] for r in found if r["origin"][2] > 1] == ["$.y", "$.y"]
    snapshots = list((tmp_path / "state").rglob("snapshot-*.midstream"))
    assert snapshots
    for snapshot in snapshots:
        snapshot.unlink()
    assert project.run()["digest"] == ran["digest"] == evaluated["digest"]


def test_evaluate_rejects_what_the_learner_raises_on_as_run_does(tmp_path):
    """With on_error = "reject" both count the same, and end with the same digest and metrics."""
    project = Project(
        tmp_path, model=RAISES, config='on_error = "reject"\n[input]\npath = "events.jsonl"\n'
    )
    lines = events(12_000)
    for i in (0, 150, 151, 152, 2000, 9_999, 10_000, 11_000, 11_999):
        lines[i]["x"]["f0"] = 13.0
    lines[400:400] = ["{broken"]
    project.write(lines)
    done = project.call("evaluate", "config.toml", "--json")
    assert done.returncode == 0, done.stderr
    evaluated = json.loads(done.stdout)
    assert "origin=events.jsonl:151 " in done.stderr
    ran = project.run()
    for key in ("events", "learned", "rejected", "predictions", "alarms", "metrics", "digest"):
        assert evaluated[key] == ran[key], key
    assert (ran["learned"], ran["rejected"]) == (11_991, 10)


def test_evaluate_stops_at_an_event_that_the_learner_raises_on(tmp_path):
    """By default it fails in one line that names the event."""
    project = Project(tmp_path, model=RAISES)
    lines = events(300)
    lines[150]["x"]["f0"] = 13.0
    project.write(lines)
    failed = project.call("evaluate", "config.toml")
    assert failed.returncode == 1
    assert "events.jsonl:151" in failed.stderr.splitlines()[-1]


def test_what_a_learner_raised_is_one_clean_line_wherever_it_is_written(tmp_path):
    """Line breaks and text that is no UTF-8 harm neither outputs, journal, log nor check."""
    model = RAISES.replace('"unlucky number"', '"un\\nlucky \\udcff"')
    project = Project(
        tmp_path, model=model, config='on_error = "reject"\n[input]\npath = "events.jsonl"\n'
    )
    lines = events(60)
    lines[20]["x"]["f0"] = 13.0
    project.write(lines)
    clean = "ValueError: un lucky \\udcff"
    done = project.call("--log-json", "run", "config.toml", "--until-eof")
    assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["reason"] for line in logged if line["event"] == "event_rejected"] == [clean]
    assert project.output("rejected")[0]["reason"] == f"the learner raised {clean}"
    assert json.dumps(clean) in _journal(project)
    checked = project.call("check", "config.toml", "--json")
    details = [f["detail"] for f in json.loads(checked.stdout)["findings"] if not f["ok"]]
    assert len(details) == 1
    assert clean in details[0]


def test_a_users_own_class_is_saved_and_found_again(tmp_path):
    """A learner class beside the config survives a restart of the process."""
    project = Project(tmp_path, model=RAISES)
    lines = events(200)
    project.write(lines[:100])
    project.run()
    project.write(lines)
    assert project.run()["learned"] == 100


BAD = {
    "typo": ('[inputt]\npath = "events.jsonl"\n[input]\npath = "events.jsonl"\n', None, "input"),
    "unseeded": (None, "from river import forest\nmake = forest.ARFClassifier\n", "seed"),
    "import": (None, "import no_such_module_anywhere\n", "no_such_module_anywhere"),
    "returns": (None, "def make():\n    return 7\n", "int"),
    "lambda": (
        None,
        "from river import compose, linear_model\n"
        "def make():\n"
        "    return compose.FuncTransformer(lambda x: x) | linear_model.LogisticRegression()\n",
        "lambda",
    ),
    "missing": ('[input]\npath = "nowhere.jsonl"\n', None, "nowhere.jsonl"),
    "task": (None, "from river import linear_model\nmake = linear_model.LinearRegression\n", "bin"),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_a_wrong_config_is_one_clear_line_and_exit_2(what, tmp_path):
    """Typos, unseeded learners, broken factories, missing input: each is said in one line."""
    config, model, word = BAD[what]
    project = Project(tmp_path, config=config or "", model=model or MODEL)
    project.write(events(10))
    done = project.call("run", "config.toml", "--until-eof")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "level=" not in line]
    assert len(lines) == 1, done.stderr
    assert word in lines[0]
    assert not (project.folder / "state" / "shards").exists()


@pytest.mark.parametrize("command", ["run", "evaluate", "check"])
def test_with_json_a_failure_is_one_object_on_standard_output_too(command, tmp_path):
    """Whoever reads the JSON reads the very line that stands on standard error."""
    project = Project(tmp_path, config="[inputt]\n[input]\npath = 'events.jsonl'\n")
    wrong = project.call(command, "config.toml", "--json")
    assert wrong.returncode == 2
    assert f"midstream: {json.loads(wrong.stdout)['error']}\n" == wrong.stderr
    assert project.call(command, "config.toml").stdout == ""


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_with_json_a_failure_while_running_is_one_object_too(command, tmp_path):
    """Also of an error with line breaks and text that is no UTF-8, by a model that prints."""
    model = RAISES.replace('"unlucky number"', '"un\\nlucky \\udcff"') + "\nprint('hello')\n"
    project = Project(tmp_path, model=model)
    lines = events(30)
    lines[20]["x"]["f0"] = 13.0
    project.write(lines)
    options = ["--until-eof"] if command == "run" else []
    failed = project.call(command, "config.toml", "--json", *options)
    assert failed.returncode == 1
    error = json.loads(failed.stdout)["error"]
    assert "events.jsonl:21: ValueError: un lucky \\udcff;" in error
    assert failed.stderr.splitlines()[-1] == f"midstream: {error}"


def test_a_learner_that_exits_fails_evaluate_in_one_line(tmp_path):
    """What ends the process is told, with an exit code of ours."""
    project = Project(tmp_path, model=RAISES.replace("raise ValueError", "raise SystemExit"))
    lines = events(30)
    lines[20]["x"]["f0"] = 13.0
    project.write(lines)
    failed = project.call("evaluate", "config.toml")
    assert failed.returncode == 1
    assert "the learner ended the run" in failed.stderr.splitlines()[-1]


@contextmanager
def _no_superuser():
    """Be somebody whom file rights hold for."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_input_without_rights_is_one_clear_line(what, tmp_path):
    """A file or folder that may not be read is named."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        file = folder / "in" / "events.jsonl"
        file.parent.mkdir()
        file.write_text("{}\n")
        (file if what == "file" else file.parent).chmod(0)
        with _no_superuser(), pytest.raises(InputError, match="cannot be read: Permission"):
            FileInput("in", folder).read(1000)
        file.parent.chmod(0o755)


def test_an_empty_file_is_no_error(project):
    """A file without events gives an empty summary, and may grow later."""
    project.write([])
    assert project.run()["events"] == 0
    project.write(events(5))
    assert project.run()["learned"] == 5


def test_check_names_what_is_wrong_on_a_sample(project):
    """`midstream check` tries the learner on the first events and exits 1 if something is wrong."""
    project.write([*events(50), "{broken"])
    fine = project.call("check", "config.toml", "--json")
    assert fine.returncode == 0, fine.stdout
    report = json.loads(fine.stdout)
    assert report["ok"]
    assert any("1 rejected" in f["detail"] for f in report["findings"])
    (project.folder / "models.py").write_text(RAISES)
    lines = events(50)
    lines[20]["x"]["f0"] = 13.0
    project.write(lines)
    wrong = project.call("check", "config.toml")
    assert wrong.returncode == 1
    assert "events.jsonl:21" in wrong.stdout
    assert not (project.folder / "state").exists()


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path):
    """When a write fails the run stops in one line; with space again it goes on, exactly."""
    project = Project(tmp_path / "full", config="[state]\ncommit_seconds = 0.01\n")
    lines = events(12_000)
    project.write(lines)
    limit = 900_000  # bytes a file may have: what is written beyond fails, as on a full disk
    process = project.start(
        "run", "config.toml", "--until-eof",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    got = project.run()
    calm = Project(tmp_path / "calm")
    calm.write(lines)
    assert calm.run()["digest"] == got["digest"]
    assert [p["id"] for p in project.output("predictions")] == [e["id"] for e in lines]


@pytest.mark.slow
def test_a_lost_journal_is_refused_and_nothing_is_learned_again(project):
    """Snapshots or outputs without their journal are a loss to be told, not a fresh start."""
    project.write(events(500))
    project.run()
    folder = project.folder / "state" / "shards" / "000"
    (segment,) = folder.glob("journal-*")
    content = segment.read_bytes()
    for damage in ("empty", "gone", "all"):
        if damage == "empty":
            segment.write_bytes(b"")
        elif damage == "gone":
            segment.unlink()
        else:
            shutil.rmtree(folder)
        refused = project.call("run", "config.toml", "--until-eof")
        assert refused.returncode == 1, damage
        assert "--fresh" in refused.stderr
        assert len(project.output("predictions")) == 500
        if damage != "all":
            segment.write_bytes(content)
            assert project.run()["events"] == 0


def test_files_that_are_shards_keep_their_models_when_others_come_and_go(tmp_path):
    """A new file that sorts first does not take over another one's model."""
    project = Project(tmp_path, config='[input]\npath = "in"\nshards = "partition"\n')
    (tmp_path / "in").mkdir()
    for seed, name in ((2, "b"), (3, "c")):
        project.write(events(200, seed=seed), f"in/{name}.jsonl")
    before = project.run()["digest"]
    project.write(events(200, seed=1), "in/a.jsonl")
    after = project.run()
    assert after["learned"] == 200
    assert {k: after["digest"][k] for k in before} == before


def test_an_input_elsewhere_with_the_same_names_is_refused(tmp_path):
    """The cursors of one folder are not those of another."""
    project = Project(tmp_path, config='[input]\npath = "jan"\n')
    for month in ("jan", "feb"):
        (tmp_path / month).mkdir()
        project.write(events(50), f"{month}/e.jsonl")
    project.run()
    project.config.write_text(project.config.read_text().replace("jan", "./feb"))
    refused = project.call("run", "config.toml", "--until-eof")
    assert refused.returncode == 1
    assert "input.input: jan -> feb" in refused.stderr


def test_outputs_in_another_folder_are_never_cut(project):
    """A predictions.jsonl of somebody else is added to, not truncated to our lengths."""
    project.write(events(300))
    project.run()
    other = project.folder / "other" / "predictions.jsonl"
    other.parent.mkdir()
    other.write_text("somebody else's\n" * 10_000)
    project.config.write_text(project.config.read_text() + '[output]\npath = "other"\n')
    project.write(events(400))
    assert project.run()["learned"] == 100
    assert other.read_text().startswith("somebody else's\n" * 10_000)
    assert project.run()["learned"] == 0
    assert len(other.read_text().splitlines()) == 10_100


def test_changed_code_of_a_users_class_is_refused(tmp_path):
    """The definition of a learner includes what its methods do."""
    project = Project(tmp_path, model=RAISES)
    project.write(events(50))
    project.run()
    (tmp_path / "models.py").write_text(RAISES.replace("self.n += 1 ", "self.n += 2 "))
    refused = project.call("run", "config.toml", "--until-eof")
    assert refused.returncode == 1
    assert "the new code goes on" in refused.stderr


ODD = """
from river import base

class Odd(base.Classifier):
    def learn_one(self, x, y):
        if x["f0"] == 13.0:
            {learn}
    def predict_proba_one(self, x):
        if x["f0"] == 13.0:
            return {proba}
        return {{False: 0.4, True: 0.6}}

def make():
    return Odd()
"""


@pytest.mark.parametrize(
    ("learn", "proba", "word"),
    [
        ("pass", "{True: None, False: 0.5}", "events.jsonl:31"),
        ("pass", "{True: 'a', False: 'b'}", "events.jsonl:31"),
        ("raise SystemExit(3)", "{}", "ended the run"),
        ("self.f = lambda: 1", "{}", "lambda"),
    ],
)
def test_odd_learners_fail_in_one_line(learn, proba, word, tmp_path):
    """Whatever a user's class does, the operator reads one line and the event is named."""
    project = Project(tmp_path, model=ODD.format(learn=learn, proba=proba))
    lines = events(60)
    lines[30]["x"]["f0"] = 13.0
    project.write(lines)
    failed = project.call("run", "config.toml", "--until-eof")
    assert failed.returncode == 1, failed.stderr
    assert "Traceback" not in failed.stderr
    assert "panicked" not in failed.stderr
    assert word in failed.stderr.splitlines()[-1]


def test_a_slow_learner_stops_within_seconds(tmp_path):
    """SIGTERM is heard between events that take long, also in the first block."""
    slow = MODEL.replace("def make", "import time\nfrom river import base\n\n"
        "class Slow(linear_model.LogisticRegression):\n"
        "    def learn_one(self, x, y, w=1.0):\n"
        "        time.sleep(0.05)\n"
        "        super().learn_one(x, y, w=w)\n\ndef make", 1).replace(
        "preprocessing.StandardScaler() | linear_model.LogisticRegression()", "Slow()")  # fmt: skip
    project = Project(tmp_path, model=slow)
    project.write(events(5000))
    process = project.start("run", "config.toml", "--json")
    wait_for(lambda: len(project.output("predictions")) > 3, what="the first block")
    code, out, err = stop(process)
    assert code == 0, err
    assert 0 < json.loads(out)["learned"] < 2500


def test_latest_is_not_forgotten_by_a_run_that_learned_nothing(tmp_path):
    """Stopped before anything came, the next run still skips what was there at its start."""
    project = Project(tmp_path, config='[input]\npath = "events.jsonl"\nstart = "latest"\n')
    project.write(events(100))
    process = project.start("run", "config.toml")
    for line in process.stderr:
        if "event=running" in line:
            break
    assert stop(process)[0] == 0
    assert project.run()["learned"] == 0
