"""Which file is which: logs that are rotated, copies that are put back, files cut under us."""

import gzip
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rotating_logs import lived

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.files.input import FileInput
from midstream.connectors.files.rotation import is_rotated, siblings
from midstream.connectors.input import InputError
from midstream.engine.shard.journal import Cursor

BLOCKS = 10


@pytest.mark.parametrize(
    "block", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(BLOCKS)]
)
def test_a_log_is_read_once_whatever_becomes_of_it(block, tmp_path):
    """Rotated, compressed, written to late, while runs stop and die: each line is read once."""
    for seed in range(500 * block, 500 * block + 500):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            lived(seed, folder)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "log"),
    [
        ("e.log.1", "e.log"),
        ("e.log.12.gz", "e.log"),
        ("e.log-20261129", "e.log"),
        ("e.log-20261129.gz", "e.log"),
        ("e.log.2026-11-29_00-00-00", "e.log"),
        ("e-20261129.log", "e.log"),
        ("e.2.jsonl.gz", "e.jsonl"),
        ("e.log.old", "e.log"),
        ("e.log.gz", "e.log"),
        ("in/e.log.1", "in/e.log"),
    ],
)
def test_names_of_what_a_log_has_become(name, log):
    """Those that logrotate and loggers give, with a number or a date, behind or before the end."""
    assert is_rotated(name, log)


@pytest.mark.parametrize(
    "name", ["e.log", "e.log1", "ee.log.1", "e.log.txt", "e-x.log", "a/e.log.1"]
)
def test_names_that_say_nothing(name):
    """Names of other files."""
    assert not is_rotated(name, "e.log")


def test_what_a_log_has_become_in_order(tmp_path):
    """The oldest first; one that is being compressed counts once."""
    names = ["e.log.10.gz", "e.log.9", "e.log.2", "e.log.2.gz", "e.log.1"]
    there = {tmp_path / name: i for i, name in enumerate(["e.log.1", "e.log", *names])}
    found = [path.name for path in siblings(tmp_path / "e.log", there)]
    assert found == ["e.log.10.gz", "e.log.9", "e.log.2", "e.log.1"]


# What was put back -----------------------------------------------------------------------------


def rows(n, start=0):
    return [{"id": f"e{i}", "a": i % 7, "t": f"t{i}", "y": i % 2} for i in range(start, start + n)]


def jsonl(path, events):
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def packed(path, events):
    path.write_bytes(gzip.compress("".join(json.dumps(e) + "\n" for e in events).encode()))


def quoted(path, events):
    lines = [f'{e["id"]},{e["a"]},"{e["t"]},\n""x""",{e["y"]}\n' for e in events]
    path.write_text("id,a,t,y\n" + "".join(lines))


def table(events):
    return pa.Table.from_pylist(events)


def ipc(path, events):
    with pa.ipc.new_file(path, table(events).schema) as writer:
        writer.write_table(table(events), 100)


def stream(path, events):
    with pa.ipc.new_stream(path, table(events).schema) as writer:
        writer.write_table(table(events), 30)


def parquet(path, events):
    pq.write_table(table(events), path, row_group_size=150)


FORMATS = {
    "e.jsonl": jsonl,
    "e.jsonl.gz": packed,
    "e.csv": quoted,
    "e.arrow": ipc,
    "e.arrows": stream,
    "e.parquet": parquet,
}
FIELDS = {"id": "id", "label": "y"}


@pytest.fixture
def opened():
    """Opens inputs, which are closed afterwards."""
    from midstream.connectors.decode.fields import FieldMap

    made = []

    def open_input(path, root, **options):
        decoding = Decoding("binary", FieldMap(id="id", label="y"))
        made.append(FileInput(path, root, decoding=decoding, **options))
        return made[-1]

    yield open_input
    for each in made:
        each.close()


def drain(files, size=2_000):
    works = []
    while (work := files.read(size)) is not None:
        works.append(work)
    return works


def cursor_of(work):
    return {work.span.partition: work.span.at_stop()}


