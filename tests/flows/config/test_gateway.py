"""The `[gateway]` section: what it may say, and the line for what it may not."""

import pytest

from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load

HEAD = '[model]\nlearner = "logistic"\ntask = "binary"\n[input]\npath = "e.jsonl"\n'
KAFKA = '\n[kafka]\n"bootstrap.servers" = "127.0.0.1:9092"\n'
RAW = '[gateway.raw.calls]\nid = "a.b"\ny = "y"\n'


def read(tmp_path, text, kafka=KAFKA):
    (tmp_path / "c.toml").write_text(HEAD + text + kafka)
    return load(tmp_path / "c.toml")


def test_a_gateway_has_defaults(tmp_path):
    """A topic is all that it needs; it listens at loopback, and wants tokens."""
    settings = read(tmp_path, '[gateway]\ntopic = "f"\n').gateway
    assert (settings.host, settings.http, settings.raw) == ("127.0.0.1", True, {})
    assert settings.topics_written() == {"gateway.topic": "f"}
    assert read(tmp_path, "").gateway is None
    feedback = '[feedback]\ntopic = "f"\n'
    assert read(tmp_path, "[gateway]\n" + feedback).gateway.topic == "f"
    with pytest.raises(ConfigError, match=r"gateway\.topic: is not feedback\.topic, 'f'"):
        read(tmp_path, '[gateway]\ntopic = "g"\n' + feedback)


def test_topics_are_named_by_their_tables_or_by_a_key(tmp_path):
    """All that are read and written, by the key of the config that names them."""
    text = (
        '[gateway]\ntopic = "f"\nrejected = "r"\n' + RAW
        + '[gateway.raw."bank.calls"]\ntopic = "other"\nid = "id"\ny = "y"\nvalues = { a = 1 }\n'
        '[gateway.repartition.raw]\nto = "keyed"\n'
    )  # fmt: skip
    settings = read(tmp_path, text).gateway
    assert settings.topics_read() == {
        "gateway.raw.calls": "calls", "gateway.raw.bank.calls": "other",
        "gateway.repartition.raw": "raw",
    }  # fmt: skip
    assert settings.topics_written() == {
        "gateway.topic": "f", "gateway.rejected": "r", "gateway.repartition.raw.to": "keyed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gateway]\n", "gateway.topic: missing, and feedback.topic, too; needed: the topic that"),
        ('[gateway]\ntopic = "a b"\n', "gateway.topic: found 'a b'"),
        ('[gateway]\ntopic = "f"\nprot = 1\n', "gateway.prot: unknown key; did you mean 'port'?"),
        ('[gateway]\ntopic = "f"\nport = 65536\n', "gateway.port: found 65536"),
        ('[gateway]\ntopic = "f"\nrate = 0\n', "gateway.rate: found 0"),
        ('[gateway]\ntopic = "f"\nmax_items = 5001\n', "gateway.max_items: found 5001"),
        ('[gateway]\ntopic = "f"\nkey = "source"\n', "gateway.key: found 'source'; allowed:"),
        ("[gateway]\nhttp = false\n", "gateway.http: found false, and no raw topic"),
        ('[gateway]\ntopic = "f"\n[gateway.raw.x]\nid = "a"\n', "gateway.raw.x.y: missing"),
        (
            '[gateway]\ntopic = "f"\n[gateway.raw.x]\nid = "a"\ny = "b"\ntyp = 1\n',
            "gateway.raw.x.typ: unknown key",
        ),
        (
            '[gateway]\ntopic = "f"\n[gateway.raw.x]\nid = "a"\ny = "b"\ntime_unit = "h"\n',
            "gateway.raw.x.time_unit: found 'h'",
        ),
        (
            '[gateway]\ntopic = "f"\n'
            + RAW
            + '[gateway.raw.x]\ntopic = "calls"\nid = "a"\ny = "b"',
            "gateway.raw.x: reads calls, as gateway.raw.calls does; allowed: each once",
        ),
        (
            '[gateway]\ntopic = "calls"\n' + RAW,
            "gateway.topic: writes calls, which gateway.raw.calls reads; that would never end",
        ),
        (
            '[gateway]\nhttp = false\n[gateway.repartition.a]\nto = "a"\n',
            "gateway.repartition.a.to: writes a, which gateway.repartition.a reads",
        ),
        (
            '[gateway]\ntopic = "f"\n[gateway.raw."a b"]\nid = "a"\ny = "b"\n',
            "gateway.raw.a b: found 'a b'",
        ),
    ],
)
def test_a_wrong_gateway_is_told_in_a_line(tmp_path, text, told):
    """With the key, what was found, and what is allowed."""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gateway_needs_brokers(tmp_path):
    """As topics of a run do."""
    with pytest.raises(ConfigError, match=r'kafka."bootstrap.servers": missing'):
        read(tmp_path, '[gateway]\ntopic = "f"\n', kafka="")
