"""Mutated lines: nothing crashes, nothing is lost, and the cuts never matter."""

import gzip
import json
import math
import os
import random
import re
from collections.abc import Iterator

import pytest
from framing import record_end

from midstream.connectors.decode.column_decoder import ColumnDecoder
from midstream.connectors.decode.csv_decoder import CsvDecoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.json_decoder import JsonDecoder
from midstream.connectors.files.discovery import FilePartition
from midstream.connectors.input import Block

LINES = int(os.environ.get("MIDSTREAM_FUZZ_DECODED", "3000"))  # of a form and part
LIMIT = 2048
TEXTS = [
    "a", "b c", "", "x:y", 'say "hi"', "}{", '":', "\\", "Grüße", "\N{GRINNING FACE}", "null",
    "12:30", "\n", "\x00", "[1]",
]  # fmt: skip
PIECES = [
    b'"', b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\n", b"\n", b"\r", b"\r\n", b"\t",
    b" ", b"\x00", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\\ud800", b"\\ud83d\\ude00",
    b"\\u0061", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-", b"0", b"1", b"9" * 20,
    b'":', b'" :', b"}{", b"} {", b"}\r{", b'"x":{}', b'"y":1,', b'"a":1,', b",,", b"{}", b'""',
    b"\xef\xbb\xbf", b"x" * 600, b"[" * 40,
]  # fmt: skip
NUMBERS = [
    b"0", b"-0", b"-0.0", b"01", b"1.", b".5", b"+1", b"1e5", b"1E-5", b"1e400", b"-1e400",
    b"1e-400", b"nan", b"inf", b"9223372036854775807", b"9223372036854775808",
    b"-9223372036854775809", b"1_0", b"0x1", b"9" * 450, b"9" * 4500, b"true", b'"1"', b"null",
    b"1.0", b"2.5", b"007", b"",
]  # fmt: skip


def number(rng: random.Random) -> float | int:
    return rng.choice([rng.gauss(0, 1), round(rng.gauss(0, 9), 3), rng.randrange(-9, 1000), 1e22])


def features(rng: random.Random) -> dict:
    x = {f"f{i}": number(rng) for i in range(rng.randrange(1, 5))}
    if rng.random() < 0.5:
        x[rng.choice(["a", "b c", 'q"', "é"])] = rng.choice([*TEXTS, True, None, math.nan])
    return x


def own_line(rng: random.Random) -> bytes:
    event: dict = {"id": f"i{rng.randrange(999)}", "x": features(rng), "y": rng.random() < 0.5}
    for name, values in (
        ("ts", [1.5, 7, None, 1.7e12, 1_700_000_000_000_000]), ("key", ["k", None]),
        ("weight", [0, 2.5]), ("source", TEXTS),
        ("group", [{"sex": "f"}, {}, None]),
    ):  # fmt: skip
        if rng.random() < 0.3:
            event[name] = rng.choice(values)
    return dumped(event, rng)


def flat_line(rng: random.Random) -> bytes:
    event: dict = {"tx": f"i{rng.randrange(999)}", "y": rng.choice([0, 1, True, None, math.nan])}
    if rng.random() < 0.1:
        del event["y"]
    event |= features(rng)
    for name, values in (
        ("at", [1.5, "2024-01-02T03:04:05Z", "7", None, 20240102, 1.7e12]), ("w", [1, 0.5]),
        ("shop", ["s", 7, 1.5]),
        ("meta", [1, {"a": [1, {"b": 2}]}, []]), ("zip", ["007", 7, None]),
    ):  # fmt: skip
        if rng.random() < 0.4:
            event[name] = rng.choice(values)
    return dumped(event, rng)


def dumped(event: dict, rng: random.Random) -> bytes:
    separators = (", ", ": ") if rng.random() < 0.3 else (",", ":")
    return json.dumps(event, separators=separators, ensure_ascii=rng.random() < 0.5).encode()


def csv_line(rng: random.Random) -> bytes:
    cells = [
        f"i{rng.randrange(999)}",
        rng.choice(["0", "1", "true", ""]),
        rng.choice(["1.5", "2024-01-02", "", "1700000000000"]),
        repr(number(rng)),
        repr(number(rng)) if rng.random() < 0.8 else "",
        rng.choice(["a", "b", "x y", "007", "null", "true", "", "\u0661", '"1,5"', '"1.500,5"']),
        rng.choice(['"a,b"', '"say ""hi"""', '"two\nlines"', "plain", "plain", "plain"]),
    ]
    return ",".join(cells).encode()


HEADER = ["tx", "y", "at", "f0", "f1", "text", "quoted"]
FLAT = FieldMap(
    id="tx", label="y", time="at", weight="w", group=["shop"], exclude=["meta"],
    types={"zip": "string"},
)  # fmt: skip
SOME = FieldMap(id="tx", label="y", features=["f0", "f1", "a", "zip"])
SCHEMA = {f"f{i}": "number" for i in range(4)} | {"a": "category", "b c": "category",
                                                   "é": "category"}  # fmt: skip
