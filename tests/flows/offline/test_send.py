"""`midstream send`, on a real broker: what is acknowledged is there, learned as from the file."""

import gzip
import json
import os
import pty
import signal
import subprocess
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from project import PATIENCE, Project, events, stop, wait_for

from midstream.flows.offline import send

CSV = """id;when;user;label;amount;code;flag;note
007;2024-05-01T10:00:00;anna;1;12.50;0042;TRUE;a "b", c
8;1714557600;bert;0;-3;;false;" spaced "
9;1714557650;anna;1;1e3;17;;"two
lines"

10;1714557700.25;;;0.1;00;true;10
11;1714557800;bert;false;5.0;abc;False;nan?
"""
FIELDS = """
[input.fields]
id = "id"
time = "when"
key = "user"
label = "label"
types = { code = "string" }
exclude = ["note"]
"""
ENCODING = """
from river import linear_model, preprocessing

def make():
    return preprocessing.OneHotEncoder() | linear_model.LogisticRegression()
"""


class Sending:
    """A project whose input is a topic, made for it."""

    def __init__(self, kafka, topic, folder, fields="", **options):
        self.kafka = kafka
        self.topic = kafka.create_topic(topic, partitions=options.pop("partitions", 1))
        self.options = options
        self.config = (
            f'[input]\ntopic = "{topic}"\nwait_seconds = 10\n{fields}'
            f'[kafka]\n"bootstrap.servers" = "{kafka.bootstrap}"\n'
        )
        self.project = Project(folder, config=self.config, **options)

    def send(self, *arguments, **options):
        """Send; return the exit code, the report, and what was said to be wrong."""
        done = self.project.call("send", *arguments, "--config", "config.toml", "--json", **options)
        said = [line for line in done.stderr.splitlines() if line.startswith("midstream: ")]
        return done.returncode, json.loads(done.stdout), "".join(said)

    def length(self):
        return sum(self.kafka.ends(self.topic).values())

    def values(self):
        return [message.value for message in self.kafka.read_all(self.topic)]


@pytest.fixture
def sending(kafka, topic, tmp_path):
    """Makes projects to send to."""
    return lambda name="one", **options: Sending(kafka, topic(name), tmp_path / name, **options)


def test_lines_are_sent_as_they_are(sending):
    """Byte for byte, malformed ones too, in order; blank ones are left out and counted."""
    one = sending()
    lines = [b'{"x": {"a": 1.50}, "y":true }', b" {}", b"\xff not JSON", b'{"z":"\xc3\xa9"}']
    text = b"\n".join([lines[0], b"", lines[1] + b"\r", b"  \t", *lines[2:]])
    (one.project.folder / "some.jsonl").write_bytes(text)
    code, report, _ = one.send("some.jsonl")
    assert code == 0
    assert one.values() == lines
    counts = {name: report[name] for name in ("sent", "acknowledged", "failed", "blank")}
    assert counts == {"sent": 4, "acknowledged": 4, "failed": 0, "blank": 2}
    assert report["topic"] == one.topic
    assert "error" not in report


def test_what_was_sent_is_learned(sending):
    """From a plain file, an archive, and standard input, to the topic that is asked for."""
    one = sending()
    lines = [{**event, "ts": 1e9 + i} for i, event in enumerate(events(2_000))]
    path = one.project.write(lines[:1_000])
    code, report, _ = one.send("events.jsonl")
    assert (code, report["acknowledged"]) == (0, 1_000)
    packed = "".join(json.dumps(line) + "\n" for line in lines[1_000:1_500]).encode()
    (one.project.folder / "more.jsonl.gz").write_bytes(gzip.compress(packed))
    assert one.send("more.jsonl.gz")[1]["acknowledged"] == 500
    rest = "".join(json.dumps(line) + "\n" for line in lines[1_500:])
    assert one.send("-", stdin=rest)[1]["acknowledged"] == 500
    learned = one.project.run()
    other = Project(one.project.folder.parent / "file")
    other.write(lines)
    assert learned["digest"] == other.run()["digest"]
    two = sending("two")
    assert one.send("events.jsonl", "--topic", two.topic)[1]["acknowledged"] == 1_000
    assert len(two.values()) == 1_000
    assert path.read_bytes().split(b"\n")[:-1] == two.values()


@pytest.mark.slow
@pytest.mark.parametrize("header", [True, False])
def test_csv_is_learned_as_from_the_file(sending, header):
    """The digest of what was learned is that of a run on the file, whatever cells look like."""
    fields = (
        FIELDS
        if header
        else FIELDS.replace("exclude", "# exclude").replace(
            "key =", 'features = ["amount", "code", "flag"]\nkey ='
        )
    )
    one = sending(fields=fields, model=ENCODING)
    (one.project.folder / "rows.csv").write_text(CSV * 1)
    code, report, error = one.send("rows.csv")
    assert (code, report["acknowledged"], report["blank"]) == (0, 5, 1), error
    got = one.project.run()
    config = f'[input]\npath = "rows.csv"\n{fields}'
    other = Project(one.project.folder.parent / "file", config=config, model=ENCODING)
    (other.folder / "rows.csv").write_text(CSV)
    expected = other.run()
    assert (got["learned"], got["rejected"]) == (expected["learned"], expected["rejected"])
    assert got["learned"] >= 3
    assert got["digest"] == expected["digest"]
    first = json.loads(one.values()[0])
    assert first == {
        "id": "007", "when": "2024-05-01T10:00:00", "user": "anna", "label": 1, "amount": 12.5,
        "code": "0042", "flag": True, "note": 'a "b", c',
    }  # fmt: skip


