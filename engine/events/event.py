"""Single events, predictions, rejected input and alarms; the types of their values."""

from array import array
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "LARGEST",
    "NON_FINITE",
    "TASKS",
    "Alarm",
    "Event",
    "Feature",
    "Features",
    "FloatArray",
    "IntArray",
    "Label",
    "Origin",
    "Prediction",
    "Rejected",
    "Task",
    "floats",
    "row_path",
]

Label: TypeAlias = bool | int | float | str
Feature: TypeAlias = bool | int | float | str
Features: TypeAlias = dict[str, Feature]
Origin: TypeAlias = tuple[str, int, int]
"""(topic, partition, offset); for files (path, 0, line number)."""
Task: TypeAlias = Literal["binary", "multiclass", "regression"]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
NON_FINITE = "non_finite"
"""Kind and detector of the alarm that a prediction is not a finite number."""
EXACT_INT = 2**53
LARGEST = 1e140
"""Largest absolute value whose error can be scored: sums of squares stay below inf."""
OWN_PATHS = {"label": "$.y", "weight": "$.weight", "time": "$.ts"}


def row_path(row: int, path: str = "") -> str:
    """Return the path of a field in a message that holds many events."""
    return f"row {row}: {path}" if path else f"row {row}"


def floats(column: Sequence[Any] | FloatArray) -> FloatArray:
    """Return numbers as (n,) float64.

    Raises
    ------
    TypeError, OverflowError
        If one is no number or too large. Unlike NumPy, this accepts neither None nor text.
    """
    if isinstance(column, np.ndarray):
        return column
    return np.array(array("d", column))


class Event(msgspec.Struct, gc=False, kw_only=True):
    """One event. `y` None: no label (yet), so it is predicted but not learned."""

    x: Features
    y: Label | None = None
    id: str | None = None
    ts: float | None = None
    key: str | None = None
    weight: float = 1.0
    source: str | None = None
    group: dict[str, str] | None = None


class Prediction(msgspec.Struct, gc=False):
    """The prediction for one event, made before it was learned.

    `y_pred` is None while the learner has seen no label. `y_proba` maps each label (in output: as a
    string) to its probability; None if the learner gives none.
    """

    id: str
    model: str
    version: int
    role: str
    y_pred: Label | None
    y_proba: dict[Any, float] | None
    ts: float | None
    origin: Origin


class Rejected(msgspec.Struct, gc=False):
    """Input that was not learned: a value, not an exception. `path` is its place in the event."""

    origin: Origin
    reason: str
    path: str
    raw: str
    ts: float | None = None


class Alarm(msgspec.Struct, gc=False):
    """A detector's report that the stream changed at `position` (events learned so far).

    Kind "drift" has the mean loss as `value` and an option of the detector as `threshold`. Kind
    "non_finite" marks the first non-finite prediction, and the next one after 1,000 events without;
    `value` is how many there have been.
    """

    kind: str
    detector: str
    feature: str | None
    value: float
    threshold: float
    position: int
    ts: float | None = None
