"""Selects the predictions to publish: all, a share of them, or those without a label yet."""

import hashlib
from typing import Literal

import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import FloatArray, IntArray
from midstream.engine.events.predictions import Predictions

__all__ = ["Choice"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_U11, _U27, _U30, _U31 = map(np.uint64, (11, 27, 30, 31))


class Choice:
    """Selects by the events alone, so a resumed run selects what the killed one did.

    Parameters
    ----------
    share
        Share of the predictions, 0 < share <= 1. A hash of the event's origin decides: what is
        selected at one share is also selected at any larger one.
    only
        "unlabelled": only predictions without a label. None: all.
    """

    def __init__(self, share: float = 1.0, only: Literal["unlabelled"] | None = None) -> None:
        self._share = share
        self._only = only

    def apply(self, batch: EventBatch, made: Predictions) -> tuple[EventBatch, Predictions]:
        """Return the selected events of a batch with their predictions, in order."""
        if self._share >= 1.0 and self._only is None:
            return batch, made
        chosen = np.ones(len(batch), np.bool_)
        if self._only is not None:
            chosen = batch.without_label()
        if self._share < 1.0:
            chosen &= _uniform(batch) < self._share
        if chosen.all():
            return batch, made
        rows: IntArray = np.flatnonzero(chosen)
        return batch.take(rows.tolist()), made.take(rows)


def _uniform(batch: EventBatch) -> FloatArray:
    """Return (n,) numbers in [0, 1), each determined by the event's origin (and row).

    SplitMix64 of the offset (see `engine.replay`), seeded with a hash of the partition.
    """
    place = f"{batch.partition}\0{max(batch.index, 0)}".encode()
    seed = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little")
    u = batch.offsets.astype(np.uint64) * _GOLDEN + np.uint64(seed)
    if batch.rows is not None:
        u += batch.rows.astype(np.uint64) * _MIX2
    u = (u ^ (u >> _U30)) * _MIX1
    u = (u ^ (u >> _U27)) * _MIX2
    u ^= u >> _U31
    return (u >> _U11).astype(np.float64) * 2.0**-53
