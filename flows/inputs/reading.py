"""Reads the input of a config, decoded, a block at a time."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.input import Decoded, Input, Work
from midstream.engine.events.batch import EventBatch
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import nearest
from midstream.flows.inputs.feedback import connect
from midstream.flows.inputs.kind import Source
from midstream.flows.logs import log

__all__ = ["IDLE", "Reader", "oldest_positions", "open_reader", "without_labels"]

IDLE = timedelta(milliseconds=50)
"""Pause after a read without records."""
_ENOUGH = 1_000  # events without a label after which a warning is logged
_BLOCK_BYTES = 256 * 1024  # so that the result of a block fits into a core's cache
_COLUMN_BLOCK_BYTES = 768 * 1024  # ... of columns, which take less memory than objects


class Reader:
    """The decoded input of a shard: iterate over (work, decoded) until no more is available.

    Parameters
    ----------
    source
        The source of the process.
    part, added
        As in `Source.open`.
    wants_labels
        Whether to warn if no event has a label: its field may have another name.
    """

    def __init__(
        self,
        settings: Settings,
        source: Source,
        part: str | None = None,
        *,
        added: bool = False,
        wants_labels: bool = True,
    ) -> None:
        fields = settings.input.fields
        decoding = Decoding(
            settings.model.task,
            fields,
            settings.features,
            labels=settings.model.labels,
            max_record_bytes=settings.input.max_record_bytes,
        )
        self.notation = decoding.notation
        self._logged_units: set[str] = set()
        self._label = None if fields is None or not wants_labels else fields.label
        self._unlabelled = 0
        self._near = ""
        self.block_bytes = _COLUMN_BLOCK_BYTES if settings.features else _BLOCK_BYTES
        self.input: Input = source.open(part, decoding, added=added)

    def decode(self, work: Work) -> Decoded:
        """Decode a block to a batch and its rejected records."""
        decoded = self.input.decode(work)
        for unit in sorted(self.notation.units - self._logged_units):
            self._logged_units.add(unit)
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
                self.warn_without_labels()

    def warn_without_labels(self) -> None:
        """Warn once if no event had a label so far; also called at the end."""
        if self._label is not None and self._unlabelled:
            log.warning(
                "no_labels", events=self._unlabelled, field=self._label,
                why=without_labels(self._label, self._near),
            )  # fmt: skip
            self._label = None

    def __iter__(self) -> Iterator[tuple[Work, Decoded]]:
        while True:
            work = self.input.read(self.block_bytes)
            if work is not None:
                yield work, self.decode(work)
            elif self.input.ended:
                self.warn_without_labels()
                return
            else:
                time.sleep(IDLE.total_seconds())


def without_labels(field: str, near: str = "") -> str:
    """Return the warning that no event has a label; `near` as returned by `nearest`."""
    return (
        f"no event has a label in field {field!r}, so they are predicted only, and none is "
        f"learned{near or '; is the field called so?'}"
    )


@contextmanager
def open_reader(settings: Settings, *, wants_labels: bool = True) -> Iterator[Reader]:
    """Read the whole input from its beginning to its present end, outside any run.

    Raises
    ------
    InputError
        If it does not exist.
    """
    with closing(connect(settings, until_eof=True)) as source:
        reader = Reader(settings, source, wants_labels=wants_labels)
        with closing(reader.input):
            reader.input.seek({}, {})
            yield reader


def oldest_positions(settings: Settings) -> dict[str, int]:
    """Return the oldest position of each partition that can be read again.

    Raises
    ------
    InputError
        If the input does not exist, or does not answer.
    """
    with closing(connect(settings, until_eof=True)) as source:
        reader = Reader(settings, source)
        with closing(reader.input):
            return dict(reader.input.oldest())
