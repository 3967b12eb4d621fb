"""Crash schedules on the shard: whatever fails, nothing is lost and nothing is learned twice."""

import json
import os
from typing import Any

import pytest
from simulation import LABELS, Disk, Folder, Life, make_trainer

from midstream.engine.events.batch import EventBatch
from midstream.engine.shard import resuming
from midstream.engine.shard import shard as shard_module
from midstream.engine.shard.journal import Command, Cursor, Exclude, FileJournal, Range, Skip
from midstream.engine.shard.outbox import Outbox
from midstream.engine.shard.replacing import Rollback
from midstream.engine.shard.shard import Shard
from midstream.engine.state import snapshot as snapshot_module
from midstream.engine.state.snapshot import SnapshotFolder
from midstream.engine.training import rejecting
from midstream.engine.training.rejecting import Careful, Recent

SEEDS = int(os.environ.get("MIDSTREAM_CRASH_SEEDS", "5000"))
MORE = int(os.environ.get("MIDSTREAM_MORE_CRASH_SEEDS", "6000"))
BLOCKS = 20
EVENTS = (30, 20)  # in a life without commands, with some
MANY = 8  # commands


def check(seed: int, partitions: int = 1, commands: int = 0, *, amends: bool = False) -> int:
    """Live through a seed's crashes and compare with the fold, or a life without any.

    Return how often the state was amended.
    """
    events = EVENTS[commands > 0]
    life = Life(seed, partitions=partitions, events=events, commands=commands, amends=amends)
    shard = life.run(crashes=1 + seed % 4)
    got = shard.trainer.digest()
    predictions, rejected = (written(life, name) for name in ("predictions", "rejected"))
    places = [tuple(line["at"]) for line in predictions]
    assert len(places) == len(set(places)), "a prediction is there twice"
    for p in life.streams:
        mine = [i for q, i in places if q == p]
        assert mine == sorted(mine), "predictions are out of order"
    refused = [tuple(line["rejected"]) for line in rejected]
    everything = {(p, i) for p, stream in life.streams.items() for i in range(len(stream))}
    assert {*places, *refused} == everything, "an event is missing"
    if not (commands or amends):
        check_without_commands(life, got, set(places))
    reopened = life.open()
    assert reopened.next_step() is None, "a closed shard has something left to replay"
    assert reopened.trainer.digest() == got
    if not commands and life.journal.first > 0:
        return 0  # as an uninterrupted run; of several partitions, other seeds keep all of it
    fold, out = life.fold()
    assert fold.digest() == got, "the state is not the fold of its journal"
    assert len(refused) == len(set(refused)) + fold.again, "a rejected record is there twice"
    assert predictions == out["predictions"], "predictions are not those of the fold"
    assert sorted(map(str, rejected)) == sorted(map(str, out["rejected"]))
    life.office.check(shard, fold)
    life.office.check(reopened, fold)
    for each in (shard, reopened):
        assert each.recent == fold.recent, "what the learner failed on is counted otherwise"
        assert each.definition == life.open().definition
    return fold.amendments


def check_without_commands(life: Life, got: str, predicted: set[tuple[str, int]]) -> None:
    """What has to hold besides where nobody commands."""
    wanted = {
        (p, i)
        for p, stream in life.streams.items()
        for i, event in enumerate(stream)
        if event is not None and not event["x"]["bad"]
    }
    assert predicted == wanted, "an event is predicted that cannot be, or the other way round"
    if len(life.streams) > 1:
        return
    digest, content, refused = life.expected_without_crash()
    assert got == digest, "the state is not that of an uninterrupted run"
    out = life.disk.folder("out")
    assert (out.read("predictions") if out.length("predictions") is not None else b"") == content
    found = [json.dumps(line) for line in written(life, "rejected")]
    if life.old_ways:
        found, refused = sorted(found), sorted(refused)
    assert found == refused, "what is rejected is not there once, in the order of the input"


def written(life: Life, name: str) -> list[dict[str, Any]]:
    """Return the lines of an output."""
    out = life.disk.folder("out")
    return [json.loads(line) for line in out.read(name).splitlines()] if out.length(name) else []


