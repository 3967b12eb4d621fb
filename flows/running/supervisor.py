"""Runs several processes for one config, each with its own shards; replaces those that fail.

Shards exchange nothing, so each process is a whole run over its share, and replacing one does not
disturb the others. Learning and publishing remain exact: a process locks its shards, and whoever
takes over a journal fences off its earlier writer.
"""

import math
import mmap
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import msgspec

from midstream.flows.logs import log
from midstream.flows.process import stop_signals
from midstream.flows.running.counters import Summary
from midstream.flows.running.errors import RunError
from midstream.flows.running.shares import REPLACES, SESSION, Place, Share

__all__ = ["HANDOVER", "Deaths", "Marks", "Reporter", "supervise"]

HANDOVER = 20.0
"""Seconds that a process waits for its predecessor to release its shards."""

_TURN = 0.05  # seconds between checks of the processes
_START = 60.0  # ... within which a process has to report for the first time
_BEAT = 0.5  # ... between two reports of a process
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # ... before a process is restarted
_MARK = 4_096  # size in bytes of a place in shared memory
_LENGTH = struct.Struct("=I")
_DEATHS = 3  # at one place of the input, after which the process is not restarted
_GRACE = 30.0  # ... from the request to stop until it is enforced


class _Report(msgspec.Struct):
    """A process's report: its phase, and its counts since it was started."""

    at: str
    summary: dict[str, Any] = {}
    error: str = ""


class Marks:
    """The place of a process in the input, in memory shared with its supervisor.

    It survives the sudden death of the process.

    Parameters
    ----------
    descriptor
        Descriptor of a file that both have open.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, 2 * _MARK)

    @staticmethod
    def file() -> IO[bytes]:
        """Return a new file for marks, which is deleted when it is closed."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 the caller's
        file.truncate(2 * _MARK)
        return file

    @property
    def at(self) -> Place | None:
        """The place being learned now; None: none."""
        return self._read(0)

    @at.setter
    def at(self, place: Place | None) -> None:
        self._write(0, place)

    @property
    def fragile(self) -> Place | None:
        """The place where the previous process died."""
        return self._read(_MARK)

    @fragile.setter
    def fragile(self, place: Place | None) -> None:
        self._write(_MARK, place)

    def _read(self, start: int) -> Place | None:
        (length,) = _LENGTH.unpack_from(self._memory, start)
        if not length:
            return None
        data = self._memory[start + _LENGTH.size : start + _LENGTH.size + length]
        return msgspec.json.decode(data, type=Place)

    def _write(self, start: int, place: Place | None) -> None:
        _LENGTH.pack_into(self._memory, start, 0)  # half-written data is invisible
        data = b"" if place is None else msgspec.json.encode(place)
        if len(data) <= _MARK - _LENGTH.size:
            self._memory[start + _LENGTH.size : start + _LENGTH.size + len(data)] = data
            _LENGTH.pack_into(self._memory, start, len(data))


class Deaths:
    """Deaths of successive processes, and the place being learned at each."""

    def __init__(self) -> None:
        self.place: Place | None = None
        """The place common to the last deaths."""
        self._count = 0

    def add(self, place: Place | None) -> bool:
        """Record a death; return whether there were too many at one place."""
        common = None if place is None or self.place is None else self.place.common(place)
        self._count = self._count + 1 if common is not None else 1
        self.place = common or place
        return place is not None and self._count >= _DEATHS


