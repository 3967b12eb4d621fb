"""The factory that a config names is imported, called and judged, or refused in one line."""

import sys
from pathlib import Path

import pytest
from river import linear_model

from midstream.flows.config import factory
from midstream.flows.config.factory import make_model, model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load

GOOD = "from river import linear_model\n\n\ndef make():\n    return linear_model."


@pytest.fixture(autouse=True)
def own_imports(tmp_path, monkeypatch):
    """Leave sys.path and the modules as they were."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(factory, "_entered", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path):
    """Write a config with its modules, and load it."""

    def _project(
        learner: str = "models:make",
        task: str = "binary",
        folder: str = ".",
        files: dict[str, str] | None = None,
    ) -> Settings:
        place = tmp_path / folder
        for name, text in (files or {}).items():
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        place.mkdir(exist_ok=True)
        config = place / "config.toml"
        config.write_text(
            f'[model]\nlearner = "{learner}"\ntask = "{task}"\n[input]\npath = "x.jsonl"\n'
        )
        return load(config)

    return _project


def refusal(settings: Settings) -> str:
    with pytest.raises(ConfigError) as caught:
        make_model(settings)
    text = str(caught.value)
    assert "\n" not in text, f"more than one line: {text!r}"
    prefix = f"{settings.file}: model.learner: "
    assert text.startswith(prefix), f"{text!r} names neither file nor key"
    return text.removeprefix(prefix)


def test_module_beside_the_config(project, tmp_path):
    """A factory beside the config is imported under its own name, from a folder put in once."""
    settings = project(
        files={
            "models.py": "from river import linear_model\nimport features\n\n\n"
            "class Mine(linear_model.LogisticRegression):\n    pass\n\n\n"
            "def make():\n    return Mine(l2=features.L2)\n",
            "features.py": "L2 = 0.5\n",
        }
    )
    model = make_model(settings)
    assert model.l2 == 0.5
    assert type(model).__module__ == "models"
    assert model_modules(settings) == ("models",)
    again = make_model(settings)
    assert again is not model
    assert type(again) is type(model)
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[0] == str(tmp_path)


def test_packages_and_installed_modules(project):
    """A module in a package beside the config will do, and so will one that is installed."""
    settings = project(
        learner="shop.models:make", files={"shop/models.py": GOOD + "LogisticRegression()\n"}
    )
    assert isinstance(make_model(settings), linear_model.LogisticRegression)
    assert model_modules(settings) == ("shop.models",)
    settings = project(learner="river.linear_model:Perceptron")
    assert isinstance(make_model(settings), linear_model.Perceptron)


def test_two_configs_in_one_process(project, tmp_path):
    """Each config gets the modules beside itself, also those that its factory imports."""
    for _ in range(2):
        for folder, l2 in (("one", 0.1), ("two", 0.2)):
            settings = project(
                folder=folder,
                files={
                    "models.py": "from river import linear_model as lm\nfrom features import L2\n\n"
                    "def make():\n    return lm.LogisticRegression(l2=L2)\n",
                    "features.py": f"L2 = {l2}\n",
                },
            )
            assert make_model(settings).l2 == l2
            assert not [p for p in sys.path if p.startswith(str(tmp_path)) and folder not in p]
    empty = project(folder="three")
    assert refusal(empty).startswith("no module 'models'")


def test_a_learner_of_ones_own(project):
    """What keeps the engine's contract of a learner is taken as it is."""
    settings = project(
        files={
            "models.py": "class Mine:\n"
            "    kind = 'mine'\n    needs = 'dicts'\n    task = 'binary'\n"
            "    takes_weights = False\n"
            "    def predict_learn(self, batch): ...\n    def predict(self, batch): ...\n"
            "    def learn(self, batch): ...\n    def state(self): ...\n"
            "    def definition(self): ...\n"
        },
        learner="models:Mine",
    )
    assert type(make_model(settings)).__name__ == "Mine"


