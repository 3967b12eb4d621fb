"""A simulated disk that fails at seeded points, and a shard's life on it.

In the spirit of FoundationDB: one seed decides the work, the cuts, which operation of the storage
fails and how (before, within or after it), and what a power loss leaves of what was not synced:
nothing, all, a part, or a part with a hole of zeros.
"""

import json
import math
import random
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import msgspec
import numpy as np
from journal_fold import Fold

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Rejected
from midstream.engine.events.predictions import Predictions
from midstream.engine.joining.policy import Policy
from midstream.engine.learners.learner import LEARNERS, LearnerError
from midstream.engine.shard import backlog, journal
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import Done, Order, RefusedError
from midstream.engine.shard.dataset import from_plain
from midstream.engine.shard.journal import Command, Cursor, Exclude, FileJournal, Range, Record
from midstream.engine.shard.outbox import Outbox
from midstream.engine.shard.outcome import EventError
from midstream.engine.shard.shard import Shard
from midstream.engine.state import encoding
from midstream.engine.state.snapshot import Snapshot, SnapshotFolder, pack, unpack
from midstream.engine.training import rejecting
from midstream.engine.training.trainer import Trainer

PAGE = 64  # small, so that a record spans several
NAMED = ["a", "b", "c"]
SOURCES = [*NAMED, None]
KINDS = [
    "snapshot", "snapshot", "restore", "rewind", "rewind", "rewind", "promote", "promote",
    "rollback", "pause", "resume",
]  # fmt: skip


CHANGED = "the input is not what it was"


class AbandonedError(Exception):
    """What was to be learned again is not there any more."""


class Crash(Exception):  # noqa: N818 it is no error of anybody's
    """The process died."""


class Stop(Exception):  # noqa: N818 likewise
    """The learner failed on too much, and the process ends."""


class Disk:
    """What survives: folders of inodes. `fuse` operations from now, something goes wrong."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.fuse = -1
        self.folders: dict[str, Folder] = {}

    def folder(self, name: str) -> "Folder":
        return self.folders.setdefault(name, Folder(self))

    def operate(self, operation: Any, partial: Any = None) -> Any:
        """Run one operation of the storage, unless this is the one that fails."""
        self.fuse -= 1
        if self.fuse != 0:
            return operation()
        mode = self.rng.choice(["before", "within", "after", "error"])
        if mode == "within" and partial is not None:
            partial(self.rng)
        if mode == "after":
            operation()
        if mode == "error":
            raise OSError(5, "simulated input/output error")
        raise Crash

    def die(self) -> None:
        """Lose the process, and half of the times the power too."""
        if self.rng.random() < 0.5:
            for folder in self.folders.values():
                folder.lose_power(self.rng)


class Inode:
    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = b""

    def lose_power(self, rng: random.Random) -> None:
        if bytes(self.data) == self.synced:
            return
        kind = rng.choice(["old", "new", "part", "hole"])
        common = min(len(self.synced), len(self.data))
        if kind == "old":
            self.data = bytearray(self.synced)
        elif len(self.data) > common and kind in ("part", "hole"):
            kept = rng.randint(common, len(self.data))
            self.data = self.data[:kept]
            if kind == "hole" and kept - common > PAGE:
                start = rng.randrange(common, kept - PAGE)
                self.data[start : start + PAGE] = bytes(PAGE)
        self.synced = bytes(self.data)


class Folder:
    """A `Storage`. Names change in the order of the operations; content only by `sync`."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.now: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self.steps: list[dict[str, Inode]] = []  # the names after each change not yet durable

    def names(self) -> list[str]:
        return sorted(self.now)

    def length(self, name: str) -> int | None:
        return len(self.now[name].data) if name in self.now else None

    def read(self, name: str) -> bytes:
        return bytes(self.now[name].data)

    def append(self, name: str, data: bytes) -> None:
        if name not in self.now:
            self.now[name] = Inode()
            self._changed()
        inode = self.now[name]
        self.disk.operate(
            lambda: inode.data.extend(data),
            lambda rng: inode.data.extend(data[: rng.randint(0, len(data))]),
        )

    def reopen(self, name: str) -> None:
        """Files are found by their names here."""

    def truncate(self, name: str, length: int) -> None:
        def cut() -> None:
            del self.now[name].data[length:]

        self.disk.operate(cut)

    def sync(self, name: str) -> None:
        inode = self.now[name]

        def sync() -> None:
            inode.synced = bytes(inode.data)

        self.disk.operate(sync)

    def sync_folder(self) -> None:
        def sync() -> None:
            self.durable, self.steps = dict(self.now), []

        self.disk.operate(sync)

    def rename(self, old: str, new: str) -> None:
        def rename() -> None:
            self.now[new] = self.now.pop(old)
            self._changed()

        self.disk.operate(rename)

    def remove(self, name: str) -> None:
        def remove() -> None:
            if self.now.pop(name, None) is not None:
                self._changed()

        self.disk.operate(remove)

    def lose_power(self, rng: random.Random) -> None:
        kept = rng.randint(0, len(self.steps))
        self.now = dict(self.steps[kept - 1] if kept else self.durable)
        self.durable, self.steps = dict(self.now), []
        for inode in dict.fromkeys(self.now.values()):  # each once, in an order that is the same
            inode.lose_power(rng)

    def _changed(self) -> None:
        self.steps.append(dict(self.now))


