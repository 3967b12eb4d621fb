"""Detects whether a process works on a shard, by beats that change.

Clocks of different hosts are never compared. Beats are stamped by the registry's own clock
(`Registry.clock`), so one look suffices to see a recent beat. That clock may be set too. So a beat
that looks old is looked at again: a change, timed by our monotonic clock, proves life.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from midstream.engine.registry.registry import ShardRow

if TYPE_CHECKING:
    from midstream.engine.registry.registry import Registry

__all__ = ["BEAT", "SILENT", "Pulses"]

BEAT = 2.0
"""Seconds between beats of a shard in the registry."""
SILENT = 4 * BEAT
"""Seconds without a beat after which a shard counts as not running."""
_AGAIN = BEAT + 1.0  # seconds until an old beat is looked at again


class _Beat(NamedTuple):
    run: str
    at: float
    until: float  # when it stops counting as alive, by our clock


class Pulses:
    """Observes the beats of shards repeatedly.

    Parameters
    ----------
    registry
        Provides its clock.
    again
        Seconds for which a shard with an old beat counts as running, to see whether it beats.
    clock
        Monotonic clock, in seconds.
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
        """Whether a process seems to work on a shard, by its row as just read."""
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
        """Return how long to observe; with a clock that cannot be set, an old beat means dead."""
        return -1.0 if age > 0 and self._registry.steady else self._again
