"""Limits of a service, and kernels that lack something: a service in a thread of this process."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from process_support import in_child
from restore_support import write_image
from serve_peer import PAGE, Monitor
from serve_support import LIMIT_S

from lazyrestore._serve import connection, peer, watch
from lazyrestore._serve.handshake import Refusal
from lazyrestore._serve.images import Images
from lazyrestore._serve.listen import bind
from lazyrestore._serve.options import ServeOptions
from lazyrestore._serve.service import Service

pytestmark = pytest.mark.uffd

PAGES = 64
LAYOUT = {"memory": "dr" * (PAGES // 2)}


class Inside:
    """A service, and what it has said."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.expected = write_image(folder / "vm.lzr", LAYOUT)["memory"]
        self.path = str(folder / "s")
        self.events: list[dict[str, Any]] = []
        self._options = ServeOptions(image=str(folder / "vm.lzr"), **options)

    def emit(self, name: str, **fields: object) -> None:
        self.events.append({"event": name, **fields})

    def wait(self, name: str, **fields: object) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while True:
            for event in list(self.events):
                if event["event"] == name and fields.items() <= event.items():
                    return event
            assert time.monotonic() < deadline, self.events
            time.sleep(0.005)

    async def run(self, ready: threading.Event, setting: Callable[[Service], None]) -> None:
        images = Images(self._options.image)
        images.check()
        self.service = Service(self._options, images, emit=self.emit)
        self.loop = asyncio.get_running_loop()
        listener = bind(self.path)
        self.service.start()
        setting(self.service)
        self.service.add_listener(listener)
        ready.set()
        await self.service.ended.wait()
        await self.service.close()
        listener.close()


@contextmanager
def inside(
    folder: Path, setting: Callable[[Service], None] = lambda _: None, **options: Any
) -> Iterator[Inside]:
    found = Inside(folder, **options)
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(found.run(ready, setting)))
    thread.start()
    assert ready.wait(LIMIT_S)
    try:
        yield found
    finally:
        found.loop.call_soon_threadsafe(found.service.ended.set)
        thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert found.service.peers == {}
    assert found.service.connections == {}


def served(service: Inside) -> None:
    with Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        assert monitor.read_all() == service.expected


@in_child()
def test_a_handshake_that_takes_too_long(tmp_path: Path) -> None:
    """In each state of it, also where something comes again and again"""
    connection.HANDSHAKE_S = 0.5
    with inside(tmp_path) as service:
        for text in (b"", b"[", b'[{"base', b"LRATT"):
            with Monitor(PAGES) as monitor:
                monitor.connect(service.path)
                if text:
                    monitor.send(text)
                assert json.loads(monitor.reply())["error"]["code"] == "timeout"
                service.wait("refused", pid=monitor.pid, code="timeout")
        with Monitor(PAGES) as monitor:
            monitor.connect(service.path)
            monitor.order("drip(b'[', 0.05)")
            service.wait("refused", pid=monitor.pid, code="timeout")
        served(service)


@in_child()
def test_more_than_may_be(tmp_path: Path) -> None:
    """Of peers, and of connections that say nothing"""

    def setting(service: Service) -> None:
        service.peers_max = 2
        service.connections_max = 3

    with (
        inside(tmp_path, setting) as service,
        Monitor(PAGES) as first,
        Monitor(PAGES) as second,
        Monitor(PAGES) as third,
    ):
        first.restore(service.path)
        second.restore(service.path)
        assert first.read_all() == second.read_all() == service.expected
        third.connect(service.path)
        third.send(third.message())
        assert json.loads(third.reply())["error"]["code"] == "busy"
        for _ in range(3):
            third.ask("connect_and_hold(" + repr(service.path) + ")")
        third.connect(service.path)
        assert json.loads(third.reply())["error"]["code"] == "busy"
        third.close()
        first.close()
        service.wait("gone", pid=first.pid)
        served(service)


