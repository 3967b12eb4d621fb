"""Processes of `midstream` that begin with everything imported: a server forks them.

Importing takes two seconds; a test starts several processes. Each is a process like any other: it
has its own descriptors, environment, folder and signals, and may be killed; only its interpreter is
not taken apart at the end, which takes half a second. What the interpreter or native code read when
they began cannot be changed any more: with an environment that has such a variable set otherwise,
or with options that are not known here, a process is started as always. So are those of tests that
are about the beginning and the end, which are marked `unforked`.

A supervisor (`run --processes`) has a fork server of its own, which is forked with it, and from
which its processes come: their parent is that server, and all else is as the supervisor asks.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["ForkServer", "ForkedPopen", "forks"]

_EARLY = (
    "PYTHON", "NUMBA", "LD_", "MALLOC", "OMP_", "OPENBLAS", "MKL_", "TZ", "LANG", "LC_", "XDG_",
    "HOME", "TMP", "TEMP",
)  # fmt: skip
_FOUR = 4  # bytes of a number
_DESCRIPTORS = 8  # most of a request
_MOST = 1 << 20  # bytes of a request
_MODULES = (
    "bytewax.run", "fsspec", "pyarrow.parquet", "river.forest", "river.naive_bayes", "sqlalchemy",
    "midstream.flows.cli", "midstream.flows.entry", "midstream.flows.running.shards",
    "midstream.flows.demo.demo",
    "midstream.flows.running.online", "midstream.flows.running.supervisor",
    "midstream.flows.operating.operations",
    "midstream.flows.commands.version_views",
    "midstream.flows.claims.registry", "midstream.connectors.kafka.journal",
    "fsspec.implementations.chained", "bytewax.operators", "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql",
)  # fmt: skip


class ForkServer:
    """A process that forks others on request, started with hash seed 0 when first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._environment = dict(os.environ, PYTHONHASHSEED="0")

    def suits(self, environment: dict[str, str]) -> bool:
        """Tell whether a process with this environment can be forked."""
        return _early(environment) == _early(self._environment)

    def fork(
        self, arguments: Sequence[str], folder: str, environment: dict[str, str],
        descriptors: dict[int, int], *, leads: bool = False,
    ) -> tuple[int, int]:  # fmt: skip
        """Fork a process; return its id, and a descriptor that its exit status will come from.

        `descriptors` has ours by the numbers that they get in the process, which `leads` a process
        group of its own or is in the server's.
        """
        what = [list(arguments), folder, environment, list(descriptors), leads]
        request = json.dumps(what).encode()
        status, given = os.pipe()
        with self._lock:
            self._begin()
            try:
                socket.send_fds(self._socket, [request], [*descriptors.values(), given])
            finally:
                os.close(given)
            told = self._socket.recv(_FOUR)
        if len(told) < _FOUR:
            os.close(status)
            raise RuntimeError("the fork server is gone")
        return int.from_bytes(told, "little"), status

    def _begin(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__)), str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=self._environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()


def _early(environment: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith(_EARLY)}


