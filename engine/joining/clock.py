"""Event time: a clock for each input partition, and the clock of the join."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from midstream.engine.events.event import FloatArray

__all__ = ["Clocks"]

_JUMP = 86_400.0  # a record further ahead than this is doubted
_CONFIRM = 100  # doubted records in a row after which the clock follows


class Clocks:
    """The greatest event time of each partition. The join's clock is the lowest of them.

    A partition that is more than `idle` seconds behind the greatest does not count. The clock of
    the join never goes back. A record more than a day ahead of its partition's clock does not move
    it, unless 100 such records come in a row: one wrong time must not expire all that waits.
    """

    def __init__(self, idle: float) -> None:
        self.idle = idle
        self.now = -math.inf
        self._marks: dict[str, float] = {}
        self._doubted: dict[str, list[float]] = {}  # [count, lowest time] of doubted records

    def copy(self) -> "Clocks":
        """Return an independent copy."""
        new = Clocks(self.idle)
        new.now = self.now
        new._marks = dict(self._marks)
        new._doubted = {name: list(each) for name, each in self._doubted.items()}
        return new

    def advance(self, partition: str, times: FloatArray | None, n: int) -> FloatArray:
        """Take the times of n records of a partition; return (n,) times of the join after each.

        Parameters
        ----------
        times
            (n,) event times, NaN for none; None: no record has one.
        """
        if times is None or not n:
            return np.full(n, self.now)
        mark = self._marks.get(partition, -math.inf)
        known = np.where(np.isnan(times), -math.inf, times)
        marks = np.maximum.accumulate(np.maximum(known, mark))
        before = np.concatenate(([mark], marks[:-1]))
        jumps = (before > -math.inf) & (marks > before + _JUMP)
        if jumps.any() or partition in self._doubted:
            marks = self._one_by_one(partition, known.tolist(), mark)
        if marks[-1] == -math.inf:
            return np.full(n, self.now)
        self._marks[partition] = float(marks[-1])
        others = [m for name, m in self._marks.items() if name != partition]
        most = np.maximum(marks, max(others, default=-math.inf))
        lowest = np.where(marks >= most - self.idle, marks, math.inf)
        for other in others:
            lowest = np.minimum(lowest, np.where(other >= most - self.idle, other, math.inf))
        now = np.maximum.accumulate(np.maximum(lowest, self.now))
        self.now = float(now[-1])
        return now

    def _one_by_one(self, partition: str, times: list[float], mark: float) -> FloatArray:
        doubted = self._doubted.pop(partition, [0, math.inf])
        marks = []
        for time in times:
            if time <= mark + _JUMP or mark == -math.inf:
                mark = max(mark, time)
                doubted = [0, math.inf] if time > -math.inf else doubted
            else:
                doubted = [doubted[0] + 1, min(doubted[1], time)]
                if doubted[0] >= _CONFIRM:
                    mark, doubted = doubted[1], [0, math.inf]
            marks.append(mark)
        if doubted[0]:
            self._doubted[partition] = doubted
        return np.array(marks)

    def state(self) -> dict[str, Any]:
        """Return everything that later times depend on: plain values."""
        return {
            "now": self.now,
            "marks": dict(sorted(self._marks.items())),
            "doubted": dict(sorted(self._doubted.items())),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], idle: float) -> "Clocks":
        """Build the clocks that `state` was taken from."""
        new = cls(idle)
        new.now = float(state["now"])
        new._marks = {str(name): float(mark) for name, mark in state["marks"].items()}
        new._doubted = {str(name): list(each) for name, each in state["doubted"].items()}
        return new
