"""The checks of `midstream check`: tries the config, its input and its learner on a sample."""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from midstream.connectors.input import InputError
from midstream.engine.basics.read_only import error_text, readable, unwritable
from midstream.engine.events.batch import EventBatch
from midstream.engine.events.event import NON_FINITE
from midstream.engine.learners.anatomy import addressed
from midstream.engine.learners.checks import difference
from midstream.engine.learners.learner import LearnerError
from midstream.engine.registry.artifacts import Artifacts, StoreError
from midstream.engine.registry.database import RegistryError
from midstream.engine.shard.amending import assess
from midstream.engine.shard.outcome import EventError
from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.changes import in_words, of_code, table
from midstream.engine.training.rejecting import others
from midstream.engine.training.step import Step
from midstream.engine.training.trainer import Trainer
from midstream.flows.claims.registry import has_registry, open_registry
from midstream.flows.config.factory import AfterRestart, model_modules
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError, nearest
from midstream.flows.inputs import reading
from midstream.flows.inputs.catalogue import kind_of
from midstream.flows.inputs.topics import check_kafka, missing_topics
from midstream.flows.offline.saved_state import Foreseen, look
from midstream.flows.running.definition import make_trainer
from midstream.flows.running.outputs import KINDS

__all__ = ["Finding", "Report", "inspect", "may_be_mistaken"]

_OF_STATE = ("lock", "alone.lock", "shards", "shards/*", "shards/*/*")
_NEXT = 1_000  # events over which a restored state is compared
_WARM = 100  # events after which a learner should have predicted
_DIVERGED = 1e6  # times the error of predicting the last label
_LARGE = 1e3  # larger features are named if predictions are not finite


class Finding(msgspec.Struct):
    """The result of one check."""

    what: str
    ok: bool
    detail: str
    table: list[str] = []
    """Lines with the details."""


class Report(msgspec.Struct):
    """The results of all checks; `ok` if nothing is wrong."""

    ok: bool = True
    findings: list[Finding] = []

    def add(self, what: str, detail: str, *, ok: bool = True, table: Sequence[str] = ()) -> None:
        """Add a finding."""
        self.findings.append(Finding(what, ok, detail, list(table)))
        self.ok = self.ok and ok


def inspect(settings: Settings, sample: int, *, amend: bool = False) -> Report:
    """Try a config on the first `sample` events of its input, with a throw-away trainer.

    Also compare the saved state with the config: `amend` as in a run.
    """
    report = Report(findings=[])
    report.add("config", str(settings.file))
    trainer = None
    try:
        trainer = make_trainer(settings)
    except ConfigError as error:
        report.add("learner", str(error), ok=False)
    else:
        takes = "takes" if trainer.learner.takes_weights else "takes no"
        report.add("learner", f"{settings.model.learner} for {trainer.task}; {takes} weights")
    reaches = _try_kafka(settings, report)
    if reaches or not kind_of(settings.input).of_kafka:
        try:
            _try_input(settings, trainer, sample, report)
        except InputError as error:
            report.add("input", str(error), ok=False)
    _try_folder("state", settings.state_path, report, _OF_STATE)
    if trainer is not None:
        _try_saved_state(settings, report, amend=amend)
    _try_versions(settings, report)
    if settings.journal_topic is not None:
        if reaches:
            _try_topics(settings, report)
    elif settings.outputs:
        _try_folder("output", settings.output_path, report, (f"{kind}*.jsonl" for kind in KINDS))
    return report


