"""Appending in the background: nothing less is seen or made durable, and no error is lost."""

import errno
import os
import threading
from pathlib import Path

import pytest

from midstream.engine.basics import storage
from midstream.engine.basics.storage import BackgroundStorage, LocalStorage


def test_what_was_appended_is_there_before_anything_else_happens(tmp_path):
    """In order, whatever asks."""
    for ask in ("length", "read", "sync"):
        outputs = BackgroundStorage(tmp_path / ask)
        expected = b"".join(b"%d\n" % i for i in range(500))
        for i in range(500):
            outputs.append("a", b"%d\n" % i)
        getattr(outputs, ask)("a")
        assert (tmp_path / ask / "a").read_bytes() == expected
        outputs.truncate("a", 2)
        outputs.append("a", b"x")
        outputs.close()
        assert (tmp_path / ask / "a").read_bytes() == b"0\nx"


def test_an_append_that_fails_is_the_last(tmp_path, monkeypatch):
    """Its error is raised by what comes next, and by all that comes then."""
    outputs = BackgroundStorage(tmp_path)
    outputs.append("a", b"1")
    outputs.sync("a")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "write", full)
    outputs.append("a", b"2")
    with pytest.raises(OSError, match="No space"):
        outputs.sync("a")
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        outputs.append("a", b"3")
    with pytest.raises(OSError, match="No space"):
        outputs.sync("a")
    outputs.close()
    assert LocalStorage(tmp_path).read("a") == b"1"


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_files_than_descriptors(tmp_path, monkeypatch):
    """Files that were not used for long are closed, and opened again when they are needed."""
    monkeypatch.setattr(storage.resource, "getrlimit", lambda _: (40, 40))
    many = [LocalStorage(tmp_path / str(i)) for i in range(30)]
    before = _open_files()
    for text in (b"one ", b"two"):
        for one in many:
            one.append("a", text)
            one.sync("a")
    assert _open_files() - before <= 10
    assert {(tmp_path / str(i) / "a").read_bytes() for i in range(30)} == {b"one two"}
    for one in many:
        one.close()
    assert _open_files() <= before


def test_a_file_in_use_is_not_closed(tmp_path, monkeypatch):
    """Two threads write to more files than may be open; nothing is lost or goes to another file."""
    monkeypatch.setattr(storage.resource, "getrlimit", lambda _: (8, 8))
    many = [LocalStorage(tmp_path / str(i)) for i in range(40)]

    def work(part):
        for _ in range(50):
            for one in part:
                one.append("a", one.folder.name.encode() + b"\n")

    threads = [threading.Thread(target=work, args=(many[k::2],)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(40):
        assert (tmp_path / str(i) / "a").read_bytes() == f"{i}\n".encode() * 50
        many[i].close()
