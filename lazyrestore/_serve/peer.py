"""A process that is served: its descriptors, its C session, and its end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lazyrestore._core import Core, serve_state
from lazyrestore._paths import absolute

from .ending import END_S, end_memory, is_memory_gone
from .handshake import Range, Refusal
from .kin import find_process
from .sockets import close_socket

if TYPE_CHECKING:
    from lazyrestore._native import CData
    from lazyrestore._open import Image
    from lazyrestore._workingset import WorkingSet
    from lazyrestore.reports import LoadError

    from .images import Plan

SO_PEERPIDFD = 77  # Linux 6.5
_POPULATE_S = 1.0

_OF_RESTORES = ("restore", "task", "parent", "child")

Record = dict[str, object]


@dataclass
class PeerFds:
    """What a peer owns; closed with it.

    Attributes:
        uffd: its userfaultfd.
        socket: its connection, or None where it has closed it.
        pidfd: of its process, or None where that cannot be seen from here.
        state: the memory file in which its session keeps what is known of its pages.
    """

    uffd: int
    socket: socket.socket | None
    pidfd: int | None
    state: int

    def by_role(self) -> dict[str, int]:
        """Numbers by what they are for, for whoever keeps copies of them."""
        found = {"userfaultfd": self.uffd, "state": self.state}
        if self.socket is not None:
            found["socket"] = self.socket.fileno()
        if self.pidfd is not None:
            found["pidfd"] = self.pidfd
        return found

    def close(self) -> None:
        """Close all of them."""
        if self.socket is not None:
            close_socket(self.socket)
        for fd in (self.uffd, self.state, self.pidfd):
            if fd is not None and fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.socket, self.pidfd, self.uffd, self.state = None, None, -1, -1


@dataclass(eq=False, repr=False)
class Peer:
    """Somebody who is served, or is about to be.

    Its methods may be called from any thread, but for `start` and `close`: those belong to the
    service. What asks the C session (`stats`, `errors`...) may have to wait until a page that is
    being loaded is there: not for the loop's thread.

    Attributes:
        id: its number.
        pid, uid: its process and user; pid 0: not visible from here.
        path: of the socket that it came to.
        protocol: "firecracker", "nydus", "attach" or "criu".
        image: what it is served from; kept open.
        ranges: where what of the image lies in its memory.
        page_size: of its memory there, in bytes.
        since: when it connected, time.time().
        fds: its descriptors.
        event_fd: becomes readable when a load failed, a fill ended, or its memory is gone.
        core: its C session; None: not served yet, or not any more.
        working_set: what was loaded first, or None.
        is_filled: everything is loaded ahead of touches, whoever serves it.
        is_complete: whether everything has been loaded.
        restore: of CRIU's tasks, the number of the connection that they came by; else 0.
        task: its process number in the image; 0: it was forked since, or is no task of CRIU's.
        is_settled: its memory is mapped and registered; of CRIU's tasks it is not at first.
        parent, child: of a peer that was forked by another: its number, and under which that one's
            session knew it; else 0.
        served_us: since when it is served here, of time.monotonic().
        bury: gives up memory whose owner cannot be ended; see `Warding.bury`.
        others: the processes of all peers, as far as they are known.
    """

    id: int
    pid: int
    uid: int
    path: str
    protocol: str
    image: Image
    ranges: Sequence[Range]
    page_size: int
    since: float
    fds: PeerFds
    event_fd: int = -1
    core: Core | None = None
    working_set: WorkingSet | None = None
    is_filled: bool = False
    is_complete: bool = False
    known_errors: int = 0
    restore: int = 0
    task: int = 0
    is_settled: bool = True
    parent: int = 0
    child: int = 0
    served_us: int = 0
    bury: Callable[[int], bool] | None = None
    others: Callable[[], set[int]] | None = None
    _users: int = 0
    _is_filling: bool = False
    _is_ending: bool = False
    _has_ended: bool = False
    _idle: threading.Condition = field(default_factory=threading.Condition)

    @property
    def total_bytes(self) -> int:
        """Length of its ranges."""
        return sum(piece.bytes for piece in self.ranges)

    def record(self) -> Record:
        """What another process needs beside the descriptors to serve it: JSON can say it."""
        return {
            "id": self.id,
            "pid": self.pid,
            "uid": self.uid,
            "path": self.path,
            "protocol": self.protocol,
            "image": absolute(self.image.path),
            "digest": self.image.digest,
            "ranges": [[one.address, one.bytes, one.offset, one.region] for one in self.ranges],
            "page_size": self.page_size,
            "since": self.since,
            "is_filled": self.is_filled,
            "restore": self.restore,
            "task": self.task,
            "is_settled": self.is_settled,
            "parent": self.parent,
            "child": self.child,
        }

    def describe(self) -> dict[str, object]:
        """What every event about it says of it."""
        found: dict[str, object] = {
            "peer": self.id,
            "pid": self.pid,
            "uid": self.uid,
            "protocol": self.protocol,
            "socket": self.path,
            "image": self.image.path,
            "bytes": self.total_bytes,
        }
        if self.restore:
            found |= {"restore": self.restore, "task": self.task, "parent": self.parent}
        return found

    @classmethod
    def from_record(
        cls, record: Mapping[str, object], fds: PeerFds, open_image: Callable[[str, str], Image]
    ) -> Peer:
        """What `record` was made of, with an image that `open_image(path, digest)` opens.

        Raises:
            ValueError: it is not such a record.
            OSError, ImageError: the image cannot be opened, or is another one by now.
        """

        def get(key: str, kind: type) -> object:
            value = record.get(key)
            if type(value) is not kind:
                raise ValueError(f"a peer's record has {value!r:.40} for {key}")
            return value

        def number(key: str) -> int:
            return int(str(get(key, int)))

        found = get("ranges", list)
        assert isinstance(found, list)
        since = record.get("since")
        numbers = {key: int(str(record.get(key, 0))) for key in _OF_RESTORES}
        return cls(
            id=number("id"),
            pid=number("pid"),
            uid=number("uid"),
            path=str(get("path", str)),
            protocol=str(get("protocol", str)),
            image=open_image(str(get("image", str)), str(get("digest", str))),
            ranges=tuple(Range(*map(int, one)) for one in found),
            page_size=number("page_size"),
            since=float(since) if isinstance(since, (int, float)) else 0.0,
            is_filled=bool(record.get("is_filled")),
            is_settled=bool(record.get("is_settled", True)),
            restore=numbers["restore"],
            task=numbers["task"],
            parent=numbers["parent"],
            child=numbers["child"],
            fds=fds,
        )

    def prepare(self) -> None:
        """Make the state and what tells of events: all that may fail before it is served.

        Raises:
            KernelError, MemoryError: no memory or no descriptors are left.
        """
        if self.fds.state < 0:
            self.fds.state = serve_state(self.image, self.page_size)
        if self.event_fd < 0:
            self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def start(self, plan: Plan, on_error: str, first: WorkingSet | None) -> None:
        """Serve: from now on its faults are answered, those that wait already too.

        Args:
            plan: what is loaded ahead, and whether touches are recorded.
            on_error: "hold" or "fence"; see `Core.serve`.
            first: the working set.

        Raises:
            ValueError: its ranges, its userfaultfd or its state are not what can be served.
            LazyRestoreError: the kernel refuses.
        """
        self.served_us = time.monotonic_ns() // 1000
        core = Core.serve(
            self.image,
            uffd=self.fds.uffd,
            ranges=[(one.address, one.bytes, one.offset, one.region) for one in self.ranges],
            state=self.fds.state,
            pid=self.pid,
            event_fd=self.event_fd,
            page_size=self.page_size,
            on_error=on_error,
            granularity=plan.granularity,
            record=plan.record is not None,
            zero_outside=bool(self.restore),
            children=bool(self.restore),
        )
        self.working_set = first
        self.is_filled = self.is_filled or plan.prefetch == "all"
        self.core = core
        if not self.is_settled:
            return
        if self.restore:
            core.settle()
        self._fill_first(core)

    def _fill_first(self, core: Core) -> None:
        if self.working_set is not None or self.is_filled:
            self._is_filling = True
            core.fill(self.working_set)

    def settle(self) -> None:
        """All its memory is mapped from now on; a working set is loaded at once."""
        self.is_settled = True
        with self.using_core() as core:
            if core is not None:
                core.settle()
                if self.working_set is not None and not self._is_filling:
                    self._fill_first(core)

    def begin_filling(self) -> None:
        """Load what is to be loaded in the background, unless that goes on already."""
        with self.using_core() as core:
            if core is not None and not self._is_filling:
                self._fill_first(core)

    @contextlib.contextmanager
    def using_core(self) -> Iterator[Core | None]:
        """The C session, which is not closed meanwhile; None: there is none."""
        with self._idle:
            core = None if self._is_ending else self.core
            self._users += 1
        try:
            yield core
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def fill(self) -> None:
        """Load everything that is missing, in the background, unless that goes on already."""
        self.is_filled = True
        with self.using_core() as core:
            if core is not None and self.is_settled and not self._is_filling:
                self._is_filling = True
                core.fill()

    def retry(self) -> None:
        """Have what could not be loaded tried again."""
        with self.using_core() as core:
            if core is not None:
                core.retry()

    def stats(self) -> CData | None:
        """A `struct lr_session_stats *`; None: it is not served."""
        with self.using_core() as core:
            return None if core is None else core.stats()

    def missing_bytes(self) -> int:
        """How much of its memory it could still have to wait for; 0 where it is not served."""
        stats = self.stats()
        return 0 if stats is None else int(stats.pages_missing) * self.page_size

    def errors(self) -> list[LoadError]:
        """What could not be loaded, oldest first; the first 1024."""
        with self.using_core() as core:
            return [] if core is None else core.errors()

    def kill(self) -> None:
        """End the process, by its pidfd: it can be no other.

        Raises:
            OSError: it cannot be ended from here.
        """
        if self.fds.pidfd is None:
            raise ProcessLookupError(errno.ESRCH, "its process cannot be seen from here")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fds.pidfd, signal.SIGKILL)

    def end_process(self, timeout_s: float = END_S) -> bool:
        """Kill the process, and wait until its memory is gone; False: it is not."""
        if is_memory_gone(self.fds.uffd):
            return True  # whatever has its number, or a page that it had, is another process
        self.identify()
        return end_memory(self.fds.uffd, self.fds.pidfd, None, timeout_s)

    def identify(self) -> bool:
        """Find out which process it is, where nothing told; whether that is something new.

        Only while it is served, and lives: else somebody else could be taken for it.
        """
        if self.fds.pidfd is not None or not self.restore or self.core is None or self.is_over():
            return False
        known = set() if self.others is None else self.others()
        found = find_process(self, known)
        if found is None:
            return False
        self.pid, self.fds.pidfd = found
        return True

    def populate(self, region: int, offset: int, length: int) -> None:
        """Load a part of a region now.

        Raises:
            LazyRestoreError, TimeoutError: it cannot be loaded, or not soon.
        """
        with self.using_core() as core:
            if core is not None:
                core.populate(region, offset, length, _POPULATE_S)

    def next_child(self) -> tuple[int, int, int] | None:
        """A child that it has forked: userfaultfd and state, the caller's from now on, and the
        number under which the session knows it. None: there is none.
        """
        with self.using_core() as core:
            return None if core is None else core.next_child()

    def child_is_kept(self, number: int) -> None:
        """Somebody else has the descriptors of a child too: its session may forget it."""
        with self.using_core() as core:
            if core is not None:
                core.child_is_kept(number)

    def is_over(self) -> bool:
        """Whether its process has ended, or its memory is gone."""
        if self.fds.pidfd is not None and not self.restore:
            poll = select.poll()
            poll.register(self.fds.pidfd, select.POLLIN)
            return bool(poll.poll(0))
        return is_memory_gone(self.fds.uffd)

    def end_serving(self) -> None:
        """Stop serving; blocks until the C threads have ended. Nothing is fenced or waked."""
        with self._idle:
            self._is_ending = True
            while self._users:
                self._idle.wait()
            core, self.core = self.core, None
        if core is not None:
            core.close()

    def end(self) -> None:
        """Stop serving for good; blocks as `end_serving` does.

        CRIU's tasks have no other copy of their userfaultfd, so one that is not complete is ended.
        Whoever holds copies may close them when this returns, and not before.
        """
        if self._has_ended:
            return
        self._has_ended = True
        is_left = self.restore and not self.is_complete and self.fds.uffd >= 0
        if is_left and not self.is_over():
            self.identify()  # while it is served
        self.end_serving()
        if is_left and not self.end_process() and not (self.bury and self.bury(self.fds.uffd)):
            self.fds.uffd = -1  # left open: it waits, as long as this process lives

    def close(self) -> None:
        """Do the same, and close all descriptors."""
        self.end()
        self.fds.close()
        if self.event_fd >= 0:
            os.close(self.event_fd)
            self.event_fd = -1

    def __repr__(self) -> str:
        return f"<Peer {self.id}: pid {self.pid}, {self.protocol}>"


def open_pidfd(sock: socket.socket, pid: int, accepted_s: float) -> int | None:
    """A pidfd of who connected, or None where the kernel has no way to be sure whose it is.

    Args:
        sock: the connection.
        pid: of SO_PEERCRED.
        accepted_s: when it was accepted, in seconds since the boot (CLOCK_BOOTTIME).

    Raises:
        Refusal: the process has ended.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENODATA):
            raise Refusal("gone", "its process has ended") from None
        if error.errno != errno.ENOPROTOOPT:
            raise
    return open_pidfd_by_number(pid, accepted_s)


def open_pidfd_by_number(pid: int, accepted_s: float) -> int | None:
    """Before Linux 6.5: of a number, which another process can have got in the meantime."""
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise Refusal("gone", "its process has ended") from None
    started_s = started(pid)
    if started_s is None or started_s > accepted_s:
        os.close(pidfd)
        raise Refusal("gone", "its process has ended, and another one has its number")
    return pidfd


def started(pid: int) -> float | None:
    """When a process began, in seconds since the boot; None: there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None
