"""What a service counts: of each peer, and of all there ever were, by image.

Sums never fall: what is known of a peer stays in them when it goes.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from lazyrestore._core import FILL_STATES
from lazyrestore._latency import from_histogram
from lazyrestore._native import lib

if TYPE_CHECKING:
    from lazyrestore._native import CData
    from lazyrestore.reports import Latency

    from .peer import Peer
    from .service import Service

READ_S = 0.25
"""How long one peer's figures are waited for; where a load takes longer, the last ones are good."""
IMAGES_MAX = 1000
OTHERS = "others"
"""What images are called together that came after the first IMAGES_MAX."""

ACCESSES = ("read", "write")
RESULTS = ("data", "zero", "fenced", "present")
"""What a fault was answered with, in the order of enum lr_action, from 1 on."""

_BUCKETS = int(lib.LR_HISTOGRAM_BUCKETS)
_NO_ANSWERS = ((0,) * len(RESULTS),) * len(ACCESSES)


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What one peer's session has done, or several in sum. Bytes and ns.

    Attributes:
        faults: faults that came.
        answers: of them, by access and by result: those that were answered.
        copied_bytes, zeroed_bytes: installed, whether a fault asked for it or not.
        read_bytes: of the image.
        clusters: decoded.
        errors: clusters that could not be loaded.
        total_bytes: memory that is served.
        missing_bytes: of it, neither loaded nor given up.
        fill: as in `FILL_STATES`; "" of several.
        latency_count, latency_sum_ns, latency_max_ns, buckets: `struct lr_histogram`, of the time
            from reading a fault's message to its page being there.
    """

    faults: int = 0
    answers: tuple[tuple[int, ...], ...] = _NO_ANSWERS
    copied_bytes: int = 0
    zeroed_bytes: int = 0
    read_bytes: int = 0
    clusters: int = 0
    errors: int = 0
    total_bytes: int = 0
    missing_bytes: int = 0
    fill: str = ""
    latency_count: int = 0
    latency_sum_ns: int = 0
    latency_max_ns: int = 0
    buckets: tuple[int, ...] = (0,) * _BUCKETS

    @classmethod
    def of(cls, stats: CData, page_size: int) -> Self:
        """Of a `struct lr_session_stats *`, whose pages have so many bytes."""
        return cls(
            faults=int(stats.faults),
            answers=tuple(tuple(map(int, row))[1:] for row in stats.answers),
            copied_bytes=int(stats.pages_copied) * page_size,
            zeroed_bytes=int(stats.pages_zeroed) * page_size,
            read_bytes=int(stats.payload_bytes_read),
            clusters=int(stats.clusters_decoded),
            errors=int(stats.errors),
            total_bytes=int(stats.pages_total) * page_size,
            missing_bytes=int(stats.pages_missing) * page_size,
            fill=FILL_STATES[stats.fill],
            latency_count=int(stats.service.count),
            latency_sum_ns=int(stats.service.sum_ns),
            latency_max_ns=int(stats.service.max_ns),
            buckets=tuple(stats.service.buckets),
        )

    def __add__(self, other: Figures) -> Figures:
        """Both together."""
        return Figures(
            faults=self.faults + other.faults,
            answers=tuple(map(_sums, self.answers, other.answers)),
            copied_bytes=self.copied_bytes + other.copied_bytes,
            zeroed_bytes=self.zeroed_bytes + other.zeroed_bytes,
            read_bytes=self.read_bytes + other.read_bytes,
            clusters=self.clusters + other.clusters,
            errors=self.errors + other.errors,
            total_bytes=self.total_bytes + other.total_bytes,
            missing_bytes=self.missing_bytes + other.missing_bytes,
            latency_count=self.latency_count + other.latency_count,
            latency_sum_ns=self.latency_sum_ns + other.latency_sum_ns,
            latency_max_ns=max(self.latency_max_ns, other.latency_max_ns),
            buckets=_sums(self.buckets, other.buckets),
        )

    def by_name(self) -> dict[str, dict[str, int]]:
        """`answers` by the words of ACCESSES and RESULTS."""
        return {
            access: dict(zip(RESULTS, row, strict=True))
            for access, row in zip(ACCESSES, self.answers, strict=True)
        }

    def past(self) -> Figures:
        """What stays of it when the peer has gone: all but its memory."""
        return dataclasses.replace(self, total_bytes=0, missing_bytes=0, fill="")

    def latency(self) -> Latency | None:
        """From reading a fault's message to its page being there; None where none was answered."""
        return from_histogram(
            self.latency_count, self.latency_sum_ns, self.latency_max_ns, self.buckets
        )


def _sums(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    return tuple(one + other for one, other in zip(left, right, strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was to count at one moment.

    Attributes:
        peers: those that are served, each with its figures.
        sums: by image, of all peers there ever were; memory only of those that are served.
    """

    peers: list[tuple[Peer, Figures]]
    sums: dict[str, Figures]


class Tallies:
    """Keeps the figures of a service. Belongs to the thread of its loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._last: dict[int, tuple[str, Figures]] = {}  # of peers that have not gone
        self._past: dict[str, Figures] = {}  # of those that have, by image
        self._names: set[str] = set()
        self._reading: dict[int, asyncio.Task[None]] = {}
        self.gone = 0

    def end(self, peer: Peer, stats: CData | None) -> None:
        """A peer has gone, and these were its last figures (None: they are not known)."""
        if stats is not None:
            self._note(peer, Figures.of(stats, peer.page_size))
        name, figures = self._last.pop(peer.id, (self.name(peer), Figures()))
        self._past[name] = self._past.get(name, Figures()) + figures.past()
        self.gone += 1

    def _note(self, peer: Peer, figures: Figures) -> None:
        self._last[peer.id] = self.name(peer), figures

    def name(self, peer: Peer) -> str:
        """What its image is called; of more images than can be told apart, the last are one."""
        name = peer.image.path
        if name not in self._names:
            if len(self._names) >= IMAGES_MAX:
                return OTHERS
            self._names.add(name)
        return name

    async def snapshot(self) -> Snapshot:
        """Ask all peers, none of them for long."""
        service = self._service
        for peer in service.peers.values():
            if peer.id not in self._reading:
                self._reading[peer.id] = service.loop.create_task(self._read(peer))
        if self._reading:
            await asyncio.wait(list(self._reading.values()), timeout=READ_S)
        sums = dict(self._past)
        for name, figures in self._last.values():
            sums[name] = sums.get(name, Figures()) + figures
        found = [
            (peer, self._last[peer.id][1] if peer.id in self._last else Figures())
            for peer in service.peers.values()
        ]
        return Snapshot(found, sums)

    async def _read(self, peer: Peer) -> None:
        try:
            stats = await self._service.in_thread(peer.stats)
        finally:
            del self._reading[peer.id]
        # One that has gone meanwhile is in the sums already.
        if stats is not None and self._service.peers.get(peer.id) is peer:
            self._note(peer, Figures.of(stats, peer.page_size))
