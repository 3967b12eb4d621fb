"""The registry: versions, commands and deployments of a model, in a database; artifacts in files.

Several processes write to it, and each may die at any moment: what belongs together is one
transaction, files are written before the row that names them, and all that a shard tells may be
told again. The truth about a shard is in its journal; the registry is told of it.
"""

import datetime as dt
import hashlib
import platform
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc

from midstream.engine import database as db
from midstream.engine.artifacts import ArtifactError, Artifacts, Manifest, ShardPart
from midstream.engine.commands import REPLACING, Done, Order, epoch_of
from midstream.engine.database import (
    ALARMS,
    COMMANDS,
    DEPLOYMENTS,
    MODELS,
    PARTS,
    SHARDS,
    TAGS,
    VERSIONS,
    RegistryError,
)
from midstream.engine.dataset import from_plain, joined, plain, since
from midstream.engine.snapshot import Snapshot

if TYPE_CHECKING:
    from midstream.engine.trainer import Trainer

__all__ = [
    "Deployed",
    "Drifted",
    "Registry",
    "RegistryError",
    "ShardRow",
    "UnknownVersionError",
    "VersionRow",
]

SCHEMA = 1
_LIBRARIES = ("river", "numpy", "numba", "torch")
_ABANDONED = 7 * 86_400.0  # seconds after which a version that never became whole is removed

_T = TypeVar("_T")
_PARTS_OF_VERSIONS = sa.select(PARTS.c.part).join(
    VERSIONS,
    sa.and_(VERSIONS.c.model == PARTS.c.model, VERSIONS.c.version == PARTS.c.version),
)

State = Literal["open", "complete", "removing", "removed"]


class UnknownVersionError(ValueError):
    """There is no such version, or it is not whole, or not there any more."""


class VersionRow(msgspec.Struct):
    """A version, as the registry has it. `manifest` is None until it is whole."""

    version: int
    state: State
    kind: str
    reason: str
    created: float
    shards: list[str]
    parent: int
    bytes: int
    tags: list[str] = []
    manifest: Manifest | None = None


class ShardRow(msgspec.Struct):
    """A shard as it last told of itself; `beat_at` 0: it never did, or has stopped.

    `ending` 1: it is at the end of its run; 2: and has learned what no version has.
    """

    shard: str
    host: str
    pid: int
    beat_at: float
    seen: int
    paused: bool
    run: str = ""
    ending: int = 0


class Deployed(msgspec.Struct):
    """What a shard did of a command, and when it began (`kind` "start")."""

    shard: str
    epoch: str
    done: Done

    @property
    def kind(self) -> str:
        """Of the command."""
        return self.done.command.kind


class Drifted(NamedTuple):
    """An alarm: `position` counts the events that the shard's model had seen.

    `command` is the last one that the shard had carried out.
    """

    shard: str
    epoch: str
    command: int
    position: int
    detector: str
    at: float


