"""Who may only read: another user, one of a group, over a read-only mount; what is refused."""

import json
import os
import shutil
import sqlite3
import sys
import time

import pytest
from project import PATIENCE, Project, events, stop, wait_for
from readers import KINDS, NOBODY, Reader, listing, only_readable

FEATURES = "".join(f'f{i} = "number"\n' for i in range(5))
CONFIG = f"[versions]\npoll_seconds = 0.05\nevery_events = 100\n[features]\n{FEATURES}"
ROOT = os.geteuid() == 0

READS = (
    ("snapshots", "list"),
    ("snapshots", "verify"),
    ("snapshots", "show", "1"),
    ("snapshots", "diff", "1", "2"),
    ("history",),
    ("commands", "list"),
)
WRITES = (
    ("restore", "1", "--yes"),
    ("promote", "1"),
    ("rollback",),
    ("pause",),
    ("resume",),
    ("tag", "1", "release"),
    ("snapshots", "create"),
    ("snapshots", "prune"),
    ("snapshots", "adopt"),
    ("commands", "cancel", "1"),
)
ALL = """
import io, json, sys
from contextlib import redirect_stdout
from midstream.flows.cli import cli
for arguments in json.loads(sys.argv[1]):
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            cli([*arguments, "--config", "config.toml", "--json"], standalone_mode=False)
        code = 0
    except SystemExit as ending:
        code = ending.code
    print(json.dumps([code, out.getvalue()]))
"""
"""Several commands, one after the other, in one process."""


