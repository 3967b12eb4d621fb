"""The same value is the same event, or is rejected for the same reason, in every format."""

import io
import json
import math
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from midstream import EventBatch, Trainer
from midstream.connectors.decode.arrow_decoder import TableDecoder, join
from midstream.connectors.decode.column_decoder import ColumnDecoder
from midstream.connectors.decode.csv_decoder import CsvDecoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.json_decoder import JsonDecoder
from midstream.connectors.input import Block, Decoded
from midstream.connectors.kafka.messages import MessageBlock, MessageDecoder, Messages
from midstream.engine.learners.softmax import SoftmaxLearner


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()
FAR = "number is too large or not finite"


class Case(NamedTuple):
    """A value of a feature, label, weight or time, and what is to be made of it."""

    value: Any
    wanted: Any = None  # what the event has then; None: nothing, the value is missing
    reason: str = ""  # or why it is rejected
    role: str = "a"  # a, y, w, t
    task: str = "binary"
    missing: tuple = ()
    unit: str = "auto"


NAN, INF = math.nan, math.inf
CASES = [
    Case(1.5, 1.5),
    Case(7, 7.0),
    Case(NAN),
    Case(None),
    Case(ABSENT),
    Case(INF, reason=FAR),
    Case(-INF, reason=FAR),
    Case(-999, missing=("-999",)),
    Case(-999.0, missing=(-999,)),
    Case(-998.0, -998.0, missing=(-999, "NA")),
    *(Case(value, role="y", task=task)
      for task in ("binary", "multiclass", "regression") for value in (NAN, None, ABSENT)),
    *(Case(INF, reason=FAR, role="y", task=task) for task in ("binary", "regression")),
    Case(1, True, role="y"),
    Case(0.0, False, role="y"),
    Case(2.0, reason="label must be true/false or 0/1 for task binary, found 2", role="y"),
    Case(2.0, 2, role="y", task="multiclass"),
    Case(-3, -3, role="y", task="multiclass"),
    Case(2.5, 2.5, role="y", task="regression"),
    Case(-1, role="y", missing=("-1",)),
    Case(-1, role="y", task="regression", missing=(-1.0,)),
    Case(2.5, 2.5, role="w"),
    Case(NAN, 1.0, role="w"),
    Case(None, 1.0, role="w"),
    Case(ABSENT, 1.0, role="w"),
    Case(-1.0, reason="weight must be a finite number of at least 0, found -1.0", role="w"),
    Case(INF, reason=FAR, role="w"),
    Case(-9.0, 1.0, role="w", missing=(-9,)),
    Case(NAN, role="t"),
    Case(INF, reason=FAR, role="t"),
    Case(1_764_000_000, 1_764_000_000.0, role="t"),
    Case(1_764_000_000_250, 1_764_000_000.25, role="t"),
    Case(1_764_000_000_250_000, 1_764_000_000.25, role="t"),
    Case(1_764_000_000_000_000_000, 1_764_000_000.0, role="t"),
    Case(-1_764_000_000_250, -1_764_000_000.25, role="t"),
    Case(99_999_999_999, 99_999_999_999.0, role="t"),
    Case(1e21, reason="time is too large a number", role="t"),
    Case(5_000, 5.0, role="t", unit="ms"),
    Case(5_000, 0.005, role="t", unit="us"),
    Case(1_764_000_000_250, 1_764_000_000_250.0, role="t", unit="s"),
]  # fmt: skip
FLAT_ONLY = [  # what can be said of fields only: our own form has numbers, and seconds
    Case(20261129, reason="time 20261129 may be a date or a number of seconds", role="t"),
    Case(20261129, 20261129.0, role="t", unit="s"),
    Case(20261129, 1_795_910_400.0, role="t", unit="date"),
    Case(20261129030000, reason="time 20261129030000 may be a date", role="t"),
    Case(20261129030000, 1_795_921_200.0, role="t", unit="date"),
    Case(1_764_000_000, reason="time must be the digits of a date (time_unit)", role="t",
         unit="date"),
]  # fmt: skip
TEXTS = [  # values that are text
    Case("x", "x"),
    Case("NA", missing=("NA", "-", "?")),
    Case(" ? ", missing=("NA", "-", "?")),
    Case("b", "b", role="y", task="multiclass"),
    Case("?", role="y", task="multiclass", missing=("?",)),
    Case("20261129T030000Z", 1_795_921_200.0, role="t"),
    Case("2026-11-29", 1_795_910_400.0, role="t"),
    Case("2026-11-29T03:00:00+03:00", 1_795_910_400.0, role="t"),
    Case("1764000000250", 1_764_000_000.25, role="t"),
    Case("20261129", reason="time 20261129 may be a date or a number of seconds", role="t"),
    Case("20261129", 1_795_910_400.0, role="t", unit="date"),
    Case("5000", 5.0, role="t", unit="ms"),
    Case("-", role="t", missing=("-",)),
    Case("soon", reason="time must be seconds or ISO 8601, found 'soon'", role="t"),
]  # fmt: skip


def fields_of(case: Case) -> FieldMap:
    return FieldMap(
        label="y", weight="w", time="t", missing=list(case.missing), time_unit=case.unit
    )


def record(case: Case) -> dict[str, Any]:
    """The event, flat; every other feature is there, so that one may be missing."""
    y = {"binary": True, "multiclass": "b", "regression": 1.5}[case.task]
    row = {"a": 1.0, "b": 2.0, "y": y, "w": 2.0, "t": 1_700_000_000.0, case.role: case.value}
    return {k: v for k, v in row.items() if v is not ABSENT}


