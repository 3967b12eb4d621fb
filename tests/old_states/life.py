"""What is asked of a saved state, by the script that makes them and by the test that reads them.

A state is kept as a folder, packed: a config with its model, input, state and outputs, as a run has
left them, and in `more` what comes to the input afterwards. All that names a place is relative to
the config, or comes from the environment, so the folder may be unpacked anywhere.
"""

import ctypes
import hashlib
import io
import json
import math
import platform
import shutil
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from click.testing import CliRunner
from kafka_client import Kafka

from midstream import open_registry
from midstream.flows.cli import cli
from midstream.flows.config.settings import Settings
from midstream.flows.loading import load
from midstream.flows.running import online

__all__ = [
    "CONFIG",
    "add_more",
    "arithmetic",
    "call",
    "check",
    "copied",
    "empty_bucket",
    "fill_bucket",
    "fill_database",
    "history",
    "libraries",
    "outputs",
    "pack",
    "produce",
    "run",
    "unpack",
    "versions",
]

CONFIG = "midstream.toml"
_LIBRARIES = ("midstream", "river", "numpy", "numba", "bytewax")


# --- the folder


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder into one file, whose bytes depend on what is in the folder alone."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.name == "__pycache__" or path.suffix == ".pyc":
                continue
            about = tar.gettarinfo(path, str(path.relative_to(folder)))
            about.uid = about.gid = 0
            about.uname = about.gname = ""
            about.mtime, about.mode = 0, 0o755 if path.is_dir() else 0o644
            with path.open("rb") if path.is_file() else io.BytesIO() as file:
                tar.addfile(about, file)
    archive.write_bytes(zstandard.ZstdCompressor(level=19).compress(packed.getvalue()))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack what `pack` has packed into a folder that is made for it; return the folder."""
    data = zstandard.ZstdDecompressor().decompress(archive.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def add_more(folder: Path) -> None:
    """Let the rest of the input come: a file in `more` is appended, or is a new one.

    Where the input is a topic, the file has the events that are sent there.
    """
    more, settings = folder / "more", load(folder / CONFIG)
    for path in sorted(more.rglob("*")) if more.exists() else ():
        if settings.input.topic is not None:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            produce(_kafka(settings), settings.input.topic, rows)
        elif path.is_file():
            target = folder / path.relative_to(more)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                file.write(path.read_bytes())


def produce(kafka: Kafka, topic: str, rows: list[dict[str, Any]]) -> None:
    """Send events to a topic, each to the partition of its number."""
    events = [(row["id"].encode(), json.dumps(row).encode()) for row in rows]
    kafka.produce(topic, [(id_, event, int(id_[1:]) % 3) for id_, event in events])


def _kafka(settings: Settings) -> Kafka:
    return Kafka(str(settings.kafka["bootstrap.servers"]))


# --- what a state gives


def run(folder: Path) -> dict[str, Any]:
    """Run to the end of the input; return what it says, and the digests of the outputs."""
    summary = online.run(load(folder / CONFIG), until_eof=True)
    found = {name: getattr(summary, name) for name in ("seen", "learned", "rejected", "digest")}
    metrics = {name: repr(float(value)) for name, value in summary.metrics.items()}
    return {**found, "metrics": metrics, "outputs": outputs(folder)}


def outputs(folder: Path) -> dict[str, list[Any]]:
    """Return how many lines each output has, and their SHA-256; of a topic, by partition."""
    found, settings = {}, load(folder / CONFIG)
    for topic in settings.output.topics.values():
        messages = _kafka(settings).read_all(topic)
        text = "".join(f"{m.partition} {m.value!r}\n" for m in messages)
        found[topic] = [len(messages), hashlib.sha256(text.encode()).hexdigest()]
    for path in sorted((folder / "out").glob("*.jsonl")):
        data = path.read_bytes()
        found[path.name] = [data.count(b"\n"), hashlib.sha256(data).hexdigest()]
    return found


def call(folder: Path, *arguments: str) -> Any:
    """Run a command; return what it prints as JSON."""
    where = [] if arguments[0] == "check" else ["--config", str(folder / CONFIG)]
    file = [str(folder / CONFIG)] if arguments[0] == "check" else []
    done = CliRunner().invoke(cli, [*arguments, *file, *where, "--json"])
    if done.exit_code != 0 and arguments[0] != "check":
        raise RuntimeError(f"{arguments}: exit code {done.exit_code}: {done.output}")
    return json.loads(done.stdout)


def check(folder: Path) -> bool:
    """Return whether `midstream check` has found nothing wrong."""
    return bool(call(folder, "check")["ok"])


def versions(folder: Path) -> list[dict[str, Any]]:
    """Return all versions, with the digest that the model of each shard has once it is loaded."""
    registry = open_registry(folder / CONFIG)
    try:
        loaded = {
            row.version: {shard: registry.load(row.version, shard).digest() for shard in row.shards}
            for row in registry.versions()
        }
    finally:
        registry.close()
    names = ("version", "kind", "reason", "parent", "tags", "seen", "live", "shards")
    return [
        {**{name: row[name] for name in names}, "digest": loaded[row["version"]]}
        for row in call(folder, "snapshots", "list")
    ]


def history(folder: Path) -> list[list[Any]]:
    """Return what each shard did of each command, and its alarms, without the times."""
    found = []
    for row in call(folder, "history", "--alarms"):
        if alarm := row.get("alarm"):
            found.append([alarm[n] for n in ("shard", "kind", "detector", "position", "command")])
            continue
        command = row["command"]
        names = ("id", "kind", "version", "reason", "refused", "by", "origin")
        found.append([row["shard"], *(command.get(name) for name in names), row.get("seen")])
    return found


# --- what a state has elsewhere


def fill_database(url: str, folder: Path) -> None:
    """Put the dump of a registry, if there is one, into an empty database of PostgreSQL."""
    import psycopg

    dump = folder / "registry.sql"
    if dump.exists():
        text = "".join(
            line for line in dump.read_text().splitlines(keepends=True) if line[0] != "\\"
        )
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(text)


def fill_bucket(url: str, folder: Path) -> None:
    """Put the folder `bucket`, if there is one, into a place of S3."""
    from s3fs import S3FileSystem

    store = S3FileSystem(skip_instance_cache=True)
    for path in sorted((folder / "bucket").rglob("*")):
        if path.is_file():
            store.pipe(f"{url}/{path.relative_to(folder / 'bucket')}", path.read_bytes())


def empty_bucket(url: str, folder: Path) -> None:
    """Put what is in a place of S3 into the folder `bucket`."""
    from s3fs import S3FileSystem

    store = S3FileSystem(skip_instance_cache=True)
    root = url.removeprefix("s3://")
    for name in store.find(root):
        target = folder / "bucket" / name.removeprefix(f"{root}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.cat_file(name))


# --- where it was made


def libraries() -> dict[str, str]:
    """Return the versions that a state may depend on."""
    found = {name: version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "machine": platform.machine(), **found}


def arithmetic() -> str:
    """Return a digest of what this machine computes: mathematical libraries differ in last bits."""
    values = np.random.default_rng(7).normal(size=4_096) * 3
    libm = ctypes.CDLL(None)
    results = [np.exp(values), np.log(np.abs(values)), np.tanh(values), np.sqrt(np.abs(values))]
    results += [np.array([np.dot(values[:n], values[-n:]) for n in range(1, 200)])]
    for function in (math.exp, math.tanh, math.expm1, math.sin):
        results.append(np.array([function(value) for value in values.tolist()]))
    for function in (math.log, math.log1p, math.gamma):
        results.append(np.array([function(abs(value) + 0.01) for value in values.tolist()]))
    for name in ("exp", "log", "pow"):  # as compiled code calls them
        of_c = getattr(libm, name)
        of_c.restype, of_c.argtypes = ctypes.c_double, [ctypes.c_double] * (1 + (name == "pow"))
        more = (0.7,) if name == "pow" else ()
        results.append(np.array([of_c(abs(value) + 0.01, *more) for value in values.tolist()]))
    return hashlib.sha256(b"".join(part.tobytes() for part in results)).hexdigest()


def copied(folder: Path, target: Path) -> Path:
    """Copy a folder, and return the copy: what is read there is not where it was made."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


if __name__ == "__main__":  # life.py FOLDER FUNCTION...: in a process of its own
    answers = [globals()[name](Path(sys.argv[1])) for name in sys.argv[2:]]
    sys.stdout.write(json.dumps(answers))
