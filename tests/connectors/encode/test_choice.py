"""Which predictions are published depends on the events alone."""

import json
from itertools import pairwise

import numpy as np
import pytest

from midstream.connectors.decode.decoder import make_decoder
from midstream.connectors.encode.choice import Choice
from midstream.connectors.encode.outputs import encode_predictions
from midstream.connectors.input import Block
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.predictions import Predictions, Table

N = 20_000


def batch_of(form: str, n: int = N, index: int = 0) -> EventBatch:
    """Return a batch as decoders make it; every third event has no label, every fifth no id."""
    lines = []
    for i in range(n):
        event = {"x": {"a": i * 0.5}}
        if i % 3:
            event["y"] = i % 2 == 0
        if form == "columns" or i % 5:
            event["id"] = f"e{i}"
        lines.append(json.dumps(event))
    data = "\n".join(lines).encode() + b"\n"
    decoder = make_decoder("binary", None, schema={"a": "number"} if form == "columns" else None)
    batch = decoder.decode(Block("events", data, 0, n, 0, len(data))).batch
    batch.index = index
    return batch


def predictions_of(form: str, n: int = N) -> Predictions:
    p = np.arange(n) / n
    if form == "columns":
        return Predictions(p > 0.5, Table((False, True), np.column_stack([1 - p, p])))
    return Predictions(
        [None if i % 7 == 0 else i % 2 == 0 for i in range(n)],
        [{True: i / n, False: 1 - i / n} for i in range(n)],
    )


def encoded(batch, predictions) -> list[bytes]:
    text = encode_predictions(
        batch, predictions, task="binary", model="m", version=0, role="champion"
    )
    return text.splitlines()


@pytest.mark.parametrize("form", ["dicts", "columns"])
@pytest.mark.parametrize(("share", "only"), [(0.1, None), (1.0, "unlabelled"), (0.3, "unlabelled")])
def test_what_is_published_is_a_part_of_all_as_it_is(form, share, only):
    """Each line is that of all; there are about as many as asked for; labels decide exactly."""
    batch, made = batch_of(form), predictions_of(form)
    everything = encoded(batch, made)
    chosen = encoded(*Choice(share, only).apply(batch, made))
    places = [json.loads(line)["origin"][2] for line in chosen]
    assert chosen == [everything[i] for i in places]
    if only:
        assert all(i % 3 == 0 for i in places)
    expected = share * (len(range(0, N, 3)) if only else N)
    assert abs(len(chosen) - expected) <= 5 * expected**0.5 * (1 - share) ** 0.5


@pytest.mark.parametrize("cut", [1, 7, 1_000, N])
def test_the_choice_does_not_depend_on_how_the_stream_was_cut(cut):
    """Nor on what was read before, so a resumed run chooses the same."""
    batch, made = batch_of("columns", 3_000), predictions_of("columns", 3_000)
    choice = Choice(0.2)
    whole = encoded(*choice.apply(batch, made))
    parts = []
    for i in range(0, 3_000, cut):
        rows = np.arange(i, min(i + cut, 3_000))
        parts += encoded(*choice.apply(batch[i : i + cut], made.take(rows)))
    assert parts == whole


def test_a_larger_share_has_all_of_a_smaller_one():
    """So that a share may be raised and the records stay comparable."""
    batch, made = batch_of("columns"), predictions_of("columns")
    shares = [set(encoded(*Choice(share).apply(batch, made))) for share in (0.01, 0.1, 0.5, 1.0)]
    assert all(few < many for few, many in pairwise(shares))


def test_partitions_are_chosen_from_independently():
    """The same offsets of two partitions are not all chosen in both."""
    made = predictions_of("columns")
    chosen = [
        {json.loads(line)["origin"][2] for line in encoded(*Choice(0.5).apply(batch, made))}
        for batch in (batch_of("columns", index=0), batch_of("columns", index=1))
    ]
    both = len(chosen[0] & chosen[1])
    assert abs(both - N / 4) < 5 * (N * 3 / 16) ** 0.5, f"{both} of {N} in both; expected {N / 4}"


def test_none_of_a_batch_may_be_chosen():
    """Then nothing is encoded."""
    batch, made = batch_of("dicts", 3), predictions_of("dicts", 3)
    assert encoded(*Choice(1e-12).apply(batch, made)) == []
    assert encoded(*Choice(0.5, "unlabelled").apply(batch[1:1], made.take(np.arange(0)))) == []


def test_rows_of_one_message_are_chosen_each_by_itself():
    """They share an offset; about as many of them are published as asked for."""
    batch, made = batch_of("dicts"), predictions_of("dicts")
    batch.rows, batch.offsets = batch.offsets, np.full(N, 7)
    chosen, _ = Choice(0.1).apply(batch, made)
    assert abs(len(chosen) - 0.1 * N) < 0.01 * N
    more, _ = Choice(0.2).apply(batch, made)
    assert set(chosen.rows.tolist()) < set(more.rows.tolist())
