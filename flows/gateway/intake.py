"""Takes messages from HTTP and raw topics, removes repeated ones, and writes the rest in groups."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from midstream.flows.gateway.memory import Memory
from midstream.flows.gateway.validation import KEY_BYTES
from midstream.flows.gateway.writer import (
    DoubtError,
    Message,
    RefusedError,
    UnwrittenError,
    Writer,
)
from midstream.flows.logs import log

__all__ = ["ACCEPTED", "CONFLICT", "DUPLICATE", "Intake", "Outcome"]

_T = TypeVar("_T")
_GROUP = 5_000  # messages in a transaction
_GROUP_BYTES = 8 * 2**20
_MOST_WAITING = 50_000
_MOST_BYTES = 64 * 2**20
_PAUSE = 0.5  # seconds between two attempts
_OWNER_SECONDS = 5.0
_COMMIT_SECONDS = 20.0


class Outcome(NamedTuple):
    """What became of a message: a status, and a reason where it was not taken."""

    status: str
    reason: str = ""


ACCEPTED = Outcome("accepted")
DUPLICATE = Outcome("duplicate")
CONFLICT = Outcome("conflict", "the idempotency key was used for other feedback")


@dataclass(slots=True)
class _Entry:
    """A message that waits, and who waits for it."""

    message: Message
    first: Callable[[Outcome], None]
    repeats: list[Callable[[Outcome], None]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.message.value) + 200


class Intake:
    """The one way into the topics.

    Whoever offers messages is called back for each. A message that is offered again while the first
    waits shares its outcome. What the brokers do not take waits until they do, or the process ends.

    Parameters
    ----------
    writer
        Writes; only this object calls it.
    memory
        Which idempotency keys were written.

    Attributes
    ----------
    ready
        Set while messages are written; not while the brokers are away, nor before `run` has found
        out what the topics hold.
    """

    def __init__(self, writer: Writer, memory: Memory) -> None:
        self.ready = asyncio.Event()
        self.memory = memory
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, "gateway-writer")
        self._units: deque[list[_Entry]] = deque()
        self._entries: dict[bytes, _Entry] = {}
        self._bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._reported_why = ""

    @property
    def waiting(self) -> int:
        """How many messages wait for an acknowledgement."""
        return len(self._entries)

    @property
    def has_room(self) -> bool:
        """Whether more may be offered."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait until more may be offered."""
        await self._room.wait()

    async def idle(self) -> None:
        """Wait until nothing waits."""
        await self._idle.wait()

    def offer(self, messages: Sequence[Message], settle: Callable[[int, Outcome], None]) -> None:
        """Take messages, which are written together; `settle` gets the outcome of each, once.

        It may be called before this returns, and is given the message's index.
        """
        unit: list[_Entry] = []
        for index, message in enumerate(messages):
            key, content = message.mark[:KEY_BYTES], message.mark[KEY_BYTES:]
            known = self.memory.get(key)
            entry = self._entries.get(key)
            if known is not None:
                settle(index, DUPLICATE if known == content else CONFLICT)
            elif entry is None:
                entry = _Entry(message, partial(settle, index))
                self._entries[key] = entry
                self._bytes += entry.size
                unit.append(entry)
            elif entry.message.mark[KEY_BYTES:] != content:
                settle(index, CONFLICT)
            else:
                entry.repeats.append(partial(settle, index))
        if unit:
            self._units.append(unit)
            self._idle.clear()
            self._wake.set()
            if len(self._entries) >= _MOST_WAITING or self._bytes >= _MOST_BYTES:
                self._room.clear()

    async def run(self) -> None:
        """Write what is offered, until cancelled.

        Raises
        ------
        SupersededError
            If another gateway of this name is running.
        """
        await self._settled()
        written = time.monotonic()
        while True:
            group = self._next_group()
            if not group:
                self._wake.clear()
                try:
                    left = written + _OWNER_SECONDS - time.monotonic()
                    async with asyncio.timeout(max(0.0, left)):
                        await self._wake.wait()
                except TimeoutError:
                    await self._attempt(self._owned())
                    written = time.monotonic()
                continue
            if await self._attempt(self._write(group)):
                written = time.monotonic()

    def close(self) -> None:
        """Give the thread back; what waits is not written."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_group(self) -> list[_Entry]:
        """Take whole units, up to the size of a transaction."""
        group: list[_Entry] = []
        size = 0
        while self._units:
            unit = self._units[0]
            more = sum(entry.size for entry in unit)
            if group and (len(group) + len(unit) > _GROUP or size + more > _GROUP_BYTES):
                break
            group += self._units.popleft()
            size += more
        return group

    async def _attempt(self, work: Awaitable[Any]) -> bool:
        """Do something with the brokers; return whether it was done. Else wait a moment."""
        try:
            await work
        except UnwrittenError as error:
            self._trouble(str(error))
            await asyncio.sleep(_PAUSE)
            return False
        except DoubtError as error:
            self._trouble(str(error))
            await self._settled()
            return False
        self._fine()
        return True

    async def _write(self, group: list[_Entry]) -> None:
        faulty = [(entry, why) for entry in group if (why := self._writer.fault(entry.message))]
        for entry, why in faulty:
            self._settle(entry, Outcome("refused", why))
            group.remove(entry)
        if not group:
            return
        messages = [entry.message for entry in group]
        try:
            ends = await self._in_thread(lambda: self._writer.write(messages, _COMMIT_SECONDS))
        except RefusedError as error:
            left = [entry for index, entry in enumerate(group) if index not in error.indices]
            for index in error.indices:
                self._settle(group[index], Outcome("refused", str(error)))
            if left:
                self._units.appendleft(left)
            return
        except (UnwrittenError, DoubtError):
            self._units.appendleft(group)
            raise
        self.memory.add((message.mark for message in messages), ends)
        for entry in group:
            self._settle(entry, ACCEPTED)

    async def _owned(self) -> None:
        self.memory.forget()
        await self._in_thread(lambda: self._writer.still_ours(_COMMIT_SECONDS))

    async def _settled(self) -> None:
        """Open the writer, and find out what the topics hold; try until it is done."""
        while True:
            try:
                await self._in_thread(lambda: self._writer.open(_COMMIT_SECONDS))
                found = await self._in_thread(self._tail)
                break
            except UnwrittenError as error:
                self._trouble(str(error))
                await asyncio.sleep(_PAUSE)
        marks, ends = found
        if marks:
            self.memory.add(marks, ends)
            log.info("gateway_recalled", messages=len(marks))
        for unit in self._units:
            for entry in unit[:]:
                if self.memory.get(entry.message.mark[:KEY_BYTES]) is not None:
                    unit.remove(entry)
                    self._settle(entry, ACCEPTED)
        self._units = deque(unit for unit in self._units if unit)
        self._fine()

    def _tail(self) -> tuple[list[bytes], dict[str, int]]:
        """Return what the topics hold that is not remembered, and where they end."""
        marks: list[bytes] = []
        ends: dict[str, int] = {}
        since = time.time() - self.memory.seconds
        for written in self._writer.tail(self.memory.ends, since, _COMMIT_SECONDS):
            marks.append(written.mark)
            ends[written.place] = written.offset
        return marks, ends

    def _settle(self, entry: _Entry, outcome: Outcome) -> None:
        del self._entries[entry.message.mark[:KEY_BYTES]]
        self._bytes -= entry.size
        if len(self._entries) < _MOST_WAITING // 2 and self._bytes < _MOST_BYTES // 2:
            self._room.set()
        if not self._entries:
            self._idle.set()
        entry.first(outcome)
        for settle in entry.repeats:
            settle(DUPLICATE if outcome is ACCEPTED else outcome)

    def _trouble(self, why: str) -> None:
        self.ready.clear()
        if not self._reported_why:
            log.warning("gateway_waits", reason=why)
        self._reported_why = why

    def _fine(self) -> None:
        if self._reported_why:
            log.info("gateway_goes_on")
        self._reported_why = ""
        self.ready.set()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
