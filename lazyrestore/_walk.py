"""An image's frame: its records from front to back, and the nodes of its index. For `verify`."""

from __future__ import annotations

import bisect
import dataclasses
from array import array

from . import format as fmt
from ._native import ffi, lib
from ._open import Image
from .errors import ImageError

_WINDOW_BYTES = 4096
_HEAD_BYTES_MAX = 2 + 31 + 5
_BIN_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_HEADER_KINDS: tuple[tuple[str, type], ...] = (
    ("version", int),
    ("page_size", int),
    ("cluster_size", int),
    ("critical", int),
    ("compatible", int),
    ("created", str),
    ("writer", str),
    ("source", str),
)
# What may follow what. A cluster or an index node may be missing, nothing else.
_FOLLOWERS = {
    "lazyrestore": ("cluster", "index", "metadata"),
    "cluster": ("cluster", "index", "metadata"),
    "index": ("cluster", "index", "metadata"),
    "metadata": ("files", "root"),
    "files": ("root",),
    "root": ("footer",),
    "footer": (),
}


class Records:
    """Where the payloads of one kind of record are: ascending, 12 bytes each."""

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.lengths = array("I")

    def add(self, offset: int, nbytes: int) -> None:
        """Append one."""
        self.offsets.append(offset)
        self.lengths.append(nbytes)

    def find(self, offset: int, nbytes: int) -> int | None:
        """The number of the record with exactly that payload, or None."""
        number = bisect.bisect_left(self.offsets, offset)
        if number < len(self.offsets) and self.offsets[number] == offset:
            return number if self.lengths[number] == nbytes else None
        return None

    def __len__(self) -> int:
        return len(self.offsets)


@dataclasses.dataclass(slots=True)
class Frame:
    """What was found.

    Attributes:
        footer: as it stands at the end of the file.
        root: the fixed part of the root.
        clusters, nodes: the records of these two kinds.
        problems: what is wrong with the stream or the header, in words.
        is_complete: False if the stream could not be followed to its end.
        lost: (first cluster, behind the last, why) of index nodes that cannot be used.
    """

    footer: fmt.Footer
    root: fmt.Root
    clusters: Records = dataclasses.field(default_factory=Records)
    nodes: Records = dataclasses.field(default_factory=Records)
    problems: list[str] = dataclasses.field(default_factory=list)
    is_complete: bool = False
    lost: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)


class StreamError(Exception):
    """The stream of records is not what docs/format.md says; where and why."""


def walk(image: Image) -> Frame:
    """Follow the records of an open image, then its index."""
    data = image.read_raw(image.file_bytes - fmt.FOOTER_RECORD_BYTES, fmt.FOOTER_RECORD_BYTES)
    footer = fmt.Footer.unpack(data[len(fmt.FOOTER_PREFIX) :])
    root = fmt.Root.unpack(image.read_raw(footer.root_offset, fmt.ROOT_BYTES))
    frame = Frame(footer, root)
    try:
        _check_header(image, footer)
        if not all(isinstance(kept, dict) for kept in image.all_metadata()):
            raise ImageError("the metadata of a region is not a map")
        _ = image.files
    except ImageError as error:
        frame.problems.append(str(error).removeprefix(f"{image.path}: "))
    try:
        _follow(image, frame)
        frame.is_complete = True
    except StreamError as error:
        frame.problems.append(str(error))
    if root.cluster_count:
        _Index(image, frame).check(root.tree.pack(), root.tree_height - 1, 0)
    elif root.tree != fmt.Reference(fmt.REFERENCE_HOLE):
        frame.problems.append("there are no clusters, and yet an index of them")
    return frame


def _check_header(image: Image, footer: fmt.Footer) -> None:
    header = image.header()
    for key in ("version", "page_size", "cluster_size", "id"):
        if header.get(key) != getattr(footer, key):
            raise ImageError(f"header and footer do not agree about {key}")
    for key, kind in _HEADER_KINDS:
        if type(header.get(key)) is not kind:  # neither True nor 1.0 for 1
            raise ImageError(f"the image's header is damaged: {key} is not what it should be")


def _follow(image: Image, frame: Frame) -> None:
    """All records: each in its place, up to the last byte."""
    footer = frame.footer
    window = _Window(image)
    at = footer.header_bytes
    before = "lazyrestore"
    while at < footer.file_bytes:
        key, payload, nbytes = _parse_head(window, at, footer)
        if key not in _FOLLOWERS[before]:
            raise StreamError(f"byte {at} of the file: a record {key!r} stands behind {before!r}")
        if nbytes > footer.file_bytes - payload:
            raise StreamError(f"byte {at} of the file: a record is longer than the file")
        if key == "cluster":
            frame.clusters.add(payload, nbytes)
        elif key == "index":
            frame.nodes.add(payload, nbytes)
        elif key == "root" and (payload, nbytes) != (footer.root_offset, footer.root_bytes):
            raise StreamError(f"byte {at} of the file: the root is not where the footer says")
        elif key == "files" and (payload, nbytes) != (footer.files_offset, footer.files_bytes):
            raise StreamError(f"byte {at} of the file: the files are not where the footer says")
        if key == "root" and footer.files_bytes and before != "files":
            raise StreamError(f"byte {at} of the file: the files are not before the root")
        if key == "footer" and payload != footer.file_bytes - fmt.FOOTER_BYTES:
            raise StreamError(f"byte {at} of the file: this is not the footer at the file's end")
        at = payload + nbytes
        before = key
    if before != "footer":
        raise StreamError(f"the records end with {before!r}, not with a footer")


