"""What a source of a dump and the writer of an image know of each other.

A source writes itself to a sink, front to back, region after region:

    def write_to(self, sink: Sink) -> None:
        for mapping in self._mappings:
            sink.add_region(mapping.name, address=mapping.start, protection=mapping.protection)
            sink.hole(untouched_bytes)            # costs nothing, however long
            sink.fill(self._file.readinto, nbytes)

The sink does everything else: zero pages, repeats, compression, progress. Its methods block while
too much is under way, so a source need not bound anything. What a sink raises is for the caller of
`write_to`: a source only undoes what it did itself (try/finally).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from lazyrestore.reports import Skipped

if TYPE_CHECKING:
    from typing_extensions import Buffer

    class HasArray(Protocol):
        """A numpy array: to a checker it has the buffer protocol from Python 3.12 on only."""

        @property
        def __array_interface__(self) -> dict[str, Any]: ...

    MemoryLike: TypeAlias = Buffer | HasArray

CHUNK_BYTES = 1 << 20
"""A good length for one `write`: what the writer gives to one thread at a time."""


class Sink(Protocol):
    """Where a source writes to: an ImageWriter.

    Attributes:
        cluster_size: bytes of a region that are compressed together.
    """

    cluster_size: int

    def add_region(
        self,
        name: str,
        *,
        address: int = 0,
        protection: int = 3,
        shared: bool = False,
        metadata: Mapping[str, object] | None = None,
        width: int = 0,
    ) -> None:
        """Begin a region; the one before ends. Its length is what is then written to it.

        `width` is 2, 4 or 8 if it holds numbers of so many bytes: then the sink tries byte planes.
        """

    def rename_region(self, name: str) -> None:
        """Give the last region another name: for one whose end is known when it is reached."""

    def add_file(self, name: str, data: Buffer) -> None:
        """Keep a small file in the image; all of them are held in memory."""

    def write(self, data: Buffer) -> None:
        """Append bytes, of any number; `data` may be used again afterwards."""

    def write_stable(self, data: Buffer) -> None:
        """Append bytes that nobody changes until the image is closed: they need no copy.

        Pages of `data` lie best at page boundaries of the region, and long pieces are best.
        """

    def fill(self, fetch: Callable[[memoryview], int], nbytes: int) -> int:
        """Append up to `nbytes` bytes that `fetch` puts into memory of the sink's: no copy.

        `fetch` is called with a view until all are there, or it fills less than all of that; it
        gives the number of bytes that it filled. Returns how many were appended.
        """

    def zero(self, nbytes: int) -> None:
        """Append zeros that were there: costs next to nothing, however many."""

    def hole(self, nbytes: int) -> None:
        """Append what was never mapped or never touched: reads as zeros, costs next to nothing."""

    def close(self) -> object:
        """Have the image be complete, durable and in its place.

        For a source that must not let go of what it has read before that; otherwise it is done
        when `write_to` has returned.
        """


@runtime_checkable
class Source(Protocol):
    """Something that can be dumped. It is used once.

    A class that has this as its base needs `describe` and `write_to` only.
    """

    @property
    def skipped(self) -> list[Skipped]:
        """What could not be read; complete when `write_to` has returned."""
        return []

    @property
    def frozen_us(self) -> int | None:
        """How long a process was stopped, in µs, when `write_to` has returned; None: not at all."""
        return None

    def describe(self) -> str:
        """What this is, in a few words for people: kept in the image's header."""

    def total_bytes(self) -> int | None:
        """Length of all regions, for progress; None where that is not known before the end."""
        return None

    def check(self, target: str) -> None:
        """Raise ValueError, TypeError or OSError for what can be seen before a file is made.

        `target` is the path of the image: a source that reads that very file refuses.
        """
        return

    def write_to(self, sink: Sink) -> None:
        """Write all regions to the sink; undo everything (let a process run) on errors too."""
