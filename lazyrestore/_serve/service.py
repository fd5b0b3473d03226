"""The service: who is admitted, who is served, and what ends when.

    service = Service(options, images, emit=events.emit)
    service.add_listener(listener)
    service.start()                  # within a running asyncio loop
    await service.ended.wait()

Each connection is a task until its handshake is whole; then it is a `Peer`, whose faults a C thread
serves, and of which the loop hears only when a load failed, a fill ended, or the peer did.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from lazyrestore._paths import absolute
from lazyrestore.errors import LazyRestoreError, ProcessError

from . import attached, criu
from .accepting import Accepting
from .attaching import MAGIC as ATTACH_MAGIC
from .attaching import REQUEST_MAGIC as ATTACHING_MAGIC
from .connection import Connection, Edges, refusal_bytes
from .descriptors import raise_descriptor_limit, take_descriptors
from .figures import Tallies
from .handshake import Refusal, page_size_of, parse_json, parse_regions, place
from .images import Images, choose_working_set
from .ledger import Ledger, Listener, NoLedger
from .peer import Peer, PeerFds
from .recordings import Recordings
from .restores import Restores
from .sockets import choose_uffd
from .watch import Watch

if TYPE_CHECKING:
    from lazyrestore._open import Image
    from lazyrestore._workingset import WorkingSet

    from .options import ServeOptions

CONNECTIONS_MAX = 1024
"""Connections whose handshake is not whole; more are refused."""
PEERS_MAX = 1000
_FDS_OF_A_PEER = 12
_SPARE_FDS = 64
_THREADS = 32

_T = TypeVar("_T")
Request = Callable[[Connection, dict[str, object]], Awaitable[None]]
Emit = Callable[..., None]


class Service:
    """Admits peers and serves them until they end. Belongs to the thread of its loop.

    Attributes:
        options: what was asked for.
        images: what is served.
        emit: `emit(name, **fields)`: is told of everything that happens.
        ledger: see `Ledger`.
        listeners: by their paths.
        connections: whose handshake is not whole, by number.
        peers: who is served, by number.
        requests: what {"type": NAME} does, for the service's own user and root.
        refused: how many were refused, by the reason's code.
        admits: whether anybody is admitted; see `stop_admitting`.
        ended: set when the service is to end; by whoever decides that.
        since: when it began, time.time().
        admitted: how many peers were served so far.
        tallies: what they did, in figures.
    """

    def __init__(
        self,
        options: ServeOptions,
        images: Images,
        *,
        emit: Emit,
        ledger: Ledger | None = None,
    ) -> None:
        self.options = options
        self.images = images
        self.emit = emit
        self.ledger: Ledger = NoLedger() if ledger is None else ledger
        self.listeners: dict[str, Listener] = {}
        self.connections: dict[int, Connection] = {}
        self.peers: dict[int, Peer] = {}
        self.requests: dict[str, Request] = {}
        self.refused: Counter[str] = Counter()
        self.admits = True
        self.ended = asyncio.Event()
        self.since = time.time()
        self.admitted = 0
        self.tallies = Tallies(self)
        self.numbers = itertools.count(1)
        self.bury: Callable[[int], bool] | None = None  # see `Peer.bury`
        self.recordings = Recordings(options.record)
        self.restores = Restores(self)
        self.executor = ThreadPoolExecutor(_THREADS, "lazyrestore-serve")
        self.peers_max = PEERS_MAX
        self.connections_max = CONNECTIONS_MAX
        self._tasks: set[asyncio.Task[None]] = set()
        self._talks: dict[int, asyncio.Task[None]] = {}  # by connection
        self._starting: set[int] = set()  # connections that are peers in a moment
        self._is_paused = False
        self._endings: set[asyncio.Future[None]] = set()
        self._accepting = Accepting(self.listeners, self.adopt_connection, emit)
        self._watch = Watch(self)
        self._sets: dict[int, tuple[Image, WorkingSet | None]] = {}

    def start(self) -> None:
        """Begin to accept; within the loop."""
        self.loop = asyncio.get_running_loop()
        self._edges = Edges(self.loop)
        limit = raise_descriptor_limit()
        room = max(limit - _SPARE_FDS, 16)
        self.peers_max = min(PEERS_MAX, room // (_FDS_OF_A_PEER + 4))
        self.connections_max = min(CONNECTIONS_MAX, max(8, room // 4))
        self._accepting.start()

    def add_listener(self, listener: Listener) -> None:
        """Accept from one more socket."""
        self.listeners[listener.path] = listener
        self._accepting.add(listener)
        self.emit("listening", socket=listener.path)

    def remove_listener(self, path: str) -> Listener:
        """Accept from a socket no more; whoever wants to closes it."""
        listener = self.listeners.pop(path)
        self._accepting.remove(listener)
        return listener

    def stop_admitting(self) -> None:
        """Refuse whoever comes from now on; peers are served on. Listeners stay open."""
        self.admits = False

    @property
    def is_paused(self) -> bool:
        """See `pause`."""
        return self._is_paused

    @property
    def is_idle(self) -> bool:
        """Nobody is served, nor about to be."""
        return not (self.peers or self.connections or self.restores.is_busy)

    # Accepting.

    async def pause(self) -> None:
        """Accept nobody, and let be who has connected but is not served yet: a successor, or
        `resume`, begins with them anew. Peers are served on; who is just becoming one is awaited.
        """
        self._is_paused = True
        self._accepting.stop()
        for number, talk in self._talks.items():
            # What they have sent is out of the socket: they are served first.
            if number not in self._starting:
                talk.cancel()
        await asyncio.gather(*self._talks.values(), return_exceptions=True)
        for connection in list(self.connections.values()):
            # What was taken out of a socket cannot be put back: those have to connect again.
            if connection.is_untouched:
                connection.let_be()
            else:
                self._forget(connection)

    def resume(self) -> None:
        """Undo `pause`."""
        self._is_paused = False
        waiting = list(self.connections.values())
        self.connections.clear()
        for connection in waiting:
            self.adopt_connection(connection.socket, connection.path, connection.id)
        self._accepting.start()

    def adopt_connection(
        self, sock: socket.socket, path: str, number: int | None = None
    ) -> Connection | None:
        """Begin with somebody who has connected, here or to a predecessor, and sent nothing that
        was taken out of the socket yet. None: it has been refused.
        """
        number = next(self.numbers) if number is None else number
        # First of all: a kill before this would end the connection.
        self.ledger.accepted(str(number), sock.fileno())
        try:
            connection = Connection(number, sock, path, self._edges)
        except OSError as error:
            self.ledger.gone(str(number))
            sock.close()
            self.emit("error", reason=f"a connection ended at once: {error}")
            return None
        self.connections[number] = connection
        self.emit("connected", peer=number, pid=connection.pid, uid=connection.uid, socket=path)
        try:
            self._check_welcome(connection)
        except Refusal as refusal:
            self._refuse(connection, refusal)
            return None
        self._talks[number] = self.spawn(self._converse(connection))
        return connection

    def _check_welcome(self, connection: Connection) -> None:
        known = {os.geteuid(), 0, *self.options.allow_uids}
        if connection.uid not in known:
            raise Refusal(
                "user", f"user {connection.uid} is not admitted: --allow-uid {connection.uid} would"
            )
        if len(self.connections) > self.connections_max:
            raise Refusal(
                "busy", f"{self.connections_max} others have connected and not said what they want"
            )

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run a task, and hold it until it is done."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def in_thread(self, call: Callable[..., _T], *arguments: object) -> _T:
        """Have another thread do what may block. What is cancelled here ends when that is done."""
        work = self.loop.run_in_executor(self.executor, call, *arguments)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    # Talking.

    async def _converse(self, connection: Connection) -> None:
        try:
            await self._hear(connection)
        except Refusal as refusal:
            self._refuse(connection, refusal)
        except ProcessError as error:
            self._refuse(connection, Refusal("gone", str(error)))
        except (LazyRestoreError, OSError, ValueError, MemoryError) as error:
            self._refuse(connection, Refusal("failed", str(error) or type(error).__name__))
        except asyncio.CancelledError:
            if not self._is_paused:
                self._forget(connection)
            raise
        except BaseException as error:
            self._refuse(connection, Refusal("failed", f"this should not happen: {error!r}"))
            raise
        else:
            self._forget(connection)
        finally:
            self._talks.pop(connection.id, None)

    async def _hear(self, connection: Connection) -> None:
        listener = self.listeners.get(connection.path)
        is_criu = listener is not None and listener.kind == criu.PROTOCOL
        if is_criu and await self.restores.attend(connection):
            return
        first = await connection.first_bytes()
        if not first:
            return  # somebody looked whether we are there
        if first == ATTACH_MAGIC and not is_criu:
            await attached.attend(self, connection)
            return
        if first == ATTACHING_MAGIC:
            return  # it was in the middle of it with a predecessor: it connects again
        message = parse_json(await connection.message())
        if isinstance(message, dict) and isinstance(kind := message.get("type"), str):
            connection.stop_peeking()
            await self._answer(connection, kind, message)
            return
        if is_criu:
            raise Refusal("garbage", "this socket is for criu restore --lazy-pages")
        protocol = "nydus" if isinstance(message, dict) else "firecracker"
        regions = parse_regions(message)
        uffd = choose_uffd(connection.fds)
        image, first_set = await self.image_for(connection.path)
        ranges = place(regions, image.regions)
        peer = Peer(
            id=connection.id,
            pid=connection.pid,
            uid=connection.uid,
            path=connection.path,
            protocol=protocol,
            image=image,
            ranges=ranges,
            page_size=page_size_of(regions),
            since=connection.since,
            fds=self.descriptors(connection, uffd),
        )
        await self.admit(peer, connection, first_set)

    async def _answer(self, connection: Connection, kind: str, message: dict[str, object]) -> None:
        handler = self.requests.get(kind)
        if handler is None:
            raise Refusal("garbage", f"nothing is known of type {kind[:40]!r}")
        if connection.uid not in (os.geteuid(), 0):
            raise Refusal("user", f"only this service's own user may ask for {kind!r}")
        await handler(connection, message)

    async def image_for(self, path: str) -> tuple[Image, WorkingSet | None]:
        """The image for who came to a socket, and what of it is loaded first."""
        image = self.images.held
        if image is None:
            image = await self.in_thread(self.images.for_socket, path)
        if (known := self._sets.get(id(image))) is not None:
            return known
        first, warning = await self.in_thread(choose_working_set, image, self.options.plan)
        if warning is not None:
            self.emit("error", reason=warning, image=image.path)
        served = {id(peer.image) for peer in self.peers.values()}
        self._sets = {key: value for key, value in self._sets.items() if key in served}
        self._sets[id(image)] = image, first
        return image, first

    def descriptors(self, connection: Connection, uffd: int) -> PeerFds:
        """A peer's descriptors, of a connection's, whose number `uffd` is the userfaultfd.

        Raises:
            Refusal: its process has ended, or could not be ended if that was needed.
        """
        return take_descriptors(connection, uffd, is_end_needed=self.options.on_error == "kill")

    # Serving.

    async def admit(self, peer: Peer, connection: Connection, first: WorkingSet | None) -> None:
        """Serve who has finished a handshake; the connection becomes the peer's.

        Raises:
            Refusal, LazyRestoreError, ValueError, OSError: it cannot be served; all that it had is
                closed.
        """
        try:
            self.check_room()
            peer.is_filled = first is not None
            with self.not_interrupted(connection):
                await self.serve(peer, first, lambda: connection.take(len(connection.data)))
        except BaseException:
            self.ledger.gone(str(peer.id))  # before its descriptors are closed
            peer.fds.socket = None  # the connection's again, for a last word
            await self.in_thread(peer.close)
            raise
        connection.let_be()
        self.connections.pop(connection.id, None)
        attached.say_served(peer)
        self._watch.add(peer)

    def check_room(self) -> None:
        """See whether one more can be served; else Refusal."""
        if not self.admits:
            raise Refusal("ending", "this service is about to end")
        if len(self.peers) + len(self._starting) >= self.peers_max:
            raise Refusal("busy", f"{self.peers_max} are served already")

    @contextlib.contextmanager
    def not_interrupted(self, connection: Connection) -> Iterator[None]:
        """Meanwhile `pause` awaits what a connection brings about, and does not cancel it."""
        self._starting.add(connection.id)
        try:
            yield
        finally:
            self._starting.discard(connection.id)

    async def serve(
        self, peer: Peer, first: WorkingSet | None, taken: Callable[[], object]
    ) -> None:
        """Begin to serve a peer, which the keeper is told of first.

        Args:
            peer: who.
            first: what is loaded first.
            taken: is called when the keeper has all of it: what it came with may be forgotten.

        Raises:
            LazyRestoreError, ValueError, OSError: it cannot be served; its descriptors are open.
        """
        peer.bury, peer.others = self.bury, self._processes
        peer.prepare()
        self.ledger.image(absolute(peer.image.path), peer.image.digest)
        self.ledger.peer(str(peer.id), peer.record(), peer.fds.by_role())
        taken()
        self.emit("admitted", **peer.describe())
        await self._start(peer, first)

    def _processes(self) -> set[int]:
        return {peer.pid for peer in list(self.peers.values())}

    def watch(self, peer: Peer) -> None:
        """Begin to notice what becomes of a peer."""
        self._watch.add(peer)

    async def adopt(self, record: Mapping[str, object], fds: PeerFds) -> Peer:
        """Go on serving a peer of a predecessor's, by `Peer.record` and its descriptors.

        Raises:
            ValueError: it is no such record, or its descriptors are of no use.
            OSError, ImageError: its image is not there any more.
            ProcessError: it has ended.
        """
        peer = Peer.from_record(record, fds, self.images.open)
        peer.bury, peer.others = self.bury, self._processes
        peer.prepare()
        await self._start(peer, None)
        attached.say_served(peer)
        self._watch.add(peer)
        return peer

    async def _start(self, peer: Peer, first: WorkingSet | None) -> None:
        on_error = "fence" if self.options.on_error == "poison" else "hold"
        # In a thread: it waits for a predecessor that is just dying, and for the peer's memory.
        await self.in_thread(peer.start, self.options.plan, on_error, first)
        self.peers[peer.id] = peer
        self.admitted += 1
        self.emit("serving", **peer.describe())

    async def end_peer(self, peer: Peer, reason: str) -> None:
        """Stop serving a peer, and free all that it had. Does nothing the second time."""
        if self.peers.pop(peer.id, None) is None:
            return
        self._watch.remove(peer)
        self._endings.add(ending := asyncio.ensure_future(self._end_peer(peer, reason)))
        ending.add_done_callback(self._endings.discard)
        await asyncio.shield(ending)

    async def _end_peer(self, peer: Peer, reason: str) -> None:
        if peer.restore:
            await self.restores.thawed()
        await self.restores.look(peer)
        stats = await self.in_thread(peer.stats)
        self.tallies.end(peer, stats)
        await self._watch.last_words(peer)
        await self.in_thread(self.recordings.save, peer, self.emit)
        if peer.restore:
            await self.in_thread(peer.end)  # while the keeper still holds it, too
            await self.restores.look_at_the_end(peer)
            others = list(self.peers.values())
            await self.in_thread(self.recordings.finish, peer, others, self.emit)
        self.ledger.gone(str(peer.id))
        await self.in_thread(peer.close)
        self.emit(
            "gone",
            **peer.describe(),
            reason=reason,
            faults=0 if stats is None else int(stats.faults),
            seconds=round(time.time() - peer.since, 3),
        )

    async def stop_serving(self) -> None:
        """Stop serving everybody, for a successor: nothing is fenced, waked or closed."""
        for peer in self.peers.values():
            self._watch.remove(peer)
        await asyncio.gather(*(self.in_thread(peer.end_serving) for peer in self.peers.values()))

    async def close(self) -> None:
        """End all that is left: connections, peers, threads. Peers that miss pages wait for good,
        or for whoever has copies of their descriptors.
        """
        self._is_paused = True
        self._accepting.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections.values()):  # those that had not begun to talk
            self._forget(connection)
        for peer in list(self.peers.values()):
            await self.end_peer(peer, "the service ended")
        await asyncio.gather(*self._endings)
        self._edges.close()
        self.executor.shutdown(wait=False)

    def _refuse(self, connection: Connection, refusal: Refusal) -> None:
        self.refused[refusal.code] += 1
        self.emit(
            "refused",
            peer=connection.id,
            pid=connection.pid,
            uid=connection.uid,
            socket=connection.path,
            code=refusal.code,
            reason=str(refusal),
        )
        if connection.id in self.connections:
            connection.send_now(refusal_bytes(connection.glance(), refusal))
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if self.connections.pop(connection.id, None) is not None:
            self.ledger.gone(str(connection.id))
            connection.close()
