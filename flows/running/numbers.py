"""The numbers of shards, kept in the state folder for all processes and runs."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from midstream.engine.basics.storage import LocalStorage, replace
from midstream.flows.claims.locks import StateLocks
from midstream.flows.running.errors import RunError

__all__ = ["ShardNumbers"]

_PARTS, _AT_FIRST = "partitions.json", "partitions-at-first.json"
_MOST_SHARDS = 1_000


class ShardNumbers:
    """The numbers of the shards of a state.

    Parameters
    ----------
    state
        The state folder.
    locks
        The locks on it.
    """

    def __init__(self, state: Path, locks: StateLocks) -> None:
        self._state = state
        self._locks = locks

    def remembered(
        self, found: Sequence[str], is_new: Callable[[str, Collection[str]], bool]
    ) -> list[str]:
        """Return all partitions that ever were shards, each at its number.

        Parameters
        ----------
        found
            The partitions that exist now; new ones get the next numbers.
        is_new
            Whether a partition is none of the known ones.

        Raises
        ------
        RunError
            If there are too many.
        """
        folder = LocalStorage(self._state / "shards")
        with self._locks.alone():
            known: list[str] = []
            if folder.length(_PARTS) is not None:
                known = msgspec.json.decode(folder.read(_PARTS), type=list[str])
            parts = known + [name for name in found if is_new(name, known)]
            if len(parts) > _MOST_SHARDS:
                raise RunError(
                    f"{len(parts)} partitions (files) would be shards of their own; at most "
                    f"{_MOST_SHARDS} can be"
                )
            if parts != known:
                replace(folder, _PARTS, msgspec.json.encode(parts))
        folder.close()
        return parts

    def at_first(self, partitions: int) -> int:
        """Return the partition count when the state was begun; `partitions` is the current one.

        Raises
        ------
        RunError
            If the state is that of one model for all partitions.
        """
        folder = LocalStorage(self._state / "shards")
        with self._locks.alone():
            if folder.length(_AT_FIRST) is None:
                if (folder.folder / "000").exists():
                    raise RunError(
                        f"{folder.folder}: is the state of one model for all partitions; put "
                        "input.shards = 1 back, or start over with --fresh"
                    )
                replace(folder, _AT_FIRST, msgspec.json.encode(partitions))
            number = msgspec.json.decode(folder.read(_AT_FIRST), type=int)
        folder.close()
        return number
