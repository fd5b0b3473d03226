"""CRIU's own protocol for programs that drive it: `criu swrk FD`, as container engines use it.

Over a SOCK_SEQPACKET socket, one protobuf message a packet: a request, then CRIU's notifications,
each of which waits for an answer, and at last its response. Where the other end of the socket is
gone, CRIU takes that as "no": so a notification is a place to hold a dump, and no death of this
process can be mistaken for consent. (An action script that is killed is, by CRIU, taken for one
that succeeded.)
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from lazyrestore.errors import CriuError

from .protobuf import decode, encode_field

__all__ = ["Response", "dump_request", "receive", "send_answer"]

_MESSAGE_BYTES_MAX = 64 << 10

# criu_req: type, opts, notify_success; its types
_TYPE, _OPTIONS, _NOTIFY_SUCCESS = 1, 2, 3
_DUMP, _NOTIFY = 1, 6
# criu_opts
_IMAGES_DIR_FD, _PID, _LEAVE_RUNNING, _LOG_LEVEL, _LOG_FILE = 1, 2, 3, 9, 10
_PAGE_SERVER, _NOTIFY_SCRIPTS = 11, 12
_PAGE_SERVER_FD = 4
# criu_resp
_SUCCESS, _RESPONSE_NOTIFY = 2, 5
_SCRIPT = 1


class Response(NamedTuple):
    """What CRIU says: the name of a notification, or, without one, how the dump ended."""

    notification: str | None
    success: bool


def dump_request(
    *, pid: int, images_fd: int, pages_fd: int, leave_running: bool, log_level: int, log_file: str
) -> bytes:
    """The request for a dump that asks at every step, and sends its pages to a socket.

    Args:
        pid: root of the tree.
        images_fd: a descriptor of this process's: where CRIU writes its files.
        pages_fd: a descriptor of CRIU's own: where it sends the pages.
        leave_running: what becomes of the processes.
        log_level: 2 for errors and warnings, up to 4.
        log_file: its name, beside the files.
    """
    options = (
        encode_field(_IMAGES_DIR_FD, images_fd)
        + encode_field(_PID, pid)
        + encode_field(_LEAVE_RUNNING, int(leave_running))
        + encode_field(_LOG_LEVEL, log_level)
        + encode_field(_LOG_FILE, log_file.encode())
        + encode_field(_PAGE_SERVER, encode_field(_PAGE_SERVER_FD, pages_fd))
        + encode_field(_NOTIFY_SCRIPTS, 1)
    )
    return encode_field(_TYPE, _DUMP) + encode_field(_OPTIONS, options)


def send_answer(connection: socket.socket, success: bool) -> None:
    """Answer a notification.

    Raises:
        OSError: CRIU is gone.
    """
    connection.sendall(encode_field(_TYPE, _NOTIFY) + encode_field(_NOTIFY_SUCCESS, int(success)))


def receive(connection: socket.socket) -> Response | None:
    """The next message; None: CRIU has ended.

    Raises:
        CriuError: it is not one.
    """
    try:
        data = connection.recv(_MESSAGE_BYTES_MAX)
    except ConnectionError:
        return None
    if not data:
        return None
    try:
        fields = dict(decode(data))
        kind, success = fields[_TYPE], bool(fields[_SUCCESS])
        if kind != _NOTIFY:
            return Response(None, success)
        notification = fields[_RESPONSE_NOTIFY]
        if isinstance(notification, bytes):
            script = dict(decode(notification))[_SCRIPT]
            if isinstance(script, bytes):
                return Response(script.decode("ascii"), success)
    except (KeyError, ValueError):  # MessageError is a ValueError
        pass
    raise CriuError(f"CRIU has sent a message that cannot be understood: {data[:64]!r}")
