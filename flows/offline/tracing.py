"""What became of one event: found in outputs, snapshots and feedback, beside a run or without."""

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from midstream.connectors.input import InputError
from midstream.engine.joining.joiner import Joiner
from midstream.engine.shard.header import SnapshotHeader
from midstream.engine.shard.journal import Cursor
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.feedback import feedback_settings
from midstream.flows.inputs.reading import Reader
from midstream.flows.offline.saved_state import newest_snapshot
from midstream.flows.running.outputs import file_name

__all__ = ["Held", "Trace", "trace"]

_MOST = 100  # lines of one output
_LATE, _DANGLING = "its event had expired", "no event with this id came"


class Held(msgspec.Struct):
    """What the newest snapshot of a shard knows of an event.

    Attributes
    ----------
    shard
        The shard.
    created
        When the snapshot was made, in seconds since 1970.
    seen
        How many events the shard had seen.
    now
        The event time of the join; None before the first record with a time.
    fate
        What `Joiner.fate` says; None: nothing.
    """

    shard: str
    created: float
    seen: int
    now: float | None
    fate: dict[str, Any] | None


class Trace(msgspec.Struct):
    """What is known of an event.

    Attributes
    ----------
    id
        Its id.
    status
        `waiting`, `labelled`, `expired`, `late` (a label came after it had expired), `early` (a
        label waits for the event), `dangling` (a label came, and no event), `rejected`, `predicted`
        (after the snapshot), `done` (predicted, and forgotten since), `label not read` or
        `never seen`.
    predictions, review, rejected
        The lines of these outputs that are about it.
    labels
        The feedback for it in the files of `feedback.path`; `applied`: whether the newest snapshot
        has it.
    state
        By shard, what the newest snapshot knows.
    sources
        What was looked at, and what was not.
    """

    id: str
    status: str
    predictions: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    review: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    state: list[Held]
    sources: list[str]


def trace(settings: Settings, event_id: str) -> Trace:
    """Look for an event; nothing is changed, and a run may be at work.

    Raises
    ------
    ConfigError
        If the config has no [feedback].
    """
    if settings.feedback is None:
        raise ConfigError(
            f"{settings.file}: feedback: missing; needed: [feedback], which says how labels come"
        )
    sources: list[str] = []
    held, cursors = _state(settings, event_id, sources)
    lines = {
        kind: _output(settings, kind, event_id, sources)
        for kind in ("predictions", "review", "rejected")
    }
    labels = _labels(settings, event_id, cursors, sources)
    found = Trace(event_id, "", labels=labels, state=held, sources=sources, **lines)
    found.status = _status(found, cursors)
    return found


def _status(found: Trace, cursors: Mapping[str, Cursor]) -> str:
    fates = [held.fate["status"] for held in found.state if held.fate is not None]
    reasons = [line["reason"] for line in found.rejected]
    late = any(reason.startswith(_LATE) for reason in reasons)
    if fates:
        first = str(fates[0])
        if first == "label waits for its event":
            return "early"
        return "late" if first == "expired" and late else first
    if late:
        return "late"
    if found.review:
        return "expired"
    if found.predictions:
        applied = _applied(found.predictions[-1]["origin"], cursors)
        return "done" if applied else "predicted"
    if any(reason.startswith(_DANGLING) for reason in reasons):
        return "dangling"
    if found.rejected:
        return "rejected"
    return "label not read" if found.labels else "never seen"


def _applied(origin: Any, cursors: Mapping[str, Cursor]) -> bool:
    """Return whether a record had been applied when the snapshots were made."""
    name, index, position = origin
    if (cursor := cursors.get(name)) is not None:
        return bool(position < cursor.line)
    cursor = cursors.get(f"{name}-{index}")
    return cursor is not None and bool(position < cursor.offset)


# --- the newest snapshots


def _state(
    settings: Settings, event_id: str, sources: list[str]
) -> tuple[list[Held], dict[str, Cursor]]:
    """Return what snapshots know, and up to where they have applied the input."""
    folder = settings.state_path / "shards"
    held: list[Held] = []
    cursors: dict[str, Cursor] = {}
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        newest = newest_snapshot(place) if place.is_dir() else None
        if newest is None:
            continue
        snapshot, header = newest
        cursors |= header.cursors
        data = snapshot.parts.get("feedback")
        if data is None:
            sources.append(f"the snapshot of shard {place.name} is from before [feedback]")
            continue
        held.append(_held(place.name, header, Joiner.from_state(data), event_id))
    if not held:
        sources.append(f"no snapshot in {settings.state_path}")
    return held, cursors


