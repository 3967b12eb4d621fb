"""Files, folders, archives and standard input, cut into blocks of whole records."""

import contextlib
import csv
import gzip
import io
import os
import random
import tracemalloc
import zlib
from pathlib import Path

import pytest
from framing import record_end
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.connectors.decode.csv_decoder import CsvDecoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.files.discovery import FilePartition, StdinPartition, discover
from midstream.connectors.input import Block, Cursor, InputError


def partition(path: Path, **options) -> FilePartition:
    options.setdefault("format", "jsonl")
    return FilePartition(path, path.name, **options)


def drain(part, max_bytes=256 * 1024, *, final=True, until=None) -> list[Block]:
    blocks = []
    while (block := part.read(max_bytes, final=final, until=until)) is not None:
        blocks.append(block)
    return blocks


def text(blocks: list[Block]) -> bytes:
    return b"".join(block.data for block in blocks)


@contextlib.contextmanager
def without_rights(path: Path):
    """Root may read everything, so as root these tests read as nobody."""
    if os.geteuid() == 0:
        path.chmod(0o700)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            yield
        finally:
            path.chmod(mode)


LINES = [b'{"x":{"a":%d}}\n' % i for i in range(50)]


# One file ------------------------------------------------------------------------------------


def test_a_file_comes_in_blocks_of_whole_lines(tmp_path):
    """Blocks hold whole lines, follow each other without a gap, and know their lines."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(LINES))
    blocks = drain(partition(path), 100)
    assert text(blocks) == b"".join(LINES)
    assert len(blocks) > 5
    byte, line = 0, 1
    for block in blocks:
        assert (block.partition, block.start, block.first) == ("events.jsonl", byte, line)
        assert block.data.endswith(b"\n")
        assert block.stop - block.start == len(block.data)
        assert block.lines == block.data.count(b"\n")
        byte, line = block.stop, line + block.lines


def test_a_line_longer_than_a_block_comes_whole(tmp_path):
    """`max_bytes` is an aim: a longer record comes alone and whole."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"a" * 500 + b"\nb\n")
    assert [b.data for b in drain(partition(path), 10)] == [b"a" * 500 + b"\n", b"b\n"]


def test_the_last_line_without_newline_waits_unless_final(tmp_path):
    """An unfinished line is not read while the file may grow, and is the last record if not."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo")
    part = partition(path)
    assert [b.data for b in drain(part, final=False)] == [b"one\n"]
    assert part.position == Cursor(4, 2)
    assert not part.at_end
    assert [(b.data, b.first, b.lines) for b in drain(part)] == [(b"two", 2, 1)]
    assert part.at_end
    assert part.position == Cursor(7, 3)


def test_a_growing_file_is_followed(tmp_path):
    """What is appended comes with the next read, once its line is whole."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"")
    part = partition(path)
    assert part.read(final=False) is None
    with path.open("ab", buffering=0) as file:
        file.write(b"one")
        assert part.read(final=False) is None
        file.write(b"\ntwo\nthr")
        assert part.read(final=False).data == b"one\ntwo\n"
        assert part.read(final=False) is None
        file.write(b"ee\n")
        assert part.read(final=False) == Block("events.jsonl", b"three\n", 3, 1, 8, 14)


def test_reading_goes_on_at_a_position(tmp_path):
    """A partition opened at a position reads what the one that stopped there would have read."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(LINES))
    part = partition(path)
    first = part.read(100, final=True)
    again = partition(path, position=part.position)
    assert again.position == part.position
    assert drain(again, 100) == drain(part, 100)
    assert first is not None


def test_until_ends_a_range_at_its_byte(tmp_path):
    """A range is read again up to its last byte and not beyond, also without a newline there."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\nthree")
    part = partition(path)
    assert text(drain(part, final=False, until=8)) == b"one\ntwo\n"
    assert part.read(final=True, until=8) is None
    assert text(drain(part, final=False, until=13)) == b"three"


def test_a_range_that_is_not_there_any_more_is_an_error(tmp_path):
    """A file that ends before the range that was read from it is named."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\n")
    part = partition(path)
    part.read(final=True, until=20)
    with pytest.raises(InputError, match=r"events.jsonl: holds 4 bytes, but 20 were read before"):
        part.read(final=True, until=20)


def test_blank_lines_and_carriage_returns_are_kept_in_blocks(tmp_path):
    """Lines are counted as an editor counts them, whatever is in them."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\r\n\n  \ntwo\r\n")
    (block,) = drain(partition(path))
    assert (block.data, block.lines) == (b"one\r\n\n  \ntwo\r\n", 4)


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_an_empty_file_has_nothing(tmp_path, format_):
    """An empty file gives no block and no error."""
    path = tmp_path / "empty"
    path.write_bytes(b"")
    part = partition(path, format=format_)
    assert part.read(final=True) is None
    assert part.at_end