def several(reader, commands):
    """Return exit code and JSON of commands that a reader gives."""
    done = reader.python("-c", ALL, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [(code, json.loads(text)) for code, text in found]


def small(folder):
    one = Project(folder, config=CONFIG)
    one.config.write_text(one.config.read_text().replace("models:make", "logistic"))
    return one


def append(one, lines):
    with (one.folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A project with two versions, whose run has ended in order."""
    one = small(tmp_path_factory.mktemp("ended") / "project")
    one.write(events(150))
    one.run()
    one.write(events(300))
    one.run()
    assert not (one.folder / "state" / "registry.db-wal").exists()
    return one.folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory, ended):
    """The same, whose run was killed while its last versions were only in the registry's log."""
    folder = tmp_path_factory.mktemp("killed") / "project"
    shutil.copytree(ended, folder)
    one = small(folder)
    process = one.running()
    try:
        append(one, events(700)[300:])
        told = lambda: b"event=version " in (folder / "log").read_bytes()  # noqa: E731
        wait_for(told, what="a version")
    finally:
        process.kill()
        process.communicate()
    log = folder / "state" / "registry.db-wal"
    assert log.stat().st_size > 0
    assert sqlite_versions(ended) == in_file(folder), "the file itself has none of the new ones"
    return folder


def sqlite_versions(folder):
    """Return the versions that a registry has, read in a copy."""
    copy = folder.parent / "look"
    shutil.copytree(folder / "state", copy)
    try:
        connection = sqlite3.connect(copy / "registry.db")
        rows = connection.execute("SELECT version FROM midstream_versions WHERE state = 'complete'")
        found = sorted(row[0] for row in rows)
        connection.close()
    finally:
        shutil.rmtree(copy)
    return found


def in_file(folder):
    """Return the versions that the registry's file has without its log."""
    where = f"file:{folder / 'state' / 'registry.db'}?immutable=1"
    connection = sqlite3.connect(where, uri=True)
    rows = connection.execute("SELECT version FROM midstream_versions WHERE state = 'complete'")
    found = sorted(row[0] for row in rows)
    connection.close()
    return found


def copied(source, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(source, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["ended", "killed", "killed, memory gone"])
def test_versions_are_read_without_a_right_to_write(kind, state, request, tmp_path):
    """A reader sees what the owner sees, whatever the run has left, and changes nothing."""
    folder = copied(request.getfixturevalue(state.partition(",")[0]), tmp_path)
    if state.endswith("gone"):
        (folder / "state" / "registry.db-shm").unlink()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    expected = sqlite_versions(folder)
    assert len(expected) >= (2 if state == "ended" else 3)
    with only_readable(folder, kind):
        before = listing(folder)
        found = several(Reader(folder, kind, scratch), READS)
        assert listing(folder) == before
    assert [row["version"] for row in found[0][1]] == expected
    assert [code for code, _ in found] == [0] * len(READS), found
    assert found[1][1] == {str(version): [] for version in expected}, "all are sound"
    owner = several(Reader(folder, "owner"), READS)
    assert found == owner


@pytest.mark.skipif(not ROOT, reason="needs another user: run the tests as root")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_versions_are_read_while_a_run_writes(kind, ended, tmp_path):
    """What a reader is told is never older than what it was told before, and in the end all."""
    folder = copied(ended, tmp_path)
    one = small(folder)
    if kind == "group":
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 0, NOBODY - 1)
            path.chmod(0o2750 if path.is_dir() else 0o640)
    before = os.umask(0o027 if kind == "group" else 0o022)
    try:
        process = one.running()
    finally:
        os.umask(before)
    reader = Reader(folder, kind)
    program = ALL.replace("for arguments in", "for arguments in 40 * ")
    reading = reader.start(sys.executable, "-c", program, json.dumps(READS[:1]))
    lines = events(3_000)
    for start in range(300, 3_000, 100):
        append(one, lines[start : start + 100])
        time.sleep(0.02)
    out, err = reading.communicate(timeout=PATIENCE)
    assert reading.returncode == 0, err
    seen = [json.loads(json.loads(line)[1]) for line in out.splitlines()]
    assert len(seen) == 40
    newest = [rows[-1]["version"] for rows in seen]
    assert newest == sorted(newest), newest
    wait_for(lambda: len(one.output("predictions")) == 3_000, what="all events")
    stop(process)
    (last,) = several(reader, READS[:1])
    assert [row["version"] for row in last[1]] == sqlite_versions(folder)
    assert last[1][-1]["seen"] == 3_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_has_to_write_is_refused_before_anything(kind, ended, tmp_path):
    """Commands that write say in one line which file they may not write to; nothing is asked."""
    folder = copied(ended, tmp_path)
    with only_readable(folder, kind):
        before = listing(folder)
        found = several(Reader(folder, kind), WRITES)
        assert listing(folder) == before
    for arguments, (code, told) in zip(WRITES, found, strict=True):
        assert code == 1, (arguments, told)
        why = told["error"]
        assert why.startswith(f"{folder / 'state'}"), (arguments, why)
        assert "no right to write" in why, (arguments, why)
        assert ("read-only file system" in why) == (kind == "mount"), why


@pytest.mark.slow
def test_a_reader_predicts_and_checks_without_a_home(ended, tmp_path):
    """Predicting needs no home, package or cache to write to; check names what it cannot write."""
    folder = copied(ended, tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    one = small(folder)
    expected = one.call("predict", "--config", "config.toml", "events.jsonl")
    assert expected.returncode == 0, expected.stderr
    with only_readable(folder, "other"):
        before = listing(folder)
        reader = Reader(folder, "other", scratch)
        found = reader.call("predict", "--config", "config.toml", "events.jsonl")
        assert found.returncode == 0, found.stderr
        assert found.stdout == expected.stdout
        done = reader.call("check", "config.toml", "--json")
        assert listing(folder) == before
    assert done.returncode == 1, done.stderr
    failed = {f["what"]: f["detail"] for f in json.loads(done.stdout)["findings"] if not f["ok"]}
    assert set(failed) == {"state folder", "output folder", "versions"}
    assert all("no right to write" in detail for detail in failed.values()), failed
    assert failed["state folder"].startswith(str(folder / "state"))


UNREADABLE = {
    "events.jsonl": "run",
    "config.toml": "run",
    "state/registry.db": "snapshots",
    "state/artifacts": "snapshots",
    "state/shards/*": "run",
    "state/shards/*/journal-*.log": "run",
    "state/shards/*/snapshot-*.midstream": "run",
    "state/shards/locks": "run",
    "state/lock": "run",
    "state/artifacts/*/*/*/learner.zst": "snapshots",
    "state/artifacts/*/*/manifest.json": "snapshots",
}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", UNREADABLE)
def test_what_cannot_be_read_is_named(pattern, ended, tmp_path):
    """Input, config, state, journal, snapshot, registry and artifact: one line, with its name."""
    folder = copied(ended, tmp_path)
    small(folder).write(events(310))
    if ROOT:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    closed = sorted(folder.glob(pattern))[-1]
    mode = closed.stat().st_mode
    closed.chmod(0)
    reader = Reader(folder)
    try:
        if UNREADABLE[pattern] == "run":
            done = reader.call("run", "config.toml", "--until-eof")
        else:
            done = reader.call("snapshots", "verify", "--config", "config.toml")
        checked = reader.call("check", "config.toml")
    finally:
        closed.chmod(mode)
    assert done.returncode in (1, 2), done.stderr
    told = [line for line in (done.stderr + done.stdout).splitlines() if "cannot be read" in line]
    assert told, (done.stdout, done.stderr)
    assert closed.name in told[-1]
    assert "Permission denied" in told[-1]
    assert "another file" not in done.stderr
    assert "internal error" not in done.stderr
    if not pattern.endswith(("zst", "json")):
        assert checked.returncode in (1, 2)
        assert closed.name in checked.stdout + checked.stderr


@pytest.mark.slow
def test_a_run_without_a_right_to_write_says_so(ended, tmp_path):
    """A run that may only read its state, or its outputs, is one line that names the file."""
    folder = copied(ended, tmp_path)
    small(folder).write(events(310))
    with only_readable(folder, "other"):
        done = Reader(folder).call("run", "config.toml", "--until-eof")
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"midstream: {folder / 'state' / 'lock'}: no right to write"
    )
