"""Versions are chosen by what journals say, whatever clocks say."""

import pytest
from kept import BEGUN

from midstream.engine.registry.registry import Drifted
from midstream.flows.operating import choosing
from midstream.flows.operating.operations import OperationError


def test_before_drift_follows_from_the_journal_and_not_from_clocks(kept):
    """Alarms of before a version was put live, or of a former model, do not count."""
    one = kept()
    one.began()
    for seen in (100, 200, 300):
        one.version(at=BEGUN + seen, seen=seen)

    def drifted(command, position, at, epoch=""):
        one.registry.alarm([Drifted("000", epoch, command, position, "adwin", at)])

    drifted(3, 290, BEGUN + 5_000)
    row, alarms = choosing.before_drift(one.registry, 10)
    assert (row.version, len(alarms)) == (2, 1)
    drifted(3, 320, BEGUN - 3_000)  # the clock is set back, and the drift goes on
    row, alarms = choosing.before_drift(one.registry, 10)
    assert (row.version, [a.position for a in alarms]) == (2, [290, 320])
    one.did(4, "restore", at=BEGUN - 2_000, seq=1, version=1)
    with pytest.raises(OperationError, match="no drift was seen since"):
        choosing.before_drift(one.registry, 10)
    drifted(4, 160, BEGUN - 1_000)
    assert choosing.before_drift(one.registry, 10)[0].version == 1
    one.began(BEGUN - 900, epoch="ab")
    one.did(5, "pause", at=BEGUN - 800, seq=1, epoch="ab")
    with pytest.raises(OperationError, match="no drift was seen;"):
        choosing.before_drift(one.registry, 10)
