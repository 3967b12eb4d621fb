"""What `midstream init` writes fits the file that it looked at, loads, and learns."""

import csv
import gzip
import json
import random
import re
import sys

import pytest
from river import datasets

from midstream.connectors.decode.decoder import make_decoder
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.files.discovery import FilePartition, discover
from midstream.connectors.input import InputError
from midstream.engine.drift.monitor import drift_options
from midstream.engine.training.trainer import Trainer
from midstream.flows.config import factory
from midstream.flows.config.factory import make_model, model_modules
from midstream.flows.config.tables import ConfigError
from midstream.flows.inputs.reading import open_reader
from midstream.flows.loading import load
from midstream.flows.offline.evaluation import evaluate
from midstream.flows.offline.starter import Starter, write_starter


@pytest.fixture(autouse=True)
def own_imports(tmp_path, monkeypatch):
    """Leave sys.path and the modules as they were."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(factory, "_entered", [])
    sys.modules.pop("models", None)  # another test's, where one process runs them all
    yield
    sys.modules.pop("models", None)


MISSING = ["NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "-", "--", "?"]


def write_csv(file, rows: list[dict]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_lines(file, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def learn(starter: Starter, n: int = 200) -> Trainer:
    """Load what was written, and let its model learn the first `n` events of its input."""
    settings = load(starter.config)
    modules = model_modules(settings)
    trainer = Trainer(make_model(settings), task=settings.model.task, modules=modules)
    [(name, path, format_)] = discover(settings.input.path, settings.root)
    partition = FilePartition(path, name, format=format_)
    block = partition.read(10 * 2**20, final=True)
    decoder = make_decoder(settings.model.task, settings.input.fields, partition.csv_options)
    decoded = decoder.decode(block)
    partition.close()
    assert not decoded.rejected, f"rejected: {decoded.rejected[0]}"
    batch = decoded.batch[:n]
    assert len(batch) == n
    trainer.step(batch)
    assert trainer.learned == n
    copy = Trainer.from_state(trainer.state(), modules)
    assert copy.digest() == trainer.digest()
    return trainer


def transactions(n: int = 300) -> list[dict]:
    draw = random.Random(7)
    return [
        {
            "tx_id": f"t{i}",
            "created_at": f"2024-01-{1 + i // 24 % 28:02}T{i % 24:02}:00:00Z",
            "customer_id": draw.randrange(10**6),
            "branch_id": draw.randrange(5),
            "zip": f"{draw.randrange(40):05}",
            "country": draw.choice(["DE", "FR", "US"]),
            "amount": round(draw.expovariate(0.1), 2),
            "comment": f"thank you, number {i}",
            "is_weekend": draw.choice(["True", "False"]),
            "is_fraud": draw.randrange(2),
        }
        for i in range(n)
    ]


def test_flat_csv(tmp_path):
    """Of a CSV file label, id, time, text and what to leave out are found."""
    data = tmp_path / "trans actions.csv"
    write_csv(data, transactions())
    starter = write_starter(tmp_path / "project" / "new", data)
    settings = load(starter.config)
    assert settings.name == "trans-actions"
    assert settings.input.path == "../../trans actions.csv"
    assert settings.model.task == "binary"
    assert settings.input.fields == FieldMap(
        label="is_fraud",
        id="tx_id",
        time="created_at",
        exclude=["customer_id", "comment"],
        types={
            "branch_id": "string", "zip": "string", "country": "string", "amount": "number",
        },
        missing=MISSING,
    )  # fmt: skip
    found = starter.survey
    assert (found.what, found.records, found.label_is_guess) == ("CSV", 300, False)
    assert found.numbers == ["amount", "is_weekend"]
    assert found.texts == ["branch_id", "zip", "country"]
    learn(starter)
    report = "\n".join(starter.report())
    assert "label: is_fraud; task: binary" in report
    assert "left out: customer_id, which identifies something" in report
    assert f"next: midstream check {starter.config}" in report


def test_flat_json(tmp_path):
    """Flat JSON is told from our own form; what is no single value is left out."""
    draw = random.Random(1)
    rows = [
        {
            "uuid": f"u{i}",
            "ts": 1.7e9 + i,
            "tags": ["a"],
            "x": draw.random(),
            "kind": draw.choice("abc"),
            "outcome": draw.choice(["won", "lost", "drawn"]),
            **({"sometimes": i} if i % 2 else {}),
        }
        for i in range(300)
    ]
    data = tmp_path / "flat.jsonl"
    write_lines(data, rows)
    starter = write_starter(tmp_path, data)
    settings = load(starter.config)
    assert settings.input.path == "flat.jsonl"
    assert settings.model.task == "multiclass"
    assert settings.input.fields == FieldMap(
        label="outcome", id="uuid", time="ts", exclude=["tags"], missing=MISSING
    )
    assert learn(starter).task == "multiclass"


@pytest.mark.parametrize(
    ("label", "task"),
    [
        (lambda i: i % 3 == 0, "binary"),
        (lambda i: "abc"[i % 3], "multiclass"),
        (lambda i: 1e6 + i / 7, "regression"),
    ],
)
def test_own_form(tmp_path, label, task):
    """Events in our own form need no fields; the label tells the task."""
    rows = [
        {
            "id": str(i),
            "x": {"a": i / 7, "b": None, "c": "xyz"[i % 3], "d": f"text {i}"},
            "y": label(i),
        }
        for i in range(250)
    ]
    data = tmp_path / "events.ndjson"
    write_lines(data, rows)
    starter = write_starter(tmp_path / "out", data)
    settings = load(starter.config)
    assert settings.input.fields is None
    assert settings.model.task == task
    assert starter.survey.what == "events"
    learn(starter)
    text = starter.models.read_text()
    assert 'Discard("d")' in text, "text that is always new would be a feature each"


def test_gzip(tmp_path):
    """A compressed file is looked into as a plain one."""
    plain = tmp_path / "t.csv"
    write_csv(plain, transactions())
    data = tmp_path / "day.csv.gz"
    data.write_bytes(gzip.compress(plain.read_bytes()))
    starter = write_starter(tmp_path / "project", data)
    assert load(starter.config).name == "day"
    learn(starter)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_phishing(tmp_path, form):
    """River's Phishing data, written out, is learned by what is written for it."""
    rows = [{**x, "is_phishing": y} for x, y in datasets.Phishing()]
    data = tmp_path / f"phishing.{form}"
    (write_csv if form == "csv" else write_lines)(data, rows)
    starter = write_starter(tmp_path, data)
    found = starter.survey
    assert (found.label, found.task, found.label_is_guess) == ("is_phishing", "binary", False)
    assert found.left_out == {}
    assert len(found.numbers) == 9
    trainer = learn(starter, 1_250)
    assert trainer.metrics["accuracy"] > 0.85


