"""So many events wait for their label: prints what that takes, as one JSON object."""

import json
import resource
import sys
import time

import numpy as np

from midstream.engine.events.batch import EventBatch, Targets
from midstream.engine.joining.policy import Policy
from midstream.engine.learners.linear import LinearLearner
from midstream.engine.training.trainer import Trainer

BATCH = 2_000
NAMES = [f"x{i}" for i in range(10)]


def events(first: int, array: np.ndarray) -> EventBatch:
    """Return a batch of events without labels."""
    return EventBatch(
        None,
        Targets(np.full(BATCH, np.nan), True),
        array=array,
        names=NAMES,
        ids=[f"event-{i}" for i in range(first, first + BATCH)],
        times=np.arange(first, first + BATCH) / 1_000,
        offsets=np.arange(first, first + BATCH),
        partition="events",
        sound=True,
    )


def labels(first: int, time_: float) -> EventBatch:
    """Return a batch of labels."""
    ids = [f"event-{i}" for i in range(first, first + BATCH)]
    batch = EventBatch(
        [{"id": each} for each in ids],
        Targets((np.arange(BATCH) % 2).astype(np.float64), True),
        ids=ids,
        times=np.full(BATCH, time_),
        offsets=np.arange(first, first + BATCH),
        partition="labels",
        sound=True,
    )
    batch.is_feedback = True
    return batch


def peak() -> float:
    """Return the most memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    """Let events wait, save and load them, and join a tenth of them."""
    total = int(sys.argv[1])
    rng = np.random.default_rng(1)
    blocks = [rng.normal(size=(BATCH, len(NAMES))) for _ in range(50)]
    policy = Policy(window=1e9, max_events=2 * total, max_bytes=2**45)
    trainer = Trainer(LinearLearner("binary"), feedback=policy)
    trainer.step(events(0, blocks[0]))
    before, begun = peak(), time.perf_counter()
    for i, first in enumerate(range(BATCH, total, BATCH)):
        trainer.step(events(first, blocks[i % len(blocks)]))
    out = {"events": total, "predicted": (total - BATCH) / (time.perf_counter() - begun)}
    out["memory"] = (peak() - before) / total
    for name in ("save", "save again"):
        begun = time.perf_counter()
        state = trainer.state()
        out[name] = time.perf_counter() - begun
    out["state"] = len(state["feedback"]) / total
    del trainer
    begun = time.perf_counter()
    trainer = Trainer.from_state(state)
    out["load"] = time.perf_counter() - begun
    share, begun = total // 10 // BATCH * BATCH, time.perf_counter()
    for first in range(0, share, BATCH):
        trainer.step(labels(first, total / 1_000))
    out["joined"] = out["events_per_second"] = share / (time.perf_counter() - begun)
    assert trainer.joiner is not None
    assert trainer.joiner.counts.joined == share
    print(json.dumps(out))


if __name__ == "__main__":
    main()
