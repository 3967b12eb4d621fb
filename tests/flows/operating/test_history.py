"""The history of a model, which follows from journals."""

import json

from kept import BEGUN

from midstream.flows.operating import history
from midstream.flows.operating.history import in_order, live_at


def test_what_is_live_follows_from_the_journal_and_not_from_clocks(kept):
    """A clock that jumps back, before a command or before a model is started over, changes nothing.

    A command that has not taken effect is not live yet.
    """
    one = kept()
    version = one.version(at=BEGUN)
    one.began(BEGUN)
    one.did(2, "restore", at=BEGUN + 900, seq=1, version=7)
    one.did(3, "snapshot", at=BEGUN + 901, seq=2, version=8)
    one.did(4, "rollback", at=BEGUN + 100, seq=3, version=version)  # an hour back
    one.did(5, "snapshot", at=BEGUN + 101, seq=4, version=9)

    def at(when=float("inf")):
        live = live_at(one.registry.deployments(), when)["000"]
        return live and (live.version, live.kept)

    assert at(BEGUN - 1) is None
    assert at(BEGUN + 50) == (0, None)
    assert at(BEGUN + 100) == (version, None)
    assert at() == at(BEGUN + 5_000) == (version, 9)
    one.did(6, "promote", at=BEGUN + 200, seq=5, version=7, done_at=None)
    assert at() == (version, 9)
    one.did(6, "promote", at=BEGUN + 200, seq=5, version=7, done_at=BEGUN + 300)
    assert at(BEGUN + 250) == (version, 9)
    assert at() == (7, None)
    listed = json.loads(one.call("snapshots", "list", "--json").stdout)
    assert [row["live"] for row in listed] == [False]
    one.began(BEGUN - 500, epoch="ab", seq=0)  # --fresh, the clock still further back
    one.did(7, "pause", at=BEGUN - 400, seq=1, epoch="ab")
    one.began(BEGUN + 20, epoch="cd", seq=0)  # which no command has come to: the clock has to do
    one.did(8, "restore", at=BEGUN - 300, seq=2, epoch="ab", version=version)
    rows = in_order(one.registry.deployments())["000"]
    assert [(row.epoch, row.seq) for row in rows] == [
        *(("", seq) for seq in range(6)),
        *(("ab", seq) for seq in range(3)),
        ("cd", 0),
    ]
    assert at(BEGUN + 10) == (version, None)
    assert history.epochs(one.registry.deployments()) == {"000": "cd"}
