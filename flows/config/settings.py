"""Settings: what a config says, typed and checked."""

import datetime as dt
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from midstream.connectors.decode.fields import FeatureKind, FieldMap
from midstream.engine.basics.masking import hide, hide_credentials
from midstream.engine.basics.names import name_fault, topic_fault
from midstream.engine.events.event import Task
from midstream.engine.events.rules import LabelKind, TimeUnit
from midstream.engine.learners.catalogue import BUILTIN, is_named, named_learners, options_of
from midstream.flows.config.gateway import Gateway, check_gateway
from midstream.flows.config.tables import ConfigError, ConfigReader, repr_without

__all__ = [
    "ConfigError",
    "Drift",
    "Feedback",
    "FeedbackFields",
    "Input",
    "Metrics",
    "Model",
    "Output",
    "Replay",
    "Settings",
    "State",
    "Versions",
    "check_brokers",
    "read",
]

_LEARNER = r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*|[A-Za-z_][\w-]*)\Z"
_WORDS = {
    _LEARNER: f"'module:factory', as in 'models:make', or built-in: {', '.join(BUILTIN)}",
}
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e9)]
Scalar: TypeAlias = str | bool | int | float

_SECRET = re.compile(r"password|secret|token|key(?!.*location$)", re.IGNORECASE)
_LATER: Mapping[str, object] = {"missing": [], "decimal": ".", "time_unit": "auto"}


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learner and its task.

    Attributes
    ----------
    learner
        The learner: `module:function`, a function without arguments that returns the model, in a
        module beside the config or any importable one; or the name of a built-in learner.
    task
        The task. `regression` predicts a number, `binary` true or false, `multiclass` a class.
    on_error
        What to do with an event on which the learner raises. `stop` ends the run and names the
        event. `reject` writes the event to the rejected output, and the learner is as if the
        event had never come.
    labels
        The type of the labels of `multiclass`: all text, all integers or all true/false. Default:
        the type of the first label.
    error_limit
        The share of the last 1,000 events on which the learner may raise, or predict nan or
        infinity. The run stops with exit code 1 beyond it. So does a run to the end of its input
        that rejected a larger share. 1 never stops a run.
    options
        The options of a built-in learner; `midstream learners` lists them.
    """

    learner: Annotated[str, Meta(pattern=_LEARNER)]
    task: Task
    on_error: Literal["stop", "reject"] = "stop"
    labels: LabelKind | None = None
    error_limit: Share = 0.5
    options: dict[str, bool | int | float | str | dict[str, float]] = {}


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The source of the events. Exactly one of `topic`, `path` and `kind` is needed.

    Attributes
    ----------
    topic
        The Kafka topic to read. It needs `kafka."bootstrap.servers"`.
    path
        The file, folder or glob pattern to read; `-` is standard input.
    kind
        The kind of an input that an installed package brings. Without it the input is the `topic`,
        or the files of `path`.
    options
        The options of that kind.
    start
        Where to begin while no state is saved. A time is ISO 8601 (UTC where it has no zone) or
        seconds since 1970, and is for topics only.
    format
        The format of the files. `auto` goes by the file's name, and without a known name by its
        content.
    shards
        How many models learn. `1`: one model learns from all of the input. `partition`: one model
        for each partition (each file). `auto`: `partition` for a topic, 1 for any other input.
    on_lost
        What to do about messages that the brokers deleted before they were read. `stop` ends the
        run. `skip` logs and journals the loss, and goes on.
    wait_seconds
        How many seconds to wait for the brokers at the start. 0 waits as long as it takes.
    order
        The order of several files. `name` reads one after the other by name; `fair` reads a part
        of each in turn.
    ahead
        Whether a second core reads and decodes the next block while one is learned.
    max_record_bytes
        The longest record in bytes. A longer one is rejected.
    fields
        Which fields of flat JSON, or columns of a table, mean what. Without it events are in
        Midstream's own form.
    """

    topic: Text | None = None
    path: Text | None = None
    kind: Text | None = None
    options: dict[str, Any] = {}
    start: Literal["earliest", "latest"] | float = "earliest"
    format: Literal["auto", "jsonl", "csv", "arrow", "parquet"] = "auto"
    shards: Literal[1, "partition", "auto"] = "auto"
    on_lost: Literal["stop", "skip"] = "stop"
    wait_seconds: Annotated[float, Meta(ge=0, le=1e9)] = 30.0
    order: Literal["name", "fair"] = "name"
    ahead: bool = False
    max_record_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 2**20
    fields: FieldMap | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outputs. They all go to files, or all to topics.

    Attributes
    ----------
    path
        The folder of the output files.
    predictions
        `true` writes `predictions.jsonl`, `false` writes none, a string is the name of a topic.
    rejected
        Likewise, for input that is not learned.
    alarms
        Likewise, for alarms of the drift detectors and of predictions that are not finite.
    review
        Likewise, for events that expired without a label, where `feedback.on_expiry` is `review`.
    journal
        The topic of the journal, where outputs are topics. Default: `NAME.journal`.
    share
        The share of the predictions to publish. A hash of the origin chooses them, so they are
        the same after any crash.
    only
        `unlabelled` publishes only predictions for events without a label.
    """

    path: Text = "out"
    predictions: bool | str = True
    rejected: bool | str = True
    alarms: bool | str = True
    review: bool | str = True
    journal: Text | None = None
    share: Share = 1.0
    only: Literal["unlabelled"] | None = None

    @property
    def topics(self) -> dict[str, str]:
        """The topics among them, by kind."""
        kinds = {"predictions": self.predictions, "rejected": self.rejected, "alarms": self.alarms}
        kinds["review"] = self.review
        return {kind: topic for kind, topic in kinds.items() if isinstance(topic, str)}


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state folder: the journal and the snapshots.

    Attributes
    ----------
    path
        The state folder.
    snapshot_events
        A snapshot is written after this many events at the latest.
    snapshot_seconds
        A snapshot is written after this many seconds at the latest.
    keep
        How many snapshots of each shard are kept.
    commit_seconds
        How often outputs and journal are committed, in seconds. With topics at most half of
        `kafka."transaction.timeout.ms"`.
    stall_seconds
        The supervisor of `run --processes` replaces a process that makes no progress for this
        many seconds.
    """

    path: Text = "state"
    snapshot_events: Count = 1_000_000
    snapshot_seconds: Seconds = 30.0
    keep: Count = 3
    commit_seconds: Seconds = 0.5
    stall_seconds: Seconds = 60.0


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prequential metrics.

    Attributes
    ----------
    names
        The metrics. Default: all metrics of the task.
    window
        The size of the windowed metrics in events.
    fading
        The weight of the past in the fading metrics, per event.
    """

    names: tuple[str, ...] | None = None
    window: Annotated[int, Meta(ge=1, le=10_000_000)] = 1_000
    fading: Annotated[float, Meta(ge=0.001, lt=1)] = 0.999


class Drift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The drift detectors, which watch the loss.

    Attributes
    ----------
    detectors
        The detectors. An empty list: none.
    direction
        `up` raises an alarm where the loss rises, `both` at any change of it.
    adwin
        Options of River's ADWIN: `delta`, `clock`, `max_buckets`, `min_window_length` and
        `grace_period`.
    page_hinkley
        Options of River's PageHinkley: `min_instances`, `delta`, `threshold` and `alpha`.
    options_of
        By name, the options of detectors that installed packages bring.
    """

    detectors: tuple[str, ...] = ("adwin",)
    direction: Literal["up", "both"] = "up"
    adwin: dict[str, int | float] = {}
    page_hinkley: dict[str, int | float] = {}
    options_of: dict[str, dict[str, Scalar]] = {}

    def options(self) -> dict[str, dict[str, Any]]:
        """Return the options of each chosen detector."""
        own = ("adwin", "page_hinkley")
        return {
            name: dict(getattr(self, name) if name in own else self.options_of.get(name, {}))
            for name in self.detectors
        }


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The replay buffer: a uniform sample of the past labelled events.

    Attributes
    ----------
    capacity
        How many events the buffer holds. 0: it holds none.
    max_bytes
        The limit of the buffer in bytes.
    seed
        The seed of the sample.
    """

    capacity: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1_000
    max_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 16 * 2**20
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class FeedbackFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which fields of feedback, or columns of CSV, mean what. It is flat.

    Attributes
    ----------
    id
        The field with the id of the event.
    label
        The field with the label.
    time
        The field with the time of the label: ISO 8601 (UTC where it has no zone) or a number, see
        `time_unit`.
    source
        The field that says who sent the label. `restore --rewind --skip-source` leaves out labels
        by it.
    weight
        The field with a weight, at least 0, by which the event's weight is multiplied.
    missing
        The values that mean "no value", as in `input.fields`.
    decimal
        The decimal sign of CSV, and of strings that are numbers.
    time_unit
        The unit of a time that is a number, as in `input.fields`.
    """

    id: Text = "id"
    label: Text = "y"
    time: Text | None = "ts"
    source: Text | None = "source"
    weight: Text | None = None
    missing: list[str | int | float] = []
    decimal: Literal[".", ","] = "."
    time_unit: TimeUnit = "auto"


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Labels that come after their event was predicted, by its id.

    Events without a label wait for it. Without `topic` and `path`, a label comes in the input: the
    event is sent again with it.

    Attributes
    ----------
    topic
        The Kafka topic of the feedback. With a shard for each partition it has as many partitions
        as the input, and the label of an event is in the partition of the same number.
    path
        The file, folder or glob pattern of the feedback.
    format
        The format of the files.
    fields
        Which fields of feedback mean what. Default: `id`, `y`, `ts` and `source`.
    order
        `blocks` reads the input whose next block begins earlier. `exact` applies events and
        feedback in the order of their times, record by record, with feedback first at equal times;
        it waits for both, and is for a stream that is read to its end.
    window_seconds
        How long an event waits for its label, in event time.
    window_events
        How many later events it waits for at most. 0: no limit.
    lateness_seconds
        How much later than the clock of its input a record may come.
    idle_seconds
        A partition whose clock is this far behind the others' does not hold the clock back.
    early_seconds
        How long a label waits for its event.
    on_expiry
        What becomes of an event whose time ends without a label: `drop` forgets it, `label` learns
        `default_label`, `review` writes it to the output `review`.
    default_label, default_weight
        The label that `label` learns, and its weight.
    repeats
        Of several labels of one event: `first` is learned at once; `last` and `sum` are learned
        when the event's time ends.
    corrections
        What to do with another label for an event after one was learned: `count` only counts it,
        `learn` learns it, too, with `correction_weight`.
    correction_weight
        The weight of such a label.
    method
        What is done against the bias of positives that come late, for task binary: `wait` learns an
        event when its label comes, or at its end. `fnw` (fake negative weighted), `fnc` (fake
        negative calibration) and `es-dfm` (elapsed-time sampling) learn it as negative earlier, and
        as positive when its positive comes. They need `on_expiry = "label"` and
        `default_label = false`.
    wait_seconds
        How long an event waits before it is learned as negative. `es-dfm` needs it.
    remember_seconds
        How long the id of an event that is done is remembered, to know its repeats.
    negative_share
        The share of the events labelled false that are learned, each with weight 1 / share.
    max_events
        How many events may wait. The oldest go first.
    max_bytes
        How many bytes they may take, by an estimate.
    """

    topic: Text | None = None
    path: Text | None = None
    format: Literal["auto", "jsonl", "csv", "arrow", "parquet"] = "auto"
    fields: FeedbackFields = FeedbackFields()
    order: Literal["blocks", "exact"] = "blocks"
    window_seconds: Seconds = 86_400.0
    window_events: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    lateness_seconds: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    idle_seconds: Seconds = 3_600.0
    early_seconds: Seconds = 60.0
    on_expiry: Literal["drop", "label", "review"] = "drop"
    default_label: bool | int | float | str | None = None
    default_weight: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    repeats: Literal["first", "last", "sum"] = "first"
    corrections: Literal["count", "learn"] = "count"
    correction_weight: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    method: Literal["wait", "fnw", "fnc", "es-dfm"] = "wait"
    wait_seconds: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    remember_seconds: Seconds = 86_400.0
    negative_share: Share = 1.0
    max_events: Count = 1_000_000
    max_bytes: Annotated[int, Meta(ge=2**10, le=2**45)] = 2**30


class Versions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The versions of the model: when one is made, where they are kept, and for how long.

    Attributes
    ----------
    enabled
        Whether there are versions, and commands such as `midstream restore`.
    registry
        The database of the registry: a path, `sqlite:///PATH` or `postgresql://...`. Default:
        `registry.db` in the state folder.
    artifacts
        The folder or URL (`s3://bucket/prefix`) of the files of versions. Default: `artifacts` in
        the state folder.
    key
        The secret that signs versions (HMAC-SHA256). With a key, a version without a valid
        signature is refused.
    every_events
        A version is made after this many events. 0: not by events.
    every_seconds
        A version is made after this many seconds. 0: not by time.
    on_drift
        Whether an alarm of a drift detector makes a version.
    on_shutdown
        Whether the end of a run makes a version.
    drift_margin
        `restore --before-drift` takes a version with at least this many events fewer than the
        model had at the first alarm.
    keep
        The newest versions to keep. Tagged versions and versions that were ever live are always
        kept.
    keep_hours
        For how many hours the last version of each hour is kept.
    keep_days
        For how many days the last version of each day is kept.
    prune
        Whether the versions that no rule keeps are removed after each new version.
    rewind_days
        For how many days the journal is kept, so that `restore --rewind` can learn again from it.
    catch_up_events
        How many of the newest events `promote` and `rollback` learn again at most.
    poll_seconds
        How often a run looks for commands, in seconds.
    """

    enabled: bool = True
    registry: Text | None = None
    artifacts: Text | None = None
    key: Text | None = None
    every_events: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    every_seconds: Annotated[float, Meta(ge=0, le=1e9)] = 3_600.0
    on_drift: bool = True
    on_shutdown: bool = True
    drift_margin: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1_000
    keep: Count = 20
    keep_hours: Annotated[float, Meta(ge=0, le=1e6)] = 24.0
    keep_days: Annotated[float, Meta(ge=0, le=1e6)] = 30.0
    prune: bool = True
    rewind_days: Annotated[float, Meta(ge=0, le=1e6)] = 7.0
    catch_up_events: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1_000_000
    poll_seconds: Annotated[float, Meta(ge=0.01, le=3_600)] = 0.5


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A config, checked.

    Attributes
    ----------
    file
        Where the config was read.
    named
        Whether the config has a `name`.
    hidden
        The keys whose values are not shown.
    name
        The name of the model: in predictions, the registry, the journal topic and the consumer
        group. Default: the name of the config's file without `.toml`. Give each model a name of
        its own.
    model
        The learner and its task.
    input
        The source of the events.
    output
        The outputs.
    state
        The state folder.
    versions
        The versions of the model.
    metrics
        The prequential metrics.
    drift
        The drift detectors.
    replay
        The replay buffer.
    feedback
        Labels that come later. Without this section an event without a label is predicted only.
    parts
        By name, the options of parts that installed packages bring: they see every event, and are
        kept with the model's state.
    gateway
        The gateway, which takes feedback over HTTP and from topics of other shapes, and writes it
        to the feedback topic: `midstream gateway`. See [The gateway](gateway.md).
    kafka
        Any setting of librdkafka, such as `"bootstrap.servers"`, apart from a few that Midstream
        sets itself. Nested tables and dotted keys without quotes are the same.
    features
        The type of each feature: `number` or `category`. JSON Lines, Arrow and Parquet are then
        read straight to columns. An event with another feature is rejected; a table with another
        column is refused. Not for CSV.
    """

    file: Path
    named: bool = True
    hidden: frozenset[str] = frozenset()
    name: str
    model: Model
    input: Input
    output: Output = Output()
    state: State = State()
    versions: Versions = Versions()
    metrics: Metrics = Metrics()
    drift: Drift = Drift()
    replay: Replay = Replay()
    feedback: Feedback | None = None
    parts: dict[str, dict[str, Scalar]] = {}
    gateway: Gateway | None = None
    kafka: dict[str, Scalar] = {}
    features: dict[str, FeatureKind] = {}

    def __repr__(self) -> str:
        return repr_without(self, self.hidden)

    @property
    def root(self) -> Path:
        """The config's folder, which relative paths are relative to."""
        return self.file.parent

    @property
    def input_path(self) -> str:
        """The input as an absolute path or pattern; "-" is standard input."""
        path = self.input.path
        assert path is not None, "the input is no file"
        return path if path == "-" else str(self.root / path)

    @property
    def one_shard(self) -> bool:
        """Whether one model learns from all of the input."""
        shards = self.input.shards
        return self.input.topic is None if shards == "auto" else shards == 1

    @property
    def outputs(self) -> list[str]:
        """The kinds of output that are made: `review` only where events are to be reviewed."""
        kinds = ["predictions", "rejected", "alarms"]
        if self.feedback is not None and self.feedback.on_expiry == "review":
            kinds.append("review")
        return [kind for kind in kinds if getattr(self.output, kind)]

    @property
    def journal_topic(self) -> str | None:
        """The topic of the journal; None: it is in the state folder."""
        return (self.output.journal or f"{self.name}.journal") if self.output.topics else None

    @property
    def output_path(self) -> Path:
        """The folder of the outputs."""
        return self.root / self.output.path

    @property
    def state_path(self) -> Path:
        """The folder of journal, snapshots and registry."""
        return self.root / self.state.path

    @property
    def registry(self) -> str:
        """The URL of the registry's database, or the path of its file."""
        given = self.versions.registry
        if given is None:
            return str(self.state_path / "registry.db")
        if given.startswith("sqlite:///"):
            return f"sqlite:///{self.root / given.removeprefix('sqlite:///')}"
        return given if "://" in given else str(self.root / given)

    @property
    def artifacts(self) -> str:
        """The folder or URL that the files of versions are in."""
        given = self.versions.artifacts or str(self.state_path / "artifacts")
        return given if "://" in given else str(self.root / given)

    def reading(self, path: str) -> "Settings":
        """Return the same config with files as its input, read from their beginning."""
        source = msgspec.structs.replace(
            self.input, path=path, topic=None, kind=None, options={}, start="earliest"
        )
        return msgspec.structs.replace(self, input=source)

    def _feedback_decoding(self) -> dict[str, Any]:
        assert self.feedback is not None
        fields: dict[str, Any] = msgspec.to_builtins(self.feedback.fields)
        return {"fields": fields, "format": self.feedback.format}

    def decoding(self) -> dict[str, Any]:
        """Return what determines how bytes are decoded to events, as plain JSON values."""
        fields: dict[str, Any] | None = msgspec.to_builtins(self.input.fields)
        for key, default in _LATER.items():  # earlier states lack these keys
            if fields is not None and fields[key] == default:
                del fields[key]
        return {
            "fields": fields,
            "format": self.input.format,
            "task": self.model.task,
            "max_record_bytes": self.input.max_record_bytes,
            **({"features": self.features} if self.features else {}),
            **({"feedback": self._feedback_decoding()} if self.feedback is not None else {}),
            **({"labels": self.model.labels} if self.model.labels is not None else {}),
        }


