"""Which versions are kept, and why, and how much of the journals; the rest is removed.

Versions of the last day that go are reported, with the version kept instead (`recent`).

Setting a clock removes nothing: an age counts only as far as the clock and the order of versions
agree (`basics.clocks.ages`), so a time without versions does not count. To bound growth, versions
from more than twice as many distinct hours or days are old as well.
"""

import datetime as dt
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import sqlalchemy as sa

from midstream.engine.basics.clocks import DAY, HOUR, ages, set_back
from midstream.engine.registry.artifacts import Artifacts, ShardPart
from midstream.engine.registry.database import Database
from midstream.engine.registry.schema import (
    CANCELLED,
    COMMANDS,
    PARTS,
    PARTS_OF_VERSIONS,
    SAME,
    TAGS,
    VERSIONS,
    aliases,
)
from midstream.engine.shard.catalogue import names

__all__ = ["Retention"]

_ABANDONED = 7.0  # days after which a version that never became whole is removed


class Retention:
    """The rules that keep versions of a model.

    Parameters
    ----------
    database
        Holds their rows.
    artifacts
        Holds their files.
    """

    def __init__(self, database: Database, artifacts: Artifacts) -> None:
        self.database = database
        self.artifacts = artifacts
        self._ours = database.ours

    def kept(
        self, keep: int, days: float, now: float | None = None, *, hours: float = 0.0
    ) -> dict[int, list[str]]:
        """Return, for each complete version, why it is kept; it may go if there is no reason.

        Parameters
        ----------
        keep
            Number of newest versions that are kept.
        days
            Number of days for which the newest version of each day (UTC) is kept.
        hours
            Number of hours for which the newest version of each hour is kept.
        """
        now = time.time() if now is None else now
        with self.database.reading() as connection:
            return self._kept(connection, keep, days, now, hours)

    def _kept(
        self, connection: sa.Connection, keep: int, days: float, now: float, hours: float
    ) -> dict[int, list[str]]:
        every = connection.execute(self._made()).all()
        rows = [row for row in every if row.state == "complete"]
        reasons: dict[int, list[str]] = {row.version: [] for row in rows}
        for row in rows[max(len(rows) - keep, 0) :]:
            reasons[row.version].append(f"one of the last {keep}")
        for version, day in _lasts(every, now, days, DAY).items():
            reasons[version].append(day)
        tags = sa.select(TAGS.c.version, TAGS.c.tag).where(self._ours(TAGS))
        for row in connection.execute(tags.order_by(TAGS.c.tag)).all():
            if row.version in reasons:
                reasons[row.version].append(f"tagged {row.tag}")
        named = connection.execute(
            sa.select(COMMANDS.c.version, COMMANDS.c.before).where(
                self._ours(COMMANDS),
                COMMANDS.c.kind.in_(names(lambda kind: kind.replaces)),
                COMMANDS.c.dropped == "",
            )
        ).all()
        same = aliases(connection, self._ours(VERSIONS))
        for number in sorted({same.get(row.version, row.version) for row in named}):
            if number in reasons:
                reasons[number].append("was put live")
        for number in sorted({same.get(row.before, row.before) for row in named}):
            if number in reasons:
                reasons[number].append("was live before another was")
        for version, hour in _lasts(every, now, hours, HOUR).items():
            if not reasons[version]:
                reasons[version].append(hour)
        return reasons

    def _made(self) -> sa.Select[Any]:
        """Select all versions ever asked for, in that order."""
        columns = (VERSIONS.c.version, VERSIONS.c.created, VERSIONS.c.state)
        return sa.select(*columns).where(self._ours(VERSIONS)).order_by(VERSIONS.c.version)

    def prune(
        self, keep: int, days: float, now: float | None = None, *, hours: float = 0.0
    ) -> list[int]:
        """Remove the versions that nothing keeps; return them. A crash leaves no partial version.

        Raises
        ------
        RegistryError, StoreError
            If something cannot be removed; the next call continues.
        """
        now = time.time() if now is None else now
        with self.database.writing() as connection:
            reasons = self._kept(connection, keep, days, now, hours)
            gone = [version for version, why in reasons.items() if not why]
            every = connection.execute(self._made()).all()
            young = _young(every, now, _ABANDONED, DAY)
            gone += [
                row.version for row in every if row.state == "open" and row.version not in young
            ]
            connection.execute(
                sa.update(VERSIONS)
                .where(self._ours(VERSIONS), VERSIONS.c.version.in_(gone))
                .values(state="removing")
            )
        return self.clear()

    def clear(self) -> list[int]:
        """Finish removals that were begun; return the versions that had been complete, or open.

        Raises
        ------
        RegistryError, StoreError
            If something cannot be removed; the next call continues.
        """
        removed, swept = [], False
        for row in self.database.rows(
            sa.select(VERSIONS.c.version, VERSIONS.c.kind)
            .where(self._ours(VERSIONS), VERSIONS.c.state == "removing")
            .order_by(VERSIONS.c.version)
        ):
            version = row["version"]
            self.artifacts.claim(self.database.identity or "")
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
        """Return the versions of the last 24 hours among those that go, or went.

        By version, the next older one that stays, for a rollback instead; 0: there is none.
        """
        now = time.time() if now is None else now
        with self.database.reading() as connection:
            rows = connection.execute(self._made()).all()
        old = ages([row.created for row in rows], now, HOUR)
        found, older = {}, 0
        for row, age in zip(rows, old, strict=True):
            if row.version in gone:
                if age <= DAY:
                    found[row.version] = older
            elif row.state == "complete":
                older = row.version
        return found

    def _sweep(self) -> None:
        """Remove files of removed versions, written late by a process that then died."""
        rows = self.database.rows(
            sa.select(VERSIONS.c.version).where(self._ours(VERSIONS), VERSIONS.c.state == "removed")
        )
        gone = {row["version"] for row in rows}
        for version in self.artifacts.versions():
            if version in gone:
                self.artifacts.remove(version)

    def keep_from(self, shard: str, epoch: str, days: float, now: float | None = None) -> float:
        """Return the record from which to keep a shard's journal, for a rewind to a version.

        Parameters
        ----------
        days
            Versions older than this need no rewind.
        """
        now = time.time() if now is None else now
        with self.database.reading() as connection:
            young = _young(connection.execute(self._made()).all(), now, days, DAY)
        oldest = float("inf")
        for row in self.database.rows(
            PARTS_OF_VERSIONS.add_columns(PARTS.c.version).where(
                self._ours(PARTS),
                PARTS.c.shard == shard,
                VERSIONS.c.state.in_(["open", "complete"]),
            )
        ):
            if row["version"] not in young:
                continue
            saved = self.database.decoded(row["part"], ShardPart).saved
            if saved.epoch == epoch:
                oldest = min(oldest, saved.seq)
        return oldest


