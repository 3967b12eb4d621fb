"""The journal on real files: commits, torn tails, damage, trimming."""

import shutil

import msgspec
import pytest

from midstream.engine.basics.storage import LocalStorage
from midstream.engine.shard import journal as journal_module
from midstream.engine.shard.journal import (
    Command,
    Cursor,
    FileJournal,
    JournalError,
    Range,
    Record,
)


def entry(i):
    return Range("p", i, i + 1, i + 1, 0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def opened(folder, **options):
    journal = FileJournal(LocalStorage(folder), LocalStorage(folder / "out"), **options)
    return journal, journal.recover()


def test_records_come_back_in_order(folder):
    """What was committed is there after a new start, in order."""
    journal, records = opened(folder)
    assert records == []
    for i in range(5):
        journal.write("a", b"x" * i)
        journal.commit([entry(i)])
    _, records = opened(folder)
    assert [r.entries for r in records] == [[entry(i)] for i in range(5)]
    assert [r.lengths.get("a", 0) for r in records] == [0, 1, 3, 6, 10]


def test_it_cannot_be_written_to_before_it_is_recovered(folder):
    """Nobody appends to a journal whose end he has not looked at."""
    with pytest.raises(JournalError, match="recovered"):
        FileJournal(LocalStorage(folder)).commit([entry(0)])


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_record_is_cut_and_its_outputs_with_it(folder, cut):
    """Half a record is none, and outputs go back to the last whole one."""
    journal, _ = opened(folder)
    journal.write("a", b"one\n")
    journal.commit([entry(0)])
    journal.write("a", b"two\n")
    journal.commit([entry(1)])
    (segment,) = folder.glob("journal-*.log")
    segment.write_bytes(segment.read_bytes()[:-cut])
    journal, records = opened(folder)
    assert len(records) == 1
    assert (folder / "out" / "a").read_bytes() == b"one\n"
    journal.commit([entry(1)])
    assert len(opened(folder)[1]) == 2


def test_damage_before_the_end_is_refused_and_named(folder):
    """A flipped bit in the middle is no torn tail: the state behind it cannot be trusted."""
    journal, _ = opened(folder)
    for i in range(3):
        journal.commit([entry(i)])
    (segment,) = folder.glob("journal-*.log")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with pytest.raises(JournalError, match=rf"{segment.name} is damaged at byte \d+"):
        opened(folder)


def test_a_missing_segment_is_refused(folder):
    """A journal with a hole is refused by name."""
    journal, _ = opened(folder, segment_bytes=1)
    for i in range(4):
        journal.commit([entry(i)])
    sorted(folder.glob("journal-*.log"))[1].unlink()
    with pytest.raises(JournalError, match="some are gone"):
        opened(folder)


def test_trimming_forgets_whole_segments_before_a_position(folder):
    """After a trim the journal begins at or before the position, and goes on."""
    journal, _ = opened(folder, segment_bytes=1)
    for i in range(6):
        journal.commit([entry(i)])
    journal.trim(4)
    assert journal.first == 4
    journal, records = opened(folder, segment_bytes=1)
    assert [r.seq for r in records] == [4, 5]
    assert journal.commit([entry(6)]) == 7


def test_an_output_cut_by_somebody_else_is_refused(folder):
    """Committed lines that are gone are not silently done without."""
    journal, _ = opened(folder)
    journal.write("a", b"0123456789")
    journal.commit([entry(0)])
    (folder / "out" / "a").write_bytes(b"0123")
    with pytest.raises(JournalError, match="a has 4 bytes, but 10 were committed"):
        opened(folder)


def test_an_output_that_was_moved_away_is_begun_anew_and_said(folder):
    """Rotating an output between runs is allowed, and told."""
    journal, _ = opened(folder)
    journal.write("a", b"0123456789")
    journal.commit([entry(0)])
    (folder / "out" / "a").unlink()
    journal, _ = opened(folder)
    assert journal.lost_outputs == {"a": 0}
    journal.write("a", b"new")
    journal.commit([entry(1)])
    assert (folder / "out" / "a").read_bytes() == b"new"


@pytest.mark.parametrize("how", ["move", "remove", "cut", "replace", "folder"])
def test_an_output_that_is_moved_while_it_is_written_to(folder, how):
    """A commit notices, begins a new one, and the next start finds what is committed."""
    journal, _ = opened(folder)
    path = folder / "out" / "a"
    journal.write("a", b"0123456789")
    journal.commit([entry(0)])
    if how == "cut":
        path.write_bytes(b"")
    elif how == "remove":
        path.unlink()
    elif how == "folder":
        shutil.rmtree(path.parent)
    else:
        path.rename(folder / "out" / "a.1")
        if how == "replace":
            path.touch()
    journal.write("a", b"abc")
    journal.commit([entry(1)])
    assert journal.lost_outputs == {"a": 3 if how == "cut" else 0}
    journal.lost_outputs.clear()
    journal.write("a", b"def")
    journal.commit([entry(2)])
    assert journal.lost_outputs == {}
    assert path.read_bytes() == (b"abcdef" if how == "cut" else b"def")
    if how in ("move", "replace"):
        assert (folder / "out" / "a.1").read_bytes() == b"0123456789abc"
    journal, records = opened(folder)
    assert len(records) == 3
    assert journal.lost_outputs == {}
    assert path.read_bytes() == (b"abcdef" if how == "cut" else b"def")


def test_after_a_failed_write_only_recovery_helps(folder, monkeypatch):
    """A journal that failed once is not written to again by the same process."""
    journal, _ = opened(folder)
    monkeypatch.setattr(
        LocalStorage, "sync", lambda self, name: (_ for _ in ()).throw(OSError(28, "disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        journal.commit([entry(0)])
    monkeypatch.undo()
    with pytest.raises(JournalError, match="earlier write failed"):
        journal.commit([entry(0)])


@pytest.mark.parametrize("many", [1, 3, 7, 100])
def test_of_very_many_records_those_that_say_more_come_back(folder, many, monkeypatch):
    """The first, the last, and what is no mere range; `records` has all of them."""
    monkeypatch.setattr(journal_module, "MOST_RECORDS", many)
    journal, _ = opened(folder, segment_bytes=300)
    journal.commit([entry(0)], about={"a": 1})
    for i in range(1, 20):
        journal.commit([Command(i, "pause")] if i == 11 else [entry(i)])
    assert len(list(folder.glob("journal-*"))) > 3
    again, records = opened(folder, segment_bytes=300)
    found = [record.seq for record in records]
    assert found == (list(range(20)) if many == 100 else [0, 11, 19])
    assert again.end == 20
    assert [record.seq for record in again.records(0)] == list(range(20))
    again.commit([entry(20)])
    assert opened(folder)[1][-1].seq == 20


def test_positions_are_lists_as_they_always_were():
    """Also in a command; those of an earlier version, which knew less, are read."""
    cursor = Range("p", 3, 9, 4, 5, 6, tail=7, inode=8).at_stop()
    assert msgspec.json.encode(cursor) == b"[9,4,5,6,7,8]"
    command = Command(1, "rewind", start={"p": cursor})
    data = msgspec.json.encode(Record(0, [command]))
    assert b'"start":{"p":[9,4,5,6,7,8]}' in data
    assert msgspec.json.decode(data, type=Record).entries == [command]
    old = msgspec.json.decode(data.replace(b"[9,4,5,6,7,8]", b"[9,4,5]"), type=Record)
    assert old.entries[0].start == {"p": Cursor(9, 4, 5)}
