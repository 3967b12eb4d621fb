"""The gateway on a real broker: topics in, feedback out, kills, takeovers, outages."""

import http.client
import json
import random
import threading
import time
from collections import Counter

import pytest
from gateways import TOKEN, TOKENS, VARIABLE, GatewayProcess, ask
from kafka_broker import SASL_PASSWORD, SASL_USER, free_ports
from kafka_topics import Topics
from project import PATIENCE, wait_for

RAW = """
[gateway.raw.chargebacks]
topic = "%s"
id = "payment.ref"
y = "kind"
values = { chargeback = true, paid = false }
ts = "at"
key = "payment.user"
[gateway.raw.calls]
topic = "%s"
id = "id"
y = "fraud"
source_field = "agent"
"""


@pytest.fixture
def gateway(kafka, topic, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKENS)
    return lambda kafka=kafka, **options: GatewayProcess(
        kafka, topic, tmp_path / "gateway", **options
    )


def sent(message):
    return json.dumps(message).encode()


@pytest.mark.slow
def test_feedback_over_http_is_in_the_topic(gateway, kafka):
    """Keyed by id as `midstream send` would, once, also after a restart; the end is in order."""
    one = gateway().start()
    items = [{"id": f"e{n}", "y": n % 2, "ts": n} for n in range(500)]
    assert one.send(items).status == 202
    assert one.send(items[:3]).body["duplicate"] == 3
    assert one.stop() == 0
    one.start()
    assert one.send(items).body["duplicate"] == 500
    assert one.send({"id": "e0", "y": 1, "ts": 0}).body["accepted"] == 1, "a correction"
    assert one.get("/readyz").status == 200
    assert "items_total" in one.get("/metrics").body
    assert one.stop() == 0
    messages = kafka.read_all(one.topic)
    assert len(messages) == 501
    assert {m.key.decode() for m in messages} == {f"e{n}" for n in range(500)}
    assert {m.partition for m in messages} == {0, 1, 2}
    control = one.topic + "-control"
    kafka.create_topic(control, partitions=3)
    events = one.project.write([{"id": f"e{n}", "x": {}} for n in range(500)])
    done = one.project.call("send", str(events), "--config", "config.toml", "--topic", control,
                            "--key", "id")  # fmt: skip
    assert done.returncode == 0, done.stderr
    placed = {m.key: m.partition for m in kafka.read_all(control)}
    assert all(placed[m.key] == m.partition for m in messages), "co-partitioned with the events"
    lines = one.log.read_text().splitlines()
    assert all(line.startswith("time=") for line in lines), lines
    assert not any("Traceback" in line or TOKEN in line for line in lines)


@pytest.mark.slow
def test_raw_topics_become_feedback(gateway, kafka, topic):
    """By each topic's own mapping; what is no feedback is in `rejected`, with its place; once."""
    raw, calls = topic("raw"), topic("calls")
    kafka.create_topic(raw, partitions=2)
    kafka.create_topic(calls)
    good = [
        (None, sent({"payment": {"ref": n, "user": f"u{n % 5}"}, "kind": "paid", "at": n}), n % 2)
        for n in range(100)
    ]
    bad = [(b"k", b"{", 0), (None, None, 1), (None, sent({"payment": {}, "kind": "paid"}), 0)]
    kafka.produce(raw, [*good[:50], *bad, *good[50:], *good[:20]])
    kafka.produce(raw, [(None, sent({"payment": {"ref": "x", "user": "u"}, "kind": "paid"}), 0)],
                  transactional_id=topic("t"), abort=True)  # fmt: skip
    kafka.produce(calls, [(None, sent({"id": "c", "fraud": True, "agent": "amy"}), 0)])
    one = gateway(config=RAW % (raw, calls)).start()
    wait_for(lambda: len(one.feedback()) >= 101, pause=0.2)
    wait_for(lambda: len(kafka.read_all(one.rejected)) >= 3, pause=0.2)
    assert one.stop() == 0
    assert sum(kafka.committed(f"{one.name}-gateway-raw", raw).values()) >= 123
    one.start()
    kafka.produce(raw, [(None, sent({"payment": {"ref": "z", "user": "u"}, "kind": "paid"}), 0)])
    wait_for(lambda: len(one.feedback()) >= 102, pause=0.2)
    one.kill()
    found = {value["id"]: value for value in one.feedback()}
    assert len(one.feedback()) == len(found) == 102
    assert found["7"] == {"id": "7", "y": False, "ts": 7.0, "source": "chargebacks"}
    assert found["c"]["source"] == "amy"
    assert abs(found["c"]["ts"] - time.time()) < 1e5, "the message's time"
    assert {m.key for m in kafka.read_all(one.topic)} == {f"u{n}".encode() for n in range(5)} | {
        b"u", b"c",
    }  # fmt: skip
    rejected = [json.loads(m.value) for m in kafka.read_all(one.rejected)]
    assert {tuple(r["origin"]) for r in rejected} == {(raw, 0, 25), (raw, 1, 25), (raw, 0, 26)}
    assert {r["reason"].partition(":")[0] for r in rejected} == {
        "no JSON", "a tombstone", "id is missing",
    }  # fmt: skip
    assert one.log.read_text().count("event=raw_rejected") == 3


