"""The OpenAPI description is true to what the gateway does."""

import subprocess
import sys
from pathlib import Path

import pytest
from gateways import TOKEN, http_gateway

from midstream.flows.config.gateway import Gateway
from midstream.flows.gateway.description import describe
from midstream.flows.gateway.validation import Rules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options"),
    [("binary", {}), ("multiclass", {"key": "user"}), ("regression", {"max_items": 3})],
)
def test_schemathesis_finds_nothing(task, options, tmp_path):
    """Valid requests are taken, others refused, and each answer is as described."""
    with http_gateway(task, rate=1e9, **options) as gateway:
        done = subprocess.run(
            [
                Path(sys.executable).parent / "schemathesis", "run",
                f"{gateway.site.address}/openapi.json", "--header",
                f"Authorization: Bearer {TOKEN}", "--seed", "15", "--max-examples", "200",
                "--continue-on-failure", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert gateway.count("items_total", origin="http", outcome="accepted") > 10
        assert gateway.count("requests_total", status="500") == 0


def test_the_description_has_the_limits_of_the_config():
    """What a label is, how many items, which field is the key, how far ahead a time may be."""
    settings = Gateway(topic="t", max_items=7, key="user", future_seconds=60.0)
    described = describe(settings, Rules("multiclass", 60.0, "user"), 1_000.0)
    item = described["components"]["schemas"]["Item"]
    assert item["required"] == ["id", "y", "user"]
    assert set(item["properties"]) == {"id", "y", "ts", "source", "idempotency_key", "user"}
    assert item["properties"]["ts"]["anyOf"][0]["maximum"] == 1_060
    assert "anyOf" in item["properties"]["y"]
    body = described["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]
    assert body["application/json"]["schema"]["oneOf"][1]["maxItems"] == 7


def test_every_code_is_described():
    """Each status that an answer may have is in the description of the resource."""
    described = describe(Gateway(topic="t"), Rules("binary", 60.0), 1_000.0)
    answers = described["paths"]["/v1/feedback"]["post"]["responses"]
    assert sorted(answers) == [
        "202", "207", "400", "401", "405", "408", "409", "413", "415", "422", "429", "503",
    ]  # fmt: skip
