"""A restore by CRIU that goes wrong: no task of it is left with memory that reads as zeros."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from peer_support import open_userfaultfd
from process_support import in_child
from serve_support import LIMIT_S
from warden_support import TASK, Daemon, TaskImage

pytestmark = pytest.mark.uffd

FEATURES = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6  # fork, remap, remove, unmap


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> TaskImage:
    return TaskImage(tmp_path_factory.mktemp("image"))


def task(sock: socket.socket, number: int, get: Callable[[], int]) -> int:
    """A process that sends itself, and sleeps; its number."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        sock.sendall(struct.pack("<i", number))
        socket.send_fds(sock, [b"\0"], [get()])
        sock.close()
        signal.pause()
        os._exit(1)
    return pid


def how_it_ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def connect(daemon: Daemon) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(daemon.socket_path))
    return sock


@in_child()
def test_lost_in_the_middle(image: TaskImage, tmp_path: Path) -> None:
    """CRIU is killed before its last word: what it had made is ended, and so is the daemon"""
    with Daemon(image, tmp_path / "work") as daemon:
        with connect(daemon) as sock:
            pid = task(sock, TASK, lambda: open_userfaultfd(FEATURES))
            daemon.wait("serving", task=TASK, pid=pid)
        assert daemon.wait("refused")["code"] == "lost"
        assert how_it_ended(pid) == -signal.SIGKILL
        assert daemon.process.wait(LIMIT_S) == 0


@in_child()
@pytest.mark.parametrize(
    ("number", "get", "code"),
    [
        (TASK + 1, lambda: open_userfaultfd(FEATURES), "ranges"),
        (TASK, lambda: os.memfd_create("no userfaultfd"), "no-fd"),
    ],
)
def test_what_cannot_be(
    image: TaskImage, tmp_path: Path, number: int, get: Callable[[], int], code: str
) -> None:
    """A task that the image does not have, or without memory to serve, is not left alone"""
    with Daemon(image, tmp_path / "work", "--keep") as daemon:
        with connect(daemon) as sock:
            pid = task(sock, number, get)
            assert daemon.wait("refused")["code"] == code
            if code == "ranges":
                assert how_it_ended(pid) == -signal.SIGKILL
            else:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        with connect(daemon):
            pass  # somebody looks whether it is there
        assert daemon.stop() == 0
        assert len(daemon.find("refused")) == 1
