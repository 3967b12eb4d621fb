"""A server that tests start, break and start again: one process on loopback, with its folder."""

import atexit
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from guard import Guard
from kafka_broker import free_ports

START_SECONDS = 90.0  # a start takes 1 to 3 s; on a machine that is busy with tests, more
TAKEN = "Address already in use"


class ServerError(RuntimeError):
    """A server could not be started; the message holds the end of its log."""


class LocalServer:
    """A process on a free port of 127.0.0.1; a subclass tells what runs and when it answers."""

    ending: int = signal.SIGKILL

    def __init__(self) -> None:
        self.port = 0
        self.folder = Path(tempfile.mkdtemp(prefix="midstream-server-"))
        self.log = self.folder / "server.log"
        self._guard: Guard | None = None
        self._process: subprocess.Popen | None = None
        self._before = 0  # the size of the log when the process was started
        self._frozen = False

    def prepare(self) -> None:
        """Do what is needed once, before the first start."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Return what `Popen` needs besides."""
        return {}

    def answers(self) -> bool:
        """Tell whether this process, not another on its port, does its work."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start on a free port, or the next if that is taken meanwhile; wait until it answers."""
        self._guard = Guard(self.folder)
        atexit.register(self.stop)
        self.prepare()
        ports = free_ports(10)
        while True:
            self.port = ports.pop()
            self._run()
            try:
                self._await()
            except ServerError:
                if not ports or TAKEN not in self.told():
                    raise
            else:
                return self

    @property
    def pid(self) -> int:
        """The process id; its process group has the same."""
        assert self._process is not None
        return self._process.pid

    def told(self) -> str:
        """Return what the log has from this process."""
        return self.log.read_bytes()[self._before :].decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL, to all its processes."""
        assert self._guard is not None
        assert self._process is not None
        self._frozen = False
        self._guard.kill(self._process)

    def freeze(self) -> None:
        """SIGSTOP, to all its processes: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self._frozen = False

    def restart(self) -> None:
        """Start again on the same port, killed first if it runs; wait until it answers."""
        self.kill()
        self._run()
        self._await()

    def heal(self) -> None:
        """Have it run and answer again, whatever was done to it."""
        assert self._process is not None
        if self._frozen:
            self.thaw()
        if self._process.poll() is None:
            self._await()
        else:
            self.restart()

    def stop(self) -> None:
        """End it, and remove its folder with all that it holds."""
        atexit.unregister(self.stop)
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        assert self._guard is not None
        self._before = self.log.stat().st_size if self.log.exists() else 0
        self._process = self._guard.start(
            self.command(), self.log, ending=self.ending, **self.options()
        )

    def _signal(self, number: int) -> None:
        assert self._guard is not None
        assert self._process is not None
        self._guard.signal(self._process, number)

    def _await(self) -> None:
        assert self._process is not None
        limit = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None:
                raise ServerError(self._tail(f"ended with code {self._process.returncode}"))
            if time.monotonic() > limit:
                raise ServerError(self._tail(f"did not answer within {START_SECONDS} s"))
            time.sleep(0.02)

    def _tail(self, what: str) -> str:
        name = type(self).__name__
        return "\n".join([f"{name} {what}; its log ends:", *self.told().splitlines()[-20:]])
