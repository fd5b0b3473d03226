"""`lazyrestore top`: whom a service serves, in a terminal, in a pipe, as JSON."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from cli_support import COMMAND, TIMEOUT_S, environment, finish, run, start
from process_support import in_child
from restore_support import write_image
from rich.cells import cell_len
from serve_peer import PAGE, Monitor
from serve_support import Service

from lazyrestore.cli._status import PeerStatus, Sample
from lazyrestore.cli._top_text import age, screen

CLUSTER = 65536
PAGES = 256
RESTORE_SCREEN = b"\x1b[?1049l"


@contextlib.contextmanager
def serving(tmp_path: Path, peers: int = 2) -> Iterator[tuple[Service, list[Monitor]]]:
    """A service, and peers of which each has read 64 KiB more than the one before."""
    image = tmp_path / "vm.lzr"
    write_image(image, {"memory": "d" * PAGES}, cluster_size=CLUSTER)
    with (
        Service(tmp_path / "s", image, "--prefetch", "none") as service,
        contextlib.ExitStack() as stack,
    ):
        monitors = [stack.enter_context(Monitor(PAGES)) for _ in range(peers)]
        for number, monitor in enumerate(monitors, 1):
            monitor.restore(service.path)
            monitor.read(0, number * CLUSTER)
        yield service, monitors


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, path: str, columns: int = 80, rows: int = 24) -> None:
        self.leader, self.follower = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.follower)
        self.said = b""
        self.child = subprocess.Popen(
            [*COMMAND, "top", path, "--interval", "0.2"],
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            env={
                key: text
                for key, text in environment({"TERM": "xterm-256color"}).items()
                if key not in ("COLUMNS", "LINES", "NO_COLOR")
            },
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, text: bytes) -> None:
        """Read what it prints until that has come."""
        deadline = time.monotonic() + TIMEOUT_S
        start_at = len(self.said)
        while text not in self.said[start_at:]:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} never came: {self.said[-3000:]!r}"
            if select.select([self.leader], [], [], left)[0]:
                self.said += os.read(self.leader, 65536)

    def press(self, keys: bytes) -> None:
        os.write(self.leader, keys)

    def end(self) -> int:
        """Its exit code; all that it has printed by then is read."""
        drain = threading.Thread(target=self._drain, daemon=True)
        drain.start()
        code = self.child.wait(TIMEOUT_S)
        drain.join(TIMEOUT_S)
        return code

    def _drain(self) -> None:
        while self.child.poll() is None or select.select([self.leader], [], [], 0)[0]:
            if select.select([self.leader], [], [], 0.05)[0]:
                self.said += os.read(self.leader, 65536)

    def check_restored(self) -> None:
        """The terminal is as it was before."""
        assert termios.tcgetattr(self.follower) == self.before
        assert self.said.count(RESTORE_SCREEN) == 1
        assert self.said.rindex(b"\x1b[?25h") > self.said.rindex(b"\x1b[?25l")  # the cursor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.leader)
        os.close(self.follower)


# ---- Once, and in a pipe -------------------------------------------------------------------------


@pytest.mark.uffd
@in_child(120)
def test_once(tmp_path: Path) -> None:
    """A heading, and a line for each peer; those with most faults first"""
    with serving(tmp_path) as (service, monitors):
        lines = run("top", service.path, "--once").ok().out.splitlines()
        assert f"process {service.pid}" in lines[0]
        assert "no keeper" in lines[0]
        assert lines[1].startswith("2 peers of 2 admitted so far; 0 refused; 0 errors")
        assert str(tmp_path / "vm.lzr") in lines[2]
        assert lines[4].split()[:4] == ["PEER", "PID", "COMMAND", "UID"]
        assert {int(line.split()[1]) for line in lines[5:]} == {each.pid for each in monitors}
        assert "12.5%" in next(line for line in lines[5:] if line.split()[0] == "2")


@pytest.mark.uffd
@in_child(120)
def test_once_as_json(tmp_path: Path) -> None:
    """The service's own answer, and rates"""
    with serving(tmp_path) as (service, monitors):
        answer = json.loads(run("top", service.path, "--once", "--json").ok().out)
        assert answer["service"]["pid"] == service.pid
        # In whichever order the service took them.
        faults = {peer["pid"]: peer["faults"] for peer in answer["peers"]}
        assert faults == {monitor.pid: number for number, monitor in enumerate(monitors, 1)}
        for peer in answer["peers"]:
            # Since it connected, as there is nothing before.
            assert peer["faults_s"] == pytest.approx(peer["faults"] / peer["seconds"], rel=0.01)
            assert peer["filled_bytes_s"] > 0


