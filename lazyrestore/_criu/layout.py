"""How the pages of processes lie in an image: docs/format.md, "Processes".

Each object has regions named OBJECT/START-END: a task's object is its number, shared memory's is
`shmem-ID`. A region begins at a multiple of the cluster size, so that memory that two tasks have at
the same addresses is cut into the same clusters, and stored once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lazyrestore.reports import RegionInfo
    from lazyrestore.sources.base import Sink

SHARED_PREFIX = "shmem-"
FILE_PREFIX = "file/"
"""A region with the content of a file that is too long for the record of files."""

_GAP_BYTES = 1 << 20


def object_of(name: str) -> str | None:
    """The object whose pagemap a file is: "123" of a task, "shmem-5"; None: it is no pagemap."""
    prefix, dash, rest = name.partition("-")
    number = rest.removeprefix(SHARED_PREFIX).removesuffix(".img")
    if prefix + dash != "pagemap-" or not (number.isascii() and number.isdecimal()):
        return None
    return rest.removesuffix(".img") if rest.endswith(".img") else None


def pagemap_name(name: str) -> str:
    """The file with the pagemap of an object."""
    return f"pagemap-{name}.img"


def pages_name(pages_id: int) -> str:
    """The file with the pages of a pagemap."""
    return f"pages-{pages_id}.img"


class Placer:
    """Cuts an object's pages, which come in ascending order, into regions.

    After each `place` the caller appends exactly those bytes to the sink.
    """

    def __init__(self, sink: Sink, name: str) -> None:
        self._sink = sink
        self._object = name
        self._cluster_size = sink.cluster_size
        self._is_shared = name.startswith(SHARED_PREFIX)
        self._start = 0
        self._end: int | None = None  # of what was placed in the region that is open

    def place(self, address: int, nbytes: int) -> None:
        """Make the sink ready for these pages.

        Args:
            address: of the first; of shared memory: its offset. Behind all that came before.
            nbytes: how many bytes the caller appends next.
        """
        start = region_start(self._end, address, self._cluster_size)
        if start is None:
            assert self._end is not None
            self._sink.hole(address - self._end)
        else:
            self.finish()
            self._start = start
            self._sink.add_region(
                f"{self._object}/{start:x}",
                address=0 if self._is_shared else start,
                shared=self._is_shared,
            )
            self._sink.hole(address - start)
        self._end = address + nbytes

    def finish(self) -> None:
        """No more pages come: the last region gets its name."""
        if self._end is not None:
            self._sink.rename_region(f"{self._object}/{self._start:x}-{self._end:x}")
            self._end = None


def region_start(end: int | None, address: int, cluster_size: int) -> int | None:
    """Where a region for a page begins; None if it is in that which has pages up to `end`."""
    if end is not None and address - end <= max(_GAP_BYTES, cluster_size):
        return None
    return address - address % cluster_size


def length_of(runs: Iterable[tuple[int, int]], cluster_size: int) -> int:
    """The length of all regions for (address, bytes) of an object, in bytes."""
    total, end = 0, None
    for address, nbytes in runs:
        start = region_start(end, address, cluster_size)
        if start is None:
            assert end is not None
            start = end
        end = address + nbytes
        total += end - start
    return total


class RegionTable:
    """Finds the region that a page of an object is in."""

    def __init__(self, regions: Sequence[RegionInfo]) -> None:
        spans: dict[str, list[tuple[int, int, int]]] = {}
        for number, region in enumerate(regions):
            name, slash, span = region.name.rpartition("/")
            first, dash, _ = span.partition("-")
            if not slash or not dash or name == FILE_PREFIX[:-1]:
                continue
            try:
                start = int(first, 16)
            except ValueError:
                continue
            spans.setdefault(name, []).append((start, start + region.length, number))
        self._spans = {name: sorted(found) for name, found in spans.items()}
        self._last = ("", 0, 0, 0)  # what was found last: mostly the next one is there too

    def find(self, name: str, address: int) -> tuple[int, int, int] | None:
        """(start, end, number) of the region that has an address of an object, or None."""
        last, start, end, number = self._last
        if last == name and start <= address < end:
            return start, end, number
        spans = self._spans.get(name, ())
        at = bisect_right(spans, address, key=lambda span: span[0]) - 1
        if at < 0 or address >= spans[at][1]:
            return None
        self._last = (name, *spans[at])
        return spans[at]
