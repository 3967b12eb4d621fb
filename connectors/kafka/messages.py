"""Decodes messages of a topic to batches: a message holds one event as JSON, or many as Arrow.

JSON messages are decoded like the lines of a block, so the rules for a line of a file hold for a
message too.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from midstream.connectors.decode.decoder import make_decoder, make_table_decoder
from midstream.connectors.decode.fields import FieldMap, Schema
from midstream.connectors.decode.notation import Notation
from midstream.connectors.input import Block, Decoded
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import FloatArray, IntArray, Rejected, Task

if TYPE_CHECKING:
    from midstream.connectors.decode.arrow_decoder import TableDecoder

__all__ = ["ARROW", "MessageBlock", "MessageDecoder", "Messages"]

ARROW = b"\xff\xff\xff\xff"
"""Prefix of an Arrow IPC stream; no JSON has it."""
_RAW = 1024
_NEWLINE = ord("\n")
_ENVELOPE = 64  # bytes of overhead counted for each message


class Messages:
    """Consecutive messages of one partition, as columns.

    Attributes
    ----------
    values
        Values of the messages; None is a tombstone.
    offsets
        (n,) increasing, not always by one.
    times
        Timestamps in milliseconds since 1970, below 0 if the broker gives none.
    data
        All values, each followed by a newline.
    size
        Size in bytes, with the overhead of storage.
    """

    __slots__ = ("data", "offsets", "size", "times", "values")

    def __init__(
        self,
        values: list[bytes | None],
        offsets: IntArray,
        times: list[int],
        data: bytes | None = None,
    ) -> None:
        self.values = values
        self.offsets = offsets
        self.times = times
        self.data = _ended(values) if data is None else data
        self.size = len(self.data) + _ENVELOPE * len(values)

    @classmethod
    def parts(cls, messages: list[Any]) -> "list[Messages]":
        """Return the contents of confluent_kafka's messages, so that those can be freed.

        A message that holds Arrow is a part of its own.
        """
        first, last = messages[0].offset(), messages[-1].offset()
        if last - first == len(messages) - 1:
            offsets = np.arange(first, last + 1)
        else:
            offsets = np.array([message.offset() for message in messages])
        values = [message.value() for message in messages]
        times = [message.timestamp()[1] for message in messages]
        data = _ended(values)
        if b"\xff" not in data:  # no JSON has the first byte of Arrow
            return [cls(values, offsets, times, data)]
        tables = [i for i, value in enumerate(values) if value and value.startswith(ARROW)]
        cuts = sorted({0, len(values), *tables, *(i + 1 for i in tables)})
        return [cls(values[a:b], offsets[a:b], times[a:b]) for a, b in pairwise(cuts)]

    @classmethod
    def join(cls, parts: "Sequence[Messages]") -> "Messages":
        """Return the messages of all parts, in order. At least one part is required."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            [value for part in parts for value in part.values],
            np.concatenate([part.offsets for part in parts]),
            [time for part in parts for time in part.times],
            b"".join([part.data for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_table(self) -> bool:
        """Whether this is one message that holds Arrow."""
        return self.data.startswith(ARROW)

    def split(self, n: int) -> "tuple[Messages, Messages]":
        """Return the first `n` messages, and the rest."""
        return (
            Messages(self.values[:n], self.offsets[:n], self.times[:n]),
            Messages(self.values[n:], self.offsets[n:], self.times[n:]),
        )


def _ended(values: list[bytes | None]) -> bytes:
    """Return all values, each followed by a newline."""
    try:
        return b"\n".join([*values, b""])  # type: ignore[list-item]
    except TypeError:
        return b"\n".join([*[value or b"" for value in values], b""])


@dataclass(frozen=True, slots=True)
class MessageBlock:
    """Messages of one partition, in order: any number that hold JSON, or one that holds Arrow.

    Attributes
    ----------
    topic, index
        Topic and partition.
    messages
        The messages.
    start, stop
        Offset range of the block; it holds all messages of the partition in it.
    """

    unit: ClassVar[str] = "offset"

    topic: str
    index: int
    messages: Messages
    start: int
    stop: int

    @property
    def partition(self) -> str:
        """Name of the partition in the journal."""
        return f"{self.topic}-{self.index}"

    @property
    def first(self) -> int:
        """The first offset."""
        return self.start

    @property
    def last(self) -> int:
        """The offset before `stop`."""
        return self.stop - 1

    @property
    def size(self) -> int:
        """Length of all values in bytes."""
        return len(self.messages.data)


class MessageDecoder:
    """Decodes blocks of messages.

    Parameters
    ----------
    task
        The task, which labels have to fit.
    fields
        Meaning of the fields; None: events in Midstream's own form.
    schema
        Kind of each feature, if fixed.
    max_bytes
        Longest message that is decoded; longer ones are rejected.
    notation
        How values are written; None: as `fields` says.
    """

    def __init__(
        self,
        task: Task,
        fields: FieldMap | None,
        schema: Schema | None,
        max_bytes: int,
        notation: Notation | None = None,
    ) -> None:
        self._notation = notation or Notation(fields)
        self._task = task
        self._fields = fields
        self._schema = schema
        self._max_bytes = max_bytes
        self._lines = make_decoder(task, fields, schema=schema, notation=self._notation)
        self._tables: TableDecoder | None = None

    def decode(self, block: MessageBlock) -> Decoded:
        """Return the events of a block and what was rejected."""
        values = block.messages.values
        if not values:
            return Decoded(
                EventBatch([], [], partition=block.topic, index=block.index, sound=True), []
            )
        data, limit = block.messages.data, self._max_bytes
        first = values[0]
        if first is not None and block.messages.is_table and len(first) <= limit:
            return self._decode_table(block, first)
        too_long = len(data) > limit and max(map(len, filter(None, values)), default=0) > limit
        letters = np.frombuffer(data, np.uint8)
        if too_long or np.count_nonzero(letters == _NEWLINE) > len(values):
            # Between tokens a newline is white space, as a tab is; in strings JSON allows neither.
            sound = [b"" if _fault(value, limit) else value for value in values]
            data = b"\n".join([(value or b"").replace(b"\n", b"\t") for value in sound] + [b""])
        decoded = self._lines.decode(Block(block.topic, data, 0, len(values), 0, len(data)))
        self._place(decoded.batch, block)
        for rejection in decoded.rejected:
            line = rejection.origin[2]
            rejection.origin = (block.topic, block.index, int(block.messages.offsets[line]))
        if len(decoded.batch) + len(decoded.rejected) < len(values):  # blank lines give no event
            decoded.rejected.extend(self._faults(block))
            decoded.rejected.sort(key=lambda rejection: rejection.origin[2])
        return decoded

    def _faults(self, block: MessageBlock) -> list[Rejected]:
        """Return rejections of the messages that are not decoded at all."""
        faults = []
        for value, offset in zip(
            block.messages.values, block.messages.offsets.tolist(), strict=True
        ):
            if reason := _fault(value, self._max_bytes):
                raw = (value or b"")[: 4 * _RAW].decode("utf-8", "backslashreplace")[:_RAW]
                faults.append(Rejected((block.topic, block.index, offset), reason, "", raw))
        return faults

    def _place(self, batch: EventBatch, block: MessageBlock) -> None:
        """Set the place in the topic, and the time if the events have none."""
        rows = batch.offsets
        batch.offsets = block.messages.offsets[rows]
        batch.index = block.index
        batch.fill_times(_seconds(block.messages.times)[rows])

    def _decode_table(self, block: MessageBlock, value: bytes) -> Decoded:
        if self._tables is None:
            self._tables = make_table_decoder(
                self._task, self._fields, self._schema, self._notation
            )
        offset = int(block.messages.offsets[0])
        decoded = self._tables.decode_message(
            value, partition=block.topic, index=block.index, offset=offset
        )
        decoded.batch.fill_times(_seconds(block.messages.times).repeat(len(decoded.batch)))
        return decoded


def _seconds(milliseconds: list[int]) -> FloatArray:
    """Convert times to seconds; nan where unknown."""
    times = np.array(array("q", milliseconds))
    return np.where(times < 0, np.nan, times / 1000)


def _fault(value: bytes | None, max_bytes: int) -> str:
    """Return why a message is not decoded; empty if it is."""
    if value is None:
        return "no value (a tombstone)"
    if len(value) > max_bytes:
        return f"message of {len(value):,} bytes; the limit is {max_bytes:,}"
    return "" if value and not value.isspace() else "empty message"