def _feedback_topics(settings: Settings) -> dict[str, str]:
    feedback = settings.feedback
    if feedback is None or feedback.topic is None:
        return {}
    return {"feedback.topic": feedback.topic}


def read(path: str | Path, check_input: Callable[[Settings, ConfigReader], None]) -> Settings:
    """Read a config. `midstream.flows.loading.load` calls this with the check of its input.

    ``${VAR}`` and ``${VAR:-default}`` in a string are replaced from the environment, by the default
    also if the variable is empty; ``$${`` stands for ``${``. Numbers and booleans may be given in
    this way too. Messages mask values from the environment, and secrets of Kafka and of
    ``[input.options]``.

    Parameters
    ----------
    check_input
        Checks the settings of the input, which depend on its kind.

    Raises
    ------
    ConfigError
        If the file cannot be read, or contains what is not allowed.
    """
    file = Path(path)
    reader = ConfigReader(file, _WORDS)
    raw = reader.read()
    if "name" not in raw and (fault := name_fault(file.stem)):
        found = textwrap.shorten(repr(file.stem), 100, placeholder="...")
        raise reader.error("name", f"missing, and the file's, {found}, is none; {fault}")
    named = "name" in raw
    raw.setdefault("name", file.stem)
    source, output, kafka = raw.get("input"), raw.get("output"), raw.get("kafka")
    if isinstance(source, dict) and "start" in source:
        source["start"] = _start(source["start"], reader)
    if isinstance(output, dict):  # text from the environment, where text may be a topic
        for key in reader.hidden:
            section, _, name = key.partition(".")
            if section != "output" or name == "path":
                continue
            if output.get(name) in ("true", "false"):
                output[name] = output[name] == "true"
    options = source.get("options") if isinstance(source, dict) else None
    if isinstance(options, dict):
        secret = [key for key in options if _SECRET.search(key)]
        reader.hidden.update({f"input.options.{key}": str(options[key]) for key in secret})
    if isinstance(kafka, dict):
        raw["kafka"] = dict(_flat(kafka))
        secret = [key for key in raw["kafka"] if _SECRET.search(key)]
        reader.hidden.update({f"kafka.{key}": str(raw["kafka"][key]) for key in secret})
    gateway, feedback = raw.get("gateway"), raw.get("feedback")
    if isinstance(gateway, dict) and isinstance(feedback, dict) and "topic" in feedback:
        gateway.setdefault("topic", feedback["topic"])
    versions = raw.get("versions")
    if isinstance(versions, dict):  # a URL may hold a password
        secret = [key for key in ("key", "registry", "artifacts") if key in versions]
        reader.hidden.update({f"versions.{key}": str(versions[key]) for key in secret})
    for key, value in reader.hidden.items():
        hide_credentials(value)
        is_secret = key.startswith(("kafka.", "input.options.")) and _SECRET.search(key)
        if key == "versions.key" or is_secret:
            hide(value)
    # The file itself is not resolved: it may be a link with its data beside it.
    place = file.parent.resolve() / file.name
    settings = reader.table(Settings, raw, file=place, named=named, hidden=frozenset(reader.hidden))
    _check(settings, reader, check_input)
    return settings