LABELS = [
    ({"target": lambda i: i % 2 == 0}, "target", "binary", False),
    ({"Class": lambda i: "ab"[i % 2]}, "Class", "multiclass", False),
    ({"y": lambda i: i % 4}, "y", "multiclass", False),
    ({"y": lambda i: i % 4 + 0.5}, "y", "regression", False),
    ({"y": lambda i: i * 3}, "y", "regression", False),
    ({"hasChurned": lambda i: i % 2}, "hasChurned", "binary", False),
    ({"fraud": lambda _: 0}, "fraud", "binary", False),
    ({"is_new": lambda i: i % 2, "late": lambda i: i}, "is_new", "binary", True),
    ({"group": lambda i: "abc"[i % 3]}, "group", "multiclass", True),
    ({"price": lambda i: i / 3}, "price", "regression", True),
    ({"label": lambda i: i % 2, "target": lambda i: i % 3}, "target", "multiclass", True),
    ({"flag": lambda i: i % 2, "note": lambda i: f"n{i}"}, "flag", "binary", True),
    ({"stars": lambda i: f"{i % 5:02}"}, "stars", "multiclass", True),
]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("case", LABELS, ids=lambda case: "-".join(case[0]))
def test_labels(tmp_path, form, case):
    """The label is found by its name, else guessed and called a guess; its values tell the task."""
    columns, label, task, guess = case
    rows = [{"a": i % 17, **{k: f(i) for k, f in columns.items()}} for i in range(200)]
    data = tmp_path / f"d.{form}"
    (write_csv if form == "csv" else write_lines)(data, rows)
    starter = write_starter(tmp_path, data)
    found = starter.survey
    assert (found.label, found.task, found.label_is_guess) == (label, task, guess)
    assert ("A GUESS" in starter.config.read_text()) is guess
    assert any("a guess, please check it" in line for line in starter.report()) is guess
    learn(starter)


