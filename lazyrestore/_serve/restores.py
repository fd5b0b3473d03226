"""Runs of `criu restore --lazy-pages`: each task becomes a peer, and so does each child of theirs.

One connection is one restore, and stays a connection until the last word has come; its tasks are
served from the moment that each sends its userfaultfd, since they touch memory before. They are
peers with a `restore`, the connection's number, and without a socket. These have the only copies of
their userfaultfds: where the last is closed while pages are missing, a task reads zeros. So nobody
is let go of whose memory is there and not complete; where that has to be, its process is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import mmap
import os
import time
from typing import TYPE_CHECKING

from lazyrestore._core import state_children
from lazyrestore.errors import LazyRestoreError

from . import criu_wire
from .criu import PROTOCOL
from .criu_wire import HangUp, LastWord, Message, Task, Zombie
from .descriptors import cannot_end
from .handshake import Range, Refusal
from .peer import Peer, PeerFds, open_pidfd_by_number
from .sockets import is_userfaultfd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lazyrestore._open import Image
    from lazyrestore._workingset import WorkingSet

    from .connection import Connection
    from .service import Service


_LOOK_S = 0.002
# Until then CRIU has let them run, and they have begun: all wait for what they touch first, and a
# fill takes processors and memory from them, and from other restores that begin just then.
_HEAD_START_S = 0.2


@dataclasses.dataclass(frozen=True)
class _Restore:
    """One run of `criu restore`.

    Attributes:
        connection: its.
        image: what is restored.
        tasks: where what of the image lies, by process numbers there; zombies have none.
        first: what of it is loaded first.
    """

    connection: Connection
    image: Image
    tasks: Mapping[int, Sequence[Range]]
    first: WorkingSet | None


class Restores:
    """Serves the tasks that are restored by CRIU, and theirs. Belongs to the loop's thread.

    Attributes:
        count: how many restores there were.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._is_frozen = False
        self._expected: set[tuple[int, int]] = set()
        self._tasks: dict[str, Mapping[int, Sequence[Range]]] = {}  # by the image's digest
        self._midwives = 0  # who ask for children, and make those that there are peers
        self._unborn: set[tuple[int, int]] = set()  # children that are peers in a moment
        self._taken: set[tuple[int, int]] = set()  # of parents that have not gone
        self.count = 0

    @property
    def is_busy(self) -> bool:
        """Whether somebody is just becoming a peer."""
        return bool(self._unborn)

    def expect(self, records: Iterable[Mapping[str, object] | None]) -> None:
        """Peers that are about to be adopted: their parents' sessions may still tell of them."""
        for record in filter(None, records):
            if record.get("parent"):
                self._expected.add((int(str(record["parent"])), int(str(record.get("child", 0)))))

    async def prepare(self) -> None:
        """Read what the image says of its tasks, so that the first restore need not wait for it.

        Raises:
            LazyRestoreError: it is not an image of processes, or is damaged.
        """
        image, _ = await self._service.image_for("")
        await self._tasks_of(image)

    async def _tasks_of(self, image: Image) -> Mapping[int, Sequence[Range]]:
        known = self._tasks.get(image.digest)
        if known is None:
            known = await self._service.in_thread(_read_tasks, image)
            self._tasks[image.digest] = known
        return known

    # The connection.

    async def attend(self, connection: Connection) -> bool:
        """Hear a run of CRIU out: returns when its last word has come, or it was nobody.

        Returns:
            False where it is somebody else, of whom nothing has been taken.

        Raises:
            Refusal, LazyRestoreError, OSError, ValueError: it said what cannot be, a task of it
                cannot be served, or it has ended in the middle.
        """
        service = self._service
        sock = connection.socket
        criu_wire.want_senders(sock)
        criu_wire.look_from_the_start(sock)
        if await connection.look(lambda: criu_wire.is_other(sock)):
            criu_wire.want_senders_no_more(sock)
            return False
        image, first = await service.image_for(connection.path)
        restore = _Restore(connection, image, await self._tasks_of(image), first)
        try:
            while True:
                message: Message = await connection.look(lambda: criu_wire.peek(sock))
                with service.not_interrupted(connection):
                    is_last = await self._hear(restore, message)
                if is_last:
                    return True
                if service.is_paused:
                    raise asyncio.CancelledError
        except (Refusal, LazyRestoreError, OSError, ValueError, MemoryError):
            await self._abandon(restore)
            raise

    async def _hear(self, restore: _Restore, message: Message) -> bool:
        """Do what a message asks for; whether it was the last."""
        connection = restore.connection
        known = self._peers_of(restore)
        if isinstance(message, HangUp):
            if not known:
                return True  # somebody looked whether we are there
            raise Refusal(
                "lost",
                f"criu has ended before the restore was done, which had {len(known)} tasks so far:"
                " see its log",
            )
        if isinstance(message, Task):
            if any(peer.task == message.number for peer in known):
                message.close()  # a predecessor had told of it, and was killed just then
                criu_wire.take(connection.socket, message)
            else:
                await self._begin(restore, message)
        elif isinstance(message, LastWord):
            await self._settle(restore)
        else:
            assert isinstance(message, Zombie)
            criu_wire.take(connection.socket, message)
        return isinstance(message, LastWord)

    def _peers_of(self, restore: _Restore) -> list[Peer]:
        number = restore.connection.id
        return [peer for peer in self._service.peers.values() if peer.restore == number]

    async def _begin(self, restore: _Restore, task: Task) -> None:
        """Serve a task."""
        service, connection = self._service, restore.connection
        peer = Peer(
            id=next(service.numbers),
            pid=task.pid,
            uid=task.uid,
            path=connection.path,
            protocol=PROTOCOL,
            image=restore.image,
            ranges=(),
            page_size=mmap.PAGESIZE,
            since=time.time(),
            fds=PeerFds(task.uffd, None, task.pidfd, -1),
            is_filled=restore.first is not None,
            restore=connection.id,
            task=task.number,
            is_settled=False,
        )
        try:
            service.check_room()
            self._check(peer)
            peer.ranges = _ranges(restore, task.number)
            await service.serve(
                peer, restore.first, lambda: criu_wire.take(connection.socket, task)
            )
        except BaseException:
            await self._end_unserved(peer)
            raise
        service.watch(peer)

    def _check(self, peer: Peer) -> None:
        if not is_userfaultfd(peer.fds.uffd):
            raise Refusal("no-fd", f"task {peer.task} sent a descriptor that is no userfaultfd")
        if peer.fds.pidfd is None:
            now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
            peer.fds.pidfd = open_pidfd_by_number(peer.pid, now_s)
        if self._service.options.on_error == "kill":
            why = cannot_end(peer.fds.pidfd)
            if why is not None:
                raise Refusal(*why)

    async def _end_unserved(self, peer: Peer) -> None:
        """A process that cannot be served has to end: what is missing in it would read as zeros."""
        service = self._service
        await service.in_thread(peer.end)  # while the keeper still holds it, too
        service.ledger.gone(str(peer.id))
        await service.in_thread(peer.close)

    async def _settle(self, restore: _Restore) -> None:
        """All of its tasks' memory is mapped now."""
        service = self._service
        peers = self._peers_of(restore)
        for peer in peers:
            peer.is_settled = True
            service.ledger.peer(str(peer.id), peer.record(), peer.fds.by_role())
        criu_wire.take(restore.connection.socket, LastWord())
        self.count += 1
        service.emit(
            "restored",
            restore=restore.connection.id,
            tasks=len(peers),
            image=restore.image.path,
            criu=restore.connection.pid,
        )
        for peer in peers:
            await service.in_thread(peer.settle)
        service.loop.call_later(_HEAD_START_S, lambda: service.spawn(self._fill(peers)))

    async def _fill(self, peers: Iterable[Peer]) -> None:
        for peer in peers:
            await self._service.in_thread(peer.begin_filling)

    async def _abandon(self, restore: _Restore) -> None:
        """It will not be finished: CRIU ends its tasks, unless it has been killed itself."""
        self.count += 1
        for peer in self._peers_of(restore):
            if self._service.options.on_error == "kill":
                await self._service.in_thread(peer.end_process)
            else:
                await self._service.in_thread(peer.settle)
                await self._service.in_thread(peer.begin_filling)

    # Children.

    async def freeze(self) -> None:
        """Leave those that come from now on to a successor, or until `thaw`: when this returns, all
        of whom it is not to find in the states are served.
        """
        self._is_frozen = True
        while self._midwives:
            await asyncio.sleep(_LOOK_S)

    def thaw(self) -> None:
        """Undo that."""
        self._is_frozen = False
        for peer in list(self._service.peers.values()):
            self._service.spawn(self.look(peer))

    async def thawed(self) -> None:
        """Wait for that; nobody ends meanwhile, who may have children."""
        while self._is_frozen:
            await asyncio.sleep(_LOOK_S)

    async def look(self, peer: Peer) -> None:
        """Serve the children that a peer has forked; their userfaultfds wait in its session."""
        while peer.restore and not self._is_frozen:
            # From the question on: who gets an answer has to see to it.
            with self._attending():
                child = await self._service.in_thread(peer.next_child)
                if child is None:
                    return
                await self._adopt_child(peer, *child)

    async def look_at_the_end(self, peer: Peer) -> None:
        """The same when its session has ended: a child may have come until then."""
        if not peer.restore or peer.fds.state < 0:
            return
        await self.thawed()
        with self._attending():
            for child in await self._service.in_thread(state_children, peer.fds.state):
                if child.uffd >= 0 and child.state >= 0:
                    await self._adopt_child(peer, *child)
        self._taken = {name for name in self._taken if name[0] != peer.id}

    @contextlib.contextmanager
    def _attending(self) -> Iterator[None]:
        """`freeze` waits for the end of this; begin it where nothing is frozen."""
        self._midwives += 1
        try:
            yield
        finally:
            self._midwives -= 1

    async def _adopt_child(self, parent: Peer, uffd: int, state: int, number: int) -> None:
        """Serve a child of a peer's.

        Args:
            parent: whose.
            uffd: of the child; owned from now on.
            state: the same.
            number: under which the parent's session knows it.
        """
        service = self._service
        if uffd < 0:  # it was lost with who had it, and has been ended
            await service.in_thread(_close_copies, parent, number, state)
            return
        if (parent.id, number) in self._expected:
            # A predecessor had begun with it, and was killed before the session had forgotten it:
            # it is adopted as a peer, perhaps in a moment.
            await service.in_thread(_close_copies, parent, number, uffd, state)
            return
        name = parent.id, number
        if name in self._taken:
            return  # this process serves it already, or has done so
        self._taken.add(name)
        self._unborn.add(name)
        peer = Peer(
            id=next(service.numbers),
            pid=0,
            uid=parent.uid,
            path=parent.path,
            protocol=PROTOCOL,
            image=parent.image,
            ranges=parent.ranges,
            page_size=parent.page_size,
            since=time.time(),
            fds=PeerFds(uffd, None, None, state),
            is_filled=parent.is_filled,
            restore=parent.restore,
            parent=parent.id,
            child=number,
        )
        try:
            await service.serve(peer, None, lambda: None)
            await service.in_thread(parent.child_is_kept, number)
            service.watch(peer)
        except (LazyRestoreError, OSError, ValueError, MemoryError) as error:
            if not peer.is_over():
                service.emit("error", **peer.describe(), reason=f"it cannot be served: {error}")
            await service.in_thread(peer.end)
            # Before the numbers are those of others: the parent's state has them.
            await service.in_thread(parent.child_is_kept, number)
            await self._end_unserved(peer)
        finally:
            self._unborn.discard(name)


def _close_copies(parent: Peer, number: int, *fds: int) -> None:
    parent.child_is_kept(number)
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _read_tasks(image: Image) -> Mapping[int, Sequence[Range]]:
    from lazyrestore._criu.checkpoint import Checkpoint

    found = Checkpoint.of(image)
    if found is None:
        raise LazyRestoreError(
            f"{image.path} is an image of memory alone, and not of processes: dump one with"
            " `lazyrestore dump --process`"
        )
    return {
        task.pid: tuple(Range(*one) for one in found.lazy_ranges(task.pid))
        for task in found.tasks
        if not task.is_zombie
    }


def _ranges(restore: _Restore, number: int) -> Sequence[Range]:
    """Where what of the image lies in a task.

    Raises:
        Refusal: the image has no such task.
    """
    try:
        return restore.tasks[number]
    except KeyError:
        raise Refusal(
            "ranges", f"{restore.image.path} has no task {number}: it is another's image"
        ) from None
