"""A simulated disk that fails at seeded points, and a shard's life on it.

In the spirit of FoundationDB: one seed decides the work, the cuts, which operation of the storage
fails and how (before, within or after it), and what a power loss leaves of what was not synced:
nothing, all, a part, or a part with a hole of zeros.
"""

import hashlib
import json
import random
from typing import Any, ClassVar

from midstream.engine import encoding
from midstream.engine.events import EventBatch, Predictions, Rejected
from midstream.engine.journal import FileJournal, Range
from midstream.engine.learner import LEARNERS, LearnerError
from midstream.engine.shard import EventError, Shard
from midstream.engine.snapshot import SnapshotFolder
from midstream.engine.trainer import Trainer

PAGE = 64  # small, so that a record spans several


class Crash(Exception):  # noqa: N818 it is no error of anybody's
    """The process died."""


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
        for inode in set(self.now.values()):
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
            values.append(self.value)
            if x.get("bad"):
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


def make_trainer() -> Trainer:
    return Trainer(ChainLearner(), metrics=["mae"], window=8, drift=(), replay=4)


class Life:
    """A shard's life over a small stream: batches, commits, snapshots, crashes, resumes."""

    def __init__(self, seed: int, *, partitions: int = 1, events: int = 40) -> None:
        self.rng = random.Random(seed)
        self.disk = Disk(self.rng)
        self.time = 0.0
        self.streams = {f"p{p}": [self._event(i) for i in range(events)] for p in range(partitions)}
        self.order: list[tuple[str, int]] = []

    def _event(self, i: int) -> dict[str, Any] | None:
        kind = self.rng.random()
        if kind < 0.08:
            return None  # cannot be decoded
        x = {"v": self.rng.randrange(1000), "bad": kind > 0.97}
        return {"x": x, "y": None if 0.08 < kind < 0.12 else i % 5}

    def decode(self, partition: str, start: int, stop: int) -> tuple[EventBatch, list[Rejected]]:
        part = self.streams[partition][start:stop]
        rows = [(start + i, e) for i, e in enumerate(part) if e is not None]
        batch = EventBatch(
            [dict(e["x"]) for _, e in rows],
            [e["y"] for _, e in rows],
            offsets=encoding_offsets([i for i, _ in rows]),
            partition=partition,
            index=-1,
        )
        rejected = [
            Rejected((partition, 0, start + i), "unreadable", "", "")
            for i, e in enumerate(part)
            if e is None
        ]
        return batch, rejected

    def open(self) -> Shard:
        folder = self.disk.folder("state")
        self.journal = FileJournal(
            folder, self.disk.folder("out"), names=["predictions", "rejected"], segment_bytes=600
        )
        return Shard.open(
            "000",
            make_trainer,
            self.journal,
            SnapshotFolder(folder, keep=2),
            snapshot_events=self.rng.choice([3, 10, 1000]),
            snapshot_seconds=1e9,
            commit_seconds=self.rng.choice([0.0, 3.0, 10.0]),
            clock=lambda: self.time,
        )

    def live(self) -> Shard:
        """Open the shard, replay, and go on to the end of the streams."""
        shard = self.open()
        flight: list[tuple[Any, dict[str, bytes]]] = []  # stepped, not yet published
        while (span := shard.next_range()) is not None:
            at = span.start
            while at < span.stop:
                to = min(span.stop, at + self.rng.randint(1, 6))
                crc = hashlib.sha256(f"{span.partition}{to}".encode()).digest()[0]
                part = Range(span.partition, at, to, to, crc)
                batch, rejected = self.decode(span.partition, at, to)
                outcome = shard.step(part, batch, rejected, final=to == span.stop)
                assert not outcome.live
                shard.publish(outcome, {})
                at = to
        assert not shard.replaying
        while True:
            left = [p for p, s in self.streams.items() if self._at(shard, p) < len(s)]
            if not left:
                break
            partition = self.rng.choice(left)
            start = self._at(shard, partition)
            stop = min(len(self.streams[partition]), start + self.rng.randint(1, 6))
            self.time += 1.0
            crc = hashlib.sha256(f"{partition}{stop}".encode()).digest()[0]
            try:
                batch, rejected = self.decode(partition, start, stop)
                outcome = shard.step(Range(partition, start, stop, stop, crc), batch, rejected)
            except EventError as error:
                flight.clear()  # what was not published is done again
                line = {"rejected": [error.origin[0], error.origin[2]]}
                shard.exclude(error, {"rejected": json.dumps(line).encode() + b"\n"})
                return self.live()
            flight.append((outcome, self.outputs(outcome)))
            while len(flight) > self.rng.choice([0, 0, 2]):
                shard.publish(*flight.pop(0))
        for each in flight:
            shard.publish(*each)
        shard.close()
        return shard

    @staticmethod
    def outputs(outcome: Any) -> dict[str, bytes]:
        origins = outcome.batch.origins
        predictions = [
            {"at": [o[0], o[2]], "y": v}
            for o, v in zip(origins, outcome.predictions.values, strict=True)
        ]
        rejected = [{"rejected": [r.origin[0], r.origin[2]]} for r in outcome.rejected]
        return {
            name: b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            for name, lines in (("predictions", predictions), ("rejected", rejected))
        }

    @staticmethod
    def _at(shard: Shard, partition: str) -> int:
        cursor = shard.cursors.get(partition)
        return cursor.offset if cursor else 0

    def run(self, crashes: int) -> Shard:
        """Live through `crashes` failures of the disk or the process, then to the end."""
        for _ in range(crashes):
            self.disk.fuse = self.rng.randint(1, 120)
            try:
                self.live()
            except (Crash, OSError):
                self.disk.fuse = -1
                self.disk.die()
        self.disk.fuse = -1
        return self.live()

    def fold(self) -> str:
        """Digest of the fold over the initial state, one event after another, of the journal."""
        trainer = make_trainer()
        skipped = set()
        for record in self.journal.recover():
            for entry in record.entries:
                if not isinstance(entry, Range):
                    skipped.add((entry.partition, entry.line))
                    continue
                for i in range(entry.start, entry.stop):
                    if (entry.partition, i) not in skipped:
                        trainer.step(self.decode(entry.partition, i, i + 1)[0])
        return trainer.digest()

    def expected_without_crash(self) -> tuple[str, bytes, set[str]]:
        """What one partition gives when nothing fails: digest, predictions, rejected lines."""
        (partition,) = self.streams
        trainer, predictions, rejected = make_trainer(), b"", set()
        for i in range(len(self.streams[partition])):
            event = self.streams[partition][i]
            if event is None or event["x"]["bad"]:
                rejected.add(json.dumps({"rejected": [partition, i]}))
                continue
            batch, _ = self.decode(partition, i, i + 1)
            value = trainer.step(batch).predictions.values[0]
            predictions += json.dumps({"at": [partition, i], "y": value}).encode() + b"\n"
        return trainer.digest(), predictions, rejected


def encoding_offsets(rows: list[int]) -> Any:
    import numpy as np

    return np.array(rows, dtype=np.int64)
