"""What librdkafka refuses is said by every command, with what run says; no broker is asked."""

import pytest
from click.testing import CliRunner

from midstream.flows.cli import cli

CONFIG = """
[model]
learner = "logistic"
task = "binary"
[input]
topic = "events"
wait_seconds = 0.2
[output]
predictions = "predictions"
rejected = false
alarms = false
[kafka]
"""
SSL = '"security.protocol" = "SSL"\n'
SASL = '"security.protocol" = "SASL_PLAINTEXT"\n"sasl.mechanism" = '
REFUSED = [
    ('"no.such.key" = 1', 'kafka: No such configuration property: "no.such.key"'),
    ('"security.protocol" = "TLS"', 'kafka: Invalid value "TLS" for configuration property'),
    ('"fetch.min.bytes" = "many"', 'kafka: Invalid value for configuration property "fetch.min'),
    ('"fetch.wait.max.ms" = -5', "value -5 is outside allowed range 0..300000"),
    ('"compression.type" = "zip"', 'kafka: Invalid value "zip" for configuration property'),
    ('"session.timeout.ms" = 9000\n"max.poll.interval.ms" = 500', "must be >="),
    (SSL + '"ssl.ca.location" = "no/ca.pem"', '"ssl.ca.location": {at}/no/ca.pem: cannot be read'),
    (SSL + '"ssl.key.location" = "/no/key.pem"', '"ssl.key.location": /no/key.pem: cannot be read'),
    (SSL + '"ssl.certificate.location" = "."', '"ssl.certificate.location": {at}: cannot be read'),
    (SSL + '"ssl.ca.pem" = "garbage"', "from ssl.ca.pem: not in PEM format"),
    (SASL + '"NOPE"', "kafka: Unsupported SASL mechanism: NOPE"),
    (SASL + '"PLAIN"', "kafka: sasl.username and sasl.password must be set"),
    ('"group.id" = ""', 'kafka."group.id": found nothing; needed: a string, not empty'),
    ('"bootstrap.servers" = " "', 'kafka."bootstrap.servers": found nothing; needed: a string'),
]


@pytest.mark.parametrize(("extra", "said"), REFUSED)
def test_what_librdkafka_refuses_is_said_alike(tmp_path, extra, said):
    """By check, run, init-topics and send, in a line that names the setting, and its file."""
    servers = "" if "bootstrap" in extra else '"bootstrap.servers" = "127.0.0.1:9"\n'
    config = tmp_path / "config.toml"
    config.write_text(f"{CONFIG}{servers}{extra}\n")
    (tmp_path / "events.jsonl").write_text('{"id": "1", "x": {"a": 1.0}}\n')
    lines = {}
    for command in ("check", "run", "init-topics", "send"):
        arguments = [command, str(config)]
        if command == "send":
            arguments = [command, str(tmp_path / "events.jsonl"), "--config", str(config)]
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code in (1, 2), done.output
        wanted = said.format(at=tmp_path)
        found = [line for line in done.output.splitlines() if wanted in line]
        assert len(found) == 1, (command, done.output)
        assert "internal error" not in done.output
        lines[command] = found[0].removeprefix("midstream: ").removeprefix("FAIL kafka: ")
    assert len(set(lines.values())) == 1, lines
