"""The answers of shards, and what is said of them."""

import json

from kept import BEGUN

from midstream.engine.shard.commands import Done
from midstream.engine.shard.journal import Command
from midstream.flows.commands import cli_versions, version_views
from midstream.flows.operating import answers


def test_what_some_shards_refused_can_be_undone_on_the_others(kept, monkeypatch):
    """One more line says so; where all refused, there is nothing to undo."""
    one = kept()
    both = ("000", "001")
    one.registry.join(both, 0, 0)
    one.version(shards=both)
    for refusing, said in (((), False), (("001",), True), (both, False)):

        def answered(*_, refusing=refusing, **__):
            return [
                answers.Answer(shard, "refused", "damaged")
                if shard in refusing
                else answers.Answer(shard, "done", at=BEGUN, seconds=0.1)
                for shard in both
            ]

        monkeypatch.setattr(answers, "await_answers", answered)
        monkeypatch.setattr(cli_versions, "_await_version", lambda *_: [])
        done = one.call("restore", "1", "--yes")
        assert done.exit_code == bool(refusing), done.output
        assert ("`midstream rollback` undoes it" in done.stdout) == said


def test_positions_in_files_are_shown_in_lines(kept):
    """Of what a command did, of what it left, and of what a version has learned."""
    one = kept()
    one.began()
    one.version()
    command = Command(1, "promote", 1, at=BEGUN, left=[("a.jsonl", 10, 50, 3), ("t-0", 5, 9, 4)],
                      lines=[(2, 4), None])  # fmt: skip
    done = Done(
        command, 1, position={"a.jsonl": 100, "t-0": 9}, lines={"a.jsonl": 7}, done_at=BEGUN
    )
    one.registry.report("000", "", [done])
    (told,) = json.loads(one.call("history", "--json").stdout)[1:]
    assert told["position"] == {"a.jsonl": 7, "t-0": 9}
    assert told["command"]["left"] == [["a.jsonl", 2, 4, 3], ["t-0", 5, 8, 4]]
    (row,), (deployed,) = one.registry.shards(), one.registry.deployments([1])
    answer = answers._answer(row, deployed, running=False)
    assert (answer.position, answer.files) == (told["position"], ["a.jsonl"])
    data = {
        "stretches": {"a.jsonl": [[0, 100]], "t-0": [[0, 9]], "old": [[0, 50]]},
        "lines": {"a.jsonl": [[1, 7]], "old": []},
    }
    assert version_views.stretches_of(data) == {
        "a.jsonl": ("lines", [(1, 6)]),
        "t-0": ("offsets", [(0, 8)]),
        "old": ("bytes or offsets", [(0, 49)]),
    }