class ChainLearner:
    """Its prediction is a number that depends on every event learned and on their order."""

    kind: ClassVar[str] = "chain"
    needs = "dicts"
    task = "regression"
    takes_weights = True

    def __init__(self) -> None:
        self.value = 0

    def predict_learn(self, batch: EventBatch) -> Predictions:
        values = []
        for row, (x, y) in enumerate(zip(batch.dicts(), batch.labels, strict=True)):
            values.append(math.inf if self.value % 5 == 1 else self.value)
            if x.get("bad") or (x.get("moody") and self.value % 3 == 0):
                self.value += 1  # half updated
                raise LearnerError(row, ValueError("a bad one"))
            if y is not None:
                self.value = (self.value * 31 + int(x["v"]) + 7 * int(y)) % 1_000_003
        return Predictions(values)

    def predict(self, batch: EventBatch) -> Predictions:
        return Predictions([self.value] * len(batch))

    def learn(self, batch: EventBatch) -> None:
        self.predict_learn(batch)

    def state(self) -> bytes:
        return encoding.encode(self.value)

    def definition(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def load(cls, state: bytes, **_: Any) -> "ChainLearner":
        new = cls()
        new.value = encoding.decode(state)
        return new


LEARNERS["chain"] = ChainLearner.load


DEFINITIONS: list[dict[str, Any]] = [
    {"metrics": ["mae"], "window": 8, "drift": (), "replay": 4},
    {"metrics": ["mae", "rmse"], "window": 5, "drift": ("page_hinkley",), "replay": 2},
    {"metrics": ["rmse"], "window": 13, "drift": ("adwin", "page_hinkley"), "replay": 7},
    {"metrics": ["mae"], "window": 13, "drift": {"page_hinkley": {"threshold": 3.0}}, "replay": 7},
]
"""What a config may define, one after the other, of one state."""


POLICIES = [
    Policy(window=8.0, early=2.0, remember=20.0),
    Policy(window=4.0, early=3.0, remember=6.0, on_expiry="label", default=3.0,
           corrections="learn", correction_weight=2.0),
    Policy(window=6.0, repeats="sum", window_events=5, max_events=6),
    Policy(window=1e6, repeats="last", max_bytes=2_000, idle=2.0),
]  # fmt: skip
"""What is done with labels that come later."""


def make_trainer(definition: int = 0, policy: Policy | None = None) -> Trainer:
    return Trainer(ChainLearner(), **DEFINITIONS[definition], feedback=policy)


LABELS = "labels"
"""The partition of the feedback."""


class KeepingJournal(FileJournal):
    """A journal on files of which nothing is lost to us where it is trimmed."""

    trimmed: dict[int, Record]

    def trim(self, seq: int) -> None:
        self.trimmed |= {record.seq: record for record in self.records(self.first)}
        super().trim(seq)


@contextmanager
def soon(records: int = 3) -> Iterator[None]:
    """Have learners judged by few events, and journals read in small parts, as lives are short."""
    with (
        mock.patch.multiple(rejecting, RECENT_EVENTS=12, MIN_EVENTS=6),
        mock.patch.object(journal, "MOST_RECORDS", records),
        mock.patch.object(backlog, "MOST_RECORDS", records),
    ):
        yield


class Life:
    """A shard's life over a small stream: batches, commits, snapshots, crashes, resumes.

    Parameters
    ----------
    commands
        How many an operator gives, at random moments.
    amends
        Whether the config defines the model otherwise from time to time.
    joins
        Whether labels come later, from a partition of their own.
    """

    def __init__(
        self,
        seed: int,
        *,
        partitions: int = 1,
        events: int = 40,
        commands: int = 0,
        amends: bool = False,
        joins: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.policy = POLICIES[seed % len(POLICIES)] if joins else None
        self._amends = random.Random(seed) if amends else None
        self.definition = 0
        self.disk = Disk(self.rng)
        self.time = 0.0
        self._set = random.Random(seed)  # when the wall clock is set, and by how much
        self._off = 0.0
        self.office = Office(self, commands)
        self.bad = self.rng.choice([0.03, 0.03, 0.1, 0.5, 0.9])
        self.streams = {f"p{p}": [self._event(i) for i in range(events)] for p in range(partitions)}
        if joins:
            self.streams = {p: list(map(self._unlabelled, s)) for p, s in self.streams.items()}
            self.streams[LABELS] = [self._label(i, events) for i in range(2 * events)]
        self.trimmed: dict[int, Record] = {}
        self.limit = self.rng.choice([0.05, 0.2, 1.0])
        self._careful = False
        self.stops = self.old_ways = 0
        self._records = self.rng.choice([1, 3, 20_000])
        self._reading: dict[str, Cursor] = {}  # where the input is read on

    def _event(self, i: int) -> dict[str, Any] | None:
        kind = self.rng.random()
        if kind < 0.08:
            return None  # cannot be decoded
        x: dict[str, Any] = {"v": self.rng.randrange(1000), "bad": self.rng.random() < self.bad}
        if x["bad"] and self.rng.random() < 0.5:
            x["text"] = "odd"
        if self.office.left and 0.93 < kind < 0.97:
            x["moody"] = True
        return {
            "x": x,
            "y": None if 0.08 < kind < 0.12 else i % 5,
            "id": f"e{i}" if i % 7 else None,
            "source": self.rng.choice(SOURCES),
        }

    def _unlabelled(self, event: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return an event without its label, most times, and with a time."""
        if event is None:
            return None
        event["y"] = event["y"] if self.rng.random() < 0.1 else None
        at = int((event["id"] or "e0")[1:]) + self.rng.choice([0.0, 0.5, -3.0])
        return event | {"ts": at if self.rng.random() < 0.9 else None}

    def _label(self, i: int, events: int) -> dict[str, Any] | None:
        """Return feedback for an event around the same place."""
        if self.rng.random() < 0.05:
            return None
        at = min(max(i // 2 + self.rng.randint(-6, 3), 0), events)
        return {
            "x": {"id": f"e{at}", "bad": False},
            "y": self.rng.randrange(5) if self.rng.random() < 0.95 else None,
            "id": f"e{at}",
            "source": self.rng.choice(SOURCES),
            "ts": i / 2 + self.rng.random() if self.rng.random() < 0.9 else None,
        }

    def decode(self, partition: str, start: int, stop: int) -> tuple[EventBatch, list[Rejected]]:
        part = self.streams[partition][start:stop]
        rows = [(start + i, e) for i, e in enumerate(part) if e is not None]
        batch = EventBatch(
            [dict(e["x"]) for _, e in rows],
            [e["y"] for _, e in rows],
            offsets=np.array([i for i, _ in rows], np.int64),
            partition=partition,
            index=-1,
            ids=[e["id"] for _, e in rows],
            sources=[e["source"] for _, e in rows],
            times=[e["ts"] for _, e in rows] if self.policy is not None else None,
        )
        batch.is_feedback = partition == LABELS
        rejected = [
            Rejected((partition, 0, start + i), "unreadable", "", "")
            for i, e in enumerate(part)
            if e is None
        ]
        return batch, rejected

    def open(self) -> Shard:
        folder = self.disk.folder("state")
        self.journal = KeepingJournal(
            folder, self.disk.folder("out"), names=["predictions", "rejected"], segment_bytes=600
        )
        self.journal.trimmed = self.trimmed
        shard = Shard.open(
            "000",
            lambda: make_trainer(self.definition, self.policy),
            self.journal,
            SnapshotFolder(folder, keep=2),
            snapshot_events=self.rng.choice([3, 10, 1000]),
            snapshot_seconds=1e9,
            commit_seconds=self.rng.choice([0.0, 3.0, 10.0]),
            clock=lambda: self.time,
            wall=self._wall,
            fetch=self.office.fetch,
            outbox=self.office.outbox,
            keep_from=self.office.keep_from,
            reject=self._encode_rejected,
            careful=self._careful,
            error_limit=self.limit,
            timer=self._timer,
        )
        self._reading = shard.positions
        return shard

    def _timer(self) -> float:
        """Time that has it keep states at any moments, or at none."""
        return self.rng.choice([0.0, self.rng.random(), 1e3 * self.rng.random()])

    @staticmethod
    def _encode_rejected(rejected: list[Rejected]) -> dict[str, bytes]:
        lines = [{"rejected": [r.origin[0], r.origin[2]]} for r in rejected]
        return {"rejected": b"".join(json.dumps(line).encode() + b"\n" for line in lines)}

    def _wall(self) -> float:
        """Return what the wall clock says, which somebody may just have set."""
        if self._set.random() < 0.1:
            self._off = self._set.choice([0.0, 1.0, -1.0, 3_600.0, -3_600.0, 3e7, -3e7])
        return 1e9 + self.time + self._off

    def live(self) -> Shard:
        """Open the shard, replay, and go on to the end of the streams."""
        shard = self.open()
        self.office.opened(shard)
        flight: list[tuple[Any, dict[str, bytes]]] = []  # stepped, not yet published
        try:
            self._replay(shard)
            while self._turn(shard, flight):
                pass
        except AbandonedError:
            return self.live()
        except Stop:
            return self.live()
        except EventError as error:
            flight.clear()  # what was not published is done again
            assert not shard.replaying or shard.relearning, "what was learned is not learned again"
            assert not self._careful, "what is careful raises"
            shard.commit()
            if self.rng.random() < 0.3:  # as it was done once: journals of then can be read
                self.old_ways += 1
                lines = self._encode_rejected([error.rejected])["rejected"]
                self.journal.write("rejected", lines)
                at = error.origin[2]
                self.journal.commit([Exclude(error.place, at, error.reason, error.row)])
            else:
                self._careful = True
            return self.live()
        for each in flight:
            shard.publish(*each)
        shard.close()
        self.office.visit(shard)
        return shard

    def _turn(self, shard: Shard, flight: list[Any]) -> bool:
        """Carry a command out, or read, learn and publish; False at the end of it all."""
        self.time += 1.0
        left = [] if shard.paused else [p for p, s in self.streams.items() if self._at(p) < len(s)]
        order = self.office.next(shard, urgent=not left)
        if order is not None:
            while flight:
                self._publish(shard, flight)
            self.office.carry_out(shard, order)
            if shard.replaying:
                self._read_again(shard)
                self._replay(shard)
            return True
        if not left:
            return False
        partition = self.rng.choice(left)
        start = self._at(partition)
        stop = min(len(self.streams[partition]), start + self.rng.randint(1, 6))
        outcome = self._step(shard, self._part(partition, start, stop))
        assert outcome.live
        flight.append((outcome, self.outputs(outcome, shard.version)))
        while len(flight) > self.rng.choice([0, 0, 2]):
            self._publish(shard, flight)
        self.office.work(shard)
        return True

    def _publish(self, shard: Shard, flight: list[Any]) -> None:
        outcome, outputs = flight.pop(0)
        shard.publish(outcome, outputs)
        if outcome.verdict is not None:
            flight.clear()
            self.stops += 1
            shard.commit()
            raise Stop

    def _replay(self, shard: Shard) -> None:
        """Apply the journal again, with something always on its way, or not."""
        flight: list[tuple[Range, bool]] = []

        def land(most: int = 0) -> None:
            while len(flight) > most:
                part, final = flight.pop(0)
                outcome = self._step(shard, part, final=final)
                assert not outcome.live
                shard.publish(outcome, {})

        while (span := shard.next_step()) is not None:
            if shard.may_abandon and self.rng.random() < 0.05:
                shard.abandon(CHANGED)
                raise AbandonedError
            if isinstance(span, Command):
                land()
                shard.carry_out_again(span)
                if span.since >= 0 and not span.refused and shard.replaying:
                    self._read_again(shard)
                continue
            at = self._at(span.partition)
            assert at == span.start, "the input is read again from elsewhere"
            while at < span.stop:
                to = min(span.stop, at + self.rng.randint(1, 6))
                part = self._part(span.partition, at, to)
                assert to < span.stop or part.crc == span.crc, "not what was learned"
                flight.append((part, to == span.stop))
                land(self.rng.choice([1, 2, 2]) if self.office.ahead else 0)
                at = to
        land()
        assert not shard.replaying
        assert not shard.relearning, "it relearns without end"

    def _read_again(self, shard: Shard) -> None:
        self._reading |= shard.positions

    def _part(self, partition: str, start: int, stop: int) -> Range:
        cursor = self._reading.get(partition, Cursor())
        crc = zlib.crc32(bytes(range(start, stop)), cursor.crc)
        self._reading[partition] = Cursor(stop, stop, crc)
        return Range(partition, start, stop, stop, crc)

    def _step(self, shard: Shard, part: Range, *, final: bool = True) -> Any:
        batch, rejected = self.decode(part.partition, part.start, part.stop)
        return shard.step(part, batch, rejected, final=final)

    @staticmethod
    def outputs(outcome: Any, version: int = 0) -> dict[str, bytes]:
        origins = outcome.batch.origins
        predictions = [
            {"at": [o[0], o[2]], "y": v} | ({"version": version} if version else {})
            for o, v in zip(origins, outcome.predictions.values, strict=True)
        ]
        lines = b"".join(json.dumps(line).encode() + b"\n" for line in predictions)
        return {"predictions": lines, **Life._encode_rejected(outcome.rejected)}

    def _at(self, partition: str) -> int:
        return self._reading.get(partition, Cursor()).offset

    def run(self, crashes: int) -> Shard:
        """Live through `crashes` failures of the disk or the process, then to the end."""
        with soon(self._records):
            return self._run(crashes)

    def _run(self, crashes: int) -> Shard:
        for _ in range(crashes):
            self._careful = False
            self._redefine()
            self.disk.fuse = self.rng.randint(1, 120)
            try:
                self.live()
            except (Crash, OSError):
                self.disk.fuse = -1
                self.disk.die()
        self.disk.fuse, self._careful = -1, False
        self._redefine()
        return self.live()

    def _redefine(self) -> None:
        """Have the config define the model otherwise from now on, or not."""
        if self._amends is not None and self._amends.random() < 0.6:
            self.definition = self._amends.randrange(len(DEFINITIONS))

    def records(self) -> list[Record]:
        """The whole journal, also what was trimmed."""
        self.journal.recover()
        there = {record.seq: record for record in self.journal.records(self.journal.first)}
        return [record for _, record in sorted((self.trimmed | there).items())]

    def fold(self) -> tuple[Fold, dict[str, list[dict[str, Any]]]]:
        """Fold the journal over the initial state; return what it should have put out, too."""
        out: dict[str, list[dict[str, Any]]] = {"predictions": [], "rejected": []}

        def read(partition: str, start: int, stop: int) -> EventBatch:
            return self.decode(partition, start, stop)[0]

        def learned(batch: EventBatch, step: Any, version: int) -> None:
            for (partition, _, at), y in zip(batch.origins, step.predictions.values, strict=True):
                line = {"at": [partition, at], "y": y}
                out["predictions"].append(line | ({"version": version} if version else {}))
            for _, r in step.rejected:
                out["rejected"].append({"rejected": [r.origin[0], r.origin[2]]})

        records = self.records()
        begun = (records[0].about or {})["definition"]
        makers = [lambda i=i: make_trainer(i, self.policy) for i in range(len(DEFINITIONS))]
        make = next(make for make in makers if make().definition() == begun)
        fold = Fold(make, read, learned=learned, most=1_000, limit=self.limit)
        with soon(self._records):
            fold.apply(records)
        for entry in (entry for record in records for entry in record.entries):
            if isinstance(entry, Exclude):
                out["rejected"].append({"rejected": [entry.partition, entry.line]})
            elif isinstance(entry, Range):
                for i in range(entry.start, entry.stop):
                    if self.streams[entry.partition][i] is None:
                        out["rejected"].append({"rejected": [entry.partition, i]})
        return fold, out

    def expected_without_crash(self) -> tuple[str, bytes, list[str]]:
        """What one partition gives when nothing fails: digest, predictions, rejected lines."""
        (partition,) = self.streams
        trainer, predictions, rejected = make_trainer(), b"", list[str]()
        for i in range(len(self.streams[partition])):
            event = self.streams[partition][i]
            if event is None or event["x"]["bad"]:
                rejected.append(json.dumps({"rejected": [partition, i]}))
                continue
            batch, _ = self.decode(partition, i, i + 1)
            value = trainer.step(batch).predictions.values[0]
            predictions += json.dumps({"at": [partition, i], "y": value}).encode() + b"\n"
        return trainer.digest(), predictions, rejected


class Office:
    """Who gives a life its commands, and keeps what came of them: operator, registrar, registry.

    What is here survives crashes. Parts of versions come into the store at random moments, from the
    outbox, by an operation that may fail; an order is offered until the journal has it.
    """

    def __init__(self, life: Life, commands: int) -> None:
        self.left = commands
        self.orders: list[Order] = []
        self.store: dict[int, bytes] = {}
        self.told: dict[int, Done] = {}
        self.oldest: dict[int, Mapping[str, int]] = {}  # by command
        self.firsts: dict[int, int] = {}  # of the journal, likewise
        self.ahead = commands > 0
        self.keep_from = life.rng.choice([0.0, 0.0, math.inf]) if commands else math.inf
        self._life = life
        self._rng = life.rng
        self._made = 0
        self._handed = 0

    @property
    def outbox(self) -> Outbox:
        return Outbox(self._life.disk.folder("state"))

    def fetch(self, version: int) -> Snapshot:
        if version in self.outbox.versions():
            return self.outbox.read(version)
        if version not in self.store:
            raise RefusedError(f"version {version} is not there")
        return unpack(self.store[version], str(version))

    def opened(self, shard: Shard) -> None:
        """Begin to hand out again what this shard has not done, as far as we know."""
        self._handed = shard.last_command

    def next(self, shard: Shard, *, urgent: bool) -> Order | None:
        """Return what is to be carried out now; `urgent`: there is no other work."""
        if self.left and (urgent or self._rng.random() < 0.2):
            self.left -= 1
            self.orders.append(self._order())
        elif urgent and shard.paused and not self._waiting():
            self.orders.append(Order(self._id(), "resume"))
        if not self._waiting() or not (urgent or self._rng.random() < 0.5):
            return None
        order = self._waiting()[0]
        self._handed = order.id
        return order

    def _waiting(self) -> list[Order]:
        return [order for order in self.orders if order.id > self._handed]

    def _id(self) -> int:
        return (self.orders[-1].id if self.orders else 0) + self._rng.choice([1, 1, 3])

    def _order(self) -> Order:
        rng, number = self._rng, self._id()
        kind = rng.choice(KINDS)
        if kind == "snapshot" or not self._made:
            self._made += 1
            return Order(number, "snapshot", version=self._made, reason="r")
        if kind in ("pause", "resume"):
            return Order(number, kind)
        version = rng.randint(1, self._made + (rng.random() < 0.1))
        if kind != "rewind":
            return Order(number, kind, version=version, catch_up=rng.choice([0, 3, 10, 20, 1000]))
        stretches = []
        for _ in range(rng.choice([0, 0, 1, 2])):
            partition = rng.choice(list(self._life.streams))
            first = rng.randrange(len(self._life.streams[partition]))
            stretches.append((partition, first, first + rng.choice([0, 3, 15])))
        sources = tuple(rng.sample(NAMED, rng.choice([0, 0, 1, 2])))
        return Order(number, kind, version=version, sources=sources, ranges=tuple(stretches))

    def carry_out(self, shard: Shard, order: Order) -> None:
        rng = self._rng
        oldest = {p: rng.randint(0, len(s)) for p, s in self._life.streams.items()}
        oldest = defaultdict(int, oldest if rng.random() < 0.15 else {})
        prepared = None
        if command_kind(order.kind).replaces and rng.random() < 0.5:
            if order.version in self.store:
                prepared = unpack(self.store[order.version], "")
            elif rng.random() < 0.2:
                order = msgspec.structs.replace(order, problem="it is not in the registry")
        before, first = self._state(shard), shard._journal.first
        known = shard.last_command
        done = shard.carry_out(order, oldest=lambda: oldest, prepared=prepared)
        if done is None:
            assert order.id <= known, "a command is passed over"
            return
        assert order.id not in self.oldest, "a command is carried out twice"
        self.oldest[order.id], self.firsts[order.id] = oldest, first
        if done.command.refused:
            assert self._state(shard) == before, "a refused command has changed something"
        self.work(shard)

    @staticmethod
    def _state(shard: Shard) -> Any:
        return (
            shard.trainer, shard.trainer.seen, dict(shard.cursors), shard.version, shard.parent,
            shard.paused, shard.data.copy(), shard.replaying, shard._journal.generation,
        )  # fmt: skip

    def work(self, shard: Shard) -> None:
        """Do some of the registrar's work, or none."""
        if not self.orders:
            return
        if self._rng.random() < 0.3:
            self.deliver()
        if self._rng.random() < 0.3:
            self.visit(shard)

    def deliver(self) -> None:
        """Take what is in the outbox to the store."""
        outbox = self.outbox
        for version in outbox.versions():
            data = pack(outbox.read(version))

            def put(version: int = version, data: bytes = data) -> None:
                known = self.store.setdefault(version, data)
                assert known == data, f"version {version} was made again, and is another one"

            self._life.disk.operate(put)
            outbox.remove(version)

    def visit(self, shard: Shard) -> None:
        """Hear what was done, and say that it is known."""
        seqs = [done.seq for done in shard.done]
        assert len(seqs) == len(set(seqs)), "a command is told twice"
        for done in shard.done:
            known = self.told.get(done.seq)
            if known is not None and known.done_at is not None and done.done_at is not None:
                same = msgspec.structs.replace(done, done_at=known.done_at)
                assert known == same, f"another thing is told of a command: {known}, {done}"
            if known is None or known.done_at is None:
                self.told[done.seq] = msgspec.structs.replace(done)
        shard.confirm(self._rng.sample(seqs, self._rng.randint(0, len(seqs))))

    def check(self, shard: Shard, fold: Fold) -> None:
        """What was commanded was done, as the journal says, and all of it was told."""
        for order in self.orders:
            found = [seq for seq, command in fold.commands.items() if command.id == order.id]
            assert len(found) == 1, f"command {order.id} is {len(found)} times in the journal"
            self._check_command(order, found[0], fold)
        told = {seq: done for seq, done in self.told.items() if done.command.kind != "start"}
        assert told.keys() == fold.commands.keys(), "what was done is not told"
        for seq, done in told.items():
            assert done.command == fold.commands[seq]
            assert done.done_at is not None, "a command does not take effect"
            got = (done.position, done.seen, done.generation)
            assert got == (fold.positions[seq], fold.seen[seq], fold.generations[seq]), (got, seq)
        self.deliver()
        for number, data in self.store.items():
            part = unpack(data, str(number))
            assert part.header["seq"] == fold.versions[number].seq
            assert part.header["digest"] == fold.versions[number].digest
            assert part.parts == fold.versions[number].parts
            assert from_plain(part.header["data"]) == fold.versions[number].data
        assert self.store.keys() == fold.versions.keys(), "a version is missing"
        got = (shard.version, shard.parent, shard.paused, shard.last_command)
        assert got == (fold.version, fold.parent, fold.paused, fold.last_command)
        assert shard.data == fold.data, (shard.data, fold.data)
        assert shard.applied == shard.stepped == fold.applied
        assert shard.changed == (fold.data != fold.parent_data)
        assert {p: cursor.offset for p, cursor in shard.cursors.items()} == fold.at
        assert shard._journal.generation == fold.generation

    def _check_command(self, order: Order, seq: int, fold: Fold) -> None:
        """A command says what it was given as, and was refused only where it has to be."""
        command, oldest, first = fold.commands[seq], self.oldest.get(order.id, {}), self.firsts
        assert (command.kind, command.version) == (order.kind, order.version)
        if order.id not in first:  # a crash came just after it was journaled
            return
        spans = []
        kept = fold.versions.get(order.version)
        if kept is not None and kept.seq <= seq:
            spans = [
                entry
                for record in self._life.records()[kept.seq : seq]
                for entry in record.entries
                if isinstance(entry, Range)
            ]
        gone = [s for s in spans if s.start < oldest.get(s.partition, 0)]
        if order.kind == "rewind" and kept is not None and kept.seq <= seq:
            if gone or kept.seq < first[order.id]:
                assert command.refused, "what is to be read again is not there"
            elif "registry" not in command.refused and command.refused != CHANGED:
                assert not command.refused, command.refused
        if order.kind in ("promote", "rollback") and not command.refused and order.catch_up:
            assert fold.relearned[seq] <= order.catch_up, "too much is applied again"
            for span in spans:
                begun = command.start.get(span.partition, Cursor(span.start)).offset
                low = oldest.get(span.partition, 0)
                assert begun <= span.start or span.stop <= begun, "a range is applied in part"
                assert span.start < begun or span.start >= low, "what is gone is to be read again"
            events = sum(max(span.events, 0) for span in spans)
            if not gone and kept.seq >= first[order.id] and events <= order.catch_up:
                assert not command.left, "there was time for all of it"
