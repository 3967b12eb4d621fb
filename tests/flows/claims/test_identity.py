"""The identity of a state: where it is made, found again, and what is refused to another."""

import random
import shutil
from contextlib import closing

import pytest
from project import PATIENCE, Project, events, stop

from midstream.engine.basics.storage import LocalStorage
from midstream.engine.registry.database import OtherStateError
from midstream.engine.registry.registry import CommandError
from midstream.engine.registry.versions import UnknownVersionError
from midstream.engine.shard.commands import Order
from midstream.engine.shard.journal import identities
from midstream.engine.state.snapshot import SnapshotFolder
from midstream.flows.claims import identity
from midstream.flows.claims.identity import IdentityError, identity_of
from midstream.flows.claims.locks import StateLocks
from midstream.flows.claims.registry import open_registry
from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load
from midstream.flows.offline import inspect
from midstream.flows.operating import choosing, operations, plans
from midstream.flows.operating.operations import OperationError
from midstream.flows.running import online, shard_process
from midstream.flows.running.errors import RunError

SHARED = '[versions]\nregistry = "../registry.db"\nartifacts = "../artifacts"\n'


class Model(Project):
    """A project that runs in this process; of a built-in learner."""

    def __init__(self, folder, *, versions=SHARED, name="", n=30, seed=1):
        super().__init__(folder)
        head = f'name = "{name}"\n' if name else ""
        learner = '[model]\nlearner = "logistic"\ntask = "binary"\n'
        source = '[input]\npath = "events.jsonl"\n'
        self.config.write_text(head + learner + source + versions)
        self.write(events(n, seed=seed))

    @property
    def settings(self):
        return load(self.config)

    @property
    def identity(self):
        return identity_of(self.settings)

    def go(self, **options):
        return online.run(self.settings, until_eof=True, **options)

    def grow(self, n, seed=2):
        with (self.folder / "events.jsonl").open("a") as file:
            old = (self.folder / "events.jsonl").read_text()
            self.write(events(n, seed=seed), "more.jsonl")
            file.write((self.folder / "more.jsonl").read_text())
        assert old

    def in_journal(self):
        return set(identities(LocalStorage(self.folder / "state" / "shards" / "000")))

    def in_snapshots(self):
        folder = SnapshotFolder(LocalStorage(self.folder / "state" / "shards" / "000"))
        return {folder.read(seq).header.get("identity") for seq in folder.positions()}

    def in_registry(self):
        with closing(open_registry(self.settings)) as registry:
            return registry.database.owner()


def test_state_journal_and_registry_have_the_same(tmp_path):
    """From the first run on; another one of the same name has another, and --fresh keeps it."""
    model = Model(tmp_path / "one")
    assert model.identity == ""
    model.go()
    made = model.identity
    assert model.in_journal() == model.in_snapshots() == {made}
    assert model.in_registry() == made
    with closing(open_registry(model.settings)) as registry:
        (row,) = registry.versions()
        assert {part.header["identity"] for part in row.manifest.shards} == {made}
    model.go(fresh=online.archive(model.settings))
    assert model.identity == made
    assert model.in_journal() == {made}
    other = Model(tmp_path / "other", versions="")
    other.go()
    assert other.identity != made


@pytest.mark.parametrize("left", ["journal", "snapshots", "both"])
def test_what_was_lost_is_found_again(tmp_path, left):
    """In the journal, or in a snapshot where that was trimmed; and a copy has the same."""
    model = Model(tmp_path / "one", versions="")
    model.go()
    made = model.identity
    shutil.copytree(model.folder, tmp_path / "copy")
    copy = Model(tmp_path / "copy", versions="")
    assert copy.identity == made
    (copy.folder / "state" / "identity").unlink()
    gone = {"journal": "snapshot-*", "snapshots": "journal-*"}.get(left, "nothing")
    for path in (copy.folder / "state" / "shards" / "000").glob(gone):
        path.unlink()
    assert copy.identity is None
    with closing(StateLocks(copy.settings.state_path)) as locks:
        assert identity.settle(copy.settings, locks) == made
    assert copy.identity == made


