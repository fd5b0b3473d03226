"""A service's side of its warden (csrc/warden.h): starts it, and again where it was killed.

The warden shares this process's descriptor table, and outlives it: for peers of whose memory there
is no userfaultfd but here and with the keeper, and for those that the kernel has just put here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lazyrestore._native import check, ffi, lib, new_problem
from lazyrestore.errors import LazyRestoreError

from .holdings import HeldWarden

if TYPE_CHECKING:
    from lazyrestore._native import CData

    from .keeping import Keeping

_AGAIN_S = (0.0, 0.1, 0.5, 1.0, 5.0)
_STEADY_S = 60.0

Emit = Callable[..., None]


class Warding:
    """The warden of this process. Belongs to the loop's thread, but for `bury`.

    Args:
        keeping: its keeper is told where to ask; who that is, the warden is told.
        emit: is told of wardens that started and ended.
        kills: tasks are ended where nobody is left to serve them; else a touch gives SIGBUS.
    """

    def __init__(self, keeping: Keeping, emit: Emit, *, kills: bool) -> None:
        self._keeping = keeping
        self._emit = emit
        self._kills = kills
        self._handle = ffi.NULL
        self._held: HeldWarden | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: dict[int, int] = {}  # processes, by pidfd
        self._again: asyncio.TimerHandle | None = None
        self._failures = 0
        self._started_s = 0.0

    def start(self) -> None:
        """Have one from now on; within the loop. Before anybody is served who needs it."""
        if self._handle != ffi.NULL:
            return
        found, problem = ffi.new("lr_warden **"), new_problem()
        code = lib.lr_warden_open(self._kills, found, problem)
        try:
            check(code, problem, what="cannot start a warden")
        except LazyRestoreError as error:
            self._emit("warden_lost", pid=None, reason=str(error), again_s=None)
            return
        self._handle = found[0]
        self._loop = asyncio.get_running_loop()
        info = self._info()
        self._held = HeldWarden(int(info.page), int(info.socket))
        self._keeping.watch_keeper(self._set_keeper)
        for held in self._keeping.holdings.peers.values():
            if "pidfd" in held.fds and held.record is not None:
                self.add(int(str(held.record.get("pid", 0))), held.fds["pidfd"])
        self._start()

    def announce(self) -> None:
        """Tell the keeper where to ask: descriptors by their numbers in this process's table.

        Not before all states that it has name descriptors by those.
        """
        if self._held is not None:
            self._keeping.warden(str(os.getpid()), self._held)

    def _start(self) -> None:
        assert self._loop is not None
        self._started_s = time.monotonic()
        problem = new_problem()
        code = lib.lr_warden_start(self._handle, problem)
        try:
            check(code, problem, what="cannot start a warden")
        except LazyRestoreError as error:
            self._retry(None, str(error))
            return
        info = self._info()
        pids = {info.pidfd: info.pid, info.second_pidfd: info.second_pid}
        for pidfd, pid in ((int(fd), int(pid)) for fd, pid in pids.items() if fd >= 0):
            # (A number that is another's when it has ended: this one's is closed by then.)
            self._watched[pidfd] = pid
            self._loop.add_reader(pidfd, self._on_end, pidfd)
        self._emit("warden_started", pid=int(info.pid), second_pid=int(info.second_pid))

    def _on_end(self, pidfd: int) -> None:
        pid = self._watched[pidfd]
        self._unwatch()
        if time.monotonic() - self._started_s > _STEADY_S:
            self._failures = 0
        self._retry(pid, "it has ended")

    def _retry(self, pid: int | None, reason: str) -> None:
        assert self._loop is not None
        delay_s = _AGAIN_S[min(self._failures, len(_AGAIN_S) - 1)]
        self._failures += 1
        self._emit("warden_lost", pid=pid, reason=reason, again_s=delay_s)
        if delay_s:
            self._again = self._loop.call_later(delay_s, self._start)
        else:
            self._start()

    def _unwatch(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for pidfd in self._watched:
            assert self._loop is not None
            self._loop.remove_reader(pidfd)
        self._watched.clear()

    def _info(self) -> CData:
        info = ffi.new("struct lr_warden_info *")
        lib.lr_warden_get_info(self._handle, info)
        return info

    def _set_keeper(self, pidfd: int) -> None:
        lib.lr_warden_set_keeper(self._handle, pidfd)

    def add(self, pid: int, pidfd: int) -> None:
        """Note a task. Its pidfd is lent, until `remove`."""
        if self._handle != ffi.NULL and pid > 0:
            lib.lr_warden_remove(self._handle, pidfd)
            lib.lr_warden_add(self._handle, pid, pidfd)

    def remove(self, pidfd: int) -> None:
        """Forget a task, before its pidfd is closed."""
        if self._handle != ffi.NULL:
            lib.lr_warden_remove(self._handle, pidfd)

    def bury(self, uffd: int) -> bool:
        """Give memory up whose owner is not known, and cannot be ended: a touch gives SIGBUS there,
        whatever becomes of this process. True: the userfaultfd may be closed. From any thread.
        """
        return self._handle != ffi.NULL and lib.lr_warden_bury_one(self._handle, uffd) == 0

    def leave_to(self, pidfd: int) -> None:
        """Have it wait for another that goes on, when this process ends: its pidfd, lent."""
        self._unwatch()
        if self._handle != ffi.NULL:
            self._keeping.watch_keeper(None)
            self._set_keeper(pidfd)

    def close(self) -> None:
        """End the warden: nobody needs it any more."""
        self._unwatch()
        if self._handle != ffi.NULL:
            self._keeping.watch_keeper(None)
            handle, self._handle = self._handle, ffi.NULL
            lib.lr_warden_close(handle)
