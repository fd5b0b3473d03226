"""From memory to clusters, on all cores: scan, gather, digest, look up, compress, checksum.

The thread that writes the image gives jobs of about 1 MiB to worker threads, and takes their
results in the order in which it gave them. Almost all of a worker's time passes in C, without the
GIL; but what threads do with the GIL they do in turn, and one that waits for it sleeps. So what can
be is done once for all clusters of a job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import queue
import struct
import threading

import zstandard

from ._blake3 import blake3_digest
from ._native import CData, check, ffi, lib
from .format import (
    CLUSTER_HOLE,
    CLUSTER_RAW,
    CLUSTER_ZERO,
    CLUSTER_ZSTD,
    ENTRY_KIND_AT,
    NODE_FANOUT,
    PAGE_DATA,
    PAGE_HOLE,
    PAGE_ZERO,
    entry_bytes,
    record_head,
)

JOB_BYTES = 1 << 20
_SLAB_BYTES = 4 << 20
SEEN_BYTES = 64 << 20
NO_DATA_DIGEST = blake3_digest(b"")
_UNIFORM = (CLUSTER_HOLE, CLUSTER_ZERO)
_PLACE = struct.Struct("<IIBB")  # of a leaf entry, behind the offset: length, CRC32C, kind, planes
_END, _END_OF_BLOCK = zstandard.COMPRESSOBJ_FLUSH_FINISH, zstandard.COMPRESSOBJ_FLUSH_BLOCK
_SAMPLE_BYTES = 32 << 10  # of a job, that are compressed both ways


@dataclasses.dataclass(slots=True)
class Run:
    """Whole clusters, all holes or all zero."""

    kind: int
    count: int


@dataclasses.dataclass(slots=True)
class Block:
    """Clusters one after another that are not part of a run. They belong to one index node.

    A cluster whose record is None has no data, or one that was stored before.
    """

    entries: bytearray  # leaf entries; without a place where there is a record
    digests: bytearray  # 32 bytes a cluster: of its data pages
    data_bytes: list[int]  # in data pages; of the last page, what lies within the region
    records: list[tuple[bytes, bytes | memoryview] | None]  # what precedes a payload, the payload


class Job:
    """A piece of a region: whole clusters, but for the end of the region.

    Attributes:
        view: its bytes; nobody changes them until `release`.
        buffer: that of the pool where they are, if they are in one.
        width: bytes of its numbers if byte planes are to be tried, else 0.
        planes: the width that is used, once a sample has been looked at.
        holes: byte ranges that are holes, ascending, not adjacent; the bytes there are zero.
        first_cluster: its number in the image.
        results: in address order; complete when `wait` has returned.
    """

    def __init__(
        self,
        view: memoryview,
        first_cluster: int,
        holes: list[tuple[int, int]],
        buffer: memoryview | None = None,
        width: int = 0,
    ) -> None:
        self.view = view
        self.buffer = buffer
        self.width = width
        self.planes: int | None = None if width else 0
        self.nbytes = len(view)
        self.holes = holes
        self.first_cluster = first_cluster
        self.results: list[Run | Block] = []
        self.zero_bytes = 0
        self.hole_bytes = 0
        self.error: BaseException | None = None
        self._done = threading.Event()

    def is_done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._done.is_set()

    def wait(self) -> None:
        """Until a worker is done with it; raises what that ran into."""
        self._done.wait()
        if self.error is not None:
            raise self.error

    def finish(self, error: BaseException | None = None) -> None:
        """The worker's last word."""
        self.error = error
        self._done.set()

    def release(self) -> None:
        """Let go of the memory."""
        self.results = []
        self.view.release()


