"""Where numba keeps what it compiles, for users who may not write where it usually does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import midstream
from midstream.engine.basics.caching import choose_cache, private_folder


def closed(*folders):
    """Return a function that says of these folders, and what is in them, that it may not write."""
    may = os.access

    def access(path, *arguments, **options):
        inside = any(Path(path).is_relative_to(folder) for folder in folders)
        return not inside and may(path, *arguments, **options)

    return access


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package, in a place that nobody may write to, as the home; nothing of it is chosen yet."""
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "closed" / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = tmp_path / "closed" / "package"
    made.mkdir(parents=True)
    monkeypatch.setattr(os, "access", closed(tmp_path / "closed"))
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    return made


def test_a_private_folder_is_taken_where_neither_package_nor_home_can_be_written(package, tmp_path):
    """It is among the temporary files, and numba is told."""
    import numba

    chosen = choose_cache(package)
    assert chosen == tmp_path / "temporary" / f"midstream-numba-{os.geteuid()}"
    assert chosen.stat().st_mode & 0o777 == 0o700
    assert os.environ.pop("NUMBA_CACHE_DIR") == numba.config.CACHE_DIR == str(chosen)


@pytest.mark.parametrize("where", ["given", "package", "home"])
def test_what_numba_finds_by_itself_is_left_to_it(where, package, tmp_path, monkeypatch):
    """A folder that is given, the package's or the home's comes first."""
    if where == "given":
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    elif where == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
    else:
        package = tmp_path / "open"
    given = os.environ.get("NUMBA_CACHE_DIR")
    assert choose_cache(package) is None
    assert os.environ.get("NUMBA_CACHE_DIR") == given


def test_a_folder_that_others_may_write_to_is_not_run_from(tmp_path):
    """Nor one that is another's, or a link to somewhere: what lies in it is run."""
    assert private_folder(tmp_path / "new") == tmp_path / "new"
    assert private_folder(tmp_path / "new") == tmp_path / "new", "the next time, too"
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    assert private_folder(loose) is None
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new")
    assert private_folder(link) is None
    assert private_folder(tmp_path / "not" / "there") is None
    if os.geteuid() == 0:
        os.chown(tmp_path / "new", 65534, 65534)
        assert private_folder(tmp_path / "new") is None


def test_without_any_folder_nothing_is_kept_and_all_works():
    """Kernels compile and run, and that nothing is kept is known."""
    program = (
        "import os; os.access = lambda *a, **k: False\n"
        "import midstream\n"
        "from midstream.engine.basics import caching\n"
        "from midstream.engine.drift.monitor import njit\n"
        "assert not caching.kept\n"
        "f = njit(cache=True)(lambda x: x + 1)\n"
        "print(f(41))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "42\n", done.stderr
    assert Path(midstream.__file__).exists()
