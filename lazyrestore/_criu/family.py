"""Everything that a restore has started: so that, if it is given up, nothing is left of it.

CRIU's tasks are its children until it ends, and those of a CRIU that was killed would be init's:
whoever restores is their reaper, and can end what it finds below itself until there is nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable

_PR_SET_CHILD_SUBREAPER = 36
_AGAIN_S = 0.005
_END_S = 10.0


class Family:
    """The children of this process, but for those that it has already, and what became of them.

    Only where nobody else waits for children here.
    """

    def __init__(self, mine: int | None = None) -> None:
        """Args:
        mine: a child that it has, and is one of these all the same.
        """
        self._statuses: dict[int, int] = {}
        # Those of a program that has become this one by exec.
        self._spared = frozenset(children_of(os.getpid())) - {mine}

    def adopt_orphans(self) -> None:
        """Be the parent of those below this process whose parent ends."""
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def look(self) -> None:
        """Take note of who has ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._statuses[pid] = os.waitstatus_to_exitcode(status)

    def code(self, pid: int) -> int | None:
        """What a child ended with, -N where signal N ended it; None: as far as is known it has not.

        `look` finds it out.
        """
        return self._statuses.get(pid)

    def end(self, but: Collection[int] = ()) -> None:
        """End all below this process, but for some children and theirs."""
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            self.look()
            left = [
                pid
                for pid in children_of(os.getpid())
                if pid not in but and pid not in self._spared
            ]
            if not left:
                return
            for pid in descendants_of(left):
                _kill(pid)
            time.sleep(_AGAIN_S)

    def end_child(self, pid: int, patience_s: float) -> None:
        """Wait until a child ends by itself, and end it if it does not."""
        deadline = time.monotonic() + patience_s
        while True:
            self.look()
            if pid in self._statuses or pid not in children_of(os.getpid()):
                return
            if time.monotonic() > deadline:
                _kill(pid)
            time.sleep(_AGAIN_S)


def end_strangers(mark: str, but: Iterable[int] = ()) -> None:
    """End every process that has a text in its command line, with all below it.

    For who is not their parent: CRIU has the restore's own folder in its command line, and so have
    its tasks until they are what they are restored to.
    """
    spared = {os.getpid(), *but}
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        found = [pid for pid in _processes() if pid not in spared and mark in _command_line(pid)]
        if not found:
            return
        for pid in descendants_of(found):
            if pid not in spared:
                _kill(pid)
        time.sleep(_AGAIN_S)


def children_of(pid: int) -> list[int]:
    """The children of a process, zombies too; empty if it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file,
            ):
                found += map(int, file.read().split())
    return found


def descendants_of(pids: Iterable[int]) -> list[int]:
    """The processes and all below them, parents first: a parent that has ended makes no more."""
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        pid = waiting.pop(0)
        if pid not in found:
            found.append(pid)
            waiting += children_of(pid)
    return found


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read().replace(b"\0", b" "))
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
