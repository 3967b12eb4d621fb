"""Methods against late labels: what is learned when, with which weight, and what is scored."""

import numpy as np
import pytest
from river import linear_model, preprocessing

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.joining import delay
from midstream.engine.joining.delay import IMMEDIATE, NEGATIVE, ElapsedTime, calibrated
from midstream.engine.joining.policy import Policy, PolicyError
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.training.trainer import Trainer

ENDS = {"on_expiry": "label", "default": False, "window": 100.0, "idle": 1.0}
FNW = Policy(method="fnw", **ENDS)
FNC = Policy(method="fnc", **ENDS)
ES_DFM = Policy(method="es-dfm", wait=10.0, **ENDS)


def trainer(policy, model=None):
    return Trainer(model or LinearLearner("binary", rate=0.5), feedback=policy, replay=50)


def learned(one):
    """What was learned, in order: id, label, weight."""
    return [(e.id, e.y, e.weight) for e in one.replay.events]


def passed(one, time):
    """Let time pass: an event that is labelled at once."""
    one.step_one({"clock": 1.0}, False, id=f"at {time}", ts=time, weight=0.0)


def of_events(one, *ids):
    return [each for each in learned(one) if each[0] in ids]


def test_fnw_weights_by_the_prediction_at_publication():
    """A fake negative has (1 - p)(1 + p); a positive 1 + p, though the model has learned since."""
    one = trainer(FNW)
    p = {}
    for i, name in enumerate("abc"):
        p[name] = one.step_one({"x": 1.0 + i}, id=name, ts=20.0 * i).y_proba[True]
    one.feedback_one("a", True, ts=45.0)
    passed(one, 90.0)
    assert p["a"] == 0.5
    assert p["b"] < 0.5  # "a" was learned as negative
    assert of_events(one, *"abc") == [
        ("a", False, 0.75),
        ("b", False, (1 - p["b"]) * (1 + p["b"])),
        ("c", False, (1 - p["c"]) * (1 + p["c"])),
        ("a", True, 1.5),
    ]


def test_fnw_multiplies_the_weights_of_the_event_and_of_its_label():
    """The weight of the label is not known before it comes."""
    one = trainer(FNW)
    one.step_one({"x": 1.0}, id="a", ts=0.0, weight=2.0)
    passed(one, 20.0)
    one.feedback_one("a", True, ts=20.0, weight=3.0)
    assert of_events(one, "a") == [("a", False, 1.5), ("a", True, 9.0)]


@pytest.mark.parametrize(("policy", "weight"), [(FNW, 0.75), (FNC, 1.0)])
def test_a_positive_that_comes_at_once_is_also_learned_as_negative(policy, weight):
    """The weights and the calibration are those of a stream with a negative for each event."""
    one = trainer(policy)
    one.step_one({"x": 1.0}, id="a", ts=0.0)
    one.feedback_one("a", True, ts=0.0)
    assert of_events(one, "a") == [
        ("a", False, weight),
        ("a", True, 2 * weight if weight < 1 else 1),
    ]
    assert one.joiner.counts.revised == 0


@pytest.mark.parametrize("policy", [FNW, FNC, ES_DFM])
def test_a_negative_is_learned_once(policy):
    """Whether it is reported after it was learned, or its time ends."""
    one = trainer(policy)
    one.step_one({"x": 1.0}, id="reported", ts=0.0)
    one.step_one({"x": 1.0}, id="silent", ts=0.0)
    passed(one, 20.0)
    assert [(name, y) for name, y, _ in learned(one)[:2]] == [
        ("reported", False),
        ("silent", False),
    ]
    one.feedback_one("reported", False, ts=20.0)
    passed(one, 200.0)
    assert [name for name, *_ in learned(one)] == ["reported", "silent", "at 20.0", "at 200.0"]
    assert one.joiner.counts.provisional == 2
    assert one.joiner.counts.expired == 1


