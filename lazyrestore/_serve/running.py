"""A service within its loop, with all that is around it: signals, the keeper, successors, the end.

The same for a service that was started, and for a keeper that has become one.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import socket
from typing import TYPE_CHECKING, NoReturn

from lazyrestore._paths import absolute
from lazyrestore.errors import LazyRestoreError

from . import criu, listen, shutdown, takeover
from .criu_wire import want_senders
from .ending import is_memory_gone
from .estates import give_up, is_of_restore
from .events import peers
from .holdings import HeldImage, HeldListener, HeldPeer, Holdings, Record
from .ledger import NoLedger
from .listen import Listener
from .peer import PeerFds
from .service import Service
from .sockets import credentials
from .status import Status
from .warden import Warding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .connection import Connection
    from .events import Events
    from .images import Images
    from .keeping import Keeping
    from .notify import Notifier
    from .options import ServeOptions

_IDLE_S = 0.5
_LOOK_S = 0.01
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LESS_TO_DO = ("gone", "refused", "restored")


class KeeperLedger:
    """What the service says of its peers, for the keeper."""

    def __init__(self, keeping: Keeping, images: Images, warding: Warding) -> None:
        self._keeping = keeping
        self._warding = warding
        self._images = images
        self._always: set[str] = set()  # the one image that is served: whoever comes gets it

    def hold(self, path: str, digest: str) -> None:
        """Keep an image whether anyone is served from it or not."""
        self._always.add(digest)
        self.image(path, digest)

    def accepted(self, key: str, fd: int) -> None:
        """See `service.Ledger`."""
        self._keeping.accepted(key, fd)

    def peer(self, key: str, record: Record, fds: dict[str, int]) -> None:
        """See `service.Ledger`."""
        if record.get("restore") and "pidfd" in fds:
            self._warding.add(int(str(record.get("pid", 0))), fds["pidfd"])
        known = self._keeping.holdings.peers.get(key)
        strikes = 0 if known is None else known.strikes
        self._keeping.peer(key, HeldPeer(fds, record, strikes))

    def image(self, path: str, digest: str) -> None:
        """See `service.Ledger`."""
        if digest not in self._keeping.holdings.images:
            fd = self._images.descriptor(digest)
            if fd is not None:
                # A copy: it is sent to each new keeper, and the image may have gone by then.
                self._keeping.image(digest, HeldImage(os.dup(fd), path, digest))

    def gone(self, key: str) -> None:
        """See `service.Ledger`."""
        held = self._keeping.holdings
        if (known := held.peers.get(key)) is not None and "pidfd" in known.fds:
            self._warding.remove(known.fds["pidfd"])
        self._keeping.gone(key)
        used = {peer.record.get("digest") for peer in held.peers.values() if peer.record}
        for digest in [one for one in held.images if one not in used and one not in self._always]:
            image = held.images[digest]
            self._keeping.unimage(digest)
            os.close(image.fd)


class Running:
    """One service, from its first moment to its end.

    Args:
        options: what was asked for.
        images: what is served.
        keeping: the keeper, started.
        events: is told of what happens.
        notifier: systemd's, if there is one.
        is_promoted: this was a keeper: it ends with its last peer, and any new service takes over.
    """

    def __init__(
        self,
        options: ServeOptions,
        images: Images,
        keeping: Keeping,
        *,
        events: Events,
        notifier: Notifier,
        is_promoted: bool,
    ) -> None:
        self.options = options
        self.images = images
        self.keeping = keeping
        self.events = events
        self.emit = events.emit
        self.notifier = notifier
        self.is_replaceable = is_promoted
        self.warding = Warding(keeping, self._emit, kills=options.on_error != "poison")
        self._ledger = KeeperLedger(keeping, images, self.warding)
        self.service = Service(options, images, emit=self._emit, ledger=self._ledger)
        self.service.requests["takeover"] = self._on_takeover
        self.service.bury = self.warding.bury
        self.strangers: list[int] = []
        self.status = Status(
            self.service, events, keeper_pid=lambda: keeping.pid, is_promoted=is_promoted
        )
        self._hurry = asyncio.Event()
        self._stop = asyncio.Event()
        self._is_taken = False
        self._is_giving = False
        self._is_waiting = False
        self.listeners: list[Listener] = []

    def _emit(self, name: str, **fields: object) -> None:
        self.emit(name, **fields)
        if name in _LESS_TO_DO:
            self.service.loop.call_soon(self._end_if_idle)

    # The beginning.

    def begin(self) -> None:
        """Be ready for `listen` and `adopt`; within the loop."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        self.service.start()
        if (image := self.images.held) is not None:
            self._ledger.hold(image.path, image.digest)
        if self.notifier.watchdog_s is not None:
            self._say_alive()

    def listen(self, listener: Listener) -> None:
        """Accept from a socket."""
        if listener.kind == criu.PROTOCOL:
            want_senders(listener.sock)
            self.warding.start()
            self.warding.announce()
        self.listeners.append(listener)
        fd = listener.sock.fileno()
        held = HeldListener(fd, listener.path, listener.identity, listener.kind)
        self.keeping.listener(listener.path, held)
        self.service.add_listener(listener)

    def unlisten(self, listener: Listener) -> None:
        """Accept from it no more, and remove it."""
        self.listeners.remove(listener)
        self.service.remove_listener(listener.path)
        self.keeping.unlisten(listener.path)
        listener.close()

    async def adopt_served(self, peers: Mapping[str, HeldPeer]) -> None:
        """Go on with those of a predecessor's who were served, or about to be; before `listen`."""
        for key, held in peers.items():
            if held.record is not None:
                await self.adopt(key, held)

    async def adopt_others(self, peers: Mapping[str, HeldPeer]) -> None:
        """Begin with those who had merely connected; what they say next may be of the others."""
        for key, held in peers.items():
            if held.record is None:
                await self.adopt(key, held)

    async def adopt(self, key: str, held: HeldPeer) -> None:
        """Go on with somebody of a predecessor's. Who cannot be served is ended or let go."""
        fds = dict(held.fds)
        sock = socket.socket(fileno=fds.pop("socket")) if "socket" in fds else None
        if held.record is None:
            if sock is not None:
                path = absolute(os.fsdecode(sock.getsockname() or ""))
                self.service.adopt_connection(sock, path, int(key))
            return
        own = PeerFds(fds.get("userfaultfd", -1), sock, fds.get("pidfd"), fds.get("state", -1))
        try:
            peer = await self.service.adopt(held.record, own)
        except Exception as error:
            is_task = is_of_restore(held)
            # Those of whom no process is known are often dead, and nobody has noticed yet.
            if not is_task or not is_memory_gone(own.uffd):
                self._emit("error", peer=int(key), reason=f"it cannot be served on: {error}")
            if is_task:
                await give_up(self, key, held)
                return
            if self.options.on_error == "kill":
                kill(own.pidfd)
            self._ledger.gone(key)
            own.close()
            return
        if peer.is_filled or not self.service.admits:
            await self.service.in_thread(peer.fill)

    # Successors.

    async def _on_takeover(self, connection: Connection, message: dict[str, object]) -> None:
        """Another service asks for everything."""
        self._ledger.gone(str(connection.id))  # it is no peer
        sock = connection.detach()
        self.service.spawn(self._give(sock, message))

    async def _give(self, sock: socket.socket, message: dict[str, object]) -> None:
        if self._is_giving or self._is_taken:
            sock.close()
            return
        self._is_giving = True
        try:
            self._is_taken = await takeover.give(sock, message, self)
        finally:
            self._is_giving = False
        if self._is_taken:
            self._stop.set()
            self._hurry.set()

    async def pause(self) -> None:
        """See `takeover.Giver`."""
        await self.service.restores.freeze()
        await self.service.pause()

    def resume(self) -> None:
        """See `takeover.Giver`."""
        self.service.resume()
        self.service.restores.thaw()

    async def stop_serving(self) -> None:
        """See `takeover.Giver`."""
        await self.service.stop_serving()

    def leave_to(self, sock: socket.socket) -> None:
        """See `takeover.Giver`."""
        pid, _, _ = credentials(sock)
        try:
            self.warding.leave_to(os.pidfd_open(pid))
        except OSError:  # it has ended, and its keeper finds nothing to go on with
            return

    # Figures.

    def serve_metrics(self) -> None:
        """Serve them where they were asked for; if who served before is still there, later."""
        if self.options.metrics is not None:
            self.service.spawn(self._serve_metrics(self.options.metrics))

    async def _serve_metrics(self, address: str) -> None:
        from .metrics import Metrics

        try:
            # In a thread: what it imports takes longer than anybody should wait who connects.
            metrics = await self.service.in_thread(Metrics, address)
        except (ValueError, LazyRestoreError) as error:
            self._emit("error", reason=str(error))
            return
        await metrics.start_at_last(self.service, self.status)

    # The end.

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _end_if_idle(self) -> None:
        if self._is_waiting and self._may_end and not self._is_giving and self.service.is_idle:
            self._stop.set()

    @property
    def _may_end(self) -> bool:
        """Whether it ends by itself once nobody is left."""
        had_any = self.service.restores.count > 0
        return self.is_replaceable or (self.options.ends_with_peers and had_any)

    def _say_alive(self) -> None:
        assert self.notifier.watchdog_s is not None
        self.notifier.watchdog()
        self.service.loop.call_later(self.notifier.watchdog_s / 3, self._say_alive)

    async def until_end(self) -> None:
        """Serve until told to end, or taken over; then do what is to be done. Ends the process
        where peers are left to others: their descriptors are not to be closed in good order.
        """
        self._is_waiting = True
        while not self._stop.is_set():
            try:
                async with asyncio.timeout(_IDLE_S if self._may_end else None):
                    await self._stop.wait()
            except TimeoutError:
                self._end_if_idle()
        if self._is_taken:
            self.emit("stopped", reason="another service has taken over")
            self._leave_process()
        await self._finish()

    async def _finish(self) -> None:
        self.is_replaceable = True
        grace_s, count = self.options.grace_s, len(self.service.peers)
        if count:
            self.emit("grace", seconds=grace_s, peers=count)
        self.notifier.stopping(f"filling {count} peers", extend_s=grace_s + 10)
        left = await shutdown.finish(self.service, grace_s, self._hurry)
        # Whoever is just getting the sockets would find them removed.
        while self._is_giving and not self._hurry.is_set():
            await asyncio.sleep(_LOOK_S)
        if self._is_taken:
            self.emit("stopped", reason="another service has taken over")
            self._leave_process()
        for one in left:
            self.emit(
                "left",
                peer=one.peer.id,
                pid=one.peer.pid,
                missing_bytes=one.missing_bytes,
                reason=one.why,
                to="the keeper" if self.options.keeper else self.options.on_error,
            )
        if left and self.options.keeper:
            await self._leave({one.peer.id for one in left})
            # It could not: whoever asks a third time does not want to hear of that any more.
            self._hurry.clear()
            left = await shutdown.finish(self.service, math.inf, self._hurry)
        for one in left:
            # Of CRIU's tasks nobody else has the userfaultfd: they end with this process.
            if self.options.on_error == "kill" and not one.peer.restore:
                kill(one.peer.fds.pidfd)
        self.keeping.finish()
        self.service.ledger = NoLedger()
        await self.service.close()
        for fd in self.strangers:
            self.warding.bury(fd)
        self.warding.close()
        listen.close_all(self.listeners)
        self.emit("stopped")

    async def _leave(self, left: set[int]) -> None:
        """Leave the peers that are not complete to the keeper, which serves once this has ended.

        Returns where there is no keeper and none can be started.
        """
        for peer in list(self.service.peers.values()):
            if peer.id not in left:
                await self.service.end_peer(peer, "it is complete")
        await self.service.pause()
        if not self.keeping.leave():
            self.emit("error", reason="no keeper can be started: this process serves on")
            self.service.resume()
            return
        for peer in list(self.service.peers.values()):
            await self.service.in_thread(self.service.recordings.save, peer, self._emit)
        await self.service.stop_serving()
        self.emit("stopped", reason=f"the keeper serves {peers(len(left))} on")
        self._leave_process()

    def _leave_process(self) -> NoReturn:
        self.events.close()
        leave_process()