def _young(rows: Sequence[Any], now: float, count: float, period: float) -> set[int]:
    """Return the versions younger than `count` periods, from at most twice as many periods.

    Parameters
    ----------
    rows
        All versions, with `version` and `created`, in the order they were made.
    """
    most, labels = 2 * math.ceil(count), set()
    young = set()
    old = ages([row.created for row in rows], now, period)
    for row, age in zip(reversed(rows), reversed(old), strict=True):
        labels.add(row.created // period)
        if count and age <= count * period and len(labels) <= most + 1:
            young.add(row.version)
    return young


def _lasts(rows: Sequence[Any], now: float, count: float, period: float) -> dict[int, str]:
    """Return the complete versions that are the last of their hour or day, with the reason.

    The last version before a clock was set back counts, too; only the newest `count` of these.
    """
    young = _young(rows, now, count, period)
    period_of: Callable[[float], str] = _day if period == DAY else _hour
    whole = [row for row in rows if row.state == "complete"]
    last = {period_of(row.created): row.version for row in whole if row.version in young}
    found = {version: f"the last of {label}" for label, version in last.items()}
    back = set_back([row.created for row in rows])  # removed versions show it, too
    lost = [
        row.version
        for row, was in zip(rows, back, strict=True)
        if was and row.state == "complete" and row.version in young and row.version not in found
    ]
    for version in lost[-math.ceil(count) :] if count else ():
        found[version] = "the last before a clock was set back"
    return dict(sorted(found.items()))


def _hour(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H h")


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d")
