"""The identity of a state, created by its first run and kept in state, journal and registry.

It distinguishes states of the same name that share a registry or a place of artifacts.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import closing

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.basics.storage import LocalStorage, replace
from midstream.engine.registry.registry import Registry
from midstream.engine.shard.header import Header
from midstream.engine.shard.journal import identities
from midstream.engine.state.snapshot import SnapshotError, SnapshotFolder
from midstream.flows.claims.locks import StateLocks
from midstream.flows.config.settings import Settings
from midstream.flows.logs import log

__all__ = ["IdentityError", "identity_of", "settle"]

_FILE = "identity"
_FORM = re.compile(r"[0-9a-f]{32}\Z")


class IdentityError(ExpectedError, RuntimeError):
    """A state whose identity cannot be determined; the message says why."""


def identity_of(settings: Settings) -> str | None:
    """Return the identity of a config's state; "": there is no state; None: it has none yet.

    Raises
    ------
    IdentityError
        If its file cannot be read, or holds something else.
    """
    file = settings.state_path / _FILE
    try:
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None if (settings.state_path / "shards").exists() else ""
    except OSError as error:
        raise IdentityError(f"{file}: cannot be read: {error.strerror}") from None
    if not _FORM.match(text):
        raise IdentityError(
            f"{file}: holds no identity (32 hexadecimal digits); remove it, and the next "
            "`midstream run` finds the identity in the journal"
        )
    return text


def settle(settings: Settings, locks: StateLocks, *, joins: bool = False) -> str:
    """Return the identity of a state that is about to run; create one if it has none.

    A lost identity is recovered from the journal and the snapshots. For a new state whose journal
    is a topic it is derived from the topic, so that hosts that share shards agree. Otherwise it is
    random.

    Parameters
    ----------
    joins
        Other hosts have shards of the same model, and journals of their own: the registry provides
        the identity, and all hosts have to reach it.

    Raises
    ------
    IdentityError
        If parts of a state have different identities.
    RegistryError, NoAnswerError, InputError
        If the registry or the brokers have to provide the identity and do not.
    """
    if known := identity_of(settings):
        return known
    with locks.alone():
        if known := identity_of(settings):  # set by another process meanwhile
            return known
        found = sorted(set(_recorded(settings)))
        if len(found) > 1:
            raise IdentityError(
                f"{settings.state_path}: holds shards of different states ({', '.join(found)}); "
                f"take out those that are not this model's, or write its identity to {_FILE}"
            )
        if found:
            identity, source = found[0], "the journal"
        elif settings.journal_topic is not None:
            from midstream.flows.inputs.topics import journal_id

            what = b"midstream journal " + journal_id(settings)
            identity, source = hashlib.sha256(what).hexdigest()[:32], "the topic of the journal"
        elif joins and settings.versions.enabled:
            identity, source = _joined(settings, secrets.token_hex(16)), "the registry"
        else:
            identity, source = secrets.token_hex(16), "chance"
        folder = LocalStorage(settings.state_path)
        replace(folder, _FILE, f"{identity}\n".encode())  # before anything else uses it
        folder.close()
    log.info("identity", identity=identity, source=source)
    return identity


def _joined(settings: Settings, identity: str) -> str:
    """Return the model's identity in the registry; register this one if it has none."""
    registry = Registry(settings.registry, settings.artifacts, settings.name, create=True)
    with closing(registry):
        return registry.join_state(identity)


def _recorded(settings: Settings) -> Iterator[str]:
    """Yield the identities in the journals and snapshots of the state folder."""
    shards = settings.state_path / "shards"
    for path in sorted(shards.glob("*/")) if shards.is_dir() else ():
        folder = LocalStorage(path)
        yield from identities(folder)
        snapshots = SnapshotFolder(folder)
        for position in reversed(snapshots.positions()):
            try:
                saved = Header.of(snapshots.read(position).header)
            except SnapshotError:  # an older one has the same; `Shard.open` reports it
                continue
            if saved.identity:
                yield saved.identity
            break
