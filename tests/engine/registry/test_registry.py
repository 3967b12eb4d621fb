"""The registry: versions whole or absent, numbers that rise, nothing lost of what was told.

On SQLite and on PostgreSQL.
"""

import hashlib
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
import pytest
import registry_lives as lives
import sqlalchemy as sa
from registry_lives import SHARDS, snapshot
from river import linear_model

from midstream.engine.registry import database as db
from midstream.engine.registry.artifacts import ArtifactError, StoreError
from midstream.engine.registry.database import RegistryError
from midstream.engine.registry.registry import CommandError, Drifted, Registry, ShardRow
from midstream.engine.registry.schema import META, MODELS, PARTS, VERSIONS
from midstream.engine.registry.versions import UnknownVersionError
from midstream.engine.shard.commands import JUST_MADE, Done, Order
from midstream.engine.shard.journal import Command
from midstream.engine.state.snapshot import Snapshot
from midstream.engine.training.trainer import Trainer

DAY = 86_400.0
NOW = 1_000 * DAY
FULL = """
import sys
from midstream.engine.registry.registry import Registry, RegistryError
from midstream.engine.shard.commands import Order
registry = Registry(sys.argv[1] + "/registry.db", sys.argv[1] + "/artifacts", "fraud", create=True)
try:
    for i in range(10_000):
        registry.order(Order(0, "pause", reason="x" * 5_000))
except RegistryError as error:
    print(error)
print(len(registry.commands()) == i)
"""
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=600k none "$1" || exit 99
exec "$2" -c "$3" "$1"
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Where a registry is to be."""
    if request.param == "sqlite":
        return str(tmp_path / "registry.db")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def opened():
    """Opens registries, and closes them."""
    found = []

    def open_(database, artifacts, model="fraud", *, create=True, **options):
        found.append(Registry(database, artifacts, model, create=create, **options))
        return found[-1]

    yield open_
    for registry in found:
        registry.close()


@pytest.fixture
def registry(url, tmp_path, opened):
    """A registry of three shards without a version."""
    made = opened(url, tmp_path / "artifacts")
    made.join(SHARDS, 0, 0)
    return made


@pytest.fixture
def local(tmp_path, opened):
    """The same, on SQLite."""
    made = opened(tmp_path / "registry.db", tmp_path / "artifacts")
    made.join(SHARDS, 0, 0)
    return made


def make(registry, count=1, *, at=None, **header) -> list[int]:
    """Make versions whole; return their numbers."""
    made = []
    for i in range(count):
        created = NOW + i if at is None else at
        (order,) = registry.order(Order(0, "snapshot", reason="manual"), at=created)
        for shard in SHARDS:
            part = snapshot(order.version, shard, created=created, **header)
            registry.put(shard, order.version, part)
        made += registry.complete()
    return made


def numbers(registry) -> list[int]:
    return [row.version for row in registry.versions()]


def said(error, *words) -> None:
    """Check that an error is one line with these words in it."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400, f"{len(text)} characters; limit 400: {text}"
    for word in words:
        assert word in text, text
    assert "secret" not in text


# --- versions are whole or absent


@pytest.mark.parametrize("order", [SHARDS, SHARDS[::-1], (SHARDS[1], SHARDS[0], SHARDS[2])])
def test_a_version_is_there_once_all_its_parts_are(registry, order):
    """In whatever order they come; until then it is absent, and whoever asks is told why."""
    (given,) = registry.order(Order(0, "snapshot", reason="manual"))
    for shard in order:
        assert registry.versions() == []
        assert registry.complete() == []
        with pytest.raises(UnknownVersionError) as error:
            registry.load(given.version)
        said(error, "version 1 of fraud is not whole yet", "there is none at all yet")
        registry.put(shard, given.version, snapshot(1, shard))
    assert registry.complete() == [1]
    assert registry.complete() == []
    (row,) = registry.versions()
    assert (row.version, row.state, row.shards) == (1, "complete", list(SHARDS))
    lives.check(registry)


def test_a_manifest_tells_what_its_parts_tell(registry):
    """Data of all shards, in total and since the parent; what it is of, and what made it."""
    make(registry, 2)
    manifest = registry.manifest(2)
    assert (manifest.model, manifest.version, manifest.parent) == ("fraud", 2, 1)
    assert (manifest.kind, manifest.reason, manifest.created) == ("online", "manual", NOW + 1)
    assert manifest.data["total"]["stretches"] == {f"t-{s}": [[0, 20]] for s in SHARDS}
    assert manifest.data["total"]["events"] == 60
    assert manifest.data["since_parent"]["sources"] == {"s": 6}
    assert set(manifest.metrics) == set(SHARDS)
    assert {"midstream", "python", "river", "numpy"} <= set(manifest.libraries)
    assert registry.version(2).manifest == manifest


def test_what_is_put_again_changes_nothing(registry):
    """Before it is whole and afterwards; a part of a version that was removed is not kept."""
    make(registry, 2)
    before = registry.versions(), registry.manifest(1)
    for shard in SHARDS:
        registry.put(shard, 1, snapshot(1, shard))
    assert registry.complete() == []
    assert (registry.versions(), registry.manifest(1)) == before
    registry.retention.prune(1, 0.0, NOW)
    registry.put("000", 1, snapshot(1))
    assert registry.artifacts.versions() == [2]
    lives.check(registry)


def test_parts_put_at_once_are_one_version(registry):
    """Threads that put the same parts and make it whole do not get into each other's way."""
    (given,) = registry.order(Order(0, "snapshot", reason="manual"))
    errors, made = [], []

    def work(shards):
        try:
            for shard in shards:
                registry.put(shard, given.version, snapshot(1, shard))
                made.extend(registry.complete())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(SHARDS[::step],)) for step in (1, -1) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert made == [1], f"made whole {len(made)} times"
    lives.check(registry)


def test_processes_that_put_at_once_are_one_version(url, registry, tmp_path):
    """So do processes: each writes all parts, in an order of its own."""
    registry.order(Order(0, "snapshot", reason="manual"))
    registry.close()
    orders = [SHARDS, SHARDS[::-1], SHARDS[1:], SHARDS[:2]]
    lives.at_once(lives.put, [(url, tmp_path / "artifacts", 1, order) for order in orders])
    assert numbers(registry) == [1]
    lives.check(registry)


def test_who_comes_second_does_not_damage_what_is_whole(local, monkeypatch):
    """A process with other libraries that makes a version whole at the same time loses."""
    local.order(Order(0, "snapshot", reason="manual"))
    for shard in SHARDS:
        local.put(shard, 1, snapshot(1, shard))
    write = local.artifacts.write_manifest

    def outrun(manifest):
        monkeypatch.setattr(local.artifacts, "write_manifest", write)
        assert local.complete() == [1]
        return write(msgspec.structs.replace(manifest, libraries={"python": "another"}))

    monkeypatch.setattr(local.artifacts, "write_manifest", outrun)
    assert local.complete() == []
    lives.check(local)


