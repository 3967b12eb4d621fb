"""The contract of an input, and what it returns: blocks of whole records, and their events.

To add an input, implement `Input` and write an input kind that opens it from the config
(`midstream.flows.inputs.kind`). CONTRIBUTING.md lists the steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Rejected
from midstream.engine.shard.journal import Cursor, Range

__all__ = [
    "NOT_THERE",
    "AnyBlock",
    "Block",
    "Cursor",
    "Decoded",
    "Format",
    "Input",
    "InputError",
    "NoAnswerError",
    "Range",
    "RowDecoder",
    "TableBlock",
    "TextFormat",
    "Work",
]


NOT_THERE = 2**62
"""The oldest position of a missing partition."""


class InputError(ExpectedError, ValueError):
    """An input that cannot be read, or not any further. One line that names the input."""

    exit_code = 2


class NoAnswerError(InputError):
    """The input did not answer in time, but may do so later.

    The run waits, then resumes from what was committed.
    """


TextFormat: TypeAlias = Literal["jsonl", "csv", "auto"]
"""JSON Lines or CSV; "auto": by the first character, "{" means JSON Lines."""
Format: TypeAlias = Literal["jsonl", "csv", "arrow", "parquet", "auto"]
"""Format of a file; "auto": by its name, else by its content."""


@dataclass(frozen=True, slots=True)
class Block:
    r"""Whole, undecoded records of one input partition.

    Attributes
    ----------
    partition
        Name of the file relative to the input's root; "-" is standard input.
    data
        The records. Each ends with a newline, except possibly the last of the file.
    first
        Line number of the first line, from 1.
    lines
        Number of lines that the block spans, as an editor counts them.
    start, stop
        Byte range of the block in the uncompressed file.
    oversize
        Above 0: the block is one record that is too long. Its length is `oversize` bytes without
        its newline, and `data` holds only its first 1,024 bytes.
    limit
        Of an oversize record: the maximum length.
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
        """Length in bytes, in the unit of the `max_bytes` of `read`."""
        return len(self.data)

    @property
    def last(self) -> int:
        """Number of the last line."""
        return max(self.first + self.lines - 1, self.first)


class AnyBlock(Protocol):
    """Attributes that all blocks have."""

    unit: ClassVar[str]
    """Unit of `first` and `last`: "line", "row" or "offset"."""

    @property
    def partition(self) -> str:
        """The partition that the block belongs to."""
        ...

    @property
    def first(self) -> int:
        """Number of the first record."""
        ...

    @property
    def last(self) -> int:
        """Number of the last record."""
        ...

    @property
    def start(self) -> int:
        """The first position."""
        ...

    @property
    def stop(self) -> int:
        """The position after the block."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes, in the unit of the `max_bytes` of `read`.

        0: no record of its range exists any more.
        """
        ...


class RowDecoder(Protocol):
    """Decodes a `TableBlock` to events."""

    def decode(self, block: "TableBlock") -> "Decoded":
        """Return the events and the rejected rows of a block."""
        ...


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows of an Arrow or Parquet file, in memory.

    Attributes
    ----------
    partition
        As in `Block`.
    table
        The columns that are read, as a `pyarrow.RecordBatch`.
    form
        Decodes the rows; it knows what the columns mean.
    first, lines
        Number of the first row, from 1, and the number of rows.
    start, stop
        Range of rows, numbered from 0: the positions in such a file.
    crc
        Fingerprint of the values.
    size
        Size that counts against limits in bytes.
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
        """Number of the last row."""
        return max(self.first + self.lines - 1, self.first)


class Decoded(NamedTuple):
    """The events of a block and its rejected records, each in order."""

    batch: EventBatch
    rejected: list[Rejected]


class Work(NamedTuple):
    """A block of input with its place in the journal; `final` ends a replayed range."""

    block: AnyBlock
    span: Range
    final: bool = True


