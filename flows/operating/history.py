"""The history of a model: what was live in each shard, and when."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from midstream.engine.registry.registry import Registry
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import Done
from midstream.engine.shard.journal import Command

__all__ = ["LivePeriod", "epochs", "in_order", "last_replaced", "live_at", "live_version"]


class LivePeriod(msgspec.Struct):
    """What was live in a shard over a period.

    Attributes
    ----------
    version
        The version; 0: what the shard has learned from its beginning.
    since
        Start of the period, in seconds since 1970.
    command
        The command that began it; None for the beginning, whose `kind` is "start".
    kept
        The version that it was last saved as, if any.
    words
        All this in words for operators.
    paused
        When input was paused, by the time of the command; None: it was not. `pause` gives the
        reason and the operator.
    """

    version: int
    since: float
    command: int | None
    kind: str
    kept: int | None
    words: str
    paused: float | None = None
    pause: str = ""


def in_order(rows: Iterable[Done]) -> dict[str, list[Done]]:
    """Return what each shard did, in actual order, whatever its clock said.

    Within an epoch this is the order of its journal.
    """
    found: dict[str, dict[str, list[Done]]] = {}
    for row in rows:
        found.setdefault(row.shard, {}).setdefault(row.epoch, []).append(row)
    return {
        shard: [
            row
            for epoch in _epochs_in_order(by_epoch)
            for row in sorted(by_epoch[epoch], key=lambda row: row.seq)
        ]
        for shard, by_epoch in sorted(found.items())
    }


def _epochs_in_order(rows: Mapping[str, Sequence[Done]]) -> list[str]:
    """Return epochs in the order in which they began.

    Command numbers rise from epoch to epoch, and the current epoch is the last. Only an earlier
    epoch without commands is ordered by the clock.
    """
    begun, first = {}, {}
    for epoch, these in rows.items():
        begun[epoch] = min(
            (r.command.at for r in these if command_kind(r.kind).begins), default=0.0
        )
        ids = [row.command.id for row in these if row.command.id]
        if ids:
            first[epoch] = min(ids)
    ordered = sorted(first, key=lambda epoch: first[epoch])
    for epoch in sorted(set(rows) - set(first), key=lambda epoch: begun[epoch]):
        after = (i for i, other in enumerate(ordered) if begun[other] > begun[epoch])
        ordered.insert(next(after, len(ordered)), epoch)
    return sorted(ordered, key=lambda epoch: any(row.present for row in rows[epoch]))


def epochs(rows: Iterable[Done]) -> dict[str, str]:
    """Return the current epoch of each shard: the beginning that its model goes back to."""
    return {shard: these[-1].epoch for shard, these in in_order(rows).items()}


def live_at(
    rows: Iterable[Done],
    at: float = float("inf"),
    *,
    same: Mapping[int, int] = MappingProxyType({}),
) -> dict[str, LivePeriod | None]:
    """Return, by shard, what was live at a time; None: the shard had not begun.

    `same`: as in `Versions.same`.
    """
    found: dict[str, LivePeriod | None] = {}
    for shard, these in in_order(rows).items():
        live: LivePeriod | None = None
        paused: Command | None = None
        later = False  # the following commands concern a version not in effect at `at`
        for done in these:
            command, kind = done.command, command_kind(done.kind)
            if command.refused:
                continue
            if kind.makes_version:
                if live is not None and not later and command.at <= at:
                    live.kept = same.get(command.version, command.version)
            elif kind.pauses is not None:
                if command.at <= at:
                    paused = command if kind.pauses else None
            elif kind.begins or kind.replaces:
                paused = None if kind.begins else paused
                later = done.done_at is None or done.done_at > at
                if not later and done.done_at is not None:
                    live = LivePeriod(
                        version=command.version,
                        since=done.done_at,
                        command=command.id or None,
                        kind=done.kind,
                        kept=None,
                        words=kind.in_history(command),
                    )
        if live is not None and paused is not None:
            live.paused, live.pause = paused.at, ", ".join(filter(None, (paused.reason, paused.by)))
        found[shard] = live
    return found


def last_replaced(registry: Registry, rows: Iterable[Done]) -> dict[str, Done | None]:
    """Return, by shard, the command that last replaced its model with a version; None: none."""
    live: dict[str, Done | None] = {row.shard: None for row in registry.shards()}
    for shard, these in in_order(rows).items():
        for done in these:
            kind = command_kind(done.kind)
            if kind.begins:
                live[shard] = None
            elif kind.replaces and not done.command.refused:
                live[shard] = done
    return live


def live_version(registry: Registry) -> int | None:
    """Return the live version, as last saved, or the newest; None if there is none."""
    found = live_at(registry.deployments(), same=registry.same()).values()
    numbers = {live.kept or live.version for live in found if live is not None}
    rows = registry.versions()
    there = [row.version for row in rows if row.version in numbers]
    if len(numbers) == len(there) == 1:
        return there[0]
    return rows[-1].version if rows else None
