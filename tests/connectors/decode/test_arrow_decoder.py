"""Arrow and Parquet rows to events: what columns may be, and what a row is rejected for."""

import datetime as dt
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from midstream.connectors.decode import fingerprint
from midstream.connectors.decode.arrow_decoder import TableDecoder
from midstream.connectors.decode.column_decoder import ColumnDecoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.json_decoder import JsonDecoder
from midstream.connectors.input import Block, InputError
from midstream.engine.events.batch import Targets

SCHEMA = {"a": "number", "b": "number", "city": "category"}
FLAT = FieldMap(label="y")


def message(table: pa.Table | pa.RecordBatch) -> bytes:
    """Return rows as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return sink.getvalue().to_pybytes()


def decode(columns, *, task="binary", fields=FLAT, features=None):
    """Decode columns by name, given as a table or as lists; rows count as those of a file do."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    decoded = TableDecoder(task, fields, features).decode_message(message(table), partition="p")
    batch = decoded.batch
    if batch.rows is not None:
        batch.offsets, batch.rows = batch.rows, None
        for rejected in decoded.rejected:
            row, _, rejected.path = rejected.path.partition(": ")
            rejected.origin = ("p", 0, int(row.removeprefix("row ")))
    return decoded


def reasons(decoded):
    return [(r.origin[2], r.reason, r.path) for r in decoded.rejected]


