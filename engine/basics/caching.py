"""Where numba keeps what it has compiled, for a user who may not write where it usually does.

Numba takes NUMBA_CACHE_DIR, the package's own folder or the user's cache folder, and refuses to
start where it may write to none of them. Then a private folder among the temporary files is taken,
and where there is none, nothing is kept.
"""

import os
import stat
import sys
from pathlib import Path

__all__ = ["choose_cache", "kept", "private_folder"]

kept = True
"""Whether what is compiled is kept for the next start."""

_PACKAGES = ("engine", "connectors", "flows")
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 the last is there in containers, too


def choose_cache(package: Path) -> Path | None:
    """Have numba keep what it compiles where this user may write.

    Parameters
    ----------
    package
        The folder of the package `midstream`.

    Returns
    -------
    Path or None
        The folder that was chosen; None where numba finds one by itself, or there is none (`kept`).
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
    """Stand in for what would refuse to compile where nothing can be kept."""


def private_folder(folder: Path) -> Path | None:
    """Return a folder that is ours and nobody else's, made if need be; None if it cannot be.

    What lies in it is run: whoever could write to it could have us run anything.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return folder if ours and not found.st_mode & 0o022 and _may_write(folder) else None


def _temporary() -> list[str]:
    """Return the folders of temporary files that there may be; not where we are, as Python does."""
    given = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return [*filter(None, given), *_TEMPORARY]


def _may_write(folder: Path) -> bool:
    """Whether files can be made in a folder, or in one that can be made."""
    try:
        while not folder.exists():
            folder = folder.parent
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
