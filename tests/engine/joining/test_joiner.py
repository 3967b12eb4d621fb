"""The join: what becomes of events and of labels, and that batches and saving change nothing."""

import random

import msgspec
import numpy as np
import pytest
from river import linear_model, preprocessing

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.joining.policy import Policy, PolicyError
from midstream.engine.learners.learner import load_learner
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.training.joined import learned
from midstream.engine.training.trainer import Trainer

SEEDS = 240
BLOCKS = 12


def trainer(policy, task="binary", **options):
    return Trainer(LinearLearner(task), feedback=policy, window=30, replay=20, **options)


def event(event_id, ts=None, y=None, **x):
    return "events", Event(x=x or {"a": 1.0}, id=event_id, ts=ts, y=y)


def label(event_id, y=True, ts=None, **fields):
    return "labels", Event(x={"id": event_id}, id=event_id, y=y, ts=ts, **fields)


def batches(records, cut):
    """Cut records into batches of one partition each, of at most `cut()` records."""
    at, i = {}, 0
    while i < len(records):
        partition, stop, most = records[i][0], i, cut()
        while stop < min(i + most, len(records)) and records[stop][0] == partition:
            stop += 1
        offset = at.get(partition, 0)
        batch = EventBatch.from_events(
            [e for _, e in records[i:stop]],
            partition=partition,
            offsets=np.arange(offset, offset + stop - i),
        )
        batch.is_feedback = partition == "labels"
        at[partition], i = offset + stop - i, stop
        yield batch


def fed(one, records, cut=lambda: 1, each=lambda one, batch: one):
    """Feed records; return the trainer and what came out."""
    out = {"rejected": [], "alarms": [], "predictions": [], "review": []}
    for given in batches(records, cut):
        one = each(one, given)
        batch, refused = one.admit(given)
        assert not refused
        step = one.step(batch)
        events = batch if step.events is None else step.events
        out["rejected"] += [(r.origin, r.reason, r.raw) for _, r in step.rejected]
        out["alarms"] += [(a.detector, a.position, a.value) for a in step.alarms]
        out["predictions"] += list(zip(events.ids, step.predictions.values, strict=True))
        out["review"] += [] if step.review is None else step.review[0].ids
    return one, out


def counts(one):
    found = msgspec.structs.asdict(one.joiner.counts)
    return {name: value for name, value in found.items() if value}


WAITS = Policy(window=10.0, early=5.0, remember=20.0)


@pytest.mark.parametrize(
    ("policy", "records", "found", "learned_", "reasons"),
    [
        pytest.param(WAITS, [event("a"), label("a")], {"joined": 1}, 1, [], id="joined"),
        pytest.param(
            WAITS, [event("a"), event("b", y=True)], {"labelled": 1}, 1, [], id="with its label"
        ),
        pytest.param(WAITS, [label("a"), event("a")], {"early": 1, "joined": 1}, 1, [], id="early"),
        pytest.param(
            WAITS,
            [event("a", 0.0), event("b", 11.0), label("a", ts=11.0)],
            {"expired": 1, "late": 1},
            0,
            ["its event had expired"],
            id="late",
        ),
        pytest.param(
            WAITS,
            [event("b", 0.0), label("a", ts=0.0), event("c", 6.0)],
            {"dangling": 1},
            0,
            ["no event with this id came"],
            id="dangling",
        ),
        pytest.param(
            WAITS,
            [event("a"), label("a"), label("a"), label("a", y=False)],
            {"joined": 1, "duplicates": 1, "corrections": 1, "refunds": 1},
            1,
            [],
            id="repeated and corrected",
        ),
        pytest.param(
            Policy(corrections="learn"),
            [event("a"), label("a"), label("a", y=False), label("a", y=False)],
            {"joined": 1, "corrections": 1, "refunds": 1, "duplicates": 1},
            2,
            [],
            id="a correction is learned, too",
        ),
        pytest.param(
            Policy(window=10.0, on_expiry="label", default=False, corrections="learn"),
            [event("a", 0.0), event("b", 11.0), label("a", ts=12.0)],
            {"expired": 1, "corrections": 1},
            2,
            [],
            id="negative at its end, then corrected",
        ),
        pytest.param(
            Policy(window=10.0, repeats="last", idle=1.0),
            [event("a", 0.0), label("a", False, 1.0), label("a", True, 2.0), event("b", 11.0)],
            {"joined": 1, "corrections": 1},
            1,
            [],
            id="the last label counts",
        ),
        pytest.param(
            WAITS, [event("a"), event("a"), label("a")], {"repeated": 1, "joined": 1}, 1, [],
            id="an id that comes twice",
        ),
        pytest.param(
            Policy(window_events=2),
            [event("a"), event("b"), event("c"), event("d"), label("a")],
            {"expired": 1, "late": 1},
            0,
            ["its event had expired"],
            id="so many events later",
        ),
        pytest.param(
            Policy(max_events=2),
            [event("a"), event("b"), event("c"), label("a")],
            {"evicted": 1, "late": 1},
            0,
            ["its event had expired"],
            id="too many wait",
        ),
        pytest.param(
            WAITS, [event("a"), label("a", None)], {"unusable": 1}, 0, ["feedback without a label"],
            id="no label",
        ),
        pytest.param(
            WAITS,
            [event("b", 0.0), event("a", 4e9), event("c", 1.0), label("b", ts=1.0)],
            {"joined": 1},
            1,
            [],
            id="one wrong time expires nothing",
        ),
    ],
)  # fmt: skip
def test_what_becomes_of_events_and_labels(policy, records, found, learned_, reasons):
    """Each is in one count; labels that are not joined are rejected with the reason."""
    one, out = fed(trainer(policy), records)
    events = sum(partition == "events" for partition, _ in records)
    assert counts(one) == {"predicted": events, **found}
    assert one.learned == learned_
    assert [reason.partition(":")[0] for _, reason, _ in out["rejected"]] == reasons
    assert one.seen == events


