"""What a model was learned from: ranges of the input, counts by source, a fingerprint of ids."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.columns import Categories, TextColumn, Texts
from midstream.engine.events.event import IntArray

__all__ = ["OTHERS", "DataSet", "Stretch", "added", "from_plain", "joined", "plain", "since"]

OTHERS = "(others)"
"""The source under which events count whose source is not among the first `_MOST_SOURCES`."""
_MOST_SOURCES = 1_000

Stretch = list[int]
"""[start, stop): positions of a partition (bytes, rows or offsets), or lines."""


class DataSet(msgspec.Struct):
    """The input applied to a model, in the order of the journal.

    It does not depend on how the input was cut into batches.

    Attributes
    ----------
    stretches
        By partition, the ranges applied, in rising order; adjacent ones are joined.
    events
        Number of events.
    lines
        By file, the ranges applied in lines (rows for Arrow and Parquet), counted from 1. Topics
        have none; an empty list stands for lines that an older Midstream did not count.
    left_out
        Number of events in these ranges that a "rewind" left out.
    sources
        Number of events by source, for events that name one.
    fingerprint
        64 bits over the ids, in order. An event without an id counts by its position.
    """

    stretches: dict[str, list[Stretch]] = {}
    events: int = 0
    sources: dict[str, int] = {}
    fingerprint: int = 0
    left_out: int = 0
    lines: dict[str, list[Stretch]] = {}

    def add(
        self,
        partition: str,
        start: int,
        stop: int,
        batch: EventBatch,
        lines: tuple[int, int] | None = None,
    ) -> None:
        """Add the events applied from a range of a partition, and its `lines` if it is a file."""
        self.skip(partition, start, stop, lines)
        if not len(batch):
            return
        self.events += len(batch)
        if batch.sources is not None:
            self._count(batch.sources)
        self.fingerprint = _fingerprint(self.fingerprint, batch)

    def add_feedback(self, batch: EventBatch) -> None:
        """Add labels that came after their events: to the sources and to the fingerprint."""
        if batch.sources is not None:
            self._count(batch.sources)
        self.fingerprint = _fingerprint(self.fingerprint, batch)

    def skip(
        self, partition: str, start: int, stop: int, lines: tuple[int, int] | None = None
    ) -> None:
        """Add a range that was read without applying any of it."""
        if start < stop:
            known = self.lines.get(partition, ())
            counted = known or partition not in self.lines
            if lines is not None and lines[0] < lines[1] and counted:
                self.lines[partition] = added(known, *lines)
            self.stretches[partition] = added(self.stretches.get(partition, ()), start, stop)

    def copy(self) -> "DataSet":
        """Return an independent copy."""
        stretches = {name: [list(s) for s in found] for name, found in self.stretches.items()}
        lines = {name: [list(s) for s in found] for name, found in self.lines.items()}
        return msgspec.structs.replace(
            self, stretches=stretches, sources=dict(self.sources), lines=lines
        )

    def _count(self, column: list[str | None] | TextColumn) -> None:
        if isinstance(column, Categories):
            codes, firsts, counts = np.unique(column.codes, return_index=True, return_counts=True)
            order = np.argsort(firsts).tolist()  # in order of arrival: the first sources get a name
            found = Counter[str]()
            for i in order:
                if codes[i] >= 0:
                    found[column.words[codes[i]]] += int(counts[i])  # a word may have two codes
        else:
            found = Counter(name for name in column if name is not None)
        for name, count in found.items():
            known = name in self.sources or len(self.sources) < _MOST_SOURCES
            shown = name if known else OTHERS
            self.sources[shown] = self.sources.get(shown, 0) + count


def added(stretches: Sequence[Stretch], start: int, stop: int) -> list[Stretch]:
    """Return the ranges with one added, joined where they touch or overlap."""
    if stretches and stretches[-1][0] <= start <= stretches[-1][1]:  # the usual case
        return [*stretches[:-1], [stretches[-1][0], max(stop, stretches[-1][1])]]
    joined: list[Stretch] = []
    for first, last in sorted([*map(list, stretches), [start, stop]]):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    return joined


def since(new: DataSet, old: DataSet) -> DataSet:
    """Return what is in `new` but not in `old`, an earlier copy of it.

    The fingerprint is that of `new`.
    """
    stretches, lines = {}, {}
    for name, found in new.stretches.items():
        left = _without(found, old.stretches.get(name, []))
        if left:
            stretches[name] = left
            if name in new.lines:
                lines[name] = _without(new.lines[name], old.lines.get(name, []))
    sources = {
        name: count - old.sources.get(name, 0)
        for name, count in new.sources.items()
        if count > old.sources.get(name, 0)
    }
    return DataSet(
        stretches,
        new.events - old.events,
        sources,
        new.fingerprint,
        new.left_out - old.left_out,
        lines,
    )


def _without(stretches: Sequence[Stretch], taken: Sequence[Stretch]) -> list[Stretch]:
    left = []
    for start, stop in stretches:
        at = start
        for first, last in taken:
            if last <= at or first >= stop:
                continue
            if first > at:
                left.append([at, first])
            at = max(at, last)
        if at < stop:
            left.append([at, stop])
    return left


def joined(parts: Sequence[DataSet]) -> DataSet:
    """Join what several shards learned; the fingerprint is taken over theirs, in order."""
    from midstream.engine.events.stream_hash import over_numbers  # numba is slow to import

    total = DataSet()
    for part in parts:
        for name, found in part.stretches.items():
            for start, stop in found:
                total.skip(name, start, stop)
        for name, found in part.lines.items():
            known = total.lines.get(name, [])
            for first, stop in found:
                known = added(known, first, stop)
            total.lines[name] = known
        total.events += part.events
        total.left_out += part.left_out
        for source, count in part.sources.items():
            total.sources[source] = total.sources.get(source, 0) + count
        prints = np.array([part.fingerprint], np.uint64).view(np.int64)
        total.fingerprint = int(over_numbers(np.uint64(total.fingerprint), prints))
    return total


def plain(data: DataSet) -> dict[str, Any]:
    """Return it as plain JSON values, with the fingerprint in hexadecimal."""
    return {**msgspec.to_builtins(data), "fingerprint": f"{data.fingerprint:016x}"}


def from_plain(value: Mapping[str, Any]) -> DataSet:
    """Make a data set from the result of `plain`; an older one lacks the lines."""
    if "lines" not in value:
        value = {**value, "lines": {name: [] for name in value["stretches"]}}
    return msgspec.convert({**value, "fingerprint": int(value["fingerprint"], 16)}, DataSet)


def _fingerprint(seed: int, batch: EventBatch) -> int:
    from midstream.engine.events.stream_hash import over_numbers, over_texts

    ids = batch.given_ids
    if ids is None:
        return int(over_numbers(np.uint64(seed), batch.numbers))
    if isinstance(ids, Texts):
        data, starts, stops = ids.spans
    else:
        data, starts, stops = _laid_out(list(ids))
    bytes_ = np.frombuffer(data, np.uint8) if len(data) else np.zeros(1, np.uint8)
    return int(over_texts(np.uint64(seed), bytes_, starts, stops, batch.numbers))


def _laid_out(ids: list[str | None]) -> tuple[bytes, IntArray, IntArray]:
    """Return the bytes of all ids, and where each begins and ends; negative for a missing id."""
    texts: list[str]
    try:
        data = "".join(ids).encode(errors="surrogatepass")  # type: ignore[arg-type]
        texts = ids  # type: ignore[assignment]
    except TypeError:
        texts = [text or "" for text in ids]
        data = "".join(texts).encode(errors="surrogatepass")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if lengths.sum() != len(data):  # some ids are not ASCII
        sizes = (len(text.encode(errors="surrogatepass")) for text in texts)
        lengths = np.fromiter(sizes, np.int64, len(texts))
    stops = np.cumsum(lengths)
    starts = stops - lengths
    if texts is not ids:
        starts[[text is None for text in ids]] = -1
    return data, starts, stops
