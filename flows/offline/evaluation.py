"""Evaluates a config's learner in one pass over its input, outside any run; keeps nothing."""

import time
from collections.abc import Callable

from midstream.engine.events.batch import EventBatch
from midstream.engine.learners.learner import LearnerError
from midstream.engine.shard.outcome import EventError
from midstream.engine.training.rejecting import Careful, Recent, Tried, Verdict, others, rows_of
from midstream.engine.training.trainer import Trainer
from midstream.flows.config.factory import model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.reading import open_reader
from midstream.flows.offline.delayed import Answered, Delay, DelayedTrainer, prepared
from midstream.flows.running.counters import Summary
from midstream.flows.running.definition import make_trainer
from midstream.flows.running.failures import RejectedLog, Tally, failures, log_non_finite

__all__ = ["evaluate"]


class _Judge:
    """Steps a trainer over batches as a shard does; raises if the learner fails too often."""

    def __init__(self, trainer: Trainer, settings: Settings) -> None:
        self.trainer = trainer
        self._limit = settings.model.error_limit
        self._careful: Careful | None = None
        if settings.model.on_error == "reject":
            self._careful = Careful(model_modules(settings))
        self._recent, self._tally, self._log = Recent(), Tally(), RejectedLog()

    def step(self, given: EventBatch, summary: Summary) -> None:
        """Predict, score and learn; count what was done.

        Raises
        ------
        EventError
            If the learner raises, and such events are not to be rejected.
        FailingError
            If the learner fails on too many recent events.
        """
        if self._careful is None:
            batch, refused = self.trainer.admit(given)
            try:
                step = self.trainer.step(batch)
            except LearnerError as error:
                around = others(self.trainer.learner, batch, error.row, self.trainer.seen)
                raise EventError.of(batch, error.row, error, around) from error
            events = batch if step.events is None else step.events
            tried = Tried(step, events, rows_of(events, given), {}, refused)
        else:
            tried = self._careful.step(self.trainer, given)
        errors = [EventError.of(given, row, error) for row, error in tried.raised.items()]
        odd = tried.rows[tried.step.odd].tolist() if tried.step.odd else []
        refused = tried.refused + [rejected for _, rejected in tried.step.rejected]
        found = Answered(tried.batch, tried.step, errors, list(tried.raised), odd, refused)
        self.count(found, len(given), summary)

    def count(self, found: Answered, given: int, summary: Summary) -> None:
        """Count what became of a number of events.

        Raises
        ------
        FailingError
            If the learner fails on too many recent events.
        """
        batch, step, errors, raised, odd, refused = found
        self._log.add(errors)
        self._tally.add(
            Verdict(len(errors), len(odd), len(batch) + len(errors)),
            failures(batch, errors, step.odd),
        )
        verdict = self._recent.count(given, raised, odd, self._limit)
        if verdict is not None:
            raise self._tally.error(self._recent.now(verdict, self._limit), self._limit)
        summary.count(batch, step, len(errors) + len(refused))
        summary.predictions += len(batch)

    def close(self) -> None:
        """Judge the whole pass.

        Raises
        ------
        FailingError
            If the learner failed on too large a share of all events.
        """
        self._log.close()
        if self._tally.found.share > self._limit:
            raise self._tally.error(self._tally.found, self._limit)


def evaluate(
    settings: Settings,
    *,
    delay: Delay | None = None,
    progress: Callable[[Summary], None] | None = None,
) -> tuple[Summary, Trainer]:
    """Run the same Trainer over the input once, without journal, snapshots or outputs.

    Parameters
    ----------
    delay
        How much later than its event a label comes; None: with it. Metrics then score in the order
        of the labels, those with the prefix ``by_prediction.`` in the order of the events; there is
        no digest, as no run has this state.

    Raises
    ------
    ConfigError, InputError, EventError, FailingError
        As `run` does. EventError only if `model.on_error` is not "reject".
    """
    if delay is not None:
        settings = prepared(settings, delay)
    judge = _Judge(make_trainer(settings), settings)
    later = None if delay is None else DelayedTrainer(judge.trainer, settings, delay)
    summary = Summary()
    begun = time.perf_counter()
    with open_reader(settings) as reader:
        for _, decoded in reader:
            if later is None:
                judge.step(decoded.batch, summary)
            else:
                judge.count(later.step(decoded.batch), len(decoded.batch), summary)
            summary.rejected += len(decoded.rejected)
            if progress is not None:
                progress(summary)
    if later is not None:
        judge.count(later.close(), 0, summary)
    if summary.non_finite:
        log_non_finite(summary.non_finite, of=summary.predictions)
    judge.close()
    trainer = judge.trainer
    summary.seconds = time.perf_counter() - begun
    summary.metrics = trainer.metrics
    if later is None:
        summary.digest = {"000": trainer.digest()}
    else:
        ordered = later.by_prediction.report()
        summary.metrics |= {f"by_prediction.{name}": value for name, value in ordered.items()}
    summary.seen = trainer.seen
    summary.events_per_second = summary.events / max(summary.seconds, 1e-9)
    return summary, trainer
