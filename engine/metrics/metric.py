"""User-defined metrics, beside the compiled ones."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from midstream.engine.basics import plugins
from midstream.engine.events.event import Label, Task

__all__ = ["Metric", "Unread", "make_metric", "metric_names"]


class Metric:
    """A user-defined metric: it sees every batch, in order, and reports its values.

    A subclass sets `tasks`, keeps its counts in attributes of plain values or arrays, and defines
    `update` and `report`. A package declares it as an entry point of the group
    ``midstream.metrics``; ``metrics.names`` of a config names it. The result must not depend on how
    the stream is cut into batches.
    """

    tasks: ClassVar[tuple[Task, ...]]

    def update(
        self,
        labels: Sequence[Label | None],
        values: Sequence[Label | None],
        probas: Sequence[Mapping[Label, float] | None],
    ) -> None:
        """Score n labels (None: no label), predicted values, and probabilities by label."""
        raise NotImplementedError

    def report(self) -> dict[str, float]:
        """Return the values by view: "" over all events; ".window" and so on for other views."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return everything that later values depend on: plain values and arrays."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Metric":
        """Build the metric that `state` was taken from."""
        new = cls.__new__(cls)
        vars(new).update(state)
        return new


class Unread(Metric):
    """A metric that no installed package declares: its state is kept until it is dropped."""

    def __init__(self, name: str, held: Mapping[str, Any]) -> None:
        self._name = name
        self._held = held

    def update(
        self,
        labels: Sequence[Label | None],  # noqa: ARG002
        values: Sequence[Label | None],  # noqa: ARG002
        probas: Sequence[Mapping[Label, float] | None],  # noqa: ARG002
    ) -> None:
        """Raise, because the metric's package is missing.

        Raises
        ------
        PluginError
            Always.
        """
        raise plugins.PluginError(plugins.missing("metric", self._name, "midstream.metrics"))

    def report(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return the state it was read from."""
        return dict(self._held)


def metric_names(task: Task) -> list[str]:
    """Return the names of the metrics that packages declare for a task."""
    group = plugins.names("midstream.metrics")
    return [name for name in group if task in getattr(_class_of(name), "tasks", ())]


def make_metric(name: str, task: Task) -> Metric:
    """Make a metric that a package declares.

    Raises
    ------
    ValueError
        If no package declares it for this task.
    """
    from midstream.engine.metrics.prequential import METRICS

    if name not in metric_names(task):
        allowed = ", ".join([*METRICS[task], *metric_names(task)])
        raise ValueError(f"no metric {name!r} for {task}; allowed: {allowed}")
    return _class_of(name)()


def _class_of(name: str) -> type[Metric]:
    found = plugins.load("midstream.metrics", name)
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise plugins.PluginError(
            f"{name!r} of midstream.metrics is no subclass of midstream.Metric"
        )
    return found
