"""The answers of shards to commands that were given."""

import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from midstream.engine.registry.registry import Registry, ShardRow
from midstream.engine.shard.commands import Done, Order, main_of
from midstream.engine.shard.journal import Command
from midstream.flows.claims.liveness import Pulses

__all__ = ["SILENT", "Answer", "await_answers", "left_of", "positions_of"]

SILENT = "it did not end, and has not been heard of for a while"
"""The reason in the `Answer` of a shard whose process was killed or is frozen."""
_AGAIN = 0.05


class Answer(msgspec.Struct):
    """The answer of a shard to a command.

    Attributes
    ----------
    state
        "done"; "refused", with the `reason`; "relearning"; "waiting": no answer yet; "pending": the
        shard is not running and will carry it out at its next start.
    at
        When it took effect, in seconds since 1970 by the shard's clock; `seconds` is the wait for
        that.
    position
        By partition, the next position at that time: an offset, or the line (row) of a file.
    left
        [partition, first, last, events] that were not learned again, in the same units.
    files
        The partitions whose positions are lines.
    """

    shard: str
    state: Literal["done", "refused", "relearning", "waiting", "pending"]
    reason: str = ""
    at: float | None = None
    seconds: float | None = None
    position: dict[str, int] = {}
    seen: int | None = None
    left: list[tuple[str, int, int, int]] = []
    files: list[str] = []


def await_answers(
    registry: Registry,
    orders: Sequence[Order],
    *,
    show: Callable[[list[Answer]], None] = lambda _: None,
    timeout: float | None = None,
) -> list[Answer]:
    """Wait until every running shard has carried out or refused the last of several commands.

    Parameters
    ----------
    orders
        In the order given; the answers are to the one that is no snapshot, or to the last.
    show
        Called from time to time with the current answers.
    timeout
        Maximum seconds to wait.
    """
    chosen = main_of(orders)
    begun, pulses = time.monotonic(), Pulses(registry)
    until = None if timeout is None else begun + timeout
    took: dict[str, float] = {}
    while True:
        found = {d.shard: d for d in registry.deployments([chosen.id])}
        rows = registry.shards()
        answers = [_answer(row, found.get(row.shard), running=pulses.running(row)) for row in rows]
        for answer in answers:  # by our clock: the shard's may differ
            if answer.at is not None and answer.state == "done":
                took.setdefault(answer.shard, round(time.monotonic() - begun, 3))
                answer.seconds = took[answer.shard]
        show(answers)
        busy = any(answer.state in ("waiting", "relearning") for answer in answers)
        if not busy or (until is not None and time.monotonic() > until):
            return answers
        time.sleep(_AGAIN)


def positions_of(done: Done) -> dict[str, int]:
    """Return, by partition, the next position: an offset, or the line of a file if known.

    For a file read by an older Midstream it is the position in bytes.
    """
    return {**done.position, **done.lines}


def left_of(command: Command) -> list[tuple[str, int, int, int]]:
    """Return what was not learned again, [partition, first, last, events]: offsets, or lines."""
    lines = [*command.lines, *[None] * len(command.left)]
    return [
        (partition, *(within or (start, stop - 1)), events)
        for (partition, start, stop, events), within in zip(command.left, lines, strict=False)
    ]


def _answer(row: ShardRow, done: Done | None, *, running: bool) -> Answer:
    if done is None and running:
        return Answer(row.shard, "waiting")
    if done is None:
        return Answer(row.shard, "pending", SILENT if row.beat_at else "")
    if done.command.refused:
        return Answer(row.shard, "refused", done.command.refused, done.command.at)
    answer = Answer(
        row.shard,
        "done",
        at=done.done_at,
        position=positions_of(done),
        seen=done.seen,
        left=left_of(done.command),
        files=sorted(done.lines),
    )
    if done.done_at is None:
        answer.state = "relearning" if running else "pending"
        answer.reason = "it is learning again" if running else "it was learning again when it ended"
    return answer
