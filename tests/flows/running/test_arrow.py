"""Arrow and Parquet through the whole run: what JSON gives, killed, resumed, followed, surveyed."""

import json
import random
import signal
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from project import Project, events, stop, wait_for

CONFIG = """
[model]
learner = "{learner}"
task = "{task}"
[input]
path = "{path}"
{fields}
[state]
snapshot_events = 20000
commit_seconds = 0.02
{features}
"""
FEATURES = "[features]\n" + "".join(f'f{i} = "number"\n' for i in range(5)) + 'city = "category"\n'
FLAT = '[input.fields]\nlabel = "y"\nid = "id"\n'


def stream(n, task="binary"):
    """Return events in our own form, with missing values, integers and a category."""
    made = events(n)
    for i, event in enumerate(made):
        x = event["x"]
        x["city"] = f"city{i % 50}"
        x["f4"] = i % 3
        if i % 7 == 0:
            x["f1"] = None
        if task == "regression":
            event["y"] = x["f0"] * 2 + (i % 50 == 7)
        if i % 11 == 0:
            event["y"] = None
    return made


def flat(made):
    return [{"id": event["id"], **event["x"], "y": event["y"]} for event in made]


def write(path, rows, chunk=5_000):
    """Write rows as Arrow or Parquet."""
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=chunk)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=chunk)


def project(folder, path, *, learner="logistic", task="binary", fields=FLAT, features=FEATURES):
    made = Project(folder)
    made.config.write_text(
        CONFIG.format(learner=learner, task=task, path=path, fields=fields, features=features)
    )
    return made


@pytest.mark.parametrize(
    ("learner", "task", "own"),
    [
        ("logistic", "binary", True),
        ("linear", "regression", False),
        ("models:make", "binary", False),
    ],
)
def test_the_format_decides_nothing_that_is_learned(learner, task, own, tmp_path):
    """The same events from JSON Lines, Arrow and Parquet: one state, one prediction each."""
    made = stream(6_000, task)
    features = "" if learner == "models:make" else FEATURES
    if learner == "models:make":
        for event in made:
            del event["x"]["city"]
    rows = made if own else flat(made)
    found = []
    for kind in ("jsonl", "arrow", "parquet"):
        path = f"events.{kind}"
        one = project(tmp_path / kind, path, learner=learner, task=task, features=features,
                      fields="" if own else FLAT)  # fmt: skip
        one.write(rows, path) if kind == "jsonl" else write(one.folder / path, rows)
        summary = one.run()
        predictions = [{**p, "origin": p["origin"][1:]} for p in one.output("predictions")]
        found.append((summary["digest"], summary["metrics"], summary["learned"], predictions))
        assert summary["events"] == 6_000
        assert summary["rejected"] == 0
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_killed_at_random_moments_nothing_is_lost_and_nothing_learned_twice(kind, tmp_path):
    """After 6 kills digest and predictions equal those of a run that was left alone."""
    rows = flat(stream(60_000))
    calm, killed = (project(tmp_path / who, f"e.{kind}") for who in ("calm", "killed"))
    write(calm.folder / f"e.{kind}", rows, 16_000)
    (killed.folder / f"e.{kind}").hardlink_to(calm.folder / f"e.{kind}")
    expected = calm.run()
    whole = (calm.folder / "out" / "predictions.jsonl").stat().st_size
    killed.kill_along(6, whole, random.Random(7))
    got = killed.run()
    assert got["digest"] == expected["digest"]
    assert got["metrics"] == expected["metrics"]
    outputs = [one.folder / "out" / "predictions.jsonl" for one in (calm, killed)]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_changed_file_is_noticed_by_the_resume(tmp_path):
    """Another value in rows that are read again after a kill: refused, not learned."""
    rows = flat(stream(20_000))
    made = project(tmp_path, "e.arrow")
    made.config.write_text(made.config.read_text().replace("= 20000", "= 1000000"))
    write(tmp_path / "e.arrow", rows)
    process = made.running()  # which makes no snapshot before it ends
    process.send_signal(signal.SIGKILL)
    process.communicate()
    rows[5_000]["f0"] += 1.0
    write(tmp_path / "e.arrow", rows)
    done = made.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "e.arrow: rows " in last
    assert "are not what was learned from it; the file was changed" in last


def test_a_schema_that_does_not_fit_ends_the_run_with_a_line(tmp_path):
    """What was read before it is kept; the file, the column and what is allowed are named."""
    made = project(tmp_path, "in")
    (tmp_path / "in").mkdir()
    rows = flat(stream(500))
    write(tmp_path / "in" / "1.arrow", rows)
    write(tmp_path / "in" / "2.arrow", [{**row, "f9": 1.0} for row in rows])
    done = made.call("run", "config.toml", "--until-eof")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "2.arrow: column 'f9' (double) is not in [features], which has 'f0'" in last
    assert len(made.output("predictions")) == 500
    write(tmp_path / "in" / "2.arrow", rows)
    assert made.run()["seen"] == 1_000


