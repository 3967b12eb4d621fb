"""The registry: versions, commands and deployments of a model in a database, artifacts in files.

Several processes write to it, and each may die at any moment. So related changes are one
transaction, files are written before the row that names them, and a shard may repeat every report.
A shard's journal is authoritative; the registry holds what shards report.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.registry.database import OtherStateError, RegistryError
from midstream.engine.registry.schema import (
    ALARMS,
    CANCELLED,
    COMMANDS,
    DEPLOYMENTS,
    MODELS,
    SHARDS,
    TAGS,
    UNKNOWN,
    VERSIONS,
    greatest,
)
from midstream.engine.registry.versions import UnknownVersionError, VersionRow, Versions
from midstream.engine.shard.catalogue import command_kind, names
from midstream.engine.shard.commands import JUST_MADE, Done, Order
from midstream.engine.shard.kinds import CommandKind

__all__ = [
    "CommandError",
    "Drifted",
    "OtherStateError",
    "Registry",
    "RegistryError",
    "ShardRow",
    "UnknownVersionError",
    "VersionRow",
    "Waiting",
]


class ShardRow(msgspec.Struct):
    """A shard as last reported; `beat_at` 0: it never reported, or has stopped.

    `beat_at` is the time of the report by the registry's clock (`Registry.clock`); it changes while
    the shard runs. `seen` counts all events that it has applied; no restore changes it. `ending`
    1: its run is ending; 2: and it has learned events that no version has. `sources`: those of its
    events, as a JSON list; versions hold the sources of earlier runs.
    """

    shard: str
    host: str
    pid: int
    beat_at: float
    seen: int
    paused: bool
    run: str = ""
    ending: int = 0
    sources: str = "[]"


class Drifted(NamedTuple):
    """An alarm: `position` counts the events that the shard's model had seen.

    `command` is the last one that the shard had carried out; `feature` "": it concerns the loss.
    """

    shard: str
    epoch: str
    command: int
    position: int
    detector: str
    at: float
    feature: str = ""
    kind: str = "drift"


class CommandError(ExpectedError, ValueError):
    """A command cannot be cancelled; the message says why. Nothing was changed."""


class Waiting(msgspec.Struct):
    """A command that some shards have neither carried out nor refused.

    Attributes
    ----------
    at
        When it was given, in seconds since 1970.
    taken_at
        When a processor took it up, so that it cannot be cancelled any more; 0: none has.
    answered, missing
        The shards that have carried it out or refused it, and the others.
    """

    id: int
    kind: str
    version: int
    reason: str
    by: str
    at: float
    taken_at: float
    answered: list[str] = []
    missing: list[str] = []


class Registry(Versions):
    """The registry of one model.

    Parameters
    ----------
    database
        A URL of SQLAlchemy's, `sqlite:///…` or `postgresql://…`, or the path of a SQLite file.
    artifacts
        Where the files of versions are: a folder, or a URL that fsspec knows.
    model
        The model's name.
    key
        Key with which manifests are signed, and must be signed.
    modules
        Modules besides River whose classes and functions a version may hold.
    create
        Make the database and the model's row if they are missing.
    identity
        Identity of the accessing state, as for `Database`.

    Raises
    ------
    RegistryError
        If it does not exist, or cannot be used.
    StoreError
        If the store of the artifacts cannot be used.
    """

    # --- shards

    def join(
        self,
        shards: Collection[str] | Mapping[str, str | None],
        last_command: int,
        last_version: int,
    ) -> dict[str, int]:
        """Register the shards of the model, and the highest numbers in their journals.

        A registry that was lost and recreated then does not assign these numbers again.

        Parameters
        ----------
        shards
            Their names, with the epoch of each if known: the beginning that its state derives from.

        Returns
        -------
        dict
            By shard, the id of the last command that it must not carry out: others had answered it
            before this shard, or its present epoch, began.
        """
        epochs = shards if isinstance(shards, Mapping) else dict.fromkeys(shards)
        answered = sa.select(sa.func.coalesce(sa.func.max(DEPLOYMENTS.c.command), 0))
        found = {}
        with self.database.writing() as connection:
            last = int(connection.execute(answered.where(self._ours(DEPLOYMENTS))).scalar_one())
            for shard, epoch in epochs.items():
                row = {"shard": shard, "since": last}
                row |= {} if epoch is None else {"epoch": epoch}
                self.database.add(connection, SHARDS, row)
                this = (self._ours(SHARDS), SHARDS.c.shard == shard)
                there = connection.execute(sa.select(SHARDS).where(*this)).one()
                news: dict[str, Any] = {}
                if epoch is not None and there.epoch != epoch:
                    news = {"epoch": epoch}
                    news |= {} if there.epoch == UNKNOWN else {"since": last}
                    connection.execute(sa.update(SHARDS).where(*this).values(news))
                found[shard] = int(news.get("since", there.since))
            new = {
                "next_command": greatest(MODELS.c.next_command, last_command + 1),
                "next_version": greatest(MODELS.c.next_version, last_version + 1),
            }
            connection.execute(sa.update(MODELS).where(self._ours(MODELS)).values(new))
        return found

    def newest(self) -> tuple[float, int, int, str, int]:
        """Return the arguments of `due` in `request_version`, for the last version at all."""
        with self.database.reading() as connection:
            row = connection.execute(self._last(None)).first()
            seen = int(connection.execute(self._seen()).scalar_one())
        if row is None:
            return 0.0, 0, seen, "", 0
        return row.created, row.seen, seen, row.reason, row.version

    def _last(self, reason: str | None) -> sa.Select[Any]:
        wanted = sa.select(VERSIONS).where(self._ours(VERSIONS), VERSIONS.c.kind != CANCELLED)
        if reason is not None:
            wanted = wanted.where(VERSIONS.c.reason == reason)
        return wanted.order_by(VERSIONS.c.version.desc()).limit(1)

    def _seen(self) -> sa.Select[Any]:
        total = sa.func.coalesce(sa.func.sum(SHARDS.c.seen), 0)
        return sa.select(total).where(self._ours(SHARDS))

    def beat(self, rows: Sequence[ShardRow]) -> None:
        """Record the reports of shards."""
        with self.database.writing() as connection:
            for row in rows:
                connection.execute(
                    sa.update(SHARDS)
                    .where(self._ours(SHARDS), SHARDS.c.shard == row.shard)
                    .values({k: v for k, v in msgspec.to_builtins(row).items() if k != "shard"})
                )

    def clock(self) -> float:
        """Return seconds of the registry's clock, that of `Database.clock`."""
        return self.database.clock()

    @property
    def steady(self) -> bool:
        """Whether nobody can set the registry's clock."""
        return self.database.steady

    def leave(self, run: str) -> None:
        """Record that a run has stopped."""
        with self.database.writing() as connection:
            mine = (self._ours(SHARDS), SHARDS.c.run == run)
            connection.execute(sa.update(SHARDS).where(*mine).values(beat_at=0.0))

    def shards(self) -> list[ShardRow]:
        """Return all shards of the model, by name."""
        wanted = sa.select(SHARDS).where(self._ours(SHARDS)).order_by(SHARDS.c.shard)
        return [_struct(row, ShardRow) for row in self.database.rows(wanted)]

    def commands(self, after: int = 0) -> list[Order]:
        """Return the commands given after the one with this id, in order.

        Dropped commands are left out.
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
        return [self.database.decoded(row["order"], Order) for row in self.database.rows(wanted)]

    def take(self, command: int) -> bool:
        """Take up a command for a shard, which must then carry it out or refuse it.

        Once one shard takes it up, all must, and it cannot be cancelled any more. Returns False if
        it was cancelled or dropped before.
        """
        this = (self._ours(COMMANDS), COMMANDS.c.id == command, COMMANDS.c.dropped == "")
        with self.database.writing() as connection:
            connection.execute(
                sa.update(COMMANDS)
                .where(*this, COMMANDS.c.taken_at == 0.0)
                .values(taken_at=time.time())
            )
            return connection.execute(sa.select(COMMANDS.c.id).where(*this)).first() is not None

    def waiting(self) -> list[Waiting]:
        """Return the commands that not all shards have carried out or refused, oldest first."""
        with self.database.reading() as connection:
            shards = connection.execute(
                sa.select(SHARDS.c.shard, SHARDS.c.since)
                .where(self._ours(SHARDS))
                .order_by(SHARDS.c.shard)
            ).all()
            done = connection.execute(
                sa.select(DEPLOYMENTS.c.command, DEPLOYMENTS.c.shard, DEPLOYMENTS.c.done_at)
                .where(self._ours(DEPLOYMENTS))
                .distinct()
            ).all()
            rows = connection.execute(
                sa.select(COMMANDS)
                .where(
                    self._ours(COMMANDS),
                    COMMANDS.c.dropped == "",
                    COMMANDS.c.kind.not_in(names(_reports)),
                )
                .order_by(COMMANDS.c.id)
            ).all()
        answers: dict[int, set[str]] = {}
        for answer in done:
            if answer.done_at is not None:
                answers.setdefault(answer.command, set()).add(answer.shard)
        found = []
        for row in rows:
            wanted = [shard.shard for shard in shards if shard.since < row.id]
            answered = answers.get(row.id, set())
            missing = [shard for shard in wanted if shard not in answered]
            if missing or not (shards or answered):
                order = self.database.decoded(row.order, Order)
                found.append(
                    Waiting(
                        row.id, row.kind, order.version, order.reason, order.by, row.at,
                        row.taken_at, sorted(answered), missing,
                    )
                )  # fmt: skip
        return found

    def cancel(self, command: int, why: str) -> list[int]:
        """Cancel a command that no processor has taken up; return the ids that were cancelled.

        There are several if it was given together with others: the versions before and after a
        restore are cancelled with it, if not taken up yet.

        Raises
        ------
        CommandError
            If there is no such command, or it was taken up, carried out or cancelled.
        """
        with self.database.writing() as connection:
            ours = self._ours(COMMANDS)
            near = sa.select(COMMANDS).where(ours, COMMANDS.c.id.between(command - 2, command + 2))
            rows = {row.id: row for row in connection.execute(near)}
            if command not in rows or not command_kind(rows[command].kind).awaited:
                raise CommandError(f"there is no command {command} of {self.model} that waits")
            orders = {id_: self.database.decoded(row.order, Order) for id_, row in rows.items()}
            piece = _piece(command, orders)
            main = next((i for i in piece if command_kind(orders[i].kind).replaces), command)
            for id_ in dict.fromkeys((main, command)):
                row = rows[id_]
                if row.dropped:
                    raise CommandError(f"command {id_} ({row.kind}) was dropped: {row.dropped}")
                if row.taken_at or self._answered(connection, id_):
                    raise CommandError(
                        f"command {id_} ({row.kind}) cannot be taken back: a processor has taken "
                        "it up, and it is carried out, if that has not happened yet"
                    )
            gone = [
                i for i in piece
                if not (rows[i].taken_at or rows[i].dropped or self._answered(connection, i))
            ]  # fmt: skip
            connection.execute(
                sa.update(COMMANDS).where(ours, COMMANDS.c.id.in_(gone)).values(dropped=why)
            )
            unmade = [orders[i].version for i in gone if command_kind(orders[i].kind).makes_version]
            connection.execute(
                sa.update(VERSIONS)
                .where(
                    self._ours(VERSIONS),
                    VERSIONS.c.version.in_(unmade),
                    VERSIONS.c.state == "open",
                )
                .values(state="removing", kind=CANCELLED)  # the next prune removes parts, if any
            )
        return gone

    def _answered(self, connection: sa.Connection, command: int) -> bool:
        wanted = sa.select(DEPLOYMENTS.c.seq).where(
            self._ours(DEPLOYMENTS), DEPLOYMENTS.c.command == command
        )
        return connection.execute(wanted.limit(1)).first() is not None

    def drop(self, why: str) -> int:
        """Drop the commands that no shard has answered yet; return their number."""
        answered = sa.select(DEPLOYMENTS.c.command).where(self._ours(DEPLOYMENTS))
        with self.database.writing() as connection:
            done = connection.execute(
                sa.update(COMMANDS)
                .where(
                    self._ours(COMMANDS),
                    COMMANDS.c.dropped == "",
                    COMMANDS.c.kind.not_in(names(lambda kind: not kind.for_shards)),
                    COMMANDS.c.id.not_in(answered),
                )
                .values(dropped=why)
            )
            return int(done.rowcount)

    # --- the owner of the model

    def join_state(self, identity: str) -> str:
        """Return the identity of the model's owner; a model without one gets this identity.

        So processes that share shards agree on an identity, whichever comes first.
        """
        with self.database.writing(checked=False) as connection:
            owner = self.database.owner_in(connection)
            if not owner:
                self.database.own(connection, identity)
        return owner or identity

    def take_over(self, identity: str, last_command: int, by: str) -> str:
        """Make a state the owner of the model, whoever owned it before, and record that.

        The former owner is locked out. Commands that were given to it and not carried out are
        dropped. Each of its versions is kept while it is tagged adopted-N.

        Parameters
        ----------
        identity
            Identity of the new owner.
        last_command
            The highest number of a command in its journals.
        by
            Who asks for it.

        Returns
        -------
        str
            The identity of the former owner; "": none, or this one.
        """
        why = f"the model was taken over by another state ({identity[:12]})"
        answered = sa.select(DEPLOYMENTS.c.command).where(self._ours(DEPLOYMENTS))
        with self.database.writing(checked=False) as connection:
            owner = self.database.owner_in(connection)
            self.database.own(connection, identity)
            if owner in ("", identity):
                return ""
            connection.execute(sa.delete(SHARDS).where(self._ours(SHARDS)))
            connection.execute(
                sa.update(COMMANDS)
                .where(
                    self._ours(COMMANDS),
                    COMMANDS.c.dropped == "",
                    COMMANDS.c.kind.not_in(names(_reports)),
                    COMMANDS.c.id.not_in(answered),
                )
                .values(dropped=why)
            )
            connection.execute(
                sa.update(MODELS)
                .where(self._ours(MODELS))
                .values(next_command=greatest(MODELS.c.next_command, last_command + 1))
            )
            now = time.time()
            whole = sa.select(VERSIONS.c.version).where(
                self._ours(VERSIONS), VERSIONS.c.state == "complete"
            )
            for row in connection.execute(whole).all():
                tag = {"tag": f"adopted-{row.version}", "version": row.version, "at": now}
                self.database.add(connection, TAGS, tag)
            reason = f"from the state {owner}, by the state {identity}"
            self._order(connection, [Order(0, "adopt", reason=reason, by=by)], now)
        return owner

    def start_over(self) -> int:
        """Forget the shards and drop unanswered commands, for a model that is started over.

        Its versions stay. Returns the number of dropped commands.
        """
        with self.database.writing() as connection:
            connection.execute(sa.delete(SHARDS).where(self._ours(SHARDS)))
        return self.drop("the model was started over")

    def order(self, *wanted: Order, at: float | None = None) -> list[Order]:
        """Give commands, in one transaction, to be carried out in this order.

        Returns them with the numbers that are chosen here: of the commands, and of the versions
        that they make.

        Raises
        ------
        CommandError
            If nobody knows a kind of command.
        UnknownVersionError
            If a named version does not exist.
        """
        at = time.time() if at is None else at
        with self.database.writing() as connection:
            return self._order(connection, wanted, at)

    def _order(self, connection: sa.Connection, wanted: Sequence[Order], at: float) -> list[Order]:
        given = []
        numbers = sa.select(MODELS.c.next_command, MODELS.c.next_version)
        row = connection.execute(numbers.where(self._ours(MODELS))).one()
        command, version = row.next_command, row.next_version
        made = 0
        for order_ in wanted:
            kind = command_kind(order_.kind)
            if not kind.given:
                known = ", ".join(names(lambda each: each.given))
                raise CommandError(f"there is no command {order_.kind!r}; there are: {known}")
            order = msgspec.structs.replace(order_, id=command)
            if kind.makes_version:
                order = msgspec.structs.replace(order, version=version)
                made = version
                self._open_version(connection, version, order.cut, order.reason, at)
                version += 1
            elif order.version:
                self._require(connection, order.version)
            if order.before == JUST_MADE:
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

    def request_version(
        self,
        reason: str,
        due: Callable[[float, int, int, str, int], bool],
        at: float | None = None,
        *,
        since: str | None = None,
    ) -> Order | None:
        """Ask all shards for a version, unless another process has: the first to look asks.

        Parameters
        ----------
        due
            Decides whether one is due, from: when the last one was asked for (seconds since 1970,
            0: never), the events that all shards had seen then, those that they have seen now, its
            reason, and its number.
        since
            The last one with this reason counts; by default, with any.
        """
        at = time.time() if at is None else at
        with self.database.writing() as connection:
            return self._request(connection, reason, due, at, since)

    def _request(
        self,
        connection: sa.Connection,
        reason: str,
        due: Callable[[float, int, int, str, int], bool],
        at: float,
        since: str | None,
    ) -> Order | None:
        row = connection.execute(self._last(since)).one_or_none()
        seen = int(connection.execute(self._seen()).scalar_one())
        if not due(
            row.created if row else 0.0,
            row.seen if row else 0,
            seen,
            row.reason if row else "",
            row.version if row else 0,
        ):
            return None
        return self._order(connection, [Order(0, "snapshot", reason=reason)], at)[0]

    def report(self, shard: str, epoch: str, done: Sequence[Done]) -> None:
        """Record what a shard did of commands; repeating a report changes nothing."""
        key = ["epoch", "shard", "seq"]
        with self.database.writing() as connection:
            for each in done:
                row = {
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
                self.database.add(connection, DEPLOYMENTS, row)
                if each.done_at is None:
                    continue
                same = [DEPLOYMENTS.c[name] == row[name] for name in key]
                connection.execute(
                    sa.update(DEPLOYMENTS)
                    .where(self._ours(DEPLOYMENTS), *same, DEPLOYMENTS.c.done_at.is_(None))
                    .values({name: row[name] for name in ("done_at", "refused", "done")})
                )

    def deployments(self, commands: Collection[int] | None = None) -> list[Done]:
        """Return what shards did of commands, of all or of these, oldest first."""
        wanted = sa.select(DEPLOYMENTS).where(self._ours(DEPLOYMENTS))
        if commands is not None:
            wanted = wanted.where(DEPLOYMENTS.c.command.in_(commands))
        wanted = wanted.order_by(DEPLOYMENTS.c.at, DEPLOYMENTS.c.shard, DEPLOYMENTS.c.seq)
        shards = sa.select(SHARDS.c.shard, SHARDS.c.epoch).where(self._ours(SHARDS))
        now = {(row["shard"], row["epoch"]) for row in self.database.rows(shards)}
        return [
            msgspec.structs.replace(
                self.database.decoded(row["done"], Done),
                shard=row["shard"],
                epoch=row["epoch"],
                present=(row["shard"], row["epoch"]) in now,
            )
            for row in self.database.rows(wanted)
        ]

    def alarm(
        self,
        alarms: Sequence[Drifted],
        due: Callable[[float, int, int, str, int], bool] = lambda *_: False,
        at: float | None = None,
    ) -> Order | None:
        """Record alarms, and ask for a version if a new one is of drift; repeats change nothing.

        Parameters
        ----------
        due
            As for `request_version`; the last version is the last with reason drift.
        """
        at = time.time() if at is None else at
        with self.database.writing() as connection:
            news = [a for a in alarms if self.database.add(connection, ALARMS, a._asdict())]
            if not any(alarm.kind == "drift" for alarm in news):
                return None
            return self._request(connection, "drift", due, at, "drift")

    def alarms(self) -> list[Drifted]:
        """Return the alarms, oldest first."""
        wanted = sa.select(ALARMS).where(self._ours(ALARMS)).order_by(ALARMS.c.at)
        rows = self.database.rows(wanted)
        return [Drifted(**{k: v for k, v in row.items() if k != "model"}) for row in rows]

    # --- names

    def tag(self, version: int, tag: str, at: float | None = None) -> int | None:
        """Tag a version; return the version that had the tag, if any."""
        at = time.time() if at is None else at
        same = (self._ours(TAGS), TAGS.c.tag == tag)
        with self.database.writing() as connection:
            self._order(connection, [Order(0, "tag", version, tag)], at)
            had: int | None = connection.execute(
                sa.select(TAGS.c.version).where(*same)
            ).scalar_one_or_none()
            connection.execute(sa.delete(TAGS).where(*same))
            row = {"model": self.model, "tag": tag, "version": version, "at": at}
            connection.execute(sa.insert(TAGS).values(row))
        return had

    def untag(self, tag: str) -> int | None:
        """Remove a tag; return the version that had it."""
        same = (self._ours(TAGS), TAGS.c.tag == tag)
        with self.database.writing() as connection:
            had: int | None = connection.execute(
                sa.select(TAGS.c.version).where(*same)
            ).scalar_one_or_none()
            connection.execute(sa.delete(TAGS).where(*same))
        return had


def _reports(kind: CommandKind) -> bool:
    return not kind.awaited


def _piece(command: int, orders: Mapping[int, Order]) -> list[int]:
    """Return the ids of the commands given together with one; they are consecutive."""
    mains = (command, command + 1, command - 1)
    for main in (id_ for id_ in mains if id_ in orders and command_kind(orders[id_].kind).replaces):
        before, after = orders.get(main - 1), orders.get(main + 1)
        piece, kept = [main], orders[main].before
        if (
            before is not None
            and command_kind(before.kind).makes_version
            and before.version == kept
        ):
            piece.insert(0, main - 1)
        again = command_kind(orders[main].kind).learns_all_again
        if again and after is not None and after.cut == "restored":
            piece.append(main + 1)
        if command in piece:
            return piece
    return [command]


def _struct(row: Mapping[str, Any], type_: type[ShardRow]) -> ShardRow:
    return msgspec.convert({k: v for k, v in row.items() if k != "model"}, type_, strict=False)
