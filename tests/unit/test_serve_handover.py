"""Messages with descriptors: whole or not at all, whatever becomes of the sender."""

from __future__ import annotations

import array
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from process_support import in_child

from lazyrestore._serve import handover
from lazyrestore._serve.handover import (
    Assembler,
    Channel,
    HandoverError,
    HandoverTimeout,
    Message,
    frames,
)

SEND_S = 30.0


@contextmanager
def channels() -> Iterator[tuple[Channel, Channel]]:
    mine, other = socket.socketpair()
    sender, receiver = Channel(mine), Channel(other)
    try:
        yield sender, receiver
    finally:
        sender.close()
        receiver.close()


@contextmanager
def files(count: int) -> Iterator[list[int]]:
    """Memory files, each with its number in it."""
    fds = []
    try:
        for number in range(count):
            fd = os.memfd_create("test")
            os.write(fd, number.to_bytes(4, "little"))
            fds.append(fd)
        yield fds
    finally:
        handover.close_all(fds)


def number_in(fd: int) -> int:
    return int.from_bytes(os.pread(fd, 4, 0), "little")


def send_many(sender: Channel, message: Message, count: int) -> None:
    for _ in range(count):
        sender.send(message, 0.05)


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_sent_is_received():
    with channels() as (sender, receiver), files(3) as fds:
        sender.send(Message("first", {"a": [1, "ü"], "b": None}, fds), SEND_S)
        sender.send(Message("second"), SEND_S)
        first, second = receiver.receive(SEND_S), receiver.receive(SEND_S)
        assert (first.kind, first.fields) == ("first", {"a": [1, "ü"], "b": None})
        assert [number_in(fd) for fd in first.fds] == [0, 1, 2]
        assert not any(os.get_inheritable(fd) for fd in first.fds)
        assert (second.kind, second.fields, second.fds) == ("second", {}, [])
        first.close()


@in_child(60)
def test_many_descriptors_go_in_pieces_and_in_their_order():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4000:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4000), hard))
    before = open_count()
    text = "x" * 300_000
    with channels() as (sender, receiver), files(1100) as fds:
        sender.queue(Message("many", {"text": text}, fds))
        received = None
        while received is None:
            sender.flush()
            receiver.read()
            received = receiver.next()
        assert received.fields["text"] == text
        assert [number_in(fd) for fd in received.fds] == list(range(1100))
        received.close()
    assert open_count() == before


@in_child(60)
def test_a_sender_without_room_waits_and_gives_up_in_time():
    with channels() as (sender, receiver), files(2) as fds:
        piece = Message("piece", {"text": "x" * 20_000}, fds)
        with pytest.raises(HandoverTimeout, match="has not read"):
            send_many(sender, piece, 10_000)
        assert sender.has_unsent
        # All that was queued comes whole, once somebody reads.
        count = 0
        while sender.has_unsent or receiver.read():
            sender.flush()
            receiver.read()
            while (message := receiver.next()) is not None:
                assert [number_in(fd) for fd in message.fds] == [0, 1]
                message.close()
                count += 1
        assert count > 1


@in_child(60)
def test_what_waits_is_sent_though_its_descriptors_were_closed():
    with channels() as (sender, receiver):
        while not sender.has_unsent:
            sender.queue(Message("full", {"text": "x" * 20_000}))
        with files(3) as fds:
            sender.queue(Message("late", {}, fds))
        received = None
        while received is None or received.kind == "full":
            sender.flush()
            receiver.read()
            received = receiver.next()
        assert [number_in(fd) for fd in received.fds] == [0, 1, 2]
        received.close()


@in_child(60)
def test_more_descriptors_than_may_be_under_way_wait_too():
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)  # for root there is no such limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    with channels() as (sender, receiver), files(10) as fds:
        sent = received = 0
        while received < 40:
            if sent < 40:
                sender.queue(Message("some", {"number": sent}, fds if sent < 12 else []))
                sent += 1
            if sent > 11:  # by then more than 100 are under way
                sender.flush()
                receiver.read()
            while (message := receiver.next()) is not None:
                assert message.fields["number"] == received
                message.close()
                received += 1


