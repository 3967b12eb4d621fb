"""What a shard has made of versions and nobody has taken to the registry yet."""

import re

from midstream.engine.basics.storage import Storage, replace
from midstream.engine.state.snapshot import Snapshot, pack, unpack

__all__ = ["Outbox"]


class Outbox:
    """One shard's parts of versions, each whole or not there, until they are in the registry.

    So a stream does not wait for the registry, and a part outlives the process that made it.

    Parameters
    ----------
    storage
        Where they are; other files in it are left alone.
    """

    _NAME = re.compile(r"version-(\d{8})\.midstream\Z")

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def versions(self) -> list[int]:
        """Return which versions there are parts of."""
        matches = map(self._NAME.match, self._storage.names())
        return [int(m.group(1)) for m in matches if m]

    def write(self, version: int, snapshot: Snapshot) -> None:
        """Write a part, which replaces an earlier one of the same version."""
        replace(self._storage, self._name(version), pack(snapshot))

    def read(self, version: int) -> Snapshot:
        """Read a part.

        Raises
        ------
        SnapshotError
            If it is damaged.
        """
        return unpack(self._storage.read(self._name(version)), self._name(version))

    def remove(self, version: int) -> None:
        """Forget a part."""
        self._storage.remove(self._name(version))

    @staticmethod
    def _name(version: int) -> str:
        return f"version-{version:08d}.midstream"
