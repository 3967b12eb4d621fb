"""The registry's database: its tables, and how SQLite and PostgreSQL are opened and spoken to.

Of SQLite, writers take turns from the beginning of their transactions (WAL mode, BEGIN IMMEDIATE);
of PostgreSQL, by a lock on the row of their model. Nothing here knows what a version is.
"""

import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

__all__ = [
    "ALARMS",
    "COMMANDS",
    "DEPLOYMENTS",
    "META",
    "MODELS",
    "PARTS",
    "READING",
    "SHARDS",
    "TAGS",
    "UNKNOWN",
    "VERSIONS",
    "RegistryError",
    "filled",
    "greatest",
    "insert",
    "make_engine",
    "reason_of",
    "url_of",
]

READING: dict[str, Any] = {"midstream_reading": True}
"""Options of a connection that only reads."""
UNKNOWN = "?"
"""The epoch of a shard that has not told it yet."""
_LOCKED_SECONDS = 5.0
_ANSWER_SECONDS = 5
_POSTGRES = {
    "connect_timeout": _ANSWER_SECONDS,
    # A server that cannot be reached any more is given up after about half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}

META = sa.MetaData()
MODELS = sa.Table(
    "midstream_models",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("schema", sa.Integer, nullable=False),
    sa.Column("next_version", sa.Integer, nullable=False),
    sa.Column("next_command", sa.Integer, nullable=False),
)
SHARDS = sa.Table(
    "midstream_shards",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("shard", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False, default=""),
    sa.Column("host", sa.Text, nullable=False, default=""),
    sa.Column("pid", sa.Integer, nullable=False, default=0),
    sa.Column("beat_at", sa.Float, nullable=False, default=0.0),
    sa.Column("seen", sa.BigInteger, nullable=False, default=0),
    sa.Column("paused", sa.Boolean, nullable=False, default=False),
    sa.Column("ending", sa.Integer, nullable=False, default=0),
    sa.Column("epoch", sa.Text, nullable=False, default=UNKNOWN),
    sa.Column("since", sa.Integer, nullable=False, default=0),  # the last command not for it
)
VERSIONS = sa.Table(
    "midstream_versions",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("shards", sa.Text, nullable=False),  # names, as JSON
    sa.Column("seen", sa.BigInteger, nullable=False, default=0),  # of all shards, when asked for
    sa.Column("parent", sa.Integer, nullable=False, default=0),
    sa.Column("bytes", sa.BigInteger, nullable=False, default=0),
    sa.Column("sha256", sa.Text, nullable=False, default=""),
    sa.Column("manifest", sa.Text, nullable=False, default=""),
)
PARTS = sa.Table(
    "midstream_parts",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("shard", sa.Text, primary_key=True),
    sa.Column("part", sa.Text, nullable=False),  # a ShardPart, as JSON
)
TAGS = sa.Table(
    "midstream_tags",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
COMMANDS = sa.Table(
    "midstream_commands",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("before", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("order", sa.Text, nullable=False),  # an Order, as JSON
    sa.Column("dropped", sa.Text, nullable=False, default=""),
)
DEPLOYMENTS = sa.Table(
    "midstream_deployments",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("shard", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("command", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("done_at", sa.Float),
    sa.Column("refused", sa.Text, nullable=False),
    sa.Column("done", sa.Text, nullable=False),  # a Done, as JSON
)
ALARMS = sa.Table(
    "midstream_alarms",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("shard", sa.Text, primary_key=True),
    sa.Column("command", sa.Integer, primary_key=True),  # the last one before it
    sa.Column("position", sa.BigInteger, primary_key=True),
    sa.Column("detector", sa.Text, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
)


class RegistryError(RuntimeError):
    """The registry cannot be read or written to; the message names it and says why."""


def url_of(database: str | Path) -> tuple[sa.URL, str]:
    """Return the URL of a database, and how to show it: without a password."""
    text = str(database)
    try:
        url = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except (exc.ArgumentError, ValueError):  # which shows a part of it, perhaps the password
        raise RegistryError(
            "the registry's URL cannot be read; needed: sqlite:///PATH or "
            "postgresql://USER@HOST/DATABASE"
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database:
        return url, url.database
    return url, url.set(query={}).render_as_string(hide_password=True)


def make_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    """Return what connects to a database; `create`: a SQLite file is to be made in WAL mode.

    Raises
    ------
    RegistryError
        If there is no driver for it.
    """
    sqlite = url.get_backend_name() == "sqlite"
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise RegistryError(
            f"{url.drivername}: no such kind of database; there are sqlite and postgresql"
        )
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


def _open_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # What is read stands in one piece too; who means to write must not find out late.
    reading = READING.items() <= connection.get_execution_options().items()
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _ask_postgres(connection: Any, _: Any, __: Any) -> None:
    """Give up a connection whose server does not answer; psycopg itself would wait for ever."""
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


def insert(engine: sa.Engine, table: sa.Table, row: Mapping[str, Any]) -> Any:
    """Insert a row unless one with this key is there."""
    if engine.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_there

        return insert_there(table).values(dict(row)).on_conflict_do_nothing()
    from sqlalchemy.dialects.sqlite import insert as insert_here

    return insert_here(table).values(dict(row)).on_conflict_do_nothing()


def filled(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the defaults of what it lacks."""
    defaults = {
        column.name: column.default.arg
        for column in table.columns
        if isinstance(column.default, sa.ColumnDefault)
    }
    return defaults | dict(row)


def greatest(column: Any, value: int) -> Any:
    """Return what a column is to be where it may not be less than a value."""
    return sa.case((column < value, value), else_=column)


def reason_of(error: exc.SQLAlchemyError) -> str:
    """Return in one line, and in our words where we know them, what a database fails of."""
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
