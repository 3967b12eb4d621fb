"""Resume a shard: find the state that its journal goes on from, and compare it with the config's.

State is the fold of the journal. Resuming takes the newest snapshot at or below the journal's end;
what the journal holds from there on is the backlog.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.shard.amending import Intended, assess, changes_of, foreseen
from midstream.engine.shard.backlog import Backlog, events_of, in_force, reads_again
from midstream.engine.shard.header import About, Beginning, SnapshotHeader
from midstream.engine.shard.journal import Command, Journal, Range, Record, packed, unpacked
from midstream.engine.state.changes import (
    Change,
    definition_changes,
    in_words,
    is_same,
    of_code,
)
from midstream.engine.state.snapshot import SnapshotFolder
from midstream.engine.training.trainer import Trainer

__all__ = ["ResumeError", "Resumed", "begun", "read_otherwise", "resume"]

_MOST_BLANK = 128 * 1024  # most compressed bytes of a new model at the start of a journal
_ANOTHER = (
    "put the old definition back, start over with --fresh, or, where the journal is another "
    "config's, give this one a `name` of its own"
)


class ResumeError(ExpectedError, RuntimeError):
    """The saved state cannot be resumed; the message says why and what can be done.

    `changes` are the differences between the saved definition and the one in force, if they are
    the reason.
    """

    def __init__(self, message: str, changes: Sequence[Change] = ()) -> None:
        super().__init__(message)
        self.changes = list(changes)


class Resumed(NamedTuple):
    """A state to go on from.

    Attributes
    ----------
    trainer
        Its trainer.
    about
        What the state is, with the config's decoding.
    intended
        What the config defines.
    saved
        The header of its snapshot, as good as empty without one; None: it was begun just now.
    seq, backlog, to_apply
        The record that it goes on from, what is to be applied, and the events in that.
    amendment
        The change to journal after the backlog, if the config defines the model otherwise.
    redecodes
        Whether the config decodes otherwise than the state says.
    is_saved
        Whether a snapshot holds all of it, as it is now.
    notes
        What an operator should know, one sentence each.
    """

    trainer: Trainer
    about: About
    intended: Intended
    saved: SnapshotHeader | None
    seq: int
    backlog: Backlog
    to_apply: int = 0
    amendment: Command | None = None
    redecodes: bool = False
    is_saved: bool = False
    notes: Sequence[str] = ()


def resume(
    name: str,
    intended: Intended,
    journal: Journal,
    snapshots: SnapshotFolder,
    *,
    decoding: dict[str, Any],
    fresh: str,
    identity: str,
    amend: bool,
    at: float,
) -> Resumed:
    """Return the state of a shard to go on from; the journal has a new beginning if there is none.

    `at` is the time now, in seconds since 1970; all else is as for `Shard.open`.
    """
    positions = snapshots.positions()
    records = journal.recover(positions[0] if positions else 0)
    intended.blank()  # imports the modules whose classes the state may name
    if positions and positions[-1] > journal.end:
        raise ResumeError(
            f"shard {name}: there is a snapshot of record {positions[-1]}, but the journal "
            f"ends before record {journal.end}: its end was lost; put the journal back, or "
            "start over with --fresh"
        )
    records = _newest(records)
    if records and fresh:
        first = None if records[0].about is None else About.of(records[0].about)
        _check_input(first, intended.source)
        _same_identity(name, first or About(), identity)
    if not records or (fresh and _token(records[0], snapshots) != fresh):
        return _begin(intended, journal, decoding=decoding, fresh=fresh, identity=identity, at=at)
    found = _find(name, intended, journal, snapshots, positions, records)
    saved = found.about
    # A command that was abandoned later counts as refused.
    reasons = {e.id: e.refused for e in _commands(found.records) if e.abandons}
    backlog = Backlog(journal, found.seq, reasons, found.records)
    known = _same_identity(name, saved, identity)
    changed = definition_changes(saved.decoding, decoding)
    if changed and backlog:
        raise ResumeError(read_otherwise(changed))
    to_apply, last = _to_come(backlog, saved.definition)
    amendment = _amendment(
        name,
        found,
        intended,
        last,
        amend=amend,
        journaled=changes_of(piece.entry for piece in backlog.all()),
        replays=any(reads_again(piece.entry) for piece in backlog.all()),
        at=at,
    )
    about = About(
        definition=saved.definition,
        decoding=decoding,
        identity=known,
        fresh=saved.fresh,
        begun=saved.begun or (0.0, 0),
    )
    taken_up = bool(identity) and not saved.identity  # a snapshot must hold it
    return Resumed(
        found.trainer,
        about,
        intended,
        found.header or SnapshotHeader(),
        found.seq,
        backlog,
        to_apply,
        amendment,
        redecodes=bool(changed),
        is_saved=not (changed or taken_up),
        notes=found.notes,
    )


class _Found(NamedTuple):
    """A saved state: `header` None: the journal begins with it; `about` says what it is."""

    trainer: Trainer
    header: SnapshotHeader | None
    about: About
    seq: int
    records: list[Record]
    notes: list[str]


def _begin(
    intended: Intended,
    journal: Journal,
    *,
    decoding: dict[str, Any],
    fresh: str,
    identity: str,
    at: float,
) -> Resumed:
    """Journal the beginning of a new state."""
    about = Beginning(
        definition=intended.definition(),
        decoding=decoding,
        identity=identity,
        fresh=fresh,
        begun=(at, journal.end),
        blank=_blank_kept(intended.blank()),
    )
    journal.generation = 0
    journal.commit([], about=about.plain())
    trainer = Trainer.from_state(intended.blank().state(), intended.modules)
    about_only = About.of(msgspec.structs.asdict(about))
    return Resumed(trainer, about_only, intended, None, journal.end, Backlog(journal))


def _find(
    name: str,
    intended: Intended,
    journal: Journal,
    snapshots: SnapshotFolder,
    positions: list[int],
    records: list[Record],
) -> _Found:
    """Return the newest state that can be read: of a snapshot, or of the journal's beginning."""
    notes = []
    first, seq = records[0].about, records[0].seq
    for position in reversed(positions):
        if (position <= seq and first is not None) or position < seq:
            continue
        try:
            snapshot = snapshots.read(position)
            header = SnapshotHeader.of(snapshot.header)
        except ValueError as error:  # damaged
            notes.append(f"{error}; an older one is used")
            continue
        try:
            trainer = Trainer.from_state(snapshot.parts, intended.modules)
        except ValueError as error:  # damaged, of another schema, or of another model
            _check_accepted(name, intended.compared(header.definition), amend=True)
            notes.append(f"{error}; an older one is used")
            continue
        return _Found(trainer, header, header, position, records, notes)
    if first is None and seq > 0:  # no snapshot can be read: try the journal's beginning
        records = _newest(journal.recover())
        first, seq = records[0].about, records[0].seq
    if first is None:
        raise ResumeError(
            f"shard {name}: no snapshot can be used, and the journal begins at record "
            f"{journal.first}, not at 0" + "".join(f"; {note}" for note in notes)
        )
    about = Beginning.of(first)
    return _Found(begun(name, about, intended), None, about, seq, records, notes)


