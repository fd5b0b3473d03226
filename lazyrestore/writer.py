"""Writing an image piece by piece: for what does not fit into memory, and for `dump`.

    with ImageWriter("state.lzr") as image:
        image.add_region("table")
        for block in blocks:
            image.write(block)
        image.zero(64 << 30)

The file takes its place when the writer is closed without an error, and not before.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import format as fmt
from ._assemble import Assembler, new_identity
from ._compress import JOB_BYTES, BufferPool, Job, Pipeline, Run
from ._content import (
    DEFAULT_CLUSTER_SIZE,
    DEFAULT_LEVEL,
    BytePlanes,
    Region,
    byte_view,
    check_byte_planes,
    check_name,
    check_options,
    check_region,
    default_threads,
    pack_metadata,
)
from ._filemap import check_file_name
from ._outfile import AbortOnError, OutputFile
from .reports import DumpReport, RegionInfo

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ImageWriter", "Progress"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are done and their total, where that is known."""

_IN_FLIGHT_BYTES = 48 << 20
_PROGRESS_S = 0.05


class ImageWriter:
    """Writes one image, front to back. For one thread at a time; it compresses on many.

    As a context manager it closes the image at the end, and removes it after an exception. Whatever
    was at `path` before stays until the image is complete.

    Args:
        path: the image.
        page_size: bytes of a page, a power of two from 4096 to 65536.
        cluster_size: bytes that are compressed together, a power of two from 4 KiB to 2 MiB.
        level: of zstd, -7 to 22.
        threads: that compress; None: one for each core that this process may use, or as many as
            find 96 MiB to work in (byte planes may take as much again).
        byte_planes: whether the bytes of numbers are grouped before they are compressed, where a
            sample shows that it pays: "auto": in regions that were added with a `width`; "none";
            2, 4 or 8: in all, as numbers of so many bytes.
        source: what this is, for people; kept in the header.
        progress: called now and then with the bytes that are done and `total_bytes`.
        total_bytes: what will be written, for progress only.

    Raises:
        ValueError: a setting cannot be.
        OSError: the file cannot be written; also from every other method, which then have removed
            it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        page_size: int = fmt.PAGE_SIZE_MIN,
        cluster_size: int = DEFAULT_CLUSTER_SIZE,
        level: int = DEFAULT_LEVEL,
        threads: int | None = None,
        byte_planes: BytePlanes = "auto",
        source: str = "",
        progress: Progress | None = None,
        total_bytes: int | None = None,
    ) -> None:
        check_options(page_size, cluster_size, level, threads)
        self._byte_planes = check_byte_planes(byte_planes)
        self.page_size = page_size
        self.cluster_size = cluster_size
        self._start = time.perf_counter()
        self._progress = progress
        self._total_bytes = total_bytes
        self._progress_at = 0.0
        self._done_bytes = 0

        self._regions: list[Region] = []
        self._names: set[str] = set()
        self._files: dict[str, bytes] = {}
        self._files_bytes = 0
        self._next_cluster = 0
        self._metadata_bytes = 0
        self._logical_bytes = 0
        self._buffer: memoryview | None = None  # the job that is being filled
        self._filled = 0
        self._holes: list[tuple[int, int]] = []

        self._job_bytes = max(JOB_BYTES, cluster_size)
        self._pool = BufferPool(self._job_bytes)
        threads = threads or default_threads(level, cluster_size)
        self._room = min(2 * threads + 2, _IN_FLIGHT_BYTES // self._job_bytes)
        self._under_way: deque[Job | Run | Region] = deque()
        self._pipeline = Pipeline(page_size, cluster_size, level, min(threads, self._room))

        self._report: DumpReport | None = None
        self._is_open = True
        self._file = OutputFile(os.fsdecode(path))
        self._assembler = Assembler(
            self._file, self._pipeline.seen, page_size=page_size, cluster_size=cluster_size
        )
        # A writer that is forgotten, or open when the interpreter ends, leaves nothing behind.
        self._forgotten = weakref.finalize(self, _discard, self._file, self._pipeline)
        try:
            self._assembler.write_header(self._identity(), source)
        except BaseException:
            self.abort()
            raise

    # ---- What callers do -----------------------------------------------------------------------

    def add_region(
        self,
        name: str,
        *,
        address: int = 0,
        protection: int = fmt.PROTECTION_READ | fmt.PROTECTION_WRITE,
        shared: bool = False,
        metadata: Mapping[str, object] | None = None,
        width: int = 0,
    ) -> None:
        """Begin a region; the one before ends. Its length is what is then written to it.

        Args:
            name: unique in the image, 1 to 4096 bytes of UTF-8.
            address: where it is now; 0: unknown.
            protection: 1 read, 2 write, 4 execute, added up.
            shared: True if the mapping is shared.
            metadata: what shall be kept with it; keys are str, values what msgpack can hold.
            width: 2, 4 or 8 if it holds numbers of so many bytes, else 0. With `byte_planes`
                "auto", their bytes are then grouped before they are compressed, where that pays.

        Raises:
            ValueError: the name is taken, or something is out of range.
            TypeError: msgpack cannot hold the metadata.
        """
        self._check_open()
        encoded = check_name(name)
        if name in self._names:
            raise ValueError(f"the image has a region {name!r} already")
        check_region(name, address, protection, width)
        if len(self._regions) >= fmt.REGIONS_MAX:
            raise ValueError(f"an image has at most {fmt.REGIONS_MAX} regions")
        packed = pack_metadata(name, metadata)
        if self._metadata_bytes + len(packed) + 5 > fmt.METADATA_BYTES_MAX:
            raise ValueError("the metadata of all regions takes more than 256 MiB")
        with AbortOnError(self):
            self._end_region()
            info = RegionInfo(name, address, 0, protection, shared)
            planes = width if self._byte_planes is None else self._byte_planes
            self._regions.append(Region(info, encoded, packed, self._next_cluster, planes))
            self._names.add(name)
            self._metadata_bytes += len(packed)

    def rename_region(self, name: str) -> None:
        """Give the last region another name: for one whose end is known when it is reached.

        Args:
            name: unique in the image, 1 to 4096 bytes of UTF-8.

        Raises:
            ValueError: the name is taken, or cannot be; or there is no region yet.
        """
        self._check_open()
        if not self._regions:
            raise ValueError("there is no region to rename: call add_region first")
        encoded = check_name(name)
        region = self._regions[-1]
        if name in self._names and name != region.info.name:
            raise ValueError(f"the image has a region {name!r} already")
        self._names.discard(region.info.name)
        self._names.add(name)
        region.name = encoded
        region.info = dataclasses.replace(region.info, name=name)

    def add_file(self, name: str, data: Buffer) -> None:
        """Keep a small file in the image, as it is: `Image.files` has it again.

        All of them are held in memory until the image is closed, and when it is read.

        Args:
            name: unique in the image: 1 to 255 bytes of UTF-8, without "/".
            data: its content.

        Raises:
            ValueError: the name is taken or cannot be, or all files take more than 64 MiB.
        """
        self._check_open()
        encoded = check_file_name(name)
        if name in self._files:
            raise ValueError(f"the image has a file {name!r} already")
        content = bytes(data)
        nbytes = self._files_bytes + len(encoded) + len(content) + 8  # and msgpack's prefixes
        if nbytes > fmt.FILES_BYTES_MAX - 5:
            raise ValueError("the files of an image take at most 64 MiB: make a region of it")
        self._files[name] = content
        self._files_bytes = nbytes

    def write(self, data: Buffer) -> None:
        """Append bytes, of any number; `data` may be used again afterwards."""
        view = byte_view(data)
        self._grow(len(view))
        with AbortOnError(self):
            self._copy(view)

    def write_stable(self, data: Buffer) -> None:
        """Append bytes that nobody changes until the image is closed: they are not copied."""
        view = byte_view(data)
        self._grow(len(view))
        with AbortOnError(self):
            at = 0
            while len(view) - at >= self.cluster_size:
                if self._filled:
                    # Copy up to where clusters begin.
                    step = min(-self._filled % self.cluster_size, len(view) - at)
                    self._copy(view[at : at + step])
                    if self._filled:
                        self._submit_buffer()
                else:
                    step = min(len(view) - at, self._job_bytes)
                    step -= step % self.cluster_size
                    self._submit(view[at : at + step])
                at += step
            self._copy(view[at:])

    def fill(self, fetch: Callable[[memoryview], int], nbytes: int) -> int:
        """Append up to `nbytes` bytes that `fetch` puts into memory of the writer's.

        Args:
            fetch: called with a view of some length until all are there, or it fills less than
                that; gives the bytes that it has filled, from the view's start. It does not keep
                the view.
            nbytes: how many are wanted at most.

        Returns:
            How many were appended.
        """
        done = 0
        self._grow(0)
        while done < nbytes:
            with AbortOnError(self):
                buffer = self._open_buffer()
                end = min(self._job_bytes, self._filled + nbytes - done)
                with buffer[self._filled : end] as view:
                    wanted, got = len(view), fetch(view)
                self._grow(got)
                if got:
                    self._advance(got)
            done += got
            if got < wanted:
                break
        return done

    def zero(self, nbytes: int) -> None:
        """Append zeros; costs next to nothing, however many."""
        self._gap(fmt.CLUSTER_ZERO, nbytes)

    def hole(self, nbytes: int) -> None:
        """Append what was never mapped or never touched; costs next to nothing, however much.

        Reads as zeros. A page counts as a hole if all of it is one.
        """
        self._gap(fmt.CLUSTER_HOLE, nbytes)

    def close(self) -> DumpReport:
        """Write what is left and put the image in its place. Once closed, gives the report again.

        Raises:
            OSError: it cannot be written; the old file, or none, is still there.
            ValueError: the writer was aborted.
        """
        if self._report is None:
            self._check_open()
            with AbortOnError(self):
                self._finish()
        assert self._report is not None
        return self._report

    def abort(self) -> None:
        """Give up: end the threads, remove what was written. Does nothing once closed."""
        self._is_open = False
        _discard(self._file, self._pipeline)
        self._forgotten.detach()
        self._under_way.clear()
        self._buffer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._is_open:
            self.close()

    # ---- Collecting pieces into jobs -------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._is_open:
            raise ValueError(f"the writer of {self._file.path} is closed")

    def _grow(self, nbytes: int) -> None:
        """Account for bytes that are about to be appended to the last region."""
        self._check_open()
        if not self._regions:
            raise ValueError("there is no region to write to: call add_region first")
        if nbytes < 0:
            raise ValueError(f"cannot append {nbytes} bytes")
        if self._logical_bytes + nbytes > fmt.LENGTH_MAX:
            raise ValueError("the regions of an image have at most 2^62 bytes in all")
        self._regions[-1].length += nbytes
        self._logical_bytes += nbytes

    def _copy(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            buffer = self._open_buffer()
            step = min(self._job_bytes - self._filled, len(view) - at)
            buffer[self._filled : self._filled + step] = view[at : at + step]
            self._advance(step)
            at += step

    def _gap(self, kind: int, nbytes: int) -> None:
        nbytes = operator.index(nbytes)  # 5.0 bytes would be found out much later
        self._grow(nbytes)
        with AbortOnError(self):
            if self._filled:
                if nbytes < self._job_bytes - self._filled:
                    self._mark(kind, nbytes)
                    return
                step = -self._filled % self.cluster_size
                self._mark(kind, step)
                nbytes -= step
                if self._filled:
                    self._submit_buffer()
            clusters, rest = divmod(nbytes, self.cluster_size)
            if clusters:
                self._next_cluster += clusters
                self._enqueue(Run(kind, clusters))
            self._mark(kind, rest)

    def _mark(self, kind: int, nbytes: int) -> None:
        """Put zeros into the buffer, and note a hole."""
        if not nbytes:
            return
        start, end = self._filled, self._filled + nbytes
        self._open_buffer()[start:end] = bytes(nbytes)
        if kind == fmt.CLUSTER_HOLE:
            if self._holes and self._holes[-1][1] == start:
                start = self._holes.pop()[0]
            self._holes.append((start, end))
        self._advance(nbytes)

    def _open_buffer(self) -> memoryview:
        if self._buffer is None:
            self._buffer = self._pool.get()
        return self._buffer

    def _advance(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == self._job_bytes:
            self._submit_buffer()

    def _submit_buffer(self) -> None:
        buffer, holes, filled = self._buffer, self._holes, self._filled
        assert buffer is not None
        self._buffer, self._holes, self._filled = None, [], 0
        self._submit(buffer[:filled], holes, buffer)

    def _submit(
        self,
        view: memoryview,
        holes: list[tuple[int, int]] | None = None,
        buffer: memoryview | None = None,
    ) -> None:
        job = Job(view, self._next_cluster, holes or [], buffer, self._regions[-1].width)
        self._next_cluster += -(-job.nbytes // self.cluster_size)
        self._enqueue(job)

    def _end_region(self) -> None:
        if not self._regions:
            return
        if self._filled:
            self._submit_buffer()
        self._enqueue(self._regions[-1])

    def _enqueue(self, piece: Job | Run | Region) -> None:
        while len(self._under_way) >= self._room:
            self._write_oldest()
        self._under_way.append(piece)
        if isinstance(piece, Job):
            self._pipeline.submit(piece)

    # ---- Results, in the order of the pieces ----------------------------------------------------

    def _write_oldest(self) -> None:
        piece = self._under_way[0]
        if isinstance(piece, Job):
            piece.wait()
        self._under_way.popleft()
        if isinstance(piece, Job):
            self._done_bytes += piece.nbytes
            self._assembler.write_job(piece)
            if piece.buffer is not None:
                self._pool.put(piece.buffer)
        elif isinstance(piece, Run):
            self._done_bytes += piece.count * self.cluster_size
            self._assembler.write_run(piece)
        else:
            self._assembler.end_region(piece)
        self._tell_progress()

    def _tell_progress(self, is_last: bool = False) -> None:
        if self._progress is None:
            return
        now = time.monotonic()
        if is_last or now - self._progress_at >= _PROGRESS_S:
            self._progress_at = now
            self._progress(self._done_bytes, self._total_bytes)

    def _identity(self) -> tuple[bytes, str, str]:
        return new_identity()

    def _finish(self) -> None:
        self._end_region()
        while self._under_way:
            self._write_oldest()
        self._pipeline.stop()
        digest = self._assembler.finish(self._regions, self._files)
        stored_bytes = self._file.position
        self._tell_progress(is_last=True)
        self._file.commit()
        self._is_open = False
        self._forgotten.detach()
        tallies = self._assembler.tallies
        self._report = DumpReport(
            path=self._file.path,
            logical_bytes=self._logical_bytes,
            stored_bytes=stored_bytes,
            ratio=self._logical_bytes / stored_bytes,
            zero_bytes=tallies.zero_bytes,
            hole_bytes=tallies.hole_bytes,
            data_bytes=self._logical_bytes - tallies.zero_bytes - tallies.hole_bytes,
            duplicate_bytes=tallies.duplicate_bytes,
            regions=tuple(
                dataclasses.replace(region.info, length=region.length, planes=region.planes)
                for region in self._regions
            ),
            digest=digest.hex(),
            seconds=time.perf_counter() - self._start,
        )


def _discard(file: OutputFile, pipeline: Pipeline) -> None:
    """Remove the file if it was not put in its place, first: a second Ctrl-C may end the rest."""
    file.discard()
    pipeline.stop()
