"""The protocol of `lr_attach`, as the service speaks it: from bytes to ranges and back.

Nothing here does any I/O; csrc/attach_wire.h has the messages, in their order. What a peer sends is
trusted in nothing: what cannot be is a `BadMessage`, whose code and text go back to it with
`build_refusal`. All numbers are little-endian.

    hello = parse_hello(data[:HELLO_BYTES])
    send(build_table(image), build_metadata(image) if hello.wants_metadata else b"")
    whole = request_bytes(data[:REQUEST_HEAD_BYTES])
    request = parse_request(data[:whole])        # its first byte came with [userfaultfd]
    check_request(request, image.regions, mmap.PAGESIZE)
    send(SERVED, fds=[state])
    send(COMPLETE)                               # when all was loaded and unregistered
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from lazyrestore._open import Image
    from lazyrestore.reports import RegionInfo

VERSION = 1
MAGIC = b"LRATTACH"
REQUEST_MAGIC = b"LRRANGES"
RANGES_MAX = 1 << 20
"""More than any image of ours has regions."""
TEXT_BYTES_MAX = 480
"""What a client has room for."""

_HEAD = struct.Struct("<8sII")
_TABLE = struct.Struct("<IIQ32s")
_REGION = struct.Struct("<QQIIQ")
_RANGES = struct.Struct("<II")
_RANGE = struct.Struct("<QQQII")
_METADATA = struct.Struct("<Q")
HELLO_BYTES = _HEAD.size
REQUEST_HEAD_BYTES = _HEAD.size + _RANGES.size

_RESUMES, _WANTS_METADATA = 1, 2
_U64 = 1 << 64

SERVED = _HEAD.pack(b"LRSERVED", VERSION, 0)
"""The state's descriptor goes with its first byte."""
COMPLETE = _HEAD.pack(b"LRCOMPLT", VERSION, 0)

REFUSALS = {
    **dict.fromkeys(("protocol", "garbage", "no-fd", "descriptors", "timeout"), 1),
    **dict.fromkeys(("user", "kill"), 2),
    "image": 3,
    "ranges": 4,
    "state": 5,
    **dict.fromkeys(("limit", "busy"), 6),
    **dict.fromkeys(("stopping", "ending"), 7),
    "failed": 8,
}
"""`enum lr_refusal` by a word; any other word is "failed"."""


