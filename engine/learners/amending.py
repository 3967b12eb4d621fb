"""Transfer what a River model has learned to a model with another definition."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from river import base

from midstream.engine.events.event import FloatArray
from midstream.engine.state import encoding
from midstream.engine.state.changes import (
    Change,
    MisfitError,
    aligned,
    differences,
    is_holder,
    is_same,
    shown,
)

__all__ = ["definition_differences", "taken_options", "taken_over"]

_UNKNOWN = object()


def definition_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return the differences between two definitions of learners.

    Versions of Python and River are left out: predictions show whether they matter.
    """
    for key in ("kind", "task"):
        if old.get(key) != new.get(key):
            what = "another kind of learner" if key == "kind" else "another task"
            return [_of(key, old.get(key), new.get(key), "refused", what)]
    was, now = old.get("model"), new.get("model")
    if was is None or now is None:
        options = ({k: v for k, v in d.items() if k != "model"} for d in (old, new))
        return differences("learner", *options, level="asked", effect=_FROM_NOW)
    was_last, now_last = _last(was), _last(now)
    if was_last.get("class") != now_last.get("class"):
        return [_of("class", was_last, now_last, "refused", "another kind of learner")]
    if was.get("class") != now.get("class"):
        return [_of("class", was, now, "refused", "another kind of learner")]
    before, after = _last_name(was), _last_name(now)
    if before != after:
        effect = f"the step that predicts has another name; name it {before!r} to keep it"
        return [_of("last step", before, after, "refused", effect)]
    same = _Same(old.get("python") == new.get("python"), old.get("river") == new.get("river"))
    return _nested("", was, now, same)


_FROM_NOW = "alters learning from now on"


def _of(what: str, before: Any, after: Any, level: Any, effect: str) -> Change:
    return Change("learner", what, shown(before), shown(after), level, effect)


class _Same(NamedTuple):
    """Whether two definitions name the same versions."""

    python: bool
    river: bool


def _is_of_rivers(definition: Mapping[str, Any], same: _Same) -> bool:
    """Whether this is a class of River's that another version may define differently."""
    name = str(definition.get("class", ""))
    return not same.river and name.startswith("river.") and not is_holder(definition)


