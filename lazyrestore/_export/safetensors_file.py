"""The safetensors format."""

from __future__ import annotations

import array
import json
from collections.abc import Callable

from lazyrestore import _dtypes
from lazyrestore import _safetensors as fmt
from lazyrestore._open import Image
from lazyrestore._outfile import OutputFile
from lazyrestore._output import Tally, decode_to_file
from lazyrestore.errors import ImageError

from .described import Described

_NAMES = {described: name for name, described in fmt.DTYPES.items()}
_CODES = {2: "H", 4: "I", 8: "Q"}


def check_safetensors(image: Image, arrays: list[Described]) -> None:
    """ValueError for what the format cannot have."""
    for one in arrays:
        if one.name == fmt.METADATA:
            raise ValueError(
                f"region {one.name!r} has a name that .safetensors files keep for something else:"
                " write .npz, or other regions with --region"
            )
        if not one.is_ordered:
            raise ValueError(
                f"region {one.name!r} is in Fortran order, which .safetensors files do not have:"
                " write .npz, or dump a copy of it in C order (numpy.ascontiguousarray)"
            )
        _type_of(one)
    _metadata(image)


def write_safetensors(
    image: Image, arrays: list[Described], output: OutputFile, tally: Tally, threads: int | None
) -> None:
    """Write tensors, in the order of the regions where they are then aligned."""
    at = 0
    tensors: list[fmt.Tensor] = []
    for one in _arrange(arrays):
        dtype, shape = _type_of(one)
        tensors.append(fmt.Tensor(one.name, dtype, shape, at, at + one.nbytes))
        at += one.nbytes
    header = fmt.make_header(tensors, _metadata(image))
    output.write_at(header, 0)
    output.set_length(len(header) + at)
    starts = {tensor.name: len(header) + tensor.start for tensor in tensors}
    places = [(one.number, starts[one.name], _swapper(one)) for one in arrays]
    decode_to_file(image, places, output, tally, threads)


def _arrange(arrays: list[Described]) -> list[Described]:
    """An order in which each begins at a multiple of its elements' length: theirs, if it is one."""
    at = 0
    for one in arrays:
        if at % max(1, one.kind.itemsize):
            return sorted(arrays, key=lambda one: one.kind.itemsize, reverse=True)
        at += one.nbytes
    return arrays


def _type_of(one: Described) -> tuple[str, tuple[int, ...]]:
    """The format's name for a dtype, and the shape; ValueError if there is none."""
    said = one.metadata.get(fmt.KEY)
    if isinstance(said, dict) and "array" not in one.metadata:
        dtype, shape = said.get("dtype"), said.get("shape")
        try:
            shape = _dtypes.check_shape(shape)
            if isinstance(dtype, str) and fmt.bytes_of(dtype, shape) == one.nbytes:
                return dtype, shape
        except ValueError:
            pass  # it says what cannot be: then it is bytes
    name = _NAMES.get(_little_endian(one.dtype))
    if name is None:
        raise ValueError(
            f"region {one.name!r} is of dtype {str(one.dtype)[:60]}, which .safetensors files do"
            " not have: write .npz, or other regions with --region"
        )
    return name, one.shape


def _little_endian(dtype: object) -> str:
    """A simple dtype as the format has it; "" for one of fields."""
    if not isinstance(dtype, str):
        return ""
    return dtype.replace(">", "<").replace("=", "<") if dtype[1:] not in _BYTES else f"|{dtype[1:]}"


_BYTES = ("b1", "u1", "i1")


def _swapper(one: Described) -> Callable[[memoryview], bytes | memoryview] | None:
    """What makes numbers little-endian, for those that are not."""
    if not isinstance(one.dtype, str) or not one.dtype.startswith(">") or not one.kind.width:
        return None
    code = _CODES[one.kind.width]

    def swap(data: memoryview) -> memoryview:
        numbers = array.array(code, bytes(data))
        numbers.byteswap()
        return memoryview(numbers).cast("B")

    return swap


def _metadata(image: Image) -> dict[str, str] | None:
    """What the file had under __metadata__ that the image was made of.

    Raises:
        ImageError: the image's record of it is damaged.
    """
    raw = image.files.get(fmt.FILE)
    if raw is None:
        return None
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ImageError(f"{image.path}: its file {fmt.FILE} is damaged: take another copy")
    return said
