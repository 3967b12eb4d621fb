"""Alarms over the losses of a stream."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift

from midstream.engine.drift.monitor import DETECTORS, DriftMonitor, drift_options
from midstream.engine.state import encoding

SENSITIVE = {"adwin": {"delta": 0.05, "clock": 8}, "page_hinkley": {"threshold": 8.0}}


def losses(*parts, seed=0):
    """0/1 losses: for each (mean, n) a stretch of n."""
    rng = np.random.default_rng(seed)
    return np.concatenate([(rng.random(n) < mean) * 1.0 for mean, n in parts])


@pytest.mark.parametrize("name", DETECTORS)
def test_options_are_rivers(name):
    """A detector has the options of River's, in their order and with their defaults."""
    river = {"adwin": drift.ADWIN, "page_hinkley": drift.PageHinkley}[name]
    assert list(drift_options(name).items()) == list(river()._get_params().items())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_shift_raises_an_alarm_soon(name):
    """When the error rate goes from 0.1 to 0.5, there is one alarm, within 200 events."""
    (alarm,) = DriftMonitor([name]).update(losses((0.1, 3_000), (0.5, 400)), 0)
    delay = alarm.position - 3_000
    assert 0 < delay <= 200, f"{name}: {delay} events after the shift"


@pytest.mark.parametrize("name", DETECTORS)
def test_a_stationary_stream_raises_none(name):
    """50,000 losses of the same mean raise no alarm."""
    assert DriftMonitor([name]).update(losses((0.05, 50_000), seed=1), 0) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_direction_up_is_silent_where_the_loss_falls(name):
    """A fall of the loss raises an alarm with direction "both" only, a rise with either."""
    fall, rise = losses((0.3, 1_000), (0.02, 1_000)), losses((0.02, 1_000), (0.3, 1_000))
    assert DriftMonitor([name], direction="up").update(fall, 0) == []
    assert len(DriftMonitor([name], direction="both").update(fall, 0)) > 0
    assert len(DriftMonitor([name], direction="up").update(rise, 0)) > 0
    assert len(DriftMonitor([name], direction="both").update(rise, 0)) > 0


def test_an_alarm_tells_where_when_and_how_bad():
    """Position counts events from 1, value is the mean loss after the event, ts its time."""
    values = losses((0.1, 1_000), (0.9, 200))
    monitor = DriftMonitor(["adwin"])
    alarms = [
        alarm
        for start in range(0, len(values), 300)
        for alarm in monitor.update(
            values[start : start + 300],
            5_000 + start,
            lambda row, start=start: float(start + row),
        )
    ]
    river, row = drift.ADWIN(), 0
    while not river.drift_detected:
        river.update(values[row])
        row += 1
    alarm = alarms[0]
    assert (alarm.kind, alarm.detector, alarm.feature) == ("drift", "adwin", None)
    assert alarm.position == 5_000 + row
    assert alarm.ts == row - 1
    assert alarm.value == river.estimation
    assert alarm.threshold == 0.002


def test_alarms_come_in_the_order_of_the_events():
    """Alarms of several detectors are merged by position; without times they have none."""
    values = losses(*[(0.1, 400), (0.7, 400)] * 5)
    monitor = DriftMonitor({**SENSITIVE, "page_hinkley": {"threshold": 4.0}}, direction="both")
    alarms = monitor.update(values, 0)
    positions = [alarm.position for alarm in alarms]
    names = [alarm.detector for alarm in alarms]
    assert positions == sorted(positions)
    assert set(names) == set(DETECTORS)
    assert names != sorted(names)
    assert {alarm.threshold for alarm in alarms} == {0.05, 4.0}
    assert {alarm.ts for alarm in alarms} == {None}


def test_events_that_were_not_scored_are_counted_but_not_watched():
    """With nan between the losses the same alarms come, each at its event."""
    values = losses((0.1, 2_000), (0.6, 500))
    gaps = np.full(2 * len(values), math.nan)
    gaps[1::2] = values
    plain, gappy = DriftMonitor(SENSITIVE), DriftMonitor(SENSITIVE)
    expected = plain.update(values, 0)
    found = gappy.update(gaps, 0)
    assert [alarm.position for alarm in found] == [2 * alarm.position for alarm in expected]
    assert [alarm.value for alarm in found] == [alarm.value for alarm in expected]
    assert gappy.state() == plain.state()


