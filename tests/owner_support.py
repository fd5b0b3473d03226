"""What a program may do to its own memory, by ctypes, and sessions by the C functions alone.

Child processes import this module too. Everything here works on addresses: a `Region` does not hear
of it, as it would not hear of a C library's calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from restore_support import run_in_child

import lazyrestore
from lazyrestore._native import error_name, ffi, lib

PAGE = 4096
ZERO = bytes(PAGE)
HUGE = 2 << 20

NONE, READ, WRITE = 0, 1, 2
SHARED, PRIVATE, FIXED, ANONYMOUS, NORESERVE = 0x1, 0x2, 0x10, 0x20, 0x4000
FIXED_NOREPLACE = 0x100000
MAYMOVE, REMAP_FIXED, DONTUNMAP = 1, 2, 4
CURRENT, FUTURE, ONFAULT = 1, 2, 4

DONTNEED, FREE, MERGEABLE, UNMERGEABLE, HUGEPAGE, NOHUGEPAGE = 4, 8, 12, 13, 14, 15
COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE, DONTNEED_LOCKED = 20, 21, 22, 23, 24
COLLAPSE, GUARD_INSTALL, GUARD_REMOVE = 25, 102, 103

_libc = ctypes.CDLL(None, use_errno=True)
_word, _pointer = ctypes.c_size_t, ctypes.c_void_p
_libc.syscall.restype = ctypes.c_long
for _name, _result, _arguments in (
    ("mmap", _pointer, (_pointer, _word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)),
    ("mremap", _pointer, (_pointer, _word, _word, ctypes.c_int, _pointer)),
    ("munmap", ctypes.c_int, (_pointer, _word)),
    ("madvise", ctypes.c_int, (_pointer, _word, ctypes.c_int)),
    ("mprotect", ctypes.c_int, (_pointer, _word, ctypes.c_int)),
    ("mlock", ctypes.c_int, (_pointer, _word)),
    ("munlock", ctypes.c_int, (_pointer, _word)),
    ("mlockall", ctypes.c_int, (ctypes.c_int,)),
    ("mincore", ctypes.c_int, (_pointer, _word, ctypes.c_char_p)),
    ("memcpy", _pointer, (_pointer, _pointer, _word)),
    ("process_vm_readv", ctypes.c_ssize_t, (ctypes.c_int, _pointer, _word, _pointer, _word, _word)),
):
    _function = getattr(_libc, _name)
    _function.restype, _function.argtypes = _result, _arguments

_MADVISE_PROCESS, _MBIND, _MOVE_PAGES = (
    (440, 237, 279) if os.uname().machine == "x86_64" else (440, 235, 239)
)


class Vector(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _check(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _address(result: int | None, what: str) -> int:
    return _check(-1 if result in (None, ctypes.c_void_p(-1).value) else int(result or 0), what)


def mmap(
    length: int,
    address: int | None = None,
    protection: int = READ | WRITE,
    flags: int = PRIVATE | ANONYMOUS | NORESERVE,
) -> int:
    """Map memory; exactly at `address`, over what is there, if there is one."""
    flags |= FIXED if address is not None else 0
    return _address(_libc.mmap(address, length, protection, flags, -1, 0), "mmap")


def mmap_if_free(length: int, address: int) -> bool:
    """Map memory at `address`, unless somebody has part of that place.

    Between an unmapping and this another thread may have got it: one of the session's, or the C
    library's memory for one.
    """
    flags = PRIVATE | ANONYMOUS | NORESERVE | FIXED_NOREPLACE
    got = _libc.mmap(address, length, READ | WRITE, flags, -1, 0)
    if got in (None, ctypes.c_void_p(-1).value):
        assert ctypes.get_errno() == errno.EEXIST, os.strerror(ctypes.get_errno())
        return False
    if got != address:  # a kernel before 4.17 takes it for a wish
        munmap(got, length)
    return bool(got == address)


def munmap(address: int, length: int) -> None:
    _check(_libc.munmap(address, length), "munmap")


def mremap(address: int, old: int, new: int, to: int | None = None, flags: int = 0) -> int:
    """Resize memory in place, or with flags or `to` move it."""
    flags |= MAYMOVE | REMAP_FIXED if to is not None else 0
    return _address(_libc.mremap(address, old, new, flags, to), "mremap")


def madvise(address: int, length: int, advice: int) -> None:
    _check(_libc.madvise(address, length, advice), f"madvise({advice})")


def try_madvise(address: int, length: int, advice: int) -> int:
    """0, or errno."""
    return 0 if _libc.madvise(address, length, advice) == 0 else ctypes.get_errno()


def mprotect(address: int, length: int, protection: int) -> None:
    _check(_libc.mprotect(address, length, protection), "mprotect")


def mlock(address: int, length: int) -> None:
    _check(_libc.mlock(address, length), "mlock")


def munlock(address: int, length: int) -> None:
    _check(_libc.munlock(address, length), "munlock")


def mlockall(flags: int) -> None:
    _check(_libc.mlockall(flags), "mlockall")


def munlockall() -> None:
    _check(_libc.munlockall(), "munlockall")


def process_madvise(pidfd: int, ranges: Sequence[tuple[int, int]], advice: int) -> int:
    """How many bytes were advised."""
    vector = (Vector * len(ranges))(*[Vector(start, length) for start, length in ranges])
    result = _libc.syscall(
        ctypes.c_long(_MADVISE_PROCESS),
        ctypes.c_long(pidfd),
        vector,
        ctypes.c_long(len(ranges)),
        ctypes.c_long(advice),
        ctypes.c_long(0),
    )
    return _check(result, "process_madvise")


def mbind(address: int, length: int, *, node: int = 0, flags: int = 0) -> None:
    """Bind memory to a node (MPOL_BIND)."""
    mask = ctypes.c_ulong(1 << node)
    arguments = (ctypes.c_long(2), ctypes.byref(mask), ctypes.c_long(64), ctypes.c_long(flags))
    place = (ctypes.c_long(_MBIND), ctypes.c_void_p(address), ctypes.c_size_t(length))
    _check(_libc.syscall(*place, *arguments), "mbind")


def move_pages(addresses: Sequence[int], node: int = 0) -> list[int]:
    """Move pages to a node; the status of each: a node, or a negative errno."""
    count = len(addresses)
    pages = (ctypes.c_void_p * count)(*addresses)
    nodes = (ctypes.c_int * count)(*[node] * count)
    status = (ctypes.c_int * count)()
    move = ctypes.c_long(2)  # MPOL_MF_MOVE
    head = (ctypes.c_long(_MOVE_PAGES), ctypes.c_long(0), ctypes.c_ulong(count))
    _check(_libc.syscall(*head, pages, nodes, status, move), "move_pages")
    return list(status)


def is_mapped(address: int) -> bool:
    return _libc.mincore(address & -PAGE, PAGE, ctypes.create_string_buffer(1)) == 0


def _pagemap(address: int, pages: int) -> memoryview:
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(address // PAGE * 8)
        return memoryview(file.read(pages * 8)).cast("Q")


def present(address: int, pages: int) -> int:
    """How many of these pages are in memory."""
    return sum(entry >> 63 for entry in _pagemap(address, pages))


def swapped(address: int, pages: int) -> int:
    """How many of these pages are in swap."""
    return sum(entry >> 62 & 1 for entry in _pagemap(address, pages))


def smaps(address: int, field: str) -> int:
    """A figure of the mapping that holds an address, in bytes."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            inside = start <= address < end
        elif inside and name == f"{field}:":
            return int(rest[0]) * 1024
    raise ValueError(f"nothing is mapped at {address:#x}")


