"""The outcome of a batch that a shard applies: results for the outputs, or a learner's error."""

import msgspec

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Alarm, Origin, Rejected, row_path
from midstream.engine.events.predictions import Predictions
from midstream.engine.learners.learner import LearnerError
from midstream.engine.shard.journal import Range
from midstream.engine.state.snapshot import Snapshot
from midstream.engine.training.rejecting import Verdict

__all__ = ["EventError", "Outcome"]

_MOST = 0.5  # leaving events out does not help a learner that raises on a larger share
_REASON = 1_000  # most characters of a learner's error, which may hold the whole event


class EventError(ExpectedError, RuntimeError):
    """The learner raised on one event, whose origin this names.

    `place` is the journal's name of its partition. `row` is its place in a message that holds many
    events, else -1. `where` combines them. `reason` is the learner's error on one line that can be
    written as UTF-8, shortened if very long, whatever the cause contains. `others` counts the
    failures among the events around it that were tried.
    """

    def __init__(
        self,
        origin: Origin,
        place: str,
        features: str,
        cause: Exception,
        row: int = -1,
        hint: str = "",
        others: Verdict | None = None,
    ) -> None:
        self.where = f"{place}:{origin[2]}" + (f":{row}" if row >= 0 else "")
        what = f"{type(cause).__name__}: {cause}" + (f"; {hint}" if hint else "")
        what = " ".join(what.splitlines())
        self.reason = what[:_REASON].encode(errors="backslashreplace").decode()
        super().__init__(f"the learner raised on {self.where}: {self.reason}{_advice(others)}")
        self.origin = origin
        self.row = row
        self.place = place
        self.features = features
        self.cause = cause

    @classmethod
    def of(
        cls, batch: EventBatch, row: int, error: LearnerError, others: Verdict | None = None
    ) -> "EventError":
        """Make the error for the event at a row of a batch."""
        features = msgspec.json.encode(batch.event(row).x).decode()[:1024]
        return cls(
            batch.origins[row],
            batch.place,
            features,
            error.cause,
            batch.row(row),
            error.hint,
            others,
        )

    @property
    def rejected(self) -> Rejected:
        """The event as it is written to `rejected`."""
        path = row_path(self.row) if self.row >= 0 else ""
        return Rejected(self.origin, f"the learner raised {self.reason}", path, self.features)


def _advice(others: Verdict | None) -> str:
    """Return advice to add to an error's reason, if the event is an unusual one."""
    if others is None or not others.events:
        return ""
    if others.share > _MOST:
        return f"; so it did on {others.raised:,} of {others.events:,} events tried after it"
    return '; model.on_error = "reject" goes on without such events'


class Outcome(msgspec.Struct):
    """The result of applying one batch, on its way to the outputs.

    `live` is False while the journal is replayed: nothing must be written then, and `rejected` was
    written already. `snapshot` holds the state after this batch if a snapshot is due.
    `non_finite` and `too_large` are those of `Step`.
    """

    span: Range
    batch: EventBatch
    predictions: Predictions
    rejected: list[Rejected]
    alarms: list[Alarm]
    live: bool
    snapshot: Snapshot | None = None
    non_finite: int = 0
    too_large: int = 0
    raised: list[EventError] = []
    """Errors of the events in `rejected` that the learner raised on."""
    odd: list[int] = []
    """The rows of `batch` with a non-finite prediction."""
    joined: int = 0
    """Events that were learned from labels that came later."""
    not_joined: int = 0
    """Records of `rejected` that are feedback which was not joined."""
    review: tuple[EventBatch, Predictions] | None = None
    """Events that expired without a label, for review."""
    found: Verdict = Verdict(0, 0, 0)
    """Failures of the learner on the events it got; events left out count as failures."""
    verdict: Verdict | None = None
    """The verdict over recent events, if the learner failed on more than `error_limit` allows."""
