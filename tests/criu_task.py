"""A task as `criu restore --lazy-pages` leaves it: memory that comes when it is touched, and a
userfaultfd for it that only others have. It reads and forks until its standard input ends.

    criu_task.py SOCKET PID ADDRESS PAGES [FORKS]

With FORKS it forks so often, each child ends at once, and then it says "forked".
Each page PAGE of the memory is `tests/criu_folders.page(f"PID-PAGE-")`. "ready" is written when it
has been restored; a byte that is wrong ends it with "WRONG"; at the end "done READS FORKS KILLED":
the last is how many children a signal has ended.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import select
import socket
import struct
import sys
import time

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
PAGE = 4096
FORK, REMAP, REMOVE, UNMAP = 1 << 1, 1 << 2, 1 << 3, 1 << 6
CHILDREN_MAX = 4

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def make_memory(address: int, pages: int) -> int:
    """Empty memory at an address, and its userfaultfd."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
    found = libc.mmap(address, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert found == address, hex(found)
    fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    assert fd >= 0, ctypes.get_errno()
    api = bytearray(struct.pack("QQQ", 0xAA, FORK | REMAP | REMOVE | UNMAP, 0))
    fcntl.ioctl(fd, 0xC018AA3F, api)
    fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("QQQQ", address, pages * PAGE, 1, 0)))
    return fd


class Reader:
    """Reads, and knows what is right."""

    def __init__(self, pid: int, address: int, pages: int) -> None:
        self.pid, self.address, self.pages = pid, address, pages
        self.count = 0

    def read_one(self) -> None:
        """Some bytes anywhere."""
        number = random.randrange(self.pages)
        seed = f"{self.pid}-{number}-".encode()
        at = random.randrange(PAGE - 64)
        wanted = (seed * (at // len(seed) + 64))[at : at + 64]
        found = ctypes.string_at(self.address + number * PAGE + at, 64)
        if found != wanted:
            os.write(1, f"WRONG page {number}: {found!r}\n".encode())
            os._exit(3)
        self.count += 1


def child(reader: Reader) -> None:
    """What a child does, and how it ends."""
    random.seed()
    for _ in range(random.randrange(20)):
        reader.read_one()
        if random.random() < 0.1:
            time.sleep(random.random() * 0.02)
    os._exit(0)


def run(reader: Reader) -> tuple[int, int]:
    """Read and fork until nobody wants it any more; how often it forked, and lost a child."""
    forks = killed = 0
    children: set[int] = set()
    is_over = False
    while children or not is_over:
        is_over = is_over or bool(select.select([0], [], [], 0)[0])
        for _ in range(random.randrange(4)):
            reader.read_one()
        time.sleep(0.001)
        if len(children) < CHILDREN_MAX and not is_over:
            pid = os.fork()
            if pid == 0:
                child(reader)
            children.add(pid)
            forks += 1
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.discard(pid)
                killed += os.WIFSIGNALED(status)
    return forks, killed


def beget(reader: Reader, count: int) -> None:
    """Have so many children, none of which does anything."""
    for _ in range(count):
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        reader.read_one()
    os.write(1, b"forked\n")


def main() -> None:
    """Be restored, and then run."""
    path, pid, address, pages, *forks_first = sys.argv[1], *map(int, sys.argv[2:])
    fd = make_memory(address, pages)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(struct.pack("<i", pid))
        socket.send_fds(sock, [b"\0"], [fd])
        os.close(fd)
        # It is restored by somebody who lives until it is: as CRIU is.
        sock.sendall(struct.pack("<I", 0x52535446))
    os.write(1, b"ready\n")
    reader = Reader(pid, address, pages)
    for count in forks_first:
        beget(reader, count)
    forks, killed = run(reader)
    os.write(1, f"done {reader.count} {forks} {killed}\n".encode())


main()
