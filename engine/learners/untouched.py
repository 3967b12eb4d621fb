"""Ask a River model for predictions and leave the model unchanged.

Some of River's models change when they predict. One that draws random numbers for an unseen feature
keeps them; one that makes a group for an unseen value keeps the group. Later predictions depend on
that. An event with a label is predicted as River predicts it, with all such changes, and then
learned. An event without a label must leave the model unchanged. For each step this depends on its
parts:

- Most of River's estimators change nothing when they predict. They are asked directly.
- Some only add to their dicts, draw random numbers and set attributes (`_KEEP`). That is undone
  after the prediction, at a cost that does not grow with their size.
- A few change otherwise (`_COPIED`): a copy is asked.
- Some ensembles make their members for the first features they see (`_LATE`): a copy is asked until
  they have members.
- Of classes outside River nothing is known. They are asked directly, and their states before and
  after are compared, once for a batch that is only predicted. If a state has changed it is
  restored, and from then on a copy is asked.

`tests/engine/learners/test_catalogue.py` checks every public estimator of River.
"""

import copy
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from river import base

from midstream.engine.events.event import Features
from midstream.engine.learners.anatomy import path_of, steps, within
from midstream.engine.state import encoding

__all__ = ["Untouched"]

T = TypeVar("T")

_KEEP = (
    "river.compose.grouper.",
    "river.facto.",
    "river.feature_extraction.agg.",
    "river.feature_extraction.kernel_approx.RBFSampler",
    "river.linear_model.bayesian_lin_reg.",
    "river.neighbors.ann.",
    "river.preprocessing.ordinal.",
    "river.preprocessing.random_projection.",
    "river.preprocessing.scale.",
)
_COPIED = (
    "river.feature_extraction.kernel_approx.RandomTreesEmbedding",
    "river.feature_selection.random.",
    "river.preprocessing.lda.",
)
_LATE = ("river.ensemble.streaming_random_patches.", "river.forest.adaptive_random_forest.")
_KNOWN = ("river.", "numpy.", "datetime.", "builtins.", "operator.", "re.")
# What these keep does not change later predictions.
_SILENT = ("river.preprocessing.scale.", "river.linear_model.bayesian_lin_reg.")
_log = logging.getLogger("midstream")


class Untouched:
    """Asks a model for predictions and leaves it unchanged.

    Parameters
    ----------
    model
        The model; its steps may learn, but must stay the same objects.
    modules
        Modules besides River whose classes and functions its state may hold.

    Attributes
    ----------
    needed
        Whether predicting may change the model at all.
    foreign
        Its steps of classes outside River, of which nothing is known.
    """

    def __init__(self, model: Any, modules: Collection[str] = ()) -> None:
        self._model = model
        self._modules = modules
        self._shared: dict[int, Any] = {}  # the steps that a copy shares with the model, by id
        self._undone: list[Any] = []
        self._silent: list[Any] = []  # steps undone only at the end of a batch
        self._late: list[Any] = []  # steps that may have no members yet
        self.foreign: list[Any] = []
        self._copies = False
        self._warned: set[str] = set()
        for step in steps(model):
            names = [path_of(type(part)) for part in within(step)]
            if not all(name.startswith(_KNOWN) for name in names):
                if hasattr(step, "__dict__"):
                    self.foreign.append(step)
                else:
                    self._copies = True
                continue
            if any(name.startswith(_COPIED) for name in names):
                self._copies = True
                continue
            if path_of(type(step)).startswith(_LATE):
                self._late.append(step)
            elif any(name.startswith(_LATE) for name in names):  # each gets members at another time
                self._copies = True
                continue
            else:
                self._shared[id(step)] = step
            kept = [name for name in names if name.startswith(_KEEP)]
            if kept and all(name.startswith(_SILENT) for name in kept):
                self._silent.append(step)
            elif kept:
                self._undone.append(step)
        self.needed = bool(
            self._silent or self._undone or self._late or self.foreign or self._copies
        )
        self._foreign_changes = False  # whether predicting was seen to change a foreign step

    def one(self, ask: Callable[[Any, Features], T], x: Features) -> T:
        """Return the result of `ask` for the model, or a copy, and `x`."""
        return self.run(lambda: self.each(ask, x))

    def run(self, predict: Callable[[], T]) -> T:
        """Call `predict`, which asks through `each`; if the model changed, call it again on copies.

        Parameters
        ----------
        predict
            Gives the same result when called twice on an unchanged model.
        """
        marks = [_Mark(part) for step in self._silent for part in _estimators(step)]
        try:
            if self.foreign and not self._foreign_changes:
                return self._compared(predict)
            return predict()
        finally:
            for mark in marks:
                mark.undo()

    def each(self, ask: Callable[[Any, Features], T], x: Features) -> T:
        """Return the result of `ask` for the model, or a copy, and `x`; use it within `run`."""
        return self.ask(ask, x, copied=self._foreign_changes)

    def ask(self, ask: Callable[[Any, Features], T], x: Features, *, copied: bool) -> T:
        """Return the result of `ask` and undo what River's steps keep; `copied`: ask a copy."""
        model = self._model
        if self._late:
            for step in self._late:
                if len(step):
                    self._shared[id(step)] = step
            self._late = [step for step in self._late if not len(step)]
        if copied or self._copies or self._late:
            model = copy.deepcopy(model, dict(self._shared))
        if not self._undone:
            return ask(model, x)
        marks = [_Mark(part) for step in self._undone for part in _estimators(step)]
        try:
            return ask(model, x)
        finally:
            changed = [mark.estimator for mark in marks if mark.undo()]
            if changed:
                self.warn(changed, "it draws or adds what is new to it when it predicts")

    def _compared(self, predict: Callable[[], T]) -> T:
        before = self.states()
        if before is None:
            self._foreign_changes = True
            self.warn(self.foreign, "its state cannot be compared")
            return predict()
        result, failure = None, None
        try:
            result = predict()
        except BaseException as error:  # noqa: BLE001  # raised again once the model is restored
            failure = error
        if self.states() != before:
            self.put_back(before)
            self._foreign_changes = True
            self.warn(self.foreign, "it changes when it predicts")
            return predict()
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]  # None only if `predict` returned it

    def states(self) -> list[bytes] | None:
        """Return the states of the foreign steps; None if one has none."""
        try:
            return [encoding.encode(step, modules=self._modules) for step in self.foreign]
        except encoding.EncodingError:
            return None

    def put_back(self, states: list[bytes]) -> None:
        """Restore the states of the foreign steps."""
        for step, state in zip(self.foreign, states, strict=True):
            fresh = encoding.decode(state, modules=self._modules)
            vars(step).clear()
            vars(step).update(vars(fresh))

    def warn(self, changed: list[Any], why: str) -> None:
        """Log, once for each of these, that a prediction alone no longer changes it."""
        for part in changed:
            name = path_of(type(part))
            if name not in self._warned:
                self._warned.add(name)
                fields = {"step": type(part).__name__, "why": why}
                _log.info("events without a label leave it as it was", extra={"fields": fields})


