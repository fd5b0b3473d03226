"""Where in an image's regions is what: counted from the index, a cell for so many clusters."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Sequence

from . import format as fmt
from ._clusters import LISTED, LOST, Index, Stretch
from ._open import Image
from ._region_info import RegionInfo
from .reports import Damage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._clusters import Entry

# What a page can be: the order of a cell's counts.
HOLE, ZERO, DATA, PLANES, RAW, REPEAT, UNKNOWN = range(7)
KINDS = 7
NAMES = ("hole", "zero", "data", "planes", "raw", "repeat", "unknown")
DATA_KINDS = (DATA, PLANES, RAW, REPEAT)


@dataclasses.dataclass(slots=True)
class RegionMap:
    """One region.

    Attributes:
        region: what it is.
        clusters: how many it has.
        cells: pages of each kind in each cell, KINDS numbers a cell.
        bytes: of each kind; of a last page that is not whole, what lies within the region.
        stored_bytes: payloads of the clusters that no other one before had brought.
        widths: of numbers whose bytes are in planes, in clusters of this region.
        hot: clusters of the working set in each cell; empty where there are none.
        hot_clusters: all of them.
    """

    region: RegionInfo
    clusters: int
    cells: array[int]
    bytes: list[int]
    stored_bytes: int = 0
    widths: set[int] = dataclasses.field(default_factory=set)
    hot: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    hot_clusters: int = 0

    def cell(self, number: int) -> array[int]:
        """Pages of each kind in a cell."""
        return self.cells[number * KINDS : number * KINDS + KINDS]

    @property
    def cell_count(self) -> int:
        """Cells that it has."""
        return len(self.cells) // KINDS

    @property
    def data_bytes(self) -> int:
        """Bytes in data pages of any kind."""
        return sum(self.bytes[kind] for kind in DATA_KINDS)


@dataclasses.dataclass(slots=True)
class ImageMap:
    """All regions of an image.

    Attributes:
        cell_clusters: clusters in a cell, a power of two.
        columns: cells in a row.
        regions: in their order.
        damage: what of the index cannot be read.
    """

    cell_clusters: int
    columns: int
    regions: list[RegionMap]
    damage: list[Damage]


def clusters_per_cell(counts: Sequence[int], columns: int, rows: int) -> int:
    """How many clusters a cell must have, a power of two.

    Args:
        counts: clusters of each region; each begins a row of its own.
        columns: cells in a row.
        rows: how many there may be beyond the first of each region.
    """
    limit = rows + sum(1 for count in counts if count)
    size = 1
    while sum(-(-count // (size * columns)) for count in counts) > limit:
        size *= 2
    return size


def survey(image: Image, columns: int, rows: int, working_set: Iterable[int] = ()) -> ImageMap:
    """Look at the whole index.

    Args:
        image: the image.
        columns: cells in a row.
        rows: at most, beyond the first of each region.
        working_set: numbers of clusters, counted through the image.
    """
    index = Index(image)
    if index.root.duplicate_bytes == 0:
        found = _Survey(index, columns, rows, seen=None, repeats=False)
        found.run()
    else:
        # A dump has its records in order of addresses: what lies before the furthest so far is a
        # repeat. Where that does not add up (optimize has another order) each place is kept.
        found = _Survey(index, columns, rows, seen=None, repeats=True)
        found.run()
        if found.records != index.root.stored_clusters:
            found = _Survey(index, columns, rows, seen=set(), repeats=True)
            found.run()
    _mark(image, found.map, working_set)
    return found.map


def _mark(image: Image, drawn: ImageMap, working_set: Iterable[int]) -> None:
    for cluster in working_set:
        number, offset = image.place_of_cluster(cluster)
        region = drawn.regions[number]
        if not region.hot:
            region.hot = array("Q", bytes(8 * region.cell_count))
        region.hot[offset // image.cluster_size // drawn.cell_clusters] += 1
        region.hot_clusters += 1


class _Survey:
    """One pass over the index."""

    def __init__(
        self, index: Index, columns: int, rows: int, *, seen: set[int] | None, repeats: bool
    ) -> None:
        self._index = index
        self._image = index.image
        self._seen = seen
        self._repeats = repeats
        self._furthest = 0
        self._first = 0  # cluster of the region that is looked at
        self._last_kind = DATA  # of the cluster with data that was looked at last
        self.records = 0  # that some cluster brought
        size = self._image.cluster_size
        counts = [-(-region.length // size) for region in self._image.regions]
        self.map = ImageMap(clusters_per_cell(counts, columns, rows), columns, [], [])
        for region, count in zip(self._image.regions, counts, strict=True):
            cells = -(-count // self.map.cell_clusters)
            self.map.regions.append(
                RegionMap(region, count, array("Q", bytes(8 * KINDS * cells)), [0] * KINDS)
            )

    def run(self) -> None:
        """Count everything."""
        for number, region in enumerate(self.map.regions):
            self._first = self._image.first_cluster(number)
            for stretch in self._index.stretches(self._first, region.clusters):
                self._take(region, stretch, stretch.first - self._first)
            if region.clusters:
                self._take_back_tail(region)

    def _take(self, region: RegionMap, stretch: Stretch, at: int) -> None:
        if stretch.kind == LISTED:
            self._take_entries(region, stretch, at)
            return
        if stretch.kind == LOST:
            self._lose(region, at, stretch.count, stretch.reason)
            return
        kind = ZERO if stretch.kind == fmt.CLUSTER_ZERO else HOLE
        self._add_alike(region, at, stretch.count, kind)

    def _add_alike(self, region: RegionMap, at: int, count: int, kind: int) -> None:
        """Clusters all of whose pages are of one kind."""
        full = self._index.pages_per_cluster
        last = self._pages(region, region.clusters - 1)
        if at + count == region.clusters and last != full:
            self._add(region, at + count - 1, 1, kind, last, last, 0)
            count -= 1
        self._add(region, at, count, kind, full, full, 0)

    def _pages(self, region: RegionMap, number: int) -> int:
        """Pages of a cluster that is counted from its region's start."""
        rest = region.region.length - number * self._image.cluster_size
        return -(-min(rest, self._image.cluster_size) // self._image.page_size)

    def _take_entries(self, region: RegionMap, stretch: Stretch, at: int) -> None:
        tally = self._index.tally
        full = self._index.pages_per_cluster
        last = region.clusters - 1
        start, before = at, None  # clusters from `start` on are all as `before` says
        for number, entry in enumerate(stretch.entries, at):
            pages = full if number < last else self._pages(region, number)
            found = tally(entry, pages)
            if found is None:
                self._flush(region, start, number, before)
                start, before = number + 1, None
                self._lose(region, number, 1, "an index entry contradicts itself")
                continue
            alike = (self._kind(region, entry) if found[0] else HOLE, pages, *found)
            if alike != before:
                self._flush(region, start, number, before)
                start, before = number, alike
        self._flush(region, start, at + len(stretch.entries), before)

    def _kind(self, region: RegionMap, entry: Entry) -> int:
        """Of a cluster's data pages."""
        offset, nbytes, _, kind, planes, _, _ = entry
        if self._repeats and not self._is_new(offset):
            self._last_kind = REPEAT
            return REPEAT
        self.records += 1
        region.stored_bytes += nbytes
        if planes:
            region.widths.add(planes)
        self._last_kind = PLANES if planes else RAW if kind == fmt.CLUSTER_RAW else DATA
        return self._last_kind

    def _is_new(self, offset: int) -> bool:
        """Whether the record there was not met before."""
        if self._seen is not None:
            is_new = offset not in self._seen
            self._seen.add(offset)
            return is_new
        is_new = offset > self._furthest
        self._furthest = max(self._furthest, offset)
        return is_new

    def _flush(
        self, region: RegionMap, start: int, end: int, alike: tuple[int, int, int, int] | None
    ) -> None:
        if alike is not None and end > start:
            kind, pages, data, zero = alike
            self._add(region, start, end - start, kind, pages, data, zero)

    def _add(
        self, region: RegionMap, at: int, count: int, kind: int, pages: int, data: int, zero: int
    ) -> None:
        """Clusters of `pages` each, `data` of them of that kind, `zero` zero, the rest holes."""
        hole = pages - data - zero
        page_size = self._image.page_size
        region.bytes[kind] += count * data * page_size
        region.bytes[ZERO] += count * zero * page_size
        region.bytes[HOLE] += count * hole * page_size
        cells, size = region.cells, self.map.cell_clusters
        while count > 0:
            cell, inside = divmod(at, size)
            part = min(count, size - inside)
            base = cell * KINDS
            cells[base + kind] += part * data
            cells[base + ZERO] += part * zero
            cells[base + HOLE] += part * hole
            at += part
            count -= part

    def _lose(self, region: RegionMap, at: int, count: int, reason: str) -> None:
        self._add_alike(region, at, count, UNKNOWN)
        offset = at * self._image.cluster_size
        length = min(count * self._image.cluster_size, region.region.length - offset)
        damage, name = self.map.damage, region.region.name
        last = damage[-1] if damage else None
        if last is not None and (last.region, last.reason) == (name, reason):
            assert last.offset is not None
            if last.offset + last.length == offset:  # there may be millions
                damage[-1] = dataclasses.replace(last, length=last.length + length)
                return
        damage.append(Damage(name, offset, length, self._first + at, reason))

    def _take_back_tail(self, region: RegionMap) -> None:
        """Of the last page only what lies within the region."""
        missing = -region.region.length % self._image.page_size
        if missing:
            region.bytes[self._kind_of_last_page(region)] -= missing

    def _kind_of_last_page(self, region: RegionMap) -> int:
        (stretch,) = self._index.stretches(self._first + region.clusters - 1, 1)
        if stretch.kind == LOST:
            return UNKNOWN
        if stretch.kind != LISTED:
            return ZERO if stretch.kind == fmt.CLUSTER_ZERO else HOLE
        pages = self._pages(region, region.clusters - 1)
        if self._index.tally(stretch.entries[0], pages) is None:
            return UNKNOWN
        _, _, _, _, _, _, states = stretch.entries[0]
        state = fmt.unpack_states(states, pages)[-1]
        if state == fmt.PAGE_DATA:
            return self._last_kind
        return ZERO if state == fmt.PAGE_ZERO else HOLE