def test_a_part_that_comes_while_it_is_pruned_leaves_nothing(local, monkeypatch):
    """An abandoned version that is removed under who puts a part is removed with that."""
    for day in (0, 2, 4, 6):
        local.order(Order(0, "snapshot", reason="manual"), at=NOW + day * DAY)
    write = local.artifacts.write_part

    def slow(*arguments):
        assert local.retention.prune(1, 0.0, NOW + 8 * DAY) == [1]
        return write(*arguments)

    monkeypatch.setattr(local.artifacts, "write_part", slow)
    local.put("000", 1, snapshot(1))
    assert local.artifacts.versions() == []
    lives.check(local)


@pytest.mark.parametrize("work", ["put", "complete"])
def test_who_makes_a_version_that_is_taken_back_and_pruned_gets_on(local, work):
    """At whatever point that comes: it does not fail, and no file of the version stays."""
    make(local)
    local.retention.prune(0, 0.0)  # all that is loaded late is loaded
    for at in count(1):
        (given,) = local.order(Order(0, "snapshot", reason="manual"))
        first, *rest = [
            partial(local.put, shard, given.version, snapshot(given.version, shard))
            for shard in SHARDS
        ]
        for put in rest if work == "put" else (first, *rest):
            put()

        def other(command=given.id):
            with suppress(CommandError):  # it is whole already
                local.cancel(command, "changed my mind")
            local.retention.prune(0, 0.0)

        with lives.disturbed(at, other) as done:
            first() if work == "put" else local.complete()
        if len(done) < at:
            break
        assert local.artifacts.versions() == [], f"step {at}"
    assert at > 10, "they did not meet"
    lives.check(local)


# --- commands


def test_numbers_rise_whoever_gives_commands(url, tmp_path, registry):
    """Of four processes at once none is given twice or left out, and pieces are not torn apart.

    A fifth reads what is new all the while: none comes after a higher one was there.
    """
    registry.close()
    count, each = 4, 20
    total = count * each * 3
    logs = [tmp_path / f"log-{i}" for i in range(count)]
    reader = lives.start(lives.watch, url, tmp_path / "artifacts", total, tmp_path / "read")
    lives.at_once(lives.give, [(url, tmp_path / "artifacts", each, log) for log in logs])
    reader.join(60)
    assert reader.exitcode == 0
    given = [
        [tuple(map(int, line.split())) for line in log.read_text().split("\n")] for log in logs
    ]
    ids = sorted(number for log in given for number, _ in log)
    versions = sorted(version for log in given for _, version in log if version)
    assert ids == list(range(1, total + 1))
    assert versions == list(range(1, count * each + 1))
    for log in given:
        firsts = [number for number, _ in log[::3]]
        assert [number for number, _ in log] == [f + i for f in firsts for i in range(3)]
    assert (tmp_path / "read").read_text() == " ".join(map(str, range(1, total + 1)))
    lives.check(registry)


def test_a_restore_names_the_version_before_it(registry):
    """Given in one piece with a snapshot, it knows by which number one can go back."""
    make(registry)
    cut, restore = registry.order(
        Order(0, "snapshot", reason="before a restore"),
        Order(0, "restore", version=1, before=JUST_MADE, reason="worse"),
    )
    assert (cut.id, cut.version, cut.kind) == (2, 2, "snapshot")
    assert (restore.id, restore.version, restore.before) == (3, 1, 2)
    assert registry.commands(1) == [cut, restore]
    assert registry.commands(3) == []


@pytest.mark.parametrize("version", [5, -1, 2**31, 10**30])
def test_a_command_that_names_an_unknown_version_is_not_given(registry, version):
    """Nor anything else of the same piece; the message says which versions there are."""
    make(registry)
    with pytest.raises(UnknownVersionError) as error:
        registry.order(Order(0, "snapshot"), Order(0, "restore", version=version))
    said(error, f"there is no version {version} of fraud; there are 1 to 1")
    assert [order.kind for order in registry.commands()] == ["snapshot"]
    assert registry.order(Order(0, "pause"))[0].id == 2
    with pytest.raises(UnknownVersionError):
        registry.version(version)
    lives.check(registry)


def test_an_empty_registry_says_so(registry):
    """Whoever asks for a version of it is told that there is none."""
    for work in (registry.version, registry.load, registry.manifest, registry.problems):
        with pytest.raises(UnknownVersionError) as error:
            work(1)
        said(error, "there is no version 1 of fraud; there is none at all yet")
    assert registry.versions() == []
    assert registry.retention.kept(3, 3) == {}
    assert registry.retention.prune(3, 3) == []
    assert registry.newest() == (0.0, 0, 0, "", 0)


def test_a_registry_made_anew_gives_no_number_again(registry):
    """Shards tell it how far theirs went; what is lower than what it has changes nothing."""
    registry.join(SHARDS, 41, 7)
    registry.join(SHARDS, 3, 2)
    order = registry.order(Order(0, "snapshot", reason="manual"))[0]
    assert (order.id, order.version) == (42, 8)


def test_a_part_makes_its_version_known_again(registry):
    """In a registry that was lost, a part from an outbox is put as any other."""
    for shard in SHARDS:
        registry.put(shard, 5, snapshot(5, shard))
    assert registry.complete() == [5]
    assert registry.manifest(5).created == 1_005.0


def test_commands_that_no_shard_answered_are_dropped(registry):
    """They are not brought to any more; what one shard has carried out, the others will too."""
    registry.order(Order(0, "pause"), Order(0, "resume"), Order(0, "pause"))
    registry.report("000", "e", [Done(Command(2, "resume"), 1, done_at=1.0)])
    assert registry.drop("changed my mind") == 2
    assert registry.drop("again") == 0
    assert [order.id for order in registry.commands()] == [2]
    assert registry.order(Order(0, "pause"))[0].id == 4


def test_a_command_is_taken_up_or_taken_back(registry):
    """Whichever comes first; what one shard has taken up is for all of them."""
    first, second, third = registry.order(Order(0, "pause"), Order(0, "resume"), Order(0, "pause"))
    assert registry.take(first.id)
    assert registry.take(first.id), "by another shard"
    with pytest.raises(CommandError) as error:
        registry.cancel(first.id, "taken back")
    said(error, f"command {first.id} (pause) cannot be taken back: a processor has taken it up")
    assert registry.cancel(second.id, "taken back") == [second.id]
    assert not registry.take(second.id)
    with pytest.raises(CommandError) as error:
        registry.cancel(second.id, "taken back")
    said(error, f"command {second.id} (resume) was dropped: taken back")
    assert [order.id for order in registry.commands()] == [first.id, third.id]
    registry.report("000", "e", [Done(Command(third.id, "pause"), 1, done_at=1.0)])
    with pytest.raises(CommandError):
        registry.cancel(third.id, "taken back")
    with pytest.raises(CommandError) as error:
        registry.cancel(99, "taken back")
    said(error, "there is no command 99 of fraud that waits")
    lives.check(registry)


