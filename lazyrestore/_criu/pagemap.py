"""pagemap-*.img: which pages an object (a task, or shared memory) has, and where they are.

The pages themselves stand in pages-N.img, one after another; only those of entries with PRESENT.
For 100,000 entries this is part of a restore's start, so the usual form is parsed by hand.
"""

from __future__ import annotations

from lazyrestore.errors import ImageError

from .protobuf import MessageError, decode, encode_field, frame, frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE_BYTES = 4096
MAGIC = (0x54564319).to_bytes(4, "little") + (0x56084025).to_bytes(4, "little")
"""That of all images, and that of pagemaps."""

PARENT = 1
"""The pages are in the folder that `parent` points to."""
LAZY = 2
"""The pages may be brought later, by userfaultfd."""
PRESENT = 4
"""The pages are in this folder."""

FLAGS_KNOWN = frozenset((PARENT, PARENT | LAZY, LAZY, PRESENT, PRESENT | LAZY))

_ADDRESS_LIMIT = 1 << 64
_VADDR, _COMPAT_PAGES, _IN_PARENT, _FLAGS, _PAGES = 1, 2, 3, 4, 5
# The first bytes of these fields, as varints.
_KEY_VADDR, _KEY_COMPAT_PAGES, _KEY_FLAGS, _KEY_PAGES = 0x08, 0x10, 0x20, 0x28
_NO_COMPAT_PAGES = bytes((0, _KEY_FLAGS))

Entry = tuple[int, int, int]
"""Address (of shared memory: offset in it) in bytes, number of pages, flags."""


class Pagemap:
    """One pagemap-*.img.

    Attributes:
        pages_id: N of its pages-N.img.
        entries: ascending, never overlapping.
        is_wide: the numbers of pages stand in the field of 64 bits, as newer versions write it.
    """

    __slots__ = ("entries", "is_wide", "pages_id")

    def __init__(self, pages_id: int, entries: Sequence[Entry], is_wide: bool = False) -> None:
        self.pages_id = pages_id
        self.entries = entries
        self.is_wide = is_wide

    @property
    def present_bytes(self) -> int:
        """How long its pages-N.img is."""
        return PAGE_BYTES * sum(pages for _, pages, flags in self.entries if flags & PRESENT)

    def build(self) -> bytes:
        """The file's bytes, as CRIU would write them."""
        head = MAGIC + frame(encode_field(1, self.pages_id))
        return head + build_entries(self.entries, self.is_wide)


def build_entries(entries: Iterable[Entry], is_wide: bool = False) -> bytes:
    """Entries as they stand in the file."""
    built = bytearray()
    for address, pages, flags in entries:
        start = len(built)
        built += b"\0\0\0\0\x08"
        rest = address
        while rest >= 0x80:
            built.append(rest & 0x7F | 0x80)
            rest >>= 7
        built.append(rest)
        if pages < 0x80 and flags < 0x80 and not is_wide:
            built += bytes((_KEY_COMPAT_PAGES, pages, _KEY_FLAGS, flags))
        else:
            wide = is_wide or pages >= 1 << 32
            built += encode_field(_COMPAT_PAGES, 0 if wide else pages)
            built += encode_field(_FLAGS, flags)
            if wide:
                built += encode_field(_PAGES, pages)
        built[start] = len(built) - start - 4  # far below 256
    return bytes(built)


def parse(data: bytes, what: str) -> Pagemap:
    """A pagemap from the file's bytes.

    Args:
        data: all of the file.
        what: the file, for messages.

    Raises:
        ImageError: it is damaged, or of a version of CRIU that is not known here.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ImageError(
            f"{what} does not begin as a pagemap of CRIU's: give a folder that `criu dump` made"
        )
    try:
        return _parse(data, what)
    except MessageError as error:
        raise ImageError(f"{what} is damaged: {error}: take another copy") from None
    except IndexError:
        raise ImageError(f"{what} is cut short: take another copy, or dump again") from None


def _parse(data: bytes, what: str) -> Pagemap:
    at = len(MAGIC)
    head = next(frames(data, at), None)
    if head is None:
        raise MessageError("it has no head")
    pages_ids = [value for number, value in decode(head) if number == 1]
    if len(pages_ids) != 1 or not isinstance(pages_ids[0], int):
        raise MessageError("its head does not name its pages")
    entries, is_wide = _parse_entries(data, at + 4 + len(head))
    _check(entries, what)
    return Pagemap(pages_ids[0], entries, is_wide)


def _parse_entries(data: bytes, at: int) -> tuple[list[Entry], bool]:
    entries: list[Entry] = []
    append = entries.append
    is_wide = False
    end = len(data)
    from_bytes = int.from_bytes
    while at < end:
        start = at + 4
        stop = start + from_bytes(data[at:start], "little")
        # 08 vaddr, 10 pages, 20 flags of one byte; or 08 vaddr, 10 0, 20 flags, 28 pages: these
        # two forms are what versions 4.1 and 4.2 write.
        if start < stop <= end and data[start] == _KEY_VADDR:
            at = start + 1
            byte = data[at]
            address = byte & 0x7F
            shift = 7
            while byte & 0x80:
                at += 1
                byte = data[at]
                address |= (byte & 0x7F) << shift
                shift += 7
            if data[at + 1] == _KEY_COMPAT_PAGES:
                at += 2
                flags = 0x80
                if data[at : at + 2] == _NO_COMPAT_PAGES and data[at + 3] == _KEY_PAGES:
                    flags = data[at + 2]
                    at += 4
                byte = data[at]
                pages = byte & 0x7F
                shift = 7
                while byte & 0x80:
                    at += 1
                    byte = data[at]
                    pages |= (byte & 0x7F) << shift
                    shift += 7
                if flags < 0x80 and at == stop - 1:
                    is_wide = True
                    append((address, pages, flags))
                    at = stop
                    continue
                if at == stop - 3 and data[stop - 2] == _KEY_FLAGS and data[stop - 1] < 0x80:
                    append((address, pages, data[stop - 1]))
                    at = stop
                    continue
        if stop > end:
            raise IndexError
        entry, wide = _parse_entry(data[start:stop])
        is_wide |= wide
        append(entry)
        at = stop
    return entries, is_wide


def _parse_entry(message: bytes) -> tuple[Entry, bool]:
    """Any entry; True if it has the field of 64 bits."""
    fields: dict[int, int] = {}
    for number, value in decode(message):
        if not _VADDR <= number <= _PAGES or not isinstance(value, int):
            raise MessageError(f"an entry has field {number}, which no version known here writes")
        fields[number] = value
    if _VADDR not in fields:
        raise MessageError("an entry has no address")
    flags = fields.get(_FLAGS, 0)
    if fields.get(_IN_PARENT):
        flags |= PARENT
    elif _FLAGS not in fields:
        flags = PRESENT
    pages = fields.get(_PAGES, fields.get(_COMPAT_PAGES, 0))
    return (fields[_VADDR], pages, flags), _PAGES in fields


def _check(entries: Sequence[Entry], what: str) -> None:
    before = 0
    for address, pages, flags in entries:
        if flags not in FLAGS_KNOWN:
            raise ImageError(
                f"{what}: the entry at {address:#x} has the flags {flags:#x}, which are not known:"
                " a newer CRIU made it; upgrade lazyrestore, or dump with CRIU 4"
            )
        if address < before or address % PAGE_BYTES or pages == 0:
            raise MessageError(f"its entry at {address:#x} is not in order")
        before = address + pages * PAGE_BYTES
    if before > _ADDRESS_LIMIT:
        raise MessageError("its last entry ends beyond all addresses")
