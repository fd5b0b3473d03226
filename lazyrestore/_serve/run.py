"""From options to a service that runs: what `lazyrestore serve` does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lazyrestore._paths import absolute
from lazyrestore.errors import LazyRestoreError

from . import listen, takeover
from .criu import PROTOCOL
from .estates import Estate, inherit
from .events import Events
from .folders import follow_folders, paths_of
from .holdings import Holdings
from .images import Images
from .keeper import raise_limits
from .keeping import Keeping
from .listen import Listener, SocketError, SocketServed
from .notify import Notifier, StatusFd
from .rehearsal import rehearse
from .reign import Reign
from .running import Running, first_free, merge
from .takeover import Inheritance, TakeoverLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .holdings import HeldPeer
    from .metrics import Metrics
    from .options import ServeOptions

_ATTEMPTS = 20
_AGAIN_S = 0.1


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, or until another service takes over.

    Raises:
        ValueError: the options do not go together, or a path cannot be.
        OSError, ImageError, WorkingSetError: the image or the working set cannot be used.
        LazyRestoreError: a socket cannot be listened on.
    """
    raise_limits()
    status = None if options.status_fd is None else StatusFd(options.status_fd)
    images = Images(options.image, options.image_dir)
    images.check()
    check_plan(options, images)
    metrics = _make_metrics(options)
    events = Events(is_json=options.log_json, verbosity=options.verbosity)
    inherited = listen.inherited()
    keeping = Keeping(
        Holdings(options=options.to_record()), Reign.new(), events.emit, is_wanted=options.keeper
    )
    keeping.start()
    start = _Start(options, images, inherited)
    with _ending(keeping, start):
        start.find(keeping)
        ready = _nothing if status is None else status.ready
        asyncio.run(_run(options, images, keeping, events, start, ready, metrics))


def serve_criu(
    options: ServeOptions, listeners: Sequence[Listener], ready: Callable[[], None]
) -> None:
    """Serve runs of CRIU; see `criu.run_daemon`. Listens at `options.sockets` too."""
    raise_limits()
    images = Images(options.image)
    images.check()
    check_plan(options, images)
    metrics = _make_metrics(options)
    events = Events(is_json=options.log_json, verbosity=options.verbosity)
    keeping = Keeping(
        Holdings(options=options.to_record()),
        Reign.new(),
        events.emit,
        is_wanted=options.keeper,
        may_fork=True,
    )
    start = _Start(options, images, [], list(listeners), kind=PROTOCOL)
    with _ending(keeping, start):
        keeping.start()
        start.find(keeping)
        asyncio.run(_run(options, images, keeping, events, start, ready, metrics))


def _nothing() -> None:
    pass


@contextlib.contextmanager
def _ending(keeping: Keeping, start: _Start) -> Iterator[None]:
    """Where a service does not come to its end in good order."""
    try:
        yield
    except BaseException:
        # Who has been taken over from is the keeper's now.
        if not keeping.holdings.peers:
            keeping.finish()
            listen.close_all(start.listeners)
        raise


def _make_metrics(options: ServeOptions) -> Metrics | None:
    if options.metrics is None:
        return None
    from .metrics import Metrics

    return Metrics(options.metrics)


def check_plan(options: ServeOptions, images: Images) -> None:
    """See early that what is to be recorded and loaded first is of use.

    Raises:
        OSError, ValueError, WorkingSetError: it is not.
    """
    from lazyrestore._workingset import WorkingSet

    from .recordings import Recordings

    image = images.for_socket("") if images.single is not None else None
    Recordings(options.record).check(image)
    if options.working_set is not None and image is not None:
        WorkingSet.load(options.working_set).check(image)


