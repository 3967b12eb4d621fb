"""Which idempotency keys were written, over the life of a process and beyond."""

import pytest

from midstream.flows.gateway import memory as module
from midstream.flows.gateway.memory import Memory


@pytest.fixture
def clock(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    return now


def mark(number, content=0):
    return number.to_bytes(16, "big") + content.to_bytes(8, "big")


def key(number):
    return mark(number)[:16]


def test_another_process_remembers_what_the_table_has(clock):
    """Keys, the digests of their contents, and where the topics ended."""
    table = {}
    one = Memory(100.0, 1_000)
    one.attach(table)
    one.add([mark(1, 11), mark(2, 22)], {"t/0": 5})
    one.add([mark(3)], {"t/1": 9, "t/0": 6})
    again = Memory(100.0, 1_000)
    again.attach(table)
    assert len(again) == 3
    assert [again.get(key(n)) for n in (1, 2, 3, 4)] == [
        mark(0, 11)[16:], mark(0, 22)[16:], mark(0)[16:], None,
    ]  # fmt: skip
    assert again.ends == {"t/0": 6, "t/1": 9}
    again.add([mark(4)], {})
    assert sorted(table) == [f"{n:016d}" for n in range(3)], "names go on where they ended"


def test_a_table_with_a_gap_does_not_tell_where_the_topics_ended(clock):
    """What is missing is read from the topics, from the last end before the gap on."""
    table = {}
    one = Memory(100.0, 1_000)
    one.attach(table)
    for number in range(1, 5):
        one.add([mark(number)], {"t/0": number})
    del table[f"{2:016d}"]
    again = Memory(100.0, 1_000)
    again.attach(table)
    assert again.ends == {"t/0": 2}
    assert [again.get(key(n)) is not None for n in (1, 2, 3, 4)] == [True, True, False, True]
    again.add([mark(3), mark(4)], {"t/0": 4})
    assert again.ends == {"t/0": 4}
    assert again.get(key(3)) is not None


def test_a_group_is_one_entry_of_the_table(clock):
    """So the changelog has a message for each transaction, and not for each key."""
    table = {}
    memory = Memory(100.0, 100_000)
    memory.attach(table)
    memory.add([mark(n) for n in range(5_000)], {"t/0": 1})
    assert len(table) == 1
    assert len(str(table)) < 5_000 * 33 + 200
    memory.add([mark(n) for n in range(5_000, 30_000)], {"t/0": 2})
    assert len(table) == 4
    assert [entry["ends"] for entry in table.values()] == [{"t/0": 1}, {}, {}, {"t/0": 2}]


def test_what_is_old_is_forgotten(clock):
    """In the table, too."""
    table = {}
    memory = Memory(100.0, 1_000)
    memory.attach(table)
    memory.add([mark(1)], {"t/0": 1})
    clock[0] += 60
    memory.add([mark(2)], {"t/0": 2})
    clock[0] += 60
    memory.forget()
    assert (memory.get(key(1)), memory.get(key(2)) is not None, len(table)) == (None, True, 1)
    clock[0] += 1_000
    again = Memory(100.0, 1_000)
    again.attach(table)
    assert (len(again), table) == (0, {})


def test_memory_is_bounded(clock):
    """The oldest groups are forgotten first."""
    table = {}
    memory = Memory(1e9, 1_000)
    memory.attach(table)
    for n in range(50):
        memory.add([mark(100 * n + i) for i in range(100)], {})
        assert len(memory) <= 1_000
    assert memory.get(key(4_999)) is not None
    assert memory.get(key(3_999)) is None
    assert len(table) == 10


def test_a_key_is_remembered_once(clock):
    """What is read back from a topic may be remembered already; the first content stays."""
    memory = Memory(100.0, 1_000)
    memory.add([mark(1, 7)], {"t/0": 1})
    clock[0] += 60
    memory.add([mark(1, 8), mark(2)], {"t/0": 2})
    assert memory.get(key(1)) == mark(0, 7)[16:]
    assert memory.ends == {"t/0": 2}
    clock[0] += 60
    memory.forget()
    assert memory.get(key(1)) is None
    assert memory.get(key(2)) is not None
