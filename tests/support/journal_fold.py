"""The fold of a journal with its commands, by a loop that knows nothing of shards.

State is the fold of the journal over the initial state: each entry in its order. "snapshot" keeps
the state as a version. "restore" puts a version's in the place of the state; the position in the
input stays. "rewind" puts it there and applies what the journal has since then again, without what
it is to leave out, and what was left out of what the version and the state have come from.
"promote" and "rollback" do that from where they say they begin, but what a "rollback" goes back
over is not left out any more. Where nothing is applied again, events that wait for their labels go
on waiting. Commands are not obeyed again within that. One that was abandoned
later is as if it had been refused. "amend" changes how the state is defined, also within that,
unless the command itself brings the definition that is in force, or some of the journal is gone.
What is excluded before a command, or because the learner raised while it relearned for it, is left
out; but a "promote" of a version that is older than what is there of the journal does not know what
was excluded in between, so that may be excluded again.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from midstream.engine.events.batch import EventBatch
from midstream.engine.shard.dataset import DataSet
from midstream.engine.shard.journal import Command, Exclude, Range, Record, Skip, unpacked
from midstream.engine.training.rejecting import Recent
from midstream.engine.training.step import Step
from midstream.engine.training.trainer import Trainer, digest

__all__ = ["Fold", "Version"]


class Version(NamedTuple):
    """What a "snapshot" kept: before record `seq`."""

    seq: int
    parts: dict[str, bytes]
    digest: str
    data: DataSet
    at: dict[str, int]
    skips: list[Skip]


class Fold:
    """The fold of one shard's journal.

    Parameters
    ----------
    make
        Makes a new trainer.
    read
        Gives the events of a partition from one position up to another.
    learned
        Takes what was applied when it was new: of each batch, the result and the version then.
    most
        Events that are applied at once.
    modules
        Modules besides River whose classes and functions a version may hold.
    limit
        As of `Recent.count`.
    """

    def __init__(
        self,
        make: Callable[[], Trainer],
        read: Callable[[str, int, int], EventBatch],
        *,
        learned: Callable[[EventBatch, Step, int], None] = lambda *_: None,
        most: int = 1,
        modules: Collection[str] = (),
        limit: float = 1.0,
    ) -> None:
        self.trainer = make()
        self.version = self.parent = 0
        self.paused = False
        self.last_command = 0
        self.generation = 0
        self.data = DataSet()
        self.parent_data = DataSet()
        self.applied = 0  # events, but for those that are applied again
        self.at: dict[str, int] = {}  # by partition, how far it was applied
        self.versions: dict[int, Version] = {}
        self.commands: dict[int, Command] = {}  # by record
        self.positions: dict[int, dict[str, int]] = {}  # at commands
        self.seen: dict[int, int] = {}  # after commands
        self.generations: dict[int, int] = {}
        self.relearned: dict[int, int] = {}  # events, at commands
        self.skips: list[Skip] = []
        self._abandoned: dict[int, str] = {}
        self._read = read
        self._learned = learned
        self._most = most
        self._modules = modules
        self._limit = limit
        self.recent = Recent()
        self.amendments = 0
        self.again = 0  # how often an event was excluded again
        self._excluded: dict[tuple[str, int, int], int] = {}  # by event, the last record
        self._since = -1  # of the last command that had input applied again, or was about to

    def apply(self, records: Sequence[Record]) -> None:
        """Apply a journal, from its first record on."""
        given_up: set[int] = set()  # commands that will be abandoned
        commands = [e for record in records for e in record.entries if isinstance(e, Command)]
        self._abandoned = {e.id: e.refused for e in commands if e.kind == "abandon"}
        for place, record in enumerate(records):
            assert record.seq == place, "the journal has gaps"
            for entry in record.entries:
                if isinstance(entry, Command) and entry.kind == "abandon":
                    assert given_up == {entry.id}, "a command is abandoned that is not under way"
                    given_up.clear()
                elif isinstance(entry, Command):
                    if entry.id in self._abandoned:
                        given_up.add(entry.id)
                        self._since = entry.since  # it may have come as far as what is odd
                    self._obey(entry, place, records)
                elif isinstance(entry, Exclude):
                    key = (entry.partition, entry.line, entry.row)
                    if key in self._excluded:
                        assert self._excluded[key] < self._since, "an event is excluded twice"
                        self.again += 1
                    self._excluded[key] = place
                else:
                    assert not given_up, "new input is applied before a command took effect"
                    begun = self.at.get(entry.partition, entry.start)
                    assert entry.start == begun, "a range does not begin where the last ended"
                    self.at[entry.partition] = entry.stop
                    odd: set[int] = set()
                    for batch, step in self._range(entry, self._excluded, (), ()):
                        self._learned(batch, step, self.version)
                        self.applied += len(batch)
                        odd.update(batch.numbers[step.odd].tolist())
                    self._count(entry, odd)
            right = record.generation == self.generation
            assert right or given_up, "a record is of another generation"

    def digest(self) -> str:
        """Return that of the trainer's state."""
        return self.trainer.digest()

    def _range(
        self, span: Range, excluded: Any, sources: Any, stretches: Any
    ) -> Iterator[tuple[EventBatch, Step]]:
        batch = self._read(span.partition, span.start, span.stop)
        # A simulated file has a line at each position.
        lines = (max(span.start, 1), span.line) if batch.index < 0 else None
        self.data.skip(span.partition, span.start, span.stop, lines)
        lines = batch.offsets.tolist()
        kept = []
        for i, line in enumerate(lines):
            if (span.partition, line, batch.row(i)) in excluded:
                continue
            from_ = None if batch.sources is None else batch.sources[i]
            within = any(p == span.partition and a <= line <= b for p, a, b in stretches)
            if within or from_ in sources:
                self.data.left_out += 1
            else:
                kept.append(i)
        for start in range(0, len(kept), self._most):
            part = batch.take(kept[start : start + self._most])
            step = self.trainer.step(part)
            events = part if step.events is None else step.events
            self.data.add(span.partition, 0, 0, events)
            if part.is_feedback:
                self.data.add_feedback(part)
            yield events, step

    def _count(self, span: Range, odd: Collection[int]) -> None:
        """Count, one by one, the events that the learner raised on, and the `odd` ones."""
        batch = self._read(span.partition, span.start, span.stop)
        for i, (line, number) in enumerate(
            zip(batch.offsets.tolist(), batch.numbers.tolist(), strict=True)
        ):
            raised = (span.partition, line, batch.row(i)) in self._excluded
            self.recent.count(1, [0] * raised, [0] * (number in odd), self._limit)

    def _amend(self, command: Command) -> None:
        self.trainer = self.trainer.amended(unpacked(command.parts), self._modules)
        found = self.trainer.definition()
        assert found.items() <= command.definition.items(), "it is amended to something else"

    def _obey(self, command: Command, seq: int, records: Sequence[Record]) -> None:
        if command.kind == "amend":
            self._amend(command)
            self.commands[seq] = command.brief()
            self.positions[seq], self.seen[seq] = dict(self.at), self.trainer.seen
            self.generations[seq] = self.generation
            self.amendments += 1
            return
        assert command.id > self.last_command, "a command is there twice, or out of order"
        self.last_command = command.id
        if command.id in self._abandoned:
            command = msgspec.structs.replace(command, refused=self._abandoned[command.id])
        self.commands[seq] = command.brief()
        self.positions[seq] = dict(self.at)
        if not command.refused:
            if command.kind == "snapshot":
                self._keep(command.version, seq + 1)
            elif command.kind in ("pause", "resume"):
                self.paused = command.kind == "pause"
            else:
                self._put(command, seq, records)
            self.generation += command.kind == "rewind"
        self.seen[seq] = self.trainer.seen
        self.generations[seq] = self.generation

    def _keep(self, number: int, seq: int) -> None:
        parts = self.trainer.state()
        self.versions[number] = Version(
            seq, parts, digest(parts), self.data.copy(), dict(self.at), list(self.skips)
        )
        self.parent, self.parent_data = number, self.data.copy()

    def _put(self, command: Command, seq: int, records: Sequence[Record]) -> None:
        kept = self.versions[command.version]
        assert command.digest == kept.digest, "a command names another state than its version's"
        waiting = self.trainer.joiner
        self.trainer = Trainer.from_state(kept.parts, self._modules)
        if command.amends:
            self._amend(command)
        if command.since < 0 and waiting is not None:
            self.trainer.joiner = waiting
        self.recent.start_over()
        self.version = self.parent = command.version
        self.data, self.parent_data = kept.data.copy(), kept.data.copy()
        own = [] if command.kind == "rollback" else self.skips
        inherited = kept.skips + [skip for skip in own if skip not in kept.skips]
        if command.since < 0:
            assert command.kind != "rewind", "a rewind without anything to apply again"
            self.skips = inherited
            return
        self.skips = inherited
        if command.sources or command.ranges:
            self.skips.append(Skip(kept.seq, seq, command.sources, command.ranges))
        assert command.skips == self.skips, "what is left out is not told"
        before = self.trainer.seen
        repeats = not command.amends and command.since == kept.seq  # all of the amendments
        at = {partition: cursor.offset for partition, cursor in command.start.items()}
        self._since = command.since
        known = (key for key, at in self._excluded.items() if not kept.seq <= at < command.since)
        excluded = {*known, *_raised_meanwhile(records, seq)}
        for record in records[kept.seq : seq]:
            these = [s for s in self.skips if s.since <= record.seq < s.until]
            sources = {name for s in these for name in s.sources}
            stretches = {stretch for s in these for stretch in s.ranges}
            for span in record.entries:
                if isinstance(span, Command) and span.kind == "amend" and repeats:
                    self._amend(span)
                if not isinstance(span, Range) or span.start < at.get(span.partition, span.start):
                    continue
                assert record.seq >= command.since, "some of it is before where it begins"
                at[span.partition] = span.stop
                for _ in self._range(span, excluded, sources, stretches):
                    pass
        assert at == self.at, "what is applied again does not end where the input was"
        self.relearned[seq] = self.trainer.seen - before
        _check_left(command, kept, at)


def _raised_meanwhile(records: Sequence[Record], seq: int) -> Iterator[tuple[str, int, int]]:
    """Yield what was excluded while a command's input was relearned: before anything else came."""
    for record in records[seq + 1 :]:
        for entry in record.entries:
            if not isinstance(entry, Exclude):
                return
            yield entry.partition, entry.line, entry.row


def _check_left(command: Command, kept: Version, at: dict[str, int]) -> None:
    """What is not applied again is what the command says is left."""
    for partition, stop in at.items():
        if partition not in kept.at:  # nobody knows where it began
            continue
        begun = command.start[partition].offset
        left = sorted(piece[1:3] for piece in command.left if piece[0] == partition)
        wanted = np.arange(kept.at[partition], begun).tolist()
        assert begun <= stop
        assert [i for a, b in left for i in range(a, b)] == wanted, "what is left is not told"
