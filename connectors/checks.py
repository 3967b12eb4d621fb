r"""The contract of an input, as checks that anyone can run on their own.

>>> import tempfile
>>> from pathlib import Path
>>> from midstream.connectors.checks import check_input
>>> from midstream.connectors.decode.decoder import Decoding
>>> from midstream.connectors.files.input import FileInput
>>> folder = Path(tempfile.mkdtemp())
>>> line = '{"x": {"a": 1.5}, "y": true}'
>>> for name in ("a.jsonl", "b.jsonl"):
...     _ = (folder / name).write_text(f"{line}\n" * 100)
>>> def make():
...     return FileInput(".", folder, until_eof=True, decoding=Decoding("binary"))
>>> for passed in check_input(make):
...     print(passed)
ranges_touch
events_do_not_depend_on_the_cuts
ranges_are_replayed
what_was_changed_is_noticed
reading_goes_on_where_it_was
rewound_input_is_replayed
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

import msgspec

from midstream.connectors.input import Cursor, Decoded, Input, InputError, Range, Work

__all__ = ["CHECKS", "InputCheckError", "check_input"]

_SIZES = (1, 300, 5_000, 2**30)  # bytes to aim at for a block
_PATIENCE = 10.0  # seconds within which an input has to return what it had before
_MOMENT = 0.001


class InputCheckError(AssertionError):
    """An input that breaks its contract; the message names the check and the difference."""


class _Piece(NamedTuple):
    """What one block contained."""

    span: Range
    events: list[str]


class _Subject:
    """The input under test: how to open it, and what it returned when it was first read."""

    def __init__(self, make: Callable[[], Input]) -> None:
        self.make = make
        with self.opened() as found:
            self.pieces = list(_read(found, 300))
        if not self.pieces:
            raise InputCheckError("nothing is in the input")

    def opened(
        self, cursors: Mapping[str, Cursor] | None = None, known: Mapping[str, Cursor] | None = None
    ) -> "closing[Input]":
        """Return the input, newly opened, at cursors."""
        made = self.make()
        made.seek(cursors or {}, known or cursors or {})
        return closing(made)

    def cursors(self, count: int) -> dict[str, Cursor]:
        """Return where each partition resumes after `count` pieces."""
        return {piece.span.partition: piece.span.at_stop() for piece in self.pieces[:count]}

    def begun(self) -> dict[str, Cursor]:
        """Return where each partition begins."""
        first: dict[str, Cursor] = {}
        for span, _ in self.pieces:
            first.setdefault(span.partition, Cursor(span.start, head=span.head))
        return first


def _read(found: Input, size: int) -> Iterator[_Piece]:
    """Read to the end."""
    until = time.monotonic() + _PATIENCE
    for begun in found.begin(untouched=True):
        yield _Piece(begun.span, _lines_of(found.decode(begun)))
    while True:
        work: Work | None = found.read(size)
        if work is not None:
            yield _Piece(work.span, _lines_of(found.decode(work)))
        elif found.ended:
            return
        elif time.monotonic() > until:
            raise InputCheckError(f"it has not ended within {_PATIENCE:g} s")
        else:
            time.sleep(_MOMENT)


def _replayed(found: Input, span: Range, size: int) -> list[str]:
    """Read a range again; return its events."""
    until, events = time.monotonic() + _PATIENCE, list[str]()
    while True:
        work: Work | None = found.replay(span, size)
        if work is None:
            if time.monotonic() > until:
                raise InputCheckError(f"{_shown(span)}: is not there again within {_PATIENCE:g} s")
            time.sleep(_MOMENT)
            continue
        if work.span.partition != span.partition or work.span.stop > span.stop:
            raise InputCheckError(f"{_shown(span)}: gave {_shown(work.span)}")
        events += _lines_of(found.decode(work))
        if work.final:
            return events


def _lines_of(decoded: Decoded) -> list[str]:
    """Return each event and each rejection in full, as text."""
    batch = decoded.batch
    rows = range(len(batch))
    texts = [f"{batch.place}:{batch.offsets[i]}:{batch.row(i)} {batch.event(i)}" for i in rows]
    return texts + [str(rejected) for rejected in decoded.rejected]


def _shown(span: Range) -> str:
    return f"{span.partition}, {span.start} to {span.stop}"


def _same(what: str, found: list[str], expected: list[str]) -> None:
    if found == expected:
        return
    differing = (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
    at = next(differing, min(len(found), len(expected)))
    got, wanted = (
        f"{len(each)} in all, at {at}: {each[at : at + 1]}" for each in (found, expected)
    )
    raise InputCheckError(f"{what}: other events; number {at}: {got}, expected {wanted}")


def _by_partition(pieces: list[_Piece]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for span, events in pieces:
        found.setdefault(span.partition, []).extend(events)
    return {partition: sorted(events) for partition, events in found.items()}


def _joined(pieces: list[_Piece], rng: random.Random) -> list[_Piece]:
    """Join adjacent ranges, as a journal may."""
    joined: list[_Piece] = []
    for span, events in pieces:
        last = joined[-1] if joined else None
        if last is not None and last.span.partition == span.partition and rng.random() < 0.5:
            wide = msgspec.structs.replace(span, start=last.span.start)
            joined[-1] = _Piece(wide, last.events + events)
        else:
            joined.append(_Piece(span, list(events)))
    return joined


def ranges_touch(subject: _Subject) -> None:
    """Each range begins where the last of its partition stopped; the input knows the partition."""
    at: dict[str, int] = {}
    with subject.opened() as found:
        if len(set(found.names)) < len(found.names):
            raise InputCheckError(f"two partitions have one name: {', '.join(found.names)}")
        for span, _ in subject.pieces:
            if not found.has(span.partition):
                raise InputCheckError(f"{span.partition}: has() does not know it")
            if span.stop < span.start or at.get(span.partition, span.start) != span.start:
                raise InputCheckError(f"{_shown(span)}: follows {at.get(span.partition)}")
            at[span.partition] = span.stop
        oldest = found.oldest()
        for partition, cursor in subject.begun().items():
            if oldest[partition] > cursor.offset:
                raise InputCheckError(f"{partition}: oldest() says {oldest[partition]}")


def events_do_not_depend_on_the_cuts(subject: _Subject) -> None:
    """Each partition gives the same events, whatever blocks it is read in."""
    expected = _by_partition(subject.pieces)
    for size in _SIZES:
        with subject.opened() as found:
            got = _by_partition(list(_read(found, size)))
        if got.keys() != expected.keys():
            raise InputCheckError(f"partitions {sorted(got)}, expected {sorted(expected)}")
        for partition, events in got.items():
            _same(f"{partition}, in blocks of {size} bytes", events, expected[partition])


def ranges_are_replayed(subject: _Subject) -> None:
    """A journal's ranges give the same events again, in order, joined or not."""
    rng, known = random.Random(1), subject.cursors(len(subject.pieces))
    for size in _SIZES:
        with subject.opened(subject.begun(), known) as found:
            for span, events in _joined(subject.pieces, rng):
                again = _replayed(found, span, size)
                _same(f"{_shown(span)}, replayed", sorted(again), sorted(events))


