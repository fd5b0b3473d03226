"""The record of files: small files that are kept beside the regions, as a map from their names.

It is read without msgpack, whose import would be part of every start that needs a file of it.
"""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Hash(Protocol):
        """What is fed with bytes: a `Blake3`."""

        def update(self, data: bytes, /) -> object: ...


FILE_NAME_BYTES_MAX = 255

_BIN_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4}


def check_file_name(name: str) -> bytes:
    """A file's name as it is stored, or ValueError: it shall never lead out of a folder."""
    if not isinstance(name, str):
        raise TypeError(f"a file's name is a str, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the file name {name!r} cannot be written as UTF-8") from None
    if not 0 < len(encoded) <= FILE_NAME_BYTES_MAX:
        raise ValueError(
            f"a file's name has 1 to {FILE_NAME_BYTES_MAX} bytes, not {len(encoded)}: {name[:40]!r}"
        )
    if name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in a folder")
    return encoded


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """The msgpack map, in ascending order of the names' bytes."""
    from .format import bin_head

    encoded = sorted((check_file_name(name), data) for name, data in files.items())
    parts = [_map_head(len(encoded))]
    for name, data in encoded:
        parts += (_str_head(len(name)), name, bin_head(len(data)), data)
    return b"".join(parts)


def unpack_files(packed: bytes | bytearray) -> dict[str, bytes]:
    """The files of a record.

    Raises:
        ValueError: it is not what `pack_files` makes; says how.
    """
    try:
        return _unpack(memoryview(packed))
    except IndexError:
        raise ValueError("it is cut short") from None


def _unpack(packed: memoryview) -> dict[str, bytes]:
    head = packed[0]
    if head & 0xF0 == 0x80:
        count, at = head & 15, 1
    elif head in (0xDE, 0xDF):
        at = 3 if head == 0xDE else 5
        count = int.from_bytes(packed[1:at], "big")
    else:
        raise ValueError("it is not a map")
    files = {}
    before = b""
    for _ in range(count):
        name, at = _take_name(packed, at)
        width = _BIN_WIDTHS.get(packed[at])
        if width is None:
            raise ValueError("a file is not a bin")
        start = at + 1 + width
        at = start + int.from_bytes(packed[at + 1 : start], "big")
        if at > len(packed):
            raise IndexError
        if name <= before:
            raise ValueError("its names are not in order")
        before = name
        files[name.decode()] = bytes(packed[start:at])
    if at != len(packed):
        raise ValueError("something stands behind the map")
    return files


def _take_name(packed: memoryview, at: int) -> tuple[bytes, int]:
    head = packed[at]
    if head & 0xE0 == 0xA0:
        start, nbytes = at + 1, head & 31
    elif head == 0xD9:
        start, nbytes = at + 2, packed[at + 1]
    else:
        raise ValueError("a file's name is not a str of at most 255 bytes")
    name = bytes(packed[start : start + nbytes])
    if len(name) < nbytes:
        raise IndexError
    check_file_name(name.decode())  # a UnicodeDecodeError is a ValueError
    return name, start + nbytes


def _map_head(count: int) -> bytes:
    if count < 16:
        return bytes((0x80 | count,))
    if count < 1 << 16:
        return b"\xde" + count.to_bytes(2, "big")
    return b"\xdf" + count.to_bytes(4, "big")


def _str_head(nbytes: int) -> bytes:
    return bytes((0xA0 | nbytes,)) if nbytes < 32 else bytes((0xD9, nbytes))


def add_files_to_digest(digest: Hash, files: Mapping[str, bytes]) -> None:
    """What the content digest has of files, behind the regions: docs/format.md."""
    from ._blake3 import blake3_digest
    from .format import DIGEST_FILES

    digest.update(bytes([DIGEST_FILES]) + len(files).to_bytes(4, "little"))
    for name, data in sorted((name.encode(), data) for name, data in files.items()):
        digest.update(len(name).to_bytes(4, "little") + name)
        digest.update(len(data).to_bytes(8, "little") + blake3_digest(data))
