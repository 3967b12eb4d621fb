"""Predicts what `run` will do with the saved state of a config, without changing anything."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from midstream.engine.basics.storage import LocalStorage
from midstream.engine.shard.amending import Intended, assess, changes_of, foreseen
from midstream.engine.shard.backlog import in_force, reads_again
from midstream.engine.shard.header import About, Beginning, SnapshotHeader
from midstream.engine.shard.journal import JournalError, Record, whole_records
from midstream.engine.shard.resuming import ResumeError, begun, read_otherwise
from midstream.engine.state.changes import Change, definition_changes, is_same
from midstream.engine.state.snapshot import Snapshot, SnapshotError, SnapshotFolder
from midstream.engine.training.trainer import Trainer
from midstream.flows.config.factory import model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.running.definition import state_identity

__all__ = ["Foreseen", "look", "newest_snapshot"]


class Foreseen(NamedTuple):
    """What a run will find in the state of a shard.

    Attributes
    ----------
    shard
        Its name.
    changes
        Differences from the config; empty if there are none.
    problem
        Why the state cannot be read; empty if it can.
    replays
        Whether input has to be replayed first, after a crash.
    """

    shard: str
    changes: list[Change]
    problem: str = ""
    replays: bool = False


def look(settings: Settings, blank: Trainer) -> Iterator[Foreseen]:
    """Yield what a run will find in the saved state of each shard; nothing if there is none.

    Parameters
    ----------
    blank
        A new trainer of the config.
    """
    folder = settings.state_path / "shards"
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if place.is_dir() and (found := _foreseen(settings, blank, place)) is not None:
            yield found


def newest_snapshot(place: Path) -> tuple[Snapshot, SnapshotHeader] | None:
    """Return the newest complete snapshot of a shard, and its header; None if there is none.

    A run beside may remove one that was listed.
    """
    snapshots = SnapshotFolder(LocalStorage(place), tidy=False)
    for position in reversed(snapshots.positions()):
        with suppress(
            SnapshotError, FileNotFoundError
        ):  # a run also falls back to an older one, and logs it
            snapshot = snapshots.read(position)
            return snapshot, SnapshotHeader.of(snapshot.header)
    return None


def _foreseen(settings: Settings, blank: Trainer, place: Path) -> Foreseen | None:
    name, modules = place.name, model_modules(settings)
    intended = Intended(lambda: blank, modules=modules, **state_identity(settings))
    newest, first, records = newest_snapshot(place), None, list[Record]()
    since = -1 if newest is None else newest[1].seq
    try:
        for record in whole_records(LocalStorage(place), max(since, 0)):
            if record.about:  # the state was begun here
                first, records = record, []
                newest = newest if since > record.seq else None
            if record.seq >= since:
                records.append(record)
    except JournalError as error:
        return Foreseen(name, [], f"`run` refuses it: {error}")
    saved: About
    header: SnapshotHeader | None = None
    try:
        if newest is not None:
            saved = header = newest[1]
            seq, trainer = header.seq, Trainer.from_state(newest[0].parts, modules)
        elif first is not None and first.about:
            saved = beginning = Beginning.of(first.about)
            seq, trainer = first.seq, begun(name, beginning, intended)
        else:
            return None
    except ValueError as error:
        changes = intended.compared(saved.definition)
        if assess(changes, amend=True):
            return Foreseen(name, changes)
        return Foreseen(name, [], str(error))
    except ResumeError as error:
        return Foreseen(name, [], str(error))
    entries = [entry for record in records if record.seq >= seq for entry in record.entries]
    changed = definition_changes(saved.decoding, settings.decoding())
    if entries and changed:
        return Foreseen(name, [], f"`run` refuses it: {read_otherwise(changed)}")
    last = in_force(entries, saved.definition)
    same = is_same(last, intended.definition())
    changes = foreseen(header, trainer, intended, None if same else last, changes_of(entries))
    return Foreseen(name, changes, replays=any(map(reads_again, entries)))
