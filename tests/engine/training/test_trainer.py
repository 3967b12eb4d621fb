"""The Trainer: predict, score, learn; save and load; refuse what would harm."""

import itertools
import math

import numpy as np
import pytest
from river import datasets, dummy, forest, linear_model, naive_bayes, preprocessing
from stream_models import ArrayLearner
from zoo import events

from midstream import EventBatch, Reservoir, Trainer
from midstream.engine.events.batch import Targets
from midstream.engine.events.event import Event
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.learner import LEARNERS, LearnerError, UnseededError
from midstream.engine.state import encoding
from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.snapshot import SnapshotError


def logistic():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def test_the_prediction_is_made_before_the_event_is_learned():
    """The first prediction knows nothing; a memory of the last label is one event behind."""
    trainer = Trainer(dummy.NoChangeClassifier(), task="multiclass")
    predicted = [trainer.step_one({"a": 1}, y).y_pred for y in ("red", "blue", "blue")]
    assert predicted == [None, "red", "blue"]


def test_single_events_give_what_batches_give():
    """`step_one` is `step` on a batch of one."""
    data = list(events("binary", 300))
    one, many = Trainer(logistic(), replay=0), Trainer(logistic(), replay=0)
    for x, y in data:
        one.step_one(x, y)
    many.step(EventBatch([dict(x) for x, _ in data], [y for _, y in data]))
    assert one.metrics == many.metrics
    assert one.digest() == many.digest()


def test_an_event_without_label_changes_nothing_but_the_count():
    """A prediction request is answered, not learned, not scored, not kept."""
    trainer = Trainer(logistic())
    trainer.step_one({"a": 1.0}, True)
    before = trainer.learner.state()
    prediction = trainer.step_one({"a": 5.0})
    assert prediction.y_pred is not None
    assert trainer.learner.state() == before
    assert (trainer.seen, trainer.learned, trainer.prequential.scored) == (2, 1, 1)
    assert len(trainer.replay) == 1


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), np.float32("inf")])
def test_a_feature_or_label_that_is_infinite_is_refused(value):
    """One infinity would make a linear model NaN for ever."""
    trainer = Trainer(linear_model.LinearRegression())
    with pytest.raises(ValueError, match=r"^\$\.x\.a: number is too large or not finite$"):
        trainer.step_one({"a": value}, 1.0)
    with pytest.raises(ValueError, match=r"^\$\.x\.a: number is too large or not finite$"):
        trainer.predict_one({"a": value})
    with pytest.raises(ValueError, match=r"^\$\.y: number is too large or not finite$"):
        trainer.step_one({"a": 1.0}, value)
    assert trainer.seen == 0


@pytest.mark.parametrize("value", [None, float("nan"), np.float64("nan"), np.float32("nan")])
def test_what_is_missing_is_left_out(value):
    """None and NaN are no features, labels, weights or times, as in every format."""
    trainer, other = Trainer(logistic()), Trainer(logistic())
    trainer.step_one({"a": 1.0, "b": value}, True, weight=value, ts=value)
    other.step_one({"a": 1.0}, True)
    assert trainer.digest() == other.digest()
    assert trainer.predict_one({"a": 2.0, "b": value}).y_proba == (
        trainer.predict_one({"a": 2.0}).y_proba
    )
    array = np.array([[1.0, np.nan]])
    predicted = [
        trainer.predict(EventBatch(None, [None], array=array, names=["a", "b"])),
        trainer.predict(EventBatch([{"a": 1.0, "b": value}], [None])),
        trainer.predict(EventBatch([{"a": 1.0}], [value])),
    ]
    assert all(made.probas == predicted[0].probas for made in predicted)
    trainer.step_one({"a": 1.0}, value)
    assert (trainer.seen, trainer.learned) == (2, 1)
    with pytest.raises(ValueError, match=r"^no features$"):
        trainer.step_one({"a": value}, True)


def test_times_and_values_of_numpy_are_as_those_of_a_file():
    """Milliseconds are no seconds; scalars of NumPy are Python's."""
    trainer, other = Trainer(logistic()), Trainer(logistic())
    found = trainer.step_one({"a": np.float64(1.5)}, np.bool_(True), ts=1_764_000_000_500)
    assert found.ts == 1_764_000_000.5
    other.step_one({"a": 1.5}, 1)
    assert trainer.learner.state() == other.learner.state()


