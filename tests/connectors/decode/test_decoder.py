"""Bytes to batches and back, and every kind of bad input."""

import gc
import json
import math
import random
import sys

import msgspec
import numpy as np
import pytest
from river import linear_model, optim

from midstream.connectors.decode.column_decoder import ColumnDecoder
from midstream.connectors.decode.csv_decoder import CsvDecoder
from midstream.connectors.decode.decoder import make_decoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.decode.json_decoder import JsonDecoder
from midstream.connectors.decode.notation import Notation
from midstream.connectors.encode.outputs import encode_alarms, encode_predictions, encode_rejected
from midstream.connectors.input import Block, InputError
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.columns import Texts
from midstream.engine.events.event import Alarm, Event, Rejected
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.learner import RiverLearner

FLAT = FieldMap(id="tx_id", label="is_fraud", time="created_at")


def block(*lines: bytes, first: int = 1) -> Block:
    data = b"\n".join(lines) + b"\n"
    return Block("p.jsonl", data, first, data.count(b"\n"), 0, len(data))


def own(*lines: bytes, task="binary"):
    return JsonDecoder(task).decode(block(*lines))


def flat(*lines: bytes, task="binary", fields=FLAT):
    return JsonDecoder(task, fields).decode(block(*lines))


def table(header: str, *lines: bytes, task="binary", **fields):
    return CsvDecoder(header.split(","), task, FieldMap(**fields)).decode(block(*lines))


def typed(values):
    """Values that can be compared with their types and bits: 1, 1.0 and True are equal."""
    return repr(values)


def the_fault(decoded) -> tuple[str, str]:
    """The reason and path of the one rejection; nothing was accepted."""
    assert len(decoded.batch) == 0, list(decoded.batch)
    (rejected,) = decoded.rejected
    return rejected.reason, rejected.path


# Our own form --------------------------------------------------------------------------------


def test_an_event_in_our_own_form_has_all_its_fields():
    """Every field of the wire form arrives in its column, with its type."""
    decoded = own(
        b'{"id":"a","x":{"n":1,"f":1.0,"s":"t","b":true},"y":true,"ts":1.5,"key":"k",'
        b'"weight":2,"source":"s","group":{"sex":"f"}}'
    )
    (event,) = decoded.batch
    assert typed(event.x) == typed({"n": 1, "f": 1.0, "s": "t", "b": True})
    assert (event.id, event.y, event.ts, event.key) == ("a", True, 1.5, "k")
    assert typed(event.weight) == "2.0"
    assert (event.source, event.group) == ("s", {"sex": "f"})
    assert decoded.rejected == []


def test_only_features_have_to_be_there():
    """Fields that no event has are no columns; the id is then the origin."""
    decoded = own(b'{"x":{"a":1}}', b'{"x":{"a":2}}')
    batch = decoded.batch
    assert batch.labels == [None, None]
    assert batch.ids == ["p.jsonl-1", "p.jsonl-2"]
    assert batch.origins == [("p.jsonl", 0, 1), ("p.jsonl", 0, 2)]
    assert batch.times is batch.weights is batch.keys is batch.sources is batch.groups is None


def test_null_is_an_absent_field_and_a_missing_feature():
    """Null stands for what is not there, in the fields as in the features."""
    decoded = own(
        b'{"id":null,"x":{"a":1,"b":null},"y":null,"ts":null,"key":null,"weight":null,'
        b'"source":null,"group":null}',
        b'{"id":"i","x":{"a":2,"b":3},"y":true,"ts":4,"key":"k","weight":5,"source":"s",'
        b'"group":{"g":"h"}}',
        b'{"x":{"a":6}}',
    )
    events = list(decoded.batch)
    assert [e.x for e in events] == [{"a": 1}, {"a": 2, "b": 3}, {"a": 6}]
    assert [e.id for e in events] == ["p.jsonl-1", "i", "p.jsonl-3"]
    assert [e.y for e in events] == [None, True, None]
    assert typed([e.ts for e in events]) == "[None, 4.0, None]"
    assert typed([e.weight for e in events]) == "[1.0, 5.0, 1.0]"
    assert [e.group for e in events] == [None, {"g": "h"}, None]


def test_blank_lines_are_no_events():
    """Whitespace is skipped without a word, and lines are counted on."""
    decoded = own(b"", b'{"x":{"a":1}}', b" \t\r", b"\x0b", b'{"x":{"a":2}}\r', b"")
    assert decoded.batch.offsets.tolist() == [2, 5]
    assert decoded.rejected == []


def test_an_empty_block_is_an_empty_batch():
    """No data is no event and no error."""
    for decoder in (JsonDecoder("binary"), CsvDecoder(["a"], "binary", FieldMap())):
        decoded = decoder.decode(Block("p", b"", 7, 0, 0, 0))
        assert (len(decoded.batch), decoded.rejected) == (0, [])


def test_numbers_keep_their_type_and_their_bits():
    """Integers stay integers, floats are read as Python reads them, and minus zero stays."""
    rng = random.Random(1)
    texts = ["0", "-0", "-0.0", "1e5", "1E-7", str(2**63 - 1), str(-(2**63)), "5e-324", "1e-400"]
    texts += [repr(rng.uniform(-1, 1) * 10 ** rng.randrange(-300, 300)) for _ in range(2000)]
    texts += [f"{rng.random():.{rng.randrange(1, 40)}f}" for _ in range(2000)]
    decoded = own(*[b'{"x":{"a":%s}}' % t.encode() for t in texts])
    assert typed([x["a"] for x in decoded.batch.dicts()]) == typed([json.loads(t) for t in texts])


def test_text_may_hold_what_looks_like_structure():
    """Braces, colons and quotes inside of text are text, in a block as in a line."""
    lines = [
        b'{"x":{"a":"}{ \\": : \\\\"},"id":"\\"x\\":"}',
        b'{"x":{":a":":b","c\\":":1, "d" : "} {"}}',
    ]
    decoded = own(*lines * 3)
    assert decoded.rejected == []
    assert decoded.batch.dicts()[:2] == [
        {"a": '}{ ": : \\'},
        {":a": ":b", 'c":': 1, "d": "} {"},
    ]


