"""Processes that do not outlive this one, however it ends: by return, by exception, by SIGKILL."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

# Reads "+PID" and "-PID" from a pipe that ends when this process does. Not PR_SET_PDEATHSIG: that
# fires when the starting *thread* ends, and tests restart brokers from threads. It looks at its
# parent too, as a forked child may hold the pipe open.
WATCHDOG = """
import os, select, shutil, signal, sys
parent, groups = int(sys.argv[1]), set()
while os.getppid() == parent:
    if select.select([0], [], [], 0.5)[0]:
        lines = os.read(0, 65536).decode().split()
        if not lines:
            break
        for line in lines:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
if len(sys.argv) > 2:
    shutil.rmtree(sys.argv[2], ignore_errors=True)
"""


class Guard:
    """Starts processes, each in a group of its own, and has a watchdog that kills what is left.

    A `folder` given is removed in the end, also by the watchdog.
    """

    def __init__(self, folder: Path | None = None) -> None:
        command = [sys.executable, "-I", "-S", "-c", WATCHDOG, str(os.getpid())]
        self._watchdog = subprocess.Popen(
            command if folder is None else [*command, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._running: set[subprocess.Popen] = set()

    def start(self, command: list[str], log: Path) -> subprocess.Popen:
        """Start a command; its output is appended to `log`."""
        with log.open("ab") as output:
            # The command itself begins once the watchdog knows of it: there is no gap.
            process = subprocess.Popen(
                ["sh", "-c", 'read -r go && exec "$@"', "sh", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.add(process)
        self._tell(f"+{process.pid}")
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(b"go\n")
        return process

    def signal(self, process: subprocess.Popen, number: int) -> None:
        """Send a signal to the process and to all that it started."""
        if process.returncode is None:  # not waited for yet: the id is still its own
            os.killpg(process.pid, number)

    def kill(self, process: subprocess.Popen) -> None:
        """SIGKILL, and wait for the end; a frozen process ends too."""
        self.signal(process, signal.SIGKILL)
        if process in self._running:
            self._running.remove(process)
            self._tell(f"-{process.pid}")
        process.wait()

    def close(self) -> None:
        """Kill what still runs and remove the folder."""
        for process in list(self._running):
            self.signal(process, signal.SIGKILL)
            process.wait()
        self._running.clear()
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait()

    def _tell(self, line: str) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(f"{line}\n".encode())
        self._watchdog.stdin.flush()
