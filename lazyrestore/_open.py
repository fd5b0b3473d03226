"""Reading an image without userfaultfd: `lazyrestore.open`."""

from __future__ import annotations

import bisect
import os
import struct
from collections.abc import Callable, Mapping
from operator import itemgetter
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

from ._native import CData, abandon, check, ffi, lib, new_problem
from ._region_info import RegionInfo
from .errors import ClusterError, ImageError, RegionNotFound

if TYPE_CHECKING:
    from .reports import ImageInfo, VerifyReport

# Of a region, as it is in the file: address, length, first cluster, clusters, where its name is and
# how long, protection, flags, and the width of numbers whose bytes are grouped.
_REGION = struct.Struct("<QQQQIIIIxxB45x")

Progress = Callable[[int, int | None], None]


def open(path: str | os.PathLike[str]) -> Image:
    """Open an image for reading.

    Costs the same whatever the image's size: what its begin and its end say of it is read.

    Args:
        path: the image.

    Raises:
        OSError: the file is not there or cannot be read.
        ImageError: it is not an image, damaged, cut short or of a newer version.
        KernelError: libzstd is missing.
        ValueError: there is a null character in the path.
    """
    return Image(path)


class Image:
    """An open image.

    Attributes:
        path: as it was given.
        opened: a descriptor by which it was opened rather than by its path; the caller's.
        restored_with: arguments of `restore`, where that was called; for references to it.
        folder: from which a path that is not absolute leads to it.
    """

    restored_with: dict[str, object] | None = None
    folder: str = ""

    def __init__(self, path: str | os.PathLike[str], *, opened: int | None = None) -> None:
        self.path = os.fspath(path)
        self.opened = opened
        encoded = os.fsencode(self.path)
        if b"\0" in encoded:  # where a name ends for C: it would be another file's
            raise ValueError(f"the path {self.path!r} has a null character: no file can have it")
        check(lib.lr_init(), what=f"cannot open {self.path}")
        found = ffi.new("lr_image **")
        problem = new_problem()
        if opened is not None:
            encoded = f"/proc/self/fd/{opened}".encode()
        try:
            code = lib.lr_image_open(encoded, found, problem)
        except BaseException:
            abandon(found, lib.lr_image_close)
            raise
        if code < 0:
            check(code, problem, what=f"cannot open {self.path}", file=self.path)
        self._handle: CData = ffi.gc(found[0], lib.lr_image_close)
        self._raw = ffi.new("struct lr_image_info *")
        lib.lr_image_get_info(self._handle, self._raw)
        self._is_closed = False
        self._files: Mapping[str, bytes] | None = None
        self._metadata: tuple[bytes, list[int]] | None = None
        self._regions: tuple[RegionInfo, ...] | None = None
        self._table: list[tuple[int, ...]]
        self._names: tuple[str, ...]
        self._numbers = self._read_names()

    def _read_names(self) -> dict[str, int]:
        """Read the table of regions, which was checked when the image was opened."""
        count = int(self._raw.region_count)
        bytes_of = ffi.new("size_t *")
        start = lib.lr_image_get_table(self._handle, bytes_of)
        data = bytes(ffi.buffer(start, bytes_of[0]))
        names = memoryview(data)[count * _REGION.size :]
        self._table = table = list(_REGION.iter_unpack(data[: count * _REGION.size]))
        numbers = {}
        for number, entry in enumerate(table):
            try:
                numbers[str(names[entry[4] : entry[4] + entry[5]], "utf-8")] = number
            except UnicodeDecodeError:
                message = f"the name of region {number} is not UTF-8"
                raise ImageError(f"cannot open {self.path}: {message}: take another copy") from None
        if len(numbers) != count:
            raise ImageError(f"{self.path}: two regions have the same name: take another copy")
        self._names = tuple(numbers)
        return numbers

    @property
    def regions(self) -> tuple[RegionInfo, ...]:
        """What each region is, in the order in which they were dumped."""
        if self._regions is None:
            self._regions = tuple(map(self._make_region, range(len(self._table))))
        return self._regions

    def region(self, number: int) -> RegionInfo:
        """One of `regions`, of which there may be very many, without making the others."""
        return self._make_region(number) if self._regions is None else self._regions[number]

    def _make_region(self, number: int) -> RegionInfo:
        entry = self._table[number]
        place = entry[0], entry[1], entry[6]
        return RegionInfo(self._names[number], *place, bool(entry[7] & 1), entry[8])

    @property
    def info(self) -> ImageInfo:
        """What the image says of itself; reads its header again."""
        from ._criu.checkpoint import Checkpoint
        from .reports import ImageInfo

        raw = self._open_raw()
        header = self.header()
        stored = raw.file_bytes
        checkpoint = Checkpoint.of(self)
        return ImageInfo(
            path=self.path,
            version=raw.version,
            created=self._text(header, "created"),
            writer=self._text(header, "writer"),
            source=self._text(header, "source"),
            page_size=raw.page_size,
            cluster_size=raw.cluster_size,
            logical_bytes=raw.logical_bytes,
            stored_bytes=stored,
            ratio=raw.logical_bytes / stored,
            zero_bytes=raw.zero_bytes,
            hole_bytes=raw.hole_bytes,
            data_bytes=raw.logical_bytes - raw.zero_bytes - raw.hole_bytes,
            duplicate_bytes=raw.duplicate_bytes,
            clusters=raw.cluster_count,
            stored_clusters=raw.stored_clusters,
            regions=self.regions,
            digest=self.digest,
            id=bytes(ffi.buffer(raw.id)).hex(),
            processes=checkpoint.processes if checkpoint else (),
            criu_version=checkpoint.criu_version if checkpoint else "",
        )

    @property
    def digest(self) -> str:
        """BLAKE3 of the content, in hexadecimal (docs/format.md says over what)."""
        return bytes(ffi.buffer(self._open_raw().digest)).hex()

    @property
    def page_size(self) -> int:
        """Bytes of a page, as it was dumped."""
        return int(self._raw.page_size)

    @property
    def cluster_size(self) -> int:
        """Bytes of a region that are compressed together."""
        return int(self._raw.cluster_size)

    @property
    def cluster_count(self) -> int:
        """Clusters in all regions."""
        return int(self._raw.cluster_count)

    @property
    def file_bytes(self) -> int:
        """Length of the image itself."""
        return int(self._raw.file_bytes)

    def first_cluster(self, number: int) -> int:
        """Number of a region's first cluster, counted through the image."""
        return self._table[number][2]

    @property
    def bytes_read_at_open(self) -> int:
        """How much of the file was read to open it."""
        return int(self._open_raw().bytes_read_at_open)

    def _open_raw(self) -> CData:
        if self._is_closed:
            raise ValueError(f"{self.path} is closed: open it again")
        return self._raw

    def read_raw(self, offset: int, length: int) -> bytes:
        """Bytes of the file as they are."""
        self._open_raw()
        data = bytearray(length)
        problem = new_problem()
        code = lib.lr_image_read_raw(self._handle, offset, ffi.from_buffer(data), length, problem)
        check(code, problem, what=f"cannot read {self.path}", file=self.path)
        return bytes(data)

    def header(self) -> dict[str, object]:
        """What stands in the header, of which not even the types of values are checked.

        Raises:
            ImageError: it is not a map.
        """
        data = self.read_raw(0, self._raw.header_bytes)
        record = unpack(data, f"{self.path}: the image's header")
        value = record.get("lazyrestore") if isinstance(record, dict) else None
        if not isinstance(value, dict):
            raise ImageError(f"{self.path}: the image's header is not a map: take another copy")
        return value

    def _text(self, header: dict[str, object], key: str) -> str:
        # Not str(): of lists in lists in lists that is a RecursionError.
        value = header.get(key, "")
        if not isinstance(value, str):
            raise ImageError(f"{self.path}: in its header, {key} is not a text: take another copy")
        return value

    def metadata(self, name: str) -> dict[str, object]:
        """What the owner wanted kept of a region: dtype and shape of an array, path of a file.

        Raises:
            RegionNotFound: there is no region of that name.
            ImageError: the metadata is damaged.
        """
        number = self.number(name)
        if self._metadata is None:
            self._metadata = self._find_metadata()
        data, places = self._metadata
        one = data[places[number] : places[number + 1]]
        metadata = unpack(one, self._metadata_name(), is_whole=True)
        if not isinstance(metadata, dict):
            raise ImageError(f"{self._metadata_name()} of {name!r} is not a map: take another copy")
        return metadata

    def all_metadata(self) -> list[object]:
        """The metadata of all regions, in their order; see `metadata`."""
        maps = unpack(self._read_metadata(), self._metadata_name())
        if not isinstance(maps, list) or len(maps) != len(self._table):
            raise ImageError(f"{self._metadata_name()} does not fit its regions: take another copy")
        return maps

    def _metadata_name(self) -> str:
        return f"{self.path}: the image's metadata"

    def _read_metadata(self) -> bytes:
        data = self.read_raw(self._raw.metadata_offset, self._raw.metadata_bytes)
        if lib.lr_crc32c(0, ffi.from_buffer(data), len(data)) != self._raw.metadata_crc32c:
            raise ImageError(f"{self._metadata_name()} is damaged: take another copy")
        return data

    def _find_metadata(self) -> tuple[bytes, list[int]]:
        """The metadata as it is stored, and where each region's begins and the last one's ends."""
        import msgpack

        data = self._read_metadata()
        unpacker = msgpack.Unpacker(max_buffer_size=len(data))
        unpacker.feed(data)
        try:
            if unpacker.read_array_header() != len(self._table):
                raise ImageError(
                    f"{self._metadata_name()} does not fit its regions: take another copy"
                )
            places = [unpacker.tell()]
            for _ in self._table:
                unpacker.skip()
                places.append(unpacker.tell())
            if places[-1] != len(data):
                raise ValueError("something follows it")
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            why = str(error) or "it is cut short"
            message = f"{self._metadata_name()} is damaged: {why}: take another copy"
            raise ImageError(message) from None
        return data, places

    @property
    def has_files(self) -> bool:
        """True if there is anything in `files`; that is known without reading it."""
        return bool(self._open_raw().files_bytes)

    @property
    def files(self) -> Mapping[str, bytes]:
        """The small files that are kept in the image, by their names; read when first asked for.

        Raises:
            ImageError: they are damaged.
        """
        if self._files is None:
            self._files = MappingProxyType(self._read_files() if self.has_files else {})
        return self._files

    def _read_files(self) -> dict[str, bytes]:
        from ._filemap import unpack_files

        packed = bytearray(self._open_raw().files_content_bytes)
        problem = new_problem()
        with ffi.from_buffer(packed, require_writable=True) as memory:
            code = lib.lr_image_get_files(self._handle, memory, problem)
        check(code, problem, what=f"cannot read {self.path}", file=self.path)
        try:
            return unpack_files(packed)
        except ValueError as error:
            message = f"{self.path}: the image's record of files is damaged: {error}"
            raise ImageError(f"{message}: take another copy") from None

    def number(self, name: str) -> int:
        """The region's number, in the order in which they were dumped.

        Raises:
            RegionNotFound: there is no region of that name.
        """
        try:
            return self._numbers[name]
        except KeyError:
            raise RegionNotFound(_unknown_region(self.path, name, list(self._names))) from None

    def place_of_cluster(self, cluster: int) -> tuple[int, int]:
        """The number of the region that a cluster is in, and where it begins there, in bytes."""
        number = bisect.bisect_right(self._table, cluster, key=itemgetter(2)) - 1
        return number, (cluster - self._table[number][2]) * self.cluster_size

    def reader(self) -> Reader:
        """A means of decoding, for one thread at a time."""
        self._open_raw()
        return Reader(self)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Part of a region, decoded.

        Args:
            name: the region.
            offset: where to begin, in bytes.
            length: how many bytes; None: to the end.

        Raises:
            RegionNotFound: there is no region of that name.
            ValueError: the range does not lie within the region.
            ClusterError: a cluster of it is damaged.
        """
        number = self.number(name)
        total = self.regions[number].length
        if length is None:
            length = total - offset
        data = bytearray(check_range(name, offset, length, total))
        with self.reader() as reader:
            reader.read_into(number, offset, data)
        return bytes(data)

    def verify(self, threads: int | None = None, progress: Progress | None = None) -> VerifyReport:
        """Check everything that can be checked: each checksum, the tree, the tallies, the digest.

        Does not raise for what it finds, but lists it.

        Args:
            threads: how many decode at once; None: one a core.
            progress: called with the bytes looked at and their total.
        """
        from ._verify import verify

        self._open_raw()
        return verify(self, threads=threads, progress=progress)

    def close(self) -> None:
        """Let go of the file; sessions and readers that use it keep it open until they end."""
        if not self._is_closed:
            self._is_closed = True
            ffi.release(self._handle)
            self._handle = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<lazyrestore.Image {self.path!r}: {len(self.regions)} regions>"


class Reader:
    """Decodes clusters of an image: buffers of its own, so one thread at a time."""

    def __init__(self, image: Image) -> None:
        self._image = image
        found = ffi.new("lr_reader **")
        check(lib.lr_reader_open(image._handle, found), what=f"cannot read {image.path}")
        self._handle: CData = ffi.gc(found[0], lib.lr_reader_close)

    @property
    def handle(self) -> CData:
        """The `lr_reader *`."""
        return self._handle

    def read_into(
        self, number: int, offset: int, data: bytearray | memoryview, *, is_zeroed: bool = False
    ) -> None:
        """Decode part of a region into a buffer.

        Args:
            number: the region's.
            offset: where to begin in it, in bytes.
            data: a writable buffer, as long as what is wanted.
            is_zeroed: the buffer is fresh and all zero; zero pages then stay untouched.

        Raises:
            ClusterError: a cluster is damaged; it says which.
        """
        problem = new_problem()
        # Released at once, so that an error's traceback does not hold the buffer.
        with ffi.from_buffer(data, require_writable=True) as memory:
            code = lib.lr_reader_read(
                self._handle, number, offset, memory, len(memory), int(is_zeroed), problem
            )
        if code < 0:
            raise_for_cluster(self._image, number, code, problem)

    def cluster(self, cluster: int) -> CData:
        """The index entry of a cluster, a `struct lr_cluster_info *`."""
        info = ffi.new("struct lr_cluster_info *")
        problem = new_problem()
        code = lib.lr_reader_get_cluster(self._handle, cluster, info, problem)
        if code < 0:
            raise_for_cluster(self._image, self._image.place_of_cluster(cluster)[0], code, problem)
        return info

    def data(self, cluster: int) -> bytes:
        """A cluster's data pages, one after another."""
        room = bytearray(self._image._raw.cluster_size)
        problem = new_problem()
        code = lib.lr_reader_get_data(self._handle, cluster, ffi.from_buffer(room), problem)
        return bytes(memoryview(room)[: check(code, problem)])

    def close(self) -> None:
        """Free the buffers."""
        if self._handle != ffi.NULL:
            ffi.release(self._handle)
            self._handle = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def raise_for_cluster(
    image: Image, number: int, code: int, problem: CData, kind: type[ClusterError] = ClusterError
) -> None:
    """Raise for a failed load, naming the region and where the cluster begins in it."""
    info = image.regions[number]
    offset = (int(problem.cluster) - image.first_cluster(number)) * image.cluster_size
    check(
        code,
        problem,
        what=f"cannot read {image.path}",
        region=info.name,
        offset=offset if 0 <= offset < info.length else None,
        cluster_error=kind,
    )


