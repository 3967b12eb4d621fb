"""Shows versions, and the answers to commands, to people."""

import datetime as dt
import heapq
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from midstream.engine.registry.artifacts import Manifest
from midstream.engine.registry.registry import Drifted, Waiting
from midstream.engine.registry.versions import VersionRow
from midstream.engine.shard.catalogue import command_kind
from midstream.engine.shard.commands import Done
from midstream.flows.operating.answers import SILENT, Answer, left_of, positions_of
from midstream.flows.operating.history import LivePeriod
from midstream.flows.operating.operations import utc

__all__ = [
    "Progress",
    "entry_of",
    "plain",
    "print_answers",
    "print_differences",
    "print_history",
    "print_live",
    "print_manifest",
    "print_pauses",
    "print_versions",
    "print_waiting",
    "stretches_of",
]

_MOST_LEFT = 5  # lines


# --- versions


def print_versions(rows: Sequence[VersionRow], live: Collection[int]) -> None:
    """Print complete versions, one per line; mark those that are live."""
    if not rows:
        click.echo("no versions yet")
        return
    table = _table(
        "version", "made (UTC)", "kind", "reason", "from", "events", "metric", "size", "tags"
    )
    for row in rows:
        manifest = _manifest(row)
        table.add_row(
            f"{row.version}{' live' if row.version in live else ''}",
            _short(row.created),
            row.kind,
            row.reason,
            str(row.parent or ""),
            f"{sum(part.saved.seen for part in manifest.shards):,}",
            _first_metric(row),
            _size(row.bytes),
            ", ".join(row.tags),
        )
    _console().print(table)


def print_manifest(manifest: Manifest, row: VersionRow) -> None:
    """Print the details of a version."""
    console = _console()
    console.print(
        f"version {row.version} of {manifest.model}: {manifest.kind}, {manifest.reason}, "
        f"{utc(manifest.created)}, from version {manifest.parent or 'none'}, {_size(row.bytes)}"
        + (f", tagged {', '.join(row.tags)}" if row.tags else "")
        + (", signed" if manifest.signature else "")
        + (f", of the state {manifest.identity}" if manifest.identity else ""),
        markup=False,
    )
    libraries = ", ".join(f"{name} {found}" for name, found in manifest.libraries.items())
    console.print(f"learner {manifest.fingerprint[:16]}; {libraries}", markup=False)
    for name, data in (("in all", "total"), ("since its parent", "since_parent")):
        _print_data(console, name, manifest.data[data])
    table = _table("shard", "record", "generation", "events", "learned", "digest", "metric")
    for part in manifest.shards:
        saved = part.saved
        table.add_row(
            part.shard,
            str(saved.seq),
            str(saved.generation),
            f"{saved.seen:,}",
            f"{saved.learned:,}",
            saved.digest[:16],
            _metric(saved.metrics),
        )
    console.print(table)


def print_differences(
    changes: Mapping[str, Sequence[str]],
    metrics: Mapping[str, Mapping[str, Sequence[float | None]]],
    names: tuple[str, str],
) -> None:
    """Print the differences of two versions; `metrics`: by shard and by name, those of both."""
    console = _console()
    for what, lines in changes.items():
        console.print(f"{what}: " + ("; ".join(lines) if lines else "the same"), markup=False)
    table = _table("shard", "metric", *names, "change")
    for shard, found in metrics.items():
        for name, (before, after) in found.items():
            if before == after:
                continue
            change = "" if before is None or after is None else f"{after - before:+.4f}"
            table.add_row(shard, name, _number(before), _number(after), change)
    console.print(table if table.row_count else "metrics: the same")


def plain(row: VersionRow) -> dict[str, Any]:
    """Return a complete version as plain data, without its files."""
    fields: dict[str, Any] = msgspec.to_builtins(row)
    fields.pop("manifest")
    manifest = _manifest(row)
    fields["seen"] = sum(part.saved.seen for part in manifest.shards)
    fields["metrics"] = manifest.metrics
    return fields


# --- commands


