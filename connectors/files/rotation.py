"""Names of logs that are rotated: events.log becomes events.log.1, or events.log-20261129.gz.

Nothing is concluded from a name alone: it says where to look, and what was written earlier.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

__all__ = ["first_name", "is_rotated", "later_name", "listing", "siblings"]

_STAMP = r"[-._](?P<stamp>\d[\d._:T-]*|old|bak)"
_LATER = re.compile(r"(.+)\+([1-9][0-9]*)")
_PACKED = r"(?P<packed>\.gz)?"


def later_name(log: str, age: int) -> str:
    """Return what the journal calls what has taken the place of a log, after `age` others."""
    return f"{log}+{age}" if age else log


def first_name(name: str) -> tuple[str, int]:
    """Return what a log was called first, and after how many others it came; see `later_name`."""
    later = _LATER.fullmatch(name)
    return (later[1], int(later[2])) if later else (name, 0)


@lru_cache(1024)
def _pattern(name: str) -> re.Pattern[str]:
    """Match what a log of this name may be called later: the stamp behind it, or before its end."""
    stem, dot, end = name.rpartition(".")
    names = [re.escape(name) + _STAMP]
    if dot and stem:
        before = _STAMP.replace("stamp", "inner")
        names.append(re.escape(stem) + before + re.escape(dot + end))
    return re.compile(f"(?:{'|'.join(names)}){_PACKED}")


def _order(stamp: str) -> tuple[int, str]:
    """Return a key by which stamps of one kind rise with time: dates do, numbers fall."""
    digits = re.sub(r"\D", "", stamp)
    if digits == stamp and len(stamp) <= 5:
        return 1, f"{99_999 - int(stamp):05d}"
    return 0, digits


def is_rotated(name: str, log: str) -> bool:
    """Whether a file of this name may be what was `log` once; both may be in a folder."""
    folder, _, last = name.rpartition("/")
    of, _, base = log.rpartition("/")
    if folder != of or not last.startswith(base.rpartition(".")[0]):
        return False
    return last == f"{base}.gz" or _pattern(base).fullmatch(last) is not None


def siblings(log: Path, entries: Mapping[Path, int]) -> list[Path]:
    """Return what a log may have become: what was begun first comes first.

    One that is being compressed, and is still there as it was, counts as it was.

    Parameters
    ----------
    entries
        What is in its folder.
    """
    pattern = _pattern(log.name)
    found: dict[str, tuple[tuple[int, str], Path]] = {}
    for path in entries:
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        stamp = match.groupdict()["stamp"] or match.groupdict().get("inner") or ""
        plain = path.name.removesuffix(".gz")
        if path.name == plain or plain not in found:
            found[plain] = _order(stamp), path
    return [path for _, path in sorted(found.values())]


def listing(folder: Path) -> dict[Path, int]:
    """Return the regular files in a folder, each with its number in the file system."""
    try:
        with os.scandir(folder) as entries:
            return {Path(entry.path): entry.inode() for entry in entries if entry.is_file()}
    except OSError:
        return {}  # it says so when it is read
