"""Bugs that the streams have to find: each is planted, and a seed is wrong soon."""

import functools
import math

import numpy as np
import pytest
from odd_streams import make_stream
from stream_oracle import WrongError, check

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.learner import RiverLearner
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.learners.softmax import SoftmaxLearner
from midstream.engine.metrics.prequential import Prequential

LEARNERS = (RiverLearner, LinearLearner, SoftmaxLearner)


def patched(patch, cls, name, around):
    """Put `around(original, self, *arguments)` in the place of a method."""
    original = getattr(cls, name)

    @functools.wraps(original)
    def method(self, *arguments, **options):
        return around(original, self, *arguments, **options)

    patch.setattr(cls, name, method)


def decides_by_the_largest_probability(patch):
    def around(original, self, batch):
        found = original(self, batch)
        if self.task == "regression" or found.probas is None:
            return found
        values = [max(p, key=p.__getitem__) if p else None for p in found.probas]
        return Predictions(values, found.probas)

    patched(patch, RiverLearner, "predict_learn", around)


def an_unknown_label_costs_nothing(patch):
    def around(original, self, labels, values, probas=None):
        if self.task == "multiclass" and probas is not None:
            rows = probas
            if isinstance(probas, Table):
                rows = [dict(zip(probas.classes, row, strict=True)) for row in probas.values]
            pairs = zip(rows, labels, strict=True)
            probas = [{y: 1.0} | dict(p) if p and y is not None else p for p, y in pairs]
        return original(self, labels, values, probas)

    patched(patch, Prequential, "update", around)


def what_is_no_number_stays_in_faded_metrics(patch):
    def update(original, self, labels, values, probas=None):
        for value in values:
            if isinstance(value, float) and not math.isfinite(value):
                self.spoiled = True
        return original(self, labels, values, probas)

    def report(original, self):
        found = original(self)
        if getattr(self, "spoiled", False):
            found |= {name: math.nan for name in found if name.endswith(".fading")}
        return found

    patched(patch, Prequential, "update", update)
    patched(patch, Prequential, "report", report)


def classes_are_turned_over(patch):
    def around(original, self, batch):
        found = original(self, batch)
        if self.task != "binary" or found.probas is None:
            return found
        odd = [dict(zip(p, reversed(p.values()), strict=True)) for p in found.probas]
        return Predictions(found.values, odd)

    patched(patch, RiverLearner, "predict_learn", around)


def weights_are_ignored(patch):
    def around(original, self, batch):
        batch.weights = None
        return original(self, batch)

    patched(patch, RiverLearner, "predict_learn", around)


def weight_zero_is_learned(patch):
    def around(original, self, batch):
        if batch.weights is not None:
            batch.weights = [w or 1e-3 for w in list(batch.weights)]
        return original(self, batch)

    for cls in LEARNERS:
        patched(patch, cls, "predict_learn", around)


def the_last_of_a_large_batch_is_not_learned(patch):
    def around(original, self, batch):
        if len(batch) > 20 and batch.targets is None:
            batch.labels[-1] = None
        return original(self, batch)

    for cls in LEARNERS:
        patched(patch, cls, "predict_learn", around)


def predicting_learns(patch):
    def around(original, self, batch):
        found = original(self, batch)
        if len(batch):
            self.learn(EventBatch([dict(x) for x in batch.dicts()], list(found.values)))
        return found

    patched(patch, RiverLearner, "predict", around)


def windows_are_one_too_long(patch):
    def around(original, self, *arguments, window=1000, **options):
        return original(self, *arguments, window=window + 1, **options)

    patched(patch, Prequential, "__init__", around)


def probabilities_are_rounded(patch):
    def around(original, self, batch):
        found = original(self, batch)
        if found.table is None:
            return found
        return Predictions(
            found.values, Table(found.table.classes, np.round(found.table.values, 9))
        )

    patched(patch, RiverLearner, "predict_learn", around)


BUGS = [
    decides_by_the_largest_probability,
    an_unknown_label_costs_nothing,
    what_is_no_number_stays_in_faded_metrics,
    classes_are_turned_over,
    weights_are_ignored,
    weight_zero_is_learned,
    the_last_of_a_large_batch_is_not_learned,
    predicting_learns,
    windows_are_one_too_long,
    probabilities_are_rounded,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug, monkeypatch):
    """A bug that is planted makes one of the first 300 streams wrong, which without it are not."""
    bug(monkeypatch)
    for seed in range(300):
        stream = make_stream(seed)
        try:
            check(stream)
        except WrongError:
            break
    else:
        pytest.fail("no seed has found it")
    monkeypatch.undo()
    check(stream)
