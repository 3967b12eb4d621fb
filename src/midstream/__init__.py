"""Midstream: a streaming online-learning engine. Predict, score, then learn; exactly once."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.engine.basics.caching import choose_cache

if TYPE_CHECKING:
    from midstream.connectors.checks import check_input
    from midstream.engine.events.batch import EventBatch
    from midstream.engine.events.event import Alarm, Event, Prediction, Rejected
    from midstream.engine.learners.checks import check_learner
    from midstream.engine.learners.learner import Learner, RiverLearner
    from midstream.engine.metrics.metric import Metric
    from midstream.engine.shard.commands import RefusedError
    from midstream.engine.shard.kinds import CommandKind
    from midstream.engine.training.parts import Part
    from midstream.engine.training.replay import Reservoir
    from midstream.engine.training.trainer import Trainer
    from midstream.flows.claims.registry import open_registry

__all__ = [
    "Alarm",
    "CommandKind",
    "Event",
    "EventBatch",
    "Learner",
    "Metric",
    "Part",
    "Prediction",
    "RefusedError",
    "Rejected",
    "Reservoir",
    "RiverLearner",
    "Trainer",
    "__version__",
    "check_input",
    "check_learner",
    "open_registry",
]

_HOMES = {
    "open_registry": "flows.claims.registry",
    "check_input": "connectors.checks",
    "check_learner": "engine.learners.checks",
    "Alarm": "engine.events.event",
    "Event": "engine.events.event",
    "EventBatch": "engine.events.batch",
    "Prediction": "engine.events.event",
    "Rejected": "engine.events.event",
    "Learner": "engine.learners.learner",
    "Metric": "engine.metrics.metric",
    "CommandKind": "engine.shard.kinds",
    "RefusedError": "engine.shard.commands",
    "Part": "engine.training.parts",
    "RiverLearner": "engine.learners.learner",
    "Reservoir": "engine.training.replay",
    "Trainer": "engine.training.trainer",
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
