"""What a restore of processes begins with, before the command line is even read.

Its daemon has as much to import as the command itself, and there is another core: so it is forked
first, where the arguments look as if there will be need of it. Whoever reads them in earnest uses
it, or discards it.
"""

from __future__ import annotations

import os

from .peek import may_have_processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .pager import Daemon


def begin(arguments: Sequence[str]) -> Daemon | None:
    """Fork it for `restore --lazy IMAGE`; None for everything else."""
    if arguments[:1] != ["restore"] or "--lazy" not in arguments:
        return None
    if not any(may_have_processes(text) for text in arguments[1:] if not text.startswith("-")):
        return None
    try:
        for fd in range(3):  # the daemon's descriptors must not have these numbers
            os.fstat(fd)
    except OSError:
        return None
    pid, link, said = fork()
    from socket import socket

    from .pager import Daemon

    return Daemon(pid, socket(fileno=link), said)


def fork() -> tuple[int, int, int]:
    """Start it, before anything is imported that it needs as well: there are two who do that then.

    Returns:
        Its number, the socket by which it is told what to do, and the pipe by which it speaks.
    """
    import _socket  # what `socket` is made of

    mine, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    said, saying = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()  # whatever a terminal sends is not for it
            mine.close()
            from .pager import be_daemon

            be_daemon(theirs.detach(), saying)
        finally:
            os._exit(1)
    theirs.close()
    os.close(saying)
    return pid, mine.detach(), said
