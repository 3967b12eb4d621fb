"""Arrow and Parquet files as an input: blocks of rows, replay, files that are cut or change."""

import gzip
import json
import math
import subprocess
import sys
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from midstream.connectors.decode.arrow_decoder import TableDecoder
from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.fingerprint import Fingerprints
from midstream.connectors.files.discovery import discover
from midstream.connectors.files.input import FileInput
from midstream.connectors.input import Cursor, InputError, TableBlock

FLAT = FieldMap(label="y")
WRITERS = ["arrow", "arrows", "lz4.arrow", "zstd.feather", "ipc", "parquet", "plain.parquet"]


def rows(n, start=0) -> pa.Table:
    """Return n rows with nulls, strings, a dictionary and bools beside numbers."""
    i = np.arange(start, start + n)
    return pa.table(
        {
            "a": pa.array(i * 0.5, mask=i % 7 == 3),
            "n": pa.array(i.astype(np.int32)),
            "c": pa.array([None if k % 5 == 1 else f"c{k % 11}" for k in i.tolist()], pa.string()),
            "d": pa.array([f"d{k % 3}" for k in i.tolist()]).dictionary_encode(),
            "y": pa.array((i % 2 == 0).tolist(), pa.bool_()),
        }
    )


def write(path, table, chunk=100):
    """Write a table in the format that the file's name says, in pieces of `chunk` rows."""
    kind = path.name.split(".", 1)[1]
    if kind.endswith("parquet"):
        pq.write_table(table, path, row_group_size=chunk, use_dictionary="plain" not in kind,
                       compression="none" if "plain" in kind else "snappy",
                       write_page_checksum=True)  # fmt: skip
        return path
    compression = kind.split(".")[0] if "." in kind else None
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if kind == "arrows" else pa.ipc.new_file
    with make(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return path


def open_input(path, root, **options) -> FileInput:
    decoding = Decoding("binary", options.pop("fields", FLAT))
    return FileInput(path, root, decoding=decoding, **options)


def drain(files, size=1000):
    """Read all there is now."""
    works = []
    while (work := files.read(size)) is not None:
        works.append(work)
    return works


def replayed(files, works):
    """Read the ranges again; yield the last block of each."""
    for work in works:
        got = files.replay(work.span, 10**9)
        while not got.final:
            got = files.replay(work.span, 10**9)
        yield got


def dicts(works):
    """Return the features and label of every event."""
    batches = [work.block.form.decode(work.block).batch for work in works]
    return [(event.x, event.y) for batch in batches for event in batch]


def expected(table):
    return [
        ({k: v for k, v in row.items() if v is not None and k != "y"}, row["y"])
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_row_comes_once_and_in_order(kind, tmp_path):
    """Whatever the format, the pieces it was written in, and the length of blocks."""
    table = rows(300)
    for chunk in (7, 100, 5_000):
        path = write(tmp_path / f"e.{kind}", table, chunk)
        crcs = set()
        for size in (1, 100, 10**9):
            works = drain(open_input(path.name, tmp_path, until_eof=True), size)
            assert dicts(works) == expected(table)
            assert [w.span.start for w in works] == [0, *(w.span.stop for w in works)][:-1]
            assert works[-1].span.stop == 300
            assert works[-1].span.line == 301
            crcs.add(works[-1].span.crc)
        assert len(crcs) == 1, "the fingerprint depends on the cuts"


def test_lines_are_counted_as_in_other_files(tmp_path):
    """The first row is 1 in origins, as the first line of JSON Lines is."""
    write(tmp_path / "e.arrow", pa.table({"a": [1.0, math.inf, 3.0], "y": [1, 0, 1]}))
    (work,) = drain(open_input("e.arrow", tmp_path, until_eof=True))
    batch, rejected = work.block.form.decode(work.block)
    assert batch.offsets.tolist() == [1, 3]
    assert batch.ids == ["e.arrow-1", "e.arrow-3"]
    assert [r.origin for r in rejected] == [("e.arrow", 0, 2)]


@pytest.mark.parametrize("kind", WRITERS)
def test_ranges_are_read_again_from_anywhere(kind, tmp_path):
    """After a resume at any row the rest follows, and a range has the same rows again."""
    table = rows(300)
    path = write(tmp_path / f"e.{kind}", table, 40)
    works = drain(open_input(path.name, tmp_path, until_eof=True), 50)
    assert len(works) > 10
    for i in range(0, len(works), 3):
        again = open_input(path.name, tmp_path, until_eof=True)
        if i:
            last = works[i - 1].span
            again.seek({path.name: Cursor(last.stop, last.line, last.crc, last.head)})
        for got, work in zip(replayed(again, works[i:]), works[i:], strict=True):
            assert got.span.crc == work.span.crc
            assert got.block.stop == work.block.stop
        assert again.read(10**6) is None


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("column", ["a", "n", "c", "d", "y"])
def test_a_changed_value_is_noticed(kind, column, tmp_path):
    """One value of one row, of the same length: the range is not what was learned."""
    table = rows(500)
    path = write(tmp_path / f"e.{kind}", table)
    works = drain(open_input(path.name, tmp_path, until_eof=True))
    values = table[column].to_pylist()
    values[321] = {"a": -1.0, "n": 7, "c": "cX", "d": "d1", "y": True}[column]
    place = table.column_names.index(column)
    changed = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    path.unlink()
    write(path, changed)
    again = open_input(path.name, tmp_path, until_eof=True)
    with pytest.raises(InputError, match=rf"{path.name}: rows \d+ to \d+ are not what was learned"):
        list(replayed(again, works))


def test_rows_that_changed_places_are_noticed():
    """The sum of a fingerprint knows where a value is."""
    table = rows(100)
    plain = pa.table({"a": [float(i) for i in range(100)]})
    for one in (table, plain):
        (batch,) = one.combine_chunks().to_batches()
        whole = Fingerprints().of(batch.columns, 0)
        for i, j in ((0, 1), (3, 99), (8, 72), (5, 69)):
            order = list(range(100))
            order[i], order[j] = j, i
            assert Fingerprints().of(batch.take(order).columns, 0) != whole
        assert Fingerprints().of(batch.columns, 1) != whole
        parts = [(0, 13), (13, 50), (63, 37)]
        total = sum(Fingerprints().of(batch.slice(i, n).columns, i) for i, n in parts)
        assert total % 2**32 == whole


def test_fingerprints_do_not_look_under_nulls():
    """What lies there is anything; whether there is a null counts."""
    values = pa.array([1.0, 2.0, 3.0])
    valid = pa.py_buffer(b"\x05")
    one = pa.Array.from_buffers(pa.float64(), 3, [valid, values.buffers()[1]])
    other = pa.array([1.0, None, 3.0])
    zero = pa.array([1.0, 0.0, 3.0])
    of = Fingerprints().of
    assert of([one], 0) == of([other], 0) != of([zero], 0)


def test_another_file_under_the_same_name_is_noticed(tmp_path):
    """Also a longer one: its first rows are others."""
    path = write(tmp_path / "e.arrow", rows(100))
    last = drain(open_input("e.arrow", tmp_path, until_eof=True))[-1].span
    cursor = {"e.arrow": Cursor(last.stop, last.line, last.crc, last.head)}
    path.unlink()
    write(path, rows(300))
    files = open_input("e.arrow", tmp_path, until_eof=True)
    files.seek(cursor)
    assert dicts(drain(files)) == expected(rows(200, 100))  # the same one, with more behind it
    path.unlink()
    write(path, rows(300, start=1))
    files = open_input("e.arrow", tmp_path, until_eof=True)
    files.seek(cursor)
    with pytest.raises(InputError, match="another file was put in its place"):
        files.read(1000)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    """It is mapped: reading what is gone would kill the process."""
    path = write(tmp_path / "e.arrow", rows(2_000))
    files = open_input("e.arrow", tmp_path, until_eof=True)
    assert files.read(100) is not None
    with path.open("r+b") as file:
        file.truncate(500)
    with pytest.raises(InputError, match=r"e\.arrow: was changed while it was read"):
        files.read(100)


@pytest.mark.parametrize("kind", ["arrow", "arrows", "parquet"])
def test_what_was_cut_is_refused(kind, tmp_path):
    """A file that ends before rows that were learned."""
    path = write(tmp_path / f"e.{kind}", rows(200))
    works = drain(open_input(path.name, tmp_path, until_eof=True))
    path.unlink()
    write(path, rows(150))
    again = open_input(path.name, tmp_path, until_eof=True)
    with pytest.raises(InputError, match="ends at row 150, but rows up to 200 were learned"):
        list(replayed(again, works))


def delivered(path, root):
    """Read a damaged file: what it gives before its error, and the error's text."""
    events, message = [], ""
    try:
        with closing(open_input(path.name, root, until_eof=True)) as files:
            while (work := files.read(10**6)) is not None:
                batch, _ = work.block.form.decode(work.block)
                events += [(event.x, event.y) for event in batch]
    except InputError as error:
        message = str(error)
        assert message.startswith(f"{path.name}: "), message
        assert "\n" not in message
    return events, message


@pytest.mark.parametrize("kind", ["arrow", "arrows", "lz4.arrow", "parquet"])
def test_cut_anywhere_a_file_gives_its_beginning_or_nothing(kind, tmp_path):
    """Cut at every byte: one line says what is wrong, and no row is another one than it was."""
    table = rows(60)
    path = write(tmp_path / f"e.{kind}", table, 20)
    data, whole = path.read_bytes(), expected(table)
    silent = 0
    for end in range(len(data)):
        path.write_bytes(data[:end])
        events, message = delivered(path, tmp_path)
        assert events == whole[: len(events)], end
        silent += not message
        if kind != "arrows":
            assert message, end
            assert events == []
    if kind == "arrows":  # it may end behind any record batch, or behind its schema
        marks = 1 + 3 + 3  # of its end, whose first bytes may be missing
        assert silent <= marks + 8, silent


@pytest.mark.parametrize("kind", ["arrow", "arrows", "lz4.arrow", "parquet"])
def test_flipped_bits_never_crash(kind, tmp_path):
    """Whatever is read of it is read, or one line says what is wrong."""
    rng = np.random.default_rng(3)
    table = rows(60)
    path = write(tmp_path / f"e.{kind}", table, 20)
    data = path.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        bit = int(rng.integers(0, 8 * len(data)))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        events, message = delivered(path, tmp_path)
        refused += bool(message)
        assert message or len(events) <= 60
    assert refused > 10


def test_parquet_pages_with_a_checksum_are_checked(tmp_path):
    """A flipped bit in the data is noticed where the writer has left a way to."""
    path = tmp_path / "e.parquet"
    table = pa.table({"a": np.arange(1_000) * 0.5, "y": [True] * 1_000})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[3_000] ^= 1
    path.write_bytes(data)
    events, message = delivered(path, tmp_path)
    assert events == []
    assert message.startswith("e.parquet: cannot be read as Parquet from row 1 on: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.arrow", b"", "is empty: no Arrow file"),
        ("e.parquet", b"", "is empty: no Parquet file"),
        ("e.arrow", b"hello, world", "is no Arrow file"),
        ("e.parquet", b'{"x": {"a": 1}}\n', "is no Parquet file"),
        ("e.feather", b"FEA1" + b"\0" * 20, "is Feather version 1, which is not read"),
        ("e.parquet", b"PARE" + b"\0" * 20, "is encrypted"),
        ("e.arrow", gzip.compress(b"ARROW1", mtime=0), "is compressed by gzip"),
        ("e.arrow.gz", gzip.compress(b"ARROW1", mtime=0), "is compressed by gzip"),
        ("e.arrow", b"ARROW1\0\0" + b"\0" * 80, "this Arrow file has no footer: it was cut, or"),
        ("e.parquet", b"PAR1" + b"\0" * 80, "this Parquet file has no footer: it was cut, or"),
    ],
)
def test_what_is_none_of_these_files(name, content, message, tmp_path):
    """One line names the file and what it is not."""
    (tmp_path / name).write_bytes(content)
    files = open_input(name, tmp_path, until_eof=True)
    with pytest.raises(InputError) as error:
        files.read(1000)
    assert str(error.value).startswith(f"{name}: {message}")


