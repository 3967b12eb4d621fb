"""Plans: what can be learned again, what a rollback goes back to, what is asked."""

import json

import pytest
from click import testing
from kept import BEGUN
from project import events
from registry_lives import snapshot

from midstream.engine.registry.registry import ShardRow
from midstream.engine.shard.commands import JUST_MADE, Order
from midstream.engine.state.snapshot import Snapshot
from midstream.flows.inputs.reading import oldest_positions
from midstream.flows.operating import plans
from midstream.flows.operating.operations import OperationError


@pytest.mark.parametrize("path", ["in", "in/*.jsonl", "in/a.jsonl"])
def test_files_in_a_folder_are_found_by_their_names(kept, path):
    """A rewind is planned: a folder's files and a pattern's are named without it."""
    one = kept(path)
    (one.folder / "in").mkdir()
    one.project.write(events(3), "in/a.jsonl")
    (name,) = oldest_positions(one.settings)
    one.began()
    version = one.version({name: 10})
    one.did(2, "pause", at=BEGUN + 1, seq=1, position={name: 90})
    assert one.rewind(version).kind == "rewind"
    (one.folder / "in/a.jsonl").unlink()
    with pytest.raises(OperationError, match=r"a\.jsonl: .*is gone.* from line 1 on"):
        one.rewind(version)


def test_only_what_was_read_after_a_version_has_to_be_there(kept):
    """A file that was consumed before may be gone; one that came later may not."""
    one = kept("in")
    (one.folder / "in").mkdir()
    one.project.write(events(3), "in/b.jsonl")
    one.began()
    first = one.version({"a.jsonl": 100, "b.jsonl": 10})
    one.did(2, "pause", at=BEGUN + 1, seq=1, position={"a.jsonl": 100, "b.jsonl": 30})
    assert one.rewind(first).kind == "rewind"
    second = one.version({"a.jsonl": 100, "b.jsonl": 30, "c.jsonl": 20})
    with pytest.raises(OperationError, match=r"c\.jsonl: .*is gone.* from line 1 on"):
        one.rewind(first)
    assert one.rewind(second).kind == "rewind"
    one.project.write(events(3), "in/c.jsonl")
    assert one.rewind(first).kind == "rewind"
    (one.folder / "in/b.jsonl").unlink()
    (one.folder / "in/c.jsonl").unlink()
    with pytest.raises(OperationError, match=r"b\.jsonl: .*is gone \("):
        one.rewind(first)


def test_what_a_former_model_read_is_not_asked_for(kept):
    """After --fresh, only what the new one has read counts."""
    one = kept()
    one.project.write(events(3))
    one.began()
    one.did(1, "pause", at=BEGUN + 1, seq=1, position={"old.jsonl": 500})
    old = one.version({"old.jsonl": 100})
    one.began(BEGUN + 10, epoch="ab")
    new = one.version({"events.jsonl": 0}, fresh="ab")
    assert one.rewind(new).kind == "rewind"
    with pytest.raises(OperationError, match="started over"):
        one.rewind(old)


def test_standard_input_cannot_be_learned_again(kept):
    """Unless nothing came since."""
    one = kept("-")
    one.began()
    version = one.version({"-": 10})
    assert one.rewind(version).kind == "rewind"
    one.did(2, "pause", at=BEGUN + 1, seq=1, position={"-": 11})
    with pytest.raises(OperationError, match="standard input cannot be learned again"):
        one.rewind(version)


def test_a_range_of_a_file_that_came_later_can_be_skipped(kept):
    """A file is known by a version, by what shards did, or because it is there."""
    one = kept("in")
    (one.folder / "in").mkdir()
    one.began()
    version = one.version({"a.jsonl": 100})
    with pytest.raises(OperationError, match=r"c\.jsonl was never learned from.* a\.jsonl"):
        one.rewind(version, ranges=[("c.jsonl", 1, 100)])
    one.project.write(events(3), "in/c.jsonl")
    assert one.rewind(version, ranges=[("c.jsonl", 1, 100)]).orders[1].ranges


def test_a_rollback_passes_over_what_was_refused(kept):
    """It goes back to what was live before the last command that some shard did not refuse."""
    one = kept()
    one.project.write(events(3))
    one.registry.join(["000", "001"], 0, 0)
    both = ("000", "001")
    for shard in both:
        one.began(shard=shard)
    one.version(shards=both)
    kept_, done = one.registry.order(
        Order(0, "snapshot"), Order(0, "restore", version=1, before=JUST_MADE)
    )
    part = Snapshot(snapshot(kept_.version).header, one.parts)
    definition = one.registry.versions()[0].manifest.shards[0].header["definition"]
    for shard in both:
        header = {**part.header, "shard": shard, "definition": definition, "seen": 0, "learned": 0}
        one.registry.put(shard, kept_.version, Snapshot(header, one.parts))
    one.registry.complete()
    *_, refused = one.registry.order(
        Order(0, "snapshot"), Order(0, "restore", version=1, before=JUST_MADE)
    )
    for shard in both:
        one.did(done.id, "restore", at=BEGUN, seq=1, shard=shard, version=1)
        one.did(refused.id, "restore", at=BEGUN, seq=2, shard=shard, version=1, refused="damaged")
    assert plans.plan_rollback(one.registry, one.settings).version == kept_.version
    pending = one.registry.order(Order(0, "restore", version=1))[0]
    with pytest.raises(OperationError, match=f"before command {pending.id} was not kept"):
        plans.plan_rollback(one.registry, one.settings)
    one.did(pending.id, "restore", at=BEGUN, seq=3, version=1, refused="damaged")
    one.did(pending.id, "restore", at=BEGUN, seq=3, shard="001", version=1)
    with pytest.raises(OperationError, match="was not kept"):
        plans.plan_rollback(one.registry, one.settings)


def test_a_source_that_was_never_seen_is_asked_about(kept, monkeypatch):
    """Before it is left out; with --yes it is told, also as JSON."""
    one = kept()
    one.project.write(events(3))
    one.began()
    version = one.version()
    one.version()  # from which a source "s" came
    one.registry.beat([ShardRow("000", "", 0, 0.0, 10, paused=False, sources='["t"]')])
    assert one.rewind(version, sources=["s", "t"]).warnings == [
        f"version {version} itself has learned 1 events of source s, and keeps them: an older "
        "version may not have"
    ]
    said = "no event of source x was seen since version 1, so that nothing will be left out for it"
    assert one.rewind(version, sources=["x"]).warnings == [f"{said}; sources that were seen: s, t"]
    given = len(one.registry.commands())
    monkeypatch.setattr(testing._NamedTextIOWrapper, "isatty", lambda _: True)
    done = one.call("restore", "1", "--rewind", "--skip-source", "x", stdin="n\n")
    assert done.exit_code == 1
    assert f"warning: {said}" in done.output
    assert "go on, in spite of that? [y/N]:" in done.stderr
    assert len(one.registry.commands()) == given
    done = one.call("restore", "1", "--rewind", "--skip-source", "x", "--yes", "--json")
    assert said in json.loads(done.stdout)["warnings"][0]