@pytest.mark.slow
def test_events_are_keyed_anew(gateway, kafka, topic):
    """Byte for byte, by the field of the config, once; what has no such field is rejected."""
    raw, to = topic("raw"), topic("keyed")
    kafka.create_topic(raw, partitions=2)
    kafka.create_topic(to, partitions=3)
    events = [(b"x", b'{ "id":"e%d", "x":{"a":%d} }' % (n, n), n % 2) for n in range(200)]
    kafka.produce(raw, [*events, (None, b'{"x": {}}', 0)])
    config = f'http = false\n[gateway.repartition.events]\ntopic = "{raw}"\nto = "{to}"\n'
    one = gateway(config=config).start()
    wait_for(lambda: len(kafka.read_all(to)) >= 120, pause=0.01)
    one.kill()
    one.start()
    wait_for(lambda: len(kafka.read_all(to)) >= 200, pause=0.2)
    wait_for(lambda: len(kafka.read_all(one.rejected)) >= 1, pause=0.2)
    assert one.stop() == 0
    messages = kafka.read_all(to)
    assert Counter(m.value for m in messages) == Counter(value for _, value, _ in events)
    assert all(json.loads(m.value)["id"].encode() == m.key for m in messages)


@pytest.mark.slow
def test_another_raw_topic_is_read_after_a_restart(gateway, kafka, topic):
    """From its start, while the others go on where they were."""
    raw, calls = kafka.create_topic(topic("raw")), kafka.create_topic(topic("calls"))
    one = gateway()
    text = one.project.config.read_text()
    for number, mapping in enumerate([RAW.partition("[gateway.raw.calls]")[0] % raw,
                                      RAW % (raw, calls)], 1):  # fmt: skip
        one.project.config.write_text(text.replace("[kafka]", mapping + "[kafka]"))
        one.start()
        kafka.produce(calls, [(None, sent({"id": f"c{number}", "fraud": True}), 0)])
        kafka.produce(raw, [
            (None, sent({"payment": {"ref": number, "user": "u"}, "kind": "paid"}), 0)
        ])  # fmt: skip
        expected = 1 if number == 1 else 4
        wait_for(lambda n=expected: len(one.feedback()) >= n, pause=0.2)
        assert one.stop() == 0
    assert {value["id"] for value in one.feedback()} == {"1", "2", "c1", "c2"}


def test_missing_topics_are_told(gateway, kafka, topic):
    """One line, with the key of the config and the command that creates the topic."""
    raw = topic("raw")
    one = gateway(made=False, config=RAW % (raw, topic("calls")))

    def told():
        done = one.project.call("gateway", "config.toml")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        return line.removeprefix("midstream: ")

    how = "; `midstream init-topics config.toml` creates it"
    assert told() == f"{raw}: no such topic (gateway.raw.chargebacks){how}"
    kafka.create_topic(raw)
    kafka.create_topic(topic("calls"))
    assert told() == f"{one.topic}: no such topic (gateway.topic){how}"
    made = one.project.call("init-topics", "config.toml", "--partitions", "2", "--json")
    assert json.loads(made.stdout)[one.topic] == "created"
    assert json.loads(made.stdout)[raw] == "was there"
    one.start()
    assert one.send([{"id": "a", "y": True}, {"id": "b", "y": False}]).status == 202
    assert one.stop() == 0
    assert {value["id"] for value in one.feedback()} == {"a", "b"}