def test_labels_with_decimals(tmp_path):
    """Classes that are partly decimal numbers are read as text, which labels have to be."""
    data = tmp_path / "d.csv"
    write_csv(data, [{"a": i % 7, "y": ("1.5", "two")[i % 2]} for i in range(200)])
    starter = write_starter(tmp_path, data)
    assert load(starter.config).input.fields.types == {"a": "number", "y": "string"}
    learn(starter)


def test_columns_that_only_look_like_numbers(tmp_path):
    """Leading zeros, telephone numbers and very long numbers are read as text."""
    rows = [
        {
            "zip": f"{i % 9:03}",
            "tel": f"+49151000{i % 9}",
            "card": 10**19 + i % 9,
            "n": i,
            "y": i % 2,
        }
        for i in range(200)
    ]
    data = tmp_path / "d.csv"
    write_csv(data, rows)
    starter = write_starter(tmp_path, data)
    types = load(starter.config).input.fields.types
    assert types == {"zip": "string", "tel": "string", "card": "string", "n": "number"}
    learn(starter)


def test_times_and_ids(tmp_path):
    """One time and one id are used; further ones are no features, and small numbers no times."""
    rows = [
        {
            "": i,
            "order_id": f"o{i}",
            "id": 1000 + i,
            "date": f"2024-02-{1 + i % 28:02}",
            "timestamp": 1_700_000_000 + i,
            "sent_at": 1_700_000_000_000 + i,
            "time": i % 24,
            "y": i % 2,
        }
        for i in range(200)
    ]
    data = tmp_path / "d.csv"
    write_csv(data, rows)
    starter = write_starter(tmp_path, data)
    fields = load(starter.config).input.fields
    assert (fields.id, fields.time) == ("id", "timestamp")
    assert fields.exclude == ["", "order_id", "date", "sent_at"]
    assert starter.survey.numbers == ["time"]
    learn(starter)


def test_names_that_need_quoting(tmp_path):
    """Names of fields and files survive, whatever is in them."""
    names = [
        'a "quoted" one',
        "back\\slash",
        "${HOME}",
        "ünï",
        "tab\there",
        "new\nline",
        "#",
        "\x7f",
    ]
    rows = [{**dict.fromkeys(names, i % 5), "${y}": i % 2} for i in range(200)]
    for row in rows:
        row["note '\"${X}"] = [1]
    folder = tmp_path / "in ${PATH} [1]"
    folder.mkdir()
    data = folder / "ä'b\"c.jsonl"
    write_lines(data, rows)
    starter = write_starter(tmp_path / "project", data)
    fields = load(starter.config).input.fields
    assert fields.exclude == ["note '\"${X}"]
    assert fields.label in rows[0]
    learn(starter)


def test_text_only(tmp_path):
    """Without a number there is no scaler, and it learns."""
    data = tmp_path / "d.csv"
    write_csv(data, [{"a": "xyz"[i % 3], "label": i % 2} for i in range(200)])
    starter = write_starter(tmp_path, data)
    assert "StandardScaler" not in starter.models.read_text()
    learn(starter)


def test_records_that_would_be_rejected(tmp_path):
    """Records of the sample that cannot be learned are counted, and the first is named."""
    data = tmp_path / "d.csv"
    data.write_text("a,y\n" + "1,0\n2,1\n" * 50 + "inf,1\n3\n")
    starter = write_starter(tmp_path, data)
    [note] = starter.survey.notes
    assert note.startswith("2 of 102 records would be rejected; line 102 a: number is too large or")