def check_joined(seed: int, commands: int = 0) -> int:
    """Likewise with labels that come later; return how many events were joined to one."""
    life = Life(seed, events=EVENTS[commands > 0], commands=commands, joins=True)
    shard = life.run(crashes=1 + seed % 4)
    got, joiner = shard.trainer.digest(), shard.trainer.joiner
    assert joiner is not None
    predictions, rejected = (written(life, name) for name in ("predictions", "rejected"))
    places = [tuple(line["at"]) for line in predictions]
    assert len(places) == len(set(places)), "a prediction is there twice"
    assert not any(p == LABELS for p, _ in places), "feedback is predicted"
    counts = joiner.counts
    ended = counts.joined + counts.labelled + counts.expired + counts.evicted + counts.repeated
    assert counts.predicted == ended + len(joiner), "an event is in no count, or in two"
    reopened = life.open()
    assert reopened.next_step() is None
    assert reopened.trainer.digest() == got
    if not commands and life.journal.first > 0:
        return counts.joined
    fold, out = life.fold()
    assert fold.digest() == got, "the state is not the fold of its journal"
    assert predictions == out["predictions"]
    assert sorted(map(str, rejected)) == sorted(map(str, out["rejected"]))
    life.office.check(shard, fold)
    for each in (shard, reopened):
        assert each.recent == fold.recent
    return counts.joined


def commands_of(seed: int) -> int:
    """Return how many commands a seed's life has: in a third of them none."""
    return 0 if seed % 3 == 0 else 1 + seed % 5


def check_all(seeds: range) -> None:
    for seed in seeds:
        partitions = 1 + seed % 4 // 3
        try:
            check(seed, partitions, commands_of(seed))
        except Exception as error:
            pytest.fail(f"seed {seed}, {partitions} partition(s): {error!r}")


@pytest.mark.parametrize(
    "block", [pytest.param(i, marks=pytest.mark.slow if i % 4 else ()) for i in range(BLOCKS)]
)
def test_any_crash_schedule_leaves_state_and_outputs_exact(block):
    """After any crashes the state is the fold of its journal, and each output is there once."""
    check_all(range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(BLOCKS))
