"""What is done with late, missing, repeated and corrected labels."""

from typing import Any, Literal

import msgspec

from midstream.engine.events.event import Label, Task

__all__ = ["Method", "OnExpiry", "Policy", "PolicyError", "Repeats"]

Method = Literal["wait", "fnw", "fnc", "es-dfm"]
OnExpiry = Literal["drop", "label", "review"]
Repeats = Literal["first", "last", "sum"]


class PolicyError(ValueError):
    """A policy does not fit the model; `key` is that of a config.

    Parameters
    ----------
    key
        The key in ``[feedback]``.
    why
        What does not fit.
    """

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = f"feedback.{key}"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How feedback is joined to events. Times are event times, in seconds.

    Attributes
    ----------
    window
        An event waits for its label until its time plus `window` plus `lateness`.
    window_events
        It waits for at most this many later events; 0: no limit.
    lateness
        How much later than the clock of its input a record may come.
    idle
        A partition whose clock is this far behind the others' does not hold the clock of the join
        back.
    early
        How long a label waits for its event.
    on_expiry
        An event without a label at its end: "drop" forgets it, "label" learns `default`, "review"
        hands it to the review output.
    default, default_weight
        The label that "label" learns, and its weight.
    repeats
        Of several labels of an event, "first" learns the first at once; "last" and "sum" wait
        until the event's end and learn the last or the sum.
    corrections
        Another label after one was learned: "count" ignores it, "learn" learns it, too, with
        `correction_weight`.
    method
        What is done against the bias of positives that come late. "wait": events are learned when
        their label comes, or at their end. "fnw" and "fnc" learn each event as negative as soon as
        its time plus `wait` has passed, or its positive comes, and a positive again as positive.
        "fnw" weights both by the prediction at publication; "fnc" weights neither, and calibrates
        the predictions. "es-dfm" learns a positive within `wait` as such, and others as negatives
        after `wait` and as positives when they come, with weights of two auxiliary models.
    wait
        How long an event waits before it is learned as negative.
    remember
        How long the id of an event is remembered after its label was learned or it expired.
    negative_share
        The share of events labelled false that are learned, with weight 1 / `negative_share`.
    max_events, max_bytes
        Most waiting events, and most bytes that they take, by an estimate. The oldest go first.
    """

    window: float = 86_400.0
    window_events: int = 0
    lateness: float = 0.0
    idle: float = 3_600.0
    early: float = 60.0
    on_expiry: OnExpiry = "drop"
    default: Label | None = None
    default_weight: float = 1.0
    repeats: Repeats = "first"
    corrections: Literal["count", "learn"] = "count"
    correction_weight: float = 1.0
    method: Method = "wait"
    wait: float = 0.0
    remember: float = 86_400.0
    negative_share: float = 1.0
    max_events: int = 1_000_000
    max_bytes: int = 2**30

    def definition(self) -> dict[str, Any]:
        """Return the policy as plain JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        if self.method == "wait":  # as earlier versions save it
            del plain["method"], plain["wait"]
        return plain

    @property
    def tick(self) -> float:
        """The resolution of expiry, in seconds."""
        waits = [self.wait] if self.wait else []
        return max(min(self.window, self.early, self.remember, *waits) / 64, 1e-3)

    @property
    def least(self) -> float:
        """Nothing that a record brings ends before its time plus this."""
        if self.method != "wait":
            return min(self.wait + self.lateness, self.remember)
        return min(self.window + self.lateness, self.remember)

    @property
    def keeps_learned(self) -> bool:
        """Whether events whose label was learned are kept for a correction."""
        return self.corrections == "learn"

    def check(self, task: Task, *, takes_weights: bool) -> None:
        """Raise PolicyError if the policy does not fit a model."""
        if self.on_expiry == "label" and self.default is None:
            raise PolicyError("default_label", "missing; needed: the label to learn at expiry")
        if self.repeats == "sum" and task != "regression":
            raise PolicyError("repeats", f"found 'sum' for task {task}; allowed: for regression")
        if self.negative_share < 1.0 and task != "binary":
            raise PolicyError("negative_share", f"found for task {task}; allowed: for binary")
        self._check_method(task, takes_weights=takes_weights)
        weights = {
            "negative_share": 1.0 / self.negative_share,
            "default_weight": self.default_weight if self.on_expiry == "label" else 1.0,
            "correction_weight": self.correction_weight if self.corrections == "learn" else 1.0,
        }
        for key, weight in weights.items():
            if weight != 1.0 and not takes_weights:
                raise PolicyError(key, "needs a learner that takes sample weights")

    def _check_method(self, task: Task, *, takes_weights: bool) -> None:
        method = self.method
        if method == "wait":
            if self.wait:
                raise PolicyError("wait_seconds", f"found {self.wait:g} for method 'wait'")
            return
        if task != "binary":
            raise PolicyError("method", f"found {method!r} for task {task}; allowed: for binary")
        if method != "fnc" and not takes_weights:
            raise PolicyError("method", f"{method!r} needs a learner that takes sample weights")
        if self.on_expiry != "label":
            found = f"found {self.on_expiry!r} for method {method!r}"
            raise PolicyError("on_expiry", f"{found}; needed: 'label'")
        if self.default is True:
            raise PolicyError("default_label", f"found true for method {method!r}; needed: false")
        if method == "es-dfm" and not self.wait:
            raise PolicyError("wait_seconds", "missing; method 'es-dfm' needs it")
        if self.wait >= self.window:
            raise PolicyError("wait_seconds", f"{self.wait:g} is not less than window_seconds")
        for key, value, only in (
            ("default_weight", self.default_weight, 1.0),
            ("negative_share", self.negative_share, 1.0),
            ("repeats", self.repeats, "first"),
            ("window_events", self.window_events if method == "es-dfm" else 0, 0),
        ):
            if value != only:
                raise PolicyError(key, f"found {value} for method {method!r}; allowed: {only}")
