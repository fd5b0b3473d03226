"""One peer of a service in a fresh process: `python -m benchmarks.served TASK '{"argument": ...}'`.

It attaches to the service's socket, or hands its memory over as Firecracker does, prints one JSON
object when it is ready, does the rest when it reads a line, and prints another.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import gc
import json
import mmap
import os
import platform
import random
import signal
import socket as sockets
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from lazyrestore._core import touch
from lazyrestore._native import ffi, lib, strerror

from .child import PAGE, MissingError, distribution, now

_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_NEW, _API, _REGISTER = 0xAA00, 0xC018AA3F, 0xC020AA00
_NORESERVE = 0x4000


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def wait_for_order() -> None:
    """From here on nothing but what is measured."""
    gc.collect()
    gc.disable()
    say(ready=os.getpid())
    if not sys.stdin.readline():
        raise SystemExit(1)


# ---- Two ways to be a peer -----------------------------------------------------------------------


class Attached:
    """The image's first region, by lr_attach.

    Attributes:
        address, length: of its memory.
    """

    def __init__(self, path: str) -> None:
        self._handle = ffi.new("lr_attachment **")
        code = lib.lr_attach(path.encode(), ffi.NULL, self._handle, ffi.NULL)
        if code:
            reason = ffi.string(lib.lr_attach_get_refusal(ffi.NULL)).decode()
            raise MissingError(f"lr_attach: {strerror(code)} {reason}")
        info = ffi.new("struct lr_region_info *")
        lib.lr_attachment_get_region(self._handle[0], 0, info)
        self.length = int(info.length)
        self.address = int(ffi.cast("uintptr_t", lib.lr_attachment_get_address(self._handle[0], 0)))


class Monitor:
    """A guest's memory, which is handed over as Firecracker 1.12 does.

    Attributes:
        address, length: of its memory.
    """

    def __init__(self, length: int) -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        libc = ctypes.CDLL(None, use_errno=True)
        self._uffd = libc.syscall(_USERFAULTFD[platform.machine()], flags)
        if self._uffd < 0:
            raise MissingError(f"no userfaultfd: {os.strerror(ctypes.get_errno())}")
        fcntl.ioctl(self._uffd, _API, struct.pack("QQQ", 0xAA, 0, 0))
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        self._memory = mmap.mmap(-1, length, flags=kind)
        self.length = length
        self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self._memory)))
        fcntl.ioctl(self._uffd, _REGISTER, struct.pack("QQQQ", self.address, length, 1, 0))
        place = {"base_host_virt_addr": self.address, "size": length, "offset": 0}
        self._message = json.dumps([{**place, "page_size": PAGE, "page_size_kib": PAGE}]).encode()
        self._socket = sockets.socket(sockets.AF_UNIX)

    def connect(self, path: str) -> None:
        self._socket.connect(path)
        rights = array.array("i", [self._uffd])
        self._socket.sendmsg([self._message], [(sockets.SOL_SOCKET, sockets.SCM_RIGHTS, rights)])


def wait_for_page(address: int) -> float:
    """Touch a byte, whether its page is there or not; microseconds."""
    begin = now()
    lib.lr_touch(ffi.cast("void *", address), PAGE, PAGE, 0, 0, 0, 1, ffi.NULL)
    return (now() - begin) / 1000


# ---- Tasks ---------------------------------------------------------------------------------------


def faults(path: str, pages: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Random touches, each timed by itself; when they began and ended, in ns."""
    peer = Attached(path)
    waited = array.array("I")
    yield {}
    begin = now()
    found = touch(
        peer.address, peer.length, order="random", first=0, count=pages, seed=seed, room=waited
    )
    end = now()
    if found < pages:
        raise RuntimeError(f"{pages - found} pages were not served")
    yield {**distribution(waited), "begin": begin, "end": end}


def first_fault(path: str, length: int) -> Iterator[dict[str, Any]]:
    """From connecting to the first byte of a page somewhere in the guest's memory."""
    peer = Monitor(length)
    address = peer.address + random.Random(length).randrange(length // PAGE) * PAGE
    wait_for_page(int(ffi.cast("uintptr_t", ffi.new("char[]", 2 * PAGE))))  # warmed
    yield {}
    begin = now()
    peer.connect(path)
    wait_for_page(address)
    yield {"us": (now() - begin) / 1000}


def takeover(path: str, pid: int, pages: int = 200) -> Iterator[dict[str, Any]]:
    """Kill the service, and touch a page that is not there yet."""
    peer = Attached(path)
    chance = random.Random(pid)
    numbers = chance.sample(range(peer.length // PAGE), pages + 64)
    for number in numbers[64:]:
        wait_for_page(peer.address + number * PAGE)
    yield {}
    begin = now()
    os.kill(pid, signal.SIGKILL)
    # Some are not there; of those one waits until somebody serves again.
    waits = [(wait_for_page(peer.address + number * PAGE), now()) for number in numbers[:64]]
    longest_us, end = max(waits)
    if longest_us < 1000:
        raise RuntimeError("the service was still there")
    yield {"us": (end - begin) / 1000}


def idle(path: str, pages: int) -> Iterator[dict[str, Any]]:
    """Touch some pages, then nothing more."""
    peer = Attached(path)
    for number in range(pages):
        wait_for_page(peer.address + number * (peer.length // pages) // PAGE * PAGE)
    yield {}
    yield {}


TASKS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    task.__name__: task for task in (faults, first_fault, takeover, idle)
}


def main() -> None:
    task = TASKS[sys.argv[1]](**json.loads(sys.argv[2]))
    try:
        next(task)
        wait_for_order()
        say(**next(task))
    except MissingError as missing:
        say(missing=str(missing))


if __name__ == "__main__":
    main()
