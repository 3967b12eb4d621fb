"""Drift: detectors over the losses, and their alarms.

To add a built-in detector, write a class with the methods of `Detector` (`engine.drift.detectors`),
and add a line to `DETECTORS`. Packages declare theirs as entry points of the group
``midstream.detectors``; the class attribute `threshold` names the option that an alarm quotes. A
detector of River's, which takes single values, can be wrapped in such a class: loop over the values
in `update`, and put the detector into the state.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit

from midstream.engine.basics import plugins
from midstream.engine.drift.detectors import ADWIN, Detection, Detector, PageHinkley
from midstream.engine.events.event import LARGEST, Alarm, FloatArray
from midstream.engine.state import encoding
from midstream.engine.state.changes import Change, differences

__all__ = ["DETECTORS", "DriftMonitor", "detector_names", "drift_options"]


class _Kind(NamedTuple):
    make: type[Detector]
    threshold: str  # the option that an alarm quotes
    up: Mapping[str, Any] = {}  # options that make it look for a rise only, if it has any


DETECTORS: Mapping[str, _Kind] = {
    "adwin": _Kind(ADWIN, "delta"),
    "page_hinkley": _Kind(PageHinkley, "threshold", up={"mode": "up"}),
}


_FADING = 0.99  # the usual loss remembers about the last 100
_BOUND = 10.0  # the root of 100: one loss at most doubles the mean of their squares


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba publishes no types
def _bounded(losses: FloatArray, usual: FloatArray, bounded: FloatArray) -> None:
    """Bound losses; `usual` holds faded sums: squares of the losses that are not 0, and ones."""
    if usual.size != 2 or bounded.size != losses.size:
        raise ValueError("a bound for each loss, by two sums")
    squares, count = usual[0], usual[1]
    for i in range(losses.size):
        x = losses[i]
        if math.isnan(x):
            bounded[i] = x
            continue
        sized = abs(x) <= LARGEST
        if not sized:
            # A power of two: a dead model gives it again and again. Sums of it are exact,
            # so that no detector takes rounding for a change.
            x = 1.0
            if squares > 0.0:
                x = max(x, math.ldexp(0.5, math.frexp(_BOUND * math.sqrt(squares / count))[1]))
        elif x > 1.0 and squares > 0.0 and x * x * count > _BOUND**2 * squares:
            x = max(1.0, _BOUND * math.sqrt(squares / count))
        bounded[i] = x
        if sized and x != 0.0:
            squares = squares * _FADING + x * x
            count = count * _FADING + 1.0
    usual[0], usual[1] = squares, count


def drift_options(name: str) -> dict[str, Any]:
    """Return the options of a detector with their defaults.

    Raises
    ------
    ValueError
        If there is no such detector; the message lists the known ones.
    """
    if name not in DETECTORS and name not in detector_names():  # who looks for packages waits
        raise ValueError(f"unknown detector {name!r}; there are: {', '.join(detector_names())}")
    return _kind_of(name).make().definition()


def detector_names() -> list[str]:
    """Return the names of the detectors: built-in ones, and those that packages declare."""
    added = (name for name in plugins.names("midstream.detectors") if name not in DETECTORS)
    return [*DETECTORS, *added]


def _kind_of(name: str) -> _Kind:
    if name in DETECTORS:
        return DETECTORS[name]
    found = plugins.load("midstream.detectors", name)
    if not all(hasattr(found, each) for each in ("update", "definition", "state", "from_state")):
        raise plugins.PluginError(f"{name!r} of midstream.detectors is no Detector")
    return _Kind(found, getattr(found, "threshold", ""))


class DriftMonitor:
    """Watches the loss of each event and raises alarms when it changes.

    Parameters
    ----------
    detectors
        Names from `DETECTORS`, or a mapping from name to options.
    direction
        "up": alarm only where the loss has risen; a model that improves is no reason to wake
        anyone. "both": any change.

    Raises
    ------
    ValueError
        If a detector or option is unknown, or an option is out of range or contradicts the
        direction.

    Notes
    -----
    One wild loss would blind a detector for as long as it stays in its variance or mean. So a loss
    is passed on as at most 10 times the usual loss: the root mean square of about the last 100
    losses that were not 0. The first is passed on unchanged, since there is no usual loss yet.
    Losses up to 1, such as all of classification, are passed on unchanged. A loss that is infinite,
    or beyond 1e140, is passed on as the worst: the power of two up to that bound, at least 1.
    """

    SCHEMA = 1

    def __init__(
        self,
        detectors: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("adwin",),
        *,
        direction: Literal["up", "both"] = "up",
    ) -> None:
        if direction not in ("up", "both"):
            raise ValueError(f"direction must be 'up' or 'both', found {direction!r}")
        chosen = detectors if isinstance(detectors, Mapping) else {name: {} for name in detectors}
        self.direction = direction
        self._detectors: dict[str, Detector] = {}
        for name, options in chosen.items():
            known = drift_options(name)
            kind = _kind_of(name)
            implied = kind.up if direction == "up" else {}
            for key, value in options.items():
                if key not in known:
                    raise ValueError(f"{name} has no option {key!r}; it has: {', '.join(known)}")
                if value != implied.get(key, value):
                    raise ValueError(f"{name}: {key} {value!r} contradicts direction 'up'")
            self._detectors[name] = kind.make(**{**implied, **options})
        self._usual = np.zeros(2)

    def update(
        self,
        losses: FloatArray,
        position: int,
        time: Callable[[int], float | None] | None = None,
    ) -> list[Alarm]:
        """Feed the losses of a batch in order, and return the alarms that they cause.

        Parameters
        ----------
        losses
            (n,) one loss per event; nan if the event was not scored: it is skipped; inf if its
            prediction was not finite.
        position
            Number of events before this batch.
        time
            Returns the time of event i, in seconds, for the alarms.

        Returns
        -------
        list of Alarm
            In event order, and for one event in the order of the detectors. `value` is the
            detector's mean loss after the event; `position` includes the event.
        """
        alarms = []
        seen = np.empty(len(losses))
        _bounded(np.ascontiguousarray(losses, np.float64), self._usual, seen)
        for name, detector in self._detectors.items():
            for row, before, after in detector.update(seen):
                if self.direction == "up" and after <= before:
                    continue
                alarms.append(
                    Alarm(
                        kind="drift",
                        detector=name,
                        feature=None,
                        value=after,
                        threshold=_threshold(name, detector),
                        position=position + row + 1,
                        ts=None if time is None else time(row),
                    )
                )
        alarms.sort(key=lambda alarm: alarm.position)  # stable: detectors keep their order
        return alarms

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved definition, and their effect on each detector."""
        new = self.definition()
        found = differences(
            "drift", {"direction": old.get("direction")}, {"direction": self.direction},
            effect="from now on",
        )  # fmt: skip
        for name in dict.fromkeys([*old, *new]):
            was, now = old.get(name), new.get(name)
            if name == "direction" or was == now:
                continue
            if was is None:
                found.append(Change("drift", name, "-", "on", effect="begins now"))
            elif now is None:
                found.append(Change("drift", name, "on", "-", effect="ends"))
            else:
                found += differences("drift", _named(name, was), _named(name, now),
                                     effect=f"{name} restarts")  # fmt: skip
        return found

    def amended(self, old: "DriftMonitor") -> "DriftMonitor":
        """Return a monitor defined as this one; a detector that `old` also has continues."""
        new = DriftMonitor.from_state(self.state())
        for name, detector in old._detectors.items():
            if name in new._detectors and (
                detector.definition() == new._detectors[name].definition()
            ):
                new._detectors[name] = _kind_of(name).make.from_state(detector.state())
        new._usual[:] = old._usual
        return new

    def definition(self) -> dict[str, Any]:
        """Return what defines the monitor, without what it has seen: plain JSON values."""
        options = {name: detector.definition() for name, detector in self._detectors.items()}
        return {"direction": self.direction, **options}

    def state(self) -> bytes:
        """Return everything that the next alarm depends on."""
        detectors = {name: detector.state() for name, detector in self._detectors.items()}
        return encoding.encode(
            {
                "schema": self.SCHEMA,
                "direction": self.direction,
                "usual": self._usual.tolist(),
                "detectors": detectors,
            }
        )

    @classmethod
    def from_state(cls, data: bytes) -> "DriftMonitor":
        """Build the monitor that `data` was taken from.

        Raises
        ------
        ValueError
            If the state is of another schema, or is damaged.
        """
        state = encoding.decode(data)
        try:
            if state["schema"] != cls.SCHEMA:
                raise ValueError(
                    f"drift state has schema {state['schema']}, this version reads {cls.SCHEMA}"
                )
            known = detector_names()
            there = [name for name in state["detectors"] if name in known]
            new = cls(there, direction=state["direction"])
            new._detectors = {
                name: _kind_of(name).make.from_state(held)
                if name in known
                else _Unread(name, {**held})
                for name, held in state["detectors"].items()
            }
            usual = state.get("usual", [0.0, 0.0])  # older states lack it
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"damaged drift state: {type(error).__name__}: {error}") from error
        if not (
            type(usual) is list
            and list(map(type, usual)) == [float, float]
            and 0.0 <= usual[0] <= 1.001 * LARGEST**2 / (1 - _FADING)
            and 0.0 <= usual[1] <= 1.001 / (1 - _FADING)
            and (usual[0] == 0.0) >= (usual[1] == 0.0)
        ):
            raise ValueError("drift state is damaged: its usual loss cannot be")
        new._usual[:] = usual
        return new


class _Unread:
    """A detector that no installed package declares: its state is kept until it is dropped."""

    def __init__(self, name: str, held: dict[str, Any]) -> None:
        self._name = name
        self._held = held

    def update(self, values: FloatArray) -> list[Detection]:  # noqa: ARG002
        raise plugins.PluginError(plugins.missing("detector", self._name, "midstream.detectors"))

    def definition(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return self._held

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "_Unread":
        raise NotImplementedError


def _threshold(name: str, detector: Detector) -> float:
    """Return the option that an alarm quotes; 0 if the detector names none."""
    return float(detector.definition().get(_kind_of(name).threshold, 0.0))


def _named(name: str, options: Any) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in dict(options).items()}
