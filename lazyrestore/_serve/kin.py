"""Which process a userfaultfd belongs to: nothing tells, of a child that a peer has forked.

One of its missing pages is loaded: the process in which that page appears at that moment is it. All
processes that can be seen are looked at, since a child may have been given another parent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Set
from typing import TYPE_CHECKING

from lazyrestore.errors import LazyRestoreError

from .ending import is_memory_gone

if TYPE_CHECKING:
    from .handshake import Range
    from .peer import Peer

_TRIES = 16
_SAMPLES = 256
# Pages: another process may have got one of its own at the same moment.
_ENOUGH = 2
_PRESENT_OR_SWAPPED = 3 << 62
_ENTRY_BYTES = 8


def find_process(peer: Peer, others: Set[int] = frozenset()) -> tuple[int, int] | None:
    """A peer's process and a pidfd of it, the caller's; None: it cannot be told now.

    Blocks while pages are loaded. It may be killed by what is found here: nobody is found where
    another could be meant, as where pages come to several at once, or where the peer ends.

    Args:
        peer: whose; it is being served.
        others: processes that are other peers.
    """
    found: set[int] | None = None
    seen = tries = 0
    for piece, offset in _samples(peer.ranges, peer.page_size):
        address = piece.address + offset
        before = _without(address, peer.page_size) - others
        missing = peer.missing_bytes()
        if not before or not missing:
            continue
        tries += 1
        with contextlib.suppress(LazyRestoreError, TimeoutError, OSError, ValueError):
            peer.populate(piece.region, piece.offset + offset, peer.page_size)
            came = {pid for pid in before if _has(pid, address, peer.page_size)}
            # Else it had that page, or had given it up: then it came to others only.
            if came and peer.missing_bytes() < missing:
                found = came if found is None else found & came
                seen += 1
        if found is not None and (not found or (seen >= _ENOUGH and len(found) == 1)):
            break
        if tries == _TRIES:
            break
    if not found or len(found) > 1 or seen < _ENOUGH:
        return None
    (pid,) = found
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if is_memory_gone(peer.fds.uffd):  # what was seen may have been in another process
        os.close(pidfd)
        return None
    return pid, pidfd


def _samples(ranges: Iterable[Range], page_size: int) -> Iterator[tuple[Range, int]]:
    """Pages from all over a peer's memory."""
    pieces = list(ranges)
    total = sum(piece.bytes for piece in pieces) // page_size
    step = max(1, total // _SAMPLES)
    at = 0
    for piece in pieces:
        pages = piece.bytes // page_size
        while at < pages:
            yield piece, at * page_size
            at += step
        at -= pages


def _without(address: int, page_size: int) -> set[int]:
    """Processes that do not have a page."""
    numbers = map(int, filter(str.isdecimal, os.listdir("/proc")))
    return {pid for pid in numbers if _has(pid, address, page_size) is False}


def _has(pid: int, address: int, page_size: int) -> bool | None:
    """Whether a process has a page; None: it cannot be told."""
    try:
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        entry = os.pread(fd, _ENTRY_BYTES, address // page_size * _ENTRY_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(entry) < _ENTRY_BYTES:
        return None
    return bool(int.from_bytes(entry, "little") & _PRESENT_OR_SWAPPED)