def test_a_saved_trainer_goes_on_as_the_original(tmp_path):
    """After a load, predictions, metrics and digest stay equal."""
    data = list(datasets.Phishing())
    trainer = Trainer(logistic(), drift=["adwin", "page_hinkley"], replay=Reservoir(40, seed=2))
    for x, y in data[:600]:
        trainer.step_one(x, y)
    trainer.save(tmp_path / "t.midstream")
    loaded = Trainer.load(tmp_path / "t.midstream")
    assert loaded.digest() == trainer.digest()
    for x, y in data[600:]:
        assert loaded.step_one(x, y) == trainer.step_one(x, y)
    assert loaded.metrics == trainer.metrics
    assert loaded.digest() == trainer.digest()


def test_a_damaged_file_is_refused_by_name(tmp_path):
    """A flipped bit is found before anything is decoded."""
    path = tmp_path / "t.midstream"
    Trainer(logistic()).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=r"t\.midstream"):
        Trainer.load(path)


def test_a_learner_with_an_unset_seed_is_refused_by_name():
    """Nobody could repeat such a run, wherever in the model the seed is missing."""
    with pytest.raises(UnseededError, match="ARFClassifier has no seed"):
        Trainer(preprocessing.StandardScaler() | forest.ARFClassifier())


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (linear_model.LinearRegression(), "binary", "needs a classifier"),
        (linear_model.LogisticRegression(), "regression", "needs a regressor"),
        (linear_model.LogisticRegression(), "multiclass", "two classes only"),
        (preprocessing.StandardScaler(), None, "neither a classifier nor a regressor"),
        (linear_model.LogisticRegression, None, "the class LogisticRegression"),
        (42, None, "got int"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(model, task, message):
    """What is given, what is needed: in one line."""
    with pytest.raises(TypeError, match=message):
        Trainer(model, task=task)


def test_a_step_that_cannot_be_saved_is_named():
    """A lambda in a pipeline works until it is to be saved; the message says where it is."""
    from river import compose

    trainer = Trainer(compose.FuncTransformer(lambda x: x) | logistic())
    with pytest.raises(EncodingError, match="lambda"):
        trainer.state()


def test_a_learner_that_raises_names_the_row():
    """The row of the event that the learner could not take is in the error."""
    trainer = Trainer(logistic())
    batch = EventBatch.from_events([Event(x={"a": 1.0}, y=True), Event(x={"a": "text"}, y=True)])
    with pytest.raises(LearnerError) as caught:
        trainer.step(batch)
    assert caught.value.row == 1


def test_weights_reach_a_learner_that_takes_them_and_are_rejected_by_one_that_does_not():
    """A weight is never silently dropped."""
    heavy, light = Trainer(logistic()), Trainer(logistic())
    heavy.step_one({"a": 1.0}, True, weight=5.0)
    light.step_one({"a": 1.0}, True)
    assert heavy.learner.state() != light.learner.state()
    batch = EventBatch([{"a": 1.0}, {"a": 2.0}], [True, False], weights=[2.0, 1.0])
    taken, rejected = Trainer(naive_bayes.GaussianNB()).admit(batch)
    assert len(taken) == 1
    assert "takes no sample weights" in rejected[0].reason


def test_the_state_is_copied_out_never_shared():
    """A state taken earlier is not changed by what is learned later."""
    trainer = Trainer(logistic())
    trainer.step_one({"a": 1.0}, True)
    state = trainer.state()
    copy = dict(state)
    for i in range(50):
        trainer.step_one({"a": float(i)}, i % 2 == 0)
    assert state == copy
    assert Trainer.from_state(state).learned == 1


class Gives:
    """A learner that predicts what it is told to."""

    kind = "gives"
    needs = "columns"
    takes_weights = False

    def __init__(self, task, predictions):
        self.task = task
        self._predictions = predictions

    def predict_learn(self, batch):
        assert len(batch) == len(self._predictions)
        return self._predictions

    predict = predict_learn

    def learn(self, batch):
        pass

    def state(self):
        return b""

    def definition(self):
        return {}


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("task", "predictions"),
    [
        ("regression", Predictions(np.array([1.0, NAN, INF, -1e141, 1e140]))),
        ("regression", Predictions([1.0, NAN, -INF, 1e141, None])),
        ("binary", Predictions(np.array([0.0, NAN, INF, -INF, 1.0]))),
        (
            "binary",
            Predictions(
                [True] * 5,
                Table((False, True), np.array([[0.5, 0.5], [NAN, 1], [0, INF], [-INF, 1], [1, 0]])),
            ),
        ),
        (
            "multiclass",
            Predictions(
                ["a", "b", "c", NAN, None],
                [{"a": 1.0}, {"a": 0.5, "b": NAN}, {"a": INF}, {"a": 1.0}, {}],
            ),
        ),
    ],
)
def test_predictions_that_are_not_finite_are_counted(task, predictions):
    """Of five predictions the three are counted that are nan, infinite or too large to score."""
    labels = [1.0] * 5 if task == "regression" else [True] * 5
    trainer = Trainer(
        Gives(task, predictions), metrics=["mae" if task == "regression" else "accuracy"]
    )
    batch = EventBatch([{"a": 1.0}] * 5, labels)
    assert predictions.not_finite(task).tolist() == [1, 2, 3]
    assert trainer.step(batch).non_finite == 3


