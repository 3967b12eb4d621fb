"""Labels that come later in `midstream evaluate --delay`: equal to River's delayed evaluation."""

import datetime as dt
import json

import pytest
from click.testing import CliRunner
from river import compose, datasets, evaluate, linear_model, metrics, preprocessing, tree

from midstream.connectors.input import InputError
from midstream.engine.shard.outcome import EventError
from midstream.flows.cli import cli
from midstream.flows.config.tables import ConfigError
from midstream.flows.inputs import reading
from midstream.flows.loading import load
from midstream.flows.offline import evaluation
from midstream.flows.offline.delayed import Delay

MODELS = """
from river import linear_model, preprocessing, tree

def logistic():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()

def hoeffding():
    return tree.HoeffdingTreeClassifier(grace_period=50)

def linear():
    return preprocessing.StandardScaler() | linear_model.LinearRegression()

class Picky(linear_model.LogisticRegression):
    def learn_one(self, x, y):
        if x["a"] == 13:
            raise ValueError("thirteen")
        super().learn_one(x, y)

    def predict_proba_one(self, x):
        if x["a"] == 17:
            raise ValueError("seventeen")
        return super().predict_proba_one(x)

def picky():
    return Picky()
"""
RIVER = {
    "logistic": lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    "hoeffding": lambda: tree.HoeffdingTreeClassifier(grace_period=50),
    "linear": lambda: preprocessing.StandardScaler() | linear_model.LinearRegression(),
}


def config(folder, events, learner, task="binary", more=""):
    """Write a config, its models and its events; return its settings."""
    (folder / "models.py").write_text(MODELS)
    (folder / "e.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "c.toml").write_text(
        f'[model]\nlearner = "{learner}"\ntask = "{task}"\n[input]\npath = "e.jsonl"\n{more}'
    )
    return load(folder / "c.toml")


def delayed(settings, delay):
    """Return the summary of an evaluation, whose labels all were learned."""
    summary, _ = evaluation.evaluate(settings, delay=Delay.parse(delay))
    assert summary.rejected == 0
    assert summary.digest == {}
    return summary


def phishing():
    """The events of a data set, each with a time: gaps of 0 to 9 minutes."""
    time = 1_700_000_000
    for i, (x, y) in enumerate(datasets.Phishing()):
        time += (i * i) % 10 * 60
        yield {"x": x, "y": y, "ts": time}


def rivers(events, model, moment, delay, *measures):
    """Return what River's delayed evaluation gives."""
    both = metrics.base.Metrics(list(measures))
    data = [(dict(event["x"], _t=event["ts"], _i=i), event["y"]) for i, event in enumerate(events)]

    model = compose.Discard("_t", "_i") | model  # River shows them to it
    evaluate.progressive_val_score(data, model, both, moment=moment, delay=delay)
    return [metric.get() for metric in both]


@pytest.mark.parametrize("rows", [1, 10, 100, 1_000])
@pytest.mark.parametrize(
    ("learner", "model"),
    [("models:logistic", "logistic"), ("models:hoeffding", "hoeffding"), ("logistic", "logistic")],
)
def test_rows_later_it_is_as_in_river(learner, model, rows, tmp_path, monkeypatch):
    """Accuracy, log loss and F1 are River's to 1e-12, of a model of River's and a compiled one."""
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 20_000)  # several blocks
    events = list(phishing())
    summary = delayed(config(tmp_path, events, learner), str(rows))
    names = ["accuracy", "log_loss", "f1"]
    measures = [metrics.Accuracy(), metrics.LogLoss(), metrics.F1()]
    found = rivers(events, RIVER[model](), None, rows, *measures)
    assert [summary.metrics[name] for name in names] == pytest.approx(found, rel=0, abs=1e-12)
    assert summary.learned == len(events)


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1_800), ("7200s", 7_200), ("1d", 86_400)])
@pytest.mark.parametrize("learner", ["models:logistic", "logistic"])
def test_by_time_it_is_as_in_river(learner, text, seconds, tmp_path, monkeypatch):
    """A label comes so long after its event in event time; many events have one time."""
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 20_000)
    events = list(phishing())
    summary = delayed(config(tmp_path, events, learner), text)
    found = rivers(
        events, RIVER["logistic"](), "_t", seconds, metrics.Accuracy(), metrics.LogLoss()
    )
    names = ["accuracy", "log_loss"]
    assert [summary.metrics[name] for name in names] == pytest.approx(found, rel=0, abs=1e-12)