def test_sums_are_learned_when_the_time_of_the_event_ends():
    """As the revenue of an order in several parts."""
    policy = Policy(window=10.0, repeats="sum", idle=1.0)
    one, _ = fed(
        trainer(policy, "regression"),
        [event("a", 0.0), label("a", 2.0, 1.0), label("a", 3.5, 2.0), event("b", 11.0)],
    )
    assert [e.y for e in one.replay.events] == [5.5]


def test_events_for_review_come_with_their_predictions():
    """Those that expired without a label."""
    policy = Policy(window=10.0, on_expiry="review")
    _, out = fed(trainer(policy), [event("a", 0.0), event("b", 11.0)])
    assert out["review"] == ["a"]


def test_negatives_are_sampled_by_their_ids_and_weighted():
    """Those that are left out are scored all the same."""
    ids = [f"e{i}" for i in range(400)]
    records = [event(i) for i in ids] + [label(i, y=False) for i in ids]
    one, _ = fed(trainer(Policy(negative_share=0.25), metrics=["accuracy"]), records, lambda: 400)
    assert 60 < one.learned < 140
    assert one.learned + one.joiner.counts.sampled_out == 400
    assert {e.weight for e in one.replay.events} == {4.0}
    assert one.prequential.scored == 400


def test_the_weight_of_an_event_is_multiplied_by_that_of_its_label():
    """Also after the event was saved and loaded."""
    one = trainer(WAITS)
    one.step_one({"a": 1.0}, id="e1", weight=5.0)
    one.step_one({"a": 2.0}, id="e2")
    one = Trainer.from_state(one.state())
    one.feedback_one("e1", True, weight=2.0)
    one.feedback_one("e2", True)
    assert [e.weight for e in one.replay.events] == [10.0, 1.0]


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        (Policy(on_expiry="label"), "default_label"),
        (Policy(repeats="sum"), "repeats"),
        (Policy(negative_share=0.5), "negative_share"),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_refused(policy, key):
    """The key is named; this model takes no weights."""
    model = preprocessing.StandardScaler() | linear_model.PAClassifier()
    with pytest.raises(PolicyError) as error:
        Trainer(model, feedback=policy)
    assert error.value.key == f"feedback.{key}"


def test_one_by_one_from_python():
    """`step_one` predicts, `feedback_one` learns later."""
    one = trainer(WAITS)
    assert one.step_one({"a": 1.0}, id="e1").id == "e1"
    one.feedback_one("e1", True)
    assert (one.seen, one.learned, len(one.joiner)) == (1, 1, 0)
    with pytest.raises(ValueError, match="made without feedback"):
        Trainer(LinearLearner("binary")).feedback_one("e1", True)


def test_an_id_is_forgotten_between_two_labels_of_one_batch():
    """The second label of "a" finds it forgotten, as it does record by record."""
    records = [event("a", 0.0), label("a", ts=0.0), label("b", ts=9.9), label("a", ts=10.0)]
    policy = Policy(window=500.0, early=500.0, remember=5.0, idle=1.0)
    one, _ = fed(trainer(policy), records)
    other, _ = fed(trainer(policy), records, lambda: 100)
    assert counts(one) == {"predicted": 1, "joined": 1}
    assert other.digest() == one.digest()


# --- whatever the stream