@pytest.mark.parametrize("same", [500, 950])
@pytest.mark.parametrize("name", FORMATS)
def test_an_older_copy_that_has_grown_is_refused(name, same, opened, tmp_path):
    """Also where it begins as what was read, and is longer: its new events are not skipped."""
    path, write = tmp_path / name, FORMATS[name]
    write(path, rows(1000))
    last = drain(opened(name, tmp_path, until_eof=True))[-1]
    write(path, rows(same) + rows(900, 5000))
    files = opened(name, tmp_path, until_eof=True)
    files.seek(cursor_of(last))
    with pytest.raises(InputError, match=rf"^{name}: .* is not what was learned from it"):
        files.read(2_000)


@pytest.mark.parametrize("name", FORMATS)
def test_a_copy_of_what_was_read_is_gone_on_with(name, opened, tmp_path):
    """Whatever its number is in the file system, and whether the blocks were long or short."""
    path, write = tmp_path / name, FORMATS[name]
    write(path, rows(1000))
    works = drain(opened(name, tmp_path, until_eof=True), 500)
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").rename(path)
    for i in (0, 1, len(works) // 2, len(works) - 1):
        files = opened(name, tmp_path, until_eof=True)
        files.seek(cursor_of(works[i]))
        found = drain(files, 700)
        assert sum(w.block.lines for w in found) == sum(w.block.lines for w in works[i + 1 :])
        if found:
            assert found[-1].span.tail == works[-1].span.tail


def test_a_state_of_before_goes_on(opened, tmp_path):
    """Where it holds no more than the beginning, that is what is compared."""
    path = tmp_path / "e.jsonl"
    jsonl(path, rows(100))
    first = drain(opened("e.jsonl", tmp_path, until_eof=True))[0].span
    files = opened("e.jsonl", tmp_path, until_eof=True)
    files.seek({"e.jsonl": Cursor(first.stop, first.line, first.crc, first.head)})
    assert sum(work.block.lines for work in drain(files)) == 100 - (first.line - 1)


@pytest.mark.parametrize("read", ["all", "some"])
@pytest.mark.parametrize("lines", [5, 50, 95, 100])
def test_a_file_cut_and_grown_again_while_it_is_followed_is_refused(lines, read, opened, tmp_path):
    """Between two looks at it, whatever its length is then, and whether it was open."""
    path = tmp_path / "e.jsonl"
    jsonl(path, rows(100))
    files = opened("e.jsonl", tmp_path)
    if read == "all":
        drain(files)
    else:
        for _ in range(3):
            files.read(1_500)
    os.truncate(path, sum(len(json.dumps(row)) + 1 for row in rows(lines - 5)))
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows(5, 3000)))

    def grow():
        for n in range(50):
            append(path, rows(1, 4000 + n))
            drain(files)

    with pytest.raises(InputError, match=r"^e.jsonl: .*copytruncate"):
        grow()


# What is rotated ---------------------------------------------------------------------------------


def append(path, events):
    with path.open("a") as file:
        file.write("".join(json.dumps(event) + "\n" for event in events))


def ids(works):
    lines = [line for work in works for line in work.block.data.splitlines()]
    return [json.loads(line)["id"] for line in lines]


def names(n, start=0):
    return [event["id"] for event in rows(n, start)]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_log_that_is_copied_and_truncated_is_refused(stopped, opened, tmp_path):
    """With what to do: rotate by rename, or, where the copy is whole, make it a file of its own."""
    path = tmp_path / "e.log"
    append(path, rows(50))
    files = opened("e.log", tmp_path, format_="jsonl")
    cursor = cursor_of(drain(files)[-1])
    append(path, rows(5, 50))
    shutil.copy(path, tmp_path / "e.log.1")
    os.truncate(path, 0)
    append(path, rows(100, 100))
    if stopped:
        files = opened("e.log", tmp_path, format_="jsonl")
        files.seek(cursor)
    with pytest.raises(InputError, match="copytruncate"):
        drain(files)
    shutil.copy(path, tmp_path / "new")
    (tmp_path / "new").rename(path)
    files = opened("e.log", tmp_path, format_="jsonl")
    files.seek(cursor)
    assert ids(drain(files)) == names(5, 50) + names(100, 100)