def _try_saved_state(settings: Settings, report: Report, *, amend: bool) -> None:
    """Report what a run will do with each shard's saved state; group shards that are alike."""
    found: dict[tuple[str, ...], list[Foreseen]] = {}
    for each in look(settings, make_trainer(settings)):
        found.setdefault((each.problem, str(each.replays), *map(str, each.changes)), []).append(
            each
        )
    for same in found.values():
        first, what = same[0], f"saved state of shard {', '.join(each.shard for each in same)}"
        if first.problem:
            report.add(what, first.problem, ok=False)
            continue
        left = assess(first.changes, amend=amend)
        code = bool(of_code(first.changes))
        if any(change.level == "refused" for change in left):
            detail = f"`run` refuses it: {in_words(left)}; `run --fresh` restarts"
        elif left:
            detail = f"`run` refuses it, `run --amend` takes it: {in_words(left)}"
        elif first.replays and code:
            detail = (
                "`run` refuses it: a part of the input has to be read again after a crash, by the "
                "code that it was learned with; run once with the old code"
            )
            left = first.changes
        elif first.changes:
            asked = any(change.level == "asked" for change in first.changes)
            detail = f"`run{' --amend' * asked}` takes it, and keeps what was learned"
            if first.replays:
                detail += ", if that fits after a part of the input was read again"
        else:
            detail = "`run` goes on from it"
        if settings.journal_topic is not None:
            detail += f" (the journal on the topic {settings.journal_topic} was not read)"
        report.add(what, detail, ok=not left, table=table(first.changes) if first.changes else ())


def _try_kafka(settings: Settings, report: Report) -> bool:
    """Check whether librdkafka accepts its settings; ask no broker."""
    if not (kind_of(settings.input).of_kafka or settings.output.topics):
        return True
    try:
        check_kafka(settings)
    except ConfigError as error:
        report.add("kafka", str(error), ok=False)
        return False
    return True


def _try_topics(settings: Settings, report: Report) -> None:
    """Check whether the topics to write to exist."""
    try:
        missing = missing_topics(settings)
    except InputError as error:
        report.add("output", str(error), ok=False)
        return
    if missing:
        wanted = ", ".join(missing)
        report.add("output", f"no topic {wanted}; `midstream init-topics` creates it", ok=False)
    else:
        report.add("output", ", ".join(settings.output.topics.values()))


def _try_versions(settings: Settings, report: Report) -> None:
    """Check whether the registry and the files of versions can be reached; create nothing."""
    if not settings.versions.enabled:
        report.add("versions", "switched off (versions.enabled = false)")
        return
    if may_be_mistaken(settings):
        report.add(
            "name",
            f"{settings.name!r}, which is the file's: others who share the registry may have the "
            "same, and are refused then; give this config a `name` of its own",
        )
    shown = "***" if "versions.registry" in settings.hidden else settings.registry
    try:
        artifacts = Artifacts(settings.artifacts, settings.name)
        artifacts.versions()
        if not has_registry(settings):
            artifacts.require_writing()
            report.add("versions", f"{shown}: no registry yet; the first run makes it")
            return
        with closing(open_registry(settings)) as registry:
            count = len(registry.versions())
            registry.database.require_writing()
            artifacts.require_writing()
    except (RegistryError, StoreError) as error:
        report.add("versions", str(error), ok=False)
    else:
        report.add("versions", f"{registry.database.place}: {count} version{'s' * (count != 1)}")


def may_be_mistaken(settings: Settings) -> bool:
    """Whether a model has no name of its own, and its versions are outside the state folder."""
    places = settings.registry.removeprefix("sqlite:///"), settings.artifacts
    return not settings.named and any(
        "://" in place or not Path(place).is_relative_to(settings.state_path) for place in places
    )


def _try_input(settings: Settings, trainer: Trainer | None, sample: int, report: Report) -> None:
    if kind_of(settings.input).is_read_once(settings):
        report.add("input", "standard input; not looked at")
        return
    with reading.open_reader(settings) as reader:
        _try_sample(reader, settings, trainer, sample, report)


