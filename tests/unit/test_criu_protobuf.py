"""Protobuf's wire format, against a second one and known bytes."""

from __future__ import annotations

import pytest
from criu_folders import message, varint
from hypothesis import given
from hypothesis import strategies as st

from lazyrestore._criu import protobuf
from lazyrestore._criu.protobuf import MessageError

NUMBERS = st.integers(0, (1 << 64) - 1)
FIELDS = st.lists(st.tuples(st.integers(1, 1 << 20), NUMBERS | st.binary(max_size=300)))


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (1 << 63, None)]
)
def test_varints_are_those_of_protobuf(value, encoded):
    made = protobuf.encode_varint(value)
    assert made == (bytes.fromhex(encoded) if encoded else varint(value))
    assert protobuf.decode_varint(b"x" + made + b"y", 1) == (value, 1 + len(made))


@given(FIELDS)
def test_messages_are_read_as_they_were_written(fields):
    made = b"".join(protobuf.encode_field(number, value) for number, value in fields)
    assert protobuf.frame(made) == message(*fields)
    assert list(protobuf.decode(made)) == fields


@given(st.lists(st.binary(max_size=40)), st.integers(0, 8))
def test_frames_follow_one_another(messages, at):
    data = bytes(at) + b"".join(map(protobuf.frame, messages))
    assert list(protobuf.frames(data, at)) == messages
    if messages:
        with pytest.raises(MessageError, match="cut short"):
            list(protobuf.frames(data[:-1], at))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(data):
    try:
        fields = list(protobuf.decode(data))
    except MessageError:
        return
    for number, value in fields:
        assert number > 0
        assert isinstance(value, bytes) or 0 <= value < 1 << 64


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("08", "cut short"),
        ("0880", "cut short"),
        ("0a05616263", "field 1 is cut short"),
        ("08" + "ff" * 9 + "7f", "64 bits"),
        ("0001", "number 0"),
        ("0b", "unknown type 3"),
        ("0f", "unknown type 7"),
        ("09010203", "field 1 is cut short"),
    ],
)
def test_what_is_no_message(data, why):
    with pytest.raises(MessageError, match=why):
        list(protobuf.decode(bytes.fromhex(data)))


def test_fields_of_fixed_width_are_passed_over():
    data = bytes.fromhex("09" + "0102030405060708" + "15" + "01020304" + "1805")
    assert list(protobuf.decode(data)) == [
        (1, bytes(range(1, 9))),
        (2, bytes(range(1, 5))),
        (3, 5),
    ]


def test_repeated_numbers_stand_alone_or_packed():
    assert protobuf.decode_numbers(5) == [5]
    assert protobuf.decode_numbers(bytes.fromhex("05ac0200")) == [5, 300, 0]
    with pytest.raises(MessageError):
        protobuf.decode_numbers(b"\x80")
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64 bits"):
            protobuf.encode_varint(value)
