"""A child that is killed at a chosen system call: for the tests of what is left then."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

import pytest

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _TRACECLONE, _EXITKILL = 1, 8, 1 << 20
_WALL = 0x40000000

_NUMBERS = {
    "x86_64": {
        "openat": 257,
        "fchmod": 91,
        "flock": 73,
        "writev": 20,
        "fsync": 74,
        "rename": 82,
        "renameat": 264,
        "renameat2": 316,
        "unlink": 87,
        "unlinkat": 263,
    },
    "aarch64": {
        "openat": 56,
        "fchmod": 52,
        "flock": 32,
        "writev": 66,
        "fsync": 82,
        "renameat": 38,
        "renameat2": 276,
        "unlinkat": 35,
    },
}
_NAMES = {number: name for name, number in _NUMBERS.get(platform.machine(), {}).items()}


class _SyscallInfo(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),  # 1 entry, 2 exit
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 8),
    )


class Run(NamedTuple):
    """What a child did until it ended or was killed.

    Attributes:
        was_killed: False: it ended by itself, as it should.
        stops: before and after a system call, in any of its threads.
        calls: those that change files, by name.
    """

    was_killed: bool
    stops: int
    calls: list[str]


def run_and_kill(
    run: Callable[[], object],
    *,
    at_stop: int | None = None,
    at_call: int | None = None,
    after: bool = False,
) -> Run:
    """Run a function in a child; kill that with SIGKILL on its way.

    Args:
        run: the function.
        at_stop: before or after any system call of any thread, the how manyth (from 0).
        at_call: at the how manyth system call that changes files (from 0), which then has had no
            effect.
        after: it has had its effect.
    """
    if not _NAMES:
        pytest.skip(f"the numbers of the system calls of {platform.machine()} are not known here")
    pid = _start(run)
    stops, calls = 0, list[str]()
    inside: dict[int, bool] = {}  # threads within a call that counts
    tid = pid
    while True:
        info = _SyscallInfo()
        size = ctypes.c_void_p(ctypes.sizeof(info))
        if _ptrace(_GET_SYSCALL_INFO, tid, size, ctypes.byref(info)) > 0 and info.op in (1, 2):
            chosen = at_stop == stops
            stops += 1
            if info.op == 1:
                inside[tid] = info.number in _NAMES
                if inside[tid]:
                    calls.append(_NAMES[info.number])
                    chosen = chosen or (not after and at_call == len(calls) - 1)
            elif inside.pop(tid, False):
                chosen = chosen or (after and at_call == len(calls) - 1)
            if chosen:
                os.kill(pid, signal.SIGKILL)
        _ptrace(_SYSCALL, tid, None, None)
        tid, status = _wait(pid)
        if tid == pid and not os.WIFSTOPPED(status):
            break
    if not os.WIFSIGNALED(status):
        assert os.waitstatus_to_exitcode(status) == 0, "the child failed"
    return Run(os.WIFSIGNALED(status), stops, calls)


def _start(run: Callable[[], object]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    options = ctypes.c_void_p(_SYSGOOD | _TRACECLONE | _EXITKILL)
    if _ptrace(_SETOPTIONS, pid, None, options) < 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.skip(f"cannot trace a child here: {os.strerror(ctypes.get_errno())}")
    return pid


def _wait(pid: int) -> tuple[int, int]:
    """The next thread of the child that stops, or the child's end."""
    while True:
        tid, status = os.waitpid(-1, _WALL)
        if os.WIFSTOPPED(status) or tid == pid:
            return tid, status
