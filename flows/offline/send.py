"""Sends a file of events to a topic, for `midstream send`."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec
from msgspec import UNSET, UnsetType
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from midstream.connectors.decode.fields import Kind
from midstream.connectors.decode.notation import Notation
from midstream.connectors.encode.outgoing import CsvMessages, JsonMessages, Messages
from midstream.connectors.files.discovery import FilePartition, StdinPartition, discover
from midstream.connectors.input import InputError
from midstream.connectors.kafka.sender import Sender
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.inputs.topics import open_sender
from midstream.flows.process import stop_signals

__all__ = ["Sent", "destination", "send"]

_BLOCK_BYTES = 128 * 1024
_LATE = 1.0  # maximum lag in seconds that a paced sender makes up for
_DRAWN = 0.1  # seconds between updates of the progress
_KINDS: dict[str, Kind] = {"number": "number", "category": "string"}


class Sent(msgspec.Struct):
    """The result of sending. `error` says why not everything was sent, if so.

    `sent` messages were passed to the client; each was `acknowledged` by the brokers or has
    `failed`. `blank` lines are no messages. `seconds` is the time from the first read to the last
    answer.
    """

    topic: str
    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    blank: int = 0
    seconds: float = 0.0
    messages_per_second: float = 0.0
    error: str | UnsetType = UNSET


def destination(settings: Settings, topic: str | None) -> str:
    """Return the topic to send to: the one given, else the config's input.

    Raises
    ------
    ConfigError
        If there is none, or the config names no brokers.
    """
    if "bootstrap.servers" not in settings.kafka:
        raise ConfigError(
            f'{settings.file}: kafka."bootstrap.servers": missing; needed: the brokers, as '
            "host:port,host:port"
        )
    if topic is None and settings.input.topic is None:
        raise ConfigError(f"{settings.file}: input.topic: missing; or give --topic")
    return topic or str(settings.input.topic)


class _Source:
    """A file of JSON Lines or CSV, or standard input, as messages.

    Raises
    ------
    InputError
        If it does not exist, or has another format.
    """

    def __init__(self, settings: Settings, path: str, key: str | None) -> None:
        self._settings = settings
        self._key = key
        self._messages: JsonMessages | CsvMessages | None = None
        self.size: int | None = None
        """Size in bytes, if known."""
        most = settings.input.max_record_bytes
        self._partition: FilePartition | StdinPartition
        if path == "-":
            self._partition = StdinPartition(max_record_bytes=most)
            return
        full = Path(path).absolute()
        if not full.is_file():
            raise InputError(f"{path}: is no file; needed: one of JSON Lines or CSV, or -")
        ((_, _, form),) = discover(str(full), full.parent)
        if form == "arrow" or form == "parquet":  # noqa: PLR1714 tells the types
            raise InputError(f"{path}: is {form}; only JSON Lines and CSV can be sent")
        self._partition = FilePartition(full, path, format=form, max_record_bytes=most)
        with full.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        self.size = None if compressed else full.stat().st_size

    @property
    def name(self) -> str:
        return self._partition.name

    @property
    def position(self) -> int:
        """Number of bytes read."""
        return self._partition.position.offset

    @property
    def ended(self) -> bool:
        """Whether there is nothing more, after `next` returned None."""
        return self._partition.at_end

    def next(self) -> Messages | None:
        """Return some messages; None if none are available now."""
        block = self._partition.read(_BLOCK_BYTES, final=True)
        if block is None:
            return None
        if self._messages is None:
            self._messages = self._reader()
        return self._messages.convert(block)

    def close(self) -> None:
        self._partition.close()

    def _reader(self) -> JsonMessages | CsvMessages:
        csv, settings = self._partition.csv_options, self._settings
        if csv is None:
            return JsonMessages(self._key)
        if settings.input.fields is None:
            raise InputError(f"{self.name}: CSV needs [input.fields]: which column is the label?")
        kinds = {name: _KINDS[kind] for name, kind in settings.features.items()}
        return CsvMessages(
            csv,
            settings.input.fields,
            kinds,
            self._key,
            task=settings.model.task,
            notation=Notation(settings.input.fields, settings.model.labels),
        )


class _Pace:
    """Schedules messages evenly, `rate` per second. None: without delay."""

    def __init__(self, rate: float | None) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._due = time.perf_counter()

    def wait(self, sender: Sender, stop: Callable[[], bool]) -> None:
        """Wait until the next message is due."""
        if not self._gap:
            sender.poll(0)
            return
        while (left := self._due - time.perf_counter()) > 0 and not stop():
            sender.poll(min(left, 0.1))
        sender.poll(0)
        # Make up for a delay, but only up to a limit: more would be a flood.
        self._due = max(self._due + self._gap, time.perf_counter() - _LATE)


def send(
    settings: Settings,
    path: str,
    *,
    topic: str | None = None,
    rate: float | None = None,
    key: str | None = None,
    show: bool = False,
) -> Sent:
    """Send each line of JSON Lines, or each row of CSV, as a message.

    It stops at the first line that cannot be sent, at the first message that is not acknowledged,
    and on SIGINT or SIGTERM. It then waits for queued messages.

    Parameters
    ----------
    path
        The file; "-" is standard input.
    topic
        Topic to use instead of the config's input.
    rate
        Messages per second, evenly spaced; None: as fast as the brokers accept them.
    key
        The field, or column, whose value is the message's key. None: no keys.
    show
        Whether to show progress on standard error.

    Raises
    ------
    ConfigError, InputError
        If nothing can be sent; then nothing was sent.
    """
    result = Sent(destination(settings, topic))
    source = _Source(settings, path, key)
    sender = open_sender(settings, result.topic)
    begun = time.perf_counter()
    fault = ""
    with _signals() as stopped, _progress(source, sender, show=show) as draw:
        pace = _Pace(rate)

        def stop() -> bool:
            return bool(stopped or sender.failed)

        while not (stop() or fault):
            try:
                found = source.next()
            except InputError as error:
                fault = str(error)
                break
            if found is None:
                if source.ended:
                    break
                sender.poll(0.05)
                draw()
                continue
            result.blank += found.blank
            for line, value, its_key in found.messages:
                pace.wait(sender, stop)
                try:
                    if stop() or not sender.send(value, its_key, stop):
                        break
                except InputError as error:
                    fault = f"{source.name}:{line}: {error}"
                    break
                result.sent += 1
                draw()
            else:
                if found.fault:
                    fault = f"{source.name}:{found.line}: {found.fault}"
        sender.flush()
        draw(last=True)
    source.close()
    result.acknowledged, result.failed = sender.acknowledged, sender.failed
    result.seconds = time.perf_counter() - begun
    result.messages_per_second = result.acknowledged / max(result.seconds, 1e-9)
    if sender.failed:
        fault = fault or f"{result.topic}: {sender.failed:,} not delivered: {sender.reason}"
    elif stopped:
        fault = fault or f"stopped by {stopped[0]}"
    if fault:
        result.error = f"{fault}; {result.acknowledged:,} messages were acknowledged"
    return result


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Give a list that gets the name of the first SIGINT or SIGTERM; a second one kills us."""
    caught: list[str] = []

    def handle(number: int, _: FrameType | None) -> None:
        caught.append(signal.Signals(number).name)
        for each, handler in old.items():
            signal.signal(each, handler)

    old = {s: signal.signal(s, handle) for s in stop_signals()}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _progress(source: _Source, sender: Sender, *, show: bool) -> Iterator[Callable[..., None]]:
    """Give a function that shows progress: bytes of the file, and messages acknowledged."""
    if not show:
        yield lambda *, last=False: None  # noqa: ARG005
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[acknowledged]:,} acknowledged"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(source.name, total=source.size, acknowledged=0)
        drawn = 0.0

        def draw(*, last: bool = False) -> None:
            nonlocal drawn
            now = time.perf_counter()
            if last or now - drawn >= _DRAWN:
                drawn = now
                progress.update(task, completed=source.position, acknowledged=sender.acknowledged)

        yield draw
