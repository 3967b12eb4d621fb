"""Errors that users can act on: their message is all that is printed."""

from typing import ClassVar

__all__ = ["ExpectedError"]


class ExpectedError(Exception):
    """What users can mend themselves: a command prints its message in one line, and no traceback.

    Attributes
    ----------
    exit_code
        Of a command that ends by it.
    exit_code_running
        Of a run that ends by it.
    prefix
        What is printed before the message.
    """

    exit_code: ClassVar[int] = 1
    exit_code_running: ClassVar[int] = 1
    prefix: ClassVar[str] = ""
