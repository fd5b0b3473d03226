"""The page server takes what CRIU sends, in both layouts, and refuses everything else."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from lazyrestore._criu.pageserver import CutShort, PageServer
from lazyrestore.errors import CriuError

PAGE = 4096
SHORT, LONG = struct.Struct("<IIQQ"), struct.Struct("<I4xQQQ")
OPEN, PAGES, FLUSH, CLOSE = 4, 6, 0x1023, 0x1024
PRESENT, LAZY = 4, 2
TASK = 77 << 8 | 1
SHARED = 5 << 8 | 2


class Pages:
    """What came: (what, address, flags, bytes)."""

    def __init__(self, piece: int = 1 << 20) -> None:
        self.came: list[tuple[object, ...]] = []
        self.piece = piece

    def open_task(self, pid: int) -> None:
        self.came.append(("task", pid))

    def open_shared(self, number: int) -> None:
        self.came.append(("shared", number))

    def add_pages(self, address, nbytes, flags, fetch) -> None:
        data = bytearray(nbytes)
        for at in range(0, nbytes, self.piece):
            piece = memoryview(data)[at : at + self.piece]
            assert fetch(piece) == len(piece)
        self.came.append((address, flags, bytes(data)))


class Sender:
    """CRIU's end."""

    def __init__(self, end: socket.socket, header: struct.Struct) -> None:
        self.end, self.header = end, header

    def send(self, command: int, pages: int = 0, address: int = 0, target: int = 0, flags: int = 0):
        self.end.sendall(self.header.pack(command | flags << 16, pages, address, target))

    def pages(self, address: int, data: bytes, target: int = TASK, flags: int = PRESENT | LAZY):
        self.send(PAGES, len(data) // PAGE, address, target, flags)
        self.end.sendall(data)


@pytest.fixture(params=[SHORT, LONG], ids=["24 bytes", "32 bytes"])
def ends(request) -> Iterator[tuple[Sender, socket.socket]]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):  # by the kernel: Python's own would not let it look without waiting
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("qq", 20, 0))
    with ours, theirs:
        yield Sender(theirs, request.param), ours


@pytest.fixture
def sender(ends) -> Sender:
    return ends[0]


def receive(ends, pages: Pages | None = None) -> PageServer:
    """All that was sent."""
    server = PageServer(ends[1], pages or Pages())
    server.receive()
    return server


def test_what_a_dump_sends(ends, sender):
    pages = Pages()
    server = PageServer(ends[1], pages)
    sender.send(OPEN, target=TASK)
    assert server.receive()
    assert sender.end.recv(9) == b"\0"
    first, second = bytes([1]) * PAGE, bytes([2]) * 300 * PAGE
    thread = threading.Thread(
        target=lambda: (sender.pages(PAGE, first), sender.pages(9 * PAGE, second, flags=PRESENT))
    )
    thread.start()
    while len(pages.came) < 3:
        assert server.receive()
    thread.join()
    sender.send(OPEN, target=SHARED)
    sender.pages(0, first, SHARED)
    sender.send(CLOSE)
    assert server.receive()
    assert server.is_complete
    assert server.is_wide == (sender.header is LONG)
    assert sender.end.recv(9) == b"\0" * 5
    assert pages.came == [
        ("task", 77),
        (PAGE, PRESENT | LAZY, first),
        (9 * PAGE, PRESENT, second),
        ("shared", 5),
        (0, PRESENT | LAZY, first),
    ]
    sender.end.close()
    assert not server.receive()


def test_pages_that_are_taken_in_small_pieces(ends, sender):
    pages = Pages(piece=1000)
    data = bytes(range(256)) * 16
    sender.send(OPEN, target=TASK)
    sender.pages(0, data)
    sender.pages(PAGE, data)
    receive(ends, pages)
    assert [one[2] for one in pages.came[1:]] == [data, data]


def test_nothing_but_the_end(ends, sender):
    sender.send(CLOSE)
    server = receive(ends)
    assert server.is_complete
    assert sender.end.recv(9) == b"\0" * 4


def test_nothing_at_all(ends, sender):
    server = PageServer(ends[1], Pages())
    assert server.receive()
    sender.end.close()
    assert not server.receive()
    assert not server.is_complete


@pytest.mark.parametrize("nbytes", [0, 1, PAGE, 2 * PAGE - 1])
def test_criu_ends_in_the_middle_of_pages(ends, sender, nbytes):
    sender.send(OPEN, target=TASK)
    sender.send(PAGES, 2, PAGE, TASK, PRESENT)
    sender.end.sendall(bytes(nbytes))
    sender.end.close()
    with pytest.raises(CutShort):
        receive(ends)


def test_criu_ends_in_the_middle_of_a_message(ends, sender):
    sender.send(OPEN, target=TASK)
    sender.end.sendall(bytes(7))
    sender.end.shutdown(socket.SHUT_WR)
    server = PageServer(ends[1], Pages())
    assert not server.receive()
    assert not server.is_complete


def refused(ends, match: str) -> None:
    with pytest.raises(CriuError, match=match):
        receive(ends)


