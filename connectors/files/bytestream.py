"""Reads a file or a pipe as decompressed bytes, forward only, without blocking."""

import os
import select
import stat
import zlib
from pathlib import Path

from midstream.connectors.input import InputError

__all__ = ["HEAD", "TAIL", "ByteStream", "changed"]

HEAD = 512
"""Number of first bytes by which a file is recognised."""
TAIL = 16 * 1024
"""Number of bytes before a position by which a file is recognised as the one read."""
_WAY_OUT = (
    "Put back what was there, or start over with --fresh. (A log that is rotated by rename, as "
    "logrotate's `create` does, is followed; with `copytruncate`, what is written in between is "
    "lost. Where the copy beside it has all: `cp FILE new && mv new FILE` makes what is there now "
    "a log of its own, and the copy is read to its end first)"
)
_READ = 256 * 1024
# A damaged archive is read again byte by byte from its last good step, so steps are small.
_READ_GZIP = 16 * 1024
_INFLATE = 1024 * 1024
_MAGIC = b"\x1f\x8b"
_GZIP = 31  # zlib's wbits for a gzip header and trailer


def changed(name: str, unit: str, position: int) -> str:
    """Return the message for a file whose bytes before a position have changed."""
    return (
        f"{name}: what comes before {unit} {position:,} is not what was learned from it: it was "
        "truncated and has grown again, or an older copy, or another file, was put in its place. "
        f"{_WAY_OUT}"
    )


def _print_of(data: bytes) -> int:
    """Return a fingerprint of bytes, never 0."""
    return zlib.crc32(data) or 1


