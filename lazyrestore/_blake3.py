"""BLAKE3, by the core: what digests are made with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._native import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DIGEST_BYTES = 32


def blake3_digest(data: Buffer) -> bytes:
    """The digest of a contiguous buffer; without the GIL, and with the widest vectors there are."""
    result = bytearray(_DIGEST_BYTES)
    # Released at once, so that an error's traceback does not hold the buffer.
    with ffi.from_buffer(data) as memory:
        lib.lr_blake3(memory, len(memory), ffi.from_buffer(result))
    return bytes(result)


class Blake3:
    """The digest of what comes in small pieces; `blake3_digest` is faster for long ones."""

    def __init__(self, data: Buffer = b"") -> None:
        self._state = ffi.new("struct lr_blake3 *")
        lib.lr_blake3_begin(self._state)
        self.update(data)

    def update(self, data: Buffer) -> None:
        """Append the bytes of a contiguous buffer."""
        with ffi.from_buffer(data) as memory:
            lib.lr_blake3_update(self._state, memory, len(memory))

    def digest(self) -> bytes:
        """Of all so far: 32 bytes. More may follow."""
        result = bytearray(_DIGEST_BYTES)
        lib.lr_blake3_get(self._state, ffi.from_buffer(result))
        return bytes(result)

    def hexdigest(self) -> str:
        """The same in hexadecimal."""
        return self.digest().hex()
