"""Processes that use a registry at once until they are killed, and what has to hold afterwards."""

import multiprocessing
import os
import random
import time
import traceback
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import pytest
import sqlalchemy as sa

from midstream.engine.registry.artifacts import Artifacts
from midstream.engine.registry.database import make_engine
from midstream.engine.registry.registry import CommandError, Registry
from midstream.engine.registry.schema import COMMANDS, MODELS, PARTS, VERSIONS
from midstream.engine.registry.versions import UnknownVersionError
from midstream.engine.shard.commands import Done, Order
from midstream.engine.shard.dataset import DataSet, joined, plain
from midstream.engine.shard.journal import Command
from midstream.engine.state.snapshot import Snapshot

SHARDS = ("000", "001", "002")

# What is compiled and loaded here is so in all processes that are forked from it.
joined([DataSet()])
make_engine(sa.make_url("postgresql+psycopg://"), create=False)

# Not fork: a test's process has threads. All is loaded once, in the server.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "registry_lives"])


def snapshot(version=1, shard="000", **header) -> Snapshot:
    """Return a small part of a version."""
    data = DataSet({f"t-{shard}": [[0, 10 * version]]}, 10 * version, {"s": version}, version)
    default = {
        "shard": shard,
        "seq": version,
        "parent": version - 1,
        "kind": "online",
        "reason": "manual",
        "created": 1_000.0 + version,
        "definition": {"learner": {"kind": "river"}},
        "metrics": {"accuracy": 0.5, "roc_auc": None},
        "data": plain(data),
        "parent_data": plain(DataSet()),
        "digest": f"{version}-{shard}",
    }
    parts = {"learner": f"{version} {shard} ".encode() * 50, "metrics": b""}
    return Snapshot(default | header, parts)


def start(function, *arguments) -> multiprocessing.Process:
    with pytest.MonkeyPatch.context() as patch:
        # Else it does not find what it is to preload.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    process = _CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def at_once(function, arguments) -> None:
    """Run a function in a process for each of `arguments`, from one moment on; all end well."""
    barrier = _CONTEXT.Barrier(len(arguments))
    processes = [start(_together, barrier, function, each) for each in arguments]
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * len(codes), f"exit codes {codes}"


def _together(barrier, function, arguments) -> None:
    barrier.wait(60)
    function(*arguments)


def give(database, artifacts, count, log) -> None:
    """Give so many commands, some with a version, and log their numbers."""
    registry = Registry(database, artifacts, "fraud", create=True)
    registry.join(SHARDS, 0, 0)
    lines = []
    for i in range(count):
        given = registry.order(Order(0, "pause"), Order(0, "snapshot"), Order(0, "resume"), at=i)
        lines += [f"{order.id} {order.version}" for order in given]
    registry.close()
    Path(log).write_text("\n".join(lines))


def watch(database, artifacts, until, log) -> None:
    """Read the commands that are new, over and over; log what comes late, or not at all."""
    registry = Registry(database, artifacts, "fraud", create=True)
    seen = []
    while len(seen) < until:
        seen += [order.id for order in registry.commands(seen[-1] if seen else 0)]
    Path(log).write_text(" ".join(map(str, seen)))
    registry.close()


def ask(database, artifacts, log) -> None:
    """Ask for the version that is due."""
    registry = Registry(database, artifacts, "fraud", create=True)
    registry.join(SHARDS, 0, 0)
    order = registry.request_version("drift", lambda *last: last[-1] == 0)
    Path(log).write_text("" if order is None else str(order.version))
    registry.close()


def put(database, artifacts, version, shards) -> None:
    """Put parts, and make whole what is."""
    registry = Registry(database, artifacts, "fraud")
    for shard in shards:
        registry.put(shard, version, snapshot(version, shard))
        registry.complete()
    registry.close()


def take_or_cancel(database, artifacts, ids, take, log) -> None:
    """Take commands up, or back, in an order of our own; log which."""
    registry = Registry(database, artifacts, "fraud")
    done = []
    for command in random.Random(log.name).sample(ids, len(ids)):
        if take:
            done += [command] if registry.take(command) else []
            continue
        try:
            done += registry.cancel(command, "changed my mind")
        except CommandError:
            continue
    Path(log).write_text(" ".join(map(str, done)))
    registry.close()


def write(place, parts) -> None:
    """Write the same part over and over."""
    while True:
        Artifacts(place, "fraud").write_part(7, "000", {}, parts)


_FILES = ("mkdir", "stat", "open", "write", "fsync", "replace", "unlink", "remove", "rmdir",
          "scandir")  # fmt: skip


@contextmanager
def disturbed(at, other):
    """Have `other` be done before the `at`-th operation on files; give the names of all there were.

    So two processes meet at every point that there is, one after the other, by counting up `at`.
    """
    done = []

    def counting(name, real):
        def operate(*arguments, **options):
            done.append(name)
            if len(done) == at:
                other()
            return real(*arguments, **options)

        return operate

    with pytest.MonkeyPatch.context() as patch:
        for name in _FILES:
            patch.setattr(os, name, counting(name, getattr(os, name)))
        yield done


def live(database, artifacts, seed, log) -> None:
    """Do whatever processors and operators do, until killed; log what was acknowledged."""
    try:
        _live(database, artifacts, random.Random(seed), log)
    except BaseException:
        _append(log, f"failed {traceback.format_exc()!r}")
        os._exit(1)


