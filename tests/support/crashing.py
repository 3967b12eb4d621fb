"""A run in this process that dies: an exception where it would be killed."""

from midstream.connectors.files.input import FileInput
from midstream.engine.shard.journal import FileJournal

__all__ = ["Crash", "crash"]


class Crash(Exception):  # noqa: N818 it is no error of anybody's
    """The process died."""


def crash(monkeypatch, fuse, *inputs):
    """Have the process die at one of the next reads, replays or commits, before it or after it.

    `inputs` are classes besides that of files.
    """
    left = [fuse]

    def fused(method):
        def call(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                raise Crash
            result = method(*arguments, **named)
            left[0] -= 1
            if left[0] == 0:
                raise Crash
            return result

        return call

    places = [(each, name) for each in (FileInput, *inputs) for name in ("read", "replay")]
    for where, name in [*places, (FileJournal, "commit")]:
        monkeypatch.setattr(where, name, fused(getattr(where, name)))
