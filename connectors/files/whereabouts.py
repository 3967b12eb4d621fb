"""Recognises the files of an input under whatever names they have now."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from midstream.connectors.files.bytestream import HEAD, ByteStream, changed
from midstream.connectors.files.discovery import (
    FilePartition,
    NoFilesError,
    StdinPartition,
    UnreadableError,
    discover,
    is_one_file,
    natural,
    open_regular,
    place,
)
from midstream.connectors.files.rotation import (
    first_name,
    is_rotated,
    later_name,
    listing,
    siblings,
)
from midstream.connectors.input import Format, InputError
from midstream.engine.shard.journal import Cursor

if TYPE_CHECKING:
    from midstream.connectors.files.arrow_files import TablePartition

__all__ = ["GONE", "File", "Files", "MovedError", "Prints", "difference", "is_deleted"]

_Paths: TypeAlias = dict[Path, int]  # with the inode number of each file
_Found: TypeAlias = dict[Path, tuple[str, Format]]  # with name and format
State: TypeAlias = tuple[int, int, int]
"""State of a file: its inode number, its size in bytes, and its mtime in nanoseconds."""

GONE: State = (-1, -1, -1)
_TRIES = 3  # to get a stable view during a rotation


class MovedError(InputError):
    """A file whose place another file has taken."""


class File:
    """One file of the input: how far it was read, and its partition while it is open.

    Attributes
    ----------
    name
        Name in the journal, wherever the file is now.
    path
        Path of the file; None: not known.
    home, base, age
        Its first path, the name of that, and how many files were there before it.
    mark
        How far the journal says it was read; by this the file is recognised.
    inode
        Its inode number; 0: not known.
    exhausted
        The state of the file when it was read to its end.
    older, newer
        The file at its home before it, if known, and the number of files there after it.
    """

    def __init__(self, name: str, home: Path, format_: Format, *, base: str, age: int) -> None:
        self.name = name
        self.home = home
        self.base = base
        self.age = age
        self.path: Path | None = None
        self.format = format_
        self.cursor = self.mark = Cursor()
        self.inode = 0
        self.partition: FilePartition | StdinPartition | TablePartition | None = None
        self.exhausted: State | None = None
        self.older: File | None = None
        self.newer = 0

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input."""
        return self.name == "-"

    @property
    def unit(self) -> str:
        """Unit of its positions."""
        return "row" if self.format in ("arrow", "parquet") else "byte"

    @property
    def known(self) -> Cursor:
        """The last known position."""
        return self.mark if self.mark.offset > self.cursor.offset else self.cursor

    @property
    def ended(self) -> bool:
        """Whether nobody writes to it any more: it was rotated twice, or compressed."""
        packed = self.path is not None and self.path.suffix == ".gz"
        return self.newer > 1 or (packed and self.newer > 0)

    def state(self) -> State | None:
        """State of the file at its path now; None: no file."""
        if self.path is None or self.is_stdin:
            return None
        try:
            info = self.path.stat()
        except FileNotFoundError:
            return None
        return info.st_ino, info.st_size, info.st_mtime_ns

    def go_to(self, cursor: Cursor) -> None:
        """Move its cursor."""
        self.mark, self.cursor, self.exhausted = self.known, cursor, None


class Prints(NamedTuple):
    """Prints by which a file is recognised, as in `Range`."""

    head: int
    tail: int
    inode: int


def difference(found: Prints, cursor: Cursor, file: File) -> str:
    """Return why a file is not the one read up to a cursor; empty if it may be."""
    if found.head != cursor.head and found.inode != cursor.inode:
        return (
            f"{file.name}: its beginning is not what was learned from it; another file was put in "
            "its place: give it another name, or put the old one back. (A log may be rotated by "
            "rename while what was read of it stays in the folder)"
        )
    if found.head != cursor.head or (cursor.tail and found.tail != cursor.tail):
        return changed(file.name, file.unit, cursor.offset)
    return ""


_Lost: TypeAlias = dict[str, File]  # by name


