"""The header of numpy's .npy format, without numpy: numpy.lib.format describes it.

A file's header is text of Python's: a dict with the dtype, the order and the shape. It is read by a
parser for just that, with limits, and never evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import NamedTuple

from . import _dtypes
from .format import LENGTH_MAX

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES_MAX = 1 << 20
_ALIGNMENT = 64
_GROWTH_DIGITS = 21  # numpy leaves room for a longer first axis, for programs that append rows

_BLANKS = " \t\n\r\f"
_TOKEN = re.compile(
    r"""[ \t\n\r\f]*(?:
        (?P<text> [uU]? (?: '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" ) )
      | (?P<number> \d{1,19} ) [lL]?
      | (?P<word> True | False )
      | (?P<mark> [{}()\[\],:] )
    )""",
    re.VERBOSE,
)


class Header(NamedTuple):
    """What a header says.

    Attributes:
        dtype: described as in an image's metadata.
        kind: what that is.
        shape: of the array.
        order: "C" or "F".
        header_bytes: how long the header is; the array's bytes follow it.
    """

    dtype: object
    kind: _dtypes.Kind
    shape: tuple[int, ...]
    order: str
    header_bytes: int

    @property
    def data_bytes(self) -> int:
        """Length of the array."""
        return _dtypes.count_of(self.shape) * self.kind.itemsize


def read_header(read: Callable[[int], bytes]) -> Header:
    """Read a header.

    Args:
        read: gives so many bytes from where it stands, fewer only at the end.

    Raises:
        ValueError: it is none, or one that cannot be read; says why, as "is ...".
    """
    start = read(8)
    if not start.startswith(_MAGIC):
        raise ValueError(
            "is not in numpy's .npy format: take another copy, or what numpy.save wrote"
        )
    if len(start) < 8:
        raise ValueError("is cut short: it ends in its header: take another copy")
    version = start[6], start[7]
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(
            f"is of version {version[0]}.{version[1]} of .npy, which is not known here"
        )
    size_bytes = 2 if version == (1, 0) else 4
    size = read(size_bytes)
    nbytes = int.from_bytes(size, "little")
    if nbytes > _HEADER_BYTES_MAX:
        raise ValueError(f"is damaged: its header would have {nbytes} bytes: take another copy")
    raw = read(nbytes)
    if len(size) < size_bytes or len(raw) < nbytes:
        raise ValueError("is cut short: it ends in its header: take another copy")
    try:
        text = raw.decode("utf-8" if version == (3, 0) else "latin-1")
        return _interpret(_Parser(text).parse(), 8 + size_bytes + nbytes)
    except ValueError as error:  # and UnicodeDecodeError
        raise ValueError(
            f"is damaged: its header cannot be read ({error}): take another copy"
        ) from None


def _interpret(said: object, header_bytes: int) -> Header:
    if not isinstance(said, dict) or set(said) != {"descr", "fortran_order", "shape"}:
        raise ValueError("it does not say descr, fortran_order and shape")
    if not isinstance(said["fortran_order"], bool):
        raise ValueError("fortran_order is neither True nor False")
    described = said["descr"]
    kind = _dtypes.parse(described)
    if not isinstance(said["shape"], tuple):
        raise ValueError("the shape is not a tuple")
    order = "F" if said["fortran_order"] else "C"
    shape = _dtypes.check_shape(said["shape"])
    header = Header(_dtypes.normal(described), kind, shape, order, header_bytes)
    if header.data_bytes > LENGTH_MAX:
        raise ValueError("it would be longer than any memory")
    return header


class _Parser:
    """Reads what Python writes of dicts, lists, tuples, texts, whole numbers and truth values."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> object:
        value = self._value(0)
        if self._text[self._at :].strip(_BLANKS):
            raise ValueError("there is more than one value")
        return value

    def _next(self) -> re.Match[str]:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            raise ValueError(f"not understood: {self._text[self._at : self._at + 20]!r}")
        self._at = found.end()
        return found

    def _value(self, depth: int) -> object:
        if depth > 3 * _dtypes.DEPTH_MAX:
            raise ValueError("it is nested too deeply")
        token = self._next()
        if token["text"] is not None:
            return self._string(token["text"])
        if token["number"] is not None:
            return int(token["number"])
        if token["word"] is not None:
            return token["word"] == "True"
        if token["mark"] == "{":
            return self._dict(depth)
        if token["mark"] in ("(", "["):
            return self._sequence(token["mark"], depth)
        raise ValueError(f"{token['mark']!r} stands where a value should")

    @staticmethod
    def _string(text: str) -> str:
        try:
            value = ast.literal_eval(text)
        except SyntaxError:  # an escape that is none
            raise ValueError(f"not a text: {text[:20]}") from None
        if not isinstance(value, str):
            raise ValueError(f"not a text: {text[:20]}")
        return value

    def _sequence(self, mark: str, depth: int) -> object:
        end = ")" if mark == "(" else "]"
        items: list[object] = []
        has_comma = False
        while not self._takes(end):
            if items and not has_comma:
                raise ValueError("a comma is missing")
            items.append(self._value(depth + 1))
            has_comma = self._takes(",")
        if mark == "[":
            return items
        return items[0] if len(items) == 1 and not has_comma else tuple(items)

    def _dict(self, depth: int) -> dict[str, object]:
        made: dict[str, object] = {}
        has_comma = True
        while not self._takes("}"):
            key = self._value(depth + 1)
            if not has_comma or not isinstance(key, str) or key in made or not self._takes(":"):
                raise ValueError("a key is not one, or stands twice")
            made[key] = self._value(depth + 1)
            has_comma = self._takes(",")
        return made

    def _takes(self, mark: str) -> bool:
        """Whether this mark comes next; it is then behind."""
        found = _TOKEN.match(self._text, self._at)
        if found is None or found["mark"] != mark:
            return False
        self._at = found.end()
        return True


def make_header(dtype: object, shape: tuple[int, ...], order: str) -> bytes:
    """The header that numpy.save would write.

    Args:
        dtype: as in an image's metadata; one that numpy knows without ml_dtypes.
        shape: of the array.
        order: "C" or "F".
    """
    is_fortran = order == "F"
    text = f"{{'descr': {_tuples(dtype)!r}, 'fortran_order': {is_fortran}, 'shape': {shape!r}, }}"
    if shape:
        text += " " * (_GROWTH_DIGITS - len(repr(shape[-1 if is_fortran else 0])))
    try:
        raw, version = text.encode("latin-1"), 1
    except UnicodeEncodeError:
        raw, version = text.encode("utf-8"), 3
    header = _wrap(raw, version)
    return header if header is not None else _wrap(raw, 2) or b""


def _wrap(text: bytes, version: int) -> bytes | None:
    size_bytes = 2 if version == 1 else 4
    padding = _ALIGNMENT - (8 + size_bytes + len(text) + 1) % _ALIGNMENT
    nbytes = len(text) + padding + 1
    if nbytes >= 1 << 8 * size_bytes:
        return None
    start = _MAGIC + bytes([version, 0]) + nbytes.to_bytes(size_bytes, "little")
    return start + text + b" " * padding + b"\n"


def _tuples(described: object) -> object:
    """A dtype with tuples, as numpy has it, from one with lists."""
    if not isinstance(described, list):
        return described
    return [
        (
            tuple(name) if isinstance(name, list) else name,
            _tuples(kind),
            *(tuple(sizes) for sizes in shape),
        )
        for name, kind, *shape in described
    ]
