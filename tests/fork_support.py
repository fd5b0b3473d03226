"""Forked children that tell how they ended, and what a process can see of its own memory.

For the scripts of the tests of fork and fences, which run in processes of their own: it needs
nothing but the package.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import NoReturn

import lazyrestore

PAGE = 4096
FENCES = (signal.SIGBUS, signal.SIGSEGV)
LIMIT_S = 30 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))

# Children die here by intent; and Python 3.12 warns of threads, of which every session has one.
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
warnings.simplefilter("ignore", DeprecationWarning)

# PyDLL keeps the GIL: a raw clone's child must not wait for it.
libc = ctypes.PyDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
MADV_DONTNEED = 4


def contents(path: str) -> dict[str, bytes]:
    """What each region of an image must read as, read without userfaultfd."""
    with lazyrestore.open(path) as image:
        return {region.name: image.read(region.name) for region in image.regions}


def same(got: object, expected: bytes, pages: Iterable[int] | None = None) -> None:
    """Compare memory page by page, in any order, and say where it differs."""
    count = -(-len(expected) // PAGE)
    for page in range(count) if pages is None else pages:
        here = slice(page * PAGE, min((page + 1) * PAGE, len(expected)))
        found = bytes(got[here])  # type: ignore[index]
        if found != expected[here]:
            zeros = "all zeros" if not any(found) else f"{found[:16].hex()}..."
            raise AssertionError(f"page {page} of {count} is {zeros}")


def fork(work: Callable[..., object], *arguments: object) -> int:
    """Fork a child that calls work(*arguments): it ends with 0, or 1 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    return end(work, *arguments)


def raw_clone(work: Callable[..., object], *arguments: object) -> int:
    """The same by the system call alone: no handler of anybody's runs."""
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    zero = ctypes.c_long(0)
    pid = int(libc.syscall(number, ctypes.c_long(signal.SIGCHLD), zero, zero, zero, zero))
    if pid:
        assert pid > 0, os.strerror(ctypes.get_errno())
        return pid
    return end(work, *arguments)


def end(work: Callable[..., object], *arguments: object) -> NoReturn:
    """What a child does: call it, say what went wrong, and leave without Python's own end."""
    code = 1
    try:
        work(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def end_of(pid: int) -> int:
    """How a child ended: its exit status, or minus the signal. It is killed if it hangs."""
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], LIMIT_S)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the child hung for {LIMIT_S} s")
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(work: Callable[..., object], *arguments: object) -> None:
    """Run something in a forked child, which must end well."""
    code = end_of(fork(work, *arguments))
    assert code == 0, f"the child ended with {code}"


def dies_by_fence(work: Callable[..., object], *arguments: object) -> signal.Signals:
    """Run something in a forked child, which must die by SIGBUS or SIGSEGV."""
    code = end_of(fork(work, *arguments))
    assert -code in FENCES, f"the child ended with {code}"
    return signal.Signals(-code)


def missing(region: object) -> int:
    """How many pages of a region this process has not got."""
    length = len(region)  # type: ignore[arg-type]
    first, count = region.address // PAGE, -(-length // PAGE)  # type: ignore[attr-defined]
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        entries = memoryview(os.pread(file.fileno(), count * 8, first * 8)).cast("Q")
    return sum(not entry >> 62 for entry in entries)


def give_up(region: object, page: int, count: int = 1) -> None:
    """MADV_DONTNEED over pages of a region."""
    at = region.address + page * PAGE  # type: ignore[attr-defined]
    assert libc.madvise(at, count * PAGE, MADV_DONTNEED) == 0, os.strerror(ctypes.get_errno())


def open_files() -> dict[int, str]:
    """This process's descriptors, and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed them
            continue
    return found


def userfaultfds() -> int:
    """How many descriptors of userfaultfds this process has."""
    return sum(name == "anon_inode:[userfaultfd]" for name in open_files().values())


def threads() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))


def become_nobody(uid: int = 65534) -> None:
    """Drop all rights, but for that to look at oneself in /proc."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    assert libc.prctl(4, 1, 0, 0, 0) == 0
