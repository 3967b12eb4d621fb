"""A config is read into one typed tree, or refused in one line."""

import codecs
import json
from pathlib import Path

import msgspec
import pytest

from midstream.connectors.decode.fields import FieldMap
from midstream.engine.drift.monitor import DETECTORS
from midstream.flows.config.factory import make_model
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigError
from midstream.flows.loading import load

MODEL = '[model]\nlearner = "models:make"\ntask = "binary"\n'
INPUT = '[input]\npath = "events.jsonl"\n'


@pytest.fixture
def read(tmp_path):
    """Write a config and load it."""

    def _read(*parts: str, name: str = "config.toml") -> Settings:
        file = tmp_path / name
        file.write_text("\n".join(parts), encoding="utf-8")
        return load(file)

    return _read


@pytest.fixture
def refused(read, tmp_path):
    """Write a config, and return why it is refused, without the file's name."""

    def _refused(*parts: str, name: str = "config.toml") -> str:
        with pytest.raises(ConfigError) as caught:
            read(*parts, name=name)
        text = str(caught.value)
        assert "\n" not in text, f"more than one line: {text!r}"
        prefix = f"{tmp_path / name}: "
        assert text.startswith(prefix), f"{text!r} does not name the file"
        return text.removeprefix(prefix)

    return _refused


def test_defaults(read, tmp_path):
    """The shortest config gives a whole tree, with paths beside it."""
    settings = read(MODEL, INPUT)
    assert settings.name == "config"
    assert settings.file == tmp_path / "config.toml"
    assert settings.root == tmp_path
    assert settings.input_path == str(tmp_path / "events.jsonl")
    assert settings.output_path == tmp_path / "out"
    assert settings.state_path == tmp_path / "state"
    assert (settings.model.task, settings.model.on_error) == ("binary", "stop")
    source = settings.input
    assert (source.start, source.format, source.shards) == ("earliest", "auto", "auto")
    assert (source.order, source.max_record_bytes, source.fields) == ("name", 1_048_576, None)
    assert settings.output.predictions is settings.output.rejected is settings.output.alarms is True
    state = settings.state
    assert (state.snapshot_events, state.snapshot_seconds) == (1_000_000, 30.0)
    assert (state.keep, state.commit_seconds) == (3, 0.5)
    metrics = settings.metrics
    assert (metrics.names, metrics.window, metrics.fading) == (None, 1_000, 0.999)
    assert settings.drift.options() == {"adwin": {}}
    assert settings.drift.direction == "up"
    replay = settings.replay
    assert (replay.capacity, replay.max_bytes, replay.seed) == (1_000, 16 * 2**20, 0)
    assert settings.kafka == {}


def test_everything_set(read):
    """What a config says is what the settings hold."""
    settings = read(
        'name = "fraud-2.eu_1"',
        MODEL,
        'on_error = "reject"',
        INPUT,
        'start = "latest"\nformat = "csv"\nshards = "partition"\norder = "fair"',
        "max_record_bytes = 1024",
        '[input.fields]\nlabel = "is_fraud"\nid = "tx"\nexclude = ["card"]\ngroup = ["country"]',
        'types = { zip = "string" }',
        '[output]\npath = "/o"\npredictions = false',
        '[state]\npath = "s"\nsnapshot_events = 5\nsnapshot_seconds = 1\nkeep = 1',
        '[metrics]\nnames = ["accuracy", "f1"]\nwindow = 10\nfading = 0.5',
        '[drift]\ndetectors = ["page_hinkley", "adwin"]\ndirection = "both"',
        "[drift.adwin]\ndelta = 0.01\nclock = 1\n[drift.page_hinkley]\nthreshold = 10",
        "[replay]\ncapacity = 0\nseed = 7",
        '[kafka]\n"bootstrap.servers" = "b:9092"\n"fetch.wait.max.ms" = 10',
    )
    assert settings.name == "fraud-2.eu_1"
    assert settings.input.fields == FieldMap(
        label="is_fraud", id="tx", exclude=["card"], group=["country"], types={"zip": "string"}
    )
    assert settings.output_path == Path("/o")
    assert settings.output.predictions is False
    assert settings.metrics.names == ("accuracy", "f1")
    assert settings.drift.options() == {
        "page_hinkley": {"threshold": 10},
        "adwin": {"delta": 0.01, "clock": 1},
    }
    assert settings.state.snapshot_seconds == 1.0
    assert settings.kafka == {"bootstrap.servers": "b:9092", "fetch.wait.max.ms": 10}


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_has_options(read, detector):
    """Each of the engine's detectors can be chosen and given options."""
    settings = read(
        MODEL, INPUT, f'[drift]\ndetectors = ["{detector}"]\n[drift.{detector}]\ndelta = 0.01'
    )
    assert settings.drift.options() == {detector: {"delta": 0.01}}


