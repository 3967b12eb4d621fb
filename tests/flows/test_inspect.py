"""`midstream check` tries to go on from the state that it read back."""

import itertools
import sys

import pytest
from project import Project, events

from midstream.flows.inspect import inspect
from midstream.flows.settings import load

HEAD = """
import random
from river import base, feature_extraction, linear_model, neighbors, preprocessing, stats

"""
BY_LIST = """
class Counts(base.Transformer):
    def __init__(self):
        self.own = []

    def learn_one(self, x):
        if not self.own:
            self.own = [{"n": 0}, {"n": 0}]
            self.by_place = [(id(held), k) for k, held in enumerate(self.own)]
        for place, k in self.by_place:
            if place == id(self.own[k]):
                self.own[k]["n"] += 1

    def transform_one(self, x):
        return {**x, "n": self.own[0]["n"] / 1000 if self.own else 0.0}
"""
RAISES = """
class Counts(base.Transformer):
    def __init__(self):
        self.held = []

    def learn_one(self, x):
        if not self.held:
            self.held = [[0], ["here", id(self)]]

    def transform_one(self, x):
        if self.held and self.held[1][1] != id(self):
            raise KeyError(self.held[1][1])
        return x
"""
OUTSIDE = """
_COUNTS = {}

class Counts(base.Transformer):
    def learn_one(self, x):
        _COUNTS[id(self)] = _COUNTS.get(id(self), 0) + 1

    def transform_one(self, x):
        return {**x, "n": _COUNTS.get(id(self), 0) / 1000}
"""
KEYED = """
class Counts(base.Transformer):
    def __init__(self):
        self.groups = {"a": [0], "b": [0]}
        self.counts = {}

    def learn_one(self, x):
        key = id(self.groups["a" if x["f0"] < 0 else "b"])
        self.counts[key] = self.counts.get(key, 0) + 1

    def transform_one(self, x):
        return x
"""
MAKE = """
def make():
    return Counts() | preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""
_NAMES = itertools.count()


def findings(folder, model, *, task="binary", lines=None, config=""):
    """Return what `check` finds, by what it looked at."""
    name = f"models_of_inspect_{next(_NAMES)}"  # modules are imported once in a process
    project = Project(folder, model="", task=task, config=config)
    (folder / f"{name}.py").write_text(HEAD + model)
    project.config.write_text(project.config.read_text().replace("models:make", f"{name}:make"))
    project.write(events(300) if lines is None else lines)
    try:
        return {finding.what: finding for finding in inspect(load(project.config), 300).findings}
    finally:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (BY_LIST + MAKE, "it predicts otherwise than the original from event"),
        (BY_LIST + MAKE, "; Counts.by_place holds the id() of objects, which are others after"),
        (RAISES + MAKE, "it raises where the original does not, at event 0: KeyError: "),
        (RAISES + MAKE, "; Counts.held holds the id() of objects, which are others after"),
        (KEYED + MAKE, "Counts could not go on; give the objects numbers or names"),
        (OUTSIDE + MAKE, "; the learner keeps something outside its attributes"),
    ],
    ids=["otherwise", "otherwise: who", "raises", "raises: who", "keyed", "outside"],
)
def test_a_state_that_does_not_go_on_as_the_original_fails_the_check(tmp_path, model, words):
    """Read back it is equal, and yet a resumed run would go on otherwise, or not at all."""
    found = findings(tmp_path, model)["state"]
    assert not found.ok
    assert words in found.detail
    assert "\n" not in found.detail


def test_a_state_that_goes_on_is_said_to(tmp_path):
    """Equal bytes, equal predictions, and an equal state after all of the sample once more."""
    model = """
def make():
    engine = neighbors.SWINN(graph_k=5, maxlen=60, warm_up=20, seed=1)
    return preprocessing.StandardScaler() | neighbors.KNNClassifier(engine=engine)
"""
    found = findings(tmp_path, model)["state"]
    assert found.ok
    assert found.detail.endswith("read back equal, and equal 300 events later")


def test_what_the_learner_raises_on_is_named(tmp_path):
    """The feature, its value, the step, and what to write in the config."""
    lines = events(50)
    lines[30]["x"]["f2"] = "n/a"
    model = """
def make():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""
    found = findings(tmp_path, model, lines=lines)["learning"]
    assert not found.ok
    assert "step StandardScaler computes with the feature 'f2', which is the text 'n/a'" in (
        found.detail
    )
    assert '[input.fields] types = { f2 = "number" }' in found.detail


def test_a_step_that_is_keyed_by_identity_from_the_start_is_refused(tmp_path):
    """No run begins with what could not be resumed."""
    model = KEYED.replace("self.counts = {}", "self.counts = {id(g): 0 for g in [self.groups]}")
    found = findings(tmp_path, model + MAKE)["learner"]
    assert not found.ok
    assert ".counts: its keys are the id() or hash() of objects" in found.detail
