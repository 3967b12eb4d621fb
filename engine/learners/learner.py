"""Learners: one operation on an ordered batch, predict then learn, event by event."""

import copy
import datetime as dt
import inspect
import platform
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import river
from river import base

from midstream.engine.basics.errors import ExpectedError
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import TASKS, Features, Label, Task
from midstream.engine.events.predictions import Predictions, Table
from midstream.engine.learners.amending import definition_differences, taken_over
from midstream.engine.learners.anatomy import imputed, imputers, last_step, raised_by, within
from midstream.engine.learners.catalogue import class_of_kind, named_learners
from midstream.engine.learners.describing import described
from midstream.engine.learners.fused import Loop, fused_loop, fused_step
from midstream.engine.learners.misfits import Tried, misfit
from midstream.engine.learners.proofs import (
    decides_by_probability,
    keeps_time,
    refusal,
    takes_weights,
)
from midstream.engine.learners.sizes import measured_by_state
from midstream.engine.learners.untouched import Untouched
from midstream.engine.state import encoding
from midstream.engine.state.changes import FORMERLY, FURTHER, Change

__all__ = [
    "LEARNERS",
    "Learner",
    "LearnerError",
    "RiverLearner",
    "UnseededError",
    "as_learner",
    "load_learner",
]


_Asking: TypeAlias = Callable[[Callable[[Any, Features], Any], Features], Any]
"""Asks a model about features and leaves the model unchanged."""


class LearnerError(ExpectedError, RuntimeError):
    """A learner raised on the event at `row` of a batch; it may be half updated.

    `hint` names the feature and value that it raised on, and a remedy, if known.
    """

    def __init__(self, row: int, cause: Exception, hint: str = "") -> None:
        super().__init__(f"{type(cause).__name__}: {cause}" + (f"; {hint}" if hint else ""))
        self.row = row
        self.cause = cause
        self.hint = hint


class UnseededError(ValueError):
    """A learner draws random numbers from an unseeded generator, so no run could be repeated."""


@runtime_checkable
class Learner(Protocol):
    """The contract of a learner. `midstream.engine.learners.checks` tests it.

    The result of a stream never depends on how it was cut into batches. Predicting leaves later
    predictions unchanged. A learner built from another's state equals that learner, bit for bit.
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
            If it fails. It may then be half updated and must not be used any more.
        """

    def predict(self, batch: EventBatch) -> Predictions:
        """Predict without learning."""

    def learn(self, batch: EventBatch) -> None:
        """Learn without predicting."""

    def state(self) -> bytes:
        """Return everything that its next result depends on; equal learners give equal bytes."""

    def definition(self) -> dict[str, Any]:
        """Return what defines it, without learned state, with library versions: plain JSON."""


def as_learner(model: Any, task: Task | None = None, modules: Collection[str] = ()) -> Learner:
    """Return `model` as a `Learner`: unchanged if it is one, else a River estimator wrapped.

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
        If this version does not know the kind.
    """
    if kind not in LEARNERS:
        found = class_of_kind(kind)
        if found is None:
            known = ", ".join([*LEARNERS, *named_learners()])
            raise ValueError(f"unknown kind of learner {kind!r}; there are: {known}")
        LEARNERS[kind] = found.from_state
    return LEARNERS[kind](state, task=task, modules=modules)


