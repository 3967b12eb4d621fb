"""The interface of a kind: how objects of a class become rows, and how they are rebuilt.

A row holds None, bool, int, float, str and references to other rows; `state.encoding` makes the
references and writes the rows. Objects with an identity (instances, lists, dicts, arrays,
generators) are nodes: all are made before any gets its state. Values (tuples, bytes, NumPy scalars,
names of functions) are constants: equal ones share one row.
"""

import types
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

from midstream.engine.state.allowed import EncodingError

__all__ = ["ALL", "ATOMS", "Blob", "Kind", "Names", "slots_of"]

Names: TypeAlias = tuple[str, ...]

ATOMS = frozenset({type(None), bool, int, float, str})
ALL = 1 << 40


class Kind:
    """How objects of one class are written and rebuilt.

    Parameters
    ----------
    name
        Its name in the file: the class as ``module:qualname``, or one word.

    Attributes
    ----------
    constant
        A value: `make` builds it from its complete row. Otherwise it is a node.
    holds_nodes
        Whether a constant may refer to nodes, directly or not.
    blob
        The first value of a constant's row is bytes.
    stage
        0: a node that `new` makes empty. 1: made by `make` from constants that hold no nodes.
        2: made from those and from nodes of stages 0 (still empty) and 1.
    made_of
        Number of values of the row that `make` gets.
    late
        `fill` reads the state of other nodes, so it runs after theirs.
    hashes
        Some values of the row are keys: see `keys`.
    recurses
        Python frees nested instances by recursion in C, without a limit.
    """

    constant: ClassVar[bool] = False
    holds_nodes: ClassVar[bool] = False
    stage: ClassVar[int] = 0
    made_of: ClassVar[int] = ALL
    hashes: ClassVar[bool] = False
    blob: bool = False
    late: bool = False
    recurses: bool = False

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, value: Any) -> tuple[Names, list[Any]]:
        """Return the names and values of the row: what the object refers to."""
        raise NotImplementedError

    def spread(self, value: Any) -> tuple[Names, list[Any]]:
        """Return the row without names, if a name is no valid text."""
        raise EncodingError(f"an attribute of a {type(value).__name__} has no valid name")

    def new(self) -> Any:
        """Return an empty object."""
        raise NotImplementedError

    def make(self, row: list[Any]) -> Any:
        """Make the object from the first values of its row."""
        raise NotImplementedError

    def fill(self, value: Any, names: Names, row: list[Any]) -> None:
        """Set the rest of the object's state."""

    def keys(self, names: Names, length: int) -> range:
        """Return the positions of the values to be hashed in a row of this length."""
        del names, length
        return range(0)

    def label(self, names: Names, values: Sequence[Any], position: int) -> str:
        """Return the notation for the step from the object to its value at `position`."""
        del values
        return f".{names[position]}" if position < len(names) else f"[{position}]"


class Blob:
    """Bytes that only one row may take: a small file cannot ask for many copies of them."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def take(self) -> bytes:
        """Return the bytes, on the first call only."""
        data, self._data = self._data, None
        if data is None:
            raise EncodingError("two objects share their bytes")
        return data


def slots_of(cls: type) -> dict[str, types.MemberDescriptorType]:
    """Return the slots of a Python class, by name."""
    return {
        key: value
        for base in reversed(cls.__mro__)
        if "__slots__" in vars(base)
        for key, value in vars(base).items()
        if isinstance(value, types.MemberDescriptorType)
    }
