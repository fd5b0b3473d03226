"""Firecracker's handshake, from text to ranges. Nothing here does any I/O.

A virtual machine monitor sends one JSON array of its memory regions, with its userfaultfd beside
it (SCM_RIGHTS):

    [{"base_host_virt_addr": 140621941571584, "size": 3489660928, "offset": 0,
      "page_size": 4096, "page_size_kib": 4096}, ...]

Nydus wraps it: {"type": 0, "regions": [...]}. `offset` is into the memory file: that is the image's
regions, one after another. What is not understood is refused with a `Refusal` that says why;
keys that are not known are ignored.
"""

from __future__ import annotations

import bisect
import itertools
import json
import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lazyrestore.reports import RegionInfo

MESSAGE_BYTES_MAX = 1 << 20
"""The longest handshake: some ten thousand regions."""
REGIONS_MAX = 1024
RANGES_MAX = 8192
HUGE_PAGE = 2 << 20
_DEPTH_MAX = 16
_U64 = 1 << 64
_SHOWN_CHARACTERS = 60

_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING_END = re.compile(rb'\\.|\\$|"', re.DOTALL)
_SPACE = b" \t\r\n"


class Refusal(Exception):
    """A peer is not served; the text says why, and what would help.

    Attributes:
        code: one word for counting: "garbage", "ranges", "no-fd", "user", "busy"...
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MessageScanner:
    """Finds where a JSON array or object ends that comes in pieces.

    Looks at each byte once, so that endless or tiny pieces cost no more than their length.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._seen = 0

    def feed(self, piece: bytes) -> int | None:
        """Look at the next piece: where, in all bytes so far, the message ended; None: not yet.

        Raises:
            Refusal: it cannot become a message any more.
        """
        at = 0
        if self._depth == 0:
            at = len(piece) - len(piece.lstrip(_SPACE))
            if at < len(piece) and piece[at] not in b"[{":
                raise Refusal("garbage", f"what it sent is no handshake: {show(piece)}")
        if self._is_escaped and piece:
            at, self._is_escaped = 1, False
        while at < len(piece):
            found = (_STRING_END if self._in_string else _STRUCTURE).search(piece, at)
            if found is None:
                break
            at = found.end()
            token = found[0]
            if token == b'"':
                self._in_string = not self._in_string
            elif token[:1] == b"\\":
                self._is_escaped = len(token) == 1
            elif token in (b"[", b"{"):
                self._depth += 1
                if self._depth > _DEPTH_MAX:
                    raise Refusal("garbage", f"its JSON has more than {_DEPTH_MAX} levels")
            else:
                self._depth -= 1
                if self._depth == 0:
                    return self._seen + at
        self._seen += len(piece)
        if self._seen > MESSAGE_BYTES_MAX:
            raise Refusal("garbage", f"its handshake is longer than {MESSAGE_BYTES_MAX} bytes")
        return None


@dataclass(frozen=True, slots=True)
class GuestRegion:
    """A part of a peer's memory, as its handshake has it; bytes.

    Attributes:
        address: in the peer.
        size: how long it is.
        offset: where it is in the memory file.
        page_size: of the memory that is mapped there.
    """

    address: int
    size: int
    offset: int
    page_size: int


@dataclass(frozen=True, slots=True)
class Range:
    """A piece of a peer's memory and what belongs there: `struct lr_peer_range`; bytes."""

    address: int
    bytes: int
    offset: int
    region: int


def show(data: bytes) -> str:
    """Bytes of a peer's, for a message: short, in ASCII."""
    more = "..." if len(data) > _SHOWN_CHARACTERS else ""
    return repr(data[:_SHOWN_CHARACTERS])[1:] + more