class Progress:
    """Shows in one line on a terminal what is waited for."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._line = ""

    def update(self, answers: Sequence[Answer]) -> None:
        """Show the current answers."""
        waiting = [a.shard for a in answers if a.state == "waiting"]
        learning = [a.shard for a in answers if a.state == "relearning"]
        line = f"waiting for shards {', '.join(waiting)}" if waiting else ""
        line = f"shards {', '.join(learning)} are learning again" if learning else line
        if self._show and line and line != self._line:
            click.echo(f"\r\033[K{line} …", nl=False, err=True)
            self._line = line

    def end(self) -> None:
        """Clear the line."""
        if self._line:
            click.echo("\r\033[K", nl=False, err=True)


def print_answers(kind: str, answers: Sequence[Answer]) -> None:
    """Print the answers to a command."""
    if not answers:
        click.echo("no shard has ever run; it will be carried out at the first start")
    pending = [a for a in answers if a.state == "pending"]
    for answer in answers:
        if answer.state == "done":
            where = ", ".join(
                f"{name} at {'line ' * (name in answer.files)}{at:,}"
                for name, at in sorted(answer.position.items())
            )
            seen = f", {answer.seen:,} events" if answer.seen is not None else ""
            click.echo(
                f"shard {answer.shard}: {kind} took effect {utc(answer.at or 0.0)}, "
                f"after {answer.seconds:.2f} s{seen}" + (f" ({where})" if where else "")
            )
            for partition, start, stop, events in answer.left[:_MOST_LEFT]:
                what = "lines" if partition in answer.files else "offsets"
                click.echo(
                    f"shard {answer.shard}: {partition}, {what} {start:,} to {stop:,}: not learned "
                    f"again (about {events:,} events)"
                )
            if len(answer.left) > _MOST_LEFT:
                click.echo(f"shard {answer.shard}: … and {len(answer.left) - _MOST_LEFT} more")
        elif answer.state == "refused":
            click.echo(f"shard {answer.shard}: refused: {answer.reason}")
        elif answer.state != "pending":
            click.echo(f"shard {answer.shard}: {answer.state}")
    if pending and len(pending) == len(answers) and any(a.reason == SILENT for a in pending):
        click.echo(
            "no processor answers; it will take effect at the next start, or when one that is "
            "frozen goes on"
        )
    elif pending and len(pending) == len(answers):
        click.echo("no processor runs; it will take effect at the next start")
    elif pending:
        names = ", ".join(answer.shard for answer in pending)
        click.echo(f"not running: shards {names}; there it will take effect at the next start")


def entry_of(done: Done) -> dict[str, Any]:
    """Return an entry of the history as plain data; in files, positions are lines."""
    entry = msgspec.to_builtins(done)
    for name in ("shard", "epoch", "present", "lines"):
        entry.pop(name, None)
    entry["command"].pop("lines", None)
    if done.position:
        entry["position"] = positions_of(done)
    if done.command.left:
        entry["command"]["left"] = left_of(done.command)
    return {"shard": done.shard, "epoch": done.epoch, **entry}


def print_live(found: Mapping[str, LivePeriod | None], at: float) -> None:
    """Print what was live at a time, by shard; None: the shard had not begun."""
    for name, live in found.items():
        click.echo(
            f"shard {name} at {utc(at)}: "
            + (
                "had not begun"
                if live is None
                else f"{live.words}, since {utc(live.since)}"
                + (f"; last kept as version {live.kept}" if live.kept else "")
                + _paused(live)
            )
        )


def _paused(live: LivePeriod) -> str:
    if live.paused is None:
        return ""
    why = f" ({live.pause})" if live.pause else ""
    return f"; paused since {utc(live.paused)}{why}, until `midstream resume`"


def print_pauses(found: Mapping[str, LivePeriod | None]) -> None:
    """Print which shards are paused, since when, by whom and why."""
    for name, live in found.items():
        if live is not None and live.paused is not None:
            click.echo(f"shard {name}{_paused(live)}".replace("; ", ": ", 1))


def print_waiting(commands: Sequence[Waiting]) -> None:
    """Print waiting commands, one per line; nothing if there are none."""
    if not commands:
        return
    table = _table("command", "given (UTC)", "what", "version", "reason", "by", "waits for")
    for waiting in commands:
        shards = ", ".join(waiting.missing) if waiting.missing else "all shards"
        taken = "being carried out by" if waiting.taken_at else "a processor of"
        table.add_row(
            str(waiting.id),
            _short(waiting.at),
            waiting.kind,
            str(waiting.version or ""),
            waiting.reason,
            waiting.by,
            f"{taken} {shards}",
        )
    _console().print(table)


def print_history(
    rows: Iterable[Done], versions: Iterable[VersionRow], alarms: Iterable[Drifted] = ()
) -> None:
    """Print the shards' answers and alarms; `versions`: all that were requested."""
    reasons = {
        row.version: row.reason
        + (f"; not made, it is equal to version {row.parent}" if row.kind == "same" else "")
        for row in versions
    }
    table = _table("time (UTC)", "shard", "what", "version", "reason", "by", "events", "record")
    entries: Iterable[Done | Drifted] = heapq.merge(rows, alarms, key=_at)
    for entry in entries:
        if isinstance(entry, Drifted):
            of = f" of {entry.feature}" if entry.feature else ""
            table.add_row(
                _short(entry.at), entry.shard, "alarm", "",
                f"{entry.kind}{of}, {entry.detector}", "", f"{entry.position:,}", "",
            )  # fmt: skip
            continue
        command = entry.command
        reason = command.reason
        if command_kind(command.kind).makes_version:
            reason = reasons.get(command.version, reason)
        if command.refused:
            reason = f"refused: {command.refused}"
        elif entry.done_at is None:
            reason = f"{reason}; has not taken effect yet"
        table.add_row(
            _short(command.at),
            entry.shard,
            command.kind,
            str(command.version or ""),
            reason,
            command.by,
            f"{entry.seen:,}",
            str(entry.seq),
        )
    _console().print(table)


