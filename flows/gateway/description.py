"""The OpenAPI description of the gateway, true to one config."""

from typing import Any

import midstream
from midstream.flows.config.gateway import Gateway
from midstream.flows.gateway.validation import LONGEST, LONGEST_KEY, LONGEST_SOURCE, Rules

__all__ = ["describe"]

_INTEGER = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_DATE = (
    r"^(19[7-9]\d|20[01]\d)-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])T([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ$"
)
_LABELS: dict[str, dict[str, Any]] = {
    "binary": {"enum": [True, False, 0, 1]},
    "multiclass": {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": LONGEST},
            _INTEGER,
            {"type": "boolean"},
        ]
    },
    "regression": {"type": "number", "minimum": -1e300, "maximum": 1e300},
}


def describe(settings: Gateway, rules: Rules, now: float) -> dict[str, Any]:
    """Return the description as plain JSON values."""
    paths: dict[str, Any] = {
        "/healthz": _get("Whether the process lives.", {"200": _plain("It lives.")}),
        "/readyz": _get(
            "Whether feedback is taken.",
            {"200": _plain("It is."), "503": _plain("Not now: the body says why.")},
        ),
        "/metrics": _get(
            "Counts in Prometheus' text format.",
            {"200": {"description": "The counts.", "content": {"text/plain": _TEXT}}},
        ),
        "/openapi.json": _get(
            "This description.",
            {"200": {"description": "OpenAPI 3.1.", "content": {_JSON: {"schema": _OBJECT}}}},
        ),
    }
    if settings.http:
        paths["/v1/feedback"] = {"post": _feedback(settings)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Midstream gateway",
            "version": midstream.__version__,
            "description": "Takes feedback: what became of an event that a model predicted.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Item": _item(settings, rules, now),
                "Outcome": _OUTCOME,
                "Outcomes": _OUTCOMES,
                "Error": _ERROR,
            },
        },
    }


def _feedback(settings: Gateway) -> dict[str, Any]:
    item = {"$ref": "#/components/schemas/Item"}
    many = {"type": "array", "items": item, "minItems": 1, "maxItems": settings.max_items}
    outcomes = {"schema": {"$ref": "#/components/schemas/Outcomes"}}

    def done(text: str) -> dict[str, Any]:
        return {"description": text, "content": {_JSON: outcomes}}

    retry = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "required": True,
                             "description": "Seconds to wait."}}  # fmt: skip
    return {
        "operationId": "sendFeedback",
        "summary": "Send feedback: one object, or a list.",
        "security": [{"token": []}],
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The key of the request. The item at index N has the key KEY/N, "
                "unless it has one of its own; an object by itself has KEY.",
                "schema": {
                    "type": "string", "minLength": 1, "maxLength": LONGEST_KEY - 10,
                    "pattern": "^[!-~]+$",
                },
            }
        ],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": {"oneOf": [item, many]}}},
        },
        "responses": {
            "202": done("Every item is in the feedback topic, acknowledged by the brokers."),
            "207": done("Some items are in the topic, others are not; `results` tells which."),
            "400": _error(
                f"No JSON, an empty list or one of more than {settings.max_items} items, a query "
                "in the URL, or a header that is wrong."
            ),
            "401": _error("No token, or none of the gateway's.")
            | {"headers": {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}}},
            "405": _error("Another method than POST."),
            "408": _error(f"The body took longer than {settings.body_seconds:g} s."),
            "409": done("No item is in the topic: their idempotency keys have other content."),
            "413": _error(
                f"More than {settings.max_bytes} bytes."
            ),
            "415": _error("Not application/json in UTF-8, or compressed."),
            "422": done("No item is in the topic; `results` tells why."),
            "429": _error("More items than the token may send.") | {"headers": retry},
            "503": _error(
                "Not acknowledged: send it again, unchanged. What is in the topic already is "
                "recognised."
            )
            | {"headers": retry},
        },
    }  # fmt: skip


def _item(settings: Gateway, rules: Rules, now: float) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST}
    properties: dict[str, Any] = {
        "id": {"description": "The id of the event.", "anyOf": [text, _INTEGER]},
        "y": {"description": "The label.", **_LABELS[rules.task]},
        "ts": {
            "description": "When it was known, in seconds since 1970 or ISO 8601. Default: now. "
            f"At most {settings.future_seconds:g} s ahead.",
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": int(now + settings.future_seconds)},
                {"type": "string", "pattern": _DATE},
                {"type": "null"},
            ],
        },
        "source": {
            "description": "Who says so. Default: the token's name.",
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": LONGEST_SOURCE},
                {"type": "null"},
            ],
        },
        "idempotency_key": {
            "description": "Equal for repeated sends. Default: a digest of the item.",
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY},
                _INTEGER,
                {"type": "null"},
            ],
        },
    }
    required = ["id", "y"]
    if rules.key is not None:
        properties[rules.key] = {"description": "The message's key.", "anyOf": [text, _INTEGER]}
        required.append(rules.key)
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _get(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": responses | {"405": _error("Not a GET.")}}}


def _plain(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"text/plain": _TEXT}}


def _error(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": text, "content": {_JSON: {"schema": schema}}}


_JSON = "application/json"
_TEXT = {"schema": {"type": "string"}}
_OBJECT = {"type": "object"}
_COUNT = {"type": "integer", "minimum": 0}
_ERROR = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
    "additionalProperties": False,
}
_OUTCOME = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"enum": ["accepted", "duplicate", "conflict", "rejected", "refused"]},
        "id": {"type": "string"},
        "reason": {"type": "string"},
        "path": {"type": "string"},
    },
    "additionalProperties": False,
}
_OUTCOMES = {
    "type": "object",
    "required": ["accepted", "duplicate", "conflict", "rejected", "refused", "results"],
    "properties": {
        **dict.fromkeys(("accepted", "duplicate", "conflict", "rejected", "refused"), _COUNT),
        "results": {"type": "array", "items": {"$ref": "#/components/schemas/Outcome"}},
    },
    "additionalProperties": False,
}
