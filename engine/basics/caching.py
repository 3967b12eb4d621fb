"""Choose a cache folder for Numba where the usual ones are not writable.

Numba uses NUMBA_CACHE_DIR, the package's folder or the user's cache folder, and refuses to start if
it cannot write to any of them. Then a private folder among the temporary files is used. If there is
none, nothing is cached.
"""

import os
import stat
import sys
from pathlib import Path

__all__ = ["choose_cache", "kept", "private_folder"]

kept = True
"""Whether compiled code is kept for the next start."""

_PACKAGES = ("engine", "connectors", "flows")
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 containers have the last one, too


def choose_cache(package: Path) -> Path | None:
    """Make Numba cache compiled code in a folder that this user may write to.

    Parameters
    ----------
    package
        The folder of the package `midstream`.

    Returns
    -------
    Path or None
        The folder chosen; None if Numba finds one by itself, or there is none (`kept`).
    """
    global kept  # noqa: PLW0603 there is one numba
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given and _may_write(Path(given)):
        return None
    if all(_may_write(package / name / "__pycache__") for name in _PACKAGES):
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 as numba does
    if _may_write(Path(home) / "numba"):
        return None
    for parent in _temporary():
        folder = private_folder(Path(parent) / f"midstream-numba-{os.geteuid()}")
        if folder is not None:
            os.environ["NUMBA_CACHE_DIR"] = str(folder)
            if "numba" in sys.modules:
                sys.modules["numba"].config.CACHE_DIR = str(folder)
            return folder
    from numba.core.dispatcher import Dispatcher

    kept = False
    Dispatcher.enable_caching = _keep_nothing  # type: ignore[assignment, method-assign]
    return None


def _keep_nothing(_: object) -> None:
    """Replaces a function that would refuse to compile without a cache."""


def private_folder(folder: Path) -> Path | None:
    """Return a folder that only this user can access, made if missing; None if impossible.

    Code in it is run: anyone who could write to it could make us run theirs.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return folder if ours and not found.st_mode & 0o022 and _may_write(folder) else None


def _temporary() -> list[str]:
    """Return the possible temporary folders, without the working directory that Python adds."""
    given = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return [*filter(None, given), *_TEMPORARY]


def _may_write(folder: Path) -> bool:
    """Whether files can be made in a folder that exists or can be made."""
    try:
        while not folder.exists():
            folder = folder.parent
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