def parse_json(text: bytes) -> object:
    """What a whole message says.

    Raises:
        Refusal: it is not JSON, or has a key twice.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key stands twice in an object")
        return made

    try:
        found: object = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Refusal("garbage", f"its handshake is not JSON: {error}: {show(text)}") from None
    return found


def parse_regions(message: object) -> tuple[GuestRegion, ...]:
    """The regions of a handshake: Firecracker's array, or Nydus' object around it.

    Raises:
        Refusal: something of it is missing, is not a number, or cannot be.
    """
    if isinstance(message, dict):
        kind = message.get("type")
        if type(kind) is not int or kind != 0 or "regions" not in message:
            _fail(f"an object of type {kind!r:.40} is no handshake that is known")
        message = message["regions"]
    if not isinstance(message, list) or not message:
        _fail("there is no list of regions in its handshake")
    if len(message) > REGIONS_MAX:
        _fail(f"it has {len(message)} regions: {REGIONS_MAX} are the most")
    return tuple(_parse_region(number, fields) for number, fields in enumerate(message))


def _parse_region(number: int, fields: object) -> GuestRegion:
    if not isinstance(fields, dict):
        _fail(f"region {number} is not an object")
    region = GuestRegion(
        _number(number, fields, "base_host_virt_addr"),
        _number(number, fields, "size"),
        _number(number, fields, "offset"),
        _page_size(number, fields),
    )
    if region.size == 0:
        _fail(f"region {number} is empty")
    if region.address + region.size >= _U64 or region.offset + region.size >= _U64:
        _fail(f"region {number} ends behind the last address that there is")
    if (region.address | region.size | region.offset) % region.page_size:
        _fail(f"region {number} does not consist of whole pages of {region.page_size} bytes")
    return region


def _number(number: int, fields: dict[str, object], key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value < _U64:
        _fail(f"{key} of region {number} is {value!r:.40}: no number of 64 bits")
    return value


def _page_size(number: int, fields: dict[str, object]) -> int:
    """In bytes: page_size; else page_size_kib, which has bytes too, or KiB if below 4096."""
    if "page_size" in fields:
        size = _number(number, fields, "page_size")
    elif "page_size_kib" in fields:
        size = _number(number, fields, "page_size_kib")
        size = size << 10 if size < 4096 else size
    else:
        size = 4096
    if size not in (mmap.PAGESIZE, HUGE_PAGE):
        _fail(
            f"region {number} has pages of {size} bytes: {mmap.PAGESIZE} and {HUGE_PAGE} can be"
            " served"
        )
    return size


def page_size_of(regions: Sequence[GuestRegion]) -> int:
    """The one page size that all of them have.

    Raises:
        Refusal: they have several.
    """
    sizes = {region.page_size for region in regions}
    if len(sizes) != 1:
        _fail("its regions have pages of different sizes")
    return sizes.pop()


def place(regions: Sequence[GuestRegion], image_regions: Sequence[RegionInfo]) -> tuple[Range, ...]:
    """Ranges of the image's regions, in order of address.

    The image's regions one after another are the memory file: a region of the peer's can lie in
    several of them. The last page of the image may be partial.

    Raises:
        Refusal: regions overlap, in the peer or in the image, or lie outside of it; or an image's
            region ends within a page of the peer's.
    """
    page_size = page_size_of(regions)
    _refuse_overlaps(regions)
    starts, total = [], 0
    for info in image_regions:
        starts.append(total)
        total += info.length
    end_of_image = -(-total // page_size) * page_size
    ranges: list[Range] = []
    for number, region in enumerate(sorted(regions, key=lambda region: region.address)):
        if region.offset + region.size > end_of_image:
            _fail(
                f"memory up to offset {region.offset + region.size} is asked for, and the image has"
                f" {total} bytes: is it another snapshot's?"
            )
        ranges += _pieces(number, region, image_regions, starts)
        if len(ranges) > RANGES_MAX:
            _fail(f"its regions and the image's make more than {RANGES_MAX} pieces")
    return tuple(ranges)


def _pieces(
    number: int, region: GuestRegion, image_regions: Sequence[RegionInfo], starts: Sequence[int]
) -> list[Range]:
    pieces = []
    end = region.offset + region.size
    last = next(n for n in reversed(range(len(starts))) if image_regions[n].length)
    for index in range(bisect.bisect_right(starts, region.offset) - 1, last + 1):
        info, start = image_regions[index], starts[index]
        if start >= end:
            break
        low = max(region.offset, start)
        # The last one's partial page is the peer's as a whole.
        high = end if index == last else min(end, start + info.length)
        if low >= high:
            continue
        address = region.address + low - region.offset
        if (address | (high - low) | (low - start)) % region.page_size:
            _fail(
                f"region {info.name!r} of the image ends within a page of {region.page_size} bytes"
                " of the peer's: dump its memory as one file"
            )
        pieces.append(Range(address, high - low, low - start, index))
    return pieces


def _refuse_overlaps(regions: Sequence[GuestRegion]) -> None:
    for what, spans in (
        ("at the same addresses", sorted((r.address, r.address + r.size) for r in regions)),
        ("at the same offsets", sorted((r.offset, r.offset + r.size) for r in regions)),
    ):
        for (_, end), (start, _) in itertools.pairwise(spans):
            if start < end:
                _fail(f"two of its regions lie {what}")


def _fail(why: str) -> NoReturn:
    raise Refusal("ranges", why)
