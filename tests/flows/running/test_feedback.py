"""Labels that come later, from an input of their own: in files, and in topics on a real broker."""

import json
import os
import random
import re
import shutil
import signal

import pytest
from project import Project, events, wait_for
from river import datasets, evaluate, metrics

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load
from midstream.flows.running.definition import make_trainer

RIVER = """
from river import linear_model, preprocessing

def make():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""
FILES = """
[input]
path = "events.jsonl"
[feedback]
path = "labels.jsonl"
%s
[metrics]
names = ["accuracy", "log_loss"]
[state]
commit_seconds = 0.02
"""
KEPT = "feedback."


def phishing(delay):
    """Return bundled data as events and labels, the labels so many rows later."""
    made, labels = [], []
    for i, (x, y) in enumerate(datasets.Phishing()):
        made.append({"id": f"p{i}", "x": x, "ts": 1e9 + i})
        labels.append({"id": f"p{i}", "y": y, "ts": 1e9 + i + delay, "source": "web"})
    return made, labels


def delayed_by_river(delay):
    """Return what River's delayed progressive validation gives."""
    scores = [metrics.Accuracy(), metrics.LogLoss()]
    namespace: dict = {}
    exec(RIVER, namespace)  # noqa: S102
    both = scores[0] + scores[1]
    evaluate.progressive_val_score(datasets.Phishing(), namespace["make"](), both, delay=delay)
    return [score.get() for score in scores]


def odd_labels(lines, seed=1):
    """Return labels for events in another order, twice, corrected, late, and for nobody."""
    rng = random.Random(seed)
    made = []
    for i, event in enumerate(lines):
        at = 1e9 + i + rng.choice([2.0, 30.0, 300.0, -3.0])
        label = {"id": event["id"], "y": rng.random() < 0.5, "ts": at, "source": "web"}
        if rng.random() < 0.85:
            made.append(label)
        if rng.random() < 0.1:
            made.append(label | {"ts": at + 1})
        if rng.random() < 0.1:
            made.append(label | {"y": not label["y"], "ts": at + 50, "source": "refunds"})
        if rng.random() < 0.02:
            made.append({"id": f"nobody{i}", "y": True, "ts": at})
    return sorted(made, key=lambda label: label["ts"])


def unlabelled(n):
    return [
        {"id": e["id"], "x": e["x"], "ts": 1e9 + i, "source": "shop"}
        for i, e in enumerate(events(n))
    ]


def files(folder, made, labels, more="", model=RIVER):
    one = Project(folder, model=model, config=FILES % more)
    one.write(made)
    one.write(labels, "labels.jsonl")
    return one


def balanced(summary):
    """Check that each event is counted once, by what became of it."""
    found = {k.removeprefix(KEPT): v for k, v in summary["metrics"].items() if k.startswith(KEPT)}
    ended = ("joined", "labelled", "expired", "evicted", "repeated", "waiting")
    assert found["predicted"] == sum(found[name] for name in ended)
    return found


def predicted_once(one, made):
    ids = [line["id"] for line in one.output("predictions")]
    assert len(ids) == len(set(ids))
    assert set(ids) == {event["id"] for event in made}


@pytest.mark.parametrize(
    "delay",
    [pytest.param(1, marks=pytest.mark.slow), 10, pytest.param(100, marks=pytest.mark.slow)],
)
def test_labels_some_rows_later_score_as_in_river(tmp_path, delay):
    """With `order = "exact"`, to the last digit that River's own loop gives."""
    made, labels = phishing(delay)
    got = files(tmp_path / "p", made, labels, 'order = "exact"').run()
    found = [got["metrics"]["accuracy"], got["metrics"]["log_loss"]]
    assert found == pytest.approx(delayed_by_river(delay), rel=0, abs=1e-12)
    counts = balanced(got)
    assert (counts["joined"], got["learned"]) == (1_250, 1_250)
    ordered = [got["metrics"][f"by_prediction.{name}"] for name in ("accuracy", "log_loss")]
    assert ordered == pytest.approx(found)  # sums over the same events, in another order


