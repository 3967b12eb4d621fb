"""Events that a learner raises on leave no trace; learners that fail on too much are told of."""

import math
import random
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from zoo import HASH_SEEDED, ZOO, events

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.learner import LEARNERS, LearnerError, RiverLearner
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.learners.softmax import SoftmaxLearner
from midstream.engine.state import encoding
from midstream.engine.training.rejecting import Careful, ForgetfulError, Recent, Verdict, others
from midstream.engine.training.trainer import Trainer


class Fragile:
    """Raises on values that say so, half updated; it counts its steps, by which time goes."""

    kind: ClassVar[str] = "fragile"
    needs = "dicts"
    task = "regression"
    takes_weights = True
    spent: ClassVar[float] = 0.0
    events: ClassVar[int] = 0
    states: ClassVar[int] = 0

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def predict_learn(self, batch: EventBatch) -> Predictions:
        values: list[Any] = []
        for row, x in enumerate(batch.dicts()):
            Fragile.spent += 1.0
            Fragile.events += 1
            self.value = (self.value * 31 + len(x)) % 1_000_003
            if x["v"] == "odd" or x["v"] == 13:
                raise LearnerError(row, ValueError("unlucky"))
            if x["v"] == "moody" and self.value % 2:
                raise LearnerError(row, ValueError("moody"))
            values.append(b"garbage" if x["v"] == "unscorable" else float(self.value))
        return Predictions(values)

    predict = learn = predict_learn

    def state(self) -> bytes:
        Fragile.spent += 20.0
        Fragile.states += 1
        return encoding.encode(self.value)

    def definition(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def load(cls, state: bytes, **_: Any) -> "Fragile":
        Fragile.spent += 20.0
        return cls(encoding.decode(state))


@pytest.fixture(autouse=True)
def _fragile(monkeypatch):
    monkeypatch.setitem(LEARNERS, "fragile", Fragile.load)
    Fragile.spent, Fragile.events, Fragile.states = 0.0, 0, 0


def trainer(learner, task=None):
    return Trainer(learner, task=task, drift=(), replay=8)


def fragile_batch(values):
    return EventBatch([{"v": v, "w": i % 7} for i, v in enumerate(values)], [1.0] * len(values))


def lived(careful, subject, batch, rng, most=60):
    """Step over a batch in pieces; return rows that raised, rows that did not, predictions."""
    raised, learned, predicted, at = [], [], [], 0
    while at < len(batch):
        part = batch[at : at + rng.randint(1, most)]
        tried = careful.step(subject, part)
        raised += [at + row for row in tried.raised]
        assert tried.batch.offsets.tolist() == part.offsets[tried.rows].tolist()
        assert len(tried.rows) + len(tried.raised) + len(tried.refused) == len(part)
        learned += [at + row for row in tried.rows.tolist()]
        predicted += tried.step.predictions.values
        assert len(tried.step.predictions) == len(tried.step.losses) == len(tried.rows)
        at += len(part)
    return raised, learned, predicted


def stepped(subject, batch, rows):
    """Step over rows of a batch at once; return what was predicted."""
    return subject.step(subject.admit(batch.take(rows))[0]).predictions.values


def learns_and_raises(real):
    """Return what learns an event that says so, and then raises."""

    def predict_learn(self, batch):
        row = next((i for i, x in enumerate(batch.dicts()) if "bang" in x), None)
        if row is None:
            return real(self, batch)
        real(self, batch[: row + 1])
        raise LearnerError(row, ValueError("bang"))

    return predict_learn


WALKS_A_SET = HASH_SEEDED | {"LazyKNN"}  # in an order that is the same where the hash seed is 0


@pytest.mark.parametrize("model", sorted(ZOO.keys() - WALKS_A_SET))
def test_what_is_left_out_leaves_no_trace_in_any_model(model, monkeypatch):
    """State and predictions are those of the stream without it, however states were kept."""
    task, make = ZOO[model]
    rng = random.Random(model)
    stream = [dict(x) for x, _ in events(task, 160)]
    labels = [y for _, y in events(task, 160)]
    for row in rng.sample(range(len(stream)), 25):
        name = rng.choice(sorted(stream[row]))
        if rng.random() < 0.5:
            stream[row]["bang"] = 1.0
        else:
            stream[row][name] = rng.choice(["n/a", None, [1], 10**400])  # type: ignore[assignment]
    batch = EventBatch(stream, labels)
    subject = trainer(make(), task)
    monkeypatch.setattr(
        RiverLearner, "predict_learn", learns_and_raises(RiverLearner.predict_learn)
    )
    raised, learned, predicted = lived(Careful(timer=rng.random), subject, batch, rng)
    calm = trainer(make(), task)
    values = stepped(calm, batch, learned)
    assert predicted == values or list(map(repr, predicted)) == list(map(repr, values))
    assert subject.digest() == calm.digest()
    assert len(raised) > 5


@pytest.mark.parametrize("as_columns", [False, True])
@pytest.mark.parametrize("make", [LinearLearner, SoftmaxLearner])
def test_what_is_left_out_leaves_no_trace_in_compiled_learners(make, as_columns):
    """Neither the names nor the classes of an event that was left out stay behind."""
    rng = random.Random(4)
    xs = [{"a": rng.gauss(0, 1), "b": rng.gauss(0, 1)} for _ in range(300)]
    ys: list[Any] = [x["a"] > 0 for x in xs]
    bad = rng.sample(range(300), 30)
    for row in bad:
        xs[row]["a"] = 1e200
    if as_columns:
        array = np.array([[x["a"], x["b"]] for x in xs])
        batch = EventBatch(None, ys, array=array, names=["a", "b"])
    else:
        for i, row in enumerate(bad[:20]):
            xs[row] = {f"new{i}": 1.0, "a": 1e200} if i % 2 else {f"new{i}": [1]}  # type: ignore[dict-item]
            ys[row] = f"class {i}" if make is SoftmaxLearner else ys[row]
        batch = EventBatch(xs, ys)
    task = "multiclass" if make is SoftmaxLearner else "binary"
    subject, calm = (trainer(make() if task == "multiclass" else make(task)) for _ in range(2))
    raised, learned, predicted = lived(Careful(timer=rng.random), subject, batch, rng)
    assert len(raised) >= 10
    assert sorted(set(range(300)) - set(learned)) == sorted(bad)
    assert predicted == stepped(calm, batch, learned)
    assert subject.digest() == calm.digest()


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_of_errors_is_left_out_as_one_by_one(seed):
    """What is raised on depends on what was left out before, scoring included, not on the cut."""
    rng = random.Random(seed)
    kinds = [1, 13, "odd", "moody", "unscorable"]
    shares = [1 - 2 * seed / 100, *(rng.random() * seed / 50 for _ in kinds[1:])]
    batch = fragile_batch(rng.choices(kinds, shares, k=300))
    one_by_one, found = trainer(Fragile()), []
    for row in range(len(batch)):
        before = one_by_one.learner.state()
        try:
            one_by_one.step(batch[row : row + 1])
        except LearnerError:
            one_by_one.learner = Fragile.load(before)
            found.append(row)
    subject = trainer(Fragile())
    raised, *_ = lived(
        Careful(timer=rng.random), subject, batch, rng, most=rng.choice([3, 60, 400])
    )
    assert raised == found
    assert subject.digest() == one_by_one.digest()


def learned_again(values, cut=200):
    """Return how many events were learned in all, and states made, of so many that were given."""
    careful = Careful(timer=lambda: Fragile.spent)
    subject, batch = trainer(Fragile()), fragile_batch(values)
    for at in range(0, len(batch), cut):
        careful.step(subject, batch[at : at + cut])
    return Fragile.events, Fragile.states


def test_nothing_is_learned_twice_where_nothing_raises():
    """And a state is made for every 40 states' worth of learning."""
    learned, states = learned_again([1] * 20_000)
    assert (learned, states <= 21) == (20_000, True)


def test_events_that_look_odd_are_not_learned_with_others():
    """Once one of a kind was raised on, the state before the next ones is kept, and that is all."""
    values = ["odd" if i % 100 == 57 else 1 for i in range(20_000)]
    learned, states = learned_again(values)
    assert learned < 20_500
    assert states < 300


def test_events_that_look_like_others_cost_what_was_learned_since_the_last():
    """Half of the work is done twice at most."""
    values = [13 if i % 100 == 57 else 1 for i in range(20_000)]
    learned, states = learned_again(values)
    assert learned < 45_000
    assert states < 600


def test_a_stream_of_errors_alone_costs_one_look_at_each():
    """Nothing is learned again where nothing was learned."""
    assert learned_again(["odd"] * 2_000)[0] == 2_000
    assert Fragile.states < 200


def test_what_only_looks_odd_is_soon_taken_for_good():
    """A kind of value that is learned after all costs three states, not one each time."""
    values = ["odd" if i == 50 else "fine" if i > 50 else 1 for i in range(4_000)]
    learned, states = learned_again(values)
    assert learned < 4_200
    assert states < 20


def test_a_learner_that_does_not_do_the_same_twice_is_found():
    """It raises on what it has learned before: that is said, and nothing is left out for it."""
    subject = trainer(Fragile())
    careful = Careful()
    careful.step(subject, fragile_batch([1] * 10))
    careful._since[0].dicts()[3]["v"] = 13
    with pytest.raises(ForgetfulError, match=r"memory-0:3, which it had learned .* twice"):
        careful.step(subject, fragile_batch([1, "odd"]))


def test_predictions_of_pieces_are_those_of_the_whole():
    """As arrays or lists, with tables, dicts or no probabilities."""
    table = Table((False, True), np.array([[0.25, 0.75]]))
    forms = [
        Predictions(np.array([True]), table),
        Predictions([True], [{False: 0.25, True: 0.75}]),
        Predictions([True], table),
    ]
    for one in forms:
        for other in forms:
            joined = Predictions.joined([one, other])
            assert joined.values == [True, True]
            assert joined.probas == [{False: 0.25, True: 0.75}] * 2
    assert Predictions.joined(forms[:1] * 2).table is not None
    assert Predictions.joined([Predictions([1.0]), Predictions(np.array([2.0]))]).values == [1.0, 2]
    assert Predictions.joined([Predictions(np.array([1.0]))] * 2).probas is None


# --- how much a learner may fail on


def counted(flags, limit, cuts=lambda: 1):
    """Count events, flagged "r", "n" or "."; return where verdicts came, and what is counted."""
    recent, at, found = Recent(), 0, []
    while at < len(flags):
        part = flags[at : at + cuts()]
        raised = [i for i, flag in enumerate(part) if flag == "r"]
        odd = [i for i, flag in enumerate(part) if flag == "n"]
        verdict = recent.count(len(part), raised, odd, limit)
        if verdict is not None:
            found.append((recent.judged, verdict))
        at += len(part)
    return found, recent


@pytest.mark.parametrize(
    ("flags", "limit", "at", "verdict"),
    [
        ("r" * 500, 0.5, 100, (100, 0, 100)),
        ("n" * 500, 0.5, 100, (0, 100, 100)),
        ("r" * 99 + "." * 401, 0.5, 100, (99, 0, 100)),
        ("." * 5_000 + "rn" * 400, 0.5, 5_501, (251, 250, 1_000)),
        ("." * 1_000 + "r" * 20, 0.01, 1_011, (11, 0, 1_000)),
        ("r" * 51 + "." * 49, 0.5, 100, (51, 0, 100)),
    ],
)
def test_a_learner_that_fails_on_too_much_is_judged_at_that_event(flags, limit, at, verdict):
    """By the last 1,000 events, once there are 100; later ones anew."""
    found, _ = counted(flags, limit)
    assert found[0] == (at, Verdict(*verdict))
    assert all(b[0] - a[0] >= 100 for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("flags", "limit"),
    [("r" * 99, 0.5), ("r" * 5_000, 1.0), (".r" * 3_000, 0.5), ("r" * 50 + "." * 2_000, 0.5)],
)
def test_a_learner_within_the_limit_is_not_judged(flags, limit):
    """Nor by fewer than 100 events, nor ever where the limit is 1."""
    assert counted(flags, limit)[0] == []


@pytest.mark.parametrize("seed", range(30))
def test_failures_are_counted_alike_however_the_stream_is_cut(seed):
    """The last verdict of a batch is there, and the state is the same, to be gone on with."""
    rng = random.Random(seed)
    shares = [0.02, 0.3, 0.5, 0.9]
    flags = "".join(
        rng.choice("rn") if rng.random() < share else "."
        for share in rng.choices(shares, k=8)
        for _ in range(rng.choice([50, 400]))
    )
    found, recent = counted(flags, 0.4)
    cut, again = counted(flags, 0.4, cuts=lambda: rng.choice([1, 7, 99, 1_500]))
    assert again == recent
    assert set(cut) <= set(found)
    assert bool(cut) == bool(found)
    assert len(recent.raised) + len(recent.non_finite) <= 1_000


def test_what_was_forgiven_is_not_held_against_a_later_run():
    """Until it fails anew."""
    recent = counted("r" * 20, 0.5)[1]
    assert recent.last.share == 1.0
    recent.forgive()
    assert recent.last == (0, 0, 0)
    recent.count(4, [0, 1, 2], [], 0.5)
    assert recent.last == (3, 0, 4)
    recent.start_over()
    assert recent.last.share == 0.0


@pytest.mark.parametrize(
    ("values", "learned", "found"),
    [
        (["odd"] + [1] * 99, 0, (0, 0, 50)),
        (["odd"] * 100, 0, (50, 0, 50)),
        (["odd"], 0, (0, 0, 0)),
        (["odd"], 3, (0, 0, 3)),
        (["odd"] * 5, 1_000, (4, 0, 54)),
        (["odd"] * 30, 1_000, (29, 0, 29)),
    ],
)
def test_events_around_one_that_raises_show_whether_it_is_odd(values, learned, found):
    """Those that follow are tried; where there are few of them, those before count too."""
    assert others(Fragile(), fragile_batch(values), 0, learned) == found


def test_a_share_of_nothing_is_none():
    """Where no event was counted nobody failed."""
    assert Verdict(0, 0, 0).share == 0.0
    assert not math.isnan(Recent().last.share)
