"""What of two images is compared with what: pairs of regions, cut into pieces."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterator

from . import format as fmt
from ._clusters import LISTED, LOST, Index, Stretch
from ._open import Image
from .reports import DiffPart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._clusters import Entry

_PIECE_BYTES = 1 << 20
_SPAN = re.compile(r"(?:(.*)/)?([0-9a-f]{1,16})-([0-9a-f]{1,16})")


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Parts of two regions that belong together.

    Attributes:
        numbers: of the regions, in their images.
        offsets: where in each the part begins, in bytes.
        length: bytes.
        by_name: True if the regions have the same name, and are compared as wholes.
    """

    numbers: tuple[int, int]
    offsets: tuple[int, int]
    length: int
    by_name: bool


Parts = tuple[DiffPart, ...]


def pair_regions(
    a: Image, b: Image, wanted: Container[str] | None
) -> tuple[list[Pair], tuple[Parts, Parts]]:
    """Pairs in the order of the first image, and what only one of the images has."""
    numbers = {region.name: number for number, region in enumerate(b.regions)}
    pairs: list[Pair] = []
    left_a: list[int] = []
    for number, region in enumerate(a.regions):
        if wanted is not None and region.name not in wanted:
            continue
        other = numbers.pop(region.name, None)
        if other is None:
            left_a.append(number)
            continue
        length = min(region.length, b.regions[other].length)
        pairs.append(Pair((number, other), (0, 0), length, by_name=True))
    names_a = {region.name for region in a.regions}
    left_b = [
        number
        for number, region in enumerate(b.regions)
        if region.name not in names_a and (wanted is None or region.name in wanted)
    ]
    spans_a, spans_b = _spans(a, left_a), _spans(b, left_b)
    overlaps = _overlaps(spans_a, spans_b)
    pairs += overlaps
    pairs.sort(key=lambda pair: (pair.numbers[0], pair.offsets[0]))
    return pairs, (_rest(a, left_a, overlaps, 0), _rest(b, left_b, overlaps, 1))


Span = tuple[str, int, int, int]  # owner, start, end, number of the region


def _spans(image: Image, numbers: list[int]) -> list[Span]:
    """Those of these regions that are named for where they were, in order."""
    found = []
    for number in numbers:
        region = image.regions[number]
        match = _SPAN.fullmatch(region.name)
        if match is None:
            continue
        start = int(match[2], 16)
        if start % image.page_size == 0 and region.address in (0, start):
            found.append((match[1] or "", start, start + region.length, number))
    return sorted(found)


def _overlaps(a: list[Span], b: list[Span]) -> list[Pair]:
    """Of regions that do not overlap within their image. Where they do, less is found."""
    pairs: list[Pair] = []
    at = 0
    for owner, start, end, number in a:
        # Those that end before this one begins do so before all that follow.
        while at < len(b) and (b[at][0], b[at][2]) <= (owner, start):
            at += 1
        for place in range(at, len(b)):
            other_owner, other_start, other_end, other = b[place]
            if other_owner != owner or other_start >= end or len(pairs) >= len(a) + len(b):
                break
            low, high = max(start, other_start), min(end, other_end)
            if low < high:
                offsets = (low - start, low - other_start)
                pairs.append(Pair((number, other), offsets, high - low, by_name=False))
    return pairs


def _rest(image: Image, numbers: list[int], pairs: list[Pair], side: int) -> Parts:
    """What of these regions is in no pair."""
    taken: dict[int, list[tuple[int, int]]] = {}
    for pair in pairs:
        start = pair.offsets[side]
        taken.setdefault(pair.numbers[side], []).append((start, start + pair.length))
    parts = []
    for number in numbers:
        region = image.regions[number]
        at = 0
        for start, end in sorted(taken.get(number, ())):
            if start > at:
                parts.append(DiffPart(region.name, at, start - at))
            at = max(at, end)
        if at < region.length or not region.length:
            parts.append(DiffPart(region.name, at, region.length - at))
    return tuple(parts)


@dataclasses.dataclass(slots=True)
class Known:
    """What the index of one image says of a piece.

    Attributes:
        kind: CLUSTER_HOLE or CLUSTER_ZERO for all of it, LISTED, or LOST.
        first: number of the first cluster, counted through the image.
        entries: of the clusters from there on, where LISTED.
        reason: why it is LOST.
    """

    kind: int
    first: int
    entries: list[Entry] = dataclasses.field(default_factory=list)
    reason: str = ""


@dataclasses.dataclass(slots=True)
class Piece:
    """Part of a pair, to be looked at at once.

    Attributes:
        pair: its number.
        numbers, offsets: as in the pair: what follows counts from there.
        start, end: in bytes.
        known: of both images.
    """

    pair: int
    numbers: tuple[int, int]
    offsets: tuple[int, int]
    start: int
    end: int
    known: tuple[Known, Known]


class Side:
    """One image, whose index is gone through."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self._index = Index(image)

    def extents(self, number: int, offset: int, length: int) -> Iterator[tuple[int, int, Stretch]]:
        """(start, end, what the index says) of a part of a region, counted from `offset`."""
        size = self.image.cluster_size
        first = self.image.first_cluster(number)
        low, high = offset // size, -(-(offset + length) // size)
        for stretch in self._index.stretches(first + low, high - low):
            start = (stretch.first - first) * size - offset
            end = start + stretch.count * size
            yield max(0, start), min(length, end), stretch

    def known(self, pair: Pair, side: int, start: int, end: int, stretch: Stretch) -> Known:
        """What a stretch says of a part of it."""
        first = self.image.first_cluster(pair.numbers[side])
        size = self.image.cluster_size
        low = first + (pair.offsets[side] + start) // size
        high = first + -(-(pair.offsets[side] + end) // size)
        entries = stretch.entries[low - stretch.first : high - stretch.first]
        return Known(stretch.kind, low, list(entries), stretch.reason)


def pieces(number: int, pair: Pair, a: Side, b: Side) -> Iterator[Piece]:
    """All of a pair, in order: what neither index lists in one piece, else about 1 MiB each."""
    if not pair.length:
        return
    step = max(_PIECE_BYTES, a.image.cluster_size, b.image.cluster_size)
    sides = (a, b)
    walks = [
        side.extents(region, offset, pair.length)
        for side, region, offset in zip(sides, pair.numbers, pair.offsets, strict=True)
    ]
    now = [next(walks[0]), next(walks[1])]
    at = 0
    while at < pair.length:
        end = min(now[0][1], now[1][1])
        if not all(extent[2].kind in (fmt.CLUSTER_HOLE, fmt.CLUSTER_ZERO) for extent in now):
            # At round places of the first image: no cluster of it is in two pieces.
            rounded = (pair.offsets[0] + at) // step * step + step - pair.offsets[0]
            end = min(end, rounded) if _is_listed(now) else end
        known = (
            a.known(pair, 0, at, end, now[0][2]),
            b.known(pair, 1, at, end, now[1][2]),
        )
        yield Piece(number, pair.numbers, pair.offsets, at, end, known)
        at = end
        for side in (0, 1):
            if at >= now[side][1] and at < pair.length:
                now[side] = next(walks[side])


def _is_listed(now: list[tuple[int, int, Stretch]]) -> bool:
    return any(extent[2].kind == LISTED for extent in now) and not any(
        extent[2].kind == LOST for extent in now
    )
