"""The C side of a session, as one Python object that its regions share."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ._native import NOTHING, CData, abandon, check, ffi, lib, new_problem, strerror
from ._open import Image, raise_for_cluster
from .errors import RestoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

    from ._session_reports import LoadError, TraceRecord
    from ._workingset import WorkingSet

PRIVILEGES = {"full": 0, "auto": 1, "user-mode-only": 2}
_ON_ERROR = {"fence": 0, "abort": 1}
_ON_ERROR_SERVED = {"fence": 0, "hold": 2}
_GRANULARITIES = {"cluster": 0, "page": 1}
_FAULT_MODES = {"thread": 0, "inline": 1}
_TRACE_MAX = 1 << 24
FILL_STATES = ("none", "running", "complete", "stopped")
_ACTIONS = {1: "COPY", 2: "ZEROPAGE", 3: "FENCE", 4: "WAKE"}
_FENCES = {0: "", 1: "SIGBUS", 2: "SIGSEGV"}

# Between two looks at the deadline, and at Ctrl-C, while a range is loaded.
_SLICE_NS = 50_000_000
_FOREVER_S = 1e9  # thirty years; a float may be infinite too
_SEED_MASK = (1 << 64) - 1
_TOUCHED_AT_ONCE = 4096


@dataclass(frozen=True)
class Serving:
    """How a session serves its faults: arguments of `restore`.

    Raises:
        ValueError: one of them is not what it can be.
    """

    privilege: str = "full"
    on_error: str = "fence"
    granularity: str = "cluster"
    trace: int = 0
    record: bool = False
    fault_mode: str = "thread"

    def __post_init__(self) -> None:
        check_word("privilege", self.privilege, PRIVILEGES)
        check_word("on_error", self.on_error, _ON_ERROR)
        check_word("granularity", self.granularity, _GRANULARITIES)
        check_word("fault_mode", self.fault_mode, _FAULT_MODES)
        if not 0 <= self.trace <= _TRACE_MAX:
            raise ValueError(f"trace is {self.trace}: it can be from 0 to {_TRACE_MAX}")

    def _options(self) -> CData:
        options = ffi.new("struct lr_session_options *")
        options.privilege = PRIVILEGES[self.privilege]
        options.trace_records = 1 << (self.trace - 1).bit_length() if self.trace > 0 else 0
        options.on_error = _ON_ERROR[self.on_error]
        options.granularity = _GRANULARITIES[self.granularity]
        options.record = self.record
        options.fault_mode = _FAULT_MODES[self.fault_mode]
        return options


def check_word(name: str, word: str, words: Iterable[str]) -> None:
    """See that an argument is one of some words, else ValueError."""
    if word not in words:
        raise ValueError(f"{name} is {word!r}: it can be {', '.join(map(repr, words))}")


class PeerRange(NamedTuple):
    """Where part of a region lies in another process: bytes, but for the region's number."""

    address: int
    bytes: int
    offset: int = 0
    region: int = 0


def serve_state(image: Image, page_size: int = 0) -> int:
    """Make the memory file in which a served session keeps what it knows: a descriptor.

    Whoever holds it, and the peer's userfaultfd, can go on where this process ends.
    """
    fd = ffi.new("int32_t *")
    problem = new_problem()
    code = lib.lr_serve_state(image._handle, page_size, fd, problem)
    check(code, problem, what=f"cannot serve {image.path}")
    return int(fd[0])


class Child(NamedTuple):
    """A child that a served process forked: descriptors, and its number among its parent's.

    `uffd` is -1 where it is not to be had any more, `state` where it was not made yet.
    """

    uffd: int
    state: int
    number: int


def state_children(state: int) -> list[Child]:
    """The children in a state that nobody serves by: see `Core.next_child`.

    Their descriptors are numbers in the table of who served last. For a successor, which puts its
    own with `state_set_child` before it serves.

    Raises:
        RemoteError: it is damaged, or no state.
    """
    room = ffi.new("struct lr_child[]", lib.LR_CHILDREN_MAX)
    count = check(
        lib.lr_state_children(state, room, lib.LR_CHILDREN_MAX),
        what="cannot read a peer's state",
    )
    found = room[0 : min(count, lib.LR_CHILDREN_MAX)]
    return [Child(int(one.uffd), int(one.state), int(one.number)) for one in found]


