"""Ending a service in good order: everything is loaded first, as far as the time goes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .peer import Peer
    from .service import Service

_LOOK_S = 0.05


@dataclass(frozen=True)
class Left:
    """A peer that is not complete.

    Attributes:
        peer: who.
        missing_bytes: how much of its memory it may still have to wait for.
        why: what stands in the way.
    """

    peer: Peer
    missing_bytes: int
    why: str


async def finish(service: Service, grace_s: float, hurry: asyncio.Event) -> list[Left]:
    """Admit nobody, and fill every peer; who is not complete when the time is over, or at `hurry`.

    Args:
        service: is served on meanwhile, and afterwards.
        grace_s: how long that may take.
        hurry: whoever asked for the end does not want to wait.
    """
    service.stop_admitting()
    deadline = service.loop.time() + grace_s
    asked: set[int] = set()
    while True:
        for peer in list(service.peers.values()):
            if peer.id not in asked:
                asked.add(peer.id)
                await service.in_thread(_fill, peer)
        left = [peer for peer in service.peers.values() if not peer.is_complete]
        # Who is in the middle of a handshake is refused at its end, or was just admitted.
        if not left and not service.connections:
            return []
        remaining_s = deadline - service.loop.time()
        if remaining_s <= 0 or hurry.is_set():
            break
        try:
            async with asyncio.timeout(min(_LOOK_S, remaining_s)):
                await hurry.wait()
        except TimeoutError:
            pass
    return [await _left(service, peer) for peer in left]


def _fill(peer: Peer) -> None:
    try:
        peer.fill()
    except Exception:  # it has ended, or will be named as incomplete
        return


async def _left(service: Service, peer: Peer) -> Left:
    missing = await service.in_thread(peer.missing_bytes)
    errors = await service.in_thread(peer.errors)
    why = "the time was over"
    if errors:
        why = f"{len(errors)} of its clusters cannot be loaded: {errors[0].reason}"
    return Left(peer, missing, why)
