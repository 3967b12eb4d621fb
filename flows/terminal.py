"""What all commands share on the terminal: errors in one line, exit codes, JSON on request."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

__all__ = [
    "CONFIG",
    "CONFIG_OPTION",
    "FAILED",
    "JSON",
    "WRONG_USAGE",
    "one_line_errors",
    "print_json",
]

FAILED = 1
WRONG_USAGE = 2

CONFIG = click.argument("config", type=click.Path(path_type=Path))
CONFIG_OPTION = click.option(
    "--config",
    default="midstream.toml",
    show_default=True,
    metavar="CONFIG",
    type=click.Path(path_type=Path),
    help="The config of the model.",
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


@contextmanager
def one_line_errors(
    *, running: bool, as_json: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Turn what may go wrong into one line on standard error, and an exit code.

    With `as_json` standard output gets it too, as an object: whoever reads it finds one always.
    `tell` is called with it.
    """
    from midstream.connectors.files import InputError
    from midstream.engine.artifacts import ArtifactError, StoreError
    from midstream.engine.encoding import EncodingError
    from midstream.engine.journal import JournalError
    from midstream.engine.learner import LearnerError
    from midstream.engine.registry import RegistryError, UnknownVersionError
    from midstream.engine.shard import EventError, ResumeError
    from midstream.flows.locks import HeldError
    from midstream.flows.operations import OperationError
    from midstream.flows.rooms import RunError
    from midstream.flows.settings import ConfigError

    def fail(message: object, code: int) -> NoReturn:
        line = " ".join(str(message).splitlines()).encode(errors="backslashreplace").decode()
        tell(line)
        click.echo(f"midstream: {line}", err=True)
        if as_json:
            print_json({"error": line})
        sys.exit(code)

    try:
        yield
    except ConfigError as error:
        fail(error, WRONG_USAGE)
    except InputError as error:
        fail(error, FAILED if running else WRONG_USAGE)
    except (
        RunError,
        HeldError,
        JournalError,
        ResumeError,
        EventError,
        LearnerError,
        RegistryError,
        StoreError,
        ArtifactError,
        UnknownVersionError,
        OperationError,
        OSError,
    ) as error:
        fail(error, FAILED)
    except EncodingError as error:
        fail(f"the state cannot be saved or loaded: {error}", FAILED)
    except SystemExit as error:
        fail(f"the learner ended the run: {error!r}", FAILED)
    except Exception as error:
        if "MIDSTREAM_DEBUG" in os.environ:
            raise
        what = f"{type(error).__name__}: {error}"
        fail(f"internal error: {what} (MIDSTREAM_DEBUG=1 shows where)", FAILED)


def print_json(value: Any) -> None:
    """Print one JSON object; a number that is undefined is null."""
    click.echo(msgspec.json.encode(value).decode())
