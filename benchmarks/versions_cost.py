"""Makes and restores versions of one state, for `versions.py`. Prints one JSON object.

Runs `midstream run` in the folder until it has learned so many events; then gives commands, as an
operator's do, but without the start of a process. Meanwhile no events come.
"""

import argparse
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sides import command, environment

from midstream.engine.registry.database import RegistryError
from midstream.engine.registry.registry import Registry
from midstream.engine.shard.commands import Order
from midstream.flows.claims.registry import open_registry
from midstream.flows.loading import load

T = TypeVar("T")

PATIENCE = 120.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("events", type=int)
    parser.add_argument("repeats", type=int)
    options = parser.parse_args()
    folder = options.folder
    with (folder / "run.log").open("w") as log:
        engine = subprocess.Popen(
            command("run", "midstream.toml", "--json"),
            cwd=folder, env=environment(), stdout=log, stderr=log,
        )  # fmt: skip
    try:
        out = measure(folder, options.events, options.repeats)
    finally:
        engine.send_signal(signal.SIGTERM)
        code = engine.wait()
    assert code == 0, (folder / "run.log").read_text()[-2_000:]
    out["waits"] = json.loads((folder / "waits.json").read_text())
    print(json.dumps(out))


def measure(folder: Path, events: int, repeats: int) -> dict:
    begun = time.perf_counter()
    settings = load(folder / "midstream.toml")

    def grown() -> Registry | None:
        try:
            registry = open_registry(settings)
        except RegistryError:
            return None
        if sum(row.seen for row in registry.shards()) == events:
            return registry
        registry.close()
        return None

    registry = awaited(grown, 0.2)
    out = {"whole": [], "loaded": [], "told": []}
    for _ in range(repeats):
        at = time.time()
        (order,) = registry.order(Order(0, "snapshot", reason="manual"), at=at)
        row = awaited(lambda v=order.version: whole(registry, v), 0.01)
        out["whole"].append(time.time() - at)
        since = time.perf_counter()
        trainer = registry.load(row.version)
        out["loaded"].append(time.perf_counter() - since)
        assert trainer.seen == events
        files = row.manifest.shards[0].files.values()
        out |= {"packed": sum(f.bytes for f in files), "unpacked": sum(f.unpacked for f in files)}
        at = time.time()
        (order,) = registry.order(Order(0, "restore", version=row.version, reason="manual"), at=at)
        done = awaited(lambda i=order.id: registry.deployments([i]), 0.01)[0]
        out["told"].append(time.time() - at)
        assert not done.command.refused, done.command.refused
    registry.close()
    return out | {"events": events, "seconds": time.perf_counter() - begun}


def whole(registry: Registry, version: int):
    return next((row for row in registry.versions() if row.version == version), None)


def awaited(look: Callable[[], T | None], pause: float) -> T:
    """Look again and again until there is something."""
    until = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(pause)
    return found


if __name__ == "__main__":
    main()