@pytest.mark.parametrize("kind", ["jsonl", "arrow", "parquet"])
def test_check_names_a_feature_that_no_event_has(kind, tmp_path):
    """A missing column is missing values to learn from, so this is where a typing error shows."""
    rows = flat(stream(200))
    for row in rows:
        del row["f3"], row["city"]
    path = f"e.{kind}"
    made = project(tmp_path, path)
    made.write(rows, path) if kind == "jsonl" else write(made.folder / path, rows)
    done = made.call("check", "config.toml", "--json")
    assert done.returncode == 0, done.stderr
    found = {f["what"]: f["detail"] for f in json.loads(done.stdout)["findings"]}
    assert found["features"] == "in [features], but none of these events has it: 'f3', 'city'"
    assert made.run()["learned"] > 150


def test_a_followed_folder_of_several_formats(tmp_path):
    """A file that is still written is waited for, told once, and learned when it is whole."""
    made = project(tmp_path, "in")
    (tmp_path / "in").mkdir()
    rows = flat(stream(300))
    write(tmp_path / "whole.arrow", rows)
    data = (tmp_path / "whole.arrow").read_bytes()
    (tmp_path / "in" / "1.arrow").write_bytes(data[:-20])
    made.write(rows, "in/2.jsonl")
    process = made.start("run", "config.toml")
    wait_for(lambda: len(made.output("predictions")) == 300, what="the JSON Lines")
    (tmp_path / "in" / "1.arrow").write_bytes(data)
    wait_for(lambda: len(made.output("predictions")) == 600, what="the Arrow file")
    code, _, err = stop(process)
    assert code == 0
    assert err.count("event=input_unfinished") == 1
    assert "input=1.arrow" in err


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_init_fits_a_config_to_the_file(kind, tmp_path):
    """Label, id, time, types and what to leave out by the columns; `check` and `run` are happy."""
    import datetime as dt

    rows = flat(stream(400))
    for i, row in enumerate(rows):
        row["at"] = dt.datetime(2024, 1, 1) + dt.timedelta(seconds=i)
        row["tags"] = [1, 2]
        row["price"] = float("nan") if i % 5 == 0 else i / 7
    write(tmp_path / f"tx.{kind}", rows)
    made = Project(tmp_path / "p")
    done = made.call("init", "--from", f"../tx.{kind}", "new")
    assert done.returncode == 0, done.stderr
    text = (made.folder / "new" / "midstream.toml").read_text()
    config = tomllib.loads(text)
    fields = config["input"]["fields"]
    assert fields["label"] == "y"
    assert (fields["id"], fields["time"]) == ("id", "at")
    assert fields["exclude"] == ["tags"]
    assert config["model"]["task"] == "binary"
    assert '#"price" = "number"' in text
    assert '#"city" = "category"' in text
    done = made.call("check", "new/midstream.toml", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    typed = text.replace('"models:make"', '"logistic"').replace("#[features]", "[features]")
    typed = "\n".join(line.removeprefix("#") if line.startswith('#"') else line
                      for line in typed.splitlines())  # fmt: skip
    (made.folder / "new" / "midstream.toml").write_text(typed)
    done = made.call("run", "new/midstream.toml", "--until-eof", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == 400


def test_init_says_what_no_feature_can_be(tmp_path):
    """A file with nothing that can be learned from, and one that is none."""
    made = Project(tmp_path)
    pq.write_table(pa.table({"a": [[1]] * 3, "y": [1, 0, 1]}), tmp_path / "e.parquet")
    done = made.call("init", "--from", "e.parquet", "new")
    assert done.returncode != 0
    assert "'a' is of type list<" in done.stderr
    (tmp_path / "f.arrow").write_bytes(b"ARROW1")
    done = made.call("init", "--from", "f.arrow", "new")
    assert "f.arrow: this Arrow file has no footer" in done.stderr
    pq.write_table(pa.table({"a": [1.0], "y": [1]}).slice(0, 0), tmp_path / "g.parquet")
    done = made.call("init", "--from", "g.parquet", "new")
    assert "g.parquet: has columns but no rows" in done.stderr


def test_standard_input_is_text(tmp_path):
    """Arrow on it is refused by the config."""
    made = project(tmp_path, "-", fields='format = "arrow"\n' + FLAT)
    done = made.call("run", "config.toml", "--until-eof")
    assert done.returncode == 2
    assert "input.format: found 'arrow'" in done.stderr
    assert "from standard input; give others as files" in done.stderr
