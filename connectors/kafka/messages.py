"""Messages of a topic to batches: each message holds one event as JSON, or many as Arrow.

JSON messages are decoded as the lines of a block are, so what a message may hold, and what it is
rejected for, is what holds for a line of a file.
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
"""What an Arrow IPC stream begins with, and no JSON does."""
_RAW = 1024
_NEWLINE = ord("\n")
_ENVELOPE = 64  # bytes that a message is counted with besides its own


class Messages:
    """Consecutive messages of one partition, as columns.

    Attributes
    ----------
    values
        Their bytes; None is a tombstone.
    offsets
        (n,) rising, not always by one.
    times
        Milliseconds since 1970 that they came in, less than 0 where the broker does not say.
    data
        All values, a newline after each.
    size
        Bytes, with what it takes to keep them.
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
        """Return what confluent_kafka's messages hold, so that they themselves can go.

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
        if b"\xff" not in data:  # no JSON has a byte that Arrow begins with
            return [cls(values, offsets, times, data)]
        tables = [i for i, value in enumerate(values) if value and value.startswith(ARROW)]
        cuts = sorted({0, len(values), *tables, *(i + 1 for i in tables)})
        return [cls(values[a:b], offsets[a:b], times[a:b]) for a, b in pairwise(cuts)]

    @classmethod
    def join(cls, parts: "Sequence[Messages]") -> "Messages":
        """Return the messages of all parts, at least one, in order."""
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
        """Whether this is a message that holds Arrow."""
        return self.data.startswith(ARROW)

    def split(self, n: int) -> "tuple[Messages, Messages]":
        """Return the first `n` messages, and the rest."""
        return (
            Messages(self.values[:n], self.offsets[:n], self.times[:n]),
            Messages(self.values[n:], self.offsets[n:], self.times[n:]),
        )


def _ended(values: list[bytes | None]) -> bytes:
    """Return all values, a newline after each."""
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
        Where they are from.
    messages
        What is in it.
    start, stop
        The block is all of the partition from one offset up to the other.
    """

    unit: ClassVar[str] = "offset"

    topic: str
    index: int
    messages: Messages
    start: int
    stop: int

    @property
    def partition(self) -> str:
        """What the journal calls the partition."""
        return f"{self.topic}-{self.index}"

    @property
    def first(self) -> int:
        """Its first offset."""
        return self.start

    @property
    def last(self) -> int:
        """The offset before `stop`."""
        return self.stop - 1

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return len(self.messages.data)


class MessageDecoder:
    """Decodes blocks of messages.

    Parameters
    ----------
    task
        What labels have to be.
    fields
        Which fields mean what; None: events in our own form.
    schema
        What each feature is, if that is settled.
    max_bytes
        Longest message that is decoded; a longer one is rejected.
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
            # Outside of strings it is white space as a tab is; within them neither is allowed.
            sound = [b"" if _fault(value, limit) else value for value in values]
            data = b"\n".join([(value or b"").replace(b"\n", b"\t") for value in sound] + [b""])
        decoded = self._lines.decode(Block(block.topic, data, 0, len(values), 0, len(data)))
        self._place(decoded.batch, block)
        for rejection in decoded.rejected:
            line = rejection.origin[2]
            rejection.origin = (block.topic, block.index, int(block.messages.offsets[line]))
        if len(decoded.batch) + len(decoded.rejected) < len(values):  # a blank line is no event
            decoded.rejected.extend(self._faults(block))
            decoded.rejected.sort(key=lambda rejection: rejection.origin[2])
        return decoded

    def _faults(self, block: MessageBlock) -> list[Rejected]:
        """Return those messages that are not even looked into, and why not."""
        faults = []
        for value, offset in zip(
            block.messages.values, block.messages.offsets.tolist(), strict=True
        ):
            if reason := _fault(value, self._max_bytes):
                raw = (value or b"")[: 4 * _RAW].decode("utf-8", "backslashreplace")[:_RAW]
                faults.append(Rejected((block.topic, block.index, offset), reason, "", raw))
        return faults

    def _place(self, batch: EventBatch, block: MessageBlock) -> None:
        """Say where in the topic the events of a batch were, and when, if they do not."""
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
    """Return times in seconds, nan for one that is not known."""
    times = np.array(array("q", milliseconds))
    return np.where(times < 0, np.nan, times / 1000)


def _fault(value: bytes | None, max_bytes: int) -> str:
    """Return why a message is not looked into; nothing if it is."""
    if value is None:
        return "no value (a tombstone)"
    if len(value) > max_bytes:
        return f"message of {len(value):,} bytes; the limit is {max_bytes:,}"
    return "" if value and not value.isspace() else "empty message"
