"""Decides when a source's parts are polled: at once after input, else from time to time.

Bytewax would wait for a wall-clock time. If the clock were set back by an hour, the source would
sleep for an hour and ignore signals. So Bytewax may always poll, and `Pace` does the waiting.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["ALWAYS", "Pace"]

_GROWTH = 1.25  # of a pause: what a run waits for at its end takes milliseconds

ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
"""A time in the past for every clock."""


class Pace:
    """Lets a thread sleep while none of its parts has anything to do.

    Parameters
    ----------
    shortest, longest
        Range of a part's pause in seconds; it grows while the part has nothing to do.
    clock
        Monotonic clock, in seconds.
    sleep
        Sleeps for a number of seconds.
    """

    def __init__(
        self,
        shortest: float,
        longest: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._shortest, self._longest = shortest, longest
        self._clock, self._sleep = clock, sleep
        self._due: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        self._resting = 0  # parts polled in a row that are not due

    def join(self, part: str) -> None:
        """Add a part."""
        self._due[part], self._pause[part] = 0.0, self._shortest

    def leave(self, part: str) -> None:
        """Remove a part that has ended."""
        self._due.pop(part, None)

    def rests(self, part: str) -> bool:
        """Whether a part is not due yet. If no part is due, sleep until one is."""
        if self._clock() >= self._due[part]:
            self._resting = 0
            return False
        self._resting += 1
        if self._resting >= len(self._due):
            self._resting = 0
            self._sleep(max(min(self._due.values()) - self._clock(), 0.0))
        return self._clock() < self._due[part]

    def asked(self, part: str, *, idle: bool) -> None:
        """Record whether a part had something to do."""
        if not idle:
            self._due[part], self._pause[part] = 0.0, self._shortest
            return
        self._due[part] = self._clock() + self._pause[part]
        self._pause[part] = min(_GROWTH * self._pause[part], self._longest)