def test_settings_are_frozen(read):
    """Settings cannot be changed by accident."""
    settings = read(MODEL, INPUT)
    with pytest.raises(AttributeError):
        settings.name = "other"
    with pytest.raises(AttributeError):
        settings.input.path = "other"


@pytest.mark.parametrize("path", ["-", "/data/*.csv", "in/**/day-*.csv", "in [1]/x.csv"])
def test_input_path(read, tmp_path, path):
    """An input path is made absolute as it is, pattern or not; standard input stays."""
    settings = read(MODEL, f'[input]\npath = "{path}"')
    wanted = path if path == "-" or path.startswith("/") else f"{tmp_path}/{path}"
    assert settings.input_path == wanted


def test_config_that_is_a_link(read, tmp_path):
    """Paths are relative to where the config seems to be, not to what it links to."""
    read(MODEL, INPUT, name="real.toml")
    place = tmp_path / "mounted"
    place.mkdir()
    (place / "config.toml").symlink_to(tmp_path / "real.toml")
    settings = load(place / "config.toml")
    assert settings.root == place
    assert settings.name == "config"


def test_relative_config(read, tmp_path, monkeypatch):
    """A config that is named relative to the working directory gives absolute paths."""
    read(MODEL, INPUT)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert load("../config.toml").state_path == tmp_path / "state"


@pytest.mark.parametrize(
    ("start", "seconds"),
    [
        ("1704067200", 1704067200.0),
        ("1.5", 1.5),
        ('"1704067200"', 1704067200.0),
        ('"2024-01-01"', 1704067200.0),
        ("2024-01-01", 1704067200.0),
        ('"2024-01-01T00:00:00"', 1704067200.0),
        ('"2024-01-01T02:00:00+02:00"', 1704067200.0),
        ("2024-01-01T02:00:00+02:00", 1704067200.0),
        ('"2024-01-01T00:00:00Z"', 1704067200.0),
    ],
)
def test_a_time_to_start_at_is_understood_and_refused_for_files(refused, start, seconds):
    """A number or ISO 8601, in UTC where it names no zone, is a time; files have no index by it."""
    text = refused(MODEL, INPUT, f"start = {start}")
    assert text.startswith(f"input.start: found {seconds}")
    assert text.endswith("a file has no index by time")


UNKNOWN = [
    ('modle = "x"', "modle: unknown key; did you mean 'model'? Known keys: name, model, input,"),
    ("zzz = 1", "zzz: unknown key. Known keys: name, model, input, output"),
    (f"{MODEL}taks = 1", "model.taks: unknown key; did you mean 'task'? Known keys: learner, task"),
    (
        f"{MODEL}{INPUT}[input.fields]\nlable = 'x'",
        "input.fields.lable: unknown key; did you mean 'label'? Known keys: id, label, time, key, "
        "weight, source, group, features, exclude, types",
    ),
    (f"{MODEL}{INPUT}[state]\nsnapshot_event = 1", "did you mean 'snapshot_events'?"),
    (f"{MODEL}{INPUT}[drift.adwim]\ndelta = 1", "drift.adwim: unknown key; did you mean 'adwin'?"),
    (
        f"{MODEL}{INPUT}[drift.adwin]\ndelt = 1",
        "drift.adwin.delt: unknown key; did you mean 'delta'? Known keys: delta, clock,",
    ),
    (f"{MODEL}{INPUT}[drift.page_hinkley]\nlambda = 1", "drift.page_hinkley.lambda: unknown key."),
    ("hidden = []", "hidden: unknown key."),
    ("file = 'x'", "file: unknown key."),
]


