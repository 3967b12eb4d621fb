"""Makes the decoder of an input: blocks to batches of events."""

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
    """Decodes blocks of records to batches of events."""

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
        The task, which labels have to fit.
    fields
        Meaning of the fields; None: events in Midstream's own form.
    csv
        Header and delimiter of a CSV file; None: JSON Lines.
    schema
        Kind of each feature: JSON Lines are then decoded to columns. None or empty: any features.
    notation
        How values are written; None: as `fields` says.

    Raises
    ------
    InputError
        If the input is CSV and lacks what `fields` names, or `fields` is None, or there is a schema
        for it.
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
    """Makes the decoders of a shard's input as the config says.

    Parameters
    ----------
    task
        The task, which labels have to fit.
    fields
        Meaning of the fields; None: events in Midstream's own form.
    schema
        Kind of each feature. None or empty: any features.
    labels
        Kind of the labels of a multiclass task; None: that of the first label.
    max_record_bytes
        Longest record that is decoded; longer ones are rejected.

    Attributes
    ----------
    notation
        How values are written. The decoders share it, and record in it the time units detected.
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
        """Return a new decoder of JSON Lines, or of CSV with this header; see `make_decoder`."""
        return make_decoder(self.task, self.fields, csv, self.schema, self.notation)

    @cached_property
    def tables(self) -> "TableDecoder":
        """The decoder of Arrow and Parquet, as made by `make_table_decoder`."""
        return make_table_decoder(self.task, self.fields, self.schema, self.notation)
