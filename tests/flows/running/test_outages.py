"""For how long brokers that are not ready are waited for, when a run begins."""

import time
from types import SimpleNamespace

import pytest
from project import Project, events

from midstream.engine.shard.journal import UnavailableError
from midstream.flows.loading import load
from midstream.flows.running import online
from midstream.flows.running.shard_process import ShardProcess
from midstream.flows.running.shares import REPLACES


class Trouble:
    """Has a run fail to open as often as is told; time passes only while it waits."""

    def __init__(self, monkeypatch, times):
        self.now, self.left, self.opened = 0.0, times, ShardProcess.open
        trouble = self

        def open_(run):
            if trouble.left:
                trouble.left -= 1
                raise UnavailableError("journal: Broker: Not leader for partition")
            trouble.opened(run)

        def wait(outage, reason, stopping):
            outage.begun = True
            trouble.now += 5.0

        monkeypatch.setattr(ShardProcess, "open", open_)
        monkeypatch.setattr(online._Outage, "wait", wait)
        clock = SimpleNamespace(monotonic=lambda: trouble.now, perf_counter=time.perf_counter)
        monkeypatch.setattr(online, "time", clock)


@pytest.fixture
def settings(tmp_path):
    project = Project(tmp_path)
    project.write(events(50))
    return load(project.config)  # input.wait_seconds is 30


def test_brokers_that_are_not_ready_yet_are_waited_for(settings, monkeypatch):
    """For `input.wait_seconds`, in which the brokers may choose a leader."""
    Trouble(monkeypatch, 5)
    assert online.run(settings, until_eof=True).events == 50


def test_brokers_that_do_not_get_ready_end_the_start(settings, monkeypatch):
    """After `input.wait_seconds`."""
    trouble = Trouble(monkeypatch, 8)
    with pytest.raises(UnavailableError, match="Not leader"):
        online.run(settings, until_eof=True)
    assert (trouble.now, trouble.left) == (30.0, 1)


def test_who_takes_the_place_of_another_process_waits_as_long_as_it_takes(settings, monkeypatch):
    """The run has begun: an outage does not end it."""
    monkeypatch.setenv(REPLACES, "1")
    Trouble(monkeypatch, 500)
    assert online.run(settings, until_eof=True).events == 50
