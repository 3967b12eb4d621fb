"""Streams as files, in every format, and whole runs over them: `midstream run --until-eof`."""

import csv
import io
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import stream_models
from odd_streams import Stream
from stream_oracle import WrongError, engine_run, not_finite

from midstream.engine.events.event import Event
from midstream.engine.training.rejecting import MIN_EVENTS
from midstream.flows.loading import load
from midstream.flows.offline import evaluation
from midstream.flows.running import online
from midstream.flows.running.errors import FailingError

__all__ = ["FORMATS", "check_limit", "check_run", "formats", "typed"]

FORMATS = ("own", "flat", "csv", "parquet")
_ROLES = {"id": "id", "label": "label", "weight": "w", "time": "t"}
_KINDS = {int: "number", float: "number", bool: "bool", str: "string"}
_TYPES = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}


def typed(stream: Stream) -> Stream:
    """Return a stream that all formats can say: each feature of one type, ids given.

    A value of another type is left out, and so is text that CSV takes for a missing value.
    """
    counts: dict[str, Counter[type]] = {}
    for event in stream.events:
        for name, value in event.x.items():
            counts.setdefault(name, Counter())[type(value)] += 1
    kinds = {name: count.most_common(1)[0][0] for name, count in counts.items()}
    events = []
    for event in stream.events:
        x = {
            name: value
            for name in kinds
            if (value := event.x.get(name)) is not None
            and type(value) is kinds[name]
            and not (isinstance(value, str) and (not value.strip() or not value.isprintable()))
        }
        if x:
            y = event.y
            if y is not None and stream.case.task != "multiclass":
                y = bool(y) if stream.case.task == "binary" else float(y)
            events.append(msgspec.structs.replace(event, x=x, y=y, id=f"e{len(events)}"))
    names = list(
        dict.fromkeys(name for event in events for name in event.x)
    )  # a table has one order
    for event in events:
        event.x = {name: event.x[name] for name in names if name in event.x}
    settings = stream.settings | {"fading": min(stream.settings["fading"], 0.999)}
    return Stream(stream.seed, stream.case, events, settings)


def formats(stream: Stream) -> tuple[str, ...]:
    """Return the formats that can say a stream: a column of a table has values of one type."""
    kinds = {type(e.y) for e in stream.events} - {type(None)}
    return FORMATS if len(kinds) <= 1 else FORMATS[:2]


def write(stream: Stream, folder: Path, form: str) -> str:
    """Write a stream as a file; return its name."""
    names = list(dict.fromkeys(name for e in stream.events for name in e.x))
    if form == "parquet":
        return _write_parquet(stream, folder, names)
    if form == "csv":
        return _write_csv(stream, folder, names)
    rng = random.Random(f"gaps {stream.seed}")
    lines = []
    for event in stream.events:
        x = dict(event.x)
        for name in names:
            if name not in x and rng.random() < 0.3:
                x[name] = None  # type: ignore[assignment]  # a missing value
        rest = {"id": event.id, "t": event.ts, "w": event.weight, "label": event.y}
        if form == "own":
            rest = {"id": event.id, "ts": event.ts, "weight": event.weight, "y": event.y, "x": x}
            x = {}
        lines.append(
            json.dumps({k: v for k, v in (rest | x).items() if v is not None or k in names})
        )
    (folder / "events.jsonl").write_text("".join(line + "\n" for line in lines))
    return "events.jsonl"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _write_csv(stream: Stream, folder: Path, names: list[str]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_ROLES.values(), *names])
    for e in stream.events:
        table.writerow(
            map(_cell, [e.id, e.y, repr(e.weight), e.ts, *(e.x.get(name) for name in names)])
        )
    (folder / "events.csv").write_text(text.getvalue())
    return "events.csv"


def _write_parquet(stream: Stream, folder: Path, names: list[str]) -> str:
    def column(values: list[Any]) -> pa.Array:
        kinds = {type(v) for v in values} - {type(None)}
        kind = kinds.pop() if len(kinds) == 1 else float
        if kind is float:
            rng = random.Random(f"nans {stream.seed}")
            values = [
                (math.nan if rng.random() < 0.5 else None) if v is None else float(v)
                for v in values
            ]
        return pa.array(values, _TYPES[kind])

    labels = [e.y for e in stream.events]
    if {type(y) for y in labels} == {type(None)}:
        label = pa.array(labels, pa.float64() if stream.case.task != "multiclass" else pa.string())
    elif stream.case.task == "regression":
        label = pa.array([None if y is None else float(y) for y in labels], pa.float64())
    else:
        label = column(labels)
    table = {
        "id": pa.array([e.id for e in stream.events]),
        "label": label,
        "w": pa.array([e.weight for e in stream.events], pa.float64()),
        "t": pa.array([e.ts for e in stream.events], pa.float64()),
    }
    table |= {name: column([e.x.get(name) for e in stream.events]) for name in names}
    pq.write_table(pa.table(table), folder / "events.parquet")
    return "events.parquet"


