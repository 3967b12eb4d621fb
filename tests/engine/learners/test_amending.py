"""What a River model has learned, taken over by one that is defined otherwise."""

import copy

import numpy as np
import pytest
from project import events
from river import (
    base,
    compose,
    drift,
    ensemble,
    forest,
    linear_model,
    multiclass,
    naive_bayes,
    optim,
    preprocessing,
    rules,
    stats,
    tree,
)  # fmt: skip

from midstream import Trainer
from midstream.engine.learners import amending
from midstream.engine.learners.describing import described
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.learners.softmax import SoftmaxLearner
from midstream.engine.shard.amending import misfits
from midstream.engine.state import encoding
from midstream.engine.state.changes import MisfitError, is_same


def taken_over(old, new, modules=(), was=None):
    """Take a model over; `was` is its definition as it was made, if that has changed."""
    return amending.taken_over(old, new, was or described(old), described(new), modules)


def learned(model, n=400):
    for event in events(n):
        model.learn_one(event["x"], event["y"])
    return model


def pipeline(**options):
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(**options)


@pytest.mark.parametrize(
    "make",
    [
        pipeline,
        tree.HoeffdingTreeClassifier,
        lambda: forest.ARFClassifier(n_models=3, seed=1),
        lambda: ensemble.BaggingClassifier(linear_model.LogisticRegression(), n_models=3, seed=1),
        naive_bayes.GaussianNB,
        lambda: drift.DriftRetrainingClassifier(tree.HoeffdingTreeClassifier()),
        lambda: multiclass.OneVsRestClassifier(linear_model.LogisticRegression()),
    ],
)
def test_what_is_not_changed_is_kept_bit_for_bit(make):
    """The same definition, built anew, goes on as the old one would have."""
    old = learned(make())
    new = taken_over(copy.deepcopy(old), make(), was=described(make()))
    for event in events(50, seed=7):
        for model in (old, new):
            model.learn_one(event["x"], event["y"])
    assert encoding.encode(new) == encoding.encode(old)


def test_an_argument_applies_from_now_on():
    """Weights, scales and the optimizer's memory stay; the penalty is the new one."""
    old = learned(pipeline(optimizer=optim.Adam(0.01)))
    weights = dict(old["LogisticRegression"].weights)
    new = taken_over(old, pipeline(optimizer=optim.Adam(0.05), l2=0.1))
    model = new["LogisticRegression"]
    assert dict(model.weights) == weights
    assert model.l2 == 0.1
    assert model.optimizer.lr.learning_rate == 0.05
    assert model.optimizer.n_iterations == 400
    assert new["StandardScaler"].counts["f0"] == 400


def test_a_step_that_comes_begins_and_one_that_goes_is_let_go_of():
    """The others go on, wherever they stand."""
    old = learned(preprocessing.MinMaxScaler() | pipeline())
    new = taken_over(old, preprocessing.AdaptiveStandardScaler() | pipeline())
    assert list(new.steps) == ["AdaptiveStandardScaler", "StandardScaler", "LogisticRegression"]
    assert new["StandardScaler"].counts["f0"] == 400
    assert not new["AdaptiveStandardScaler"].vars
    union = compose.TransformerUnion(preprocessing.StandardScaler(), preprocessing.MinMaxScaler())
    wider = union.clone() + preprocessing.MaxAbsScaler()
    for event in events(50):
        union.learn_one(event["x"])
    assert taken_over(union, wider).transformers["StandardScaler"].counts["f0"] == 50


class Windowed(base.Transformer):
    """Keeps a window whose length an argument gives."""

    def __init__(self, n=5):
        self.n = n
        self.mean = stats.Mean()
        self.last = [0.0] * n

    def learn_one(self, x):
        self.mean.update(x["f0"])
        self.last = [*self.last[1:], x["f0"]]

    def transform_one(self, x):
        return {**x, "mean": self.mean.get()}