def test_shards_of_two_states_in_one_folder_are_refused(tmp_path):
    """Nobody can tell which state that is; and what the file says is held against the journal."""
    one, two = Model(tmp_path / "one", versions=""), Model(tmp_path / "two", versions="")
    one.go()
    two.go()
    shards = one.folder / "state" / "shards"
    shutil.copytree(two.folder / "state" / "shards" / "000", shards / "001")
    mine = one.identity
    (one.folder / "state" / "identity").unlink()
    with pytest.raises(IdentityError, match="shards of different states"):
        one.go()
    shutil.rmtree(shards / "001")
    (one.folder / "state" / "identity").write_text(two.identity)
    for fresh in ("", "anew"):
        with pytest.raises(RuntimeError, match=f"journal is that of the state {mine}"):
            one.go(fresh=fresh)
    (one.folder / "state" / "identity").write_text("no identity")
    with pytest.raises(IdentityError, match="holds no identity"):
        one.go()


def test_two_projects_of_one_name_do_not_share_a_registry(tmp_path):
    """The second is refused whatever it does, and the first does not notice."""
    one, two = Model(tmp_path / "one"), Model(tmp_path / "two", seed=5)
    one.go()
    with closing(open_registry(one.settings)) as registry:
        before = registry.versions(), registry.deployments(), registry.commands()
    for fresh in ("", "anew"):
        with pytest.raises(RunError, match="is that of another state") as error:
            two.go(fresh=fresh)
        assert "\n" not in str(error.value)
    with pytest.raises(OtherStateError):
        online.archive(two.settings)
    assert (two.folder / "state" / "shards").exists(), "nothing is archived then"
    for to_command in (True, False):
        with pytest.raises(OtherStateError), operations.opened(
            two.settings, to_command=to_command
        ):  # fmt: skip
            pass
    with closing(open_registry(one.settings)) as registry:
        assert before == (registry.versions(), registry.deployments(), registry.commands())
    Model(tmp_path / "two", name="second", seed=5).go()
    one.grow(30)
    one.go()
    with closing(open_registry(one.settings)) as registry:
        assert [row.version for row in registry.versions()] == [1, 2]


def test_a_first_run_with_fresh_drops_no_commands_of_another(tmp_path):
    """A state that is not there yet has its identity before it speaks to the registry."""
    one, two = Model(tmp_path / "one"), Model(tmp_path / "two", seed=5)
    one.go()
    with operations.opened(one.settings, to_command=True) as registry:
        registry.order(Order(0, "pause", reason="manual"))
    with pytest.raises(OtherStateError):
        online.archive(two.settings)
    with operations.opened(one.settings) as registry:
        assert [order.kind for order in registry.commands()][-1] == "pause"
        assert registry.shards() != []


def test_a_state_that_was_moved_takes_the_model_over(tmp_path):
    """With --adopt, in its history; what the other state wants is then refused."""
    one, two = Model(tmp_path / "one"), Model(tmp_path / "two", seed=5)
    one.go()
    with operations.opened(one.settings, to_command=True) as registry:
        registry.order(Order(0, "pause", reason="for one"))
    with pytest.raises(RunError):
        two.go()
    two.go(adopted_by="me@here")
    two.grow(30)
    two.go()
    with operations.opened(two.settings) as registry:
        done = [d.command for d in registry.deployments()]
        assert [c.kind for c in done] == ["start", "snapshot", "start", "adopt", "snapshot",
                                          "snapshot"]  # fmt: skip
        (adopted,) = (c for c in done if c.kind == "adopt")
        assert adopted.by == "me@here"
        assert adopted.reason == f"from the state {one.identity}, by the state {two.identity}"
        assert registry.waiting() == []
    one.grow(30)
    with pytest.raises(RunError, match="is that of another state"):
        one.go()


