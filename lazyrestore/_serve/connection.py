"""A connection until its handshake is whole: bytes, descriptors, limits.

What a peer sends is looked at before it is taken out of the socket (MSG_PEEK): a monitor sends its
userfaultfd once, so it must not be lost with a service that is killed in the middle. Once the
keeper has what is needed, `take` removes it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from .attaching import MAGIC as ATTACH_MAGIC
from .attaching import REQUEST_MAGIC, build_refusal
from .handshake import MessageScanner, Refusal
from .sockets import PIECE_BYTES, close_foreign, close_socket, credentials, receive_all

HANDSHAKE_S = 10.0
FDS_MAX = 3
_PEEKED_BYTES_MAX = 1 << 15
_PEEKED_S = 2.0
_SO_PEEK_OFF = 42
_REFUSAL_BYTES_MAX = 1000

_T = TypeVar("_T")


class Edges:
    """Tells connections that something came. Edges only: what is looked at stays in the socket, and
    would be told of again and again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Event] = {}
        loop.add_reader(self._epoll.fileno(), self._wake)

    def add(self, fd: int) -> asyncio.Event:
        """An event that is set whenever something new came at this socket."""
        event = self._waiting[fd] = asyncio.Event()
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        return event

    def remove(self, fd: int) -> None:
        """Before the socket is closed."""
        if self._waiting.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Let go of it."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _wake(self) -> None:
        for fd, _ in self._epoll.poll(0, 256):
            if (event := self._waiting.get(fd)) is not None:
                event.set()


