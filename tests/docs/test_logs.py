"""The page on logs has every event and every metric."""

import ast
import re

from doc_pages import ROOT

PAGE = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")


def test_every_event_that_is_logged_is_explained():
    """Each name that the code logs stands in a table of the page, and each there is logged."""
    logged = {"drift", "non_finite"}  # kinds of alarms, which are names of events, too
    for package in ("engine", "connectors", "flows"):
        for module in (ROOT / package).rglob("*.py"):
            text = module.read_text(encoding="utf-8")
            logged |= set(re.findall(r"\blog\.(?:info|warning|error)\(\s*\"(\w+)\"", text))
    assert len(logged) > 40
    told = set()
    for line in PAGE.splitlines():
        if re.search(r"\| (info|warning|error)(, \w+)? \|", line):
            told |= set(re.findall(r"`(\w+)`", line.split("|")[1]))
    assert told == logged


def test_the_metrics_of_each_task_are_those_that_there_are():
    """The table of metrics has the names that a config may name, in their order."""
    from midstream.engine.metrics.prequential import METRICS

    for task, names in METRICS.items():
        assert f"| `{task}` | {', '.join(f'`{name}`' for name in names)} |" in PAGE


def _texts():
    """Return the texts of the code, a gap where a value is put in."""
    for package in ("engine", "connectors", "flows"):
        for module in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_messages_that_are_explained_are_those_of_the_code():
    """Each message in the table of the page on operating is one that a command may print."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    table = page.partition("## What messages mean")[2].partition("\n## ")[0].partition("\n[")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) > 15
    code = "\n".join(_texts())
    for message in messages:
        pieces = re.split(r"\.\.\.|\b[A-Z]+\b|\d+", message)
        long = [piece.strip(" :;()") for piece in pieces if len(piece.strip(" :;()")) >= 8]
        for piece in long:
            assert piece in code, (message, piece)