class Dies:
    """A learner that predicts right, but for nan or infinity at the offsets that it is told."""

    kind = "dies"
    needs = "columns"
    takes_weights = False

    def __init__(self, task, odd, value=NAN):
        self.task = task
        self._odd = odd
        self._value = value

    def predict_learn(self, batch):
        odd = np.isin(batch.offsets, self._odd)
        if self.task == "regression":
            return Predictions(np.where(odd, self._value, 0.5))
        true = np.where(odd, self._value, 0.9)
        table = Table((False, True), np.stack((1 - true, true), axis=1))
        return Predictions(np.full(len(batch), True), table)

    predict = predict_learn

    def learn(self, batch):
        pass

    def state(self):
        return encoding.encode([self.task, self._odd, self._value])

    def definition(self):
        return {}


@pytest.fixture
def _dies_can_be_loaded(monkeypatch):
    monkeypatch.setitem(LEARNERS, "dies", lambda data, **_: Dies(*encoding.decode(data)))


def stretch(start, stop, task="regression", unlabelled=()):
    y = 1.0 if task == "regression" else True
    labels = [None if i in unlabelled else y for i in range(start, stop)]
    return EventBatch(
        None,
        labels,
        offsets=np.arange(start, stop),
        times=[float(i) for i in range(start, stop)],
        array=np.ones((stop - start, 1)),
        names=["a"],
    )


@pytest.mark.usefixtures("_dies_can_be_loaded")
@pytest.mark.parametrize("task", ["regression", "binary"])
@pytest.mark.parametrize("cuts", [[], [101], [100, 102, 1_500], range(7, 5_000, 331)])
def test_a_stretch_of_predictions_that_are_not_finite_has_one_alarm(task, cuts):
    """There is one at the first, and at the next after 1,000 events without, whatever the cuts.

    Between the parts the trainer is saved and restored.
    """
    odd = [100, 101, 500, 1_500, 2_501, 2_502, 4_000]
    trainer = Trainer(Dies(task, odd), task=task, drift=[])
    alarms, counts = [], []
    for start, stop in itertools.pairwise([0, *cuts, 5_000]):
        step = trainer.step(stretch(start, stop, task, unlabelled=(500,)))
        alarms += step.alarms
        counts.append(step.non_finite)
        trainer = Trainer.from_state(trainer.state())
    assert sum(counts) == trainer.prequential.non_finite == 7
    assert [(a.kind, a.detector, a.position, a.value, a.ts) for a in alarms] == [
        ("non_finite", "non_finite", 101, 1.0, 100.0),
        ("non_finite", "non_finite", 2_502, 5.0, 2_501.0),
        ("non_finite", "non_finite", 4_001, 7.0, 4_000.0),
    ]
    name = "mae" if task == "regression" else "log_loss"
    assert all(math.isfinite(trainer.metrics[name + view]) for view in ("", ".fading", ".window"))