def test_what_was_learned_and_depends_on_a_changed_argument_does_not_fit():
    """The message names the attribute, with its path; nothing learned in it fits."""
    old = learned(Windowed() | pipeline())
    with pytest.raises(MisfitError, match=r"^Windowed\.last does not fit: what was learned"):
        taken_over(old, Windowed(n=7) | pipeline(), [__name__])
    fresh = Windowed() | pipeline()
    assert taken_over(fresh, Windowed(n=7) | pipeline(), [__name__])["Windowed"].last == [0.0] * 7


class Renamed(base.Transformer):
    def __init__(self):
        self.seen = 0

    def learn_one(self, x):
        self.seen += 1

    def transform_one(self, x):
        return x


def test_code_that_was_mended_goes_on_with_what_the_old_had(monkeypatch):
    """A new attribute begins as the code has it; one of another type does not fit."""
    old = learned(Renamed() | pipeline())

    def more(self):
        self.seen = 0
        self.extra = {}

    monkeypatch.setattr(Renamed, "__init__", more)
    new = taken_over(old, Renamed() | pipeline(), [__name__])
    assert (new["Renamed"].seen, new["Renamed"].extra) == (400, {})

    def other(self):
        self.seen = []

    old = learned(Renamed() | pipeline())
    old["Renamed"].seen = 400
    monkeypatch.setattr(Renamed, "__init__", other)
    with pytest.raises(MisfitError, match=r"^Renamed\.seen does not fit: it is of type int"):
        taken_over(old, Renamed() | pipeline(), [__name__])


@pytest.mark.parametrize(
    ("kind", "old", "new", "attribute"),
    [
        (LinearLearner, {}, {"rate": 0.1, "l2": 0.1, "clip": 5.0}, None),
        (LinearLearner, {}, {"optimizer": "adam"}, None),
        (LinearLearner, {"optimizer": "ftrl"}, {"optimizer": "sgd"}, "optimizer"),
        (LinearLearner, {"bits": 8}, {"bits": 9}, "bits"),
        (LinearLearner, {}, {"scale": False}, "scale"),
        (LinearLearner, {}, {"features": 2}, "features"),
        (LinearLearner, {}, {"threshold": 0.2, "class_weights": {True: 3.0}}, None),
        (SoftmaxLearner, {}, {"rate": 0.1, "optimizer": "adagrad"}, None),
        (SoftmaxLearner, {}, {"classes": 2}, "classes"),
    ],
)
def test_options_of_compiled_learners(kind, old, new, attribute):
    """Those that weights depend on do not fit; with the others what was learned goes on."""
    task = "binary" if kind is LinearLearner else "multiclass"
    trainer = Trainer(kind(task, **old))
    for i, event in enumerate(events(300)):
        y = event["y"] if task == "binary" else "abc"[i % 3]
        trainer.step_one({**event["x"], "city": f"c{i % 7}"}, y)
    blank = Trainer(kind(task, **{**old, **new}))
    parts = blank.blank_parts(trainer.definition())
    assert [change.level for change in blank.changes(trainer.definition())] == ["asked"] * len(new)
    if attribute is not None:
        with pytest.raises(MisfitError, match=f"^{attribute} does not fit"):
            trainer.amended(parts)
        return
    amended = trainer.amended(parts)
    assert amended.definition() == blank.definition()
    assert amended.seen == 300
    assert amended.learner.explain() == trainer.learner.explain()
    amended.step_one({"f0": 1.0}, True if task == "binary" else "a")


def test_every_river_model_of_the_zoo_is_taken_over_or_named():
    """Whatever a change does to it, the answer is a model that learns, or a misfit."""
    for model in (rules.AMRules(), tree.HoeffdingAdaptiveTreeRegressor(seed=1)):
        for event in events(300):
            model.learn_one(event["x"], float(event["y"]))
        new = model.clone({"delta": 0.5})
        got = taken_over(model, new)
        got.learn_one(events(1)[0]["x"], 1.0)
        assert got.delta == 0.5


