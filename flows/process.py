"""Prepares a process (descriptors, signals, hash seed), and ends it.

It imports only the smallest modules of the standard library: as process 1 of a container, a process
ignores a signal until it has a handler.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

__all__ = [
    "STOPPING",
    "apart_from_stdout",
    "closed_descriptors",
    "end",
    "interruptible",
    "open_standard_descriptors",
    "say_unwritable",
    "start",
    "stop_signals",
]

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask for an orderly end."""
_CLOSED = "MIDSTREAM_CLOSED"  # environment variable kept over re-execution: "0,2"
_RUNS = {"run", "gateway"}  # commands that a signal ends in order, with exit code 0


def start(command: Callable[[], Any]) -> None:
    """Prepare this process, call `command`, and end the process with its exit code.

    If the hash seed is not fixed, the process re-executes itself: some learners depend on it.
    """
    open_standard_descriptors()
    _hear_signals()
    if "PYTHONHASHSEED" not in os.environ:
        os.environ["PYTHONHASHSEED"] = "0"
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # they wait until handlers are set again
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 ourselves again
    sys.exit(_ended(command))


def closed_descriptors() -> frozenset[int]:
    """Return which of the descriptors 0, 1 and 2 were closed when the process began."""
    return frozenset(int(text) for text in os.environ.get(_CLOSED, "").split(",") if text)


def open_standard_descriptors() -> None:
    """Open the closed ones of descriptors 0, 1 and 2 on /dev/null.

    Otherwise the files opened next, such as a journal, would get these numbers and receive all
    printed text.
    """
    closed = []
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            closed.append(str(number))
            descriptor = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 a number
    if closed:
        os.environ[_CLOSED] = ",".join(closed)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that end a run in order: all but ignored ones, as under nohup."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


def interruptible() -> None:
    """Let Ctrl-C interrupt from now on, as in Python by default."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def apart_from_stdout() -> Iterator[None]:
    """Redirect to standard error what native code and child processes print."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _hear_signals() -> None:
    """Exit on a signal, until a command sets its own handler."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    orderly = bool(words) and words[0] in _RUNS  # nothing has begun yet, so this is orderly

    def end(number: int, _: FrameType | None) -> None:
        os._exit(0 if orderly else 128 + number)

    for number in stop_signals():
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _ended(command: Callable[[], Any]) -> int | str:
    """Call a command and return its exit code; report an unwritable output in one line."""
    code: int | str | None = 0
    try:
        command()
    except SystemExit as ending:
        code = ending.code
    except OSError as error:
        code = 1
        say_unwritable(error)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError as error:
            code = code or 1
            if number == 1:
                say_unwritable(error)
            os.dup2(os.open(os.devnull, os.O_RDWR), number)  # else the exit flushes again
    return 0 if code is None else code


def end(code: int | str | None) -> NoReturn:
    """End the process at once, whatever threads still wait."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def say_unwritable(error: OSError) -> None:
    """Report in one line that standard output cannot be written."""
    with suppress(OSError):  # then there is no place to report it
        text = f"midstream: standard output cannot be written to: {error.strerror}\n"
        os.write(2, text.encode())
