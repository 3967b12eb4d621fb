"""The labels of a stream of many classes are of one kind: text, integers or truth values."""

import json
from decimal import Decimal

import numpy as np
import pytest
from river import linear_model, naive_bayes

from midstream import EventBatch, Trainer
from midstream.connectors.encode.outputs import encode_predictions
from midstream.engine.learners.softmax import SoftmaxLearner
from midstream.engine.state import encoding

X = {"a": 1.0}


def made(labels=None, **options) -> Trainer:
    return Trainer(SoftmaxLearner(), labels=labels, **options)


def fed(trainer: Trainer, labels, cut: int) -> list[tuple[int, str]]:
    """Run labels through a trainer in batches; return what was rejected, by its place."""
    rejected = []
    for start in range(0, len(labels), cut):
        part = list(labels[start : start + cut])
        batch = EventBatch(
            [{"a": float(start + i)} for i in range(len(part))],
            part,
            offsets=np.arange(start, start + len(part)),
        )
        batch, refused = trainer.admit(batch)
        rejected += [(r.origin[2], r.reason) for r in refused]
        trainer.step(batch)
    return rejected


@pytest.mark.parametrize("cut", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("labels", "places", "reason"),
    [
        ([None, "a", 1, "1", True], [2, 4], "label must be text as the first one was ('a'), found"),
        ([1, "1", 2.0, True, "b"], [1, 3, 4], "label must be an integer as the first one was (1),"),
        ([True, 1, "true", False], [1, 2], "label must be true/false as the first one was (true)"),
    ],
)
def test_the_first_label_settles_the_kind(labels, places, reason, cut):
    """Labels of another kind are rejected by name, however the stream is cut."""
    trainer = made()
    rejected = fed(trainer, labels, cut)
    assert [place for place, _ in rejected] == places
    assert all(found.startswith(reason) for _, found in rejected)
    whole = made()
    fed(whole, labels, 100)
    assert whole.digest() == trainer.digest()


class Brittle(naive_bayes.GaussianNB):
    """Raises where a is 13."""

    def learn_one(self, x, y):
        if x["a"] == 13.0:
            raise ValueError("unlucky")
        super().learn_one(x, y)


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_an_event_that_the_learner_raises_on_leaves_no_other_trace(cut):
    """Its label settles the kind, however the stream is cut; the state is else that without it."""
    labels = ["a", 1, "b", "c", 2]
    trainer, clean = (
        Trainer(Brittle(), task="multiclass", modules=["test_labels", __name__]) for _ in range(2)
    )
    rejected = []
    for start in range(0, len(labels), cut):
        part = labels[start : start + cut]
        x = [{"a": 13.0 if label == "a" else 1.0} for label in part]
        batch, refused = trainer.admit(EventBatch(x, part))
        rejected += [start + r.origin[2] for r in refused]
        batch = batch.take([i for i, x in enumerate(batch.dicts()) if x["a"] != 13.0])
        trainer.step(batch)  # as a shard does: what it raised on is left out
    for label in ("b", "c"):
        clean.step_one({"a": 1.0}, label)
    assert rejected == [1, 4]
    assert trainer.state()["trainer"] == clean.state()["trainer"]


@pytest.mark.parametrize("cut", [1, 10])
def test_what_is_rejected_settles_nothing(cut):
    """An event that is rejected for another reason is as if it had never come."""
    trainer = Trainer(naive_bayes.GaussianNB(), task="multiclass")
    labels, weights = ["a", 1, "b", 2], [2.0, 1.0, 1.0, 1.0]
    places = []
    for i in range(0, 4, cut):
        part = slice(i, i + cut)
        batch = EventBatch([X] * len(labels[part]), labels[part], weights=weights[part])
        batch, refused = trainer.admit(batch)
        places += [i + r.origin[2] for r in refused]
        trainer.step(batch)
    assert places == [0, 2]
    assert trainer.label_kind == "integer"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("text", ["1", "a"], [1, True]),
        ("integer", [1, 2.0], ["1", True]),
        ("bool", [True], [1, "a"]),
    ],
)
def test_the_config_settles_the_kind(kind, good, bad):
    """Then the first label has no say."""
    trainer = made(kind)
    rejected = fed(trainer, [*bad, *good], 10)
    assert [place for place, _ in rejected] == [0, 1]
    assert "as labels says" in rejected[0][1]
    assert trainer.learned == len(good)
    assert trainer.definition()["labels"] == kind
    assert "labels" not in made().definition()