class Connection:
    """An accepted socket.

    Attributes:
        id: its number, which its peer will have too.
        socket: not blocking.
        path: of the socket that it came to.
        uid, pid: of who connected; pid 0: not visible from here.
        since: when it was accepted, time.time().
        accepted_s: the same in seconds since the boot.
        deadline: until when it has to be through, in the loop's time.
        data: bytes that came and are not taken yet.
        fds: descriptors that came with them; closed with the connection.
    """

    def __init__(self, number: int, sock: socket.socket, path: str, edges: Edges) -> None:
        sock.setblocking(False)
        self.id = number
        self.socket = sock
        self.path = path
        self.pid, self.uid, self.gid = credentials(sock)
        self.since = time.time()
        self.accepted_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.deadline = asyncio.get_running_loop().time() + HANDSHAKE_S
        self.data = bytearray()
        self.fds: list[int] = []
        self._peeked = 0  # bytes of `data` that are still in the socket
        self._is_peeking = True
        self._first = b""
        self._edges = edges
        sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        self._came = edges.add(sock.fileno())
        self._is_closed = False

    def fileno(self) -> int:
        """The socket's."""
        return self.socket.fileno()

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(self.deadline):
                yield
        except TimeoutError:
            late = f"its handshake was not whole after {HANDSHAKE_S:g} s"
            raise Refusal("timeout", late) from None

    async def receive(self) -> bool:
        """Wait for more, and append it to `data` and `fds`; False at the end of the file.

        Raises:
            Refusal: its time is over; more descriptors came than anyone sends, or they cannot be
                received.
            OSError: the connection broke.
        """
        while True:
            self._came.clear()
            try:
                is_more = self._receive_now()
                await asyncio.sleep(0)  # the others' turn: it may send without end
                return is_more
            except BlockingIOError:
                await self._wait_for_more()

    async def look(self, see: Callable[[], _T | None]) -> _T:
        """What `see` returns when it is something; it is asked again whenever more has come, for
        as long as that takes.
        """
        while True:
            self._came.clear()
            if (found := see()) is not None:
                return found
            await self._came.wait()

    async def _wait_for_more(self) -> None:
        async with self._in_time():
            if self._peeked:
                try:
                    await asyncio.wait_for(self._came.wait(), _PEEKED_S)
                    return
                except TimeoutError:
                    # What is left in the socket may be what keeps the sender from sending.
                    self.stop_peeking()
            await self._came.wait()

    def _receive_now(self) -> bool:
        piece, fds, got = receive_all(self.socket, socket.MSG_PEEK if self._is_peeking else 0)
        self.fds += fds
        if len(self.fds) > FDS_MAX:
            raise Refusal("descriptors", f"it sent more than {FDS_MAX} descriptors")
        if got & socket.MSG_CTRUNC:
            raise Refusal(
                "busy", "its descriptors cannot be received: raise this service's limit (ulimit -n)"
            )
        self.data += piece
        if self._is_peeking:
            self._peeked += len(piece)
            if self._peeked > _PEEKED_BYTES_MAX:
                self.stop_peeking()  # the sender waits until there is room
        return bool(piece)

    def _empty(self) -> None:
        while self._peeked:
            # Descriptors come with it once more: the kernel lets go of those, as there is no room.
            self._peeked -= len(self.socket.recv(self._peeked)) or self._peeked

    def stop_peeking(self) -> None:
        """From now on, what is received is out of the socket at once."""
        self._empty()
        self._is_peeking = False

    def take(self, count: int) -> bytes:
        """Remove bytes from `data`, and from the socket whatever was only looked at."""
        self._empty()
        taken = bytes(self.data[:count])
        del self.data[:count]
        return taken

    def take_fds(self) -> list[int]:
        """The descriptors, which are the caller's from now on."""
        taken, self.fds = self.fds, []
        return taken

    def glance(self) -> bytes:
        """Its first bytes, if any have come; nothing is taken."""
        if self._first:
            return self._first
        if self.data:
            return bytes(self.data[: len(ATTACH_MAGIC)])
        with contextlib.suppress(OSError):
            return self.socket.recv(len(ATTACH_MAGIC), socket.MSG_PEEK)
        return b""

    async def need(self, count: int) -> None:
        """Wait until `data` has so many bytes.

        Raises:
            Refusal: the file ended before.
        """
        while len(self.data) < count:
            if not await self.receive():
                raise Refusal("gone", "it closed the connection in the middle of its handshake")

    async def first_bytes(self) -> bytes:
        """As many as tell the protocols apart, or b"" where it ended without any."""
        while True:
            start = bytes(self.data.lstrip()[: len(ATTACH_MAGIC)])
            if start and not (start != ATTACH_MAGIC and ATTACH_MAGIC.startswith(start)):
                self._first = start
                return start
            if len(self.data) > PIECE_BYTES:
                raise Refusal("garbage", "its handshake begins with nothing but white space")
            if not await self.receive():
                return start

    async def message(self) -> bytes:
        """A whole JSON message; what follows it in `data` is left there.

        Raises:
            Refusal: it is too long, no JSON, or ended before.
        """
        scanner = MessageScanner()
        at = 0
        while True:
            piece = bytes(self.data[at:])
            at = len(self.data)
            if (end := scanner.feed(piece)) is not None:
                return bytes(self.data[:end])
            if not await self.receive():
                raise Refusal("gone", "it closed the connection in the middle of its handshake")

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send all, descriptors with the first byte. Waits while the other side does not read.

        Raises:
            Refusal: its time is over.
            OSError: the other side is gone.
        """
        loop = asyncio.get_running_loop()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        view = memoryview(data)
        while view:
            try:
                sent = self.socket.sendmsg([view], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                async with self._in_time():
                    await _writable(loop, self.socket)
                continue
            view, ancillary = view[sent:], []

    def send_now(self, data: bytes) -> None:
        """Send what can be sent at once: a last word."""
        with contextlib.suppress(OSError):
            self.socket.send(data, socket.MSG_NOSIGNAL)

    def detach(self) -> socket.socket:
        """The socket, for the peer that it becomes."""
        self._edges.remove(self.socket.fileno())
        self._is_closed = True
        return self.socket

    @property
    def is_untouched(self) -> bool:
        """All that came is still in the socket."""
        return self._is_peeking and self._peeked == len(self.data)

    def let_be(self) -> None:
        """Leave the socket open, as if nobody had looked at what came."""
        close_foreign(self.take_fds())
        if not self._is_closed:
            self.detach()

    def close(self) -> None:
        """End it, for the other side too although the keeper has a copy of the socket."""
        close_foreign(self.take_fds())
        if not self._is_closed:
            close_socket(self.detach())


def refusal_bytes(first: bytes, refusal: Refusal) -> bytes:
    """How somebody is told that he is refused, in the protocol that his first bytes are of."""
    text = str(refusal)
    if first in (ATTACH_MAGIC, REQUEST_MAGIC):
        return build_refusal(refusal.code, text)
    fields = {"error": {"code": refusal.code, "message": text[:_REFUSAL_BYTES_MAX]}}
    return json.dumps(fields).encode() + b"\n"


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_writer(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock.fileno())
