"""On what a learner fails: which events, how many of them, and what is told of it."""

import math
import operator
import time
from collections.abc import Sequence
from typing import Any

from midstream.connectors.input import NoAnswerError
from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.journal import UnavailableError
from midstream.engine.shard.shard import EventError
from midstream.engine.training.rejecting import Verdict
from midstream.flows.logs import log
from midstream.flows.running.errors import FailingError

__all__ = ["RejectedLog", "Tally", "failures", "gravity", "log_non_finite"]

_REPORT_SECONDS = 10.0
_TOLD = 20  # events that the learner raised on, of each of which the log tells within that
_SHOWN = 200  # characters of what it raised


def log_non_finite(count: int, **where: Any) -> None:
    """Tell of predictions that are not finite numbers."""
    log.warning(
        "predictions_not_finite", count=count, **where,
        note="left out of the metrics; `midstream check` tells what can be done",
    )  # fmt: skip


class RejectedLog:
    """Tells of events that the learner raised on: of each, or where they are many, how many."""

    def __init__(self) -> None:
        self._begun = -math.inf
        self._count = 0

    def add(self, errors: Sequence[EventError]) -> None:
        """Tell of events that were rejected."""
        for error in errors:
            now = time.monotonic()
            if now - self._begun >= _REPORT_SECONDS:
                self.close()
                self._begun, self._count = now, 0
            self._count += 1
            if self._count <= _TOLD:
                log.warning("event_rejected", origin=error.where, reason=error.reason)

    def close(self) -> None:
        """Tell how many there were besides."""
        if self._count > _TOLD:
            log.warning("events_rejected", more=self._count - _TOLD, seconds=_REPORT_SECONDS)
        self._count = 0


class Tally:
    """On how many events of a run a learner failed, and which were the first and the last."""

    def __init__(self) -> None:
        self.found = Verdict(0, 0, 0)
        self._first = self._last = ""

    def add(self, found: Verdict, failed: Sequence[str]) -> None:
        """Count events, of which some failed: where and how."""
        self.found = Verdict(*map(operator.add, self.found, found))
        if failed:
            self._first, self._last = self._first or failed[0], failed[-1]

    def join(self, other: "Tally") -> None:
        """Add what was counted later."""
        self.add(other.found, [other._first, other._last] if other._first else [])

    def error(self, found: Verdict, limit: float, shard: str = "") -> FailingError:
        """Return the error that says that a learner failed on so many events."""
        did = []
        if found.raised:
            did.append(f"raised on {found.raised:,}")
        if found.non_finite:
            did.append(f"predicted nan or infinity for {found.non_finite:,}")
        which = f"first: {self._first}; last: {self._last}" if self._first else "before this run"
        return FailingError(
            f"{shard}the learner {' and '.join(did)} of the last {found.events:,} events "
            f"(model.error_limit = {limit:g}); {which}; nothing more is learned until the learner "
            "or the input is mended, or the limit is raised"
        )


def gravity(failure: BaseException | None) -> int:
    """Return what counts among the failures of several shards: the gravest.

    What the learner raises on it raises on again, and an outage is waited for; a run that was shut
    out must not overlook that, or it would take over again.
    """
    if failure is None:
        return 0
    if isinstance(failure, EventError):
        return 1
    return 2 if isinstance(failure, UnavailableError | NoAnswerError) else 3


def failures(batch: EventBatch, errors: Sequence[EventError], odd: Sequence[int]) -> list[str]:
    """Return where and how a learner failed, in the order of the input.

    Parameters
    ----------
    batch
        What it learned.
    errors
        Of events that it raised on.
    odd
        The rows of the batch for which it predicted what is not finite.
    """
    if not (errors or odd):
        return []
    failed = [(e.origin[2], f"{e.where}: {e.reason[:_SHOWN]}") for e in errors]
    for row in odd:
        line, place = int(batch.offsets[row]), batch.row(row)
        where = f"{batch.place}:{line}" + (f":{place}" if place >= 0 else "")
        failed.append((line, f"{where}: nan or infinity"))
    return [text for _, text in sorted(failed, key=operator.itemgetter(0))]