def test_categories_of_a_schema_keep_their_zeros(sending):
    """What [features] says of a column is obeyed in what is sent."""
    schema = '[input.fields]\nlabel = "label"\n[features]\ncode = "category"\namount = "number"\n'
    one = sending(fields=schema)
    (one.project.folder / "rows.csv").write_text("code,amount,label\n007,1,true\n12,,false\n")
    assert one.send("rows.csv")[0] == 0
    assert list(map(json.loads, one.values())) == [
        {"code": "007", "amount": 1, "label": True},
        {"code": "12", "amount": None, "label": False},
    ]


def test_a_key_always_goes_to_the_same_partition(sending):
    """By a field of the event, also within x, or a column of CSV; the key is in the message."""
    one = sending(partitions=4, fields=FIELDS)
    lines = [{"x": {"user": f"u{i % 7}", "n": i}, "y": True} for i in range(200)]
    one.project.write(lines)
    code, _, error = one.send("events.jsonl", "--key", "x.user")
    assert code == 0, error
    (one.project.folder / "rows.csv").write_text("user,id,when,label,code,note,n\nu1,0,,1,,,5\n")
    assert one.send("rows.csv", "--key", "user")[0] == 0
    places, order = {}, {}
    for message in one.kafka.read_all(one.topic):
        key = message.key.decode()
        places.setdefault(key, set()).add(message.partition)
        value = json.loads(message.value)
        order.setdefault(key, []).append(value["x"]["n"] if "x" in value else 999)
    assert set(places) == {f"u{i}" for i in range(7)}
    assert all(len(partitions) == 1 for partitions in places.values())
    assert len(set.union(*places.values())) > 1
    assert all(numbers == sorted(numbers) for numbers in order.values())


