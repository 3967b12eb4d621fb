"""Limits on the depth and size of constants and containers, so that no file can crash a process.

The writer refuses whatever the reader would refuse.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.kinds.kind import Kind

__all__ = ["DEPTH", "Measure", "check_chains", "check_constant", "check_keys"]

# hash() of a deeper tuple overflows the stack. A tuple of twice the same tuple, and so on, doubles
# at every level. So limits: the depth of tuples, and the values in them, counted recursively.
DEPTH = 100
_WEIGHT = 1_000_000
# The same for a key, which is hashed often.
_KEY_WEIGHT = 4_096
# Python frees nested deques and defaultdicts by recursion in C: most in a chain.
_CHAIN = 100


class Measure(NamedTuple):
    """The content of a constant: depth of tuples, number of values, number of nodes."""

    depth: int
    weight: int
    nodes: bool

    @classmethod
    def of(cls, length: int, references: Sequence[int], known: list["Measure"]) -> "Measure":
        """Measure a constant of `length` values, some of which are references.

        Raises
        ------
        EncodingError
            If it is too deep, or too large.
        """
        held = [known[~number] for number in references if number < 0]
        if not held:
            return cls(1, 1 + length, bool(references))
        measure = cls(
            1 + max(m.depth for m in held),
            1 + length + sum(m.weight for m in held),
            len(held) < len(references) or any(m.nodes for m in held),
        )
        if measure.depth > DEPTH or measure.weight > _WEIGHT:
            raise EncodingError(
                f"a tuple {measure.depth} deep, of {measure.weight} values; limits {DEPTH} and "
                f"{_WEIGHT}"
            )
        return measure


def check_constant(kind: Kind, measure: Measure) -> None:
    """Raise if a constant holds nodes but its kind does not allow that."""
    if measure.nodes and not kind.holds_nodes:
        raise EncodingError(f"a {kind.name} of objects cannot be saved")


def check_keys(
    keys: Sequence[int],
    row: Sequence[int],
    references: Sequence[int],
    nodes: int,
    measures: list[Measure],
) -> bool:
    """Return whether a key is a node or holds one.

    Parameters
    ----------
    keys, references
        Positions of keys and references in the row.
    nodes
        Number of nodes.
    measures
        The measures of the constants.

    Raises
    ------
    EncodingError
        If a key is too deep or too large to hash.
    """
    found = False
    for at in references:
        if at in keys:
            number = row[at]
            if number >= nodes:
                raise EncodingError("a reference to no node")
            if number >= 0:
                found = True
                continue
            measure = measures[~number]
            found = found or measure.nodes
            if measure.weight > _KEY_WEIGHT:
                raise EncodingError(f"a key of {measure.weight} values; limit {_KEY_WEIGHT}")
    return found


def check_chains(held: dict[int, list[int]]) -> None:
    """Raise if these nodes are nested too deeply; `held` has the references of each."""
    holders = Counter(child for children in held.values() for child in children if child in held)
    level = [number for number in held if not holders[number]]
    depth = done = 0
    while level:
        depth += 1
        done += len(level)
        below = []
        for number in level:
            for child in held[number]:
                if child in held:
                    holders[child] -= 1
                    if not holders[child]:
                        below.append(child)
        level = below
    if depth > _CHAIN:
        raise EncodingError(f"deques and defaultdicts {depth} deep in each other; limit {_CHAIN}")
    if done < len(held):
        raise EncodingError("a deque or defaultdict that holds itself cannot be saved")
