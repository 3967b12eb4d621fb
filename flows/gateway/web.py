"""The HTTP side of the gateway."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import web

from midstream.engine.basics.errors import ExpectedError
from midstream.flows.config.gateway import Gateway
from midstream.flows.gateway.counts import CONTENT_TYPE_LATEST, GatewayCounts
from midstream.flows.gateway.description import describe
from midstream.flows.gateway.intake import ACCEPTED, CONFLICT, DUPLICATE, Intake, Outcome
from midstream.flows.gateway.tokens import Allowance, Tokens
from midstream.flows.gateway.validation import LONGEST_KEY, Fault, Item, Rules
from midstream.flows.gateway.writer import Message

__all__ = ["ListenError", "Site"]

_FEEDBACK = "/v1/feedback"
_KEY = re.compile(r"[!-~]+\Z")
_SECRET = re.compile(r"token|auth|key|secret|password|bearer", re.IGNORECASE)
_STATUSES = ("accepted", "duplicate", "conflict", "rejected", "refused")
_LINGER = 1.0  # seconds to read on after a refusal, so that the client gets to read it
_SOON = 5  # seconds after which a client may try again
_GRACE = 0.2  # seconds that an answer may take more than a request's own limit, while it ends


class ListenError(ExpectedError, RuntimeError):
    """The gateway cannot listen at its address."""


class _Refusal(Exception):  # noqa: N818 an answer, not a failure
    """A request that is refused, and how; `close` ends the connection."""

    def __init__(
        self, status: int, code: str, message: str, *, close: bool = False, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.close = status, code, close
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Cut(Exception):  # noqa: N818
    """The client is gone before its request was whole."""


class Site:
    """Serves HTTP for one gateway.

    Parameters
    ----------
    settings
        The gateway's settings.
    tokens
        Who may send; None: nobody (`http = false`).
    rules
        What feedback is.
    topic
        Where feedback goes.
    intake
        Takes what is valid.
    counts
        Counts everything.
    """

    def __init__(
        self,
        settings: Gateway,
        tokens: Tokens | None,
        rules: Rules,
        topic: str,
        intake: Intake,
        counts: GatewayCounts,
    ) -> None:
        self.stopping = False
        self.address = ""
        self.connections: dict[Any, _Guarded] = {}
        self._settings = settings
        self._tokens = tokens
        self._rules = rules
        self._topic = topic
        self._intake = intake
        self._counts = counts
        names = tokens.names if tokens is not None else []
        self._allowed = {name: Allowance(settings.rate, settings.max_items) for name in names}
        app = web.Application(middlewares=[self._answer])
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._readiness)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/openapi.json", self._description)
        if settings.http:
            app.router.add_post(_FEEDBACK, self._feedback)
        self._runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, lingering_time=_LINGER,
            keepalive_timeout=75.0, shutdown_timeout=settings.ack_seconds + _GRACE,
        )  # fmt: skip
        self._server: asyncio.Server | None = None

    @property
    def ready(self) -> bool:
        """Whether feedback is taken."""
        return self._intake.ready.is_set() and not self.stopping

    async def open(self) -> None:
        """Listen.

        Raises
        ------
        ListenError
            If the address cannot be listened at.
        """
        await self._runner.setup()
        settings = self._settings
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connection, settings.host, settings.port, backlog=1024
            )
        except OSError as error:
            await self._runner.cleanup()
            where = f"{settings.host}:{settings.port}"
            raise ListenError(
                f"gateway: cannot listen at {where}: {error.strerror or error} "
                "(gateway.host, gateway.port)"
            ) from None
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def close(self) -> None:
        """Listen no more; finish the requests that have begun."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return _Guarded(self._runner.server(), self, self._settings)

    def refused(self, code: str) -> None:
        """Count a connection that was closed before it had a request."""
        self._counts.refused(code)

    # --- answers

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Turn refusals into answers, and count the requests that send feedback."""
        if (guard := self.connections.get(request.transport)) is not None:
            guard.began()
        code = ""
        response: web.StreamResponse
        try:
            response = await handler(request)
        except _Refusal as refusal:
            code = refusal.code
            response = _json(
                refusal.status, {"code": code, "message": str(refusal)}, refusal.headers
            )
            if refusal.close:
                response.force_close()
        except _Cut:
            code = "cut"
            response = _json(400, {"code": code, "message": "the body is cut"})
            response.force_close()
        except web.HTTPException as error:
            code = "method" if error.status == 405 else "not_found"
            message = "there is no such resource; /openapi.json describes what there is"
            if error.status == 405:
                message = f"allowed: {error.headers.get('Allow', '')}"
            elif error.status != 404:
                code, message = "refused", error.reason
            headers = {k: v for k, v in error.headers.items() if k == "Allow"}
            response = _json(error.status, {"code": code, "message": message}, headers)
        if request.path == _FEEDBACK:
            self._counts.request(response.status, code)
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        if self.ready:
            return web.Response(text="ready\n")
        why = "stopping" if self.stopping else "the brokers do not answer, or this is the start"
        return web.Response(status=503, text=f"not ready: {why}\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._counts.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _description(self, _: web.Request) -> web.Response:
        return _json(200, describe(self._settings, self._rules, time.time()))

    # --- feedback

    async def _feedback(self, request: web.Request) -> web.Response:
        if request.query_string:
            named = [name for name in request.query if _SECRET.search(name)]
            raise _Refusal(
                400, "query",
                "a token belongs into the Authorization header, never into a URL, which is "
                "logged on its way: replace this token" if named
                else "there are no parameters in the URL",
                close=True,
            )  # fmt: skip
        sender = self._sender(request)
        if not self.ready:
            raise self._away()
        key = self._check_headers(request)
        body = await self._body(request)
        begun = time.perf_counter()
        try:
            sent = self._decoded(body)
            number = len(sent) if isinstance(sent, list) else 1
        except _Refusal:
            self._charge(sender, 1)
            raise
        self._charge(sender, number)
        outcomes, ids = await self._take(sent, sender, key)
        self._counts.ack_seconds.observe(time.perf_counter() - begun)
        return _outcomes(outcomes, ids)

    def _sender(self, request: web.Request) -> str:
        """Return the name of the token."""
        given = request.headers.getall("Authorization", [])
        assert self._tokens is not None
        sender = self._tokens.owner(given[0]) if len(given) == 1 else None
        if sender is None:
            raise _Refusal(
                401, "unauthorized",
                "needed: the header 'Authorization: Bearer TOKEN', with a token of the gateway",
                close=True, WWW_Authenticate='Bearer realm="midstream"',
            )  # fmt: skip
        return sender

    def _away(self) -> _Refusal:
        why = "the gateway stops" if self.stopping else "the brokers do not answer"
        return _Refusal(
            503, "unavailable", f"{why}; send it again, unchanged", close=True,
            Retry_After=str(_SOON),
        )  # fmt: skip

    def _check_headers(self, request: web.Request) -> str | None:
        """Check the type of the body; return the idempotency key of the request."""
        charset = (request.charset or "utf-8").lower().replace("_", "-")
        if request.content_type != "application/json" or charset not in ("utf-8", "utf8"):
            raise _Refusal(
                415, "content_type", "needed: Content-Type: application/json, in UTF-8", close=True
            )
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Refusal(
                415, "content_encoding", "needed: a body that is not compressed", close=True
            )
        length = request.content_length
        if length is not None and length > self._settings.max_bytes:
            raise self._too_large()
        keys = request.headers.getall("Idempotency-Key", [])
        if not keys:
            return None
        longest = LONGEST_KEY - 10
        if len(keys) > 1 or not _KEY.match(keys[0]) or len(keys[0]) > longest:
            raise _Refusal(
                400, "idempotency_key",
                f"needed: one Idempotency-Key of 1 to {longest} visible ASCII characters",
                close=True,
            )  # fmt: skip
        return keys[0]

    async def _body(self, request: web.Request) -> bytes:
        """Return the body, as far as it is neither too large nor too slow."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                async for part in request.content.iter_any():
                    size += len(part)
                    if size > self._settings.max_bytes:
                        raise self._too_large()
                    parts.append(part)
        except TimeoutError:
            raise _Refusal(
                408, "slow",
                f"the body took longer than {self._settings.body_seconds:g} s", close=True,
            ) from None  # fmt: skip
        except (OSError, web.RequestPayloadError):
            raise _Cut from None
        return b"".join(parts)

    def _too_large(self) -> _Refusal:
        most = self._settings.max_bytes
        return _Refusal(
            413, "too_large", f"the body is larger than {most} bytes (gateway.max_bytes)",
            close=True,
        )  # fmt: skip

    def _decoded(self, body: bytes) -> Any:
        """Return what the body holds."""
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise _Refusal(400, "encoding", f"not UTF-8 at byte {error.start}") from None
        try:
            sent = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise _Refusal(400, "json", f"no JSON: {error}") from None
        except RecursionError:
            raise _Refusal(400, "json", "the JSON is nested too deeply") from None
        if not isinstance(sent, list | dict):
            raise _Refusal(400, "no_object", "needed: a JSON object, or a list of objects")
        if isinstance(sent, list):
            if not sent:
                raise _Refusal(400, "empty", "the list is empty")
            if len(sent) > (most := self._settings.max_items):
                raise _Refusal(
                    400, "too_many",
                    f"{len(sent)} items; allowed: {most} in a request (gateway.max_items)",
                )  # fmt: skip
        return sent

    def _charge(self, sender: str, number: int) -> None:
        if wait := self._allowed[sender].take(number):
            raise _Refusal(
                429, "rate", f"more than {self._settings.rate:g} items a second (gateway.rate)",
                Retry_After=str(wait),
            )  # fmt: skip

    async def _take(
        self, sent: Any, sender: str, key: str | None
    ) -> tuple[list[Outcome | Fault], list[str | None]]:
        """Write what is valid; return the outcome and the id of each item, in order."""
        many = isinstance(sent, list)
        items = [
            self._rules.apply(
                raw, scope=f"token {sender}", source=sender,
                idempotency_key=f"{key}/{index}" if many and key is not None else key,
            )
            for index, raw in enumerate(sent if many else [sent])
        ]  # fmt: skip
        outcomes: list[Outcome | Fault | None] = [
            item if isinstance(item, Fault) else None for item in items
        ]
        valid = [index for index, item in enumerate(items) if isinstance(item, Item)]
        if valid:
            if not self._intake.has_room:
                raise self._away()
            await self._written(items, valid, outcomes)
        for outcome in outcomes:
            assert outcome is not None
            status = "rejected" if isinstance(outcome, Fault) else outcome.status
            self._counts.item("http", status)
        found = [outcome for outcome in outcomes if outcome is not None]
        return found, [item.id if isinstance(item, Item) else None for item in items]

    async def _written(
        self, items: list[Item | Fault], valid: list[int], outcomes: list[Outcome | Fault | None]
    ) -> None:
        """Offer the valid items, and wait until each has its outcome."""
        left = len(valid)
        done = asyncio.get_running_loop().create_future()

        def settle(number: int, outcome: Outcome) -> None:
            nonlocal left
            outcomes[valid[number]] = outcome
            left -= 1
            if not left and not done.done():
                done.set_result(None)

        self._intake.offer([_message(self._topic, items[index]) for index in valid], settle)
        try:
            async with asyncio.timeout(self._settings.ack_seconds):
                await done
        except TimeoutError:
            raise self._away() from None


