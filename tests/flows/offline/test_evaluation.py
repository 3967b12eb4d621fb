"""What `check` says of predictions that are no numbers, and what `evaluate` and `run` count."""

import json
import math
import random

import pytest
from project import Project

from midstream.flows.loading import load
from midstream.flows.offline import evaluation
from midstream.flows.offline.inspect import inspect

MODELS = """
from river import facto, linear_model, preprocessing


def minmax():
    return preprocessing.MinMaxScaler() | linear_model.LinearRegression()


def fm():
    return facto.FMRegressor(n_factors=4, seed=1)


def scaled():
    return preprocessing.StandardScaler() | linear_model.LinearRegression()
"""


def config(folder, learner, events, task="regression"):
    """Write a config with its models and events; return its settings."""
    (folder / "models.py").write_text(MODELS)
    (folder / "e.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "c.toml").write_text(
        f'[model]\nlearner = "{learner}"\ntask = "{task}"\n[input]\npath = "e.jsonl"\n'
    )
    return load(folder / "c.toml")


def ratings(n):
    """Events with an id, an age and a time in seconds among the features."""
    rng = random.Random(4)
    return [
        {
            "x": {
                "user": f"u{rng.randrange(30)}",
                "age": (age := rng.randrange(18, 80)),
                "time": 880_000_000 + i * 500,
            },
            "y": 1 + age % 5,
        }
        for i in range(n)
    ]


def late(n):
    """Numbers, of which the second is there from the middle on."""
    rng = random.Random(7)
    events = []
    for i in range(n):
        x = {"a": rng.uniform(0, 10)} | ({"late": rng.uniform(0, 1)} if i >= n // 2 else {})
        events.append({"x": x, "y": 2 * x["a"] + x.get("late", 0)})
    return events


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the model overflows
def test_check_fails_on_predictions_that_are_not_finite(tmp_path):
    """It says how many of how many, where the first is, and which feature is far too large."""
    report = inspect(config(tmp_path, "models:fm", ratings(300)), 200)
    assert not report.ok
    (finding,) = [f for f in report.findings if not f.ok]
    assert finding.what == "predictions"
    count = int(finding.detail.split()[0])
    assert 150 < count < 200
    assert "of 200 predictions are not finite numbers, the first at e.jsonl:" in finding.detail
    assert "StandardScaler" in finding.detail
    assert "'time' is up to 8.8e+08" in finding.detail


def test_check_names_a_single_one_by_its_line(tmp_path):
    """One such prediction among 150 fails it, too; a learner of well-scaled numbers passes."""
    report = inspect(config(tmp_path, "models:minmax", late(300)), 150)
    (finding,) = [f for f in report.findings if not f.ok]
    start = "1 of 150 predictions is not a finite number, the first at e.jsonl:1;"
    assert finding.detail.startswith(start)
    assert "is up to" not in finding.detail
    assert inspect(config(tmp_path, "models:scaled", late(300)), 300).ok


def test_check_fails_on_errors_out_of_all_proportion(tmp_path):
    """A model that diverges without an infinite number yet is told, too; scaled, it passes."""
    settings = config(tmp_path, "linear", ratings(300))
    assert inspect(settings, 300).ok
    text = settings.file.read_text().replace("[input]", "options = { scale = false }\n[input]")
    settings.file.write_text(text)
    report = inspect(load(settings.file), 300)
    (finding,) = [f for f in report.findings if not f.ok]
    assert finding.what == "predictions"
    assert "over 1,000,000 times that of predicting the last label" in finding.detail
    assert "'time' is up to 8.8e+08" in finding.detail


def test_evaluate_counts_what_it_leaves_out_of_the_metrics(tmp_path):
    """The mean is that of the predictions that are finite, and the faded one has recovered."""
    settings = config(tmp_path, "models:minmax", late(2_000))
    summary, trainer = evaluation.evaluate(settings)
    assert (summary.non_finite, summary.too_large, summary.alarms) == (2, 0, 1)
    assert trainer.prequential.non_finite == 2
    assert summary.metrics["mae"] == pytest.approx(1.4291, abs=1e-4)
    assert summary.metrics["mae.fading"] == pytest.approx(0.906, abs=1e-3)
    assert all(map(math.isfinite, summary.metrics.values()))


@pytest.mark.parametrize(("odd", "counted"), [(1e160, 1), (1e8, 0)])
def test_one_wild_label_does_not_end_the_watch(odd, counted, tmp_path):
    """With clipped steps the later change is told, and the faded values are those without it."""
    rng = random.Random(1)
    events = []
    for i in range(8_000):
        a = rng.gauss(0, 1)
        y = 2 * a + rng.gauss(0, 0.1) if i < 6_000 else 50 + 20 * rng.gauss(0, 1)
        events.append({"x": {"a": a}, "y": y})
    found = []
    for label in (None, odd):
        events[200]["y"] = events[200]["y"] if label is None else label
        settings = config(tmp_path, "linear", events)
        text = settings.file.read_text().replace("[input]", "options = { clip = 10.0 }\n[input]")
        settings.file.write_text(text)
        summary, _ = evaluation.evaluate(load(settings.file))
        found.append(summary)
    without, wild = found
    assert wild.too_large == counted
    assert wild.alarms == without.alarms == 1
    if counted:
        for name in ("rmse.fading", "r2.fading", "mae.fading"):
            assert wild.metrics[name] == pytest.approx(without.metrics[name], rel=1e-3)


@pytest.mark.parametrize("weight", [{}, {"y": True, "weight": 0}])
def test_an_event_that_cannot_be_scored_ends_no_metric(weight, tmp_path):
    """Features at the end of floats, not learned: no label is published, and log loss goes on."""
    rng = random.Random(1)
    events = []
    for _ in range(600):
        a, b = rng.gauss(0, 1e-3), rng.gauss(0, 1e-3)
        events.append({"x": {"a": a, "b": b}, "y": a > b})
    events[200] = {"x": {"a": 1e308, "b": 1e308}} | weight
    summary, _ = evaluation.evaluate(config(tmp_path, "logistic", events, "binary"))
    assert summary.non_finite == 1
    assert math.isfinite(summary.metrics["log_loss"])
    assert math.isfinite(summary.metrics["log_loss.fading"])


def test_run_counts_warns_and_publishes_null(tmp_path):
    """`run` counts them in its summary, warns once for a stretch, and writes null for them."""
    model = MODELS.replace("minmax", "make")
    project = Project(tmp_path / "project", model=model, task="regression")
    project.write(late(600))
    done = project.call("run", "config.toml", "--until-eof", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["non_finite"], summary["alarms"]) == (2, 1)
    assert done.stderr.count("event=predictions_not_finite") == 1
    predictions = project.output("predictions")
    assert [i for i, p in enumerate(predictions) if p["y_pred"] is None] == [0, 300]
    (alarm,) = project.output("alarms")
    assert (alarm["kind"], alarm["position"], alarm["value"]) == ("non_finite", 1, 1.0)
    evaluated = json.loads(project.call("evaluate", "config.toml", "--json").stdout)
    assert evaluated["digest"] == summary["digest"]
    assert evaluated["metrics"] == summary["metrics"]
