"""A learner that raises on an event: the message names the feature, its value, and a way out."""

import copy

import pytest
from river import base, compose, feature_extraction, linear_model, preprocessing, stats

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import LearnerError, RiverLearner
from midstream.engine.shard.outcome import EventError

GOOD = {"age": 30.0, "income": 2.0, "shop": "A", "country": "CH"}


class Halves(base.Transformer):
    """A step of a user's."""

    def transform_one(self, x):
        return {"half": x["age"] / 2}


def raised(model, x, y=True, *, task="binary", label=True):
    """Return what a learner raises on an event after a good one."""
    learner = RiverLearner(model, task)
    good = [GOOD | {"age": 30.0 + i, "income": 2.0 * i} for i in range(4)]
    learner.predict_learn(EventBatch.from_events([Event(x=x, y=y) for x in good]))
    with pytest.raises(LearnerError) as caught:
        learner.predict_learn(EventBatch.from_events([Event(x=x, y=y if label else None)]))
    return caught.value


CASES = {
    "scaler": (
        lambda: compose.Select("age", "income") | preprocessing.StandardScaler(),
        "StandardScaler",
    ),
    "minmax": (
        lambda: compose.Select("age", "income") | preprocessing.MinMaxScaler(),
        "MinMaxScaler",
    ),
    "linear": (lambda: compose.Select("age", "income"), "LogisticRegression"),
    "own": (Halves, "Halves"),
    "with categories": (
        lambda: (
            (compose.Select("age") | preprocessing.StandardScaler())
            + (compose.Select("country") | preprocessing.OneHotEncoder())
        ),
        "StandardScaler",
    ),
}


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_text_where_a_number_belongs_is_named(name, label):
    """The feature, what it holds, the step that computes with it, and what to write."""
    make, step = CASES[name]
    error = raised(make() | linear_model.LogisticRegression(), GOOD | {"age": "N/A"}, label=label)
    assert f"step {step} computes with the feature 'age', which is the text 'N/A'" in str(error)
    assert '[input.fields] types = { age = "number" } rejects such events' in error.hint
    assert 'missing = ["N/A"] takes it for missing' in error.hint
    assert isinstance(error.cause, TypeError)


def test_a_bare_linear_model_names_the_feature():
    """The loop that is written out names it as River's methods do, and quotes odd names."""
    learner = RiverLearner(linear_model.LogisticRegression())
    events = [Event(x={"my age": 1.0}, y=True), Event(x={"my age": "about thirty"}, y=True)]
    with pytest.raises(LearnerError, match="'my age', which is the text 'about thirty'") as caught:
        learner.predict_learn(EventBatch.from_events(events))
    assert 'types = { "my age" = "number" }' in caught.value.hint
    assert "missing" not in caught.value.hint


@pytest.mark.parametrize("model", [preprocessing.StandardScaler, preprocessing.OneHotEncoder])
def test_a_missing_group_names_the_step_and_the_feature(model):
    """A KeyError alone does not tell who asked for what."""
    agg = feature_extraction.TargetAgg(by="shop", how=stats.Mean())
    without = {k: v for k, v in GOOD.items() if k != "shop"}
    error = raised(agg | model() | linear_model.LinearRegression(), without, 2.0, task="regression")
    assert "step TargetAgg needs the feature 'shop', and the event has none" in str(error)
    shown = EventError(("e", 0, 7), "e-0", "{}", error.cause, hint=error.hint)
    assert "TargetAgg needs the feature 'shop'" in shown.reason


class Sums(base.Transformer):
    """Adds up some of the features."""

    def transform_one(self, x):
        return {"sum": sum([x["age"], x["income"]]), "is_a": float(x["shop"] == "A")}


def test_the_feature_is_found_by_trying_where_the_step_takes_all_of_them():
    """Text that the step can well do with is not blamed; of two, the one that raised is named."""
    model = Sums() | linear_model.LogisticRegression()
    hint = raised(model, GOOD | {"income": "secret"}).hint
    assert "step Sums computes with the feature 'income', which is the text 'secret'" in hint
    assert "shop" not in hint
    model = Sums() | linear_model.LogisticRegression()
    hint = raised(model, GOOD | {"income": "many", "age": "few"}).hint
    assert "the feature 'age', which is the text 'few'" in hint


def test_text_is_not_blamed_for_what_is_no_fault_of_it():
    """Where the step raises whatever the text is, nothing is said."""
    model = Broken(TypeError("no")) | linear_model.LogisticRegression()
    assert raised(model, {"age": 50.0, "shop": "A"}).hint == ""


class Broken(base.Transformer):
    """Raises for reasons of its own."""

    def __init__(self, error):
        self.error = error

    def transform_one(self, x):
        if x["age"] > 40:
            raise self.error
        return {"age": x["age"]}


@pytest.mark.parametrize(
    "error", [KeyError("state"), KeyError(3), ValueError("no"), ZeroDivisionError("x")], ids=repr
)
def test_nothing_is_said_where_nothing_is_known(error):
    """What is raised for another reason is handed on as it is, without a guess."""
    numbers = {"age": 50.0}
    model = Broken(error) | linear_model.LogisticRegression()
    assert raised(model, numbers).hint == ""


class Copied(base.Transformer):
    """Counts how often it was copied."""

    copies = 0

    def __deepcopy__(self, memo):
        type(self).copies += 1
        return type(self)()

    def transform_one(self, x):
        return {"age": x["age"], "group": float(x["shop"] == "A")}


def test_what_was_found_by_trying_is_not_tried_again():
    """A copy of a large model for each such event would take longer than to learn."""
    learner = RiverLearner(Copied() | linear_model.LogisticRegression(), "binary")
    for _ in range(4):
        with pytest.raises(LearnerError, match="needs the feature 'shop'"):
            learner.predict_learn(EventBatch.from_events([Event(x={"age": 1.0}, y=True)]))
    assert Copied.copies == 1


def test_a_copy_of_a_learner_learns_by_itself():
    """The original does not learn what its copy does."""
    learner = RiverLearner(linear_model.LogisticRegression())
    other, state = copy.deepcopy(learner), learner.state()
    other.predict_learn(EventBatch.from_events([Event(x={"age": 1.0}, y=True)]))
    assert learner.state() == state != other.state()
