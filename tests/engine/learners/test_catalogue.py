"""Every public estimator of River: it learns as in River and resumes exactly, or says why not."""

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import river
from catalogue import Entry, catalogue, stream

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import RiverLearner, _moment, load_learner

pytestmark = pytest.mark.skipif(
    not river.__version__.startswith("0.26"), reason="the table is of River 0.26"
)

ENTRIES = {entry.name: entry for entry in catalogue()}
MODULES = ["catalogue"]
REFUSED = {
    "active.EntropySampler": "use the classifier in it",
    "anomaly.GaussianScorer": "as the detector of an anomaly.ThresholdFilter or QuantileFilter",
    "anomaly.HalfSpaceTrees": "as the detector of an anomaly.ThresholdFilter or QuantileFilter",
    "anomaly.LODA": "as the detector of an anomaly.ThresholdFilter or QuantileFilter",
    "anomaly.LocalOutlierFactor": "as the detector of an anomaly.ThresholdFilter or QuantileFilter",
    "anomaly.OneClassSVM": "as the detector of an anomaly.ThresholdFilter or QuantileFilter",
    "anomaly.PredictiveAnomalyDetection": "as the detector of an anomaly.ThresholdFilter",
    "anomaly.StandardAbsoluteDeviation": "as the detector of an anomaly.ThresholdFilter",
    "cluster.CluStream": "it finds clusters",
    "cluster.DBSTREAM": "it finds clusters",
    "cluster.DenStream": "it finds clusters",
    "cluster.KMeans": "it finds clusters",
    "cluster.ODAC": "it finds clusters",
    "cluster.STREAMKMeans": "it finds clusters",
    "cluster.TextClust": "it finds clusters",
    "feature_extraction.RandomTreesEmbedding": "by the id() of objects",
    "multioutput.ClassifierChain": "make a model for each of them",
    "multioutput.MonteCarloClassifierChain": "make a model for each of them",
    "multioutput.MultiClassEncoder": "make a model for each of them",
    "multioutput.PerOutputClassifier": "make a model for each of them",
    "multioutput.PerOutputRegressor": "make a model for each of them",
    "multioutput.ProbabilisticClassifierChain": "make a model for each of them",
    "multioutput.RegressorChain": "make a model for each of them",
    "neighbors.LazySearch": "give it to neighbors.KNNClassifier or KNNRegressor",
    "neighbors.SWINN": "give it to neighbors.KNNClassifier or KNNRegressor",
    "reco.Baseline": "use a factorization machine",
    "reco.BiasedMF": "use a factorization machine",
    "reco.FunkMF": "use a factorization machine",
    "reco.RandomNormal": "use a factorization machine",
    "rules.AMRules": "where they are in memory",
    "time_series.HoltWinters": "use a regressor on features of the past",
    "time_series.SNARIMAX": "use a regressor on features of the past",
    "tree.ISOUPTreeRegressor": "make a model for each of them",
}
NOT_HERE = {"misc.ZstdClassifier"}  # River itself needs a newer Python for it


def base_name(name: str) -> str:
    """Return the name of an entry without the number of the way it is built."""
    return name.partition("-")[0]


def learned(entry: Entry, events: list[Event]) -> RiverLearner:
    """Return a learner that has learned the events."""
    learner = RiverLearner(entry.make(), entry.task, modules=MODULES)
    learner.predict_learn(batch(events))
    return learner


def batch(events: list[Event]) -> EventBatch:
    """Return a batch with objects of its own."""
    return EventBatch.from_events(copy.deepcopy(events))


def by_river(entry: Entry, events: list[Event]) -> list:
    """Return what the model of River says in a loop of one's own: predict, then learn."""
    model, said = entry.make(), []
    times = RiverLearner(entry.make(), entry.task, modules=MODULES)._keeps_time
    for event in copy.deepcopy(events):
        if event.y is None:
            continue
        said.append(model.predict_one(event.x))
        model.learn_one(event.x, event.y, **({"t": _moment(event.ts)} if times else {}))
    return said


