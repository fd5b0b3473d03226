"""Messages with descriptors between processes, over a stream socket.

A message is a kind, a JSON object and descriptors. It travels as frames:

    0   4  "LRHO"
    4   2  version, 1
    6   2  1: the message's last frame
    8   4  bytes of the body in this frame
    12  4  descriptors of this frame
    16     its piece of the body

A frame's descriptors come with its first byte (SCM_RIGHTS), at most `FDS_A_FRAME` of them. Whoever
is killed while it sends leaves a message cut short: that is dropped whole, with its descriptors.
What `Channel.send` has returned from is with the receiver, though it may not have read it yet.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lazyrestore.errors import RemoteError

_HEAD = struct.Struct("<4sHHII")
_MAGIC = b"LRHO"
_VERSION = 1
_LAST = 1

FDS_A_FRAME = 250
"""Linux takes 253 at once."""
BODY_A_FRAME = 30 << 10
"""Less than a message that the kernel keeps in one piece."""
MESSAGE_BYTES_MAX = 16 << 20
MESSAGE_FDS_MAX = 4096

_RETRY_S = 0.005


class HandoverError(RemoteError):
    """What came is no message, or one that is beyond the limits."""


class HandoverTimeout(HandoverError):
    """The other side did not read, or did not answer, in time."""


@dataclass
class Message:
    """One message.

    Attributes:
        kind: what it is about.
        fields: what JSON can say.
        fds: descriptors. A received message owns them until `take_fds`; a sent one lends them.
    """

    kind: str
    fields: dict[str, object] = field(default_factory=dict)
    fds: list[int] = field(default_factory=list)

    def take_fds(self) -> list[int]:
        """The descriptors, which are the caller's from now on."""
        taken, self.fds = self.fds, []
        return taken

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        close_all(self.take_fds())


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors; one that cannot be closed is gone all the same."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def frames(message: Message) -> list[tuple[bytes, list[int]]]:
    """A message as what goes into one `sendmsg` each: bytes, and the descriptors that go with them.

    Raises:
        HandoverError: it is beyond the limits.
    """
    text = json.dumps({"kind": message.kind, "fields": message.fields}, separators=(",", ":"))
    body, fds = text.encode(), message.fds
    if len(body) > MESSAGE_BYTES_MAX or len(fds) > MESSAGE_FDS_MAX:
        raise HandoverError(
            f"a message {message.kind!r} of {len(body)} bytes and {len(fds)} descriptors cannot be"
            f" handed over: {MESSAGE_BYTES_MAX} and {MESSAGE_FDS_MAX} are the most"
        )
    count = max(1, -(-len(body) // BODY_A_FRAME), -(-len(fds) // FDS_A_FRAME))
    made = []
    for number in range(count):
        piece = body[number * BODY_A_FRAME : (number + 1) * BODY_A_FRAME]
        some = fds[number * FDS_A_FRAME : (number + 1) * FDS_A_FRAME]
        last = _LAST if number == count - 1 else 0
        made.append((_HEAD.pack(_MAGIC, _VERSION, last, len(piece), len(some)) + piece, some))
    return made


class Assembler:
    """Puts messages together from what was read, in whatever pieces it came."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: deque[int] = deque()
        self._body = bytearray()
        self._body_fds: list[int] = []

    def feed(self, data: bytes, fds: Sequence[int]) -> None:
        """Take what one read gave; the descriptors are the assembler's now."""
        self._data += data
        self._fds.extend(fds)

    def next(self) -> Message | None:
        """The next message; None: it has not come whole.

        Raises:
            HandoverError: what came is no message. Nothing more can be read then.
        """
        while len(self._data) >= _HEAD.size:
            magic, version, flags, body_bytes, fd_count = _HEAD.unpack_from(self._data)
            if (
                magic != _MAGIC
                or version != _VERSION
                or flags & ~_LAST
                or body_bytes > BODY_A_FRAME
                or fd_count > FDS_A_FRAME
            ):
                raise HandoverError("what came is not a frame of a message: the sender is not ours")
            if (
                len(self._body) + body_bytes > MESSAGE_BYTES_MAX
                or len(self._body_fds) + fd_count > MESSAGE_FDS_MAX
            ):
                raise HandoverError(
                    f"a message has more than {MESSAGE_BYTES_MAX} bytes or {MESSAGE_FDS_MAX}"
                    " descriptors"
                )
            if len(self._data) < _HEAD.size + body_bytes:
                return None
            # They come with the frame's first byte: what is not here by now never comes.
            if len(self._fds) < fd_count:
                raise HandoverError(
                    f"{fd_count - len(self._fds)} descriptors of a message did not come: raise the"
                    " limit of open files (ulimit -n)"
                )
            self._body += self._data[_HEAD.size : _HEAD.size + body_bytes]
            del self._data[: _HEAD.size + body_bytes]
            self._body_fds += [self._fds.popleft() for _ in range(fd_count)]
            if flags & _LAST:
                return self._finish()
        return None

    def _finish(self) -> Message:
        body, self._body = bytes(self._body), bytearray()
        fds, self._body_fds = self._body_fds, []
        try:
            record = json.loads(body)
            kind, fields = record["kind"], record["fields"]
            if not isinstance(kind, str) or not isinstance(fields, dict):
                raise ValueError("wrong types")
        except (ValueError, KeyError, TypeError, RecursionError):
            close_all(fds)
            raise HandoverError("a message is not what it should be: the sender is not ours") from (
                None
            )
        return Message(kind, fields, fds)

    @property
    def is_between(self) -> bool:
        """Nothing of a message has come that is not whole."""
        return not (self._data or self._fds or self._body or self._body_fds)

    def close(self) -> None:
        """Close the descriptors of what did not come whole."""
        close_all([*self._fds, *self._body_fds])
        self._fds.clear()
        self._body_fds.clear()


class Channel:
    """A stream socket over which messages go both ways; owns the socket.

    Not for two threads at once.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._assembler = Assembler()
        # What the kernel did not take yet.
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._is_at_end = False

    def fileno(self) -> int:
        """For select and its like."""
        return self.sock.fileno()

    @property
    def has_unsent(self) -> bool:
        """Something of what was queued has not been taken by the kernel."""
        return bool(self._waiting)

    def queue(self, message: Message) -> None:
        """Send as much as goes without waiting; `flush` sends the rest.

        The descriptors stay the caller's: those that do not go at once are copied.

        Raises:
            HandoverError: the message is beyond the limits.
            OSError: the other side is gone.
        """
        for data, fds in frames(message):
            sent = 0 if self._waiting else self._send(memoryview(data), fds)
            if sent < len(data):
                copies = [] if sent else [os.dup(fd) for fd in fds]
                self._waiting.append((memoryview(data)[sent:], copies))

    def flush(self) -> bool:
        """Send what goes without waiting; True: nothing is left.

        Raises:
            OSError: the other side is gone.
        """
        while self._waiting:
            view, fds = self._waiting[0]
            sent = self._send(view, fds)
            if not sent:
                return False
            close_all(fds)
            if sent == len(view):
                self._waiting.popleft()
            else:
                self._waiting[0] = (view[sent:], [])
        return True

    def _send(self, data: memoryview, fds: list[int]) -> int:
        """How many bytes went, with all descriptors; 0: nothing can go now."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # More descriptors are under way than may be: the other side has to read first.
            if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                return 0
            raise

    def send(self, message: Message, timeout_s: float) -> None:
        """Send all of a message, and what was queued before; then it is with the other side.

        Raises:
            HandoverTimeout: the other side did not read. Part of it may have gone: close this.
            HandoverError: the message is beyond the limits.
            OSError: the other side is gone.
        """
        self.queue(message)
        deadline = time.monotonic() + timeout_s
        while not self.flush():
            if time.monotonic() > deadline:
                raise HandoverTimeout(f"the other side has not read for {timeout_s:g} s")
            # Writable may mean that only descriptors are too many: that is not to be polled for.
            _wait(self.sock, select.POLLOUT, _RETRY_S)
            time.sleep(_RETRY_S / 10)

    def read(self) -> bool:
        """Read what is there, once; False: there was nothing.

        Raises:
            HandoverError: descriptors were lost: this process has too many open.
            OSError: the other side is gone in a bad way.
        """
        room = socket.CMSG_LEN(FDS_A_FRAME * 4)
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                1 << 18, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError:  # it ended without reading all of ours
            data, ancillary, flags = b"", [], 0
        fds = array.array("i")
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
        self._assembler.feed(data, fds)
        if flags & socket.MSG_CTRUNC:
            raise HandoverError(
                "descriptors that were handed over are lost: raise the limit of open files"
                " (ulimit -n)"
            )
        self._is_at_end = self._is_at_end or not data
        return True

    def next(self) -> Message | None:
        """The next message that has been read whole; None: there is none (see `is_at_end`).

        Raises:
            HandoverError: what came is no message.
        """
        return self._assembler.next()

    @property
    def is_at_end(self) -> bool:
        """The other side has closed; what was read of a message cut short is dropped."""
        return self._is_at_end

    def receive(self, timeout_s: float | None, until: int = -1) -> Message | None:
        """Wait for a message; None: the other side has closed.

        Args:
            timeout_s: for so long at most.
            until: a pidfd: when that process has ended and all that it sent was read, this is at
                its end, too. Others may have its end of the socket.

        Raises:
            HandoverTimeout: none came in time.
            HandoverError: what came is no message.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            message = self.next()
            if message is not None or self._is_at_end:
                return message
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise HandoverTimeout(f"nothing came for {timeout_s:g} s")
            if until < 0:
                _wait(self.sock, select.POLLIN, left)
                self.read()
            else:
                is_over = _wait_for_either(self.sock, until, left)
                if not self.read() and is_over:
                    self._is_at_end = True

    def close(self) -> None:
        """Close the socket, and the descriptors that were under way to or from it."""
        self.sock.close()
        self._assembler.close()
        for _, fds in self._waiting:
            close_all(fds)
        self._waiting.clear()


def _wait(sock: socket.socket, events: int, timeout_s: float | None) -> None:
    poll = select.poll()  # select() knows no descriptors beyond 1023
    poll.register(sock, events)
    poll.poll(None if timeout_s is None else timeout_s * 1000)


def _wait_for_either(sock: socket.socket, pidfd: int, timeout_s: float | None) -> bool:
    """Wait until something is there or a process has ended; whether it has."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    ready = poll.poll(None if timeout_s is None else timeout_s * 1000)
    return any(fd == pidfd for fd, _ in ready)


def pair() -> tuple[Channel, socket.socket]:
    """One end of a socketpair as a channel, the other as a socket to give away."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(mine), other