class Files:
    """The files of one input, by their names in the journal.

    A file is recognised by its inode number, its first bytes and the bytes before the position. If
    number and bytes agree, it is the same file under any name. If the number differs, it is the
    file at its own place, or at a place it may have been rotated to, that holds what was read.

    Parameters
    ----------
    path, root, part, until_eof
        As in `FileInput`.
    format_
        Format of new files; "auto": by name or content.
    prints
        Returns the prints of the file at a path, as if it had been read up to a cursor.
    shut
        Closes a file.

    Attributes
    ----------
    files
        All files ever seen, in natural order; logs of one name from oldest to newest.
    new
        Names of new files, for the caller to take.
    """

    def __init__(
        self,
        path: str,
        root: Path,
        part: str | None,
        format_: Format,
        *,
        until_eof: bool,
        prints: Callable[[File, Path, Cursor], Prints],
        shut: Callable[[File], None],
    ) -> None:
        self._path = path
        self._root = root
        self._part = part
        self._format = format_
        self._until_eof = until_eof
        self._prints = prints
        self._shut = shut
        self._firsts: dict[Path, bytes] = {}  # by path, cached during a look
        self._seen: tuple[set[str], _Paths, dict[Path, _Paths]] = set(), {}, {}
        self.files: dict[str, File] = {}
        self.new: list[str] = []

    def restore(self, cursors: Mapping[str, Cursor], known: Mapping[str, Cursor]) -> None:
        """Start with a resumed shard's files, wherever they are now, as in `FileInput.seek`."""
        self.files = {}
        for name, mark in known.items():
            base, age = first_name(name)
            if base not in known:
                base, age = name, 0
            file = self.files[name] = self._made(name, base, age)
            file.cursor, file.mark, file.inode = cursors.get(name, Cursor()), mark, mark.inode
        self._sort()
        self.look()
        self.new = []

    def look(self) -> None:
        """Find the files that exist now, and where the known files are."""
        if self._path == "-":
            if not self.files:
                stdin = self.files["-"] = File("-", Path("-"), self._format, base="-", age=0)
                stdin.path = stdin.home
            return
        for _ in range(_TRIES):
            if self._bind(self._found()):
                return  # else files were renamed meanwhile
        self._bind(self._found(), last=True)

    def _found(self) -> _Found:
        """Return the existing files, in natural order, with name and format."""
        try:
            found = discover(self._path, self._root)
        except InputError as error:
            if isinstance(error, UnreadableError):
                raise
            away = not isinstance(error, NoFilesError) and not self._rotated()
            if not self.files and (self._until_eof or away):
                raise
            return {}  # none yet, or all were moved; more may come
        chosen = self._format
        return {
            path: (name, format_ if chosen == "auto" else chosen)
            for name, path, format_ in found
            if self._part is None or name == self._part
        }

    @property
    def _one(self) -> Path | None:
        """Path of the input's only file, if its path names a single file."""
        if self._part is not None:
            return place(self._path, self._root, self._part)
        one = self._path != "-" and is_one_file(self._path, self._root)
        return self._root / self._path if one else None

    def _rotated(self) -> list[Path]:
        """Return what the input's only file may have become, if it has only one."""
        one = self._one
        return [] if one is None else siblings(one, listing(one.parent))

    def _made(self, name: str, base: str, age: int) -> File:
        one = self._one
        home = place(self._path, self._root, base) if one is None else one
        return File(name, home, self._format, base=base, age=age)

    def _bind(self, found: _Found, *, last: bool = False) -> bool:
        """Find out where each file is, and which files are new.

        Return False and change nothing if another file is at the place of a missing one. If this is
        the `last` try, take it; reading it will raise.
        """
        self._firsts = {}
        free = {path: inode for path in found if (inode := _inode(path))}
        lost: _Lost = {}
        for file in self.files.values():
            here = file.path or file.home
            if here not in found and file.path is not None:  # outside the input
                free[here] = _inode(here)
            if here in free and self._is_still(file, here, free[here]):
                self._take(file, here, free, found)
            else:
                lost[file.name] = file
                if here not in found:
                    free.pop(here, None)
        if lost:
            self._renamed(lost, free, found)
        strangers = {
            name for name, f in lost.items() if f.home in free and not (f.newer or _moved_away(f))
        }
        if strangers and not last:
            return False
        for name, file in lost.items():
            if name in strangers:
                self._take(file, file.home, free, found)
            else:
                file.path = None
        for path, inode in free.items():
            name, format_ = found[path]
            if not self._is_being_packed(path, found):
                self._add(name, path, inode, format_, path)
        self._sort()
        return True

    def _renamed(self, lost: _Lost, free: _Paths, found: _Found) -> None:
        """Find files that were moved; leave in `lost` those that are not found."""
        around = {folder: listing(folder) for folder in {f.home.parent for f in lost.values()}}
        seen = set(lost), dict(free), around
        if seen == self._seen:
            return  # the same as at the last search, which found nothing
        self._seen = seen
        taken = {file.path for name, file in self.files.items() if name not in lost}
        others = {
            path: inode
            for entries in around.values()
            for path, inode in entries.items()
            if path not in taken and path not in free
        }
        free |= others  # they may be outside the input now
        by_number = {inode: path for path, inode in free.items()}
        newest_first = sorted(lost.values(), key=lambda file: -file.age)
        chains: dict[str, list[File]] = {file.base: [] for file in newest_first}
        for file in self.files.values():
            if file.base in chains:
                chains[file.base].append(file)
        # A file of which nothing was read has only its number, which may have been reused.
        for unread in (False, True):
            for find in (self._by_number, self._by_home, self._by_content):
                for file in newest_first:
                    if file.name not in lost or bool(file.known.offset) == unread:
                        continue
                    path = find(file, free, found, by_number)
                    if path is not None:
                        self._take(file, path, free, found)
                        del lost[file.name]
        for base, chain in chains.items():
            if any(file.name not in lost and file.path != file.home for file in chain):
                there = siblings(chain[0].home, around[chain[0].home.parent])
                self._fill_gaps(base, chain, there, lost, free)
        for path in others:
            free.pop(path, None)

    def _by_number(
        self, file: File, free: _Paths, _: _Found, by_number: dict[int, Path]
    ) -> Path | None:
        path = by_number.get(file.inode)
        if path not in free or (path.suffix == ".gz") != (file.home.suffix == ".gz"):
            return None  # a rename does not compress
        return path if self._is(file, path) else None

    def _by_home(self, file: File, free: _Paths, *_: object) -> Path | None:
        return file.home if file.home in free and self._is(file, file.home) else None

    def _by_content(
        self, file: File, free: _Paths, found: _Found, _: dict[int, Path]
    ) -> Path | None:
        """Find a file by content; one rotated twice only where it could be taken for new."""
        if not file.known.offset:
            return None
        # After truncation in place, a copy of a log's contents is not all of it.
        truncated = free.get(file.home) == file.inode
        there = [
            path
            for path in free
            if path.parent == file.home.parent
            and is_rotated(path.name, file.home.name)
            and (path.suffix == ".gz" or not truncated)
            and (path in found or file.newer < 2)
        ]
        return next((path for path in there if self._is(file, path)), None)

    def _is_still(self, file: File, path: Path, inode: int) -> bool:
        """Whether a file is still at its place: its inode number may have been reused."""
        if file.inode != inode:
            return not (file.inode or file.mark.offset)
        unread = file.exhausted is not None and file.state() == file.exhausted
        if file.partition is not None or unread or path.suffix == ".gz":
            return True  # if not, reading finds out
        return self._is(file, path)

    def _is(self, file: File, path: Path) -> bool:
        """Whether another path holds what was read of a file."""
        known = file.known
        if not known.offset:
            return True
        if file.unit == "byte":
            if path not in self._firsts:
                self._firsts[path] = _first_bytes(path)
            if zlib.crc32(self._firsts[path][: known.offset]) != known.head:
                return False
        try:
            return not difference(self._prints(file, path, known), known, file)
        except InputError:
            return False

    def _take(
        self,
        file: File,
        path: Path,
        free: _Paths,
        found: _Found,
    ) -> None:
        """Record that a file is at a path."""
        inode = free.pop(path)
        if file.partition is not None and file.partition.inode != inode:
            self._shut(file)
        if (file.path, file.inode) != (path, inode):
            file.exhausted = None
        file.path, file.inode = path, inode
        if path in found and file.format == "auto":
            file.format = found[path][1]

    def _add(self, name: str, path: Path, inode: int, format_: Format, home: Path) -> None:
        """Add a new file."""
        base, age = name, 0
        if name in self.files:
            age = max(f.age for f in self.files.values() if f.base == base) + 1
            while (name := later_name(base, age)) in self.files:
                age += 1
        file = File(name, home, format_, base=base, age=age)
        file.path, file.inode = path, inode
        self.files[name] = file
        self.new.append(name)

    def _fill_gaps(
        self, base: str, known: list[File], there: list[Path], lost: _Lost, free: _Paths
    ) -> None:
        """Add the logs that were rotated before they were read, or even seen.

        Of the files `there`, oldest first, these follow the first known one.
        """
        places = [there.index(file.path) for file in known if file.path in there]
        if not places:
            return
        gone = [file for file in known if file.name in lost and file.known.offset]
        unread = [file for file in known if file.name in lost and not file.known.offset]
        for path in there[min(places) + 1 :]:
            if path not in free or any(self._is(file, path) for file in gone):
                continue
            if unread:
                del lost[unread[0].name]
                self._take(unread.pop(0), path, free, {})
            else:
                self._add(base, path, free.pop(path), self._format, known[0].home)

    def _is_being_packed(self, path: Path, found: Mapping[Path, object]) -> bool:
        """Whether a file is a compressed copy, perhaps incomplete, of another existing one."""
        plain = path.with_suffix("")
        if path.suffix != ".gz" or plain not in found:
            return False
        one, other = _first_bytes(path), _first_bytes(plain)
        n = min(len(one), len(other))
        return one[:n] == other[:n]

    def _sort(self) -> None:
        """Put the files in order, and see which came after which."""
        ordered = sorted(self.files.values(), key=lambda f: (natural(PurePath(f.base)), f.age))
        last: File | None = None
        for file in ordered:
            file.older = last if last is not None and last.base == file.base else None
            last = file
        newer = 0
        for file, after in zip(reversed(ordered), [None, *reversed(ordered)], strict=False):
            newer = newer + 1 if after is not None and after.base == file.base else 0
            file.newer = newer
        self.files = {file.name: file for file in ordered}

    def is_there(self, file: File) -> bool:
        """Whether a file can be read again; if it is missing, look for it among rotated logs."""
        if file.is_stdin:
            return False
        if file.path is None:
            taken = {f.path for f in self.files.values()}
            there = listing(file.home.parent)
            paths = [path for path in siblings(file.home, there) if path not in taken]
            path = next((path for path in paths if self._is(file, path)), None)
            if path is not None:
                self._take(file, path, there, {})
        return file.path is not None and file.path.exists()


def _moved_away(file: File) -> bool:
    """Whether a file was moved away: it is open, read to its end, and has no successor."""
    followed = file.partition is not None and not is_deleted(file.partition)
    return followed and file.exhausted is not None and not file.newer


def _inode(path: Path) -> int:
    """Return the inode number of a file; 0 if it does not exist."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _first_bytes(path: Path) -> bytes:
    """Return a file's first bytes, decompressed; none if it is missing."""
    try:
        stream = ByteStream(open_regular(path, path.name), path.name, path=path)
    except InputError:
        return b""
    try:
        return stream.peek(HEAD)
    except InputError:
        return b""
    finally:
        stream.close()


def is_deleted(partition: object) -> bool:
    """Whether an open file has no name any more."""
    return isinstance(partition, FilePartition) and partition.deleted
