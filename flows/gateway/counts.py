"""What the gateway counts, for Prometheus and for its log."""

from collections import Counter as Counts
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from midstream.flows.logs import log

__all__ = ["CONTENT_TYPE_LATEST", "PERIOD", "GatewayCounts"]

_PREFIX = "midstream_gateway"
_EACH = 20  # rejected messages that are logged one by one, within a period
PERIOD = 10.0
"""Seconds between two summaries in the log."""


class GatewayCounts:
    """The counts of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace=_PREFIX, registry=self.registry)
        gauge = partial(Gauge, namespace=_PREFIX, registry=self.registry)
        self._items = counter(
            "items", "Items by where they came from, and what became of them.",
            ["origin", "outcome"],
        )  # fmt: skip
        self._requests = counter("requests", "Requests that send feedback, by status.", ["status"])
        self._refused = counter("refused", "Requests that were refused, by why.", ["code"])
        self.ack_seconds = Histogram(
            "ack_seconds", "Time from a whole request to its acknowledgement by the brokers.",
            namespace=_PREFIX, registry=self.registry,
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )  # fmt: skip
        self._waiting = gauge("waiting", "Messages that wait for an acknowledgement.")
        self._keys = gauge("remembered_keys", "Idempotency keys that are remembered.")
        self._ready = gauge("ready", "1 if feedback is taken, 0 if not.")
        self._connections = gauge("connections", "Connections that are open.")
        self._since: Counts[str] = Counts()
        self._named = 0

    def watch(
        self,
        waiting: Callable[[], float],
        keys: Callable[[], float],
        ready: Callable[[], float],
        connections: Callable[[], float],
    ) -> None:
        """Take the gauges from these."""
        self._waiting.set_function(waiting)
        self._keys.set_function(keys)
        self._ready.set_function(ready)
        self._connections.set_function(connections)

    def item(self, origin: str, outcome: str, number: int = 1) -> None:
        """Count items: accepted, duplicate, conflict, rejected, or refused by the brokers."""
        self._items.labels(origin, outcome).inc(number)
        self._since[outcome] += number

    def request(self, status: int, code: str = "") -> None:
        """Count a request, and why it was refused."""
        self._requests.labels(str(status)).inc()
        self._since["requests"] += 1
        if code:
            self.refused(code)

    def refused(self, code: str) -> None:
        """Count what was refused before it was a request."""
        self._refused.labels(code).inc()
        self._since[f"refused_{code}"] += 1

    def rejected(self, name: str, origin: tuple[str, int, int], reason: str, path: str) -> None:
        """Count and log a message of a raw topic that is no feedback; many only by number."""
        self.item(name, "rejected")
        self._named += 1
        if self._named <= _EACH:
            topic, partition, offset = origin
            log.warning(
                "raw_rejected", topic=topic, partition=partition, offset=offset, reason=reason,
                path=path,
            )  # fmt: skip

    def summarise(self) -> None:
        """Log what was counted since the last time, if anything was."""
        if self._named > _EACH:
            log.warning("raws_rejected", number=self._named, within_seconds=PERIOD)
        self._named = 0
        if self._since:
            log.info("gateway_progress", **dict(sorted(self._since.items())))
            self._since.clear()

    def exposition(self) -> bytes:
        """Return all in Prometheus' text format."""
        return generate_latest(self.registry)
