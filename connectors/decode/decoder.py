"""The decoder of an input: blocks to batches of events."""

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from midstream.connectors.decode.column_decoder import ColumnDecoder
from midstream.connectors.decode.csv_decoder import CsvDecoder
from midstream.connectors.decode.fields import FieldMap, Schema
from midstream.connectors.decode.framing import CsvOptions
from midstream.connectors.decode.json_decoder import JsonDecoder
from midstream.connectors.decode.notation import Notation
from midstream.connectors.input import Block, Decoded, InputError
from midstream.engine.events.event import Task
from midstream.engine.events.rules import LabelKind

if TYPE_CHECKING:
    from midstream.connectors.decode.arrow_decoder import TableDecoder

__all__ = ["Decoder", "Decoding", "make_decoder", "make_table_decoder"]


class Decoder(Protocol):
    """Turns blocks of records into batches of events."""

    def decode(self, block: Block) -> Decoded:
        """Return the events of a block and what was rejected."""


def make_decoder(
    task: Task,
    fields: FieldMap | None,
    csv: CsvOptions | None = None,
    schema: Schema | None = None,
    notation: Notation | None = None,
) -> Decoder:
    """Return the decoder for an input partition.

    Parameters
    ----------
    task
        What labels have to be.
    fields
        Which fields mean what; None: events in our own form.
    csv
        Header and delimiter of a CSV file; None: JSON Lines.
    schema
        What each feature is: JSON Lines are then decoded to columns. None or empty: whatever comes.
    notation
        How values are written; None: as `fields` says.

    Raises
    ------
    InputError
        If the file is CSV and does not have what `fields` names, or `fields` is None; or if there
        is a schema for it.
    """
    if schema:
        if csv is not None:
            raise InputError(
                "[features] is for JSON Lines, Arrow and Parquet; for CSV, [input.fields] has types"
            )
        return ColumnDecoder(task, fields, schema, notation)
    if csv is None:
        return JsonDecoder(task, fields, notation)
    if fields is None:
        raise InputError("CSV needs [input.fields]: which column is the label?")
    return CsvDecoder(csv.header, task, fields, csv.delimiter, notation)


def make_table_decoder(
    task: Task,
    fields: FieldMap | None,
    schema: Schema | None = None,
    notation: Notation | None = None,
) -> "TableDecoder":
    """Return the decoder for all Arrow and Parquet files of an input; arguments as above.

    Raises
    ------
    InputError
        If pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401 only whether it is there
    except ImportError:
        raise InputError(
            "Arrow and Parquet need pyarrow; install it with: pip install 'midstream[arrow]'"
        ) from None
    from midstream.connectors.decode.arrow_decoder import TableDecoder

    return TableDecoder(task, fields, schema, notation)


class Decoding:
    """How records become events, as the config says it: makes the decoders of one shard's input.

    Parameters
    ----------
    task
        What labels have to be.
    fields
        Which fields mean what; None: events in our own form.
    schema
        What each feature is. None or empty: whatever comes.
    labels
        Of which kind the labels of many classes are; None: as the first is.
    max_record_bytes
        The longest record that is decoded; a longer one is rejected.

    Attributes
    ----------
    notation
        How values are written; the decoders share it, and note in it what they took times for.
    """

    def __init__(
        self,
        task: Task,
        fields: FieldMap | None = None,
        schema: Schema | None = None,
        *,
        labels: LabelKind | None = None,
        max_record_bytes: int = 2**20,
    ) -> None:
        self.task = task
        self.fields = fields
        self.schema = schema
        self.max_record_bytes = max_record_bytes
        self.notation = Notation(fields, labels)

    def lines(self, csv: CsvOptions | None = None) -> Decoder:
        """Return a new decoder of JSON Lines, or of CSV with this header; as `make_decoder`."""
        return make_decoder(self.task, self.fields, csv, self.schema, self.notation)

    @cached_property
    def tables(self) -> "TableDecoder":
        """The decoder of Arrow and Parquet; as `make_table_decoder`."""
        return make_table_decoder(self.task, self.fields, self.schema, self.notation)