def test_errors_of_the_start_are_one_line(gateway, monkeypatch):
    """No gateway in the config, no token, a token that is too short, a config that is wrong."""
    one = gateway(made=False)

    def told(code=2):
        done = one.project.call("gateway", "config.toml")
        assert done.returncode == code, done.stderr
        [line] = done.stderr.splitlines()
        return line

    monkeypatch.setenv(VARIABLE, "shop:short")
    assert "MIDSTREAM_GATEWAY_TOKENS: token 1 (shop): needed: at least 16" in told(2)
    monkeypatch.delenv(VARIABLE)
    assert "the environment variable MIDSTREAM_GATEWAY_TOKENS (gateway.tokens) is not set" in told()
    text = one.project.config.read_text()
    one.project.config.write_text(text.replace("port = 0", "port = 70000"))
    assert "gateway.port: found 70000; allowed: a whole number from 0 to 65535" in told()
    start, _, rest = text.partition("[gateway]")
    one.project.config.write_text(start + rest[rest.index("[kafka]") :])
    assert "gateway: missing; needed: [gateway]" in told()


@pytest.mark.slow
def test_a_second_gateway_shuts_the_first_one_out(gateway, kafka, topic):
    """The first ends with one line, also while it has nothing to do; nothing is there twice."""
    raw = kafka.create_topic(topic("raw"), partitions=2)
    calls = kafka.create_topic(topic("calls"))
    one = gateway(config=RAW % (raw, calls)).start()
    assert one.send({"id": "a", "y": True}).status == 202
    first, address = one.process, one.address
    one.start()
    assert one.send({"id": "a", "y": True}).body["duplicate"] == 1
    assert one.send({"id": "b", "y": True}).status == 202
    assert first.wait(60) == 1
    with pytest.raises(OSError, match="refused"):
        ask(address, "GET", "/healthz")
    kafka.produce(calls, [(None, sent({"id": "c", "fraud": True}), 0)])
    wait_for(lambda: len(one.feedback()) >= 3, pause=0.2)
    assert one.stop() == 0
    assert sorted(value["id"] for value in one.feedback()) == ["a", "b", "c"]
    assert "is running" in one.log.read_text()


@pytest.mark.slow
def test_brokers_that_are_gone_for_a_while(gateway, kafka_own, topic):
    """503 meanwhile and no end; then it goes on, and all that was told as accepted is there."""
    calls = kafka_own.create_topic(topic("calls"))
    one = gateway(config=RAW % (kafka_own.create_topic(topic("raw")), calls)).start()
    accepted = set()
    assert one.send({"id": "a", "y": True}).status == 202
    kafka_own.kill()
    begun = time.monotonic()
    statuses = []
    while time.monotonic() - begun < 8 or 503 not in statuses:
        name = f"b{len(statuses)}"
        statuses.append(one.send({"id": name, "y": True}).status)
        if statuses[-1] == 202:
            accepted.add(name)
        time.sleep(0.2)
    assert one.process.poll() is None
    assert one.get("/healthz").status == 200
    kafka_own.restart()
    wait_for(lambda: one.send({"id": "z", "y": True}).status == 202, pause=0.2)
    kafka_own.produce(calls, [(None, sent({"id": "c", "fraud": True}), 0)])
    wait_for(lambda: "c" in {value["id"] for value in one.feedback()}, pause=0.5)
    assert one.stop() == 0
    ids = Counter(value["id"] for value in one.feedback())
    assert set(ids) >= accepted | {"a", "z", "c"}
    assert max(ids.values()) == 1
    lines = one.log.read_text().splitlines()
    assert all(line.startswith("time=") for line in lines)
    assert len(lines) < 150, "libraries do not flood the log"


