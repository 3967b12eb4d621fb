"""When the parts of a source are asked for input: at once where there is some, else now and then.

Bytewax would wait for a time of the wall clock. Were that set back meanwhile, by an hour, the
source would sleep for an hour, deaf to signals, too. So it may ask at any time, and we rest.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["ALWAYS", "Pace"]

_GROWTH = 1.25  # of a rest: what a run waits for at its end comes within milliseconds

ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
"""A time that every clock says is past."""


class Pace:
    """Has one thread rest while none of its parts has anything to do.

    Parameters
    ----------
    shortest, longest
        Seconds that a part rests: more from time to time, while it has nothing to do.
    clock
        Monotonic; seconds.
    sleep
        Rests so many seconds.
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
        self._resting = 0  # parts that were asked, one after the other, and are not due

    def join(self, part: str) -> None:
        """Take up a part."""
        self._due[part], self._pause[part] = 0.0, self._shortest

    def leave(self, part: str) -> None:
        """Forget a part that has ended."""
        self._due.pop(part, None)

    def rests(self, part: str) -> bool:
        """Whether a part is not to be asked yet. Where none is, sleep until one is."""
        if self._clock() >= self._due[part]:
            self._resting = 0
            return False
        self._resting += 1
        if self._resting >= len(self._due):
            self._resting = 0
            self._sleep(max(min(self._due.values()) - self._clock(), 0.0))
        return self._clock() < self._due[part]

    def asked(self, part: str, *, idle: bool) -> None:
        """Take note whether a part had something to do."""
        if not idle:
            self._due[part], self._pause[part] = 0.0, self._shortest
            return
        self._due[part] = self._clock() + self._pause[part]
        self._pause[part] = min(_GROWTH * self._pause[part], self._longest)