def _last(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the definition of the step that predicts: the last one of a pipeline."""
    if str(model.get("class", "")).endswith("pipeline.Pipeline"):
        steps = [step for step in model.values() if isinstance(step, Mapping)]
        if steps:
            return _last(steps[-1])
    return model


def _last_name(model: Mapping[str, Any]) -> str:
    """Return the name of the step that predicts; empty for a model without steps."""
    if not str(model.get("class", "")).endswith("pipeline.Pipeline"):
        return ""
    return ["", *(name for name, step in model.items() if isinstance(step, Mapping))][-1]


def _nested(path: str, old: Any, new: Any, same: _Same) -> list[Change]:
    if is_same(old, new):
        return []
    old, new = aligned(old, new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        if all(isinstance(each, Mapping) for each in (*old, *new)):
            return [c for i, (a, b) in pairs for c in _nested(f"{path}.{i}", a, b, same)]
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if isinstance(old, str) and isinstance(new, str) and "(code " in old and "(code " in new:
            return _code(path, old, new, same)
        return [_of(path, old, new, "asked", _FROM_NOW)]
    if old.get("class") != new.get("class"):
        return [_of(path, old, new, "asked", "restarts")]
    found = []
    for key in dict.fromkeys([*old, *new]):
        at = f"{path}.{key}" if path else key
        if key in ("code", "source"):
            if old.get(key) != new.get(key):
                name = path or shown(old)
                found += _code(name, old.get(key), new.get(key), same, key == "source")
        elif (key in old) != (key in new) and _is_of_rivers(old, same):
            continue  # an argument was added or removed: predictions show whether it matters
        elif key not in old:
            is_part = isinstance(new[key], Mapping)
            found.append(_of(at, None, new[key], "asked", "begins now" if is_part else _FROM_NOW))
        elif key not in new:
            found.append(_of(at, old[key], None, "asked", "is dropped"))
        else:
            found += _nested(at, old[key], new[key], same)
    if is_holder(new):
        before, after = ([k for k in d if k in old and k in new] for d in (old, new))
        if before != after:
            was, now = (", ".join(k for k in keys if k != "class") for keys in (before, after))
            at = f"{path}.order" if path else "order"
            found.append(_of(at, was, now, "asked", _FROM_NOW))
    return found


def _code(path: str, old: Any, new: Any, same: _Same, is_source: bool = False) -> list[Change]:
    if not (is_source or same.python):  # each version of Python compiles differently
        return []
    before, after = (str(each).rpartition("(code ")[2].rstrip(")") for each in (old, new))
    return [_of(path, f"code {before}", f"code {after}", "asked", "the new code goes on")]


def taken_over(
    old: Any,
    new: Any,
    was: Any,
    now: Any,
    modules: Collection[str] = (),
    path: str = "",
) -> Any:
    """Return a model that is defined as `new` and continues from what `old` has learned.

    It is `old` if both are of the same class. Constructor arguments that are defined
    differently get the values of `new`; the others stay, since a model may have changed its own.
    Another attribute stays if a new model with the old arguments has it as `new` has it. If not,
    it gets the value of `new`, provided that `old` has learned nothing in it.

    Parameters
    ----------
    old
        The old model; ownership passes to the function.
    new
        A new, unused model; ownership passes, too.
    was, now
        The definitions of both, as they were made.
    modules
        Modules besides River whose classes and functions models may hold.
    path
        The place of both in the whole model.

    Raises
    ------
    MisfitError
        If a learned attribute does not fit; the message names it.
    """
    if type(old) is not type(new):
        return new
    steps, before = _steps(new), _steps(old)
    if steps is not None and before is not None:
        for name, step in list(steps.items()):
            if name in before:
                key, at = str(name), _at(path, str(name))
                steps[name] = taken_over(
                    before[name], step, _inner(was, key), _inner(now, key), modules, at
                )
        same = [(k, id(v)) for k, v in steps.items()] == [(k, id(v)) for k, v in before.items()]
        return old if same else new
    if not isinstance(new, base.Base) or not hasattr(new, "__dict__"):
        return new if _bytes(old, modules) != _bytes(new, modules) else old
    _take_over(old, new, was, now, modules, path)
    return old


def _inner(definition: Any, name: str) -> Any:
    """Return the definition of a step or an argument, if there is one."""
    return definition.get(name, _UNKNOWN) if isinstance(definition, Mapping) else _UNKNOWN


def _take_over(old: Any, new: Any, was: Any, now: Any, modules: Collection[str], path: str) -> None:
    """Change an object in place to the definition of a new one."""
    try:
        arguments = set(new._get_params())
        for name in arguments - vars(old).keys():
            if name in vars(new):  # an argument that the old code did not have
                vars(old)[name] = vars(new)[name]
        arguments |= set(old._get_params())
        made = old.clone()  # with the old arguments and the present code
    except Exception as error:  # noqa: BLE001  # whatever a class outside River does
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise MisfitError(path or type(old).__name__, f"it cannot be copied: {said:.200}") from None
    prototypes = any(
        isinstance(model := vars(new).get(name), base.Estimator)
        and _bytes(model, modules) != _bytes(vars(made).get(name), modules)  # not its code alone
        for name in arguments
    )
    is_own = not type(new).__module__.startswith("river.")
    for name, fresh in list(vars(new).items()):
        at = _at(path, name)
        if name not in vars(old):
            vars(old)[name] = fresh  # new in the code, or under the new arguments
            continue
        learned, before = vars(old)[name], vars(made).get(name)
        then, since = _inner(was, name), _inner(now, name)
        if name in arguments and then is not _UNKNOWN and is_same(then, since):
            continue
        if name == "data" and isinstance(old, base.Ensemble) and "models" in arguments:
            then, since = _inner(was, "models"), _inner(now, "models")
            if _are_alike(learned, fresh) and isinstance(then, list) and isinstance(since, list):
                for i, member in enumerate(fresh):
                    inner = then[i], since[i], modules, f"{_at(path, 'models')}.{i}"
                    learned[i] = taken_over(learned[i], member, *inner)
                continue
        if isinstance(fresh, base.Base) and type(learned) is type(fresh):
            vars(old)[name] = taken_over(learned, fresh, then, since, modules, at)
        elif _bytes(before, modules) == _bytes(fresh, modules):
            if prototypes and name not in arguments and _has_learned(learned, modules):
                raise MisfitError(at, "its models were made from one that is defined otherwise now")
            if (
                is_own
                and name not in arguments
                and fresh is not None
                and not _alike(learned, fresh)
            ):
                raise MisfitError(
                    at, f"it is of type {type(learned).__name__}, needed: {type(fresh).__name__}"
                )
        elif (
            # A clone has copies of models in lists and dicts, with what they have learned.
            name in arguments or _bytes(learned, modules) == _bytes(before, modules)
        ) and not _has_learned(learned, modules):
            vars(old)[name] = fresh
        else:
            raise MisfitError(at, "what was learned in it depends on what is defined otherwise now")


def _has_learned(value: Any, modules: Collection[str]) -> bool:
    """Whether a model in a list, tuple or dict has learned something."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return False
    for each in value:
        if isinstance(each, base.Base):
            try:
                blank = _bytes(each.clone(), modules)
            except Exception:  # noqa: BLE001  # whatever a class outside River does
                return True
            if _bytes(each, modules) != blank:
                return True
        elif hasattr(each, "learn_one") or _has_learned(each, modules):
            return True
    return False


def _are_alike(old: Any, new: Any) -> bool:
    """Whether two lists hold as many models, of the same classes."""
    return list(map(type, old)) == list(map(type, new))


def taken_options(
    state: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of a compiled learner under other options.

    Raises
    ------
    MisfitError
        If what was learned depends on a changed option.
    """
    reasons = {
        "bits": "categories were hashed into another number of weights",
        "scale": "the weights are of numbers in other units",
    }
    for name in ("bits", "scale"):
        if old[name] != new[name] and (name != "bits" or state["hashed"]):
            raise MisfitError(name, reasons[name])
    for name, held in (("features", state["names"]), ("classes", state.get("classes", []))):
        if len(held) > new.get(name, len(held)):
            raise MisfitError(name, f"{len(held)} are known already, allowed: {new[name]}")
    state = state | {"options": dict(new)}
    if old["optimizer"] == new["optimizer"] == "ftrl":
        for name in ("weights", "table"):
            state[name] = _shifted(state[name], old, new)
    if old["optimizer"] != new["optimizer"]:
        if "ftrl" in (old["optimizer"], new["optimizer"]):
            raise MisfitError("optimizer", "FTRL keeps its weights in another form")
        for name in ("weights", "table"):  # the optimizer's rows beside the weights
            state[name] = state[name].copy()
            state[name][1:] = 0.0
        if "penalty" in state:  # what each weight had to pay was in those rows
            state["penalty"] = 0.0
        else:
            state["totals"] = state["totals"].copy()
            state["totals"][1] = 0.0
    return state


def _shifted(rows: FloatArray, old: Mapping[str, Any], new: Mapping[str, Any]) -> FloatArray:
    """Return FTRL's rows so that the weights, which follow from them, stay as they are."""
    names = ("rate", "beta", "l1", "l2")
    if all(old[name] == new[name] for name in names):
        return rows
    rate, beta, l1, l2 = (new[name] for name in names)
    weights, sums, squares = rows
    shifted = -weights * ((beta + np.sqrt(squares)) / rate + l2) - np.sign(weights) * l1
    at_zero = np.clip(sums, -l1, l1)
    return np.stack([weights, np.where(weights == 0.0, at_zero, shifted), squares])


def _alike(learned: Any, fresh: Any) -> bool:
    """Whether a value has the type that the code starts with; all numbers count as one type."""
    if isinstance(fresh, int | float) and isinstance(learned, int | float):
        return True
    return isinstance(learned, type(fresh)) or isinstance(fresh, type(learned))


def _steps(model: Any) -> dict[Any, Any] | None:
    """Return the steps of a pipeline, or the parts of a union, by name; None for other models."""
    for name in ("steps", "transformers"):
        steps = getattr(model, name, None)
        if isinstance(model, base.Estimator) and isinstance(steps, dict):
            return steps
    return None


def _bytes(value: Any, modules: Collection[str]) -> bytes:
    return encoding.encode(value, modules=tuple(modules))


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