class ForkedPopen(subprocess.Popen):
    """A `Popen` whose process a fork server has made; the arguments are those of `midstream`."""

    server = ForkServer()
    _status = -1

    def _execute_child(self, *given):
        (args, _, _, _, _, folder, environment, _, _, _), pipes = given[:10], given[10:16]
        mine = (pipes[0], *pipes[3::2])
        descriptors = {i: i if fd == -1 else fd for i, fd in enumerate(mine)}
        self.pid, self._status = self._fork(args, str(folder), environment, descriptors, given)
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _fork(self, args, folder, environment, descriptors, _):
        return self.server.fork(args, folder, environment, descriptors)

    def _internal_poll(self, _deadstate: Any = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self.returncode is not None:
            return self.pid, 0
        if wait_flags & os.WNOHANG and not _ready(self._status):
            return 0, 0
        told = os.read(self._status, _FOUR)
        os.close(self._status)
        if len(told) < _FOUR:
            raise RuntimeError("the fork server is gone")
        return self.pid, int.from_bytes(told, "little")


def _ready(descriptor: int) -> bool:
    poll = select.poll()  # `select.select` takes no descriptor above 1,023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def forks(environment: dict[str, str]) -> bool:
    """Tell whether to fork a process with this environment: not with MIDSTREAM_TEST_FORK=0."""
    return os.environ.get("MIDSTREAM_TEST_FORK") != "0" and ForkedPopen.server.suits(environment)


# --- the server


class _Server:
    """Forks at the request of a `ForkServer`; its children end with the tests, if so wanted."""

    def __init__(self, control: socket.socket, *, kills: bool = True) -> None:
        self._control = control
        self._kills = kills
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}  # by pidfd: process, where its status goes

    def serve(self) -> list[str] | None:
        """Fork what is asked for; return in a child, with its arguments, and at the end."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                    continue
                request, descriptors, _, _ = socket.recv_fds(self._control, _MOST, _DESCRIPTORS)
                if not request:  # the tests are over, or were killed
                    for pid, _ in self._children.values() if self._kills else ():
                        os.kill(pid, signal.SIGKILL)
                    return None
                if self._fork(descriptors):
                    return self._become(json.loads(request), descriptors)

    def _fork(self, descriptors: list[int]) -> bool:
        """Fork; return whether this is the child."""
        pid = os.fork()
        if pid == 0:
            return True
        *passed, status = descriptors
        for descriptor in passed:
            os.close(descriptor)
        handle = os.pidfd_open(pid)
        self._children[handle] = pid, status
        self._poll.register(handle, select.POLLIN)
        self._control.send(pid.to_bytes(_FOUR, "little"))
        return False

    def _reap(self, handle: int) -> None:
        pid, status = self._children.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        _, code = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(status, code.to_bytes(_FOUR, "little"))
        os.close(status)

    def _become(self, request: Any, descriptors: list[int]) -> list[str]:
        """Make a child what it would be had it been started by itself."""
        arguments, folder, environment, numbers, leads = request
        for handle, (_, status) in self._children.items():
            os.close(handle)
            os.close(status)
        self._control.close()
        above = 1 + max(*numbers, *descriptors)  # out of the way of the numbers that are wanted
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        for number, descriptor in zip(numbers, moved[:-1], strict=True):
            os.dup2(descriptor, number)
        for descriptor in moved:
            os.close(descriptor)
        if leads:
            os.setpgid(0, 0)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return arguments


_WARM = {
    "binary": ("logistic", "[true, false]"),
    "multiclass": ("softmax", '["a", "b"]'),
    "regression": ("linear", "[1.5, 2.5]"),
}


def _warm_up() -> None:
    """Import what processes import later, and load compiled kernels."""
    for name in _MODULES:
        importlib.import_module(name)
    from midstream.flows.loading import load
    from midstream.flows.offline.evaluation import evaluate

    with tempfile.TemporaryDirectory() as folder:
        for task, (learner, labels) in _WARM.items():
            y = json.loads(labels)
            lines = [json.dumps({"x": {"a": i / 7, "b": i}, "y": y[i % 2]}) for i in range(40)]
            Path(folder, "events.jsonl").write_text("\n".join(lines) + "\n")
            config = Path(folder, "config.toml")
            config.write_text(
                f'[model]\nlearner = "{learner}"\ntask = "{task}"\n[input]\npath = "events.jsonl"\n'
            )
            evaluate(load(config))
    gc.collect()
    gc.freeze()


def _end_after(main: Callable[[], None]) -> None:
    """Call `main` and end the process as it asks for, without taking the interpreter apart.

    That would take longer than all the rest.
    """
    code: Any = 0
    try:
        main()
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


class _Supervised(ForkedPopen):
    """The process of a supervisor that was forked itself."""

    def __init__(self, command, **options):
        super().__init__(command[len(_COMMAND) :], **{"cwd": Path.cwd(), **options})

    def _fork(self, args, folder, environment, descriptors, given):
        passed = {number: number for number in given[4]}
        assert given[-1] == 0, "a group of its own"
        return self.server.fork(args, folder, environment, descriptors | passed, leads=True)


_COMMAND = [sys.executable, "-m", "midstream"]  # as a supervisor starts its processes


class _Forked(ForkServer):
    """A server that has been forked, not started: it lives as long as this process."""

    def __init__(self, control: socket.socket) -> None:
        super().__init__()
        self._socket = control

    def _begin(self) -> None:
        pass


def _supervise(arguments: list[str]) -> list[str]:
    """Fork a server for a supervisor's processes; return there and here, with the arguments."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
    if os.fork() == 0:
        mine.close()
        os.setpgid(0, 0)  # Ctrl-C is for the supervisor
        given = _Server(theirs, kills=False).serve()
        if given is None:
            os._exit(0)
        return given
    theirs.close()
    _Supervised.server = _Forked(mine)
    sys.modules["midstream.flows.running.supervisor"].subprocess = SimpleNamespace(
        Popen=_Supervised, DEVNULL=subprocess.DEVNULL
    )
    return arguments


def _main() -> None:
    _warm_up()
    place = Path(sys.modules["midstream"].__file__ or "").with_name("__main__.py")
    arguments = _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if arguments is None:
        return
    if "--processes" in arguments:
        arguments = _supervise(arguments)
    sys.argv = [str(place), *arguments]
    sys.orig_argv = [sys.executable, "-m", "midstream", *arguments]
    sys.path[0] = str(Path.cwd())
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    errors = "backslashreplace"
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors=errors, closefd=False)  # noqa: SIM115
    _end_after(sys.modules["midstream.flows.entry"].main)


if __name__ == "__main__":
    _main()
