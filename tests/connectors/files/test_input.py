"""The input of a shard: cursors, replay, files that change under us."""

import json

import pytest

from midstream.connectors.files.discovery import NoFilesError
from midstream.connectors.files.input import FileInput, normal_path
from midstream.connectors.input import InputError
from midstream.engine.shard.journal import Cursor


def lines(n, start=0):
    return "".join(json.dumps({"x": {"a": i}, "y": 1}) + "\n" for i in range(start, start + n))


def drain(files, size=64):
    """Read all there is now."""
    works = []
    while (work := files.read(size)) is not None:
        works.append(work)
    return works


@pytest.mark.parametrize("path", ["e.jsonl", "./e.jsonl", "sub/../e.jsonl"])
def test_a_file_has_one_name_however_it_is_spelled(path, tmp_path):
    """Cursors are found again when only the spelling of the path has changed."""
    (tmp_path / "e.jsonl").write_text(lines(1))
    for spelling in (path, str(tmp_path / path)):
        assert normal_path(spelling, tmp_path) == "e.jsonl"
        assert FileInput(spelling, tmp_path).names == ["e.jsonl"]


def test_ranges_are_read_again_byte_for_byte(tmp_path):
    """Replaying the ranges gives the same bytes, in whatever blocks."""
    (tmp_path / "e.jsonl").write_text(lines(50))
    works = drain(FileInput("e.jsonl", tmp_path, until_eof=True))
    assert len(works) > 5
    again = FileInput("e.jsonl", tmp_path, until_eof=True)
    for work in works:
        got = again.replay(work.span, 10_000)
        assert (got.block.data, got.span, got.final) == (work.block.data, work.span, True)


def test_a_line_that_only_the_end_of_the_file_ended_stays_a_record(tmp_path):
    """What is appended to half a line later is another record, when read again too."""
    path = tmp_path / "e.jsonl"
    path.write_text(lines(2) + '{"x": {"a"')
    first = drain(FileInput("e.jsonl", tmp_path, until_eof=True), 10_000)
    assert not first[-1].span.whole
    with path.open("a") as file:
        file.write(': 7}, "y": 1}\n' + lines(2, 10))
    reader = FileInput("e.jsonl", tmp_path, until_eof=True)
    last = first[-1].span
    reader.seek({"e.jsonl": Cursor(last.stop, last.line, last.crc, last.head)})
    second = drain(reader, 10_000)
    again = FileInput("e.jsonl", tmp_path, until_eof=True)
    for work in first + second:
        got = again.replay(work.span, 10_000)
        assert got.block.data == work.block.data
        assert got.final


def test_a_file_that_grows_while_it_is_read_to_its_end_is_read_to_that_end(tmp_path):
    """Half a line at the end is taken once; its other half is left to the next run."""
    path = tmp_path / "e.jsonl"
    path.write_text(lines(1) + "{half")
    files = FileInput("e.jsonl", tmp_path, until_eof=True)
    assert len(drain(files, 10_000)) == 2
    with path.open("a") as file:
        file.write("other}\n")
    assert files.read(10_000) is None
    assert files.ended


def test_another_file_under_the_same_name_is_noticed(tmp_path):
    """A rotated or replaced file, also a longer one, is not read from the middle."""
    path = tmp_path / "e.jsonl"
    path.write_text(lines(20))
    (work,) = drain(FileInput("e.jsonl", tmp_path, until_eof=True), 10_000)
    cursor = Cursor(work.span.stop, work.span.line, work.span.crc, work.span.head)
    path.write_text(lines(60, start=500))
    files = FileInput("e.jsonl", tmp_path)
    files.seek({"e.jsonl": cursor})
    with pytest.raises(InputError, match="another file was put in its place"):
        files.read(10_000)


def test_a_fully_read_file_may_go_while_the_folder_is_followed(tmp_path):
    """Deleting what was learned is housekeeping, not a failure."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(lines(3))
    files = FileInput(".", tmp_path)
    assert len(drain(files, 10_000)) == 2
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl").unlink()
    assert files.rescan() == []
    assert files.read(10_000) is None
    assert not files.ended
    (tmp_path / "c.jsonl").write_text(lines(2))
    assert files.rescan() == ["c.jsonl"]
    assert len(drain(files, 10_000)) == 1


@pytest.mark.parametrize("path", ["in", "in/*.jsonl"])
def test_an_empty_folder_is_followed_and_is_no_whole_input(path, tmp_path):
    """Files may come where there are none yet; read to the end, there has to be one."""
    (tmp_path / "in").mkdir()
    files = FileInput(path, tmp_path)
    assert (files.names, files.read(64), files.ended) == ([], None, False)
    (tmp_path / "in" / "a.jsonl").write_text(lines(3))
    assert files.rescan() == ["a.jsonl"]
    assert sum(work.block.lines for work in drain(files)) == 3
    (tmp_path / "in" / "a.jsonl").unlink()
    with pytest.raises(NoFilesError):
        FileInput(path, tmp_path, until_eof=True)
    with pytest.raises(InputError, match="gone"):
        FileInput("gone", tmp_path)


def test_a_file_that_comes_back_goes_on_where_it_was(tmp_path):
    """A file that was away when its cursor was set is not read from its beginning."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.jsonl"
    path.write_text(lines(3))
    last = drain(FileInput("in", tmp_path, until_eof=True))[-1].span
    path.rename(tmp_path / "away")
    files = FileInput("in", tmp_path)
    files.seek({"a.jsonl": Cursor(last.stop, last.line, last.crc, last.head)})
    (tmp_path / "away").rename(path)
    with path.open("a") as file:
        file.write(lines(2, 3))
    files.rescan()
    assert "".join(work.block.data.decode() for work in drain(files)) == lines(2, 3)