def test_more_crash_schedules_leave_state_and_outputs_exact(part):
    """The same for seeds that `make test` has no time for."""
    first = 1_000_000
    check_all(range(first + part * MORE // BLOCKS, first + (part + 1) * MORE // BLOCKS))


def _bug_record_before_outputs(monkeypatch):
    """The journal record is made durable before the outputs that it promises."""
    monkeypatch.setattr(Folder, "sync", lambda self, name: (
        None if name in ("predictions", "rejected") else real_sync(self, name)
    ))  # fmt: skip


real_sync = Folder.sync


@pytest.mark.parametrize(
    "part", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(4)]
)
def test_definitions_that_change_between_crashes_are_journaled(part):
    """Whatever fails while a state is amended, and whatever is restored after it."""
    seeds = range(100 * part, 100 * part + 100)
    amended = sum(check(seed, amends=True) for seed in seeds[:40])
    amended += sum(check(seed, 1 + seed % 2, MANY * (seed % 3), amends=True) for seed in seeds[40:])
    assert amended > 30


@pytest.mark.parametrize(
    "part", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(8)]
)
def test_labels_that_come_later_are_joined_exactly(part):
    """Whatever fails, events and feedback are applied again in the order of the journal."""
    seeds = range(125 * part, 125 * part + 125)
    joined = sum(check_joined(seed, commands_of(seed // 4)) for seed in seeds)
    assert joined > 200


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
    monkeypatch.setattr(Shard, "_without_excluded", lambda self, batch: (batch, []))


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


def _bug_carried_out_before_it_is_journaled(monkeypatch):
    """A part of a version is made before the journal has the command."""
    real = Shard.carry_out

    def carry_out(self, order, **more):
        if order.kind == "snapshot" and order.id > self.last_command:
            self.commit()
            command = Command(order.id, order.kind, version=order.version, at=self._wall())
            self.make_version(command, self._journal.end)
        return real(self, order, **more)

    monkeypatch.setattr(Shard, "carry_out", carry_out)


def _bug_outbox_after_a_later_snapshot(monkeypatch):
    """A part of a version is written only when the next snapshot is, which is past its command."""
    late = []
    write, write_snapshot = Outbox.write, Shard._write_snapshot

    def write_all(self, snapshot):
        write_snapshot(self, snapshot)
        while late and late[0][0] is self._outbox:
            write(*late.pop(0))
        late.clear()

    monkeypatch.setattr(Outbox, "write", lambda *part: late.append(part))
    monkeypatch.setattr(Shard, "_write_snapshot", write_all)


def _bug_what_a_rewind_left_out_comes_back(monkeypatch):
    """A rewind forgets the sources and positions that an earlier one has left out."""
    real = shard_module.pieces
    monkeypatch.setattr(
        shard_module, "pieces", lambda records, skips=(), **o: real(records, skips[-1:], **o)
    )


def _bug_a_rollback_undoes_half(monkeypatch):
    """What a rewind left out stays left out, also once it was rolled back."""
    monkeypatch.setattr(Rollback, "keeps_left_out", True)


def _bug_what_was_abandoned_is_tried_again(monkeypatch):
    """A command that was abandoned is carried out again by a resume."""
    real = resuming.Backlog

    def backlog(journal, seq=-1, _=None, records=()):
        return real(journal, seq, {}, records)

    monkeypatch.setattr(resuming, "Backlog", backlog)


def _bug_refold_forgets_exclusions(monkeypatch):
    """A rewind forgets what was excluded meanwhile, so that the learner raises on it again."""
    replace = Shard.replace

    def forget(self, command, *rest, **options):
        replace(self, command, *rest, **options)
        if command.since >= 0:
            self._excluded.clear()

    monkeypatch.setattr(Shard, "replace", forget)


def _bug_positions_left_out_for_ever(monkeypatch):
    """What came after a rewind is left out by a later one, as if it had been there before."""
    real = shard_module.pieces

    def pieces(records, skips=(), **options):
        return real(records, [Skip(0, 10**9, s.sources, s.ranges) for s in skips], **options)

    monkeypatch.setattr(shard_module, "pieces", pieces)


def _bug_bounds_within_a_piece(monkeypatch):
    """What a promotion relearns is dropped where it begins within ranges that were joined."""
    real = shard_module.pieces

    def pieces(records, *arguments, start=None, **options):
        found = real(records, *arguments, **options)
        start = start or {}
        return [p for p in found if p.entry.start >= start.get(p.entry.partition, Cursor()).offset]

    monkeypatch.setattr(shard_module, "pieces", pieces)


def _bug_last_command_not_kept(monkeypatch):
    """A snapshot does not say which commands were carried out before it."""
    real = Shard._snapshot

    def snapshot(self, parts):
        made = real(self, parts)
        del made.header["last_command"]
        return made

    monkeypatch.setattr(Shard, "_snapshot", snapshot)


def _bug_generation_of_the_end(monkeypatch):
    """A replayed command is marked with the generation of the journal's end, not with its own."""
    real = Shard._header

    def header(self, parts, of, **more):
        return real(self, parts, of, generation=self._journal.generation, **more)

    monkeypatch.setattr(Shard, "_header", header)


def _bug_a_learner_that_raised_goes_on(monkeypatch):
    """A learner that an event has half updated is gone on with."""
    monkeypatch.setattr(Careful, "_back", lambda self, trainer: None)


def _bug_what_was_learned_since_is_forgotten(monkeypatch):
    """After an error the learner is the one of the last state that was kept."""
    real = Careful._back

    def back(self, trainer):
        self._since = []
        real(self, trainer)

    monkeypatch.setattr(Careful, "_back", back)


def _bug_exclusions_after_their_range(monkeypatch):
    """What the learner raised on is in the record after the input that it is in."""
    real = Shard.commit

    def commit(self):
        late, self._leaving_out = self._leaving_out, []
        real(self)
        if late:
            self._journal.commit(late)

    monkeypatch.setattr(Shard, "commit", commit)


def _bug_recent_failures_not_kept(monkeypatch):
    """A snapshot does not say which of the recent events the learner failed on."""
    real = Shard._snapshot

    def snapshot(self, parts):
        made = real(self, parts)
        del made.header["recent"]
        return made

    monkeypatch.setattr(Shard, "_snapshot", snapshot)


def _bug_failures_counted_by_batch(monkeypatch):
    """The share of failures is looked at where a batch ends, wherever that is."""

    def count(self, events, raised, non_finite, limit):
        self.raised += [self.events + row for row in raised]
        self.non_finite += [self.events + row for row in non_finite]
        self.events += events
        self._forget(self.events)
        share = self._since(self.judged, self.events)
        if share.events >= rejecting.MIN_EVENTS and share.share > limit:
            self.judged = self.events
            return share
        return None

    monkeypatch.setattr(Recent, "count", count)


def _bug_relearning_forgets_what_it_left_out(monkeypatch):
    """What the learner raises on while it learns again is put out, and not journaled."""

    def leave_out(self, raised):
        for name, data in self._reject([error.rejected for error in raised]).items():
            self._journal.write(name, data)

    monkeypatch.setattr(Shard, "_leave_out", leave_out)


ON_INPUT = [
    _bug_record_before_outputs,
    _bug_snapshot_before_commit,
    _bug_outputs_not_cut,
    _bug_torn_tail_kept,
    _bug_replay_forgets_exclusions,
    _bug_flying_snapshot,
    _bug_a_learner_that_raised_goes_on,
    _bug_what_was_learned_since_is_forgotten,
    _bug_exclusions_after_their_range,
]
ON_COMMANDS = [
    _bug_carried_out_before_it_is_journaled,
    _bug_outbox_after_a_later_snapshot,
    _bug_what_a_rewind_left_out_comes_back,
    _bug_a_rollback_undoes_half,
    _bug_what_was_abandoned_is_tried_again,
    _bug_refold_forgets_exclusions,
    _bug_positions_left_out_for_ever,
    _bug_bounds_within_a_piece,
    _bug_last_command_not_kept,
    _bug_generation_of_the_end,
    _bug_relearning_forgets_what_it_left_out,
    _bug_recent_failures_not_kept,
    _bug_failures_counted_by_batch,
]


@pytest.mark.parametrize("bug", [*ON_INPUT, *ON_COMMANDS])
def test_the_seeds_find_a_known_bug(bug, monkeypatch):
    """With a bug put in on purpose, one of the first 1,000 seeds fails."""
    bug(monkeypatch)
    for seed in range(1000):
        try:
            check(seed, commands=MANY if bug in ON_COMMANDS else 0)
        except Exception:
            return
    pytest.fail(f"1,000 seeds did not find: {bug.__doc__}")


def test_the_seeds_have_all_of_it():
    """Commands of all kinds, refused or not, in part, more than once, and learners that raise."""
    happened = set()
    for seed in range(200):
        life = Life(seed, events=EVENTS[1], commands=MANY)
        life.run(crashes=1 + seed % 4)
        happened |= {"stopped"} if life.stops else set()
        before = None
        for entry in (entry for record in life.records() for entry in record.entries):
            if isinstance(entry, Command):
                happened.add((entry.kind, "refused" if entry.refused else "done"))
                happened |= {("left", entry.kind)} if entry.left else set()
            elif isinstance(entry, Exclude) and isinstance(before, Command) and before.since >= 0:
                happened.add(("raised", before.kind))
            elif isinstance(entry, Range) and isinstance(before, Exclude):
                happened.add("raised in the range that follows")
            before = entry
    replacing = ("restore", "rewind", "promote", "rollback")
    assert happened >= {
        *((kind, "refused") for kind in replacing),
        *((kind, "done") for kind in (*replacing, "snapshot", "pause", "resume")),
        *(("left", kind) for kind in ("promote", "rollback")),
        ("raised", "rewind"),
        "raised in the range that follows",
        "stopped",
    }


def test_a_seed_gives_the_same_life_again():
    """A failing seed can be lived through again: it decides everything."""
    lives = []
    for _ in range(2):
        life = Life(17, commands=6)
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