@pytest.mark.parametrize("task", ["regression", "binary"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_detectors_see_a_dead_model_at_its_worst(task, value):
    """From where all predictions are not finite, one alarm tells that and ADWIN tells of drift."""
    trainer = Trainer(Dies(task, list(range(2_000, 4_000)), value), task=task)
    step = trainer.step(stretch(0, 4_000, task))
    assert [alarm.detector for alarm in step.alarms] == ["non_finite", "adwin"]
    assert [alarm.kind for alarm in step.alarms] == ["non_finite", "drift"]
    assert step.alarms[0].position == 2_001
    assert step.alarms[1].position <= 2_100
    assert step.non_finite == 2_000
    assert np.isnan(step.losses[2_000:]).all()
    assert trainer.metrics["mae" if task == "regression" else "accuracy"] == (
        0.5 if task == "regression" else 1.0
    )


def test_a_label_is_not_predicted_by_probabilities_that_are_not_finite():
    """Such a prediction has no label, in a batch, in a single step and where nothing is learned."""
    trainer = Trainer(Dies("binary", [1]), task="binary")
    batch = stretch(0, 3, "binary")
    assert trainer.step(batch).predictions.values == [True, None, True]
    assert trainer.predict(batch).values == [True, None, True]
    assert [math.isnan(p[True]) for p in trainer.predict(batch).probas] == [False, True, False]
    trainer = Trainer(Dies("binary", [0]), task="binary")
    assert trainer.step_one({"a": 1.0}, True).y_pred is None
    assert trainer.predict_one({"a": 1.0}).y_pred is None


@pytest.mark.parametrize(
    "predictions",
    [
        Predictions(np.array([1, 2])),
        Predictions(np.array([1, 10**9])),
        Predictions(np.array([1.0, 0.5])),
        Predictions([True, []]),
        Predictions([True, False], [{True: 1.0}, {True: "x"}]),
        Predictions([True, False], [{True: 1.0}, 5]),
    ],
)
@pytest.mark.parametrize("columns", [True, False])
def test_predictions_that_cannot_be_scored_name_the_event(predictions, columns):
    """What is no label or no probability is a LearnerError at its event, never a crash."""
    labels = Targets(np.array([1.0, 0.0]), True) if columns else [True, False]
    batch = EventBatch(None, labels, array=np.ones((2, 1)), names=["a"])
    with pytest.raises(LearnerError) as caught:
        Trainer(Gives("binary", predictions)).step(batch)
    assert caught.value.row == 1


@pytest.mark.parametrize("name", ["seen", "learned", "non_finite_at"])
@pytest.mark.parametrize("value", [None, "7", NAN, -2])
def test_damaged_counts_are_refused(name, value):
    """What is counted is a whole number in every state."""
    state = Trainer(logistic()).state()
    about = encoding.decode(state["trainer"]) | {name: value}
    with pytest.raises(ValueError, match="damaged trainer state: its counts are"):
        Trainer.from_state(state | {"trainer": encoding.encode(about)})


def test_a_state_of_before_such_predictions_were_told_is_read():
    """The first that is not finite then has an alarm."""
    state = Trainer(logistic()).state()
    about = encoding.decode(state["trainer"])
    del about["non_finite_at"]
    restored = Trainer.from_state(state | {"trainer": encoding.encode(about)})
    assert restored.digest() == Trainer(logistic()).digest()


def test_a_state_with_metrics_of_another_task_is_refused():
    """Metrics of regression cannot score a classifier."""
    other = Trainer(linear_model.LinearRegression()).state()
    state = Trainer(logistic()).state() | {"metrics": other["metrics"]}
    with pytest.raises(ValueError, match="task binary, with metrics of task regression"):
        Trainer.from_state(state)


def _table(classes, columns, rows=3):
    return Table(classes, np.full((rows, columns), 0.5))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "NoneType"),
        (Predictions(np.ones((3, 1))), r"\(3, 1\)"),
        (Predictions([True] * 3, _table((False, True), 3)), r"\(3, 3\)"),
        (Predictions([True] * 3, _table((False, True), 2, rows=2)), r"\(2, 2\)"),
        (Predictions([True] * 3, _table((True, True), 2)), "class twice"),
        (Predictions([True] * 3, _table((True, "true"), 2)), "class twice"),
        (Predictions(["1"] * 3, _table((1, "1"), 2)), "class twice"),
    ],
    ids=["none", "array", "wide", "short", "twice", "true twice", "one twice"],
)
def test_predictions_of_another_form_are_an_error_of_the_learner(answer, said):
    """One line says what a learner of one's own has returned; a class has one probability."""
    trainer = Trainer(ArrayLearner("binary"))
    trainer.learner.predict_learn = lambda batch: answer
    with pytest.raises(LearnerError, match=said):
        trainer.step(EventBatch([{"a": 1.0}] * 3, [True, False, True]))


def test_parts_that_are_missing_or_surplus_are_named():
    """A state without a part is damaged; one with a part that nobody knows is a newer one's."""
    state = Trainer(linear_model.LogisticRegression()).state()
    for name in ("trainer", "learner", "metrics", "drift", "replay"):
        with pytest.raises(ValueError, match=f"lacks its part '{name}'"):
            Trainer.from_state({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match="part 'quality' that this version does not know"):
        Trainer.from_state(state | {"quality": b""})


def test_a_proof_is_of_a_few_events_and_changes_nothing():
    """The predictions of five events of the replay buffer, exactly; none where there is none."""
    trainer = Trainer(linear_model.LogisticRegression(), replay=40)
    assert trainer.proof() == []
    for i in range(100):
        trainer.step_one({"a": i / 100}, i % 3 == 0)
    before = trainer.digest()
    proof = trainer.proof()
    assert len(proof) == 5
    assert Trainer.from_state(trainer.state()).proof() == proof
    assert trainer.digest() == before
    assert len(set(proof)) == 5
