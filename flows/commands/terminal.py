"""What all commands share on the terminal: one-line errors, exit codes, JSON on request."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

import click
import msgspec

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.basics.masking import masked, masked_values
from midstream.engine.basics.read_only import error_text
from midstream.flows.process import apart_from_stdout

__all__ = [
    "CONFIG",
    "CONFIG_OPTION",
    "FAILED",
    "JSON",
    "WRONG_USAGE",
    "binary_output",
    "masked_output",
    "model_prints",
    "one_line_errors",
    "print_json",
]

FAILED = 1
WRONG_USAGE = 2

_FILE = click.Path(readable=False, path_type=Path)  # reading it reports what cannot be read
CONFIG = click.argument("config", type=_FILE)
CONFIG_OPTION = click.option(
    "--config",
    default="midstream.toml",
    show_default=True,
    metavar="CONFIG",
    type=_FILE,
    help="The config of the model.",
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


class _ToldError(SystemExit):
    """The end of the process, after its reason was reported."""


@contextmanager
def one_line_errors(
    *, running: bool, as_json: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Turn expected errors into one line on standard error, and an exit code.

    With `as_json` standard output gets the error too, so that its reader always finds an object.
    `tell` is called with it.
    """

    def fail(message: object, code: int) -> NoReturn:
        line = masked(" ".join(str(message).splitlines()))
        line = line.encode(errors="backslashreplace").decode()
        tell(line)
        click.echo(f"midstream: {line}", err=True)
        if as_json:
            print_json({"error": line})
        raise _ToldError(code)

    try:
        yield
    except _ToldError:
        raise
    except SystemExit as error:
        fail(f"the learner ended the run: {error!r}", FAILED)
    except Exception as error:
        if isinstance(error, ExpectedError):
            fail(f"{error.prefix}{error}", error.exit_code_running if running else error.exit_code)
        if isinstance(error, OSError):
            fail(error_text(error), FAILED)
        if "MIDSTREAM_DEBUG" in os.environ:
            raise
        what = f"{type(error).__name__}: {error}"
        fail(f"internal error: {what} (MIDSTREAM_DEBUG=1 shows where)", FAILED)


def print_json(value: Any) -> None:
    """Print one JSON object; undefined numbers become null, secrets are masked."""
    line = msgspec.json.encode(masked_values(msgspec.to_builtins(value))).decode()
    stream = sys.stdout
    click.echo(line, file=stream.stream if isinstance(stream, _Masked) else stream)


class _Masked:
    """A text stream that masks what is written to it; otherwise it acts as the wrapped stream."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def masked_output() -> Iterator[None]:
    """Mask everything written to standard output and standard error, by any writer.

    JSON bypasses this, since its numbers must stay numbers. `print_json` masks its texts.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Masked(streams[0]), _Masked(streams[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


@contextmanager
def binary_output() -> Iterator[BinaryIO]:
    """Give standard output for bytes; a model's prints do not reach it."""
    out = sys.stdout.buffer
    if not isinstance(out, io.BufferedWriter | io.FileIO):  # FileIO if unbuffered; else no file
        yield out
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(out.fileno()), "wb") as own:
        yield own


@contextmanager
def model_prints() -> Iterator[None]:
    """Redirect a model's prints, from Python or not, to standard error: they are no result."""
    with apart_from_stdout(), redirect_stdout(sys.stderr):
        yield
