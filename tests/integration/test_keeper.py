"""A service that is killed while peers wait: its keeper serves on, and no byte is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from churner import Churner
from cli_support import run
from keeper_support import PAGES, Image, Kept
from process_support import in_child
from restore_support import write_image
from serve_peer import PAGE, Monitor
from serve_support import Service, eventually

pytestmark = pytest.mark.uffd


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@pytest.mark.parametrize("prefetch", ["none", "all"])
@pytest.mark.parametrize("seed", [1])
@in_child(120)
def test_killed_at_any_moment(image: Image, tmp_path: Path, prefetch: str, seed: int) -> None:
    """Peers read, write and give up memory all the while"""
    choice = random.Random(seed)
    with (
        Kept(tmp_path / "s", image.path, "--prefetch", prefetch) as service,
        Churner(service.path, image.expected, seed=seed) as one,
        Churner(service.path, image.expected, seed=seed + 10, is_closing=True) as two,
    ):
        one.wait_for(1)
        two.wait_for(1)
        for _ in range(4):
            time.sleep(choice.random() * 0.02)
            service.kill_server()
            one.wait_for(100)
            two.wait_for(100)
            service.wait_for_keeper()
        one.finish()
        two.finish()
        assert service.find("error") == []


@pytest.mark.parametrize("prefetch", ["all", "auto"])
@in_child(120)
def test_killed_while_it_fills(tmp_path: Path, prefetch: str) -> None:
    """Nobody touches anything: the fill goes on, to the end; also one that a working set began"""
    pages = 4096
    data = write_image(tmp_path / "vm.lzr", {"memory": "r" * pages})["memory"]
    if prefetch == "auto":
        recorded = ("--touch", "random", "--count", "9", "--record", tmp_path / "vm.lzr.ws", "-q")
        run("restore", tmp_path / "vm.lzr", "--lazy", *recorded).ok()
    with (
        Kept(tmp_path / "s", tmp_path / "vm.lzr", "--prefetch", prefetch) as service,
        Monitor(pages) as monitor,
    ):
        service.wait_for_keeper()
        monitor.restore(service.path)
        service.wait("serving")
        count = len(service.find("complete"))
        service.kill_server()
        service.wait("complete", count + 1)
        service.wait_for_keeper()
        assert monitor.read_all() == data


@in_child(120)
def test_killed_twice_in_a_row(image: Image, tmp_path: Path) -> None:
    """The second time before the next keeper has even begun to run"""
    with (
        Kept(tmp_path / "s", image.path) as service,
        Churner(service.path, image.expected) as churner,
    ):
        churner.wait_for(10)
        service.wait_for_keeper()
        service.kill_server()
        service.kill_server()
        churner.wait_for(100)
        churner.finish()


@pytest.mark.parametrize("step", ["connected", "half", "whole"])
@in_child(120)
def test_killed_in_a_handshake(image: Image, tmp_path: Path, step: str) -> None:
    """What the peer has sent is not lost, and what it sends afterwards is heard"""
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        service.wait_for_keeper()
        message = monitor.message()
        monitor.connect(service.path)
        service.wait("connected")
        if step == "half":
            monitor.send(message[:50])
            # It has looked at it: then it sleeps again.
            eventually("it sleeps", lambda: is_asleep(service.pid))
        if step == "whole":
            # Not looked at, or looked at, or being served: whatever a SIGKILL meets.
            monitor.send(message)
        service.kill_server()
        if step == "connected":
            monitor.send(message)
        if step == "half":
            monitor.send(message[50:], "[]")
        assert monitor.read_all() == image.bytes


@in_child(120)
def test_killed_at_any_moment_of_a_handshake(image: Image, tmp_path: Path) -> None:
    choice = random.Random(3)
    cut = 0
    with Kept(tmp_path / "s", image.path) as service, contextlib.ExitStack() as stack:
        for _ in range(4):
            service.wait_for_keeper()
            monitors = [stack.enter_context(Monitor(PAGES)) for _ in range(3)]
            for monitor in monitors:
                monitor.connect(service.path)
                monitor.order(f"send({monitor.message()!r}, [uffd], False)")
            time.sleep(choice.random() * 0.005)
            service.kill_server()
            for monitor in monitors:
                # Between accept() and the keeper there are some microseconds: who falls into these
                # sees at least that nobody is there.
                try:
                    monitor.result()
                    is_cut = monitor.ask("is_cut()")
                except (BrokenPipeError, ConnectionResetError):
                    is_cut = True
                assert is_cut or monitor.read_all() == image.bytes
                cut += is_cut
        assert cut <= 3, "it is cut off too often"


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@in_child(120)
def test_the_keeper_is_killed(image: Image, tmp_path: Path) -> None:
    """Another one is started, and is told of everything"""
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        assert monitor.read(0, PAGE) == image.bytes[:PAGE]
        first = service.wait_for_keeper()
        os.kill(first, signal.SIGKILL)
        assert service.wait("keeper_lost")["pid"] == first
        second = service.wait_for_keeper()
        assert service.kill_server() == second != first
        assert monitor.read_all() == image.bytes


@in_child(120)
def test_a_keeper_that_is_stopped(image: Image, tmp_path: Path) -> None:
    """What it has been sent is there when it is continued, although the sender is gone"""
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        keeper = service.wait_for_keeper()
        os.kill(keeper, signal.SIGSTOP)
        monitor.restore(service.path)
        assert monitor.read(0, PAGE) == image.bytes[:PAGE]
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait()
        monitor.order(f"read(0, {PAGES * PAGE})")
        with pytest.raises(TimeoutError):
            monitor.result(0.2)
        os.kill(keeper, signal.SIGCONT)
        assert monitor.result() == image.bytes


@in_child(120)
def test_both_are_stopped_and_continued(image: Image, tmp_path: Path) -> None:
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        service.wait("serving")
        processes = [service.pid, service.wait_for_keeper()]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        monitor.order(f"read(0, {PAGES * PAGE})")
        with pytest.raises(TimeoutError):
            monitor.result(0.2)
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        assert monitor.result() == image.bytes
        assert service.find("taken_over") == []


@in_child(120)
def test_the_keeper_does_not_read(image: Image, tmp_path: Path) -> None:
    """Once its queue is full it is replaced, and peers are admitted all the same"""
    with Kept(tmp_path / "s", image.path) as service, contextlib.ExitStack() as stack:
        keeper = service.wait_for_keeper()
        os.kill(keeper, signal.SIGSTOP)
        while not service.find("keeper_lost"):
            connections = [service.connect() for _ in range(50)]
            for connection in connections:
                connection.close()
            monitor = stack.enter_context(Monitor(4))
            monitor.restore(service.path)
            assert monitor.read_all() == image.bytes[: 4 * PAGE]
        service.wait_for_keeper()
        service.kill_server()
        monitor = stack.enter_context(Monitor(PAGES))
        monitor.restore(service.path)
        assert monitor.read_all() == image.bytes


@in_child(120)
def test_signals_do_not_end_a_keeper(image: Image, tmp_path: Path) -> None:
    """A terminal's, or those of who ends a whole group: the pager knows what is to be done"""
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        service.wait("serving")
        keeper = service.wait_for_keeper()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(keeper, number)
        assert os.getsid(keeper) == keeper
        service.kill_server()
        assert service.server == keeper
        assert monitor.read_all() == image.bytes


