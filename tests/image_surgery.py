"""Changing images where it means something: the fields of an image, and its checksums made right.

From docs/format.md, and lenient: images may be damaged, and then some fields are not found.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

import lazyrestore
from lazyrestore._native import ffi, lib
from lazyrestore._verify import _Check
from lazyrestore._walk import walk

FOOTER = 192
U4, U8 = "<I", "<Q"


def crc32c(data: bytes) -> int:
    return int(lib.lr_crc32c(0, ffi.from_buffer(data), len(data)))


@dataclasses.dataclass(frozen=True)
class Field:
    """A number in an image: little-endian, of 1, 4 or 8 bytes."""

    name: str
    offset: int
    nbytes: int

    def get(self, data: bytes) -> int:
        return int.from_bytes(data[self.offset : self.offset + self.nbytes], "little")

    def put(self, data: bytearray, value: int) -> None:
        value &= (1 << 8 * self.nbytes) - 1
        data[self.offset : self.offset + self.nbytes] = value.to_bytes(self.nbytes, "little")


# Name, offset, length: the tables of docs/format.md.
_FOOTER_FIELDS = """version 0 4, page_size 4 4, cluster_size 8 4, header_bytes 12 4, critical 16 8,
 compatible 24 8, id 32 8, digest 48 8, file_bytes 80 8, root_offset 88 8, root_bytes 96 4,
 root_crc 100 4, metadata_offset 104 8, metadata_bytes 112 4, metadata_crc 116 4,
 header_crc 120 4, reserved 124 4, parent 128 8, files_offset 160 8,
 files_bytes 168 4, files_crc 172 4, files_content_bytes 176 4, reserved_end 180 8, crc 188 4"""
_ROOT_FIELDS = """region_count 0 4, names_bytes 4 4, tree_height 8 4, reserved 12 4,
 cluster_count 16 8, logical_bytes 24 8, zero_bytes 32 8, hole_bytes 40 8, duplicate_bytes 48 8,
 payload_bytes 56 8, stored_clusters 64 8, reserved_end 96 8"""
_REGION_FIELDS = """address 0 8, length 8 8, first_cluster 16 8, cluster_count 24 8,
 name_offset 32 4, name_bytes 36 4, protection 40 4, flags 44 4,
 codec 48 1, filter 49 1, planes 50 1, reserved 51 8"""
_NODE_FIELDS = "level 0 4, count 4 4, first_cluster 8 8"
_ENTRY_FIELDS = "offset 0 8, bytes 8 4, crc 12 4, kind 16 1, planes 17 1, reserved 18 1"


def _table(structure: str, text: str, base: int) -> Iterator[Field]:
    for line in text.split(","):
        name, offset, nbytes = line.split()
        yield Field(f"{structure}.{name}", base + int(offset), int(nbytes))


@dataclasses.dataclass(frozen=True)
class _Node:
    reference: int  # where what points to it is
    offset: int
    nbytes: int
    level: int

    def entries(self, leaf_bytes: int) -> range:
        size = leaf_bytes if self.level == 0 else 24
        count = min(256, (self.nbytes - 16) // size)
        return range(self.offset + 16, self.offset + 16 + count * size, size)


class Surgery:
    """An image's bytes, to be changed in `data` and then resealed."""

    def __init__(self, image: bytes) -> None:
        self.data = bytearray(image)
        self.footer = len(image) - FOOTER
        page_size, cluster_size = self._numbers("<II", self.footer + 4)
        self.leaf_bytes = 24 + 8 * -(-(cluster_size // max(1, page_size)) // 32)
        (self.root,) = self._numbers(U8, self.footer + 88)
        (self.root_bytes,) = self._numbers(U4, self.footer + 96)
        (self.height,) = self._numbers(U4, self.root + 8)

    def _numbers(self, layout: str, offset: int) -> tuple[int, ...]:
        if not 0 <= offset <= len(self.data) - struct.calcsize(layout):
            return (0,) * (len(layout) - 1)
        return struct.unpack_from(layout, self.data, offset)

    def _nodes(self) -> list[_Node]:
        """All nodes that references lead to, each before those below it."""
        found = []
        waiting = [(self.root + 72, self.height - 1)]
        while waiting and len(found) < 5000:
            reference, level = waiting.pop()
            offset, nbytes, _, kind = self._numbers("<QIIB", reference)
            is_there = 16 <= nbytes <= len(self.data) and offset <= len(self.data) - nbytes
            if kind == 2 and is_there and 0 <= level < 8:
                node = _Node(reference, offset, nbytes, level)
                found.append(node)
                if level:
                    waiting += [(entry, level - 1) for entry in node.entries(24)]
        return found

    def fields(self) -> list[Field]:
        """All that can be found."""
        found = [*_table("footer", _FOOTER_FIELDS, self.footer)]
        found += _table("root", _ROOT_FIELDS, self.root)
        found += _table("tree", _ENTRY_FIELDS, self.root + 72)
        (regions,) = self._numbers(U4, self.root)
        for number in range(min(regions, 16)):
            found += _table("region", _REGION_FIELDS, self.root + 128 + 96 * number)
        for node in self._nodes()[:16]:
            found += _table("node", _NODE_FIELDS, node.offset)
            entries = node.entries(self.leaf_bytes)
            for entry in [*entries[:12], *entries[-2:]]:
                found += _table("entry", _ENTRY_FIELDS, entry)
                if node.level == 0:
                    found.append(Field("entry.states", entry + 24, 8))
                    found.append(Field("entry.last_states", entry + self.leaf_bytes - 8, 8))
        return [field for field in found if 0 <= field.offset <= len(self.data) - field.nbytes]

    def _seal(self, offset: int, nbytes: int, crc_at: int) -> None:
        if 0 <= offset <= len(self.data) - nbytes and 0 <= crc_at <= len(self.data) - 4:
            crc = crc32c(bytes(self.data[offset : offset + nbytes]))
            struct.pack_into(U4, self.data, crc_at, crc)

    def reseal(self) -> bytes:
        """Make all checksums right, from the clusters up."""
        if self.footer < 0:
            return bytes(self.data)
        for node in reversed(self._nodes()):
            for entry in node.entries(self.leaf_bytes) if node.level == 0 else ():
                offset, nbytes, _, kind = self._numbers("<QIIB", entry)
                if kind in (2, 3):
                    self._seal(offset, nbytes, entry + 12)
            self._seal(node.offset, node.nbytes, node.reference + 12)
        footer = self.footer
        (header_bytes,) = self._numbers(U4, footer + 12)
        (metadata,) = self._numbers(U8, footer + 104)
        (metadata_bytes,) = self._numbers(U4, footer + 112)
        self._seal(0, header_bytes, footer + 120)
        self._seal(metadata, metadata_bytes, footer + 116)
        (files_bytes,) = self._numbers(U4, footer + 168)
        if files_bytes:
            self._seal(*self._numbers(U8, footer + 160), files_bytes, footer + 172)
        self._seal(*self._numbers(U8, footer + 88), *self._numbers(U4, footer + 96), footer + 100)
        self._seal(footer, 188, footer + 188)
        return bytes(self.data)


def settle(path: Path) -> bool:
    """Make the tallies and the digest right of an image whose clusters can all be read."""
    try:
        image = lazyrestore.open(path)
    except lazyrestore.ImageError:
        return False
    with image:
        check = _Check(image, walk(image))
        check.run(1, None)
        if not check._is_whole or check._metadata() is None or not check._has_files():
            return False
        frame = check._frame
        tallies = (
            *(check._zero_bytes, check._hole_bytes, check._duplicate_bytes),
            *(sum(frame.clusters.lengths), len(frame.clusters)),
        )
        digest = check._digest.digest()
    surgery = Surgery(path.read_bytes())
    struct.pack_into("<5Q", surgery.data, surgery.root + 32, *tallies)
    surgery.data[surgery.footer + 48 : surgery.footer + 80] = digest
    path.write_bytes(surgery.reseal())
    return True
