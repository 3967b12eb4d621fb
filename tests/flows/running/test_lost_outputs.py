"""Outputs that somebody else moves, removes or cuts: named, with what was done about it."""

import json
import shutil

import pytest
from project import Project, events, stop, wait_for

LINES = events(600)


@pytest.fixture
def one(tmp_path):
    project = Project(tmp_path)
    text = project.config.read_text().replace("models:make", "logistic")
    project.config.write_text(f"{text}[versions]\nenabled = false\n")
    project.write(LINES[:200])
    return project


def rerun(one, code):
    one.write(LINES[:300])
    done = one.call("run", "config.toml", "--until-eof")
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.slow
def test_what_is_gone_at_a_start_is_begun_anew_and_told(one):
    """A file, or the whole folder: the log names the file; nothing is written twice."""
    path = one.folder / "out" / "predictions.jsonl"
    one.run()
    shutil.rmtree(path.parent)
    told = rerun(one, 0)
    assert f"output={path}" in told, told
    assert "a new one is begun" in told, told
    assert [p["id"] for p in one.output("predictions")] == [e["id"] for e in LINES[200:300]]
    shutil.rmtree(path.parent)
    path.parent.write_text("no folder")
    assert f"midstream: {path.parent}: a folder is needed there" in rerun(one, 1)


@pytest.mark.slow
def test_what_was_cut_at_a_start_is_refused(one):
    """With the file's name and both lengths; put back, or moved away, the run goes on."""
    path = one.folder / "out" / "predictions.jsonl"
    one.run()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    told = rerun(one, 1)
    assert f"midstream: out/predictions.jsonl has 100 bytes, but {len(whole)} were" in told, told
    assert path.read_bytes() == whole[:100], "it is left as it is"
    path.write_bytes(whole)
    assert "output_gone" not in rerun(one, 0)
    assert [p["id"] for p in one.output("predictions")] == [e["id"] for e in LINES[:300]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["removed", "folder", "cut"])
def test_what_is_lost_while_a_run_writes_is_told(how, one):
    """The run goes on, says in which file and what it does, and starts again without complaint."""
    path = one.folder / "out" / "predictions.jsonl"
    process = one.running()
    wait_for(lambda: len(one.output("predictions")) == 200, what="the first events")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        shutil.rmtree(path.parent) if how == "folder" else path.unlink()

    def append(some):
        with (one.folder / "events.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in some)

    append(LINES[200:300])
    one.logged("event=output_gone")
    append(LINES[300:])
    ids = lambda: [json.loads(line)["id"] for line in whole_lines(path) if b"}" in line]  # noqa: E731
    wait_for(lambda: ids()[-1:] == [LINES[-1]["id"]], what="the rest")
    assert stop(process)[0] == 0
    log = (one.folder / "log").read_text()
    (told,) = [line for line in log.splitlines() if "event=output_gone" in line]
    assert f"output={path}" in told
    assert ("a new one is begun" in told) == (how != "cut"), told
    assert ("may be broken" in told) == (how == "cut"), told
    assert ids()[-300:] == [e["id"] for e in LINES[300:]]
    assert "output_gone" not in one.call("run", "config.toml", "--until-eof").stderr


def whole_lines(path):
    """Return the lines of a file that can be read."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            json.loads(line)
        except ValueError:
            continue
        found.append(line)
    return found