def _start(value: object, reader: ConfigReader) -> str | float:
    """Return a word unchanged, a time as seconds since 1970: UTC without a zone."""
    if value in ("earliest", "latest"):
        return str(value)
    moment: Any = value
    try:
        if isinstance(moment, str) and not re.fullmatch(r"[\d.]+", moment):
            moment = dt.datetime.fromisoformat(moment)
        elif isinstance(moment, dt.date) and not isinstance(moment, dt.datetime):
            moment = dt.datetime.combine(moment, dt.time())
        if isinstance(moment, dt.datetime):
            return moment.replace(tzinfo=moment.tzinfo or dt.UTC).timestamp()
        if not isinstance(moment, bool) and math.isfinite(seconds := float(moment)):
            return seconds
    except (TypeError, ValueError, OverflowError):
        pass
    words = "'earliest' | 'latest' | a time, as ISO 8601 or in seconds since 1970"
    raise reader.refusal("input.start", value, words, ["earliest", "latest"])


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested tables: TOML reads an unquoted `bootstrap.servers` as one."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check(
    settings: Settings, reader: ConfigReader, check_input: Callable[[Settings, ConfigReader], None]
) -> None:
    """Check what the types cannot express.

    Raises
    ------
    ConfigError
        If settings contradict each other, or are not available in this version.
    """
    _check_names(settings, reader)
    _check_learner(settings.model, reader)
    if settings.model.labels is not None and settings.model.task != "multiclass":
        raise reader.error(
            "model.labels",
            f"found {settings.model.labels!r} with task {settings.model.task!r}; allowed: with "
            "'multiclass' only",
        )
    _check_features(settings, reader)
    source = settings.input
    check_input(settings, reader)
    _check_topics(settings, reader)
    if source.fields is not None and source.fields.label is None and settings.feedback is None:
        raise reader.error(
            "input.fields.label", "missing; needed: the name of the field to predict"
        )
    if settings.versions.key is not None and len(settings.versions.key.split()) == 0:
        raise reader.error("versions.key", "found only blanks; needed: a secret")
    if settings.metrics.names is not None:
        from midstream.engine.metrics.metric import metric_names
        from midstream.engine.metrics.prequential import METRICS  # numba: slow to import

        task = settings.model.task
        allowed = METRICS[task]
        if not set(allowed).issuperset(settings.metrics.names):
            allowed = (*allowed, *metric_names(task))
        for i, name in enumerate(settings.metrics.names):
            if name not in allowed:
                raise reader.refusal(f"metrics.names[{i}]", name, " | ".join(allowed), allowed)
    _check_feedback(settings, reader)
    _check_detectors(settings.drift, reader)
    if len(set(settings.drift.detectors)) < len(settings.drift.detectors):
        raise reader.error("drift.detectors", "found a detector twice; allowed: each once")
    _check_options("drift.adwin", settings.drift.adwin, reader)
    _check_options("drift.page_hinkley", settings.drift.page_hinkley, reader)
    _check_parts(settings.parts, reader)
    if settings.gateway is not None:
        check_brokers(settings, reader)
        check_gateway(settings.gateway, reader)


