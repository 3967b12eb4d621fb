"""Prequential metrics by their definitions, from a list of all events: plain, slow, independent."""

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["report", "same_metric"]

_CLAMP = 1e-15
_GONE = 1e-9


def report(
    task: str, rows: Sequence[tuple[Any, Any, Any]], window: int, fading: float
) -> dict[str, float]:
    """Return every metric of a task, as `Trainer.metrics` names them.

    `rows` holds (label, prediction, probabilities) of the labelled events. A prediction or
    probabilities that are None, empty or not finite are not scored. What is left out of the result
    cannot be told to 1e-9, being the difference of two nearly equal numbers.
    """
    if task == "regression":
        return _numbers([(y, v) for y, v, _ in rows if _finite(v)], window, fading)
    pairs: list[tuple[Any, Any, bool | None]] = []
    last = None
    for y, value, _ in rows:
        if value is not None:
            pairs.append((y, value, None if last is None else y == last[0]))
        last = (y,)
    probas = [(y, p) for y, _, p in rows if p and all(math.isfinite(value) for value in p.values())]
    found: dict[str, float] = {}
    for view, some, others in (
        ("", _weighed(pairs, 1.0), _weighed(probas, 1.0)),
        (".fading", _weighed(pairs, fading), _weighed(probas, fading)),
        (".window", _weighed(pairs[-window:], 1.0), _weighed(probas[-window:], 1.0)),
    ):
        least = _GONE if view == ".fading" else 0.0
        found |= {name + view: v for name, v in _classes(task, some, least).items()}
        losses = [(_log_loss(task, y, p), w) for (y, p), w in others]
        found["log_loss" + view] = _mean(losses)
    if task == "binary":
        found["roc_auc.window"] = _auc(probas[-window:])
    return found


def _weighed(rows: Sequence[Any], fading: float) -> list[tuple[Any, float]]:
    n = len(rows)
    return [(row, fading ** (n - 1 - i)) for i, row in enumerate(rows)]


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    total = math.fsum(w for _, w in pairs)
    return math.fsum(v * w for v, w in pairs) / total if total else math.nan


def _log_loss(task: str, y: Any, proba: dict[Any, float]) -> float:
    if task == "binary":
        p = min(max(proba.get(True, 0.0), _CLAMP), 1 - _CLAMP)
        return -math.log(p if y else 1 - p)
    return -math.log(min(max(proba.get(y, 0.0), _CLAMP), 1 - _CLAMP))


def _auc(rows: Sequence[tuple[Any, dict[Any, float]]]) -> float:
    high = [p.get(True, 0.0) for y, p in rows if y]
    low = [p.get(True, 0.0) for y, p in rows if not y]
    wins = sum((a > b) + 0.5 * (a == b) for a in high for b in low)
    return wins / (len(high) * len(low)) if high and low else math.nan


def _classes(task: str, rows: Sequence[Any], least: float) -> dict[str, float]:
    names = ["accuracy", "balanced_accuracy", "macro_f1", "kappa", "kappa_temporal"]
    names += ["f1"] if task == "binary" else []
    if not rows:
        return dict.fromkeys(names, math.nan)
    total = math.fsum(w for _, w in rows)
    labels: dict[Any, float] = {}
    guesses: dict[Any, float] = {}
    hits: dict[Any, float] = {}
    for (y, v, _), w in rows:
        labels[y] = labels.get(y, 0.0) + w
        guesses[v] = guesses.get(v, 0.0) + w
        hits[y] = hits.get(y, 0.0) + w * (y == v)
    counts = [c for table in (labels, guesses) for c in table.values()]
    known = [c for c in {**labels, **guesses} if max(labels.get(c, 0), guesses.get(c, 0)) > least]
    recalls = [hits[c] / labels[c] for c in known if labels.get(c, 0.0) > least]
    f1s = {c: 2 * hits.get(c, 0.0) / (labels.get(c, 0.0) + guesses.get(c, 0.0)) for c in known}
    accuracy = math.fsum(hits.values()) / total
    chance = math.fsum(labels.get(c, 0.0) / total * guesses.get(c, 0.0) / total for c in known)
    before = [(same, w) for (_, _, same), w in rows if same is not None]
    no_change = _mean(before)
    found = {
        "accuracy": accuracy,
        "balanced_accuracy": math.fsum(recalls) / len(recalls) if recalls else math.nan,
        "macro_f1": math.fsum(f1s.values()) / len(f1s),
        "kappa": (accuracy - chance) / (1 - chance) if 1 - chance > 1e-12 else 0.0,
        "kappa_temporal": (
            (accuracy - no_change) / (1 - no_change) if 1 - no_change > 1e-12 else math.nan
        ),
    }
    if task == "binary":
        found["f1"] = f1s.get(True, 0.0)
    if least and any(_GONE / 1e3 < c < _GONE * 1e3 for c in counts):
        return {"accuracy": accuracy}
    if least and 1 - chance < 1e-6:  # of classes that have nearly gone
        del found["kappa"]
    if least and 1 - no_change < 1e-6:
        del found["kappa_temporal"]
    return found


def _numbers(rows: list[tuple[Any, Any]], window: int, fading: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for view, some in (
        ("", _weighed(rows, 1.0)),
        (".fading", _weighed(rows, fading)),
        (".window", _weighed(rows[-window:], 1.0)),
    ):
        errors = [(abs(float(y) - float(v)), w) for (y, v), w in some]
        found["mae" + view] = _mean(errors)
        most = max((e for e, _ in errors), default=0.0) or 1.0
        squares = _mean([((e / most) ** 2, w) for e, w in errors])
        found["rmse" + view] = most * math.sqrt(squares)
        r2 = _r2([(float(y), float(v), w) for (y, v), w in some])
        if r2 is not None:
            found["r2" + view] = r2
    return found


def _r2(rows: Sequence[tuple[float, float, float]]) -> float | None:
    if not rows:
        return math.nan
    if any(abs(y) > 1e100 or abs(v) > 1e100 for y, v, _ in rows):
        return None
    mean = _mean([(y, w) for y, _, w in rows])
    spread = math.fsum(w * (y - mean) ** 2 for y, _, w in rows)
    if len({y for y, _, _ in rows}) == 1:
        return 0.0
    if spread < 1e-6 * math.fsum(w * y * y for y, _, w in rows):
        return None
    residual = math.fsum(w * (y - v) ** 2 for y, v, w in rows)
    return 1 - residual / spread


def same_metric(name: str, found: float, expected: float) -> bool:
    """Whether two values are one, up to the rounding of sums taken in another order."""
    if math.isnan(expected) or math.isnan(found):
        return math.isnan(expected) and math.isnan(found)
    close: Callable[..., bool] = math.isclose
    if name.startswith("r2"):
        return close(found, expected, rel_tol=1e-7, abs_tol=1e-9)
    # In the faded view, classes of less than 1e-9 of an event are left out.
    return close(
        found, expected, rel_tol=1e-10, abs_tol=3e-9 if name.endswith(".fading") else 1e-12
    )
