"""Known bugs, to be put in on purpose: the seeds of a simulation have to find each of them."""

import itertools

import msgspec
from kafka_simulation import Consumer

from midstream.connectors.input import Work
from midstream.connectors.kafka import consumer as kafka
from midstream.connectors.kafka import journal as kafka_journal
from midstream.connectors.kafka.input import TopicInput
from midstream.connectors.kafka.journal import KafkaJournal, Signature
from midstream.engine.shard.journal import Cursor, UnavailableError
from midstream.engine.shard.shard import Shard

_recover = KafkaJournal.recover


def journal_read_before_fencing(monkeypatch):
    """The end of the journal is read while an earlier writer may still add to it."""

    def recover(self, since=0):
        records = self._read(since=since)
        self._read = lambda start=0, since=0: records
        return _recover(self, since)

    monkeypatch.setattr(KafkaJournal, "recover", recover)


def nobody_is_fenced(monkeypatch):
    """Each process writes under a name of its own, so that none shuts out another."""
    begin, count = KafkaJournal.__init__, itertools.count()

    def begin_under_another_name(self, settings, writer, *rest, **more):
        begin(self, settings, f"{writer}-{next(count)}", *rest, **more)

    monkeypatch.setattr(KafkaJournal, "__init__", begin_under_another_name)


def outputs_outside_of_the_transaction(monkeypatch):
    """Outputs are produced at once, and only the record is in a transaction."""

    def write(self, output, data):
        producer = kafka_journal.ck.Producer({})
        for line in data.split(b"\n")[:-1]:
            producer.produce(self._outputs[output], line)
        producer.send()

    monkeypatch.setattr(KafkaJournal, "write", write)


def a_lost_reply_is_taken_for_a_lost_commit(monkeypatch):
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


def an_outage_at_first_is_taken_for_another_run(monkeypatch):
    """Whose first transaction is given up is taken to be shut out."""
    shut_out = KafkaJournal._shut_out

    def hasty(self, what):
        return shut_out(self, what) if self._known else self._taken_over()

    monkeypatch.setattr(KafkaJournal, "_shut_out", hasty)


def who_signs_while_the_journal_is_read_is_missed(monkeypatch):
    """Until its first commit, a run looks for others only after all that it has read."""

    def recover(self, since=0):
        read = self._read

        def later(start=0, since=0):
            records = read(start, since)
            known = self._signatures.get(self._writer)
            if known is not None:
                self._signatures[self._writer] = Signature(self._position, known.tokens)
            return records

        self._read = later
        return _recover(self, since)

    monkeypatch.setattr(KafkaJournal, "recover", recover)


def replay_puts_out_again(monkeypatch):
    """What is replayed is published as if it were new."""
    step = Shard.step

    def loud(self, *arguments, **options):
        outcome = step(self, *arguments, **options)
        outcome.live = True
        return outcome

    monkeypatch.setattr(Shard, "step", loud)


def uncommitted_input_is_read(monkeypatch):
    """Events of transactions that are not committed, or aborted, are learned."""
    _read_uncommitted(monkeypatch, "in")


def uncommitted_records_are_read(monkeypatch):
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


def the_journal_is_not_read_to_its_end(monkeypatch):
    """The newest record is missed, so that what is in it is done again."""

    def recover(self, since=0):
        records = _recover(self, since)[:-1]
        self.end = records[-1].seq + 1 if records else 0
        return records

    monkeypatch.setattr(KafkaJournal, "recover", recover)


def a_snapshot_before_its_record(monkeypatch):
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


def exclusions_are_forgotten(monkeypatch):
    """Events that the learner raised on are fed to it again after a resume."""
    monkeypatch.setattr(Shard, "_without_excluded", lambda self, batch: (batch, []))


def one_who_is_shut_out_comes_back(monkeypatch):
    """To be shut out is taken for an outage, after which one begins again."""
    monkeypatch.setattr(kafka_journal, "JournalError", UnavailableError)


def the_journal_is_read_again_too_early(monkeypatch):
    """What was just committed is missed where input is to be applied again."""

    def records(self, since):
        for found, _ in self._batches(0, since):
            yield from (record for record in found if record.seq >= since)

    monkeypatch.setattr(KafkaJournal, "records", records)


def the_journal_begins_where_it_was_read(monkeypatch):
    """Records before those that a resume has read are taken to be gone."""

    def recover(self, since=0):
        records = _recover(self, since)
        self.first = records[0].seq if records else 0
        return records

    monkeypatch.setattr(KafkaJournal, "recover", recover)


def commands_are_forgotten(monkeypatch):
    """A snapshot does not say which commands were carried out before it."""
    real = Shard._stand_at

    def stand_at(self, header):
        real(self, msgspec.structs.replace(header, last_command=0))

    monkeypatch.setattr(Shard, "_stand_at", stand_at)


def nobody_confirms(monkeypatch):
    """What was read is committed without a look at whether it is still the same topic."""
    monkeypatch.setattr(kafka.Consumer, "confirm", lambda self, seconds, **_: None)


def no_mark_is_kept(monkeypatch):
    """The journal does not say of which topic a range is."""
    to = TopicInput._to

    def unmarked(self, block, crc):
        work = to(self, block, crc)
        name, stop = block.partition, block.stop
        self._cursors[name] = Cursor(stop, stop, crc, 0)
        return Work(work.block, msgspec.structs.replace(work.span, head=0))

    monkeypatch.setattr(TopicInput, "_to", unmarked)


BUGS = [
    journal_read_before_fencing,
    nobody_is_fenced,
    outputs_outside_of_the_transaction,
    a_lost_reply_is_taken_for_a_lost_commit,
    replay_puts_out_again,
    uncommitted_input_is_read,
    uncommitted_records_are_read,
    the_journal_is_not_read_to_its_end,
    a_snapshot_before_its_record,
    exclusions_are_forgotten,
    one_who_is_shut_out_comes_back,
    the_journal_is_read_again_too_early,
    the_journal_begins_where_it_was_read,
    commands_are_forgotten,
]

BUGS_AT_FIRST = [
    an_outage_at_first_is_taken_for_another_run,
    who_signs_while_the_journal_is_read_is_missed,
]