def test_a_byte_order_mark_is_skipped_once(tmp_path):
    """A UTF-8 byte order mark is no part of the first line, also if it comes in pieces."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\xef")
    part = partition(path)
    assert part.read(final=False) is None
    path.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbf1\n")
    block = part.read(final=False)
    assert block == Block("events.jsonl", b"\xef\xbb\xbf1\n", 1, 1, 3, 8)


def test_an_over_long_record_is_marked_and_passed(tmp_path):
    """A record above the limit is one block with its true length and its head; the next follows."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\n" + b"x" * 5000 + b"\ntwo\n" + b"y" * 101)
    blocks = drain(partition(path, max_record_bytes=100), 30)
    assert [(b.data, b.oversize, b.limit, b.first, b.lines) for b in blocks] == [
        (b"one\n", 0, 0, 1, 1),
        (b"x" * 101, 5000, 100, 2, 1),
        (b"two\n", 0, 0, 3, 1),
        (b"y" * 101, 101, 100, 4, 1),
    ]
    assert [(b.start, b.stop) for b in blocks] == [(0, 4), (4, 5005), (5005, 5009), (5009, 5110)]


def test_a_record_at_the_limit_is_not_too_long(tmp_path):
    """The limit counts a record without its newline, at the end of a file as well."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 100 + b"\n" + b"y" * 100)
    blocks = drain(partition(path, max_record_bytes=100))
    assert [(len(b.data), b.oversize) for b in blocks] == [(101, 0), (100, 0)]


def test_an_over_long_record_takes_bounded_memory(tmp_path):
    """Passing a line of 100 MB takes a few MB."""
    path = tmp_path / "events.jsonl"
    with path.open("wb") as file:
        file.truncate(100_000_000)
        file.seek(100_000_000)
        file.write(b"\none\n")
    part = partition(path)
    tracemalloc.start()
    block = part.read(final=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (block.oversize, len(block.data)) == (100_000_000, 1024)
    assert part.read(final=False).data == b"one\n"
    assert peak <= 8_000_000, f"peak {peak} B; limit 8 MB"


def test_an_over_long_record_that_is_still_written_is_waited_for(tmp_path):
    """Position stays at the start of an over-long record until it is whole."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 300)
    part = partition(path, max_record_bytes=100)
    assert part.read(final=False) is None
    assert part.position == Cursor(0, 1)
    with path.open("ab") as file:
        file.write(b"x" * 200 + b"\none\n")
    block = part.read(final=False)
    assert (block.oversize, block.start, block.stop) == (500, 0, 501)
    assert part.read(final=False).data == b"one\n"


# What is wrong with a file -------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    """A file that is not there is one clear line."""
    with pytest.raises(InputError, match=r"^gone.jsonl: no such file: .*gone.jsonl$"):
        partition(tmp_path / "gone.jsonl")


def test_a_folder_is_no_file(tmp_path):
    """Opening a folder as a file says so."""
    with pytest.raises(InputError, match="is a folder"):
        partition(tmp_path)


def test_a_named_pipe_is_refused_without_waiting(tmp_path):
    """Opening a pipe that nobody writes to would wait for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="no regular file; pipes are read from standard input"):
        partition(path)


def test_a_file_without_rights_is_named(tmp_path):
    """A file that may not be read is one clear line."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\n")
    with (
        without_rights(tmp_path),
        pytest.raises(InputError, match=r"^events.jsonl: cannot be read"),
    ):
        partition(path)


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
@pytest.mark.parametrize("left", [b"", b"a,b", b"a,b\n1,2\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_shorter_than_the_position_is_an_error(tmp_path, format_, left, packed):
    """A file that was truncated since is not read from anywhere else."""
    path = tmp_path / "events"
    path.write_bytes(gzip.compress(left) if packed else left)
    with pytest.raises(InputError, match=r"^events: .* 400 were read before: it was truncated"):
        partition(path, format=format_, position=Cursor(400, 9))


def test_a_file_truncated_while_it_is_followed_is_an_error(tmp_path):
    """A file that gets shorter under us stops the input."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\n")
    part = partition(path)
    drain(part, final=False)
    os.truncate(path, 4)
    with pytest.raises(InputError, match="holds 4 bytes, but 8 were read before"):
        part.read(final=False)


def test_reading_after_close_is_an_error(tmp_path):
    """A closed partition doesn't read from whatever has its descriptor now."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\n")
    part = partition(path)
    part.close()
    part.close()
    with pytest.raises(InputError, match="Bad file descriptor"):
        drain(part, final=False)


# Archives ------------------------------------------------------------------------------------


def test_an_archive_is_told_by_its_content(tmp_path):
    """An archive is read whatever its name, and a plain file named .gz is read as it is."""
    packed, plain = tmp_path / "packed.jsonl", tmp_path / "plain.jsonl.gz"
    packed.write_bytes(gzip.compress(b"".join(LINES)))
    plain.write_bytes(b"".join(LINES))
    for path in (packed, plain):
        assert text(drain(partition(path), 100)) == b"".join(LINES)


def test_positions_in_an_archive_are_uncompressed(tmp_path):
    """Reading goes on at an uncompressed byte, found by decompressing from the start."""
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(LINES)))
    part = partition(path)
    part.read(200, final=True)
    again = partition(path, position=part.position)
    assert drain(again, 100) == drain(part, 100)


