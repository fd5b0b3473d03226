"""What the loop watches of each peer: its process, its connection, and what its session tells."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from . import attached
from .sockets import close_foreign, close_socket, receive_all

if TYPE_CHECKING:
    from lazyrestore._native import CData

    from .peer import Peer
    from .service import Service

RETRY_S = 3.0
"""Between two attempts at what could not be loaded, with on_error "log"."""
_PROBE_S = 2.0
_FILL_COMPLETE = 2


class Watch:
    """Ends peers that are over, and tells of what becomes of the others."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._looking: dict[int, bool] = {}  # by peer: True: look again afterwards
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._probes: dict[int, asyncio.TimerHandle] = {}
        self._said: dict[int, set[tuple[str, int]]] = {}

    def add(self, peer: Peer) -> None:
        """Begin to watch a peer."""
        loop = self._service.loop
        if peer.fds.pidfd is not None:
            loop.add_reader(peer.fds.pidfd, self._on_process_end, peer)
        if peer.fds.pidfd is None or peer.restore:
            self._probe_later(peer)
        if peer.fds.socket is not None:
            peer.fds.socket.setblocking(False)
            loop.add_reader(peer.fds.socket.fileno(), self._on_socket, peer)
        loop.add_reader(peer.event_fd, self._on_event, peer)
        self._on_event(peer)  # it may be complete, or broken, already

    def remove(self, peer: Peer) -> None:
        """Watch it no more."""
        loop = self._service.loop
        for fd in (peer.fds.pidfd, peer.event_fd):
            if fd is not None and fd >= 0:
                loop.remove_reader(fd)
        if peer.fds.socket is not None:
            loop.remove_reader(peer.fds.socket.fileno())
        for timers in (self._probes, self._timers):
            if (timer := timers.pop(peer.id, None)) is not None:
                timer.cancel()

    async def last_words(self, peer: Peer) -> None:
        """What could not be loaded for a peer that has ended, perhaps of just that."""
        await self._tell_errors(peer)
        self._said.pop(peer.id, None)

    def _end(self, peer: Peer, reason: str) -> None:
        self.remove(peer)
        self._service.spawn(self._service.end_peer(peer, reason))

    def _on_process_end(self, peer: Peer) -> None:
        if peer.is_over():
            self._end(peer, "its process has ended")
        elif peer.fds.pidfd is not None:
            # After a vfork others have its memory still: see `_probe`.
            self._service.loop.remove_reader(peer.fds.pidfd)

    def _probe_later(self, peer: Peer) -> None:
        self._probes[peer.id] = self._service.loop.call_later(_PROBE_S, self._probe, peer)

    def _probe(self, peer: Peer) -> None:
        """Nothing tells of the end of a process without a pidfd, and of an exec, but its memory."""
        if peer.is_over():
            self._end(peer, "its memory is gone")
            return
        self._probe_later(peer)
        if peer.restore:
            self._on_event(peer)  # touches alone may have brought the last page
            self._service.spawn(self._identify(peer))

    async def _identify(self, peer: Peer) -> None:
        """Find out which process it is, of a child that was forked."""
        if peer.fds.pidfd is None and await self._service.in_thread(peer.identify):
            self._service.ledger.peer(str(peer.id), peer.record(), peer.fds.by_role())
            self._emit("identified", peer)

    def _on_socket(self, peer: Peer) -> None:
        """Whatever comes after the handshake is dropped. Its end says nothing by itself: some
        close the connection once the handshake is sent, and live on.
        """
        assert peer.fds.socket is not None
        try:
            data, fds, _ = receive_all(peer.fds.socket)
            close_foreign(fds)
            if data:
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        sock, peer.fds.socket = peer.fds.socket, None
        self._service.loop.remove_reader(sock.fileno())
        self._service.ledger.peer(str(peer.id), peer.record(), peer.fds.by_role())
        close_socket(sock)
        if attached.is_over_when_closed(peer):
            self._end(peer, "it has detached")
        elif peer.is_over():
            self._end(peer, "its process has ended")

    def _on_event(self, peer: Peer) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(peer.event_fd)
        if peer.id in self._looking:
            self._looking[peer.id] = True
            return
        self._looking[peer.id] = False
        self._service.spawn(self._look(peer))

    async def _look(self, peer: Peer) -> None:
        try:
            while True:
                self._looking[peer.id] = False
                await self._look_once(peer)
                if not self._looking[peer.id]:
                    return
        finally:
            del self._looking[peer.id]

    async def _look_once(self, peer: Peer) -> None:
        stats = await self._service.in_thread(peer.stats)
        if stats is None or self._service.peers.get(peer.id) is not peer:
            return
        if stats.is_gone:
            self._end(peer, "its memory is gone")
            return
        if stats.errors > peer.known_errors:
            peer.known_errors = int(stats.errors)
            await self._on_errors(peer)
        elif self._is_complete(peer, stats) and not peer.is_complete:
            peer.is_complete = True
            self._emit("complete", peer)
        attached.say_complete(peer, stats)
        await self._service.restores.look(peer)
        if peer.is_complete and peer.restore:
            # What is closed now was nobody's last hope: it is ordinary memory from then on.
            self._end(peer, "all has been loaded")

    def _is_complete(self, peer: Peer, stats: CData) -> bool:
        if stats.pages_missing:
            return False
        if peer.restore:
            return peer.is_settled
        return bool(stats.fill == _FILL_COMPLETE)

    async def _on_errors(self, peer: Peer) -> None:
        """Something could not be loaded: say what, and do what was asked for."""
        await self._tell_errors(peer)
        if self._service.peers.get(peer.id) is not peer:
            return
        if self._service.options.on_error == "kill":
            try:
                await self._service.in_thread(peer.identify)
                peer.kill()
            except OSError as failed:
                self._emit("error", peer, reason=f"it cannot be ended: {failed.strerror}")
        elif self._service.options.on_error == "log":
            if (timer := self._timers.pop(peer.id, None)) is not None:
                timer.cancel()
            self._timers[peer.id] = self._service.loop.call_later(RETRY_S, self._retry, peer)

    async def _tell_errors(self, peer: Peer) -> None:
        """Those that were not told of yet."""
        said = self._said.setdefault(peer.id, set())
        for error in await self._service.in_thread(peer.errors):
            if (error.region, error.offset) not in said:
                said.add((error.region, error.offset))
                self._emit(
                    "error",
                    peer,
                    region=error.region,
                    offset=error.offset,
                    length=error.length,
                    cluster=error.cluster,
                    reason=error.reason,
                    action=self._service.options.on_error,
                )

    def _retry(self, peer: Peer) -> None:
        self._service.spawn(self._service.in_thread(peer.retry))

    def _emit(self, name: str, peer: Peer, **fields: object) -> None:
        self._service.emit(name, **{**peer.describe(), **fields})
