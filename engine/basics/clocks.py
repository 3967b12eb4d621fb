"""Clocks that are set: what a wall clock tells is a claim, and what follows from it is bounded.

Durations are told by the monotonic clock. Of times that were written down by wall clocks, perhaps
of other hosts, or before a clock was set, the order in which they were written tells which are
wrong. What cannot be taken back relies on an age only as far as both agree (`ages`).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

__all__ = ["DAY", "HOUR", "SLACK", "Ages", "WallClock", "ages", "by_then", "set_back", "steady"]

HOUR = 3_600.0
DAY = 86_400.0
SLACK = 1.0
"""Seconds by which two readings of clocks may differ without one having been set."""
_STOOD = DAY  # seconds after which a clock that was set ahead is believed


def steady() -> float:
    """Return seconds that no setting of the clock changes, those of a suspended host among them."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):  # not Linux
        return time.monotonic()


def ages(times: Sequence[float], now: float, period: float) -> list[float]:
    """Return how old things are at least, of when each was made, in the order of their making.

    The age is the lesser of two. By the clock: now less the time of making; of what was made in the
    future, the age of what came later. By the order: the sum of the steps from each to the next,
    and to now. A step back counts nothing, and neither does one of more than two periods: a clock
    was set, or nobody was there.

    Parameters
    ----------
    times
        Seconds since 1970, as the clocks said then.
    now
        The same, as ours says.
    period
        Seconds.

    Returns
    -------
    list of float
        Seconds, 0 or more.
    """
    found = [0.0] * len(times)
    passed, oldest, later = 0.0, 0.0, now
    for i in range(len(times) - 1, -1, -1):
        at = times[i]
        step = later - at
        if 0.0 < step <= 2 * period:
            passed += step
        oldest = max(oldest, now - at)
        found[i] = min(now - at if at <= now else oldest, passed)
        later = at
    return found


def set_back(times: Sequence[float]) -> list[bool]:
    """Return of each time whether the next is earlier: the clock was set back in between."""
    back = [later < at - SLACK for at, later in pairwise(times)]
    return [*back, False] if times else []


def by_then(times: Iterable[float], at: float, now: float) -> int:
    """Return how many of the first things had been made by a time, whatever clocks said.

    Of these, none was made later than `at` by its own clock, but for what is of the future even
    now, whose clock was wrong; and neither was the last.
    """
    count = 0
    for i, made in enumerate(times, start=1):
        if made <= at:
            count = i
        elif made <= now + SLACK:
            break
    return count


class WallClock:
    """A wall clock that is watched: when it is set, and what of it is to be relied on.

    Parameters
    ----------
    wall
        Seconds since 1970.
    steady
        Seconds that go on whatever is set.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._looked = wall(), steady()
        self._set: list[tuple[float, float]] = []  # when, and by how much
        self._untold = 0.0

    def look(self) -> float:
        """Return by how many seconds the clock was set since the last look; 0.0: it was not."""
        self._notice()
        by, self._untold = self._untold, 0.0
        return by

    def now(self) -> float:
        """Return the time by the clock, less what it was set ahead by within the last day."""
        self._notice()
        now, at = self._looked
        self._set = [each for each in self._set if at - each[0] < _STOOD]
        return now - max(sum(by for _, by in self._set), 0.0)

    def _notice(self) -> None:
        now, at = self._wall(), self._steady()
        by = (now - self._looked[0]) - (at - self._looked[1])
        self._looked = now, at
        if abs(by) > SLACK:
            self._set.append((at, by))
            self._untold += by


class Ages:
    """How long ago versions were asked for: by the monotonic clock, of those that we saw come.

    What was there before us is as old as the wall clock says; from then on the monotonic clock
    counts. One that is of the future is older than anything.

    Parameters
    ----------
    newest
        The last version that was there before us.
    """

    def __init__(
        self,
        newest: int,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady,
    ) -> None:
        self._newest, self._steady = newest, steady
        self._began = wall(), steady()
        self._came: dict[int, float] = {}

    def came(self, version: int) -> None:
        """Take note that a version is there."""
        if version > self._newest:
            self._came.setdefault(version, self._steady())

    def ahead(self, version: int, at: float) -> float:
        """Return by how many seconds a version from before us is of the future; else 0.0."""
        by = at - self._began[0]
        return by if 0 < version <= self._newest and by > SLACK else 0.0

    def of(self, version: int, at: float) -> float:
        """Return how many seconds ago a version was asked for, which says that it was at `at`.

        Version 0 stands for our beginning.
        """
        now = self._steady()
        if version > self._newest:
            self.came(version)
            return now - self._came[version]
        if version == 0:
            return now - self._began[1]
        if self.ahead(version, at):
            return float("inf")
        return max(self._began[0] - at, 0.0) + now - self._began[1]
