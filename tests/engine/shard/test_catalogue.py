"""The table of the kinds of commands: its names, its words, and what other packages bring."""

import inspect
from typing import Any, ClassVar

import pytest
from river import linear_model
from toys import Recount, Sources

from midstream import Trainer
from midstream.engine.basics import plugins
from midstream.engine.basics.storage import LocalStorage
from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.catalogue import BUILTIN, command_kind, names, outside_kind
from midstream.engine.shard.commands import Order, RefusedError, main_of
from midstream.engine.shard.journal import Command, FileJournal, JournalError, Range
from midstream.engine.shard.kinds import CommandKind
from midstream.engine.shard.shard import Shard
from midstream.engine.state.snapshot import SnapshotFolder

STANDING: Any = None  # kinds that nobody knows do not look at it


class Ring(CommandKind):
    """Ring a bell."""

    name = "ring"


class Other(Ring):
    """Does not say its name."""

    name: ClassVar[str] = "other"


class Hidden(Ring):
    """Wants to be treated as Midstream's own are."""

    for_shards = False


@pytest.fixture
def outside(monkeypatch):
    """Declare an object as an entry point of a package, under the name ring."""

    def declare(found, name="ring"):
        found_in = {("midstream.commands", name): found, ("midstream.parts", "sources"): Sources}
        monkeypatch.setattr(plugins, "names", lambda group: [n for g, n in found_in if g == group])
        monkeypatch.setattr(plugins, "load", lambda *key: found_in[key])

    return declare


def test_each_kind_has_its_name_and_says_what_it_is():
    """Orders and journals find a class by the name that it has; its docstring is the help."""
    assert len({type(kind) for kind in BUILTIN.values()}) == len(BUILTIN)
    for name, kind in BUILTIN.items():
        assert command_kind(name) is kind
        assert kind.name == name
        assert inspect.getdoc(type(kind))


def test_commands_that_replace_the_model_say_what_becomes_of_the_input():
    """An operator reads it before he confirms; other commands have at most their own line."""
    ranges = (("t-0", 5, 9),)
    order = Order(0, "rewind", 1, sources=("mallory",), ranges=ranges, catch_up=2_000)
    said = {name: command_kind(name).words(order, "offset") for name in BUILTIN}
    assert "without source mallory, t-0, offsets 5 to 9;" in said["rewind"][0]
    assert said["promote"] == said["rollback"]
    assert "the newest 2,000 events" in said["promote"][0]
    assert "the input position stays" in said["restore"][0]
    assert said["pause"] == ["no input is read until `midstream resume`"]
    replacing = {"restore", "rewind", "promote", "rollback"}
    assert {name for name, words in said.items() if len(words) > 1} == replacing
    assert set(names(lambda kind: kind.replaces)) == replacing


def test_the_main_order_is_the_one_that_versions_are_made_around():
    """Or the last, where all make a version."""
    orders = [Order(0, "snapshot"), Order(0, "rewind", 1), Order(0, "snapshot", cut="restored")]
    assert main_of(orders) is orders[1]
    assert main_of(orders[2:]) is orders[2]


def test_a_kind_that_nobody_knows_is_refused_and_never_passed_over(outside):
    """A shard refuses such an order; a journal that has one cannot be folded here."""
    outside(None)
    kind, command = command_kind("rung"), Command(1, "rung")
    with pytest.raises(RefusedError, match="knows the command 'rung'; install the package"):
        kind.plan(command, Order(1, "rung"), STANDING)
    with pytest.raises(JournalError, match="a command of the kind 'rung'"):
        kind.perform(STANDING, command, 0, None)
    assert not kind.given


def test_a_kind_of_another_package_is_found(outside):
    """By the name that the package declares."""
    outside(Ring)
    assert isinstance(command_kind("ring"), Ring)
    assert "ring" not in BUILTIN


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Other, "'ring' of midstream.commands has another `name`, 'other'"),
        (Hidden, "'ring' of midstream.commands sets `for_shards`"),
    ],
)
def test_a_kind_of_another_package_that_cannot_be_treated_so_is_refused(kind, said, outside):
    """Its name differs, or it claims what only Midstream's own kinds may."""
    outside(kind)
    with pytest.raises(plugins.PluginError, match=said):
        outside_kind("ring")
    with pytest.raises(RefusedError, match=said):
        command_kind("ring").plan(Command(1, "ring"), Order(1, "ring"), STANDING)


def test_what_is_declared_and_is_no_kind_is_no_kind_of_command(outside):
    """An entry point may be a command of the command line only."""
    outside(print)
    assert not command_kind("ring").given


def test_what_a_kind_of_another_package_did_is_done_again_after_a_crash(outside, tmp_path):
    """The fold of the journal is the state, though no snapshot has seen the command."""
    outside(Recount, "recount")

    def opened():
        storage = LocalStorage(tmp_path)
        journal = FileJournal(storage)

        def make():
            return Trainer(linear_model.LogisticRegression(), parts=[Sources()])

        return Shard.open("000", make, journal, SnapshotFolder(storage), snapshot_seconds=1e9,
                          clock=lambda: 0.0, modules=["toys"])  # fmt: skip

    def fed(shard, first, stop):
        rows = [{"a": float(i)} for i in range(first, stop)]
        batch = EventBatch(rows, [i % 2 == 0 for i in range(first, stop)], partition="p",
                           sources=["s"] * len(rows))  # fmt: skip
        return shard.step(Range("p", first, stop, stop), batch, [])

    shard = opened()
    shard.publish(fed(shard, 0, 10), {})
    done = shard.carry_out(Order(1, "recount", reason="r"))
    assert done is not None
    assert not done.command.refused
    shard.publish(fed(shard, 10, 13), {})
    shard.commit()
    again = opened()
    while (step := again.next_step()) is not None:
        if isinstance(step, Command):
            again.carry_out_again(step)
        else:
            fed(again, step.start, step.stop)
    assert again.trainer.metrics["sources.s"] == 3.0
    assert again.trainer.digest() == shard.trainer.digest()
