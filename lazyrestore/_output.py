"""Decoding a region into a file or a stream: `lazyrestore restore IMAGE --output FILE`."""

from __future__ import annotations

import dataclasses
import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing

from ._decode import CHUNK_BYTES, run_threads
from ._native import CData
from ._open import Image, Progress, Reader
from ._ordered import map_in_order
from ._outfile import OutputFile

STREAM_CHUNK_BYTES = 2 << 20
ZEROS = bytes(1 << 20)


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
    if is_image(image, path):
        raise ValueError(f"{path} is the image itself: give the output another name")
    if _is_stream(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            return write_stream(image, number, fd, path, threads=threads, progress=progress)
        finally:
            os.close(fd)
    start = time.perf_counter()
    info = image.regions[number]
    tally = Tally(info.length, progress)
    output = OutputFile(path)
    try:
        output.set_length(info.length)
        decode_to_file(image, [(number, 0, None)], output, tally, threads)
        output.commit()
    finally:
        output.discard()
    seconds = time.perf_counter() - start
    return OutputReport(path, info.name, info.length, tally.data_bytes, seconds)


def decode_to_file(
    image: Image,
    places: Sequence[tuple[int, int, Callable[[memoryview], bytes | memoryview] | None]],
    output: OutputFile,
    tally: Tally,
    threads: int | None = None,
) -> None:
    """Decode regions to their places in a file that reads as zeros there.

    Args:
        image: the image.
        places: number of a region, where in the file, and what its data are put through before.
        output: the file.
        tally: told of what is done.
        threads: that decode; None: one a core.
    """
    chunks = [
        (place, begin)
        for place in places
        for begin in range(0, image.regions[place[0]].length, CHUNK_BYTES)
    ]
    longest = max((image.regions[number].length for number, _, _ in places), default=0)

    def work(take: Callable[[], int | None]) -> None:
        room = bytearray(min(CHUNK_BYTES, longest))
        with image.reader() as reader, memoryview(room) as view:
            while (at := take()) is not None:
                (number, start, change), begin = chunks[at]
                end = min(begin + CHUNK_BYTES, image.regions[number].length)
                data_bytes = 0
                for is_data, first, last in _extents(image, reader, number, begin, end):
                    if not is_data:
                        continue
                    with view[: last - first] as part:
                        reader.read_into(number, first, part)
                        output.write_at(part if change is None else change(part), start + first)
                    data_bytes += last - first
                tally.add(end - begin, data_bytes)

    run_threads(work, len(chunks), threads)


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
    tally = Tally(until - offset, progress)
    with closing(decode_in_order(image, [number], threads, offset, until)) as pieces:
        for data, is_data in pieces:
            _write_all(fd, data, path)
            tally.add(len(data), len(data) if is_data else 0)
    seconds = time.perf_counter() - start
    return OutputReport(path, info.name, until - offset, tally.data_bytes, seconds)


def decode_in_order(
    image: Image,
    numbers: Iterable[int],
    threads: int | None = None,
    offset: int = 0,
    until: int | None = None,
) -> Generator[tuple[memoryview, bool]]:
    """The bytes of regions, one region after another, and whether they are data or zeros.

    Args:
        image: the image.
        numbers: of the regions.
        threads: that decode ahead; None: one a core.
        offset: where to begin in each, in bytes.
        until: where to end in each; None: at its end.
    """
    first = image.reader()

    def pieces() -> Iterator[tuple[int, bool, int, int]]:
        """What one thread decodes at a time, and zeros of any length."""
        for number in numbers:
            end = image.regions[number].length if until is None else until
            for begin, stop in _chunks(offset, end):
                for extent in _extents(image, first, number, begin, stop):
                    yield number, *extent

    def decode(piece: tuple[int, bool, int, int]) -> tuple[int, bytearray | None]:
        number, is_data, begin, end = piece
        if not is_data:
            return end - begin, None
        data = bytearray(end - begin)
        with image.reader() as reader:
            reader.read_into(number, begin, data)
        return end - begin, data

    try:
        for nbytes, data in map_in_order(decode, pieces(), threads):
            if data is not None:
                yield memoryview(data), True
                continue
            for begin in range(0, nbytes, len(ZEROS)):
                yield memoryview(ZEROS)[: nbytes - begin], False
    finally:
        first.close()


class Tally:
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


def _write_all(fd: int, data: memoryview, path: str) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def is_image(image: Image, path: str) -> bool:
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
