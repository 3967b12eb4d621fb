"""One pass of a config's learner over its input, apart from any run: nothing is kept."""

import time
from collections.abc import Callable

from midstream.engine.events import EventBatch
from midstream.engine.learner import LearnerError
from midstream.engine.shard import EventError
from midstream.engine.trainer import Trainer
from midstream.flows.reading import open_reader
from midstream.flows.rooms import Summary, log_non_finite, log_rejected, make_trainer
from midstream.flows.settings import Settings, model_modules

__all__ = ["evaluate"]

_KEEP_EVENTS = 10_000  # what is learned again for an event that the learner raises on


class _Careful:
    """Steps a trainer over batches; an event that the learner raises on leaves no trace.

    The trainer may be half updated then. It is made anew from a state that is kept, and the events
    since are learned again, so at most `_KEEP_EVENTS` for each event that is left out.
    """

    def __init__(self, trainer: Trainer, settings: Settings) -> None:
        self.trainer = trainer
        self._modules = model_modules(settings)
        self._rejecting = settings.model.on_error == "reject"
        self._keep()

    def step(self, batch: EventBatch) -> tuple[int, int]:
        """Predict, score and learn; return how many alarms there were, and events left out.

        Raises
        ------
        EventError
            If the learner raises, and such events are not to be rejected.
        """
        alarms = left_out = 0
        while True:
            try:
                alarms += self._step(batch)
            except LearnerError as error:
                origin = batch.origins[error.row]
                event_error = EventError(origin, batch.place, "", error.cause, batch.row(error.row))
                if not self._rejecting:
                    raise event_error from error
                row = error.row
            else:
                return alarms, left_out
            log_rejected(event_error)
            left_out += 1
            self.trainer = Trainer.from_state(self._state, self._modules)
            for past in self._since:
                self.trainer.step(past)
            alarms += self._step(batch[:row])
            self._keep()
            batch = batch[row + 1 :]

    def _step(self, batch: EventBatch) -> int:
        alarms = len(self.trainer.step(batch).alarms)
        if self._rejecting:
            self._since.append(batch)
            if sum(map(len, self._since)) >= _KEEP_EVENTS:
                self._keep()
        return alarms

    def _keep(self) -> None:
        self._state = self.trainer.state() if self._rejecting else {}
        self._since: list[EventBatch] = []


def evaluate(
    settings: Settings, *, progress: Callable[[Summary], None] | None = None
) -> tuple[Summary, Trainer]:
    """Run the same Trainer over the input once, without journal, snapshots or outputs.

    Raises
    ------
    ConfigError, InputError, EventError
        As `run` does: EventError only where `model.on_error` is not "reject".
    """
    careful = _Careful(make_trainer(settings), settings)
    summary = Summary()
    begun = time.perf_counter()
    with open_reader(settings) as reader:
        for _, decoded in reader:
            batch, refused = careful.trainer.admit(decoded.batch)
            seen, learned = careful.trainer.seen, careful.trainer.learned
            prequential = careful.trainer.prequential
            non_finite, too_large = prequential.non_finite, prequential.too_large
            alarms, left_out = careful.step(batch)
            summary.events += careful.trainer.seen - seen
            summary.learned += careful.trainer.learned - learned
            summary.rejected += len(decoded.rejected) + len(refused) + left_out
            summary.predictions += careful.trainer.seen - seen
            summary.alarms += alarms
            prequential = careful.trainer.prequential
            summary.non_finite += prequential.non_finite - non_finite
            summary.too_large += prequential.too_large - too_large
            if progress is not None:
                progress(summary)
    if summary.non_finite:
        log_non_finite(summary.non_finite, of=summary.predictions)
    trainer = careful.trainer
    summary.seconds = time.perf_counter() - begun
    summary.events_per_second = summary.events / max(summary.seconds, 1e-9)
    summary.metrics = trainer.metrics
    summary.digest = {"000": trainer.digest()}
    summary.seen = trainer.seen
    return summary, trainer