@dataclass
class _Start:
    """What a service finds when it starts.

    Attributes:
        listeners: the sockets that it will listen on.
        kind: of the sockets that are made; see `Listener`.
        peers: of services that it has taken over from, who do not serve any more.
        others: ended services' process numbers, and how many peers each had.
        estates: what those had beside their peers, where they had a warden.
    """

    options: ServeOptions
    images: Images
    inherited: list[Listener]
    listeners: list[Listener] = field(default_factory=list)
    peers: dict[str, HeldPeer] = field(default_factory=dict)
    kind: str = ""
    others: list[tuple[int, int]] = field(default_factory=list)
    estates: list[Estate] = field(default_factory=list)
    _waiting: list[Inheritance] = field(default_factory=list)

    def find(self, keeping: Keeping) -> None:
        """Have the sockets, and what was served there.

        Raises:
            TakeoverLost: whoever served ends time and again.
            TakeoverRefused, SocketError, ValueError: a socket cannot be had.
        """
        for attempt in range(_ATTEMPTS):
            try:
                self.find_sockets()
                self.inherit(keeping)
                return
            except TakeoverLost:
                # Its keeper listens there by now, or will in a moment.
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_AGAIN_S)

    def find_sockets(self) -> None:
        """Bind what is free, and ask whoever serves the others for all that it has.

        Raises:
            TakeoverLost: who serves has ended meanwhile; to be called again.
            TakeoverRefused, SocketError, ValueError: a socket cannot be had.
        """
        for listener in self.inherited:
            if listener in self.listeners:
                continue
            connection = listen.connect_control(listener.number)
            if connection is not None:
                self._ask(connection)
            self.listeners.append(listener)
        for given in self.options.sockets:
            for path in paths_of(self.images, given):
                if self._has(path):
                    continue
                try:
                    listener = listen.bind(path, self.options.socket_mode)
                    listener.kind = self.kind
                    self.listeners.append(listener)
                except SocketServed:
                    self._ask(_connect(path))
                    if not self._has(path):
                        raise SocketError(
                            f"{path} is served by a process that listens at another path: give"
                            " that one, or another"
                        ) from None

    def _has(self, path: str) -> bool:
        return any(one.path == absolute(path) for one in self.listeners)

    def _ask(self, connection: socket.socket) -> None:
        found = takeover.ask(connection, force=self.options.takeover)
        self._waiting.append(found)
        mine = {listener.number for listener in self.inherited}
        for held in found.holdings.listeners.values():
            sock = socket.socket(fileno=held.fd)
            listener = Listener(sock, held.path, held.identity, held.kind)
            if listener.number in mine:
                sock.close()
            else:
                self.listeners.append(listener)
        found.holdings.listeners.clear()

    def inherit(self, keeping: Keeping) -> None:
        """Have those who were asked stop, and the keeper hold what they held.

        Raises:
            TakeoverLost: one has ended, and its keeper goes on.
        """
        while self._waiting:
            found = self._waiting[0]
            keeping.predecessor(found.predecessor())
            peers = merge(found.holdings, keeping)
            keeping.taking()
            try:
                found.take()
            except TakeoverLost:
                for key in peers:
                    keeping.gone(key)
                raise
            else:
                self.peers.update(peers)
                self.others.append((found.pid, len(peers)))
                for warden in found.holdings.wardens.values():
                    self.estates.append(Estate(found.pid, warden, peers))
                for digest, image in found.holdings.images.items():
                    # What cannot be opened is said of the peer that wants it.
                    with contextlib.suppress(OSError, LazyRestoreError):
                        self.images.give(image.fd, image.path, digest)
            finally:
                keeping.resolved()
                self._waiting.remove(found)
                found.close()


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(takeover.ANSWER_S)
        sock.connect(os.fsencode(path))
    except (ConnectionRefusedError, FileNotFoundError):
        sock.close()
        raise TakeoverLost("who served has ended") from None
    except OSError as error:
        sock.close()
        raise SocketError(f"cannot ask who serves {path}: {error.strerror or error}") from None
    return sock


async def _run(
    options: ServeOptions,
    images: Images,
    keeping: Keeping,
    events: Events,
    start: _Start,
    ready: Callable[[], None],
    metrics: Metrics | None,
) -> None:
    notifier = Notifier()
    running = Running(options, images, keeping, events=events, notifier=notifier, is_promoted=False)
    running.begin()
    service = running.service
    for pid, count in start.others:
        events.emit("taken_over", **{"from": pid, "pid": os.getpid(), "peers": count})
    service.numbers = itertools.count(first_free(start.peers))
    for estate in start.estates:
        await inherit(running, estate)
    await running.adopt_served(start.peers)
    keeping.attach(asyncio.get_running_loop())
    if metrics is not None and not start.others:
        await metrics.start(service, running.status)
    else:
        running.serve_metrics()
    if start.kind == PROTOCOL:
        await service.restores.prepare()
    else:
        await rehearse(service)
    for listener in start.listeners:
        running.listen(listener)
    await running.adopt_others(start.peers)
    folders = [path for path in options.sockets if os.path.isdir(path)]
    if folders:
        service.spawn(follow_folders(running, folders))
    notifier.ready(f"listening on {', '.join(one.path for one in start.listeners)}")
    ready()
    await running.until_end()
