"""A compiled scanner of plain JSON Lines: reads numbers and text by a schema.

It knows only what most streams consist of. It returns `None` for a block with anything else: an
escape, a duplicate or unknown key, a blank line, a number with too many digits to round correctly,
or an error. It does not tell these apart; the caller then decodes the block in another way. Its
only obligation: what it accepts is, bit for bit, what a full decoder would return.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from midstream.connectors.decode.unaligned import checked, eight
from midstream.engine.events.columns import Categories
from midstream.engine.events.event import FloatArray, IntArray

__all__ = ["Field", "Interner", "Kind", "Scan", "Scanner"]

Kind: TypeAlias = Literal[
    "number",  # a number, true, false or null
    "real",  # a number or null
    "binary",  # true, false, 0, 1 or null
    "text",  # a string that is not empty, or null
    "name",  # ... or an integer, as written
    "word",  # any string, an integer or a bool as written, or null
    "skip",  # any of these, not read
    "object",  # holds the fields of the second level
]
_NUMBER, _REAL, _BINARY, _TEXT, _NAME, _WORD, _SKIP, _OBJECT = range(8)
_KINDS: dict[Kind, int] = {
    "number": _NUMBER, "real": _REAL, "binary": _BINARY, "text": _TEXT, "name": _NAME,
    "word": _WORD, "skip": _SKIP, "object": _OBJECT,
}  # fmt: skip

_ABSENT, _NULL = -2, -1  # start of a text that is absent, or null
_NEWLINE, _TAB, _RETURN, _SPACE = 10, 9, 13, 32
_QUOTE, _COMMA, _MINUS, _PLUS, _DOT, _COLON, _BACKSLASH = 34, 44, 45, 43, 46, 58, 92
_OPEN, _CLOSE = 123, 125
_ZERO, _NINE = 48, 57
_E, _F, _N, _T = 101, 102, 110, 116
_TOKEN_NONE, _TOKEN_TEXT, _TOKEN_INT, _TOKEN_FLOAT, _TOKEN_BOOL, _TOKEN_NULL = range(6)

_U0, _U1, _U3, _U8, _U10 = map(np.uint64, (0, 1, 3, 8, 10))
_U16, _U64 = np.uint64(16), np.uint64(64)
_HIGHS, _LOWS = np.uint64(0xF0F0F0F0F0F0F0F0), np.uint64(0x0F0F0F0F0F0F0F0F)
_THREES, _SIXES = np.uint64(0x3030303030303030), np.uint64(0x0606060606060606)
_PAIRS, _FOURS = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
_POWERS = 10 ** np.arange(9, dtype=np.uint64)
_U32, _LOW32 = np.uint64(32), np.uint64(0xFFFFFFFF)
_U63 = np.uint64(63)
_ALL = np.uint64(2**64 - 1)
_MASK9 = np.uint64(0x1FF)  # bits below a double's mantissa, a guard bit and one more
_FNV = np.uint64(0x100000001B3)
_EXACT = np.uint64(2**53)
_HIDDEN = np.uint64(2**52)
_LEAST, _MOST = -342, 308  # powers of ten that can contribute to a double


def _powers_of_five() -> npt.NDArray[np.uint64]:
    """Return 5**q for q in [-342, 308] as 128 bits, highest one set: (651, 2), high word first.

    As the algorithm of `_rounded` needs them: truncated, but rounded up for q in [-27, -1], so that
    halfway cases between two doubles are recognised.
    """
    rows = []
    for q in range(_LEAST, _MOST + 1):
        if q >= 0:
            power = 5**q
            shift = power.bit_length() - 128
            scaled = power >> shift if shift > 0 else power << -shift
        else:
            power = 5**-q
            bits = power.bit_length()
            scaled = 2 ** (bits + 127 if q >= -27 else 2 * bits + 128) // power + 1
            scaled >>= scaled.bit_length() - 128
        rows.append((scaled >> 64, scaled & (2**64 - 1)))
    return np.array(rows, np.uint64)


_PADDING = bytes(8)
_FIVES = _powers_of_five()
_TENS = 10.0 ** np.arange(23)  # exact


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def _at(typing: Any, text: Any, at: Any) -> Any:  # noqa: ARG001
    """Return byte `at` of `text`, not negative: indexing would check for that."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = builder.load(checked(context, builder, signature.args[0], arguments, 1))
        return builder.zext(byte, ir.IntType(64))

    return types.int64(types.Array(types.uint8, 1, "C", readonly=True), types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def _zeros_below(typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Return the number of zero bits below the lowest one of `word`; 64 if it is zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.uint64(types.uint64), generate


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]  # numba publishes no types
def _digits(word: np.uint64) -> np.uint64:
    """Return the number of leading digits in eight bytes, from the lowest on, times 8."""
    # The high half of a digit is 3, and stays 3 when 6 is added.
    others = ((word & _HIGHS) ^ _THREES) | (((word + _SIXES) & _HIGHS) ^ _THREES)
    count: np.uint64 = _zeros_below(others) & ~np.uint64(7)
    return count


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]  # numba publishes no types
def _number_of(word: np.uint64, bits: np.uint64) -> np.uint64:
    """Return the number in the lowest `bits` / 8 bytes, all digits; the first is the highest."""
    word = (word << (_U64 - bits)) & _LOWS  # zeros shifted in act as leading zeros
    word = (word * _U10 + (word >> _U8)) & _PAIRS
    word = (word * np.uint64(100) + (word >> _U16)) & _FOURS
    return (word * np.uint64(10_000) + (word >> _U32)) & _LOW32


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]  # numba publishes no types
def _run_of_digits(
    text: npt.NDArray[np.uint8], at: int, number: np.uint64
) -> tuple[int, np.uint64]:
    """Return the end of the digits from `at` on, and `number` with them appended, modulo 2**64."""
    while True:
        word = eight(text, at)
        bits = _digits(word)
        if bits == _U0:
            return at, number
        number = number * _POWERS[bits >> _U3] + _number_of(word, bits)
        at += np.int64(bits >> _U3)  # type: ignore[assignment]  # the same to numba
        if bits < _U64:
            return at, number


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]  # numba publishes no types
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return the high and the low word of a * b."""
    a_low, a_high = a & _LOW32, a >> _U32
    b_low, b_high = b & _LOW32, b >> _U32
    low = a_low * b_low
    first, second = a_high * b_low, a_low * b_high
    middle = (low >> _U32) + (first & _LOW32) + (second & _LOW32)
    high = a_high * b_high + (first >> _U32) + (second >> _U32) + (middle >> _U32)
    return high, a * b


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _rounded(w: np.uint64, q: int, fives: npt.NDArray[np.uint64]) -> np.uint64:
    """Return the bits of the double nearest to w * 10**q, w > 0; 0 if that is uncertain.

    The algorithm of Eisel and Lemire [1]_. Uncertain are subnormal and infinite results, and the
    few products that 128 bits do not decide.

    .. [1] Lemire (2021). Number parsing at a gigabyte per second. Software: Practice and
       Experience 51(8), 1700-1727.
    """
    if q < _LEAST or q > _MOST:
        return _U0
    zeros = 0
    while w >> _U63 == _U0:
        w <<= _U1
        zeros += 1
    high, low = _product(w, fives[q - _LEAST, 0])
    if high & _MASK9 == _MASK9:
        more, _ = _product(w, fives[q - _LEAST, 1])
        low += more
        if more > low:
            high += _U1
    if low == _ALL and (q < -27 or q > 55):
        return _U0
    upper = high >> _U63
    shift = upper + np.uint64(9)
    mantissa = high >> shift
    power = ((217706 * q) >> 16) + 63 + int(upper) - zeros + 1023
    if power <= 0:
        return _U0
    # Halfway between two doubles: round to even.
    if low <= _U1 and -4 <= q <= 23 and mantissa & _U3 == _U1 and mantissa << shift == high:
        mantissa -= _U1
    mantissa = (mantissa + (mantissa & _U1)) >> _U1
    if mantissa >= _HIDDEN << _U1:
        mantissa = _HIDDEN
        power += 1
    if power >= 0x7FF:
        return _U0
    bits: np.uint64 = (mantissa - _HIDDEN) | (np.uint64(power) << np.uint64(52))
    return bits


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _scan(  # kernels take arrays, not objects
    text: npt.NDArray[np.uint8],
    size: int,
    names: npt.NDArray[np.uint64],
    bounds: IntArray,
    tails: npt.NDArray[np.uint64],
    lengths: IntArray,
    kinds: IntArray,
    places: IntArray,
    tops: int,
    most_lines: int,
    wanted: int,
    fives: npt.NDArray[np.uint64],
    tens: FloatArray,
    numbers: FloatArray,
    reals: FloatArray,
    starts: IntArray,
    stops: IntArray,
) -> int:
    """Read the lines in the first `size` bytes of `text`; return their number.

    These bytes end with a newline. `text` has eight bytes to spare, since it is read eight bytes at
    a time. The name of field f, with the quote after it, is the words
    ``names[bounds[f]:bounds[f + 1]]``, the last of them masked by ``tails[f]``, and is
    ``lengths[f]`` bytes long. The first `tops` fields belong to the first level, the others to the
    second. The value of field f goes to column ``places[f]`` of `numbers` (n, features), of `reals`
    (n, others), or of `starts` and `stops` (n, texts). Field `wanted`, if not negative, is required
    in every line. Return -1 - i if line i is not plain.
    """
    fields = kinds.size
    if size < 0 or text.size < size + 8 or (size and _at(text, size - 1) != _NEWLINE):
        raise ValueError("a block must end with a newline, and have eight bytes more")
    if bounds.size != fields + 1 or min(tails.size, lengths.size, places.size) < fields:
        raise ValueError("every field must have its name, kind and place")
    if fives.shape != (_MOST - _LEAST + 1, 2) or tens.size != 23 or tops > fields or wanted >= tops:
        raise ValueError("the fields or the powers of ten are not as a block is read with")
    if min(numbers.shape[0], reals.shape[0], starts.shape[0]) < most_lines:
        raise ValueError("there must be room for every line")
    if starts.shape != stops.shape:
        raise ValueError("texts must have as many ends as beginnings")
    for f in range(fields):
        if bounds[f] < 0 or bounds[f + 1] <= bounds[f] or bounds[f + 1] > names.size:
            raise ValueError("a field's name is beyond the names")
        kind = kinds[f]
        if kind == _NUMBER:
            room = numbers.shape[1]
        elif kind in (_REAL, _BINARY):
            room = reals.shape[1]
        elif kind in (_SKIP, _OBJECT):
            continue
        else:
            room = starts.shape[1]
        if not 0 <= places[f] < room:
            raise ValueError("a field's column is beyond the columns")
    bits = np.zeros(1, np.uint64)
    as_float = bits.view(np.float64)
    seen = np.full(fields, -1, np.int64)
    p, row = 0, 0
    while p < size:
        if row == most_lines or _at(text, p) != _OPEN:
            return -1 - row
        p += 1
        low, high, deep = 0, tops, False
        expected, below, features = 0, tops, 0
        while _at(text, p) == _SPACE:
            p += 1
        while True:  # a key and its value
            if _at(text, p) != _QUOTE:
                return -1 - row
            p += 1
            field = -1
            f = expected
            for _ in range(high - low):
                if f >= high:
                    f = low
                at, k, last = p, bounds[f], bounds[f + 1] - 1
                # Names contain no newline, so this ends within the text.
                while k < last and eight(text, at) == names[k]:
                    k += 1
                    at += 8
                if k == last and eight(text, at) & tails[f] == names[k]:
                    field = f
                    break
                f += 1
            if field < 0 or seen[field] == row:
                return -1 - row
            seen[field] = row
            expected = field + 1
            p += lengths[field]
            while _at(text, p) == _SPACE:
                p += 1
            if _at(text, p) != _COLON:
                return -1 - row
            p += 1
            while _at(text, p) == _SPACE:
                p += 1

            kind, place = kinds[field], places[field]
            c = _at(text, p)
            if kind == _OBJECT:
                if c != _OPEN or deep:
                    return -1 - row
                p += 1
                while _at(text, p) == _SPACE:
                    p += 1
                low, high, deep = tops, fields, True
                below, expected = expected, tops
                continue

            token, value, start, stop = _TOKEN_NONE, 0.0, p, p
            if c == _MINUS or _ZERO <= c <= _NINE:
                negative = c == _MINUS
                if negative:
                    p += 1
                first = p
                p, mantissa = _run_of_digits(text, p, _U0)
                digits = p - first
                if digits == 0 or (digits > 1 and _at(text, first) == _ZERO):
                    return -1 - row
                token, exponent = _TOKEN_INT, 0
                if _at(text, p) == _DOT:
                    token = _TOKEN_FLOAT
                    p += 1
                    point = p
                    p, mantissa = _run_of_digits(text, p, mantissa)
                    exponent = point - p
                    digits -= exponent
                    if exponent == 0:
                        return -1 - row
                if digits > 18:  # not counting leading zeros
                    while _at(text, first) in (_ZERO, _DOT):
                        digits -= _at(text, first) == _ZERO
                        first += 1
                if _at(text, p) | 32 == _E:
                    token = _TOKEN_FLOAT
                    p += 1
                    minus = _at(text, p) == _MINUS
                    if minus or _at(text, p) == _PLUS:
                        p += 1
                    first, e = p, 0
                    while _ZERO <= _at(text, p) <= _NINE and p - first < 4:
                        e = e * 10 + (_at(text, p) - _ZERO)
                        p += 1
                    if p == first or _ZERO <= _at(text, p) <= _NINE:
                        return -1 - row
                    exponent += -e if minus else e
                if digits > (18 if token == _TOKEN_INT else 19):
                    return -1 - row
                if mantissa == _U0:
                    if negative and token == _TOKEN_INT:  # 0, not -0
                        return -1 - row
                elif mantissa <= _EXACT and -22 <= exponent <= 22:
                    value = float(mantissa)
                    if exponent < 0:
                        value /= tens[-exponent]
                    else:
                        value *= tens[exponent]
                elif token == _TOKEN_INT:
                    value = float(mantissa)
                else:
                    bits[0] = _rounded(mantissa, exponent, fives)
                    if bits[0] == _U0:
                        return -1 - row
                    value = as_float[0]
                if negative:
                    value = -value
                stop = p
            elif c == _QUOTE:
                p += 1
                start = p
                while (
                    _at(text, p) >= _SPACE and _at(text, p) != _QUOTE and _at(text, p) != _BACKSLASH
                ):
                    p += 1
                if _at(text, p) != _QUOTE:
                    return -1 - row
                stop = p
                p += 1
                token = _TOKEN_TEXT
            elif (
                c == _T
                and _at(text, p + 1) == 114
                and _at(text, p + 2) == 117
                and _at(text, p + 3) == _E
            ):
                token, value = _TOKEN_BOOL, 1.0
                p += 4
                stop = p
            elif (
                c == _F
                and _at(text, p + 1) == 97
                and _at(text, p + 2) == 108
                and _at(text, p + 3) == 115
                and _at(text, p + 4) == _E
            ):
                token = _TOKEN_BOOL
                p += 5
                stop = p
            elif (
                c == _N
                and _at(text, p + 1) == 117
                and _at(text, p + 2) == 108
                and _at(text, p + 3) == 108
            ):
                token = _TOKEN_NULL
                p += 4
            else:
                return -1 - row

            is_feature = deep or kind in (_NUMBER, _WORD)
            features += is_feature and token != _TOKEN_NULL
            if kind == _NUMBER:
                if token == _TOKEN_TEXT:
                    return -1 - row
                if token != _TOKEN_NULL:
                    numbers[row, place] = value
            elif kind == _REAL:
                if token in (_TOKEN_TEXT, _TOKEN_BOOL):
                    return -1 - row
                if token != _TOKEN_NULL:
                    reals[row, place] = value
            elif kind == _BINARY:
                if token == _TOKEN_TEXT or value not in (0.0, 1.0):
                    return -1 - row
                if token != _TOKEN_NULL:
                    reals[row, place] = value
            elif kind != _SKIP:
                if token == _TOKEN_NULL:
                    starts[row, place] = _NULL
                else:
                    if (
                        token == _TOKEN_FLOAT
                        or (token == _TOKEN_BOOL and kind != _WORD)
                        or (token == _TOKEN_INT and kind == _TEXT)
                        or (start == stop and kind != _WORD)
                    ):
                        return -1 - row
                    starts[row, place] = start
                    stops[row, place] = stop

            while _at(text, p) == _SPACE:
                p += 1
            if _at(text, p) == _CLOSE and deep:
                p += 1
                low, high, deep = 0, tops, False
                expected = below
                while _at(text, p) == _SPACE:
                    p += 1
            if _at(text, p) == _COMMA:
                p += 1
                while _at(text, p) == _SPACE:
                    p += 1
                continue
            if _at(text, p) != _CLOSE or deep:
                return -1 - row
            p += 1
            break
        while _at(text, p) == _SPACE or _at(text, p) == _TAB or _at(text, p) == _RETURN:
            p += 1
        if _at(text, p) != _NEWLINE or features == 0 or (wanted >= 0 and seen[wanted] != row):
            return -1 - row
        p += 1
        row += 1
    return row


class Field(NamedTuple):
    """A field of a line: the kind of its value, and its column."""

    kind: Kind
    column: int = 0


class Scan(NamedTuple):
    """The values of n lines.

    `numbers` is (n, features) and `reals` (n, others) float64, NaN where missing. Text j of line i
    is ``data[starts[i, j]:stops[i, j]]``; its start is -1 if it is null, -2 if absent.
    """

    numbers: FloatArray
    reals: FloatArray
    starts: IntArray
    stops: IntArray

    def text(self, column: int) -> tuple[IntArray, IntArray]:
        """Return the starts and stops of the texts in a column: (n,) each."""
        return self.starts[:, column].copy(), self.stops[:, column].copy()


class Scanner:
    """Reads blocks of plain JSON Lines.

    Parameters
    ----------
    top
        The fields of a line, by name.
    inner
        The fields of the line's inner object.
    wanted
        A field that every line must have.
    """

    def __init__(
        self,
        top: Mapping[str, Field],
        inner: Mapping[str, Field] | None = None,
        *,
        wanted: str | None = None,
    ) -> None:
        fields = [*top.items(), *(inner or {}).items()]
        # As JSON writes them, with the closing quote; none contains a control character.
        names = [msgspec.json.encode(name)[1:] for name, _ in fields]
        words = [np.frombuffer(name + bytes(-len(name) % 8), "<u8") for name in names]
        self._names = (
            np.concatenate([w.astype(np.uint64) for w in words]),
            np.cumsum([0, *map(len, words)], dtype=np.int64),
            np.array([2**64 - 1 >> 8 * (-len(name) % 8) for name in names], np.uint64),
            np.array(list(map(len, names)), np.int64),
        )
        self._kinds = np.array([_KINDS[field.kind] for _, field in fields], np.int64)
        self._places = np.array([field.column for _, field in fields], np.int64)
        self._tops = len(top)
        self._wanted = -1 if wanted is None else list(top).index(wanted)

        def width(kinds: Sequence[Kind]) -> int:
            return max((field.column + 1 for _, field in fields if field.kind in kinds), default=0)

        self._widths = width(["number"]), width(["real", "binary"]), width(["text", "name", "word"])

    def scan(self, data: bytes, n: int) -> Scan | None:
        """Read `n` whole lines; None if anything in them is not plain."""
        if not data.endswith(b"\n"):
            data += b"\n"
        size = len(data)
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                return None
        text = np.frombuffer(data + _PADDING, np.uint8)
        numbers, reals, texts = self._widths
        out = Scan(
            np.full((n, numbers), np.nan),
            np.full((n, reals), np.nan),
            np.full((n, texts), _ABSENT, np.int64),
            np.zeros((n, texts), np.int64),
        )
        read = _scan(
            text, size, *self._names, self._kinds, self._places, self._tops, n, self._wanted,
            _FIVES, _TENS, *out,
        )  # fmt: skip
        return out if read == n else None


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba publishes no types
def _intern(
    text: npt.NDArray[np.uint8],
    starts: IntArray,
    stops: IntArray,
    seed: np.uint64,
    table: IntArray,
    known: npt.NDArray[np.uint8],
    bounds: IntArray,
    count: int,
    codes: IntArray,
) -> int:
    """Assign each text its code, a new text the next code; return the new number of codes.

    Text c is ``known[bounds[c]:bounds[c + 1]]``. `table` holds codes, -1 where free; its size is a
    power of two. All three have room for as many new texts as there are starts.
    """
    n, more = starts.size, 0
    if stops.size != n or codes.size != n:
        raise ValueError("texts must have as many ends and codes as beginnings")
    for i in range(n):
        if starts[i] >= 0:
            if stops[i] < starts[i] or stops[i] > text.size:
                raise ValueError("a text ends before it begins, or after its data")
            more += stops[i] - starts[i]
    if count < 0 or table.size <= count + n or table.size & (table.size - 1):
        raise ValueError("a table must be a power of two, with more slots than there are texts")
    if bounds.size <= count + n or known.size < bounds[count] + more:
        raise ValueError("there must be room for every text")
    mask = np.uint64(table.size - 1)
    for i in range(starts.size):
        start, length = starts[i], stops[i] - starts[i]
        if start < 0:
            codes[i] = -1
            continue
        mixed = seed
        for k in range(length):  # FNV-1a
            mixed = (mixed ^ np.uint64(text[start + k])) * _FNV
        mixed ^= mixed >> _U32
        while True:
            slot = np.int64(mixed & mask)
            code = table[slot]
            if code < 0:
                code = count
                table[slot] = code
                first = bounds[code]
                known[first : first + length] = text[start : start + length]
                bounds[code + 1] = first + length
                count += 1
                break
            first, same = bounds[code], bounds[code + 1] - bounds[code] == length
            k = 0
            while same and k < length:
                same = known[first + k] == text[start + k]
                k += 1
            if same:
                break
            mixed += _U1
        codes[i] = code
    return count


class Interner:
    """Maps texts to codes: equal texts to equal codes, until the vocabulary starts anew."""

    def __init__(self, most_words: int = 65_536, most_bytes: int = 4 * 2**20) -> None:
        self._most = most_words, most_bytes
        # The seed does not affect the order of codes; it prevents deliberate collisions.
        self._seed = np.uint64(int.from_bytes(os.urandom(8)))
        self._begin()

    def _begin(self) -> None:
        self._words: list[str] = []
        self._table = np.full(64, -1, np.int64)
        self._known = np.zeros(1024, np.uint8)
        self._bounds = np.zeros(33, np.int64)

    def intern(self, data: bytes, starts: IntArray, stops: IntArray) -> Categories:
        """Return n texts; text i is ``data[starts[i]:stops[i]]``, or None if it is missing."""
        if len(starts) != len(stops):
            raise ValueError(f"{len(starts)} texts begin, {len(stops)} end")
        text = np.frombuffer(data, np.uint8)
        if len(self._words) > self._most[0] or self._bounds[len(self._words)] > self._most[1]:
            self._begin()
        count = len(self._words)
        self._make_room(count + len(starts), int((stops - starts)[starts >= 0].sum()))
        codes = np.empty(len(starts), np.int64)
        known = _intern(
            text, starts, stops, self._seed, self._table, self._known, self._bounds, count, codes
        )
        for code in range(count, known):
            first, stop = self._bounds[code], self._bounds[code + 1]
            self._words.append(self._known[first:stop].tobytes().decode())
        return Categories(codes, self._words)

    def _make_room(self, words: int, more_bytes: int) -> None:
        """Make room for `words` words in all, and for `more_bytes` more bytes."""
        size = int(self._bounds[len(self._words)]) + more_bytes
        if size > len(self._known):
            self._known = np.pad(self._known, (0, 2 * size - len(self._known)))
        if words >= len(self._bounds):
            self._bounds = np.pad(self._bounds, (0, 2 * words + 1 - len(self._bounds)))
        if 2 * words > len(self._table):
            self._table = np.full(1 << (4 * words).bit_length(), -1, np.int64)
            count = len(self._words)
            starts, stops = self._bounds[:count].copy(), self._bounds[1 : count + 1].copy()
            codes = np.empty(count, np.int64)
            _intern(
                self._known, starts, stops, self._seed, self._table, self._known, self._bounds, 0,
                codes,
            )  # fmt: skip