def test_sample_is_bounded(tmp_path):
    """Of a long file only the beginning is read."""
    data = tmp_path / "d.csv"
    data.write_text("a,y\n" + "1,0\n2,1\n" * 100_000)
    assert 100_000 <= write_starter(tmp_path, data).survey.records < 150_000


def test_without_a_file(tmp_path):
    """Without a file there is a config for events in our own form, and a model for any of them."""
    starter = write_starter(tmp_path / "fraud")
    settings = load(starter.config)
    assert settings.name == "fraud"
    assert settings.input.fields is None
    assert settings.input_path == str(tmp_path / "fraud" / "events.jsonl")
    assert "events.jsonl" in "\n".join(starter.report())
    rows = [{"x": {"a": i, "b": "uv"[i % 2]}, "y": i % 2 == 0} for i in range(200)]
    write_lines(tmp_path / "fraud" / "events.jsonl", rows)
    learn(starter)


@pytest.mark.parametrize("with_file", [False, True])
def test_defaults_that_are_shown_are_the_defaults(tmp_path, with_file):
    """Each default that the config shows, uncommented, changes nothing."""
    data = tmp_path / "d.csv"
    write_csv(data, transactions())
    config = write_starter(tmp_path, data if with_file else None).config
    before = load(config)
    text = config.read_text()
    shown = re.findall(r"^# (\w+) = ", text, flags=re.MULTILINE)
    assert len(shown) > 15
    config.write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    after = load(config)
    for name in ("adwin", "page_hinkley"):
        options = getattr(after.drift, name)
        assert options
        assert options.items() <= drift_options(name).items()
    assert after.drift.detectors == before.drift.detectors
    for section in ("name", "model", "input", "output", "state", "metrics", "replay", "kafka"):
        assert getattr(after, section) == getattr(before, section), section


@pytest.mark.parametrize("own", [False, True])
def test_a_schema_of_the_features_is_offered(tmp_path, own):
    """Uncommented, it takes in every event of the file that it was made from."""
    rng = random.Random(1)
    rows = [
        {"amount": rng.gauss(0, 1), 'a "b"': rng.randrange(9), "city": rng.choice(["Rome", "Oslo"])}
        for _ in range(200)
    ]
    events = [
        {"x": x, "y": i % 2 == 0} if own else x | {"label": i % 2} for i, x in enumerate(rows)
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(event) + "\n" for event in events))
    config = write_starter(tmp_path, data).config
    assert load(config).features == {}
    text = config.read_text()
    assert text.count("#[features]") == 1
    head, tail = text.split("#[features]")
    config.write_text(head + "[features]" + tail.replace("\n#", "\n"))
    settings = load(config)
    assert settings.features == {"amount": "number", 'a "b"': "number", "city": "category"}
    with open_reader(settings) as reader:
        decoded = [d for _, d in reader]
    assert sum(len(d.batch) for d in decoded) == 200
    assert all(d.batch.columns is not None for d in decoded)


RARE = {  # how a file begins, and what comes in it only after 12,000 rows
    "NA": ("a,b,label", lambda i: f"{i % 70},{i % 9000},{i % 2}", lambda i: f"N/A,{i},1"),
    "text": ("a,b,label", lambda i: f"{i % 70},{i % 90},{i % 2}", lambda i: f"x{i % 3},{i},1"),
    "zip": ("zip,b,label", lambda i: f"1{i % 7:04},{i},{i % 2}", lambda i: f"0{i % 7:04},{i},1"),
    "classes": ("a,b,class", lambda i: f"{i % 7},{i % 99},{i % 2}", lambda i: f"1,{i % 99},2"),
    "words": ("a,b,class", lambda i: f"{i % 7},{i % 99},{i % 5}", lambda i: f"1,{i % 99},other"),
    "halves": ("a,b,price", lambda i: f"{i % 7},{i % 99},{i % 7}", lambda i: f"1,{i % 99},2.5"),
    "comma": ("a;b;price", lambda i: f"{i % 7};{i % 99};{i}", lambda i: f"1,5;{i % 99};2,5"),
    "bool": ("a,b,label", lambda i: f"{i % 7},true,{i % 2}", lambda i: "1,False,1"),
}


