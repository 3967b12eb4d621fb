"""Runs the gateway: looks that all is there, starts its sides, and ends it in order."""

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from midstream.connectors.encode.outputs import encode_rejected
from midstream.engine.basics.errors import ExpectedError
from midstream.engine.events.event import Rejected
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.gateway.intake import Intake, Outcome
from midstream.flows.gateway.mapping import Mapping, key_in
from midstream.flows.gateway.memory import Memory
from midstream.flows.gateway.reader import Raw, Reader
from midstream.flows.gateway.tokens import Tokens
from midstream.flows.gateway.validation import Fault, Item, Rules, digest
from midstream.flows.gateway.writer import Message, Writer
from midstream.flows.inputs.topics import check_kafka, gateway_topics, kafka_options
from midstream.flows.logs import log
from midstream.flows.process import stop_signals

if TYPE_CHECKING:
    from midstream.flows.gateway.web import Site
    from midstream.flows.gateway.worker import Worker

__all__ = ["GatewayError", "serve"]

_RAW = 1024  # characters of a rejected message that are kept
_STOP_SECONDS = 10.0  # for libraries to end
_NEEDED = ("faust", "aiokafka", "aiohttp", "prometheus_client")


class GatewayError(ExpectedError, RuntimeError):
    """The gateway cannot start or go on; one line for the operator."""


def serve(settings: Settings) -> None:
    """Run the gateway of a config until a signal asks it to end; return when it ended in order.

    The process has to end with it: libraries leave threads behind that wait for the brokers.

    Raises
    ------
    ConfigError
        If the config has no gateway, or a setting or token cannot be used.
    GatewayError, InputError, SupersededError
        If packages or topics are missing, the brokers do not answer, or the gateway fails.
    """
    gateway = settings.gateway
    if gateway is None:
        raise ConfigError(
            f"{settings.file}: gateway: missing; needed: [gateway] with topic = "
            "'the feedback topic'"
        )
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise GatewayError(
                f"the gateway needs the package {error.name}: pip install 'midstream[faust]'"
            ) from None
    from midstream.flows.gateway import worker

    tokens = Tokens(gateway.tokens, os.environ) if gateway.http else None
    check_kafka(settings)
    worker.credentials(settings)
    worker.Tamed().install()
    replicas = gateway_topics(settings)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_Gateway(settings, tokens, replicas).run())


