"""A peer: another process with lazily restored memory, for the tests of serving.

    with Peer(pages=100) as peer:  # its userfaultfd is peer.uffd, its memory at peer.address
        peer.ask("memory[4096:8192]")  # bytes, or whatever the expression gives there

Needs nothing but Python, and is its own child's program.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import pickle
import platform
import socket
import struct
import subprocess
import sys
from typing import Any, Self

PAGE = 4096
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_NEW, _API, _REGISTER = 0xAA00, 0xC018AA3F, 0xC020AA00
EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP, THREAD_ID = 1 << 2, 1 << 3, 1 << 6, 1 << 8
FEATURES = EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP | THREAD_ID


def open_userfaultfd(features: int = FEATURES) -> int:
    """A userfaultfd that was initialised; OSError where there is none to be had."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        with open("/dev/userfaultfd", "rb", buffering=0) as device:
            fd = fcntl.ioctl(device, _NEW, flags)
    except OSError:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(_SYSCALL[platform.machine()], flags)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd") from None
    fcntl.ioctl(fd, _API, struct.pack("QQQ", 0xAA, features, 0))
    return fd


def register(fd: int, address: int, length: int) -> None:
    """Have missing pages of a range told to a userfaultfd."""
    fcntl.ioctl(fd, _REGISTER, struct.pack("QQQQ", address, length, 1, 0))


def send(connection: socket.socket, value: object, fd: int | None = None) -> None:
    """Send anything that pickle takes, and a descriptor."""
    data = pickle.dumps(value)
    control = []
    if fd is not None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    connection.sendmsg([struct.pack("<I", len(data)) + data], control)


def receive(connection: socket.socket) -> tuple[Any, int | None]:
    """What was sent, and the descriptor; EOFError where the other side is gone."""
    data, fds, _, _ = socket.recv_fds(connection, 4, 1)
    if len(data) < 4:
        raise EOFError
    wanted = struct.unpack("<I", data)[0]
    parts = b""
    while len(parts) < wanted:
        part = connection.recv(wanted - len(parts))
        if not part:
            raise EOFError
        parts += part
    return pickle.loads(parts), fds[0] if fds else None


class Peer:
    """A child process, that obeys; killed at the end."""

    def __init__(self, pages: int, features: int = FEATURES) -> None:
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), str(pages), str(features)],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.pages = pages
        self.pid = self.process.pid
        self.address, uffd = receive(self.socket)
        if isinstance(self.address, str):
            raise OSError(self.address)
        assert uffd is not None
        self.uffd = uffd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def order(self, expression: str) -> None:
        """Have it begin to evaluate something that may use `memory`, `address`, `mmap`, `os`."""
        send(self.socket, expression)

    def result(self, timeout: float | None = 30) -> Any:
        """What came out; an exception there is raised here. TimeoutError."""
        self.socket.settimeout(timeout)
        value, _ = receive(self.socket)
        if isinstance(value, Exception):
            raise value
        return value

    def ask(self, expression: str, timeout: float | None = 30) -> Any:
        """Both."""
        self.order(expression)
        return self.result(timeout)

    def close(self) -> None:
        """Kill it, and forget its descriptors."""
        self.process.kill()
        self.process.wait()
        self.socket.close()
        if self.uffd >= 0:
            os.close(self.uffd)
        self.uffd = -1


def _obey(connection: socket.socket, pages: int, features: int) -> None:
    try:
        uffd = open_userfaultfd(features)
    except OSError as error:
        send(connection, str(error))
        return
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    register(uffd, address, pages * PAGE)
    send(connection, address, uffd)
    names = {"memory": memory, "address": address, "mmap": mmap, "os": os}
    while True:
        try:
            expression, _ = receive(connection)
        except EOFError:
            return
        try:
            value = eval(expression, names)
        except Exception as error:  # whatever it is, it is the test's
            value = error
        send(connection, value)


if __name__ == "__main__":
    _obey(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
