"""The backlog: what of a journal is still to be applied."""

from midstream.engine.basics.storage import LocalStorage
from midstream.engine.shard import backlog as backlog_module
from midstream.engine.shard.backlog import Backlog, Piece
from midstream.engine.shard.journal import Command, Exclude, FileJournal, Range


def entry(i):
    return Range("p", i, i + 1, i + 1, 0)


def test_a_backlog_is_read_in_parts(tmp_path, monkeypatch):
    """In order, with what was put before it, and as far as the journal went at first."""
    monkeypatch.setattr(backlog_module, "MOST_RECORDS", 4)
    journal = FileJournal(LocalStorage(tmp_path))
    journal.recover()
    for i in range(10):
        journal.commit([entry(i), Exclude("p", i, "why")])
    journal.commit([Command(7, "abandon", refused="gone"), Command(8, "pause")])
    backlog = Backlog(journal, 2, {8: "after all"})
    journal.commit([entry(10)])
    assert [piece.seq for piece in backlog.all()] == [*(i for i in range(2, 10) for _ in "ab"), 10]
    assert [piece.seq for piece in backlog.after(8)] == [9, 9, 10]
    assert backlog.pop().entry == entry(2)
    backlog.push([Piece(0, entry(77)), Piece(1, entry(78))])
    assert backlog.first().entry == entry(77)
    left = []
    while backlog:
        left.append(backlog.pop())
    assert [piece.seq for piece in left] == [0, 1, 2, *(i for i in range(3, 10) for _ in "ab"), 10]
    assert left[-1].entry == Command(8, "pause", refused="after all")
    assert not Backlog(journal)