@pytest.mark.parametrize("command", [0, 1, 2, 3, 5, 7, 0x1022, 0xFFFF])
def test_an_unknown_message(ends, sender, command):
    sender.send(OPEN, target=TASK)
    sender.send(command, 1, PAGE, TASK, PRESENT)
    refused(ends, "not known")


@pytest.mark.parametrize("flags", [0, 1, LAZY, PRESENT | 1, PRESENT | 8, 0xFFFF])
def test_pages_that_are_not_here(ends, sender, flags):
    sender.send(OPEN, target=TASK)
    sender.send(PAGES, 1, PAGE, TASK, flags)
    refused(ends, "flags")


@pytest.mark.parametrize(
    ("pages", "address"),
    [
        (0, PAGE),
        (1, 1),
        (2, (1 << 64) - PAGE),
        ((1 << 32) - 1, (1 << 64) - PAGE),
    ],
)
def test_pages_that_cannot_be(ends, sender, pages, address):
    sender.send(OPEN, target=TASK)
    sender.send(PAGES, pages, address, TASK, PRESENT)
    refused(ends, "cannot be")


def test_more_pages_than_there_can_be():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = Sender(theirs, LONG)
        sender.send(OPEN, target=TASK)
        sender.send(PAGES, (1 << 64) - 1, 0, TASK, PRESENT)
        refused((sender, ours), "cannot be")


def test_pages_a_second_time(ends, sender):
    sender.send(OPEN, target=TASK)
    sender.pages(PAGE, bytes(2 * PAGE))
    sender.pages(2 * PAGE, bytes(PAGE))
    refused(ends, "cannot be")


def test_pages_of_another_object(ends, sender):
    sender.send(OPEN, target=TASK)
    sender.send(PAGES, 1, PAGE, SHARED, PRESENT)
    refused(ends, "under way")


def test_pages_of_nothing(ends, sender):
    sender.send(PAGES, 1, PAGE, TASK, PRESENT)
    refused(ends, "CRIU has sent")


def test_an_object_a_second_time(ends, sender):
    for target in (TASK, SHARED, TASK):
        sender.send(OPEN, target=target)
    refused(ends, "second time")


@pytest.mark.parametrize("target", [TASK + 2, 1 << 8, 1 << 8 | 11, 1 << 31 << 8 | 1, 0 << 8 | 1])
def test_an_object_that_cannot_be(ends, sender, target):
    sender.send(OPEN, target=SHARED)
    sender.send(OPEN, target=target)
    refused(ends, "unknown kind")


def test_an_object_that_begins_otherwise(ends, sender):
    sender.send(OPEN, target=SHARED)
    sender.send(OPEN, pages=1, target=TASK)
    refused(ends, "unknown way")


def test_something_after_the_end(ends, sender):
    sender.send(OPEN, target=TASK)
    sender.send(CLOSE)
    sender.send(OPEN, target=SHARED)
    refused(ends, "after its last page")


def test_a_flush_is_not_the_end(ends, sender):
    sender.send(OPEN, target=TASK)
    sender.send(FLUSH)
    sender.pages(PAGE, bytes(PAGE))
    pages = Pages()
    server = receive(ends, pages)
    assert not server.is_complete
    assert len(pages.came) == 2


def test_any_bytes_end_in_a_refusal_or_in_nothing():
    """Whatever comes, it is neither taken for something else, nor waited for."""
    for seed in range(400):
        chosen = random.Random(seed)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            sender = Sender(theirs, chosen.choice([SHORT, LONG]))
            sender.send(OPEN, target=TASK)
            for _ in range(chosen.randrange(1, 12)):
                sender.send(
                    chosen.choice(
                        [OPEN, PAGES, PAGES, PAGES, FLUSH, CLOSE, chosen.getrandbits(16)]
                    ),
                    chosen.choice([0, 1, 2, chosen.getrandbits(32)]),
                    chosen.choice([0, PAGE, chosen.getrandbits(52) * PAGE, chosen.getrandbits(64)]),
                    chosen.choice([TASK, TASK, SHARED, chosen.getrandbits(64)]),
                    chosen.choice([PRESENT, PRESENT | LAZY, chosen.getrandbits(16)]),
                )
                theirs.sendall(chosen.randbytes(chosen.choice([0, PAGE, PAGE, 2 * PAGE, 7])))
            theirs.shutdown(socket.SHUT_WR)
            pages = Taken()
            server = PageServer(ours, pages)
            with contextlib.suppress(CriuError):
                while server.receive():
                    pass
            ends = [address + nbytes for address, nbytes in pages.taken]
            assert all(end <= 1 << 64 for end in ends)


class Taken(Pages):
    """Takes pages as they come, and keeps only where they belong."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[int, int]] = []

    def add_pages(self, address, nbytes, flags, fetch) -> None:
        assert flags & PRESENT
        at = 0
        while at < nbytes:
            at += fetch(memoryview(bytearray(min(1 << 20, nbytes - at))))
        self.taken.append((address, nbytes))