@pytest.mark.parametrize(
    ("line", "reason", "path"),
    [
        (b"nonsense", "invalid JSON: expecting value at character 1", ""),
        (b'{"x":{"a":1}', "invalid JSON: expecting ',' delimiter at character 13", ""),
        (b'{"x":{"a":1},}', "invalid JSON: ", ""),
        (b'{"x":{"a":01}}', "invalid JSON: ", ""),
        (b'{"x":{"a":1}} {"x":{"a":2}}', "more than one value on the line: another begins at", ""),
        (b'{"x":{"a":1}}{"x":{"a":2}}', "more than one value on the line", ""),
        (b'{"x":{"a":1}}\x00', "more than one value on the line", ""),
        (b'{"x":{"a":"\x01"}}', "invalid JSON: invalid control character at character 12", ""),
        (b'{"x":{"a":1},"x":{"b":2}}', "duplicate key 'x'", ""),
        (b'{"x":{"a":1,"b":2,"a":1}}', "duplicate key 'a'", ""),
        (b'{"x":{"a":1,"\\u0061":1}}', "duplicate key 'a'", ""),
        (b'{"x":{"a":1},"group":{"g":"a","g":"a"}}', "duplicate key 'g'", ""),
        (b'{"x":{"a":1},"id":"a","id":"b","y":true}', "duplicate key 'id'", ""),
        (b'{"x" : {"a" :1,"a": 1}}', "duplicate key 'a'", ""),
        (b'{"x":{"a" :1,"a":1}}', "duplicate key 'a'", ""),
        (b'{"x":{"a":":","a":1}}', "duplicate key 'a'", ""),
        (b'{"x":{"a":"\xff"}}', "invalid UTF-8 at byte 12", ""),
        (b"\x00\x01\x02\xfe\xff", "invalid UTF-8 at byte 4", ""),
        (b'{"x":{"a":"\\ud800"}}', "half a character in a string (a lone surrogate)", ""),
        (b'{"x":{"a":"\\udc00\\ud800"}}', "half a character in a string", ""),
        (b'{"x":{"\\ud800":1}}', "half a character in a string", ""),
        (b'{"x":{"a":"\xed\xa0\x80"}}', "invalid UTF-8 at byte 12", ""),
        (b"\xef\xbb\xbf{}", "invalid JSON: ", ""),
        (b"{}", "missing required field 'x'", "$.x"),
        (b'{"y":true}', "missing required field 'x'", "$.x"),
        (b"[]", "expected object, got array", ""),
        (b'"text"', "expected object, got string", ""),
        (b"1", "expected object, got number", ""),
        (b"null", "expected object, got null", ""),
        (b"true", "expected object, got bool", ""),
        (b'{"x":[1]}', "expected object, got array", "$.x"),
        (b'{"x":null}', "expected object, got null", "$.x"),
        (b'{"x":{}}', "no features", ""),
        (b'{"x":{"a":null}}', "no features", ""),
        (b'{"x":{"a":1},"z":1}', "unknown field 'z'", "$.z"),
        (b'{"x":{"a":1},"a b":1}', "unknown field 'a b'", '$["a b"]'),
        (b'{"x":{"a":1,"age":[1]}}', "expected number, string, bool or null, got array", "$.x.age"),
        (b'{"x":{"a":1,"b c":{}}}', "expected number, string, bool or null, got obj", '$.x["b c"]'),
        (b'{"x":{"a":1,"b":1e400}}', "number is too large or not finite", "$.x.b"),
        (b'{"x":{"a":NaN}}', "no features", ""),
        (b'{"x":{"a":NaN,"b":Infinity}}', "number is too large or not finite", "$.x.b"),
        (b'{"x":{"a":-NaN}}', "invalid JSON", ""),
        (b'{"x":{"a":-Infinity}}', "number is too large or not finite", "$.x.a"),
        (b'{"x":{"a":9223372036854775808}}', "integer does not fit in 64 bits", "$.x.a"),
        (b'{"x":{"a":-9223372036854775809}}', "integer does not fit in 64 bits", "$.x.a"),
        (b'{"x":{"a":' + b"9" * 5000 + b"}}", "number is too large or not finite", "$.x.a"),
        (b'{"x":{"a":1},"id":7}', "expected string, got number", "$.id"),
        (b'{"x":{"a":1},"key":["k"]}', "expected string, got array", "$.key"),
        (b'{"x":{"a":1},"source":true}', "expected string, got bool", "$.source"),
        (b'{"x":{"a":1},"ts":"2024"}', "expected number, got string", "$.ts"),
        (b'{"x":{"a":1},"ts":true}', "expected number, got bool", "$.ts"),
        (b'{"x":{"a":1},"ts":1e999}', "number is too large or not finite", "$.ts"),
        (b'{"x":{"a":1},"ts":' + b"9" * 399 + b"}", "number is too large or not", "$.ts"),
        (b'{"x":{"a":1},"weight":-1}', "weight must be a finite number of at least 0,", "$.weight"),
        (b'{"x":{"a":1},"weight":true}', "expected number, got bool", "$.weight"),
        (b'{"x":{"a":1},"weight":"1"}', "expected number, got string", "$.weight"),
        (b'{"x":{"a":1},"group":["g"]}', "expected object, got array", "$.group"),
        (b'{"x":{"a":1},"group":{"g":1}}', "expected string, got number", "$.group.g"),
        (b'{"x":{"a":1},"group":{"g":null}}', "expected string, got null", "$.group.g"),
        (b'{"x":{"a":1},"y":[]}', "expected number, string, bool or null, got array", "$.y"),
        (b'{"x":{"a":1},"y":1e999}', "number is too large or not finite", "$.y"),
        (b'{"x":{"a":1},"y":"maybe"}',
         "label must be true/false or 0/1 for task binary, found 'maybe'", "$.y"),
        (b"[" * 40 + b'"' + b'\\"' * 400_000 + b"\\", "nested more than 32 levels deep", ""),
        (b"[" * 100_000, "nested more than 32 levels deep", ""),
        (b'{"x":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "nested more than 32 levels", ""),
        (b'{"x":' + b'{"a":' * 33 + b"1" + b"}" * 34, "nested more than 32 levels deep", ""),
        (b'{"x":{"a":1},"z":' + b'{"a":[' * 40_000, "nested more than 32 levels deep", ""),
    ],
)  # fmt: skip
def test_what_is_not_exactly_an_event_is_rejected(line, reason, path):
    """Each kind of bad line is rejected, with its reason and place, alone or among good ones."""
    good = b'{"x":{"a":1}}'
    for decoded, at in ((own(line), 1), (own(good, line, good), 2)):
        (rejected,) = decoded.rejected
        assert rejected.reason.startswith(reason)
        assert rejected.path == path
        assert rejected.origin == ("p.jsonl", 0, at)
        assert rejected.ts is None
        assert 1 in decoded.batch.offsets or at == 1
        assert at not in decoded.batch.offsets
        assert len(decoded.batch) == at - 1 + (at == 2)
        assert "\n" not in rejected.reason


def test_one_value_over_two_lines_is_two_bad_lines():
    """Lines that only together are an event are not one, whatever surrounds them."""
    good = b'{"x":{"a":1}}'
    for lines in (
        (b'{"x":', b'{"a":1}}'),
        (b'{"x":{"a":1}', b'}{"x":{"a":1}}'),
        (good + b'{"x":', b'{"a":1}}'),
    ):
        decoded = own(good, *lines, good)
        assert [r.origin[2] for r in decoded.rejected] == [2, 3]
        assert decoded.batch.offsets.tolist() == [1, 4]


def test_two_values_beside_a_blank_line_are_still_two():
    """As many values as lines are not enough: two may share a line while another is blank."""
    good = b'{"x":{"a":1}}'
    for lines in ((good + good, b""), (b"", good + good), (good + b"\r" + good, b" ")):
        decoded = own(*lines)
        assert len(decoded.batch) == 0
        assert len(decoded.rejected) == 1


def test_a_bad_line_leaves_its_block_alone():
    """Only the bad lines are rejected; the others come in order with their lines."""
    lines = [b'{"x":{"a":%d},"y":%d}' % (i, i % 2) for i in range(100)]
    for i in (0, 17, 50, 99):
        lines[i] = lines[i][:-1]
    lines[30] = b'{"x":{"a":1},"y":3}'
    decoded = own(*lines)
    assert [r.origin[2] for r in decoded.rejected] == [1, 18, 31, 51, 100]
    kept = [i for i in range(100) if i not in (0, 17, 30, 50, 99)]
    assert decoded.batch.offsets.tolist() == [i + 1 for i in kept]
    assert decoded.batch.labels == [bool(i % 2) for i in kept]
    assert [x["a"] for x in decoded.batch.dicts()] == kept


def test_nesting_is_judged_alike_at_any_depth_of_the_stack():
    """A line's verdict doesn't depend on how deep in the stack it is decoded."""
    line = b'{"is_fraud":1,"tx_id":"a","a":1,"deep":' + b"[" * 31 + b"]" * 31 + b"}"
    deeper = line.replace(b"[[", b"[[[", 1).replace(b"]]", b"]]]", 1)
    fields = FieldMap(id="tx_id", label="is_fraud", exclude=["deep"])

    def at_depth(n: int):
        if n:
            return at_depth(n - 1)
        return [len(flat(x, fields=fields).batch) for x in (line, deeper)]

    assert at_depth(0) == at_depth(sys.getrecursionlimit() - 300) == [1, 0]


def test_what_was_rejected_is_shown_and_bounded():
    """`raw` is at most 1,024 characters of the line; what is no text is escaped."""
    assert own(b"\xffa\n"[:-1] + b"\r").rejected[0].raw == "\\xffa"
    assert own(b"\x00\xc3\xa9").rejected[0].raw == "\x00é"
    long = own(b"\xf0\x9f\x98\x80" * 5000).rejected[0].raw
    assert long == "\N{GRINNING FACE}" * 1024
    assert len(own(b"\xff" * 5000).rejected[0].raw) == 1024


def test_reasons_and_paths_are_short():
    """A name of any length in a bad line is cut in the reason and the path."""
    name = b"k" * 50_000
    for line in (
        b'{"x":{"%s":[]}}' % name,
        b'{"x":{"a":1},"%s":1}' % name,
        b'{"x":{"%s":1,"%s":1}}' % (name, name),
        b'{"x":{"a":1},"y":"%s"}' % name,
    ):
        for decoded in (own(line), flat(line)):
            reason, path = the_fault(decoded)
            assert len(reason) + len(path) < 300


@pytest.mark.parametrize(
    "decoder", [JsonDecoder("binary"), CsvDecoder(["a"], "binary", FieldMap())]
)
def test_an_over_long_record_is_rejected_with_its_length(decoder):
    """The reason has the true length and the limit."""
    decoded = decoder.decode(
        Block("p", b"x" * 1024, 3, 1, 0, 5_000_001, oversize=5_000_000, limit=1_048_576)
    )
    assert the_fault(decoded) == ("record of 5,000,000 bytes; the limit is 1,048,576", "")
    assert decoded.rejected[0].origin == ("p", 0, 3)
    assert decoded.rejected[0].raw == "x" * 1024


# Labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "text", "label"),
    [
        ("binary", "true", True),
        ("binary", "false", False),
        ("binary", "1", True),
        ("binary", "0", False),
        ("binary", "1.0", True),
        ("binary", "-0.0", False),
        ("multiclass", '"a"', "a"),
        ("multiclass", "3", 3),
        ("multiclass", "3.0", 3),
        ("multiclass", "true", True),
        ("regression", "3", 3),
        ("regression", "-2.5", -2.5),
        ("regression", "null", None),
    ],
)
def test_labels_are_of_the_tasks_type(task, text, label):
    """A binary label is a bool, a class is kept as it is, a number keeps its type."""
    for extra in (b"", b',"meta":[1]'):
        flat_line = b'{"y":%s,"a":1%s}' % (text.encode(), extra)
        fields = FieldMap(label="y", exclude=["meta"])
        got = flat(flat_line, task=task, fields=fields).batch.labels
        assert typed(got) == typed([label])
    assert typed(own(b'{"x":{"a":1},"y":%s}' % text.encode(), task=task).batch.labels) == typed(
        [label]
    )