def test_a_regression_on_days_is_as_in_river(tmp_path):
    """Approval ratings, each known a week later: the mean absolute error and R2 are River's."""
    data = list(datasets.TrumpApproval())
    events = [
        {"x": {k: v for k, v in x.items() if k != "ordinal_date"}, "y": y,
         "ts": (x["ordinal_date"] - 719_163) * 86_400}
        for x, y in data
    ]  # fmt: skip
    summary = delayed(config(tmp_path, events, "models:linear", "regression"), "7d")
    found = rivers(events, RIVER["linear"](), "_t", 7 * 86_400, metrics.MAE(), metrics.R2())
    names = ["mae", "r2"]
    assert [summary.metrics[name] for name in names] == pytest.approx(found, rel=0, abs=1e-12)


def test_many_classes_are_as_in_river(tmp_path, monkeypatch):
    """Image segments, of which classes come up later: accuracy and macro F1 are River's."""
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 50_000)
    data = list(datasets.ImageSegments().take(800))
    events = [{"x": x, "y": y, "ts": i} for i, (x, y) in enumerate(data)]
    summary = delayed(config(tmp_path, events, "models:hoeffding", "multiclass"), "30")
    found = rivers(events, RIVER["hoeffding"](), None, 30, metrics.Accuracy(), metrics.MacroF1())
    names = ["accuracy", "macro_f1"]
    assert [summary.metrics[name] for name in names] == pytest.approx(found, rel=0, abs=1e-12)


def paid(events):
    """Give each event the time when it is paid for: later ones may be paid before."""
    for i, event in enumerate(events):
        wait = (i * 37) % 50 * 120
        yield event["ts"] + wait, wait, event


@pytest.mark.parametrize("form", ["own", "flat", "flat with features", "schema", "csv"])
def test_the_time_of_the_label_in_a_field(form, tmp_path):
    """Labels come in the order of that field, as in River, and the model does not see it."""
    plain = list(phishing())[:700]
    waits = [wait for _, wait, _ in paid(plain)]
    found = rivers(
        plain, RIVER["logistic"](), "_t", lambda x, _: waits[x["_i"]],
        metrics.Accuracy(), metrics.LogLoss(),
    )  # fmt: skip
    fields = '[input.fields]\nlabel = "y"\ntime = "ts"\n'
    names = ", ".join(f'"{name}"' for name in plain[0]["x"])
    if form == "own":
        events = [{**e, "x": {**e["x"], "paid_at": at}} for at, _, e in paid(plain)]
        settings = config(tmp_path, events, "models:logistic")
    elif form == "schema":
        events = [{**e, "x": {**e["x"], "paid_at": at}} for at, _, e in paid(plain)]
        schema = "[features]\n" + "".join(f'{name} = "number"\n' for name in plain[0]["x"])
        settings = config(tmp_path, events, "logistic", more=schema)
    else:
        more = {
            "flat": fields + 'exclude = ["paid_at"]\n',
            "flat with features": fields + f"features = [{names}]\n",
            "csv": fields,
        }[form]
        events = [
            {**e["x"], "y": e["y"], "ts": e["ts"],
             "paid_at": dt.datetime.fromtimestamp(at, dt.UTC).isoformat()}
            for at, _, e in paid(plain)
        ]  # fmt: skip
        settings = config(tmp_path, events, "models:logistic", more=more)
        if form == "csv":
            lines = [",".join(events[0])]
            lines += [",".join(map(str, event.values())) for event in events]
            (tmp_path / "e.jsonl").write_text("\n".join(lines) + "\n")
            text = settings.file.read_text().replace("[input]\n", '[input]\nformat = "csv"\n')
            settings.file.write_text(text)
            settings = load(settings.file)
    summary = delayed(settings, "field:paid_at")
    names = ["accuracy", "log_loss"]
    assert [summary.metrics[name] for name in names] == pytest.approx(found, rel=0, abs=1e-12)


def test_both_orders_are_scored(tmp_path):
    """The same predictions: means over all events are equal, and those that fade are not."""
    events = [{**e, "x": {**e["x"], "paid_at": at}} for at, _, e in paid(phishing())]
    summary = delayed(config(tmp_path, events, "models:logistic"), "field:paid_at")
    found = summary.metrics
    for name in ("accuracy", "log_loss"):
        assert found[f"by_prediction.{name}"] == pytest.approx(found[name], rel=0, abs=1e-12)
        assert found[f"by_prediction.{name}.fading"] != found[f"{name}.fading"]
    at_once, _ = evaluation.evaluate(config(tmp_path, phishing(), "models:logistic"))
    assert found["log_loss"] > at_once.metrics["log_loss"]