def test_the_features_are_those_of_the_prediction_and_each_label_counts_once(tmp_path):
    """As a trainer that is fed record by record, in the order of time."""
    made = unlabelled(900)
    labels = odd_labels(made)
    more = 'order = "exact"\nwindow_seconds = 200.0\ncorrections = "learn"\nearly_seconds = 5.0'
    one = files(tmp_path / "p", made, labels, more)
    got = one.run()
    trainer = make_trainer(load(one.config))
    records = [(e["ts"], 1, i, e) for i, e in enumerate(made)]
    records += [(e["ts"], 0, i, e) for i, e in enumerate(labels)]
    for ts, is_event, _, record in sorted(records, key=lambda r: r[:3]):
        batch = EventBatch.from_events(
            [
                Event(
                    x=record["x"] if is_event else {"id": record["id"]}, id=record["id"],
                    y=record.get("y"), ts=ts, source=record.get("source"),
                )
            ],
            partition="events.jsonl" if is_event else "labels.jsonl",
        )  # fmt: skip
        batch.is_feedback = not is_event
        trainer.step(batch)
    kept = {name: value for name, value in trainer.metrics.items() if value == value}  # noqa: PLR0124 no nan
    assert {name: got["metrics"][name] for name in kept} == kept
    counts = balanced(got)
    for name in ("expired", "late", "duplicates", "corrections", "early", "dangling", "refunds"):
        assert counts[name] > 0, name
    reasons = {line["reason"].partition(":")[0] for line in one.output("rejected")}
    assert reasons == {"its event had expired", "no event with this id came"}
    predicted_once(one, made)


@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_runs_join_each_label_once(tmp_path, kills):
    """The state is the fold of the journal, which says in which order the two were read."""
    n = 20_000 if kills > 4 else 6_000
    made = unlabelled(n)
    more = 'window_seconds = 500.0\ncorrections = "learn"\nmax_events = 2000'
    one = files(tmp_path / "p", made, odd_labels(made), more)
    rng = random.Random(os.environ.get("MIDSTREAM_KILL_SEED", "7"))
    one.kill_along(kills, n * 150, rng)
    got = one.run()
    predicted_once(one, made)
    counts = balanced(got)
    assert counts["predicted"] == got["seen"] == len(made)
    rejected = [json.dumps(line["origin"]) for line in one.output("rejected")]
    assert len(rejected) == len(set(rejected)) == counts["late"] + counts["dangling"]
    for snapshot in (one.folder / "state" / "shards" / "000").glob("snapshot-*"):
        snapshot.unlink()
    folded = one.run()
    assert (folded["digest"], folded["metrics"]) == (got["digest"], got["metrics"])
    assert folded["learned"] == 0


def test_an_event_sent_again_with_its_label_is_scored_once(tmp_path):
    """Without an input of its own, feedback is the event itself: what was published counts."""
    rng = random.Random(3)
    made = unlabelled(500)
    again = [e | {"y": rng.random() < 0.5, "ts": e["ts"] + 10} for e in made]
    one = files(tmp_path / "p", [*made, *again], [], model=RIVER)
    one.config.write_text(one.config.read_text().replace('path = "labels.jsonl"\n', ""))
    got = one.run()
    predicted_once(one, made)
    published = {line["id"]: line["y_pred"] for line in one.output("predictions")}
    right = sum(published[e["id"]] == e["y"] for e in again)
    assert got["metrics"]["accuracy"] == pytest.approx(right / 500)
    assert (got["seen"], got["learned"]) == (500, 500)


