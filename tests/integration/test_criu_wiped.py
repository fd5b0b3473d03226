"""Memory that children find empty (MADV_WIPEONFORK), as libraries have for their random numbers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli_support
import pytest
from criu_support import criu

import lazyrestore
from lazyrestore._criu.checkpoint import Checkpoint
from lazyrestore._criu.find import find_criu

LIMIT_S = 120
PROGRAM = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
at = libc.mmap(None, 8 * 4096, 3, 0x22, -1, 0)
ctypes.memset(at, 7, 8 * 4096)
assert libc.madvise(at + 2 * 4096, 4 * 4096, 18) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

def tell(what, *words):
    with open(what + ".new", "w") as file:
        print(*words, file=file)
    os.rename(what + ".new", what)

tell("ready", at)
while True:
    signal.sigwait([signal.SIGUSR1])
    if os.fork() == 0:
        tell("child", *(ctypes.string_at(at + page * 4096, 1)[0] for page in range(8)))
        os._exit(0)
    os.wait()
    tell("parent", *(ctypes.string_at(at + page * 4096, 1)[0] for page in range(8)))
"""


def words_of(path: Path) -> list[int]:
    until = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)
    return [int(word) for word in path.read_text().split()]


def test_children_of_a_lazily_restored_process_find_it_empty(tmp_path: Path) -> None:
    """Nothing is loaded but by touches; the parent's bytes in the child would be the worst."""
    path, image = criu(), tmp_path / "it.lzr"
    if find_criu(path).version < (4, 2):
        pytest.skip("CRIU before 4.2 itself loses MADV_WIPEONFORK of what it dumps")
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        (at,) = words_of(tmp_path / "ready")
        lazyrestore.dump(lazyrestore.ProcessTree(program.pid, criu=path), image)
        program.wait(LIMIT_S)
        with lazyrestore.open(image) as opened:
            checkpoint = Checkpoint.of(opened)
            assert checkpoint is not None
            lazy = checkpoint.lazy_ranges(program.pid)
        wiped = at + 2 * 4096, at + 6 * 4096
        assert not [one for one in lazy if one[0] < wiped[1] and one[0] + one[1] > wiped[0]]
        restored = cli_support.run(
            *("restore", "--lazy", "-d", "--prefetch", "none", "--criu-bin", path, image)
        )
        restored.ok()
        os.kill(program.pid, signal.SIGUSR1)
        assert words_of(tmp_path / "child") == [7, 7, 0, 0, 0, 0, 7, 7]
        assert words_of(tmp_path / "parent") == [7] * 8
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(program.pid, signal.SIGKILL)
