"""What `criu restore --lazy-pages` sends: one task after another, and one last word.

     int32 PID, then one byte with the task's userfaultfd      a task; PID as in the image
     int32 -PID                                                a zombie, which has no memory
     uint32 0x52535446                                         all tasks are there, and about to run

All of one restore comes over one connection, little-endian, and nothing is answered. Each task
sends its own part, so the kernel tells who it is, also where it lives in another pid namespace and
its number is that of a task of another restore.

A message is looked at (`peek`) before it is taken out of the socket (`take`): a userfaultfd is sent
once, and must not be lost with a service that is killed in the middle.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from .handshake import Refusal, show
from .sockets import close_foreign

LAST_WORD = 0x52535446
PID_MAX = 1 << 22
SOCKET_NAME = "lazy-pages.socket"
_SO_PASSPIDFD = 76  # Linux 6.5
_SCM_PIDFD = 4
_SO_PEEK_OFF = 42
_NUMBER = struct.Struct("<i")
_SENDER = struct.Struct("3i")
_FD_BYTES = array.array("i").itemsize
_ROOM = socket.CMSG_SPACE(253 * _FD_BYTES) + 2 * socket.CMSG_SPACE(_SENDER.size)

Ancillary = Iterable[tuple[int, int, bytes]]


@dataclass(frozen=True)
class Task:
    """A task, and its userfaultfd.

    Attributes:
        number: its process number in the image.
        uffd: its userfaultfd; whoever has this closes it.
        pid, uid: of who sent it, the task itself; pid 0: not visible from here.
        pidfd: the same; None: the kernel has no way to tell, or it has ended.
    """

    number: int
    uffd: int
    pid: int
    uid: int
    pidfd: int | None

    def close(self) -> None:
        """Close both descriptors."""
        for fd in (self.uffd, self.pidfd):
            if fd is not None and fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)


@dataclass(frozen=True)
class Zombie:
    """A task that has ended already, and waits for its parent to notice."""

    number: int


@dataclass(frozen=True)
class LastWord:
    """All tasks are there."""


@dataclass(frozen=True)
class HangUp:
    """The other side has closed the connection."""


Message = Task | Zombie | LastWord | HangUp


def want_senders(sock: socket.socket) -> None:
    """Have the kernel say who sends; of a socket that listens: at all its connections."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with contextlib.suppress(OSError):  # before Linux 6.5
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)


def is_other(sock: socket.socket) -> bool | None:
    """Whether somebody else than CRIU has connected: no process has such a number; None: nothing
    has come yet.

    Raises:
        OSError: the connection broke.
    """
    try:
        data = sock.recv(_NUMBER.size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return None
    if 0 < len(data) < _NUMBER.size and not _has_hung_up(sock):
        return None
    number = int.from_bytes(data, "little", signed=True)
    return len(data) == _NUMBER.size and number > PID_MAX and number != LAST_WORD


def want_senders_no_more(sock: socket.socket) -> None:
    """Undo `want_senders` and `look_from_the_start`, for another protocol."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)


def look_from_the_start(sock: socket.socket) -> None:
    """Have each `peek` begin with what has not been taken."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)


def peek(sock: socket.socket) -> Message | None:
    """The next message, which stays in the socket; None: it has not come whole yet.

    Raises:
        Refusal: what came is none.
        OSError: the connection broke.
    """
    is_over = _has_hung_up(sock)  # before: whatever was sent first is still seen
    length = _NUMBER.size + 1
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, got, _ = sock.recvmsg(length, _ROOM, flags)
    except (BlockingIOError, InterruptedError):
        return HangUp() if is_over else None
    except ConnectionResetError:
        return HangUp()
    sender = _Sender(ancillary)
    try:
        if not data:
            return HangUp()
        message = _parse(data, sender, got)
    finally:
        sender.close()
    if message is None and is_over:
        return HangUp()
    return message


def take(sock: socket.socket, message: Message) -> None:
    """Take what was seen by `peek` out of the socket. Descriptors stay those that it gave."""
    length = _NUMBER.size + isinstance(message, Task)
    if not isinstance(message, HangUp):
        sock.recv(length, socket.MSG_DONTWAIT)  # without room for them, no others are made


def _has_hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


class _Sender:
    """What the kernel tells of a message: who sent it, and what descriptors came with it."""

    def __init__(self, ancillary: Ancillary) -> None:
        self.pid, self.uid = 0, -1
        self.pidfd: int | None = None
        self.fds: list[int] = []
        for level, kind, content in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) // _FD_BYTES * _FD_BYTES])
                self.fds += fds
            elif kind == socket.SCM_CREDENTIALS:
                self.pid, self.uid, _ = _SENDER.unpack(content[: _SENDER.size])
            elif kind == _SCM_PIDFD:
                (pidfd,) = array.array("i", content[:_FD_BYTES])
                self.pidfd = pidfd if pidfd >= 0 else None

    def task(self, number: int) -> Task:
        """What it sent; its descriptors are the task's from now on."""
        (uffd,), self.fds = self.fds, []
        pidfd, self.pidfd = self.pidfd, None
        return Task(number, uffd, self.pid, self.uid, pidfd)

    def close(self) -> None:
        close_foreign(self.fds)
        if self.pidfd is not None:
            os.close(self.pidfd)
        self.fds, self.pidfd = [], None


def _parse(data: bytes, sender: _Sender, flags: int) -> Message | None:
    if len(data) < _NUMBER.size:
        return None
    (number,) = _NUMBER.unpack_from(data)
    if number == LAST_WORD:
        return LastWord()
    if number < 0:
        return Zombie(-number)
    if number == 0:
        raise Refusal("garbage", f"this is no message of criu's: {show(data)}")
    if len(data) == _NUMBER.size:
        return None
    if flags & socket.MSG_CTRUNC:
        raise Refusal(
            "busy", "its userfaultfd cannot be received: raise this service's limit (ulimit -n)"
        )
    if len(sender.fds) != 1:
        raise Refusal(
            "no-fd", f"task {number} came with {len(sender.fds)} descriptors, and not with one"
        )
    return sender.task(number)
