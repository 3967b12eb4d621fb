"""Writes a starting config and model, fitted to a file of events, for `midstream init`."""

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec

from midstream.connectors.decode.fields import FieldMap
from midstream.engine.basics.names import name_fault
from midstream.engine.events.event import Task
from midstream.flows.config.settings import (
    Drift,
    Input,
    Metrics,
    Model,
    Output,
    Replay,
    State,
    Versions,
)
from midstream.flows.config.tables import ConfigError
from midstream.flows.offline.survey import Survey, survey

__all__ = ["Starter", "write_starter"]

_CONFIG = "midstream.toml"
_MODELS = "models.py"
_USUAL = re.compile(
    "|data|dataset|events?|inputs?|train|training|tests?|streams?|samples?|te?mp|projects?|models?"
    "|src|work|home|root|app|midstream"
)
"""Names of files and folders that say nothing about their contents."""
_COMMENT = 36  # column at which comments begin

_LEARNERS: Mapping[Task, str] = {
    "binary": "linear_model.LogisticRegression()",
    "multiclass": "linear_model.SoftmaxRegression()",
    "regression": ("preprocessing.TargetStandardScaler(regressor=linear_model.LinearRegression())"),
}


class Starter(msgspec.Struct, frozen=True):
    """The files written, and the survey they were fitted to; None without a file."""

    config: Path
    models: Path
    survey: Survey | None

    def report(self) -> list[str]:
        """Return a report for people, as lines."""
        lines = [f"wrote {self.config} and {self.models}"]
        if found := self.survey:
            lines.append(f"{found.path}: {found.records:,} records read, as {found.what}")
            guess = " (a guess, please check it)" if found.label_is_guess else ""
            lines.append(f"label: {found.label}{guess}; task: {found.task}")
            if found.fields and found.fields.id is not None:
                lines.append(f"id: {found.fields.id}")
            if found.fields and found.fields.time is not None:
                lines.append(f"time: {found.fields.time}")
            lines += [f"left out: {name}, which {why}" for name, why in found.left_out.items()]
            lines += [f"note: {note}" for note in found.notes]
        else:
            lines.append(f"put events into {self.config.parent / 'events.jsonl'}, one a line")
        return [*lines, f"next: midstream check {self.config}"]


def write_starter(folder: Path, data: Path | None = None, *, force: bool = False) -> Starter:
    """Write a commented config and a model into a folder.

    Parameters
    ----------
    folder
        The folder; created if missing.
    data
        JSON Lines or CSV, plain or gzip, Arrow or Parquet, to fit the files to. None: events in
        Midstream's own form.
    force
        Overwrite existing files.

    Raises
    ------
    ConfigError
        If a file exists already, or the folder is none.
    InputError
        If `data` cannot be read, or contains nothing to learn from.
    """
    config, models = folder / _CONFIG, folder / _MODELS
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, not a folder")
    for file in (config, models):
        if file.exists() and not force:
            raise ConfigError(f"{file}: exists already; --force overwrites it")
    found = None if data is None else survey(data)
    path = "events.jsonl" if data is None else os.path.relpath(data, folder)
    name = _name_of(folder.resolve().name, "" if data is None else data.name.split(".")[0])
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(_config_text(name, path, found), encoding="utf-8")
    models.write_text(_models_text(found), encoding="utf-8")
    return Starter(config, models, found)


