"""Records the events on which a learner fails, counts them and logs them."""

import math
import operator
import time
from collections.abc import Sequence
from typing import Any

from midstream.connectors.input import NoAnswerError
from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.journal import UnavailableError
from midstream.engine.shard.outcome import EventError
from midstream.engine.training.rejecting import Verdict
from midstream.flows.logs import log
from midstream.flows.running.errors import FailingError

__all__ = ["RejectedLog", "Tally", "failures", "gravity", "log_non_finite"]

_REPORT_SECONDS = 10.0
_TOLD = 20  # rejected events logged one by one per interval
_SHOWN = 200  # characters of the learner's error


def log_non_finite(count: int, **where: Any) -> None:
    """Log predictions that are not finite numbers."""
    log.warning(
        "predictions_not_finite", count=count, **where,
        note="left out of the metrics; `midstream check` tells what can be done",
    )  # fmt: skip


class RejectedLog:
    """Logs each event on which the learner raised; if there are many, their number."""

    def __init__(self) -> None:
        self._begun = -math.inf
        self._count = 0

    def add(self, errors: Sequence[EventError]) -> None:
        """Log rejected events."""
        for error in errors:
            now = time.monotonic()
            if now - self._begun >= _REPORT_SECONDS:
                self.close()
                self._begun, self._count = now, 0
            self._count += 1
            if self._count <= _TOLD:
                log.warning("event_rejected", origin=error.where, reason=error.reason)

    def close(self) -> None:
        """Log the number of the others."""
        if self._count > _TOLD:
            log.warning("events_rejected", more=self._count - _TOLD, seconds=_REPORT_SECONDS)
        self._count = 0


class Tally:
    """Counts the events on which a learner failed; keeps the first and the last."""

    def __init__(self) -> None:
        self.found = Verdict(0, 0, 0)
        self._first = self._last = ""

    def add(self, found: Verdict, failed: Sequence[str]) -> None:
        """Count events and failures; `failed` gives where and how."""
        self.found = Verdict(*map(operator.add, self.found, found))
        if failed:
            self._first, self._last = self._first or failed[0], failed[-1]

    def join(self, other: "Tally") -> None:
        """Add later counts."""
        self.add(other.found, [other._first, other._last] if other._first else [])

    def error(self, found: Verdict, limit: float, shard: str = "") -> FailingError:
        """Return the error for a learner that failed on these events."""
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
    """Return a rank: of several shards' failures, the highest is reported.

    An event on which the learner raises recurs, and an outage is waited for. Being fenced off ranks
    higher, or the run would take over again.
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
        The batch that it learned.
    errors
        Events on which it raised.
    odd
        Rows of the batch with a prediction that is not finite.
    """
    if not (errors or odd):
        return []
    failed = [(e.origin[2], f"{e.where}: {e.reason[:_SHOWN]}") for e in errors]
    for row in odd:
        line, place = int(batch.offsets[row]), batch.row(row)
        where = f"{batch.place}:{line}" + (f":{place}" if place >= 0 else "")
        failed.append((line, f"{where}: nan or infinity"))
    return [text for _, text in sorted(failed, key=operator.itemgetter(0))]
