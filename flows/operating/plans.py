"""Plans of commands: what they will do to a model, or why they cannot be given."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import msgspec

from midstream.connectors.files.rotation import first_name
from midstream.connectors.input import NOT_THERE, InputError
from midstream.engine.registry.artifacts import Manifest
from midstream.engine.registry.registry import Registry
from midstream.engine.registry.versions import VersionRow
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import JUST_MADE, Done, Order
from midstream.engine.shard.dataset import OTHERS
from midstream.flows.config.settings import Settings
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.feedback import feedback_settings
from midstream.flows.inputs.reading import oldest_positions
from midstream.flows.operating.history import epochs
from midstream.flows.operating.operations import OperationError, utc

__all__ = ["Plan", "plan_for", "plan_replacing", "plan_rollback", "ranges_of", "taken_in"]

_FEWEST_DIGITS = 8  # digits required to name an identity


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
    begun = epochs(row for row in rows if command_kind(row.kind).begins)
    for part in manifest.shards:
        if part.saved.epoch != begun.get(part.shard, ""):
            raise OperationError(
                f"version {manifest.version} is from before the model was started over (--fresh), "
                "and can only be restored without --rewind"
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
    inputs = [settings, *filter(None, [feedback_settings(settings)])]
    allowed = " or ".join(
        dict.fromkeys(f"allowed: {kind_of(each.input).range_form}" for each in inputs)
    )
    found = []
    for text in texts:
        match = re.fullmatch(r"(.+):(\d+)-(\d+)", text)
        if match is None or int(match[2]) > int(match[3]):
            raise OperationError(f"--skip-range: found {text!r}; {allowed}")
        found.append((_partition(inputs, match[1], allowed), int(match[2]), int(match[3])))
    return found


def _partition(inputs: Sequence[Settings], text: str, allowed: str) -> str:
    """Return the name of a partition of the events, or of the feedback.

    Raises
    ------
    OperationError
        If it is of neither: what the events' input says.
    """
    faults = []
    for settings in inputs:
        try:
            return kind_of(settings.input).partition_of(settings, text)
        except ValueError as error:
            faults.append(error)
    raise OperationError(f"--skip-range: {faults[0]}; {allowed}")


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