def test_cuts_of_the_stream_change_nothing(tmp_path, monkeypatch):
    """Blocks of any size give the same figures, bit for bit."""
    settings = config(tmp_path, phishing(), "models:logistic")
    found = []
    for size in (1_000, 7_777, 2**20):
        monkeypatch.setattr(reading, "_BLOCK_BYTES", size)
        found.append(delayed(settings, "45m").metrics)
    assert found[0] == found[1] == found[2]


def test_an_event_without_a_label_or_its_time_waits_for_the_end(tmp_path):
    """No label: it is predicted only. No time of the label: it is learned after all others."""
    events = list(phishing())[:300]
    for i, event in enumerate(events):
        event["x"] = {**event["x"], **({} if i % 3 == 0 else {"paid_at": event["ts"] + 60})}
        if i % 5 == 0:
            del event["y"]
    summary = delayed(config(tmp_path, events, "models:logistic"), "field:paid_at")
    assert (summary.events, summary.learned) == (300, 240)


def test_events_that_the_learner_raises_on_are_left_out(tmp_path):
    """With `on_error = "reject"` the scores are those of the stream without them; else it stops."""
    events = [{"id": f"e{i}", "x": {"a": i % 19, "b": i % 7}, "y": i % 7 > 3} for i in range(600)]
    good = [event for event in events if event["x"]["a"] not in (13, 17)]
    settings = config(tmp_path, events, "models:picky", more='[state]\npath = "s"\n')
    with pytest.raises(EventError, match=r"e\.jsonl:18: ValueError: seventeen"):
        evaluation.evaluate(settings, delay=Delay.parse("50"))
    text = settings.file.read_text().replace('"binary"', '"binary"\non_error = "reject"')
    settings.file.write_text(text)
    summary, _ = evaluation.evaluate(load(settings.file), delay=Delay.parse("1"))
    assert summary.rejected == 600 - len(good)
    assert summary.learned == len(good)
    assert summary.metrics["accuracy"] == summary.metrics["by_prediction.accuracy"] > 0.5


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "5w", "s", "", "field:", "1e3", "0s", "nan"])
def test_a_bad_delay_is_refused_in_one_line(text, tmp_path):
    """The line has what was found and what is allowed; the exit code is 2."""
    config(tmp_path, phishing(), "logistic")
    done = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "c.toml"), f"--delay={text}"])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"midstream: --delay: found {text!r}; allowed: ")
    assert done.stderr.count("\n") == 1


def test_what_does_not_fit_the_config_is_refused(tmp_path):
    """A field with another use, events without a time, and no time in the field."""
    flat = '[input.fields]\nid = "id"\nlabel = "y"\ntime = "ts"\n'
    event = {"id": "a", "y": True, "ts": 5, "b": 1.0, "paid_at": "soon"}
    settings = config(tmp_path, [event], "logistic", more=flat)
    with pytest.raises(ConfigError, match="the field 'ts' has another use"):
        delayed(settings, "field:ts")
    with pytest.raises(InputError, match=r"e\.jsonl:1: paid_at: time must be seconds or ISO 8601"):
        delayed(settings, "field:paid_at")
    settings = config(tmp_path, [{"x": {"a": 1.0}, "y": True}], "logistic")
    with pytest.raises(InputError, match=r"e\.jsonl:1: the event has no time"):
        delayed(settings, "5m")


def test_it_takes_the_place_of_feedback(tmp_path):
    """A config with [feedback] is evaluated on labelled events as one without."""
    feedback = '[feedback]\npath = "labels.jsonl"\nwindow_seconds = 1\n'
    with_feedback = delayed(config(tmp_path, phishing(), "logistic", more=feedback), "1h")
    without = delayed(config(tmp_path, phishing(), "logistic"), "1h")
    assert with_feedback.metrics == without.metrics


def test_the_command_prints_both_scores(tmp_path):
    """The table of metrics has a row for each order, and says which is which."""
    config(tmp_path, phishing(), "logistic")
    done = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "c.toml"), "--delay", "2h"])
    assert done.exit_code == 0, done.output
    assert "│ accuracy " in done.stdout
    assert "│ by_prediction.accuracy " in done.stdout
    assert "not in that of their labels" in done.stdout
    assert "digest" not in done.stdout
