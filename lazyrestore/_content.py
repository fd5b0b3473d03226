"""What an image holds besides clusters: regions, their metadata, and the digest of it all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgpack
import zstandard

from . import format as fmt
from ._blake3 import Blake3
from ._filemap import add_files_to_digest
from ._native import ffi, lib
from .reports import RegionInfo

if TYPE_CHECKING:
    from typing_extensions import Buffer

BytePlanes = Literal["auto", "none", 2, 4, 8]
"""What `dump` and `ImageWriter` take for `byte_planes`."""

DEFAULT_LEVEL = 3
DEFAULT_CLUSTER_SIZE = 65536
PROCESS_CLUSTER_SIZE = 8192
"""Of processes. Once they run, they touch pages here and there, and wait for each cluster whole: in
clusters of 64 KiB five times as long, for an image that is a twelfth smaller."""
LEVEL_MIN = -7
LEVEL_MAX = zstandard.MAX_COMPRESSION_LEVEL
THREADS_MAX = 256
_THREADS_BYTES = 96 << 20


def check_options(page_size: int, cluster_size: int, level: int, threads: int | None) -> None:
    """Raise ValueError for settings that an image cannot have, TypeError for what is no number."""
    numbers = {"page_size": page_size, "cluster_size": cluster_size, "level": level}
    if threads is not None:
        numbers["threads"] = threads
    for setting, value in numbers.items():
        if not isinstance(value, int):
            raise TypeError(f"{setting} is a whole number, not {value!r}")
    if not (fmt.is_power_of_two(page_size) and fmt.PAGE_SIZE_MIN <= page_size <= fmt.PAGE_SIZE_MAX):
        raise ValueError(f"a page size is a power of two from 4096 to 65536, not {page_size}")
    if not (
        fmt.is_power_of_two(cluster_size)
        and fmt.CLUSTER_SIZE_MIN <= cluster_size <= fmt.CLUSTER_SIZE_MAX
    ):
        raise ValueError(
            f"a cluster size is a power of two from 4 KiB to 2 MiB, not {cluster_size} bytes"
        )
    if cluster_size < page_size:
        raise ValueError(f"clusters of {cluster_size} bytes do not hold pages of {page_size} bytes")
    if not LEVEL_MIN <= level <= LEVEL_MAX:
        raise ValueError(f"a compression level is from {LEVEL_MIN} to {LEVEL_MAX}, not {level}")
    if threads is not None and not 1 <= threads <= THREADS_MAX:
        raise ValueError(f"threads are from 1 to {THREADS_MAX}, not {threads}")


def check_byte_planes(byte_planes: object) -> int | None:
    """The width of all regions, 0 for no byte planes, None for what each region says."""
    if byte_planes == "auto":
        return None
    if byte_planes == "none":
        return 0
    if type(byte_planes) is not int or byte_planes not in fmt.PLANES_WIDTHS:
        raise ValueError(f'byte_planes is "auto", "none", 2, 4 or 8, not {byte_planes!r}')
    return byte_planes


def check_region(name: str, address: int, protection: int, width: int) -> None:
    """Raise ValueError for what a region cannot have."""
    if not 0 <= address < 1 << 64:
        raise ValueError(f"the address of region {name!r} does not fit into 64 bits")
    if not 0 <= protection <= 7:
        raise ValueError(f"the protection of region {name!r} is from 0 to 7, not {protection}")
    if width not in (0, *fmt.PLANES_WIDTHS):
        raise ValueError(f"the width of region {name!r} is 0, 2, 4 or 8, not {width}")


def default_threads(level: int, cluster_size: int) -> int:
    """One a core, but no more than have room: at high levels zstd takes 34 MiB for each."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=cluster_size)
    each = parameters.estimated_compression_context_size() + cluster_size
    return max(1, min(len(os.sched_getaffinity(0)), _THREADS_BYTES // each))


def check_name(name: str) -> bytes:
    """A region's name as it is stored, or ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a region's name is a str, not {type(name).__name__}")
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the region name {name!r} cannot be written as UTF-8") from None
    if not encoded:
        raise ValueError("a region's name cannot be empty")
    if len(encoded) > fmt.NAME_BYTES_MAX:
        raise ValueError(
            f"a region's name has at most {fmt.NAME_BYTES_MAX} bytes, not {len(encoded)}:"
            f" {name[:40]!r}..."
        )
    return encoded


class Region:
    """A region that is being written, or was."""

    def __init__(
        self, info: RegionInfo, name: bytes, metadata: bytes, first_cluster: int, width: int = 0
    ) -> None:
        self.info = info
        self.name = name
        self.metadata = metadata
        self.first_cluster = first_cluster
        self.width = width  # of its numbers, if byte planes are to be tried
        self.length = 0  # until now
        self.planes = 0  # of its first cluster that has any, when all are written

    def digest_end(self) -> bytes:
        """What the content digest has after the region's clusters."""
        return b"".join(
            (
                bytes([fmt.DIGEST_REGION_END]),
                self.length.to_bytes(8, "little"),
                len(self.name).to_bytes(4, "little"),
                self.name,
                len(self.metadata).to_bytes(4, "little"),
                self.metadata,
            )
        )


class ContentDigest:
    """The digest of the content, fed in address order: docs/format.md, "Content digest"."""

    def __init__(self, page_size: int, cluster_size: int) -> None:
        self._hash = Blake3(fmt.DIGEST_PREFIX)
        self._hash.update(page_size.to_bytes(4, "little") + cluster_size.to_bytes(4, "little"))
        self._run_kind = 0
        self._run_count = 0

    def add_run(self, kind: int, count: int) -> None:
        if self._run_count and kind != self._run_kind:
            self._end_run()
        self._run_kind = kind
        self._run_count += count

    def add_cluster(self, states: bytes, digest: bytes) -> None:
        self._end_run()
        self._hash.update(bytes([fmt.DIGEST_CLUSTER]) + states + digest)

    def add_clusters(self, entries: bytearray, digests: bytearray) -> None:
        """Clusters that are not part of a run, by their leaf entries and the data's digests."""
        self._end_run()
        kind = bytes([fmt.DIGEST_CLUSTER])
        stride = len(entries) * 32 // len(digests)
        text = bytearray()
        for at, states_at in zip(
            range(0, len(digests), 32),
            range(fmt.ENTRY_HEAD_BYTES, len(entries), stride),
            strict=True,
        ):
            states = entries[states_at : states_at + stride - fmt.ENTRY_HEAD_BYTES]
            text += kind + states + digests[at : at + 32]
        self._hash.update(text)

    def end_region(self, region: Region) -> None:
        self._end_run()
        self._hash.update(region.digest_end())

    def add_files(self, files: Mapping[str, bytes]) -> None:
        """The record of files, behind all regions; without any files it is not in the digest."""
        if files:
            add_files_to_digest(self._hash, files)

    def _end_run(self) -> None:
        if self._run_count:
            self._hash.update(bytes([self._run_kind]) + self._run_count.to_bytes(8, "little"))
            self._run_count = 0

    def digest(self) -> bytes:
        return self._hash.digest()


def byte_view(data: Buffer) -> memoryview:
    """The bytes of any buffer, in the order of its elements; copied only if it has gaps."""
    try:
        return raw_view(data)
    except BufferError:
        return memoryview(memoryview(data).tobytes())


def raw_view(data: Buffer) -> memoryview:
    """The bytes of any buffer as they lie in memory, never copied.

    Raises:
        TypeError: it is no buffer.
        BufferError: it has gaps.
    """
    # A PickleBuffer of a memoryview would export that one, and CPython crashes where its collector
    # finds both in one cycle: an exception and the frames that it came through make one.
    if isinstance(data, memoryview) and data.c_contiguous:
        with contextlib.suppress(TypeError, ValueError):  # not of every format
            return data.cast("B")
    from pickle import PickleBuffer  # which takes its time, and mostly is not needed

    return PickleBuffer(data).raw()


def crc32c(data: bytes | bytearray) -> int:
    """CRC32C of some bytes."""
    return int(lib.lr_crc32c(0, ffi.from_buffer(data), len(data)))


def pack(value: object) -> bytes:
    """Msgpack, as images have it."""
    packed = msgpack.packb(value, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def pack_metadata(name: str, metadata: Mapping[str, object] | None) -> bytes:
    try:
        packed = pack(dict(metadata or {}))
        # Refuses keys that are not strings, at any depth, and what is nested too deeply to be read.
        msgpack.unpackb(packed, raw=False, strict_map_key=True)
    except (TypeError, ValueError, OverflowError, msgpack.UnpackException) as error:
        raise TypeError(f"the metadata of region {name!r} cannot be kept: {error}") from None
    return packed
