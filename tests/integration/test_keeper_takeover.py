"""From one service to the next, while peers wait; and who refuses."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from churner import Churner
from cli_support import COMMAND, environment, run
from keeper_support import PAGES, Image, Kept, wait_until_gone
from process_support import in_child
from serve_peer import PAGE, Monitor
from serve_support import LIMIT_S, eventually

from lazyrestore._serve import takeover
from lazyrestore._serve.handover import Channel, Message
from lazyrestore._serve.reign import Reign

pytestmark = pytest.mark.uffd


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@in_child(120)
def test_a_chain(image: Image, tmp_path: Path) -> None:
    """Killed, promoted, taken over by a new service, killed again, and again taken over"""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Kept(tmp_path / "s", image.path))
        churner = stack.enter_context(Churner(first.path, image.expected))
        churner.wait_for(10)
        first.wait_for_keeper()
        old = first
        for _ in range(2):
            promoted = old.kill_server()
            churner.wait_for(50)
            new = stack.enter_context(Kept(tmp_path / "s", image.path))
            assert new.wait("taken_over", **{"from": promoted})["peers"] == 1
            old.wait_until_all_ended()
            assert old.find("stopped")
            churner.wait_for(50)
            new.wait_for_keeper()
            old = new
        with Monitor(PAGES) as monitor:  # new ones have numbers of their own
            monitor.restore(old.path)
            assert monitor.read_all() == image.bytes
            assert old.find("serving", pid=monitor.pid)[0]["peer"] not in (0, 1)
        churner.finish()
        assert old.find("error") == []


@in_child(120)
def test_a_service_that_is_well_refuses_unless_it_is_told(image: Image, tmp_path: Path) -> None:
    """The upgrade of a service in use: nobody notices"""
    with (
        Kept(tmp_path / "s", image.path) as first,
        Churner(first.path, image.expected) as churner,
    ):
        churner.wait_for(10)
        refused = run("serve", image.path, "--socket", tmp_path / "s")
        refused.fails(5, f"already served by PID {first.pid}", "--takeover")
        churner.wait_for(50)
        assert first.find("gone") == []
        with Kept(tmp_path / "s", image.path, "--takeover") as second:
            second.wait("taken_over", **{"from": first.pid})
            assert first.process.wait(LIMIT_S) == 0
            first.wait_until_all_ended()  # its keeper too
            churner.wait_for(50)
            churner.finish()
            with Monitor(PAGES) as monitor:
                monitor.restore(second.path)
                assert monitor.read_all() == image.bytes


@pytest.mark.parametrize("who", ["first", "second"])
@in_child(120)
def test_one_is_killed_in_the_middle(image: Image, tmp_path: Path, who: str) -> None:
    """At any moment of a takeover: somebody serves in the end, and no byte is wrong"""
    choice = random.Random(who)
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(Kept(tmp_path / "s", image.path))
            churners = [
                stack.enter_context(Churner(first.path, image.expected, seed=seed))
                for seed in range(2)
            ]
            for churner in churners:
                churner.wait_for(10)
            first.wait_for_keeper()
            second = stack.enter_context(
                Kept(tmp_path / "s", image.path, "--takeover", awaited=None)
            )
            if who == "second":
                second.wait_until_it_runs()
            else:
                time.sleep(choice.random() * 0.3)
            time.sleep(choice.random() * 0.02)
            with contextlib.suppress(ProcessLookupError):
                os.kill({"first": first, "second": second}[who].process.pid, signal.SIGKILL)
            for churner in churners:
                churner.wait_for(100)
                churner.finish()


@in_child(120)
def test_an_heir_that_does_not_go_on(image: Image, tmp_path: Path) -> None:
    """It asks, and ends, or says nothing: who serves serves on, whoever waits is heard"""
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        with Monitor(PAGES) as waiting:
            waiting.connect(service.path)
            service.wait("connected", pid=waiting.pid)
            for _ in range(3):
                heir = service.connect()
                heir.sendall(json.dumps({"type": "takeover", "force": True}).encode())
                assert heir.recv(4) == b"LRHO"
                heir.close()
            waiting.send(waiting.message())
            assert waiting.read_all() == image.bytes
        monitor.restore(service.path)
        assert monitor.read_all() == image.bytes
        assert service.find("stopped") == []


def open_to_all(folder: Path) -> None:
    folder.chmod(0o777)
    for parent in folder.parents[:2]:
        parent.chmod(0o755)


@pytest.mark.root
@in_child(120)
def test_another_user_gets_nothing(image: Image, tmp_path: Path) -> None:
    """Neither state nor descriptors, though it is admitted as a peer"""
    open_to_all(tmp_path)
    arguments = (image.path, "--allow-uid", "65534", "--socket-mode", "666")
    with Kept(tmp_path / "s", *arguments) as service:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                os.setresuid(65534, 65534, 65534)
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(service.path)
                sock.sendall(b'{"type":"takeover","force":true}')
                os._exit(1 if b"LRHO" in sock.recv(100) else 0)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert "own user" in service.wait("refused", uid=65534)["reason"]


@in_child(120)
def test_another_program_listens_there(image: Image, tmp_path: Path) -> None:
    """It says nothing that is known, or ends the connection: the service does not start"""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        process = subprocess.Popen(
            [*COMMAND, "serve", str(image.path), "--socket", str(tmp_path / "s")],
            stderr=subprocess.PIPE,
            env=environment(),
        )
        connection, _ = other.accept()  # to see whether anyone listens
        connection.close()
        connection, _ = other.accept()
        assert json.loads(connection.recv(4096)) == {"type": "takeover", "force": False}
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        _, err = process.communicate(timeout=LIMIT_S)
        connection.close()
        assert process.returncode == 5
        assert b"the sender is not ours" in err


@contextlib.contextmanager
def impostor(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another user's process that listens under a name, and hands over a process that it wants to
    have ended: that one.
    """
    victim = subprocess.Popen(["sleep", "1000"])
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            pidfd = os.pidfd_open(victim.pid)
            os.setresuid(65534, 65534, 65534)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(name)
            listening.listen()
            reign = Reign.new()
            while True:
                sock, _ = listening.accept()
                channel = Channel(sock)
                fields = {"pid": victim.pid, "reign": reign.known}
                with contextlib.suppress(OSError):
                    channel.send(Message("reign", fields, [pidfd, reign.fd]), LIMIT_S)
                    channel.send(Message("all"), LIMIT_S)
        os._exit(1)
    try:
        yield victim
        assert victim.poll() is None, "it was ended on another user's word"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        victim.kill()
        victim.wait()