def test_a_rewind_leaves_out_the_labels_of_a_source(tmp_path):
    """The model is as if that source had never sent a label."""
    made = unlabelled(1_200)
    labels = odd_labels(made)
    more = 'order = "exact"\nwindow_seconds = 300.0\ncorrections = "learn"'
    one = files(tmp_path / "p", made[:1], [], more)
    one.run()  # version 1
    one.write(made)
    one.write(labels, "labels.jsonl")
    one.run()
    one.operate("restore", "1", "--rewind", "--skip-source", "refunds", "--yes")
    got = one.run()
    clean = files(tmp_path / "q", made[:1], [], more)
    clean.run()
    clean.write(made)
    clean.write([e for e in labels if e.get("source") != "refunds"], "labels.jsonl")
    assert got["metrics"] == clean.run()["metrics"]


def test_events_go_on_waiting_where_a_version_is_restored(tmp_path):
    """The labels of events that came after the version are learned by the restored model."""
    made = unlabelled(600)
    labels = [{"id": e["id"], "y": i % 3 == 0, "ts": e["ts"] + 5} for i, e in enumerate(made)]
    one = files(tmp_path / "p", made[:200], labels[:100])
    one.run()  # version 1
    one.write(made)
    one.run()
    one.operate("restore", "1", "--yes")
    one.write(labels, "labels.jsonl")
    got = one.run()
    assert (got["metrics"]["feedback.joined"], got["learned"]) == (600, 500)
    assert got["metrics"]["feedback.dangling"] == 0


def test_feedback_may_begin_on_a_saved_state_and_change(tmp_path):
    """`check` says so; what waits stays, and nothing learned is lost."""
    made = unlabelled(1_000)
    labels = [{"id": e["id"], "y": i % 3 == 0, "ts": e["ts"] + 5} for i, e in enumerate(made)]
    one = files(tmp_path / "p", made[:400], [])
    config = one.config.read_text()
    one.config.write_text(config.replace('[feedback]\npath = "labels.jsonl"\n', ""))
    one.run()
    one.config.write_text(config)
    one.write(made[:700])
    one.write(labels[:600], "labels.jsonl")
    told = one.call("check", "config.toml")
    assert told.returncode == 0, told.stdout
    assert "feedback  join  -      on   begins now" in told.stdout
    got = one.run()
    assert (got["seen"], got["metrics"]["feedback.joined"]) == (700, 200)
    one.config.write_text(config.replace("[feedback]\n", "[feedback]\nwindow_seconds = 20.0\n"))
    one.write(made)
    one.write(labels, "labels.jsonl")
    said = one.call("run", "config.toml", "--until-eof").stderr
    assert "part=feedback what=window saved=86400.0 now=20.0" in said
    last = one.run()
    assert last["seen"] == 1_000
    assert last["metrics"]["feedback.joined"] > 500
    one.config.write_text(config.replace('[feedback]\npath = "labels.jsonl"\n', ""))
    refused = one.call("check", "config.toml")
    assert refused.returncode == 1
    assert "what waits for its label is dropped" in refused.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('topic = "t"', "feedback: found both of topic and path"),
        ('on_expiry = "label"', "feedback.default_label: missing"),
        ('on_expiry = "label"\ndefault_label = 3', "label must be true/false or 0/1"),
        ("default_label = true", "feedback.default_label: is for on_expiry = 'label'"),
        ('repeats = "sum"', "feedback.repeats: found 'sum' for task binary"),
        ('fields = { id = "a", label = "a" }', "feedback.fields.label: is the id"),
        ("window_seconds = 0", "feedback.window_seconds"),
        ('method = "fnw"', "feedback.on_expiry: found 'drop' for method 'fnw'"),
        ("wait_seconds = 5", "feedback.wait_seconds: found 5 for method 'wait'"),
        ('method = "dfm"', "feedback.method"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, more, said):
    """The key, what was found, and what is allowed."""
    one = files(tmp_path / "p", unlabelled(1), [], more)
    with pytest.raises(ConfigError) as error:
        make_trainer(load(one.config))
    assert said in str(error.value)


TOPICS = """
---
[feedback]
topic = "%s"
window_seconds = 500.0
corrections = "learn"
%s
[metrics]
names = ["accuracy", "log_loss"]
"""