def test_members_of_an_archive_follow_each_other(tmp_path):
    """Archives joined into one file, with padding between, are read as one."""
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(
        b"\0\0\0".join(gzip.compress(part) for part in (b"one\ntw", b"", b"o\nthree\n"))
    )
    assert text(drain(partition(path))) == b"one\ntwo\nthree\n"


def test_a_last_line_without_newline_in_a_whole_archive_counts(tmp_path):
    """The end of a whole archive ends its last record, if final."""
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\ntwo"))
    part = partition(path)
    assert text(drain(part, final=False)) == b"one\n"
    assert text(drain(part)) == b"two"
    assert part.at_end


def random_lines(n: int) -> bytes:
    rng = random.Random(4)
    return b"".join(b'{"x":{"a":%r}}\n' % rng.random() for _ in range(n))


def test_a_growing_archive_is_followed(tmp_path):
    """An archive that is not finished has nothing more for now, at any cut."""
    content = random_lines(3000)
    packed = gzip.compress(content[:40_000]) + gzip.compress(content[40_000:])
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(b"")
    part = partition(path)
    rng = random.Random(5)
    read, at = b"", 0
    while at < len(packed):
        step = rng.choice([1, 7, 500, 5000])
        with path.open("ab") as file:
            file.write(packed[at : at + step])
        at += step
        read += text(drain(part, rng.choice([10, 1000, 100_000]), final=False))
        assert content.startswith(read)
    assert read == content


@pytest.mark.parametrize("cut", [1, 5, 17, 20_000, -9, -1])
@pytest.mark.parametrize("max_bytes", [50, 100_000])
def test_a_cut_archive_gives_what_it_has_and_then_an_error(tmp_path, cut, max_bytes):
    """All whole lines before the cut are read, then the archive is named."""
    content = random_lines(3000)
    packed = gzip.compress(content, compresslevel=9)
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(packed[:cut])
    part = partition(path)
    read, error = b"", None
    try:
        while block := part.read(max_bytes, final=True):
            read += block.data
    except InputError as caught:
        error = str(caught)
    if cut == 1:  # a single byte is no archive
        assert read == packed[:1]
        return
    assert content.startswith(read)
    size = len(zlib.decompressobj(31).decompress(packed[:cut]))
    assert error == (
        "events.jsonl.gz: damaged gzip archive: it ends in the middle; "
        f"{size:,} bytes could be read"
    )
    assert len(read) == content.rfind(b"\n", 0, size) + 1
    with pytest.raises(InputError, match="it ends in the middle"):
        part.read(final=True)
    follow = partition(path)
    assert text(drain(follow, max_bytes, final=False)) == read


@pytest.mark.parametrize("final", [False, True])
def test_a_damaged_archive_gives_the_same_however_it_is_read(tmp_path, final):
    """What comes before the damage doesn't depend on how reads were cut."""
    content = random_lines(5000)
    packed = bytearray(gzip.compress(content))
    rng = random.Random(6)
    for _ in range(20):
        bad = bytearray(packed)
        for _ in range(rng.choice([1, 3])):
            bad[rng.randrange(10, len(bad))] ^= 1 << rng.randrange(8)
        path = tmp_path / "events.jsonl.gz"
        path.write_bytes(bad)
        seen = set()
        for max_bytes in (100, 7000, 10_000_000):
            part = partition(path, max_record_bytes=10_000_000)
            read = b""
            try:
                while block := part.read(max_bytes, final=final):
                    read += block.data
            except InputError as error:
                seen.add((read, str(error)))
            with pytest.raises(InputError, match=r"damaged gzip archive: .* bytes could be read$"):
                part.read(final=final)
            part.close()
        assert len(seen) == 1
        ((read, message),) = seen
        assert len(read) <= int(message.split("; ")[1].split()[0].replace(",", ""))


