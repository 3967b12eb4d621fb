"""Several inputs of one shard, combined into one."""

from collections.abc import Mapping, Set
from contextlib import ExitStack
from typing import TypeVar

from midstream.connectors.input import NOT_THERE, Decoded, Input, InputError, Work
from midstream.engine.shard.journal import Cursor, Range

__all__ = ["SeveralInputs"]

T = TypeVar("T")


class SeveralInputs(Input):
    """Reads several inputs in turn, one block from each; every partition belongs to one of them.

    The journal knows partitions by name only. A missing partition belongs to the one input that may
    have had it (`Input.has`).

    Parameters
    ----------
    inputs
        The inputs, by their names in messages. They are closed with this one.

    Raises
    ------
    InputError
        If two inputs have a partition of the same name.
    """

    def __init__(self, inputs: Mapping[str, Input]) -> None:
        self._inputs = dict(inputs)
        self._order = list(self._inputs)
        self._turn = 0
        self._owners: dict[str, str] = {}  # by partition
        self._own()

    def _own(self) -> None:
        """Record which input each known partition belongs to."""
        for name, each in self._inputs.items():
            for partition in each.names:
                self._take(partition, name)

    def _take(self, partition: str, name: str) -> None:
        owner = self._owners.setdefault(partition, name)
        if owner != name:
            raise InputError(
                f"{partition}: inputs {owner!r} and {name!r} both have a partition of this name; "
                "rename one"
            )

    def _owner(self, partition: str) -> str:
        """Return the input of a partition that the journal names."""
        if partition not in self._owners:
            able = [name for name, each in self._inputs.items() if each.has(partition)]
            if len(able) != 1:
                said = f"may be of the inputs {', '.join(able)}" if able else "is of no input now"
                raise InputError(f"{partition}: was learned from, and {said}")
            self._owners[partition] = able[0]
        return self._owners[partition]

    def _of(self, partition: str) -> Input:
        return self._inputs[self._owner(partition)]

    def _split(self, given: Mapping[str, T]) -> dict[str, dict[str, T]]:
        """Group by input a mapping that is by partition."""
        parts: dict[str, dict[str, T]] = {name: {} for name in self._inputs}
        for partition, value in given.items():
            parts[self._owner(partition)][partition] = value
        return parts

    @property
    def names(self) -> list[str]:
        """The partitions of all inputs, input by input."""
        return [partition for each in self._inputs.values() for partition in each.names]

    def has(self, partition: str) -> bool:
        """Whether a partition belongs to one of the inputs."""
        return partition in self._owners or any(
            each.has(partition) for each in self._inputs.values()
        )

    def seek(self, cursors: Mapping[str, Cursor], known: Mapping[str, Cursor]) -> None:
        """Go to where the shard resumes, in each input."""
        went, knew = self._split(cursors), self._split(known)
        for name, each in self._inputs.items():
            each.seek(went[name], knew[name])
        self._own()

    def begin(self, *, untouched: bool) -> list[Work]:
        """Return the empty ranges of all inputs."""
        return [work for each in self._inputs.values() for work in each.begin(untouched=untouched)]

    def read(self, max_bytes: int) -> Work | None:
        """Return the next block of the input whose turn it is, else of the next that has one."""
        for i in range(len(self._order)):
            at = (self._turn + i) % len(self._order)
            name = self._order[at]
            work = self._inputs[name].read(max_bytes)
            if work is not None:
                self._take(work.span.partition, name)
                self._turn = (at + 1) % len(self._order)
                return work
        return None

    def decode(self, work: Work) -> Decoded:
        """Return the events of a block, decoded by its input."""
        return self._of(work.span.partition).decode(work)

    def replay(self, span: Range, max_bytes: int) -> Work | None:
        """Read a range again, from its input."""
        return self._of(span.partition).replay(span, max_bytes)

    def rewind(self, cursors: Mapping[str, Cursor]) -> None:
        """Go back to cursors, in each input."""
        for name, part in self._split(cursors).items():
            self._inputs[name].rewind(part)

    def oldest(self) -> Mapping[str, int]:
        """Return the oldest position of each partition of all inputs."""
        return _Oldest(self, {name: each.oldest() for name, each in self._inputs.items()})

    def rescan(self) -> list[str]:
        """Look for new partitions in all inputs."""
        found = []
        for name, each in self._inputs.items():
            for partition in each.rescan():
                self._take(partition, name)
                found.append(partition)
        return found

    @property
    def waiting(self) -> Set[str]:
        """Partitions of all inputs whose next record is not complete yet."""
        return frozenset[str]().union(*(each.waiting for each in self._inputs.values()))

    @property
    def ended(self) -> bool:
        """Whether all inputs have ended."""
        return all(each.ended for each in self._inputs.values())

    def confirm(self, seconds: float) -> None:
        """Raise if what was read may belong to another input than the expected one."""
        for each in self._inputs.values():
            each.confirm(seconds)

    def settle(self, learned: Mapping[str, int]) -> None:
        """Report to each input how far its partitions were learned."""
        for name, part in self._split(learned).items():
            self._inputs[name].settle(part)

    def close(self) -> None:
        """Close all inputs, even if closing one fails."""
        with ExitStack() as stack:
            for each in self._inputs.values():
                stack.callback(each.close)


class _Oldest(dict[str, int]):
    """Oldest positions; for a partition that no input lists, the answer of its owner."""

    def __init__(self, several: SeveralInputs, found: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__({p: at for mapping in found.values() for p, at in mapping.items()})
        self._several = several
        self._found = found

    def __missing__(self, partition: str) -> int:
        try:
            owner = self._several._owner(partition)
        except InputError:
            return NOT_THERE
        try:
            return self._found[owner][partition]
        except KeyError:
            return NOT_THERE