FLAT_COLUMNS = FieldMap(
    id="tx", label="y", time="at", weight="w", group=["shop"], exclude=["meta", "zip"]
)
CSV = FieldMap(id="tx", label="y", time="at")
LACKING = {"missing": ["a", "12:30", "[1]", 7, "0.5", "i7"], "decimal": ","}
FLAT_LACKING = FieldMap(
    id="tx", label="y", time="at", weight="w", exclude=["meta", "zip", "shop"], time_unit="ms",
    **LACKING,
)  # fmt: skip
CSV_LACKING = FieldMap(id="tx", label="y", time="at", time_unit="us", **LACKING)
FORMS = {
    "own": (own_line, lambda: JsonDecoder("binary")),
    "own multiclass": (own_line, lambda: JsonDecoder("multiclass")),
    "flat": (flat_line, lambda: JsonDecoder("binary", FLAT)),
    "flat features": (flat_line, lambda: JsonDecoder("regression", SOME)),
    "own columns": (own_line, lambda: ColumnDecoder("binary", None, SCHEMA)),
    "flat columns": (flat_line, lambda: ColumnDecoder("binary", FLAT_COLUMNS, SCHEMA)),
    "flat missing": (flat_line, lambda: JsonDecoder("multiclass", FLAT_LACKING)),
    "missing columns": (flat_line, lambda: ColumnDecoder("binary", FLAT_LACKING, SCHEMA)),
    "csv": (csv_line, lambda: CsvDecoder(HEADER, "binary", CSV)),
    "csv missing": (csv_line, lambda: CsvDecoder(HEADER, "multiclass", CSV_LACKING)),
}


