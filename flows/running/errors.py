"""Why a run cannot begin or go on."""

from midstream.engine.basics.errors import ExpectedError

__all__ = ["AbandonedError", "FailingError", "RunError"]


class RunError(ExpectedError, RuntimeError):
    """A run that cannot begin or go on; one line for the operator."""


class FailingError(RunError):
    """The learner fails on more of what it gets than `model.error_limit` allows."""


class AbandonedError(RuntimeError):
    """Input could not be learned again for a command; with the shard opened anew, it is refused."""
