"""Fakes of virtual machine monitors: small processes with memory and userfaultfds of their own.

    with Monitor(pages=64) as monitor:
        monitor.restore(socket_path, "1.12")      # as that version of Firecracker does
        monitor.read(4096, 4096)                  # what its memory has: bytes

Needs nothing but Python, and is its own child's program. A child does what it is asked to, one
expression after another; it is killed at the end.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import itertools
import json
import mmap
import os
import pickle
import platform
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

PAGE = 4096
HUGE = 2 << 20
NOBODY = 65534
EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP = 1 << 2, 1 << 3, 1 << 6
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_NEW, _API, _REGISTER = 0xAA00, 0xC018AA3F, 0xC020AA00
_DONTNEED = 4
_HUGETLB = 0x40000

VERSIONS = ("1.0", "1.1", "1.10", "1.11", "1.12", "kib", "nydus", "e2b", "three", "long")
"""What `Monitor.restore` can be asked for: Firecracker's versions, and others alike.

1.0: no page size at all, the socket stays open. 1.1: the same, closed at once. 1.10: page_size_kib,
which has bytes, closed at once. 1.11: both fields, closed at once. 1.12: both, it stays open.
kib: page_size_kib that has KiB. nydus: its object. e2b: two descriptors. three: three of them, the
userfaultfd in the middle. long: keys that nobody knows, 40 KiB of them.
"""


class Monitor:
    """A process with memory that is to come from a service.

    Args:
        pages: of its memory, in order of offset in the memory file.
        regions: into how many mappings these are split; their order by address is another.
        features: of its userfaultfd: EVENT_REMOVE, as with a balloon.
        page_size: of its memory; 2 MiB: huge pages (hugetlb).
        uid: whom it becomes once it has its userfaultfd; None: nobody else.
    """

    def __init__(
        self,
        pages: int,
        *,
        regions: int = 1,
        features: int = 0,
        uid: int | None = None,
        page_size: int = PAGE,
    ) -> None:
        self.control, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.pid = self.process.pid
        self.pages = pages
        self.page_size = page_size
        self.spans: list[tuple[int, int, int]] = self.ask(
            f"prepare({pages}, {regions}, {features}, {uid}, {page_size})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self.control.close()

    def order(self, expression: str) -> None:
        """Have it begin to evaluate something."""
        self.control.sendall(_pack(expression))

    def result(self, timeout: float = 60) -> Any:
        """What came out; an exception there is raised here. TimeoutError."""
        self.control.settimeout(timeout)
        value = _receive(self.control)
        if isinstance(value, BaseException):
            raise value
        return value

    def ask(self, expression: str, timeout: float = 60) -> Any:
        """Both."""
        self.order(expression)
        return self.result(timeout)

    def message(self, version: str = "1.12", page_size: int = PAGE) -> bytes:
        """Its handshake."""
        regions = []
        for address, size, offset in self.spans:
            region: dict[str, object] = {
                "base_host_virt_addr": address,
                "size": size,
                "offset": offset,
            }
            if version not in ("1.0", "1.1", "kib", "1.10"):
                region["page_size"] = page_size
            if version not in ("1.0", "1.1"):
                region["page_size_kib"] = page_size >> 10 if version == "kib" else page_size
            if version == "long":
                region["comment"] = 'x[{\\"]}' * (5000 // len(self.spans))
            regions.append(region)
        if version == "nydus":
            return json.dumps({"type": 0, "regions": regions, "version": [1, 2]}).encode()
        return json.dumps(regions).encode()

    def restore(self, path: object, version: str = "1.12", *, pieces: bool = False) -> None:
        """Connect and hand over the userfaultfd, as that version does."""
        fds = {"e2b": "[uffd, spare]", "three": "[spare, uffd, spare]"}.get(version, "[uffd]")
        self.connect(path)
        self.send(self.message(version, self.page_size), fds, pieces=pieces)
        if version in ("1.1", "1.10", "1.11"):
            self.ask("hang_up()")

    def connect(self, path: object) -> None:
        self.ask(f"connect({str(path)!r})")

    def send(self, data: bytes, fds: str = "[uffd]", *, pieces: bool = False) -> None:
        """Send bytes, and descriptors with the first of them."""
        self.ask(f"send({data!r}, {fds}, {pieces})")

    def reply(self, timeout: float = 60) -> bytes:
        """All that the service says until it ends the connection."""
        return bytes(self.ask("reply()", timeout))

    def read(self, offset: int, length: int, timeout: float = 60) -> bytes:
        """What is at an offset of the memory file."""
        return bytes(self.ask(f"read({offset}, {length})", timeout))

    def read_all(self) -> bytes:
        """All of its memory."""
        return self.read(0, self.pages * PAGE)


def new_userfaultfd() -> int:
    """A userfaultfd that is not initialised; OSError where there is none to be had."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        with open("/dev/userfaultfd", "rb", buffering=0) as device:
            return fcntl.ioctl(device, _NEW, flags)
    except OSError:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(_SYSCALL[platform.machine()], flags)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd") from None
        return int(fd)


def open_userfaultfd(features: int = 0) -> int:
    """One that is."""
    fd = new_userfaultfd()
    fcntl.ioctl(fd, _API, struct.pack("QQQ", 0xAA, features, 0))
    return fd


