"""The input of a config, decoded: files or topics, a block at a time."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from midstream.connectors.decode.decoder import Decoder, make_decoder, make_table_decoder
from midstream.connectors.decode.notation import Notation
from midstream.connectors.files.input import FileInput
from midstream.connectors.input import Block, Decoded, TableBlock, Work
from midstream.connectors.kafka.consumer import Consumer
from midstream.connectors.kafka.input import TopicInput
from midstream.connectors.kafka.messages import MessageBlock, MessageDecoder
from midstream.engine.events.batch import EventBatch
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import nearest
from midstream.flows.inputs.topics import open_consumer, open_topic
from midstream.flows.logs import log

if TYPE_CHECKING:
    from midstream.connectors.decode.arrow_decoder import TableDecoder

__all__ = ["IDLE", "Reader", "open_reader", "without_labels"]

IDLE = timedelta(milliseconds=50)
"""How long nothing is asked for after there was nothing."""
_ENOUGH = 1_000  # events without a label, after which that is told
_BLOCK_BYTES = 256 * 1024  # what is made of a block still fits into a core's cache
_COLUMN_BLOCK_BYTES = 768 * 1024  # ... of columns, which take less room than objects


class Reader:
    """The input of a shard, decoded: iterate over (work, decoded) until nothing more is there.

    Parameters
    ----------
    part
        Only the partition (file) of this name; None: all of them.
    consumer, added
        From which a topic is read, and its partitions that were not there at first.
    wants_labels
        Whether to warn where no event has a label: its field may be called otherwise.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        until_eof: bool,
        part: str | None = None,
        consumer: Consumer | None = None,
        added: Collection[int] = (),
        wants_labels: bool = True,
    ) -> None:
        self._settings = settings
        self.notation = Notation(settings.input.fields, settings.model.labels)
        self._told: set[str] = set()
        fields = settings.input.fields
        self._label = None if fields is None or not wants_labels else fields.label
        self._unlabelled = 0
        self._near = ""
        self.block_bytes = _COLUMN_BLOCK_BYTES if settings.features else _BLOCK_BYTES
        self._decoders: dict[str, Decoder] = {}  # one each: a CSV file has a header of its own
        self.input: FileInput | TopicInput
        if consumer is not None:
            self.input = open_topic(settings, consumer, part, until_eof=until_eof, added=added)
            return
        self.input = FileInput(
            settings.input.path or "",
            settings.root,
            part=part,
            format_=settings.input.format,
            order=settings.input.order,
            until_eof=until_eof,
            max_record_bytes=settings.input.max_record_bytes,
            tables=lambda: self._tables,
        )

    @cached_property
    def _tables(self) -> "TableDecoder":
        settings = self._settings
        return make_table_decoder(
            settings.model.task, settings.input.fields, settings.features, self.notation
        )

    @cached_property
    def _messages(self) -> MessageDecoder:
        settings = self._settings
        return MessageDecoder(
            settings.model.task,
            settings.input.fields,
            settings.features,
            settings.input.max_record_bytes,
            self.notation,
        )

    def decode(self, work: Work) -> Decoded:
        """Decode a block into a batch and what of it is rejected."""
        decoded = self._decode(work)
        for unit in sorted(self.notation.units - self._told):
            self._told.add(unit)
            log.info("time_unit", taken=unit, why="by the size of the numbers, see input.fields")
        if self._label is not None:
            self._look_for_labels(decoded.batch)
        return decoded

    def _look_for_labels(self, batch: EventBatch) -> None:
        if batch.labelled:
            self._label = None
        elif len(batch):
            names = batch.dicts()[0] if batch.columns is None else batch.columns.names
            self._near = self._near or nearest(self._label or "", names)
            self._unlabelled += len(batch)
            if self._unlabelled >= _ENOUGH:
                self.tell_of_labels()

    def tell_of_labels(self) -> None:
        """Warn if no event had a label so far, and it has not been told; at the end, too."""
        if self._label is not None and self._unlabelled:
            log.warning(
                "no_labels", events=self._unlabelled, field=self._label,
                why=without_labels(self._label, self._near),
            )  # fmt: skip
            self._label = None

    def _decode(self, work: Work) -> Decoded:
        if isinstance(work.block, TableBlock):
            return work.block.form.decode(work.block)
        if isinstance(work.block, MessageBlock):
            return self._messages.decode(work.block)
        assert isinstance(work.block, Block)
        name = work.block.partition
        if name not in self._decoders:
            self._decoders[name] = make_decoder(
                self._settings.model.task,
                self._settings.input.fields,
                self.input.csv_options(name),
                self._settings.features,
                self.notation,
            )
        return self._decoders[name].decode(work.block)

    def __iter__(self) -> Iterator[tuple[Work, Decoded]]:
        while True:
            work = self.input.read(self.block_bytes)
            if work is not None:
                yield work, self.decode(work)
            elif self.input.ended:
                self.tell_of_labels()
                return
            else:
                time.sleep(IDLE.total_seconds())


def without_labels(field: str, near: str = "") -> str:
    """Say what it means that no event has a label; `near` as `nearest` gives it."""
    return (
        f"no event has a label in field {field!r}, so they are predicted only, and none is "
        f"learned{near or '; is the field called so?'}"
    )


@contextmanager
def open_reader(settings: Settings) -> Iterator[Reader]:
    """Read the whole input from its beginning to its present end, apart from any run.

    Raises
    ------
    InputError
        If it is not there.
    """
    consumer = None if settings.input.topic is None else open_consumer(settings)
    reader = Reader(settings, until_eof=True, consumer=consumer)
    try:
        if consumer is not None:
            reader.input.seek({})
        yield reader
    finally:
        reader.input.close()
        if consumer is not None:
            consumer.close()