def kill(pidfd: int | None) -> None:
    """End a process, if it can be."""
    if pidfd is not None:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            return


def leave_process() -> NoReturn:
    """End without closing anything in good order: others have copies, and go on with them."""
    os._exit(0)


def merge(holdings: Holdings, keeping: Keeping) -> dict[str, HeldPeer]:
    """Have the keeper hold what a predecessor held, peers under new numbers; these peers."""
    for key, image in holdings.images.items():
        if key not in keeping.holdings.images:
            keeping.image(key, image)
    numbers = itertools.count(first_free(keeping.holdings.peers))
    new: dict[int, int] = {int(key): next(numbers) for key in holdings.peers}
    made = {}
    for key, peer in holdings.peers.items():
        if peer.record is not None:
            peer.record["id"] = new[int(key)]
            for name, number in zip(_NAMED, _named(peer), strict=True):
                # Also those that have ended: what belongs together still does.
                peer.record[name] = new.setdefault(number, next(numbers)) if number else 0
        made[str(new[int(key)])] = peer
        keeping.peer(str(new[int(key)]), peer)
    return made


def first_free(peers: Mapping[str, HeldPeer]) -> int:
    """The first number that nobody has, or has had, of whom these know."""
    used = [int(key) for key in peers]
    used += [number for peer in peers.values() for number in _named(peer)]
    return max(used, default=0) + 1


_NAMED = ("restore", "parent")
"""Other numbers in a peer's record."""


def _named(peer: HeldPeer) -> list[int]:
    return [int(str((peer.record or {}).get(name, 0))) for name in _NAMED]
