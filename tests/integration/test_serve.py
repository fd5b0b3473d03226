"""`lazyrestore serve`: others' memory, in every version of Firecracker's handshake."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from process_support import in_child
from restore_support import write_image
from serve_peer import EVENT_REMOVE, PAGE, VERSIONS, Monitor
from serve_support import Service, become, eventually, threads_of

pytestmark = pytest.mark.uffd

PAGES = 256
LAYOUT = "drzd" * (PAGES // 4)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "vm.lzr", {"memory": LAYOUT})
    return tmp_path / "vm.lzr"


@pytest.fixture
def expected(tmp_path: Path) -> bytes:
    return write_image(tmp_path / "expected.lzr", {"memory": LAYOUT})["memory"]


@in_child()
def test_every_version(image: Path, expected: bytes, tmp_path: Path) -> None:
    """All of the guest's memory is right, wherever it lies, and its end is noticed"""
    with Service(tmp_path / "s", image) as service:
        idle = service.fds()
        for version in VERSIONS:
            with Monitor(PAGES, regions=3) as monitor:
                assert monitor.spans != sorted(monitor.spans, key=lambda span: span[2])
                monitor.restore(service.path, version)
                assert monitor.read_all() == expected, version
            gone = service.wait("gone", pid=monitor.pid)
            assert gone["faults"] > 0
            assert gone["protocol"] == ("nydus" if version == "nydus" else "firecracker")
        assert service.find("refused") == []
        become("its descriptors are closed", service.fds, idle)


@in_child()
def test_in_pieces(image: Path, expected: bytes, tmp_path: Path) -> None:
    """The message may come in many, of which the first has the descriptor"""
    with Service(tmp_path / "s", image) as service, Monitor(PAGES, regions=2) as monitor:
        monitor.restore(service.path, pieces=True)
        assert monitor.read_all() == expected


@in_child()
@pytest.mark.parametrize(("piece", "space"), [(1, 0), (1000, 100_000), (30_000, 300_000)])
def test_a_sender_that_polls(
    image: Path, expected: bytes, tmp_path: Path, piece: int, space: int
) -> None:
    """What was only looked at, and is still in the socket, does not keep it from sending the rest

    One that polls sees room only when the socket is nearly empty.
    """
    with Service(tmp_path / "s", image) as service, Monitor(PAGES) as monitor:
        monitor.connect(service.path)
        text = b"[" + b" " * space + monitor.message()[1:]
        monitor.ask(f"send_slowly({text!r}, [uffd], {piece})")
        assert monitor.read_all() == expected


@in_child()
def test_several_at_once(image: Path, expected: bytes, tmp_path: Path) -> None:
    """One image, many peers: each gets its memory, and writes to nobody else's"""
    with Service(tmp_path / "s", image) as service:
        monitors = [Monitor(PAGES) for _ in range(8)]
        try:
            for monitor in monitors:
                monitor.restore(service.path)
            for number, monitor in enumerate(monitors):
                monitor.ask(f"maps[0][1].__setitem__(slice(0, 8), bytes([{number}]) * 8)")
            for monitor in monitors:
                monitor.order(f"read(0, {PAGES * PAGE})")
            for number, monitor in enumerate(monitors):
                assert monitor.result() == bytes([number]) * 8 + expected[8:]
        finally:
            for monitor in monitors:
                monitor.close()
        service.wait("gone", len(monitors))
        eventually("their threads have ended", lambda: threads_of(service.pid) < 40)


@in_child()
def test_the_others_live_on(image: Path, expected: bytes, tmp_path: Path) -> None:
    """One is killed in the middle of its life"""
    with (
        Service(tmp_path / "s", image) as service,
        Monitor(PAGES) as first,
        Monitor(PAGES) as second,
    ):
        first.restore(service.path)
        second.restore(service.path, "1.1")
        first.read(0, 1)
        second.read(0, 1)
        os.kill(first.pid, signal.SIGKILL)
        service.wait("gone", pid=first.pid)
        assert second.read_all() == expected


@in_child()
def test_a_closed_socket_is_no_end(image: Path, expected: bytes, tmp_path: Path) -> None:
    """Up to 1.11 nothing but the process itself tells that the machine is gone"""
    with Service(tmp_path / "s", image) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path, "1.11")
        service.wait("serving")
        assert monitor.read_all() == expected
        assert service.find("gone") == []


@in_child()
def test_a_balloon(image: Path, expected: bytes, tmp_path: Path) -> None:
    """Memory that the guest gave up reads as zeros, also where everything is filled"""
    with (
        Service(tmp_path / "s", image, "--prefetch", "all") as service,
        Monitor(PAGES, features=EVENT_REMOVE) as monitor,
    ):
        monitor.ask("discard(0, 0)")
        monitor.restore(service.path)
        half = PAGES * PAGE // 2
        monitor.ask(f"discard(0, {half})")
        service.wait("complete")
        assert monitor.read_all() == bytes(half) + expected[half:]


@in_child()
def test_an_image_of_several_regions(tmp_path: Path) -> None:
    """Which are the memory file, one after another; the last one's end lies within a page"""
    layouts = {"low": "dz" * 20, "none": "", "high": "r" * 9}
    parts = write_image(tmp_path / "vm.lzr", layouts)
    whole = b"".join(parts.values())
    with Service(tmp_path / "s", tmp_path / "vm.lzr") as service:
        with Monitor(49, regions=4) as monitor:
            monitor.restore(service.path)
            assert monitor.read_all() == whole
        with Monitor(9) as monitor:  # a part alone
            monitor.spans = [(address, size, 40 * PAGE) for address, size, _ in monitor.spans]
            monitor.restore(service.path)
            assert monitor.read_all() == parts["high"]