def _check_feedback(settings: Settings, reader: ConfigReader) -> None:
    """Check [feedback] against the rest; the learner is asked when it is made."""
    feedback, source = settings.feedback, settings.input
    if feedback is None:
        return
    if feedback.topic is not None and feedback.path is not None:
        raise reader.error("feedback", "found both of topic and path; allowed: at most one of them")
    if feedback.topic is not None:
        check_brokers(settings, reader)
        if feedback.topic in (source.topic, *settings.output.topics.values()):
            raise reader.error("feedback.topic", "has another use; choose another topic")
        if not settings.one_shard and source.topic is None:
            raise reader.error(
                "feedback.topic", "with a shard for each file; allowed: with input.shards = 1"
            )
    gateway = settings.gateway
    if gateway is not None and feedback.topic is not None and gateway.topic != feedback.topic:
        raise reader.error(
            "gateway.topic", f"is not feedback.topic, {feedback.topic!r}; allowed: that, or none"
        )
    if feedback.path is not None:
        if feedback.path in ("-", source.path):
            raise reader.error("feedback.path", f"found {feedback.path!r}; allowed: another file")
        if not settings.one_shard:
            raise reader.error(
                "feedback.path", "with a shard for each partition; allowed: with input.shards = 1"
            )
    if feedback.fields.id == feedback.fields.label:
        raise reader.error("feedback.fields.label", "is the id; allowed: another field")
    if source.fields is not None and source.fields.id is None:
        raise reader.error(
            "input.fields.id", "missing; needed with [feedback]: labels name the event by its id"
        )
    if feedback.default_label is not None and feedback.on_expiry != "label":
        raise reader.error("feedback.default_label", "is for on_expiry = 'label'; leave one out")


