"""What dtypes in images and files say, without numpy: how long an element is, and of what.

A dtype is described as in an image's metadata (`_arrays`): a string as numpy writes it ("<f4"), the
name of a type of ml_dtypes ("bfloat16"), or a list of fields, each a list of name, dtype and, if it
is an array itself, shape.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .format import LENGTH_MAX, PLANES_WIDTHS

DEPTH_MAX = 32
FIELDS_MAX = 1 << 16
DIMENSIONS_MAX = 64  # as many as numpy knows

_SIMPLE = re.compile(r"([<>|=]?)([biufcmMSUVO])(\d{1,18})?(?:\[[\w/]{1,40}\])?")
_SIZES = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8, 12, 16),
    "c": (8, 16, 24, 32),
    "m": (8,),
    "M": (8,),
}
_TEXT = {"S": 1, "V": 1, "U": 4}

EXTENSIONS = {
    "bfloat16": 2,
    "bcomplex32": 4,
    "complex32": 4,
    **dict.fromkeys(
        "float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2"
        " float8_e5m2fnuz float8_e8m0fnu float6_e2m3fn float6_e3m2fn float4_e2m1fn"
        " int1 int2 int4 uint1 uint2 uint4".split(),
        1,
    ),
}
"""Bytes of an element of the types of ml_dtypes: those of less than a byte have one each."""


class Kind(NamedTuple):
    """What a dtype is.

    Attributes:
        itemsize: bytes of an element.
        width: 2, 4 or 8, if all of it is numbers of so many bytes; else 0.
        has_objects: True if some of it is references to objects of Python's.
        has_extension: True if some of it is a type of ml_dtypes.
    """

    itemsize: int
    width: int
    has_objects: bool = False
    has_extension: bool = False


def parse(described: object, depth: int = 0) -> Kind:
    """What a dtype is that is so described.

    Raises:
        ValueError: it describes none; says why.
    """
    if isinstance(described, str):
        return _parse_simple(described)
    if not isinstance(described, (list, tuple)):
        raise ValueError(f"a dtype cannot be a {type(described).__name__}")
    if depth >= DEPTH_MAX:
        raise ValueError(f"structures lie in structures more than {DEPTH_MAX} deep")
    if len(described) > FIELDS_MAX:
        raise ValueError(f"it has more than {FIELDS_MAX} fields")
    itemsize = 0
    widths = set()
    has_objects = has_extension = False
    names: set[str] = set()
    for field in described:
        kind, count = _parse_field(field, names, depth)
        itemsize += kind.itemsize * count
        if itemsize > LENGTH_MAX:
            raise ValueError("its elements are longer than any memory")
        if kind.itemsize * count:
            widths.add(kind.width)
        has_objects = has_objects or kind.has_objects
        has_extension = has_extension or kind.has_extension
    width = widths.pop() if len(widths) == 1 else 0
    return Kind(itemsize, width, has_objects, has_extension)


def check_shape(shape: object) -> tuple[int, ...]:
    """A shape that an array can have, or ValueError."""
    if not isinstance(shape, (list, tuple)) or len(shape) > DIMENSIONS_MAX:
        raise ValueError("the shape is not a list of numbers")
    for size in shape:
        if type(size) is not int or not 0 <= size <= LENGTH_MAX:
            raise ValueError("a size in the shape is not a number, 0 or more")
    return tuple(shape)


def count_of(shape: tuple[int, ...]) -> int:
    """How many elements an array of a shape has, or ValueError where that cannot be."""
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count > LENGTH_MAX:
            raise ValueError("it would have more elements than any memory")
    return count


def _parse_simple(text: str) -> Kind:
    extension = EXTENSIONS.get(text)
    if extension is not None:
        width = 2 if text.endswith("complex32") else extension
        return Kind(extension, width if width in PLANES_WIDTHS else 0, has_extension=True)
    found = _SIMPLE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a dtype")
    letter, digits = found[2], found[3]
    if letter == "O":
        return Kind(8, 0, has_objects=True)
    number = int(digits) if digits else -1
    if letter in _TEXT and 0 <= number < 1 << 40:
        width = {"U": 4 if number else 0, "V": number}.get(letter, 0)
        return Kind(number * _TEXT[letter], width if width in PLANES_WIDTHS else 0)
    if number not in _SIZES.get(letter, ()):
        raise ValueError(f"{text[:40]!r} is not a dtype")
    width = number // 2 if letter == "c" else number
    return Kind(number, width if width in PLANES_WIDTHS else 0)


def _parse_field(field: object, names: set[str], depth: int) -> tuple[Kind, int]:
    """The type of a field, and how many of it there are."""
    if not isinstance(field, (list, tuple)) or not 2 <= len(field) <= 3:
        raise ValueError("a field is not a name and a type")
    name = field[0]
    both = list(name) if isinstance(name, (list, tuple)) else [name]
    if not 1 <= len(both) <= 2 or not all(isinstance(part, str) for part in both):
        raise ValueError("the name of a field is not a text")
    for part in set(both) - {""}:
        if part in names:
            raise ValueError(f"two fields have the name {part[:40]!r}")
        names.add(part)
    count = count_of(check_shape(field[2])) if len(field) == 3 else 1
    kind = parse(field[1], depth + 1)
    is_gap = both == [""]
    return (kind._replace(width=0) if is_gap else kind), count


def normal(described: object) -> object:
    """A dtype with lists where there are tuples, as it stands in an image's metadata."""
    if isinstance(described, (list, tuple)):
        return [normal(part) for part in described]
    return described
