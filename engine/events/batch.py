"""Batches of events, the unit of data in the engine.

An `EventBatch` holds columns; it makes objects of single events only where a learner needs them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from midstream.engine.events.columns import FeatureColumns, TextColumn
from midstream.engine.events.event import (
    EXACT_INT,
    OWN_PATHS,
    Event,
    Features,
    FloatArray,
    IntArray,
    Label,
    Origin,
    row_path,
)

__all__ = ["EventBatch", "Targets"]


class Targets(NamedTuple):
    """Labels as a column: (n,) float64 `values`, NaN for none.

    `binary`: they are 0.0 and 1.0, for False and True; else they are the numbers themselves.
    """

    values: FloatArray
    binary: bool


class EventBatch:
    """An ordered batch of events from one input partition, as columns.

    Parameters
    ----------
    x
        One feature dict per event. Or None, if `array` and `names` are given.
    labels
        One label per event, None for an event without one; or `Targets`.
    offsets
        (n,) int64, the events' positions in their partition. Default: 0, 1, 2, …
    rows
        (n,) int64, the events' places in one message that holds them all and gives them one offset;
        None: each position holds one event.
    partition, index
        The input partition: topic or file, and the partition's number in it.
    ids
        Ids, None for an event without one: its id is then made from its origin on demand.
    times
        Event times in seconds, None if unknown (in an array: NaN).
    weights
        Sample weights, as a list or (n,) float64; None: all 1.
    sources, groups, keys
        Who sent the event, its groups for bias metrics, its entity; None: not given at all.
    array, names
        (n, d) float64 features and their d names; NaN is a missing value.
    texts
        Beside an array: columns of n strings by name; None is a missing value.
    sound
        Whether every value already obeys the rules (`engine.events.rules`), as from a decoder;
        otherwise the `Trainer` checks them.
    paths
        Where in an event "label", "weight" and "time" are, for messages; None: as in our own
        format.

    Attributes
    ----------
    is_feedback
        Whether these are no events, but labels for events that were predicted before, by id.
    """

    __slots__ = (
        "_array",
        "_dicts",
        "_ids",
        "_labels",
        "_names",
        "_paths",
        "_seconds",
        "_texts",
        "_times",
        "groups",
        "index",
        "is_feedback",
        "keys",
        "offsets",
        "partition",
        "rows",
        "sound",
        "sources",
        "targets",
        "weights",
    )

    def __init__(
        self,
        x: list[Features] | None,
        labels: list[Label | None] | Targets,
        *,
        offsets: IntArray | None = None,
        rows: IntArray | None = None,
        partition: str = "memory",
        index: int = 0,
        ids: list[str | None] | TextColumn | None = None,
        times: list[float | None] | FloatArray | None = None,
        weights: list[float] | FloatArray | None = None,
        sources: list[str | None] | TextColumn | None = None,
        groups: list[dict[str, str] | None] | None = None,
        keys: list[str | None] | TextColumn | None = None,
        array: FloatArray | None = None,
        names: Sequence[str] | None = None,
        texts: Mapping[str, list[str | None] | TextColumn] | None = None,
        sound: bool = False,
        paths: Mapping[str, str] | None = None,
    ) -> None:
        if (x is None) == (array is None) or (array is None) != (names is None):
            raise ValueError("a batch has either dicts, or an array with the names of its columns")
        self.targets = labels if isinstance(labels, Targets) else None
        self._labels = None if isinstance(labels, Targets) else labels
        n = len(labels.values) if isinstance(labels, Targets) else len(labels)
        columns: dict[str, Any] = {
            "x": x, "array": array, "offsets": offsets, "rows": rows, "ids": ids,
            "times": times, "weights": weights, "sources": sources, "groups": groups, "keys": keys,
        }  # fmt: skip
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} entries for {n} labels")
        if texts and array is None:
            raise ValueError("texts stand beside an array; in dicts they are values like others")
        for name, column in (texts or {}).items():
            if len(column) != n:
                raise ValueError(f"texts {name!r} has {len(column)} entries for {n} labels")
        if array is not None and names is not None and array.shape != (n, len(names)):
            raise ValueError(f"array is {array.shape}, expected {(n, len(names))}")
        self._dicts = x
        self._array = array
        self._names = tuple(names) if names is not None else None
        self._texts = dict(texts or {})
        self._ids = ids
        self.offsets = np.arange(n, dtype=np.int64) if offsets is None else offsets
        self.rows = rows
        self.partition = partition
        self.index = index
        self._times = times
        self._seconds: FloatArray | None = None  # the times as an array, once asked for
        self.weights = weights
        self.sources = sources
        self.groups = groups
        self.keys = keys
        self.sound = sound
        self.is_feedback = False
        self._paths = paths

    @classmethod
    def from_events(
        cls,
        events: Iterable[Event],
        *,
        offsets: IntArray | None = None,
        partition: str = "memory",
        index: int = 0,
    ) -> "EventBatch":
        """Build a batch of columns from single events."""
        events = list(events)

        def column(values: list[Any]) -> list[Any] | None:
            return None if values.count(None) == len(values) else values

        weights = [e.weight for e in events]
        return cls(
            [e.x for e in events],
            [e.y for e in events],
            offsets=offsets,
            partition=partition,
            index=index,
            ids=column([e.id for e in events]),
            times=column([e.ts for e in events]),
            weights=None if weights.count(1.0) == len(weights) else weights,
            sources=column([e.source for e in events]),
            groups=column([e.group for e in events]),
            keys=column([e.key for e in events]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def labels(self) -> list[Label | None]:
        """One label per event, None for no label."""
        if self._labels is None:
            assert self.targets is not None
            values, binary = self.targets
            labels: list[Label | None] = (values != 0.0).tolist() if binary else values.tolist()
            for i in np.flatnonzero(np.isnan(values)).tolist():
                labels[i] = None
            self._labels = labels
        return self._labels

    @property
    def labelled(self) -> int:
        """Number of events with a label."""
        if self.targets is None:
            return len(self) - self.labels.count(None)
        return len(self) - int(np.count_nonzero(np.isnan(self.targets.values)))

    def without_label(self) -> npt.NDArray[np.bool_]:
        """Return (n,) bool: whether each event lacks a label."""
        if self.targets is not None:
            return np.isnan(self.targets.values)
        return np.array([label is None for label in self.labels], np.bool_)

    def __repr__(self) -> str:
        span = f"{self.offsets[0]}..{self.offsets[-1]}" if len(self) else "empty"
        return f"EventBatch({self.partition}-{self.index}, {len(self)} events, {span})"

    @property
    def given_ids(self) -> list[str | None] | TextColumn | None:
        """The ids given with the events, None for an event without; None: no event has one."""
        return self._ids

    @property
    def id_stem(self) -> str | None:
        """The prefix of the numbers in ids, if no event was given an id; else None."""
        if self._ids is not None:
            return None
        return (
            f"{self._stem}{self.offsets[0]}-" if self.rows is not None and len(self) else self._stem
        )

    @property
    def numbers(self) -> IntArray:
        """(n,) int64 that identify the events: their rows in a message, else their offsets."""
        return self.offsets if self.rows is None else self.rows

    @property
    def _stem(self) -> str:
        return f"{self.partition}-{self.index}-" if self.index >= 0 else f"{self.partition}-"

    @property
    def ids(self) -> list[str]:
        """One id per event: the one given, else its origin (and row)."""
        if self._ids is None:
            stem = self.id_stem
            return [f"{stem}{number}" for number in self.numbers.tolist()]
        ids = list(self._ids)
        if None not in ids:
            return ids  # type: ignore[return-value]
        return [self._made_id(i) if v is None else v for i, v in enumerate(ids)]

    def _made_id(self, i: int) -> str:
        row = "" if self.rows is None else f"-{self.rows[i]}"
        return f"{self._stem}{self.offsets[i]}{row}"

    def row(self, i: int) -> int:
        """Place of event `i` in its message; -1 if each message holds one event."""
        return -1 if self.rows is None else int(self.rows[i])

    def path(self, i: int, path: str = "") -> str:
        """Return where event `i`, or a field at `path` in it, is in its message."""
        return path if self.rows is None else row_path(self.row(i), path)

    def field(self, role: Literal["label", "weight", "time"]) -> str:
        """Return the path in an event of the field with this role."""
        return OWN_PATHS[role] if self._paths is None else self._paths.get(role, role)

    @property
    def place(self) -> str:
        """The journal's name of the input partition."""
        return self._stem[:-1]

    def fill_times(self, times: FloatArray) -> None:
        """Set the times of events without one from (n,) `times`, in seconds, NaN for none."""
        own, self._seconds = self._times, None
        if own is None:
            self._times = None if np.isnan(times).all() else times
        elif isinstance(own, np.ndarray):
            self._times = np.where(np.isnan(own), times, own)
        else:
            self._times = [
                (None if math.isnan(t) else t) if mine is None else mine
                for mine, t in zip(own, times.tolist(), strict=True)
            ]

    @property
    def origins(self) -> list[Origin]:
        """The origin of each event."""
        index = max(self.index, 0)
        return [(self.partition, index, offset) for offset in self.offsets.tolist()]

    @property
    def times(self) -> list[float | None] | None:
        """Event times in seconds, None if unknown; None: all are unknown."""
        if isinstance(self._times, np.ndarray):
            self._seconds = self._times
            self._times = [None if math.isnan(t) else t for t in self._times.tolist()]
        return self._times

    @property
    def seconds(self) -> FloatArray | None:
        """(n,) float64 event times in seconds, NaN for none; None: all are unknown."""
        if self._seconds is None and self._times is not None:
            times: Any = self._times
            if not isinstance(times, np.ndarray):
                times = np.array([np.nan if t is None else t for t in times], np.float64)
            self._seconds = times
        return self._seconds

    def time(self, i: int) -> float | None:
        """Time of event `i` in seconds, None if unknown."""
        time = None if self._times is None else self._times[i]
        if isinstance(time, np.floating):
            return None if math.isnan(time) else float(time)
        return time

    def weight(self, i: int) -> float:
        """Sample weight of event `i`."""
        return 1.0 if self.weights is None else float(self.weights[i])

    def dicts(self) -> list[Features]:
        """Return one dict of features per event: as decoded, or floats from the array."""
        if self._dicts is None:
            assert self._array is not None
            assert self._names is not None
            names = self._names
            self._dicts = [
                {k: v for k, v in zip(names, row, strict=True) if v == v}  # noqa: PLR0124 NaN is missing
                for row in self._array.tolist()
            ]
            for name, column in self._texts.items():
                for x, text in zip(self._dicts, column, strict=True):
                    if text is not None:
                        x[name] = text
        return self._dicts

    @property
    def columns(self) -> FeatureColumns | None:
        """The features as columns, if they came as such; else None."""
        if self._array is None or self._names is None:
            return None
        return FeatureColumns(self._names, self._array, self._texts)

    def array(self, names: Sequence[str]) -> FloatArray:
        """Return features as an (n, d) float64 array with columns `names`; NaN is missing.

        Raises
        ------
        TypeError
            If conversion to float would change a value: a string, or an integer beyond 2**53.
        """
        names = tuple(names)
        if self._array is not None and names == self._names and not self._texts:
            return self._array
        columns = set(names)
        out = np.full((len(self), len(names)), np.nan)
        for i, x in enumerate(self.dicts()):
            for name, value in x.items():
                if name not in columns:
                    raise TypeError(f"{self.origins[i]}: feature {name!r} has no column")
                if isinstance(value, str) or (isinstance(value, int) and abs(value) > EXACT_INT):
                    raise TypeError(
                        f"{self.origins[i]}: feature {name!r} = {value!r} would change as a float"
                    )
            out[i] = [x.get(name, np.nan) for name in names]
        return out

    def __getitem__(self, part: slice) -> "EventBatch":
        """Return the events of a slice, as a batch."""
        return self.take(range(len(self))[part])

    def take(self, rows: Sequence[int]) -> "EventBatch":
        """Return the events at `rows`, in that order, as a batch."""
        index = np.asarray(rows, dtype=np.int64)

        def pick(column: Any) -> Any:
            if isinstance(column, np.ndarray):
                return column[index]
            if isinstance(column, TextColumn):
                return column.take(index)
            return None if column is None else [column[i] for i in rows]

        targets = self.targets
        new = EventBatch(
            pick(self._dicts) if self._array is None else None,
            pick(self._labels)
            if targets is None
            else Targets(targets.values[index], targets.binary),
            offsets=self.offsets[index],
            rows=pick(self.rows),
            partition=self.partition,
            index=self.index,
            ids=pick(self._ids),
            times=pick(self._times),
            weights=pick(self.weights),
            sources=pick(self.sources),
            groups=pick(self.groups),
            keys=pick(self.keys),
            array=pick(self._array),
            names=self._names,
            texts={k: pick(v) for k, v in self._texts.items()},
            sound=self.sound,
            paths=self._paths,
        )
        new.is_feedback = self.is_feedback
        return new

    def made_sound(self, **columns: Any) -> "EventBatch":
        """Return a sound batch of the same events, with these columns replaced."""
        fields: dict[str, Any] = {
            "offsets": self.offsets, "rows": self.rows, "partition": self.partition,
            "index": self.index, "ids": self._ids, "times": self._times, "weights": self.weights,
            "sources": self.sources, "groups": self.groups, "keys": self.keys,
            "paths": self._paths,
        }  # fmt: skip
        new = EventBatch(**(fields | columns), sound=True)
        new.is_feedback = self.is_feedback
        return new

    def with_labels(self, labels: list[Label | None] | Targets, **columns: Any) -> "EventBatch":
        """Return a sound batch of the same features with other labels, and these columns."""
        features: dict[str, Any] = {"x": self._dicts}
        if self._array is not None:
            features = {"x": None, "array": self._array, "names": self._names}
            features["texts"] = self._texts
        return self.made_sound(labels=labels, **features, **columns)

    def label(self, i: int) -> Label | None:
        """Label of event `i`, None for no label."""
        if self.targets is None:
            return self.labels[i]
        value = float(self.targets.values[i])
        return None if math.isnan(value) else bool(value) if self.targets.binary else value

    def event(self, i: int) -> Event:
        """Return event `i` as an object."""

        def text(column: Sequence[str | None] | None) -> str | None:
            return None if column is None else column[i]

        given = text(self._ids)
        return Event(
            x=self._features(i),
            y=self.label(i),
            id=self._made_id(i) if given is None else given,
            ts=self.time(i),
            key=text(self.keys),
            weight=self.weight(i),
            source=text(self.sources),
            group=None if self.groups is None else self.groups[i],
        )

    def _features(self, i: int) -> Features:
        if self._dicts is not None:
            return self._dicts[i]
        assert self._array is not None
        assert self._names is not None
        x: Features = {
            name: value
            for name, value in zip(self._names, self._array[i].tolist(), strict=True)
            if value == value  # noqa: PLR0124 NaN is missing
        }
        for name, column in self._texts.items():
            if (text := column[i]) is not None:
                x[name] = text
        return x

    def __iter__(self) -> Iterator[Event]:
        """Yield the events as objects: convenient, but slow."""
        return map(self.event, range(len(self)))