@pytest.mark.parametrize(
    ("task", "text", "reason"),
    [
        ("binary", '"true"', "label must be true/false or 0/1 for task binary, found 'true'"),
        ("binary", "2", "label must be true/false or 0/1 for task binary, found 2"),
        ("binary", "0.5", "label must be true/false or 0/1 for task binary, found 0.5"),
        ("multiclass", "1.5", "label must be a string (not empty), an integer or true/false for "
         "task multiclass, found 1.5"),
        ("regression", "true", "label must be a finite number for task regression, found true"),
        ("regression", '"3"', "label must be a finite number for task regression, found '3'"),
    ],
)  # fmt: skip
def test_other_labels_are_rejected(task, text, reason):
    """A label of another type says what it had to be and what was found."""
    good = {"binary": b"true", "multiclass": b'"a"', "regression": b"1"}[task]
    for decode, shape, path in (
        (own, b'{"x":{"a":1},"y":%s}', "$.y"),
        (flat, b'{"is_fraud":%s,"tx_id":"i","a":1}', "is_fraud"),
    ):
        assert the_fault(decode(shape % text.encode(), task=task)) == (reason, path)
        mixed = decode(shape % good, shape % text.encode(), shape % good, task=task)
        assert mixed.batch.offsets.tolist() == [1, 3]
        assert mixed.rejected[0].reason == reason


