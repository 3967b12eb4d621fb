"""The contract of an input, and what it hands over: blocks of whole records, and their events.

To add an input, implement `Input` and bring a kind for the config that opens it
(`midstream.flows.inputs.kind`); CONTRIBUTING.md has the steps.
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
"""The oldest position of a partition of which nothing is there."""


class InputError(ExpectedError, ValueError):
    """An input that cannot be read (any further). One line, naming the input."""

    exit_code = 2


class NoAnswerError(InputError):
    """Nobody has answered in time; later somebody may, and a run waits for that.

    It then resumes from what was committed.
    """


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
        """Its length in bytes, as `read` is told how long a block may be.

        0: no record of its range is there any more.
        """
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


class Decoded(NamedTuple):
    """The events of a block, in order, and what was rejected, in order."""

    batch: EventBatch
    rejected: list[Rejected]


class Work(NamedTuple):
    """A block of input with its place in the journal; `final` ends a replayed range."""

    block: AnyBlock
    span: Range
    final: bool = True


class Input(ABC):
    """The input of one shard: partitions, each read in order, with a position in each.

    The journal decides what was learned, and the input obeys it. After a crash the shard asks for
    the ranges of the journal again (`replay`), then for new records (`read`). So the contract is:

    - A record has a position in its partition: an integer that rises and never changes.
    - `read` returns whole records. The `Work` that it returns holds a block, and the `Range` that
      the journal will hold: its partition, where it starts, where it stops, and what else tells
      later whether the same records are still there. Each range starts where the last one of its
      partition stopped.
    - `replay` of a range returns the same records, bit for bit, or raises `InputError`. It may
      return them in other pieces than `read` did.
    - `decode` depends on the records alone, not on how they were cut into blocks.
    - What is wrong is an `InputError` of one line, which names the partition and says what can be
      done; where the input only cannot be reached, a `NoAnswerError`: the run waits, and opens it
      anew.
    - No method waits for records that are not there yet. With `input.ahead` a second thread calls
      `read`, `decode`, `replay`, `rewind` and `oldest`, while the first may look at the properties
      and call `has`, `confirm` and `settle`; all else is called when nothing else is.

    Partitions have names, which the journal keeps. In a shard that has several inputs, no two of
    them have a partition of the same name.
    """

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The names of the partitions that are known now, in the order in which they are read."""

    @abstractmethod
    def has(self, partition: str) -> bool:
        """Whether a partition that the journal names is of this input, be it there now or not."""

    @abstractmethod
    def seek(self, cursors: Mapping[str, Cursor], known: Mapping[str, Cursor]) -> None:
        """Go to where the shard goes on. Called once, before anything is read.

        Parameters
        ----------
        cursors
            Where each partition that was read before goes on: before what is to be replayed. Where
            that is all of the partition, only `offset` and `head` are known; `line` is 1.
        known
            Where each was read to: after what is to be replayed. Equal to `cursors` if nothing is.

        Raises
        ------
        InputError
            If what the cursors are of is not the input that is there now.
        """

    def begin(self, *, untouched: bool) -> list[Work]:
        """Return empty ranges that say where reading begins, for partitions where that matters.

        Called when nothing is to be replayed, before `read`; and again after each replay. The shard
        journals the ranges, so that a later start finds the same beginning.

        Parameters
        ----------
        untouched
            Whether the shard never applied any input.
        """
        del untouched
        return []

    @abstractmethod
    def read(self, max_bytes: int) -> Work | None:
        """Return the next block of new records; None if there is none now.

        Parameters
        ----------
        max_bytes
            Length to aim at. A longer record comes alone.

        Raises
        ------
        InputError
            If the input cannot be read any further. What was returned before is sound.
        """

    @abstractmethod
    def decode(self, work: Work) -> Decoded:
        """Return the events of a block that `read` or `replay` gave, and what of it is rejected.

        Both are in the order of the records. Bad records are rejected; they raise nothing.
        """

    @abstractmethod
    def replay(self, span: Range, max_bytes: int) -> Work | None:
        """Read a range of the journal again, a block a call, until one is `final`.

        None where its records have not come yet; the call is then repeated.

        Raises
        ------
        InputError
            If the records are gone, or are not those that were learned.
        """

    @abstractmethod
    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors, as of `seek`; the ranges after them are replayed next."""

    @abstractmethod
    def oldest(self) -> Mapping[str, int]:
        """Return, by partition, the oldest position that can still be read.

        Of a partition that was read before and is not there, the mapping gives `NOT_THERE`.

        Raises
        ------
        NoAnswerError
            If nobody can say it now; it is asked again later.
        """

    def rescan(self) -> list[str]:
        """Look for new partitions; return the names of those that were not told yet.

        Called every few seconds while nothing comes.
        """
        return []

    @property
    def waiting(self) -> Set[str]:
        """Names of partitions whose next record is begun and not whole yet."""
        return frozenset()

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether `read` will never return a block again."""

    def confirm(self, seconds: float) -> None:  # noqa: B027 not every input can ask
        """Raise if what was read since the last call may be of another input.

        Called before each commit, so that nothing of it is committed then.

        Parameters
        ----------
        seconds
            How long it may take to ask.

        Raises
        ------
        NoAnswerError
            If nobody can say it.
        InputError
            If it is of another input.
        """

    def settle(self, learned: Mapping[str, int]) -> None:  # noqa: B027 not every input tells
        """Take note of up to which positions the partitions were learned, and that is committed.

        For tools that show how far a consumer is; nothing is read back. Called often: return at
        once where nothing has changed.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of all that is open. Called once, also after an error."""