@pytest.mark.parametrize("policy", [FNW, FNC, ES_DFM])
def test_each_prediction_is_scored_once_against_its_final_label(policy):
    """When the positive comes or the time ends, not when the fake negative is learned."""
    one = trainer(policy)
    for name in ("a", "b"):
        one.step_one({"x": 1.0}, id=name, ts=0.0)
    passed(one, 20.0)
    assert (one.prequential.scored, one.by_prediction.scored) == (1, 0)
    assert one.joiner.fate("b")["learned"] is False
    one.feedback_one("b", True, ts=30.0)
    assert (one.prequential.scored, one.by_prediction.scored) == (2, 0)
    passed(one, 200.0)
    assert (one.prequential.scored, one.by_prediction.scored) == (4, 4)
    assert one.metrics["feedback.revised"] == 1.0


def test_fnc_publishes_and_scores_calibrated_probabilities():
    """It is b / (1 - b), where the model predicts b; also where nothing is learned."""
    one = trainer(FNC)
    one.step_one({"x": 1.0}, id="a", ts=0.0)
    passed(one, 20.0)
    event = EventBatch.from_events([Event(x={"x": 1.0})])
    b = one.learner.predict(event).table.values[0, 1]
    found = one.step_one({"x": 1.0}, id="b", ts=20.0)
    assert b < 0.5
    assert found.y_proba[True] == b / (1 - b)
    assert found.y_proba[False] == 1 - b / (1 - b)
    assert one.predict_one({"x": 1.0}).y_proba[True] == b / (1 - b)
    assert one.joiner.fate("b")["y_pred"] == (b / (1 - b) > 0.5)


def test_calibration_of_columns_and_of_rows():
    """At most 1; what is no probability stays; the label is that of the calibrated probability."""
    b = np.array([0.1, 0.4, 0.9, np.nan])
    wanted = [0.1 / 0.9, 0.4 / 0.6, 1.0]
    table = calibrated(
        Predictions(b > 0.5, Table((False, True), np.stack([1 - b, b], axis=1))), 0.5
    )
    assert table.table.values[:3, 1].tolist() == wanted
    assert np.isnan(table.table.values[3]).all()
    assert table.values == [False, True, True, False]
    rows = calibrated(
        Predictions([False, None, True], [{False: 0.9, True: 0.1}, {}, {True: 0.4}]), 0.5
    )
    assert rows.probas == [
        {False: 1 - wanted[0], True: wanted[0]},
        {},
        {True: wanted[1], False: 1 - wanted[1]},
    ]
    assert rows.values == [False, None, True]
    bare = Predictions([True])
    assert calibrated(bare, 0.5) is bare


def test_the_calibrated_label_keeps_the_threshold_of_the_learner():
    """Here True is predicted only above 0.9: 0.5 becomes 1, and 0.4 becomes 0.67."""
    one = trainer(FNC, LinearLearner("binary", threshold=0.9))
    assert one.step_one({"x": 1.0}, id="a").y_pred is True
    values = Predictions([True], [{False: 0.6, True: 0.4}])
    assert calibrated(values, one.learner.threshold).values == [False]


