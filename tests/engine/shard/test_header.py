"""Headers: they are written as an older Midstream wrote them, and what it did not write is read."""

import msgspec
import pytest

from midstream.engine.shard.commands import Done
from midstream.engine.shard.dataset import DataSet, plain
from midstream.engine.shard.header import (
    About,
    Beginning,
    Excluded,
    Raised,
    SnapshotHeader,
    VersionHeader,
)
from midstream.engine.shard.journal import Command, Cursor, Skip
from midstream.engine.state.snapshot import SnapshotError

COMMON = {
    "definition": {"learner": {"kind": "river"}},
    "decoding": {"task": "binary"},
    "identity": "ab",
    "fresh": "token",
    "begun": [1.5, 7],
    "shard": "000",
    "cursors": {"p": [9, 10, 1, 2, 3, 4]},
    "excluded": [["p", 10], ["t-0", 5, 2]],
    "digest": "d",
    "seen": 20,
    "learned": 10,
    "libraries": {"python": "3.12"},
    "proof": ["p:0: 1.0"],
    "created": 2.5,
    "version": 3,
    "parent": 4,
    "generation": 1,
    "skips": [[1, 2, ["s"], [["p", 3, 4]]]],
    "data": {"stretches": {"p": [[0, 9]]}, "events": 9, "sources": {}, "fingerprint": f"{255:016x}",
             "left_out": 0, "lines": {"p": [[1, 10]]}},
    "parent_data": plain(DataSet()),
}  # fmt: skip
SNAPSHOT = COMMON | {
    "applied": 30,
    "alarms": [[1, 2, "adwin", "", "drift", 3.5]],
    "paused": True,
    "last_command": 6,
    "refused": 6,
    "done": [{"command": {"entry": "command", "id": 6, "kind": "pause"}, "seq": 8}],
    "recent": {"events": 3},
    "seq": 12,
}
VERSION = COMMON | {
    "seq": 12,
    "made": 5,
    "kind": "online",
    "reason": "manual",
    "metrics": {"accuracy": 0.5, "roc_auc": None},
}


@pytest.mark.parametrize(("of", "written"), [(SnapshotHeader, SNAPSHOT), (VersionHeader, VERSION)])
def test_a_header_is_written_as_it_was_read(of, written):
    """Byte for byte: the same names in the same order, and nothing that is not there."""
    assert msgspec.json.encode(of.of(written).plain()) == msgspec.json.encode(written)
    without = {key: value for key, value in written.items() if key != "identity"}
    assert msgspec.json.encode(of.of(without).plain()) == msgspec.json.encode(without)


def test_a_header_has_types():
    """Positions, exclusions, skips, alarms and commands are what the shard works with."""
    header = SnapshotHeader.of(SNAPSHOT)
    assert header.cursors == {"p": Cursor(9, 10, 1, 2, 3, 4)}
    assert header.excluded == [Excluded("p", 10, -1), Excluded("t-0", 5, 2)]
    assert header.skips == [Skip(1, 2, ["s"], [("p", 3, 4)])]
    assert header.alarms == [Raised(1, 2, "adwin", "", "drift", 3.5)]
    assert header.done == [Done(Command(6, "pause"), 8)]
    assert header.learned_from == DataSet({"p": [[0, 9]]}, 9, {}, 255, 0, {"p": [[1, 10]]})
    assert header.epoch == "token@1.500000"
    assert header.beginning == Done(Command(0, "start", at=1.5), 7, done_at=1.5)


def test_an_old_header_has_defaults_and_a_newer_one_may_have_more():
    """The first versions wrote neither commands nor data; theirs is the epoch of the token."""
    old = {"definition": {}, "decoding": {}, "cursors": {"p": [9, 10, 1]}, "seen": 5, "new": 1}
    header = SnapshotHeader.of(old)
    assert header.cursors == {"p": Cursor(9, 10, 1)}
    assert header.applied is None
    assert header.learned_from == header.parent_learned_from == DataSet()
    assert (header.epoch, header.identity, header.done) == ("", "", [])
    assert header.beginning == Done(Command(0, "start"), 0, done_at=0.0)


def test_a_header_with_another_type_is_named():
    """The message has the place in the header and what was expected there."""
    with pytest.raises(SnapshotError, match=r"Expected `int`, got `str` - at `\$\.seen`"):
        VersionHeader.of(VERSION | {"seen": "many"})


def test_a_beginning_has_the_new_model_unless_it_is_large():
    """Which a journal without a snapshot begins with; snapshots do not repeat it."""
    about = {key: COMMON[key] for key in ("definition", "decoding", "identity", "fresh", "begun")}
    with_blank = about | {"blank": {"learner": "AA=="}}
    assert Beginning.of(with_blank).plain() == with_blank | {"begun": (1.5, 7)}
    assert Beginning.of(about).plain() == about | {"begun": (1.5, 7)}
    assert "blank" not in About.of(with_blank).plain()