def refusal(columns, **options) -> str:
    """Return why a schema is refused."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    with pytest.raises(InputError) as caught:
        TableDecoder(
            options.get("task", "binary"), options.get("fields", FLAT), options.get("features")
        ).form(table.schema)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NUMBERS = [
    pa.array(np.array([1, 0, 3], kind), mask=np.array([False, True, False]))
    for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
]


@pytest.mark.parametrize("numbers", NUMBERS, ids=lambda column: str(column.type))
def test_every_number_is_a_float_in_columns_and_itself_in_dicts(numbers):
    """Null is missing; a learner that takes dicts sees 1 where it is an integer, not 1.0."""
    rows = {"a": numbers, "b": [0.5, math.nan, None], "c": [1, 2, 3], "y": [True, False, None]}
    features = {"a": "number", "b": "number", "c": "number"}
    batch, rejected = decode(rows, features=features)
    assert rejected == []
    assert batch.columns.names == ("a", "b", "c")
    expected = [[1, 0.5, 1], [math.nan, math.nan, 2], [3, math.nan, 3]]
    np.testing.assert_array_equal(batch.columns.array, expected)
    assert batch.labels == [True, False, None]
    dicts = decode(rows).batch.dicts()
    assert dicts == [{"a": 1, "b": 0.5, "c": 1}, {"c": 2}, {"a": 3, "c": 3}]
    whole = int if pa.types.is_integer(numbers.type) else float
    assert [type(x["a"]) for x in (dicts[0], dicts[2])] == [whole, whole]


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["Rome", None, "Oslo", "Rome"]),
        pa.array(["Rome", None, "Oslo", "Rome"], pa.large_string()),
        pa.array(["Rome", None, "Oslo", "Rome"], pa.string_view()),
        pa.array(["Rome", None, "Oslo", "Rome"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(
            pa.array([0, None, 1, 0], pa.int8()), pa.array(["Rome", "Oslo"], pa.large_string())
        ),
        pa.DictionaryArray.from_arrays([1, 0, 2, 1], pa.array([None, "Rome", "Oslo"])),
    ],
    ids=lambda column: str(column.type),
)
def test_strings_and_dictionaries_are_categories(texts):
    """Whatever their layout; null is missing."""
    rows = {"a": [1.0] * 4, "city": texts, "y": [1, 0, 1, 0]}
    batch, rejected = decode(rows, features=SCHEMA)
    assert rejected == []
    assert list(batch.columns.texts["city"]) == ["Rome", None, "Oslo", "Rome"]
    assert np.isnan(batch.columns.array[:, 1]).all()  # b, which the file has not
    expected = [{"a": 1.0, "city": "Rome"}, {"a": 1.0}, {"a": 1.0, "city": "Oslo"}]
    assert batch.dicts()[:3] == expected
    assert decode(rows).batch.dicts()[:3] == expected


def test_integers_and_bools_may_stand_for_categories():
    """Spelled as in JSON."""
    rows = {"city": [7, None, 7], "b": [True, False, None], "y": [1, 0, 1]}
    batch, _ = decode(rows, features={"city": "category", "b": "category"})
    assert list(batch.columns.texts["city"]) == ["7", None, "7"]
    assert list(batch.columns.texts["b"]) == ["true", "false", None]


def test_codes_of_categories_stay_over_blocks():
    """What was made of a word can be kept: its code is the same in the next block."""
    decoder = TableDecoder("binary", FLAT, {"city": "category"})
    columns = []
    for cities in (["a", "b"], ["c", "b"], ["b", "d"]):
        table = pa.table({"city": cities, "y": [1, 1]})
        columns.append(decoder.decode_message(message(table)).batch.columns.texts["city"])
    assert [column.codes.tolist() for column in columns] == [[0, 1], [2, 1], [1, 3]]
    assert columns[0].words is columns[2].words


def test_very_many_categories_take_bounded_memory():
    """After 10^6 distinct words there are not 10^6 of them in memory."""
    decoder = TableDecoder("binary", FLAT, {"city": "category"})
    for i in range(20):
        cities = [f"c{i * 50_000 + j}" for j in range(50_000)]
        table = pa.table({"city": cities, "y": [True] * 50_000})
        column = decoder.decode_message(message(table)).batch.columns.texts["city"]
        assert column[7] == cities[7]
        assert len(column.words) <= 2**17 + 50_000


@pytest.mark.parametrize("features", [None, {"a": "number", "n": "number"}])
def test_values_that_break_a_rule_cost_their_row_only(features):
    """Infinity, integers of more than 63 bits, labels and weights that are none."""
    rows = pa.table(
        {
            "a": [1.0, math.inf, 1.0, 1.0, 1.0, -math.inf, 1.0, None, 1.0],
            "n": pa.array([1, 2, 2**63, 4, 5, 6, 2**63 - 1, None, 1], pa.uint64()),
            "y": [1.0, 1.0, 0.0, 2.0, math.nan, 0.5, None, 1.0, 0.0],
            "w": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, None],
        }
    )
    decoded = decode(rows, fields=FieldMap(label="y", weight="w"), features=features)
    label = "label must be true/false or 0/1 for task binary, found"
    assert reasons(decoded) == [
        (1, "number is too large or not finite", "a"),
        (2, "integer does not fit in 64 bits; perhaps its type is string", "n"),
        (3, f"{label} 2.0", "y"),
        (5, "number is too large or not finite", "a"),
        (6, "weight must be a finite number of at least 0, found -1.0", "w"),
        (7, "no features", ""),
    ]
    assert json.loads(decoded.rejected[2].raw)["y"] == 2.0
    assert decoded.batch.offsets.tolist() == [0, 4, 8]
    assert decoded.batch.labels == [True, None, False]
    assert decoded.batch.weight(2) == 1.0


@pytest.mark.parametrize("features", [None, {"a": "number"}])
def test_a_regression_has_finite_labels(features):
    """Infinity is no label; NaN is none, as null is."""
    rows = {"a": [1, 2, 3, 4], "y": [2.5, math.inf, None, math.nan]}
    decoded = decode(rows, task="regression", features=features)
    assert reasons(decoded) == [(1, "number is too large or not finite", "y")]
    assert decoded.batch.labels == [2.5, None, None]


@pytest.mark.parametrize("features", [None, {"a": "number"}])
def test_integer_labels_may_be_floats(features):
    """As pandas makes of integers where one is missing; one with a fraction costs its row."""
    rows = {"a": [1, 2, 3, 4], "y": [2.0, 0.5, None, -1.0]}
    decoded = decode(rows, task="multiclass", features=features)
    assert [fault[0] for fault in reasons(decoded)] == [1]
    assert repr(decoded.batch.labels) == "[2, None, -1]"


@pytest.mark.parametrize("features", [None, {"a": "number"}])
def test_a_table_without_the_labels_column_asks_for_predictions(features):
    """Every row of it."""
    decoded = decode({"a": [1, 2]}, features=features)
    assert decoded.batch.labels == [None, None]


def test_integers_beyond_2_53_are_what_json_makes_of_them():
    """Rounded in columns, themselves in dicts."""
    big = 2**53 + 1
    rows = {"a": [big, -big], "y": [1, 0]}
    line = json.dumps({"a": big, "y": 1}).encode()
    features = {"a": "number"}
    as_json = ColumnDecoder("binary", FLAT, features).decode(Block("p", line, 1, 1, 0, len(line)))
    ours = decode(rows, features=features).batch.columns.array
    assert ours[0, 0] == as_json.batch.columns.array[0, 0]
    assert decode(rows).batch.dicts() == [{"a": big}, {"a": -big}]


def test_roles_of_flat_columns():
    """Ids, times, keys, sources and groups, of the types that Arrow has for them."""
    rows = pa.table(
        {
            "a": [1.0, 2.0],
            "y": [1, 0],
            "tx": [11, None],
            "at": pa.array([1_500, None], pa.timestamp("ms")),
            "who": ["k", ""],
            "from": [True, None],
            "sex": pa.array(["m", None]).dictionary_encode(),
            "junk": [[1], [2]],
        }
    )
    fields = FieldMap(
        label="y", id="tx", time="at", key="who", source="from", group=["sex"], exclude=["junk"]
    )
    for features in (None, {"a": "number"}):
        batch, rejected = decode(rows, fields=fields, features=features)
        assert rejected == []
        assert batch.ids == ["11", "p-0-1"]
        assert batch.times == [1.5, None]
        assert list(batch.keys) == ["k", None]
        assert list(batch.sources) == ["true", None]
        assert batch.groups == [{"sex": "m"}, None]
        assert [event.y for event in batch] == [True, False]
        (second,) = batch[1:]
        assert (second.id, second.ts, second.key, second.x) == ("p-0-1", None, None, {"a": 2.0})


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([1, 2]), [1.0, 2.0]),
        (pa.array([1.5, math.nan]), [1.5, None]),
        (pa.array(["1970-01-01T00:00:01Z", None]), [1.0, None]),
        (pa.array([dt.date(1970, 1, 2), None]), [86_400.0, None]),
        (pa.array([86_400_000, None], pa.date64()), [86_400.0, None]),
        (pa.array([1_000_000, None], pa.timestamp("us", "Europe/Rome")), [1.0, None]),
    ],
    ids=str,
)
def test_times(times, expected):
    """Seconds, ISO 8601, timestamps and dates; UTC where there is no zone."""
    fields = FieldMap(label="y", time="t")
    batch, rejected = decode({"a": [1, 2], "y": [0, 1], "t": times}, fields=fields)
    assert rejected == []
    assert batch.times == expected


def test_a_time_that_is_none_costs_its_row():
    """With the same reason as in JSON."""
    fields = FieldMap(label="y", time="t")
    decoded = decode({"a": [1, 2], "y": [0, 1], "t": ["soon", None]}, fields=fields)
    assert reasons(decoded) == [(0, "time must be seconds or ISO 8601, found 'soon'", "t")]
    decoded = decode({"a": [1, 2], "y": [0, 1], "t": [math.inf, None]}, fields=fields)
    assert reasons(decoded) == [(0, "number is too large or not finite", "t")]


@pytest.mark.parametrize("features", [None, SCHEMA])
def test_own_form(features):
    """The features are a struct x; the rest as in JSON, so that the same events are the same."""
    events = [
        {"id": "e1", "x": {"a": 1.0, "b": 2.0, "city": "Rome"}, "y": True, "ts": 1.0,
         "key": "k", "weight": 2.0, "source": "s", "group": {"sex": "f"}},
        {"id": None, "x": {"a": None, "b": 3.5, "city": None}, "y": None, "ts": None,
         "key": None, "weight": None, "source": None, "group": None},
    ]  # fmt: skip
    table = pa.Table.from_pylist(events)
    batch, rejected = decode(table, fields=None, features=features)
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    block = Block("p-0", lines, 0, 2, 0, len(lines))
    expected = JsonDecoder("binary").decode(block).batch
    assert rejected == []
    assert list(batch) == list(expected)
    bad = [*events, {**events[0], "x": {"a": math.inf}}, {**events[0], "x": None}]
    decoded = decode(pa.Table.from_pylist(bad, table.schema), fields=None, features=features)
    assert reasons(decoded) == [
        (2, "number is too large or not finite", "$.x.a"),
        (3, "no features", ""),
    ]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1], "y": [1]}, {"fields": None}, "no column 'x', a struct of the features; its"),
        ({"x": [1]}, {"fields": None}, "column 'x', the features, is int64; needed: a struct"),
        ({"x": [{"a": 1}], "z": [1]}, {"fields": None}, "column 'z' is none of our own form"),
        ({"x": [{"a": 1}], "id": [1]}, {"fields": None}, "column '$.id', the id, is int64; needed"),
        (
            {"a": [1]},
            {"fields": FieldMap(label="a", time="t")},
            "no column 't', which [input.field",
        ),
        ({"y": [1]}, {}, "no column is a feature"),
        ({"a": [[1]], "y": [1]}, {}, "column 'a', a feature, is list<"),
        ({"a": [{"b": 1}], "y": [1]}, {}, "column 'a', a feature, is struct<"),
        ({"a": [b"1"], "y": [1]}, {}, "column 'a', a feature, is binary; needed: integers, floa"),
        ({"a": [dt.datetime(2020, 1, 1)], "y": [1]}, {}, "column 'a', a feature, is timestamp[us]"),
        ({"a": pa.array([1], pa.decimal128(9, 2)), "y": [1]}, {}, "a feature, is decimal128(9, 2)"),
        ({"a": [1], "y": ["yes"]}, {}, "column 'y', the label of task binary, is string; needed"),
        ({"a": [1], "y": [True]}, {"task": "regression"}, "label of task regression, is bool"),
        ({"a": ["1"], "y": [1]}, {"features": SCHEMA}, "'a', a number in [features], is string"),
        ({"city": [0.5], "y": [1]}, {"features": SCHEMA}, "'city', a category in [features], is d"),
        ({"c": [0.5], "y": [1]}, {"features": SCHEMA}, "column 'c' (double) is not in [features],"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused_as_a_whole(columns, options, message):
    """In one line that names the column, what it is and what is allowed; no row is read."""
    assert message in refusal(columns, **options)
    decoder = TableDecoder(
        options.get("task", "binary"), options.get("fields", FLAT), options.get("features")
    )
    batch, (rejected,) = decoder.decode_message(message_of(columns), partition="p", offset=5)
    assert len(batch) == 0
    assert message in rejected.reason
    assert rejected.origin == ("p", 0, 5)


def message_of(columns) -> bytes:
    return message(pa.table(columns))


def test_metadata_of_a_schema_means_nothing():
    """As pandas writes it."""
    columns = {"a": [1.0], "y": [True]}
    for metadata in (None, {"pandas": "{}"}, {"other": "x"}):
        table = pa.table(columns).replace_schema_metadata(metadata)
        assert decode(table).batch.dicts() == [{"a": 1.0}]


def test_columns_that_occur_twice_are_refused():
    """Which of them would it be?"""
    table = pa.Table.from_arrays([pa.array([1])] * 3, ["a", "a", "y"])
    assert refusal(table) == "column 'a' occurs twice"


def test_types_of_the_config_are_kept():
    """What is no number is a string where the config says so, and the other way round."""
    fields = FieldMap(label="y", types={"zip": "string", "n": "number", "y": "string"})
    rows = {"zip": [7, None], "n": ["1.5", "x"], "y": [0.5, 1.5]}
    decoded = decode(rows, fields=fields, task="multiclass")
    assert decoded.batch.dicts() == [{"zip": "7", "n": 1.5}]
    assert decoded.batch.labels == ["0.5"]
    assert reasons(decoded) == [(1, "expected a number, found 'x'", "n")]


def test_chosen_features_and_what_pandas_adds():
    """Only what `features` names is read; an index of pandas is no column."""
    fields = FieldMap(label="y", features=["b"])
    batch, _ = decode({"a": [[1]], "b": [2], "y": [1]}, fields=fields)
    assert batch.dicts() == [{"b": 2}]
    batch, _ = decode({"a": [1], "y": [1], "__index_level_0__": [5]})
    assert batch.dicts() == [{"a": 1}]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("features", [None, {"a": "number"}])
def test_a_column_of_nulls_has_no_type_and_fits_all(task, features):
    """Labels that are all null make unlabelled events."""
    rows = pa.table({"a": [1, 2], "y": pa.nulls(2)})
    batch, rejected = decode(rows, task=task, features=features)
    assert rejected == []
    assert batch.labels == [None, None]
    assert batch.labelled == 0
    rows = pa.table({"a": pa.nulls(1), "y": pa.nulls(1)})
    assert reasons(decode(rows, task=task, features=features)) == [(0, "no features", "")]


def test_multiclass_labels():
    """Strings, also as a dictionary; an empty one is no label."""
    for y in (pa.array(["u", "", None]), pa.array(["u", "", None]).dictionary_encode()):
        for features in (None, {"a": "number"}):
            batch, _ = decode({"a": [1, 2, 3], "y": y}, task="multiclass", features=features)
            assert batch.labels == ["u", None, None]


def test_labels_are_an_array_beside_columns():
    """So that no object is made for an event."""
    batch, _ = decode({"a": [1.0, 2.0], "y": [True, None]}, features={"a": "number"})
    assert isinstance(batch.targets, Targets)
    assert batch.targets.binary
    np.testing.assert_array_equal(batch.targets.values, [1.0, math.nan])


def test_a_message_without_rows():
    """Is no event, and nothing is wrong."""
    table = pa.schema({"a": pa.float64(), "y": pa.bool_()}).empty_table()
    for features in (None, {"a": "number"}):
        batch, rejected = decode(table, features=features)
        assert (len(batch), rejected) == (0, [])


def test_a_message_of_several_record_batches():
    """Is all its rows, in order."""
    table = pa.table({"a": list(range(10)), "c": list("abcdefghij"), "y": [True] * 10})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for i in range(0, 10, 3):
            writer.write(table.slice(i, 3))
    data = sink.getvalue().to_pybytes()
    batch, _ = TableDecoder("binary", FLAT).decode_message(data, partition="t", index=2, offset=100)
    assert [x["a"] for x in batch.dicts()] == list(range(10))
    assert batch.ids[:2] == ["t-2-100-0", "t-2-100-1"]
    assert batch.origins == [("t", 2, 100)] * 10
    assert [event.id for event in batch[8:]] == batch.ids[8:] == ["t-2-100-8", "t-2-100-9"]


def test_rejected_rows_of_a_message_are_told_apart():
    """All have its offset; the row is in the path, and the ids of the others do not move."""
    columns = {"a": [1.0, 2.0, float("inf"), 4.0], "c": list("uvwx"), "y": [1, 7, 0, 1]}
    batch, rejected = TableDecoder("binary", FLAT).decode_message(
        message_of(columns), partition="t", index=2, offset=100
    )
    assert batch.ids == ["t-2-100-0", "t-2-100-3"]
    assert [(r.origin, r.path) for r in rejected] == [
        (("t", 2, 100), "row 1: y"),
        (("t", 2, 100), "row 2: a"),
    ]


def test_a_message_cut_anywhere_is_one_rejection():
    """Never half of its rows."""
    data = message_of({"a": [1.0, 2.0], "c": ["u", "v"], "y": [True, False]})
    decoder = TableDecoder("binary", FLAT)
    for end in range(len(data)):
        batch, rejected = decoder.decode_message(data[:end], partition="t", index=1, offset=7)
        assert len(batch) == 0, end
        (one,) = rejected
        assert one.origin == ("t", 1, 7)
        assert one.reason.startswith("no Arrow message: ")
        assert "\n" not in one.reason


def test_a_message_with_flipped_bits_is_a_value_too():
    """Whatever it then says, there is an answer; in the data of numbers nothing can tell."""
    rng = np.random.default_rng(5)
    rows = {"a": [1.0, 2.0, None], "c": ["u", None, "vw"], "y": [True, False, True]}
    table = pa.table(rows)
    table = table.append_column("d", pa.array(["p", "q", "p"]).dictionary_encode())
    data = message(table)
    decoder = TableDecoder("binary", FLAT)
    for _ in range(3_000):
        damaged = bytearray(data)
        for bit in rng.integers(0, 8 * len(data), rng.integers(1, 4)).tolist():
            damaged[bit // 8] ^= 1 << bit % 8
        batch, rejected = decoder.decode_message(bytes(damaged))
        list(batch)  # whatever is there can be read
        assert len(batch) + len(rejected) <= 4


@pytest.mark.parametrize("offsets", [[], [-1, 2], [0, 7], [0, 4, 2], [0, 2**40, 6]], ids=str)
def test_offsets_beyond_the_letters_have_no_fingerprint(offsets):
    """They are refused: nothing is read from there."""
    data = np.zeros(6, np.uint8)
    data.flags.writeable = False
    given = np.array(offsets, np.int64)
    given.flags.writeable = False
    with pytest.raises(ValueError, match="text"):
        fingerprint._of_texts(given, data)
