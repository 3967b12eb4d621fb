"""The meaning of a record's fields, and the assembly of columns into a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from midstream.connectors.input import Block, Decoded
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import (
    Features,
    IntArray,
    Label,
    Rejected,
)
from midstream.engine.events.rules import TimeUnit

__all__ = [
    "Columns",
    "Fault",
    "Faults",
    "FeatureKind",
    "FieldMap",
    "Kind",
    "Schema",
    "assemble",
    "oversize",
    "reject",
    "set_aside",
]

Fault: TypeAlias = tuple[str, str]
"""(reason, path) of a rejected event."""
Faults: TypeAlias = dict[int, Fault]
"""The first fault of each faulty event, by its index in the columns."""
FeatureKind: TypeAlias = Literal["number", "category"]
"""Kind of a feature in a schema."""
Kind: TypeAlias = Literal["number", "string", "bool"]
_RAW = 1024


class FieldMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which fields of flat JSON, or columns of CSV, mean what: ``[input.fields]`` of a config.

    Attributes
    ----------
    id
        The field that identifies the event: a string or an integer. Default: the origin is the id.
    label
        The field to predict; required. An event without it, or where it is null, NaN or empty, is
        predicted but not learned.
    time
        The field with the event's time: ISO 8601 (UTC where it has no zone) or a number, see
        `time_unit`.
    key
        The field with the event's entity.
    source
        The field that says who sent the event. `restore --rewind --skip-source` leaves out events
        by it.
    weight
        The field with the sample weight, at least 0. An event without it has weight 1.
    group
        The fields that become the event's groups.
    features
        The fields that are features. Default: all others, apart from `exclude`.
    exclude
        The fields that are not read.
    types
        The fields to read as `number`, `string` (which keeps leading zeros) or `bool`, however
        their values look. A value of another type rejects the event.
    missing
        The values that mean "no value", besides null, NaN and an empty cell, in every field:
        strings and numbers. A string that looks like a number stands for that number, too.
    decimal
        The decimal sign of CSV, and of strings that are numbers.
    time_unit
        The unit of a time that is a number: `s`, `ms`, `us`, `ns`, or `date` for the digits of a
        date, as in 20261129 or 20261129030000. `auto` tells the unit by the size of the number,
        logs it, and rejects a number that may be a date as well.
    """

    id: str | None = None
    label: str | None = None
    time: str | None = None
    key: str | None = None
    weight: str | None = None
    source: str | None = None
    group: list[str] = []
    features: list[str] | None = None
    exclude: list[str] = []
    types: dict[str, Kind] = {}
    missing: list[str | int | float] = []
    decimal: Literal[".", ","] = "."
    time_unit: TimeUnit = "auto"

    def __post_init__(self) -> None:
        if self.features is not None and not self.features:
            raise ValueError("features is empty; leave it out to take every field")
        if self.features is not None and self.exclude:
            raise ValueError("give either features or exclude, not both")
        if self.label is not None and self.label in (self.features or ()):
            raise ValueError(f"the label {self.label!r} cannot be a feature")
        if clash := sorted(set(self.exclude) & set(self.roles)):
            raise ValueError(f"excluded and used at once: {', '.join(map(repr, clash))}")

    @property
    def roles(self) -> list[str]:
        """The fields with a role, each once."""
        named = (self.label, self.id, self.time, self.weight, self.key, self.source)
        return list(dict.fromkeys([name for name in named if name is not None] + self.group))

    @property
    def paths(self) -> dict[str, str]:
        """The field's name in an event, by role."""
        named = {"label": self.label, "weight": self.weight, "time": self.time}
        return {role: name for role, name in named.items() if name is not None}


@dataclass(slots=True)
class Columns:
    """Columns of final values, as `EventBatch` takes them."""

    x: list[Features]
    labels: list[Label | None]
    ids: list[Any] | None = None
    times: list[Any] | None = None
    weights: list[Any] | None = None
    keys: list[Any] | None = None
    sources: list[Any] | None = None
    groups: list[Any] | None = None


def assemble(
    block: Block,
    columns: Columns,
    numbers: IntArray,
    *,
    faults: Faults,
    rejected: list[Rejected],
    records: Callable[[], Mapping[int, bytes]],
    paths: Mapping[str, str] | None,
) -> Decoded:
    """Build the batch of the events without a fault.

    Parameters
    ----------
    numbers
        Line number of each event.
    rejected
        What was rejected before columns were made.
    records
        Returns the bytes of records by their first lines; called if there is a fault.
    paths
        As in `EventBatch`.
    """
    for i in [i for i, x in enumerate(columns.x) if not x] if not all(columns.x) else ():
        faults.setdefault(i, ("no features", ""))
    fields = {name: getattr(columns, name) for name in Columns.__slots__}
    if faults:
        keep = set_aside(block, numbers, faults, rejected, records())
        numbers = numbers[keep]
        fields = {k: None if v is None else [v[i] for i in keep] for k, v in fields.items()}
    batch = EventBatch(
        **fields,
        offsets=numbers,
        partition=block.partition,
        index=-1,
        sound=True,
        paths=paths,
    )
    return Decoded(batch, rejected)


def set_aside(
    block: Block,
    numbers: IntArray,
    faults: Faults,
    rejected: list[Rejected],
    records: Mapping[int, bytes],
) -> list[int]:
    """Add the faulty events to `rejected`, in order; return the indices of the others."""
    for i, (reason, path) in faults.items():
        line = int(numbers[i])
        rejected.append(reject(block.partition, line, reason, path, records[line]))
    rejected.sort(key=lambda r: r.origin[2])
    return [i for i in range(len(numbers)) if i not in faults]


def reject(partition: str, line: int, reason: str, path: str, record: bytes) -> Rejected:
    """Return the rejection of one record, with at most 1,024 characters of it."""
    raw = record[: 4 * _RAW].decode("utf-8", "backslashreplace").rstrip("\r\n")[:_RAW]
    return Rejected((partition, 0, line), reason, path, raw)


def oversize(block: Block) -> Decoded:
    """Return the rejection of a record that was too long to be read."""
    reason = f"record of {block.oversize:,} bytes; the limit is {block.limit:,}"
    batch = EventBatch(
        [], [], offsets=np.zeros(0, dtype=np.int64), partition=block.partition, index=-1
    )
    return Decoded(batch, [reject(block.partition, block.first, reason, "", block.data)])


Schema: TypeAlias = Mapping[str, FeatureKind]
"""Kind of each feature.

A number may be written as true or false. A category is a string, or an integer or bool that stands
for one. Null is a missing value of either.
"""
