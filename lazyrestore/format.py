"""The bytes of an image: docs/format.md in Python, as csrc/format.h is in C.

Here stand all constants and the packing and unpacking of each fixed-width structure. Nothing here
reads or writes files, and nothing is checked that needs more than the bytes at hand.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import ClassVar

VERSION = 1
FEATURE_PLANES = 1
"""A critical feature: clusters may have their bytes in planes."""
CRITICAL_KNOWN = FEATURE_PLANES
"""Feature bits that a reader of this version knows."""
FEATURE_FILES = 1
"""A compatible feature: the image has a record of files."""

MAGIC = b"\x81\xablazyrestore"
HEADER_MAX_BYTES = 65536
METADATA_HEAD = b"\x81\xa8metadata"

FOOTER_PREFIX = b"\x81\xa6footer\xc4\xc0"
FOOTER_BYTES = 192
FOOTER_RECORD_BYTES = len(FOOTER_PREFIX) + FOOTER_BYTES
ROOT_BYTES = 128
REGION_BYTES = 96
NODE_HEAD_BYTES = 16
NODE_FANOUT = 256
REFERENCE_BYTES = 24
ENTRY_HEAD_BYTES = 24
ENTRY_KIND_AT = 16
ENTRY_PLANES_AT = 17

PAGE_SIZE_MIN = 4096
PAGE_SIZE_MAX = 65536
CLUSTER_SIZE_MIN = 4096
CLUSTER_SIZE_MAX = 2 << 20
PAGES_PER_WORD = 32
REGIONS_MAX = 1 << 24
NAME_BYTES_MAX = 4096
TREE_HEIGHT_MAX = 8
LENGTH_MAX = 1 << 62
METADATA_BYTES_MAX = 256 << 20
FILES_BYTES_MAX = 64 << 20

# States of a page.
PAGE_HOLE = 0
PAGE_ZERO = 1
PAGE_DATA = 2

# Kinds of a leaf entry; a reference has the first two, and 2 for a node.
CLUSTER_HOLE = 0
CLUSTER_ZERO = 1
CLUSTER_ZSTD = 2
CLUSTER_RAW = 3
CLUSTER_MIXED = 4
REFERENCE_HOLE = 0
REFERENCE_ZERO = 1
REFERENCE_NODE = 2

PROTECTION_READ = 1
PROTECTION_WRITE = 2
PROTECTION_EXECUTE = 4
REGION_SHARED = 1
"""Flag of a region: the mapping was shared."""
CODEC_ZSTD = 1
FILTER_NONE = 0
FILTER_PLANES = 1
PLANES_WIDTHS = (2, 4, 8)
"""Bytes of the numbers whose bytes a cluster may have in planes."""

DIGEST_PREFIX = b"lazyrestore content 1"
DIGEST_REGION_END = 255
DIGEST_CLUSTER = 2
DIGEST_FILES = 254

_REFERENCE = struct.Struct("<QIIB7x")
_NODE_HEAD = struct.Struct("<IIQ")
_ROOT = struct.Struct("<IIIIQQQQQQQ24s32x")
_ENTRY = struct.Struct("<QIIBB6x")
_REGION = struct.Struct("<QQQQIIIIBBB45x")
_FOOTER = struct.Struct("<IIIIQQ16s32sQQIIQIIII32xQIII8x")
_U32 = struct.Struct("<I")

_BIN_HEADS = ((1 << 8, 0xC4, ">BB"), (1 << 16, 0xC5, ">BH"), (1 << 32, 0xC6, ">BI"))


def bin_head(nbytes: int) -> bytes:
    """The msgpack prefix of a `bin` of that length: 2, 3 or 5 bytes."""
    for limit, code, layout in _BIN_HEADS:
        if nbytes < limit:
            return struct.pack(layout, code, nbytes)
    raise ValueError(f"a msgpack bin cannot hold {nbytes} bytes")


def record_head(key: str, nbytes: int) -> bytes:
    """All of a record `{key: bin}` that stands before its payload of `nbytes`."""
    name = key.encode("ascii")
    if not 0 < len(name) < 32:
        raise ValueError(f"a record's key has 1 to 31 bytes, not {len(name)}")
    return bytes((0x81, 0xA0 | len(name))) + name + bin_head(nbytes)


def array_head(count: int) -> bytes:
    """The msgpack prefix of an array of `count` objects."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return struct.pack(">BH", 0xDC, count)
    return struct.pack(">BI", 0xDD, count)