def told(decoded, case: Case, *, own: bool = False) -> Any:
    """What the value has become; or the reason of the rejection, whose path is checked."""
    if decoded.rejected:
        (rejected,) = decoded.rejected
        path = case.role
        if own:
            path = {"a": "$.x.a", "y": "$.y", "w": "$.weight", "t": "$.ts"}[path]
        assert rejected.path.removeprefix("row 0: ") in (path, path.removeprefix("$.x.")), rejected
        return rejected.reason
    (event,) = decoded.batch
    return {"a": event.x.get("a"), "y": event.y, "w": event.weight, "t": event.ts}[case.role]


def block(*lines: bytes) -> Block:
    data = b"\n".join([*lines, b""])
    return Block("p", data, 1, len(lines), 0, len(data))


def as_json(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode()


def own_form(row: dict[str, Any]) -> dict[str, Any]:
    event: dict[str, Any] = {"x": {k: row[k] for k in ("a", "b") if k in row}}
    for name, role in (("y", "y"), ("w", "weight"), ("t", "ts")):
        if name in row:
            event[role] = row[name]
    return event


def tables(row: dict[str, Any], case: Case, features=None):
    """The row as an Arrow message and as a Parquet file, decoded."""
    table = pa.table({name: [value] for name, value in row.items()})
    yield "Arrow", from_table(table, case, features)
    file = io.BytesIO()
    pq.write_table(table, file)
    yield "Parquet", from_table(pq.read_table(io.BytesIO(file.getvalue())), case, features)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    yield "Arrow message", from_message(sink.getvalue().to_pybytes(), case, features)


def from_table(table, case: Case, features):
    form = TableDecoder(case.task, fields_of(case), features).form(table.schema)
    chosen = form.select(join(table.to_batches()))
    return form.events(chosen, np.zeros(1, np.int64), "p", -1)


def from_message(value: bytes, case: Case, features=None):
    decoder = MessageDecoder(case.task, fields_of(case), features, 2**20)
    messages = Messages([value], np.arange(1), [-1])
    return decoder.decode(MessageBlock("p", 0, messages, 0, 1))


def cell(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def in_every_format(case: Case):
    """Yield (format, what it makes of the case)."""
    row, fields = record(case), fields_of(case)
    line = as_json(row)
    schema = {"a": "number", "b": "number"}
    if case.role == "a" and isinstance(case.value, str):
        schema["a"] = "category"
    yield "flat JSON", told(JsonDecoder(case.task, fields).decode(block(line)), case)
    columns = ColumnDecoder(case.task, fields, schema)
    yield "columns", told(columns.decode(block(line)), case)
    yield "Kafka message", told(from_message(line, case), case)
    cells = ",".join(cell(value) for value in row.values()).encode()
    if case.value is not ABSENT or case.role in "ay":  # of other columns the file has to have all
        decoder = CsvDecoder(list(row), case.task, fields)
        yield "CSV", told(decoder.decode(block(cells)), case)
    if case.value is not ABSENT:
        for name, decoded in tables(row, case):
            yield name, told(decoded, case)
        if case.role != "y" or case.task != "multiclass":
            for name, decoded in tables(row, case, schema):
                yield f"{name} in columns", told(decoded, case)
    if (
        not case.missing
        and case.unit == "auto"
        and not (isinstance(case.value, str) and case.role == "t")
    ):
        own = as_json(own_form(row))
        yield "own form", told(JsonDecoder(case.task).decode(block(own)), case, own=True)
        columns = ColumnDecoder(case.task, None, schema)
        yield "own columns", told(columns.decode(block(own)), case, own=True)
        yield "Python", in_python(row, case)


def in_python(row: dict[str, Any], case: Case) -> Any:
    model = SoftmaxLearner() if case.task == "multiclass" else Plain(case.task)
    trainer = Trainer(model)
    batch = EventBatch(
        [{k: row[k] for k in ("a", "b") if k in row}],
        [row.get("y")],
        weights=[row.get("w")],
        times=[row.get("t")],
    )
    taken, rejected = trainer.admit(batch)
    return told(Decoded(taken, rejected), case, own=True)


class Plain:
    """A learner that learns nothing and takes all."""

    kind = "plain"
    needs = "dicts"
    takes_weights = True

    def __init__(self, task: str) -> None:
        self.task = task

    def predict_learn(self, batch): ...
    def predict(self, batch): ...
    def learn(self, batch): ...
    def state(self): ...
    def definition(self): ...


def same(found: Any, case: Case) -> bool:
    if case.reason:
        return isinstance(found, str) and found.startswith(case.reason)
    if case.role in ("a", "w", "t") and isinstance(found, int | float):
        return type(case.wanted) is float and float(found) == case.wanted
    return repr(found) == repr(case.wanted)


@pytest.mark.parametrize("case", [*CASES, *FLAT_ONLY, *TEXTS], ids=repr)
def test_a_value_means_the_same_in_every_format(case):
    """JSON in two forms and two ways, CSV, Arrow, Parquet, messages, and Python."""
    found = dict(in_every_format(case))
    if case in FLAT_ONLY:
        found = {k: v for k, v in found.items() if not k.startswith(("own", "Python"))}
    wrong = {name: value for name, value in found.items() if not same(value, case)}
    assert not wrong, wrong
    assert len(found) >= 4
