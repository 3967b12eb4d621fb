"""The commands about labels that come later."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midstream.flows.commands.terminal import (
    CONFIG_OPTION,
    FAILED,
    JSON,
    one_line_errors,
    print_json,
)

if TYPE_CHECKING:
    from midstream.flows.offline.tracing import Held, Trace

__all__ = ["feedback"]

_MEANING = {
    "waiting": "it waits for its label",
    "labelled": "its label came",
    "expired": "its time ended without a label",
    "late": "its label came after its time had ended, and was not learned",
    "early": "its label came first, and waits for the event",
    "dangling": "its label came, and no event with this id",
    "rejected": "what came with this id was not accepted",
    "predicted": "it was predicted after the newest snapshot",
    "done": "it was predicted; what became of it is not remembered any more",
    "label not read": "its label lies in the feedback, and was not applied yet",
    "never seen": "nothing is known of it",
}


@click.group()
def feedback() -> None:
    """Ask about labels that come after their event was predicted.

    [feedback] in the config says where they come from, and how long an event waits.
    """


@feedback.command()
@click.argument("event_id", metavar="ID")
@CONFIG_OPTION
@JSON
def show(event_id: str, config: Path, *, as_json: bool) -> None:
    """Show what became of the event ID.

    The command looks into the outputs, the newest snapshots and the files of the feedback. It says
    what it looked at, changes nothing, and works beside a run, whose state it knows as of the
    newest snapshot. It does not read topics. The exit code is 1 if nothing is known of ID.
    """
    from midstream.flows.loading import load
    from midstream.flows.offline.tracing import trace

    with one_line_errors(running=False, as_json=as_json):
        settings = load(config)
    with one_line_errors(running=True, as_json=as_json):
        found = trace(settings, event_id)
    if as_json:
        print_json(found)
    else:
        _print(found)
    sys.exit(FAILED if found.status == "never seen" else 0)


def _print(found: "Trace") -> None:
    click.echo(f"{found.id}: {found.status}, {_MEANING[found.status]}")
    lines: list[tuple[str, str]] = []
    for line in found.predictions:
        version, time = line["version"], _time(line["ts"])
        text = f"{_value(line['y_pred'])}, version {version}, event time {time}"
        lines.append(("  predicted", f"{text}, {_place(line['origin'])}"))
    for line in found.labels:
        source = f", from {line['source']}" if line["source"] else ""
        applied = "applied by the snapshot" if line["applied"] else "after the snapshot"
        text = f"{_value(line['y'])}, {_time(line['ts'])}{source}, {_place(line['origin'])}"
        lines.append(("  label", f"{text}, {applied}"))
    lines += [("  state", _known(held)) for held in found.state if held.fate is not None]
    lines += [("  review", line["file"]) for line in found.review]
    lines += [("  rejected", f"{e['reason']}, {_place(e['origin'])}") for e in found.rejected]
    for held in found.state:
        now = "" if held.now is None else f", event time {_time(held.now)}"
        snapshot = f"the snapshot of {_time(held.created)}, {held.seen:,} events{now}"
        lines.append(("looked at", f"shard {held.shard}: {snapshot}"))
    lines += [("looked at", source) for source in found.sources]
    for what, text in lines:
        click.echo(f"{what:<12}{text}")


def _known(held: "Held") -> str:
    assert held.fate is not None
    label = held.fate.get("label")
    text = f"{held.fate['status']}" + ("" if label is None else f", label {_value(label)}")
    if held.fate["status"] == "labelled":
        text += f", learned by {_time(held.created)} at the latest"
    if "learned" in held.fate:
        text += f", learned as {_value(held.fate['learned'])} until its label comes"
    return text


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _time(seconds: float | None) -> str:
    from midstream.flows.operating.operations import utc

    if seconds is None:
        return "unknown"
    try:
        return utc(seconds)
    except (OverflowError, ValueError):  # beyond the year 9999
        return f"{seconds:g}"


def _place(origin: Any) -> str:
    name, index, position = origin
    return f"{Path(name).name}:{position}" if not index else f"{name}:{index}:{position}"