@pytest.mark.slow
def test_a_gateway_ends_while_the_brokers_are_away(gateway, kafka_own):
    """SIGTERM: it waits `ack_seconds` for what it has taken, and exits with code 0."""
    one = gateway(config="ack_seconds = 1.0").start()
    assert one.send({"id": "a", "y": True}).status == 202
    kafka_own.kill()
    assert one.send({"id": "b", "y": True}).status == 503
    assert one.stop() == 0
    assert "event=gateway_stopped" in one.log.read_text()


@pytest.mark.slow
def test_topics_that_change_while_they_are_read(gateway, kafka, topic):
    """One is removed, and others are read on; it is made anew, one gets partitions: all is read."""
    raw = kafka.create_topic(topic("raw"))
    calls = kafka.create_topic(topic("calls"))
    one = gateway(config=RAW % (raw, calls)).start()
    kafka.delete_topic(raw)
    kafka.produce(calls, [(None, sent({"id": "c", "fraud": True}), 0)])
    wait_for(lambda: len(one.feedback()) >= 1, pause=0.2)
    assert one.send({"id": "a", "y": True}).status == 202
    kafka.create_topic(raw, partitions=2)
    kafka.produce(raw, [
        (None, sent({"payment": {"ref": n, "user": "u"}, "kind": "paid"}), n) for n in range(2)
    ])  # fmt: skip
    kafka.add_partitions(calls, 3)
    kafka.produce(calls, [(None, sent({"id": f"p{n}", "fraud": True}), n) for n in range(3)])
    wait_for(lambda: len(one.feedback()) >= 7, pause=0.5)
    assert one.stop() == 0
    ids = Counter(value["id"] for value in one.feedback())
    assert ids == Counter(["a", "c", "0", "1", "p0", "p1", "p2"])


@pytest.fixture(scope="module")
def secured(new_kafka):
    with new_kafka(secure=True) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "scram", "tls"])
def test_brokers_that_ask_who_comes(gateway, secured, topic, how):
    """With a password, with SCRAM over TLS, or with a certificate: written and read as ever."""
    calls = secured.create_topic(topic("calls"))
    one = gateway(kafka=secured, config=RAW % (secured.create_topic(topic("raw")), calls))
    made = secured.certificates
    who = {"sasl.username": SASL_USER, "sasl.password": SASL_PASSWORD}
    authority = {"ssl.ca.location": made.authority}
    protocol, more, address = {
        "plain": ("SASL_PLAINTEXT", {"sasl.mechanism": "PLAIN", **who}, secured.sasl_bootstrap),
        "scram": (
            "SASL_SSL", {"sasl.mechanism": "SCRAM-SHA-256", **who, **authority},
            secured.scram_bootstrap,
        ),
        "tls": (
            "SSL",
            {"ssl.certificate.location": made.client, "ssl.key.location": made.client, **authority},
            secured.tls_bootstrap,
        ),
    }[how]  # fmt: skip
    lines = "".join(f'"{key}" = "{value}"\n' for key, value in more.items())
    text = one.project.config.read_text().replace(secured.bootstrap, address)
    one.project.config.write_text(f'{text}"security.protocol" = "{protocol}"\n{lines}')
    one.start()
    assert one.send({"id": "a", "y": True}).status == 202
    secured.produce(calls, [(None, sent({"id": "c", "fraud": True}), 0)])
    wait_for(lambda: len(one.feedback()) >= 2, pause=0.2)
    assert one.stop() == 0
    assert SASL_PASSWORD not in one.log.read_text()