@pytest.mark.parametrize("case", RARE)
def test_what_comes_late_in_a_file_is_learned_too(tmp_path, case):
    """Whatever is rare: the project runs through, and rejects nothing."""
    header, usual, rare = RARE[case]
    rows = [rare(i) if i > 12_000 and i % 10 == 0 else usual(i) for i in range(13_000)]
    (tmp_path / "d.csv").write_text("\n".join([header, *rows, ""]))
    starter = write_starter(tmp_path, tmp_path / "d.csv")
    settings = load(starter.config)
    summary, _ = evaluate(settings)
    assert (summary.learned, summary.rejected) == (13_000, 0)
    for note in starter.survey.notes:
        assert f"# {note}" in starter.config.read_text()


def test_a_value_of_a_type_that_the_sample_did_not_show_costs_its_row(tmp_path):
    """Beyond the sample: rejected with the column and what was found; the run goes on."""
    rows = "".join(f"{i % 7},{i % 99},{i % 2}\n" for i in range(2_000))
    (tmp_path / "d.csv").write_text("a,b,label\n" + rows)
    starter = write_starter(tmp_path, tmp_path / "d.csv")
    with (tmp_path / "d.csv").open("a") as file:
        file.write("unknown,1,1\nN/A,3,1\n")
    summary, _ = evaluate(load(starter.config))
    assert (summary.learned, summary.rejected) == (2_001, 1)


def test_codes_that_look_like_missing_values_stay(tmp_path):
    """NA is a country, too: where it stands among texts, it is told, and is no missing value."""
    rows = [{"land": ("NA", "DE")[i % 2], "n": i % 5, "y": i % 2} for i in range(200)]
    write_csv(tmp_path / "d.csv", rows)
    found = write_starter(tmp_path, tmp_path / "d.csv").survey
    assert "NA" not in found.missing
    assert found.notes == ["'land' has 'NA' among its texts: a value there, not missing"]


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (lambda i: 1_764_000_000_000 + i, "auto"),
        (lambda i: 20261101 + i % 28, "date"),
        (lambda i: f"20261101T{i % 24:02}0000Z", "auto"),
    ],
)
def test_times_of_other_units_are_found(tmp_path, value, unit):
    """Milliseconds and the digits of dates are times, and are read as such."""
    data = tmp_path / "d.csv"
    write_csv(data, [{"time": value(i), "a": i % 7, "y": i % 2} for i in range(200)])
    settings = load(write_starter(tmp_path, data).config)
    assert (settings.input.fields.time, settings.input.fields.time_unit) == ("time", unit)
    with open_reader(settings) as reader:
        times = [time for _, decoded in reader for time in decoded.batch.times]
    assert all(1.76e9 < time < 1.8e9 for time in times)


@pytest.mark.parametrize("with_file", [False, True])
def test_every_key_is_explained(tmp_path, with_file):
    """The config mentions every key that there is, each with an explanation."""
    data = tmp_path / "d.csv"
    write_csv(data, transactions())
    starter = write_starter(tmp_path, data if with_file else None)
    settings = load(starter.config)
    text = starter.config.read_text()
    tables = [settings.model, settings.input, settings.output, settings.state, settings.metrics]
    tables += [settings.drift, settings.replay]
    if with_file:
        tables.append(settings.input.fields)
    keys = [key for table in tables for key in table.__struct_fields__]
    for key in set(keys) - {"topic", "fields"}:
        assert re.search(rf"^(# |#   )?{key} = .+  +(# )?[\w\"]", text, flags=re.MULTILINE), key


