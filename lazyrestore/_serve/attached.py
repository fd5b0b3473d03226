"""Programs that attach (`lr_attach`): from their greeting to a peer, and what they are told later.

`attaching.py` knows the messages. A program whose connection breaks connects again, with what it
had; so whatever goes wrong here ends the connection, and nothing is tried twice.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
from typing import TYPE_CHECKING

from lazyrestore.errors import ImageError, LazyRestoreError, RemoteError

from .attaching import (
    COMPLETE,
    HELLO_BYTES,
    REQUEST_HEAD_BYTES,
    SERVED,
    BadMessage,
    Hello,
    build_metadata,
    build_table,
    check_request,
    parse_hello,
    parse_request,
    request_bytes,
)
from .handshake import Range, Refusal
from .peer import Peer
from .sockets import choose_uffd

if TYPE_CHECKING:
    from lazyrestore._native import CData
    from lazyrestore._open import Image

    from .connection import Connection
    from .service import Service

PROTOCOL = "attach"


async def attend(service: Service, connection: Connection) -> None:
    """Hear a program out that began with LRATTACH, and serve it.

    Raises:
        Refusal: it said what cannot be, or cannot be served; it is told why.
    """
    try:
        await _attend(service, connection)
    except BadMessage as bad:
        raise Refusal(bad.code, str(bad)) from None
    except (LazyRestoreError, OSError, ValueError, MemoryError) as error:
        raise Refusal(_word_for(error), str(error) or type(error).__name__) from None


async def _attend(service: Service, connection: Connection) -> None:
    await connection.need(HELLO_BYTES)
    hello = parse_hello(bytes(connection.data[:HELLO_BYTES]))
    image, first_set = await service.image_for(connection.path)
    table = await service.in_thread(_table, image, hello)
    connection.take(HELLO_BYTES)
    await connection.send(table)
    await connection.need(REQUEST_HEAD_BYTES)
    whole = request_bytes(bytes(connection.data[:REQUEST_HEAD_BYTES]))
    await connection.need(whole)
    request = parse_request(bytes(connection.data[:whole]))
    check_request(request, image.regions, mmap.PAGESIZE)
    state = _take_state(connection, hello)
    try:
        fds = service.descriptors(connection, choose_uffd(connection.fds))
    except BaseException:
        if state >= 0:
            os.close(state)
        raise
    fds.state = state
    peer = Peer(
        id=connection.id,
        pid=connection.pid,
        uid=connection.uid,
        path=connection.path,
        protocol=PROTOCOL,
        image=image,
        ranges=tuple(Range(*one) for one in request.ranges),
        page_size=request.page_size,
        since=connection.since,
        fds=fds,
    )
    await service.admit(peer, connection, first_set)


def _table(image: Image, hello: Hello) -> bytes:
    return build_table(image) + (build_metadata(image) if hello.wants_metadata else b"")


def _take_state(connection: Connection, hello: Hello) -> int:
    """The state that it was served by before, which is the caller's then; -1: none."""
    if not hello.resumes:
        return -1
    if len(connection.fds) != 2:
        raise BadMessage("state", f"it resumes with {len(connection.fds)} descriptors, and not 2")
    return connection.fds.pop()


def say_served(peer: Peer) -> None:
    """Tell a program that it is served, and hand it the state. Also where it may know: whoever
    served before may have been killed before he said so.
    """
    if peer.protocol == PROTOCOL:
        _say(peer, SERVED, peer.fds.state)


def say_complete(peer: Peer, stats: CData) -> bool:
    """Tell a program that it needs nobody any more, if that is so.

    Args:
        peer: any peer.
        stats: a `struct lr_session_stats *` of its session.
    """
    if peer.protocol != PROTOCOL or stats.pages_missing or stats.regions_attached:
        return False
    _say(peer, COMPLETE)
    return True


def is_over_when_closed(peer: Peer) -> bool:
    """Whether the end of its connection is the end of it: it has detached, or connects anew."""
    return peer.protocol == PROTOCOL


def _word_for(error: Exception) -> str:
    """A word of `attaching.REFUSALS` for what prevented a program from being served."""
    if isinstance(error, RemoteError):
        return "state"
    if isinstance(error, (ImageError, OSError)):
        return "image"
    return "ranges" if isinstance(error, ValueError) else "failed"


def _say(peer: Peer, message: bytes, fd: int = -1) -> None:
    """Some bytes to who has read all that was sent before: they fit into the socket."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
    if peer.fds.socket is not None:
        with contextlib.suppress(OSError):  # it is gone, which the socket's end will tell
            peer.fds.socket.sendmsg([message], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
