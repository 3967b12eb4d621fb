"""The `[gateway]` section of a config, and what its types cannot express."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from midstream.engine.basics.names import topic_fault
from midstream.engine.events.rules import TimeUnit
from midstream.flows.config.tables import ConfigReader

__all__ = ["Gateway", "RawTopic", "Rekeyed", "check_gateway"]

_Text: TypeAlias = Annotated[str, Meta(min_length=1)]
_Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e9)]
_ITEM = ("id", "y", "ts", "source", "idempotency_key")


class RawTopic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One raw topic whose messages the gateway turns into feedback.

    Attributes
    ----------
    topic
        The topic to read: messages that are JSON objects. Default: the table's name.
    id
        The field with the id of the event. Dots lead into nested objects, here and below.
    y
        The field with the label.
    values
        What the label's text, or spelled number or truth value, stands for, as in
        `{ chargeback = true, paid = false }`. Another one is rejected. Default: it is the label.
    ts
        The field with the time of the feedback. Default: the time of the message.
    time_unit
        The unit of a time that is a number, as in `input.fields.time_unit`.
    source
        The source of all feedback of this topic. Default: the table's name.
    source_field
        The field with the source, where messages tell it. It goes before `source`.
    idempotency_key
        The field with the idempotency key. Default: a digest of id, label, source and time.
    key
        The field with the key of the message that is produced. Default: the id.
    """

    topic: _Text | None = None
    id: _Text
    y: _Text
    values: dict[str, bool | int | float | str] = {}
    ts: _Text | None = None
    time_unit: TimeUnit = "auto"
    source: _Text | None = None
    source_field: _Text | None = None
    idempotency_key: _Text | None = None
    key: _Text | None = None


class Rekeyed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One topic that the gateway copies to another, keyed by a field.

    Attributes
    ----------
    to
        The topic to write.
    topic
        The topic to read: messages that are JSON objects, which are copied byte for byte. Default:
        the table's name.
    key
        The field that becomes the key. Dots lead into nested objects.
    """

    to: _Text
    topic: _Text | None = None
    key: _Text = "id"


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gateway, `midstream gateway`.

    Attributes
    ----------
    topic
        The feedback topic, which the gateway writes. Default: `feedback.topic`.
    rejected
        The topic of messages of raw topics that are no feedback. Default: they are only counted and
        logged.
    host
        The address to listen at.
    port
        The port to listen at. 0 takes a free one, which the log names.
    http
        Whether `POST /v1/feedback` takes feedback. Probes, metrics and the description are served
        in any case.
    tokens
        The environment variable with the bearer tokens: `NAME:TOKEN`, several with commas or blanks
        between them. A token has at least 16 characters. The name is the source of feedback that
        tells none.
    rate
        How many items a second each token may send on average. Bursts of two seconds' worth, and of
        one request, are allowed.
    max_bytes
        The largest body in bytes.
    max_items
        The most items in one request.
    max_connections
        The most connections at once. More are closed at once.
    body_seconds
        How many seconds a request may take to arrive.
    ack_seconds
        How many seconds a request waits for the brokers' acknowledgement.
    future_seconds
        How far ahead of the gateway's clock the time of feedback may be, in seconds.
    remember_seconds
        For how many seconds idempotency keys are remembered.
    remember_keys
        The most idempotency keys that are remembered; the oldest are forgotten first. One takes
        about 200 bytes of memory.
    key
        The field of an item with the key of its message, text or an integer. Default: the id is
        the key.
    start
        Where to begin in raw topics that were not read before.
    raw
        The raw topics, by name.
    repartition
        By name, the topics that are copied to topics with another key: of events that are not keyed
        as the feedback is.
    """

    topic: _Text | None = None
    rejected: _Text | None = None
    host: _Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8650
    http: bool = True
    tokens: _Text = "MIDSTREAM_GATEWAY_TOKENS"
    rate: Annotated[float, Meta(gt=0, le=1e9)] = 10_000.0
    max_bytes: Annotated[int, Meta(ge=1_024, le=2**30)] = 2**20
    max_items: Annotated[int, Meta(ge=1, le=5_000)] = 1_000
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000
    body_seconds: _Seconds = 10.0
    ack_seconds: _Seconds = 30.0
    future_seconds: Annotated[float, Meta(ge=0, le=1e9)] = 300.0
    remember_seconds: _Seconds = 86_400.0
    remember_keys: Annotated[int, Meta(ge=1_000, le=1_000_000_000)] = 1_000_000
    key: _Text | None = None
    start: Literal["earliest", "latest"] = "earliest"
    raw: dict[str, RawTopic] = {}
    repartition: dict[str, Rekeyed] = {}

    def topics_read(self) -> dict[str, str]:
        """Return the topics that are read, by the key of the config that names them."""
        named: dict[str, RawTopic | Rekeyed] = {f"gateway.raw.{k}": r for k, r in self.raw.items()}
        named |= {f"gateway.repartition.{k}": r for k, r in self.repartition.items()}
        return {key: table.topic or key.split(".", 2)[2] for key, table in named.items()}

    def topics_written(self) -> dict[str, str]:
        """Return the topics that are written, by the key of the config that names them."""
        named = {"gateway.topic": self.topic, "gateway.rejected": self.rejected}
        named |= {f"gateway.repartition.{k}.to": r.to for k, r in self.repartition.items()}
        return {key: topic for key, topic in named.items() if topic is not None}


def check_gateway(gateway: Gateway, reader: ConfigReader) -> None:
    """Check what the types cannot express.

    Raises
    ------
    ConfigError
        If a name is no topic's, or topics contradict each other.
    """
    read, written = gateway.topics_read(), gateway.topics_written()
    for key, topic in (read | written).items():
        if fault := topic_fault(topic):
            raise reader.found(key, topic, fault)
    if gateway.topic is None and (gateway.http or gateway.raw):
        raise reader.error(
            "gateway.topic",
            "missing, and feedback.topic, too; needed: the topic that feedback goes to",
        )
    if not (gateway.http or read):
        raise reader.error(
            "gateway.http", "found false, and no raw topic; there is nothing to do for the gateway"
        )
    seen: dict[str, str] = {}
    for key, topic in read.items():
        if topic in seen:
            raise reader.error(key, f"reads {topic}, as {seen[topic]} does; allowed: each once")
        seen[topic] = key
    for key, topic in written.items():
        if topic in seen:
            raise reader.error(
                key, f"writes {topic}, which {seen[topic]} reads; that would never end"
            )
    if gateway.key in _ITEM:
        raise reader.error(
            "gateway.key",
            f"found {gateway.key!r}; allowed: another name than {', '.join(_ITEM)} "
            "(without a key, the id is the key)",
        )
