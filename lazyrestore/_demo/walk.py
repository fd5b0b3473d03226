"""The example of userfaultfd(2): read a small region every 1024 bytes, and see each fault."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Iterable, Iterator

import lazyrestore
from lazyrestore.errors import LazyRestoreError
from lazyrestore.reports import TraceRecord

_FIRST_OFFSET = 0xF  # as there: addresses are not page-aligned, and the fault's address shows it
_STEP_BYTES = 1024
_TRACE_TIMEOUT_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Mapped:
    """The region is there, and empty."""

    address: int
    length: int
    privilege: str


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """One byte was read.

    Attributes:
        address: of the byte.
        value: what it is.
    """

    address: int
    value: int


Event = Mapped | TraceRecord | Read


def walk(pages: int, image: str) -> Iterator[Event]:
    """Dump `pages` pages of letters to `image`, restore them lazily, and read them.

    Yields:
        Mapped, then for each page one TraceRecord and its reads: four where pages are of 4 KiB.

    Raises:
        KernelError: the kernel allows no lazy restore.
        LazyRestoreError: faults or bytes are not as they have to be.
    """
    page_size = mmap.PAGESIZE
    letters = b"".join(bytes([_letter(page)]) * page_size for page in range(pages))
    lazyrestore.dump(letters, image, cluster_size=page_size)
    with lazyrestore.restore(
        image, lazy=True, prefetch="none", privilege="auto", trace=max(16, 2 * pages)
    ) as session:
        region = session["memory"]
        yield Mapped(region.address, region.length, session.stats().privilege)
        for offset in range(_FIRST_OFFSET, region.length, _STEP_BYTES):
            is_new = offset % page_size < _STEP_BYTES
            value = region[offset]
            # The fault comes first: it was served before the read could end.
            faults = session.read_trace(_TRACE_TIMEOUT_S if is_new else 0)
            if len(faults) != int(is_new):
                raise LazyRestoreError(
                    f"reading {region.address + offset:#x} took {len(faults)} faults,"
                    f" and not {int(is_new)}"
                )
            yield from faults
            if value != _letter(offset // page_size):
                raise LazyRestoreError(f"read {value:#x} at {region.address + offset:#x}")
            yield Read(region.address + offset, value)
        if session.stats().faults != pages:
            raise LazyRestoreError(f"{pages} pages took {session.stats().faults} faults")


def _letter(page: int) -> int:
    return ord("A") + page % 20


def describe(event: Event) -> str:
    """One line for people, much as the example prints it."""
    if isinstance(event, Mapped):
        return f"Mapped {event.length} bytes at {event.address:#x}, all missing"
    if isinstance(event, Read):
        return f"Read address {event.address:#x}: {chr(event.value)}"
    thread = f", thread {event.thread}" if event.thread is not None else ""
    kind = "write" if event.write else "read"
    return (
        f"\n    fault: address = {event.address:#x}{thread}, {kind}\n"
        f"    {event.action} of {event.bytes} bytes at offset {event.offset:#x},"
        f" {event.service_us:.0f} µs"
    )


def summary(events: Iterable[Event]) -> dict[str, object]:
    """All events as one object: what was mapped, and lists of `faults` and `reads`."""
    found = list(events)
    mapped = next(event for event in found if isinstance(event, Mapped))
    return {
        "address": mapped.address,
        "logical_bytes": mapped.length,
        "privilege": mapped.privilege,
        "faults": [event for event in found if isinstance(event, TraceRecord)],
        "reads": [event for event in found if isinstance(event, Read)],
    }


def image_path(folder: str) -> str:
    """Where in a folder the walk writes its image."""
    return os.path.join(folder, "walk.lzr")
