"""A 64-bit hash of a sequence of values, independent of how it is cut into batches.

Each word of 8 bytes takes a multiplication and a shift, as in the finalizers of splitmix64 and
MurmurHash3. The hash detects accidental differences; it does not protect against malice.
"""

from typing import Any

import numpy as np
from numba import njit

from midstream.engine.events.event import IntArray

__all__ = ["over_numbers", "over_texts"]

_PRIME = 0x9FB21C651E98DF25
_STEP = 0x9E3779B97F4A7C15  # so that zeros change the hash, too


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _mixed(state: Any, word: Any) -> Any:
    state = (state ^ word) * np.uint64(_PRIME) + np.uint64(_STEP)
    return state ^ (state >> np.uint64(29))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def over_numbers(state: Any, numbers: IntArray) -> Any:
    """Return the state (uint64) after (n,) numbers, in order."""
    for number in numbers:
        state = _mixed(state, np.uint64(number))
    return state


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def over_texts(state: Any, data: Any, starts: IntArray, stops: IntArray, numbers: IntArray) -> Any:
    """Return the state after n texts, whose bytes are in `data`.

    A text that begins below 0 is missing; its number is hashed instead.

    Raises
    ------
    ValueError
        If a text is not within the data.
    """
    if len(stops) != len(starts) or len(numbers) != len(starts):
        raise ValueError("texts must have as many ends and numbers as beginnings")
    for i in range(len(starts)):
        start, stop = starts[i], stops[i]
        if start >= 0 and (stop < start or stop > len(data)):
            raise ValueError("a text ends before it begins, or after its data")
        if start < 0:
            state = _mixed(state, np.uint64(numbers[i]))
            continue
        for at in range(start, stop, 8):
            word = np.uint64(0)
            for k in range(min(8, stop - at)):
                word |= np.uint64(data[at + k]) << np.uint64(8 * k)
            state = _mixed(state, word)
        state = _mixed(state, np.uint64(stop - start) | np.uint64(1 << 63))
    return state