def test_what_was_given_in_one_piece_is_taken_back_in_one(registry):
    """A restore with the versions before and after it, but for what was taken up already."""
    make(registry)

    def give():
        return [
            order.id
            for order in registry.order(
                Order(0, "snapshot", reason="before"),
                Order(0, "rewind", version=1, before=JUST_MADE),
                Order(0, "snapshot", reason="after", cut="restored"),
            )
        ]

    for i in range(3):
        ids = give()
        assert registry.cancel(ids[i], "taken back") == ids, "by whichever number"
    before, rewind, after = give()
    assert registry.take(before)
    assert registry.cancel(rewind, "taken back") == [rewind, after]
    before, rewind, after = give()
    registry.take(before), registry.take(rewind)
    for command in (before, rewind, after):
        with pytest.raises(CommandError):
            registry.cancel(command, "taken back")
    with pytest.raises(UnknownVersionError) as error:
        registry.version(2)
    said(error, "version 2 of fraud was not made: its command was taken back")
    assert registry.newest()[-1] == 11, "what was taken back is not the last that was asked for"
    lives.check(registry)


def test_what_waits_is_listed(registry):
    """Until every shard that it is for has carried it out, with who has."""
    (pause,) = registry.order(Order(0, "pause", reason="maintenance", by="ann@host"), at=5.0)
    (waiting,) = registry.waiting()
    assert (waiting.id, waiting.kind, waiting.by, waiting.at) == (
        pause.id,
        "pause",
        "ann@host",
        5.0,
    )
    assert (waiting.reason, waiting.taken_at) == ("maintenance", 0.0)
    assert (waiting.answered, waiting.missing) == ([], list(SHARDS))
    registry.take(pause.id)
    done = Done(Command(pause.id, "pause"), 1)
    registry.report("001", "e", [done])
    (waiting,) = registry.waiting()
    assert waiting.taken_at > 0
    assert waiting.missing == list(SHARDS), "it has not taken effect yet"
    for shard in SHARDS:
        assert shard in registry.waiting()[0].missing
        registry.report(shard, "e", [msgspec.structs.replace(done, done_at=2.0)])
    assert registry.waiting() == []
    registry.order(Order(0, "resume"))
    registry.drop("started over")
    assert registry.waiting() == []


@pytest.mark.slow
def test_a_command_is_taken_up_or_taken_back_by_processes_at_once(url, tmp_path, registry):
    """Of processes that take up and take back all commands at once, one has each."""
    ids = [order.id for order in registry.order(*[Order(0, "pause")] * 40)]
    registry.close()
    logs = [tmp_path / f"log-{i}" for i in range(4)]
    lives.at_once(
        lives.take_or_cancel,
        [(url, tmp_path / "artifacts", ids, bool(i % 2), log) for i, log in enumerate(logs)],
    )
    taken, cancelled = (
        [int(number) for log in logs[k::2] for number in log.read_text().split()] for k in (1, 0)
    )
    assert set(taken) | set(cancelled) == set(ids)
    assert not set(taken) & set(cancelled)
    assert len(cancelled) == len(set(cancelled)), "a command was taken back twice"
    lives.check(registry)


# --- equal versions


def test_a_version_equal_to_the_newest_is_not_made(registry):
    """Its number stands for that one, which a command that names it as `before` keeps."""
    (first,) = make(registry, digest="d", cursors={"p": [5, 1, 0, 0]})
    same = snapshot(1).header | {"digest": "d", "cursors": {"p": [5, 1, 0, 0]}}

    def put(version, **other):
        parts = snapshot(1).parts
        for shard in SHARDS:
            header = snapshot(1, shard).header | same | {"shard": shard} | other
            header["data"] = snapshot(1, shard).header["data"]
            registry.put(shard, version, Snapshot(header, parts))
        return registry.complete()

    cut, restore = registry.order(
        Order(0, "snapshot", reason="before restore"),
        Order(0, "restore", version=first, before=JUST_MADE),
    )
    assert put(cut.version) == []
    assert numbers(registry) == [first] == registry.artifacts.versions()
    assert registry.standing(restore.before) == registry.standing(first) == first
    assert registry.same() == {cut.version: first}
    with pytest.raises(UnknownVersionError) as error:
        registry.version(cut.version)
    said(error, "version 2 of fraud was not made: it is equal to version 1; there are 1 to 1")
    assert registry.retention.kept(0, 0.0)[first] == [
        "was put live", "was live before another was"
    ]  # fmt: skip
    for other in ({"digest": "e"}, {"cursors": {"p": [6, 1, 0, 0]}}, {"skips": [[1, 2]]}):
        (order,) = registry.order(Order(0, "snapshot"))
        assert put(order.version, **other) == [order.version], f"it differs in {other}"
    (order,) = registry.order(Order(0, "snapshot"))
    assert put(order.version) == [order.version], "it is equal to an older one only"
    (order,) = registry.order(Order(0, "snapshot"))
    assert put(order.version) == []
    (last,) = make(registry, parent=order.version)
    assert registry.version(last).parent == order.version - 1
    lives.check(registry, same=True)


def test_an_equal_version_is_not_made_whoever_stops_where(local, monkeypatch):
    """Wherever its removal fails, it is absent, and the next call goes on."""
    make(local, digest="d")
    (order,) = local.order(Order(0, "snapshot"))
    for shard in SHARDS:
        part = snapshot(1, shard)
        local.put(shard, order.version, Snapshot(part.header | {"digest": "d"}, part.parts))
    remove = local.artifacts.remove
    monkeypatch.setattr(
        local.artifacts, "remove", lambda _: (_ for _ in ()).throw(StoreError("no answer"))
    )
    with pytest.raises(StoreError):
        local.complete()
    assert numbers(local) == [1]
    monkeypatch.setattr(local.artifacts, "remove", remove)
    assert local.complete() == []
    assert local.retention.prune(5, 5.0) == [], "it is no version that was removed"
    assert local.artifacts.versions() == [1]
    assert {row.state for row in local.versions(every=True)} == {"complete", "removed"}


