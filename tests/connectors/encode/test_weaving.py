"""Lines woven of columns, within their arrays."""

import numpy as np
import pytest

from midstream.connectors.encode.weaving import _LARGE, Pieces, encoded, weave


@pytest.mark.parametrize("length", [*range(26), 101, 104, 105])
@pytest.mark.parametrize("large", [False, True], ids=["copied", "given"])
def test_pieces_of_any_length_are_woven(length, large):
    """Up to the last byte of their data, of which one may be large and is not copied."""
    words = [("x" * (length + i) + str(i)).encode() for i in range(9)]
    data = (b"-" * _LARGE if large else b"") + b"".join(words)
    stops = len(data) - sum(map(len, words)) + np.cumsum([len(word) for word in words])
    starts = stops - [len(word) for word in words]
    ids = encoded(list(range(9)))
    out = weave([b'{"id":', ids, b',"x":"', Pieces(data, starts, stops), b'"}\n'], 9)
    assert out.decode() == "".join(
        f'{{"id":{i},"x":"{word.decode()}"}}\n' for i, word in enumerate(words)
    )


def test_no_lines_are_nothing():
    """Nor are lines of empty pieces."""
    nothing = np.zeros(0, np.int64)
    assert weave([b"text", Pieces(b"", nothing, nothing)], 0) == b""
    assert weave([Pieces(b"", np.zeros(3, np.int64), np.zeros(3, np.int64))], 3) == b""


@pytest.mark.parametrize(
    ("starts", "stops"),
    [([0, 3], [3, 7]), ([-1, 3], [3, 6]), ([0, 4], [3, 3]), ([0, 2**62], [3, 2**62 + 3])],
)
@pytest.mark.parametrize("large", [False, True], ids=["copied", "given"])
def test_a_piece_beyond_its_data_is_refused(starts, stops, large):
    """Nothing is read from there."""
    offset = _LARGE if large else 0
    data = b"-" * offset + b"abcdef"
    # Where the data is copied, what lies behind it is another part's: that is no fault of memory.
    pieces = Pieces(data, np.array(starts) + offset, np.array(stops) + offset)
    if large and starts[0] < 0:
        pieces = Pieces(data, np.array(starts), np.array(stops) + offset)
    with pytest.raises(ValueError, match="after its data"):
        weave([pieces], 2)
