"""Putting an image together, record after record: docs/format.md front to back."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping

import zstandard

from . import format as fmt
from ._compress import Block, Job, Run, SeenTable
from ._content import DEFAULT_LEVEL, ContentDigest, Region, crc32c, pack
from ._filemap import pack_files
from ._outfile import OutputFile
from ._tree import TreeBuilder

_SOURCE_MAX_CHARS = 4096


@dataclasses.dataclass(slots=True)
class Tallies:
    """Counts that stand in the root."""

    zero_bytes: int = 0
    hole_bytes: int = 0
    duplicate_bytes: int = 0
    payload_bytes: int = 0
    stored_clusters: int = 0


def new_identity() -> tuple[bytes, str, str]:
    """A new image's id, when it is made, and by what."""
    from . import __version__

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return os.urandom(16), now, f"lazyrestore {__version__}"


class Assembler:
    """Writes the records of an image. Is given results in address order, and does not wait."""

    def __init__(
        self, file: OutputFile, seen: SeenTable, *, page_size: int, cluster_size: int
    ) -> None:
        self._file = file
        self._seen = seen
        self._page_size = page_size
        self._cluster_size = cluster_size
        self._digest = ContentDigest(page_size, cluster_size)
        self._tree = TreeBuilder(cluster_size // page_size, self._write_node)
        self._planes = 0  # in the region that is being written
        self._has_planes = False
        self.tallies = Tallies()

    def write_header(self, identity: tuple[bytes, str, str], source: str) -> None:
        """The first record."""
        self._id, created, writer = identity
        text = source.encode("utf-8", "backslashreplace").decode()
        if len(text) > _SOURCE_MAX_CHARS:
            text = text[: _SOURCE_MAX_CHARS - 1] + "…"
        header: dict[str, object] = {
            "version": fmt.VERSION,
            "critical": 0,
            "compatible": 0,
            "page_size": self._page_size,
            "cluster_size": self._cluster_size,
            "id": self._id,
            "created": created,
            "writer": writer,
            "source": text,
        }
        record = pack({"lazyrestore": header})
        assert len(record) <= fmt.HEADER_MAX_BYTES
        assert record.startswith(fmt.MAGIC)
        self._header_bytes, self._header_crc32c = len(record), crc32c(record)
        self._file.append(record)
        self._file.flush()  # a file system that takes nothing at all says so now

    def write_job(self, job: Job) -> None:
        """A job's clusters; the job is not needed any more."""
        for result in job.results:
            if isinstance(result, Run):
                self._add_run(result)
            else:
                self._add_block(result)
        self._file.flush()
        self.tallies.zero_bytes += job.zero_bytes
        self.tallies.hole_bytes += job.hole_bytes
        job.release()

    def write_run(self, run: Run) -> None:
        """Whole clusters without data, of which no job knows."""
        self._add_run(run)
        if run.kind == fmt.CLUSTER_ZERO:
            self.tallies.zero_bytes += run.count * self._cluster_size
        else:
            self.tallies.hole_bytes += run.count * self._cluster_size

    def end_region(self, region: Region) -> None:
        """All clusters of the region were written."""
        self._digest.end_region(region)
        region.planes, self._planes = self._planes, 0
        self._has_planes |= bool(region.planes)

    def finish(self, regions: list[Region], files: Mapping[str, bytes]) -> bytes:
        """What stands behind the clusters; the content digest. The file is not yet committed."""
        height, tree = self._tree.finish()
        self._digest.add_files(files)
        digest = self._digest.digest()

        metadata = fmt.array_head(len(regions)) + b"".join(region.metadata for region in regions)
        self._file.append(fmt.METADATA_HEAD)
        metadata_offset = self._file.position
        self._file.append(metadata)
        files_fields = self._write_files(files) if files else {}

        root = self._pack_root(regions, height, tree)
        root_offset = self._write_record("root", root)
        footer = fmt.Footer(
            page_size=self._page_size,
            cluster_size=self._cluster_size,
            header_bytes=self._header_bytes,
            id=self._id,
            digest=digest,
            file_bytes=self._file.position + fmt.FOOTER_RECORD_BYTES,
            root_offset=root_offset,
            root_bytes=len(root),
            root_crc32c=crc32c(root),
            metadata_offset=metadata_offset,
            metadata_bytes=len(metadata),
            metadata_crc32c=crc32c(metadata),
            header_crc32c=self._header_crc32c,
            critical=fmt.FEATURE_PLANES if self._has_planes else 0,
            **files_fields,
        )
        self._file.append(footer.record(crc32c(footer.pack())))
        return digest

    def _add_run(self, run: Run) -> None:
        self._tree.append_run(run.kind, run.count)
        self._digest.add_run(run.kind, run.count)

    def _add_block(self, block: Block) -> None:
        pages = self._cluster_size // self._page_size
        is_new = self._seen.place(block, pages, self._file.position)
        for new, record, nbytes in zip(is_new, block.records, block.data_bytes, strict=True):
            if new:
                assert record is not None
                self._file.append(*record)
                self.tallies.payload_bytes += len(record[1])
                self.tallies.stored_clusters += 1
            else:
                self.tallies.duplicate_bytes += nbytes
        kinds = block.entries[fmt.ENTRY_KIND_AT :: fmt.entry_bytes(pages)]
        if kinds[0] in (fmt.CLUSTER_HOLE, fmt.CLUSTER_ZERO):  # then it is only one
            self._digest.add_run(kinds[0], 1)
        else:
            self._digest.add_clusters(block.entries, block.digests)
        self._tree.append_entries(block.entries, kinds)
        if not self._planes:
            widths = block.entries[fmt.ENTRY_PLANES_AT :: fmt.entry_bytes(pages)]
            self._planes = next(filter(None, widths), 0)

    def _write_record(self, key: str, payload: bytes | memoryview) -> int:
        """Append a record; the offset of its payload."""
        head = fmt.record_head(key, len(payload))
        offset = self._file.position + len(head)
        self._file.append(head, payload)
        return offset

    def _write_files(self, files: Mapping[str, bytes]) -> dict[str, int]:
        """Append the record of files; what the footer says of it."""
        packed = pack_files(files)
        frame = zstandard.ZstdCompressor(level=DEFAULT_LEVEL).compress(packed)
        offset = self._write_record("files", frame)
        return {
            "compatible": fmt.FEATURE_FILES,
            "files_offset": offset,
            "files_bytes": len(frame),
            "files_crc32c": crc32c(frame),
            "files_content_bytes": len(packed),
        }

    def _write_node(self, payload: bytes) -> fmt.Reference:
        offset = self._write_record("index", payload)
        return fmt.Reference(fmt.REFERENCE_NODE, offset, len(payload), crc32c(payload))

    def _pack_root(self, regions: list[Region], height: int, tree: fmt.Reference) -> bytes:
        table = bytearray()
        names = bytearray()
        for region in regions:
            table += fmt.RegionEntry(
                address=region.info.address,
                length=region.length,
                first_cluster=region.first_cluster,
                cluster_count=-(-region.length // self._cluster_size),
                name_offset=len(names),
                name_bytes=len(region.name),
                protection=region.info.protection,
                flags=fmt.REGION_SHARED if region.info.shared else 0,
                filter=fmt.FILTER_PLANES if region.planes else fmt.FILTER_NONE,
                planes=region.planes,
            ).pack()
            names += region.name
        tallies = self.tallies
        root = fmt.Root(
            region_count=len(regions),
            names_bytes=len(names),
            tree_height=height,
            cluster_count=self._tree.cluster_count,
            logical_bytes=sum(region.length for region in regions),
            zero_bytes=tallies.zero_bytes,
            hole_bytes=tallies.hole_bytes,
            duplicate_bytes=tallies.duplicate_bytes,
            payload_bytes=tallies.payload_bytes,
            stored_clusters=tallies.stored_clusters,
            tree=tree,
        )
        return root.pack() + bytes(table) + bytes(names)
