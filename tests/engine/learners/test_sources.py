"""The digest of the source that a class or function depends on."""

import functools
import importlib
import os
import subprocess
import sys

import pytest
from river import base, compose, feature_extraction, linear_model, neighbors, stats, utils

from midstream.engine.learners.describing import described
from midstream.engine.learners.sources import source_digest
from midstream.engine.state.changes import FORMERLY, FURTHER, is_same

MODELS = """
import math
import helpers
from river import base, compose, linear_model
from helpers import FACTOR, halved as half
from rows import *

RATE = 2 * FACTOR
TABLE = {"a": 1}
TABLE["b"] = 2
TABLE.update(c=3)


def wrapped(function):
    return function


def scaled(x, by=RATE):
    return {"a": x["f0"] * by}


class Base(base.Transformer):
    OFFSET = 1

    @property
    def shift(self):
        return self.OFFSET


class Own(Base):
    '''Doc.'''

    @wrapped
    def transform_one(self, x):
        if x.keys() & {"p", "q", "r", "s"}:
            return x
        return {"a": half(x["f0"]) + helpers.third(x["f0"]) + TABLE["a"] + len(COLUMNS)}


def unused(x):
    return x


def make():
    return Own() | linear_model.LogisticRegression()
"""
HELPERS = """
FACTOR = 3
UNUSED = 4


def _of(x, n):
    return x / n


def halved(x):
    return _of(x, 2)


def third(x):
    return _of(x, 3)
"""
ROWS = "COLUMNS = ['a', 'b']\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a function that writes the modules, changed, and returns the digests of two."""
    monkeypatch.syspath_prepend(tmp_path)

    def digests(*change, file="models"):
        texts = {"models": MODELS, "helpers": HELPERS, "rows": ROWS}
        if change:
            assert change[0] in texts[file]
            texts[file] = texts[file].replace(*change)
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        models = importlib.import_module("models")
        return source_digest(models.Own), source_digest(models.scaled)

    yield digests
    sys.dont_write_bytecode = False
    for name in ("models", "helpers", "rows"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("change", "file", "seen"),
    [
        (("RATE = 2", "RATE = 5"), "models", "function"),
        (("FACTOR = 3", "FACTOR = 5"), "helpers", "function"),
        (("by=RATE", "by=4"), "models", "function"),
        (("OFFSET = 1", "OFFSET = 2"), "models", "class"),
        (("return self.OFFSET", "return -self.OFFSET"), "models", "class"),
        (("    return function", "    return lambda *a: function(*a)"), "models", "class"),
        (("    @wrapped\n", ""), "models", "class"),
        (("halved as half", "third as half"), "models", "class"),
        (("_of(x, 2)", "_of(x, 4)"), "helpers", "class"),
        (("x / n", "x // n"), "helpers", "class"),
        (('"a": 1', '"a": 7'), "models", "class"),
        (('TABLE["b"] = 2', 'TABLE["b"] = 3'), "models", "class"),
        (("update(c=3)", "update(c=4)"), "models", "class"),
        (("['a', 'b']", "['a']"), "rows", "class"),
        (("def third(x):\n", "def third(x):\n    x += 1\n"), "helpers", "class"),
    ],
)
def test_whatever_the_code_reaches_changes_the_digest(project, change, file, seen):
    """A change of a constant, default, base, decorator or function that is reached is seen."""
    own, function = project()
    assert None not in (own, function)
    changed = project(*change, file=file)
    assert (changed[0] != own, changed[1] != function) == (seen == "class", seen == "function")


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (("def unused(x):\n    return x", "def unused(x):\n    return {}"), "models"),
        (("UNUSED = 4", "UNUSED = 5"), "helpers"),
        (("'''Doc.'''", "'''Another text.'''"), "models"),
        (("import math", "import math  # a comment\n\n"), "models"),
        (("base, compose,", "base, compose, tree,"), "models"),
        (("import FACTOR, halved", "import FACTOR, UNUSED, halved"), "models"),
        (("def scaled(x,", "def scaled(x: dict,"), "models"),
    ],
)
def test_what_the_code_does_not_reach_leaves_the_digest(project, change, file):
    """Comments, docstrings, annotations, imports and other functions do not count."""
    assert project() == project(*change, file=file)


