"""Inputs of one shard that are read in the order of event time, such as events and feedback."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from midstream.connectors.input import Decoded, Input, Work
from midstream.connectors.several import SeveralInputs
from midstream.engine.shard.journal import Cursor

__all__ = ["AlignedInputs"]


class _Pending(NamedTuple):
    work: Work
    decoded: Decoded
    begins: float

    @classmethod
    def of(cls, work: Work, decoded: Decoded) -> "_Pending":
        """Note when a block begins: -inf if no event has a time, so that it is taken at once."""
        times = decoded.batch.seconds
        known = np.zeros(0) if times is None else times[~np.isnan(times)]
        return cls(work, decoded, float(known[0]) if len(known) else -np.inf)


class AlignedInputs(SeveralInputs):
    """Reads the input whose next block begins earliest in event time.

    Where only one input has a block, that block comes next, so that a silent input holds up
    nothing.

    Parameters
    ----------
    inputs
        The inputs by name, the one that goes first at equal times before the others.
    exact
        Whether a block is cut where the next event of another input comes before the rest of it,
        and each input is waited for until it has ended. An input that cannot cut blocks is read
        record by record.
    decoded
        By input, what is done with its decoded blocks.
    """

    def __init__(
        self,
        inputs: Mapping[str, Input],
        *,
        exact: bool = False,
        decoded: Mapping[str, Callable[[Decoded], Decoded]] | None = None,
    ) -> None:
        super().__init__(inputs)
        self._exact = exact
        self._after_decoding = dict(decoded or {})
        self._pending: dict[str, _Pending] = {}
        self._decoded: deque[tuple[Work, Decoded]] = deque(maxlen=4)

    def read(self, max_bytes: int) -> Work | None:
        """Return the block that begins earliest."""
        for name, each in self._inputs.items():
            if name in self._pending:
                continue
            size = 1 if self._exact and not each.splits else max_bytes  # 1: a record at a time
            if (work := each.read(size)) is not None:
                self._take(work.span.partition, name)
                self._pending[name] = _Pending.of(work, self._decode(work))
        waits = self._exact and any(
            name not in self._pending and not each.ended for name, each in self._inputs.items()
        )
        if not self._pending or waits:
            return None
        names = [name for name in self._inputs if name in self._pending]
        name = min(names, key=lambda each: self._pending[each].begins)  # the first at equal times
        found = self._pending.pop(name)
        if self._exact:
            found = self._cut(name, found, [other for other in names if other != name])
        self._decoded.append((found.work, found.decoded))
        return found.work

    def _cut(self, name: str, found: _Pending, others: list[str]) -> _Pending:
        """Return the part of a block that comes before all other inputs; the rest stays."""
        batch = found.decoded.batch
        rank = list(self._inputs).index
        until = min(
            ((self._pending[other].begins, rank(other)) for other in others), default=(np.inf, 0)
        )
        at = next(
            (
                row
                for row, time in enumerate(batch.times or ())
                if row and time is not None and (time, rank(name)) > until
            ),
            None,
        )
        if at is None:
            return found
        offset = int(batch.offsets[at])
        parts = self._inputs[name].split(found.work, offset)
        if parts is None:
            return found
        rows = np.arange(len(batch))
        first, rest = (
            Decoded(
                batch.take(rows[(batch.offsets < offset) == before].tolist()),
                [r for r in found.decoded.rejected if (r.origin[2] < offset) == before],
            )
            for before in (True, False)
        )
        self._pending[name] = _Pending.of(parts[1], rest)
        return _Pending.of(parts[0], first)

    def decode(self, work: Work) -> Decoded:
        """Return the events of a block, which were decoded to see when it begins."""
        for known, decoded in self._decoded:
            if known is work:
                return decoded
        return self._decode(work)

    def _decode(self, work: Work) -> Decoded:
        decoded = super().decode(work)
        change = self._after_decoding.get(self._owner(work.span.partition))
        return decoded if change is None else change(decoded)

    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors; blocks of these partitions that were read ahead are dropped."""
        self._pending = {
            name: each
            for name, each in self._pending.items()
            if each.work.span.partition not in cursors
        }
        self._decoded.clear()
        super().rewind(cursors)

    @property
    def ended(self) -> bool:
        """Whether all inputs have ended, and everything was returned."""
        return not self._pending and super().ended
