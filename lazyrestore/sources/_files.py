"""Reading pieces of a file into a sink: without what is a hole of a sparse file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .base import Sink

READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC


def refuse_target(here: os.stat_result, target: str) -> None:
    """ValueError if the image would take the place of the file that is read."""
    try:
        there = os.stat(target)
    except OSError:
        return
    if os.path.samestat(here, there):
        raise ValueError(f"{target} is the file to be dumped: give the image another name")


def copy_piece(sink: Sink, fd: int, start: int, end: int, what: str, path: str | None) -> None:
    """Write a piece of a file to the sink. Holes of it become zeros, and are not read.

    Args:
        sink: where to.
        fd: of a file that can be read at any place.
        start: the first byte of the file that is wanted.
        end: the first one behind them.
        what: what it is, for messages.
        path: of the file, for messages.

    Raises:
        OSError: it cannot be read, or has become shorter.
    """
    for is_data, piece_start, piece_end in _extents(fd, start, end):
        if is_data:
            _copy_data(sink, fd, piece_start, piece_end, what, path)
        else:
            sink.zero(piece_end - piece_start)


def read_error(error: OSError, what: str) -> OSError:
    """The same, with what it was that could not be read."""
    return OSError(error.errno, f"{error.strerror} (while reading {what})")


def _copy_data(sink: Sink, fd: int, start: int, end: int, what: str, path: str | None) -> None:
    at = start

    def fetch(view: memoryview) -> int:
        nonlocal at
        filled = 0
        while filled < len(view):
            try:
                count = os.preadv(fd, [view[filled:]], at)
            except OSError as error:
                raise read_error(error, what) from None
            if count == 0:
                raise OSError(
                    errno.EIO,
                    f"The file became shorter while it was dumped: it ends at byte {at}, and"
                    f" had {end} or more",
                    path,
                )
            filled += count
            at += count
        return filled

    sink.fill(fetch, end - start)


def _extents(fd: int, start: int, end: int) -> Iterator[tuple[bool, int, int]]:
    """(is data, start, end) of the extents in a piece of a file, ascending, without gaps."""
    at = start
    while at < end:
        try:
            data = min(os.lseek(fd, at, os.SEEK_DATA), end)
            if data > at:
                yield False, at, data
                at = data
                continue
            hole = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO and os.fstat(fd).st_size >= end:
                yield False, at, end  # nothing but a hole is left
            else:
                yield True, at, end  # this file cannot tell; or it shrank, which reading finds
            return
        if hole <= at:
            hole = end
        yield True, at, hole
        at = hole