def changed(old, new, modules=()):
    """Return the changes from one model to another, and why what was learned does not fit."""
    trainer, blank = (Trainer(model, modules=modules) for model in (old, new))
    for event in events(300):
        trainer.step_one(event["x"], event["y"])
    was = trainer.definition()
    found = blank.changes(was)
    return found + misfits(trainer, blank, found, was, modules)


def test_the_order_of_steps_is_part_of_the_definition():
    """Two steps that change places alter learning, and each keeps its state."""
    scalers = preprocessing.StandardScaler(), preprocessing.MinMaxScaler()
    old, new = (
        compose.Pipeline(*pair, linear_model.LogisticRegression())
        for pair in (scalers, [each.clone() for each in scalers[::-1]])
    )
    assert not is_same(described(old), described(new))
    assert is_same(described(old), described(old.clone()))
    (change,) = changed(old.clone(), new.clone())
    assert (change.what, change.level) == ("order", "asked")
    got = taken_over(learned(old), new)
    assert list(got.steps) == ["MinMaxScaler", "StandardScaler", "LogisticRegression"]
    assert got["StandardScaler"].counts["f0"] == 400
    union = compose.TransformerUnion(("a", compose.Select("f0")), ("b", compose.Select("f1")))
    other = compose.TransformerUnion(("b", compose.Select("f1")), ("a", compose.Select("f0")))
    assert not is_same([described(union)], [described(other)])


def test_the_learner_is_not_let_go_of_for_its_name():
    """Renamed, it would start over; the refusal tells the name to give it."""
    old, new = (
        compose.Pipeline(preprocessing.StandardScaler(), (name, linear_model.Perceptron()))
        for name in ("one", "two")
    )
    (change,) = changed(old, new)
    assert change.level == "refused"
    assert "name it 'one' to keep it" in str(change)


def test_members_of_an_ensemble_keep_what_they_have_learned():
    """A clone copies a list of models with what they learned: it is no sign of nothing learned."""

    def voting(l2=0.0, code=None):
        members = [linear_model.LogisticRegression(l2=l2), naive_bayes.GaussianNB()]
        return ensemble.VotingClassifier(members[:code], use_probabilities=True)

    assert [str(c) for c in changed(voting(), voting(0.1))] == [
        "learner.models.0.l2: 0.0 -> 0.1 (alters learning from now on)"
    ]
    old = learned(voting())
    weights, gaussians = dict(old.models[0].weights), encoding.encode(old.models[1])
    new = taken_over(old, voting(0.1), was=described(voting()))
    assert (dict(new.models[0].weights), new.models[0].l2) == (weights, 0.1)
    assert encoding.encode(new.models[1]) == gaussians
    three = ensemble.VotingClassifier([*voting().models, linear_model.Perceptron()])
    with pytest.raises(MisfitError, match=r"^data does not fit"):
        taken_over(new, three, was=described(voting(0.1)))


@pytest.mark.parametrize(
    ("old", "new", "attribute"),
    [
        (
            preprocessing.StatImputer(("f0", stats.Mean())) | pipeline(),
            preprocessing.StatImputer(("f0", stats.Mean()), ("f1", stats.Mean())) | pipeline(),
            "StatImputer.imputers",
        ),
        (
            multiclass.OneVsRestClassifier(linear_model.LogisticRegression()),
            multiclass.OneVsRestClassifier(linear_model.LogisticRegression(l2=0.1)),
            "classifiers",
        ),
        (
            ensemble.SRPClassifier(tree.HoeffdingTreeClassifier(), n_models=2, seed=1),
            ensemble.SRPClassifier(tree.HoeffdingTreeClassifier(50), n_models=2, seed=1),
            "data",
        ),
    ],
)
def test_models_that_would_be_lost_or_left_as_they_were_do_not_fit(old, new, attribute):
    """Neither is something learned thrown away nor a change taken that has no effect."""
    assert changed(old, new)[-1].what == attribute
    assert changed(old, new)[-1].level == "refused"


