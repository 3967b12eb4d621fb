"""The contract of an input kind: how a config names it, how it is checked, what opens it.

`midstream.flows.inputs.catalogue` has the table of kinds. A package adds its own through the
entry-point group ``midstream.inputs``. CONTRIBUTING.md lists the steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

import msgspec

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.input import Input
from midstream.flows.config.settings import Input as InputSection
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigReader

__all__ = ["InputKind", "Source"]


class Source(ABC):
    """Opens the input of each shard of a process.

    Attributes
    ----------
    numbered
        Whether the index of a partition in `partitions` never changes. It is then the number of its
        shard; else the state folder keeps the number of each name.
    descriptors
        Number of files that a shard's input holds open, if it is more than a few for all shards.
    """

    numbered: ClassVar[bool] = False
    descriptors: int = 0

    @abstractmethod
    def partitions(self) -> list[str]:
        """Return the names of the existing partitions.

        Raises
        ------
        InputError
            If the input does not exist, or does not answer.
        """

    @abstractmethod
    def open(self, part: str | None, decoding: Decoding, *, added: bool = False) -> Input:
        """Return the input of one shard.

        Parameters
        ----------
        part
            Its only partition; None: all of them.
        decoding
            How to decode records to events.
        added
            Whether the partition was added after the state was begun, so that all of it is read.

        Raises
        ------
        InputError
            If it cannot be read.
        """

    def is_new(self, partition: str, known: Collection[str]) -> bool:
        """Whether a partition is none of the known ones, even renamed."""
        return partition not in known

    def look(self, known: Collection[str]) -> list[str]:
        """Return new partitions that a restart would add.

        Called every few seconds.

        Raises
        ------
        InputError
            If the input is missing, or has been replaced.
        """
        del known
        return []

    def close(self) -> None:  # noqa: B027 not every source holds something
        """Release what the shards share, after their inputs were closed."""


class InputKind(ABC):
    """A kind of input.

    Attributes
    ----------
    name
        Name of the kind in `input.kind`.
    options
        The keys of ``[input.options]``, with types and defaults; None: there are none.
    partition, position
        Words for a partition, and for a position in one, in messages.
    range_form
        Form of its ranges in `--skip-range`.
    across_hosts
        Whether several hosts can share its shards: a name has the same number on all of them.
    of_kafka
        Whether it is read from the brokers in ``[kafka]``.
    whole
        Whether a partition is read from its beginning, and exists whole or not at all. Otherwise
        its oldest records may be deleted, and only the input knows how many.
    """

    name: ClassVar[str]
    options: ClassVar[type[msgspec.Struct] | None] = None
    partition: ClassVar[str] = "partition"
    position: ClassVar[str] = "line"
    range_form: ClassVar[str] = "PARTITION:FROM-TO"
    across_hosts: ClassVar[bool] = False
    of_kafka: ClassVar[bool] = False
    whole: ClassVar[bool] = True

    def recognises(self, source: InputSection) -> bool:
        """Whether an ``[input]`` without `kind` is of this kind."""
        del source
        return False

    def check(self, settings: Settings, reader: ConfigReader) -> None:
        """Raise ConfigError for settings that this kind of input does not allow.

        Parameters
        ----------
        reader
            Makes the errors: `reader.error(key, text)`, `reader.found(key, value, why)`.
        """
        self.check_options(settings, reader)

    def check_options(self, settings: Settings, reader: ConfigReader) -> None:
        """Raise ConfigError if ``[input.options]`` does not fit `options`."""
        given = settings.input.options
        if self.options is not None:
            reader.table(self.options, given, "input.options")
        elif given:
            raise reader.error("input.options", f"input of kind {self.name!r} has none")

    def options_of(self, settings: Settings) -> Any:
        """Return ``[input.options]`` as `options`."""
        return msgspec.convert(settings.input.options, self.options, strict=False)

    @abstractmethod
    def identity(self, settings: Settings) -> str:
        """Return the name of the input: state saved from another input is not resumed.

        It is the same on all hosts, and contains no secret.
        """

    def preflight(self, settings: Settings, *, until_eof: bool) -> None:  # noqa: B027 optional
        """Raise InputError or ConfigError for errors that can be found before anything is opened.

        Parameters
        ----------
        until_eof
            The run ends at the end of the input; else the input is followed, and may be empty.
        """

    def is_read_once(self, settings: Settings) -> bool:
        """Whether reading consumes the input, so that only a run may read it."""
        del settings
        return False

    @abstractmethod
    def connect(self, settings: Settings, *, until_eof: bool) -> Source:
        """Return the source of a process's inputs; `until_eof` as in `preflight`."""

    def partition_of(self, settings: Settings, text: str) -> str:
        """Return the name in the journal of a partition that an operator names.

        Raises
        ------
        ValueError
            If there is none; the text says why.
        """
        del settings
        return text