def config(stream: Stream, folder: Path, form: str, name: str, limit: float = 1.0) -> Path:
    """Write the config of a run over a file of a stream."""
    settings = stream.settings
    text = _labels_are_said(stream, form)
    lines = [
        "[model]",
        'learner = "stream_models:configured"',
        f'task = "{stream.case.task}"',
        'on_error = "reject"',
        *(['labels = "text"'] if text else []),
        f"error_limit = {limit}",
        "[input]",
        f'path = "{name}"',
    ]
    if form != "own":
        kinds = {n: _KINDS[type(v)] for e in stream.events for n, v in e.x.items()}
        lines += ["[input.fields]", *(f'{role} = "{field}"' for role, field in _ROLES.items())]
        lines += ["[input.fields.types]", *(f'"{n}" = "{kind}"' for n, kind in kinds.items())]
    lines += [
        "[metrics]", f"window = {settings['window']}", f"fading = {settings['fading']}",
        "[drift]", f"detectors = {json.dumps(list(settings['drift']))}",
        "[replay]", f"capacity = {settings['replay']}", f"max_bytes = {settings['max_bytes']}",
        "[versions]", "enabled = false",
    ]  # fmt: skip
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _labels_are_said(stream: Stream, form: str) -> bool:
    """Whether the config says that labels are text: in CSV they may look like numbers."""
    return (
        form == "csv"
        and stream.case.task == "multiclass"
        and any(type(e.y) is str for e in stream.events)
    )


def lines_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return what a run put out."""
    path = folder / "out" / f"{kind}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_run(stream: Stream, folder: Path, form: str) -> str:
    """Run a config over a stream; compare with the engine by itself; return the digest.

    Raises
    ------
    WrongError
        If predictions, what was rejected, metrics or the digest are others.
    """
    folder.mkdir(parents=True)
    stream_models.chosen[:] = [stream.case.make]
    file = folder / write(stream, folder, form)
    settings = load(config(stream, folder, form, file.name))
    rng, pieces = random.Random(f"halves {stream.seed}"), file.read_bytes().splitlines(True)
    if form in ("own", "csv") and len(pieces) > 3:  # it grows, and is gone on with
        file.write_bytes(b"".join(pieces[: rng.randint(2, len(pieces) - 1)]))
        online.run(settings, until_eof=True)
        file.write_bytes(b"".join(pieces))
    summary = online.run(settings, until_eof=True)
    if form == "own":
        counted, _ = evaluation.evaluate(settings)
        if counted.digest != summary.digest:
            raise WrongError("evaluate gives another digest than run")
    more = {"labels": "text"} if _labels_are_said(stream, form) else {}
    alone = Stream(stream.seed, stream.case, stream.events, stream.settings | more)
    expected = engine_run(alone, most=len(stream.events))
    events: list[Event] = stream.events
    predictions = {line["id"]: line for line in lines_of(folder, "predictions")}
    rejected = lines_of(folder, "rejected")
    first = 2 if form == "csv" else 1
    gone = sorted(line["origin"][2] - first for line in rejected)
    wanted = sorted(expected.refused + expected.raised)
    if gone != wanted or len(predictions) != len(events) - len(wanted):
        raise WrongError(
            f"{form}: rejected {gone} ({rejected[:1]}), expected {wanted}; {len(predictions)} "
            f"predictions for {len(events)} events"
        )
    for i, event in enumerate(events):
        line, row = predictions.get(str(event.id)), expected.rows[i]
        if (line is None) != (row is None):
            raise WrongError(f"{form}: event {i}: line {line}, expected {row}")
        if line is None or row is None:
            continue
        _check_line(form, i, line, row)
    if summary.digest["000"] != expected.digest:
        raise WrongError(f"{form}: the digest differs from that of the engine by itself")
    if {k: repr(v) for k, v in summary.metrics.items()} != {
        k: repr(v) for k, v in expected.metrics.items()
    }:
        raise WrongError(f"{form}: metrics {summary.metrics}, expected {expected.metrics}")
    return summary.digest["000"]


def check_limit(stream: Stream, folder: Path, limit: float) -> bool:
    """Run a config with a limit to what the learner may fail on; return whether it stopped.

    Raises
    ------
    WrongError
        If the run stops and should not, or the other way round.
    """
    folder.mkdir(parents=True)
    stream_models.chosen[:] = [stream.case.make]
    settings = load(config(stream, folder, "own", write(stream, folder, "own"), limit))
    expected = engine_run(stream, most=len(stream.events))
    failed = [
        i in expected.raised or (row is not None and not_finite(stream.case.task, row))
        for i, row in enumerate(expected.rows)
    ]
    given = len(failed) - len(expected.refused)
    too_many = sum(failed) > limit * given or any(
        sum(failed[:stop]) > limit * stop for stop in range(MIN_EVENTS, len(failed) + 1)
    )
    try:
        online.run(settings, until_eof=True)
    except FailingError as error:
        if not too_many:
            raise WrongError(f"{sum(failed)} of {given} failed: {error}") from error
    else:
        if too_many:
            raise WrongError(f"{sum(failed)} of {given} failed, and it ends well ({limit})")
    return too_many


def _check_line(form: str, i: int, line: dict[str, Any], row: tuple[Any, Any, float]) -> None:
    value, proba = row[:2]
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    if line["y_pred"] != value or type(line["y_pred"]) is not type(value):
        raise WrongError(f"{form}: event {i}: published {line['y_pred']!r}, predicted {value!r}")
    found = line["y_proba"]
    if not proba or not all(math.isfinite(p) for p in proba.values()):
        if found and any(p is not None for p in found.values()):
            raise WrongError(f"{form}: event {i}: published {found}, predicted {proba}")
        return
    names = {str(k).lower() if isinstance(k, bool) else str(k): p for k, p in proba.items()}
    if len(names) != len(proba) or names != found:
        raise WrongError(f"{form}: event {i}: published {found}, predicted {proba}")
