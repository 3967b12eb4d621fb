"""The state of learners as bytes: canonical, of any depth, and without code.

A file is a few tables in MessagePack: the kinds of the objects, the shapes of their rows, bytes,
constants, and a row for every object with an identity, in breadth-first order from the root.
Nothing is nested, so any depth can be read. Nothing can be called: there are only None, booleans,
numbers, strings and positions in tables. `state.allowed` decides what may be named, `state.kinds`
rebuilds objects from rows.

Canonical: equal structures give equal bytes, in every process. The order of dicts counts, and so
does which mutable objects are identical. The identity of strings, numbers, tuples and bytes does
not count, nor does the hash seed. So `digest` is a digest of the state, not of a file. (With
PYTHONHASHSEED=0 the iteration order of a set counts, too: see `_Writer.order`.)
"""

import contextlib
import gc
import hashlib
import random
import struct
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from midstream.engine.state.allowed import Allowed, EncodingError
from midstream.engine.state.kinds import Kinds
from midstream.engine.state.kinds.constants import INTEGER, TEXT
from midstream.engine.state.kinds.kind import ATOMS, Blob, Kind, Names
from midstream.engine.state.kinds.limits import (
    DEPTH,
    Measure,
    check_chains,
    check_constant,
    check_keys,
)
from midstream.engine.state.kinds.sets import arrangement, fill

__all__ = ["SCHEMA", "EncodingError", "decode", "digest", "encode"]

SCHEMA = 1
_MAGIC = b"midstream-state\n"
_HEAD = struct.Struct("<16sI")

Row: TypeAlias = list[bool | int | float | str | None]


class _Shape(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The shape that rows share: kind, positions of references (-1: all), names."""

    kind: int
    references: list[int]
    names: list[str]


class _Document(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A file, without its magic. Each row ends with the number of its shape."""

    kinds: list[str]
    shapes: list[_Shape]
    blobs: list[bytes]
    constants: list[Row]
    nodes: list[Row]


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Document).decode


def encode(value: object, *, modules: Collection[str] = ()) -> bytes:
    """Return the state of `value` as bytes.

    Parameters
    ----------
    value
        Any graph of River's objects, those of `modules`, and plain Python and NumPy values.
    modules
        The user's modules, by name, whose classes and functions may be in the state: those
        defined there.

    Raises
    ------
    EncodingError
        If the value holds something that `decode` could not rebuild. The message says where.
    """
    with _collector_paused():
        try:
            return _Writer(Allowed(modules), careful=False).document(value)
        except (OverflowError, UnicodeEncodeError):
            # Integers beyond 64 bits and lone surrogates are handled only if there are any.
            return _Writer(Allowed(modules), careful=True).document(value)


def decode(data: bytes | bytearray | memoryview, *, modules: Collection[str] = ()) -> Any:
    """Return the value whose state `encode` wrote.

    Nothing that the data names is called or imported, except as `state.kinds` lists. Forged data
    gives an error or some value, never more than that.

    Raises
    ------
    EncodingError
        If the data is of another schema, is damaged, or names what is not allowed.
    """
    head = bytes(data[: _HEAD.size])
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise EncodingError("not a state written by Midstream")
    _, schema = _HEAD.unpack(head)
    if schema != SCHEMA:
        raise EncodingError(f"the state has schema {schema}, this Midstream reads {SCHEMA}")
    with _collector_paused():
        try:
            return _Reader(Allowed(modules), _unpack(memoryview(data)[_HEAD.size :])).value()
        except EncodingError:
            raise
        except Exception as error:
            raise EncodingError(f"damaged state: {_summary(error)}") from error
        except BaseException as error:
            # A panic of a compiled learner is no `Exception`, by its author's choice.
            if type(error).__name__ == "PanicException":
                raise EncodingError(f"damaged state: {_summary(error)}") from error
            raise


def digest(value: object, *, modules: Collection[str] = ()) -> str:
    """Return the SHA-256 of the state of `value`, in hexadecimal."""
    return hashlib.sha256(encode(value, modules=modules)).hexdigest()


