"""A file's bytes as memory: a raw memory dump, a device, standard input."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, BinaryIO

from lazyrestore.reports import Skipped

from ._files import READ_FLAGS, copy_piece, read_error, refuse_target
from .base import CHUNK_BYTES, Sink
from .buffer import UNNAMED

STANDARD_INPUT = "-"


class RawFile:
    """A source: all bytes of a file, from its start (or of a stream, from where it is).

    Holes of a sparse file are not read; they become zero pages. Of a file that has no length
    (a pipe, a terminal, most of /proc) everything is read until it ends.

    Args:
        file: a path, "-" for standard input, or an object with `readinto` or `read` that gives
            bytes; that one is not closed.
        name: of the region.
    """

    def __init__(self, file: str | os.PathLike[str] | BinaryIO, *, name: str = UNNAMED) -> None:
        self.skipped: list[Skipped] = []
        self.frozen_us: int | None = None
        self.name = name
        self._stream: BinaryIO | None = None
        self._path: str | None = None
        if isinstance(file, (str, os.PathLike)):
            self._path = os.fsdecode(file)
        elif hasattr(file, "readinto") or hasattr(file, "read"):
            self._stream = file
        else:
            raise TypeError(
                f"a RawFile is made of a path, '-', or a binary file, not of {type(file).__name__}"
            )

    def describe(self) -> str:
        """What this is, for people."""
        if self._path == STANDARD_INPUT:
            return "standard input"
        if self._path is not None:
            return f"file {os.path.abspath(self._path)}"
        return f"file {getattr(self._stream, 'name', 'object')}"

    def check(self, target: str) -> None:
        """Refuse what cannot be read, and what the image would replace.

        Raises:
            OSError: it cannot be read.
            ValueError: it is the target.
        """
        here = self._stat()
        if here is None:
            return
        if stat.S_ISDIR(here.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        if self._path is not None and self._path != STANDARD_INPUT and stat.S_ISREG(here.st_mode):
            os.close(
                os.open(self._path, READ_FLAGS)
            )  # a pipe's writer would take this for its reader
        refuse_target(here, target)

    def total_bytes(self) -> int | None:
        """Its length, or None where only reading tells."""
        here = self._stat()
        if here is None or not stat.S_ISREG(here.st_mode):
            return None
        return here.st_size or None

    def write_to(self, sink: Sink) -> None:
        """Write the one region."""
        sink.add_region(self.name)
        if self._path is None:
            _copy_object(self._stream, sink)
        elif self._path == STANDARD_INPUT:
            self._copy(0, sink)
        else:
            fd = os.open(self._path, READ_FLAGS)
            try:
                self._copy(fd, sink)
            finally:
                os.close(fd)

    def _stat(self) -> os.stat_result | None:
        if self._path is None:
            return None
        return os.fstat(0) if self._path == STANDARD_INPUT else os.stat(self._path)

    def _copy(self, fd: int, sink: Sink) -> None:
        length = _length(fd)
        if length is None:
            _copy_pipe(fd, sink, self.describe())
            return
        copy_piece(sink, fd, 0, length, self.describe(), self._path)


def _copy_object(stream: Any, sink: Sink) -> None:
    if hasattr(stream, "readinto"):
        _copy_until_end(stream.readinto, sink)
        return
    while data := stream.read(CHUNK_BYTES):
        if isinstance(data, str):
            raise TypeError("the file is open for text: open it with mode 'rb'")
        sink.write(data)


def _copy_pipe(fd: int, sink: Sink, what: str) -> None:
    def read_into(view: memoryview) -> int:
        try:
            return os.readv(fd, [view])
        except OSError as error:
            raise read_error(error, what) from None

    _copy_until_end(read_into, sink)


def _copy_until_end(read_into: Callable[[memoryview], int | None], sink: Sink) -> None:
    def fetch(view: memoryview) -> int:
        filled = 0
        while filled < len(view) and (count := read_into(view[filled:])):
            filled += count
        return filled

    while sink.fill(fetch, CHUNK_BYTES) == CHUNK_BYTES:
        pass


def _length(fd: int) -> int | None:
    """Where a file ends that can be read at any place; None for what has to be read to know."""
    here = os.fstat(fd)
    if not (stat.S_ISREG(here.st_mode) or stat.S_ISBLK(here.st_mode)):
        return None
    if os.lseek(fd, 0, os.SEEK_CUR):
        return None  # standard input, from which something was taken already: the rest is wanted
    if stat.S_ISREG(here.st_mode):
        # Files of /proc say 0 and have content. An empty one is as quickly read to its end.
        return here.st_size or None
    end = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, 0, os.SEEK_SET)
    return end
