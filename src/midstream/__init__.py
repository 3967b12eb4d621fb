"""Midstream: a streaming online-learning engine. Predict, score, then learn; exactly once."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.engine.caching import choose_cache

if TYPE_CHECKING:
    from midstream.engine.checks import check_learner
    from midstream.engine.events import Alarm, Event, EventBatch, Prediction, Rejected
    from midstream.engine.learner import Learner, RiverLearner
    from midstream.engine.replay import Reservoir
    from midstream.engine.trainer import Trainer
    from midstream.flows.versions import open_registry

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
    "open_registry",
]

_HOMES = {
    "open_registry": "flows.versions",
    "check_learner": "engine.checks",
    "Alarm": "engine.events",
    "Event": "engine.events",
    "EventBatch": "engine.events",
    "Prediction": "engine.events",
    "Rejected": "engine.events",
    "Learner": "engine.learner",
    "RiverLearner": "engine.learner",
    "Reservoir": "engine.replay",
    "Trainer": "engine.trainer",
}

choose_cache(Path(__file__).parent)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: River and numba take a second to import."""
    if name in _HOMES:
        return getattr(import_module(f"midstream.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("midstream")
    raise AttributeError(f"module 'midstream' has no attribute {name!r}")
