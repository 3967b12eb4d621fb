"""Kafka topics as an input.

Each shard reads its partitions (`TopicInput`) through the one `Consumer` of its process. Reading
resumes where the journal says.
"""

import re
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.input import Decoded, Input, InputError, NoAnswerError, Work
from midstream.connectors.kafka.consumer import ASIDE, Consumer, partition_name
from midstream.connectors.kafka.messages import MessageBlock, MessageDecoder, Messages
from midstream.engine.shard.journal import Cursor, Range

__all__ = ["TopicInput"]

_SETTLE_SECONDS = 5.0  # until positions whose commit failed are committed again


class TopicInput(Input):
    """The partitions of a topic that one shard reads. Positions are offsets.

    A topic is identified by the id that brokers give it, not by its name alone. Messages that were
    deleted before they were read raise an error, or are skipped if configured; the journal then has
    a range for them.

    Parameters
    ----------
    consumer
        Shared by the shards of the process.
    parts
        Numbers of the partitions that this shard reads.
    start
        Where to begin in new partitions: "earliest", "latest", or seconds since 1970.
    until_eof
        Read only what exists when reading begins.
    on_lost
        For messages deleted before they were read. "stop": raise an error; "skip": continue with
        the oldest available.
    seconds
        How long to wait for an answer from the brokers.
    added
        Partitions created after the topic was first read: they are read from their beginning.
    decoding
        How to decode messages to events; None: no decoding.
    """

    def __init__(
        self,
        consumer: Consumer,
        parts: Sequence[int],
        *,
        start: Literal["earliest", "latest"] | float = "earliest",
        until_eof: bool = False,
        on_lost: Literal["stop", "skip"] = "stop",
        seconds: float = 30.0,
        added: Collection[int] = (),
        decoding: Decoding | None = None,
    ) -> None:
        self._consumer = consumer
        self._decoding = decoding
        self._added = added
        self._parts = {partition_name(consumer.topic, index): index for index in parts}
        self._start = start
        self._until_eof = until_eof
        self._on_lost = on_lost
        self._seconds = seconds
        self._cursors: dict[str, Cursor] = {}
        self._stops: dict[str, int] = {}
        self._lows: dict[str, int] = {}  # everything before was deleted
        self._gone: dict[str, int] = {}  # where deleted messages begin, if to be replayed
        self._turn = 0
        self._begun: list[Work] = []
        self._settled: dict[int, int] = {}  # positions committed to the consumer group
        self._settled_at = 0.0
        self._failed_commits = 0
        self._before: dict[tuple[str, int], int] = {}  # of the last block: CRC before its start

    splits: ClassVar[bool] = True

    @property
    def names(self) -> list[str]:
        """Names of the partitions, in order."""
        return list(self._parts)

    def has(self, partition: str) -> bool:
        """Whether a name is a partition of the topic, even one of another shard."""
        topic = re.escape(self._consumer.topic)
        return re.fullmatch(rf"{topic}-\d+", partition) is not None

    def seek(
        self, cursors: Mapping[str, Cursor], known: Mapping[str, Cursor] | None = None
    ) -> None:
        """Start reading: at the cursors of a resumed shard, else at the start.

        `known` is not used: offsets need no more than `cursors`.

        Raises
        ------
        InputError
            If the next offset never existed. If it was deleted, `read` raises.
        """
        del known
        marked = any(cursor.head for cursor in cursors.values())
        self._consumer.identify(self._seconds, known=marked)
        mark = self._consumer.mark
        for name in cursors:
            if name not in self._parts:
                raise InputError(f"{name}: was learned from, and is no partition of the input now")
        for name, index in self._parts.items():
            cursor = cursors.get(name)
            if cursor is not None and cursor.head and mark and cursor.head != mark:
                raise InputError(
                    f"{name}: the topic was made anew since it was read up to offset "
                    f"{cursor.offset}; start over with --fresh"
                )
            low, high = self._consumer.bounds(index, self._seconds)
            if cursor is not None:
                offset = cursor.offset
            elif cursors or index in self._added:
                offset = low  # created after reading began, so all of it is new
            else:
                offset = self._first(index, low, high)
            if offset > high:
                raise InputError(
                    f"{name}: ends at offset {high}, but was read up to {offset}: another topic of "
                    "the same name? Start over with --fresh"
                )
            if cursor is None:
                self._begun.append(self._nothing(name, offset, 0))
            else:
                self._cursors[name] = cursor
            self._lows[name] = low
            self._stops[name] = high
            self._consumer.assign(index, max(offset, low))

    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors, to read what follows them again."""
        for name, cursor in cursors.items():
            index = self._parts[name]
            self._cursors[name] = cursor
            self._lows[name], _ = self._consumer.bounds(index, self._seconds)
            self._consumer.assign(index, max(cursor.offset, self._lows[name]))

    def oldest(self) -> dict[str, int]:
        """Return, by partition, the oldest available offset.

        Raises
        ------
        NoAnswerError
            If the brokers do not answer.
        """
        bounds = self._consumer.bounds
        return {name: bounds(index, self._seconds)[0] for name, index in self._parts.items()}

    def begin(self, *, untouched: bool = False) -> list[Work]:
        """Return empty ranges that record where partitions begin, and the topic's identity.

        They include partitions that are new to a shard that has read others before.
        """
        del untouched
        begun, self._begun = self._begun, []
        for name, cursor in self._cursors.items():
            if cursor.head == 0 and self._consumer.mark:
                begun.append(self._nothing(name, cursor.offset, cursor.crc))
        return begun

    @cached_property
    def _messages(self) -> MessageDecoder:
        if (given := self._decoding) is None:
            raise ValueError(f"{self._consumer.topic}: nothing is given that decodes messages")
        return MessageDecoder(
            given.task, given.fields, given.schema, given.max_record_bytes, given.notation
        )

    def decode(self, work: Work) -> Decoded:
        """Return the events and the rejected messages of a block."""
        assert isinstance(work.block, MessageBlock)
        return self._messages.decode(work.block)

    def confirm(self, seconds: float) -> None:
        """Raise if what was taken since the last call may belong to another topic.

        Raises
        ------
        NoAnswerError
            If no broker answers.
        InputError
            If the topic was deleted or recreated.
        """
        self._consumer.confirm(seconds)

    def settle(self, learned: Mapping[str, int]) -> None:
        """Commit positions to the consumer group if they changed or the last commit failed."""
        positions_now, now, failed_commits = (
            self.positions_of(learned),
            time.monotonic(),
            self._consumer.failed_commits,
        )
        again = failed_commits != self._failed_commits and now - self._settled_at > _SETTLE_SECONDS
        if positions_now != self._settled or again:
            self._settled, self._settled_at, self._failed_commits = (
                positions_now,
                now,
                failed_commits,
            )
            self._consumer.commit(positions_now)

    def close(self) -> None:
        """Do nothing: the other shards still use the consumer."""

    def _first(self, index: int, low: int, high: int) -> int:
        if self._start == "earliest":
            return low
        if self._start == "latest":
            return high
        return self._consumer.at_time(index, self._start, self._seconds)

    def read(self, max_bytes: int) -> Work | None:
        """Return the next block, or None if none is available now; never blocks.

        Raises
        ------
        InputError
            If messages were deleted before they were read, and `on_lost` is "stop".
        """
        names = list(self._parts)
        for i in range(len(names)):
            name = names[(self._turn + i) % len(names)]
            work = self._read(name, max_bytes, None)
            if work is None and self._cursors[name].offset < self._lows[name]:
                work = self._skip(name)
            if work is not None:
                self._turn = (self._turn + i + 1) % len(names)
                return work
        return None

    def _read(self, name: str, max_bytes: int, until: int | None) -> Work | None:
        if self._cursors[name].offset < self._lows[name]:
            return None
        index = self._parts[name]
        messages = self._consumer.take(index, max_bytes, until)
        if messages is not None:
            return self._work(name, index, messages)
        if (why := self._consumer.out_of_range(index)) is not None:
            self._look_again(name, index, why)
        return None

    def _look_again(self, name: str, index: int, why: str) -> None:
        """Query the oldest offset, after the brokers reported the next one out of range."""
        try:
            low, high = self._consumer.bounds(index, min(self._seconds, ASIDE))
        except NoAnswerError:
            return  # the next read asks again
        offset = self._cursors[name].offset
        if low <= offset:
            raise InputError(
                f"{name}: begins at offset {low} and ends at {high} now, but was read up to "
                f"{offset}: another topic of the same name, or its end was lost? ({why})"
            )
        self._lows[name] = low
        self._consumer.assign(index, low)

    def _skip(self, name: str) -> Work:
        """Skip messages that were deleted before they were read, if configured."""
        start, stop = self._cursors[name].offset, self._lows[name]
        if self._on_lost == "stop":
            raise InputError(
                f"{name}: offsets {start} to {stop - 1} were deleted before they were "
                'read; input.on_lost = "skip" goes on without them'
            )
        self._consumer.notify(
            "input_lost", partition=name, start=start, stop=stop, action="it is skipped"
        )
        return self._nothing(name, stop, self._cursors[name].crc)

    def _work(self, name: str, index: int, messages: Messages) -> Work:
        cursor = self._cursors[name]
        stop = int(messages.offsets[-1]) + 1
        self._before = {k: crc for k, crc in self._before.items() if k[0] != name}
        self._before[name, cursor.offset] = cursor.crc
        # Include the newline after each message, so that the sum depends on where one ends.
        crc = zlib.crc32(messages.data, cursor.crc)
        block = MessageBlock(self._consumer.topic, index, messages, cursor.offset, stop)
        return self._to(block, crc)

    def split(self, work: Work, position: int) -> tuple[Work, Work] | None:
        """Return a block as two, cut before a message."""
        block = work.block
        assert isinstance(block, MessageBlock)
        n = int(np.searchsorted(block.messages.offsets, position))
        before = self._before.get((block.partition, block.start))
        if before is None or not 0 < n < len(block.messages):
            return None
        first, rest = block.messages.split(n)
        crc = zlib.crc32(first.data, before)
        name, topic, index = block.partition, block.topic, block.index
        self._before[name, position] = crc
        span = work.span
        return (
            Work(
                MessageBlock(topic, index, first, block.start, position),
                Range(name, span.start, position, position, crc, span.head),
            ),
            Work(
                MessageBlock(topic, index, rest, position, block.stop),
                Range(name, position, span.stop, span.line, span.crc, span.head),
            ),
        )

    def _nothing(self, name: str, stop: int, crc: int) -> Work:
        """Return an empty block from the cursor (if any) to `stop`, and advance to it."""
        start = self._cursors[name].offset if name in self._cursors else stop
        nothing = Messages([], np.zeros(0, np.int64), [])
        topic, index = self._consumer.topic, self._parts[name]
        return self._to(MessageBlock(topic, index, nothing, start, stop), crc)

    def _to(self, block: MessageBlock, crc: int) -> Work:
        """Return a block as work, and advance past it."""
        name, stop, mark = block.partition, block.stop, self._consumer.mark
        self._cursors[name] = Cursor(stop, stop, crc, mark)
        return Work(block, Range(name, block.start, stop, stop, crc, mark))

    @property
    def ended(self) -> bool:
        """Whether everything that existed when reading began was read, if reading ends there."""
        return self._until_eof and all(
            self._cursors[name].offset >= self._stops[name] or self._consumer.ended(index)
            for name, index in self._parts.items()
        )

    def positions_of(self, learned: Mapping[str, int]) -> dict[int, int]:
        """Return, by partition number, the position to commit for what was learned.

        If all of a partition was learned, that is its end. It may lie past records that the journal
        does not know, such as transaction markers.
        """
        positions = {}
        for name, offset in learned.items():
            end = self._consumer.end(self._parts[name])
            taken = self._cursors[name].offset
            positions[self._parts[name]] = max(end, offset) if offset == taken else offset
        return positions

    def replay(self, span: Range, max_bytes: int) -> Work | None:
        """Read a range of the journal again, one block per call, until one is `final`.

        Return None if the brokers have not delivered it yet.

        Raises
        ------
        InputError
            If what was learned was deleted, or has changed.
        """
        name = span.partition
        index = self._parts[name]
        cursor = self._cursors[name]
        if span.start == span.stop:
            return self._nothing(name, span.stop, span.crc)
        if cursor.offset < self._lows[name]:  # perhaps it was also then: the checksum decides
            self._gone[name] = cursor.offset
            work = self._nothing(name, min(self._lows[name], span.stop), cursor.crc)
        else:
            found = self._read(name, max_bytes, span.stop)
            if found is None:
                if self._consumer.waits_from(index, span.stop) or self._consumer.ended(index):
                    raise _cannot_replay(name, cursor.offset, span.stop)
                return None
            work = found
        if work.span.stop < span.stop:
            return work._replace(final=False)
        gone = self._gone.pop(name, None)
        if work.span.crc != span.crc and gone is not None:
            raise _cannot_replay(name, gone, self._lows[name])
        if work.span.crc != span.crc:
            raise InputError(
                f"{name}: offsets {span.start} to {span.stop - 1} are not what was learned from "
                "them: some were deleted, compacted, or are of another topic of the same name"
            )
        return work


def _cannot_replay(name: str, start: int, stop: int) -> InputError:
    return InputError(
        f"{name}: offsets {start} to {stop - 1} are not there any more (deleted, or compacted), "
        "and the journal says that they were learned; without them or a newer snapshot the state "
        "cannot be rebuilt: put the state folder back, or start over with --fresh"
    )