def test_es_dfm_weights_by_models_of_the_known_outcomes():
    """They learn an outcome at the end of its event, and give 1 + p_dp and (1 + p_dp) p_rn."""
    one = trainer(ES_DFM)
    times = {"fast": 0.0, "slow": 0.0, "never": 0.0, "later": 50.0}
    for name, time in times.items():
        one.step_one({name: 1.0, "x": 2.0}, id=name, ts=time)
        if name == "never":
            one.feedback_one("fast", True, ts=5.0)
            passed(one, 20.0)
            one.feedback_one("slow", True, ts=30.0)
    assert one.joiner.counts.outcomes == 0
    passed(one, 98.0)
    assert of_events(one, *times) == [
        ("fast", True, 1.0),
        ("slow", False, 1.0),
        ("never", False, 1.0),
        ("slow", True, 1.0),
        ("later", False, 1.0),
    ]
    passed(one, 110.0)
    assert one.joiner.counts.outcomes == 3

    def batch(*names):
        return EventBatch.from_events([Event(x={name: 1.0, "x": 2.0}) for name in names])

    def taught(names, labels):
        model = LinearLearner("binary", **delay._OPTIONS)
        given = batch(*names)
        model.learn(EventBatch(given.dicts(), labels))
        return model.predict(batch("later")).table.values[0, 1]

    delayed = taught(["never", "fast", "slow"], [False, False, True])
    real = taught(["never", "slow"], [True, False])
    assert 0.0 < delayed < 1.0
    one.feedback_one("later", True, ts=110.0)
    assert of_events(one, "later")[1:] == [("later", True, 1.0 + delayed)]
    one.step_one({"later": 1.0, "x": 2.0}, id="next", ts=110.0)
    passed(one, 125.0)
    assert of_events(one, "next") == [("next", False, (1.0 + delayed) * real)]


def test_es_dfm_learns_a_positive_within_the_wait_only_as_positive():
    """It is no fake negative."""
    one = trainer(ES_DFM)
    one.step_one({"x": 1.0}, id="a", ts=0.0)
    one.feedback_one("a", True, ts=5.0)
    passed(one, 20.0)
    assert of_events(one, "a") == [("a", True, 1.0)]


def test_auxiliary_models_leave_out_what_they_cannot_learn(monkeypatch):
    """A name too many is left out; a number that is too large makes the model begin anew."""

    def taught(*xs):
        models = ElapsedTime()
        batch = EventBatch.from_events([Event(x=x) for x in xs])
        return models, models.learn(batch, [NEGATIVE] * (len(xs) - 1) + [IMMEDIATE])

    models, lost = taught({"x": 1.0}, {"x": 1e300}, {"x": 3.0}, {"x": 2.0})
    wanted, none = taught({"x": 3.0}, {"x": 2.0})
    assert (lost, none) == (2, 0)
    assert models.state()[:2] == wanted.state()[:2]
    monkeypatch.setattr(delay, "_OPTIONS", {**delay._OPTIONS, "features": 1})
    models, lost = taught({"x": 1.0}, {"x": 2.0, "y": 1.0}, {"x": 2.0})
    wanted, none = taught({"x": 1.0}, {"x": 2.0})
    assert (lost, none) == (2, 0)
    assert models.state()[:2] == wanted.state()[:2]
    assert (models.outcomes, models.negatives) == (3, 2)