def test_an_empty_label_asks_for_a_prediction():
    """Null and empty text are no label in flat records; in our own form only null is."""
    for task in ("binary", "multiclass", "regression"):
        decoded = flat(b'{"is_fraud":null,"a":1}', b'{"is_fraud":"","a":1}', task=task)
        assert decoded.batch.labels == [None, None]
        assert table("is_fraud,a", b",1", b" ,1", label="is_fraud", task=task).batch.labels == [
            None, None,
        ]  # fmt: skip
        assert the_fault(own(b'{"x":{"a":1},"y":""}', task=task))[1] == "$.y"


def test_an_event_without_the_labels_field_asks_for_a_prediction():
    """Whatever else is in it, and whether others of the block have the field."""
    fields = FieldMap(label="is_fraud", exclude=["meta"])
    lines = [b'{"tx_id":"i","a":1}', b'{"tx_id":"i","a":1,"meta":{}}', b'{"is_fraud":1,"a":2}']
    assert flat(*lines, fields=fields).batch.labels == [None, None, True]
    schema = {"a": "number", "tx_id": "category"}
    data = b"\n".join([lines[0], lines[2], b""])
    decoder = ColumnDecoder("binary", fields, schema)
    for part, labels in ((data, [None, True]), (lines[0], [None])):
        found = decoder.decode(Block("p.jsonl", part, 1, part.count(b"\n"), 0, len(part)))
        assert found.batch.labels == labels
    assert table("a,b", b"1,2", label="is_fraud").batch.labels == [None]


# Flat JSON -----------------------------------------------------------------------------------


def test_flat_fields_become_columns():
    """Fields with a meaning are taken out, the rest are features, in the record's order."""
    fields = FieldMap(
        id="tx", label="y", time="at", key="card", weight="w", source="shop", group=["sex", "age"],
        exclude=["secret"],
    )  # fmt: skip
    decoded = flat(
        b'{"b":1,"tx":"i","y":1,"at":5,"card":"c","w":2,"shop":"s","sex":"f","age":30,"secret":0,'
        b'"a":true}',
        b'{"a":"x","tx":12345678901234567890,"y":0,"secret":{"n":[1,{"m":2}]},"age":true}',
        fields=fields,
    )
    assert decoded.rejected == []
    one, two = decoded.batch
    assert list(one.x.items()) == [("b", 1), ("a", True)]
    assert (one.id, one.y, one.ts, one.key, one.weight, one.source) == (
        "i", True, 5.0, "c", 2.0, "s",
    )  # fmt: skip
    assert one.group == {"sex": "f", "age": "30"}
    assert (two.x, two.id, two.y, two.ts, two.key) == (
        {"a": "x"}, "12345678901234567890", False, None, None,
    )  # fmt: skip
    assert (two.weight, two.source, two.group) == (1.0, None, {"age": "true"})


def test_a_list_of_features_takes_only_these():
    """Other fields are not features, whatever they hold; a role may be a feature as well."""
    fields = FieldMap(label="y", group=["sex"], key="k", features=["a", "sex", "z"])
    decoded = flat(
        b'{"y":1,"b":2,"sex":"f","a":null,"k":"v"}',
        b'{"y":1,"b":{"deep":[]},"sex":"m","a":3,"k":1}',
        b'{"y":1,"b":99999999999999999999,"sex":true,"a":4}',
        fields=fields,
    )
    assert decoded.rejected == []
    assert typed(decoded.batch.dicts()) == typed(
        [{"sex": "f"}, {"sex": "m", "a": 3}, {"sex": True, "a": 4}]
    )
    assert decoded.batch.groups == [{"sex": "f"}, {"sex": "m"}, {"sex": "true"}]
    assert decoded.batch.keys == ["v", "1", None]


def test_one_field_may_have_two_meanings():
    """The same field can be key and group."""
    fields = FieldMap(label="y", key="k", group=["k"])
    (event,) = flat(b'{"y":1,"k":7,"a":1}', fields=fields).batch
    assert (event.key, event.group, event.x) == ("7", {"k": "7"}, {"a": 1})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1700000000", 1.7e9),
        ("1700000000.25", 1700000000.25),
        ('"1700000000.25"', 1700000000.25),
        ('" 12e3 "', 12000.0),
        ('"2024-01-02"', 1704153600.0),
        ('"2024-01-02T03:04:05"', 1704164645.0),
        ('"2024-01-02 03:04:05.5"', 1704164645.5),
        ('"2024-01-02T03:04:05Z"', 1704164645.0),
        ('"2024-01-02T03:04:05+02:00"', 1704157445.0),
        ('"20240102T030405"', 1704164645.0),
        ('"1969-12-31T23:59:59Z"', -1.0),
        ("null", None),
        ('""', None),
        ('" "', None),
        ('"nan"', None),
    ],
)
def test_times_are_seconds_or_iso_8601(text, seconds):
    """Numbers, numbers as text and ISO 8601 are times; without a zone it is UTC."""
    batch = flat(b'{"is_fraud":1,"a":1,"created_at":%s}' % text.encode()).batch
    assert typed(batch.time(0)) == typed(seconds)