# --- small things


def _at(entry: Done | Drifted) -> float:
    return entry.at if isinstance(entry, Drifted) else entry.command.at


def _console() -> Console:
    wide = None if sys.stdout.isatty() else 200
    return Console(highlight=False, soft_wrap=wide is not None, width=wide)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column not in ("metric", "reason"))
    return table


def _short(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _manifest(row: VersionRow) -> Manifest:
    assert row.manifest is not None, "it is whole"
    return row.manifest


def stretches_of(data: Mapping[str, Any]) -> dict[str, tuple[str, list[tuple[int, int]]]]:
    """Return by partition the unit and the ranges of what was learned, as first and last.

    The unit is lines of a file (rows of Arrow and Parquet) or offsets of a topic; for files that an
    older Midstream read, bytes.
    """
    found = {}
    for partition, stretches in data["stretches"].items():
        lines = data.get("lines", {}).get(partition)
        old = "lines" not in data or lines == []
        what = "lines" if lines else "bytes or offsets" if old else "offsets"
        found[partition] = (what, [(first, stop - 1) for first, stop in lines or stretches])
    return found


def _first_metric(row: VersionRow) -> str:
    metrics = _manifest(row).metrics
    return ", ".join(_metric(found) for found in list(metrics.values())[:3])


def _metric(metrics: dict[str, float | None]) -> str:
    name = next((name for name in metrics if name.endswith(".window")), None)
    return "" if name is None else f"{name} {_number(metrics[name])}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _size(length: int) -> str:
    return f"{length / 1000:,.0f} kB" if length < 10_000_000 else f"{length / 1e6:,.0f} MB"


def _print_data(console: Console, name: str, data: dict[str, Any]) -> None:
    console.print(
        f"learned {name}: {data['events']:,} events, ids {data['fingerprint']}"
        + (f", {data['left_out']:,} left out" if data["left_out"] else ""),
        markup=False,
    )
    for partition, (what, stretches) in sorted(stretches_of(data).items()):
        spans = ", ".join(f"{first:,} to {last:,}" for first, last in stretches)
        console.print(f"  {partition}: {what} {spans}", markup=False)
    for source, count in sorted(data["sources"].items(), key=lambda item: -item[1])[:10]:
        console.print(f"  source {source}: {count:,}", markup=False)
