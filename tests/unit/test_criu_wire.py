"""What CRIU sends, as the service reads it: seen before it is taken, and with who has sent it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_support import eventually

from lazyrestore._serve import criu_wire as wire
from lazyrestore._serve.handshake import Refusal

LAST = struct.pack("<I", 0x52535446)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """CRIU's end of a connection, and the service's."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        wire.want_senders(listening)
        with socket.socket(socket.AF_UNIX) as criu:
            criu.connect(str(tmp_path / "s"))
            service, _ = listening.accept()
            with service:
                wire.look_from_the_start(service)
                yield criu, service


def number(value: int) -> bytes:
    return struct.pack("<i", value)


def test_a_restore(ends):
    """Tasks, a zombie, the last word, and the end"""
    criu, service = ends
    assert wire.peek(service) is None
    criu.send(number(4711))
    assert wire.peek(service) is None  # its descriptor follows
    socket.send_fds(criu, [b"\0"], [criu.fileno()])
    criu.send(number(-12))
    criu.send(LAST)
    criu.close()
    first, again = wire.peek(service), wire.peek(service)
    assert isinstance(first, wire.Task)
    assert isinstance(again, wire.Task)
    assert (first.number, first.pid, first.uid) == (4711, os.getpid(), os.geteuid())
    assert os.fstat(first.uffd).st_ino == os.fstat(again.uffd).st_ino
    assert first.uffd != again.uffd
    again.close()
    wire.take(service, first)
    assert os.fstat(first.uffd)  # still open
    first.close()
    for expected in (wire.Zombie(12), wire.LastWord(), wire.HangUp(), wire.HangUp()):
        assert wire.peek(service) == expected
        wire.take(service, expected)


def test_the_sender_is_who_sent(ends):
    """Not who connected: each task sends for itself; it may have ended since"""
    criu, service = ends
    pid = os.fork()
    if pid == 0:
        criu.send(number(7))
        socket.send_fds(criu, [b"\0"], [0])
        os._exit(0)
    os.waitpid(pid, 0)
    task = wire.peek(service)
    assert isinstance(task, wire.Task)
    assert task.pid == pid
    task.close()


@pytest.mark.parametrize(
    ("data", "fds", "code"),
    [(number(0), 0, "garbage"), (number(7) + b"\0", 0, "no-fd"), (number(7) + b"\0", 2, "no-fd")],
)
def test_refused(ends, data, fds, code):
    criu, service = ends
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(criu, [data], [0] * fds)
    with pytest.raises(Refusal) as caught:
        wire.peek(service)
    assert caught.value.code == code
    eventually("they are closed", lambda: len(os.listdir("/proc/self/fd")) == before)


def test_cut_short(ends):
    """The end of the connection in the middle of a message is the end"""
    criu, service = ends
    criu.send(number(7)[:3])
    assert wire.peek(service) is None
    criu.close()
    assert wire.peek(service) == wire.HangUp()


def test_somebody_else(ends):
    """Who asks for the status is no CRIU: no process has such a number"""
    criu, service = ends
    assert wire.is_other(service) is None
    criu.send(b'{"')
    assert wire.is_other(service) is None
    criu.send(b'type":"status"}')
    assert wire.is_other(service) is True
    assert service.recv(100) == b'{"type":"status"}'
    criu.send(LAST)
    assert wire.is_other(service) is False
