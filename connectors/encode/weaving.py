"""Joins columns to n lines of text: parts that differ by line, and parts that are constant."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from numba import njit

from midstream.connectors.decode.unaligned import eight, put_eight
from midstream.engine.events.event import IntArray

__all__ = ["Pieces", "encoded", "weave"]

_encoder = msgspec.json.Encoder()
_LARGE = 64 * 1024
_MORE = bytes(8)


class Pieces(NamedTuple):
    """A piece for each line: piece i is ``data[starts[i]:stops[i]]``."""

    data: bytes | memoryview
    starts: IntArray
    stops: IntArray


def encoded(values: Sequence[Any], encoder: msgspec.json.Encoder = _encoder) -> Pieces:
    """Return each value as JSON."""
    data = encoder.encode_lines(values)
    stops = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))  # in strings it is escaped
    starts = np.zeros(len(stops), np.int64)
    starts[1:] = stops[:-1] + 1
    return Pieces(data, starts, stops)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _weave(
    text: npt.NDArray[np.uint8],
    given: npt.NDArray[np.uint8],
    is_given: npt.NDArray[np.bool_],
    starts: IntArray,
    stops: IntArray,
    out: npt.NDArray[np.uint8],
) -> None:
    """Write the pieces one after the other, eight bytes at a time; excess bytes are overwritten.

    `text` and `out` must have eight bytes to spare; `given` need not.
    """
    parts, n = starts.shape
    if stops.shape != starts.shape or is_given.size != parts:
        raise ValueError("pieces must have as many ends as beginnings, in as many parts")
    total = 0
    for part in range(parts):
        first, last, shortest = np.int64(0), np.int64(0), np.int64(0)
        for i in range(n):  # branch-free, so that it compiles to vector instructions
            length = stops[part, i] - starts[part, i]
            first, last = min(first, starts[part, i]), max(last, stops[part, i])
            shortest = min(shortest, length)
            total += length
        if first < 0 or shortest < 0 or last > (given.size if is_given[part] else text.size - 8):
            raise ValueError("a piece ends before it begins, or after its data")
    if out.size < total + 8:
        raise ValueError("there must be room for every piece, and for eight bytes more")
    at = 0
    for i in range(n):
        for part in range(parts):
            start, length = starts[part, i], stops[part, i] - starts[part, i]
            if not is_given[part]:
                for k in range(0, length, 8):
                    put_eight(out, at + k, eight(text, start + k))
            elif start + length + 8 <= given.size:
                for k in range(0, length, 8):
                    put_eight(out, at + k, eight(given, start + k))
            else:
                for k in range(length):
                    out[at + k] = given[start + k]
            at += length


def weave(parts: Sequence[bytes | Pieces], n: int) -> bytes:
    """Return n lines: of each part its piece for the line, or the part itself if it is bytes.

    The data of one part may be large: it is not copied as a whole.
    """
    starts = np.empty((len(parts), n), np.int64)
    stops = np.empty_like(starts)
    is_given = np.zeros(len(parts), np.bool_)
    given: bytes | memoryview = b""
    texts: list[bytes | memoryview] = []
    size = 0
    for i, part in enumerate(parts):
        if isinstance(part, bytes):
            starts[i], stops[i] = size, size + len(part)
            texts.append(part)
            size += len(part)
            continue
        starts[i], stops[i] = part.starts, part.stops
        if not given and len(part.data) > _LARGE:
            given, is_given[i] = part.data, True
            continue
        starts[i] += size
        stops[i] += size
        texts.append(part.data)
        size += len(part.data)
    length = int((stops - starts).sum())
    out = np.empty(length + 8, np.uint8)
    sources = np.frombuffer(b"".join((*texts, _MORE)), np.uint8), np.frombuffer(given, np.uint8)
    _weave(*sources, is_given, starts, stops, out)
    return out[:length].tobytes()