def test_a_file_that_changed_after_its_import_has_no_digest(project, tmp_path):
    """The digest is never that of code which is not running."""
    project()
    models = importlib.import_module("models")
    text = MODELS.replace("return self.OFFSET", "return 5")
    (tmp_path / "models.py").write_text(text)
    assert source_digest(models.Own) is None
    (tmp_path / "models.py").write_text("not Python (")
    assert source_digest(models.Own) is None
    (tmp_path / "models.py").unlink()
    assert source_digest(models.Own) is None


def test_other_code_has_no_digest():
    """Classes of River, the standard library and of no file have none."""
    own = type("Own", (), {"__module__": "nowhere"})
    for value in (linear_model.LogisticRegression, os.path.join, own, int):
        assert source_digest(value) is None


def test_the_digest_is_one_under_all_hash_seeds(project, tmp_path):
    """Sets in the code do not make the digest depend on the seed of Python's hashes."""
    expected = project()[0]
    code = "import models; from midstream.engine.learners.sources import source_digest as d; "
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-B", "-c", code + "print(d(models.Own))"],
            env={**os.environ, "PYTHONHASHSEED": seed}, cwd=tmp_path,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert found.stdout.strip() == expected


class Hidden(base.Transformer):
    """Keeps an argument under another name."""

    def __init__(self, k=2):
        self._k = k

    def transform_one(self, x):
        """Return the features."""
        return x


def test_arguments_under_other_names_are_described():
    """An argument that is kept as `_name` counts, too."""
    one, other = described(Hidden(2)), described(Hidden(3))
    assert not is_same(one, other)
    assert is_same(one, described(Hidden(2)))


def test_a_partial_and_its_function_are_described():
    """Arguments bound to a function count."""

    def of(**bound):
        return described(compose.FuncTransformer(functools.partial(dict, **bound)))

    assert not is_same(of(k=2), of(k=3))
    assert is_same(of(k=2), of(k=2))


def test_objects_of_river_that_are_no_estimators_are_described():
    """The length of a window and the distance of a search engine count."""

    def mean(window):
        return described(feature_extraction.Agg("a", ["b"], utils.Rolling(stats.Mean, window)))

    def nearest(p):
        distance = functools.partial(utils.math.minkowski_distance, p=p)
        return described(neighbors.KNNClassifier(engine=neighbors.SWINN(dist_func=distance)))

    def rolling(of):
        return described(feature_extraction.Agg("a", ["b"], utils.Rolling(of, 9)))

    assert not is_same(rolling(stats.Mean), rolling(stats.Sum))
    for make in (mean, nearest):
        assert not is_same(make(1), make(2))
        assert is_same(make(2), make(2))


def test_what_an_old_definition_does_not_say_is_no_difference():
    """Definitions of earlier versions, which said less, equal those of today."""
    new = described(feature_extraction.Agg("a", ["b"], utils.Rolling(stats.Mean, 7)))
    old = {**new, "how": new["how"][FORMERLY]}
    assert is_same(old, new)
    assert not is_same({**old, "how": "Mean"}, new)
    new = described(Hidden(2))
    assert is_same({key: new[key] for key in new if key != FURTHER}, new)


def test_the_source_decides_where_both_definitions_have_it():
    """Code that is compiled otherwise, as by another Python, is the same code."""
    new = {"class": "models.Own", "code": "a", FURTHER: {"source": "s"}}
    assert is_same({**new, "code": "b"}, new)
    assert not is_same({**new, FURTHER: {"source": "t"}}, new)
    assert not is_same({"class": "models.Own", "code": "b"}, new)
