"""A run that dies before its first snapshot replays all from the beginning, header and all."""

import gzip

import pytest
from crashing import Crash, crash
from project import Project

from midstream.flows.loading import load
from midstream.flows.running import online

N = 3_000
HEADER = "id,a,y\n"
ROWS = "".join(f"r{i},{i % 70},{i % 2}\n" for i in range(N))
FORMS = {
    "csv": (HEADER + ROWS).encode(),
    "csv with a mark": b"\xef\xbb\xbf" + (HEADER + ROWS).encode(),
    "csv that says how it is separated": ("sep=,\n\n" + HEADER + ROWS).encode(),
    "csv, packed": gzip.compress((HEADER + ROWS).encode()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fuse", [11, 22])
def test_a_file_is_replayed_from_its_beginning(form, fuse, tmp_path, monkeypatch):
    """The state is that of a run that nothing happened to, and each prediction is there once."""
    name = "e.csv.gz" if "packed" in form else "e.csv"
    made = Project(
        tmp_path / "p",
        config=f'[input]\npath = "{name}"\n[input.fields]\nid = "id"\nlabel = "y"\n'
        "[state]\ncommit_seconds = 1e-6\n",
    )
    (made.folder / name).write_bytes(FORMS[form])
    with monkeypatch.context() as patch:
        crash(patch, fuse)
        with pytest.raises(Crash):
            online.run(load(made.config), until_eof=True)
    assert not list((made.folder / "state" / "shards" / "000").glob("snapshot-*"))
    summary = online.run(load(made.config), until_eof=True)
    assert summary.resumed_at > 0
    whole = Project(tmp_path / "whole")
    whole.config.write_text(made.config.read_text())
    (whole.folder / name).write_bytes(FORMS[form])
    assert summary.digest == online.run(load(whole.config), until_eof=True).digest
    assert [line["id"] for line in made.output("predictions")] == [f"r{i}" for i in range(N)]
