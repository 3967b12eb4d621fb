"""What the gateway changes of the libraries that it reads raw topics with."""

import logging

import pytest

from midstream.flows.config.tables import ConfigError
from midstream.flows.gateway import worker
from midstream.flows.loading import load


def test_libraries_log_a_line_now_and_then(monkeypatch):
    """Warnings only, without tracebacks; what is said again within a minute is counted."""
    said = []

    class Log:
        def warning(self, event, **fields):
            said.append((event, fields))

    monkeypatch.setattr(worker, "log", Log())
    logger = logging.getLogger("test.tamed")
    logger.handlers[:] = [worker.Tamed(60.0)]
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    for _ in range(1_000):
        logger.warning("topic %s is not there", "t")
    logger.info("starting")
    _failing(logger)
    assert said == [
        ("gateway_library", {"logger": "test.tamed", "said": "topic t is not there"}),
        ("gateway_library", {"logger": "test.tamed", "said": "it failed: ValueError: first"}),
    ]


def _failing(logger):
    try:
        raise ValueError("first\n\nb'what a client sent'")
    except ValueError:
        logger.exception("it failed")


def config(tmp_path, kafka):
    (tmp_path / "c.toml").write_text(f"""
[model]
learner = "logistic"
task = "binary"
[input]
topic = "t"
[gateway]
topic = "f"
[kafka]
"bootstrap.servers" = "127.0.0.1:1"
{kafka}
""")
    return load(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("kafka", "kind", "mechanism"),
    [
        ("", "NoneType", None),
        ('"security.protocol" = "PLAINTEXT"', "NoneType", None),
        ('"security.protocol" = "ssl"', "SSLCredentials", None),
        (
            '"security.protocol" = "sasl_plaintext"\n"sasl.mechanism" = "PLAIN"\n'
            '"sasl.username" = "u"\n"sasl.password" = "p-secret"',
            "SASLCredentials", "PLAIN",
        ),
        (
            '"security.protocol" = "SASL_SSL"\n"sasl.mechanisms" = "SCRAM-SHA-512"\n'
            '"sasl.username" = "u"\n"sasl.password" = "p-secret"\n'
            '"enable.ssl.certificate.verification" = false',
            "SASLCredentials", "SCRAM-SHA-512",
        ),
    ],
)  # fmt: skip
def test_the_connection_is_that_of_the_config(tmp_path, kafka, kind, mechanism):
    """Settings of librdkafka become those of the other client."""
    made = worker.credentials(config(tmp_path, kafka))
    assert type(made).__name__ == kind
    if mechanism is not None:
        assert made.mechanism.value == mechanism
        assert (made.username, made.password) == ("u", "p-secret")
        assert (made.ssl_context is not None) == ("SSL" in kafka.splitlines()[0])


@pytest.mark.parametrize(
    ("kafka", "told"),
    [
        ('"security.protocol" = "sasl_ssl"\n"sasl.mechanism" = "OAUTHBEARER"', "OAUTHBEARER"),
        ('"security.protocol" = "sasl_plaintext"', "GSSAPI"),
        ('"security.protocol" = "ssl"\n"ssl.keystore.location" = "k.p12"', "ssl.keystore"),
        ('"security.protocol" = "ssl"\n"ssl.ca.location" = "none.pem"', "certificate"),
    ],
)
def test_a_connection_that_the_gateway_cannot_make_is_told(tmp_path, kafka, told):
    """One line, before anything is read or written."""
    with pytest.raises(ConfigError, match=told):
        worker.credentials(config(tmp_path, kafka))
