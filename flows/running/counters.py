"""What was counted: in one place for a run, an evaluation, a supervisor, and whoever shows it."""

import msgspec

from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.shard import Outcome
from midstream.engine.training.trainer import Step
from midstream.flows.config.settings import Settings
from midstream.flows.running.errors import FailingError

__all__ = ["Counters", "Summary", "judge_input"]

_JUDGED = 20  # events of a run that are enough to tell of its input


class Counters(msgspec.Struct):
    """What was done, counted: by a run, an evaluation, one process or several.

    A counter is a field here; whoever adds up, tells or shows counters goes by the fields.

    Attributes
    ----------
    events, learned
        Events that the model took, and those of them that had a label.
    rejected
        What of the input was not taken.
    predictions, alarms
        What was put out.
    non_finite
        Predictions that were not finite numbers; they are left out of the metrics.
    too_large
        Labels beyond ±1e140, likewise.
    """

    events: int = 0
    learned: int = 0
    rejected: int = 0
    predictions: int = 0
    alarms: int = 0
    non_finite: int = 0
    too_large: int = 0

    def add(self, other: "Counters") -> None:
        """Add what else was done."""
        for name in Counters.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def count(self, batch: EventBatch, step: Outcome | Step, rejected: int) -> None:
        """Count a batch that was applied, and how much of the input was rejected with it."""
        self.events += len(batch)
        self.learned += batch.labelled
        self.rejected += rejected
        self.alarms += len(step.alarms)
        self.non_finite += step.non_finite
        self.too_large += step.too_large


class Summary(Counters):
    """What a run did. Counts are of this run; metrics are over all that the model has seen.

    `seconds` is from the first read to the last commit and snapshot, start-up not included.
    `seen` is how many events the model has seen in all, `resumed_at` how many before this run.
    """

    seconds: float = 0.0
    events_per_second: float = 0.0
    metrics: dict[str, float] = {}
    digest: dict[str, str] = {}
    seen: int = 0
    resumed_at: int = 0

    def close(self) -> None:
        """Work out what follows from the rest, now that nothing more is counted."""
        self.events_per_second = self.events / max(self.seconds, 1e-9)
        self.resumed_at = max(self.seen - self.events, 0)

    def joined(self, other: "Summary") -> "Summary":
        """Return what two processes did, or one and the one that replaced it."""
        total = Summary(
            metrics=self.metrics | other.metrics,
            digest=self.digest | other.digest,
            seen=self.seen + other.seen,
            seconds=max(self.seconds, other.seconds),
        )
        total.add(self)
        total.add(other)
        return total


def judge_input(summary: Summary, settings: Settings) -> None:
    """Raise if more of the input was rejected than `model.error_limit` allows.

    A few events that a model is given beside what it has learned already are not judged.

    Raises
    ------
    FailingError
        At the end of the input; all of it that is sound was learned.
    """
    given, limit = summary.events + summary.rejected, settings.model.error_limit
    if summary.rejected > limit * given and (given >= _JUDGED or not summary.seen):
        raise FailingError(
            f"{summary.rejected:,} of {given:,} events of this run were rejected "
            f"(model.error_limit = {limit:g}); `midstream check` says why, and so does the "
            "output `rejected` of a run"
        )
