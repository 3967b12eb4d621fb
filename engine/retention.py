"""Which versions are kept, and why, and how much of the journals; the rest is removed.

What goes of the last day is named, with what is kept in its place (`recent`).
"""

import datetime as dt
import time
from collections.abc import Collection

import sqlalchemy as sa

from midstream.engine.artifacts import Artifacts, ShardPart
from midstream.engine.commands import REPLACING, epoch_of
from midstream.engine.database import Database
from midstream.engine.schema import (
    CANCELLED,
    COMMANDS,
    PARTS,
    PARTS_OF_VERSIONS,
    SAME,
    TAGS,
    VERSIONS,
    aliases,
)

__all__ = ["Retention"]

_RECENT = 86_400.0  # seconds: what goes of them is named
_ABANDONED = 7 * 86_400.0  # seconds after which a version that never became whole is removed


class Retention:
    """What is kept of the versions of a model.

    Parameters
    ----------
    database
        Has their rows.
    artifacts
        Has their files.
    """

    def __init__(self, database: Database, artifacts: Artifacts) -> None:
        self.database = database
        self.artifacts = artifacts
        self._ours = database.ours

    def kept(
        self, keep: int, days: float, now: float | None = None, *, hours: float = 0.0
    ) -> dict[int, list[str]]:
        """Return, of every version that is whole, why it is kept; for nothing: it may go.

        Parameters
        ----------
        keep
            The newest so many are.
        days
            For so many days, so is the newest of each day (UTC).
        hours
            For so many hours, so is the newest of each hour.
        """
        now = time.time() if now is None else now
        with self.database.reading() as connection:
            return self._kept(connection, keep, days, now, hours)

    def _kept(
        self, connection: sa.Connection, keep: int, days: float, now: float, hours: float
    ) -> dict[int, list[str]]:
        rows = connection.execute(
            sa.select(VERSIONS.c.version, VERSIONS.c.created)
            .where(self._ours(VERSIONS), VERSIONS.c.state == "complete")
            .order_by(VERSIONS.c.version)
        ).all()
        reasons: dict[int, list[str]] = {row.version: [] for row in rows}
        for row in rows[max(len(rows) - keep, 0) :]:
            reasons[row.version].append(f"one of the last {keep}")
        lately = {_hour(row.created): row for row in rows if row.created >= now - hours * 3_600}
        newest = {_day(row.created): row for row in rows if row.created >= now - days * 86_400}
        for day, row in newest.items():
            reasons[row.version].append(f"the last of {day}")
        tags = sa.select(TAGS.c.version, TAGS.c.tag).where(self._ours(TAGS))
        for row in connection.execute(tags.order_by(TAGS.c.tag)).all():
            if row.version in reasons:
                reasons[row.version].append(f"tagged {row.tag}")
        named = connection.execute(
            sa.select(COMMANDS.c.version, COMMANDS.c.before).where(
                self._ours(COMMANDS), COMMANDS.c.kind.in_(REPLACING), COMMANDS.c.dropped == ""
            )
        ).all()
        same = aliases(connection, self._ours(VERSIONS))
        for number in sorted({same.get(row.version, row.version) for row in named}):
            if number in reasons:
                reasons[number].append("was put live")
        for number in sorted({same.get(row.before, row.before) for row in named}):
            if number in reasons:
                reasons[number].append("was live before another was")
        for hour, row in lately.items():
            if not reasons[row.version]:
                reasons[row.version].append(f"the last of {hour}")
        return reasons

    def prune(
        self, keep: int, days: float, now: float | None = None, *, hours: float = 0.0
    ) -> list[int]:
        """Remove the versions that nothing keeps; return which. A crash leaves no half of one.

        Raises
        ------
        RegistryError, StoreError
            If something cannot be removed; the next call goes on with it.
        """
        now = time.time() if now is None else now
        with self.database.writing() as connection:
            reasons = self._kept(connection, keep, days, now, hours)
            gone = [version for version, why in reasons.items() if not why]
            old = sa.and_(VERSIONS.c.state == "open", VERSIONS.c.created < now - _ABANDONED)
            connection.execute(
                sa.update(VERSIONS)
                .where(
                    self._ours(VERSIONS),
                    sa.or_(old, VERSIONS.c.version.in_(gone)),
                )
                .values(state="removing")
            )
        return self.clear()

    def clear(self) -> list[int]:
        """Remove what was begun to be removed; return which versions had been whole, or open.

        Raises
        ------
        RegistryError, StoreError
            If something cannot be removed; the next call goes on with it.
        """
        removed, swept = [], False
        for row in self.database.rows(
            sa.select(VERSIONS.c.version, VERSIONS.c.kind)
            .where(self._ours(VERSIONS), VERSIONS.c.state == "removing")
            .order_by(VERSIONS.c.version)
        ):
            version = row["version"]
            self.artifacts.remove(version)
            with self.database.writing() as connection:
                mine = (self._ours(VERSIONS), VERSIONS.c.version == version)
                connection.execute(
                    sa.update(VERSIONS).where(*mine).values(state="removed", manifest="")
                )
                connection.execute(
                    sa.delete(PARTS).where(self._ours(PARTS), PARTS.c.version == version)
                )
            swept = True
            if row["kind"] not in (SAME, CANCELLED):
                removed.append(version)
        if swept:
            self._sweep()
        return removed

    def recent(self, gone: Collection[int], now: float | None = None) -> dict[int, int]:
        """Return which of the versions that go, or went, are of the last 24 hours.

        By version, the next older one that stays, to which one can go back instead; 0: none does.
        """
        now = time.time() if now is None else now
        rows = self.database.rows(
            sa.select(VERSIONS.c.version, VERSIONS.c.created, VERSIONS.c.state)
            .where(self._ours(VERSIONS))
            .order_by(VERSIONS.c.version)
        )
        found, older = {}, 0
        for row in rows:
            if row["version"] in gone:
                if row["created"] >= now - _RECENT:
                    found[row["version"]] = older
            elif row["state"] == "complete":
                older = row["version"]
        return found

    def _sweep(self) -> None:
        """Remove what was written of a version after it was removed, by who was slow and died."""
        rows = self.database.rows(
            sa.select(VERSIONS.c.version).where(self._ours(VERSIONS), VERSIONS.c.state == "removed")
        )
        gone = {row["version"] for row in rows}
        for version in self.artifacts.versions():
            if version in gone:
                self.artifacts.remove(version)

    def keep_from(self, shard: str, epoch: str, newer_than: float) -> float:
        """Return the record that a shard's journal has to be kept from, to rewind to a version.

        Parameters
        ----------
        newer_than
            Seconds since 1970: an older version is not to be rewound to.
        """
        oldest = float("inf")
        for row in self.database.rows(
            PARTS_OF_VERSIONS.where(
                self._ours(PARTS),
                PARTS.c.shard == shard,
                VERSIONS.c.state.in_(["open", "complete"]),
                VERSIONS.c.created >= newer_than,
            )
        ):
            header = self.database.decoded(row["part"], ShardPart).header
            if epoch_of(header) == epoch:
                oldest = min(oldest, header["seq"])
        return oldest


def _hour(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H h")


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d")
