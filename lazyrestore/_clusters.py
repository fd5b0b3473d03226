"""What the index says of clusters, many at a time: for maps and comparisons.

A node is read once and taken apart as a whole; what is below an entry for many clusters is one
stretch, however long. So an image of millions of clusters takes a second or so, and one of zeros
none at all. Nothing but the index is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from . import format as fmt
from ._native import ffi, lib
from ._open import Image
from .errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    class Entry(NamedTuple):
        """A leaf entry, as in docs/format.md; at run time a plain tuple, for there are many."""

        offset: int
        nbytes: int
        crc32c: int
        kind: int
        planes: int
        reserved: bytes
        states: bytes

    class _Child(NamedTuple):
        """An entry of a node above the leaves."""

        offset: int
        nbytes: int
        crc32c: int
        kind: int
        reserved: bytes


LISTED = -1
"""A stretch that has an entry for each of its clusters."""
LOST = -2
"""A stretch that cannot be known: a node of the index is damaged."""

_DATA_BITS = 0xAAAAAAAAAAAAAAAA
_ZERO_BITS = 0x5555555555555555
_MEMO_MAX = 1 << 14
_CHILD = struct.Struct("<QIIB7s")
_NO_RESERVED = bytes(7)
_UNIFORM = (fmt.REFERENCE_HOLE, fmt.REFERENCE_ZERO)


class Stretch:
    """Clusters that follow each other.

    Attributes:
        first: number of the first one, counted through the image.
        count: how many.
        kind: all of them CLUSTER_HOLE or CLUSTER_ZERO, or LISTED, or LOST.
        entries: of each, where LISTED; `Index.tally` says whether they can be believed.
        reason: why they are LOST.
    """

    __slots__ = ("count", "entries", "first", "kind", "reason")

    def __init__(
        self,
        first: int,
        count: int,
        kind: int,
        entries: Sequence[Entry] = (),
        reason: str = "",
    ) -> None:
        self.first = first
        self.count = count
        self.kind = kind
        self.entries = entries
        self.reason = reason


class Index:
    """The index of an open image. For one thread at a time.

    Attributes:
        image: it.
        root: the fixed part of its root, with the tallies.
        pages_per_cluster: of a whole one.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        tail = image.read_raw(image.file_bytes - fmt.FOOTER_RECORD_BYTES, fmt.FOOTER_RECORD_BYTES)
        footer = fmt.Footer.unpack(tail[len(fmt.FOOTER_PREFIX) :])
        self.root = fmt.Root.unpack(image.read_raw(footer.root_offset, fmt.ROOT_BYTES))
        self.pages_per_cluster = image.cluster_size // image.page_size
        self._limit = image.file_bytes - fmt.FOOTER_RECORD_BYTES
        self._widths = fmt.PLANES_WIDTHS if footer.critical & fmt.FEATURE_PLANES else ()
        words = fmt.state_words(self.pages_per_cluster)
        self._entry = struct.Struct(f"<QIIBB6s{8 * words}s")
        # The last node of each level: neighbours ask for the same ones.
        self._kept: dict[int, tuple[_Child, Sequence[Entry] | Sequence[_Child]]] = {}
        self._memo: dict[tuple[int, int, bytes], tuple[int, int] | None] = {}

    # ---- Stretches -------------------------------------------------------------------------------

    def stretches(self, first: int, count: int) -> Iterator[Stretch]:
        """All of a range of clusters, in order."""
        if count <= 0:
            return
        tree = self.root.tree
        child: _Child = (tree.offset, tree.nbytes, tree.crc32c, tree.kind, _NO_RESERVED)  # type: ignore[assignment]
        yield from self._below(child, self.root.tree_height, 0, first, first + count)

    def _below(
        self, child: _Child, height: int, start: int, first: int, end: int
    ) -> Iterator[Stretch]:
        """What lies below a reference to a node that is `height` levels above the clusters."""
        span = fmt.NODE_FANOUT**height
        first, end = max(first, start), min(end, start + span)
        offset, nbytes, crc32c, kind, reserved = child
        if kind in _UNIFORM and not (offset or nbytes or crc32c or any(reserved)):
            yield Stretch(first, end - first, kind)
            return
        try:
            if kind != fmt.REFERENCE_NODE or any(reserved):
                raise ImageError("an index entry contradicts itself")
            node = self._read(child, height - 1, start)
        except (ImageError, OSError) as error:
            yield Stretch(first, end - first, LOST, reason=str(error))
            return
        below = span // fmt.NODE_FANOUT
        low, high = (first - start) // below, -(-(end - start) // below)
        if height == 1:
            entries: Sequence[Entry] = node[low:high]  # type: ignore[assignment]
            yield Stretch(first, end - first, LISTED, entries)
            return
        for number in range(low, high):
            place = start + number * below
            yield from self._below(node[number], height - 1, place, first, end)  # type: ignore[arg-type]

    def _read(self, child: _Child, level: int, start: int) -> Sequence[Entry] | Sequence[_Child]:
        """All entries of a node."""
        kept = self._kept.get(level)
        if kept is not None and kept[0] == child:
            return kept[1]
        offset, nbytes, crc32c, _, _ = child
        where = f"at byte {offset} of the file"
        shape = self._entry if level == 0 else _CHILD
        step = fmt.NODE_FANOUT**level
        count = min(fmt.NODE_FANOUT, -(-(self.root.cluster_count - start) // step))
        if nbytes != fmt.NODE_HEAD_BYTES + count * shape.size or offset > self._limit - nbytes:
            raise ImageError(f"an index node is not of the length that its place asks, {where}")
        data = self.image.read_raw(offset, nbytes)
        if lib.lr_crc32c(0, ffi.from_buffer(data), nbytes) != crc32c:
            raise ImageError(f"an index node's checksum is wrong, {where}")
        if fmt.NodeHead.unpack(data) != fmt.NodeHead(level, count, start):
            raise ImageError(f"an index node is not the one for its place, {where}")
        entries: Sequence[Entry] | Sequence[_Child] = list(
            shape.iter_unpack(memoryview(data)[fmt.NODE_HEAD_BYTES :])
        )  # type: ignore[assignment]
        self._kept[level] = (child, entries)
        return entries

    # ---- Entries ---------------------------------------------------------------------------------

    def tally(self, entry: Entry, pages: int) -> tuple[int, int] | None:
        """The data pages and the zero pages of a cluster that has `pages` of its region.

        None where the entry contradicts itself: loading the cluster is refused then.
        """
        offset, nbytes, crc32c, kind, planes, reserved, states = entry
        key = (kind, pages, states)
        try:
            found = self._memo[key]
        except KeyError:
            if len(self._memo) >= _MEMO_MAX:
                self._memo.clear()
            found = self._memo[key] = _tally_states(kind, pages, states)
        if found is None or reserved != b"\0\0\0\0\0\0":
            return None
        if found[0] == 0:
            return None if offset or nbytes or crc32c or planes else found
        data_bytes = found[0] * self.image.page_size
        if offset < len(fmt.MAGIC) or offset > self._limit - nbytes:
            return None
        if kind == fmt.CLUSTER_RAW:
            return None if planes or nbytes != data_bytes else found
        if planes and planes not in self._widths:
            return None
        return found if 0 < nbytes < data_bytes else None


def _tally_states(kind: int, pages: int, states: bytes) -> tuple[int, int] | None:
    bits = int.from_bytes(states, "little")
    mask = (1 << 2 * pages) - 1
    data_bits = int.from_bytes(_DATA_BITS.to_bytes(8, "little") * (len(states) // 8), "little")
    is_data = bits & data_bits
    is_zero = bits & (data_bits >> 1)
    if bits & ~mask or (is_data >> 1) & is_zero:
        return None
    data, zero = is_data.bit_count(), is_zero.bit_count()
    if kind in (fmt.CLUSTER_ZSTD, fmt.CLUSTER_RAW):
        return (data, zero) if data else None
    if data:
        return None
    fits = {
        fmt.CLUSTER_HOLE: zero == 0,
        fmt.CLUSTER_ZERO: zero == pages,
        fmt.CLUSTER_MIXED: 0 < zero < pages,
    }
    return (0, zero) if fits.get(kind, False) else None
