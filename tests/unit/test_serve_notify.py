"""Readiness: what systemd hears, and what comes out of --status-fd."""

from __future__ import annotations

import os
import socket

import pytest
from process_support import in_child

from lazyrestore._serve.notify import Notifier, StatusFd
from lazyrestore._serve.reign import Reign, await_release, new_number


@pytest.fixture(params=["path", "abstract"])
def supervisor(request, tmp_path):
    """A socket as systemd's, and the environment that names it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(30)
    if request.param == "path":
        sock.bind(str(tmp_path / "notify"))
        name = str(tmp_path / "notify")
    else:
        sock.bind(f"\0lazyrestore-test-{os.getpid()}")
        name = f"@lazyrestore-test-{os.getpid()}"
    yield sock, {"NOTIFY_SOCKET": name}
    sock.close()


def test_what_systemd_hears(supervisor):
    sock, environ = supervisor
    notifier = Notifier(environ)
    notifier.ready("serving\n2 sockets")
    pid = f"MAINPID={os.getpid()}"
    assert sock.recv(4096).decode().split("\n") == ["READY=1", "STATUS=serving 2 sockets", pid]
    notifier.stopping("filling", extend_s=30)
    assert sock.recv(4096).decode().split("\n") == [
        "STOPPING=1",
        "STATUS=filling",
        "EXTEND_TIMEOUT_USEC=30000000",
    ]
    notifier.main_pid("promoted")
    assert sock.recv(4096).decode().split("\n") == [pid, "STATUS=promoted"]
    notifier.watchdog()
    assert sock.recv(4096) == b"WATCHDOG=1"
    notifier.status("x")
    assert sock.recv(4096) == b"STATUS=x"


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/no"}]
)
def test_nobody_listens(environ):
    Notifier(environ).ready("serving")


def test_the_watchdog_is_kept_where_one_is_asked_for(supervisor):
    _, environ = supervisor
    assert Notifier(environ).watchdog_s is None
    assert Notifier({**environ, "WATCHDOG_USEC": "3000000"}).watchdog_s == 3.0
    assert Notifier({**environ, "WATCHDOG_USEC": "often"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_s is None


def test_a_status_fd_gets_one_line_and_ends():
    read_fd, write_fd = os.pipe()
    os.set_inheritable(write_fd, True)
    status = StatusFd(write_fd)
    assert not os.get_inheritable(write_fd)
    status.ready()
    status.ready()
    with os.fdopen(read_fd, "rb") as file:
        assert file.read() == b"ready\n"  # and the end of the file


def test_a_status_fd_that_nobody_reads():
    read_fd, write_fd = os.pipe()
    status = StatusFd(write_fd)
    os.close(read_fd)
    status.ready()


@pytest.mark.parametrize("number", [-1, 9999])
def test_a_status_fd_that_is_not_open(number):
    with pytest.raises(ValueError, match=f"--status-fd {number}"):
        StatusFd(number)


def test_a_status_fd_that_is_only_read(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ValueError, match="open for writing"):
        StatusFd(fd)
    os.close(fd)


@in_child(60)
def test_of_many_that_would_take_over_one_does():
    """Processes with the same descriptor: the lock has to hold between these."""
    for _ in range(50):
        reign = Reign.new()
        first = reign.known
        start_read, start_write = os.pipe()
        result_read, result_write = os.pipe()
        for _ in range(4):
            if os.fork() == 0:
                os.close(start_write)
                os.read(start_read, 1)
                os.write(result_write, b"1" if reign.pass_to(new_number()) else b"0")
                os._exit(0)
        for fd in (start_read, start_write, result_write):
            os.close(fd)
        with os.fdopen(result_read, "rb") as file:
            assert sorted(file.read()) == sorted(b"0001")
        for _ in range(4):
            os.wait()
        assert reign.now() not in (0, first)
        reign.close()


@in_child(60)
def test_who_does_not_stop_in_time_is_ended_by_its_heir():
    pid = os.fork()
    if pid == 0:
        while True:
            os.read(os.pipe()[0], 1)
    pidfd = os.pidfd_open(pid)
    reign = Reign.new()
    heir = new_number()
    assert await_release(reign, heir, pidfd, 0.05)
    assert os.waitid(os.P_PID, pid, os.WEXITED).si_status == 9
    assert (reign.now(), reign.known) == (heir, heir)
    reign.close()


@in_child(60)
def test_an_heir_who_comes_too_late_serves_nothing():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    mine = Reign.new()
    keeper = Reign(os.dup(mine.fd), mine.known)
    assert keeper.pass_to(new_number())
    assert not await_release(mine, new_number(), pidfd, 30.0)
    os.waitpid(pid, 0)
