"""What a model was learned from: the same however it came, and added up as it should be."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midstream.engine.events.batch import EventBatch
from midstream.engine.events.columns import Categories, Texts
from midstream.engine.events.stream_hash import over_texts
from midstream.engine.shard.dataset import OTHERS, DataSet, added, from_plain, joined, plain, since

IDS = st.lists(st.none() | st.text(max_size=20), max_size=30)
STRETCHES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=20)


def texts(values) -> Texts:
    """Return strings as the scanners give them, with bytes between that belong to none."""
    data, starts, stops = b"", [], []
    for value in values:
        data += b'","'
        starts.append(-1 if value is None else len(data))
        data += (value or "").encode()
        stops.append(len(data))
    return Texts(memoryview(data), np.array(starts, np.int64), np.array(stops, np.int64))


def categories(values) -> Categories:
    """Return strings by code, each of two codes, with words that none has."""
    words = ["unused", *dict.fromkeys(v for v in values if v is not None)] * 2
    half = len(words) // 2
    codes = [-1 if v is None else words.index(v, 1) + half * (i % 2) for i, v in enumerate(values)]
    return Categories(np.array(codes, np.int64), words)


def nothing(values) -> list[str | None]:
    return list(values)


FORMS = {"list": nothing, "texts": texts, "categories": categories}


def batch(ids, sources=None, start=0) -> EventBatch:
    n = len(ids if ids is not None else sources or [])
    offsets = np.arange(start, start + n, dtype=np.int64)
    return EventBatch([{}] * n, [None] * n, offsets=offsets, ids=ids, sources=sources)


def learned(ids, cuts=(), form=nothing, sources=None) -> DataSet:
    """Return the data set of events in batches that end at `cuts`."""
    data = DataSet()
    edges = [0, *sorted({c for c in cuts if 0 < c < len(ids)}), len(ids)]
    for start, stop in pairwise(edges):
        own = None if sources is None else form(sources[start:stop])
        data.add("t-0", start, stop, batch(form(ids[start:stop]), own, start))
    return data


@settings(deadline=None)  # the first one compiles
@given(IDS, st.lists(st.integers(0, 30)), st.sampled_from(sorted(FORMS)), st.data())
@example(["", None, "é", "12345678", "123456789"], [1, 2, 3, 4], "texts", None)
def test_batches_and_the_form_of_columns_make_no_difference(ids, cuts, form, data):
    """However a stream was cut, and in whatever form ids and sources came, it is the same data."""
    names = st.none() | st.sampled_from(["a", "b", "é", OTHERS])
    n = len(ids)
    sources = None if data is None else data.draw(st.lists(names, min_size=n, max_size=n))
    whole = learned(ids, sources=sources)
    assert learned(ids, cuts, FORMS[form], sources) == whole
    assert whole.events == n
    assert sum(whole.sources.values()) == sum(s is not None for s in sources or [])


def test_the_ids_of_a_column_taken_apart_are_its_own():
    """Rows taken from a column, in another order and with gaps, print as the same ids in a list."""
    values = ["a", None, "bé", "", "longer than eight bytes"]
    rows = np.array([4, 1, 0, 3])
    chosen = [values[i] for i in rows]
    for form in (texts, categories):
        assert learned(form(values).take(rows)) == learned(chosen)


@settings(deadline=None)
@given(IDS, IDS)
@example(["ab", "c"], ["a", "bc"])
@example(["a", ""], ["a"])
@example(["a\0"], ["a"])
@example(["\0" * 7 + "a"], ["\0" * 6 + "a"])
@example(["", "a"], ["a", ""])
@example(["a", None], ["a", ""])
@example([], [None])
@example([None], [None, ""])
def test_other_ids_are_other_data(one, other):
    """The print tells ids apart, where they begin and end, their order, and where none is."""
    prints = learned(one).fingerprint, learned(other).fingerprint
    assert (prints[0] == prints[1]) == (one == other), f"{prints[0]:016x}"


def test_events_without_ids_print_as_their_positions():
    """A batch in which none brought an id is that of as many Nones; at other positions another."""
    bare = DataSet()
    bare.add("t-0", 5, 8, EventBatch([{}] * 3, [None] * 3, offsets=np.arange(5, 8)))
    nones, moved = DataSet(), DataSet()
    nones.add("t-0", 5, 8, batch([None] * 3, start=5))
    moved.add("t-0", 5, 8, batch([None] * 3, start=6))
    assert bare == nones
    assert bare.fingerprint != moved.fingerprint


def test_ids_that_no_utf8_has_print_too():
    """Half a surrogate pair, which JSON can spell, is an id as another."""
    one, other = learned(["\ud800"]), learned(["\ud801"])
    assert one.fingerprint != other.fingerprint
    assert one == learned(["\ud800"])


@given(STRETCHES)
def test_stretches_are_what_was_applied_and_no_two_touch(pieces):
    """In whatever order pieces come, they cover what they cover, risen and joined."""
    found = []
    for start, length in pieces:
        found = added(found, start, start + length) if length else found
    covered = {p for start, length in pieces for p in range(start, start + length)}
    assert [p for start, stop in found for p in range(start, stop)] == sorted(covered)
    ends = [stop for _, stop in found[:-1]]
    assert all(stop < start for stop, (start, _) in zip(ends, found[1:], strict=True))


def test_a_stretch_of_nothing_is_none():
    """What ends where it begins leaves no trace, and no partition."""
    data = DataSet()
    data.skip("t-0", 4, 4)
    assert data == DataSet()


@settings(deadline=None)
@given(STRETCHES, STRETCHES, st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_since_is_what_came_after(before, after, old_sources, new_sources):
    """What is in a data set and was not in the one it grew from: input, events and sources."""

    def apply(pieces, sources):
        for start, length in pieces:
            data.skip(f"t-{start % 2}", start, start + length)
        data.add("s-0", 0, 0, batch([None] * len(sources), list(sources)))

    def places(data):
        return {(p, i) for p, found in data.stretches.items() for s in found for i in range(*s)}

    data = DataSet()
    apply(before, old_sources)
    old = data.copy()
    apply(after, new_sources)
    data.left_out += 3
    news = since(data, old)
    assert places(news) == places(data) - places(old)
    assert news.events == len(new_sources)
    assert news.sources == {s: new_sources.count(s) for s in set(new_sources)}
    assert news.left_out == 3
    assert news.fingerprint == data.fingerprint
    assert since(data, data.copy()).stretches == {}


def test_a_copy_shares_nothing():
    """What is added to a data set is not added to what was copied from it, nor back."""
    data = learned(["a", "b"], sources=["x", "y"])
    copy = data.copy()
    data.add("t-0", 2, 3, batch(["c"], ["x"], 2))
    assert copy == learned(["a", "b"], sources=["x", "y"])
    copy.skip("t-0", 1, 9)
    assert data.stretches == {"t-0": [[0, 3]]}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_of_many_sources_the_first_thousand_have_a_name(form):
    """The rest counts together, whatever the cuts: so a poisoner cannot make the state grow."""
    names = [f"s{i:04d}" for i in range(1_500)] * 2
    ids = [None] * len(names)
    whole = learned(ids, form=FORMS[form], sources=names)
    assert len(whole.sources) == 1_001, f"{len(whole.sources)} sources; limit 1,000 and the others"
    assert whole.sources["s0000"] == whole.sources["s0999"] == 2
    assert whole.sources[OTHERS] == 1_000
    assert learned(ids, range(0, 3_000, 7), FORMS[form], names) == whole


def test_shards_together_are_their_sum_and_their_order():
    """Input, events and sources add up; the print is that of all, and knows who was who."""
    one = learned(["a", "b"], sources=["x", "y"])
    other = DataSet({"t-1": [[0, 4]]}, 4, {"y": 3}, 77, 2)
    both = joined([one, other])
    assert both.stretches == {"t-0": [[0, 2]], "t-1": [[0, 4]]}
    assert both.events == 6
    assert both.sources == {"x": 1, "y": 4}
    assert both.left_out == 2
    assert both.fingerprint != joined([other, one]).fingerprint
    assert joined([]) == DataSet()


DATA = st.builds(
    DataSet,
    st.dictionaries(st.text(), st.lists(st.lists(st.integers(0), min_size=2, max_size=2))),
    st.integers(0),
    st.dictionaries(st.text(), st.integers(0)),
    st.integers(0, 2**64 - 1),
    st.integers(0),
)


@given(DATA)
def test_it_survives_json(data):
    """Plain values come back as they were; the print is 16 hexadecimal digits, a string."""
    told = json.loads(json.dumps(plain(data)))
    assert len(told["fingerprint"]) == 16
    assert from_plain(told) == data


def test_what_is_read_back_goes_on_as_the_original():
    """A data set out of a snapshot's header prints further ids as the one that was put in."""
    data = learned(["a", "é"])
    again = from_plain(plain(data))
    for each in (data, again):
        each.add("t-0", 2, 3, batch(["c"], None, 2))
    assert again == data == learned(["a", "é", "c"])