def test_damage_in_a_growing_archive_is_found_at_the_same_byte(tmp_path):
    """Damage gives the same lines, however the archive grew."""
    content = random_lines(3000)
    bad = bytearray(gzip.compress(content))
    bad[20_000:20_010] = b"\xff" * 10
    path = tmp_path / "events.jsonl.gz"
    results = set()
    for step in (3, 4096, len(bad)):
        path.write_bytes(b"")
        part = partition(path)
        read, message = b"", ""
        for at in range(0, len(bad), step):
            with path.open("ab") as file:
                file.write(bad[at : at + step])
            try:
                while block := part.read(final=False):
                    read += block.data
            except InputError as error:
                message = str(error)
                break
        results.add((read, message))
    assert len(results) == 1
    assert "damaged gzip archive" in results.pop()[1]


def test_something_else_after_an_archive_is_an_error(tmp_path):
    """What follows the last member is not silently ignored."""
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\n") + b"two\n")
    part = partition(path)
    assert part.read(final=True).data == b"one\n"
    with pytest.raises(InputError, match="something that is no archive follows its last part"):
        part.read(final=True)


def test_a_record_cut_by_damage_is_not_delivered(tmp_path):
    """The piece of a line before the damage is no record."""
    packed = gzip.compress(b"one\ntwo")
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(packed[:-4])
    part = partition(path)
    assert part.read(final=True).data == b"one\n"
    with pytest.raises(InputError, match="7 bytes could be read"):
        part.read(final=True)


# CSV -----------------------------------------------------------------------------------------


def csv_file(tmp_path: Path, content: bytes, **options) -> FilePartition:
    path = tmp_path / "events.csv"
    path.write_bytes(content)
    return partition(path, format="csv", **options)


def test_the_header_of_a_csv_file_is_no_event(tmp_path):
    """The header is read at opening, and blocks begin after it."""
    part = csv_file(tmp_path, b'\xef\xbb\xbfa,"b c", d\r\n1,2,3\r\n')
    assert part.header == ["a", "b c", "d"]
    assert part.csv_options == CsvOptions(["a", "b c", "d"], ",")
    assert part.position == Cursor(15, 2)
    assert drain(part) == [Block("events.csv", b"1,2,3\r\n", 2, 1, 15, 22)]