def is_power_of_two(number: int) -> bool:
    """True for 1, 2, 4, 8, ..."""
    return number > 0 and number & (number - 1) == 0


def state_words(pages_per_cluster: int) -> int:
    """Number of u64 words with the page states of a cluster."""
    return -(-pages_per_cluster // PAGES_PER_WORD)


def entry_bytes(pages_per_cluster: int) -> int:
    """Length of a leaf entry."""
    return ENTRY_HEAD_BYTES + 8 * state_words(pages_per_cluster)


def tree_height(cluster_count: int) -> int:
    """Levels of the index tree: the smallest h, at least 1, with 256^h ≥ cluster_count."""
    height = 1
    while NODE_FANOUT**height < cluster_count:
        height += 1
    return height


_DIGITS = bytes.maketrans(b"\0\1\2\3", b"0123")


def pack_states(states: bytes, words: int) -> bytes:
    """Page states, a byte a page, as two bits a page in `words` little-endian u64 words."""
    return int(states[::-1].translate(_DIGITS) or b"0", 4).to_bytes(8 * words, "little")


def unpack_states(packed: bytes, pages: int) -> bytes:
    """States of the first `pages` pages, a byte a page."""
    bits = int.from_bytes(packed, "little")
    return bytes((bits >> (2 * page)) & 3 for page in range(pages))


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What points to a node of the index; with kind hole or zero there is none below."""

    kind: int
    offset: int = 0
    nbytes: int = 0
    crc32c: int = 0

    def pack(self) -> bytes:
        """24 bytes."""
        return _REFERENCE.pack(self.offset, self.nbytes, self.crc32c, self.kind)

    @classmethod
    def unpack(cls, data: bytes) -> Reference:
        """From 24 bytes."""
        offset, nbytes, crc32c, kind = _REFERENCE.unpack(data)
        return cls(kind, offset, nbytes, crc32c)


@dataclasses.dataclass(frozen=True, slots=True)
class LeafEntry:
    """Where one cluster is, and the states of its pages (packed: whole u64 words)."""

    kind: int
    states: bytes
    offset: int = 0
    nbytes: int = 0
    crc32c: int = 0
    planes: int = 0

    def pack(self) -> bytes:
        """24 bytes and the states."""
        place = self.offset, self.nbytes, self.crc32c
        return _ENTRY.pack(*place, self.kind, self.planes) + self.states

    @classmethod
    def unpack(cls, data: bytes) -> LeafEntry:
        """From exactly one entry's bytes."""
        offset, nbytes, crc32c, kind, planes = _ENTRY.unpack_from(data)
        return cls(kind, bytes(data[ENTRY_HEAD_BYTES:]), offset, nbytes, crc32c, planes)


@dataclasses.dataclass(frozen=True, slots=True)
class NodeHead:
    """What stands before the entries of a node."""

    level: int
    count: int
    first_cluster: int

    def pack(self) -> bytes:
        """16 bytes."""
        return _NODE_HEAD.pack(self.level, self.count, self.first_cluster)

    @classmethod
    def unpack(cls, data: bytes) -> NodeHead:
        """From the first 16 bytes of a node."""
        return cls(*_NODE_HEAD.unpack_from(data))


@dataclasses.dataclass(frozen=True, slots=True)
class Root:
    """The fixed part of the root; the region table and the names follow it."""

    region_count: int
    names_bytes: int
    tree_height: int
    cluster_count: int
    logical_bytes: int
    zero_bytes: int
    hole_bytes: int
    duplicate_bytes: int
    payload_bytes: int
    stored_clusters: int
    tree: Reference

    def pack(self) -> bytes:
        """128 bytes."""
        return _ROOT.pack(
            self.region_count,
            self.names_bytes,
            self.tree_height,
            0,
            self.cluster_count,
            self.logical_bytes,
            self.zero_bytes,
            self.hole_bytes,
            self.duplicate_bytes,
            self.payload_bytes,
            self.stored_clusters,
            self.tree.pack(),
        )

    @classmethod
    def unpack(cls, data: bytes) -> Root:
        """From the first 128 bytes of the root's payload."""
        *before, _, clusters, logical, zero, hole, duplicate, payload, stored, tree = (
            _ROOT.unpack_from(data)
        )
        regions, names, height = before
        return cls(
            regions,
            names,
            height,
            clusters,
            logical,
            zero,
            hole,
            duplicate,
            payload,
            stored,
            Reference.unpack(tree),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RegionEntry:
    """One region in the region table."""

    address: int
    length: int
    first_cluster: int
    cluster_count: int
    name_offset: int
    name_bytes: int
    protection: int
    flags: int = 0
    codec: int = CODEC_ZSTD
    filter: int = FILTER_NONE
    planes: int = 0

    def pack(self) -> bytes:
        """96 bytes."""
        return _REGION.pack(
            self.address,
            self.length,
            self.first_cluster,
            self.cluster_count,
            self.name_offset,
            self.name_bytes,
            self.protection,
            self.flags,
            self.codec,
            self.filter,
            self.planes,
        )

    @classmethod
    def unpack(cls, data: bytes) -> RegionEntry:
        """From 96 bytes."""
        return cls(*_REGION.unpack(data))


@dataclasses.dataclass(frozen=True, slots=True)
class Footer:
    """The end of an image. Its own checksum is given to `record`."""

    CRC_AT: ClassVar[int] = FOOTER_BYTES - 4

    page_size: int
    cluster_size: int
    header_bytes: int
    id: bytes
    digest: bytes
    file_bytes: int
    root_offset: int
    root_bytes: int
    root_crc32c: int
    metadata_offset: int
    metadata_bytes: int
    metadata_crc32c: int
    header_crc32c: int
    version: int = VERSION
    critical: int = 0
    compatible: int = 0
    files_offset: int = 0
    files_bytes: int = 0
    files_crc32c: int = 0
    files_content_bytes: int = 0

    def pack(self) -> bytes:
        """The 188 bytes that the footer's checksum covers; that follows them as a u32."""
        return _FOOTER.pack(
            self.version,
            self.page_size,
            self.cluster_size,
            self.header_bytes,
            self.critical,
            self.compatible,
            self.id,
            self.digest,
            self.file_bytes,
            self.root_offset,
            self.root_bytes,
            self.root_crc32c,
            self.metadata_offset,
            self.metadata_bytes,
            self.metadata_crc32c,
            self.header_crc32c,
            0,
            self.files_offset,
            self.files_bytes,
            self.files_crc32c,
            self.files_content_bytes,
        )

    def record(self, crc32c: int) -> bytes:
        """The whole record of 202 bytes; `crc32c` is that of `pack()`."""
        return FOOTER_PREFIX + self.pack() + _U32.pack(crc32c)

    @classmethod
    def unpack(cls, payload: bytes) -> Footer:
        """From the 192 bytes of the footer's payload; the checksum is not looked at."""
        (
            version,
            page_size,
            cluster_size,
            header_bytes,
            critical,
            compatible,
            identity,
            digest,
            file_bytes,
            root_offset,
            root_bytes,
            root_crc32c,
            metadata_offset,
            metadata_bytes,
            metadata_crc32c,
            header_crc32c,
            _,
            files_offset,
            files_bytes,
            files_crc32c,
            files_content_bytes,
        ) = _FOOTER.unpack_from(payload)
        return cls(
            page_size=page_size,
            cluster_size=cluster_size,
            header_bytes=header_bytes,
            id=identity,
            digest=digest,
            file_bytes=file_bytes,
            root_offset=root_offset,
            root_bytes=root_bytes,
            root_crc32c=root_crc32c,
            metadata_offset=metadata_offset,
            metadata_bytes=metadata_bytes,
            metadata_crc32c=metadata_crc32c,
            header_crc32c=header_crc32c,
            version=version,
            critical=critical,
            compatible=compatible,
            files_offset=files_offset,
            files_bytes=files_bytes,
            files_crc32c=files_crc32c,
            files_content_bytes=files_content_bytes,
        )


assert _ROOT.size == ROOT_BYTES
assert _REGION.size == REGION_BYTES
assert _FOOTER.size == FOOTER_BYTES - 4
assert _REFERENCE.size == _ENTRY.size == REFERENCE_BYTES
