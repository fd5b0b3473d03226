"""mm-*.img: a task's mappings, and which of them its children must find empty."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lazyrestore.errors import ImageError

from .pagemap import LAZY, PAGE_BYTES, Entry
from .protobuf import MessageError, decode, frames

_HEAD_BYTES = 8
_MAPPINGS = 14
_START, _END, _ADVICE = 1, 2, 9
_WIPE_ON_FORK = 1 << 18  # MADV_WIPEONFORK, in a set of advices by their numbers

Span = tuple[int, int]
"""Start and end, addresses."""


def wiped_on_fork(data: bytes, what: str) -> list[Span]:
    """The mappings that a child of fork() finds empty (MADV_WIPEONFORK), ascending.

    Args:
        data: all of the file.
        what: the file, for messages.

    Raises:
        ImageError: it is damaged.
    """
    spans = []
    try:
        for message in frames(data, _HEAD_BYTES):
            for number, value in decode(message):
                if number != _MAPPINGS or not isinstance(value, bytes):
                    continue
                fields = {key: found for key, found in decode(value) if isinstance(found, int)}
                if fields.get(_ADVICE, 0) & _WIPE_ON_FORK:
                    spans.append((fields.get(_START, 0), fields.get(_END, 0)))
    except MessageError as error:
        raise ImageError(f"{what} is damaged: {error}: take another copy") from None
    return sorted(spans)


def not_lazy_in(entries: Iterable[Entry], spans: Sequence[Span]) -> Iterator[Entry]:
    """The same entries, cut where needed, and without LAZY within these spans."""
    for address, pages, flags in entries:
        at, end = address, address + pages * PAGE_BYTES
        for start, stop in spans if flags & LAZY else ():
            if start >= end or stop <= at:
                continue
            if start > at:
                yield at, (start - at) // PAGE_BYTES, flags
            first, at = max(start, at), min(stop, end)
            yield first, (at - first) // PAGE_BYTES, flags & ~LAZY
        if at < end:
            yield at, (end - at) // PAGE_BYTES, flags