@pytest.mark.parametrize(
    ("fields", "line", "reason", "path"),
    [
        ({"time": "t"}, b'{"y":1,"a":1,"t":"soon"}', "time must be seconds or ISO 8601", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":"1e999"}', "number is too large or not finite", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":1e20}', "time is too large a number", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":"20240102"}', "time 20240102 may be a date or a", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":20240102030405}', "time 20240102030405 may be", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":"1_0"}', "time must be seconds or ISO 8601", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":"2024-13-01"}', "time must be seconds", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":true}', "time must be seconds or ISO 8601", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":[1]}', "time must be seconds or ISO 8601", "t"),
        ({"time": "t"}, b'{"y":1,"a":1,"t":' + b"9" * 350 + b"}", "number is too large or", "t"),
        ({"id": "i"}, b'{"y":1,"a":1,"i":1.5}', "id must be a string or an integer", "i"),
        ({"id": "i"}, b'{"y":1,"a":1,"i":true}', "id must be a string or an integer", "i"),
        ({"id": "i"}, b'{"y":1,"a":1,"i":{}}', "id must be a string or an integer", "i"),
        ({"weight": "w"}, b'{"y":1,"a":1,"w":-0.5}', "weight must be a finite number of", "w"),
        ({"weight": "w"}, b'{"y":1,"a":1,"w":true}', "weight must be a finite number", "w"),
        ({"weight": "w"}, b'{"y":1,"a":1,"w":"1"}', "weight must be a finite number", "w"),
        ({"weight": "w"}, b'{"y":1,"a":1,"w":' + b"9" * 350 + b"}", "number is too large or", "w"),
        ({"key": "k"}, b'{"y":1,"a":1,"k":[1]}', "expected string, got array", "k"),
        ({"group": ["g"]}, b'{"y":1,"a":1,"g":{}}', "expected string, got object", "g"),
        ({}, b'{"y":1,"a":{"b":1}}', "expected number, string, bool or null, got object", "a"),
        ({}, b'{"y":1,"a":[]}', "expected number, string, bool or null, got array", "a"),
        ({}, b'{"y":1,"a":99999999999999999999}', "integer does not fit in 64 bits", "a"),
        ({}, b'{"y":99999999999999999999,"a":1}', "integer does not fit in 64 bits", "y"),
        ({}, b'{"y":1,"a":1e400}', "number is too large or not finite", "a"),
        ({"exclude": ["b"]}, b'{"y":1,"a":1,"b":{"c":[1e400]}}', "number is too large", "b.c.0"),
        ({"exclude": ["b"]}, b'{"y":1,"a":1,"b":{"c":1,"c":1}}', "duplicate key 'c'", ""),
        ({"exclude": ["b"]}, b'{"y":1,"a":1,"b":[],"a":1}', "duplicate key 'a'", ""),
        ({"exclude": ["b"]}, b'{"y":1,"a":1,"b":' + b"[" * 99999, "nested more than 32 levels", ""),
        ({}, b'{"y":1,"a":1,"a":1}', "duplicate key 'a'", ""),
        ({}, b'{"y":1}', "no features", ""),
        ({}, b'{"y":1,"a":null}', "no features", ""),
        ({"features": ["b"]}, b'{"y":1,"a":1}', "no features", ""),
        ({}, b"{}", "no features", ""),
        ({}, b"[1]", "expected object, got array", ""),
        ({}, b'{"y":1,"a":1}{"y":1,"a":1}', "more than one value on the line", ""),
        ({}, b'{"y":1,"a":"\xff"}', "invalid UTF-8 at byte 13", ""),
    ],
)  # fmt: skip
def test_flat_records_that_break_a_rule_are_rejected(fields, line, reason, path):
    """A rejected record names its field, alone or among good ones."""
    fields = FieldMap(label="y", **fields)
    good = b'{"y":1,"a":1,"b":2}'
    for decoded in (flat(line, fields=fields), flat(good, line, good, fields=fields)):
        (rejected,) = decoded.rejected
        assert rejected.reason.startswith(reason)
        assert rejected.path == path


def test_types_force_a_field():
    """A forced field of flat JSON has its type however it was written."""
    types = {"zip": "string", "n": "number", "b": "bool", "y": "number", "gone": "bool"}
    fields = FieldMap(label="y", types=types)
    decoded = flat(
        b'{"y":"1","zip":12345678901234567890,"n":"07","b":1}',
        b'{"y":"0","zip":true,"n":2.5,"b":"TRUE"}',
        b'{"y":null,"zip":"007","n":" ","b":null}',
        b'{"y":1,"zip":1.5,"n":"x","b":1}',
        b'{"y":1,"zip":1.5,"n":true,"b":1}',
        b'{"y":"x","zip":1.5,"n":1,"b":1}',
        b'{"y":1,"zip":1.5,"n":1,"b":2}',
        fields=fields,
    )
    assert typed(decoded.batch.labels) == typed([True, False, None])
    assert typed(decoded.batch.dicts()) == typed(
        [
            {"zip": "12345678901234567890", "n": 7.0, "b": True},
            {"zip": "true", "n": 2.5, "b": True},
            {"zip": "007"},
        ]
    )
    assert [(r.reason, r.path) for r in decoded.rejected] == [
        ("expected a number, found 'x'", "n"),
        ("expected a number, found true", "n"),
        ("expected a number, found 'x'", "y"),
        ("expected true/false or 0/1, found 2", "b"),
    ]


def test_without_a_label_field_no_event_has_one():
    """A stream of requests alone has no label field."""
    decoded = flat(b'{"a":1}', fields=FieldMap())
    assert decoded.batch.labels == [None]
    assert decoded.batch.ids == ["p.jsonl-1"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"features": []}, "features is empty"),
        ({"features": ["a"], "exclude": ["b"]}, "either features or exclude"),
        ({"label": "y", "features": ["a", "y"]}, "the label 'y' cannot be a feature"),
        ({"label": "y", "key": "k", "exclude": ["k"]}, "excluded and used at once: 'k'"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, reason):
    """A contradiction in the config is found where it is read."""
    with pytest.raises(ValueError, match=reason):
        FieldMap(**fields)
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.convert(fields, FieldMap)


# CSV -----------------------------------------------------------------------------------------


def test_csv_cells_become_values_by_their_look():
    """Plain integers, decimal numbers, booleans and text are told apart; empty is missing."""
    cells = ["1", "-7", "0", "-0", "1.5", "1e3", "007", "+5", ".5", "5.", "1_0", "true", "FALSE",
             "", " ", " 3 ", "a b", "0x1f", "1,5,6", "null", "--1", "1e", "e5", "-", "١", "nan",
             "NaN"]  # fmt: skip
    values = [1, -7, 0, 0, 1.5, 1000.0, 7.0, 5.0, 0.5, 5.0, "1_0", True, False, None, None, 3,
              "a b", "0x1f", "1,5,6", "null", "--1", "1e", "e5", "-", "١", None, None]  # fmt: skip
    quoted = [f'"{cell}"' if "," in cell else cell for cell in cells]
    header = ["c", *(f"f{i}" for i in range(len(cells)))]
    decoder = CsvDecoder(header, "binary", FieldMap())
    (x,) = decoder.decode(block(",".join(["1", *quoted]).encode())).batch.dicts()
    wanted = {f"f{i}": v for i, v in enumerate(values) if v is not None}
    assert typed(x) == typed({"c": 1, **wanted})
    # As one column, a cell per record: the same values.
    records = [f"1,{cell}".encode() for cell in quoted]
    batch = CsvDecoder(["c", "f"], "binary", FieldMap()).decode(block(*records)).batch
    assert typed([x.get("f") for x in batch.dicts()]) == typed(values)