def _check_names(settings: Settings, reader: ConfigReader) -> None:
    """Check the names of the model and its topics."""
    if fault := name_fault(settings.name):
        raise reader.found("name", settings.name, fault)
    topics = {"input.topic": settings.input.topic, "output.journal": settings.output.journal}
    topics |= {f"output.{kind}": topic for kind, topic in settings.output.topics.items()}
    topics |= _feedback_topics(settings)
    for key, topic in topics.items():
        if topic is not None and (fault := topic_fault(topic)):
            raise reader.found(key, topic, fault)


def _check_features(settings: Settings, reader: ConfigReader) -> None:
    """Check a schema of the features against the learner, and against the roles of fields."""
    if not settings.features:
        return
    if settings.model.learner in BUILTIN:
        most = settings.model.options.get(
            "features", options_of(settings.model.learner)["features"]
        )
        numbers = list(settings.features.values()).count("number")
        if isinstance(most, int) and numbers > most:
            raise reader.error(
                "features", f"found {numbers} numbers; model.options.features allows {most}"
            )
    fields = settings.input.fields
    if fields is None:
        return
    for key in ("features", "types"):
        if getattr(fields, key):
            raise reader.error(f"input.fields.{key}", "[features] says that already; leave one out")
    for name in settings.features:
        if name in fields.roles or name in fields.exclude:
            raise reader.error(
                f"features.{name}", "[input.fields] has another use for it; allowed: one of them"
            )