def test_what_is_told_twice_is_told_once(registry):
    """What took effect later is added to what was told; and stays, whatever comes after."""
    begun = Done(Command(1, "promote", 3, at=5.0, reason="why"), 7, seen=10)
    done = msgspec.structs.replace(begun, done_at=9.0)
    for told in (
        [begun],
        [begun, begun],
        [done],
        [begun],
        [msgspec.structs.replace(done, done_at=11.0)],
    ):
        registry.report("000", "e", told)
    registry.report("001", "e", [begun])
    registry.report("000", "later", [begun])
    found = registry.deployments()
    assert [(d.shard, d.epoch, d.done_at) for d in sorted(found, key=lambda d: d.shard)] in (
        [("000", "e", 9.0), ("000", "later", None), ("001", "e", None)],
        [("000", "later", None), ("000", "e", 9.0), ("001", "e", None)],
    )
    assert found[0].kind == "promote"
    assert registry.deployments([2]) == []


def test_alarms_are_told_once(registry):
    """What is told again changes nothing; they come back oldest first."""
    two = [Drifted("001", "e", 0, 20, "adwin", 2.0), Drifted("000", "e", 0, 10, "adwin", 1.0)]
    registry.alarm(two)
    registry.alarm(two)
    assert registry.alarms() == two[::-1]


def test_an_alarm_of_drift_asks_for_a_version_once(registry):
    """In one piece with being told; told again, or of another kind, it does not."""
    drift = Drifted("000", "e", 0, 10, "adwin", 1.0)
    asked = []

    def due(*last):
        asked.append(last)
        return True

    order = registry.alarm([drift, drift._replace(detector="page_hinkley")], due)
    assert (order.kind, order.reason) == ("snapshot", "drift")
    assert registry.alarm([drift], due) is None
    assert registry.alarm([drift._replace(kind="non_finite")], due) is None
    assert len(registry.commands()) == len(asked) == 1
    registry.order(Order(0, "snapshot", reason="manual"))
    assert registry.alarm([drift._replace(position=20)], due).version == 3
    assert asked[1][3:] == ("drift", 1), "the last that was for drift"


def test_alarms_of_one_position_are_told_apart(registry):
    """By detector, feature and kind."""
    loss = Drifted("000", "e", 0, 10, "adwin", 1.0)
    several = [
        loss,
        loss._replace(detector="page_hinkley"),
        loss._replace(feature="age"),
        loss._replace(kind="non_finite"),
    ]
    registry.alarm(several)
    assert sorted(registry.alarms()) == sorted(several)


def test_a_registry_of_schema_1_is_brought_up_to_date(url, tmp_path, opened, registry):
    """With all that it holds, by the next run; commands say that until then."""
    make(registry)
    registry.order(Order(0, "pause"))
    registry.alarm([Drifted("000", "e", 0, 10, "adwin", 1.0)])
    before = (registry.versions(), registry.commands(), registry.alarms(), registry.shards())
    with registry.database.writing() as connection:
        connection.execute(sa.update(MODELS).values(schema=1))
        for column in ("midstream_shards DROP COLUMN sources",
                       "midstream_commands DROP COLUMN taken_at"):  # fmt: skip
            connection.exec_driver_sql(f"ALTER TABLE {column}")
        connection.exec_driver_sql("DROP TABLE midstream_alarms")
        connection.exec_driver_sql(
            "CREATE TABLE midstream_alarms (model TEXT, epoch TEXT, shard TEXT, command INTEGER, "
            "position BIGINT, detector TEXT, at FLOAT, "
            "PRIMARY KEY (model, epoch, shard, command, position, detector))"
        )
        connection.exec_driver_sql(
            "INSERT INTO midstream_alarms VALUES ('fraud', 'e', '000', 0, 10, 'adwin', 1.0)"
        )
    registry.close()
    with pytest.raises(RegistryError) as error:
        opened(url, tmp_path / "artifacts", create=False)
    said(error, "is of an older Midstream (schema 1); the next `midstream run` brings it")
    new = opened(url, tmp_path / "artifacts")
    assert (new.versions(), new.commands(), new.alarms(), new.shards()) == before
    new.alarm([Drifted("000", "e", 0, 10, "adwin", 1.0, kind="non_finite")])
    assert len(new.alarms()) == 2
    assert new.take(1)
    lives.check(new)


def test_shards_tell_how_they_get_on(registry):
    """The last word of each counts; a run that stopped beats no more."""
    beats = [ShardRow(s, "host", 5, 9.0, 2**40 + i, bool(i), "run") for i, s in enumerate(SHARDS)]
    registry.beat(beats)
    registry.join(SHARDS, 0, 0)
    assert registry.shards() == beats
    assert registry.newest()[2] == 3 * 2**40 + 3
    registry.leave("another")
    assert registry.shards() == beats
    registry.leave("run")
    assert [row.beat_at for row in registry.shards()] == [0.0] * 3


def test_a_tag_is_of_one_version(registry):
    """It moves when it is given again, and says whose it was; it needs a version that is there."""
    make(registry, 2)
    assert registry.tag(1, "gold") is None
    assert registry.tag(1, "a'b; é") is None
    assert registry.tag(2, "gold") == 1
    assert [row.tags for row in registry.versions()] == [["a'b; é"], ["gold"]]
    assert registry.untag("gold") == 2
    assert registry.untag("gold") is None
    assert registry.version(2).tags == []
    with pytest.raises(UnknownVersionError):
        registry.tag(3, "gold")
    assert registry.untag("gold") is None


def test_several_that_ask_for_a_version_get_one(url, tmp_path, registry):
    """Of four processes that find at once that it is time, one asks."""
    registry.close()
    logs = [tmp_path / f"log-{i}" for i in range(4)]
    lives.at_once(lives.ask, [(url, tmp_path / "artifacts", log) for log in logs])
    assert sorted(log.read_text() for log in logs) == ["", "", "", "1"]
    assert [order.kind for order in registry.commands()] == ["snapshot"]


def test_whether_a_version_is_due_is_asked_of_the_last(registry):
    """When it was asked for, what was seen then and now, why, and its number."""
    told = []
    registry.request_version("drift", lambda *last: told.append(last) or True, at=5.0)
    registry.beat([ShardRow("000", "", 0, 1.0, 30, paused=False)])
    registry.request_version("schedule", lambda *last: told.append(last) or True, at=6.0)
    assert registry.request_version("drift", lambda *last: told.append(last)) is None
    assert told == [(0.0, 0, 0, "", 0), (5.0, 0, 30, "drift", 1), (6.0, 30, 30, "schedule", 2)]
    assert registry.newest() == told[-1]


# --- a registry that was lost


