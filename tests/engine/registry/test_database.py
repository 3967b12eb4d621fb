"""Whose a model in a registry is: one state's, of several under the same name."""

import threading

import pytest
import sqlalchemy as sa
from registry_lives import snapshot

from midstream.engine.registry.database import OtherStateError, RegistryError
from midstream.engine.registry.registry import Registry
from midstream.engine.registry.schema import MODELS
from midstream.engine.shard.commands import Done, Order
from midstream.engine.shard.journal import Command

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Where a registry is to be."""
    if request.param == "sqlite":
        return str(tmp_path / "registry.db")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def opened(url, tmp_path):
    """Opens the registry of a model for a state, and closes it."""
    found = []

    def open_(identity="", model="fraud", *, create=False):
        artifacts = tmp_path / "artifacts"
        found.append(Registry(url, artifacts, model, create=create, identity=identity))
        return found[-1]

    yield open_
    for registry in found:
        registry.close()


def version_of(registry, **header) -> int:
    """Make a version whole; return its number."""
    (order,) = registry.order(Order(0, "snapshot", reason="manual"), at=1.0)
    header = {"identity": registry.identity, "digest": f"{order.version}", **header}
    registry.put("000", order.version, snapshot(order.version, "000", **header))
    (made,) = registry.complete()
    return made


WRITES = [
    lambda r: r.join(["000"], 0, 0),
    lambda r: r.beat([]),
    lambda r: r.leave("run"),
    lambda r: r.commands(),
    lambda r: r.take(1),
    lambda r: r.cancel(1, "why"),
    lambda r: r.drop("why"),
    lambda r: r.start_over(),
    lambda r: r.order(Order(0, "pause")),
    lambda r: r.request_version("schedule", lambda *_: True),
    lambda r: r.report("000", "e", [Done(Command(0, "start"), 0)]),
    lambda r: r.alarm([]),
    lambda r: r.tag(1, "gold"),
    lambda r: r.untag("gold"),
    lambda r: r.put("000", 1, snapshot(1, "000")),
    lambda r: r.read(1, "000"),
    lambda r: r.manifest(1),
    lambda r: r.load(1),
    lambda r: r.versions(),
    lambda r: r.version(1),
    lambda r: r.deployments(),
    lambda r: r.alarms(),
    lambda r: r.shards(),
    lambda r: r.waiting(),
    lambda r: r.newest(),
    lambda r: r.complete(),
    lambda r: r.adopt(),
    lambda r: r.sweep(),
    lambda r: r.retention.kept(1, 0.0),
    lambda r: r.retention.prune(1, 0.0),
    lambda r: r.retention.keep_from("000", "e", 0.0),
]


def test_a_model_is_that_of_the_state_that_came_first(opened):
    """Another under its name is refused in a line that tells both ways out; a new name is one."""
    opened(ONE, create=True)
    for create in (True, False):
        with pytest.raises(OtherStateError) as error:
            opened(TWO, create=create)
        text = str(error.value)
        assert "\n" not in text
        assert "`name` of its own" in text
        assert "`midstream run --adopt`" in text
        assert ONE[:12] in text
    assert opened(TWO, "churn", create=True).versions() == []
    assert opened(ONE).database.owner() == ONE


def test_nothing_is_done_for_another_state(opened, tmp_path):
    """Whatever is asked of a model that has become another's; nothing of it is changed."""
    mine = opened(ONE, create=True)
    mine.join(["000"], 0, 0)
    assert version_of(mine) == 1
    mine.tag(1, "gold")
    theirs = opened(ONE)
    theirs.database.identity = TWO
    database, tables = opened("").database, MODELS.metadata.sorted_tables
    before = [database.rows(sa.select(table)) for table in tables]
    files = sorted(path for path in (tmp_path / "artifacts").rglob("*"))
    for i, write in enumerate(WRITES):
        with pytest.raises(OtherStateError):
            write(theirs)
        assert before == [database.rows(sa.select(table)) for table in tables], f"number {i}"
    assert files == sorted(path for path in (tmp_path / "artifacts").rglob("*"))


