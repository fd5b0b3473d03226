"""Memory of this process: buffers, and numpy arrays with their dtype and shape.

That may be a lazily restored region, or a view of one. What is missing is loaded before it is read,
piece by piece: a cluster that cannot be loaded is then an exception, where a touch is a signal.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import starmap
from typing import TYPE_CHECKING, Any, TypeGuard

from lazyrestore._content import check_name, raw_view
from lazyrestore._native import ffi
from lazyrestore.format import PLANES_WIDTHS, PROTECTION_READ, PROTECTION_WRITE
from lazyrestore.reports import Skipped

from .base import Sink

if TYPE_CHECKING:
    import numpy

    from lazyrestore.region import PlacedRegion, Region

UNNAMED = "memory"
"""The region's name where there is one source without a name."""

_LOAD_BYTES = 64 << 20
_RESTORED = {"lazyrestore.session": "Session", "lazyrestore._attach": "Attachment"}
_VIEWS_MAX = 32  # of views: an array's base is the memory, or an object with views of its own


class Piece:
    """One buffer or array as a region.

    Args:
        name: of the region.
        data: the buffer or array.
        warns: of what is not kept of it; False where it is kept elsewhere.

    Attributes:
        view: its bytes.
        address: where they are; 0 if this is a copy, because the original had gaps.
        protection: as in an image.
        metadata: as in an image.
        width: bytes of the numbers that it holds: 2, 4, 8, or 0 for anything else.

    Raises:
        TypeError: it is neither, or an array that has no bytes of its own (objects, masks).
        RestoreError: it is copied from a lazily restored region that cannot be loaded.
    """

    def __init__(self, name: str, data: object, *, warns: bool = True) -> None:
        self.name = name
        self.metadata: dict[str, object] = {}
        data = _scalar_as_array(data)
        self._lazy = _region_behind(data)
        if self._lazy is not None and _has_gaps(data):
            self._lazy.populate()  # what follows copies it
            self._lazy = None
        if _is_array(data):
            self.metadata["array"] = _describe_array(name, data, warns=warns)
            self.view, is_copy = _array_bytes(data)
            self.width = width_of(data.dtype)
        else:
            self.view, is_copy = _buffer_bytes(name, data)
            self.width = _buffer_width(data)
        is_readonly = self.view.readonly and not is_copy
        self.protection = PROTECTION_READ | (0 if is_readonly else PROTECTION_WRITE)
        self.address = 0
        if len(self.view) and not is_copy:
            self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.view)))

    def parts(self) -> Iterator[memoryview]:
        """Its bytes, that can be read without a signal.

        Raises:
            RestoreError: they are of a lazily restored region, and cannot be loaded.
        """
        if self._lazy is None or not self.address:
            yield self.view
            return
        offset = self.address - self._lazy.address
        for start in range(0, len(self.view), _LOAD_BYTES):
            part = self.view[start : start + _LOAD_BYTES]
            self._lazy.populate(offset + start, len(part))
            yield part


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
            ValueError: a name is empty or too long, or it is a session that is closed.
        """
        if not isinstance(data, Mapping):
            return cls([Piece(UNNAMED, data)])
        _refuse_closed(data)
        for name in data:
            check_name(name)
        return cls(list(starmap(Piece, data.items())))

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
                width=piece.width,
            )
            for part in piece.parts():
                sink.write_stable(part)


def _refuse_closed(data: object) -> None:
    """ValueError for what was restored, loaded or attached to, if it is closed.

    It has no regions any more, and would give an empty image: often in the place of the very one
    that it came from.
    """
    session = getattr(data, "session", data)  # of what `load` gave
    for name, kind in _RESTORED.items():
        module = sys.modules.get(name)  # without it there is none
        if module is not None and isinstance(session, getattr(module, kind)):
            session.digest  # noqa: B018 (it says so)


def _region_behind(data: object) -> Region | PlacedRegion | None:
    """The restored region whose memory this is, if it is one's."""
    module = sys.modules.get("lazyrestore.region")  # without it there is none
    if module is None:
        return None
    for _ in range(_VIEWS_MAX):
        if isinstance(data, (module.Region, module.PlacedRegion)):
            region: Region | PlacedRegion = data
            return region
        if isinstance(data, memoryview):
            data = data.obj
        elif _is_array(data):
            data = data.base
        else:
            break
    return None


