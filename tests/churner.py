"""A peer that reads, writes and gives up memory at random, and knows what must be there.

    with Churner(socket_path, expected_path) as churner:
        churner.wait_for(100)    # more operations
        churner.finish()         # looks at every byte

Each page that it reads is compared with a model of its own: the image's bytes, until it has written
there or given the page up. Needs nothing but Python, and is its own child's program.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

sys.path.insert(0, os.path.dirname(__file__))
from serve_peer import EVENT_REMOVE, PAGE, open_userfaultfd

_REGISTER = 0xC020AA00
_DONTNEED = 4
LIMIT_S = 60.0 * float(os.environ.get("CHECK_TIME_FACTOR", "1"))


class Churner:
    """A process with memory that is to be as a file says.

    Args:
        path: of the service's socket.
        expected: a file that has what its memory must read as.
        seed: for its choices.
        is_closing: it closes its connection after the handshake, as Firecracker up to 1.11 does.
    """

    def __init__(
        self, path: object, expected: Path, *, seed: int = 0, is_closing: bool = False
    ) -> None:
        self._board = os.memfd_create("board")
        os.ftruncate(self._board, PAGE)
        self._count = mmap.mmap(self._board, PAGE)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", __file__, str(path), str(expected)),
                *(str(seed), str(int(is_closing)), str(self._board)),
            ],
            pass_fds=[self._board],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid

    @property
    def count(self) -> int:
        """How many operations it has done."""
        return int.from_bytes(self._count[:8], "little")

    def wait_for(self, more: int) -> None:
        """Wait until it has done so many more."""
        wanted, deadline = self.count + more, time.monotonic() + LIMIT_S
        while self.count < wanted:
            assert self._process.poll() is None, self._process.stdout.read().decode()
            assert time.monotonic() < deadline, f"{self.count} of {wanted} operations were done"
            time.sleep(0.0005)

    def finish(self) -> None:
        """Have it look at all of its memory; AssertionError where anything is wrong."""
        out, _ = self._process.communicate(b"finish", timeout=LIMIT_S)
        result = json.loads(out)
        assert result["wrong"] == [], result
        assert result["pages"] > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._board)


class _Memory:
    """The memory, and what it must read as."""

    def __init__(self, expected: bytes) -> None:
        self.model = bytearray(expected)
        self.pages = len(expected) // PAGE
        self.memory = mmap.mmap(-1, len(expected), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.uffd = open_userfaultfd(EVENT_REMOVE)
        area = struct.pack("QQQQ", self.address, len(expected), 1, 0)
        fcntl.ioctl(self.uffd, _REGISTER, area)
        self.wrong: list[int] = []

    def check(self, page: int) -> None:
        part = slice(page * PAGE, (page + 1) * PAGE)
        if self.memory[part] != self.model[part]:
            self.wrong.append(page)

    def step(self, choice: random.Random) -> None:
        page, kind = choice.randrange(self.pages), choice.random()
        if kind < 0.6:
            self.check(page)
        elif kind < 0.8:
            at, data = page * PAGE + choice.randrange(PAGE - 8), choice.randbytes(8)
            self.memory[at : at + 8] = data
            self.model[at : at + 8] = data
        else:
            count = min(choice.randrange(1, 9), self.pages - page)
            self.memory.madvise(_DONTNEED, page * PAGE, count * PAGE)
            self.model[page * PAGE : (page + count) * PAGE] = bytes(count * PAGE)


def _main(path: str, expected: str, seed: str, is_closing: str, board: str) -> None:
    memory = _Memory(Path(expected).read_bytes())
    region = {
        "base_host_virt_addr": memory.address,
        "size": memory.pages * PAGE,
        "offset": 0,
        "page_size": PAGE,
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    socket.send_fds(connection, [json.dumps([region]).encode()], [memory.uffd])
    if int(is_closing):
        connection.close()
    choice, count = random.Random(int(seed)), mmap.mmap(int(board), PAGE)
    os.set_blocking(0, False)
    done = 0
    while not memory.wrong:
        memory.step(choice)
        done += 1
        count[:8] = done.to_bytes(8, "little")
        if done % 16 == 0 and sys.stdin.buffer.read(1) is not None:  # or its parent has ended
            break
        if done % 64 == 0:
            time.sleep(0.001)  # others want the processors too
    for page in range(memory.pages):
        memory.check(page)
    print(json.dumps({"wrong": memory.wrong[:10], "pages": memory.pages, "done": done}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