@pytest.mark.uffd
@in_child(120)
def test_in_a_pipe(tmp_path: Path) -> None:
    """Again and again, plain, with rates from one look to the next; until the service ends"""
    with serving(tmp_path, 1) as (service, (monitor,)):
        child = start("top", service.path, "--json", "-n", "0.1")
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["peers"][0]["faults"] == 1
        monitor.read(0, PAGES * PAGE)
        faults = PAGES * PAGE // CLUSTER
        while True:
            (peer,) = json.loads(child.stdout.readline())["peers"]
            if peer["faults"] == faults:
                break
        assert peer["faults_s"] > 1  # in a tenth of a second, or in some more
        while json.loads(child.stdout.readline())["peers"][0]["faults_s"]:
            pass
        text = start("top", service.path, "-n", "0.1")
        assert text.stdout is not None
        seen = [text.stdout.readline() for _ in range(14)]
        assert seen[0] == seen[7] or seen[0][:20] == seen[7][:20]
        assert b"\x1b" not in b"".join(seen)
        assert service.stop() == 0
        for each in (child, text):
            result = finish(each)
            result.fails(5, service.path)
            assert "its service" in result.err or "no service" in result.err


@pytest.mark.uffd
@in_child(120)
def test_nobody_reads_or_ctrl_c(tmp_path: Path) -> None:
    """It ends, and says nothing"""
    with serving(tmp_path, 0) as (service, _):
        child = start("top", service.path, "-n", "0.1")
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(5)][-1] == b"no peers\n"
        child.send_signal(signal.SIGINT)
        finish(child).ok()
        child = start("top", service.path, "-n", "0.1")
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(TIMEOUT_S) == 128 + signal.SIGPIPE
        assert child.stderr is not None
        assert child.stderr.read() == b""
        child.stderr.close()


# ---- In a terminal -------------------------------------------------------------------------------


@pytest.mark.uffd
@in_child(120)
def test_in_a_terminal(tmp_path: Path) -> None:
    """It fills the screen, follows its size, and leaves it as it was"""
    with serving(tmp_path) as (service, _), Terminal(service.path) as terminal:
        terminal.read_until(b"q ends it")
        assert b"FAULTS/s" in terminal.said
        assert b"ZEROS" not in terminal.said
        assert termios.tcgetattr(terminal.follower) != terminal.before  # keys come at once
        terminal.resize(200, 50)
        terminal.read_until(b"ZEROS")
        terminal.press(b"x")
        terminal.read_until(b"q ends it")
        terminal.press(b"q")
        assert terminal.end() == 0
        terminal.check_restored()


@pytest.mark.uffd
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
@in_child(120)
def test_signals_in_a_terminal(tmp_path: Path, number: int, code: int) -> None:
    """It is restored then too"""
    with serving(tmp_path) as (service, _), Terminal(service.path) as terminal:
        terminal.read_until(b"q ends it")
        if number == signal.SIGINT:
            terminal.press(b"\x03")
        else:
            terminal.child.send_signal(number)
        assert terminal.end() == code
        terminal.check_restored()
        after = terminal.said.rpartition(RESTORE_SCREEN)[2]
        assert (b"terminated" in after) == (number == signal.SIGTERM)
        assert b"Traceback" not in terminal.said


