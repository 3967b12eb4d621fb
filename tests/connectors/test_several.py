"""Several inputs as one: whose a partition is, and that each is asked and told of its own."""

import json

import pytest
from sqlite_input import TableInput, fill

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.files.input import FileInput
from midstream.connectors.input import NOT_THERE, Cursor, InputError, NoAnswerError
from midstream.connectors.several import SeveralInputs

LINE = json.dumps({"x": {"a": 1.0}, "y": True})


class Told(TableInput):
    """Notes what it is told, and is unreachable if that is wanted."""

    def __init__(self, *arguments, silent=False, **named):
        super().__init__(*arguments, **named)
        self.settled, self.closed, self.silent = [], 0, silent

    def settle(self, learned):
        self.settled.append(dict(learned))

    def confirm(self, seconds):
        if self.silent:
            raise NoAnswerError(f"no answer within {seconds:g} s")

    def close(self):
        super().close()
        self.closed += 1
        if self.silent:
            raise OSError(5, "broken")


@pytest.fixture
def opened(tmp_path):
    """Opens tables of a database of each given name."""

    def open_tables(**databases):
        made = {}
        for name, tables in databases.items():
            path = tmp_path / f"{name}.db"
            if not path.exists():
                fill(path, **{table: [LINE] * 5 for table in tables})
            silent = name == "silent"
            made[name] = Told(path, tables, Decoding("binary"), until_eof=True, silent=silent)
        return made

    return open_tables


def test_each_is_told_of_its_own(opened):
    """Of how far it was learned, and where it goes on."""
    inputs = opened(first=["a", "b"], second=["c"])
    several = SeveralInputs(inputs)
    several.seek({"b": Cursor(4, 4), "c": Cursor(6, 6)}, {"b": Cursor(4, 4), "c": Cursor(6, 6)})
    spans = []
    while (work := several.read(2**20)) is not None:
        spans.append((work.span.partition, work.span.start, work.span.stop))
    assert spans == [("a", 1, 6), ("b", 4, 6)]
    several.settle({"a": 6, "c": 6})
    assert [each.settled for each in inputs.values()] == [[{"a": 6}], [{"c": 6}]]
    assert several.ended
    several.close()


def test_one_that_cannot_be_reached_is_told_of(opened):
    """A commit waits for each of them."""
    several = SeveralInputs(opened(first=["a"], silent=["b"]))
    with pytest.raises(NoAnswerError, match="no answer within 2 s"):
        several.confirm(2.0)


def test_all_are_closed_where_closing_one_fails(opened):
    """The error is raised afterwards."""
    inputs = opened(silent=["b"], first=["a"])
    with pytest.raises(OSError, match="broken"):
        SeveralInputs(inputs).close()
    assert [each.closed for each in inputs.values()] == [1, 1]


def test_a_partition_that_two_may_have_had_is_refused(tmp_path):
    """Nobody could say whose it was."""
    inputs = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(f"{LINE}\n")
        inputs[name] = FileInput(name, tmp_path, until_eof=True, decoding=Decoding("binary"))
    several = SeveralInputs(inputs)
    gone = {"gone.jsonl": Cursor(9, 2)}
    with pytest.raises(
        InputError, match=r"gone\.jsonl: was learned from, and may be of the inputs one,"
    ):
        several.seek(gone, gone)
    assert several.oldest()["gone.jsonl"] == several.oldest()["nobody's"] == NOT_THERE
    several.close()


def test_the_oldest_position_of_a_file_that_is_gone_is_its_inputs(opened, tmp_path):
    """Each input says what is not there any more."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "e.jsonl").write_text(f"{LINE}\n")
    files = FileInput("in", tmp_path, decoding=Decoding("binary"))
    several = SeveralInputs({**opened(first=["a"]), "files": files})
    gone = {"gone.jsonl": Cursor(9, 2)}
    several.seek(gone, gone)
    oldest = several.oldest()
    assert dict(oldest) == {"a": 1, "e.jsonl": 0}
    assert oldest["gone.jsonl"] == NOT_THERE
    several.close()


def test_a_new_file_of_a_name_that_a_table_has_is_refused(opened, tmp_path):
    """Also where it comes while the input is followed."""
    (tmp_path / "in").mkdir()
    files = FileInput("in", tmp_path, decoding=Decoding("binary"))
    several = SeveralInputs({**opened(first=["a.jsonl"]), "files": files})
    assert several.rescan() == []
    (tmp_path / "in" / "b.jsonl").write_text(f"{LINE}\n")
    assert several.rescan() == ["b.jsonl"]
    (tmp_path / "in" / "a.jsonl").write_text(f"{LINE}\n")
    with pytest.raises(InputError, match="both have a partition of this name"):
        several.rescan()
    several.close()


@pytest.mark.parametrize(
    ("path", "name", "has"),
    [
        ("in", "gone.csv", True),
        ("in", "gone.csv+2", True),
        ("in", "gone.db", False),
        ("in", "deeper/gone.csv", False),
        ("in/*.log", "gone.log", True),
        ("in/*.log", "gone.csv", False),
        ("in/e.jsonl", "in/e.jsonl", True),
        ("in/e.jsonl", "e.jsonl", False),
    ],
)
def test_files_that_are_gone_are_known_by_the_path(path, name, has, tmp_path):
    """Whether one may have been of the input, be it there or not."""
    (tmp_path / "in").mkdir()
    for there in ("e.jsonl", "e.log"):
        (tmp_path / "in" / there).write_text(f"{LINE}\n")
    assert FileInput(path, tmp_path).has(name) is has