@pytest.mark.parametrize("kind", ["arrow", "arrows", "parquet"])
def test_a_file_without_rows_has_no_events(kind, tmp_path):
    """Its schema is looked at all the same."""
    path = write(tmp_path / f"e.{kind}", rows(1).slice(0, 0))
    files = open_input(path.name, tmp_path, until_eof=True)
    assert files.read(1000) is None
    assert files.ended
    path = write(tmp_path / f"f.{kind}", pa.table({}))
    with pytest.raises(InputError, match="no column is a feature"):
        open_input(path.name, tmp_path, until_eof=True).read(1000)


def test_files_are_told_by_their_content_where_their_name_does_not(tmp_path):
    """By the magic at their beginning."""
    for kind in ("arrow", "arrows", "parquet"):
        write(tmp_path / f"e.{kind}", rows(5)).rename(tmp_path / kind)
        ((_, _, found),) = discover(kind, tmp_path)
        assert found == ("parquet" if kind == "parquet" else "arrow")
        assert len(dicts(drain(open_input(kind, tmp_path, until_eof=True)))) == 5


def test_a_folder_may_mix_formats(tmp_path):
    """Each file is read as what it is, in natural order."""
    write(tmp_path / "1.arrow", rows(3))
    (tmp_path / "2.jsonl").write_text(json.dumps({"a": 1.5, "y": True}) + "\n")
    write(tmp_path / "10.parquet", rows(2))
    (tmp_path / "3.csv").write_text("a,y\n2.5,false\n")
    files = open_input(".", tmp_path, until_eof=True)
    assert files.names == ["1.arrow", "2.jsonl", "3.csv", "10.parquet"]
    works = drain(files)
    kinds = [isinstance(work.block, TableBlock) for work in works]
    assert kinds == [True, False, False, True]
    assert files.csv_options("1.arrow") is None
    assert files.csv_options("3.csv").header == ["a", "y"]


