"""The commands about versions: list, compare and check them, put one live, ask what was."""

import inspect
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from midstream.engine.shard.catalogue import BUILTIN, command_kind
from midstream.engine.shard.commands import Order, main_of
from midstream.engine.shard.kinds import CommandKind
from midstream.flows.commands.terminal import (
    CONFIG_OPTION,
    FAILED,
    JSON,
    binary_output,
    model_prints,
    one_line_errors,
    print_json,
)

if TYPE_CHECKING:
    from midstream.engine.registry.registry import Registry
    from midstream.flows.config.settings import Settings
    from midstream.flows.operating.answers import Answer
    from midstream.flows.operating.plans import Plan

__all__ = ["COMMANDS", "of_kind"]


class _Amount(click.ParamType):
    """A finite number, at least 0."""

    name = "N"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number."""
        try:
            amount = float(value)
        except ValueError:
            amount = -1.0
        if 0.0 <= amount < float("inf"):
            return amount
        return self.fail(f"found {value!r}; allowed: a number from 0 on", param, ctx)


class _Time(click.ParamType):
    """A time: ISO 8601, or seconds since 1970."""

    name = "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return seconds since 1970."""
        from midstream.flows.operating.operations import moment

        if isinstance(value, float):
            return value
        try:
            return moment(str(value))
        except (ValueError, OverflowError):
            return self.fail(
                f"found {value!r}; allowed: ISO 8601, UTC where it has no zone, or seconds since "
                "1970, up to the year 9999",
                param,
                ctx,
            )


VERSION = click.argument("version", type=click.IntRange(min=1))
REASON = click.option(
    "--reason", default="manual", show_default=True, help="The reason, for the history."
)
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
TIMEOUT = click.option(
    "--timeout",
    metavar="SECONDS",
    type=_Amount(),
    help="Wait for the effect for at most so long.",
)


def of_kind(kind: CommandKind, name: str = "") -> click.Command:
    """Return the command of the command line that gives commands of a kind to shards.

    Its help is the docstring of the kind's class. If the kind replaces the model, it takes a
    VERSION, else a reason.
    """
    asks = bool(kind.words(Order(0, kind.name), ""))

    def give(
        config: Path,
        *,
        timeout: float | None,
        as_json: bool,
        version: int = 0,
        reason: str = "",
        yes: bool = False,
    ) -> None:
        def plan(registry: "Registry", settings: "Settings") -> "Plan":
            from midstream.flows.operating.plans import plan_for, plan_replacing

            if kind.replaces:
                return plan_replacing(registry, settings, kind.name, version)
            return plan_for(settings, Order(0, kind.name, reason=reason))

        _give(_load(config, as_json), plan, yes or not asks, timeout, as_json)

    options = (VERSION if kind.replaces else REASON, *([YES] if asks else []))
    for option in reversed((*options, CONFIG_OPTION, TIMEOUT, JSON)):
        give = option(give)
    return click.command(name or kind.name, help=inspect.getdoc(type(kind)))(give)


# --- versions


@click.group()
def snapshots() -> None:
    """List, show, compare, check, make and prune versions.

    A version is the state of the model, of all its shards, as it was at one moment.
    """


@snapshots.command("list")
@CONFIG_OPTION
@JSON
def list_(config: Path, *, as_json: bool) -> None:
    """List the versions, oldest first.

    The list leaves out versions that are not whole yet. It marks the version last put live.
    """
    from midstream.flows.commands import version_views as views
    from midstream.flows.operating.operations import opened

    with one_line_errors(running=True, as_json=as_json), opened(_load(config, as_json)) as registry:
        rows = registry.versions()
        live = _live_versions(registry)
    if as_json:
        print_json([views.plain(row) | {"live": row.version in live} for row in rows])
        return
    views.print_versions(rows, live)


@snapshots.command()
@VERSION
@CONFIG_OPTION
@JSON
def show(version: int, config: Path, *, as_json: bool) -> None:
    """Show what a version is.

    With --json the command prints its manifest: where it came from, what it has learned, its
    metrics, and the checksum of each of its files.
    """
    from midstream.flows.commands import version_views as views
    from midstream.flows.operating.operations import opened

    with one_line_errors(running=True, as_json=as_json), opened(_load(config, as_json)) as registry:
        row = registry.version(version)
        manifest = registry.manifest(version)
    if as_json:
        print_json({**msgspec.to_builtins(manifest), "tags": row.tags})
        return
    views.print_manifest(manifest, row)


