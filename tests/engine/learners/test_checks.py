"""The public contract: good learners pass, and each way of breaking it is caught."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from zoo import HASH_SEEDED, ZOO, events

from midstream import check_learner
from midstream.engine.events.predictions import Predictions
from midstream.engine.learners.checks import CHECKS, CheckError
from midstream.engine.learners.learner import LEARNERS
from midstream.engine.state import encoding

SLOW = {"SRP", "ARF", "Leveraging", "ADWINBoost"}
# They walk through sets of labels: how, depends on the hash seed, which `midstream` fixes.
WALKS_A_SET = HASH_SEEDED | {"LazyKNN", "NoChange"}
NAMES = sorted(n for n in ZOO if not any(p in n for p in SLOW))


@pytest.mark.parametrize("name", sorted(set(NAMES) - WALKS_A_SET))
def test_rivers_models_keep_the_contract(name):
    """Each model of the zoo passes every check."""
    task, make = ZOO[name]
    passed = list(check_learner(make, list(events(task, 300)), task=task))
    assert [p.name for p in passed] == [check.__name__ for check in CHECKS]


def test_models_that_walk_sets_keep_the_contract_where_the_hash_seed_is_fixed():
    """As it is in every run of the command line."""
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); import test_checks as t;"
        "[t.test_rivers_models_keep_the_contract(n) for n in json.loads(sys.argv[2])];"
        "print('kept')"
    )
    folders = [str(Path(__file__).parent), str(Path(events.__code__.co_filename).parent)]
    names = sorted(set(NAMES) & WALKS_A_SET)
    assert {"LazyKNN", "NoChange"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(folders), json.dumps(names)],
        env=dict(os.environ, PYTHONHASHSEED="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "kept\n", done.stderr


class Honest:
    """The mean of the labels so far; the base of the cheats below."""

    kind: ClassVar[str] = "honest"
    needs = "dicts"
    task = "regression"
    takes_weights = False

    def __init__(self) -> None:
        self.n, self.total = 0, 0.0

    def predict_learn(self, batch) -> Predictions:
        values = []
        for i in range(len(batch)):
            values += self.predict(batch[i : i + 1]).values
            self.learn(batch[i : i + 1])
        return Predictions(values)

    def predict(self, batch) -> Predictions:
        return Predictions([self.total / self.n if self.n else 0.0] * len(batch))

    def learn(self, batch) -> None:
        for y in batch.labels:
            if y is not None:
                self.n, self.total = self.n + 1, self.total + y

    def state(self) -> bytes:
        return encoding.encode(vars(self))

    def definition(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def load(cls, state, **_):
        new = cls()
        vars(new).update(encoding.decode(state))
        return new


class PredictsAfterLearning(Honest):
    def predict_learn(self, batch):
        self.learn(batch)
        return self.predict(batch)


class ChangesWhenAsked(Honest):
    def predict(self, batch):
        self.total += 0.001 * len(batch)
        return super().predict(batch)


class ForgetsSomething(Honest):
    def state(self):
        return encoding.encode({"n": self.n})


class DrawsUnseeded(Honest):
    def predict(self, batch):
        return Predictions([random.random() for _ in range(len(batch))])


class Hoards(Honest):
    def __init__(self):
        super().__init__()
        self.past: list = []

    def learn(self, batch):
        super().learn(batch)
        self.past += [list(x.values()) * 50 for x in batch.dicts()] * 4


class KeepsInput(Honest):
    def __init__(self):
        super().__init__()
        self.last: dict = {}

    def learn(self, batch):
        super().learn(batch)
        for self.last in batch.dicts():
            pass

    def predict(self, batch):
        return Predictions([float(sum(self.last.values()))] * len(batch))


@pytest.mark.parametrize(
    ("cheat", "check"),
    [
        (PredictsAfterLearning, "result_is_independent_of_the_cuts"),
        (ChangesWhenAsked, "predicting_changes_nothing|prediction_comes_before"),
        (ForgetsSomething, "state_round_trip"),
        (DrawsUnseeded, "result_is_independent_of_the_cuts"),
        (Hoards, "memory_is_bounded"),
        (KeepsInput, "input_is_not_aliased"),
    ],
)
def test_a_broken_learner_is_caught_by_name(cheat, check, monkeypatch):
    """Each way of breaking the contract fails the check that is there for it."""
    monkeypatch.setitem(LEARNERS, "honest", cheat.load)
    data = [({"a": float(i % 7), "b": float(i % 3)}, float(i % 5)) for i in range(600)]
    with pytest.raises(CheckError, match=check):
        list(check_learner(cheat, data))


def test_the_honest_one_passes(monkeypatch):
    """The base that the cheats share keeps the contract, so the cheats are caught for a reason."""
    monkeypatch.setitem(LEARNERS, "honest", Honest.load)
    data = [({"a": float(i % 7), "b": float(i % 3)}, float(i % 5)) for i in range(600)]
    assert len(list(check_learner(Honest, data))) == len(CHECKS)
