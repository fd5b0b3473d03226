"""A restored image in this process: a mapping from names to regions."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from array import array
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import _latency
from ._core import FILL_STATES, Core
from ._open import Image
from .errors import RegionNotFound
from .region import PlacedRegion, Region
from .reports import LoadError, SessionStats, TraceRecord

if TYPE_CHECKING:
    from ._recording import Recording
    from ._workingset import WorkingSet

# Between two looks at whether the session was closed, and at Ctrl-C.
_TRACE_SLICE_S = 0.1


class Session(Mapping[str, Region | PlacedRegion]):
    """What `lazyrestore.restore` returns: name → region, in the order in which they were dumped.

    A context manager. Leaving it never raises: regions that still have views (an array, say) are
    served until the last view is gone.

    Attributes:
        lazy: True if pages come when touched, False if all were decoded at once.
        path: the image.
        working_set: what is loaded first, in the background; None: nothing.
    """

    def __init__(
        self,
        image: Image,
        core: Core | None,
        regions: Mapping[str, Region | PlacedRegion],
        waited: array[int],
        recording: Recording | None = None,
        working_set: WorkingSet | None = None,
    ) -> None:
        self.path = image.path
        self.lazy = core is not None
        self._image: Image | None = image
        self._core = core
        self._regions = dict(regions)
        self._waited = waited
        self._is_closed = False
        self.working_set = working_set
        self._recording = recording
        # Also where nobody closes it, and at the interpreter's end.
        self._end_recording = weakref.finalize(self, recording.finish) if recording else None

    def __getitem__(self, name: str) -> Region | PlacedRegion:
        if self._is_closed:
            raise ValueError(f"the session of {self.path} is closed: restore the image again")
        try:
            return self._regions[name]
        except KeyError:
            if self._image is not None:
                self._image.number(name)  # says which names there are
            raise RegionNotFound(f"region {name!r} was not restored") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    @property
    def digest(self) -> str:
        """The image's content digest, in hexadecimal."""
        if self._image is None:
            raise ValueError(f"the session of {self.path} is closed: restore the image again")
        return self._image.digest

    @property
    def errors(self) -> list[LoadError]:
        """What could not be loaded, oldest first (the first 1024). Its pages are fenced."""
        return self._core.errors() if self._core is not None else []

    def stats(self) -> SessionStats:
        """What has happened so far."""
        # First: it waits until the cluster that a touch has just brought is all there.
        raw = self._core.stats() if self._core is not None else None
        resident = 0
        for region in self._regions.values():
            with contextlib.suppress(ValueError):  # closed
                resident += region.resident_bytes
        touched = _latency.from_nanoseconds(self._waited)
        if raw is None:
            return SessionStats(0, 0, 0, 0, 0, resident, touched, None, 0, "none", "none")
        service = raw.service
        return SessionStats(
            faults=raw.faults,
            pages_copied=raw.pages_copied,
            pages_zeroed=raw.pages_zeroed,
            clusters_decoded=raw.clusters_decoded,
            payload_bytes_read=raw.payload_bytes_read,
            resident_bytes=resident,
            touch_us=touched,
            service_us=_latency.from_histogram(
                service.count, service.sum_ns, service.max_ns, list(service.buckets)
            ),
            errors=raw.errors,
            privilege="full" if raw.privilege == 0 else "user-mode-only",
            fill=FILL_STATES[raw.fill],
        )

    @property
    def faults(self) -> int:
        """Faults served so far, as in `stats`, which also looks at the memory of every region."""
        return int(self._core.stats().faults) if self._core is not None else 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the background fill (`prefetch="all"`) has loaded all pages.

        Args:
            timeout: seconds; None: no limit.

        Returns:
            True when all is there that could be loaded (`errors` has the rest); False on timeout,
            and at once where the fill stopped short of a memory limit (`stats().fill` tells).

        Raises:
            ValueError: nothing fills this session in the background: it was not asked for, or this
                is a forked child.
        """
        return True if self._core is None else self._core.wait(timeout)

    def wait_working_set(self, timeout: float | None = None) -> bool:
        """Wait until the working set is loaded.

        Args:
            timeout: seconds; None: no limit.

        Returns:
            True when all of it is there that could be loaded; False on timeout, and at once where
            the fill stopped short of a memory limit.

        Raises:
            ValueError: there is none (`working_set` is None), or this is a forked child.
        """
        if self._core is None or self.working_set is None:
            raise ValueError(f"no working set is replayed for {self.path}: `working_set` is None")
        return self._core.wait_first(timeout)

    def save_working_set(self, path: str | os.PathLike[str] | None = None) -> WorkingSet:
        """Write which clusters were touched so far; needs `restore(..., record=PATH)`.

        What is written to PATH itself in this way stays, and is not written again when the session
        ends: call it when what shall be quick the next time is done.

        Args:
            path: a file; None: the PATH that `restore` was given. A forked child, which goes on in
                a copy of the record, has to give one.

        Raises:
            ValueError: nothing is recorded, the session is closed, or a child gave no path.
            OSError: the file cannot be written.
        """
        if self._recording is None:
            state = "is closed" if self._is_closed else "records nothing: restore it with record="
            raise ValueError(f"the session of {self.path} {state}")
        return self._recording.save(path)

    def read_trace(self, timeout: float | None = 0) -> list[TraceRecord]:
        """Faults served since the last call; needs `restore(..., trace=N)`.

        Args:
            timeout: seconds to wait for the first; None: no limit. Closing the session ends the
                wait too.
        """
        if self._core is None:
            return []
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _TRACE_SLICE_S if deadline is None else deadline - time.monotonic()
            records = list(self._core.read_trace(max(0.0, min(left, _TRACE_SLICE_S))))
            if records or self._is_closed or left <= 0:
                return records

    @property
    def trace_lost(self) -> int:
        """Faults that are missing in the trace because nobody read it in time."""
        return int(self._core.stats().trace_lost) if self._core is not None else 0

    def close(self) -> None:
        """Unmap all regions and end the pager. What was recorded is written, or a RuntimeWarning
        says why not.

        Raises:
            BufferError: a region has views; nothing is changed. (Regions at their original address
                cannot tell, and are unmapped when their last view is gone.)
        """
        if self._is_closed:
            return
        held = [
            name
            for name, region in self._regions.items()
            if isinstance(region, Region) and region.has_views()
        ]
        if held:
            names = ", ".join(repr(name) for name in held[:4]) + (", ..." if held[4:] else "")
            raise BufferError(
                f"{names}: there are views (arrays, memoryviews): let go of them first"
            )
        self._let_go()

    def _let_go(self) -> None:
        self._is_closed = True
        if self._end_recording is not None:
            self._end_recording()
        self._recording = None
        for region in self._regions.values():
            with contextlib.suppress(BufferError):
                region.close()
        # Regions that have views go on, and hold the pager and the image; without any, both end.
        self._regions = {}
        self._core = self._image = None
        self._waited = array("I")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_closed:
            self._let_go()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "lazy" if self.lazy else "eager"
        return f"<lazyrestore.Session {self.path!r}: {len(self._regions)} regions, {state}>"