class Child:
    """What the orders are evaluated in."""

    def __init__(self) -> None:
        self.maps: list[tuple[int, mmap.mmap]] = []  # offset in the memory file, memory
        self.uffd = -1
        self.connection = socket.socket(socket.AF_UNIX)
        self.held: list[socket.socket] = []
        self.spare = os.memfd_create("spare")

    def prepare(
        self, pages: int, regions: int, features: int, uid: int | None, page_size: int
    ) -> list[tuple[int, int, int]]:
        """Map and register; (address, size, offset) of each region."""
        self.uffd = open_userfaultfd(features)
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if page_size != PAGE:
            kind |= _HUGETLB
        spans = []
        bounds = [pages * number // regions * PAGE for number in range(regions + 1)]
        parts = list(itertools.pairwise(bounds))
        random.Random(regions).shuffle(parts)
        for start, end in parts:
            memory = mmap.mmap(-1, end - start, flags=kind)
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            fcntl.ioctl(self.uffd, _REGISTER, struct.pack("QQQQ", address, end - start, 1, 0))
            self.maps.append((start, memory))
            spans.append((address, end - start, start))
        if uid is not None:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        return spans

    def connect(self, path: str) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(path)

    def send(self, data: bytes, fds: Sequence[int], pieces: bool) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if not pieces:
            sent = self.connection.sendmsg([data], rights)
            if sent < len(data):
                self.connection.sendall(data[sent:])
            return
        for number in range(0, len(data), 7):
            piece = data[number : number + 7]
            self.connection.sendmsg([piece], rights if number == 0 else [])
            if number % 70 == 0:
                time.sleep(0.001)

    def connect_and_hold(self, path: str) -> None:
        """One more connection, of which nothing more is said."""
        self.held.append(socket.socket(socket.AF_UNIX))
        self.held[-1].connect(path)

    def drip(self, piece: bytes, seconds: float) -> None:
        """Send a piece again and again until that fails."""
        while True:
            self.connection.send(piece)
            time.sleep(seconds)

    def send_slowly(self, data: bytes, fds: Sequence[int], piece: int) -> None:
        """Send pieces as one does that waits by poll() until there is room in the socket."""
        self.connection.settimeout(60)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        for at in range(0, len(data), piece):
            self.connection.sendmsg([data[at : at + piece]], rights if at == 0 else [])

    def lingering(self) -> int:
        """A socket whose last close takes until this process ends, nearly."""
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            sock = socket.socket()
            sock.connect(listening.getsockname())
            self.held.append(listening.accept()[0])  # and never read
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        return sock.detach()

    def send_lingering(self, data: bytes, others: Sequence[int] = ()) -> None:
        """Send such a one, beside others, and keep none."""
        sock = self.lingering()
        self.send(data, [sock, *others], False)
        # The last close is ours, and lasts, where the other side was quicker.
        threading.Thread(target=os.close, args=(sock,), daemon=True).start()

    def hang_up(self) -> None:
        self.connection.close()

    def is_cut(self) -> bool:
        """Whether the other side has ended the connection."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def reply(self) -> bytes:
        parts = []
        try:
            while part := self.connection.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)

    def read(self, offset: int, length: int) -> bytes:
        data = b""
        for start, memory in sorted(self.maps, key=lambda each: each[0]):
            low, high = max(offset, start), min(offset + length, start + len(memory))
            if low < high:
                data += memory[low - start : high - start]
        return data

    def read_all(self) -> bytes:
        return self.read(0, 1 << 62)

    def missing(self) -> list[int]:
        """Which pages are not there, in order of offset: told without touching them."""
        found = []
        with open("/proc/self/pagemap", "rb") as pagemap:
            for start, memory in self.maps:
                address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
                pagemap.seek(address // PAGE * 8)
                entries = array.array("Q", pagemap.read(len(memory) // PAGE * 8))
                found += [start // PAGE + n for n, entry in enumerate(entries) if not entry >> 62]
        return sorted(found)

    def start_stealing(self) -> None:
        """Read the messages that are the service's, as they come."""

        def steal() -> None:
            while True:
                os.set_blocking(self.uffd, True)
                with contextlib.suppress(BlockingIOError):  # the service has set it back
                    os.read(self.uffd, 32)

        threading.Thread(target=steal, daemon=True).start()

    def discard(self, offset: int, length: int) -> None:
        """Give memory up, as a balloon does."""
        for start, memory in self.maps:
            low, high = max(offset, start), min(offset + length, start + len(memory))
            if low < high:
                memory.madvise(_DONTNEED, low - start, high - low)


def _pack(value: object) -> bytes:
    data = pickle.dumps(value)
    return struct.pack("<I", len(data)) + data


def _receive(connection: socket.socket) -> Any:
    wanted = struct.unpack("<I", _receive_exactly(connection, 4))[0]
    return pickle.loads(_receive_exactly(connection, wanted))


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError("the other side is gone")
        data += part
    return data


def _obey(control: socket.socket) -> None:
    child = Child()
    while True:
        try:
            expression = _receive(control)
        except (EOFError, ConnectionError):
            return
        own = {name: getattr(child, name) for name in dir(child) if not name.startswith("_")}
        names = {**globals(), **own}
        try:
            value = eval(expression, names)
        except Exception as error:  # whatever it is, it is the test's
            value = error
        control.sendall(_pack(value))


if __name__ == "__main__":
    _obey(socket.socket(fileno=int(sys.argv[1])))
