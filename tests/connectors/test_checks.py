"""Every input keeps the contract, and the checks of it find what breaks it."""

import doctest
import json
import random

import pytest
from kafka_simulation import Cluster
from project import events
from sqlite_input import TableInput, fill

from midstream.connectors import checks
from midstream.connectors.checks import CHECKS, InputCheckError, check_input
from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.decode.fields import FieldMap
from midstream.connectors.files.input import FileInput
from midstream.connectors.kafka.consumer import Consumer, Identity
from midstream.connectors.kafka.input import TopicInput
from midstream.connectors.several import SeveralInputs

NAMES = [check.__name__ for check in CHECKS]
FLAT = FieldMap(label="y", id="id")
BAD = ["", "nonsense", '{"x": 1}', '{"id": "%s"}' % ("long" * 200)]


def lines(n=120, seed=1):
    """Return events as JSON, with what is none among them."""
    made = [json.dumps(event) for event in events(n, seed=seed)]
    for i, bad in enumerate(BAD):
        made.insert(20 * i + 7, bad)
    return made


def of_lines(folder):
    for name, seed in (("a.jsonl", 1), ("b.jsonl", 2)):
        (folder / name).write_text("\n".join(lines(seed=seed)))
    return lambda: FileInput(".", folder, until_eof=True, decoding=Decoding("binary"))


def of_fair_files(folder):
    of_lines(folder)
    decoding = Decoding("binary")
    return lambda: FileInput(".", folder, order="fair", until_eof=True, decoding=decoding)


def of_csv(folder):
    rows = [f'{i},"a{i}\nb",{i % 2}' for i in range(200)]
    (folder / "e.csv").write_text("id,text,y\n" + "\n".join(rows))
    return lambda: FileInput("e.csv", folder, until_eof=True, decoding=Decoding("binary", FLAT))


def of_tables(folder):
    import pyarrow as pa
    from pyarrow import ipc, parquet

    columns = {"id": [f"r{i}" for i in range(300)], "a": [i / 7 for i in range(300)]}
    table = pa.table(columns | {"y": [i % 3 == 0 for i in range(300)]})
    parquet.write_table(table, folder / "e.parquet", row_group_size=70)
    with ipc.new_file(str(folder / "f.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    return lambda: FileInput(".", folder, until_eof=True, decoding=Decoding("binary", FLAT))


def of_a_topic(folder):
    del folder
    rng = random.Random(1)
    cluster = Cluster(rng, {"in": 3})
    cluster.calm = cluster.eager = True
    for line in lines(200):
        at = rng.choice([1.0, 2.0])
        cluster.logs["in", rng.randrange(3)].append(line.encode(), at, None, None)
    made = cluster.installed()

    def make():
        consumer = Consumer({}, "in", "group", identity=Identity({}, "in"))
        return TopicInput(consumer, [0, 1, 2], until_eof=True, decoding=Decoding("binary"))

    make.context = made
    return make


def of_rows(folder):
    fill(folder / "e.db", one=lines(), two=lines(seed=2))
    tables = ["one", "two"]
    return lambda: TableInput(folder / "e.db", tables, Decoding("binary"), until_eof=True)


def of_several(folder):
    rows, files = of_rows(folder), of_lines(folder)
    return lambda: SeveralInputs({"rows": rows(), "files": files()})


INPUTS = [of_lines, of_fair_files, of_csv, of_tables, of_a_topic, of_rows, of_several]


@pytest.mark.parametrize("opened", INPUTS)
def test_every_input_keeps_the_contract(opened, tmp_path):
    """Ours, one from outside, and several as one."""
    make = opened(tmp_path)
    if hasattr(make, "context"):
        with make.context:
            assert list(check_input(make)) == NAMES
    else:
        assert list(check_input(make)) == NAMES


class Gap(TableInput):
    """Leaves a row out between blocks."""

    def _read(self, name, max_bytes, until):
        work = super()._read(name, max_bytes, until)
        if work is not None:
            after = self._cursors[name]
            self._cursors[name] = type(after)(after.offset + 1, after.line, after.crc)
        return work


class Unseen(TableInput):
    """Does not know its partitions."""

    def has(self, partition):
        del partition
        return False


class Trimmed(TableInput):
    """Says that what it has is gone."""

    def oldest(self):
        return dict.fromkeys(super().oldest(), 50)


class Dependent(TableInput):
    """Rejects the first record of each block."""

    def decode(self, work):
        decoded = super().decode(work)
        return decoded._replace(batch=decoded.batch[1:]) if len(decoded.batch) > 1 else decoded


class Forgetful(TableInput):
    """Does not compare what it replays."""

    def replay(self, span, max_bytes):
        return self._read(span.partition, max_bytes, span.stop)._replace(
            final=self._cursors[span.partition].offset == span.stop
        )


class Beyond(TableInput):
    """Replays more than it is asked for."""

    def replay(self, span, max_bytes):
        return self._read(span.partition, max_bytes, 2**62)


class Anew(TableInput):
    """Begins from the beginning, whatever was read."""

    def seek(self, cursors, known):
        del cursors, known


class Stuck(TableInput):
    """Does not go back."""

    def rewind(self, cursors):
        del cursors


BUGS = [
    (Gap, "ranges_touch"),
    (Unseen, "ranges_touch"),
    (Trimmed, "ranges_touch"),
    (Dependent, "events_do_not_depend_on_the_cuts"),
    (Beyond, "ranges_are_replayed"),
    (Forgetful, "what_was_changed_is_noticed"),
    (Anew, "reading_goes_on_where_it_was"),
    (Stuck, "rewound_input_is_replayed"),
]


@pytest.mark.parametrize(("broken", "found_by"), BUGS)
def test_an_input_that_breaks_the_contract_is_found(broken, found_by, tmp_path):
    """By the check that is about that."""
    fill(tmp_path / "e.db", one=lines(), two=lines(seed=2))
    tables = ["one", "two"]
    with pytest.raises(InputCheckError, match=f"^{found_by}: "):
        list(
            check_input(
                lambda: broken(tmp_path / "e.db", tables, Decoding("binary"), until_eof=True)
            )
        )


def test_an_empty_input_cannot_be_checked(tmp_path):
    """Nothing would be compared."""
    (tmp_path / "e.jsonl").touch()
    with pytest.raises(InputCheckError, match="nothing is in the input"):
        list(check_input(lambda: FileInput("e.jsonl", tmp_path, until_eof=True)))


def test_the_example_in_the_docstring():
    """What it shows is what it does."""
    assert doctest.testmod(checks).failed == 0