def test_numbers_in_csv_are_read_as_python_reads_them():
    """A column of numbers that is read at once has the bits of its cells read one by one."""
    rng = random.Random(2)
    texts = [repr(rng.uniform(-1, 1) * 10 ** rng.randrange(-300, 300)) for _ in range(2000)]
    texts += [f"{rng.random():.{rng.randrange(1, 40)}f}" for _ in range(2000)]
    texts += [str(rng.getrandbits(rng.randrange(1, 64))) for _ in range(500)]
    lines = [f"1,{text}".encode() for text in texts]
    batch = CsvDecoder(["c", "f"], "binary", FieldMap()).decode(block(*lines)).batch
    wanted = [int(t) if t.isdigit() else float(t) for t in texts]
    assert typed([x["f"] for x in batch.dicts()]) == typed(wanted)


def test_csv_columns_become_fields():
    """Columns with a meaning are taken out; text of a role is kept as it is written."""
    decoded = table(
        "tx,y,at,card,w,shop,sex,a,b",
        b"007,1,2024-01-02,0012,1.5,s,f,1,x",
        b",0,,,,,,2,",
        id="tx", label="y", time="at", key="card", weight="w", source="shop", group=["sex"],
        exclude=["b"],
    )  # fmt: skip
    one, two = decoded.batch
    assert (one.id, one.y, one.ts, one.key, one.weight, one.source, one.group) == (
        "007", True, 1704153600.0, "0012", 1.5, "s", {"sex": "f"},
    )  # fmt: skip
    assert (two.id, two.y, two.ts, two.key, two.weight, two.source, two.group) == (
        "p.jsonl-2", False, None, None, 1.0, None, None,
    )  # fmt: skip
    assert decoded.batch.dicts() == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("task", "text", "label"),
    [
        ("binary", "1", True),
        ("binary", "0", False),
        ("binary", "True", True),
        ("binary", "FALSE", False),
        ("binary", "1.0", True),
        ("multiclass", "cat", "cat"),
        ("multiclass", "3", 3),
        ("multiclass", "3.0", 3),
        ("multiclass", "true", True),
        ("multiclass", "007", "007"),
        ("multiclass", "1e3", "1e3"),
        ("multiclass", "1.5", "1.5"),
        ("multiclass", "+1", "+1"),
        ("multiclass", "nan", None),
        ("regression", "3", 3),
        ("regression", "007", 7.0),
        ("regression", "nan", None),
        ("regression", "-2.5e1", -25.0),
    ],
)
def test_csv_labels_are_of_the_tasks_type(task, text, label):
    """A label in CSV is told by its look; of many classes, what is no plain integer is text."""
    decoded = table("y,a", b"%s,1" % text.encode(), label="y", task=task)
    assert typed(decoded.batch.labels) == typed([label])


def test_a_decimal_comma_is_read_where_it_is_said():
    """In a column and cell by cell; a point, and grouped digits, are refused by name."""
    fields = {"label": "y", "decimal": ",", "types": {"n": "number"}, "weight": "w"}
    lines = [b"1;1,5;-2,25e1;1;x", b"0;3;,5;;1,2,3", b'1;"7";+1,0;0,5;"1,5"']
    for part in (lines, *([line] for line in lines)):
        header = ["y", "a", "n", "w", "t"]
        decoder = CsvDecoder(header, "binary", FieldMap(**fields), ";")
        decoded = decoder.decode(block(*part))
        assert not decoded.rejected
    whole = CsvDecoder(["y", "a", "n", "w", "t"], "binary", FieldMap(**fields), ";")
    batch = whole.decode(block(*lines)).batch
    assert typed(batch.dicts()) == typed(
        [
            {"a": 1.5, "n": -22.5, "t": "x"},
            {"a": 3, "n": 0.5, "t": "1,2,3"},
            {"a": 7, "n": 1.0, "t": 1.5},
        ]
    )
    assert [batch.weight(i) for i in range(3)] == [1.0, 1.0, 0.5]
    for cell, reason in (
        (b"1.5", 'number with a decimal point, where decimal is ","'),
        (b"1.500,25", "number with grouped digits"),
    ):
        decoded = whole.decode(block(lines[0], b"1;%s;1;1;x" % cell, lines[0]))
        assert len(decoded.batch) == 2
        assert decoded.rejected[0].reason.startswith(reason)
        assert decoded.rejected[0].path == "a"


def test_cells_of_labels_are_text_where_the_config_says_so():
    """However they look; 1 and 007 are two classes of one kind then."""
    fields = FieldMap(label="y")
    decoder = CsvDecoder(["y", "a"], "multiclass", fields, ",", Notation(fields, "text"))
    batch = decoder.decode(block(b"1,1", b"007,1", b"true,1", b",1", b"nan,1")).batch
    assert batch.labels == ["1", "007", "true", None, "nan"]


