"""The result of a batch."""

import msgspec

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Alarm, FloatArray, Rejected
from midstream.engine.events.predictions import Predictions

__all__ = ["Step"]


class Step(msgspec.Struct):
    """The result of a batch: predictions and (n,) losses, in batch order, and alarms.

    `non_finite` counts the predictions that are not finite numbers. Such a prediction has no loss,
    and no label is predicted from its probabilities. `odd` holds their rows. `too_large` counts the
    labels that are too large to be scored.

    With a join (`feedback`), `events` are the events that were predicted, if they are not all of
    the batch; `joined` counts the events that were learned from labels that came later; `rejected`
    is feedback that was not joined, with the offset of the record that decided it; `review` are
    events that expired without a label, and their predictions.
    """

    predictions: Predictions
    losses: FloatArray
    alarms: list[Alarm]
    non_finite: int = 0
    too_large: int = 0
    odd: list[int] = []
    events: EventBatch | None = None
    joined: int = 0
    rejected: list[tuple[int, Rejected]] = []
    review: tuple[EventBatch, Predictions] | None = None

    @property
    def not_joined(self) -> int:
        """Number of records of feedback that were not joined."""
        return len(self.rejected)
