"""States that an older Midstream has left are read, and gone on with: `tests/old_states`.

Each case was made by `tests/old_states/make.py` with the code of that time, which also said what it
makes of it: the manifest has that. A state is refused by design under another Python or River, and
a mathematical library may give other last bits: what is compared then, is told where it is.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from old_states import life

from midstream import Trainer, open_registry

OLD = Path(__file__).parents[1] / "old_states" / "0.1.0"
MANIFEST = json.loads((OLD / "manifest.json").read_text())
CASES = MANIFEST["cases"]
OPERATED = [name for name, case in CASES.items() if case["operations"]]
# Those of each kind that `make test` has; the others are slow.
READ = {"plain", "shards", "own", "operated", "killed_in_a_rewind", "signed"}
GOES_ON = {
    *("plain", "cells", "folder_of_formats", "rotated", "logistic_adam", "softmax", "forest"),
    *("own", "measured", "rejecting", "killed", "damaged", "waiting", "unlearned"),
}
SEEDED = {"hoeffding_tree", "neighbours"}
"""Models that walk through sets: to be equal, the hash seed has to be that of `midstream` (0)."""
SAME = life.arithmetic() == MANIFEST["arithmetic"]
"""Whether this machine computes the same last bits as the one on which the states were made."""


def _minor(text):
    return text.split(".")[:2]


def suits(name):
    """Skip a case that is of another River or Python than these, which do not read it yet."""
    made, here = MANIFEST["libraries"], life.libraries()
    for library in ("river", "python"):
        if _minor(made[library]) != _minor(here[library]) and name not in COMPILED:
            pytest.skip(f"made under {library} {made[library]}, and here is {here[library]}")


def cases(fast, *, names=CASES):
    """Return the cases, those slow that are not in `fast`."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n not in fast else []) for n in names]


def ask(name, folder, *functions):
    """Return what functions of `life` say of a folder, one after the other."""
    if name not in SEEDED or os.environ.get("PYTHONHASHSEED") == "0":
        return [function(folder) for function in functions]
    command = [sys.executable, life.__file__, str(folder), *(f.__name__ for f in functions)]
    tests = OLD.parents[1]
    places = [str(tests), str(tests / "support"), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(places)
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path}
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)


COMPILED = {
    *(name for name in CASES if name.startswith("logistic_")),
    *("linear", "softmax", "cells", "folder_of_formats", "parquet_in_the_middle"),
    *("never_snapped", "unlearned", "topics"),
}
"""The cases whose learner is one of ours, which no version of River or Python concerns."""


@pytest.fixture
def old(request, tmp_path, monkeypatch):
    """Return a function that unpacks a case, with what it has in PostgreSQL or S3."""

    def unpacked(name):
        suits(name)
        folder = life.unpack(OLD / f"{name}.tar.zst", tmp_path / name)
        if name == "elsewhere":
            monkeypatch.setenv("OLD_ARTIFACTS", request.getfixturevalue("s3_url"))
            life.fill_bucket(request.getfixturevalue("s3_url"), folder)
        elif name == "topics":
            cluster = request.getfixturevalue("new_kafka")(folder=folder / "brokers")
            request.addfinalizer(cluster.stop)
            monkeypatch.setenv("OLD_KAFKA", cluster.start().bootstrap)
        elif name == "postgres":
            monkeypatch.setenv("OLD_REGISTRY", request.getfixturevalue("postgres_url"))
            life.fill_database(request.getfixturevalue("postgres_url"), folder)
        return folder

    return unpacked


def same(found, told, *, learned=True):
    """Check what a run gave against what the old code gave.

    `learned`: it has learned something, which another mathematical library may do otherwise.
    """
    if SAME or not learned:
        assert found == told
        return
    for name in ("seen", "learned", "rejected"):
        assert found[name] == told[name]
    for name, value in told["metrics"].items():
        assert math.isclose(float(found["metrics"][name]), float(value), rel_tol=1e-6) or (
            math.isnan(float(value)) and math.isnan(float(found["metrics"][name]))
        ), name
    assert {n: count for n, (count, _) in found["outputs"].items()} == {
        n: count for n, (count, _) in told["outputs"].items()
    }


@pytest.mark.parametrize("name", cases(READ))
def test_an_old_state_is_read(old, name):
    """`check` says what it said; versions, history and the state are what they were."""
    folder, told = old(name), CASES[name]
    before = life.outputs(folder)
    functions = life.check, life.versions, life.history, life.run
    check, versions, history, found = ask(name, folder, *functions)
    assert check == told["check"]
    assert versions == told["versions"]
    assert history == told["history"]
    same(found, told["read"], learned=found["outputs"] != before)


@pytest.mark.parametrize("name", cases(GOES_ON))
def test_an_old_run_goes_on(old, name):
    """On the rest of its input it makes the state, metrics and outputs that the old code made."""
    folder = old(name)
    life.add_more(folder)
    (found,) = ask(name, folder, life.run)
    same(found, CASES[name]["whole"])


@pytest.mark.parametrize("name", cases({"operated"}, names=OPERATED))
def test_commands_are_carried_out_on_an_old_state(old, name):
    """Old versions are restored, promoted, rolled back and rewound to, with the old digests."""
    folder = old(name)
    life.run(folder)
    for step in CASES[name]["operations"]:
        life.call(folder, *step["command"])
        same(life.run(folder), step["after"])


def test_an_old_version_predicts_and_goes_on(old):
    """Apart from the stream, in Python, once it is loaded from an old registry."""
    folder = old("operated")
    with closing(open_registry(folder / life.CONFIG)) as registry:
        (version,) = (row.version for row in registry.versions() if "release" in row.tags)
        trainer = registry.load(version)
    event = {"f0": 0.5, "f1": -1.0, "f2": 0.25, "f3": 2.0}
    assert isinstance(trainer.predict_one(event).y_pred, bool)
    trainer.step_one(event, True)
    assert trainer.seen == 201


@pytest.mark.parametrize("name", MANIFEST["trainers"])
def test_an_old_trainer_is_loaded_and_goes_on(name, tmp_path):
    """A file of `Trainer.save` has the digest, and gives the predictions, that it gave then."""
    suits("trainers")
    folder, told = life.unpack(OLD / "trainers.tar.zst", tmp_path / "old"), MANIFEST["trainers"]
    trainer = Trainer.load(folder / f"{name}.trainer")
    assert (trainer.digest(), trainer.seen) == (told[name]["digest"], told[name]["seen"])
    rows = json.loads((folder / f"{name}.json").read_text())
    values = [trainer.step_one(row["x"], row["y"]).y_pred for row in rows]
    if SAME:
        assert hashlib.sha256(json.dumps(values).encode()).hexdigest() == told[name]["predictions"]
        assert trainer.digest() == told[name]["after"]


def test_each_archive_is_of_a_case():
    """What is kept is tested, and small."""
    files = {path.name.removesuffix(".tar.zst"): path for path in OLD.glob("*.tar.zst")}
    assert files.keys() == {*CASES, "trainers"}
    assert sum(path.stat().st_size for path in files.values()) < 3_000_000
