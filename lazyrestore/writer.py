"""Writing an image piece by piece: for what does not fit into memory, and for `dump`.

    with ImageWriter("state.lzr") as image:
        image.add_region("table")
        for block in blocks:
            image.write(block)
        image.zero(64 << 30)

The file takes its place when the writer is closed without an error, and not before.
"""

from __future__ import annotations

import datetime
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pickle import PickleBuffer
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgpack
import zstandard
from blake3 import blake3

from . import format as fmt
from ._compress import NO_DATA_DIGEST, Cluster, Job, Pipeline, Run
from ._native import ffi, lib
from ._outfile import OutputFile
from ._tree import TreeBuilder
from .reports import DumpReport, RegionInfo

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ImageWriter", "Progress", "check_name", "check_options"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are done and their total, where that is known."""

DEFAULT_LEVEL = 3
DEFAULT_CLUSTER_SIZE = 65536
LEVEL_MIN = -7
LEVEL_MAX = zstandard.MAX_COMPRESSION_LEVEL
THREADS_MAX = 256

_JOB_BYTES = 1 << 20
_IN_FLIGHT_BYTES = 48 << 20
_PROGRESS_S = 0.05
_SOURCE_MAX_CHARS = 4096


def check_options(page_size: int, cluster_size: int, level: int, threads: int | None) -> None:
    """Raise ValueError for settings that an image cannot have."""
    if not (fmt.is_power_of_two(page_size) and fmt.PAGE_SIZE_MIN <= page_size <= fmt.PAGE_SIZE_MAX):
        raise ValueError(f"a page size is a power of two from 4096 to 65536, not {page_size}")
    if not (
        fmt.is_power_of_two(cluster_size)
        and fmt.CLUSTER_SIZE_MIN <= cluster_size <= fmt.CLUSTER_SIZE_MAX
    ):
        raise ValueError(
            f"a cluster size is a power of two from 4 KiB to 2 MiB, not {cluster_size} bytes"
        )
    if cluster_size < page_size:
        raise ValueError(f"clusters of {cluster_size} bytes do not hold pages of {page_size} bytes")
    if not LEVEL_MIN <= level <= LEVEL_MAX:
        raise ValueError(f"a compression level is from {LEVEL_MIN} to {LEVEL_MAX}, not {level}")
    if threads is not None and not 1 <= threads <= THREADS_MAX:
        raise ValueError(f"threads are from 1 to {THREADS_MAX}, not {threads}")


def check_name(name: str) -> bytes:
    """A region's name as it is stored, or ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a region's name is a str, not {type(name).__name__}")
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the region name {name!r} cannot be written as UTF-8") from None
    if not encoded:
        raise ValueError("a region's name cannot be empty")
    if len(encoded) > fmt.NAME_BYTES_MAX:
        raise ValueError(
            f"a region's name has at most {fmt.NAME_BYTES_MAX} bytes, not {len(encoded)}:"
            f" {name[:40]!r}..."
        )
    return encoded


class _Region:
    """A region that is being written, or was."""

    def __init__(self, info: RegionInfo, name: bytes, metadata: bytes, first_cluster: int) -> None:
        self.info = info
        self.name = name
        self.metadata = metadata
        self.first_cluster = first_cluster
        self.length = 0  # until now

    def digest_end(self) -> bytes:
        """What the content digest has after the region's clusters."""
        return b"".join(
            (
                bytes([fmt.DIGEST_REGION_END]),
                self.length.to_bytes(8, "little"),
                len(self.name).to_bytes(4, "little"),
                self.name,
                len(self.metadata).to_bytes(4, "little"),
                self.metadata,
            )
        )


