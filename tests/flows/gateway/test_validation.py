"""What is feedback, and what becomes of it."""

import json
import time

import pytest

from midstream.flows.gateway.validation import Fault, Item, Rules

NOW = 1_700_000_000.0


def apply(raw, task="binary", key=None, **more):
    rules = Rules(task, 300.0, key)
    return rules.apply(raw, **{"scope": "s", "source": "shop", "now": NOW, **more})


GOOD = [
    ("binary", {"id": "a", "y": True}, {"id": "a", "y": True, "ts": NOW, "source": "shop"}),
    ("binary", {"id": "a", "y": 0}, {"id": "a", "y": False, "ts": NOW, "source": "shop"}),
    ("binary", {"id": 7, "y": 1, "ts": 5}, {"id": "7", "y": True, "ts": 5.0, "source": "shop"}),
    ("binary", {"id": -(2**63), "y": 1}, {"id": str(-(2**63)), "y": True, "ts": NOW}),
    ("binary", {"id": 7.0, "y": 1.0}, {"id": "7", "y": True}),
    ("binary", {"id": "é", "y": 1, "source": "crm"}, {"id": "é", "source": "crm"}),
    ("binary", {"id": "a", "y": 1, "source": None, "ts": None}, {"ts": NOW, "source": "shop"}),
    ("binary", {"id": "a", "y": 1, "ts": "2023-11-14T22:13:20Z"}, {"ts": NOW}),
    ("binary", {"id": "a", "y": 1, "ts": "2023-11-15T00:13:20+02:00"}, {"ts": NOW}),
    ("binary", {"id": "a", "y": 1, "ts": "2023-11-14"}, {"ts": 1_699_920_000.0}),
    ("multiclass", {"id": "a", "y": "red"}, {"y": "red"}),
    ("multiclass", {"id": "a", "y": 3.0}, {"y": 3}),
    ("regression", {"id": "a", "y": -2.5e300}, {"y": -2.5e300}),
]


@pytest.mark.parametrize(("task", "raw", "expected"), GOOD)
def test_feedback_becomes_a_message(task, raw, expected):
    """Its value is id, y, ts and source; its key is the id."""
    item = apply(raw, task)
    assert isinstance(item, Item), item
    value = json.loads(item.value)
    assert set(value) == {"id", "y", "ts", "source"}
    assert {name: value[name] for name in expected} == expected
    assert type(value["y"]) is type(expected.get("y", value["y"]))
    assert item.key == value["id"].encode()