@pytest.mark.parametrize(("text", "message"), UNKNOWN)
def test_unknown_keys(refused, text, message):
    """An unknown key is refused, with its place and the nearest known one."""
    assert message in refused(text)


WRONG = [
    ("[model]\nlearner = 3", "model.learner: found 3; allowed: 'module:factory'"),
    (
        "[model]\nlearner = 'models'\ntask = 'binary'\n[input]\npath = 'e.jsonl'",
        "model.learner: found 'models'; allowed: 'module:factory'",
    ),
    ("[model]\nlearner = 'models.py:make'", None),
    ("[model]\nlearner = 'my models:make'", "model.learner: found 'my models:make'"),
    ("[model]\ntask = 'binary'", "model.learner: missing; needed: 'module:factory'"),
    ("[model]\nlearner = 'a:b'", "model.task: missing; needed: 'binary' | 'multiclass'"),
    (
        "[model]\nlearner = 'a:b'\ntask = 'binry'",
        "model.task: found 'binry'; did you mean 'binary'? Allowed: 'binary' | 'multiclass' | ",
    ),
    ("model = 3", "model: found 3; allowed: a table with the keys learner, task, on_error"),
    ("", "the file is empty; it needs [model] and [input]"),
    ("# nothing\n", "model: missing; needed: a table with the keys learner, task, on_error"),
    (MODEL, "input: missing; needed: a table with the keys topic, path,"),
    (f"name = 'a b'\n{MODEL}{INPUT}", "name: found 'a b'; allowed: a name of letters"),
    (f"name = ''\n{MODEL}{INPUT}", "name: found ''; allowed: a name of letters"),
    (f'name = "a\\n"\n{MODEL}{INPUT}', "name: found 'a\\n'; allowed: a name of letters"),
    (f"name = '..'\n{MODEL}{INPUT}", "name: found '..'; a name begins with a letter, a digit"),
    (f"name = '-x'\n{MODEL}{INPUT}", "name: found '-x'; a name begins with a letter, a digit"),
    (f"name = '{'n' * 201}'\n{MODEL}{INPUT}", "; a name has at most 200 characters, this one 201"),
    (f"{MODEL}[input]\ntopic = 'a b'\n", "input.topic: found 'a b'; a topic's name is of letters"),
    (f"{MODEL}[input]\ntopic = '..'\n", "input.topic: found '..'; Kafka has no topic of this name"),
    (
        f"{MODEL}{INPUT}[output]\nalarms = '{'t' * 250}'\npredictions = false\nrejected = false",
        "; a topic's name has at most 249 characters, this one 250",
    ),
    (f"{MODEL}{INPUT}[versions]\nkey = '  '", "versions.key: found only blanks; needed: a secret"),
    (f"{MODEL}on_error = 'skip'", "model.on_error: found 'skip'; allowed: 'reject' | 'stop'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_beginnings(refused, read, text, message):
    """What is missing or wrong in [model], or at the top, is named with what is allowed."""
    if message is None:
        read(text, "task = 'binary'", INPUT)  # a module `py` in a package `models`
    else:
        assert message in refused(text)


WRONG_VALUES = [
    ("[input]\npath = 'x'\ntopic = 'y'", "input: found both of topic and path; allowed: exactly"),
    ("[input]\nformat = 'csv'", "input: found neither of topic and path; allowed: exactly one"),
    (
        "[input]\ntopic = 'x'",
        'kafka."bootstrap.servers": missing; needed: the brokers, as host:port,host:port',
    ),
    ("[input]\npath = ''", "input.path: found ''; allowed: a string, not empty"),
    ("[input]\npath = ['a']", "input.path: found ['a']; allowed: a string, not empty"),
    ("start = 'erliest'", "input.start: found 'erliest'; did you mean 'earliest'? Allowed: "),
    ("start = 'now'", "input.start: found 'now'; allowed: 'earliest' | 'latest' | a time"),
    ("start = nan", "input.start: found nan; allowed"),
    ("start = true", "input.start: found true; allowed"),
    ("start = 07:30:00", "input.start: found 07:30:00; allowed"),
    ("start = []", "input.start: found []; allowed"),
    ("format = 'cvs'", "input.format: found 'cvs'; did you mean 'csv'? Allowed: 'arrow' | "),
    ("shards = 2", "input.shards: found 2; allowed: 1 | 'auto' | 'partition'"),
    ("shards = true", "input.shards: found true; allowed: 1 | 'auto' | 'partition'"),
    ("order = 1", "input.order: found 1; allowed: 'fair' | 'name'"),
    ("max_record_bytes = 1023", "input.max_record_bytes: found 1023; allowed: a whole number from"),
    ("max_record_bytes = 1e6", "input.max_record_bytes: found 1000000.0; allowed: a whole number"),
    ("fields = 1", "input.fields: found 1; allowed: a table with the keys id, label"),
    ("[input.fields]\nid = 'x'", "input.fields.label: missing; needed: the name of the field"),
    ("[input.fields]\nlabel = 3", "input.fields.label: found 3; allowed: a string"),
    ("[input.fields]\nexclude = 'x'", "input.fields.exclude: found 'x'; allowed: a list, each of"),
    ("[input.fields]\ngroup = ['a', 3]", "input.fields.group[1]: found 3; allowed: a string"),
    (
        "[input.fields]\nlabel = 'y'\nexclude = ['a']\nfeatures = ['b']",
        "input.fields: give either features or exclude, not both",
    ),
    (
        "[input.fields]\ntypes = { a = 'nmber' }",
        "input.fields.types.a: found 'nmber'; did you mean 'number'? Allowed: 'bool' | 'number' | ",
    ),
    (
        "[output]\npredictions = 'topic'",
        "output.rejected: it goes to a file, while predictions go to a topic, and both cannot be "
        "committed in one piece; allowed: a topic, or false",
    ),
    ("[output]\nalarms = 'x'", "output.predictions: it goes to a file, while alarms go to a topic"),
    (
        "[output]\npredictions = false\nrejected = false\nalarms = 'x'",
        'kafka."bootstrap.servers": missing',
    ),
    ("[output]\njournal = 'x'", "output.journal: no output is a topic; leave it out"),
    ("[output]\nrejected = 1", "output.rejected: found 1; allowed: true | false or a string"),
    ("[output]\npath = '.'", None),
    ("[state]\nsnapshot_events = 0", "state.snapshot_events: found 0; allowed: a whole number"),
    ("[state]\nsnapshot_seconds = 0", "state.snapshot_seconds: found 0; allowed: a number > 0 and"),
    ("[state]\nsnapshot_seconds = inf", "state.snapshot_seconds: found inf; allowed: a number"),
    ("[state]\ncommit_seconds = nan", "state.commit_seconds: found nan; allowed: a number > 0"),
    ("[state]\ncommit_seconds = '1'", "state.commit_seconds: found '1'; allowed: a number > 0"),
    ("[state]\nkeep = -1", "state.keep: found -1; allowed: a whole number from 1 to 2147483647"),
    ("[metrics]\nwindow = 0", "metrics.window: found 0; allowed: a whole number from 1 to"),
    ("[output]\nshare = 0", "output.share: found 0; allowed: a number > 0 and <= 1"),
    ("[output]\nshare = 1.1", "output.share: found 1.1; allowed: a number > 0 and <= 1"),
    (
        '[output]\nonly = "labelled"',
        "output.only: found 'labelled'; did you mean 'unlabelled'? Allowed: 'unlabelled'",
    ),
    ("[metrics]\nfading = 1", "metrics.fading: found 1; allowed: a number >= 0.001 and < 1"),
    ("[metrics]\nfading = 0.0", "metrics.fading: found 0.0; allowed: a number >= 0.001 and < 1"),
    (
        "[metrics]\nnames = ['acuracy']",
        "metrics.names[0]: found 'acuracy'; did you mean 'accuracy'? Allowed: accuracy | ",
    ),
    ("[metrics]\nnames = ['accuracy', 'mae']", "metrics.names[1]: found 'mae'; allowed: accuracy"),
    (
        "[drift]\ndetectors = ['adwn']",
        "drift.detectors[0]: found 'adwn'; did you mean 'adwin'? Allowed: 'adwin' | 'page_hinkley'",
    ),
    ("[drift]\ndetectors = ['adwin', 'adwin']", "drift.detectors: found a detector twice"),
    ("[drift]\ndirection = 'down'", "drift.direction: found 'down'; allowed: 'both' | 'up'"),
    ("[drift.adwin]\ndelta = 'x'", "drift.adwin.delta: found 'x'; allowed: a number"),
    ("[drift.adwin]\ndelta = 1.5", "drift.adwin.delta: found 1.5; allowed: a number > 0 and <= 1"),
    ("[drift.adwin]\ndelta = nan", "drift.adwin.delta: found nan; allowed: a number > 0 and <= 1"),
    ("[drift.adwin]\nclock = 0", "drift.adwin.clock: found 0; allowed: a whole number from 1 to"),
    ("[drift.adwin]\nclock = 1.5", "drift.adwin.clock: found 1.5; allowed: a whole number from 1"),
    ("[replay]\ncapacity = -1", "replay.capacity: found -1; allowed: a whole number from 0 to"),
    ("[replay]\nseed = 1.5", "replay.seed: found 1.5; allowed: a whole number from 0 to"),
    ("[kafka]\n'a.b' = [1]", "kafka.a.b: found [1]; allowed: a string or true | false or a number"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_VALUES)
def test_wrong_values(refused, read, text, message):
    """A value of the wrong type or out of range is shown with what is allowed."""
    parts = [MODEL, text] if text.startswith("[input]\n") else [MODEL, INPUT, text]
    if message is None:
        read(*parts)
    else:
        found = refused(*parts)
        assert message in found


def test_name_from_a_file_that_has_none(refused):
    """A file's name that cannot be the model's name is refused with the remedy."""
    assert refused(MODEL, INPUT, name="my config.toml").startswith(
        "name: missing, and the file's, 'my config', is none; allowed: a name of letters"
    )


def test_toml_errors(refused):
    """A mistake in the TOML itself is found by line and column."""
    assert refused(MODEL, "a = \n").startswith("line 5, column 5: no TOML: Invalid value")
    assert refused("a = 1\na = 2").startswith("line 2, column 6: no TOML: Cannot overwrite")
    assert refused("a = [1,\n2").startswith("line 2, column 2: no TOML: Unclosed array")
    assert "no TOML" in refused("[" * 100_000) or "nested too deeply" in refused("[" * 100_000)


def test_files_that_cannot_be_read(tmp_path):
    """A missing file, a folder, and one that is not UTF-8 are named as such."""
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=r"missing\.toml: there is no such file"):
        load(missing)
    with pytest.raises(ConfigError, match="is a folder; give the TOML file itself"):
        load(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / ("x" * 300))
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"name = 'caf\xe9'")
    with pytest.raises(ConfigError, match=r"not UTF-8 \(at byte 11\); save it as UTF-8"):
        load(bad)


def test_byte_order_mark(tmp_path):
    """A byte order mark, which some editors write, does no harm."""
    file = tmp_path / "bom.toml"
    file.write_bytes(codecs.BOM_UTF8 + (MODEL + INPUT).encode())
    assert load(file).name == "bom"


def test_variables(read, monkeypatch):
    """Variables are put in everywhere: in tables and lists, within text, several in one."""
    monkeypatch.setenv("MS_A", "a")
    monkeypatch.setenv("MS_B", "b c")
    settings = read(
        MODEL,
        '[input]\npath = "in/${MS_A}-${MS_B}.csv"',
        '[input.fields]\nlabel = "${MS_A}"\nexclude = ["x", "${MS_B}"]',
        '[kafka]\n"bootstrap.servers" = "${MS_A}:9092"',
    )
    assert settings.input.path == "in/a-b c.csv"
    assert settings.input.fields == FieldMap(label="a", exclude=["x", "b c"])
    assert settings.kafka == {"bootstrap.servers": "a:9092"}


def test_variable_defaults(read, monkeypatch):
    """A default stands in for a variable that is unset or empty, and may be empty itself."""
    monkeypatch.delenv("MS_UNSET", raising=False)
    monkeypatch.setenv("MS_EMPTY", "")
    monkeypatch.setenv("MS_SET", "set")
    settings = read(
        MODEL,
        '[input]\npath = "${MS_UNSET:-x:-y}${MS_EMPTY:-z}${MS_SET:-w}${MS_UNSET:-}${MS_EMPTY}"',
    )
    assert settings.input.path == "x:-yzset"


def test_variables_as_numbers(read, monkeypatch):
    """A number, a truth value or a choice may come from the environment."""
    monkeypatch.setenv("MS_N", "77")
    monkeypatch.setenv("MS_NO", "false")
    settings = read(
        MODEL,
        INPUT,
        'shards = "${MS_SHARDS:-1}"\nmax_record_bytes = "${MS_BYTES:-4096}"',
        '[output]\npredictions = "${MS_NO}"',
        '[state]\nsnapshot_events = "${MS_N}"\nsnapshot_seconds = "${MS_N}.5"',
        '[kafka]\nport = "${MS_N}"',
    )
    assert settings.input.shards == 1
    assert settings.input.max_record_bytes == 4096
    assert settings.output.predictions is False
    assert (settings.state.snapshot_events, settings.state.snapshot_seconds) == (77, 77.5)
    assert settings.kafka == {"port": "77"}  # librdkafka takes text


def test_escaped_variables(read, monkeypatch):
    """$${ stands for ${, what is put in is not expanded again, and a lone $ is nothing special."""
    monkeypatch.setenv("MS_A", "${MS_B}")
    settings = read(MODEL, '[input]\npath = "$${MS_A}${MS_A}$5$$"')
    assert settings.input.path == "${MS_A}${MS_B}$5$$"
    assert settings.hidden == {"input.path"}


def test_variable_errors(refused, monkeypatch):
    """A variable that is not set, or is none, is named with its key."""
    monkeypatch.delenv("MS_UNSET", raising=False)
    assert refused(MODEL, '[input]\npath = "${MS_UNSET}"') == (
        "input.path: the environment variable MS_UNSET is not set; set it, or give a default: "
        "${MS_UNSET:-...}"
    )
    assert refused(MODEL, INPUT, '[input.fields]\ngroup = ["a", "${MS_UNSET}"]').startswith(
        "input.fields.group[1]: the environment variable MS_UNSET is not set"
    )
    for bad in ("${", "${}", "${A", "${A-b}", "${1}", "${A:-${B}}", "${A B}", "${Ä}"):
        message = refused(MODEL, f'[input]\npath = "{bad}"')
        assert message.startswith("input.path: '${' begins no variable here"), bad


SECRET = "hunter2"  # noqa: S105 that is the point


@pytest.mark.parametrize(
    "text",
    [
        "[input]\npath = ['${MS_SECRET}']",
        "start = '${MS_SECRET}'",
        "format = '${MS_SECRET}'",
        "max_record_bytes = '${MS_SECRET}'",
        "[input.fields]\nlabel = '${MS_SECRET}'\nexclude = ['${MS_SECRET}']",
        "[input.fields]\nlabel = 'y'\ntypes = { a = '${MS_SECRET}' }",
        "[metrics]\nnames = ['${MS_SECRET}']",
        "[drift]\ndetectors = ['adwin', '${MS_SECRET}']",
        "[drift]\ndirection = '${MS_SECRET}'",
        "[output]\npredictions = '${MS_SECRET}'",
        "[output]\npath = ''\npredictions = 'x${MS_SECRET}y'",
        "[kafka]\n'sasl.password' = ['hunter2']",
        "[kafka]\nsasl.password = ['hunter2']",
    ],
)
def test_messages_keep_secrets(refused, monkeypatch, text):
    """No message shows what came from the environment, or a secret of Kafka's."""
    monkeypatch.setenv("MS_SECRET", SECRET)
    parts = [MODEL, text] if text.startswith("[input]\n") else [MODEL, INPUT, text]
    assert SECRET not in refused(*parts)


def test_repr_keeps_secrets(read, monkeypatch):
    """Settings show three stars in the place of secrets, and what is no secret as it is."""
    monkeypatch.setenv("MS_SECRET", SECRET)
    monkeypatch.setenv("MS_N", "77123")
    settings = read(
        'name = "${MS_SECRET}"',
        MODEL,
        '[input]\npath = "${MS_SECRET}.csv"',
        '[input.fields]\nlabel = "${MS_SECRET}"\nexclude = ["kept", "${MS_SECRET}x"]',
        '[state]\nsnapshot_events = "${MS_N}"',
        '[kafka]\nsasl.password = "hunter2"\n"ssl.key.pem" = "hunter2"\n"TOKEN" = 77123',
        '"bootstrap.servers" = "${MS_SECRET}:9092"\ncompression.type = "lz4"',
    )
    for text in (repr(settings), str(settings), f"{settings}"):
        assert SECRET not in text
        assert "77123" not in text
        assert "kept" in text
        assert "lz4" in text
        assert "'sasl.password': '***'" in text
    assert settings.kafka["sasl.password"] == SECRET
    assert settings.kafka["bootstrap.servers"] == f"{SECRET}:9092"
    assert settings.name == SECRET


def test_kafka_keys_without_quotes(read):
    """Kafka's dotted names need no quotes, though TOML takes them for nested tables."""
    settings = read(MODEL, INPUT, "[kafka]\nbootstrap.servers = 'b:1'\nfetch.wait.max.ms = 10")
    assert settings.kafka == {"bootstrap.servers": "b:1", "fetch.wait.max.ms": 10}


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("out", "out"),
        ("out/", "out"),
        ("out/*.jsonl", "out"),
        ("*/*.jsonl", "out"),
        ("**/*.jsonl", "out"),
        ("**", "out"),
        ("out/alarms.jsonl", "out"),
        (".", "."),
        ("*.jsonl", "."),
    ],
)
def test_input_that_would_read_the_output(refused, path, output):
    """A stream that would feed itself is refused."""
    message = refused(MODEL, f'[input]\npath = "{path}"\n[output]\npath = "{output}"')
    assert message.startswith("input.path: takes in what is written to output.path")


