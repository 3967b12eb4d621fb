"""Which feature of an event a learner raised on, and how to avoid it."""

import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

from river import base

from midstream.engine.events.event import Features

__all__ = ["Tried", "misfit"]

_NUMERIC = (int, float)
_MOST = 3
_TRIED = 16
_REMEMBERED = 100
_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
# Texts for a missing value in tables: any short text, or one of these.
_NOTHING = {"missing", "none", "null", "unknown"}


Tried: TypeAlias = dict[tuple[str, ...], list[str]]
"""Results of earlier trials: the features at fault, by error type, message and features."""


def misfit(
    cause: Exception, x: Features, again: Callable[[Features], Exception | None], tried: Tried
) -> str:
    """Return which of the features `x` a learner raised `cause` on, in which step, and a remedy.

    Empty if that cannot be determined.

    Parameters
    ----------
    again
        Tries other features on a copy of the learner, and returns the error, if any.
    tried
        Results of earlier trials, which are not repeated, since a copy may be large. It is updated.
    """

    def at_fault(names: list[str]) -> list[str]:
        """Return the features that, set to 0, keep the learner from raising."""
        key = (type(cause).__name__, str(cause), *names)
        if key not in tried:
            if len(tried) >= _REMEMBERED:
                tried.clear()
            found = [name for name in names if not _same(again(x | {name: 0.0}), cause)]
            if not found and len(names) > 1:  # more than one is at fault
                found = [] if _same(again(x | dict.fromkeys(names, 0.0)), cause) else names
            tried[key] = found
        return tried[key]

    frames = _frames(cause.__traceback__)
    step = next((name for name in map(_step, frames) if name), "")
    if isinstance(cause, KeyError):
        name = cause.args[0] if cause.args else None
        if not isinstance(name, str) or name in x or not at_fault([name]):
            return ""
        return (
            f"step {step or 'of the model'} needs the feature {name!r}, and the event has none; "
            "leave such events out, or fill it in in a step before"
        )
    if not isinstance(cause, TypeError | ValueError | AttributeError):
        return ""
    found = _named(frames, x)
    if not found:
        odd = dict(_beside_numbers(frames, x)[:_TRIED])
        found = [(name, odd[name]) for name in at_fault([*odd])] if odd else []
    if not found:
        return ""
    shown = ", ".join(f"{name!r}, which is {_shown(value)}" for name, value in found[:_MOST])
    types = ", ".join(f'{_key(name)} = "number"' for name, _ in found[:_MOST])
    place = f"step {step}" if step else "the model"
    several = "these features: " if len(found) > 1 else "the feature "
    advice = f"[input.fields] types = {{ {types} }} rejects such events"
    texts = {value for _, value in found if isinstance(value, str)}
    nothing = sorted(filter(_is_nothing, texts))
    if nothing:
        values = ", ".join(f'"{value}"' for value in nothing[:_MOST])
        advice += f", and missing = [{values}] takes it for missing"
    return f"{place} computes with {several}{shown}; {advice}"


def _same(error: Exception | None, cause: Exception) -> bool:
    return type(error) is type(cause) and str(error) == str(cause)


def _is_nothing(text: str) -> bool:
    return len(text) <= _MOST or text.strip().lower() in _NOTHING


def _shown(value: Any) -> str:
    kind = "text" if isinstance(value, str) else type(value).__name__
    return f"the {kind} {value!r:.60}"


def _key(name: str) -> str:
    return name if _BARE.match(name) else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _frames(traceback: TracebackType | None) -> list[Mapping[str, Any]]:
    """Return the local variables of the model's frames, innermost first."""
    found: list[Mapping[str, Any]] = []
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith("midstream.") or module == "midstream.engine.learners.fused":
            found.append(frame.f_locals)
    return found[::-1]


def _step(frame: Mapping[str, Any]) -> str:
    """Return the name of the estimator whose method a frame runs."""
    owner = frame.get("self")
    return type(owner).__name__ if isinstance(owner, base.Estimator) else ""


def _named(frames: list[Mapping[str, Any]], x: Features) -> list[tuple[str, Any]]:
    """Return the non-numeric feature in the frames' variables whose name is there, too."""
    for frame in frames:
        for name in [value for value in frame.values() if isinstance(value, str)]:
            if name in x and not isinstance(x[name], _NUMERIC) and _holds(frame, x[name], name):
                return [(name, x[name])]
        if isinstance(frame.get("x"), Mapping):
            return []
    return []


def _beside_numbers(frames: list[Mapping[str, Any]], x: Features) -> list[tuple[str, Any]]:
    """Return the non-numeric features among those that the frames computed with."""
    for frame in frames:
        features = frame.get("x")
        if isinstance(features, Mapping):
            odd = [(k, v) for k, v in features.items() if not isinstance(v, _NUMERIC)]
            named = [(k, x[k]) for k, v in odd if k in x and x[k] is v]
            if named:
                return named
    return []


def _holds(frame: Mapping[str, Any], value: Any, name: str) -> bool:
    """Whether another variable of the frame holds the value of the feature."""
    return any(held is value for key, held in frame.items() if held is not name and key != "x")