def _commands(records: list[Record]) -> Iterator[Command]:
    return (e for record in records for e in record.entries if isinstance(e, Command))


def _blank_kept(blank: Trainer) -> dict[str, str]:
    """Return a new trainer's state as the first record holds it; empty if it is large."""
    parts = packed(blank.state())
    if sum(map(len, parts.values())) > _MOST_BLANK:
        return {}
    return {name: b64encode(data).decode() for name, data in parts.items()}


def read_otherwise(changed: Iterable[str]) -> str:
    """Return why input cannot be read again, from what is decoded otherwise now."""
    return (
        "the config reads the input otherwise than when it was learned, and a part of it has to be "
        f"read again after a crash ({'; '.join(changed)}); run once with the old config until it "
        "stops by itself, or start over with --fresh"
    )


def begun(name: str, about: Beginning, intended: Intended) -> Trainer:
    """Return the trainer that a journal without a snapshot begins with.

    Raises
    ------
    ResumeError
        If the config defines another one, and the journal does not hold the one that it began with.
    """
    if is_same(about.definition, intended.definition()):
        return Trainer.from_state(intended.blank().state(), intended.modules)
    if not about.blank:
        changes = intended.blank().changes(about.definition)
        raise ResumeError(
            f"shard {name}: no snapshot can be used, and the journal does not hold the model that "
            f"it begins with, which was defined otherwise ({in_words(changes)}); put the old "
            "definition back, or restore a version",
            changes,
        )
    parts = {key: b64decode(data) for key, data in about.blank.items()}
    return Trainer.from_state(unpacked(parts), intended.modules)