@pytest.mark.uffd
@in_child(120)
def test_a_service_that_goes(tmp_path: Path) -> None:
    """That is said while it is waited for; one that comes is shown; then it is an error"""
    with contextlib.ExitStack() as stack:
        with serving(tmp_path, 0) as (service, _):
            terminal = stack.enter_context(Terminal(service.path))
            terminal.read_until(b"no peers")
        terminal.read_until(b"What stands above is old")
        with serving(tmp_path, 1) as (service, (monitor,)):
            terminal.read_until(str(monitor.pid).encode())
        terminal.read_until(b"What stands above is old")
        assert terminal.end() == 5
        terminal.check_restored()
        after = terminal.said.rpartition(RESTORE_SCREEN)[2]
        assert b"there is no socket at" in after


# ---- What it is shown as -------------------------------------------------------------------------


def sample(peers: int, **fields: object) -> Sample:
    """An answer with great numbers in it."""
    made = [
        {
            "peer": 1000 + number,
            "pid": 4194304 - number,
            "command": "firecracker-with-name",
            "uid": 65534,
            "protocol": "firecracker",
            "socket": "/run/vm/some where.sock",
            "image": "/var/lib/images/a\x1b[2Jlong name.lzr",
            "seconds": 86400.0 * 9,
            "total_bytes": 1 << 40,
            "missing_bytes": 1023 << 30,
            "faults": 10**9 + number,
            "copied_bytes": 1 << 30,
            "zeroed_bytes": 1 << 20,
            "errors": 12,
            "fill": "running",
            "service_us": {"p50": 1234.5, "p99": 99999.0, "max": 1e7},
            **fields,
        }
        for number in range(peers)
    ]
    service = {
        "pid": 4194304,
        "version": "0.1.0",
        "seconds": 1e6,
        "keeper_pid": 4194303,
        "admitted": 12345,
        "refused": {"no-fd": 3, "user": 12},
        "errors": 1,
        "resident_bytes": 50 << 20,
        "image_dir": "/var/lib/images",
        "is_admitting": True,
    }
    return Sample({"type": "status", "service": service, "peers": made})


@pytest.mark.parametrize("width", [20, 40, 79, 80, 100, 132, 200])
@pytest.mark.parametrize("peers", [0, 1, 100])
def test_it_fits(width: int, peers: int) -> None:
    """No line is wider than the screen, there are no more than it has, and none has controls"""
    lines = screen(sample(peers), width, 24)
    assert all(len(line) <= width for line in lines), lines
    assert all(line.isprintable() for line in lines)
    assert len(lines) <= 23
    if width >= 40:
        assert ("LOADED" in "\n".join(lines)) == (peers > 0)
    if peers == 100:
        assert lines[-1].startswith("and 8") or width < 30


def test_paths_are_shown_by_their_ends() -> None:
    """Where there is not room for all of them"""
    lines = screen(sample(1), 200)
    assert lines[-2].split()[-1] == "IMAGE"
    assert lines[-1].endswith("long name.lzr")
    assert "…" in lines[-1]
    assert "…" not in screen(sample(1), None)[-1]


def test_columns_do_not_come_and_go_with_their_values() -> None:
    """Small numbers and great ones have the same columns, at 80"""

    def head(**fields: object) -> list[str]:
        lines = screen(sample(3, command="x", pid=100000, uid=0, **fields), 80)
        return next(line for line in lines if "PEER" in line).split()

    small = head(missing_bytes=5, faults=0, seconds=3.0, errors=0, service_us=None, fill="none")
    great = head(missing_bytes=999 << 20, total_bytes=1 << 30, faults=900, seconds=900000.0)
    assert small == great
    assert "MISSING" in small


