"""Names of rotated logs: events.log becomes events.log.1, or events.log-20261129.gz.

A name proves nothing: it says where to look, and which log is older.
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
    """Return the name in the journal of a log's successor, after `age` earlier logs."""
    return f"{log}+{age}" if age else log


def first_name(name: str) -> tuple[str, int]:
    """Return a log's first name, and how many logs preceded it; see `later_name`."""
    later = _LATER.fullmatch(name)
    return (later[1], int(later[2])) if later else (name, 0)


@lru_cache(1024)
def _pattern(name: str) -> re.Pattern[str]:
    """Match the names that a log may get later: a stamp after it, or before its ending."""
    stem, dot, end = name.rpartition(".")
    names = [re.escape(name) + _STAMP]
    if dot and stem:
        before = _STAMP.replace("stamp", "inner")
        names.append(re.escape(stem) + before + re.escape(dot + end))
    return re.compile(f"(?:{'|'.join(names)}){_PACKED}")


def _order(stamp: str) -> tuple[int, str]:
    """Return a sort key that orders stamps of one kind by time: dates rise, numbers fall."""
    digits = re.sub(r"\D", "", stamp)
    if digits == stamp and len(stamp) <= 5:
        return 1, f"{99_999 - int(stamp):05d}"
    return 0, digits


def is_rotated(name: str, log: str) -> bool:
    """Whether a file of this name may be what `log` was once; both may have a folder."""
    folder, _, last = name.rpartition("/")
    of, _, base = log.rpartition("/")
    if folder != of or not last.startswith(base.rpartition(".")[0]):
        return False
    return last == f"{base}.gz" or _pattern(base).fullmatch(last) is not None


def siblings(log: Path, entries: Mapping[Path, int]) -> list[Path]:
    """Return the files that a log may have become, the oldest first.

    Where an uncompressed file and its compressed copy both exist, only the former counts.

    Parameters
    ----------
    entries
        The contents of its folder.
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
    """Return the regular files in a folder, each with its inode number."""
    try:
        with os.scandir(folder) as entries:
            return {Path(entry.path): entry.inode() for entry in entries if entry.is_file()}
    except OSError:
        return {}  # reading it will raise
