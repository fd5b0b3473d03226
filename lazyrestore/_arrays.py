"""From a region's bytes and metadata to a numpy array."""

from __future__ import annotations

import math
import reprlib
from typing import Any, Literal

import numpy

from .errors import ImageError


def as_array(buffer: Any, length: int, metadata: dict[str, object]) -> numpy.ndarray[Any, Any]:
    """An array over `buffer`, as its metadata describes it, or one of bytes.

    Raises:
        ImageError: the metadata does not describe an array of `length` bytes.
    """
    described = metadata.get("array")
    if described is None:
        described = {"dtype": "|u1", "shape": [length], "order": "C"}
    try:
        return _build(buffer, length, described)
    except Exception as error:  # an image may say anything, and numpy raises many things
        shown = reprlib.repr(described)  # of what is nested too deeply only so much
        raise ImageError(
            f"the metadata does not describe an array of {length} bytes: {shown}"
        ) from error


def _build(buffer: Any, length: int, described: Any) -> numpy.ndarray[Any, Any]:
    """The array; any exception if there is none that is so described."""
    dtype = numpy.lib.format.descr_to_dtype(_descr(described["dtype"]))
    shape = tuple(described["shape"])
    order: Literal["F", "C"] = "F" if described.get("order", "C") == "F" else "C"
    if dtype.hasobject:
        raise TypeError("Python's objects do not lie in an image")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a size is a whole number, 0 or more")
    if math.prod(shape) * dtype.itemsize != length:
        raise ValueError("it would have another length")
    if not length:
        return numpy.empty(shape, dtype, order=order)
    flat = numpy.frombuffer(memoryview(buffer).cast("B"), dtype=dtype)
    return flat.reshape(shape, order=order)


def _descr(described: Any) -> Any:
    """Undo what msgpack does to a dtype's description: lists where numpy wants tuples."""
    if not isinstance(described, list):
        return described
    return [
        (
            tuple(field[0]) if isinstance(field[0], list) else field[0],
            _descr(field[1]),
            *(tuple(shape) for shape in field[2:]),
        )
        for field in described
    ]
