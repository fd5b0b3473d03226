"""Two images compared page by page: `lazyrestore.diff`.

The indexes say which pages have no data in either; those read alike. Of the others, what one file
stores once for both, or what is stored byte for byte the same with a checksum that is right, is
alike too. All else is decoded. Nothing is believed for its checksum or digest alone: those say what
a writer put in, and two writers may say what they want.
"""

from __future__ import annotations

import dataclasses
import os
import time
from array import array
from collections.abc import Iterable, Iterator

from . import format as fmt
from ._diff_pages import SAME, UNREADABLE, Comparer, Outcome
from ._diff_pairs import Pair, Piece, Side, pair_regions, pieces
from ._map import clusters_per_cell
from ._open import Image, Progress
from ._ordered import map_in_order
from .errors import RegionNotFound
from .reports import Damage, DiffDamage, DiffReport, FilesDiff, RegionDiff

STATES = ("hole", "zero", "data")
_LIMIT = 1000


def diff(
    a: str | os.PathLike[str] | Image,
    b: str | os.PathLike[str] | Image,
    *,
    regions: Iterable[str] | None = None,
    limit: int = _LIMIT,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DiffReport:
    """Compare what two images restore to.

    Regions belong together by their names; those of processes, which are named for their
    addresses, also where these overlap. Pages that were never touched and pages of zeros read
    alike. Images may have different page and cluster sizes, and any compression.

    Does not raise for clusters that cannot be read, but lists them.

    Args:
        a: an image, or the path of one.
        b: the other one.
        regions: names of those to compare; None: all, and the files in the images too.
        limit: how many ranges are listed, the first ones; all are counted.
        threads: how many decode at once; None: one a core.
        progress: called with the bytes that were compared and their total.

    Raises:
        OSError: a file is not there or cannot be read.
        ImageError: one is not an image, or so damaged that it cannot be opened.
        RegionNotFound: neither has a region of that name.
        TypeError: `regions` is one name.
    """
    if isinstance(regions, str):
        raise TypeError(f"regions is {regions!r}: give names as a list, [{regions!r}]")
    opened = []
    try:
        images = []
        for each in (a, b):
            if isinstance(each, Image):
                images.append(each)
            else:
                opened.append(Image(each))
                images.append(opened[-1])
        comparison = Comparison(images[0], images[1], regions, limit=limit)
        return comparison.run(threads, progress)
    finally:
        for each in opened:
            each.close()


class Drawn:
    """Where in a pair of regions pages differ, for a map: numbers a cell.

    Attributes:
        different: pages.
        unreadable: pages.
    """

    def __init__(self, cells: int) -> None:
        self.different = array("Q", bytes(8 * cells))
        self.unreadable = array("Q", bytes(8 * cells))


class Comparison:
    """One comparison of two open images.

    Attributes:
        pairs: what is compared with what.
        drawn: a map of each pair; None where none was asked for.
        cell_bytes: that a cell of a map stands for.
    """

    def __init__(
        self,
        a: Image,
        b: Image,
        regions: Iterable[str] | None = None,
        *,
        limit: int = _LIMIT,
        columns: int = 0,
        rows: int = 0,
    ) -> None:
        self._images = (a, b)
        self._wanted = None if regions is None else frozenset(regions)
        for name in sorted(self._wanted or ()):
            _check_name(self._images, name)
        self.page_size = min(a.page_size, b.page_size)
        self.pairs, self._only = pair_regions(a, b, self._wanted)
        self.cell_bytes = 0
        self.drawn: list[Drawn] | None = None
        if columns:
            counts = [-(-pair.length // self.page_size) for pair in self.pairs]
            self.cell_bytes = clusters_per_cell(counts, columns, rows) * self.page_size
            self.drawn = [Drawn(-(-pair.length // self.cell_bytes)) for pair in self.pairs]
        self._found = [_Found() for _ in self.pairs]
        self._room = limit  # for ranges
        self._damage: list[DiffDamage] = []

    def run(self, threads: int | None = None, progress: Progress | None = None) -> DiffReport:
        """Compare everything."""
        start = time.perf_counter()
        total, done = sum(pair.length for pair in self.pairs), 0
        comparer = Comparer(*self._images, self.page_size)
        for outcome in map_in_order(comparer.look, self._pieces(), threads):
            self._take(outcome)
            done += outcome.piece.end - outcome.piece.start
            if progress is not None:
                progress(done, total)
        metadata = tuple(image.all_metadata() for image in self._images)
        regions = tuple(
            found.report(pair, self._images, metadata, self.page_size)
            for pair, found in zip(self.pairs, self._found, strict=True)
        )
        files = _compare_files(*self._images) if self._wanted is None else FilesDiff()
        only_a, only_b = self._only
        damage = _join(self._damage)
        return DiffReport(
            a=self._images[0].path,
            b=self._images[1].path,
            same=not (
                any(region.changes or region.different_pages for region in regions)
                or (only_a or only_b or damage)
                or (files.only_a or files.only_b or files.different)
            ),
            page_size=self.page_size,
            pages=sum(region.pages for region in regions),
            different_pages=sum(region.different_pages for region in regions),
            different_bytes=sum(region.different_bytes for region in regions),
            regions=regions,
            only_a=only_a,
            only_b=only_b,
            files=files,
            damage=damage,
            seconds=time.perf_counter() - start,
        )

    def _pieces(self) -> Iterator[Piece]:
        sides = (Side(self._images[0]), Side(self._images[1]))
        for number, pair in enumerate(self.pairs):
            yield from pieces(number, pair, *sides)

    def _take(self, outcome: Outcome) -> None:
        piece = outcome.piece
        found = self._found[piece.pair]
        for changed, count in outcome.changed.items():
            found.changed[changed] = found.changed.get(changed, 0) + count
        pair = self.pairs[piece.pair]
        for start, end, verdict in outcome.runs:
            if verdict == SAME:
                continue
            if verdict == UNREADABLE:
                found.unreadable += -(-(end - start) // self.page_size)
            else:
                self._room -= found.add(start, end, self.page_size, is_kept=self._room > 0)
            if self.drawn is not None:
                self._draw(piece.pair, start, end, verdict)
        for side, lost in outcome.lost:
            region = self._images[side].regions[pair.numbers[side]]
            self._damage.append(
                DiffDamage(
                    self._images[side].path,
                    Damage(region.name, lost.offset, lost.length, lost.cluster, lost.reason),
                )
            )

    def _draw(self, pair: int, start: int, end: int, verdict: int) -> None:
        assert self.drawn is not None
        drawn = self.drawn[pair]
        cells = drawn.unreadable if verdict == UNREADABLE else drawn.different
        while start < end:
            cell = start // self.cell_bytes
            stop = min(end, (cell + 1) * self.cell_bytes)
            cells[cell] += -(-(stop - start) // self.page_size)
            start = stop


class _Found:
    """What is known so far of a pair."""

    def __init__(self) -> None:
        self._end = -1  # of the last range
        self.bytes = 0
        self.pages = 0
        self.unreadable = 0
        self.count = 0
        self.ranges: list[list[int]] = []
        self.changed: dict[tuple[int, int, int], int] = {}

    def add(self, start: int, end: int, page_size: int, *, is_kept: bool) -> int:
        """Pages that differ, behind all before; how many more ranges are listed for them."""
        self.bytes += end - start
        self.pages += -(-(end - start) // page_size)
        is_new = start != self._end
        self._end = end
        if is_new:
            self.count += 1
            if is_kept:
                self.ranges.append([start, end - start])
            return int(is_kept)
        if self.count == len(self.ranges):
            self.ranges[-1][1] += end - start
        return 0

    def report(
        self,
        pair: Pair,
        images: tuple[Image, Image],
        metadata: tuple[list[object], ...],
        page_size: int,
    ) -> RegionDiff:
        """All of it."""
        a, b = (image.regions[number] for image, number in zip(images, pair.numbers, strict=True))
        changes: list[tuple[str, object, object]] = []
        if pair.by_name:
            kept = [each[number] for each, number in zip(metadata, pair.numbers, strict=True)]
            changes += [("length", a.length, b.length), ("metadata", kept[0], kept[1])]
        changes += [("protection", a.protection, b.protection), ("shared", a.shared, b.shared)]
        states: dict[str, int] = {}
        zero_pages = 0
        for (before, after, verdict), count in sorted(self.changed.items(), reverse=True):
            if verdict != SAME:
                states[f"{STATES[before]}, {STATES[after]}"] = count
            elif before != after and fmt.PAGE_DATA not in (before, after):
                zero_pages += count
        return RegionDiff(
            name=a.name,
            other_name=b.name,
            offset=pair.offsets[0],
            other_offset=pair.offsets[1],
            length=pair.length,
            changes=tuple(change for change in changes if change[1] != change[2]),
            pages=-(-pair.length // page_size),
            different_pages=self.pages,
            different_bytes=self.bytes,
            unreadable_pages=self.unreadable,
            states=states,
            zero_pages=zero_pages,
            range_count=self.count,
            ranges=tuple((start + pair.offsets[0], length) for start, length in self.ranges),
        )


def _compare_files(a: Image, b: Image) -> FilesDiff:
    if not (a.has_files or b.has_files):
        return FilesDiff()
    return FilesDiff(
        only_a=tuple(name for name in a.files if name not in b.files),
        only_b=tuple(name for name in b.files if name not in a.files),
        different=tuple(
            name for name, data in a.files.items() if name in b.files and b.files[name] != data
        ),
    )


def _join(damage: list[DiffDamage]) -> tuple[DiffDamage, ...]:
    """Neighbouring parts that are lost for one reason as one; each cluster once."""
    joined: list[DiffDamage] = []
    seen = set()
    for each in damage:
        found = each.damage
        key = (each.path, found.region, found.offset, found.cluster)
        if key in seen:
            continue
        seen.add(key)
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.path == each.path
            and (last.damage.region, last.damage.reason) == (found.region, found.reason)
            and last.damage.offset is not None
            and last.damage.offset + last.damage.length == found.offset
        ):
            length = last.damage.length + found.length
            joined[-1] = DiffDamage(each.path, dataclasses.replace(last.damage, length=length))
        else:
            joined.append(each)
    return tuple(joined)


def _check_name(images: tuple[Image, Image], name: str) -> None:
    """Raise what the second image says if neither has a region of that name."""
    try:
        images[0].number(name)
    except RegionNotFound:
        images[1].number(name)