class BufferPool:
    """Buffers of one length, which are used again: new ones would be cleared page by page.

    They are not zero. For one thread.
    """

    def __init__(self, buffer_bytes: int) -> None:
        self._buffer_bytes = buffer_bytes
        self._free: list[memoryview] = []

    def get(self) -> memoryview:
        """A buffer that nobody uses."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def put(self, buffer: memoryview) -> None:
        """Give a buffer back."""
        self._free.append(buffer)

    def _grow(self) -> None:
        length = max(_SLAB_BYTES, self._buffer_bytes)
        slab = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            slab.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(slab)
        starts = range(0, length - self._buffer_bytes + 1, self._buffer_bytes)
        self._free += [view[start : start + self._buffer_bytes] for start in reversed(starts)]


class SeenTable:
    """The clusters that were stored lately, by digest. See lr_seen in lazyrestore.h."""

    def __init__(self) -> None:
        found = ffi.new("lr_seen **")
        check(lib.lr_seen_open(SEEN_BYTES, found), what="cannot make the table of stored clusters")
        self._handle = ffi.gc(found[0], lib.lr_seen_close)

    def find(self, block: Block, pages_per_cluster: int) -> int:
        """Fill in the places of the clusters that were stored; how many that are."""
        found: int = lib.lr_entries_find(
            self._handle,
            ffi.from_buffer(block.digests),
            len(block.records),
            pages_per_cluster,
            ffi.from_buffer(block.entries),
        )
        return found

    def place(self, block: Block, pages_per_cluster: int, position: int) -> bytearray:
        """Fill in all places, the first record being at `position`; 1 for each that is written."""
        is_new = bytearray(len(block.records))
        lib.lr_entries_place(
            self._handle,
            ffi.from_buffer(block.digests),
            len(block.records),
            pages_per_cluster,
            position,
            ffi.from_buffer(block.entries),
            ffi.from_buffer(is_new),
        )
        return is_new


class Worker:
    """What one thread needs to turn jobs into clusters."""

    def __init__(self, page_size: int, cluster_size: int, level: int, seen: SeenTable) -> None:
        self._page_size = page_size
        self._cluster_size = cluster_size
        self._pages = cluster_size // page_size
        self._entry_bytes = entry_bytes(self._pages)
        self._seen = seen
        self._compressor = _compressor(level, cluster_size)
        self._plane_compressor: zstandard.ZstdCompressor | None = None
        self._level = level
        self._split = bytearray()  # a cluster's bytes in planes
        self._scratch = bytearray()  # for data pages, of clusters that have others too

    def process(self, job: Job, stopping: threading.Event) -> None:
        """Fill in the job's results."""
        memory = ffi.from_buffer(job.view)
        try:
            states = self._scan(job, memory)
            count = -(-len(states) // self._pages)
            entries = bytearray(count * self._entry_bytes)
            counts = ffi.new("uint32_t[]", count)
            lib.lr_entries_make(
                ffi.from_buffer(states), len(states), self._pages, ffi.from_buffer(entries), counts
            )
            data_pages = ffi.unpack(counts, count)
            kinds = entries[ENTRY_KIND_AT :: self._entry_bytes]
            at = 0
            while at < count:
                start, at = at, self._end_of_run(job, kinds, at)
                if at > start:
                    job.results.append(Run(kinds[start], at - start))
                    continue
                at = self._end_of_block(job, kinds, start)
                block = Block(
                    entries[start * self._entry_bytes : at * self._entry_bytes],
                    bytearray(NO_DATA_DIGEST) * (at - start),
                    [pages * self._page_size for pages in data_pages[start:at]],
                    [None] * (at - start),
                )
                pieces = self._gather(job, memory, states, block, start)
                self._compress_new(job, block, pieces, stopping)
                if states[-1] == PAGE_DATA and at == count:
                    block.data_bytes[-1] -= -job.nbytes % self._page_size
                job.results.append(block)
        finally:
            ffi.release(memory)  # even if an exception keeps this frame

    def _scan(self, job: Job, memory: CData) -> bytearray:
        page = self._page_size
        states = bytearray(-(-job.nbytes // page))
        lib.lr_scan_pages(memory, job.nbytes, page, ffi.from_buffer(states))
        for start, end in job.holes:
            # Whole pages only; the last page of a region is whole where the region ends.
            first = -(-start // page)
            behind = len(states) if end == job.nbytes else end // page
            if behind > first:
                states[first:behind] = bytes([PAGE_HOLE]) * (behind - first)
        missing = -job.nbytes % page  # of the last page
        job.zero_bytes = states.count(PAGE_ZERO) * page
        job.hole_bytes = states.count(PAGE_HOLE) * page
        if missing and states[-1] == PAGE_ZERO:
            job.zero_bytes -= missing
        elif missing and states[-1] == PAGE_HOLE:
            job.hole_bytes -= missing
        return states

    def _end_of_run(self, job: Job, kinds: bytearray, start: int) -> int:
        """Where whole clusters end that are all holes or all zero, as the one at `start` is."""
        whole = job.nbytes // self._cluster_size
        at = start
        while at < whole and kinds[at] == kinds[start] and kinds[at] in _UNIFORM:
            at += 1
        return at

    def _end_of_block(self, job: Job, kinds: bytearray, start: int) -> int:
        """Where clusters end that fit into a block with the one at `start`."""
        behind = start + NODE_FANOUT - (job.first_cluster + start) % NODE_FANOUT
        at = start + 1
        if kinds[start] not in _UNIFORM:  # or it is the region's last, and short
            while at < min(behind, len(kinds)) and kinds[at] not in _UNIFORM:
                at += 1
        return at

    def _gather(
        self, job: Job, memory: CData, states: bytearray, block: Block, first: int
    ) -> list[memoryview]:
        """The data pages of a block's clusters, which have to be read before the next call."""
        pieces = []
        for number, nbytes in enumerate(block.data_bytes):
            start = (first + number) * self._cluster_size
            end = min(start + self._cluster_size, job.nbytes)
            if nbytes in (0, end - start):
                piece = job.view[start : start + nbytes]
            else:
                if not self._scratch:
                    self._scratch = bytearray(max(JOB_BYTES, self._cluster_size))
                at = start // self._page_size
                lib.lr_gather_pages(
                    memory + start,
                    end - start,
                    self._page_size,
                    ffi.from_buffer(states) + at,
                    ffi.from_buffer(self._scratch) + start,
                )
                piece = memoryview(self._scratch)[start : start + nbytes]
            if nbytes:
                block.digests[32 * number : 32 * number + 32] = blake3_digest(piece)
            pieces.append(piece)
        return pieces

    def _compress_new(
        self, job: Job, block: Block, pieces: list[memoryview], stopping: threading.Event
    ) -> None:
        """Fill in the records of what was not stored before, and what entries say of them."""
        self._seen.find(block, self._pages)
        new = [
            number
            for number, piece in enumerate(pieces)
            if piece and not any(block.entries[(at := number * self._entry_bytes) : at + 8])
        ]
        if job.planes is None and new:
            job.planes = self._choose(job.width, [pieces[number] for number in new])
        for number in new:
            if stopping.is_set():
                raise InterruptedError("the dump was given up")
            kind, planes, payload = self._compress(pieces[number], job.planes or 0)
            crc32c = lib.lr_crc32c(0, ffi.from_buffer(payload), len(payload))
            at = number * self._entry_bytes
            _PLACE.pack_into(block.entries, at + 8, len(payload), crc32c, kind, planes)
            block.records[number] = record_head("cluster", len(payload)), payload

    def _choose(self, width: int, pieces: list[memoryview]) -> int:
        """The width, if byte planes are better for a sample of these clusters; else 0.

        They are where they make it smaller: it then is decoded faster too, mostly by much, and
        joining the planes takes a twentieth of that time. They also are, though a little larger,
        where most planes need no decoding at all: that is faster by several times.
        """
        each = min(_SAMPLE_BYTES, self._cluster_size)
        stride = max(1, len(pieces) * each // _SAMPLE_BYTES)
        plain = planes = nbytes = decoded = 0
        for piece in pieces[stride // 2 :: stride]:
            with piece[:each] as sample:
                length = len(sample)
                plain += min(length, len(self._compressor.compress(sample)))
                lengths = [len(part) for part in self._compress_planes(sample, width)]
            nbytes += length
            planes += min(length, sum(lengths))
            whole = length // width
            decoded += sum(whole for part in lengths if whole // 32 < part < whole)
        if 4 * decoded <= nbytes and 4 * planes <= 3 * nbytes:
            plain += plain // 16
        return width if planes < plain else 0

    def _compress(self, data: memoryview, width: int) -> tuple[int, int, bytes | memoryview]:
        """Kind, planes and payload."""
        if width:
            payload = b"".join(self._compress_planes(data, width))
        else:
            payload = self._compressor.compress(data)
        if len(payload) < len(data):
            return CLUSTER_ZSTD, width, payload
        return CLUSTER_RAW, 0, bytes(data) if data.obj is self._scratch else data

    def _compress_planes(self, data: memoryview, width: int) -> list[bytes]:
        """One frame, in parts: what each plane adds to it, in blocks of its own.

        So each has statistics of its own, and what cannot be compressed is stored as it is: in one
        block with others it would be neither, and would take longer to decode.
        """
        if self._plane_compressor is None:
            self._plane_compressor = _plane_compressor(self._level, self._cluster_size)
            self._split = bytearray(self._cluster_size)
        nbytes, each = len(data), len(data) // width
        lib.lr_planes_split(ffi.from_buffer(data), nbytes, width, ffi.from_buffer(self._split))
        stream = self._plane_compressor.compressobj(size=nbytes)
        parts = []
        with memoryview(self._split) as planes:
            for at in range(0, nbytes, each):
                is_last = at + each == nbytes
                with planes[at : at + each] as plane:
                    part = stream.compress(plane)
                parts.append(part + stream.flush(_END if is_last else _END_OF_BLOCK))
        return parts


def _compressor(level: int, cluster_size: int) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=cluster_size)
    if level != 3 or parameters.strategy != zstandard.STRATEGY_DFAST:
        return zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    # Half of level 3's table of short matches: it stays in the processor's cache, and so this is up
    # to 9 % faster, for images that are at most 0.6 % larger.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=cluster_size,
        chain_log=max(parameters.chain_log - 1, zstandard.CHAINLOG_MIN),
        write_checksum=False,
        write_content_size=True,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _plane_compressor(level: int, cluster_size: int) -> zstandard.ZstdCompressor:
    """For single planes: it takes no short matches.

    In a plane of bytes that are merely of unequal frequency, such are there by chance, and cost
    more than their bytes, at every level. So float32 weights take 1 %, bfloat16 2 % less, and
    decode faster.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=cluster_size,
        write_checksum=False,
        write_content_size=True,
        min_match=7,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


class Pipeline:
    """Worker threads that process jobs. They start with the first job."""

    def __init__(self, page_size: int, cluster_size: int, level: int, threads: int) -> None:
        self.seen = SeenTable()
        self._settings = (page_size, cluster_size, level, self.seen)
        self._count = threads
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopping = threading.Event()

    def submit(self, job: Job) -> None:
        """Give a job to the workers. The caller bounds how many there are."""
        if len(self._threads) < self._count:
            # One a job until all are there. The pipeline is not among the arguments: a thread
            # that holds it would keep a forgotten writer alive.
            thread = threading.Thread(
                target=_work,
                args=(self._jobs, self._stopping, self._settings),
                name="lazyrestore-compress",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)
        self._jobs.put(job)

    def stop(self) -> None:
        """End the threads; what they have not begun stays undone. May be called again."""
        self._stopping.set()
        for _ in range(self._count):  # also for one that an interrupt kept off the list
            self._jobs.put(None)
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()


def _work(
    jobs: queue.SimpleQueue[Job | None],
    stopping: threading.Event,
    settings: tuple[int, int, int, SeenTable],
) -> None:
    worker: Worker | None = None
    while (job := jobs.get()) is not None:
        try:
            if worker is None:
                worker = Worker(*settings)
            worker.process(job, stopping)
        except BaseException as error:  # whatever it is, it belongs to who waits for the job
            job.finish(error)
        else:
            job.finish()
        del job
