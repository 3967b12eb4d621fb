"""Commands as they are given, and as a shard has carried them out.

Between the two, a shard journals a command (`midstream.engine.shard.journal.Command`), and carries
it out between two batches. The journal is decisive: no crash makes a command run twice, or not at
all.
What the commands do is in `midstream.engine.shard.kinds` and `replacing`.
"""

from collections.abc import Sequence

import msgspec

from midstream.engine.shard.journal import Command

__all__ = ["JUST_MADE", "Done", "Order", "RefusedError", "main_of"]

JUST_MADE = -1
"""`Order.before` of an order that is not given yet: the version made by the one before it."""


class RefusedError(RuntimeError):
    """A command cannot be carried out; nothing was changed. The message says why."""


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command as given, before a shard carries it out.

    Attributes
    ----------
    id, kind, version, reason
        As in `midstream.engine.shard.journal.Command`; `id` 0: it is not given yet.
    sources, ranges
        What "rewind" leaves out: events of these sources, and [partition, first, last] positions.
    catch_up
        Most events that "promote" and "rollback" apply again.
    before
        The version made of the state before this command, to which "rollback" returns.
    cut
        The kind of version that "snapshot" makes: "online", or "restored".
    problem
        Why the command must be refused; empty: the shard decides.
    by
        Who gave the command; empty: Midstream itself.
    origin
        The identity of another state that the version may belong to, besides the model's own.
    """

    id: int
    kind: str
    version: int = 0
    reason: str = ""
    sources: tuple[str, ...] = ()
    ranges: tuple[tuple[str, int, int], ...] = ()
    catch_up: int = 1_000_000
    before: int = 0
    cut: str = "online"
    problem: str = ""
    by: str = ""
    origin: str = ""


class Done(msgspec.Struct, omit_defaults=True):
    """A command that a shard carried out or refused, or its start: an entry of the history.

    Attributes
    ----------
    command
        The journal's entry; where the shard began, one of kind "start" with `id` 0.
    seq, generation
        The journal's record that holds the entry.
    position
        By partition, the position before which all input had been applied.
    lines
        By file, the same as a number for people: of the next line or row.
    seen
        Events that the model had seen, after the command.
    done_at
        When it took effect, in seconds since 1970; None while input is applied again.
    shard, epoch
        The shard, and the beginning that its state derives from; only the registry sets these.
    present
        Whether this epoch is the shard's present one; no clock tells that. Set as `shard` is.
    """

    command: Command
    seq: int
    generation: int = 0
    position: dict[str, int] = {}
    lines: dict[str, int] = {}
    seen: int = 0
    done_at: float | None = None
    shard: str = ""
    epoch: str = ""
    present: bool = False

    @property
    def kind(self) -> str:
        """The kind of the command."""
        return self.command.kind


def main_of(orders: Sequence[Order]) -> Order:
    """Return the one of several orders that the others go with: they make versions around it."""
    from midstream.engine.shard.catalogue import command_kind

    return next((o for o in orders if not command_kind(o.kind).makes_version), orders[-1])
