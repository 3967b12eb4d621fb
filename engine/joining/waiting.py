"""The predicted events, by number: features as they were, predictions, and what became of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.events.event import FloatArray, IntArray, Label, Task
from midstream.engine.events.predictions import Predictions, Table

__all__ = [
    "CHUNK",
    "DONE",
    "OPEN",
    "Waiting",
    "joined_batch",
    "sizes",
]

CHUNK = 1_024
"""Events of a chunk: a chunk is immutable once it is full, but for what became of its events."""
OPEN, DONE = 0, 1
BoolArray = npt.NDArray[np.bool_]
_BASE, _NUMBER, _TEXT = 96, 24, 40  # bytes: of an event, of a feature, of a feature that is text


class _Chunk:
    """Up to `CHUNK` events with consecutive numbers.

    Attributes
    ----------
    rows
        How many events it has.
    ids, times, sizes
        By row: the id, the time (NaN for none), the estimated bytes.
    status
        By row, OPEN or DONE; DONE beyond the last row.
    labels
        By row, the label that came; None for none.
    needed
        Rows whose features may still be needed.
    """

    __slots__ = (
        "batches", "first", "ids", "labels", "needed", "packed", "predictions", "rows", "sizes",
        "status", "times",
    )  # fmt: skip

    def __init__(self, first: int) -> None:
        self.first = first
        self.rows = 0
        self.ids: list[str] = []
        self.times = np.full(CHUNK, np.nan)
        self.sizes = np.zeros(CHUNK, np.int64)
        self.status = np.full(CHUNK, DONE, np.uint8)
        self.labels: list[Label | None] = []
        self.needed = 0
        self.batches: list[EventBatch] = []
        self.predictions: list[Predictions] = []
        self.packed: bytes | None = None  # of a full chunk: events and predictions, encoded

    def batch(self) -> EventBatch:
        """Return the events."""
        if len(self.batches) > 1:
            self.batches = [joined_batch(self.batches)]
        return self.batches[0]

    def predicted(self) -> Predictions:
        """Return the predictions."""
        if len(self.predictions) > 1:
            self.predictions = [Predictions.joined(self.predictions)]
        return self.predictions[0]

    def find_open(self, row: int) -> int:
        """Return the first row from `row` on that waits; -1 if there is none."""
        return self.status.tobytes().find(bytes([OPEN]), row)


class Waiting:
    """Predicted events by number, in chunks. A chunk is dropped once nothing of it is needed.

    Attributes
    ----------
    next
        The number of the next event.
    head
        All events before this number are done: they were scored in the order of prediction.
    """

    def __init__(self) -> None:
        self.next = 0
        self.head = 0
        self.log: list[Callable[[], Any]] | None = None  # of what undoes changes of old events
        self._oldest = 0  # no event before it waits
        self._chunks: dict[int, _Chunk] = {}

    def add(
        self,
        batch: EventBatch,
        ids: list[str],
        predictions: Predictions,
        sizes: IntArray,
        *,
        done: BoolArray | None = None,
        labels: Sequence[Label | None] | None = None,
    ) -> None:
        """Append events; those `done` wait for nothing, and have one of `labels` or none."""
        at, times = 0, batch.seconds
        while at < len(batch):
            place = self.next // CHUNK
            chunk = self._chunks.setdefault(place, _Chunk(place * CHUNK))
            row = chunk.rows
            n = min(CHUNK - row, len(batch) - at)
            stop = at + n
            whole = n == len(batch)
            chunk.batches.append(batch if whole else batch[at:stop])
            chunk.predictions.append(
                predictions if whole else predictions.take(np.arange(at, stop))
            )
            chunk.ids += ids[at:stop]
            if times is not None:
                chunk.times[row : row + n] = times[at:stop]
            chunk.sizes[row : row + n] = sizes[at:stop]
            chunk.status[row : row + n] = OPEN if done is None else done[at:stop]
            chunk.needed += n if done is None else n - int(np.count_nonzero(done[at:stop]))
            chunk.labels += [None] * n if labels is None else labels[at:stop]
            chunk.rows += n
            self.next += n
            at = stop

    def drop(self, number: int) -> None:
        """Let an event that was just added wait for nothing."""
        chunk = self._chunks[number // CHUNK]
        chunk.status[number % CHUNK] = DONE
        chunk.needed -= 1

    def cut(self, number: int) -> None:
        """Remove the events from a number on."""
        for place in [p for p in self._chunks if (p + 1) * CHUNK > number]:
            chunk = self._chunks[place]
            rows = max(number - chunk.first, 0)
            if not rows:
                del self._chunks[place]
            elif rows < chunk.rows:
                chunk.needed -= int(np.count_nonzero(chunk.status[rows:] == OPEN))
                chunk.status[rows:] = DONE
                chunk.times[rows:] = np.nan
                chunk.batches = [chunk.batch()[:rows]]
                chunk.predictions = [chunk.predicted().take(np.arange(rows))]
                del chunk.ids[rows:], chunk.labels[rows:]
                chunk.rows, chunk.packed = rows, None
        self.next = number
        self._oldest = self.head

    def close(self, numbers: IntArray, labels: Sequence[Label | None]) -> None:
        """Note what became of events that waited. Their features stay until `release`."""
        for chunk, at, rows in self._by_chunk(numbers):
            chunk.status[rows] = DONE
            for row, i in zip(rows.tolist(), at, strict=True):
                chunk.labels[row] = labels[i]
            if self.log is not None:

                def back(chunk: _Chunk = chunk, rows: IntArray = rows) -> None:
                    chunk.status[rows] = OPEN
                    for row in rows.tolist():
                        chunk.labels[row] = None

                self.log.append(back)

    def release(self, numbers: Sequence[int]) -> None:
        """Note that the features of events are not needed any more."""
        for chunk, _, rows in self._by_chunk(np.array(numbers, np.int64)):
            chunk.needed -= len(rows)
            self._drop(chunk.first // CHUNK)

    def _by_chunk(self, numbers: IntArray) -> Iterator[tuple[_Chunk, Sequence[int], IntArray]]:
        """Yield, by chunk, which of the numbers are in it, and their rows."""
        places = numbers // CHUNK
        if len(numbers) and (places == places[0]).all():
            yield self._chunks[int(places[0])], range(len(numbers)), numbers % CHUNK
            return
        for place in np.unique(places).tolist():
            at = np.flatnonzero(places == place)
            yield self._chunks[place], at.tolist(), numbers[at] % CHUNK

    def _drop(self, place: int) -> None:
        chunk = self._chunks[place]
        if not chunk.needed and self.head >= chunk.first + CHUNK:
            del self._chunks[place]

    def oldest(self) -> int:
        """Return the lowest number of an event that waits; `next` if none does."""
        at = max(self._oldest, self.head)
        while at < self.next:
            chunk = self._chunks.get(at // CHUNK)
            row = -1 if chunk is None else chunk.find_open(at % CHUNK)
            if row >= 0:
                at = at // CHUNK * CHUNK + row
                break
            at = min((at // CHUNK + 1) * CHUNK, self.next)
        self._oldest = at
        return at

    def is_open(self, number: int) -> bool:
        """Whether an event waits."""
        chunk = self._chunks.get(number // CHUNK)
        return chunk is not None and bool(chunk.status[number % CHUNK] == OPEN)

    def times(self, numbers: IntArray) -> FloatArray:
        """Return the times of events, NaN for none, in the order of `numbers`."""
        out = np.empty(len(numbers))
        for chunk, at, rows in self._by_chunk(numbers):
            out[at] = chunk.times[rows]
        return out

    def sizes(self, numbers: IntArray) -> IntArray:
        """Return the estimated bytes of events, in the order of `numbers`."""
        out = np.empty(len(numbers), np.int64)
        for chunk, at, rows in self._by_chunk(numbers):
            out[at] = chunk.sizes[rows]
        return out

    def event_id(self, number: int) -> str:
        """Return the id of an event."""
        return self._chunks[number // CHUNK].ids[number % CHUNK]

    def events(self, numbers: Sequence[int]) -> EventBatch:
        """Return events, in the order of `numbers`."""
        found: EventBatch = _gathered(
            numbers, lambda place: self._chunks[place].batch(), joined_batch
        )
        return found

    def predictions(self, numbers: Sequence[int]) -> Predictions:
        """Return predictions, in the order of `numbers`."""
        found: Predictions = _gathered(
            numbers, lambda place: self._chunks[place].predicted(), Predictions.joined
        )
        return found

    def settled(self) -> Iterator[tuple[list[Label], Predictions]]:
        """Advance `head`; yield labels and predictions of the events that it passes, in order."""
        while self.head < self.next:
            place, row = self.head // CHUNK, self.head % CHUNK
            chunk = self._chunks[place]
            stop = chunk.find_open(row)
            stop = chunk.rows if stop < 0 else stop
            if stop == row:
                return
            passed = chunk.labels[row:stop]
            labels = [label for label in passed if label is not None]
            if labels:
                rows = np.arange(row, stop)
                if len(labels) < len(passed):
                    rows = rows[[label is not None for label in passed]]
                yield labels, chunk.predicted().take(rows)
            self.head = chunk.first + stop
            self._drop(place)

    def opened(self) -> Iterator[tuple[list[int], list[str], int]]:
        """Yield the numbers, ids and total size of the events that wait, chunk by chunk."""
        for place in sorted(self._chunks):
            chunk = self._chunks[place]
            rows = np.flatnonzero(chunk.status == OPEN)
            if len(rows):
                yield (
                    (rows + chunk.first).tolist(),
                    [chunk.ids[row] for row in rows.tolist()],
                    int(chunk.sizes[rows].sum()),
                )

    def state(self) -> dict[str, Any]:
        """Return everything as plain values; it does not depend on how events came in batches."""
        chunks = []
        for place in sorted(self._chunks):
            chunk = self._chunks[place]
            packed = chunk.packed
            if packed is None:
                packed = _packed(chunk.batch(), chunk.predicted())
                if chunk.rows == CHUNK:
                    chunk.packed = packed
            labels = msgspec.msgpack.encode(chunk.labels)
            status = chunk.status[: chunk.rows].tobytes()
            chunks.append([place, packed, status, labels, chunk.needed])
        return {"next": self.next, "head": self.head, "chunks": chunks}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Waiting":
        """Build the store that `state` was taken from.

        Raises
        ------
        ValueError
            If the state is damaged.
        """
        new = cls()
        new.next, new.head = state["next"], state["head"]
        for place, packed, status, labels, needed in state["chunks"]:
            chunk = _Chunk(place * CHUNK)
            batch, predictions = _unpacked(packed)
            rows = len(batch)
            found = msgspec.msgpack.decode(labels)
            if not len(status) == len(predictions) == len(found) == rows <= CHUNK:
                raise ValueError("damaged state of the join: a chunk's columns differ in length")
            chunk.batches, chunk.predictions = [batch], [predictions]
            chunk.rows, chunk.ids, chunk.labels = rows, batch.ids, found
            chunk.status[:rows] = np.frombuffer(status, np.uint8)
            chunk.sizes[:rows] = sizes(batch)
            times = batch.seconds
            if times is not None:
                chunk.times[:rows] = times
            chunk.needed = needed
            chunk.packed = packed if rows == CHUNK else None
            new._chunks[place] = chunk
        return new


def sizes(batch: EventBatch) -> IntArray:
    """Return (n,) estimates of the bytes that events take, the same in every form."""
    columns = batch.columns
    found: IntArray
    if columns is None:
        return np.array(
            [
                _BASE + sum(_TEXT + len(v) if isinstance(v, str) else _NUMBER for v in x.values())
                for x in batch.dicts()
            ],
            np.int64,
        )
    found = _BASE + _NUMBER * np.count_nonzero(~np.isnan(columns.array), axis=1).astype(np.int64)
    for column in columns.texts.values():
        found += np.array([0 if text is None else _TEXT + len(text) for text in column], np.int64)
    return found


def _gathered(numbers: Sequence[int], part: Any, join: Any) -> Any:
    """Return the rows with these numbers, from parts of `CHUNK` rows each."""
    index = np.asarray(numbers, np.int64)
    places = index // CHUNK
    if len(index) and (places == places[0]).all():
        return _rows(part(int(places[0])), index % CHUNK)
    order = np.argsort(places, kind="stable")
    parts = []
    for place in np.unique(places).tolist():
        parts.append(_rows(part(place), index[order][places[order] == place] % CHUNK))
    return _rows(join(parts), np.argsort(order, kind="stable"))


def _rows(part: Any, rows: IntArray) -> Any:
    if len(part) == len(rows) and (rows == np.arange(len(rows))).all():
        return part
    return part.take(rows if isinstance(part, Predictions) else rows.tolist())


def joined_batch(batches: Sequence[EventBatch]) -> EventBatch:
    """Return batches as one: of columns if all have the same ones, else of dicts."""
    if len(batches) == 1:
        return batches[0]
    columns = [batch.columns for batch in batches]
    first = columns[0]
    forms = {c if c is None else (c.names, tuple(c.texts)) for c in columns}
    n = sum(map(len, batches))
    features: dict[str, Any] = {"x": None}
    if first is None or len(forms) > 1:
        features["x"] = [x for batch in batches for x in batch.dicts()]
    else:
        features["array"] = np.concatenate([c.array for c in columns if c is not None])
        features["names"] = first.names
        features["texts"] = {
            name: [text for c in columns if c is not None for text in c.texts[name]]
            for name in first.texts
        }

    def times() -> Any:
        each = [batch.seconds for batch in batches]
        if all(column is None for column in each):
            return None
        return np.concatenate(
            [
                np.full(len(batch), np.nan) if column is None else column
                for batch, column in zip(batches, each, strict=True)
            ]
        )

    def weights() -> FloatArray | None:
        if all(batch.weights is None for batch in batches):
            return None
        return np.array([batch.weight(i) for batch in batches for i in range(len(batch))])

    def listed(name: str) -> list[Any] | None:
        each = [getattr(batch, name) for batch in batches]
        if all(column is None for column in each):
            return None
        return [
            value
            for batch, column in zip(batches, each, strict=True)
            for value in (column if column is not None else [None] * len(batch))
        ]

    return EventBatch(
        labels=[None] * n,
        ids=[event_id for batch in batches for event_id in batch.ids],
        times=times(),
        weights=weights(),
        sources=listed("sources"),
        groups=listed("groups"),
        keys=listed("keys"),
        sound=True,
        **features,
    )


def _packed(batch: EventBatch, predictions: Predictions) -> bytes:
    """Return events and predictions as bytes."""
    columns = batch.columns
    features: Any
    if columns is None:
        features = batch.dicts()
    else:
        array = np.ascontiguousarray(columns.array)
        texts = {name: list(column) for name, column in columns.texts.items()}
        features = [list(columns.names), array.tobytes(), texts]
    return msgspec.msgpack.encode(
        [
            batch.ids,
            [_plain(each) for each in (batch.times, batch.sources, batch.groups, batch.keys)],
            _weights(batch),
            features,
            _floats(predictions.values),
            _packed_probas(predictions),
        ]
    )


def _packed_probas(predictions: Predictions) -> Any:
    """Return probabilities as [classes, bytes] if all events have the same classes, else by event.

    The form depends on the values alone, not on the form in which they came.
    """
    table = predictions.table
    if table is None:
        probas = predictions.probas
        if probas is None:
            return None
        classes = tuple(probas[0])
        if not classes or any(tuple(row) != classes for row in probas):
            return [list(row.items()) for row in probas]
        table = Table(classes, np.array([list(row.values()) for row in probas], np.float64))
    return [list(table.classes), np.ascontiguousarray(table.values).tobytes()]


def _unpacked_predictions(values: list[Any], probas: Any) -> Predictions:
    kinds = set(map(type, values))
    given: Any = np.array(values) if kinds in ({bool}, {float}) else values
    if probas and len(probas) == 2 and isinstance(probas[1], bytes):
        classes, data = probas
        table = np.frombuffer(data, np.float64).reshape(len(values), len(classes))
        return Predictions(given, Table(tuple(classes), table))
    rows = None if probas is None else [dict(map(tuple, row)) for row in probas]
    return Predictions(given, rows)


def _floats(values: list[Any]) -> list[Any]:
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _weights(batch: EventBatch) -> list[float] | None:
    """Return the weights as a list; None if all are 1."""
    weights = [batch.weight(i) for i in range(len(batch))] if batch.weights is not None else []
    return weights if any(weight != 1.0 for weight in weights) else None


def _plain(column: Any) -> list[Any] | None:
    """Return a column as a list; None if it holds nothing."""
    return None if column is None or column.count(None) == len(column) else list(column)


def _unpacked(data: bytes) -> tuple[EventBatch, Predictions]:
    try:
        ids, beside, weights, features, values, probas = msgspec.msgpack.decode(data)
        times, sources, groups, keys = beside
        given: dict[str, Any] = {"x": features}
        if features and isinstance(features[0], list):
            names, array, texts = features
            given = {"x": None, "names": names, "texts": texts}
            given["array"] = np.frombuffer(array, np.float64).reshape(len(ids), len(names))
        batch = EventBatch(
            labels=[None] * len(ids),
            ids=ids,
            times=times,
            weights=weights,
            sources=sources,
            groups=groups,
            keys=keys,
            sound=True,
            **given,
        )
        return batch, _unpacked_predictions(values, probas)
    except (msgspec.DecodeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"damaged state of the join: {error}") from error


def labelled(
    batch: EventBatch, labels: Sequence[Label], weights: Sequence[float], task: Task
) -> EventBatch:
    """Return a batch with labels, and with its weights multiplied."""
    given: Any = list(labels)
    if task == "binary" or (task == "regression" and set(map(type, labels)) <= {float}):
        given = Targets(np.array(given, np.float64), task == "binary")
    own = [weight * batch.weight(i) for i, weight in enumerate(weights)]
    plain = all(weight == 1.0 for weight in own)
    return batch.with_labels(given, weights=None if plain else own)
