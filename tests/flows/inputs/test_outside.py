"""An input that another package brings: found by its entry point, checked, run, killed, resumed."""

import json
import random
import sqlite3
from contextlib import closing

import pytest
from crashing import Crash, crash
from journal_fold import Fold
from project import Project, events, wait_for
from sqlite_input import TableInput, fill, installed

from midstream.connectors.decode.decoder import make_decoder
from midstream.connectors.input import Block, InputError, NoAnswerError
from midstream.engine.basics.storage import LocalStorage
from midstream.engine.shard.journal import FileJournal
from midstream.engine.shard.resuming import ResumeError
from midstream.flows.config.tables import ConfigError
from midstream.flows.inputs.reading import open_reader
from midstream.flows.loading import load
from midstream.flows.offline.evaluation import evaluate
from midstream.flows.offline.inspect import inspect
from midstream.flows.running import online
from midstream.flows.running.definition import make_trainer

N = 6_000


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder where the package is installed, for this process and for those it starts."""
    folder = installed(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    return folder


def lines(n, seed):
    return [json.dumps({**event, "id": f"{seed}-{event['id']}"}) for event in events(n, seed=seed)]


def project(folder, kind="sqlite", more="", **tables):
    """Return a project whose input is a database."""
    names = json.dumps(list(tables))
    made = Project(
        folder,
        config=f'[input]\nkind = "{kind}"\n{more}\n[input.options]\ndatabase = "e.db"\n'
        f"tables = {names}\n[state]\nsnapshot_events = 1500\ncommit_seconds = 0.01\n",
    )
    fill(folder / "e.db", **tables)
    return made


@pytest.mark.slow
def test_an_input_from_outside_is_killed_and_resumed_exactly(site, tmp_path):
    """State and outputs are those of a run that was not killed."""
    tables = {"one": lines(N, 1), "two": lines(N, 2)}
    more = 'shards = "partition"'
    whole = project(tmp_path / "whole", more=more, **tables)
    expected = whole.run()
    assert expected["events"] == expected["learned"] == 2 * N
    killed = project(tmp_path / "killed", more=more, **tables)
    output = "predictions-000"
    size = (whole.folder / "out" / f"{output}.jsonl").stat().st_size
    killed.kill_along(3, size, random.Random(1), output)
    assert killed.run()["digest"] == expected["digest"]
    for number in ("000", "001"):
        name = f"predictions-{number}"
        assert killed.output(name) == whole.output(name)
        assert len(whole.output(name)) == N


@pytest.mark.slow
def test_an_input_from_outside_is_followed_and_rewound(site, tmp_path):
    """Rows that come later are learned; a range of them is unlearned, by the words of the kind."""
    made = project(tmp_path / "p", events=lines(500, 1))
    process = made.running()
    made.operate("snapshots", "create")
    fill(made.folder / "e.db", events=lines(300, 2))
    wait_for(lambda: len(made.output("predictions")) == 800)
    done = made.operate("restore", "1", "--rewind", "--skip-range", "events:601-700", "--yes")
    assert [answer["state"] for answer in done["shards"]] == ["done"]
    process.terminate()
    process.wait(60)
    summary = made.run()
    assert summary["seen"] == 700
    refused = made.refused("restore", "1", "--rewind", "--skip-range", "events:9", "--yes")
    assert refused == "--skip-range: found 'events:9'; allowed: TABLE:FROM-TO"


def test_check_and_evaluate_read_an_input_from_outside(site, tmp_path):
    """What a kind calls its partitions is what `check` calls them."""
    made = project(tmp_path / "p", one=lines(50, 1), two=lines(70, 2))
    report = inspect(load(made.config), 1_000)
    assert report.ok
    assert "2 tables (one, two), 1 shard(s)" in [found.detail for found in report.findings]
    summary, _ = evaluate(load(made.config))
    assert summary.events == 120
    (made.folder / "e.db").unlink()
    report = inspect(load(made.config), 1_000)
    (found,) = [found for found in report.findings if found.what == "input"]
    assert not found.ok
    assert found.detail.startswith("e.db: no such database: ")
    with pytest.raises(InputError, match="no such database"):
        online.preflight(load(made.config))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "input.options.database: missing; needed: a string"),
        ("database = 1", "input.options.database: found 1; allowed: a string"),
        ('databse = "e"', "input.options.databse: unknown key; did you mean 'database'?"),
        ('database = "e"\ntables = "a"', "input.options.tables: found 'a'; allowed: a list, each"),
    ],
)
def test_options_of_a_kind_are_checked(site, tmp_path, options, said):
    """By their types, in one line that names the key."""
    made = Project(tmp_path / "p", config=f'[input]\nkind = "sqlite"\n[input.options]\n{options}\n')
    with pytest.raises(ConfigError) as found:
        load(made.config)
    assert str(found.value).removeprefix(f"{made.config}: ").startswith(said)


BAD = [
    ("none", "", "found 'none'; allowed: 'topic' | 'files' | 'both' | 'sqlite'"),
    ("sqllite", "", "found 'sqllite'; did you mean 'sqlite'? Allowed: "),
    ("bad", "bad = nowhere:Kind", "nowhere:Kind (sqlite-input) cannot be loaded: ModuleNotFound"),
    ("bad", "bad = json:loads", "json:loads (sqlite-input) is no class that is derived from Inp"),
    ("bad", "bad = sqlite_input:TableKind", "TableKind (sqlite-input): its `name` is not 'bad'"),
    ("bad", "bad = midstream.flows.inputs.kind:InputKind", "abstract class InputKind"),
]


@pytest.mark.parametrize(("kind", "points", "said"), BAD)
def test_a_kind_that_cannot_be_had_is_refused(tmp_path, monkeypatch, kind, points, said):
    """In one line: there is none of the name, or what is wrong with the package."""
    monkeypatch.syspath_prepend(installed(tmp_path / "site", points + "\n"))
    made = Project(tmp_path / "p", config=f'[input]\nkind = "{kind}"\n')
    with pytest.raises(ConfigError) as found:
        load(made.config)
    assert str(found.value).startswith(f"{made.config}: input.kind: found '{kind}'")
    assert said in str(found.value)
    assert "\n" not in str(found.value)


def test_two_packages_with_the_same_kind_are_refused(site, tmp_path, monkeypatch):
    """Both are named, whichever comes first on the path."""
    other = tmp_path / "other" / "another-2.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[midstream.inputs]\nsqlite = another:Kind\n")
    monkeypatch.syspath_prepend(other.parent)
    made = Project(tmp_path / "p", config='[input]\nkind = "sqlite"\n')
    both = r"several packages bring .* another:Kind \(another\), sqlite_input:TableKind \(sqlite-i"
    with pytest.raises(ConfigError, match=both):
        load(made.config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('kind = "sqlite"\npath = "e.jsonl"', "input.path: is not for input of kind 'sqlite'"),
        ('kind = "files"\ntopic = "t"', "input.topic: is not for input of kind 'files'"),
        ('kind = "files"', "input.path: missing; needed: a file, folder or pattern"),
        ('kind = "topic"', "input.topic: missing; needed: the name of a topic"),
        ('path = "e"\noptions = {a = 1}', "input.options: input of kind 'files' has none"),
    ],
)
def test_what_a_kind_does_not_take_is_refused(site, tmp_path, given, said):
    """Keys of one kind are not passed over in another."""
    made = Project(tmp_path / "p", config=f"[input]\n{given}\n")
    with pytest.raises(ConfigError, match=said):
        load(made.config)


def test_secrets_in_options_are_not_shown(site, tmp_path):
    """What is called a password is no more shown than one of Kafka."""
    options = 'database = "e.db"\npassword = "hunter22"\n'
    made = Project(tmp_path / "p", config=f'[input]\nkind = "sqlite"\n[input.options]\n{options}')
    assert "hunter22" not in repr(load(made.config))
    made.config.write_text(made.config.read_text().replace('"hunter22"', "22"))
    with pytest.raises(ConfigError, match=r"options\.password: found \*\*\*; allowed: a string"):
        load(made.config)


def test_a_state_is_of_one_input(site, tmp_path):
    """Another database is another input, as another path is."""
    made = project(tmp_path / "p", events=lines(50, 1))
    online.run(load(made.config), until_eof=True)
    (made.folder / "e.db").rename(made.folder / "f.db")
    made.config.write_text(made.config.read_text().replace("e.db", "f.db"))
    with pytest.raises(ResumeError, match=r"sqlite:e\.db.*sqlite:f\.db"):
        online.run(load(made.config), until_eof=True)


def test_rows_that_were_changed_are_noticed(site, tmp_path, monkeypatch):
    """What has to be replayed is compared with what was learned."""
    made = project(tmp_path / "p", events=lines(3_000, 1))
    made.config.write_text(made.config.read_text().replace("0.01", "1e-6"))  # after each block
    crash(monkeypatch, 12, TableInput)
    with pytest.raises(Crash):
        online.run(load(made.config), until_eof=True)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(site)
    with closing(sqlite3.connect(made.folder / "e.db")) as database:
        database.execute("UPDATE events SET event = replace(event, '1-e3', '1-E3')")
        database.commit()
    with pytest.raises(InputError, match=r"events: rows up to \d+ were changed"):
        online.run(load(made.config), until_eof=True)


@pytest.mark.parametrize("ahead", ["", "ahead = true"])
def test_an_input_that_cannot_be_reached_is_waited_for(site, tmp_path, monkeypatch, caplog, ahead):
    """While it is opened, read, confirmed or replayed; then all goes on from what was committed."""
    caplog.set_level("INFO", logger="midstream")
    monkeypatch.setattr(online, "_SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(online, "_LONGEST_PAUSE", 0.001)
    made = project(tmp_path / "p", more=ahead, events=lines(2_000, 1))
    made.config.write_text(made.config.read_text().replace("0.01", "1e-6"))
    told = []

    def unreachable(name, when):
        method, calls = getattr(TableInput, name), []

        def call(*arguments):
            calls.append(name)
            if len(calls) in when:
                told.append(name)
                raise NoAnswerError(f"e.db: cannot be reached to {name}")
            return method(*arguments)

        monkeypatch.setattr(TableInput, name, call)

    for name, when in {"seek": {2}, "read": {4, 9}, "replay": {2}, "confirm": {3, 8}}.items():
        unreachable(name, when)
    summary = online.run(load(made.config), until_eof=True)
    assert sorted(told) == ["confirm", "confirm", "read", "read", "replay", "seek"]
    assert summary.events == summary.learned == 2_000
    assert [line["id"] for line in made.output("predictions")] == [f"1-e{i}" for i in range(2_000)]
    whole = project(tmp_path / "whole", events=lines(2_000, 1))
    monkeypatch.undo()
    monkeypatch.syspath_prepend(site)
    assert summary.digest == online.run(load(whole.config), until_eof=True).digest
    messages = [record.message for record in caplog.records]
    assert 0 < messages.count("input_unavailable") <= len(told)  # two at once are one outage
    assert "input_available" in messages
    assert "kafka_unavailable" not in messages


# --- several inputs of one shard


def both(folder, n=400):
    made = project(folder, "both", one=lines(n, 1), two=lines(n, 2))
    (folder / "in").mkdir()
    for name, seed in (("a.jsonl", 3), ("b.jsonl", 4)):
        made.write(lines(n, seed), f"in/{name}")
    return made


def folded(made):
    """Return the fold of the journal over the input, and the ids of its events, in their order."""
    settings = load(made.config)
    decoder, ids = make_decoder("binary", None), []
    with closing(sqlite3.connect(made.folder / "e.db")) as database:

        def read(partition, start, stop):
            if "." in partition:
                data = (made.folder / "in" / partition).read_bytes()[start:stop]
            else:
                query = f'SELECT event FROM "{partition}" WHERE rowid >= ? AND rowid < ?'  # noqa: S608
                data = "".join(f"{row}\n" for (row,) in database.execute(query, (start, stop)))
                data = data.encode()
            return decoder.decode(Block(partition, data, 1, 0, start, stop)).batch

        fold = Fold(
            lambda: make_trainer(settings),
            read,
            learned=lambda batch, *_: ids.extend(batch.ids),
            most=10_000,
        )
        fold.apply(FileJournal(LocalStorage(settings.state_path / "shards" / "000")).recover())
    return fold, ids


@pytest.mark.parametrize("seed", range(12))
def test_two_kinds_of_input_in_one_shard_are_resumed_exactly(site, tmp_path, monkeypatch, seed):
    """Wherever it crashes: the state is the fold of the journal, and each event is put out once."""
    made, rng, ahead = both(tmp_path / "p"), random.Random(seed), seed % 3 == 0
    if ahead:
        text = made.config.read_text().replace('"both"', '"both"\nahead = true')
        made.config.write_text(text)
    crashes = 0
    for _ in range(rng.randint(1, 6)):
        with monkeypatch.context() as patch:
            crash(patch, rng.randint(1, 60), TableInput)
            try:
                online.run(load(made.config), until_eof=True)
            except Crash:
                crashes += 1
    summary = online.run(load(made.config), until_eof=True)
    fold, ids = folded(made)
    assert crashes
    assert summary.digest == {"000": fold.digest()}
    assert summary.seen == 1_600
    assert fold.at.keys() == {"one", "two", "a.jsonl", "b.jsonl"}
    assert sorted(ids) == sorted(f"{s}-e{i}" for s in (1, 2, 3, 4) for i in range(400))
    assert [line["id"] for line in made.output("predictions")] == ids
    first = [i.partition("-")[0] for i in ids[:60]]
    assert {"1", "3"} <= set(first), "the inputs are not read in turn"


@pytest.mark.slow
def test_two_kinds_of_input_are_killed_and_resumed(site, tmp_path):
    """The same with processes that are killed."""
    made = both(tmp_path / "p", 3_000)
    made.kill_along(3, 1_200_000, random.Random(2))
    digest = made.run()["digest"]
    fold, ids = folded(made)
    assert digest == {"000": fold.digest()}
    assert [line["id"] for line in made.output("predictions")] == ids
    assert len(set(ids)) == len(ids) == 12_000


def test_partitions_of_the_same_name_are_refused(site, tmp_path):
    """The journal could not tell them apart."""
    made = project(tmp_path / "p", "both", **{"a.jsonl": lines(5, 1)})
    (made.folder / "in").mkdir()
    made.write(lines(5, 2), "in/a.jsonl")
    said = r"a\.jsonl: inputs 'tables' and 'files' both have a partition of this name; rename one"
    with pytest.raises(InputError, match=said), open_reader(load(made.config)):
        pass


def test_a_file_that_is_gone_is_still_known_to_be_a_file(site, tmp_path):
    """A partition that is not there goes to the input that may have had it; nothing is lost."""
    made = both(tmp_path / "p", 100)
    online.run(load(made.config), until_eof=True)
    (made.folder / "in" / "a.jsonl").unlink()
    made.write(lines(10, 9), "in/c.jsonl")
    summary = online.run(load(made.config), until_eof=True)
    assert (summary.events, summary.seen) == (10, 410)


def test_a_partition_that_no_input_has_is_refused(site, tmp_path):
    """One that is gone from a database, too."""
    made = both(tmp_path / "p", 20)
    online.run(load(made.config), until_eof=True)
    made.config.write_text(made.config.read_text().replace('["one", "two"]', '["one"]'))
    with pytest.raises(InputError, match="two: was learned from, and is of no input now"):
        online.run(load(made.config), until_eof=True)
