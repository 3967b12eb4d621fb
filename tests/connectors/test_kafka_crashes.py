"""Crash schedules on a simulated Kafka: whatever fails, nothing is lost and nothing done twice."""

import os
from typing import ClassVar

import pytest
from kafka_lives import lived
from kafka_simulation import Consumer

from midstream.connectors import kafka_journal
from midstream.connectors.kafka_journal import KafkaJournal
from midstream.engine.journal import UnavailableError
from midstream.engine.shard import Shard

SEEDS = int(os.environ.get("MIDSTREAM_KAFKA_SEEDS", "5000"))
BLOCKS = 20


@pytest.mark.parametrize("block", range(BLOCKS))
def test_any_schedule_on_kafka_leaves_state_and_outputs_exact(block):
    """The state is the fold of the journal, and each output is there once, in order."""
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        try:
            lived(seed)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")


def test_a_seed_gives_the_same_life_again():
    """A failing seed can be lived through again: it decides everything, threads and all."""
    for seed in (1, 2, 3):
        one, two = lived(seed), lived(seed)
        assert one.results == two.results
        for place, log in one.cluster.logs.items():
            other = two.cluster.logs[place]
            assert [e and e[:2] for e in log.entries] == [e and e[:2] for e in other.entries]


def test_the_seeds_have_all_of_it():
    """Processes die, are frozen, thaw, are shut out and stop; messages fail; replies are lost."""
    lives = [lived(seed) for seed in range(100)]
    results = {result for life in lives for result in life.results}
    assert {"crash crashed", "freeze shut out", "disk failed", "stop ended", " ended"} <= results
    happened = {kind for life in lives for kind in life.cluster.happened}
    assert happened == {
        "outage", "reply lost", "message lost", "queue full", "transaction timed out",
        "shut out", "request of a dead one",
    }  # fmt: skip


# --- The seeds find what would be wrong: each of these puts a known bug in.


def _bug_journal_read_before_fencing(monkeypatch):
    """The end of the journal is read while an earlier writer may still add to it."""

    def recover(self):
        records = self._read()
        self._read = lambda: records
        return _recover(self)

    monkeypatch.setattr(KafkaJournal, "recover", recover)


_recover = KafkaJournal.recover


def _bug_nobody_is_fenced(monkeypatch):
    """Each process writes under a name of its own, so that none shuts out another."""

    class Unfenced(KafkaJournal):
        count: ClassVar = 0

        def __init__(self, settings, writer, *rest, **more):
            Unfenced.count += 1
            super().__init__(settings, f"{writer}-{Unfenced.count}", *rest, **more)

    monkeypatch.setattr("kafka_lives.KafkaJournal", Unfenced)


def _bug_outputs_outside_of_the_transaction(monkeypatch):
    """Outputs are produced at once, and only the record is in a transaction."""

    def write(self, output, data):
        producer = kafka_journal.ck.Producer({})
        for line in data.split(b"\n")[:-1]:
            producer.produce(self._outputs[output], line)
        producer.send()

    monkeypatch.setattr(KafkaJournal, "write", write)


def _bug_a_lost_reply_is_taken_for_a_lost_commit(monkeypatch):
    """What was written is written again as another record where no answer came."""
    write, commit = KafkaJournal.write, KafkaJournal.commit

    def remember(self, output, data):
        self.__dict__.setdefault("written", []).append((output, data))
        write(self, output, data)

    def again(self, entries, about=None):
        written = self.__dict__.pop("written", [])
        try:
            return commit(self, entries, about)
        except UnavailableError:
            self._producer = kafka_journal.ck.Producer({"transactional.id": self._writer})
            self._ask("begin again", self._producer.init_transactions)
            self._open, self._failed, self._lost = False, None, ""
            for output, data in written:
                write(self, output, data)
            return commit(self, entries, about)

    monkeypatch.setattr(KafkaJournal, "write", remember)
    monkeypatch.setattr(KafkaJournal, "commit", again)


def _bug_replay_puts_out_again(monkeypatch):
    """What is replayed is published as if it were new."""
    step = Shard.step

    def loud(self, *arguments, **options):
        outcome = step(self, *arguments, **options)
        outcome.live = True
        return outcome

    monkeypatch.setattr(Shard, "step", loud)


def _bug_uncommitted_input_is_read(monkeypatch):
    """Events of transactions that are not committed, or aborted, are learned."""
    _read_uncommitted(monkeypatch, "in")


def _bug_uncommitted_records_are_read(monkeypatch):
    """Records of the journal that were not committed are obeyed."""
    _read_uncommitted(monkeypatch, "journal")


def _read_uncommitted(monkeypatch, topic):
    fetch = Consumer._fetch

    def all_of_it(self, place, most, found):
        committed = self._committed
        self._committed = committed and place[0] != topic
        fetch(self, place, most, found)
        self._committed = committed

    monkeypatch.setattr(Consumer, "_fetch", all_of_it)


def _bug_the_journal_is_not_read_to_its_end(monkeypatch):
    """The newest record is missed, so that what is in it is done again."""

    def recover(self):
        records = _recover(self)[:-1]
        self.end = len(records)
        return records

    monkeypatch.setattr(KafkaJournal, "recover", recover)


def _bug_a_snapshot_before_its_record(monkeypatch):
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


def _bug_exclusions_are_forgotten(monkeypatch):
    """Events that the learner raised on are fed to it again after a resume."""
    monkeypatch.setattr(Shard, "_without_excluded", lambda self, batch, span: batch)


def _bug_one_who_is_shut_out_comes_back(monkeypatch):
    """To be shut out is taken for an outage, after which one begins again."""
    monkeypatch.setattr(kafka_journal, "JournalError", UnavailableError)


BUGS = [bug for name, bug in list(globals().items()) if name.startswith("_bug_")]


@pytest.mark.parametrize("bug", BUGS)
def test_the_seeds_find_a_known_bug(bug, monkeypatch):
    """With a bug put in on purpose, one of the first 300 seeds fails."""
    bug(monkeypatch)
    for seed in range(300):
        try:
            lived(seed)
        except (AssertionError, RuntimeError, ValueError):  # not a mistake in the bug itself
            return
    pytest.fail(f"300 seeds did not find: {bug.__doc__}")