@pytest.mark.parametrize("path", [".", "*.jsonl", "in/**/*.jsonl", "out/events.jsonl", "-"])
def test_input_beside_the_output(read, path):
    """Input that lies near the output is fine."""
    assert read(MODEL, f'[input]\npath = "{path}"').input.path == path


def test_decoding(read):
    """The fingerprint of decoding holds what changes events, and nothing else."""
    one = read(MODEL, INPUT, '[input.fields]\nlabel = "y"\ntypes = { zip = "string" }')
    assert json.loads(msgspec.json.encode(one.decoding())) == one.decoding()
    other = read(
        'name = "x"',
        MODEL,
        '[input]\npath = "moved.jsonl"\norder = "fair"',
        '[input.fields]\nlabel = "y"\ntypes = { zip = "string" }',
        "[state]\nkeep = 9",
    )
    assert one.decoding() == other.decoding()
    changed = [
        read(MODEL, INPUT),
        read(MODEL, INPUT, '[input.fields]\nlabel = "z"'),
        read(MODEL, INPUT, "max_record_bytes = 2048"),
        read(MODEL, INPUT, 'format = "csv"'),
        read(MODEL.replace("binary", "multiclass"), INPUT),
    ]
    fingerprints = [settings.decoding() for settings in (one, *changed)]
    assert all(a != b for i, a in enumerate(fingerprints) for b in fingerprints[:i])


