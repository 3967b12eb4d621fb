"""Lives of a log: it grows and is rotated, compressed and read, at moments that a seed decides.

What reads it is ours as it is: the input of a shard, which is stopped, killed and begun again, with
cursors and ranges as a journal and a snapshot would give them back. Afterwards each line has to
have been read once, in the order in which it was written.
"""

import gzip
import random
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from midstream.connectors.files.input import FileInput
from midstream.engine.shard.journal import Range

INPUTS = {"one": "events.log", "glob": "events.log*", "both": "*"}

VERBOSE = False


class Log:
    """A log as a program writes it, and logrotate rotates it: numbered, dated, or dated inside."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng = rng
        self.folder = folder
        self.path = folder / "events.log"
        self.path.touch()
        self.style = rng.choice(["number", "number", "date", "inside"])
        self.packs = rng.random() < 0.5
        self.written: list[bytes] = []
        self.half = b""
        self.day = datetime(2026, 11, 29)
        self.rotated: list[Path] = []  # what it was, the newest first

    def append(self) -> None:
        rng = self.rng
        with self.path.open("ab") as file:
            for _ in range(rng.randint(1, 4)):
                line = b'{"id": "%d", "pad": "%s"}\n' % (
                    len(self.written),
                    b"x" * rng.randrange(80),
                )
                cut = rng.randrange(len(line)) if rng.random() < 0.2 else 0
                file.write(line[:cut])
                file.flush()
                file.write(line[cut:])
                self.written.append(line)

    def rotate(self) -> None:
        """Give the log, and those before it, other names; begin a new one, perhaps a bit later."""
        if not self.path.exists():
            return
        if self.style == "number":
            for i in range(len(self.rotated), 0, -1):
                old = self.rotated[i - 1]
                new = self.folder / re.sub(r"\.\d+", f".{i + 1}", old.name)
                old.rename(new)
                self.rotated[i - 1] = new
            name = self.folder / "events.log.1"
        else:
            self.day += timedelta(days=1)
            stamp = self.day.strftime("%Y%m%d")
            inside = self.style == "inside"
            name = self.folder / (f"events-{stamp}.log" if inside else f"events.log-{stamp}")
        self.path.rename(name)
        self.rotated.insert(0, name)
        if self.rng.random() < 0.8:
            self.path.touch()

    def late(self) -> None:
        """Write to what was rotated last, as a program does that has not been told yet."""
        if self.rotated and self.rotated[0].suffix != ".gz" and self.rotated[0].stat().st_size:
            line = b'{"id": "late %d"}\n' % len(self.written)
            with self.rotated[0].open("ab") as file:
                file.write(line)
            self.written.append(line)

    def pack(self) -> Path | None:
        """Begin to compress one that is not; `packed` ends that."""
        plain = [path for path in self.rotated[1:] if path.suffix != ".gz"]
        if not (self.packs and plain):
            return None
        path = self.rng.choice(plain)
        data = gzip.compress(path.read_bytes())
        target = path.with_name(path.name + ".gz")
        target.write_bytes(data[: self.rng.randrange(len(data))])
        return path

    def packed(self, path: Path) -> None:
        target = path.with_name(path.name + ".gz")
        target.write_bytes(gzip.compress(path.read_bytes()))
        shutil.copystat(path, target)
        path.unlink()
        self.rotated[self.rotated.index(path)] = target


class Reading:
    """Runs that read the log, one after the other, each killed or stopped at some moment."""

    def __init__(self, rng: random.Random, folder: Path, kind: str) -> None:
        self.rng = rng
        self.folder = folder
        self.kind = kind
        self.journal: list[Range] = []
        self.lines: list[bytes] = []
        self.snapshot = 0  # how much of the journal is in it
        self.input: FileInput | None = None

    def start(self, *, until_eof: bool) -> None:
        self.input = FileInput(INPUTS[self.kind], self.folder, until_eof=until_eof, format_="jsonl")
        cursors = {span.partition: span.at_stop() for span in self.journal[: self.snapshot]}
        known = {span.partition: span.at_stop() for span in self.journal}
        self.input.seek(cursors, known)
        for span in self.journal[self.snapshot :]:
            while not self.input.replay(span, 10_000).final:
                pass

    def read(self, most: int) -> None:
        assert self.input is not None
        if self.rng.random() < 0.5:
            self.input.rescan()
        for _ in range(most):
            work = self.input.read(self.rng.choice([1, 100, 1000]))
            if work is None:
                return
            self.journal.append(work.span)
            self.lines += work.block.data.splitlines(keepends=True)

    def end(self) -> None:
        assert self.input is not None
        self.input.close()
        self.input = None
        self.snapshot = self.rng.choice([len(self.journal), len(self.journal) - 1, self.snapshot])
        self.snapshot = max(self.snapshot, 0)


def lived(seed: int, folder: Path) -> None:
    """Live and check what a seed has in store."""
    rng = random.Random(seed)
    log = Log(rng, folder)
    reading = Reading(rng, folder, rng.choice(list(INPUTS)))
    log.append()  # of what was never read nobody knows
    reading.start(until_eof=False)
    while not reading.journal:
        reading.read(1)
    packing: Path | None = None
    for _ in range(rng.randint(5, 60)):
        if VERBOSE:
            print(
                sorted((p.name, p.stat().st_size) for p in folder.iterdir()), reading.journal[-1:]
            )
        what = rng.choice(["append", "append", "read", "read", "rotate", "late", "pack", "stop"])
        if VERBOSE:
            print(what)
        if what == "append":
            log.append()
        elif what == "read":
            if reading.input is None:
                reading.start(until_eof=False)
            reading.read(rng.choice([1, 3, 100]))
        elif what == "rotate":
            if packing is None:  # it waits for that
                log.rotate()
        elif what == "late":
            log.late()
        elif what == "pack":
            if packing is None:
                packing = log.pack()
            else:
                log.packed(packing)
                packing = None
        elif reading.input is not None:
            reading.end()
    if reading.input is not None:
        reading.end()
    if packing is not None:
        log.packed(packing)
    log.path.touch()
    reading.start(until_eof=True)
    reading.read(10_000)
    assert reading.input is not None
    assert reading.input.ended
    reading.input.close()
    missing = [line for line in log.written if line not in reading.lines]
    assert not missing, f"{len(missing)} lines were not read: {missing[:3]}"
    assert len(reading.lines) == len(set(reading.lines)), "lines were read twice"
    assert sorted(reading.lines) == sorted(log.written)
