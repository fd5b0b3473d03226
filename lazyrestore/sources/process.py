"""Another process's memory, as it is at one moment.

The process is stopped, its mappings are listed, what is there is read, and it runs again: whatever
happens to the dump. A thread of the C core holds it; if this process dies, the kernel lets go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lazyrestore._native import CData, check, ffi, lib, new_problem
from lazyrestore.errors import ProcessError
from lazyrestore.reports import Skipped

from . import _smaps
from ._refusal import explain
from .base import Sink

if TYPE_CHECKING:
    from ._smaps import Mapping

__all__ = ["ProcessMemory"]

_RUNS = 4096
_ADDRESS_MAX = 1 << 64


class _Region(NamedTuple):
    start: int
    end: int
    mappings: Sequence[Mapping]  # that make it up, without a gap


class ProcessMemory:
    """The memory of a running process, as a source of `dump`.

    Without `ranges` every mapping is a region that is readable and either private or shared memory
    that is in no file (of fork, SysV, memfd). All else is in `skipped`, with the reason. A region's
    name is START-END: lower-case hexadecimal, END is the first address behind it. Memory that was
    never touched is not read, and is a hole in the image.

    The process is frozen while it is read. A process that was stopped before stays stopped. One in
    which a lazy restore is not complete is refused: the pager that would load the rest is frozen
    with it. A page that could not be loaded there (it is fenced) is in `skipped`.

    Args:
        pid: of the process (not of one of its threads).
        ranges: (start, end) addresses of what to dump instead, each as one region; memory that the
            process itself may not read can be named too. At page boundaries, and all mapped.
        timeout: seconds to wait for all its threads to stop.

    Raises:
        ValueError: the pid or a range cannot be. Nothing else is looked at before `dump`, which
            raises ProcessError where the process is not there, ends, or cannot be read.
    """

    def __init__(
        self,
        pid: int,
        ranges: Sequence[tuple[int, int]] | None = None,
        *,
        timeout: float = 10.0,
    ) -> None:
        if isinstance(pid, bool) or not isinstance(pid, int):
            raise ValueError(f"a pid is a number, not {pid!r}")
        if not 0 < pid < 1 << 31:
            raise ValueError(f"a pid is from 1 to 2147483647, not {pid}")
        if not timeout > 0:
            raise ValueError(f"the timeout is a number of seconds above 0, not {timeout!r}")
        self.pid = pid
        self.ranges = None if ranges is None else _checked_ranges(ranges)
        self._timeout = timeout
        self._skipped: list[Skipped] = []
        self._frozen_us: int | None = None

    @property
    def skipped(self) -> list[Skipped]:
        """What could not be read, and why; complete when the dump is done."""
        return self._skipped

    @property
    def frozen_us(self) -> int | None:
        """How long the process was stopped, in µs; None: it was not (yet)."""
        return self._frozen_us

    def describe(self) -> str:
        """Its pid and its name, as `process 12 (cat)`."""
        try:
            with open(f"/proc/{self.pid}/comm", "rb") as file:
                name = file.read().decode("utf-8", "backslashreplace").strip()
        except OSError:
            return f"process {self.pid}"
        return f"process {self.pid} ({name})"

    def total_bytes(self) -> int | None:
        """Length of all ranges; None without ranges: the process is not yet frozen."""
        if self.ranges is None:
            return None
        return sum(end - start for start, end in self.ranges)

    def check(self, target: str) -> None:
        """Nothing: what can be wrong with a process shows when it is frozen."""

    def write_to(self, sink: Sink) -> None:
        """Freeze the process, write its memory to the sink, let it run."""
        self._skipped = []
        with self._frozen() as freeze:
            mappings = list(self._read_mappings(freeze))
            regions = self._choose(mappings)
            with _Reader(self.pid, freeze, self._skipped) as reader:
                for region in regions:
                    reader.refuse_waiting(region.mappings, region.start, region.end)
                for region in regions:
                    sink.add_region(
                        f"{region.start:x}-{region.end:x}",
                        address=region.start,
                        protection=_protection(region),
                        shared=all(mapping.is_shared for mapping in region.mappings),
                        metadata=_metadata(region),
                    )
                    for mapping in region.mappings:
                        start = max(region.start, mapping.start)
                        reader.copy(sink, mapping, start, min(region.end, mapping.end))
        self._skipped.sort(key=lambda skipped: skipped.start)

    # ---- Freezing --------------------------------------------------------------------------------

    @contextmanager
    def _frozen(self) -> Iterator[CData]:
        # Made first, with a destructor: an interrupt at any point leaves nothing frozen for good.
        holder = ffi.gc(ffi.new("lr_freeze **"), _discard)
        problem = new_problem()
        try:
            code = lib.lr_freeze_open(self.pid, int(self._timeout * 1e9), holder, problem)
            if code < 0:
                message = explain(self.pid, code, int(problem.os_error), self._timeout)
                if message:
                    raise ProcessError(message)
                check(code, problem, what=f"cannot freeze process {self.pid}")
            yield holder[0]
        finally:
            frozen_ns = _let_go(holder)
            if frozen_ns:
                self._frozen_us = frozen_ns // 1000

    def _read_mappings(self, freeze: CData) -> Iterator[Mapping]:
        try:
            with open(f"/proc/{self.pid}/smaps", "rb") as file:
                yield from _smaps.parse(file)
        except OSError as error:
            _check_alive(self.pid, freeze)
            raise ProcessError(
                f"cannot list the memory of process {self.pid}: {error.strerror}: be root"
            ) from error
        _check_alive(self.pid, freeze)  # or the list may be cut short

    # ---- Choosing --------------------------------------------------------------------------------

    def _choose(self, mappings: Sequence[Mapping]) -> list[_Region]:
        if self.ranges is not None:
            return [self._cover(mappings, start, end) for start, end in self.ranges]
        chosen = []
        for mapping in mappings:
            reason = mapping.skip_reason()
            if reason is None:
                chosen.append(_Region(mapping.start, mapping.end, (mapping,)))
            else:
                skipped = Skipped(mapping.label, mapping.start, mapping.length, reason)
                self._skipped.append(skipped)
        return chosen

    def _cover(self, mappings: Sequence[Mapping], start: int, end: int) -> _Region:
        """The mappings that make up a range; ProcessError where there are gaps."""
        at, cover = start, []
        for mapping in mappings:
            if mapping.end <= at:
                continue
            if mapping.start > at:
                break
            cover.append(mapping)
            at = mapping.end
            if at >= end:
                return _Region(start, end, cover)
        raise ProcessError(
            f"process {self.pid} has nothing mapped at {at:x}, which is in the range"
            f" {start:x}-{end:x}: /proc/{self.pid}/maps shows what there is"
        )


class _Reader:
    """Copies pieces of a frozen process's memory to a sink."""

    def __init__(self, pid: int, freeze: CData, skipped: list[Skipped]) -> None:
        self._pid = pid
        self._freeze = freeze
        self._skipped = skipped
        self._page_size = os.sysconf("SC_PAGESIZE")
        self._number = ffi.new("uint64_t *")
        self._runs = ffi.new("struct lr_page_run[]", _RUNS)
        self._run_numbers = memoryview(ffi.buffer(self._runs)).cast("B").cast("Q")
        self._problem = new_problem()
        self._pagemap_fd = -1

    def __enter__(self) -> _Reader:
        try:
            self._pagemap_fd = os.open(f"/proc/{self._pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            _check_alive(self._pid, self._freeze)
            raise ProcessError(
                f"cannot see which pages of process {self._pid} exist: {error.strerror}: be root"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pagemap_fd)

    def refuse_waiting(self, mappings: Sequence[Mapping], start: int, end: int) -> None:
        """ProcessError if a read would wait for a pager, which is likely to be frozen with it."""
        for mapping in mappings:
            if not mapping.may_wait_for_pager:
                continue
            piece = max(start, mapping.start), min(end, mapping.end)
            if list(self._existing(*piece)) != [piece]:
                raise ProcessError(
                    f"process {self._pid} is itself being lazily restored: pages of"
                    f" {mapping.label} are not there yet: wait until its restore is complete (it"
                    " may have to populate its regions), and dump again"
                )

    def copy(self, sink: Sink, mapping: Mapping, start: int, end: int) -> None:
        """Write `start` to `end`, which are in `mapping`, to the sink."""
        reason = mapping.unreadable_reason()
        if reason is not None:
            self._skip(mapping, start, end, reason)
            sink.hole(end - start)
            return
        if mapping.is_private_anonymous:
            runs = self._existing(start, end)
        elif mapping.is_shared_anonymous:
            runs = self._existing_shared(mapping, start, end)
        else:
            runs = iter(((start, end),))
        at = start
        for run_start, run_end in runs:
            if run_start > at:
                sink.hole(run_start - at)
            self._read(sink, mapping, run_start, run_end)
            at = run_end
        if end > at:
            sink.hole(end - at)
        _check_alive(self._pid, self._freeze)

    # ---- What exists -----------------------------------------------------------------------------

    def _existing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of pages that are present or in swap."""
        pending: tuple[int, int] | None = None
        while start < end:
            count = check(
                lib.lr_pagemap_runs(
                    self._pagemap_fd, start, end, self._runs, _RUNS, self._number, self._problem
                ),
                self._problem,
                what=f"cannot see which pages of process {self._pid} exist",
                pid=self._pid,
            )
            # Of a process that has ended it says that no page exists.
            _check_alive(self._pid, self._freeze)
            start = self._number[0]
            numbers = self._run_numbers[: 2 * count].tolist()
            for run_start, run_end in zip(numbers[::2], numbers[1::2], strict=True):
                if pending is not None and pending[1] == run_start:
                    pending = pending[0], run_end
                    continue
                if pending is not None:
                    yield pending
                pending = run_start, run_end
        if pending is not None:
            yield pending

    def _existing_shared(self, mapping: Mapping, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of pages that shared memory holds, whoever wrote them.

        The process's own page table does not tell: a page may be another process's so far. The
        memory's file does, for root. Otherwise all is read, which costs memory where nothing is.
        """
        try:
            name = f"/proc/{self._pid}/map_files/{mapping.start:x}-{mapping.end:x}"
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield start, end
            return
        to_file = mapping.offset - mapping.start
        try:
            # What lies behind the end of the file has to be tried, and be found unreadable.
            file_end = self._round_up(os.fstat(fd).st_size) - to_file
            at = start
            while at < min(end, file_end):
                try:
                    data = os.lseek(fd, at + to_file, os.SEEK_DATA)
                except OSError:  # ENXIO: none up to the end of the file
                    break
                hole = self._round_up(os.lseek(fd, data, os.SEEK_HOLE)) - to_file
                at = max(at, (data - data % self._page_size) - to_file)
                if at < end:
                    yield at, min(end, hole)
                at = hole
            if file_end < end:
                yield max(start, file_end), end
        finally:
            os.close(fd)

    def _round_up(self, offset: int) -> int:
        return offset + -offset % self._page_size

    # ---- Reading ---------------------------------------------------------------------------------

    def _read(self, sink: Sink, mapping: Mapping, start: int, end: int) -> None:
        at = start

        def fetch(view: memoryview) -> int:
            nonlocal at
            with ffi.from_buffer(view) as memory:
                code = lib.lr_process_read(
                    self._pid, at, memory, len(view), self._number, self._problem
                )
            if code < 0:
                _check_alive(self._pid, self._freeze)
                check(
                    code,
                    self._problem,
                    what=f"cannot read process {self._pid} at {at:x}",
                    pid=self._pid,
                )
            at += self._number[0]
            return int(self._number[0])

        while at < end:
            wanted = end - at
            if sink.fill(fetch, wanted) == wanted:
                return
            unreadable = min(end, at + self._page_size - at % self._page_size)
            reason = (
                "behind the end of the mapped file, or the file cannot be read"
                if mapping.has_file
                else "the kernel cannot read it: a guard, failed memory, or a fence"
            )
            self._skip(mapping, at, unreadable, reason)
            sink.hole(unreadable - at)
            at = unreadable

    def _skip(self, mapping: Mapping, start: int, end: int, reason: str) -> None:
        """Note that something is not in the image, joined with what was noted before it."""
        last = self._skipped[-1] if self._skipped else None
        if (
            last is not None
            and last.start + last.length == start
            and last.start >= mapping.start
            and last.reason == reason
        ):
            self._skipped.pop()
            start = last.start
        name = f"{start:x}-{end:x} {mapping.path}".rstrip()
        self._skipped.append(Skipped(name, start, end - start, reason))


def _discard(holder: CData) -> None:
    _let_go(holder)


def _let_go(holder: CData) -> int:
    """Let the process run if it is held. Returns for how long it was stopped, in ns."""
    freeze, nothing = holder[0], ffi.NULL
    if freeze == nothing:
        return 0
    # Python looks for signals after a call, not between these two.
    holder[0] = nothing
    return int(lib.lr_freeze_close(freeze))


def _check_alive(pid: int, freeze: CData) -> None:
    """ProcessError if the process has ended: what was seen of it last need not be true."""
    code = lib.lr_freeze_check(freeze)
    if code == lib.LR_ERR_GONE:
        raise ProcessError(
            f"process {pid} ended while it was being read: nothing was written; start it again"
        )
    check(code, what=f"cannot see whether process {pid} is still there")


def _checked_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    page_size = os.sysconf("SC_PAGESIZE")
    checked = [(int(start), int(end)) for start, end in ranges]
    if not checked:
        raise ValueError("there is no range to dump: give at least one, or None for all memory")
    for start, end in checked:
        if start < 0 or end > _ADDRESS_MAX:
            raise ValueError(f"the range {start:x}-{end:x} is outside of 64 bits")
        if start >= end:
            raise ValueError(f"the range {start:x}-{end:x} is empty or inverted: START-END")
        if start % page_size or end % page_size:
            low, high = start - start % page_size, end + -end % page_size
            raise ValueError(
                f"the range {start:x}-{end:x} is not at page boundaries ({page_size} bytes):"
                f" {low:x}-{high:x} is"
            )
    if len(set(checked)) < len(checked):
        raise ValueError("a range is given twice")
    return checked


def _protection(region: _Region) -> int:
    """What any part of it allows."""
    protection = 0
    for mapping in region.mappings:
        protection |= mapping.protection
    return protection


def _metadata(region: _Region) -> dict[str, object] | None:
    """Path and offset, if all of it is one piece of one file."""
    first = region.mappings[0]
    base = first.start - first.offset
    if not first.has_file or any(
        mapping.path != first.path
        or mapping.inode != first.inode
        or mapping.start - mapping.offset != base
        for mapping in region.mappings
    ):
        return None
    return {"path": first.path, "offset": region.start - base}