def what_was_changed_is_noticed(subject: _Subject) -> None:
    """Replaying a range whose records have changed raises InputError."""
    span = next(span for span, _ in subject.pieces if span.start < span.stop)
    before = {span.partition: Cursor(span.start, head=span.head)}
    other = msgspec.structs.replace(span, crc=span.crc ^ 1)
    with subject.opened(before, {span.partition: other.at_stop()}) as found:
        try:
            _replayed(found, other, 2**30)
        except InputError:
            return
    raise InputCheckError(f"{_shown(span)}: other records (`crc`) are taken for those learned")


def reading_goes_on_where_it_was(subject: _Subject) -> None:
    """A shard that resumes at its cursors reads the rest exactly once."""
    count = len(subject.pieces)
    for cut in sorted({1, count // 3, count - 1, count}):
        if cut == 0:
            continue
        with subject.opened(subject.cursors(cut)) as found:
            got = _by_partition(_later(found))
        expected = _by_partition(subject.pieces[cut:])
        for partition in got.keys() | expected.keys():
            what = f"{partition}, resumed after {cut} blocks"
            _same(what, got.get(partition, []), expected.get(partition, []))


def _later(found: Input) -> list[_Piece]:
    """Read to the end, in a shard that has applied input before."""
    found.begin(untouched=False)
    works: list[_Piece] = []
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        work: Work | None = found.read(300)
        if work is not None:
            works.append(_Piece(work.span, _lines_of(found.decode(work))))
        elif found.ended:
            return works
        else:
            time.sleep(_MOMENT)
    raise InputCheckError(f"it has not ended within {_PATIENCE:g} s")


def rewound_input_is_replayed(subject: _Subject) -> None:
    """After a read to the end and a rewind, the ranges give the same events again."""
    with subject.opened() as found:
        list(_read(found, 5_000))
        found.rewind(subject.begun())
        for span, events in subject.pieces:
            _same(f"{_shown(span)}, rewound", sorted(_replayed(found, span, 300)), sorted(events))
        if found.read(300) is not None:
            raise InputCheckError("after all was replayed, it is read again")


CHECKS: tuple[Callable[[_Subject], None], ...] = (
    ranges_touch,
    events_do_not_depend_on_the_cuts,
    ranges_are_replayed,
    what_was_changed_is_noticed,
    reading_goes_on_where_it_was,
    rewound_input_is_replayed,
)
"""All checks, in the order in which `check_input` runs them."""


def check_input(make: Callable[[], Input]) -> Iterator[str]:
    """Run every check on inputs that `make` opens; yield the name of each check that passes.

    Parameters
    ----------
    make
        Opens the input anew. The input has to end by itself, and always hold the same records,
        enough for several blocks of 300 bytes.

    Raises
    ------
    InputCheckError
        If a check fails.
    """
    subject = _Subject(make)
    for check in CHECKS:
        try:
            check(subject)
        except (InputCheckError, InputError) as error:
            raise InputCheckError(f"{check.__name__}: {error}") from None
        yield check.__name__
