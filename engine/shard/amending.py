"""Compare the model that a config defines with the saved state's definition."""

import platform
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from midstream.engine.learners.learner import LearnerError
from midstream.engine.shard.header import Header
from midstream.engine.shard.journal import Command, Entry
from midstream.engine.state.changes import Change, MisfitError, differences, in_words, of_code
from midstream.engine.training.trainer import Trainer

__all__ = [
    "Blanks",
    "Intended",
    "assess",
    "changes_of",
    "compared",
    "defined",
    "foreseen",
    "libraries",
    "unfit",
]

_LIBRARIES = ("river", "numpy", "numba")
_UNPROVED = "the state has no predictions to compare: `run --amend` takes it as it is"


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that the learned state may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


class Blanks:
    """Makes the trainer that the config defines, once, on first use."""

    def __init__(self, make: Callable[[], Trainer]) -> None:
        self._make = make
        self._made: Trainer | None = None

    def __call__(self) -> Trainer:
        """Return a trainer that has seen nothing; it is for comparison only."""
        if self._made is None:
            self._made = self._make()
        return self._made


class Intended(NamedTuple):
    """What the config defines.

    `blank` returns a trainer that has seen nothing; `source`, `shards` and `modules` are as for
    `Shard.open`.
    """

    blank: Callable[[], Trainer]
    source: str = ""
    shards: str = ""
    modules: Collection[str] = ()

    def definition(self) -> dict[str, Any]:
        """Return the definition of a state of this config."""
        return defined(self.blank(), self.source, self.shards)

    def compared(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences of a saved definition from this one."""
        return compared(self.blank(), old, self.source, self.shards)


def defined(trainer: Trainer, source: str = "", shards: str = "") -> dict[str, Any]:
    """Return the definition of a shard's state; `source` and `shards` as for `Shard.open`."""
    definition = {**trainer.definition(), **({"input": source} if source else {})}
    return definition | ({"shards": shards} if shards else {})


def compared(
    blank: Trainer, old: Mapping[str, Any], source: str = "", shards: str = ""
) -> list[Change]:
    """Return the differences between a saved definition and the config's.

    Parameters
    ----------
    blank
        A new trainer, made from the config.
    old
        The saved definition of a shard.
    source, shards
        As for `Shard.open`.
    """
    effect = "the state is of another input; put the config back, or start over with --fresh"
    about = {"input": source, "shards": shards}
    saved = {key: old[key] for key in about if key in old}
    now = {key: value for key, value in about.items() if value}
    found = differences("input", saved, now, level="refused", effect=effect)
    return found + blank.changes({key: old[key] for key in old if key not in about})


def changes_of(entries: Iterable[Entry]) -> list[Change]:
    """Return the changes that amendments among the journal's entries took."""
    return [change for e in entries if isinstance(e, Command) for change in e.changes]


def proved(header: Header, trainer: Trainer) -> list[Change]:
    """Return the differences in versions of Python and libraries, and whether they matter.

    The events whose predictions the snapshot holds are predicted again. If all predictions are
    equal, the state is resumed.

    Parameters
    ----------
    header
        The header of the snapshot.
    trainer
        The trainer that was read from the snapshot.
    """
    saved, now = header.libraries, libraries()
    if not saved:  # a snapshot of version 0.1, which named River only
        learner = header.definition.get("learner", {})
        saved = {name: learner[name] for name in ("python", "river") if name in learner}
        now = {name: ".".join(now[name].split(".")[:2]) for name in saved}
    changed = [name for name in saved if saved[name] != now.get(name)]
    if not changed:
        return []
    proof, level, effect = header.proof, "accepted", ""
    if not proof:
        level = "accepted" if not trainer.seen else "asked"
        effect = _UNPROVED if trainer.seen else "nothing was learned yet"
    else:
        effect = f"the predictions for {len(proof)} events of the replay buffer come out equal"
        try:
            again = trainer.proof()
        except (LearnerError, ValueError) as error:
            again, said = proof, " ".join(str(error).split())
            level, effect = "refused", f"the saved model does not predict any more: {said:.200}"
        if proof != again:
            pairs = zip(proof, [*again, *["nothing"] * len(proof)], strict=False)
            was, is_now = next(pair for pair in pairs if pair[0] != pair[1])
            level, effect = "refused", f"other predictions: {was} is {is_now.rpartition(': ')[2]}"
    return [
        Change("libraries", name, saved[name], now.get(name, "-"), level, effect)  # type: ignore[arg-type]
        for name in changed
    ]


def misfits(trainer: Trainer, blank: Trainer, changes: list[Change], old: Mapping[str, Any],
            modules: Iterable[str]) -> list[Change]:  # fmt: skip
    """Return why the learned state cannot be continued, as refused changes; none if it can.

    Parameters
    ----------
    trainer
        Trainer with the learned state; it is not changed.
    changes
        The result of `compared`; where one change is refused nothing is tried.
    """
    if not changes or any(change.level == "refused" for change in changes):
        return []
    parts = blank.blank_parts(old)
    try:
        amended = trainer.amended(parts, tuple(modules))
        if "learner" in parts:
            amended.tried()
    except MisfitError as error:
        part = "labels" if error.attribute == "labels" else "learner"
        return [Change(part, error.attribute, "learned", "-", "refused",
                       f"does not fit: {error.why}")]  # fmt: skip
    except LearnerError as error:
        said = " ".join(str(error).split())
        effect = f"it raises on an event of the replay buffer: {said:.200}"
        return [Change("learner", "amended", "learned", "-", "refused", effect)]
    except ValueError as error:
        return [Change("state", "amended", "learned", "-", "refused", str(error))]
    except Exception as error:  # noqa: BLE001  # whatever a part from another package raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return [Change("state", "amended", "learned", "-", "refused", f"{said:.200}")]
    return []


def foreseen(
    header: Header | None,
    trainer: Trainer,
    intended: Intended,
    old: Mapping[str, Any] | None,
    journaled: Iterable[Change] = (),
) -> list[Change]:
    """Return all differences between a saved state and this config and machine.

    Parameters
    ----------
    header
        The header of the snapshot that `trainer` was read from; None: there is no snapshot.
    old
        The definition in force; None: it equals the config's.
    journaled
        Changes that the journal holds after the snapshot: versions of libraries among them are
        taken already.
    """
    taken = {(each.what, each.after) for each in journaled if each.part == "libraries"}
    changes = [
        change
        for change in (() if header is None else proved(header, trainer))
        if change.level == "refused" or (change.what, change.after) not in taken
    ]
    if old is not None:
        found = intended.compared(old)
        if code := of_code(found):
            too = f"; the code changed, too ({in_words(code)}): put it back to see which it is"
            changes = [_said(change, too) for change in changes]
        changes += found
        changes += misfits(trainer, intended.blank(), changes, old, intended.modules)
    return changes


def _said(change: Change, more: str) -> Change:
    """Return a refused change with a longer effect; others unchanged."""
    if change.level != "refused":
        return change
    return msgspec.structs.replace(change, effect=change.effect + more)


def assess(changes: Iterable[Change], *, amend: bool) -> list[Change]:
    """Return the changes that a run does not accept; none if it accepts all."""
    levels = {"accepted", "asked"} if amend else {"accepted"}
    return [change for change in changes if change.level not in levels]


def unfit(old: Mapping[str, Any], blank: Trainer, source: str = "", shards: str = "") -> str:
    """Return why a state with definition `old` does not fit a model like `blank`; empty if it does.

    `source` and `shards` as for `Shard.open`.
    """
    return in_words(assess(compared(blank, old, source, shards), amend=True))