class Input(ABC):
    """The input of one shard: partitions, each read in order, with a position in each.

    The journal decides what was learned, and the input obeys it. After a crash the shard first
    reads the ranges of the journal again (`replay`), then new records (`read`). The contract:

    - A record has a position in its partition: an integer that rises and never changes.
    - `read` returns whole records: a `Work` with a block and the `Range` that the journal will
      hold. The range gives its partition, its start, its stop, and what identifies its records
      later. Each range starts where the previous one of its partition stopped.
    - `replay` of a range returns the same records, bit for bit, or raises `InputError`. It may cut
      them into other blocks than `read` did.
    - `decode` depends on the records alone, not on how they are cut into blocks.
    - An error is an `InputError` of one line that names the partition and says what can be done. If
      the input only cannot be reached, it is a `NoAnswerError`: the run waits and opens it anew.
    - No method waits for records that do not exist yet. With `input.ahead` a second thread calls
      `read`, `decode`, `replay`, `rewind` and `oldest`; meanwhile the first may read the properties
      and call `has`, `confirm` and `settle`. All other calls are made while no other call runs.

    Partitions have names, which the journal keeps. In a shard with several inputs, no two of them
    have a partition of the same name.
    """

    splits: ClassVar[bool] = False
    """Whether `split` cuts blocks."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the partitions known now, in the order in which they are read."""

    @abstractmethod
    def has(self, partition: str) -> bool:
        """Whether a partition that the journal names is of this input, even if it is missing."""

    @abstractmethod
    def seek(self, cursors: Mapping[str, Cursor], known: Mapping[str, Cursor]) -> None:
        """Go to where the shard resumes. Called once, before anything is read.

        Parameters
        ----------
        cursors
            Where each partition resumes: before the ranges to be replayed. If those are all of the
            partition, only `offset` and `head` are known, and `line` is 1.
        known
            How far each was read: after the ranges to be replayed. Equal to `cursors` if there are
            none.

        Raises
        ------
        InputError
            If the cursors belong to another input than the one found now.
        """

    def begin(self, *, untouched: bool) -> list[Work]:
        """Return empty ranges that record where reading begins, for partitions where it matters.

        Called before `read` if nothing is to be replayed, and again after each replay. The shard
        journals the ranges, so that a later start finds the same beginning.

        Parameters
        ----------
        untouched
            Whether the shard has never applied any input.
        """
        del untouched
        return []

    @abstractmethod
    def read(self, max_bytes: int) -> Work | None:
        """Return the next block of new records; None if none is available now.

        Parameters
        ----------
        max_bytes
            Length to aim at. A longer record is a block of its own.

        Raises
        ------
        InputError
            If the input cannot be read any further. Blocks returned before remain valid.
        """

    def split(self, work: Work, position: int) -> tuple[Work, Work] | None:
        """Return a block from `read` as two, cut before a record; None if it cannot be cut.

        An input that sets `splits` implements this.

        Parameters
        ----------
        position
            Of the record, as in the `offsets` of the decoded batch: not the first of the block.
        """
        del work, position
        return None

    @abstractmethod
    def decode(self, work: Work) -> Decoded:
        """Return the events and the rejected records of a block from `read` or `replay`.

        Both are in the order of the records. Bad records are rejected; they raise nothing.
        """

    @abstractmethod
    def replay(self, span: Range, max_bytes: int) -> Work | None:
        """Read a range of the journal again, one block per call, until one is `final`.

        Return None if its records have not arrived yet; the call is then repeated.

        Raises
        ------
        InputError
            If the records are missing, or differ from those that were learned.
        """

    @abstractmethod
    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors, as in `seek`; the ranges after them are replayed next."""

    @abstractmethod
    def oldest(self) -> Mapping[str, int]:
        """Return, by partition, the oldest position that can still be read.

        For a missing partition that was read before, the mapping gives `NOT_THERE`.

        Raises
        ------
        NoAnswerError
            If the position is not available now; the caller asks again later.
        """

    def rescan(self) -> list[str]:
        """Look for new partitions; return the names not returned before.

        Called every few seconds while no records arrive.
        """
        return []

    @property
    def waiting(self) -> Set[str]:
        """Names of partitions whose next record has begun and is not complete yet."""
        return frozenset()

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether `read` will never return a block again."""

    def confirm(self, seconds: float) -> None:  # noqa: B027 not every input can ask
        """Raise if what was read since the last call may belong to another input.

        Called before each commit; if it raises, none of it is committed.

        Parameters
        ----------
        seconds
            Time limit for the request.

        Raises
        ------
        NoAnswerError
            If the input's identity is not available.
        InputError
            If it belongs to another input.
        """

    def settle(self, learned: Mapping[str, int]) -> None:  # noqa: B027 not every input tells
        """Take note of the committed positions up to which the partitions were learned.

        They are for tools that show consumer lag and are never read back. Called often: return at
        once if nothing has changed.
        """

    @abstractmethod
    def close(self) -> None:
        """Release all resources. Called once, also after an error."""
