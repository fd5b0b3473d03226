"""Unix sockets: who is at the other side, what came with its bytes, and how they are closed."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import termios
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from .handshake import Refusal

PIECE_BYTES = 1 << 16
_FD_BYTES = array.array("i").itemsize
# All that can come with a message: see `close_foreign`.
_ROOM = socket.CMSG_SPACE(253 * _FD_BYTES)
_CREDENTIALS = struct.Struct("3i")
_UFFD = "anon_inode:[userfaultfd]"

_T = TypeVar("_T")


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of the other side, as they were when it connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def choose_uffd(fds: Sequence[int]) -> int:
    """Which of several descriptors is the userfaultfd: its index.

    Raises:
        Refusal: none is, or more than one.
    """
    kinds = [kind_of(fd) for fd in fds]
    if not kinds:
        raise Refusal("no-fd", "no userfaultfd came with its handshake")
    if kinds.count(_UFFD) > 1:
        raise Refusal("descriptors", "it sent more than one userfaultfd")
    if _UFFD not in kinds:
        raise Refusal("no-fd", f"it sent no userfaultfd, but {', '.join(kinds)[:120]}")
    return kinds.index(_UFFD)


def kind_of(fd: int) -> str:
    """What a descriptor is, as the kernel names it."""
    return os.readlink(f"/proc/self/fd/{fd}")


def is_userfaultfd(fd: int) -> bool:
    """Whether a descriptor is one."""
    return kind_of(fd) == _UFFD


def receive_all(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int], int]:
    """Bytes, with all descriptors that came with them, and the flags of the message.

    Raises:
        OSError: nothing has come, or the connection broke.
    """
    data, messages, got, _ = sock.recvmsg(PIECE_BYTES, _ROOM, flags | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // _FD_BYTES * _FD_BYTES])
    return data, list(fds), got


def close_socket(sock: socket.socket) -> None:
    """End a connection of which the keeper may have a copy."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    try:
        is_empty = fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4) == b"\0" * 4
    except OSError:
        is_empty = True
    if is_empty:
        sock.close()
    else:
        _in_background(_empty_and_close, sock)


def _empty_and_close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(PIECE_BYTES):  # what is left there would make the end a reset
            continue
    sock.close()


def close_foreign(fds: Sequence[int]) -> None:
    """Close descriptors that a peer sent: that takes as long as the peer likes (a socket that
    lingers, a file system of its own), and so nobody waits for it.
    """
    if fds:
        _in_background(_close_all, fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # it is closed all the same
            os.close(fd)


def _in_background(call: Callable[[_T], None], what: _T) -> None:
    try:
        threading.Thread(target=call, args=(what,), daemon=True).start()
    except RuntimeError:  # no more threads may be
        call(what)
