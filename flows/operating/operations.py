"""Operations on a running model: plans commands, gives them and waits for the answers."""

import datetime as dt
import getpass
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Literal

import msgspec

from midstream.connectors.files.rotation import first_name
from midstream.connectors.input import NOT_THERE, InputError
from midstream.engine.basics.clocks import by_then
from midstream.engine.basics.errors import ExpectedError
from midstream.engine.registry.artifacts import Manifest
from midstream.engine.registry.registry import Drifted, Registry, ShardRow
from midstream.engine.registry.versions import VersionRow
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import JUST_MADE, Done, Order, main_of
from midstream.engine.shard.dataset import OTHERS
from midstream.engine.shard.journal import Command
from midstream.flows.claims.liveness import Pulses
from midstream.flows.claims.registry import open_registry
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.reading import oldest_positions
from midstream.flows.logs import log

__all__ = [
    "SILENT",
    "Answer",
    "OperationError",
    "Plan",
    "Stretch",
    "await_answers",
    "before_drift",
    "before_time",
    "epochs",
    "in_order",
    "left_of",
    "live_at",
    "live_version",
    "moment",
    "opened",
    "operator",
    "plan_for",
    "plan_replacing",
    "plan_rollback",
    "positions_of",
    "ranges_of",
    "utc",
]

SILENT = "it did not end, and has not been heard of for a while"
"""The reason in the `Answer` of a shard whose process was killed or is frozen."""
_AGAIN = 0.05
_FEWEST_DIGITS = 8  # digits required to name an identity
_EPISODE = 900.0  # maximum seconds between alarms of the same drift
_TOO_LATE = 253_402_300_800.0  # seconds from 1970 to the year 10,000


class OperationError(ExpectedError, RuntimeError):
    """A request that cannot be carried out; one line for the operator. Nothing was changed."""


@contextmanager
def opened(
    settings: Settings, *, to_command: bool = False, to_write: bool = False
) -> Iterator[Registry]:
    """Open the existing registry of a config.

    Parameters
    ----------
    to_command
        Whether runs are to get commands, which none obeys if versions are switched off.
    to_write
        Whether to refuse a user who may only read; implied by `to_command`.
    """
    if to_command and not settings.versions.enabled:
        raise OperationError(
            f"{settings.file}: versions are switched off (versions.enabled = false): no run obeys "
            "commands"
        )
    registry = open_registry(settings)
    try:
        if to_command or to_write:
            registry.database.require_writing()
        if to_command and registry.versions() and not registry.shards():
            raise OperationError(
                f"{registry.database.place}: was made anew, and no run has told it of its shards; "
                "commands can be given once `midstream run` was started"
            )
        if not registry.identity and registry.database.owner():
            log.info("no_state_here", model=settings.name, note="the model is found by its name")
        yield registry
    finally:
        registry.close()


def operator() -> str:
    """Return who gives a command: the account and the host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # the account has no name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def utc(at: float) -> str:
    """Format a time for operators."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def moment(text: str) -> float:
    """Return a time, ISO 8601 (UTC without a zone) or seconds since 1970, as seconds.

    Eight digits are a date, 20261125: no version is from 1970.

    Raises
    ------
    ValueError
        If the text is neither, or the time is not from 1970 to 9999.
    """
    try:
        at = math.nan if len(text) == len("YYYYMMDD") and text.isdecimal() else float(text)
    except ValueError:
        at = math.nan
    if math.isnan(at):
        when = dt.datetime.fromisoformat(text)
        at = when.replace(tzinfo=when.tzinfo or dt.UTC).timestamp()
    if not 0.0 <= at < _TOO_LATE:  # nan fails too
        raise ValueError(f"{text}: not from 1970 to 9999")
    return at


# --- what is live