class Registry:
    """The registry of one model.

    Parameters
    ----------
    database
        A URL of SQLAlchemy's, `sqlite:///…` or `postgresql://…`, or the path of a SQLite file.
    artifacts
        Where the files of versions are: a folder, or a URL that fsspec knows.
    model
        Its name.
    key
        With which manifests are signed, and have to be.
    modules
        Modules besides River whose classes and functions a version may hold.
    create
        Make the database and the model's row if they are not there.

    Raises
    ------
    RegistryError
        If it is not there, or cannot be used.
    StoreError
        If the store of the artifacts cannot be.
    """

    def __init__(
        self,
        database: str | Path,
        artifacts: str | Path,
        model: str,
        *,
        key: bytes | None = None,
        modules: Collection[str] = (),
        create: bool = False,
    ) -> None:
        self.model = model
        self.artifacts = Artifacts(artifacts, model, key=key)
        self._modules = modules
        self._url, self.place = db.url_of(database)
        self._engine = db.make_engine(self._url, create=create)
        self._node: tuple[int, int] | None = None
        try:
            self._open(create=create)
        except BaseException:
            self.close()
            raise

    def _open(self, *, create: bool) -> None:
        if not create and self._file is not None and not self._file.exists():
            raise RegistryError(
                f"{self.place}: there is no registry; it is made by the first `midstream run`"
            )
        self._begin(create=create)

    @property
    def _file(self) -> Path | None:
        name = self._url.database
        if self._url.get_backend_name() != "sqlite" or not name or name.startswith("file:"):
            return None
        return Path(name)

    def _begin(self, *, create: bool) -> None:
        if create:
            with self._saying():
                if self._file is not None:
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                for _ in range(2):  # another may be making the same
                    try:
                        db.META.create_all(self._engine)
                        break
                    except (exc.ProgrammingError, exc.IntegrityError, exc.OperationalError):
                        time.sleep(0.1)
                else:
                    db.META.create_all(self._engine)
        with self._reading() as connection:
            there = sa.inspect(connection).has_table(MODELS.name)
        if not there:
            raise RegistryError(f"{self.place}: holds no registry of Midstream's")
        row = self._model()
        if row is None and create:
            new = {"model": self.model, "schema": SCHEMA, "next_version": 1, "next_command": 1}
            with self._saying(), self._engine.begin() as connection:
                connection.execute(db.insert(self._engine, MODELS, new))
            row = self._model()
        if row is None:
            raise RegistryError(
                f"{self.place}: has no model {self.model!r}; it has: "
                + (", ".join(self._names()) or "none")
            )
        if row != SCHEMA:
            raise RegistryError(
                f"{self.place}: has schema {row}, this Midstream reads {SCHEMA}; use a newer one"
            )

    def _model(self) -> int | None:
        wanted = sa.select(MODELS.c.schema).where(self._ours(MODELS))
        with self._reading() as connection:
            found: int | None = connection.execute(wanted).scalar_one_or_none()
        return found

    def _names(self) -> list[str]:
        with self._reading() as connection:
            found = connection.execute(sa.select(MODELS.c.model).order_by(MODELS.c.model))
            return list(found.scalars())

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    # --- shards, commands, and what became of them

    def join(
        self,
        shards: Collection[str] | Mapping[str, str | None],
        last_command: int,
        last_version: int,
    ) -> dict[str, int]:
        """Tell of all shards of the model, and of the highest numbers that their journals know.

        A registry that was lost and made anew gives none of these numbers again.

        Parameters
        ----------
        shards
            Their names, with the epoch of each that is known: under what it was begun anew.

        Returns
        -------
        dict
            By shard, the id of the last command that is not for it, since others had answered it
            before this one, or its present epoch, had begun.
        """
        epochs = shards if isinstance(shards, Mapping) else dict.fromkeys(shards)
        answered = sa.select(sa.func.coalesce(sa.func.max(DEPLOYMENTS.c.command), 0))
        found = {}
        with self._writing() as connection:
            last = int(connection.execute(answered.where(self._ours(DEPLOYMENTS))).scalar_one())
            for shard, epoch in epochs.items():
                row = {"model": self.model, "shard": shard, "since": last}
                row |= {} if epoch is None else {"epoch": epoch}
                connection.execute(db.insert(self._engine, SHARDS, db.filled(SHARDS, row)))
                this = (self._ours(SHARDS), SHARDS.c.shard == shard)
                there = connection.execute(sa.select(SHARDS).where(*this)).one()
                news: dict[str, Any] = {}
                if epoch is not None and there.epoch != epoch:
                    news = {"epoch": epoch}
                    news |= {} if there.epoch == db.UNKNOWN else {"since": last}
                    connection.execute(sa.update(SHARDS).where(*this).values(news))
                found[shard] = int(news.get("since", there.since))
            new = {
                "next_command": db.greatest(MODELS.c.next_command, last_command + 1),
                "next_version": db.greatest(MODELS.c.next_version, last_version + 1),
            }
            connection.execute(sa.update(MODELS).where(self._ours(MODELS)).values(new))
        return found

    def newest(self) -> tuple[float, int, int, str, int]:
        """Return of the last version that was asked for what `request_version` tells `due`."""
        last = sa.select(VERSIONS).where(self._ours(VERSIONS))
        with self._reading() as connection:
            row = connection.execute(last.order_by(VERSIONS.c.version.desc()).limit(1)).first()
            seen = int(connection.execute(self._seen()).scalar_one())
        if row is None:
            return 0.0, 0, seen, "", 0
        return row.created, row.seen, seen, row.reason, row.version

    def _seen(self) -> sa.Select[Any]:
        total = sa.func.coalesce(sa.func.sum(SHARDS.c.seen), 0)
        return sa.select(total).where(self._ours(SHARDS))

    def beat(self, rows: Sequence[ShardRow]) -> None:
        """Tell how shards get on."""
        with self._writing() as connection:
            for row in rows:
                connection.execute(
                    sa.update(SHARDS)
                    .where(self._ours(SHARDS), SHARDS.c.shard == row.shard)
                    .values({k: v for k, v in msgspec.to_builtins(row).items() if k != "shard"})
                )

    def leave(self, run: str) -> None:
        """Tell that a run has stopped."""
        with self._writing() as connection:
            mine = (self._ours(SHARDS), SHARDS.c.run == run)
            connection.execute(sa.update(SHARDS).where(*mine).values(beat_at=0.0))

    def shards(self) -> list[ShardRow]:
        """Return all shards of the model, by name."""
        wanted = sa.select(SHARDS).where(self._ours(SHARDS)).order_by(SHARDS.c.shard)
        return [_struct(row, ShardRow) for row in self._all(wanted)]

    def commands(self, after: int = 0) -> list[Order]:
        """Return the commands that were given after the one with this id, in order.

        Those that were dropped are not among them.
        """
        wanted = (
            sa.select(COMMANDS.c.order)
            .where(
                self._ours(COMMANDS),
                COMMANDS.c.id > after,
                COMMANDS.c.dropped == "",
            )
            .order_by(COMMANDS.c.id)
        )
        return [self._decoded(row["order"], Order) for row in self._all(wanted)]

    def drop(self, why: str) -> int:
        """Drop the commands that no shard has answered yet; return how many."""
        answered = sa.select(DEPLOYMENTS.c.command).where(self._ours(DEPLOYMENTS))
        with self._writing() as connection:
            done = connection.execute(
                sa.update(COMMANDS)
                .where(
                    self._ours(COMMANDS),
                    COMMANDS.c.dropped == "",
                    COMMANDS.c.kind != "tag",
                    COMMANDS.c.id.not_in(answered),
                )
                .values(dropped=why)
            )
            return int(done.rowcount)

    def begin_anew(self) -> int:
        """Forget the shards, and drop what nobody has answered, for a model that is begun anew.

        Its versions stay. Returns how many commands were dropped.
        """
        with self._writing() as connection:
            connection.execute(sa.delete(SHARDS).where(self._ours(SHARDS)))
        return self.drop("the model was begun anew")

    def order(self, *wanted: Mapping[str, Any], at: float | None = None) -> list[Order]:
        """Give commands, in one piece: to be carried out one after the other.

        Parameters
        ----------
        wanted
            Fields of `Order`, each, besides `id`. The version of a "snapshot" is chosen here, and
            with `before` True, another is told the version of the snapshot before it.

        Raises
        ------
        UnknownVersionError
            If a version is named that is not there.
        """
        at = time.time() if at is None else at
        with self._writing() as connection:
            return self._order(connection, wanted, at)

    def _order(
        self, connection: sa.Connection, wanted: Sequence[Mapping[str, Any]], at: float
    ) -> list[Order]:
        given = []
        numbers = sa.select(MODELS.c.next_command, MODELS.c.next_version)
        row = connection.execute(numbers.where(self._ours(MODELS))).one()
        command, version = row.next_command, row.next_version
        made = 0
        for fields in wanted:
            before = int(fields.get("before", 0))
            given_fields = {**fields, "id": command, "before": before}
            order = msgspec.convert(given_fields, Order, strict=False)
            if order.kind == "snapshot":
                order = msgspec.structs.replace(order, version=version)
                made = version
                self._open_version(connection, version, order.cut, order.reason, at)
                version += 1
            elif order.version:
                self._require(connection, order.version)
            if order.before:
                order = msgspec.structs.replace(order, before=made)
            values = {
                "model": self.model,
                "id": command,
                "kind": order.kind,
                "version": order.version,
                "before": order.before,
                "at": at,
                "order": msgspec.json.encode(order).decode(),
                "dropped": "",
            }
            connection.execute(sa.insert(COMMANDS).values(values))
            given.append(order)
            command += 1
        connection.execute(
            sa.update(MODELS)
            .where(self._ours(MODELS))
            .values(next_command=command, next_version=version)
        )
        return given

    def _open_version(
        self, connection: sa.Connection, version: int, kind: str, reason: str, at: float
    ) -> None:
        rows = connection.execute(
            sa.select(SHARDS.c.shard, SHARDS.c.seen)
            .where(self._ours(SHARDS))
            .order_by(SHARDS.c.shard)
        ).all()
        values = {
            "model": self.model,
            "version": version,
            "state": "open",
            "kind": kind,
            "reason": reason,
            "created": at,
            "shards": msgspec.json.encode([row.shard for row in rows]).decode(),
            "seen": sum(row.seen for row in rows),
        }
        connection.execute(db.insert(self._engine, VERSIONS, db.filled(VERSIONS, values)))

    def request_version(
        self, reason: str, due: Callable[[float, int, int, str, int], bool], at: float | None = None
    ) -> Order | None:
        """Ask all shards for a version, unless another process has: whoever looks first asks.

        Parameters
        ----------
        due
            Says whether it is time for one, of when the last was asked for (seconds since 1970, 0:
            never), how many events all shards had seen then, how many they have now, why it was
            asked for, and its number.
        """
        at = time.time() if at is None else at
        last = (
            sa.select(VERSIONS)
            .where(self._ours(VERSIONS))
            .order_by(VERSIONS.c.version.desc())
            .limit(1)
        )
        with self._writing() as connection:
            row = connection.execute(last).one_or_none()
            seen = int(connection.execute(self._seen()).scalar_one())
            if not due(
                row.created if row else 0.0,
                row.seen if row else 0,
                seen,
                row.reason if row else "",
                row.version if row else 0,
            ):
                return None
            return self._order(connection, [{"kind": "snapshot", "reason": reason}], at)[0]

    def tell(self, shard: str, epoch: str, done: Sequence[Done]) -> None:
        """Tell what a shard did of commands; what is told again changes nothing."""
        key = ["model", "epoch", "shard", "seq"]
        with self._writing() as connection:
            for each in done:
                row = {
                    "model": self.model,
                    "epoch": epoch,
                    "shard": shard,
                    "seq": each.seq,
                    "command": each.command.id,
                    "kind": each.command.kind,
                    "version": each.command.version,
                    "at": each.command.at,
                    "done_at": each.done_at,
                    "refused": each.command.refused,
                    "done": msgspec.json.encode(each).decode(),
                }
                connection.execute(db.insert(self._engine, DEPLOYMENTS, row))
                if each.done_at is None:
                    continue
                same = [DEPLOYMENTS.c[name] == row[name] for name in key]
                connection.execute(
                    sa.update(DEPLOYMENTS)
                    .where(*same, DEPLOYMENTS.c.done_at.is_(None))
                    .values({name: row[name] for name in ("done_at", "refused", "done")})
                )

    def deployments(self, commands: Collection[int] | None = None) -> list[Deployed]:
        """Return what shards did of commands, of all or of some, oldest first."""
        wanted = sa.select(DEPLOYMENTS).where(self._ours(DEPLOYMENTS))
        if commands is not None:
            wanted = wanted.where(DEPLOYMENTS.c.command.in_(commands))
        wanted = wanted.order_by(DEPLOYMENTS.c.at, DEPLOYMENTS.c.shard, DEPLOYMENTS.c.seq)
        return [
            Deployed(row["shard"], row["epoch"], self._decoded(row["done"], Done))
            for row in self._all(wanted)
        ]

    def alarm(self, alarms: Sequence[Drifted]) -> None:
        """Tell of drift; what is told again changes nothing."""
        with self._writing() as connection:
            for alarm in alarms:
                row = {"model": self.model, **alarm._asdict()}
                connection.execute(db.insert(self._engine, ALARMS, row))

    def alarms(self) -> list[Drifted]:
        """Return the alarms, oldest first."""
        wanted = sa.select(ALARMS).where(self._ours(ALARMS)).order_by(ALARMS.c.at)
        return [
            Drifted(**{k: v for k, v in row.items() if k != "model"}) for row in self._all(wanted)
        ]

    # --- versions

    def put(self, shard: str, version: int, snapshot: Snapshot) -> None:
        """Keep a shard's part of a version. The same again changes nothing.

        Raises
        ------
        RegistryError, StoreError
            If it could not be kept; it may be tried again.
        """
        with self._writing() as connection:
            if self._has_part(connection, version, shard):
                return
            header = snapshot.header
            self._open_version(  # in a registry that was lost, it is not there
                connection, version, header["kind"], header["reason"], header["created"]
            )
            if shard not in self._wanted(connection, version):  # it is newer than the version
                return
        part = self.artifacts.write_part(version, shard, snapshot.header, snapshot.parts)
        with self._writing() as connection:
            row = {
                "model": self.model,
                "version": version,
                "shard": shard,
                "part": msgspec.json.encode(part).decode(),
            }
            wanted = self._state(connection, version) in ("open", "complete")
            if wanted:
                connection.execute(db.insert(self._engine, PARTS, row))
        if not wanted:  # it was pruned meanwhile
            self.artifacts.remove(version)

    def _wanted(self, connection: sa.Connection, version: int) -> list[str]:
        shards = connection.execute(
            sa.select(VERSIONS.c.shards).where(self._ours(VERSIONS), VERSIONS.c.version == version)
        ).scalar_one()
        return self._decoded(shards, list[str])

    def _state(self, connection: sa.Connection, version: int) -> str | None:
        state: str | None = connection.execute(
            sa.select(VERSIONS.c.state).where(self._ours(VERSIONS), VERSIONS.c.version == version)
        ).scalar_one_or_none()
        return state

    def _has_part(self, connection: sa.Connection, version: int, shard: str) -> bool:
        """Whether a part is there, or is not wanted any more."""
        key = (self._ours(PARTS), PARTS.c.version == version, PARTS.c.shard == shard)
        if connection.execute(sa.select(PARTS.c.shard).where(*key)).first() is not None:
            return True
        return self._state(connection, version) not in (None, "open")

    def complete(self) -> list[int]:
        """Make whole what versions have all their parts; return which.

        Raises
        ------
        RegistryError, StoreError
            If that could not be done; it may be tried again.
        """
        made = []
        for row in self._all(
            sa.select(VERSIONS)
            .where(self._ours(VERSIONS), VERSIONS.c.state == "open")
            .order_by(VERSIONS.c.version)
        ):
            parts = [
                self._decoded(found["part"], ShardPart)
                for found in self._all(
                    sa.select(PARTS.c.part)
                    .where(self._ours(PARTS), PARTS.c.version == row["version"])
                    .order_by(PARTS.c.shard)
                )
            ]
            wanted = self._decoded(row["shards"], list[str])
            if not parts or [part.shard for part in parts] != wanted:
                continue
            manifest = self._manifest(row, parts)
            data = self.artifacts.write_manifest(manifest)
            with self._writing() as connection:
                done = connection.execute(
                    sa.update(VERSIONS)
                    .where(
                        self._ours(VERSIONS),
                        VERSIONS.c.version == row["version"],
                        VERSIONS.c.state == "open",
                    )
                    .values(
                        state="complete",
                        kind=manifest.kind,
                        created=manifest.created,
                        parent=manifest.parent,
                        bytes=manifest.bytes,
                        sha256=hashlib.sha256(data).hexdigest(),
                        manifest=data.decode(),
                    )
                )
            if done.rowcount:
                made.append(row["version"])
            else:
                self._outrun(row["version"], data)
        return made

    def _outrun(self, version: int, data: bytes) -> None:
        """Put right the manifest of a version that another has made whole, or pruned, meanwhile."""
        mine = (self._ours(VERSIONS), VERSIONS.c.version == version)
        (row,) = self._all(sa.select(VERSIONS).where(*mine))
        if row["state"] != "complete":
            self.artifacts.remove(version)
        elif row["manifest"].encode() != data:  # that one has other libraries
            self.artifacts.write_manifest_again(version, row["manifest"].encode())

    def _manifest(self, row: Mapping[str, Any], parts: list[ShardPart]) -> Manifest:
        """Return the manifest of a version: it follows from its parts, whoever makes it."""
        headers = [part.header for part in parts]
        learner = headers[0]["definition"]["learner"]
        totals = [from_plain(header["data"]) for header in headers]
        news = [
            since(total, from_plain(header["parent_data"]))
            for total, header in zip(totals, headers, strict=True)
        ]
        return Manifest(
            model=self.model,
            version=row["version"],
            parent=max(header["parent"] for header in headers),
            kind=headers[0]["kind"],
            reason=row["reason"],
            created=max(header["created"] for header in headers),
            learner=learner,
            fingerprint=hashlib.sha256(msgspec.json.encode(learner)).hexdigest(),
            libraries=_libraries(),
            data={"total": plain(joined(totals)), "since_parent": plain(joined(news))},
            metrics={part.shard: part.header["metrics"] for part in parts},
            shards=parts,
        )

    def versions(self, *, every: bool = False) -> list[VersionRow]:
        """Return the versions that are whole, oldest first; with `every`, also the others."""
        wanted = sa.select(VERSIONS).where(self._ours(VERSIONS))
        if not every:
            wanted = wanted.where(VERSIONS.c.state == "complete")
        tags = self._tags()
        return [self._row(row, tags) for row in self._all(wanted.order_by(VERSIONS.c.version))]

    def version(self, version: int) -> VersionRow:
        """Return a version that is whole.

        Raises
        ------
        UnknownVersionError
            If there is none of this number.
        """
        with self._reading() as connection:
            row = self._require(connection, version)
        return self._row(row, self._tags())

    def _row(self, row: Mapping[str, Any], tags: Mapping[int, list[str]]) -> VersionRow:
        manifest = None
        if row["state"] == "complete":
            manifest = self._decoded(row["manifest"], Manifest)
        return VersionRow(
            version=row["version"],
            state=row["state"],
            kind=row["kind"],
            reason=row["reason"],
            created=row["created"],
            shards=self._decoded(row["shards"], list[str]),
            parent=row["parent"],
            bytes=row["bytes"],
            tags=tags.get(row["version"], []),
            manifest=manifest,
        )

    def _tags(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        wanted = sa.select(TAGS).where(self._ours(TAGS)).order_by(TAGS.c.tag)
        for row in self._all(wanted):
            found.setdefault(row["version"], []).append(row["tag"])
        return found

    def _require(self, connection: sa.Connection, version: int) -> Mapping[str, Any]:
        row = None
        if 0 < version < 2**31:
            row = connection.execute(
                sa.select(VERSIONS).where(self._ours(VERSIONS), VERSIONS.c.version == version)
            ).one_or_none()
        state = row.state if row is not None else "unknown"
        if row is not None and state == "complete":
            return dict(row._mapping)
        words = {
            "unknown": f"there is no version {version} of {self.model}",
            "open": f"version {version} of {self.model} is not whole yet: shards are missing",
            "removing": f"version {version} of {self.model} was removed by prune",
            "removed": f"version {version} of {self.model} was removed by prune",
        }
        there = connection.execute(
            sa.select(sa.func.min(VERSIONS.c.version), sa.func.max(VERSIONS.c.version)).where(
                self._ours(VERSIONS), VERSIONS.c.state == "complete"
            )
        ).one()
        rest = f"there are {there[0]} to {there[1]}" if there[0] else "there is none at all yet"
        raise UnknownVersionError(f"{words[state]}; {rest} (`midstream snapshots list` lists them)")

    def manifest(self, version: int) -> Manifest:
        """Return the manifest of a version as its artifacts have it, once its sum is right.

        Raises
        ------
        UnknownVersionError, ArtifactError, RegistryError, StoreError
            If there is no such version, or it is damaged, or cannot be read.
        """
        with self._reading() as connection:
            row = self._require(connection, version)
        return self.artifacts.manifest(version, row["sha256"])

    def read(self, version: int, shard: str) -> Snapshot:
        """Return a shard's part of a version, also of one that other shards' parts still lack.

        Raises
        ------
        UnknownVersionError, ArtifactError, RegistryError, StoreError
            If there is no such version, or it is damaged, or cannot be read.
        """
        try:
            part = self.manifest(version).part(shard)
        except UnknownVersionError:
            found = self._open_part(version, shard)
            if found is None:
                raise
            part = found
        return Snapshot(part.header, self.artifacts.read_files(version, part))

    def _open_part(self, version: int, shard: str) -> ShardPart | None:
        """Return what a shard has put of a version that is not whole yet."""
        this = (self._ours(PARTS), PARTS.c.version == version, PARTS.c.shard == shard)
        rows = self._all(_PARTS_OF_VERSIONS.where(*this, VERSIONS.c.state == "open"))
        return self._decoded(rows[0]["part"], ShardPart) if rows else None

    def load(self, version: int, shard: str | None = None) -> "Trainer":
        """Load a version, to predict with or to go on with. Nothing in it is executed.

        Parameters
        ----------
        shard
            Which shard's model; may be left out where the version has one.

        Raises
        ------
        UnknownVersionError, ArtifactError, RegistryError, StoreError
            If there is no such version, or it is damaged, or cannot be read.
        ValueError
            If it has several shards and none is named, or was written under another River.
        """
        manifest = self.manifest(version)
        if shard is None and len(manifest.shards) > 1:
            names = ", ".join(part.shard for part in manifest.shards)
            raise ValueError(f"version {version} has several shards, {names}: choose one")
        shard = manifest.shards[0].shard if shard is None else shard
        was, now = manifest.learner.get("river"), _river()
        if was is not None and was != now:
            raise ArtifactError(
                f"version {version} was written under River {was}, and River {now} is installed, "
                f"which cannot read its state; pip install 'river=={was}.*' to load it"
            )
        from midstream.engine.trainer import Trainer as Loaded  # River is slow to import

        try:
            return Loaded.from_state(self.artifacts.read_part(manifest, shard), self._modules)
        except ArtifactError:
            raise
        except Exception as error:  # noqa: BLE001 sums are right and it is no state: anything
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise ArtifactError(f"version {version} cannot be loaded: {reason}") from None

    def problems(self, version: int) -> list[str]:
        """Return what is wrong with a version's artifacts, a sentence each; none if it is sound.

        Raises
        ------
        UnknownVersionError, RegistryError, StoreError
            If there is no such version, or it cannot be read.
        """
        try:
            return self.artifacts.problems(self.manifest(version))
        except ArtifactError as error:
            return [str(error)]

    def tag(self, version: int, tag: str, at: float | None = None) -> int | None:
        """Give a version a name, which another may have had; return which."""
        at = time.time() if at is None else at
        same = (self._ours(TAGS), TAGS.c.tag == tag)
        with self._writing() as connection:
            order = {"kind": "tag", "version": version, "reason": tag}
            self._order(connection, [order], at)
            had: int | None = connection.execute(
                sa.select(TAGS.c.version).where(*same)
            ).scalar_one_or_none()
            connection.execute(sa.delete(TAGS).where(*same))
            row = {"model": self.model, "tag": tag, "version": version, "at": at}
            connection.execute(sa.insert(TAGS).values(row))
        return had

    def untag(self, tag: str) -> int | None:
        """Take a name away; return which version had it."""
        same = (self._ours(TAGS), TAGS.c.tag == tag)
        with self._writing() as connection:
            had: int | None = connection.execute(
                sa.select(TAGS.c.version).where(*same)
            ).scalar_one_or_none()
            connection.execute(sa.delete(TAGS).where(*same))
        return had

    # --- retention

    def kept(self, keep: int, days: float, now: float | None = None) -> dict[int, list[str]]:
        """Return, of every version that is whole, why it is kept; for nothing: it may go.

        Parameters
        ----------
        keep
            The newest so many are.
        days
            For so many days, so is the newest of each day (UTC).
        """
        with self._reading() as connection:
            return self._kept(connection, keep, days, time.time() if now is None else now)

    def _kept(
        self, connection: sa.Connection, keep: int, days: float, now: float
    ) -> dict[int, list[str]]:
        rows = connection.execute(
            sa.select(VERSIONS.c.version, VERSIONS.c.created)
            .where(self._ours(VERSIONS), VERSIONS.c.state == "complete")
            .order_by(VERSIONS.c.version)
        ).all()
        reasons: dict[int, list[str]] = {row.version: [] for row in rows}
        for row in rows[max(len(rows) - keep, 0) :]:
            reasons[row.version].append(f"one of the last {keep}")
        newest = {_day(row.created): row for row in rows if row.created >= now - days * 86_400}
        for day, row in newest.items():
            reasons[row.version].append(f"the last of {day}")
        tags = sa.select(TAGS.c.version, TAGS.c.tag).where(self._ours(TAGS))
        for row in connection.execute(tags.order_by(TAGS.c.tag)).all():
            if row.version in reasons:
                reasons[row.version].append(f"tagged {row.tag}")
        named = connection.execute(
            sa.select(COMMANDS.c.version, COMMANDS.c.before).where(
                self._ours(COMMANDS), COMMANDS.c.kind.in_(REPLACING), COMMANDS.c.dropped == ""
            )
        ).all()
        for number in sorted({row.version for row in named}):
            if number in reasons:
                reasons[number].append("was put live")
        for number in sorted({row.before for row in named}):
            if number in reasons:
                reasons[number].append("was live before another was")
        return reasons

    def prune(self, keep: int, days: float, now: float | None = None) -> list[int]:
        """Remove the versions that nothing keeps; return which. A crash leaves no half of one.

        Raises
        ------
        RegistryError, StoreError
            If something cannot be removed; the next call goes on with it.
        """
        now = time.time() if now is None else now
        with self._writing() as connection:
            reasons = self._kept(connection, keep, days, now)
            gone = [version for version, why in reasons.items() if not why]
            old = sa.and_(VERSIONS.c.state == "open", VERSIONS.c.created < now - _ABANDONED)
            connection.execute(
                sa.update(VERSIONS)
                .where(
                    self._ours(VERSIONS),
                    sa.or_(old, VERSIONS.c.version.in_(gone)),
                )
                .values(state="removing")
            )
        removed = []
        for row in self._all(
            sa.select(VERSIONS.c.version)
            .where(self._ours(VERSIONS), VERSIONS.c.state == "removing")
            .order_by(VERSIONS.c.version)
        ):
            version = row["version"]
            self.artifacts.remove(version)
            with self._writing() as connection:
                mine = (self._ours(VERSIONS), VERSIONS.c.version == version)
                connection.execute(
                    sa.update(VERSIONS).where(*mine).values(state="removed", manifest="")
                )
                connection.execute(
                    sa.delete(PARTS).where(self._ours(PARTS), PARTS.c.version == version)
                )
            removed.append(version)
        if removed:
            self._sweep()
        return removed

    def _sweep(self) -> None:
        """Remove what was written of a version after it was removed, by who was slow and died."""
        rows = self._all(
            sa.select(VERSIONS.c.version).where(self._ours(VERSIONS), VERSIONS.c.state == "removed")
        )
        gone = {row["version"] for row in rows}
        for version in self.artifacts.versions():
            if version in gone:
                self.artifacts.remove(version)

    def keep_from(self, shard: str, epoch: str, newer_than: float) -> float:
        """Return the record that a shard's journal has to be kept from, to rewind to a version.

        Parameters
        ----------
        newer_than
            Seconds since 1970: an older version is not to be rewound to.
        """
        oldest = float("inf")
        for row in self._all(
            _PARTS_OF_VERSIONS.where(
                self._ours(PARTS),
                PARTS.c.shard == shard,
                VERSIONS.c.state.in_(["open", "complete"]),
                VERSIONS.c.created >= newer_than,
            )
        ):
            header = self._decoded(row["part"], ShardPart).header
            if epoch_of(header) == epoch:
                oldest = min(oldest, header["seq"])
        return oldest

    # --- the database

    def _decoded(self, text: str, type_: type[_T]) -> _T:
        with self._saying():
            return msgspec.json.decode(text, type=type_)

    def _ours(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.model == self.model

    def _all(self, wanted: Any) -> list[dict[str, Any]]:
        with self._reading() as connection:
            return [
                {str(name): value for name, value in row._mapping.items()}
                for row in connection.execute(wanted)
            ]

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        self._look()
        with self._saying(), self._engine.connect() as connection:
            yield connection.execution_options(**db.READING)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """Change something, in one piece; of several that write, one goes after the other."""
        self._look()
        with self._saying(), self._engine.begin() as connection:
            connection.execute(
                sa.select(MODELS.c.model).where(self._ours(MODELS)).with_for_update()
            )
            yield connection

    def _look(self) -> None:
        """Refuse a file that is gone, and open anew what has taken its place.

        SQLite would go on with what was removed, and all that it is told would be lost.
        """
        if self._file is None:
            return
        try:
            found = self._file.stat()
        except OSError as error:
            raise RegistryError(f"{self.place}: the registry is gone: {error.strerror}") from None
        node = found.st_dev, found.st_ino
        if self._node not in (None, node):
            self._engine.dispose()
        self._node = node

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """Say in one line what the database fails of."""
        try:
            yield
        except exc.SQLAlchemyError as error:
            raise RegistryError(f"{self.place}: {db.reason_of(error)}") from None
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RegistryError(f"{self.place}: {reason}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RegistryError(f"{self.place}: is damaged ({error})") from None


def _struct(row: Mapping[str, Any], type_: type[ShardRow]) -> ShardRow:
    return msgspec.convert({k: v for k, v in row.items() if k != "model"}, type_, strict=False)


def _libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("midstream", *_LIBRARIES):
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def _river() -> str:
    return ".".join(installed("river").split(".")[:2])


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d")
