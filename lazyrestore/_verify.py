"""Checking all of an image: docs/format.md, "What a reader checks"."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import queue
import time
from collections.abc import Iterator, Sequence

import msgpack

from . import format as fmt
from ._blake3 import blake3_digest
from ._content import ContentDigest, Region
from ._native import CData, ffi, lib, new_problem, strerror
from ._open import Image, Progress
from ._ordered import map_in_order
from ._walk import Frame, walk
from .errors import ImageError
from .reports import Damage, VerifyReport

_CLUSTERS_AT_ONCE = 256  # of one leaf of the index
_NOWHERE = (1 << 64) - 1
_ZERO_BITS = 0x5555555555555555


@dataclasses.dataclass(slots=True)
class _Run:
    """Clusters of one region that the index says to be alike, without data."""

    region: int
    first: int
    count: int
    kind: int


@dataclasses.dataclass(slots=True)
class _Piece:
    """Clusters to be looked at one by one."""

    region: int
    numbers: range


@dataclasses.dataclass(slots=True)
class _End:
    """All of a region was looked at."""

    region: int


@dataclasses.dataclass(slots=True)
class _Cluster:
    """One cluster that was looked at; `error` says why it cannot be read."""

    number: int
    kind: int = 0
    states: bytes = b""
    pages: int = 0
    data_pages: int = 0
    zero_pages: int = 0
    last_state: int = 0
    planes: int = 0
    offset: int = 0
    nbytes: int = 0
    digest: bytes = b""
    error: str = ""


def verify(
    image: Image, *, threads: int | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Check an open image: see `Image.verify`."""
    start = time.perf_counter()
    check = _Check(image, walk(image))
    check.run(threads, progress)
    return VerifyReport(
        path=image.path,
        clusters=check.clusters,
        logical_bytes=check.logical_bytes,
        damage=tuple(check.damage),
        seconds=time.perf_counter() - start,
    )


