"""Random bytes, pieces and descriptors for a service: FUZZ_SERVE_SECONDS of them (2)."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import random
import socket
import struct
import time
from pathlib import Path

import pytest
from process_support import in_child
from restore_support import PAGE, write_image
from serve_peer import EVENT_REMOVE, Monitor, new_userfaultfd, open_userfaultfd
from serve_support import Service, become

pytestmark = pytest.mark.uffd

PAGES = 64
SECONDS = float(os.environ.get("FUZZ_SERVE_SECONDS", "2"))
_NUMBERS = (
    0,
    1,
    -1,
    4096,
    2 << 20,
    1 << 32,
    (1 << 64) - 4096,
    1 << 64,
    1e3,
    "4096",
    None,
    [],
    True,
)
_STARTS = (b"[", b"{", b"LRATTACH", b'{"type":"status"}', b'{"type":"takeover"}', b"LRATTAC", b"\0")


class Fuzzer:
    """Says all kinds of things to a service, on several connections at once."""

    def __init__(self, path: str, seed: int) -> None:
        self._path = path
        self._random = random.Random(seed)
        self._memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._open: list[socket.socket] = []
        self._uffds: list[int] = []
        self.said = 0

    def step(self) -> None:
        if len(self._open) > 20 or (self._open and self._random.random() < 0.3):
            self._open.pop(self._random.randrange(len(self._open))).close()
            return
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(self._path)
        self._open.append(sock)
        self.said += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            self._say(sock, self._text())
            if self._random.random() < 0.3:
                sock.shutdown(self._random.choice([socket.SHUT_WR, socket.SHUT_RDWR]))
            elif self._random.random() < 0.1:
                sock.settimeout(0.02)
                sock.recv(100)

    def _text(self) -> bytes:
        pick = self._random.random()
        if pick < 0.15:
            return self._random.randbytes(self._random.randrange(300))
        if pick < 0.3:
            return self._random.choice(_STARTS) + self._random.randbytes(
                self._random.choice([0, 8, 60])
            )
        if pick < 0.35:
            return b"[" + b" " * self._random.choice([40_000, 300_000])
        region = {"base_host_virt_addr": self._address, "size": PAGES * PAGE, "offset": 0}
        message: list[dict[str, object]] = [{**region, "page_size": PAGE}]
        if self._random.random() < 0.5:
            key = self._random.choice([*region, "page_size", "page_size_kib", "more"])
            message[0][key] = self._random.choice(_NUMBERS)
        text = bytearray(json.dumps(message * self._random.choice([1, 1, 1, 2, 2000])).encode())
        if self._random.random() < 0.4:
            for _ in range(self._random.randrange(1, 4)):
                text[self._random.randrange(len(text))] = self._random.randrange(256)
        if self._random.random() < 0.2:
            del text[self._random.randrange(len(text)) :]
        return bytes(text)

    def _say(self, sock: socket.socket, text: bytes) -> None:
        pieces = self._random.choice([1, 1, 1, 2, 5])
        cuts = sorted(self._random.randrange(len(text) + 1) for _ in range(pieces - 1))
        for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True):
            fds = self._fds() if self._random.random() < (0.8 if low == 0 else 0.1) else []
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sock.sendmsg([text[low:high]], rights)

    def _fds(self) -> list[int]:
        while self._uffds:
            os.close(self._uffds.pop())
        kind = self._random.random()
        uffd = (
            new_userfaultfd() if kind < 0.1 else open_userfaultfd(EVENT_REMOVE if kind < 0.5 else 0)
        )
        self._uffds.append(uffd)
        if kind > 0.2:
            # One at a time can have the memory: who is served by an older one keeps it.
            with contextlib.suppress(OSError):
                fcntl.ioctl(
                    uffd, 0xC020AA00, struct.pack("QQQQ", self._address, PAGES * PAGE, 1, 0)
                )
        other = [0, 1, 2, 0]
        return self._random.choice(
            [[uffd], [uffd], [uffd], [uffd, uffd], [0, uffd], [0, 1, uffd], other, [uffd] * 200]
        )

    def close(self) -> None:
        for sock in self._open:
            sock.close()
        for fd in self._uffds:
            os.close(fd)


@in_child(60 + 3 * SECONDS)
def test_anything(tmp_path: Path) -> None:
    """It is there afterwards, has no descriptor more, and serves as before"""
    expected = write_image(tmp_path / "vm.lzr", {"memory": "dr" * (PAGES // 2)})["memory"]
    seed = int(os.environ.get("FUZZ_SERVE_SEED", "1"))
    options = ("--on-error", "log", "--prefetch", "all")
    with Service(tmp_path / "s", tmp_path / "vm.lzr", *options) as service:
        with Monitor(PAGES) as first:
            first.restore(service.path)
            assert first.read_all() == expected
        service.wait("gone", pid=first.pid)
        before = service.steady_fds()
        fuzzer = os.fork()
        if fuzzer == 0:
            told = Fuzzer(service.path, seed)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                told.step()
            told.close()
            os._exit(0 if told.said > 10 * SECONDS else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(fuzzer, 0)[1]) == 0
        with Monitor(PAGES) as last:
            last.restore(service.path)
            assert last.read_all() == expected
        service.wait("gone", pid=last.pid)
        become("no descriptor is left", service.fds, before)
        wrong = [each for each in service.find("refused") if "should not" in each["reason"]]
        assert wrong == []
        codes = {each["code"] for each in service.find("refused")}
        assert codes >= {"garbage", "ranges", "no-fd", "descriptors"}, codes
        assert service.find("serving", pid=fuzzer) != []