@snapshots.command()
@click.argument("one", type=click.IntRange(min=1), metavar="VERSION")
@click.argument("other", type=click.IntRange(min=1), metavar="OTHER")
@CONFIG_OPTION
@JSON
def diff(one: int, other: int, config: Path, *, as_json: bool) -> None:
    """Show what differs between two versions.

    The command compares definition, libraries, data and metrics.
    """
    from midstream.engine.state.changes import definition_changes
    from midstream.flows.commands import version_views as views
    from midstream.flows.operating.operations import opened

    with one_line_errors(running=True, as_json=as_json), opened(_load(config, as_json)) as registry:
        old, new = registry.manifest(one), registry.manifest(other)
    changes = {
        "learner": definition_changes(old.learner, new.learner),
        "libraries": definition_changes(old.libraries, new.libraries),
        "data": definition_changes(_in_lines(old.data["total"]), _in_lines(new.data["total"])),
    }
    metrics = {
        shard: _side_by_side(old.metrics.get(shard, {}), new.metrics.get(shard, {}))
        for shard in sorted({*old.metrics, *new.metrics})
    }
    if as_json:
        print_json({"versions": [one, other], "changes": changes, "metrics": metrics})
        return
    views.print_differences(changes, metrics, (f"version {one}", f"version {other}"))


def _in_lines(data: dict[str, Any]) -> dict[str, Any]:
    """Return what was learned, with positions in files as lines."""
    from midstream.flows.commands.version_views import stretches_of

    shown = {
        partition: {what: [list(span) for span in spans]}
        for partition, (what, spans) in stretches_of(data).items()
    }
    return {key: value for key, value in data.items() if key != "lines"} | {"stretches": shown}


def _side_by_side(
    old: dict[str, float | None], new: dict[str, float | None]
) -> dict[str, list[float | None]]:
    """Return two sets of metrics by name; None if undefined or missing."""
    return {name: [old.get(name), new.get(name)] for name in {**old, **new}}


@snapshots.command()
@click.argument("versions", nargs=-1, type=click.IntRange(min=1), metavar="[VERSION]...")
@CONFIG_OPTION
@JSON
def verify(versions: tuple[int, ...], config: Path, *, as_json: bool) -> None:
    """Check that the files of versions are what was written.

    Default: all versions. The exit code is 1 if a file is damaged or missing.
    """
    from midstream.engine.registry.versions import UnknownVersionError
    from midstream.flows.operating.operations import opened

    with one_line_errors(running=True, as_json=as_json), opened(_load(config, as_json)) as registry:
        chosen = versions or tuple(row.version for row in registry.versions())
        found = {}
        for version in chosen:
            try:
                problems = registry.problems(version)
                if problems:
                    registry.version(version)  # else it is being pruned
            except UnknownVersionError:
                if versions:
                    raise
            else:
                found[version] = problems
    if as_json:
        print_json({str(version): problems for version, problems in found.items()})
    for version, problems in found.items():
        if not as_json:
            click.echo(f"version {version}: " + ("; ".join(problems) if problems else "sound"))
    sys.exit(FAILED if any(found.values()) else 0)


snapshots.add_command(of_kind(command_kind("snapshot"), "create"))