def test_what_a_version_learned_settles_the_kind_after_a_resume():
    """The first label is a part of the state."""
    trainer = made()
    trainer.step_one(X, "a")
    resumed = Trainer.from_state(trainer.state())
    assert resumed.label_kind == "text"
    assert resumed.digest() == trainer.digest()
    for each in (trainer, resumed):
        with pytest.raises(ValueError, match=r"\$\.y: label must be text as the first one was"):
            each.step_one(X, 1)
        each.step_one(X, "1")
    assert resumed.digest() == trainer.digest()


def test_a_state_of_before_there_were_kinds_has_that_of_its_classes():
    """It is read from what the metrics know."""
    trainer = made()
    for label in (3, 4):
        trainer.step_one(X, label)
    state = trainer.state()
    about = encoding.decode(state["trainer"])
    del about["labels"]
    old = Trainer.from_state({**state, "trainer": encoding.encode(about)})
    assert old.label_kind == "integer"
    with pytest.raises(ValueError, match=r"as the first one was \(3\), found 'b'"):
        old.step_one(X, "b")


@pytest.mark.parametrize(
    ("given", "plain"),
    [(np.int64(2), 2), (np.float32(2), 2), (2.0, 2), (np.str_("b"), "b"), (np.bool_(True), True)],
)
def test_labels_of_numpy_are_those_of_python(given, plain):
    """So that a stream from an array is the same as one from a file."""
    ours, theirs = made(), made()
    ours.step_one(X, given)
    theirs.step_one(X, plain)
    assert ours.digest() == theirs.digest()
    assert type(next(iter(ours.predict_one(X).y_proba))) is type(plain)


@pytest.mark.parametrize("number", [1.5, 2.0, 0.1, None])
def test_decimals_are_numbers(number):
    """As a database has them: features, labels and weights; what was learned can be saved."""
    given = Decimal("NaN") if number is None else Decimal(str(number))
    ours, theirs = (Trainer(linear_model.LinearRegression()) for _ in range(2))
    for _ in range(3):
        ours.step_one({**X, "b": given}, given, weight=given)
        theirs.step_one({**X, "b": number}, number, weight=1.0 if number is None else number)
    assert ours.state() == theirs.state()
    with pytest.raises(ValueError, match=r"\$\.x\.b: number is too large or not finite"):
        ours.step_one({"b": Decimal("-Infinity")}, 1.0)


@pytest.mark.parametrize("label", [1.5, [1], {"a": 1}, "", 2**70, float("inf")])
def test_what_is_no_label_is_refused(label):
    """Nothing of the event is learned."""
    trainer = made()
    with pytest.raises(ValueError, match=r"^\$\.y: "):
        trainer.step_one(X, label)
    with pytest.raises(ValueError, match=r"^\$\.y: "):
        trainer.step(EventBatch([X], [label]))
    assert trainer.seen == 0


def test_kinds_are_for_many_classes():
    """Other tasks have one kind of label each."""
    with pytest.raises(ValueError, match="labels is for task multiclass"):
        Trainer(naive_bayes.GaussianNB(), task="binary", labels="text")


@pytest.mark.parametrize("model", [SoftmaxLearner, naive_bayes.GaussianNB])
@pytest.mark.parametrize("labels", [["1", "true", "b", "1"], [1, 2, 1, 3], [True, False, True]])
def test_each_class_has_its_probability_once(model, labels):
    """The lines of predictions: no name twice, and what they say sums to one."""
    made_of = model()
    trainer = Trainer(made_of, task="multiclass")
    batch = EventBatch([{"a": float(i % 3)} for i in range(60)], (labels * 60)[:60])
    batch, rejected = trainer.admit(batch)
    assert not rejected
    lines = encode_predictions(
        batch, trainer.step(batch).predictions,
        task="multiclass", model="m", version=1, role="champion",
    )  # fmt: skip
    told = 0
    for line in lines.splitlines():
        pairs = json.loads(line, object_pairs_hook=list)
        proba = dict(pairs)["y_proba"]
        if proba:
            told += 1
            assert len(dict(proba)) == len(proba)
            assert sum(dict(proba).values()) == pytest.approx(1.0)
    assert told > 50
