"""Gateways for tests: one in this process that writes to a list, and one as a process."""

import asyncio
import http.client
import json
import re
import socket
import threading
from contextlib import contextmanager
from typing import Any

from project import Project, wait_for

from midstream.flows.config.gateway import Gateway
from midstream.flows.gateway.counts import GatewayCounts
from midstream.flows.gateway.intake import Intake
from midstream.flows.gateway.memory import Memory
from midstream.flows.gateway.tokens import Tokens
from midstream.flows.gateway.validation import Rules
from midstream.flows.gateway.web import Site
from midstream.flows.gateway.writer import Written

TOKEN = "0123456789abcdef-shop"  # noqa: S105 for tests
OTHER = "fedcba9876543210-bank"
VARIABLE = "MIDSTREAM_GATEWAY_TOKENS"
TOKENS = f"shop:{TOKEN},bank:{OTHER}"


class ListWriter:
    """A writer to a list; `errors` are raised one after the other, at `write` or `still_ours`.

    An error with `after = True` is raised once the messages are written.
    """

    def __init__(self):
        self.messages = []
        self.groups = []
        self.errors = []
        self.opened = 0
        self.gate = threading.Event()
        self.gate.set()

    def open(self, seconds):
        self.opened += 1
        self.gate.wait()

    def fault(self, message):
        return "too large" if len(message.value) > 10_000 else ""

    def write(self, messages, seconds):
        self.gate.wait()
        error = self.errors.pop(0) if self.errors else None
        if error is None or getattr(error, "after", False):
            self.groups.append(len(messages))
            self.messages += messages
        if error is not None:
            raise error
        return {"list/0": len(self.messages)}

    def still_ours(self, seconds):
        self.gate.wait()

    def tail(self, known, since, seconds):
        begin = known.get("list/0", 0)
        for offset, message in enumerate(self.messages[begin:], begin):
            yield Written("list/0", offset + 1, message.mark)

    @property
    def values(self):
        return [json.loads(message.value) for message in self.messages]


class Answer:
    """An answer: status, headers, and the body, decoded if it is JSON."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        body = response.read()
        kind = response.headers.get("Content-Type", "")
        self.body = json.loads(body) if kind.startswith("application/json") else body.decode()


def ask(address, method, path, body=None, headers=None, token=TOKEN) -> Answer:
    """Send a request to an address, by default with a token and as JSON."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", address).groups()
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    given = {"Content-Type": "application/json"}
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    given |= headers or {}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(body, list | dict):
        body = json.dumps(body)
    try:
        connection.request(method, path, body, given)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def talk(address, *parts: bytes, end: bool = False) -> bytes:
    """Send bytes over a connection, and return all that comes until it is closed."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", address).groups()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        if end:
            return b""
        answer = b""
        while more := connection.recv(65536):
            answer += more
        return answer


class HttpGateway:
    """The HTTP side of a gateway in this process, whose messages go to a list."""

    def __init__(self, task="binary", **settings):
        settings = {"topic": "feedback", "port": 0, **settings}
        self.settings = Gateway(**settings)
        self.rules = Rules(task, self.settings.future_seconds, self.settings.key)
        self.writer = ListWriter()
        self.memory = Memory(self.settings.remember_seconds, self.settings.remember_keys)
        self.counts = GatewayCounts()
        self.site: Any = None
        self.intake: Any = None

    async def _run(self, begun, ended):
        self.intake = Intake(self.writer, self.memory)
        tokens = Tokens(VARIABLE, {VARIABLE: TOKENS})
        self.site = Site(self.settings, tokens, self.rules, "feedback", self.intake, self.counts)
        self.counts.watch(
            lambda: self.intake.waiting,
            self.memory.__len__,
            lambda: float(self.site.ready),
            lambda: len(self.site.connections),
        )
        await self.site.open()
        working = asyncio.create_task(self.intake.run())
        begun.set()
        await ended.wait()
        await self.site.close()
        working.cancel()
        self.intake.close()

    def ask(self, method, path, body=None, headers=None, token=TOKEN) -> Answer:
        return ask(self.site.address, method, path, body, headers, token)

    def send(self, body, headers=None, token=TOKEN) -> Answer:
        return self.ask("POST", "/v1/feedback", body, headers, token)

    def count(self, name, **labels) -> float:
        return self.counts.registry.get_sample_value(f"midstream_gateway_{name}", labels) or 0.0


@contextmanager
def http_gateway(task="binary", **settings):
    """Serve HTTP in a thread of this process."""
    gateway = HttpGateway(task, **settings)
    loop = asyncio.new_event_loop()
    begun, ended = threading.Event(), asyncio.Event()

    def work():
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(gateway._run(begun, ended))

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    wait_for(gateway.intake.ready.is_set, what="ready")
    try:
        yield gateway
    finally:
        gateway.writer.gate.set()
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)


class GatewayProcess:
    """`midstream gateway` as a process, on topics of its own."""

    def __init__(self, kafka, topic, folder, *, partitions=3, config="", task="binary", made=True):
        self.kafka = kafka
        self.name = topic("model")
        self.topic = topic("feedback")
        self.rejected = topic("rejected")
        if made:
            kafka.create_topic(self.topic, partitions=partitions)
            kafka.create_topic(self.rejected)
        text = f"""
[input]
topic = "{topic("events")}"
[gateway]
topic = "{self.topic}"
rejected = "{self.rejected}"
port = 0
{config}
[kafka]
"bootstrap.servers" = "{kafka.bootstrap}"
"""
        self.project = Project(folder, config=text, task=task)
        whole = f'name = "{self.name}"\n' + self.project.config.read_text()
        self.project.config.write_text(whole)
        self.log = folder / "log"
        self.process: Any = None
        self.address = ""

    def start(self, until="event=gateway_ready"):
        """Start it, and wait until it has logged something."""
        self.log.touch()
        begun = self.log.stat().st_size
        with self.log.open("a") as file:
            self.process = self.project.start("gateway", "config.toml", stdout=file, stderr=file)

        def told():
            said = self.log.read_text()[begun:]
            assert until in said or self.process.poll() is None, said
            return until in said

        wait_for(told, what=until)
        said = self.log.read_text()[begun:]
        self.address = re.search(r"event=gateway_listens address=(\S+)", said)[1]
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        return self.process.wait()

    def send(self, body, headers=None, token=TOKEN) -> Answer:
        return ask(self.address, "POST", "/v1/feedback", body, headers, token)

    def get(self, path) -> Answer:
        return ask(self.address, "GET", path, token=None)

    def feedback(self):
        """Return what is in the feedback topic."""
        return [json.loads(message.value) for message in self.kafka.read_all(self.topic)]
