"""Parts of versions that a shard made and the registry does not hold yet."""

import re

from midstream.engine.basics.storage import Storage, replace
from midstream.engine.state.snapshot import Snapshot, pack, unpack

__all__ = ["Outbox"]


class Outbox:
    """One shard's parts of versions, until they are in the registry. Writes are atomic.

    So a stream does not wait for the registry, and a part outlives the process that made it.

    Parameters
    ----------
    storage
        Where the parts are; other files there are ignored.
    """

    _NAME = re.compile(r"version-(\d{8})\.midstream\Z")

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def versions(self) -> list[int]:
        """Return the versions that have parts here."""
        matches = map(self._NAME.match, self._storage.names())
        return [int(m.group(1)) for m in matches if m]

    def write(self, version: int, snapshot: Snapshot) -> None:
        """Write a part; it replaces an earlier one of the same version."""
        replace(self._storage, self._name(version), pack(snapshot))

    def read(self, version: int) -> Snapshot:
        """Read a part.

        Raises
        ------
        SnapshotError
            If the part is damaged.
        """
        return unpack(self._storage.read(self._name(version)), self._name(version))

    def remove(self, version: int) -> None:
        """Remove a part."""
        self._storage.remove(self._name(version))

    @staticmethod
    def _name(version: int) -> str:
        return f"version-{version:08d}.midstream"
