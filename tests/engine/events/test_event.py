"""Batches: columns, lazy ids, and features that no conversion changes."""

import numpy as np
import pytest

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event


def test_ids_are_those_given_or_made_from_the_origin():
    """An event without an id of its own is called by where it came from."""
    batch = EventBatch(
        [{"a": 1}, {"a": 2}], [1, 2], ids=["x", None], partition="topic", index=3,
        offsets=np.array([10, 11]),
    )  # fmt: skip
    assert batch.ids == ["x", "topic-3-11"]
    assert batch.origins == [("topic", 3, 10), ("topic", 3, 11)]


def test_dicts_become_an_array_only_where_no_value_changes():
    """Integers and truth values fit floats; text and huge integers do not, and are named."""
    batch = EventBatch([{"a": 1, "b": True}, {"b": 0.5}], [0, 1])
    array = batch.array(["a", "b"])
    assert np.array_equal(array, [[1.0, 1.0], [np.nan, 0.5]], equal_nan=True)
    for value in ("text", 2**53 + 1):
        with pytest.raises(TypeError, match="'a'"):
            EventBatch([{"a": value}], [0]).array(["a"])
    with pytest.raises(TypeError, match="'b' has no column"):
        batch.array(["a"])


def test_an_array_becomes_dicts_without_its_missing_values():
    """NaN in a column is a feature that is not there."""
    batch = EventBatch(None, [0, 1], array=np.array([[1.0, np.nan], [2.0, 3.0]]), names=["a", "b"])
    assert batch.dicts() == [{"a": 1.0}, {"a": 2.0, "b": 3.0}]
    assert batch.array(["a", "b"]) is batch.array(["a", "b"])


def test_a_part_of_a_batch_keeps_every_column():
    """Slicing and taking rows keep ids, times, weights, sources, groups and keys together."""
    events = [
        Event(x={"a": i}, y=i, id=f"e{i}", ts=float(i), key="k", weight=2.0, source="s",
              group={"g": "1"})
        for i in range(5)
    ]  # fmt: skip
    batch = EventBatch.from_events(events)
    assert list(batch[1:3]) == events[1:3]
    assert list(batch.take([4, 0])) == [events[4], events[0]]


def test_columns_of_different_lengths_are_refused():
    """A batch is rectangular."""
    with pytest.raises(ValueError, match="times has 1 entries for 2"):
        EventBatch([{}, {}], [0, 1], times=[1.0])
    with pytest.raises(ValueError, match="either dicts, or an array"):
        EventBatch(None, [0])
