"""Messages of a topic to batches: each message holds one event as JSON, or many as Arrow.

JSON messages are decoded as the lines of a block are, so what a message may hold, and what it is
rejected for, is what holds for a line of a file.
"""

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from midstream.connectors.codec import make_decoder, make_table_decoder
from midstream.connectors.column_codec import Schema
from midstream.connectors.fields import Decoded, FieldMap
from midstream.connectors.records import Block
from midstream.engine.events import EventBatch, IntArray, Rejected, Task

if TYPE_CHECKING:
    from midstream.connectors.arrow_codec import TableDecoder

__all__ = ["ARROW", "MessageBlock", "MessageDecoder"]

ARROW = b"\xff\xff\xff\xff"
"""What an Arrow IPC stream begins with, and no JSON does."""
_RAW = 1024
_NEWLINE = ord("\n")


@dataclass(frozen=True, slots=True)
class MessageBlock:
    """Messages of one partition, in order: any number that hold JSON, or one that holds Arrow.

    Attributes
    ----------
    topic, index
        Where they are from.
    values
        Their bytes; None is a tombstone.
    offsets
        (n,) their offsets: rising, not always by one.
    times
        Milliseconds since 1970 that they came in, less than 0 where the broker does not say.
    start, stop
        The block is all of the partition from one offset up to the other.
    data
        All values, a newline after each.
    """

    topic: str
    index: int
    values: list[bytes | None]
    offsets: IntArray
    times: list[int]
    start: int
    stop: int
    data: bytes

    @property
    def partition(self) -> str:
        """What the journal calls the partition."""
        return f"{self.topic}-{self.index}"

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return len(self.data)


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
    """

    def __init__(
        self, task: Task, fields: FieldMap | None, schema: Schema | None, max_bytes: int
    ) -> None:
        self._task = task
        self._fields = fields
        self._schema = schema
        self._max_bytes = max_bytes
        self._lines = make_decoder(task, fields, schema=schema)
        self._tables: TableDecoder | None = None

    def decode(self, block: MessageBlock) -> Decoded:
        """Return the events of a block and what was rejected."""
        values = block.values
        if not values:
            return Decoded(EventBatch([], [], partition=block.topic, index=block.index), [])
        data, limit = block.data, self._max_bytes
        first = values[0]
        if len(values) == 1 and first and first.startswith(ARROW) and len(first) <= limit:
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
            rejection.origin = (block.topic, block.index, int(block.offsets[line]))
        if len(decoded.batch) + len(decoded.rejected) < len(values):  # a blank line is no event
            decoded.rejected.extend(self._faults(block))
            decoded.rejected.sort(key=lambda rejection: rejection.origin[2])
        return decoded

    def _faults(self, block: MessageBlock) -> list[Rejected]:
        """Return those messages that are not even looked into, and why not."""
        faults = []
        for value, offset in zip(block.values, block.offsets.tolist(), strict=True):
            if reason := _fault(value, self._max_bytes):
                raw = (value or b"")[: 4 * _RAW].decode("utf-8", "backslashreplace")[:_RAW]
                faults.append(Rejected((block.topic, block.index, offset), reason, "", raw))
        return faults

    def _place(self, batch: EventBatch, block: MessageBlock) -> None:
        """Say where in the topic the events of a batch were, and when, if they do not."""
        rows = batch.offsets
        milliseconds = np.array(array("q", block.times))
        times = np.where(milliseconds < 0, np.nan, milliseconds / 1000)
        batch.offsets = block.offsets[rows]
        batch.index = block.index
        batch.fill_times(times[rows])

    def _decode_table(self, block: MessageBlock, value: bytes) -> Decoded:
        if self._tables is None:
            self._tables = make_table_decoder(self._task, self._fields, self._schema)
        offset = int(block.offsets[0])
        return self._tables.decode_message(
            value, partition=block.topic, index=block.index, first=offset
        )


def _fault(value: bytes | None, max_bytes: int) -> str:
    """Return why a message is not looked into; nothing if it is."""
    if value is None:
        return "no value (a tombstone)"
    if len(value) > max_bytes:
        return f"message of {len(value):,} bytes; the limit is {max_bytes:,}"
    return "" if value and not value.isspace() else "empty message"