def _has_gaps(data: object) -> bool:
    if _is_array(data):
        return not (data.flags.c_contiguous or data.flags.f_contiguous)
    return isinstance(data, memoryview) and not data.contiguous


def _buffer_bytes(name: str, data: object) -> tuple[memoryview, bool]:
    """The bytes of a buffer, and whether they are a copy."""
    buffer: Any = data
    try:
        return raw_view(buffer), False
    except TypeError:
        raise TypeError(
            f"region {name!r} cannot be dumped: {type(data).__name__} is neither a buffer nor a"
            " numpy array: make it one, or use dump_pickle for objects"
        ) from None
    except BufferError:  # it has gaps
        return memoryview(memoryview(buffer).tobytes()), True


def _buffer_width(data: object) -> int:
    """Of a buffer that knows its items, as one of array.array does."""
    buffer: Any = data
    with memoryview(buffer) as view:
        return view.itemsize if view.itemsize in PLANES_WIDTHS else 0


def _is_array(data: object) -> TypeGuard[numpy.ndarray[tuple[int, ...], numpy.dtype]]:
    """Whether it is a numpy array; does not import numpy, for without it nothing is one."""
    module = sys.modules.get("numpy")
    return module is not None and isinstance(data, module.ndarray)


def _scalar_as_array(data: object) -> object:
    """Numpy's scalars as arrays of no dimension, which keep their dtype."""
    module = sys.modules.get("numpy")
    return module.asarray(data) if module is not None and isinstance(data, module.generic) else data


def _describe_array(
    name: str, array: numpy.ndarray[tuple[int, ...], numpy.dtype], *, warns: bool
) -> dict[str, object]:
    import numpy

    from lazyrestore._arrays import describe

    if isinstance(array, numpy.ma.MaskedArray):
        raise TypeError(
            f"region {name!r} is a masked array: dump its .data and its .mask as two regions"
        )
    if warns and _has_metadata(array.dtype):
        warnings.warn(
            f"region {name!r}: the metadata of its dtype is not kept in an image",
            UserWarning,
            stacklevel=6,
        )
    try:
        return describe(array)
    except TypeError as error:
        raise TypeError(f"region {name!r} has dtype {array.dtype}: {error}") from None


def _has_metadata(dtype: numpy.dtype) -> bool:
    if dtype.subdtype is not None:
        return bool(dtype.metadata) or _has_metadata(dtype.subdtype[0])
    fields = (dtype.fields or {}).values()
    return bool(dtype.metadata) or any(_has_metadata(field[0]) for field in fields)


def _array_bytes(
    array: numpy.ndarray[tuple[int, ...], numpy.dtype],
) -> tuple[memoryview, bool]:
    """An array's bytes in the order that `_describe_array` gives, and whether they are a copy."""
    import numpy

    if not array.nbytes:
        return memoryview(b""), False
    plain = array.view(numpy.ndarray)
    is_copy = not (plain.flags.c_contiguous or plain.flags.f_contiguous)
    if is_copy:
        plain = numpy.ascontiguousarray(plain)
    elif not plain.flags.c_contiguous:
        plain = plain.T
    return plain.reshape(-1).view(numpy.uint8).data, is_copy


def width_of(dtype: numpy.dtype) -> int:
    """Bytes of the numbers that a dtype is made of, if all are of one width, and that is 2, 4 or 8.

    A complex number is two; text is numbers of 4 bytes; of bytes and anything else: 0.
    """
    if dtype.subdtype is not None:
        return width_of(dtype.subdtype[0])
    if dtype.fields is not None:
        fields = [dtype.fields[name][0] for name in dtype.names or ()]
        widths = {width_of(field) for field in fields}
        has_gaps = sum(field.itemsize for field in fields) != dtype.itemsize
        return widths.pop() if len(widths) == 1 and not has_gaps else 0
    if dtype.kind == "S":
        return 0
    width = {"c": dtype.itemsize // 2, "U": 4}.get(dtype.kind, dtype.itemsize)
    return width if width in PLANES_WIDTHS else 0
