"""SQLite for who may only read: what is seen is whole and of now, and nothing is written."""

import io
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from midstream.engine.basics import read_only
from midstream.engine.basics.read_only import error_text, open_for_reading, unwritable
from midstream.engine.registry import database as db
from midstream.engine.registry.database import Database, RegistryError
from midstream.engine.registry.schema import MODELS

WRITER = """
import sqlite3, sys
from contextlib import closing
from pathlib import Path
file, rounds, checkpoint = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for i in range(rounds):
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA wal_autocheckpoint={checkpoint}")
        for j in range(3):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE one SET n = n + 1")
            connection.execute("UPDATE two SET n = n + 1")
            connection.execute("INSERT INTO more VALUES (zeroblob(20000))")
            connection.execute("COMMIT")
print("done")
"""


def made(folder):
    """Make a database in WAL mode, with two numbers that change together, pages apart."""
    file = folder / "registry.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE one (n)")
        connection.execute("CREATE TABLE more (data)")
        connection.execute("CREATE TABLE two (n)")
        connection.execute("INSERT INTO one VALUES (0)")
        connection.execute("INSERT INTO two VALUES (0)")
    return file


def numbers(file):
    with closing(open_for_reading(file)) as connection:
        found: tuple[int, int] = connection.execute("SELECT one.n, two.n FROM one, two").fetchone()
    return found


def look(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed(file):
    """Commit once more, to the log only, and end as if killed: log and memory stay."""
    program = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('UPDATE one SET n = 7'); c.execute('UPDATE two SET n = 7')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, file], check=True)
    assert file.with_name("registry.db-wal").stat().st_size > 0


def test_a_database_that_nobody_has_open_is_read_without_a_trace(tmp_path):
    """Nothing is made beside it, though it is in WAL mode."""
    file = made(tmp_path)
    before = look(tmp_path)
    assert set(before) == {"registry.db"}
    assert numbers(file) == (0, 0)
    assert look(tmp_path) == before


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_kill_left_in_the_log_is_read(gone, tmp_path):
    """Also where the memory beside it is gone, as in a copy of the files."""
    file = made(tmp_path)
    killed(file)
    if gone:
        file.with_name("registry.db-shm").unlink()
    before = look(tmp_path)
    assert numbers(file) == (7, 7)
    assert look(tmp_path) == before


def test_what_a_writer_commits_is_seen_by_the_next_reader(tmp_path):
    """A reader is never shown what was; one that has begun sees one moment."""
    file = made(tmp_path)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        for n in range(1, 4):
            writer.execute("UPDATE one SET n = ?", (n,))
            writer.execute("UPDATE two SET n = ?", (n,))
            assert numbers(file) == (n, n)
    assert numbers(file) == (3, 3)


@pytest.mark.parametrize("checkpoint", [1, 1_000])
def test_readers_beside_a_writer_that_comes_and_goes_see_whole_commits(checkpoint, tmp_path):
    """Log and memory appear and go with each of 100 openings; no reader sees half a commit."""
    file = made(tmp_path)
    command = [sys.executable, "-c", WRITER, file, "100", str(checkpoint)]
    seen = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        while writer.poll() is None:
            seen.append(numbers(file))
    assert writer.returncode == 0
    seen.append(numbers(file))
    assert all(one == two for one, two in seen), seen
    assert seen == sorted(seen), "never older than before"
    assert seen[-1] == (300, 300)


class Interrupted(io.FileIO):
    """A file of which, once half of it is read, somebody else changes the other half."""

    times = 0

    def read(self, *arguments):
        if arguments:
            return super().read(*arguments)
        half = super().read(os.fstat(self.fileno()).st_size // 2)
        if not Interrupted.times:
            Interrupted.times = 1
            command = [sys.executable, "-c", WRITER, self.name, "1", "1"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return half + super().read()


def test_who_writes_while_a_database_is_read_into_memory_is_noticed(tmp_path, monkeypatch):
    """Though it has come, written to the file itself and gone before the other half is read."""
    file = made(tmp_path)
    monkeypatch.setattr(Interrupted, "times", 0)
    monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(str(path), mode))
    assert numbers(file) == (3, 3)
    assert Interrupted.times == 1


def test_a_change_that_is_half_done_is_not_read(tmp_path, monkeypatch):
    """A journal of a rollback beside the file: what the file holds may be no commit at all."""
    monkeypatch.setattr(read_only, "_SECONDS", 0.1)
    file = made(tmp_path)
    (tmp_path / "registry.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        open_for_reading(file)


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path, monkeypatch):
    """Text, nothing, and half a file are one line each."""
    monkeypatch.setattr(db, "database_unwritable", lambda file: f"{file}: no right to write")
    whole = made(tmp_path).read_bytes()
    for data in (b"no database " * 100, b"", whole[:50], whole[: len(whole) // 2]):
        file = tmp_path / "other.db"
        file.write_bytes(data)
        with pytest.raises(RegistryError, match=r"other\.db: (is damaged|holds no registry)"):
            Database(file, "m")


def test_a_registry_that_may_only_be_read_shows_what_is_there_now(tmp_path, monkeypatch):
    """What others register is seen by who has it open; writing is refused, with the file's name."""
    file = tmp_path / "registry.db"
    owner = Database(file, "m", create=True)
    owner.close()
    monkeypatch.setattr(db, "database_unwritable", lambda file: f"{file}: no right to write")
    reader = Database(file, "m")
    assert [row["model"] for row in reader.rows(MODELS.select())] == ["m"]
    monkeypatch.undo()
    Database(file, "other", create=True).close()
    assert [row["model"] for row in reader.rows(MODELS.select())] == ["m", "other"]
    with pytest.raises(RegistryError, match=r"registry\.db: no right to write"):
        reader.require_writing()
    with (
        pytest.raises(RegistryError, match=r"registry\.db: no right to write"),
        reader.writing(),
    ):
        pass
    reader.close()
    assert set(look(tmp_path)) == {"registry.db"}


def test_rights_are_told_in_words(tmp_path):
    """What can be written to is not complained of; else the file is named."""
    assert unwritable(tmp_path / "not" / "there") == ""
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        why = unwritable(tmp_path) if not root else unwritable(Path("/"))
    finally:
        if root:
            os.seteuid(0)
    assert why == f"{'/' if root else tmp_path}: no right to write"
    gone = FileNotFoundError(2, "No such file or directory", str(tmp_path / "x"))
    assert error_text(gone) == f"{tmp_path / 'x'}: No such file or directory"
    assert error_text(OSError("odd")) == "odd"