def test_a_log_that_begins_as_the_one_before_is_another(opened, tmp_path):
    """What tells them apart is the number that the file system gives, while the log stays there."""
    path = tmp_path / "e.log"
    append(path, rows(20))
    cursor = cursor_of(drain(opened("e.log", tmp_path, format_="jsonl"))[-1])
    path.rename(tmp_path / "e.log.1")
    append(path, rows(25))
    files = opened("e.log", tmp_path, format_="jsonl")
    files.seek(cursor)
    works = drain(files)
    assert (ids(works), works[0].span.partition) == (names(25), "e.log+1")


def test_a_log_that_is_moved_to_another_folder_is_read_to_its_end(opened, tmp_path):
    """It is open, so that what came last is not lost, and what has taken its place comes then."""
    path = tmp_path / "e.log"
    append(path, rows(20))
    files = opened("e.log", tmp_path, format_="jsonl")
    assert ids(drain(files)) == names(20)
    append(path, rows(3, 20))
    (tmp_path / "old").mkdir()
    path.rename(tmp_path / "old" / "e.log.1")
    append(path, rows(5, 23))
    assert ids(drain(files)) == names(8, 20)
    append(path, rows(2, 28))
    assert ids(drain(files)) == names(2, 28)


def test_a_file_replaced_by_another_is_refused(opened, tmp_path):
    """An editor, or a tool, that puts another file in its place has deleted what was there."""
    path = tmp_path / "e.jsonl"
    append(path, rows(20))
    files = opened("e.jsonl", tmp_path)
    drain(files)
    jsonl(tmp_path / "new", rows(30, 10))
    (tmp_path / "new").rename(path)
    with pytest.raises(InputError, match="another file was put in its place"):
        drain(files)


def test_a_file_replaced_by_a_longer_copy_is_gone_on_with(opened, tmp_path):
    """As rsync does, which writes what has come under another name, and renames that."""
    path = tmp_path / "e.jsonl"
    append(path, rows(20))
    files = opened("e.jsonl", tmp_path)
    assert ids(drain(files)) == names(20)
    jsonl(tmp_path / "new", rows(30))
    (tmp_path / "new").rename(path)
    assert ids(drain(files)) == names(10, 20)
    assert files.names == ["e.jsonl"]


def test_the_last_line_of_a_rotated_log_may_end_later(opened, tmp_path):
    """It waits for its newline as long as somebody may write to it: until it is rotated again."""
    path = tmp_path / "e.log"
    append(path, rows(3))
    files = opened("e.log", tmp_path, format_="jsonl")
    drain(files)
    with path.open("a") as old:
        old.write('{"id":')
        old.flush()
        path.rename(tmp_path / "e.log.1")
        append(path, rows(2, 10))
        assert ids(drain(files)) == names(2, 10)
        old.write(' "late"}\n{"id": "half"}')
    files.rescan()
    assert ids(drain(files)) == ["late"]
    (tmp_path / "e.log.1").rename(tmp_path / "e.log.2")
    path.rename(tmp_path / "e.log.1")
    append(path, rows(1, 20))
    assert ids(drain(files)) == ["half", "e20"]


def test_each_csv_log_has_a_header_of_its_own(opened, tmp_path):
    """What has taken the place of a log may have other columns."""
    path = tmp_path / "e.csv"
    path.write_text("id,a,y\n1,2,0\n")
    files = opened("e.csv", tmp_path)
    drain(files)
    path.rename(tmp_path / "e.csv.1")
    path.write_text("id;b;y\n2;3;1\n")
    (work,) = drain(files)
    assert work.block.data == b"2;3;1\n"
    assert files.csv_options(work.span.partition).header == ["id", "b", "y"]


def test_a_log_is_given_up_where_what_it_was_is_gone(opened, tmp_path):
    """Nobody knows then what was in it, and what came between."""
    path = tmp_path / "e.log"
    append(path, rows(20))
    cursor = cursor_of(drain(opened("e.log", tmp_path, format_="jsonl"))[-1])
    path.unlink()
    append(path, rows(20, 100))
    files = opened("e.log", tmp_path, format_="jsonl")
    files.seek(cursor)
    with pytest.raises(InputError, match="another file was put in its place"):
        drain(files)
