"""A second reader of images, written from docs/format.md alone, for the tests of the first.

It imports nothing of lazyrestore: msgpack walks the stream, struct takes the payloads apart,
zstandard and blake3 do the rest. It is slow, believes nothing, and checks everything that the
format promises, so that `Decoded(data)` is a test by itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterator

import msgpack
import zstandard
from blake3 import blake3

MAGIC = bytes.fromhex("81ab6c617a79726573746f7265")
FOOTER_PREFIX = bytes.fromhex("81a6666f6f746572c4c0")


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


class Bad(Exception):
    """The image is not what docs/format.md says."""


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Bad(what)


@dataclasses.dataclass
class Record:
    key: str
    value: object
    start: int
    end: int

    @property
    def payload(self) -> bytes:
        need(isinstance(self.value, bytes), f"{self.key} holds a bin")
        assert isinstance(self.value, bytes)
        return self.value

    @property
    def offset(self) -> int:
        """Of the payload."""
        return self.end - len(self.payload)


@dataclasses.dataclass
class Entry:
    """One cluster, or `count` alike without data."""

    first: int
    count: int
    kind: int
    states: bytes | None = None  # a byte a page, all pages of a full cluster; None: all = kind
    words: bytes = b""
    payload: bytes = b""
    offset: int = 0
    planes: int = 0


@dataclasses.dataclass
class RegionRecord:
    name: str
    address: int
    length: int
    first_cluster: int
    cluster_count: int
    protection: int
    flags: int
    planes: int
    metadata: dict
    packed_metadata: bytes


class Decoded:
    """An image, taken apart and checked. `crc` may be a faster CRC32C."""

    def __init__(self, data: bytes, crc=crc32c) -> None:
        self.data = data
        self._crc = crc
        self.records = list(self._walk())
        self._by_offset = {
            record.offset: record for record in self.records if isinstance(record.value, bytes)
        }
        self._read_footer()
        self._read_header()
        self._read_root()
        self.entries = list(self._tree())
        self._check_planes()
        self._check_records()
        self._check_tallies()
        self._check_digest()

    # ---- The stream ----

    def _walk(self) -> Iterator[Record]:
        unpacker = msgpack.Unpacker(max_buffer_size=len(self.data) + 1, object_pairs_hook=self._map)
        unpacker.feed(self.data)
        start = 0
        while start < len(self.data):
            value = unpacker.unpack()
            end = unpacker.tell()
            need(isinstance(value, dict) and len(value) == 1, "a record is a map with one key")
            ((key, inner),) = value.items()
            need(isinstance(key, str), "a record's key is a string")
            yield Record(key, inner, start, end)
            start = end

    @staticmethod
    def _map(pairs: list) -> dict:
        made = dict(pairs)
        need(len(made) == len(pairs), "no key stands twice in a map")
        return made

    def _read_footer(self) -> None:
        keys = [record.key for record in self.records]
        need(keys[0] == "lazyrestore", "the header is first")
        self.has_files = keys.count("files") == 1
        end = ["metadata", *["files"] * self.has_files, "root", "footer"]
        need(keys[-len(end) :] == end, "metadata, files, root, footer are last")
        need(set(keys[1 : -len(end)]) <= {"cluster", "index"}, "clusters and index nodes between")
        self.metadata_record = self.records[-len(end)]
        need(self.data[:13] == MAGIC, "magic")
        need(self.data[-202:-192] == FOOTER_PREFIX, "footer prefix")
        footer = self.records[-1].payload
        need(len(footer) == 192, "footer has 192 bytes")
        (
            self.version,
            self.page_size,
            self.cluster_size,
            header_bytes,
            self.critical,
            compatible,
            self.id,
            self.digest,
            file_bytes,
            root_offset,
            root_bytes,
            root_crc,
            metadata_offset,
            metadata_bytes,
            metadata_crc,
            header_crc,
            reserved,
            reserved_parent,
            files_offset,
            files_bytes,
            files_crc,
            files_content_bytes,
            reserved_too,
            footer_crc,
        ) = struct.unpack("<IIIIQQ16s32sQQIIQIIII32sQIII8sI", footer)
        need(footer_crc == self._crc(footer[:188]), "footer checksum")
        need(not reserved and not any(reserved_parent + reserved_too), "footer reserved")
        need(self.version == 1, "version")
        need(self.critical in (0, 1) and compatible in (0, 1), "features")
        need(compatible == self.has_files, "a record of files, or none")
        need(file_bytes == len(self.data), "length of the file")
        need(header_bytes == self.records[0].end, "length of the header")
        need(header_crc == self._crc(self.data[:header_bytes]), "header checksum")
        metadata = self.data[metadata_offset : metadata_offset + metadata_bytes]
        start, end = self.metadata_record.start, self.metadata_record.end
        need(metadata_offset == start + 10, "metadata begins behind its key")
        need(metadata_offset + metadata_bytes == end, "length of the metadata")
        need(metadata_crc == self._crc(metadata), "metadata checksum")
        self.root = self.records[-2].payload
        need(root_offset == self.records[-2].offset, "place of the root")
        need(root_bytes == len(self.root), "length of the root")
        need(root_crc == self._crc(self.root), "root checksum")
        self.pages_per_cluster = self.cluster_size // self.page_size
        self.files: dict[str, bytes] = {}
        if self.has_files:
            self._read_files(files_offset, files_bytes, files_crc, files_content_bytes)
        else:
            need(not files_offset + files_bytes + files_crc + files_content_bytes, "no files")

    def _read_files(self, offset: int, nbytes: int, crc: int, content_bytes: int) -> None:
        record = self.records[-3]
        frame = record.payload
        need((offset, nbytes) == (record.offset, len(frame)), "place of the files")
        need(crc == self._crc(frame), "files' checksum")
        parameters = zstandard.get_frame_parameters(frame)
        need(parameters.content_size == content_bytes <= 64 << 20, "the files' frame's size")
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        unpacked = msgpack.unpackb(data, object_pairs_hook=list)
        need(data[0] & 0xF0 == 0x80 or data[0] in (0xDE, 0xDF), "files are a map")
        names = [name.encode() for name, _ in unpacked]
        need(names == sorted(set(names)) and names != [], "names of files are in order")
        for name, content in unpacked:
            need(isinstance(content, bytes), "a file's content is a bin")
            need(0 < len(name.encode()) < 256 and not set(name) & set("/\0"), "a file's name")
            need(name not in (".", ".."), "a file's name is not a folder's")
            self.files[name] = content

    def _read_header(self) -> None:
        self.header = header = self.records[0].value
        assert isinstance(header, dict)
        need(self.records[0].end <= 65536, "header is at most 64 KiB")
        for key in ("version", "critical", "compatible", "page_size", "cluster_size"):
            need(type(header[key]) is int, f"header's {key}")
        need(header["version"] == 1, "header's version")
        need((header["critical"], header["compatible"]) == (0, 0), "header's features")
        need(header["page_size"] == self.page_size, "header's page size")
        need(header["cluster_size"] == self.cluster_size, "header's cluster size")
        need(header["id"] == self.id and len(self.id) == 16, "header's id")
        for key in ("created", "writer", "source"):
            need(isinstance(header[key], str), f"header's {key}")

    def _read_root(self) -> None:
        (
            region_count,
            names_bytes,
            self.tree_height,
            reserved,
            self.cluster_count,
            self.logical_bytes,
            self.zero_bytes,
            self.hole_bytes,
            self.duplicate_bytes,
            self.payload_bytes,
            self.stored_clusters,
            self.tree_root,
            reserved_too,
        ) = struct.unpack("<IIIIQQQQQQQ24s32s", self.root[:128])
        need(reserved == 0 and not any(reserved_too), "root reserved")
        need(len(self.root) == 128 + 96 * region_count + names_bytes, "root adds up")
        names = self.root[128 + 96 * region_count :]
        maps = self.metadata_record.value
        need(isinstance(maps, list), "metadata is an array")
        assert isinstance(maps, list)
        need(len(maps) == region_count, "one metadata map a region")
        need(all(isinstance(metadata, dict) for metadata in maps), "metadata are maps")
        packed_maps = self._packed_maps(region_count)
        self.regions: dict[str, RegionRecord] = {}
        cluster = 0
        for number, metadata in enumerate(maps):
            at = 128 + 96 * number
            (
                address,
                length,
                first_cluster,
                cluster_count,
                name_offset,
                name_bytes,
                protection,
                flags,
                codec,
                filter_,
                planes,
                reserved_too,
            ) = struct.unpack("<QQQQIIIIBBB45s", self.root[at : at + 96])
            need(codec == 1 and not any(reserved_too), "region reserved")
            need((filter_, planes) in ((0, 0), (1, 2), (1, 4), (1, 8)), "filter and planes")
            need(protection <= 7 and flags <= 1, "protection and flags")
            need(first_cluster == cluster, "regions follow one another")
            need(cluster_count == -(-length // self.cluster_size), "clusters of a region")
            cluster += cluster_count
            encoded = names[name_offset : name_offset + name_bytes]
            need(1 <= len(encoded) == name_bytes <= 4096, "length of a name")
            name = encoded.decode()
            need(name not in self.regions, "names are unique")
            self.regions[name] = RegionRecord(
                name,
                address,
                length,
                first_cluster,
                cluster_count,
                protection,
                flags,
                planes,
                metadata,
                packed_maps[number],
            )
        need(cluster == self.cluster_count, "number of clusters")
        need(self.logical_bytes == sum(r.length for r in self.regions.values()), "logical bytes")

    def _packed_maps(self, count: int) -> list[bytes]:
        """Each region's metadata as it is stored."""
        record = self.metadata_record
        data = self.data[record.start + 10 : record.end]
        unpacker = msgpack.Unpacker(max_buffer_size=len(data))
        unpacker.feed(data)
        unpacker.read_array_header()
        ends = [unpacker.tell()]
        for _ in range(count):
            unpacker.skip()
            ends.append(unpacker.tell())
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    # ---- The tree ----

    def _tree(self) -> Iterator[Entry]:
        height = 1
        while 256**height < self.cluster_count:
            height += 1
        need(self.tree_height == height, "tree height")
        self.nodes_seen: set[int] = set()
        if self.cluster_count == 0:
            need(self.tree_root == bytes(24), "the tree of an empty image")
            return
        yield from self._below(self.tree_root, height, 0)

    def _below(self, reference: bytes, height: int, first: int) -> Iterator[Entry]:
        """Entries of the subtree of 256^height clusters that begins with `first`."""
        offset, nbytes, crc, kind, reserved = struct.unpack("<QIIB7s", reference)
        need(not any(reserved), "reference reserved")
        span = min(256**height, self.cluster_count - first)
        if kind in (0, 1):
            need((offset, nbytes, crc) == (0, 0, 0), "no node below a uniform reference")
            yield Entry(first, span, kind)
            return
        need(kind == 2, "kind of a reference")
        record = self._by_offset.get(offset)
        need(record is not None and record.key == "index", "a reference names an index record")
        assert record is not None
        node = record.payload
        self.nodes_seen.add(offset)
        need(nbytes == len(node) and crc == self._crc(node), "node length and checksum")
        level, count, first_cluster = struct.unpack("<IIQ", node[:16])
        need(level == height - 1 and first_cluster == first, "the node belongs here")
        need(count == -(-span // 256**level), "entries of a node")
        size = 24 if level else 24 + 8 * -(-self.pages_per_cluster // 32)
        need(len(node) == 16 + count * size, "length of a node")
        kinds = set()
        for number in range(count):
            entry = node[16 + number * size : 16 + (number + 1) * size]
            kinds.add(entry[16])
            start = first + number * 256**level
            if level:
                for found in self._below(entry, level, start):
                    need(found.offset < offset, "a node comes after its clusters")
                    yield found
            else:
                yield self._leaf(entry, start)
        need(kinds not in ({0}, {1}), "a uniform node is not written")

    def _leaf(self, entry: bytes, cluster: int) -> Entry:
        offset, nbytes, crc, kind, planes, reserved = struct.unpack("<QIIBB6s", entry[:24])
        words = entry[24:]
        bits = int.from_bytes(words, "little")
        states = bytes(bits >> 2 * page & 3 for page in range(len(words) * 4))
        pages = self._pages(cluster)
        need(not any(reserved) and not any(states[pages:]), "entry reserved")
        states = states[:pages]
        need(planes in (0, 2, 4, 8) and (kind == 2 or not planes), "planes")
        need(set(states) <= {0, 1, 2}, "page states")
        data_pages = states.count(2)
        if data_pages == 0:
            need((offset, nbytes, crc) == (0, 0, 0), "nothing is stored without data")
            expected = 4 if len(set(states)) == 2 else states[0]
            need(kind == expected, "kind says the same as the states")
            return Entry(cluster, 1, kind, states, words)
        record = self._by_offset.get(offset)
        need(record is not None and record.key == "cluster", "an entry names a cluster record")
        assert record is not None
        payload = record.payload
        need(nbytes == len(payload) and crc == self._crc(payload), "cluster length and checksum")
        size = data_pages * self.page_size
        if kind == 2:
            need(len(payload) < size, "a frame is smaller than what it holds")
            parameters = zstandard.get_frame_parameters(payload)
            need(parameters.content_size == size, "the frame states its size")
            need(not parameters.has_checksum and not parameters.dict_id, "a plain frame")
            data = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
            if planes:
                count = len(data) // planes
                rows = [data[row * count : (row + 1) * count] for row in range(planes)]
                data = bytes(itertools.chain.from_iterable(zip(*rows, strict=True)))
        else:
            need(kind == 3, "kind of a cluster with data")
            data = payload
        need(len(data) == size, "length of the data pages")
        return Entry(cluster, 1, kind, states, words, data, offset, planes)

    def _region_of(self, cluster: int) -> RegionRecord:
        for region in self.regions.values():
            if region.first_cluster <= cluster < region.first_cluster + region.cluster_count:
                return region
        raise Bad(f"cluster {cluster} belongs to no region")

    def _pages(self, cluster: int) -> int:
        region = self._region_of(cluster)
        start = (cluster - region.first_cluster) * self.cluster_size
        return -(-min(self.cluster_size, region.length - start) // self.page_size)

    # ---- What must be true of it all ----

    def _check_planes(self) -> None:
        need(self.critical == any(entry.planes for entry in self.entries), "feature of planes")
        for region in self.regions.values():
            widths = [entry.planes for entry in self._pieces(region) if entry.planes]
            need(region.planes == next(iter(widths), 0), "planes of a region")

    def _check_records(self) -> None:
        used = {entry.offset for entry in self.entries if entry.offset}
        clusters = {record.offset for record in self.records if record.key == "cluster"}
        nodes = {record.offset for record in self.records if record.key == "index"}
        need(used == clusters, "every cluster record is used")
        need(self.nodes_seen == nodes, "every index record is used")
        need(self.stored_clusters == len(clusters), "stored clusters")
        stored = sum(len(r.payload) for r in self.records if r.key == "cluster")
        need(self.payload_bytes == stored, "payload bytes")

    def _pieces(self, region: RegionRecord) -> Iterator[Entry]:
        """The region's entries; runs that reach over its end are cut."""
        first, behind = region.first_cluster, region.first_cluster + region.cluster_count
        for entry in self.entries:
            start, end = max(entry.first, first), min(entry.first + entry.count, behind)
            if start < end:
                yield dataclasses.replace(entry, first=start, count=end - start)

    def _page_bytes(self, region: RegionRecord, cluster: int, page: int) -> int:
        start = (cluster - region.first_cluster) * self.cluster_size + page * self.page_size
        return min(self.page_size, region.length - start)

    def _check_tallies(self) -> None:
        counts = [0, 0, 0]
        duplicate_bytes = 0
        stored = set()
        for region in self.regions.values():
            end = region.first_cluster + region.cluster_count
            for entry in self._pieces(region):
                if entry.states is None:
                    counts[entry.kind] += entry.count * self.cluster_size
                    if entry.first + entry.count == end:
                        counts[entry.kind] -= -region.length % self.cluster_size
                    continue
                sums = [0, 0, 0]
                for page, state in enumerate(entry.states):
                    sums[state] += self._page_bytes(region, entry.first, page)
                counts = [a + b for a, b in zip(counts, sums, strict=True)]
                if entry.offset in stored:
                    duplicate_bytes += sums[2]
                elif entry.offset:
                    stored.add(entry.offset)
        need(counts[0] == self.hole_bytes, "hole bytes")
        need(counts[1] == self.zero_bytes, "zero bytes")
        need(sum(counts) == self.logical_bytes, "all bytes have a state")
        need(duplicate_bytes == self.duplicate_bytes, "duplicate bytes")

    def _check_digest(self) -> None:
        content = blake3(b"lazyrestore content 1")
        content.update(struct.pack("<II", self.page_size, self.cluster_size))
        for region in self.regions.values():
            run_kind, run = 0, 0
            for entry in self._pieces(region):
                uniform = entry.kind in (0, 1)
                if run and (not uniform or entry.kind != run_kind):
                    content.update(struct.pack("<BQ", run_kind, run))
                    run = 0
                if uniform:
                    run_kind, run = entry.kind, run + entry.count
                else:
                    content.update(b"\2" + entry.words + blake3(entry.payload).digest())
            if run:
                content.update(struct.pack("<BQ", run_kind, run))
            name = region.name.encode()
            content.update(struct.pack("<BQI", 255, region.length, len(name)) + name)
            content.update(struct.pack("<I", len(region.packed_metadata)))
            content.update(region.packed_metadata)
        if self.files:
            content.update(struct.pack("<BI", 254, len(self.files)))
        for name, file in self.files.items():
            encoded = name.encode()
            content.update(struct.pack("<I", len(encoded)) + encoded)
            content.update(struct.pack("<Q", len(file)) + blake3(file).digest())
        need(content.digest() == self.digest, "content digest")

    # ---- What tests ask for ----

    def content(self, name: str) -> bytes:
        """All bytes of a region."""
        region = self.regions[name]
        parts = []
        for entry in self._pieces(region):
            if entry.states is None or not entry.payload:
                parts.append(bytes(entry.count * self.cluster_size))
                continue
            at = 0
            for state in entry.states:
                if state == 2:
                    parts.append(entry.payload[at : at + self.page_size])
                    at += self.page_size
                else:
                    parts.append(bytes(self.page_size))
        joined = b"".join(parts)
        need(not any(joined[region.length :]), "the tail of the last page is zero")
        return joined[: region.length]

    def states(self, name: str) -> str:
        """A letter for each page of a region: h hole, z zero, d data."""
        region = self.regions[name]
        parts = []
        for entry in self._pieces(region):
            if entry.states is None:
                parts.append("hz"[entry.kind] * (entry.count * self.pages_per_cluster))
            else:
                parts.append("".join("hzd"[state] for state in entry.states))
        return "".join(parts)[: -(-region.length // self.page_size)]