def test_a_state_of_before_gets_its_identity_at_the_next_run(tmp_path, monkeypatch):
    """And claims the model in the registry; until then its commands go by the name."""
    model, other = Model(tmp_path / "one"), Model(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(shard_process, "settle", lambda *_: "")
        model.go()
    digest = SnapshotFolder(LocalStorage(model.folder / "state" / "shards" / "000"))
    before = digest.read(digest.positions()[-1]).header["digest"]
    assert model.identity is None
    assert model.in_registry() == ""
    with operations.opened(model.settings, to_command=True) as registry:
        registry.order(Order(0, "snapshot", reason="manual"))
    model.go()
    assert digest.read(digest.positions()[-1]).header["digest"] == before
    assert model.in_registry() == model.identity
    assert model.identity in model.in_snapshots()
    with pytest.raises(RunError):
        other.go()


class _Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("at", ["draft", "file", "journal", "registry"])
def test_killed_between_the_steps_of_the_first_run(tmp_path, monkeypatch, at):
    """What the next run finds is one identity, everywhere; what was told anywhere is that."""
    model = Model(tmp_path / "one")

    def killed(*_, **__):
        raise _Killed

    def renamed(storage, name, data):
        storage.append(f".{name}.draft", data)
        raise _Killed

    with monkeypatch.context() as patch:
        if at == "draft":
            patch.setattr(identity, "replace", renamed)
        elif at == "file":
            patch.setattr(shard_process, "RunningShard", killed)
        elif at == "journal":
            patch.setattr(shard_process, "Registrar", killed)
        else:
            patch.setattr(shard_process.ShardProcess, "_check_registrar", killed)
        with pytest.raises(_Killed):
            model.go()
    known = model.identity
    assert bool(known) == (at != "draft")
    told = model.in_registry() if at == "registry" else known
    model.go()
    assert {known or model.identity, told or model.identity} == {model.identity}
    assert model.in_journal() == {model.identity}
    assert model.in_registry() == model.identity


def test_hosts_with_journals_of_their_own_find_the_same(tmp_path):
    """Where the registry is theirs, it says; one that has a state already keeps its identity."""
    hosts = [Model(tmp_path / f"host-{i}") for i in range(3)]
    found = set()
    for host in hosts:
        online.prepare(host.settings, joins=True)
        found.add(host.identity)
    assert len(found) == 1
    stranger = Model(tmp_path / "stranger")
    online.prepare(stranger.settings, joins=False)
    assert stranger.identity not in found
    online.prepare(stranger.settings, joins=True)
    assert stranger.identity not in found


def test_who_has_no_state_commands_by_the_name(tmp_path, monkeypatch):
    """As from another host with a copy of the config; it is said."""
    one = Model(tmp_path / "one")
    one.go()
    away, said = Model(tmp_path / "away"), []
    monkeypatch.setattr(operations.log, "info", lambda event, **_: said.append(event))
    with operations.opened(away.settings, to_command=True) as registry:
        registry.order(Order(0, "pause", reason="manual"))
    assert said == ["no_state_here"]
    assert not (away.folder / "state").exists()
    (away.folder / "state" / "shards").mkdir(parents=True)
    with pytest.raises(OtherStateError, match="has none yet"), operations.opened(away.settings):
        pass


def restored(project, version, **options):
    """Plan and give a restore, and carry it out; return what the plan says."""
    with operations.opened(project.settings, to_command=True) as registry:
        plan = plans.plan_replacing(registry, project.settings, "restore", version, **options)
        plan = plans.taken_in(registry, project.settings, plan)
        registry.order(*plan.orders)
    project.go()
    return plan


def digest_of(registry, version):
    return registry.version(version).manifest.shards[0].header["digest"]


def test_a_version_of_the_state_of_before_is_restored_only_by_its_identity(tmp_path):
    """A shard refuses it as the command does; that it was done is in the history."""
    one, two = Model(tmp_path / "one"), Model(tmp_path / "two", seed=5)
    one.go()
    two.go(adopted_by="me@here")
    two.grow(30)
    two.go()
    with operations.opened(two.settings) as registry:
        assert [row.version for row in registry.versions()] == [1, 2, 3]
        wanted = digest_of(registry, 1)
        with pytest.raises(OperationError, match=f"--from {one.identity[:12]}"):
            plans.plan_replacing(registry, two.settings, "restore", 1)
        for wrong in (two.identity, "fraud", one.identity[:7]):
            with pytest.raises(OperationError, match="--from: found"):
                plans.plan_replacing(registry, two.settings, "restore", 1, origin=wrong)
        for wrong in (two.identity, "fraud"):
            with pytest.raises(OperationError, match="--from: found"):
                plans.plan_replacing(registry, two.settings, "restore", 2, origin=wrong)
        (past,) = registry.order(Order(0, "restore", version=1, reason="past the command"))
        with pytest.raises(OperationError, match="no version of before"):
            choosing.before_time(registry, registry.version(1).created)
    two.go()
    with operations.opened(two.settings) as registry:
        (done,) = (d.command for d in registry.deployments([past.id]))
        assert f"is of another state (identity {one.identity[:12]}" in done.refused
    assert "of the model as it was before" in restored(two, 1, origin=one.identity[:8]).words[0]
    with operations.opened(two.settings) as registry:
        done = [d.command for d in registry.deployments() if d.kind == "restore"][-1]
        assert (done.refused, done.origin, done.digest) == ("", one.identity, wanted)
        assert one.identity in done.reason
        newest = registry.versions()[-1]
    two.grow(5)
    two.go()
    with operations.opened(two.settings) as registry:
        assert registry.versions()[-1].version > newest.version
        assert registry.versions()[-1].manifest.identity == two.identity


def test_a_version_of_another_model_is_copied_before_it_is_restored(tmp_path):
    """It stays what it is there, and is a version here, which says where it is from."""
    one, two = Model(tmp_path / "one", name="one"), Model(tmp_path / "two", name="two", seed=5)
    one.go()
    two.go()
    with operations.opened(one.settings) as registry:
        wanted, before = digest_of(registry, 1), registry.versions()
    plan = restored(two, 1, origin="one")
    assert plan.version == 2
    with operations.opened(two.settings) as registry:
        done = [d.command for d in registry.deployments() if d.kind == "restore"][-1]
        assert (done.refused, done.version, done.digest) == ("", 2, wanted)
        assert done.origin == one.identity
        assert done.reason == f"manual, version 1 of one, from the state {one.identity}"
        row = registry.version(2)
        assert (row.kind, row.reason, row.parent) == ("imported", "version 1 of one", 0)
        assert registry.problems(2) == []
        with pytest.raises(OperationError, match="--from: found 'three'"):
            plans.plan_replacing(registry, two.settings, "restore", 1, origin="three")
    with operations.opened(one.settings) as registry:
        assert registry.versions() == before
        assert registry.problems(1) == []


def test_artifacts_are_those_of_one_state(tmp_path):
    """Also where each project has a registry of its own; --adopt takes them over."""
    shared = '[versions]\nartifacts = "../artifacts"\n'
    one = Model(tmp_path / "one", versions=shared)
    two = Model(tmp_path / "two", versions=shared, seed=5)
    one.go()
    files = {p: p.read_bytes() for p in (tmp_path / "artifacts").rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="the versions there are of another state"):
        two.go()
    assert files == {p: p.read_bytes() for p in (tmp_path / "artifacts").rglob("*") if p.is_file()}
    two.go(adopted_by="me@here")
    one.grow(30)
    with pytest.raises(RunError, match="the versions there are of another state"):
        one.go()


def test_another_states_versions_are_not_adopted_or_swept(tmp_path):
    """`snapshots adopt`, where each project has a registry of its own, refuses as `run` does."""
    apart = '[versions]\nregistry = "own.db"\nartifacts = "../artifacts"\n'
    one = Model(tmp_path / "one", versions=apart, name="same")
    two = Model(tmp_path / "two", versions=apart, name="same", seed=2)
    one.go()
    with pytest.raises(RunError, match="of another state"):
        two.go()
    begun = tmp_path / "artifacts" / "same" / "00000002" / "000"
    begun.mkdir(parents=True)  # of a version that is being made
    with closing(open_registry(two.settings, create=True)) as registry:
        with pytest.raises(OtherStateError, match="of another state"):
            registry.adopt()
        with pytest.raises(OtherStateError, match="of another state"):
            registry.sweep()
        assert registry.versions() == []
    assert begun.exists()


def test_of_a_state_and_its_copy_the_first_goes_on(tmp_path):
    """A copied folder has the identity of its original: of two that run, the later is refused."""
    one = Model(tmp_path / "one", name="same")
    one.go()
    copy = Model(tmp_path / "copy", name="same")
    shutil.copytree(one.folder / "state", copy.folder / "state")
    first, second = one.running(), copy.running()
    assert second.wait(timeout=PATIENCE) == 1
    copy.logged("with the identity of the state here: one is a copy of the other")
    assert stop(first)[0] == 0
    copy.config.write_text(copy.config.read_text().replace('"same"', '"other"'))
    copy.grow(10)
    assert copy.go().events == 10
    with closing(open_registry(one.settings)) as registry:
        assert [row.version for row in registry.versions()] == [1]


@pytest.mark.parametrize(("versions", "name", "noted"), [
    (SHARED, "", True), (SHARED, "fraud", False), ("", "", False),
    ('[versions]\nartifacts = "s3://bucket/prefix"\n', "", True),
    ('[versions]\nregistry = "state/other.db"\n', "", False),
    ('[versions]\nregistry = "postgresql://me@127.0.0.1:1/db"\n', "", True),
])  # fmt: skip
def test_check_notes_a_name_that_others_may_have(tmp_path, versions, name, noted):
    """Where the registry, or the files of versions, are not in the state folder."""
    model = Model(tmp_path / "one", versions=versions, name=name)
    assert model.settings.named == bool(name)
    assert inspect.may_be_mistaken(model.settings) == noted
    model.config.write_text("named = true\n" + model.config.read_text())
    with pytest.raises(ConfigError, match="named"):
        load(model.config)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_random_commands_of_two_projects_do_not_cross(tmp_path, postgres_url, s3_url, seed):
    """On one PostgreSQL and one S3, from three hosts, of which one has a config alone.

    The second project has the same name at first, and is refused; then it has one of its own.
    """
    rng = random.Random(seed)
    place = f'[versions]\nregistry = "{postgres_url}"\nartifacts = "{s3_url}"\nkeep = 2\n'
    place += "keep_hours = 0\nkeep_days = 0\n"
    one = Model(tmp_path / "one", versions=place)
    away = Model(tmp_path / "away", versions=place)  # an operator's host of project one
    two = Model(tmp_path / "two", versions=place, seed=5)
    one.go()
    with pytest.raises(RunError):  # from then on it has a state
        two.go()
    refused = 0
    given = {"config": [], "second": []}  # ids of commands, by name
    for turn in range(100):
        if turn == 50:
            two = Model(tmp_path / "two", versions=place, seed=5, name="second")
            two.go()
        host = rng.choice([one, away, two])
        name = host.settings.name
        what = rng.choice(["run", "run", "snapshot", "pause", "resume", "restore", "rollback",
                           "tag", "untag", "prune", "cancel", "verify"])  # fmt: skip
        if what == "run" and host is away:
            continue
        try:
            if what == "run":
                host.grow(rng.randint(1, 9), seed=turn)
                host.go()
                continue
            with operations.opened(host.settings, to_command=True) as registry:
                numbers = [row.version for row in registry.versions()]
                version = rng.choice([*numbers, 99])
                if what in ("snapshot", "pause", "resume"):
                    orders = registry.order(Order(0, what, reason=f"{name} {turn}"))
                elif what == "restore":
                    plan = plans.plan_replacing(registry, host.settings, what, version)
                    orders = registry.order(*plan.orders)
                elif what == "rollback":
                    plan = plans.plan_rollback(registry, host.settings)
                    orders = registry.order(*plan.orders)
                else:
                    orders = []
                    if what == "tag":
                        registry.tag(version, f"{name}-{turn % 3}")
                    elif what == "untag":
                        registry.untag(f"{name}-{turn % 3}")
                    elif what == "prune":
                        registry.retention.prune(2, 0.0)
                    elif what == "verify":
                        assert [p for v in numbers for p in registry.problems(v)] == []
                    elif waiting := registry.waiting():
                        registry.cancel(rng.choice(waiting).id, "taken back")
                given[name] += [order.id for order in orders]
        except (OtherStateError, RunError) as error:
            if host is not two or turn >= 50:
                raise AssertionError(f"turn {turn}: {what} was refused: {error}") from error
            refused += 1
        except (OperationError, UnknownVersionError, CommandError):
            assert host is not two or turn >= 50, f"turn {turn}: {what} was not refused"
    assert refused > 5, f"{refused} of the other's were refused"
    one.go()
    two.go()
    epochs = {}
    for project in (one, two):
        with operations.opened(project.settings) as registry:
            name = project.settings.name
            assert registry.database.owner() == project.identity
            for row in registry.versions():
                assert row.manifest.identity == project.identity
                assert registry.problems(row.version) == []
                assert row.manifest.model == name
            assert {tag for row in registry.versions() for tag in row.tags} <= {
                f"{name}-{i}" for i in range(3)
            }
            done = registry.deployments()
            manual = {d.command.id for d in done if d.command.reason.startswith(name)}
            assert manual <= set(given[name])
            assert all(d.command.origin == "" for d in done)
            epochs[name] = {d.epoch for d in done}
    assert not epochs["config"] & epochs["second"]
