"""The input of a config, decoded: files or topics, a block at a time."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from midstream.connectors.codec import Decoded, Decoder, make_decoder, make_table_decoder
from midstream.connectors.inputs import FileInput, Work
from midstream.connectors.messages import MessageBlock, MessageDecoder
from midstream.connectors.records import TableBlock
from midstream.flows.settings import Settings
from midstream.flows.topics import Consumer, TopicInput, open_consumer, open_topic

if TYPE_CHECKING:
    from midstream.connectors.arrow_codec import TableDecoder

__all__ = ["IDLE", "Reader", "open_reader"]

IDLE = timedelta(milliseconds=50)
"""How long nothing is asked for after there was nothing."""
_BLOCK_BYTES = 128 * 1024  # what is made of a block still fits into a core's cache
_COLUMN_BLOCK_BYTES = 384 * 1024  # ... of columns, which take less room than objects


class Reader:
    """The input of a shard, decoded: iterate over (work, decoded) until nothing more is there.

    Parameters
    ----------
    part
        Only the partition (file) of this name; None: all of them.
    consumer, added
        From which a topic is read, and its partitions that were not there at first.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        until_eof: bool,
        part: str | None = None,
        consumer: Consumer | None = None,
        added: Collection[int] = (),
    ) -> None:
        self._settings = settings
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
        return make_table_decoder(settings.model.task, settings.input.fields, settings.features)

    @cached_property
    def _messages(self) -> MessageDecoder:
        settings = self._settings
        return MessageDecoder(
            settings.model.task,
            settings.input.fields,
            settings.features,
            settings.input.max_record_bytes,
        )

    def decode(self, work: Work) -> Decoded:
        """Decode a block into a batch and what of it is rejected."""
        if isinstance(work.block, TableBlock):
            return work.block.form.decode(work.block)
        name = work.block.partition
        if isinstance(work.block, MessageBlock):
            return self._messages.decode(work.block)
        if name not in self._decoders:
            self._decoders[name] = make_decoder(
                self._settings.model.task,
                self._settings.input.fields,
                self.input.csv_options(name),
                self._settings.features,
            )
        return self._decoders[name].decode(work.block)

    def __iter__(self) -> Iterator[tuple[Work, Decoded]]:
        while True:
            work = self.input.read(self.block_bytes)
            if work is not None:
                yield work, self.decode(work)
            elif self.input.ended:
                return
            else:
                time.sleep(IDLE.total_seconds())


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