def _check_topics(settings: Settings, reader: ConfigReader) -> None:
    """Check the settings of outputs that are topics."""
    output = settings.output
    topics = output.topics
    feedback = settings.feedback
    if "review" in topics and (feedback is None or feedback.on_expiry != "review"):
        raise reader.error(
            "output.review", 'a topic is for feedback.on_expiry = "review"; leave one out'
        )
    if topics:
        for kind in settings.outputs:
            if getattr(output, kind) is True:
                other = next(iter(topics))
                raise reader.error(
                    f"output.{kind}",
                    f"it goes to a file, while {other} go to a topic, and both cannot be committed "
                    "in one piece; allowed: a topic, or false",
                )
    elif output.journal is not None:
        raise reader.error("output.journal", "no output is a topic; leave it out")
    if not topics:
        return
    check_brokers(settings, reader)
    most = _commit_limit(settings.kafka)
    if settings.state.commit_seconds > most:
        raise reader.error(
            "state.commit_seconds",
            f"found {settings.state.commit_seconds:g}; allowed: at most {most:g}, half of "
            'kafka."transaction.timeout.ms", after which brokers give up what is not committed',
        )
    used = [*topics.values(), settings.journal_topic]
    if len(set(used)) < len(used):
        raise reader.error("output", "found a topic twice; allowed: each once")


