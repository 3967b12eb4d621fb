"""Whether a process is at work on a shard, told by beats that change.

No clock of one host is compared with that of another. Beats are stamped by the registry's own
clock (`Registry.clock`), so that one look is enough to see that one has just come. That clock may
be set, too: what looks old is looked at again, whether it changes by our monotonic clock.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from midstream.engine.registry.registry import ShardRow

if TYPE_CHECKING:
    from midstream.engine.registry.registry import Registry

__all__ = ["BEAT", "SILENT", "Pulses"]

BEAT = 2.0
"""Seconds from one sign of life of a shard in the registry to the next."""
SILENT = 4 * BEAT
"""Seconds without a sign of life after which a shard is taken not to run."""
_AGAIN = BEAT + 1.0  # seconds until what looks old was looked at again


class _Beat(NamedTuple):
    run: str
    at: float
    until: float  # it is taken to be alive, by our clock


class Pulses:
    """Looks at the beats of shards, over and over.

    Parameters
    ----------
    registry
        Tells what its clock says.
    again
        Seconds for which one that looks old is taken to be at work, to see whether it beats.
    clock
        Monotonic; seconds.
    """

    def __init__(
        self,
        registry: "Registry",
        *,
        again: float = _AGAIN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._again = again
        self._clock = clock
        self._beats: dict[str, _Beat] = {}

    def running(self, row: ShardRow) -> bool:
        """Whether a process seems to be at work on a shard, by what was just read of it."""
        if not row.beat_at:  # it never did, or has stopped
            self._beats.pop(row.shard, None)
            return False
        now, known = self._clock(), self._beats.get(row.shard)
        if known is None:
            age = self._registry.clock() - row.beat_at
            left = SILENT - max(age, 0.0) if -BEAT <= age <= SILENT else self._again_of(age)
            known = self._beats[row.shard] = _Beat(row.run, row.beat_at, now + left)
        elif (known.run, known.at) != (row.run, row.beat_at):
            known = self._beats[row.shard] = _Beat(row.run, row.beat_at, now + SILENT)
        return now <= known.until

    def _again_of(self, age: float) -> float:
        """Return how long to look again; where the clock cannot be set, what is old is dead."""
        return -1.0 if age > 0 and self._registry.steady else self._again
