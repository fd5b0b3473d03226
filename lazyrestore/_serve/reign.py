"""Who serves: one number in shared memory, that of whoever serves or is about to.

A pager and its keeper know the number under which they serve. When the pager dies, its keeper puts
a new one in its place; a service that gives up to another puts the heir's there, once it has
stopped. Each does so only where it finds the number that it knows: so of several who could go on,
one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import time

_NUMBER = struct.Struct("<Q")
_LOOK_S = 0.001


def new_number() -> int:
    """One that nobody else has."""
    return (int.from_bytes(os.urandom(8), "little") >> 1) + 1


class Reign:
    """The shared number, and the one that this process knows. Owns its descriptor."""

    def __init__(self, fd: int, known: int) -> None:
        self.fd = fd
        self.known = known

    @classmethod
    def new(cls) -> Reign:
        """The reign of a service that takes over from nobody."""
        fd = os.memfd_create("lazyrestore-reign", os.MFD_CLOEXEC)
        known = new_number()
        os.pwrite(fd, _NUMBER.pack(known), 0)
        return cls(fd, known)

    def now(self) -> int:
        """The number of whoever serves."""
        data = os.pread(self.fd, _NUMBER.size, 0)
        return int(_NUMBER.unpack(data)[0]) if len(data) == _NUMBER.size else 0

    def pass_to(self, heir: int) -> bool:
        """Put another number in the place of the known one, and know that; False: it is gone."""
        # A lock of the process, not of the descriptor: those may stem from one open().
        fcntl.lockf(self.fd, fcntl.LOCK_EX, _NUMBER.size, 0)
        try:
            if self.now() != self.known:
                return False
            os.pwrite(self.fd, _NUMBER.pack(heir), 0)
            self.known = heir
            return True
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, _NUMBER.size, 0)

    def close(self) -> None:
        """Close the descriptor."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def is_over(pidfd: int, timeout_s: float = 0.0) -> bool:
    """Whether a process has ended, all of its threads: none of them touches a page any more."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def end(pidfd: int) -> None:
    """Kill a process, and wait until it is over."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    while not is_over(pidfd, 1.0):
        pass


def await_release(reign: Reign, heir: int, pidfd: int, timeout_s: float) -> bool:
    """Wait until who serves has stopped and passed its reign to `heir`.

    One that does not stop in time is killed. False: another has taken over, or will.
    """
    deadline = time.monotonic() + timeout_s
    while reign.now() == reign.known and time.monotonic() < deadline:
        if is_over(pidfd, _LOOK_S):
            break
    if reign.now() == heir:
        reign.known = heir
        return True
    if not reign.pass_to(heir):
        return False
    end(pidfd)
    return True
