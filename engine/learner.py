"""Learners: one operation on an ordered batch, predict then learn, event by event."""

import hashlib
import importlib
import inspect
import platform
import re
from collections.abc import Callable, Collection, Mapping
from types import CodeType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import river
from river import base

from midstream.engine import encoding
from midstream.engine.events import TASKS, EventBatch, Features, Label, Predictions, Table, Task
from midstream.engine.fused import Loop, fused_loop, fused_step
from midstream.engine.sizes import measured_by_state

__all__ = [
    "LEARNERS",
    "Learner",
    "LearnerError",
    "RiverLearner",
    "UnseededError",
    "as_learner",
    "definition_changes",
    "load_learner",
]


class LearnerError(RuntimeError):
    """A learner raised on the event at `row` of a batch; it may be half updated by it."""

    def __init__(self, row: int, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.row = row
        self.cause = cause


class UnseededError(ValueError):
    """A learner draws random numbers from a generator without a seed: no run could be repeated."""


@runtime_checkable
class Learner(Protocol):
    """What the engine asks of a learner. `midstream.engine.checks` tests that it is kept.

    The result of a stream never depends on how it was cut into batches; predicting leaves later
    predictions unchanged; a learner built from another's state is that learner, bit for bit.
    """

    kind: ClassVar[str]
    needs: Literal["dicts", "columns"]
    task: Task
    takes_weights: bool

    def predict_learn(self, batch: EventBatch) -> Predictions:
        """Predict each event, then learn it if it has a label, in order.

        Raises
        ------
        LearnerError
            If it cannot; it may then be half updated and is not to be used any more.
        """

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict only."""

    def learn(self, batch: EventBatch) -> None:
        """Learn only."""

    def state(self) -> bytes:
        """Everything that its next result depends on; equal learners give equal bytes."""

    def definition(self) -> dict[str, Any]:
        """What it is, without what it has learned, with library versions: plain JSON values."""


def as_learner(model: Any, task: Task | None = None, modules: Collection[str] = ()) -> Learner:
    """Return `model` as a `Learner`: as it is, or a River estimator wrapped.

    Parameters
    ----------
    modules
        Modules besides River whose classes and functions the model's state may hold.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If it is a learner for another task.
    UnseededError
        If it is a River estimator with an unset seed.
    """
    if isinstance(model, base.Estimator):
        return RiverLearner(model, task, modules=modules)
    if isinstance(model, Learner) and not isinstance(model, type):
        if task is not None and model.task != task:
            raise ValueError(f"the learner's task is {model.task}, not {task}")
        return model
    found = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise TypeError(f"expected a River estimator or a Learner, got {found}")


def load_learner(kind: str, state: bytes, *, task: Task, modules: Collection[str] = ()) -> Learner:
    """Build the learner that `state` was taken from.

    Raises
    ------
    ValueError
        If this version has no such kind of learner.
    """
    if kind in _ELSEWHERE:
        importlib.import_module(_ELSEWHERE[kind])
    if kind not in LEARNERS:
        known = ", ".join(LEARNERS)
        raise ValueError(f"unknown kind of learner {kind!r}; this version has: {known}")
    return LEARNERS[kind](state, task=task, modules=modules)


def definition_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what differs between two definitions, a line each; empty if nothing does."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += [f"{key}.{line}" for line in definition_changes(before, after)]
        else:
            lines.append(f"{key}: was {before!r}, is {after!r}")
    return lines


class RiverLearner:
    """Any River classifier, regressor or pipeline of them.

    Parameters
    ----------
    model
        The estimator. It belongs to the learner from now on.
    task
        Default: "regression" for a regressor, "binary" for a classifier.
    modules
        Modules besides River whose classes and functions the state may hold.

    Raises
    ------
    TypeError
        If the model is neither a classifier nor a regressor, or not one for the task.
    UnseededError
        If a seed is not set somewhere in the model.
    """

    kind: ClassVar[str] = "river"
    needs: Literal["dicts", "columns"] = "dicts"

    def __init__(
        self, model: base.Estimator, task: Task | None = None, *, modules: Collection[str] = ()
    ) -> None:
        classifier = isinstance(_last_step(model), base.Classifier)
        if not classifier and not isinstance(_last_step(model), base.Regressor):
            raise TypeError(f"{_name(model)} is neither a classifier nor a regressor")
        self.task: Task = task or ("binary" if classifier else "regression")
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, found {task!r}")
        if classifier == (self.task == "regression"):
            wanted = "a classifier" if self.task != "regression" else "a regressor"
            raise TypeError(f"task {self.task} needs {wanted}, and {_name(model)} is none")
        if self.task == "multiclass" and not model._multiclass:
            raise TypeError(f"task multiclass, but {_name(model)} knows two classes only")
        unseeded = _unseeded(model)
        if unseeded:
            raise UnseededError(
                f"{unseeded[0]} has no seed, so no run could be repeated; set seed=... in it"
            )
        self.model = model
        self.modules = tuple(modules)
        self._definition = _describe(model)
        self._bind()

    def _bind(self) -> None:
        self._keeps_input = not _READS_ONLY.issuperset(_packages(self._definition))
        last = _last_step(self.model)  # a pipeline takes any argument and drops what no step knows
        parameters = inspect.signature(last.learn_one).parameters
        self.takes_weights = "w" in parameters or any(
            p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
        )
        # Some classifiers (one-versus-one, output codes, voting) have no probabilities.
        self._has_probas = (
            isinstance(last, base.Classifier)
            and type(last).predict_proba_one is not base.Classifier.predict_proba_one
        )
        self._fused_loop = fused_loop(self.model)
        self._fused_step = fused_step(self.model)

    def predict_learn(self, batch: EventBatch) -> Predictions:
        """Predict each event, then learn it if it has a label, in order."""
        return self._run(batch, learn=True)

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict only."""
        return self._run(batch, learn=False)

    def learn(self, batch: EventBatch) -> None:
        """Learn the labelled events, in order."""
        row = 0
        try:
            with measured_by_state():
                for row, x in enumerate(batch.dicts()):
                    y = batch.labels[row]
                    if y is not None:
                        self._learn_one(batch, row, x.copy(), y)
        except Exception as cause:
            raise LearnerError(row, cause) from cause

    def _learn_one(self, batch: EventBatch, row: int, x: Features, y: Label) -> None:
        weight = batch.weight(row)
        if weight == 1.0:
            self.model.learn_one(x, y)
        elif weight > 0.0:
            self.model.learn_one(x, y, w=weight)

    def _run(self, batch: EventBatch, *, learn: bool) -> Predictions:
        labels: list[Label | None] = batch.labels if learn else [None] * len(batch)
        if learn and self._fused_loop is not None and batch.weights is None:
            return self._run_loop(self._fused_loop, batch.dicts(), labels)
        with measured_by_state():
            if self._has_probas:
                return self._run_probas(batch, labels)
            return self._run_values(batch, labels)

    def _run_loop(
        self, loop: Loop, dicts: list[Features], labels: list[Label | None]
    ) -> Predictions:
        predicted: list[float] = []
        try:
            loop(dicts, labels, predicted)
        except Exception as cause:
            raise LearnerError(len(predicted), cause) from cause
        if self.task == "regression":
            return Predictions(predicted)  # type: ignore[arg-type]  # a list is invariant
        true = np.array(predicted, np.float64)
        return Predictions(
            (true > 0.5).tolist(), Table((False, True), np.stack((1.0 - true, true), axis=1))
        )

    def _run_probas(self, batch: EventBatch, labels: list[Label | None]) -> Predictions:
        predict_proba_one = self.model.predict_proba_one
        learn_one: Callable[..., None] = self.model.learn_one
        unweighted, keeps, binary = batch.weights is None, self._keeps_input, self.task == "binary"
        step = self._fused_step if unweighted else None
        values: list[Label | None] = []
        # Copies: some learners hand out a dict that they go on using. False and True with two
        # probabilities that differ, which is nearly all there is, are kept as columns.
        odd: dict[int, dict[Label, float]] = {}
        falses: list[float] = []
        trues: list[float] = []
        row = 0
        try:
            for row, (given, y) in enumerate(zip(batch.dicts(), labels, strict=True)):
                x = given.copy() if keeps else given
                proba = predict_proba_one(x) if step is None or y is None else step(x, y)
                false, true = 0.0, 0.0
                if binary and len(proba) == 2:
                    false, true = proba[False], proba[True]
                if true > false:
                    values.append(True)
                elif true < false:
                    values.append(False)
                else:
                    values.append(max(proba, key=proba.__getitem__) if proba else None)
                    odd[row] = (
                        {label: float(p) for label, p in proba.items()} if binary else dict(proba)
                    )
                falses.append(false)
                trues.append(true)
                if step is not None or y is None:
                    continue
                if unweighted:
                    learn_one(x, y)
                else:
                    self._learn_one(batch, row, x, y)
            if not odd:
                columns = np.array([falses, trues], np.float64)
                return Predictions(values, Table((False, True), columns.T))
        except Exception as cause:
            if len(trues) == len(labels):  # perhaps all was learned, and one is no number
                pairs = zip(falses, trues, strict=True)
                row = next((i for i, pair in enumerate(pairs) if not _numbers(pair)), row)
            raise LearnerError(row, cause) from cause
        rows = enumerate(zip(falses, trues, strict=True))
        return Predictions(
            values, [odd.get(i, {False: float(f), True: float(t)}) for i, (f, t) in rows]
        )

    def _run_values(self, batch: EventBatch, labels: list[Label | None]) -> Predictions:
        predict_one, keeps = self.model.predict_one, self._keeps_input
        values: list[Label | None] = []
        row = 0
        try:
            for row, (given, y) in enumerate(zip(batch.dicts(), labels, strict=True)):
                x = given.copy() if keeps else given
                values.append(predict_one(x))
                if y is not None:
                    self._learn_one(batch, row, x, y)
        except Exception as cause:
            raise LearnerError(row, cause) from cause
        if not set(map(type, values)) <= _LABELS:
            values = [v.item() if isinstance(v, np.generic) else v for v in values]
            for row, value in enumerate(values):
                if type(value) not in _LABELS:
                    found = type(value).__name__
                    raise LearnerError(row, TypeError(f"it predicted a value of type {found}"))
        return Predictions(values)

    def state(self) -> bytes:
        """Everything that its next result depends on; equal learners give equal bytes."""
        return encoding.encode(
            {"model": self.model, "definition": self._definition}, modules=self.modules
        )

    @classmethod
    def from_state(
        cls, data: bytes, *, task: Task, modules: Collection[str] = ()
    ) -> "RiverLearner":
        """Build the learner that `data` was taken from.

        Raises
        ------
        EncodingError
            If the data is damaged or holds what is not allowed to be loaded.
        """
        state = encoding.decode(data, modules=modules)
        new = cls.__new__(cls)
        new.model = state["model"]
        new.task = task
        new.modules = tuple(modules)
        new._definition = state["definition"]
        new._bind()
        return new

    def definition(self) -> dict[str, Any]:
        """What it is, without what it has learned, with library versions."""
        return {
            "kind": self.kind,
            "task": self.task,
            "model": self._definition,
            "river": ".".join(river.__version__.split(".")[:2]),
            "python": ".".join(platform.python_version_tuple()[:2]),
        }


LEARNERS: dict[str, Callable[..., Learner]] = {RiverLearner.kind: RiverLearner.from_state}
"""What builds a learner of each kind from its state: `f(state, task=…, modules=…)`."""

_ELSEWHERE = {  # kinds that are there once their module is imported
    "linear": "midstream.engine.compiled",
    "softmax": "midstream.engine.softmax",
}


def _numbers(values: tuple[Any, ...]) -> bool:
    try:
        np.array(values, np.float64)
    except (TypeError, ValueError):
        return False
    return True


_LABELS = {bool, int, float, str, type(None)}


def _name(model: base.Estimator) -> str:
    return type(model).__name__


def _last_step(model: base.Estimator) -> Any:
    return getattr(model, "_last_step", model)


def _describe(value: Any) -> Any:
    """Describe a model's parameters as plain JSON values, functions by a hash of their code."""
    if isinstance(value, base.Base):
        code = _class_code(type(value))
        return {
            "class": f"{type(value).__module__}.{type(value).__qualname__}",
            **({"code": code} if code else {}),
            **{name: _describe(p) for name, p in _parameters(value).items()},
        }
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Mapping):
        return {str(k): _describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_describe(v)) for v in value)
    if getattr(value, "__code__", None) is not None:
        digest = hashlib.sha256(_code_text(value.__code__).encode()).hexdigest()[:12]
        return f"{value.__module__}.{value.__qualname__} (code {digest})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _code_text(code: CodeType) -> str:
    """Return what a function does, as text, functions within it included."""
    constants = [_code_text(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    constants = [re.sub(r" at 0x[0-9a-f]+", "", constant) for constant in constants]
    return repr((code.co_code, code.co_names, constants))


_READS_ONLY = {
    "compose.pipeline",
    "linear_model",
    "naive_bayes",
    "optim",
    "preprocessing.scale",
    "tree",
}
"""Parts of River that never keep a dict of features they are given, nor change it.

`check_learner` holds them to that (`input_is_not_aliased`); everything else gets a copy.
"""


def _packages(definition: Any) -> set[str]:
    """Name the parts of River that a model is made of, as `_READS_ONLY` does; else the class."""
    if isinstance(definition, dict):
        found = {name for value in definition.values() for name in _packages(value)}
        name = definition.get("class", "")
        if name.startswith("river."):
            module = name.removeprefix("river.").rpartition(".")[0]
            package = module.partition(".")[0]
            found.add(package if package in _READS_ONLY else module)
        elif name:
            found.add(name)
        return found
    if isinstance(definition, list):
        return {name for value in definition for name in _packages(value)}
    return {definition} if isinstance(definition, str) and "(code " in definition else set()


def _class_code(cls: type) -> str | None:
    """Return a digest of the code of a class and its bases outside River; None if there is none."""
    own = [c for c in cls.__mro__ if c is not object and not c.__module__.startswith("river.")]
    texts = [
        f"{c.__qualname__}.{name} {_code_text(function.__code__)}"
        for c in own
        for name, value in sorted(vars(c).items())
        if (function := getattr(value, "__func__", value)) and hasattr(function, "__code__")
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] if texts else None


def _parameters(model: base.Base) -> dict[str, Any]:
    """Return the constructor's arguments as they are on the model now."""
    steps = getattr(model, "steps", None) or getattr(model, "transformers", None)
    if isinstance(steps, Mapping):  # pipelines and unions
        return dict(steps)
    names = inspect.signature(type(model)).parameters
    return {n: getattr(model, n) for n in names if hasattr(model, n)}


def _unseeded(value: Any) -> list[str]:
    """Name the estimators within whose seed is not set."""
    if isinstance(value, base.Base):
        parameters = _parameters(value)
        unset = "seed" in parameters and parameters["seed"] is None
        found = [type(value).__name__] if unset else []
        return found + [name for p in parameters.values() for name in _unseeded(p)]
    if isinstance(value, Mapping):
        return [name for v in value.values() for name in _unseeded(v)]
    if isinstance(value, list | tuple):
        return [name for v in value for name in _unseeded(v)]
    return []
