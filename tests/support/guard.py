"""Processes that do not outlive this one, however it ends: by return, by exception, by SIGKILL."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENDING_SECONDS = 10.0  # for a process that ends in good order


class Guard:
    """Starts processes, each in a group of its own, and has a watchdog that kills what is left.

    A `folder` given is removed in the end, also by the watchdog.
    """

    def __init__(self, folder: Path | None = None) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        self._watchdog = subprocess.Popen(
            command if folder is None else [*command, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._running: dict[subprocess.Popen, int] = {}

    def start(
        self, command: list[str], log: Path, *, ending: int = signal.SIGKILL, **options: Any
    ) -> subprocess.Popen:
        """Start a command; its output is appended to `log`, the options are for `Popen`.

        `ending` is the signal that it gets in the end, before SIGKILL.
        """
        with log.open("ab") as output:
            # The command itself begins once the watchdog knows of it: there is no gap.
            process = subprocess.Popen(
                ["sh", "-c", 'read -r go && exec "$@"', "sh", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        self._running[process] = int(ending)
        self._tell(f"+{process.pid}:{int(ending)}")
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(b"go\n")
        return process

    def signal(self, process: subprocess.Popen, number: int) -> None:
        """Send a signal to the process and to all that it started."""
        if process.returncode is None:  # not waited for yet: the id is still its own
            send(process.pid, number)

    def kill(self, process: subprocess.Popen) -> None:
        """SIGKILL, and wait for the end; a frozen process ends too."""
        if process.returncode is None:
            end(process.pid, signal.SIGKILL)
        if self._running.pop(process, None) is not None:
            self._tell(f"-{process.pid}")
        process.wait()

    def close(self) -> None:
        """End what still runs and remove the folder."""
        for process, ending in self._running.items():
            if process.returncode is None:
                end(process.pid, ending)
            process.wait()
        self._running.clear()
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait()

    def _tell(self, line: str) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(f"{line}\n".encode())
        self._watchdog.stdin.flush()


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the state of every process; nothing where there is no /proc."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, parent = path.read_bytes().rpartition(b")")[2].split()[:2]
            found[int(path.parent.name)] = int(parent), state.decode()
    return found


def below(leader: int) -> dict[int, str]:
    """Return the states of what a process started and of what those did, in whatever group.

    PostgreSQL gives each of its processes a group of its own. On a Mac only the group is known.
    """
    known, found = processes(), {leader: ""}
    while new := {p: s for p, (up, s) in known.items() if up in found and p not in found}:
        found |= new
    del found[leader]
    return found


def send(leader: int, number: int) -> None:
    """Send a signal to a process, its group, and all below it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
    done: set[int] = set()
    while new := below(leader).keys() - done:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        done |= new


def runs(pid: int) -> bool:
    """Tell whether a process has not ended; one that nobody waited for has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return processes().get(pid, (0, "R"))[1] not in "ZX"


def end(leader: int, ending: int) -> None:
    """End a process and all below it, by the signal given and SIGKILL for what is left then."""
    if ending != signal.SIGKILL:
        send(leader, signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, ending)
        limit = time.monotonic() + ENDING_SECONDS
        while runs(leader) and time.monotonic() < limit:
            time.sleep(0.01)
    send(leader, signal.SIGSTOP)  # from here on it starts no more, and waits for none
    for pid in below(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(state not in "ZX" for state in below(leader).values()):
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def watch(parent: int, folder: str | None) -> None:
    """Read "+PID:SIGNAL" and "-PID" from a pipe that ends when `parent` does; then end the rest.

    Not PR_SET_PDEATHSIG: that fires when the starting *thread* ends, and tests restart brokers
    from threads. It looks at its parent too, as a forked child may hold the pipe open.
    """
    leaders: dict[int, int] = {}
    while os.getppid() == parent:
        if select.select([0], [], [], 0.5)[0]:
            lines = os.read(0, 65536).decode().split()
            if not lines:
                break
            for line in lines:
                pid, _, ending = line[1:].partition(":")
                if line[0] == "+":
                    leaders[int(pid)] = int(ending)
                else:
                    leaders.pop(int(pid), None)
    for leader, ending in leaders.items():
        end(leader, ending)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
