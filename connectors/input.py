"""What an input hands over: blocks of whole records, and what was made of them."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Rejected
from midstream.engine.shard.journal import Range

__all__ = [
    "AnyBlock",
    "Block",
    "Decoded",
    "Format",
    "InputError",
    "Position",
    "RowDecoder",
    "TableBlock",
    "TextFormat",
    "Work",
]


class InputError(ExpectedError, ValueError):
    """An input that cannot be read (any further). One line, naming the input."""

    exit_code = 2


TextFormat: TypeAlias = Literal["jsonl", "csv", "auto"]
"""JSON Lines or CSV; "auto": told by the first character, "{" is JSON Lines."""
Format: TypeAlias = Literal["jsonl", "csv", "arrow", "parquet", "auto"]
"""What a file may be; "auto": told by its name, else by its content."""


@dataclass(frozen=True, slots=True)
class Block:
    r"""Whole records of one input partition, not yet decoded.

    Attributes
    ----------
    partition
        Name of the file relative to the input's root; "-" is standard input.
    data
        The records, each ended by a newline, except possibly the last of the file.
    first
        Line number of the first line, from 1.
    lines
        How many lines, as an editor counts them, the block spans.
    start, stop
        Its bytes in the uncompressed file.
    oversize
        Above 0: this is one record that is too long, `oversize` bytes without its newline, and
        `data` has only its first 1,024 bytes.
    limit
        Of an oversize record: the length that was allowed.
    """

    unit: ClassVar[str] = "line"

    partition: str
    data: bytes
    first: int
    lines: int
    start: int
    stop: int
    oversize: int = 0
    limit: int = 0

    @property
    def size(self) -> int:
        """Its length in bytes, as `read` is told how long a block may be."""
        return len(self.data)

    @property
    def last(self) -> int:
        """Number of its last line."""
        return max(self.first + self.lines - 1, self.first)


class AnyBlock(Protocol):
    """What all blocks have."""

    unit: ClassVar[str]
    """What `first` and `last` count: "line", "row" or "offset"."""

    @property
    def partition(self) -> str:
        """The partition that it is of."""
        ...

    @property
    def first(self) -> int:
        """Number of its first record."""
        ...

    @property
    def last(self) -> int:
        """Number of its last record."""
        ...

    @property
    def start(self) -> int:
        """Its first position."""
        ...

    @property
    def stop(self) -> int:
        """The position after it."""
        ...

    @property
    def size(self) -> int:
        """Its length in bytes, as `read` is told how long a block may be."""
        ...


class RowDecoder(Protocol):
    """What makes events of a `TableBlock`."""

    def decode(self, block: "TableBlock") -> "Decoded":
        """Return its events, and what is rejected."""
        ...


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows of an Arrow or Parquet file, as they lie in memory.

    Attributes
    ----------
    partition
        As of a `Block`.
    table
        A `pyarrow.RecordBatch` of the columns that are read.
    form
        What makes events of the rows: it knows what the columns mean.
    first, lines
        Number of the first row, from 1, and how many there are.
    start, stop
        Its rows, numbered from 0: the positions of such a file.
    crc
        Fingerprint of its values.
    size
        What it counts where the length of blocks is given in bytes.
    """

    unit: ClassVar[str] = "row"

    partition: str
    table: Any
    form: "RowDecoder"
    first: int
    lines: int
    start: int
    stop: int
    crc: int
    size: int

    @property
    def last(self) -> int:
        """Number of its last row."""
        return max(self.first + self.lines - 1, self.first)


@dataclass(frozen=True, slots=True)
class Position:
    """The next byte (of the uncompressed file), or row of a table, and the next line to read."""

    byte: int = 0
    line: int = 1


class Decoded(NamedTuple):
    """The events of a block, in order, and what was rejected, in order."""

    batch: EventBatch
    rejected: list[Rejected]


class Work(NamedTuple):
    """A block of input with its place in the journal; `final` ends a replayed range."""

    block: AnyBlock
    span: Range
    final: bool = True
