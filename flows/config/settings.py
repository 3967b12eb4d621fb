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
from midstream.engine.events.rules import LabelKind
from midstream.engine.learners.catalogue import BUILTIN, options_of
from midstream.flows.config.tables import ConfigError, ConfigReader, repr_without

__all__ = [
    "ConfigError",
    "Drift",
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

_LEARNER = rf"^([A-Za-z_][\w.]*:[A-Za-z_]\w*|{'|'.join(BUILTIN)})\Z"
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
    """What learns.

    `labels`: of which kind those of many classes are; None: as the first is. `error_limit` is the
    share of recent events on which it may raise, where these are rejected, or predict what is no
    finite number; beyond it the run stops. 1: it never does.
    """

    learner: Annotated[str, Meta(pattern=_LEARNER)]
    task: Task
    on_error: Literal["stop", "reject"] = "stop"
    labels: LabelKind | None = None
    error_limit: Share = 0.5
    options: dict[str, bool | int | float | str | dict[str, float]] = {}


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where events come from. A `start` that is a number is in seconds since 1970.

    `shards` "auto": one for each partition of a topic, one for all of any other input. `kind` is
    that of an input that a package brings, and `options` are what it takes; without it, the input
    is a `topic`, or the files of `path`.
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
    """Where predictions, rejected input and alarms go.

    True: to a file in the folder `path`; a text: to the topic of this name, and then the journal
    is in a topic too. Of the predictions only a `share` goes there, and `only` those for events
    without a label, if the config says so.
    """

    path: Text = "out"
    predictions: bool | str = True
    rejected: bool | str = True
    alarms: bool | str = True
    journal: Text | None = None
    share: Share = 1.0
    only: Literal["unlabelled"] | None = None

    @property
    def topics(self) -> dict[str, str]:
        """The topics among them, by kind."""
        kinds = {"predictions": self.predictions, "rejected": self.rejected, "alarms": self.alarms}
        return {kind: topic for kind, topic in kinds.items() if isinstance(topic, str)}


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where journal and snapshots are, and when they are written."""

    path: Text = "state"
    snapshot_events: Count = 1_000_000
    snapshot_seconds: Seconds = 30.0
    keep: Count = 3
    commit_seconds: Seconds = 0.5
    stall_seconds: Seconds = 60.0


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How quality is measured. `names` None: by all metrics of the task."""

    names: tuple[str, ...] | None = None
    window: Annotated[int, Meta(ge=1, le=10_000_000)] = 1_000
    fading: Annotated[float, Meta(ge=0.001, lt=1)] = 0.999


class Drift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which detectors watch the loss, and with which of River's options."""

    detectors: tuple[Literal["adwin", "page_hinkley"], ...] = ("adwin",)
    direction: Literal["up", "both"] = "up"
    adwin: dict[str, int | float] = {}
    page_hinkley: dict[str, int | float] = {}

    def options(self) -> dict[str, dict[str, int | float]]:
        """Return the options of each chosen detector."""
        return {name: dict(getattr(self, name)) for name in self.detectors}


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of the past is kept."""

    capacity: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1_000
    max_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 16 * 2**20
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class Versions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When versions are made of the model, where they are kept, and for how long.

    One is made every `every_events`, every `every_seconds` (0: not for that), at drift, at the end
    of a run, and on request; one that would be equal to the newest is not. The last `keep` are
    kept, the last of each hour for `keep_hours`, the last of each day for `keep_days`, those that
    are tagged, and those that ever were put live; one of the last `rewind_days` can be rewound to.
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
    """A config, checked. `file` is where it was read; values at `hidden` keys are not shown.

    `named`: the config has a `name`; else it is the file's.
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

    def decoding(self) -> dict[str, Any]:
        """Return what determines how bytes become events, as plain JSON values."""
        fields: dict[str, Any] | None = msgspec.to_builtins(self.input.fields)
        for key, default in _LATER.items():  # states of before there were these keys lack them
            if fields is not None and fields[key] == default:
                del fields[key]
        return {
            "fields": fields,
            "format": self.input.format,
            "task": self.model.task,
            "max_record_bytes": self.input.max_record_bytes,
            **({"features": self.features} if self.features else {}),
            **({"labels": self.model.labels} if self.model.labels is not None else {}),
        }


def read(path: str | Path, check_input: Callable[[Settings, ConfigReader], None]) -> Settings:
    """Read a config; `midstream.flows.loading.load` does, with the check of its input.

    ``${VAR}`` and ``${VAR:-default}`` in a string are taken from the environment, the default also
    where the variable is empty; ``$${`` stands for ``${``. Numbers and truth values may be given
    so, too. What came from there is shown as three stars, and so are secrets of Kafka and of
    ``[input.options]``.

    Parameters
    ----------
    check_input
        Checks what is said of the input, which depends on its kind.

    Raises
    ------
    ConfigError
        If the file cannot be read, or says what is not allowed.
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
    versions = raw.get("versions")
    if isinstance(versions, dict):  # a URL may hold a password
        secret = [key for key in ("key", "registry", "artifacts") if key in versions]
        reader.hidden.update({f"versions.{key}": str(versions[key]) for key in secret})
    for key, value in reader.hidden.items():
        hide_credentials(value)
        told = key.startswith(("kafka.", "input.options.")) and _SECRET.search(key)
        if key == "versions.key" or told:
            hide(value)
    # The file itself is not resolved: it may be a link, with its data beside the link.
    place = file.parent.resolve() / file.name
    settings = reader.table(Settings, raw, file=place, named=named, hidden=frozenset(reader.hidden))
    _check(settings, reader, check_input)
    return settings


def _start(value: object, reader: ConfigReader) -> str | float:
    """Return a word as it is, a time as seconds since 1970: UTC where it has no zone."""
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
    """Yield the keys of nested tables: `bootstrap.servers` without quotes is one, to TOML."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check(
    settings: Settings, reader: ConfigReader, check_input: Callable[[Settings, ConfigReader], None]
) -> None:
    """Check what the types do not tell.

    Raises
    ------
    ConfigError
        If something contradicts something else, or is not there in this version.
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
    if source.fields is not None and source.fields.label is None:
        raise reader.error(
            "input.fields.label", "missing; needed: the name of the field to predict"
        )
    if settings.versions.key is not None and len(settings.versions.key.split()) == 0:
        raise reader.error("versions.key", "found only blanks; needed: a secret")
    if settings.metrics.names is not None:
        from midstream.engine.metrics.prequential import METRICS  # numba: slow to import

        allowed = METRICS[settings.model.task]
        for i, name in enumerate(settings.metrics.names):
            if name not in allowed:
                raise reader.refusal(f"metrics.names[{i}]", name, " | ".join(allowed), allowed)
    if len(set(settings.drift.detectors)) < len(settings.drift.detectors):
        raise reader.error("drift.detectors", "found a detector twice; allowed: each once")
    _check_options("drift.adwin", settings.drift.adwin, reader)
    _check_options("drift.page_hinkley", settings.drift.page_hinkley, reader)


def _check_names(settings: Settings, reader: ConfigReader) -> None:
    """Check what the model and its topics are called."""
    if fault := name_fault(settings.name):
        raise reader.found("name", settings.name, fault)
    topics = {"input.topic": settings.input.topic, "output.journal": settings.output.journal}
    topics |= {f"output.{kind}": topic for kind, topic in settings.output.topics.items()}
    for key, topic in topics.items():
        if topic is not None and (fault := topic_fault(topic)):
            raise reader.found(key, topic, fault)


def _check_features(settings: Settings, reader: ConfigReader) -> None:
    """Check a schema of the features against the learner, and what the fields are for."""
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
    """Check what is said of outputs that are topics."""
    output = settings.output
    topics = output.topics
    if topics:
        for kind in ("predictions", "rejected", "alarms"):
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
    """Check what [kafka] says, for an input or outputs that are topics.

    Raises
    ------
    ConfigError
        If the brokers are missing, or a setting is not the user's.
    """
    if "bootstrap.servers" not in settings.kafka:
        raise reader.error(
            'kafka."bootstrap.servers"', "missing; needed: the brokers, as host:port,host:port"
        )
    for key in ("bootstrap.servers", "group.id"):  # librdkafka takes none, and does not get far
        if not str(settings.kafka.get(key, key)).strip():
            raise reader.error(f'kafka."{key}"', "found nothing; needed: a string, not empty")
    from midstream.connectors.kafka.consumer import RESERVED

    for key, why in RESERVED.items():
        if key in settings.kafka:
            raise reader.error(f'kafka."{key}"', f"cannot be set: {why}")


def _commit_limit(kafka: Mapping[str, Any]) -> float:
    """Return how many seconds there may be between two commits."""
    try:
        return float(kafka.get("transaction.timeout.ms", 10_000)) / 2_000
    except (TypeError, ValueError):
        return math.inf  # it is refused when it is used


def _check_learner(model: Model, reader: ConfigReader) -> None:
    """Check that a built-in learner is there, for this task, and has these options."""
    builtin = BUILTIN.get(model.learner)
    if builtin is None:
        if model.options:
            raise reader.error(
                "model.options",
                "only built-in learners have options; set those of your own in your factory",
            )
        return
    if builtin.task != model.task:
        words = f"{builtin.task!r}, which {model.learner} is for"
        for name, other in BUILTIN.items():
            if other.task == model.task:
                words += f", or learner {name!r}"
        raise reader.refusal("model.task", model.task, words)
    known = options_of(model.learner) if model.options else {}
    for key in model.options:
        if key not in known:
            raise reader.unknown("model.options", key, known)


def _check_options(at: str, options: Mapping[str, int | float], reader: ConfigReader) -> None:
    """Check options of a detector against those that River's has."""
    if not options:
        return
    from midstream.engine.drift.monitor import drift_options

    detector = at.rpartition(".")[2]
    # What is no number (`mode`) follows from `direction`.
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
