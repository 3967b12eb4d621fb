"""What a kind of input is: how a config names it, how it is checked, and what opens it.

`midstream.flows.inputs.catalogue` has the table of kinds. A package adds its own by the entry-point
group ``midstream.inputs``; CONTRIBUTING.md has the steps.
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
    """What a process reads: opens the input of each of its shards.

    Attributes
    ----------
    numbered
        Whether the place of a partition in `partitions` never changes. It is then the number of its
        shard; else the state folder remembers which number each name was given.
    descriptors
        How many files the input of one shard holds open, where that is not a few for all shards.
    """

    numbered: ClassVar[bool] = False
    descriptors: int = 0

    @abstractmethod
    def partitions(self) -> list[str]:
        """Return the names of the partitions that are there now.

        Raises
        ------
        InputError
            If there is no input, or nobody says.
        """

    @abstractmethod
    def open(self, part: str | None, decoding: Decoding, *, added: bool = False) -> Input:
        """Return the input of one shard.

        Parameters
        ----------
        part
            Its only partition; None: all of them.
        decoding
            How records become events.
        added
            Whether the partition came after the state was begun, so that all of it is read.

        Raises
        ------
        InputError
            If it cannot be read.
        """

    def is_new(self, partition: str, known: Collection[str]) -> bool:
        """Whether a partition is none of those known, whatever these are called now."""
        return partition not in known

    def look(self, known: Collection[str]) -> list[str]:
        """Return the partitions besides those known that a restart would take up.

        Called every few seconds.

        Raises
        ------
        InputError
            If the input is gone, or is another one now.
        """
        del known
        return []

    def close(self) -> None:  # noqa: B027 not every source holds something
        """Let go of what the shards share. Their inputs are closed before."""


class InputKind(ABC):
    """A kind of input.

    Attributes
    ----------
    name
        What `input.kind` calls it.
    options
        The keys of ``[input.options]``, with types and defaults; None: it has none.
    partition, position
        What a partition of it, and a position in one, is called in messages.
    range_form
        How ranges of it are given to `--skip-range`.
    across_hosts
        Whether several hosts can share its shards: a name has the same number on all of them.
    of_kafka
        Whether it is read from the brokers that ``[kafka]`` names.
    whole
        Whether a partition is read from its beginning, and is there whole or not at all. Else its
        oldest records may be deleted, and only whoever keeps them knows how many.
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
        """Raise ConfigError if the config says what this kind of input does not allow.

        Parameters
        ----------
        reader
            Makes the errors: `reader.error(key, text)`, `reader.found(key, value, why)`.
        """
        self.check_options(settings, reader)

    def check_options(self, settings: Settings, reader: ConfigReader) -> None:
        """Raise ConfigError if ``[input.options]`` is not what `options` says."""
        given = settings.input.options
        if self.options is not None:
            reader.table(self.options, given, "input.options")
        elif given:
            raise reader.error("input.options", f"input of kind {self.name!r} has none")

    def options_of(self, settings: Settings) -> Any:
        """Return what ``[input.options]`` says, as `options`."""
        return msgspec.convert(settings.input.options, self.options, strict=False)

    @abstractmethod
    def identity(self, settings: Settings) -> str:
        """Return what the input is called: saved state of another input is not gone on from.

        It is the same on all hosts, and holds no secret.
        """

    def preflight(self, settings: Settings, *, until_eof: bool) -> None:  # noqa: B027 optional
        """Raise InputError or ConfigError for what can be known to be wrong before anything opens.

        Parameters
        ----------
        until_eof
            The end of the input is the end of the run; else it is followed, and may be empty yet.
        """

    def is_read_once(self, settings: Settings) -> bool:
        """Whether what is read is gone afterwards, so that only a run may read it."""
        del settings
        return False

    @abstractmethod
    def connect(self, settings: Settings, *, until_eof: bool) -> Source:
        """Return what opens the inputs of a process; `until_eof` as of `preflight`."""

    def partition_of(self, settings: Settings, text: str) -> str:
        """Return the partition that an operator names, as the journal calls it.

        Raises
        ------
        ValueError
            If it is none; the text says why.
        """
        del settings
        return text
