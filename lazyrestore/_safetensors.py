"""The header of the safetensors format, without that package.

    u64 LE N | N bytes of JSON, padded with spaces | the tensors' bytes, one after another
    {"__metadata__": {text: text}, NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

The JSON is read by a parser for just that: of whatever else stands there nothing is built up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json import decoder
from typing import NamedTuple

from . import _dtypes

HEADER_BYTES_MAX = 100_000_000  # the format's own limit
METADATA = "__metadata__"
FILE = "safetensors.json"
"""The file in an image that keeps what a header has under METADATA."""
KEY = "safetensors"
"""In the metadata of a region that numpy has no type for: its dtype and shape here."""

DTYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "C64": "<c8",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
"""The format's types, as an image describes them."""

PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Types of which several elements share a byte: numpy has none such, to an image they are bytes."""

# What json itself reads texts with, from behind the first quote on: gives the text and its end.
_scan: Callable[[str, int, bool], tuple[str, int]] = decoder.scanstring  # type: ignore[attr-defined]
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,18})(?![0-9.eE])")
_BLANK = re.compile(r"[ \t\n\r]*")


class Tensor(NamedTuple):
    """A tensor, as a header describes it.

    Attributes:
        name: of the tensor.
        dtype: one of the format's.
        shape: of the tensor.
        start, end: of its bytes, counted from the end of the header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_header(raw: bytes) -> tuple[list[Tensor], dict[str, str] | None]:
    """The tensors in the order of their bytes, and what stands under __metadata__, if anything.

    Raises:
        ValueError: it is no such header, or says what cannot be; says why.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    tensors: dict[str, Tensor] = {}
    found: list[dict[str, str]] = []

    def value(scanner: _Scanner, name: str) -> None:
        if name == METADATA:
            if found:
                raise ValueError(f"{METADATA} stands there twice")
            found.append(scanner.texts())
        elif name in tensors:
            raise ValueError(f"tensor {name[:60]!r} stands there twice")
        else:
            tensors[name] = scanner.tensor(name)

    scanner = _Scanner(text)
    scanner.members(value)
    scanner.finish()
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end))
    at = 0
    for tensor in ordered:
        if tensor.start != at:
            raise ValueError(
                f"tensor {tensor.name[:60]!r} does not begin where the one before ends"
            )
        at = tensor.end
    return ordered, found[0] if found else None


class _Scanner:
    """Reads a header's JSON from front to back."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def finish(self) -> None:
        """See that nothing but blanks follows."""
        self._skip()
        if self._at != len(self._text):
            raise ValueError("something follows its end")

    def members(self, value: Callable[[_Scanner, str], None]) -> None:
        """An object: `value` reads each member's value, and is given its name."""
        self._mark("{")
        if self._has("}"):
            return
        while True:
            name = self._string()
            self._mark(":")
            value(self, name)
            if not self._has(","):
                self._mark("}")
                return

    def texts(self) -> dict[str, str]:
        """An object of nothing but texts."""
        made: dict[str, str] = {}

        def value(scanner: _Scanner, name: str) -> None:
            if name in made:
                raise ValueError(f"{name[:60]!r} stands twice in {METADATA}")
            made[name] = scanner._string()

        self.members(value)
        return made

    def tensor(self, name: str) -> Tensor:
        """What stands for a tensor."""
        said: dict[str, str | tuple[int, ...]] = {}

        def value(scanner: _Scanner, key: str) -> None:
            if key in said or key not in ("dtype", "shape", "data_offsets"):
                raise ValueError(f"tensor {name[:60]!r} has {key[:20]!r}, or has it twice")
            said[key] = scanner._string() if key == "dtype" else scanner._numbers()

        self.members(value)
        dtype, shape, offsets = said.get("dtype"), said.get("shape"), said.get("data_offsets")
        if not isinstance(dtype, str) or not isinstance(shape, tuple):
            raise ValueError(f"tensor {name[:60]!r} has no dtype or no shape")
        if not isinstance(offsets, tuple) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError(f"tensor {name[:60]!r} has data_offsets that cannot be")
        start, end = offsets
        try:
            nbytes = bytes_of(dtype, shape)
        except ValueError as error:
            raise ValueError(f"tensor {name[:60]!r}: {error}") from None
        if nbytes != end - start:
            raise ValueError(
                f"tensor {name[:60]!r} has {end - start} bytes, where {nbytes} would be right"
            )
        return Tensor(name, dtype, shape, start, end)

    def _skip(self) -> None:
        blank = _BLANK.match(self._text, self._at)
        assert blank is not None
        self._at = blank.end()

    def _has(self, mark: str) -> bool:
        self._skip()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += 1
        return True

    def _mark(self, mark: str) -> None:
        if not self._has(mark):
            raise ValueError(f"{mark!r} is missing at character {self._at}")

    def _string(self) -> str:
        self._mark('"')
        text, self._at = _scan(self._text, self._at, True)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it is not Unicode") from None
        return text

    def _numbers(self) -> tuple[int, ...]:
        self._mark("[")
        made: list[int] = []
        if self._has("]"):
            return ()
        while True:
            self._skip()
            found = _NUMBER.match(self._text, self._at)
            if found is None or len(made) == _dtypes.DIMENSIONS_MAX:
                raise ValueError(f"a list of whole numbers is none at character {self._at}")
            made.append(int(found[0]))
            self._at = found.end()
            if not self._has(","):
                self._mark("]")
                return tuple(made)


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """How long a tensor is, or ValueError."""
    bits = PACKED_BITS.get(dtype)
    if bits is None:
        described = DTYPES.get(dtype)
        if described is None:
            raise ValueError(f"it is of dtype {dtype[:20]!r}, which is not known here")
        bits = 8 * _dtypes.parse(described).itemsize
    total = bits * _dtypes.count_of(_dtypes.check_shape(shape))
    if total % 8:
        raise ValueError("its last byte is not whole")
    return total // 8


def make_header(tensors: list[Tensor], metadata: dict[str, str] | None) -> bytes:
    """A header, its length before it, as the safetensors package writes it.

    Raises:
        ValueError: it would be longer than the format allows.
    """
    said: dict[str, object] = {} if metadata is None else {METADATA: metadata}
    for tensor in tensors:
        said[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (tensor.start, tensor.end),
        }
    raw = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > HEADER_BYTES_MAX:
        raise ValueError(
            f"the header would have {len(raw)} bytes: a .safetensors file has at most"
            f" {HEADER_BYTES_MAX}; write .npz, or a part with --region"
        )
    return len(raw).to_bytes(8, "little") + raw