@pytest.mark.parametrize("direction", ["up", "both"])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(cuts=st.lists(st.integers(0, 3_000), max_size=8), seed=st.integers(0, 9))
def test_any_cut_gives_the_same_alarms_and_state(direction, cuts, seed):
    """However the stream is cut, and restored from its state there, alarms and state are equal."""
    values = losses(*[(0.1, 500), (0.5, 500)] * 3, seed=seed)
    values[::11] = math.nan
    times = [i / 7 for i in range(len(values))]
    whole = DriftMonitor(SENSITIVE, direction=direction)
    expected = whole.update(values, 0, times.__getitem__)
    parts = DriftMonitor(SENSITIVE, direction=direction)
    found, start = [], 0
    for end in [*sorted(cuts), len(values)]:
        found += parts.update(values[start:end], start, times[start:end].__getitem__)
        state = parts.state()
        parts = DriftMonitor.from_state(state)
        assert parts.state() == state
        start = end
    assert found == expected
    assert {alarm.detector for alarm in found} == set(DETECTORS)
    assert parts.state() == whole.state()
    assert parts.definition() == whole.definition()


def test_a_definition_builds_the_same_monitor():
    """The definition names the options in force, and is itself a choice of detectors."""
    monitor = DriftMonitor(SENSITIVE)
    definition = monitor.definition()
    assert definition == {
        "direction": "up",
        "adwin": drift_options("adwin") | SENSITIVE["adwin"],
        "page_hinkley": drift_options("page_hinkley") | {"threshold": 8.0, "mode": "up"},
    }
    direction = definition.pop("direction")
    assert DriftMonitor(definition, direction=direction).state() == monitor.state()


def test_without_detectors_there_are_no_alarms():
    """No detector is a choice too."""
    monitor = DriftMonitor(())
    assert monitor.update(losses((0.0, 500), (1.0, 500)), 0) == []
    assert DriftMonitor.from_state(monitor.state()).definition() == {"direction": "up"}


@pytest.mark.parametrize(
    ("detectors", "direction", "message"),
    [
        (["cusum"], "up", "unknown detector 'cusum'; there are: adwin, page_hinkley"),
        ({"adwin": {"gamma": 1}}, "up", "adwin has no option 'gamma'; it has: delta, clock"),
        ({"adwin": {"delta": 2.0}}, "up", "delta must be from 0 to 1, found 2.0"),
        ({"page_hinkley": {"mode": "both"}}, "up", "mode 'both' contradicts direction 'up'"),
        (["adwin"], "down", "direction must be 'up' or 'both', found 'down'"),
    ],
)
def test_what_there_is_not_is_refused(detectors, direction, message):
    """The message names what was found and what there is."""
    with pytest.raises(ValueError, match=message):
        DriftMonitor(detectors, direction=direction)


def test_a_mode_may_be_chosen_where_any_change_counts():
    """With direction "both", Page-Hinkley can be told to look for falls only."""
    monitor = DriftMonitor({"page_hinkley": {"mode": "down"}}, direction="both")
    assert monitor.update(losses((0.1, 3_000), (0.6, 1_000)), 0) == []
    assert len(monitor.update(losses((0.1, 3_000)), 4_000)) > 0


def test_another_schema_is_refused():
    """The message names both schemas."""
    state = encoding.decode(DriftMonitor().state())
    with pytest.raises(ValueError, match="drift state has schema 7, this version reads 1"):
        DriftMonitor.from_state(encoding.encode({**state, "schema": 7}))


def sized(n, scale, seed=0):
    """Absolute errors of a learner, in some unit."""
    return np.abs(np.random.default_rng(seed).normal(size=n) * scale)