class Sender(threading.Thread):
    """Sends items one after the other, and each again until it is told as taken."""

    def __init__(self, gateway, number, items, over, rng):
        super().__init__()
        self.gateway, self.number, self.items, self.over, self.rng = (
            gateway, number, items, over, rng,
        )  # fmt: skip
        self.acknowledged = []
        self.tries = 0

    def run(self):
        for n in range(self.items):
            body = {"id": f"s{self.number}-{n}", "y": bool(n % 2), "ts": n}
            while not self.over.is_set():
                self.tries += 1
                try:
                    answer = self.gateway.send(body)
                except OSError:
                    time.sleep(self.rng.uniform(0.05, 0.2))
                    continue
                except http.client.HTTPException:  # cut while it answered
                    continue
                if answer.status == 202:
                    self.acknowledged.append(body["id"])
                    break
                assert answer.status in (429, 503), answer.body
                time.sleep(self.rng.uniform(0.05, 0.2))


@pytest.mark.slow
@pytest.mark.parametrize(("items", "kills", "brokers"), [(20, 10, 0), (8, 6, 3)])
def test_200_senders_and_kills(gateway, kafka_own, items, kills, brokers, topic, tmp_path):
    """Each that was told as accepted is in the topic, and each id once, over many SIGKILLs.

    A run joins each to its event, once.

    Of the gateway only, or of the broker, too.
    """
    rng = random.Random(15)
    senders = 200
    one = gateway(config="rate = 1e6")
    [port] = free_ports(1)  # all lives listen at one, so that senders find the next one
    text = one.project.config.read_text()
    one.project.config.write_text(text.replace("port = 0", f"port = {port}"))
    one.start()
    over = threading.Event()
    crowd = [Sender(one, n, items, over, random.Random(n)) for n in range(senders)]
    for sender in crowd:
        sender.start()
    try:
        total = senders * items
        for kill in range(kills):
            until = total * (kill + rng.random()) / (kills + 1)
            wait_for(lambda u=until: sum(len(s.acknowledged) for s in crowd) >= u, pause=0.005)
            if kill < 2 * brokers and kill % 2:
                kafka_own.restart()  # killed, and started again
            else:
                one.kill()
                one.start()
        for sender in crowd:
            sender.join(PATIENCE)
    finally:
        over.set()
    acknowledged = [name for sender in crowd for name in sender.acknowledged]
    assert len(acknowledged) == total
    ids = Counter(value["id"] for value in one.feedback())
    assert set(ids) == set(acknowledged)
    repeated = {name: number for name, number in ids.items() if number > 1}
    assert not repeated, f"{len(repeated)} of {total} are there more than once"
    tries = sum(sender.tries for sender in crowd)
    assert tries > total, "no send was repeated: the kills hit nothing"
    assert one.stop() == 0
    config = f'shards = 1\n---\n[feedback]\ntopic = "{one.topic}"\n'
    run = Topics(
        kafka_own, lambda n: topic(f"run.{n}"), tmp_path / "run", partitions=1, config=config
    )
    events = [
        {"id": name, "x": {"f0": float(i % 7)}, "ts": 0.0} for i, name in enumerate(acknowledged)
    ]
    run.produce(events, partitions=1)
    summary = run.project.run()
    assert (summary["seen"], summary["learned"]) == (total, total)
    assert summary["metrics"]["feedback.joined"] == total
    run.published_once(events)


@pytest.mark.slow
def test_raw_messages_are_feedback_once_over_kills(gateway, kafka, topic):
    """Offsets are committed after the feedback; a message that is read again is recognised."""
    rng = random.Random(4)
    raw, calls = topic("raw"), topic("calls")
    kafka.create_topic(raw)
    kafka.create_topic(calls, partitions=4)
    total = 20_000
    one = gateway(config=RAW % (raw, calls)).start()
    feeding = threading.Thread(
        target=kafka.produce,
        args=[calls, [(None, sent({"id": f"c{n}", "fraud": True}), n % 4) for n in range(total)]],
    )
    feeding.start()
    for kill in range(6):
        until = total * (kill + rng.random()) / 7
        wait_for(lambda u=until: sum(kafka.ends(one.topic).values()) >= u, pause=0.01)
        one.kill()
        one.start()
    feeding.join()
    wait_for(lambda: len(one.feedback()) >= total, pause=0.5)
    assert one.stop() == 0
    ids = Counter(value["id"] for value in one.feedback())
    assert len(ids) == total
    assert max(ids.values()) == 1
