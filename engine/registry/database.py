"""The registry's database: access to SQLite and PostgreSQL for one model.

In SQLite, writers take turns from the start of their transactions (WAL mode, BEGIN IMMEDIATE); in
PostgreSQL, by a lock on the row of their model. This module does not know what a version is.
"""

import os
import select
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import event, exc

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.basics.masking import credentials, hide, hide_credentials, masked
from midstream.engine.basics.names import name_fault
from midstream.engine.basics.read_only import (
    database_unwritable,
    error_text,
    open_for_reading,
    readable,
)
from midstream.engine.registry.schema import COMMANDS, META, MODELS, SCHEMA, is_old, upgrade

__all__ = ["Database", "NoRegistryError", "OtherStateError", "RegistryError", "make_engine"]

_READING: dict[str, Any] = {"midstream_reading": True}  # options of a connection that only reads
_LOCKED_SECONDS = 5.0
_ANSWER_SECONDS = 5
_POSTGRES = {
    "connect_timeout": _ANSWER_SECONDS,
    # A server that became unreachable is given up after about half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}

_T = TypeVar("_T")


class RegistryError(ExpectedError, RuntimeError):
    """The registry cannot be read or written to; the message names it and the reason."""


class OtherStateError(RegistryError):
    """The model with this name belongs to another state; the message says what can be done."""


class NoRegistryError(RegistryError):
    """There is no registry, or it lacks this model."""


def _url_of(database: str | Path) -> tuple[sa.URL, str]:
    """Return the URL of a database, and its display form: without a password."""
    text = str(database)
    hide_credentials(text)
    if any(sign in credentials(text) for sign in "@/"):  # in a URL the host begins there
        raise RegistryError(
            "the registry's password holds an '@' or a '/'; in a URL they are written %40 and %2F"
        )
    try:
        url = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except (exc.ArgumentError, ValueError):  # its message may show the password
        raise RegistryError(
            "the registry's URL cannot be read; needed: sqlite:///PATH or "
            "postgresql://USER@HOST/DATABASE"
        ) from None
    for name, value in url.query.items():
        if "password" in name:
            hide(value if isinstance(value, str) else value[-1])
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database:
        return url, url.database
    return url, url.set(query={}).render_as_string(hide_password=True)


def make_engine(url: sa.URL, *, create: bool, only_read: Path | None = None) -> sa.Engine:
    """Return an engine for a database; `create`: make a missing SQLite file, in WAL mode.

    `only_read`: its SQLite file, which this user may not write to.

    Raises
    ------
    RegistryError
        If there is no driver for the database.
    """
    sqlite = url.get_backend_name() == "sqlite"
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise RegistryError(
            f"{url.drivername}: no such kind of database; there are sqlite and postgresql"
        )
    if only_read is not None:
        engine = sa.create_engine(
            "sqlite://",
            creator=lambda: open_for_reading(only_read),
            poolclass=sa.NullPool,  # a connection shows the database as it was when made
        )
        event.listen(engine, "connect", _leave_transactions)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    options: dict[str, Any] = {"timeout": _LOCKED_SECONDS} if sqlite else _POSTGRES
    try:
        engine = sa.create_engine(url, connect_args=options)
    except ModuleNotFoundError as error:
        raise RegistryError(
            f"{url.drivername}: needs {error.name}; pip install 'midstream[postgres]'"
        ) from None
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite if create else _open_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "checkout", _ask_postgres)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    _open_sqlite(connection, record)
    connection.execute("PRAGMA journal_mode=WAL")


def _open_sqlite(connection: Any, record: Any) -> None:
    _leave_transactions(connection, record)
    connection.execute("PRAGMA synchronous=FULL")