OPTIONS = [
    ("logistic", "binary", "optimizer = 'adam'\nrate = 0.05\nscale = false", None),
    ("linear", "regression", "l2 = 1", None),
    ("logistic", "binary", "threshold = 0.2\nclass_weights = { true = 5, false = 0.5 }", None),
    ("linear", "regression", "threshold = 0.2", "model.options.threshold: unknown key"),
    ("logistc", "binary", "", "found 'logistc'; allowed: 'module:factory', as in 'models:make', "
     "or built-in: logistic, linear"),
    ("logistic", "regression", "", "model.task: found 'regression'; allowed: 'binary', which "
     "logistic is for"),
    ("logistic", "binary", "optimiser = 'adam'", "model.options.optimiser: unknown key; did you "
     "mean 'optimizer'? Known keys: optimizer, rate"),
    ("models:make", "binary", "rate = 1", "model.options: only built-in learners have options"),
]  # fmt: skip


@pytest.mark.parametrize(("learner", "task", "options", "message"), OPTIONS)
def test_built_in_learners_are_checked_with_their_options(
    refused, read, learner, task, options, message
):
    """A name, the task it is for, and options by name."""
    text = f"[model]\nlearner = '{learner}'\ntask = '{task}'\n[model.options]\n{options}\n{INPUT}"
    if message is None:
        assert read(text).model.learner == learner
    else:
        assert message in refused(text)


