"""The example of web workers, under gunicorn: what was loaded before the fork is there once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from restore_support import PACKAGE_HOME

import lazyrestore

pytestmark = [
    pytest.mark.uffd,
    pytest.mark.skipif(
        not os.access("/proc/self/smaps", os.R_OK), reason="this kernel has no /proc/PID/smaps"
    ),
]

ROWS = 1_000_000
ROW_BYTES = 16 * 8
HOT_BYTES = ROWS // 8 * ROW_BYTES  # what the example loads before it forks
WORKERS = 3
LIMIT_S = 60 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))


class Server:
    """gunicorn with the example, listening at a Unix socket."""

    def __init__(self, folder, *options):
        self.socket = folder / "s"
        self.image = folder / "table.lzr"
        self.log = folder / "log"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(PACKAGE_HOME / "examples"), str(PACKAGE_HOME))),
            "IMAGE": str(self.image),
            "ROWS": str(ROWS),
            "HOME": str(folder),  # where later releases keep a socket of their own
        }
        command = [sys.executable, "-m", "gunicorn", f"--bind=unix:{self.socket}", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--workers={WORKERS}", "workers:app"],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ask(self, path):
        """The answer to a request; waits until somebody listens."""
        until = time.monotonic() + LIMIT_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            connection = http.client.HTTPConnection("localhost", timeout=LIMIT_S)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(LIMIT_S)
            try:
                connection.sock.connect(str(self.socket))
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except (FileNotFoundError, ConnectionError):  # nobody listens yet; or it was killed
                assert time.monotonic() < until, self.log.read_text()
                time.sleep(0.02)
            finally:
                connection.close()

    def ask_all(self, path):
        """An answer of each worker, by its process id."""
        answers = {}
        until = time.monotonic() + LIMIT_S

        def work():
            while len(answers) < WORKERS and time.monotonic() < until:
                status, answer = self.ask(path)
                assert status == 200, answer
                answers[answer["worker"]] = answer

        threads = [threading.Thread(target=work) for _ in range(2 * WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == WORKERS, answers
        return answers

    def resident(self, pid, key):
        """Of the mappings that are as long as the table, or longer, in bytes."""
        with open(f"/proc/{pid}/smaps") as lines:
            total, is_inside = 0, False
            for line in lines:
                name, *values = line.split()
                if not name.endswith(":"):
                    start, end = (int(part, 16) for part in name.split("-"))
                    is_inside = end - start >= ROWS * ROW_BYTES
                elif is_inside and name == f"{key}:":
                    total += int(values[0]) << 10
        return total

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise


@pytest.fixture
def serve(tmp_path):
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    with contextlib.ExitStack() as stack:

        def start(*options):
            server = Server(tmp_path, *options)
            stack.callback(server.end)
            return server

        yield start


def row(number):
    return [number * column for column in range(1, 17)]


def test_workers_share_what_was_loaded_before_the_fork(serve):
    server = serve("--preload")
    assert server.ask("/row/5")[1]["row"] == row(5)
    assert lazyrestore.open(server.image).regions[0].length == ROWS * ROW_BYTES
    memory = server.ask_all("/memory")
    pids = [server.process.pid, *memory]
    for pid, told in memory.items():
        assert told["bytes"] == ROWS * ROW_BYTES
        # The hot rows and no others are there,
        assert HOT_BYTES <= told["resident_bytes"] < HOT_BYTES + (2 << 20)
        # and each has its share of one copy.
        assert told["share_bytes"] < told["resident_bytes"] / 2
        assert server.resident(pid, "Private_Dirty") < 2 << 20
    together = sum(server.resident(pid, "Pss") for pid in pids)
    assert HOT_BYTES <= together < HOT_BYTES + (2 << 20) * len(pids)
    # The rest is there for each, right, and lazily still.
    for number in (0, ROWS // 8 - 1, ROWS // 2, ROWS - 1):
        for answer in server.ask_all(f"/row/{number}").values():
            assert answer["row"] == row(number)
    for told in server.ask_all("/memory").values():
        assert HOT_BYTES <= told["resident_bytes"] < HOT_BYTES + (2 << 20)
    status, answer = server.ask(f"/row/{ROWS}")
    assert status == 404
    assert "/memory" in answer["error"]


def test_a_worker_that_is_killed_is_replaced_and_has_it_too(serve):
    """Forked later, from a master that has loaded no more meanwhile"""
    server = serve("--preload")
    before = server.ask_all(f"/row/{ROWS - 1}")
    os.kill(next(iter(before)), signal.SIGKILL)
    until = time.monotonic() + LIMIT_S
    while not (after := server.ask_all(f"/row/{ROWS - 2}")).keys() - before.keys():
        assert time.monotonic() < until
    for answer in after.values():
        assert answer["row"] == row(ROWS - 2)


def test_without_preload_each_worker_has_its_own(serve):
    """What the figures above would be if nothing were shared"""
    server = serve()
    memory = server.ask_all("/memory")
    for pid, told in memory.items():
        assert told["share_bytes"] >= HOT_BYTES
        assert server.resident(pid, "Private_Dirty") >= HOT_BYTES
    assert server.ask_all("/row/77").popitem()[1]["row"] == row(77)
