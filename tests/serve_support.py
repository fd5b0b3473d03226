"""`lazyrestore serve` as a process of its own, for the tests that connect to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cli_support import start

LIMIT_S = 40.0 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))


class Service:
    """A service that runs until the end of the block; then it must end by itself when told to.

    Args:
        path: of its socket; the last of them, where `arguments` name others. None: it is given it.
        arguments: of the command.
        keeper: whether it has one.
        awaited: the event that is waited for at the start; None: nothing is.
        verb: what makes the command serve.
    """

    def __init__(
        self,
        path: object,
        *arguments: object,
        keeper: bool = False,
        awaited: str | None = "listening",
        verb: tuple[str, ...] = ("serve",),
        **options: Any,
    ):
        extra = [] if keeper else ["--no-keeper"]
        if path is not None:
            extra += ["--socket", str(path)]
        self.path = str(path)
        self.process = start(
            *verb,
            *arguments,
            *("--log-json", *extra),
            stdout=subprocess.DEVNULL,
            **options,
        )
        self.pid = self.process.pid
        self.events: list[dict[str, Any]] = []
        self.other: list[str] = []  # lines that are no events
        self._more = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            if awaited is not None:
                self.wait(awaited)
        except AssertionError:
            self.process.kill()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.other.append(line.decode(errors="replace"))
                self._more.notify_all()
        with self._more:
            self._is_over = True
            self._more.notify_all()

    def find(self, name: str, **fields: object) -> list[dict[str, Any]]:
        """Events of a name of which these fields are so."""
        return [
            event
            for event in self.events
            if event["event"] == name
            and all(event.get(key) == value for key, value in fields.items())
        ]

    def wait(self, name: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """Wait until there are so many such events; the last one."""
        deadline = time.monotonic() + LIMIT_S
        with self._more:
            while len(found := self.find(name, **fields)) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"no event {name} {fields} came: {self.events} {self.other}"
                assert not self._is_over, f"it has ended: {self.events} {self.other}"
                self._more.wait(left)
        return found[count - 1]

    def fds(self) -> list[str]:
        """What its descriptors are, sorted."""
        found = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(f"/proc/{self.pid}/fd/{fd}"))
        return sorted(found)

    def steady_fds(self) -> list[str]:
        """The same, once it does not change any more: what is open for a moment is not counted."""
        before: list[str] = []
        while (found := self.fds()) != before:
            before = found
            time.sleep(0.05)
        return found

    def connect(self) -> socket.socket:
        """A connection of this process's."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT_S)
        sock.connect(self.path)
        return sock

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self.process.poll() is None:
                assert self.stop() == 0, self.other
            assert self.other == [], "".join(self.other)
        finally:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()


def eventually(what: str, is_so: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def become(what: str, look: Callable[[], object], wanted: object) -> None:
    """Wait until something is found."""
    deadline = time.monotonic() + LIMIT_S
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, f"{what}: {found} and not {wanted}"
        time.sleep(0.005)


def threads_of(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
