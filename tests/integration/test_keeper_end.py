"""A service that is told to end, and how it tells that it is ready."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
from cli_support import environment, run
from keeper_support import Kept, wait_until_gone
from process_support import in_child
from restore_support import flip, payloads, write_image
from serve_peer import EVENT_REMOVE, PAGE, Monitor
from serve_support import LIMIT_S, Service

pytestmark = pytest.mark.uffd

PAGES = 1024
LAYOUT = "drzd" * (PAGES // 4)


class Image:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "vm.lzr"
        self.bytes = write_image(self.path, {"memory": LAYOUT})["memory"]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_child(120)
def test_peers_are_filled_first(image: Image, tmp_path: Path, number: int) -> None:
    """Then nothing is left: neither the service nor its keeper, and a peer needs nobody"""
    with (
        Kept(tmp_path / "s", image.path) as service,
        Monitor(PAGES, features=EVENT_REMOVE) as one,
        Monitor(PAGES) as two,
    ):
        one.restore(service.path)
        two.restore(service.path, "1.1")
        service.wait("serving", 2)
        service.wait_for_keeper()
        assert service.stop(number) == 0
        service.wait_until_all_ended()
        assert not (tmp_path / "s").exists()
        assert service.find("grace")[0]["peers"] == 2
        assert service.find("left") == []
        assert len(service.find("complete")) == 2
        assert one.read_all() == two.read_all() == image.bytes
        # What a balloon gives up waits for nobody to hear of it.
        one.ask(f"discard(0, {PAGE * 8})")
        assert one.read(0, PAGE * 8) == bytes(PAGE * 8)


@in_child(120)
def test_who_is_not_complete_is_left_to_the_keeper(image: Image, tmp_path: Path) -> None:
    with Kept(tmp_path / "s", image.path, "--grace", "0") as service:
        with Monitor(PAGES) as monitor:
            monitor.restore(service.path)
            assert monitor.read(0, PAGE) == image.bytes[:PAGE]
            keeper = service.wait_for_keeper()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(LIMIT_S) == 0
            left = service.wait("left")
            assert left["pid"] == monitor.pid
            assert 0 < left["missing_bytes"] < PAGES * PAGE
            assert left["to"] == "the keeper"
            assert service.wait("taken_over")["pid"] == keeper
            assert monitor.read_all() == image.bytes
            # It admits nobody, but a service that is started.
            with Monitor(4) as other:
                with contextlib.suppress(BrokenPipeError):
                    other.restore(service.path)
                assert "about to end" in service.wait("refused")["reason"]
            with Kept(tmp_path / "s", image.path) as second:
                second.wait("taken_over", **{"from": keeper})
                service.wait_until_all_ended()
                with Monitor(4) as other:
                    other.restore(second.path)
                    assert other.read_all() == image.bytes[: 4 * PAGE]
                assert second.stop() == 0
                second.wait_until_all_ended()
        assert not (tmp_path / "s").exists()


@in_child(120)
def test_left_when_the_keeper_has_just_been_killed(image: Image, tmp_path: Path) -> None:
    """Nobody is left to one that is not there: another is started first"""
    with Kept(tmp_path / "s", image.path, "--grace", "0") as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        service.wait("serving")
        keeper = service.wait_for_keeper()
        os.kill(service.pid, signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
        service.process.send_signal(signal.SIGTERM)
        os.kill(service.pid, signal.SIGCONT)
        assert service.process.wait(LIMIT_S) == 0
        assert service.wait("taken_over")["pid"] != keeper
        assert monitor.read_all() == image.bytes


@in_child(120)
def test_what_cannot_be_loaded_is_said(image: Image, tmp_path: Path) -> None:
    """A second signal ends the wait; the keeper ends with the peer"""
    flip(image.path, sorted(payloads(image.path, "memory").values())[3][0])
    arguments = ("--grace", "1000", "--on-error", "log")
    with Kept(tmp_path / "s", image.path, *arguments) as service:
        with Monitor(PAGES) as monitor:
            monitor.restore(service.path)
            service.wait("serving")
            service.wait_for_keeper()
            service.process.send_signal(signal.SIGTERM)
            service.wait("grace")
            service.wait("error")
            assert service.process.poll() is None
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(LIMIT_S) == 0
            left = service.wait("left")
            assert "cannot be loaded" in left["reason"]
            assert left["missing_bytes"] > 0
            service.wait("taken_over")
            assert monitor.read(0, PAGE) == image.bytes[:PAGE]
        service.wait_until_all_ended()
        wait_until_gone(tmp_path / "s")


@in_child(120)
def test_without_a_keeper_who_is_not_complete_is_ended(image: Image, tmp_path: Path) -> None:
    """By --on-error: wrong memory is worse than none"""
    with Service(tmp_path / "s", image.path, "--grace", "0") as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        service.wait("serving")
        assert service.stop() == 0
        assert monitor.process.wait(LIMIT_S) == -signal.SIGKILL
        assert service.find("left")[0]["to"] == "kill"


@in_child(120)
def test_nobody_is_there(image: Image, tmp_path: Path) -> None:
    with Kept(tmp_path / "s", image.path) as service:
        service.wait_for_keeper()
        assert service.stop() == 0
        service.wait_until_all_ended()
        assert not (tmp_path / "s").exists()


@in_child(120)
def test_ready_by_a_descriptor(image: Image, tmp_path: Path) -> None:
    """Whoever connects after that line is served; no line means that it did not come up"""
    read_fd, write_fd = os.pipe()
    arguments = ("--status-fd", write_fd)
    with Kept(tmp_path / "s", image.path, *arguments, pass_fds=[write_fd]) as service:
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as file:
            assert file.read() == b"ready\n"  # and then the end: the keeper does not have it
        with Monitor(PAGES) as monitor:
            monitor.restore(service.path)
            assert monitor.read_all() == image.bytes
    read_fd, write_fd = os.pipe()
    result = run(
        *("serve", tmp_path / "no.lzr", "--socket", tmp_path / "s2", "--status-fd", write_fd),
        pass_fds=[write_fd],
    )
    os.close(write_fd)
    assert result.code == 1
    with os.fdopen(read_fd, "rb") as file:
        assert file.read() == b""


@in_child(120)
def test_a_descriptor_that_is_not_open(image: Image, tmp_path: Path) -> None:
    result = run("serve", image.path, "--socket", tmp_path / "s", "--status-fd", "77")
    result.fails(2, "--status-fd 77")
    assert not (tmp_path / "s").exists()


@in_child(120)
def test_systemd_hears_of_it(image: Image, tmp_path: Path) -> None:
    """When it is ready, when another process is the service, and when it is about to end"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"\0lazyrestore-test-{os.getpid()}")
        supervisor.settimeout(LIMIT_S)
        environ = {"NOTIFY_SOCKET": f"@lazyrestore-test-{os.getpid()}", "WATCHDOG_USEC": "300000"}

        def hear(word: str) -> list[str]:
            while True:
                lines = supervisor.recv(4096).decode().split("\n")
                if any(line.startswith(word) for line in lines):
                    return lines

        with Kept(tmp_path / "s", image.path, env=environment(environ)) as service:
            assert f"MAINPID={service.pid}" in hear("READY=1")
            with Monitor(PAGES) as monitor:
                monitor.restore(service.path)
                service.wait("serving")
                service.wait_for_keeper()
                hear("WATCHDOG=1")
                promoted = service.kill_server()
                hear(f"MAINPID={promoted}")
                hear("WATCHDOG=1")
                os.kill(promoted, signal.SIGTERM)
                assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in hear("STOPPING=1"))
                service.wait_until_all_ended()
                assert monitor.read_all() == image.bytes