class RiverLearner:
    """Any River classifier, regressor or pipeline of them.

    Parameters
    ----------
    model
        The estimator. The learner owns it from now on.
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
        reason = refusal(model)
        if reason is not None:
            raise TypeError(reason)
        classifier = isinstance(last_step(model), base.Classifier)
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
        self._definition = described(model)
        self._probes = _PROBES
        self._bind()

    def _bind(self) -> None:
        self._keeps_input = not _READS_ONLY.issuperset(_packages(self._definition))
        self.takes_weights = takes_weights(self.model, self.task, self._definition)
        self._keeps_time = keeps_time(self.model)
        last = last_step(self.model)
        # Some classifiers (one-versus-one, output codes, voting) give no probabilities.
        self._has_probas = (
            isinstance(last, base.Classifier)
            and type(last).predict_proba_one is not base.Classifier.predict_proba_one
        )
        self._decides = self._has_probas and not decides_by_probability(self.model)
        self._imputers = [*imputers(self.model)]
        self._untouched = Untouched(self.model, self.modules)
        self._tried: Tried = {}
        self._fused_loop = fused_loop(self.model)
        self._fused_step = fused_step(self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RiverLearner":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for name in ("model", "task", "modules", "_definition", "_probes"):
            setattr(new, name, copy.deepcopy(getattr(self, name), memo))
        new._bind()  # the fused loops belong to one model
        return new

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
                for row, x in enumerate(self._dicts(batch)):
                    y = batch.labels[row]
                    if y is not None:
                        self._learn_one(batch, row, x.copy(), y)
        except BaseException as cause:
            raise self._failure(batch, row, cause) from cause

    def _dicts(self, batch: EventBatch) -> Iterable[Features]:
        """Return the features of each event in the form that the model is given."""
        dicts = batch.dicts()
        return map(self._with_gaps, dicts) if self._imputers else dicts

    def _with_gaps(self, x: Features) -> Features:
        """Return features with None for each missing one that an imputer knows, as in River."""
        known = (name for step in self._imputers for name in imputed(step))
        gaps: dict[str, Any] = {name: None for name in known if name not in x}
        return {**x, **gaps} if gaps else x

    def _learn_one(self, batch: EventBatch, row: int, x: Features, y: Label) -> None:
        if batch.weight(row) > 0.0:
            self.model.learn_one(x, y, **self._beside_label(batch, row))

    def _beside_label(self, batch: EventBatch, row: int) -> dict[str, Any]:
        """Return the arguments that the model learns with, besides features and label."""
        weight = batch.weight(row)
        more: dict[str, Any] = {} if weight == 1.0 else {"w": weight}
        if self._keeps_time:
            more["t"] = _moment(batch.time(row))
        return more

    def _failure(self, batch: EventBatch, row: int, error: BaseException) -> LearnerError:
        cause = raised_by(error)

        def again(x: Features) -> Exception | None:
            """Predict and learn `x` in place of the event, on a copy; return the error, if any."""
            x = self._with_gaps(x)
            try:
                model = copy.deepcopy(self.model)
                model.predict_one(x)
                if batch.labels[row] is not None:
                    model.learn_one(x, batch.labels[row], **self._beside_label(batch, row))
            except BaseException as found:  # noqa: BLE001  # the error is the result
                return raised_by(found)
            return None

        dicts = batch.dicts()
        return LearnerError(
            row, cause, misfit(cause, dicts[row], again, self._tried) if row < len(dicts) else ""
        )

    def _run(self, batch: EventBatch, *, learn: bool) -> Predictions:
        labels: list[Label | None] = batch.labels if learn else [None] * len(batch)
        plain = batch.weights is None and not self._keeps_time
        if learn and self._fused_loop is not None and plain:
            return self._run_loop(self._fused_loop, batch, labels)
        run = self._run_values
        if self._decides:
            run = self._run_decisions
        elif self._has_probas:
            run = self._run_probas
        with measured_by_state():
            if learn:
                return run(batch, labels, self._untouched.one)
            return self._untouched.run(lambda: run(batch, labels, self._untouched.each))

    def _run_loop(self, loop: Loop, batch: EventBatch, labels: list[Label | None]) -> Predictions:
        predicted: list[float] = []
        try:
            loop(batch.dicts(), labels, predicted)
        except BaseException as cause:
            raise self._failure(batch, len(predicted), cause) from cause
        if self.task == "regression":
            return Predictions(predicted)  # type: ignore[arg-type]  # a list is invariant
        true = np.array(predicted, np.float64)
        return Predictions(
            (true > 0.5).tolist(), Table((False, True), np.stack((1.0 - true, true), axis=1))
        )

    def _run_probas(
        self, batch: EventBatch, labels: list[Label | None], only_ask: _Asking
    ) -> Predictions:
        predict_proba_one = self.model.predict_proba_one
        learn_one: Callable[..., None] = self.model.learn_one
        plain = batch.weights is None and not self._keeps_time
        changes, keeps = self._untouched.needed, self._keeps_input
        step = self._fused_step if plain else None
        found = _Probabilities(binary=self.task == "binary")
        add, row = found.add, 0
        try:
            for row, (given, y) in enumerate(zip(self._dicts(batch), labels, strict=True)):
                x = given.copy() if keeps else given
                if y is None:
                    add(only_ask(_probabilities, x) if changes else predict_proba_one(x))
                elif step is not None:
                    add(step(x, y))
                else:
                    add(predict_proba_one(x))
                    if plain:
                        learn_one(x, y)
                    else:
                        self._learn_one(batch, row, x, y)
            probas = found.probas()
        except BaseException as cause:
            raise self._failure(batch, found.odd_row(row, len(labels)), cause) from cause
        return Predictions(found.values, probas)

    def _run_decisions(
        self, batch: EventBatch, labels: list[Label | None], only_ask: _Asking
    ) -> Predictions:
        """Run a classifier that does not decide by the largest probability."""
        keeps = self._keeps_input
        found = _Probabilities(binary=self.task == "binary")
        values: list[Label | None] = []
        without = row = 0
        try:
            for row, (given, y) in enumerate(zip(self._dicts(batch), labels, strict=True)):
                x = given.copy() if keeps else given
                if y is None:
                    value, proba = only_ask(_decision, x)
                else:
                    value, proba = self.model.predict_one(x), self._beside(x)
                values.append(value)
                found.add({} if proba is None else proba)
                without += proba is None
                if y is not None:
                    self._learn_one(batch, row, x, y)
            probas = None if without == len(values) else found.probas()
        except BaseException as cause:
            raise self._failure(batch, found.odd_row(row, len(labels)), cause) from cause
        return Predictions(self._plain(values), probas)

    def _beside(self, x: Features) -> dict[Label, float] | None:
        """Return the probabilities of an event whose decision River asked for.

        River asks for only one of the two. If asking for the other might change the model, the
        first events show whether it does: `_probes` counts how many of them are left, and -1 means
        that it does. From then on a copy is asked.
        """
        untouched = self._untouched
        before = None
        if untouched.foreign and self._probes > 0:
            before = untouched.states()
            self._probes = 0 if before is None else self._probes
        copied = bool(untouched.foreign) and self._probes < 0
        proba: dict[Label, float] | None = untouched.ask(_maybe_probabilities, x, copied=copied)
        if before is not None:
            self._probes -= 1
            if untouched.states() != before:
                untouched.put_back(before)
                untouched.warn(untouched.foreign, "asking for probabilities changes it")
                self._probes = -1
        return proba

    def _run_values(
        self, batch: EventBatch, labels: list[Label | None], only_ask: _Asking
    ) -> Predictions:
        predict_one, keeps = self.model.predict_one, self._keeps_input
        changes = self._untouched.needed
        values: list[Label | None] = []
        row = 0
        try:
            for row, (given, y) in enumerate(zip(self._dicts(batch), labels, strict=True)):
                x = given.copy() if keeps else given
                if y is None and changes:
                    values.append(only_ask(_value, x))
                else:
                    values.append(predict_one(x))
                if y is not None:
                    self._learn_one(batch, row, x, y)
        except BaseException as cause:
            raise self._failure(batch, row, cause) from cause
        return Predictions(self._plain(values))

    @staticmethod
    def _plain(values: list[Label | None]) -> list[Label | None]:
        """Return predicted labels as plain Python values."""
        if not set(map(type, values)) <= _LABELS:
            values = [v.item() if isinstance(v, np.generic) else v for v in values]
            for row, value in enumerate(values):
                if type(value) not in _LABELS:
                    found = type(value).__name__
                    raise LearnerError(row, TypeError(f"it predicted a value of type {found}"))
        return values

    def changes(self, old: Mapping[str, Any]) -> list[Change]:
        """Return the differences from a saved definition, and their effect on what was learned."""
        return definition_differences(old, self.definition())

    def amended(self, old: "RiverLearner") -> "RiverLearner":
        """Return this learner, continued from what `old` has learned.

        Raises
        ------
        MisfitError
            If an attribute does not fit; the message names it.
        """
        was, new = (
            RiverLearner.from_state(each.state(), task=self.task, modules=self.modules)
            for each in (old, self)
        )
        new.model = taken_over(was.model, new.model, was._definition, new._definition, self.modules)
        new._definition = self._definition
        new._probes = was._probes
        new._bind()
        return new

    def state(self) -> bytes:
        """Return everything that its next result depends on; equal learners give equal bytes."""
        state = {"model": self.model, "definition": self._definition}
        if self._decides and self._probes != _PROBES:
            state["probes"] = self._probes
        return encoding.encode(state, modules=self.modules)

    @classmethod
    def from_state(
        cls, data: bytes, *, task: Task, modules: Collection[str] = ()
    ) -> "RiverLearner":
        """Build the learner that `data` was taken from.

        Raises
        ------
        EncodingError
            If the data is damaged or holds a type that may not be loaded.
        """
        state = encoding.decode(data, modules=modules)
        new = cls.__new__(cls)
        new.model = state["model"]
        new.task = task
        new.modules = tuple(modules)
        new._definition = state["definition"]
        new._probes = state.get("probes", _PROBES)
        new._bind()
        return new

    def definition(self) -> dict[str, Any]:
        """Return what defines it, without what it has learned, with library versions."""
        return {
            "kind": self.kind,
            "task": self.task,
            "model": self._definition,
            "river": ".".join(river.__version__.split(".")[:2]),
            "python": ".".join(platform.python_version_tuple()[:2]),
        }


LEARNERS: dict[str, Callable[..., Learner]] = {RiverLearner.kind: RiverLearner.from_state}
"""Functions that build a learner of each kind from its state: `f(state, task=…, modules=…)`.