def test_wide_letters_keep_columns_straight() -> None:
    made = sample(2)
    raw = dict(made.raw)
    peers = raw["peers"]
    assert isinstance(peers, list)
    peers[0]["command"] = "日本語"
    lines = screen(Sample(raw), None)
    starts = {cell_len(line[: line.index("65534")]) for line in lines if "65534" in line}
    assert len(starts) == 1
    assert sum("日本語" in line for line in lines) == 1


def test_answers_of_another_shape() -> None:
    """Another version's may lack anything"""
    for raw in (
        {"type": "status"},
        {"type": "status", "service": None, "peers": None},
        {"type": "status", "service": [], "peers": [1, {}, {"peer": "x", "service_us": 5}]},
    ):
        assert screen(Sample(raw), 80)
        assert json.dumps(Sample(raw).to_json())


def test_rates() -> None:
    """From the look before; of a peer that is new, or whose counters began anew, since then"""
    before = sample(1, faults=1000)
    now = Sample(dict(sample(1, faults=1500).raw), before)
    passed = now.at - before.at
    assert now.rates[1000].faults_s == pytest.approx(500 / passed)
    anew = Sample(dict(sample(1, faults=10, seconds=5.0).raw), now)
    assert anew.rates[1000].faults_s == pytest.approx(2)


def test_ages() -> None:
    assert [age(each) for each in (0, 59, 119, 120, 7199, 7200, 86400, 400000)] == (
        ["0s", "59s", "119s", "2m", "120m", "2h", "24h", "5d"]
    )


def test_how_much_is_loaded() -> None:
    """Neither all nor nothing is said before it is so"""
    status = PeerStatus.of({"total_bytes": 1 << 40, "missing_bytes": 1})
    assert status.loaded < 1
    for missing, said in ((1, "99.9%"), (0, "100%"), (1 << 40, "0%"), ((1 << 40) - 1, "0.1%")):
        lines = screen(sample(1, missing_bytes=missing), None)
        assert said in lines[-1].split()


# ---- What can go wrong ---------------------------------------------------------------------------


def test_no_service(tmp_path: Path) -> None:
    path = tmp_path / "s"
    run("top", path).fails(5, str(path), "no socket")
    path.touch()
    run("top", path).fails(5, str(path), "is no socket")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    run("top", path, "--once").fails(5, str(path), "its service has ended")
    run("top", "/" + "x" * 200).fails(5, "xxx", "too long")
    run("top", "").fails(2, "path of a socket")
    run("top", path, "--interval", "0").fails(2, "--interval")
    run("top", path, "--interval", "often").fails(2, "--interval")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", "does not answer as"),
        (b'["status"]', "does not answer as"),
        (b'{"error": {"code": "user", "message": "not you"}}', "refuses: not you"),
    ],
)
def test_somebody_else_listens(tmp_path: Path, answer: bytes, words: str) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def reply() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        run("top", path, "--once").fails(5, str(path), words)
        thread.join()


def test_who_is_refused_at_once_hears_why(tmp_path: Path) -> None:
    """The service answers and closes without reading the question"""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def reply() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1, socket.MSG_PEEK)
                connection.sendall(b'{"error": {"code": "user", "message": "not you"}}')

        thread = threading.Thread(target=reply)
        thread.start()
        run("top", path, "--once").fails(5, str(path), "refuses: not you")
        thread.join()


@pytest.mark.uffd
def test_another_users_service(nobody: object, tmp_path: Path) -> None:
    """The socket's permissions say no; where they do not, the service does"""
    image = tmp_path / "vm.lzr"
    write_image(image, {"memory": "d"})
    path = nobody.home / "s"
    with Service(path, image):
        nobody.run("top", path, "--once").fails(5, "not allowed", "root")
        os.chmod(path, 0o666)
        nobody.run("top", path, "--once").fails(5, "refuses")


def test_the_json_of_an_error(tmp_path: Path) -> None:
    result = run("top", tmp_path / "s", "--json")
    assert json.loads(result.out)["error"]["exit_code"] == 5
