"""Every command, program and config of the README and of the pages in docs/ is run by a test."""

import os
import re
from pathlib import Path

import pytest
from doc_pages import ROOT, Block, blocks_of, commands_in, load_toml, matches, pages, run_page

EXCEPTIONS = {
    "make demo": "installs packages; `.ci/wheel` runs the demo, test_demo.py tests it",
    "make test": "would run this test again; `.ci/run` runs it",
    "make docs": "builds the site that tests/docs/test_site.py builds",
    "make kafka": "tests/conftest.py starts the same broker, and the pages are run on it",
    "pip install": "needs a package index; `.ci/wheel` installs the wheel",
    "source .venv/bin/activate": "the tests run in the environment already",
}
"""Commands that are not run, by how they begin, and what covers them."""
KAFKA = re.compile(r"^topic = |KAFKA_BROKERS", re.MULTILINE)
SHELLS = ("bash", "console")


def _runnable():
    for page in pages():
        blocks = [b for b in blocks_of(page) if b.language in (*SHELLS, "python", "toml")]
        if not blocks:
            continue
        needs_kafka = any(b.language in SHELLS for b in blocks) and any(
            KAFKA.search(b.text) for b in blocks if b.title or b.language in SHELLS
        )
        name = str(page.relative_to(ROOT))
        marks = [pytest.mark.slow] if needs_kafka else []
        yield pytest.param(page, needs_kafka, id=name, marks=marks)


@pytest.mark.parametrize(("page", "needs_kafka"), [*_runnable()])
def test_what_a_page_shows_runs_in_its_order(page, needs_kafka, tmp_path, request):
    """Each command of a page succeeds and prints what is shown; each program and config works."""
    environment = {}
    if needs_kafka:
        kafka = request.getfixturevalue("kafka")
        environment["KAFKA_BROKERS"] = kafka.bootstrap
        before = set(kafka.topics())
    try:
        assert run_page(page, tmp_path, EXCEPTIONS, environment) > 0
    finally:
        if needs_kafka:
            for name in set(kafka.topics()) - before:
                kafka.delete_topic(name)


def test_the_exceptions_are_few_and_each_is_of_use():
    """No more than eight commands are left out, and none that no page shows."""
    shown = [
        line.strip()
        for page in pages()
        for block in blocks_of(page)
        if block.language == "bash"
        for line in block.text.splitlines()
    ]
    assert len(EXCEPTIONS) <= 8
    for command in EXCEPTIONS:
        assert any(line.startswith(command) for line in shown), command


def test_shell_blocks_are_all_of_a_kind_that_is_run():
    """No block of commands escapes by its language: `sh` and `shell` are not used."""
    known = {*SHELLS, "python", "toml", "text", "json", "ini", "csv"}
    for page in pages():
        for block in blocks_of(page):
            assert block.language in known, (page.name, block.line, block.language)
            if block.language == "text":
                assert not re.search(r"^\$ ", block.text, re.MULTILINE), (page.name, block.line)


def test_every_command_and_option_is_shown_or_explained():
    """Each command stands in the page of commands, and on a page that shows or explains it."""
    from midstream.flows.cli import cli

    text = {page.name: page.read_text(encoding="utf-8") for page in pages()}
    reference = text.pop("commands.md")
    elsewhere = "\n".join(text.values())
    for name in _names(cli, "midstream"):
        assert f"## `{name}`" in reference, name
        assert re.search(rf"\b{name}\b", elsewhere), f"{name} is on no page but the reference"


def _names(group, path):
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _names(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


def test_the_program_of_the_readme_runs_by_itself(tmp_path, monkeypatch, capsys):
    """The ten lines of Python print metrics and save a model; without Kafka, and in any run."""
    [program] = [b for b in blocks_of(ROOT / "README.md") if b.language == "python"]
    monkeypatch.chdir(tmp_path)
    exec(compile(program.text, "README.md", "exec"), {})  # noqa: S102 our own
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "phishing.midstream").exists()


def test_the_readme_is_a_front_door():
    """The README has at most 150 lines, ten of Python, and two commands to begin with."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    [program] = [b for b in blocks_of(ROOT / "README.md") if b.language == "python"]
    assert len(program.text.splitlines()) == 10
    assert "make demo" in text
    assert "make test" in text


# --- the runner itself


def test_a_command_that_fails_fails_its_page(tmp_path, monkeypatch):
    """A wrong option, exit code, output, config or program is each found."""
    monkeypatch.setattr("doc_pages.ROOT", tmp_path)
    page = tmp_path / "page.md"
    for i, (block, told) in enumerate(
        [
            ("```bash\nmidstream learners --nothing\necho on\n```", "exit code 2"),
            ("```bash\nfalse\n```", "exit code 1"),
            ("```console\n$ echo one\ntwo\n```", "shown"),
            ("```console\n$ midstream check none.toml\n```", "none.toml"),
            ('```toml\n[modle]\nlearner = "x"\n```', "modle"),
            ("```python\n1 / 0\n```", "division"),
        ]
    ):
        page.write_text(block + "\n")
        folder = tmp_path / str(i)
        folder.mkdir()
        with pytest.raises(Exception, match=told):
            run_page(page, folder, {}, {})


def test_a_page_runs_as_a_reader_would_run_it(tmp_path, monkeypatch):
    """Files are written, what was started stays in the background, exceptions are left out."""
    monkeypatch.setattr("doc_pages.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="models.py"\nraise ValueError\n```\n'
        "<!-- test\n```bash\nsleep 60 &\nmake world\n```\n-->\n"
        "```console\n$ cat models.py; kill %1\nraise ...\n```\n"
        "```python\nx = 1\n```\n```python\nassert x == 1\n```\n"
    )
    assert run_page(page, tmp_path, {"make world": ""}, {}) == 5


def test_parts_of_a_config_are_put_to_the_least_one(tmp_path):
    """A table alone loads, a topic and outputs to topics get what they need, errors stay errors."""
    from midstream.flows.config.settings import ConfigError

    assert load_toml("[state]\nkeep = 7\n", tmp_path).state.keep == 7
    assert load_toml('[input]\ntopic = "t"\n', tmp_path).input.topic == "t"
    assert load_toml('[input.fields]\nlabel = "y"\n', tmp_path).input.fields.label == "y"
    with pytest.raises(ConfigError):
        load_toml("[state]\nkept = 7\n", tmp_path)


def test_output_is_compared_by_lines_with_gaps():
    """Three dots stand for anything, and it does not matter how wide a table is."""
    assert matches("a ... c\n", "a b  c  \n")
    assert matches("a\n...\nz", "a\nb\nc\nz\n")
    assert not matches("a", "a\nb")
    found = commands_in("$ one \\\n> two\nout\n$ three\n")
    assert found == [("one \\\ntwo", "out\n"), ("three", "")]


def test_blocks_know_their_lines():
    """Blocks in lists are dedented, and a title is the name of a file."""
    page = Path(os.devnull)
    assert list(blocks_of(page)) == []
    assert Block(1, "toml", "a.toml", "").title == "a.toml"
