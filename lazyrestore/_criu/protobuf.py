"""The few lines of protobuf's wire format that CRIU's images need.

A message is a row of fields: a varint (number << 3 | wire type), then the value. In CRIU's image
files each message stands behind its length, a little-endian u32.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_VARINT_BITS_MAX = 64
_LENGTH_BYTES = 4


class MessageError(ValueError):
    """These bytes are no such message; says what is wrong."""


def encode_varint(value: int) -> bytes:
    """An unsigned number of up to 64 bits, 7 bits a byte, the lowest first."""
    if not 0 <= value < 1 << _VARINT_BITS_MAX:
        raise ValueError(f"{value} is not an unsigned number of 64 bits")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_field(number: int, value: int | bytes) -> bytes:
    """A field: a varint, or bytes."""
    if isinstance(value, int):
        return encode_varint(number << 3 | VARINT) + encode_varint(value)
    return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + value


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends.

    Raises:
        MessageError: it is cut short, or has more than 64 bits.
    """
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
    except IndexError:
        raise MessageError("a number is cut short") from None
    if value >> _VARINT_BITS_MAX:
        raise MessageError("a number has more than 64 bits")
    return value, at


def decode(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: their numbers and values, in the order in which they stand.

    A field of fixed width is given as its bytes.

    Raises:
        MessageError: this is no message.
    """
    at = 0
    while at < len(data):
        key, at = decode_varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise MessageError("a field has the number 0")
        if wire == VARINT:
            value, at = decode_varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            length, at = decode_varint(data, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise MessageError(f"field {number} is of the unknown type {wire}")
        if length > len(data) - at:
            raise MessageError(f"field {number} is cut short")
        yield number, data[at : at + length]
        at += length


def decode_numbers(value: int | bytes) -> list[int]:
    """The value of a repeated number: one at a time, or packed as bytes."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = decode_varint(value, at)
        numbers.append(number)
    return numbers


def frame(message: bytes) -> bytes:
    """A message as it stands in an image file, behind its length."""
    return len(message).to_bytes(_LENGTH_BYTES, "little") + message


def frames(data: bytes, at: int) -> Iterator[bytes]:
    """The messages of an image file, from a place on.

    Raises:
        MessageError: the file is cut short.
    """
    while at < len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise MessageError("the file is cut short")
        yield data[start:at]