def check_brokers(settings: Settings, reader: ConfigReader) -> None:
    """Check [kafka], for an input or outputs that are topics.

    Raises
    ------
    ConfigError
        If the brokers are missing, or a setting is reserved.
    """
    if "bootstrap.servers" not in settings.kafka:
        raise reader.error(
            'kafka."bootstrap.servers"', "missing; needed: the brokers, as host:port,host:port"
        )
    for key in ("bootstrap.servers", "group.id"):  # librdkafka accepts an empty one and fails later
        if not str(settings.kafka.get(key, key)).strip():
            raise reader.error(f'kafka."{key}"', "found nothing; needed: a string, not empty")
    from midstream.connectors.kafka.consumer import RESERVED

    for key, why in RESERVED.items():
        if key in settings.kafka:
            raise reader.error(f'kafka."{key}"', f"cannot be set: {why}")


def _commit_limit(kafka: Mapping[str, Any]) -> float:
    """Return the maximum number of seconds between two commits."""
    try:
        return float(kafka.get("transaction.timeout.ms", 10_000)) / 2_000
    except (TypeError, ValueError):
        return math.inf  # using it raises the error


def _check_learner(model: Model, reader: ConfigReader) -> None:
    """Check that a built-in learner exists, fits the task, and has these options."""
    if not is_named(model.learner):
        if ":" not in model.learner:
            added = [name for name in named_learners() if name not in BUILTIN]
            more = f", or of a package: {', '.join(added)}" if added else ""
            words = _WORDS[_LEARNER] + more
            raise reader.error("model.learner", f"found {model.learner!r}; allowed: {words}")
        if model.options:
            raise reader.error(
                "model.options",
                "only built-in learners have options; set those of your own in your factory",
            )
        return
    builtin = BUILTIN.get(model.learner)
    if builtin is not None and builtin.task != model.task:
        words = f"{builtin.task!r}, which {model.learner} is for"
        for name, other in BUILTIN.items():
            if other.task == model.task:
                words += f", or learner {name!r}"
        raise reader.refusal("model.task", model.task, words)
    known = options_of(model.learner) if model.options else {}
    for key in model.options:
        if key not in known:
            raise reader.unknown("model.options", key, known)


