"""Producers faster than learning: what waits stays with the brokers, not in our memory."""

import json
import re
import time
from pathlib import Path

import pytest
from project import events, stop, wait_for

pytestmark = pytest.mark.unforked

MIB = 2**20
SLOW = """
import time
from river import linear_model

class Slow(linear_model.LogisticRegression):
    def learn_one(self, x, y, w=1.0):
        time.sleep(0.002)
        super().learn_one(x, y, w)

def make():
    return Slow()
"""


def resident(pid):
    """Return the MiB that a process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells what is resident")
@pytest.mark.parametrize("processes", [1, 2])
def test_memory_is_bounded_while_input_waits(topics, processes):
    """400 MB in three partitions, learned at some hundred events a second."""
    one = topics("one")
    (one.project.folder / "models.py").write_text(SLOW)
    text = one.project.config.read_text()
    text = text.replace('"logistic"', '"models:make"').partition("[features]")[0]
    one.project.config.write_text(text.replace("snapshot_events", "# snapshot_events"))
    padding = "x" * 8_000
    lines = [json.dumps({**e, "source": padding}).encode() for e in events(1_000)]
    log = one.project.folder / "log"
    with log.open("wb") as file:
        run = one.project.start("run", "config.toml", "--processes", str(processes), stderr=file)
    wait_for(lambda: log.read_text().count("event=caught_up") == processes, what="the start")
    pids = re.findall(r"event=process_started process=\d+ pid=(\d+)", log.read_text())
    before = {pid: resident(pid) for pid in pids}
    for _ in range(50):
        one.produce(lines)
    most = dict.fromkeys(pids, 0.0)

    def looked():
        for pid in pids:
            most[pid] = max(most[pid], resident(pid))
        return sum(one.kafka.ends(one.names["predictions"]).values()) > 1_000

    wait_for(looked, what="a thousand predictions", pause=0.1)
    for _ in range(30):
        time.sleep(0.1)
        looked()
    assert stop(run)[0] == 0
    for pid in pids:
        grown = most[pid] - before[pid]
        assert grown < 200, f"grew {grown:.0f} MiB while 400 MB waited; limit 200 MiB"
    assert one.kafka.read_all(one.names["predictions"]), "nothing was learned meanwhile"
