"""Input that there is no right to read: named as such, at the start, in a resume and later."""

import gzip
import json
import os
from contextlib import contextmanager

import pyarrow as pa
import pytest
from pyarrow import parquet

import midstream.connectors.files.arrow_files  # noqa: F401 while it can be read
from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.files.input import FileInput
from midstream.connectors.input import InputError

ENDINGS = ("jsonl", "csv", "jsonl.gz", "arrow", "parquet")


def write(path, rows=200):
    """Write a file of any of the kinds."""
    table = pa.table({"a": [float(i) for i in range(rows)], "y": [i % 2 for i in range(rows)]})
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".csv":
        path.write_text("a,y\n" + "".join(f"{r['a']},{r['y']}\n" for r in table.to_pylist()))
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        path.write_text(lines)
    return path


@contextmanager
def closed(path):
    """Take the right to read from everybody, and be somebody whom that holds for."""
    mode = path.stat().st_mode
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)


@pytest.fixture
def folder(tmp_path):
    """A folder that others may go into."""
    made = tmp_path / "in"
    made.mkdir()
    for above in (made, *made.parents):
        if above.owner() == made.owner() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    return made


def opened(path, folder, **options):
    return FileInput(path, folder, decoding=Decoding("binary", FieldMap(label="y")), **options)


def drain(files, size=1_000):
    works = []
    while (work := files.read(size)) is not None:
        works.append(work)
    return works


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("path", [".", "*", "**/*", "e.{}"])
def test_a_file_without_rights_is_told_at_the_start(path, ending, folder):
    """A file that cannot be read says so, with its name, whatever it is and was found by."""
    file = write(folder / f"e.{ending}")
    with closed(file), pytest.raises(InputError, match=rf"^e\.{ending}: cannot be read: Perm"):
        opened(path.format(ending), folder, until_eof=True).read(1_000)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("until_eof", [False, True])
def test_a_file_without_rights_is_told_in_a_resume(until_eof, ending, folder):
    """What was read of it before is no reason to take it for another file."""
    file = write(folder / f"e.{ending}")
    name = file.name
    works = drain(opened(name, folder, until_eof=True), 100)
    assert len(works) > 1
    span = works[0].span
    files = opened(name, folder, until_eof=until_eof)
    with closed(file), pytest.raises(InputError, match=rf"^e\.{ending}: cannot be read: Perm"):  # noqa: PT012
        files.seek({name: span.at_stop()})
        files.read(1_000)
    with closed(file), pytest.raises(InputError, match=rf"^e\.{ending}: cannot be read: Perm"):
        opened(name, folder, until_eof=until_eof).replay(span, 1_000)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_new_file_without_rights_is_told_while_files_are_followed(ending, folder):
    """It is not left out, and what is there before it is read."""
    write(folder / "a.jsonl")
    files = opened("*", folder)
    assert drain(files)
    file = write(folder / f"b.{ending}")
    with closed(file):
        assert files.rescan() == [file.name]
        with pytest.raises(InputError, match=rf"^b\.{ending}: cannot be read: Permission"):
            files.read(1_000)
    assert drain(files), "once it can be read, it is"


@pytest.mark.parametrize("path", [".", "*.jsonl", "**/*.jsonl", "*/e.jsonl"])
def test_a_folder_without_rights_is_told(path, folder):
    """A folder that cannot be looked into is none without files, at the start and later."""
    inner = folder
    if path in ("**/*.jsonl", "*/e.jsonl"):
        inner = folder / "inner"
        inner.mkdir()
        write(folder / "a.jsonl")
    write(inner / "e.jsonl")
    with closed(inner), pytest.raises(InputError, match="cannot be read: Permission denied"):
        opened(path, folder)
    files = opened(path, folder)
    assert drain(files)
    with closed(inner), pytest.raises(InputError, match="cannot be read: Permission denied"):
        files.rescan()
    files.rescan()
    assert drain(files) == [], "nothing is read twice once it can be read again"
