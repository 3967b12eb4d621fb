"""Clocks that may be set: a wall clock's time is a claim, and its consequences are bounded.

The monotonic clock measures durations. For times recorded by wall clocks, perhaps of other hosts or
before a clock was set, the order in which they were recorded shows which are wrong. Irreversible
actions rely on an age only as far as both agree (`ages`).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

__all__ = ["DAY", "HOUR", "SLACK", "Ages", "WallClock", "ages", "by_then", "set_back", "steady"]

HOUR = 3_600.0
DAY = 86_400.0
SLACK = 1.0
"""Seconds by which two clock readings may differ without a clock having been set."""
_STOOD = DAY  # seconds after which a clock that was set ahead is trusted


def steady() -> float:
    """Return seconds that setting a clock does not change; they include suspension of the host."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):  # not Linux
        return time.monotonic()


def ages(times: Sequence[float], now: float, period: float) -> list[float]:
    """Return the minimum ages of things from the times they were made, in order of making.

    The age is the lesser of two. By the clock: now minus the time of making; for a time in the
    future, the age of later things. By the order: the sum of the steps from each to the next, and
    to now. A step back, or one of more than two periods, counts nothing: a clock was set, or
    nothing ran.

    Parameters
    ----------
    times
        Seconds since 1970, by the clocks of that time.
    now
        Likewise, by the present clock.
    period
        Seconds.
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
    """Return, for each time, whether the next is earlier, so the clock was set back between."""
    back = [later < at - SLACK for at, later in pairwise(times)]
    return [*back, False] if times else []


def by_then(times: Iterable[float], at: float, now: float) -> int:
    """Return how many things, from the first on, had been made by a time, despite wrong clocks.

    The last of these was made by `at` according to its own clock. So were the others, unless their
    clock was wrong: their time is still in the future now.
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
    """A monitored wall clock: detects when it is set, and corrects for that.

    Parameters
    ----------
    wall
        Seconds since 1970.
    steady
        Monotonic seconds.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._looked = wall(), steady()
        self._set: list[tuple[float, float]] = []  # when, and by how much, it was set
        self._untold = 0.0

    def look(self) -> float:
        """Return the seconds by which the clock was set since the last call; 0.0: it was not."""
        self._notice()
        by, self._untold = self._untold, 0.0
        return by

    def now(self) -> float:
        """Return the clock's time, minus the amount it was set ahead within the last day."""
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
    """Ages of versions since they were asked for: by the monotonic clock if seen to arrive.

    Versions from before the start have their age by the wall clock at the start, and age by the
    monotonic clock since then. One with a time in the future counts as infinitely old.

    Parameters
    ----------
    newest
        The last version from before the start.
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
        """Note that a version has arrived."""
        if version > self._newest:
            self._came.setdefault(version, self._steady())

    def ahead(self, version: int, at: float) -> float:
        """Return the seconds by which an earlier version is in the future; else 0.0."""
        by = at - self._began[0]
        return by if 0 < version <= self._newest and by > SLACK else 0.0

    def of(self, version: int, at: float) -> float:
        """Return how many seconds ago a version was asked for; its own record says at `at`.

        Version 0 stands for the start.
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
