"""The HTTP side: each bad request has its answer, and nothing of it is applied."""

import asyncio
import gzip
import json
import socket
import threading
import time

import pytest
from gateways import OTHER, TOKEN, VARIABLE, ask, http_gateway, talk
from project import wait_for

from midstream.flows.config.gateway import Gateway
from midstream.flows.gateway.counts import GatewayCounts
from midstream.flows.gateway.tokens import Tokens
from midstream.flows.gateway.validation import Rules
from midstream.flows.gateway.web import ListenError, Site
from midstream.flows.gateway.writer import UnwrittenError

ITEM = {"id": "a", "y": True}


@pytest.fixture(scope="module")
def site():
    with http_gateway(max_items=100, max_bytes=20_000, body_seconds=60) as gateway:
        yield gateway


@pytest.fixture
def nothing(site):
    """Check that a test's requests wrote nothing."""
    before = len(site.writer.messages)
    yield
    assert len(site.writer.messages) == before


def head(length, *more, token=TOKEN):
    lines = ["POST /v1/feedback HTTP/1.1", "Host: gateway", f"Authorization: Bearer {token}"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_one_object_or_a_list(site):
    """202 once it is written, with the outcome of each item in order."""
    answer = site.send({"id": "one", "y": 1, "ts": 5, "source": "crm"})
    assert answer.status == 202
    assert answer.body == {
        "accepted": 1, "duplicate": 0, "conflict": 0, "rejected": 0, "refused": 0,
        "results": [{"id": "one", "status": "accepted"}],
    }  # fmt: skip
    assert site.writer.values[-1] == {"id": "one", "y": True, "ts": 5.0, "source": "crm"}
    answer = site.send([{"id": "two", "y": 0}, {"id": 3, "y": False}])
    assert (answer.status, answer.body["accepted"]) == (202, 2)
    assert [value["id"] for value in site.writer.values[-2:]] == ["two", "3"]
    assert site.writer.values[-1]["source"] == "shop", "the token's name"
    assert abs(site.writer.values[-1]["ts"] - time.time()) < 1e5


def test_a_list_that_is_partly_wrong(site):
    """What is right is written, what is wrong is told, by index; 422 if nothing is right."""
    answer = site.send([{"id": "p1", "y": 1}, {"id": "p2"}, 7, {"id": "p1", "y": 1}])
    assert answer.status == 207
    results = answer.body["results"]
    assert [r["status"] for r in results] == ["accepted", "rejected", "rejected", "duplicate"]
    assert results[1] == {"status": "rejected", "reason": "label is missing", "path": "y"}
    assert results[2]["reason"] == "an item must be a JSON object, found a number"
    assert [v["id"] for v in site.writer.values].count("p1") == 1
    answer = site.send([{"id": "p3", "y": 5}, {}])
    assert (answer.status, answer.body["rejected"]) == (422, 2)
    assert site.send({"id": "p4"}).status == 422


def test_a_repeated_send_is_a_duplicate(site):
    """By its digest, by the item's key, or by that of the request; other content is 409."""
    assert site.send({"id": "r", "y": 1}).body["accepted"] == 1
    assert site.send({"id": "r", "y": 1}).body["duplicate"] == 1
    keyed = {"id": "r", "y": 1, "idempotency_key": "k"}
    assert site.send(keyed).body["accepted"] == 1
    assert site.send(keyed).status == 202
    assert site.send({**keyed, "y": 0}).status == 409
    several = [{"id": "s", "y": 1}, {"id": "t", "y": 1, "idempotency_key": "own"}]
    header = {"Idempotency-Key": "batch-1"}
    assert site.send(several, header).body["accepted"] == 2
    assert site.send(several, header).body["duplicate"] == 2
    assert site.send([several[0]], {"Idempotency-Key": "batch-2"}).body["accepted"] == 1
    other = site.send(several, header, token=OTHER)
    assert other.body["accepted"] == 2, "keys are the sender's own"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": None},
        {"Authorization": "Bearer wrong-wrong-wrong-wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer " + "x" * 5_000},
        {"Authorization": None, "Cookie": f"token={TOKEN}"},
    ],
)
@pytest.mark.usefixtures("nothing")
def test_a_wrong_token(site, headers):
    """401, with the scheme that is needed."""
    answer = site.send(ITEM, headers)
    assert (answer.status, answer.body["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.usefixtures("nothing")
def test_two_tokens(site):
    """401: which one counts would be a matter of luck."""
    answer = talk(site.site.address, head(2, f"Authorization: Bearer {TOKEN}"), b"{}")
    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization", "api_key", "x"])
@pytest.mark.usefixtures("nothing")
def test_a_token_in_the_url(site, name, capfd):
    """400, whether or not the header has one, and it is neither repeated nor logged."""
    answer = site.ask("POST", f"/v1/feedback?{name}={OTHER}", ITEM)
    assert (answer.status, answer.body["code"]) == (400, "query")
    assert ("never into a URL" in answer.body["message"]) == (name != "x")
    assert site.ask("POST", f"/v1/feedback?{name}={TOKEN}", ITEM, token=None).status == 400
    captured = capfd.readouterr()
    for text in (json.dumps(answer.body), captured.out, captured.err):
        assert OTHER not in text
        assert TOKEN not in text


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "json"),
        (b"{", {}, 400, "json"),
        (b'{"id": "a", "y": NaN}', {}, 400, "json"),
        (b'{"id": "a", "y": 1e999}', {}, 400, "json"),
        (b'{"id": "\\ud800", "y": 1}', {}, 400, "json"),
        (b"[" * 15_000, {}, 400, "json"),
        (b'{"id": "a", "y": 1} trailing', {}, 400, "json"),
        (b"[]", {}, 400, "empty"),
        (b"7", {}, 400, "no_object"),
        (b'"text"', {}, 400, "no_object"),
        (b"null", {}, 400, "no_object"),
        (b'{"id": "\xff", "y": 1}', {}, 400, "encoding"),
        (json.dumps(ITEM).encode("utf-16"), {}, 400, "encoding"),
        (b"\xef\xbb\xbf{}", {}, 400, "json"),
        (b"{}", {"Content-Type": None}, 415, "content_type"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "content_type"),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "content_type"),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415, "content_type"),
        (gzip.compress(b"{}"), {"Content-Encoding": "gzip"}, 415, "content_encoding"),
        (b"{}", {"Content-Encoding": "br"}, 415, "content_encoding"),
        (b"{}", {"Idempotency-Key": ""}, 400, "idempotency_key"),
        (b"{}", {"Idempotency-Key": "two words"}, 400, "idempotency_key"),
        (b"{}", {"Idempotency-Key": "k" * 300}, 400, "idempotency_key"),
        (b" " * 20_001, {}, 413, "too_large"),
        (b"[%s{}]" % (b"{}," * 100), {}, 400, "too_many"),
    ],
)
@pytest.mark.usefixtures("nothing")
def test_a_bad_request(site, body, headers, status, code):
    """A status and a code for each, and a message that says what is needed."""
    before = site.count("refused_total", code=code)
    answer = site.send(body, headers)
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.body["message"]
    assert site.count("refused_total", code=code) == before + 1


