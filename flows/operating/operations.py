"""Operations on a running model: the registry that they need, who gives them, and times."""

import datetime as dt
import getpass
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.registry.registry import Registry
from midstream.flows.claims.registry import open_registry
from midstream.flows.config.settings import Settings
from midstream.flows.logs import log

__all__ = ["OperationError", "moment", "opened", "operator", "utc"]

_TOO_LATE = 253_402_300_800.0  # seconds from 1970 to the year 10,000


class OperationError(ExpectedError, RuntimeError):
    """A request that cannot be carried out; one line for the operator. Nothing was changed."""


@contextmanager
def opened(
    settings: Settings, *, to_command: bool = False, to_write: bool = False
) -> Iterator[Registry]:
    """Open the existing registry of a config.

    Parameters
    ----------
    to_command
        Whether runs are to get commands, which none obeys if versions are switched off.
    to_write
        Whether to refuse a user who may only read; implied by `to_command`.
    """
    if to_command and not settings.versions.enabled:
        raise OperationError(
            f"{settings.file}: versions are switched off (versions.enabled = false): no run obeys "
            "commands"
        )
    registry = open_registry(settings)
    try:
        if to_command or to_write:
            registry.database.require_writing()
        if to_command and registry.versions() and not registry.shards():
            raise OperationError(
                f"{registry.database.place}: was made anew, and no run has entered its shards; "
                "commands can be given once `midstream run` was started"
            )
        if not registry.identity and registry.database.owner():
            log.info("no_state_here", model=settings.name, note="the model is found by its name")
        yield registry
    finally:
        registry.close()


def operator() -> str:
    """Return who gives a command: the account and the host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # the account has no name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def utc(at: float) -> str:
    """Format a time for operators."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def moment(text: str) -> float:
    """Return a time, ISO 8601 (UTC without a zone) or seconds since 1970, as seconds.

    Eight digits are a date, 20261125: no version is from 1970.

    Raises
    ------
    ValueError
        If the text is neither, or the time is not from 1970 to 9999.
    """
    try:
        at = math.nan if len(text) == len("YYYYMMDD") and text.isdecimal() else float(text)
    except ValueError:
        at = math.nan
    if math.isnan(at):
        when = dt.datetime.fromisoformat(text)
        at = when.replace(tzinfo=when.tzinfo or dt.UTC).timestamp()
    if not 0.0 <= at < _TOO_LATE:  # nan fails too
        raise ValueError(f"{text}: not from 1970 to 9999")
    return at
