"""Counters are in one struct: what adds them up, and what tells them, goes by its fields."""

import msgspec

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import Event
from midstream.engine.learners.learner import as_learner
from midstream.engine.training.trainer import Trainer
from midstream.flows.running.counters import Counters, Summary, feedback_counts

FIELDS = Counters.__struct_fields__


def test_every_counter_is_added_up_and_told():
    """Of several parts, in JSON beside what else a run tells."""
    one = Summary(**dict.fromkeys(FIELDS, 1), seconds=2.0, digest={"000": "a"}, seen=5)
    two = Summary(**dict.fromkeys(FIELDS, 2), seconds=1.0, digest={"001": "b"}, seen=6)
    both = one.joined(two)
    assert [getattr(both, name) for name in FIELDS] == [3] * len(FIELDS)
    assert (both.seconds, both.digest, both.seen) == (2.0, {"000": "a", "001": "b"}, 11)
    both.close()
    assert (both.events_per_second, both.resumed_at) == (1.5, 8)
    assert list(msgspec.to_builtins(both))[: len(FIELDS)] == list(FIELDS)
    assert one.events == 1, "what is added up is changed"


def test_a_batch_is_counted_by_what_was_done_with_it():
    """Events without a label are not learned, and odd predictions are told apart."""

    class Odd:
        def predict_one(self, x):
            return float("nan") if x["a"] else 0.0

        def learn_one(self, x, y):
            del x, y

    from river import base

    odd = type("OddRegressor", (Odd, base.Regressor), {})
    trainer = Trainer(as_learner(odd(), "regression"), task="regression")
    events = [
        Event(x={"a": i % 2}, y=None if i > 5 else 1e150 if i == 0 else 1.0) for i in range(8)
    ]
    batch = EventBatch.from_events(events)
    counters = Counters()
    counters.count(batch, trainer.step(batch), 3)
    assert (counters.events, counters.learned, counters.rejected) == (8, 6, 3)
    assert counters.non_finite == trainer.prequential.non_finite > 0
    assert counters.too_large == trainer.prequential.too_large > 0


def test_counts_of_feedback_are_those_of_all_shards():
    """Counts add up, coverage is that of the sums, and the longest delay counts."""
    shard = {"accuracy": 0.5, "feedback.waiting": 2.0, "feedback.joined": 6.0}
    shard |= {"feedback.expired": 1.0, "feedback.evicted": 1.0, "feedback.coverage": 0.75}
    shard |= {"feedback.delay.p50": 4.0, "by_prediction.accuracy": 0.25}
    other = shard | {"feedback.joined": 0.0, "feedback.coverage": float("nan")}
    other |= {"feedback.delay.p50": float("nan")}
    alone = {"waiting": 2, "joined": 6, "expired": 1, "evicted": 1, "coverage": 0.75}
    assert feedback_counts(shard) == alone | {"delay.p50": 4.0}
    several = {f"000.{k}": v for k, v in other.items()} | {f"001.{k}": v for k, v in shard.items()}
    both = {"waiting": 4, "joined": 6, "expired": 2, "evicted": 2, "coverage": 0.6}
    assert feedback_counts(several) == both | {"delay.p50": 4.0}
    assert feedback_counts({"accuracy": 0.5}) == {}