class Counting(linear_model.LogisticRegression):
    def learn_one(self, x, y, w=1.0):
        super().learn_one(x, y, w)


def test_mended_code_applies_to_the_models_in_a_wrapper(monkeypatch):
    """They are of the same class: what they have learned goes on under it."""
    old = multiclass.OneVsRestClassifier(Counting())
    was = described(old)
    learned(old)
    monkeypatch.setattr(Counting, "learn_one", lambda self, x, y, w=1.0: None)
    assert described(old) != was
    weights = dict(old.classifiers[True].weights)
    got = taken_over(old, multiclass.OneVsRestClassifier(Counting()), [__name__], was)
    assert dict(learned(got).classifiers[True].weights) == weights


def test_what_only_the_new_arguments_need_begins_now():
    """River makes the counts of the L1 penalty only where there is one."""
    new = taken_over(learned(pipeline()), pipeline(l1=0.01), was=described(pipeline()))
    learned(new, 50)
    assert new["LogisticRegression"].l1 == 0.01


class Hidden(base.Transformer):
    """Keeps its argument under another name, so that it cannot be cloned."""

    def __init__(self, k=2):
        self._k = k

    def transform_one(self, x):
        return {**x, "k": self._k}


def test_a_step_that_cannot_be_copied_is_named(monkeypatch):
    """And one whose code got an argument goes on with it."""
    old, new = (Hidden() | pipeline(l2=l2) for l2 in (0.0, 0.1))
    found = changed(old, new, [__name__])
    assert found[-1].level == "refused"
    assert str(found[-1]).startswith("learner.Hidden: learned -> - (does not fit: it cannot be")
    old = learned(Renamed() | pipeline())

    def more(self, start=0):
        self.start = start
        self.seen = 0

    monkeypatch.setattr(Renamed, "__init__", more)
    got = taken_over(old, Renamed(start=3) | pipeline(), [__name__])["Renamed"]
    assert (got.start, got.seen) == (3, 400)


def weights_of(trainer):
    return encoding.decode(trainer.learner.state())["weights"][0]


@pytest.mark.parametrize("options", [{"rate": 0.5}, {"beta": 20.0}, {"l1": 3.0}, {"l2": 20.0}])
@pytest.mark.parametrize("kind", [LinearLearner, SoftmaxLearner])
def test_options_of_ftrl_do_not_move_the_weights(kind, options):
    """It makes the weights from its sums at each step: the sums are those of the new options."""
    task = "binary" if kind is LinearLearner else "multiclass"
    trainer = Trainer(kind(task, optimizer="ftrl", l1=0.1, rate=0.05))
    for i, event in enumerate(events(2_000)):
        trainer.step_one({**event["x"], "city": f"c{i % 7}"}, event["y"])
    blank = Trainer(kind(task, optimizer="ftrl", **{"l1": 0.1, "rate": 0.05, **options}))
    amended = trainer.amended(blank.blank_parts(trainer.definition()))
    before = weights_of(trainer)
    assert np.abs(before).max() > 0.3
    amended.step_one({**events(1)[0]["x"], "city": "c1"}, True)
    assert np.abs(weights_of(amended) - before).max() < 0.05


@pytest.mark.parametrize("kind", [LinearLearner, SoftmaxLearner])
def test_an_l1_penalty_from_before_another_optimizer_is_not_asked_for_again(kind):
    """The penalty to pay and what each weight has paid start over together."""
    task = "binary" if kind is LinearLearner else "multiclass"
    trainer = Trainer(kind(task, l1=0.01))
    for event in events(2_000):
        trainer.step_one(event["x"], event["y"])
    for options in ({"optimizer": "adam"}, {"l1": 0.01}):
        trainer = trainer.amended(Trainer(kind(task, **options)).blank_parts(trainer.definition()))
    before = weights_of(trainer)
    trainer.step_one(dict.fromkeys(events(1)[0]["x"], 0.01), True)
    assert np.abs(weights_of(trainer) - before).max() < 0.05
