"""The one way into the topics: repeated sends, groups, brokers that are away, and takeovers."""

import asyncio
import threading

import pytest
from gateways import ListWriter

from midstream.flows.gateway import intake as module
from midstream.flows.gateway.intake import ACCEPTED, CONFLICT, DUPLICATE, Intake
from midstream.flows.gateway.memory import Memory
from midstream.flows.gateway.writer import (
    DoubtError,
    Message,
    RefusedError,
    SupersededError,
    UnwrittenError,
)


def message(number, content=0, size=10):
    mark = number.to_bytes(16, "big") + content.to_bytes(8, "big")
    return Message("t", b"k", b"1" * size, mark)


class Offers:
    """Offers messages to an intake that runs, and keeps the outcomes."""

    def __init__(self, writer, memory=None):
        self.writer = writer
        self.intake = Intake(writer, memory or Memory(1e6, 1_000_000))

    async def __aenter__(self):
        self.running = asyncio.create_task(self.intake.run())
        return self

    async def __aexit__(self, *_):
        self.writer.gate.set()
        self.running.cancel()
        self.intake.close()

    def begin(self, *messages):
        outcomes = [None] * len(messages)
        left = [len(messages)]
        done = asyncio.get_running_loop().create_future()

        def settle(index, outcome):
            assert outcomes[index] is None, "an outcome came twice"
            outcomes[index] = outcome
            left[0] -= 1
            if not left[0]:
                done.set_result(outcomes)

        self.intake.offer(messages, settle)
        return done


def run(work, writer=None):
    async def all_of_it():
        async with asyncio.timeout(120), Offers(writer or ListWriter()) as offers:
            await work(offers)

    asyncio.run(all_of_it())


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.001)


def test_a_repeated_send_is_written_once():
    """Whether the first is written, waits, or is in the same request; another content conflicts."""

    async def work(offers):
        assert await offers.begin(message(1), message(2), message(1)) == [
            ACCEPTED, ACCEPTED, DUPLICATE,
        ]  # fmt: skip
        assert await offers.begin(message(1), message(1, content=9)) == [DUPLICATE, CONFLICT]
        offers.writer.gate.clear()
        first, again = offers.begin(message(3)), offers.begin(message(3), message(3, content=9))
        await asyncio.sleep(0)
        assert not again.done()
        offers.writer.gate.set()
        assert await first == [ACCEPTED]
        assert await again == [DUPLICATE, CONFLICT]
        assert len(offers.writer.messages) == 3

    run(work)


def test_many_small_requests_are_one_transaction_and_a_large_one_is_never_split(monkeypatch):
    """Groups are of whole requests, up to their limit."""
    monkeypatch.setattr(module, "_GROUP", 100)

    async def work(offers):
        await offers.intake.ready.wait()
        offers.writer.gate.clear()
        first = offers.begin(message(0))
        await asyncio.sleep(0.05)
        units = [[message(1000 * u + n) for n in range(1, 31)] for u in range(1, 11)]
        done = [offers.begin(*unit) for unit in units]
        offers.writer.gate.set()
        await first
        for outcomes in await asyncio.gather(*done):
            assert outcomes == [ACCEPTED] * 30
        assert offers.writer.groups == [1, 90, 90, 90, 30]

    run(work)


def test_what_brokers_do_not_take_waits_until_they_do():
    """Not ready meanwhile; then all of it is written, once, in its order."""

    async def work(offers):
        await offers.intake.ready.wait()
        offers.writer.errors = [UnwrittenError("away")] * 3
        one, two = offers.begin(message(1)), offers.begin(message(2))
        assert [await one, await two] == [[ACCEPTED], [ACCEPTED]]
        assert [m.mark[15] for m in offers.writer.messages] == [1, 2]
        assert offers.intake.ready.is_set()
        assert offers.intake.waiting == 0

    run(work)


@pytest.mark.parametrize("after", [False, True])
def test_a_doubtful_write_is_looked_up(after):
    """Whether the group was written or not, each message is there once and told as accepted."""

    async def work(offers):
        await offers.intake.ready.wait()
        doubt = DoubtError("no answer")
        doubt.after = after
        offers.writer.errors = [doubt]
        assert await offers.begin(message(1), message(2)) == [ACCEPTED, ACCEPTED]
        assert await offers.begin(message(1)) == [DUPLICATE]
        assert len(offers.writer.messages) == 2
        assert offers.writer.opened == 2

    run(work)


def test_what_the_topic_holds_beyond_the_table_is_recalled():
    """A process that died between the topic and the table leaves no gap: a repeat is one."""

    async def work(offers):
        await offers.intake.ready.wait()
        assert await offers.begin(message(1), message(3)) == [DUPLICATE, ACCEPTED]

    writer = ListWriter()
    writer.messages = [message(1), message(2)]
    run(work, writer)


def test_a_message_that_is_never_taken_does_not_hold_up_others():
    """Too large for the client or for the topic: it is refused, with the reason."""

    async def work(offers):
        large = message(9, size=20_000)
        assert await offers.begin(message(1), large) == [ACCEPTED, ("refused", "too large")]
        assert await offers.begin(large._replace(mark=message(10).mark)) == [
            ("refused", "too large")
        ]
        offers.writer.errors = [RefusedError("the topic's limit", [1])]
        assert await offers.begin(message(2), message(3), message(4)) == [
            ACCEPTED, ("refused", "the topic's limit"), ACCEPTED,
        ]  # fmt: skip
        assert await offers.begin(message(3)) == [ACCEPTED], "it may be tried again"

    run(work)


def test_a_gateway_that_was_superseded_ends():
    """When it writes, and when it has nothing to write."""

    async def work(offers):
        await offers.intake.ready.wait()
        offers.writer.errors = [SupersededError("another")]
        offers.begin(message(1))
        with pytest.raises(SupersededError):
            await offers.running

    run(work)


def test_an_idle_gateway_asks_whether_it_is_still_the_one(monkeypatch):
    """Else it would read raw topics on, in turns with the one that superseded it."""
    monkeypatch.setattr(module, "_OWNER_SECONDS", 0.01)

    async def work(offers):
        with pytest.raises(SupersededError):
            await offers.running

    class Superseded(ListWriter):
        def still_ours(self, seconds):
            raise SupersededError("another")

    run(work, Superseded())


def test_there_is_room_for_so_many(monkeypatch):
    """Readers wait for room, which comes back when half is written."""
    monkeypatch.setattr(module, "_MOST_WAITING", 10)
    monkeypatch.setattr(module, "_GROUP", 3)

    async def work(offers):
        await offers.intake.ready.wait()
        offers.writer.gate.clear()
        done = [offers.begin(message(n)) for n in range(1, 10)]
        assert offers.intake.has_room
        done.append(offers.begin(message(10)))
        assert not offers.intake.has_room
        waits = asyncio.create_task(offers.intake.room())
        await asyncio.sleep(0.01)
        assert not waits.done()
        offers.writer.gate.set()
        await waits
        await asyncio.gather(*done)
        await offers.intake.idle()

    run(work)


def test_nothing_is_ready_before_the_topics_are_read():
    """What is offered meanwhile waits."""
    writer = ListWriter()
    writer.gate.clear()

    async def work(offers):
        done = offers.begin(message(1))
        await asyncio.sleep(0.02)
        assert not offers.intake.ready.is_set()
        assert not done.done()
        threading.Timer(0.01, writer.gate.set).start()
        assert await done == [ACCEPTED]

    run(work, writer)