@pytest.mark.parametrize(
    ("policy", "least", "most"),
    [
        (Policy(on_expiry="label", default=False, window=10.0, idle=1.0), 0.0, 0.15),
        (FNW, 0.35, 0.45),
        (FNC, 0.35, 0.45),
        (ES_DFM, 0.35, 0.45),
    ],
    ids=["a short window", "fnw", "fnc", "es-dfm"],
)
def test_the_probability_is_that_of_a_stream_without_delay(policy, least, most):
    """Two of five events are positive, three of four of these after the wait."""
    one = trainer(policy, LinearLearner("binary", rate=0.01, intercept_rate=0.02))
    coming: dict[int, list[str]] = {}
    found = []
    for i in range(2_000):
        for name in coming.pop(i, []):
            one.feedback_one(name, True, ts=float(i))
        found.append(one.step_one({"x": 1.0}, id=f"e{i}", ts=float(i)).y_proba[True])
        if i % 5 < 2:
            coming.setdefault(i + (5, 20, 40, 80)[i // 5 % 4], []).append(f"e{i}")
    assert least < np.mean(found[-500:]) < most


def test_outcomes_that_wait_for_their_end_are_bounded():
    """As many as events may wait; the models do without the others."""
    policy = Policy(method="es-dfm", wait=10.0, max_events=2, **ENDS)
    one = trainer(policy)
    for i in range(5):
        one.step_one({"x": 1.0}, id=f"e{i}", ts=0.0)
        one.feedback_one(f"e{i}", True, ts=1.0)
    passed(one, 200.0)
    assert (one.joiner.counts.outcomes, one.joiner.counts.outcomes_lost) == (2, 3)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (ES_DFM, FNW),
        (ES_DFM, Policy(**ENDS)),
        (Policy(**ENDS), ES_DFM),
        (FNW, Policy(idle=1.0, window=100.0)),
    ],
)
def test_another_method_goes_on_with_what_waits(was, now):
    """What was learned as negative is not learned as negative again, and each event ends once."""
    one = trainer(was)
    for name in ("a", "b", "c"):
        one.step_one({"x": 1.0}, id=name, ts=0.0)
    one.feedback_one("a", True, ts=1.0)
    passed(one, 30.0)
    one = one.amended(trainer(now).blank_parts(one.definition()))
    one = Trainer.from_state(one.state())
    one.feedback_one("b", True, ts=31.0)
    passed(one, 300.0)
    passed(one, 500.0)
    labels = [(name, y) for name, y, _ in of_events(one, "b", "c")]
    assert labels.count(("b", True)) == 1
    early = [("b", False), ("c", False)] if was.method != "wait" else []
    ends = [] if early or now.on_expiry == "drop" else [("c", False)]
    assert labels == [*early, ("b", True), *ends]
    assert one.joiner.counts.predicted == 6
    assert len(one.joiner) == 0
    assert Trainer.from_state(one.state()).digest() == one.digest()


@pytest.mark.parametrize(
    ("fields", "key", "told"),
    [
        ({"wait": 5.0}, "wait_seconds", "found 5 for method 'wait'"),
        ({"method": "fnw", "on_expiry": "drop"}, "on_expiry", "needed: 'label'"),
        ({"method": "fnw", "default": True}, "default_label", "needed: false"),
        ({"method": "fnw", "default": None}, "default_label", "missing"),
        ({"method": "es-dfm"}, "wait_seconds", "missing"),
        ({"method": "fnc", "wait": 100.0}, "wait_seconds", "not less than window_seconds"),
        ({"method": "fnc", "default_weight": 0.5}, "default_weight", "found 0.5"),
        ({"method": "fnw", "negative_share": 0.5}, "negative_share", "found 0.5"),
        ({"method": "fnw", "repeats": "last"}, "repeats", "found last"),
        ({"method": "es-dfm", "wait": 5.0, "window_events": 7}, "window_events", "found 7"),
    ],
)
def test_what_does_not_fit_a_method_is_refused(fields, key, told):
    """The key is named, and what is allowed."""
    with pytest.raises(PolicyError, match=told) as error:
        trainer(Policy(**{**ENDS, **fields}))
    assert error.value.key == f"feedback.{key}"


@pytest.mark.parametrize("method", ["fnw", "fnc", "es-dfm"])
def test_methods_need_a_binary_task_and_weights(method):
    """FNC does without weights."""
    wait = 5.0 if method == "es-dfm" else 0.0
    policy = Policy(method=method, wait=wait, **{**ENDS, "default": 0.0})
    with pytest.raises(PolicyError, match="for task regression") as error:
        Trainer(LinearLearner("regression"), feedback=policy)
    assert error.value.key == "feedback.method"
    model = preprocessing.StandardScaler() | linear_model.PAClassifier()
    policy = Policy(method=method, wait=wait, **ENDS)
    if method == "fnc":
        assert len(Trainer(model, feedback=policy).joiner) == 0
        return
    with pytest.raises(PolicyError, match="takes sample weights") as error:
        Trainer(model, feedback=policy)
    assert error.value.key == "feedback.method"


def test_without_a_method_nothing_of_it_is_saved():
    """States and definitions are those of earlier versions."""
    one = trainer(Policy())
    assert not {"method", "wait"} & set(one.definition()["feedback"])
    assert b"outcome" not in one.state()["feedback"]
