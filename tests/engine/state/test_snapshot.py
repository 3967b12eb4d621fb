"""Snapshots: whole or refused by name, and a few are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.engine.basics.storage import LocalStorage
from midstream.engine.state.snapshot import Snapshot, SnapshotError, SnapshotFolder, pack, unpack

SNAPSHOT = Snapshot({"shard": "000"}, {"learner": b"abc" * 40, "metrics": b"", "drift": b"\0" * 9})


def test_what_is_packed_is_unpacked():
    """Header and parts come back as they were."""
    assert unpack(pack(SNAPSHOT), "s") == SNAPSHOT


@given(st.integers(0, len(pack(SNAPSHOT)) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed_and_the_file_named(at, change):
    """Whatever byte is damaged, the snapshot is refused and the message names it."""
    data = bytearray(pack(SNAPSHOT))
    data[at] ^= change
    with pytest.raises(SnapshotError, match="snapshot-7"):
        unpack(bytes(data), "snapshot-7")


@given(st.integers(0, len(pack(SNAPSHOT)) - 1))
def test_a_cut_file_is_refused(length):
    """Wherever a file ends early, it is refused."""
    with pytest.raises(SnapshotError, match=r"cut off|not a Midstream"):
        unpack(pack(SNAPSHOT)[:length], "s")


def test_a_file_that_is_too_long_is_refused():
    """Surplus bytes are no part of a snapshot."""
    with pytest.raises(SnapshotError, match="3 bytes too long"):
        unpack(pack(SNAPSHOT) + b"abc", "s")


def test_the_damaged_part_is_named():
    """An operator learns which part of the state is damaged."""
    data = pack(SNAPSHOT)
    at = data.index(b"abcabc")
    with pytest.raises(SnapshotError, match="the part 'learner' is damaged"):
        unpack(data[:at] + b"X" + data[at + 1 :], "s")


def test_a_later_schema_is_refused_with_both_versions(monkeypatch):
    """A file of a later version is not guessed at."""
    monkeypatch.setattr("midstream.engine.state.snapshot.SCHEMA", 9)
    data = pack(SNAPSHOT)
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match=r"schema 9, this version reads 1"):
        unpack(data, "s")


def test_a_few_are_kept(tmp_path):
    """The newest ones stay, and the oldest of them is told."""
    folder = SnapshotFolder(LocalStorage(tmp_path), keep=3)
    oldest = [folder.write(seq, SNAPSHOT) for seq in (1, 4, 6, 9, 12)]
    assert oldest == [1, 1, 1, 4, 6]
    assert folder.positions() == [6, 9, 12]
