"""Messages of a topic to batches: each message holds one event as JSON, or many as Arrow.

JSON messages are decoded as the lines of a block are, so what a message may hold, and what it is
rejected for, is what holds for a line of a file.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from midstream.connectors.codec import make_decoder, make_table_decoder
from midstream.connectors.column_codec import Schema
from midstream.connectors.fields import Decoded, FieldMap
from midstream.connectors.records import Block
from midstream.engine.events import EventBatch, FloatArray, IntArray, Rejected, Task

if TYPE_CHECKING:
    from midstream.connectors.arrow_codec import TableDecoder

__all__ = ["ARROW", "MessageBlock", "MessageDecoder"]

ARROW = b"\xff\xff\xff\xff"
"""What an Arrow IPC stream begins with, and no JSON does."""
_RAW = 1024


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
        (n,) seconds since 1970 that they came in, NaN where the broker does not say.
    start, stop
        The block is all of the partition from one offset up to the other.
    """

    topic: str
    index: int
    values: list[bytes | None]
    offsets: IntArray
    times: FloatArray
    start: int
    stop: int

    @property
    def partition(self) -> str:
        """What the journal calls the partition."""
        return f"{self.topic}-{self.index}"

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return sum(map(len, filter(None, self.values)))


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
        values, faults = self._sound(block)
        if not values:
            return Decoded(EventBatch([], [], partition=block.topic, index=block.index), [])
        if len(values) == 1 and (value := values[0]).startswith(ARROW):
            decoded = self._decode_table(block, value)
        else:
            data = b"\n".join(values) + b"\n"
            if data.count(b"\n") > len(values):
                # Outside of strings it is white space as a tab is; within them neither is allowed.
                values = [value.replace(b"\n", b"\t") for value in values]
                data = b"\n".join(values) + b"\n"
            lines = Block(block.topic, data, 0, len(values), 0, len(data))
            decoded = self._lines.decode(lines)
            self._place(decoded.batch, block)
            for rejection in decoded.rejected:
                line = rejection.origin[2]
                rejection.origin = (block.topic, block.index, int(block.offsets[line]))
        if faults:
            decoded.rejected.extend(faults)
            decoded.rejected.sort(key=lambda rejection: rejection.origin[2])
        return decoded

    def _sound(self, block: MessageBlock) -> tuple[list[bytes], list[Rejected]]:
        """Return the values that may be decoded, b"" for one that may not, and why not."""
        values: list[bytes] = []
        faults = []
        for value, offset in zip(block.values, block.offsets.tolist(), strict=True):
            if value and len(value) <= self._max_bytes and not value.isspace():
                values.append(value)
                continue
            if value is None:
                reason = "no value (a tombstone)"
            elif len(value) > self._max_bytes:
                reason = f"message of {len(value):,} bytes; the limit is {self._max_bytes:,}"
            else:
                reason = "empty message"
            raw = (value or b"")[: 4 * _RAW].decode("utf-8", "backslashreplace")[:_RAW]
            faults.append(Rejected((block.topic, block.index, offset), reason, "", raw))
            values.append(b"")  # a blank line is no event
        return values, faults

    def _place(self, batch: EventBatch, block: MessageBlock) -> None:
        """Say where in the topic the events of a batch were, and when, if they do not."""
        rows = batch.offsets
        batch.offsets = block.offsets[rows]
        batch.index = block.index
        batch.fill_times(block.times[rows])

    def _decode_table(self, block: MessageBlock, value: bytes) -> Decoded:
        if self._tables is None:
            self._tables = make_table_decoder(self._task, self._fields, self._schema)
        offset = int(block.offsets[0])
        return self._tables.decode_message(
            value, partition=block.topic, index=block.index, first=offset
        )