def test_nothing_is_overwritten(tmp_path):
    """What is there stays, both files of it, unless force is given."""
    (tmp_path / "models.py").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"models\.py: exists already; --force overwrites it"):
        write_starter(tmp_path)
    assert (tmp_path / "models.py").read_text() == "mine\n"
    assert not (tmp_path / "midstream.toml").exists()
    starter = write_starter(tmp_path, force=True)
    assert "def make" in starter.models.read_text()
    with pytest.raises(ConfigError, match=r"midstream\.toml: exists already"):
        write_starter(tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    """A file in the place of the folder is refused."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        write_starter(tmp_path / "file")


BAD = [
    ("d.csv", b"", "is empty"),
    ("d.jsonl", b"\n \n", "is empty"),
    ("d.csv", b"a,b\n", "has a header but no records"),
    ("d.csv", b"a,y\n\x00,1\n", "is binary; JSON Lines or CSV is needed"),
    ("d.csv", b"\x89PNG\r\n\x1a\n\x00\x00\xff" * 50, "not UTF-8"),
    ("d.csv", b"a,y\n1,1\ncaf\xe9,1\n", "not UTF-8 text in line 3"),
    ("d.jsonl", b"\xff\xfe{\x00", "not UTF-8 text in line 1"),
    ("d.json", b'[{"a": 1, "y": 0}]\n', "no line is a JSON object; JSON Lines has one object"),
    ("d.jsonl", b"{'a': 1}\n", "no line is a JSON object"),
    ("d.csv", b"y\n1\n0\n", "found no feature to predict 'y' from"),
    ("d.jsonl", b'{"tags": []}\n{"tags": []}\n', "found nothing to predict among its fields: 'ta"),
    ("d.csv", b"id,date\n1,2024-01-01\n2,2024-01-02\n", "found nothing to predict"),
    ("d.csv", b"a,a\n1,2\n", "columns that occur twice"),
    ("d.csv.gz", b"\x1f\x8b\x00\x00", "damaged gzip archive"),
    ("d.csv", b"a,b,y\n" + b"1,2,inf\n" * 9, "none of its records could be learned; line 2 y"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_files_that_are_no_events(tmp_path, name, content, message):
    """A file of which nothing can be learned is refused in one line, and nothing is written."""
    data = tmp_path / name
    data.write_bytes(content)
    with pytest.raises(InputError) as caught:
        write_starter(tmp_path / "project", data)
    text = str(caught.value)
    assert message in text
    assert str(data) in text
    assert "\n" not in text
    assert not (tmp_path / "project").exists()


def test_files_that_are_not_there(tmp_path):
    """A missing file and a folder are refused."""
    with pytest.raises(InputError, match=r"missing\.csv: no such file"):
        write_starter(tmp_path, tmp_path / "missing.csv")
    with pytest.raises(InputError, match="is a folder; give one of its files"):
        write_starter(tmp_path, tmp_path)


def test_damaged_archive(tmp_path):
    """What could be read of a damaged archive is enough to begin with."""
    plain = tmp_path / "t.csv"
    write_csv(plain, transactions(3_000))
    data = tmp_path / "t.csv.gz"
    data.write_bytes(gzip.compress(plain.read_bytes())[:-2_000])
    assert write_starter(tmp_path, data).survey.label == "is_fraud"


@pytest.mark.parametrize(("folder", "data", "name"), [
    ("fraud", "events.jsonl", "fraud"), ("fraud", "clicks.jsonl", "clicks"),
    ("midstream", "fraud.jsonl", "fraud"), ("data", "events.jsonl", "data-events"),
    ("fraud", None, "fraud"), ("midstream", "events.jsonl", r"model-[0-9a-f]{8}"),
    ("Midstream", None, r"model-[0-9a-f]{8}"), ("x" * 240, None, r"model-[0-9a-f]{8}"),
])  # fmt: skip
def test_a_name_that_others_will_not_have(tmp_path, folder, data, name):
    """By the data or the folder, whichever tells something; never the program's own."""
    path = None
    if data is not None:
        path = tmp_path / data
        path.write_text("".join(json.dumps({"x": {"a": i}, "y": i > 9}) + "\n" for i in range(20)))
    starter = write_starter(tmp_path / folder, path)
    assert re.fullmatch(name, load(starter.config).name)
    assert load(starter.config).named
