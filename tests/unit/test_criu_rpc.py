"""What is said to `criu swrk`, and what it says."""

from __future__ import annotations

import socket

import pytest

from lazyrestore._criu import rpc
from lazyrestore._criu.protobuf import decode, encode_field
from lazyrestore.errors import CriuError


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_a_request():
    request = rpc.dump_request(
        pid=300, images_fd=4, pages_fd=5, leave_running=True, log_level=2, log_file="x.log"
    )
    fields = dict(decode(request))
    assert fields[1] == 1
    options = dict(decode(fields[2]))
    assert options == {1: 4, 2: 300, 3: 1, 9: 2, 10: b"x.log", 11: encode_field(4, 5), 12: 1}


def test_a_notification_and_its_answer(ends):
    ours, theirs = ends
    notification = encode_field(5, encode_field(1, b"post-dump"))
    theirs.sendall(encode_field(1, 6) + encode_field(2, 1) + notification)
    assert rpc.receive(ours) == ("post-dump", True)
    rpc.send_answer(ours, True)
    assert dict(decode(theirs.recv(100))) == {1: 6, 3: 1}


@pytest.mark.parametrize("success", [False, True])
def test_a_response(ends, success):
    ours, theirs = ends
    theirs.sendall(
        encode_field(1, 1) + encode_field(2, int(success)) + encode_field(9, b"why it is so")
    )
    assert rpc.receive(ours) == (None, success)


def test_the_end(ends):
    ours, theirs = ends
    theirs.close()
    assert rpc.receive(ours) is None


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        encode_field(1, 1),
        encode_field(1, 6) + encode_field(2, 1),
        encode_field(1, 6) + encode_field(2, 1) + encode_field(5, 7),
        encode_field(1, 6) + encode_field(2, 1) + encode_field(5, encode_field(1, b"\xff")),
    ],
)
def test_what_is_not_understood(ends, message):
    ours, theirs = ends
    theirs.sendall(message)
    with pytest.raises(CriuError, match="cannot be understood"):
        rpc.receive(ours)
