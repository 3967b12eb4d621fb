"""The page on logs has every event and every metric."""

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
    from midstream.engine.prequential import METRICS

    for task, names in METRICS.items():
        assert f"| `{task}` | {', '.join(f'`{name}`' for name in names)} |" in PAGE
