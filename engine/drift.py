"""Drift: detectors over the losses, and what they say.

To add a detector, write a class with the methods of `midstream.engine.detectors.Detector` and give
it a line in `DETECTORS`. One of River's, which takes values one by one, fits into such a class: its
loop in `update`, the detector itself in the state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from midstream.engine import encoding
from midstream.engine.detectors import ADWIN, Detector, PageHinkley
from midstream.engine.events import Alarm, FloatArray

__all__ = ["DETECTORS", "DriftMonitor", "drift_options"]


class _Kind(NamedTuple):
    make: type[Detector]
    threshold: str  # the option that an alarm quotes
    up: Mapping[str, Any] = {}  # options with which it looks for a rise only, where it has such


DETECTORS: Mapping[str, _Kind] = {
    "adwin": _Kind(ADWIN, "delta"),
    "page_hinkley": _Kind(PageHinkley, "threshold", up={"mode": "up"}),
}


def drift_options(name: str) -> dict[str, Any]:
    """Return the options of a detector with their defaults.

    Raises
    ------
    ValueError
        If there is no detector of that name; the message lists those there are.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; there are: {', '.join(DETECTORS)}")
    return DETECTORS[name].make().definition()


class DriftMonitor:
    """Watches the loss of each event and raises alarms where it has changed.

    Parameters
    ----------
    detectors
        Names out of `DETECTORS`, or a mapping from name to options.
    direction
        "up": alarm only where the loss has risen; a model that gets better is no reason to wake
        anyone. "both": any change.

    Raises
    ------
    ValueError
        If there is no such detector or option, an option is out of range, or it contradicts the
        direction.
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
            kind = DETECTORS[name]
            implied = kind.up if direction == "up" else {}
            for key, value in options.items():
                if key not in known:
                    raise ValueError(f"{name} has no option {key!r}; it has: {', '.join(known)}")
                if value != implied.get(key, value):
                    raise ValueError(f"{name}: {key} {value!r} contradicts direction 'up'")
            self._detectors[name] = kind.make(**{**implied, **options})

    def update(
        self,
        losses: FloatArray,
        position: int,
        time: Callable[[int], float | None] | None = None,
    ) -> list[Alarm]:
        """Feed the losses of a batch, in order, and return the alarms that they cause.

        Parameters
        ----------
        losses
            (n,) one loss per event; nan where the event was not scored, which is skipped.
        position
            How many events came before this batch.
        time
            Gives the time of event i, in seconds, for the alarms.

        Returns
        -------
        list of Alarm
            In the order of the events, and for one event in the order of the detectors. `value` is
            the mean loss as the detector sees it after the event, `position` counts the event.
        """
        alarms = []
        for name, detector in self._detectors.items():
            for row, before, after in detector.update(losses):
                if self.direction == "up" and after <= before:
                    continue
                alarms.append(
                    Alarm(
                        kind="drift",
                        detector=name,
                        feature=None,
                        value=after,
                        threshold=detector.definition()[DETECTORS[name].threshold],
                        position=position + row + 1,
                        ts=None if time is None else time(row),
                    )
                )
        alarms.sort(key=lambda alarm: alarm.position)  # stable: detectors keep their order
        return alarms

    def definition(self) -> dict[str, Any]:
        """Return what it is, without what it has seen: plain JSON values."""
        options = {name: detector.definition() for name, detector in self._detectors.items()}
        return {"direction": self.direction, **options}

    def state(self) -> bytes:
        """Return everything that the next alarm depends on."""
        detectors = {name: detector.state() for name, detector in self._detectors.items()}
        return encoding.encode(
            {"schema": self.SCHEMA, "direction": self.direction, "detectors": detectors}
        )

    @classmethod
    def from_state(cls, data: bytes) -> "DriftMonitor":
        """Build the monitor that `data` was taken from.

        Raises
        ------
        ValueError
            If the state has another schema than this version's, or a detector that it has not.
        """
        state = encoding.decode(data)
        try:
            if state["schema"] != cls.SCHEMA:
                raise ValueError(
                    f"drift state has schema {state['schema']}, this version reads {cls.SCHEMA}"
                )
            new = cls(tuple(state["detectors"]), direction=state["direction"])
            for name, detector in state["detectors"].items():
                new._detectors[name] = DETECTORS[name].make.from_state(detector)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"damaged drift state: {type(error).__name__}: {error}") from error
        return new
