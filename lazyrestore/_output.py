"""Decoding a region into a file or a stream: `lazyrestore restore IMAGE --output FILE`."""

from __future__ import annotations

import dataclasses
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator

from ._decode import CHUNK_BYTES, run_threads
from ._native import CData
from ._open import Image, Progress, Reader
from ._ordered import map_in_order
from ._outfile import OutputFile

STREAM_CHUNK_BYTES = 2 << 20
_ZEROS = bytes(1 << 20)


@dataclasses.dataclass(frozen=True, slots=True)
class OutputReport:
    """What was decoded.

    Attributes:
        path: where it was written to.
        region: name of the region.
        logical_bytes: its length.
        data_bytes: bytes that were decoded and written; the rest are zeros.
        seconds: how long it took.
    """

    path: str
    region: str
    logical_bytes: int
    data_bytes: int
    seconds: float


def write_file(
    image: Image,
    number: int,
    path: str,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> OutputReport:
    """Decode a region into a file, which is there as a whole or not at all.

    Clusters without data are not written: the file has holes there. Something that is no file (a
    pipe, a device) is written to from start to end.

    Args:
        image: the image.
        number: of the region.
        path: the file; it is replaced when all is decoded.
        threads: that decode; None: one a core.
        progress: called with the bytes that are done and their total.

    Raises:
        OSError: it cannot be written.
        ValueError: it is the image itself, of which nothing else would be left.
        ClusterError: a cluster is damaged.
    """
    if _is_image(image, path):
        raise ValueError(f"{path} is the image itself: give the output another name")
    if _is_stream(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            return write_stream(image, number, fd, path, threads=threads, progress=progress)
        finally:
            os.close(fd)
    start = time.perf_counter()
    info = image.regions[number]
    tally = _Tally(info.length, progress)
    offsets = range(0, info.length, CHUNK_BYTES)
    output = OutputFile(path)
    try:
        output.set_length(info.length)

        def work(take: Callable[[], int | None]) -> None:
            room = bytearray(min(CHUNK_BYTES, info.length))
            with image.reader() as reader, memoryview(room) as view:
                while (at := take()) is not None:
                    begin = offsets[at]
                    end = min(begin + CHUNK_BYTES, info.length)
                    data_bytes = 0
                    for is_data, first, last in _extents(image, reader, number, begin, end):
                        if not is_data:
                            continue
                        with view[: last - first] as part:
                            reader.read_into(number, first, part)
                            output.write_at(part, first)
                        data_bytes += last - first
                    tally.add(end - begin, data_bytes)

        run_threads(work, len(offsets), threads)
        output.commit()
    finally:
        output.discard()
    seconds = time.perf_counter() - start
    return OutputReport(path, info.name, info.length, tally.data_bytes, seconds)


def write_stream(
    image: Image,
    number: int,
    fd: int,
    path: str,
    *,
    offset: int = 0,
    length: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> OutputReport:
    """Decode a region, or a part of it, and write it to an open file from start to end.

    Args:
        image: the image.
        number: of the region.
        fd: to write to; a pipe for example.
        path: its name, for the report and for errors.
        offset: where to begin, in bytes.
        length: how many bytes; None: to the end.
        threads: that decode ahead; None: one a core.
        progress: called with the bytes that are done and their total.

    Raises:
        OSError: it cannot be written; BrokenPipeError where nobody reads any more.
        ClusterError: a cluster is damaged. What stands before it was written.
    """
    start = time.perf_counter()
    info = image.regions[number]
    until = info.length if length is None else offset + length
    tally = _Tally(until - offset, progress)
    first = image.reader()

    def pieces() -> Iterator[tuple[bool, int, int]]:
        """What one thread decodes at a time, and zeros of any length."""
        for begin, end in _chunks(offset, until):
            yield from _extents(image, first, number, begin, end)

    def decode(piece: tuple[bool, int, int]) -> tuple[int, bytearray | None]:
        is_data, begin, end = piece
        if not is_data:
            return end - begin, None
        data = bytearray(end - begin)
        with image.reader() as reader:
            reader.read_into(number, begin, data)
        return end - begin, data

    try:
        for nbytes, data in map_in_order(decode, pieces(), threads):
            _write_all(fd, nbytes, data, path)
            tally.add(nbytes, nbytes if data is not None else 0)
    finally:
        first.close()
    seconds = time.perf_counter() - start
    return OutputReport(path, info.name, until - offset, tally.data_bytes, seconds)


class _Tally:
    """What is done; from any thread."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.data_bytes = 0
        self._done = 0
        self._total = total
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, nbytes: int, data_bytes: int) -> None:
        with self._lock:
            self._done += nbytes
            self.data_bytes += data_bytes
            if self._progress is not None:
                self._progress(self._done, self._total)


def _chunks(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Pieces that end at multiples of their length, so that no cluster is in two."""
    while begin < end:
        until = min(end, begin - begin % STREAM_CHUNK_BYTES + STREAM_CHUNK_BYTES)
        yield begin, until
        begin = until


def _extents(
    image: Image, reader: Reader, number: int, begin: int, end: int
) -> Iterator[tuple[bool, int, int]]:
    """(has data, start, end) of runs of clusters in a part of a region, ascending, without gaps."""
    cluster_size = image.cluster_size
    first = image.first_cluster(number)
    at = start = begin
    was_data = False
    while at < end:
        info: CData = reader.cluster(first + at // cluster_size)
        is_data = bool(info.data_pages)
        if is_data != was_data and at > start:
            yield was_data, start, at
            start = at
        was_data = is_data
        at = min(end, (at // cluster_size + int(info.run)) * cluster_size)
    if at > start:
        yield was_data, start, at


def _write_all(fd: int, nbytes: int, data: bytearray | None, path: str) -> None:
    try:
        view = memoryview(_ZEROS if data is None else data)
        while nbytes:
            # Zeros are taken from the front again and again, data from what is left at the end.
            part = view[:nbytes] if data is None else view[-nbytes:]
            nbytes -= os.write(fd, part)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _is_image(image: Image, path: str) -> bool:
    try:
        return os.path.samefile(image.path, path)
    except OSError:
        return False


def _is_stream(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
