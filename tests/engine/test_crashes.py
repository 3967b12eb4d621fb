"""Crash schedules on the shard: whatever fails, nothing is lost and nothing is learned twice."""

import json
import os

import pytest
from simulation import Disk, Folder, Life, make_trainer

from midstream.engine import snapshot as snapshot_module
from midstream.engine.events import EventBatch
from midstream.engine.journal import FileJournal, Range
from midstream.engine.shard import Shard
from midstream.engine.snapshot import SnapshotFolder

SEEDS = int(os.environ.get("MIDSTREAM_CRASH_SEEDS", "5000"))
BLOCKS = 20


def check(seed: int, partitions: int = 1) -> None:
    """Live through a seed's crashes and compare with a life without any."""
    life = Life(seed, partitions=partitions)
    shard = life.run(crashes=1 + seed % 4)
    out = life.disk.folder("out")
    got = shard.trainer.digest()
    lines = out.read("predictions").splitlines() if out.length("predictions") else []
    predictions = [tuple(json.loads(line)["at"]) for line in lines]
    wanted = {
        (p, i)
        for p, stream in life.streams.items()
        for i, event in enumerate(stream)
        if event is not None and not event["x"]["bad"]
    }
    assert len(predictions) == len(set(predictions)), "a prediction is there twice"
    assert set(predictions) == wanted, "a prediction is missing"
    for p in life.streams:
        mine = [i for q, i in predictions if q == p]
        assert mine == sorted(mine), "predictions are out of order"
    rejected = out.read("rejected").decode().splitlines() if out.length("rejected") else []
    assert len(rejected) == len(set(rejected)), "a rejected record is there twice"
    assert len(rejected) + len(wanted) == sum(map(len, life.streams.values()))
    if partitions == 1:
        digest, content, refused = life.expected_without_crash()
        assert got == digest, "the state is not that of an uninterrupted run"
        assert out.read("predictions") == content
        assert set(rejected) == refused
    reopened = life.open()
    assert reopened.next_range() is None, "a closed shard has something left to replay"
    assert reopened.trainer.digest() == got
    if life.journal.first == 0:
        assert life.fold() == got, "the state is not the fold of its journal"


def check_all(seeds: range) -> None:
    for seed in seeds:
        partitions = 1 + seed % 3 // 2
        try:
            check(seed, partitions)
        except Exception as error:
            pytest.fail(f"seed {seed}, {partitions} partition(s): {error!r}")


@pytest.mark.parametrize("block", range(BLOCKS))
def test_any_crash_schedule_leaves_state_and_outputs_exact(block):
    """After any crashes the state is the fold of its journal, and each output is there once."""
    check_all(range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS))


@pytest.mark.slow
def test_more_crash_schedules_leave_state_and_outputs_exact():
    """The same for seeds that `make test` has no time for."""
    check_all(range(1_000_000, 1_020_000))


def _bug_record_before_outputs(monkeypatch):
    """The journal record is made durable before the outputs that it promises."""
    monkeypatch.setattr(Folder, "sync", lambda self, name: (
        None if name in ("predictions", "rejected") else real_sync(self, name)
    ))  # fmt: skip


real_sync = Folder.sync


def _bug_snapshot_before_commit(monkeypatch):
    """A snapshot is written before the journal has what it holds."""

    def publish(self, outcome, outputs):
        if not outcome.live:
            return
        for name, data in outputs.items():
            self._journal.write(name, data)
        self._append(outcome.span)
        if outcome.snapshot is not None:
            self._write_snapshot(outcome.snapshot)
        self.tick()

    monkeypatch.setattr(Shard, "publish", publish)


def _bug_rename_before_sync(monkeypatch):
    """A snapshot's content is not made durable before it gets its name."""

    def replace(storage, name, data):
        storage.remove(name + ".draft")
        storage.append(name + ".draft", data)
        storage.rename(name + ".draft", name)
        storage.sync_folder()

    monkeypatch.setattr(snapshot_module, "replace", replace)


def _bug_outputs_not_cut(monkeypatch):
    """What was written to the outputs but not committed stays there after a crash."""
    monkeypatch.setattr(FileJournal, "_cut_outputs", lambda self: None)


def _bug_torn_tail_kept(monkeypatch):
    """A record that a crash left half written is not cut off."""
    real = Folder.truncate
    monkeypatch.setattr(
        Folder,
        "truncate",
        lambda self, name, length: None if name.startswith("journal") else real(self, name, length),
    )


def _bug_replay_forgets_exclusions(monkeypatch):
    """The events that the learner raised on are fed to it again after a resume."""
    monkeypatch.setattr(Shard, "_without_excluded", lambda self, batch, span: batch)


def _bug_flying_snapshot(monkeypatch):
    """A disk that loses nothing would hide every missing sync: ours does lose."""
    monkeypatch.setattr(FileJournal, "commit", _unsynced_commit)


def _unsynced_commit(self, entries, about=None):
    storage, real = self._storage, self._storage.sync
    storage.sync = lambda name: None
    try:
        return real_commit(self, entries, about)
    finally:
        storage.sync = real


real_commit = FileJournal.commit


@pytest.mark.parametrize(
    "bug",
    [
        _bug_record_before_outputs,
        _bug_snapshot_before_commit,
        _bug_outputs_not_cut,
        _bug_torn_tail_kept,
        _bug_replay_forgets_exclusions,
        _bug_flying_snapshot,
    ],
)
def test_the_seeds_find_a_known_bug(bug, monkeypatch):
    """With a bug put in on purpose, one of the first 1,000 seeds fails."""
    bug(monkeypatch)
    for seed in range(1000):
        try:
            check(seed)
        except RecursionError:
            return
        except Exception:
            return
    pytest.fail(f"1,000 seeds did not find: {bug.__doc__}")


def test_a_seed_gives_the_same_life_again():
    """A failing seed can be lived through again: it decides everything."""
    lives = []
    for _ in range(2):
        life = Life(17)
        life.run(crashes=3)
        lives.append({n: f.read(n) for f in [life.disk.folder("state")] for n in f.names()
                      if n.startswith("journal")})  # fmt: skip
    assert lives[0] == lives[1]


def test_a_simulated_power_loss_keeps_what_was_synced():
    """The simulated disk itself keeps its word: synced content and names survive."""
    import random

    for seed in range(200):
        disk = Disk(random.Random(seed))
        folder = disk.folder("f")
        folder.append("a", b"x" * 100)
        folder.sync("a")
        folder.sync_folder()
        folder.append("a", b"y" * 100)
        folder.append("b", b"z")
        folder.lose_power(disk.rng)
        assert folder.read("a")[:100] == b"x" * 100


def test_a_state_begun_anew_is_not_begun_anew_again_once_its_journal_was_trimmed():
    """The snapshots say under which token it was begun."""
    life = Life(1)

    def opened():
        folder = life.disk.folder("state")
        journal = FileJournal(folder, segment_bytes=60)
        return Shard.open(
            "000", make_trainer, journal, SnapshotFolder(folder, keep=1),
            snapshot_events=3, commit_seconds=0.0, clock=lambda: life.time, fresh="token",
        )  # fmt: skip

    shard = opened()
    for i in range(20):
        span = Range("p", i, i + 1, i + 1, 0)
        shard.publish(shard.step(span, EventBatch([{"v": i}], [i], partition="p"), []), {})
    shard.close()
    again = opened()
    assert again._journal.first > 0, "it was not trimmed"
    assert again.trainer.seen == 20