def test_a_schema_with_more_numbers_than_the_learner_takes(refused):
    """Both are known, so it is said before anything runs."""
    text = "[model]\nlearner = 'linear'\ntask = 'regression'\noptions.features = 1\n"
    said = refused(text, INPUT, "[features]\na = 'number'\nb = 'number'")
    assert said == "features: found 2 numbers; model.options.features allows 1"


def test_an_option_out_of_range_is_named(read):
    """By the learner itself, when it is made."""
    text = f"[model]\nlearner = 'logistic'\ntask = 'binary'\noptions.rate = -1\n{INPUT}"
    with pytest.raises(
        ConfigError, match=r"model.options: rate must be from 1e-12 to 1000000.0, got -1"
    ):
        make_model(read(text))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("class_weights = 2", "class_weights must be a table from class to factor, got 2"),
        ("class_weights = { yes = 2 }", "class_weights must be of the classes false, true, got"),
        ("class_weights = { true = -2 }", "class_weights.true must be from 1e-06 to"),
        ("threshold = { true = 0.5 }", "threshold must be a number, got {'true': 0.5}"),
        ("threshold = 50", "threshold must be from 0.0 to 1.0, got 50"),
    ],
)  # fmt: skip
def test_a_decision_that_cannot_be_is_named(read, option, message):
    """Threshold and class weights, with what is allowed."""
    text = f"[model]\nlearner = 'logistic'\ntask = 'binary'\noptions.{option}\n{INPUT}"
    with pytest.raises(ConfigError) as caught:
        make_model(read(text))
    assert f"model.options: {message}" in str(caught.value)