def test_who_has_no_state_goes_by_the_name(opened):
    """As an operator on another host does; a state that has no identity yet does not."""
    with pytest.raises(RegistryError, match="no registry"):
        opened("")
    mine = opened(ONE, create=True)
    mine.join(["000"], 0, 0)
    opened("").order(Order(0, "pause"))
    assert [order.kind for order in mine.commands()] == ["pause"]
    assert opened("").database.owner() == ONE
    with pytest.raises(OtherStateError, match="has none yet: the next `midstream run`"):
        opened(None)


def test_a_model_of_before_is_claimed_by_the_first_that_writes(opened):
    """To read it does not claim it."""
    opened("", create=True).join(["000"], 0, 0)
    first, second = opened(ONE), opened(TWO)
    assert first.shards() == second.shards() != []
    opened(None).order(Order(0, "resume"))
    assert opened("").database.owner() == ""
    second.order(Order(0, "pause"))
    with pytest.raises(OtherStateError):
        first.order(Order(0, "pause"))
    with pytest.raises(OtherStateError):
        first.shards()


@pytest.mark.parametrize("made", [True, False])
def test_of_two_that_come_at_once_one_has_the_model(opened, made):
    """Also where the registry is to be made; the other is refused, and finds nothing of its own."""
    for turn in range(4):
        model = f"model-{turn}"
        if made:
            opened("", model, create=True)
        barrier, refused = threading.Barrier(3), []

        def come(identity, model=model, barrier=barrier, refused=refused):
            barrier.wait()
            try:
                opened(identity, model, create=True).join([identity[:3]], 0, 0)
            except OtherStateError:
                refused.append(identity)

        threads = [threading.Thread(target=come, args=(i,)) for i in (ONE, TWO, THREE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 2, f"turn {turn}: {refused} were refused"
        (owner,) = {ONE, TWO, THREE} - set(refused)
        assert opened("", model).database.owner() == owner
        assert [row.shard for row in opened("", model).shards()] == [owner[:3]]


def test_hosts_that_come_at_once_agree(opened):
    """Whoever is first says what the identity is."""
    opened("", create=True)
    barrier, found = threading.Barrier(3), []

    def come(identity):
        barrier.wait()
        found.append(opened("", create=True).join_state(identity))

    threads = [threading.Thread(target=come, args=(i,)) for i in (ONE, TWO, THREE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert opened("").database.owner() == found[0]


def test_a_model_is_taken_over_once_and_that_is_in_its_history(opened):
    """What was given to the state of before is dropped, its versions stay; it is shut out."""
    old = opened(ONE, create=True)
    old.join(["000"], 0, 0)
    version_of(old)
    old.order(Order(0, "pause"))
    assert opened("").take_over(TWO, 40, "me@here") == ONE
    assert opened("").take_over(TWO, 40, "me@here") == ""
    with pytest.raises(OtherStateError):
        old.commands()
    new = opened(TWO)
    (order,) = new.commands()
    assert (order.kind, order.by) == ("adopt", "me@here")
    assert ONE in order.reason
    assert TWO in order.reason
    assert order.id > 40
    assert new.shards() == []
    assert new.version(1).tags == ["adopted-1"]
    assert new.waiting() == []
    assert new.retention.prune(1, 0.0) == []


@pytest.mark.parametrize("schema", [1, 2])
def test_a_registry_without_identities_is_brought_up_to_date(opened, schema):
    """With all that it has, by the first run of any of its models; a new one is made in it, too."""
    old = opened("", create=True)
    old.join(["000"], 0, 0)
    version_of(old)
    opened("", "churn", create=True)
    with old.database.engine.begin() as connection:
        connection.execute(sa.update(MODELS).values(schema=schema))
        connection.exec_driver_sql(f"ALTER TABLE {MODELS.name} DROP COLUMN identity")
    with pytest.raises(RegistryError, match=rf"schema {schema}\); the next `midstream run`"):
        opened(ONE)
    assert opened(THREE, "new", create=True).versions() == []
    assert [row.version for row in opened(ONE, create=True).versions()] == [1]
    assert opened("", "churn").database.owner() == ""
    assert opened(TWO, "churn", create=True).database.owner() == ""
    opened(TWO, "churn").drop("nothing")
    assert opened("", "churn").database.owner() == TWO