@pytest.mark.root
@in_child(120)
def test_another_user_listens_there(image: Image, tmp_path: Path) -> None:
    """Nothing that it says is believed: the service does not start"""
    open_to_all(tmp_path)
    with impostor(str(tmp_path / "s")):
        eventually("it listens", (tmp_path / "s").exists)
        refused = run("serve", image.path, "--socket", tmp_path / "s", "--takeover")
        refused.fails(5, "user 65534 listens there")


@pytest.mark.root
@in_child(120)
def test_another_user_listens_under_a_socket_of_systemds(image: Image, tmp_path: Path) -> None:
    """Names that are in no folder are anybody's: it is as if nobody were there"""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "vm.sock"))
        listening.listen()
        name = f"\0lazyrestore/{os.fstat(listening.fileno()).st_ino}"
        with impostor(name):
            eventually("it listens", lambda: socket.socket(socket.AF_UNIX).connect_ex(name) == 0)
            with (
                activated(listening, "--image-dir", tmp_path) as service,
                Monitor(PAGES) as monitor,
            ):
                monitor.restore(tmp_path / "vm.sock")
                assert monitor.read_all() == image.bytes
                assert service.find("taken_over") == []


def activated(listening: socket.socket, *arguments: object) -> Kept:
    """A service that systemd has started for a socket."""
    moved = os.dup2(listening.fileno(), 50)
    prefix = (
        *("bash", "-c", 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&50 50<&-', "-"),
        *(sys.executable, "-m", "lazyrestore"),
    )
    try:
        return Kept(None, *arguments, command=prefix, pass_fds=[moved])
    finally:
        os.close(moved)


@in_child(120)
def test_a_socket_of_systemds(image: Image, tmp_path: Path) -> None:
    """Killed, it is served on by the keeper, and the next service that systemd starts finds that"""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "vm.sock"))
        listening.listen()
        arguments = ("--image-dir", tmp_path)
        with (
            activated(listening, *arguments) as first,
            Churner(tmp_path / "vm.sock", image.expected) as churner,
        ):
            churner.wait_for(10)
            first.wait_for_keeper()
            promoted = first.kill_server()
            churner.wait_for(50)
            first.wait_for_keeper()
            with activated(listening, *arguments) as second:
                second.wait("taken_over", **{"from": promoted})
                first.wait_until_all_ended()
                churner.wait_for(50)
                churner.finish()
                with Monitor(PAGES) as monitor:
                    monitor.restore(tmp_path / "vm.sock")
                    assert monitor.read(PAGE, PAGE) == image.bytes[PAGE : 2 * PAGE]
                assert second.stop() == 0
        assert (tmp_path / "vm.sock").exists()  # it is systemd's


@in_child(120)
def test_a_promoted_keeper_ends_with_its_last_peer(image: Image, tmp_path: Path) -> None:
    with Kept(tmp_path / "s", image.path) as service:
        service.wait_for_keeper()
        with Monitor(PAGES) as monitor:
            monitor.restore(service.path)
            service.wait("serving")
            service.kill_server()
            assert monitor.read_all() == image.bytes
        service.wait_until_all_ended()
        wait_until_gone(tmp_path / "s")


@pytest.mark.parametrize("is_told", [False, True])
@in_child(120)
def test_its_last_peer_ends_while_a_successor_asks(
    image: Image, tmp_path: Path, is_told: bool
) -> None:
    """It waits for the answer: the sockets, which it would remove, may be the successor's"""
    with Kept(tmp_path / "s", image.path) as service, Monitor(PAGES) as monitor:
        monitor.restore(service.path)
        assert monitor.read(0, PAGE) == image.bytes[:PAGE]
        service.wait_for_keeper()
        promoted = service.kill_server()
        service.wait_for_keeper()
        found = takeover.ask(service.connect(), force=False)
        assert found.pid == promoted
        if is_told:
            os.kill(promoted, signal.SIGTERM)
        monitor.close()
        service.wait("gone", pid=monitor.pid)
        time.sleep(1)  # to be seen ending, if it does
        found.take()
        service.wait_until_all_ended()
        assert (tmp_path / "s").exists()
        assert "taken over" in service.find("stopped")[-1]["reason"]
        found.decline()
