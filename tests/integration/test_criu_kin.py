"""Which process a forked child is: nobody else is taken for it, and ended in its place."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from fcntl import ioctl

import pytest
from process_support import in_child
from warden_support import ADDRESS, PAGES, TASK, TaskImage

from lazyrestore._open import Image
from lazyrestore._serve.handshake import Range
from lazyrestore._serve.images import Plan
from lazyrestore._serve.kin import find_process
from lazyrestore._serve.peer import Peer, PeerFds

pytestmark = pytest.mark.uffd

PAGE = mmap.PAGESIZE
BYTES = PAGES * PAGE
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def _map() -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
    assert _libc.mmap(ADDRESS, BYTES, 3, flags, -1, 0) == ADDRESS


@contextlib.contextmanager
def _other() -> Iterator[int]:
    """A process to which pages come, time and again, where it will be looked first."""
    pid = os.fork()
    if pid == 0:
        _map()
        step = PAGES // 256 * PAGE
        while True:
            for number in range(32):
                ctypes.memset(ADDRESS + number * step, 1, 1)
            _libc.madvise(ctypes.c_void_p(ADDRESS), ctypes.c_size_t(32 * step), 4)  # DONTNEED
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def _child() -> Iterator[tuple[int, int]]:
    """One that touches nothing; and its userfaultfd."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _map()
        fd = _libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        ioctl(fd, UFFDIO_API, bytearray(struct.pack("QQQ", 0xAA, EVENTS, 0)))
        ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("QQQQ", ADDRESS, BYTES, 1, 0)))
        socket.send_fds(there, [b"\0"], [fd])
        os.close(fd)
        while True:
            signal.pause()
    try:
        _, (uffd,), _, _ = socket.recv_fds(here, 1, 1)
        yield pid, uffd
    finally:
        here.close()
        there.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> TaskImage:
    return TaskImage(tmp_path_factory.mktemp("image"))


def _peer(image: TaskImage, uffd: int) -> Peer:
    peer = Peer(
        id=1,
        pid=0,
        uid=0,
        path="",
        protocol="criu",
        image=Image(str(image.path)),
        ranges=(Range(ADDRESS, BYTES, 0, 0),),
        page_size=PAGE,
        since=time.time(),
        fds=PeerFds(uffd, None, None, -1),
        restore=1,
        task=TASK,
    )
    peer.prepare()
    return peer


@in_child(120)
def test_one_that_is_not_served(image: TaskImage) -> None:
    """Nothing can be found out of it, and so nobody is ended in its place"""
    with _other() as other, _child() as (_, uffd):
        peer = _peer(image, uffd)
        for _ in range(6):
            assert not peer.end_process(0.01)
        assert os.waitpid(other, os.WNOHANG) == (0, 0), "another process was ended"
        assert (peer.pid, peer.fds.pidfd) == (0, None)


@in_child(120)
def test_one_that_has_ended(image: TaskImage) -> None:
    """While it was served"""
    with _other() as other:
        with _child() as (child, uffd):
            peer = _peer(image, uffd)
            peer.start(Plan(), "hold", None)
            os.kill(child, signal.SIGKILL)
        assert find_process(peer) is None
        peer.end()
        assert os.waitpid(other, os.WNOHANG) == (0, 0), "another process was ended"
        peer.close()


@in_child(120)
def test_one_among_others(image: TaskImage) -> None:
    """To which pages come too: it is found, or nobody"""
    with _other() as first, _child() as (child, uffd), _other():
        peer = _peer(image, uffd)
        peer.start(Plan(), "hold", None)
        try:
            for _ in range(3):
                found = find_process(peer, {first})
                if found is not None:
                    os.close(found[1])
                    assert found[0] == child
        finally:
            peer.end_serving()


@in_child(120)
def test_one_alone(image: TaskImage) -> None:
    with _child() as (child, uffd):
        peer = _peer(image, uffd)
        peer.start(Plan(), "hold", None)
        peer.others = lambda: {os.getpid()}
        assert peer.identify()
        assert peer.pid == child
        assert not peer.identify()
        peer.end()
        peer.close()