def test_the_header_is_read_at_a_later_position_too(tmp_path):
    """A resumed CSV file has its header, and goes on where it was."""
    part = csv_file(tmp_path, b"a,b\n1,2\n3,4\n", position=Cursor(8, 3))
    assert part.header == ["a", "b"]
    assert drain(part) == [Block("events.csv", b"3,4\n", 3, 1, 8, 12)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_told_by_the_header(tmp_path, delimiter):
    """The character that is most frequent outside quotes separates."""
    header = delimiter.join(["a", '"x,;\t,;\ty"', "b"])
    part = csv_file(tmp_path, header.encode() + b"\n")
    assert part.delimiter == delimiter
    assert part.header == ["a", "x,;\t,;\ty", "b"]


def test_a_header_may_span_lines_and_follow_blank_ones(tmp_path):
    """Lines are counted on through blank lines and quoted newlines of a header."""
    part = csv_file(tmp_path, b'\n \n"a\nb",c\n1,2\n')
    assert part.header == ["a\nb", "c"]
    assert drain(part)[0].first == 5


def test_a_header_that_is_still_written_is_waited_for(tmp_path):
    """While the header is not whole there are no names and no records."""
    part = csv_file(tmp_path, b"a,b")
    assert (part.header, part.read(final=False)) == ([], None)
    assert part.position == Cursor()
    (tmp_path / "events.csv").write_bytes(b"a,bc\n1,2\n")
    assert part.read(final=False).data == b"1,2\n"
    assert part.header == ["a", "bc"]


def test_a_header_alone_is_a_whole_file(tmp_path):
    """A CSV file may consist of a header without a newline."""
    part = csv_file(tmp_path, b"a,b")
    assert part.read(final=True) is None
    assert (part.header, part.at_end) == (["a", "b"], True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a,b,a,c,b\n", "columns that occur twice in the CSV header: 'a', 'b'"),
        (b"a, a\n", "columns that occur twice in the CSV header: 'a'"),
        (b"a,\xff\n", "CSV header is not UTF-8"),
        (b'a,"b"c\n', "CSV header cannot be read"),
        (b'a,"b' + b"c" * 2000, "no end of the CSV header within 1,000 bytes"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error(tmp_path, content, reason):
    """A bad header stops the input, and names the file."""
    with pytest.raises(InputError, match=f"events.csv: {reason}"):
        csv_file(tmp_path, content, max_record_bytes=1000)


def test_quoted_newlines_are_kept_in_one_record(tmp_path):
    """A record whose quotes span lines is never cut, and all its lines count."""
    part = csv_file(tmp_path, b'a,b\n1,"x\ny\nz"\n2,"""\n"""\n3,4\n')
    blocks = drain(part, 1)
    assert [(b.data, b.first, b.lines) for b in blocks] == [
        (b'1,"x\ny\nz"\n', 2, 3),
        (b'2,"""\n"""\n', 5, 2),
        (b"3,4\n", 7, 1),
    ]


def test_a_stray_quote_spoils_its_line_alone(tmp_path):
    """A quote that is not closed within the limit, or the file, makes one bad line."""
    rows = b"1,2\n" * 100
    part = csv_file(tmp_path, b'a,b\n1,"5\n' + rows + b'3,"\n4,4\n', max_record_bytes=100)
    blocks = drain(part, 1)
    assert blocks[0].data == b'1,"5\n'
    assert text(blocks[1:101]) == rows
    assert [b.data for b in blocks[101:]] == [b'3,"\n', b"4,4\n"]


@pytest.mark.parametrize("size", [1, 40, 10_000])
@pytest.mark.parametrize(
    ("bad", "more", "soon"),
    [
        (b'3,"abc,1\n', b'4,"next",0\n5,6,1\n', True),  # what closes it is not at an end
        (b'3,"abc,1\n', b'4,", next",0\n5,6,1\n', True),  # it would close it, in many fields
        (b'3,"abc,1\n', b'4,"def,0\n5,6,1\n', False),
        (b'3,"abc" x,"y\n', b"4,5,0\n", True),
        (b'"3,abc,1\n', b'4,"""",0\n5,6,1\n', False),
    ],
)
def test_an_unclosed_quote_costs_its_line(bad, more, soon, size, tmp_path):
    """What comes after it is read as soon as it shows that the quote cannot be meant."""
    part = csv_file(tmp_path, b"a,b,c\n1,2,0\n" + bad + more + b"7,8,1\n")
    blocks = []
    while block := part.read(size, final=False):
        blocks.append(block)
    assert not soon or text(blocks).endswith(b"7,8,1\n")
    blocks += drain(part, size)
    assert text(blocks) == b"1,2,0\n" + bad + more + b"7,8,1\n"
    decoder = CsvDecoder(["a", "b", "c"], "binary", FieldMap(label="c"))
    decoded = [decoder.decode(block) for block in blocks]
    lines = sorted(int(line) for d in decoded for line in d.batch.offsets)
    unclosed = 2 if b'"def' in more else 1
    rejected = sorted(r.origin[2] for d in decoded for r in d.rejected)
    assert rejected == [3, 4][:unclosed]
    assert lines == [2, *range(3 + unclosed, 5 + more.count(b"\n"))]


def test_a_record_of_several_lines_may_end_at_any_byte(tmp_path):
    """As it grows, it is waited for, and named as what is; nothing is taken for a stray quote."""
    record = b'1,"x ""y""\nz, ""w""\r\n""","v\r\n"\r\n'
    path = tmp_path / "events.csv"
    path.write_bytes(b"a,b,c\r\n")
    part = partition(path, format="csv")
    for i in range(len(record)):
        assert part.read(final=False) is None
        assert part.waits == (b"\n" in record[:i])
        with path.open("ab") as file:
            file.write(record[i : i + 1])
    assert part.read(final=False).data == record


def test_a_quote_in_the_middle_of_a_field_is_a_character(tmp_path):
    """Inches and feet open nothing: only a quote at the start of a field does (RFC 4180)."""
    part = csv_file(tmp_path, b'a,b\n1,5"\n2,6\n3,"x" z"\n4,7\n')
    blocks = drain(part, 1)
    assert [b.data for b in blocks] == [b'1,5"\n', b"2,6\n", b'3,"x" z"\n', b"4,7\n"]
    part = csv_file(tmp_path, b'size 5",b\n1,2\n')
    assert part.header == ['size 5"', "b"]


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_first_line_may_say_the_delimiter(tmp_path, quote):
    """As Excel writes it; the header is what follows, whatever it has more of."""
    path = tmp_path / "d.csv"
    path.write_text(f"{quote}sep=;{quote}\r\na,x;b,y\r\n1;2\r\n")
    part = FilePartition(path, "d.csv", format="csv")
    block = part.read(final=True)
    assert (part.header, part.delimiter, block.first) == (["a,x", "b,y"], ";", 3)
    part.close()
    path.write_text("sep=|\na|b\n1|2\n")
    with pytest.raises(InputError, match=r"d\.csv: its first line says that '\|' separates cells"):
        FilePartition(path, "d.csv", format="csv").read(final=True)


def sound(lines: list[str], delimiter: str) -> bool:
    """Whether lines are a record of two fields, with no more quotes than there have to be."""
    try:
        return len(next(csv.reader(lines, delimiter=delimiter, strict=True))) == 2
    except csv.Error:
        return False


def csv_starts(content: str, delimiter: str) -> list[int]:
    """Return the first line of every record, from 1, by the csv module.

    Where a quote is never closed, or what it opens is no sound record of several lines, the first
    line is a record of its own.
    """
    lines = io.StringIO(content, newline="\n").readlines()
    starts, at = [], 0
    while at < len(lines):
        starts.append(at + 1)
        reader = csv.reader([*lines[at:], "no quote in this"], delimiter=delimiter)
        next(reader)
        count = reader.line_num
        if count > 1 and (at + count > len(lines) or not sound(lines[at : at + count], delimiter)):
            count = 1
        at += count
    return starts


PIECES = [
    "a",
    "b c",
    "{d}",
    "{d}",
    '"',
    '"',
    '""',
    '{d}"',
    '"{d}',
    "\n",
    "\n",
    "\r\n",
    '"\n',
    '\n"',
]


@settings(max_examples=3000, deadline=None)
@given(
    content=st.lists(st.sampled_from(PIECES)).map("".join),
    delimiter=st.sampled_from(",;\t"),
    data=st.data(),
)
def test_records_are_those_of_the_csv_module(tmp_path_factory, content, delimiter, data):
    """Whatever the quotes: blocks are cut, and decoded, at the records of Python's csv module."""
    content = content.replace("{d}", delimiter)
    path = tmp_path_factory.getbasetemp() / "events.csv"
    path.write_text(f"a{delimiter}b\n{content}", newline="")
    part = FilePartition(path, "e", format="csv")
    blocks = drain(part, 1)
    part.close()
    starts = csv_starts(content, delimiter)
    assert [b.first - 1 for b in blocks] == starts
    part = FilePartition(path, "e", format="csv")
    numbers = []
    while block := part.read(data.draw(st.integers(1, 30)), final=True):
        decoded = CsvDecoder(["a", "b"], "binary", FieldMap(), delimiter).decode(block)
        numbers += [int(line) - 1 for line in decoded.batch.offsets]
        numbers += [r.origin[2] - 1 for r in decoded.rejected]
    part.close()
    blank = {b.first - 1 for b in blocks if not b.data.strip(b" \r\n")}
    assert set(starts) - set(numbers) <= blank
    assert set(numbers) <= set(starts)


def test_an_open_quote_waits_while_the_file_grows(tmp_path):
    """A record with an open quote may still be closed."""
    part = csv_file(tmp_path, b'a,b\n1,"x\n')
    assert part.read(final=False) is None
    with (tmp_path / "events.csv").open("ab") as file:
        file.write(b'y"\n')
    assert part.read(final=False).data == b'1,"x\ny"\n'


def test_an_over_long_csv_line_is_marked_and_passed(tmp_path):
    """An over-long line of CSV ends at its newline, whatever its quotes."""
    part = csv_file(tmp_path, b'a,b\n1,"' + b"x" * 500 + b"\n3,4\n", max_record_bytes=100)
    blocks = drain(part)
    assert [(b.oversize, b.first) for b in blocks] == [(503, 2), (0, 3)]


# Standard input ------------------------------------------------------------------------------


def test_standard_input_never_blocks():
    """An open pipe with nothing in it gives None; its end ends the last line."""
    out, into = os.pipe()
    part = StdinPartition(out, format="jsonl")
    assert part.read(final=True) is None
    os.write(into, b"one\ntw")
    assert part.read(final=True) == Block("-", b"one\n", 1, 1, 0, 4)
    assert part.read(final=True) is None
    assert not part.at_end
    os.write(into, b"o")
    os.close(into)
    assert part.read(final=False).data == b"two"
    assert part.read(final=False) is None
    assert part.at_end
    part.close()


def test_standard_input_tells_its_format():
    """Standard input has no name to go by: its first character tells."""
    for content, format_ in ((b'\n {"a":1}\n', "jsonl"), (b"a,b\n1,2\n", "csv"), (b"", "jsonl")):
        out, into = os.pipe()
        part = StdinPartition(out)
        assert part.read(final=False) is None
        os.write(into, content)
        os.close(into)
        blocks = drain(part)
        assert part.format == format_
        assert len(blocks) == bool(content)
        assert part.header == (["a", "b"] if format_ == "csv" else [])
        part.close()


def test_standard_input_may_be_a_file_or_an_archive(tmp_path):
    """A redirected file is read like a pipe, and gzip is told by its content."""
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    part = StdinPartition(os.open(path, os.O_RDONLY), format="jsonl")
    assert text(drain(part, 1)) == b"one\ntwo\n"
    assert part.at_end
    part.close()


def test_standard_input_counts_on_and_is_not_replayable():
    """Bytes and lines are counted from the given position; nothing can be read twice."""
    out, into = os.pipe()
    part = StdinPartition(out, format="jsonl", position=Cursor(100, 10))
    os.write(into, b"one\n")
    os.close(into)
    assert drain(part) == [Block("-", b"one\n", 10, 1, 100, 104)]
    assert part.position == Cursor(104, 11)
    assert not part.replayable
    assert FilePartition.replayable
    part.close()


def test_a_closed_standard_input_is_an_error():
    """A process started without standard input is told so."""
    out, into = os.pipe()
    os.close(out)
    os.close(into)
    with pytest.raises(InputError, match="standard input cannot be read: Bad file descriptor"):
        StdinPartition(out)


def test_a_bad_header_on_standard_input_stays_an_error():
    """A header that cannot be used is not skipped by reading again."""
    out, into = os.pipe()
    part = StdinPartition(out, format="csv")
    os.write(into, b"a,a\n1,2\n")
    for _ in range(2):
        with pytest.raises(InputError, match="occur twice"):
            part.read(final=False)
    os.close(into)
    part.close()


# Any cuts ------------------------------------------------------------------------------------


def records(content: bytes, limit: int, *, csv: bool) -> list[tuple[int, int, bool]]:
    """Return (start, stop, too long) of every record, from the definition, byte by byte."""
    out, at = [], 0
    while at < len(content):
        window = content[at : at + limit + 1]
        line = window.find(b"\n") + 1
        length = record_end(window, 2) if csv else line
        too_long, whole = False, len(content) - at <= limit
        if not length and csv and whole and record_end(window + b"\n", 2) == len(window) + 1:
            length = len(window)  # the end of the file ends it
        length = length or line
        if not length and whole:
            length = len(window)
        elif not length:
            length = (
                content.find(b"\n", at) + 1 - at if b"\n" in content[at:] else len(content) - at
            )
            too_long = True
        stop = at + length
        out.append((at, stop, too_long))
        at = stop
    return out


contents = st.lists(st.sampled_from([b"a", b"bcd", b",", b'"', b'"', b"\n", b"\n", b"\r\n"])).map(
    b"".join
)


def joined(blocks: list[Block], content: bytes) -> list[tuple[int, int, bool]]:
    """Check that blocks follow each other and agree with the content; return their cuts."""
    byte, line = 0, 1
    for block in blocks:
        assert (block.start, block.first) == (byte, line)
        whole = content[block.start : block.stop]
        if block.oversize:
            assert block.data == whole[: len(block.data)]
            assert block.oversize == len(whole.removesuffix(b"\n"))
        else:
            assert block.data == whole
        assert block.lines == whole.count(b"\n") + (not whole.endswith(b"\n"))
        byte, line = block.stop, line + block.lines
    return [(b.start, b.stop, bool(b.oversize)) for b in blocks]


@settings(max_examples=300, deadline=None)
@given(
    content=contents,
    limit=st.integers(3, 30),
    csv=st.booleans(),
    packed=st.booleans(),
    data=st.data(),
)
def test_records_never_depend_on_the_cuts(tmp_path_factory, *, content, limit, csv, packed, data):
    """Blocks of any size, of a growing file or a whole one, cut at the very same records."""
    head = b"a,b\n" if csv else b""
    wanted = [
        (start + len(head), stop + len(head), long)
        for start, stop, long in records(content, limit, csv=csv)
    ]
    if not csv and content.startswith(b"\xef"):
        return
    path = tmp_path_factory.mktemp("cuts") / "events"
    whole = head + content
    raw = gzip.compress(whole) if packed else whole
    sizes = st.integers(1, 40)
    ends = {stop for _, stop, _ in wanted}

    path.write_bytes(b"")
    part = FilePartition(path, "e", format="csv" if csv else "jsonl", max_record_bytes=limit)
    blocks, at = [], 0
    while at < len(raw):
        step = data.draw(st.integers(1, len(raw) - at))
        with path.open("ab") as file:
            file.write(raw[at : at + step])
        at += step
        while block := part.read(data.draw(sizes), final=False):
            blocks.append(block)
        assert part.position.offset in ends | {0, len(head)}
    while block := part.read(data.draw(sizes), final=True):
        blocks.append(block)
    assert part.at_end
    part.close()
    shifted = [
        Block(b.partition, b.data, b.first - bool(csv), b.lines, b.start - len(head),
              b.stop - len(head), b.oversize, b.limit)
        for b in blocks
    ]  # fmt: skip
    cuts = joined(shifted, content)
    assert (cuts[-1][1] if cuts else 0) == len(content)
    assert {stop + len(head) for _, stop, _ in cuts} <= ends
    assert [c for c in cuts if c[2]] == [
        (a - len(head), b - len(head), True) for a, b, long in wanted if long
    ]

    part.close()
    # Any range between two blocks is read again with other cuts: the same bytes and lines.
    if blocks:
        i = data.draw(st.integers(0, len(blocks) - 1))
        j = data.draw(st.integers(i, len(blocks) - 1))
        part = FilePartition(
            path, "e", format="csv" if csv else "jsonl", max_record_bytes=limit,
            position=Cursor(blocks[i].start, blocks[i].first),
        )  # fmt: skip
        again = []
        while block := part.read(
            data.draw(sizes), final=data.draw(st.booleans()), until=blocks[j].stop
        ):
            again.append(block)
        part.close()
        assert text(again) == text(blocks[i : j + 1])
        assert (again[0].first, again[-1].stop) == (blocks[i].first, blocks[j].stop)
        assert {b.stop for b in again} <= ends


# Finding files -------------------------------------------------------------------------------


def tree(tmp_path: Path, *names: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}\n")


def names(found) -> list[str]:
    return [name for name, _, _ in found]


def test_a_single_file_keeps_its_name(tmp_path):
    """One file is named as the config names it, and found relative to the root."""
    tree(tmp_path, "data/events.jsonl")
    assert discover("data/events.jsonl", tmp_path) == [
        ("data/events.jsonl", tmp_path / "data/events.jsonl", "jsonl")
    ]
    absolute = str(tmp_path / "data/events.jsonl")
    assert names(discover(absolute, Path("/elsewhere"))) == [absolute]


def test_a_folder_gives_its_files_in_natural_order(tmp_path):
    """Known endings count, also packed; hidden files, others and subfolders don't."""
    tree(
        tmp_path,
        "in/day10.jsonl", "in/day2.jsonl.gz", "in/day1.CSV", "in/day3.ndjson", "in/day4.json",
        "in/day5.tsv", "in/notes.txt", "in/.hidden.jsonl", "in/sub/x.jsonl", "in/day6.csv.gz",
    )  # fmt: skip
    (tmp_path / "in/folder.csv").mkdir()
    found = discover("in", tmp_path)
    assert [(name, format_) for name, _, format_ in found] == [
        ("day1.CSV", "csv"),
        ("day2.jsonl.gz", "jsonl"),
        ("day3.ndjson", "jsonl"),
        ("day4.json", "jsonl"),
        ("day5.tsv", "csv"),
        ("day6.csv.gz", "csv"),
        ("day10.jsonl", "jsonl"),
    ]
    assert all(path == tmp_path / "in" / name for name, path, _ in found)


def test_a_pattern_gives_names_relative_to_its_fixed_part(tmp_path):
    """A pattern may go through folders; names begin where it stops being fixed."""
    tree(tmp_path, "in/a10/x.jsonl", "in/a2/y.jsonl", "in/a2/deep/z.jsonl", "in/b/x.jsonl")
    assert names(discover("in/a*/*.jsonl", tmp_path)) == ["a2/y.jsonl", "a10/x.jsonl"]
    assert names(discover("in/**/*.jsonl", tmp_path)) == [
        "a2/deep/z.jsonl", "a2/y.jsonl", "a10/x.jsonl", "b/x.jsonl",
    ]  # fmt: skip


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    """What exists under the very name is meant."""
    tree(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert names(discover("a[1].jsonl", tmp_path)) == ["a[1].jsonl"]


def test_an_unknown_ending_is_told_by_content(tmp_path):
    """The first character tells JSON Lines from CSV, in an archive too."""
    (tmp_path / "a.log").write_bytes(b' \n {"x":{}}\n')
    (tmp_path / "b.log").write_bytes(gzip.compress(b"a,b\n"))
    (tmp_path / "c.log").write_bytes(b"")
    assert [format_ for _, _, format_ in discover("*.log", tmp_path)] == ["jsonl", "csv", "auto"]


def test_standard_input_is_a_dash(tmp_path):
    """A dash is standard input."""
    assert discover("-", tmp_path) == [("-", Path("-"), "auto")]


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    """A name becomes text that JSON can hold; the path still opens the file."""
    with contextlib.suppress(OSError):
        (tmp_path / os.fsdecode(b"a\xff.jsonl")).write_bytes(b"{}\n")
        ((name, path, _),) = discover("*.jsonl", tmp_path)
        assert name == "a\\xff.jsonl"
        assert text(drain(FilePartition(path, name, format="jsonl"))) == b"{}\n"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("gone.jsonl", "gone.jsonl: no such file or folder"),
        ("empty", r"empty: no file ending in .jsonl"),
        ("*.parquet", r"\*.parquet: no file matching it"),
        ("gone/*.jsonl", r"gone/\*.jsonl: no file matching it"),
    ],
)
def test_an_input_that_is_not_there_is_named(tmp_path, path, reason):
    """An input without a file is one clear line."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"^{reason}"):
        discover(path, tmp_path)


@pytest.mark.parametrize("path", ["in", "in/*.jsonl", "in/a.jsonl"])
def test_a_folder_without_rights_is_named(tmp_path, path):
    """A folder that may not be read is not an empty one."""
    tree(tmp_path, "in/a.jsonl")
    with (
        without_rights(tmp_path / "in"),
        pytest.raises(InputError, match="cannot be read: Permission"),
    ):
        discover(path, tmp_path)
