"""Errors that users can act on: their message is all that is printed."""

from typing import ClassVar

__all__ = ["ExpectedError"]


class ExpectedError(Exception):
    """An error that users can correct: a command prints its message on one line, no traceback.

    Attributes
    ----------
    exit_code
        Exit code of a command that it ends.
    exit_code_running
        Exit code of a run that it ends.
    prefix
        Text printed before the message.
    """

    exit_code: ClassVar[int] = 1
    exit_code_running: ClassVar[int] = 1
    prefix: ClassVar[str] = ""
