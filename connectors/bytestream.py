"""Bytes of a file or a pipe, decompressed, forward only, and never blocking."""

import os
import select
import stat
import zlib
from pathlib import Path

__all__ = ["ByteStream", "InputError"]

_READ = 256 * 1024
# A damaged archive is read again byte by byte from its last good step, so the steps are small.
_READ_GZIP = 16 * 1024
_INFLATE = 1024 * 1024
_MAGIC = b"\x1f\x8b"
_GZIP = 31  # zlib's wbits for a gzip header and trailer


class InputError(ValueError):
    """An input that cannot be read (any further). One line, naming the input."""


class ByteStream:
    """The uncompressed bytes behind a file descriptor, through a window that moves forward.

    Plain or gzip, told apart by the first two bytes; gzip members are read one after another.
    Damage in an archive ends the bytes there: what comes before it is delivered in full,
    independently of how reads were cut, and `check` raises.

    Parameters
    ----------
    fd
        An open file descriptor. Closed by `close`.
    name
        What errors call it.
    path
        Where a file was opened, None for standard input: used to notice that it was replaced.
    offset
        Position of the first byte. Only counted: nothing is skipped.
    """

    def __init__(self, fd: int, name: str, *, path: Path | None, offset: int = 0) -> None:
        self.name = name
        self.offset = offset
        self.growing = True  # a file may get longer; set False, its present end is the end
        self._fd = fd
        self._path = path
        self._buffer = bytearray()
        info = os.fstat(fd)
        self._regular = stat.S_ISREG(info.st_mode)
        self._inode = (info.st_dev, info.st_ino)
        self._poll: select.poll | None = None
        if not self._regular:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        self._raw_offset = os.lseek(fd, 0, os.SEEK_CUR) if self._regular else 0
        self._raw_end = False
        self._gzip: bool | None = None  # None: fewer than two bytes seen
        self._inflater: zlib._Decompress | None = None
        self._pending = b""  # raw bytes, not yet inflated (or not yet recognised)
        self._failure: str | None = None

    def close(self) -> None:
        """Close the file descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def peek(self, n: int) -> bytes:
        """Return the next `n` bytes; fewer where no more can be read now."""
        if self._path is not None and self._regular and self._gzip is False:
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
        """Return the next `n` bytes of a plain file, which can be read again as often as wanted."""
        try:
            data = os.pread(self._fd, n, self.offset)
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}") from None
        self._raw_end = len(data) < n
        if not data and n and (size := os.fstat(self._fd).st_size) < self.offset:
            raise InputError(self.too_short(size, self.offset))
        return data

    def skip(self, n: int) -> None:
        """Move on by `n` bytes, which were peeked at before."""
        del self._buffer[:n]
        self.offset += n

    def seek(self, position: int) -> None:
        """Move on to a position at or after the present one. Raises InputError if it is not there.

        In an archive everything before it is decompressed.
        """
        if self._regular and self._path is not None and self._gzip is not True:
            size = os.fstat(self._fd).st_size
            if size < position:
                raise InputError(self.too_short(size, position))
            self._buffer.clear()
            self._pending = b""
            self._gzip = False
            self.offset = position
            return
        while self.offset < position:
            here = len(self.peek(min(position - self.offset, _INFLATE)))
            if not here:
                self.check()
                raise InputError(self.too_short(self.offset, position))
            self.skip(here)

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

    def check_same_file(self) -> None:
        """Raise InputError if another file has taken the place of the one that is being read."""
        if self._path is None:
            return
        try:
            info = self._path.stat()
        except FileNotFoundError:
            raise InputError(f"{self.name}: was removed while it was read") from None
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}") from None
        if (info.st_dev, info.st_ino) != self._inode:
            raise InputError(f"{self.name}: was replaced by another file while it was read")

    def too_short(self, size: int, position: int) -> str:
        """Say that the file ends at `size`, before a position that was read in an earlier run."""
        return (
            f"{self.name}: holds {size:,} bytes, but {position:,} were read before: "
            "it was truncated or replaced"
        )

    @property
    def _at_end(self) -> bool:
        return self._raw_end and not (self._regular and self.growing)

    def _fail(self, why: str) -> None:
        end = self.offset + len(self._buffer)
        self._failure = f"{self.name}: damaged gzip archive: {why}; {end:,} bytes could be read"

    def _raw(self, n: int) -> bytes:
        """Read raw bytes; none at the end and where a pipe has nothing at the moment."""
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
        """Return some more uncompressed bytes, none if there are none now."""
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
                self._buffer += data  # so that the message counts it
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
        """Begin the next member, if it is there; padding of zeros between members is skipped."""
        self._pending = self._pending.lstrip(b"\0")
        if len(self._pending) < 2:
            return False
        if self._pending[:2] != _MAGIC:
            self._fail("something that is no archive follows its last part")
            return False
        self._inflater = zlib.decompressobj(_GZIP)
        return True

    def _salvage(self, inflater: "zlib._Decompress") -> bytes:
        """Return what can be inflated before the damage, whatever the steps until here were."""
        data = bytearray()
        try:
            for i in range(len(self._pending)):
                data += inflater.decompress(self._pending[i : i + 1])
        except zlib.error:
            pass
        return bytes(data)