def state_set_child(state: int, child: Child) -> None:
    """Put this process's own descriptors into a state, for the child of that number.

    Raises:
        RemoteError: it is damaged, or no state.
        ValueError: there is no such child.
    """
    one = ffi.new("struct lr_child *")
    one.uffd, one.state, one.number = child
    code = lib.lr_state_set_child(state, one)
    if code == lib.LR_ERR_NOT_FOUND:
        raise ValueError(f"a peer's state has no child with number {child.number}")
    check(code, what="cannot write a peer's state")


class Core:
    """A `lr_session`: the pager, its userfaultfd, and what was measured. Ends when nobody holds it.

    Something outside of every cycle of references holds it while a region's memory is there (see
    `region._at_the_end`), so it outlives every view of them; it never holds a region.
    """

    _handle: CData = ffi.NULL

    def __init__(self, image: Image, serving: Serving) -> None:
        found = ffi.new("lr_session **")
        problem = new_problem()
        self.image = image
        options = serving._options()
        try:
            code = lib.lr_session_open(image._handle, options, found, problem)
        except BaseException:
            abandon(found, lib.lr_session_close)
            raise
        if code < 0:
            check(code, problem, what=f"cannot restore {image.path} lazily: userfaultfd")
        self._handle = found[0]

    @classmethod
    def serve(
        cls,
        image: Image,
        *,
        uffd: int,
        ranges: Sequence[tuple[int, int, int, int]],
        state: int = -1,
        pid: int = 0,
        event_fd: int = -1,
        page_size: int = 0,
        on_error: str = "fence",
        granularity: str = "cluster",
        record: bool = False,
        trace: int = 0,
        zero_outside: bool = False,
        children: bool = False,
    ) -> Self:
        """Serve the faults of another process, the peer, through its userfaultfd.

        Args:
            image: what is restored.
            uffd: the peer's userfaultfd. Descriptors are copied.
            ranges: where the regions lie there, as `PeerRange`; not looked at where `state` knows.
            state: a descriptor by `serve_state`, or -1.
            pid: the peer's, 0 where it is not known.
            event_fd: an eventfd that is written to when a load failed, a fill ended, a child was
                forked or the peer's memory is gone; or -1.
            page_size: bytes; of the memory in these ranges; 0 for this machine's.
            on_error: "fence" or "hold": whoever touches what cannot be loaded waits, see `retry`.
            granularity: "cluster" or "page".
            record: note what is touched.
            trace: room for so many records.
            zero_outside: a whole process is being restored: what is in no range is zeros, and
                until `settle` what is not mapped is not mapped yet. No fill before that.
            children: the userfaultfd tells of forks: see `next_child`. Needs a state.

        Raises:
            ValueError: it is not a userfaultfd, or the ranges cannot be.
            ProcessError: the peer ended.
            RemoteError: the state is damaged, or belongs to another image.
            KernelError: another process serves by this state; or what is asked for is not to be
                had here.
        """
        check_word("on_error", on_error, _ON_ERROR_SERVED)
        serving = Serving(granularity=granularity, trace=trace)
        kept = ffi.new("struct lr_peer_range[]", len(ranges))
        for item, one in zip(ranges, kept, strict=True):
            one.address, one.bytes, one.offset, one.region = item
        options = ffi.new("struct lr_serve_options *")
        options.uffd, options.state, options.pid, options.event_fd = uffd, state, pid, event_fd
        options.page_size = page_size
        options.on_error = _ON_ERROR_SERVED[on_error]
        options.granularity = _GRANULARITIES[granularity]
        options.record = record
        options.trace_records = serving._options().trace_records
        options.flags = zero_outside * lib.LR_SERVE_ZERO_OUTSIDE
        options.flags |= children * lib.LR_SERVE_CHILDREN
        options.ranges, options.range_count = kept, len(ranges)
        core = cls.__new__(cls)
        core.image = image
        found = ffi.new("lr_session **")
        problem = new_problem()
        code = lib.lr_session_serve(image._handle, options, found, problem)
        check(code, problem, what=f"cannot serve {image.path} to process {pid or '?'}")
        core._handle = found[0]
        return core

    def close(self) -> None:
        """End it now. Nothing else may be called after that, nor meanwhile from another thread."""
        handle, self._handle = self._handle, ffi.NULL
        lib.lr_session_close(handle)

    __del__ = close

    def retry(self) -> None:
        """Have what could not be loaded tried again, for whoever waits for it (on_error="hold")."""
        check(lib.lr_session_retry(self._handle), what="cannot try again")

    def settle(self) -> None:
        """All of the peer's memory is mapped by now (zero_outside=True)."""
        check(lib.lr_session_settle(self._handle), what="cannot settle")

    def next_child(self) -> Child | None:
        """The next child that the peer forked, or None; `event_fd` is written to for each.

        It waits wherever it misses a page until it is served: by its userfaultfd and its state,
        with the same arguments and no ranges. Its descriptors are the caller's, but must stay open
        until `child_is_kept`.
        """
        child = ffi.new("struct lr_child *")
        if not check(lib.lr_session_next_child(self._handle, child), what="no children here"):
            return None
        return Child(int(child.uffd), int(child.state), int(child.number))

    def child_is_kept(self, number: int) -> None:
        """Another process has copies of this child's descriptors: the state may forget it."""
        code = lib.lr_session_child_is_kept(self._handle, number)
        check(code, what=f"no child {number}")

    def attach(self, number: int, address: int) -> None:
        """Restore a region lazily into an empty mapping."""
        problem = new_problem()
        memory = ffi.cast("void *", address)
        code = lib.lr_session_attach(self._handle, number, memory, problem)
        if code < 0:
            name = self.image.region(number).name
            check(code, problem, what=f"cannot restore {self.image.path} lazily", region=name)

    def suspend(self, number: int) -> bool:
        """Stop installing pages in a region; False where it is not served (any more)."""
        return lib.lr_session_suspend(self._handle, number) == 0

    def resume(self, number: int) -> None:
        """Undo `suspend`."""
        lib.lr_session_resume(self._handle, number)

    def forget(self, number: int) -> None:
        """A region is about to be unmapped, of which the kernel tells the pager."""

    def remember(self, number: int) -> None:
        """Undo `forget`."""

    def detach(self, number: int) -> None:
        """Forget a region whose memory is gone, or will be before anyone touches it.

        Waits until no page is being installed in it. Does nothing the second time.
        """
        lib.lr_session_detach(self._handle, number)

    def populate(self, number: int, offset: int, length: int, timeout: float | None) -> None:
        """Load a range now; see Region.populate."""
        problem = new_problem()
        done = ffi.new("uint64_t *")
        left_ns = nanoseconds(timeout)
        while True:
            slice_ns = _SLICE_NS if left_ns is None else min(left_ns, _SLICE_NS)
            code = lib.lr_session_populate(
                self._handle, number, offset, length, slice_ns, done, problem
            )
            offset, length = offset + done[0], length - done[0]
            if code != lib.LR_ERR_TIMEOUT:
                break
            if left_ns is not None:
                left_ns -= slice_ns
                if left_ns <= 0:
                    name = self.image.regions[number].name
                    raise TimeoutError(
                        f"{length} bytes of region {name!r} were not loaded within {timeout} s:"
                        " call populate() again to go on"
                    )
        if code < 0:
            raise_for_cluster(self.image, number, code, problem, RestoreError)

    def fill(self, first: WorkingSet | None = None, *, is_awaited: bool = False) -> None:
        """Start to load everything in the background, the clusters of a working set first."""
        options = ffi.NULL
        if first is not None and len(first):
            clusters = ffi.from_buffer("uint64_t[]", first.clusters)
            options = ffi.new("struct lr_fill_options *")
            options.first, options.first_count = clusters, len(first)
            options.is_awaited = is_awaited
        code = lib.lr_session_fill(self._handle, options)
        check(code, what=f"cannot fill from {self.image.path}")

    def wait(self, timeout: float | None) -> bool:
        """Wait for the fill: True when it is complete, False on timeout or where it stopped short.

        Raises ValueError where there is none. Yields to Ctrl-C between slices.
        """
        return self._wait(lib.lr_session_wait, timeout)

    def wait_first(self, timeout: float | None) -> bool:
        """The same, for the working set that the fill begins with."""
        return self._wait(lib.lr_session_wait_first, timeout)

    def _wait(self, wait_for: Callable[[CData, int], int], timeout: float | None) -> bool:
        left_ns = nanoseconds(timeout)
        while True:
            slice_ns = _SLICE_NS if left_ns is None else min(left_ns, _SLICE_NS)
            code = wait_for(self._handle, slice_ns)
            if code != lib.LR_ERR_TIMEOUT:
                break
            if left_ns is not None:
                left_ns -= slice_ns
                if left_ns <= 0:
                    return False
        if code in (lib.LR_ERR_ARGUMENT, lib.LR_ERR_CLOSED):
            raise ValueError(
                "no background fill runs for this session: ask for it with prefetch='all', or use"
                " populate() of its regions"
            )
        return bool(code == 0)

    def stats(self) -> CData:
        """A `struct lr_session_stats *`."""
        stats = ffi.new("struct lr_session_stats *")
        lib.lr_session_get_stats(self._handle, stats)
        return stats

    def touched(self) -> tuple[array[int], array[int]]:
        """Clusters in the order of their first touch, and when that was, in us since the open."""
        clusters, times_us = array("Q"), array("Q")
        room = ffi.new("struct lr_touched[]", _TOUCHED_AT_ONCE)
        first = 0
        while count := lib.lr_session_get_touched(self._handle, first, room, _TOUCHED_AT_ONCE):
            first += count
            known = [one for one in room[0:count] if one.cluster != NOTHING]
            clusters.extend(one.cluster for one in known)
            times_us.extend(one.time_ns // 1000 for one in known)
        return clusters, times_us

    def errors(self) -> list[LoadError]:
        """What could not be loaded, oldest first."""
        from ._session_reports import LoadError

        room = ffi.new("struct lr_load_error[]", 1024)
        count = lib.lr_session_get_errors(self._handle, 0, room, 1024)
        return [
            LoadError(
                region=self.image.regions[error.region].name,
                offset=error.offset,
                length=error.length,
                cluster=error.cluster,
                reason=strerror(error.code),
                fence=_FENCES[error.fenced],
            )
            for error in room[0:count]
        ]

    def read_trace(self, timeout: float | None) -> Iterable[TraceRecord]:
        """Trace records since the last call; waits for the first."""
        from ._session_reports import TraceRecord

        room = ffi.new("struct lr_trace_record[]", 4096)
        timeout_ns = -1 if timeout is None else int(timeout * 1e9)
        count = lib.lr_session_read_trace(self._handle, room, 4096, timeout_ns)
        for record in room[0:count]:
            yield TraceRecord(
                time_us=record.time_ns / 1000,
                region=self.image.regions[record.region].name,
                offset=record.offset,
                address=record.address,
                thread=record.thread or None,
                write=bool(record.is_write),
                action=_ACTIONS[record.action],
                bytes=record.bytes,
                service_us=record.latency_ns / 1000,
            )


def nanoseconds(timeout: float | None) -> int | None:
    """Seconds as a whole number from 0 on; None, as before, where nobody lives to see the end."""
    if timeout is None or timeout >= _FOREVER_S:
        return None
    return max(0, int(timeout * 1e9))


def touch(
    address: int, length: int, *, order: str, first: int, count: int, seed: int, room: array[int]
) -> int:
    """Touch pages of a mapping and append what each that faulted waited, in ns, to `room`.

    Returns the number of pages that were read; fewer than `count` where there are no more, and
    where some are fenced. Yields to Ctrl-C between slices.
    """
    page_size = 4096
    kind = {"sequential": lib.LR_TOUCH_SEQUENTIAL, "random": lib.LR_TOUCH_RANDOM}[order]
    seed &= _SEED_MASK
    step = min(count, 4096)
    latencies = array("I", bytes(4 * step))
    target = ffi.from_buffer("uint32_t[]", latencies)
    memory = ffi.cast("void *", address)
    done = failed = 0
    while done < count:
        wanted = min(step, count - done)
        got = lib.lr_touch(memory, length, page_size, kind, seed, first + done, wanted, target)
        waits = [waited for waited in latencies[:got] if waited]
        room.extend(waited for waited in waits if waited != lib.LR_TOUCH_FAILED)
        failed += waits.count(lib.LR_TOUCH_FAILED)
        done += got
        if got < wanted:
            break
    return done - failed