def _once(pairs: list[tuple[object, object]]) -> dict[object, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in a map")
    return made


def unpack(data: bytes, what: str, *, is_whole: bool = False) -> object:
    """One msgpack object; ImageError if it is not one, or has a key twice.

    `is_whole`: it is known that all is there that its lengths claim.
    """
    import msgpack

    try:
        # First see that all is there that lengths claim: in 64 KiB arrays within arrays can claim
        # some 60,000 items each, and a list of that length would be made for each.
        if not is_whole:
            unpacker = msgpack.Unpacker(max_buffer_size=len(data))
            unpacker.feed(data)
            unpacker.skip()
        return msgpack.unpackb(data, strict_map_key=True, object_pairs_hook=_once)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        why = str(error) or "it is cut short"
        raise ImageError(f"{what} is damaged: {why}: take another copy") from None


def check_range(name: str, offset: int, length: int, total: int) -> int:
    """The length of a range, if it lies within a region of `total` bytes, else ValueError."""
    if offset < 0 or length < 0 or offset + length > total:
        raise ValueError(
            f"bytes {offset} to {offset + length} are not within region {name!r},"
            f" which has {total} bytes: give a smaller offset or length"
        )
    return length


def _unknown_region(path: str, name: str, names: list[str]) -> str:
    shown = ", ".join(repr(known) for known in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    has = f"it has {shown}{more}" if names else "it has no regions"
    return f"{path} has no region {name!r}: {has}"