def _parse_head(window: _Window, at: int, footer: fmt.Footer) -> tuple[str, int, int]:
    """Key, offset of the payload and its length, of the record that begins there."""
    head = window.read(at, _HEAD_BYTES_MAX)
    if head.startswith(fmt.METADATA_HEAD):
        payload = at + len(fmt.METADATA_HEAD)
        if payload != footer.metadata_offset:
            raise StreamError(f"byte {at} of the file: the metadata is not where the footer says")
        return "metadata", payload, footer.metadata_bytes
    for key in ("cluster", "index", "files", "root", "footer"):
        start = bytes((0x81, 0xA0 | len(key))) + key.encode()
        if head.startswith(start) and len(head) > len(start):
            width = _BIN_LENGTHS.get(head[len(start)])
            begin = len(start) + 1
            if width is not None and len(head) >= begin + width:
                nbytes = int.from_bytes(head[begin : begin + width], "big")
                return key, at + begin + width, nbytes
    raise StreamError(f"byte {at} of the file: what stands here is no record of an image")


class _Window:
    """Short reads of a file, one after another, with few calls."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._offset = 0
        self._data = b""

    def read(self, offset: int, nbytes: int) -> bytes:
        """So many bytes, or as many as there are."""
        start = offset - self._offset
        if start < 0 or start + nbytes > len(self._data):
            rest = self._image.file_bytes - offset
            self._data = self._image.read_raw(offset, min(_WINDOW_BYTES, rest))
            self._offset, start = offset, 0
        return self._data[start : start + nbytes]


class _Index:
    """The nodes of the index, each looked at once; what is lost with bad ones goes to the frame."""

    def __init__(self, image: Image, frame: Frame) -> None:
        self._image = image
        self._frame = frame
        self._seen = bytearray(len(frame.nodes))
        pages = frame.footer.cluster_size // frame.footer.page_size
        self._entry_bytes = fmt.entry_bytes(pages)

    def check(self, packed: bytes, level: int, first: int) -> None:
        """A node, if the reference is to one, and all below it."""
        span = fmt.NODE_FANOUT ** (level + 1)
        end = min(first + span, self._frame.root.cluster_count)
        reference = fmt.Reference.unpack(packed)
        try:
            if self._is_uniform(reference, packed):
                return
            node = self._read(reference, level, first, end)
        except StreamError as error:
            self._frame.lost.append((first, end, str(error)))
            return
        if level == 0:
            return
        below = span // fmt.NODE_FANOUT
        for number, start in enumerate(range(first, end, below)):
            at = fmt.NODE_HEAD_BYTES + number * fmt.REFERENCE_BYTES
            self.check(node[at : at + fmt.REFERENCE_BYTES], level - 1, start)

    @staticmethod
    def _is_uniform(reference: fmt.Reference, packed: bytes) -> bool:
        # What the core would refuse must be found here: it would be refused for every one of the
        # clusters below, which may be 2^40.
        uniform = reference.kind in (fmt.REFERENCE_HOLE, fmt.REFERENCE_ZERO)
        plain = fmt.Reference(reference.kind) if uniform else reference
        if plain.pack() != packed:
            raise StreamError("an index entry contradicts itself")
        return uniform

    def _read(self, reference: fmt.Reference, level: int, first: int, end: int) -> bytes:
        if reference.kind != fmt.REFERENCE_NODE:
            raise StreamError(f"an index entry is of the unknown kind {reference.kind}")
        where = f"at byte {reference.offset} of the file"
        number = self._frame.nodes.find(reference.offset, reference.nbytes)
        if number is None and self._frame.is_complete:
            raise StreamError(f"an index entry points to what is no index node, {where}")
        if number is not None:
            if self._seen[number]:
                raise StreamError(f"two index entries point to the same node, {where}")
            self._seen[number] = 1
        below = fmt.NODE_FANOUT**level
        count = -(-(end - first) // below)
        entry_bytes = self._entry_bytes if level == 0 else fmt.REFERENCE_BYTES
        nbytes = fmt.NODE_HEAD_BYTES + count * entry_bytes
        limit = self._frame.footer.file_bytes - fmt.FOOTER_RECORD_BYTES
        if reference.nbytes != nbytes or reference.offset > limit - nbytes:
            raise StreamError(f"an index node is not of the length that its place asks, {where}")
        node = self._image.read_raw(reference.offset, nbytes)
        if lib.lr_crc32c(0, ffi.from_buffer(node), nbytes) != reference.crc32c:
            raise StreamError(f"an index node's checksum is wrong, {where}")
        if fmt.NodeHead.unpack(node) != fmt.NodeHead(level, count, first):
            raise StreamError(f"an index node is not the one for its place, {where}")
        return node