def _summary(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    # Many objects are made and none is garbage.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Plan(NamedTuple):
    """What follows from the types in a row: its shape, and which values become references.

    `numbered`: some keys are integers.
    """

    shape: int
    references: Sequence[int]
    numbered: bool


_NUMBERS = {bool, int, float}
_ADDRESS = 2**20  # no Python object lies below this address


def _fillings(ordered: list[Any], walked: list[Any]) -> Iterator[list[Any]]:
    """Yield orders of insertion that may give a set this iteration order."""
    yield ordered
    found = arrangement(walked)
    if found is not None:
        yield found
    rng = random.Random(0)
    for _ in range(12 if len(ordered) <= 16 else 0):
        yield rng.sample(ordered, len(ordered))


class _Big:
    """Stands for the type of an integer that MessagePack cannot hold."""


class _Odd:
    """Stands for the type of a string that UTF-8 cannot hold."""


def _encodable(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _careful_type(value: Any) -> type:
    cls = type(value)
    if cls is int and not -(2**63) <= value < 2**64:
        return _Big
    if cls is str and not _encodable(value):
        return _Odd
    return cls


class _Writer:
    """Writes one document.

    Parameters
    ----------
    allowed
        The names that may occur.
    careful
        Look for values that MessagePack cannot hold, and write them as constants.
    """

    def __init__(self, allowed: Allowed, *, careful: bool) -> None:
        self.allowed = allowed
        self.careful = careful
        self.kinds = Kinds(allowed, self.order)
        self.kind_numbers: dict[str, int] = {}
        self.shapes: dict[tuple[int, Sequence[int], Names], int] = {}
        self.plans: dict[tuple[Kind, Names, tuple[type, ...]], _Plan] = {}
        self.blobs: list[bytes] = []
        self.constants: list[list[Any]] = []
        self.measures: list[Measure] = []
        self.equal: dict[bytes, int] = {}
        self.nodes: list[Any] = []
        self.rows: list[list[Any]] = []
        self.references: dict[int, int] = {}
        self.alive: list[Any] = []  # constants: an id is void once its object is freed
        # For messages: the holder of each node, the position in it, and tuples in between.
        self.holders: list[tuple[int, int, tuple[tuple[Kind, Any, int], ...]]] = [(0, 0, ())]
        self.trail: list[tuple[Kind, Any, int]] = []
        self.chains: dict[int, list[int]] = {}
        self.numbered: list[tuple[int, range]] = []  # rows with integers among these keys

    def document(self, value: Any) -> bytes:
        """Return the document of `value`."""
        kinds = self.kinds
        plans = self.plans
        references = self.references
        rows = self.rows
        typed = _careful_type if self.careful else type
        self.nodes.append([value])
        position = -1
        try:
            for node in self.nodes:  # grows during the loop
                position = -1
                kind = kinds[type(node)]
                names, row = kind.write(node)
                if self.careful and not all(map(_encodable, names)):
                    names, row = kind.spread(node)
                types = tuple(map(typed, row))
                plan = plans.get((kind, names, types)) or self.plan(kind, names, types)
                for position in plan.references:
                    item = row[position]
                    found = references.get(id(item))
                    row[position] = self.refer(item, position) if found is None else found
                position = -1
                if plan.references:
                    if kind.hashes:
                        self.check_keys(kind, names, row, plan.references)
                    if kind.stage:
                        self.check_parts(kind, names, row, plan.references)
                if kind.recurses:
                    self.chains[len(rows)] = [row[at] for at in plan.references]
                if plan.numbered:
                    self.numbered.append((len(rows), kind.keys(names, len(row))))
                row.append(plan.shape)
                rows.append(row)
        except (OverflowError, UnicodeEncodeError) as error:
            if not self.careful:
                raise
            raise self.refused(position, error) from error
        except EncodingError as error:
            raise self.refused(position, error) from None
        except Exception as error:
            raise self.refused(position, error) from error
        check_chains(self.chains)
        self.check_numbers()
        document = _Document(
            list(self.kind_numbers),
            [_Shape(k, list(r), list(n)) for k, r, n in self.shapes],
            self.blobs,
            self.constants,
            rows,
        )
        data = _HEAD.pack(_MAGIC, SCHEMA) + _pack(document)
        vars(self).clear()  # breaks cycles through bound methods: frees all now
        return data

    def plan(self, kind: Kind, names: Names, types: tuple[type, ...]) -> _Plan:
        """Return the plan of rows with these types."""
        if not all(type(name) is str for name in names):
            raise EncodingError("an attribute's name is no string")
        found = [position for position, cls in enumerate(types) if cls not in ATOMS]
        references = (-1,) if found and len(found) == len(types) else tuple(found)
        number = self.kind_numbers.setdefault(kind.name, len(self.kind_numbers))
        shape = self.shapes.setdefault((number, references, names), len(self.shapes))
        numbered = kind.hashes and any(types[at] is int for at in kind.keys(names, len(types)))
        plan = self.plans[kind, names, types] = _Plan(shape, found, numbered)
        return plan

    def refer(self, value: Any, position: int) -> int:
        """Return a new reference: the number of a node, or ~ the number of a constant."""
        cls = type(value)
        kind = INTEGER if cls is int else TEXT if cls is str else self.kinds[cls]
        if not kind.constant:
            number = self.references[id(value)] = len(self.nodes)
            self.nodes.append(value)
            self.holders.append((len(self.rows), position, tuple(self.trail)))
            return number
        if len(self.trail) >= DEPTH:
            raise EncodingError(f"tuples are nested more than {DEPTH} deep")
        names, row = kind.write(value)
        if kind.blob:
            data, *rest = row
            if type(value) is not Blob:
                known = self.equal.setdefault(_pack((kind.name, row)), len(self.constants))
                if known < len(self.constants):
                    return self.found(value, known)
            row = [len(self.blobs), *rest]
            self.blobs.append(data)
        types = tuple(map(_careful_type if self.careful else type, row))
        plan = self.plans.get((kind, names, types)) or self.plan(kind, names, types)
        for at in plan.references:
            found = self.references.get(id(row[at]))
            if found is None:
                self.trail.append((kind, value, at))
                found = self.refer(row[at], position)
                self.trail.pop()
            row[at] = found
        measure = Measure.of(len(row), [row[at] for at in plan.references], self.measures)
        check_constant(kind, measure)
        if kind.hashes:
            self.check_keys(kind, names, row, plan.references)
        row.append(plan.shape)
        if not kind.blob:
            known = self.equal.setdefault(_pack(row), len(self.constants))
            if known < len(self.constants):
                return self.found(value, known)
        self.constants.append(row)
        self.measures.append(measure)
        return self.found(value, len(self.constants) - 1)

    def found(self, value: Any, constant: int) -> int:
        """Return the reference to a constant, and remember its object."""
        self.alive.append(value)
        self.references[id(value)] = ~constant
        return ~constant

    def check_keys(
        self, kind: Kind, names: Names, row: list[Any], references: Sequence[int]
    ) -> None:
        """Raise if a key is too deep or too large to hash."""
        keys = kind.keys(names, len(row))
        check_keys(keys, row, references, len(self.nodes), self.measures)

    def check_parts(
        self, kind: Kind, names: Names, row: list[Any], references: Sequence[int]
    ) -> None:
        """Raise if an object is made of others that do not exist by then: see `Kind.stage`."""
        for at in references:
            if at < kind.made_of:
                number = row[at]
                if number < 0:
                    missing = self.measures[~number].nodes
                else:
                    missing = self.kinds[type(self.nodes[number])].stage >= kind.stage
                if missing:
                    raise EncodingError(
                        f"{kind.label(names, row, at)} of a {kind.name} holds objects; the object "
                        "is made with it, so it may hold plain values only"
                    )

    def check_numbers(self) -> None:
        """Raise if integer keys are addresses of objects of this state.

        An object's `id()`, and a `hash()` made from it, differ in another process.
        """
        for number, positions in self.numbered:
            values = [self.rows[number][at] for at in positions]
            keys = [key for key in values if type(key) is int and key > _ADDRESS]
            found = sum(key in self.references or key << 4 in self.references for key in keys)
            if found and 2 * found >= len(keys):
                holder = type(self.nodes[self.holders[number][0]]).__name__
                raise self.refused(
                    -1,
                    EncodingError(
                        "its keys are the id() or hash() of objects, which are others after a "
                        f"restart, so {holder} could not go on; give the objects numbers or names "
                        "of their own, and use these as keys"
                    ),
                    number,
                )

    def order(self, values: Any) -> list[Any]:
        """Return the elements of a set in the order in which to insert them again.

        The order is sorted. But where every process iterates over such a set in the same order, it
        is an order that restores that iteration order, since models sum while they iterate over
        sets. (It is found if nothing was removed from the set, though not always for numbers with
        long fractions, whose hashes end alike; else the order is sorted.)
        """
        walked = [*values]
        types = set(map(type, walked))
        if types in ({str}, {int}):
            ordered = sorted(walked)
        else:
            keyed = [(type(value).__name__, self.key(value), value) for value in walked]
            ordered = [value for _, _, value in sorted(keyed, key=lambda item: item[:2])]
        if types <= _NUMBERS or not sys.flags.hash_randomization:
            for filling in _fillings(ordered, walked):
                again: set[Any] = set()
                fill(again, filling)
                if [*again] == walked:
                    return filling
        return ordered

    def key(self, value: Any) -> Any:
        """Return the sort key of a value among those of its type."""
        cls = type(value)
        if cls in (bool, int, str, bytes):
            return value
        if cls is tuple:
            return tuple((type(item).__name__, self.key(item)) for item in value)
        if cls not in ATOMS and not self.kinds[cls].constant:
            raise EncodingError(
                f"a set of {cls.__name__} has no order that outlives the process; hold a list or "
                "a dict"
            )
        return encode(value, modules=self.allowed.modules)

    def refused(self, position: int, error: Exception, number: int | None = None) -> EncodingError:
        """Return the error with its place: in the row being written, or in one before."""
        number = len(self.rows) if number is None else number
        node = self.nodes[number]
        way = [self.label(*step) for step in self.trail]
        if position >= 0:
            way.insert(0, self.label(self.kinds[type(node)], node, position))
        while number:
            number, position, between = self.holders[number]
            node = self.nodes[number]
            steps = [(self.kinds[type(node)], node, position), *between]
            way[:0] = [self.label(*step) for step in steps]
        root = type(self.nodes[0][0]).__name__
        way = way[1:]  # without the list around the root
        if len(way) > 16:
            way[6:-6] = ["…"]
        reason = str(error) if isinstance(error, EncodingError) else _summary(error)
        return EncodingError(f"{root}{''.join(way)}: {reason}")

    @staticmethod
    def label(kind: Kind, value: Any, position: int) -> str:
        """Return the notation for the step from a value to one that it refers to."""
        names, row = kind.write(value)
        return kind.label(names, row, position)


class _RowShape(NamedTuple):
    """A shape with its kind resolved."""

    kind: Kind
    references: list[int] | None  # None: all
    names: Names

    def positions(self, row: Sequence[Any]) -> Sequence[int]:
        """Return the positions of references in a row."""
        return range(len(row)) if self.references is None else self.references


class _Reader:
    """Rebuilds the value of one document.

    The order: constants without nodes in them; nodes, without their state; the other constants; the
    state of the nodes; last, in reverse order, the state of those that read the state of others.
    """

    def __init__(self, allowed: Allowed, document: _Document) -> None:
        kinds = Kinds(allowed, list)
        named = [kinds.named(name) for name in document.kinds]
        self.shapes: list[_RowShape] = []
        for shape in document.shapes:
            references = None if shape.references == [-1] else shape.references
            if references and min(references) < 0:
                raise EncodingError("a reference before the row")
            self.shapes.append(_RowShape(named[shape.kind], references, tuple(shape.names)))
        self.blobs = document.blobs
        self.constants: list[list[Any]] = document.constants
        self.nodes: list[list[Any]] = document.nodes
        self.measures: list[Measure] = []
        # Node i is at i, constant k at -1 - k.
        self.objects: list[Any] = [_UNMADE] * (len(self.nodes) + len(self.constants))

    def value(self) -> Any:
        """Return the value."""
        objects = self.objects
        waiting = self.make_constants()
        shapes = self.make_nodes()
        for number, shape, row in waiting:
            objects[~number] = self.made(shape, row)
        count = len(shapes)
        late = []
        for node, shape, row in zip(objects, shapes, self.nodes, strict=False):
            kind, references, names = shape
            wait = kind.late
            if kind.hashes and references != []:
                keys = kind.keys(names, len(row))
                wait = check_keys(keys, row, shape.positions(row), count, self.measures)
            if references is None:
                row[:] = [objects[number] for number in row]
            else:
                for at in references:
                    row[at] = objects[row[at]]
            if wait:
                late.append((node, kind, names, row))
            else:
                kind.fill(node, names, row)
        for node, kind, names, row in reversed(late):
            kind.fill(node, names, row)
        root = objects[0]
        if type(root) is not list or len(root) != 1:
            raise EncodingError("no root")
        return root[0]

    def make_constants(self) -> list[tuple[int, _RowShape, list[Any]]]:
        """Make the constants that hold no nodes; return the others."""
        waiting = []
        count = len(self.nodes)
        for number, row in enumerate(self.constants):
            shape = self.shapes[row.pop()]
            kind = shape.kind
            if not kind.constant:
                raise EncodingError(f"a {kind.name} among the constants")
            positions = shape.positions(row)
            references = [row[at] for at in positions]
            # A constant refers only to earlier ones, so all of those are measured already.
            if references and max(references) >= count:
                raise EncodingError("a reference to no node")
            measure = Measure.of(len(row), references, self.measures)
            self.measures.append(measure)
            check_constant(kind, measure)
            if kind.hashes:
                check_keys(positions, row, positions, count, self.measures)
            if measure.nodes:
                waiting.append((number, shape, row))
                continue
            if kind.blob:
                row[0] = self.blobs[row[0]]
            self.objects[~number] = self.made(shape, row)
        return waiting

    def make_nodes(self) -> list[_RowShape]:
        """Make the nodes, without their state; return their shapes."""
        shapes = []
        staged: list[tuple[int, int, _RowShape, list[Any]]] = []
        chains: dict[int, list[int]] = {}
        for number, row in enumerate(self.nodes):
            shape = self.shapes[row.pop()]
            kind = shape.kind
            if kind.constant:
                raise EncodingError(f"a {kind.name} among the nodes")
            if kind.recurses:
                chains[number] = [row[at] for at in shape.positions(row)]
            if kind.stage:
                staged.append((kind.stage, number, shape, row))
            else:
                self.objects[number] = kind.new()
            shapes.append(shape)
        check_chains(chains)
        for _, number, shape, row in sorted(staged, key=lambda node: node[0]):
            self.objects[number] = self.made(shape, row)
        return shapes

    def made(self, shape: _RowShape, row: list[Any]) -> Any:
        """Return the result of `Kind.make` for the row."""
        kind = shape.kind
        part = row[: kind.made_of]
        for at in shape.positions(row):
            if at < kind.made_of:
                part[at] = self.objects[row[at]]
                if part[at] is _UNMADE:
                    raise EncodingError(f"a {kind.name} is made of what does not exist yet")
        return kind.make(part)


_UNMADE = object()
