"""JSON Lines to columns by a schema: as event by event, with what does not fit rejected by name."""

import json
import math

import numpy as np
import pytest

from midstream.connectors.decode import column_decoder as column_codec
from midstream.connectors.decode.column_decoder import ColumnDecoder
from midstream.connectors.decode.decoder import make_decoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.decode.json_decoder import JsonDecoder
from midstream.connectors.input import Block, InputError

SCHEMA = {"a": "number", "b": "number", "city": "category"}
FLAT = FieldMap(id="tx", label="y", time="at", exclude=["meta"])


def block(*lines) -> Block:
    """Return events, or lines, as a block."""
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    data = b"".join(text + b"\n" for text in texts)
    return Block("p", data, 1, len(lines), 0, len(data))


@pytest.fixture
def fast_only(monkeypatch):
    """Fail where a block goes event by event."""

    def refuse(*_):
        raise AssertionError("the block was not decoded whole")

    monkeypatch.setattr(column_codec.ColumnDecoder, "_one_by_one", refuse)


@pytest.mark.usefixtures("fast_only")
def test_a_block_becomes_columns():
    """Numbers as one array, categories as strings, roles as in any batch."""
    decoder = ColumnDecoder("binary", None, SCHEMA)
    batch, rejected = decoder.decode(
        block(
            {"id": "e1", "x": {"a": 1, "b": 2.5, "city": "Rome"}, "y": True},
            {"id": "e2", "x": {"b": True, "a": None}, "y": 0},
            {"id": "e3", "x": {"city": 7}, "y": None},
        )
    )
    assert rejected == []
    names, array, texts = batch.columns
    assert names == ("a", "b")
    np.testing.assert_array_equal(array, [[1, 2.5], [math.nan, 1], [math.nan, math.nan]])
    assert texts == {"city": ["Rome", None, "7"]}
    assert batch.labels == [True, False, None]
    assert batch.ids == ["e1", "e2", "e3"]
    assert batch.dicts() == [{"a": 1.0, "b": 2.5, "city": "Rome"}, {"b": 1.0}, {"city": "7"}]
    assert batch.take([2, 0]).dicts() == [{"city": "7"}, {"a": 1.0, "b": 2.5, "city": "Rome"}]


@pytest.mark.usefixtures("fast_only")
@pytest.mark.parametrize("fields", [{"ts": 1.5}, {"weight": 2, "key": "k", "source": "s"}])
def test_every_role_of_our_own_form_is_decoded_whole(fields):
    """Later blocks too, whatever roles they have."""
    decoder = ColumnDecoder("binary", None, SCHEMA)
    for given in ({}, fields, {}, fields):
        event = {"x": {"a": 1.0}, "y": True, **given}
        batch, _ = decoder.decode(block(event, event))
        (one, _) = batch
        assert (one.ts, one.weight, one.key, one.source) == (
            given.get("ts"), given.get("weight", 1.0), given.get("key"), given.get("source")
        )  # fmt: skip


@pytest.mark.usefixtures("fast_only")
def test_flat_objects():
    """Roles by the field map; what is excluded is not looked at, if it is a scalar."""
    decoder = ColumnDecoder("regression", FLAT, SCHEMA)
    batch, rejected = decoder.decode(
        block(
            {"tx": 5, "a": 1, "y": 2.5, "at": "1970-01-01T00:00:01Z", "meta": "m"},
            {"tx": 6, "b": 1, "y": 3, "at": 2, "city": "Oslo"},
        )
    )
    assert rejected == []
    assert batch.ids == ["5", "6"]
    assert batch.labels == [2.5, 3]
    assert batch.times == [1.0, 2.0]
    assert batch.dicts() == [{"a": 1.0}, {"b": 1.0, "city": "Oslo"}]


@pytest.mark.parametrize(
    ("x", "reason", "path"),
    [
        ({"a": 1, "c": 2}, "feature 'c' is not in [features]", "$.x.c"),
        ({"a": "1"}, "[features] says number, got string", "$.x.a"),
        ({"city": 1.5}, "[features] says category, got number", "$.x.city"),
        ({"a": 2**70}, "integer does not fit in 64 bits", "$.x.a"),
        ({"a": [1]}, "expected number, string, bool or null, got array", "$.x.a"),
        ({}, "no features", ""),
        ({"a": None, "city": None}, "no features", ""),
    ],
)
def test_what_does_not_fit_costs_that_line_only(x, reason, path):
    """The feature is named; the events around it are learned."""
    decoder = ColumnDecoder("binary", None, SCHEMA)
    good = {"x": {"a": 1.0}, "y": True}
    batch, rejected = decoder.decode(block(good, {"x": x, "y": True}, good))
    assert batch.offsets.tolist() == [1, 3]
    assert batch.columns.array.shape == (2, 2)
    (one,) = rejected
    assert one.origin == ("p", 0, 2)
    assert one.reason.startswith(reason)
    assert one.path == path


@pytest.mark.parametrize(
    "line",
    [
        b'{"x":{"a":1,"a":2},"y":true}',  # as many colons as with b instead
        b'{"x":{"a":1,"city":"x:y","city":"z"},"y":true}',
        b'{"x":{"a":1},"y":true,"y":false}',
        b'{"x":{"a":1},"y":true} {"x":{"a":1},"y":true}',
        b'{"x":{"a":1e400},"y":true}',
        b'{"x":{"a":NaN},"y":true}',
        b'{"x":{"a":1},"y":"yes"}',
        b'{"x":{"a":1},"y":true,"weight":-1}',
    ],
)
def test_what_a_line_alone_is_rejected_for(line):
    """With the reason that `JsonDecoder` gives, in a block as alone."""
    good = b'{"x":{"a":1,"b":2},"y":true}'
    expected = JsonDecoder("binary").decode(block(good, line, good)).rejected
    decoder = ColumnDecoder("binary", None, SCHEMA)
    assert len(expected) == 1
    assert decoder.decode(block(good, line, good)).rejected == expected
    alone = decoder.decode(block(line)).rejected
    assert [(r.reason, r.path) for r in alone] == [(r.reason, r.path) for r in expected]


def test_names_that_are_no_identifiers():
    """Any name may be a feature's, one with a quote in it too."""
    schema = {"a b": "number", "class": "number", 'q"': "category", "__x": "number"}
    decoder = ColumnDecoder("binary", None, schema)
    x = {"a b": 1.0, "class": 2.0, "__x": 3.0, 'q"': "t"}
    batch, rejected = decoder.decode(block({"x": x, "y": True}))
    assert rejected == []
    assert batch.dicts() == [x]
    del schema['q"'], x['q"']
    assert ColumnDecoder("binary", None, schema).decode(block({"x": x})).batch.dicts() == [x]


@pytest.mark.parametrize("schema", [{"city": "category"}, {"a": "number"}])
def test_one_feature_is_enough(schema):
    """Of either kind."""
    x = {"city": "Rome"} if "city" in schema else {"a": 4.0}
    batch, _ = ColumnDecoder("binary", None, schema).decode(block({"x": x}, {"x": x}))
    assert batch.dicts() == [x, x]
    assert batch.columns.array.shape == (2, len(batch.columns.names))


def test_csv_is_refused():
    """Its types are in [input.fields]."""
    with pytest.raises(InputError, match=r"\[features\] is for JSON Lines"):
        make_decoder("binary", FLAT, CsvOptions(["a"], ","), SCHEMA)