def test_types_force_a_csv_column():
    """A forced column keeps leading zeros, or refuses what is not of its type."""
    types = {"zip": "string", "n": "number", "b": "bool", "y": "string"}
    decoded = table(
        "y,zip,n,b",
        b"01,007,1,1",
        b"nan,nan,2.5,False",
        b" , ,, ",
        b"x,1,x,1",
        b"x,1,true,1",
        b"x,1,1,maybe",
        b"x,1,nan,0",
        label="y", types=types, task="multiclass",
    )  # fmt: skip
    assert typed(decoded.batch.labels) == typed(["01", "nan", "x"])
    assert typed(decoded.batch.dicts()) == typed(
        [
            {"zip": "007", "n": 1, "b": True},
            {"zip": "nan", "n": 2.5, "b": False},
            {"zip": "1", "b": False},
        ]
    )
    assert [(r.reason, r.path) for r in decoded.rejected] == [
        ("no features", ""),
        ("expected a number, found 'x'", "n"),
        ("expected a number, found 'true'", "n"),
        ("expected true/false or 0/1, found 'maybe'", "b"),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "path"),
    [
        (b"1,2", "expected 3 columns, found 2", ""),
        (b"1,2,3,4", "expected 3 columns, found 4", ""),
        (b"1,2,3,", "expected 3 columns, found 4", ""),
        (b"\t", "expected 3 columns, found 1", ""),
        (b"1,nan,", "no features", ""),
        (b"1,2,-Infinity", "number is too large or not finite", "b"),
        (b"1,2,1e999", "number is too large or not finite", "b"),
        (b'1,2,"1,5"', "number with a comma: '1,5'; in [input.fields] decimal = \",\" reads", "b"),
        (b'1,2,"1,500"', "number with a comma: '1,500'", "b"),
        (b'1,2,"1.500,25"', "number with grouped digits: '1.500,25'", "b"),
        (b'1,2,"1,500,000.5"', "number with grouped digits: '1,500,000.5'", "b"),
        (b"1,2,9223372036854775808", "integer does not fit in 64 bits; perhaps its type is string",
         "b"),
        (b"1,2," + b"9" * 5000, "integer does not fit in 64 bits", "b"),
        (b"maybe,2,3", "label must be true/false or 0/1 for task binary, found 'maybe'", "y"),
        (b"inf,2,3", "number is too large or not finite", "y"),
        (b"1,,", "no features", ""),
        (b'1,"2,3', "a quote is never closed", ""),
        (b'1,"2"x,3', "invalid CSV: ',' expected after '\"'", ""),
        (b'1,a"b,"c', "a quote is never closed", ""),
        (b'1,"' + b"x" * 140_000 + b'",3', "invalid CSV: field larger than field limit", ""),
        (b"1,\xff,3", "invalid UTF-8 at byte 3", ""),
        (b"1,a\x00b,3", "NUL byte in the record", ""),
    ],
)  # fmt: skip
def test_csv_records_that_break_a_rule_are_rejected(line, reason, path):
    """A rejected record names its column, alone or after good ones."""
    if line == b"\t":
        line = b"\t x"
    for lines in ((line,), (b"1,2,3", b'0,"2",3', line)):
        decoded = table("y,a,b", *lines, label="y")
        (rejected,) = decoded.rejected
        assert rejected.reason.startswith(reason)
        assert rejected.path == path
        assert rejected.origin[2] == len(lines)
        assert len(decoded.batch) == len(lines) - 1


def test_quoted_cells_and_records_over_lines():
    """Quotes hold delimiters, quotes and newlines; the origin is the record's first line."""
    decoded = table("y,a,b", b'1,"x,""y""\nz",2\r', b"", b'0,"1",3\r', b"0,1,5", label="y")
    assert decoded.rejected == []
    assert decoded.batch.offsets.tolist() == [1, 4, 5]
    assert typed(decoded.batch.dicts()) == typed(
        [{"a": 'x,"y"\nz', "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 5}]
    )


def test_a_quote_inside_of_a_cell_is_a_character():
    """A quote that does not begin its cell opens nothing, and the lines after it are records."""
    decoded = table("y,a,b", b'1,5",3', b'0,6,"4"', b'1,a"b"c,5', label="y")
    assert decoded.rejected == []
    assert decoded.batch.offsets.tolist() == [1, 2, 3]
    assert decoded.batch.dicts() == [{"a": '5"', "b": 3}, {"a": 6, "b": 4}, {"a": 'a"b"c', "b": 5}]


def test_blank_lines_of_csv_are_no_records():
    """Blank lines are skipped; a record of empty cells is one without features."""
    decoded = CsvDecoder(["a", "b"], "binary", FieldMap(), "\t").decode(
        block(b"1\t2", b"", b"  ", b"\t", b"3\t4\r", b"\r")
    )
    assert decoded.batch.offsets.tolist() == [1, 5]
    assert [(r.reason, r.origin[2]) for r in decoded.rejected] == [("no features", 4)]


def test_a_csv_file_of_one_column():
    """A file with one column has one cell a record and no delimiter."""
    decoded = CsvDecoder(["a"], "binary", FieldMap()).decode(block(b"1", b"", b"x", b"1,2"))
    assert decoded.batch.dicts() == [{"a": 1}, {"a": "x"}]
    assert [r.reason for r in decoded.rejected] == ["expected 1 columns, found 2"]


@pytest.mark.parametrize(
    "fields",
    [
        {"time": "gone"},
        {"features": ["a", "gone"]},
        {"exclude": ["gone"]},
        {"types": {"gone": "number"}},
        {"group": ["gone"]},
    ],
)
def test_a_column_that_is_not_in_the_header_is_an_error(fields):
    """A wrong name in the config is found before any record is read."""
    with pytest.raises(InputError, match=r"^not in the CSV header: 'gone'; it has 'y', 'a'$"):
        CsvDecoder(["y", "a"], "binary", FieldMap(**fields))


def test_a_csv_file_needs_features_and_fields():
    """CSV without a feature, or without [input.fields], is an error at the start."""
    with pytest.raises(InputError, match="no column of the CSV file is a feature"):
        CsvDecoder(["y"], "binary", FieldMap(label="y"))
    with pytest.raises(InputError, match=r"CSV needs \[input.fields\]"):
        make_decoder("binary", None, CsvOptions(["a"], ","))


def test_the_decoder_goes_by_the_format():
    """A CSV file is decoded with its header and delimiter, everything else as JSON Lines."""
    csv = make_decoder("binary", FieldMap(label="y"), CsvOptions(["y", "a"], ";"))
    assert csv.decode(block(b"1;2")).batch.dicts() == [{"a": 2}]
    assert make_decoder("binary", None).decode(block(b'{"x":{"a":1}}')).batch.dicts() == [{"a": 1}]
    flat_json = make_decoder("binary", FLAT)
    assert flat_json.decode(block(b'{"is_fraud":1,"a":1}')).batch.labels == [True]


def test_decoding_leaves_the_collector_as_it_was():
    """Decoding doesn't change the garbage collector's state."""
    before = gc.isenabled()
    own(b'{"x":{"a":1}}')
    assert gc.isenabled() == before


# Outputs -------------------------------------------------------------------------------------


def batch(n: int, **columns) -> EventBatch:
    return EventBatch(
        [{"a": i} for i in range(n)], [None] * n, offsets=np.arange(1, n + 1),
        partition="p", index=-1, **columns,
    )  # fmt: skip


def lines(data: bytes) -> list[dict]:
    def refuse(text):
        raise ValueError(text)

    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line, parse_constant=refuse) for line in data.splitlines()]


