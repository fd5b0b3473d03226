"""`lr_detach` at awkward moments: it unmaps, and whoever may install pages must have read so.

Else a page that was on its way lands in what lies at that address next. The service here is a
thread of this process that does what it is told.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import select
import socket
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from process_support import in_child
from restore_support import write_image
from serve_support import LIMIT_S, eventually

import lazyrestore
from lazyrestore._attach import AttachedCore
from lazyrestore._native import ffi, lib
from lazyrestore._serve.attaching import (
    HELLO_BYTES,
    SERVED,
    build_metadata,
    build_table,
    parse_hello,
)

pytestmark = pytest.mark.uffd

PAGES = 16
_MESSAGE_BYTES = 32


class Slow:
    """A service that takes each step when it is told to, and reads no message by itself."""

    def __init__(self, path: Path, image: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        with lazyrestore.open(image) as opened:
            self._table, self._metadata = build_table(opened), build_metadata(opened)
        self.connection = self._listener
        self.uffd = -1
        self._state = os.memfd_create("state")

    def be_asked(self) -> None:
        """Until a program has handed its userfaultfd over."""
        self.connection, _ = self._listener.accept()
        hello = parse_hello(self.connection.recv(HELLO_BYTES, socket.MSG_WAITALL))
        self.connection.sendall(self._table + (self._metadata if hello.wants_metadata else b""))
        _, fds, _, _ = socket.recv_fds(self.connection, 4096, 2)
        self.uffd, *others = fds
        for other in others:
            os.close(other)

    def say_served(self) -> None:
        rights = array.array("i", [self._state])
        self.connection.sendmsg([SERVED], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def has_message(self) -> bool:
        """Whether somebody waits until it is read that he gave memory up."""
        return bool(select.select([self.uffd], [], [], 0)[0])

    def is_heard(self) -> bool:
        """Whether all that was said was taken, or never will be."""
        left = array.array("i", [0])
        fcntl.ioctl(self.connection, termios.TIOCOUTQ, left)
        return left[0] == 0 or self.is_left(0)

    def is_left(self, within_s: float) -> bool:
        """Whether the program closes its connection."""
        return bool(select.select([self.connection], [], [], within_s)[0])

    def read_messages(self, until: threading.Thread) -> None:
        while until.is_alive():
            if self.has_message():
                os.read(self.uffd, 16 * _MESSAGE_BYTES)

    def close(self) -> None:
        self.connection.close()
        os.close(self.uffd)


class Program:
    """What attaches; its memory is its own."""

    def __init__(self, path: Path, service: Slow) -> None:
        asked = threading.Thread(target=service.be_asked)
        asked.start()
        self._core = AttachedCore(str(path), LIMIT_S, "auto")
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=kind)
        self._core.add(0, np.frombuffer(self._memory, dtype="u1").ctypes.data)
        begun = threading.Thread(target=self._core.start)
        begun.start()
        asked.join()
        service.say_served()
        begun.join()

    def state(self) -> int:
        return int(self._core.info().state)

    def detach(self) -> threading.Thread:
        handle, self._core._handle = self._core._handle, ffi.NULL
        thread = threading.Thread(target=lib.lr_detach, args=(handle,))
        thread.start()
        return thread


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state.lzr"
    write_image(path, {"memory": "d" * PAGES}, cluster_size=16384)
    return path


@in_child(60)
def test_a_service_that_speaks_meanwhile_is_waited_for(image: Path, tmp_path: Path) -> None:
    """One that took over says again that it serves: it does, and may be installing."""
    service = Slow(tmp_path / "s", image)
    program = Program(tmp_path / "s", service)
    ending = program.detach()
    eventually("it unmaps", service.has_message)
    service.say_served()
    eventually("it hears", service.is_heard)
    assert not service.is_left(0)
    assert service.has_message()
    service.read_messages(until=ending)
    assert service.is_left(LIMIT_S)


@in_child(60)
def test_a_service_that_just_got_the_memory_is_waited_for(image: Path, tmp_path: Path) -> None:
    """It has not said yet that it serves, but may have begun."""
    service = Slow(tmp_path / "s", image)
    program = Program(tmp_path / "s", service)
    service.close()
    service.be_asked()
    assert program.state() == lib.LR_ATTACHMENT_RESUMING
    ending = program.detach()
    eventually("it unmaps", service.has_message)
    assert not service.is_left(0.5)
    assert service.has_message()
    service.say_served()
    service.read_messages(until=ending)
    assert service.is_left(LIMIT_S)
