"""The answer to {"type":"status"}: what a service is, and how each of its peers is.

One JSON object: sizes in bytes, times in µs, unless the name says otherwise. `lazyrestore top`
shows it; so does

    echo '{"type":"status"}' | socat - UNIX-CONNECT:PATH
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import lazyrestore

from .events import Events, rfc3339

if TYPE_CHECKING:
    from .connection import Connection
    from .figures import Figures
    from .peer import Peer
    from .service import Service

VERSION = 1


class Status:
    """Reports on a service.

    Args:
        service: which.
        events: what it says.
        keeper_pid: the process that would take over; None: there is none.
        is_promoted: whether this was a keeper, and took over.
    """

    def __init__(
        self,
        service: Service,
        events: Events,
        *,
        keeper_pid: Callable[[], int | None] = lambda: None,
        is_promoted: bool = False,
    ) -> None:
        self.service = service
        self.events = events
        self.keeper_pid = keeper_pid
        self.is_promoted = is_promoted
        service.requests["status"] = self.answer

    async def answer(self, connection: Connection, fields: dict[str, object]) -> None:
        """Tell somebody who has connected; raises OSError where he is gone."""
        report = await self.report(connection)
        text = json.dumps(report) + "\n"
        await connection.send(text.encode())

    async def report(self, asker: Connection) -> dict[str, object]:
        """The whole answer to somebody."""
        snapshot = await self.service.tallies.snapshot()
        now = time.time()
        return {
            "type": "status",
            "version": VERSION,
            "service": self._of_service(now, asker),
            "peers": [_of_peer(peer, figures, now) for peer, figures in snapshot.peers],
        }

    def _of_service(self, now: float, asker: Connection) -> dict[str, object]:
        service, options = self.service, self.service.options
        return {
            "pid": os.getpid(),
            "version": lazyrestore.__version__,
            "time": rfc3339(now),
            "since": rfc3339(service.since),
            "seconds": round(max(0.0, now - service.since), 3),
            "image": options.image,
            "image_dir": options.image_dir,
            "sockets": sorted(service.listeners),
            "on_error": options.on_error,
            "prefetch": options.prefetch,
            "keeper_pid": self.keeper_pid(),
            "is_promoted": self.is_promoted,
            "is_admitting": service.admits,
            "connections": len(service.connections.keys() - {asker.id}),
            "peers": len(service.peers),
            "admitted": service.admitted,
            "gone": service.tallies.gone,
            "refused": dict(service.refused),
            "takeovers": self.events.counts["taken_over"],
            "errors": self.events.counts["error"],
            "resident_bytes": resident_bytes(),
        }


def _of_peer(peer: Peer, figures: Figures, now: float) -> dict[str, object]:
    latency = figures.latency()
    return {
        "peer": peer.id,
        "pid": peer.pid,
        "command": _command(peer.pid),
        "uid": peer.uid,
        "protocol": peer.protocol,
        "restore": peer.restore,
        "task": peer.task,
        "parent": peer.parent,
        "socket": peer.path,
        "image": peer.image.path,
        "since": rfc3339(peer.since),
        "seconds": round(max(0.0, now - peer.since), 3),
        "page_size": peer.page_size,
        "total_bytes": peer.total_bytes,
        "missing_bytes": figures.missing_bytes,
        "copied_bytes": figures.copied_bytes,
        "zeroed_bytes": figures.zeroed_bytes,
        "read_bytes": figures.read_bytes,
        "faults": figures.faults,
        "answers": figures.by_name(),
        "errors": figures.errors,
        "fill": figures.fill,
        "is_complete": peer.is_complete,
        "service_us": dataclasses.asdict(latency) if latency is not None else None,
    }


def _command(pid: int) -> str:
    """What a process is called; "" where it cannot be seen."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode("utf-8", "backslashreplace").strip()
    except OSError:
        return ""


def resident_bytes() -> int:
    """Memory of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