def test_what_was_lost_is_taken_up_from_its_files(registry, url, tmp_path, opened, monkeypatch):
    """Wherever that stops, a version is registered whole or not at all; the next call goes on."""
    make(registry, 3)
    before = [(row.version, row.manifest) for row in registry.versions()]
    registry.retention.prune(2, 0.0, NOW + DAY)
    with registry.database.writing() as connection:
        for table in META.tables.values():
            connection.execute(sa.delete(table))
    registry.close()
    new = opened(url, tmp_path / "artifacts")
    real = new.database.add
    for stop in range(1, 11):  # of two versions, each a row, three parts and a tag
        calls = iter(range(1, 100))

        def failing(*arguments, calls=calls, stop=stop):
            if next(calls) == stop:
                raise RegistryError("killed")
            real(*arguments)

        monkeypatch.setattr(new.database, "add", failing)
        with suppress(RegistryError):
            new.adopt()
        lives.check_whole(new)
    monkeypatch.setattr(new.database, "add", real)
    new.adopt()
    assert [(row.version, row.manifest) for row in new.versions()] == before[1:]
    assert new.retention.kept(0, 0.0) == {2: ["tagged adopted-2"], 3: ["tagged adopted-3"]}
    assert new.retention.prune(0, 0.0) == []
    new.join(SHARDS, 17, 0)
    assert make(new) == [4], "numbers go on after them"
    assert new.read(2, "001").parts == snapshot(2, "001").parts
    assert new.adopt() == ([], {})


def test_a_part_that_comes_again_does_not_hide_a_version_that_is_there(
    registry, url, tmp_path, opened
):
    """A version that one shard puts again is taken up whole."""
    make(registry, 2)
    with registry.database.writing() as connection:
        connection.execute(sa.delete(VERSIONS))
        connection.execute(sa.delete(PARTS))
    registry.put("000", 2, snapshot(2))
    assert registry.complete() == []
    assert registry.adopt() == ([1, 2], {})
    assert numbers(registry) == [1, 2]
    assert registry.problems(2) == []


def test_only_what_is_sound_and_ours_is_taken_up(local, tmp_path, opened):
    """Damaged, unsigned, half removed or another's: it is named, and stays as it is."""
    make(local, 4)
    local.artifacts._files.rm_file(f"{local.artifacts.folder(1)}/manifest.json")
    part = Path(local.artifacts.folder(2)) / "001" / "learner.zst"
    part.write_bytes(part.read_bytes()[:-1])
    local.close()
    new = opened(tmp_path / "new.db", tmp_path / "artifacts")
    adopted, left = new.adopt(lambda manifest: manifest.version != 3)
    assert adopted == [4]
    assert "has no manifest" in left[1]
    assert "learner.zst is damaged" in left[2]
    assert "is of another model" in left[3]
    assert new.artifacts.versions() == [1, 2, 3, 4]
    signed = opened(tmp_path / "signed.db", tmp_path / "artifacts", key=b"k")
    adopted, left = signed.adopt()
    assert adopted == []
    assert "not signed" in left[4]


def test_what_never_was_whole_is_swept(registry):
    """Files without a manifest, of which no registry knows; what is put just now is not."""
    make(registry, 2)
    registry.put("000", 3, snapshot(3))
    for version in (7, 8):
        registry.artifacts.write_part(version, "000", {}, snapshot(version).parts)
    adopted, left = registry.adopt()
    assert (adopted, sorted(left)) == ([], [7, 8])
    assert registry.sweep() == [7, 8]
    assert registry.artifacts.versions() == [1, 2, 3]
    assert (registry.adopt(), registry.sweep()) == (([], {}), [])
    for shard in SHARDS[1:]:
        registry.put(shard, 3, snapshot(3, shard))
    assert registry.complete() == [3]


# --- retention


def keep_all_kinds(registry) -> None:
    """Make ten versions: one per half day, and reasons to keep some."""
    for i in range(10):
        make(registry, at=NOW - 5 * DAY + i * DAY / 2)
    registry.tag(2, "gold")
    registry.order(Order(0, "restore", version=4, before=JUST_MADE))
    registry.order(Order(0, "snapshot"), Order(0, "rollback", version=1, before=JUST_MADE))
    for shard in SHARDS:
        registry.put(shard, 11, snapshot(11, shard, created=NOW))
    registry.complete()


def test_what_is_kept_says_why(registry):
    """The last ones, those of a day, tagged ones, those that were put live, or were live before."""
    keep_all_kinds(registry)
    kept = registry.retention.kept(2, 3.0, NOW)
    assert kept == {
        1: ["was put live"],
        2: ["tagged gold"],
        3: [],
        4: ["was put live"],
        5: [],
        6: ["the last of 1972-09-24"],
        7: [],
        8: ["the last of 1972-09-25"],
        9: [],
        10: ["one of the last 2", "the last of 1972-09-26"],
        11: ["one of the last 2", "the last of 1972-09-27", "was live before another was"],
    }
    assert registry.retention.prune(2, 3.0, NOW) == [3, 5, 7, 9], "what the dry run said"
    assert numbers(registry) == [1, 2, 4, 6, 8, 10, 11]
    assert registry.retention.kept(2, 3.0, NOW) == {v: why for v, why in kept.items() if why}
    assert registry.retention.prune(2, 3.0, NOW) == []
    assert registry.artifacts.versions() == numbers(registry)
    with pytest.raises(UnknownVersionError) as error:
        registry.load(5)
    said(error, "version 5 of fraud was removed by prune; there are 1 to 11")
    lives.check(registry)