@snapshots.command()
@click.option(
    "--sweep", is_flag=True, help="Remove files of versions that were never whole (no manifest)."
)
@CONFIG_OPTION
@YES
@JSON
def adopt(config: Path, *, sweep: bool, yes: bool, as_json: bool) -> None:
    """Register versions whose files exist, where the registry was lost.

    The command creates the registry if it is gone. `midstream run` adopts the versions of its own
    state by itself; this command adopts all of this model's name. Each is tagged adopted-N, which
    keeps it.
    """
    from midstream.flows.claims.registry import open_registry

    swept: list[int] = []
    with one_line_errors(running=True, as_json=as_json):
        registry = open_registry(_load(config, as_json), create=True)
        try:
            adopted, left = registry.adopt()
            if sweep:
                _confirm("remove the files of versions that have no manifest?", yes=yes)
                swept = registry.sweep()
        finally:
            registry.close()
    left = {version: why for version, why in left.items() if version not in swept}
    if as_json:
        told = {str(v): why for v, why in left.items()}
        print_json({"adopted": adopted, "left": told, "swept": swept})
        return
    click.echo(f"{len(adopted)} versions adopted" + ": " * bool(adopted)
               + ", ".join(map(str, adopted)))  # fmt: skip
    for version, why in left.items():
        click.echo(f"version {version} is left alone: {why}")
    if sweep:
        click.echo(f"{len(swept)} versions swept" + ": " * bool(swept)
                   + ", ".join(map(str, swept)))  # fmt: skip


