"""Encodes outputs as JSON Lines."""

from typing import Any

import msgspec
import numpy as np

from midstream.connectors.encode.weaving import Pieces, encoded, weave
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.columns import Texts
from midstream.engine.events.event import Alarm, Label, Rejected, Task
from midstream.engine.events.predictions import Predictions

__all__ = ["encode_alarms", "encode_predictions", "encode_rejected", "encode_review"]


def _plain(value: Any) -> Any:
    """Return a NumPy scalar, which a model may return, as a Python one."""
    return value.item()


def _name(label: Any) -> str:
    """Return a label as a string, as in JSON."""
    if isinstance(label, np.generic):
        label = label.item()
    return str(label).lower() if isinstance(label, bool) else str(label)


_BINARY: dict[Label, str] = {False: "false", True: "true"}


def _named(probas: list[dict[Label, float]], task: Task) -> list[dict[str, float] | None]:
    """Return probabilities by the labels' names; None if there are none."""
    if task == "binary":  # in a fixed order, whatever the model's
        return [{name: p[k] for k, name in _BINARY.items() if k in p} or None for p in probas]
    return [
        {
            ("true" if k is True else "false" if k is False else _name(k)): v
            for k, v in proba.items()
        }
        or None
        for proba in probas
    ]


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def encode_predictions(
    batch: EventBatch,
    predictions: Predictions,
    *,
    task: Task,
    model: str,
    version: int,
    role: str,
) -> bytes:
    """Return predictions as JSON Lines, one for each event of the batch, in order.

    A non-finite number, which JSON cannot represent, becomes null. Each column is encoded by one
    call; the columns are then woven together. This takes a third less time than encoding an object
    per event.
    """
    n = len(batch)
    if n == 0:
        return b""
    text = _encoder.encode
    numbers = offsets = _column(batch.numbers.tolist())
    if batch.rows is not None:
        offsets = _column(batch.offsets.tolist())
    ids = batch.given_ids
    parts: list[bytes | Pieces]
    if batch.id_stem is not None:
        parts = [b'{"id":' + text(batch.id_stem)[:-1], numbers, b'"']
    elif isinstance(ids, Texts) and (pieces := ids.pieces) is not None:
        parts = [b'{"id":"', Pieces(*pieces), b'"']
    else:
        parts = [b'{"id":', _column(batch.ids)]
    parts.append(b',"model":%b,"version":%d,"role":%b' % (text(model), version, text(role)))
    parts += _predicted(predictions, task)
    parts += [b',"ts":', b"null" if batch.times is None else _column(batch.times)]
    parts += [b',"origin":[%b,%d,' % (text(batch.partition), max(batch.index, 0)), offsets]
    parts.append(b"]}\n")
    return weave(parts, n)


def _predicted(predictions: Predictions, task: Task) -> list[bytes | Pieces]:
    """Return the fields `y_pred` and `y_proba`."""
    text = _encoder.encode
    parts: list[bytes | Pieces] = [b',"y_pred":', _column(predictions.values), b',"y_proba":']
    table = predictions.table
    if table is not None and table.classes:
        for i, label in enumerate(table.classes):
            values = _column(table.values[:, i].tolist())
            parts += [b"%b%b:" % (b"," if i else b"{", text(_name(label))), values]
        parts.append(b"}")
    elif table is None and predictions.probas is not None:
        parts.append(_column(_named(predictions.probas, task)))
    else:
        parts.append(b"null")
    return parts


def encode_review(batch: EventBatch, predictions: Predictions, *, task: Task) -> bytes:
    """Return events that expired, with their predictions, as JSON Lines, in order."""
    parts: list[bytes | Pieces] = [b'{"id":', _column(batch.ids), b',"x":', _column(batch.dicts())]
    parts += _predicted(predictions, task)
    parts += [b',"ts":', b"null" if batch.times is None else _column(batch.times), b"}\n"]
    return weave(parts, len(batch))


def _column(values: list[Any]) -> Pieces:
    return encoded(values, _encoder)


def encode_rejected(rejected: list[Rejected]) -> bytes:
    """Return rejected input as JSON Lines, in order."""
    return _encoder.encode_lines(rejected)


def encode_alarms(alarms: list[Alarm], model: str = "", shard: str = "") -> bytes:
    """Return a shard's alarms as JSON Lines, in order. Non-finite numbers become null."""
    named = {"model": model, "shard": shard}
    return _encoder.encode_lines([named | msgspec.structs.asdict(alarm) for alarm in alarms])
