"""Midstream: a streaming online-learning engine. Predict, score, then learn; exactly once."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midstream.engine.checks import check_learner
    from midstream.engine.events import Alarm, Event, EventBatch, Prediction, Rejected
    from midstream.engine.learner import Learner, RiverLearner
    from midstream.engine.replay import Reservoir
    from midstream.engine.trainer import Trainer

__all__ = [
    "Alarm",
    "Event",
    "EventBatch",
    "Learner",
    "Prediction",
    "Rejected",
    "Reservoir",
    "RiverLearner",
    "Trainer",
    "__version__",
    "check_learner",
]

_HOMES = {
    "check_learner": "checks",
    "Alarm": "events",
    "Event": "events",
    "EventBatch": "events",
    "Prediction": "events",
    "Rejected": "events",
    "Learner": "learner",
    "RiverLearner": "learner",
    "Reservoir": "replay",
    "Trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: River and numba take a second to import."""
    if name in _HOMES:
        return getattr(import_module(f"midstream.engine.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("midstream")
    raise AttributeError(f"module 'midstream' has no attribute {name!r}")
