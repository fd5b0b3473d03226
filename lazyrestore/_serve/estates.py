"""Going on from who has served CRIU's tasks: what only that one's warden has, and the odd ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import inheriting
from .ending import end_memory, is_memory_gone

if TYPE_CHECKING:
    from .holdings import HeldPeer, HeldWarden
    from .running import Running

_STRANGERS_S = 0.2


@dataclass(frozen=True)
class Estate:
    """What somebody leaves who has served CRIU's tasks, and is dead or about to end.

    Attributes:
        pid: whose.
        warden: where to ask for what only that one had; None: there was none.
        peers: that one's, by key.
        released: userfaultfds, by inode, that are needed no more.
    """

    pid: int
    warden: HeldWarden | None
    peers: Mapping[str, HeldPeer]
    released: AbstractSet[int] = frozenset()


def is_of_restore(held: HeldPeer) -> bool:
    """Whether it is one of CRIU's tasks, or a child of theirs."""
    return bool((held.record or {}).get("restore"))


async def inherit(running: Running, estate: Estate) -> None:
    """Get from a warden what nobody else has, and end that; before anything is adopted."""
    has_any = any(map(is_of_restore, estate.peers.values()))
    if estate.warden is None and not has_any:
        return
    running.service.restores.count += has_any
    running.service.restores.expect(held.record for held in estate.peers.values())
    # This process's own first: it shares this table, which is about to have everything.
    running.warding.start()
    asking = None if estate.warden is None else inheriting.Asking(estate.warden)
    in_thread = running.service.in_thread
    found = await in_thread(inheriting.inherit, asking, estate.peers, estate.released)
    # From here on the states name what is in this table.
    running.warding.announce()
    running.keeping.unwarden(str(estate.pid))
    if asking is not None:
        await in_thread(asking.finish)
    counts = {"children": found.children, "lost": len(found.bereaved)}
    running.emit("inherited", **{"from": estate.pid, **counts})
    for key in dict.fromkeys(found.bereaved):
        await in_thread(inheriting.end_unknown, key, estate.peers)
        running.emit("error", peer=int(key), reason="children of it were lost: they are ended")
    running.strangers += found.strangers
    if found.strangers:
        running.service.spawn(_see_to_strangers(running))


async def _see_to_strangers(running: Running) -> None:
    """Userfaultfds of nobody knows whom: they may be of a restore that is still being heard."""
    while running.strangers:
        await asyncio.sleep(_STRANGERS_S)
        is_busy = bool(running.service.connections) or running.service.restores.is_busy
        peers = [peer.fds.uffd for peer in running.service.peers.values() if peer.fds.uffd >= 0]
        known = {os.fstat(fd).st_ino for fd in peers}
        for fd in list(running.strangers):
            is_needed = not is_memory_gone(fd) and os.fstat(fd).st_ino not in known
            if is_needed and (is_busy or not running.warding.bury(fd)):
                continue
            running.strangers.remove(fd)
            os.close(fd)
            if is_needed:
                running.emit("error", reason="nobody knows whose a userfaultfd is: it is fenced")


async def give_up(running: Running, key: str, held: HeldPeer) -> None:
    """One of CRIU's tasks that cannot be served: it is ended before anything is closed."""
    fds, may_close = held.fds, True
    if (uffd := fds.get("userfaultfd", -1)) >= 0:
        may_close = await running.service.in_thread(
            end_memory, uffd, fds.get("pidfd"), running.warding.bury
        )
    running.service.ledger.gone(key)
    for role, fd in fds.items():
        if may_close or role != "userfaultfd":
            os.close(fd)