def _leave_transactions(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions


def _begin_sqlite(connection: sa.Connection) -> None:
    # Reads are consistent, too. A writer must find out at once that it has to wait.
    reading = _READING.items() <= connection.get_execution_options().items()
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _ask_postgres(connection: Any, _: Any, __: Any) -> None:
    """Time out a connection whose server does not answer; psycopg itself would wait forever."""
    limit = time.monotonic() + _ANSWER_SECONDS
    try:
        server = connection.pgconn
        server.send_query(b"")
        poll = select.poll()
        poll.register(server.socket, select.POLLIN)
        while True:
            server.flush()
            if not poll.poll(max(0.0, 1_000 * (limit - time.monotonic()))):
                raise exc.DisconnectionError(f"no answer for {_ANSWER_SECONDS} s")
            server.consume_input()
            while not server.is_busy():
                if server.get_result() is None:
                    return
    except connection.Error as error:
        raise exc.DisconnectionError(str(error)) from None


class Database:
    """The rows of one model.

    Parameters
    ----------
    database
        A URL of SQLAlchemy's, `sqlite:///…` or `postgresql://…`, or the path of a SQLite file.
    model
        The model's name.
    create
        Make the database and the model's row if they are not there.
    identity
        Identity of the accessing state. It owns a model that it writes to first; a model of another
        state it neither reads nor writes. "": a caller without a state, which goes by the name
        alone; None: a state without an identity yet, which may not go by the name.

    Attributes
    ----------
    place
        Display name, without a password.
    engine
        SQLAlchemy's engine.

    Raises
    ------
    NoRegistryError
        If it does not exist and `create` is False.
    OtherStateError
        If the model belongs to another state; any later access raises it, too.
    RegistryError
        If it cannot be used.
    """

    def __init__(
        self,
        database: str | Path,
        model: str,
        *,
        create: bool = False,
        identity: str | None = "",
    ) -> None:
        if fault := name_fault(model):
            raise RegistryError(f"{model[:100]!r} is no model's name: {fault}")
        self.model = model
        self.identity = identity
        self.url, self.place = _url_of(database)
        self._unwritable = ""
        if self._file is not None:
            with self._saying():
                readable(self._file)
                self._unwritable = database_unwritable(self._file)
        if self._unwritable and create:
            raise RegistryError(self._unwritable)
        only_read = self._file if self._unwritable else None
        self.engine = make_engine(self.url, create=create, only_read=only_read)
        self._node: tuple[int, int] | None = None
        try:
            self._open(create=create)
        except BaseException:
            self.close()
            raise

    @property
    def _file(self) -> Path | None:
        name = self.url.database
        if self.url.get_backend_name() != "sqlite" or not name or name.startswith("file:"):
            return None
        return Path(name)

    def _open(self, *, create: bool) -> None:
        if create:
            self._make()
        elif self._file is not None and self._status() is None:
            raise NoRegistryError(
                f"{self.place}: there is no registry; it is made by the first `midstream run` (or, "
                "where it was lost and its artifacts are there, by `midstream snapshots adopt`)"
            )
        with self.reading(checked=False) as connection:
            there = sa.inspect(connection).has_table(MODELS.name)
        if not there:
            raise NoRegistryError(f"{self.place}: holds no registry of Midstream's")
        schema = self._schema()
        if create:
            with self.reading(checked=False) as connection:
                old = is_old(connection)
            if old or (schema is not None and schema < SCHEMA):
                with self._saying(), self.engine.begin() as connection:
                    upgrade(connection)
                schema = self._schema()
        if schema is None and create:
            with self._saying(), self.engine.begin() as connection:
                self.add(connection, MODELS, {"schema": SCHEMA, "identity": self.identity or ""})
            schema = self._schema()
        if schema is not None and schema < SCHEMA:
            raise RegistryError(
                f"{self.place}: is of an older Midstream (schema {schema}); the next `midstream "
                f"run` brings it to schema {SCHEMA}, with all that it holds"
            )
        if schema is None:
            raise NoRegistryError(
                f"{self.place}: has no model {self.model!r}; it has: "
                + (", ".join(self.models()) or "none")
            )
        if schema != SCHEMA:
            raise RegistryError(
                f"{self.place}: has schema {schema}, this Midstream reads {SCHEMA}; use a newer one"
            )
        with self.reading():  # checks the owner
            pass

    def _make(self) -> None:
        with self._saying():
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):  # another process may be making the same
                try:
                    META.create_all(self.engine)
                    break
                except (exc.ProgrammingError, exc.IntegrityError, exc.OperationalError):
                    time.sleep(0.1)
            else:
                META.create_all(self.engine)

    def _schema(self) -> int | None:
        with self.reading(checked=False) as connection:
            wanted = sa.select(MODELS.c.schema).where(self.ours(MODELS))
            found: int | None = connection.execute(wanted).scalar_one_or_none()
        return found

    def models(self) -> list[str]:
        """Return the names of all models in the registry."""
        with self.reading(checked=False) as connection:
            found = connection.execute(sa.select(MODELS.c.model).order_by(MODELS.c.model))
            return list(found.scalars())

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def ours(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Return the condition that a row belongs to this model."""
        return table.c.model == self.model

    @contextmanager
    def reading(self, *, checked: bool = True) -> Iterator[sa.Connection]:
        """Read within one transaction; `checked`: raise if the model belongs to another state."""
        self._look()
        with self._saying(), self.engine.connect() as connection:
            connection.execution_options(**_READING)
            if checked:
                self._require_ours(connection.execute(self._owner()).scalar())
            yield connection

    def _owner(self) -> sa.Select[Any]:
        return sa.select(MODELS.c.identity).where(self.ours(MODELS))

    def _require_ours(self, owner: str | None) -> None:
        """Raise OtherStateError if the model belongs to another state."""
        if not owner or self.identity in ("", owner):
            return
        if self.identity is None:
            raise OtherStateError(
                f"{self.place}: model {self.model!r} is that of a state with the identity "
                f"{owner[:12]}, and the state here has none yet: the next `midstream run` gives it "
                "one, if it is not another's (then give this config a `name` of its own)"
            )
        raise OtherStateError(
            f"{self.place}: model {self.model!r} is that of another state (identity {owner[:12]}; "
            f"the one here: {self.identity[:12]}); give this config a `name` of its own, or, if "
            "that state was moved here or lost, take the model over with `midstream run --adopt`"
        )

    def owner(self) -> str:
        """Return the identity of the state that owns the model; "": no owner."""
        with self.reading(checked=False) as connection:
            return connection.execute(self._owner()).scalar() or ""

    @contextmanager
    def writing(self, *, checked: bool = True) -> Iterator[sa.Connection]:
        """Write within one transaction; concurrent writers take turns.

        With `checked`, the model must belong to this state, or becomes its own if it has no owner.
        """
        if self._unwritable:
            raise RegistryError(self._unwritable)
        self._look()
        with self._saying(), self.engine.begin() as connection:
            owner = connection.execute(self._owner().with_for_update()).scalar()
            if checked:
                self._require_ours(owner)
                if owner == "" and self.identity:
                    self.own(connection, self.identity)
            yield connection

    @property
    def steady(self) -> bool:
        """Whether nobody can set the clock of `clock`: it counts from the host's start."""
        return self.url.get_backend_name() == "sqlite"

    def clock(self) -> float:
        """Return seconds of a clock that all users of this database share.

        For PostgreSQL it is the server's clock, since 1970. A file is used on one host only, so it
        is that host's monotonic clock.
        """
        if self.steady:
            return time.monotonic()
        with self.reading() as connection:
            now = sa.func.extract("epoch", sa.func.clock_timestamp())
            return float(connection.execute(sa.select(now)).scalar_one())

    def owner_in(self, connection: sa.Connection) -> str:
        """Return the same as `owner`, within a transaction."""
        return connection.execute(self._owner()).scalar() or ""

    def own(self, connection: sa.Connection, identity: str) -> None:
        """Make a state the owner of the model. Part of a transaction."""
        connection.execute(sa.update(MODELS).where(self.ours(MODELS)).values(identity=identity))

    def require_writing(self) -> None:
        """Raise RegistryError if this user may only read; other obstacles show later."""
        if self._unwritable:
            raise RegistryError(self._unwritable)
        if self._file is not None or self.engine.dialect.name != "postgresql":
            return
        with self.reading() as connection:
            only_reads = connection.execute(sa.text("SHOW transaction_read_only")).scalar_one()
            may = [
                connection.execute(sa.select(sa.func.has_table_privilege(table.name, right)))
                for table, right in ((MODELS, "UPDATE"), (COMMANDS, "INSERT"))
            ]
            if only_reads == "on":
                raise RegistryError(f"{self.place}: no right to write: the database is read-only")
            if not all(found.scalar_one() for found in may):
                raise RegistryError(
                    f"{self.place}: no right to write: this user may only read the registry"
                )

    def rows(self, wanted: Any) -> list[dict[str, Any]]:
        """Return the result of a query, one dict per row."""
        with self.reading() as connection:
            return [
                {str(name): value for name, value in row._mapping.items()}
                for row in connection.execute(wanted)
            ]

    def add(self, connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert a row of this model unless its key exists; missing columns get defaults.

        Returns whether it was inserted.
        """
        defaults = {
            column.name: column.default.arg
            for column in table.columns
            if isinstance(column.default, sa.ColumnDefault)
        }
        values = {**defaults, "model": self.model, **row}
        adding = _inserting(self.engine, table).values(values).on_conflict_do_nothing()
        options = {"preserve_rowcount": True}
        return connection.execute(adding, execution_options=options).rowcount > 0

    def decoded(self, text: str, type_: type[_T]) -> _T:
        """Decode the content of a JSON column."""
        with self._saying():
            return msgspec.json.decode(text, type=type_)

    def _look(self) -> None:
        """Refuse a file that is gone, and reopen one that was replaced.

        SQLite would go on with the removed file, and everything written would be lost.
        """
        if self._file is None:
            return
        found = self._status()
        if found is None:
            raise RegistryError(f"{self.place}: the registry is gone: no such file")
        node = found.st_dev, found.st_ino
        if self._node not in (None, node):
            self.engine.dispose()
        self._node = node

    def _status(self) -> os.stat_result | None:
        """Return the file's status; None: it does not exist."""
        assert self._file is not None
        try:
            return self._file.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{self.place}: cannot be read: {error.strerror}") from None

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """Report an error of the database in one line."""
        try:
            yield
        except exc.SQLAlchemyError as error:
            raise RegistryError(masked(f"{self.place}: {_reason_of(error)}")) from None
        except PermissionError as error:  # perhaps for a file beside the database
            raise RegistryError(masked(error_text(error))) from None
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RegistryError(masked(f"{self.place}: {reason}")) from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RegistryError(f"{self.place}: is damaged ({error})") from None


def _inserting(engine: sa.Engine, table: sa.Table) -> Any:
    if engine.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_there

        return insert_there(table)
    from sqlalchemy.dialects.sqlite import insert as insert_here

    return insert_here(table)


def _reason_of(error: exc.SQLAlchemyError) -> str:
    """Describe a database error in one line, in our words for known ones."""
    what = getattr(error, "orig", None) or error
    text = " ".join(str(what).split())
    if "database is locked" in text:
        return f"is locked by another process, for more than {_LOCKED_SECONDS:g} s"
    if "readonly" in text:
        return "cannot be written to: it is read-only"
    if "disk is full" in text:
        return "cannot be written to: the disk is full"
    if "malformed" in text or "not a database" in text:
        return f"is damaged, or no registry ({text})"
    return text or type(what).__name__