def test_of_the_last_day_a_version_of_each_hour_is_kept(registry):
    """As a clock goes on for two days, pruning after each; what goes of the last day is told."""
    made = {}
    for half in range(2 * 48):
        now = NOW + half * 1_800
        (version,) = make(registry, at=now)
        made[version] = now
        gone = registry.retention.prune(3, 0.0, now, hours=24.0)
        recent = registry.retention.recent(gone, now)
        left = numbers(registry)
        for version in gone:
            assert (version in recent) == (made[version] >= now - DAY)
            assert recent.get(version, 0) == max((v for v in left if v < version), default=0) or (
                version not in recent
            )
        hours = {made[v] // 3_600 for v in made if made[v] >= now - DAY}
        assert {made[v] // 3_600 for v in left} >= hours, "an hour of the last day is gone"
        assert len(left) <= 25 + 3
    assert len(numbers(registry)) >= 25


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [3]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_the_last_so_many_are_kept(registry, keep, left):
    """None, some, or more than there are."""
    make(registry, 3)
    registry.retention.prune(keep, 0.0, NOW + 2 * DAY)
    assert numbers(registry) == left


def test_a_version_that_never_became_whole_goes_after_a_week(registry):
    """With the parts that it has; before that, a shard may still bring its own."""
    registry.order(Order(0, "snapshot"), at=NOW)
    registry.put("000", 1, snapshot(1))
    assert registry.retention.prune(9, 0.0, NOW + 8 * DAY) == [], "a clock may have been set"
    for day in range(1, 7):
        make(registry, at=NOW + day * DAY)
        assert registry.retention.prune(9, 0.0, NOW + day * DAY) == []
    assert registry.retention.prune(9, 0.0, NOW + 8 * DAY) == [1]
    assert 1 not in registry.artifacts.versions()
    for shard in SHARDS:
        registry.put(shard, 1, snapshot(1, shard))
    assert registry.complete() == []
    lives.check(registry)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_a_prune_that_fails_leaves_no_half(local, monkeypatch, after):
    """Wherever it stops, a version is whole or not there, and the next call goes on."""
    make(local, 4)
    calls = iter(range(100))
    remove = local.artifacts._files.rm_file

    def failing(path):
        if next(calls) == after:
            raise OSError(28, "No space left on device")
        remove(path)

    monkeypatch.setattr(local.artifacts._files, "rm_file", failing)
    with pytest.raises(StoreError) as error:
        local.retention.prune(2, 0.0, NOW + 2 * DAY)
    said(error, "No space left on device")
    assert numbers(local) == [3, 4]
    with pytest.raises(UnknownVersionError):
        local.tag(1, "gold")
    lives.check(local)
    assert local.retention.prune(2, 0.0, NOW + 2 * DAY) == [1, 2]
    assert local.artifacts.versions() == [3, 4]
    lives.check(local)


def test_what_was_left_of_a_version_goes_with_the_next(local):
    """What a slow process wrote of a version after its removal, before it died, is swept up."""
    make(local, 3)
    assert local.retention.prune(2, 0.0, NOW + DAY) == [1]
    local.artifacts.write_part(1, "000", {}, {"learner": b"late"})
    assert local.retention.prune(2, 0.0, NOW + DAY) == []
    assert local.retention.prune(1, 0.0, NOW + DAY) == [2]
    assert local.artifacts.versions() == [3]


def test_a_version_is_named_or_pruned_but_not_both(registry):
    """Commands that come while versions are pruned name one that stays, or are not given."""
    make(registry, 12)
    given, errors = [], []

    def name():
        for version in range(12, 0, -1):
            try:
                given.append(registry.order(Order(0, "restore", version=version))[0].version)
                registry.tag(version, f"t{version}")
            except UnknownVersionError:
                continue
            except Exception as error:
                errors.append(error)

    threads = [
        threading.Thread(target=name),
        threading.Thread(target=lambda: registry.retention.prune(1, 0.0, NOW + DAY)),
        threading.Thread(target=lambda: registry.retention.prune(1, 0.0, NOW + DAY)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert set(given) <= set(numbers(registry)), "a command names what is not there"
    lives.check(registry)


def test_the_journal_is_kept_from_the_oldest_version_to_rewind_to(registry):
    """Of this shard and epoch, not older than asked, and not removed; without one, from nowhere."""

    def kept_from(epoch, days=9.0):
        return registry.retention.keep_from("000", epoch, days, NOW + 10)

    assert kept_from("e") == float("inf")
    for i, epoch in enumerate(["e", "e", "e", "other"]):
        make(registry, at=NOW + i, fresh=epoch)
    (order,) = registry.order(Order(0, "snapshot"), at=NOW + 9)
    assert kept_from("e") == 1
    assert kept_from("e", 9 / DAY) == 2
    assert kept_from("e", 0.0) == kept_from("e", 6 / DAY) == float("inf")
    assert kept_from("other") == 4
    registry.retention.prune(2, 0.0, NOW + DAY)
    assert kept_from("e") == 3
    registry.put("000", order.version, snapshot(5, fresh="e", seq=2))
    assert kept_from("e") == 2, "one that is not whole yet counts"


# --- kills


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_whenever_processes_are_killed_it_is_consistent(url, tmp_path, opened, seed):
    """SIGKILL at random moments of two that do all there is to do, from an empty registry on.

    What was acknowledged is there; what was not is whole or absent; the next ones go on.
    """
    draw = random.Random(seed)
    artifacts, log = tmp_path / "artifacts", tmp_path / "log"
    log.touch()
    for i in range(60 if seed else 15):
        processes = [
            lives.start(lives.live, url, artifacts, 10_000 * seed + 10 * i + k, log)
            for k in range(2)
        ]
        lives.kill_after(processes, draw.uniform(0.03, 0.25), log if i % 3 else None)
        assert "failed" not in log.read_text(), f"seed {seed}, round {i}: {log.read_text()[-3000:]}"
        if i % 5 == 4:
            between = opened(url, artifacts)
            lives.check(between, log)
            between.close()
    registry = opened(url, artifacts)
    registry.join(SHARDS, 0, 0)
    found = lives.check(registry, log)
    print(found)
    lives.settle(registry)
    make(registry, at=NOW)
    make(registry, at=NOW + 1)
    registry.untag("a"), registry.untag("b")
    lives.settle(registry)
    assert lives.check(registry)["stray"] == 0
    assert found["commands"] > 0, "the processes did nothing"
    done = [line.split()[0] for line in log.read_text().splitlines()]
    assert {"take", "cancel"} <= set(done), "none was taken up, or none taken back"


# --- what cannot be used says why


def test_who_writes_while_another_does_waits_and_is_told(tmp_path, local, monkeypatch):
    """A lock that is held is told after some seconds; reading goes on meanwhile."""
    make(local)
    local.database.engine.dispose()
    monkeypatch.setattr(db, "_LOCKED_SECONDS", 0.1)
    local = Registry(tmp_path / "registry.db", tmp_path / "artifacts", "fraud")
    holder = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(RegistryError) as error:
        local.order(Order(0, "pause"))
    said(error, "registry.db: is locked by another process, for more than 0.1 s")
    assert numbers(local) == [1]
    assert Registry(local.database.place, tmp_path / "artifacts", "fraud").commands()
    holder.execute("COMMIT")
    holder.close()
    assert local.order(Order(0, "pause"))
    local.close()


def test_a_registry_that_is_read_only_can_be_read(tmp_path, local, opened):
    """Versions can be listed and loaded; what would write says that it cannot."""
    make(local)
    local.close()
    place = f"sqlite:///file:{tmp_path}/registry.db?mode=ro&uri=true"
    registry = opened(place, tmp_path / "artifacts", create=False)
    assert registry.read(1, "001") == snapshot(1, "001", created=NOW)
    with pytest.raises(RegistryError) as error:
        registry.order(Order(0, "pause"))
    said(error, "registry.db: cannot be written to: it is read-only")
    with pytest.raises(RegistryError):
        registry.retention.prune(0, 0.0)


def test_a_registry_that_was_removed_is_gone(tmp_path, local, opened):
    """Nothing is told to a file that nobody will find; what takes its place is used at once."""
    make(local, 2)
    kept = tmp_path / "kept.db"
    with sqlite3.connect(kept) as copy, sqlite3.connect(local.database.place) as source:
        source.backup(copy)
    copy.close(), source.close()
    Path(local.database.place).unlink()
    for work in (local.versions, lambda: local.order(Order(0, "pause"))):
        with pytest.raises(RegistryError) as error:
            work()
        said(error, "registry.db: the registry is gone")
    assert not Path(local.database.place).exists(), "no empty one was made"
    with pytest.raises(RegistryError) as error:
        opened(local.database.place, tmp_path / "artifacts", create=False)
    said(error, "there is no registry; it is made by the first `midstream run`")
    for rest in ("-wal", "-shm"):
        Path(local.database.place + rest).unlink(missing_ok=True)
    kept.rename(local.database.place)
    assert numbers(local) == [1, 2]
    assert local.order(Order(0, "pause"))[0].id == 3
    assert len(opened(local.database.place, tmp_path / "artifacts", create=False).commands()) == 3


def test_a_database_that_was_killed_is_told_and_comes_back(
    postgres, postgres_url, tmp_path, opened
):
    """In one line; the same registry goes on once the server runs again."""
    registry = opened(postgres_url, tmp_path / "artifacts")
    registry.join(SHARDS, 0, 0)
    make(registry)
    postgres.kill()
    for work in (registry.versions, lambda: registry.order(Order(0, "pause"))):
        with pytest.raises(RegistryError) as error:
            work()
        said(error, f"{registry.database.place}: ", "refused")
    with pytest.raises(RegistryError) as error:
        opened(postgres_url, tmp_path / "artifacts", create=False)
    said(error, "refused")
    postgres.restart()
    assert numbers(registry) == [1]
    assert registry.order(Order(0, "pause"))[0].id == 2
    lives.check(registry)


def test_a_database_that_does_not_answer_is_given_up(
    postgres, postgres_url, tmp_path, opened, monkeypatch
):
    """Nobody waits for ever: neither on a connection that was open, nor for a new one."""
    registry = opened(postgres_url, tmp_path / "artifacts")
    make_none = registry.versions()
    monkeypatch.setattr(db, "_ANSWER_SECONDS", 1)
    monkeypatch.setitem(db._POSTGRES, "connect_timeout", 2)
    fresh = db.make_engine(registry.database.url, create=False)
    postgres.freeze()
    with pytest.raises(sa.exc.OperationalError):
        fresh.connect()
    monkeypatch.setattr(registry.database.engine.pool, "_creator", fresh.pool._creator)
    with pytest.raises(RegistryError) as error:
        registry.versions()
    said(error, registry.database.place, "timeout")
    postgres.thaw()
    assert registry.versions() == make_none
    fresh.dispose()


@pytest.mark.parametrize("content", [b"no database at all, but a text of some length\n" * 50, b""])
def test_what_is_no_registry_is_refused(tmp_path, opened, content):
    """A text, or an empty file: neither is read as one, nor written to."""
    path = tmp_path / "registry.db"
    path.write_bytes(content)
    with pytest.raises(RegistryError) as error:
        opened(path, tmp_path / "artifacts", create=False)
    said(error, "registry.db: ", "no registry")
    assert path.read_bytes() == content


def test_a_database_of_somebody_elses_is_no_registry(url, tmp_path, opened):
    """Without `create` nothing is made in it."""
    if "://" not in url:
        with sqlite3.connect(url) as connection:
            connection.execute("CREATE TABLE other (x)")
        connection.close()
    with pytest.raises(RegistryError) as error:
        opened(url, tmp_path / "artifacts", create=False)
    said(error, "holds no registry of Midstream's")


def test_a_damaged_file_is_told(tmp_path, opened):
    """Wherever bytes of a SQLite file are lost, there is an answer, or one line that says why."""
    path = tmp_path / "registry.db"
    registry = opened(path, tmp_path / "artifacts")
    registry.join(SHARDS, 0, 0)
    make(registry, 3)
    registry.tag(2, "gold")
    registry.close()
    good, told = path.read_bytes(), 0
    draw = random.Random(5)
    for i in range(120):
        data = bytearray(good)
        at = draw.randrange(len(data))
        length = draw.choice([1, 16, 4_096])
        data[at : at + length] = draw.randbytes(len(data[at : at + length]))
        for rest in ("-wal", "-shm"):
            Path(f"{path}{rest}").unlink(missing_ok=True)
        path.write_bytes(data if i % 10 else data[:at])
        damaged = None
        try:
            damaged = Registry(path, tmp_path / "artifacts", "fraud")
            for work in (damaged.versions, damaged.shards, damaged.commands, damaged.alarms,
                         damaged.deployments, lambda d=damaged: d.retention.kept(1, 1.0),
                         lambda d=damaged: d.retention.keep_from("000", "e", 0.0),
                         lambda d=damaged: d.order(Order(0, "pause"))):  # fmt: skip
                work()
        except (RegistryError, UnknownVersionError) as error:
            told += "\n" not in str(error)
        finally:
            if damaged is not None:
                damaged.close()
    assert told > 20, f"{told} of 120 were noticed"


def test_an_unknown_model_is_told_with_those_there_are(registry, url, tmp_path, opened):
    """A name that was misspelled is found."""
    opened(url, tmp_path / "artifacts", "churn")
    with pytest.raises(RegistryError) as error:
        opened(url, tmp_path / "artifacts", "fruad", create=False)
    said(error, "has no model 'fruad'; it has: churn, fraud")


def test_models_do_not_see_each_other(registry, url, tmp_path, opened):
    """Versions, commands, tags and shards of another model in the same registry are its own."""
    make(registry)
    registry.tag(1, "gold")
    other = opened(url, tmp_path / "artifacts", "churn")
    assert (other.versions(), other.commands(), other.shards()) == ([], [], [])
    assert other.untag("gold") is None
    assert other.order(Order(0, "snapshot"))[0] == registry.commands()[0] or True
    assert other.drop("all") == 1
    assert other.retention.prune(0, 0.0, NOW + 9 * DAY) == []
    assert registry.version(1).tags == ["gold"]
    lives_left = [order.id for order in registry.commands()]
    assert lives_left == [1, 2]


def test_a_newer_schema_is_refused_with_both(registry, url, tmp_path, opened):
    """It is not guessed at, nor made anew."""
    with registry.database.engine.begin() as connection:
        connection.execute(sa.update(MODELS).values(schema=9))
    for create in (False, True):
        with pytest.raises(RegistryError) as error:
            opened(url, tmp_path / "artifacts", create=create)
        said(error, "has schema 9, this Midstream reads 3; use a newer one")


@pytest.mark.parametrize("url", [
    "postgresql://me:secret@host:port/db", "postgresql://me:secret@host:99999999/db", "://secret",
    "postgresql://me:secret@127.0.0.1:1/db?password=secret", "mysql://me:secret@host/db",
    "nosuch://me:secret@host/db", "postgresql+pg8000://me:secret@host/db", "oracle://secret",
    "sqlite:////no/such/folder/registry.db", "postgresql://me:sec/secret@host/db",
])  # fmt: skip
def test_a_url_that_leads_nowhere_is_told_without_the_password(tmp_path, opened, url):
    """Whatever is wrong with it, in one line."""
    with pytest.raises(RegistryError) as error:
        opened(url, tmp_path / "artifacts", create=False)
    said(error)


def test_a_wrong_password_is_not_shown(postgres_url, tmp_path, opened):
    """Neither what the server says of it, nor the URL, has it."""
    url = postgres_url.replace("midstream@", "nobody-there:secret@")
    with pytest.raises(RegistryError) as error:
        opened(url, tmp_path / "artifacts")
    said(error, "nobody-there")


def test_a_driver_that_is_missing_is_told_with_the_way_out(tmp_path, opened, monkeypatch):
    """It comes with an extra."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RegistryError) as error:
        opened("postgresql://me:secret@host/db", tmp_path / "artifacts")
    said(error, "pip install 'midstream[postgres]'")


def test_a_folder_that_cannot_be_made_is_told(tmp_path, opened):
    """Where a file stands in the way, its name is in the message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError) as error:
        opened(tmp_path / "file" / "registry.db", tmp_path / "artifacts")
    said(error, str(tmp_path / "file" / "registry.db"), "File exists")


def test_a_full_disk_is_told_and_nothing_is_half_given(tmp_path):
    """What was acknowledged is there, and no more."""
    script = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh"]
    try:
        done = subprocess.run(
            [*script, str(tmp_path), sys.executable, FULL],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=os.sep,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no disk can be made here: {done.stderr.strip()}")
    why = "cannot be written to: the disk is full"
    assert done.stdout.splitlines() == [f"{tmp_path}/registry.db: {why}", "True"], done.stderr


# --- what a version holds


def learned(events=20) -> Trainer:
    trainer = Trainer(linear_model.LogisticRegression(), metrics=["accuracy"])
    for i in range(events):
        trainer.step_one({"a": float(i % 7)}, i % 7 > 3)
    return trainer


def part_of(trainer, shard) -> Snapshot:
    definition = trainer.definition()
    return Snapshot(snapshot(1, shard, definition=definition).header, trainer.state())


@pytest.fixture
def loaded(tmp_path, opened):
    """A registry with a version of one shard that can be loaded."""
    registry = opened(tmp_path / "registry.db", tmp_path / "artifacts")
    registry.join(["000"], 0, 0)
    registry.order(Order(0, "snapshot"))
    registry.put("000", 1, part_of(learned(), "000"))
    registry.complete()
    return registry


def forge(registry, change) -> None:
    """Change the manifest of version 1, in its file and where its sum is registered."""
    manifest = registry.manifest(1)
    data = registry.artifacts.write_manifest(change(manifest))
    with registry.database.engine.begin() as connection:
        sum_ = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "manifest": data.decode(),
        }
        connection.execute(sa.update(VERSIONS).values(sum_))


def test_a_version_is_loaded_as_it_was(loaded):
    """Bit for bit; its shard may be left out, as it has one."""
    assert loaded.load(1).digest() == learned().digest()
    assert loaded.load(1, "000").digest() == learned().digest()
    with pytest.raises(ArtifactError) as error:
        loaded.load(1, "001")
    said(error, "version 1 has no shard 001; it has: 000")


def test_of_several_shards_one_is_chosen(local):
    """None is taken by chance."""
    local.order(Order(0, "snapshot"))
    for i, shard in enumerate(SHARDS):
        local.put(shard, 1, part_of(learned(20 + i), shard))
    local.complete()
    assert local.load(1, "002").digest() == learned(22).digest()
    with pytest.raises(ValueError, match="version 1 has several shards, 000, 001, 002: choose one"):
        local.load(1)


def test_a_version_of_another_river_says_what_to_do(loaded):
    """Which it was written under, which is installed, and what to install."""

    def older(manifest):
        learner = manifest.learner | {"river": "0.19"}
        return msgspec.structs.replace(manifest, learner=learner)

    forge(loaded, older)
    with pytest.raises(ArtifactError) as error:
        loaded.load(1)
    said(error, "version 1 was written under River 0.19", "is installed", "'river==0.19.*'")


class Bomb:
    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["trainer", "learner", "metrics", "drift", "replay"])
@pytest.mark.parametrize("kind", ["pickle", "empty", "noise", "missing", "swapped"])
def test_a_forged_part_is_refused_by_load(loaded, tmp_path, name, kind):
    """Whose sums are all right, registered ones too: one line, and nothing is executed."""
    state = learned().state()
    mark = tmp_path / "executed"
    other = "learner" if name != "learner" else "metrics"
    parts = {
        "pickle": state | {name: pickle.dumps(Bomb(mark))},
        "empty": state | {name: b""},
        "noise": state | {name: random.Random(1).randbytes(300)},
        "missing": {n: data for n, data in state.items() if n != name},
        "swapped": state | {name: state[other]},
    }[kind]
    part = loaded.artifacts.write_part(1, "000", loaded.manifest(1).part("000").header, parts)
    forge(loaded, lambda manifest: msgspec.structs.replace(manifest, shards=[part]))
    with pytest.raises(ArtifactError) as error:
        loaded.load(1)
    assert "version 1 cannot be loaded: " in str(error.value)
    assert not mark.exists()


def test_damage_is_found_before_anything_is_loaded(loaded):
    """A check names it, and loading is refused in the same words."""
    assert loaded.problems(1) == []
    place = Path(loaded.artifacts.folder(1))
    path = place / "000" / "learner.zst"
    path.write_bytes(path.read_bytes()[:-3])
    (problem,) = loaded.problems(1)
    with pytest.raises(ArtifactError) as error:
        loaded.load(1)
    assert str(error.value) == problem
    (place / "manifest.json").write_text("{}")
    assert loaded.problems(1) == [
        "version 1: manifest.json is damaged: it is not what was registered"
    ]
    shutil.rmtree(place)
    assert loaded.problems(1) == ["version 1: manifest.json is missing"]
    shutil.rmtree(place.parent)
    with pytest.raises(StoreError):
        loaded.problems(1)


def test_what_was_signed_with_another_key_is_not_loaded(loaded, tmp_path, opened):
    """Where a key is set, versions without its signature are refused, and named."""
    keyed = opened(tmp_path / "registry.db", tmp_path / "artifacts", key=b"k")
    with pytest.raises(ArtifactError) as error:
        keyed.load(1)
    said(error, "version 1: manifest.json is not signed")
    keyed.order(Order(0, "snapshot"))
    other = part_of(learned(30), "000")
    other.header["digest"] = learned(30).digest()  # or it would be equal to the newest
    keyed.put("000", 2, other)
    keyed.complete()
    assert keyed.load(2).digest() == learned(30).digest()
    assert loaded.load(2), "who has no key takes any"
    with pytest.raises(ArtifactError) as error:
        opened(tmp_path / "registry.db", tmp_path / "artifacts", key=b"other").load(2)
    said(error, "version 2: manifest.json was signed with another key")