def mutated(line: bytes, rng: random.Random) -> bytes:
    """One or more random changes; newlines among them split and join lines."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(line) + 1)
        match rng.randrange(8):
            case 0 if line:
                at = rng.randrange(len(line))
                line = line[:at] + bytes([line[at] ^ 1 << rng.randrange(8)]) + line[at + 1 :]
            case 1:
                line = line[:at] + line[at + rng.randrange(1, 20) :]
            case 2:
                line = line[:at] if rng.random() < 0.5 else line[at:]
            case 3 | 4:
                line = line[:at] + rng.choice(PIECES) + line[at:]
            case 5:  # a key, or a cell, twice
                found = list(re.finditer(rb'"[^"]*": ?[^,{}]*,|[^,]*,', line))
                if found:
                    twice = rng.choice(found)
                    line = line[: twice.end()] + twice.group() + line[twice.end() :]
            case 6:
                found = list(re.finditer(rb"-?[0-9]+(?:\.[0-9]+)?|true|false|null", line))
                if found:
                    old = rng.choice(found)
                    line = line[: old.start()] + rng.choice(NUMBERS) + line[old.end() :]
            case 7:
                line += rng.choice([b"", b" ", b"\n", b"\n \t\r\n"]) + line
    return line


def stream(line, rng: random.Random, n: int) -> bytes:
    """At least `n` lines, in stretches from not to wholly mutated."""
    out = bytearray()
    count = 0
    while count < n:
        rate = rng.choice([0, 0, 0.005, 0.05, 0.5, 1])
        for _ in range(200):
            new = line(rng)
            if rng.random() < rate:
                new = mutated(new, rng)
            end = b"" if rng.random() < rate / 20 else rng.choice([b"\n", b"\n", b"\n", b"\r\n"])
            out += new + end
            count += 1
    return bytes(out)


def records(content: bytes, *, csv: bool) -> Iterator[tuple[int, bytes]]:
    """Yield (line, record) by the definition, a line at a time."""
    content += b"" if content.endswith(b"\n") else b"\n"
    at, number = 0, 1
    while at < len(content):
        end = csv and record_end(content[at : at + LIMIT + 1], len(HEADER))
        stop = at + end if end else content.index(b"\n", at) + 1
        yield number, content[at : stop - 1]
        number += content.count(b"\n", at, stop)
        at = stop


def events(decoded) -> dict[int, str]:
    """Each event by its line, with values, types and bits."""
    batch = decoded.batch
    for x in batch.dicts():
        for value in x.values():
            assert type(value) in (int, float, str, bool)
            assert type(value) is not float or math.isfinite(value)
    return {
        int(offset): repr((e.id, e.x, e.y, e.ts, e.key, e.weight, e.source, e.group))
        for offset, e in zip(batch.offsets, batch, strict=True)
    }


def rejections(decoded) -> dict[int, tuple[str, str, str]]:
    for r in decoded.rejected:
        assert r.reason
        assert len(r.raw) <= 1024
        assert not r.reason.endswith("None"), r
    return {r.origin[2]: (r.reason, r.path, r.raw) for r in decoded.rejected}


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("form", FORMS)
def test_no_line_is_lost_and_no_cut_matters(tmp_path, form, part):
    """Every record is an event or a rejection with its line, the same in a block as alone."""
    make_line, make_decoder = FORMS[form]
    rng = random.Random(f"{form} {part}")
    content = stream(make_line, rng, LINES)
    csv = form.startswith("csv")
    head = b",".join(name.encode() for name in HEADER) + b"\n" if csv else b""

    path = tmp_path / "events"
    path.write_bytes(gzip.compress(head + content) if part == 0 else head + content)
    decoder = make_decoder()
    partition = FilePartition(
        path, "events", format="csv" if csv else "jsonl", max_record_bytes=LIMIT
    )
    accepted: dict[int, str] = {}
    rejected: dict[int, tuple[str, str, str]] = {}
    counted = 0
    while block := partition.read(rng.choice([1, 300, 5000, 5000, 60_000]), final=True):
        decoded = decoder.decode(block)
        counted += len(decoded.batch) + len(decoded.rejected)
        assert decoded.batch.offsets.tolist() == sorted(decoded.batch.offsets.tolist())
        accepted |= events(decoded)
        rejected |= rejections(decoded)
    partition.close()
    assert counted == len(accepted) + len(rejected)
    assert not accepted.keys() & rejected.keys()

    alone = make_decoder()
    good = bad = 0
    for number, record in records(content, csv=csv):
        line = number + csv
        if len(record) > LIMIT:
            reason = f"record of {len(record):,} bytes; the limit is 2,048"
            assert rejected.pop(line)[:2] == (reason, "")
            bad += 1
            continue
        data = record + b"\n"
        decoded = alone.decode(Block("events", data, line, data.count(b"\n"), 0, len(data)))
        if not record.strip():
            assert len(decoded.batch) + len(decoded.rejected) <= csv
        else:
            assert len(decoded.batch) + len(decoded.rejected) == 1
        for number_alone, event in events(decoded).items():
            assert accepted.pop(number_alone) == event, record
            good += 1
        for number_alone, rejection in rejections(decoded).items():
            assert rejected.pop(number_alone) == rejection, record
            bad += 1
    assert not accepted
    assert not rejected
    assert good > LINES // 10, good
    assert bad > LINES // 20, bad


def the_event(record: bytes) -> dict | None:
    """What a record in our own form means, by the json module and the definition; None: nothing."""

    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    def constant(text):
        if text != "NaN":
            raise ValueError(text)

    def scalar(value):
        kind = type(value)
        return (
            kind in (bool, str)
            or (kind is int and -(2**63) <= value < 2**63)
            or (kind is float and math.isfinite(value))
        )

    def positive(value, least):
        return type(value) in (int, float) and abs(value) < 1.7e308 and value >= least

    try:
        text = record.decode()
        doc = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
        json.dumps(doc, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    fields = {"id", "x", "y", "ts", "key", "weight", "source", "group"}
    if not isinstance(doc, dict) or not doc.keys() <= fields or not isinstance(doc.get("x"), dict):
        return None
    doc = {k: v for k, v in doc.items() if v is not None}
    doc["x"] = {k: v for k, v in doc["x"].items() if v is not None}
    ok = (
        doc["x"]
        and all(map(scalar, doc["x"].values()))
        and all(isinstance(doc.get(name, ""), str) for name in ("id", "key", "source"))
        and positive(doc.get("ts", 0), -math.inf)
        and abs(doc.get("ts", 0)) < 1e20
        and positive(doc.get("weight", 0), 0)
        and isinstance(doc.get("group", {}), dict)
        and all(isinstance(v, str) for v in doc.get("group", {}).values())
        and doc.get("y", 0) in (0, 1)
    )
    return doc if ok else None


def in_seconds(time: float) -> float:
    """The definition: each unit begins at a thousand times as much."""
    for per_second in (1, 10**3, 10**6):
        if abs(time) < 1e11 * per_second:
            return float(time) / per_second
    return float(time) / 10**9


def test_the_decoder_accepts_what_the_definition_accepts():
    """An independent reading with the json module accepts the same lines, with the same values."""
    rng = random.Random(7)
    content = stream(own_line, rng, 20_000)
    decoded = JsonDecoder("binary").decode(
        Block("events", content, 1, content.count(b"\n"), 0, len(content))
    )
    accepted = dict(zip(decoded.batch.offsets.tolist(), decoded.batch, strict=True))
    checked = 0
    for number, record in records(content, csv=False):
        wanted = the_event(record)
        event = accepted.pop(number, None)
        assert (event is None) == (wanted is None), record
        if event is not None and wanted is not None:
            checked += 1
            assert repr(event.x) == repr(wanted["x"])
            assert event.y is ({0: False, 1: True}[wanted["y"]] if "y" in wanted else None)
            assert event.id == wanted.get("id", f"events-{number}")
            assert repr(event.ts) == repr(in_seconds(wanted["ts"]) if "ts" in wanted else None)
            assert repr(event.weight) == repr(float(wanted.get("weight", 1)))
            assert (event.key, event.source) == (wanted.get("key"), wanted.get("source"))
            assert event.group == wanted.get("group")
    assert not accepted
    assert checked > 8000