class _ContentDigest:
    """The digest of the content, fed in address order: docs/format.md, "Content digest"."""

    def __init__(self, page_size: int, cluster_size: int) -> None:
        self._hash = blake3(fmt.DIGEST_PREFIX)
        self._hash.update(page_size.to_bytes(4, "little") + cluster_size.to_bytes(4, "little"))
        self._run_kind = 0
        self._run_count = 0

    def add_run(self, kind: int, count: int) -> None:
        if self._run_count and kind != self._run_kind:
            self._end_run()
        self._run_kind = kind
        self._run_count += count

    def add_cluster(self, states: bytes, digest: bytes) -> None:
        self._end_run()
        self._hash.update(bytes([fmt.DIGEST_CLUSTER]) + states + digest)

    def end_region(self, region: _Region) -> None:
        self._end_run()
        self._hash.update(region.digest_end())

    def _end_run(self) -> None:
        if self._run_count:
            self._hash.update(bytes([self._run_kind]) + self._run_count.to_bytes(8, "little"))
            self._run_count = 0

    def digest(self) -> bytes:
        return self._hash.digest()


class ImageWriter:
    """Writes one image, front to back. For one thread at a time; it compresses on many.

    As a context manager it closes the image at the end, and removes it after an exception. Whatever
    was at `path` before stays until the image is complete.

    Args:
        path: the image.
        page_size: bytes of a page, a power of two from 4096 to 65536.
        cluster_size: bytes that are compressed together, a power of two from 4 KiB to 2 MiB.
        level: of zstd, -7 to 22.
        threads: that compress; None: one for each core that this process may use.
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
        source: str = "",
        progress: Progress | None = None,
        total_bytes: int | None = None,
    ) -> None:
        check_options(page_size, cluster_size, level, threads)
        self.page_size = page_size
        self.cluster_size = cluster_size
        self._start = time.perf_counter()
        self._progress = progress
        self._total_bytes = total_bytes
        self._progress_at = 0.0
        self._done_bytes = 0

        self._regions: list[_Region] = []
        self._names: set[str] = set()
        self._next_cluster = 0
        self._metadata_bytes = 0
        self._buffer = bytearray()  # the job that is being filled; empty: none
        self._filled = 0
        self._holes: list[tuple[int, int]] = []

        self._job_bytes = max(_JOB_BYTES, cluster_size)
        threads = threads or len(os.sched_getaffinity(0))
        self._room = min(2 * threads + 2, _IN_FLIGHT_BYTES // self._job_bytes)
        self._under_way: deque[Job | Run | _Region] = deque()
        self._pipeline = Pipeline(page_size, cluster_size, level, threads)
        self._stored_room = ffi.new("struct lr_stored_cluster *")

        self._digest = _ContentDigest(page_size, cluster_size)
        self._tree = TreeBuilder(cluster_size // page_size, self._write_node)
        self._zero_bytes = 0
        self._hole_bytes = 0
        self._duplicate_bytes = 0
        self._payload_bytes = 0
        self._stored_clusters = 0

        self._report: DumpReport | None = None
        self._is_open = True
        self._file = OutputFile(os.fspath(path))
        # A writer that is forgotten, or open when the interpreter ends, leaves nothing behind.
        self._discard = weakref.finalize(self, _discard, self._file, self._pipeline)
        try:
            self._write_header(source)
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
    ) -> None:
        """Begin a region; the one before ends. Its length is what is then written to it.

        Args:
            name: unique in the image, 1 to 4096 bytes of UTF-8.
            address: where it is now; 0: unknown.
            protection: 1 read, 2 write, 4 execute, added up.
            shared: True if the mapping is shared.
            metadata: what shall be kept with it; keys are str, values what msgpack can hold.

        Raises:
            ValueError: the name is taken, or something is out of range.
            TypeError: msgpack cannot hold the metadata.
        """
        self._check_open()
        encoded = check_name(name)
        if name in self._names:
            raise ValueError(f"the image has a region {name!r} already")
        if not 0 <= address < 1 << 64:
            raise ValueError(f"the address of region {name!r} does not fit into 64 bits")
        if not 0 <= protection <= 7:
            raise ValueError(f"the protection of region {name!r} is from 0 to 7, not {protection}")
        if len(self._regions) >= fmt.REGIONS_MAX:
            raise ValueError(f"an image has at most {fmt.REGIONS_MAX} regions")
        packed = _pack_metadata(name, metadata)
        if self._metadata_bytes + len(packed) + 5 > fmt.METADATA_BYTES_MAX:
            raise ValueError("the metadata of all regions takes more than 256 MiB")
        with _AbortOnError(self):
            self._end_region()
            info = RegionInfo(name, address, 0, protection, shared)
            self._regions.append(_Region(info, encoded, packed, self._next_cluster))
            self._names.add(name)
            self._metadata_bytes += len(packed)

    def write(self, data: Buffer) -> None:
        """Append bytes, of any number; `data` may be used again afterwards."""
        view = byte_view(data)
        self._grow(len(view))
        with _AbortOnError(self):
            self._copy(view)

    def write_stable(self, data: Buffer) -> None:
        """Append bytes that nobody changes until the image is closed: they are not copied."""
        view = byte_view(data)
        self._grow(len(view))
        with _AbortOnError(self):
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
                    self._submit(view[at : at + step], [])
                at += step
            self._copy(view[at:])

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
            with _AbortOnError(self):
                self._finish()
        assert self._report is not None
        return self._report

    def abort(self) -> None:
        """Give up: end the threads, remove what was written. Does nothing once closed."""
        self._is_open = False
        self._discard()
        self._under_way.clear()
        self._buffer = bytearray()

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
        if sum(region.length for region in self._regions[-1:]) + nbytes > fmt.LENGTH_MAX:
            raise ValueError("a region has at most 2^62 bytes")
        self._regions[-1].length += nbytes

    def _copy(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            step = min(self._open_buffer() - self._filled, len(view) - at)
            self._buffer[self._filled : self._filled + step] = view[at : at + step]
            self._advance(step)
            at += step

    def _gap(self, kind: int, nbytes: int) -> None:
        self._grow(nbytes)
        with _AbortOnError(self):
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
        """Note zeros or a hole in the buffer, which is zero as it is."""
        if not nbytes:
            return
        self._open_buffer()
        if kind == fmt.CLUSTER_HOLE:
            start = self._filled
            if self._holes and self._holes[-1][1] == start:
                start = self._holes.pop()[0]
            self._holes.append((start, self._filled + nbytes))
        self._advance(nbytes)

    def _open_buffer(self) -> int:
        if not self._buffer:
            self._buffer = bytearray(self._job_bytes)  # always a new one: it has to be zero
        return self._job_bytes

    def _advance(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == self._job_bytes:
            self._submit_buffer()

    def _submit_buffer(self) -> None:
        buffer, holes, filled = self._buffer, self._holes, self._filled
        self._buffer, self._holes, self._filled = bytearray(), [], 0
        self._submit(memoryview(buffer)[:filled], holes)

    def _submit(self, view: memoryview, holes: list[tuple[int, int]]) -> None:
        job = Job(view, holes)
        self._next_cluster += -(-job.nbytes // self.cluster_size)
        self._enqueue(job)

    def _end_region(self) -> None:
        if not self._regions:
            return
        if self._filled:
            self._submit_buffer()
        self._enqueue(self._regions[-1])

    def _enqueue(self, piece: Job | Run | _Region) -> None:
        while len(self._under_way) >= self._room:
            self._write_oldest()
        self._under_way.append(piece)
        if isinstance(piece, Job):
            self._pipeline.submit(piece)

    # ---- Writing results, in order ---------------------------------------------------------------

    def _write_oldest(self) -> None:
        piece = self._under_way[0]
        if isinstance(piece, Job):
            piece.wait()
        self._under_way.popleft()
        if isinstance(piece, Run):
            self._write_run(piece)
            self._done_bytes += piece.count * self.cluster_size
            if piece.kind == fmt.CLUSTER_ZERO:
                self._zero_bytes += piece.count * self.cluster_size
            else:
                self._hole_bytes += piece.count * self.cluster_size
        elif isinstance(piece, Job):
            for result in piece.results:
                if isinstance(result, Run):
                    self._write_run(result)
                else:
                    self._write_cluster(result)
            self._file.flush()
            self._done_bytes += piece.nbytes
            self._zero_bytes += piece.zero_bytes
            self._hole_bytes += piece.hole_bytes
            piece.release()
        else:
            self._digest.end_region(piece)
        self._tell_progress()

    def _write_run(self, run: Run) -> None:
        self._tree.append_run(run.kind, run.count)
        self._digest.add_run(run.kind, run.count)

    def _write_cluster(self, cluster: Cluster) -> None:
        place = cluster.place
        if place is None:
            self._tree.append(cluster.kind, fmt.LeafEntry(cluster.kind, cluster.states).pack())
            if cluster.kind == fmt.CLUSTER_MIXED:
                self._digest.add_cluster(cluster.states, NO_DATA_DIGEST)
            else:
                self._digest.add_run(cluster.kind, 1)
            return
        if not place.offset:
            # It may have been written while this one was compressed.
            stored = self._pipeline.seen.find(cluster.digest, self._stored_room)
            if stored is None:
                place.offset = self._write_record("cluster", place.payload)
                self._pipeline.seen.put(cluster.digest, place, self._stored_room)
                self._payload_bytes += place.nbytes
                self._stored_clusters += 1
            else:
                place = stored
                self._duplicate_bytes += cluster.data_bytes
        else:
            self._duplicate_bytes += cluster.data_bytes
        entry = fmt.LeafEntry(place.kind, cluster.states, place.offset, place.nbytes, place.crc32c)
        self._tree.append(place.kind, entry.pack())
        self._digest.add_cluster(cluster.states, cluster.digest)

    def _write_record(self, key: str, payload: bytes | memoryview) -> int:
        """Append a record; the offset of its payload."""
        head = fmt.record_head(key, len(payload))
        offset = self._file.position + len(head)
        self._file.append(head, payload)
        return offset

    def _write_node(self, payload: bytes) -> fmt.Reference:
        offset = self._write_record("index", payload)
        return fmt.Reference(fmt.REFERENCE_NODE, offset, len(payload), crc32c(payload))

    def _tell_progress(self, is_last: bool = False) -> None:
        if self._progress is None:
            return
        now = time.monotonic()
        if is_last or now - self._progress_at >= _PROGRESS_S:
            self._progress_at = now
            self._progress(self._done_bytes, self._total_bytes)

    # ---- Beginning and end -----------------------------------------------------------------------

    def _identity(self) -> tuple[bytes, str, str]:
        """The image's id, when it is made, and by what."""
        from . import __version__

        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return os.urandom(16), now.replace("+00:00", "Z"), f"lazyrestore {__version__}"

    def _write_header(self, source: str) -> None:
        self._id, created, writer = self._identity()
        text = source.encode("utf-8", "backslashreplace").decode()
        if len(text) > _SOURCE_MAX_CHARS:
            text = text[: _SOURCE_MAX_CHARS - 1] + "…"
        header: dict[str, object] = {
            "version": fmt.VERSION,
            "critical": 0,
            "compatible": 0,
            "page_size": self.page_size,
            "cluster_size": self.cluster_size,
            "id": self._id,
            "created": created,
            "writer": writer,
            "source": text,
        }
        record = pack({"lazyrestore": header})
        assert len(record) <= fmt.HEADER_MAX_BYTES
        assert record.startswith(fmt.MAGIC)
        self._header_bytes, self._header_crc32c = len(record), crc32c(record)
        self._file.append(record)
        self._file.flush()  # a file system that takes nothing at all says so now

    def _finish(self) -> None:
        self._end_region()
        while self._under_way:
            self._write_oldest()
        self._pipeline.stop()
        height, tree = self._tree.finish()
        assert self._tree.cluster_count == self._next_cluster
        digest = self._digest.digest()

        metadata = fmt.array_head(len(self._regions))
        metadata += b"".join(region.metadata for region in self._regions)
        self._file.append(b"\x81\xa8metadata")
        metadata_offset = self._file.position
        self._file.append(metadata)

        root = self._pack_root(height, tree)
        root_offset = self._write_record("root", root)
        footer = fmt.Footer(
            page_size=self.page_size,
            cluster_size=self.cluster_size,
            header_bytes=self._header_bytes,
            id=self._id,
            digest=digest,
            file_bytes=self._file.position + fmt.FOOTER_RECORD_BYTES,
            root_offset=root_offset,
            root_bytes=len(root),
            root_crc32c=crc32c(root),
            metadata_offset=metadata_offset,
            metadata_bytes=len(metadata),
            metadata_crc32c=crc32c(metadata),
            header_crc32c=self._header_crc32c,
        )
        self._file.append(footer.record(crc32c(footer.pack())))
        stored_bytes = self._file.position
        self._tell_progress(is_last=True)
        self._file.commit()
        self._is_open = False
        self._report = self._make_report(stored_bytes, digest)

    def _pack_root(self, height: int, tree: fmt.Reference) -> bytes:
        table = bytearray()
        names = bytearray()
        for region in self._regions:
            table += fmt.RegionEntry(
                address=region.info.address,
                length=region.length,
                first_cluster=region.first_cluster,
                cluster_count=-(-region.length // self.cluster_size),
                name_offset=len(names),
                name_bytes=len(region.name),
                protection=region.info.protection,
                flags=fmt.REGION_SHARED if region.info.shared else 0,
            ).pack()
            names += region.name
        root = fmt.Root(
            region_count=len(self._regions),
            names_bytes=len(names),
            tree_height=height,
            cluster_count=self._next_cluster,
            logical_bytes=sum(region.length for region in self._regions),
            zero_bytes=self._zero_bytes,
            hole_bytes=self._hole_bytes,
            duplicate_bytes=self._duplicate_bytes,
            payload_bytes=self._payload_bytes,
            stored_clusters=self._stored_clusters,
            tree=tree,
        )
        return root.pack() + bytes(table) + bytes(names)

    def _make_report(self, stored_bytes: int, digest: bytes) -> DumpReport:
        logical_bytes = sum(region.length for region in self._regions)
        return DumpReport(
            path=self._file.path,
            logical_bytes=logical_bytes,
            stored_bytes=stored_bytes,
            ratio=logical_bytes / stored_bytes,
            zero_bytes=self._zero_bytes,
            hole_bytes=self._hole_bytes,
            data_bytes=logical_bytes - self._zero_bytes - self._hole_bytes,
            duplicate_bytes=self._duplicate_bytes,
            regions=tuple(
                RegionInfo(
                    region.info.name,
                    region.info.address,
                    region.length,
                    region.info.protection,
                    region.info.shared,
                )
                for region in self._regions
            ),
            digest=digest.hex(),
            seconds=time.perf_counter() - self._start,
        )


class _AbortOnError:
    """Gives the image up if the block raises anything, and lets that go on."""

    def __init__(self, writer: ImageWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._writer.abort()


def _discard(file: OutputFile, pipeline: Pipeline) -> None:
    """Remove the file if it was not put in its place, first: a second Ctrl-C may end the rest."""
    file.discard()
    pipeline.stop()


def byte_view(data: Buffer) -> memoryview:
    """The bytes of any buffer, in the order of its elements; copied only if it has gaps."""
    try:
        return PickleBuffer(data).raw()
    except BufferError:
        return memoryview(memoryview(data).tobytes())


def crc32c(data: bytes | bytearray) -> int:
    """CRC32C of some bytes."""
    return int(lib.lr_crc32c(0, ffi.from_buffer(data), len(data)))


def pack(value: object) -> bytes:
    """Msgpack, as images have it."""
    packed = msgpack.packb(value, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def _pack_metadata(name: str, metadata: Mapping[str, object] | None) -> bytes:
    try:
        packed = pack(dict(metadata or {}))
        # Refuses keys that are not strings, at any depth, and what is nested too deeply to be read.
        msgpack.unpackb(packed, raw=False, strict_map_key=True)
    except (TypeError, ValueError, OverflowError, msgpack.UnpackException) as error:
        raise TypeError(f"the metadata of region {name!r} cannot be kept: {error}") from None
    return packed