class BadMessage(Exception):
    """What a peer sent cannot be; the text says why.

    Attributes:
        code: a word of `REFUSALS`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Hello:
    """How a client begins.

    Attributes:
        resumes: it was served before, and hands over [userfaultfd, state].
        wants_metadata: it wants `build_metadata` behind `build_table`.
    """

    resumes: bool
    wants_metadata: bool


class PeerRange(NamedTuple):
    """Memory of a client's and what belongs there: `struct lr_peer_range`; bytes."""

    address: int
    bytes: int
    offset: int
    region: int


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants served.

    Attributes:
        page_size: of its memory, in bytes.
        ranges: as it sent them, in any order.
    """

    page_size: int
    ranges: tuple[PeerRange, ...]


def parse_hello(data: bytes) -> Hello:
    """The client's first HELLO_BYTES.

    Raises:
        BadMessage: they are something else, or of another version.
    """
    if len(data) != HELLO_BYTES:
        _fail("protocol", f"a greeting has {HELLO_BYTES} bytes, and not {len(data)}")
    magic, version, flags = _HEAD.unpack(data)
    if magic != MAGIC:
        _fail("protocol", f"it does not begin with {MAGIC.decode()}")
    if version != VERSION:
        _fail("protocol", f"it speaks version {version}, and this service {VERSION}: upgrade one")
    if flags & ~(_RESUMES | _WANTS_METADATA):
        _fail("protocol", f"it has flags that are not known: {flags:#x}")
    return Hello(bool(flags & _RESUMES), bool(flags & _WANTS_METADATA))


def request_bytes(head: bytes) -> int:
    """How long the request is that begins with these REQUEST_HEAD_BYTES.

    Raises:
        BadMessage: it cannot be one, or is longer than any.
    """
    if len(head) != REQUEST_HEAD_BYTES:
        _fail("protocol", f"a request begins with {REQUEST_HEAD_BYTES} bytes, and not {len(head)}")
    magic, version, count = _HEAD.unpack_from(head)
    if magic != REQUEST_MAGIC or version != VERSION:
        _fail("protocol", "its ranges are due, and it sent something else")
    if count > RANGES_MAX:
        _fail("limit", f"it has {count} ranges: {RANGES_MAX} are the most")
    return REQUEST_HEAD_BYTES + int(count) * _RANGE.size


def parse_request(data: bytes) -> Request:
    """A whole request.

    Raises:
        BadMessage: it is not one, or not of the length that it says.
    """
    if len(data) != request_bytes(data[:REQUEST_HEAD_BYTES]):
        _fail("protocol", "its ranges are not as many as it says")
    page_size, reserved = _RANGES.unpack_from(data, _HEAD.size)
    fields = list(_RANGE.iter_unpack(data[REQUEST_HEAD_BYTES:]))
    if reserved or any(one[4] for one in fields):
        _fail("protocol", "it has a number where there has to be zero")
    return Request(page_size, tuple(PeerRange(*one[:4]) for one in fields))


def check_request(request: Request, regions: Sequence[RegionInfo], host_page: int) -> None:
    """Look whether the ranges can be served, so that a client is told what is wrong with them.

    Args:
        request: what it asks for.
        regions: of the image.
        host_page: this machine's page size, in bytes.

    Raises:
        BadMessage: "ranges", and why.
    """
    if request.page_size != host_page:
        _fail("ranges", f"its pages have {request.page_size} bytes, and this machine's {host_page}")
    if not request.ranges:
        _fail("ranges", "it has no ranges")
    for one in request.ranges:
        if one.region >= len(regions):
            _fail("ranges", f"the image has {len(regions)} regions, and no number {one.region}")
        info = regions[one.region]
        where = f"{one.bytes} bytes at {one.address:#x}"
        if (one.address | one.bytes | one.offset) % host_page or not one.bytes or not one.address:
            _fail("ranges", f"{where} (offset {one.offset}) are not whole pages of {host_page}")
        if one.address + one.bytes >= _U64:
            _fail("ranges", f"{where} end behind the last address that there is")
        # The last page of a region may be partial.
        if one.offset + one.bytes > -(-info.length // host_page) * host_page:
            _fail(
                "ranges",
                f"{where} (offset {one.offset}) do not lie within region {info.name!r}, which has"
                f" {info.length} bytes",
            )
    _refuse_overlaps(request)


def _refuse_overlaps(request: Request) -> None:
    addresses = sorted((0, one.address, one.bytes) for one in request.ranges)
    offsets = sorted((one.region, one.offset, one.bytes) for one in request.ranges)
    spans = (("at the same addresses", addresses), ("at the same place of a region", offsets))
    for what, ordered in spans:
        for (space, start, length), (other, begin, _) in pairwise(ordered):
            if space == other and begin < start + length:
                _fail("ranges", f"two of its ranges lie {what}")


def build_table(image: Image) -> bytes:
    """What a client may ask for: LRREGION, a record for each region, and their names."""
    table, names = bytearray(), bytearray()
    for info in image.regions:
        name = info.name.encode()
        table += _REGION.pack(info.address, info.length, info.protection, len(name), len(names))
        names += name
    head = _HEAD.pack(b"LRREGION", VERSION, len(image.regions))
    digest = bytes.fromhex(image.digest)
    sizes = _TABLE.pack(image.page_size, image.cluster_size, len(names), digest)
    return head + sizes + bytes(table) + bytes(names)


def build_metadata(image: Image) -> bytes:
    """The regions' metadata: LRMETADA, and a msgpack array of one map a region.

    Raises:
        ImageError: it is damaged.
    """
    import msgpack

    packed: bytes = msgpack.packb(image.all_metadata())
    return _HEAD.pack(b"LRMETADA", VERSION, 0) + _METADATA.pack(len(packed)) + packed


def build_refusal(code: str, message: str) -> bytes:
    """The last that a client hears.

    Args:
        code: a word of `REFUSALS`, or any other.
        message: a sentence for people; shortened to what a client has room for.
    """
    text = message.encode(errors="backslashreplace")[:TEXT_BYTES_MAX]
    text = text.decode(errors="ignore").encode()  # not in the middle of a character
    return _HEAD.pack(b"LRREFUSE", REFUSALS.get(code, REFUSALS["failed"]), len(text)) + text


def _fail(code: str, why: str) -> NoReturn:
    raise BadMessage(code, why)