def on_topics(topics, kafka, topic, name, *, partitions=1, shards="partition", more=""):
    """Return a project on topics, and the name of its topic of feedback."""
    labels = kafka.create_topic(topic(f"{name}.labels"), partitions=partitions)
    quoted = shards if shards == "1" else f'"{shards}"'
    config = f"shards = {quoted}\n" + TOPICS % (labels, more)
    return topics(name, partitions=partitions, config=config), labels


def produce(kafka, name, lines, partitions=1):
    """Write each line to the partition that the number in its id says."""
    kafka.produce(
        name,
        [
            (None, json.dumps(e).encode(), int(re.sub(r"\D", "", e["id"])) % partitions)
            for e in lines
        ],
    )


def test_labels_in_a_topic_score_as_in_river(topics, kafka, topic):
    """Events and labels in topics, in the order of their times: as River's own loop."""
    one, labels = on_topics(topics, kafka, topic, "one", shards="1", more='order = "exact"')
    text = one.project.config.read_text().partition("[features]")[0]
    one.project.config.write_text(text.replace('learner = "logistic"', 'learner = "models:make"'))
    (one.project.folder / "models.py").write_text(RIVER)
    made, feedback = phishing(10)
    kafka.produce(one.source, [(None, json.dumps(e).encode(), 0) for e in made])
    kafka.produce(labels, [(None, json.dumps(e).encode(), 0) for e in feedback])
    got = one.project.run()
    found = [got["metrics"]["accuracy"], got["metrics"]["log_loss"]]
    assert found == pytest.approx(delayed_by_river(10), rel=0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "processes"), [("1", 1), ("partition", 2)])
def test_killed_runs_on_topics_join_each_label_once(topics, kafka, topic, shards, processes):
    """The lost state is rebuilt from the journal, bit for bit; each event is predicted once."""
    partitions = 1 if shards == "1" else 2
    one, labels = on_topics(topics, kafka, topic, "one", partitions=partitions, shards=shards)
    made = unlabelled(30_000)
    produce(kafka, one.source, made, partitions)
    produce(kafka, labels, odd_labels(made), partitions)
    rng = random.Random(os.environ.get("MIDSTREAM_KILL_SEED", "9") + shards)
    arguments = ("--processes", "2") if processes == 2 else ()
    one.killed(int(os.environ.get("MIDSTREAM_KILLS", "8")), rng, *arguments)
    got = one.project.run(*arguments)
    one.published_once(made)
    assert got["seen"] == len(made)
    shutil.rmtree(one.project.folder / "state")
    folded = one.project.run()
    assert (folded["digest"], folded["metrics"]) == (got["digest"], got["metrics"])


def test_topics_with_other_numbers_of_partitions_are_refused(topics, kafka, topic):
    """A label would be in another shard than its event."""
    one, labels = on_topics(topics, kafka, topic, "one", partitions=2)
    other = kafka.create_topic(topic("other"), partitions=3)
    one.project.config.write_text(one.project.config.read_text().replace(labels, other))
    said = one.project.call("run", "config.toml", "--until-eof").stderr
    assert "has 3 partitions" in said
    assert "input.shards = 1" in said


def test_a_silent_topic_of_feedback_holds_up_nothing(topics, kafka, topic):
    """Events are predicted at once; labels are joined when they come."""
    one, labels = on_topics(topics, kafka, topic, "one", shards="1")
    made = unlabelled(500)
    produce(kafka, one.source, made)
    process = one.project.running()
    one.until_published(500)
    feedback = [{"id": e["id"], "y": True, "ts": e["ts"]} for e in made]
    produce(kafka, labels, feedback)
    wait_for(lambda: kafka.ends(labels, True), what="labels")
    process.send_signal(signal.SIGTERM)
    process.wait()
    got = one.project.run()
    one.published_once(made)
    assert got["metrics"]["feedback.joined"] == 500