Of the catalogue's kinds, it holds those needed so far.
"""

_LABELS = {bool, int, float, str, type(None)}
_PROBES = 20


class _Probabilities:
    """The probabilities of a batch, kept as two columns if they are of False and True.

    Parameters
    ----------
    binary
        Whether they may be kept as columns.

    Attributes
    ----------
    values
        By event, the first label with the largest probability; None if there are none.
    """

    def __init__(self, *, binary: bool) -> None:
        self.values: list[Label | None] = []
        self._binary = binary
        # Copies, since some learners reuse the dict they return. The usual case, False and True
        # with different probabilities, is kept as columns.
        self._odd: dict[int, dict[Label, float]] = {}
        self._falses: list[float] = []
        self._trues: list[float] = []

    def add(self, proba: dict[Label, float]) -> None:
        """Add the probabilities of the next event."""
        false, true = 0.0, 0.0
        binary = self._binary
        if binary and len(proba) == 2 and True in proba and False in proba:
            false, true = proba[False], proba[True]
        if true > false:
            self.values.append(True)
        elif true < false:
            self.values.append(False)
        else:
            self._odd[len(self.values)] = (
                {label: float(p) for label, p in proba.items()} if binary else dict(proba)
            )
            self.values.append(max(proba, key=proba.__getitem__) if proba else None)
        self._falses.append(false)
        self._trues.append(true)

    def probas(self) -> Table | list[dict[Label, float]]:
        """Return all probabilities.

        Raises
        ------
        TypeError, ValueError
            If one is not a number.
        """
        if not self._odd:
            columns = np.array([self._falses, self._trues], np.float64)
            return Table((False, True), columns.T)
        rows = enumerate(zip(self._falses, self._trues, strict=True))
        return [self._odd.get(i, {False: float(f), True: float(t)}) for i, (f, t) in rows]

    def odd_row(self, row: int, events: int) -> int:
        """Return the event at fault where the error appeared at `row` of `events` events."""
        if len(self._trues) == events:  # all may be learned, with one that is not a number
            pairs = zip(self._falses, self._trues, strict=True)
            return next((i for i, pair in enumerate(pairs) if not _numbers(pair)), row)
        return row


def _numbers(values: tuple[Any, ...]) -> bool:
    try:
        np.array(values, np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _value(model: Any, x: Features) -> Any:
    return model.predict_one(x)


def _probabilities(model: Any, x: Features) -> Any:
    return model.predict_proba_one(x)


def _maybe_probabilities(model: Any, x: Features) -> Any:
    try:
        return model.predict_proba_one(x)
    except NotImplementedError:  # a wrapper of a model without probabilities
        return None


def _decision(model: Any, x: Features) -> tuple[Any, Any]:
    return model.predict_one(x), _maybe_probabilities(model, x)


def _moment(seconds: float | None) -> dt.datetime:
    """Return a time as River's windows need it: in UTC, without a time zone."""
    if seconds is None:
        raise ValueError(
            "the event has no time, and a step of the model keeps a window of time; name the "
            "field that holds it in [input.fields] (time = ...), or give ts"
        )
    return dt.datetime.fromtimestamp(seconds, dt.UTC).replace(tzinfo=None)


def _name(model: base.Estimator) -> str:
    return type(model).__name__


_READS_ONLY = {
    "compose.pipeline",
    "linear_model",
    "naive_bayes",
    "optim",
    "preprocessing.scale",
    "tree",
}
"""Modules of River whose estimators never keep or change a dict of features they are given.

`check_learner` checks that (`input_is_not_aliased`); all others get a copy.
"""


def _packages(definition: Any) -> set[str]:
    """Name the modules of River in a model, as in `_READS_ONLY`; for other classes, the class."""
    if isinstance(definition, dict):
        if FORMERLY in definition:
            return _packages(definition[FORMERLY])
        inner = [value for key, value in definition.items() if key != FURTHER]
        found = {name for value in inner for name in _packages(value)}
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


def _unseeded(model: Any) -> list[str]:
    """Name the estimators in a model whose seed is not set."""
    return [
        type(part).__name__
        for part in within(model)
        if isinstance(part, base.Base)
        and getattr(part, "seed", _SEEDED) is None
        and "seed" in inspect.signature(type(part)).parameters
    ]


_SEEDED = 0
