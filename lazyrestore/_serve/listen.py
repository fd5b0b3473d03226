"""The sockets that a service listens on: its own, or those that systemd hands over."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from lazyrestore._paths import absolute
from lazyrestore.errors import LazyRestoreError

from .sockets import credentials

PATH_BYTES_MAX = 107
"""A socket's path can have 108 bytes, of which the last is a null."""
BACKLOG = 1024
_FIRST_FD = 3
_FDS_MAX = 1024
_LOCK_S = 5.0


class SocketError(LazyRestoreError):
    """A socket cannot be listened on."""


class SocketServed(SocketError):
    """Somebody listens on a socket already.

    Attributes:
        path: the socket's.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is already served: stop who does, or give another --socket")
        self.path = path


@dataclass
class Listener:
    """A socket that listens.

    Attributes:
        sock: it listens and does not block.
        path: where it is; "" for one without a name.
        identity: device and inode of `path`, if this service has made it and shall remove it.
        kind: "criu": whoever connects is `criu restore --lazy-pages`; "": the first bytes tell.
    """

    sock: socket.socket
    path: str
    identity: tuple[int, int] | None = None
    kind: str = ""

    @property
    def name(self) -> str:
        """What chooses the image in a folder of them: the socket's file name without ".sock"."""
        return os.path.basename(self.path).removesuffix(".sock")

    @property
    def number(self) -> int:
        """The kernel's number of the socket: the same in all processes that have it."""
        return os.fstat(self.sock.fileno()).st_ino

    def close(self) -> None:
        """Stop listening, and remove the path, unless it is another's by now."""
        if self.identity is not None:
            with contextlib.suppress(OSError), _locked(self.path):
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == self.identity:
                    os.unlink(self.path)
            self.identity = None
        self.sock.close()


def bind(path: str, mode: int = 0o600) -> Listener:
    """Make a socket and listen on it; one that nobody listens on any more is replaced.

    Not while other threads make files: it sets the umask for a moment.

    Args:
        path: where; up to 107 bytes.
        mode: its permissions, whatever the umask.

    Raises:
        ValueError: the path is too long, or empty.
        SocketServed: somebody listens there.
        SocketError: something else is there, or it cannot be made.
    """
    encoded = os.fsencode(path)
    if not encoded or b"\0" in encoded:
        raise ValueError(f"the path of a socket cannot be {path!r}")
    if len(encoded) > PATH_BYTES_MAX:
        raise ValueError(
            f"the socket's path {path} has {len(encoded)} bytes, and {PATH_BYTES_MAX} are the most"
            " that can be: give a shorter one, or one relative to the working folder"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _locked(path):
            _remove_stale(path)
            before = os.umask(0o777 & ~mode)
            try:
                sock.bind(encoded)
            finally:
                os.umask(before)
            sock.listen(BACKLOG)
            found = os.lstat(path)
    except LazyRestoreError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise SocketError(f"cannot listen on {path}: {_why(error, path)}") from None
    return Listener(sock, absolute(path), (found.st_dev, found.st_ino))


def _why(error: OSError, path: str) -> str:
    folder = os.path.dirname(path) or "."
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        return f"there is no folder {folder}: make it"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}: make {folder} writable for this user, or give another path"
    if error.errno == errno.ENOTDIR:
        return f"{folder} is not a folder: give another path"
    return reason


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        SocketServed: somebody does.
        SocketError: it is no socket, or one of another kind.
        OSError: it cannot be told, or not be removed.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a file that is no socket"
        raise SocketError(f"cannot listen on {path}: {kind} is there: give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:  # more wait there than may: so somebody listens
            pass
        except OSError as error:
            if error.errno not in (errno.EPROTOTYPE, errno.EPROTONOSUPPORT):
                raise
            raise SocketError(
                f"cannot listen on {path}: another program's socket is there: give another path"
            ) from None
    raise SocketServed(path)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """No other service looks at, makes or removes sockets in that folder meanwhile."""
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder that may be written to but not read: then without a lock
        yield
        return
    try:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SocketError(
                        f"cannot listen on {path}: another program holds a lock on its folder:"
                        " give a path in a folder of the service's own"
                    ) from None
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(fd)


def inherited(environ: MutableMapping[str, str] = os.environ) -> list[Listener]:
    """The sockets that systemd, or another that does as it does, has opened for this process.

    Takes LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES out of the environment.

    Raises:
        SocketError: they are not what can be served.
    """
    pid = environ.pop("LISTEN_PID", "")
    text = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not text:
        return []
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= _FDS_MAX:
        raise SocketError(f"LISTEN_FDS is {text!r}: a number from 1 to {_FDS_MAX} was expected")
    end = _FIRST_FD + int(text)
    return [_adopt(fd, end) for fd in range(_FIRST_FD, end)]


def _adopt(fd: int, end: int) -> Listener:
    try:
        # A copy, behind all of theirs: one that is refused stays as it was.
        sock = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, end))
    except OSError as error:
        raise SocketError(
            f"descriptor {fd}, of LISTEN_FDS, is no socket: {error.strerror}; give the service a"
            " unit with ListenStream="
        ) from None
    is_good = (
        sock.family == socket.AF_UNIX
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )
    if not is_good:
        sock.close()
        raise SocketError(
            f"descriptor {fd}, of LISTEN_FDS, is not a unix stream socket that listens: use"
            " ListenStream= with a path, and Accept=no"
        )
    os.close(fd)
    sock.setblocking(False)
    name = sock.getsockname()
    return Listener(sock, os.fsdecode(name) if name else "")


def control(listener_number: int) -> socket.socket | None:
    """A socket under which who serves an inherited one is found: the path leads to all who have it.

    None: the name is taken, so that a new service will not find this one.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(_control_name(listener_number))
        sock.listen(16)
    except OSError:
        sock.close()
        return None
    return sock


def connect_control(listener_number: int) -> socket.socket | None:
    """A connection to whoever serves an inherited socket by now; None: nobody does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_LOCK_S)  # another user's queue may be full on purpose
        sock.connect(_control_name(listener_number))
        sock.settimeout(None)
    except OSError:
        sock.close()
        return None
    if foreign_user(sock) is not None:  # anybody can take a name that is not in a folder
        sock.close()
        return None
    return sock


def foreign_user(sock: socket.socket) -> int | None:
    """The user who listens at the other side of a connection; None: root, or this process's own.

    Others are not to be believed: what they hand over could be any process, to be ended as one
    that does not stop in time.
    """
    _, uid, _ = credentials(sock)
    return None if uid in (os.geteuid(), 0) else uid


def _control_name(listener_number: int) -> str:
    return f"\0lazyrestore/{listener_number}"


def close_all(listeners: Sequence[Listener]) -> None:
    """Close several."""
    for listener in listeners:
        listener.close()