def test_another_schema_in_the_folder_is_refused_by_its_file(tmp_path):
    """What came before it stays; the file and the column are named."""
    write(tmp_path / "1.arrow", rows(3))
    write(tmp_path / "2.arrow", pa.table({"a": [[1.0]], "y": [True]}))
    files = open_input(".", tmp_path, until_eof=True)
    assert files.read(10**6).span.stop == 3
    with pytest.raises(InputError, match=r"^2\.arrow: column 'a', a feature, is list<"):
        files.read(1000)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_followed_file_is_waited_for_until_it_is_whole(kind, tmp_path):
    """Its footer comes last: before that it is tried again, and nothing of it is learned."""
    path = tmp_path / f"e.{kind}"
    data = write(tmp_path / f"whole.{kind}", rows(50)).read_bytes()
    (tmp_path / f"whole.{kind}").unlink()
    path.write_bytes(b"")
    files = open_input(".", tmp_path)
    for end in (0, 3, 100, len(data) - 1):
        path.write_bytes(data[:end])
        assert files.read(10**6) is None, end
        assert files.waiting == {path.name}
    path.write_bytes(data)
    assert len(dicts(drain(files))) == 50
    assert files.waiting == set()
    assert not files.ended


def test_a_followed_stream_grows_by_record_batches(tmp_path):
    """Half of one is waited for; read to its end, it is damage."""
    path = tmp_path / "e.arrows"
    data = write(path, rows(90), 30).read_bytes()
    path.write_bytes(b"")
    files = open_input("e.arrows", tmp_path)
    events = []
    for end in [*range(0, len(data), 97), len(data)]:
        with path.open("r+b") as file:
            file.write(data[:end])
        events += dicts(drain(files, 10**6))
    assert events == expected(rows(90))
    path.write_bytes(data[: len(data) * 2 // 3])
    events, message = delivered(path, tmp_path)
    assert events == expected(rows(90))[: len(events)]
    assert "ends within a record batch" in message


@pytest.mark.parametrize("kind", ["arrow", "arrows", "parquet"])
def test_begun_at_the_end(kind, tmp_path):
    """With start = "latest" what is there is not read; later rows of a stream, or files, are."""
    write(tmp_path / f"e.{kind}", rows(90))
    files = open_input(".", tmp_path, start="latest")
    (work,) = files.begin(untouched=True)
    assert (work.span.start, work.span.stop, work.span.line) == (90, 90, 91)
    assert files.read(1000) is None
    write(tmp_path / f"f.{kind}", rows(5))
    files.rescan()
    assert len(dicts(drain(files))) == 5
    assert files.replay(work.span, 1000).final


def test_a_huge_row_group_and_record_batch_are_read_in_small_blocks(tmp_path):
    """Memory is that of a block; how a file was written does not decide the latency."""
    n = 1_000_000
    table = pa.table({f"f{i}": np.arange(n) * 0.5 for i in range(10)} | {"y": [True] * n})
    for kind in ("arrow", "parquet"):
        path = write(tmp_path / f"e.{kind}", table, n)
        files = open_input(path.name, tmp_path, until_eof=True)
        largest, before = 0, pa.total_allocated_bytes()
        while (work := files.read(128 * 1024)) is not None:
            assert work.block.lines <= 16_384
            largest = max(largest, pa.total_allocated_bytes() - before)
        files.close()
        assert largest < 32 * 2**20, f"{kind}: {largest:,} B for a table of {table.nbytes:,} B"


@pytest.mark.parametrize("kind", ["arrow", "arrows", "parquet"])
def test_tiny_record_batches_are_joined(kind, tmp_path):
    """As many rows a block as otherwise; each batch may have a dictionary of its own."""
    null = None if kind == "arrows" else "z"  # other writers take no null in a dictionary
    words = [pa.array(["u", null]), pa.array(["v", "u"]), pa.array(["w", "x"])]
    batches = [
        pa.record_batch(
            {
                "a": [i + 0.5, None, 1.0],
                "d": pa.DictionaryArray.from_arrays([0, 1, None], words[i % 3]),
                "y": [True, False, True],
            }
        )
        for i in range(300)
    ]
    table = pa.Table.from_batches(batches)
    if kind == "parquet":
        pq.write_table(table, tmp_path / "e.parquet", row_group_size=3)
    else:
        make = pa.ipc.new_stream if kind == "arrows" else pa.ipc.new_file
        options = pa.ipc.IpcWriteOptions(unify_dictionaries=kind == "arrow")
        with make(str(tmp_path / f"e.{kind}"), table.schema, options=options) as writer:
            writer.write_table(table)
    works = drain(open_input(f"e.{kind}", tmp_path, until_eof=True), 10**6)
    assert [work.block.lines for work in works] == [900]
    small = drain(open_input(f"e.{kind}", tmp_path, until_eof=True), 1)
    assert dicts(works) == dicts(small)
    assert works[-1].span.crc == small[-1].span.crc


def test_wide_rows_make_short_blocks(tmp_path):
    """What a block holds is bounded in bytes, whatever the number of columns."""
    table = pa.table(
        {f"f{i}": np.arange(5_000) * 0.5 for i in range(1_000)} | {"y": [True] * 5_000}
    )
    write(tmp_path / "e.arrow", table, 5_000)
    files = open_input("e.arrow", tmp_path, until_eof=True)
    work = files.read(128 * 1024)
    assert 64 <= work.block.lines <= 256
    assert work.block.size <= 128 * 1024


def test_without_pyarrow_the_rest_works_and_one_line_says_what_to_install(tmp_path):
    """The core neither needs nor imports it."""
    write(tmp_path / "e.arrow", rows(5))
    (tmp_path / "e.jsonl").write_text('{"x": {"a": 1}, "y": true}\n')
    code = f"""
import sys
sys.modules["pyarrow"] = None  # importing it fails
import midstream
from pathlib import Path
from midstream.flows import cli
from midstream.flows.inputs import reading
from midstream.flows.loading import load
from midstream.flows.offline import survey
root = Path({str(tmp_path)!r})
for name in ("e.jsonl", "e.arrow"):
    (root / "c.toml").write_text(
        '[model]\\nlearner = "logistic"\\ntask = "binary"\\n[input]\\npath = "' + name + '"\\n'
    )
    try:
        with reading.open_reader(load(root / "c.toml")) as reader:
            print(sum(len(decoded.batch) for _, decoded in reader))
        survey.survey(root / name)
    except ValueError as error:
        print(error)
try:
    survey.survey(root / "e.arrow")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = "Arrow and Parquet need pyarrow; install it with: pip install 'midstream[arrow]'"
    assert done.stdout.splitlines() == ["1", f"e.arrow: {needed}", needed]


def test_the_position_of_a_partition_is_a_row(tmp_path):
    """And its line the number of the next one, from 1."""
    from midstream.connectors.files.arrow_files import TablePartition

    path = write(tmp_path / "e.parquet", rows(30), 10)
    decoder = TableDecoder("binary", FLAT)
    partition = TablePartition(
        path, "e", format="parquet", decoder=decoder, position=Cursor(25, 26)
    )
    block = partition.read(final=True)
    assert (block.first, block.lines, block.start, block.stop) == (26, 5, 25, 30)
    assert partition.position == Cursor(30, 31)
    partition.close()