@in_child(60)
def test_a_message_cut_short_by_a_kill_is_dropped_with_its_descriptors():
    """At every length: a child sends so many bytes of two frames, and kills itself."""
    whole = frames(Message("cut", {"text": "x" * 40_000}, [0, 0, 0]))
    assert len(whole) == 2
    data = whole[0][0] + whole[1][0]
    lengths = [1, 15, 16, 17, 5000, len(whole[0][0]), len(whole[0][0]) + 3, len(data) - 1]
    before = open_count()
    for length in lengths:
        mine, other = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            with files(3) as fds:
                other.sendmsg(
                    [data[:length]],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))],
                )
                os.kill(os.getpid(), signal.SIGKILL)
        other.close()
        receiver = Channel(mine)
        assert receiver.receive(SEND_S) is None, length
        assert receiver.is_at_end
        os.waitpid(pid, 0)
        assert open_count() > before + 1  # what came of them is there
        receiver.close()
        assert open_count() == before, length


@in_child(60)
def test_what_was_sent_before_a_kill_is_there():
    mine, other = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        sender = Channel(other)
        with files(5) as fds:
            for number in range(20):
                sender.send(Message("kept", {"number": number}, fds), SEND_S)
            os.kill(os.getpid(), signal.SIGKILL)
    other.close()
    os.waitpid(pid, 0)
    receiver = Channel(mine)
    for number in range(20):
        message = receiver.receive(SEND_S)
        assert message is not None
        assert message.fields == {"number": number}
        assert [number_in(fd) for fd in message.fds] == [0, 1, 2, 3, 4]
        message.close()
    assert receiver.receive(SEND_S) is None


@in_child(60)
def test_descriptors_that_find_no_place_are_an_error_and_none_is_left():
    mine, other = socket.socketpair()
    with files(20) as fds:
        sender = Channel(mine)
        sender.send(Message("many", {}, fds), SEND_S)
    before = open_count()
    receiver = Channel(other)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 3, before + 3))
    with pytest.raises(HandoverError, match="ulimit -n"):
        receiver.receive(SEND_S)
    receiver.close()
    sender.close()
    assert open_count() == before - 2


GOOD = b'{"kind":"k","fields":{}}'


def frame(body: bytes = GOOD, **other: int) -> bytes:
    """A frame with some of its head other than it should be."""
    head = {"version": 1, "flags": 1, "bytes": len(body), "fds": 0, **other}
    return struct.pack("<4sHHII", b"LRHO", *head.values()) + body


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a frame"),
        (frame(version=2), "not a frame"),
        (frame(flags=3), "not a frame"),
        (frame(bytes=1 << 31), "not a frame"),
        (frame(fds=251), "not a frame"),
        (frame(fds=1), "did not come"),
        (frame(b"[1]"), "not what it should be"),
        (frame(b'{"kind":1,"fields":{}}'), "not what it should be"),
        (frame(b'{"kind":"k"}'), "not what it should be"),
        (frame(b"\xff"), "not what it should be"),
        (frame(b"[" * 20_000), "not what it should be"),
    ],
)
def test_what_is_no_message_is_an_error(data, words):
    assembler = Assembler()
    assembler.feed(data, [])
    with pytest.raises(HandoverError, match=words):
        assembler.next()


def test_an_endless_message_is_an_error_at_its_limit():
    assembler = Assembler()
    piece = frame(b"x" * handover.BODY_A_FRAME, flags=0)
    count = handover.MESSAGE_BYTES_MAX // handover.BODY_A_FRAME
    for _ in range(count):
        assembler.feed(piece, [])
        assert assembler.next() is None
    assembler.feed(piece, [])
    with pytest.raises(HandoverError, match="more than"):
        assembler.next()


def test_a_message_beyond_the_limits_is_not_sent():
    with pytest.raises(HandoverError, match="cannot be handed over"):
        frames(Message("big", {"text": "x" * handover.MESSAGE_BYTES_MAX}))
    with pytest.raises(HandoverError, match="cannot be handed over"):
        frames(Message("many", {}, [0] * (handover.MESSAGE_FDS_MAX + 1)))


@pytest.mark.parametrize("step", [1, 7, 16, 4096])
def test_a_message_in_pieces_of_any_length(step):
    sent = [Message("a", {"text": "y" * 70_000}), Message("b"), Message("c", {"n": 1})]
    data = b"".join(piece for message in sent for piece, _ in frames(message))
    assembler, received = Assembler(), []
    for at in range(0, len(data), step):
        assembler.feed(data[at : at + step], [])
        while (message := assembler.next()) is not None:
            received.append(message)
    assert received == sent
    assert assembler.is_between