class Reporter:
    """In a supervised process: reports progress, and stops if the supervisor is gone.

    Parameters
    ----------
    descriptor
        Descriptor of the inherited socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._reported_at = 0.0
        self._sending = threading.Lock()
        self._opening = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._report_opening, daemon=True).start()

    def beat(self, at: str, summary: Summary) -> None:
        """Report, unless a report was sent a moment ago."""
        now = time.monotonic()
        if at == "opening":  # requests to brokers and snapshots take an unknown time
            self._opening.set()
        else:
            self._opening.clear()
            if now - self._reported_at >= _BEAT:
                self._reported_at = now
                self._send(_Report(at, msgspec.to_builtins(summary)))

    def ended(self, summary: Summary) -> None:
        """Report the final counts."""
        self._opening.clear()
        self._send(_Report("ended", msgspec.to_builtins(summary)))

    def failed(self, reason: str) -> None:
        """Report the error that stops the process."""
        self._opening.clear()
        self._send(_Report("failed", error=reason))

    def _report_opening(self) -> None:
        while self._opening.wait():
            self._send(_Report("opening"))
            time.sleep(_BEAT)

    def _send(self, report: _Report) -> None:
        with self._sending, suppress(OSError):  # the supervisor is gone: `_listen` handles that
            self._socket.sendall(msgspec.json.encode(report) + b"\n")

    def _listen(self) -> None:
        with suppress(OSError):
            while self._socket.recv(1):
                pass
        log.warning("supervisor_gone", action="this process stops")
        os.kill(os.getpid(), signal.SIGTERM)


class _Worker:
    """One process, and its replacements.

    Parameters
    ----------
    number
        Its number among the processes of this host.
    command
        Starts the process; the arguments for reporting are appended.
    stall_seconds
        Seconds without a report after which the process is killed.
    session
        An id shared by the processes of one supervisor.
    ends
        Whether the process ends by itself, at the end of the input.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        stall_seconds: float,
        session: str,
        *,
        ends: bool,
    ) -> None:
        self.number = number
        self.summary = Summary()
        """Counts of all its processes. For killed ones, their last reports."""
        self.ended = False
        self._command = command
        self._stall_seconds = stall_seconds
        self._session = session
        self._replaces = False  # an earlier process of this number
        self._ends = ends
        self._pause = _SHORTEST_PAUSE
        self._restart_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._earlier = Summary()
        self._last = _Report("starting")
        self._asked_to_stop = False
        self._beaten_at = 0.0
        self._patience = 0.0
        self._stalled = False
        self._deaths = Deaths()
        self._file = Marks.file()
        self._marks = Marks(self._file.fileno())

    def look(self, *, stopping: bool) -> None:
        """Check the process: kill it if it stalls, restart it if it died, stop it if asked.

        Raises
        ------
        RunError
            If it ended with a reported error, or has died at this place of the input before:
            another would meet the same.
        """
        if self._process is None:
            if stopping:
                self.ended = True
            if not self.ended and time.monotonic() >= self._restart_at:
                self._start()
            return
        if stopping and not self._asked_to_stop:
            self._asked_to_stop = True
            self._process.terminate()
        self._hear()
        code = self._process.poll()
        if code is not None:
            self._hear()
            self._gone(code, stopping=stopping)
        elif time.monotonic() - self._beaten_at > self._patience:
            log.error(
                "process_stalled", process=self.number, pid=self._process.pid,
                seconds=self._patience, action="it is killed and replaced",
            )  # fmt: skip
            self._stalled = True
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kill the process; what it had not committed has no effect."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()
        self._file.close()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._said = b""
        self._last = _Report("starting")
        self._asked_to_stop = self._stalled = False
        self._marks.at, self._marks.fragile = None, self._deaths.place
        self._patience = max(self._stall_seconds, _START)  # until its first report
        self._beaten_at = time.monotonic()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            os.set_inheritable(self._file.fileno(), True)
            self._process = subprocess.Popen(  # noqa: S603 ourselves again
                [
                    *(*self._command, "--report-to", str(theirs.fileno())),
                    *("--marks", str(self._file.fileno())),
                ],
                stdin=None if self.number == 0 else subprocess.DEVNULL,
                stdout=sys.__stderr__,  # a learner's prints are no result
                pass_fds=[theirs.fileno(), self._file.fileno()],
                process_group=0,  # Ctrl-C is for the supervisor
                env={**os.environ, SESSION: self._session, REPLACES: str(int(self._replaces))},
            )
        self._replaces = True
        log.info("process_started", process=self.number, pid=self._process.pid)

    def _hear(self) -> None:
        while select.select([self._socket], [], [], 0)[0]:
            data = b""
            with suppress(ConnectionError):
                data = self._socket.recv(2**16)
            if not data:
                return
            *reports, self._said = (self._said + data).split(b"\n")
            self._beaten_at = time.monotonic()
            self._patience = self._stall_seconds
            for line in reports:
                self._last = msgspec.json.decode(line, type=_Report)
                if self._last.summary:
                    reported = _summary(self._last.summary)
                    self.summary = self._earlier.joined(reported)
                    if reported.events:
                        self._pause = _SHORTEST_PAUSE

    def _gone(self, code: int, *, stopping: bool) -> None:
        self._close()
        if self._last.at == "failed":
            raise RunError(f"process {self.number}: {self._last.error}")
        idle = not self._last.summary.get("digest")  # it had no shards
        if self._last.at == "ended" and (stopping or self._ends or idle):
            self.ended = True
            return
        self._earlier = msgspec.structs.replace(self.summary, seen=0)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if stopping:
            log.error("process_died", process=self.number, how=how)
            self.ended = True
            return
        if self._stalled:
            how = f"no report for {self._patience:g} s"
        if self._deaths.add(self._marks.at):
            raise RunError(
                f"process {self.number} died {_DEATHS} times ({how}) while it learned "
                f"{self._deaths.place}; all are stopped, and what was committed stays; mend the "
                "learner, or leave that out of the input"
            )
        log.error("process_died", process=self.number, how=how, again_in=self._pause)
        self._restart_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _close(self) -> None:
        self._process = None
        self._socket.close()