@in_child()
def test_it_does_not_spin(tmp_path: Path) -> None:
    """Where nothing can be accepted, it is tried a few times a second"""
    calls: list[object] = []

    def setting(service: Service) -> None:
        accept = service._accepting._accept
        service._accepting._accept = lambda one: (calls.append(one), accept(one))[1]  # type: ignore[method-assign]

    with inside(tmp_path, setting) as service, Monitor(PAGES) as monitor:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir("/proc/self/fd")))
        held = [os.dup(0) for _ in range(used)]  # no number below is free
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, limits[1]))
        monitor.connect(service.path)
        monitor.send(monitor.message())
        assert "cannot accept" in service.wait("error")["reason"]
        calls.clear()
        time.sleep(1)
        assert len(calls) < 20
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)
        assert monitor.read_all() == service.expected


@in_child()
def test_who_is_just_becoming_a_peer_when_a_successor_asks(tmp_path: Path) -> None:
    """What it sent is out of the socket, and its userfaultfd came but once: it becomes one"""
    start = peer.Peer.start
    begun, may_go_on = threading.Event(), threading.Event()

    def start_slowly(self: peer.Peer, *arguments: Any) -> None:
        begun.set()
        assert may_go_on.wait(LIMIT_S)
        start(self, *arguments)

    peer.Peer.start = start_slowly  # type: ignore[method-assign]
    with inside(tmp_path) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        assert begun.wait(LIMIT_S)
        pause = asyncio.run_coroutine_threadsafe(service.service.pause(), service.loop)
        with pytest.raises(TimeoutError):
            pause.result(0.1)
        may_go_on.set()
        pause.result(LIMIT_S)
        assert [one.pid for one in service.service.peers.values()] == [monitor.pid]
        service.loop.call_soon_threadsafe(service.service.resume)
        assert monitor.read_all() == service.expected


@in_child()
def test_before_linux_6_5(tmp_path: Path) -> None:
    """No pidfd of the connection: one of the number, if nobody else can have got it"""
    peer.SO_PEERPIDFD = 9999
    with inside(tmp_path) as service:
        served(service)
        service.wait("gone")
    assert service.service.refused.total() == 0


@in_child()
def test_a_number_that_another_process_has() -> None:
    """Which began after the connection was accepted: it is not the peer"""
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME) - 10
    fds = os.listdir("/proc/self/fd")
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        with pytest.raises(Refusal, match="another one"):
            peer.open_pidfd_by_number(child, before_s)
        pidfd = peer.open_pidfd_by_number(child, before_s + 20)
        assert pidfd is not None
        os.close(pidfd)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with pytest.raises(Refusal, match="has ended"):
        peer.open_pidfd_by_number(child, before_s + 20)
    assert peer.open_pidfd_by_number(0, before_s) is None
    assert os.listdir("/proc/self/fd") == fds


@in_child()
def test_a_process_that_cannot_be_seen(tmp_path: Path) -> None:
    """In another pid namespace, before 6.5: refused where it might have to be killed, else its
    memory tells of its end
    """
    peer.SO_PEERPIDFD = 9999
    peer.open_pidfd_by_number = lambda pid, accepted_s: None
    watch._PROBE_S = 0.05
    with inside(tmp_path) as service, Monitor(PAGES) as monitor:
        monitor.connect(service.path)
        monitor.send(monitor.message())
        assert json.loads(monitor.reply())["error"]["code"] == "kill"
    with inside(tmp_path, on_error="poison") as service:
        with Monitor(PAGES) as monitor:
            monitor.restore(service.path, "1.11")
            assert monitor.read(0, PAGE) == service.expected[:PAGE]
            time.sleep(0.2)  # some probes
            assert monitor.read_all() == service.expected
            assert [each for each in service.events if each["event"] == "gone"] == []
        assert "memory" in service.wait("gone", pid=monitor.pid)["reason"]


@in_child()
def test_it_ends_while_peers_come(tmp_path: Path) -> None:
    """Whoever is in the middle of anything then: no thread, descriptor or task is left"""
    threads = threading.active_count()
    for number in range(5):
        monitors = [Monitor(PAGES) for _ in range(6)]
        try:
            with inside(tmp_path, prefetch="all") as service:
                for each in monitors[: number + 1]:
                    each.restore(service.path)
                for each in monitors[number + 1 :]:
                    each.connect(service.path)
                    each.send(each.message()[:50])
        finally:
            for each in monitors:
                each.close()
    del service
    assert threading.active_count() <= threads
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            kind = os.readlink(f"/proc/self/fd/{fd}")
            assert "userfaultfd" not in kind
            assert "pidfd" not in kind
