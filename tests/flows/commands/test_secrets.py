"""Marked secrets at every place that may hold one, looked for in all that is written."""

import os

import pytest
from project import Project, events

MARKS = {f"MS_MARK_{i}": f"mark{i}-hunter2-{i}" for i in range(8)}
KAFKA = """
[input]
topic = "events"
wait_seconds = 0.5
[output]
path = "out"
[versions]
key = "${MS_MARK_0}"
registry = "postgresql://user:${MS_MARK_1}@127.0.0.1:9/db"
artifacts = "s3://id:${MS_MARK_2}@bucket/prefix"
[kafka]
"bootstrap.servers" = "127.0.0.1:9"
"security.protocol" = "SASL_SSL"
"sasl.mechanism" = "PLAIN"
"sasl.username" = "${MS_MARK_3}"
"sasl.password" = "${MS_MARK_4}"
"ssl.key.password" = "${MS_MARK_5}"
"client.id" = "${MS_MARK_6}"
"ssl.ca.location" = "${MS_MARK_7}"
"""
FILES = """
[versions]
key = "${MS_MARK_0}"
registry = "${MS_MARK_1}.db"
artifacts = "${MS_MARK_2}"
"""


@pytest.fixture
def marked(monkeypatch):
    """Put the marks into the environment."""
    for name, mark in MARKS.items():
        monkeypatch.setenv(name, mark)


def _leaks(*texts: str) -> list[str]:
    return [mark for mark in MARKS.values() if any(mark in text for text in texts)]


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config.toml"],
        *(
            pytest.param(command.split(), marks=pytest.mark.slow)
            for command in (
                "--log-json run config.toml --until-eof",
                "run config.toml --until-eof --json",
                "snapshots list --config config.toml",
                "init-topics config.toml",
            )
        ),
    ],
)
def test_no_message_shows_a_secret_of_servers(tmp_path, marked, command):
    """Brokers, registry and store do not answer or refuse; whatever is said of it names no mark."""
    project = Project(tmp_path, config=KAFKA)
    done = project.call(*command)
    assert done.returncode in (1, 2), done.stderr
    assert (done.stdout + done.stderr).strip()
    assert _leaks(done.stdout, done.stderr) == []


def test_nothing_that_is_written_shows_a_secret(tmp_path, marked):
    """Messages, logs, outputs, journal, snapshots, registry, manifests: nothing but file names."""
    project = Project(tmp_path, config=FILES)
    project.write(events(300))
    said = [project.call("check", "config.toml"), project.call("run", "config.toml", "--until-eof")]
    for command in (["snapshots", "list"], ["snapshots", "verify"], ["history"], ["tag", "1", "x"]):
        said.append(project.call(*command, "--config", "config.toml"))
    assert [done.returncode for done in said] == [0] * len(said), [done.stderr for done in said]
    assert _leaks(*(done.stdout + done.stderr for done in said)) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "predictions.jsonl"} <= {path.name for path in files}
    holding = {
        os.fspath(path.relative_to(tmp_path))
        for path in files
        if _leaks(path.read_bytes().decode(errors="replace"))
    }
    assert holding == set()


@pytest.mark.parametrize(
    "password",
    ["pa@ss-secret", *(pytest.param(p, marks=pytest.mark.slow) for p in ("pa/ss-s", "p:a@b/s"))],
)
def test_a_password_that_is_not_encoded_is_refused_unseen(tmp_path, password):
    """What follows an @ or a / would be taken for the host, and be shown."""
    registry = f'[versions]\nregistry = "postgresql://user:{password}@127.0.0.1:9/db"\n'
    project = Project(tmp_path, config=registry)
    project.write(events(10))
    said = project.refused("snapshots", "list")
    assert "%40" in said
    assert all(part not in said for part in (password, password[-4:]))