def _try_sample(
    reader: reading.Reader,
    settings: Settings,
    trainer: Trainer | None,
    sample: int,
    report: Report,
) -> None:
    names = reader.input.names
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    shards = 1 if settings.one_shard else len(names)
    what = kind_of(settings.input).partition
    report.add(
        "input", f"{len(names)} {what}{'s' * (len(names) != 1)} ({shown}), {shards} shard(s)"
    )
    accepted = unlabelled = late = 0
    learned: deque[EventBatch] = deque()  # the last batches learned
    odd = _Odd()
    near = ""
    rejected = []
    seen: set[str] = set()
    for _, decoded in reader:
        rejected += decoded.rejected
        if decoded.batch.is_feedback:
            late += decoded.batch.labelled
            batch = decoded.batch
        else:
            batch = decoded.batch[: sample - accepted]
            accepted += len(batch)
            seen |= _features(batch)
            unlabelled += len(batch) - batch.labelled
            if settings.input.fields is not None and len(batch) and not near:
                near = nearest(settings.input.fields.label or "", batch.event(0).x)
        if trainer is not None:
            batch, refused = trainer.admit(batch)
            rejected += refused
            try:
                step = trainer.step(batch)
                events = batch if step.events is None else step.events
                odd.add(step, events, trainer.seen - len(events))
            except LearnerError as error:
                around = others(trainer.learner, batch, error.row, trainer.seen)
                raised = EventError.of(batch, error.row, error, around)
                report.add("learning", str(raised), ok=False)
                trainer = None
            learned.append(batch)
            while sum(map(len, learned)) - len(learned[0]) >= _NEXT:
                learned.popleft()
        if accepted >= sample:
            break
    if accepted + len(rejected) == 0:
        report.add("events", "there are none in the input", ok=False)
        return
    report.add(
        "events",
        f"{accepted} accepted ({unlabelled} without a label), {len(rejected)} rejected",
        ok=accepted > 0,
    )
    if settings.feedback is not None:
        found = 0 if trainer is None or trainer.joiner is None else trainer.joiner.counts.joined
        report.add("feedback", f"{late} labels read, {found} joined to these events")
    label = None if settings.input.fields is None else settings.input.fields.label
    if label is not None and accepted == unlabelled > 0 and not late:
        report.add("labels", reading.without_labels(label, near), ok=False)
    for unit in sorted(reader.notation.units):
        report.add("times", f"numbers are taken as {unit}, by their size (input.fields.time_unit)")
    missing = [name for name in settings.features if name not in seen]
    if missing and accepted:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        shown = ", ".join(repr(name[:100]) for name in missing[:5])
        report.add("features", f"in [features], but none of these events has it: {shown}{more}")
    for example in islice(rejected, 3):
        partition, _, line = example.origin
        at = f" at {example.path}" if example.path else ""
        report.add("rejected", f"{partition}:{line}{at}: {example.reason}", ok=accepted > 0)
    if trainer is None:
        return
    name, value = next(iter(trainer.metrics.items()), ("metrics", float("nan")))
    report.add("learning", f"{trainer.learned} events, {name} {value:.4g}")
    if odd.count:
        report.add("predictions", odd.message(trainer.seen), ok=False)
    elif trainer.learned >= _WARM and not odd.any:
        none = f"there are none: the learner said nothing (None) of all {trainer.seen:,} events"
        report.add("predictions", none, ok=False)
    elif trainer.metrics.get("mae", 0.0) > _DIVERGED * trainer.prequential.no_change > 0.0:
        report.add("predictions", odd.diverged(trainer.prequential.no_change), ok=False)
    _try_state(trainer, [*learned], settings, report)


def _try_state(
    trainer: Trainer, batches: list[EventBatch], settings: Settings, report: Report
) -> None:
    """Restore the state as the next process does, and check that it continues identically.

    It continues over `batches`, whose events come in another order than they were learned in, so
    notes about them outside the state do not coincide.
    """
    try:
        state = trainer.state()
        after_restart = AfterRestart(settings)
        with after_restart():
            restored = Trainer.from_state(state, model_modules(settings))
            digest = restored.digest()
        size = f"{sum(map(len, state.values())):,} bytes"
        if digest != trainer.digest():
            found = f"{size}, read back with another digest: the learner cannot be saved exactly"
            report.add("state", found, ok=False)
            return
        difference = _difference(trainer, restored, batches, after_restart)
    except EncodingError as error:
        report.add("state", str(error), ok=False)
        return
    if difference:
        names = addressed(getattr(trainer.learner, "model", None))
        reason = (
            f"{', '.join(names)} holds the id() of objects, which are others after a restart; give "
            "them numbers or names of their own"
            if names
            else "the learner keeps something outside its attributes, or by where it is in memory "
            "(id(), hash()), or draws without a seed"
        )
        report.add("state", f"{size}, read back equal, but {difference}; {reason}", ok=False)
        return
    going = sum(map(len, batches))
    report.add("state", f"{size}, read back equal, and equal {going} events later")


