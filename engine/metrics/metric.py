"""Metrics of other packages, beside those that are compiled."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from midstream.engine.basics import plugins
from midstream.engine.events.event import Label, Task

__all__ = ["Metric", "make_metric", "metric_names"]


class Metric:
    """A metric of one's own: it sees every batch, in order, and is asked for its values.

    A subclass sets `tasks`, keeps what it counts in attributes of plain values or arrays, and
    defines `update` and `report`. It is declared as an entry point of the group
    ``midstream.metrics``, and named in ``metrics.names`` of a config. Its result must not depend on
    how the stream is cut into batches.
    """

    tasks: ClassVar[tuple[Task, ...]]

    def update(
        self,
        labels: Sequence[Label | None],
        values: Sequence[Label | None],
        probas: Sequence[Mapping[Label, float] | None],
    ) -> None:
        """Take n labels (None: none), predicted values, and probabilities by label."""
        raise NotImplementedError

    def report(self) -> dict[str, float]:
        """Return its values by view: "" is that over all events, ".window" and so on are others."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return everything that its later values depend on: plain values and arrays."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Metric":
        """Build the metric that `state` was taken from."""
        new = cls.__new__(cls)
        vars(new).update(state)
        return new


def metric_names(task: Task) -> list[str]:
    """Return the names of the metrics that packages declare for a task."""
    group = plugins.names("midstream.metrics")
    return [name for name in group if task in getattr(_class_of(name), "tasks", ())]


def make_metric(name: str, task: Task) -> Metric:
    """Return a new metric that a package declares.

    Raises
    ------
    ValueError
        If none declares it for this task.
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
