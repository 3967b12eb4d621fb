"""The page on the config has every key, as the code has it."""

import importlib.util
import json
import re

import pytest
from doc_pages import ROOT, pages


@pytest.fixture(scope="module")
def reference():
    """`docs/reference.py`, which writes the generated parts of pages."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_as_the_code_says(reference):
    """Each page with a generated part is what `make docs` would write."""
    made = reference.pages()
    assert {page.name for page in made} == {"configuration.md", "commands.md"}
    for page, text in made.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is stale: run `make docs`"


def test_every_key_of_the_config_is_in_the_page(reference):
    """Each key that a config may have is in the page, in the section of its table, once."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = [key for key in reference.keys_of() if not isinstance(key, str)]
    assert len(keys) > 50
    for key in keys:
        head = f"## `[{key.table}]`" if key.table else "## The top of the file"
        section = page.partition(head + "\n")[2].partition("\n## ")[0]
        assert section.count(f"\n| `{key.name}` |") == 1, key.path
        assert key.meaning.endswith("."), key.path


def test_the_page_has_the_types_defaults_and_limits_of_the_structs(reference):
    """Type, default and limits come from the code that reads the config."""
    keys = {key.path: key for key in reference.keys_of() if not isinstance(key, str)}
    assert keys["model.task"].kind == '`"binary"`, `"multiclass"`, `"regression"`'
    assert keys["model.task"].default == "required"
    assert keys["state.commit_seconds"].default == "`0.5`"
    assert keys["state.keep"].kind == "integer from 1 to 2^31-1"
    assert keys["metrics.window"].kind == "integer from 1 to 10_000_000"
    assert keys["output.share"].kind == "number above 0, at most 1"
    assert keys["input.fields.exclude"].default == "`[]`"
    assert keys["versions.registry"].default == "none"
    assert keys["name"].default == "the file's name"


def test_a_key_without_a_meaning_is_an_error(reference):
    """A key that the docstring of its struct does not explain cannot come into the page."""
    import msgspec

    class Odd(msgspec.Struct):
        """Odd.

        Attributes
        ----------
        one, two
            Both.
        """

        one: int = 1
        three: int = 3

    assert reference.attributes_of(Odd) == {"one": "Both.", "two": "Both."}
    with pytest.raises(KeyError, match="three"):
        list(reference.keys_of(Odd))


def test_keys_that_pages_name_exist(reference):
    """A key that a page names with its table, as in `state.keep`, is one."""
    keys = [key for key in reference.keys_of() if not isinstance(key, str)]
    known = {key.path for key in keys}
    tables = {path.partition(".")[0] for path in known if "." in path}
    free = ("model.options.", "drift.adwin.", "drift.page_hinkley.", "features.", "kafka.")
    tables -= {"features", "kafka"}
    for page in pages():
        if page.name in ("changelog.md", "api.md"):
            continue
        for name in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)(?: = [^`]*)?`", page.read_text("utf-8")):
            if name.partition(".")[0] in tables and not name.startswith(free):
                if name in {"input.fields"} or name.endswith((".py", ".toml", ".jsonl", ".md")):
                    continue
                assert name in known, f"{page.name} names {name}, which is no key"


def test_the_options_of_built_in_learners_are_those_that_there_are():
    """The page on learners has each option of each learner, with its default."""
    from click.testing import CliRunner

    from midstream.flows.cli import cli

    done = CliRunner().invoke(cli, ["learners", "--json"])
    learners = json.loads(done.stdout)
    page = (ROOT / "docs" / "learners.md").read_text(encoding="utf-8")
    shown = {}
    for option, default, of in re.findall(
        r"^\| `(\w+)` \| `([^`]+)` \| (all|`[`\w, ]+`) \|", page, re.MULTILINE
    ):
        for name in learners if of == "all" else re.findall(r"\w+", of):
            shown.setdefault(name, {})[option] = default
    for name, learner in learners.items():
        assert f"| `{name}` | `{learner['task']}` |" in page
        wanted = learner["options"].items()
        assert shown[name].keys() == dict(wanted).keys(), name
        for option, default in wanted:
            assert json.loads(shown[name][option]) == default, (name, option)


def test_the_options_of_detectors_are_those_that_there_are():
    """The page on drift has each option of each detector that a config may set."""
    from midstream.engine.drift.monitor import DETECTORS, drift_options

    page = (ROOT / "docs" / "drift.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([^`]+)` \|", page, re.MULTILINE)
    shown = {(name, option): float(default) for name, option, default in rows}
    assert shown == {
        (name, option): default
        for name in DETECTORS
        for option, default in drift_options(name).items()
        if isinstance(default, int | float)
    }