class Stretch(msgspec.Struct):
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
        begun[epoch] = min((r.command.at for r in these if r.kind == "start"), default=0.0)
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
) -> dict[str, Stretch | None]:
    """Return, by shard, what was live at a time; None: the shard had not begun.

    `same`: as in `Versions.same`.
    """
    found: dict[str, Stretch | None] = {}
    for shard, these in in_order(rows).items():
        live: Stretch | None = None
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
                    live = Stretch(
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


# --- which version


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
    live = {name: done for name, done in _live(registry, rows).items() if done is not None}
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


def _live(registry: Registry, rows: Iterable[Done]) -> dict[str, Done | None]:
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


# --- what to do


class Plan(msgspec.Struct):
    """Commands not given yet, with a description of their effect.

    `warnings`: effects that the operator may not intend. `imports`: the name of another model, and
    the version of it to copy first (`taken_in`).
    """

    kind: str
    version: int
    orders: list[Order]
    words: list[str]
    warnings: list[str] = []
    imports: tuple[str, int] | None = None


def taken_in(registry: Registry, settings: Settings, plan: Plan) -> Plan:
    """Copy another model's version that a plan needs; return the plan for the copy."""
    if plan.imports is None:
        return plan
    name, version = plan.imports
    with _other(settings, name) as other:
        number = registry.take_in(other, version, f"version {version} of {name}")
    orders = [
        msgspec.structs.replace(o, version=number) if command_kind(o.kind).replaces else o
        for o in plan.orders
    ]
    return msgspec.structs.replace(plan, version=number, orders=orders)


@contextmanager
def _other(settings: Settings, name: str) -> Iterator[Registry]:
    """Open the registry of another model beside ours."""
    key = settings.versions.key
    other = Registry(
        settings.registry, settings.artifacts, name, key=None if key is None else key.encode()
    )
    try:
        yield other
    finally:
        other.close()


def _origin(registry: Registry, row: VersionRow, given: str) -> str:
    """Return the identity of a version's state if it is not ours; the operator has to name it.

    Raises
    ------
    OperationError
        If it is not named, or another one is.
    """
    assert row.manifest is not None
    theirs = row.manifest.identity
    if not registry.is_foreign(row.manifest):
        if given:
            raise OperationError(
                f"--from: found {given!r}; version {row.version} is of this model's own state, and "
                f"there is no other model {given!r}"
            )
        return ""
    if not given:
        raise OperationError(
            f"version {row.version} is of another state (identity {theirs[:12]}), from which this "
            f"model was taken over; `midstream restore {row.version} --from {theirs[:12]}` puts it "
            "in the place of the model all the same"
        )
    if len(given) < _FEWEST_DIGITS or not theirs.startswith(given):
        raise OperationError(
            f"--from: found {given!r}; version {row.version} is of the state {theirs[:12]}"
        )
    return theirs


def plan_replacing(
    registry: Registry,
    settings: Settings,
    kind: str,
    version: int,
    *,
    sources: Sequence[str] = (),
    ranges: Sequence[tuple[str, int, int]] = (),
    origin: str = "",
) -> Plan:
    """Plan to replace the model with a version, after checking that this is possible.

    `kind` is the name of a command that does that; what it leaves out are `sources` and `ranges`.
    `origin`: the version may belong to another state with this identity, or to another model with
    this name.

    Raises
    ------
    OperationError
        If it is impossible: the version is damaged, or belongs to another model or to other shards;
        or a rewind needs input or a journal that does not exist any more.
    UnknownVersionError, RegistryError, StoreError
        If the version does not exist or cannot be read.
    """
    from midstream.engine.shard.amending import unfit
    from midstream.flows.running.definition import make_trainer, state_identity

    name = origin if origin != settings.name and origin in registry.database.models() else ""
    if name:
        with _other(settings, name) as other:
            row, problems = other.version(version), other.problems(version)
    else:
        row, problems = registry.version(version), registry.problems(version)
    if problems:
        raise OperationError(
            f"version {version} cannot be used: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        )
    manifest = row.manifest
    assert manifest is not None
    state = manifest.identity if name else _origin(registry, row, origin)
    blank = make_trainer(settings)
    for part in manifest.shards:
        if changed := unfit(part.saved.definition, blank, **state_identity(settings)):
            raise OperationError(f"version {version} is of another model: {changed}")
    names = [shard.shard for shard in registry.shards()]
    if names != row.shards:
        raise OperationError(
            f"version {version} has {_shards(row.shards)}, and the model has {_shards(names)} now"
        )
    again = command_kind(kind).learns_all_again
    if again:
        _check_rewind(registry, settings, manifest)
        _check_ranges(settings, manifest, registry, ranges)
    order = Order(
        0,
        kind,
        version,
        "manual"
        + (f", version {version} of {name}" if name else "")
        + (f", from the state {state}" if state else ""),
        sources=tuple(sources),
        ranges=tuple(ranges),
        catch_up=settings.versions.catch_up_events,
        before=JUST_MADE,
        origin=state,
    )
    orders = [Order(0, "snapshot", reason=f"before {kind} to version {version}"), order]
    if again:
        reason = f"after {kind} to version {version}"
        orders.append(Order(0, "snapshot", reason=reason, cut="restored"))
    warnings = _unseen(registry, manifest, sources)
    if again:
        warnings += _warnings(manifest, sources)
    words = _words(settings, row, order)
    if name or state:
        of = f"of the model {name}" if name else "of the model as it was before it was taken over"
        words.insert(0, f"the version is {of}, of the state {state or '(none is told)'}")
    return Plan(kind, version, orders, words, warnings, (name, version) if name else None)


def plan_for(settings: Settings, order: Order) -> Plan:
    """Plan to give a command that needs no version."""
    words = command_kind(order.kind).words(order, kind_of(settings.input).position)
    return Plan(order.kind, 0, [order], words)


def plan_rollback(registry: Registry, settings: Settings) -> Plan:
    """Plan to return to what was live before a version was last put live.

    Commands that every answering shard refused changed nothing, and are skipped.

    Raises
    ------
    OperationError
        If no version was ever put live.
    """
    refused = _refused(registry.deployments())
    replaced = [
        order
        for order in registry.commands()
        if command_kind(order.kind).replaces and order.id not in refused
    ]
    if not replaced:
        raise OperationError("there is nothing to go back to: no version was ever put live")
    last = replaced[-1]
    if not last.before:
        raise OperationError(f"what was live before command {last.id} was not kept")
    return plan_replacing(registry, settings, "rollback", registry.standing(last.before))


def live_version(registry: Registry) -> int | None:
    """Return the live version, as last saved, or the newest; None if there is none."""
    found = live_at(registry.deployments(), same=registry.same()).values()
    numbers = {live.kept or live.version for live in found if live is not None}
    rows = registry.versions()
    there = [row.version for row in rows if row.version in numbers]
    if len(numbers) == len(there) == 1:
        return there[0]
    return rows[-1].version if rows else None


def _refused(rows: Iterable[Done]) -> set[int]:
    """Return the commands that every answering shard has refused."""
    refused: set[int] = set()
    done: set[int] = set()
    for row in rows:
        (refused if row.command.refused else done).add(row.command.id)
    return refused - done


def _words(settings: Settings, row: VersionRow, order: Order) -> list[str]:
    assert row.manifest is not None
    seen = sum(part.saved.seen for part in row.manifest.shards)
    return [
        f"{order.kind} {settings.name} to version {row.version} ({row.kind}, {row.reason}, "
        f"{utc(row.created)}, {seen:,} events), {_shards(row.shards)}",
        *command_kind(order.kind).words(order, kind_of(settings.input).position),
    ]


def _unseen(registry: Registry, manifest: Manifest, sources: Sequence[str]) -> list[str]:
    """Return the sources of which no event is known to have come since a version."""
    seen: set[str] = set()
    for row in registry.versions():
        if row.version > manifest.version and row.manifest is not None:
            seen |= row.manifest.data["since_parent"]["sources"].keys()
    for shard in registry.shards():
        seen |= set(msgspec.json.decode(shard.sources, type=list[str]))
    if OTHERS in seen:  # too many sources to list
        return []
    there = ", ".join(sorted(seen)[:10]) or "none"
    return [
        f"no event of source {source} was seen since version {manifest.version}, so that nothing "
        f"will be left out for it; sources that were seen: {there}"
        for source in sources
        if source not in seen
    ]


def _warnings(manifest: Manifest, sources: Sequence[str]) -> list[str]:
    """Return what a rewind does not undo, because the version itself has learned it."""
    learned = manifest.data["total"]["sources"]
    return [
        f"version {manifest.version} itself has learned {learned[source]:,} events of source "
        f"{source}, and keeps them: an older version may not have"
        for source in sources
        if learned.get(source)
    ]


def _shards(names: Sequence[str]) -> str:
    return f"{len(names)} shard{'s' * (len(names) != 1)} ({', '.join(names)})"


def _check_rewind(registry: Registry, settings: Settings, manifest: Manifest) -> None:
    """Raise OperationError if input since a version is known to be missing.

    What a shard has read since its last report is not known here; the shard checks again itself,
    before it changes anything.
    """
    rows = registry.deployments()
    begun = epochs(row for row in rows if row.kind == "start")
    for part in manifest.shards:
        if part.saved.epoch != begun.get(part.shard, ""):
            raise OperationError(
                f"version {manifest.version} is of before the model was begun anew (--fresh), and "
                "can only be restored without --rewind"
            )
    known = {p: c for part in manifest.shards for p, c in part.saved.cursors.items()}
    cursors = {partition: cursor.offset for partition, cursor in known.items()}
    # A file that came later was read whole; where a partition begins is not known here.
    whole = kind_of(settings.input).whole
    least = 0 if whole else NOT_THERE
    needed = {
        partition: cursors.get(partition, least)
        for partition, position in _read_up_to(registry, rows, manifest.version, begun).items()
        if position > cursors.get(partition, least)
    }
    if not needed:
        return
    try:
        oldest = oldest_positions(settings)
        gone = "it is gone"
    except InputError as error:
        if not whole:
            return  # no answer: the shards will check
        oldest, gone = {}, f"it is gone ({error})"
    for partition, position in needed.items():
        if partition == "-":
            raise OperationError(
                f"standard input cannot be learned again; without --rewind version "
                f"{manifest.version} can be restored"
            )
        # Only the shard knows where a rotated log is now.
        low = oldest.get(partition, oldest.get(first_name(partition)[0], NOT_THERE))
        if position < low:
            why = f"{gone}, and what came from {position} on is needed"
            if whole:  # a file exists whole or not at all
                line = known[partition].line if partition in known else 1
                why = f"{gone}, and what came from line {line} on is needed"
            elif low < NOT_THERE:
                why = f"the input begins at {low} now, and {position} is needed"
            raise OperationError(
                f"{partition}: what came after version {manifest.version} cannot be learned again: "
                f"{why}; without --rewind the version can be restored"
            )


def _read_up_to(
    registry: Registry, rows: Iterable[Done], version: int, begun: Mapping[str, str]
) -> dict[str, int]:
    """Return, by partition, how far it was read, as far as shards have reported.

    Parameters
    ----------
    version
        Reports before this version are ignored.
    begun
        The epochs that count, by shard.
    """
    found: dict[str, int] = {}

    def add(shard: str, epoch: str, positions: Mapping[str, int]) -> None:
        if epoch == begun.get(shard, ""):
            for partition, position in positions.items():
                found[partition] = max(position, found.get(partition, 0))

    for row in rows:
        add(row.shard, row.epoch, row.position)
    for newer in registry.versions():
        if newer.version > version and newer.manifest is not None:
            for part in newer.manifest.shards:
                saved = part.saved
                positions = {p: cursor.offset for p, cursor in saved.cursors.items()}
                add(part.shard, saved.epoch, positions)
    return found


def ranges_of(settings: Settings, texts: Sequence[str]) -> list[tuple[str, int, int]]:
    """Parse ranges TOPIC:PARTITION:FROM-TO, or FILE:FROM-TO (lines); both ends are included.

    Raises
    ------
    OperationError
        If a range does not have this form, or names another topic.
    """
    kind = kind_of(settings.input)
    allowed = f"allowed: {kind.range_form}"
    found = []
    for text in texts:
        match = re.fullmatch(r"(.+):(\d+)-(\d+)", text)
        if match is None or int(match[2]) > int(match[3]):
            raise OperationError(f"--skip-range: found {text!r}; {allowed}")
        try:
            name = kind.partition_of(settings, match[1])
        except ValueError as error:
            raise OperationError(f"--skip-range: {error}; {allowed}") from None
        found.append((name, int(match[2]), int(match[3])))
    return found


def _check_ranges(
    settings: Settings,
    manifest: Manifest,
    registry: Registry,
    ranges: Sequence[tuple[str, int, int]],
) -> None:
    known = {partition for part in manifest.shards for partition in part.saved.cursors}
    known |= {partition for d in registry.deployments() for partition in d.position}
    if known and any(partition not in known for partition, _, _ in ranges):
        with suppress(InputError):  # partitions missing now may still have been learned from
            known |= oldest_positions(settings).keys()
    for partition, _, _ in ranges:
        if known and partition not in known:
            raise OperationError(
                f"--skip-range: {partition} was never learned from; there are: "
                + ", ".join(sorted(known))
            )


# --- the answers


class Answer(msgspec.Struct):
    """The answer of a shard to a command.

    Attributes
    ----------
    state
        "done"; "refused", with the `reason`; "relearning"; "waiting": no answer yet; "pending": the
        shard is not running and will carry it out at its next start.
    at
        When it took effect, in seconds since 1970 by the shard's clock; `seconds` is the wait for
        that.
    position
        By partition, the next position at that time: an offset, or the line (row) of a file.
    left
        [partition, first, last, events] that were not learned again, in the same units.
    files
        The partitions whose positions are lines.
    """

    shard: str
    state: Literal["done", "refused", "relearning", "waiting", "pending"]
    reason: str = ""
    at: float | None = None
    seconds: float | None = None
    position: dict[str, int] = {}
    seen: int | None = None
    left: list[tuple[str, int, int, int]] = []
    files: list[str] = []


def await_answers(
    registry: Registry,
    orders: Sequence[Order],
    *,
    tell: Callable[[list[Answer]], None] = lambda _: None,
    timeout: float | None = None,
) -> list[Answer]:
    """Wait until every running shard has carried out or refused the last of several commands.

    Parameters
    ----------
    orders
        In the order given; the answers are to the one that is no snapshot, or to the last.
    tell
        Called from time to time with the current answers.
    timeout
        Maximum seconds to wait.
    """
    chosen = main_of(orders)
    begun, pulses = time.monotonic(), Pulses(registry)
    until = None if timeout is None else begun + timeout
    took: dict[str, float] = {}
    while True:
        found = {d.shard: d for d in registry.deployments([chosen.id])}
        rows = registry.shards()
        answers = [_answer(row, found.get(row.shard), running=pulses.running(row)) for row in rows]
        for answer in answers:  # by our clock: the shard's may differ
            if answer.at is not None and answer.state == "done":
                took.setdefault(answer.shard, round(time.monotonic() - begun, 3))
                answer.seconds = took[answer.shard]
        tell(answers)
        busy = any(answer.state in ("waiting", "relearning") for answer in answers)
        if not busy or (until is not None and time.monotonic() > until):
            return answers
        time.sleep(_AGAIN)


def positions_of(done: Done) -> dict[str, int]:
    """Return, by partition, the next position: an offset, or the line of a file if known.

    For a file read by an older Midstream it is the position in bytes.
    """
    return {**done.position, **done.lines}


def left_of(command: Command) -> list[tuple[str, int, int, int]]:
    """Return what was not learned again, [partition, first, last, events]: offsets, or lines."""
    lines = [*command.lines, *[None] * len(command.left)]
    return [
        (partition, *(within or (start, stop - 1)), events)
        for (partition, start, stop, events), within in zip(command.left, lines, strict=False)
    ]


def _answer(row: ShardRow, done: Done | None, *, running: bool) -> Answer:
    if done is None and running:
        return Answer(row.shard, "waiting")
    if done is None:
        return Answer(row.shard, "pending", SILENT if row.beat_at else "")
    if done.command.refused:
        return Answer(row.shard, "refused", done.command.refused, done.command.at)
    answer = Answer(
        row.shard,
        "done",
        at=done.done_at,
        position=positions_of(done),
        seen=done.seen,
        left=left_of(done.command),
        files=sorted(done.lines),
    )
    if done.done_at is None:
        answer.state = "relearning" if running else "pending"
        answer.reason = "it is learning again" if running else "it was learning again when it ended"
    return answer
