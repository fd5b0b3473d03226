"""The demo's side of a server that speaks Redis's protocol: start it, fill it, ask it, end it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from lazyrestore.errors import LazyRestoreError

from . import text

VALUE_BYTES = 4000
_BASE_BYTES = 16 << 20
_PIPELINE = 256
_LIMIT_S = 120.0
_AGAIN_S = 0.0002


class Connection:
    """A client; a context manager."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_LIMIT_S)
        try:
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise
        self._stream = cast("BinaryIO", self._socket.makefile("rb", buffering=1 << 16))

    def send(self, *commands: tuple[bytes, ...]) -> None:
        """Ask without waiting for answers."""
        pieces = []
        for command in commands:
            pieces.append(b"*%d\r\n" % len(command))
            pieces += [b"$%d\r\n%s\r\n" % (len(part), part) for part in command]
        self._socket.sendall(b"".join(pieces))

    def answer(self) -> bytes | None:
        """The next answer; None: there is no such key.

        Raises:
            LazyRestoreError: it is an error, or none came.
        """
        line = self._stream.readline()
        if not line.endswith(b"\r\n") or line[:1] == b"-":
            raise LazyRestoreError(f"the demo's program answers {line!r}")
        if line[:1] != b"$":
            return line[1:-2]
        length = int(line[1:])
        return None if length < 0 else self._stream.read(length + 2)[:-2]

    def ask(self, *command: bytes) -> bytes | None:
        """One command's answer."""
        self.send(command)
        return self.answer()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()


class Server:
    """redis-server if it is installed, else one of our own; in a session of its own.

    Attributes:
        name: which.
        pid: its number, also when it has been restored.
        path: of its socket.
    """

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "server.sock")
        redis = shutil.which("redis-server")
        if redis is not None:
            self.name = "redis-server"
            command = [redis, "--port", "0", "--unixsocket", self.path, "--save", ""]
            command += ["--appendonly", "no", "--dir", folder, "--logfile", ""]
        else:
            self.name = "a key-value server in Python"
            command = [sys.executable, "-P", "-m", "lazyrestore._demo.server", self.path]
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self.pid = self._process.pid

    def connect(self, check: Callable[[], None] | None = None) -> Connection:
        """Connect as soon as it listens.

        Args:
            check: is called while it does not; may raise an exception that says why.

        Raises:
            LazyRestoreError: it has ended, or does not answer.
        """
        deadline = time.monotonic() + _LIMIT_S
        while True:
            try:
                return Connection(self.path)
            except OSError:
                if check is not None:
                    check()
                process = self._process
                if (process is not None and process.poll() is not None) or (
                    time.monotonic() > deadline
                ):
                    raise LazyRestoreError(
                        f"the demo's program ({self.name}) has ended, or does not answer: is there"
                        " memory enough? Try a smaller --size"
                    ) from None
                time.sleep(_AGAIN_S)

    def fill(self, keys: int) -> None:
        """Put so many values there."""
        with self.connect() as client:
            waiting = 0
            batch = []
            for number, value in zip(range(keys), values(), strict=False):
                batch.append((b"SET", key(number), value))
                if len(batch) == _PIPELINE or number == keys - 1:
                    client.send(*batch)
                    waiting = len(batch)
                    batch = []
                    for _ in range(waiting):
                        client.answer()

    def resident_bytes(self) -> int:
        """Memory that it has in use."""
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def has_ended(self) -> None:
        """It was dumped: wait until there is nothing of it.

        Raises:
            LazyRestoreError: there is.
        """
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LIMIT_S)
            self._process = None
        deadline = time.monotonic() + _LIMIT_S
        while os.path.exists(f"/proc/{self.pid}"):
            with contextlib.suppress(ChildProcessError):  # restored, it is an adopted child
                os.waitpid(self.pid, os.WNOHANG)
            if time.monotonic() > deadline:
                raise LazyRestoreError(f"process {self.pid} does not end")
            time.sleep(0.001)

    def end(self) -> None:
        """End it, as it was started or as it was restored."""
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(self.pid) == self.pid:
                os.kill(self.pid, signal.SIGKILL)
        self.has_ended()


def key(number: int) -> bytes:
    """The key of a value."""
    return b"line:%07d" % number


def values() -> Iterator[bytes]:
    """Log lines, of which no two are the same."""
    base = text.log_text(_BASE_BYTES)
    variant = 0
    while True:
        piece = text.varied(base, variant)
        for offset in range(0, len(piece) - VALUE_BYTES, VALUE_BYTES):
            yield piece[offset : offset + VALUE_BYTES]
        variant += 1


def sample(keys: int, count: int, seed: int = 1) -> list[int]:
    """Numbers of some keys."""
    return random.Random(seed).sample(range(keys), min(count, keys))
