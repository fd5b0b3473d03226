"""A restored image in this process: a mapping from names to regions."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from _thread import RLock
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import _latency
from ._core import FILL_STATES, Core
from ._open import Image
from ._session_reports import LoadError, SessionStats, TraceRecord
from .errors import RegionNotFound
from .region import PlacedRegion, Region

if TYPE_CHECKING:
    from ._recording import Recording
    from ._workingset import WorkingSet

# Between two looks at whether the session was closed, and at Ctrl-C.
_TRACE_SLICE_S = 0.1

# While a region is mapped at its first use: one that another thread has mapped, and nobody knows of
# yet, must not be what a forked child inherits.
MAPPING = RLock()
os.register_at_fork(
    before=MAPPING.acquire, after_in_parent=MAPPING.release, after_in_child=MAPPING.release
)


class Session(Mapping[str, Region | PlacedRegion]):
    """What `lazyrestore.restore` returns: name → region, in the order in which they were dumped.

    A context manager. Leaving it never raises: regions that still have views (an array, say) are
    served until the last view is gone.

    It can be pickled, as its regions can: as a reference to the image, which is restored again
    where it is unpickled.

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
        *,
        names: Iterable[str] | None = None,
        make: Callable[[int], Region | PlacedRegion] | None = None,
        is_shared: bool = False,
    ) -> None:
        # Regions not in `regions` are mapped by `make`, by number, when first asked for, if they
        # are of `names` (None: of the image). With `is_shared` they are others' too: closing the
        # session only lets go of them.
        self.path = image.path
        self.lazy = core is not None
        self._image: Image | None = image
        self._core = core
        self._regions: MutableMapping[str, Region | PlacedRegion] = dict(regions)
        self._names = None if names is None else dict.fromkeys(names)
        self._make = make
        self._in_mapping: set[str] = set()
        self._is_shared = is_shared
        self._waited = waited
        self._is_closed = False
        self.working_set = working_set
        self._recording = recording
        # Also where nobody closes it, and at the interpreter's end.
        self._end_recording = weakref.finalize(self, recording.finish) if recording else None

    def __getitem__(self, name: str) -> Region | PlacedRegion:
        region = self._regions.get(name)
        return self._find(name) if region is None else region

    def _find(self, name: str) -> Region | PlacedRegion:
        with MAPPING:
            number = self._open_image().number(name)  # or says which names there are
            if name in self._in_mapping:
                raise RuntimeError(
                    f"region {name!r} is just being mapped by this thread: a signal handler, or a"
                    " finalizer, asked for it meanwhile; ask for it before that can come"
                )
            # Noted before it is looked at: what interrupts this thread in between is through by
            # the time that it goes on.
            self._in_mapping.add(name)
            try:
                region = self._regions.get(name)
                if region is None:
                    region = self._make_region(name, number)
            finally:
                self._in_mapping.discard(name)
            return region

    def _make_region(self, name: str, number: int) -> Region | PlacedRegion:
        make, is_wanted = self._make, name in self
        if self._is_closed:  # by another thread, just now
            self._open_image()
        if make is None or not is_wanted:
            raise RegionNotFound(
                f"region {name!r} was not restored: restore it too, or use another"
            )
        region = self._regions[name] = make(number)
        return region

    def _open_image(self) -> Image:
        if self._image is None:
            raise ValueError(f"the session of {self.path} is closed: restore the image again")
        return self._image

    def __contains__(self, name: object) -> bool:
        if self._names is not None:
            return name in self._names
        try:
            self._open_image().number(name)  # type: ignore[arg-type]
        except (RegionNotFound, TypeError):  # not hashable
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        if self._names is not None:
            return iter(self._names)
        return iter(self._open_image()._numbers)

    def __len__(self) -> int:
        return len(self._open_image()._numbers if self._names is None else self._names)

    @property
    def digest(self) -> str:
        """The image's content digest, in hexadecimal."""
        return self._open_image().digest

    @property
    def errors(self) -> list[LoadError]:
        """What could not be loaded, oldest first (the first 1024). Its pages are fenced."""
        return self._core.errors() if self._core is not None else []

    def stats(self) -> SessionStats:
        """What has happened so far."""
        # First: it waits until the cluster that a touch has just brought is all there.
        raw = self._core.stats() if self._core is not None else None
        resident = 0
        for region in list(self._regions.values()):
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
            for name, region in list(self._regions.items())
            if isinstance(region, Region) and region.has_views() and not self._is_shared
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
        for region in () if self._is_shared else list(self._regions.values()):
            with contextlib.suppress(BufferError):
                region.close()
        # Regions that have views go on, and hold the pager and the image; without any, both end.
        self._regions = {}
        self._names = {}
        self._core = self._image = self._make = None
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

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        from ._references import to_session

        return to_session(self._open_image(), self._names)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """A session of copies, of what was written too, that are all loaded."""
        from copy import deepcopy  # which knows what else was copied

        image = self._open_image()
        copies = {name: deepcopy(region, memo) for name, region in self.items()}
        return Session(image, None, copies, array("I"), names=self._names)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "lazy" if self.lazy else "eager"
        return f"<lazyrestore.Session {self.path!r}: {len(self)} regions, {state}>"
