"""Memory of this process: buffers, and numpy arrays with their dtype and shape."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from lazyrestore._content import check_name, raw_view
from lazyrestore._native import ffi
from lazyrestore.format import PROTECTION_READ, PROTECTION_WRITE
from lazyrestore.reports import Skipped

from .base import Sink

if TYPE_CHECKING:
    import numpy

UNNAMED = "memory"
"""The region's name where there is one source without a name."""


class Piece:
    """One buffer or array as a region.

    Attributes:
        view: its bytes.
        address: where they are; 0 if this is a copy, because the original had gaps.
        protection: as in an image.
        metadata: as in an image.

    Raises:
        TypeError: it is neither, or an array that has no bytes of its own (objects, masks).
    """

    def __init__(self, name: str, data: object) -> None:
        self.name = name
        self.metadata: dict[str, object] = {}
        if _is_array(data):
            self.view, is_copy = _array_bytes(name, data)
            self.metadata["array"] = _describe_array(name, data)
        else:
            self.view, is_copy = _buffer_bytes(name, data)
        is_readonly = self.view.readonly and not is_copy
        self.protection = PROTECTION_READ | (0 if is_readonly else PROTECTION_WRITE)
        self.address = 0
        if len(self.view) and not is_copy:
            self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.view)))


class Memory:
    """A source: one buffer or array, or several with their names, in the mapping's order."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self.skipped: list[Skipped] = []
        self.frozen_us: int | None = None

    @classmethod
    def of(cls, data: object) -> Memory:
        """From what `dump` was given.

        Raises:
            TypeError: it is not memory.
            ValueError: a name is empty or too long.
        """
        if not isinstance(data, Mapping):
            return cls([Piece(UNNAMED, data)])
        for name in data:
            check_name(name)
        return cls([Piece(name, value) for name, value in data.items()])

    def describe(self) -> str:
        """What this is, for people."""
        names = [piece.name for piece in self._pieces]
        if names == [UNNAMED]:
            return "memory of the dumping process"
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return f"memory of the dumping process: {shown}"

    def total_bytes(self) -> int | None:
        """Length of all regions."""
        return sum(len(piece.view) for piece in self._pieces)

    def check(self, target: str) -> None:
        """Nothing can be wrong with a target."""

    def write_to(self, sink: Sink) -> None:
        """Write all regions."""
        for piece in self._pieces:
            sink.add_region(
                piece.name,
                address=piece.address,
                protection=piece.protection,
                metadata=piece.metadata,
            )
            sink.write_stable(piece.view)


def _buffer_bytes(name: str, data: object) -> tuple[memoryview, bool]:
    """The bytes of a buffer, and whether they are a copy."""
    buffer: Any = data
    try:
        return raw_view(buffer), False
    except TypeError:
        raise TypeError(
            f"region {name!r} cannot be dumped: {type(data).__name__} is neither a buffer nor a"
            " numpy array; pickle it, or dump what it is made of"
        ) from None
    except BufferError:  # it has gaps
        return memoryview(memoryview(buffer).tobytes()), True


def _is_array(data: object) -> TypeGuard[numpy.ndarray[tuple[int, ...], numpy.dtype]]:
    """Whether it is a numpy array; does not import numpy, for without it nothing is one."""
    module = sys.modules.get("numpy")
    return module is not None and isinstance(data, module.ndarray)


def _array_bytes(
    name: str, array: numpy.ndarray[tuple[int, ...], numpy.dtype]
) -> tuple[memoryview, bool]:
    """An array's bytes in the order that `_describe_array` gives, and whether they are a copy."""
    import numpy

    if isinstance(array, numpy.ma.MaskedArray):
        raise TypeError(
            f"region {name!r} is a masked array: dump its .data and its .mask as two regions"
        )
    if array.dtype.hasobject:
        raise TypeError(
            f"region {name!r} has dtype {array.dtype}: objects are only references to memory"
            " elsewhere; convert it to numbers or fixed-length strings, or pickle it"
        )
    if not array.nbytes:
        return memoryview(b""), False
    plain = array.view(numpy.ndarray)
    is_copy = not (plain.flags.c_contiguous or plain.flags.f_contiguous)
    if is_copy:
        plain = numpy.ascontiguousarray(plain)
    elif not plain.flags.c_contiguous:
        plain = plain.T
    return plain.reshape(-1).view(numpy.uint8).data, is_copy


def _describe_array(
    name: str, array: numpy.ndarray[tuple[int, ...], numpy.dtype]
) -> dict[str, object]:
    import numpy

    flags = array.flags
    try:
        description = numpy.lib.format.dtype_to_descr(array.dtype)
    except ValueError:
        raise TypeError(
            f"region {name!r} has dtype {array.dtype}: fields that overlap, or are out of order,"
            " cannot be described; dump .view('u1'), or a copy with fields one after another"
        ) from None
    return {
        "dtype": description,
        "shape": list(array.shape),
        "order": "F" if flags.f_contiguous and not flags.c_contiguous else "C",
    }
