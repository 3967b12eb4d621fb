"""Sets that are walked, once restored, as they were: models walk through them, and add up.

CPython's set is a table of 2**k places. A value goes to the first free place of those that its hash
names one after the other, so where two values want the same place, the one that came first has it.
The places are found again from the order in which the set is walked, and from them an order of
filling that leads there. The table is made as large as adding the values one by one would have
made it, before the values that stand in each other's way are put in.

Whoever uses this checks the outcome: it holds for CPython's sets, from which nothing was removed.
"""

import graphlib
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["arrangement", "fill"]

_LEAST = 8  # places of a small table
_LINEAR = 9  # places after the first that are looked at before the next jump
_WORD = 2**64 - 1


def _table(n: int) -> int:
    """Return the places of the table of a set to which n values were added one by one."""
    size = _LEAST
    while n * 5 >= (size - 1) * 3:
        filled = -(-(size - 1) * 3 // 5)  # then it grew
        wanted = filled * (2 if filled > 50_000 else 4)
        while size <= wanted:
            size *= 2
    return size


def fill(target: set[Any], values: Sequence[Any]) -> None:
    """Put values into an empty set: into a table of their final size, one after the other.

    Where they are few for their table, the first of them are there before it has its size, and
    then come into it in any order.
    """
    n, size = len(values), _table(len(values))
    set.update(target, values[: max(size // 4 - n, 0)])
    # Given a dict, CPython makes room for all of it at once: twice the places.
    set.update(target, dict.fromkeys(values[: size // 2 - 1]))
    set.update(target, values)


def _places(value: Any, mask: int) -> Iterator[int]:
    """Yield the places where a value may be, in the order in which they are tried."""
    perturbed = hash(value) & _WORD
    place = perturbed & mask
    while True:
        yield from range(place, place + 1 + (_LINEAR if place + _LINEAR <= mask else 0))
        perturbed >>= 5
        place = (place * 5 + 1 + perturbed) & mask


def _before(walked: Sequence[Any], places: Sequence[int], mask: int) -> list[list[int]] | None:
    """Return, for each value, those that have the places that it tried before its own.

    None if it would be in one of them.
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
    """Return what `_before` does, of places in which the values are walked in this order.

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
                return  # it would be there, and it is not
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
    """Return values in an order in which `fill` may make of them a set that is walked like this.

    None if none is found.
    """
    before = _found(walked, _table(len(walked)) - 1) if walked else []
    if before is None:
        return None
    try:
        order = [*graphlib.TopologicalSorter(dict(enumerate(before))).static_order()]
    except graphlib.CycleError:
        return None
    order.sort(key=lambda i: bool(before[i]))  # those that nobody was in the way of first
    return [walked[i] for i in order]