@pytest.mark.parametrize(
    ("name", "text", "key", "line", "reason", "before"),
    [
        ("a.jsonl", '{"k":1}\n\n{"j":2}\n{"k":3}\n', "k", 3, "'k'", 1),
        ("a.jsonl", '{"k":1}\n{"k":\n{"k":3}\n', "k", 2, "not JSON", 1),
        ("a.jsonl", '{"x":{"k":1}}\n{"x":{"k":{}}}\n', "x.k", 2, "an object", 1),
        ("a.jsonl", '{"k":"a"}\n{"k":""}\n', "k", 2, "empty", 1),
        ("a.csv", "id,a,label\n1,2,0\n2,3,1\n,4,1\n", "id", 4, "no key", 2),
        ("a.csv", "id,a,label\n1,2,0\n2,3\n3,4,1\n", None, 3, "expected 3 columns", 1),
        ("a.csv", "id,a,label\n1,2,0\n2,inf,1\n3,x\n", None, 3, "not finite", 1),
        ("a.jsonl", '{"k":1}\n{"k":"' + 2_000 * "a" + '"}\n{"k":1}\n', None, 2, "1,024", 1),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_sent_ends_it(sending, name, text, key, line, reason, before):
    """The error names the line and the reason; what came before it was acknowledged."""
    fields = 'max_record_bytes = 1024\n[input.fields]\nlabel = "label"\nid = "id"\n'
    one = sending(fields=fields)
    (one.project.folder / name).write_text(text)
    code, report, error = one.send(name, *(("--key", key) if key else ()))
    assert code == 1
    assert f"{name}:{line}: " in error
    assert reason in error
    assert f"{before} messages were acknowledged" in error
    assert error == f"midstream: {report['error']}"
    assert (report["acknowledged"], len(one.values())) == (before, before)


def test_a_message_that_the_broker_refuses(sending, topic):
    """It is counted as failed, with the broker's reason; the exit code is 1."""
    one = sending()
    small = one.kafka.create_topic(topic("small"), config={"max.message.bytes": 2_000})
    big = {"x": {"a": os.urandom(4_000).hex()}}
    one.project.write([*events(10), big])
    code, report, error = one.send("events.jsonl", "--topic", small)
    assert code == 1
    assert report["failed"] >= 1
    assert report["acknowledged"] + report["failed"] == report["sent"] == 11
    assert "not delivered" in error
    assert len(one.kafka.read_all(small)) == report["acknowledged"]


@pytest.mark.slow
def test_what_is_not_there_is_named(sending):
    """A topic, a file, a column, a config, brokers: one line, and nothing was sent."""
    one = sending(fields=FIELDS)
    one.project.write(events(3))
    code, _, error = one.send("events.jsonl", "--topic", "nowhere")
    assert code == 1
    assert "nowhere" in error
    assert "midstream init-topics" in error
    assert one.send("gone.jsonl")[2].endswith(
        "gone.jsonl: is no file; needed: one of JSON Lines or CSV, or -"
    )
    (one.project.folder / "rows.csv").write_text("a,label\n1,true\n")
    assert "'b'" in one.send("rows.csv", "--key", "b")[2]
    done = one.project.call("send", "events.jsonl")
    assert done.returncode == 2
    assert "midstream.toml: there is no such file" in done.stderr
    lost = Project(one.project.folder / "lost")
    lost.write(events(3))
    done = lost.call("send", "events.jsonl", "--config", "config.toml")
    assert done.returncode == 2
    assert "bootstrap.servers" in done.stderr
    text = one.project.config.read_text().replace(one.kafka.bootstrap, "127.0.0.1:1")
    one.project.config.write_text(text.replace("wait_seconds = 10", "wait_seconds = 1"))
    code, _, error = one.send("events.jsonl")
    assert code == 1
    assert "no answer within 1 s" in error
    assert one.values() == []


def test_the_rate_is_kept(sending):
    """However slow the machine is, no message comes before it is due."""
    one = sending()
    one.project.write(events(40))
    begun = time.time()
    code, report, _ = one.send("events.jsonl", "--rate", "40")
    assert (code, report["acknowledged"]) == (0, 40)
    times = [message.timestamp / 1_000 for message in one.kafka.read_all(one.topic)]
    assert all(moment - begun >= i / 40 - 0.002 for i, moment in enumerate(times))


@pytest.mark.parametrize(("held_up", "made_up"), [(0.0, 0), (0.5, 20), (60.0, 40)])
def test_messages_are_as_far_apart_as_asked_for(monkeypatch, held_up, made_up):
    """Not in bursts; of what was held up, a second is made up for."""
    now = [100.0]
    monkeypatch.setattr(send, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Sender:
        def poll(self, seconds):
            now[0] += seconds

    pace, times = send._Pace(40.0), []
    for i in range(100):
        if i == 10:
            now[0] += held_up
        pace.wait(Sender(), lambda: False)
        times.append(now[0])
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:9] == pytest.approx([0.025] * 9)
    late = [gap for gap in gaps[10:] if gap < 0.02]
    assert len(late) == pytest.approx(made_up, abs=1)
    assert max(gaps[10:]) == pytest.approx(0.025)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_was_acknowledged_is_told(sending, number):
    """The count is that of what is in the topic; the exit code is 1."""
    one = sending()
    one.project.write(events(100_000))
    process = one.project.start(
        "send", "events.jsonl", "--config", "config.toml", "--rate", "500", "--json"
    )
    wait_for(lambda: one.length() > 50)
    code, out, err = stop(process, number)
    report = json.loads(out)
    assert code == 1
    assert f"stopped by {signal.Signals(number).name}" in err
    assert 50 < report["acknowledged"] == len(one.values()) < 100_000


def test_a_pipe_is_sent_as_it_comes(sending):
    """Lines are in the topic while the pipe is still open; its end is the end."""
    one = sending()
    process = one.project.start(
        "send", "-", "--config", "config.toml", "--json", stdin=subprocess.PIPE
    )
    for i in range(3):
        process.stdin.write(json.dumps({"x": {"a": i}}) + "\n")
        process.stdin.flush()
        wait_for(lambda i=i: one.length() == i + 1)
    process.stdin.write("{}")
    out, _ = process.communicate(timeout=PATIENCE)
    assert json.loads(out)["acknowledged"] == 4
    assert one.values()[-1] == b"{}"


def test_progress_is_drawn_on_a_terminal_only(sending):
    """On standard error; the report on standard output has none of it."""
    one = sending()
    one.project.write(events(500))
    ours, theirs = pty.openpty()
    process = one.project.start(
        "send", "events.jsonl", "--config", "config.toml", "--rate", "500", stderr=theirs
    )
    os.close(theirs)
    shown, end = b"", time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # how a terminal says that the other side is closed
            break
    os.close(ours)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert b"500 acknowledged" in shown
    assert out.startswith("500 messages to ")
    assert "\x1b" not in out
    done = one.project.call("send", "events.jsonl", "--config", "config.toml")
    assert done.stderr == ""


@pytest.mark.slow
def test_the_broker_away_for_a_while(kafka_own, sending):
    """Sending goes on by itself, and every message is there once."""
    one, lines = sending(), events(6_000)
    one.project.write(lines)
    process = one.project.start(
        "send", "events.jsonl", "--config", "config.toml", "--rate", "2000", "--json",
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: one.length() > 500)
    kafka_own.kill()
    time.sleep(1)
    kafka_own.restart()
    out, _ = process.communicate(timeout=PATIENCE)
    assert json.loads(out)["acknowledged"] == 6_000
    ids = [json.loads(value)["id"] for value in one.values()]
    assert ids == [line["id"] for line in lines]