AS = {"task": "regression", "model": "m", "version": 1, "role": "r"}


def test_predictions_have_the_wire_form():
    """One line per event, in order, with all fields; labels of probabilities are strings."""
    predictions = Predictions([True, None], [{False: 0.25, True: 0.75}, {}])
    data = encode_predictions(
        batch(2, ids=["i", None], times=[1.5, None]), predictions, task="binary", model="m",
        version=3, role="champion",
    )  # fmt: skip
    assert lines(data) == [
        {"id": "i", "model": "m", "version": 3, "role": "champion", "y_pred": True,
         "y_proba": {"false": 0.25, "true": 0.75}, "ts": 1.5, "origin": ["p", 0, 1]},
        {"id": "p-2", "model": "m", "version": 3, "role": "champion", "y_pred": None,
         "y_proba": None, "ts": None, "origin": ["p", 0, 2]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "name"),
    [(True, "true"), (1, "1"), (0, "0"), (1.0, "1.0"), ("a", "a"), ("True", "True"),
     (np.bool_(0), "false"), (np.int64(1), "1"), (np.str_("s"), "s")],
)  # fmt: skip
def test_labels_of_probabilities_are_spelled_as_in_json(label, name):
    """Labels that are equal, as 1 and True, keep their own names."""
    data = encode_predictions(
        batch(1), Predictions([label], [{label: 0.5}]), task="multiclass", model="m", version=1,
        role="r",
    )  # fmt: skip
    assert lines(data)[0]["y_proba"] == {name: 0.5}
    assert typed(lines(data)[0]["y_pred"]) == typed(
        label.item() if isinstance(label, np.generic) else label
    )


def test_numbers_that_json_cannot_write_are_null():
    """Output is always valid JSON."""
    values = [math.nan, math.inf, 1.5, np.float64("nan")]
    probas = [{"a": v} for v in values]
    data = encode_predictions(batch(4), Predictions(values, probas), **AS)
    assert [line["y_pred"] for line in lines(data)] == [None, None, 1.5, None]
    assert [line["y_proba"]["a"] for line in lines(data)] == [None, None, 1.5, None]


def test_predictions_without_probabilities():
    """A learner without probabilities gives null for them; an empty batch gives no line."""
    data = encode_predictions(batch(1), Predictions([2.5]), **AS)
    assert lines(data)[0]["y_proba"] is None
    assert encode_predictions(batch(0), Predictions([]), **AS) == b""


def test_rejected_input_has_the_wire_form():
    """What was rejected can be written whatever was in it."""
    (rejected,) = own(b'{"x":\xff\x00"').rejected
    (line,) = lines(encode_rejected([rejected]))
    assert line == {
        "origin": ["p.jsonl", 0, 1], "reason": "invalid UTF-8 at byte 6", "path": "",
        "raw": '{"x":\\xff\x00"', "ts": None,
    }  # fmt: skip
    assert encode_rejected([]) == b""
    assert Rejected(tuple(line["origin"]), *list(line.values())[1:]) == rejected


def test_alarms_have_the_wire_form():
    """It names model and shard; numbers that are not finite are null."""
    alarm = Alarm("drift", "adwin", None, math.inf, 0.5, 7)
    assert lines(encode_alarms([alarm], "fraud", "003")) == [
        {"model": "fraud", "shard": "003", "kind": "drift", "detector": "adwin",
         "feature": None, "value": None, "threshold": 0.5, "position": 7, "ts": None},
    ]  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_the_bytes_of_predictions_do_not_depend_on_the_cuts(first):
    """Neither how a number is written nor the order of keys, whatever else is in the batch."""
    probas = [{first: 0.5, not first: 0.5}, {True: 1, False: 0.0}, {first: 1.0}, {}]
    values = [True, True, first, None]

    def encoded(start, stop):
        part = EventBatch([{}] * (stop - start), [None] * (stop - start),
                          offsets=np.arange(start, stop), partition="p", index=-1)  # fmt: skip
        return encode_predictions(
            part, Predictions(values[start:stop], probas[start:stop]), **AS | {"task": "binary"}
        )

    assert encoded(0, 4) == b"".join(encoded(i, i + 1) for i in range(4))
    assert b'"y_proba":{"false":0.5,"true":0.5}' in encoded(0, 1)
    empty = Predictions([True], Table((), np.zeros((1, 0))))
    (line,) = lines(encode_predictions(batch(1), empty, **AS))
    assert line["y_proba"] is None


def test_the_bytes_of_a_learners_predictions_do_not_depend_on_the_cuts():
    """River's sigmoid gives the integers 0 and 1 at its ends; one batch has such and a tie."""
    events = [Event(x={"a": float(v)}, y=True) for v in (100, 150, 200, 250, 300, 350)]

    def encoded(cut):
        learner = RiverLearner(linear_model.LogisticRegression(optim.Adam(1.0)), "binary")
        parts = []
        for start in range(0, len(events), cut):
            part = EventBatch.from_events(
                events[start : start + cut], offsets=np.arange(start, min(start + cut, 6))
            )
            parts.append(
                encode_predictions(part, learner.predict_learn(part), **AS | {"task": "binary"})
            )
        return b"".join(parts)

    assert encoded(6) == encoded(1) == encoded(4)


def test_ids_that_stand_in_the_input_are_copied_as_they_are():
    """Only where JSON writes them so: the bytes are those of ids given as strings."""
    plain = (
        "".join(map(chr, range(0x20, 0x180))).replace('"', "").replace("\\", "")
        + "\u2028\U0001f600"
    )
    for ids, is_plain in (
        ([plain, "a", "é"], True),
        (['"', "\\", "\n"], False),
        (["a", None], True),
    ):
        pieces = [(text or "").encode() for text in ids]
        stops = np.cumsum([len(piece) for piece in pieces])
        starts = np.array(
            [-1 if text is None else stop - len(piece)
             for text, piece, stop in zip(ids, pieces, stops, strict=True)]
        )  # fmt: skip
        column = Texts(b"".join(pieces), starts, stops, plain=is_plain)
        x, labels = [{"a": 1.0}] * len(ids), [1.0] * len(ids)
        predictions = Predictions([1.0] * len(ids))
        copied = encode_predictions(EventBatch(x, labels, ids=column), predictions, **AS)
        assert copied == encode_predictions(EventBatch(x, labels, ids=ids), predictions, **AS)