def test_ten_thousand_items():
    """The limits of a gateway as it comes: 1,000 items, 1 MiB."""
    with http_gateway() as gateway:
        many = [{"id": str(n), "y": True} for n in range(10_000)]
        answer = gateway.send(many)
        assert (answer.status, answer.body["code"]) == (400, "too_many")
        assert gateway.writer.messages == []
        assert gateway.send(many[:1_000]).body["accepted"] == 1_000
        assert len(gateway.writer.messages) == 1_000


@pytest.mark.usefixtures("nothing")
def test_a_body_that_is_too_large_without_saying_so(site):
    """In chunks, whose sum is not told beforehand: read up to the limit, then 413."""
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunk = b"3e8\r\n" + b" " * 1_000 + b"\r\n"
    answer = talk(site.site.address, chunked, chunk * 25)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"code":"too_large"' in answer


def test_a_body_of_broken_chunks():
    """400 if it comes at once; behind the head it is as a body that never ends: 408."""
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with http_gateway(body_seconds=0.5) as gateway:
        for parts in ([chunked + b"no chunk\r\n"], [chunked, b"no chunk\r\n"]):
            status = talk(gateway.site.address, *parts).partition(b"\r\n")[0].split()[1]
            assert status in (b"400", b"408")
        assert gateway.writer.messages == []


@pytest.mark.usefixtures("nothing")
def test_a_body_that_lies_about_its_length(site):
    """One that says it is large is refused before it is read."""
    answer = talk(site.site.address, head(10**9))
    assert answer.startswith(b"HTTP/1.1 413")
    answer = talk(site.site.address, head(-5), b"{}")
    assert b" 400 " in answer.partition(b"\r\n")[0]


@pytest.mark.usefixtures("nothing")
def test_a_body_that_is_cut(site):
    """Nothing of a list is applied, though all of the items that came are whole."""
    before = site.count("refused_total", code="cut")
    text = json.dumps([{"id": "cut", "y": True}]).encode()
    talk(site.site.address, head(len(text) + 10), text, end=True)
    wait_for(lambda: site.count("refused_total", code="cut") == before + 1, what="the cut")


def test_slow_requests():
    """408 for a body that does not come, and the connection of a head that does not is closed."""
    with http_gateway(body_seconds=0.2) as gateway:
        answer = talk(gateway.site.address, head(100), b'{"id"')
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"slow"' in answer
        assert talk(gateway.site.address, b"POST /v1/feedback HTTP/1.1\r\n") == b""
        assert gateway.count("refused_total", code="slow_head") == 1
        assert gateway.writer.messages == []


