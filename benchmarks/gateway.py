"""The gateway: requests a second that are acknowledged, from 200 senders at once.

Beside it a bare aiohttp handler that writes to the same Kafka with acks=all and checks nothing. An
Apache Kafka of its own runs on the same machine, and so do the senders.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import Bar, Bars, Fact, Result, compare
from kafka import find_kafka
from sides import command, environment

HERE = Path(__file__).parent
TOKEN = "0123456789abcdef0123"  # noqa: S105 of this benchmark
SENDERS = 200
# title, items in a request, requests
LOADS = (("single items", 1, 20_000), ("lists of 100 items", 100, 2_000))


def bench(*, full: bool, peers: Path | None) -> Result:  # noqa: ARG001 all is in our environment
    """Measure; return the figures."""
    cluster_class, why = find_kafka()
    if cluster_class is None:
        return Result(missing=[f"Kafka: {why}"])
    result = Result(repeats=5 if full else 3)
    with tempfile.TemporaryDirectory() as temporary, cluster_class() as cluster:
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for repeat in range(result.repeats):
            for side, start in (("gateway", _gateway), ("bare handler", _bare)):
                folder = Path(temporary) / f"{side}-{repeat}"
                folder.mkdir()
                process, port = start(folder, cluster, f"{side.split()[0]}-{repeat}")
                try:
                    for title, items, requests in LOADS:
                        loaded = _load(port, items, requests // (1 if full else 2))
                        found.setdefault((side, title), []).append(loaded)
                finally:
                    process.send_signal(signal.SIGTERM)
                    process.wait()
    bars = []
    for title, items, _ in LOADS:
        ours, other = found["gateway", title], found["bare handler", title]
        rates = [[sample["rate"] for sample in samples] for samples in (ours, other)]
        result.rows.append(
            compare(
                f"{title}, {SENDERS} senders",
                ("gateway", rates[0]), ("bare handler", rates[1]), unit="requests/s",
            )
        )  # fmt: skip
        for part, name in (("p50", "half of all"), ("p99", "99 of 100")):
            best = 1_000 * min(sample[part] for sample in ours)
            result.facts.append(Fact(f"{title}, to 202, {name}", best, "ms"))
        if items > 1:
            result.facts.append(Fact(title, items * max(rates[0]), "items/s"))
        bars += [
            Bar(f"{side}, {title}", items * max(samples), side == "gateway")
            for side, samples in (("gateway", rates[0]), ("bare handler", rates[1]))
        ]
    result.charts = [Bars("Items a second that are acknowledged", "items/s", bars)]
    return result


def _load(port: int, items: int, requests: int) -> dict[str, float]:
    script = [sys.executable, HERE / "gateway_load.py", str(port), TOKEN, f"e{time.time()}"]
    script += [f"--senders={SENDERS}", f"--requests={requests}", f"--items={items}"]
    done = subprocess.run(script, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _gateway(folder: Path, cluster: Any, name: str) -> tuple[subprocess.Popen, int]:
    cluster.create_topic(f"{name}.feedback", partitions=3)
    (folder / "midstream.toml").write_text(
        f'name = "{name}"\n[model]\nlearner = "logistic"\ntask = "binary"\n'
        f'[input]\ntopic = "{name}"\n[gateway]\ntopic = "{name}.feedback"\nport = 0\nrate = 1e9\n'
        f'[kafka]\n"bootstrap.servers" = "{cluster.bootstrap}"\n'
    )
    log = folder / "log"
    env = environment(MIDSTREAM_GATEWAY_TOKENS=f"bench:{TOKEN}")
    with log.open("w") as file:
        process = subprocess.Popen(
            command("gateway", "midstream.toml"), cwd=folder, env=env, stderr=file
        )
    _until(process, lambda: "event=gateway_ready" in log.read_text())
    return process, int(re.search(r"address=http://[\d.]+:(\d+)", log.read_text())[1])


def _bare(folder: Path, cluster: Any, name: str) -> tuple[subprocess.Popen, int]:
    from kafka_broker import free_ports

    cluster.create_topic(f"{name}.feedback", partitions=3)
    [port] = free_ports(1)
    script = [sys.executable, HERE / "gateway_bare.py", cluster.bootstrap, f"{name}.feedback"]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen([*script, str(port)], stdout=file)
    _until(process, lambda: "ready" in log.read_text())
    return process, port


def _until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"a side ended with code {process.returncode}")
        time.sleep(0.05)
