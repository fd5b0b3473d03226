"""The end of memory that is served: whether it is gone, and how it is made so."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable

END_S = 10.0
"""How long a process that was killed may take to end."""
_LOOK_S = 0.001
_UFFDIO_WRITEPROTECT = 0xC018AA06
_WRITEPROTECT = struct.Struct("QQQ")
_ANYWHERE = 1 << 20


def end_memory(
    uffd: int,
    pidfd: int | None,
    bury: Callable[[int], bool] | None,
    timeout_s: float = END_S,
) -> bool:
    """Kill a process, and wait until its memory is gone; where that cannot be, give the memory up.

    False: neither: the userfaultfd must stay open.
    """
    if pidfd is not None and not is_memory_gone(uffd):
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        while not is_memory_gone(uffd) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
    return is_memory_gone(uffd) or (bury is not None and bury(uffd))


def is_memory_gone(uffd: int) -> bool:
    """Whether the memory that a userfaultfd belongs to is gone: for peers without a pidfd.

    Asks for what nothing is registered for, which the kernel refuses in words that tell.
    """
    request = bytearray(_WRITEPROTECT.pack(_ANYWHERE, os.sysconf("SC_PAGESIZE"), 0))
    try:
        fcntl.ioctl(uffd, _UFFDIO_WRITEPROTECT, request)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False
