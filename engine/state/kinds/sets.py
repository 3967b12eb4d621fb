"""Restore the iteration order of sets, since models sum while they iterate over them.

CPython's set is a table of 2**k places. A value goes to the first free place of a sequence that its
hash determines; of two values that want the same place, the earlier one gets it. The places are
reconstructed from the iteration order, and from them an insertion order that leads to it. The table
first gets the size that adding the values one by one would have given it; then the values that
compete for places are inserted.

The caller checks the result: this holds for CPython's sets, if nothing was removed from them.
"""

import graphlib
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["arrangement", "fill"]

_LEAST = 8  # places of a small table
_LINEAR = 9  # places after the first that are probed before the next jump
_WORD = 2**64 - 1


def _table(n: int) -> int:
    """Return the table size of a set to which n values were added one by one."""
    size = _LEAST
    while n * 5 >= (size - 1) * 3:
        filled = -(-(size - 1) * 3 // 5)  # the table grew here
        wanted = filled * (2 if filled > 50_000 else 4)
        while size <= wanted:
            size *= 2
    return size


def fill(target: set[Any], values: Sequence[Any]) -> None:
    """Insert values into an empty set whose table has its final size, in order.

    If there are few values for the table, the first ones are inserted before it has that size, and
    are then moved into it in any order.
    """
    n, size = len(values), _table(len(values))
    set.update(target, values[: max(size // 4 - n, 0)])
    # Given a dict, CPython makes room for all of it at once: twice the places.
    set.update(target, dict.fromkeys(values[: size // 2 - 1]))
    set.update(target, values)


def _places(value: Any, mask: int) -> Iterator[int]:
    """Yield the places for a value in probing order."""
    perturbed = hash(value) & _WORD
    place = perturbed & mask
    while True:
        yield from range(place, place + 1 + (_LINEAR if place + _LINEAR <= mask else 0))
        perturbed >>= 5
        place = (place * 5 + 1 + perturbed) & mask


def _before(walked: Sequence[Any], places: Sequence[int], mask: int) -> list[list[int]] | None:
    """Return, for each value, the values at the places that it probed before its own.

    None if the value would be at a free one of those places.
    """
    at = {place: i for i, place in enumerate(places)}
    before: list[list[int]] = []
    for value, own in zip(walked, places, strict=True):
        others = []
        for place in _places(value, mask):
            if place == own:
                break
            if place not in at:
                return None
            others.append(at[place])
        before.append(others)
    return before


def _found(walked: Sequence[Any], mask: int) -> list[list[int]] | None:
    """Return the result of `_before` for places that give this iteration order.

    None if there are none, or they are too hard to find.
    """
    taken: set[int] = set()
    places: list[int] = []

    def candidates(i: int) -> Iterator[int]:
        last = places[-1] if places else -1
        for tries, place in enumerate(_places(walked[i], mask)):
            if place > last:
                yield place  # or further on, if a later value turns out to be here
            elif place not in taken:
                return  # the value would be there, and is not
            if tries > 8 * len(walked) + 64:
                return

    steps, waiting = 0, [candidates(0)]
    while waiting and steps <= 20 * len(walked) + 10_000:
        steps += 1
        if len(places) == len(waiting):
            taken.remove(places.pop())
        place = next(waiting[-1], None)
        if place is None:
            waiting.pop()
            continue
        taken.add(place)
        places.append(place)
        if len(places) < len(walked):
            waiting.append(candidates(len(places)))
        elif (before := _before(walked, places, mask)) is not None:
            return before
    return None


def arrangement(walked: Sequence[Any]) -> list[Any] | None:
    """Return an insertion order with which `fill` may give a set this iteration order.

    None if none is found.
    """
    before = _found(walked, _table(len(walked)) - 1) if walked else []
    if before is None:
        return None
    try:
        order = [*graphlib.TopologicalSorter(dict(enumerate(before))).static_order()]
    except graphlib.CycleError:
        return None
    order.sort(key=lambda i: bool(before[i]))  # first those that no other value displaced
    return [walked[i] for i in order]