def test_too_many_connections():
    """Those beyond the limit are closed at once; others go on."""
    with http_gateway(max_connections=3) as gateway:
        host, port = gateway.site.address.removeprefix("http://").split(":")
        held = [socket.create_connection((host, int(port))) for _ in range(3)]
        wait_for(lambda: len(gateway.site.connections) == 3)
        with socket.create_connection((host, int(port)), timeout=60) as more:
            assert more.recv(10) == b""
        assert gateway.count("refused_total", code="connections") == 1
        for connection in held:
            connection.close()
        wait_for(lambda: not gateway.site.connections)
        assert gateway.send(ITEM).status == 202


def test_the_rate_of_a_token():
    """429 with the seconds to wait; another token has its own allowance."""
    with http_gateway(rate=1.0, max_items=10) as gateway:
        items = [{"id": str(n), "y": True} for n in range(10)]
        assert gateway.send(items).status == 202
        answer = gateway.send(items)
        assert (answer.status, answer.body["code"]) == (429, "rate")
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
        assert gateway.send(items, token=OTHER).status == 202
        assert gateway.send(b"{", token=OTHER).status == 429, "what is no JSON counts, too"


def test_brokers_that_are_away():
    """503 with Retry-After; the same request later is told as the first, and is there once."""
    with http_gateway(ack_seconds=0.3) as gateway:
        gateway.writer.gate.clear()
        answer = gateway.send(ITEM)
        assert (answer.status, answer.body["code"]) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        gateway.writer.gate.set()
        wait_for(lambda: gateway.writer.messages)
        assert gateway.send(ITEM).body["duplicate"] == 1
        gateway.writer.errors = [UnwrittenError("away")]
        assert gateway.send({"id": "b", "y": True}).status in (202, 503)


def test_what_a_gateway_says_before_it_is_ready():
    """It lives, is not ready, and takes nothing."""
    with http_gateway() as gateway:
        gateway.intake.ready.clear()
        assert gateway.ask("GET", "/healthz", token=None).status == 200
        assert gateway.ask("GET", "/readyz", token=None).status == 503
        assert gateway.send(ITEM).status == 503
        assert gateway.count("ready") == 0


def test_what_has_begun_is_finished_when_the_gateway_ends():
    """A request that waits for the brokers gets its 202, and no other is taken."""
    with http_gateway() as gateway:
        gateway.writer.gate.clear()
        answers = []
        sender = threading.Thread(target=lambda: answers.append(gateway.send(ITEM)))
        sender.start()
        wait_for(lambda: gateway.intake.waiting == 1)
        closing = threading.Thread(target=_close, args=[gateway])
        closing.start()
        wait_for(lambda: gateway.site.stopping)
        with pytest.raises(OSError, match=r"refused|reset"):
            ask(gateway.site.address, "GET", "/healthz")
        gateway.writer.gate.set()
        sender.join()
        closing.join()
        assert answers[0].status == 202


def _close(gateway):
    loop = gateway.site._runner.server._loop
    asyncio.run_coroutine_threadsafe(gateway.site.close(), loop).result(60)


def test_the_other_resources(site):
    """Probes, metrics and the description need no token; other methods and paths are told."""
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert site.ask("GET", path, token=None).status == 200
    assert "midstream_gateway_ready 1.0" in site.ask("GET", "/metrics").body
    answer = site.ask("GET", "/v1/feedback")
    assert (answer.status, answer.body["code"], answer.headers["Allow"]) == (405, "method", "POST")
    answer = site.ask("GET", f"/v2/{TOKEN}")
    assert (answer.status, answer.body["code"]) == (404, "not_found")
    assert TOKEN not in answer.body["message"]


def test_metrics_count_items_and_requests():
    """By outcome and status, for who scrapes them."""
    with http_gateway() as gateway:
        gateway.send([ITEM, ITEM, {}])
        gateway.send(ITEM, token=None)
        assert gateway.count("items_total", origin="http", outcome="accepted") == 1
        assert gateway.count("items_total", origin="http", outcome="duplicate") == 1
        assert gateway.count("items_total", origin="http", outcome="rejected") == 1
        assert gateway.count("requests_total", status="207") == 1
        assert gateway.count("requests_total", status="401") == 1
        assert gateway.count("remembered_keys") == 1
        assert gateway.count("ack_seconds_count") == 1


def test_a_gateway_for_raw_topics_only():
    """With `http = false` it serves probes and metrics, and takes nothing."""
    with http_gateway(http=False) as gateway:
        assert gateway.send(ITEM).status == 404
        assert gateway.ask("GET", "/metrics").status == 200
        assert "/v1/feedback" not in gateway.ask("GET", "/openapi.json").body["paths"]


def test_an_address_that_is_taken():
    """One line, with the keys of the config."""

    async def open_it(port):
        tokens = Tokens(VARIABLE, {VARIABLE: f"shop:{TOKEN}"})
        settings = Gateway(topic="t", port=port)
        site = Site(settings, tokens, Rules("binary", 1.0), "t", None, GatewayCounts())
        with pytest.raises(ListenError, match=r"cannot listen at 127.0.0.1:\d+: .*gateway.port"):
            await site.open()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asyncio.run(open_it(taken.getsockname()[1]))
