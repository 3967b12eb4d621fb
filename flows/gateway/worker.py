"""The Faust side of the gateway: the table of what was written."""

import logging
import ssl
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import faust

from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.logs import log

__all__ = ["LOGGERS", "Tamed", "Worker", "credentials"]

LOGGERS = ("faust", "mode", "aiokafka", "aiohttp", "asyncio", "librdkafka")
"""The loggers of what the gateway is made of."""
_SESSION_SECONDS = 10.0
_CONNECTION = {
    "bootstrap.servers", "security.protocol", "sasl.mechanism", "sasl.mechanisms", "sasl.username",
    "sasl.password", "ssl.ca.location", "ssl.certificate.location", "ssl.key.location",
    "ssl.key.password", "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification",
}  # fmt: skip


class Worker:
    """A Faust app of one gateway, in the loop that runs.

    Guarantee: what the table is given is in its changelog soon after; a crash may lose the last of
    it.

    Parameters
    ----------
    settings
        The config's settings.
    name
        The app's id, which is also its consumer group.
    replicas
        Replicas of the table's changelog.
    """

    def __init__(self, settings: Settings, name: str, replicas: int) -> None:
        brokers = str(settings.kafka["bootstrap.servers"]).split(",")
        self._app = faust.App(
            name,
            broker=[f"kafka://{broker.split('://')[-1].strip()}" for broker in brokers],
            broker_credentials=credentials(settings),
            autodiscover=False,
            web_enabled=False,
            topic_disable_leader=True,
            topic_partitions=1,
            topic_replication_factor=replicas,
            table_standby_replicas=0,
            stream_wait_empty=False,
            key_serializer="raw",
            value_serializer="raw",
            # A gateway that starts again takes its place at once, also after SIGKILL.
            consumer_group_instance_id=name,
            broker_session_timeout=_SESSION_SECONDS,
            broker_rebalance_timeout=_SESSION_SECONDS,
            producer_acks=-1,
        )
        self.table: MutableMapping[str, Any] = self._app.Table(
            "remembered", partitions=1, use_partitioner=True, key_type=str
        )

    async def start(self) -> None:
        """Join the group, and wait until the table is as the changelog says."""
        await self._app.start()

    async def failed(self) -> BaseException | None:
        """Wait until the app ends by itself; return why."""
        await self._app.wait_until_stopped()
        reason: BaseException | None = self._app.crash_reason
        return reason

    async def stop(self) -> None:
        """Write what the changelog lacks, and leave."""
        await self._app.stop()


def credentials(settings: Settings) -> Any:
    """Return Faust's credentials for the connection that `[kafka]` describes; None: plain.

    Raises
    ------
    ConfigError
        If it is of a kind that the gateway cannot use.
    """
    kafka = settings.kafka
    protocol = str(kafka.get("security.protocol", "plaintext")).lower()
    if protocol == "plaintext":
        return None
    context = _context(settings) if "ssl" in protocol else None
    if protocol == "ssl":
        return faust.SSLCredentials(context)
    mechanism = str(kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "GSSAPI"))).upper()
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise ConfigError(
            f'{settings.file}: kafka."sasl.mechanism": found {mechanism!r}; the gateway allows: '
            "'PLAIN' | 'SCRAM-SHA-256' | 'SCRAM-SHA-512'"
        )
    return faust.SASLCredentials(
        username=str(kafka.get("sasl.username", "")),
        password=str(kafka.get("sasl.password", "")),
        mechanism=mechanism,
        ssl_context=context,
    )


def _context(settings: Settings) -> ssl.SSLContext:
    kafka = settings.kafka
    for key in kafka:
        if key.startswith(("ssl.", "enable.ssl")) and key not in _CONNECTION:
            raise ConfigError(
                f'{settings.file}: kafka."{key}": the gateway cannot use it; allowed: '
                f"{', '.join(sorted(k for k in _CONNECTION if 'ssl' in k))}"
            )
    context = ssl.create_default_context()

    def path(key: str) -> Path | None:
        value = kafka.get(key)
        return None if value in (None, "probe") else settings.root / str(value)

    try:
        if (ca := path("ssl.ca.location")) is not None:
            context.load_verify_locations(**{"capath" if ca.is_dir() else "cafile": str(ca)})
        if (certificate := path("ssl.certificate.location")) is not None:
            password = kafka.get("ssl.key.password")
            context.load_cert_chain(
                certificate, path("ssl.key.location"),
                None if password is None else str(password),
            )  # fmt: skip
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{settings.file}: kafka: a certificate cannot be used: {error}"
        ) from None
    if str(kafka.get("ssl.endpoint.identification.algorithm", "https")).lower() == "none":
        context.check_hostname = False
    if str(kafka.get("enable.ssl.certificate.verification", "true")).lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Tamed(logging.Handler):
    """Passes warnings of libraries on to Midstream's log: one line each, the same one once a while.

    Parameters
    ----------
    seconds
        For how long a message of the same form is only counted.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__(logging.WARNING)
        self._seconds = seconds
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record, or count it."""
        form = (record.name, str(record.msg)[:100])
        since, missed = self._seen.get(form, (float("-inf"), 0))
        if record.created - since < self._seconds:
            self._seen[form] = since, missed + 1
            return
        self._seen[form] = record.created, 0
        text = " ".join(record.getMessage().split())[:500]
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:  # the first line: what follows is what a client sent
            lines = f"{type(error).__name__}: {error}".splitlines()[:2]
            text += f": {' '.join(lines).strip()[:300]}"
        more = {"missed": missed} if missed else {}
        log.warning("gateway_library", logger=record.name, said=text, **more)

    def install(self) -> None:
        """Take the place of all handlers of the libraries' loggers."""
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers[:] = [self]
            logger.setLevel(logging.WARNING)
            logger.propagate = False