@in_child(120)
def test_the_image_was_replaced(image: Image, tmp_path: Path) -> None:
    """A keeper serves what was opened, not what is at the path by now"""
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        service.wait_for_keeper()
        monitor.restore(service.path)
        assert monitor.read(0, PAGE) == image.bytes[:PAGE]
        write_image(tmp_path / "other.lzr", {"memory": "z" * PAGES})
        os.replace(tmp_path / "other.lzr", image.path)
        service.kill_server()
        service.wait_for_keeper()
        image.path.unlink()
        service.kill_server()
        assert monitor.read_all() == image.bytes
        with Monitor(PAGES) as new:
            new.restore(service.path)
            assert new.read_all() == image.bytes


@in_child(120)
def test_images_of_a_folder(image: Image, tmp_path: Path) -> None:
    """Each peer goes on with its own"""
    (tmp_path / "images").mkdir()
    (tmp_path / "sockets").mkdir()
    shutil.copy(image.path, tmp_path / "images" / "one.lzr")
    other = write_image(tmp_path / "images" / "two.lzr", {"memory": "zddr" * 64})["memory"]
    arguments = ("--image-dir", tmp_path / "images")
    with (
        Kept(tmp_path / "sockets", *arguments) as service,
        Monitor(PAGES) as one,
        Monitor(256) as two,
    ):
        service.wait("listening", 2)
        one.restore(tmp_path / "sockets" / "one.sock")
        two.restore(tmp_path / "sockets" / "two.sock")
        service.wait("serving", 2)
        service.wait_for_keeper()
        (tmp_path / "images" / "two.lzr").unlink()
        service.kill_server()
        assert one.read_all() == image.bytes
        assert two.read_all() == other


@in_child(120)
def test_a_peer_that_ends_pagers_is_found(image: Image, tmp_path: Path) -> None:
    """Whoever serves it is killed at once: the others are served in the end, without it"""
    with (
        Kept(tmp_path / "s", image.path) as service,
        Monitor(PAGES) as good,
        Monitor(PAGES) as bad,
    ):
        bad.restore(service.path)
        service.wait("serving", pid=bad.pid)
        good.restore(service.path)
        service.wait("serving", pid=good.pid)
        for count in range(1, 5):  # so many are too many
            service.wait_for_keeper()
            service.kill_server()
            service.wait("serving", count + 1, pid=bad.pid)
        # Twice as soon as it is served; where this process gets no time, that is once more.
        for count in range(5, 30):
            service.wait_for_keeper()
            os.kill(service.server, signal.SIGKILL)
            service.wait("taken_over", count)
            eventually(
                "it is served, or has ended",
                lambda count=count: (
                    bad.process.poll() is not None
                    or len(service.find("serving", pid=bad.pid)) > count
                ),
            )
            if bad.process.poll() is not None:
                break
        assert bad.process.wait(60) == -signal.SIGKILL
        assert good.read_all() == image.bytes
        reasons = [event["reason"] for event in service.find("error")]
        assert any("one by one" in reason for reason in reasons)
        assert any("as soon as they served it" in reason for reason in reasons)


@in_child(120)
def test_both_are_killed(image: Image, tmp_path: Path) -> None:
    """The peer waits: no byte is wrong. A new service replaces the socket and serves others"""
    with Monitor(PAGES) as waiting:
        with Kept(tmp_path / "s", image.path) as service:
            waiting.restore(service.path)
            assert waiting.read(0, PAGE) == image.bytes[:PAGE]
            keeper = service.wait_for_keeper()
            for pid in (keeper, service.pid):
                os.kill(pid, signal.SIGSTOP)
            for pid in (keeper, service.pid):
                os.kill(pid, signal.SIGKILL)
            service.wait_until_all_ended()
        waiting.order(f"read(0, {PAGES * PAGE})")
        with Service(tmp_path / "s", image.path) as second, Monitor(PAGES) as other:
            other.restore(second.path)
            assert other.read_all() == image.bytes
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
