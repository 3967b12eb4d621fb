"""Messages of raw topics, by the mapping of the config."""

import json

import pytest

from midstream.flows.config.gateway import RawTopic
from midstream.flows.gateway.mapping import Mapping, key_in
from midstream.flows.gateway.validation import Fault, Item, Rules

RULES = Rules("binary", 300.0)


def mapped(value, timestamp=1_700_000_000.5, **table):
    mapping = Mapping("chargebacks", RawTopic(**{"id": "id", "y": "y", **table}), RULES)
    return mapping.apply(value if isinstance(value, bytes | None) else json.dumps(value).encode(),
                         timestamp)  # fmt: skip


def test_fields_are_found_where_the_config_says():
    """Dots lead into objects, a label's text becomes a label, other fields do not matter."""
    item = mapped(
        {"payment": {"ref": 12, "user": "u1"}, "kind": "chargeback", "at": 1_700_000_000_000,
         "by": "visa", "n": "x-1", "more": [1]},
        id="payment.ref", y="kind", ts="at", source_field="by", idempotency_key="n",
        key="payment.user", values={"chargeback": True, "paid": False},
    )  # fmt: skip
    assert json.loads(item.value) == {"id": "12", "y": True, "ts": 1.7e9, "source": "visa"}
    assert item.key == b"u1"


def test_what_is_not_mapped_has_defaults():
    """The time is the message's, the source is the table's name or the one it gives."""
    item = mapped({"id": "a", "y": False, "source": "not mapped"})
    assert json.loads(item.value) == {
        "id": "a", "y": False, "ts": 1_700_000_000.5, "source": "chargebacks",
    }  # fmt: skip
    assert json.loads(mapped({"id": "a", "y": 0}, source="bank").value)["source"] == "bank"
    item = mapped({"id": "a", "y": 0, "by": None}, source="bank", source_field="by")
    assert json.loads(item.value)["source"] == "bank"


def test_a_name_with_dots_goes_before_nested_objects():
    """A field whose name has dots in it can be mapped, too."""
    assert mapped({"a.b": "x", "a": {"b": "z"}, "y": 1}, id="a.b").id == "x"


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (None, "", "tombstone"),
        (b"", "", "no JSON"),
        (b"{", "", "no JSON"),
        (b"\xff\xfe", "", "no JSON"),
        (b'{"id": "\xff", "y": 1}', "", "no JSON"),
        (b"[" * 10_000, "", "nested too deeply"),
        (b"[1]", "", "must be a JSON object, found array"),
        ({"y": "yes"}, "ref.id", "id is missing"),
        ({"ref": "x", "y": "yes"}, "ref.id", "id is missing"),
        ({"ref": {"id": 1}, "kind": 1}, "y", "label is missing"),
        ({"ref": {"id": 1}, "y": "maybe"}, "y", "'maybe' is none of: yes, no, 2"),
        ({"ref": {"id": 1}, "y": ["yes"]}, "y", "must be a scalar, found an array"),
        ({"ref": {"id": 1}, "y": "yes", "at": "soon"}, "at", "time must be"),
        (
            {"ref": {"id": 1}, "y": "yes", "at": 20261129},
            "at",
            'time_unit = "date" or "s" (or "ms") in [gateway.raw.chargebacks]',
        ),
    ],
)
def test_a_message_that_is_no_feedback_is_told(value, path, reason):
    """The path is that of the raw message."""
    fault = mapped(value, id="ref.id", ts="at", values={"yes": True, "no": False, "2": True})
    assert isinstance(fault, Fault), fault
    assert (fault.path, reason in fault.reason) == (path, True), fault


def test_labels_that_are_numbers_or_truth_values_are_translated_as_they_are_spelled():
    """A table of TOML has text as keys; 2 and true are found under their spelling."""
    values = {"2": True, "true": False}
    assert json.loads(mapped({"id": "a", "y": 2}, values=values).value)["y"] is True
    assert json.loads(mapped({"id": "a", "y": True}, values=values).value)["y"] is False


def test_a_repeated_message_has_the_same_idempotency_key():
    """Also where the broker gave it another time; with another time of its own it is another."""
    one, again = mapped({"id": "a", "y": 1}, 1.0), mapped({"id": "a", "y": 1}, 2.0)
    assert isinstance(one, Item)
    assert one.idempotency == again.idempotency
    assert mapped({"id": "a", "y": 1, "at": 3}, ts="at").idempotency != one.idempotency


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'{"a": {"id": "x"}}', b"x"),
        (b'{"a": {"id": 7}}', b"7"),
        (b'{"a": {"id": true}}', "must be a string"),
        (b'{"a": {"id": ""}}', "must be a string"),
        (b'{"a": {}}', "missing"),
        (b'{"a": {"id": null}}', "missing"),
        (b'{"a": {"id": "%s"}}' % (b"x" * 1001), "longer"),
        (b"[]", "must be a JSON object"),
        (None, "tombstone"),
    ],
)
def test_a_key_is_taken_from_a_field(value, found):
    """Text or an integer; anything else is told."""
    key = key_in(value, "a.id")
    assert key == found if isinstance(found, bytes) else found in key.reason