class _Guarded(asyncio.Protocol):
    """A connection: closed if there are too many, or if its first request does not come."""

    def __init__(self, inner: asyncio.Protocol, site: Site, settings: Gateway) -> None:
        self._inner = inner
        self._site = site
        self._settings = settings
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or close it."""
        self._transport = transport
        self._inner.connection_made(transport)
        if len(self._site.connections) >= self._settings.max_connections:
            self._site.refused("connections")
            transport.close()
            return
        self._site.connections[transport] = self
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._settings.body_seconds, self._late)

    def began(self) -> None:
        """Note that a request has begun."""
        if self._timer is not None:
            self._timer.cancel()

    def _late(self) -> None:
        self._site.refused("slow_head")
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on."""
        self.began()
        with suppress(KeyError):
            del self._site.connections[self._transport]
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._inner.resume_writing()


def _message(topic: str, item: Item | Fault) -> Message:
    assert isinstance(item, Item)
    return Message(topic, item.key, item.value, item.idempotency + item.content)


def _json(status: int, value: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), headers=headers,
        content_type="application/json",
    )  # fmt: skip


def _outcomes(outcomes: list[Outcome | Fault], ids: list[str | None]) -> web.Response:
    """Return the answer to a request whose items have outcomes."""
    counts = dict.fromkeys(_STATUSES, 0)
    results = []
    for outcome, name in zip(outcomes, ids, strict=True):
        result: dict[str, Any] = {} if name is None else {"id": name}
        if isinstance(outcome, Fault):
            result |= {"status": "rejected", "reason": outcome.reason}
            if outcome.path:
                result["path"] = outcome.path
        else:
            result["status"] = outcome.status
            if outcome.reason:
                result["reason"] = outcome.reason
        counts[result["status"]] += 1
        results.append(result)
    taken = sum(outcome in (ACCEPTED, DUPLICATE) for outcome in outcomes)
    status = 207
    if taken == len(outcomes):
        status = 202
    elif not taken:
        status = 409 if all(outcome == CONFLICT for outcome in outcomes) else 422
    return _json(status, {**counts, "results": results})