@pytest.mark.parametrize("length", [*range(26), 101, 104, 105])
def test_texts_of_any_length_leave_a_print_of_their_own(length):
    """Up to the last byte of their data; one of them is not there."""
    data = np.frombuffer(b"y" * (3 * length), np.uint8)
    starts, stops = np.array([0, -1, length]), np.array([length, 0, 3 * length])
    numbers, seed = np.arange(3), np.uint64(1)
    print_ = over_texts(seed, data, starts, stops, numbers)
    assert print_ == over_texts(seed, data.copy(), starts, stops, numbers)
    if length:
        other = data.copy()
        other[-1] = 0
        assert print_ != over_texts(seed, other, starts, stops, numbers)


@pytest.mark.parametrize(
    ("starts", "stops", "numbers"),
    [
        ([0], [7], [1]), ([3], [2], [1]), ([2**62], [2**62 + 1], [1]), ([0, 1], [1], [1, 2]),
        ([-1], [0], []),
    ],
)  # fmt: skip
def test_a_text_beyond_its_data_leaves_no_print(starts, stops, numbers):
    """It is refused."""
    given = (np.array(values, np.int64) for values in (starts, stops, numbers))
    with pytest.raises(ValueError, match="text"):
        over_texts(np.uint64(1), np.zeros(6, np.uint8), *given)
