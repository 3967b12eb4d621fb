"""Predictions of a batch, as columns."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from midstream.engine.events.event import LARGEST, FloatArray, IntArray, Label, Task

__all__ = ["Predictions", "Table", "odd_probas"]


class Table(NamedTuple):
    """Probabilities as columns: (n, k) float64 `values`, a row per event, a column per class."""

    classes: tuple[Label, ...]
    values: FloatArray


def odd_probas(probas: Sequence[Mapping[Any, float] | None] | Table | None) -> set[int]:
    """Return the rows with a probability that is not a finite number."""
    # One pass over all usually suffices: finite probabilities do not sum to inf.
    if probas is None:
        return set()
    if not isinstance(probas, Table):
        if math.isfinite(sum(chain.from_iterable([row.values() for row in probas if row]))):
            return set()
        pairs = enumerate(probas)
        return {i for i, row in pairs if row and not all(map(math.isfinite, row.values()))}
    with np.errstate(invalid="ignore"):
        total = probas.values.sum()
    if math.isfinite(total):
        return set()
    return set(np.flatnonzero(~np.isfinite(probas.values).all(axis=1)).tolist())


def _within(number: float, most: float) -> bool:
    return math.isfinite(number) and abs(number) <= most


class Predictions:
    """The predictions for a batch, in its order, before they are formatted for an output.

    Parameters
    ----------
    values
        A label (or a number, for regression) per event, None for no prediction. Or an (n,) array
        of bool or float64, if every event has one.
    probas
        A mapping from label to probability per event, or a `Table` of them; None: there are none.
    """

    __slots__ = ("_probas", "_values", "array", "table")

    def __init__(
        self,
        values: list[Label | None] | npt.NDArray[np.bool_] | FloatArray,
        probas: list[dict[Label, float]] | Table | None = None,
    ) -> None:
        self.array = values if isinstance(values, np.ndarray) else None
        self._values = None if isinstance(values, np.ndarray) else values
        self.table = probas if isinstance(probas, Table) else None
        self._probas = None if isinstance(probas, Table) else probas

    def __len__(self) -> int:
        return len(self.values if self.array is None else self.array)

    @property
    def values(self) -> list[Label | None]:
        """One label or number per event, None for no prediction."""
        if self._values is None:
            assert self.array is not None
            self._values = self.array.tolist()
        return self._values

    @property
    def probas(self) -> list[dict[Label, float]] | None:
        """One mapping from label to probability per event; None: there are none."""
        if self._probas is None and self.table is not None:
            classes, rows = self.table.classes, self.table.values.tolist()
            self._probas = [dict(zip(classes, row, strict=True)) for row in rows]
        return self._probas

    @property
    def scores(self) -> Table | list[dict[Label, float]] | None:
        """The probabilities in the form that they have: a table if there is one."""
        return self._probas if self.table is None else self.table

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Return the predictions of one or more batches as those of one."""
        if len(parts) == 1:
            return parts[0]
        arrays: list[Any] = [part.array for part in parts]
        values: Any
        if any(array is None for array in arrays) or len({array.dtype for array in arrays}) > 1:
            values = [value for part in parts for value in part.values]
        else:
            values = np.concatenate(arrays)
        tables = [part.table for part in parts]
        first = tables[0]
        if first is not None and all(t is not None and t.classes == first.classes for t in tables):
            return cls(
                values, Table(first.classes, np.concatenate([t.values for t in tables if t]))
            )
        if all(part.probas is None for part in parts):
            return cls(values)
        return cls(values, [row for part in parts for row in (part.probas or [{}] * len(part))])

    def not_finite(self, task: Task) -> IntArray:
        """Return the rows, in order, whose number or one of whose probabilities is not finite.

        For regression a number beyond `LARGEST` counts as infinite. None is no prediction, and does
        not count.
        """
        most = LARGEST if task == "regression" else math.inf
        found = odd_probas(self.scores)
        if self.array is None:
            pairs = enumerate(self.values)
            found.update(i for i, v in pairs if isinstance(v, float) and not _within(v, most))
        elif self.array.dtype.kind == "f":
            fits = np.isfinite(self.array) & (np.abs(self.array) <= most)
            found.update(np.flatnonzero(~fits).tolist())
        return np.array(sorted(found), np.int64)

    def without(self, rows: IntArray) -> "Predictions":
        """Return a copy without values at `rows`; probabilities are kept."""
        values = list(self.values)
        for i in rows.tolist():
            values[i] = None
        return Predictions(values, self.scores)

    def take(self, rows: IntArray) -> "Predictions":
        """Return the predictions at `rows`, in that order."""
        values: Any = self.array
        probas: Any = self.table
        index = rows.tolist()
        values = [self.values[i] for i in index] if values is None else values[rows]
        if self.table is not None:
            probas = Table(self.table.classes, self.table.values[rows])
        elif self._probas is not None:
            probas = [self._probas[i] for i in index]
        return Predictions(values, probas)
