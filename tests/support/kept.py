"""A project with a registry that knows what shards would report, without any process."""

import msgspec
from click.testing import CliRunner
from project import MODEL, Project, events
from registry_lives import snapshot

from midstream import open_registry
from midstream.engine.shard.amending import defined
from midstream.engine.shard.commands import Done, Order
from midstream.engine.shard.journal import Command
from midstream.engine.state.snapshot import Snapshot
from midstream.engine.training.trainer import Trainer
from midstream.flows.cli import cli
from midstream.flows.loading import load
from midstream.flows.operating import plans
from midstream.flows.running.definition import make_trainer, state_identity

BEGUN = 1_000.0


class Kept:
    """A project with a registry that knows what shards would report."""

    def __init__(self, folder, path="events.jsonl", *, model=MODEL, versions=""):
        text = f'[input]\npath = "{path}"\n[versions]\n{versions}'
        self.project = Project(folder, model=model, config=text)
        self.folder = folder
        self.settings = load(self.project.config)
        self.registry = open_registry(self.settings, create=True)
        self.registry.join(["000"], 0, 0)
        self.parts = None

    def trained(self, n=200) -> Trainer:
        from midstream.flows.inputs.reading import open_reader

        self.project.write(events(n), "learned.jsonl")
        given = msgspec.structs.replace(self.settings.input, path="learned.jsonl")
        settings = msgspec.structs.replace(self.settings, input=given)
        trainer = make_trainer(self.settings)
        with open_reader(settings) as reader:
            for _, decoded in reader:
                trainer.step(decoded.batch)
        (self.folder / "learned.jsonl").unlink()
        return trainer

    def version(self, cursors=None, *, at=BEGUN, seen=0, fresh="", shards=("000",), **header):
        """Make a version; return its number."""
        self.parts = self.parts or self.trained().state()
        definition = defined(make_trainer(self.settings), **state_identity(self.settings))
        (order,) = self.registry.order(Order(0, "snapshot", reason="manual"), at=at)
        for shard in shards:
            made = snapshot(
                order.version,
                shard,
                created=at,
                seen=seen,
                learned=seen,
                fresh=fresh,
                definition=definition,
                cursors={name: [stop, 1, 0, 0] for name, stop in (cursors or {}).items()},
                **header,
            )
            part = Snapshot(made.header, self.parts)
            self.registry.put(shard, order.version, part)
        assert self.registry.complete() == [order.version]
        return order.version

    def began(self, at=BEGUN, *, shard="000", epoch="", seq=0):
        self.registry.report(shard, epoch, [Done(Command(0, "start", at=at), seq, done_at=at)])

    def did(self, id_, kind, *, at, seq, shard="000", epoch="", position=None, **fields):
        done_at = fields.pop("done_at", at)
        command = Command(id_, kind, at=at, **fields)
        done = Done(command, seq, position=position or {}, done_at=done_at)
        self.registry.report(shard, epoch, [done])

    def rewind(self, version, **options):
        return plans.plan_replacing(self.registry, self.settings, "rewind", version, **options)

    def call(self, *arguments, stdin=None):
        config = str(self.project.config)
        return CliRunner().invoke(cli, [*arguments, "--config", config], input=stdin)
