"""The descriptors of a peer, and how many there may be."""

from __future__ import annotations

import os
import resource
import signal

from .connection import Connection
from .handshake import Refusal
from .peer import PeerFds, open_pidfd


def take_descriptors(connection: Connection, uffd: int, *, is_end_needed: bool) -> PeerFds:
    """A peer's descriptors, of a connection's, whose number `uffd` is the userfaultfd.

    Raises:
        Refusal: its process has ended, or cannot be ended from here, and that may be needed.
    """
    pidfd = open_pidfd(connection.socket, connection.pid, connection.accepted_s)
    why = cannot_end(pidfd) if is_end_needed else None
    if why is not None:
        if pidfd is not None:
            os.close(pidfd)
        raise Refusal(*why)
    chosen = connection.fds.pop(uffd)  # the others are closed with what the connection was
    return PeerFds(uffd=chosen, socket=connection.socket, pidfd=pidfd, state=-1)


def cannot_end(pidfd: int | None) -> tuple[str, str] | None:
    """Why a process could not be killed by its pidfd: a refusal's code and text; None: it could."""
    why = "its process cannot be seen from here"
    if pidfd is not None:
        try:
            signal.pidfd_send_signal(pidfd, 0)
            return None
        except ProcessLookupError:
            return "gone", "its process has ended"
        except OSError as error:
            why = error.strerror or str(error)
    return "kill", (
        f"it could not be ended if a page cannot be loaded: {why}: serve with --on-error poison or"
        " log, or as root"
    )


def raise_descriptor_limit() -> int:
    """Allow as many descriptors as may be; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard
