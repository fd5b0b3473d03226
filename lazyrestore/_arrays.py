"""What an image says of numpy arrays: from a dtype to its description, and back to an array.

A description is `{"dtype": ..., "shape": [...], "order": "C" or "F"}`. The dtype is a string as
`numpy.dtype` takes it ("<f4"), the name of a type of ml_dtypes ("bfloat16"), or a list of fields as
in the .npy format, where tuples are lists. Within fields it can also be such a dtype and a shape.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from typing import Any, Literal

import numpy

from ._extras import require
from .errors import ImageError

# A name that is one of ml_dtypes, or will be, whether it is installed or not.
_EXTENSION = re.compile(r"bfloat16|b?complex32|float[468]_[a-z0-9]+|u?int[124]")

_BYTES = numpy.dtype(numpy.uint8)


def as_array(
    buffer: Any, length: int, metadata: dict[str, object], *, writable: bool = True
) -> numpy.ndarray[Any, Any]:
    """An array over `buffer`, as its metadata describes it, or one of bytes.

    Raises:
        ImageError: the metadata does not describe an array of `length` bytes.
        ModuleNotFoundError: its dtype is one of ml_dtypes, which is not installed.
    """
    described = metadata.get("array")
    if described is None:
        described = {"dtype": "|u1", "shape": [length], "order": "C"}
    try:
        return _build(buffer, length, described, writable)
    except ImportError:
        raise
    except Exception as error:  # an image may say anything, and numpy raises many things
        shown = reprlib.repr(described)  # of what is nested too deeply only so much
        raise ImageError(
            f"the metadata does not describe an array of {length} bytes: {shown}"
        ) from error


def _build(buffer: Any, length: int, described: Any, writable: bool) -> numpy.ndarray[Any, Any]:
    """The array; any exception if there is none that is so described."""
    dtype = to_dtype(described["dtype"])
    shape = tuple(described["shape"])
    order: Literal["F", "C"] = "F" if described.get("order", "C") == "F" else "C"
    if dtype.hasobject:
        raise TypeError("Python's objects do not lie in an image")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a size is a whole number, 0 or more")
    if math.prod(shape) * dtype.itemsize != length:
        raise ValueError("it would have another length")
    if not length:  # a region of no bytes has none that numpy could be given
        array: numpy.ndarray[Any, Any] = numpy.ndarray(shape, dtype, bytearray(), order=order)
        array.flags.writeable = writable
        return array
    # An array of its own: it holds the buffer, which numpy.ndarray would only look at.
    memory = numpy.frombuffer(buffer if writable else memoryview(buffer).toreadonly(), _BYTES)
    return numpy.ndarray(shape, dtype, memory, order=order)


def to_dtype(described: Any) -> numpy.dtype[Any]:
    """The dtype of a description.

    Raises:
        ModuleNotFoundError: it is one of ml_dtypes, which is not installed.
        ImportError: that is installed, but too old to have it.
        Exception: of any other kind, where it describes nothing.
    """
    if isinstance(described, str):
        if _EXTENSION.fullmatch(described):
            return _extension(described)
        return numpy.dtype(described)
    if not isinstance(described, (list, tuple)):
        raise TypeError("a dtype is a string, or a list of fields")
    if len(described) == 2 and all(type(size) is int for size in described[1]):
        rows: numpy.dtype[Any] = numpy.dtype((to_dtype(described[0]), tuple(described[1])))
        return rows
    return _structure(described)


def _extension(name: str) -> numpy.dtype[Any]:
    module = require("ml_dtypes", "ml", f"an array of {name}")
    kind = getattr(module, name, None)
    if kind is None:
        raise ImportError(
            f"ml_dtypes {module.__version__} has no {name}: pip install -U 'lazyrestore[ml]'",
            name="ml_dtypes",
        )
    dtype: numpy.dtype[Any] = numpy.dtype(kind)
    return dtype


def _structure(fields: Any) -> numpy.dtype[Any]:
    """A structured dtype, of fields that lie one after another; bytes without a name are gaps."""
    names: list[str] = []
    titles: list[Any] = []
    formats: list[Any] = []
    offsets: list[int] = []
    end = 0
    for name, kind, *shapes in fields:
        dtype = to_dtype(kind)
        if shapes:
            (shape,) = shapes
            dtype = numpy.dtype((dtype, tuple(shape)))
        # As in the .npy format.
        is_gap = name == "" and dtype.type is numpy.void and dtype.names is None
        if not is_gap:
            title, plain_name = (None, name) if isinstance(name, str) else name
            names.append(plain_name)
            titles.append(title)
            formats.append(dtype)
            offsets.append(end)
        end += dtype.itemsize
    record: Any = {
        "names": names,
        "titles": titles,
        "formats": formats,
        "offsets": offsets,
        "itemsize": end,
    }
    structure: numpy.dtype[Any] = numpy.dtype(record)
    return structure


def describe(array: numpy.ndarray[Any, Any]) -> dict[str, object]:
    """The description of an array that has no gaps, or will have none.

    Raises:
        TypeError: its dtype cannot be described; says why, and what can be dumped instead.
    """
    flags = array.flags
    return {
        "dtype": describe_dtype(array.dtype),
        "shape": list(array.shape),
        "order": "F" if flags.f_contiguous and not flags.c_contiguous else "C",
    }


def describe_dtype(dtype: numpy.dtype[Any]) -> object:
    """The description of a dtype.

    Raises:
        TypeError: there is none; says why, and what can be dumped instead.
    """
    if dtype.hasobject:
        raise TypeError(
            "objects are only references to memory elsewhere; convert it to numbers or fixed-length"
            " strings, or use dump_pickle"
        )
    described = _describe(dtype)
    try:
        again = to_dtype(described)
    except (TypeError, ValueError):
        again = None
    if again != dtype:
        raise TypeError("it cannot be described; dump .view('u1'), and keep the dtype elsewhere")
    return described


def _describe(dtype: numpy.dtype[Any]) -> object:
    if dtype.subdtype is not None:  # rows in a field of rows
        base, shape = dtype.subdtype
        return [_describe(base), list(shape)]
    if dtype.names is not None:
        try:
            entries: list[Any] = dtype.descr
        except ValueError:
            raise TypeError(
                "fields that overlap, or are out of order, cannot be described; dump .view('u1'),"
                " or a copy with fields one after another"
            ) from None
        return [_describe_field(dtype, *entry) for entry in entries]
    if dtype.isbuiltin == 2:  # some package's
        kind = getattr(sys.modules.get("ml_dtypes"), dtype.name, None)
        if kind is None or not _EXTENSION.fullmatch(dtype.name) or numpy.dtype(kind) != dtype:
            raise TypeError(
                "only its package knows what it is, and in which order its bytes are; dump"
                " .view('u1'), or a copy of another dtype"
            )
        return dtype.name
    return dtype.str


def _describe_field(dtype: numpy.dtype[Any], name: Any, kind: Any, *shape: Any) -> list[object]:
    fields: Any = dtype.fields
    plain_name = name if isinstance(name, str) else name[1]
    if plain_name not in fields:
        return [name, kind]  # a gap
    base = fields[plain_name][0].base
    named = name if isinstance(name, str) else list(name)
    return [named, _describe(base), *(list(sizes) for sizes in shape)]