FEATURES = [
    ("", "a = 'number'\nb = 'category'", None),
    ("", "a = 'numeric'", "features.a: found 'numeric'"),
    ("label = 'y'\nfeatures = ['a']", "a = 'number'", "input.fields.features: [features] says"),
    ("label = 'y'\ntypes = {a = 'number'}", "a = 'number'", "input.fields.types: [features] says"),
    ("label = 'y'", "y = 'number'", "features.y: [input.fields] has another use for it"),
    ("label = 'y'\nexclude = ['a']", "a = 'number'", "features.a: [input.fields] has another use"),
]


@pytest.mark.parametrize(("fields", "features", "message"), FEATURES)
def test_a_schema_of_features(refused, read, fields, features, message):
    """What each feature is, once, and nothing that is used for something else."""
    fields = f"[input.fields]\n{fields}" if fields else ""
    parts = (MODEL, INPUT, fields, f"[features]\n{features}")
    if message is None:
        settings = read(*parts)
        assert settings.features == {"a": "number", "b": "category"}
        assert settings.decoding()["features"] == settings.features
    else:
        assert message in refused(*parts)


def test_how_values_are_written(read, refused):
    """Missing values, decimal sign, unit of times and kind of labels; wrong ones are named."""
    fields = '[input.fields]\nlabel = "y"\n'
    multiclass = MODEL.replace("binary", "multiclass")
    settings = read(
        multiclass + 'labels = "text"\n', INPUT, fields,
        'missing = ["NA", -999, 0.5]\ndecimal = ","\ntime_unit = "ms"\n',
    )  # fmt: skip
    found = settings.input.fields
    assert (found.missing, found.decimal, found.time_unit) == (["NA", -999, 0.5], ",", "ms")
    assert settings.model.labels == "text"
    assert settings.decoding()["labels"] == "text"
    assert settings.decoding()["fields"]["missing"] == ["NA", -999, 0.5]
    plain = read(MODEL, INPUT, fields).decoding()
    assert not {"missing", "decimal", "time_unit"} & plain["fields"].keys(), "old state lacks them"
    assert "labels" not in plain
    for line, message in (
        ('decimal = ";"', "input.fields.decimal: found ';'; allowed: ',' | '.'"),
        ('time_unit = "m"', "input.fields.time_unit: found 'm'"),
        ("missing = [true]", "input.fields.missing[0]: found true; allowed: a string or a number"),
    ):
        assert refused(MODEL, INPUT, fields + line).startswith(message)
    assert refused(MODEL + 'labels = "text"', INPUT) == (
        "model.labels: found 'text' with task 'binary'; allowed: with 'multiclass' only"
    )
    assert refused(multiclass + 'labels = "float"', INPUT).startswith("model.labels: found 'float'")