def _live(database, artifacts, draw, log) -> None:
    registry = Registry(database, artifacts, "fraud", create=True)
    registry.join(SHARDS, 0, 0)
    while True:
        match draw.randrange(12):
            case 0 | 1:
                for order in registry.order(Order(0, "pause"), Order(0, "snapshot")):
                    _append(log, f"order {order.id} {order.kind}")
            case 2 | 3 | 4:
                rows = [row for row in registry.versions(every=True) if row.state == "open"]
                shards = draw.sample(SHARDS, 3)
                for row in rows[-2:]:
                    for shard in shards:
                        registry.put(shard, row.version, snapshot(row.version, shard))
                        _append(log, f"put {row.version} {shard}")
            case 5:
                for version in registry.complete():
                    _append(log, f"complete {version}")
            case 6:
                for version in registry.retention.prune(2, 0.0):
                    _append(log, f"prune {version}")
            case 7:
                whole = registry.versions()
                if whole:
                    row = draw.choice(whole)
                    try:
                        registry.tag(row.version, draw.choice("ab"))
                        registry.order(Order(0, "restore", version=row.version))
                    except UnknownVersionError:
                        continue  # pruned meanwhile
            case 9 | 10:
                waiting = registry.waiting()
                if waiting:
                    command = draw.choice(waiting[-5:]).id
                    try:
                        for gone in registry.cancel(command, "changed my mind"):
                            _append(log, f"cancel {gone}")
                    except CommandError:
                        continue  # it was taken up
            case 11:
                for order in draw.sample(registry.commands(), min(3, len(registry.commands()))):
                    if registry.take(order.id):
                        _append(log, f"take {order.id}")
            case 8:
                done = Done(Command(draw.randrange(1, 9), "pause", at=1.0), draw.randrange(9))
                registry.report(draw.choice(SHARDS), "epoch", [done, done])


def _append(log, line) -> None:
    with Path(log).open("a") as file:
        file.write(line + "\n")


def check(registry, log=None, *, same=False) -> dict[str, int]:
    """Check that a registry and its files are what they have to be; return how much there is.

    With `same`, parts are not told apart by their version.
    """
    with registry.database.reading() as connection:
        models = connection.execute(sa.select(MODELS)).one()
        commands = list(connection.execute(sa.select(COMMANDS).order_by(COMMANDS.c.id)))
        parts = {(p.version, p.shard) for p in connection.execute(sa.select(PARTS))}
        rows = list(connection.execute(sa.select(VERSIONS).order_by(VERSIONS.c.version)))
    assert [row.id for row in commands] == list(range(1, models.next_command)), "a number has a gap"
    assert [row.version for row in rows] == list(range(1, models.next_version))
    taken = {row.id for row in commands if row.taken_at}
    dropped = {row.id for row in commands if row.dropped}
    assert not taken & dropped, "a command was taken up and taken back"
    states = {row.version: row.state for row in rows}
    for row in registry.versions():
        assert [p.shard for p in row.manifest.shards] == row.shards == list(SHARDS)
        assert {(row.version, shard) for shard in row.shards} <= parts
        assert registry.manifest(row.version) == row.manifest
        problems = registry.problems(row.version)
        assert problems == [], problems
        for shard in () if same else SHARDS:
            found, wanted = registry.read(row.version, shard), snapshot(row.version, shard)
            assert found.parts == wanted.parts
            assert found.header["digest"] == wanted.header["digest"]
    gone = {version for version, state in states.items() if state == "removed"}
    assert not {v for v, _ in parts} & gone, "a part of a version that was removed"
    there = set(registry.artifacts.versions())
    assert there <= states.keys(), "files of a version that nobody knows"
    stray = there & gone
    whole = {row.version for row in registry.versions()}
    lines = [line.split() for line in Path(log).read_text().splitlines()] if log else []
    for what, *words in lines:
        assert what != "failed", words
        if what == "order":
            assert int(words[0]) < models.next_command, f"command {words[0]} was acknowledged"
        elif what in ("take", "cancel"):
            assert int(words[0]) in (taken if what == "take" else dropped)
        elif what == "put":
            version = int(words[0])
            assert (version, words[1]) in parts or states[version] in ("removing", "removed")
        elif what == "complete":
            assert states[int(words[0])] in ("complete", "removing", "removed")
        elif what == "prune":
            assert int(words[0]) not in whole
    return {"commands": len(commands), "whole": len(whole), "gone": len(gone), "stray": len(stray)}


def check_whole(registry) -> None:
    """Check that each version is registered with all its parts, or not at all."""
    with registry.database.reading() as connection:
        parts = [(p.version, p.shard) for p in connection.execute(sa.select(PARTS))]
        states = {row.version: row.state for row in connection.execute(sa.select(VERSIONS))}
    whole = {(row.version, shard) for row in registry.versions() for shard in row.shards}
    assert set(parts) == whole
    assert set(states.values()) <= {"complete"}


def settle(registry) -> None:
    """Go on after kills: what can be made whole is, what was begun to be removed is removed."""
    for row in registry.versions(every=True):
        if row.state == "open":
            for shard in SHARDS:
                registry.put(shard, row.version, snapshot(row.version, shard))
    registry.complete()
    registry.retention.prune(1, 0.0)
    states = {row.version: row.state for row in registry.versions(every=True)}
    assert set(states.values()) <= {"complete", "removed"}, states


def kill_after(processes, seconds, log=None) -> None:
    """Kill processes so long after they began, or, with a `log`, after something was done in it."""
    if log is not None:
        size, until = Path(log).stat().st_size, time.monotonic() + 60
        while Path(log).stat().st_size == size and time.monotonic() < until:
            time.sleep(0.005)
    time.sleep(seconds)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