def odd(events: list[Event]) -> list[Event]:
    """Return the events without labels, with features, categories and words not seen before."""
    asked = copy.deepcopy(events)
    for i, event in enumerate(asked):
        event.y = None
        if i % 3 == 1:
            event.x |= {f"new{i}": 1.5}
        if i % 3 == 2:
            event.x |= {"shop": f"S{i}", "colour": "odd", "text": "unseen words"}
    return asked


# They walk through sets of text: how, depends on the hash seed, which `midstream` fixes.
WALKS_A_SET = {"preprocessing.OneHotEncoder"}
WORKING = sorted(n for n in ENTRIES if base_name(n) not in REFUSED | dict.fromkeys(NOT_HERE))


@pytest.mark.parametrize("name", [n for n in WORKING if base_name(n) not in WALKS_A_SET])
def test_it_learns_as_in_river_and_resumes_exactly(name):
    """As a bare loop predicts; its state goes on as it does; asking leaves it as it was."""
    entry = ENTRIES[name]
    events = stream(entry.task, 160)
    first, rest = events[:90], events[90:]
    learner = learned(entry, first)
    state = learner.state()
    restored = load_learner("river", state, task=entry.task, modules=MODULES)
    assert restored.state() == state

    for event in odd(first[:12]):
        learner.predict(batch([event]))
    learner.predict(batch(odd(first[:12])))
    assert learner.state() == state, "predicting has changed the state"

    expected, got = (one.predict_learn(batch(rest)) for one in (learner, restored))
    assert repr((got.values, got.probas)) == repr((expected.values, expected.probas))
    assert restored.state() == learner.state()

    whole = RiverLearner(entry.make(), entry.task, modules=MODULES)
    values = whole.predict_learn(batch(events)).values
    assert whole.state() == learner.state(), "the state depends on where the stream was cut"
    said = [v for v, event in zip(values, events, strict=True) if event.y is not None]
    assert said == by_river(entry, events)


def test_what_walks_through_sets_does_so_where_the_hash_seed_is_fixed():
    """As it is in every run of the command line."""
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); import test_catalogue as t;"
        "[t.test_it_learns_as_in_river_and_resumes_exactly(n) for n in json.loads(sys.argv[2])];"
        "print('kept')"
    )
    folders = [str(Path(__file__).parent), str(Path(stream.__code__.co_filename).parent)]
    names = [n for n in WORKING if base_name(n) in WALKS_A_SET]
    assert names
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(folders), json.dumps(names)],
        env=dict(os.environ, PYTHONHASHSEED="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "kept\n", done.stderr


@pytest.mark.parametrize("name", sorted(n for n in ENTRIES if base_name(n) in REFUSED))
def test_what_cannot_learn_is_refused_with_a_reason(name):
    """At once, before any event, in one line that says what to use instead."""
    entry = ENTRIES[name]
    with pytest.raises(TypeError) as caught:
        RiverLearner(entry.make(), entry.task, modules=MODULES)
    assert REFUSED[base_name(name)] in str(caught.value)
    assert entry.cls.__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_estimator_is_left_out(capsys):
    """All that River exports is in the table, which this prints."""
    reasons = Counter(REFUSED.get(base_name(name), "works") for name in ENTRIES)
    del reasons["works"]
    estimators = {base_name(name) for name in ENTRIES}
    working = {base_name(name) for name in WORKING}
    with capsys.disabled():
        print(f"\nRiver {river.__version__}: {len(estimators)} estimators, built in "
              f"{len(ENTRIES)} ways; {len(working)} work ({len(WORKING)} ways)")  # fmt: skip
        for reason, count in reasons.most_common():
            print(f"{count:4} refused: {reason}")
    assert set(REFUSED) <= estimators
    assert estimators - working == set(REFUSED) | NOT_HERE
