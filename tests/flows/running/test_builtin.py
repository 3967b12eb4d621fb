"""Built-in learners by name: run, killed, resumed, read back by another process."""

import json
import random
import subprocess
import sys

import pytest
from project import Project, events

CONFIG = """
[model]
learner = "{name}"
task = "{task}"
options = {{ optimizer = "adagrad", rate = 0.05, bits = 10 }}
[input]
path = "events.jsonl"
[state]
commit_seconds = 0.05
snapshot_seconds = 0.2
"""


def project(folder, name="logistic", task="binary", n=60_000):
    """Return a project whose events have a category beside their numbers."""
    made = Project(folder)
    made.config.write_text(CONFIG.format(name=name, task=task))
    stream = events(n)
    for i, event in enumerate(stream):
        event["x"]["city"] = f"city{i % 50}"
        if task == "regression":
            event["y"] = event["x"]["f0"] * 2 + (i % 50 == 7)
        if task == "multiclass":
            event["y"] = f"y{i % 50 % 3}" if event["x"]["f0"] < 1 else "high"
    made.write(stream)
    return made


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_state(tmp_path):
    """SIGKILL at five moments: digest and predictions are those of an uninterrupted run."""
    whole = project(tmp_path / "whole")
    expected = whole.run()
    killed = project(tmp_path / "killed")
    output = whole.folder / "out" / "predictions.jsonl"
    killed.kill_along(5, output.stat().st_size, random.Random(3))
    resumed = killed.run()
    assert resumed["digest"] == expected["digest"]
    assert resumed["metrics"] == expected["metrics"]
    predictions = [p.folder / "out" / "predictions.jsonl" for p in (whole, killed)]
    assert predictions[0].read_bytes() == predictions[1].read_bytes()


def test_columns_give_what_dicts_give(tmp_path):
    """A schema in [features] changes how fast events are decoded, and nothing that is learned."""
    plain, typed = project(tmp_path / "plain", n=5_000), project(tmp_path / "typed", n=5_000)
    schema = "".join(f'f{i} = "number"\n' for i in range(5)) + 'city = "category"\n'
    typed.config.write_text(typed.config.read_text() + f"[features]\n{schema}")
    first, second = plain.run(), typed.run()
    assert first["digest"] == second["digest"]
    assert plain.output("predictions") == typed.output("predictions")
    with (typed.folder / "events.jsonl").open("a") as file:
        file.write('{"x": {"f0": 1, "f9": 2}, "y": true}\n')
    assert typed.run()["rejected"] == 1
    (rejected,) = typed.output("rejected")
    assert (rejected["reason"], rejected["path"]) == ("feature 'f9' is not in [features]", "$.x.f9")


def test_evaluate_and_run_are_the_same(tmp_path):
    """For a regression too."""
    made = project(tmp_path, "linear", "regression", 5_000)
    summary = made.run()
    done = made.call("evaluate", "config.toml", "--input", "events.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert f'"{summary["digest"]["000"]}"' in done.stdout
    assert summary["metrics"]["mae"] < 0.5


@pytest.mark.slow
def test_several_classes_are_learned_by_softmax(tmp_path):
    """By name, resumed from a snapshot; `logistic` says whom to ask."""
    made = project(tmp_path, "softmax", "multiclass", 5_000)
    lines = made.folder.joinpath("events.jsonl").read_text().splitlines()
    made.write(lines[:2_000])
    made.run()
    made.write(lines)
    summary = made.run()
    whole = project(tmp_path / "whole", "softmax", "multiclass", 5_000)
    assert whole.run()["digest"] == summary["digest"]
    assert whole.output("predictions") == made.output("predictions")
    assert summary["metrics"]["accuracy"] > 0.7
    last = made.output("predictions")[-1]
    assert last["y_proba"].keys() == {"y0", "y1", "y2", "high"}
    config = made.config.read_text()
    made.config.write_text(config.replace('"softmax"', '"logistic"'))
    done = made.call("check", "config.toml")
    assert done.returncode != 0
    assert "'binary', which logistic is for, or learner 'softmax'" in done.stdout + done.stderr


def test_learners_are_listed_with_their_options(tmp_path):
    """For people and for scripts."""
    made = Project(tmp_path)
    shown = made.call("learners")
    assert shown.returncode == 0, shown.stderr
    assert "logistic: task binary" in shown.stdout
    assert '    optimizer = "sgd"\n' in shown.stdout
    listed = json.loads(made.call("learners", "--json").stdout)
    assert listed["linear"]["task"] == "regression"
    assert listed["linear"]["options"]["rate"] == 0.01


def test_threshold_and_class_weights_decide_what_is_published(tmp_path):
    """In predictions, metrics and after a resume; the state names them."""
    made = project(tmp_path, n=3_000)
    decision = "threshold = 0.3, class_weights = { true = 3.0 }"
    made.config.write_text(made.config.read_text().replace("bits = 10", f"bits = 10, {decision}"))
    lines = made.folder.joinpath("events.jsonl").read_text().splitlines()
    made.write(lines[:1_000])
    made.run()
    made.write(lines)
    summary = made.run()
    out = made.output("predictions")
    assert all(line["y_pred"] == (line["y_proba"]["true"] > 0.3) for line in out)
    between = [line for line in out if 0.3 < line["y_proba"]["true"] < 0.5]
    assert between
    truths = [json.loads(line)["y"] for line in lines]
    right = sum(line["y_pred"] == y for line, y in zip(out, truths, strict=True))
    assert summary["metrics"]["accuracy"] == pytest.approx(right / 3_000, abs=1e-12)
    listed = json.loads(made.call("learners", "--json").stdout)
    assert listed["logistic"]["options"]["threshold"] == 0.5
    assert listed["softmax"]["options"]["class_weights"] == {}
    assert not {"threshold", "class_weights"} & listed["linear"]["options"].keys()


def test_a_changed_option_is_refused_with_old_state(tmp_path):
    """What differs is shown."""
    made = project(tmp_path, n=2_000)
    made.run()
    made.config.write_text(made.config.read_text().replace("0.05, bits", "0.5, bits"))
    done = made.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    assert "learner.rate: 0.05 -> 0.5" in done.stderr.splitlines()[-1]


def test_a_saved_trainer_is_read_in_a_process_that_has_not_used_the_learner(tmp_path):
    """Kinds of learners are imported when their state is met."""
    save = (
        "from midstream import Trainer\n"
        "from midstream.engine.learners.catalogue import make_named\n"
        "t = Trainer(make_named('logistic', 'binary', {}))\n"
        "t.step_one({'a': 1.0, 'c': 'red'}, True)\n"
        "t.save('saved')\n"
        "print(t.digest())\n"
    )
    load = "from midstream import Trainer\nprint(Trainer.load('saved').digest())\n"
    digests = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for code in (save, load)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64