def test_no_such_module(project, tmp_path):
    """A module that is nowhere is refused with where it was looked for and what is near."""
    message = refusal(project(learner="model:make", files={"models.py": ""}))
    assert message == (
        f"no module 'model'; did you mean 'models'? (looked for {tmp_path}/model.py, then on "
        "sys.path)"
    )
    message = refusal(project(learner="models.fraud:make", files={"models.py": ""}))
    assert message.startswith("no module 'models.fraud'")


def test_name_that_is_in_use(project, tmp_path):
    """A module beside the config cannot take the place of one that runs already."""
    message = refusal(project(learner="json:make", files={"json.py": GOOD + "Perceptron()\n"}))
    assert message.startswith(f"{tmp_path}/json.py has the name of ")
    assert message.endswith("which is in use; rename it")
    message = refusal(project(learner="time:make", files={"time.py": GOOD + "Perceptron()\n"}))
    assert "the built-in module time" in message


RAISING = [
    ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all' (models.py"),
    ("x = 1\nraise ValueError('two\\nlines')\n", "ValueError: two lines (models.py, line 2)"),
    ("def make(:\n", "SyntaxError: invalid syntax (models.py, line 1)"),
    ("import sys\nsys.exit(3)\n", "SystemExit: 3 (models.py, line 2)"),
    ("from features import f\n", "NameError: name 'y' is not defined (features.py, line 2)"),
    ("import json\n\njson.loads('x')\n", "JSONDecodeError: Expecting value"),
]


@pytest.mark.parametrize(("text", "message"), RAISING)
def test_module_that_raises(project, text, message):
    """A module that raises on import is refused with the error and its line."""
    settings = project(files={"models.py": text, "features.py": "def f(): ...\ny\n"})
    found = refusal(settings)
    assert found.startswith(f"models raised on import: {message}")
    assert "models.py, line" in found or "features.py, line" in found


def test_factory_that_is_none(project, tmp_path):
    """An attribute that is missing, or cannot be called, is refused with the nearest one."""
    files = {"models.py": "def make_it(): ...\n\n\nmodel = 3\n"}
    assert refusal(project(files=files)) == (
        f"{tmp_path}/models.py has no 'make'; did you mean 'make_it'?"
    )
    assert refusal(project("models:model", files=files)) == (
        f"'model' in {tmp_path}/models.py is of type int; needed: a function without arguments "
        "that returns a model"
    )


def test_factory_that_raises(project):
    """A factory that raises is refused with the error and its line."""
    files = {"models.py": "def make():\n    return 1 / 0\n\n\ndef more(x):\n    return x\n"}
    assert refusal(project(files=files)) == (
        "make() raised ZeroDivisionError: division by zero (models.py, line 2)"
    )
    assert "missing 1 required positional argument: 'x'" in refusal(
        project("models:more", files=files)
    )


UNFIT = [
    ("None", "binary", "make() returned None; needed: a River estimator or a Learner"),
    ("[]", "binary", "expected a River estimator or a Learner, got list"),
    ("lm.LogisticRegression", "binary", "got the class LogisticRegression"),
    ("lm.LinearRegression()", "binary", "task binary needs a classifier"),
    ("lm.LogisticRegression()", "regression", "task regression needs a regressor"),
    ("lm.LogisticRegression()", "multiclass", "knows two classes only"),
    ("preprocessing.StandardScaler()", "binary", "neither a classifier nor a regressor"),
    ("forest.ARFClassifier()", "binary", "has no seed"),
]


@pytest.mark.parametrize(("returned", "task", "message"), UNFIT)
def test_what_cannot_learn(project, returned, task, message):
    """What a factory returns is refused if it cannot learn the task, with what is needed."""
    text = (
        "from river import forest, linear_model as lm, preprocessing\n\n\n"
        f"def make():\n    return {returned}\n"
    )
    assert message in refusal(project(task=task, files={"models.py": text}))


def test_messages_keep_secrets(project, monkeypatch):
    """A factory named by the environment is not named in messages."""
    monkeypatch.setenv("MS_LEARNER", "hunter2:build")
    settings = project(learner="${MS_LEARNER}")
    assert "hunter2" not in refusal(settings)
    Path(settings.root / "hunter2.py").write_text("def builder(): ...\n")
    found = refusal(settings)
    assert "hunter2" not in found
    assert "has no '***'" in found
