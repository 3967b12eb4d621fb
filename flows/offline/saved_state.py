"""Predicts what `run` will do with the saved state of a config, without changing anything."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from midstream.engine.basics.storage import LocalStorage
from midstream.engine.shard.amending import compared, foreseen
from midstream.engine.shard.journal import Command, Range, whole_records
from midstream.engine.shard.shard import defined
from midstream.engine.state.changes import Change
from midstream.engine.state.snapshot import Snapshot, SnapshotError, SnapshotFolder
from midstream.engine.training.trainer import Trainer
from midstream.flows.config.factory import model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.running.definition import state_identity

__all__ = ["Foreseen", "look"]


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
        if place.is_dir() and (snapshot := _newest(place)) is not None:
            yield _foreseen(settings, blank, place, snapshot)


def _newest(place: Path) -> Snapshot | None:
    """Return the newest complete snapshot; None if there is none."""
    snapshots = SnapshotFolder(LocalStorage(place), tidy=False)
    for position in reversed(snapshots.positions()):
        try:
            return snapshots.read(position)
        except SnapshotError:
            continue  # a run also falls back to an older one, and logs it
    return None


def _foreseen(settings: Settings, blank: Trainer, place: Path, snapshot: Snapshot) -> Foreseen:
    modules, said = model_modules(settings), state_identity(settings)
    header = snapshot.header
    try:
        trainer = Trainer.from_state(snapshot.parts, modules)
    except ValueError as error:
        changes = compared(blank, header["definition"], **said)
        if any(change.level == "refused" for change in changes):
            return Foreseen(place.name, changes)
        return Foreseen(place.name, [], str(error))
    in_force, replays = _after(place, header)
    now = defined(blank, **said)
    changes = foreseen(
        header, trainer, blank, None if in_force == now else in_force, modules=modules, **said
    )
    return Foreseen(place.name, changes, replays=replays)


def _after(place: Path, header: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Return the definition in force at the journal's end, and whether input was applied."""
    definition: Mapping[str, Any] = header["definition"]
    replays = False
    records = whole_records(LocalStorage(place))
    for entry in (e for r in records if r.seq >= header["seq"] for e in r.entries):
        replays |= isinstance(entry, Range)
        if isinstance(entry, Command) and entry.amends:
            definition = entry.definition
    return definition, replays
