"""User-defined parts of a trainer: each sees every batch and is saved with the model's state."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from midstream.engine.basics import plugins
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Alarm
from midstream.engine.state import encoding
from midstream.engine.state.changes import Change, differences
from midstream.engine.training.step import Step

__all__ = ["PREFIX", "Part", "PartError", "Unread", "load_part", "make_part", "part_names"]

PREFIX = "part."
"""Prefix of the names of these parts in a state."""


class PartError(ValueError):
    """A part cannot be made; the message names the part and the reason."""


class Part:
    """A user-defined part of a trainer, besides learner, metrics, drift and replay.

    A subclass keeps its counts in attributes (plain values, arrays or River's objects), sets
    `name`, and defines `observe`. A package declares it as an entry point of the group
    ``midstream.parts`` under that name. ``[parts.NAME]`` in a config enables it and holds its
    options.

    The result must depend only on the options and on the events, and not on how the stream is cut
    into batches: the state is the fold of the journal.

    Parameters
    ----------
    options
        Keyword arguments of the subclass, each with a default.
    """

    name: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        self.options = options

    def observe(self, batch: EventBatch, step: Step, position: int) -> Iterable[Alarm]:
        """Observe a batch that was predicted, scored and learned; return alarms.

        Parameters
        ----------
        step
            Predictions and losses, in the order of the batch.
        position
            Number of events before the batch.
        """
        raise NotImplementedError

    def report(self) -> dict[str, float]:
        """Return the current values by name; they are reported with the metrics."""
        return {}

    def definition(self) -> dict[str, Any]:
        """Return what defines the part, without what it has seen: plain JSON values."""
        return dict(self.options)

    def state(self) -> bytes:
        """Return everything that the next result depends on."""
        return encoding.encode(vars(self))

    @classmethod
    def from_state(cls, data: bytes) -> "Part":
        """Build the part that `data` was taken from.

        Raises
        ------
        ValueError
            If the state is damaged.
        """
        new = cls.__new__(cls)
        found = encoding.decode(data)
        if not isinstance(found, dict) or "options" not in found:
            raise ValueError(f"damaged state of the part {cls.name!r}")
        vars(new).update(found)
        return new

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return what differs from a saved definition, and the effect on what was seen."""
        return differences(self.name, old, self.definition(), effect="restarts")

    def amended(self, old: "Part") -> "Part":  # noqa: ARG002
        """Return this part, continued from `old`, another definition; by default it restarts."""
        return self


class Unread(Part):
    """A part that no installed package declares: its state is kept until dropped."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__()
        self.called = name
        self.data = data

    def state(self) -> bytes:
        """Return the bytes it was read from."""
        return self.data

    def observe(
        self,
        batch: EventBatch,  # noqa: ARG002
        step: Step,  # noqa: ARG002
        position: int,  # noqa: ARG002
    ) -> Iterable[Alarm]:
        """Raise, because the part's package is missing.

        Raises
        ------
        PluginError
            Always.
        """
        raise plugins.PluginError(plugins.missing("part", self.called, "midstream.parts"))


def part_names() -> list[str]:
    """Return the names of the parts that packages declare."""
    return plugins.names("midstream.parts")


def make_part(name: str, options: Mapping[str, Any]) -> Part:
    """Make a new part.

    Raises
    ------
    PartError
        If no package declares the part, or it cannot be made with these options.
    """
    kind = _kind(name)
    try:
        part = kind(**options)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PartError(f"the part {name!r} cannot be made: {reason}") from error
    return part


def load_part(name: str, data: bytes) -> Part:
    """Load the part that a state holds under `name`."""
    return _kind(name).from_state(data) if name in part_names() else Unread(name, data)


def _kind(name: str) -> type[Part]:
    if name not in part_names():
        there = ", ".join(part_names()) or "none"
        raise PartError(
            f"no package that is installed declares a part {name!r} (group midstream.parts); "
            f"there are: {there}"
        )
    kind = plugins.load("midstream.parts", name)
    if not (isinstance(kind, type) and issubclass(kind, Part)):
        raise plugins.PluginError(f"{name!r} of midstream.parts is no subclass of midstream.Part")
    return kind