def _summary(fields: Mapping[str, Any]) -> Summary:
    """Return a process's counts; an undefined number was reported as null."""
    metrics = {k: math.nan if v is None else v for k, v in fields["metrics"].items()}
    return msgspec.convert({**fields, "metrics": metrics}, Summary)


def supervise(
    processes: int,
    host: Share,
    arguments: Sequence[str],
    *,
    stall_seconds: float,
    ends: bool = False,
) -> Summary:
    """Run a config in several processes until a signal, or until the end of the input.

    Parameters
    ----------
    processes
        Number of processes; those beyond the number of shards have nothing to do.
    host
        The shards of this host, of several hosts.
    arguments
        Arguments of the command line for each process; its share and the arguments for reporting
        are added.
    stall_seconds
        Seconds without a report after which a process is killed and replaced.
    ends
        Whether the processes end by themselves, at the end of the input.

    Returns
    -------
    Summary
        Of all processes. For a killed process it counts the last report, up to half a second
        earlier; `seen` and `digest` are exact.

    Raises
    ------
    RunError
        If a process ended with an error; the others were then stopped in order.
    """
    shares = [Share(host.first + host.of * i, host.of * processes) for i in range(processes)]
    begin = [sys.executable, "-m", "midstream", *arguments]
    session = secrets.token_hex(8)
    commands = [[*begin, "--process", f"{share.first + 1}/{share.of}"] for share in shares]
    workers = [
        _Worker(i, command, stall_seconds, session, ends=ends) for i, command in enumerate(commands)
    ]
    asked: list[float] = []  # when it was asked to stop
    failures: list[RunError] = []

    def handle(number: int, _: Any) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        asked.append(time.monotonic())

    old = {s: signal.signal(s, handle) for s in stop_signals()}
    begun = time.monotonic()
    try:
        while not all(worker.ended for worker in workers):
            for worker in workers:
                try:
                    worker.look(stopping=bool(asked))
                except RunError as error:
                    worker.ended = True
                    failures.append(error)
                    if not asked:
                        log.error("process_failed", reason=str(error), action="all are stopped")
                        asked.append(time.monotonic())
            if asked and time.monotonic() - asked[0] > _GRACE:
                raise RunError(f"a process did not stop within {_GRACE:g} s, and was killed")
            time.sleep(_TURN)
    finally:
        for worker in workers:
            worker.kill()
        for number, handler in old.items():
            signal.signal(number, handler)
    if failures:
        raise failures[0]
    summary = Summary()
    for worker in workers:
        summary = summary.joined(worker.summary)
    summary.seconds = summary.seconds or time.monotonic() - begun
    summary.close()
    return summary