class _Gateway:
    """The parts of one gateway, and how they are joined."""

    def __init__(self, settings: Settings, tokens: Tokens | None, replicas: int) -> None:
        from midstream.flows.gateway.counts import GatewayCounts

        gateway = settings.gateway
        assert gateway is not None
        self._settings = settings
        self._gateway = gateway
        self._tokens = tokens
        self._replicas = replicas
        self._name = f"{settings.name}-gateway"
        self._counts = GatewayCounts()
        self._rules = Rules(settings.model.task, gateway.future_seconds, gateway.key)
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        written = list(gateway.topics_written().values())
        writer = Writer(kafka_options(settings), self._name, written)
        self._intake = Intake(writer, Memory(gateway.remember_seconds, gateway.remember_keys))

    async def run(self) -> None:
        """Start all, wait for a signal or a failure, and end all in order."""
        from midstream.flows.gateway.web import Site
        from midstream.flows.gateway.worker import Worker

        loop = asyncio.get_running_loop()
        for number in stop_signals():
            loop.add_signal_handler(number, self._stopping.set)
        site = Site(
            self._gateway, self._tokens, self._rules, self._gateway.topic or "", self._intake,
            self._counts,
        )  # fmt: skip
        self._counts.watch(
            lambda: self._intake.waiting,
            lambda: len(self._intake.memory),
            lambda: float(site.ready),
            lambda: len(site.connections),
        )
        app = Worker(self._settings, self._name, self._replicas)
        await site.open()
        log.info("gateway_listens", address=site.address, name=self._settings.name)
        if self._gateway.host not in ("127.0.0.1", "::1", "localhost"):
            log.warning(
                "gateway_without_tls",
                note="tokens go over the network as they are; put a proxy with TLS before it",
            )
        failed: asyncio.Task[Any] | None = None
        if await self._until(self._task(app.start())):
            self._intake.memory.attach(app.table)
            failed = await self._work(site, app)
            async with _limit(_STOP_SECONDS):
                await app.stop()
        await site.close()
        self._counts.summarise()
        if failed is not None:
            reason = failed.exception()
            if isinstance(reason, ExpectedError):
                raise reason
            raise GatewayError(f"the gateway failed: {_said(reason)}")
        log.info("gateway_stopped")

    async def _work(self, site: "Site", app: "Worker") -> "asyncio.Task[Any] | None":
        """Take feedback until a signal, and finish what was taken; return the task that failed."""
        writing = self._task(self._intake.run())
        reader = Reader(
            kafka_options(self._settings), f"{self._name}-raw", self._readers(),
            latest=self._gateway.start == "latest",
        )  # fmt: skip
        tasks = {
            writing, self._task(reader.run()), self._task(_failure(app)),
            self._task(self._summaries()), self._task(self._announce()),
        }  # fmt: skip
        stopping = self._task(self._stopping.wait())
        self._started.set()
        left = {*tasks, stopping}
        failed = None
        while failed is None and not stopping.done():
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            failed = next((task for task in done if task.exception() is not None), None)
        log.info("gateway_stopping")
        self._started.clear()
        await site.close()
        if failed is None:
            # What is not acknowledged until then was not answered with 202.
            async with _limit(self._gateway.ack_seconds):
                await asyncio.wait(
                    {self._task(self._intake.idle()), writing},
                    return_when=asyncio.FIRST_COMPLETED,
                )
        for task in tasks:
            task.cancel()
        async with _limit(_STOP_SECONDS):
            await reader.close()
        return failed

    async def _until(self, task: "asyncio.Task[Any]") -> bool:
        """Wait until the table is read; return False if a signal came first."""
        stopping = self._task(self._stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        stopping.cancel()
        if (error := task.exception()) is not None:
            raise GatewayError(f"the table cannot be read: {_said(error)}")
        return True

    async def _announce(self) -> None:
        """Log that the gateway is ready, once it is."""
        await self._intake.ready.wait()
        log.info(
            "gateway_ready", remembered=len(self._intake.memory),
            raw=",".join(self._gateway.topics_read().values()) or "none",
        )  # fmt: skip

    async def _summaries(self) -> None:
        from midstream.flows.gateway.counts import PERIOD

        while True:
            await asyncio.sleep(PERIOD)
            self._counts.summarise()

    @staticmethod
    def _task(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(work)

    # --- raw topics

    def _readers(self) -> dict[str, Callable[[Raw], Awaitable[None]]]:
        """Return what takes the messages of each topic that is read."""
        readers: dict[str, Callable[[Raw], Awaitable[None]]] = {}
        for name, table in self._gateway.raw.items():
            mapping = Mapping(name, table, self._rules)
            readers[table.topic or name] = self._reader(name, self._feedback(mapping))
        for name, rekeyed in self._gateway.repartition.items():
            readers[rekeyed.topic or name] = self._reader(name, _copy(rekeyed.to, rekeyed.key))
        return readers

    def _reader(
        self, name: str, convert: Callable[[Raw], Message | Fault]
    ) -> Callable[[Raw], Awaitable[None]]:
        async def take(raw: Raw) -> None:
            await self._started.wait()  # and never again once the gateway stops
            await self._intake.room()
            message = convert(raw)
            if isinstance(message, Fault):
                self._reject(name, raw, message)
                return

            def settle(_: int, outcome: Outcome) -> None:
                if outcome.reason:
                    self._reject(name, raw, Fault(outcome.reason))
                    return
                self._counts.item(name, outcome.status)
                raw.done()

            self._intake.offer([message], settle)

        return take

    def _feedback(self, mapping: Mapping) -> Callable[[Raw], Message | Fault]:
        topic = self._gateway.topic or ""

        def convert(raw: Raw) -> Message | Fault:
            item = mapping.apply(raw.value, raw.timestamp)
            if not isinstance(item, Item):
                return item
            mark = item.idempotency + item.content
            return Message(topic, item.key, item.value, mark, _place(raw))

        return convert

    def _reject(self, name: str, raw: Raw, fault: Fault) -> None:
        """Send a message to the rejected topic, if there is one; count and log it in any case."""
        self._counts.rejected(name, raw.origin, fault.reason, fault.path)
        if self._gateway.rejected is None:
            raw.done()
            return
        text = (raw.value or b"").decode(errors="replace")[:_RAW]
        record = Rejected(raw.origin, fault.reason, fault.path, text, raw.timestamp)
        whole = _identity(raw, "rejected")
        message = Message(
            self._gateway.rejected, raw.key, encode_rejected([record]).rstrip(b"\n"),
            whole + whole[:8], _place(raw),
        )  # fmt: skip
        self._intake.offer([message], lambda *_: raw.done())


def _copy(to: str, field: str) -> Callable[[Raw], Message | Fault]:
    def convert(raw: Raw) -> Message | Fault:
        key = key_in(raw.value, field)
        if isinstance(key, Fault):
            return key
        whole = _identity(raw, to)
        return Message(to, key, raw.value or b"", whole + whole[:8], _place(raw))

    return convert


def _identity(raw: Raw, purpose: str) -> bytes:
    """Return what tells a message from all others, also where its topic was made anew."""
    return digest(purpose, *raw.origin, raw.timestamp, raw.value)


def _place(raw: Raw) -> str:
    return "/".join(map(str, raw.origin))


@asynccontextmanager
async def _limit(seconds: float) -> AsyncIterator[None]:
    """Go on after so many seconds, whatever is not done then."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        log.warning("gateway_stops_undone", seconds=seconds)


async def _failure(app: Any) -> None:
    """Raise what ends the Faust app, if it ends by itself."""
    reason = await app.failed()
    raise GatewayError(f"the table failed: {_said(reason)}")


def _said(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"
