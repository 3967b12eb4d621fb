"""A disk that is full: the run stops with a clear line, and goes on when there is room again."""

import json
import resource
import subprocess
import sys

import pytest
from project import PATIENCE, Project, events

ROOM = 150_000  # bytes
ON_A_SMALL_DISK = """
mount -t tmpfs -o size="$1" none "$2" || exit 99
"$3" -m midstream run config.toml --until-eof
echo "$?" > first
mount -o remount,size=100m "$2"
"$3" -m midstream run config.toml --until-eof --json
code=$?
cp -r "$2" kept
exit "$code"
"""
CONFIG = """
[state]
path = "disk/state"
commit_seconds = 0.01
snapshot_events = 500
[output]
path = "%s"
"""


def make(folder, out):
    """Return a project whose state is in the folder `disk`, with what it has to learn."""
    project = Project(folder, config=CONFIG % out)
    project.write(events(4_000))
    (folder / "disk").mkdir()
    return project


def check(project, folder, summary, expected):
    """Check that nothing is missing and nothing is there twice."""
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [e["id"] for e in events(4_000)]
    assert summary["digest"] == expected["digest"]
    assert summary["seen"] == 4_000


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run with room enough gives."""
    return make(tmp_path_factory.mktemp("disk") / "calm", "out").run()


def stopped_by(line, error):
    assert line.startswith("midstream: ")
    assert error in line
    assert "/disk/" in line, "the file is named"


def limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))


def test_no_file_may_grow(tmp_path, expected):
    """As a quota has it; no disk has to be made for this."""
    project = make(tmp_path / "one", "disk/out")
    process = project.start("run", "config.toml", "--until-eof", preexec_fn=limited)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    stopped_by(err.splitlines()[-1], "File too large")
    check(project, project.folder / "disk" / "out", project.run(), expected)


@pytest.mark.parametrize("out", ["out", "disk/out"])
def test_no_room_on_a_disk(tmp_path, expected, out):
    """A small one is made for it, where an ordinary user may do that."""
    project = make(tmp_path / "one", out)
    script = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh"]
    try:
        done = subprocess.run(
            [*script, str(ROOM if out != "out" else 40_000), "disk", sys.executable],
            cwd=project.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no disk can be made here: {done.stderr.strip()}")
    assert (project.folder / "first").read_text().strip() == "1", done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("midstream: ")]
    stopped_by(lines[0], "No space left on device")
    assert done.returncode == 0, done.stderr
    outputs = project.folder / ("kept/out" if out == "disk/out" else "out")
    summary = json.loads(done.stdout.splitlines()[-1])
    check(project, outputs, summary, expected)
