"""A keeper that becomes the pager: everything that it holds is served from now on."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from typing import TYPE_CHECKING

from . import listen
from .estates import Estate, give_up, inherit
from .events import Events
from .holdings import HeldPeer, Holdings
from .images import Images
from .keeping import Keeping
from .listen import Listener
from .notify import Notifier
from .options import ServeOptions
from .running import Running, first_free, kill

if TYPE_CHECKING:
    from .reign import Reign

WINDOW_S = 60.0
SOON = 4
"""So many pagers that end within the window are too many: their peers are tried one by one then."""
TRIAL_S = 0.25
STRIKES = 2
"""So many pagers ended as soon as they served a peer, and nobody else anew: it is given up."""
_BACK_OFF_S = 0.1
_BACK_OFF_MAX_S = 10.0


class Prepared:
    """What can be done before: the images are open."""

    def __init__(self) -> None:
        self._images: Images | None = None
        self._given: set[str] = set()

    def follow(self, holdings: Holdings) -> None:
        """Have open what is held now; what cannot be opened is tried again when it is needed."""
        if self._images is None and holdings.options:
            try:
                options = ServeOptions.from_record(holdings.options)
                self._images = Images(options.image, options.image_dir)
            except (TypeError, ValueError):
                return
        if self._images is None:
            return
        for digest in self._given - holdings.images.keys():
            self._images.forget(digest)
            self._given.discard(digest)
        for digest in holdings.images.keys() - self._given:
            held = holdings.images[digest]
            try:
                self._images.give(held.fd, held.path, digest)
            except Exception:  # said when a peer wants it
                continue
            self._given.add(digest)

    def images(self, holdings: Holdings) -> Images:
        """All of them."""
        self.follow(holdings)
        assert self._images is not None
        return self._images


def run(holdings: Holdings, reign: Reign, pager_pid: int, prepared: Prepared) -> None:
    """Serve what a keeper holds, until the last peer has ended or somebody takes over.

    Args:
        holdings: its descriptors are this process's.
        reign: this process's already.
        pager_pid: who served before.
        prepared: the images.
    """
    options = ServeOptions.from_record(holdings.options)
    events = Events(is_json=options.log_json, verbosity=options.verbosity)
    now_s = time.monotonic()
    if not holdings.is_leaving:
        recent = [one for one in holdings.promotions if now_s - one < WINDOW_S]
        holdings.promotions = [*recent, now_s]
    if (tried := holdings.peers.get(holdings.trial or "")) is not None:
        tried.strikes += 1
    holdings.trial = None
    admits, holdings.is_leaving = not holdings.is_leaving, False
    keeping = Keeping(holdings, reign, events.emit, is_wanted=options.keeper)
    # Before anything is served: whoever kills this one too shall not find it alone.
    keeping.start()
    images = prepared.images(holdings)
    asyncio.run(_run(options, images, keeping, events, pager_pid, admits=admits))


async def _run(
    options: ServeOptions,
    images: Images,
    keeping: Keeping,
    events: Events,
    pager_pid: int,
    *,
    admits: bool,
) -> None:
    notifier = Notifier()
    running = Running(options, images, keeping, events=events, notifier=notifier, is_promoted=True)
    running.begin()
    running.service.admits = admits
    holdings = keeping.holdings
    peers = dict(holdings.peers)
    running.service.numbers = itertools.count(first_free(peers))
    events.emit(
        "taken_over",
        **{"from": pager_pid, "pid": os.getpid(), "peers": len(peers), "left": not admits},
    )
    wardens = dict(holdings.wardens)
    warden = wardens.pop(str(pager_pid), None)
    await inherit(running, Estate(pager_pid, warden, peers, holdings.released))
    for key in wardens:  # somebody's who ended before: it has brought them to an end
        keeping.unwarden(key)
    is_careful = len(holdings.promotions) > SOON and admits
    if not is_careful:
        await running.adopt_served(peers)
    keeping.attach(asyncio.get_running_loop())
    _listen(running, holdings)
    if not is_careful:
        await running.adopt_others(peers)
    notifier.main_pid(f"serving {len(peers)} peers after the end of process {pager_pid}")
    running.serve_metrics()
    if is_careful:
        await _adopt_carefully(running, peers)
    await running.until_end()


def _listen(running: Running, holdings: Holdings) -> None:
    for held in list(holdings.listeners.values()):
        sock = socket.socket(fileno=held.fd)
        listener = Listener(sock, held.path, held.identity, held.kind)
        running.listen(listener)
        if held.identity is None:
            # systemd has it too, and gives it to the next service, which finds this one by that.
            control = listen.control(listener.number)
            if control is not None:
                running.service.add_listener(Listener(control, ""))


async def _adopt_carefully(running: Running, peers: dict[str, HeldPeer]) -> None:
    """One peer after another, so that it shows which of them ends pagers."""
    keeping, count = running.keeping, len(running.keeping.holdings.promotions)
    pause_s = min(_BACK_OFF_MAX_S, _BACK_OFF_S * 2 ** (count - SOON - 1))
    running.emit(
        "error",
        reason=f"{count} services ended within {WINDOW_S:g} s: after {pause_s:g} s peers are"
        " served one by one",
    )
    await asyncio.sleep(pause_s)
    for key, held in sorted(peers.items(), key=lambda item: item[1].strikes):
        if held.strikes >= STRIKES:
            _give_up(running, key, held)
            continue
        keeping.trial(key)
        await running.adopt(key, held)
        await asyncio.sleep(TRIAL_S)
        keeping.trial(None)


def _give_up(running: Running, key: str, held: HeldPeer) -> None:
    is_killed = running.options.on_error == "kill"
    running.emit(
        "error",
        peer=int(key),
        reason=f"{held.strikes} services ended as soon as they served it: it is "
        + ("ended" if is_killed else "not served any more, and waits"),
    )
    if (held.record or {}).get("restore"):
        running.service.spawn(give_up(running, key, held))
        return
    if is_killed:
        kill(held.fds.get("pidfd"))
    running.keeping.gone(key)
    if is_killed:
        for fd in held.fds.values():
            os.close(fd)