class _Check:
    """One run of `verify`; used by one thread, which others bring decoded clusters."""

    def __init__(self, image: Image, frame: Frame) -> None:
        self._image = image
        self._frame = frame
        self._page_size = frame.footer.page_size
        self._cluster_size = frame.footer.cluster_size
        self._readers: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
        self._is_stored = bytearray(len(frame.clusters))  # 1: some cluster has used this record
        self._digest = ContentDigest(self._page_size, self._cluster_size)
        self._is_whole = not frame.lost
        self._zero_bytes = self._hole_bytes = self._duplicate_bytes = 0
        self._planes = 0  # of the region's first cluster that has any
        self._has_planes = False
        self.damage: list[Damage] = []
        self.clusters = 0
        self.logical_bytes = 0

    def run(self, threads: int | None, progress: Progress | None) -> None:
        for problem in self._frame.problems:
            self._say(problem)
        for first, end, reason in self._frame.lost:
            self._lose(first, end, reason)
        metadata = self._metadata()
        for piece, clusters in map_in_order(self._look, self._pieces(), threads):
            if isinstance(piece, _End):
                self._compare_planes(piece.region)
                if metadata is not None:
                    self._end_region(piece.region, metadata[piece.region])
            elif isinstance(piece, _Run):
                self._take_run(piece)
            for cluster in clusters:
                self._take_cluster(piece.region, cluster)
            if progress is not None:
                progress(self.logical_bytes, self._frame.root.logical_bytes)
        if self._is_whole:
            self._compare(metadata is not None)
            self._check_processes()

    # ---- On any thread ---------------------------------------------------------------------------

    def _pieces(self) -> Iterator[_Run | _Piece | _End]:
        """What to look at, region after region."""
        reader = _Reader(self._image)
        lost_ends = [end for _, end, _ in self._frame.lost]
        for number in range(len(self._image.regions)):
            # There may be many regions, and many nodes lost: only those of the region itself.
            lost = bisect.bisect_right(lost_ends, self._image.first_cluster(number))
            yield from self._pieces_of(number, reader, lost)
            yield _End(number)

    def _pieces_of(self, number: int, reader: _Reader, lost: int) -> Iterator[_Run | _Piece]:
        """What to look at in a region, leaving out what is lost with its index node."""
        first = self._image.first_cluster(number)
        length = self._image.regions[number].length
        end = first + -(-length // self._cluster_size)
        at = first
        while at < end:
            lost_first, lost_end = end, end
            if lost < len(self._frame.lost):
                lost_first, lost_end, _ = self._frame.lost[lost]
            lost += 1
            until = min(end, max(at, lost_first))
            while at < until:
                info = reader.find(at)
                if info is not None and info.run > 1:
                    count = min(int(info.run), until - at)
                    yield _Run(number, at, count, int(info.kind))
                    at += count
                else:
                    stop = at - at % _CLUSTERS_AT_ONCE + _CLUSTERS_AT_ONCE
                    yield _Piece(number, range(at, min(until, stop)))
                    at = min(until, stop)
            at = min(end, max(at, lost_end))

    def _look(self, piece: _Run | _Piece | _End) -> tuple[_Run | _Piece | _End, Sequence[_Cluster]]:
        if not isinstance(piece, _Piece):
            return piece, ()
        try:
            reader = self._readers.get_nowait()
        except queue.Empty:
            reader = _Reader(self._image)
        try:
            return piece, [reader.look(number) for number in piece.numbers]
        finally:
            self._readers.put(reader)

    # ---- In order --------------------------------------------------------------------------------

    def _advance(self, region: int, first: int, count: int) -> int:
        """Account for clusters of a region; how many bytes of it they are."""
        offset = (first - self._image.first_cluster(region)) * self._cluster_size
        rest = self._image.regions[region].length - offset
        nbytes = min(count * self._cluster_size, rest)
        self.clusters += count
        self.logical_bytes += nbytes
        return nbytes

    def _take_run(self, found: _Run) -> None:
        nbytes = self._advance(found.region, found.first, found.count)
        self._digest.add_run(found.kind, found.count)
        self._count(found.kind, nbytes)

    def _take_cluster(self, region: int, found: _Cluster) -> None:
        nbytes = self._advance(region, found.number, 1)
        self._planes = self._planes or found.planes
        if found.error:
            self._is_whole = False
            self._lose(found.number, found.number + 1, found.error)
            return
        missing = found.pages * self._page_size - nbytes  # of the last page
        hole_pages = found.pages - found.zero_pages - found.data_pages
        for state, pages in ((0, hole_pages), (1, found.zero_pages)):
            tail = missing if state == found.last_state else 0
            self._count(state, pages * self._page_size - tail)
        if found.kind in (fmt.CLUSTER_HOLE, fmt.CLUSTER_ZERO):
            self._digest.add_run(found.kind, 1)
        else:
            self._digest.add_cluster(found.states, found.digest)
        if found.data_pages:
            tail = missing if found.last_state == fmt.PAGE_DATA else 0
            self._use_record(found, found.data_pages * self._page_size - tail)

    def _use_record(self, found: _Cluster, data_bytes: int) -> None:
        """Extents are those of cluster records, so they are the same or do not overlap."""
        record = self._frame.clusters.find(found.offset, found.nbytes)
        if record is not None:
            if self._is_stored[record]:
                self._duplicate_bytes += data_bytes
            self._is_stored[record] = 1
        elif self._frame.is_complete:
            reason = f"its payload is no cluster record (at byte {found.offset} of the file)"
            self._lose(found.number, found.number + 1, reason)

    def _count(self, kind: int, nbytes: int) -> None:
        if kind == fmt.CLUSTER_ZERO:
            self._zero_bytes += nbytes
        else:
            self._hole_bytes += nbytes

    def _compare_planes(self, number: int) -> None:
        """What the region table says of byte planes; where clusters are lost, nothing is known."""
        info, found = self._image.regions[number], self._planes
        if self._is_whole and info.planes != found:
            self._say(f"region {info.name!r} says {info.planes} for planes, its clusters {found}")
        self._has_planes |= bool(self._planes)
        self._planes = 0

    def _end_region(self, number: int, metadata: bytes) -> None:
        info = self._image.regions[number]
        region = Region(info, info.name.encode(), metadata, 0)
        region.length = info.length
        self._digest.end_region(region)

    def _metadata(self) -> list[bytes] | None:
        """Each region's map, as it is stored."""
        try:
            count = len(self._image.all_metadata())
        except ImageError:
            return None  # which is among the frame's problems
        footer = self._frame.footer
        data = self._image.read_raw(footer.metadata_offset, footer.metadata_bytes)
        unpacker = msgpack.Unpacker(max_buffer_size=len(data))
        unpacker.feed(data)
        unpacker.read_array_header()
        ends = [unpacker.tell()]
        for _ in range(count):
            unpacker.skip()
            ends.append(unpacker.tell())
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def _check_processes(self) -> None:
        """What CRIU's files tell of pages, if there are any."""
        from ._criu.checkpoint import Checkpoint

        try:
            checkpoint = Checkpoint.of(self._image)
            if checkpoint is not None:
                checkpoint.check()
        except ImageError as error:
            self._say(str(error).removeprefix(f"{self._image.path}: "))

    def _compare(self, has_digest: bool) -> None:
        """What the root and the footer say of the whole."""
        root = self._frame.root
        records = self._frame.clusters
        tallies = [
            ("zero_bytes", root.zero_bytes, self._zero_bytes),
            ("hole_bytes", root.hole_bytes, self._hole_bytes),
        ]
        if self._frame.is_complete:
            tallies += [
                ("duplicate_bytes", root.duplicate_bytes, self._duplicate_bytes),
                ("stored_clusters", root.stored_clusters, len(records)),
                ("payload_bytes", root.payload_bytes, sum(records.lengths)),
            ]
        if bool(self._frame.footer.critical & fmt.FEATURE_PLANES) != self._has_planes:
            self._say("the footer and the clusters do not agree about byte planes")
        for name, said, counted in tallies:
            if said != counted:
                self._say(f"the root says {said} for {name}, and {counted} were counted")
        if has_digest and self._has_files() and self._digest.digest() != self._frame.footer.digest:
            self._say("the content is not that of which the footer has the digest")

    def _has_files(self) -> bool:
        """Take the record of files into the digest; False if it is among the frame's problems."""
        try:
            self._digest.add_files(self._image.files)
        except ImageError:
            return False
        return True

    def _say(self, reason: str) -> None:
        self.damage.append(Damage(None, None, 0, None, reason))

    def _lose(self, first: int, end: int, reason: str) -> None:
        """Clusters that cannot be read, which may be in several regions."""
        while first < end:
            number, offset = self._image.place_of_cluster(first)
            info = self._image.regions[number]
            length = min((end - first) * self._cluster_size, info.length - offset)
            self.damage.append(Damage(info.name, offset, length, first, reason))
            first += -(-length // self._cluster_size)


class _Reader:
    """Looks clusters up and decodes them into one buffer. For one thread at a time."""

    def __init__(self, image: Image) -> None:
        self._reader = image.reader()
        self._handle: CData = self._reader.handle
        self._info = ffi.new("struct lr_cluster_info *")
        self._problem = new_problem()
        self._room = bytearray(image.cluster_size)
        self._memory = ffi.from_buffer(self._room)
        self._view = memoryview(self._room)

    def find(self, cluster: int) -> CData | None:
        """The index's entry; None where it cannot be read."""
        code = lib.lr_reader_get_cluster(self._handle, cluster, self._info, self._problem)
        return self._info if code == 0 else None

    def look(self, cluster: int) -> _Cluster:
        """Everything that is to be known of a cluster."""
        info = self._info
        code = lib.lr_reader_get_cluster(self._handle, cluster, info, self._problem)
        if code < 0:
            return _Cluster(cluster, error=self._reason(code))
        words = info.state_words
        found = _Cluster(
            cluster,
            kind=info.kind,
            states=bytes(ffi.buffer(info.states)[: 8 * words]),
            pages=info.pages,
            data_pages=info.data_pages,
            zero_pages=sum((word & _ZERO_BITS).bit_count() for word in info.states[0:words]),
            planes=info.planes,
            offset=info.payload_offset,
            nbytes=info.payload_bytes,
        )
        last = found.pages - 1
        found.last_state = (
            info.states[last // fmt.PAGES_PER_WORD] >> (2 * (last % fmt.PAGES_PER_WORD)) & 3
        )
        nbytes = lib.lr_reader_get_data(self._handle, cluster, self._memory, self._problem)
        if nbytes < 0:
            return _Cluster(cluster, error=self._reason(nbytes))
        found.digest = blake3_digest(self._view[:nbytes])
        return found

    def _reason(self, code: int) -> str:
        offset = int(self._problem.file_offset)
        where = f" (at byte {offset} of the file)" if offset != _NOWHERE else ""
        return strerror(code) + where
