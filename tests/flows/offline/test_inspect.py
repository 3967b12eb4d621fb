"""`midstream check` tries to go on from the state that it read back."""

import itertools
import sys

import pytest
from project import Project, events

from midstream.flows.loading import load
from midstream.flows.offline.inspect import inspect

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
NUMBERED = """
_NUMBERS = {}

class Numbers(base.Transformer):
    def transform_one(self, x):
        return {**x, "n": _NUMBERS.setdefault(round(x["f0"], 1), len(_NUMBERS)) / 100}
"""
ON_A_CLASS = """
class Numbers(base.Transformer):
    numbers = {}

    def transform_one(self, x):
        number = self.numbers.setdefault(round(x["f0"], 1), len(self.numbers))
        return {**x, "n": number / 100}
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
MAKE_NUMBERS = MAKE.replace("Counts", "Numbers")
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
        (NUMBERED + MAKE_NUMBERS, "; the learner keeps something outside its attributes"),
        (ON_A_CLASS + MAKE_NUMBERS, "; the learner keeps something outside its attributes"),
    ],
    ids=[
        *("otherwise", "otherwise: who", "raises", "raises: who", "keyed", "outside"),
        *("in the module", "on the class"),
    ],
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


def test_numbers_of_two_categories_are_told_too(tmp_path):
    """The category that came last in the sample comes first in what follows."""
    lines = events(300)
    for i, line in enumerate(lines):
        line["x"] = {"f0": "old" if i % 300 in (0, 299) or i % 3 else "new"}
    model = NUMBERED.replace('round(x["f0"], 1)', 'x["f0"]').replace("{**x, ", "{") + MAKE_NUMBERS
    assert not findings(tmp_path, model, lines=lines)["state"].ok


def test_what_the_factory_sets_in_its_module_is_there(tmp_path):
    """A restart calls the factory, too, before it goes on."""
    model = """
class Times(base.Transformer):
    def transform_one(self, x):
        return {**x, "n": x["f0"] * _FACTOR}

def make():
    global _FACTOR
    _FACTOR = 3
    return Times() | preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""
    assert findings(tmp_path, model)["state"].ok


@pytest.mark.parametrize(
    "said",
    ["predict_one(self, x): return None", "predict_proba_one(self, x): return {}"],
)
def test_a_learner_that_predicts_nothing_fails_the_check(tmp_path, said):
    model = f"""
class Mute(base.Classifier):
    def learn_one(self, x, y):
        pass

    def {said}

make = Mute
"""
    found = findings(tmp_path, model)["predictions"]
    assert not found.ok
    assert found.detail == "there are none: the learner said nothing (None) of all 300 events"


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
