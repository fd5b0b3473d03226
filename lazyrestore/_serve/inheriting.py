"""What a successor gets from the warden of who has died (csrc/warden.h).

A peer's state names the children that nobody else has yet by descriptors' numbers in the dead
process's table, which the warden shares. They are fetched, and the state is given this process's
own. Whatever other userfaultfds there are in that table are fetched, too: none of them is closed
before it is known that nobody needs it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lazyrestore._core import Child, state_children, state_set_child
from lazyrestore.errors import LazyRestoreError, RemoteError

from .handover import close_all
from .holdings import HeldPeer, HeldWarden
from .peer import started
from .sockets import is_userfaultfd

_QUESTION = struct.Struct("=Ii")
_ANSWER = struct.Struct("=IiiI")
_ITEM = struct.Struct("=iIQ")
_FETCH, _LIST, _LEAVE = 1, 2, 4
_ANSWER_BYTES_MAX = _ANSWER.size + 4096 * _ITEM.size
_PID = struct.Struct("=8sIiiii")
"""What the page begins with: see `struct lr_warden_page`."""

ANSWER_S = 5.0
_NUDGE_S = 0.2
_MOMENT_S = 5.0


class WardenLost(RemoteError):
    """It has ended, or does not answer: what only it had is gone."""


class Asking:
    """A dead process's warden, as its successor sees it. Owns the descriptors."""

    def __init__(self, held: HeldWarden) -> None:
        self._page = held.page
        self._sock = socket.socket(fileno=held.socket)

    def fetch(self, number: int) -> int | None:
        """A copy of a descriptor by its number in the table; None: there is none.

        Raises:
            WardenLost: it has ended.
        """
        if number < 0:
            return None
        _, _, fds = self._ask(_FETCH, number)
        return fds[0] if fds else None

    def userfaultfds(self) -> list[tuple[int, int]]:
        """All that there are: number and inode.

        Raises:
            WardenLost: it has ended.
        """
        _, items, _ = self._ask(_LIST)
        return items

    def leave(self) -> None:
        """Have it close everything: locks end, and whoever is connected sees it. It ends, too.

        Raises:
            WardenLost: it had ended.
        """
        self._ask(_LEAVE)

    def _ask(self, request: int, number: int = 0) -> tuple[int, list[tuple[int, int]], list[int]]:
        try:
            self._await_answer(_QUESTION.pack(request, number))
            data, fds, _, _ = socket.recv_fds(
                self._sock, _ANSWER_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise WardenLost(f"the warden has ended: {error.strerror or error}") from None
        if len(data) < _ANSWER.size:
            close_all(fds)
            raise WardenLost("the warden has ended")
        told, value, _, count = _ANSWER.unpack_from(data)
        if told != request or len(data) < _ANSWER.size + count * _ITEM.size:
            close_all(fds)
            raise WardenLost("the warden says what cannot be")
        items = [
            _ITEM.unpack_from(data, _ANSWER.size + index * _ITEM.size) for index in range(count)
        ]
        return value, [(number, inode) for number, _, inode in items], fds

    def _await_answer(self, question: bytes) -> None:
        """Ask, and ask again whoever goes on from one that was killed meanwhile. Somebody may have
        stopped it: then it runs again.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        deadline = time.monotonic() + ANSWER_S
        asked = -1
        while True:
            if (pid := self._pid()) != asked:
                asked = pid
                self._sock.sendall(question)
            if poll.poll(_NUDGE_S * 1000):
                return
            self._signal(signal.SIGCONT)
            if time.monotonic() > deadline:
                # What it holds would be lost with it otherwise, too: nobody can get at it.
                self._signal(signal.SIGKILL)
                raise WardenLost(f"the warden has not answered for {ANSWER_S:g} s")

    def _signal(self, number: int) -> None:
        pid = self._pid()
        if pid <= 0:
            return
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(self._sock, 0)
                if not poll.poll(0):  # there is still one: that number is its
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    def _pid(self) -> int:
        data = os.pread(self._page, _PID.size, 0)
        return int(_PID.unpack(data)[5]) if len(data) == _PID.size else 0

    def finish(self) -> None:
        """Have it leave, where it is there, and close the descriptors."""
        with contextlib.suppress(WardenLost):
            self.leave()
        self._sock.close()
        os.close(self._page)


@dataclass
class Inherited:
    """What there was beside the peers.

    Attributes:
        strangers: userfaultfds of which it is not known whose they are.
        bereaved: peers, by key, of whose children some could not be had: those read zeros.
        children: how many there were.
    """

    strangers: list[int] = field(default_factory=list)
    bereaved: list[str] = field(default_factory=list)
    children: int = 0


def inherit(
    asking: Asking | None, peers: Mapping[str, HeldPeer], released: Iterable[int]
) -> Inherited:
    """Get all that the warden has of these peers' children, and put it into their states.

    Blocks; who had the table is dead, and nobody serves by the states yet. Does not have the warden
    leave.

    Args:
        asking: None: there was none.
        peers: what is held; their states are changed.
        released: inodes of userfaultfds that nobody needs any more.
    """
    found = Inherited()
    known = {inode_of(fd): key for key, fd in _userfaultfds(peers)}
    for key, held in peers.items():
        if "state" not in held.fds or not (held.record or {}).get("restore"):
            continue
        state = held.fds["state"]
        try:
            children = state_children(state)
        except (LazyRestoreError, OSError, ValueError):
            continue  # told when it is served
        for child in children:
            if child.uffd < 0:  # seen to before
                continue
            found.children += 1
            own = None if asking is None else _fetch(asking, child, key, known, peers)
            with contextlib.suppress(LazyRestoreError, ValueError):
                state_set_child(state, own or Child(-1, -1, child.number))
            if own is None:
                found.bereaved.append(key)
            else:
                known[inode_of(own.uffd)] = key
    if asking is not None:
        with contextlib.suppress(WardenLost):
            found.strangers = list(_strangers(asking, {*known, *released}))
    return found


def _userfaultfds(peers: Mapping[str, HeldPeer]) -> Iterator[tuple[str, int]]:
    for key, held in peers.items():
        if "userfaultfd" in held.fds:
            yield key, held.fds["userfaultfd"]


def inode_of(fd: int) -> int:
    """What tells two userfaultfds apart."""
    return os.fstat(fd).st_ino


def _fetch(
    asking: Asking,
    child: Child,
    parent: str,
    known: Mapping[int, str],
    peers: Mapping[str, HeldPeer],
) -> Child | None:
    uffd = state = None
    try:
        uffd = asking.fetch(child.uffd)
        if uffd is None or not is_userfaultfd(uffd):
            raise ValueError
        # It is nobody else's: numbers can be of another table where something went wrong.
        other = peers.get(known.get(inode_of(uffd), ""))
        record = (other.record if other is not None else None) or {}
        if other is not None and (str(record.get("parent")), record.get("child")) != (
            str(int(parent)),
            child.number,
        ):
            raise ValueError
        if child.state >= 0:
            state = asking.fetch(child.state)
            if state is None:
                raise ValueError
    except (WardenLost, OSError, ValueError):
        close_all([fd for fd in (uffd, state) if fd is not None])
        return None
    return Child(uffd, -1 if state is None else state, child.number)


def _strangers(asking: Asking, known: set[int]) -> Iterator[int]:
    for number, inode in asking.userfaultfds():
        if inode in known:
            continue
        known.add(inode)
        fd = asking.fetch(number)
        if fd is not None:
            yield fd


def end_unknown(key: str, peers: Mapping[str, HeldPeer]) -> None:
    """Kill what descends from a peer's process, is no peer itself and began a moment ago: of its
    children that were lost nothing else is known.
    """
    known = {int(str((held.record or {}).get("pid", 0))) for held in peers.values()}
    record = peers[key].record or {}
    found = [int(str(record.get("pid", 0)))]
    for pid in found:
        found += [child for child in _children(pid) if child not in found]
    since_s = time.clock_gettime(time.CLOCK_BOOTTIME) - _MOMENT_S
    for pid in found[1:]:
        if pid not in known and (started(pid) or 0.0) > since_s:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    if pid > 0:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found