@snapshots.command()
@click.option("--dry-run", is_flag=True, help="Only say which versions would be removed.")
@click.option(
    "--keep",
    metavar="N",
    type=click.IntRange(min=1),
    help="Keep the newest N. Default: the config's.",
)
@click.option(
    "--keep-hours", metavar="N", type=_Amount(), help="Keep one of each hour, for N hours."
)
@click.option("--keep-days", metavar="N", type=_Amount(), help="Keep one of each day, for N days.")
@YES
@CONFIG_OPTION
@JSON
def prune(
    config: Path,
    *,
    dry_run: bool,
    keep: int | None,
    keep_hours: float | None,
    keep_days: float | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove the versions that no rule keeps.

    The rules keep the newest versions, the last of each hour and of each day for a while, those
    with a tag, and those that were ever live. The command names what goes of the last 24 hours.
    """
    from midstream.flows.operating.operations import opened

    settings = _load(config, as_json)
    keep = settings.versions.keep if keep is None else keep
    days = settings.versions.keep_days if keep_days is None else keep_days
    hours = settings.versions.keep_hours if keep_hours is None else keep_hours
    removed: list[int] = []
    with (
        one_line_errors(running=True, as_json=as_json),
        opened(settings, to_write=not dry_run) as registry,
    ):
        if not dry_run:
            registry.artifacts.require_writing()
        kept = registry.retention.kept(keep, days, hours=hours)
        gone = [version for version, why in kept.items() if not why]
        recent = registry.retention.recent(gone)
        if not as_json:
            for version, why in kept.items():
                said = "; ".join(why) if why else "goes"
                if version in recent:
                    instead = recent[version]
                    said += ", though it is of the last 24 hours; the next older one that stays is "
                    said += f"version {instead}" if instead else "none"
                click.echo(f"version {version}: {said}")
        if not dry_run:
            if gone:
                _confirm(f"remove {len(gone)} of {len(kept)} versions?", yes=yes)
            removed = registry.retention.prune(keep, days, hours=hours)
    if as_json:
        print_json({"kept": {str(v): why for v, why in kept.items() if why}, "goes": gone,
                    "of_last_24_hours": sorted(recent), "removed": removed})  # fmt: skip
    elif dry_run:
        click.echo(f"{len(gone)} of {len(kept)} versions would be removed")
    else:
        click.echo(f"{len(removed)} versions removed")


@click.command()
@VERSION
@click.argument("name")
@click.option("--delete", is_flag=True, help="Take the name away from VERSION.")
@CONFIG_OPTION
@JSON
def tag(version: int, name: str, config: Path, *, delete: bool, as_json: bool) -> None:
    """Give VERSION a NAME, which keeps it.

    A name belongs to one version at a time.
    """
    from midstream.flows.operating.operations import OperationError, opened

    if not re.fullmatch(r"[\w.+-]{1,100}", name, re.ASCII):
        raise click.BadParameter(
            "allowed: letters, digits, '.', '_', '+' and '-'", param_hint="NAME"
        )
    settings = _load(config, as_json)
    with (
        one_line_errors(running=True, as_json=as_json),
        opened(settings, to_write=True) as registry,
    ):
        if delete and name not in registry.version(version).tags:
            raise OperationError(f"version {version} is not tagged {name!r}")
        had = registry.untag(name) if delete else registry.tag(version, name)
    if as_json:
        print_json({"version": version, "tag": None if delete else name, "before": had})
        return
    moved = f" (before, it was version {had})" if had not in (None, version) and not delete else ""
    click.echo(f"version {version} is {'no longer ' if delete else ''}tagged {name}{moved}")


# --- what changes a running model


@click.command()
@click.argument("version", required=False, type=click.IntRange(min=1))
@click.option(
    "--before", type=_Time(), metavar="TIME", help="Take the newest version from before TIME."
)
@click.option(
    "--before-drift", is_flag=True, help="Take the newest version from before the last drift."
)
@click.option(
    "--margin",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --before-drift: by at least N events.",
)
@click.option("--rewind", is_flag=True, help="Learn again what came since that version.")
@click.option(
    "--skip-source",
    "sources",
    multiple=True,
    metavar="S",
    help="With --rewind: leave out events of source S.",
)
@click.option(
    "--skip-range",
    "ranges",
    multiple=True,
    metavar="RANGE",
    help="With --rewind: leave out these offsets or lines.",
)
@click.option(
    "--from",
    "origin",
    metavar="NAME",
    default="",
    help="VERSION belongs to the model or state NAME.",
)
@YES
@CONFIG_OPTION
@TIMEOUT
@JSON
def restore(
    version: int | None,
    before: float | None,
    config: Path,
    *,
    before_drift: bool,
    margin: int | None,
    rewind: bool,
    sources: tuple[str, ...],
    ranges: tuple[str, ...],
    origin: str,
    yes: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Replace the state of the model by that of VERSION.

    The input position stays: the model does not know what came since. With --rewind it learns that
    again, without what is skipped. RANGE is offsets as TOPIC:PARTITION:FROM-TO, or lines of a file
    as FILE:FROM-TO, with both ends. Predictions already published are not published again.

    A version of another state needs --from, and `history` shows where it came from. A version of
    another model in the registry is first copied to a version of this one.
    """
    from midstream.flows.operating import choosing, operations, plans

    if (version is not None) + (before is not None) + before_drift != 1:
        raise click.UsageError("name one of VERSION, --before and --before-drift")
    if (sources or ranges) and not rewind:
        raise click.UsageError("--skip-source and --skip-range need --rewind")
    if origin and (version is None or rewind):
        raise click.UsageError("--from needs a VERSION, and goes without --rewind")

    def plan(registry: "Registry", settings: "Settings") -> "Plan":
        words = []
        chosen = version or 0
        if before is not None:
            chosen = choosing.before_time(registry, before).version
        elif before_drift:
            least = settings.versions.drift_margin if margin is None else margin
            row, alarms = choosing.before_drift(registry, least)
            chosen = row.version
            first = alarms[0]
            words = [
                f"drift: {len(alarms)} alarms from {operations.utc(first.at)} on, the first by "
                f"{first.detector} in shard {first.shard} after {first.position:,} events"
            ]
        planned = plans.plan_replacing(
            registry,
            settings,
            "rewind" if rewind else "restore",
            chosen,
            sources=sources,
            ranges=plans.ranges_of(settings, ranges),
            origin=origin,
        )
        planned.words = words + planned.words
        return planned

    _give(_load(config, as_json), plan, yes, timeout, as_json)


@click.command()
@YES
@CONFIG_OPTION
@TIMEOUT
@JSON
def rollback(config: Path, *, yes: bool, timeout: float | None, as_json: bool) -> None:
    """Undo the last restore, promote or rollback.

    The model is then as if that had never happened, within versions.catch_up_events.
    """
    from midstream.flows.operating import plans

    _give(_load(config, as_json), plans.plan_rollback, yes, timeout, as_json)


def _give(
    settings: "Settings",
    make: Callable[["Registry", "Settings"], "Plan"],
    yes: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Plan commands, describe and confirm them, give them, wait, and print the answers."""
    from midstream.flows.commands import version_views as views
    from midstream.flows.operating import operations
    from midstream.flows.operating.answers import await_answers
    from midstream.flows.operating.plans import taken_in

    with (
        one_line_errors(running=True, as_json=as_json),
        operations.opened(settings, to_command=True) as registry,
    ):
        with model_prints():
            plan = make(registry, settings)
        if plan.words:
            for line in plan.words:
                click.echo(line, err=as_json)
            for line in plan.warnings:
                click.echo(f"warning: {line}", err=as_json)
            _confirm("go on, in spite of that?" if plan.warnings else "go on?", yes=yes)
        plan = taken_in(registry, settings, plan)
        by = operations.operator()
        orders = registry.order(*(msgspec.structs.replace(order, by=by) for order in plan.orders))
        progress = views.Progress(show=sys.stderr.isatty() and not as_json)
        try:
            answers = await_answers(registry, orders, show=progress.update, timeout=timeout)
        except KeyboardInterrupt:
            progress.end()
            raise operations.OperationError(
                f"command {orders[-1].id} was given, and is carried out whether one waits or not; "
                f"`midstream history` tells when, and `midstream commands cancel {orders[-1].id}` "
                "takes it back, if no processor has taken it up"
            ) from None
        progress.end()
        made = [o.version for o in orders if command_kind(o.kind).makes_version]
        whole = _await_version(registry, made, answers)
        same = registry.same()
    if as_json:
        chosen = main_of(orders)
        print_json(
            {
                "command": chosen.id,
                "kind": chosen.kind,
                "version": same.get(chosen.version, chosen.version) or None,
                "before": same.get(chosen.before, chosen.before) or None,
                "made": whole,
                "warnings": plan.warnings,
                "shards": msgspec.to_builtins(answers),
            }
        )
    else:
        views.print_answers(plan.kind, answers)
        if command_kind(plan.kind).makes_version and made:
            number = same.get(made[0], made[0])
            note = "" if whole else " will be whole once all shards ran"
            note = ": nothing has changed since it was made" if number != made[0] else note
            click.echo(f"version {number}{note}")
    refused = [answer for answer in answers if answer.state == "refused"]
    if refused and any(a.state in ("done", "relearning") for a in answers) and plan.version:
        click.echo("`midstream rollback` undoes it on the shards that did it", err=as_json)
    sys.exit(FAILED if refused else 0)


def _await_version(
    registry: "Registry", versions: Sequence[int], answers: Sequence["Answer"]
) -> list[int]:
    """Wait briefly for versions whose parts are all made; return those that are complete.

    A version that equals another is returned as that one.
    """
    until = time.monotonic() + (5.0 if all(a.state == "done" for a in answers) else 0.0)
    while True:
        same, there = registry.same(), {row.version for row in registry.versions()}
        whole = [v for v in (same.get(v, v) for v in versions) if v in there]
        if len(whole) == len(versions) or time.monotonic() > until:
            return list(dict.fromkeys(whole))
        time.sleep(0.05)


# --- what was


@click.command()
@click.option("--at", type=_Time(), metavar="TIME", help="Show what was live at TIME.")
@click.option("--shard", metavar="NAME", help="Show only this shard.")
@click.option("--alarms", is_flag=True, help="With --json: add the alarms.")
@CONFIG_OPTION
@JSON
def history(
    at: float | None, shard: str | None, config: Path, *, alarms: bool, as_json: bool
) -> None:
    """Show what was live when, per shard, and why.

    Each command that a shard carried out or refused is a line, with who gave it and its place in
    the journal. Each alarm is a line, too. Paused shards and waiting commands follow.
    """
    from midstream.flows.commands import version_views as views
    from midstream.flows.operating.history import live_at
    from midstream.flows.operating.operations import opened

    with one_line_errors(running=True, as_json=as_json), opened(_load(config, as_json)) as registry:
        waiting = registry.waiting()
        raised = [alarm for alarm in registry.alarms() if shard in (None, alarm.shard)]
        rows = [d for d in registry.deployments() if shard in (None, d.shard)]
        versions = registry.versions(every=True)
        same = registry.same()
    if at is not None:
        found = live_at(rows, at, same=same)
        if as_json:
            print_json({"at": at, "shards": msgspec.to_builtins(found)})
            return
        views.print_live(found, at)
        return
    if as_json:
        print_json(
            [views.entry_of(done) for done in rows]
            + [{"alarm": alarm._asdict()} for alarm in raised if alarms]
        )
        return
    views.print_history(rows, versions, raised)
    views.print_pauses(live_at(rows, same=same))
    if waiting:
        click.echo(f"{len(waiting)} commands wait (`midstream commands list`):")
        views.print_waiting(waiting)


@click.group()
def commands() -> None:
    """List the commands that wait, and take them back.

    A command waits until a run takes it up: where nothing runs, until the next start.
    """


@commands.command("list")
@CONFIG_OPTION
@JSON
def list_commands(config: Path, *, as_json: bool) -> None:
    """List the commands that wait, oldest first.

    A command waits until each shard has carried it out or refused it.
    """
    from midstream.flows.commands import version_views as views
    from midstream.flows.operating.operations import opened

    with one_line_errors(running=True, as_json=as_json), opened(_load(config, as_json)) as registry:
        waiting = registry.waiting()
    if as_json:
        print_json(
            [
                {**msgspec.to_builtins(each), "state": "taken" if each.taken_at else "waiting"}
                for each in waiting
            ]
        )
        return
    views.print_waiting(waiting)
    if not waiting:
        click.echo("no commands wait")


@commands.command()
@click.argument("command", type=click.IntRange(min=1, max=2**31 - 1))
@CONFIG_OPTION
@JSON
def cancel(command: int, config: Path, *, as_json: bool) -> None:
    """Take COMMAND back, by its number, unless a run has taken it up.

    It is then never carried out, and neither are the versions to be made before and after it.
    """
    from midstream.flows.operating.operations import opened, operator

    settings = _load(config, as_json)
    with (
        one_line_errors(running=True, as_json=as_json),
        opened(settings, to_write=True) as registry,
    ):
        gone = registry.cancel(command, f"taken back by {operator()}")
    if as_json:
        print_json({"cancelled": gone})
        return
    click.echo("taken back: " + ", ".join(f"command {number}" for number in gone))


# --- predict


@click.command()
@click.option(
    "--version", type=click.IntRange(min=1), metavar="N", help="The version. Default: what is live."
)
@click.option(
    "--shard", metavar="NAME", help="The shard whose model predicts, where there are several."
)
@click.argument("file", default="-")
@CONFIG_OPTION
def predict(version: int | None, shard: str | None, file: str, config: Path) -> None:
    """Predict the events in FILE with a version; learn nothing.

    FILE is - for standard input. The command prints a line for each prediction, as a run would
    publish it. It names events that it cannot read, or that the model raises on, on standard
    error; the exit code is then 1.
    """
    from midstream.flows.offline.predicting import predict_file

    with one_line_errors(running=True), binary_output() as out, model_prints():
        rejected = predict_file(_load(config), file, version, shard, out)
    sys.exit(FAILED if rejected else 0)


# --- small things


def _load(config: Path, as_json: bool = False) -> "Settings":
    from midstream.flows.loading import load

    with one_line_errors(running=False, as_json=as_json):
        return load(config)


def _confirm(question: str, *, yes: bool) -> None:
    """Ask on standard error: standard output is for results."""
    from midstream.flows.operating.operations import OperationError

    if yes:
        return
    if not sys.stdin.isatty():
        raise OperationError("nobody is there to be asked; --yes goes on without asking")
    try:
        with redirect_stdout(sys.stderr):  # a space would go there in spite of err=True
            go_on = click.confirm(question, err=True)
    except click.Abort:  # Ctrl-C, or the end of the input
        click.echo(err=True)
        go_on = False
    if not go_on:
        raise OperationError("nothing was done")


def _live_versions(registry: "Registry") -> set[int]:
    from midstream.flows.operating.history import live_at

    found = live_at(registry.deployments())
    return {live.version for live in found.values() if live is not None}


_OF_KINDS = {command.name: command for command in (restore, rollback, tag)}
"""The commands that give one of a kind to shards, and have more options than `of_kind` makes."""

COMMANDS = (
    snapshots,
    history,
    commands,
    *(
        _OF_KINDS.get(name) or of_kind(kind)
        for name, kind in BUILTIN.items()
        if name in _OF_KINDS or kind.in_command_line
    ),
    predict,
)
"""All commands of this module, for the command line."""
