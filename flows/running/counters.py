"""The counters shared by runs, evaluations, supervisors and displays."""

import math
import re
from collections.abc import Mapping

import msgspec

from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.outcome import Outcome
from midstream.engine.training.step import Step
from midstream.flows.config.settings import Settings
from midstream.flows.running.errors import FailingError

__all__ = ["Counters", "Summary", "feedback_counts", "judge_input"]

_OF_FEEDBACK = re.compile(r"(?:\d+\.)?feedback\.(.+)")  # with several shards, behind their number
_JUDGED = 20  # events after which a run's input can be judged


class Counters(msgspec.Struct):
    """Counts of what a run, an evaluation, or one or several processes did.

    Each field is a counter; code that sums, reports or shows counters iterates over the fields.

    Attributes
    ----------
    events, learned
        Events that the model processed, and those of them with a label.
    rejected
        Records that were not accepted.
    not_joined
        Those of them that are feedback without an event that waits for it.
    predictions, alarms
        Outputs written.
    non_finite
        Predictions that were not finite numbers; metrics exclude them.
    too_large
        Labels beyond ±1e140; metrics exclude them.
    """

    events: int = 0
    learned: int = 0
    rejected: int = 0
    not_joined: int = 0
    predictions: int = 0
    alarms: int = 0
    non_finite: int = 0
    too_large: int = 0

    def add(self, other: "Counters") -> None:
        """Add other counts."""
        for name in Counters.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def count(self, batch: EventBatch, step: Outcome | Step, rejected: int) -> None:
        """Count an applied batch, and the records rejected with it."""
        self.events += len(batch)
        self.learned += batch.labelled + step.joined
        self.rejected += rejected
        self.not_joined += step.not_joined
        self.alarms += len(step.alarms)
        self.non_finite += step.non_finite
        self.too_large += step.too_large


class Summary(Counters):
    """Results of a run. Counts cover this run; metrics cover all events of the model.

    `seconds` is the time from the first read to the last commit and snapshot, without start-up.
    `seen` is the number of events that the model has seen in all, `resumed_at` their number before
    this run.
    """

    seconds: float = 0.0
    events_per_second: float = 0.0
    metrics: dict[str, float] = {}
    digest: dict[str, str] = {}
    seen: int = 0
    resumed_at: int = 0

    def close(self) -> None:
        """Compute the derived fields, after the last count."""
        self.events_per_second = self.events / max(self.seconds, 1e-9)
        self.resumed_at = max(self.seen - self.events, 0)

    def joined(self, other: "Summary") -> "Summary":
        """Return the results of two processes, or of one and its replacement, combined."""
        total = Summary(
            metrics=self.metrics | other.metrics,
            digest=self.digest | other.digest,
            seen=self.seen + other.seen,
            seconds=max(self.seconds, other.seconds),
        )
        total.add(self)
        total.add(other)
        return total


def feedback_counts(metrics: Mapping[str, float]) -> dict[str, int | float]:
    """Return what became of events and of feedback, over all shards; empty without a join.

    Counts add up, and `coverage` follows from them. A quantile of the delay is that of the shard
    where it is longest. Shares and seconds are rounded, to be shown.
    """
    found: dict[str, int | float] = {}
    for name, value in metrics.items():
        if (match := _OF_FEEDBACK.fullmatch(name)) is None:
            continue
        key = match[1]
        if key == "coverage" or key.startswith("delay."):
            found[key] = max(found.get(key, math.nan), round(value, 4), key=_or_least)
        else:
            found[key] = found.get(key, 0) + int(value)
    if found:
        ended = found["joined"] + found["expired"] + found["evicted"]
        found["coverage"] = round(found["joined"] / ended, 4) if ended else math.nan
    return found


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def judge_input(summary: Summary, settings: Settings) -> None:
    """Raise if more of the input was rejected than `model.error_limit` allows.

    A few new events for a model that has learned before are not judged.

    Raises
    ------
    FailingError
        At the end of the input, after all valid records were learned.
    """
    rejected = summary.rejected - summary.not_joined
    given, limit = summary.events + rejected, settings.model.error_limit
    if rejected > limit * given and (given >= _JUDGED or not summary.seen):
        raise FailingError(
            f"{rejected:,} of {given:,} events of this run were rejected "
            f"(model.error_limit = {limit:g}); `midstream check` says why, and so does the "
            "output `rejected` of a run"
        )
