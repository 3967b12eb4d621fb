"""The scanner of plain lines: what it takes is, bit for bit, what a full decoder gives."""

import json
import math
import os
import random
import struct

import numpy as np
import pytest

from midstream.connectors.decode import scanner
from midstream.connectors.decode.column_decoder import ColumnDecoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.decode.scanner import Field, Interner, Scanner
from midstream.connectors.input import Block

LINES = int(os.environ.get("MIDSTREAM_FUZZ_LINES", "0"))
SCHEMA = {"a": "number", "b": "number", "city": "category", "größe": "number"}
FLAT = FieldMap(id="tx", label="y", time="at", weight="w", key="who", source="from", exclude=["m"])
NUMBERS = Scanner({"x": Field("number")})


def scanned(*tokens: str) -> list[float] | None:
    """Return numbers as the scanner reads them."""
    scan = NUMBERS.scan("".join(f'{{"x":{token}}}\n' for token in tokens).encode(), len(tokens))
    return None if scan is None else scan.numbers[:, 0].tolist()


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def number(rng: random.Random) -> str:
    """Draw a number as somebody may write it: mostly valid, also at the edges of doubles."""
    kind = rng.randrange(9)
    if kind == 0:
        return str(rng.randrange(-(10 ** rng.randrange(1, 20)), 10 ** rng.randrange(1, 20)))
    if kind == 1:
        return repr(rng.gauss(0, 1))
    if kind == 2:
        return repr(struct.unpack("<d", rng.randbytes(8))[0])
    if kind == 3:
        return f"{rng.gauss(0, 10 ** rng.randrange(6)):.{rng.randrange(20)}f}"
    if kind == 4:
        return f"{rng.random():.{rng.randrange(20)}{rng.choice('eE')}}"
    if kind == 5:  # half way between two doubles, and close to it
        whole = rng.randrange(2**53, 2**54) * 2 + 1 if rng.random() < 0.5 else 2**53 + 1
        return f"{whole + rng.choice((0, 0, 1, -1))}e{rng.randrange(-30, 30)}"
    if kind == 6:
        digits = "".join(rng.choices("0123456789", k=rng.randrange(1, 22)))
        return f"{rng.choice(('', '-'))}{rng.choice(('', '0.', '0.000', '3.'))}{digits}"
    if kind == 7:
        return f"{rng.randrange(10**18)}e{rng.randrange(-345, 312)}"
    return rng.choice(("0", "-0", "-0.0", "0.0", "0e5", "1e22", "1e23", "5e-324", "1e309", "9e18"))


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_rounded_as_python_rounds_them(seed):
    """Bit for bit, in whatever way they are written; what is not taken is never guessed."""
    rng = random.Random(seed)
    taken = 0
    for _ in range(max(LINES // 4, 10_000)):
        token = number(rng)
        found = scanned(token)
        if found is None:
            continue
        taken += 1
        value = json.loads(token)
        assert bits(found[0]) == bits(float(value)), token
    assert taken > 5_000


@pytest.mark.parametrize("power", range(-4, 23))
def test_half_way_between_two_doubles_it_is_the_even_one(power):
    """And next to it the nearer one: drawn so, since numbers of other tests hardly ever are."""
    rng = random.Random(power)
    tokens = []
    for _ in range(200):
        odd = rng.randrange(2**53, 2**54)  # a bit more than a double has
        whole = (odd | 1) * 5**-power if power < 0 else odd // 5**power | 1
        tokens += [f"{whole + near}e{power}" for near in (0, 0, 1, -1)]
    tokens = [token for token in tokens if len(token.partition("e")[0]) <= 19]
    assert len(tokens) > 300
    for token, found in zip(tokens, scanned(*tokens), strict=True):
        assert bits(found) == bits(float(token)), token


@pytest.mark.parametrize(
    "token",
    [
        "1", "-1", "0", "0.5", "-0.0", "1e5", "1E+5", "1.5e-7", "123456789012345678", "true",
        "false", "0.1234567890123456789", "0.0001234567890123456789", "1.7976931348623157e308",
        "2.2250738585072014e-308", "9007199254740993", "9007199254740993.0",
    ],
)  # fmt: skip
def test_usual_numbers_are_taken(token):
    """Those of a stream need no other decoder."""
    (value,) = scanned(token)
    assert bits(value) == bits(float(json.loads(token)))


@pytest.mark.parametrize(
    "token",
    [
        "-0", "01", "-", "+1", ".5", "1.", "1e", "1e+", "0x1", "1_0", "NaN", "Infinity", "-1e400",
        "tru", "nul", "1e400", "1e-400", "1234567890123456789", "1.23456789012345678901", '"1"',
        "[1]", "{}", "", "1 2", "00", "-01", "1e00001",
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_others(token):
    """Also where it is valid, and would only take more care."""
    assert scanned(token) is None


def line(rng: random.Random, *, flat: bool) -> str:
    """Draw a line: of our own form, or a flat object; most are valid, few are plain."""
    space = rng.choice(("", "", " ", "  "))

    def text() -> str:
        return rng.choice(
            ('"e1"', '"x y"', '""', '"\\u00e9"', '"é"', '"\\n"', "7", "null", '"a\tb"')
        )

    def scalar() -> str:
        return rng.choice((number(rng), number(rng), "true", "null", text(), "[1]", '"1.5"'))

    features = {name: scalar() if rng.random() < 0.1 else number(rng) for name in ("a", "b")}
    features["größe"] = number(rng)
    features["city"] = rng.choice(('"Rome"', '"Oslo"', '"Kraków"', "7", "true", "1.5", "null"))
    for name in list(features):
        if rng.random() < 0.15:
            del features[name]
    if rng.random() < 0.02:
        features[rng.choice(("c", "A", "y", "id", "x"))] = scalar()
    y = rng.choice(("true", "false", "0", "1", "1.0", "null", "2", '"1"', number(rng)))
    if flat:
        members = {"y": y, **features}
        roles = {"tx": text, "at": scalar, "w": scalar, "who": text, "from": text, "m": scalar}
    else:
        inner = f",{space}".join(f'"{k}":{space}{v}' for k, v in features.items())
        members = {"x": f"{{{inner}}}", "y": y}
        roles = {"id": text, "ts": scalar, "weight": scalar, "key": text, "source": text}
        roles["group"] = lambda: '{"g":"1"}'
    for name, draw in roles.items():
        if rng.random() < 0.2:
            members[name] = draw()
    items = list(members.items())
    if rng.random() < 0.05:
        items.append(rng.choice(items))
    if rng.random() < 0.3:
        rng.shuffle(items)
    out = "{" + f",{space}".join(f'"{k}"{space}:{space}{v}' for k, v in items) + "}"
    if rng.random() < 0.1:
        out += rng.choice((" ", "\t", "\r", "}", ",", "{}", "x"))
    if rng.random() < 0.05:
        at = rng.randrange(len(out))
        out = out[:at] + rng.choice(("", '"', ",", "0", "\\", " ", "\t", "}")) + out[at + 1 :]
    return out


def plain(rng: random.Random, *, flat: bool) -> str:
    """Draw a line that any scanner should take."""
    x = {
        name: rng.choice((rng.randrange(9), rng.gauss(0, 1), True, None)) for name in ("a", "größe")
    }
    x |= {"b": rng.random(), "city": rng.choice(("Rome", "Kraków", 7, None))}
    if flat:
        return json.dumps({"tx": "t1", "at": 1.5, "y": rng.random() < 0.5, **x}, ensure_ascii=False)
    return json.dumps({"id": "i1", "x": x, "y": True, "ts": rng.random()}, ensure_ascii=False)


def decoders(task: str, *, flat: bool) -> tuple[ColumnDecoder, ColumnDecoder]:
    """Return a decoder that scans and one that does not."""
    with_scanner = ColumnDecoder(task, FLAT if flat else None, SCHEMA)
    without = ColumnDecoder(task, FLAT if flat else None, SCHEMA)
    assert with_scanner._plain is not None
    without._plain = None
    return with_scanner, without


def everything(decoded) -> list:
    """Return all that was decoded, so that it can be compared bit for bit."""
    batch, rejected = decoded
    names, array, texts = batch.columns
    return [
        names,
        array.tobytes(),
        {name: list(column) for name, column in texts.items()},
        [(type(y), y) for y in batch.labels],
        batch.ids,
        [batch.time(i) for i in range(len(batch))],
        [batch.weight(i) for i in range(len(batch))],
        [event.key for event in batch],
        [event.source for event in batch],
        batch.groups,
        batch.offsets.tolist(),
        rejected,
    ]


def as_block(lines: list[str]) -> Block:
    data = "".join(f"{text}\n" for text in lines).encode()
    return Block("p", data, 5, len(lines), 0, len(data))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("flat", [False, True])
def test_fuzzed_lines_are_read_as_by_the_full_decoder(task, flat):
    """One line at a time, and blocks of plain lines with now and then another."""
    rng = random.Random(f"{task} {flat}")
    fast, full = decoders(task, flat=flat)
    taken = 0
    for i in range(max(LINES // 6, 2_000)):
        if i % 50:
            block = as_block([line(rng, flat=flat)])
        else:
            lines = [plain(rng, flat=flat) for _ in range(20)]
            if i % 100:
                lines[rng.randrange(20)] = line(rng, flat=flat)
            block = as_block(lines)
        fast._passed = fast._to_pass  # always try
        taken += fast._plain.columns(block) is not None
        assert everything(fast.decode(block)) == everything(full.decode(block)), block.data
    assert taken > 20


def test_after_blocks_that_are_not_plain_most_are_not_tried(monkeypatch):
    """A stream with escapes everywhere is not read twice; a plain one is scanned again."""
    fast, _ = decoders("binary", flat=False)
    tried = []
    columns = fast._plain.columns

    def counted(block):
        tried.append(block.lines)
        return columns(block)

    monkeypatch.setattr(fast._plain, "columns", counted)
    odd = as_block(['{"id":"\\n","x":{"a":1},"y":true}'])
    for _ in range(1_000):
        fast.decode(odd)
    assert len(tried) < 25
    tried.clear()
    for _ in range(1_000):
        fast.decode(as_block(['{"id":"e","x":{"a":1},"y":true}']))
    assert len(tried) > 900


def test_text_that_is_not_utf8_is_rejected():
    """In an id or a category, where only bytes are looked at."""
    fast, full = decoders("binary", flat=False)
    for data in (b'{"x":{"city":"\xff"},"y":1}\n', b'{"id":"\xed\xa0\x80","x":{"a":1},"y":1}\n'):
        block = Block("p", data, 1, 1, 0, len(data))
        assert everything(fast.decode(block)) == everything(full.decode(block))
        assert len(fast.decode(block).rejected) == 1


def test_many_fields_in_any_order():
    """The next field is expected in the order of the line before; others are found all the same."""
    names = [f"feature_{i}" for i in range(300)]
    scanner = Scanner({name: Field("number", i) for i, name in enumerate(names)})
    rng = random.Random(1)
    rows = []
    for _ in range(50):
        chosen = rng.sample(names, rng.randrange(1, 300))
        rows.append({name: rng.gauss(0, 1) for name in chosen})
    scan = scanner.scan("".join(json.dumps(row) + "\n" for row in rows).encode(), len(rows))
    for i, row in enumerate(rows):
        expected = [row.get(name, math.nan) for name in names]
        np.testing.assert_array_equal(scan.numbers[i], expected)


def test_words_have_codes():
    """The same text gives the same word, over blocks, growth, and a new beginning."""
    rng = random.Random(3)
    interner = Interner(most_words=2_000, most_bytes=100_000)
    vocabularies = set()
    for _ in range(60):
        words = [rng.choice(("", "é", "word")) + str(rng.randrange(5_000)) for _ in range(500)]
        given = [None if rng.random() < 0.1 else word.encode() for word in words]
        data = b"".join(word or b"" for word in given)
        stops = np.cumsum([len(word or b"") for word in given])
        starts = np.array(
            [-1 if w is None else s - len(w) for w, s in zip(given, stops, strict=True)]
        )
        column = interner.intern(data, starts, stops)
        assert list(column) == [None if w is None else w.decode() for w in given]
        assert len(set(column.words)) == len(column.words) <= 2_500
        vocabularies.add(id(column.words))
    assert len(vocabularies) > 3


def mutated(rng: random.Random, text: bytes) -> bytes:
    """Change a line in up to three places: bytes that matter to JSON more often than others."""
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(PIECES) + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at + rng.randrange(1, 4) :]
        else:
            other = rng.randrange(len(text))
            low, high = min(at, other), max(at, other)
            text = text[:high] + text[low : high + 1] + text[high:]
        text = text.replace(b"\n", b" ") or b"{"
    return text


PIECES = [
    *(bytes([c]) for c in b'{}[]",:\\ \t\r-+.eE0123456789truefalsn/x\x00\x1f\x7f\x80\xc3\xa9\xff'),
    b'"a":', b"1e5", b"null", b"true", b"-0", b"00", b".5", b'"\\u0061"', b"1e400", b'"y":1,',
]  # fmt: skip


class Alone:
    """Whether the scanner takes one line, asked of its kernel with arrays that are kept."""

    def __init__(self, reader: Scanner) -> None:
        numbers, reals, texts = reader._widths
        out = np.zeros((1, numbers)), np.zeros((1, reals)), *np.zeros((2, 1, texts), np.int64)
        kinds = (reader._kinds, reader._places, reader._tops, 1, reader._wanted)
        self.rest = (*reader._names, *kinds, scanner._FIVES, scanner._TENS, *out)

    def __call__(self, text: bytes) -> bool:
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
        padded = np.frombuffer(text + bytes(8), np.uint8)
        return scanner._scan(padded, len(text), *self.rest) == 1


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_taken_the_full_decoder_takes_too(seed):
    """And gives the same for, of lines that were plain before they were changed a little."""
    rng = random.Random(seed)
    fast, full = decoders("binary", flat=False)
    takes = Alone(fast._plain._scanner)
    sources = [plain(rng, flat=False).encode() for _ in range(500)]
    taken, total = [], 0
    lines = max(LINES // 2, 20_000)
    for i in range(lines):
        text = mutated(rng, rng.choice(sources)) + b"\n"
        if takes(text):
            taken.append(text)
        if len(taken) == 200 or (i == lines - 1 and taken):
            data = b"".join(taken)
            block = Block("p", data, 5, len(taken), 0, len(data))
            times = [json.loads(line).get("ts") or 0.0 for line in taken]
            if all(abs(time) < 1e11 for time in times):  # others may be of different units
                assert fast._plain.columns(block) is not None
            fast._passed = fast._to_pass
            assert everything(fast.decode(block)) == everything(full.decode(block)), data
            total += len(taken)
            taken = []
    assert total > lines / 10


LENGTHS = [*range(26), 101, 104, 105]


@pytest.mark.parametrize("length", LENGTHS)
def test_names_texts_and_digits_of_any_length_are_read(length):
    """Also at the very end of a block, and with any number of columns and lines."""
    names = [f"{'n' * length}{j}" for j in range(length)]
    scanner_ = Scanner({name: Field("number", j) for j, name in enumerate(names)} | {
        "t" * length: Field("word", 0)
    })  # fmt: skip
    digits = "1" * max(min(length, 18), 1)
    line = (
        "{"
        + "".join(f'"{name}":{digits},' for name in names)
        + f'"{"t" * length}":"{"w" * length}"}}'
    )
    scan = scanner_.scan("\n".join([line] * max(length, 1)).encode(), max(length, 1))
    assert scan is not None
    assert (scan.numbers == float(digits)).all()
    starts, stops = scan.text(0)
    assert (stops - starts == length).all()
    data = "\n".join([line] * max(length, 1)).encode()
    assert list(Interner().intern(data, starts, stops)) == ["w" * length] * len(starts)


def test_a_name_is_matched_as_json_writes_it():
    """A quote within a name ends nothing, and no name leads beyond the block."""
    odd = 'a"b'
    assert Scanner({odd: Field("number")}).scan(b'{"a"b":1}\n', 1) is None
    found = Scanner({odd: Field("number")}).scan(b'{"a\\"b":1}\n', 1)
    assert found is not None
    assert found.numbers.tolist() == [[1.0]]
    beyond = "a\n" + "\0" * 100
    assert Scanner({beyond: Field("number")}).scan(b'{"a\n', 1) is None


@pytest.mark.parametrize(
    ("starts", "stops"), [([0], [7]), ([3], [2]), ([2**62], [2**62 + 1]), ([0, 1], [1]), ([0], [])]
)
def test_a_text_beyond_its_data_gets_no_code(starts, stops):
    """It is refused, and the words known stay."""
    interner = Interner()
    words = interner.intern(b"abcdef", np.array([0]), np.array([3]))
    with pytest.raises(ValueError, match=r"data|end"):
        interner.intern(b"abcdef", np.array(starts, np.int64), np.array(stops, np.int64))
    assert list(interner.intern(b"abcdef", np.array([0]), np.array([3]))) == list(words) == ["abc"]


@pytest.mark.parametrize("words", [1, 7, 8, 9, 31, 32, 33, 64, 65, 1_000])
def test_words_of_any_number_have_room(words):
    """At once and a few at a time: the table, the bytes and the bounds grow as they have to."""
    texts = [f"word {i}".encode() * (i % 5) for i in range(words)]
    stops = np.cumsum([len(text) for text in texts])
    starts = stops - [len(text) for text in texts]
    data, step = b"".join(texts), 3
    whole, parts = Interner(), Interner()
    expected = list(whole.intern(data, starts, stops))
    assert expected == [text.decode() for text in texts]
    found = []
    for i in range(0, words, step):
        found += list(parts.intern(data, starts[i : i + step], stops[i : i + step]))
    assert found == expected