def any_policy(rng, task):
    fields = {
        "window": rng.choice([5.0, 50.0, 500.0]),
        "window_events": rng.choice([0, 0, 7, 100]),
        "lateness": rng.choice([0.0, 3.0]),
        "idle": rng.choice([1.0, 20.0, 1e4]),
        "early": rng.choice([0.5, 10.0, 100.0]),
        "remember": rng.choice([5.0, 100.0]),
        "corrections": rng.choice(["count", "learn"]),
        "repeats": rng.choice(["first", "last", *(["sum"] if task == "regression" else [])]),
        "max_events": rng.choice([5, 50, 10**6]),
        "max_bytes": rng.choice([2_000, 2**30]),
        "on_expiry": rng.choice(["drop", "label", "review"]),
    }
    if fields["on_expiry"] == "label":
        fields["default"] = False if task == "binary" else 0.0
    if task == "binary" and rng.random() < 0.3:
        fields["negative_share"] = 0.5
    if task == "binary" and rng.random() < 0.5:
        method = rng.choice(["fnw", "fnc", "es-dfm"])
        fields |= {"method": method, "on_expiry": "label", "default": False, "repeats": "first"}
        fields |= {"negative_share": 1.0}
        fields["wait"] = rng.choice([1.0, 4.0] if method == "es-dfm" else [0.0, 3.0])
        if method == "es-dfm":
            fields["window_events"] = 0
    return Policy(**fields)


def any_records(rng, task, n=400):
    """Events of two partitions and labels: repeated, early, late, corrected, with odd times."""
    made, ids, time = [], [], 0.0
    for i in range(n):
        odd = rng.random() < 0.02
        time += rng.choice([-20.0, 30.0, 2e5]) if odd else rng.choice([0, 0.1, 1.0, 3.0])
        ts = None if rng.random() < 0.1 else time + rng.gauss(0, 0.5)
        y = rng.random() < 0.5 if task == "binary" else rng.gauss(0, 1)
        if rng.random() < 0.55:
            name = f"i{i}" if rng.random() < 0.9 or not ids else rng.choice(ids[-20:])
            ids.append(name)
            x = {f"f{j}": rng.gauss(0, 1) for j in range(3)}
            one = Event(
                x=x, id=None if rng.random() < 0.02 else name, ts=ts,
                y=y if rng.random() < 0.15 else None,
            )  # fmt: skip
            made.append((f"events{rng.randrange(2)}", one))
        else:
            known = ids and rng.random() < 0.9
            name = rng.choice(ids[-40:]) if known else f"i{i + rng.randrange(6)}"
            made.append(label(name, y if rng.random() < 0.98 else None, ts, source="s"))
    return made


def undone(one, batch):
    """Begin a batch, as if the learner then raised, and go back."""
    batch, _ = one.admit(batch)
    joiner, learner = one.joiner.state(), one.learner.state()
    learned(one, batch, undoable=True)
    one.joiner.undo()
    assert one.joiner.state() == joiner
    one.learner = load_learner(one.learner.kind, learner, task=one.task)
    return one


@pytest.mark.parametrize(
    "block", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(BLOCKS)]
)
def test_batches_saving_and_undoing_change_nothing(block):
    """The result is that of record by record, whatever the policy and the stream."""
    for seed in range(block * SEEDS // BLOCKS, (block + 1) * SEEDS // BLOCKS):
        rng = random.Random(seed)
        task = rng.choice(["binary", "regression"])
        policy, records = any_policy(rng, task), any_records(rng, task)
        river = rng.random() < 0.4

        def made(task=task, policy=policy, river=river):
            if not river:
                return trainer(policy, task)
            last = (
                linear_model.LogisticRegression()
                if task == "binary"
                else linear_model.LinearRegression()
            )
            model = preprocessing.StandardScaler() | last
            return Trainer(model, feedback=policy, window=30, replay=20)

        one, wanted = fed(made(), records)
        count = one.joiner.counts
        ended = count.joined + count.labelled + count.expired + count.evicted + count.repeated
        assert count.predicted == ended + len(one.joiner), seed

        def saved(one, _, chance):
            return Trainer.from_state(one.state()) if chance.random() < 0.2 else one

        for way in range(3):
            chance = random.Random(way)

            def each(one, batch, way=way, chance=chance):
                if way == 1:
                    return saved(one, batch, chance)
                return undone(one, batch) if way == 2 and chance.random() < 0.3 else one

            other, got = fed(made(), records, lambda c=chance: c.choice([1, 2, 5, 60, 400]), each)
            assert got == wanted, (seed, way)
            assert other.digest() == one.digest(), (seed, way)


def test_a_damaged_state_of_the_join_is_refused():
    """By ValueError, naming the join."""
    one, _ = fed(trainer(WAITS), [event("a"), event("b"), label("a")])
    state = one.state()
    for data in (b"", state["feedback"][:-3], state["metrics"]):
        with pytest.raises(ValueError, match=r"."):
            Trainer.from_state({**state, "feedback": data})
    with pytest.raises(ValueError, match="lacks its part 'by_prediction'"):
        Trainer.from_state({k: v for k, v in state.items() if k != "by_prediction"})