def _difference(
    original: Trainer,
    restored: Trainer,
    batches: list[EventBatch],
    after_restart: AfterRestart,
) -> str:
    """Return how the restored trainer differs from the original; empty if it does not."""
    done = 0
    for batch in _newest_first(batches):
        expected = original.step(batch).predictions
        try:
            with after_restart():
                got = restored.step(batch).predictions
        except LearnerError as error:
            return f"it raises where the original does not, at event {done + error.row}: {error}"
        row = difference(expected, got)
        if row is not None:
            return f"it predicts otherwise than the original from event {done + row} on"
        done += len(batch)
    with after_restart():
        digest = restored.digest()
    if original.digest() != digest:
        return f"its state differs from the original's {done} events later"
    return ""


def _newest_first(batches: list[EventBatch]) -> list[EventBatch]:
    """Return the same events in reverse, by the last occurrence of their categories."""
    first: dict[tuple[str, object], int] = {}
    ordered = []
    for batch in batches:
        count = len(first)
        newest = [
            max((first.setdefault(item, len(first)) for item in x.items()
                 if isinstance(item[1], str)), default=count)
            for x in batch.dicts()
        ]  # fmt: skip
        ordered.append(batch.take(sorted(range(len(batch)), key=lambda i: (-newest[i], -i))))
    return ordered[::-1]


class _Odd:
    """Predictions that are not finite numbers, and their possible causes."""

    def __init__(self) -> None:
        self.count = 0
        self.any = False  # whether anything was predicted
        self._first = ""
        self._largest: dict[str, float] = {}

    def add(self, step: Step, batch: EventBatch, before: int) -> None:
        """Count those of a batch, which follows `before` events."""
        self.count += step.non_finite
        self.any = self.any or any(value is not None for value in step.predictions.values)
        for alarm in step.alarms:
            if alarm.kind == NON_FINITE and not self._first:
                partition, _, line = batch.origins[alarm.position - before - 1]
                self._first = f"{partition}:{line}"
        for x in batch.dicts():
            for name, value in x.items():
                if isinstance(value, int | float) and abs(value) > self._largest.get(name, _LARGE):
                    self._largest[name] = float(abs(value))

    def message(self, events: int) -> str:
        """Return a message: how many of `events` they are, where the first is, what can be done."""
        are = "is not a finite number" if self.count == 1 else "are not finite numbers"
        return (
            f"{self.count:,} of {events:,} predictions {are}, the first at {self._first}; they are "
            f"written as null and left out of the metrics. {self._advice()}"
        )

    def diverged(self, no_change: float) -> str:
        """Return a message that the errors are out of proportion, and what can be done."""
        return (
            f"the mean error is over {_DIVERGED:,.0f} times that of predicting the last label "
            f"({no_change:.4g}): the model diverges. {self._advice()}"
        )

    def _advice(self) -> str:
        large = ""
        if self._largest:
            name = max(self._largest, key=self._largest.__getitem__)
            large = f" (here {name[:100]!r} is up to {self._largest[name]:.3g})"
        return (
            "Scale the features, as with preprocessing.StandardScaler() before the model; leave "
            f"out those with very large values, as times and ids{large}; or lower the learning rate"
        )


def _features(batch: EventBatch) -> set[str]:
    """Return the features that at least one event has, if they came as columns."""
    if batch.columns is None:
        return set()
    names, array, texts = batch.columns
    found = {names[j] for j in np.flatnonzero(~np.isnan(array).all(axis=0)).tolist() if len(batch)}
    return found | {k for k, column in texts.items() if any(text is not None for text in column)}


def _try_folder(what: str, path: Path, report: Report, names: Iterable[str]) -> None:
    """Check whether a folder can be written, and which of these names exist in it."""
    try:
        nearest = path
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            report.add(f"{what} folder", f"{path}: {nearest} is no folder", ok=False)
            return
        readable(nearest)
        there = sorted(file for name in names for file in path.glob(name))
        for file in there:
            readable(file)
        why = next(filter(None, map(unwritable, (path, *there))), "")
    except OSError as error:
        why = error_text(error)
    done = f"{path}{'' if path.exists() else ' (will be made)'}"
    report.add(f"{what} folder", why or done, ok=not why)
