"""From memory to clusters, on all cores: scan, gather, digest, look up, compress, checksum.

The thread that writes the image gives jobs of about 1 MiB to worker threads, and takes their
results in the order in which it gave them. Almost all of a worker's time passes in C, without the
GIL.
"""

from __future__ import annotations

import dataclasses
import queue
import threading

import zstandard
from blake3 import blake3

from ._native import CData, check, ffi, lib
from .format import (
    CLUSTER_HOLE,
    CLUSTER_MIXED,
    CLUSTER_RAW,
    CLUSTER_ZERO,
    CLUSTER_ZSTD,
    PAGE_DATA,
    PAGE_HOLE,
    PAGE_ZERO,
    pack_states,
    state_words,
)

SEEN_BYTES = 64 << 20
NO_DATA_DIGEST = blake3(b"").digest()


@dataclasses.dataclass(slots=True)
class Run:
    """Whole clusters, all holes or all zero."""

    kind: int
    count: int


@dataclasses.dataclass(slots=True)
class Place:
    """A cluster record: where it is, or what shall be written."""

    kind: int
    nbytes: int
    crc32c: int
    offset: int = 0  # 0: not written yet
    payload: bytes | memoryview = b""


@dataclasses.dataclass(slots=True)
class Cluster:
    """One cluster that is not part of a run. `place` is None where no page of it is data."""

    kind: int
    states: bytes  # packed
    digest: bytes  # of its data pages
    data_bytes: int  # in data pages; of the last page, what lies within the region
    place: Place | None


class Job:
    """A piece of a region: whole clusters, but for the end of the region.

    Attributes:
        view: its bytes; nobody changes them until `release`.
        holes: byte ranges that are holes, ascending, not adjacent; the bytes there are zero.
        results: in address order; complete when `wait` has returned.
    """

    def __init__(self, view: memoryview, holes: list[tuple[int, int]]) -> None:
        self.view = view
        self.nbytes = len(view)
        self.holes = holes
        self.results: list[Run | Cluster] = []
        self.zero_bytes = 0
        self.hole_bytes = 0
        self.error: BaseException | None = None
        self._done = threading.Event()

    def add(self, found: Run | Cluster) -> None:
        """Append a result; runs of one kind become one."""
        last = self.results[-1] if self.results else None
        if isinstance(found, Run) and isinstance(last, Run) and last.kind == found.kind:
            last.count += found.count
        else:
            self.results.append(found)

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


class SeenTable:
    """The clusters that were stored lately, by digest. See lr_seen in lazyrestore.h."""

    def __init__(self) -> None:
        found = ffi.new("lr_seen **")
        check(lib.lr_seen_open(SEEN_BYTES, found), what="cannot make the table of stored clusters")
        self._handle = ffi.gc(found[0], lib.lr_seen_close)

    def find(self, digest: bytes, room: CData) -> Place | None:
        """Where a cluster with that digest is; `room` is a `struct lr_stored_cluster *`."""
        if not lib.lr_seen_find(self._handle, digest, room):
            return None
        return Place(room.kind, room.payload_bytes, room.crc32c, room.payload_offset)

    def put(self, digest: bytes, place: Place, room: CData) -> None:
        """Remember a cluster that was written."""
        room.payload_offset = place.offset
        room.payload_bytes = place.nbytes
        room.crc32c = place.crc32c
        room.kind = place.kind
        lib.lr_seen_put(self._handle, digest, room)


class Worker:
    """What one thread needs to turn jobs into clusters."""

    def __init__(self, page_size: int, cluster_size: int, level: int, seen: SeenTable) -> None:
        self._page_size = page_size
        self._cluster_size = cluster_size
        self._pages = cluster_size // page_size
        self._words = state_words(self._pages)
        self._seen = seen
        self._room = ffi.new("struct lr_stored_cluster *")
        self._compressor = zstandard.ZstdCompressor(
            level=level, write_checksum=False, write_content_size=True
        )
        self._scratch = bytearray(cluster_size)
        self._scratch_pointer = ffi.from_buffer(self._scratch)

    def process(self, job: Job, stopping: threading.Event) -> None:
        """Fill in the job's results."""
        memory = ffi.from_buffer(job.view)
        try:
            states = bytes(self._scan(job, memory))
            for number, start in enumerate(range(0, job.nbytes, self._cluster_size)):
                if stopping.is_set():
                    raise InterruptedError("the dump was given up")
                first = number * self._pages
                end = min(start + self._cluster_size, job.nbytes)
                job.add(self._cluster(job, memory, start, end, states[first : first + self._pages]))
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

    def _cluster(
        self, job: Job, memory: CData, start: int, end: int, states: bytes
    ) -> Run | Cluster:
        pages = len(states)
        data_pages = states.count(PAGE_DATA)
        if data_pages == 0:
            zeros = states.count(PAGE_ZERO)
            kind = CLUSTER_MIXED
            if zeros == pages or zeros == 0:
                kind = CLUSTER_ZERO if zeros else CLUSTER_HOLE
                if end - start == self._cluster_size:
                    return Run(kind, 1)
            return Cluster(kind, pack_states(states, self._words), NO_DATA_DIGEST, 0, None)

        nbytes = data_pages * self._page_size
        if nbytes == end - start:
            data = job.view[start:end]
        else:
            lib.lr_gather_pages(
                memory + start, end - start, self._page_size, states, self._scratch_pointer
            )
            data = memoryview(self._scratch)[:nbytes]
        digest = blake3(data).digest()
        place = self._seen.find(digest, self._room) or self._compress(data)
        if states[-1] == PAGE_DATA:
            nbytes -= -(end - start) % self._page_size
        return Cluster(place.kind, pack_states(states, self._words), digest, nbytes, place)

    def _compress(self, data: memoryview) -> Place:
        payload: bytes | memoryview = self._compressor.compress(data)
        kind = CLUSTER_ZSTD
        if len(payload) >= len(data):
            kind = CLUSTER_RAW
            payload = bytes(data) if data.obj is self._scratch else data
        crc32c = lib.lr_crc32c(0, ffi.from_buffer(payload), len(payload))
        return Place(kind, len(payload), crc32c, payload=payload)


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
