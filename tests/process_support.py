"""Processes to dump, and a way to run a test that may hang, for the tests of dumping a process."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import pytest

from lazyrestore.sources.process import ProcessMemory

PAGE = mmap.PAGESIZE
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

NONE, READ, WRITE, EXECUTE = 0, 1, 2, 4
SHARED, PRIVATE, ANONYMOUS, NORESERVE, HUGETLB = 0x1, 0x2, 0x20, 0x4000, 0x40000
NOHUGEPAGE = 15


def in_child(limit_s: float = 60.0) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test in a forked child; it and all that it started is killed when the time is over.

    CHECK_TIME_FACTOR multiplies the limit, as it does those of the C tests.
    """
    limit_s *= float(os.environ.get("CHECK_TIME_FACTOR", "1"))

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: object, **kwargs: object) -> None:
            read_fd, write_fd = os.pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                _run_test(test, args, kwargs, write_fd)
            os.close(write_fd)
            late = _reap(pid, limit_s)
            with os.fdopen(read_fd, encoding="utf-8", errors="replace") as file:
                kind, _, text = file.read().partition("\n")
            if late:
                pytest.fail(f"not done after {limit_s:g} s")
            if kind == "skip":
                pytest.skip(text)
            if kind != "ok":
                pytest.fail(text or "the child died", pytrace=False)

        return run

    return decorate


def _run_test(
    test: Callable[..., None], args: tuple[object, ...], kwargs: dict[str, object], fd: int
) -> NoReturn:
    os.setpgid(0, 0)
    try:
        test(*args, **kwargs)
        result = "ok\n"
    except pytest.skip.Exception as skip:
        result = f"skip\n{skip}"
    except BaseException:
        result = "fail\n" + traceback.format_exc()
    os.write(fd, result.encode()[:60000])
    os._exit(0)


def _reap(pid: int, limit_s: float) -> bool:
    pidfd = os.pidfd_open(pid)
    late = not select.select([pidfd], [], [], limit_s)[0]
    os.close(pidfd)
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return late


class Memory:
    """Memory mapped without Python's mmap: any protection, by address."""

    def __init__(
        self,
        length: int,
        protection: int = READ | WRITE,
        flags: int = PRIVATE | ANONYMOUS | NORESERVE,
        fd: int = -1,
        offset: int = 0,
    ) -> None:
        address = _libc.mmap(None, length, protection, flags, fd, offset)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        self.start = int(address)
        self.end = self.start + length
        if flags & ANONYMOUS and not flags & (SHARED | HUGETLB):
            self.advise(0, length, NOHUGEPAGE)

    @property
    def range(self) -> tuple[int, int]:
        return self.start, self.end

    @property
    def name(self) -> str:
        return f"{self.start:x}-{self.end:x}"

    def write(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self.start + offset, data, len(data))

    def read(self, offset: int, length: int) -> bytes:
        return ctypes.string_at(self.start + offset, length)

    def protect(self, offset: int, length: int, protection: int) -> None:
        if _libc.mprotect(self.start + offset, length, protection):
            raise OSError(ctypes.get_errno(), "mprotect")

    def unmap(self, offset: int, length: int) -> None:
        if _libc.munmap(self.start + offset, length):
            raise OSError(ctypes.get_errno(), "munmap")

    def advise(self, offset: int, length: int, advice: int) -> None:
        if _libc.madvise(self.start + offset, length, advice):
            raise OSError(ctypes.get_errno(), "madvise")


def pattern(length: int, salt: int = 0) -> bytes:
    """Bytes of which no two pages are the same."""
    return b"".join((i + 1 + (salt << 32)).to_bytes(8, "little") for i in range(length // 8))


class Target:
    """A forked copy of this process, which counts in shared memory until it is killed."""

    def __init__(self, prepare: Callable[[], None] | None = None) -> None:
        self._board = mmap.mmap(-1, PAGE)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if prepare is not None:
                    prepare()
                self._board[8] = 1
                count = memoryview(self._board).cast("Q")
                while True:
                    count[0] += 1
                    time.sleep(0.0005)
            finally:
                os._exit(1)
        while not self._board[8]:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                raise AssertionError("the target could not be prepared")
            time.sleep(0.001)

    @property
    def count(self) -> int:
        return int.from_bytes(self._board[:8], "little")

    def expect_running(self) -> None:
        """Return when it has counted on; the test's limit ends it otherwise."""
        before = self.count
        while self.count < before + 3:
            time.sleep(0.001)

    def expect_still(self, seconds: float = 0.02) -> None:
        before = self.count
        time.sleep(seconds)
        assert self.count == before, "it runs"

    def status_bytes(self, field: str) -> int:
        """A field of /proc/PID/status that is in kB."""
        return int(self.status()[field].split()[0]) * 1024

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def kill_and_wait_until_gone(self) -> None:
        """For one that is frozen: whoever froze it must let go before it can be waited for."""
        os.kill(self.pid, signal.SIGKILL)
        while self.status().get("State", "Z").startswith(("t", "T", "R", "S")):
            time.sleep(0.001)

    def status(self) -> dict[str, str]:
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            return {key: value.strip() for key, _, value in (s.partition(":") for s in file)}


@contextmanager
def target(prepare: Callable[[], None] | None = None) -> Iterator[Target]:
    process = Target(prepare)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            process.kill()


class Recorder:
    """A sink that keeps everything: what was written, and where the holes are."""

    def __init__(self) -> None:
        self.regions: dict[str, dict[str, object]] = {}
        self.content: dict[str, bytearray] = {}
        self.holes: dict[str, list[tuple[int, int]]] = {}
        self._last = ""

    def add_region(
        self,
        name: str,
        *,
        address: int = 0,
        protection: int = 3,
        shared: bool = False,
        metadata: object = None,
        width: int = 0,
    ) -> None:
        assert name not in self.regions
        self.regions[name] = {
            "address": address,
            "protection": protection,
            "shared": shared,
            "metadata": metadata,
        }
        self.content[name] = bytearray()
        self.holes[name] = []
        self._last = name

    def write(self, data: object) -> None:
        self.content[self._last] += memoryview(data)  # type: ignore[arg-type]

    write_stable = write

    def fill(self, fetch: Callable[[memoryview], int], nbytes: int) -> int:
        done = 0
        while done < nbytes:
            piece = bytearray(min(nbytes - done, 1 << 20))
            got = fetch(memoryview(piece))
            self.write(piece[:got])
            done += got
            if got < len(piece):
                break
        return done

    def zero(self, nbytes: int) -> None:
        self.content[self._last] += bytes(nbytes)

    def hole(self, nbytes: int) -> None:
        start = len(self.content[self._last])
        self.holes[self._last].append((start, start + nbytes))
        self.content[self._last] += bytes(nbytes)


def record(source: ProcessMemory) -> Recorder:
    """What a source writes."""
    recorder = Recorder()
    source.write_to(recorder)
    return recorder