BAD = [
    ("binary", None, "", "an item must be a JSON object, found null"),
    ("binary", [1], "", "an item must be a JSON object, found an array"),
    ("binary", "a", "", "an item must be a JSON object, found a string"),
    ("binary", {}, "id", "id is missing"),
    ("binary", {"id": None, "y": 1}, "id", "id is missing"),
    ("binary", {"id": "", "y": 1}, "id", "id must be a string, not empty, or an integer"),
    ("binary", {"id": 1.5, "y": 1}, "id", "found 1.5"),
    ("binary", {"id": True, "y": 1}, "id", "found true"),
    ("binary", {"id": ["a"], "y": 1}, "id", "found an array"),
    ("binary", {"id": 1e300, "y": 1}, "id", "integer does not fit in 64 bits"),
    ("binary", {"id": float("inf"), "y": 1}, "id", "found inf"),
    ("binary", {"id": 2**63, "y": 1}, "id", "integer does not fit in 64 bits"),
    ("binary", {"id": "a" * 1001, "y": 1}, "id", "id is longer than 1000 characters"),
    ("binary", {"id": "a"}, "y", "label is missing"),
    ("binary", {"id": "a", "y": None}, "y", "label is missing"),
    ("binary", {"id": "a", "y": 2}, "y", "label must be true/false or 0/1"),
    ("binary", {"id": "a", "y": "yes"}, "y", "label must be true/false or 0/1"),
    ("binary", {"id": "a", "y": {"v": 1}}, "y", "found an object"),
    ("multiclass", {"id": "a", "y": ""}, "y", "label must be a string (not empty)"),
    ("multiclass", {"id": "a", "y": "r" * 1001}, "y", "label is longer than 1000"),
    ("multiclass", {"id": "a", "y": 2**64}, "y", "integer does not fit in 64 bits"),
    ("regression", {"id": "a", "y": "3"}, "y", "label must be a finite number"),
    ("regression", {"id": "a", "y": True}, "y", "label must be a finite number"),
    ("regression", {"id": "a", "y": float("inf")}, "y", "not finite"),
    ("regression", {"id": "a", "y": float("nan")}, "y", "label is missing"),
    ("binary", {"id": "a", "y": 1, "ts": -1}, "ts", "time is before 1970"),
    ("binary", {"id": "a", "y": 1, "ts": True}, "ts", "time must be seconds or ISO 8601"),
    ("binary", {"id": "a", "y": 1, "ts": " "}, "ts", "time must be seconds or ISO 8601"),
    ("binary", {"id": "a", "y": 1, "ts": "soon"}, "ts", "time must be seconds or ISO 8601"),
    ("binary", {"id": "a", "y": 1, "ts": [1]}, "ts", "time must be seconds or ISO 8601"),
    ("binary", {"id": "a", "y": 1, "ts": "9" * 2000}, "ts", "a long string"),
    ("binary", {"id": "a", "y": 1, "ts": float("inf")}, "ts", "not finite"),
    ("binary", {"id": "a", "y": 1, "ts": NOW * 1000}, "ts", "is it in seconds?"),
    ("binary", {"id": "a", "y": 1, "ts": "9999-01-01"}, "ts", "ahead of the gateway's clock"),
    ("binary", {"id": "a", "y": 1, "source": ""}, "source", "source must be a string, not empty"),
    ("binary", {"id": "a", "y": 1, "source": 3}, "source", "source must be a string, not empty"),
    ("binary", {"id": "a", "y": 1, "source": "s" * 201}, "source", "source is longer than 200"),
    ("binary", {"id": "a", "y": 1, "idempotency_key": ""}, "idempotency_key", "not empty"),
    ("binary", {"id": "a", "y": 1, "idempotency_key": "k" * 256}, "idempotency_key", "longer"),
    ("binary", {"id": "a", "y": 1, "sorce": "x"}, "sorce", "did you mean 'source'?"),
    ("binary", {"id": "a", "y": 1, "user": "u"}, "user", "unknown field"),
]


@pytest.mark.parametrize(("task", "raw", "path", "reason"), BAD)
def test_what_is_no_feedback_is_told_with_its_field(task, raw, path, reason):
    """Each rule names the field, what was found, and what is allowed."""
    fault = apply(raw, task)
    assert isinstance(fault, Fault), fault
    assert fault.path == path
    assert reason in fault.reason


def test_a_time_may_be_a_little_ahead():
    """Clocks differ: up to `future_seconds` are allowed, more is not."""
    assert isinstance(apply({"id": "a", "y": 1, "ts": time.time() + 200}), Item)
    assert isinstance(apply({"id": "a", "y": 1, "ts": time.time() + 400}), Fault)


def test_the_key_may_be_a_field():
    """With `key`, that field of an item is the message's key, and has to be there."""
    item = apply({"id": "a", "y": 1, "user": 12}, key="user")
    assert item.key == b"12"
    assert "user" not in json.loads(item.value)
    fault = apply({"id": "a", "y": 1}, key="user")
    assert fault == Fault("key is missing", "user")


def test_repeated_sends_have_equal_idempotency_keys():
    """By default a digest of what was sent; a time that was not sent is not part of it."""
    one = apply({"id": "a", "y": True}, now=1.0)
    assert apply({"id": "a", "y": 1}, now=2.0).idempotency == one.idempotency
    for other in (
        {"id": "b", "y": True},
        {"id": "a", "y": False},
        {"id": "a", "y": True, "ts": 1.0},
        {"id": "a", "y": True, "source": "crm"},
    ):
        assert apply(other).idempotency != one.idempotency


def test_a_key_of_ones_own_goes_before_the_digest_and_is_its_senders():
    """An item's key goes before the request's; two senders may use the same one."""
    item = {"id": "a", "y": True, "idempotency_key": "k"}
    one = apply(item)
    assert apply({**item, "id": "b"}).idempotency == one.idempotency
    assert apply({**item, "id": "b"}).content != one.content
    assert apply(item, scope="other").idempotency != one.idempotency
    assert apply(item, idempotency_key="r").idempotency == one.idempotency
    assert apply({"id": "a", "y": True}, idempotency_key="k").idempotency == one.idempotency
    assert apply(item).content == apply({"id": "a", "y": True}).content
