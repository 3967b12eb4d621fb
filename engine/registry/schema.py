"""The tables of the registry. Each row belongs to one model."""

from typing import Any

import sqlalchemy as sa

__all__ = [
    "ALARMS",
    "CANCELLED",
    "COMMANDS",
    "DEPLOYMENTS",
    "META",
    "MODELS",
    "PARTS",
    "PARTS_OF_VERSIONS",
    "SAME",
    "SCHEMA",
    "SHARDS",
    "TAGS",
    "UNKNOWN",
    "VERSIONS",
    "aliases",
    "greatest",
    "is_old",
    "upgrade",
]

SCHEMA = 3
UNKNOWN = "?"
"""The epoch of a shard that has not reported it yet."""
SAME = "same"
"""The kind of a version that was not made, since it would have equalled its parent."""
CANCELLED = "cancelled"
"""The kind of a version whose command was cancelled."""

META = sa.MetaData()
MODELS = sa.Table(
    "midstream_models",
    META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("schema", sa.Integer, nullable=False),
    sa.Column("next_version", sa.Integer, nullable=False, default=1),
    sa.Column("next_command", sa.Integer, nullable=False, default=1),
    # Identity of the state that owns the model; "": no owner yet.
    sa.Column("identity", sa.Text, nullable=False, default="", server_default=""),
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
    sa.Column("seen", sa.BigInteger, nullable=False, default=0),  # as in `ShardRow`
    sa.Column("paused", sa.Boolean, nullable=False, default=False),
    sa.Column("ending", sa.Integer, nullable=False, default=0),
    sa.Column("epoch", sa.Text, nullable=False, default=UNKNOWN),
    sa.Column("since", sa.Integer, nullable=False, default=0),  # the last command not for it
    sa.Column("sources", sa.Text, nullable=False, default="[]", server_default="[]"),  # as JSON
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
    sa.Column("dropped", sa.Text, nullable=False, default=""),  # why, if it was
    # When a processor took it up, so that it will be carried out; 0: none has.
    sa.Column("taken_at", sa.Float, nullable=False, default=0.0, server_default="0"),
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
    sa.Column("feature", sa.Text, primary_key=True, default=""),  # "": none, it is the loss
    sa.Column("kind", sa.Text, primary_key=True, default="drift"),
    sa.Column("at", sa.Float, nullable=False),
)

PARTS_OF_VERSIONS = sa.select(PARTS.c.part).join(
    VERSIONS,
    sa.and_(VERSIONS.c.model == PARTS.c.model, VERSIONS.c.version == PARTS.c.version),
)
"""The parts of versions, with their rows."""


def aliases(connection: sa.Connection, ours: sa.ColumnElement[bool]) -> dict[int, int]:
    """Return the versions that were not made -> the versions that they would have equalled."""
    wanted = sa.select(VERSIONS.c.version, VERSIONS.c.parent)
    rows = connection.execute(wanted.where(ours, VERSIONS.c.kind == SAME))
    return {row.version: row.parent for row in rows}


def is_old(connection: sa.Connection) -> bool:
    """Whether the tables lack columns of schema 3, whatever the rows of models say."""
    names = {found["name"] for found in sa.inspect(connection).get_columns(MODELS.name)}
    return MODELS.c.identity.name not in names


def upgrade(connection: sa.Connection) -> None:
    """Convert tables of schemas 1 and 2 to schema 3, with their content. Part of a transaction."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.exec_driver_sql(f"LOCK TABLE {MODELS.name} IN ACCESS EXCLUSIVE MODE")
    there = sa.inspect(connection)
    added = (SHARDS, SHARDS.c.sources), (COMMANDS, COMMANDS.c.taken_at), (MODELS, MODELS.c.identity)
    for table, column in added:
        if column.name not in {found["name"] for found in there.get_columns(table.name)}:
            text = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {text}")
    names = [found["name"] for found in there.get_columns(ALARMS.name)]
    if "kind" not in names:
        old = sa.table(ALARMS.name, *map(sa.column, names))
        rows = [dict(row._mapping) for row in connection.execute(sa.select(old))]
        ALARMS.drop(connection)  # not every database can alter a primary key
        ALARMS.create(connection)
        if rows:
            plain = [row | {"feature": "", "kind": "drift"} for row in rows]
            connection.execute(sa.insert(ALARMS), plain)
    connection.execute(sa.update(MODELS).where(MODELS.c.schema < SCHEMA).values(schema=SCHEMA))


def greatest(column: Any, value: int) -> Any:
    """Return the greater of a column and a value."""
    return sa.case((column < value, value), else_=column)
