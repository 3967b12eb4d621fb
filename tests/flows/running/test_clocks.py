"""Runs whose clock is set while they go on, or between them; the times that people write."""

import os
import signal
import time

import pytest
from project import Project, events, stop, wait_for
from set_clock import SetClock

from midstream.engine.registry.registry import Registry
from midstream.engine.shard.commands import Done
from midstream.engine.shard.journal import Command
from midstream.flows.operating.history import epochs, live_at
from midstream.flows.operating.operations import moment
from midstream.flows.running.pacing import ALWAYS, Pace

YEAR = 365 * 86_400
HOURLY = """
[versions]
every_seconds = 0.5
on_shutdown = false
on_drift = false
poll_seconds = 0.1
"""


# --- pacing


class Part:
    """Time that passes only while a pace sleeps."""

    def __init__(self):
        self.time, self.slept = 100.0, []

    def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.time += seconds


def pace(*parts):
    time_ = Part()
    made = Pace(0.002, 0.005, lambda: time_.time, time_.sleep)
    for part in parts:
        made.join(part)
    return made, time_


def test_a_part_with_nothing_to_do_rests_longer_and_longer():
    """Up to a limit; once there is something, it is asked at once."""
    one, passed = pace("a")
    for _ in range(8):
        assert not one.rests("a")
        one.asked("a", idle=True)
    assert passed.slept == [0.002, 0.0025, 0.003125, 0.003906, 0.004883, 0.005, 0.005]
    one.rests("a")
    one.asked("a", idle=False)
    assert not one.rests("a")
    assert len(passed.slept) == 8


def test_nobody_sleeps_while_one_is_at_work():
    """Those with nothing to do are passed over; when all have nothing, the first due is awaited."""
    one, passed = pace("a", "b", "c")
    for part in "abc":
        assert not one.rests(part)
        one.asked(part, idle=part != "b")
    for _ in range(5):
        assert one.rests("a")
        assert not one.rests("b")
        one.asked("b", idle=False)
        assert one.rests("c")
    assert passed.slept == []
    one.leave("b")
    assert [one.rests(part) for part in "acacac"].count(False) >= 1
    assert len(passed.slept) == 1


def test_the_source_may_be_asked_at_any_time():
    """Whatever the clock says."""
    assert ALWAYS.timestamp() == 0.0


# --- runs


@pytest.mark.slow
def test_a_run_goes_on_when_its_clock_is_set(tmp_path, monkeypatch):
    """Back and ahead, by a second, an hour, a year; it hears SIGTERM, and makes its versions."""
    clock = SetClock(tmp_path, monkeypatch)
    one = Project(tmp_path / "one", config=HOURLY)
    lines = events(700)
    one.write(lines[:10])
    process = one.running()
    for i, ahead in enumerate((-1, 0, 3_600, 0, -YEAR, 0, YEAR)):
        clock.set(ahead)
        one.write(lines[: 20 + 10 * i])
        wait_for(lambda i=i: len(one.output("predictions")) == 20 + 10 * i, what=f"event {i}")
        since = (one.folder / "log").stat().st_size
        one.logged("event=version ", since)
    clock.set(0)
    assert stop(process)[0] == 0
    log = (one.folder / "log").read_text()
    assert "event=clock" in log
    assert "event=version_pruned" not in log


@pytest.mark.slow
def test_versions_go_on_after_a_clock_that_was_ahead(tmp_path, monkeypatch):
    """One from the future is named; a command does not wait for a dead run of the future."""
    clock = SetClock(tmp_path, monkeypatch)
    one = Project(tmp_path / "one", config=HOURLY)
    lines = events(300)
    one.write(lines[:50])
    clock.set(YEAR)
    process = one.running(until="event=version ")
    process.send_signal(signal.SIGKILL)
    process.wait()
    clock.set(0)
    one.write(lines)
    since = (one.folder / "log").stat().st_size
    process = one.running(until="reason=schedule")
    assert "event=clock" in (one.folder / "log").read_text()[since:]
    clock.set(YEAR)
    one.logged("set_by_seconds", since)
    process.send_signal(signal.SIGKILL)
    process.wait()
    clock.set(0)
    made = one.operate("snapshots", "create")
    assert made["shards"][0]["state"] == "pending"


# --- times that people write


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata",
                                  "Pacific/Apia", "Australia/Lord_Howe"])  # fmt: skip
def test_a_time_is_the_same_in_every_zone(zone, monkeypatch):
    """UTC where it has none; an offset says which of the two times of a night it is."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert moment("2026-03-29T02:30:00") == moment("2026-03-29T02:30:00Z") == 1774751400.0
        assert moment("2026-03-29T02:30:00+02:00") == 1774744200.0
        first, second = "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"
        assert moment(second) - moment(first) == 3_600.0
        assert moment("2026-10-25") == moment("2026-10-25T00:00:00") == 1792886400.0
        assert moment("1792886400.5") == 1792886400.5
        assert moment("20261025") == moment("20261025T0000") == moment("2026-10-25")
        assert moment("2026-10-25T02:30:00-05:30") == moment("2026-10-25T08:00:00Z")
        for wrong in (
            "2026-10-25T02:30:00 Europe/Berlin",
            "2026-13-01",
            "20261301",
            "now",
            "-1",
            "nan",
        ):
            with pytest.raises(ValueError):  # noqa: PT011 the words are those of datetime
                moment(wrong)
    finally:
        monkeypatch.undo()
        time.tzset()
        assert "TZ" not in os.environ or os.environ["TZ"] != zone or zone == "UTC"


# --- the order of what was


@pytest.mark.parametrize("off", [YEAR, 3_600, -YEAR])
def test_a_model_begun_anew_is_the_present_one_whatever_the_clock_says(off, tmp_path):
    """Also if the one before it began, by a clock that was ahead, later."""
    registry = Registry(tmp_path / "registry.db", tmp_path / "artifacts", "fraud", create=True)
    now = 1e9
    for epoch, at in (("old", now + off), ("new", now)):
        registry.join({"000": epoch}, 0, 0)
        start = Command(0, "start", at=at)
        registry.report("000", epoch, [Done(start, 0, done_at=at)])
    assert epochs(registry.deployments()) == {"000": "new"}
    live = live_at(registry.deployments())["000"]
    assert live is not None
    assert live.since == now
    registry.close()