class ByteStream:
    """The uncompressed bytes of a file descriptor, through a window that moves forward.

    Plain or gzip, by the first two bytes; gzip members are read one after another. Damage in an
    archive ends the bytes there. All bytes before it are returned, independently of how reads were
    cut, and `check` raises.

    Parameters
    ----------
    fd
        An open file descriptor. Closed by `close`.
    name
        Name in errors.
    path
        Path of the file; None for standard input.
    offset
        Position of the first byte. Only for counting: nothing is skipped.
    """

    def __init__(self, fd: int, name: str, *, path: Path | None, offset: int = 0) -> None:
        self.name = name
        self.offset = offset
        self.growing = True  # the file may grow; False: its present end is final
        self._fd = fd
        self._path = path
        self._buffer = bytearray()
        info = os.fstat(fd)
        self._regular = stat.S_ISREG(info.st_mode)
        self.inode = 0 if path is None else info.st_ino
        self._first = b""  # the first bytes of an archive or a pipe
        self._recent = b""  # bytes before the offset
        self._seen = (-1, -1)  # size and time of the file when last found unchanged
        self._poll: select.poll | None = None
        if not self._regular:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        self._raw_offset = os.lseek(fd, 0, os.SEEK_CUR) if self._regular else 0
        self._raw_end = False
        self._gzip: bool | None = None  # None: fewer than two bytes seen
        if self._regular and path is not None and len(begin := os.pread(fd, 2, 0)) == 2:
            self._gzip = begin == _MAGIC
        self._inflater: zlib._Decompress | None = None
        self._pending = b""  # raw bytes, not inflated or not recognised yet
        self._failure: str | None = None

    def close(self) -> None:
        """Close the file descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def peek(self, n: int) -> bytes:
        """Return the next `n` bytes; fewer if no more can be read now."""
        if self._plain and self._gzip is False:
            self._buffer.clear()
            return self._look(n)
        buffer = self._buffer
        while len(buffer) < n:
            more = self._pull()
            if not more:
                break
            buffer += more
        with memoryview(buffer) as view, view[:n] as part:
            return bytes(part)

    def _look(self, n: int) -> bytes:
        """Return the next `n` bytes of a plain file, which can be read again at will."""
        try:
            data = os.pread(self._fd, n, self.offset)
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}") from None
        self._raw_end = len(data) < n
        if not data and n and (size := os.fstat(self._fd).st_size) < self.offset:
            raise InputError(self.too_short(size, self.offset))
        return data

    def skip(self, data: bytes) -> None:
        """Advance past `data`, which was peeked at before.

        Raises
        ------
        InputError
            If the file was truncated in place, so that what was read is missing.
        """
        self._check_unchanged()
        if self.offset == len(self._first) < HEAD:
            self._first += data[: HEAD - len(self._first)]
        self._recent = data[-TAIL:] if len(data) >= TAIL else (self._recent + data)[-TAIL:]
        del self._buffer[: len(data)]
        self.offset += len(data)

    def seek(self, position: int) -> None:
        """Advance to a position at or after the current one. Raises InputError if it is missing.

        In an archive everything before it is decompressed.
        """
        if self._plain:
            size = os.fstat(self._fd).st_size
            if size < position:
                raise InputError(self.too_short(size, position))
            self._buffer.clear()
            self._pending = b""
            self._gzip = False
            self.offset = position
            self._recent = self._before()
            return
        while self.offset < position:
            data = self.peek(min(position - self.offset, _INFLATE))
            if not data:
                self.check()
                raise InputError(self.too_short(self.offset, position))
            self.skip(data)

    @property
    def head(self) -> int:
        """Fingerprint of the first bytes before the offset; 0: the input cannot be recognised."""
        if self._path is None or not self.offset:
            return 0
        if self._plain and len(self._first) < min(HEAD, self.offset):
            self._first = os.pread(self._fd, min(HEAD, self.offset), 0)
        return zlib.crc32(self._first[: self.offset])

    @property
    def tail(self) -> int:
        """Fingerprint of the bytes just before the offset; 0: the input cannot be recognised."""
        return 0 if self._path is None or not self.offset else _print_of(self._recent)

    @property
    def deleted(self) -> bool:
        """Whether the file has no name any more: closing it deletes its contents."""
        return self._fd < 0 or os.fstat(self._fd).st_nlink == 0

    @property
    def _plain(self) -> bool:
        """Whether the file can be read at any position: neither an archive nor a pipe."""
        return self._regular and self._path is not None and self._gzip is not True

    def _before(self) -> bytes:
        """Return the bytes just before the offset of a plain file, as they are now."""
        n = min(TAIL, self.offset)
        try:
            return os.pread(self._fd, n, self.offset - n)
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}") from None

    def _check_unchanged(self) -> None:
        """Raise InputError if a plain file was truncated and has grown past the offset again."""
        if not self._plain or not self.offset:
            return
        info = os.fstat(self._fd)
        if self._seen == (info.st_size, info.st_mtime_ns):
            return
        if self._before() != self._recent:
            raise InputError(changed(self.name, "byte", self.offset))
        self._seen = info.st_size, info.st_mtime_ns

    @property
    def ended(self) -> bool:
        """Whether the bytes last peeked at are the last. Always False for a damaged archive."""
        if self._failure is not None or not self._at_end:
            return False
        if self._gzip and (self._inflater is not None or self._pending):
            self._fail("it ends in the middle")
            return False
        return True

    def check(self) -> None:
        """Raise InputError if the bytes end in damage."""
        if self._failure is not None:
            raise InputError(self._failure)

    def too_short(self, size: int, position: int) -> str:
        """Return the message for a file that ends at `size`, before a position read earlier."""
        return (
            f"{self.name}: holds {size:,} bytes, but {position:,} were read before: it was "
            f"truncated, or an older copy was put in its place. {_WAY_OUT}"
        )

    @property
    def _at_end(self) -> bool:
        return self._raw_end and not (self._regular and self.growing)

    def _fail(self, why: str) -> None:
        end = self.offset + len(self._buffer)
        self._failure = f"{self.name}: damaged gzip archive: {why}; {end:,} bytes could be read"

    def _raw(self, n: int) -> bytes:
        """Read raw bytes; none at the end, or if a pipe has none now."""
        self._raw_end = False
        try:
            if self._poll is not None and not self._poll.poll(0):
                return b""
            data = os.read(self._fd, n)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}") from None
        self._raw_offset += len(data)
        if not data:
            self._raw_end = True
            if self._regular and (size := os.fstat(self._fd).st_size) < self._raw_offset:
                raise InputError(self.too_short(size, self._raw_offset))
        return data

    def _pull(self) -> bytes:
        """Return more uncompressed bytes; none if none are available now."""
        if self._gzip is None:
            self._pending += self._raw(_READ)
            if not self._pending or (self._pending == _MAGIC[:1] and not self._at_end):
                return b""
            self._gzip = self._pending[:2] == _MAGIC
            if not self._gzip:
                data, self._pending = self._pending, b""
                return data
        return self._inflate() if self._gzip else self._raw(_READ)

    def _inflate(self) -> bytes:
        while self._failure is None:
            if not self._pending or (self._inflater is None and len(self._pending) < 2):
                more = self._raw(_READ_GZIP)
                if not more:
                    return b""
                self._pending += more
            if self._inflater is None and not self._next_member():
                continue
            assert self._inflater is not None
            inflater, before = self._inflater, self._inflater.copy()
            try:
                data = inflater.decompress(self._pending, _INFLATE)
            except zlib.error as error:
                data = self._salvage(before)
                self._buffer += data  # the position in the message includes it
                self._fail(str(error).rpartition(": ")[2])
                del self._buffer[len(self._buffer) - len(data) :]
                return data
            self._pending = inflater.unconsumed_tail
            if inflater.eof:
                self._pending = inflater.unused_data
                self._inflater = None
            if data:
                return data
        return b""

    def _next_member(self) -> bool:
        """Begin the next member, if any; skip zero padding between members."""
        self._pending = self._pending.lstrip(b"\0")
        if len(self._pending) < 2:
            return False
        if self._pending[:2] != _MAGIC:
            self._fail("something that is no archive follows its last part")
            return False
        self._inflater = zlib.decompressobj(_GZIP)
        return True

    def _salvage(self, inflater: "zlib._Decompress") -> bytes:
        """Return all bytes that can be inflated before the damage, however reads were cut."""
        data = bytearray()
        try:
            for i in range(len(self._pending)):
                data += inflater.decompress(self._pending[i : i + 1])
        except zlib.error:
            pass
        return bytes(data)
