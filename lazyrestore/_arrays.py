"""From a region's bytes and metadata to a numpy array."""

from __future__ import annotations

import math
from typing import Any

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
        assert isinstance(described, dict)
        dtype = numpy.lib.format.descr_to_dtype(_descr(described["dtype"]))
        shape = tuple(int(size) for size in described["shape"])
        order = str(described.get("order", "C"))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ImageError(f"the metadata does not describe an array: {described!r}") from error
    if math.prod(shape) * dtype.itemsize != length:
        raise ImageError(f"the metadata describes an array of another length: {described!r}")
    if not length:
        return numpy.empty(shape, dtype, order="F" if order == "F" else "C")
    flat = numpy.frombuffer(memoryview(buffer).cast("B"), dtype=dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


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
