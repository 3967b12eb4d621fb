"""The definition of a config's state: its trainer, its input, and its shards."""

from midstream.engine.events.rules import label_of
from midstream.engine.joining.policy import Policy, PolicyError
from midstream.engine.state.changes import Change
from midstream.engine.training.parts import PartError, make_part
from midstream.engine.training.replay import Reservoir
from midstream.engine.training.trainer import Trainer
from midstream.flows.config.factory import make_model, model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.inputs.catalogue import kind_of

__all__ = ["change_fields", "make_trainer", "policy_of", "state_identity"]


def make_trainer(settings: Settings) -> Trainer:
    """Return a new trainer with the learner and everything else from the config.

    Raises
    ------
    ConfigError
        If the learner cannot be made, does not fit the task, or has an unset seed.
    """
    replay = settings.replay
    try:
        new = Trainer(
            make_model(settings),
            task=settings.model.task,
            metrics=settings.metrics.names,
            window=settings.metrics.window,
            fading=settings.metrics.fading,
            drift=settings.drift.options(),
            direction=settings.drift.direction,
            replay=Reservoir(replay.capacity, max_bytes=replay.max_bytes, seed=replay.seed),
            labels=settings.model.labels,
            modules=model_modules(settings),
            parts=[make_part(name, options) for name, options in settings.parts.items()],
            feedback=policy_of(settings),
        )
        # As restored from a snapshot: the order of a set depends on how it was built.
        return Trainer.from_state(new.state(), model_modules(settings))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        key = "parts" if isinstance(error, PartError) else "model.learner"
        if isinstance(error, PolicyError):
            key = error.key
        raise ConfigError(f"{settings.file}: {key}: {error}") from error


def policy_of(settings: Settings) -> Policy | None:
    """Return what is done with late labels, as the config says; None without [feedback].

    Raises
    ------
    BadValueError
        If the default label is none of the task.
    """
    feedback = settings.feedback
    if feedback is None:
        return None
    default = feedback.default_label
    return Policy(
        window=feedback.window_seconds,
        window_events=feedback.window_events,
        lateness=feedback.lateness_seconds,
        idle=feedback.idle_seconds,
        early=feedback.early_seconds,
        on_expiry=feedback.on_expiry,
        default=None if default is None else label_of(settings.model.task, default),
        default_weight=feedback.default_weight,
        repeats=feedback.repeats,
        corrections=feedback.corrections,
        correction_weight=feedback.correction_weight,
        method=feedback.method,
        wait=feedback.wait_seconds,
        remember=feedback.remember_seconds,
        negative_share=feedback.negative_share,
        max_events=feedback.max_events,
        max_bytes=feedback.max_bytes,
    )


def state_identity(settings: Settings) -> dict[str, str]:
    """Return the state's definition but the trainer: `source`, `shards` of `Shard.open`."""
    return {
        "source": kind_of(settings.input).identity(settings),
        "shards": "one for all" if settings.one_shard else "one for each partition",
    }


def change_fields(change: Change) -> dict[str, str]:
    """Return the log fields of a change of the state's definition."""
    fields = {"part": change.part, "what": change.what, "saved": change.before, "now": change.after}
    return fields | ({"effect": change.effect} if change.effect else {})
