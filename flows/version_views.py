"""How versions, and what became of commands, are shown to people."""

import datetime as dt
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from midstream.engine.artifacts import Manifest
from midstream.engine.registry import Deployed, VersionRow
from midstream.flows.operations import SILENT, Answer, Stretch, utc

__all__ = [
    "Progress",
    "plain",
    "print_answers",
    "print_differences",
    "print_history",
    "print_live",
    "print_manifest",
    "print_versions",
]

_MOST_LEFT = 5  # lines


# --- versions


def print_versions(rows: Sequence[VersionRow], live: Collection[int]) -> None:
    """Print versions that are whole, a line each; those that are live are marked."""
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
            f"{sum(part.header['seen'] for part in manifest.shards):,}",
            _first_metric(row),
            _size(row.bytes),
            ", ".join(row.tags),
        )
    _console().print(table)


def print_manifest(manifest: Manifest, row: VersionRow) -> None:
    """Print what a version is."""
    console = _console()
    console.print(
        f"version {row.version} of {manifest.model}: {manifest.kind}, {manifest.reason}, "
        f"{utc(manifest.created)}, from version {manifest.parent or 'none'}, {_size(row.bytes)}"
        + (f", tagged {', '.join(row.tags)}" if row.tags else "")
        + (", signed" if manifest.signature else ""),
        markup=False,
    )
    libraries = ", ".join(f"{name} {found}" for name, found in manifest.libraries.items())
    console.print(f"learner {manifest.fingerprint[:16]}; {libraries}", markup=False)
    for name, data in (("in all", "total"), ("since its parent", "since_parent")):
        _print_data(console, name, manifest.data[data])
    table = _table("shard", "record", "generation", "events", "learned", "digest", "metric")
    for part in manifest.shards:
        header = part.header
        table.add_row(
            part.shard,
            str(header["seq"]),
            str(header["generation"]),
            f"{header['seen']:,}",
            f"{header['learned']:,}",
            header["digest"][:16],
            _metric(header["metrics"]),
        )
    console.print(table)


def print_differences(
    changes: Mapping[str, Sequence[str]],
    metrics: Mapping[str, Mapping[str, Sequence[float | None]]],
    names: tuple[str, str],
) -> None:
    """Print what differs between two versions; `metrics`: of a shard, by name, of both."""
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
    """Return a version that is whole as plain data, without its files."""
    fields: dict[str, Any] = msgspec.to_builtins(row)
    manifest = fields.pop("manifest")
    fields["seen"] = sum(part["header"]["seen"] for part in manifest["shards"])
    fields["metrics"] = manifest["metrics"]
    return fields


# --- commands


class Progress:
    """Says on a terminal, in one line, what is waited for."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._line = ""

    def tell(self, answers: Sequence[Answer]) -> None:
        """Tell how it stands."""
        waiting = [a.shard for a in answers if a.state == "waiting"]
        learning = [a.shard for a in answers if a.state == "relearning"]
        line = f"waiting for shards {', '.join(waiting)}" if waiting else ""
        line = f"shards {', '.join(learning)} are learning again" if learning else line
        if self._show and line and line != self._line:
            click.echo(f"\r\033[K{line} …", nl=False, err=True)
            self._line = line

    def end(self) -> None:
        """Leave the line."""
        if self._line:
            click.echo("\r\033[K", nl=False, err=True)


def print_answers(kind: str, answers: Sequence[Answer]) -> None:
    """Say what became of a command."""
    if not answers:
        click.echo("no shard has ever run; it will be carried out at the first start")
    pending = [a for a in answers if a.state == "pending"]
    for answer in answers:
        if answer.state == "done":
            where = ", ".join(f"{name} at {at:,}" for name, at in sorted(answer.position.items()))
            seen = f", {answer.seen:,} events" if answer.seen is not None else ""
            click.echo(
                f"shard {answer.shard}: {kind} took effect {utc(answer.at or 0.0)}, "
                f"after {answer.seconds:.2f} s{seen}" + (f" ({where})" if where else "")
            )
            for partition, start, stop, events in answer.left[:_MOST_LEFT]:
                click.echo(
                    f"shard {answer.shard}: {partition} from {start} to {stop} was not learned "
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


def print_live(found: Mapping[str, Stretch | None], at: float) -> None:
    """Print what was live at a time, by shard; None: it had not begun."""
    for name, live in found.items():
        click.echo(
            f"shard {name} at {utc(at)}: "
            + (
                "had not begun"
                if live is None
                else f"{live.words}, since {utc(live.since)}"
                + (f"; last kept as version {live.kept}" if live.kept else "")
            )
        )


def print_history(rows: Iterable[Deployed], reasons: Mapping[int, str]) -> None:
    """Print what shards did of commands; `reasons`: why versions were made."""
    table = _table("time (UTC)", "shard", "what", "version", "reason", "events", "record")
    for deployed in rows:
        command = deployed.done.command
        reason = command.reason
        if command.kind == "snapshot":
            reason = reasons.get(command.version, reason)
        if command.refused:
            reason = f"refused: {command.refused}"
        elif deployed.done.done_at is None:
            reason = f"{reason}; has not taken effect yet"
        table.add_row(
            _short(command.at),
            deployed.shard,
            command.kind,
            str(command.version or ""),
            reason,
            f"{deployed.done.seen:,}",
            str(deployed.done.seq),
        )
    _console().print(table)


# --- small things


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
    for partition, stretches in sorted(data["stretches"].items()):
        spans = ", ".join(f"{start:,} to {stop:,}" for start, stop in stretches)
        console.print(f"  {partition}: {spans}", markup=False)
    for source, count in sorted(data["sources"].items(), key=lambda item: -item[1])[:10]:
        console.print(f"  source {source}: {count:,}", markup=False)