def _to_come(backlog: Backlog, before: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """Return how many events are still to be applied, and the definition in force after them."""
    events, definition = 0, before
    for entry in (piece.entry for piece in backlog.all()):
        events += events_of(entry) if isinstance(entry, Range) else 0
        definition = in_force((entry,), definition)
    return events, definition


def _check_accepted(name: str, changes: Sequence[Change], *, amend: bool) -> None:
    """Raise ResumeError if a run does not accept all changes; `amend` as for `Shard.open`."""
    left = assess(changes, amend=amend)
    if left:
        refused = any(change.level == "refused" for change in left)
        advice = _ANOTHER if refused else "`run --amend` takes it, and keeps what was learned"
        raise ResumeError(
            f"shard {name}: the state was saved by a model that is defined otherwise: "
            f"{in_words(left)}; {advice}",
            changes,
        )


def _amendment(
    name: str,
    found: _Found,
    intended: Intended,
    old: Mapping[str, Any],
    *,
    amend: bool,
    journaled: Sequence[Change],
    replays: bool,
    at: float,
) -> Command | None:
    """Return the amendment to journal if the config's definition differs; else None.

    `old` is the definition in force after the backlog; `replays`: the backlog has input;
    `journaled`: as in `foreseen`.

    Raises
    ------
    ResumeError
        If the state cannot be continued, or only with `amend`.
    """
    definition = intended.definition()
    differ = not is_same(old, definition)
    changes = foreseen(found.header, found.trainer, intended, old if differ else None, journaled)
    if not differ and not changes:
        return None
    _check_accepted(name, changes, amend=amend)
    if replays and of_code(changes):
        raise ResumeError(
            f"shard {name}: {in_words(changes)}; a part of the input has to be read again after a "
            "crash, by the code that it was learned with; run once with the old code until it "
            "stops by itself",
            changes,
        )
    parts = intended.blank().blank_parts(old) if differ else {}
    return Command.amendment(definition, parts, changes, at)


def _newest(records: list[Record]) -> list[Record]:
    """Return the records of the newest state, from the last beginning on."""
    return records[max((i for i, record in enumerate(records) if record.about), default=0) :]


def _token(begun: Record, snapshots: SnapshotFolder) -> str:
    """Return the token under which the state was begun, from a record or else a snapshot."""
    if begun.about is not None:
        return str(begun.about.get("fresh", ""))
    for position in reversed(snapshots.positions()):
        with suppress(ValueError):  # damaged: an older one holds the same token
            return str(snapshots.read(position).header.get("fresh", ""))
    return ""


def _check_input(about: About | None, source: str) -> None:
    """Raise ResumeError if a journal is of another input, so probably another config's."""
    other = source if about is None else about.definition.get("input", source)
    if other != source:
        raise ResumeError(
            f"the journal is that of another input, {other!r}, not of {source!r}; give this config "
            "a `name` (or `output.journal`) of its own"
        )


def _same_identity(shard: str, about: About, identity: str) -> str:
    """Return the identity of a saved state; raise ResumeError if another one is expected."""
    saved = about.identity
    if saved and identity and saved != identity:
        raise ResumeError(
            f"shard {shard}: its journal is that of the state {saved}, and this is the state "
            f"{identity}, as the file `identity` in the state folder says; put the right journal "
            f"back, or, if it is the right one, write {saved} to that file"
        )
    return saved or identity
