"""Appending in the background: nothing less is seen or made durable, and no error is lost."""

import errno
import os

import pytest

from midstream.engine import storage
from midstream.engine.storage import BackgroundStorage, LocalStorage


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