@pytest.mark.parametrize("odd", [1e6, 1e12, 1e100, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3, 1e9])
@pytest.mark.parametrize("places", [[1], [200], [999, 1_000], [100, 600, 1_100, 1_600, 2_100]])
def test_wild_losses_do_not_blind_it(odd, scale, places):
    """A threefold loss is told within 200 events, also where some before it were wild."""
    values = sized(5_000, scale)
    values[3_000:] *= 3.0
    values[places] = odd * scale
    assert DriftMonitor().update(values[:3_000], 0) == []
    monitor = DriftMonitor()
    alarms = [a for a in monitor.update(values, 0) if a.position > 3_000]
    assert alarms, f"no alarm after {odd:g} times the usual loss"
    assert alarms[0].position <= 3_200, f"alarm at {alarms[0].position}"


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 1e3, 1e100])
def test_a_model_that_has_died_raises_one_alarm(name, scale):
    """Infinite losses from one event on are seen as the worst: ADWIN has one alarm, and soon."""
    values = np.concatenate([sized(2_000, scale), np.full(3_000, math.inf)])
    before = DriftMonitor([name]).update(values[:2_000], 0)
    after = [a for a in DriftMonitor([name]).update(values, 0) if a.position > 2_000]
    assert after
    assert after[0].position <= 2_100
    if name == "adwin":
        assert (len(before), len(after)) == (0, 1)


def test_losses_that_are_infinite_from_the_first_on_raise_no_alarm():
    """What never was otherwise has not changed; a few wild ones before make one change at most."""
    assert DriftMonitor().update(np.full(5_000, math.inf), 0) == []
    wild = np.concatenate([[1e100, 3e105, 2.0, 7.0], np.full(5_000, math.inf)])
    assert len(DriftMonitor(direction="both").update(wild, 0)) <= 1


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_that_are_not_wild_are_seen_as_they_are(name):
    """Alarms over errors in any unit are those of the detector, which is River's, by itself."""
    values = np.concatenate([sized(2_000, 5.0), sized(2_000, 10.0), sized(1_000, 20.0)])
    detector = DETECTORS[name].make(**DETECTORS[name].up)
    expected = [
        (row + 1, after) for row, before, after in detector.update(values) if after > before
    ]
    assert len(expected) >= 2
    alarms = DriftMonitor([name]).update(values, 0)
    assert [(alarm.position, alarm.value) for alarm in alarms] == expected


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(0, 300), max_size=8),
    wild=st.lists(
        st.tuples(
            st.integers(0, 299),
            st.sampled_from([math.inf, -math.inf, math.nan, 1e300, 1e140, 1e-300, 0.0, -5.0, 40.0]),
        ),
        max_size=30,
    ),
)
def test_what_is_usual_does_not_depend_on_the_cuts(cuts, wild):
    """With wild losses anywhere, cut and restored, alarms and state are equal, and all finite."""
    values = sized(300, 3.0)
    for i, value in wild:
        values[i] = value
    whole = DriftMonitor(SENSITIVE)
    expected = whole.update(values, 0)
    parts, found, start = DriftMonitor(SENSITIVE), [], 0
    for end in [*sorted(cuts), 300]:
        found += parts.update(values[start:end], start)
        parts = DriftMonitor.from_state(parts.state())
        start = end
    assert found == expected
    assert parts.state() == whole.state()
    state = encoding.decode(whole.state())
    assert all(map(math.isfinite, state["usual"]))
    adwin = state["detectors"]["adwin"]
    assert math.isfinite(adwin["total"])
    assert math.isfinite(adwin["variance"])


@pytest.mark.parametrize(
    "usual",
    [[0.0], [1.0, -1.0], [math.nan, 1.0], [1.0, 0.0], [1.0, 2e5], [1, 1], None, [1e300, 1.0]],
)
def test_a_damaged_usual_loss_is_refused(usual):
    """The sums that bound a loss have to be what losses can add up to."""
    state = encoding.decode(DriftMonitor().state())
    with pytest.raises(ValueError, match="its usual loss cannot be"):
        DriftMonitor.from_state(encoding.encode(state | {"usual": usual}))
    del state["usual"]  # a state of before it was kept
    DriftMonitor.from_state(encoding.encode(state))
