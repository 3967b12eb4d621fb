"""Errors that stop a run."""

from midstream.engine.basics.errors import ExpectedError

__all__ = ["AbandonedError", "FailingError", "RunError"]


class RunError(ExpectedError, RuntimeError):
    """A run that cannot begin or continue; one line for the operator."""


class FailingError(RunError):
    """The learner fails on a larger share of its events than `model.error_limit` allows."""


class AbandonedError(RuntimeError):
    """A replay for a command failed; the command is refused once the shard is reopened."""
