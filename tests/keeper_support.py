"""A service with its keeper, of which any process may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from restore_support import write_image
from serve_support import LIMIT_S, Service, eventually

PAGES = 1024
LAYOUT = "drzd" * (PAGES // 4)


class Image:
    """An image of PAGES pages, and what is in it, also as a file that peers can read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "vm.lzr"
        self.bytes = write_image(self.path, {"memory": LAYOUT})["memory"]
        self.expected = folder / "expected"
        self.expected.write_bytes(self.bytes)


class Kept(Service):
    """See `Service`; whatever it has become, all of its processes are gone at the end."""

    def __init__(self, path: object, *arguments: object, **options: Any) -> None:
        super().__init__(path, *arguments, keeper=True, **options)

    def wait_until_it_runs(self) -> None:
        """Until it has asked for its keeper: it is about to look at its sockets."""
        eventually("its keeper is started", lambda: len(self.processes()) > 1)

    @property
    def server(self) -> int:
        """The process that serves now, as far as is known."""
        promoted = [one for one in self.find("taken_over") if "left" in one]
        return int(promoted[-1]["pid"]) if promoted else self.pid

    @property
    def keeper(self) -> int:
        """The last keeper that was ready."""
        return int(self.find("keeper_started")[-1]["pid"])

    def wait_for_keeper(self) -> int:
        """Wait until the process that serves now has a keeper that is ready."""
        eventually("there is a keeper", lambda: self._last_is_a_keeper())
        return self.keeper

    def _last_is_a_keeper(self) -> bool:
        names = ("keeper_started", "keeper_lost", "taken_over")
        found = [event["event"] for event in list(self.events) if event["event"] in names]
        return found[-1:] == ["keeper_started"]

    def kill_server(self) -> int:
        """Kill who serves; the process that does so then."""
        count = len(self.find("taken_over"))
        os.kill(self.server, signal.SIGKILL)
        return int(self.wait("taken_over", count + 1)["pid"])

    def wait_until_all_ended(self) -> None:
        """Nobody has its standard error any more."""
        self._reader.join(LIMIT_S)
        assert not self._reader.is_alive(), self.events

    def processes(self) -> list[int]:
        """All that have its standard error: the service, what it has become, and keepers."""
        assert self.process.stderr is not None
        pipe = os.readlink(f"/proc/self/fd/{self.process.stderr.fileno()}")
        return [
            pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if has(pid, pipe)
        ]

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            assert self.other == [] or kind is not None, "".join(self.other)
        finally:
            deadline = time.monotonic() + LIMIT_S
            while self._reader.is_alive() and time.monotonic() < deadline:
                # First stopped, so that none becomes another while it is looked for.
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in self.processes():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, number)
                self._reader.join(0.05)
            self.process.wait()


def has(pid: int, link: str) -> bool:
    """Whether a process other than this one has such a descriptor as its standard error."""
    try:
        return pid != os.getpid() and os.readlink(f"/proc/{pid}/fd/2") == link
    except OSError:
        return False


def wait_until_gone(path: object) -> None:
    """Until nothing is at a path."""
    eventually(f"{path} is removed", lambda: not os.path.lexists(str(path)))
