"""Sockets to listen on: made, found stale or served, handed over by systemd."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from process_support import in_child
from restore_support import PACKAGE_HOME

from lazyrestore._serve import listen
from lazyrestore._serve.listen import SocketError, SocketServed, bind


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(path))
    return sock


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o700])
def test_the_mode_is_what_was_asked_for_whatever_the_umask(tmp_path, mode):
    before = os.umask(0o077)
    try:
        listener = bind(str(tmp_path / "s"), mode)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(tmp_path / "s").st_mode) == mode
    connect(tmp_path / "s").close()
    listener.close()
    assert not os.path.lexists(tmp_path / "s")


def test_a_stale_socket_is_replaced(tmp_path):
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    with pytest.raises(ConnectionRefusedError):
        connect(tmp_path / "s")
    listener = bind(str(tmp_path / "s"))
    connect(tmp_path / "s").close()
    listener.close()


def test_a_served_socket_is_left_alone(tmp_path):
    listener = bind(str(tmp_path / "s"))
    with pytest.raises(SocketServed, match="already served"):
        bind(str(tmp_path / "s"))
    connect(tmp_path / "s").close()
    listener.close()


def test_a_socket_with_a_full_queue_counts_as_served(tmp_path):
    busy = socket.socket(socket.AF_UNIX)
    busy.bind(str(tmp_path / "s"))
    busy.listen(0)
    waiting = []
    for _ in range(3):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        waiting.append(sock)
        sock.connect_ex(str(tmp_path / "s"))
    with pytest.raises(SocketServed):
        bind(str(tmp_path / "s"))
    for sock in [busy, *waiting]:
        sock.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe", "datagram"])
def test_what_is_something_else_is_left_alone(tmp_path, kind):
    path = tmp_path / "s"
    other = None
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        other.bind(str(path))
    before = os.lstat(path)
    with pytest.raises(SocketError, match="is there: give another path"):
        bind(str(path))
    after = os.lstat(path)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    if other is not None:
        other.close()


def test_a_path_that_is_too_long_is_refused_and_the_longest_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listener = bind("s" * 107)
    connect(Path("s" * 107)).close()
    listener.close()
    for path in ("s" * 108, "ü" * 54):
        with pytest.raises(ValueError, match="108 bytes, and 107 are the most"):
            bind(path)
    for path in ("", "a\0b"):
        with pytest.raises(ValueError, match="cannot be"):
            bind(path)


def test_a_folder_that_is_not_there_or_not_writable(tmp_path):
    with pytest.raises(SocketError, match="there is no folder"):
        bind(str(tmp_path / "no" / "s"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SocketError, match="is not a folder"):
        bind(str(tmp_path / "file" / "s"))


@pytest.mark.root
@in_child(60)
def test_a_folder_of_another_user(tmp_path):
    tmp_path.chmod(0o755)
    os.setresuid(65534, 65534, 65534)
    os.chdir("/")
    if not os.access("/proc/self", os.X_OK):
        pytest.skip("no /proc")
    with pytest.raises(SocketError, match="make / writable for this user"):
        bind("/lazyrestore-test.sock")


def test_only_its_own_path_is_removed_at_the_end(tmp_path):
    first = bind(str(tmp_path / "s"))
    os.unlink(tmp_path / "s")
    second = bind(str(tmp_path / "s"))
    first.close()
    connect(tmp_path / "s").close()
    second.close()
    assert not os.path.lexists(tmp_path / "s")


@in_child(60)
def test_of_many_that_find_it_stale_one_gets_it(tmp_path):
    """Each looks, removes and binds at the same time as the others."""
    for _ in range(30):
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(tmp_path / "s"))
        dead.close()
        got, refused = [], []
        barrier = threading.Barrier(4)

        def attempt(got=got, refused=refused, barrier=barrier):
            barrier.wait()
            try:
                got.append(bind(str(tmp_path / "s")))
            except SocketServed:
                refused.append(1)

        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(refused)) == (1, 3)
        connect(tmp_path / "s").close()
        got[0].close()


_ACTIVATED = """
import os, sys
from lazyrestore._serve import listen
environ = {**os.environ, "LISTEN_PID": str(os.getpid())}
if sys.argv[1] == "other":
    environ["LISTEN_PID"] = "1"
try:
    found = listen.inherited(environ)
except listen.SocketError as error:
    sys.exit(str(error))
assert not [name for name in environ if name.startswith("LISTEN_")]
for one in found:
    assert not os.get_inheritable(one.sock.fileno()) and not one.sock.getblocking()
    one.close()
print([(one.path, one.name, one.identity) for one in found])
"""


def activate(fds: list[int], count: str | None = None, pid: str = "mine"):
    """Start a process as systemd does: its sockets from descriptor 3 on."""
    moves = "".join(f" {3 + i}<&{fd}" for i, fd in enumerate(fds))
    command = ["bash", "-c", f'exec "$@" {moves}', "-", sys.executable, "-c", _ACTIVATED, pid]
    return subprocess.run(
        command,
        pass_fds=fds,
        env={
            **os.environ,
            "PYTHONPATH": str(PACKAGE_HOME),
            "LISTEN_FDS": str(len(fds)) if count is None else count,
            "LISTEN_FDNAMES": "x",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def listening(tmp_path):
    made = []
    for name in ("one.sock", "two.sock"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / name))
        sock.listen()
        # Out of the way of the numbers that they are to have.
        moved = socket.socket(fileno=os.dup2(sock.fileno(), 50 + len(made)))
        sock.close()
        made.append(moved)
    yield made
    for sock in made:
        sock.close()


pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")


def test_sockets_of_systemd_are_taken(tmp_path, listening):
    result = activate([sock.fileno() for sock in listening])
    assert result.returncode == 0, result.stderr
    expected = [(str(tmp_path / f"{name}.sock"), name, None) for name in ("one", "two")]
    assert result.stdout.strip() == repr(expected)
    assert (tmp_path / "one.sock").exists()  # it is not ours to remove


def test_sockets_for_another_process_are_not(listening):
    result = activate([listening[0].fileno()], pid="other")
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


@pytest.mark.parametrize("count", ["x", "0", "-1", "99999", "²"])
def test_a_count_that_cannot_be(listening, count):
    result = activate([listening[0].fileno()], count)
    assert result.returncode == 1
    assert "LISTEN_FDS is" in result.stderr


def test_more_were_promised_than_are_there(listening):
    result = activate([listening[0].fileno()], "2")
    assert result.returncode == 1
    assert "descriptor 4, of LISTEN_FDS, is no socket" in result.stderr


@pytest.mark.parametrize("kind", ["file", "internet", "datagram", "connected"])
def test_descriptors_that_cannot_be_served(tmp_path, kind):
    pair = socket.socketpair()
    opened = {
        "file": lambda: os.open(tmp_path, os.O_RDONLY),
        "internet": lambda: socket.socket(socket.AF_INET).detach(),
        "datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
        "connected": lambda: pair[0].detach(),
    }[kind]()
    fd = os.dup2(opened, 50)
    result = activate([fd])
    os.close(fd)
    os.close(opened)
    pair[1].close()
    assert result.returncode == 1
    assert "descriptor 3, of LISTEN_FDS, is" in result.stderr


def test_who_serves_an_inherited_socket_is_found_by_it(listening):
    number = os.fstat(listening[0].fileno()).st_ino
    assert listen.connect_control(number) is None
    control = listen.control(number)
    assert listen.control(number) is None  # one at a time
    connection = listen.connect_control(number)
    accepted, _ = control.accept()
    for sock in (connection, accepted, control):
        sock.close()
    assert listen.connect_control(number) is None
