"""Trees of processes to be dumped whole, and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).with_name("tree_target.py")
LIMIT_S = 60.0 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))
_STATUS = struct.Struct("<4Q")


class Tree:
    """tree_target.py, running.

    Attributes:
        pid: of its root.
        status: the file with its counters.
    """

    def __init__(self, folder: Path, mib: int = 4) -> None:
        self.status = folder / "status"
        self.process = subprocess.Popen(
            [sys.executable, str(TARGET), str(self.status), str(mib)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "errors").open("wb"),
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.pids = [self.pid]
        self.goes_on()
        self.pids = descendants(self.pid)

    def counters(self) -> tuple[int, int, int, int]:
        """Of root, child and thread; and of what was found wrong."""
        data = self.status.read_bytes() if self.status.exists() else b""
        return _STATUS.unpack(data) if len(data) == _STATUS.size else (0, 0, 0, 0)

    def goes_on(self) -> None:
        """See that all of it runs, with its memory as it was."""
        before = self.counters()
        until = time.monotonic() + LIMIT_S
        while any(
            now <= then + 2 for now, then in zip(self.counters()[:3], before[:3], strict=True)
        ):
            assert time.monotonic() < until, f"it stands still: {before}, {self.counters()}"
            time.sleep(0.01)
        assert self.counters()[3] == 0, "its memory is wrong"

    def runs_no_more(self) -> None:
        """See that nothing of it runs any more."""
        self.process.wait(LIMIT_S)
        for pid in self.pids:
            wait_gone(pid, or_zombie=True)

    def has_ended(self) -> None:
        """See that its numbers are free too, for a restore: init takes its time with orphans."""
        self.process.wait(LIMIT_S)
        for pid in self.pids:
            wait_gone(pid)

    def kill(self) -> None:
        """End what there is of it: as it was started, or restored with the same numbers."""
        for pid in self.pids:
            with contextlib.suppress(OSError):
                if is_target(pid):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LIMIT_S)


@contextlib.contextmanager
def running_tree(folder: Path, mib: int = 4) -> Iterator[Tree]:
    """A tree, which is ended afterwards."""
    tree = Tree(folder, mib)
    try:
        yield tree
    finally:
        tree.kill()


def is_target(pid: int) -> bool:
    """True if that is a process of tree_target.py."""
    return os.fsencode(TARGET) in Path(f"/proc/{pid}/cmdline").read_bytes()


def descendants(pid: int) -> list[int]:
    """A process and all that came of it."""
    found = [pid]
    for one in found:
        for thread in os.listdir(f"/proc/{one}/task"):
            found += map(int, Path(f"/proc/{one}/task/{thread}/children").read_text().split())
    return found


def wait_gone(pid: int, *, or_zombie: bool = False) -> None:
    """Wait until there is no such process any more."""
    until = time.monotonic() + LIMIT_S
    while True:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if or_zombie and stat.rpartition(")")[2].split()[0] in "ZX":
            return
        assert time.monotonic() < until, f"process {pid} is still there: {stat}"
        time.sleep(0.01)


def restore(criu: str, folder: Path, *options: str) -> int:
    """Have CRIU run what is in a folder of its images. Returns the root's number."""
    done = subprocess.run(
        [
            *(criu, "restore", "-D", folder, "-d", "-o", "restore.log", "-v2"),
            *("--pidfile", "pid", *options),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, (folder / "restore.log").read_text()
    return int((folder / "pid").read_text())