def get(address: int, length: int = PAGE) -> bytes:
    """What is there, by plain loads without the GIL."""
    room = ctypes.create_string_buffer(length)
    _libc.memcpy(room, address, length)
    return room.raw


def put(address: int, data: bytes) -> None:
    """Write there, by plain stores without the GIL."""
    _libc.memcpy(address, data, len(data))


def try_get(address: int, length: int = PAGE) -> bytes | None:
    """What is there, or None where a touch would raise a signal: by a system call."""
    room = ctypes.create_string_buffer(length)
    here, there = Vector(ctypes.addressof(room), length), Vector(address, length)
    got = _libc.process_vm_readv(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if got == -1:
        assert ctypes.get_errno() == errno.EFAULT, os.strerror(ctypes.get_errno())
    return room.raw if got == length else None


def gone(expected: bytes, pages: Iterable[int], by: bytes = ZERO) -> bytes:
    """What a region reads as when these pages of it were given up."""
    content = bytearray(expected)
    for page in pages:
        content[page * PAGE : (page + 1) * PAGE] = by
    return bytes(content)


def same(address: int, expected: bytes, what: object = "") -> None:
    """Memory reads so; names the first page that does not."""
    got = get(address, len(expected))
    if got == expected:
        return
    for at in range(0, len(expected), PAGE):
        left, right = got[at : at + PAGE], expected[at : at + PAGE]
        if left != right:
            kind = "zeros" if not any(left) else left[:16].hex()
            raise AssertionError(f"page {at // PAGE}: {kind}, not {right[:16].hex()} {what}")


def run_all(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own, all from the same moment on; raise what they raise."""
    start, failures = threading.Barrier(len(works)), []

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def shuffled(count: int, seed: int = 0) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


class CSession:
    """A session by the C functions alone: nothing of Python's unmaps or remembers its memory."""

    def __init__(self, path: str | os.PathLike[str], *, fill: bool = False) -> None:
        found, session = ffi.new("lr_image **"), ffi.new("lr_session **")
        options = ffi.new("struct lr_session_options *")
        self._fill = fill
        self.check(lib.lr_image_open(os.fsencode(path), found, ffi.NULL))
        self.check(lib.lr_session_open(found[0], options, session, ffi.NULL))
        lib.lr_image_close(found[0])
        self.handle = session[0]
        with lazyrestore.open(path) as image:
            self.lengths = [region.length for region in image.regions]

    @staticmethod
    def check(code: int) -> None:
        assert code >= 0, error_name(code)

    def map(self, region: int = 0, *, more: bool = False) -> int:
        """Let it be mapped; the fill starts then, unless there is more to come."""
        address = ffi.new("void **")
        self.check(lib.lr_session_map(self.handle, region, address, ffi.NULL))
        if not more:
            self._start()
        return int(ffi.cast("uintptr_t", address[0]))

    def attach(self, address: int | None = None, region: int = 0) -> int:
        """Map empty memory and have it served; there, over what is there, if that is given."""
        at = mmap(self.lengths[region], address)
        self.check(lib.lr_session_attach(self.handle, region, ffi.cast("void *", at), ffi.NULL))
        self._start()
        return at

    def _start(self) -> None:
        if self._fill:
            self.check(lib.lr_session_fill(self.handle, ffi.NULL))

    def wait(self) -> None:
        # Without a limit: that is its process's.
        self.check(lib.lr_session_wait(self.handle, -1))

    def populate(self, offset: int, length: int, region: int = 0) -> int:
        """0 or a negative code."""
        done = ffi.new("uint64_t *")
        return int(lib.lr_session_populate(self.handle, region, offset, length, -1, done, ffi.NULL))

    @property
    def pages_copied(self) -> int:
        stats = ffi.new("struct lr_session_stats *")
        lib.lr_session_get_stats(self.handle, stats)
        return int(stats.pages_copied)

    def close(self) -> None:
        lib.lr_session_close(self.handle)


CHILD = """
import os, random, sys, threading
import lazyrestore
from owner_support import *
path = sys.argv[1]
with lazyrestore.open(path) as _image:
    try:
        expected = _image.read(_image.regions[0].name)
    except lazyrestore.ClusterError:  # damaged: the script knows
        expected = b""
COUNT = len(expected) // PAGE
def restore(**options):
    return lazyrestore.restore(path, lazy=True, **options)
def done():
    # Python's mmap objects would unmap addresses that are others' by now.
    sys.stdout.flush()
    os._exit(0)
"""
"""The beginning of a child's script: its first argument is the image."""


def owner_child(path: object, script: str, *arguments: object, **options: Any) -> str:
    """Run a script after `CHILD`; returns what it printed. "skip WHY" skips the test."""
    out = run_in_child(CHILD + textwrap.dedent(script), path, *arguments, **options).stdout
    if out.startswith("skip "):
        import pytest  # slow to import: not in children

        pytest.skip(out[5:].strip())
    return out