def _check_detectors(drift: Drift, reader: ConfigReader) -> None:
    """Check that each detector exists, and that options belong to a chosen one."""
    known = {"adwin", "page_hinkley"}
    if not known.issuperset(drift.detectors):
        from midstream.engine.drift.monitor import detector_names

        known = set(detector_names())
    for i, name in enumerate(drift.detectors):
        if name not in known:
            allowed = sorted(known)
            words = " | ".join(map(repr, allowed))
            raise reader.refusal(f"drift.detectors[{i}]", name, words, allowed)
    for name in drift.options_of:
        if name not in drift.detectors:
            raise reader.error(f"drift.options_of.{name}", "is no detector of drift.detectors")


def _check_parts(parts: Mapping[str, Mapping[str, Any]], reader: ConfigReader) -> None:
    """Check that each part exists."""
    if not parts:
        return
    from midstream.engine.training.parts import part_names

    for name in parts:
        if name not in part_names():
            raise reader.refusal(
                f"parts.{name}", name,
                " | ".join(map(repr, part_names())) or "none: no installed package brings one",
                part_names(),
            )  # fmt: skip


def _check_options(at: str, options: Mapping[str, int | float], reader: ConfigReader) -> None:
    """Check the options of a detector against River's."""
    if not options:
        return
    from midstream.engine.drift.monitor import drift_options

    detector = at.rpartition(".")[2]
    # Options that are no numbers (`mode`) follow from `direction`.
    known = {k: v for k, v in drift_options(detector).items() if isinstance(v, int | float)}
    for key, value in options.items():
        if key not in known:
            raise reader.unknown(at, key, known)
        if isinstance(known[key], int):
            if not isinstance(value, int) or not 1 <= value < 2**31:
                raise reader.refusal(f"{at}.{key}", value, f"a whole number from 1 to {2**31 - 1}")
        else:
            top = 1 if key == "alpha" or (detector, key) == ("adwin", "delta") else 1e9
            if not 0 < value <= top:
                raise reader.refusal(f"{at}.{key}", value, f"a number > 0 and <= {top:g}")