def _name_of(folder: str, data: str) -> str:
    """Return a name for a model, from its folder and its data, that others are unlikely to have."""
    folder, data = (re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") for name in (folder, data))
    both = f"{folder}-{data}" if folder and data and folder.lower() != "midstream" else ""
    for name in (data, folder, both):
        if not (_USUAL.fullmatch(name.lower()) or name_fault(name)):
            return name
    return f"model-{secrets.token_hex(4)}"


def _config_text(name: str, path: str, found: Survey | None) -> str:
    lines = [
        f"# `midstream check {_CONFIG}` says what is wrong, `midstream run {_CONFIG}` runs it.",
        "# Paths are relative to this file. ${VAR} and ${VAR:-default} in a text come from the",
        "# environment. A line like `# key = value` shows a default: take the # away to change it.",
        "",
        _line("name", name, "of the model: in predictions, registry, consumer group; its own"),
        "",
        "[model]",
        _line("learner", "models:make", "module:function, which returns the model; or a built-in"),
        _hint("options", "of a built-in learner, in the place of learner above", "{...}"),
        _line("task", found.task if found else "binary", "binary | multiclass | regression"),
        _default(Model, "on_error", 'the learner raises: "stop", or "reject" that event'),
        _hint("labels", "of many classes: all text, integer or bool; without it: as the first"),
        _default(Model, "error_limit", "share of recent events it may fail on; beyond it: stop"),
        "",
        "[input]",
        _line("path", path, 'file, folder or pattern such as "in/*.csv"; "-": standard input'),
        _default(Input, "format", '"jsonl" | "csv" | "arrow" | "parquet" | "auto"'),
        _default(Input, "start", 'where to begin while nothing is saved; or "latest"'),
        _default(Input, "shards", '1: one model; "partition": one for each; "auto": by the input'),
        _default(Input, "order", 'of files: "name", or "fair": a part of each in turn'),
        _default(Input, "ahead", "true: the next block is read and decoded on another core"),
        _default(Input, "max_record_bytes", "longer records are rejected"),
        _hint("topic", "of Kafka, in the place of path; needs [kafka]"),
        _hint("kind", "of input that a package of yours brings, in the place of path"),
        _hint("options", "what that kind takes", "{...}"),
        _default(Input, "on_lost", 'messages deleted unread: "stop", or "skip" them'),
        _default(Input, "wait_seconds", "for an answer of the brokers; 0: as long as it takes"),
        "",
        *_fields_lines(found),
        "",
        "[output]",
        _line("path", "out", "folder of predictions.jsonl, rejected.jsonl, alarms.jsonl"),
        _default(Output, "predictions", "false: they are not written"),
        _default(Output, "rejected", "input that is not learned, with the reason"),
        _default(Output, "alarms", "what the drift detectors say"),
        _default(Output, "review", "events that expired without a label, see [feedback]"),
        _default(Output, "share", "of the predictions that are put out, chosen by the event"),
        _hint("only", "only predictions for events without a label", '"unlabelled"'),
        _hint("journal", "topic of the journal, where outputs are topics"),
        "",
        "[state]",
        _line("path", "state", "folder of the journal and of snapshots"),
        _default(State, "snapshot_events", "a snapshot after so many events"),
        _default(State, "snapshot_seconds", "or after so many seconds"),
        _default(State, "keep", "how many snapshots are kept"),
        _default(State, "commit_seconds", "how often outputs and journal are committed"),
        _default(State, "stall_seconds", "with --processes: one that does not get on is replaced"),
        "",
        "[versions]",
        _default(Versions, "every_seconds", "a version of the model so often; 0: not for that"),
        _default(Versions, "on_drift", "and when drift is seen"),
        _default(Versions, "on_shutdown", "and at the end of a run"),
        _default(Versions, "keep", "how many are kept, besides those tagged or ever live"),
        _default(Versions, "rewind_days", "for how long the journal is kept, to unlearn"),
        "",
        "[metrics]",
        _hint("names", "which metrics; without it: all that fit the task", "[...]"),
        _default(Metrics, "window", "events in the windowed metrics"),
        _default(Metrics, "fading", "what the past weighs in the faded metrics, per event"),
        "",
        "[drift]",
        _default(Drift, "detectors", 'on the loss: "adwin", "page_hinkley", or none'),
        _default(Drift, "direction", '"up": alarm where the loss rises; "both": any change'),
        _line("# adwin", {"delta": 0.002}, "options of River's ADWIN"),
        _line("# page_hinkley", {"threshold": 50.0}, "options of River's PageHinkley"),
        _hint("options_of", "options of detectors that a package of yours brings", "{...}"),
        "",
        "[replay]",
        _default(Replay, "capacity", "past events that are kept, a uniform sample"),
        _default(Replay, "max_bytes", "but no more than so many bytes of them"),
        _default(Replay, "seed", "seed of that sample"),
        *_features_lines(found),
    ]
    return "\n".join(lines) + "\n"


def _fields_lines(found: Survey | None) -> list[str]:
    fields = None if found is None else found.fields
    if found is None or fields is None:
        return [
            '# Events are JSON Lines in Midstream\'s own form: {"x": {"amount": 12.5}, "y": true}.',
            '# For flat JSON or CSV add a table [input.fields], with at least: label = "..."',
        ]
    guess = "A GUESS: what is to be predicted?" if found.label_is_guess else "what is predicted"
    lines = ["[input.fields]", _line("label", fields.label, guess)]
    for key, value, comment in (
        ("id", fields.id, "tells events apart; without it: file and line"),
        ("time", fields.time, "seconds since 1970 or ISO 8601; without it: none"),
    ):
        lines.append(_line(key, value, comment) if value is not None else _hint(key, comment))
    if fields.exclude:
        reasons = [_comment(f"    {_toml(name)},", why) for name, why in found.left_out.items()]
        lines += [_comment("exclude = [", "every other field is a feature"), *reasons, "]"]
    else:
        lines.append(_hint("exclude", "a list: every other field is a feature", "[...]"))
    lines.append(_hint("features", "a list, in the place of exclude", "[...]"))
    if fields.types:
        comment = 'read as "string", "number" or "bool", however it looks'
        lines.append(_line("types", fields.types, comment))
    else:
        lines.append(_hint("types", 'fields to read as "string", "number", "bool"', "{...}"))
    lines.append(_line("missing", fields.missing, "no value, as null and an empty cell are"))
    for key, comment in (
        ("decimal", 'of CSV and of text that is a number: "." or ","'),
        ("time_unit", 'of numbers: "s", "ms", "us", "ns", "date"; "auto": by their size'),
    ):
        given = getattr(fields, key)
        defaults = {field.name: field.default for field in msgspec.structs.fields(FieldMap)}
        is_default = given == defaults[key]
        lines.append(_default(FieldMap, key, comment) if is_default else _line(key, given, comment))
    return [
        *lines,
        *(f"# {note}" for note in found.notes),
        _hint("key", "the event's entity"),
        _hint("weight", "its sample weight, 1 where missing"),
        _hint("source", "who sent it"),
        _hint("group", "fields that are its groups", "[...]"),
    ]


def _features_lines(found: Survey | None) -> list[str]:
    """Return the features' schema, as comments to enable by hand; none for CSV."""
    if found is None or found.what == "CSV" or set(found.numbers) & set(found.texts):
        return []
    kinds = dict.fromkeys(found.numbers, "number") | dict.fromkeys(found.texts, "category")
    if not kinds:
        return []
    return [
        "",
        "# What each feature is: events are then read straight to columns, with which the built-in",
        "# learners are fast (`midstream learners` lists them). Take each # away to use it.",
        "#[features]",
        *(f"#{_quoted(name)} = {_toml(kind)}" for name, kind in kinds.items()),
    ]


def _line(key: str, value: object, comment: str) -> str:
    return _comment(f"{key} = {_toml(value)}", comment)


def _default(section: type[msgspec.Struct], key: str, comment: str) -> str:
    defaults = {field.name: field.default for field in msgspec.structs.fields(section)}
    return _line(f"# {key}", defaults[key], comment)


def _hint(key: str, comment: str, value: str = '"..."') -> str:
    """Return a comment about an unset key without a default."""
    return f"#   {f'{key} = {value}':<{_COMMENT - 4}}  {comment}"


def _comment(text: str, comment: str) -> str:
    return f"{text:<{_COMMENT - 2}}  # {comment}"


def _toml(value: object) -> str:
    """Return a value as TOML. Texts that look like variables are escaped."""
    if isinstance(value, Mapping):
        pairs = [f"{_quoted(key)} = {_toml(v)}" for key, v in value.items()]
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return _quoted(value).replace("${", "$${")
    return json.dumps(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _models_text(found: Survey | None) -> str:
    task: Task = "binary" if found is None else found.task
    numbers = found is None or bool(found.numbers)
    texts = found is None or bool(found.texts)
    steps = []
    if found is not None and found.fields is None and found.left_out:
        steps.append(f"compose.Discard({', '.join(map(_quoted, found.left_out))})")
    lines = []
    if numbers and texts:
        lines += [
            "    # Numbers and truth values; a truth value is 0 or 1.",
            "    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()",
            "    # A feature for each text. Zeros are left out: what was never seen costs nothing.",
            "    texts = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)",
        ]
        steps.append("(numbers + texts)")
    elif numbers:
        steps.append("preprocessing.StandardScaler()")
    else:
        steps.append("preprocessing.OneHotEncoder(drop_zeros=True)")
    steps.append(_LEARNERS[task])
    returned = [f"    return {' | '.join(steps)}"]
    if len(returned[0]) > 100:
        returned = [
            "    return (",
            *[f"        {'| ' if i else ''}{s}" for i, s in enumerate(steps)],
            "    )",
        ]
    needed = [
        module
        for module in ("compose", "linear_model", "preprocessing")
        if any(f"{module}." in line for line in [*lines, *steps]) or module == "compose"
    ]
    return "\n".join([
        f'"""The model of {_CONFIG}."""',
        "",
        f"from river import {', '.join(needed)}",
        "",
        "",
        "def make() -> compose.Pipeline:",
        '    """Return a new model. It is called where no state is saved."""',
        *lines,
        *returned,
        "",
    ])  # fmt: skip
