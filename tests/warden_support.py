"""CRIU's tasks, without CRIU: programs that a service restores, whose processes are killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from criu_folders import LAZY, PRESENT, FolderMaker
from keeper_support import Kept
from serve_support import LIMIT_S

import lazyrestore
from lazyrestore.sources.criu import CriuFolder

PAGES = 8192
ADDRESS = 0x7E00_0000_0000
TASK = 7
PROGRAM = Path(__file__).with_name("criu_task.py")

_CHANGES = ("keeper_started", "keeper_lost", "warden_started", "warden_lost")


class TaskImage:
    """An image of one task, and a folder for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "images"
        self.path = folder / "task.lzr"
        seeds = [f"{TASK}-{number}-" for number in range(PAGES)]
        FolderMaker(self.folder, pids=(TASK,)).memory(str(TASK), [(ADDRESS, seeds, PRESENT | LAZY)])
        lazyrestore.dump(CriuFolder(str(self.folder)), str(self.path))


class Daemon(Kept):
    """`lazyrestore lazy-pages`; see `Kept`."""

    def __init__(self, image: TaskImage, work: Path, *arguments: object, **options: Any) -> None:
        work.mkdir(exist_ok=True)
        self.socket_path = work / "lazy-pages.socket"
        super().__init__(
            None,
            *("--image", image.path, "--images-dir", image.folder, "--work-dir", work),
            *("--prefetch", "none", *arguments),
            verb=("lazy-pages",),
            **options,
        )

    def pid_of(self, role: str) -> int:
        """Which process has it now, as far as is known."""
        if role in ("pager", "keeper"):
            return self.server if role == "pager" else self.keeper
        started = self.find("warden_started")[-1]
        return int(started["pid" if role == "warden" else "second_pid"])

    @property
    def is_whole(self) -> bool:
        """Whether somebody serves, with a keeper that is ready and both wardens."""
        events = [event for event in list(self.events) if event["event"] in _CHANGES]
        mine = [event["event"] for event in events if event["service_pid"] == self.server]
        wardens = [name for name in mine if name.startswith("warden")]
        keepers = [name for name in mine if name.startswith("keeper")]
        return (wardens[-1:], keepers[-1:]) == (["warden_started"], ["keeper_started"]) and all(
            _is_alive(self.pid_of(role)) for role in ("pager", "keeper", "warden", "second")
        )


class Task:
    """criu_task.py, with more arguments."""

    def __init__(self, daemon: Daemon, *arguments: int) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", str(PROGRAM)),
                *map(str, (daemon.socket_path, TASK, ADDRESS, PAGES, *arguments)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.hear("ready")
        # What it sent may still lie in a socket, which nobody knows of but the kernel.
        daemon.wait("restored")

    def hear(self, line: str) -> None:
        """What it says next."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline().decode() == f"{line}\n"

    @property
    def is_dead(self) -> bool:
        return self.process.poll() is not None

    def finish(self) -> int | None:
        """Have it end; how many of its children were killed, or None where it was itself. Nothing
        was ever wrong.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self._said = self.process.stdout.read().decode()  # ends with its last child
        code = self.process.wait(LIMIT_S)
        assert "WRONG" not in self._said, self._said
        if code:
            assert -code in (signal.SIGKILL, signal.SIGBUS), (code, self._said)
            return None
        found = re.search(r"^done \d+ \d+ (\d+)$", self._said, re.MULTILINE)
        assert found is not None, self._said
        return int(found[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()


def _is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def kill_all(pids: list[int], pause_s: float = 0.0) -> None:
    """Kill processes one after another."""
    for number, pid in enumerate(pids):
        if number:
            time.sleep(pause_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
