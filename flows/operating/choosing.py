"""Choose the version to go back to: by a time, or by the last drift."""

import time
from collections.abc import Iterable, Iterator, Mapping

from midstream.engine.basics.clocks import by_then
from midstream.engine.registry.registry import Drifted, Registry
from midstream.engine.registry.versions import VersionRow
from midstream.flows.operating.history import epochs, last_replaced
from midstream.flows.operating.operations import OperationError, utc

__all__ = ["before_drift", "before_time"]

_EPISODE = 900.0  # maximum seconds between alarms of the same drift


def before_time(registry: Registry, at: float) -> VersionRow:
    """Return the newest version made at or before a time, with no later-made one before it.

    So if a clock was set back, no version that was made later is returned.
    """
    there = [r for r in registry.versions() if r.manifest and not registry.is_foreign(r.manifest)]
    rows = there[: by_then([row.created for row in there], at, time.time())]
    if not rows:
        oldest = f"; the oldest is {there[0].version}, of {utc(there[0].created)}" if there else ""
        raise OperationError(f"there is no version of before {utc(at)}{oldest}")
    return rows[-1]


def before_drift(registry: Registry, margin: int) -> tuple[VersionRow, list[Drifted]]:
    """Return the newest version before the last drift, and the drift's alarms.

    Alarms in close succession are one drift. Only alarms since a version was last put live count,
    and only versions in the model's lineage. Detectors react late: a version precedes the drift if,
    for each shard that raised an alarm, it had seen at least `margin` events fewer.
    """
    rows = registry.deployments()
    live = {name: done for name, done in last_replaced(registry, rows).items() if done is not None}
    last = {shard: done.command.id for shard, done in live.items()}
    now = epochs(rows)
    alarms = _alarms_in_order(
        alarm
        for alarm in registry.alarms()
        if alarm.kind == "drift"
        and alarm.epoch == now.get(alarm.shard, alarm.epoch)
        and alarm.command >= last.get(alarm.shard, 0)
    )
    if not alarms:
        since = max((done.command.at for done in live.values()), default=0.0)
        told = f" since {utc(since)}, when a version was last put live" if since else ""
        raise OperationError(f"no drift was seen{told}; name a version, or use --before TIME")
    episode = [alarms[-1]]
    for alarm in reversed(alarms[:-1]):
        if episode[-1].at - alarm.at > _EPISODE:
            break
        episode.append(alarm)
    first = {alarm.shard: alarm.position for alarm in episode}  # the oldest of each shard
    for row in _lineage(registry, max((d.command.version for d in live.values()), default=0)):
        assert row.manifest is not None
        seen = {part.shard: part.saved.seen for part in row.manifest.shards}
        if all(seen.get(shard, 0) <= position - margin for shard, position in first.items()):
            return row, episode[::-1]
    raise OperationError(
        f"there is no version of at least {margin:,} events before the drift of "
        f"{utc(episode[-1].at)} (versions.drift_margin, --margin); name a version"
    )


def _alarms_in_order(alarms: Iterable[Drifted]) -> list[Drifted]:
    """Return alarms in the order in which they were raised.

    Within a shard, commands and positions determine the order. If its clock jumped back, earlier
    alarms are dated back too.
    """
    found = []
    at: dict[str, float] = {}
    for alarm in sorted(alarms, key=lambda each: (each.command, each.position), reverse=True):
        at[alarm.shard] = min(alarm.at, at.get(alarm.shard, alarm.at))
        found.append(alarm._replace(at=at[alarm.shard]))
    found.reverse()
    return sorted(found, key=lambda alarm: alarm.at)


def _lineage(registry: Registry, live: int) -> Iterator[VersionRow]:
    """Yield the versions in the model's lineage, newest first."""
    rows = {row.version: row for row in registry.versions()}
    heads = [v for v, row in rows.items() if _descends(rows, v, live)]
    at = max(heads, default=live)
    while at in rows:
        yield rows[at]
        at = rows[at].parent


def _descends(rows: Mapping[int, VersionRow], version: int, ancestor: int) -> bool:
    """Whether a version descends from another; every version descends from 0."""
    while version in rows and version != ancestor:
        version = rows[version].parent
    return ancestor in (version, 0)
