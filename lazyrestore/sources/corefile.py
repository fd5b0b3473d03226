"""An ELF core file as memory: what the kernel or gcore wrote of a process, or QEMU of a machine."""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Sequence

from lazyrestore.errors import LazyRestoreError
from lazyrestore.format import PROTECTION_READ
from lazyrestore.reports import Skipped

from ._elf import Core, MappedFile, Segment, read_core
from ._files import READ_FLAGS, copy_piece, refuse_target
from .base import Sink

__all__ = ["CoreFile"]

_LEFT_OUT = "left out of the core file (unmodified file pages, coredump_filter)"
_NO_ACCESS = "no read permission: a guard page, or reserved address space"
_CUT = "the core file is cut short: it ends before this"
_KERNELS = "provided by the kernel: not the process's own"


class CoreFile:
    """A source: the memory in an ELF core file, of 64 bits and little-endian.

    Every segment (PT_LOAD) is a region. Its name is START-END, as in a dump of the process itself:
    lower-case hexadecimal, END is the first address behind it. Memory of a virtual machine (QEMU's
    dump-guest-memory) is named so by its physical addresses.

    The file need not have all of a segment: what does not change is left out of most core files
    (pages of programs and libraries), and a limit or a full disk may have cut off the rest. That
    is not taken for zeros. A region ends where the file's bytes end, a segment without any is no
    region, and `skipped` has what is missing, with the reason.

    Registers, signals and all else that is not memory is not kept. The core file of a process in
    which a lazy restore was not complete has zeros where pages were missing, which cannot be seen
    in it: dump such a process itself, which refuses.

    Args:
        path: of the file. Not a pipe: it is read at many places.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"a CoreFile is made of a path, not of {type(path).__name__}")
        self._path = os.fsdecode(path)
        self._core: Core | None = None
        self.skipped: list[Skipped] = []
        self.frozen_us: int | None = None

    def describe(self) -> str:
        """The file, and what was dumped if it says so: as `core file /tmp/core of process 12`."""
        text = f"core file {os.path.abspath(self._path)}"
        return f"{text} of {self._core.origin}" if self._core and self._core.origin else text

    def check(self, target: str) -> None:
        """Read the headers: refuse what is no core file, and what the image would replace.

        Raises:
            LazyRestoreError: it is not a core file, damaged, or there is no memory in it.
            OSError: it cannot be read.
            ValueError: it is the target, or a pipe.
        """
        here = os.stat(self._path)
        if stat.S_ISDIR(here.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        if not stat.S_ISREG(here.st_mode):
            raise ValueError(
                f"{self._path} is not a regular file: a core file is read at many places, so write"
                " it to a disk first"
            )
        refuse_target(here, target)
        fd = os.open(self._path, READ_FLAGS)
        try:
            self._core = read_core(fd, self._path)
        finally:
            os.close(fd)
        if not _total(self._core):
            raise LazyRestoreError(
                f"{self._path} has no memory in it:"
                f" {'it is cut short' if _is_cut(self._core) else 'all of it was left out'}"
            )

    def total_bytes(self) -> int | None:
        """Bytes of memory in the file; None before `check`."""
        return _total(self._core) if self._core is not None else None

    def write_to(self, sink: Sink) -> None:
        """Write a region for each segment that has bytes in the file."""
        self.skipped = []
        fd = os.open(self._path, READ_FLAGS)
        try:
            core = read_core(fd, self._path)
            self._note_unnamed(core)
            for segment in core.segments:
                self._write_segment(sink, fd, core, segment)
        finally:
            os.close(fd)
        self.skipped.sort(key=lambda skipped: skipped.start)

    def _write_segment(self, sink: Sink, fd: int, core: Core, segment: Segment) -> None:
        start = segment.address
        if start in core.provided:
            self._skip(start, segment.end, core.provided[start], _KERNELS)
            return
        there = _bytes_there(core, segment)
        mapped = _mapped_at(core.files, start)
        if there:
            end = start + there
            sink.add_region(
                f"{start:x}-{end:x}",
                address=start,
                protection=segment.protection,
                metadata=_metadata(mapped, start, end),
            )
            copy_piece(
                sink, fd, segment.offset, segment.offset + there, self.describe(), self._path
            )
        name = mapped.path if mapped else ""
        if there < segment.file_bytes:
            self._skip(start + there, start + segment.file_bytes, name, _CUT)
        if segment.file_bytes < segment.length:
            reason = _LEFT_OUT if segment.protection & PROTECTION_READ else _NO_ACCESS
            self._skip(start + segment.file_bytes, segment.end, name, reason)

    def _note_unnamed(self, core: Core) -> None:
        """Mappings of files of which there is not even a segment: so gcore does it."""
        ordered = sorted(core.segments)
        for file in core.files:
            number = bisect_right(ordered, file.start, key=lambda segment: segment.end)
            if number == len(ordered) or ordered[number].address >= file.end:
                self._skip(file.start, file.end, file.path, _LEFT_OUT)

    def _skip(self, start: int, end: int, name: str, reason: str) -> None:
        label = f"{start:x}-{end:x} {name}".rstrip()
        self.skipped.append(Skipped(label, start, end - start, reason))


def _mapped_at(files: Sequence[MappedFile], address: int) -> MappedFile | None:
    """The mapping of a file that an address was in; `files` is ascending."""
    number = bisect_right(files, address, key=lambda file: file.start) - 1
    if number >= 0 and address < files[number].end:
        return files[number]
    return None


def _bytes_there(core: Core, segment: Segment) -> int:
    """How many of its bytes the file really has."""
    return max(0, min(segment.file_bytes, core.size - segment.offset))


def _total(core: Core) -> int:
    return sum(
        _bytes_there(core, segment)
        for segment in core.segments
        if segment.address not in core.provided
    )


def _is_cut(core: Core) -> bool:
    return any(segment.offset + segment.file_bytes > core.size for segment in core.segments)


def _metadata(mapped: MappedFile | None, start: int, end: int) -> dict[str, object] | None:
    """Path and offset, if all of it was one piece of one file."""
    if mapped is None or end > mapped.end:
        return None
    return {"path": mapped.path, "offset": mapped.offset + start - mapped.start}
