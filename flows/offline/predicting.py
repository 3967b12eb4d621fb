"""Predicts the events of a file with a version, outside any run."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from midstream.connectors.encode.outputs import encode_predictions
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Origin
from midstream.engine.events.predictions import Predictions
from midstream.engine.learners.learner import LearnerError
from midstream.engine.training.trainer import Trainer
from midstream.flows.config.factory import make_model
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.reading import open_reader
from midstream.flows.logs import log
from midstream.flows.operating.history import live_version
from midstream.flows.operating.operations import OperationError, opened

__all__ = ["predict_file"]


def predict_file(
    settings: Settings, file: str, version: int | None, shard: str | None, out: BinaryIO
) -> int:
    """Write a prediction for each event of a file; return the number of events without one.

    These are logged: they cannot be read, or the model raises on them.

    Parameters
    ----------
    file
        A path as in `input.path`, relative to the current folder; "-" is standard input.
    version
        None: the live version, as last saved.
    shard
        The shard of the model; None: the only one.

    Raises
    ------
    OperationError
        If there is no version, or it has several shards and none is named.
    UnknownVersionError, ArtifactError, RegistryError, StoreError, InputError
        If the version or the file cannot be read.
    """
    make_model(settings)  # imports its module, which loading a version needs
    with opened(settings) as registry:
        if version is None:
            version = live_version(registry)
            if version is None:
                raise OperationError(f"there is no version of {settings.name} yet")
        try:
            trainer = registry.load(version, shard)
        except ValueError as error:
            raise OperationError(str(error)) from None
    path = file if file == "-" else str(Path(file).absolute())
    rejected = odd = 0
    with open_reader(settings.reading(path), wants_labels=False) as reader:
        for _, decoded in reader:
            for each in decoded.rejected:
                _tell(each.origin, each.path, each.reason)
            rejected += len(decoded.rejected)
            for batch, predictions in _predicted(trainer, decoded.batch):
                rejected += predictions is None
                if predictions is None:
                    continue
                odd += len(predictions.not_finite(trainer.task))
                lines = encode_predictions(
                    batch,
                    predictions,
                    task=settings.model.task,
                    model=settings.name,
                    version=version,
                    role="champion",
                )
                try:
                    out.write(lines)
                    out.flush()
                except OSError as error:
                    name = getattr(out, "name", None)
                    where = name if isinstance(name, str) else "standard output"
                    raise OperationError(
                        f"{where} cannot be written to: {error.strerror}"
                    ) from None
    if odd:
        log.warning("predictions_not_finite", count=odd)
    return rejected


def _predicted(
    trainer: Trainer, batch: EventBatch
) -> Iterator[tuple[EventBatch, Predictions | None]]:
    """Yield a batch with its predictions; split it if the model raises on an event.

    That event is logged, and yielded alone, with None.
    """
    try:
        predictions = trainer.predict(batch)
    except Exception as error:  # noqa: BLE001 whatever a user's model raises
        if len(batch) > 1:
            middle = len(batch) // 2
            yield from _predicted(trainer, batch[:middle])
            yield from _predicted(trainer, batch[middle:])
            return
        cause = error.cause if isinstance(error, LearnerError) else error
        reason = f"the learner raised {type(cause).__name__}: {cause}"
        _tell(batch.origins[0], batch.path(0), reason, id=batch.ids[0])
        yield batch, None
    else:
        yield batch, predictions


def _tell(origin: Origin, path: str, reason: str, **fields: str) -> None:
    log.warning("rejected", origin=f"{origin[0]}:{origin[2]}", path=path, reason=reason, **fields)