def _estimators(step: Any) -> Iterator[Any]:
    """Yield a step and the estimators that it holds now, also in lists and dicts."""
    waiting, seen = [step], {id(step)}
    while waiting:
        estimator = waiting.pop()
        yield estimator
        for value in vars(estimator).values():
            if isinstance(value, base.Estimator):
                found = [value]
            elif isinstance(value, list | tuple):
                found = [item for item in value if isinstance(item, base.Estimator)]
            elif isinstance(value, dict) and isinstance(
                next(iter(value.values()), None), base.Estimator
            ):
                found = [item for item in value.values() if isinstance(item, base.Estimator)]
            else:
                continue
            for item in found:
                if id(item) not in seen:
                    seen.add(id(item))
                    waiting.append(item)


class _Mark:
    """An estimator before a prediction: attributes, sizes of dicts, random generators."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator
        self.attributes = dict(vars(estimator))
        self._sizes: list[tuple[Any, int]] = []
        self._generators: list[tuple[Any, Any]] = []
        for value in self.attributes.values():
            self._add(value)
            if isinstance(value, base.Base) and not isinstance(value, base.Estimator):
                for held in vars(value).values():  # an initializer, which draws random numbers
                    self._add(held)

    def _add(self, value: Any) -> None:
        if isinstance(value, dict):
            self._sizes.append((value, len(value)))
            if isinstance(next(iter(value.values()), None), dict):
                self._sizes += [(held, len(held)) for held in value.values()]
        elif isinstance(value, random.Random):
            self._generators.append((value, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            self._generators.append((value, value.get_state(legacy=False)))
        elif isinstance(value, np.random.Generator):
            self._generators.append((value.bit_generator, value.bit_generator.state))

    def undo(self) -> bool:
        """Restore the estimator; return whether anything had changed."""
        changed = False
        own = vars(self.estimator)
        if own.keys() != self.attributes.keys() or any(
            own[name] is not value for name, value in self.attributes.items()
        ):
            changed = True
            own.clear()
            own.update(self.attributes)
        for items, size in self._sizes:
            while len(items) > size:  # remove the last items first
                items.popitem()
                changed = True
        for generator, state in self._generators:
            changed = _put_back(generator, state) or changed
        return changed


def _put_back(generator: Any, state: Any) -> bool:
    if isinstance(generator, random.Random):
        if generator.getstate() == state:
            return False
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        now = generator.get_state(legacy=False)
        if _same_draws(now, state):
            return False
        generator.set_state(state)
    else:
        if _same_draws(generator.state, state):
            return False
        generator.state = state
    return True


def _same_draws(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same_draws(one[k], other[k]) for k in one)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one == other
