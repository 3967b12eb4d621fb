"""What is done with late, missing, repeated and corrected labels."""

from typing import Any, Literal

import msgspec

from midstream.engine.events.event import Label, Task

__all__ = ["OnExpiry", "Policy", "Repeats"]

OnExpiry = Literal["drop", "label", "review"]
Repeats = Literal["first", "last", "sum"]


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
    remember: float = 86_400.0
    negative_share: float = 1.0
    max_events: int = 1_000_000
    max_bytes: int = 2**30

    def definition(self) -> dict[str, Any]:
        """Return the policy as plain JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def tick(self) -> float:
        """The resolution of expiry, in seconds."""
        return max(min(self.window, self.early, self.remember) / 64, 1e-3)

    @property
    def keeps_learned(self) -> bool:
        """Whether events whose label was learned are kept for a correction."""
        return self.corrections == "learn"

    def fault(self, task: Task, *, takes_weights: bool) -> tuple[str, str] | None:
        """Return the key that does not fit a model, and why; None if all fit."""
        weighted = "needs a learner that takes weights"
        if self.on_expiry == "label" and self.default is None:
            return "default_label", "missing; needed: the label that is learned at expiry"
        if self.repeats == "sum" and task != "regression":
            return "repeats", f"found 'sum' for task {task}; allowed: for regression only"
        if self.negative_share < 1.0 and task != "binary":
            return "negative_share", f"is for task binary, found {task}"
        if takes_weights:
            return None
        if self.negative_share < 1.0:
            return "negative_share", weighted
        if self.on_expiry == "label" and self.default_weight != 1.0:
            return "default_weight", weighted
        if self.corrections == "learn" and self.correction_weight != 1.0:
            return "correction_weight", weighted
        return None