def _held(shard: str, header: SnapshotHeader, joiner: Joiner, event_id: str) -> Held:
    now = joiner.now if joiner.now > float("-inf") else None
    return Held(shard, header.created, header.seen, now, joiner.fate(event_id))


# --- outputs


def _output(
    settings: Settings, kind: str, event_id: str, sources: list[str]
) -> list[dict[str, Any]]:
    """Return the lines of an output that are about an event."""
    if kind not in settings.outputs:
        sources.append(f"{kind}: not written")
        return []
    if (topic := settings.output.topics.get(kind)) is not None:
        sources.append(f"{kind}: topic {topic} was not read")
        return []
    files = sorted(settings.output_path.glob(file_name(kind, "*")))
    found: list[dict[str, Any]] = []
    ids = settings.feedback.fields.id if settings.feedback is not None else "id"
    names = {"id", ids, *_id_field(settings)}
    for file in files:
        begins = b'{"id":' + msgspec.json.encode(event_id) + b","
        needle = msgspec.json.encode(event_id)[1:-1] if kind == "rejected" else begins
        for line in _lines_with(file, needle):
            if kind != "rejected":
                if line.startswith(begins):
                    found.append({"file": file.name, **msgspec.json.decode(line)})
            elif _is_about(line, event_id, names):
                found.append({"file": file.name, **msgspec.json.decode(line)})
            if len(found) >= _MOST:
                sources.append(f"{kind}: the first {_MOST} lines about it in {file.name}")
                return found
    sources.append(f"{kind}: {', '.join(file.name for file in files) or 'no file yet'}")
    return found


def _id_field(settings: Settings) -> list[str]:
    fields = settings.input.fields
    return [] if fields is None or fields.id is None else [fields.id]


def _is_about(line: bytes, event_id: str, names: set[str]) -> bool:
    """Return whether a rejected record is one with this id, or has it as a word if it is cut."""
    raw = str(msgspec.json.decode(line)["raw"])
    try:
        record = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return re.search(rf"(?<![\w-]){re.escape(event_id)}(?![\w-])", raw) is not None
    if not isinstance(record, dict):
        return False
    return any(str(record.get(name)) == event_id for name in names)


def _lines_with(file: Path, needle: bytes) -> Iterator[bytes]:
    """Yield the whole lines of a file that contain something."""
    with file.open("rb") as opened:
        if not opened.seek(0, 2):
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(needle)
            while at >= 0:
                start, stop = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
                if stop < 0:  # a run is writing it
                    return
                yield data[start:stop]
                at = data.find(needle, stop + 1)


# --- feedback


def _labels(
    settings: Settings, event_id: str, cursors: Mapping[str, Cursor], sources: list[str]
) -> list[dict[str, Any]]:
    """Return the labels of an event in the files of the feedback."""
    labels = feedback_settings(settings)
    if labels is None:
        sources.append("feedback: it comes in the input, which was not read")
        return []
    if labels.input.topic is not None:
        sources.append(f"feedback: topic {labels.input.topic} was not read")
        return []
    found: list[dict[str, Any]] = []
    try:
        with closing(kind_of(labels.input).connect(labels, until_eof=True)) as source:
            reader = Reader(labels, source, wants_labels=False)
            with closing(reader.input):
                reader.input.seek({}, {})
                for _, decoded in reader:
                    batch = decoded.batch
                    for row, name in enumerate(batch.ids):
                        if name == event_id and len(found) < _MOST:
                            event, origin = batch.event(row), batch.origins[row]
                            found.append(
                                {"y": event.y, "ts": event.ts, "source": event.source,
                                 "origin": list(origin), "applied": _applied(origin, cursors)}
                            )  # fmt: skip
    except InputError as error:
        sources.append(f"feedback: {error}")
        return []
    sources.append(f"feedback: {labels.input.path}")
    return found
